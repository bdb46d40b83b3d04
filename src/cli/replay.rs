//! wip
use super::Done;
use super::output::Output;
#[derive(clap::Args)]
pub(super) struct ReplayArguments {}
pub(super) fn replay(_: ReplayArguments, _: &mut Output) -> Done {
    Ok(())
}
