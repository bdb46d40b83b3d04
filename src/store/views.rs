//! Views of stored rows. The command line, the JSON API and the console show the same objects, made only here.

use jiff::Timestamp;
use serde::Serialize;

use super::attention::{AttentionReason, InNeed};
use super::rows::{AttemptRow, CallbackRow, Disposition, Filter, InstanceRow, JobRow, Lists};
use super::{Reader, StoreError};
use crate::observe::limits;
use spid_core::lifecycle;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::Subject;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State};
use spid_hook::trace::TraceId;

/// Error of a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Error of the database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// No instance has this name.
    #[error("there is no instance with the name `{0}`")]
    NoInstance(String),
    /// Several accounts have an instance with this name.
    #[error("several accounts have an instance with the name `{name}`: {}", .accounts.join(", "))]
    Several {
        /// The name.
        name: String,
        /// The accounts.
        accounts: Vec<String>,
    },
}

/// Instance history: one instance with its callbacks and jobs.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceHistory {
    /// The instance.
    #[serde(flatten)]
    pub instance: InstanceRow,
    /// Callbacks about the instance, the oldest first.
    pub callbacks: Vec<CallbackRow>,
    /// Jobs for the instance, the oldest first.
    pub jobs: Vec<JobRow>,
    /// True if there are older rows than these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub older: bool,
}

/// A job with its attempts.
#[derive(Debug, Clone, Serialize)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: JobRow,
    /// Attempts that did not succeed.
    pub failed_attempts: Vec<AttemptRow>,
    /// Id of the trace that log lines about the job carry.
    pub trace_id: TraceId,
}

/// A callback with its whole content.
#[derive(Debug, Clone, Serialize)]
pub struct CallbackDetail {
    /// Row of the callback.
    #[serde(flatten)]
    pub row: CallbackRow,
    /// Content of the callback.
    pub callback: Callback,
    /// Id of its job, if it has one.
    pub job_id: Option<Id>,
    /// Id of that job's trace. Log lines about both carry it.
    pub trace_id: Option<TraceId>,
}

/// A callback in a list, with the names and the buyer that it gives.
///
/// For a callback refused because of an unknown instance, nothing else shows which customer it was about.
#[derive(Debug, Clone, Serialize)]
pub struct ListedCallback {
    /// Row of the callback.
    #[serde(flatten)]
    pub row: CallbackRow,
    /// Names of the instance in the callback.
    pub names: Vec<String>,
    /// The buyer, if the callback names one.
    pub buyer: Option<String>,
}

/// A job in a list, with the names that its callback and its instance give.
#[derive(Debug, Clone, Serialize)]
pub struct ListedJob {
    /// Row of the job.
    #[serde(flatten)]
    pub row: JobRow,
    /// A name of the instance, or the name that the callback uses.
    pub instance_name: Option<String>,
    /// Order id of the marketplace.
    pub order: Option<String>,
    /// Name of the endpoint that the callback came through.
    #[serde(skip)]
    pub endpoint: String,
    /// Content of the callback.
    #[serde(skip)]
    pub callback: Callback,
    /// The instance as it is now.
    #[serde(skip)]
    pub applied: Option<Instance>,
}

impl ListedJob {
    /// Returns the values by which the next call of the job is routed.
    pub fn subject(&self) -> Subject<'_> {
        Subject::new(&self.endpoint, &self.callback, self.applied.as_ref())
    }
}

/// A held callback, or a stopped job, that waits for a person.
#[derive(Debug, Clone, Serialize)]
pub struct HeldItem {
    /// Kind: `held-callback`, `held-job`, `dead-job` or `pending-job`.
    pub kind: &'static str,
    /// Number of the callback.
    pub callback: i64,
    /// Id of the job, if the job waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// Account of the callback.
    pub account: String,
    /// A name of the instance, if it has one.
    pub instance: Option<String>,
    /// The requested action.
    pub action: &'static str,
    /// Time since which the item waits.
    pub since: Timestamp,
    /// Number of deliveries by the marketplace.
    pub deliveries: u64,
    /// Delivery limit of the marketplace.
    pub delivery_limit: Option<u32>,
    /// Text of deliveries and delivery limit, as far as they still matter.
    #[serde(skip)]
    pub tries: String,
    /// Reason for waiting.
    pub reason: String,
    /// Stable code of the reason of a held callback.
    #[serde(skip)]
    pub reason_code: Option<String>,
}

impl InstanceRow {
    /// Returns a name of the instance: its id, else its `orderBizId`, else the name that it was first called by.
    pub fn name(&self) -> Option<&str> {
        let own = self.instance.id.as_ref().or(self.instance.order_biz_id.as_ref());
        own.or(self.known_as.as_ref()).map(String::as_str)
    }
}

impl CallbackRow {
    /// Returns the number of deliveries, with the delivery limit while that still matters.
    pub fn tries(&self) -> String {
        match self.delivery_limit.filter(|_| self.reported_at.is_none() && self.deliveries > 0) {
            Some(delivery_limit) => format!("{}/{delivery_limit}", self.deliveries),
            None => self.deliveries.to_string(),
        }
    }
}

/// An instance, with the actions that are owed to it.
#[derive(Debug, Clone)]
pub struct Entitled {
    /// The instance.
    pub row: InstanceRow,
    /// Actions that were accepted and not carried out: of live jobs, and of held callbacks.
    pub owed: Vec<Action>,
}

/// Selection of instances for a question of the seller's application.
#[derive(Debug, Clone)]
pub enum EntitledBy {
    /// Any name of an instance.
    Name(String),
    /// Instances that are not released.
    Filter {
        /// The buyer's account. `None`: every buyer.
        buyer: Option<String>,
        /// The tenant who has claimed them. `None`: claimed or not.
        tenant: Option<String>,
    },
}

impl Reader {
    /// Returns the instances of these accounts that a question is about, the newest first, at most `limit`.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn entitled(
        &self,
        accounts: &[String],
        by: &EntitledBy,
        limit: usize,
    ) -> Result<Vec<Entitled>, StoreError> {
        // Without an account there is nothing to see, and an empty filter would show everything.
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        self.with(|rows| {
            let instances = match by {
                EntitledBy::Name(name) => {
                    let mut found = rows.instances_named(name)?;
                    found.retain(|row| accounts.contains(&row.instance.account));
                    found.truncate(limit);
                    found
                }
                EntitledBy::Filter { buyer, tenant } => {
                    let (buyer, tenant) = (buyer.clone(), tenant.clone());
                    live(
                        rows,
                        Filter { accounts: accounts.to_vec(), buyer, tenant, limit, ..Filter::default() },
                    )?
                }
            };
            // One snapshot for an instance and what it is owed: a job that ends in between counts once.
            let mut entitled = Vec::with_capacity(instances.len());
            for row in instances {
                let owed = owed(rows, row.number)?;
                entitled.push(Entitled { row, owed });
            }
            Ok(entitled)
        })
    }

    /// Returns the one instance with this name. `account` is needed if several accounts have one.
    ///
    /// # Errors
    /// Fails if there is none, or more than one.
    pub fn find(&self, name: &str, account: Option<&str>) -> Result<InstanceRow, ViewError> {
        let mut rows = self.instances_named(name)?;
        rows.retain(|row| account.is_none_or(|account| row.instance.account == account));
        match rows.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(ViewError::NoInstance(name.to_owned())),
            several => Err(ViewError::Several {
                name: name.to_owned(),
                accounts: several.iter().map(|row| row.instance.account.clone()).collect(),
            }),
        }
    }

    /// Returns the whole history of the instance with this name.
    ///
    /// # Errors
    /// Fails like [`Reader::find`].
    pub fn life(&self, name: &str, account: Option<&str>) -> Result<InstanceHistory, ViewError> {
        self.latest(name, account, usize::MAX)
    }

    /// Returns the latest part of an instance's history.
    ///
    /// These are the latest `most` callbacks and `most` jobs, and the older ones that still wait. An instance can have
    /// sign-ons without end, and a reader must not keep a running daemon busy with all of them.
    ///
    /// # Errors
    /// Fails like [`Reader::find`].
    pub fn latest(
        &self,
        name: &str,
        account: Option<&str>,
        most: usize,
    ) -> Result<InstanceHistory, ViewError> {
        let instance = self.find(name, account)?;
        // Read one more than asked, to know if there are older rows.
        let all =
            Filter { instance: Some(instance.number), limit: most.saturating_add(1), ..Filter::default() };
        let (mut callbacks, mut jobs) = (self.callbacks(&all)?, self.jobs(&all)?);
        let older = callbacks.len() > most || jobs.len() > most;
        callbacks.truncate(most);
        jobs.truncate(most);
        // Older callbacks and jobs that still wait are shown, too.
        if let Some(last) = callbacks.last().filter(|_| older) {
            let before = Some(last.number);
            let held = Filter { disposition: Some(Disposition::Held), before, ..all.clone() };
            callbacks.extend(self.callbacks(&held)?);
        }
        if let Some(last) = jobs.last().filter(|_| older) {
            let live = JobState::ALL.into_iter().filter(|state| state.is_live()).collect();
            jobs.extend(self.jobs(&Filter { jobs: live, before: Some(last.number), ..all })?);
        }
        callbacks.reverse();
        jobs.reverse();
        Ok(InstanceHistory { instance, callbacks, jobs, older })
    }

    /// Returns the job with this id, and its attempts.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn job_detail(&self, id: Id) -> Result<JobDetail, ViewError> {
        let job = self.job(id)?.ok_or_else(|| ViewError::NotFound(format!("there is no job {id}")))?;
        let failed_attempts = self.attempts(job.number)?;
        let trace_id = TraceId::of(job.id);
        Ok(JobDetail { job, failed_attempts, trace_id })
    }

    /// Returns the callback with this number and its whole content.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn callback_detail(&self, number: i64) -> Result<CallbackDetail, ViewError> {
        let Some((row, callback)) = self.callback(number)? else {
            return Err(ViewError::NotFound(format!("there is no callback {number}")));
        };
        // A job that cannot be read must not hide its callback.
        let job = match self.with(|rows| rows.job_of(row.job)) {
            Err(StoreError::Unreadable(_)) => None,
            job => job?,
        };
        let job_id = job.map(|job| job.id);
        Ok(CallbackDetail { row, callback, job_id, trace_id: job_id.map(TraceId::of) })
    }

    /// Returns callbacks, the newest first, each with the names and the buyer that it gives.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn listed_callbacks(&self, filter: &Filter) -> Result<Vec<ListedCallback>, StoreError> {
        let mut listed = Vec::new();
        for row in self.callbacks(filter)? {
            // A callback that was deleted meanwhile is shown by its row alone.
            let callback = self.content_if_kept(row.number)?;
            let callback = callback.unwrap_or_else(|| Callback::new(row.action, row.action.as_str()));
            let names = callback.subject.names().map(str::to_owned).collect();
            listed.push(ListedCallback { row, names, buyer: callback.buyer });
        }
        Ok(listed)
    }

    /// Returns jobs, the newest first, each with the names that its callback and its instance give.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn listed_jobs(&self, filter: &Filter) -> Result<Vec<ListedJob>, StoreError> {
        let mut listed = Vec::new();
        for row in self.jobs(filter)? {
            let (endpoint, callback) = match self.callback(row.callback) {
                Ok(Some((callback_row, callback))) => (callback_row.endpoint, callback),
                // A job whose callback cannot be read is listed all the same.
                Ok(None) | Err(StoreError::Unreadable(_)) => {
                    (String::new(), Callback::new(row.action, row.action.as_str()))
                }
                Err(error) => return Err(error),
            };
            let instance = self.readable_instance(row.instance)?;
            let name = instance.as_ref().and_then(InstanceRow::name).or(callback.subject.names().next());
            let instance_name = name.map(str::to_owned);
            let applied = instance.map(|instance| instance.instance);
            let of_instance = applied.as_ref().and_then(|instance| instance.order_id.clone());
            let order = callback.order_id.clone().or(of_instance);
            listed.push(ListedJob { row, instance_name, order, endpoint, callback, applied });
        }
        Ok(listed)
    }

    /// Returns everything that waits for a person, and the number of items left out.
    ///
    /// These are held callbacks, and jobs that are held, dead or pending. The latest comes first, and at most `limit`
    /// items are returned.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn held_items(&self, limit: usize) -> Result<(Vec<HeldItem>, usize), StoreError> {
        let held = Filter { disposition: Some(Disposition::Held), limit: usize::MAX, ..Filter::default() };
        let mut found: Vec<InNeed> = Vec::new();
        for row in self.callbacks(&held)? {
            let since = row.received_at;
            found.push(InNeed { reason: AttentionReason::Held, row: Some(row), job: None, since });
        }
        found.extend(self.stopped_jobs()?);
        found.sort_by_key(|found| std::cmp::Reverse(found.since));
        let left_out = found.len().saturating_sub(limit);
        found.truncate(limit);
        let mut held_items = Vec::new();
        for found in found {
            held_items.extend(self.held_item(found)?);
        }
        Ok((held_items, left_out))
    }

    fn held_item(&self, found: InNeed) -> Result<Option<HeldItem>, StoreError> {
        let InNeed { reason, row, job, since } = found;
        let (number, instance, action) = match (&job, &row) {
            (Some(job), _) => (job.callback, job.instance, job.action),
            (None, Some(row)) => (row.number, row.instance, row.action),
            (None, None) => return Ok(None),
        };
        Ok(Some(HeldItem {
            kind: match (&job, reason) {
                (None, _) => "held-callback",
                (Some(_), AttentionReason::Dead) => "dead-job",
                (Some(_), AttentionReason::Pending) => "pending-job",
                (Some(_), _) => "held-job",
            },
            callback: number,
            instance: self.instance_name(instance)?,
            action: action.as_str(),
            since,
            tries: row.as_ref().map(CallbackRow::tries).unwrap_or_default(),
            deliveries: row.as_ref().map_or(0, |row| row.deliveries),
            delivery_limit: row.as_ref().and_then(|row| row.delivery_limit),
            account: row.as_ref().map(|row| row.account.clone()).unwrap_or_default(),
            reason_code: row.as_ref().filter(|_| job.is_none()).and_then(|row| row.reason_code.clone()),
            reason: match &job {
                Some(job) => job.note.clone(),
                None => row.and_then(|row| row.reason),
            }
            .unwrap_or_default(),
            job: job.map(|job| job.id),
        }))
    }

    /// Returns the instance with this number. `None` also if it cannot be read.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn readable_instance(&self, number: Option<i64>) -> Result<Option<InstanceRow>, StoreError> {
        match number.map(|number| self.instance(number)).transpose() {
            Err(StoreError::Unreadable(_)) => Ok(None),
            row => Ok(row?.flatten()),
        }
    }

    /// Returns the content of a callback. For an unreadable one, returns a callback that says so.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn content(&self, number: i64) -> Result<Callback, ViewError> {
        match self.callback(number) {
            Err(StoreError::Unreadable(unreadable)) => {
                Ok(Callback::new(Action::Other, unreadable.to_string()))
            }
            Ok(Some((_, callback))) => Ok(callback),
            Ok(None) => Err(ViewError::NotFound(format!("there is no callback {number}"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the content of a callback like [`Reader::content`]. `None`: there is no such callback.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn content_if_kept(&self, number: i64) -> Result<Option<Callback>, StoreError> {
        match self.content(number) {
            Ok(callback) => Ok(Some(callback)),
            Err(ViewError::Store(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Returns a name of the instance with this number.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn instance_name(&self, number: Option<i64>) -> Result<Option<String>, StoreError> {
        let row = self.readable_instance(number)?;
        Ok(row.and_then(|row| row.name().map(str::to_owned)))
    }
}

/// Returns the instances that are not released.
fn live(rows: &dyn Lists, filter: Filter) -> Result<Vec<InstanceRow>, StoreError> {
    let mut found = Vec::new();
    let mut page = filter.clone();
    // Released instances of a buyer stay for good, so they may fill whole pages.
    while found.len() < filter.limit {
        let listed = rows.list_instances(&page)?;
        let Some(last) = listed.last() else { break };
        page.before = Some(last.number);
        let is_last = listed.len() < page.limit;
        found.extend(listed.into_iter().filter(|row| row.instance.state != State::Released));
        if is_last {
            break;
        }
    }
    found.truncate(filter.limit);
    Ok(found)
}

/// Returns the actions that are owed to an instance, each once.
fn owed(rows: &dyn Lists, instance: i64) -> Result<Vec<Action>, StoreError> {
    let mut actions = Vec::new();
    for job in rows.queue_jobs(instance)? {
        actions.push(job.action);
    }
    let held = Filter {
        instance: Some(instance),
        disposition: Some(Disposition::Held),
        limit: limits::LIST_DEFAULT_COUNT,
        ..Filter::default()
    };
    for callback in rows.list_callbacks(&held)? {
        actions.push(callback.action);
    }
    Ok(lifecycle::entitlement::owed(actions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Acceptance, AttemptEnd, Store, StoreOptions};
    use spid_core::lifecycle::Policy;
    use spid_hook::callback::{Answer, InstanceRef};
    use spid_hook::time::Clock;

    fn asked(action: Action, number: u32, clock: &Clock) -> Acceptance {
        let mut callback = Callback::new(action, "x");
        callback.subject = InstanceRef { instance_id: None, order_biz_id: Some("biz-1".to_owned()) };
        callback.request_id = Some(number.to_string());
        Acceptance {
            account: "acme".to_owned(),
            endpoint: "e".to_owned(),
            key_label: "current".to_owned(),
            callback: callback.into(),
            received_at: clock.now(),
            policy: Policy::default(),
            approved: false,
            delivery_limit: None,
        }
    }

    #[tokio::test]
    async fn the_latest_of_a_life_without_end_is_a_page_and_what_waits() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(asked(Action::Create, 0, &clock)).await.unwrap());
        for number in 1..=20 {
            drop(store.accept(asked(Action::Other, number, &clock)).await.unwrap());
        }
        for taken in store.take(100).await.unwrap().taken {
            let ending = match taken.job.action {
                Action::Create => AttemptEnd::Pending { note: "a person finishes it".to_owned() },
                _ => AttemptEnd::Done(Answer::default()),
            };
            store.finish(&taken, ending).await.unwrap();
        }
        let reader = store.reader();
        let whole = reader.life("biz-1", None).unwrap();
        assert_eq!((whole.callbacks.len(), whole.jobs.len(), whole.older), (21, 21, false));
        let page = reader.latest("biz-1", None, 5).unwrap();
        assert_eq!((&page.callbacks[..], page.older), (&whole.callbacks[16..], true));
        assert_eq!((&page.jobs[0], &page.jobs[1..]), (&whole.jobs[0], &whole.jobs[16..]));
        assert!(serde_json::to_string(&page).unwrap().contains("\"older\":true"));
        let all = reader.latest("biz-1", None, 21).unwrap();
        assert_eq!((&all.callbacks, &all.jobs, all.older), (&whole.callbacks, &whole.jobs, false));
        assert!(!serde_json::to_string(&all).unwrap().contains("older"));
    }
}
