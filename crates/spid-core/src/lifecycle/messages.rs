//! Decisions about callbacks that change no instance: sign-ons, queries, payments and other requests.

use super::table::join_open;
use super::{Decision, EarlierCallback, EarlierOutcome, Reason, View};
use spid_hook::callback::Callback;
use spid_hook::instance::State;

pub(super) fn sign_on(view: View<'_>, callback: &Callback) -> Decision {
    let Some(instance) = view.instance else {
        return Decision::Refuse(Reason::UnknownInstance);
    };
    // Check the date first: a stale sign-on is refused even if it was never used.
    if !view.policy.is_fresh(callback.sent_at, view.now) {
        return Decision::Refuse(Reason::SignOnStale);
    }
    match view.earlier {
        Some(EarlierCallback { reported: true, .. }) => return Decision::Refuse(Reason::SignOnUsed),
        // The browser left before the hook was done, so no success was reported yet.
        Some(EarlierCallback { standing: EarlierOutcome::Done(job), .. }) => return Decision::Join(*job),
        _ => {}
    }
    if let Some(decision) = join_open(view, callback) {
        return decision;
    }
    match instance.state {
        State::Active | State::Frozen => Decision::RunBeside { reported: false },
        State::Pending | State::Released => Decision::Refuse(Reason::NotUsable(instance.state)),
    }
}

/// Decides a query. The answer of a query is the id, so a query fails until there is one.
pub(super) fn query(view: View<'_>) -> Decision {
    match view.instance {
        None => Decision::Refuse(Reason::UnknownInstance),
        Some(instance) if instance.state == State::Released => Decision::Refuse(Reason::Gone),
        Some(instance) if instance.id.is_none() => Decision::Refuse(Reason::NotReady),
        Some(_) => Decision::Repeat,
    }
}

pub(super) fn payment(view: View<'_>) -> Decision {
    match view.earlier.map(|earlier| &earlier.standing) {
        // A payment is a message, so success is reported as soon as it is recorded.
        None => Decision::RunBeside { reported: true },
        // The payment was held, so no job has run for it yet.
        Some(EarlierOutcome::Held | EarlierOutcome::Void | EarlierOutcome::Rejected { .. })
            if view.approved =>
        {
            Decision::RunBeside { reported: true }
        }
        Some(_) => Decision::Repeat,
    }
}

pub(super) fn other(view: View<'_>, callback: &Callback) -> Decision {
    if let Some(decision) = join_open(view, callback) {
        return decision;
    }
    match view.earlier.map(|earlier| &earlier.standing) {
        // The answer of the finished job is given again.
        Some(EarlierOutcome::Done(job)) => Decision::Join(*job),
        _ => Decision::RunBeside { reported: false },
    }
}
