//! Forgetting what is old and done, without forgetting what a decision hangs on.
//!
//! A request carries no time, so a replayed one is told from a new one by what is kept of it: that it was
//! told, and what stood then. A first occurrence is always believed. So the row of an occurrence stays for as long as
//! the database does; what goes is what it said, the attempts at it, and jobs whose answers were empty. Rows
//! go altogether only where no decision looks at them again: sign-ons, whose date is past every window;
//! questions, which are answered from the instance, unless it took a person to let them; and what was refused
//! without ever having a job.
//!
//! Never touched: instances and their names, orders, payments' request ids, what a create or a question of the
//! buyer's was answered, everything that is open, held, dead, rejected or untold.
//!
//! A hook is never run from what was forgotten: only a callback that was told is emptied, and a callback that
//! was told gets no job any more.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::StoreError;
use super::ledger::REJECTED;
use super::operations::{Act, MendError, Mended, Mender, impossible};
use super::rows::{Backend, CallbackRow, Disposition, JobRow, Read, Write};
use super::sqlite::Sqlite;
use crate::core::lifecycle::schedule;
use crate::hook::callback::{Action, Callback};
use crate::hook::clock::plus_millis;
use crate::observe::limits;

/// What is to be forgotten.
#[derive(Debug, Clone, Copy)]
pub struct PruneOptions {
    /// What has not been touched for longer than this, in milliseconds.
    pub older_than_ms: i64,
    /// Also the sealed parts of answers that were told before then.
    pub secrets: bool,
    /// Only count.
    pub dry_run: bool,
    /// Write the file anew at the end: room goes back to the disk, and no trace is left.
    pub rewrite: bool,
}

/// What was forgotten, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Callbacks of which only the occurrence is left.
    pub callbacks_emptied: u64,
    /// Callbacks that are gone.
    pub callbacks_removed: u64,
    /// Jobs that are gone.
    pub jobs_removed: u64,
    /// Attempts that are gone.
    pub attempts_removed: u64,
    /// Sealed parts of answers that are gone.
    pub secrets_removed: u64,
    /// The size of the database before, in bytes.
    pub bytes_before: u64,
    /// The size of the database now, in bytes.
    pub bytes_after: u64,
    /// How much of it lies unused now, and will be filled before it grows, in bytes.
    pub bytes_unused: u64,
    /// Whether the file was written anew and the write-ahead log emptied, so that nothing of what went is left
    /// in either.
    pub traceless: bool,
}

/// What becomes of a job that has ended, with the callback it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FateOfJob {
    /// All of it stays.
    Stays,
    /// Its attempts go.
    Trimmed,
    /// It goes.
    Goes,
    /// It goes with its callback.
    BothGo,
}

/// What becomes of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FateOfCallback {
    Stays,
    Emptied,
    Goes,
}

/// Where the rules draw their line.
#[derive(Debug, Clone, Copy)]
struct Line {
    before: Timestamp,
    now: Timestamp,
    options: PruneOptions,
}

impl Line {
    /// Whether nobody has come with it since, or was told of it.
    fn is_old(&self, row: &CallbackRow) -> bool {
        row.last_received_at < self.before
            && row.told_at.is_none_or(|told| told < self.before)
            && row.disposition != Disposition::Held
            && row.reason_code.as_deref() != Some(REJECTED)
    }

    fn has_ended(&self, job: &JobRow) -> bool {
        !job.state.is_live() && job.ended_at.is_some_and(|ended| ended < self.before)
    }

    /// `wanted`: the jobs that say what an untold callback is to be told.
    fn of_job(&self, job: &JobRow, row: &CallbackRow, wanted: &HashSet<i64>) -> FateOfJob {
        if !self.has_ended(job) || !self.is_old(row) {
            return FateOfJob::Stays;
        }
        let is_latest = row.job == Some(job.number);
        let is_done = job.state == schedule::JobState::Done;
        // Whatever became of it: its date is past every window.
        if job.action == Action::SignOn && !(is_done && row.told_at.is_none()) {
            return if is_latest { FateOfJob::BothGo } else { FateOfJob::Goes };
        }
        if row.told_at.is_none() {
            return FateOfJob::Stays;
        }
        let is_empty = job.answer.is_none() && job.sealed.is_none();
        let goes = match job.action {
            // What these were answered is told again.
            Action::Create | Action::Other | Action::Query | Action::SignOn => false,
            _ if is_latest => is_done && is_empty,
            _ => !is_done,
        };
        if goes && !wanted.contains(&job.number) { FateOfJob::Goes } else { FateOfJob::Trimmed }
    }

    /// `job` is the callback's, if it is there.
    fn of_callback(&self, row: &CallbackRow, callback: &Callback, job: Option<&JobRow>) -> FateOfCallback {
        if !self.is_old(row) {
            return FateOfCallback::Stays;
        }
        let has_no_job = row.job.is_none();
        match (row.action, row.disposition, row.told_at) {
            // By the row of a doubtful one it is known that somebody approved it. No other is emptied.
            (Action::Query, Disposition::Recorded | Disposition::Refused, _)
                if has_no_job && callback.doubts.is_empty() && callback.pruned_at.is_none() =>
            {
                FateOfCallback::Goes
            }
            (Action::SignOn, Disposition::Refused, _) if has_no_job => FateOfCallback::Goes,
            (action, Disposition::Refused, None) if has_no_job && action.is_lifecycle() => {
                FateOfCallback::Goes
            }
            (Action::SignOn, ..) | (_, _, None) => FateOfCallback::Stays,
            _ if callback.pruned_at.is_some() => FateOfCallback::Stays,
            _ if job.is_none_or(|job| job.state == schedule::JobState::Done && self.has_ended(job)) => {
                FateOfCallback::Emptied
            }
            _ => FateOfCallback::Stays,
        }
    }

    fn prune_job(
        &self,
        rows: &mut Sqlite,
        number: i64,
        wanted: &HashSet<i64>,
        pruned: &mut Pruned,
    ) -> Mended<()> {
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

    /// It was told, and that is longer ago than anybody is told it again.
    fn may_lose_its_secrets(&self, job: &JobRow, row: &CallbackRow) -> bool {
        let is_told = row.told_at.is_some_and(|told| told < self.before);
        job.sealed.is_some() && is_told && self.has_ended(job)
    }

    fn prune_callback(&self, rows: &mut Sqlite, number: i64, pruned: &mut Pruned) -> Mended<()> {
        let Some((row, callback)) = rows.callback(number)? else { return Ok(()) };
        let job = row.job.map(|number| rows.job(number)).transpose()?.flatten();
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

impl Mender {
    /// Forgets what is old and done, in small commits beside whoever else writes. Stopped anywhere, it goes on
    /// from there when it is asked again. `seen` hears how many rows were looked at so far.
    ///
    /// # Errors
    /// When the age is too small, or the database cannot be read or written. What was forgotten till then is.
    pub fn prune(&mut self, options: PruneOptions, act: &Act, seen: &mut dyn FnMut(u64)) -> Mended<Pruned> {
        self.check_age(options)?;
        let now = self.clock.now();
        let line = Line { before: plus_millis(now, -options.older_than_ms), now, options };
        let mut pruned = Pruned { bytes_before: self.backend.sizes()?.0, ..Pruned::default() };
        self.backend.prepare_to_remove()?;
        let what = format!("what is older than {}", line.before);
        if !options.dry_run {
            self.record("prune", &format!("{what}: begun"), act)?;
        }
        self.prune_jobs(line, &mut pruned, seen)?;
        self.prune_callbacks(line, &mut pruned, seen)?;
        if !options.dry_run {
            self.record("prune", &format!("{what}: {pruned}"), act)?;
            if options.rewrite {
                self.backend.rewrite()?;
            }
            pruned.traceless = self.leave_no_journal()? && options.rewrite;
        }
        (pruned.bytes_after, pruned.bytes_unused) = self.backend.sizes()?;
        Ok(pruned)
    }

    fn check_age(&self, options: PruneOptions) -> Mended<()> {
        let days = limits::PRUNE_AGE_MIN_MS / (24 * 60 * 60 * 1000);
        if options.older_than_ms < limits::PRUNE_AGE_MIN_MS {
            return impossible(format!(
                "nothing is pruned before it is {days} days old: a marketplace may still come back for it"
            ));
        }
        if options.secrets && options.older_than_ms <= self.options.secrets_window_ms {
            return impossible("passwords are told again for longer than that: see `policy.secrets_window`");
        }
        Ok(())
    }

    fn prune_jobs(&mut self, line: Line, pruned: &mut Pruned, seen: &mut dyn FnMut(u64)) -> Mended<()> {
        let (mut after, mut count) = (0, 0);
        loop {
            let numbers = self.backend.ended_jobs(after, line.before, limits::UPKEEP_BATCH_COUNT)?;
            let Some(last) = numbers.last().copied() else { return Ok(()) };
            self.in_one_commit(|rows| {
                let wanted = rows.jobs_of_untold()?;
                numbers.iter().try_for_each(|number| readable(line.prune_job(rows, *number, &wanted, pruned)))
            })?;
            after = last;
            count += numbers.len() as u64;
            seen(count);
        }
    }

    fn prune_callbacks(&mut self, line: Line, pruned: &mut Pruned, seen: &mut dyn FnMut(u64)) -> Mended<()> {
        let (mut after, mut count) = (0, 0);
        loop {
            let numbers = self.backend.old_callbacks(after, line.before, limits::UPKEEP_BATCH_COUNT)?;
            let Some(last) = numbers.last().copied() else { return Ok(()) };
            self.in_one_commit(|rows| {
                numbers.iter().try_for_each(|number| readable(line.prune_callback(rows, *number, pruned)))
            })?;
            after = last;
            count += numbers.len() as u64;
            seen(count);
        }
    }

    /// Runs a small part of a long work in a transaction of its own, and then leaves the database to others
    /// for a moment.
    pub(super) fn in_one_commit(&mut self, work: impl FnOnce(&mut Sqlite) -> Mended<()>) -> Mended<()> {
        self.backend.begin()?;
        let begun = Instant::now();
        match work(&mut self.backend) {
            Ok(()) => self.backend.commit()?,
            Err(error) => {
                self.backend.rollback()?;
                return Err(error);
            }
        }
        stand_aside(begun.elapsed());
        Ok(())
    }

    /// Empties the write-ahead log, in which everything still stands that was written lately. `false`:
    /// somebody was reading out of it all the time.
    pub(super) fn leave_no_journal(&mut self) -> Mended<bool> {
        for _ in 0..limits::UPKEEP_JOURNAL_TRIES_COUNT {
            if self.backend.empty_journal()? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Leaves alone what cannot be read, and names it.
fn readable(pruned: Mended<()>) -> Mended<()> {
    match pruned {
        Err(MendError::Store(StoreError::Unreadable(unreadable))) => {
            tracing::error!("{unreadable}; it stays");
            Ok(())
        }
        pruned => pruned,
    }
}

/// Leaves the database to others for as long as it was kept from them, and for a moment at least.
#[expect(
    clippy::disallowed_methods,
    reason = "SQLite's lock is not handed on: who holds it has to stay away"
)]
fn stand_aside(held: Duration) {
    std::thread::sleep(pause_after(held));
}

fn pause_after(held: Duration) -> Duration {
    held.max(Duration::from_millis(limits::UPKEEP_PAUSE_MS))
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
        let least = Duration::from_millis(limits::UPKEEP_PAUSE_MS);
        assert_eq!(pause_after(Duration::ZERO), least);
        assert_eq!(pause_after(least * 40), least * 40);
    }
}
