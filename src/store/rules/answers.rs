//! Answers to callbacks: of a decision, of a job that ran, or one that is repeated.

use jiff::Timestamp;

use super::decision::Judged;
use super::queue::{bring_forward, first_part};
use super::{Accepted, HELD, KnownAnswer, StoredAnswer};
use crate::store::StoreError;
use crate::store::rows::{CallbackRow, InstanceRow, JobRow, Read, Result};
use crate::store::work::Work;
use spid_core::lifecycle::schedule::JobState;
use spid_core::lifecycle::{Decision, Reason};
use spid_hook::callback::Action;
use spid_hook::instance::State;

/// Returns the answer to a callback that made no job of its own.
pub(super) fn answer_without_job(
    rows: &mut Work<'_>,
    accepted: &mut Accepted,
    judged: &Judged,
    instance: Option<&InstanceRow>,
    now: Timestamp,
) -> Result<KnownAnswer> {
    let id = instance.and_then(InstanceRow::reported_id);
    Ok(match &judged.verdict.decision {
        Decision::Join(number) => join(rows, accepted, *number, instance, now)?,
        Decision::Repeat => {
            KnownAnswer::Applied(Box::new(stored_answer(rows, &accepted.row, instance, judged.job.as_ref())?))
        }
        Decision::Record => {
            KnownAnswer::Applied(Box::new(StoredAnswer { instance_id: id, ..StoredAnswer::default() }))
        }
        Decision::Refuse(Reason::NotReady) => refused_create(rows, instance)?,
        Decision::Refuse(reason) => KnownAnswer::Refused(reason.code(), reason.sentence()),
        Decision::Hold(reason) => KnownAnswer::Held(reason.sentence()),
        Decision::Run | Decision::RunBeside { .. } => KnownAnswer::NotYet,
    })
}

/// Returns the answer about an instance that does not exist yet, or the refusal of the hook that did not create it.
pub(super) fn refused_create(rows: &dyn Read, instance: Option<&InstanceRow>) -> Result<KnownAnswer> {
    let not_ready = KnownAnswer::Refused(Reason::NotReady.code(), Reason::NotReady.sentence());
    let Some(row) = instance else { return Ok(not_ready) };
    let mut jobs = rows.instance_jobs(row.number)?.into_iter();
    let create = jobs.find(|job| job.action == Action::Create && job.state == JobState::Refused);
    let waits = rows.has_queue(row.number)?;
    Ok(match create.filter(|_| !waits) {
        Some(job) => KnownAnswer::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        None => not_ready,
    })
}

/// Joins a job. A queued or dead job is brought forward.
fn join(
    rows: &mut Work<'_>,
    accepted: &mut Accepted,
    number: i64,
    instance: Option<&InstanceRow>,
    now: Timestamp,
) -> Result<KnownAnswer> {
    let job = rows.job(number)?.ok_or(StoreError::Inconsistent("a callback's job is missing"))?;
    Ok(match job.state {
        JobState::Done => KnownAnswer::Applied(Box::new(answer_of(&job, instance, accepted.row.reported_at))),
        JobState::Running => KnownAnswer::Wait(number),
        JobState::Queued | JobState::Dead => {
            // The parts of a request run in order, so bring forward the first one that has not ended.
            let first = first_part(rows, &job)?;
            accepted.wakes = match first.state {
                JobState::Queued | JobState::Dead => bring_forward(rows, first, now)?,
                _ => false,
            };
            KnownAnswer::Wait(number)
        }
        JobState::Held => KnownAnswer::Held(HELD.to_owned()),
        JobState::Refused => KnownAnswer::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        JobState::Pending | JobState::Dropped | JobState::Cancelled => KnownAnswer::NotYet,
    })
}

/// Returns the answer to repeat. `job` is the callback's own job, which has been read already.
pub(super) fn stored_answer(
    rows: &dyn Read,
    row: &CallbackRow,
    instance: Option<&InstanceRow>,
    job: Option<&JobRow>,
) -> Result<StoredAnswer> {
    if matches!(row.action, Action::Create | Action::Query) {
        return create_answer(rows, row, instance, job);
    }
    // A job without an answer can be pruned. So a missing job had nothing to repeat.
    Ok(match row.job.and(job) {
        Some(job) if job.state == JobState::Done => answer_of(job, instance, row.reported_at),
        Some(_) => StoredAnswer::default(),
        None => StoredAnswer {
            instance_id: instance.and_then(InstanceRow::reported_id),
            ..StoredAnswer::default()
        },
    })
}

/// Returns the answer of the job that created the instance, for a create or a query. `job` is the callback's own job.
///
/// The secrets are only for the purchase that the job was for, not for another one that names the instance. For a
/// released instance only the id is returned.
fn create_answer(
    rows: &dyn Read,
    row: &CallbackRow,
    instance: Option<&InstanceRow>,
    job: Option<&JobRow>,
) -> Result<StoredAnswer> {
    let Some(instance) = instance else { return Ok(StoredAnswer::default()) };
    let id_only = StoredAnswer { instance_id: instance.reported_id(), ..StoredAnswer::default() };
    let Some(creator) = instance.created_by.filter(|_| instance.instance.state != State::Released) else {
        return Ok(id_only);
    };
    let is_own = row.job == Some(creator) && job.is_none_or(|job| job.callback == row.number);
    let read = match job.filter(|_| is_own) {
        Some(_) => None,
        None => rows.job(creator)?,
    };
    let Some(job) = job.filter(|_| is_own).or(read.as_ref()) else { return Ok(id_only) };
    if row.action == Action::Create && !is_own {
        // The same purchase with other values gets the open answer. Another purchase gets the id only.
        let is_same = row.reason_code.as_deref() == Some(Reason::RepeatedWithOtherValues.code());
        let open = job.answer.clone().filter(|_| is_same);
        return Ok(StoredAnswer { open, ..id_only });
    }
    let reported_at = match job.callback == row.number {
        true => row.reported_at,
        false => rows.callback_row(job.callback)?.and_then(|creating| creating.reported_at),
    };
    Ok(answer_of(job, Some(instance), reported_at))
}

pub(super) fn answer_of(
    job: &JobRow,
    instance: Option<&InstanceRow>,
    reported_at: Option<Timestamp>,
) -> StoredAnswer {
    StoredAnswer {
        instance_id: instance.and_then(InstanceRow::reported_id),
        open: job.answer.clone(),
        sealed: job.sealed.clone(),
        sealed_for: Some(job.id),
        reported_at,
    }
}
