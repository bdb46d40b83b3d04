//! The queue of an instance, and its effect on the instance.

use jiff::Timestamp;

use spid_hook::callback::Action;
use spid_hook::instance::{Instance, RequestedValues, State};

/// A job in the instance's queue: it is queued, running, pending, held or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// Number of the job in the store.
    pub job: i64,
    /// Action that the job carries out.
    pub action: Action,
    /// True if a hook runs for the job now, so that the job cannot be canceled.
    pub running: bool,
    /// True if the retry schedule of the job is used up.
    pub dead: bool,
    /// The values that the job will set.
    pub wants: RequestedValues,
    /// Time at which the job was accepted.
    pub accepted_at: Timestamp,
}

/// Returns the state after all queued jobs.
pub fn projected(instance: &Instance, queue: &[QueuedJob]) -> Instance {
    let mut future = instance.clone();
    for job in queue {
        future.effect(job.action, &job.wants);
    }
    future
}

/// Returns true if the instance counts as absent. A record whose create ended without effect counts as never requested.
/// While its release is queued it does not, because no job may be queued behind the release.
pub(super) fn is_absent(instance: &Instance, queue: &[QueuedJob]) -> bool {
    instance.state == State::Pending
        && !queue.iter().any(|job| matches!(job.action, Action::Create | Action::Release))
}

/// Returns true if a job with `action` makes a dead job before it unnecessary. A renewed instance must no longer be
/// frozen. A frozen instance was not renewed, unless the dead renewal was paid for a term that ends after now.
pub fn supersedes(action: Action, dead: Action, wanted: &RequestedValues, now: Timestamp) -> bool {
    match (action, dead) {
        (Action::Renew, Action::Expire) => true,
        (Action::Expire, Action::Renew) => wanted.expires_on.is_none_or(|expiry| expiry <= now),
        _ => false,
    }
}
