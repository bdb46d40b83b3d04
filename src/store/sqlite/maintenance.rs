//! SQL of maintenance: answers by sealing key, data old enough to delete, instances to export, and secure deletion.
//!
//! The module `prune` decides what may be deleted. This module only finds and removes rows.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::codes::DONE;
use super::files::{InodeLock, has_stamp_line, is_held_beside, lock_path, stamp_line};
use super::read::{INSTANCE_COLUMNS, read_instance, read_sealed};
use super::{Result, Sqlite, StoreError};
use crate::observe::files;
use crate::observe::limits;
use crate::store::Sealed;
use crate::store::encryption;
use crate::store::encryption::KeyId;
use crate::store::rows::{Disposition, InstanceRow};
use spid_hook::id::Id;

/// Last line of the note while a daemon runs. Its end removes the line, so a start that finds it follows a kill.
const RUNNING: &str = "running";

/// Returns true if the last daemon of this database was killed, or went down with its machine.
pub(in crate::store) fn was_killed(path: &Path) -> Result<bool> {
    let lock_path = lock_path(path)?;
    match files::read(&lock_path, limits::OWN_FILE_MAX_BYTES) {
        Ok(note) => Ok(note.split(|byte| *byte == b'\n').next_back() == Some(RUNNING.as_bytes())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::of_file(&lock_path)(error)),
    }
}

/// Writes the ids of the daemon's sealing keys into the file beside the database that the daemon keeps locked.
pub(in crate::store) fn note_keys(path: &Path, keys: &[KeyId]) -> Result<()> {
    let lock_path = lock_path(path)?;
    let mut words: Vec<String> = keys.iter().map(KeyId::to_string).collect();
    words.push(RUNNING.to_owned());
    // The first line holds the stamp of the last commit. It is never overwritten here, so that a kill between two steps
    // cannot lose it. The file cannot be replaced as a whole, because the daemon holds its lock on it.
    let no_stamp = stamp_line(0);
    let write = || {
        let file = OpenOptions::new().read(true).write(true).open(&lock_path)?;
        // Only a start finds no line here, before it commits. Later the writer may note a stamp at the same time.
        if !has_stamp_line(&file) {
            file.write_all_at(no_stamp.as_bytes(), 0)?;
        }
        let keys_at = no_stamp.len() as u64;
        file.set_len(keys_at)?;
        file.write_all_at(words.join("\n").as_bytes(), keys_at)
    };
    write().map_err(StoreError::of_file(&lock_path))
}

/// Returns the ids of the sealing keys of the daemon that runs on this database; `None` if no daemon runs. The list is
/// empty if a daemon runs but its note was removed.
pub(in crate::store) fn noted_keys(path: &Path) -> Result<Option<Vec<String>>> {
    let lock_path = lock_path(path)?;
    let file_error = StoreError::of_file(&lock_path);
    let file = match files::open(&lock_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return without_note(path),
        file => file.map_err(file_error)?,
    };
    // A note without a lock is from a daemon that has stopped.
    if !is_held_beside(path)? {
        return without_note(path);
    }
    let text = std::io::read_to_string(file).map_err(file_error)?;
    Ok(Some(text.lines().map(str::to_owned).collect()))
}

fn without_note(path: &Path) -> Result<Option<Vec<String>>> {
    Ok(InodeLock::is_taken(path)?.then(Vec::new))
}

/// Export of one instance: its row, and the data in other tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceExport {
    /// The row of the instance.
    pub row: InstanceRow,
    /// Names besides its id, its orderBizId and its public id.
    pub names: Vec<String>,
    /// Orders that were carried out for the instance besides the one that created it.
    pub orders: Vec<String>,
    /// True if the instance has a job that has not ended.
    pub owes: bool,
}

impl Sqlite {
    /// Counts the encrypted answers by sealing key.
    pub(in crate::store) fn sealed_by(&self) -> Result<Sealed> {
        // The header of each ciphertext names its key.
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

    /// Returns the jobs after number `after` whose encrypted answers do not begin with `header`, by ascending number.
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

    /// Returns the id of a job and the encrypted part of its answer.
    pub(in crate::store) fn sealed_of(&self, job: i64) -> Result<Option<(Id, Vec<u8>)>> {
        let sql = "SELECT number, id, sealed FROM job WHERE number = ?1 AND sealed IS NOT NULL";
        self.one(sql, [job], read_sealed)
    }

    pub(in crate::store) fn put_sealed(&self, job: i64, sealed: Option<&[u8]>) -> Result<()> {
        self.run("UPDATE job SET sealed = ?2 WHERE number = ?1", rusqlite::params![job, sealed])
    }

    /// Prepares this connection for deletions: deleted data is overwritten, and the connection waits longer for its
    /// turn.
    ///
    /// SQLite's check of references is off, so the caller must delete referring rows first. With the check, SQLite
    /// would search all jobs for each deleted callback.
    pub(in crate::store) fn prepare_to_remove(&self) -> Result<()> {
        self.connection.pragma_update(None, "secure_delete", true)?;
        self.connection.pragma_update(None, "foreign_keys", false)?;
        // The daemon writes meanwhile, so each commit here may have to wait for it.
        self.connection.busy_timeout(std::time::Duration::from_millis(limits::MAINTENANCE_BUSY_MS))?;
        Ok(())
    }

    /// Returns the jobs after number `after` that ended before this instant, by ascending number.
    pub(in crate::store) fn ended_jobs(
        &self,
        after: i64,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>> {
        let sql = "SELECT number FROM job WHERE number > ?1 AND ended_at < ?2 ORDER BY number LIMIT ?3";
        self.many(sql, [after, before.as_millisecond(), limit as i64], |row| row.get(0))
    }

    /// Returns the callbacks after number `after` that were last delivered before this instant and are not held, by
    /// ascending number.
    pub(in crate::store) fn old_callbacks(
        &self,
        after: i64,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>> {
        let sql = "SELECT number FROM callback WHERE number > ?1 AND last_received_at < ?2
                   AND disposition <> ?3 ORDER BY number LIMIT ?4";
        let held = Disposition::Held as i64;
        self.many(sql, [after, before.as_millisecond(), held, limit as i64], |row| row.get(0))
    }

    /// Returns the jobs of callbacks whose success is unreported. The answer of such a job is still to be reported.
    pub(in crate::store) fn jobs_of_unreported(&self) -> Result<HashSet<i64>> {
        let sql = "SELECT job FROM callback WHERE told_at IS NULL AND job IS NOT NULL";
        Ok(self.many(sql, [], |row| row.get(0))?.into_iter().collect())
    }

    /// Deletes the attempts of a job, and returns their number.
    pub(in crate::store) fn remove_attempts(&self, job: i64) -> Result<()> {
        self.run("DELETE FROM attempt WHERE job = ?1", [job])
    }

    pub(in crate::store) fn remove_job(&self, number: i64) -> Result<()> {
        self.run("DELETE FROM job WHERE number = ?1", [number])
    }

    pub(in crate::store) fn remove_callback(&self, number: i64) -> Result<()> {
        self.run("DELETE FROM callback WHERE number = ?1", [number])
    }

    /// Rewrites the file with `VACUUM`: no unused pages, and no traces of deleted or overwritten data. Other
    /// connections cannot write meanwhile.
    pub(in crate::store) fn rewrite(&self) -> Result<()> {
        Ok(self.connection.execute_batch("VACUUM")?)
    }

    /// Moves the whole write-ahead log into the database and truncates the log to zero bytes. `false`: another
    /// connection still reads from the log.
    pub(in crate::store) fn empty_journal(&self) -> Result<bool> {
        // The first column is 1 if another connection kept the checkpoint from finishing.
        let busy = self.one("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))?;
        Ok(busy == Some(0))
    }

    /// Returns the size of the database and the size of its unused pages, in bytes.
    pub(in crate::store) fn sizes(&self) -> Result<(u64, u64)> {
        let number = |sql: &str| -> Result<u64> {
            Ok(self.one(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs())
        };
        let page = number("PRAGMA page_size")?;
        Ok((number("PRAGMA page_count")? * page, number("PRAGMA freelist_count")? * page))
    }

    /// Calls `each` with every instance, the oldest first. All of them come from one commit.
    pub(in crate::store) fn each_instance<E: From<StoreError>>(
        &self,
        each: impl FnMut(InstanceExport) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.run("BEGIN", [])?;
        let walked = self.walk(each);
        self.run("COMMIT", [])?;
        walked
    }

    fn walk<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(InstanceExport) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        // One query per table, instead of one per table and instance. Names and orders in the columns of the instance
        // are left out, because its row has them.
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
        let owed = &format!(
            "SELECT DISTINCT instance
             FROM job WHERE state < {DONE} AND instance IS NOT NULL"
        );
        let owed: HashSet<i64> = self.many(owed, [], |row| row.get(0))?.into_iter().collect();
        let sql = &format!("SELECT {INSTANCE_COLUMNS} FROM instance ORDER BY number");
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query([]).map_err(StoreError::from)?;
        while let Some(row) = rows.next().map_err(StoreError::from)? {
            let row = read_instance(row).map_err(StoreError::from)?;
            let number = row.number;
            let [names, orders] =
                [&mut names, &mut orders].map(|texts| texts.remove(&number).unwrap_or_default());
            each(InstanceExport { row, names, orders, owes: owed.contains(&number) })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::encryption::{Encryptor, key_of};
    use crate::store::sqlite::files::{lock, note_stamp, noted_stamp};
    use spid_hook::Secret;

    #[test]
    fn note_of_keys_keeps_the_stamp_at_every_moment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        std::fs::write(&path, "").unwrap();
        let beside = lock(&path).unwrap();
        let sealed = Encryptor::ephemeral().unwrap().seal(b"", &Secret::new("fake-password")).unwrap();
        let key = key_of(&sealed).unwrap();
        note_keys(&path, &[key]).unwrap();
        assert_eq!(noted_stamp(&path).unwrap(), None);
        note_stamp(&beside, 7);
        // A kill leaves the file as a reader sees it in between.
        let stamp = || noted_stamp(&path).unwrap().map(|(stamp, _)| stamp);
        std::thread::scope(|scope| {
            let noting = scope.spawn(|| {
                for count in 0..2_000 {
                    note_keys(&path, &vec![key; 1 + count % 2]).unwrap();
                }
            });
            while !noting.is_finished() {
                assert_eq!(stamp(), Some(7));
            }
        });
        note_keys(&path, &[key]).unwrap();
        let text = std::fs::read_to_string(lock_path(&path).unwrap()).unwrap();
        assert_eq!(text, format!("{}{key}\n{RUNNING}", stamp_line(7)));
    }
}
