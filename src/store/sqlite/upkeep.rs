//! What keeps a database fit over the years, in SQL: which answers are sealed with which key, what is old
//! enough to go, what is taken elsewhere, and leaving no traces.
//!
//! Which of it may go is decided in `prune`; here it is only found, and removed.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use jiff::Timestamp;

use super::files::{InodeLock, is_held_beside, lock_path, noted_stamp, stamp_line};
use super::read::{position, read_instance, read_sealed};
use super::{Result, Sqlite, StoreError};
use crate::hook::clock::Id;
use crate::observe::files;
use crate::observe::limits;
use crate::store::Sealed;
use crate::store::encryption;
use crate::store::encryption::KeyId;
use crate::store::rows::{Disposition, InstanceRow};

/// Says beside the database which sealing keys the daemon has, in the file it keeps locked.
pub(in crate::store) fn note_keys(path: &Path, keys: &[KeyId]) -> Result<()> {
    let lock_path = lock_path(path)?;
    let words: Vec<String> = keys.iter().map(KeyId::to_string).collect();
    let stamp = noted_stamp(path)?.map_or(0, |(stamp, _)| stamp);
    let file = OpenOptions::new().write(true).truncate(true).open(&lock_path);
    let text = stamp_line(stamp) + &words.join("\n");
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| StoreError::of_file(&lock_path, &error))
}

/// The sealing keys of the daemon that runs on this database; `None` when none runs. Where its note has been
/// removed it has none that is known.
pub(in crate::store) fn noted_keys(path: &Path) -> Result<Option<Vec<String>>> {
    let lock_path = lock_path(path)?;
    let file_error = |error: std::io::Error| StoreError::of_file(&lock_path, &error);
    let file = match files::open(&lock_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return without_note(path),
        file => file.map_err(file_error)?,
    };
    if !is_held_beside(path)? {
        return without_note(path);
    }
    let text = std::io::read_to_string(file).map_err(file_error)?;
    Ok(Some(text.lines().map(str::to_owned).collect()))
}

fn without_note(path: &Path) -> Result<Option<Vec<String>>> {
    Ok(InodeLock::is_taken(path)?.then(Vec::new))
}

/// An instance, and what its row does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Possession {
    /// The instance.
    pub row: InstanceRow,
    /// The names it has beside its id, its orderBizId and its public id.
    pub names: Vec<String>,
    /// The orders that were done for it beside the one it was created by.
    pub orders: Vec<String>,
    /// Whether anything is still owed for it.
    pub owes: bool,
}

impl Sqlite {
    /// How many answers each key has sealed.
    pub(in crate::store) fn sealed_by(&self) -> Result<Sealed> {
        let sql = "SELECT substr(sealed, 1, ?1), count(*) FROM job WHERE sealed IS NOT NULL GROUP BY 1";
        let found = self.many(sql, [encryption::HEADER_BYTES as i64], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        let mut sealed = Sealed::new();
        for (beginning, count) in found {
            *sealed.entry(encryption::key_of(&beginning)).or_default() += count;
        }
        Ok(sealed)
    }

    /// Jobs behind `after` whose answers do not begin with this header, in order.
    pub(in crate::store) fn sealed_otherwise(
        &self,
        header: &[u8],
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>> {
        let sql = "SELECT number FROM job WHERE number > ?1 AND sealed IS NOT NULL
                   AND substr(sealed, 1, ?2) IS NOT ?3 ORDER BY number LIMIT ?4";
        let params = rusqlite::params![after, header.len() as i64, header, limit as i64];
        self.many(sql, params, |row| row.get(0))
    }

    /// The sealed part of a job's answer, and the job's id.
    pub(in crate::store) fn sealed_of(&self, job: i64) -> Result<Option<(Id, Vec<u8>)>> {
        let sql = "SELECT number, id, sealed FROM job WHERE number = ?1 AND sealed IS NOT NULL";
        self.one(sql, [job], read_sealed)
    }

    pub(in crate::store) fn put_sealed(&self, job: i64, sealed: Option<&[u8]>) -> Result<()> {
        self.run("UPDATE job SET sealed = ?2 WHERE number = ?1", rusqlite::params![job, sealed]).map(drop)
    }

    /// Makes this connection fit for removing things: what it removes is overwritten, it waits its turn, and
    /// sees itself to it that what refers to something goes first. (SQLite would look for a callback's
    /// jobs in all of them, at each callback.)
    pub(in crate::store) fn prepare_to_remove(&self) -> Result<()> {
        self.connection.pragma_update(None, "secure_delete", true)?;
        self.connection.pragma_update(None, "foreign_keys", false)?;
        self.connection.busy_timeout(std::time::Duration::from_millis(limits::UPKEEP_BUSY_MS))?;
        Ok(())
    }

    /// Jobs behind `after` that ended before this instant, in order.
    pub(in crate::store) fn ended_jobs(
        &self,
        after: i64,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>> {
        let sql = "SELECT number FROM job WHERE number > ?1 AND ended_at < ?2 ORDER BY number LIMIT ?3";
        self.many(sql, [after, before.as_millisecond(), limit as i64], |row| row.get(0))
    }

    /// Callbacks behind `after` that came last before this instant and are not held, in order.
    pub(in crate::store) fn old_callbacks(
        &self,
        after: i64,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>> {
        let sql = "SELECT number FROM callback WHERE number > ?1 AND last_received_at < ?2
                   AND disposition <> ?3 ORDER BY number LIMIT ?4";
        let held = position(&Disposition::ALL, &Disposition::Held);
        self.many(sql, [after, before.as_millisecond(), held, limit as i64], |row| row.get(0))
    }

    /// Jobs that a callback refers to whose success was not told: they say what it is to be told.
    pub(in crate::store) fn jobs_of_untold(&self) -> Result<HashSet<i64>> {
        let sql = "SELECT job FROM callback WHERE told_at IS NULL AND job IS NOT NULL";
        Ok(self.many(sql, [], |row| row.get(0))?.into_iter().collect())
    }

    /// Returns how many there were.
    pub(in crate::store) fn remove_attempts(&self, job: i64) -> Result<usize> {
        self.run("DELETE FROM attempt WHERE job = ?1", [job])
    }

    pub(in crate::store) fn remove_job(&self, number: i64) -> Result<()> {
        self.run("DELETE FROM job WHERE number = ?1", [number]).map(drop)
    }

    pub(in crate::store) fn remove_callback(&self, number: i64) -> Result<()> {
        self.run("DELETE FROM callback WHERE number = ?1", [number]).map(drop)
    }

    /// Writes the file anew, without what lies unused in it and without traces of what was removed or
    /// overwritten. Nobody else writes meanwhile.
    pub(in crate::store) fn rewrite(&self) -> Result<()> {
        Ok(self.connection.execute_batch("VACUUM")?)
    }

    /// Brings all of the write-ahead log into the database, and cuts it to nothing. `false`: somebody is
    /// still reading out of it.
    pub(in crate::store) fn empty_journal(&self) -> Result<bool> {
        let busy = self.one("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))?;
        Ok(busy == Some(0))
    }

    /// The size of the database, and how much of it lies unused, in bytes.
    pub(in crate::store) fn sizes(&self) -> Result<(u64, u64)> {
        let number = |sql: &str| -> Result<u64> {
            Ok(self.one(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs())
        };
        let page = number("PRAGMA page_size")?;
        Ok((number("PRAGMA page_count")? * page, number("PRAGMA freelist_count")? * page))
    }

    /// Every instance, the oldest first, with what its row does not say. All of one commit.
    pub(in crate::store) fn each_instance<E: From<StoreError>>(
        &self,
        each: impl FnMut(Possession) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.run("BEGIN", [])?;
        let walked = self.walk(each);
        self.run("COMMIT", [])?;
        walked
    }

    fn walk<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(Possession) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut names = self.texts_of_instances(
            "SELECT instance.number, name.name FROM name JOIN instance ON instance.number = name.instance
             WHERE name.name IS NOT instance.id AND name.name IS NOT instance.order_biz_id
               AND name.name IS NOT instance.public_id",
        )?;
        let mut orders = self.texts_of_instances(
            "SELECT instance.number, purchase.order_id FROM purchase
             JOIN instance ON instance.number = purchase.instance
             WHERE purchase.order_id IS NOT instance.order_id",
        )?;
        let owed = "SELECT DISTINCT instance FROM job WHERE state < 5 AND instance IS NOT NULL";
        let owed: HashSet<i64> = self.many(owed, [], |row| row.get(0))?.into_iter().collect();
        let sql = concat!("SELECT ", instance_columns!(), " FROM instance ORDER BY number");
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query([]).map_err(StoreError::from)?;
        while let Some(row) = rows.next().map_err(StoreError::from)? {
            let row = read_instance(row).map_err(StoreError::from)?;
            let number = row.number;
            let [names, orders] =
                [&mut names, &mut orders].map(|texts| texts.remove(&number).unwrap_or_default());
            each(Possession { row, names, orders, owes: owed.contains(&number) })?;
        }
        Ok(())
    }

    fn texts_of_instances(&self, sql: &str) -> Result<BTreeMap<i64, Vec<String>>> {
        let mut texts: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for (number, text) in self.many(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))? {
            texts.entry(number).or_default().push(text);
        }
        Ok(texts)
    }
}
