//! Admin operations on jobs: retry, drop, complete.

use std::path::PathBuf;

use clap::Args;

use super::{ActArguments, answer};
use crate::cli::Done;
use crate::cli::output::Output;
use spid_hook::callback::Answer;
use spid_hook::id::Id;

#[derive(Args)]
pub(crate) struct JobArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Id of the job.
    id: Id,
}

pub(crate) fn retry(arguments: JobArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    let id = arguments.id;
    match operations.retry(id, &act)? {
        None => output.line(&format!("job {id} is due now")),
        // The jobs of an instance run in order.
        Some(ahead) => {
            output.line(&format!("job {id} is due when job {ahead}, which is before it, has ended"))
        }
    }
}

pub(crate) fn drop_job(arguments: JobArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    operations.drop_job(arguments.id, &act)?;
    output
        .line(&format!("job {} is dropped; another delivery of the callback creates a new job", arguments.id))
}

#[derive(Args)]
pub(crate) struct CompleteJobArguments {
    #[command(flatten)]
    act: ActArguments,
    /// File with the answer, in the JSON of docs/hooks.md; `-` for standard input. The default is an empty answer.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Id of the job, from `jobs list` or `held list`.
    id: Id,
}

pub(crate) fn complete_job(arguments: CompleteJobArguments, output: &mut Output) -> Done {
    let answer = arguments.answer.as_deref().map_or_else(|| Ok(Answer::default()), answer)?;
    let (mut operations, act) = arguments.act.begin()?;
    let action = operations.complete_job(arguments.id, &answer, &act)?;
    output.line(&format!("job {} ({action}) is complete; spid reports it at the next delivery", arguments.id))
}
