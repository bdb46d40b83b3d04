//! Attention list: everything that needs a person, the soonest deadline first.
//!
//! It lists refused orders, dead or held work, and results that were not reported.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::rows::{CallbackRow, Disposition, Filter, JobRow};
use super::rules::REJECTED;
use super::{Reader, StoreError, ViewError};
use crate::observe::limits;
use spid_core::dialect;
use spid_core::dialect::GivesUp;
use spid_core::lifecycle;
use spid_core::lifecycle::Reason;
use spid_core::lifecycle::schedule;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::time::plus_millis;

/// Reason why a callback or a job needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionReason {
    /// A callback or a job waits for a decision.
    Held,
    /// A job has used up its retry schedule.
    Dead,
    /// A person has to finish the job, or it has been tried without success for long.
    Pending,
    /// The hook or a rule refused an order of a buyer.
    Refused,
    /// The callback is about an instance that was never created or imported here.
    UnknownInstance,
    /// A later callback ended the job before it ran, though it was paid for.
    Superseded,
    /// The job is done, and the marketplace has not called again for the result.
    Unreported,
    /// The marketplace has used up half of its deliveries.
    Deliveries,
    /// A purchase was repeated with other values. No hook ran for these values.
    OtherValues,
}

impl AttentionReason {
    /// Every reason.
    pub const ALL: [AttentionReason; 9] = [
        AttentionReason::Held,
        AttentionReason::Dead,
        AttentionReason::Pending,
        AttentionReason::Refused,
        AttentionReason::UnknownInstance,
        AttentionReason::Superseded,
        AttentionReason::Unreported,
        AttentionReason::Deliveries,
        AttentionReason::OtherValues,
    ];

    /// Returns the word for the reason in JSON, in metrics and in lists.
    pub const fn as_str(self) -> &'static str {
        match self {
            AttentionReason::Held => "held",
            AttentionReason::Dead => "dead",
            AttentionReason::Pending => "pending",
            AttentionReason::Refused => "refused",
            AttentionReason::UnknownInstance => "unknown-instance",
            AttentionReason::Superseded => "superseded",
            AttentionReason::Unreported => "unreported",
            AttentionReason::Deliveries => "deliveries",
            AttentionReason::OtherValues => "other-values",
        }
    }

    /// Returns true if only a solution takes the item off the list. Such an item cannot be dismissed.
    const fn waits(self) -> bool {
        matches!(self, AttentionReason::Held | AttentionReason::Dead | AttentionReason::Pending)
    }
}

/// An item of the attention list.
#[derive(Debug, Clone, Serialize)]
pub struct AttentionItem {
    /// The reason.
    pub reason: AttentionReason,
    /// Number of the callback.
    pub callback: i64,
    /// Id of the job, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// Account of the callback.
    pub account: String,
    /// Name of the endpoint that the callback came through.
    pub endpoint: String,
    /// A name of the instance, or the name that the callback uses.
    pub instance: Option<String>,
    /// Order id of the marketplace.
    pub order: Option<String>,
    /// Account of the buyer at the marketplace.
    pub buyer: Option<String>,
    /// The requested action.
    pub action: Action,
    /// Number of deliveries by the marketplace.
    pub deliveries: u64,
    /// Delivery limit: the marketplace gives up after this many deliveries. `None`: not counted.
    pub delivery_limit: Option<u32>,
    /// Time since which the item needs a person.
    pub since: Timestamp,
    /// Time at which the marketplace gives up, if the dialect knows it.
    pub deadline: Option<Timestamp>,
    /// Reaction of the marketplace after it has given up.
    pub then: Option<&'static str>,
    /// The hook's words, or the rule.
    pub detail: String,
    /// Next step for an operator.
    pub todo: String,
    /// True if an operator can dismiss the item without doing anything else.
    #[serde(skip)]
    pub may_be_dismissed: bool,
}

/// The attention list, and the number of items that it leaves out.
#[derive(Debug, Clone, Serialize)]
pub struct Attention {
    /// The items, the soonest deadline first, then the oldest.
    pub items: Vec<AttentionItem>,
    /// Number of items that were left out.
    pub left_out: usize,
}

/// A callback that needs a person, before it is described.
struct Found {
    reason: AttentionReason,
    /// Row of the callback. `None`: it cannot be read; then there is a job, and its note gives the reason.
    row: Option<CallbackRow>,
    job: Option<JobRow>,
    since: Timestamp,
}

impl Reader {
    /// Returns everything that needs a person, at most `limit` items.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn attention(&self, now: Timestamp, limit: usize) -> Result<Attention, StoreError> {
        let mut items = Vec::new();
        for found in self.in_need(now)? {
            items.extend(self.describe(found)?);
        }
        let order =
            |item: &AttentionItem| (item.deadline.is_none(), item.deadline, item.since, item.callback);
        items.sort_by_key(order);
        // Cut after sorting, so that the most urgent items are shown.
        let left_out = items.len().saturating_sub(limit);
        items.truncate(limit);
        Ok(Attention { items, left_out })
    }

    /// Returns the number of items by reason. Every reason has an entry, also with 0.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn attention_counts(&self, now: Timestamp) -> Result<BTreeMap<AttentionReason, u64>, StoreError> {
        let mut counts: BTreeMap<_, u64> = AttentionReason::ALL.map(|reason| (reason, 0)).into();
        for found in self.in_need(now)? {
            *counts.entry(found.reason).or_default() += 1;
        }
        Ok(counts)
    }

    fn in_need(&self, now: Timestamp) -> Result<Vec<Found>, StoreError> {
        let mut all = Vec::new();
        let mut seen = BTreeSet::new();
        let states = vec![schedule::JobState::Held, schedule::JobState::Dead, schedule::JobState::Pending];
        // Jobs first: a job that waits is shown once, with the state of the job and not of its callback.
        for job in self.jobs(&Filter { jobs: states, limit: usize::MAX, ..Filter::default() })? {
            let row = match self.with(|rows| rows.callback_row(job.callback)) {
                Ok(row) => row,
                // The job still waits, so it must be on the list.
                Err(StoreError::Unreadable(_)) => None,
                Err(error) => return Err(error),
            };
            seen.insert(job.callback);
            let reason = match job.state {
                schedule::JobState::Held => AttentionReason::Held,
                schedule::JobState::Dead => AttentionReason::Dead,
                _ => AttentionReason::Pending,
            };
            let since = job.attempted_at.unwrap_or(job.created_at);
            all.push(Found { reason, row, job: Some(job), since });
        }
        for (row, job) in self.with(|rows| rows.unreported())? {
            if seen.contains(&row.number) {
                continue;
            }
            if let Some((reason, since)) = reason_of(&row, job.as_ref(), now)
                && !self.was_done_since(reason, &row)?
            {
                all.push(Found { reason, row: Some(row), job, since });
            }
        }
        Ok(all)
    }

    /// Returns true if the callback no longer needs a person.
    ///
    /// Either the same was asked later under another callback, which counts instead. Or a create that was refused has
    /// been carried out since.
    fn was_done_since(&self, reason: AttentionReason, row: &CallbackRow) -> Result<bool, StoreError> {
        if matches!(reason, AttentionReason::Held | AttentionReason::OtherValues) {
            return Ok(false);
        }
        let said = |number: i64| match self.content(number) {
            Err(ViewError::Store(error)) => Err(error),
            said => Ok(said.ok()),
        };
        // A callback that cannot be read stays on the list.
        let Some(asked) = said(row.number)? else { return Ok(false) };
        let alike = match self.with(|rows| rows.earlier_callbacks(&row.deduplication_key)) {
            Ok(alike) => alike,
            Err(StoreError::Unreadable(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for (later, job) in alike.into_iter().filter(|(later, _)| later.number > row.number) {
            let is_done =
                later.reported_at.is_some() || job.is_some_and(|job| job.state == schedule::JobState::Done);
            // The key of a create does not hold the buyer, so compare the buyers.
            let is_theirs = said(later.number)?.is_some_and(|said| said.buyer == asked.buyer);
            if is_done && is_theirs {
                return Ok(true);
            }
        }
        if reason != AttentionReason::Refused || row.action != Action::Create {
            return Ok(false);
        }
        let made = self.readable_instance(row.instance)?;
        Ok(made.is_some_and(|made| {
            made.created_by > row.job
                && row.job.is_some()
                && made.instance.order_id == asked.order_id
                && lifecycle::is_same_purchase(&made.instance, &asked)
        }))
    }

    fn describe(&self, found: Found) -> Result<Option<AttentionItem>, StoreError> {
        let Found { reason, row, job, since } = found;
        let Some(row) = row else {
            return job.map(|job| self.describe_unreadable(reason, job, since)).transpose();
        };
        let callback = match self.content(row.number) {
            Ok(callback) => callback,
            Err(ViewError::Store(error)) => return Err(error),
            // The callback was deleted meanwhile.
            Err(_) => return Ok(None),
        };
        let instance = match self.instance_name(row.instance)? {
            Some(name) => Some(name),
            None => callback.subject.names().next().map(str::to_owned),
        };
        let gives_up = gives_up(&row, &callback);
        let action = job.as_ref().map_or(row.action, |job| job.action);
        Ok(Some(AttentionItem {
            reason,
            callback: row.number,
            detail: detail(reason, &row, job.as_ref()),
            todo: todo(reason, row.number, job.as_ref().map(|job| (job.id, job.state))),
            job: job.map(|job| job.id),
            account: row.account,
            endpoint: row.endpoint,
            instance,
            order: callback.order_id,
            buyer: callback.buyer,
            action,
            deliveries: row.deliveries,
            delivery_limit: row.delivery_limit,
            since,
            deadline: gives_up.and_then(|gives_up| gives_up.at),
            then: gives_up.map(|gives_up| gives_up.then),
            may_be_dismissed: !reason.waits(),
        }))
    }
}

impl Reader {
    /// Describes a job whose callback cannot be read. The job needs a person all the same.
    fn describe_unreadable(
        &self,
        reason: AttentionReason,
        job: JobRow,
        since: Timestamp,
    ) -> Result<AttentionItem, StoreError> {
        let instance = self.readable_instance(job.instance)?;
        Ok(AttentionItem {
            reason,
            callback: job.callback,
            detail: job.note.unwrap_or_default(),
            todo: todo(reason, job.callback, Some((job.id, job.state))),
            job: Some(job.id),
            account: instance.as_ref().map(|row| row.instance.account.clone()).unwrap_or_default(),
            endpoint: String::new(),
            instance: instance.as_ref().and_then(|row| row.name().map(str::to_owned)),
            order: instance.as_ref().and_then(|row| row.instance.order_id.clone()),
            buyer: instance.and_then(|row| row.instance.buyer),
            action: job.action,
            deliveries: 0,
            delivery_limit: None,
            since,
            deadline: None,
            then: None,
            may_be_dismissed: false,
        })
    }
}

/// Returns the time at which the marketplace gives up on a callback, if it still waits for the answer.
fn gives_up(row: &CallbackRow, callback: &Callback) -> Option<GivesUp> {
    // Reported, or asked for only by an operator: no marketplace waits for the answer.
    if row.reported_at.is_some() || row.deliveries == 0 {
        return None;
    }
    let dialect = dialect::by_name(callback.dialect.as_deref()?)?;
    dialect.gives_up(row.action, row.received_at)
}

const fn is_paid_for(action: Action) -> bool {
    matches!(action, Action::Create | Action::Renew | Action::Upgrade)
}

/// Returns the reason why an unreported callback needs a person, and the time since then. `job` is its own job.
fn reason_of(
    row: &CallbackRow,
    job: Option<&JobRow>,
    now: Timestamp,
) -> Option<(AttentionReason, Timestamp)> {
    let long_ago = |at: Timestamp| plus_millis(at, limits::ATTENTION_AFTER_MS) <= now;
    let ended = job.map_or(row.received_at, |job| job.ended_at.unwrap_or(job.created_at));
    let code = row.reason_code.as_deref().unwrap_or_default();
    let found = match (row.disposition, job.map(|job| job.state)) {
        (Disposition::Held, _) => Some((AttentionReason::Held, row.received_at)),
        // Rejected by an operator, who knows about it.
        (Disposition::Refused, _) if code == REJECTED => None,
        (Disposition::Refused, _) if code == Reason::UnknownInstance.code() => {
            Some((AttentionReason::UnknownInstance, row.received_at))
        }
        (Disposition::Refused, _) => {
            is_paid_for(row.action).then_some((AttentionReason::Refused, row.received_at))
        }
        (Disposition::Recorded, _) if code == Reason::RepeatedWithOtherValues.code() => {
            Some((AttentionReason::OtherValues, row.received_at))
        }
        (Disposition::Recorded, _) | (Disposition::Job, Some(schedule::JobState::Done)) => {
            // A marketplace that still calls will get the result, so only a long silence counts.
            let is_awaited =
                row.deliveries > 0 && row.reported_at.is_none() && long_ago(row.last_received_at);
            is_awaited.then_some((AttentionReason::Unreported, ended))
        }
        (Disposition::Job, Some(schedule::JobState::Refused)) => Some((AttentionReason::Refused, ended)),
        (Disposition::Job, Some(schedule::JobState::Cancelled)) => {
            is_paid_for(row.action).then_some((AttentionReason::Superseded, ended))
        }
        (Disposition::Job, Some(schedule::JobState::Queued | schedule::JobState::Running)) => {
            long_ago(row.received_at).then_some((AttentionReason::Pending, row.received_at))
        }
        (Disposition::Job, _) => None,
    };
    let is_half_spent = row.reported_at.is_none()
        && row.delivery_limit.is_some_and(|limit| row.deliveries >= u64::from(limit).div_ceil(2));
    // A dropped or rejected item is an operator's own decision.
    let is_open =
        matches!(job.map(|job| job.state), Some(schedule::JobState::Queued | schedule::JobState::Running));
    found.or_else(|| (is_half_spent && is_open).then_some((AttentionReason::Deliveries, row.received_at)))
}

fn detail(reason: AttentionReason, row: &CallbackRow, job: Option<&JobRow>) -> String {
    let note = job.and_then(|job| job.note.clone());
    let text = match reason {
        AttentionReason::Dead
        | AttentionReason::Pending
        | AttentionReason::Superseded
        | AttentionReason::Refused
        | AttentionReason::Deliveries => note.or_else(|| row.reason.clone()),
        AttentionReason::Held => match job.map(|job| job.state) {
            Some(schedule::JobState::Held) => note,
            _ => row.reason.clone(),
        },
        AttentionReason::UnknownInstance | AttentionReason::OtherValues => row.reason.clone(),
        AttentionReason::Unreported => {
            let done = job.and_then(|job| job.ended_at).map(|at| format!("done at {at}; "));
            Some(format!("{}the last delivery was at {}", done.unwrap_or_default(), row.last_received_at))
        }
    };
    text.unwrap_or_else(|| "not done yet".to_owned())
}

fn todo(reason: AttentionReason, callback: i64, job: Option<(Id, schedule::JobState)>) -> String {
    let dismiss = format!("then spid attention dismiss {callback}");
    match (reason, job) {
        (AttentionReason::Held, Some((id, schedule::JobState::Held))) => {
            format!("spid jobs show {id}, then spid jobs retry, complete or drop it")
        }
        (AttentionReason::Held, _) => {
            format!("spid held show {callback}, then spid held approve, settle or reject it")
        }
        (AttentionReason::Dead, Some((id, _))) => {
            format!("spid jobs show {id}; repair the hook, then spid jobs retry {id}")
        }
        (AttentionReason::Pending, Some((id, schedule::JobState::Pending))) => {
            format!("spid jobs complete {id} --answer FILE once it is done")
        }
        (AttentionReason::Pending | AttentionReason::Deliveries, Some((id, _))) => {
            format!("spid jobs show {id}; find out why the hook does not finish")
        }
        (AttentionReason::Refused, _) => {
            format!("do what was ordered, or refund it at the marketplace, {dismiss}")
        }
        (AttentionReason::UnknownInstance, _) => {
            format!("spid instances import the instance if it is yours, {dismiss}")
        }
        (AttentionReason::Superseded, _) => {
            format!("refund it at the marketplace, or do it by hand, {dismiss}")
        }
        (AttentionReason::Unreported, _) => {
            format!("reset the counter on the marketplace's retry page, or inform the buyer, {dismiss}")
        }
        (AttentionReason::OtherValues, _) => {
            format!("spid callbacks show {callback}; compare it with the instance, {dismiss}")
        }
        (_, None) => format!("spid callbacks show {callback}"),
    }
}
