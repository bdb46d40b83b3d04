//! wip
use super::Done;
use super::output::Output;
#[derive(clap::Args)]
pub(super) struct DemoArguments {}
pub(super) fn demo(_: DemoArguments, _: Option<crate::hook::AnyHook>, _: &mut Output) -> Done {
    Ok(())
}
