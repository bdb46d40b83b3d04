//! Durable store of callbacks, instances and jobs.
//!
//! [`Store`] is the handle that the rest of the daemon holds. Behind it are:
//!
//! * `writer`: one writer thread with group commit,
//! * `rules`: the rules of accepting callbacks, leasing jobs and recording results,
//! * `work`: the unit of work, in which the rules read and change rows,
//! * `sqlite`: the backend, which only finds and keeps rows,
//! * `signals`: the signals between intake and dispatch.
//!
//! The store keeps two orders. First, it answers a caller after the commit, never before it. Second, it records a
//! result as reported to the marketplace in the commit that makes the result true.

mod attention;
pub mod encryption;
mod error;
#[cfg(test)]
mod fixtures;
mod key_use;
mod operations;
mod options;
mod prune;
mod reader;
mod reencrypt;
mod rows;
mod rules;
mod sqlite;
mod views;
mod waiters;
mod work;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::encryption::{Encryptor, KeySource};
use key_use::KeysUsed;
use rules::{Accepted, Finish, KnownAnswer, StoredAnswer};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Answer, Callback, Nonce, Outcome};
use spid_hook::id::{Id, Ids};
use spid_hook::instance::Instance;
use spid_hook::time::Clock;
use waiters::StoreSignals;
use writer::{AcceptCommand, Command, FinishCommand, MarketStep, OrderDetailsCommand, ReplySlot};

pub use attention::{Attention, AttentionItem, AttentionReason};
pub use error::StoreError;
pub use key_use::ConfiguredKey;
pub use operations::{
    AdminOperation, Approved, AuditNote, ChosenJob, Claim, Claimed, Import, Imported, Instead, NamedInstance,
    OperationError, OperationReport, Operations, Restored, backup, restore, result,
};
pub use options::{ChooseSchedule, Postpone, Retrying, Schedules, StoreOptions};
pub use prune::{PruneOptions, Pruned};
pub use reader::{Reader, Sealed, check_database, check_sealing_keys, each_instance, unserved_accounts};
pub use reencrypt::{Decrypted, Reencrypted};
pub use rows::{
    AttemptRow, AuditEntry, Backend, CallbackRow, CommittedRows, DAY_MS, Disposition, DueMarketJobs, Filter,
    InstanceAndQueue, InstanceRow, JobKind, JobRow, KeyUse, Lists, MarketJob, MarketJobKind, MarketJobs,
    Numbered, Read, ReadableJob, Totals, Unreadable,
};
pub use rules::{Acceptance, AttemptEnd, CallEnd, LeasedJob, OwedCall, UnreadableJob};
pub use sqlite::InstanceExport;
pub use views::{
    AnyJob, AnyJobDetail, CallbackDetail, Entitled, EntitledBy, HeldItem, InstanceHistory, JobDetail,
    ListedCallback, ListedJob, ViewError,
};
pub use waiters::{HandedJob, ResultWaiter};
pub use work::{Changes, Stored, StoredCallback, Work, WorkRows};
pub use writer::{Batch, Ended, LeasedJobs, Operated, Writer};

/// Result of recording the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// The end was kept.
    Kept {
        /// State of the job now.
        state: JobState,
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

/// Rows of a temporary database, and its folder. The folder is deleted after the readers are closed.
#[cfg(test)]
struct TemporaryRows(
    sqlite::SqliteReaders,
    #[expect(dead_code, reason = "deleted when dropped")] tempfile::TempDir,
);

#[cfg(test)]
impl rows::CommittedRows for TemporaryRows {
    fn with(&self, read: &mut dyn FnMut(&dyn rows::Lists) -> rows::Result<()>) -> rows::Result<()> {
        self.0.with(read)
    }
}

type Counts = BTreeMap<i64, (u64, Timestamp)>;

fn add_count(counts: &mut Counts, callback: i64, count: u64, last: Timestamp) {
    let entry = counts.entry(callback).or_insert((0, last));
    *entry = (entry.0 + count, entry.1.max(last));
}

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
    ready: Mutex<Option<mpsc::UnboundedReceiver<HandedJob>>>,
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
        let reader = Reader::of(sqlite::SqliteReaders::new(path, backend.place()));
        Store::start(backend, reader, encryptor, options, clock).await
    }

    /// Starts a store on another backend, for tests. `reader` reads what `backend` has committed.
    ///
    /// # Errors
    /// Fails if the rows cannot be read or written.
    pub async fn start<B: Backend>(
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

    /// Creates a store in a folder of its own, which is deleted with the store.
    #[cfg(test)]
    pub(crate) async fn temporary(
        options: StoreOptions,
        clock: Clock,
    ) -> Result<(Store, Closed), StoreError> {
        let folder = tempfile::tempdir().map_err(|error| StoreError::Io(error.to_string()))?;
        let path = folder.path().join("spid.db");
        let backend = open_alone(&path, None).await?;
        let rows = TemporaryRows(sqlite::SqliteReaders::new(&path, backend.place()), folder);
        Store::start(backend, Reader::of(rows), Encryptor::ephemeral()?, options, clock).await
    }

    /// Builds a store and its writer. The caller drives the writer, and calls [`Store::recover`] first.
    pub fn assemble<B: Backend>(
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
            Some(nonce) => {
                self.refuse_copy(&acceptance.account, nonce, now)?;
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
            let reply = Reply::Now(self.outcome(repeat.answer, now));
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
            None => Reply::Now(self.outcome(accepted.answer, now)),
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
    pub async fn consume(&self, account: &str, nonce: Nonce) -> Result<(), StoreError> {
        let (account, now) = (account.to_owned(), self.inner.clock.now());
        self.refuse_copy(&account, &nonce, now)?;
        let is_new = self.ask(|asked| Command::Consume { account, nonce, now, asked }).await?;
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
        self.ask(|asked| {
            Command::AddOrderDetails(Box::new(OrderDetailsCommand { attempt, callback, now, asked }))
        })
        .await
    }

    /// Refuses a copy that committed rows already show. If the reader finds the database locked, the writer decides.
    fn refuse_copy(&self, account: &str, nonce: &Nonce, now: Timestamp) -> Result<(), StoreError> {
        match self.inner.reader.with(|rows| rules::is_copy(rows, account, nonce, now)) {
            Ok(true) => Err(StoreError::Replayed),
            Ok(false) | Err(StoreError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the answer to a redelivery. If the reader finds the database locked, the writer decides: it can wait.
    fn peek(&self, acceptance: &Acceptance) -> Result<Option<Accepted>, StoreError> {
        match self.inner.reader.with(|rows| rules::peek(rows, acceptance)) {
            Err(StoreError::Busy) => Ok(None),
            peeked => peeked,
        }
    }

    fn outcome(&self, known: KnownAnswer, now: Timestamp) -> Outcome {
        known.outcome(|stored| self.applied(stored, now))
    }

    /// Builds the outcome of a stored answer. Its secrets are included only during a window after the first report.
    fn applied(&self, stored: StoredAnswer, now: Timestamp) -> Outcome {
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
        add_count(&mut counts, callback, 1, now);
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
        if let Some(path) = self.inner.reader.rows.path() {
            note_keys(path, &encryptor);
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
            add_count(&mut pending, number, count, last);
        }
    }

    /// Attaches the dispatcher, which can begin `permits` jobs at once.
    ///
    /// Returns a receiver of the jobs that were created in state running. Returns `None` if a dispatcher is already
    /// attached.
    pub fn attach(&self, permits: usize) -> Option<mpsc::UnboundedReceiver<HandedJob>> {
        let receiver = self.inner.ready.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.inner.shared.signals.permits.add_permits(permits);
        Some(receiver)
    }

    /// Returns the permits for beginning jobs. After they are closed, no job is created in state running.
    pub fn permits(&self) -> &Arc<tokio::sync::Semaphore> {
        &self.inner.shared.signals.permits
    }

    /// Returns a receiver that changes after each commit of this process. Commands in other processes commit without it.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.inner.shared.signals.commits()
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
        self.lease_due(limit, Vec::new(), None).await
    }

    /// Leases due jobs like [`Store::take`], for a dispatcher that runs the (job, attempt) pairs in `in_flight`.
    ///
    /// The store does not end the leases of these jobs, even if the clock says that they have ended. So a clock that
    /// jumps, or a store that was unavailable, does not make the dispatcher lose its own jobs. Jobs for which `postpone`
    /// returns a time are postponed.
    ///
    /// # Errors
    /// Fails like [`Store::take`].
    pub async fn lease_due(
        &self,
        limit: usize,
        in_flight: Vec<(i64, u32)>,
        postpone: Option<Arc<Postpone>>,
    ) -> Result<LeasedJobs, StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Lease { limit, in_flight, postpone, now, asked }).await
    }

    /// Returns true if a job that was handed over still has its lease, according to committed rows.
    ///
    /// The row is read only if leases have ended since the hand-over.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn holds(&self, handed: &HandedJob) -> Result<bool, StoreError> {
        if handed.leases_ended == self.inner.shared.signals.leases_ended() {
            return Ok(true);
        }
        let job = &handed.taken.job;
        let row = self.inner.reader.job(job.id)?;
        Ok(row.is_some_and(|row| row.state == JobState::Running && row.attempts == job.attempts))
    }

    /// Extends the leases of these (job, attempt) pairs.
    ///
    /// # Errors
    /// Fails if the store cannot be written. The leases then end at their time.
    pub async fn extend(&self, in_flight: Vec<(i64, u32)>) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::Extend { in_flight, now, asked }).await
    }

    /// Records the end of an attempt, and reports it to the callers that wait for it.
    ///
    /// # Errors
    /// Fails if the store cannot be written. Nothing was kept, and the caller must try again.
    pub async fn finish(&self, taken: &LeasedJob, end: AttemptEnd) -> Result<Finished, StoreError> {
        self.end(&taken.job, Some(taken.callback.clone()), end).await
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
        end: AttemptEnd,
    ) -> Result<Finished, StoreError> {
        let (mut open, mut sealed) = (None, None);
        if let AttemptEnd::Done(answer) = &end {
            let split = answer.split();
            open = split.open;
            // Encrypt the secrets before they enter the writer's queue, so that no row ever holds them in plain text.
            if let Some(secret) = split.secret {
                sealed = Some(self.encryptor().seal(job.id.as_bytes(), &secret)?);
            }
        }
        let finish = Finish {
            job: job.number,
            attempt: job.attempts,
            callback,
            end,
            open,
            sealed,
            schedules: self.inner.shared.schedules.clone(),
            now: self.inner.clock.now(),
        };
        let ended = self
            .ask(|asked| Command::Finish(Box::new(FinishCommand { finish, drained: None, asked })))
            .await?;
        Ok(match ended {
            Some(ended) => Finished::Kept { state: ended.state, note: ended.note },
            None => Finished::Fenced,
        })
    }

    /// Keeps exactly these recurring jobs of the market client. At a start, the jobs that the last daemon was running are
    /// due again.
    ///
    /// # Errors
    /// Fails if the store cannot be written.
    pub async fn configure_market_jobs(
        &self,
        recurring: Vec<OwedCall>,
        is_start: bool,
    ) -> Result<(), StoreError> {
        self.market_step(MarketStep::Configure { recurring, is_start }).await.map(drop)
    }

    /// Leases up to `limit` due jobs of a market and a kind. Nothing is written if none is due.
    ///
    /// # Errors
    /// Fails if the store cannot be read or written. No job was leased.
    pub async fn lease_market_jobs(
        &self,
        market: &str,
        kind: MarketJobKind,
        limit: usize,
    ) -> Result<Vec<MarketJob>, StoreError> {
        let now = self.inner.clock.now();
        let (due, running) = self.inner.reader.with(|rows| {
            let due = rows.market_jobs(MarketJobs::Due(DueMarketJobs { kind, market, now, limit: 1 }))?;
            Ok((due, rows.market_jobs(MarketJobs::Running)?))
        })?;
        let is_lost = |job: &MarketJob| job.lease_until.is_none_or(|until| until < now);
        if limit == 0 || due.is_empty() && !running.iter().any(is_lost) {
            return Ok(Vec::new());
        }
        self.market_step(MarketStep::Lease(market.to_owned(), kind, limit)).await
    }

    /// Records the end of an attempt at a job of the market client, and the calls that it found to be owed.
    ///
    /// `None` means that the attempt has lost its lease.
    ///
    /// # Errors
    /// Fails if the store cannot be written. Nothing was kept, and the caller must try again.
    pub async fn finish_market_job(
        &self,
        job: &MarketJob,
        end: CallEnd,
        found: Vec<OwedCall>,
    ) -> Result<Option<MarketJob>, StoreError> {
        let step = MarketStep::Finish((job.number, job.attempts), end, found);
        Ok(self.market_step(step).await?.pop())
    }

    async fn market_step(&self, step: MarketStep) -> Result<Vec<MarketJob>, StoreError> {
        let now = self.inner.clock.now();
        self.ask(|asked| Command::MarketJobs { step, now, asked }).await
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
        self.inner.reader.rows.is_in_place()
    }

    /// Returns the jobs that were running when the last daemon died to the queue.
    ///
    /// # Errors
    /// Fails if the store cannot be written. The daemon then does not start.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        let recovered = self.ask(|asked| Command::Recover { now, asked }).await?;
        for unreadable in &recovered.unreadable {
            unreadable.log(&self.inner.shared.metrics);
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
