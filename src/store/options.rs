//! Options for the store: retry schedules, sealing keys, ids.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::encryption::{Encryptor, KeyId, KeySource};
use super::{StoreError, sqlite};
use crate::observe::limits;
use crate::observe::metrics::Metrics;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::callback::Callback;
use spid_hook::id::Ids;
use spid_hook::instance::Instance;

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
    pub(super) fn of(&self, retrying: &Retrying<'_>) -> Schedule {
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
    pub(super) fn key_sources(&self, path: &Path) -> Vec<KeySource> {
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
    pub(super) fn remains(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
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
