//! Pruning: delete old, finished data, but keep everything that a decision needs.
//!
//! A request carries no time. A replayed request is recognized only by the kept row of the first one: it was reported,
//! and at which state of the instance. A first request is always believed. So the row of a callback stays for as long
//! as the database does. Its content, the attempts at it, and jobs with empty answers are deleted.
//!
//! Whole rows are deleted only if no decision reads them again:
//!
//! * sign-ons, whose date is past every window,
//! * queries, which are answered from the instance, unless an operator had to approve them,
//! * refused callbacks that never had a job.
//!
//! Pruning never touches:
//!
//! * instances and their names, orders, and request ids of payments,
//! * answers to a create or to a query of the buyer,
//! * everything that is open, held, dead, rejected or unreported.
//!
//! A hook never runs from pruned content. Only reported callbacks are emptied, and a reported callback gets no new job.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::StoreError;
use super::operations::{AuditNote, OperationDone, OperationError, Operations, impossible};
use super::rows::{Backend, CallbackRow, Disposition, JobRow, Lists as _, MarketJobs, Read};
use super::rules::REJECTED;
use super::sqlite::Sqlite;
use crate::observe::limits;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Action, Callback};
use spid_hook::time::plus_millis;

/// Options for pruning.
#[derive(Debug, Clone, Copy)]
pub struct PruneOptions {
    /// Age in milliseconds: only data without activity for longer than this is pruned.
    pub older_than_ms: i64,
    /// True to delete also the encrypted parts of answers that were reported before then.
    pub secrets: bool,
    /// True to only count, and delete nothing.
    pub dry_run: bool,
    /// True to rewrite the file at the end. It then returns unused space to the disk and holds no trace of deleted
    /// data.
    pub rewrite: bool,
}

/// Numbers of pruned rows, or of rows that a dry run would prune.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Number of callbacks whose content was deleted. Their rows are kept.
    pub callbacks_emptied: u64,
    /// Number of deleted callbacks.
    pub callbacks_removed: u64,
    /// Number of deleted jobs.
    pub jobs_removed: u64,
    /// Number of deleted attempts.
    pub attempts_removed: u64,
    /// Number of deleted encrypted parts of answers.
    pub secrets_removed: u64,
    /// Size of the database before, in bytes.
    pub bytes_before: u64,
    /// Size of the database now, in bytes.
    pub bytes_after: u64,
    /// Unused space in the database now, in bytes. It is filled before the file grows.
    pub bytes_unused: u64,
    /// True if the file was rewritten and the write-ahead log emptied, so that neither holds a trace of deleted data.
    pub traceless: bool,
}

/// Result of pruning for an ended job and its callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FateOfJob {
    /// The job is kept with its attempts.
    Stays,
    /// Only the attempts are deleted.
    Trimmed,
    /// The job is deleted with its attempts.
    Goes,
    /// The job and its callback are deleted.
    BothGo,
}

/// Result of pruning for a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FateOfCallback {
    Stays,
    Emptied,
    Goes,
}

/// The age limit of one prune, with its options.
#[derive(Debug, Clone, Copy)]
struct AgeLimit {
    before: Timestamp,
    now: Timestamp,
    options: PruneOptions,
}

impl AgeLimit {
    /// Returns true if the callback was neither delivered nor reported since the limit, and is not held or rejected.
    fn is_old(&self, row: &CallbackRow) -> bool {
        row.last_received_at < self.before
            && row.reported_at.is_none_or(|reported| reported < self.before)
            && row.disposition != Disposition::Held
            && row.reason_code.as_deref() != Some(REJECTED)
    }

    fn has_ended(&self, job: &JobRow) -> bool {
        !job.state.is_live() && job.ended_at.is_some_and(|ended| ended < self.before)
    }

    /// Returns the result for a job. `wanted` are the jobs that hold the results of unreported callbacks.
    fn of_job(&self, job: &JobRow, row: &CallbackRow, wanted: &HashSet<i64>) -> FateOfJob {
        if !self.has_ended(job) || !self.is_old(row) {
            return FateOfJob::Stays;
        }
        let is_latest = row.job == Some(job.number);
        let is_done = job.state == JobState::Done;
        // The date of a sign-on is past every window, so its outcome no longer matters.
        if job.action == Action::SignOn && !(is_done && row.reported_at.is_none()) {
            return if is_latest { FateOfJob::BothGo } else { FateOfJob::Goes };
        }
        // An unreported callback still needs its job to answer the next delivery.
        if row.reported_at.is_none() {
            return FateOfJob::Stays;
        }
        let is_empty = job.answer.is_none() && job.sealed.is_none();
        let goes = match job.action {
            // The answers to these are repeated at a redelivery.
            Action::Create | Action::Other | Action::Query | Action::SignOn => false,
            // Without its job a reported callback counts as carried out. So the latest job is deleted only if it is
            // done and has no answer to repeat.
            _ if is_latest => is_done && is_empty,
            // An earlier job that did not succeed decides nothing.
            _ => !is_done,
        };
        if goes && !wanted.contains(&job.number) { FateOfJob::Goes } else { FateOfJob::Trimmed }
    }

    /// Returns the result for a callback. `job` is its job, if that exists.
    fn of_callback(&self, row: &CallbackRow, callback: &Callback, job: Option<&JobRow>) -> FateOfCallback {
        if !self.is_old(row) {
            return FateOfCallback::Stays;
        }
        let has_no_job = row.job.is_none();
        match (row.action, row.disposition, row.reported_at) {
            // A query with validation issues needed an approval, and its row shows that, so it stays. Only such queries
            // are ever emptied, so an emptied query stays, too.
            (Action::Query, Disposition::Recorded | Disposition::Refused, _)
                if has_no_job && callback.issues.is_empty() && callback.pruned_at.is_none() =>
            {
                FateOfCallback::Goes
            }
            (Action::SignOn, Disposition::Refused, _) if has_no_job => FateOfCallback::Goes,
            // The next delivery is decided again, with the same result while clock and policy are the same.
            (action, Disposition::Refused, None) if has_no_job && action.is_lifecycle() => {
                FateOfCallback::Goes
            }
            (Action::SignOn, ..) | (_, _, None) => FateOfCallback::Stays,
            _ if callback.pruned_at.is_some() => FateOfCallback::Stays,
            _ if job.is_none_or(|job| job.state == JobState::Done && self.has_ended(job)) => {
                FateOfCallback::Emptied
            }
            _ => FateOfCallback::Stays,
        }
    }

    // Counts and deletes. A dry run counts the same rows.
    fn prune_job(
        &self,
        rows: &mut Sqlite,
        number: i64,
        wanted: &HashSet<i64>,
        pruned: &mut Pruned,
    ) -> OperationDone<()> {
        // The rows are read again in this transaction, because the daemon may have changed them since the list was
        // made.
        if !rows.market_jobs(MarketJobs::Number(number))?.is_empty() {
            pruned.jobs_removed += 1;
            return if self.options.dry_run { Ok(()) } else { Ok(rows.remove_job(number)?) };
        }
        let Some(mut job) = rows.job(number)? else { return Ok(()) };
        let Some(row) = rows.callback_row(job.callback)? else { return Ok(()) };
        if self.options.secrets && self.may_lose_its_secrets(&job, &row) {
            pruned.secrets_removed += 1;
            job.sealed = None;
            if !self.options.dry_run {
                rows.put_sealed(number, None)?;
            }
        }
        let fate = self.of_job(&job, &row, wanted);
        if fate == FateOfJob::Stays {
            return Ok(());
        }
        pruned.attempts_removed += rows.attempts(number)?.len() as u64;
        pruned.jobs_removed += u64::from(fate != FateOfJob::Trimmed);
        pruned.callbacks_removed += u64::from(fate == FateOfJob::BothGo);
        if self.options.dry_run {
            return Ok(());
        }
        rows.remove_attempts(number)?;
        if fate != FateOfJob::Trimmed {
            rows.remove_job(number)?;
        }
        if fate == FateOfJob::BothGo {
            rows.remove_callback(row.number)?;
        }
        Ok(())
    }

    /// Returns true if the answer was reported so long ago that its secrets are not repeated any more.
    fn may_lose_its_secrets(&self, job: &JobRow, row: &CallbackRow) -> bool {
        let was_reported = row.reported_at.is_some_and(|reported| reported < self.before);
        job.sealed.is_some() && was_reported && self.has_ended(job)
    }

    fn prune_callback(&self, rows: &mut Sqlite, number: i64, pruned: &mut Pruned) -> OperationDone<()> {
        let Some((row, callback)) = rows.callback(number)? else { return Ok(()) };
        let job = rows.job_of(row.job)?;
        match self.of_callback(&row, &callback, job.as_ref()) {
            FateOfCallback::Stays => {}
            FateOfCallback::Emptied => {
                pruned.callbacks_emptied += 1;
                if !self.options.dry_run {
                    rows.put_body(number, &callback.forgotten(self.now))?;
                }
            }
            FateOfCallback::Goes => {
                pruned.callbacks_removed += 1;
                if !self.options.dry_run {
                    rows.remove_callback(number)?;
                }
            }
        }
        Ok(())
    }
}

impl Operations {
    /// Prunes old, finished data, in small commits beside the other writers.
    ///
    /// If the command is stopped, the next one goes on from there. `seen` receives the number of rows examined so far.
    ///
    /// # Errors
    /// Fails if the age is too small, or the database cannot be read or written. Data pruned before the error stays
    /// deleted.
    pub fn prune(
        &mut self,
        options: PruneOptions,
        note: &AuditNote,
        seen: &mut dyn FnMut(u64),
    ) -> OperationDone<Pruned> {
        self.check_age(options)?;
        let now = self.clock.now();
        let limit = AgeLimit { before: plus_millis(now, -options.older_than_ms), now, options };
        let mut pruned = Pruned { bytes_before: self.backend.sizes()?.0, ..Pruned::default() };
        self.backend.prepare_to_remove()?;
        let what = format!("what is older than {}", limit.before);
        // The audit entry comes first, so that a prune which is stopped leaves an entry, too.
        if !options.dry_run {
            self.record("prune", &format!("{what}: begun"), note)?;
        }
        // Jobs first: a callback may be emptied when its job is gone.
        self.prune_jobs(limit, &mut pruned, seen)?;
        self.prune_callbacks(limit, &mut pruned, seen)?;
        if !options.dry_run {
            self.record("prune", &format!("{what}: {pruned}"), note)?;
            if options.rewrite {
                self.backend.rewrite()?;
            }
            pruned.traceless = self.leave_no_journal()? && options.rewrite;
        }
        (pruned.bytes_after, pruned.bytes_unused) = self.backend.sizes()?;
        Ok(pruned)
    }

    fn check_age(&self, options: PruneOptions) -> OperationDone<()> {
        let days = limits::PRUNE_AGE_MIN_MS / (24 * 60 * 60 * 1000);
        if options.older_than_ms < limits::PRUNE_AGE_MIN_MS {
            return impossible(format!(
                "the age must be at least {days} days, because a marketplace may repeat a request until then"
            ));
        }
        if options.secrets && options.older_than_ms <= self.options.secrets_window_ms {
            return impossible(
                "the age must be longer than `policy.secrets_window`, because passwords are repeated until then",
            );
        }
        Ok(())
    }

    fn prune_jobs(
        &mut self,
        limit: AgeLimit,
        pruned: &mut Pruned,
        seen: &mut dyn FnMut(u64),
    ) -> OperationDone<()> {
        let mut count = 0;
        self.in_batches(
            |rows, after, most| rows.ended_jobs(after, limit.before, most),
            |rows, numbers| {
                // Read in the same transaction: a job must not be deleted if a callback has just come to need it.
                let wanted = rows.jobs_of_unreported()?;
                for number in numbers {
                    skip_unreadable(limit.prune_job(rows, *number, &wanted, pruned))?;
                }
                count += numbers.len() as u64;
                Ok(count)
            },
            seen,
        )
    }

    fn prune_callbacks(
        &mut self,
        limit: AgeLimit,
        pruned: &mut Pruned,
        seen: &mut dyn FnMut(u64),
    ) -> OperationDone<()> {
        let mut count = 0;
        self.in_batches(
            |rows, after, most| rows.old_callbacks(after, limit.before, most),
            |rows, numbers| {
                for number in numbers {
                    skip_unreadable(limit.prune_callback(rows, *number, pruned))?;
                }
                count += numbers.len() as u64;
                Ok(count)
            },
            seen,
        )
    }

    /// Runs a long operation in batches of rows, each in its own commit.
    ///
    /// `find` returns the numbers of the rows after a number. `work` handles them, and returns the count for `seen`.
    pub(super) fn in_batches(
        &mut self,
        find: impl Fn(&Sqlite, i64, usize) -> Result<Vec<i64>, StoreError>,
        mut work: impl FnMut(&mut Sqlite, &[i64]) -> OperationDone<u64>,
        seen: &mut dyn FnMut(u64),
    ) -> OperationDone<()> {
        let mut after = 0;
        loop {
            // Go on after the last number, so that rows which stay are not read again.
            let numbers = find(&self.backend, after, limits::MAINTENANCE_BATCH_COUNT)?;
            let Some(last) = numbers.last().copied() else { return Ok(()) };
            // Small commits, so that the daemon's writer never waits long.
            let count = self.in_one_commit(|rows| work(rows, &numbers))?;
            after = last;
            seen(count);
        }
    }

    /// Runs one batch of a long operation in its own transaction. Then leaves the database to other writers for a
    /// moment.
    fn in_one_commit<T>(&mut self, work: impl FnOnce(&mut Sqlite) -> OperationDone<T>) -> OperationDone<T> {
        self.backend.begin()?;
        let begun = Instant::now();
        match work(&mut self.backend) {
            Ok(value) => {
                self.backend.commit()?;
                pause_for_others(begun.elapsed());
                Ok(value)
            }
            Err(error) => {
                self.backend.rollback()?;
                Err(error)
            }
        }
    }

    /// Empties the write-ahead log, which still holds recent writes. `false`: other processes were always reading from
    /// it.
    pub(super) fn leave_no_journal(&mut self) -> OperationDone<bool> {
        // A reader can block the checkpoint for a moment, so try more than once.
        for _ in 0..limits::MAINTENANCE_JOURNAL_ATTEMPTS_COUNT {
            if self.backend.empty_journal()? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Skips a row that cannot be read, and logs it.
fn skip_unreadable(pruned: OperationDone<()>) -> OperationDone<()> {
    match pruned {
        Err(OperationError::Store(StoreError::Unreadable(unreadable))) => {
            tracing::error!("{unreadable}; the row is not pruned");
            Ok(())
        }
        pruned => pruned,
    }
}

/// Leaves the database to other writers for as long as this process held it, and for a minimum time.
#[expect(
    clippy::disallowed_methods,
    reason = "SQLite does not queue waiters for its lock, so the holder must pause"
)]
fn pause_for_others(held: Duration) {
    std::thread::sleep(pause_after(held));
}

fn pause_after(held: Duration) -> Duration {
    held.max(Duration::from_millis(limits::MAINTENANCE_PAUSE_MS))
}

impl std::fmt::Display for Pruned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} callbacks emptied, {} removed; {} jobs, {} attempts and {} secrets removed",
            self.callbacks_emptied,
            self.callbacks_removed,
            self.jobs_removed,
            self.attempts_removed,
            self.secrets_removed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_have_the_database_half_of_the_time() {
        let least = Duration::from_millis(limits::MAINTENANCE_PAUSE_MS);
        assert_eq!(pause_after(Duration::ZERO), least);
        assert_eq!(pause_after(least * 40), least * 40);
    }
}
