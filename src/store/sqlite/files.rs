//! Files of the store: created for their owner alone, locked by the process that writes, and watched while open. A
//! restore puts a database in place so that a power cut leaves either the old file or the new one.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::written::CommitStamp;
use super::{Result, StoreError};
use crate::observe::{files, limits};
use crate::store::LOCK_PAUSE;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Suffixes of the files that SQLite keeps for one database.
const FILE_SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Removes an incomplete database, and the files that SQLite left beside it. A file that cannot be removed is left.
pub(super) fn remove_with_journals(path: &Path) {
    for suffix in FILE_SUFFIXES {
        let _ = std::fs::remove_file(beside(path, suffix));
    }
}

/// Syncs the folder of `path`, so that a new or renamed file survives a power cut.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::of_file(folder))
}

/// Restore target: a path without a database, locked against daemons for as long as this value lives.
#[derive(Debug)]
pub(crate) struct RestoreTarget {
    path: PathBuf,
    partial: PathBuf,
    lock: File,
}

impl RestoreTarget {
    /// Locks the path and checks that it is free. The inner `Err` names the file that is in the way.
    pub(crate) fn at(path: &Path) -> Result<std::result::Result<RestoreTarget, PathBuf>> {
        let lock = lock(path)?;
        // SQLite would replay a journal that lies beside the path into the restored database.
        let remains = FILE_SUFFIXES.map(|suffix| beside(path, suffix));
        if let Some(remains) = remains.into_iter().find(|file| file.symlink_metadata().is_ok()) {
            return Ok(Err(remains));
        }
        let partial = beside(path, ".restoring");
        // Remove the files of an earlier restore that did not finish.
        remove_with_journals(&partial);
        Ok(Ok(RestoreTarget { path: path.to_owned(), partial, lock }))
    }

    /// Path of the database while it is prepared.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Moves the prepared database to its final path.
    pub(crate) fn fill(self) -> Result<()> {
        // The stamp noted for the earlier database does not apply to the restored one.
        self.lock.set_len(0).map_err(StoreError::of_file(&self.path))?;
        let moved = std::fs::rename(&self.partial, &self.path);
        moved.map_err(StoreError::of_file(&self.path))?;
        // Without this sync, a power cut could undo the rename.
        sync_folder(&self.path)
    }
}

/// Path of the lock file. It lies beside the real file, so that every link to the database leads to the same lock.
pub(super) fn lock_path(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = match (path.canonicalize(), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
            // The database does not exist yet: resolve its folder instead.
            folder.canonicalize().map(|folder| folder.join(name))
        }
        (real, _) => real,
    };
    let real = real.map_err(StoreError::of_file(path))?;
    Ok(beside(&real, ".lock"))
}

pub(super) fn lock(path: &Path) -> Result<File> {
    let lock_path = lock_path(path)?;
    let file_error = StoreError::of_file(&lock_path);
    // Not truncated: the file holds the note of the last commit.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(file_error)?;
    // The system drops the lock with the process, so a killed daemon leaves none behind.
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(file_error(error)),
    }
}

/// Number of digits of the stamp in the first line of the file that the daemon keeps locked.
const STAMP_DIGITS: usize = 20;

/// Stamp noted beside the database, and the path of the note.
pub(super) fn noted_stamp(path: &Path) -> Result<Option<(i64, PathBuf)>> {
    let note = lock_path(path)?;
    match files::read(&note, limits::OWN_FILE_MAX_BYTES) {
        Ok(text) => Ok(stamp_of(&text).map(|stamp| (stamp, note))),
        // No daemon has run here yet, or its lock file was removed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::of_file(&note)(error)),
    }
}

fn stamp_of(note: &[u8]) -> Option<i64> {
    let line = note.split(|byte| *byte == b'\n').next()?;
    // An incomplete line is no stamp, nor is 0.
    let stamp: u64 = std::str::from_utf8(line).ok().filter(|_| is_stamp(line))?.parse().ok()?;
    Some(stamp.cast_signed()).filter(|stamp| *stamp != 0)
}

fn is_stamp(line: &[u8]) -> bool {
    line.len() == STAMP_DIGITS && line.iter().all(u8::is_ascii_digit)
}

/// Returns true if the note begins with a line for the stamp, whose number may be 0.
pub(super) fn has_stamp_line(note: &File) -> bool {
    let mut line = [0; STAMP_DIGITS + 1];
    note.read_exact_at(&mut line, 0).is_ok()
        && matches!(line.as_slice(), [stamp @ .., b'\n'] if is_stamp(stamp))
}

/// Removes everything from the note behind the line for the stamp, if it has one.
pub(super) fn keep_stamp_line(note: &File) {
    if has_stamp_line(note) {
        // A failure leaves more lines, and the next start reports a kill.
        let _ = note.set_len(STAMP_DIGITS as u64 + 1);
    }
}

/// Formats the first line of the note.
pub(super) fn stamp_line(stamp: i64) -> String {
    format!("{:0STAMP_DIGITS$}\n", stamp.cast_unsigned())
}

/// Notes the stamp of a commit. A failed write leaves the stamp of an earlier commit, so the next start can check only
/// up to that commit.
pub(super) fn note_stamp(note: &File, stamp: i64) {
    // The line has a fixed width, so the new stamp replaces the old one and leaves the rest of the file.
    let _ = note.write_all_at(stamp_line(stamp).as_bytes(), 0);
}

/// File system types (NFS, SMB, SMB2) on which a lock of the whole file conflicts with the byte locks of SQLite. They
/// keep one lock as the other or check one against the other, so one would block the other.
const SHARED_LOCK_FILESYSTEMS: [u32; 3] = [0x6969, 0xFF53_4D42, 0xFE53_4D42];

/// Lock on the database file itself. It holds regardless of the path or link through which another process opens the
/// file.
///
/// A process that closes *any* descriptor of a file loses all locks that SQLite holds on the file in that process. So
/// this descriptor is closed after the last connection (see `Sqlite`). A descriptor that was opened in vain is never
/// closed, because the daemon that holds the lock may run in this very process.
#[derive(Debug)]
pub(super) struct InodeLock(File);

impl InodeLock {
    pub(super) fn take(path: &Path) -> Result<InodeLock> {
        let file_error = StoreError::of_file(path);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(file_error)?;
        // On these file systems the lock file beside the database is the only lock.
        if !is_lockable(&file) {
            return Ok(InodeLock(file));
        }
        // A hook that a killed daemon was about to start holds the lock until its program is loaded. Wait here and do
        // not open the file again, because each opened descriptor must stay open.
        let deadline = Instant::now() + Duration::from_millis(limits::STORE_LOCK_MS);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(InodeLock(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => park_timeout(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => {
                    keep_open(file);
                    return Err(StoreError::InUse(path.to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(file_error(error)),
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Returns true if a process holds the lock.
    pub(super) fn is_taken(path: &Path) -> Result<bool> {
        let file = File::open(path).map_err(StoreError::of_file(path))?;
        let taken = is_lockable(&file) && matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        // The descriptor stays open, so release the shared lock explicitly.
        let _ = file.unlock();
        // Closing the descriptor would drop the locks of a daemon in this process.
        keep_open(file);
        Ok(taken)
    }
}

fn is_lockable(file: &File) -> bool {
    // The number has 32 bits, but its type differs by platform.
    let kind = rustix::fs::fstatfs(file).map(|volume| volume.f_type as u32);
    !kind.is_ok_and(|kind| SHARED_LOCK_FILESYSTEMS.contains(&kind))
}

/// Checks, beside a daemon or without one, that the WAL of the database lies beside the name `path`. Through another
/// name SQLite would miss the data in the WAL and write past it.
pub(super) fn check_name(path: &Path) -> Result<()> {
    // A running daemon holds the lock file beside the name that it uses.
    if is_held_beside(path)? {
        return Ok(());
    }
    if !InodeLock::is_taken(path)? {
        return check_links(path);
    }
    // The lock file may have been removed. If the file has one name and a WAL lies beside it, that WAL is the daemon's.
    let has_log = ["-wal", "-shm"].iter().all(|suffix| beside(path, suffix).exists());
    let is_only_name = std::fs::metadata(path).is_ok_and(|file| file.nlink() == 1);
    if has_log && is_only_name { Ok(()) } else { Err(StoreError::OtherName(path.to_owned())) }
}

/// Returns true if a daemon holds the lock file beside this name.
pub(super) fn is_held_beside(path: &Path) -> Result<bool> {
    let lock_path = lock_path(path)?;
    let file_error = StoreError::of_file(&lock_path);
    match files::open(&lock_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(file_error(error)),
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(file_error(error)),
        },
    }
}

/// Refuses a database with several names, unless a daemon noted a commit beside this name. A database without a WAL, as
/// `spid backup` writes it, is complete under every name, so it passes.
pub(super) fn check_links(path: &Path) -> Result<()> {
    let file_error = StoreError::of_file(path);
    let links = std::fs::metadata(path).map_err(file_error)?.nlink();
    if links < 2 || noted_stamp(path)?.is_some() {
        return Ok(());
    }
    let file = File::open(path).map_err(file_error)?;
    let has_log = changes_with_log(&file).is_some();
    // Closing the descriptor would drop the locks of a daemon in this process.
    keep_open(file);
    if has_log { Err(StoreError::Linked(path.to_owned())) } else { Ok(()) }
}

/// Change counter in the header of a database; `None` unless the header is that of a database with a WAL.
pub(super) fn changes_with_log(file: &File) -> Option<u32> {
    let mut header = [0; 28];
    file.read_exact_at(&mut header, 0).ok()?;
    // Bytes 18 and 19 are the format versions, where 2 means WAL. The change counter is at bytes 24 to 27.
    let [.., 2, 2, _, _, _, _, a, b, c, d] = header else { return None };
    Some(u32::from_be_bytes([a, b, c, d]))
}

/// Keeps the descriptor open until the process ends.
fn keep_open(file: File) {
    let _ = file.into_raw_fd();
}

/// Device and inode, which identify a file regardless of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(file: &std::fs::Metadata) -> FileId {
        FileId { device: file.dev(), inode: file.ino() }
    }

    /// Identifies the file at `path`; `None` if there is no file.
    fn at(path: &Path) -> Option<FileId> {
        std::fs::metadata(path).ok().map(|file| FileId::of(&file))
    }
}

/// Paths and identities of the files of an open database.
///
/// SQLite keeps writing to the files it has open, even after they are moved, deleted or replaced. No later start finds
/// what is committed there.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseFiles {
    database: (PathBuf, FileId),
    /// The write-ahead log and its index.
    beside: Vec<(PathBuf, FileId)>,
    /// Stamp of the last commit to this database.
    stamp: CommitStamp,
}

impl DatabaseFiles {
    /// Records the files of the database that is locked and open. Its log must exist by now.
    pub(super) fn of(path: &Path, lock: &InodeLock) -> Result<DatabaseFiles> {
        let file_error = StoreError::of_file(path);
        let file = FileId::of(&lock.0.metadata().map_err(file_error)?);
        // SQLite keeps the log beside the real file, not beside a symbolic link.
        let real = path.canonicalize().map_err(file_error)?;
        let files = ["-wal", "-shm"].map(|suffix| beside(&real, suffix)).into_iter();
        let beside = files.filter_map(|file| FileId::at(&file).map(|id| (file, id))).collect();
        let place =
            DatabaseFiles { database: (path.to_owned(), file), beside, stamp: CommitStamp::default() };
        place.check()?;
        Ok(place)
    }

    pub(super) fn stamp(&self) -> &CommitStamp {
        &self.stamp
    }

    pub(super) fn database(&self) -> &Path {
        &self.database.0
    }

    pub(super) fn log_bytes(&self) -> u64 {
        let log = self.beside.first().and_then(|(log, _)| std::fs::metadata(log).ok());
        log.map_or(0, |log| log.len())
    }

    /// Checks that the database, its log and the log's index are still in place.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_database()?;
        match self.beside.iter().find(|file| has_gone(file)) {
            Some((file, _)) => Err(StoreError::LogMoved(file.clone())),
            None => Ok(()),
        }
    }

    /// Checks that the database file is still in place. Readers, which answer redeliveries, need only this check. A
    /// reader finds only data that this daemon committed; what it does not find goes to the writer.
    pub(crate) fn check_database(&self) -> Result<()> {
        match has_gone(&self.database) {
            true => Err(StoreError::Moved(self.database.0.clone())),
            false => Ok(()),
        }
    }
}

fn has_gone((path, id): &(PathBuf, FileId)) -> bool {
    FileId::at(path) != Some(*id)
}

/// Finds a file or folder that shows that there was a database at `path`, although `path` holds none now. It is the
/// database's log, the mark of a running hook, the key that a first start created, or the note of a commit. `None` if
/// there was no database.
pub(crate) fn remains(path: &Path, key: Option<&Path>) -> Result<Option<PathBuf>> {
    let (log, running) = (beside(path, "-wal"), beside(path, ".running"));
    let has_marks = std::fs::read_dir(&running).is_ok_and(|mut marks| marks.next().is_some());
    // No start creates a key that is not a regular file. Another check reports that such a path is not a key.
    let key = key.filter(|key| key.is_file()).map(Path::to_owned);
    let found =
        Some(log).filter(|log| is_filled(log)).or_else(|| Some(running).filter(|_| has_marks)).or(key);
    match found {
        // The note of a removed database remains, and proves nothing by itself. It counts only beside a file with
        // content.
        None if is_filled(path) => Ok(noted_stamp(path)?.map(|(_, note)| note)),
        found => Ok(found),
    }
}

/// Returns true if the file exists and is not empty.
pub(crate) fn is_filled(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Checks that this user can create files in the folder of `path`.
pub(crate) fn may_make_files_beside(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    may(folder, Access::WRITE_OK | Access::EXEC_OK)
}

pub(super) fn may(path: &Path, access: Access) -> Result<()> {
    rustix::fs::access(path, access).map_err(|error| StoreError::of_file(path)(error.into()))
}

/// Creates an empty file with mode 0600, so that SQLite keeps the file and its WAL private.
pub(super) fn make_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        // An existing file keeps its mode.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::of_file(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_copy_is_removed_with_its_journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.db");
        for suffix in ["", "-journal", "-wal", "-shm", "-other"] {
            std::fs::write(beside(&path, suffix), "").unwrap();
        }
        remove_with_journals(&path);
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["copy.db-other"]);
    }
}
