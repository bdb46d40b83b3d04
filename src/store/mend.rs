//! What a person does by hand, and the record of it.
//!
//! A [`Mender`] opens the database beside a daemon or without one; the two are put in order by SQLite's
//! own lock, and a running daemon notices what was mended within one poll of its dispatcher. Every act
//! is one transaction: what it changes, and a row that says who did it and why. What cannot be done is
//! refused with the reason; nothing is half done.

use std::path::Path;

use jiff::Timestamp;

use super::ledger::{self, Acceptance, Birth, REJECTED};
use super::rows::{ActRow, Backend, CallbackRow, Disposition, InstanceRow, JobRow, Read, Write};
use super::sqlite::Sqlite;
use super::{StoreError, StoreOptions};
use crate::callback::{Action, Answer, Callback, InstanceRef};
use crate::clock::{Clock, Id};
use crate::instance::{Instance, Policy, Reason, State, UnknownInstance};
use crate::job::{self, Extra};
use crate::seal::Sealer;

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

type Mended<T> = Result<T, MendError>;

fn impossible<T>(text: impl Into<String>) -> Mended<T> {
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

/// What an approval led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// The callback that was decided: the held one, or one made from it.
    pub callback: i64,
    /// Its job, if it has one now.
    pub job: Option<Id>,
}

/// An instance that lived before spid did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// What is known of it; `created_at` and `updated_at` are set by the import.
    pub instance: Instance,
}

/// Opens a database to mend it.
pub struct Mender {
    backend: Sqlite,
    sealer: Sealer,
    clock: Clock,
}

impl Mender {
    /// Opens the database at `path`, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened, or its sealing key cannot be read.
    pub fn open(path: &Path, options: &StoreOptions, clock: Clock) -> Result<Mender, StoreError> {
        let backend = Sqlite::open_to_mend(path)?;
        let sealer = Sealer::from_file(&options.key_path(path))?;
        Ok(Mender { backend, sealer, clock })
    }

    /// Runs one act in a transaction of its own, and records it.
    fn act<T>(
        &mut self,
        act: &Act,
        word: &str,
        target: &str,
        work: impl FnOnce(&mut Sqlite, &Sealer, Timestamp) -> Mended<T>,
    ) -> Mended<T> {
        let now = self.clock.now();
        self.backend.begin()?;
        let done = work(&mut self.backend, &self.sealer, now).and_then(|value| {
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

    /// Makes a job due now, for one extra attempt: its schedule is neither spent nor doubled.
    ///
    /// # Errors
    /// When there is no such job, or it runs or has ended for good.
    pub fn retry(&mut self, id: Id, act: &Act) -> Mended<()> {
        self.act(act, "retry", &id.to_string(), |rows, _, now| {
            let mut job = find_job(rows, id)?;
            retry(rows, &mut job, now)
        })
    }

    /// Ends a job unrun. Those behind it in the lane go on.
    ///
    /// # Errors
    /// When there is no such job, or it runs or has ended.
    pub fn drop_job(&mut self, id: Id, act: &Act) -> Mended<()> {
        self.act(act, "drop", &id.to_string(), |rows, _, now| {
            let mut job = find_job(rows, id)?;
            if job.state == job::State::Running || !job.state.is_live() {
                return impossible(format!(
                    "the job is {}; only one that waits can be dropped",
                    job.state.as_str()
                ));
            }
            job.note = Some(format!("dropped by {}: {}", act.who, act.why));
            ledger::end(&mut job, job::State::Dropped, now);
            ledger::settle_lane_after(rows, &mut job, now)?;
            Ok(rows.put_job(&job)?)
        })
    }

    /// Finishes the work an instance waits for, with this answer: what a hook left pending, or what a
    /// person did by hand. Returns what was finished.
    ///
    /// # Errors
    /// When nothing waits, a hook runs for it now, or the answer will not do.
    pub fn complete(&mut self, instance: i64, answer: &Answer, act: &Act) -> Mended<Action> {
        let target = format!("instance {instance}");
        self.act(act, "complete", &target, |rows, sealer, now| {
            let Some((mut job, _)) = rows.lane(instance)?.into_iter().next() else {
                return impossible("nothing is owed for this instance");
            };
            if job.state == job::State::Running {
                return impossible("a hook is running for it now; wait for its end");
            }
            let split = answer.split();
            let seal = |secret| sealer.seal(job.id.as_bytes(), &secret).map_err(StoreError::from);
            job.sealed = split.secret.map(seal).transpose()?;
            job.answer = split.open;
            job.proposed_id = None;
            ledger::complete(rows, &mut job, answer.instance_id.as_deref(), now)?;
            if job.state != job::State::Done {
                return impossible(job.note.unwrap_or_default());
            }
            rows.put_job(&job)?;
            Ok(job.action)
        })
    }

    /// Decides a held callback again, as one that is wanted. `instead` says what a conflicting create is
    /// really: a renewal or an upgrade.
    ///
    /// # Errors
    /// When it is not held, or cannot be done however much it is wanted.
    pub fn approve(&mut self, number: i64, instead: Option<Action>, act: &Act) -> Mended<Approved> {
        let target = format!("callback {number}");
        self.act(act, "approve", &target, |rows, _, now| approve(rows, number, instead, act, now))
    }

    /// Refuses a held callback, and its redeliveries for as long as they would be held again.
    ///
    /// # Errors
    /// When it is not held.
    pub fn reject(&mut self, number: i64, act: &Act) -> Mended<()> {
        self.act(act, "reject", &format!("callback {number}"), |rows, _, _| {
            let (mut row, _) = find_held(rows, number)?;
            row.disposition = Disposition::Refused;
            row.reason_code = Some(REJECTED.to_owned());
            row.reason = Some(Reason::Rejected(format!("rejected by the seller: {}", act.why)).to_string());
            Ok(rows.put_callback(&row)?)
        })
    }

    /// Makes a release for an instance, as if the marketplace had asked for it.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn release(&mut self, instance: i64, act: &Act) -> Mended<Approved> {
        self.act(act, "release", &format!("instance {instance}"), |rows, _, now| {
            let row =
                rows.instance(instance)?.ok_or_else(|| MendError::NotFound("no such instance".to_owned()))?;
            if row.instance.state == State::Released {
                return impossible("it is released already");
            }
            accept(rows, by_hand(&row, act, now)?, now)
        })
    }

    /// Takes over instances that lived before spid did. All or none.
    ///
    /// # Errors
    /// When a name is taken or missing; it says which.
    pub fn import(&mut self, imports: &[Import], act: &Act) -> Mended<()> {
        let target = format!("{} instances", imports.len());
        self.act(act, "import", &target, |rows, _, now| {
            imports.iter().try_for_each(|import| take_over(rows, &import.instance, now))
        })
    }

    /// Copies the database, as it is at one commit, into a new file.
    ///
    /// # Errors
    /// When the file is there already or cannot be written.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.backend.copy_to(to)
    }

    /// After a restore: holds every job that has not ended. What a marketplace or a hook has done since
    /// the copy was made is not in it, so nothing of it may run unseen. Returns how many.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn hold_unfinished(&mut self, act: &Act) -> Mended<usize> {
        self.act(act, "restore", "all unfinished jobs", |rows, _, _| {
            let filter = super::Filter { limit: usize::MAX, ..super::Filter::default() };
            let live = rows.list_jobs(&filter)?.into_iter().filter(|job| job.state.is_live());
            let mut count = 0;
            for mut job in live {
                job.state = job::State::Held;
                job.lease_until = None;
                job.note =
                    Some("restored from a backup: it may have been done since the copy was made".to_owned());
                rows.put_job(&job)?;
                count += 1;
            }
            Ok(count)
        })
    }
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

fn retry(rows: &mut dyn Write, job: &mut JobRow, now: Timestamp) -> Mended<()> {
    job.extra = match job.state {
        job::State::Dead | job::State::Held | job::State::Refused => Extra::Dead,
        job::State::Queued | job::State::Pending => Extra::Waiting,
        job::State::Running => return impossible("a hook is running for it now; wait for its end"),
        job::State::Done | job::State::Dropped | job::State::Cancelled => {
            return impossible(format!("the job is {}; there is nothing to retry", job.state.as_str()));
        }
    };
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    if instance.is_some_and(|row| row.instance.state == State::Released) && job.action != Action::Release {
        return impossible("its instance is released, and stays so");
    }
    // An id that will not do must not be held against the next one.
    if job.state == job::State::Held {
        job.proposed_id = None;
    }
    job.state = job::State::Queued;
    job.due_at = now;
    job.ended_at = None;
    Ok(rows.put_job(job)?)
}

fn approve(
    rows: &mut dyn Write,
    number: i64,
    instead: Option<Action>,
    act: &Act,
    now: Timestamp,
) -> Mended<Approved> {
    let (row, callback) = find_held(rows, number)?;
    let callback = match (row.reason_code.as_deref(), instead) {
        (Some("conflicting-create"), Some(action)) => another(rows, &row, callback, action)?,
        (Some("conflicting-create"), None) => {
            return impossible(
                "the same was created before, so it cannot be created again; say what it is instead, a renew or an upgrade, or reject it",
            );
        }
        (_, Some(_)) => return impossible("only a conflicting create can be something else"),
        (_, None) => callback,
    };
    let acceptance = Acceptance {
        account: row.account.clone(),
        endpoint: row.endpoint.clone(),
        key_label: row.key_label.clone(),
        callback,
        received_at: now,
        policy: Policy { unknown_instance: UnknownInstance::Adopt, ..Policy::default() },
        approved: true,
    };
    let approved = accept(rows, acceptance, now)?;
    if approved.callback != number
        && let Some((mut held, _)) = rows.callback(number)?
    {
        held.disposition = Disposition::Recorded;
        held.told_at = held.told_at.or(Some(now));
        held.reason = Some(format!("approved by {} as callback {}: {}", act.who, approved.callback, act.why));
        rows.put_callback(&held)?;
    }
    Ok(approved)
}

/// What a conflicting create really is: the same order, asked of the instance that is there.
fn another(rows: &dyn Read, row: &CallbackRow, mut callback: Callback, action: Action) -> Mended<Callback> {
    if !matches!(action, Action::Renew | Action::Upgrade) {
        return impossible(format!("a create can be approved as a renew or an upgrade, not as a {action}"));
    }
    let instance = row.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let id = instance.and_then(|row| row.instance.id);
    callback.subject.instance_id = Some(id.ok_or_else(|| {
        MendError::Impossible(
            "its instance has no id yet; approve it once the instance is created".to_owned(),
        )
    })?);
    callback.action = action;
    Ok(callback)
}

fn accept(rows: &mut dyn Write, acceptance: Acceptance, now: Timestamp) -> Mended<Approved> {
    let id = Id::new(now).map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))?;
    let accepted = ledger::accept(rows, &acceptance, Birth { id, lease_until: None })?;
    match accepted.row.disposition {
        Disposition::Held | Disposition::Refused => impossible(format!(
            "it cannot be done as things stand: {}",
            accepted.row.reason.as_deref().unwrap_or("the lifecycle forbids it")
        )),
        Disposition::Job | Disposition::Recorded => {
            let job = accepted.row.job.map(|number| rows.job(number)).transpose()?.flatten();
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
        callback,
        received_at: now,
        policy: Policy::default(),
        approved: true,
    })
}

fn take_over(rows: &mut dyn Write, instance: &Instance, now: Timestamp) -> Mended<()> {
    let instance = Instance { adopted: true, created_at: now, updated_at: now, ..instance.clone() };
    let names = InstanceRef { instance_id: instance.id.clone(), order_biz_id: instance.order_biz_id.clone() };
    if instance.id.is_none() || names.names().next().is_none() {
        return impossible("an instance without an id cannot be imported");
    }
    let number = rows.add_instance(&instance)?;
    for name in names.names() {
        if !rows.add_name(&instance.account, name, number)? {
            return impossible(format!(
                "account `{}` has an instance called `{name}` already",
                instance.account
            ));
        }
    }
    if let Some(order) = &instance.order_id {
        rows.add_order(&instance.account, order, number)?;
    }
    Ok(())
}

/// Puts a backup in the place of a database that nobody uses, and holds all its unfinished work.
///
/// # Errors
/// When a daemon runs, a database is there already, or the backup is not one of ours.
pub fn restore(from: &Path, path: &Path, options: &StoreOptions, clock: Clock, act: &Act) -> Mended<usize> {
    if path.exists() {
        return impossible(format!(
            "`{}` is there already; stop the daemon and move it away first",
            path.display()
        ));
    }
    Sqlite::open_readonly(from)?.copy_to(path)?;
    Mender::open(path, options, clock)?.hold_unfinished(act)
}
