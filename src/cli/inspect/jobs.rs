//! `jobs`: commands on jobs, and the output of those that show them.

use clap::Subcommand;
use serde::Serialize;

use super::decrypt::{self, RevealArguments, WithSecrets};
use super::ids::job_id;
use super::{JOB_HINT, ListArguments, ShowArguments, or_dash, text};
use crate::cli::output::{Column, Output, Row, shown};
use crate::cli::{Done, Failure, repair, words};
use crate::config::RouteList;
use crate::store::{AnyJob, AnyJobDetail, AttemptRow, Filter, JobDetail, JobKind, JobRow, ListedJob, Reader};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::trace::TraceId;

#[derive(Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, the newest first.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only jobs in this state.
        #[arg(long, value_parser = words::job_state())]
        state: Option<JobState>,
        /// List only jobs whose next call goes to this hook. Needs --config.
        #[arg(long, value_name = "NAME")]
        hook: Option<String>,
        /// List only jobs of this kind.
        #[arg(long, value_parser = words::job_kind(), conflicts_with = "hook")]
        kind: Option<JobKind>,
    },
    /// Show one job and its attempts.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        reveal: RevealArguments,
        /// Id of the job, or its beginning. It is the idempotency key of the hook's calls.
        id: String,
    },
    /// Retry jobs once, now. The attempt does not count against the retry schedule.
    ///
    /// Name the jobs, or choose them with --state, and --hook or --kind. For example, `spid jobs retry --state dead --hook
    /// NAME --why TEXT` lists and counts the dead jobs of one hook; with --yes it retries them.
    Retry(repair::jobs::JobsArguments),
    /// Drop jobs: cancel them without running them.
    ///
    /// Jobs behind a dropped job go on; jobs behind a dropped create end, too, because there is no instance. Name the
    /// jobs, or choose them with --state, and --hook or --kind: without --yes they are only listed and counted. A job that
    /// comes back at an interval cannot be dropped: remove it from the configuration.
    Drop(repair::jobs::JobsArguments),
    /// Complete a pending, dead or held job with the answer of work that was done by hand.
    Complete(repair::jobs::CompleteJobArguments),
}

/// A listed job, with the hook of its next call.
#[derive(Serialize)]
pub(crate) struct RoutedJob {
    #[serde(flatten)]
    pub(crate) job: AnyJob,
    /// Name of the hook; only the configuration knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<String>,
}

impl RoutedJob {
    fn new(job: AnyJob, routes: Option<&RouteList>) -> RoutedJob {
        let hook = match (&job, routes) {
            (AnyJob::Hook(job), Some(routes)) => routes.hook(&job.subject()).map(str::to_owned),
            _ => None,
        };
        RoutedJob { job, hook }
    }

    /// Returns true if the job comes back after it was done.
    pub(crate) fn is_recurring(&self) -> bool {
        matches!(&self.job, AnyJob::Market(job) if job.kind.is_recurring())
    }

    /// Returns the job of a hook.
    fn of_hook(&self) -> Option<&ListedJob> {
        match &self.job {
            AnyJob::Hook(job) => Some(job),
            AnyJob::Market(_) => None,
        }
    }

    /// Returns the hook of the next call, or the market and what the call is about.
    fn target(&self) -> String {
        match &self.job {
            AnyJob::Hook(_) => text(self.hook.as_deref()),
            AnyJob::Market(job) => format!("market {}: {}", job.market, job.about),
        }
    }
}

/// A job with the hook of its next call, and its attempts.
#[derive(Serialize)]
struct ShownJob {
    #[serde(flatten)]
    routed: RoutedJob,
    failed_attempts: Vec<AttemptRow>,
    trace_id: TraceId,
}

/// Selection of jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobSelection<'a> {
    pub(crate) state: Option<JobState>,
    /// Name of the hook of the next call.
    pub(crate) hook: Option<&'a str>,
    pub(crate) kind: Option<JobKind>,
    pub(crate) limit: usize,
}

/// Returns the jobs of the selection, the newest first.
pub(crate) fn select(
    reader: &Reader,
    routes: Option<&RouteList>,
    selection: JobSelection<'_>,
) -> Result<Vec<RoutedJob>, Failure> {
    let JobSelection { state, hook, kind, limit } = selection;
    // The hook is known only after a job was read, so the limit counts after that.
    let read = if hook.is_some() { usize::MAX } else { limit };
    let kind = if hook.is_some() { Some(JobKind::Hook) } else { kind };
    let filter = Filter { jobs: state.into_iter().collect(), kind, limit: read, ..Filter::default() };
    let mut found = Vec::new();
    for job in reader.every_job(&filter)? {
        let routed = RoutedJob::new(job, routes);
        if hook.is_none() || hook == routed.hook.as_deref() {
            found.push(routed);
        }
    }
    found.truncate(limit);
    Ok(found)
}

pub(crate) fn jobs(command: JobsCommand, has_hook_inside: bool, output: &mut Output) -> Done {
    match command {
        JobsCommand::List { list, state, hook, kind } => {
            let routes = list.store.routes(has_hook_inside, hook.as_deref())?;
            let selection = JobSelection { state, hook: hook.as_deref(), kind, limit: list.limit };
            let rows = select(&list.store.reader()?, routes.as_ref(), selection)?;
            if list.json {
                return output.json(&rows);
            }
            output.rows(&rows)?;
            if rows.iter().any(|row| matches!(row.job.state(), JobState::Dead | JobState::Held)) {
                output.print_error(JOB_HINT);
            }
            Ok(())
        }
        JobsCommand::Show { show, reveal, id } => {
            let id = job_id(&show.store, &id)?;
            let routes = show.store.routes(has_hook_inside, None)?;
            let detail = match show.store.reader()?.any_job(id)? {
                AnyJobDetail::Hook(detail) => *detail,
                AnyJobDetail::Market(job) => {
                    // It has no answer, so this only writes the audit entry.
                    let secrets = reveal.secrets(&show.store, &format!("job {id}"), [])?;
                    let routed = RoutedJob::new(AnyJob::Market(job), None);
                    return match show.json {
                        true => output.json(&WithSecrets { shown: &routed, secrets }),
                        false => output.rows(&[routed]),
                    };
                }
            };
            let JobDetail { job, failed_attempts, trace_id } = detail;
            let secrets = reveal.secrets(&show.store, &format!("job {id}"), [&job.row])?;
            let routed = RoutedJob::new(AnyJob::Hook(Box::new(job)), routes.as_ref());
            let shown = ShownJob { routed, failed_attempts, trace_id };
            if show.json {
                return output.json(&WithSecrets { shown: &shown, secrets });
            }
            print_job(&shown, output)?;
            decrypt::print(secrets, output)
        }
        JobsCommand::Retry(arguments) => repair::jobs::retry(&arguments, has_hook_inside, output),
        JobsCommand::Drop(arguments) => repair::jobs::drop_jobs(&arguments, has_hook_inside, output),
        JobsCommand::Complete(arguments) => repair::jobs::complete_job(&arguments, output),
    }
}

impl Row for RoutedJob {
    const COLUMNS: &'static [Column<RoutedJob>] = &[
        ("JOB", |routed| routed.job.id().to_string()),
        ("KIND", |routed| routed.job.kind().as_str().to_owned()),
        ("ACTION", |routed| text(routed.of_hook().map(|job| job.row.action.as_str()))),
        ("STATE", |routed| routed.job.state().to_string()),
        ("INSTANCE", |routed| text(routed.of_hook().and_then(|job| job.instance.as_deref()))),
        ("ORDER", |routed| text(routed.of_hook().and_then(|job| job.order.as_deref()))),
        ("TARGET", RoutedJob::target),
        ("ATTEMPTS", |routed| match &routed.job {
            AnyJob::Hook(job) => job.row.attempts.to_string(),
            AnyJob::Market(job) => job.attempts.to_string(),
        }),
        ("CREATED", |routed| match &routed.job {
            AnyJob::Hook(job) => job.row.created_at.to_string(),
            AnyJob::Market(job) => job.created_at.to_string(),
        }),
        ("DUE/ENDED", |routed| match &routed.job {
            AnyJob::Hook(job) => due_or_ended(&job.row),
            AnyJob::Market(job) if job.state == JobState::Queued => job.due_at.to_string(),
            AnyJob::Market(job) => or_dash(job.ended_at),
        }),
        ("NOTE", |routed| match &routed.job {
            AnyJob::Hook(job) => text(job.row.note.as_deref()),
            AnyJob::Market(job) => text(job.note.as_deref()),
        }),
    ];
}

/// Queued jobs show their next attempt, other jobs their end.
fn due_or_ended(row: &JobRow) -> String {
    if row.state == JobState::Queued { row.due_at.to_string() } else { or_dash(row.ended_at) }
}

/// Jobs of one instance, whose name is shown above them.
impl Row for ListedJob {
    const COLUMNS: &'static [Column<ListedJob>] = &[
        ("JOB", |job| job.row.id.to_string()),
        ("ACTION", |job| job.row.action.to_string()),
        ("STATE", |job| job.row.state.to_string()),
        ("ORDER", |job| text(job.order.as_deref())),
        ("ATTEMPTS", |job| job.row.attempts.to_string()),
        ("CREATED", |job| job.row.created_at.to_string()),
        ("DUE/ENDED", |job| due_or_ended(&job.row)),
        ("NOTE", |job| text(job.row.note.as_deref())),
    ];
}

fn print_job(shown_job: &ShownJob, output: &mut Output) -> Done {
    output.rows(std::slice::from_ref(&shown_job.routed))?;
    output.line(&format!("trace {}", shown_job.trace_id))?;
    for attempt in &shown_job.failed_attempts {
        let line = format!(
            "attempt {} ended {} ({}): {}",
            attempt.attempt, attempt.ended_at, attempt.ending, attempt.note
        );
        output.line(&shown(&line))?;
    }
    Ok(())
}
