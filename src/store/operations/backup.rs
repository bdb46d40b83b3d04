//! Backup and restore.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{AuditNote, OperationDone, OperationError, Operations};
use crate::store::encryption::KeySource;
use crate::store::rows::{JobRow, Lists as _};
use crate::store::rules;
use crate::store::sqlite::{RestoreTarget, Sqlite};
use crate::store::{Filter, StoreError, StoreOptions};
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_hook::callback::Action;
use spid_hook::time::Clock;

/// Result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Number of held jobs: those that had not ended.
    pub held: usize,
    /// Path of the missing sealing key, if the backup holds answers that were encrypted.
    pub missing_key: Option<PathBuf>,
}

impl Operations {
    /// Holds every unfinished job after a restore. Returns the number of held jobs.
    ///
    /// The backup does not show what a marketplace or a hook has done since it was made. So no job may run unseen.
    fn hold_unfinished(&mut self, from: &Path, note: &AuditNote) -> OperationDone<usize> {
        let live = JobState::ALL.into_iter().filter(|state| state.is_live()).collect();
        let filter = Filter { jobs: live, limit: usize::MAX, ..Filter::default() };
        // Nothing else uses the restored file yet, so the jobs may be listed before the transaction.
        let jobs = self.backend.list_jobs(&filter)?;
        self.run_audited(note, "restore", &format!("everything, from {}", from.display()), |rows, now| {
            for mut job in jobs.iter().cloned() {
                hold(&mut job, now);
                rows.put_job(&job)?;
            }
            // Dropped sign-ons need no operator, so they are not counted.
            Ok(jobs.iter().filter(|job| job.action != Action::SignOn).count())
        })
    }
}

/// Holds a job of a restored database, and notes its state in the backup. A sign-on is dropped.
fn hold(job: &mut JobRow, now: Timestamp) {
    if job.action == Action::SignOn {
        job.note = Some("the browser that waited has gone".to_owned());
        return rules::end(job, JobState::Dropped, now);
    }
    // A dead job gets no second retry schedule when it is retried.
    if job.state == JobState::Dead {
        job.extra = Extra::Dead;
    }
    let before = job.note.as_deref().map(|note| format!("; before: {note}")).unwrap_or_default();
    job.note = Some(format!(
        "restored from a backup, where the job was {}; the job may have been done since the backup was made{before}",
        job.state.as_str()
    ));
    job.state = JobState::Held;
    job.lease_until = None;
}

/// Copies the database at `path`, as of one commit, into a new file.
///
/// It also copies the database of an older spid, so that there is a copy before the daemon upgrades it.
///
/// # Errors
/// Fails if there is no database, it is not one of spid's, or a newer spid wrote it. Fails if the new file exists or
/// cannot be written.
pub fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    Sqlite::open_backup(path)?.copy_to(to).map_err(|error| error.at(path))
}

/// Returns the error of a backup that cannot be read. Its hint must not be to restore a backup.
fn unusable(from: &Path, error: StoreError) -> OperationError {
    let fault = match error {
        StoreError::NotThere(from) => {
            return OperationError::NotFound(format!("there is no `{}`", from.display()));
        }
        StoreError::NotADatabase(_, fault) => fault.to_owned(),
        StoreError::NotOurs(_) => "another program made this database".to_owned(),
        StoreError::Corrupt(fault) => format!("it is damaged ({})", fault.trim()),
        error => return error.into(),
    };
    StoreError::NotABackup(from.to_owned(), fault).into()
}

/// Restores a backup to the path of a database that no process uses. All its unfinished jobs are held.
///
/// Until the last step the copy has a name under which it cannot be taken for a database.
///
/// # Errors
/// Fails if a daemon runs, or a database or a rest of one is there already. Fails if the backup is damaged or not one
/// of spid's.
pub fn restore(
    from: &Path,
    path: &Path,
    options: &StoreOptions,
    clock: Clock,
    note: &AuditNote,
) -> OperationDone<Restored> {
    let backup = Sqlite::open_backup(from).map_err(|error| unusable(from, error))?;
    let restore_target = RestoreTarget::at(path)?.map_err(|remains| {
        OperationError::Impossible(format!(
            "`{}` exists; stop the daemon, and move the database away with its -wal and -shm",
            remains.display()
        ))
    })?;
    // Work on the partial copy, and put it in place only when all jobs in it are held.
    backup.copy_to(restore_target.partial()).map_err(|error| unusable(from, error))?;
    Sqlite::modernise(restore_target.partial()).map_err(|error| unusable(from, error))?;
    let mut operations = Operations::open(restore_target.partial(), options, clock)?;
    let held = operations.hold_unfinished(from, note)?;
    let sealed = operations.backend.has_sealed()?;
    // Close the database before it is renamed.
    drop(operations);
    restore_target.fill()?;
    let sources = options.key_sources(path);
    let missing = sources.iter().filter_map(KeySource::path).find(|file| !file.exists());
    Ok(Restored { held, missing_key: missing.filter(|_| sealed).map(Path::to_owned) })
}
