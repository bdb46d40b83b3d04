//! Attention list: everything that needs a person, the soonest deadline first.
//!
//! It lists refused orders, dead or held work, results that were not reported, calls of a market that fail, and instances
//! that cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::rows::{CallbackRow, Disposition, Filter, JobRow, MarketJob, MarketJobs, Unreadable};
use super::rules::REJECTED;
use super::{Reader, StoreError};
use crate::observe::limits;
use spid_core::dialect;
use spid_core::dialect::GivesUp;
use spid_core::lifecycle;
use spid_core::lifecycle::Reason;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::time::plus_millis;

spid_hook::words! {
    /// Reason why a callback or a job needs a person.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum AttentionReason {
        /// A callback or a job waits for a decision.
        Held = "held",
        /// A job has used up its retry schedule.
        Dead = "dead",
        /// A person has to finish the job, or it has been tried without success for long.
        Pending = "pending",
        /// The hook or a rule refused an order of a buyer.
        Refused = "refused",
        /// The callback is about an instance that was never created or imported here.
        UnknownInstance = "unknown-instance",
        /// A later callback ended the job before it ran, though it was paid for.
        Superseded = "superseded",
        /// The job is done, and the marketplace has not called again for the result.
        Unreported = "unreported",
        /// The marketplace has used up half of its deliveries.
        Deliveries = "deliveries",
        /// A purchase was repeated with other values. No hook ran for these values.
        OtherValues = "other-values",
        /// A call of a marketplace's API is refused or fails again and again.
        MarketCall = "market-call",
        /// The row of an instance cannot be read. Requests for the instance are answered "try again".
        Unreadable = "unreadable",
    }
}

impl AttentionReason {
    /// Reasons that [`Reader::attention_counts`] counts.
    fn counted() -> impl Iterator<Item = AttentionReason> {
        AttentionReason::ALL.into_iter().filter(|reason| *reason != AttentionReason::Unreadable)
    }

    /// Returns true if only a solution takes the item off the list. Such an item cannot be dismissed.
    const fn waits(self) -> bool {
        matches!(
            self,
            AttentionReason::Held
                | AttentionReason::Dead
                | AttentionReason::Pending
                | AttentionReason::MarketCall
                | AttentionReason::Unreadable
        )
    }
}

/// An item of the attention list.
#[derive(Debug, Clone, Serialize)]
pub struct AttentionItem {
    /// The reason.
    pub reason: AttentionReason,
    /// Number of the callback. `None`: the item is an instance or a call of a market.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<i64>,
    /// Id of the job, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// Name of the market. `None`: the item is no call of its API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub market: Option<String>,
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
    /// The requested action. `None`: the item is an instance or a call of a market.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
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

/// A callback or a job that needs a person, before it is described.
pub(super) struct InNeed {
    pub(super) reason: AttentionReason,
    /// Row of the callback. `None`: it cannot be read; then there is a job, and its note gives the reason.
    pub(super) row: Option<CallbackRow>,
    pub(super) job: Option<JobRow>,
    pub(super) since: Timestamp,
}

impl Reader {
    /// Returns everything that needs a person, at most `limit` items.
    ///
    /// `checked` is the number of the newest instances among which those with an unreadable row are searched. Each of
    /// them is read, so a page of the console must not ask for all of a large database.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn attention(&self, now: Timestamp, limit: usize, checked: usize) -> Result<Attention, StoreError> {
        let mut items = Vec::new();
        for found in self.in_need(now)? {
            items.extend(self.describe(found)?);
        }
        items.extend(self.failing_calls()?.into_iter().map(describe_call));
        for unreadable in self.with(|rows| rows.unreadable_instances(checked))? {
            items.push(self.describe_instance(&unreadable, now)?);
        }
        items.sort_by_key(|item| (item.deadline.is_none(), item.deadline, item.since, item.callback));
        // Cut after sorting, so that the most urgent items are shown.
        let left_out = items.len().saturating_sub(limit);
        items.truncate(limit);
        Ok(Attention { items, left_out })
    }

    /// Returns the number of items by reason. Every reason but [`AttentionReason::Unreadable`] has an entry, also with 0.
    ///
    /// Unreadable instances are not counted: a scrape of the metrics must not read every instance.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn attention_counts(&self, now: Timestamp) -> Result<BTreeMap<AttentionReason, u64>, StoreError> {
        let mut counts: BTreeMap<_, u64> = AttentionReason::counted().map(|reason| (reason, 0)).collect();
        for found in self.in_need(now)? {
            *counts.entry(found.reason).or_default() += 1;
        }
        counts.insert(AttentionReason::MarketCall, self.failing_calls()?.len() as u64);
        Ok(counts)
    }

    /// Returns the jobs of the market client that need a person: held and dead ones, and recurring ones that fail again and
    /// again.
    fn failing_calls(&self) -> Result<Vec<MarketJob>, StoreError> {
        let mut jobs = self.market_jobs(MarketJobs::AllLive)?;
        jobs.retain(|job| {
            let fails = job.kind.is_recurring() && job.step >= limits::MARKET_JOB_FAILURES_COUNT;
            matches!(job.state, JobState::Dead | JobState::Held) || fails
        });
        Ok(jobs)
    }

    /// Returns the jobs that are held, dead or pending, the newest first.
    pub(super) fn stopped_jobs(&self) -> Result<Vec<InNeed>, StoreError> {
        let states = vec![JobState::Held, JobState::Dead, JobState::Pending];
        let mut stopped = Vec::new();
        for job in self.jobs(&Filter { jobs: states, limit: usize::MAX, ..Filter::default() })? {
            let row = match self.with(|rows| rows.callback_row(job.callback)) {
                Ok(row) => row,
                // The job waits although its callback cannot be read, so it must be on the list.
                Err(StoreError::Unreadable(_)) => None,
                Err(error) => return Err(error),
            };
            let reason = match job.state {
                JobState::Held => AttentionReason::Held,
                JobState::Dead => AttentionReason::Dead,
                _ => AttentionReason::Pending,
            };
            let since = job.attempted_at.unwrap_or(job.created_at);
            stopped.push(InNeed { reason, row, job: Some(job), since });
        }
        Ok(stopped)
    }

    fn in_need(&self, now: Timestamp) -> Result<Vec<InNeed>, StoreError> {
        // Jobs first: a job that waits is shown once, with the state of the job and not of its callback.
        let mut all = self.stopped_jobs()?;
        let stopped: BTreeSet<i64> =
            all.iter().filter_map(|found| Some(found.job.as_ref()?.callback)).collect();
        for (row, job) in self.with(|rows| rows.unreported())? {
            if stopped.contains(&row.number) {
                continue;
            }
            if let Some((reason, since)) = reason_of(&row, job.as_ref(), now)
                && !self.was_done_since(reason, &row)?
            {
                all.push(InNeed { reason, row: Some(row), job, since });
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
        // A callback that cannot be read stays on the list.
        let Some(asked) = self.content_if_kept(row.number)? else { return Ok(false) };
        let alike = match self.with(|rows| rows.earlier_callbacks(&row.deduplication_key)) {
            Ok(alike) => alike,
            Err(StoreError::Unreadable(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for (later, job) in alike.into_iter().filter(|(later, _)| later.number > row.number) {
            let is_done = later.reported_at.is_some() || job.is_some_and(|job| job.state == JobState::Done);
            // The key of a create does not hold the buyer, so compare the buyers.
            let said = self.content_if_kept(later.number)?;
            let is_theirs = said.is_some_and(|said| said.buyer == asked.buyer);
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

    fn describe(&self, found: InNeed) -> Result<Option<AttentionItem>, StoreError> {
        let InNeed { reason, row, job, since } = found;
        let Some(row) = row else {
            return job.map(|job| self.describe_unreadable(reason, job, since)).transpose();
        };
        // A callback that was deleted meanwhile needs nothing.
        let Some(callback) = self.content_if_kept(row.number)? else { return Ok(None) };
        let instance = match self.instance_name(row.instance)? {
            Some(name) => Some(name),
            None => callback.subject.names().next().map(str::to_owned),
        };
        let gives_up = gives_up(&row, &callback);
        let action = job.as_ref().map_or(row.action, |job| job.action);
        Ok(Some(AttentionItem {
            reason,
            callback: Some(row.number),
            detail: detail(reason, &row, job.as_ref()),
            todo: todo(reason, row.number, job.as_ref().map(|job| (job.id, job.state))),
            job: job.map(|job| job.id),
            market: None,
            account: row.account,
            endpoint: row.endpoint,
            instance,
            order: callback.order_id,
            buyer: callback.buyer,
            action: Some(action),
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
            callback: Some(job.callback),
            detail: job.note.unwrap_or_default(),
            todo: todo(reason, job.callback, Some((job.id, job.state))),
            job: Some(job.id),
            market: None,
            account: instance.as_ref().map(|row| row.instance.account.clone()).unwrap_or_default(),
            endpoint: String::new(),
            instance: instance.as_ref().and_then(|row| row.name().map(str::to_owned)),
            order: instance.as_ref().and_then(|row| row.instance.order_id.clone()),
            buyer: instance.and_then(|row| row.instance.buyer),
            action: Some(job.action),
            deliveries: 0,
            delivery_limit: None,
            since,
            deadline: None,
            then: None,
            may_be_dismissed: false,
        })
    }

    /// Describes an instance that cannot be read. Its names are in another table.
    fn describe_instance(
        &self,
        unreadable: &Unreadable,
        now: Timestamp,
    ) -> Result<AttentionItem, StoreError> {
        let number = unreadable.row.parse().unwrap_or_default();
        let named = match self.with(|rows| rows.name_of(number)) {
            Err(StoreError::Unreadable(_)) => None,
            named => named?,
        };
        let (account, name) = named.unzip();
        Ok(AttentionItem {
            reason: AttentionReason::Unreadable,
            callback: None,
            job: None,
            market: None,
            account: account.unwrap_or_default(),
            endpoint: String::new(),
            instance: name,
            order: None,
            buyer: None,
            action: None,
            deliveries: 0,
            delivery_limit: None,
            since: now,
            deadline: None,
            then: None,
            detail: unreadable.to_string(),
            todo: match unreadable.newer {
                true => "use the newer spid that wrote the row".to_owned(),
                false => format!(
                    "repair row {} of table `{}`, or restore a backup",
                    unreadable.row, unreadable.table
                ),
            },
            may_be_dismissed: false,
        })
    }
}

/// Describes a call of a market that needs a person.
fn describe_call(job: MarketJob) -> AttentionItem {
    let (id, kind) = (job.id, job.kind.as_str());
    let or_drop = if job.kind.is_recurring() { "" } else { " or drop it" };
    AttentionItem {
        reason: AttentionReason::MarketCall,
        callback: None,
        job: Some(id),
        market: Some(job.market.clone()),
        account: String::new(),
        endpoint: String::new(),
        instance: None,
        order: None,
        buyer: None,
        action: None,
        deliveries: 0,
        delivery_limit: None,
        since: job.attempted_at.unwrap_or(job.created_at),
        deadline: None,
        then: None,
        detail: format!("market {}: {kind}: {}", job.market, job.note.as_deref().unwrap_or("no text")),
        todo: match job.state {
            JobState::Held => {
                format!("do what the notification asks for, then spid jobs retry {id}, which confirms it")
            }
            _ => format!("check the credentials with spid market check, then spid jobs retry {id}{or_drop}"),
        },
        may_be_dismissed: false,
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
    let long_ago = plus_millis(now, -limits::ATTENTION_AFTER_MS);
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
        (Disposition::Recorded, _) | (Disposition::Job, Some(JobState::Done)) => {
            // A marketplace that still calls will get the result, so only a long silence counts.
            let is_awaited =
                row.deliveries > 0 && row.reported_at.is_none() && row.last_received_at <= long_ago;
            is_awaited.then_some((AttentionReason::Unreported, ended))
        }
        (Disposition::Job, Some(JobState::Refused)) => Some((AttentionReason::Refused, ended)),
        (Disposition::Job, Some(JobState::Cancelled)) => {
            is_paid_for(row.action).then_some((AttentionReason::Superseded, ended))
        }
        (Disposition::Job, Some(JobState::Queued | JobState::Running)) => {
            (row.received_at <= long_ago).then_some((AttentionReason::Pending, row.received_at))
        }
        (Disposition::Job, _) => None,
    };
    let is_half_spent = row.reported_at.is_none()
        && row.delivery_limit.is_some_and(|limit| row.deliveries >= u64::from(limit).div_ceil(2));
    // A dropped or rejected item is an operator's own decision.
    let is_open = matches!(job.map(|job| job.state), Some(JobState::Queued | JobState::Running));
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
            Some(JobState::Held) => note,
            _ => row.reason.clone(),
        },
        AttentionReason::UnknownInstance
        | AttentionReason::OtherValues
        | AttentionReason::MarketCall
        | AttentionReason::Unreadable => row.reason.clone(),
        AttentionReason::Unreported => {
            let done = job.and_then(|job| job.ended_at).map(|at| format!("done at {at}; "));
            Some(format!("{}the last delivery was at {}", done.unwrap_or_default(), row.last_received_at))
        }
    };
    text.unwrap_or_else(|| "not done yet".to_owned())
}

fn todo(reason: AttentionReason, callback: i64, job: Option<(Id, JobState)>) -> String {
    let dismiss = format!("then spid attention dismiss {callback}");
    match (reason, job) {
        (AttentionReason::Held, Some((id, JobState::Held))) => {
            format!("spid jobs show {id}, then spid jobs retry, complete or drop it")
        }
        (AttentionReason::Held, _) => {
            format!("spid held show {callback}, then spid held approve, settle or reject it")
        }
        (AttentionReason::Dead, Some((id, _))) => {
            format!("spid jobs show {id}; repair the hook, then spid jobs retry {id}")
        }
        (AttentionReason::Pending, Some((id, JobState::Pending))) => {
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
        (AttentionReason::Unreadable | AttentionReason::MarketCall, _) | (_, None) => {
            format!("spid callbacks show {callback}")
        }
    }
}
