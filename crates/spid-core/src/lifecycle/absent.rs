//! Decisions about an instance that does not exist here.

use super::{Decision, EarlierOutcome, Policy, Reason, UnknownInstance, Verdict, View};
use spid_hook::callback::{Action, Callback};

pub(super) fn absent(view: View<'_>, callback: &Callback) -> Verdict {
    let has_begun = view.instance.is_some_and(|instance| instance.began);
    let was_cancelled = view.earlier.is_some_and(|known| {
        // An operator can reject or settle the callback only after it was canceled.
        matches!(
            known.standing,
            EarlierOutcome::Superseded | EarlierOutcome::Rejected { .. } | EarlierOutcome::Settled { .. }
        )
    });
    match callback.action {
        // Without a name we cannot recognize a redelivery, so every delivery would create another instance.
        Action::Create if callback.subject.names().next().is_none() => {
            Decision::Hold(Reason::NamesNothing).into()
        }
        // The create was attempted before its release canceled it, so its progress is unknown. Another attempt under
        // another idempotency key could create the instance twice.
        Action::Create if !view.approved && has_begun && was_cancelled => {
            Decision::Hold(Reason::LateCreate).into()
        }
        Action::Create => Decision::Run.into(),
        // An earlier create began here and ended without success, so the seller may have something to clean up.
        Action::Release if has_begun => Decision::Run.into(),
        Action::Release if callback.subject.names().next().is_none() => {
            Decision::Hold(Reason::NamesNothing).into()
        }
        Action::Release if callback.externally_provisioned && view.instance.is_none() => Decision::Run.into(),
        Action::Release => unknown_release(view.policy),
        _ => unknown(view, callback).into(),
    }
}

pub(super) fn unknown_release(policy: Policy) -> Verdict {
    let decision = match policy.unknown_instance {
        UnknownInstance::Refuse => Decision::Refuse(Reason::UnknownInstance),
        UnknownInstance::Succeed => Decision::Record,
        UnknownInstance::Adopt => Decision::Hold(Reason::UnknownRelease),
    };
    Verdict { leaves_tombstone: true, ..decision.into() }
}

fn unknown(view: View<'_>, callback: &Callback) -> Decision {
    if callback.subject.names().next().is_none() {
        return Decision::Hold(Reason::NamesNothing);
    }
    // The marketplace sends no create for it, so any callback can be the first.
    if callback.externally_provisioned && view.instance.is_none() {
        return Decision::Run;
    }
    match view.policy.unknown_instance {
        UnknownInstance::Refuse => Decision::Refuse(Reason::UnknownInstance),
        UnknownInstance::Succeed => Decision::Record,
        // The create was refused here, so there is no instance elsewhere to adopt.
        UnknownInstance::Adopt if view.instance.is_some() => Decision::Refuse(Reason::UnknownInstance),
        UnknownInstance::Adopt if callback.product.is_none() && !view.approved => {
            Decision::Hold(Reason::UnknownProduct)
        }
        UnknownInstance::Adopt => Decision::Run,
    }
}
