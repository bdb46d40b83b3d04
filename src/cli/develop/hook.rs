//! `hook`: help for authors of hooks.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::cli::develop::hook_test;
use crate::cli::output::Output;
use crate::cli::{Done, Inside};
use spid_hook::schema;

#[derive(Subcommand)]
pub(crate) enum HookCommand {
    /// Test a hook through whole lives of instances: run everything twice and report where that does harm.
    Test(Box<hook_test::TestArguments>),
    /// Print the JSON Schema of the calls a hook gets and the answers it gives.
    Schema(SchemaArguments),
}

#[derive(Args)]
pub(crate) struct SchemaArguments {
    /// Part of the schema: the call or the answer. The default is one object with the members `call` and `answer`.
    part: Option<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Input of a hook.
    Call,
    /// Output of a hook.
    Answer,
}

pub(crate) fn hook(command: HookCommand, hook: Option<Inside>, output: &mut Output) -> Done {
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
