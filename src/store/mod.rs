//! Durable store of callbacks, instances and jobs.
//!
//! [`Store`] is the handle that the rest of the daemon holds. Behind it are:
//!
//! * `writer`: one writer thread with group commit,
//! * `ledger`: the rules of accepting callbacks, leasing jobs and recording results,
//! * `sqlite`, and `memory` for models: two backends that only find and keep rows,
//! * `signals`: the signals between intake and dispatch.
//!
//! The store keeps two orders. First, it answers a caller after the commit, never before it. Second, it records a
//! result as reported to the marketplace in the commit that makes the result true.

mod attention;
pub mod encryption;
mod key_use;
mod ledger;
mod memory;
mod operations;
mod prune;
mod reencrypt;
mod rows;
#[doc(hidden)]
pub mod sim;
mod sqlite;
mod views;
mod waiters;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::encryption::{Encryptor, KeyId, KeySource, SealError};
use key_use::KeysUsed;
use ledger::{Accepted, Finish, KnownAnswer, Stored};
use rows::Read;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::callback::{Answer, Callback, Nonce, Outcome};
use spid_hook::id::{Id, Ids};
use spid_hook::instance::Instance;
use spid_hook::time::Clock;
use waiters::StoreSignals;
use writer::{AcceptCommand, Command, FinishCommand, LearnCommand, ReplySlot, Writer};

pub use attention::{Attention, AttentionItem, AttentionReason};
pub use key_use::ConfiguredKey;
pub use ledger::{Acceptance, Aside, LeasedJob};
pub use operations::{
    Approved, AuditNote, Claim, Claimed, Import, Imported, Instead, OperationError, Operations, Restored,
    backup, restore,
};
pub use prune::{PruneOptions, Pruned};
pub use reencrypt::{Decrypted, Reencrypted};
pub use rows::{
    AttemptRow, AuditEntry, CallbackRow, Disposition, Filter, InstanceRow, JobRow, KeyUse, Totals, Unreadable,
};
pub use sqlite::InstanceExport;
pub use views::{CallbackDetail, HeldItem, InstanceHistory, JobDetail, ListedCallback, ListedJob, ViewError};
pub use waiters::{Ready, ResultWaiter};
pub use writer::LeasedJobs;

/// Error of the store. Nothing of the failed operation was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has locked the database.
    #[error("the database is busy: another process has locked it; try again")]
    Busy,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database file is damaged.
    #[error("the database is damaged: {0}; restore a backup")]
    Corrupt(String),
    /// I/O error of the disk or of SQLite. The text is the cause.
    #[error("the database cannot be used: {0}")]
    Io(String),
    /// Error of the database or of a file beside it: the path and the cause.
    #[error("`{}`: {}", .0.display(), .1)]
    File(PathBuf, String),
    /// The user that spid runs as has no permission for this file.
    #[error("no permission to read and write `{}`; give the user that spid runs as read and write access to the file and its folder", .0.display())]
    Denied(PathBuf),
    /// There is no database at this path.
    #[error("there is no database at `{}`; has the daemon run with this path?", .0.display())]
    NotThere(PathBuf),
    /// The file is a SQLite database, but spid did not create it.
    #[error("`{}` is not a spid database", .0.display())]
    NotOurs(PathBuf),
    /// A newer spid wrote the database: its schema version is above ours.
    #[error("`{}` has schema version {}, written by a newer spid; use the newer spid", .0.display(), .1)]
    Newer(PathBuf, i64),
    /// An older spid wrote the database: its schema version is below ours.
    #[error("`{}` has schema version {}, written by an older spid; start the daemon once to upgrade the database", .0.display(), .1)]
    Older(PathBuf, i64),
    /// The database file was moved, deleted or replaced while it was open.
    #[error("`{}` was moved, deleted or replaced while in use; nothing is written or acknowledged; put the same file back, or stop the daemon and restore a backup", .0.display())]
    Moved(PathBuf),
    /// The write-ahead log or its index (-wal, -shm) was deleted or replaced while it was open.
    #[error("`{}` was deleted or replaced while in use; nothing is written or acknowledged; stop the daemon (SIGTERM) before any other command on the database", .0.display())]
    LogMoved(PathBuf),
    /// Other files were copied over the open database or its log.
    #[error("`{}` or its -wal was overwritten or truncated while in use; nothing is acknowledged; stop the daemon, move the database, -wal and -shm away, run `spid restore`", .0.display())]
    Overwritten(PathBuf),
    /// The database lacks the last acknowledged commit. The second path is the file that shows this.
    #[error("`{}` lacks acknowledged commits, as `{}` shows; put the newest files back with the -wal, or run `spid restore`; to use this file and repeat newer orders, remove `{}`", .0.display(), .1.display(), .1.display())]
    Outdated(PathBuf, PathBuf),
    /// The database is gone. The second path is the file that shows that there was one.
    #[error("there is no database at `{}`, but `{}` shows that there was one; put it back with its -wal, or run `spid restore`; to start with an empty database, remove `{}`", .0.display(), .1.display(), .1.display())]
    Lost(PathBuf, PathBuf),
    /// Another daemon uses the database.
    #[error("another spid daemon is using `{}`", .0.display())]
    InUse(PathBuf),
    /// A daemon has the database open under another path, and the -wal lies beside that path.
    #[error("a daemon has `{}` open under another path, and the -wal is beside that path; use the daemon's `store.path`, or restart the daemon if its .lock file was removed", .0.display())]
    OtherName(PathBuf),
    /// The database file has several hard links.
    #[error("`{}` has several hard links, and its -wal may be beside another one; use the path that the daemon used last, or remove the other links (to copy: `spid backup`)", .0.display())]
    Linked(PathBuf),
    /// A row of the database cannot be read.
    #[error("{0}; repair the row, or restore a backup")]
    Unreadable(Box<Unreadable>),
    /// Rows of the database contradict each other.
    #[error("the database is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The writer's queue is full.
    #[error("the store's write queue is full; try again")]
    Overloaded,
    /// The store has been stopped.
    #[error("the store has been stopped")]
    Stopped,
    /// The request is a copy: a request with this nonce was accepted before.
    #[error("a request with this nonce was accepted before")]
    Replayed,
    /// Error of a sealing key, or of encrypting with it.
    #[error("{0}")]
    Seal(String),
}

impl StoreError {
    /// Converts the system's error about the file at `path`.
    fn of_file(path: &Path, error: &std::io::Error) -> StoreError {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => StoreError::Denied(path.to_owned()),
            _ => StoreError::File(path.to_owned(), error.to_string()),
        }
    }
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> StoreError {
        StoreError::Seal(error.to_string())
    }
}

/// A job as the store sees it when an attempt failed or was lost. [`Schedules`] and [`Postpone`] decide by it.
#[derive(Debug, Clone, Copy)]
pub struct Retrying<'a> {
    /// Name of the endpoint that the callback came through.
    pub endpoint: &'a str,
    /// Account of the callback.
    pub account: &'a str,
    /// The callback that asked for the job.
    pub callback: &'a Callback,
    /// The instance in its applied state, if there is one.
    pub instance: Option<&'a Instance>,
}

/// Retry schedules: the usual one, and a function that can choose another for a job.
///
/// The function runs inside the transaction that records the failure. It also chooses for attempts that a dead daemon
/// left behind, because no other part of the program knows their schedule.
#[derive(Clone, Default)]
pub struct Schedules {
    /// Schedule of every job for which `chosen` returns `None`.
    pub usual: Schedule,
    /// Function that chooses another schedule. `None`: every job has the usual one.
    pub chosen: Option<Arc<ChooseSchedule>>,
}

/// Function that returns a job's own schedule, if the job has one.
pub type ChooseSchedule = dyn Fn(&Retrying<'_>) -> Option<Schedule> + Send + Sync;

/// Function that returns the time by which a due job is postponed, because the dispatcher has no room for it.
///
/// `None` means that the job may be leased. The function runs inside the transaction that leases jobs. It must return
/// the same when it is called twice, because the writer can run an operation twice.
pub type Postpone = dyn Fn(&Retrying<'_>) -> Option<Duration> + Send + Sync;

impl Schedules {
    fn of(&self, retrying: &Retrying<'_>) -> Schedule {
        let chosen = self.chosen.as_ref().and_then(|chosen| chosen(retrying));
        chosen.unwrap_or_else(|| self.usual.clone())
    }
}

impl From<Schedule> for Schedules {
    fn from(usual: Schedule) -> Schedules {
        Schedules { usual, chosen: None }
    }
}

impl std::fmt::Debug for Schedules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schedules").field("usual", &self.usual).finish_non_exhaustive()
    }
}

/// Options for the store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Retry schedules of jobs.
    pub schedules: Schedules,
    /// Time during which passwords and license keys are repeated after they were first reported, in milliseconds.
    pub secrets_window_ms: i64,
    /// Sources of the sealing keys, the current key first. Default (empty): one key file beside the database.
    pub sealing_keys: Vec<KeySource>,
    /// Source of the ids of jobs.
    pub ids: Ids,
    /// Metrics that count the commits. A daemon counts everything else in the same metrics.
    pub metrics: Metrics,
}

/// Returns the default path of the sealing key: the path of the database with `.key` appended.
fn key_beside(database: &Path) -> PathBuf {
    let mut beside = database.as_os_str().to_owned();
    beside.push(".key");
    PathBuf::from(beside)
}

impl StoreOptions {
    /// Returns the sources of the sealing keys of the database at `path`.
    fn key_sources(&self, path: &Path) -> Vec<KeySource> {
        if !self.sealing_keys.is_empty() {
            return self.sealing_keys.clone();
        }
        vec![KeySource::Own(key_beside(path))]
    }

    /// Returns the path of the sealing key beside the database at `path`, if it exists and is not among the `known`.
    pub fn unlisted_key(path: &Path, known: &[KeyId]) -> Option<PathBuf> {
        let beside = Some(key_beside(path)).filter(|beside| beside.exists())?;
        let own = Encryptor::from_existing(&[KeySource::File(beside.clone())]);
        // A key file that cannot be read counts as unlisted.
        let is_listed = own.is_ok_and(|own| known.contains(&own.current()));
        (!is_listed).then_some(beside)
    }

    /// Returns the leftover file that shows that a database existed at `path`, if `path` holds none now.
    fn remains(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let sources = self.key_sources(path);
        // Only a key that the daemon creates itself shows that there was a database. A configured key can exist before
        // it.
        let own = match sources.as_slice() {
            [KeySource::Own(own)] => Some(own.as_path()),
            _ => None,
        };
        sqlite::remains(path, own)
    }

    /// Returns true if the daemon creates its sealing key itself.
    pub fn is_keeping_its_own_key(&self) -> bool {
        !self.sealing_keys.iter().any(|source| !matches!(source, KeySource::Own(_)))
    }

    /// Returns the sealer that encrypts and decrypts for the database at `path`. The keys must exist.
    ///
    /// # Errors
    /// Fails if a key is missing, cannot be read, or is not a key.
    pub fn encryptor(&self, path: &Path) -> Result<Encryptor, StoreError> {
        Ok(Encryptor::from_existing(&self.key_sources(path))?)
    }
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            schedules: Schedules::default(),
            secrets_window_ms: limits::SECRETS_WINDOW_MS,
            sealing_keys: Vec::new(),
            ids: Ids::default(),
            metrics: Metrics::default(),
        }
    }
}

/// Result of an attempt.
#[derive(Debug, Clone)]
pub enum AttemptEnd {
    /// The hook succeeded, with this answer.
    Done(Answer),
    /// The attempt failed. The job is tried again.
    Retry {
        /// Text of the error.
        error: String,
        /// Wait before the next attempt, if the hook asked for one.
        after: Option<Duration>,
    },
    /// The hook refused the job.
    Refused {
        /// Reason in the hook's words.
        reason: String,
    },
    /// The hook will finish later.
    Pending {
        /// Note in the hook's words.
        note: String,
    },
    /// The attempt never began, or a stop of the daemon cut it short.
    GivenBack,
}

/// Result of recording the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// The end was kept.
    Kept {
        /// State of the job now.
        state: spid_core::lifecycle::schedule::JobState,
        /// Note of the job about its state.
        note: Option<String>,
    },
    /// The lease of the attempt was lost before. Nothing was changed.
    Fenced,
}

/// Result of accepting a callback.
#[derive(Debug)]
pub struct Receipt {
    /// The answer, or the wait for it.
    pub reply: Reply,
    /// Row of the callback, after this delivery.
    pub row: CallbackRow,
    /// Id that the marketplace itself chose for the instance. It is valid from now on, even before the instance exists.
    pub marketplace_instance_id: Option<String>,
    /// True if the callback was delivered before.
    pub repeated: bool,
    /// True if a person should look at the callback.
    pub alert: bool,
}

/// The answer to a callback, or the wait for it.
#[derive(Debug)]
pub enum Reply {
    /// An answer that is true now.
    Now(Outcome),
    /// The wait for the attempt of a hook. It ends when the attempt ends.
    Wait(ResultWaiter),
}

/// State that the writer thread and the store handles share.
pub(crate) struct Shared {
    pub(crate) signals: StoreSignals,
    pub(crate) schedules: Schedules,
    pub(crate) metrics: Metrics,
}

enum Backing {
    Sqlite(sqlite::SqliteReaders),
    Memory(memory::MemoryReader),
}

/// Read access to committed rows. A read never waits for the writer.
pub struct Reader {
    backing: Backing,
}

impl Reader {
    /// Opens a database for reading only, with or without a running daemon.
    ///
    /// # Errors
    /// Fails if there is no database, or it is not one of spid's, or it has another schema version.
    pub fn open(path: &Path) -> Result<Reader, StoreError> {
        sqlite::Sqlite::open_readonly(path)?;
        Ok(Reader { backing: Backing::Sqlite(sqlite::SqliteReaders::new(path, None)) })
    }

    fn with<T>(&self, read: impl FnOnce(&dyn Read) -> rows::Result<T>) -> rows::Result<T> {
        match &self.backing {
            Backing::Sqlite(readers) => readers.with(|rows| read(rows)),
            Backing::Memory(reader) => read(reader),
        }
    }

    /// Returns instances, the newest first.
    ///
    /// # Errors
    /// Fails with a [`StoreError`] if the database cannot be read. This holds for all reads.
    pub fn instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = self.with(|rows| rows.list_instances(filter))?;
        rows.into_iter().map(|row| self.named(row)).collect()
    }

    /// Returns the instances with this name, in every account.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = self.with(|rows| rows.instances_named(name))?;
        rows.into_iter().map(|row| self.named(row)).collect()
    }

    /// Returns the instance with this number.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn instance(&self, number: i64) -> Result<Option<InstanceRow>, StoreError> {
        let row = self.with(|rows| rows.instance(number))?;
        row.map(|row| self.named(row)).transpose()
    }

    /// Returns jobs, the newest first.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn jobs(&self, filter: &Filter) -> Result<Vec<JobRow>, StoreError> {
        self.with(|rows| rows.list_jobs(filter))
    }

    /// Returns the job with this id.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn job(&self, id: Id) -> Result<Option<JobRow>, StoreError> {
        self.with(|rows| rows.job_by_id(id))
    }

    /// Returns the attempts of a job that did not succeed.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>, StoreError> {
        self.with(|rows| rows.attempts(job))
    }

    /// Returns callbacks, the newest first.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>, StoreError> {
        self.with(|rows| rows.list_callbacks(filter))
    }

    /// Returns one callback with its whole content.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>, StoreError> {
        self.with(|rows| rows.callback(number))
    }

    /// Returns entries of the audit log, the newest first.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn acts(&self, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        self.with(|rows| rows.list_acts(limit))
    }

    /// Returns the days on which terms of unreleased instances end, each with the number of these instances.
    ///
    /// A day is counted from 1970-01-01 (UTC). The range is from `first` (included) to `end` (excluded).
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>, StoreError> {
        self.with(|rows| rows.expiries(first, end))
    }

    /// Returns the configured signature keys, each with the time of its last signature.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn key_uses(&self) -> Result<Vec<KeyUse>, StoreError> {
        self.with(|rows| rows.key_uses())
    }

    /// Returns the totals of instances, jobs and callbacks.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn totals(&self) -> Result<Totals, StoreError> {
        self.with(|rows| rows.totals())
    }

    /// Returns the accounts that are not among the `served` and have unreleased instances, with the number of these.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>, StoreError> {
        self.with(|rows| rows.unserved_accounts(served))
    }
}

/// Number of encrypted answers for each sealing key. `None` counts the answers that do not name their key.
pub type Sealed = BTreeMap<Option<KeyId>, u64>;

/// Checks that a daemon could open the database at `path`. Returns the number of encrypted answers for each key.
///
/// The check creates, locks and changes nothing.
///
/// # Errors
/// Fails with the error that a start of the daemon would fail with.
pub fn check_database(path: &Path, options: &StoreOptions) -> Result<Sealed, StoreError> {
    match (sqlite::Sqlite::check(path)?, options.remains(path)?) {
        (Some(found), _) => found.sealed_by(),
        (None, Some(remains)) => Err(StoreError::Lost(path.to_owned(), remains)),
        (None, None) => Ok(Sealed::new()),
    }
}

/// Returns the accounts in the database at `path` that are not among the `served` and have unreleased instances.
///
/// Each account comes with the number of these instances. The function creates, locks and changes nothing. Without a
/// database the result is empty.
///
/// # Errors
/// Fails with the error that a start of the daemon would fail with.
pub fn unserved_accounts(path: &Path, served: &[&str]) -> Result<BTreeMap<String, u64>, StoreError> {
    let found = sqlite::Sqlite::check(path)?;
    found.map_or(Ok(BTreeMap::new()), |found| found.unserved_accounts(served))
}

/// Calls `each` for every instance of the database at `path`, the oldest first. All are read as of one commit.
///
/// # Errors
/// Fails if the database cannot be read, or with the error of `each`, which ends the reading.
pub fn each_instance<E: From<StoreError>>(
    path: &Path,
    each: impl FnMut(InstanceExport) -> Result<(), E>,
) -> Result<(), E> {
    sqlite::Sqlite::open_readonly(path)?.each_instance(each)
}

/// Reads the sealing keys of the database at `path` and returns their ids.
///
/// `None` means that there is no key yet and a start of the daemon creates one.
///
/// # Errors
/// Fails with the error that a start of the daemon would fail with.
pub fn check_sealing_keys(path: &Path, options: &StoreOptions) -> Result<Option<Vec<KeyId>>, StoreError> {
    let sources = options.key_sources(path);
    match (Encryptor::from_existing(&sources), sources.as_slice()) {
        (Ok(encryptor), _) => Ok(Some(encryptor.ids())),
        // Not an error: a start creates this key, if it may write beside the database.
        (Err(SealError::Missing { .. }), [KeySource::Own(own)]) => {
            sqlite::may_make_files_beside(own).map(|()| None)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Pause between two attempts to take a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Opens the database as soon as no other process has it.
///
/// The lock of a killed daemon can outlive it for a moment: a forked child holds the lock until it has loaded the
/// program of its hook.
async fn open_alone(path: &Path, remains: Option<&Path>) -> Result<sqlite::Sqlite, StoreError> {
    let deadline = Instant::now() + Duration::from_millis(limits::STORE_LOCK_MS);
    loop {
        match sqlite::Sqlite::open(path, remains) {
            // Only a lock can end by itself, so only a lock is worth a wait.
            Err(StoreError::InUse(_)) if Instant::now() < deadline => sleep(LOCK_PAUSE).await,
            opened => return opened,
        }
    }
}

/// Notes beside the database the ids of the daemon's sealing keys. Without this note no command changes the keys.
fn note_keys(path: &Path, encryptor: &Encryptor) {
    if let Err(error) = sqlite::note_keys(path, &encryptor.ids()) {
        tracing::warn!(%error, "cannot note the ids of the sealing keys beside the database; other commands cannot rotate the keys while this daemon runs");
    }
}

type Counts = BTreeMap<i64, (u64, Timestamp)>;

struct Inner {
    // Field order matters: close the readers before the queue, because closing the queue ends the writer. The writer's
    // connection must be the last one, because the last connection to close checkpoints the write-ahead log.
    reader: Reader,
    queue: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    clock: Clock,
    ids: Ids,
    encryptor: RwLock<Arc<Encryptor>>,
    secrets_window_ms: AtomicI64,
    counts: Mutex<Counts>,
    keys_used: KeysUsed,
    ready: Mutex<Option<mpsc::UnboundedReceiver<Ready>>>,
}

/// Handle to the store. Clones share one store. The writer ends when the last clone is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Handle to the end of the writer: the last commit is on disk, and the database is closed.
///
/// Clones wait for the same end.
#[derive(Debug, Clone)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Waits until the writer has ended.
    pub async fn wait(mut self) {
        // The writer never sends a value. The drop of its sender is the signal, so this works however the thread ends.
        while self.0.changed().await.is_ok() {}
    }
}

impl Store {
    /// Opens the database at `path` for the daemon and starts the writer. Creates the database if there is none.
    ///
    /// Jobs that were running when the last daemon died become due at once.
    ///
    /// # Errors
    /// Fails if the database cannot be opened, is not one of spid's, or another daemon uses it.
    pub async fn open(
        path: &Path,
        options: StoreOptions,
        clock: Clock,
    ) -> Result<(Store, Closed), StoreError> {
        // A file shows that there was a database here. Do not create an empty one: that would lose every order without
        // an error.
        let remains = options.remains(path)?;
        if let Some(remains) = remains.clone().filter(|_| !sqlite::is_filled(path)) {
            return Err(StoreError::Lost(path.to_owned(), remains));
        }
        let backend = open_alone(path, remains.as_deref()).await?;
        let sources = options.key_sources(path);
        // Encrypted answers without their own key can never be decrypted again. Log that before a new key is created.
        if let [KeySource::Own(own)] = sources.as_slice()
            && !own.exists()
            && backend.has_sealed()?
        {
            tracing::error!(key = %own.display(), "the sealing key is missing; spid creates a new one; passwords and license keys encrypted with the old key cannot be reported again, ids and addresses can");
        }
        let encryptor = Encryptor::from_sources(&sources)?;
        if sqlite::was_killed(path)? {
            tracing::warn!(
                "the last daemon of this database was killed, or went down with its machine; unfinished jobs run again"
            );
        }
        note_keys(path, &encryptor);
        let readers = sqlite::SqliteReaders::new(path, backend.place());
        let reader = Reader { backing: Backing::Sqlite(readers) };
        Store::start(backend, reader, encryptor, options, clock).await
    }

    /// Creates a store in memory, the model for tests.
    ///
    /// # Errors
    /// Fails if the system's random generator fails.
    pub async fn in_memory(options: StoreOptions, clock: Clock) -> Result<(Store, Closed), StoreError> {
        let backend = memory::Memory::default();
        let reader = Reader { backing: Backing::Memory(backend.reader()) };
        Store::start(backend, reader, Encryptor::ephemeral()?, options, clock).await
    }

    async fn start<B: rows::Backend>(
        backend: B,
        reader: Reader,
        encryptor: Encryptor,
        options: StoreOptions,
        clock: Clock,
    ) -> Result<(Store, Closed), StoreError> {
        let (store, writer) = Store::assemble(backend, reader, encryptor, options, clock);
        let (closing, closed) = watch::channel(());
        std::thread::Builder::new()
            .name("spid-writer".to_owned())
            .spawn(move || {
                let _closing = closing;
                writer.run();
            })
            .map_err(|error| StoreError::Io(format!("the writer thread did not start: {error}")))?;
        // Before any lease: return the jobs that were running when the last daemon died.
        store.recover().await?;
        Ok((store, Closed(closed)))
    }

    /// Builds a store and its writer. The caller drives the writer.
    fn assemble<B: rows::Backend>(
        backend: B,
        reader: Reader,
        encryptor: Encryptor,
        options: StoreOptions,
        clock: Clock,
    ) -> (Store, Writer<B>) {
        let (signals, ready) = StoreSignals::new();
        options.metrics.announce_distribution(Metric::CommitOperations, ["", ""]);
        let (schedules, metrics) = (options.schedules, options.metrics);
        let shared = Arc::new(Shared { signals, schedules, metrics });
        let (queue, commands) = mpsc::channel(limits::WRITER_QUEUE_MAX_COUNT);
        let writer = Writer::new(backend, commands, shared.clone());
        let inner = Inner {
            queue,
            reader,
            shared,
            clock,
            ids: options.ids,
            encryptor: RwLock::new(Arc::new(encryptor)),
            secrets_window_ms: AtomicI64::new(options.secrets_window_ms),
            counts: Mutex::default(),
            keys_used: KeysUsed::default(),
            ready: Mutex::new(Some(ready)),
        };
        (Store { inner: Arc::new(inner) }, writer)
    }

    /// Returns the read access to committed rows.
    pub fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// Keeps a callback and returns the answer that may be given.
    ///
    /// A redelivery of a finished callback is answered from committed rows, and only counted. A callback with a nonce
    /// always goes to the writer, because the nonce must be recorded.
    ///
    /// # Errors
    /// Fails if the callback could not be kept. Then the answer must not report success, and the marketplace calls
    /// again. Fails with [`StoreError::Replayed`] if the request is a copy.
    pub async fn accept(&self, acceptance: Acceptance) -> Result<Receipt, StoreError> {
        self.accept_as(None, acceptance).await
    }

    /// Keeps a callback like [`Store::accept`], with `id` as the id of the job if it makes one.
    ///
    /// The `id` must come from [`Store::new_id`] and be used once.
    ///
    /// # Errors
    /// Fails like [`Store::accept`].
    pub async fn accept_as(&self, id: Option<Id>, acceptance: Acceptance) -> Result<Receipt, StoreError> {
        let now = acceptance.received_at;
        // First look at committed rows only: most copies and redeliveries need no write.
        let repeat = match &acceptance.callback.nonce {
            Some(once) => {
                self.refuse_copy(&acceptance.account, once, now)?;
                None
            }
            None => self.peek(&acceptance)?,
        };
        if let Some(repeat) = repeat {
            if !self.count(repeat.row.number, now) {
                // The counts are full: write them now. If that fails they stay pending.
                let _ = self.flush_counts().await;
                if !self.count(repeat.row.number, now) {
                    // The answer matters more than its count. The failed write logs a line each time, this does not.
                    self.inner.shared.metrics.count(Metric::StoreFaults, ["count", ""]);
                    tracing::debug!(callback = repeat.row.number, "a delivery was answered, but not counted");
                }
            }
            let reply = Reply::Now(self.outcome(repeat.reported, now));
            let Accepted { row, marketplace_instance_id, alert, .. } = repeat;
            return Ok(Receipt { reply, row, marketplace_instance_id, repeated: true, alert });
        }
        let id = match id {
            Some(id) => id,
            None => self.new_id(now)?,
        };
        // With a free permit of the dispatcher the new job is created in state running. Without one it is created due.
        let permit = self.inner.shared.signals.permits.clone().try_acquire_owned().ok();
        let uses = self.inner.keys_used.due();
        let keys = uses.clone();
        let kept = self
            .ask(|asked| Command::Accept(Box::new(AcceptCommand { acceptance, id, permit, keys, asked })))
            .await?;
        // The keys were written in the same commit as the callback.
        self.inner.keys_used.written(uses);
        let (accepted, waiting) = kept.ok_or(StoreError::Replayed)?;
        let reply = match waiting {
            Some(waiting) => Reply::Wait(waiting),
            None => Reply::Now(self.outcome(accepted.reported, now)),
        };
        let Accepted { row, marketplace_instance_id, alert, .. } = accepted;
        let repeated = row.deliveries > 1;
        Ok(Receipt { reply, row, marketplace_instance_id, repeated, alert })
    }

    /// Returns an id that no job has.
    ///
    /// # Errors
    /// Fails if the system's random generator fails.
    pub fn new_id(&self, now: Timestamp) -> Result<Id, StoreError> {
        let id = self.inner.ids.next(now);
        id.map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))
    }

    /// Records the nonce of a request of which nothing else is kept.
    ///
    /// # Errors
    /// Fails with [`StoreError::Replayed`] if the request is a copy, and with another error if it could not be written.
    pub async fn consume(&self, account: &str, once: Nonce) -> Result<(), StoreError> {
        let (account, now) = (account.to_owned(), self.inner.clock.now());
        self.refuse_copy(&account, &once, now)?;
        let is_new = self.ask(|asked| Command::Consume { account, nonce: once, now, asked }).await?;
        if is_new { Ok(()) } else { Err(StoreError::Replayed) }
    }

    /// Keeps the order details that this attempt at the job has looked up. Returns the instance with these details.
    ///
    /// `None` means that the attempt has lost its lease.
    ///
    /// # Errors
    /// Fails if the store cannot be written. Nothing was kept.
    pub async fn add_order_details(
        &self,
        job: &JobRow,
        callback: Callback,
    ) -> Result<Option<Instance>, StoreError> {
        let (attempt, now) = ((job.number, job.attempts), self.inner.clock.now());
        self.ask(|asked| Command::Learn(Box::new(LearnCommand { attempt, callback, now, asked }))).await
    }

    /// Refuses a copy that committed rows already show. If the reader finds the database locked, the writer decides.
    fn refuse_copy(&self, account: &str, once: &Nonce, now: Timestamp) -> Result<(), StoreError> {
        match self.inner.reader.with(|rows| ledger::is_copy(rows, account, once, now)) {
            Ok(true) => Err(StoreError::Replayed),
            Ok(false) | Err(StoreError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the answer to a redelivery. If the reader finds the database locked, the writer decides: it can wait.
    fn peek(&self, acceptance: &Acceptance) -> Result<Option<Accepted>, StoreError> {
        match self.inner.reader.with(|rows| ledger::peek(rows, acceptance)) {
            Err(StoreError::Busy) => Ok(None),
            peeked => peeked,
        }
    }

    fn outcome(&self, reported: KnownAnswer, now: Timestamp) -> Outcome {
        match reported {
            KnownAnswer::Applied(stored) => self.applied(*stored, now),
            KnownAnswer::NotYet | KnownAnswer::Wait(_) => Outcome::NotYet,
            KnownAnswer::Refused(code, reason) => Outcome::Refused { code, reason },
            KnownAnswer::Held(reason) => Outcome::Held { reason },
        }
    }

    /// Builds the outcome of a stored answer. Its secrets are included only during a window after the first report.
    fn applied(&self, stored: Stored, now: Timestamp) -> Outcome {
        let age = stored.reported_at.map_or(0, |reported| now.as_millisecond() - reported.as_millisecond());
        let secret = match (&stored.sealed, stored.sealed_for) {
            (Some(sealed), Some(id)) if age <= self.inner.secrets_window_ms.load(Ordering::Relaxed) => {
                // The id and the open part of the answer are still useful without the secrets, so a lost key is no
                // error here.
                let opened = self.encryptor().open(id.as_bytes(), sealed);
                opened.inspect_err(|error| tracing::error!(job = %id, %error, "cannot decrypt the secrets of a stored answer; the answer is sent without them")).ok()
            }
            _ => None,
        };
        let answer = Answer::join(stored.open.as_deref(), secret.as_ref()).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read a stored answer; only the instance id is sent");
            Answer::default()
        });
        Outcome::Applied { instance_id: stored.instance_id, answer: Box::new(answer) }
    }

    /// Counts a delivery that needs no write of its own. `false`: too many counts are pending.
    fn count(&self, callback: i64, now: Timestamp) -> bool {
        let mut counts = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // An entry that exists needs no more memory, so it is always counted.
        if counts.len() >= limits::COUNTS_PENDING_MAX_COUNT && !counts.contains_key(&callback) {
            return false;
        }
        let entry = counts.entry(callback).or_insert((0, now));
        *entry = (entry.0 + 1, entry.1.max(now));
        true
    }

    /// Sets the time during which passwords and license keys are repeated, in milliseconds.
    pub fn repeat_secrets_for(&self, window_ms: i64) {
        self.inner.secrets_window_ms.store(window_ms, Ordering::Relaxed);
    }

    fn encryptor(&self) -> Arc<Encryptor> {
        self.inner.encryptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the sealer. From now on the store encrypts and decrypts with this one.
    pub fn seal_with(&self, encryptor: Encryptor) {
        let encryptor = Arc::new(encryptor);
        *self.inner.encryptor.write().unwrap_or_else(PoisonError::into_inner) = encryptor.clone();
        if let Backing::Sqlite(readers) = &self.inner.reader.backing {
            note_keys(readers.path(), &encryptor);
        }
    }

    /// Sets the signature keys whose last use is recorded. A new label, or a label with a new key, starts without a
    /// use.
    ///
    /// # Errors
    /// Fails if the keys could not be written. Then the uses of the previous keys are still recorded.
    pub async fn configure_keys(&self, keys: Vec<ConfiguredKey>) -> Result<(), StoreError> {
        // Forget first: a use that is noted after this point belongs to the new keys.
        self.inner.keys_used.forget();
        let now = self.inner.clock.now();
        self.ask(|asked| Command::ConfigureKeys { keys, now, asked }).await
    }

    /// Notes that this key has signed a request. The use is written with the next commit.
    pub fn note_key_use(&self, endpoint: &Arc<str>, label: &Arc<str>) {
        self.inner.keys_used.note(endpoint, label, self.inner.clock.now());
    }

    /// Writes the counts of redeliveries that were answered without a write, and the pending uses of keys.
    ///
    /// # Errors
    /// Fails if they could not be written. They stay pending.
    pub async fn flush_counts(&self) -> Result<(), StoreError> {
        let counts = std::mem::take(&mut *self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let keys = self.inner.keys_used.due();
        if counts.is_empty() && keys.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = counts.iter().map(|(number, (count, last))| (*number, *count, *last)).collect();
        let uses = keys.clone();
        let written = self.ask(|asked| Command::Count { counts: list, keys: uses, asked }).await;
        match &written {
            Ok(()) => self.inner.keys_used.written(keys),
            // A failed commit loses no count: the next flush writes it.
            Err(_) => self.count_again(counts),
        }
        written
    }

    fn count_again(&self, counts: Counts) {
        let mut pending = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, (count, last)) in counts {
            let entry = pending.entry(number).or_insert((0, last));
            *entry = (entry.0 + count, entry.1.max(last));
        }
    }

    /// Attaches the dispatcher, which can begin `permits` jobs at once.
    ///
    /// Returns a receiver of the jobs that were created in state running. Returns `None` if a dispatcher is already
    /// attached.
    pub fn attach(&self, permits: usize) -> Option<mpsc::UnboundedReceiver<Ready>> {
        let receiver = self.inner.ready.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.inner.shared.signals.permits.add_permits(permits);
        Some(receiver)
    }

    /// Returns the permits for beginning jobs. After they are closed, no job is created in state running.
    pub fn permits(&self) -> &Arc<tokio::sync::Semaphore> {
        &self.inner.shared.signals.permits
    }

    /// Wakes the dispatcher, because another process has changed the database and a job may be due.
    pub fn wake(&self) {
        self.inner.shared.signals.work.notify_one();
    }

    /// Returns a future that resolves when a job may have become due.
    ///
    /// To lose no wake-up, first enable the future, then look for due jobs, then wait.
    pub fn work(&self) -> tokio::sync::futures::Notified<'_> {
        self.inner.shared.signals.work.notified()
    }

    /// Leases up to `limit` due jobs.
    ///
    /// # Errors
    /// Fails if the store cannot be written. No job was leased.
    pub async fn take(&self, limit: usize) -> Result<LeasedJobs, StoreError> {
        self.take_while_holding(limit, Vec::new()).await
    }

    /// Leases due jobs like [`Store::take`], for a dispatcher that runs the (job, attempt) pairs in `held`.
    ///
    /// The store does not end the leases of these jobs, even if the clock says that they have ended. So a clock that
    /// jumps, or a store that was unavailable, does not make the dispatcher lose its own jobs.
    ///
    /// # Errors
    /// Fails like [`Store::take`].
    pub async fn take_while_holding(
        &self,
        limit: usize,
        held: Vec<(i64, u32)>,
    ) -> Result<LeasedJobs, StoreError> {
        self.take_where_there_is_room(limit, held, None).await
    }

    /// Leases due jobs like [`Store::take_while_holding`], but postpones the jobs for which `postpone` returns a time.
    ///
    /// # Errors
    /// Fails like [`Store::take`].
    pub async fn take_where_there_is_room(
        &self,
        limit: usize,
        held: Vec<(i64, u32)>,
        postpone: Option<Arc<Postpone>>,
    ) -> Result<LeasedJobs, StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Take { limit, held, postpone, now, asked }).await
    }

    /// Returns true if a job that was handed over still has its lease, according to committed rows.
    ///
    /// The row is read only if leases have ended since the hand-over.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn holds(&self, handed: &Ready) -> Result<bool, StoreError> {
        if handed.leases_ended == self.inner.shared.signals.leases_ended() {
            return Ok(true);
        }
        let job = &handed.taken.job;
        let row = self.inner.reader.job(job.id)?;
        Ok(row.is_some_and(|row| {
            row.state == spid_core::lifecycle::schedule::JobState::Running && row.attempts == job.attempts
        }))
    }

    /// Extends the leases of these (job, attempt) pairs.
    ///
    /// # Errors
    /// Fails if the store cannot be written. The leases then end at their time.
    pub async fn extend(&self, held: Vec<(i64, u32)>) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Extend { held, now, asked }).await
    }

    /// Records the end of an attempt, and reports it to the callers that wait for it.
    ///
    /// # Errors
    /// Fails if the store cannot be written. Nothing was kept, and the caller must try again.
    pub async fn finish(&self, taken: &LeasedJob, ending: AttemptEnd) -> Result<Finished, StoreError> {
        self.end(&taken.job, Some(taken.callback.clone()), ending).await
    }

    /// Records that an attempt was cut short or never began. Its job is due at once.
    ///
    /// # Errors
    /// Fails like [`Store::finish`].
    pub async fn give_back(&self, job: &JobRow) -> Result<(), StoreError> {
        self.end(job, None, AttemptEnd::GivenBack).await.map(drop)
    }

    async fn end(
        &self,
        job: &JobRow,
        callback: Option<Arc<Callback>>,
        ending: AttemptEnd,
    ) -> Result<Finished, StoreError> {
        let mut answer = Answer::default();
        let ending = match ending {
            AttemptEnd::Done(given) => {
                // Encrypt the secrets before they enter the writer's queue, so that no row ever holds them in plain
                // text.
                let split = given.split();
                let seal = |secret| self.encryptor().seal(job.id.as_bytes(), &secret);
                let sealed = split.secret.map(seal).transpose()?;
                answer = given;
                ledger::AttemptEnd::Done { instance_id: answer.instance_id.clone(), open: split.open, sealed }
            }
            AttemptEnd::Retry { error, after } => ledger::AttemptEnd::Retry {
                error,
                after_ms: after.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
            },
            AttemptEnd::Refused { reason } => ledger::AttemptEnd::Refused { reason },
            AttemptEnd::Pending { note } => ledger::AttemptEnd::Pending { note },
            AttemptEnd::GivenBack => ledger::AttemptEnd::GivenBack,
        };
        let finish = Finish {
            job: job.number,
            attempt: job.attempts,
            callback,
            ending,
            schedules: self.inner.shared.schedules.clone(),
            now: self.inner.clock.now(),
        };
        // The waiters receive the answer with its secrets, so it goes along beside the encrypted rows.
        let finished = self
            .ask(|asked| Command::Finish(Box::new(FinishCommand { finish, answer, claimed: None, asked })))
            .await?;
        Ok(match finished {
            ledger::Finished::Kept { state, note, .. } => Finished::Kept { state, note },
            ledger::Finished::Fenced => Finished::Fenced,
        })
    }

    /// Tests the store with one write that reaches the disk.
    ///
    /// # Errors
    /// Fails if the write does not succeed.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.ask(|asked| Command::Probe { asked }).await
    }

    /// Checks that the database is still the file that was opened.
    ///
    /// # Errors
    /// Fails if the file was moved, deleted or replaced. Then no other process may change it beside this store.
    pub fn is_in_place(&self) -> Result<(), StoreError> {
        match &self.inner.reader.backing {
            Backing::Sqlite(readers) => readers.is_in_place(),
            Backing::Memory(_) => Ok(()),
        }
    }

    /// Returns the jobs that were running when the last daemon died.
    async fn recover(&self) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        let recovered = self.ask(|asked| Command::Recover { now, asked }).await?;
        for aside in &recovered.aside {
            aside.log(&self.inner.shared.metrics);
        }
        if recovered.count > 0 {
            tracing::warn!(
                jobs = recovered.count,
                "jobs were running when the last daemon stopped; they run again"
            );
        }
        Ok(())
    }

    // The writer answers after its commit. A dropped answer means that the writer thread has ended.
    async fn ask<T>(&self, command: impl FnOnce(ReplySlot<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        // A full queue is an error at once and not a wait: the marketplace calls again.
        self.inner.queue.try_send(command(ReplySlot::new(reply))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })?;
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }
}
