//! Jobs of the market client: owed calls of marketplaces' APIs.
//!
//! A recurring job is one row that goes back to waiting, so that only changes make history. Any other job ends.

use std::time::Duration;

use jiff::Timestamp;

use crate::observe::limits;
use crate::store::rows::{DueMarketJobs, MarketJob, MarketJobKind, MarketJobs, Numbered, Read as _, Result};
use crate::store::work::Work;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::id::Id;
use spid_hook::time::plus_millis;

/// A job of the market client to keep, unless a live one has its kind, market and subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedCall {
    /// Id of the job, if it is added.
    pub id: Id,
    /// Kind of the job.
    pub kind: MarketJobKind,
    /// Name of the market.
    pub market: String,
    /// Subject of the call, within its market and kind.
    pub about: String,
    /// Reason why a person must decide about the call before it is made.
    pub held: Option<String>,
}

/// End of an attempt at a job of the market client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallEnd {
    /// Done. A recurring job comes back after this time.
    Done {
        /// Wait before a recurring job is due again.
        again: Duration,
        /// Text for people about the result.
        note: Option<String>,
    },
    /// The attempt failed. The job is tried again, after this wait if the marketplace named one.
    Retry {
        /// Text of the error.
        error: String,
        /// Wait before the next attempt.
        after: Option<Duration>,
    },
    /// The marketplace will never do it. A recurring job is tried again after its longest wait.
    Refused {
        /// Text of the error.
        error: String,
    },
    /// The attempt never began, or a stop of the daemon cut it short.
    GivenBack,
}

/// Adds the owed calls that no live job is for.
pub(crate) fn owe(work: &mut Work<'_>, calls: &[OwedCall], now: Timestamp) -> Result<()> {
    for call in calls {
        if !work.market_jobs(MarketJobs::Live(call.kind, &call.market, &call.about))?.is_empty() {
            continue;
        }
        let number = work.take_number(Numbered::Job)?;
        work.add_market_job(MarketJob {
            number,
            id: call.id,
            kind: call.kind,
            market: call.market.clone(),
            about: call.about.clone(),
            state: if call.held.is_some() { JobState::Held } else { JobState::Queued },
            attempts: 0,
            step: 0,
            due_at: now,
            lease_until: None,
            attempted_at: None,
            note: call.held.clone(),
            created_at: now,
            ended_at: None,
        });
    }
    Ok(())
}

/// Keeps exactly these recurring jobs: adds those that are missing, and drops those that are not configured any more.
///
/// At a start, all jobs that were running return to the queue: their daemon has ended.
pub(crate) fn configure(
    work: &mut Work<'_>,
    recurring: &[OwedCall],
    is_start: bool,
    now: Timestamp,
) -> Result<()> {
    for mut job in work.market_jobs(MarketJobs::AllLive)? {
        let mut wanted = recurring.iter().filter(|call| call.kind == job.kind);
        let is_wanted = wanted.any(|call| call.market == job.market && call.about == job.about);
        if job.kind.is_recurring() && !is_wanted {
            job.note = Some("no longer configured".to_owned());
            end(&mut job, JobState::Dropped, now);
        } else if is_start && job.state == JobState::Running {
            job.note = Some("the daemon stopped during the last attempt".to_owned());
            wait(&mut job, now);
        } else {
            continue;
        }
        work.put_market_job(job);
    }
    owe(work, recurring, now)
}

/// Leases due jobs, and counts an attempt on each.
///
/// Running jobs whose lease has ended return to the queue first.
pub(crate) fn lease(work: &mut Work<'_>, due: DueMarketJobs<'_>) -> Result<Vec<MarketJob>> {
    let now = due.now;
    for mut job in work.market_jobs(MarketJobs::Running)? {
        if job.lease_until.is_none_or(|until| until < now) {
            job.note = Some("the last attempt was lost: its lease ran out".to_owned());
            wait(&mut job, now);
            work.put_market_job(job);
        }
    }
    let mut leased = work.market_jobs(MarketJobs::Due(due))?;
    for job in &mut leased {
        job.state = JobState::Running;
        job.attempts += 1;
        job.lease_until = Some(plus_millis(now, limits::MARKET_LEASE_MS));
        work.put_market_job(job.clone());
    }
    Ok(leased)
}

/// Records the end of an attempt, and adds the calls that it has found to be owed, in the same commit.
///
/// `None`: the attempt has lost its lease, and nothing was changed.
pub(crate) fn finish(
    work: &mut Work<'_>,
    (number, attempt): (i64, u32),
    attempt_end: &CallEnd,
    found: &[OwedCall],
    now: Timestamp,
) -> Result<Option<MarketJob>> {
    let running = work.market_jobs(MarketJobs::Number(number))?.pop();
    let Some(mut job) = running.filter(|job| job.state == JobState::Running && job.attempts == attempt)
    else {
        return Ok(None);
    };
    job.attempted_at = Some(now);
    match attempt_end {
        CallEnd::Done { again, note } => {
            job.note = note.clone();
            job.step = 0;
            if job.kind.is_recurring() {
                wait(&mut job, plus_millis(now, millis(*again)));
            } else {
                end(&mut job, JobState::Done, now);
            }
        }
        CallEnd::Retry { error, after } => {
            job.note = Some(error.clone());
            let waits = limits::MARKET_JOB_WAITS_MS;
            let step = usize::try_from(job.step).unwrap_or(usize::MAX);
            let pause = after.map(millis).or_else(|| waits.get(step).copied());
            job.step = job.step.saturating_add(1);
            match pause.or(waits.last().copied().filter(|_| job.kind.is_recurring())) {
                Some(pause) => wait(&mut job, plus_millis(now, pause)),
                None => (job.state, job.lease_until) = (JobState::Dead, None),
            }
        }
        CallEnd::Refused { error } => {
            job.note = Some(error.clone());
            if job.kind.is_recurring() {
                let pause = limits::MARKET_JOB_WAITS_MS.last().copied().unwrap_or_default();
                job.step = job.step.saturating_add(1);
                wait(&mut job, plus_millis(now, pause));
            } else {
                (job.state, job.lease_until) = (JobState::Dead, None);
            }
        }
        CallEnd::GivenBack => wait(&mut job, now),
    }
    work.put_market_job(job.clone());
    owe(work, found, now)?;
    Ok(Some(job))
}

fn wait(job: &mut MarketJob, due_at: Timestamp) {
    job.state = JobState::Queued;
    job.lease_until = None;
    job.due_at = due_at;
}

fn end(job: &mut MarketJob, state: JobState, now: Timestamp) {
    job.state = state;
    job.lease_until = None;
    job.ended_at = Some(now);
}

fn millis(wait: Duration) -> i64 {
    i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
}
