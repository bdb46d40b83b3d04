//! What the daemon wrote last, and the proof that the files still hold it.
//!
//! Files that are copied over the open ones keep their device and inode, and SQLite reads on in them: orders that
//! were acknowledged would be unknown, and be provisioned once more. So each commit of the daemon that changes
//! anything carries a stamp, the one before plus one. It stands in `sqlite_sequence`, which each new callback
//! writes to anyway. It is looked for before and after each commit, and by each reader; the stamp of the last
//! commit is noted in the file that the daemon keeps locked, for the next start.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;

use super::files::{InodeLock, Place, note_stamp, noted_stamp};
use super::read::integer;
use super::{DaemonLocks, Result, Sqlite, StoreError};

/// The row of `sqlite_sequence` that has the stamp.
const STAMP: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'last commit of the daemon'";

/// A reader may see this many commits more than it knew of when it began to read.
const AHEAD_MAX_COUNT: i64 = 1 << 32;

/// The stamp of the last commit, for all who use the daemon's database. 0: it has none yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Stamp(Arc<AtomicI64>);

impl Stamp {
    fn known(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|stamp| *stamp != 0)
    }

    fn keep(&self, stamp: Option<i64>) {
        self.0.store(stamp.unwrap_or(0), Ordering::Release);
    }
}

/// What the daemon's connection last saw of its files.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What SQLite counts the commits of others by.
    others: i64,
    log_bytes: u64,
    /// Counts up in the file itself, whenever its first page comes home.
    file_changes: u32,
    /// The rows this connection had changed when the transaction began.
    rows_changed: u64,
}

fn stamp_in(connection: &Connection) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(STAMP)?;
    let mut rows = statement.query([])?;
    Ok(rows.next()?.and_then(|row| integer(row, 0)))
}

fn follows(found: Option<i64>, known: i64) -> bool {
    found.is_some_and(|found| (0..AHEAD_MAX_COUNT).contains(&found.wrapping_sub(known)))
}

/// Looks whether the database at `path` holds all that the last daemon here said it had committed. Gives the
/// stamp it has. A database that was never written is `None`, and has nothing to hold.
pub(super) fn check_noted(connection: &Connection, path: &Path) -> Result<Option<i64>> {
    let found = stamp_in(connection)?;
    match noted_stamp(path)? {
        Some((known, note)) if !follows(found, known) => Err(StoreError::Outdated(path.to_owned(), note)),
        _ => Ok(found),
    }
}

/// The count of changes in the header of the file; `None` where it is not the header of a database with a log.
fn changes_of(file: &InodeLock) -> Option<u32> {
    let mut header = [0; 28];
    file.file().read_exact_at(&mut header, 0).ok()?;
    let [.., 2, 2, _, _, _, _, a, b, c, d] = header else { return None };
    Some(u32::from_be_bytes([a, b, c, d]))
}

impl DaemonLocks {
    /// Keeps what a start has found, which is what its commits go on from.
    pub(super) fn start_from(&mut self, connection: &Connection, stamp: Option<i64>) -> Result<()> {
        self.place.stamp().keep(stamp);
        self.look(connection)
    }

    /// The log's size goes behind the commits of others: only who commits cuts it.
    fn look(&mut self, connection: &Connection) -> Result<()> {
        self.seen.others = commits_of_others(connection)?;
        self.seen.log_bytes = self.place.log_bytes();
        self.seen.file_changes = changes_of(&self.inode).unwrap_or(self.seen.file_changes);
        Ok(())
    }

    fn overwritten(&self) -> StoreError {
        StoreError::Overwritten(self.place.database().to_owned())
    }

    /// Looks in an open transaction whether the last commit is there. Nobody else writes meanwhile.
    pub(super) fn check_begun(&mut self, connection: &Connection) -> Result<()> {
        if let Some(known) = self.place.stamp().known() {
            let found = stamp_in(connection)?;
            if !follows(found, known) {
                return Err(self.overwritten());
            }
            // A commit that failed, and is there all the same.
            self.place.stamp().keep(found);
        }
        let is_older = |changes: u32| changes.wrapping_sub(self.seen.file_changes).cast_signed() < 0;
        let is_cut = commits_of_others(connection)? == self.seen.others
            && self.place.log_bytes() < self.seen.log_bytes;
        if is_cut || changes_of(&self.inode).is_none_or(is_older) {
            return Err(self.overwritten());
        }
        self.look(connection)?;
        self.seen.rows_changed = connection.total_changes();
        Ok(())
    }

    /// Stamps the open transaction, if it changes anything. Gives the stamp.
    pub(super) fn put_stamp(&self, sqlite: &Sqlite) -> Result<Option<i64>> {
        let known = self.place.stamp().known();
        if sqlite.connection.total_changes() == self.seen.rows_changed {
            return Ok(known);
        }
        let stamp = match known.map(|known| known.wrapping_add(1)) {
            Some(next) if next != 0 => next,
            _ => origin()?,
        };
        let put = "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'last commit of the daemon'";
        if sqlite.run(put, [stamp])? == 0 {
            let add = "INSERT INTO sqlite_sequence (name, seq) VALUES ('last commit of the daemon', ?1)";
            sqlite.run(add, [stamp])?;
        }
        Ok(Some(stamp))
    }

    /// Keeps what was committed, and looks whether it can be found.
    pub(super) fn check_committed(&mut self, connection: &Connection, stamp: Option<i64>) -> Result<()> {
        let before = self.place.stamp().known();
        self.place.stamp().keep(stamp);
        self.look(connection)?;
        let Some(known) = stamp.filter(|_| stamp != before) else { return Ok(()) };
        if !follows(stamp_in(connection)?, known) {
            return Err(self.overwritten());
        }
        note_stamp(&self.beside, known);
        Ok(())
    }
}

/// A first stamp: no other database has one that could follow it.
fn origin() -> Result<i64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Io(error.to_string()))?;
    Ok((i64::from_be_bytes(bytes).unsigned_abs() >> 2).cast_signed() | 1)
}

fn commits_of_others(connection: &Connection) -> Result<i64> {
    let mut statement = connection.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

impl Place {
    /// The stamp of the last commit that is known of before a read begins.
    pub(super) fn known(&self) -> Option<i64> {
        self.stamp().known()
    }

    /// Looks whether a reader of the daemon sees that commit.
    pub(super) fn check_read(&self, reader: &Sqlite, known: Option<i64>) -> Result<()> {
        match known {
            Some(known) if !follows(stamp_in(&reader.connection)?, known) => {
                Err(StoreError::Overwritten(self.database().to_owned()))
            }
            _ => Ok(()),
        }
    }
}
