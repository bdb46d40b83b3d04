//! `jobs`: commands on jobs, and the output of those that show them.

use clap::Subcommand;
use serde::Serialize;

use super::decrypt::{self, RevealArguments, WithSecrets};
use super::ids::job_id;
use super::{JOB_HINT, ListArguments, ShowArguments, or_dash, text};
use crate::cli::output::{Column, Output, Row, shown};
use crate::cli::{Done, Failure, repair, words};
use crate::config::RouteList;
use crate::store::{AttemptRow, Filter, JobDetail, JobRow, ListedJob, Reader};
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
    /// Name the jobs, or choose them with --state and --hook. For example, `spid jobs retry --state dead --hook NAME --why
    /// TEXT` lists and counts the dead jobs of one hook; with --yes it retries them.
    Retry(repair::jobs::JobsArguments),
    /// Drop jobs: cancel them without running them.
    ///
    /// Jobs behind a dropped job go on; jobs behind a dropped create end, too, because there is no instance. Name the
    /// jobs, or choose them with --state and --hook: without --yes they are only listed and counted.
    Drop(repair::jobs::JobsArguments),
    /// Complete a pending, dead or held job with the answer of work that was done by hand.
    Complete(repair::jobs::CompleteJobArguments),
}

/// A listed job, with the hook of its next call.
#[derive(Serialize)]
pub(crate) struct RoutedJob {
    #[serde(flatten)]
    pub(crate) job: ListedJob,
    /// Name of the hook; only the configuration knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<String>,
}

impl RoutedJob {
    fn new(job: ListedJob, routes: Option<&RouteList>) -> RoutedJob {
        let hook = routes.and_then(|routes| routes.hook(&job.subject())).map(str::to_owned);
        RoutedJob { job, hook }
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

/// Jobs in this state whose next call goes to this hook, the newest first.
pub(crate) fn select(
    reader: &Reader,
    routes: Option<&RouteList>,
    state: Option<JobState>,
    hook: Option<&str>,
    limit: usize,
) -> Result<Vec<RoutedJob>, Failure> {
    // The hook is known only after a job was read, so the limit counts after that.
    let read = if hook.is_some() { usize::MAX } else { limit };
    let filter = Filter { jobs: state.into_iter().collect(), limit: read, ..Filter::default() };
    let mut found = Vec::new();
    for job in reader.listed_jobs(&filter)? {
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
        JobsCommand::List { list, state, hook } => {
            let routes = list.store.routes(has_hook_inside, hook.as_deref())?;
            let rows = select(&list.store.reader()?, routes.as_ref(), state, hook.as_deref(), list.limit)?;
            if list.json {
                return output.json(&rows);
            }
            output.rows(&rows)?;
            if rows.iter().any(|row| matches!(row.job.row.state, JobState::Dead | JobState::Held)) {
                output.print_error(JOB_HINT);
            }
            Ok(())
        }
        JobsCommand::Show { show, reveal, id } => {
            let id = job_id(&show.store, &id)?;
            let routes = show.store.routes(has_hook_inside, None)?;
            let JobDetail { job, failed_attempts, trace_id } = show.store.reader()?.job_detail(id)?;
            let secrets = reveal.secrets(&show.store, &format!("job {id}"), [&job.row])?;
            let routed = RoutedJob::new(job, routes.as_ref());
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
        ("JOB", |routed| routed.job.row.id.to_string()),
        ("ACTION", |routed| routed.job.row.action.to_string()),
        ("STATE", |routed| routed.job.row.state.to_string()),
        ("INSTANCE", |routed| text(routed.job.instance.as_deref())),
        ("ORDER", |routed| text(routed.job.order.as_deref())),
        ("HOOK", |routed| text(routed.hook.as_deref())),
        ("ATTEMPTS", |routed| routed.job.row.attempts.to_string()),
        ("CREATED", |routed| routed.job.row.created_at.to_string()),
        ("DUE/ENDED", |routed| due_or_ended(&routed.job.row)),
        ("NOTE", |routed| text(routed.job.row.note.as_deref())),
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
