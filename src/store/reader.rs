//! Read access to committed rows, and checks of a database that no daemon has to run for.

use std::collections::BTreeMap;
use std::path::Path;

use super::encryption::{Encryptor, KeyId, KeySource, SealError};
use super::rows::{
    AttemptRow, AuditEntry, CallbackRow, CommittedRows, Filter, InstanceRow, JobRow, KeyUse, Lists,
    MarketJob, MarketJobs, Result as RowResult, Totals,
};
use super::sqlite::InstanceExport;
use super::{StoreError, StoreOptions, sqlite};
use spid_hook::callback::Callback;
use spid_hook::id::Id;

/// Read access to committed rows. A read never waits for the writer.
pub struct Reader {
    pub(super) rows: Box<dyn CommittedRows>,
}

impl Reader {
    /// Opens a database for reading only, with or without a running daemon.
    ///
    /// # Errors
    /// Fails if there is no database, or it is not one of spid's, or it has another schema version.
    pub fn open(path: &Path) -> Result<Reader, StoreError> {
        sqlite::Sqlite::open_readonly(path)?;
        Ok(Reader::of(sqlite::SqliteReaders::new(path, None)))
    }

    /// Returns a reader of these rows.
    pub fn of(rows: impl CommittedRows) -> Reader {
        Reader { rows: Box::new(rows) }
    }

    pub(super) fn with<T>(&self, read: impl FnOnce(&dyn Lists) -> RowResult<T>) -> RowResult<T> {
        let (mut read, mut found) = (Some(read), None);
        self.rows.with(&mut |rows| {
            if let Some(read) = read.take() {
                found = Some(read(rows)?);
            }
            Ok(())
        })?;
        found.ok_or(StoreError::Inconsistent("the rows were not read"))
    }

    /// Returns instances, the newest first.
    ///
    /// # Errors
    /// Fails with a [`StoreError`] if the database cannot be read. This holds for all reads.
    pub fn instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>, StoreError> {
        self.with(|rows| rows.list_instances(filter))
    }

    /// Returns the instances with this name, in every account.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>, StoreError> {
        self.with(|rows| rows.instances_named(name))
    }

    /// Returns the instance with this number.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn instance(&self, number: i64) -> Result<Option<InstanceRow>, StoreError> {
        self.with(|rows| rows.instance(number))
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
        self.with(|rows| rows.audit_log(limit))
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

    /// Returns jobs of the market client.
    ///
    /// # Errors
    /// Fails like [`Reader::instances`].
    pub fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>, StoreError> {
        self.with(|rows| rows.market_jobs(which))
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
