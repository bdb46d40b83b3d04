//! The files of the store: made for their owner alone, locked by the one who writes, watched while they are open,
//! and put in their place so that a power cut leaves the old or the new.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::written::Stamp;
use super::{Result, StoreError};
use crate::observe::{files, limits};
use crate::store::LOCK_PAUSE;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a new or renamed file outlive a power cut.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| StoreError::of_file(folder, &error))
}

/// A place where a database may be put: no daemon uses it while this lives, and nothing is there.
#[derive(Debug)]
pub(crate) struct Vacancy {
    path: PathBuf,
    partial: PathBuf,
    lock: File,
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
        Ok(Ok(Vacancy { path: path.to_owned(), partial, lock }))
    }

    /// Where the database is made ready.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Puts it in its place, ready as it is.
    pub(crate) fn fill(self) -> Result<()> {
        // What was committed to the database before says nothing about the one that takes its place.
        self.lock.set_len(0).map_err(|error| StoreError::of_file(&self.path, &error))?;
        let moved = std::fs::rename(&self.partial, &self.path);
        moved.map_err(|error| StoreError::of_file(&self.path, &error))?;
        sync_folder(&self.path)
    }
}

/// The lock lies beside the file itself, wherever a link to it may be.
pub(super) fn lock_path(path: &Path) -> Result<PathBuf> {
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

pub(super) fn lock(path: &Path) -> Result<File> {
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

/// The digits of the stamp that stands in the first line of the file the daemon keeps locked.
const STAMP_DIGITS: usize = 20;

/// The stamp noted beside the database, and where it is noted.
pub(super) fn noted_stamp(path: &Path) -> Result<Option<(i64, PathBuf)>> {
    let note = lock_path(path)?;
    match files::read(&note, limits::OWN_FILE_MAX_BYTES) {
        Ok(text) => Ok(stamp_of(&text).map(|stamp| (stamp, note))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::of_file(&note, &error)),
    }
}

fn stamp_of(note: &[u8]) -> Option<i64> {
    let line = note.split(|byte| *byte == b'\n').next()?;
    let is_one = line.len() == STAMP_DIGITS && line.iter().all(u8::is_ascii_digit);
    let stamp: u64 = std::str::from_utf8(line).ok().filter(|_| is_one)?.parse().ok()?;
    Some(stamp.cast_signed()).filter(|stamp| *stamp != 0)
}

/// The first line of the note.
pub(super) fn stamp_line(stamp: i64) -> String {
    format!("{:0STAMP_DIGITS$}\n", stamp.cast_unsigned())
}

/// Notes the stamp of a commit. A note that could not be written is of an earlier commit, and holds for less.
pub(super) fn note_stamp(note: &File, stamp: i64) {
    let _ = note.write_all_at(stamp_line(stamp).as_bytes(), 0);
}

/// The network filesystems (NFS, SMB, SMB2) where a lock of the whole file is kept as, or checked against, the byte
/// locks that SQLite sets: one would block the other.
const SHARED_LOCK_FILESYSTEMS: [u32; 3] = [0x6969, 0xFF53_4D42, 0xFE53_4D42];

/// A lock on the database itself, which holds whatever path or link another process comes by.
///
/// The system drops the locks that SQLite has on a file in this process as soon as *any* descriptor of the file
/// is closed. So the descriptor is closed behind the last connection (see `Sqlite`), and one that was opened
/// in vain is never closed: the daemon that has the lock may be one of this very process.
#[derive(Debug)]
pub(super) struct InodeLock(File);

impl InodeLock {
    pub(super) fn take(path: &Path) -> Result<InodeLock> {
        let file_error = |error: std::io::Error| StoreError::of_file(path, &error);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(file_error)?;
        if !is_lockable(&file) {
            return Ok(InodeLock(file));
        }
        // A hook that a killed daemon was about to start has the lock until its program is loaded. Each descriptor
        // stays open, so the wait is here and not around the opening.
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

    /// Whether a process has it.
    pub(super) fn is_taken(path: &Path) -> Result<bool> {
        let file = File::open(path).map_err(|error| StoreError::of_file(path, &error))?;
        let taken = is_lockable(&file) && matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        let _ = file.unlock();
        keep_open(file);
        Ok(taken)
    }
}

fn is_lockable(file: &File) -> bool {
    // The number has 32 bits; the type it comes in differs from platform to platform.
    let kind = rustix::fs::fstatfs(file).map(|volume| volume.f_type as u32);
    !kind.is_ok_and(|kind| SHARED_LOCK_FILESYSTEMS.contains(&kind))
}

/// Looks, beside a daemon or without one, whether `path` is the name that the database's log lies beside. Through
/// another one SQLite would miss what is in the log, and write past it.
pub(super) fn check_name(path: &Path) -> Result<()> {
    if is_held_beside(path)? {
        return Ok(());
    }
    if !InodeLock::is_taken(path)? {
        return check_links(path);
    }
    // The lock file may have been removed: where the only name of the file has a log, it is that of the daemon.
    let has_log = ["-wal", "-shm"].iter().all(|suffix| beside(path, suffix).exists());
    let is_only_name = std::fs::metadata(path).is_ok_and(|file| file.nlink() == 1);
    if has_log && is_only_name { Ok(()) } else { Err(StoreError::OtherName(path.to_owned())) }
}

/// Whether a daemon holds the lock that lies beside this name.
pub(super) fn is_held_beside(path: &Path) -> Result<bool> {
    let lock_path = lock_path(path)?;
    let file_error = |error: std::io::Error| StoreError::of_file(&lock_path, &error);
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

/// Refuses a database that has several names and no daemon under this one that noted a commit. One without a
/// log, as `spid backup` makes it, is the same under each.
pub(super) fn check_links(path: &Path) -> Result<()> {
    let file_error = |error: std::io::Error| StoreError::of_file(path, &error);
    let links = std::fs::metadata(path).map_err(file_error)?.nlink();
    if links < 2 || noted_stamp(path)?.is_some() {
        return Ok(());
    }
    let file = File::open(path).map_err(file_error)?;
    let has_log = changes_with_log(&file).is_some();
    keep_open(file);
    if has_log { Err(StoreError::Linked(path.to_owned())) } else { Ok(()) }
}

/// The count of changes in the header of a database; `None` where it is not the header of one with a log.
pub(super) fn changes_with_log(file: &File) -> Option<u32> {
    let mut header = [0; 28];
    file.read_exact_at(&mut header, 0).ok()?;
    let [.., 2, 2, _, _, _, _, a, b, c, d] = header else { return None };
    Some(u32::from_be_bytes([a, b, c, d]))
}

/// Leaves it open until the process ends.
fn keep_open(file: File) {
    let _ = file.into_raw_fd();
}

/// Device and inode: the file itself, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(file: &std::fs::Metadata) -> FileId {
        FileId { device: file.dev(), inode: file.ino() }
    }

    /// The file at `path`; `None` when there is none.
    fn at(path: &Path) -> Option<FileId> {
        std::fs::metadata(path).ok().map(|file| FileId::of(&file))
    }
}

/// The files of an open database, and which ones they are. SQLite goes on writing to what it has open, though
/// it was moved, deleted or replaced: what is committed then is found by no later start.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    database: (PathBuf, FileId),
    /// The write-ahead log and its index.
    beside: Vec<(PathBuf, FileId)>,
    /// What was committed there last.
    stamp: Stamp,
}

impl Place {
    /// The place of the database that is locked and open. Its log must be there.
    pub(super) fn of(path: &Path, lock: &InodeLock) -> Result<Place> {
        let file_error = |error: std::io::Error| StoreError::of_file(path, &error);
        let file = FileId::of(&lock.0.metadata().map_err(file_error)?);
        let real = path.canonicalize().map_err(file_error)?;
        let files = ["-wal", "-shm"].map(|suffix| beside(&real, suffix)).into_iter();
        let beside = files.filter_map(|file| FileId::at(&file).map(|id| (file, id))).collect();
        let place = Place { database: (path.to_owned(), file), beside, stamp: Stamp::default() };
        place.check()?;
        Ok(place)
    }

    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    pub(super) fn database(&self) -> &Path {
        &self.database.0
    }

    pub(super) fn log_bytes(&self) -> u64 {
        let log = self.beside.first().and_then(|(log, _)| std::fs::metadata(log).ok());
        log.map_or(0, |log| log.len())
    }

    /// Looks whether all of it is where it was.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_database()?;
        match self.beside.iter().find(|file| has_gone(file)) {
            Some((file, _)) => Err(StoreError::LogMoved(file.clone())),
            None => Ok(()),
        }
    }

    /// The same for the database alone. It is enough for a repeat, which each reader answers: what a connection
    /// reads was committed by this daemon, or is not found and goes to the writer.
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

/// The file or folder that shows that there was a database at `path`, where nothing is in it: its log, the mark of a
/// running hook, the key that a first start made, or the note of a commit. `None` where there was none.
pub(crate) fn remains(path: &Path, key: Option<&Path>) -> Result<Option<PathBuf>> {
    let (log, running) = (beside(path, "-wal"), beside(path, ".running"));
    let has_marks = std::fs::read_dir(&running).is_ok_and(|mut marks| marks.next().is_some());
    // What is no file was made by no start; that it is no key is said elsewhere.
    let key = key.filter(|key| key.is_file()).map(Path::to_owned);
    let found =
        Some(log).filter(|log| is_filled(log)).or_else(|| Some(running).filter(|_| has_marks)).or(key);
    match found {
        // The note of a database that was removed stays, and means nothing by itself.
        None if is_filled(path) => Ok(noted_stamp(path)?.map(|(_, note)| note)),
        found => Ok(found),
    }
}

/// Whether there is a file with anything in it.
pub(crate) fn is_filled(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Whether files can be made beside this one.
pub(crate) fn may_make_files_beside(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    may(folder, Access::WRITE_OK | Access::EXEC_OK)
}

pub(super) fn may(path: &Path, access: Access) -> Result<()> {
    rustix::fs::access(path, access).map_err(|error| StoreError::of_file(path, &error.into()))
}

/// Makes an empty file with mode 0600, so that SQLite opens it (and its WAL) as private as that.
pub(super) fn make_private(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::of_file(path, &error)),
    }
}
