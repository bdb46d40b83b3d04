//! Error of the store.

use std::path::{Path, PathBuf};

use super::encryption::SealError;
use super::rows::Unreadable;

/// Error of the store. Nothing of the failed operation was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has locked the database.
    #[error("the database is busy: another process has locked it; try again")]
    Busy,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database file is damaged.
    #[error("the database is damaged: {0}; restore a backup")]
    Corrupt(String),
    /// I/O error of the disk or of SQLite. The text is the cause.
    #[error("the database cannot be used: {0}")]
    Io(String),
    /// Error of the database or of a file beside it: the path and the cause.
    #[error("`{}`: {}", .0.display(), .1)]
    File(PathBuf, String),
    /// The user that spid runs as has no permission for this file.
    #[error("no permission to read and write `{}`; give the user that spid runs as read and write access to the file and its folder", .0.display())]
    Denied(PathBuf),
    /// There is no database at this path.
    #[error("there is no database at `{}`; has the daemon run with this path?", .0.display())]
    NotThere(PathBuf),
    /// The file is a SQLite database, but spid did not create it.
    #[error("`{}` is not a spid database; check the path (`store.path`, --db)", .0.display())]
    NotOurs(PathBuf),
    /// The file is no database. The text says what is wrong.
    #[error("`{}` is not a spid database: {}; check the path (`store.path`, --db), or restore a backup there", .0.display(), .1)]
    NotADatabase(PathBuf, &'static str),
    /// The file cannot be restored, because it is no backup or is damaged. The text says what is wrong.
    #[error("`{}` cannot be restored: {}; give another file that `spid backup` made, or a database with its -wal", .0.display(), .1)]
    NotABackup(PathBuf, String),
    /// A newer spid wrote the database: its schema version is above ours.
    #[error("`{}` has schema version {}, written by a newer spid; use the newer spid", .0.display(), .1)]
    Newer(PathBuf, i64),
    /// An older spid wrote the database: its schema version is below ours.
    #[error("`{}` has schema version {}, written by an older spid; start the daemon once to upgrade the database", .0.display(), .1)]
    Older(PathBuf, i64),
    /// The database file was moved, deleted or replaced while it was open.
    #[error("`{}` was moved, deleted or replaced while in use; nothing is written or acknowledged; put the same file back, or stop the daemon and restore a backup", .0.display())]
    Moved(PathBuf),
    /// The write-ahead log or its index (-wal, -shm) was deleted or replaced while it was open.
    #[error("`{}` was deleted or replaced while in use; nothing is written or acknowledged; stop the daemon (SIGTERM) before any other command on the database", .0.display())]
    LogMoved(PathBuf),
    /// Other files were copied over the open database or its log.
    #[error("`{}` or its -wal was overwritten or truncated while in use; nothing is acknowledged; stop the daemon, move the database, -wal and -shm away, run `spid restore`", .0.display())]
    Overwritten(PathBuf),
    /// The database lacks the last acknowledged commit. The second path is the file that shows this.
    #[error("`{}` lacks acknowledged commits, as `{}` shows; put the newest files back with the -wal, or run `spid restore`; to use this file and repeat newer orders, remove `{}`", .0.display(), .1.display(), .1.display())]
    Outdated(PathBuf, PathBuf),
    /// The database is gone. The second path is the file that shows that there was one.
    #[error("there is no database at `{}`, but `{}` shows that there was one; put it back with its -wal, or run `spid restore`; to start with an empty database, remove `{}`", .0.display(), .1.display(), .1.display())]
    Lost(PathBuf, PathBuf),
    /// Another daemon uses the database.
    #[error("another spid daemon is using `{}`", .0.display())]
    InUse(PathBuf),
    /// A daemon has the database open under another path, and the -wal lies beside that path.
    #[error("a daemon has `{}` open under another path, and the -wal is beside that path; use the daemon's `store.path`, or restart the daemon if its .lock file was removed", .0.display())]
    OtherName(PathBuf),
    /// The database file has several hard links.
    #[error("`{}` has several hard links, and its -wal may be beside another one; use the path that the daemon used last, or remove the other links (to copy: `spid backup`)", .0.display())]
    Linked(PathBuf),
    /// A row of the database cannot be read.
    #[error("{0}; repair the row, or restore a backup")]
    Unreadable(Box<Unreadable>),
    /// Rows of the database contradict each other.
    #[error("the database is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The writer's queue is full.
    #[error("the store's write queue is full; try again")]
    Overloaded,
    /// The store has been stopped.
    #[error("the store has been stopped")]
    Stopped,
    /// The request is a copy: a request with this nonce was accepted before.
    #[error("a request with this nonce was accepted before")]
    Replayed,
    /// Error of a sealing key, or of encrypting with it.
    #[error("{0}")]
    Seal(String),
}

impl StoreError {
    /// Names the damaged database in the error.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            StoreError::Corrupt(fault) => StoreError::Corrupt(format!("`{}`: {fault}", path.display())),
            error => error,
        }
    }

    /// Returns a function that converts the system's errors about the file at `path`.
    pub(super) fn of_file(path: &Path) -> impl Fn(std::io::Error) -> StoreError + Copy {
        |error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => StoreError::Denied(path.to_owned()),
            _ => StoreError::File(path.to_owned(), error.to_string()),
        }
    }
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> StoreError {
        StoreError::Seal(error.to_string())
    }
}
