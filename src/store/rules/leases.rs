//! Leases: due jobs are leased, leases are extended, and jobs with lost leases return to the queue.

use std::sync::Arc;

use jiff::Timestamp;

use super::attempts::{follow, note_attempt, schedule_of};
use super::queue::{callback_of, end, part_for, settle_queue_after};
use super::{LeasedJob, Postpone, Retrying, Schedules};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::LeasedJobs;
use crate::store::StoreError;
use crate::store::rows::{InstanceRow, JobRow, Read, ReadableJob, Result, Unreadable};
use crate::store::work::Work;
use spid_core::lifecycle::schedule::{JobState, Progress};
use spid_hook::callback::Action;
use spid_hook::time::plus_millis;

/// Ends the leases that have run out, and returns these jobs to the queue.
///
/// The (job, attempt) pairs in `in_flight` are left out, because the caller still runs them. Their lease can only have
/// ended because the clock jumped or the disk was full.
pub(crate) fn end_leases(
    rows: &mut Work<'_>,
    in_flight: &[(i64, u32)],
    schedules: &Schedules,
    now: Timestamp,
) -> Result<Recovered> {
    recover(rows, schedules, now, Some(now), |job| !in_flight.contains(&(job.number, job.attempts)))
}

/// Leases up to `limit` due jobs, each the first in its instance's queue, and counts an attempt on each.
///
/// Jobs for which `postpone` returns a time are postponed by it.
pub(crate) fn lease_due(
    rows: &mut Work<'_>,
    limit: usize,
    postpone: Option<&Postpone>,
    lease_until: Timestamp,
    now: Timestamp,
) -> Result<LeasedJobs> {
    let mut leased = LeasedJobs::default();
    // The second condition bounds the transaction if many jobs are postponed or unreadable.
    while leased.taken.len() < limit
        && leased.postponed + leased.unreadable.len() < limits::JOBS_POSTPONED_MAX_COUNT
    {
        let due = rows.due(now, limit - leased.taken.len())?;
        if due.is_empty() {
            break;
        }
        // Jobs that are leased, postponed or held are not due any more, so the loop makes progress.
        for job in due {
            let (number, job) = numbered(job);
            match job.and_then(|job| lease_one(rows, job, postpone, lease_until, now)) {
                Ok(Some(job)) => leased.taken.push(job),
                Ok(None) => leased.postponed += 1,
                // An unreadable row must not stop the other jobs.
                Err(StoreError::Unreadable(unreadable)) => {
                    leased.unreadable.push(set_aside(rows, number, *unreadable, now)?);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(leased)
}

/// A job that was not leased because its row, its callback's row or its instance's row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableJob {
    /// Number of the job.
    pub job: i64,
    /// The row. If a newer spid may have written it, the job is left as it is. Otherwise the job is held.
    pub unreadable: Unreadable,
}

impl UnreadableJob {
    /// Logs the job. Counts an alert if an operator must look at it.
    pub(crate) fn log(&self, metrics: &Metrics) {
        let UnreadableJob { job, unreadable } = self;
        if unreadable.newer {
            tracing::error!(number = job, "skipped: {unreadable}; a newer spid may have written it");
        } else {
            metrics.count(Metric::Alerts, ["held", ""]);
            tracing::error!(number = job, "held: {unreadable}");
        }
    }
}

/// Result of a recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Number of jobs that were returned to the queue.
    pub(crate) count: usize,
    /// Jobs that cannot be read.
    pub(crate) unreadable: Vec<UnreadableJob>,
}

fn numbered(job: ReadableJob) -> (i64, Result<JobRow>) {
    match job {
        Ok(job) => (job.number, Ok(job)),
        Err((number, unreadable)) => (number, Err(StoreError::Unreadable(unreadable))),
    }
}

/// Holds a job that cannot be read. A job of a newer spid is postponed instead, and read again later.
fn set_aside(rows: &mut Work<'_>, job: i64, unreadable: Unreadable, now: Timestamp) -> Result<UnreadableJob> {
    if unreadable.newer {
        rows.postpone(job, plus_millis(now, limits::NEWER_PAUSE_MS));
    } else {
        rows.hold_unreadable(job, &format!("{unreadable}; repair the row, then retry the job"));
    }
    Ok(UnreadableJob { job, unreadable })
}

/// Leases one job. `None`: the job was postponed.
fn lease_one(
    rows: &mut Work<'_>,
    mut job: JobRow,
    postpone: Option<&Postpone>,
    lease_until: Timestamp,
    now: Timestamp,
) -> Result<Option<LeasedJob>> {
    let (origin, callback) = callback_of(rows, &job)?;
    let mut instance = rows.instance_of(job.instance)?;
    let retrying = Retrying {
        endpoint: &origin.endpoint,
        account: &origin.account,
        callback: &callback,
        instance: instance.as_ref().map(|row| &row.instance),
    };
    if let Some(pause) = postpone.and_then(|postpone| postpone(&retrying)) {
        let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        // At least 1 ms, so that the job is not due in this transaction.
        job.due_at = plus_millis(now, pause.max(1));
        rows.put_job(&job)?;
        return Ok(None);
    }
    job.state = JobState::Running;
    job.attempts += 1;
    job.lease_until = Some(lease_until);
    rows.put_job(&job)?;
    note_began(rows, &job, instance.as_mut());
    let callback = part_for(&job, Arc::new(callback));
    Ok(Some(LeasedJob { job, callback, origin, instance: instance.map(|row| row.instance) }))
}

/// Marks the instance at its first create attempt. From then on the ISV's side may hold something for it.
fn note_began(rows: &mut Work<'_>, job: &JobRow, instance: Option<&mut InstanceRow>) {
    if let Some(row) = instance.filter(|row| job.action == Action::Create && !row.instance.began) {
        row.instance.began = true;
        rows.put_instance(row);
    }
}

/// Returns running jobs to the queue: those whose lease ended before an instant, or all of them.
///
/// Of these jobs only those are returned for which `lost` is true.
pub(crate) fn recover(
    rows: &mut Work<'_>,
    schedules: &Schedules,
    now: Timestamp,
    ended_before: Option<Timestamp>,
    lost: impl Fn(&JobRow) -> bool,
) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    for job in rows.running(ended_before)? {
        let (number, job) = numbered(job);
        match job {
            Ok(job) if !lost(&job) => continue,
            job => match job.and_then(|job| give_back(rows, schedules, job, now)) {
                Ok(()) => recovered.count += 1,
                Err(StoreError::Unreadable(unreadable)) => {
                    recovered.unreadable.push(set_aside(rows, number, *unreadable, now)?);
                }
                Err(error) => return Err(error),
            },
        }
    }
    Ok(recovered)
}

fn give_back(rows: &mut Work<'_>, schedules: &Schedules, mut job: JobRow, now: Timestamp) -> Result<()> {
    note_attempt(rows, &job, "lost", "the daemon stopped, or the lease ran out", now);
    // The browser that waited has gone, so a sign-on is not tried again.
    if job.action == Action::SignOn {
        job.note = Some("the daemon stopped while the browser waited".to_owned());
        end(&mut job, JobState::Dropped, now);
    } else {
        // A lost attempt spends a retry. So a hook that kills the daemon each time ends dead, and not in a loop.
        let progress = Progress { step: job.step, extra: job.extra };
        let next = schedule_of(rows, &job, schedules)?.lost(progress, now);
        let note = "the last attempt was lost: the daemon stopped, or the lease ran out";
        follow(&mut job, next, note.to_owned(), now);
    }
    settle_queue_after(rows, &mut job, now)?;
    rows.put_job(&job)
}

/// Extends the leases of these attempts. Attempts that are no longer the job's last one are skipped.
pub(crate) fn extend(rows: &mut Work<'_>, in_flight: &[(i64, u32)], until: Timestamp) -> Result<()> {
    for (number, attempt) in in_flight {
        match running_attempt(rows, *number, *attempt) {
            Ok(Some(mut job)) => {
                job.lease_until = Some(until);
                rows.put_job(&job)?;
            }
            // An unreadable row must not cost the other jobs their leases.
            Ok(None) | Err(StoreError::Unreadable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// Fence: only the last attempt of a running job may change it. A late end of an earlier attempt has no effect.
pub(super) fn running_attempt(rows: &dyn Read, number: i64, attempt: u32) -> Result<Option<JobRow>> {
    let job = rows.job(number)?;
    Ok(job.filter(|job| job.state == JobState::Running && job.attempts == attempt))
}
