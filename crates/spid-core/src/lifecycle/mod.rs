//! Lifecycle of one sold instance: decides a callback from the applied state, the queued jobs and earlier callbacks.
//!
//! [`decide`] is pure and total. It uses no store, no hook and no HTTP. Its caller reads the [`View`] and writes the
//! [`Verdict`] in one transaction, so that no decision uses state that has changed meanwhile.
//!
//! A request of a marketplace carries neither a time nor an event id. There are two kinds of requests, and the dialect
//! decides the kind of each ([`Callback::ordered`]):
//!
//! * An *ordered* request carries the marketplace's own order and asks "has this order been carried out?". Once the
//!   order has been carried out, the answer is success, even if a later order has replaced it, and nothing runs again.
//!   There is one exception: a renewal repeated for a frozen instance runs again, because it may be arrears that were
//!   paid.
//! * An *unordered* request is byte for byte the same for different events: the expire of next year equals the expire
//!   of this year. It asks "is it so?", and the answer is success only if it is so now.
//!
//! If a request can mean two things, the effect decides. If running it takes something from the buyer, it is held for
//! an operator. If running it gives the buyer something, it runs. A request whose job has not ended joins that job. A
//! request that was never received before is believed, because the key signed it; the exceptions are in `expire`.
//!
//! | action | absent | pending | active | frozen | released |
//! |---|---|---|---|---|---|
//! | create | run | join | repeat; held if another purchase | repeat; held if another purchase | id, alert; held if another purchase |
//! | renew | policy | behind | run | run, thaws; held if its expiry is past | refused, alert |
//! | refund-renew | policy | behind | run | run | repeat |
//! | upgrade | policy | behind | run | run, stays frozen | refused, alert |
//! | expire | policy | behind | run, freezes | repeat | repeat |
//! | release | policy, tombstone | cancels; runs if a create ever began | run | run | repeat |

mod absent;
mod deduplication;
pub mod entitlement;
mod messages;
mod parts;
mod policy;
mod purchase;
mod queue;
mod reason;
pub mod schedule;
mod table;

use jiff::Timestamp;

use crate::limits;
use spid_hook::callback::Callback;
use spid_hook::instance::Instance;
use spid_hook::time::plus_millis;

pub use deduplication::{Subject, deduplication_key};
pub use parts::{combine, id_of_part};
pub use policy::{Policy, UnknownInstance};
pub use purchase::{is_anothers, is_by_the_same_buyer, is_same_purchase};
pub use queue::{QueuedJob, projected, supersedes};
pub use reason::Reason;

/// Earlier callbacks with the same deduplication key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierCallback {
    /// True if the success of the latest of them was reported to the marketplace.
    pub reported: bool,
    /// The latest of them that was carried out, if there is one.
    pub done: Option<Done>,
    /// Outcome of the latest of them.
    pub standing: EarlierOutcome,
}

/// An earlier callback that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// True if its success was reported to the marketplace.
    pub reported: bool,
    /// True if its own job carried it out; false if it joined another job.
    pub own: bool,
}

/// Outcome of an earlier callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EarlierOutcome {
    /// The job, by its number, has not ended.
    Open(i64),
    /// The job, by its number, is done.
    Done(i64),
    /// The hook refused the callback.
    RefusedByHook {
        /// Time of the refusal.
        at: Timestamp,
        /// Reason, in the hook's words.
        reason: String,
    },
    /// An operator rejected the callback.
    Rejected {
        /// Reason, in the operator's words.
        reason: String,
    },
    /// An operator settled the callback as a repeat: success, and no job.
    Settled {
        /// Time at which the success was reported; `None` until the marketplace calls again.
        reported_at: Option<Timestamp>,
    },
    /// A later callback made the job unnecessary.
    Superseded,
    /// The callback is held, and no operator has decided yet.
    Held,
    /// The callback was refused without a job, or its job was dropped: treated like a callback that never came.
    Void,
    /// The callback needed no job.
    Recorded,
}

/// Input of a decision.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The instance as applied so far; `None` if no name of the callback is known.
    pub instance: Option<&'a Instance>,
    /// The jobs in its queue, in order.
    pub queue: &'a [QueuedJob],
    /// Earlier callbacks with the same deduplication key, if there are any.
    pub earlier: Option<&'a EarlierCallback>,
    /// Policy of the seller.
    pub policy: Policy,
    /// True while another purchase of this instance is held, because that purchase may decide an expire.
    pub conflict: bool,
    /// True if the callback has the deduplication key of an earlier one, but other quantities.
    pub other_values: bool,
    /// True if an operator has approved this callback.
    pub approved: bool,
    /// Current time.
    pub now: Timestamp,
}

/// Decisions about a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run a job, after those in the instance's queue.
    Run,
    /// Run a job outside the instance's queue.
    RunBeside {
        /// True if success is reported now: for messages that are done when they are recorded.
        reported: bool,
    },
    /// Join the job with this number; the callback gets its answer.
    Join(i64),
    /// Change nothing, and repeat the earlier answer.
    Repeat,
    /// Record success; there is nothing to do.
    Record,
    /// Refuse the callback.
    Refuse(Reason),
    /// Hold the callback for an operator.
    Hold(Reason),
}

/// A decision and its side effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Decision about the callback.
    pub decision: Decision,
    /// Jobs in the instance's queue to cancel without running them.
    pub cancels: Vec<i64>,
    /// True if the instance is released now, without a hook, and leaves a tombstone.
    pub leaves_tombstone: bool,
    /// True if an operator should look, although nothing waits for a decision.
    pub alert: bool,
    /// Remark for the operator about a success.
    pub notice: Option<Reason>,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Verdict {
        Verdict { decision, cancels: Vec::new(), leaves_tombstone: false, alert: false, notice: None }
    }
}

/// Decides a callback. Total: every view and every callback has a verdict.
///
/// An operator's decision applies for as long as the callback would be held: a rejected callback is refused, and a
/// settled one succeeds. A settled callback whose success was reported more than a day ago is decided as a new one.
pub fn decide(view: View<'_>, callback: &Callback) -> Verdict {
    // An operator's decision can only replace a hold.
    let verdict = table::judge(view, callback);
    if view.approved || !matches!(verdict.decision, Decision::Hold(_)) {
        return verdict;
    }
    match view.earlier.map(|earlier| &earlier.standing) {
        Some(EarlierOutcome::Rejected { reason }) => {
            Decision::Refuse(Reason::Rejected(reason.clone())).into()
        }
        Some(EarlierOutcome::Settled { reported_at }) => {
            let holds = reported_at
                .is_none_or(|reported| view.now < plus_millis(reported, limits::SETTLED_REPEAT_MS));
            if holds { Decision::Repeat.into() } else { verdict }
        }
        _ => verdict,
    }
}
