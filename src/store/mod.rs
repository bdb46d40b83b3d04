//! Where everything a marketplace said is kept, and nothing is lost.
//!
//! [`Store`] is the handle the rest of the daemon holds. Behind it: one writer thread with group
//! commit (`writer`), the rules of accepting, taking and finishing (`ledger`), two backends that only
//! find and keep rows (`sqlite`, and `memory` for models), and the signals between intake and
//! dispatch (`signals`).
//!
//! Two orders matter and are kept here: an answer leaves after the commit, never before; and "the
//! marketplace was told" is written in the very commit that makes it true.

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

use crate::core::lifecycle::Instance;
use crate::core::lifecycle::schedule::Schedule;
use crate::hook::callback::{Answer, Callback, Once, Outcome};
use crate::hook::clock::{Clock, Id, Ids};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::encryption::{KeyId, KeySource, SealError, Sealer};
use key_use::KeysUsed;
use ledger::{Accepted, Finish, Stored, Told};
use rows::Read;
use waiters::Signals;
use writer::{AcceptCommand, Asked, Command, FinishCommand, LearnCommand, Writer};

pub use attention::{Attention, AttentionItem, AttentionReason};
pub use key_use::ConfiguredKey;
pub(crate) use ledger::fault_of_id;
pub use ledger::{Acceptance, Aside, Taken};
pub use operations::{
    Act, Approved, Claim, Claimed, Import, Imported, Instead, MendError, Mender, Restored, backup, restore,
};
pub use prune::{PruneOptions, Pruned};
pub use reencrypt::{Resealed, Revealed};
pub use rows::{
    ActRow, AttemptRow, CallbackRow, Disposition, Filter, InstanceRow, JobRow, KeyUse, Totals, Unreadable,
};
pub use sqlite::Possession;
pub use views::{CallbackDetail, Errand, JobDetail, Life, ListedCallback, ViewError};
pub use waiters::{Ready, Waiting};
pub use writer::Taking;

/// Why the store did not do something. Nothing of the operation was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the database.
    #[error("the database is busy: another process holds it")]
    Busy,
    /// No space.
    #[error("the disk is full")]
    Full,
    /// The file is damaged.
    #[error("the database is damaged: {0}; restore a backup")]
    Corrupt(String),
    /// The disk, or SQLite, said no.
    #[error("the database cannot be used: {0}")]
    Io(String),
    /// A file beside the database.
    #[error("`{}`: {}", .0.display(), .1)]
    File(PathBuf, String),
    /// A file the user we run as may not use.
    #[error("`{}` may not be read and written by the user this runs as; its folder must be writable, too, as files are kept beside it", .0.display())]
    Denied(PathBuf),
    /// There is no such database.
    #[error("there is no database at `{}`; has the daemon run with this path?", .0.display())]
    NotThere(PathBuf),
    /// It is a database, but not one of ours.
    #[error("`{}` is not a spid database", .0.display())]
    NotOurs(PathBuf),
    /// A newer spid wrote it.
    #[error("`{}` has schema version {}, which a newer spid wrote; this one does not touch it: use the newer version", .0.display(), .1)]
    Newer(PathBuf, i64),
    /// An older spid wrote it.
    #[error("`{}` has schema version {}, which an older spid wrote; start the daemon once to bring it up to date", .0.display(), .1)]
    Older(PathBuf, i64),
    /// It is not there any more, or another one is.
    #[error("`{}` was moved, deleted or replaced under the daemon: nothing is kept, and nothing is acknowledged; put the very file back, or stop the daemon and restore a backup", .0.display())]
    Moved(PathBuf),
    /// Its write-ahead log, or the index of that, is not there any more, or another one is.
    #[error("`{}` was deleted or replaced under the daemon: nothing is kept, and nothing is acknowledged; stop the daemon in order, which brings home what it has open, and run no other command on the database before", .0.display())]
    LogMoved(PathBuf),
    /// Other files were copied over those that are open.
    #[error("`{}` is not what this daemon wrote: it, or its -wal, was overwritten or cut short under the daemon, with an older copy or another database: nothing is kept, and nothing is acknowledged; stop the daemon, move the database away together with its -wal and -shm, and restore a backup with `spid restore`", .0.display())]
    Overwritten(PathBuf),
    /// It lacks what was committed last.
    #[error("`{}` is older than what was acknowledged last, as `{}` shows: its -wal was lost, or an older copy was put in its place; put the newest files back, with the -wal, or put the copy in place with `spid restore`, which holds what is unfinished in it; to begin with it as it is, and have newer orders done once more, remove `{}`", .0.display(), .1.display(), .1.display())]
    Outdated(PathBuf, PathBuf),
    /// There was a database, and now there is none.
    #[error("there is no database at `{}`, and `{}` shows that there was one: put it back, together with its -wal if that is anywhere, or restore a backup with `spid restore`; to begin without anything that was sold before, remove `{}`, too", .0.display(), .1.display(), .1.display())]
    Lost(PathBuf, PathBuf),
    /// Another daemon runs on it.
    #[error("another spid daemon is using `{}`", .0.display())]
    InUse(PathBuf),
    /// A daemon has it open, and its log lies beside another name.
    #[error("a daemon has `{}` open under another name, and its -wal lies there: through this one, what is in that would be missed and spoilt; use the path that the daemon has as `store.path`, or restart the daemon if its .lock file was removed", .0.display())]
    OtherName(PathBuf),
    /// It has several names.
    #[error("`{}` has several names (hard links), and its -wal may lie beside another one: use the name that a daemon last had it under, or remove the others; to have it at another place, copy it with `spid backup`", .0.display())]
    Linked(PathBuf),
    /// A row that cannot be read.
    #[error("{0}; mend it, or restore a backup")]
    Unreadable(Box<Unreadable>),
    /// What is stored contradicts itself.
    #[error("the database contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// More is waiting than the writer's queue holds.
    #[error("the store has more to write than it can queue")]
    Overloaded,
    /// The store has been stopped.
    #[error("the store has been stopped")]
    Stopped,
    /// It is a copy of a request that was accepted before.
    #[error("a request with this nonce was accepted before")]
    Replayed,
    /// The sealing key.
    #[error("{0}")]
    Seal(String),
}

impl StoreError {
    /// What the system said about a file.
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

/// What a retry schedule is chosen by, and a job postponed: a job, as the store sees it when the attempt has failed or was lost.
#[derive(Debug, Clone, Copy)]
pub struct Retrying<'a> {
    /// The endpoint the callback came through.
    pub endpoint: &'a str,
    /// The account it was for.
    pub account: &'a str,
    /// What was asked.
    pub callback: &'a Callback,
    /// The instance as applied now.
    pub instance: Option<&'a Instance>,
}

/// The retry schedules: the usual one, and where somebody chose another.
///
/// It is asked inside the transaction that keeps the failure, also of the attempts that a dead daemon left
/// behind: nobody else is there to say what their schedule was.
#[derive(Clone, Default)]
pub struct Schedules {
    /// For every job that nothing else is chosen for.
    pub usual: Schedule,
    /// The choice; `None` for the usual one.
    pub chosen: Option<Arc<ChooseSchedule>>,
}

/// Chooses a job's own schedule, if it has one.
pub type ChooseSchedule = dyn Fn(&Retrying<'_>) -> Option<Schedule> + Send + Sync;

/// Says for how long a due job is left alone, because what would run it has no room for it. `None`: it may be
/// taken. It is asked inside the transaction that takes jobs, and answers alike if it is asked twice.
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

/// What can be chosen about a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The retry schedules of jobs.
    pub schedules: Schedules,
    /// How long passwords and licence keys are repeated after they were first told, in milliseconds.
    pub secrets_window_ms: i64,
    /// Where the sealing keys come from, the current one first; when there are none, it is a file beside
    /// the database.
    pub sealing_keys: Vec<KeySource>,
    /// Where the ids of jobs come from.
    pub ids: Ids,
    /// Where commits are counted; a daemon counts everything else there, too.
    pub metrics: Metrics,
}

/// Where a first start puts the sealing key unless it is said otherwise.
fn key_beside(database: &Path) -> PathBuf {
    let mut beside = database.as_os_str().to_owned();
    beside.push(".key");
    PathBuf::from(beside)
}

impl StoreOptions {
    /// Where the sealing keys of the database at `path` come from.
    fn key_sources(&self, path: &Path) -> Vec<KeySource> {
        if !self.sealing_keys.is_empty() {
            return self.sealing_keys.clone();
        }
        vec![KeySource::Own(key_beside(path))]
    }

    /// The sealing key beside the database at `path`, if there is one and it is not among the `known`.
    pub fn unlisted_key(path: &Path, known: &[KeyId]) -> Option<PathBuf> {
        let beside = Some(key_beside(path)).filter(|beside| beside.exists())?;
        let own = Sealer::from_existing(&[KeySource::File(beside.clone())]);
        let is_listed = own.is_ok_and(|own| known.contains(&own.current()));
        (!is_listed).then_some(beside)
    }

    /// What shows that there was a database at `path`, where nothing is in it now.
    fn remains(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let sources = self.key_sources(path);
        let own = match sources.as_slice() {
            [KeySource::Own(own)] => Some(own.as_path()),
            _ => None,
        };
        sqlite::remains(path, own)
    }

    /// Whether the daemon makes its sealing key itself.
    pub fn is_keeping_its_own_key(&self) -> bool {
        !self.sealing_keys.iter().any(|source| !matches!(source, KeySource::Own(_)))
    }

    /// What seals in, and opens from, the database at `path`. The keys must be there.
    ///
    /// # Errors
    /// When one is missing, cannot be read, or is none.
    pub fn sealer(&self, path: &Path) -> Result<Sealer, StoreError> {
        Ok(Sealer::from_existing(&self.key_sources(path))?)
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

/// How an attempt ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// Done.
    Done(Answer),
    /// Not done; it is to be tried again.
    Retry {
        /// What went wrong.
        error: String,
        /// The wait the hook asked for.
        after: Option<Duration>,
    },
    /// The hook said no.
    Refused {
        /// In its words.
        reason: String,
    },
    /// The hook will finish later.
    Pending {
        /// In its words.
        note: String,
    },
    /// It was not tried, or cut short by our own stop.
    GivenBack,
}

/// What became of the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It was kept, and the job stands here now.
    Kept {
        /// Where the job stands.
        state: crate::core::lifecycle::schedule::JobState,
        /// What the job says about it.
        note: Option<String>,
    },
    /// The lease was lost meanwhile; nothing was changed.
    Fenced,
}

/// What became of a callback that was accepted.
#[derive(Debug)]
pub struct Receipt {
    /// The answer, or the wait for it.
    pub reply: Reply,
    /// The occurrence it belongs to, as it stands now.
    pub row: CallbackRow,
    /// The id by which the marketplace calls the instance, where it chose that itself: true from now on,
    /// whether there is something behind it yet or not.
    pub public_id: Option<String>,
    /// Whether the same came before.
    pub repeated: bool,
    /// Whether somebody should look.
    pub alert: bool,
}

/// The answer, or the wait for it.
#[derive(Debug)]
pub enum Reply {
    /// This is true now.
    Now(Outcome),
    /// A hook is owed; this ends when its attempt does.
    Wait(Waiting),
}

/// What the writer thread and the handles share.
pub(crate) struct Shared {
    pub(crate) signals: Signals,
    pub(crate) schedules: Schedules,
    pub(crate) metrics: Metrics,
}

enum Backing {
    Sqlite(sqlite::SqliteReaders),
    Memory(memory::MemoryReader),
}

/// Reading what is committed. It never waits for the writer.
pub struct Reader {
    backing: Backing,
}

impl Reader {
    /// Opens a database to look at it, whether a daemon runs on it or not.
    ///
    /// # Errors
    /// When there is none, it is not ours, or of another version.
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

    /// Instances, the newest first.
    ///
    /// # Errors
    /// [`StoreError`], when the database cannot be read. The same holds for all reads.
    pub fn instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = self.with(|rows| rows.list_instances(filter))?;
        rows.into_iter().map(|row| self.named(row)).collect()
    }

    /// The instances that have this name, whatever their account.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = self.with(|rows| rows.instances_named(name))?;
        rows.into_iter().map(|row| self.named(row)).collect()
    }

    /// The instance with this number.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn instance(&self, number: i64) -> Result<Option<InstanceRow>, StoreError> {
        let row = self.with(|rows| rows.instance(number))?;
        row.map(|row| self.named(row)).transpose()
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn jobs(&self, filter: &Filter) -> Result<Vec<JobRow>, StoreError> {
        self.with(|rows| rows.list_jobs(filter))
    }

    /// The job with this id.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn job(&self, id: Id) -> Result<Option<JobRow>, StoreError> {
        self.with(|rows| rows.job_by_id(id))
    }

    /// The attempts of a job that did not succeed.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>, StoreError> {
        self.with(|rows| rows.attempts(job))
    }

    /// Callbacks, the newest first.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>, StoreError> {
        self.with(|rows| rows.list_callbacks(filter))
    }

    /// One callback, with all it said.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>, StoreError> {
        self.with(|rows| rows.callback(number))
    }

    /// What was done by hand, the newest first.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn acts(&self, limit: usize) -> Result<Vec<ActRow>, StoreError> {
        self.with(|rows| rows.list_acts(limit))
    }

    /// Days (counted from 1970, UTC) from `first` to before `end` on which the terms of instances end that
    /// are not released, with how many.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>, StoreError> {
        self.with(|rows| rows.expiries(first, end))
    }

    /// The configured keys, and when each signed last.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn key_uses(&self) -> Result<Vec<KeyUse>, StoreError> {
        self.with(|rows| rows.key_uses())
    }

    /// Totals.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn totals(&self) -> Result<Totals, StoreError> {
        self.with(|rows| rows.totals())
    }

    /// The accounts beside these that have instances which are not released, with how many.
    ///
    /// # Errors
    /// As [`Reader::instances`].
    pub fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>, StoreError> {
        self.with(|rows| rows.unserved_accounts(served))
    }
}

/// How many answers each key has sealed. `None`: those that do not say which.
pub type Sealed = BTreeMap<Option<KeyId>, u64>;

/// Looks whether a daemon could open the database at `path`, without making, locking or changing anything.
/// Says what in it is sealed.
///
/// # Errors
/// What a start would fail with.
pub fn check_database(path: &Path, options: &StoreOptions) -> Result<Sealed, StoreError> {
    match (sqlite::Sqlite::check(path)?, options.remains(path)?) {
        (Some(found), _) => found.sealed_by(),
        (None, Some(remains)) => Err(StoreError::Lost(path.to_owned(), remains)),
        (None, None) => Ok(Sealed::new()),
    }
}

/// The accounts beside the `served` ones that have instances in the database at `path` which are not released,
/// with how many. Nothing is made, locked or changed; where there is no database there are none.
///
/// # Errors
/// What a start would fail with.
pub fn unserved_accounts(path: &Path, served: &[&str]) -> Result<BTreeMap<String, u64>, StoreError> {
    let found = sqlite::Sqlite::check(path)?;
    found.map_or(Ok(BTreeMap::new()), |found| found.unserved_accounts(served))
}

/// Shows every instance of the database at `path`, the oldest first, as they are at one commit.
///
/// # Errors
/// When the database cannot be read, or whoever looks does not want to see more.
pub fn each_instance<E: From<StoreError>>(
    path: &Path,
    each: impl FnMut(Possession) -> Result<(), E>,
) -> Result<(), E> {
    sqlite::Sqlite::open_readonly(path)?.each_instance(each)
}

/// Looks at the sealing keys of the database at `path`, and says which they are. `None`: there is none, and
/// a start makes one.
///
/// # Errors
/// What a start would fail with.
pub fn check_sealing_keys(path: &Path, options: &StoreOptions) -> Result<Option<Vec<KeyId>>, StoreError> {
    let sources = options.key_sources(path);
    match (Sealer::from_existing(&sources), sources.as_slice()) {
        (Ok(sealer), _) => Ok(Some(sealer.ids())),
        (Err(SealError::Missing { .. }), [KeySource::Own(own)]) => {
            sqlite::may_make_files_beside(own).map(|()| None)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// How long to wait before a lock that somebody holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Opens the database once nobody else has it. A daemon that was killed may hold the lock for a moment
/// longer: a child that was about to become a hook has it until its program is loaded.
async fn open_alone(path: &Path, remains: Option<&Path>) -> Result<sqlite::Sqlite, StoreError> {
    let deadline = Instant::now() + Duration::from_millis(limits::STORE_LOCK_MS);
    loop {
        match sqlite::Sqlite::open(path, remains) {
            Err(StoreError::InUse(_)) if Instant::now() < deadline => sleep(LOCK_PAUSE).await,
            opened => return opened,
        }
    }
}

/// Lets whoever works beside the daemon see which sealing keys it has. Without that note nobody changes them.
fn note_keys(path: &Path, sealer: &Sealer) {
    if let Err(error) = sqlite::note_keys(path, &sealer.ids()) {
        tracing::warn!(%error, "it could not be noted which sealing keys there are; they cannot be changed beside this daemon");
    }
}

type Counts = BTreeMap<i64, (u64, Timestamp)>;

struct Inner {
    // Dropped before the queue, whose end ends the writer: only who closes the database last brings the log home.
    reader: Reader,
    queue: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    clock: Clock,
    ids: Ids,
    sealer: RwLock<Arc<Sealer>>,
    secrets_window_ms: AtomicI64,
    counts: Mutex<Counts>,
    keys_used: KeysUsed,
    ready: Mutex<Option<mpsc::UnboundedReceiver<Ready>>>,
}

/// The handle on the store; clones share it. The writer ends when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// The end of the writer: resolves once the last commit is on disk and the database is closed. Clones
/// wait for the same end.
#[derive(Debug, Clone)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Waits for it.
    pub async fn wait(mut self) {
        // Nothing is ever sent: it is the sender's end that counts, however the writer's thread ends.
        while self.0.changed().await.is_ok() {}
    }
}

impl Store {
    /// Opens the database at `path` for the daemon, making it if there is none, and starts the writer.
    ///
    /// Jobs that ran when the last daemon died come back at once.
    ///
    /// # Errors
    /// When it cannot be opened, belongs to somebody else, or another daemon uses it.
    pub async fn open(
        path: &Path,
        options: StoreOptions,
        clock: Clock,
    ) -> Result<(Store, Closed), StoreError> {
        let remains = options.remains(path)?;
        if let Some(remains) = remains.clone().filter(|_| !sqlite::is_filled(path)) {
            return Err(StoreError::Lost(path.to_owned(), remains));
        }
        let backend = open_alone(path, remains.as_deref()).await?;
        let sources = options.key_sources(path);
        if let [KeySource::Own(own)] = sources.as_slice()
            && !own.exists()
            && backend.has_sealed()?
        {
            tracing::error!(key = %own.display(), "the sealing key is missing, and a new one is made: passwords and licence keys that were sealed with the old one cannot be told any more, ids and addresses can");
        }
        let sealer = Sealer::from_sources(&sources)?;
        note_keys(path, &sealer);
        let readers = sqlite::SqliteReaders::new(path, backend.place());
        let reader = Reader { backing: Backing::Sqlite(readers) };
        Store::start(backend, reader, sealer, options, clock).await
    }

    /// A store that lives in memory: the model.
    ///
    /// # Errors
    /// When the system's random generator fails.
    pub async fn in_memory(options: StoreOptions, clock: Clock) -> Result<(Store, Closed), StoreError> {
        let backend = memory::Memory::default();
        let reader = Reader { backing: Backing::Memory(backend.reader()) };
        Store::start(backend, reader, Sealer::ephemeral()?, options, clock).await
    }

    async fn start<B: rows::Backend>(
        backend: B,
        reader: Reader,
        sealer: Sealer,
        options: StoreOptions,
        clock: Clock,
    ) -> Result<(Store, Closed), StoreError> {
        let (store, writer) = Store::assemble(backend, reader, sealer, options, clock);
        let (closing, closed) = watch::channel(());
        std::thread::Builder::new()
            .name("spid-writer".to_owned())
            .spawn(move || {
                let _closing = closing;
                writer.run();
            })
            .map_err(|error| StoreError::Io(format!("the writer thread did not start: {error}")))?;
        store.recover().await?;
        Ok((store, Closed(closed)))
    }

    /// A store, and the writer somebody must drive.
    fn assemble<B: rows::Backend>(
        backend: B,
        reader: Reader,
        sealer: Sealer,
        options: StoreOptions,
        clock: Clock,
    ) -> (Store, Writer<B>) {
        let (signals, ready) = Signals::new();
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
            sealer: RwLock::new(Arc::new(sealer)),
            secrets_window_ms: AtomicI64::new(options.secrets_window_ms),
            counts: Mutex::default(),
            keys_used: KeysUsed::default(),
            ready: Mutex::new(Some(ready)),
        };
        (Store { inner: Arc::new(inner) }, writer)
    }

    /// Reading what is committed.
    pub fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// Keeps a callback and says what may be answered.
    ///
    /// A repeat of something finished is answered from committed rows, and only counted; but one that may
    /// come only once has its mark to be kept.
    ///
    /// # Errors
    /// When it could not be kept: then nothing may be claimed, and the marketplace calls again.
    /// [`StoreError::Replayed`] for a copy.
    pub async fn accept(&self, acceptance: Acceptance) -> Result<Receipt, StoreError> {
        self.accept_as(None, acceptance).await
    }

    /// As [`Store::accept`]; the job, if it makes one, has this id. It is one of [`Store::new_id`], and used once.
    ///
    /// # Errors
    /// As [`Store::accept`].
    pub async fn accept_as(&self, id: Option<Id>, acceptance: Acceptance) -> Result<Receipt, StoreError> {
        let now = acceptance.received_at;
        let repeat = match &acceptance.callback.once {
            Some(once) => {
                self.refuse_copy(&acceptance.account, once, now)?;
                None
            }
            None => self.peek(&acceptance)?,
        };
        if let Some(repeat) = repeat {
            if !self.count(repeat.row.number, now) {
                // Too many wait to be written: these are, now. What cannot be written waits on.
                let _ = self.flush_counts().await;
                self.count(repeat.row.number, now);
            }
            let reply = Reply::Now(self.outcome(repeat.told, now));
            let Accepted { row, public_id, alert, .. } = repeat;
            return Ok(Receipt { reply, row, public_id, repeated: true, alert });
        }
        let id = match id {
            Some(id) => id,
            None => self.new_id(now)?,
        };
        let place = self.inner.shared.signals.places.clone().try_acquire_owned().ok();
        let uses = self.inner.keys_used.due();
        let keys = uses.clone();
        let kept = self
            .ask(|asked| Command::Accept(Box::new(AcceptCommand { acceptance, id, place, keys, asked })))
            .await?;
        self.inner.keys_used.written(uses);
        let (accepted, waiting) = kept.ok_or(StoreError::Replayed)?;
        let reply = match waiting {
            Some(waiting) => Reply::Wait(waiting),
            None => Reply::Now(self.outcome(accepted.told, now)),
        };
        let Accepted { row, public_id, alert, .. } = accepted;
        let repeated = row.deliveries > 1;
        Ok(Receipt { reply, row, public_id, repeated, alert })
    }

    /// An id that no job has.
    ///
    /// # Errors
    /// When the system's random generator gives nothing.
    pub fn new_id(&self, now: Timestamp) -> Result<Id, StoreError> {
        let id = self.inner.ids.next(now);
        id.map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))
    }

    /// Keeps the mark of a request of which nothing else is kept.
    ///
    /// # Errors
    /// [`StoreError::Replayed`] for a copy; anything else when it could not be kept.
    pub async fn spend(&self, account: &str, once: Once) -> Result<(), StoreError> {
        let (account, now) = (account.to_owned(), self.inner.clock.now());
        self.refuse_copy(&account, &once, now)?;
        let is_new = self.ask(|asked| Command::Spend { account, once, now, asked }).await?;
        if is_new { Ok(()) } else { Err(StoreError::Replayed) }
    }

    /// Keeps what was learned of a job's callback while this attempt at it ran. Returns the instance as it is
    /// known now; `None` when the attempt has lost its lease.
    ///
    /// # Errors
    /// When the store cannot be written; nothing was kept.
    pub async fn learn(&self, job: &JobRow, callback: Callback) -> Result<Option<Instance>, StoreError> {
        let (attempt, now) = ((job.number, job.attempts), self.inner.clock.now());
        self.ask(|asked| Command::Learn(Box::new(LearnCommand { attempt, callback, now, asked }))).await
    }

    /// Refuses a copy that is known without a write. A reader that finds the database locked leaves it to the writer.
    fn refuse_copy(&self, account: &str, once: &Once, now: Timestamp) -> Result<(), StoreError> {
        match self.inner.reader.with(|rows| ledger::is_copy(rows, account, once, now)) {
            Ok(true) => Err(StoreError::Replayed),
            Ok(false) | Err(StoreError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The answer to a repeat. A reader that finds the database locked leaves it to the writer, which may wait.
    fn peek(&self, acceptance: &Acceptance) -> Result<Option<Accepted>, StoreError> {
        match self.inner.reader.with(|rows| ledger::peek(rows, acceptance)) {
            Err(StoreError::Busy) => Ok(None),
            peeked => peeked,
        }
    }

    fn outcome(&self, told: Told, now: Timestamp) -> Outcome {
        match told {
            Told::Applied(stored) => self.applied(*stored, now),
            Told::NotYet | Told::Wait(_) => Outcome::NotYet,
            Told::Refused(code, reason) => Outcome::Refused { code, reason },
            Told::Held(reason) => Outcome::Held { reason },
        }
    }

    /// A stored answer; its secrets only for a while after they were first told.
    fn applied(&self, stored: Stored, now: Timestamp) -> Outcome {
        let age = stored.told_at.map_or(0, |told| now.as_millisecond() - told.as_millisecond());
        let secret = match (&stored.sealed, stored.sealed_for) {
            (Some(sealed), Some(id)) if age <= self.inner.secrets_window_ms.load(Ordering::Relaxed) => {
                let opened = self.sealer().open(id.as_bytes(), sealed);
                opened.inspect_err(|error| tracing::error!(job = %id, %error, "a stored answer's secrets cannot be opened; it is told without them")).ok()
            }
            _ => None,
        };
        let answer = Answer::join(stored.open.as_deref(), secret.as_ref()).unwrap_or_else(|error| {
            tracing::error!(%error, "a stored answer cannot be read; the id is told without it");
            Answer::default()
        });
        Outcome::Applied { instance_id: stored.instance_id, answer: Box::new(answer) }
    }

    /// Counts a delivery that needs no write of its own. `false`: there are too many to be counted.
    fn count(&self, callback: i64, now: Timestamp) -> bool {
        let mut counts = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= limits::COUNTS_PENDING_MAX_COUNT && !counts.contains_key(&callback) {
            return false;
        }
        let entry = counts.entry(callback).or_insert((0, now));
        *entry = (entry.0 + 1, entry.1.max(now));
        true
    }

    /// How long passwords and licence keys are repeated from now on, in milliseconds.
    pub fn repeat_secrets_for(&self, window_ms: i64) {
        self.inner.secrets_window_ms.store(window_ms, Ordering::Relaxed);
    }

    fn sealer(&self) -> Arc<Sealer> {
        self.inner.sealer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Seals with this from now on, and opens with it.
    pub fn seal_with(&self, sealer: Sealer) {
        let sealer = Arc::new(sealer);
        *self.inner.sealer.write().unwrap_or_else(PoisonError::into_inner) = sealer.clone();
        if let Backing::Sqlite(readers) = &self.inner.reader.backing {
            note_keys(readers.path(), &sealer);
        }
    }

    /// Makes these the keys of which it is kept when they signed last. A label that has come, or stands for
    /// another key than before, begins anew.
    ///
    /// # Errors
    /// When it could not be written; then those of before are watched.
    pub async fn configure_keys(&self, keys: Vec<ConfiguredKey>) -> Result<(), StoreError> {
        self.inner.keys_used.forget();
        let now = self.inner.clock.now();
        self.ask(|asked| Command::ConfigureKeys { keys, now, asked }).await
    }

    /// Remembers that this key has signed something. It is written with what is written next.
    pub fn note_key_use(&self, endpoint: &Arc<str>, label: &Arc<str>) {
        self.inner.keys_used.note(endpoint, label, self.inner.clock.now());
    }

    /// Writes the counts of repeats that were answered without a write, and which keys were used.
    ///
    /// # Errors
    /// When they could not be written; they are kept for the next time.
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

    /// Makes this the place where jobs are run; `places` of them may begin at once. The receiver yields jobs that
    /// were born leased; `None` when a dispatcher is attached already.
    pub fn attach(&self, places: usize) -> Option<mpsc::UnboundedReceiver<Ready>> {
        let receiver = self.inner.ready.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.inner.shared.signals.places.add_permits(places);
        Some(receiver)
    }

    /// The places for jobs that begin. Closing them ends the birth of leased jobs.
    pub fn places(&self) -> &Arc<tokio::sync::Semaphore> {
        &self.inner.shared.signals.places
    }

    /// Says that something may have become due: somebody has mended the database beside this store.
    pub fn wake(&self) {
        self.inner.shared.signals.work.notify_one();
    }

    /// Resolves when something may have become due. Lossless once enabled: enable it, look, then wait.
    pub fn work(&self) -> tokio::sync::futures::Notified<'_> {
        self.inner.shared.signals.work.notified()
    }

    /// Takes up to `limit` due jobs under a lease. The (job, attempt) that the caller has `held` till now
    /// are prolonged first: a clock that jumps, or a store that was away, must not make it lose its own.
    ///
    /// # Errors
    /// When the store cannot be written; nothing was taken.
    pub async fn take(&self, limit: usize) -> Result<Taking, StoreError> {
        self.take_while_holding(limit, Vec::new()).await
    }

    /// As [`Store::take`], for a dispatcher that runs these (job, attempt) at the moment: they are not
    /// lost, whatever the clock says of their leases.
    ///
    /// # Errors
    /// As [`Store::take`].
    pub async fn take_while_holding(
        &self,
        limit: usize,
        held: Vec<(i64, u32)>,
    ) -> Result<Taking, StoreError> {
        self.take_where_there_is_room(limit, held, None).await
    }

    /// As [`Store::take_while_holding`], but jobs that `postpone` names are put off instead.
    ///
    /// # Errors
    /// As [`Store::take`].
    pub async fn take_where_there_is_room(
        &self,
        limit: usize,
        held: Vec<(i64, u32)>,
        postpone: Option<Arc<Postpone>>,
    ) -> Result<Taking, StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Take { limit, held, postpone, now, asked }).await
    }

    /// Whether a job that was handed over still has its lease, as far as is committed. It is looked for only
    /// if leases have run out since then.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn holds(&self, handed: &Ready) -> Result<bool, StoreError> {
        if handed.leases_ended == self.inner.shared.signals.leases_ended() {
            return Ok(true);
        }
        let job = &handed.taken.job;
        let row = self.inner.reader.job(job.id)?;
        Ok(row.is_some_and(|row| {
            row.state == crate::core::lifecycle::schedule::JobState::Running && row.attempts == job.attempts
        }))
    }

    /// Prolongs the leases of these (job, attempt).
    ///
    /// # Errors
    /// When the store cannot be written; the leases run out in time.
    pub async fn extend(&self, held: Vec<(i64, u32)>) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Extend { held, now, asked }).await
    }

    /// Keeps how an attempt ended, and tells those who wait for it.
    ///
    /// # Errors
    /// When the store cannot be written; nothing was kept, and it is to be tried again.
    pub async fn finish(&self, taken: &Taken, ending: Ending) -> Result<Finished, StoreError> {
        self.end(&taken.job, Some(taken.callback.clone()), ending).await
    }

    /// Keeps that an attempt was cut short, or never begun: its job is due at once.
    ///
    /// # Errors
    /// As [`Store::finish`].
    pub async fn give_back(&self, job: &JobRow) -> Result<(), StoreError> {
        self.end(job, None, Ending::GivenBack).await.map(drop)
    }

    async fn end(
        &self,
        job: &JobRow,
        callback: Option<Arc<Callback>>,
        ending: Ending,
    ) -> Result<Finished, StoreError> {
        let mut answer = Answer::default();
        let ending = match ending {
            Ending::Done(given) => {
                let split = given.split();
                let seal = |secret| self.sealer().seal(job.id.as_bytes(), &secret);
                let sealed = split.secret.map(seal).transpose()?;
                answer = given;
                ledger::Ending::Done { instance_id: answer.instance_id.clone(), open: split.open, sealed }
            }
            Ending::Retry { error, after } => ledger::Ending::Retry {
                error,
                after_ms: after.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
            },
            Ending::Refused { reason } => ledger::Ending::Refused { reason },
            Ending::Pending { note } => ledger::Ending::Pending { note },
            Ending::GivenBack => ledger::Ending::GivenBack,
        };
        let finish = Finish {
            job: job.number,
            attempt: job.attempts,
            callback,
            ending,
            schedules: self.inner.shared.schedules.clone(),
            now: self.inner.clock.now(),
        };
        let finished = self
            .ask(|asked| Command::Finish(Box::new(FinishCommand { finish, answer, claimed: None, asked })))
            .await?;
        Ok(match finished {
            ledger::Finished::Kept { state, note, .. } => Finished::Kept { state, note },
            ledger::Finished::Fenced => Finished::Fenced,
        })
    }

    /// Whether a write goes through now: one is made, and reaches the disk.
    ///
    /// # Errors
    /// When it does not.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.ask(|asked| Command::Probe { asked }).await
    }

    /// Whether the database is still where it was opened.
    ///
    /// # Errors
    /// When it was moved, deleted or replaced: then whoever works beside this store must not.
    pub fn is_in_place(&self) -> Result<(), StoreError> {
        match &self.inner.reader.backing {
            Backing::Sqlite(readers) => readers.is_in_place(),
            Backing::Memory(_) => Ok(()),
        }
    }

    /// Gives back the jobs that ran when the last daemon died.
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

    async fn ask<T>(&self, command: impl FnOnce(Asked<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.inner.queue.try_send(command(Asked::new(reply))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })?;
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }
}
