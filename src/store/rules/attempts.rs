//! Attempts: looked-up order details are kept, and the end of an attempt becomes the state of its job.

use std::sync::Arc;

use jiff::Timestamp;

use super::answers::answer_of;
use super::leases::running_attempt;
use super::names::name_instance;
use super::queue::{callback_of, end, is_followed, part_for, settle_queue_after};
use super::{AttemptEnd, EndedAttempt, Finish, HELD, KnownAnswer, Retrying, Schedules};
use crate::store::StoreError;
use crate::store::rows::{AttemptRow, JobRow, Read, Result, Unreadable};
use crate::store::work::Work;
use spid_core::lifecycle::Reason;
use spid_core::lifecycle::schedule::{Extra, JobState, Next, Progress, Schedule};
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::Instance;

/// Returns the retry schedule of this job by the rows as they are now.
pub(super) fn schedule_of(rows: &dyn Read, job: &JobRow, schedules: &Schedules) -> Result<Schedule> {
    // Only a chosen schedule needs these rows, so do not read them for the usual one.
    if schedules.chosen.is_none() {
        return Ok(schedules.usual.clone());
    }
    let (origin, callback) = callback_of(rows, job)?;
    let instance = rows.instance_of(job.instance)?;
    Ok(schedules.of(&Retrying {
        endpoint: &origin.endpoint,
        account: &origin.account,
        callback: &callback,
        instance: instance.as_ref().map(|row| &row.instance),
    }))
}

pub(super) fn note_attempt(rows: &mut Work<'_>, job: &JobRow, ending: &str, note: &str, now: Timestamp) {
    rows.add_attempt(AttemptRow {
        job: job.number,
        attempt: job.attempts,
        ended_at: now,
        ending: ending.to_owned(),
        note: note.to_owned(),
    });
}

pub(super) fn follow(job: &mut JobRow, next: Next, note: String, now: Timestamp) {
    job.lease_until = None;
    job.attempted_at = Some(now);
    job.note = Some(note);
    match next {
        Next::Wait { due_at, progress } => {
            job.state = JobState::Queued;
            job.due_at = due_at;
            job.step = progress.step;
            job.extra = progress.extra;
        }
        Next::Dead => {
            job.state = JobState::Dead;
            job.extra = Extra::No;
        }
    }
}

/// Keeps the order details of a job's callback that an attempt has looked up. A create also describes its instance.
///
/// `None`: the attempt has lost its lease, and nothing was changed.
pub(crate) fn add_order_details(
    rows: &mut Work<'_>,
    (number, attempt): (i64, u32),
    callback: &Callback,
    now: Timestamp,
) -> Result<Option<Instance>> {
    let Some(job) = running_attempt(rows, number, attempt)? else { return Ok(None) };
    let instance = rows.instance_of(job.instance)?;
    let mut row = instance.ok_or(StoreError::Inconsistent("a job's instance is missing"))?;
    let (_, whole) =
        rows.callback(job.callback)?.ok_or(StoreError::Inconsistent("a job's callback is missing"))?;
    rows.put_body(job.callback, Arc::new(whole.with_part(callback)));
    if job.action == Action::Create {
        row.instance.describe(callback);
        row.instance.updated_at = now;
        rows.put_instance(&row);
    }
    Ok(Some(row.instance))
}

/// Records the end of an attempt. `reported` are the callbacks whose waiters receive the outcome with this commit.
///
/// If a row that this needs cannot be read, the job is held with its answer, because the hook has done its work.
/// `None`: the attempt has lost its lease, and nothing was changed.
pub(crate) fn finish(rows: &mut Work<'_>, finish: &Finish, reported: &[i64]) -> Result<Option<EndedAttempt>> {
    match end_attempt(rows, finish, reported) {
        Err(StoreError::Unreadable(unreadable)) => hold_ended(rows, finish, &unreadable).map(Some),
        ended => ended,
    }
}

/// Holds the job of an attempt whose end needs a row that cannot be read.
fn hold_ended(rows: &mut Work<'_>, finish: &Finish, unreadable: &Unreadable) -> Result<EndedAttempt> {
    let note = match &finish.end {
        AttemptEnd::Done(_) => {
            format!("the hook has succeeded, but {unreadable}; repair the row, then retry the job")
        }
        _ => format!("{unreadable}; repair the row, then retry the job"),
    };
    match rows.job(finish.job) {
        Ok(Some(mut job)) => {
            if matches!(finish.end, AttemptEnd::Done(_)) {
                (job.answer, job.sealed) = (finish.open.clone(), finish.sealed.clone());
            }
            job.attempted_at = Some(finish.now);
            job.state = JobState::Held;
            job.lease_until = None;
            job.note = Some(note.clone());
            rows.put_job(&job)?;
        }
        Ok(None) | Err(StoreError::Unreadable(_)) => rows.hold_unreadable(finish.job, &note),
        Err(error) => return Err(error),
    }
    let answer = KnownAnswer::Held(HELD.to_owned());
    Ok(EndedAttempt { state: JobState::Held, answer, note: Some(note), wakes: false })
}

fn end_attempt(rows: &mut Work<'_>, finish: &Finish, reported: &[i64]) -> Result<Option<EndedAttempt>> {
    // The lease was lost. Keep only the id that the hook chose.
    let Some(mut job) = running_attempt(rows, finish.job, finish.attempt)? else {
        remember_id(rows, finish)?;
        return Ok(None);
    };
    job.attempted_at = Some(finish.now);
    let answer = match &finish.end {
        AttemptEnd::Done(given) => {
            (job.answer, job.sealed) = (finish.open.clone(), finish.sealed.clone());
            complete(rows, &mut job, finish.callback.as_deref(), given.instance_id.as_deref(), finish.now)?
        }
        // The browser has gone. The next sign-on is a new request.
        AttemptEnd::Retry { error: note, .. } | AttemptEnd::Pending { note }
            if job.action == Action::SignOn =>
        {
            job.note = Some(note.clone());
            end(&mut job, JobState::Dropped, finish.now);
            KnownAnswer::NotYet
        }
        AttemptEnd::Retry { error, after } => {
            note_attempt(rows, &job, "retry", error, finish.now);
            let progress = Progress { step: job.step, extra: job.extra };
            let schedule = schedule_of(rows, &job, &finish.schedules)?;
            let after_ms = after.map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
            let next = schedule.failed(job.id, progress, after_ms, finish.now);
            follow(&mut job, next, error.clone(), finish.now);
            KnownAnswer::NotYet
        }
        AttemptEnd::Refused { reason } => {
            job.note = Some(reason.clone());
            end(&mut job, JobState::Refused, finish.now);
            KnownAnswer::Refused(Reason::HOOK, reason.clone())
        }
        AttemptEnd::Pending { note } => {
            job.note = Some(note.clone());
            job.state = JobState::Pending;
            job.lease_until = None;
            KnownAnswer::NotYet
        }
        // Our own stop, not a failure of the hook: no retry is spent.
        AttemptEnd::GivenBack => {
            job.state = JobState::Queued;
            job.lease_until = None;
            job.due_at = finish.now;
            KnownAnswer::NotYet
        }
    };
    // Queued jobs of the instance may be canceled by this end. Do it before the job is written.
    settle_queue_after(rows, &mut job, finish.now)?;
    rows.put_job(&job)?;
    // In the commit that makes the result true, record it as reported to the callers that still wait.
    if matches!(answer, KnownAnswer::Applied(_)) {
        for number in reported {
            rows.put_reported(*number, finish.now)?;
        }
    }
    let wakes = job.state == JobState::Queued || is_followed(rows, &job)?;
    Ok(Some(EndedAttempt { state: job.state, answer, note: job.note, wakes }))
}

/// Keeps the id of a late answer. The answer is not used, but a later attempt must not give the instance another id.
fn remember_id(rows: &mut Work<'_>, finish: &Finish) -> Result<()> {
    let AttemptEnd::Done(answer) = &finish.end else { return Ok(()) };
    match rows.job(finish.job)? {
        Some(mut job) if job.action == Action::Create && job.state.is_live() && job.proposed_id.is_none() => {
            let instance = rows.instance_of(job.instance)?;
            let default = instance.and_then(|row| row.marketplace_instance_id.or(row.instance.order_biz_id));
            job.proposed_id = answer.instance_id.clone().or(default);
            rows.put_job(&job)
        }
        _ => Ok(()),
    }
}

/// Applies the result of the hook to the instance. A create with an unusable id is held instead.
///
/// `asked` is the job's callback, if the caller has it in memory.
pub(crate) fn complete(
    rows: &mut Work<'_>,
    job: &mut JobRow,
    asked: Option<&Callback>,
    id: Option<&str>,
    now: Timestamp,
) -> Result<KnownAnswer> {
    let instance = rows.instance_of(job.instance)?;
    // A job outside the instance's queue, for example a sign-on, changes no instance.
    let (Some(mut row), true) = (instance.clone(), job.ordered) else {
        end(job, JobState::Done, now);
        return Ok(KnownAnswer::Applied(Box::new(answer_of(job, instance.as_ref(), None))));
    };
    if job.action == Action::Create {
        if let Some(trouble) = name_instance(rows, job, &mut row, id)? {
            job.state = JobState::Held;
            job.lease_until = None;
            job.note = Some(trouble);
            return Ok(KnownAnswer::Held(HELD.to_owned()));
        }
        row.created_by = Some(job.number);
    }
    match asked {
        Some(callback) => row.instance.apply(callback, now),
        None => {
            let (_, callback) = callback_of(rows, job)?;
            row.instance.apply(&part_for(job, Arc::new(callback)), now);
        }
    }
    rows.put_instance(&row);
    end(job, JobState::Done, now);
    job.note = None;
    Ok(KnownAnswer::Applied(Box::new(answer_of(job, Some(&row), None))))
}
