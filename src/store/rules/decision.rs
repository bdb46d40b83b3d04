//! Decision about a callback: the rows that it depends on, and the verdict on them.

use super::answers::{refused_create, stored_answer};
use super::names::find_instance;
use super::{Acceptance, Accepted, KnownAnswer, REJECTED, SETTLED};
use crate::store::StoreError;
use crate::store::rows::{CallbackRow, Disposition, InstanceAndQueue, InstanceRow, JobRow, Read, Result};
use spid_core::lifecycle;
use spid_core::lifecycle::schedule::JobState;
use spid_core::lifecycle::{
    Decision, Done, EarlierCallback, EarlierOutcome, QueuedJob, Reason, Subject, Verdict, View,
};
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::RequestedValues;

/// The rows that decide about one callback, and the decision.
pub(super) struct Judged {
    /// Deduplication key under which the callback is kept.
    pub(super) key: [u8; 16],
    pub(super) instance: Option<InstanceRow>,
    pub(super) queue: Vec<(JobRow, Callback)>,
    /// The latest earlier callback with the same key.
    pub(super) latest: Option<CallbackRow>,
    /// Job of that earlier callback.
    pub(super) job: Option<JobRow>,
    /// Verdict on the whole request.
    pub(super) verdict: Verdict,
    /// Actions of the request that get a job.
    pub(super) runs: Vec<Action>,
}

/// Reads the rows that a callback depends on and decides about it. The request is handled as the actions in `asked`.
pub(super) fn judge(
    rows: &dyn Read,
    acceptance: &Acceptance,
    asked: &[Action],
    found: Option<InstanceAndQueue>,
) -> Result<Judged> {
    let callback = &*acceptance.callback;
    let (instance, queue) = found.map_or((None, Vec::new()), |(row, queue)| (Some(row), queue));
    let mut key = key_of(acceptance, callback, instance.as_ref());
    // Earlier callbacks with the same key. A create by another purchase, or with other values, gets a key of its own:
    // it must not count as a redelivery of the first create.
    let mut earlier_callbacks = rows.earlier_callbacks(&key)?;
    if let Some(another) =
        key_of_another_purchase(rows, acceptance, callback, instance.as_ref(), &earlier_callbacks)?
    {
        key = another;
        earlier_callbacks = rows.earlier_callbacks(&key)?;
    }
    let other_values = names_other_values(rows, callback, instance.as_ref(), &earlier_callbacks)?;
    if let Some(other) = key_of_other_values(acceptance, callback, instance.as_ref()).filter(|_| other_values)
    {
        key = other;
        earlier_callbacks = rows.earlier_callbacks(&key)?;
    }
    let whole = earlier(earlier_callbacks.iter());
    let queue_view: Vec<QueuedJob> = queue.iter().map(queued_job).collect();
    let view = View {
        instance: instance.as_ref().map(|row| &row.instance),
        queue: &queue_view,
        earlier: whole.as_ref(),
        policy: acceptance.policy,
        conflict: callback.action == Action::Expire && holds_a_purchase(rows, instance.as_ref())?,
        other_values,
        approved: acceptance.approved,
        now: acceptance.received_at,
    };
    // A request of several parts: each part is decided by its own jobs, then one verdict is made of all.
    let mut verdicts = Vec::new();
    for action in asked {
        if *action == callback.action && callback.also.is_empty() {
            verdicts.push((*action, lifecycle::decide(view, callback)));
            continue;
        }
        let part = callback.part(*action);
        let own = earlier_of_part(rows, acceptance, &part, instance.as_ref(), &earlier_callbacks)?;
        let is_done = matches!(own, Some(EarlierCallback { standing: EarlierOutcome::Done(_), .. }));
        // An approval does not carry out again a part that was carried out.
        let verdict = match acceptance.approved && is_done {
            true => Decision::Repeat.into(),
            false => lifecycle::decide(View { earlier: own.as_ref(), ..view }, &part),
        };
        verdicts.push((*action, verdict));
    }
    let (verdict, runs) = lifecycle::combine(verdicts);
    let (latest, job) = match earlier_callbacks.pop() {
        Some((row, job)) => (Some(row), job),
        None => (None, None),
    };
    Ok(Judged { key, instance, queue, latest, job, verdict, runs })
}

/// Returns true if a create of an existing instance names other values than the create that was carried out.
///
/// The values are quantities, which the deduplication key does not hold, or a date if the key holds none.
fn names_other_values(
    rows: &dyn Read,
    callback: &Callback,
    instance: Option<&InstanceRow>,
    earlier_callbacks: &[CallbackAndJob],
) -> Result<bool> {
    let made = instance.filter(|row| row.instance.id.is_some() && callback.action == Action::Create);
    let Some(made) = made else { return Ok(false) };
    let is_same_purchase = lifecycle::is_same_purchase(&made.instance, callback);
    if is_same_purchase && made.instance.items == callback.items {
        return Ok(false);
    }
    let mut done = earlier_callbacks.iter().filter(|earlier| has_done_job(earlier));
    let Some((row, _)) = done.next().or(earlier_callbacks.last()) else {
        return Ok(false);
    };
    // An upgrade may have changed the instance since, so compare with the values of the earlier create.
    let Some(said) = readable_body(rows, row.number)? else { return Ok(false) };
    // A pruned body, or one with looked-up order details, is not what the earlier request said.
    if said.pruned_at.is_some() || said.order_details.is_some() {
        return Ok(false);
    }
    Ok(said.items != callback.items || !is_same_purchase && said.expires_on != callback.expires_on)
}

/// Returns the content of a callback. `None`: the row is missing or cannot be read.
fn readable_body(rows: &dyn Read, number: i64) -> Result<Option<Callback>> {
    match rows.callback(number) {
        Ok(found) => Ok(found.map(|(_, body)| body)),
        Err(StoreError::Unreadable(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the key of a create by another purchase than the one that made the instance.
///
/// A create that an older spid kept under the first key stays there, unless another buyer sent it. The first key does
/// not hold the buyer.
fn key_of_another_purchase(
    rows: &dyn Read,
    acceptance: &Acceptance,
    callback: &Callback,
    found: Option<&InstanceRow>,
    earlier_callbacks: &[CallbackAndJob],
) -> Result<Option<[u8; 16]>> {
    let Some(row) = found else { return Ok(None) };
    let is_certain = callback.action == Action::Create && callback.issues.is_empty();
    if !is_certain
        || lifecycle::is_anothers(&row.instance, callback)
        || lifecycle::is_same_purchase(&row.instance, callback)
    {
        return Ok(None);
    }
    if row.instance.order_id != callback.order_id
        && let Some((first, _)) = earlier_callbacks.first()
    {
        let said = readable_body(rows, first.number)?;
        if said.is_none_or(|said| said.buyer.is_none() || said.buyer == callback.buyer) {
            return Ok(None);
        }
    }
    let subject = Subject::Purchase(row.number);
    Ok(Some(lifecycle::deduplication_key(&acceptance.account, subject, callback)))
}

/// Returns the key for a create by the purchase that made the instance, with other quantities.
fn key_of_other_values(
    acceptance: &Acceptance,
    callback: &Callback,
    found: Option<&InstanceRow>,
) -> Option<[u8; 16]> {
    let row = found.filter(|row| lifecycle::is_same_purchase(&row.instance, callback))?;
    Some(lifecycle::deduplication_key(&acceptance.account, Subject::OtherValues(row.number), callback))
}

/// A stored callback with its job, if it has one.
type CallbackAndJob = (CallbackRow, Option<JobRow>);

/// Combines the rows of callbacks with one key, the oldest first, into one earlier callback.
fn earlier<'a>(rows: impl DoubleEndedIterator<Item = &'a CallbackAndJob> + Clone) -> Option<EarlierCallback> {
    let (latest, job) = rows.clone().next_back()?;
    let done = rows.rev().find(|earlier| was_carried_out(earlier)).map(|(row, job)| Done {
        reported: row.reported_at.is_some(),
        own: job.as_ref().is_none_or(|job| job.callback == row.number),
    });
    Some(EarlierCallback {
        reported: latest.reported_at.is_some(),
        done,
        standing: outcome_of(latest, job.as_ref()),
    })
}

fn has_done_job((_, job): &CallbackAndJob) -> bool {
    job.as_ref().is_some_and(|job| job.state == JobState::Done)
}

/// Returns true if a job that is done, or a reported result, shows that the request was carried out.
///
/// A settled callback was reported without running.
fn was_carried_out(earlier: &CallbackAndJob) -> bool {
    let row = &earlier.0;
    has_done_job(earlier) || (row.reported_at.is_some() && row.reason_code.as_deref() != Some(SETTLED))
}

/// Returns the earlier callback of one part of a request. Each part is judged by its own jobs.
fn earlier_of_part(
    rows: &dyn Read,
    acceptance: &Acceptance,
    part: &Callback,
    instance: Option<&InstanceRow>,
    whole: &[CallbackAndJob],
) -> Result<Option<EarlierCallback>> {
    let Some(instance) = instance else { return Ok(earlier(whole.iter())) };
    let jobs = rows.instance_jobs(instance.number)?;
    let mut own: Vec<CallbackAndJob> = Vec::new();
    for (row, _) in whole {
        // `list_jobs` returns the newest first.
        let mut latest = jobs.iter().filter(|job| job.callback == row.number && job.action == part.action);
        own.extend(latest.next().map(|job| (row.clone(), Some(job.clone()))));
    }
    if !own.is_empty() {
        return Ok(earlier(own.iter()));
    }
    if part.action == acceptance.callback.action {
        return Ok(earlier(whole.iter()));
    }
    // An older spid kept each part as a callback of its own.
    let of_older_spid = rows.earlier_callbacks(&key_of(acceptance, part, Some(instance)))?;
    if !of_older_spid.is_empty() {
        return Ok(earlier(of_older_spid.iter()));
    }
    // A reported request was carried out, even if its jobs have been pruned.
    let has_jobs = whole.iter().any(|(row, _)| jobs.iter().any(|job| job.callback == row.number));
    let is_told = whole.iter().any(|(row, _)| row.reported_at.is_some());
    Ok(if is_told || !has_jobs { earlier(whole.iter()) } else { None })
}

/// Returns true if another purchase of the instance is open and unreported, or if a renewal of it is held.
fn holds_a_purchase(rows: &dyn Read, instance: Option<&InstanceRow>) -> Result<bool> {
    let Some(row) = instance else { return Ok(false) };
    for callback in rows.instance_callbacks(row.number)? {
        let waits = match callback.action {
            Action::Create => {
                let is_open = matches!(callback.disposition, Disposition::Held | Disposition::Job);
                is_open && callback.job.is_none_or(|job| row.created_by.is_some_and(|creator| creator != job))
            }
            Action::Renew => callback.disposition == Disposition::Held,
            _ => false,
        };
        if !waits || callback.reported_at.is_some() {
            continue;
        }
        // An unreadable body may be another purchase, so it counts as one.
        let body = readable_body(rows, callback.number)?;
        let is_another = match body {
            None => true,
            Some(_) if callback.action == Action::Renew => true,
            Some(body) => {
                lifecycle::is_by_the_same_buyer(&row.instance, &body)
                    && !lifecycle::is_same_purchase(&row.instance, &body)
            }
        };
        if is_another {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn key_of(acceptance: &Acceptance, callback: &Callback, found: Option<&InstanceRow>) -> [u8; 16] {
    // A callback about another order must not count as one about this instance.
    let instance = found.filter(|row| !lifecycle::is_anothers(&row.instance, callback)).map(|row| row.number);
    let named = callback.subject.names().next().or(callback.order_id.as_deref()).unwrap_or_default();
    let subject = instance.map_or(Subject::Named(named), Subject::Instance);
    lifecycle::deduplication_key(&acceptance.account, subject, callback)
}

/// Returns the outcome of an earlier callback and its job.
fn outcome_of(row: &CallbackRow, job: Option<&JobRow>) -> EarlierOutcome {
    // A callback that was held or refused again later still has its earlier job, so the disposition decides first.
    match (row.disposition, job) {
        (Disposition::Recorded, _) if row.reason_code.as_deref() == Some(SETTLED) => {
            EarlierOutcome::Settled { reported_at: row.reported_at }
        }
        (Disposition::Recorded, _) => EarlierOutcome::Recorded,
        (Disposition::Refused, _) if row.reason_code.as_deref() == Some(REJECTED) => {
            EarlierOutcome::Rejected { reason: row.reason.clone().unwrap_or_default() }
        }
        // A reported callback was carried out. Its job has been pruned.
        (_, None) if row.reported_at.is_some() && row.job.is_some() => EarlierOutcome::Recorded,
        (Disposition::Held, None) => EarlierOutcome::Held,
        (_, None) => EarlierOutcome::Void,
        (_, Some(job)) => match job.state {
            JobState::Done => EarlierOutcome::Done(job.number),
            JobState::Cancelled => EarlierOutcome::Superseded,
            JobState::Refused => EarlierOutcome::RefusedByHook {
                at: job.ended_at.unwrap_or(job.created_at),
                reason: job.note.clone().unwrap_or_default(),
            },
            live if live.is_live() => EarlierOutcome::Open(job.number),
            _ => EarlierOutcome::Void,
        },
    }
}

fn queued_job((job, callback): &(JobRow, Callback)) -> QueuedJob {
    QueuedJob {
        job: job.number,
        action: job.action,
        running: job.state == JobState::Running,
        dead: job.state == JobState::Dead,
        wants: match job.action == callback.action {
            true => RequestedValues::of(callback),
            false => RequestedValues::of(&callback.part(job.action)),
        },
        accepted_at: job.created_at,
    }
}

/// Returns true if the callback has no name, or one that an instance has.
fn is_named(rows: &dyn Read, acceptance: &Acceptance) -> Result<bool> {
    let mut has_name = false;
    for name in acceptance.callback.subject.names() {
        has_name = true;
        if rows.name_holder(&acceptance.account, name)?.is_some() {
            return Ok(true);
        }
    }
    Ok(!has_name)
}

/// Returns the answer to a redelivery of a reported or refused callback. It only reads.
///
/// `None` means that the callback needs the writer.
pub(crate) fn peek(rows: &dyn Read, acceptance: &Acceptance) -> Result<Option<Accepted>> {
    // Nearly every new order ends here, at the cost of one look for its name.
    if acceptance.callback.action == Action::Create && !is_named(rows, acceptance)? {
        return Ok(None);
    }
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    // A create of an unknown instance always needs the writer.
    if found.is_none() && acceptance.callback.action == Action::Create {
        return Ok(None);
    }
    let asked: Vec<Action> = acceptance.callback.actions().collect();
    let judged = judge(rows, acceptance, &asked, found)?;
    if let Some(answer) = repeated_answer(rows, &judged, acceptance)? {
        let marketplace_instance_id = judged.instance.and_then(|row| row.marketplace_instance_id);
        return Ok(judged.latest.map(|row| Accepted {
            row,
            answer,
            marketplace_instance_id,
            taken: None,
            wakes: false,
            alert: false,
        }));
    }
    // A redelivery that changes a row, for example by a new notice or an alert, needs the writer.
    let verdict = &judged.verdict;
    let code = judged.latest.as_ref().and_then(|row| row.reason_code.as_deref());
    let says_more = verdict.notice.as_ref().is_some_and(|notice| code != Some(notice.code()));
    if verdict.decision != Decision::Repeat || verdict.alert || says_more || !verdict.cancels.is_empty() {
        return Ok(None);
    }
    let Some(row) = judged.latest.as_ref().filter(|row| row.reported_at.is_some()) else { return Ok(None) };
    let stored = stored_answer(rows, row, judged.instance.as_ref(), judged.job.as_ref())?;
    Ok(Some(Accepted {
        row: row.clone(),
        answer: KnownAnswer::Applied(Box::new(stored)),
        marketplace_instance_id: judged.instance.and_then(|row| row.marketplace_instance_id),
        taken: None,
        wakes: false,
        alert: false,
    }))
}

/// Returns the stored refusal or hold, if this delivery would only be counted because the row says the same already.
///
/// A valid request can be sent again without end: by its sender, or by every visitor who opens a sign-on link. So such
/// deliveries cost no write. Up to the marketplace's delivery limit each delivery is written, because a warning depends
/// on the number of deliveries.
fn repeated_answer(rows: &dyn Read, judged: &Judged, acceptance: &Acceptance) -> Result<Option<KnownAnswer>> {
    let (reason, disposition) = match &judged.verdict {
        Verdict { decision: Decision::Refuse(reason), alert: false, .. } => (reason, Disposition::Refused),
        Verdict { decision: Decision::Hold(reason), alert: false, .. } => (reason, Disposition::Held),
        _ => return Ok(None),
    };
    let Some(row) = &judged.latest else { return Ok(None) };
    let uncounted =
        acceptance.delivery_limit.is_none_or(|delivery_limit| row.deliveries > u64::from(delivery_limit));
    let used = row.reported_at.is_some() && *reason == Reason::SignOnUsed;
    let said = row.reported_at.is_none()
        && row.disposition == disposition
        && row.reason_code.as_deref() == Some(reason.code())
        && row.reason.as_deref() == Some(reason.to_string().as_str());
    if !uncounted || !(used || said) {
        return Ok(None);
    }
    Ok(Some(match (disposition, reason) {
        (Disposition::Held, _) => KnownAnswer::Held(reason.sentence()),
        (_, Reason::NotReady) => refused_create(rows, judged.instance.as_ref())?,
        _ => KnownAnswer::Refused(reason.code(), reason.sentence()),
    }))
}
