//! Stamps of commits: the proof that the files still hold what the daemon wrote last.
//!
//! A file that is copied over an open one keeps device and inode, and SQLite reads the new content. Acknowledged orders
//! would then be unknown, and would be provisioned again. So each commit of the daemon that changes data carries a
//! stamp: the stamp of the commit before, plus one. The stamp is in the row that holds the numbers and totals, so it
//! costs no page of its own. The daemon checks it before and after each commit, and each reader checks it too. For the
//! next start, the stamp of the last commit is noted in the file that the daemon keeps locked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;

use super::files::{DatabaseFiles, changes_with_log, note_stamp, noted_stamp};
use super::read::integer;
use super::{DaemonLocks, Result, Sqlite, StoreError};

/// Query for the stamp.
const STAMP: &str = "SELECT stamp FROM head WHERE id = 1";

/// Query for the stamp in a database of a version before [`HEAD_VERSION`].
const STAMP_BEFORE: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'last commit of the daemon'";

/// First version of the schema with a table `head`.
const HEAD_VERSION: usize = 5;

/// Number of commits by which a stamp may be ahead of the known one: writes go on while a reader begins.
const AHEAD_MAX_COUNT: i64 = 1 << 32;

/// Stamp of the last commit, shared by all connections of the daemon. 0: there is no stamp yet.
#[derive(Debug, Clone, Default)]
pub(super) struct CommitStamp(Arc<AtomicI64>);

impl CommitStamp {
    fn known(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|stamp| *stamp != 0)
    }

    fn keep(&self, stamp: Option<i64>) {
        self.0.store(stamp.unwrap_or(0), Ordering::Release);
    }
}

/// State of the files when the daemon's connection last looked at them.
#[derive(Debug, Default)]
pub(super) struct FileState {
    /// SQLite's `data_version`, which changes with the commits of other connections.
    others: i64,
    log_bytes: u64,
    /// Change counter in the database file, which grows whenever a checkpoint writes the first page.
    file_changes: u32,
    /// Number of rows that this connection had changed when the transaction began.
    rows_changed: u64,
}

fn stamp_in(connection: &Connection) -> Result<Option<i64>> {
    stamp_by(connection, STAMP)
}

fn stamp_by(connection: &Connection, sql: &str) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    Ok(rows.next()?.and_then(|row| integer(row, 0)))
}

fn follows(found: Option<i64>, known: i64) -> bool {
    found.is_some_and(|found| (0..AHEAD_MAX_COUNT).contains(&found.wrapping_sub(known)))
}

/// Checks that the database at `path` holds every commit that the last daemon noted, and returns its stamp. `None`: the
/// daemon never wrote to the database, so there is nothing to check.
///
/// `version` is the version of its schema.
pub(super) fn check_noted(connection: &Connection, path: &Path, version: usize) -> Result<Option<i64>> {
    // Read the note before the database: a running daemon may commit in between, and the stamp may only be ahead.
    let noted = noted_stamp(path)?;
    let found = stamp_by(connection, if version < HEAD_VERSION { STAMP_BEFORE } else { STAMP })?;
    match noted {
        Some((known, note)) if !follows(found, known) => Err(StoreError::Outdated(path.to_owned(), note)),
        _ => Ok(found),
    }
}

impl DaemonLocks {
    /// Sets the stamp that a start has found. The commits of the daemon continue from it.
    pub(super) fn start_from(&mut self, connection: &Connection, stamp: Option<i64>) -> Result<()> {
        self.place.stamp().keep(stamp);
        self.look(connection)
    }

    /// Records the state of the files. The order matters: the commits of others come before the size of the log,
    /// because only a connection that commits truncates the log.
    fn look(&mut self, connection: &Connection) -> Result<()> {
        self.seen.others = commits_of_others(connection)?;
        self.seen.log_bytes = self.place.log_bytes();
        // An unreadable header keeps the earlier value; the next check reports it.
        self.seen.file_changes = changes_with_log(self.inode.file()).unwrap_or(self.seen.file_changes);
        Ok(())
    }

    fn overwritten(&self) -> StoreError {
        StoreError::Overwritten(self.place.database().to_owned())
    }

    /// Checks in an open transaction that the last commit is still there. No other connection can write meanwhile.
    ///
    /// `true`: no other connection has committed since the daemon's last look.
    pub(super) fn check_begun(&mut self, connection: &Connection) -> Result<bool> {
        if let Some(known) = self.place.stamp().known() {
            let found = stamp_in(connection)?;
            if !follows(found, known) {
                return Err(self.overwritten());
            }
            // The stamp may be ahead: a commit that reported an error can still have reached the file.
            self.place.stamp().keep(found);
        }
        // The counter may wrap around, so compare the difference.
        let is_older = |changes: u32| changes.wrapping_sub(self.seen.file_changes).cast_signed() < 0;
        // A log that shrank without a commit of another connection was truncated or replaced.
        let is_alone = commits_of_others(connection)? == self.seen.others;
        let is_cut = is_alone && self.place.log_bytes() < self.seen.log_bytes;
        if is_cut || changes_with_log(self.inode.file()).is_none_or(is_older) {
            return Err(self.overwritten());
        }
        self.look(connection)?;
        self.seen.rows_changed = connection.total_changes();
        Ok(is_alone)
    }

    /// Returns the stamp for the open transaction, and `true` if the transaction changes data and must write it.
    pub(super) fn next_stamp(&self, connection: &Connection) -> Result<(Option<i64>, bool)> {
        let known = self.place.stamp().known();
        if connection.total_changes() == self.seen.rows_changed {
            // A transaction without changes needs no stamp, and must stay free of writes.
            return Ok((known, false));
        }
        let stamp = match known.map(|known| known.wrapping_add(1)) {
            // 0 means "no stamp", so a stamp that wraps to 0 is replaced by a new origin.
            Some(next) if next != 0 => next,
            _ => origin()?,
        };
        Ok((Some(stamp), true))
    }

    /// Records the stamp of a commit, and checks that the files hold it.
    pub(super) fn check_committed(&mut self, connection: &Connection, stamp: Option<i64>) -> Result<()> {
        let before = self.place.stamp().known();
        self.place.stamp().keep(stamp);
        self.look(connection)?;
        // An unchanged stamp means that nothing was written, so there is nothing to check.
        let Some(known) = stamp.filter(|_| stamp != before) else { return Ok(()) };
        if !follows(stamp_in(connection)?, known) {
            return Err(self.overwritten());
        }
        // Note the stamp only after it was found in the database.
        note_stamp(&self.beside, known);
        Ok(())
    }
}

/// Creates a random first stamp, so that the stamps of no other database can follow it.
fn origin() -> Result<i64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Io(error.to_string()))?;
    // The shift leaves room to count up, and the lowest bit keeps the stamp from being 0.
    Ok((i64::from_be_bytes(bytes).unsigned_abs() >> 2).cast_signed() | 1)
}

fn commits_of_others(connection: &Connection) -> Result<i64> {
    let mut statement = connection.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

impl DatabaseFiles {
    /// Stamp of the last commit known before a read begins.
    pub(super) fn known(&self) -> Option<i64> {
        self.stamp().known()
    }

    /// Checks that a reader of the daemon sees the commit with stamp `known`.
    pub(super) fn check_read(&self, reader: &Sqlite, known: Option<i64>) -> Result<()> {
        match known {
            Some(known) if !follows(stamp_in(&reader.connection)?, known) => {
                Err(StoreError::Overwritten(self.database().to_owned()))
            }
            _ => Ok(()),
        }
    }
}
