//! Rules of the store: accept a callback, lease jobs, record results. Each operation is kept whole or not at all.
//!
//! The rules are written once over [`Write`], so that every backend decides alike. No code here waits, logs or knows a
//! hook. The returned values say what the caller must do after the commit.

mod accept;
mod answers;
mod attempts;
mod decision;
mod leases;
mod market_jobs;
mod names;
mod nonces;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::rows::{CallbackRow, JobRow, Read as _, Result};
use super::work::Work;
use super::{Postpone, Retrying, Schedules, StoreError};
use spid_core::lifecycle::Policy;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Answer, Callback, Outcome};
use spid_hook::id::Id;
use spid_hook::instance::Instance;

pub(crate) use accept::{accept_for, accept_once};
pub(crate) use attempts::{add_order_details, complete, finish};
pub(crate) use decision::peek;
pub use leases::UnreadableJob;
pub(crate) use leases::{Recovered, end_leases, extend, lease_due, recover};
pub use market_jobs::{CallEnd, OwedCall};
pub(crate) use market_jobs::{configure, finish as finish_call, lease as lease_calls};
pub(crate) use nonces::{consume, is_copy};
pub(crate) use queue::{LATER_PART, end, settle_queue_after};

/// Reason code of a callback that an operator rejected: the code of [`Rejected`](spid_core::lifecycle::Reason::Rejected).
pub(super) const REJECTED: &str = "rejected";

/// Reason code of a callback that an operator settled: success without running.
pub(super) const SETTLED: &str = "settled";

/// Text for the marketplace about a held job. The real reason is for the seller, and may name another instance.
const HELD: &str = "its instance needs the seller's decision";

/// A verified callback for the store to keep.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// Account of the callback.
    pub account: String,
    /// Name of the endpoint that it came through.
    pub endpoint: String,
    /// Label of the key that signed it.
    pub key_label: String,
    /// Delivery limit: the number of times that the marketplace calls before it gives up. `None`: not counted.
    pub delivery_limit: Option<u32>,
    /// The content of the callback.
    pub callback: Arc<Callback>,
    /// Time of the delivery.
    pub received_at: Timestamp,
    /// Policy of the seller for cases that need a decision.
    pub policy: Policy,
    /// True if the callback was fetched from the marketplace, which gave up sending it.
    pub fetched: bool,
    /// True if an operator has approved the callback. Then this is not a delivery, and is not counted as one.
    pub approved: bool,
}

/// Values for a new job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewJob {
    /// Id of the job.
    pub(crate) id: Id,
    /// End of the lease, if the job may be created in state running.
    pub(crate) lease_until: Option<Timestamp>,
    /// True if the caller still waits for the answer. Only then can a result count as reported.
    pub(crate) is_caller_waiting: bool,
}

/// The answer to a callback, as far as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KnownAnswer {
    /// The callback was carried out.
    Applied(Box<StoredAnswer>),
    /// The callback has no result yet.
    NotYet,
    /// The callback was refused: the stable reason code, and the sentence.
    Refused(&'static str, String),
    /// The callback waits for an operator.
    Held(String),
    /// The answer is the result of this job's attempt.
    Wait(i64),
}

impl KnownAnswer {
    /// Converts the answer into the outcome that the marketplace gets. `applied` adds what the store knows more.
    pub(crate) fn outcome(self, applied: impl FnOnce(StoredAnswer) -> Outcome) -> Outcome {
        match self {
            KnownAnswer::Applied(stored) => applied(*stored),
            KnownAnswer::NotYet | KnownAnswer::Wait(_) => Outcome::NotYet,
            KnownAnswer::Refused(code, reason) => Outcome::Refused { code, reason },
            KnownAnswer::Held(reason) => Outcome::Held { reason },
        }
    }
}

/// A stored answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredAnswer {
    pub(crate) instance_id: Option<String>,
    pub(crate) open: Option<String>,
    pub(crate) sealed: Option<Vec<u8>>,
    /// Id of the job for which the secrets were encrypted.
    pub(crate) sealed_for: Option<Id>,
    /// Time of the first report to the marketplace.
    pub(crate) reported_at: Option<Timestamp>,
}

/// Result of accepting a callback.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) row: CallbackRow,
    pub(crate) answer: KnownAnswer,
    /// Id that the marketplace itself chose for the instance.
    pub(crate) marketplace_instance_id: Option<String>,
    /// The job, if it was created in state running.
    pub(crate) taken: Option<Box<LeasedJob>>,
    /// True if a job was queued for the dispatcher or brought forward.
    pub(crate) wakes: bool,
    /// True if a person should look at the callback.
    pub(crate) alert: bool,
}

/// A job that belongs to one dispatcher until its lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedJob {
    /// The job. Its attempts include this one.
    pub job: JobRow,
    /// The callback, or the part of it that this job is for.
    pub callback: Arc<Callback>,
    /// Row of the callback.
    pub origin: CallbackRow,
    /// The instance in its applied state.
    pub instance: Option<Instance>,
}

/// Result of an attempt.
#[derive(Debug, Clone)]
pub enum AttemptEnd {
    /// The hook succeeded, with this answer.
    Done(Answer),
    /// The attempt failed. The job is tried again.
    Retry {
        /// Text of the error.
        error: String,
        /// Wait before the next attempt, if the hook asked for one.
        after: Option<Duration>,
    },
    /// The hook refused the job.
    Refused {
        /// Reason in the hook's words.
        reason: String,
    },
    /// The hook will finish later.
    Pending {
        /// Note in the hook's words.
        note: String,
    },
    /// The attempt never began, or a stop of the daemon cut it short. The job is due at once and spends no retry.
    GivenBack,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) job: i64,
    /// Number of the attempt that ended. An attempt older than the job's last one is fenced.
    pub(crate) attempt: u32,
    /// The callback, if the caller has it in memory. It does not change while its job runs, so it is not read again.
    pub(crate) callback: Option<Arc<Callback>>,
    pub(crate) end: AttemptEnd,
    /// The open part of the hook's answer.
    pub(crate) open: Option<String>,
    /// The secret part of the hook's answer, encrypted.
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) schedules: Schedules,
    pub(crate) now: Timestamp,
}

/// A job after the end of its attempt was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedAttempt {
    pub(crate) state: JobState,
    /// The answer that may be reported.
    pub(crate) answer: KnownAnswer,
    pub(crate) note: Option<String>,
    /// True if a job may be due now, or earlier than the dispatcher knows.
    pub(crate) wakes: bool,
}

/// Adds deliveries that were answered without a write.
pub(crate) fn count(rows: &mut Work<'_>, counts: &[(i64, u64, Timestamp)]) -> Result<()> {
    for (number, deliveries, last) in counts {
        match rows.callback_row(*number) {
            Ok(Some(mut row)) => {
                row.deliveries += deliveries;
                row.last_received_at = row.last_received_at.max(*last);
                rows.put_callback(&row);
            }
            // An unreadable row must not cost the other callbacks their counts.
            Ok(None) | Err(StoreError::Unreadable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
