//! Operations on jobs: retry, drop, complete.

use jiff::Timestamp;

use super::{AuditNote, OperationDone, OperationError, Operations, impossible};
use crate::store::StoreError;
use crate::store::rows::{JobKind, JobRow, MarketJob, MarketJobs, Read};
use crate::store::rules;
use crate::store::work::Work;
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_hook::callback::{Action, Answer};
use spid_hook::id::Id;
use spid_hook::instance::State;

impl Operations {
    /// Makes a job due now, for one unscheduled attempt. Its retry schedule is not spent.
    ///
    /// Returns the job that must end first, if there is one before it in the instance's queue.
    ///
    /// # Errors
    /// Fails if there is no such job, it is running, it has ended for good, or a later job has replaced it.
    pub fn retry(&mut self, id: Id, note: &AuditNote) -> OperationDone<Option<Id>> {
        self.retry_chosen(id, None, note)
    }

    /// Retries a job that was chosen by its state. Without a state it is [`Operations::retry`].
    ///
    /// # Errors
    /// Fails like [`Operations::retry`], and with [`OperationError::Moved`] if the job has left the state.
    pub fn retry_chosen(
        &mut self,
        id: Id,
        state: Option<JobState>,
        note: &AuditNote,
    ) -> OperationDone<Option<Id>> {
        self.run_audited(note, "retry", &format!("job {id}"), |rows, now| {
            if let Some(job) = market_job(rows, id)? {
                check_chosen(job.state, state)?;
                return retry_call(rows, job, now).map(|()| None);
            }
            let mut job = find_job(rows, id)?;
            check_chosen(job.state, state)?;
            retry(rows, &mut job, now)
        })
    }

    /// Drops a job without running it. The later jobs in the instance's queue go on.
    ///
    /// # Errors
    /// Fails if there is no such job, or if it is running or has ended.
    pub fn drop_job(&mut self, id: Id, note: &AuditNote) -> OperationDone<()> {
        self.drop_chosen(id, None, note).map(drop)
    }

    /// Drops a job that was chosen by its state. Without a state it is [`Operations::drop_job`]. Returns its kind.
    ///
    /// # Errors
    /// Fails like [`Operations::drop_job`], and with [`OperationError::Moved`] if the job has left the state.
    pub fn drop_chosen(
        &mut self,
        id: Id,
        state: Option<JobState>,
        note: &AuditNote,
    ) -> OperationDone<JobKind> {
        self.run_audited(note, "drop", &format!("job {id}"), |rows, now| {
            if let Some(job) = market_job(rows, id)? {
                check_chosen(job.state, state)?;
                return drop_call(rows, job, note, now);
            }
            let mut job = find_job(rows, id)?;
            check_chosen(job.state, state)?;
            if job.state == JobState::Running {
                return impossible(running(&job, now));
            }
            check_droppable(job.state)?;
            job.note = Some(dropped_by(note));
            rules::end(&mut job, JobState::Dropped, now);
            rules::settle_queue_after(rows, &mut job, now)?;
            rows.put_job(&job)?;
            Ok(JobKind::Hook)
        })
    }

    /// Completes the job that an instance waits for, with this answer. Returns the completed action.
    ///
    /// The job is one that a hook left pending, or one that a person did by hand after it failed.
    ///
    /// # Errors
    /// Fails if no job waits, its hook is running or has not been tried, or the answer is not usable.
    pub fn complete(&mut self, instance: i64, answer: &Answer, note: &AuditNote) -> OperationDone<Action> {
        let target = self.target(instance)?;
        self.complete_with(&target, answer, note, |rows| {
            // The first job of the queue is the one that the instance waits for.
            let first = rows.queue_jobs(instance)?.into_iter().next();
            first.ok_or_else(|| {
                OperationError::Impossible(
                    "no job of this instance waits; complete a payment or another message by its job: spid jobs complete JOB".to_owned(),
                )
            })
        })
    }

    /// Completes one job with this answer, with or without an instance's queue.
    ///
    /// # Errors
    /// Fails like [`Operations::complete`], and if another job of the instance must end first.
    pub fn complete_job(&mut self, id: Id, answer: &Answer, note: &AuditNote) -> OperationDone<Action> {
        self.complete_with(&format!("job {id}"), answer, note, |rows| {
            if let Some(job) = market_job(rows, id)? {
                return impossible(format!(
                    "a {} takes no answer; spid jobs retry or drop it",
                    job.kind.as_str()
                ));
            }
            let job = find_job(rows, id)?;
            if !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; there is nothing to complete",
                    job.state.as_str()
                ));
            }
            match ahead_of(rows, &job)? {
                Some(ahead) => {
                    impossible(format!("the job waits for {}; complete that one first", named(&ahead)))
                }
                None => Ok(job),
            }
        })
    }

    fn complete_with(
        &mut self,
        target: &str,
        answer: &Answer,
        note: &AuditNote,
        find: impl FnOnce(&Work<'_>) -> OperationDone<JobRow>,
    ) -> OperationDone<Action> {
        // Get the sealer before the transaction: it reads key files, and may fail.
        let encryptor = match answer.split().secret {
            Some(_) => Some(self.encryptor()?),
            None => None,
        };
        self.run_audited(note, "complete", target, |rows, now| {
            let mut job = find(rows)?;
            check_completable(&job, answer, now)?;
            let split = answer.split();
            job.answer = split.open;
            job.sealed = match (&encryptor, &split.secret) {
                (Some(encryptor), Some(secret)) => {
                    Some(encryptor.seal(job.id.as_bytes(), secret).map_err(StoreError::from)?)
                }
                _ => None,
            };
            // The person's answer decides the id, so an id from an earlier attempt does not count.
            job.proposed_id = None;
            rules::complete(rows, &mut job, None, answer.instance_id.as_deref(), now)?;
            // `complete` holds a create with an unusable id. Here that is an error, which undoes the transaction.
            if job.state != JobState::Done {
                return impossible(job.note.unwrap_or_default());
            }
            rows.put_job(&job)?;
            Ok(job.action)
        })
    }
}

fn find_job(rows: &dyn Read, id: Id) -> OperationDone<JobRow> {
    rows.job_by_id(id)?.ok_or_else(|| OperationError::NotFound(format!("there is no job {id}")))
}

/// Finds the job of the market client with this id.
fn market_job(rows: &dyn Read, id: Id) -> OperationDone<Option<MarketJob>> {
    Ok(rows.market_jobs(MarketJobs::Id(id))?.pop())
}

/// Checks a job that was chosen by its state. Between the choice and this transaction, a daemon or another person may
/// have changed the job, and the choice no longer covers it.
fn check_chosen(found: JobState, chosen: Option<JobState>) -> OperationDone<()> {
    match chosen.filter(|chosen| *chosen != found) {
        Some(chosen) => Err(OperationError::Moved(chosen, found)),
        None => Ok(()),
    }
}

fn check_droppable(state: JobState) -> OperationDone<()> {
    match state.is_live() {
        true => Ok(()),
        false => impossible(format!("the job is {}; only a waiting job can be dropped", state.as_str())),
    }
}

fn dropped_by(note: &AuditNote) -> String {
    format!("dropped by {}: {}", note.who, note.why)
}

/// Makes a waiting or dead job of the market client due now. The number of failures stays: a job that has used up its
/// waits gets one attempt.
fn retry_call(rows: &mut Work<'_>, mut job: MarketJob, now: Timestamp) -> OperationDone<()> {
    check_call_rests(&job, now)?;
    if !job.state.is_live() {
        return impossible(format!("the job is {}; there is nothing to retry", job.state.as_str()));
    }
    (job.state, job.due_at) = (JobState::Queued, now);
    rows.put_market_job(job);
    Ok(())
}

fn drop_call(
    rows: &mut Work<'_>,
    mut job: MarketJob,
    note: &AuditNote,
    now: Timestamp,
) -> OperationDone<JobKind> {
    if job.kind.is_recurring() {
        return impossible(format!(
            "the {} of market {} comes back; remove it from the configuration",
            job.kind.as_str(),
            job.market
        ));
    }
    check_call_rests(&job, now)?;
    check_droppable(job.state)?;
    let kind = JobKind::Market(job.kind);
    job.note = Some(dropped_by(note));
    (job.state, job.ended_at) = (JobState::Dropped, Some(now));
    rows.put_market_job(job);
    Ok(kind)
}

/// Checks that no attempt at this job runs.
fn check_call_rests(job: &MarketJob, now: Timestamp) -> OperationDone<()> {
    let kind = job.kind.as_str();
    match (job.state, job.lease_until.filter(|until| *until < now)) {
        (JobState::Running, None) => impossible(format!("the {kind} is running now; wait for its end")),
        (JobState::Running, Some(until)) => impossible(format!(
            "the {kind} was running when the daemon stopped (no sign of life since {until}); start the daemon, which repeats it"
        )),
        _ => Ok(()),
    }
}

/// Returns the reason why a running job is left alone.
///
/// Without a daemon the lease is not extended. After its end it makes no sense to wait for the attempt.
fn running(job: &JobRow, now: Timestamp) -> String {
    let action = job.action;
    match job.lease_until.filter(|until| *until < now) {
        None => format!("a hook is running for its {action} now; wait for its end"),
        Some(until) => format!(
            "the {action} was running when the daemon stopped (no sign of life since {until}), and its result is unknown; start the daemon, which ends leftovers and retries"
        ),
    }
}

fn check_completable(job: &JobRow, answer: &Answer, now: Timestamp) -> OperationDone<()> {
    let action = job.action;
    if job.state == JobState::Running {
        return impossible(running(job, now));
    }
    if job.state == JobState::Queued && job.attempts == 0 {
        return impossible(format!("the {action} has not been tried yet; let the hook run first"));
    }
    // The answer is probably meant for a create, and a release has replaced that create meanwhile.
    if matches!(action, Action::Expire | Action::Release) && *answer != Answer::default() {
        return impossible(format!("the waiting job ({action}) takes no answer; complete it without one"));
    }
    Ok(())
}

// The first job in the instance's queue runs first, so retrying a later queued job has no effect.
fn retry(rows: &mut Work<'_>, job: &mut JobRow, now: Timestamp) -> OperationDone<Option<Id>> {
    let ahead = ahead_of(rows, job)?;
    match (job.state, &ahead) {
        (JobState::Running, _) => return impossible(running(job, now)),
        (JobState::Done | JobState::Dropped | JobState::Cancelled, _) => {
            return impossible(format!("the job is {}; there is nothing to retry", job.state.as_str()));
        }
        (JobState::Queued, Some(ahead)) => {
            return impossible(format!(
                "the job waits for {}; retry, complete or drop that one first",
                named(ahead)
            ));
        }
        (JobState::Refused, _) => check_refused(rows, job)?,
        (JobState::Queued | JobState::Pending | JobState::Held | JobState::Dead, _) => {}
    }
    let instance = rows.instance_of(job.instance)?;
    let released = instance.is_some_and(|row| row.instance.state == State::Released);
    if released && job.ordered && job.action != Action::Release {
        return impossible("the instance is released for good, so the job cannot be retried");
    }
    // A held create may have an unusable id. The next attempt may give another one.
    if job.state == JobState::Held {
        job.proposed_id = None;
    }
    job.extra = kind_of_retry(job);
    // The job is open again, so its callback must be shown on the attention list again.
    if let Some(mut row) = rows.callback_row(job.callback)?.filter(|row| row.dismissed_at.is_some()) {
        row.dismissed_at = None;
        rows.put_callback(&row);
    }
    let was_refused = job.state == JobState::Refused;
    job.state = JobState::Queued;
    job.due_at = now;
    job.ended_at = None;
    rows.put_job(job)?;
    // Only a refusal has canceled the later parts. Those of a dead or held job are still queued.
    if was_refused {
        bring_back_later_parts(rows, job, now)?;
    }
    Ok(ahead.map(|ahead| ahead.id))
}

/// Requeues the later parts of a request together with a requeued part: half of a request was never asked for.
fn bring_back_later_parts(rows: &mut Work<'_>, job: &JobRow, now: Timestamp) -> OperationDone<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    let mut later = rows.instance_jobs(instance)?;
    later.retain(|part| {
        part.callback == job.callback
            && part.number > job.number
            && part.state == JobState::Cancelled
            && part.note.as_deref().is_some_and(|note| note.starts_with(rules::LATER_PART))
    });
    // The newest is first, but the parts run in the order of their numbers.
    later.sort_by_key(|part| part.number);
    for part in &mut later {
        (part.state, part.due_at, part.ended_at) = (JobState::Queued, now, None);
        rows.put_job(part)?;
    }
    // A callback has the job of its last part.
    if let (Some(last), Some(mut row)) = (later.last(), rows.callback_row(job.callback)?) {
        row.job = Some(last.number);
        rows.put_callback(&row);
    }
    Ok(())
}

pub(super) fn named(job: &JobRow) -> String {
    format!("job {} ({}, {})", job.id, job.action, job.state.as_str())
}

/// Returns the job in the instance's queue that must end before this one.
fn ahead_of(rows: &dyn Read, job: &JobRow) -> OperationDone<Option<JobRow>> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(None) };
    let first = rows.queue_jobs(instance)?.into_iter().next();
    Ok(first.filter(|first| first.number < job.number))
}

/// Returns the kind of the new attempt for the retry schedule.
///
/// A job that was dead stays marked as dead. It must not return to a schedule that is used up.
fn kind_of_retry(job: &JobRow) -> Extra {
    match (job.state, job.extra) {
        (JobState::Dead | JobState::Refused, _) | (_, Extra::Dead) => Extra::Dead,
        // Without an attempt there is nothing to repeat: the next attempt is still the scheduled one.
        _ if job.attempts == 0 => job.extra,
        _ => Extra::Waiting,
    }
}

/// Checks that a refused job may come back. It has left the instance's queue.
///
/// Queue and instance must be unchanged since then. The marketplace may have asked again meanwhile, and a second create
/// would make a second instance.
fn check_refused(rows: &dyn Read, job: &JobRow) -> OperationDone<()> {
    let latest = rows.callback_row(job.callback)?.and_then(|row| row.job);
    if latest != Some(job.number) {
        return impossible("the marketplace has asked again, and a later job replaces this one");
    }
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    if let Some(other) = rows.queue_jobs(instance)?.first() {
        return impossible(format!(
            "{} has been queued since; retry, complete or drop that one",
            named(other)
        ));
    }
    let changed = rows.instance(instance)?.map(|row| row.instance.updated_at);
    if changed > job.ended_at {
        return impossible(
            "the instance has changed since the refusal; the marketplace must send the request again",
        );
    }
    Ok(())
}
