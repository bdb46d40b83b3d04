//! Admin operations on jobs: retry, drop, complete.

use std::path::PathBuf;

use clap::Args;

use super::{OperationArguments, answer};
use crate::cli::inspect::ids::job_id;
use crate::cli::inspect::jobs::{JobSelection, RoutedJob, select};
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, words};
use crate::store::{AdminOperation, ChosenJob, JobKind, OperationError};
use spid_core::lifecycle::schedule::JobState;

#[derive(Args)]
pub(crate) struct JobsArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Ids of the jobs, or their beginnings.
    #[arg(value_name = "JOB", required_unless_present = "state", conflicts_with_all = ["state", "hook", "kind", "yes"])]
    ids: Vec<String>,
    /// Choose all jobs in this state.
    #[arg(long, value_parser = words::job_state())]
    state: Option<JobState>,
    /// Of these, choose only the jobs whose next call goes to this hook. Needs --config.
    #[arg(long, value_name = "NAME", requires = "state")]
    hook: Option<String>,
    /// Of these, choose only the jobs of this kind.
    #[arg(long, value_parser = words::job_kind(), requires = "state", conflicts_with = "hook")]
    kind: Option<JobKind>,
    /// Change the chosen jobs. Without it they are only listed and counted.
    #[arg(long, requires = "state")]
    yes: bool,
}

pub(crate) fn retry(arguments: &JobsArguments, has_hook_inside: bool, output: &mut Output) -> Done {
    arguments.run("retried", AdminOperation::Retry, |_| true, has_hook_inside, output)
}

pub(crate) fn drop_jobs(arguments: &JobsArguments, has_hook_inside: bool, output: &mut Output) -> Done {
    // Only the configuration ends a recurring job, so a choice by state leaves it out.
    arguments.run("dropped", AdminOperation::Drop, |job| !job.is_recurring(), has_hook_inside, output)
}

impl JobsArguments {
    fn run(
        &self,
        done: &str,
        on_job: fn(ChosenJob) -> AdminOperation,
        may_be: fn(&RoutedJob) -> bool,
        has_hook_inside: bool,
        output: &mut Output,
    ) -> Done {
        let Some(state) = self.state else {
            let mut ids = Vec::new();
            for id in &self.ids {
                ids.push(job_id(&self.operation.store, id)?);
            }
            return self.operation.run_all(output, |reports, operations, act| {
                for id in ids {
                    reports.add(operations.run(&on_job(ChosenJob { id, state: None }), None, act)?)?;
                }
                Ok(())
            });
        };
        let routes = self.operation.store.routes(has_hook_inside, self.hook.as_deref())?;
        let selection = JobSelection {
            state: Some(state),
            hook: self.hook.as_deref(),
            kind: self.kind,
            limit: usize::MAX,
        };
        let mut chosen = select(&self.operation.store.reader()?, routes.as_ref(), selection)?;
        chosen.retain(may_be);
        // The oldest first: the jobs of an instance run in this order.
        chosen.reverse();
        let count = chosen.len();
        if !self.yes {
            if self.operation.json {
                output.json(&chosen)?;
            } else {
                output.rows(&chosen)?;
            }
            return Err(Failure::new(
                Exit::Usage,
                format!("{count} jobs would be {done}; nothing was changed"),
            )
            .hint("add --yes to change them"));
        }
        self.operation.run_all(output, |reports, operations, act| {
            reports.line(&format!("{count} jobs"))?;
            let (mut failed, mut moved) = (0, 0);
            for id in chosen.into_iter().map(|chosen| chosen.job.id()) {
                let operation = on_job(ChosenJob { id, state: Some(state) });
                match operations.run(&operation, None, act) {
                    Ok(report) => reports.add(report)?,
                    // A dropped create ends the jobs behind it, and a daemon or another person works at the same time.
                    Err(error @ OperationError::Moved(..)) => {
                        moved += 1;
                        reports.add(operation.unchanged(format!("job {id} is left alone: {error}")))?;
                    }
                    // A database that fails would fail for the next job, too.
                    Err(OperationError::Store(error)) => return Err(error.into()),
                    Err(error) => {
                        failed += 1;
                        reports.add_failed(operation.unchanged(format!("job {id}: {error}")));
                    }
                }
            }
            reports.line(&format!("{} of {count} jobs {done}", count - failed - moved))?;
            match failed {
                0 => Ok(()),
                _ => Err(Failure::new(Exit::NotMet, format!("{failed} jobs were not {done}"))),
            }
        })
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

pub(crate) fn complete_job(arguments: &CompleteJobArguments, output: &mut Output) -> Done {
    let CompleteJobArguments { operation, answer: file, id } = arguments;
    let (answer, job) = (answer(file.as_deref())?, job_id(&operation.store, id)?);
    operation.run(&AdminOperation::CompleteJob { job, answer }, output)
}
