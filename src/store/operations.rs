//! What a person does by hand, and the record of it.
//!
//! A [`Mender`] opens the database beside a daemon or without one; the two are put in order by SQLite's
//! own lock, and a running daemon notices what was mended within one poll of its dispatcher. Every act
//! is one transaction: what it changes, and a row that says who did it and why. What cannot be done is
//! refused with the reason; nothing is half done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::ledger::{self, Acceptance, Birth, REJECTED, SETTLED};
use super::rows::{ActRow, Backend, CallbackRow, Disposition, InstanceRow, JobRow, Read, Write};
use super::sqlite::{Sqlite, Vacancy};
use super::{Store, StoreError, StoreOptions};
use crate::core::lifecycle;
use crate::core::lifecycle::schedule;
use crate::core::lifecycle::schedule::Extra;
use crate::core::lifecycle::{Instance, Policy, Reason, State, UnknownInstance};
use crate::core::signature::Secret;
use crate::hook::callback::{Action, Answer, Callback, InstanceRef};
use crate::hook::clock::{Clock, Id};
use crate::hook::text::{fault_of_name, fault_of_text};
use crate::observe::limits;
use crate::store::encryption::{KeySource, Sealer};

/// Why an act was not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MendError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as things stand.
    #[error("{0}")]
    Impossible(String),
}

pub(super) type Mended<T> = Result<T, MendError>;

pub(super) fn impossible<T>(text: impl Into<String>) -> Mended<T> {
    Err(MendError::Impossible(text.into()))
}

/// Who acts, and why.
#[derive(Debug, Clone)]
pub struct Act {
    /// Who.
    pub who: String,
    /// Why, in their words.
    pub why: String,
}

/// The operator's word for a conflicting create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// A renewal of the instance that is there.
    Renew,
    /// A change of its SKU or its quantities.
    Upgrade,
    /// Its trial, bought for good: a renewal, and a change of SKU or quantities where they differ.
    Conversion,
}

impl Instead {
    /// Every choice.
    pub const ALL: [Instead; 3] = [Instead::Renew, Instead::Upgrade, Instead::Conversion];

    /// The word of the command line and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Instead::Renew => "renew",
            Instead::Upgrade => "upgrade",
            Instead::Conversion => "conversion",
        }
    }

    /// The choice with this word.
    pub fn from_word(word: &str) -> Option<Instead> {
        Instead::ALL.into_iter().find(|instead| instead.as_str() == word)
    }
}

/// What an approval led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// The callback that was decided: the held one, or one made from it.
    pub callback: i64,
    /// Its job, if it has one now.
    pub job: Option<Id>,
}

/// That the buyer has come and taken an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Who took it, in the seller's words: the name of a tenant, say.
    pub tenant: Option<String>,
    /// Whether it may take the place of a claim by somebody else.
    pub replace: bool,
}

/// What a claim led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// It is claimed now.
    Now,
    /// It was claimed then, and by the same: nothing was changed.
    Before(Timestamp),
}

/// An instance that lived before spid did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Where it was read, for messages: a file and a line.
    pub origin: String,
    /// What is known of it. `created_at` and `updated_at` count only where [`Import::dated`] says so.
    pub instance: Instance,
    /// Whether it is known when it was made and changed; else that is now.
    pub dated: bool,
    /// The id by which the marketplace calls it, where that is not its own.
    pub public_id: Option<String>,
    /// Further names it is found by.
    pub names: Vec<String>,
    /// Further orders that were done for it.
    pub orders: Vec<String>,
}

impl Import {
    /// The name it is told by.
    fn name(&self) -> &str {
        let names = [&self.instance.id, &self.instance.order_biz_id, &self.public_id];
        names.into_iter().flatten().next().map_or("-", String::as_str)
    }
}

/// What an import led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Live instances whose release came before they were known here; it was not done.
    pub released_before: Vec<String>,
}

/// What a restore led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The jobs that had not ended; they are held.
    pub held: usize,
    /// Where the sealing key is missing, though there are passwords that it sealed.
    pub missing_key: Option<PathBuf>,
}

/// Opens a database to mend it.
pub struct Mender {
    pub(super) backend: Sqlite,
    pub(super) path: PathBuf,
    pub(super) options: StoreOptions,
    /// What seals, where that is not to be looked up.
    sealer: Option<Arc<Sealer>>,
    pub(super) clock: Clock,
}

impl Mender {
    /// Opens the database at `path`, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, options: &StoreOptions, clock: Clock) -> Result<Mender, StoreError> {
        let (path, options) = (path.to_owned(), options.clone());
        Ok(Mender { backend: Sqlite::open_to_mend(&path)?, path, options, sealer: None, clock })
    }

    /// Seals with whatever this store seals with now, which may be other keys than those it was opened with.
    #[must_use]
    pub fn sealing_like(self, store: &Store) -> Mender {
        Mender { sealer: Some(store.sealer()), ..self }
    }

    /// What seals here. A daemon that runs must have its keys, too: it has to open what is sealed.
    pub(super) fn sealer(&self) -> Mended<Arc<Sealer>> {
        if let Some(sealer) = &self.sealer {
            return Ok(sealer.clone());
        }
        let sealer = self.options.sealer(&self.path)?;
        let current = sealer.current();
        match super::sqlite::noted_keys(&self.path)? {
            Some(known) if !known.contains(&current.to_string()) => impossible(format!(
                "the daemon that runs on this database does not have the current sealing key ({current}) yet: it must be told with a reload (SIGHUP), or a restart, before anything is sealed with it"
            )),
            _ => Ok(Arc::new(sealer)),
        }
    }

    /// Runs one act in a transaction of its own, and records it.
    pub(super) fn act<T>(
        &mut self,
        act: &Act,
        word: &str,
        target: &str,
        work: impl FnOnce(&mut Sqlite, Timestamp) -> Mended<T>,
    ) -> Mended<T> {
        let now = self.clock.now();
        self.backend.begin()?;
        let done = work(&mut self.backend, now).and_then(|value| {
            self.backend.add_act(&ActRow {
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

    /// Records an act that changes nothing in the store.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record(&mut self, word: &str, target: &str, act: &Act) -> Mended<()> {
        self.act(act, word, target, |_, _| Ok(()))
    }

    /// What the acts call an instance.
    fn target(&self, number: i64) -> Mended<String> {
        let Some(row) = self.backend.instance(number)? else {
            return Err(MendError::NotFound("no such instance".to_owned()));
        };
        let instance = row.instance;
        let name = instance.id.or(instance.order_biz_id).unwrap_or_default();
        Ok(format!("instance {name} of {}", instance.account))
    }

    /// Makes a job due now, for one extra attempt: its schedule is neither spent nor doubled. Returns
    /// the job it still has to wait for, if one is before it in the lane.
    ///
    /// # Errors
    /// When there is no such job, it runs, it has ended for good, or something has come in its place.
    pub fn retry(&mut self, id: Id, act: &Act) -> Mended<Option<Id>> {
        self.act(act, "retry", &format!("job {id}"), |rows, now| {
            let mut job = find_job(rows, id)?;
            retry(rows, &mut job, now)
        })
    }

    /// Ends a job unrun. Those behind it in the lane go on.
    ///
    /// # Errors
    /// When there is no such job, or it runs or has ended.
    pub fn drop_job(&mut self, id: Id, act: &Act) -> Mended<()> {
        self.act(act, "drop", &format!("job {id}"), |rows, now| {
            let mut job = find_job(rows, id)?;
            if job.state == schedule::JobState::Running {
                return impossible(running(&job, now));
            }
            if !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; only one that waits can be dropped",
                    job.state.as_str()
                ));
            }
            job.note = Some(format!("dropped by {}: {}", act.who, act.why));
            ledger::end(&mut job, schedule::JobState::Dropped, now);
            ledger::settle_lane_after(rows, &mut job, now)?;
            Ok(rows.put_job(&job)?)
        })
    }

    /// Finishes the work an instance waits for, with this answer: what a hook left pending, or what a
    /// person did by hand after it failed. Returns what was finished.
    ///
    /// # Errors
    /// When nothing waits, a hook runs for it now or has not been asked yet, or the answer will not do.
    pub fn complete(&mut self, instance: i64, answer: &Answer, act: &Act) -> Mended<Action> {
        let target = self.target(instance)?;
        self.complete_with(&target, answer, act, |rows| {
            let first = rows.lane_jobs(instance)?.into_iter().next();
            first.ok_or_else(|| {
                MendError::Impossible(
                    "nothing is owed for this instance; a payment or another message is completed by its job: spid jobs complete JOB".to_owned(),
                )
            })
        })
    }

    /// Finishes one job with this answer, whether it belongs to an instance's queue or not.
    ///
    /// # Errors
    /// As [`Mender::complete`]; and when another job of its instance has to end first.
    pub fn complete_job(&mut self, id: Id, answer: &Answer, act: &Act) -> Mended<Action> {
        self.complete_with(&format!("job {id}"), answer, act, |rows| {
            let job = find_job(rows, id)?;
            if !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; there is nothing to complete",
                    job.state.as_str()
                ));
            }
            match ahead_of(rows, &job)? {
                Some(ahead) => impossible(format!("it waits for {}; complete that one first", named(&ahead))),
                None => Ok(job),
            }
        })
    }

    fn complete_with(
        &mut self,
        target: &str,
        answer: &Answer,
        act: &Act,
        find: impl FnOnce(&Sqlite) -> Mended<JobRow>,
    ) -> Mended<Action> {
        let secret = answer.split().secret;
        let sealer = secret.is_some().then(|| self.sealer()).transpose()?;
        self.act(act, "complete", target, |rows, now| {
            let mut job = find(rows)?;
            check_completable(&job, answer, now)?;
            let seal = |(sealer, secret): (&Arc<Sealer>, &Secret)| sealer.seal(job.id.as_bytes(), secret);
            let sealed = sealer.as_ref().zip(secret.as_ref()).map(seal).transpose();
            job.sealed = sealed.map_err(StoreError::from)?;
            job.answer = answer.split().open;
            job.proposed_id = None;
            ledger::complete(rows, &mut job, None, answer.instance_id.as_deref(), now)?;
            if job.state != schedule::JobState::Done {
                return impossible(job.note.unwrap_or_default());
            }
            rows.put_job(&job)?;
            Ok(job.action)
        })
    }

    /// Decides a held callback again, as one that is wanted. `instead` says what a conflicting create
    /// really is.
    ///
    /// # Errors
    /// When it is not held, or cannot be done however much it is wanted.
    pub fn approve(&mut self, number: i64, instead: Option<Instead>, act: &Act) -> Mended<Approved> {
        let target = format!("callback {number}");
        self.act(act, "approve", &target, |rows, now| approve(rows, number, instead, act, now))
    }

    /// Refuses a held callback, and its redeliveries for as long as they would be held again. Why stays
    /// here: what is refused is told to the marketplace with its reason.
    ///
    /// # Errors
    /// When it is not held.
    pub fn reject(&mut self, number: i64, act: &Act) -> Mended<()> {
        self.act(act, "reject", &format!("callback {number}"), |rows, _| {
            let (mut row, _) = find_held(rows, number)?;
            row.disposition = Disposition::Refused;
            row.reason_code = Some(REJECTED.to_owned());
            row.reason = Some(Reason::Rejected("rejected by the seller".to_owned()).to_string());
            Ok(rows.put_callback(&row)?)
        })
    }

    /// Settles a held callback that turned out to be a repeat of something already done: its next delivery is
    /// answered with success, and nothing runs.
    ///
    /// # Errors
    /// When it is not held, or is a create of something that has no id to be told.
    pub fn settle(&mut self, number: i64, act: &Act) -> Mended<()> {
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

    /// Takes a callback off the list of what needs attention. Nothing else changes.
    ///
    /// # Errors
    /// When there is no such callback.
    pub fn dismiss(&mut self, number: i64, act: &Act) -> Mended<()> {
        self.act(act, "dismiss", &format!("callback {number}"), |rows, now| {
            let found = rows.callback_row(number)?;
            let mut row =
                found.ok_or_else(|| MendError::NotFound(format!("there is no callback {number}")))?;
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

    /// Makes a release for an instance, as if the marketplace had asked for it.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn release(&mut self, instance: i64, act: &Act) -> Mended<Approved> {
        let target = self.target(instance)?;
        self.act(act, "release", &target, |rows, now| {
            let row =
                rows.instance(instance)?.ok_or_else(|| MendError::NotFound("no such instance".to_owned()))?;
            if row.instance.state == State::Released {
                return impossible(match row.instance.tombstone {
                    true => "its release came before it was known here, so there is nothing to run a release for; `spid instances import` it, then release it",
                    false => "it is released already",
                });
            }
            accept(rows, by_hand(&row, act, now)?, &[Action::Release], now)
        })
    }

    /// Keeps that the buyer has come and taken the instance. Saying it again changes nothing, so whoever
    /// cannot know whether it was heard says it again.
    ///
    /// # Errors
    /// When there is no such instance, nobody can have it yet or any more, or another tenant has it.
    pub fn claim(&mut self, instance: i64, claim: &Claim, act: &Act) -> Mended<Claimed> {
        let target = self.target(instance)?;
        self.act(act, "claim", &target, |rows, now| take_possession(rows, instance, claim, now))
    }

    /// Takes over instances that lived before spid did. All or none. A tombstone that a marketplace's release left
    /// before its instance was known, and that no hook ever ran for, becomes the instance.
    ///
    /// # Errors
    /// When names are taken, missing or unusable; it says each and where it was read.
    pub fn import(&mut self, imports: &[Import], act: &Act) -> Mended<Imported> {
        let target = format!("{} instances", imports.len());
        self.act(act, "import", &target, |rows, now| {
            let mut wrong = Vec::new();
            let mut imported = Imported::default();
            for import in imports {
                match take_over(rows, import, now) {
                    Ok(was_tombstone) => {
                        imported.released_before.extend(was_tombstone.then(|| import.name().to_owned()));
                    }
                    Err(MendError::Impossible(fault)) => wrong.push(format!("{}: {fault}", import.origin)),
                    Err(error) => return Err(error),
                }
            }
            if wrong.is_empty() { Ok(imported) } else { impossible(wrong.join("\n")) }
        })
    }

    /// After a restore: holds every job that has not ended. What a marketplace or a hook has done since
    /// the copy was made is not in it, so nothing of it may run unseen. Returns how many.
    fn hold_unfinished(&mut self, from: &Path, act: &Act) -> Mended<usize> {
        self.act(act, "restore", &format!("everything, from {}", from.display()), |rows, now| {
            let live = schedule::JobState::ALL.into_iter().filter(|state| state.is_live()).collect();
            let filter = super::Filter { jobs: live, limit: usize::MAX, ..super::Filter::default() };
            let jobs = rows.list_jobs(&filter)?;
            for mut job in jobs.iter().cloned() {
                hold(&mut job, now);
                rows.put_job(&job)?;
            }
            Ok(jobs.iter().filter(|job| job.action != Action::SignOn).count())
        })
    }
}

/// Holds a job of a restored database, and says how it stood there.
fn hold(job: &mut JobRow, now: Timestamp) {
    if job.action == Action::SignOn {
        job.note = Some("the browser that waited for it has gone".to_owned());
        return ledger::end(job, schedule::JobState::Dropped, now);
    }
    // However it comes back, it gets no second schedule.
    if job.state == schedule::JobState::Dead {
        job.extra = Extra::Dead;
    }
    let before = job.note.as_deref().map(|note| format!("; before: {note}")).unwrap_or_default();
    job.note = Some(format!(
        "restored from a backup, where it was {}: it may have been done since the copy was made{before}",
        job.state.as_str()
    ));
    job.state = schedule::JobState::Held;
    job.lease_until = None;
}

fn find_job(rows: &dyn Read, id: Id) -> Mended<JobRow> {
    rows.job_by_id(id)?.ok_or_else(|| MendError::NotFound(format!("there is no job {id}")))
}

fn find_held(rows: &dyn Read, number: i64) -> Mended<(CallbackRow, Callback)> {
    let found = rows.callback(number)?;
    let (row, callback) =
        found.ok_or_else(|| MendError::NotFound(format!("there is no callback {number}")))?;
    if row.disposition != Disposition::Held {
        return impossible(format!("callback {number} is not held"));
    }
    Ok((row, callback))
}

/// Why what runs is left alone. Without a daemon a lease is not renewed; then nobody's end is to be waited for.
fn running(job: &JobRow, now: Timestamp) -> String {
    let action = job.action;
    match job.lease_until.filter(|until| *until < now) {
        None => format!("a hook is running for its {action} now; wait for its end"),
        Some(until) => format!(
            "its {action} was running when the daemon went away (nothing was heard of it since {until}), and what the hook did then is not known; start the daemon, which ends what is left of it and tries it again"
        ),
    }
}

fn check_completable(job: &JobRow, answer: &Answer, now: Timestamp) -> Mended<()> {
    let action = job.action;
    if job.state == schedule::JobState::Running {
        return impossible(running(job, now));
    }
    if job.state == schedule::JobState::Queued && job.attempts == 0 {
        return impossible(format!(
            "its {action} has not been tried yet, so nobody has done it; let the hook run first"
        ));
    }
    // Meant for something that is not owed any more: a create whose release has come, most likely.
    if matches!(action, Action::Expire | Action::Release) && *answer != Answer::default() {
        return impossible(format!("what it waits for is its {action}, and that answers nothing"));
    }
    Ok(())
}

fn retry(rows: &mut dyn Write, job: &mut JobRow, now: Timestamp) -> Mended<Option<Id>> {
    let ahead = ahead_of(rows, job)?;
    match (job.state, &ahead) {
        (schedule::JobState::Running, _) => return impossible(running(job, now)),
        (schedule::JobState::Done | schedule::JobState::Dropped | schedule::JobState::Cancelled, _) => {
            return impossible(format!("the job is {}; there is nothing to retry", job.state.as_str()));
        }
        (schedule::JobState::Queued, Some(ahead)) => {
            return impossible(format!("it waits for {}; mend that one", named(ahead)));
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
    if released && job.in_lane && job.action != Action::Release {
        return impossible("its instance is released, and stays so");
    }
    // An id that will not do must not be held against the next one.
    if job.state == schedule::JobState::Held {
        job.proposed_id = None;
    }
    job.extra = one_more(job);
    if let Some(mut row) = rows.callback_row(job.callback)?.filter(|row| row.dismissed_at.is_some()) {
        row.dismissed_at = None;
        rows.put_callback(&row)?;
    }
    let was_refused = job.state == schedule::JobState::Refused;
    job.state = schedule::JobState::Queued;
    job.due_at = now;
    job.ended_at = None;
    rows.put_job(job)?;
    if was_refused {
        bring_back_later_parts(rows, job, now)?;
    }
    Ok(ahead.map(|ahead| ahead.id))
}

/// A part that comes back brings those behind it along: half of a request is not what was asked.
fn bring_back_later_parts(rows: &mut dyn Write, job: &JobRow, now: Timestamp) -> Mended<()> {
    let Some(instance) = job.instance.filter(|_| job.in_lane) else { return Ok(()) };
    let all = super::Filter { instance: Some(instance), limit: usize::MAX, ..super::Filter::default() };
    let is_later = |part: &JobRow| {
        part.callback == job.callback
            && part.number > job.number
            && part.state == schedule::JobState::Cancelled
            && part.note.as_deref().is_some_and(|note| note.starts_with(ledger::LATER_PART))
    };
    let mut later: Vec<JobRow> = rows.list_jobs(&all)?.into_iter().filter(is_later).collect();
    later.sort_by_key(|part| part.number);
    for part in &mut later {
        (part.state, part.due_at, part.ended_at) = (schedule::JobState::Queued, now, None);
        rows.put_job(part)?;
    }
    if let (Some(last), Some(mut row)) = (later.last(), rows.callback_row(job.callback)?) {
        row.job = Some(last.number);
        rows.put_callback(&row)?;
    }
    Ok(())
}

fn named(job: &JobRow) -> String {
    format!("job {} ({}, {})", job.id, job.action, job.state.as_str())
}

/// The job of the lane that has to end before this one.
fn ahead_of(rows: &dyn Read, job: &JobRow) -> Mended<Option<JobRow>> {
    let Some(instance) = job.instance.filter(|_| job.in_lane) else { return Ok(None) };
    let first = rows.lane_jobs(instance)?.into_iter().next();
    Ok(first.filter(|first| first.number < job.number))
}

/// What the attempt is to the schedule. One that was extra for a dead job stays so: it must not find its
/// way back into a schedule that is spent.
fn one_more(job: &JobRow) -> Extra {
    match (job.state, job.extra) {
        (schedule::JobState::Dead | schedule::JobState::Refused, _) | (_, Extra::Dead) => Extra::Dead,
        _ if job.attempts == 0 => job.extra,
        _ => Extra::Waiting,
    }
}

/// A refused job has left its lane. It comes back only to a lane and an instance that are as it left
/// them: behind its back the marketplace may have asked again, and a second create would be a second instance.
fn check_refused(rows: &dyn Read, job: &JobRow) -> Mended<()> {
    let latest = rows.callback_row(job.callback)?.and_then(|row| row.job);
    if latest != Some(job.number) {
        return impossible("the marketplace has asked for it again, and a later job has taken its place");
    }
    let Some(instance) = job.instance.filter(|_| job.in_lane) else { return Ok(()) };
    if let Some(other) = rows.lane_jobs(instance)?.first() {
        return impossible(format!("{} has come since; mend that one", named(other)));
    }
    let changed = rows.instance(instance)?.map(|row| row.instance.updated_at);
    if changed > job.ended_at {
        return impossible(
            "its instance has changed since it was refused; have the marketplace ask for it again",
        );
    }
    Ok(())
}

fn approve(
    rows: &mut dyn Write,
    number: i64,
    instead: Option<Instead>,
    act: &Act,
    now: Timestamp,
) -> Mended<Approved> {
    let (row, callback) = find_held(rows, number)?;
    let asked: Vec<Action> = match (row.reason_code.as_deref(), instead) {
        (Some("conflicting-create"), None) if !is_made(rows, &row)? => callback.actions().collect(),
        (Some("conflicting-create"), Some(instead)) => asked_instead(rows, &row, &callback, instead)?,
        (Some("conflicting-create"), None) => {
            return impossible(
                "its orderBizId was bought before, so it cannot be created again; say with --as what it is instead (a conversion of a trial, a renew, an upgrade), settle it, or reject it and refund the order at the marketplace",
            );
        }
        (_, Some(_)) => return impossible("only a conflicting create can be something else"),
        (_, None) => callback.actions().collect(),
    };
    let acceptance = Acceptance {
        account: row.account.clone(),
        endpoint: row.endpoint.clone(),
        key_label: row.key_label.clone(),
        budget: row.budget,
        callback: Arc::new(callback),
        received_at: now,
        policy: Policy { unknown_instance: UnknownInstance::Adopt, ..Policy::default() },
        approved: true,
    };
    let approved = accept(rows, acceptance, &asked, now)?;
    if approved.callback != number {
        settle_held(rows, row, &approved, act, now)?;
        return Ok(approved);
    }
    // All of it was carried out before: then it is answered as that.
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

/// Refuses to settle a create that cannot be a repeat: it would succeed with the id of what another purchase made.
fn check_settled_create(rows: &dyn Read, row: &CallbackRow, callback: &Callback) -> Mended<()> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let Some(made) = found.filter(|row| row.told_id().is_some()) else {
        return impossible(
            "a create succeeds with an instance's id, and there is no instance that has one; approve it or reject it",
        );
    };
    let is_theirs = callback.buyer.is_some()
        && made.instance.buyer == callback.buyer
        && !lifecycle::is_anothers(&made.instance, callback);
    if is_theirs {
        return Ok(());
    }
    impossible(
        "the instance of that name was bought by another purchase, so this is no repeat; refund the order at the marketplace and reject it here",
    )
}

/// True if the instance that a held create is about has an id.
fn is_made(rows: &dyn Read, row: &CallbackRow) -> Mended<bool> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    Ok(found.is_some_and(|row| row.instance.id.is_some()))
}

/// The actions that a conflicting create really asks of the instance that is there.
fn asked_instead(
    rows: &dyn Read,
    row: &CallbackRow,
    callback: &Callback,
    instead: Instead,
) -> Mended<Vec<Action>> {
    let found = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let Some(instance) = found.map(|row| row.instance).filter(|instance| instance.id.is_some()) else {
        return impossible("nothing was made of the first purchase; approve it without --as");
    };
    if !lifecycle::is_by_the_same_buyer(&instance, callback) {
        return impossible(
            "another buyer bought the instance, and nothing of one buyer's is another's; refund the order at the marketplace and reject it here",
        );
    }
    if instance.state == State::Released {
        return impossible(
            "its instance is released, and stays so; refund the order at the marketplace and reject it here, or settle it",
        );
    }
    let until = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
    Ok(match instead {
        Instead::Renew if instance.differs_from(callback) => {
            return impossible(
                "the purchase changes SKU or quantities, too, and would be answered as done; say --as conversion",
            );
        }
        Instead::Upgrade if until > instance.expires_on || instance.trial != Some(false) => {
            return impossible(
                "the purchase buys a longer term, or a trial for good, and would be answered as done; say --as conversion",
            );
        }
        Instead::Renew => vec![Action::Renew],
        Instead::Upgrade => vec![Action::Upgrade],
        Instead::Conversion if instance.differs_from(callback) => vec![Action::Renew, Action::Upgrade],
        Instead::Conversion => vec![Action::Renew],
    })
}

/// What was held has become another callback: the same of an instance that is known by now. Then its deliveries
/// are the other's, which the marketplace waits for.
fn settle_held(
    rows: &mut dyn Write,
    mut held: CallbackRow,
    approved: &Approved,
    act: &Act,
    now: Timestamp,
) -> Mended<()> {
    if let Some(mut row) = rows.callback_row(approved.callback)? {
        row.deliveries += held.deliveries;
        row.last_received_at = row.last_received_at.max(held.last_received_at);
        rows.put_callback(&row)?;
    }
    held.disposition = Disposition::Recorded;
    held.told_at = held.told_at.or(Some(now));
    held.reason = Some(format!("approved by {} as callback {}: {}", act.who, approved.callback, act.why));
    Ok(rows.put_callback(&held)?)
}

fn accept(
    rows: &mut dyn Write,
    acceptance: Acceptance,
    asked: &[Action],
    now: Timestamp,
) -> Mended<Approved> {
    let id = Id::new(now).map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))?;
    let birth = Birth { id, lease_until: None, heard: false };
    let accepted = ledger::accept_for(rows, &acceptance, asked, birth)?;
    match accepted.row.disposition {
        Disposition::Held | Disposition::Refused => impossible(format!(
            "it cannot be done as things stand: {}; reject it, or do by hand what it asks for",
            accepted.row.reason.as_deref().unwrap_or("the hook has just refused it")
        )),
        Disposition::Job | Disposition::Recorded => {
            let job = accepted.row.job.map(|number| rows.job(number)).transpose()?.flatten();
            let job = job.filter(|job| job.state.is_live());
            Ok(Approved { callback: accepted.row.number, job: job.map(|job| job.id) })
        }
    }
}

/// A release nobody but an operator asked for.
fn by_hand(row: &InstanceRow, act: &Act, now: Timestamp) -> Mended<Acceptance> {
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
        budget: None,
        callback: Arc::new(callback),
        received_at: now,
        // Of what was never begun there is nothing to release, and that is a success.
        policy: Policy { unknown_instance: UnknownInstance::Succeed, ..Policy::default() },
        approved: true,
    })
}

fn take_possession(rows: &mut dyn Write, number: i64, claim: &Claim, now: Timestamp) -> Mended<Claimed> {
    let mut row = rows.instance(number)?.ok_or_else(|| MendError::NotFound("no such instance".to_owned()))?;
    if let Some(fault) = claim.tenant.as_deref().and_then(fault_of_tenant) {
        return impossible(format!("the tenant's name cannot be kept: {fault}"));
    }
    match row.instance.state {
        State::Pending => return impossible("it is not created yet, so nobody can have it"),
        State::Released => return impossible("it is released, and stays so"),
        State::Active | State::Frozen => {}
    }
    let same = claim.tenant.is_none() || claim.tenant == row.instance.tenant;
    match row.instance.claimed_at {
        Some(before) if same => return Ok(Claimed::Before(before)),
        Some(before) if !claim.replace => {
            let by = row.instance.tenant.as_deref().unwrap_or("somebody");
            return impossible(format!("`{by}` has claimed it at {before}"));
        }
        Some(_) | None => {}
    }
    // `updated_at` stays: what the marketplace asked before the claim is not overtaken by it.
    row.instance.claimed_at = Some(now);
    row.instance.tenant = claim.tenant.clone();
    rows.put_instance(&row)?;
    Ok(Claimed::Now)
}

fn fault_of_tenant(tenant: &str) -> Option<String> {
    let most = limits::NAME_MAX_BYTES;
    match tenant {
        empty if empty.trim().is_empty() => Some("it is empty".to_owned()),
        long if long.len() > most => Some(format!("it is longer than {most} bytes")),
        name => fault_of_name(name),
    }
}

/// The first text of an imported instance that cannot be shown as it is. Its names are looked at on their own.
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

/// The number of the tombstone that these names have, if they have one, and nothing was ever done for it.
fn bare_tombstone(rows: &dyn Read, account: &str, names: &[&String]) -> Mended<Option<i64>> {
    let mut found = None;
    for name in names {
        let Some((row, _)) = rows.instance_by_name(account, name)? else { continue };
        let is_bare = row.instance.tombstone && !row.instance.began;
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

/// Returns whether the instance lives, and was released before it was known here.
fn take_over(rows: &mut dyn Write, import: &Import, now: Timestamp) -> Mended<bool> {
    let mut instance = Instance { adopted: true, ..import.instance.clone() };
    if !import.dated {
        (instance.created_at, instance.updated_at) = (now, now);
    }
    if let Some((name, fault)) = fault_of_instance(&instance) {
        return impossible(format!("`{name}` cannot be used: {fault}"));
    }
    let own = [&instance.id, &instance.order_biz_id, &import.public_id].into_iter().flatten();
    let names: Vec<&String> = own.chain(&import.names).collect();
    // What was released before anything was made of it has no id.
    if names.is_empty() || instance.id.is_none() && instance.state != State::Released {
        return impossible("an instance without an id cannot be imported");
    }
    if instance.tombstone && instance.state != State::Released {
        return impossible("a tombstone is released");
    }
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
    if tombstone.is_some() || import.public_id.is_some() {
        let public_id = import.public_id.clone();
        rows.replace_instance(&InstanceRow {
            number,
            created_by: None,
            public_id,
            known_as: None,
            instance,
        })?;
    }
    Ok(was_released)
}

fn take_name(rows: &mut dyn Write, account: &str, name: &str, number: i64) -> Mended<()> {
    if let Some(fault) = ledger::fault_of_id(name) {
        return impossible(format!("`{name}` cannot be an instance's name: {fault}"));
    }
    if !rows.add_name(account, name, number)? {
        return impossible(format!("account `{account}` has an instance called `{name}` already"));
    }
    Ok(())
}

/// Copies the database at `path`, as it is at one commit, into a new file: also one that an older version of
/// spid left, so that there is a copy before the daemon brings it up to date.
///
/// # Errors
/// When there is none, it is not ours or newer than this program, or the file is there already or cannot be
/// written.
pub fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    Sqlite::open_backup(path)?.copy_to(to)
}

/// Puts a backup in the place of a database that nobody uses, all its unfinished work held. Until it is
/// in place nothing of it can be taken for a database.
///
/// # Errors
/// When a daemon runs, a database or what is left of one is there already, or the backup is damaged or
/// not one of ours.
pub fn restore(
    from: &Path,
    path: &Path,
    options: &StoreOptions,
    clock: Clock,
    act: &Act,
) -> Mended<Restored> {
    let backup = Sqlite::open_backup(from).map_err(|error| match error {
        StoreError::NotThere(from) => MendError::NotFound(format!("there is no `{}`", from.display())),
        error => error.into(),
    })?;
    let vacancy = Vacancy::at(path)?.map_err(|remains| {
        MendError::Impossible(format!(
            "`{}` is there; stop the daemon, and move the database away together with its -wal and -shm",
            remains.display()
        ))
    })?;
    backup.copy_to(vacancy.partial())?;
    Sqlite::modernise(vacancy.partial())?;
    let mut mender = Mender::open(vacancy.partial(), options, clock)?;
    let held = mender.hold_unfinished(from, act)?;
    let sealed = mender.backend.has_sealed()?;
    drop(mender);
    vacancy.fill()?;
    let sources = options.key_sources(path);
    let missing = sources.iter().filter_map(KeySource::path).find(|file| !file.exists());
    Ok(Restored { held, missing_key: missing.filter(|_| sealed).map(Path::to_owned) })
}
