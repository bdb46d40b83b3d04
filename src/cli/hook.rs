//! `hook`: what hook authors need.

use clap::Subcommand;

use super::output::Output;
use super::{Done, hook_test};
use crate::hook::AnyHook;

#[derive(Subcommand)]
pub(super) enum HookCommand {
    /// Run a hook through whole lives, everything twice, and say where that does harm.
    Test(Box<hook_test::TestArguments>),
}

pub(super) fn hook(command: HookCommand, hook: Option<AnyHook>, output: &mut Output) -> Done {
    match command {
        HookCommand::Test(arguments) => hook_test::test(*arguments, hook, output),
    }
}
