//! Admin operations of a person, and their entries in the audit log.
//!
//! [`Operations`] opens the database beside a daemon or without one. SQLite's own lock puts the transactions in order. A
//! running daemon notices a change within one poll of its dispatcher.
//!
//! Every operation is one transaction: its changes, and an audit entry that says who did it and why. An operation that
//! is not possible is refused with the reason, and nothing of it is kept.

mod backup;
mod held;
mod instances;
mod jobs;
mod operation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::encryption::Encryptor;
use super::rows::{AuditEntry, Backend, Read as _};
use super::sqlite::Sqlite;
use super::work::Work;
use super::{Store, StoreError, StoreOptions};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::time::Clock;

pub use backup::{Restored, backup, restore};
pub use held::{Approved, Instead};
pub use instances::{Claim, Claimed, Import, Imported};
pub use operation::{AdminOperation, ChosenJob, NamedInstance, OperationReport, result};

/// Error of an admin operation. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// Error of the database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The named instance, job, callback or file does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The operation is not possible in the present state.
    #[error("{0}")]
    Impossible(String),
    /// The job has left the state for which it was chosen.
    #[error("the job is no longer {}: it is {}", .0.as_str(), .1.as_str())]
    Moved(JobState, JobState),
}

pub(super) type OperationDone<T> = Result<T, OperationError>;

pub(super) fn impossible<T>(text: impl Into<String>) -> OperationDone<T> {
    Err(OperationError::Impossible(text.into()))
}

/// The person who runs an operation, and the reason, for the audit log.
#[derive(Debug, Clone)]
pub struct AuditNote {
    /// Name of the person.
    pub who: String,
    /// Reason in the person's words.
    pub why: String,
}

/// Access to a database for admin operations.
pub struct Operations {
    pub(super) backend: Sqlite,
    pub(super) path: PathBuf,
    pub(super) options: StoreOptions,
    /// Sealer of a store. `None`: the keys are read from the options.
    pub(super) encryptor: Option<Arc<Encryptor>>,
    pub(super) clock: Clock,
}

impl Operations {
    /// Opens the database at `path`, which must exist.
    ///
    /// # Errors
    /// Fails if the database cannot be opened.
    pub fn open(path: &Path, options: &StoreOptions, clock: Clock) -> Result<Operations, StoreError> {
        let (path, options) = (path.to_owned(), options.clone());
        let backend = Sqlite::open_to_mend(&path).map_err(|error| error.at(&path))?;
        Ok(Operations { backend, path, options, encryptor: None, clock })
    }

    /// Encrypts with the present keys of this store, which may differ from the keys at its start.
    #[must_use]
    pub fn sealing_like(self, store: &Store) -> Operations {
        Operations { encryptor: Some(store.encryptor()), ..self }
    }

    /// Returns the sealer. A running daemon must have its current key, because the daemon must decrypt the answers.
    pub(super) fn encryptor(&self) -> OperationDone<Arc<Encryptor>> {
        if let Some(encryptor) = &self.encryptor {
            return Ok(encryptor.clone());
        }
        let encryptor = self.options.encryptor(&self.path)?;
        let current = encryptor.current();
        match super::sqlite::noted_keys(&self.path)? {
            Some(known) if !known.contains(&current.to_string()) => impossible(format!(
                "the running daemon does not have the current sealing key ({current}); reload (SIGHUP) or restart the daemon first"
            )),
            _ => Ok(Arc::new(encryptor)),
        }
    }

    /// Runs one operation in a transaction of its own, and adds its audit entry.
    pub(super) fn run_audited<T>(
        &mut self,
        note: &AuditNote,
        word: &str,
        target: &str,
        decide: impl FnOnce(&mut Work<'_>, Timestamp) -> OperationDone<T>,
    ) -> OperationDone<T> {
        self.run_audited_on(note, word, |rows, now| Ok((decide(rows, now)?, target.to_owned())))
    }

    /// Runs one operation like [`Operations::run_audited`]. The operation also returns its target for the audit entry.
    pub(super) fn run_audited_on<T>(
        &mut self,
        note: &AuditNote,
        word: &str,
        decide: impl FnOnce(&mut Work<'_>, Timestamp) -> OperationDone<(T, String)>,
    ) -> OperationDone<T> {
        let now = self.clock.now();
        self.backend.begin()?;
        let mut work = Work::on(&self.backend);
        let decided = decide(&mut work, now).map(|(value, target)| {
            // The entry is in the same transaction: no change without its entry, no entry without its change.
            work.add_audit_entry(AuditEntry {
                at: now,
                who: note.who.clone(),
                act: word.to_owned(),
                target,
                why: note.why.clone(),
            });
            value
        });
        let rows = work.into_rows();
        let done = decided.and_then(|value| {
            self.backend.store(&rows.changes())?;
            Ok(value)
        });
        match done {
            Ok(value) => {
                self.backend.commit()?;
                Ok(value)
            }
            Err(error) => {
                self.backend.rollback()?;
                Err(match error {
                    OperationError::Store(error) => OperationError::Store(error.at(&self.path)),
                    error => error,
                })
            }
        }
    }

    /// Adds an audit entry for an operation that changes nothing in the store.
    ///
    /// # Errors
    /// Fails if the database cannot be written.
    pub fn record(&mut self, word: &str, target: &str, note: &AuditNote) -> OperationDone<()> {
        self.run_audited(note, word, target, |_, _| Ok(()))
    }

    /// Returns the text that names an instance in the audit log.
    fn target(&self, number: i64) -> OperationDone<String> {
        let row = self.backend.instance(number)?.ok_or_else(|| no_instance(number))?;
        Ok(row.audit_target())
    }
}

fn no_instance(number: i64) -> OperationError {
    OperationError::NotFound(format!("there is no instance with the number {number}"))
}
