//! Admin operations of a person, and their entries in the audit log.
//!
//! A [`Operations`] opens the database beside a daemon or without one. SQLite's own lock puts their transactions in order.
//! A running daemon notices a change within one poll of its dispatcher.
//!
//! Every operation is one transaction: its changes, and an audit entry that says who did it and why. An operation that
//! is not possible is refused with the reason, and nothing of it is kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::rows::{AuditEntry, Backend, CallbackRow, Disposition, InstanceRow, JobRow, Read, Write};
use super::rules::{self, Acceptance, NewJob, REJECTED, SETTLED};
use super::sqlite::{RestoreTarget, Sqlite};
use super::{Store, StoreError, StoreOptions};
use crate::observe::limits;
use crate::store::encryption::{Encryptor, KeySource};
use spid_core::lifecycle;
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::schedule::Extra;
use spid_core::lifecycle::{Policy, Reason, UnknownInstance};
use spid_hook::Secret;
use spid_hook::callback::{Action, Answer, Callback, InstanceRef};
use spid_hook::id::Id;
use spid_hook::instance::fault_of_id;
use spid_hook::instance::{Instance, State};
use spid_hook::text::{fault_of_name, fault_of_text};
use spid_hook::time::Clock;

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

/// The operator's choice of what a conflicting create really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// A renewal of the existing instance.
    Renew,
    /// A change of the instance's SKU or quantities.
    Upgrade,
    /// The purchase of its trial: a renewal, and a change of SKU or quantities if they differ.
    Conversion,
}

impl Instead {
    /// Every choice.
    pub const ALL: [Instead; 3] = [Instead::Renew, Instead::Upgrade, Instead::Conversion];

    /// Returns the word for the choice on the command line and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Instead::Renew => "renew",
            Instead::Upgrade => "upgrade",
            Instead::Conversion => "conversion",
        }
    }

    /// Returns the choice with this word.
    pub fn from_word(word: &str) -> Option<Instead> {
        Instead::ALL.into_iter().find(|instead| instead.as_str() == word)
    }
}

/// Result of an approval or a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// Number of the decided callback: the held one, or one made from it.
    pub callback: i64,
    /// Id of its job, if it has one that has not ended.
    pub job: Option<Id>,
}

/// A buyer's claim: the buyer has come and taken an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Name of the buyer in the seller's words, for example of a tenant.
    pub tenant: Option<String>,
    /// True if this claim may replace the claim of another tenant.
    pub replace: bool,
}

/// Result of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The claim is recorded now.
    Now,
    /// The instance was claimed at this time, and the new claim names no other tenant. Nothing was changed.
    Before(Timestamp),
}

/// An instance that existed before spid was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Source of the data, for messages: a file and a line.
    pub origin: String,
    /// Data of the instance. `created_at` and `updated_at` count only if [`Import::dated`] is true.
    pub instance: Instance,
    /// True if the times of creation and change are known. Otherwise both are the time of the import.
    pub dated: bool,
    /// Id that the marketplace uses for the instance, if it differs from the instance's own.
    pub marketplace_instance_id: Option<String>,
    /// More names that find the instance.
    pub names: Vec<String>,
    /// More orders that were carried out for the instance.
    pub orders: Vec<String>,
}

impl Import {
    /// Returns a name of the instance for messages.
    fn name(&self) -> &str {
        let names = [&self.instance.id, &self.instance.order_biz_id, &self.marketplace_instance_id];
        names.into_iter().flatten().next().map_or("-", String::as_str)
    }
}

/// Result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Live instances whose release came before they were known here. That release was not carried out.
    pub released_before: Vec<String>,
}

/// Result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Number of held jobs: those that had not ended.
    pub held: usize,
    /// Path of the missing sealing key, if the backup holds answers that were encrypted.
    pub missing_key: Option<PathBuf>,
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
        Ok(Operations { backend: Sqlite::open_to_mend(&path)?, path, options, encryptor: None, clock })
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
    pub(super) fn act<T>(
        &mut self,
        act: &AuditNote,
        word: &str,
        target: &str,
        work: impl FnOnce(&mut Sqlite, Timestamp) -> OperationDone<T>,
    ) -> OperationDone<T> {
        let now = self.clock.now();
        self.backend.begin()?;
        let done = work(&mut self.backend, now).and_then(|value| {
            // The entry is in the same transaction: no change without its entry, no entry without its change.
            self.backend.add_act(&AuditEntry {
                at: now,
                who: act.who.clone(),
                act: word.to_owned(),
                target: target.to_owned(),
                why: act.why.clone(),
            })?;
            Ok(value)
        });
        match done {
            Ok(value) => {
                self.backend.commit()?;
                Ok(value)
            }
            Err(error) => {
                self.backend.rollback()?;
                Err(error)
            }
        }
    }

    /// Adds an audit entry for an operation that changes nothing in the store.
    ///
    /// # Errors
    /// Fails if the database cannot be written.
    pub fn record(&mut self, word: &str, target: &str, act: &AuditNote) -> OperationDone<()> {
        self.act(act, word, target, |_, _| Ok(()))
    }

    /// Returns the text that names an instance in the audit log.
    fn target(&self, number: i64) -> OperationDone<String> {
        let Some(row) = self.backend.instance(number)? else {
            return Err(no_instance(number));
        };
        let instance = row.instance;
        let name = instance.id.or(instance.order_biz_id).unwrap_or_default();
        Ok(format!("instance {name} of {}", instance.account))
    }

    /// Makes a job due now, for one unscheduled attempt. Its retry schedule is not spent.
    ///
    /// Returns the job that must end first, if there is one before it in the instance's queue.
    ///
    /// # Errors
    /// Fails if there is no such job, it is running, it has ended for good, or a later job has replaced it.
    pub fn retry(&mut self, id: Id, act: &AuditNote) -> OperationDone<Option<Id>> {
        self.act(act, "retry", &format!("job {id}"), |rows, now| {
            let mut job = find_job(rows, id)?;
            retry(rows, &mut job, now)
        })
    }

    /// Drops a job without running it. The later jobs in the instance's queue go on.
    ///
    /// # Errors
    /// Fails if there is no such job, or if it is running or has ended.
    pub fn drop_job(&mut self, id: Id, act: &AuditNote) -> OperationDone<()> {
        self.act(act, "drop", &format!("job {id}"), |rows, now| {
            let mut job = find_job(rows, id)?;
            if job.state == schedule::JobState::Running {
                return impossible(running(&job, now));
            }
            if !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; only a waiting job can be dropped",
                    job.state.as_str()
                ));
            }
            job.note = Some(format!("dropped by {}: {}", act.who, act.why));
            rules::end(&mut job, schedule::JobState::Dropped, now);
            rules::settle_queue_after(rows, &mut job, now)?;
            Ok(rows.put_job(&job)?)
        })
    }

    /// Completes the job that an instance waits for, with this answer. Returns the completed action.
    ///
    /// The job is one that a hook left pending, or one that a person did by hand after it failed.
    ///
    /// # Errors
    /// Fails if no job waits, its hook is running or has not been tried, or the answer is not usable.
    pub fn complete(&mut self, instance: i64, answer: &Answer, act: &AuditNote) -> OperationDone<Action> {
        let target = self.target(instance)?;
        self.complete_with(&target, answer, act, |rows| {
            // The first job of the queue is the one that the instance waits for.
            let first = rows.queue_jobs(instance)?.into_iter().next();
            first.ok_or_else(|| {
                OperationError::Impossible(
                    "no job of this instance waits; complete a payment or another message by its job: spid jobs complete JOB".to_owned(),
                )
            })
        })
    }

    /// Completes one job with this answer, with or without an instance's queue.
    ///
    /// # Errors
    /// Fails like [`Operations::complete`], and if another job of the instance must end first.
    pub fn complete_job(&mut self, id: Id, answer: &Answer, act: &AuditNote) -> OperationDone<Action> {
        self.complete_with(&format!("job {id}"), answer, act, |rows| {
            let job = find_job(rows, id)?;
            if !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; there is nothing to complete",
                    job.state.as_str()
                ));
            }
            match ahead_of(rows, &job)? {
                Some(ahead) => {
                    impossible(format!("the job waits for {}; complete that one first", named(&ahead)))
                }
                None => Ok(job),
            }
        })
    }

    fn complete_with(
        &mut self,
        target: &str,
        answer: &Answer,
        act: &AuditNote,
        find: impl FnOnce(&Sqlite) -> OperationDone<JobRow>,
    ) -> OperationDone<Action> {
        // Get the sealer before the transaction: it reads key files, and may fail.
        let secret = answer.split().secret;
        let encryptor = secret.is_some().then(|| self.encryptor()).transpose()?;
        self.act(act, "complete", target, |rows, now| {
            let mut job = find(rows)?;
            check_completable(&job, answer, now)?;
            let seal =
                |(encryptor, secret): (&Arc<Encryptor>, &Secret)| encryptor.seal(job.id.as_bytes(), secret);
            let sealed = encryptor.as_ref().zip(secret.as_ref()).map(seal).transpose();
            job.sealed = sealed.map_err(StoreError::from)?;
            job.answer = answer.split().open;
            // The person's answer decides the id, so an id from an earlier attempt does not count.
            job.proposed_id = None;
            rules::complete(rows, &mut job, None, answer.instance_id.as_deref(), now)?;
            // `complete` holds a create with an unusable id. Here that is an error, which undoes the transaction.
            if job.state != schedule::JobState::Done {
                return impossible(job.note.unwrap_or_default());
            }
            rows.put_job(&job)?;
            Ok(job.action)
        })
    }

    /// Approves a held callback: decides it again as a wanted one. `instead` says what a conflicting create really is.
    ///
    /// # Errors
    /// Fails if the callback is not held, or cannot be carried out even with approval.
    pub fn approve(
        &mut self,
        number: i64,
        instead: Option<Instead>,
        act: &AuditNote,
    ) -> OperationDone<Approved> {
        let target = format!("callback {number}");
        self.act(act, "approve", &target, |rows, now| approve(rows, number, instead, act, now))
    }

    /// Rejects a held callback, and its redeliveries for as long as they would be held again.
    ///
    /// The reason stays in the audit log. The marketplace receives only a general reason.
    ///
    /// # Errors
    /// Fails if the callback is not held.
    pub fn reject(&mut self, number: i64, act: &AuditNote) -> OperationDone<()> {
        self.act(act, "reject", &format!("callback {number}"), |rows, _| {
            let (mut row, _) = find_held(rows, number)?;
            row.disposition = Disposition::Refused;
            row.reason_code = Some(REJECTED.to_owned());
            row.reason = Some(Reason::Rejected("rejected by the seller".to_owned()).to_string());
            Ok(rows.put_callback(&row)?)
        })
    }

    /// Settles a held callback that repeats an order already carried out.
    ///
    /// Its next delivery is answered with success, and no hook runs.
    ///
    /// # Errors
    /// Fails if the callback is not held, or if it is a create and there is no instance whose id it could receive.
    pub fn settle(&mut self, number: i64, act: &AuditNote) -> OperationDone<()> {
        self.act(act, "settle", &format!("callback {number}"), |rows, _| {
            let (mut row, callback) = find_held(rows, number)?;
            if row.action == Action::Create {
                check_settled_create(rows, &row, &callback)?;
            }
            row.disposition = Disposition::Recorded;
            row.reason_code = Some(SETTLED.to_owned());
            row.reason = Some("settled by the seller: done before, nothing to run".to_owned());
            Ok(rows.put_callback(&row)?)
        })
    }

    /// Takes a callback off the attention list. Nothing else changes.
    ///
    /// # Errors
    /// Fails if there is no such callback, it is held, or its job has not ended.
    pub fn dismiss(&mut self, number: i64, act: &AuditNote) -> OperationDone<()> {
        self.act(act, "dismiss", &format!("callback {number}"), |rows, now| {
            let found = rows.callback_row(number)?;
            let mut row =
                found.ok_or_else(|| OperationError::NotFound(format!("there is no callback {number}")))?;
            let job = row.job.map(|job| rows.job(job)).transpose()?.flatten();
            if row.disposition == Disposition::Held {
                return impossible(format!("callback {number} is held; approve, settle or reject it"));
            }
            if let Some(job) = job.filter(|job| job.state.is_live()) {
                return impossible(format!("{} has not ended; retry, complete or drop it", named(&job)));
            }
            row.dismissed_at = Some(now);
            Ok(rows.put_callback(&row)?)
        })
    }

    /// Adds a release of an instance, as if the marketplace had asked for it.
    ///
    /// # Errors
    /// Fails if there is no such instance, or if it is already released.
    pub fn release(&mut self, instance: i64, act: &AuditNote) -> OperationDone<Approved> {
        let target = self.target(instance)?;
        self.act(act, "release", &target, |rows, now| {
            let row =
                rows.instance(instance)?.ok_or_else(|| no_instance(instance))?;
            if row.instance.state == State::Released {
                return impossible(match row.instance.tombstone {
                    true => "the release came before the instance was known here, so no hook can release it; run `spid instances import`, then release it",
                    false => "the instance is already released",
                });
            }
            accept(rows, by_hand(&row, act, now)?, &[Action::Release], now)
        })
    }

    /// Records that the buyer has come and taken the instance.
    ///
    /// The same claim again changes nothing, so a caller that does not know the result may repeat it.
    ///
    /// # Errors
    /// Fails if there is no such instance, it is not created yet or already released, or another tenant has it.
    pub fn claim(&mut self, instance: i64, claim: &Claim, act: &AuditNote) -> OperationDone<Claimed> {
        let target = self.target(instance)?;
        self.act(act, "claim", &target, |rows, now| export_instance(rows, instance, claim, now))
    }

    /// Imports instances that existed before spid was installed: all of them or none.
    ///
    /// A release that came before its instance was known has left a tombstone. If no hook ran for it, it becomes the
    /// imported instance.
    ///
    /// # Errors
    /// Fails if names are taken, missing or unusable. The error lists each fault with its source.
    pub fn import(&mut self, imports: &[Import], act: &AuditNote) -> OperationDone<Imported> {
        let target = format!("{} instances", imports.len());
        self.act(act, "import", &target, |rows, now| {
            // Collect all faults, so that one run shows them all. Any fault undoes the whole import.
            let mut wrong = Vec::new();
            let mut imported = Imported::default();
            for import in imports {
                match take_over(rows, import, now) {
                    Ok(was_tombstone) => {
                        imported.released_before.extend(was_tombstone.then(|| import.name().to_owned()));
                    }
                    Err(OperationError::Impossible(fault)) => {
                        wrong.push(format!("{}: {fault}", import.origin))
                    }
                    Err(error) => return Err(error),
                }
            }
            if wrong.is_empty() { Ok(imported) } else { impossible(wrong.join("\n")) }
        })
    }

    /// Holds every unfinished job after a restore. Returns the number of held jobs.
    ///
    /// The backup does not show what a marketplace or a hook has done since it was made. So no job may run unseen.
    fn hold_unfinished(&mut self, from: &Path, act: &AuditNote) -> OperationDone<usize> {
        self.act(act, "restore", &format!("everything, from {}", from.display()), |rows, now| {
            let live = schedule::JobState::ALL.into_iter().filter(|state| state.is_live()).collect();
            let filter = super::Filter { jobs: live, limit: usize::MAX, ..super::Filter::default() };
            let jobs = rows.list_jobs(&filter)?;
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
        return rules::end(job, schedule::JobState::Dropped, now);
    }
    // A dead job gets no second retry schedule when it is retried.
    if job.state == schedule::JobState::Dead {
        job.extra = Extra::Dead;
    }
    let before = job.note.as_deref().map(|note| format!("; before: {note}")).unwrap_or_default();
    job.note = Some(format!(
        "restored from a backup, where the job was {}; the job may have been done since the backup was made{before}",
        job.state.as_str()
    ));
    job.state = schedule::JobState::Held;
    job.lease_until = None;
}

fn no_instance(number: i64) -> OperationError {
    OperationError::NotFound(format!("there is no instance with the number {number}"))
}

fn find_job(rows: &dyn Read, id: Id) -> OperationDone<JobRow> {
    rows.job_by_id(id)?.ok_or_else(|| OperationError::NotFound(format!("there is no job {id}")))
}

fn find_held(rows: &dyn Read, number: i64) -> OperationDone<(CallbackRow, Callback)> {
    let found = rows.callback(number)?;
    let (row, callback) =
        found.ok_or_else(|| OperationError::NotFound(format!("there is no callback {number}")))?;
    if row.disposition != Disposition::Held {
        return impossible(format!("callback {number} is not held"));
    }
    Ok((row, callback))
}

/// Returns the reason why a running job is left alone.
///
/// Without a daemon the lease is not extended. After its end it makes no sense to wait for the attempt.
fn running(job: &JobRow, now: Timestamp) -> String {
    let action = job.action;
    match job.lease_until.filter(|until| *until < now) {
        None => format!("a hook is running for its {action} now; wait for its end"),
        Some(until) => format!(
            "the {action} was running when the daemon stopped (no sign of life since {until}), and its result is unknown; start the daemon, which ends leftovers and retries"
        ),
    }
}

fn check_completable(job: &JobRow, answer: &Answer, now: Timestamp) -> OperationDone<()> {
    let action = job.action;
    if job.state == schedule::JobState::Running {
        return impossible(running(job, now));
    }
    if job.state == schedule::JobState::Queued && job.attempts == 0 {
        return impossible(format!("the {action} has not been tried yet; let the hook run first"));
    }
    // The answer is probably meant for a create, and a release has replaced that create meanwhile.
    if matches!(action, Action::Expire | Action::Release) && *answer != Answer::default() {
        return impossible(format!("the waiting job ({action}) takes no answer; complete it without one"));
    }
    Ok(())
}

// The first job in the instance's queue runs first, so retrying a later queued job has no effect.
fn retry(rows: &mut dyn Write, job: &mut JobRow, now: Timestamp) -> OperationDone<Option<Id>> {
    let ahead = ahead_of(rows, job)?;
    match (job.state, &ahead) {
        (schedule::JobState::Running, _) => return impossible(running(job, now)),
        (schedule::JobState::Done | schedule::JobState::Dropped | schedule::JobState::Cancelled, _) => {
            return impossible(format!("the job is {}; there is nothing to retry", job.state.as_str()));
        }
        (schedule::JobState::Queued, Some(ahead)) => {
            return impossible(format!(
                "the job waits for {}; retry, complete or drop that one first",
                named(ahead)
            ));
        }
        (schedule::JobState::Refused, _) => check_refused(rows, job)?,
        (
            schedule::JobState::Queued
            | schedule::JobState::Pending
            | schedule::JobState::Held
            | schedule::JobState::Dead,
            _,
        ) => {}
    }
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let released = instance.is_some_and(|row| row.instance.state == State::Released);
    if released && job.ordered && job.action != Action::Release {
        return impossible("the instance is released for good, so the job cannot be retried");
    }
    // A held create may have an unusable id. The next attempt may give another one.
    if job.state == schedule::JobState::Held {
        job.proposed_id = None;
    }
    job.extra = one_more(job);
    // The job is open again, so its callback must be shown on the attention list again.
    if let Some(mut row) = rows.callback_row(job.callback)?.filter(|row| row.dismissed_at.is_some()) {
        row.dismissed_at = None;
        rows.put_callback(&row)?;
    }
    let was_refused = job.state == schedule::JobState::Refused;
    job.state = schedule::JobState::Queued;
    job.due_at = now;
    job.ended_at = None;
    rows.put_job(job)?;
    // Only a refusal has canceled the later parts. Those of a dead or held job are still queued.
    if was_refused {
        bring_back_later_parts(rows, job, now)?;
    }
    Ok(ahead.map(|ahead| ahead.id))
}

/// Requeues the later parts of a request together with a requeued part: half of a request was never asked for.
fn bring_back_later_parts(rows: &mut dyn Write, job: &JobRow, now: Timestamp) -> OperationDone<()> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    let all = super::Filter { instance: Some(instance), limit: usize::MAX, ..super::Filter::default() };
    let is_later = |part: &JobRow| {
        part.callback == job.callback
            && part.number > job.number
            && part.state == schedule::JobState::Cancelled
            && part.note.as_deref().is_some_and(|note| note.starts_with(rules::LATER_PART))
    };
    let mut later: Vec<JobRow> = rows.list_jobs(&all)?.into_iter().filter(is_later).collect();
    // `list_jobs` returns the newest first, but the parts run in the order of their numbers.
    later.sort_by_key(|part| part.number);
    for part in &mut later {
        (part.state, part.due_at, part.ended_at) = (schedule::JobState::Queued, now, None);
        rows.put_job(part)?;
    }
    // A callback has the job of its last part.
    if let (Some(last), Some(mut row)) = (later.last(), rows.callback_row(job.callback)?) {
        row.job = Some(last.number);
        rows.put_callback(&row)?;
    }
    Ok(())
}

fn named(job: &JobRow) -> String {
    format!("job {} ({}, {})", job.id, job.action, job.state.as_str())
}

/// Returns the job in the instance's queue that must end before this one.
fn ahead_of(rows: &dyn Read, job: &JobRow) -> OperationDone<Option<JobRow>> {
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(None) };
    let first = rows.queue_jobs(instance)?.into_iter().next();
    Ok(first.filter(|first| first.number < job.number))
}

/// Returns the kind of the new attempt for the retry schedule.
///
/// A job that was dead stays marked as dead. It must not return to a schedule that is used up.
fn one_more(job: &JobRow) -> Extra {
    match (job.state, job.extra) {
        (schedule::JobState::Dead | schedule::JobState::Refused, _) | (_, Extra::Dead) => Extra::Dead,
        // Without an attempt there is nothing to repeat: the next attempt is still the scheduled one.
        _ if job.attempts == 0 => job.extra,
        _ => Extra::Waiting,
    }
}

/// Checks that a refused job may come back. It has left the instance's queue.
///
/// Queue and instance must be unchanged since then. The marketplace may have asked again meanwhile, and a second create
/// would make a second instance.
fn check_refused(rows: &dyn Read, job: &JobRow) -> OperationDone<()> {
    let latest = rows.callback_row(job.callback)?.and_then(|row| row.job);
    if latest != Some(job.number) {
        return impossible("the marketplace has asked again, and a later job replaces this one");
    }
    let Some(instance) = job.instance.filter(|_| job.ordered) else { return Ok(()) };
    if let Some(other) = rows.queue_jobs(instance)?.first() {
        return impossible(format!(
            "{} has been queued since; retry, complete or drop that one",
            named(other)
        ));
    }
    let changed = rows.instance(instance)?.map(|row| row.instance.updated_at);
    if changed > job.ended_at {
        return impossible(
            "the instance has changed since the refusal; the marketplace must send the request again",
        );
    }
    Ok(())
}

fn approve(
    rows: &mut dyn Write,
    number: i64,
    instead: Option<Instead>,
    act: &AuditNote,
    now: Timestamp,
) -> OperationDone<Approved> {
    let (row, callback) = find_held(rows, number)?;
    // A conflicting create cannot run as a create once the first purchase has made an instance.
    let asked: Vec<Action> = match (row.reason_code.as_deref(), instead) {
        (Some("conflicting-create"), None) if !is_made(rows, &row)? => callback.actions().collect(),
        (Some("conflicting-create"), Some(instead)) => asked_instead(rows, &row, &callback, instead)?,
        (Some("conflicting-create"), None) => {
            return impossible(
                "the orderBizId was bought before; use --as conversion, renew or upgrade, or settle the callback, or reject it and refund the order at the marketplace",
            );
        }
        (_, Some(_)) => return impossible("--as is only for a conflicting create"),
        (_, None) => callback.actions().collect(),
    };
    let acceptance = Acceptance {
        account: row.account.clone(),
        endpoint: row.endpoint.clone(),
        key_label: row.key_label.clone(),
        delivery_limit: row.delivery_limit,
        callback: Arc::new(callback),
        received_at: now,
        // The operator wants the callback carried out, so an unknown instance is adopted.
        policy: Policy { unknown_instance: UnknownInstance::Adopt, ..Policy::default() },
        approved: true,
    };
    let approved = accept(rows, acceptance, &asked, now)?;
    // The approved callback was kept under another row, so the held row must be closed.
    if approved.callback != number {
        settle_held(rows, row, &approved, act, now)?;
        return Ok(approved);
    }
    // All of the request was carried out before. A redelivery is then answered like a settled callback.
    if let Some(mut row) = rows.callback_row(number)?.filter(|row| row.action == Action::Create)
        && instead.is_some()
        && row.disposition == Disposition::Recorded
    {
        row.reason_code = Some(SETTLED.to_owned());
        row.reason = Some("approved by the seller: done before, nothing to run".to_owned());
        rows.put_callback(&row)?;
    }
    Ok(approved)
}

/// Refuses to settle a create that cannot be a repeat. It would succeed with the id of another purchase's instance.
fn check_settled_create(rows: &dyn Read, row: &CallbackRow, callback: &Callback) -> OperationDone<()> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let Some(made) = found.filter(|row| row.reported_id().is_some()) else {
        return impossible(
            "a create needs an instance with an id to report, and there is none; approve or reject the callback",
        );
    };
    // A callback without a buyer cannot show that the instance belongs to the same buyer.
    let is_theirs = callback.buyer.is_some()
        && made.instance.buyer == callback.buyer
        && !lifecycle::is_anothers(&made.instance, callback);
    if is_theirs {
        return Ok(());
    }
    impossible(
        "the instance of that name belongs to another purchase, so this is not a redelivery; refund the order at the marketplace and reject the callback",
    )
}

/// Returns true if the instance of a held create has an id.
fn is_made(rows: &dyn Read, row: &CallbackRow) -> OperationDone<bool> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    Ok(found.is_some_and(|row| row.instance.id.is_some()))
}

/// Returns the actions that a conflicting create really asks of the existing instance.
fn asked_instead(
    rows: &dyn Read,
    row: &CallbackRow,
    callback: &Callback,
    instead: Instead,
) -> OperationDone<Vec<Action>> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let Some(instance) = found.map(|row| row.instance).filter(|instance| instance.id.is_some()) else {
        return impossible("the first purchase has made no instance; approve the callback without --as");
    };
    if !lifecycle::is_by_the_same_buyer(&instance, callback) {
        return impossible(
            "another buyer bought the instance; refund the order at the marketplace and reject the callback",
        );
    }
    if instance.state == State::Released {
        return impossible(
            "the instance is released for good; refund the order at the marketplace and reject the callback, or settle it",
        );
    }
    let until = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
    Ok(match instead {
        Instead::Renew if instance.differs_from(callback) => {
            return impossible(
                "the purchase also changes SKU or quantities, which a renew would not carry out; use --as conversion",
            );
        }
        Instead::Upgrade if until > instance.expires_on || instance.trial != Some(false) => {
            return impossible(
                "the purchase buys a longer term or a trial for good, which an upgrade would not carry out; use --as conversion",
            );
        }
        Instead::Renew => vec![Action::Renew],
        Instead::Upgrade => vec![Action::Upgrade],
        Instead::Conversion if instance.differs_from(callback) => vec![Action::Renew, Action::Upgrade],
        Instead::Conversion => vec![Action::Renew],
    })
}

/// Closes a held callback that was approved as another callback of an instance that is known by now.
///
/// Its deliveries are added to the other callback, because the marketplace waits for that one.
fn settle_held(
    rows: &mut dyn Write,
    mut held: CallbackRow,
    approved: &Approved,
    act: &AuditNote,
    now: Timestamp,
) -> OperationDone<()> {
    if let Some(mut row) = rows.callback_row(approved.callback)? {
        row.deliveries += held.deliveries;
        row.last_received_at = row.last_received_at.max(held.last_received_at);
        rows.put_callback(&row)?;
    }
    held.disposition = Disposition::Recorded;
    held.reported_at = held.reported_at.or(Some(now));
    held.reason = Some(format!("approved by {} as callback {}: {}", act.who, approved.callback, act.why));
    Ok(rows.put_callback(&held)?)
}

fn accept(
    rows: &mut dyn Write,
    acceptance: Acceptance,
    asked: &[Action],
    now: Timestamp,
) -> OperationDone<Approved> {
    let id = Id::new(now).map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))?;
    // `heard: false`: the caller is an operator, so nothing counts as reported to the marketplace.
    let birth = NewJob { id, lease_until: None, heard: false };
    let accepted = rules::accept_for(rows, &acceptance, asked, birth)?;
    match accepted.row.disposition {
        Disposition::Held | Disposition::Refused => impossible(format!(
            "the request cannot be carried out now: {}; reject it, or do the work by hand",
            accepted.row.reason.as_deref().unwrap_or("the hook has refused the request")
        )),
        Disposition::Job | Disposition::Recorded => {
            let job = accepted.row.job.map(|number| rows.job(number)).transpose()?.flatten();
            let job = job.filter(|job| job.state.is_live());
            Ok(Approved { callback: accepted.row.number, job: job.map(|job| job.id) })
        }
    }
}

/// Builds a release that only an operator asked for.
fn by_hand(row: &InstanceRow, act: &AuditNote, now: Timestamp) -> OperationDone<Acceptance> {
    let instance = &row.instance;
    let mut callback = Callback::new(Action::Release, "release (by hand)");
    callback.subject =
        InstanceRef { instance_id: instance.id.clone(), order_biz_id: instance.order_biz_id.clone() };
    if callback.subject.names().next().is_none() {
        return impossible("the instance has no name");
    }
    Ok(Acceptance {
        account: instance.account.clone(),
        endpoint: instance.endpoint.clone(),
        key_label: format!("by hand: {}", act.who),
        delivery_limit: None,
        callback: Arc::new(callback),
        received_at: now,
        // There is nothing to release of an instance that never began. That is a success.
        policy: Policy { unknown_instance: UnknownInstance::Succeed, ..Policy::default() },
        approved: true,
    })
}

fn export_instance(
    rows: &mut dyn Write,
    number: i64,
    claim: &Claim,
    now: Timestamp,
) -> OperationDone<Claimed> {
    let mut row = rows.instance(number)?.ok_or_else(|| no_instance(number))?;
    if let Some(fault) = claim.tenant.as_deref().and_then(fault_of_tenant) {
        return impossible(format!("the tenant's name is not usable: {fault}"));
    }
    match row.instance.state {
        State::Pending => return impossible("the instance is not created yet, so it cannot be claimed"),
        State::Released => return impossible("the instance is released for good, so it cannot be claimed"),
        State::Active | State::Frozen => {}
    }
    // A claim without a name confirms the existing claim.
    let same = claim.tenant.is_none() || claim.tenant == row.instance.tenant;
    match row.instance.claimed_at {
        Some(before) if same => return Ok(Claimed::Before(before)),
        Some(before) if !claim.replace => {
            let tenant = row.instance.tenant.as_ref();
            let by = tenant.map_or_else(|| "another buyer".to_owned(), |tenant| format!("`{tenant}`"));
            return impossible(format!("{by} claimed the instance at {before}"));
        }
        Some(_) | None => {}
    }
    // Leave `updated_at`: it decides if a request is superseded, and a claim must not supersede earlier requests.
    row.instance.claimed_at = Some(now);
    row.instance.tenant = claim.tenant.clone();
    rows.put_instance(&row)?;
    Ok(Claimed::Now)
}

fn fault_of_tenant(tenant: &str) -> Option<String> {
    let most = limits::NAME_MAX_BYTES;
    match tenant {
        empty if empty.trim().is_empty() => Some("the name is empty".to_owned()),
        long if long.len() > most => Some(format!("the name is longer than {most} bytes")),
        name => fault_of_name(name),
    }
}

/// Returns the first text of an imported instance that is unusable. Its names are checked on their own.
fn fault_of_instance(instance: &Instance) -> Option<(&'static str, String)> {
    let tenant = instance.tenant.as_deref().and_then(fault_of_tenant);
    let texts = [
        ("account", Some(&instance.account)),
        ("endpoint", Some(&instance.endpoint)),
        ("buyer", instance.buyer.as_ref()),
        ("product", instance.product.as_ref()),
        ("sku", instance.sku.as_ref()),
        ("order_id", instance.order_id.as_ref()),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text?)));
    let items = instance.items.iter().flat_map(|(name, value)| [("items", name), ("items", value)]);
    let odd = texts.chain(items).find_map(|(name, text)| Some((name, fault_of_text(text)?)));
    tenant.map(|fault| ("tenant", fault)).or(odd)
}

/// Returns the number of the tombstone that has these names, if there is exactly one and no hook was tried for it.
fn bare_tombstone(rows: &dyn Read, account: &str, names: &[&String]) -> OperationDone<Option<i64>> {
    let mut found = None;
    for name in names {
        let Some((row, _)) = rows.instance_by_name(account, name)? else { continue };
        let is_bare = row.instance.tombstone && !row.instance.began;
        // All names must belong to the same tombstone.
        if !is_bare || found.is_some_and(|number| number != row.number) {
            return Ok(None);
        }
        found = Some(row.number);
    }
    let Some(number) = found else { return Ok(None) };
    let filter = super::Filter { instance: Some(number), limit: usize::MAX, ..super::Filter::default() };
    let was_tried = rows.list_jobs(&filter)?.iter().any(|job| job.attempts > 0 || job.state.is_live());
    Ok(Some(number).filter(|_| !was_tried))
}

/// Imports one instance. Returns true if it is live and replaced a tombstone, so its release came before.
fn take_over(rows: &mut dyn Write, import: &Import, now: Timestamp) -> OperationDone<bool> {
    let mut instance = Instance { adopted: true, ..import.instance.clone() };
    if !import.dated {
        (instance.created_at, instance.updated_at) = (now, now);
    }
    if let Some((name, fault)) = fault_of_instance(&instance) {
        return impossible(format!("`{name}` cannot be used: {fault}"));
    }
    let own = [&instance.id, &instance.order_biz_id, &import.marketplace_instance_id].into_iter().flatten();
    let names: Vec<&String> = own.chain(&import.names).collect();
    // An instance that was released before anything was created has no id.
    if names.is_empty() || instance.id.is_none() && instance.state != State::Released {
        return impossible("an instance without an id cannot be imported");
    }
    if instance.tombstone && instance.state != State::Released {
        return impossible("a tombstone must be in state released");
    }
    // Only an instance takes the place of a tombstone, not another tombstone.
    let tombstone = match instance.tombstone {
        true => None,
        false => bare_tombstone(rows, &instance.account, &names)?,
    };
    let number = match tombstone {
        Some(number) => number,
        None => rows.add_instance(&instance)?,
    };
    for name in names {
        take_name(rows, &instance.account, name, number)?;
    }
    for order in instance.order_id.iter().chain(&import.orders) {
        rows.add_order(&instance.account, order, number)?;
    }
    let was_released = tombstone.is_some() && instance.state != State::Released;
    // `add_instance` does not write `marketplace_instance_id`, and the row of a tombstone must be replaced.
    if tombstone.is_some() || import.marketplace_instance_id.is_some() {
        let marketplace_instance_id = import.marketplace_instance_id.clone();
        rows.replace_instance(&InstanceRow {
            number,
            created_by: None,
            marketplace_instance_id,
            known_as: None,
            instance,
        })?;
    }
    Ok(was_released)
}

fn take_name(rows: &mut dyn Write, account: &str, name: &str, number: i64) -> OperationDone<()> {
    if let Some(fault) = fault_of_id(name) {
        return impossible(format!("`{name}` cannot be an instance's name: {fault}"));
    }
    if !rows.add_name(account, name, number)? {
        return impossible(format!("account `{account}` already has an instance with the name `{name}`"));
    }
    Ok(())
}

/// Copies the database at `path`, as of one commit, into a new file.
///
/// It also copies the database of an older spid, so that there is a copy before the daemon upgrades it.
///
/// # Errors
/// Fails if there is no database, it is not one of spid's, or a newer spid wrote it. Fails if the new file exists or
/// cannot be written.
pub fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    Sqlite::open_backup(path)?.copy_to(to)
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
    act: &AuditNote,
) -> OperationDone<Restored> {
    let backup = Sqlite::open_backup(from).map_err(|error| match error {
        StoreError::NotThere(from) => OperationError::NotFound(format!("there is no `{}`", from.display())),
        error => error.into(),
    })?;
    let restore_target = RestoreTarget::at(path)?.map_err(|remains| {
        OperationError::Impossible(format!(
            "`{}` exists; stop the daemon, and move the database away with its -wal and -shm",
            remains.display()
        ))
    })?;
    // Work on the partial copy, and put it in place only when all jobs in it are held.
    backup.copy_to(restore_target.partial())?;
    Sqlite::modernise(restore_target.partial())?;
    let mut operations = Operations::open(restore_target.partial(), options, clock)?;
    let held = operations.hold_unfinished(from, act)?;
    let sealed = operations.backend.has_sealed()?;
    // Close the database before it is renamed.
    drop(operations);
    restore_target.fill()?;
    let sources = options.key_sources(path);
    let missing = sources.iter().filter_map(KeySource::path).find(|file| !file.exists());
    Ok(Restored { held, missing_key: missing.filter(|_| sealed).map(Path::to_owned) })
}
