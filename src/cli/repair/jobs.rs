//! Admin operations on jobs: retry, drop, complete.

use std::path::PathBuf;

use clap::Args;

use super::{OperationArguments, answer};
use crate::cli::inspect::ids::job_id;
use crate::cli::inspect::jobs::select;
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, words};
use crate::store::{AuditNote, OperationError, Operations};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Answer;
use spid_hook::id::Id;

#[derive(Args)]
pub(crate) struct JobsArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Ids of the jobs, or their beginnings.
    #[arg(value_name = "JOB", required_unless_present = "state", conflicts_with_all = ["state", "hook", "yes"])]
    ids: Vec<String>,
    /// Choose all jobs in this state.
    #[arg(long, value_parser = words::job_state())]
    state: Option<JobState>,
    /// Of these, choose only the jobs whose next call goes to this hook. Needs --config.
    #[arg(long, value_name = "NAME", requires = "state")]
    hook: Option<String>,
    /// Change the chosen jobs. Without it they are only listed and counted.
    #[arg(long, requires = "state")]
    yes: bool,
}

/// Operation on one job, which must still be in the state it was chosen by. It returns a text for the user.
type OnJob = fn(&mut Operations, Id, Option<JobState>, &AuditNote) -> Result<String, OperationError>;

fn retry_one(
    operations: &mut Operations,
    id: Id,
    chosen: Option<JobState>,
    act: &AuditNote,
) -> Result<String, OperationError> {
    Ok(match operations.retry_chosen(id, chosen, act)? {
        None => format!("job {id} is due now"),
        // The jobs of an instance run in order.
        Some(ahead) => format!("job {id} is due when job {ahead}, which is before it, has ended"),
    })
}

fn drop_one(
    operations: &mut Operations,
    id: Id,
    chosen: Option<JobState>,
    act: &AuditNote,
) -> Result<String, OperationError> {
    operations.drop_chosen(id, chosen, act)?;
    Ok(format!("job {id} is dropped; another delivery of the callback creates a new job"))
}

pub(crate) fn retry(arguments: &JobsArguments, has_hook_inside: bool, output: &mut Output) -> Done {
    arguments.run("retried", retry_one, has_hook_inside, output)
}

pub(crate) fn drop_jobs(arguments: &JobsArguments, has_hook_inside: bool, output: &mut Output) -> Done {
    arguments.run("dropped", drop_one, has_hook_inside, output)
}

impl JobsArguments {
    fn run(&self, done: &str, on_job: OnJob, has_hook_inside: bool, output: &mut Output) -> Done {
        let Some(state) = self.state else {
            let mut ids = Vec::new();
            for id in &self.ids {
                ids.push(job_id(&self.operation.store, id)?);
            }
            let (mut operations, act) = self.operation.begin()?;
            for id in ids {
                output.line(&on_job(&mut operations, id, None, &act)?)?;
            }
            return Ok(());
        };
        let routes = self.operation.store.routes(has_hook_inside, self.hook.as_deref())?;
        let mut chosen = select(
            &self.operation.store.reader()?,
            routes.as_ref(),
            Some(state),
            self.hook.as_deref(),
            usize::MAX,
        )?;
        // The oldest first: the jobs of an instance run in this order.
        chosen.reverse();
        let count = chosen.len();
        if !self.yes {
            output.rows(&chosen)?;
            return Err(Failure::new(
                Exit::Usage,
                format!("{count} jobs would be {done}; nothing was changed"),
            )
            .hint("add --yes to change them"));
        }
        output.line(&format!("{count} jobs"))?;
        let (mut operations, act) = self.operation.begin()?;
        let (mut failed, mut moved) = (0, 0);
        for id in chosen.into_iter().map(|chosen| chosen.job.row.id) {
            match on_job(&mut operations, id, Some(state), &act) {
                Ok(said) => output.line(&said)?,
                // A dropped create ends the jobs behind it, and a daemon or another person works at the same time.
                Err(error @ OperationError::Moved(..)) => {
                    moved += 1;
                    output.line(&format!("job {id} is left alone: {error}"))?;
                }
                // A database that fails would fail for the next job, too.
                Err(OperationError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    failed += 1;
                    output.print_error(&format!("job {id}: {error}"));
                }
            }
        }
        output.line(&format!("{} of {count} jobs {done}", count - failed - moved))?;
        match failed {
            0 => Ok(()),
            _ => Err(Failure::new(Exit::NotMet, format!("{failed} jobs were not {done}"))),
        }
    }
}

#[derive(Args)]
pub(crate) struct CompleteJobArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// File with the answer, in the JSON of docs/hooks.md; `-` for standard input. The default is an empty answer.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Id of the job, from `jobs list` or `held list`, or its beginning.
    id: String,
}

pub(crate) fn complete_job(arguments: CompleteJobArguments, output: &mut Output) -> Done {
    let answer = arguments.answer.as_deref().map_or_else(|| Ok(Answer::default()), answer)?;
    let id = job_id(&arguments.operation.store, &arguments.id)?;
    let (mut operations, act) = arguments.operation.begin()?;
    let action = operations.complete_job(id, &answer, &act)?;
    output.line(&format!("job {id} ({action}) is complete; spid reports it at the next delivery"))
}
