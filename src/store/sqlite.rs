//! The store in SQLite: one file, WAL, `synchronous=FULL`. The only module that names rusqlite.
//!
//! One connection writes, on the writer's thread; readers have their own and see what is committed.
//! The file is made readable by its owner alone. A lock beside it keeps a second daemon out: SQLite
//! would let both in, and each would take the other's running jobs for lost.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::types::{FromSql, Value, ValueRef};
use rusqlite::{
    CachedStatement, Connection, OpenFlags, OptionalExtension, Params, Row, params, params_from_iter,
};
use rustix::fs::Access;

use super::StoreError;
use super::rows::{
    ActRow, AttemptRow, Backend, CallbackRow, DAY_MS, Disposition, Filter, InstanceRow, JobRow, KeyUse,
    Known, Read, Result, Totals, Write,
};
use crate::callback::{Action, Callback};
use crate::clock::{Id, from_millis};
use crate::instance::{Instance, State};
use crate::{job, limits};

/// Marks the file as ours: "spid" in ASCII.
const APPLICATION_ID: i64 = 0x7370_6964;

/// The migrations: entry n takes the schema from version n to n + 1.
///
/// One that was ever released is history: databases of that version are out there. What changes the schema
/// comes behind it.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("schema-2.sql")];

const STATES: [State; 4] = [State::Pending, State::Active, State::Frozen, State::Released];

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode as Code;
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => StoreError::Busy,
            Some(Code::DiskFull) => StoreError::Full,
            Some(Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied) => {
                StoreError::Io(format!("{error}; may this user read and write it, and make files beside it?"))
            }
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Io(error.to_string()),
        }
    }
}

/// A connection, and the statements it has prepared.
#[derive(Debug)]
pub(crate) struct Sqlite {
    connection: Connection,
    /// Held for as long as the daemon writes.
    _lock: Option<File>,
}

/// Connections that read what is committed.
#[derive(Debug)]
pub(crate) struct SqliteReaders {
    path: PathBuf,
    idle: Mutex<Vec<Sqlite>>,
}

impl Sqlite {
    /// Opens the store for the daemon: makes the file, takes the lock, brings the schema up to date.
    pub(crate) fn open(path: &Path) -> Result<Sqlite> {
        make_private(path)?;
        let lock = lock(path)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let version = recognise(&connection, path)?;
        insist_on_writing(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", limits::STORE_CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", limits::STORE_JOURNAL_MAX_BYTES)?;
        // What takes back one operation of a batch is kept for as long as the operation lasts: in memory.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        migrate(&connection, version)?;
        Ok(Sqlite { connection, _lock: Some(lock) })
    }

    /// Looks whether [`Sqlite::open`] would succeed, but for a daemon that runs. `None`: it would be made.
    pub(crate) fn check(path: &Path) -> Result<Option<Sqlite>> {
        may_make_files_beside(path)?;
        if !path.exists() {
            return Ok(None);
        }
        may(path, Access::READ_OK | Access::WRITE_OK)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let is_empty = recognise(&connection, path)? == 0;
        Ok((!is_empty).then_some(Sqlite { connection, _lock: None }))
    }

    /// Opens the store to look at it, while a daemon runs or not.
    pub(crate) fn open_readonly(path: &Path) -> Result<Sqlite> {
        let reader = Sqlite::open_beside(path)?;
        reader.connection.pragma_update(None, "query_only", true)?;
        // Readers stand on the threads that serve: they must not wait for long.
        reader.connection.busy_timeout(Duration::from_millis(limits::STORE_READ_BUSY_MS))?;
        Ok(reader)
    }

    /// Opens the store to mend it: without the daemon's lock, so beside a daemon or without one. SQLite's
    /// own lock puts the two in order.
    pub(crate) fn open_to_mend(path: &Path) -> Result<Sqlite> {
        let mender = Sqlite::open_beside(path)?;
        mender.connection.pragma_update(None, "synchronous", "FULL")?;
        mender.connection.pragma_update(None, "foreign_keys", true)?;
        Ok(mender)
    }

    /// Copies the store, as it is at one commit, into a file that is not there yet.
    pub(crate) fn copy_to(&self, to: &Path) -> Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        file.map_err(|error| StoreError::of_file(to, &error))?;
        let copied = self.fill(to);
        if copied.is_err() {
            // Half a copy must not be taken for one.
            let _ = std::fs::remove_file(to);
        }
        copied
    }

    fn fill(&self, to: &Path) -> Result<()> {
        let mut copy = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let backup = rusqlite::backup::Backup::new(&self.connection, &mut copy)?;
        // All pages in one step: a copy in several begins anew whenever the daemon writes.
        if backup.step(-1)? != rusqlite::backup::StepResult::Done {
            return Err(StoreError::Busy);
        }
        drop(backup);
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        match copy.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?.as_str() {
            "ok" => sync_folder(to),
            fault => Err(StoreError::Corrupt(fault.to_owned())),
        }
    }

    /// Whether any answer in it has a sealed part.
    pub(crate) fn has_sealed(&self) -> Result<bool> {
        let found = self.one("SELECT 1 FROM job WHERE sealed IS NOT NULL LIMIT 1", [], |_| Ok(()))?;
        Ok(found.is_some())
    }

    /// Opens a backup to copy it. It may be one that an older spid made.
    pub(crate) fn open_backup(path: &Path) -> Result<Sqlite> {
        let (backup, _) = Sqlite::open_of_any_version(path)?;
        backup.connection.pragma_update(None, "query_only", true)?;
        Ok(backup)
    }

    /// Brings the schema of a database up to date that nobody else uses.
    pub(crate) fn modernise(path: &Path) -> Result<()> {
        let (old, version) = Sqlite::open_of_any_version(path)?;
        old.connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&old.connection, version)
    }

    fn open_beside(path: &Path) -> Result<Sqlite> {
        match Sqlite::open_of_any_version(path)? {
            (_, older) if older < MIGRATIONS.len() => Err(StoreError::Older(path.to_owned(), older as i64)),
            (opened, _) => Ok(opened),
        }
    }

    /// A database that is there and ours, and its version.
    fn open_of_any_version(path: &Path) -> Result<(Sqlite, usize)> {
        if !path.exists() {
            return Err(StoreError::NotThere(path.to_owned()));
        }
        // Not SQLITE_OPEN_READ_ONLY: reading a WAL needs the shared-memory file, which may have to be made.
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        match recognise(&connection, path)? {
            0 => Err(StoreError::NotOurs(path.to_owned())),
            version => Ok((Sqlite { connection, _lock: None }, version)),
        }
    }

    fn statement(&self, sql: &str) -> Result<CachedStatement<'_>> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        Ok(self.statement(sql)?.query_row(params, read).optional()?)
    }

    fn many<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.statement(sql)?;
        let rows = statement.query_map(params, read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn run(&self, sql: &str, params: impl Params) -> Result<usize> {
        Ok(self.statement(sql)?.execute(params)?)
    }

    fn insert(&self, sql: &str, params: impl Params) -> Result<i64> {
        Ok(self.statement(sql)?.insert(params)?)
    }
}

impl SqliteReaders {
    pub(crate) fn new(path: &Path) -> SqliteReaders {
        SqliteReaders { path: path.to_owned(), idle: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn with<T>(&self, read: impl FnOnce(&Sqlite) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match idle {
            Some(reader) => reader,
            None => Sqlite::open_readonly(&self.path)?,
        };
        let result = in_snapshot(&reader, read);
        // A connection that failed is not kept: the next reader gets a fresh one.
        if result.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        }
        result
    }
}

/// All reads of `read` see one and the same commit.
fn in_snapshot<T>(reader: &Sqlite, read: impl FnOnce(&Sqlite) -> Result<T>) -> Result<T> {
    reader.run("BEGIN", [])?;
    let result = read(reader);
    let ended = reader.run("COMMIT", []);
    let value = result?;
    ended?;
    Ok(value)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_millis(limits::STORE_BUSY_MS))?;
    connection.set_prepared_statement_cache_capacity(64);
    // Without it SQLite plans anew whenever a parameter changes: at each execution.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a new or renamed file outlive a power cut.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| StoreError::of_file(folder, &error))
}

/// A place where a database may be put: no daemon uses it while this lives, and nothing is there.
#[derive(Debug)]
pub(crate) struct Vacancy {
    path: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl Vacancy {
    /// Makes sure of it. `Err` with the file that is in the way in the inner result.
    pub(crate) fn at(path: &Path) -> Result<std::result::Result<Vacancy, PathBuf>> {
        let lock = lock(path)?;
        // A journal that is left beside would be played into whatever is put there.
        let remains = ["", "-wal", "-shm", "-journal"].map(|suffix| beside(path, suffix));
        if let Some(remains) = remains.into_iter().find(|file| file.symlink_metadata().is_ok()) {
            return Ok(Err(remains));
        }
        let partial = beside(path, ".restoring");
        for suffix in ["", "-journal"] {
            // What an earlier restore left that did not come to its end.
            let _ = std::fs::remove_file(beside(&partial, suffix));
        }
        Ok(Ok(Vacancy { path: path.to_owned(), partial, _lock: lock }))
    }

    /// Where the database is made ready.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Puts it in its place, ready as it is.
    pub(crate) fn fill(self) -> Result<()> {
        let moved = std::fs::rename(&self.partial, &self.path);
        moved.map_err(|error| StoreError::of_file(&self.path, &error))?;
        sync_folder(&self.path)
    }
}

/// The lock lies beside the file itself, wherever a link to it may be.
fn lock_path(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = match (path.canonicalize(), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
            folder.canonicalize().map(|folder| folder.join(name))
        }
        (real, _) => real,
    };
    let real = real.map_err(|error| StoreError::of_file(path, &error))?;
    Ok(beside(&real, ".lock"))
}

fn lock(path: &Path) -> Result<File> {
    let lock_path = lock_path(path)?;
    let file_error = |error: std::io::Error| StoreError::of_file(&lock_path, &error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(file_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(file_error(error)),
    }
}

/// Whether files can be made beside this one.
pub(crate) fn may_make_files_beside(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    may(folder, Access::WRITE_OK | Access::EXEC_OK)
}

fn may(path: &Path, access: Access) -> Result<()> {
    rustix::fs::access(path, access).map_err(|error| StoreError::of_file(path, &error.into()))
}

/// Makes an empty file with mode 0600, so that SQLite opens it (and its WAL) as private as that.
fn make_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::of_file(path, &error)),
    }
}

/// SQLite makes do with less, and says nothing: a file that cannot be opened for writing it opens for
/// reading, a journal that cannot be had it replaces by another. A daemon must not run like that.
fn insist_on_writing(connection: &Connection) -> Result<()> {
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(StoreError::Io("it could be opened for reading only".to_owned()));
    }
    let journal: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if journal != "wal" {
        return Err(StoreError::Io(format!("its journal stays `{journal}`: the disk offers no WAL")));
    }
    Ok(())
}

/// The version of the schema in a database of ours, 0 in an empty file. Reads only: what is not ours,
/// or not of our time, is left as it is.
fn recognise(connection: &Connection, path: &Path) -> Result<usize> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let version = number("PRAGMA user_version")?;
    let marked = number("PRAGMA application_id")? == APPLICATION_ID;
    if !marked && (version != 0 || number("SELECT count(*) FROM sqlite_schema")? > 0) {
        return Err(StoreError::NotOurs(path.to_owned()));
    }
    match usize::try_from(version) {
        Ok(known) if known <= MIGRATIONS.len() => Ok(known),
        _ => Err(StoreError::Newer(path.to_owned(), version)),
    }
}

/// Brings the schema from `version` to the newest, all steps in one commit.
fn migrate(connection: &Connection, version: usize) -> Result<()> {
    let newest = MIGRATIONS.len();
    let Some(pending @ [_, ..]) = MIGRATIONS.get(version..) else { return Ok(()) };
    let steps = pending.concat();
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {steps} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {newest}; COMMIT;"
    ))?;
    if version > 0 {
        tracing::info!(
            from = version,
            to = newest,
            "the database's schema is brought up to date; an older spid does not open it any more"
        );
    }
    Ok(())
}

/// What cannot have been written by us.
fn unreadable(what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Null, what.into())
}

fn at_position<T: Copy>(all: &[T], position: i64) -> rusqlite::Result<T> {
    let found = usize::try_from(position).ok().and_then(|position| all.get(position));
    found.copied().ok_or_else(|| unreadable("a number that stands for nothing"))
}

fn position<T: PartialEq>(all: &[T], value: &T) -> i64 {
    all.iter().position(|other| other == value).map_or(-1, |position| position as i64)
}

/// The columns of a row, taken one after the other. By name each would be searched for among all of them,
/// for every row of every callback.
struct Columns<'a> {
    row: &'a Row<'a>,
    next: usize,
}

impl<'a> Columns<'a> {
    fn of(row: &'a Row<'a>) -> Columns<'a> {
        Columns { row, next: 0 }
    }

    fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1)
    }

    fn instant(&mut self) -> rusqlite::Result<Timestamp> {
        Ok(from_millis(self.next()?))
    }

    fn instant_or_none(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        Ok(self.next::<Option<i64>>()?.map(from_millis))
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> rusqlite::Result<T> {
        at_position(all, self.next()?)
    }
}

fn millis(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_millisecond)
}

/// The columns of an instance, in the order they are read.
macro_rules! instance_columns {
    () => {
        "instance.number, instance.created_by, instance.public_id, instance.id, instance.order_biz_id, instance.state,
         instance.account, instance.endpoint, instance.buyer, instance.product, instance.sku,
         instance.order_id, instance.trial, instance.expires_on, instance.expires_on_raw, instance.items,
         instance.began, instance.tombstone, instance.adopted, instance.claimed_at, instance.tenant,
         instance.created_at, instance.updated_at"
    };
}

/// How many they are.
const INSTANCE_COLUMNS_COUNT: usize = 23;

fn read_instance(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    let mut columns = Columns::of(row);
    let (number, created_by, public_id) = (columns.next()?, columns.next()?, columns.next()?);
    let instance = Instance {
        id: columns.next()?,
        order_biz_id: columns.next()?,
        state: columns.one_of(&STATES)?,
        account: columns.next()?,
        endpoint: columns.next()?,
        buyer: columns.next()?,
        product: columns.next()?,
        sku: columns.next()?,
        order_id: columns.next()?,
        trial: columns.next()?,
        expires_on: columns.instant_or_none()?,
        expires_on_raw: columns.next()?,
        items: read_items(columns.next()?)?,
        began: columns.next()?,
        tombstone: columns.next()?,
        adopted: columns.next()?,
        claimed_at: columns.instant_or_none()?,
        tenant: columns.next()?,
        created_at: columns.instant()?,
        updated_at: columns.instant()?,
    };
    Ok(InstanceRow { number, created_by, public_id, instance })
}

fn read_items(text: Option<String>) -> rusqlite::Result<BTreeMap<String, String>> {
    let items = text.map(|text| serde_json::from_str(&text)).transpose();
    Ok(items.map_err(|_| unreadable("items that are not JSON"))?.unwrap_or_default())
}

/// The columns of a callback, in the order they are read. Its body follows where it is wanted.
macro_rules! callback_columns {
    () => {
        "callback.number, callback.account, callback.endpoint, callback.key_label, callback.occurrence,
         callback.instance, callback.job, callback.action, callback.disposition, callback.reason_code,
         callback.reason, callback.received_at, callback.last_received_at, callback.deliveries,
         callback.budget, callback.told_at"
    };
}

/// How many they are.
const CALLBACK_COLUMNS_COUNT: usize = 16;

fn read_callback(row: &Row<'_>) -> rusqlite::Result<CallbackRow> {
    let mut columns = Columns::of(row);
    Ok(CallbackRow {
        number: columns.next()?,
        account: columns.next()?,
        endpoint: columns.next()?,
        key_label: columns.next()?,
        occurrence: columns.next()?,
        instance: columns.next()?,
        job: columns.next()?,
        action: columns.one_of(&Action::ALL)?,
        disposition: columns.one_of(&Disposition::ALL)?,
        reason_code: columns.next()?,
        reason: columns.next()?,
        received_at: columns.instant()?,
        last_received_at: columns.instant()?,
        deliveries: columns.next::<i64>()?.unsigned_abs(),
        budget: columns.next()?,
        told_at: columns.instant_or_none()?,
    })
}

/// A callback's body, which stands behind so many other columns.
fn read_body(row: &Row<'_>, behind: usize) -> rusqlite::Result<Callback> {
    let body = row.get_ref(behind)?;
    serde_json::from_slice(body.as_bytes()?).map_err(|_| unreadable("a callback that is not JSON"))
}

/// The columns of a job, in the order they are read.
macro_rules! job_columns {
    () => {
        "job.number, job.id, job.callback, job.instance, job.in_lane, job.action, job.state, job.attempts,
         job.step, job.extra, job.due_at, job.lease_until, job.attempted_at, job.note, job.answer,
         job.sealed, job.proposed_id, job.created_at, job.ended_at"
    };
}

/// How many they are.
const JOB_COLUMNS_COUNT: usize = 19;

fn read_job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    read_job_behind(row, 0)
}

/// A job whose columns stand behind so many others.
fn read_job_behind(row: &Row<'_>, behind: usize) -> rusqlite::Result<JobRow> {
    let mut columns = Columns { row, next: behind };
    Ok(JobRow {
        number: columns.next()?,
        id: Id::from_bytes(columns.next()?),
        callback: columns.next()?,
        instance: columns.next()?,
        in_lane: columns.next()?,
        action: columns.one_of(&Action::ALL)?,
        state: columns.one_of(&job::State::ALL)?,
        attempts: columns.next()?,
        step: columns.next()?,
        extra: columns.one_of(&job::Extra::ALL)?,
        due_at: columns.instant()?,
        lease_until: columns.instant_or_none()?,
        attempted_at: columns.instant_or_none()?,
        note: columns.next()?,
        answer: columns.next()?,
        sealed: columns.next()?,
        proposed_id: columns.next()?,
        created_at: columns.instant()?,
        ended_at: columns.instant_or_none()?,
    })
}

fn read_attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    let mut columns = Columns::of(row);
    Ok(AttemptRow {
        job: columns.next()?,
        attempt: columns.next()?,
        ended_at: columns.instant()?,
        ending: columns.next()?,
        note: columns.next()?,
    })
}

const IS_HEAD: &str = "(job.in_lane = 0 OR NOT EXISTS (SELECT 1 FROM job AS before
    WHERE before.instance = job.instance AND before.in_lane = 1
    AND before.number < job.number AND before.state < 5))";

/// Asked for by a marketplace, done, and not told: by a job, or because an operator's approval found
/// it done already. Everything else that needs no job is told in the commit that records it.
const IS_UNTOLD: &str = "(told_at IS NULL AND deliveries > 0 AND (disposition = 3
    OR disposition = 0 AND EXISTS (SELECT 1 FROM job WHERE job.number = callback.job AND job.state = 5)))";

/// The most tries spent on a callback that still wants its answer: what was refused, dropped or
/// cancelled has had one, and is called for in vain.
const TRIES: &str = "SELECT max(deliveries), max(deliveries * 1.0 / budget) FROM callback
    WHERE told_at IS NULL AND budget IS NOT NULL AND disposition <> 2
    AND (disposition <> 0 OR EXISTS (SELECT 1 FROM job WHERE job.number = callback.job AND job.state < 6))";

/// A list's conditions, as they are added one by one.
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn new(filter: &Filter) -> Conditions {
        let mut conditions = Conditions { sql: "1".to_owned(), values: Vec::new() };
        conditions.add("number < ?", filter.before);
        conditions
    }

    fn add(&mut self, sql: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.sql.push_str(" AND ");
            self.sql.push_str(sql);
            self.values.push(value.into());
        }
    }

    fn search(&mut self, text: &str) {
        let columns = ["id", "order_biz_id", "buyer", "order_id", "product", "sku"];
        let found = columns.map(|column| format!("{column} LIKE ? ESCAPE '\\'"));
        self.sql.push_str(&format!(" AND ({})", found.join(" OR ")));
        let plain = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        self.values.extend(columns.map(|_| Value::Text(format!("%{plain}%"))));
    }

    fn query(mut self, columns: &str, table: &str, limit: usize) -> (String, Vec<Value>) {
        self.values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        (
            format!("SELECT {columns} FROM {table} WHERE {} ORDER BY number DESC LIMIT ?", self.sql),
            self.values,
        )
    }
}

impl Read for Sqlite {
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>> {
        self.one(
            concat!("SELECT ", instance_columns!(), " FROM instance WHERE number = ?1"),
            [number],
            read_instance,
        )
    }

    fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>> {
        self.many(
            concat!(
                "SELECT ",
                instance_columns!(),
                " FROM name JOIN instance ON instance.number = name.instance
                 WHERE name.name = ?1 ORDER BY instance.number"
            ),
            [name],
            read_instance,
        )
    }

    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<Known>> {
        let sql = concat!(
            "SELECT ",
            instance_columns!(),
            ", EXISTS (SELECT 1 FROM job WHERE job.instance = name.instance AND job.state < 5 AND job.in_lane = 1)
             FROM name JOIN instance ON instance.number = name.instance
             WHERE name.account = ?1 AND name.name = ?2"
        );
        let read = |row: &Row<'_>| Ok((read_instance(row)?, row.get(INSTANCE_COLUMNS_COUNT)?));
        match self.one(sql, [account, name], read)? {
            Some((row, true)) => {
                let lane = self.lane(row.number)?;
                Ok(Some((row, lane)))
            }
            Some((row, false)) => Ok(Some((row, Vec::new()))),
            None => Ok(None),
        }
    }

    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>> {
        self.many(
            "SELECT instance FROM purchase WHERE account = ?1 AND order_id = ?2 LIMIT 2",
            [account, order_id],
            |row| row.get(0),
        )
    }

    fn lane(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>> {
        self.many(
            concat!(
                "SELECT ",
                job_columns!(),
                ", callback.body FROM job JOIN callback ON callback.number = job.callback
                 WHERE job.instance = ?1 AND job.state < 5 AND job.in_lane = 1 ORDER BY job.number"
            ),
            [instance],
            |row| Ok((read_job(row)?, read_body(row, JOB_COLUMNS_COUNT)?)),
        )
    }

    fn has_lane(&self, instance: i64) -> Result<bool> {
        let sql = "SELECT 1 FROM job WHERE instance = ?1 AND state < 5 AND in_lane = 1 LIMIT 1";
        Ok(self.one(sql, [instance], |_| Ok(()))?.is_some())
    }

    fn occurrences(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
        let sql = concat!(
            "SELECT ",
            callback_columns!(),
            ", ",
            job_columns!(),
            " FROM callback LEFT JOIN job ON job.number = callback.job
             WHERE callback.occurrence = ?1 ORDER BY callback.number"
        );
        self.many(sql, [key], |row| {
            let callback = read_callback(row)?;
            let is_there = row.get_ref(CALLBACK_COLUMNS_COUNT)? != ValueRef::Null;
            let job = is_there.then(|| read_job_behind(row, CALLBACK_COLUMNS_COUNT)).transpose()?;
            Ok((callback, job))
        })
    }

    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>> {
        let sql = concat!("SELECT ", callback_columns!(), ", body FROM callback WHERE number = ?1");
        self.one(sql, [number], |row| Ok((read_callback(row)?, read_body(row, CALLBACK_COLUMNS_COUNT)?)))
    }

    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>> {
        let sql = concat!("SELECT ", callback_columns!(), " FROM callback WHERE number = ?1");
        self.one(sql, [number], read_callback)
    }

    fn job(&self, number: i64) -> Result<Option<JobRow>> {
        self.one(concat!("SELECT ", job_columns!(), " FROM job WHERE number = ?1"), [number], read_job)
    }

    fn next_job(&self) -> Result<i64> {
        let last = self.one("SELECT seq FROM sqlite_sequence WHERE name = 'job'", [], |row| row.get(0))?;
        Ok(last.unwrap_or(0) + 1)
    }

    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>> {
        self.one(concat!("SELECT ", job_columns!(), " FROM job WHERE id = ?1"), [id.as_bytes()], read_job)
    }

    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<JobRow>> {
        let sql = format!(
            "SELECT {} FROM job WHERE state = 0 AND due_at <= ?1 AND {IS_HEAD} ORDER BY due_at, number LIMIT ?2",
            job_columns!()
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many(&sql, [now.as_millisecond(), limit], read_job)
    }

    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        let next = self.one(
            "SELECT min(due_at) FROM job WHERE state = 0 AND due_at > ?1",
            [now.as_millisecond()],
            |row| row.get::<_, Option<i64>>(0),
        )?;
        Ok(next.flatten().map(from_millis))
    }

    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<JobRow>> {
        self.many(
            concat!(
                "SELECT ",
                job_columns!(),
                " FROM job WHERE state = 1 AND (?1 IS NULL OR lease_until IS NULL OR lease_until < ?1) ORDER BY number"
            ),
            [millis(ended_before)],
            read_job,
        )
    }

    fn list_instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>> {
        let mut conditions = Conditions::new(filter);
        conditions.add("state = ?", filter.state.map(|state| position(&STATES, &state)));
        conditions.add("account = ?", filter.account.clone());
        if let Some(text) = &filter.search {
            conditions.search(text);
        }
        if let Some((from, to)) = filter.expires {
            conditions.sql.push_str(" AND state <> 3");
            conditions.add("expires_on >= ?", Some(from.as_millisecond()));
            conditions.add("expires_on < ?", Some(to.as_millisecond()));
        }
        let (sql, values) = conditions.query(instance_columns!(), "instance", filter.limit);
        self.many(&sql, params_from_iter(values), read_instance)
    }

    fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobRow>> {
        let mut conditions = Conditions::new(filter);
        conditions.add("instance = ?", filter.instance);
        if !filter.jobs.is_empty() {
            let numbers: Vec<String> =
                filter.jobs.iter().map(|state| position(&job::State::ALL, state).to_string()).collect();
            conditions.sql.push_str(&format!(" AND state IN ({})", numbers.join(", ")));
        }
        let (sql, values) = conditions.query(job_columns!(), "job", filter.limit);
        self.many(&sql, params_from_iter(values), read_job)
    }

    fn list_callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>> {
        let mut conditions = Conditions::new(filter);
        conditions.add("instance = ?", filter.instance);
        conditions.add("account = ?", filter.account.clone());
        match filter.disposition {
            Some(Disposition::Held) => conditions.sql.push_str(" AND disposition = 1"),
            other => conditions
                .add("disposition = ?", other.map(|disposition| position(&Disposition::ALL, &disposition))),
        }
        if filter.untold {
            conditions.sql.push_str(&format!(" AND {IS_UNTOLD}"));
        }
        let (sql, values) = conditions.query(callback_columns!(), "callback", filter.limit);
        self.many(&sql, params_from_iter(values), read_callback)
    }

    fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>> {
        self.many("SELECT job, attempt, ended_at, ending, note FROM attempt WHERE job = ?1 ORDER BY attempt, ended_at",
            [job],
            read_attempt,
        )
    }

    fn list_acts(&self, limit: usize) -> Result<Vec<ActRow>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many("SELECT at, who, act, target, why FROM act ORDER BY number DESC LIMIT ?1", [limit], |row| {
            let mut columns = Columns::of(row);
            Ok(ActRow {
                at: columns.instant()?,
                who: columns.next()?,
                act: columns.next()?,
                target: columns.next()?,
                why: columns.next()?,
            })
        })
    }

    fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>> {
        self.many(
            "SELECT expires_on / ?1, count(*) FROM instance
             WHERE state <> 3 AND expires_on >= ?2 * ?1 AND expires_on < ?3 * ?1 GROUP BY 1 ORDER BY 1",
            [DAY_MS, first, end],
            |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())),
        )
    }

    fn key_uses(&self) -> Result<Vec<KeyUse>> {
        let sql = "SELECT endpoint, label, mark, since, used_at FROM key_use ORDER BY endpoint, label";
        self.many(sql, [], |row| {
            let mut columns = Columns::of(row);
            Ok(KeyUse {
                endpoint: columns.next()?,
                label: columns.next()?,
                mark: columns.next()?,
                since: columns.instant()?,
                used_at: columns.instant_or_none()?,
            })
        })
    }

    fn totals(&self) -> Result<Totals> {
        let pairs = |sql: &str| {
            self.many(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
        };
        let mut totals = Totals::default();
        for (state, count) in pairs("SELECT state, count(*) FROM instance GROUP BY state")? {
            totals.instances.insert(at_position(&STATES, state)?.as_str(), count);
        }
        for (state, count) in pairs("SELECT state, count(*) FROM job WHERE state < 5 GROUP BY state")? {
            totals.jobs.insert(at_position(&job::State::ALL, state)?.as_str(), count);
        }
        let count = |sql: &str| -> Result<u64> {
            Ok(self.one(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs())
        };
        totals.held = count("SELECT count(*) FROM callback WHERE disposition = 1")?;
        totals.untold = count(&format!("SELECT count(*) FROM callback WHERE {IS_UNTOLD}"))?;
        let first = |sql: &str| -> Result<Option<Timestamp>> {
            Ok(self.one(sql, [], |row| row.get::<_, Option<i64>>(0))?.flatten().map(from_millis))
        };
        let (queued, running) = (
            first("SELECT min(created_at) FROM job WHERE state = 0")?,
            first("SELECT min(created_at) FROM job WHERE state = 1")?,
        );
        totals.oldest_job = queued.into_iter().chain(running).min();
        totals.next_due = first(&format!("SELECT min(due_at) FROM job WHERE state = 0 AND {IS_HEAD}"))?;
        let tries =
            self.one(TRIES, [], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<f64>>(1)?)))?;
        let (tries, ratio) = tries.unwrap_or_default();
        (totals.tries, totals.tries_ratio) = (tries.unwrap_or(0).unsigned_abs(), ratio.unwrap_or(0.0));
        Ok(totals)
    }
}

impl Write for Sqlite {
    fn add_instance(&mut self, instance: &Instance) -> Result<i64> {
        self.insert(
            "INSERT INTO instance (id, order_biz_id, state, account, endpoint, buyer, product, sku, order_id,
               trial, expires_on, expires_on_raw, items, began, tombstone, adopted, claimed_at, tenant,
               created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
            params![
                instance.id,
                instance.order_biz_id,
                position(&STATES, &instance.state),
                instance.account,
                instance.endpoint,
                instance.buyer,
                instance.product,
                instance.sku,
                instance.order_id,
                instance.trial,
                millis(instance.expires_on),
                instance.expires_on_raw,
                items_text(instance)?,
                instance.began,
                instance.tombstone,
                instance.adopted,
                millis(instance.claimed_at),
                instance.tenant,
                instance.created_at.as_millisecond(),
                instance.updated_at.as_millisecond(),
            ],
        )
    }

    fn put_instance(&mut self, row: &InstanceRow) -> Result<()> {
        let instance = &row.instance;
        self.run(
            "UPDATE instance SET id = ?2, state = ?3, buyer = ?4, product = ?5, sku = ?6, order_id = ?7,
               trial = ?8, expires_on = ?9, expires_on_raw = ?10, items = ?11, began = ?12, tombstone = ?13,
               created_by = ?14, claimed_at = ?15, tenant = ?16, updated_at = ?17, public_id = ?18 WHERE number = ?1",
            params![
                row.number,
                instance.id,
                position(&STATES, &instance.state),
                instance.buyer,
                instance.product,
                instance.sku,
                instance.order_id,
                instance.trial,
                millis(instance.expires_on),
                instance.expires_on_raw,
                items_text(instance)?,
                instance.began,
                instance.tombstone,
                row.created_by,
                millis(instance.claimed_at),
                instance.tenant,
                instance.updated_at.as_millisecond(),
                row.public_id,
            ],
        )?;
        Ok(())
    }

    fn add_name(&mut self, account: &str, name: &str, instance: i64) -> Result<bool> {
        let holder =
            self.one("SELECT instance FROM name WHERE account = ?1 AND name = ?2", [account, name], |row| {
                row.get::<_, i64>(0)
            })?;
        if holder.is_none() {
            let sql = "INSERT INTO name (account, name, instance) VALUES (?1, ?2, ?3)";
            self.run(sql, params![account, name, instance])?;
        }
        Ok(holder.is_none_or(|holder| holder == instance))
    }

    fn add_order(&mut self, account: &str, order_id: &str, instance: i64) -> Result<()> {
        self.run(
            "INSERT INTO purchase (account, order_id, instance) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![account, order_id, instance],
        )?;
        Ok(())
    }

    fn add_callback(&mut self, row: &CallbackRow, callback: &Callback) -> Result<i64> {
        let body = body_text(callback)?;
        self.insert(
            "INSERT INTO callback (account, endpoint, key_label, occurrence, instance, job, action,
               disposition, reason_code, reason, received_at, last_received_at, deliveries, budget, told_at, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            params![
                row.account,
                row.endpoint,
                row.key_label,
                row.occurrence,
                row.instance,
                row.job,
                position(&Action::ALL, &row.action),
                position(&Disposition::ALL, &row.disposition),
                row.reason_code,
                row.reason,
                row.received_at.as_millisecond(),
                row.last_received_at.as_millisecond(),
                row.deliveries.cast_signed(),
                row.budget,
                millis(row.told_at),
                body,
            ],
        )
    }

    fn put_callback(&mut self, row: &CallbackRow) -> Result<()> {
        self.run(
            "UPDATE callback SET job = ?2, disposition = ?3, reason_code = ?4, reason = ?5,
               last_received_at = ?6, deliveries = ?7, told_at = ?8 WHERE number = ?1",
            params![
                row.number,
                row.job,
                position(&Disposition::ALL, &row.disposition),
                row.reason_code,
                row.reason,
                row.last_received_at.as_millisecond(),
                row.deliveries.cast_signed(),
                millis(row.told_at),
            ],
        )?;
        Ok(())
    }

    fn put_told(&mut self, callback: i64, at: Timestamp) -> Result<()> {
        self.run(
            "UPDATE callback SET told_at = ?2 WHERE number = ?1 AND told_at IS NULL",
            [callback, at.as_millisecond()],
        )?;
        Ok(())
    }

    fn put_body(&mut self, number: i64, callback: &Callback) -> Result<()> {
        self.run("UPDATE callback SET body = ?2 WHERE number = ?1", params![number, body_text(callback)?])?;
        Ok(())
    }

    fn add_once(&mut self, account: &str, mark: &[u8; 16], until: Timestamp) -> Result<bool> {
        let added = self.run(
            "INSERT INTO once (account, mark, until) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![account, mark, until.as_millisecond()],
        )?;
        Ok(added == 1)
    }

    fn forget_once(&mut self, before: Timestamp) -> Result<()> {
        self.run("DELETE FROM once WHERE until < ?1", [before.as_millisecond()])?;
        Ok(())
    }

    fn add_job(&mut self, row: &JobRow) -> Result<i64> {
        self.insert(
            "INSERT INTO job (id, callback, instance, in_lane, action, state, attempts, step, extra, due_at,
               lease_until, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                row.id.as_bytes(),
                row.callback,
                row.instance,
                row.in_lane,
                position(&Action::ALL, &row.action),
                position(&job::State::ALL, &row.state),
                row.attempts,
                row.step,
                position(&job::Extra::ALL, &row.extra),
                row.due_at.as_millisecond(),
                millis(row.lease_until),
                row.created_at.as_millisecond(),
            ],
        )
    }

    fn put_job(&mut self, row: &JobRow) -> Result<()> {
        self.run(
            "UPDATE job SET state = ?2, attempts = ?3, step = ?4, extra = ?5, due_at = ?6, lease_until = ?7,
               attempted_at = ?8, note = ?9, answer = ?10, sealed = ?11, proposed_id = ?12, ended_at = ?13
             WHERE number = ?1",
            params![
                row.number,
                position(&job::State::ALL, &row.state),
                row.attempts,
                row.step,
                position(&job::Extra::ALL, &row.extra),
                row.due_at.as_millisecond(),
                millis(row.lease_until),
                millis(row.attempted_at),
                row.note,
                row.answer,
                row.sealed,
                row.proposed_id,
                millis(row.ended_at),
            ],
        )?;
        Ok(())
    }

    fn add_attempt(&mut self, row: &AttemptRow) -> Result<()> {
        self.run(
            "INSERT INTO attempt (job, attempt, ended_at, ending, note) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            params![row.job, row.attempt, row.ended_at.as_millisecond(), row.ending, row.note],
        )?;
        Ok(())
    }

    fn add_act(&mut self, row: &ActRow) -> Result<()> {
        self.run(
            "INSERT INTO act (at, who, act, target, why) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![row.at.as_millisecond(), row.who, row.act, row.target, row.why],
        )?;
        Ok(())
    }

    fn put_key_use(&mut self, row: &KeyUse) -> Result<()> {
        self.run(
            "INSERT OR REPLACE INTO key_use (endpoint, label, mark, since, used_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![row.endpoint, row.label, row.mark, row.since.as_millisecond(), millis(row.used_at)],
        )?;
        Ok(())
    }

    fn drop_key_use(&mut self, endpoint: &str, label: &str) -> Result<()> {
        self.run("DELETE FROM key_use WHERE endpoint = ?1 AND label = ?2", params![endpoint, label])?;
        Ok(())
    }
}

fn body_text(callback: &Callback) -> Result<String> {
    serde_json::to_string(callback).map_err(|_| StoreError::Inconsistent("a callback is not JSON"))
}

fn items_text(instance: &Instance) -> Result<Option<String>> {
    if instance.items.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_string(&instance.items);
    text.map(Some).map_err(|_| StoreError::Inconsistent("items are not JSON"))
}

impl Backend for Sqlite {
    fn begin(&mut self) -> Result<()> {
        self.run("BEGIN IMMEDIATE", []).map(drop)
    }
    fn commit(&mut self) -> Result<()> {
        self.run("COMMIT", []).map(drop)
    }
    fn rollback(&mut self) -> Result<()> {
        if self.in_transaction() { self.run("ROLLBACK", []).map(drop) } else { Ok(()) }
    }
    fn savepoint(&mut self) -> Result<()> {
        self.run("SAVEPOINT operation", []).map(drop)
    }
    fn release_savepoint(&mut self) -> Result<()> {
        self.run("RELEASE operation", []).map(drop)
    }
    fn rollback_savepoint(&mut self) -> Result<()> {
        self.run("ROLLBACK TO operation", [])?;
        self.run("RELEASE operation", []).map(drop)
    }
    fn touch(&mut self) -> Result<()> {
        // Written as it stands already: the page goes to disk all the same.
        Ok(self.connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?)
    }
    fn in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }
}

mod upkeep;

pub use upkeep::Possession;
pub(super) use upkeep::{note_keys, noted_keys};

#[cfg(test)]
mod tests {
    use super::*;

    /// A database as the first version left it, with an instance in it.
    fn of_version_1(path: &Path) {
        let old = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).unwrap();
        let [first, ..] = MIGRATIONS else { unreachable!() };
        old.execute_batch(&format!(
            "{first} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;
             INSERT INTO instance (id, state, account, endpoint, began, tombstone, adopted, created_at, updated_at)
             VALUES ('i-1', 1, 'acme', 'e', 1, 0, 0, 5, 5);
             INSERT INTO name (account, name, instance) VALUES ('acme', 'i-1', 1);"
        ))
        .unwrap();
    }

    #[test]
    fn a_database_of_version_1_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        of_version_1(&path);
        assert!(matches!(Sqlite::open_readonly(&path), Err(StoreError::Older(_, 1))));
        let mut store = Sqlite::open(&path).unwrap();
        let (mut row, _) = store.instance_by_name("acme", "i-1").unwrap().unwrap();
        assert_eq!((row.public_id.as_deref(), row.told_id().as_deref()), (None, Some("i-1")));
        row.public_id = Some("b-1".to_owned());
        store.put_instance(&row).unwrap();
        assert!(store.add_once("acme", &[7; 16], from_millis(9)).unwrap());
        drop(store);
        let mut store = Sqlite::open(&path).unwrap();
        assert_eq!(store.instance(1).unwrap().unwrap().told_id().as_deref(), Some("b-1"));
        assert!(!store.add_once("acme", &[7; 16], from_millis(9)).unwrap());
    }

    /// What no killed process can show: only a power cut would tell the difference.
    #[test]
    fn a_commit_is_on_the_disk_before_it_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("spid.db")).unwrap();
        let pragma = |name: &str| -> String {
            store
                .connection
                .query_row(&format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"), [], |row| row.get(0))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal");
        assert_eq!(pragma("synchronous"), "2", "FULL");
        assert_eq!(pragma("foreign_keys"), "1");
    }
}
