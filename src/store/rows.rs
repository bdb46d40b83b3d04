//! What is stored, and the few operations a backend must offer on it.
//!
//! The rules live in `ledger`, once. A backend only finds and keeps rows, so that the model in
//! memory and SQLite cannot drift apart in what they decide.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::StoreError;
use crate::core::lifecycle::schedule;
use crate::core::lifecycle::{Instance, State};
use crate::core::signature::KEY_MARK_BYTES;
use crate::hook::callback::{Action, Callback};
use crate::hook::clock::Id;
use crate::hook::text::without_user_info;

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A stored row that cannot be read. It stops what concerns it, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("row {row} of table `{table}` cannot be read: {fault}")]
pub struct Unreadable {
    /// The table.
    pub table: &'static str,
    /// The number of the row, or its key.
    pub row: String,
    /// The column, and what is wrong with it.
    pub fault: String,
    /// Whether a newer spid may have written it: then it is no damage, and is left as it is.
    pub newer: bool,
}

/// A job, or its number and why it cannot be read.
pub(crate) type Readable = std::result::Result<JobRow, (i64, Box<Unreadable>)>;

/// A stored instance: its number in the store, and the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstanceRow {
    /// The store's number.
    #[serde(skip)]
    pub number: i64,
    /// The number of the job that created it.
    #[serde(skip)]
    pub created_by: Option<i64>,
    /// The id by which the marketplace calls it, where it chose that itself; else it is told the
    /// instance's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_id: Option<String>,
    /// A name it is known by, where it has neither an id nor an orderBizId: its release came before anything else.
    /// A reader fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_as: Option<String>,
    /// The record.
    #[serde(flatten)]
    pub instance: Instance,
}

impl InstanceRow {
    /// The id the marketplace is told, once there is something behind it.
    pub(crate) fn told_id(&self) -> Option<String> {
        let own = self.instance.id.as_ref()?;
        Some(self.public_id.as_ref().unwrap_or(own).clone())
    }
}

/// What became of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// It has a job.
    Job,
    /// It waits for an operator.
    Held,
    /// It was refused.
    Refused,
    /// It needed no job.
    Recorded,
}

impl Disposition {
    pub(crate) const ALL: [Disposition; 4] =
        [Disposition::Job, Disposition::Held, Disposition::Refused, Disposition::Recorded];
}

/// One stored occurrence: the first callback of it, and how often it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallbackRow {
    /// The store's number.
    pub number: i64,
    /// The account it was for.
    pub account: String,
    /// The endpoint it first came through.
    pub endpoint: String,
    /// The label of the key that signed it.
    pub key_label: String,
    /// Equal for all redeliveries.
    #[serde(serialize_with = "as_hex")]
    pub occurrence: [u8; 16],
    /// The instance it is about, if there is one.
    pub instance: Option<i64>,
    /// Its job, if it has one: the latest, where there were several.
    pub job: Option<i64>,
    /// What it asked.
    pub action: Action,
    /// What became of it.
    pub disposition: Disposition,
    /// Why it was refused or held: the stable word.
    pub reason_code: Option<String>,
    /// Why it was refused or held: the sentence.
    pub reason: Option<String>,
    /// When it came first.
    pub received_at: Timestamp,
    /// When it came last.
    pub last_received_at: Timestamp,
    /// How often it came. 0: nobody but an operator asked for it.
    pub deliveries: u64,
    /// After how many deliveries the marketplace gives up; `None` when that is not counted.
    pub budget: Option<u32>,
    /// When the marketplace was told its success.
    pub told_at: Option<Timestamp>,
    /// When an operator took it off the list of what needs attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dismissed_at: Option<Timestamp>,
}

fn as_hex<S: serde::Serializer>(bytes: &[u8; 16], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// A stored job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobRow {
    /// The store's number; later jobs have higher ones.
    pub number: i64,
    /// The idempotency key its hook is called with.
    pub id: Id,
    /// The callback it was made for.
    pub callback: i64,
    /// The instance it is for, if there is one.
    pub instance: Option<i64>,
    /// Whether it has a place in the instance's lane.
    pub in_lane: bool,
    /// What it does.
    pub action: Action,
    /// Where it stands.
    pub state: schedule::JobState,
    /// Attempts begun; also what fences a finish.
    pub attempts: u32,
    /// Steps of the retry schedule spent.
    pub step: u32,
    /// Whether the attempt that runs or comes next is extra.
    pub extra: schedule::Extra,
    /// When it may run, while it is queued.
    pub due_at: Timestamp,
    /// Until when its dispatcher holds it, while it runs.
    pub lease_until: Option<Timestamp>,
    /// When the last attempt ended.
    pub attempted_at: Option<Timestamp>,
    /// What the last attempt said, or why an operator must look.
    pub note: Option<String>,
    /// The plain part of the answer. A database of an older spid may hold URLs with a password in it.
    #[serde(serialize_with = "without_passwords")]
    pub answer: Option<String>,
    /// The secret part of the answer, sealed.
    #[serde(skip)]
    pub sealed: Option<Vec<u8>>,
    /// The id the hook gave the instance, as soon as it gave one.
    pub proposed_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

fn without_passwords<S: Serializer>(
    answer: &Option<String>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    answer.as_deref().map(without_user_info).serialize(serializer)
}

/// One attempt that did not succeed. One that did is told by its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptRow {
    /// The job's number.
    pub job: i64,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How it ended: a word.
    pub ending: String,
    /// What it said.
    pub note: String,
}

/// A configured key, and when it signed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyUse {
    /// The endpoint.
    pub endpoint: String,
    /// The label of the key.
    pub label: String,
    /// Tells whether the label still stands for the same key: see [`crate::signature::Key::mark`].
    #[serde(skip)]
    pub mark: [u8; KEY_MARK_BYTES],
    /// Since when it has been configured under this label.
    pub since: Timestamp,
    /// When it signed last since then, give or take [`crate::limits::KEY_USE_STEP_MS`].
    pub used_at: Option<Timestamp>,
}

/// Something a person did by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActRow {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// What: the word of the command.
    pub act: String,
    /// To what: an instance's name, a job's id, a callback's number.
    pub target: String,
    /// Why, in their words.
    pub why: String,
}

/// Which rows a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Instances in this state.
    pub state: Option<State>,
    /// Instances of this account.
    pub account: Option<String>,
    /// Instances of which a name, the buyer, the order, the product or the SKU contains this text, in
    /// whatever case its ASCII letters are. Every instance may have to be looked at.
    pub search: Option<String>,
    /// Instances in use, or frozen, or about to be made, whose term ends from the first instant on and
    /// before the second.
    pub expires: Option<(Timestamp, Timestamp)>,
    /// Rows of this instance.
    pub instance: Option<i64>,
    /// Jobs in one of these states.
    pub jobs: Vec<schedule::JobState>,
    /// Callbacks with this disposition.
    pub disposition: Option<Disposition>,
    /// Callbacks that a marketplace sent, that are done, and whose success it was not told.
    pub untold: bool,
    /// Rows with a number below this: the next page.
    pub before: Option<i64>,
    /// At most this many rows.
    pub limit: usize,
}

/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Totals for a health page and the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Instances by state.
    pub instances: BTreeMap<&'static str, u64>,
    /// Jobs that have not ended, by state.
    pub jobs: BTreeMap<&'static str, u64>,
    /// Callbacks that wait for an operator.
    pub held: u64,
    /// Results the marketplace was not told.
    pub untold: u64,
    /// When the oldest job was made that is queued or running.
    pub oldest_job: Option<Timestamp>,
    /// Since when the job is due that could run and has been due the longest; it may lie ahead.
    pub next_due: Option<Timestamp>,
    /// Most tries a marketplace has spent on one callback that still wants its answer.
    pub tries: u64,
    /// The same, as a part of the tries it has.
    pub tries_ratio: f64,
}

/// An instance and its lane: the live jobs, in order, each with its callback.
pub(crate) type Known = (InstanceRow, Vec<(JobRow, Callback)>);

/// Finding rows.
pub(crate) trait Read {
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>>;
    /// The instances with this name, whatever their account.
    fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>>;
    /// A name of the instance with this number, if it has any.
    fn name_of(&self, number: i64) -> Result<Option<String>>;
    /// The instance with this name, and its lane.
    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<Known>>;
    /// Up to two instances with this order: one is a match, two are none.
    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>>;
    /// The instance that was bought by this order under this `orderBizId`, among the first
    /// [`crate::limits::ORDER_INSTANCES_READ_COUNT`] of the order.
    fn instance_bought(&self, account: &str, order_id: &str, order_biz_id: &str) -> Result<Option<i64>>;
    /// The live jobs of the lane, in order, each with its callback.
    fn lane(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>>;
    /// Whether there is a live job in the lane.
    fn has_lane(&self, instance: i64) -> Result<bool>;
    /// The live jobs of the lane, in order, without what was asked.
    fn lane_jobs(&self, instance: i64) -> Result<Vec<JobRow>>;
    /// Until when this mark of a request is kept, if it is.
    fn once_until(&self, account: &str, mark: &[u8; 16]) -> Result<Option<Timestamp>>;
    /// The occurrences with this key, the oldest first, each with its job if it has one.
    fn occurrences(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>>;
    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>>;
    /// The same without what it said.
    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>>;
    fn job(&self, number: i64) -> Result<Option<JobRow>>;
    /// The number of the job that is added next.
    fn next_job(&self) -> Result<i64>;
    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>>;
    /// Queued jobs that are due and first in their lane, the longest due first.
    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Readable>>;
    /// When the next queued job becomes due that is first in its lane and not due now.
    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>>;
    /// The jobs that run under a lease that ended before this instant, or under none; all that run, without an
    /// instant.
    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<Readable>>;
    fn list_instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>>;
    fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobRow>>;
    fn list_callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>>;
    /// Callbacks that may need a person, the oldest first, each with its job if it has one: those whose success was
    /// not reported, and purchases that were repeated with other values. Not those an operator dismissed, nor
    /// sign-ons and questions.
    fn unreported(&self) -> Result<Vec<(CallbackRow, Option<JobRow>)>>;
    fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>>;
    /// What was done by hand, the newest first.
    fn list_acts(&self, limit: usize) -> Result<Vec<ActRow>>;
    /// Days (counted from 1970, UTC) from `first` to before `end` on which terms end, with how many.
    fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>>;
    /// The configured keys, by endpoint and label.
    fn key_uses(&self) -> Result<Vec<KeyUse>>;
    fn totals(&self) -> Result<Totals>;
    /// The accounts beside these that have instances which are not released, with how many.
    fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>>;
}

/// Keeping rows. The `number` of a row that is added is ignored; the new one is returned.
pub(crate) trait Write: Read {
    fn add_instance(&mut self, instance: &Instance) -> Result<i64>;
    fn put_instance(&mut self, row: &InstanceRow) -> Result<()>;
    /// Makes a tombstone this instance, with everything that [`Write::put_instance`] leaves as it is.
    fn replace_instance(&mut self, row: &InstanceRow) -> Result<()>;
    /// Gives the instance a name. `false`: another one of the account has it.
    fn add_name(&mut self, account: &str, name: &str, instance: i64) -> Result<bool>;
    fn add_order(&mut self, account: &str, order_id: &str, instance: i64) -> Result<()>;
    fn add_callback(&mut self, row: &CallbackRow, callback: &Callback) -> Result<i64>;
    fn put_callback(&mut self, row: &CallbackRow) -> Result<()>;
    /// Replaces what a callback says: with what was learned of it since.
    fn put_body(&mut self, number: i64, callback: &Callback) -> Result<()>;
    /// Keeps the mark of a request. `false`: it is kept already.
    fn add_once(&mut self, account: &str, mark: &[u8; 16], until: Timestamp) -> Result<bool>;
    /// Forgets the marks that were kept until before this instant.
    fn forget_once(&mut self, before: Timestamp) -> Result<()>;
    /// The callback was told its success at `at`, unless it was before.
    fn put_told(&mut self, callback: i64, at: Timestamp) -> Result<()>;
    fn add_job(&mut self, row: &JobRow) -> Result<i64>;
    fn put_job(&mut self, row: &JobRow) -> Result<()>;
    /// Holds a live job whose row, or another one it needs, cannot be read.
    fn put_aside(&mut self, job: i64, note: &str) -> Result<()>;
    /// Lets a queued job be due then.
    fn put_off(&mut self, job: i64, until: Timestamp) -> Result<()>;
    fn add_attempt(&mut self, row: &AttemptRow) -> Result<()>;
    fn add_act(&mut self, row: &ActRow) -> Result<()>;
    fn put_key_use(&mut self, row: &KeyUse) -> Result<()>;
    fn drop_key_use(&mut self, endpoint: &str, label: &str) -> Result<()>;
}

/// A store that can be written in transactions.
pub(crate) trait Backend: Write + Send + 'static {
    fn begin(&mut self) -> Result<()>;
    fn commit(&mut self) -> Result<()>;
    fn rollback(&mut self) -> Result<()>;
    fn savepoint(&mut self) -> Result<()>;
    fn release_savepoint(&mut self) -> Result<()>;
    fn rollback_savepoint(&mut self) -> Result<()>;
    /// Writes something that changes nothing.
    fn touch(&mut self) -> Result<()>;
    /// Whether a transaction is open: a failing disk may have ended it unasked.
    fn in_transaction(&self) -> bool;
}
