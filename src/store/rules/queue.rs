//! The instance's queue: the end of a job, and its effects on the other jobs.

use std::sync::Arc;

use jiff::Timestamp;

use crate::store::StoreError;
use crate::store::rows::{CallbackRow, JobRow, Read, Result, Unreadable};
use crate::store::work::Work;
use spid_core::lifecycle;
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::RequestedValues;

pub(super) fn cancel(rows: &mut Work<'_>, number: i64, by: Action, now: Timestamp) -> Result<()> {
    if let Some(mut job) = rows.job(number)? {
        // The job may be a part that was canceled together with an earlier part.
        if !job.state.is_live() {
            return Ok(());
        }
        job.note = Some(format!("superseded by a later {by}"));
        end(&mut job, JobState::Cancelled, now);
        rows.put_job(&job)?;
        end_later_parts(rows, &job, now)?;
    }
    Ok(())
}

/// Start of the note of a job that was cancelled because an earlier part of its request was not carried out.
pub(crate) const LATER_PART: &str = "another part of its request,";

/// Cancels the later parts of a request after one part has ended without being carried out.
///
/// A request of several parts is done when all of them are done. The callback now gets the job of the part that was not
/// carried out, so that this job decides about a redelivery.
fn end_later_parts(rows: &mut Work<'_>, job: &JobRow, now: Timestamp) -> Result<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    let mut has_ended_any = false;
    // Jobs of one request have increasing numbers in the order of its parts.
    for mut part in rows.queue_jobs(instance)? {
        if part.callback == job.callback && part.action != job.action && part.number > job.number {
            part.note = Some(format!("{LATER_PART} the {}, was not done", job.action));
            end(&mut part, JobState::Cancelled, now);
            rows.put_job(&part)?;
            has_ended_any = true;
        }
    }
    if has_ended_any && let Some(mut row) = rows.callback_row(job.callback)? {
        row.job = Some(job.number);
        rows.put_callback(&row);
    }
    Ok(())
}

pub(crate) fn end(job: &mut JobRow, state: JobState, now: Timestamp) {
    job.state = state;
    job.lease_until = None;
    job.ended_at = Some(now);
}

/// Returns the part of the callback that this job is for. The hook receives only that part.
pub(super) fn part_for(job: &JobRow, callback: Arc<Callback>) -> Arc<Callback> {
    if job.action == callback.action && callback.also.is_empty() {
        return callback;
    }
    Arc::new(callback.part(job.action))
}

/// Returns the first job of the same request that has not ended. It must end before this job can begin.
pub(super) fn first_part(rows: &dyn Read, job: &JobRow) -> Result<JobRow> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(job.clone()) };
    let mut parts = rows.queue_jobs(instance)?.into_iter();
    Ok(parts.find(|part| part.callback == job.callback).unwrap_or_else(|| job.clone()))
}

pub(super) fn bring_forward(rows: &mut Work<'_>, mut job: JobRow, now: Timestamp) -> Result<bool> {
    let due = schedule::forward_due(job.attempted_at, now);
    // A job without an attempt is due at once. A later due time comes from a postponement, or from a clock set back.
    let is_untried = job.state == JobState::Queued && job.attempts == 0;
    if is_untried && job.due_at > now {
        job.due_at = now;
        rows.put_job(&job)?;
        return Ok(true);
    }
    if is_untried || job.state == JobState::Queued && job.due_at <= due {
        return Ok(false);
    }
    // The attempt is unscheduled. A job that was dead stays marked, so that another failure makes it dead again.
    job.extra = match job.state {
        JobState::Dead => Extra::Dead,
        _ if job.extra == Extra::Dead => Extra::Dead,
        _ => Extra::Waiting,
    };
    job.state = JobState::Queued;
    job.due_at = due;
    rows.put_job(&job)?;
    Ok(true)
}

/// Returns the callback of a job.
pub(super) fn callback_of(rows: &dyn Read, job: &JobRow) -> Result<(CallbackRow, Callback)> {
    rows.callback(job.callback)?.ok_or_else(|| {
        StoreError::Unreadable(Box::new(Unreadable {
            table: "job",
            row: job.number.to_string(),
            fault: format!("`callback` is {}, but that row is missing", job.callback),
            newer: false,
        }))
    })
}

/// Returns the values that a job sets. `None`: its callback cannot be read.
fn wants_of(rows: &dyn Read, job: &JobRow) -> Result<Option<RequestedValues>> {
    match callback_of(rows, job) {
        Ok((_, callback)) => Ok(Some(RequestedValues::of(&callback))),
        Err(StoreError::Unreadable(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_followed(rows: &dyn Read, job: &JobRow) -> Result<bool> {
    match job.instance.filter(|_| job.ordered) {
        Some(instance) => rows.has_queue(instance),
        None => Ok(false),
    }
}

/// Applies the end of a job to the rest of the instance's queue.
///
/// * If a release is queued, the job is canceled and not tried again.
/// * A dead job is canceled if a later job supersedes it.
/// * If a create ends undone, every other job except a release is canceled.
pub(crate) fn settle_queue_after(rows: &mut Work<'_>, job: &mut JobRow, now: Timestamp) -> Result<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    if job.state == JobState::Done || job.state == JobState::Running {
        return Ok(());
    }
    let queue = rows.queue_jobs(instance)?;
    let releasing = queue.iter().any(|other| other.action == Action::Release && other.number != job.number);
    let mut behind = queue.iter().filter(|other| other.number > job.number);
    let wanted = match job.state {
        JobState::Dead => wants_of(rows, job)?,
        _ => None,
    };
    let superseded = wanted.is_some_and(|wanted| {
        behind.any(|other| lifecycle::supersedes(other.action, job.action, &wanted, now))
    });
    if releasing && job.state.is_live() {
        job.note = Some("superseded by a later release".to_owned());
        end(job, JobState::Cancelled, now);
    } else if superseded && job.state == JobState::Dead {
        job.note = Some("dead, and superseded by a later job".to_owned());
        end(job, JobState::Cancelled, now);
    }
    if !job.state.is_live() {
        end_later_parts(rows, job, now)?;
    }
    // Without the instance the other jobs have nothing to work on.
    if job.action == Action::Create && !job.state.is_live() {
        for other in rows.queue_jobs(instance)? {
            if other.number != job.number && other.action != Action::Release {
                cancel_behind(rows, other, now)?;
            }
        }
    }
    Ok(())
}

fn cancel_behind(rows: &mut Work<'_>, mut job: JobRow, now: Timestamp) -> Result<()> {
    job.note = Some("its instance was not created".to_owned());
    end(&mut job, JobState::Cancelled, now);
    rows.put_job(&job)
}
