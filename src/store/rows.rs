//! Stored rows, and the operations that a backend offers on them.
//!
//! The rules are written once, in `rules`. They read and change rows in a unit of work (`work`); a backend only finds and
//! keeps rows. So two backends cannot decide differently. The second one is the model that the tests compare with.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::StoreError;
use super::work::Changes;
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_core::signature::KEY_MARK_BYTES;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State};
use spid_hook::text::without_user_info;

/// Result of an operation of the store.
pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A stored row that cannot be read. It stops only the work that needs this row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("row {row} of table `{table}` cannot be read: {fault}")]
pub struct Unreadable {
    /// Name of the table.
    pub table: &'static str,
    /// Number or key of the row.
    pub row: String,
    /// The column, and its fault.
    pub fault: String,
    /// True if a newer spid may have written the row. Then it is not damaged, and is left as it is.
    pub newer: bool,
}

/// A job, or its number and the fault of its row.
pub type ReadableJob = std::result::Result<JobRow, (i64, Box<Unreadable>)>;

/// A stored instance: its number in the store, and the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstanceRow {
    /// Number of the instance in the store.
    #[serde(skip)]
    pub number: i64,
    /// Number of the job that created the instance.
    #[serde(skip)]
    pub created_by: Option<i64>,
    /// Id that the marketplace itself chose for the instance. `None`: it receives the instance's own id.
    #[serde(skip_serializing_if = "Option::is_none", rename = "public_id")]
    pub marketplace_instance_id: Option<String>,
    /// A name of an instance with neither an id nor an `orderBizId`, because its release came before anything else.
    ///
    /// A [`Work`](super::Work) sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_as: Option<String>,
    /// The record.
    #[serde(flatten)]
    pub instance: Instance,
}

impl InstanceRow {
    /// Returns the id that is reported to the marketplace, if the instance has been created.
    pub(crate) fn reported_id(&self) -> Option<String> {
        let own = self.instance.id.as_ref()?;
        Some(self.marketplace_instance_id.as_ref().unwrap_or(own).clone())
    }
}

spid_hook::words! {
    /// Decision about a callback.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Disposition {
        /// The callback has a job.
        Job = "job",
        /// The callback waits for an operator.
        Held = "held",
        /// The callback was refused.
        Refused = "refused",
        /// The callback needed no job.
        Recorded = "recorded",
    }
}

/// A stored callback. Its redeliveries are counted in the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallbackRow {
    /// Number of the callback in the store.
    pub number: i64,
    /// Account of the callback.
    pub account: String,
    /// Name of the endpoint of the first delivery.
    pub endpoint: String,
    /// Label of the key that signed it.
    pub key_label: String,
    /// Deduplication key, equal for all redeliveries.
    #[serde(serialize_with = "as_hex")]
    pub deduplication_key: [u8; 16],
    /// Number of the instance, if there is one.
    #[serde(skip)]
    pub instance: Option<i64>,
    /// Number of the job, if there is one. Of several jobs, the latest.
    #[serde(skip)]
    pub job: Option<i64>,
    /// The requested action.
    pub action: Action,
    /// The decision.
    pub disposition: Disposition,
    /// Reason of a refusal or a hold: the stable code.
    pub reason_code: Option<String>,
    /// Reason of a refusal or a hold: the sentence.
    pub reason: Option<String>,
    /// Time of the first delivery.
    pub received_at: Timestamp,
    /// Time of the last delivery.
    pub last_received_at: Timestamp,
    /// Number of deliveries. 0: only an operator asked for it.
    pub deliveries: u64,
    /// Delivery limit: the marketplace gives up after this many deliveries. `None`: not counted.
    pub delivery_limit: Option<u32>,
    /// Time at which success was reported to the marketplace.
    pub reported_at: Option<Timestamp>,
    /// Time at which an operator took the callback off the attention list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dismissed_at: Option<Timestamp>,
}

fn as_hex<S: serde::Serializer>(bytes: &[u8; 16], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// A stored job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobRow {
    /// Number of the job in the store. Later jobs have higher numbers.
    #[serde(skip)]
    pub number: i64,
    /// Id of the job, which is the idempotency key of its hook calls.
    pub id: Id,
    /// Number of the callback.
    pub callback: i64,
    /// Number of the instance, if there is one.
    #[serde(skip)]
    pub instance: Option<i64>,
    /// True if the job belongs to the instance's queue.
    pub ordered: bool,
    /// Action of the job.
    pub action: Action,
    /// State of the job.
    pub state: JobState,
    /// Number of attempts begun. The end of an attempt with another number is fenced.
    pub attempts: u32,
    /// Retry index: the number of spent steps of the retry schedule.
    pub step: u32,
    /// Kind of the running or next attempt: scheduled or unscheduled.
    pub extra: Extra,
    /// Time at which a queued job may run.
    pub due_at: Timestamp,
    /// End of the lease of a running job.
    pub lease_until: Option<Timestamp>,
    /// Time at which the last attempt ended.
    pub attempted_at: Option<Timestamp>,
    /// Text of the last attempt, or the reason why an operator must look.
    pub note: Option<String>,
    /// Open part of the answer. A database of an older spid may hold URLs with a password in it.
    #[serde(serialize_with = "without_passwords")]
    pub answer: Option<String>,
    /// Secret part of the answer, encrypted.
    #[serde(skip)]
    pub sealed: Option<Vec<u8>>,
    /// Id that the hook gave to the instance in the first answer with an id.
    pub proposed_id: Option<String>,
    /// Time at which the job was created.
    pub created_at: Timestamp,
    /// Time at which the job ended.
    pub ended_at: Option<Timestamp>,
    /// True while an earlier job of the instance's queue has not ended. A [`Work`](super::Work) sets it.
    #[serde(skip)]
    pub blocked: bool,
}

impl JobRow {
    /// Returns true if the job may be leased.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.state == JobState::Queued && !self.blocked && self.due_at <= now
    }
}

fn without_passwords<S: Serializer>(
    answer: &Option<String>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    answer.as_deref().map(without_user_info).serialize(serializer)
}

spid_hook::words! {
    /// Kind of a job of the market client. A job of a hook has no such kind.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum MarketJobKind {
        /// Fetches the notifications that a marketplace has given up sending. It comes back at its interval.
        NotificationFetch = "notification-fetch",
        /// Takes a fetched notification off the marketplace's list.
        NotificationConfirm = "notification-confirm",
    }
}

impl MarketJobKind {
    /// Returns true if a job of this kind comes back after it was done.
    pub fn is_recurring(self) -> bool {
        self == MarketJobKind::NotificationFetch
    }
}

/// Kind of a job: a hook's, or one of the market client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// A job for a callback. A hook carries it out.
    Hook,
    /// A job of the market client.
    Market(MarketJobKind),
}

impl JobKind {
    /// Returns the word of the kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::Hook => "hook",
            JobKind::Market(kind) => kind.as_str(),
        }
    }

    /// Returns the kind with this word.
    pub fn from_word(word: &str) -> Option<JobKind> {
        JobKind::all().find(|kind| kind.as_str() == word)
    }

    /// Returns every kind.
    pub fn all() -> impl Iterator<Item = JobKind> {
        std::iter::once(JobKind::Hook).chain(MarketJobKind::ALL.map(JobKind::Market))
    }
}

impl Serialize for JobKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A stored job of the market client: a call of a marketplace's API that is owed. No callback asks for it.
///
/// At most one live job of a kind has the same market and subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MarketJob {
    /// Number of the job in the store, in the same sequence as the jobs of hooks.
    #[serde(skip)]
    pub number: i64,
    /// Kind of the job.
    pub kind: MarketJobKind,
    /// Id of the job.
    pub id: Id,
    /// Name of the market.
    pub market: String,
    /// Subject of the call, within its market and kind.
    pub about: String,
    /// State of the job.
    pub state: JobState,
    /// Number of attempts begun. The end of an attempt with another number is fenced.
    pub attempts: u32,
    /// Number of attempts in a row that have failed.
    pub step: u32,
    /// Time at which a queued job may run.
    pub due_at: Timestamp,
    /// End of the lease of a running job.
    pub lease_until: Option<Timestamp>,
    /// Time at which the last attempt ended.
    pub attempted_at: Option<Timestamp>,
    /// Text of the last attempt.
    pub note: Option<String>,
    /// Time at which the job was created.
    pub created_at: Timestamp,
    /// Time at which the job ended.
    pub ended_at: Option<Timestamp>,
}

/// Selection of due jobs: queued jobs of this market and kind that are due now, up to a number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueMarketJobs<'a> {
    /// Kind of the jobs.
    pub kind: MarketJobKind,
    /// Name of the market.
    pub market: &'a str,
    /// The time.
    pub now: Timestamp,
    /// Maximum number of jobs.
    pub limit: usize,
}

/// Selection of jobs of the market client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarketJobs<'a> {
    /// The job with this number.
    Number(i64),
    /// The live job of this kind, for this market, about this.
    Live(MarketJobKind, &'a str, &'a str),
    /// The job with this id.
    Id(Id),
    /// Due jobs of a market, the longest due first.
    Due(DueMarketJobs<'a>),
    /// Running jobs.
    Running,
    /// Jobs that have not ended.
    AllLive,
}

impl MarketJobs<'_> {
    /// Returns true for a job of the selection.
    pub fn has(&self, job: &MarketJob) -> bool {
        match self {
            MarketJobs::Number(number) => job.number == *number,
            MarketJobs::Live(kind, market, about) => {
                job.kind == *kind && job.market == *market && job.about == *about && job.state.is_live()
            }
            MarketJobs::Id(id) => job.id == *id,
            MarketJobs::Due(due) => {
                let is_due = job.state == JobState::Queued && job.due_at <= due.now;
                is_due && job.kind == due.kind && job.market == due.market
            }
            MarketJobs::Running => job.state == JobState::Running,
            MarketJobs::AllLive => job.state.is_live(),
        }
    }

    /// Returns these jobs in the order of the selection, and not more than it asks for.
    pub fn sorted(&self, mut jobs: Vec<MarketJob>) -> Vec<MarketJob> {
        match self {
            MarketJobs::Due(due) => {
                jobs.sort_by_key(|job| (job.due_at, job.number));
                jobs.truncate(due.limit);
            }
            _ => jobs.sort_by_key(|job| job.number),
        }
        jobs
    }
}

/// An attempt that did not succeed. A successful attempt has no row: the job shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptRow {
    /// Number of the job.
    #[serde(skip)]
    pub job: i64,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Time at which it ended.
    pub ended_at: Timestamp,
    /// Word for the result.
    pub ending: String,
    /// Text of the attempt.
    pub note: String,
}

/// A configured signature key, and its last use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyUse {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Label of the key.
    pub label: String,
    /// Mark of the key, which shows that the label still stands for the same key: see [`spid_core::signature::Key::mark`].
    #[serde(skip)]
    pub mark: [u8; KEY_MARK_BYTES],
    /// Time since which the key has been configured under this label.
    pub since: Timestamp,
    /// Last use since then, exact to [`crate::observe::limits::KEY_USE_STEP_MS`].
    pub used_at: Option<Timestamp>,
}

/// An entry of the audit log: an operation of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Time of the operation.
    pub at: Timestamp,
    /// Name of the person.
    pub who: String,
    /// Word of the command.
    pub act: String,
    /// Target: the name of an instance, the id of a job, or the number of a callback.
    pub target: String,
    /// Reason in the person's words.
    pub why: String,
}

/// Filter of the rows in a list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Instances in this state.
    pub state: Option<State>,
    /// Rows of one of these accounts. Empty: of every account.
    pub accounts: Vec<String>,
    /// Instances of this buyer.
    pub buyer: Option<String>,
    /// Instances that this tenant has claimed.
    pub tenant: Option<String>,
    /// Instances with this text in a name, the buyer, the order, the product or the SKU.
    ///
    /// The case of ASCII letters is ignored. The search may have to read every instance.
    pub search: Option<String>,
    /// Instances that are not released and whose term ends in this range. The second instant is excluded.
    pub expires: Option<(Timestamp, Timestamp)>,
    /// Rows of this instance.
    pub instance: Option<i64>,
    /// Jobs in one of these states. Empty: in every state.
    pub jobs: Vec<JobState>,
    /// Jobs of this kind. Only [`Reader::every_job`](super::Reader::every_job) has jobs of several kinds.
    pub kind: Option<JobKind>,
    /// Callbacks with this disposition.
    pub disposition: Option<Disposition>,
    /// True for only those callbacks of a marketplace that are done and whose success was not reported.
    pub unreported: bool,
    /// Rows with a number below this: the next page.
    pub before: Option<i64>,
    /// Maximum number of rows.
    pub limit: usize,
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Totals for the health page and the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Number of instances by state.
    pub instances: BTreeMap<&'static str, u64>,
    /// Number of jobs that have not ended, by state.
    pub jobs: BTreeMap<&'static str, u64>,
    /// Number of callbacks that wait for an operator.
    pub held: u64,
    /// Number of results that were not reported to the marketplace.
    pub unreported: u64,
    /// Creation time of the oldest job that is queued or running.
    pub oldest_job: Option<Timestamp>,
    /// Earliest due time of a queued job that could run. It may be in the future.
    pub next_due: Option<Timestamp>,
    /// Largest number of deliveries of one callback whose answer the marketplace still wants.
    pub tries: u64,
    /// Largest share of its delivery limit that such a callback has used.
    pub deliveries_used_ratio: f64,
}

/// An instance and its queue: the live jobs in order, each with its callback.
pub type InstanceAndQueue = (InstanceRow, Vec<(JobRow, Callback)>);

/// Tables whose rows have a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbered {
    /// Instances.
    Instance,
    /// Callbacks.
    Callback,
    /// Jobs.
    Job,
}

/// Reads that a decision may need. A backend answers them from its rows, and a [`Work`](super::Work) from the rows as
/// it has changed them.
pub trait Read {
    /// Returns the instance with this number.
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>>;
    /// Returns the instance with this number. `None` also without a number.
    fn instance_of(&self, number: Option<i64>) -> Result<Option<InstanceRow>> {
        number.map_or(Ok(None), |number| self.instance(number))
    }
    /// Returns the instance with this name, and its queue.
    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<InstanceAndQueue>>;
    /// Returns the number of the instance that has this name.
    fn name_holder(&self, account: &str, name: &str) -> Result<Option<i64>>;
    /// Returns up to two instances with this order. Two mean that the order does not name one instance.
    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>>;
    /// Returns the instance that this order bought under this `orderBizId`.
    ///
    /// Only the first [`crate::observe::limits::ORDER_INSTANCES_READ_COUNT`] instances of the order are read.
    fn instance_bought(&self, account: &str, order_id: &str, order_biz_id: &str) -> Result<Option<i64>>;
    /// Returns the live jobs in the instance's queue, in order, each with its callback.
    fn queue(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>>;
    /// Returns true if the instance's queue has a live job.
    fn has_queue(&self, instance: i64) -> Result<bool>;
    /// Returns the live jobs in the instance's queue, in order, without their callbacks.
    fn queue_jobs(&self, instance: i64) -> Result<Vec<JobRow>>;
    /// Returns all jobs of the instance that can be read, the newest first.
    fn instance_jobs(&self, instance: i64) -> Result<Vec<JobRow>>;
    /// Returns all callbacks of the instance that can be read, the newest first.
    fn instance_callbacks(&self, instance: i64) -> Result<Vec<CallbackRow>>;
    /// Returns the time until which this nonce digest is kept, if it is stored.
    fn nonce_until(&self, account: &str, mark: &[u8; 16]) -> Result<Option<Timestamp>>;
    /// Returns the callbacks with this deduplication key, the oldest first, each with its job if it has one.
    fn earlier_callbacks(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>>;
    /// Returns a callback and its content.
    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>>;
    /// Returns the row of a callback without its content.
    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>>;
    /// Returns the job with this number.
    fn job(&self, number: i64) -> Result<Option<JobRow>>;
    /// Returns the job with this number. `None` also without a number.
    fn job_of(&self, number: Option<i64>) -> Result<Option<JobRow>> {
        number.map_or(Ok(None), |number| self.job(number))
    }
    /// Returns the job with this id.
    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>>;
    /// Returns the number of the row that is added next to this table.
    fn next_number(&self, table: Numbered) -> Result<i64>;
    /// Returns queued jobs that are due and first in their instance's queue, the longest due first.
    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<ReadableJob>>;
    /// Returns the next due time after `now` of a queued job that is first in its instance's queue.
    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>>;
    /// Returns running jobs whose lease ended before this instant, or that have none. Without an instant: all running
    /// jobs.
    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<ReadableJob>>;
    /// Returns the configured keys with their last use, sorted by endpoint and label.
    fn key_uses(&self) -> Result<Vec<KeyUse>>;
    /// Returns the payments of this order that can be read, with their content.
    fn payments(&self, account: &str, order_id: &str) -> Result<Vec<(CallbackRow, Callback)>>;
    /// Returns jobs of the market client. A job that cannot be read is left out.
    fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>>;
}

/// Lists and totals, for people.
pub trait Lists: Read {
    /// Returns the instances with this name, in every account.
    fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>>;
    /// Returns the account and a name of the instance with this number, if it has one.
    fn name_of(&self, number: i64) -> Result<Option<(String, String)>>;
    /// Returns the rows that cannot be read among the newest `limit` instances. It reads each of them.
    fn unreadable_instances(&self, limit: usize) -> Result<Vec<Unreadable>>;
    /// Returns instances, the newest first.
    fn list_instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>>;
    /// Returns jobs of hooks, the newest first.
    fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobRow>>;
    /// Returns jobs of the market client with a number above `after`, the newest first.
    fn list_market_jobs(&self, filter: &Filter, after: i64) -> Result<Vec<MarketJob>>;
    /// Returns callbacks, the newest first.
    fn list_callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>>;
    /// Returns the instances with these numbers, in any order. Unreadable rows are left out of this and the next two.
    fn instances_of(&self, numbers: &[i64]) -> Result<Vec<InstanceRow>> {
        readable(numbers, |number| self.instance(number))
    }
    /// Returns the jobs with these numbers, in any order.
    fn jobs_of(&self, numbers: &[i64]) -> Result<Vec<JobRow>> {
        readable(numbers, |number| self.job(number))
    }
    /// Returns the callbacks with these numbers and their content, in any order.
    fn callbacks_of(&self, numbers: &[i64]) -> Result<Vec<(CallbackRow, Callback)>> {
        readable(numbers, |number| self.callback(number))
    }
    /// Returns callbacks that may need a person, the oldest first, each with its job if it has one.
    ///
    /// These are callbacks whose success was not reported, purchases repeated with other values, and refused payments.
    /// Dismissed callbacks, sign-ons and queries are left out.
    fn unreported(&self) -> Result<Vec<(CallbackRow, Option<JobRow>)>>;
    /// Returns the attempts of a job that did not succeed, the oldest first.
    fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>>;
    /// Returns entries of the audit log, the newest first.
    fn audit_log(&self, limit: usize) -> Result<Vec<AuditEntry>>;
    /// Returns the days from `first` to before `end` on which terms end, with their number. A day is counted from 1970,
    /// UTC.
    fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>>;
    /// Returns the totals of instances, jobs and callbacks.
    fn totals(&self) -> Result<Totals>;
    /// Returns the accounts that are not `served` and have unreleased instances, with the number of these.
    fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>>;
}

/// Reads rows one by one, and leaves out those that cannot be read.
fn readable<T>(numbers: &[i64], read: impl Fn(i64) -> Result<Option<T>>) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for number in numbers {
        match read(*number) {
            Err(StoreError::Unreadable(_)) => {}
            row => found.extend(row?),
        }
    }
    Ok(found)
}

/// A backend with transactions.
pub trait Backend: Read + Send + 'static {
    /// Begins a transaction. `true`: only this backend has committed since its last transaction began.
    fn begin(&mut self) -> Result<bool>;
    /// Stores the changes of a [`Work`](super::Work) in the open transaction.
    ///
    /// After an error some of them may be stored, so the caller must roll back.
    fn store(&mut self, changes: &Changes<'_>) -> Result<()>;
    /// Commits the transaction.
    fn commit(&mut self) -> Result<()>;
    /// Rolls the transaction back, if one is open.
    fn rollback(&mut self) -> Result<()>;
    /// Begins a savepoint. Savepoints are never nested.
    fn savepoint(&mut self) -> Result<()>;
    /// Ends the savepoint and keeps its changes.
    fn release_savepoint(&mut self) -> Result<()>;
    /// Ends the savepoint and takes its changes back.
    fn rollback_savepoint(&mut self) -> Result<()>;
    /// Returns true if a transaction is open. After a disk error SQLite may have ended it by itself.
    fn in_transaction(&self) -> bool;
}

/// Access to the committed rows of a backend, from any thread.
pub trait CommittedRows: Send + Sync + 'static {
    /// Calls `read` once, with the rows of one commit.
    ///
    /// # Errors
    /// Fails with the error of `read`, or if the rows cannot be read.
    fn with(&self, read: &mut dyn FnMut(&dyn Lists) -> Result<()>) -> Result<()>;
    /// Checks that the writer's last commit can still be read.
    ///
    /// # Errors
    /// Fails if another process has moved, deleted or replaced the rows.
    fn is_in_place(&self) -> Result<()> {
        Ok(())
    }
    /// Returns the path of the database, if the rows are in a file.
    fn path(&self) -> Option<&Path> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_has_one_word_everywhere() {
        for decision in Disposition::ALL {
            assert_eq!(serde_json::to_value(decision).unwrap(), decision.as_str());
        }
    }
}
