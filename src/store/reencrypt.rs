//! Rotation of the sealing key: re-encrypt with the current key every answer that an older key encrypted.
//!
//! The rotation works in small commits beside a running daemon, which can decrypt both. If it is stopped, the next one
//! goes on, because each encrypted answer names its key.
//!
//! An old key that has leaked must not decrypt anything any more. So the file is rewritten at the end, because unused
//! space in its pages still holds old bytes.

use std::sync::Arc;

use serde::Serialize;

use super::operations::{AuditNote, OperationDone, OperationError, Operations};
use super::rows::JobRow;
use super::sqlite::Sqlite;
use super::{Sealed, StoreError};
use crate::store::encryption::{Encryptor, KeyId};
use spid_hook::callback::{Action, Answer};
use spid_hook::id::Id;

/// Result of a rotation of the sealing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reencrypted {
    /// Id of the current key.
    pub key: KeyId,
    /// Number of answers that were re-encrypted.
    pub reencrypted: u64,
    /// Number of answers that are still encrypted with another key.
    ///
    /// None of the configured keys decrypts them, or another process encrypted them meanwhile.
    pub remaining: u64,
    /// True if the file was rewritten and the write-ahead log emptied, so that the old key decrypts nothing in either.
    pub traceless: bool,
}

/// The decrypted part of a job's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decrypted {
    /// Id of the job.
    pub job: Id,
    /// Action of the job.
    pub action: Action,
    /// Decrypted part of the answer. Otherwise only the marketplace receives it.
    pub answer: Answer,
}

impl Operations {
    /// Decrypts the secret parts of these jobs' answers. The audit entry is committed before anything is decrypted.
    ///
    /// # Errors
    /// Fails if the audit entry cannot be written, or a part cannot be decrypted. Then nothing is returned.
    pub fn decrypt(
        &mut self,
        target: &str,
        jobs: &[JobRow],
        note: &AuditNote,
    ) -> OperationDone<Vec<Decrypted>> {
        // Decryption needs no key that a running daemon must have, so the note of its keys is not read.
        let encryptor = match &self.encryptor {
            Some(encryptor) => encryptor.clone(),
            None => Arc::new(self.options.encryptor(&self.path)?),
        };
        let sealed: Vec<&JobRow> = jobs.iter().filter(|job| job.sealed.is_some()).collect();
        if sealed.is_empty() {
            return Ok(Vec::new());
        }
        self.record("reveal", target, note)?;
        sealed.into_iter().map(|job| open(&encryptor, job)).collect()
    }

    /// Returns the number of encrypted answers for each sealing key.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn sealed(&self) -> Result<Sealed, StoreError> {
        self.backend.sealed_by()
    }

    /// Re-encrypts with the current key every answer that another key encrypted.
    ///
    /// With `rewrite` the file is rewritten if no other answer remains. `seen` receives the number of re-encrypted
    /// answers so far.
    ///
    /// # Errors
    /// Fails if the running daemon does not have the current key, or the database cannot be read or written. Answers
    /// re-encrypted before the error stay so.
    pub fn reencrypt(
        &mut self,
        rewrite: bool,
        note: &AuditNote,
        seen: &mut dyn FnMut(u64),
    ) -> OperationDone<Reencrypted> {
        let encryptor = self.encryptor()?;
        let key = encryptor.current();
        self.backend.prepare_to_remove()?;
        // The audit entry comes first, so that a rotation which is stopped leaves an entry, too.
        self.record("reseal", &format!("everything, with the key {key}: begun"), note)?;
        let reencrypted = self.reencrypt_all(&encryptor, seen)?;
        let sealed = self.sealed()?;
        let remaining = sealed.iter().filter(|(id, _)| **id != Some(key)).map(|(_, count)| count).sum();
        let ended = format!("everything, with the key {key}: {reencrypted} re-encrypted, {remaining} remain");
        self.record("reseal", &ended, note)?;
        let mut traceless = false;
        // A rewrite makes sense only if the old key has nothing left to decrypt.
        if rewrite && remaining == 0 {
            self.backend.rewrite()?;
            traceless = self.leave_no_journal()?;
        }
        Ok(Reencrypted { key, reencrypted, remaining, traceless })
    }

    fn reencrypt_all(&mut self, encryptor: &Encryptor, seen: &mut dyn FnMut(u64)) -> OperationDone<u64> {
        let header = encryptor.header();
        let mut count = 0;
        self.in_batches(
            |rows, after, limit| rows.sealed_otherwise(&header, after, limit),
            |rows, numbers| {
                for number in numbers {
                    count += u64::from(reencrypt(rows, encryptor, *number)?);
                }
                Ok(count)
            },
            seen,
        )?;
        Ok(count)
    }
}

fn open(encryptor: &Encryptor, job: &JobRow) -> OperationDone<Decrypted> {
    let secret = encryptor.open(job.id.as_bytes(), job.sealed.as_deref().unwrap_or_default());
    let secret = secret.map_err(|error| OperationError::Impossible(format!("job {}: {error}", job.id)))?;
    let answer =
        Answer::join(None, Some(&secret)).map_err(|_| StoreError::Inconsistent("an answer is not JSON"))?;
    Ok(Decrypted { job: job.id, action: job.action, answer })
}

/// Re-encrypts one answer. `false`: it was re-encrypted or deleted meanwhile, or no key decrypts it.
fn reencrypt(rows: &Sqlite, encryptor: &Encryptor, number: i64) -> Result<bool, StoreError> {
    let (id, sealed) = match rows.sealed_of(number) {
        Ok(Some(sealed)) => sealed,
        Ok(None) => return Ok(false),
        Err(StoreError::Unreadable(unreadable)) => {
            tracing::error!("{unreadable}; its answer was not re-encrypted");
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    // Another process has re-encrypted it since the list was made.
    if sealed.starts_with(&encryptor.header()) {
        return Ok(false);
    }
    let Ok(secret) = encryptor.open(id.as_bytes(), &sealed) else { return Ok(false) };
    let anew = encryptor.seal(id.as_bytes(), &secret)?;
    rows.put_sealed(number, Some(&anew))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixtures::a_job;
    use crate::store::{Store, StoreOptions};
    use spid_core::lifecycle::schedule::JobState;
    use spid_hook::Secret;
    use spid_hook::time::Clock;

    #[tokio::test]
    async fn reveal_decrypts_with_the_present_keys_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        let (store, _closed) = Store::open(&path, StoreOptions::default(), Clock::System).await.unwrap();
        let answer = Answer { body: Some(Secret::new(r#"{"password":"fake"}"#)), ..Answer::default() };
        let id = Id::from_bytes([7; 16]);
        // A reload has given the store a key that the options do not name.
        let present = Encryptor::ephemeral().unwrap();
        let sealed = present.seal(id.as_bytes(), &answer.split().secret.unwrap()).unwrap();
        store.seal_with(present);
        let job = JobRow { sealed: Some(sealed), ..a_job(id, 1, Action::Create, JobState::Done) };
        let note = AuditNote { who: "a test".into(), why: "to see the answer".into() };
        let operations = || Operations::open(&path, &StoreOptions::default(), Clock::System).unwrap();
        let revealed =
            operations().sealing_like(&store).decrypt("a job", std::slice::from_ref(&job), &note).unwrap();
        assert_eq!(revealed[0].answer.body, answer.body);
        assert!(operations().decrypt("a job", &[job], &note).is_err());
    }
}
