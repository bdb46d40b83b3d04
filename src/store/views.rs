//! Views of stored rows. The command line, the JSON API and the console show the same objects, made only here.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Serialize;

use super::attention::{AttentionReason, InNeed};
use super::rows::{
    AttemptRow, AuditEntry, CallbackRow, Disposition, Filter, InstanceRow, JobKind, JobRow, Lists, MarketJob,
    MarketJobs,
};
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

/// Instance history: one instance with its callbacks, jobs and admin operations.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceHistory {
    /// The instance.
    #[serde(flatten)]
    pub instance: InstanceRow,
    /// Callbacks about the instance, the oldest first.
    pub callbacks: Vec<ListedCallback>,
    /// Jobs for the instance, the oldest first.
    pub jobs: Vec<ListedJob>,
    /// Admin operations on the instance, these callbacks and these jobs, the oldest first.
    #[serde(rename = "acts")]
    pub operations: Vec<AuditEntry>,
    /// True if there are older rows than these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub older: bool,
}

/// A job of a hook with its attempts.
#[derive(Debug, Clone, Serialize)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: ListedJob,
    /// Attempts that did not succeed.
    pub failed_attempts: Vec<AttemptRow>,
    /// Id of the trace that log lines about the job carry.
    pub trace_id: TraceId,
}

/// A job of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AnyJob {
    /// A job for a callback.
    Hook(Box<ListedJob>),
    /// A job of the market client.
    Market(Box<MarketJob>),
}

/// A job of any kind, with all that is known of it.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum AnyJobDetail {
    /// A job for a callback.
    Hook(Box<JobDetail>),
    /// A job of the market client.
    Market(Box<MarketJob>),
}

/// A callback with its whole content.
#[derive(Debug, Clone, Serialize)]
pub struct CallbackDetail {
    /// The callback, as in a list.
    #[serde(flatten)]
    pub listed: ListedCallback,
    /// Content of the callback.
    pub callback: Callback,
    /// Id of the job's trace. Log lines about callback and job carry it.
    pub trace_id: Option<TraceId>,
}

/// A callback in a list, with its customer: instance, order and buyer.
///
/// For a callback refused because of an unknown instance, nothing else shows which customer it was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedCallback {
    /// Row of the callback.
    #[serde(flatten)]
    pub row: CallbackRow,
    /// A name of the instance, or the name that the callback uses.
    pub instance: Option<String>,
    /// Names of the instance in the callback.
    pub names: Vec<String>,
    /// Order id of the marketplace.
    pub order: Option<String>,
    /// The buyer, if the callback names one.
    pub buyer: Option<String>,
    /// Id of its job, if it has one. Of several jobs, the latest.
    pub job: Option<Id>,
}

/// A job in a list, with the names that its callback and its instance give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedJob {
    /// Kind of the job: `hook`.
    pub kind: JobKind,
    /// Row of the job.
    #[serde(flatten)]
    pub row: JobRow,
    /// A name of the instance, or the name that the callback uses.
    pub instance: Option<String>,
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

impl AnyJob {
    /// Returns the number of the job in the store.
    pub fn number(&self) -> i64 {
        match self {
            AnyJob::Hook(job) => job.row.number,
            AnyJob::Market(job) => job.number,
        }
    }

    /// Returns the id of the job.
    pub fn id(&self) -> Id {
        match self {
            AnyJob::Hook(job) => job.row.id,
            AnyJob::Market(job) => job.id,
        }
    }

    /// Returns the kind of the job.
    pub fn kind(&self) -> JobKind {
        match self {
            AnyJob::Hook(_) => JobKind::Hook,
            AnyJob::Market(job) => JobKind::Market(job.kind),
        }
    }

    /// Returns the state of the job.
    pub fn state(&self) -> JobState {
        match self {
            AnyJob::Hook(job) => job.row.state,
            AnyJob::Market(job) => job.state,
        }
    }
}

/// Instances by their number.
type Instances = BTreeMap<i64, InstanceRow>;

/// Content of callbacks and the endpoint of each, by the number of the callback.
type Contents = BTreeMap<i64, (String, Callback)>;

/// Returns a name of the instance, or the name that the callback uses; and the order, that of the callback first.
fn instance_and_order(
    instance: Option<&InstanceRow>,
    callback: &Callback,
) -> (Option<String>, Option<String>) {
    let name = instance.and_then(InstanceRow::name).or(callback.subject.names().next());
    let bought_by = instance.and_then(|row| row.instance.order_id.as_ref());
    (name.map(str::to_owned), callback.order_id.as_ref().or(bought_by).cloned())
}

/// Describes callbacks. The rows that they refer to are read in a few queries for many callbacks, and in parts, because
/// the content of a callback is larger than the rest of a list.
fn describe_callbacks(rows: &dyn Lists, found: Vec<CallbackRow>) -> Result<Vec<ListedCallback>, StoreError> {
    let mut listed = Vec::with_capacity(found.len());
    for part in found.chunks(limits::LIST_PART_COUNT) {
        let instances = instances(rows, part.iter().filter_map(|row| row.instance))?;
        let mut contents = contents(rows, part.iter().map(|row| row.number))?;
        let jobs: Vec<i64> = part.iter().filter_map(|row| row.job).collect();
        let jobs = rows.jobs_of(&jobs)?.into_iter().map(|job| (job.number, job.id));
        let jobs: BTreeMap<i64, Id> = jobs.collect();
        for row in part {
            // A callback whose content cannot be read is shown by its row alone.
            let content = contents.remove(&row.number).map(|(_, callback)| callback);
            let callback = content.unwrap_or_else(|| Callback::new(row.action, row.action.as_str()));
            let instance = row.instance.and_then(|number| instances.get(&number));
            let (instance, order) = instance_and_order(instance, &callback);
            let names = callback.subject.names().map(str::to_owned).collect();
            let job = row.job.and_then(|number| jobs.get(&number)).copied();
            listed.push(ListedCallback {
                row: row.clone(),
                instance,
                names,
                order,
                buyer: callback.buyer,
                job,
            });
        }
    }
    Ok(listed)
}

/// Describes jobs, like [`describe_callbacks`].
fn describe_jobs(rows: &dyn Lists, found: Vec<JobRow>) -> Result<Vec<ListedJob>, StoreError> {
    let instances = instances(rows, found.iter().filter_map(|row| row.instance))?;
    let contents = contents(rows, found.iter().map(|row| row.callback))?;
    let mut listed = Vec::with_capacity(found.len());
    for row in found {
        // A job whose callback cannot be read is listed all the same. Several jobs may have one callback.
        let content = contents.get(&row.callback).cloned();
        let (endpoint, callback) =
            content.unwrap_or_else(|| (String::new(), Callback::new(row.action, row.action.as_str())));
        let found = row.instance.and_then(|number| instances.get(&number));
        let (instance, order) = instance_and_order(found, &callback);
        let applied = found.map(|found| found.instance.clone());
        listed.push(ListedJob { kind: JobKind::Hook, row, instance, order, endpoint, callback, applied });
    }
    Ok(listed)
}

/// Describes what waits for a person, like [`describe_callbacks`].
fn describe_held(rows: &dyn Lists, found: Vec<InNeed>) -> Result<Vec<HeldItem>, StoreError> {
    let instances = instances(rows, found.iter().filter_map(|found| about(found)?.1))?;
    let contents = contents(rows, found.iter().filter_map(|found| Some(about(found)?.0)))?;
    let mut held_items = Vec::with_capacity(found.len());
    for found in found {
        let Some((number, instance, action)) = about(&found) else { continue };
        let InNeed { reason, row, job, since } = found;
        let content = contents.get(&number).map(|(_, callback)| callback.clone());
        let callback = content.unwrap_or_else(|| Callback::new(action, action.as_str()));
        let found = instance.and_then(|number| instances.get(&number));
        let (instance, order) = instance_and_order(found, &callback);
        held_items.push(HeldItem {
            kind: match (&job, reason) {
                (None, _) => "held-callback",
                (Some(_), AttentionReason::Dead) => "dead-job",
                (Some(_), AttentionReason::Pending) => "pending-job",
                (Some(_), _) => "held-job",
            },
            callback: number,
            instance,
            has_instance: found.is_some(),
            order,
            buyer: callback.buyer,
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
        });
    }
    Ok(held_items)
}

/// Returns the callback, the instance and the action that waiting work is about.
fn about(found: &InNeed) -> Option<(i64, Option<i64>, Action)> {
    match (&found.job, &found.row) {
        (Some(job), _) => Some((job.callback, job.instance, job.action)),
        (None, Some(row)) => Some((row.number, row.instance, row.action)),
        (None, None) => None,
    }
}

/// Returns the audit entries of operations on an instance, on these callbacks and on these jobs, the newest first.
///
/// The audit log has no index by target, so all of its entries are searched.
fn operations_on(
    rows: &dyn Lists,
    instance: &InstanceRow,
    callbacks: &[ListedCallback],
    jobs: &[ListedJob],
) -> Result<Vec<AuditEntry>, StoreError> {
    let mut targets: HashSet<String> = instance.audit_targets().collect();
    targets.extend(callbacks.iter().map(|listed| format!("callback {}", listed.row.number)));
    targets.extend(jobs.iter().map(|listed| format!("job {}", listed.row.id)));
    let mut entries = rows.audit_log(usize::MAX)?;
    entries.retain(|entry| entry.targets().any(|target| targets.contains(target)));
    Ok(entries)
}

fn instances(rows: &dyn Lists, numbers: impl Iterator<Item = i64>) -> Result<Instances, StoreError> {
    // Many rows of a list may refer to one instance.
    let numbers: BTreeSet<i64> = numbers.collect();
    let found = rows.instances_of(&Vec::from_iter(numbers))?;
    Ok(found.into_iter().map(|row| (row.number, row)).collect())
}

fn contents(rows: &dyn Lists, numbers: impl Iterator<Item = i64>) -> Result<Contents, StoreError> {
    let found = rows.callbacks_of(&Vec::from_iter(numbers))?;
    Ok(found.into_iter().map(|(row, callback)| (row.number, (row.endpoint, callback))).collect())
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
    /// A name of the instance, or the name that the callback uses.
    pub instance: Option<String>,
    /// True if there is an instance, so that its name finds it.
    #[serde(skip)]
    pub has_instance: bool,
    /// Order id of the marketplace.
    pub order: Option<String>,
    /// The buyer, if the callback names one.
    pub buyer: Option<String>,
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

    /// Returns the text that names the instance as the target of an operation in the audit log.
    pub fn audit_target(&self) -> String {
        self.audit_target_by(self.name().unwrap_or("-"))
    }

    /// Returns each text by which audit entries may name the instance: it had another name before it was created.
    fn audit_targets(&self) -> impl Iterator<Item = String> {
        let names = [&self.instance.id, &self.instance.order_biz_id, &self.known_as];
        names.into_iter().flatten().map(|name| self.audit_target_by(name))
    }

    fn audit_target_by(&self, name: &str) -> String {
        format!("instance {name} of {}", self.instance.account)
    }
}

impl AuditEntry {
    /// Returns the targets in the entry. A callback may be followed by the callback that it was approved as, or by the
    /// address that it was sent to.
    fn targets(&self) -> impl Iterator<Item = &str> {
        let (target, rest) = match self.target.strip_prefix("callback ") {
            Some(_) => {
                let mut parts = self.target.split(" as ").flat_map(|part| part.split(" to "));
                (parts.next().unwrap_or_default(), parts.next())
            }
            None => (self.target.as_str(), None),
        };
        std::iter::once(target).chain(rest)
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
    /// These are the latest `most` callbacks, jobs and operations, and the older callbacks and jobs that still wait. An instance can have
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
        self.with(|rows| {
            let (callbacks, jobs) = (describe_callbacks(rows, callbacks)?, describe_jobs(rows, jobs)?);
            let mut operations = operations_on(rows, &instance, &callbacks, &jobs)?;
            let older = older || operations.len() > most;
            operations.truncate(most);
            operations.reverse();
            Ok(InstanceHistory { instance, callbacks, jobs, operations, older })
        })
        .map_err(ViewError::from)
    }

    /// Returns the job with this id, and its attempts.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn job_detail(&self, id: Id) -> Result<JobDetail, ViewError> {
        let found = self.with(|rows| {
            let Some(job) = rows.job_by_id(id)? else { return Ok(None) };
            let failed_attempts = rows.attempts(job.number)?;
            let job = describe_jobs(rows, vec![job])?.pop();
            Ok(job.map(|job| JobDetail { job, failed_attempts, trace_id: TraceId::of(id) }))
        })?;
        found.ok_or_else(|| ViewError::NotFound(format!("there is no job {id}")))
    }

    /// Returns the callback with this number and its whole content.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn callback_detail(&self, number: i64) -> Result<CallbackDetail, ViewError> {
        let found = self.with(|rows| {
            let Some((row, callback)) = rows.callback(number)? else { return Ok(None) };
            let listed = describe_callbacks(rows, vec![row])?.pop();
            Ok(listed.map(|listed| {
                let trace_id = listed.job.map(TraceId::of);
                CallbackDetail { listed, callback, trace_id }
            }))
        })?;
        found.ok_or_else(|| ViewError::NotFound(format!("there is no callback {number}")))
    }

    /// Returns callbacks, the newest first, each with its customer.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn listed_callbacks(&self, filter: &Filter) -> Result<Vec<ListedCallback>, StoreError> {
        self.with(|rows| describe_callbacks(rows, rows.list_callbacks(filter)?))
    }

    /// Returns jobs of every kind, the newest first.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn every_job(&self, filter: &Filter) -> Result<Vec<AnyJob>, StoreError> {
        self.with(|rows| {
            let mut jobs = Vec::new();
            if filter.kind.is_none_or(|kind| kind == JobKind::Hook) {
                let found = describe_jobs(rows, rows.list_jobs(filter)?)?;
                jobs.extend(found.into_iter().map(|job| AnyJob::Hook(Box::new(job))));
            }
            if filter.kind != Some(JobKind::Hook) {
                // Jobs older than a full page are not on it. Without this bound the search would read the whole table.
                let oldest = jobs.last().filter(|_| jobs.len() >= filter.limit).map_or(0, AnyJob::number);
                let found = rows.list_market_jobs(filter, oldest)?;
                jobs.extend(found.into_iter().map(|job| AnyJob::Market(Box::new(job))));
            }
            jobs.sort_by_key(|job| std::cmp::Reverse(job.number()));
            jobs.truncate(filter.limit);
            Ok(jobs)
        })
    }

    /// Returns the id of every job, with the word of its action or kind, and its state. The newest is first.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn job_words(&self) -> Result<Vec<(Id, &'static str, JobState)>, StoreError> {
        let all = Filter { limit: usize::MAX, ..Filter::default() };
        self.with(|rows| {
            let mut found = Vec::new();
            for job in rows.list_jobs(&all)? {
                found.push((job.number, (job.id, job.action.as_str(), job.state)));
            }
            for job in rows.list_market_jobs(&all, 0)? {
                found.push((job.number, (job.id, job.kind.as_str(), job.state)));
            }
            found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
            Ok(found.into_iter().map(|(_, words)| words).collect())
        })
    }

    /// Returns the job of any kind with this id.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn any_job(&self, id: Id) -> Result<AnyJobDetail, ViewError> {
        match self.market_jobs(MarketJobs::Id(id))?.pop() {
            Some(job) => Ok(AnyJobDetail::Market(Box::new(job))),
            None => Ok(AnyJobDetail::Hook(Box::new(self.job_detail(id)?))),
        }
    }

    /// Returns jobs of hooks, the newest first, each with the names that its callback and its instance give.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn listed_jobs(&self, filter: &Filter) -> Result<Vec<ListedJob>, StoreError> {
        self.with(|rows| describe_jobs(rows, rows.list_jobs(filter)?))
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
        let held_items = self.with(|rows| describe_held(rows, found))?;
        Ok((held_items, left_out))
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
            fetched: false,
            approved: false,
            delivery_limit: None,
        }
    }

    #[tokio::test]
    async fn a_list_of_several_parts_describes_every_row() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(asked(Action::Create, 0, &clock)).await.unwrap());
        let count = limits::LIST_PART_COUNT * 2 + 1;
        for number in 1..count {
            drop(store.accept(asked(Action::Other, u32::try_from(number).unwrap(), &clock)).await.unwrap());
        }
        let (reader, all) = (store.reader(), Filter { limit: usize::MAX, ..Filter::default() });
        let (callbacks, jobs) = (reader.listed_callbacks(&all).unwrap(), reader.listed_jobs(&all).unwrap());
        assert_eq!((callbacks.len(), jobs.len()), (count, count));
        for (listed, job) in callbacks.iter().zip(&jobs) {
            assert_eq!((listed.row.number, listed.job), (job.row.callback, Some(job.row.id)));
            assert_eq!((listed.instance.as_deref(), job.instance.as_deref()), (Some("biz-1"), Some("biz-1")));
            assert_eq!((listed.row.action, &job.endpoint[..]), (job.callback.action, "e"));
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
