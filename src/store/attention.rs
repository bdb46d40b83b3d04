//! Everything that needs a person, on one list: orders that were refused, dead or held work, results that were
//! not reported. Sorted by deadline.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::ledger::REJECTED;
use super::rows::{CallbackRow, Disposition, Filter, JobRow};
use super::{Reader, StoreError, ViewError};
use crate::core::dialect;
use crate::core::dialect::GivesUp;
use crate::core::lifecycle;
use crate::core::lifecycle::Reason;
use crate::core::lifecycle::schedule;
use crate::hook::callback::{Action, Callback};
use crate::hook::clock::{Id, plus_millis};
use crate::observe::limits;

/// The reason why something needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionReason {
    /// A callback or a job waits for a decision.
    Held,
    /// A job used up its retry schedule.
    Dead,
    /// A person has to finish it, or it has been tried in vain for long.
    Pending,
    /// The hook, or a rule, refused what a buyer ordered.
    Refused,
    /// The callback is about an instance that was never created or imported here.
    UnknownInstance,
    /// Something that came later ended it unrun, though it was paid for.
    Superseded,
    /// It is done, and the marketplace has not come back for the result.
    Unreported,
    /// The marketplace has used up half of its deliveries.
    Deliveries,
    /// A purchase was repeated with other values; nothing was run for them.
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

    /// The word in JSON, on the metrics page and in lists.
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

    /// True if it is off the list only once it has been dealt with: it cannot be dismissed.
    const fn waits(self) -> bool {
        matches!(self, AttentionReason::Held | AttentionReason::Dead | AttentionReason::Pending)
    }
}

/// One thing that needs a person.
#[derive(Debug, Clone, Serialize)]
pub struct AttentionItem {
    /// The reason.
    pub reason: AttentionReason,
    /// The callback's number.
    pub callback: i64,
    /// The job's id, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// The account.
    pub account: String,
    /// The endpoint it came through.
    pub endpoint: String,
    /// A name of its instance, or the name the callback uses.
    pub instance: Option<String>,
    /// The marketplace's order.
    pub order: Option<String>,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The action that was asked for.
    pub action: Action,
    /// The number of times the marketplace has delivered it.
    pub deliveries: u64,
    /// The number of deliveries after which the marketplace gives up; `None` when that is not counted.
    pub delivery_limit: Option<u32>,
    /// The time since when it needs a person.
    pub since: Timestamp,
    /// The time at which the marketplace gives up, where it says so.
    pub deadline: Option<Timestamp>,
    /// The marketplace's reaction once it has given up.
    pub then: Option<&'static str>,
    /// The hook's words, or the rule.
    pub detail: String,
    /// The next step for an operator.
    pub todo: String,
    /// True if it can be taken off the list without anything else being done.
    #[serde(skip)]
    pub may_be_dismissed: bool,
}

/// The list, and how much of it is not shown.
#[derive(Debug, Clone, Serialize)]
pub struct Attention {
    /// The items, the soonest deadline first, then the oldest.
    pub items: Vec<AttentionItem>,
    /// The number of items that were left out.
    pub left_out: usize,
}

/// A callback that needs a person, before it is described.
struct Found {
    reason: AttentionReason,
    /// `None` where it cannot be read; then there is a job, and its note says why.
    row: Option<CallbackRow>,
    job: Option<JobRow>,
    since: Timestamp,
}

impl Reader {
    /// Everything that needs a person, at most `limit` items of it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn attention(&self, now: Timestamp, limit: usize) -> Result<Attention, StoreError> {
        let mut items = Vec::new();
        for found in self.in_need(now)? {
            items.extend(self.describe(found)?);
        }
        let order =
            |item: &AttentionItem| (item.deadline.is_none(), item.deadline, item.since, item.callback);
        items.sort_by_key(order);
        let left_out = items.len().saturating_sub(limit);
        items.truncate(limit);
        Ok(Attention { items, left_out })
    }

    /// The number of items by reason; every reason has one.
    ///
    /// # Errors
    /// When the database cannot be read.
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
        for job in self.jobs(&Filter { jobs: states, limit: usize::MAX, ..Filter::default() })? {
            let row = match self.with(|rows| rows.callback_row(job.callback)) {
                Ok(row) => row,
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

    /// True if the same was asked again later, under a callback that counts instead; or if what was refused to be
    /// made has been made since.
    fn was_done_since(&self, reason: AttentionReason, row: &CallbackRow) -> Result<bool, StoreError> {
        if matches!(reason, AttentionReason::Held | AttentionReason::OtherValues) {
            return Ok(false);
        }
        let said = |number: i64| match self.content(number) {
            Err(ViewError::Store(error)) => Err(error),
            said => Ok(said.ok()),
        };
        let Some(asked) = said(row.number)? else { return Ok(false) };
        let alike = match self.with(|rows| rows.occurrences(&row.occurrence)) {
            Ok(alike) => alike,
            Err(StoreError::Unreadable(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for (later, job) in alike.into_iter().filter(|(later, _)| later.number > row.number) {
            let is_done =
                later.told_at.is_some() || job.is_some_and(|job| job.state == schedule::JobState::Done);
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
            delivery_limit: row.budget,
            since,
            deadline: gives_up.and_then(|gives_up| gives_up.at),
            then: gives_up.map(|gives_up| gives_up.then),
            may_be_dismissed: !reason.waits(),
        }))
    }
}

impl Reader {
    /// A job whose callback cannot be read: it waits all the same.
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

/// The time at which the marketplace gives up on a callback, if it still waits for the answer.
fn gives_up(row: &CallbackRow, callback: &Callback) -> Option<GivesUp> {
    if row.told_at.is_some() || row.deliveries == 0 {
        return None;
    }
    let dialect = dialect::by_name(callback.dialect.as_deref()?)?;
    dialect.gives_up(row.action, row.received_at)
}

const fn is_paid_for(action: Action) -> bool {
    matches!(action, Action::Create | Action::Renew | Action::Upgrade)
}

/// The reason why a callback that was not reported needs a person, and since when. `job` is its own.
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
            let is_awaited = row.deliveries > 0 && row.told_at.is_none() && long_ago(row.last_received_at);
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
    let is_half_spent = row.told_at.is_none()
        && row.budget.is_some_and(|limit| row.deliveries >= u64::from(limit).div_ceil(2));
    // Whatever was dropped or rejected is an operator's own decision.
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
            Some(format!("{}the marketplace came last at {}", done.unwrap_or_default(), row.last_received_at))
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
            format!("spid jobs show {id}; mend the hook, then spid jobs retry {id}")
        }
        (AttentionReason::Pending, Some((id, schedule::JobState::Pending))) => {
            format!("spid jobs complete {id} --answer FILE once it is done")
        }
        (AttentionReason::Pending | AttentionReason::Deliveries, Some((id, _))) => {
            format!("spid jobs show {id}; look why the hook does not finish")
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
            format!("reset its counter on the marketplace's retry page, or tell the buyer, {dismiss}")
        }
        (AttentionReason::OtherValues, _) => {
            format!("spid callbacks show {callback}; compare it with the instance, {dismiss}")
        }
        (_, None) => format!("spid callbacks show {callback}"),
    }
}
