//! Rules of the store: accept a callback, lease jobs, record results. Each operation is kept whole or not at all.
//!
//! The rules are written once over [`Write`], so that every backend decides alike. No code here waits, logs or knows a
//! hook. The returned values say what the caller must do after the commit.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::rows::{
    AttemptRow, CallbackRow, Disposition, Filter, InstanceRow, JobRow, Known, Read, Readable, Result,
    Unreadable, Write,
};
use super::{Postpone, Retrying, Schedules, StoreError};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use spid_core::lifecycle;
use spid_core::lifecycle::id_of_part;
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::schedule::{Extra, Next, Progress, Schedule};
use spid_core::lifecycle::{
    Decision, Done, EarlierCallback, EarlierOutcome, Policy, QueuedJob, Reason, Subject, Verdict, View,
};
use spid_hook::callback::{Action, Callback, Nonce};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State, Wants};
use spid_hook::instance::{fault_of_any_id, fault_of_id};
use spid_hook::time::plus_millis;

/// Reason code of a callback that an operator rejected: the code of [`Reason::Rejected`].
pub(super) const REJECTED: &str = "rejected";

/// Reason code of a callback that an operator settled: success without running.
pub(super) const SETTLED: &str = "settled";

/// Text for the marketplace about a held job. The real reason is for the seller, and may name another instance.
const HELD: &str = "its instance needs the seller's decision";

/// A verified callback for the store to keep.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// Account of the callback.
    pub account: String,
    /// Name of the endpoint that it came through.
    pub endpoint: String,
    /// Label of the key that signed it.
    pub key_label: String,
    /// Delivery limit: the number of times that the marketplace calls before it gives up. `None`: not counted.
    pub delivery_limit: Option<u32>,
    /// The content of the callback.
    pub callback: Arc<Callback>,
    /// Time of the delivery.
    pub received_at: Timestamp,
    /// Policy of the seller for cases that need a decision.
    pub policy: Policy,
    /// True if an operator has approved the callback. Then this is not a delivery, and is not counted as one.
    pub approved: bool,
}

/// Values for a new job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewJob {
    /// Id of the job.
    pub(crate) id: Id,
    /// End of the lease, if the job may be created in state running.
    pub(crate) lease_until: Option<Timestamp>,
    /// True if the caller still waits for the answer. Only then can a result count as reported.
    pub(crate) heard: bool,
}

/// The answer to a callback, as far as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KnownAnswer {
    /// The callback was carried out.
    Applied(Box<Stored>),
    /// The callback has no result yet.
    NotYet,
    /// The callback was refused: the stable reason code, and the sentence.
    Refused(&'static str, String),
    /// The callback waits for an operator.
    Held(String),
    /// The answer is the result of this job's attempt.
    Wait(i64),
}

/// A stored answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) instance_id: Option<String>,
    pub(crate) open: Option<String>,
    pub(crate) sealed: Option<Vec<u8>>,
    /// Id of the job for which the secrets were encrypted.
    pub(crate) sealed_for: Option<Id>,
    /// Time of the first report to the marketplace.
    pub(crate) reported_at: Option<Timestamp>,
}

/// Result of accepting a callback.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) row: CallbackRow,
    pub(crate) reported: KnownAnswer,
    /// Id that the marketplace itself chose for the instance.
    pub(crate) marketplace_instance_id: Option<String>,
    /// The job, if it was created in state running.
    pub(crate) taken: Option<Box<LeasedJob>>,
    /// True if a job was queued for the dispatcher or brought forward.
    pub(crate) wakes: bool,
    /// True if a person should look at the callback.
    pub(crate) alert: bool,
}

/// A job that belongs to one dispatcher until its lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedJob {
    /// The job. Its attempts include this one.
    pub job: JobRow,
    /// The callback, or the part of it that this job is for.
    pub callback: Arc<Callback>,
    /// Row of the callback.
    pub origin: CallbackRow,
    /// The instance in its applied state.
    pub instance: Option<Instance>,
}

/// Result of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum AttemptEnd {
    /// The hook succeeded. Its answer is split into an open part and an encrypted part.
    Done { instance_id: Option<String>, open: Option<String>, sealed: Option<Vec<u8>> },
    /// The attempt failed, and the job is tried again.
    Retry { error: String, after_ms: Option<i64> },
    /// The hook refused the job.
    Refused { reason: String },
    /// The hook will finish later.
    Pending { note: String },
    /// The attempt never began, or a stop of the daemon cut it short. The job is due at once and spends no retry.
    GivenBack,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) job: i64,
    /// Number of the attempt that ended. An attempt older than the job's last one is fenced.
    pub(crate) attempt: u32,
    /// The callback, if the caller has it in memory. It does not change while its job runs, so it is not read again.
    pub(crate) callback: Option<Arc<Callback>>,
    pub(crate) ending: AttemptEnd,
    pub(crate) schedules: Schedules,
    pub(crate) now: Timestamp,
}

/// Result of recording the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The job ended or waits. `reported` is the answer that may be reported.
    Kept {
        state: schedule::JobState,
        reported: KnownAnswer,
        note: Option<String>,
        /// True if a job may be due now, or earlier than the dispatcher knows.
        wakes: bool,
    },
    /// The lease was lost. Nothing was changed.
    Fenced,
}

/// The rows that decide about one callback, and the decision.
struct Judged {
    /// Deduplication key under which the callback is kept.
    key: [u8; 16],
    instance: Option<InstanceRow>,
    queue: Vec<(JobRow, Callback)>,
    /// The latest earlier callback with the same key.
    latest: Option<CallbackRow>,
    /// Job of that earlier callback.
    job: Option<JobRow>,
    /// Verdict on the whole request.
    verdict: Verdict,
    /// Actions of the request that get a job.
    runs: Vec<Action>,
}

/// Reads the rows that a callback depends on and decides about it. The request is handled as the actions in `asked`.
fn judge(rows: &dyn Read, acceptance: &Acceptance, asked: &[Action], found: Option<Known>) -> Result<Judged> {
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
    let (latest, job) =
        earlier_callbacks.into_iter().next_back().map_or((None, None), |(row, job)| (Some(row), job));
    Ok(Judged { key, instance, queue, latest, job, verdict, runs })
}

/// Returns true if a create of an existing instance names other values than the create that was carried out.
///
/// The values are quantities, which the deduplication key does not hold, or a date if the key holds none.
fn names_other_values(
    rows: &dyn Read,
    callback: &Callback,
    instance: Option<&InstanceRow>,
    earlier_callbacks: &[Stands],
) -> Result<bool> {
    let made = instance.filter(|row| row.instance.id.is_some() && callback.action == Action::Create);
    let Some(made) = made else { return Ok(false) };
    let is_same_purchase = lifecycle::is_same_purchase(&made.instance, callback);
    if is_same_purchase && made.instance.items == callback.items {
        return Ok(false);
    }
    let is_done = |(_, job): &&Stands| job.as_ref().is_some_and(|job| job.state == schedule::JobState::Done);
    let Some((row, _)) = earlier_callbacks.iter().find(is_done).or(earlier_callbacks.last()) else {
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
    earlier_callbacks: &[Stands],
) -> Result<Option<[u8; 16]>> {
    let is_another = |row: &&InstanceRow| {
        callback.action == Action::Create
            && callback.issues.is_empty()
            && !lifecycle::is_anothers(&row.instance, callback)
            && !lifecycle::is_same_purchase(&row.instance, callback)
    };
    let Some(row) = found.filter(is_another) else { return Ok(None) };
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
type Stands = (CallbackRow, Option<JobRow>);

/// Combines the rows of callbacks with one key, the oldest first, into one earlier callback.
fn earlier<'a>(rows: impl DoubleEndedIterator<Item = &'a Stands> + Clone) -> Option<EarlierCallback> {
    let (latest, job) = rows.clone().next_back()?;
    // A job that is done, or a reported result, shows that the request was carried out. A settled callback was reported
    // without running.
    let is_carried_out = |(row, job): &&Stands| {
        let is_settled = row.reason_code.as_deref() == Some(SETTLED);
        let has_done_job = job.as_ref().is_some_and(|job| job.state == schedule::JobState::Done);
        has_done_job || (row.reported_at.is_some() && !is_settled)
    };
    let done = rows.rev().find(is_carried_out).map(|(row, job)| Done {
        reported: row.reported_at.is_some(),
        own: job.as_ref().is_none_or(|job| job.callback == row.number),
    });
    Some(EarlierCallback {
        reported: latest.reported_at.is_some(),
        done,
        standing: standing(latest, job.as_ref()),
    })
}

/// Returns the earlier callback of one part of a request. Each part is judged by its own jobs.
fn earlier_of_part(
    rows: &dyn Read,
    acceptance: &Acceptance,
    part: &Callback,
    instance: Option<&InstanceRow>,
    whole: &[Stands],
) -> Result<Option<EarlierCallback>> {
    let Some(instance) = instance else { return Ok(earlier(whole.iter())) };
    let of_instance = Filter { instance: Some(instance.number), limit: usize::MAX, ..Filter::default() };
    let jobs = rows.list_jobs(&of_instance)?;
    let is_of = |row: &CallbackRow, job: &&JobRow| job.callback == row.number;
    let own: Vec<Stands> = whole
        .iter()
        .filter_map(|(row, _)| {
            let mut latest = jobs.iter().filter(|job| is_of(row, job) && job.action == part.action);
            // `list_jobs` returns the newest first.
            latest.next().map(|job| (row.clone(), Some(job.clone())))
        })
        .collect();
    if !own.is_empty() {
        return Ok(earlier(own.iter()));
    }
    if part.action == acceptance.callback.action {
        return Ok(earlier(whole.iter()));
    }
    // An older spid kept each part as a callback of its own.
    let kept_apart = rows.earlier_callbacks(&key_of(acceptance, part, Some(instance)))?;
    if !kept_apart.is_empty() {
        return Ok(earlier(kept_apart.iter()));
    }
    // A reported request was carried out, even if its jobs have been pruned.
    let has_jobs = whole.iter().any(|(row, _)| jobs.iter().any(|job| is_of(row, &job)));
    let is_told = whole.iter().any(|(row, _)| row.reported_at.is_some());
    Ok(if is_told || !has_jobs { earlier(whole.iter()) } else { None })
}

/// Returns true if another purchase of the instance is open and unreported, or if a renewal of it is held.
fn holds_a_purchase(rows: &dyn Read, instance: Option<&InstanceRow>) -> Result<bool> {
    let Some(row) = instance else { return Ok(false) };
    let all = Filter { instance: Some(row.number), limit: usize::MAX, ..Filter::default() };
    for callback in rows.list_callbacks(&all)? {
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
        let is_another = |body: Callback| {
            callback.action == Action::Renew
                || lifecycle::is_by_the_same_buyer(&row.instance, &body)
                    && !lifecycle::is_same_purchase(&row.instance, &body)
        };
        if body.is_none_or(is_another) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn find_instance(rows: &dyn Read, account: &str, callback: &Callback) -> Result<Option<Known>> {
    // Names decide first. An order id finds an instance only for a callback without any name.
    for name in callback.subject.names() {
        if let Some(known) = rows.instance_by_name(account, name)? {
            return Ok(Some(known));
        }
    }
    if callback.subject.names().next().is_some() {
        return refuse_missing_name(rows, account, callback).map(|()| None);
    }
    let Some(order) = callback.order_id.as_deref().filter(|order| !order.is_empty()) else {
        return Ok(None);
    };
    // An order with several instances does not say which one is meant.
    match rows.instances_by_order(account, order)?.as_slice() {
        [only] => match rows.instance(*only)? {
            Some(row) => Ok(Some((row, rows.queue(*only)?))),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Fails if the order already has an instance with this `orderBizId`.
///
/// Then the row in table `name` is missing or damaged, and a known order would look new and run twice.
fn refuse_missing_name(rows: &dyn Read, account: &str, callback: &Callback) -> Result<()> {
    let (Some(order), Some(name)) = (callback.order_id.as_deref(), callback.subject.order_biz_id.as_deref())
    else {
        return Ok(());
    };
    match rows.instance_bought(account, order, name)? {
        Some(number) => Err(StoreError::Unreadable(Box::new(Unreadable {
            table: "name",
            row: format!("{account}/{name}"),
            fault: format!("instance {number} has this name, but the row is missing"),
            newer: false,
        }))),
        None => Ok(()),
    }
}

fn key_of(acceptance: &Acceptance, callback: &Callback, found: Option<&InstanceRow>) -> [u8; 16] {
    // A callback about another order must not count as one about this instance.
    let instance = found.filter(|row| !lifecycle::is_anothers(&row.instance, callback)).map(|row| row.number);
    let named = callback.subject.names().next().or(callback.order_id.as_deref()).unwrap_or_default();
    let subject = instance.map_or(Subject::Named(named), Subject::Instance);
    lifecycle::deduplication_key(&acceptance.account, subject, callback)
}

/// Returns the outcome of an earlier callback and its job.
fn standing(row: &CallbackRow, job: Option<&JobRow>) -> EarlierOutcome {
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
            schedule::JobState::Done => EarlierOutcome::Done(job.number),
            schedule::JobState::Cancelled => EarlierOutcome::Superseded,
            schedule::JobState::Refused => EarlierOutcome::RefusedByHook {
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
        running: job.state == schedule::JobState::Running,
        dead: job.state == schedule::JobState::Dead,
        wants: match job.action == callback.action {
            true => Wants::of(callback),
            false => Wants::of(&callback.part(job.action)),
        },
    }
}

/// Returns the answer to a redelivery of a reported or refused callback. It only reads.
///
/// `None` means that the callback needs the writer.
pub(crate) fn peek(rows: &dyn Read, acceptance: &Acceptance) -> Result<Option<Accepted>> {
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    // A create of an unknown instance always needs the writer.
    if found.is_none() && acceptance.callback.action == Action::Create {
        return Ok(None);
    }
    let asked: Vec<Action> = acceptance.callback.actions().collect();
    let judged = judge(rows, acceptance, &asked, found)?;
    if let Some(reported) = said_before(rows, &judged, acceptance)? {
        let marketplace_instance_id = judged.instance.and_then(|row| row.marketplace_instance_id);
        return Ok(judged.latest.map(|row| Accepted {
            row,
            reported,
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
        reported: KnownAnswer::Applied(Box::new(stored)),
        marketplace_instance_id: judged.instance.and_then(|row| row.marketplace_instance_id),
        taken: None,
        wakes: false,
        alert: false,
    }))
}

/// Returns the stored refusal or hold, if this delivery would only be counted because the row says the same already.
///
/// A genuine request can be sent again without end, and a sign-on by every visitor with its link. So such deliveries
/// cost no write. Below the marketplace's delivery limit each delivery is written, because a warning depends on the
/// number.
fn said_before(rows: &dyn Read, judged: &Judged, acceptance: &Acceptance) -> Result<Option<KnownAnswer>> {
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

/// Keeps a callback. `None`: the request is a copy of one that was accepted before, and nothing is kept of it.
pub(crate) fn accept_once(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    birth: NewJob,
) -> Result<Option<Accepted>> {
    match &acceptance.callback.nonce {
        // The nonce is consumed in the transaction that keeps the callback, so that both are kept or none.
        Some(nonce) if !consume(rows, &acceptance.account, nonce, acceptance.received_at)? => Ok(None),
        _ => {
            let asked: Vec<Action> = acceptance.callback.actions().collect();
            accept_for(rows, acceptance, &asked, birth).map(Some)
        }
    }
}

/// Keeps a callback: reads, decides, and writes callback, instance and jobs together.
///
/// The request is handled as the actions in `asked`: its own actions, or those that an operator chose.
pub(super) fn accept_for(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    asked: &[Action],
    birth: NewJob,
) -> Result<Accepted> {
    // All rows that decide are read in the transaction that writes the decision.
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    let judged = judge(rows, acceptance, asked, found)?;
    // Cancel superseded jobs first: the new job may be the first in the instance's queue only without them.
    for number in &judged.verdict.cancels {
        cancel(rows, *number, acceptance.callback.action, acceptance.received_at)?;
    }
    // Only the first job in the instance's queue may be created in state running.
    let birth = NewJob { lease_until: birth.lease_until.filter(|_| is_first(&judged)), ..birth };
    // Write the instance before the callback, because the callback row names its number.
    let instance = settle_instance(rows, acceptance, &judged, birth)?;
    let mut row = callback_row(rows, acceptance, &judged, instance.as_ref())?;
    decide_row(&mut row, &judged, acceptance);
    let before = judged.latest.as_ref().filter(|before| before.number == row.number);
    let mut made = new_jobs(acceptance, &judged, instance.as_ref(), birth);
    if !made.is_empty() {
        // Assign the job numbers before the insert, so that the callback is written once. The callback has the job of
        // its last part: when that job is done, all parts are done.
        for (number, job) in (rows.next_job()?..).zip(&mut made) {
            job.number = number;
            row.job = Some(number);
        }
    }
    // An operator dismissed the old decision. A new decision must be shown again.
    let changes = |before: &CallbackRow| {
        let is_decided = matches!(row.disposition, Disposition::Held | Disposition::Refused);
        (before.disposition, before.job) != (row.disposition, row.job)
            || is_decided && before.reason_code != row.reason_code
    };
    if before.is_some_and(changes) {
        row.dismissed_at = None;
    }
    let is_new = row.number == 0;
    if is_new {
        row.number = rows.add_callback(&row, &acceptance.callback)?;
    }
    let added = is_new.then(|| row.clone());
    let mut accepted = Accepted {
        row,
        reported: KnownAnswer::NotYet,
        marketplace_instance_id: instance.as_ref().and_then(|row| row.marketplace_instance_id.clone()),
        taken: None,
        wakes: false,
        alert: judged.verdict.alert,
    };
    // Without a new job the answer is known now. With a job, `begin_job` sets it.
    if made.is_empty() {
        accepted.reported = tell(rows, &mut accepted, &judged, instance.as_ref(), acceptance.received_at)?;
    }
    for job in made {
        begin_job(rows, &mut accepted, job, acceptance, instance.as_ref())?;
    }
    // The marketplace is not the caller when an operator approves. It receives the result when it calls again.
    if matches!(accepted.reported, KnownAnswer::Applied(_)) && birth.heard {
        mark_reported(rows, &mut accepted.row, instance.as_ref(), acceptance)?;
    }
    if added.as_ref() != Some(&accepted.row) {
        rows.put_callback(&accepted.row)?;
    }
    Ok(accepted)
}

/// Keeps the nonce digest of a request for as long as a copy could pass for a new request, plus a grace time.
///
/// The grace time is needed because the clock may be set back. Digests older than that are deleted first, so the table
/// holds only the requests of that time. `false`: the digest is stored already, and the request is a copy.
pub(crate) fn consume(rows: &mut dyn Write, account: &str, nonce: &Nonce, now: Timestamp) -> Result<bool> {
    rows.forget_once(remembered_from(now))?;
    rows.add_once(account, &mark_of(nonce), nonce.until)
}

/// Returns true if a request is a copy of one that was accepted.
///
/// This only reads, so that a copy that comes again and again costs no write. `false` decides nothing: [`consume`] does.
pub(crate) fn is_copy(rows: &dyn Read, account: &str, nonce: &Nonce, now: Timestamp) -> Result<bool> {
    let until = rows.once_until(account, &mark_of(nonce))?;
    Ok(until.is_some_and(|until| until >= remembered_from(now)))
}

fn remembered_from(now: Timestamp) -> Timestamp {
    plus_millis(now, -limits::NONCE_GRACE_MS)
}

// Half of a SHA-256: enough to tell nonces apart.
fn mark_of(nonce: &Nonce) -> [u8; 16] {
    let mut mark = [0; 16];
    for (slot, byte) in mark.iter_mut().zip(Sha256::digest(nonce.nonce.as_bytes())) {
        *slot = byte;
    }
    mark
}

/// Returns true if a new job has no other job before it in the instance's queue.
fn is_first(judged: &Judged) -> bool {
    let ordered = judged.verdict.decision == Decision::Run;
    !ordered || judged.queue.iter().all(|(job, _)| judged.verdict.cancels.contains(&job.number))
}

pub(super) fn cancel(rows: &mut dyn Write, number: i64, by: Action, now: Timestamp) -> Result<()> {
    if let Some(mut job) = rows.job(number)? {
        // The job may be a part that was canceled together with an earlier part.
        if !job.state.is_live() {
            return Ok(());
        }
        job.note = Some(format!("superseded by a later {by}"));
        end(&mut job, schedule::JobState::Cancelled, now);
        rows.put_job(&job)?;
        end_later_parts(rows, &job, now)?;
    }
    Ok(())
}

/// Start of the note of a job that ended because an earlier part of its request ended undone.
pub(super) const LATER_PART: &str = "another part of its request,";

/// Cancels the later parts of a request after one part has ended undone.
///
/// A request of several parts is done when all of them are. The callback then has the job that ended undone, and that
/// job decides about a redelivery.
fn end_later_parts(rows: &mut dyn Write, job: &JobRow, now: Timestamp) -> Result<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    let mut has_ended_any = false;
    // Jobs of one request have increasing numbers in the order of its parts.
    for mut part in rows.queue_jobs(instance)? {
        if part.callback == job.callback && part.action != job.action && part.number > job.number {
            part.note = Some(format!("{LATER_PART} the {}, was not done", job.action));
            end(&mut part, schedule::JobState::Cancelled, now);
            rows.put_job(&part)?;
            has_ended_any = true;
        }
    }
    if has_ended_any && let Some(mut row) = rows.callback_row(job.callback)? {
        row.job = Some(job.number);
        rows.put_callback(&row)?;
    }
    Ok(())
}

pub(super) fn end(job: &mut JobRow, state: schedule::JobState, now: Timestamp) {
    job.state = state;
    job.lease_until = None;
    job.ended_at = Some(now);
}

/// Returns the instance of the callback after it is written: created, described again, or left as a tombstone.
fn settle_instance(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    judged: &Judged,
    birth: NewJob,
) -> Result<Option<InstanceRow>> {
    let callback = &acceptance.callback;
    let runs = judged.verdict.decision == Decision::Run;
    let creates = judged.runs.contains(&Action::Create);
    let begins = creates && birth.lease_until.is_some();
    let now = acceptance.received_at;
    let row = match (&judged.instance, runs || judged.verdict.leaves_tombstone) {
        (Some(row), true) => {
            let mut row = row.clone();
            if judged.verdict.leaves_tombstone {
                row.instance.state = State::Released;
            } else if creates {
                row.instance.describe(callback);
                row.instance.state = State::Pending;
                row.instance.tombstone = false;
                row.instance.began |= begins;
                name_publicly(rows, &mut row, callback)?;
            }
            row.instance.updated_at = now;
            rows.put_instance(&row)?;
            Some(row)
        }
        (None, true) => Some(new_instance(rows, acceptance, judged, begins)?),
        (known, false) => known.clone(),
    };
    // A later callback without a name may find the instance by its order id.
    if let (Some(row), Some(order), true) = (&row, callback.order_id.as_deref(), runs) {
        rows.add_order(&acceptance.account, order, row.number)?;
    }
    Ok(row)
}

/// Creates the instance. `begins`: its create job starts at once.
fn new_instance(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    judged: &Judged,
    begins: bool,
) -> Result<InstanceRow> {
    let callback = &acceptance.callback;
    let begin = match callback.action {
        Action::Create | Action::Release if !callback.externally_provisioned => Instance::pending,
        _ => Instance::adopted,
    };
    let mut instance = begin(callback, &acceptance.account, &acceptance.endpoint, acceptance.received_at);
    // A release of an unknown instance leaves a tombstone. A create that comes after it is then held.
    if judged.verdict.leaves_tombstone {
        instance.state = State::Released;
        instance.tombstone = true;
    }
    instance.began |= begins;
    let number = rows.add_instance(&instance)?;
    for name in callback.subject.names() {
        rows.add_name(&acceptance.account, name, number)?;
    }
    let mut row =
        InstanceRow { number, created_by: None, marketplace_instance_id: None, known_as: None, instance };
    name_publicly(rows, &mut row, callback)?;
    if row.marketplace_instance_id.is_some() {
        rows.put_instance(&row)?;
    }
    Ok(row)
}

/// Gives an instance the id that its marketplace wants to use. The first such id stays for good.
///
/// An id that another instance already has is not used. Then the instance's own id is reported.
fn name_publicly(rows: &mut dyn Write, row: &mut InstanceRow, callback: &Callback) -> Result<()> {
    if let (Action::Create, Some(id), None) =
        (callback.action, &callback.marketplace_instance_id, &row.marketplace_instance_id)
        && rows.add_name(&row.instance.account, id, row.number)?
    {
        row.marketplace_instance_id = Some(id.clone());
    }
    Ok(())
}

/// Returns the row on which this delivery is counted: of the open callback, of the repeated one, or a new row.
fn callback_row(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    judged: &Judged,
    instance: Option<&InstanceRow>,
) -> Result<CallbackRow> {
    let repeats = matches!(
        judged.verdict.decision,
        Decision::Repeat | Decision::Join(_) | Decision::Record | Decision::Refuse(Reason::SignOnUsed)
    );
    let number = instance.map(|row| row.number);
    // A callback that was refused without an instance keeps its row. A create that runs now gets another one.
    let elsewhere = |row: &CallbackRow| {
        let is_under_another_key = judged.runs.contains(&Action::Create)
            && row.deduplication_key != key_of(acceptance, &acceptance.callback, judged.instance.as_ref());
        judged.verdict.decision == Decision::Run && (row.instance != number || is_under_another_key)
    };
    let counted = judged.latest.as_ref().filter(|row| row.reported_at.is_none() || repeats);
    if let Some(row) = counted.filter(|row| !elsewhere(row))
        && (judged.runs.is_empty() || may_run_again(rows, row, judged, acceptance)?)
    {
        let mut row = row.clone();
        if !acceptance.approved {
            row.deliveries += 1;
            row.last_received_at = acceptance.received_at;
        }
        return Ok(row);
    }
    // A create that runs owns the instance, so its key is built from the instance.
    let is_made_now = judged.instance.is_none() && instance.is_some();
    let key = match is_made_now || judged.runs.contains(&Action::Create) {
        true => key_of(acceptance, &acceptance.callback, instance),
        false => judged.key,
    };
    Ok(new_callback_row(acceptance, key, instance))
}

/// Returns true if a new job may belong to this row.
///
/// A callback that was carried out stays as it is: what runs now is another callback. An idempotency key stands for one
/// payload, so a row that had a job takes no other payload. A row that had no job takes the latest payload.
fn may_run_again(
    rows: &mut dyn Write,
    row: &CallbackRow,
    judged: &Judged,
    acceptance: &Acceptance,
) -> Result<bool> {
    if judged.job.as_ref().is_some_and(|job| job.state == schedule::JobState::Done || job.state.is_live()) {
        return Ok(false);
    }
    let body = match rows.callback(row.number) {
        Ok(Some((_, body))) => body,
        // An unreadable body stays as it is, so that an operator can examine it.
        Ok(None) | Err(StoreError::Unreadable(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    if body.asks_the_same(&acceptance.callback) {
        return Ok(true);
    }
    if row.job.is_some() {
        return Ok(false);
    }
    rows.put_body(row.number, &acceptance.callback)?;
    Ok(true)
}

fn new_callback_row(acceptance: &Acceptance, key: [u8; 16], instance: Option<&InstanceRow>) -> CallbackRow {
    let number = instance.map(|row| row.number);
    CallbackRow {
        number: 0,
        account: acceptance.account.clone(),
        endpoint: acceptance.endpoint.clone(),
        key_label: acceptance.key_label.clone(),
        deduplication_key: key,
        instance: number,
        job: None,
        action: acceptance.callback.action,
        disposition: Disposition::Recorded,
        reason_code: None,
        reason: None,
        received_at: acceptance.received_at,
        last_received_at: acceptance.received_at,
        deliveries: u64::from(!acceptance.approved),
        delivery_limit: acceptance.delivery_limit,
        reported_at: None,
        dismissed_at: None,
    }
}

/// Writes the decision into the row. A row with a reported result is history: it only gets a missing notice.
fn decide_row(row: &mut CallbackRow, judged: &Judged, acceptance: &Acceptance) {
    let decision = &judged.verdict.decision;
    if row.reported_at.is_some() {
        if let (Some(notice), None) = (&judged.verdict.notice, &row.reason_code) {
            row.reason_code = Some(notice.code().to_owned());
            row.reason = Some(notice.to_string());
        }
        return;
    }
    // A settled callback keeps its reason code until its success has been reported.
    if *decision == Decision::Repeat && row.reason_code.as_deref() == Some(SETTLED) {
        return;
    }
    let reason = match decision {
        Decision::Refuse(reason) | Decision::Hold(reason) => Some(reason),
        _ => judged.verdict.notice.as_ref(),
    };
    row.disposition = match decision {
        Decision::Run | Decision::RunBeside { .. } | Decision::Join(_) => Disposition::Job,
        // The refusal of a hook is stored in its job.
        Decision::Refuse(Reason::Hook(_)) => row.disposition,
        // Carried out, but the result has not been reported yet.
        Decision::Repeat if row.disposition == Disposition::Job && is_done(judged) => Disposition::Job,
        Decision::Record | Decision::Repeat => Disposition::Recorded,
        Decision::Refuse(_) => Disposition::Refused,
        Decision::Hold(_) => Disposition::Held,
    };
    row.reason_code = reason.map(|reason| reason.code().to_owned());
    row.reason = reason.map(Reason::to_string);
    if let Decision::Join(job) = decision {
        row.job = Some(*job);
    }
    if *decision == (Decision::RunBeside { reported: true }) && !acceptance.approved {
        row.reported_at = Some(acceptance.received_at);
    }
}

fn is_done(judged: &Judged) -> bool {
    judged.job.as_ref().is_some_and(|job| job.state == schedule::JobState::Done)
}

/// Returns the jobs of a request in order, one for each part that runs. The first may be created in state running.
fn new_jobs(
    acceptance: &Acceptance,
    judged: &Judged,
    instance: Option<&InstanceRow>,
    birth: NewJob,
) -> Vec<JobRow> {
    let ordered = judged.verdict.decision == Decision::Run;
    let now = acceptance.received_at;
    let job = |(position, action): (usize, &Action)| {
        let lease_until = birth.lease_until.filter(|_| position == 0);
        JobRow {
            number: 0,
            id: id_of_part(birth.id, position),
            callback: 0,
            instance: instance.map(|row| row.number),
            ordered,
            action: *action,
            state: if lease_until.is_some() {
                schedule::JobState::Running
            } else {
                schedule::JobState::Queued
            },
            attempts: u32::from(lease_until.is_some()),
            step: 0,
            extra: Extra::No,
            due_at: now,
            lease_until,
            attempted_at: None,
            note: None,
            answer: None,
            sealed: None,
            proposed_id: None,
            created_at: now,
            ended_at: None,
        }
    };
    judged.runs.iter().enumerate().map(job).collect()
}

/// Returns the part of the callback that this job is for. The hook receives only that part.
fn part_for(job: &JobRow, callback: Arc<Callback>) -> Arc<Callback> {
    if job.action == callback.action && callback.also.is_empty() {
        return callback;
    }
    Arc::new(callback.part(job.action))
}

fn begin_job(
    rows: &mut dyn Write,
    accepted: &mut Accepted,
    mut job: JobRow,
    acceptance: &Acceptance,
    instance: Option<&InstanceRow>,
) -> Result<()> {
    job.callback = accepted.row.number;
    // The callback row already names this number, so another number would break the reference.
    if rows.add_job(&job)? != job.number {
        return Err(StoreError::Inconsistent("the number of a new job is not the expected one"));
    }
    accepted.reported = match accepted.row.reported_at {
        Some(_) => KnownAnswer::Applied(Box::default()),
        None => KnownAnswer::Wait(job.number),
    };
    if job.state != schedule::JobState::Running {
        accepted.wakes |= accepted.taken.is_none();
        return Ok(());
    }
    accepted.taken = Some(Box::new(LeasedJob {
        callback: part_for(&job, acceptance.callback.clone()),
        job,
        origin: accepted.row.clone(),
        instance: instance.map(|row| row.instance.clone()),
    }));
    Ok(())
}

/// Marks the instance at its first create attempt. From then on the ISV's side may hold something for it.
fn note_began(rows: &mut dyn Write, job: &JobRow, instance: Option<&mut InstanceRow>) -> Result<()> {
    match instance {
        Some(row) if job.action == Action::Create && !row.instance.began => {
            row.instance.began = true;
            rows.put_instance(row)
        }
        _ => Ok(()),
    }
}

/// Returns the answer to a callback that made no job of its own.
fn tell(
    rows: &mut dyn Write,
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
        Decision::Record => KnownAnswer::Applied(Box::new(Stored { instance_id: id, ..Stored::default() })),
        Decision::Refuse(Reason::NotReady) => refused_create(rows, instance)?,
        Decision::Refuse(reason) => KnownAnswer::Refused(reason.code(), reason.sentence()),
        Decision::Hold(reason) => KnownAnswer::Held(reason.sentence()),
        Decision::Run | Decision::RunBeside { .. } => KnownAnswer::NotYet,
    })
}

/// Returns the answer about an instance that does not exist yet, or the refusal of the hook that did not create it.
fn refused_create(rows: &dyn Read, instance: Option<&InstanceRow>) -> Result<KnownAnswer> {
    let not_ready = KnownAnswer::Refused(Reason::NotReady.code(), Reason::NotReady.sentence());
    let Some(row) = instance else { return Ok(not_ready) };
    let filter =
        Filter { instance: Some(row.number), limit: limits::LIST_DEFAULT_COUNT, ..Filter::default() };
    let mut jobs = rows.list_jobs(&filter)?.into_iter();
    let create = jobs.find(|job| job.action == Action::Create && job.state == schedule::JobState::Refused);
    let waits = rows.has_queue(row.number)?;
    Ok(match create.filter(|_| !waits) {
        Some(job) => KnownAnswer::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        None => not_ready,
    })
}

/// Joins a job. A queued or dead job is brought forward.
fn join(
    rows: &mut dyn Write,
    accepted: &mut Accepted,
    number: i64,
    instance: Option<&InstanceRow>,
    now: Timestamp,
) -> Result<KnownAnswer> {
    let job = rows.job(number)?.ok_or(StoreError::Inconsistent("a callback's job is missing"))?;
    Ok(match job.state {
        schedule::JobState::Done => {
            KnownAnswer::Applied(Box::new(answer_of(&job, instance, accepted.row.reported_at)))
        }
        schedule::JobState::Running => KnownAnswer::Wait(number),
        schedule::JobState::Queued | schedule::JobState::Dead => {
            // The parts of a request run in order, so bring forward the first one that has not ended.
            let first = first_part(rows, &job)?;
            accepted.wakes = match first.state {
                schedule::JobState::Queued | schedule::JobState::Dead => bring_forward(rows, first, now)?,
                _ => false,
            };
            KnownAnswer::Wait(number)
        }
        schedule::JobState::Held => KnownAnswer::Held(HELD.to_owned()),
        schedule::JobState::Refused => KnownAnswer::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        schedule::JobState::Pending | schedule::JobState::Dropped | schedule::JobState::Cancelled => {
            KnownAnswer::NotYet
        }
    })
}

/// Returns the first job of the same request that has not ended. It must end before this job can begin.
fn first_part(rows: &dyn Read, job: &JobRow) -> Result<JobRow> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(job.clone()) };
    let mut parts = rows.queue_jobs(instance)?.into_iter();
    Ok(parts.find(|part| part.callback == job.callback).unwrap_or_else(|| job.clone()))
}

fn bring_forward(rows: &mut dyn Write, mut job: JobRow, now: Timestamp) -> Result<bool> {
    let due = schedule::forward_due(job.attempted_at, now);
    // A job without an attempt is due at once. A later due time comes from a postponement, or from a clock set back.
    let is_untried = job.state == schedule::JobState::Queued && job.attempts == 0;
    if is_untried && job.due_at > now {
        job.due_at = now;
        rows.put_job(&job)?;
        return Ok(true);
    }
    if is_untried || job.state == schedule::JobState::Queued && job.due_at <= due {
        return Ok(false);
    }
    // The attempt is unscheduled. A job that was dead stays marked, so that another failure makes it dead again.
    job.extra = match job.state {
        schedule::JobState::Dead => Extra::Dead,
        _ if job.extra == Extra::Dead => Extra::Dead,
        _ => Extra::Waiting,
    };
    job.state = schedule::JobState::Queued;
    job.due_at = due;
    rows.put_job(&job)?;
    Ok(true)
}

/// Returns the answer to repeat. `job` is the callback's own job, which has been read already.
fn stored_answer(
    rows: &dyn Read,
    row: &CallbackRow,
    instance: Option<&InstanceRow>,
    job: Option<&JobRow>,
) -> Result<Stored> {
    if matches!(row.action, Action::Create | Action::Query) {
        return create_answer(rows, row, instance, job);
    }
    // A job without an answer can be pruned. So a missing job had nothing to repeat.
    Ok(match row.job.and(job) {
        Some(job) if job.state == schedule::JobState::Done => answer_of(job, instance, row.reported_at),
        Some(_) => Stored::default(),
        None => Stored { instance_id: instance.and_then(InstanceRow::reported_id), ..Stored::default() },
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
) -> Result<Stored> {
    let Some(instance) = instance else { return Ok(Stored::default()) };
    let id_only = Stored { instance_id: instance.reported_id(), ..Stored::default() };
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
        return Ok(Stored { open, ..id_only });
    }
    let reported_at = match job.callback == row.number {
        true => row.reported_at,
        false => rows.callback_row(job.callback)?.and_then(|creating| creating.reported_at),
    };
    Ok(answer_of(job, Some(instance), reported_at))
}

fn answer_of(job: &JobRow, instance: Option<&InstanceRow>, reported_at: Option<Timestamp>) -> Stored {
    Stored {
        instance_id: instance.and_then(InstanceRow::reported_id),
        open: job.answer.clone(),
        sealed: job.sealed.clone(),
        sealed_for: Some(job.id),
        reported_at,
    }
}

/// Records that success is reported now. A query that receives the create's answer counts as a report of the create.
fn mark_reported(
    rows: &mut dyn Write,
    row: &mut CallbackRow,
    instance: Option<&InstanceRow>,
    acceptance: &Acceptance,
) -> Result<()> {
    let now = acceptance.received_at;
    row.reported_at = row.reported_at.or(Some(now));
    if row.action != Action::Query {
        return Ok(());
    }
    let created_by = instance.and_then(|row| row.created_by);
    let Some(job) = created_by.map(|number| rows.job(number)).transpose()?.flatten() else { return Ok(()) };
    if let Some(mut create) = rows.callback_row(job.callback)? {
        create.reported_at = create.reported_at.or(Some(now));
        rows.put_callback(&create)?;
    }
    Ok(())
}

/// Ends the leases that have run out, and returns these jobs to the queue.
///
/// The (job, attempt) pairs in `held` are left out, because the caller still runs them. Their lease can only have ended
/// because the clock jumped or the disk was full.
pub(crate) fn end_leases(
    rows: &mut dyn Write,
    held: &[(i64, u32)],
    schedules: &Schedules,
    now: Timestamp,
) -> Result<Recovered> {
    recover(rows, schedules, now, Some(now), |job| !held.contains(&(job.number, job.attempts)))
}

/// Leases up to `limit` due jobs, each the first in its instance's queue, and counts an attempt on each.
///
/// Returns the leased jobs, and the number of jobs that `postpone` put off.
pub(crate) fn take(
    rows: &mut dyn Write,
    limit: usize,
    postpone: Option<&Postpone>,
    lease_until: Timestamp,
    now: Timestamp,
    aside: &mut Vec<Aside>,
) -> Result<(Vec<LeasedJob>, usize)> {
    let (mut taken, mut postponed) = (Vec::new(), 0);
    // The second condition bounds the transaction if many jobs are postponed or unreadable.
    while taken.len() < limit && postponed + aside.len() < limits::JOBS_POSTPONED_MAX_COUNT {
        let due = rows.due(now, limit - taken.len())?;
        if due.is_empty() {
            break;
        }
        // Jobs that are leased, postponed or held are not due any more, so the loop makes progress.
        for job in due {
            let (number, job) = numbered(job);
            match job.and_then(|job| take_one(rows, job, postpone, lease_until, now)) {
                Ok(Some(job)) => taken.push(job),
                Ok(None) => postponed += 1,
                // An unreadable row must not stop the other jobs.
                Err(StoreError::Unreadable(unreadable)) => {
                    aside.push(put_aside(rows, number, *unreadable, now)?);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((taken, postponed))
}

/// A job that was not leased because its row, its callback's row or its instance's row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Number of the job.
    pub job: i64,
    /// The row. If a newer spid may have written it, the job is left as it is. Otherwise the job is held.
    pub unreadable: Unreadable,
}

impl Aside {
    /// Logs the job. Counts an alert if an operator must look at it.
    pub(crate) fn log(&self, metrics: &Metrics) {
        let Aside { job, unreadable } = self;
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
    pub(crate) aside: Vec<Aside>,
}

fn numbered(job: Readable) -> (i64, Result<JobRow>) {
    match job {
        Ok(job) => (job.number, Ok(job)),
        Err((number, unreadable)) => (number, Err(StoreError::Unreadable(unreadable))),
    }
}

/// Holds a job that cannot be read. A job of a newer spid is postponed instead, and read again later.
fn put_aside(rows: &mut dyn Write, job: i64, unreadable: Unreadable, now: Timestamp) -> Result<Aside> {
    if unreadable.newer {
        rows.put_off(job, plus_millis(now, limits::NEWER_PAUSE_MS))?;
    } else {
        rows.put_aside(job, &format!("{unreadable}; repair the row, then retry the job"))?;
    }
    Ok(Aside { job, unreadable })
}

/// Leases one job. `None`: the job was postponed.
fn take_one(
    rows: &mut dyn Write,
    mut job: JobRow,
    postpone: Option<&Postpone>,
    lease_until: Timestamp,
    now: Timestamp,
) -> Result<Option<LeasedJob>> {
    let (origin, callback) = callback_of(rows, &job)?;
    let mut instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
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
    job.state = schedule::JobState::Running;
    job.attempts += 1;
    job.lease_until = Some(lease_until);
    rows.put_job(&job)?;
    note_began(rows, &job, instance.as_mut())?;
    let callback = part_for(&job, Arc::new(callback));
    Ok(Some(LeasedJob { job, callback, origin, instance: instance.map(|row| row.instance) }))
}

/// Returns running jobs to the queue: those whose lease ended before an instant, or all of them.
///
/// Of these jobs only those are returned for which `lost` is true.
pub(crate) fn recover(
    rows: &mut dyn Write,
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
                    recovered.aside.push(put_aside(rows, number, *unreadable, now)?);
                }
                Err(error) => return Err(error),
            },
        }
    }
    Ok(recovered)
}

fn give_back(rows: &mut dyn Write, schedules: &Schedules, mut job: JobRow, now: Timestamp) -> Result<()> {
    note_attempt(rows, &job, "lost", "the daemon stopped, or the lease ran out", now)?;
    // The browser that waited has gone, so a sign-on is not tried again.
    if job.action == Action::SignOn {
        job.note = Some("the daemon stopped while the browser waited".to_owned());
        end(&mut job, schedule::JobState::Dropped, now);
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

/// Returns the callback of a job.
fn callback_of(rows: &dyn Read, job: &JobRow) -> Result<(CallbackRow, Callback)> {
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
fn wants_of(rows: &dyn Read, job: &JobRow) -> Result<Option<Wants>> {
    match callback_of(rows, job) {
        Ok((_, callback)) => Ok(Some(Wants::of(&callback))),
        Err(StoreError::Unreadable(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the retry schedule of this job by the rows as they are now.
fn schedule_of(rows: &dyn Read, job: &JobRow, schedules: &Schedules) -> Result<Schedule> {
    // Only a chosen schedule needs these rows, so do not read them for the usual one.
    if schedules.chosen.is_none() {
        return Ok(schedules.usual.clone());
    }
    let (origin, callback) = callback_of(rows, job)?;
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    Ok(schedules.of(&Retrying {
        endpoint: &origin.endpoint,
        account: &origin.account,
        callback: &callback,
        instance: instance.as_ref().map(|row| &row.instance),
    }))
}

fn note_attempt(rows: &mut dyn Write, job: &JobRow, ending: &str, note: &str, now: Timestamp) -> Result<()> {
    rows.add_attempt(&AttemptRow {
        job: job.number,
        attempt: job.attempts,
        ended_at: now,
        ending: ending.to_owned(),
        note: note.to_owned(),
    })
}

fn follow(job: &mut JobRow, next: Next, note: String, now: Timestamp) {
    job.lease_until = None;
    job.attempted_at = Some(now);
    job.note = Some(note);
    match next {
        Next::Wait { due_at, progress } => {
            job.state = schedule::JobState::Queued;
            job.due_at = due_at;
            job.step = progress.step;
            job.extra = progress.extra;
        }
        Next::Dead => {
            job.state = schedule::JobState::Dead;
            job.extra = Extra::No;
        }
    }
}

/// Keeps the order details of a job's callback that an attempt has looked up. A create also describes its instance.
///
/// `None`: the attempt has lost its lease, and nothing was changed.
pub(crate) fn add_order_details(
    rows: &mut dyn Write,
    (number, attempt): (i64, u32),
    callback: &Callback,
    now: Timestamp,
) -> Result<Option<Instance>> {
    let Some(job) = running_attempt(rows, number, attempt)? else { return Ok(None) };
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let mut row = instance.ok_or(StoreError::Inconsistent("a job's instance is missing"))?;
    let (_, whole) =
        rows.callback(job.callback)?.ok_or(StoreError::Inconsistent("a job's callback is missing"))?;
    rows.put_body(job.callback, &whole.with_part(callback))?;
    if job.action == Action::Create {
        row.instance.describe(callback);
        row.instance.updated_at = now;
        rows.put_instance(&row)?;
    }
    Ok(Some(row.instance))
}

/// Extends the leases of these attempts. Attempts that are no longer the job's last one are skipped.
pub(crate) fn extend(rows: &mut dyn Write, held: &[(i64, u32)], until: Timestamp) -> Result<()> {
    for (number, attempt) in held {
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
fn running_attempt(rows: &dyn Read, number: i64, attempt: u32) -> Result<Option<JobRow>> {
    let job = rows.job(number)?;
    Ok(job.filter(|job| job.state == schedule::JobState::Running && job.attempts == attempt))
}

/// Records the end of an attempt. `reported` are the callbacks whose waiters receive the outcome with this commit.
///
/// If a row that this needs cannot be read, the job is held with its answer, because the hook has done its work.
pub(crate) fn finish(rows: &mut dyn Write, finish: &Finish, reported: &[i64]) -> Result<Finished> {
    match end_attempt(rows, finish, reported) {
        Err(StoreError::Unreadable(unreadable)) => hold_ended(rows, finish, &unreadable),
        ended => ended,
    }
}

fn hold_ended(rows: &mut dyn Write, finish: &Finish, unreadable: &Unreadable) -> Result<Finished> {
    let note = match &finish.ending {
        AttemptEnd::Done { .. } => {
            format!("the hook has succeeded, but {unreadable}; repair the row, then retry the job")
        }
        _ => format!("{unreadable}; repair the row, then retry the job"),
    };
    match rows.job(finish.job) {
        Ok(Some(mut job)) => {
            if let AttemptEnd::Done { open, sealed, .. } = &finish.ending {
                (job.answer, job.sealed) = (open.clone(), sealed.clone());
            }
            job.attempted_at = Some(finish.now);
            job.state = schedule::JobState::Held;
            job.lease_until = None;
            job.note = Some(note.clone());
            rows.put_job(&job)?;
        }
        Ok(None) | Err(StoreError::Unreadable(_)) => rows.put_aside(finish.job, &note)?,
        Err(error) => return Err(error),
    }
    let reported = KnownAnswer::Held(HELD.to_owned());
    Ok(Finished::Kept { state: schedule::JobState::Held, reported, note: Some(note), wakes: false })
}

fn end_attempt(rows: &mut dyn Write, finish: &Finish, reported: &[i64]) -> Result<Finished> {
    // The lease was lost. Keep only the id that the hook chose.
    let Some(mut job) = running_attempt(rows, finish.job, finish.attempt)? else {
        remember_id(rows, finish)?;
        return Ok(Finished::Fenced);
    };
    job.attempted_at = Some(finish.now);
    let kept = match &finish.ending {
        AttemptEnd::Done { instance_id, open, sealed } => {
            job.answer = open.clone();
            job.sealed = sealed.clone();
            complete(rows, &mut job, finish.callback.as_deref(), instance_id.as_deref(), finish.now)?
        }
        // The browser has gone. The next sign-on is a new request.
        AttemptEnd::Retry { error: note, .. } | AttemptEnd::Pending { note }
            if job.action == Action::SignOn =>
        {
            job.note = Some(note.clone());
            end(&mut job, schedule::JobState::Dropped, finish.now);
            KnownAnswer::NotYet
        }
        AttemptEnd::Retry { error, after_ms } => {
            note_attempt(rows, &job, "retry", error, finish.now)?;
            let progress = Progress { step: job.step, extra: job.extra };
            let schedule = schedule_of(rows, &job, &finish.schedules)?;
            let next = schedule.failed(job.id, progress, *after_ms, finish.now);
            follow(&mut job, next, error.clone(), finish.now);
            KnownAnswer::NotYet
        }
        AttemptEnd::Refused { reason } => {
            job.note = Some(reason.clone());
            end(&mut job, schedule::JobState::Refused, finish.now);
            KnownAnswer::Refused(Reason::HOOK, reason.clone())
        }
        AttemptEnd::Pending { note } => {
            job.note = Some(note.clone());
            job.state = schedule::JobState::Pending;
            job.lease_until = None;
            KnownAnswer::NotYet
        }
        // Our own stop, not a failure of the hook: no retry is spent.
        AttemptEnd::GivenBack => {
            job.state = schedule::JobState::Queued;
            job.lease_until = None;
            job.due_at = finish.now;
            KnownAnswer::NotYet
        }
    };
    // Queued jobs of the instance may be canceled by this end. Do it before the job is written.
    settle_queue_after(rows, &mut job, finish.now)?;
    rows.put_job(&job)?;
    // In the commit that makes the result true, record it as reported to the callers that still wait.
    if matches!(kept, KnownAnswer::Applied(_)) {
        tell_waiting(rows, reported, finish.now)?;
    }
    let wakes = job.state == schedule::JobState::Queued || is_followed(rows, &job)?;
    Ok(Finished::Kept { state: job.state, reported: kept, note: job.note, wakes })
}

fn is_followed(rows: &dyn Read, job: &JobRow) -> Result<bool> {
    match job.instance.filter(|_| job.ordered) {
        Some(instance) => rows.has_queue(instance),
        None => Ok(false),
    }
}

/// Keeps the id of a late answer. The answer is not used, but a later attempt must not give the instance another id.
fn remember_id(rows: &mut dyn Write, finish: &Finish) -> Result<()> {
    let AttemptEnd::Done { instance_id, .. } = &finish.ending else { return Ok(()) };
    match rows.job(finish.job)? {
        Some(mut job) if job.action == Action::Create && job.state.is_live() && job.proposed_id.is_none() => {
            let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
            let default = instance.and_then(|row| row.marketplace_instance_id.or(row.instance.order_biz_id));
            job.proposed_id = instance_id.clone().or(default);
            rows.put_job(&job)
        }
        _ => Ok(()),
    }
}

fn tell_waiting(rows: &mut dyn Write, reported: &[i64], now: Timestamp) -> Result<()> {
    reported.iter().try_for_each(|number| rows.put_reported(*number, now))
}

/// Applies the result of the hook to the instance. A create with an unusable id is held instead.
///
/// `asked` is the job's callback, if the caller has it in memory.
pub(super) fn complete(
    rows: &mut dyn Write,
    job: &mut JobRow,
    asked: Option<&Callback>,
    id: Option<&str>,
    now: Timestamp,
) -> Result<KnownAnswer> {
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    // A job outside the instance's queue, for example a sign-on, changes no instance.
    let (Some(mut row), true) = (instance.clone(), job.ordered) else {
        end(job, schedule::JobState::Done, now);
        return Ok(KnownAnswer::Applied(Box::new(answer_of(job, instance.as_ref(), None))));
    };
    if job.action == Action::Create {
        if let Some(trouble) = name_instance(rows, job, &mut row, id)? {
            job.state = schedule::JobState::Held;
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
    rows.put_instance(&row)?;
    end(job, schedule::JobState::Done, now);
    job.note = None;
    Ok(KnownAnswer::Applied(Box::new(answer_of(job, Some(&row), None))))
}

/// Names the instance: by the hook's id, else the marketplace's id, else the `orderBizId`. Returns the fault of the id.
fn name_instance(
    rows: &mut dyn Write,
    job: &mut JobRow,
    row: &mut InstanceRow,
    answer_id: Option<&str>,
) -> Result<Option<String>> {
    let given = row.marketplace_instance_id.as_deref().or(row.instance.order_biz_id.as_deref());
    let Some(id) = answer_id.or(given).map(str::to_owned) else {
        return Ok(Some(
            "the instance has no id: the answer has none, and the marketplace gave none".to_owned(),
        ));
    };
    // The marketplace's own id is used as it is. A paid order must not fail for its spelling.
    let fault = if answer_id.is_some() { fault_of_id(&id) } else { fault_of_any_id(&id) };
    if let Some(fault) = fault {
        return Ok(Some(format!("the id in the answer cannot be used: {fault}")));
    }
    // An earlier attempt may have created a resource under its id, so a second id is a fault.
    if let Some(before) = job.proposed_id.as_ref().filter(|before| **before != id) {
        return Ok(Some(format!("the id in the answer is `{id}`, but an earlier attempt gave `{before}`")));
    }
    if !rows.add_name(&row.instance.account, &id, row.number)? {
        return Ok(Some(format!("the id in the answer, `{id}`, belongs to another instance")));
    }
    job.proposed_id = Some(id.clone());
    row.instance.id = Some(id);
    Ok(None)
}

/// Applies the end of a job to the rest of the instance's queue.
///
/// * If a release is queued, the job is canceled and not tried again.
/// * A dead job is canceled if a later job supersedes it.
/// * If a create ends undone, every other job except a release is canceled.
pub(super) fn settle_queue_after(rows: &mut dyn Write, job: &mut JobRow, now: Timestamp) -> Result<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    if job.state == schedule::JobState::Done || job.state == schedule::JobState::Running {
        return Ok(());
    }
    let queue = rows.queue_jobs(instance)?;
    let releasing = queue.iter().any(|other| other.action == Action::Release && other.number != job.number);
    let mut behind = queue.iter().filter(|other| other.number > job.number);
    let wanted = match job.state {
        schedule::JobState::Dead => wants_of(rows, job)?,
        _ => None,
    };
    let superseded = wanted.is_some_and(|wanted| {
        behind.any(|other| lifecycle::supersedes(other.action, job.action, &wanted, now))
    });
    if releasing && job.state.is_live() {
        job.note = Some("superseded by a later release".to_owned());
        end(job, schedule::JobState::Cancelled, now);
    } else if superseded && job.state == schedule::JobState::Dead {
        job.note = Some("dead, and superseded by a later job".to_owned());
        end(job, schedule::JobState::Cancelled, now);
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

fn cancel_behind(rows: &mut dyn Write, mut job: JobRow, now: Timestamp) -> Result<()> {
    job.note = Some("its instance was not created".to_owned());
    end(&mut job, schedule::JobState::Cancelled, now);
    rows.put_job(&job)
}

/// Adds deliveries that were answered without a write.
pub(crate) fn count(rows: &mut dyn Write, counts: &[(i64, u64, Timestamp)]) -> Result<()> {
    for (number, deliveries, last) in counts {
        match rows.callback_row(*number) {
            Ok(Some(mut row)) => {
                row.deliveries += deliveries;
                row.last_received_at = row.last_received_at.max(*last);
                rows.put_callback(&row)?;
            }
            // An unreadable row must not cost the other callbacks their counts.
            Ok(None) | Err(StoreError::Unreadable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
