//! The files of the store: made for their owner alone, locked by the one who writes, and put in their place so
//! that a power cut leaves the old or the new.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::{Result, StoreError};

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
