//! `jobs`: commands on jobs, and the output of those that show them.

use clap::Subcommand;

use super::decrypt::{self, RevealArguments, WithSecrets};
use super::{JOB_HINT, ListArguments, ShowArguments, known, text, time};
use crate::cli::output::{Output, shown};
use crate::cli::repair;
use crate::cli::{Done, Exit, Failure};
use crate::store::{Filter, JobDetail, JobRow};
use spid_core::lifecycle::schedule;
use spid_hook::id::Id;

#[derive(Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, the newest first.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only jobs in this state: queued, running, pending, held, dead, done, refused, dropped or cancelled.
        #[arg(long)]
        state: Option<String>,
    },
    /// Show one job and its attempts.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        reveal: RevealArguments,
        /// Id of the job: the idempotency key of the hook's calls.
        id: String,
    },
    /// Retry a job once, now. The attempt does not count against its retry schedule.
    Retry(repair::jobs::JobArguments),
    /// Cancel a job without running it. Jobs behind it go on; jobs behind a create end, too, because there is no
    /// instance.
    Drop(repair::jobs::JobArguments),
    /// Complete a pending, dead or held job with the answer of work that was done by hand.
    Complete(repair::jobs::CompleteJobArguments),
}

pub(crate) fn jobs(command: JobsCommand, output: &mut Output) -> Done {
    match command {
        JobsCommand::List { list, state } => {
            let find = |word: &str| schedule::JobState::ALL.into_iter().find(|state| state.as_str() == word);
            let words: Vec<&str> = schedule::JobState::ALL.iter().map(|state| state.as_str()).collect();
            let state = state.map(|word| known(&word, find(&word), &words.join(", "))).transpose()?;
            let filter = Filter { jobs: state.into_iter().collect(), limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.jobs(&filter)?;
            if list.json {
                return output.json(&rows);
            }
            jobs_table(&rows, output)?;
            if rows.iter().any(|row| matches!(row.state, schedule::JobState::Dead | schedule::JobState::Held))
            {
                output.print_error(JOB_HINT);
            }
            Ok(())
        }
        JobsCommand::Show { show, reveal, id } => {
            let id: Id = id.parse().map_err(|error| Failure::new(Exit::Usage, format!("{error}")))?;
            let detail = show.store.reader()?.job_detail(id)?;
            let secrets =
                reveal.secrets(&show.store, &format!("job {id}"), std::slice::from_ref(&detail.job))?;
            if show.json {
                return output.json(&WithSecrets { shown: &detail, secrets });
            }
            print_job(&detail, output)?;
            decrypt::print(secrets, output)
        }
        JobsCommand::Retry(arguments) => repair::jobs::retry(arguments, output),
        JobsCommand::Drop(arguments) => repair::jobs::drop_job(arguments, output),
        JobsCommand::Complete(arguments) => repair::jobs::complete_job(arguments, output),
    }
}

pub(super) fn jobs_table(rows: &[JobRow], output: &mut Output) -> Done {
    let cells = |row: &JobRow| {
        vec![
            row.id.to_string(),
            row.action.to_string(),
            row.state.as_str().to_owned(),
            row.attempts.to_string(),
            row.created_at.to_string(),
            // Queued jobs show their next attempt, other jobs their end.
            if row.state == schedule::JobState::Queued { row.due_at.to_string() } else { time(row.ended_at) },
            text(row.note.as_deref()),
        ]
    };
    let header = ["JOB", "ACTION", "STATE", "ATTEMPTS", "CREATED", "DUE/ENDED", "NOTE"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn print_job(detail: &JobDetail, output: &mut Output) -> Done {
    jobs_table(std::slice::from_ref(&detail.job), output)?;
    output.line(&format!("trace {}", detail.trace_id))?;
    for attempt in &detail.failed_attempts {
        let line = format!(
            "attempt {} ended {} ({}): {}",
            attempt.attempt, attempt.ended_at, attempt.ending, attempt.note
        );
        output.line(&shown(&line))?;
    }
    Ok(())
}
