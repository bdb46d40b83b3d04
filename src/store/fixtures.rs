//! Rows for the unit tests of the store.

use jiff::Timestamp;

use super::rows::{Backend, CallbackRow, Disposition, JobRow, Result};
use super::sqlite::Sqlite;
use super::work::Work;
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_hook::callback::Action;
use spid_hook::id::Id;

/// Makes changes in a transaction, and commits them.
pub(super) fn change<T>(backend: &mut Sqlite, changes: impl FnOnce(&mut Work<'_>) -> Result<T>) -> T {
    backend.begin().unwrap();
    let mut work = Work::on(backend);
    let changed = changes(&mut work).unwrap();
    let rows = work.into_rows();
    backend.store(&rows.changes()).unwrap();
    backend.commit().unwrap();
    changed
}

/// Returns a callback without a job.
pub(super) fn a_callback(action: Action) -> CallbackRow {
    CallbackRow {
        number: 0,
        account: "acme".to_owned(),
        endpoint: "e".to_owned(),
        key_label: "current".to_owned(),
        deduplication_key: [0; 16],
        instance: None,
        job: None,
        action,
        disposition: Disposition::Job,
        reason_code: None,
        reason: None,
        received_at: Timestamp::UNIX_EPOCH,
        last_received_at: Timestamp::UNIX_EPOCH,
        deliveries: 1,
        delivery_limit: None,
        reported_at: None,
        dismissed_at: None,
    }
}

/// Returns a job for this callback.
pub(super) fn a_job(id: Id, callback: i64, action: Action, state: JobState) -> JobRow {
    JobRow {
        number: 0,
        id,
        callback,
        instance: None,
        ordered: false,
        action,
        state,
        attempts: 0,
        step: 0,
        extra: Extra::No,
        due_at: Timestamp::UNIX_EPOCH,
        lease_until: None,
        attempted_at: None,
        note: None,
        answer: None,
        sealed: None,
        proposed_id: None,
        created_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        blocked: false,
    }
}
