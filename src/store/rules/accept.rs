//! Acceptance of a callback: callback, instance and jobs are written together.

use std::sync::Arc;

use super::answers::answer_without_job;
use super::decision::{Judged, judge, key_of};
use super::names::{find_instance, set_marketplace_id};
use super::nonces::consume;
use super::queue::{cancel, part_for};
use super::{Acceptance, Accepted, KnownAnswer, LeasedJob, NewJob, SETTLED};
use crate::store::StoreError;
use crate::store::rows::{CallbackRow, Disposition, InstanceRow, JobRow, Numbered, Read, Result};
use crate::store::work::Work;
use spid_core::lifecycle::id_of_part;
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_core::lifecycle::{Decision, Reason};
use spid_hook::callback::{Action, ValidationIssue};
use spid_hook::instance::{Instance, State};

/// Keeps a callback. `None`: the request is a copy of one that was accepted before, and nothing is kept of it.
pub(crate) fn accept_once(
    rows: &mut Work<'_>,
    acceptance: &Acceptance,
    new_job: NewJob,
) -> Result<Option<Accepted>> {
    match &acceptance.callback.nonce {
        // The nonce is consumed in the transaction that keeps the callback, so that both are kept or none.
        Some(nonce) if !consume(rows, &acceptance.account, nonce, acceptance.received_at)? => Ok(None),
        _ => {
            let doubted = doubted_payment(rows, acceptance)?;
            let acceptance = doubted.as_ref().unwrap_or(acceptance);
            let asked: Vec<Action> = acceptance.callback.actions().collect();
            accept_for(rows, acceptance, &asked, new_job).map(Some)
        }
    }
}

/// Returns a fetched payment with an issue, if the same order was paid for under another request id. `None`: no doubt.
///
/// That a fetched message has the request id of the payment is not documented, and one payment must not be taken for two.
fn doubted_payment(rows: &Work<'_>, acceptance: &Acceptance) -> Result<Option<Acceptance>> {
    let callback = &*acceptance.callback;
    let Some(order) = callback.order_id.as_deref().filter(|_| acceptance.fetched) else { return Ok(None) };
    let payments = rows.payments(&acceptance.account, order)?;
    let may_be_the_same = payments.iter().any(|(_, other)| {
        other.subject.order_biz_id == callback.subject.order_biz_id
            && other.sku == callback.sku
            && other.request_id != callback.request_id
    });
    if !may_be_the_same {
        return Ok(None);
    }
    let mut doubted = acceptance.clone();
    Arc::make_mut(&mut doubted.callback).issues.push(ValidationIssue::MaybeSamePayment);
    Ok(Some(doubted))
}

/// Keeps a callback: reads, decides, and writes callback, instance and jobs together.
///
/// The request is handled as the actions in `asked`: its own actions, or those that an operator chose.
pub(crate) fn accept_for(
    rows: &mut Work<'_>,
    acceptance: &Acceptance,
    asked: &[Action],
    new_job: NewJob,
) -> Result<Accepted> {
    // All rows that decide are read in the transaction that writes the decision.
    let found = find_instance(rows, &acceptance.account, &acceptance.callback)?;
    let judged = judge(rows, acceptance, asked, found)?;
    // Cancel superseded jobs first: the new job may be the first in the instance's queue only without them.
    for number in &judged.verdict.cancels {
        cancel(rows, *number, acceptance.callback.action, acceptance.received_at)?;
    }
    // Only the first job in the instance's queue may be created in state running.
    let new_job = NewJob { lease_until: new_job.lease_until.filter(|_| is_first(&judged)), ..new_job };
    // Write the instance before the callback, because the callback row names its number.
    let instance = settle_instance(rows, acceptance, &judged, new_job)?;
    let mut row = callback_row(rows, acceptance, &judged, instance.as_ref())?;
    decide_row(&mut row, &judged, acceptance);
    let before = judged.latest.as_ref().filter(|before| before.number == row.number);
    let mut made = new_jobs(acceptance, &judged, instance.as_ref(), new_job);
    // The callback has the job of its last part: when that job is done, all parts are done.
    for job in &mut made {
        job.number = rows.take_number(Numbered::Job)?;
        row.job = Some(job.number);
    }
    if before.is_some_and(|before| is_new_decision(before, &row)) {
        // An operator dismissed the old decision. A new decision must be shown again.
        row.dismissed_at = None;
    }
    let is_new = row.number == 0;
    if is_new {
        row.number = rows.add_callback(&row, &acceptance.callback)?;
    }
    let added = is_new.then(|| row.clone());
    let mut accepted = Accepted {
        row,
        answer: KnownAnswer::NotYet,
        marketplace_instance_id: instance.as_ref().and_then(|row| row.marketplace_instance_id.clone()),
        taken: None,
        wakes: false,
        alert: judged.verdict.alert,
    };
    // Without a new job the answer is known now. With a job, `begin_job` sets it.
    if made.is_empty() {
        accepted.answer =
            answer_without_job(rows, &mut accepted, &judged, instance.as_ref(), acceptance.received_at)?;
    }
    for job in made {
        begin_job(rows, &mut accepted, job, acceptance, instance.as_ref())?;
    }
    // The marketplace is not the caller when an operator approves. It receives the result when it calls again.
    if matches!(accepted.answer, KnownAnswer::Applied(_)) && new_job.is_caller_waiting {
        mark_reported(rows, &mut accepted.row, instance.as_ref(), acceptance)?;
    }
    if added.as_ref() != Some(&accepted.row) {
        rows.put_callback(&accepted.row);
    }
    Ok(accepted)
}

fn is_new_decision(before: &CallbackRow, row: &CallbackRow) -> bool {
    let is_decided = matches!(row.disposition, Disposition::Held | Disposition::Refused);
    (before.disposition, before.job) != (row.disposition, row.job)
        || is_decided && before.reason_code != row.reason_code
}

/// Returns true if a new job has no other job before it in the instance's queue.
fn is_first(judged: &Judged) -> bool {
    let ordered = judged.verdict.decision == Decision::Run;
    !ordered || judged.queue.iter().all(|(job, _)| judged.verdict.cancels.contains(&job.number))
}

/// Returns the instance of the callback after it is written: created, described again, or left as a tombstone.
fn settle_instance(
    rows: &mut Work<'_>,
    acceptance: &Acceptance,
    judged: &Judged,
    new_job: NewJob,
) -> Result<Option<InstanceRow>> {
    let callback = &acceptance.callback;
    let runs = judged.verdict.decision == Decision::Run;
    let creates = judged.runs.contains(&Action::Create);
    let begins = creates && new_job.lease_until.is_some();
    let now = acceptance.received_at;
    let row = match (&judged.instance, runs || judged.verdict.leaves_tombstone) {
        (Some(row), true) if creates || judged.verdict.leaves_tombstone => {
            let mut row = row.clone();
            if judged.verdict.leaves_tombstone {
                row.instance.state = State::Released;
            } else {
                row.instance.describe(callback);
                row.instance.state = State::Pending;
                row.instance.tombstone = false;
                row.instance.began |= begins;
                set_marketplace_id(rows, &mut row, callback)?;
            }
            row.instance.updated_at = now;
            rows.put_instance(&row);
            Some(row)
        }
        // A job that is only queued has not changed the instance, so `updated_at` stays.
        (Some(row), _) => Some(row.clone()),
        (None, true) => Some(new_instance(rows, acceptance, judged, begins)?),
        (None, false) => None,
    };
    // A later callback without a name may find the instance by its order id.
    if let (Some(row), Some(order), true) = (&row, callback.order_id.as_deref(), runs) {
        rows.add_order(&acceptance.account, order, row.number);
    }
    Ok(row)
}

/// Creates the instance. `begins`: its create job starts at once.
fn new_instance(
    rows: &mut Work<'_>,
    acceptance: &Acceptance,
    judged: &Judged,
    begins: bool,
) -> Result<InstanceRow> {
    let callback = &acceptance.callback;
    let begin = match callback.action {
        Action::Create | Action::Release if !callback.externally_provisioned => Instance::pending,
        _ => Instance::adopted,
    };
    let mut instance = begin(callback, &acceptance.account, &acceptance.endpoint, acceptance.received_at);
    // A release of an unknown instance leaves a tombstone. A create that comes after it is then held.
    if judged.verdict.leaves_tombstone {
        instance.state = State::Released;
        instance.tombstone = true;
    }
    instance.began |= begins;
    let number = rows.add_instance(&instance)?;
    for name in callback.subject.names() {
        rows.add_name(&acceptance.account, name, number)?;
    }
    let mut row =
        InstanceRow { number, created_by: None, marketplace_instance_id: None, known_as: None, instance };
    set_marketplace_id(rows, &mut row, callback)?;
    if row.marketplace_instance_id.is_some() {
        rows.put_instance(&row);
    }
    Ok(row)
}

/// Returns the row on which this delivery is counted: of the open callback, of the repeated one, or a new row.
fn callback_row(
    rows: &mut Work<'_>,
    acceptance: &Acceptance,
    judged: &Judged,
    instance: Option<&InstanceRow>,
) -> Result<CallbackRow> {
    let repeats = matches!(
        judged.verdict.decision,
        Decision::Repeat | Decision::Join(_) | Decision::Record | Decision::Refuse(Reason::SignOnUsed)
    );
    let number = instance.map(|row| row.number);
    let counted = judged.latest.as_ref().filter(|row| row.reported_at.is_none() || repeats);
    if let Some(row) = counted
        && !belongs_elsewhere(row, acceptance, judged, number)
        && (judged.runs.is_empty() || may_run_again(rows, row, judged, acceptance)?)
    {
        let mut row = row.clone();
        if !acceptance.approved {
            row.deliveries += 1;
            row.last_received_at = acceptance.received_at;
        }
        return Ok(row);
    }
    // A create that runs owns the instance, so its key is built from the instance.
    let is_made_now = judged.instance.is_none() && instance.is_some();
    let key = match is_made_now || judged.runs.contains(&Action::Create) {
        true => key_of(acceptance, &acceptance.callback, instance),
        false => judged.key,
    };
    Ok(new_callback_row(acceptance, key, instance))
}

/// Returns true if the request runs for another instance than the row is about, or under another key.
///
/// A callback that was refused without an instance keeps its row. A create that runs now gets another one.
fn belongs_elsewhere(
    row: &CallbackRow,
    acceptance: &Acceptance,
    judged: &Judged,
    instance: Option<i64>,
) -> bool {
    if judged.verdict.decision != Decision::Run {
        return false;
    }
    let is_under_another_key = judged.runs.contains(&Action::Create)
        && row.deduplication_key != key_of(acceptance, &acceptance.callback, judged.instance.as_ref());
    row.instance != instance || is_under_another_key
}

/// Returns true if a new job may belong to this row.
///
/// A callback that was carried out stays as it is: what runs now is another callback. An idempotency key stands for one
/// payload, so a row that had a job takes no other payload. A row that had no job takes the latest payload.
fn may_run_again(
    rows: &mut Work<'_>,
    row: &CallbackRow,
    judged: &Judged,
    acceptance: &Acceptance,
) -> Result<bool> {
    if judged.job.as_ref().is_some_and(|job| job.state == JobState::Done || job.state.is_live()) {
        return Ok(false);
    }
    let body = match rows.callback(row.number) {
        Ok(Some((_, body))) => body,
        // An unreadable body stays as it is, so that an operator can examine it.
        Ok(None) | Err(StoreError::Unreadable(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    if body.asks_the_same(&acceptance.callback) {
        return Ok(true);
    }
    if row.job.is_some() {
        return Ok(false);
    }
    rows.put_body(row.number, acceptance.callback.clone());
    Ok(true)
}

fn new_callback_row(acceptance: &Acceptance, key: [u8; 16], instance: Option<&InstanceRow>) -> CallbackRow {
    let number = instance.map(|row| row.number);
    CallbackRow {
        number: 0,
        account: acceptance.account.clone(),
        endpoint: acceptance.endpoint.clone(),
        key_label: acceptance.key_label.clone(),
        deduplication_key: key,
        instance: number,
        job: None,
        action: acceptance.callback.action,
        disposition: Disposition::Recorded,
        reason_code: None,
        reason: None,
        received_at: acceptance.received_at,
        last_received_at: acceptance.received_at,
        deliveries: u64::from(!acceptance.approved),
        delivery_limit: acceptance.delivery_limit,
        reported_at: None,
        dismissed_at: None,
    }
}

/// Writes the decision into the row. A row with a reported result is history: it only gets a missing notice.
fn decide_row(row: &mut CallbackRow, judged: &Judged, acceptance: &Acceptance) {
    let decision = &judged.verdict.decision;
    if row.reported_at.is_some() {
        if let (Some(notice), None) = (&judged.verdict.notice, &row.reason_code) {
            row.reason_code = Some(notice.code().to_owned());
            row.reason = Some(notice.to_string());
        }
        return;
    }
    // A settled callback keeps its reason code until its success has been reported.
    if *decision == Decision::Repeat && row.reason_code.as_deref() == Some(SETTLED) {
        return;
    }
    let reason = match decision {
        Decision::Refuse(reason) | Decision::Hold(reason) => Some(reason),
        _ => judged.verdict.notice.as_ref(),
    };
    row.disposition = match decision {
        Decision::Run | Decision::RunBeside { .. } | Decision::Join(_) => Disposition::Job,
        // The refusal of a hook is stored in its job.
        Decision::Refuse(Reason::Hook(_)) => row.disposition,
        // Carried out, but the result has not been reported yet.
        Decision::Repeat if row.disposition == Disposition::Job && is_done(judged) => Disposition::Job,
        Decision::Record | Decision::Repeat => Disposition::Recorded,
        Decision::Refuse(_) => Disposition::Refused,
        Decision::Hold(_) => Disposition::Held,
    };
    row.reason_code = reason.map(|reason| reason.code().to_owned());
    row.reason = reason.map(Reason::to_string);
    if let Decision::Join(job) = decision {
        row.job = Some(*job);
    }
    if *decision == (Decision::RunBeside { reported: true }) && !acceptance.approved {
        row.reported_at = Some(acceptance.received_at);
    }
}

fn is_done(judged: &Judged) -> bool {
    judged.job.as_ref().is_some_and(|job| job.state == JobState::Done)
}

/// Returns the jobs of a request in order, one for each part that runs. The first may be created in state running.
fn new_jobs(
    acceptance: &Acceptance,
    judged: &Judged,
    instance: Option<&InstanceRow>,
    new_job: NewJob,
) -> Vec<JobRow> {
    let ordered = judged.verdict.decision == Decision::Run;
    let now = acceptance.received_at;
    let mut jobs = Vec::new();
    for (position, action) in judged.runs.iter().enumerate() {
        let lease_until = new_job.lease_until.filter(|_| position == 0);
        jobs.push(JobRow {
            number: 0,
            id: id_of_part(new_job.id, position),
            callback: 0,
            instance: instance.map(|row| row.number),
            ordered,
            action: *action,
            state: match lease_until {
                Some(_) => JobState::Running,
                None => JobState::Queued,
            },
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
            blocked: false,
        });
    }
    jobs
}

fn begin_job(
    rows: &mut Work<'_>,
    accepted: &mut Accepted,
    mut job: JobRow,
    acceptance: &Acceptance,
    instance: Option<&InstanceRow>,
) -> Result<()> {
    job.callback = accepted.row.number;
    rows.add_job(&job)?;
    accepted.answer = match accepted.row.reported_at {
        Some(_) => KnownAnswer::Applied(Box::default()),
        None => KnownAnswer::Wait(job.number),
    };
    if job.state != JobState::Running {
        accepted.wakes |= accepted.taken.is_none();
        return Ok(());
    }
    accepted.taken = Some(Box::new(LeasedJob {
        callback: part_for(&job, acceptance.callback.clone()),
        job,
        origin: accepted.row.clone(),
        instance: instance.map(|row| row.instance.clone()),
    }));
    Ok(())
}

/// Records that success is reported now. A query that receives the create's answer counts as a report of the create.
fn mark_reported(
    rows: &mut Work<'_>,
    row: &mut CallbackRow,
    instance: Option<&InstanceRow>,
    acceptance: &Acceptance,
) -> Result<()> {
    let now = acceptance.received_at;
    row.reported_at = row.reported_at.or(Some(now));
    if row.action != Action::Query {
        return Ok(());
    }
    let created_by = instance.and_then(|row| row.created_by);
    let Some(job) = rows.job_of(created_by)? else { return Ok(()) };
    if let Some(mut create) = rows.callback_row(job.callback)? {
        create.reported_at = create.reported_at.or(Some(now));
        rows.put_callback(&create);
    }
    Ok(())
}
