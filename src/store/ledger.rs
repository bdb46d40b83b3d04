//! The rules of keeping: accept, take, finish. Each is kept whole or not at all.
//!
//! Written once over [`Write`], so that every backend decides alike. Nothing here waits, logs or
//! knows a hook; what should happen after the commit is in what is returned.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::rows::{
    AttemptRow, CallbackRow, Disposition, Filter, InstanceRow, JobRow, Known, Read, Result, Write,
};
use super::{Retrying, Schedules, StoreError};
use crate::callback::{Action, Callback, Once};
use crate::clock::{Id, plus_millis};
use crate::instance::{
    self, Decision, Instance, LaneJob, Occurrence, Policy, Reason, Standing, State, Subject, Verdict, View,
    Wants,
};
use crate::job::{self, Extra, Next, Progress, Schedule};
use crate::{limits, text};

/// The reason code of what an operator rejected: [`Reason::Rejected`]'s.
pub(super) const REJECTED: &str = "rejected";

/// What is told of a job that is held: why it is held is for the seller, and may name another instance.
const HELD: &str = "its instance needs the seller's decision";

/// A verified callback to be kept.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// The account it is for.
    pub account: String,
    /// The endpoint it came through.
    pub endpoint: String,
    /// The label of the key that signed it.
    pub key_label: String,
    /// How often the marketplace calls before it gives up; `None` when that is not counted.
    pub budget: Option<u32>,
    /// What it asks.
    pub callback: Arc<Callback>,
    /// When it came.
    pub received_at: Timestamp,
    /// What the seller decided beforehand.
    pub policy: Policy,
    /// Whether an operator has looked at it and wants it done. Then it is no delivery, and counts as none.
    pub approved: bool,
}

/// How a new job is born.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Birth {
    /// The id it gets.
    pub(crate) id: Id,
    /// Whether it may be leased at once, until then.
    pub(crate) lease_until: Option<Timestamp>,
    /// Whether whoever asks is still there to hear the answer: only then can it count as told.
    pub(crate) heard: bool,
}

/// What is to be answered, as far as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is done.
    Applied(Box<Stored>),
    /// It is not done.
    NotYet,
    /// It was refused: the stable word, and the sentence.
    Refused(&'static str, String),
    /// It waits for an operator.
    Held(String),
    /// It will be known when this job's attempt ends.
    Wait(i64),
}

/// A stored answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) instance_id: Option<String>,
    pub(crate) open: Option<String>,
    pub(crate) sealed: Option<Vec<u8>>,
    /// The job it is sealed for.
    pub(crate) sealed_for: Option<Id>,
    /// When the marketplace was first told.
    pub(crate) told_at: Option<Timestamp>,
}

/// What became of an accepted callback.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) row: CallbackRow,
    pub(crate) told: Told,
    /// The id by which the marketplace calls the instance, where it chose that itself.
    pub(crate) public_id: Option<String>,
    /// A job born leased.
    pub(crate) taken: Option<Box<Taken>>,
    /// Whether a job was made that somebody else must take, or one was brought forward.
    pub(crate) wakes: bool,
    /// Whether somebody should look.
    pub(crate) alert: bool,
}

/// A job that belongs to a dispatcher until its lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The job, its attempt counted.
    pub job: JobRow,
    /// What is to be done.
    pub callback: Arc<Callback>,
    /// Where it came from.
    pub origin: CallbackRow,
    /// The instance as applied now.
    pub instance: Option<Instance>,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// Done; the answer taken apart.
    Done { instance_id: Option<String>, open: Option<String>, sealed: Option<Vec<u8>> },
    /// Not done; again.
    Retry { error: String, after_ms: Option<i64> },
    /// The hook said no.
    Refused { reason: String },
    /// The hook will finish later.
    Pending { note: String },
    /// It was not tried, or was cut short by our own stop: it is due at once and spends nothing.
    GivenBack,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) job: i64,
    /// The attempt that ended: an older one than the job's last is fenced off.
    pub(crate) attempt: u32,
    /// What was to be done, by whoever has it at hand: what a marketplace said is history and does not change
    /// while its job runs.
    pub(crate) callback: Option<Arc<Callback>>,
    pub(crate) ending: Ending,
    pub(crate) schedules: Schedules,
    pub(crate) now: Timestamp,
}

/// What a finish led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The job ended or waits; this may be told.
    Kept {
        state: job::State,
        told: Told,
        note: Option<String>,
        /// Whether something may be due now, or will be sooner than anybody knew.
        wakes: bool,
    },
    /// The lease was lost; nothing was changed.
    Fenced,
}

/// What was read to decide one callback.
struct Judged {
    instance: Option<InstanceRow>,
    lane: Vec<(JobRow, Callback)>,
    /// The latest occurrence like it.
    latest: Option<CallbackRow>,
    /// That occurrence's job.
    job: Option<JobRow>,
    verdict: Verdict,
}

fn judge(rows: &dyn Read, acceptance: &Acceptance) -> Result<Judged> {
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    judge_about(rows, acceptance, found)
}

fn judge_about(rows: &dyn Read, acceptance: &Acceptance, found: Option<Known>) -> Result<Judged> {
    let (instance, lane) = found.map_or((None, Vec::new()), |(row, lane)| (Some(row), lane));
    let occurrences = rows.occurrences(&key_of(acceptance, instance.as_ref()))?;
    let ever_told = occurrences.iter().any(|(row, _)| row.told_at.is_some());
    let (latest, job) =
        occurrences.into_iter().next_back().map_or((None, None), |(row, job)| (Some(row), job));
    let occurrence = latest.as_ref().map(|row| Occurrence {
        told: row.told_at.is_some(),
        ever_told,
        standing: standing(row, job.as_ref()),
    });
    let lane_view: Vec<LaneJob> = lane.iter().map(lane_job).collect();
    let view = View {
        instance: instance.as_ref().map(|row| &row.instance),
        lane: &lane_view,
        occurrence: occurrence.as_ref(),
        policy: acceptance.policy,
        approved: acceptance.approved,
        now: acceptance.received_at,
    };
    let verdict = instance::decide(view, &acceptance.callback);
    Ok(Judged { instance, lane, latest, job, verdict })
}

fn find_instance(rows: &dyn Read, account: &str, callback: &Callback) -> Result<Option<Known>> {
    for name in callback.subject.names() {
        if let Some(known) = rows.instance_by_name(account, name)? {
            return Ok(Some(known));
        }
    }
    if callback.subject.names().next().is_some() {
        return Ok(None);
    }
    let Some(order) = callback.order_id.as_deref().filter(|order| !order.is_empty()) else {
        return Ok(None);
    };
    match rows.instances_by_order(account, order)?.as_slice() {
        [only] => match rows.instance(*only)? {
            Some(row) => Ok(Some((row, rows.lane(*only)?))),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

fn key_of(acceptance: &Acceptance, instance: Option<&InstanceRow>) -> [u8; 16] {
    let callback = &acceptance.callback;
    // What is said of another order must never count as said of this instance.
    let instance =
        instance.filter(|row| !instance::is_anothers(&row.instance, callback)).map(|row| row.number);
    let named = callback.subject.names().next().or(callback.order_id.as_deref()).unwrap_or_default();
    let subject = instance.map_or(Subject::Named(named), Subject::Instance);
    instance::occurrence_key(&acceptance.account, subject, callback)
}

/// Where an occurrence stands, and its job.
fn standing(row: &CallbackRow, job: Option<&JobRow>) -> Standing {
    // What was held or refused since still has the job it had.
    match (row.disposition, job) {
        (Disposition::Recorded, _) => Standing::Recorded,
        (Disposition::Refused, _) if row.reason_code.as_deref() == Some(REJECTED) => {
            Standing::Rejected { reason: row.reason.clone().unwrap_or_default() }
        }
        // What was told was done; its job has been pruned.
        (_, None) if row.told_at.is_some() && row.job.is_some() => Standing::Recorded,
        (_, None) => Standing::Void,
        (_, Some(job)) => match job.state {
            job::State::Done => Standing::Done(job.number),
            job::State::Cancelled => Standing::Superseded,
            job::State::Refused => Standing::RefusedByHook {
                at: job.ended_at.unwrap_or(job.created_at),
                reason: job.note.clone().unwrap_or_default(),
            },
            live if live.is_live() => Standing::Open(job.number),
            _ => Standing::Void,
        },
    }
}

fn lane_job((job, callback): &(JobRow, Callback)) -> LaneJob {
    LaneJob {
        job: job.number,
        action: job.action,
        running: job.state == job::State::Running,
        dead: job.state == job::State::Dead,
        wants: Wants::of(callback),
    }
}

/// The answer to a repeat of something told, if that is what this is: read only, nothing changes.
pub(crate) fn peek(rows: &dyn Read, acceptance: &Acceptance) -> Result<Option<Accepted>> {
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    if found.is_none() && acceptance.callback.action == Action::Create {
        return Ok(None);
    }
    let judged = judge_about(rows, acceptance, found)?;
    if judged.verdict.decision != Decision::Repeat || judged.verdict.alert {
        return Ok(None);
    }
    let Some(row) = judged.latest.as_ref().filter(|row| row.told_at.is_some()) else { return Ok(None) };
    let stored = stored_answer(rows, row, judged.instance.as_ref(), judged.job.as_ref())?;
    Ok(Some(Accepted {
        row: row.clone(),
        told: Told::Applied(Box::new(stored)),
        public_id: judged.instance.and_then(|row| row.public_id),
        taken: None,
        wakes: false,
        alert: false,
    }))
}

/// Keeps a callback: reads, decides, and writes callback, instance and job together.
///
/// A copy of a request that was accepted before is none: nothing is kept of it.
pub(crate) fn accept(rows: &mut dyn Write, acceptance: &Acceptance, birth: Birth) -> Result<Accepted> {
    if let Some(once) = &acceptance.callback.once {
        spend(rows, &acceptance.account, once, acceptance.received_at)?;
    }
    let judged = judge(rows, acceptance)?;
    for number in &judged.verdict.cancels {
        cancel(rows, *number, acceptance.callback.action, acceptance.received_at)?;
    }
    let birth = Birth { lease_until: birth.lease_until.filter(|_| is_first(&judged)), ..birth };
    let instance = settle_instance(rows, acceptance, &judged, birth)?;
    let mut row = callback_row(acceptance, &judged, instance.as_ref());
    let mut made = None;
    if let Decision::Run | Decision::RunBeside { .. } = judged.verdict.decision {
        made = Some(new_job(acceptance, &judged, instance.as_ref(), birth));
    }
    decide_row(&mut row, &judged, acceptance);
    if let Some(job) = &mut made {
        // Known beforehand, so that the callback is written once.
        job.number = rows.next_job()?;
        row.job = Some(job.number);
    }
    let is_new = row.number == 0;
    if is_new {
        row.number = rows.add_callback(&row, &acceptance.callback)?;
    }
    let added = is_new.then(|| row.clone());
    let mut accepted = Accepted {
        row,
        told: Told::NotYet,
        public_id: instance.as_ref().and_then(|row| row.public_id.clone()),
        taken: None,
        wakes: false,
        alert: judged.verdict.alert,
    };
    if let Some(job) = made {
        begin_job(rows, &mut accepted, job, acceptance, instance.as_ref())?;
    } else {
        accepted.told = tell(rows, &mut accepted, &judged, instance.as_ref(), acceptance.received_at)?;
    }
    // An operator who approves is told; the marketplace is not, before it calls again.
    if matches!(accepted.told, Told::Applied(_)) && birth.heard {
        mark_told(rows, &mut accepted.row, instance.as_ref(), acceptance)?;
    }
    if added.as_ref() != Some(&accepted.row) {
        rows.put_callback(&accepted.row)?;
    }
    Ok(accepted)
}

/// Keeps the mark of a request for as long as a copy could pass for new, and somewhat longer: the clock may
/// be set back. What has outlived that is forgotten on the way, so they are as many as came in that time.
pub(crate) fn spend(rows: &mut dyn Write, account: &str, once: &Once, now: Timestamp) -> Result<()> {
    rows.forget_once(plus_millis(now, -limits::NONCE_GRACE_MS))?;
    let mut mark = [0; 16];
    for (slot, byte) in mark.iter_mut().zip(Sha256::digest(once.nonce.as_bytes())) {
        *slot = byte;
    }
    if rows.add_once(account, &mark, once.until)? { Ok(()) } else { Err(StoreError::Replayed) }
}

/// Whether a job that is made now has nothing before it in its lane.
fn is_first(judged: &Judged) -> bool {
    let in_lane = judged.verdict.decision == Decision::Run;
    !in_lane || judged.lane.iter().all(|(job, _)| judged.verdict.cancels.contains(&job.number))
}

pub(super) fn cancel(rows: &mut dyn Write, number: i64, by: Action, now: Timestamp) -> Result<()> {
    if let Some(mut job) = rows.job(number)? {
        job.note = Some(format!("made unnecessary by a later {by}"));
        end(&mut job, job::State::Cancelled, now);
        rows.put_job(&job)?;
    }
    Ok(())
}

pub(super) fn end(job: &mut JobRow, state: job::State, now: Timestamp) {
    job.state = state;
    job.lease_until = None;
    job.ended_at = Some(now);
}

/// The instance the callback is about once it is kept: made, described anew, or entombed.
fn settle_instance(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    judged: &Judged,
    birth: Birth,
) -> Result<Option<InstanceRow>> {
    let callback = &acceptance.callback;
    let runs = judged.verdict.decision == Decision::Run;
    let begins = runs && birth.lease_until.is_some() && callback.action == Action::Create;
    let now = acceptance.received_at;
    let row = match (&judged.instance, runs || judged.verdict.entombs) {
        (Some(row), true) => {
            let mut row = row.clone();
            if judged.verdict.entombs {
                row.instance.state = State::Released;
            } else if callback.action == Action::Create {
                row.instance.describe(callback);
                row.instance.state = State::Pending;
                row.instance.tombstone = false;
                row.instance.began |= begins;
                name_publicly(rows, &mut row, callback)?;
            }
            row.instance.updated_at = now;
            rows.put_instance(&row)?;
            Some(row)
        }
        (None, true) => Some(new_instance(rows, acceptance, judged, begins)?),
        (known, false) => known.clone(),
    };
    if let (Some(row), Some(order), true) = (&row, callback.order_id.as_deref(), runs) {
        rows.add_order(&acceptance.account, order, row.number)?;
    }
    Ok(row)
}

/// `begins`: its create is attempted at once.
fn new_instance(
    rows: &mut dyn Write,
    acceptance: &Acceptance,
    judged: &Judged,
    begins: bool,
) -> Result<InstanceRow> {
    let callback = &acceptance.callback;
    let begin = match callback.action {
        Action::Create | Action::Release if !callback.made_elsewhere => Instance::pending,
        _ => Instance::adopted,
    };
    let mut instance = begin(callback, &acceptance.account, &acceptance.endpoint, acceptance.received_at);
    if judged.verdict.entombs {
        instance.state = State::Released;
        instance.tombstone = true;
    }
    instance.began |= begins;
    let number = rows.add_instance(&instance)?;
    for name in callback.subject.names() {
        rows.add_name(&acceptance.account, name, number)?;
    }
    let mut row = InstanceRow { number, created_by: None, public_id: None, instance };
    name_publicly(rows, &mut row, callback)?;
    if row.public_id.is_some() {
        rows.put_instance(&row)?;
    }
    Ok(row)
}

/// Gives an instance the id its marketplace wants to call it by: the first one, for good. One that another
/// instance has already is no name; then the instance's own id is told.
fn name_publicly(rows: &mut dyn Write, row: &mut InstanceRow, callback: &Callback) -> Result<()> {
    if let (Action::Create, Some(id), None) = (callback.action, &callback.public_id, &row.public_id)
        && rows.add_name(&row.instance.account, id, row.number)?
    {
        row.public_id = Some(id.clone());
    }
    Ok(())
}

/// The row this delivery counts on: the open occurrence's, the repeated one's, or a new one.
fn callback_row(acceptance: &Acceptance, judged: &Judged, instance: Option<&InstanceRow>) -> CallbackRow {
    let repeats = matches!(
        judged.verdict.decision,
        Decision::Repeat | Decision::Join(_) | Decision::Record | Decision::Refuse(Reason::SignOnUsed)
    );
    let number = instance.map(|row| row.number);
    // What was refused for want of an instance stays a row of its own once there is one.
    let elsewhere = |row: &CallbackRow| judged.verdict.decision == Decision::Run && row.instance != number;
    let counted = judged.latest.as_ref().filter(|row| row.told_at.is_none() || repeats);
    if let Some(row) = counted.filter(|row| !elsewhere(row)) {
        let mut row = row.clone();
        if !acceptance.approved {
            row.deliveries += 1;
            row.last_received_at = acceptance.received_at;
        }
        return row;
    }
    CallbackRow {
        number: 0,
        account: acceptance.account.clone(),
        endpoint: acceptance.endpoint.clone(),
        key_label: acceptance.key_label.clone(),
        occurrence: key_of(acceptance, instance),
        instance: number,
        job: None,
        action: acceptance.callback.action,
        disposition: Disposition::Recorded,
        reason_code: None,
        reason: None,
        received_at: acceptance.received_at,
        last_received_at: acceptance.received_at,
        deliveries: u64::from(!acceptance.approved),
        budget: acceptance.budget,
        told_at: None,
    }
}

/// Writes the decision into the row. A row that was told is history: it only counts.
fn decide_row(row: &mut CallbackRow, judged: &Judged, acceptance: &Acceptance) {
    if row.told_at.is_some() {
        return;
    }
    let decision = &judged.verdict.decision;
    let reason = match decision {
        Decision::Refuse(reason) | Decision::Hold(reason) => Some(reason),
        _ => None,
    };
    row.disposition = match decision {
        Decision::Run | Decision::RunBeside { .. } | Decision::Join(_) => Disposition::Job,
        // The hook's own refusal stands in its job.
        Decision::Refuse(Reason::Hook(_)) => row.disposition,
        Decision::Record | Decision::Repeat => Disposition::Recorded,
        Decision::Refuse(_) => Disposition::Refused,
        Decision::Hold(_) => Disposition::Held,
    };
    row.reason_code = reason.map(|reason| reason.code().to_owned());
    row.reason = reason.map(Reason::to_string);
    if let Decision::Join(job) = decision {
        row.job = Some(*job);
    }
    if *decision == (Decision::RunBeside { told: true }) && !acceptance.approved {
        row.told_at = Some(acceptance.received_at);
    }
}

fn new_job(acceptance: &Acceptance, judged: &Judged, instance: Option<&InstanceRow>, birth: Birth) -> JobRow {
    let in_lane = judged.verdict.decision == Decision::Run;
    let lease_until = birth.lease_until;
    let now = acceptance.received_at;
    JobRow {
        number: 0,
        id: birth.id,
        callback: 0,
        instance: instance.map(|row| row.number),
        in_lane,
        action: acceptance.callback.action,
        state: if lease_until.is_some() { job::State::Running } else { job::State::Queued },
        attempts: u32::from(lease_until.is_some()),
        step: 0,
        extra: Extra::No,
        due_at: now,
        lease_until,
        attempted_at: None,
        note: None,
        answer: None,
        sealed: None,
        proposed_id: None,
        created_at: now,
        ended_at: None,
    }
}

fn begin_job(
    rows: &mut dyn Write,
    accepted: &mut Accepted,
    mut job: JobRow,
    acceptance: &Acceptance,
    instance: Option<&InstanceRow>,
) -> Result<()> {
    job.callback = accepted.row.number;
    if rows.add_job(&job)? != job.number {
        return Err(StoreError::Inconsistent("a job has another number than it was to have"));
    }
    accepted.told = match accepted.row.told_at {
        Some(_) => Told::Applied(Box::default()),
        None => Told::Wait(job.number),
    };
    if job.state != job::State::Running {
        accepted.wakes = true;
        return Ok(());
    }
    accepted.taken = Some(Box::new(Taken {
        job,
        callback: acceptance.callback.clone(),
        origin: accepted.row.clone(),
        instance: instance.map(|row| row.instance.clone()),
    }));
    Ok(())
}

/// From the first create attempt on, something may exist at the ISV's side.
fn note_began(rows: &mut dyn Write, job: &JobRow, instance: Option<&mut InstanceRow>) -> Result<()> {
    match instance {
        Some(row) if job.action == Action::Create && !row.instance.began => {
            row.instance.began = true;
            rows.put_instance(row)
        }
        _ => Ok(()),
    }
}

/// What is answered to a callback that made no job of its own.
fn tell(
    rows: &mut dyn Write,
    accepted: &mut Accepted,
    judged: &Judged,
    instance: Option<&InstanceRow>,
    now: Timestamp,
) -> Result<Told> {
    let id = instance.and_then(InstanceRow::told_id);
    Ok(match &judged.verdict.decision {
        Decision::Join(number) => join(rows, accepted, *number, instance, now)?,
        Decision::Repeat => {
            Told::Applied(Box::new(stored_answer(rows, &accepted.row, instance, judged.job.as_ref())?))
        }
        Decision::Record => Told::Applied(Box::new(Stored { instance_id: id, ..Stored::default() })),
        Decision::Hold(Reason::ConflictingCreate) if id.is_some() => {
            Told::Applied(Box::new(create_answer(rows, instance, None)?))
        }
        Decision::Refuse(Reason::NotReady) => refused_create(rows, instance)?,
        Decision::Refuse(reason) => Told::Refused(reason.code(), reason.told()),
        Decision::Hold(reason) => Told::Held(reason.told()),
        Decision::Run | Decision::RunBeside { .. } => Told::NotYet,
    })
}

/// What is told of an instance that is not there yet; that nobody makes it, if its hook has refused.
fn refused_create(rows: &dyn Read, instance: Option<&InstanceRow>) -> Result<Told> {
    let not_ready = Told::Refused(Reason::NotReady.code(), Reason::NotReady.told());
    let Some(row) = instance else { return Ok(not_ready) };
    let filter =
        Filter { instance: Some(row.number), limit: limits::LIST_DEFAULT_COUNT, ..Filter::default() };
    let mut jobs = rows.list_jobs(&filter)?.into_iter();
    let create = jobs.find(|job| job.action == Action::Create && job.state == job::State::Refused);
    let waits = rows.has_lane(row.number)?;
    Ok(match create.filter(|_| !waits) {
        Some(job) => Told::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        None => not_ready,
    })
}

/// Joins a job, bringing a waiting or dead one forward.
fn join(
    rows: &mut dyn Write,
    accepted: &mut Accepted,
    number: i64,
    instance: Option<&InstanceRow>,
    now: Timestamp,
) -> Result<Told> {
    let job = rows.job(number)?.ok_or(StoreError::Inconsistent("a callback's job is missing"))?;
    Ok(match job.state {
        job::State::Done => Told::Applied(Box::new(answer_of(&job, instance, accepted.row.told_at))),
        job::State::Running => Told::Wait(number),
        job::State::Queued | job::State::Dead => {
            accepted.wakes = bring_forward(rows, job, now)?;
            Told::Wait(number)
        }
        job::State::Held => Told::Held(HELD.to_owned()),
        job::State::Refused => Told::Refused(Reason::HOOK, job.note.unwrap_or_default()),
        job::State::Pending | job::State::Dropped | job::State::Cancelled => Told::NotYet,
    })
}

fn bring_forward(rows: &mut dyn Write, mut job: JobRow, now: Timestamp) -> Result<bool> {
    let due = job::forward_due(job.attempted_at, now);
    if job.state == job::State::Queued && (job.attempts == 0 || job.due_at <= due) {
        return Ok(false);
    }
    job.extra = match job.state {
        job::State::Dead => Extra::Dead,
        _ if job.extra == Extra::Dead => Extra::Dead,
        _ => Extra::Waiting,
    };
    job.state = job::State::Queued;
    job.due_at = due;
    rows.put_job(&job)?;
    Ok(true)
}

/// The answer to be repeated. `job` is the occurrence's own, which has been read already.
fn stored_answer(
    rows: &dyn Read,
    row: &CallbackRow,
    instance: Option<&InstanceRow>,
    job: Option<&JobRow>,
) -> Result<Stored> {
    if matches!(row.action, Action::Create | Action::Query) {
        return create_answer(rows, instance, job.map(|job| (job, row)));
    }
    // A job that is not there any more had nothing to answer: that is why it could be pruned.
    Ok(match row.job.and(job) {
        Some(job) if job.state == job::State::Done => answer_of(job, instance, row.told_at),
        Some(_) => Stored::default(),
        None => Stored { instance_id: instance.and_then(InstanceRow::told_id), ..Stored::default() },
    })
}

/// The answer of the job that created the instance; `known` is a job that may be it, with its callback.
fn create_answer(
    rows: &dyn Read,
    instance: Option<&InstanceRow>,
    known: Option<(&JobRow, &CallbackRow)>,
) -> Result<Stored> {
    let Some(row) = instance else { return Ok(Stored::default()) };
    let Some(creator) = row.created_by else {
        return Ok(Stored { instance_id: row.told_id(), ..Stored::default() });
    };
    if let Some((job, callback)) =
        known.filter(|(job, callback)| job.number == creator && job.callback == callback.number)
    {
        return Ok(answer_of(job, instance, callback.told_at));
    }
    let Some(job) = rows.job(creator)? else {
        return Ok(Stored { instance_id: row.instance.id.clone(), ..Stored::default() });
    };
    let told_at = rows.callback_row(job.callback)?.and_then(|row| row.told_at);
    Ok(answer_of(&job, instance, told_at))
}

fn answer_of(job: &JobRow, instance: Option<&InstanceRow>, told_at: Option<Timestamp>) -> Stored {
    Stored {
        instance_id: instance.and_then(InstanceRow::told_id),
        open: job.answer.clone(),
        sealed: job.sealed.clone(),
        sealed_for: Some(job.id),
        told_at,
    }
}

/// Records that success is told now. A conflicting create that is told the id tells the create, too, and so
/// does a query, which is told the create's answer.
fn mark_told(
    rows: &mut dyn Write,
    row: &mut CallbackRow,
    instance: Option<&InstanceRow>,
    acceptance: &Acceptance,
) -> Result<()> {
    let now = acceptance.received_at;
    if row.disposition != Disposition::Held {
        row.told_at = row.told_at.or(Some(now));
        if row.action != Action::Query {
            return Ok(());
        }
    }
    let created_by = instance.and_then(|row| row.created_by);
    let Some(job) = created_by.map(|number| rows.job(number)).transpose()?.flatten() else { return Ok(()) };
    if let Some(mut create) = rows.callback_row(job.callback)? {
        create.told_at = create.told_at.or(Some(now));
        rows.put_callback(&create)?;
    }
    Ok(())
}

/// Takes up to `limit` due jobs, each the first of its lane, and counts an attempt on each. Jobs whose
/// lease has ended come back first; not those in `held`, by number and attempt: the taker runs them
/// itself, and a lease that ended all the same tells of a clock that jumped or a disk that was full.
/// Returns what was taken, and how many leases had ended.
pub(crate) fn take(
    rows: &mut dyn Write,
    limit: usize,
    held: &[(i64, u32)],
    lease_until: Timestamp,
    schedules: &Schedules,
    now: Timestamp,
) -> Result<(Vec<Taken>, usize)> {
    let ended = recover(rows, schedules, now, Some(now), |job| !held.contains(&(job.number, job.attempts)))?;
    let mut taken = Vec::new();
    for mut job in rows.due(now, limit)? {
        job.state = job::State::Running;
        job.attempts += 1;
        job.lease_until = Some(lease_until);
        rows.put_job(&job)?;
        let (origin, callback) =
            rows.callback(job.callback)?.ok_or(StoreError::Inconsistent("a job's callback is missing"))?;
        let mut instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
        note_began(rows, &job, instance.as_mut())?;
        let callback = Arc::new(callback);
        taken.push(Taken { job, callback, origin, instance: instance.map(|row| row.instance) });
    }
    Ok((taken, ended))
}

/// Gives back the running jobs that nobody works on any more: those whose lease ended before an instant, or
/// all; of these, those that are `lost`. Returns how many.
pub(crate) fn recover(
    rows: &mut dyn Write,
    schedules: &Schedules,
    now: Timestamp,
    ended_before: Option<Timestamp>,
    lost: impl Fn(&JobRow) -> bool,
) -> Result<usize> {
    let mut count = 0;
    for mut job in rows.running(ended_before)? {
        if !lost(&job) {
            continue;
        }
        note_attempt(rows, &job, "lost", "the daemon stopped, or the lease ran out", now)?;
        if job.action == Action::SignOn {
            job.note = Some("the daemon stopped while the browser waited".to_owned());
            end(&mut job, job::State::Dropped, now);
        } else {
            let progress = Progress { step: job.step, extra: job.extra };
            let next = schedule_of(rows, &job, schedules)?.lost(progress, now);
            let note = "the last attempt was lost: the daemon stopped, or the lease ran out";
            follow(&mut job, next, note.to_owned(), now);
        }
        settle_lane_after(rows, &mut job, now)?;
        rows.put_job(&job)?;
        count += 1;
    }
    Ok(count)
}

/// The schedule this job has, as things stand now.
fn schedule_of(rows: &dyn Read, job: &JobRow, schedules: &Schedules) -> Result<Schedule> {
    if schedules.chosen.is_none() {
        return Ok(schedules.usual.clone());
    }
    let (origin, callback) =
        rows.callback(job.callback)?.ok_or(StoreError::Inconsistent("a job's callback is missing"))?;
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    Ok(schedules.of(&Retrying {
        endpoint: &origin.endpoint,
        callback: &callback,
        instance: instance.as_ref().map(|row| &row.instance),
    }))
}

fn note_attempt(rows: &mut dyn Write, job: &JobRow, ending: &str, note: &str, now: Timestamp) -> Result<()> {
    rows.add_attempt(&AttemptRow {
        job: job.number,
        attempt: job.attempts,
        ended_at: now,
        ending: ending.to_owned(),
        note: note.to_owned(),
    })
}

fn follow(job: &mut JobRow, next: Next, note: String, now: Timestamp) {
    job.lease_until = None;
    job.attempted_at = Some(now);
    job.note = Some(note);
    match next {
        Next::Wait { due_at, progress } => {
            job.state = job::State::Queued;
            job.due_at = due_at;
            job.step = progress.step;
            job.extra = progress.extra;
        }
        Next::Dead => {
            job.state = job::State::Dead;
            job.extra = Extra::No;
        }
    }
}

/// Keeps what was learned of a job's callback while an attempt at it ran, and with a create what it says of
/// the instance. `None`: the attempt has lost its lease, and nothing was changed.
pub(crate) fn learn(
    rows: &mut dyn Write,
    (number, attempt): (i64, u32),
    callback: &Callback,
    now: Timestamp,
) -> Result<Option<Instance>> {
    let Some(job) = running_attempt(rows, number, attempt)? else { return Ok(None) };
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let mut row = instance.ok_or(StoreError::Inconsistent("an order without its instance"))?;
    rows.put_body(job.callback, callback)?;
    if job.action == Action::Create {
        row.instance.describe(callback);
        row.instance.updated_at = now;
        rows.put_instance(&row)?;
    }
    Ok(Some(row.instance))
}

/// Prolongs the leases of these attempts. Those that are no longer the job's are passed over.
pub(crate) fn extend(rows: &mut dyn Write, held: &[(i64, u32)], until: Timestamp) -> Result<()> {
    for (number, attempt) in held {
        if let Some(mut job) = running_attempt(rows, *number, *attempt)? {
            job.lease_until = Some(until);
            rows.put_job(&job)?;
        }
    }
    Ok(())
}

fn running_attempt(rows: &dyn Read, number: i64, attempt: u32) -> Result<Option<JobRow>> {
    let job = rows.job(number)?;
    Ok(job.filter(|job| job.state == job::State::Running && job.attempts == attempt))
}

/// Keeps how an attempt ended. `told` are the callbacks whose senders wait for it and hear it now.
pub(crate) fn finish(rows: &mut dyn Write, finish: &Finish, told: &[i64]) -> Result<Finished> {
    let Some(mut job) = running_attempt(rows, finish.job, finish.attempt)? else {
        remember_id(rows, finish)?;
        return Ok(Finished::Fenced);
    };
    job.attempted_at = Some(finish.now);
    let kept = match &finish.ending {
        Ending::Done { instance_id, open, sealed } => {
            job.answer = open.clone();
            job.sealed = sealed.clone();
            complete(rows, &mut job, finish.callback.as_deref(), instance_id.as_deref(), finish.now)?
        }
        // The browser has gone; whoever signs on again asks again.
        Ending::Retry { error, .. } if job.action == Action::SignOn => {
            job.note = Some(error.clone());
            end(&mut job, job::State::Dropped, finish.now);
            Told::NotYet
        }
        Ending::Retry { error, after_ms } => {
            note_attempt(rows, &job, "retry", error, finish.now)?;
            let progress = Progress { step: job.step, extra: job.extra };
            let schedule = schedule_of(rows, &job, &finish.schedules)?;
            let next = schedule.failed(job.id, progress, *after_ms, finish.now);
            follow(&mut job, next, error.clone(), finish.now);
            Told::NotYet
        }
        Ending::Refused { reason } => {
            job.note = Some(reason.clone());
            end(&mut job, job::State::Refused, finish.now);
            Told::Refused(Reason::HOOK, reason.clone())
        }
        Ending::Pending { note } => {
            job.note = Some(note.clone());
            job.state = job::State::Pending;
            job.lease_until = None;
            Told::NotYet
        }
        Ending::GivenBack => {
            job.state = job::State::Queued;
            job.lease_until = None;
            job.due_at = finish.now;
            Told::NotYet
        }
    };
    settle_lane_after(rows, &mut job, finish.now)?;
    rows.put_job(&job)?;
    if matches!(kept, Told::Applied(_)) {
        tell_waiting(rows, told, finish.now)?;
    }
    let wakes = job.state == job::State::Queued || is_followed(rows, &job)?;
    Ok(Finished::Kept { state: job.state, told: kept, note: job.note, wakes })
}

fn is_followed(rows: &dyn Read, job: &JobRow) -> Result<bool> {
    match job.instance.filter(|_| job.in_lane) {
        Some(instance) => rows.has_lane(instance),
        None => Ok(false),
    }
}

/// A late answer is not used, but the id in it is remembered: a later attempt must not give another.
fn remember_id(rows: &mut dyn Write, finish: &Finish) -> Result<()> {
    let Ending::Done { instance_id, .. } = &finish.ending else { return Ok(()) };
    match rows.job(finish.job)? {
        Some(mut job) if job.action == Action::Create && job.state.is_live() && job.proposed_id.is_none() => {
            let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
            let default = instance.and_then(|row| row.public_id.or(row.instance.order_biz_id));
            job.proposed_id = instance_id.clone().or(default);
            rows.put_job(&job)
        }
        _ => Ok(()),
    }
}

fn tell_waiting(rows: &mut dyn Write, told: &[i64], now: Timestamp) -> Result<()> {
    told.iter().try_for_each(|number| rows.put_told(*number, now))
}

/// Applies what the hook did; a create whose id will not do is held instead. `asked` is the job's callback, if
/// somebody has it at hand.
pub(super) fn complete(
    rows: &mut dyn Write,
    job: &mut JobRow,
    asked: Option<&Callback>,
    id: Option<&str>,
    now: Timestamp,
) -> Result<Told> {
    let instance = job.instance.map(|number| rows.instance(number)).transpose()?.flatten();
    let (Some(mut row), true) = (instance.clone(), job.in_lane) else {
        end(job, job::State::Done, now);
        return Ok(Told::Applied(Box::new(answer_of(job, instance.as_ref(), None))));
    };
    if job.action == Action::Create {
        if let Some(trouble) = name_instance(rows, job, &mut row, id)? {
            job.state = job::State::Held;
            job.lease_until = None;
            job.note = Some(trouble);
            return Ok(Told::Held(HELD.to_owned()));
        }
        row.created_by = Some(job.number);
    }
    match asked {
        Some(callback) => row.instance.apply(callback, now),
        None => {
            let (_, callback) = rows
                .callback(job.callback)?
                .ok_or(StoreError::Inconsistent("a job's callback is missing"))?;
            row.instance.apply(&callback, now);
        }
    }
    rows.put_instance(&row)?;
    end(job, job::State::Done, now);
    job.note = None;
    Ok(Told::Applied(Box::new(answer_of(job, Some(&row), None))))
}

/// Gives the instance the id the hook chose, or the marketplace, or its orderBizId. Says what is wrong with it otherwise.
fn name_instance(
    rows: &mut dyn Write,
    job: &mut JobRow,
    row: &mut InstanceRow,
    answer_id: Option<&str>,
) -> Result<Option<String>> {
    let given = row.public_id.as_deref().or(row.instance.order_biz_id.as_deref());
    let Some(id) = answer_id.or(given).map(str::to_owned) else {
        return Ok(Some("neither the answer nor the marketplace gives the instance an id".to_owned()));
    };
    // The marketplace's own name is used as it is: an order that was paid must not fail for its spelling.
    let fault = if answer_id.is_some() { fault_of_id(&id) } else { fault_of_any_id(&id) };
    if let Some(fault) = fault {
        return Ok(Some(format!("the id in the answer cannot be used: {fault}")));
    }
    if let Some(before) = job.proposed_id.as_ref().filter(|before| **before != id) {
        return Ok(Some(format!("the id in the answer is `{id}`, and was `{before}` in an earlier attempt")));
    }
    if !rows.add_name(&row.instance.account, &id, row.number)? {
        return Ok(Some(format!("the id in the answer, `{id}`, is another instance's")));
    }
    job.proposed_id = Some(id.clone());
    row.instance.id = Some(id);
    Ok(None)
}

/// The reason why an id that a hook or an operator chose cannot be an instance's.
pub(crate) fn fault_of_id(id: &str) -> Option<String> {
    fault_of_any_id(id).or_else(|| text::fault_of_name(id))
}

/// The reason why an id cannot be an instance's, also if the marketplace chose it.
fn fault_of_any_id(id: &str) -> Option<String> {
    if id.trim().is_empty() {
        return Some("it is empty".to_owned());
    }
    if id == "0" {
        return Some("`0` tells a marketplace that there is no id yet".to_owned());
    }
    let most = limits::NAME_MAX_BYTES;
    (id.len() > most).then(|| format!("it is longer than {most} bytes"))
}

/// What the end of a job means for its lane: without its create nothing can follow; with a release
/// coming nothing is tried again; and what died does not stop what supersedes it.
pub(super) fn settle_lane_after(rows: &mut dyn Write, job: &mut JobRow, now: Timestamp) -> Result<()> {
    let Some(instance) = job.instance.filter(|_| job.in_lane) else { return Ok(()) };
    if job.state == job::State::Done || job.state == job::State::Running {
        return Ok(());
    }
    let lane = rows.lane(instance)?;
    let releasing =
        lane.iter().any(|(other, _)| other.action == Action::Release && other.number != job.number);
    let mut behind = lane.iter().filter(|(other, _)| other.number > job.number);
    let superseded = behind.any(|(other, _)| instance::supersedes(other.action, job.action));
    if releasing && job.state.is_live() {
        job.note = Some("made unnecessary by a later release".to_owned());
        end(job, job::State::Cancelled, now);
    } else if superseded && job.state == job::State::Dead {
        job.note = Some("dead, and made unnecessary by what came behind it".to_owned());
        end(job, job::State::Cancelled, now);
    }
    if job.action == Action::Create && !job.state.is_live() {
        for (other, _) in lane {
            if other.number != job.number && other.action != Action::Release {
                cancel_behind(rows, other, now)?;
            }
        }
    }
    Ok(())
}

fn cancel_behind(rows: &mut dyn Write, mut job: JobRow, now: Timestamp) -> Result<()> {
    job.note = Some("its instance was not created".to_owned());
    end(&mut job, job::State::Cancelled, now);
    rows.put_job(&job)
}

/// Adds deliveries that were answered without a write.
pub(crate) fn count(rows: &mut dyn Write, counts: &[(i64, u64, Timestamp)]) -> Result<()> {
    for (number, deliveries, last) in counts {
        if let Some(mut row) = rows.callback_row(*number)? {
            row.deliveries += deliveries;
            row.last_received_at = row.last_received_at.max(*last);
            rows.put_callback(&row)?;
        }
    }
    Ok(())
}
