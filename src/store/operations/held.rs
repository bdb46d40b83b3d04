//! Operations on held callbacks: approve, reject, settle, dismiss. And a release that an operator asks for.

use std::sync::Arc;

use jiff::Timestamp;

use super::jobs::named;
use super::{AuditNote, OperationDone, OperationError, Operations, impossible, no_instance};
use crate::store::StoreError;
use crate::store::rows::{CallbackRow, Disposition, InstanceRow, Read};
use crate::store::rules::{self, Acceptance, NewJob, REJECTED, SETTLED};
use crate::store::work::Work;
use spid_core::lifecycle;
use spid_core::lifecycle::{Policy, Reason, UnknownInstance};
use spid_hook::callback::{Action, Callback, InstanceRef};
use spid_hook::id::Id;
use spid_hook::instance::State;

spid_hook::words! {
    /// The operator's choice of what a conflicting create really is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Instead {
        /// A renewal of the existing instance.
        Renew = "renew",
        /// A change of the instance's SKU or quantities.
        Upgrade = "upgrade",
        /// The purchase of its trial: a renewal, and a change of SKU or quantities if they differ.
        Conversion = "conversion",
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

impl Operations {
    /// Approves a held callback: decides it again as a wanted one. `instead` says what a conflicting create really is.
    ///
    /// # Errors
    /// Fails if the callback is not held, or cannot be carried out even with approval.
    pub fn approve(
        &mut self,
        number: i64,
        instead: Option<Instead>,
        note: &AuditNote,
    ) -> OperationDone<Approved> {
        self.run_audited_on(note, "approve", |rows, now| {
            let approved = approve(rows, number, instead, note, now)?;
            let target = match approved.callback {
                same if same == number => format!("callback {number}"),
                // The held callback had no instance. The other one belongs to its history.
                other => format!("callback {number} as callback {other}"),
            };
            Ok((approved, target))
        })
    }

    /// Rejects a held callback, and its redeliveries for as long as they would be held again.
    ///
    /// The reason stays in the audit log. The marketplace receives only a general reason.
    ///
    /// # Errors
    /// Fails if the callback is not held.
    pub fn reject(&mut self, number: i64, note: &AuditNote) -> OperationDone<()> {
        self.run_audited(note, "reject", &format!("callback {number}"), |rows, _| {
            let (mut row, _) = find_held(rows, number)?;
            row.disposition = Disposition::Refused;
            row.reason_code = Some(REJECTED.to_owned());
            row.reason = Some(Reason::Rejected("rejected by the seller".to_owned()).to_string());
            rows.put_callback(&row);
            Ok(())
        })
    }

    /// Settles a held callback that repeats an order already carried out.
    ///
    /// Its next delivery is answered with success, and no hook runs.
    ///
    /// # Errors
    /// Fails if the callback is not held, or if it is a create and there is no instance whose id it could receive.
    pub fn settle(&mut self, number: i64, note: &AuditNote) -> OperationDone<()> {
        self.run_audited(note, "settle", &format!("callback {number}"), |rows, _| {
            let (mut row, callback) = find_held(rows, number)?;
            if row.action == Action::Create {
                check_settled_create(rows, &row, &callback)?;
            }
            row.disposition = Disposition::Recorded;
            row.reason_code = Some(SETTLED.to_owned());
            row.reason = Some("settled by the seller: done before, nothing to run".to_owned());
            rows.put_callback(&row);
            Ok(())
        })
    }

    /// Takes a callback off the attention list. Nothing else changes.
    ///
    /// # Errors
    /// Fails if there is no such callback, it is held, or its job has not ended.
    pub fn dismiss(&mut self, number: i64, note: &AuditNote) -> OperationDone<()> {
        self.run_audited(note, "dismiss", &format!("callback {number}"), |rows, now| {
            let found = rows.callback_row(number)?;
            let mut row =
                found.ok_or_else(|| OperationError::NotFound(format!("there is no callback {number}")))?;
            let job = rows.job_of(row.job)?;
            if row.disposition == Disposition::Held {
                return impossible(format!("callback {number} is held; approve, settle or reject it"));
            }
            if let Some(job) = job.filter(|job| job.state.is_live()) {
                return impossible(format!("{} has not ended; retry, complete or drop it", named(&job)));
            }
            row.dismissed_at = Some(now);
            rows.put_callback(&row);
            Ok(())
        })
    }

    /// Adds a release of an instance, as if the marketplace had asked for it.
    ///
    /// # Errors
    /// Fails if there is no such instance, or if it is already released.
    pub fn release(&mut self, instance: i64, note: &AuditNote) -> OperationDone<Approved> {
        let target = self.target(instance)?;
        self.run_audited(note, "release", &target, |rows, now| {
            let row =
                rows.instance(instance)?.ok_or_else(|| no_instance(instance))?;
            if row.instance.state == State::Released {
                return impossible(match row.instance.tombstone {
                    true => "the release came before the instance was known here, so no hook can release it; run `spid instances import`, then release it",
                    false => "the instance is already released",
                });
            }
            accept(rows, release_by_operator(&row, note, now)?, &[Action::Release], now)
        })
    }
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

fn approve(
    rows: &mut Work<'_>,
    number: i64,
    instead: Option<Instead>,
    note: &AuditNote,
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
        fetched: false,
        approved: true,
    };
    let approved = accept(rows, acceptance, &asked, now)?;
    // The approved callback was kept under another row, so the held row must be closed.
    if approved.callback != number {
        close_held(rows, row, &approved, note, now)?;
        return Ok(approved);
    }
    // All of the request was carried out before. A redelivery is then answered like a settled callback.
    if let Some(mut row) = rows.callback_row(number)?.filter(|row| row.action == Action::Create)
        && instead.is_some()
        && row.disposition == Disposition::Recorded
    {
        row.reason_code = Some(SETTLED.to_owned());
        row.reason = Some("approved by the seller: done before, nothing to run".to_owned());
        rows.put_callback(&row);
    }
    Ok(approved)
}

/// Refuses to settle a create that cannot be a repeat. It would succeed with the id of another purchase's instance.
fn check_settled_create(rows: &dyn Read, row: &CallbackRow, callback: &Callback) -> OperationDone<()> {
    let found = rows.instance_of(row.instance)?;
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
    let found = rows.instance_of(row.instance)?;
    Ok(found.is_some_and(|row| row.instance.id.is_some()))
}

/// Returns the actions that a conflicting create really asks of the existing instance.
fn asked_instead(
    rows: &dyn Read,
    row: &CallbackRow,
    callback: &Callback,
    instead: Instead,
) -> OperationDone<Vec<Action>> {
    let found = rows.instance_of(row.instance)?;
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
fn close_held(
    rows: &mut Work<'_>,
    mut held: CallbackRow,
    approved: &Approved,
    note: &AuditNote,
    now: Timestamp,
) -> OperationDone<()> {
    if let Some(mut row) = rows.callback_row(approved.callback)? {
        row.deliveries += held.deliveries;
        row.last_received_at = row.last_received_at.max(held.last_received_at);
        rows.put_callback(&row);
    }
    held.disposition = Disposition::Recorded;
    held.reported_at = held.reported_at.or(Some(now));
    held.reason = Some(format!("approved by {} as callback {}: {}", note.who, approved.callback, note.why));
    rows.put_callback(&held);
    Ok(())
}

fn accept(
    rows: &mut Work<'_>,
    acceptance: Acceptance,
    asked: &[Action],
    now: Timestamp,
) -> OperationDone<Approved> {
    let id = Id::new(now).map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))?;
    // `is_caller_waiting: false`: the caller is an operator, so nothing counts as reported to the marketplace.
    let new_job = NewJob { id, lease_until: None, is_caller_waiting: false };
    let accepted = rules::accept_for(rows, &acceptance, asked, new_job)?;
    match accepted.row.disposition {
        Disposition::Held | Disposition::Refused => impossible(format!(
            "the request cannot be carried out now: {}; reject it, or do the work by hand",
            accepted.row.reason.as_deref().unwrap_or("the hook has refused the request")
        )),
        Disposition::Job | Disposition::Recorded => {
            let job = rows.job_of(accepted.row.job)?;
            let job = job.filter(|job| job.state.is_live());
            Ok(Approved { callback: accepted.row.number, job: job.map(|job| job.id) })
        }
    }
}

/// Builds a release that only an operator asked for.
fn release_by_operator(row: &InstanceRow, note: &AuditNote, now: Timestamp) -> OperationDone<Acceptance> {
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
        key_label: format!("by hand: {}", note.who),
        delivery_limit: None,
        callback: Arc::new(callback),
        received_at: now,
        // There is nothing to release of an instance that never began. That is a success.
        policy: Policy { unknown_instance: UnknownInstance::Succeed, ..Policy::default() },
        fetched: false,
        approved: true,
    })
}
