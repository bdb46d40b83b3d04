//! `hook`: help for whoever writes one.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::output::Output;
use super::{Done, hook_test};
use crate::hook::{AnyHook, schema};

#[derive(Subcommand)]
pub(super) enum HookCommand {
    /// Run a hook through whole lives, everything twice, and say where that does harm.
    Test(Box<hook_test::TestArguments>),
    /// Print the JSON Schema of what a hook gets and gives.
    Schema(SchemaArguments),
}

#[derive(Args)]
pub(super) struct SchemaArguments {
    /// Of the call or of the answer; without it both, under these names.
    part: Option<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// What a hook gets.
    Call,
    /// What a hook gives.
    Answer,
}

pub(super) fn hook(command: HookCommand, hook: Option<AnyHook>, output: &mut Output) -> Done {
    match command {
        HookCommand::Test(arguments) => hook_test::test(*arguments, hook, output),
        HookCommand::Schema(arguments) => print_schema(arguments.part, output),
    }
}

fn print_schema(part: Option<Part>, output: &mut Output) -> Done {
    let schema = match part {
        Some(Part::Call) => schema::call(),
        Some(Part::Answer) => schema::answer(),
        None => json!({ "call": schema::call(), "answer": schema::answer() }),
    };
    output.json(&schema)
}
