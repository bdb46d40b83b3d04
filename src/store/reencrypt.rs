//! The sealing key, changed: everything an older key sealed is sealed anew with the current one.
//!
//! In small commits beside a running daemon, which opens both. Stopped anywhere, it goes on when it is asked
//! again: what is sealed says with which key. An old key that has leaked must open nothing any more, so
//! the file is written anew at the end: pages keep, in room that is unused, what once stood there.

use serde::Serialize;

use super::operations::{Act, MendError, Mended, Mender};
use super::rows::JobRow;
use super::sqlite::Sqlite;
use super::{Sealed, StoreError};
use crate::hook::callback::{Action, Answer};
use crate::hook::clock::Id;
use crate::observe::limits;
use crate::store::encryption::{KeyId, Sealer};

/// What a change of the sealing key led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resealed {
    /// The current key, with which everything is to be sealed.
    pub key: KeyId,
    /// Answers that were sealed anew.
    pub resealed: u64,
    /// Answers that are sealed with another key still: none of those that are configured opens them, or
    /// somebody sealed them meanwhile.
    pub remaining: u64,
    /// Whether the file was written anew and the write-ahead log emptied, so that nothing the old key could
    /// open is left in either.
    pub traceless: bool,
}

/// The sealed part of a job's answer, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revealed {
    /// The job that answered.
    pub job: Id,
    /// What it did.
    pub action: Action,
    /// What it answered and nobody but the marketplace is shown.
    pub answer: Answer,
}

impl Mender {
    /// Opens the sealed parts of these jobs' answers. That somebody has looked is kept before anything is opened.
    ///
    /// # Errors
    /// When the act cannot be kept, or something cannot be opened: then nothing is revealed.
    pub fn reveal(&mut self, target: &str, jobs: &[JobRow], act: &Act) -> Mended<Vec<Revealed>> {
        let sealer = self.options.sealer(&self.path)?;
        let sealed: Vec<&JobRow> = jobs.iter().filter(|job| job.sealed.is_some()).collect();
        if sealed.is_empty() {
            return Ok(Vec::new());
        }
        self.record("reveal", target, act)?;
        sealed.into_iter().map(|job| open(&sealer, job)).collect()
    }

    /// How many answers each key has sealed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn sealed(&self) -> Result<Sealed, StoreError> {
        self.backend.sealed_by()
    }

    /// Seals with the current key whatever another one has sealed. `rewrite` writes the file anew, once
    /// nothing remains. `seen` hears how many were sealed anew so far.
    ///
    /// # Errors
    /// When the daemon that runs does not have the current key, or the database cannot be read or
    /// written. What was sealed anew till then is.
    pub fn reseal(&mut self, rewrite: bool, act: &Act, seen: &mut dyn FnMut(u64)) -> Mended<Resealed> {
        let sealer = self.sealer()?;
        let key = sealer.current();
        self.backend.prepare_to_remove()?;
        self.record("reseal", &format!("everything, with the key {key}: begun"), act)?;
        let resealed = self.reseal_all(&sealer, seen)?;
        let sealed = self.sealed()?;
        let remaining = sealed.iter().filter(|(id, _)| **id != Some(key)).map(|(_, count)| count).sum();
        let ended = format!("everything, with the key {key}: {resealed} sealed anew, {remaining} remain");
        self.record("reseal", &ended, act)?;
        let mut traceless = false;
        if rewrite && remaining == 0 {
            self.backend.rewrite()?;
            traceless = self.leave_no_journal()?;
        }
        Ok(Resealed { key, resealed, remaining, traceless })
    }

    fn reseal_all(&mut self, sealer: &Sealer, seen: &mut dyn FnMut(u64)) -> Mended<u64> {
        let header = sealer.header();
        let (mut after, mut count) = (0, 0);
        loop {
            let numbers = self.backend.sealed_otherwise(&header, after, limits::UPKEEP_BATCH_COUNT)?;
            let Some(last) = numbers.last().copied() else { return Ok(count) };
            self.in_one_commit(|rows| {
                for number in &numbers {
                    count += u64::from(reseal(rows, sealer, *number)?);
                }
                Ok(())
            })?;
            after = last;
            seen(count);
        }
    }
}

fn open(sealer: &Sealer, job: &JobRow) -> Mended<Revealed> {
    let secret = sealer.open(job.id.as_bytes(), job.sealed.as_deref().unwrap_or_default());
    let secret = secret.map_err(|error| MendError::Impossible(format!("job {}: {error}", job.id)))?;
    let answer =
        Answer::join(None, Some(&secret)).map_err(|_| StoreError::Inconsistent("an answer is not JSON"))?;
    Ok(Revealed { job: job.id, action: job.action, answer })
}

/// `false`: it has been sealed anew or removed meanwhile, or no key opens it.
fn reseal(rows: &Sqlite, sealer: &Sealer, number: i64) -> Result<bool, StoreError> {
    let (id, sealed) = match rows.sealed_of(number) {
        Ok(Some(sealed)) => sealed,
        Ok(None) => return Ok(false),
        Err(StoreError::Unreadable(unreadable)) => {
            tracing::error!("{unreadable}; its answer stays sealed as it is");
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    if sealed.starts_with(&sealer.header()) {
        return Ok(false);
    }
    let Ok(secret) = sealer.open(id.as_bytes(), &sealed) else { return Ok(false) };
    let anew = sealer.seal(id.as_bytes(), &secret)?;
    rows.put_sealed(number, Some(&anew))?;
    Ok(true)
}
