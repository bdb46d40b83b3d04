//! The SQLite backend of the store: one file, WAL, `synchronous=FULL`. Only this module names rusqlite.
//!
//! One connection writes, on the writer's thread. Readers have their own connections and see only committed data. Only
//! the owner can read the file. Two locks keep a second daemon out: SQLite would let both in, and each would treat the
//! running jobs of the other as lost. One lock is a file beside the database. The other lock is on the database file
//! itself, so a link to the file does not get around it. A commit counts only if the file is still where it was opened,
//! and holds everything that was committed before.

mod codes;
mod files;
mod maintenance;
mod read;
mod write;
mod written;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, Params, Row};
use rustix::fs::Access;

use super::StoreError;
use super::rows::{Backend, CommittedRows, Lists, Result, Unreadable};
use super::work::Changes;
use crate::observe::limits;
pub(crate) use files::{DatabaseFiles, RestoreTarget, is_filled, may_make_files_beside, remains};
use files::{InodeLock, check_links, check_name, lock, make_private, may, remove_with_journals, sync_folder};
pub use maintenance::InstanceExport;
pub(super) use maintenance::{note_keys, noted_keys, was_killed};
use write::HeadChange;
use written::{FileState, check_noted};

/// Application id that marks the file as ours: "spid" in ASCII.
const APPLICATION_ID: i64 = 0x7370_6964;

/// Migrations: entry n takes the schema from version n to n + 1.
///
/// A released migration must never change, because databases of that version exist. Append a new migration instead.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode as Code;
        // An unreadable row passes through rusqlite as a conversion failure. Take it out again.
        let error = match error {
            rusqlite::Error::FromSqlConversionFailure(column, kind, inner) => {
                match inner.downcast::<Unreadable>() {
                    Ok(unreadable) => return StoreError::Unreadable(unreadable),
                    Err(inner) => rusqlite::Error::FromSqlConversionFailure(column, kind, inner),
                }
            }
            other => other,
        };
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => StoreError::Busy,
            Some(Code::DiskFull) => StoreError::Full,
            Some(Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied) => StoreError::Io(format!(
                "{error}; this user must be able to read and write the file, and to create files in its folder"
            )),
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Io(error.to_string()),
        }
    }
}

/// An open connection and its prepared statements.
#[derive(Debug)]
pub(crate) struct Sqlite {
    connection: Connection,
    /// Unreadable rows that were already logged.
    logged: RefCell<BTreeSet<Unreadable>>,
    /// Jobs that cannot be read and are skipped until the next start. Their rows cannot be updated, or must not be
    /// updated.
    skipped: RefCell<BTreeSet<i64>>,
    queries: read::Queries,
    /// Change of numbers and totals in the open transaction, which its commit writes.
    head: RefCell<HeadChange>,
    /// The same change at the beginning of the savepoint.
    head_before: HeadChange,
    /// Locks held for as long as the daemon writes. Field order matters: the locks follow the connection, because
    /// closing a descriptor of the database drops SQLite's own locks.
    daemon: Option<DaemonLocks>,
}

/// Locks and notes that the daemon's own connection holds beside the database.
#[derive(Debug)]
struct DaemonLocks {
    place: DatabaseFiles,
    inode: InodeLock,
    beside: File,
    seen: FileState,
}

impl Drop for DaemonLocks {
    fn drop(&mut self) {
        // Only the stamp stays in the note: the daemon ends in order, so the next start must not report a kill.
        files::keep_stamp_line(&self.beside);
    }
}

/// A pool of connections that read committed data.
#[derive(Debug)]
pub(crate) struct SqliteReaders {
    path: PathBuf,
    /// Location of the daemon's database, if the daemon reads. Data read from another file is not what the daemon
    /// wrote.
    place: Option<DatabaseFiles>,
    idle: Mutex<Vec<Sqlite>>,
}

impl Sqlite {
    /// Opens the store for the daemon: creates the file, takes the locks, migrates the schema.
    ///
    /// Fails if the database is empty and `remains` is set: `remains` names a file that shows that there was a
    /// database.
    pub(crate) fn open(path: &Path, remains: Option<&Path>) -> Result<Sqlite> {
        // Create the file with mode 0600 before SQLite opens it: SQLite gives the -wal and -shm files the same mode.
        make_private(path)?;
        check_regular(path)?;
        // Both locks come before the first read, so that no other daemon can write in between.
        let beside = lock(path)?;
        let inode = InodeLock::take(path)?;
        // The WAL lies beside one name only, so a database with several names is refused.
        check_links(path)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let version = recognise(&connection, path)?;
        if let Some(remains) = remains.filter(|_| version == 0) {
            return Err(StoreError::Lost(path.to_owned(), remains.to_owned()));
        }
        if version == 0 {
            // The file beside the database may hold a note of a database that is gone. Clear the note before the schema
            // is created: a start that is killed here must not leave an old note beside a new database.
            beside.set_len(0).map_err(StoreError::of_file(path))?;
        }
        // Only now, because setting the journal mode writes to the file.
        insist_on_writing(&connection)?;
        // Each commit must be on the disk before it is acknowledged.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", limits::STORE_CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", limits::STORE_JOURNAL_MAX_BYTES)?;
        // The journal that undoes one operation of a batch lives only as long as the operation, so memory is enough.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        // Check the noted stamp before the migration, so that an outdated copy is refused unchanged.
        let stamp = if version > 0 { check_noted(&connection, path, version)? } else { None };
        migrate(&connection, path, version)?;
        let place = DatabaseFiles::of(path, &inode)?;
        let mut daemon = DaemonLocks { place, inode, beside, seen: FileState::default() };
        daemon.start_from(&connection, stamp)?;
        Ok(Sqlite { daemon: Some(daemon), ..Sqlite::of(connection) })
    }

    /// Wraps a connection, without the daemon's locks.
    fn of(connection: Connection) -> Sqlite {
        Sqlite {
            connection,
            logged: RefCell::default(),
            skipped: RefCell::default(),
            queries: read::Queries::default(),
            head: RefCell::default(),
            head_before: HeadChange::default(),
            daemon: None,
        }
    }

    /// Location of the database as the daemon opened it; `None` on a connection without the daemon's locks.
    pub(crate) fn place(&self) -> Option<&DatabaseFiles> {
        self.daemon.as_ref().map(|daemon| &daemon.place)
    }

    fn is_in_place(&self) -> Result<()> {
        self.place().map_or(Ok(()), DatabaseFiles::check)
    }

    /// Checks that [`Sqlite::open`] would succeed, except for a daemon that runs. `None`: the file would be created.
    pub(crate) fn check(path: &Path) -> Result<Option<Sqlite>> {
        may_make_files_beside(path)?;
        if !path.exists() {
            return Ok(None);
        }
        check_regular(path)?;
        may(path, Access::READ_OK | Access::WRITE_OK)?;
        match check_links(path) {
            // The database has several names, and a daemon runs under another name: report the daemon, not the links.
            Err(StoreError::Linked(_)) if InodeLock::is_taken(path)? => {
                return Err(StoreError::InUse(path.to_owned()));
            }
            checked => checked?,
        }
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let version = recognise(&connection, path)?;
        let is_empty = version == 0;
        if !is_empty {
            check_noted(&connection, path, version)?;
        }
        if !is_empty && version < MIGRATIONS.len() {
            check_room(path)?;
        }
        Ok((!is_empty).then(|| Sqlite::of(connection)))
    }

    /// Opens the store for reading, beside a daemon or without one.
    pub(crate) fn open_readonly(path: &Path) -> Result<Sqlite> {
        check_there(path)?;
        Sqlite::open_reader(path)
    }

    /// Opens the store for reading, under the path that the daemon itself uses.
    fn open_reader(path: &Path) -> Result<Sqlite> {
        let reader = Sqlite::open_beside(path)?;
        reader.connection.pragma_update(None, "query_only", true)?;
        // Readers run on the threads that serve requests, so they must not wait long for a lock.
        reader.connection.busy_timeout(Duration::from_millis(limits::STORE_READ_BUSY_MS))?;
        Ok(reader)
    }

    /// Opens the store for an admin operation, beside a daemon or without one. It takes none of the daemon's locks:
    /// SQLite's own lock puts the writes of both in order.
    pub(crate) fn open_to_mend(path: &Path) -> Result<Sqlite> {
        check_there(path)?;
        let operations = Sqlite::open_beside(path)?;
        // Refuse an outdated copy before it is changed.
        check_noted(&operations.connection, path, MIGRATIONS.len())?;
        operations.connection.pragma_update(None, "synchronous", "FULL")?;
        operations.connection.pragma_update(None, "foreign_keys", true)?;
        Ok(operations)
    }

    /// Copies the store, as of one commit, into a new file. Fails if the file exists.
    pub(crate) fn copy_to(&self, to: &Path) -> Result<()> {
        // A copy is as private as the database, and never replaces a file.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        file.map_err(StoreError::of_file(to))?;
        let copied = self.fill(to);
        if copied.is_err() {
            // An incomplete copy must not be mistaken for a backup, and its journal would block a later restore.
            remove_with_journals(to);
        }
        copied
    }

    fn fill(&self, to: &Path) -> Result<()> {
        let mut copy = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let backup = rusqlite::backup::Backup::new(&self.connection, &mut copy)?;
        // Copy all pages in one step: SQLite restarts a copy of several steps whenever the daemon writes.
        if backup.step(-1)? != rusqlite::backup::StepResult::Done {
            return Err(StoreError::Busy);
        }
        drop(backup);
        // A backup is one file without a WAL, so that it can be moved under any name.
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        // Check the copy before it counts as a backup.
        match copy.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?.as_str() {
            "ok" => sync_folder(to),
            fault => Err(StoreError::Corrupt(fault.to_owned())),
        }
    }

    /// Returns true if at least one answer has an encrypted part.
    pub(crate) fn has_sealed(&self) -> Result<bool> {
        let found = self.one("SELECT 1 FROM job WHERE sealed IS NOT NULL LIMIT 1", [], |_| Ok(()))?;
        Ok(found.is_some())
    }

    /// Opens a backup to copy it. An older spid may have made the backup.
    pub(crate) fn open_backup(path: &Path) -> Result<Sqlite> {
        check_there(path)?;
        let (backup, _) = Sqlite::open_of_any_version(path)?;
        backup.connection.pragma_update(None, "query_only", true)?;
        Ok(backup)
    }

    /// Migrates the schema of a database that no other process uses.
    pub(crate) fn modernise(path: &Path) -> Result<()> {
        let (old, version) = Sqlite::open_of_any_version(path)?;
        old.connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&old.connection, path, version)
    }

    fn open_beside(path: &Path) -> Result<Sqlite> {
        match Sqlite::open_of_any_version(path)? {
            (_, older) if older < MIGRATIONS.len() => Err(StoreError::Older(path.to_owned(), older as i64)),
            (opened, _) => Ok(opened),
        }
    }

    /// Opens an existing database of ours, and returns its schema version.
    fn open_of_any_version(path: &Path) -> Result<(Sqlite, usize)> {
        if !path.exists() {
            return Err(StoreError::NotThere(path.to_owned()));
        }
        // Not SQLITE_OPEN_READ_ONLY: reading a WAL needs the shared-memory file, which SQLite may have to create.
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        match recognise(&connection, path)? {
            0 => Err(StoreError::NotADatabase(path.to_owned(), "it is empty")),
            version => Ok((Sqlite::of(connection), version)),
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

    /// Returns the rows that can be read, and the unreadable ones.
    fn partition<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<(Vec<T>, Vec<Unreadable>)> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(params)?;
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            match read(row).map_err(StoreError::from) {
                Ok(row) => found.push(row),
                Err(StoreError::Unreadable(fault)) => unreadable.push(*fault),
                Err(error) => return Err(error),
            }
        }
        Ok((found, unreadable))
    }

    /// Returns the rows that can be read. Unreadable rows are logged and left out.
    fn readable<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let (found, unreadable) = self.partition(sql, params, read)?;
        unreadable.into_iter().for_each(|unreadable| self.log_once(unreadable));
        Ok(found)
    }

    /// Logs an unreadable row, once.
    fn log_once(&self, unreadable: Unreadable) {
        let mut logged = self.logged.borrow_mut();
        if logged.len() < limits::UNREADABLE_NAMED_MAX_COUNT && !logged.contains(&unreadable) {
            tracing::error!("{unreadable}; the row is skipped");
            logged.insert(unreadable);
        }
    }

    fn run(&self, sql: &str, params: impl Params) -> Result<()> {
        self.change(sql, params).map(drop)
    }

    /// Runs a statement, and returns the number of changed rows.
    fn change(&self, sql: &str, params: impl Params) -> Result<usize> {
        Ok(self.statement(sql)?.execute(params)?)
    }
}

impl SqliteReaders {
    pub(crate) fn new(path: &Path, place: Option<&DatabaseFiles>) -> SqliteReaders {
        SqliteReaders { path: path.to_owned(), place: place.cloned(), idle: Mutex::default() }
    }
}

impl CommittedRows for SqliteReaders {
    fn with(&self, read: &mut dyn FnMut(&dyn Lists) -> Result<()>) -> Result<()> {
        // Check before the read: a file that was moved or replaced must not answer.
        self.place.as_ref().map_or(Ok(()), DatabaseFiles::check_database)?;
        // A poisoned lock is harmless: the pool holds idle connections only.
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match idle {
            Some(reader) => reader,
            // The daemon knows its own path, so the name needs no check.
            None if self.place.is_some() => Sqlite::open_reader(&self.path)?,
            None => Sqlite::open_readonly(&self.path)?,
        };
        // Load the stamp before the snapshot begins, so that the snapshot must hold at least this commit.
        let known = self.place.as_ref().and_then(DatabaseFiles::known);
        let result = in_snapshot(&reader, |reader| {
            self.place.as_ref().map_or(Ok(()), |place| place.check_read(reader, known))?;
            read(reader)
        });
        // A failed connection is dropped, and the next reader opens a new one.
        if result.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        }
        result.map_err(|error| error.at(&self.path))
    }

    fn is_in_place(&self) -> Result<()> {
        self.place.as_ref().map_or(Ok(()), DatabaseFiles::check)?;
        self.with(&mut |_| Ok(()))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// Runs `read` in one transaction, so that all its reads see the same commit.
fn in_snapshot<T>(reader: &Sqlite, read: impl FnOnce(&Sqlite) -> Result<T>) -> Result<T> {
    reader.run("BEGIN", [])?;
    let result = read(reader);
    // End the transaction after an error too: an idle connection must not keep a snapshot open.
    let ended = reader.run("COMMIT", []);
    let value = result?;
    ended?;
    Ok(value)
}

/// Checks that a database exists at this path, and that this path is the name to open it by.
fn check_there(path: &Path) -> Result<()> {
    if !path.exists() {
        return Err(StoreError::NotThere(path.to_owned()));
    }
    check_regular(path)?;
    check_name(path)
}

/// Fails if something else than a file is at this path. SQLite would only say that it cannot open the file.
fn check_regular(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path).map_err(StoreError::of_file(path))?;
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(()),
        (false, true) => Err(StoreError::NotADatabase(path.to_owned(), "it is a directory")),
        (false, false) => Err(StoreError::NotADatabase(path.to_owned(), "it is not a regular file")),
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    // Only one thread at a time uses a connection, so SQLite needs no mutex.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_millis(limits::STORE_BUSY_MS))?;
    connection.set_prepared_statement_cache_capacity(64);
    // Without QPSG, SQLite plans a statement again whenever a parameter changes, so at each execution.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Fails unless the connection can write and uses a WAL.
///
/// SQLite falls back without an error: it opens a file read-only if it cannot write, and uses another journal if it
/// cannot use a WAL. A daemon must not run like that.
fn insist_on_writing(connection: &Connection) -> Result<()> {
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(StoreError::Io(
            "the file can only be opened for reading; make the file writable for this user".to_owned(),
        ));
    }
    let journal: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if journal != "wal" {
        return Err(StoreError::Io(format!(
            "the journal mode is `{journal}` instead of `wal`: this file system does not support a WAL; use a local disk"
        )));
    }
    Ok(())
}

/// Schema version of a database of ours; 0 for an empty file. Only reads, so a foreign or newer database stays
/// unchanged.
fn recognise(connection: &Connection, path: &Path) -> Result<usize> {
    // The first read of the file, so it fails if the file is no database.
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|error| {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => {
                let fault = "it is not a SQLite file, or its first page is damaged";
                StoreError::NotADatabase(path.to_owned(), fault)
            }
            _ => error.into(),
        }
    })?;
    let marked = number_of(connection, "PRAGMA application_id")? == APPLICATION_ID;
    // A file without our mark may be used only if it is empty.
    if !marked && (version != 0 || number_of(connection, "SELECT count(*) FROM sqlite_schema")? > 0) {
        return Err(StoreError::NotOurs(path.to_owned()));
    }
    match usize::try_from(version) {
        Ok(known) if known <= MIGRATIONS.len() => Ok(known),
        _ => Err(StoreError::Newer(path.to_owned(), version)),
    }
}

/// Checks that the disk has room for a migration, and returns the size of the database in bytes.
///
/// The commit writes every row into the write-ahead log first, and then into the file, beside the rows as they were.
fn check_room(path: &Path) -> Result<u64> {
    let size = std::fs::metadata(path).map_err(StoreError::of_file(path))?.len();
    let disk = rustix::fs::statvfs(path).map_err(|error| StoreError::of_file(path)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = size.saturating_mul(2);
    if free >= needed {
        return Ok(size);
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(StoreError::Io(format!(
        "this version of spid must rewrite the database, and that needs {} MB of free disk space beside {}; there are {} MB. Make room and start again; the database is unchanged",
        megabytes(needed),
        path.display(),
        megabytes(free)
    )))
}

/// Runs a query that returns one number.
fn number_of(connection: &Connection, sql: &str) -> Result<i64> {
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

/// Migrates the schema from `version` to the newest. All steps are one commit, so a start that is killed meanwhile
/// leaves the database as it was.
fn migrate(connection: &Connection, path: &Path, version: usize) -> Result<()> {
    let newest = MIGRATIONS.len();
    let Some(pending @ [_, ..]) = MIGRATIONS.get(version..) else { return Ok(()) };
    if version > 0 {
        let bytes = check_room(path)?;
        tracing::info!(
            from = version,
            to = newest,
            bytes,
            "migrating the database schema; a million instances take less than a minute"
        );
    }
    let steps = pending.concat();
    // A table that is replaced is dropped while others refer to it. SQLite changes this setting only outside of a
    // transaction.
    let checked = connection.pragma_query_value(None, "foreign_keys", |row| row.get::<_, bool>(0))?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {steps} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {newest}; COMMIT;"
    ))?;
    connection.pragma_update(None, "foreign_keys", checked)?;
    if version > 0 {
        tracing::info!(
            from = version,
            to = newest,
            "migrated the database schema; older versions of spid cannot open this database"
        );
    }
    Ok(())
}

impl Backend for Sqlite {
    fn begin(&mut self) -> Result<bool> {
        // The files must still be in place before anything is written to them.
        self.is_in_place()?;
        *self.head.get_mut() = HeadChange::default();
        // IMMEDIATE takes the write lock now, so that no later statement of the transaction finds it taken.
        self.run("BEGIN IMMEDIATE", [])?;
        // Inside the transaction no other process can commit, so the check stays true until the commit.
        let Some(daemon) = &mut self.daemon else { return Ok(false) };
        daemon.check_begun(&self.connection).inspect_err(|_| {
            // The refused transaction must not keep the write lock.
            let _ = self.connection.execute_batch("ROLLBACK");
        })
    }
    fn store(&mut self, changes: &Changes<'_>) -> Result<()> {
        self.write(changes)
    }
    fn commit(&mut self) -> Result<()> {
        // The stamp is part of the commit, so both reach the disk or neither does.
        let next = self.daemon.as_ref().map(|daemon| daemon.next_stamp(&self.connection)).transpose()?;
        let stamp = next.and_then(|(stamp, must_write)| stamp.filter(|_| must_write));
        self.write_head(stamp)?;
        self.run("COMMIT", [])?;
        if let (Some(daemon), Some((stamp, _))) = (&mut self.daemon, next) {
            daemon.check_committed(&self.connection, stamp)?;
        }
        // A commit into a file that no start will find is not kept, although SQLite reports success.
        self.is_in_place()
    }
    fn rollback(&mut self) -> Result<()> {
        // After a disk error, SQLite may have rolled back already.
        if self.in_transaction() { self.run("ROLLBACK", []) } else { Ok(()) }
    }
    fn savepoint(&mut self) -> Result<()> {
        self.head_before = *self.head.get_mut();
        self.run("SAVEPOINT operation", [])
    }
    fn release_savepoint(&mut self) -> Result<()> {
        self.run("RELEASE operation", [])
    }
    fn rollback_savepoint(&mut self) -> Result<()> {
        *self.head.get_mut() = self.head_before;
        // `ROLLBACK TO` undoes the changes but keeps the savepoint, so the savepoint needs `RELEASE` too.
        self.run("ROLLBACK TO operation", [])?;
        self.run("RELEASE operation", [])
    }
    fn in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use std::sync::Arc;

    use super::super::fixtures::{a_callback, a_job, change};
    use super::super::rows::{JobRow, Numbered, Read as _};
    use super::super::work::Work;
    use super::*;
    use spid_core::lifecycle::schedule::JobState;
    use spid_hook::callback::{Action, Callback};
    use spid_hook::id::Id;
    use spid_hook::instance::Instance;
    use spid_hook::time::from_millis;

    /// Creates a database as version 1 left it, with one instance.
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
        let mut store = Sqlite::open(&path, None).unwrap();
        let (mut row, _) = store.instance_by_name("acme", "i-1").unwrap().unwrap();
        assert_eq!(
            (row.marketplace_instance_id.as_deref(), row.reported_id().as_deref()),
            (None, Some("i-1"))
        );
        row.marketplace_instance_id = Some("b-1".to_owned());
        let is_new = |rows: &mut Work<'_>| rows.add_nonce("acme", &[7; 16], from_millis(9));
        assert!(change(&mut store, |rows| {
            rows.put_instance(&row);
            is_new(rows)
        }));
        drop(store);
        let mut store = Sqlite::open(&path, None).unwrap();
        assert_eq!(store.instance(1).unwrap().unwrap().reported_id().as_deref(), Some("b-1"));
        assert!(!change(&mut store, is_new));
    }

    /// A start can be killed at any moment. Here it ends at its first write, because another connection has the lock.
    #[test]
    fn stale_note_is_cleared_before_the_first_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        std::fs::write(files::lock_path(&path).unwrap(), files::stamp_line(7)).unwrap();
        let other =
            connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(matches!(Sqlite::open(&path, None), Err(StoreError::Busy)));
        assert_eq!(files::noted_stamp(&path).unwrap(), None);
        drop(other);
        assert!(Sqlite::open(&path, None).is_ok());
    }

    /// Number of steps that SQLite's virtual machine takes to look for due jobs, beside `queues` queues that a dead job
    /// blocks.
    fn steps_of_a_look(queues: u32) -> i32 {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("spid.db"), None).unwrap();
        change(&mut store, |rows| {
            for number in 0..queues {
                let content = Arc::new(Callback::new(Action::Renew, "renewInstance"));
                let instance = Instance::adopted(&content, "acme", "e", from_millis(0));
                let instance = rows.add_instance(&instance)?;
                let callback = rows.add_callback(&a_callback(Action::Renew), &content)?;
                for (position, state) in
                    [JobState::Dead, JobState::Queued, JobState::Queued].into_iter().enumerate()
                {
                    let id = Id::from_bytes((u128::from(number) * 3 + position as u128).to_be_bytes());
                    let job = a_job(id, callback, Action::Renew, state);
                    let number = rows.take_number(Numbered::Job)?;
                    rows.add_job(&JobRow { number, instance: Some(instance), ordered: true, ..job })?;
                }
            }
            Ok(())
        });
        let now = from_millis(10);
        assert_eq!((store.due(now, 64).unwrap(), store.next_due(now).unwrap()), (Vec::new(), None));
        let steps = |sql: &str| store.statement(sql).unwrap().get_status(StatementStatus::VmStep);
        steps(&read::due_sql()) + steps(&read::next_due_sql())
    }

    #[test]
    fn a_look_for_due_jobs_takes_no_longer_beside_blocked_queues() {
        let (few, many) = (steps_of_a_look(2), steps_of_a_look(500));
        assert!(few > 0, "the steps are counted");
        assert_eq!(few, many);
    }

    #[test]
    fn payments_of_an_order_are_found_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("spid.db"), None).unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", read::payments_sql());
        let plan: String = store.connection.query_row(&sql, ["o", "acme"], |row| row.get(3)).unwrap();
        assert!(plan.contains("callback_payment"), "{plan}");
    }

    /// Checks the settings, because a killed process cannot show the difference: only a power cut would.
    #[test]
    fn a_commit_is_on_the_disk_before_it_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("spid.db"), None).unwrap();
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
