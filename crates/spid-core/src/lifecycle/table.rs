//! The decision for each action and state; the table is at the top of the [module](super).

use jiff::Timestamp;

use super::absent::{absent, unknown_release};
use super::messages::{other, payment, query, sign_on};
use super::queue::is_absent;
use super::{
    Decision, Done, EarlierCallback, EarlierOutcome, QueuedJob, Reason, Verdict, View, is_anothers,
    is_same_purchase, projected, supersedes,
};
use crate::limits;
use spid_hook::callback::{Action, Callback, ValidationIssue};
use spid_hook::instance::{Instance, RequestedValues, State};
use spid_hook::time::plus_millis;

pub(super) fn judge(view: View<'_>, callback: &Callback) -> Verdict {
    match callback.issues.first().filter(|_| !view.approved) {
        Some(issue) => with_issue(view, callback, issue),
        None => without_issue(view, callback),
    }
}

/// Holds a callback with a validation issue. Once an operator has approved it, its redeliveries are recognized by all
/// their bytes: they get its result, but run nothing.
fn with_issue(view: View<'_>, callback: &Callback, issue: &ValidationIssue) -> Verdict {
    let approved = view.earlier.is_some_and(|earlier| match earlier.standing {
        EarlierOutcome::Open(_)
        | EarlierOutcome::Done(_)
        | EarlierOutcome::Recorded
        | EarlierOutcome::RefusedByHook { .. } => true,
        EarlierOutcome::Rejected { .. }
        | EarlierOutcome::Settled { .. }
        | EarlierOutcome::Superseded
        | EarlierOutcome::Held
        | EarlierOutcome::Void => false,
    });
    let verdict = without_issue(view, callback);
    match verdict.decision {
        Decision::Join(_) | Decision::Repeat | Decision::Refuse(Reason::Hook(_)) if approved => verdict,
        _ => Decision::Hold(Reason::ValidationIssue(issue.clone())).into(),
    }
}

fn without_issue(view: View<'_>, callback: &Callback) -> Verdict {
    match callback.action {
        Action::SignOn => sign_on(view, callback).into(),
        Action::Payment => payment(view).into(),
        Action::Query => query(view).into(),
        Action::Other => other(view, callback).into(),
        Action::Create
        | Action::Renew
        | Action::RefundRenew
        | Action::Upgrade
        | Action::Expire
        | Action::Release => lifecycle(view, callback),
    }
}

fn lifecycle(view: View<'_>, callback: &Callback) -> Verdict {
    // First, because the callback must neither read nor change the instance of another order.
    if let Some(taken) = view.instance.filter(|instance| is_anothers(instance, callback)) {
        return Decision::Hold(Reason::NameTaken(taken.order_biz_id.clone().unwrap_or_default())).into();
    }
    // Before all other rules, because a redelivery joins its own job regardless of later callbacks.
    if let Some(decision) = join_open(view, callback) {
        let released = view.instance.is_some_and(|instance| instance.state == State::Released);
        return Verdict { alert: released && callback.action == Action::Create, ..decision.into() };
    }
    let Some(instance) = view.instance.filter(|instance| !is_absent(instance, view.queue)) else {
        return absent(view, callback);
    };
    // Decide on the state after the queued jobs, because the new job runs after them.
    let future = projected(instance, view.queue);
    let known = KnownInstance {
        instance,
        future: &future,
        releasing: view.queue.iter().find(|job| job.action == Action::Release).map(|job| job.job),
        done: view.earlier.and_then(|earlier| earlier.done).filter(|_| !view.approved),
        superseded: !view.approved && view.earlier.is_some_and(|earlier| is_superseded(instance, earlier)),
        followed: !view.approved && view.earlier.is_some_and(|earlier| is_followed(view.queue, earlier)),
        no_copy: callback.nonce.is_some(),
        ordered: callback.ordered,
        thaws: callback.nonce.is_some() && callback.action == Action::Renew && callback.expires_on.is_none(),
        view,
        wants: RequestedValues::of(callback),
    };
    match callback.action {
        Action::Create => known.create(callback),
        Action::Renew => known.renew(),
        Action::RefundRenew => known.refund_renew().into(),
        Action::Upgrade => known.upgrade(),
        Action::Expire => known.expire(),
        _ => known.release(),
    }
}

/// Decides a redelivery of a callback that is not finished: it joins the open job, regardless of later jobs. A callback
/// that the hook refused within the last 30 s is refused again.
pub(super) fn join_open(view: View<'_>, callback: &Callback) -> Option<Decision> {
    match &view.earlier?.standing {
        EarlierOutcome::Open(_) if is_new_toggle(view, callback) => None,
        EarlierOutcome::Open(job) => Some(Decision::Join(*job)),
        // A refusal in the future was recorded before the clock was set back, so its gap would not end. Ignore it.
        EarlierOutcome::RefusedByHook { at, reason }
            if (*at..plus_millis(*at, limits::FORWARD_GAP_MS)).contains(&view.now) =>
        {
            Some(Decision::Refuse(Reason::Hook(reason.clone())))
        }
        _ => None,
    }
}

/// Returns true if a freeze or unfreeze is a new one, although it looks like the open one: its nonce shows that it is
/// no copy, it has no order to compare, and the state after the queued jobs is the opposite. The marketplace may also
/// have retried it after the opposite request, but a new request is more likely.
fn is_new_toggle(view: View<'_>, callback: &Callback) -> bool {
    let is_unordered = callback.nonce.is_some() && !callback.ordered;
    let Some(instance) = view.instance.filter(|_| is_unordered) else { return false };
    let future = projected(instance, view.queue).state;
    match callback.action {
        Action::Expire => future == State::Active,
        Action::Renew if callback.expires_on.is_none() => future == State::Frozen,
        _ => false,
    }
}

/// Returns true if the earlier callback had no effect or is held, and the instance may have changed since then.
///
/// After a refusal by the hook only an applied change counts: a queued job may end without any effect.
fn is_superseded(instance: &Instance, earlier: &EarlierCallback) -> bool {
    match earlier.standing {
        EarlierOutcome::Superseded | EarlierOutcome::Held => true,
        EarlierOutcome::RefusedByHook { at, .. } => instance.updated_at > at,
        _ => false,
    }
}

/// Returns true if the hook refused the earlier callback, and a job that was accepted after the refusal is still queued.
fn is_followed(queue: &[QueuedJob], earlier: &EarlierCallback) -> bool {
    match earlier.standing {
        EarlierOutcome::RefusedByHook { at, .. } => queue.iter().any(|job| job.accepted_at > at),
        _ => false,
    }
}

/// An existing instance, and the request for it.
struct KnownInstance<'a> {
    instance: &'a Instance,
    future: &'a Instance,
    releasing: Option<i64>,
    /// Earlier callback with the same deduplication key that was carried out. `None` if an operator approved this one.
    done: Option<Done>,
    superseded: bool,
    /// A later request is queued behind the hook's refusal of this one. It has changed nothing yet, but it may be paid,
    /// so a request that takes something from the buyer must not run after it.
    followed: bool,
    /// The request carries a nonce, so it cannot be a replay.
    no_copy: bool,
    ordered: bool,
    /// A renewal without a date: it unfreezes the instance and leaves the term unchanged.
    thaws: bool,
    view: View<'a>,
    wants: RequestedValues,
}

impl KnownInstance<'_> {
    fn create(&self, callback: &Callback) -> Verdict {
        if self.future.state == State::Released && self.instance.id.is_none() {
            // An operator may approve a create after all, if nothing was ever begun.
            let begins = self.view.approved && self.instance.state == State::Released && !self.instance.began;
            return if begins { Decision::Run } else { Decision::Hold(Reason::LateCreate) }.into();
        }
        // A held create that was approved as a conversion counts as carried out, like any other order.
        if !is_same_purchase(self.instance, callback) && self.done.is_none() {
            return Decision::Hold(Reason::ConflictingCreate).into();
        }
        // A create in the queue answers for every delivery of this purchase.
        if let Some(job) = self.view.queue.iter().find(|job| job.action == Action::Create) {
            return Decision::Join(job.job).into();
        }
        // The operator must learn of a repeat with other values than those of the purchase.
        let says_what_was_done = self.done.is_some_and(|done| done.own) && !self.view.other_values;
        let notice = (!says_what_was_done).then_some(Reason::RepeatedWithOtherValues);
        let late = self.future.state == State::Released;
        Verdict { alert: late, notice, ..Decision::Repeat.into() }
    }

    fn renew(&self) -> Verdict {
        let past = self.wants.expires_on.is_some_and(|expiry| expiry <= self.view.now);
        let is_so = self.instance.state == State::Active && self.wants.expires_on <= self.instance.expires_on;
        let decision = match self.future.state {
            // The renewal is done, but the instance is frozen now. So do not report success before the queued release has run.
            State::Released
                if self.done.is_some() && self.ordered && self.instance.state != State::Active =>
            {
                self.released()
            }
            // The renewal was carried out before the release, so success is still true.
            State::Released if self.done.is_some() && (self.ordered || is_so) => Decision::Repeat,
            State::Released => return self.paid_for_nothing(Action::Renew),
            State::Frozen if past && !self.view.approved => Decision::Hold(Reason::PastExpiry),
            // Paid arrears may repeat order and date. If the request was a late repeat after all, running it costs a
            // few free days. Not running it could keep a paying buyer frozen.
            State::Frozen => return self.run_renewal(),
            // Run it now: it must not wait for a dead renewal that may never run.
            State::Pending | State::Active if self.thaws && self.waits_for_the_dead() => {
                return self.run_renewal();
            }
            State::Pending | State::Active if self.thaws && self.instance.state != State::Pending => {
                self.coming(&[Action::Renew])
            }
            // A renewal that was never carried out is believed, because the key signed it.
            State::Pending | State::Active if self.done.is_none() => return self.run_renewal(),
            // The instance becomes active with the queued renewal.
            State::Pending | State::Active if self.instance.state != State::Active => {
                self.coming(&[Action::Renew])
            }
            State::Pending | State::Active if self.ordered => Decision::Repeat,
            State::Pending | State::Active if is_so => Decision::Repeat,
            // A longer term than the coming one was paid and taken back later, so an operator must decide.
            State::Pending | State::Active if self.wants.expires_on > self.future.expires_on => {
                Decision::Hold(Reason::RefundedRenewal)
            }
            State::Pending | State::Active => self.coming(&[Action::Renew, Action::RefundRenew]),
        };
        decision.into()
    }

    fn run_renewal(&self) -> Verdict {
        Verdict { cancels: self.superseding(Action::Renew), ..Decision::Run.into() }
    }

    fn refund_renew(&self) -> Decision {
        match self.future.state {
            State::Released => self.released(),
            _ if self.done.is_none() && !self.refused_since() && !self.followed => Decision::Run,
            _ if self.done.is_some() && self.ordered => Decision::Repeat,
            _ if self.is_made() && self.wants.expires_on == self.instance.expires_on => Decision::Repeat,
            _ if self.wants.expires_on == self.future.expires_on => {
                self.coming(&[Action::Renew, Action::RefundRenew])
            }
            _ => Decision::Hold(Reason::LeftExpiry),
        }
    }

    /// Returns true if a later upgrade is queued behind the hook's refusal of this one: run after it, this one would
    /// undo a later purchase.
    fn is_replaced(&self) -> bool {
        self.followed && self.view.queue.iter().any(|job| job.action == Action::Upgrade)
    }

    fn upgrade(&self) -> Verdict {
        let is_released = self.future.state == State::Released;
        let decision = match self.done {
            Some(_) if self.ordered => Decision::Repeat,
            None if is_released => return self.paid_for_nothing(Action::Upgrade),
            None if !self.refused_since() && !self.is_replaced() => Decision::Run,
            // An order that the hook refused was not carried out, even if the instance has the values now.
            None if self.ordered => Decision::Hold(Reason::LeftSku),
            _ if self.is_made() && self.instance.has(&self.wants) => Decision::Repeat,
            _ if self.future.has(&self.wants) && !is_released => self.coming(&[Action::Upgrade]),
            // It may repeat the earlier of two upgrades, and running it would undo the later one.
            Some(_) => Decision::Hold(Reason::AmbiguousRepeat(Action::Upgrade)),
            None => Decision::Hold(Reason::LeftSku),
        };
        decision.into()
    }

    fn expire(&self) -> Verdict {
        // The nonce shows that the request is no copy, so it counts after a queued unfreeze.
        let is_last_word = self.no_copy && self.future.state == State::Active;
        let decision = match (self.instance.state, self.future.state) {
            (_, _) if self.ordered && self.done.is_some() => Decision::Repeat,
            // The instance is frozen, so the request is fulfilled regardless of the queued jobs.
            (State::Frozen, _) if !is_last_word => Decision::Repeat,
            (_, State::Released) => self.released(),
            (_, State::Frozen) => self.coming(&[Action::Expire]),
            (_, State::Pending | State::Active) => self.expire_in_use(),
        };
        let cancels = match decision {
            Decision::Run => self.superseding(Action::Expire),
            _ => Vec::new(),
        };
        Verdict { cancels, ..decision.into() }
    }

    /// Decides an expire for an instance in use. Freezing takes from the buyer, so it runs only without any doubt.
    fn expire_in_use(&self) -> Decision {
        if self.view.conflict && !self.view.approved {
            return Decision::Hold(Reason::ConversionHeld);
        }
        let believed_until = plus_millis(self.view.now, limits::EXPIRE_EARLY_MS);
        let is_ahead = |expiry: &Timestamp| *expiry > believed_until;
        let applied = self.instance.expires_on.filter(is_ahead);
        // A queued refund may still be dropped, so the longer term counts.
        let paid_until = self.future.expires_on.filter(is_ahead).max(applied);
        let is_renewing = applied.is_none();
        let is_first_doubted = !self.view.approved && (self.future.converted || self.future.adopted);
        match (self.done, paid_until) {
            _ if self.no_copy || self.view.approved => Decision::Run,
            // The expire announces the end of the term before the renewal that is queued.
            (_, Some(expiry)) if is_renewing => Decision::Hold(Reason::EarlyExpire(expiry)),
            (None, None) if self.future.converted && self.future.expires_on.is_none() => {
                Decision::Hold(Reason::UnknownTerm)
            }
            (Some(_), Some(expiry)) => Decision::Hold(Reason::EarlyExpire(expiry)),
            // Most likely arrears. But the end of a trial that was converted, or of a term that was not bought here,
            // may be announced late.
            (None, Some(expiry)) if self.superseded || self.followed || is_first_doubted => {
                Decision::Hold(Reason::EarlyExpire(expiry))
            }
            // Without a known term, this may be a repeat whose answer was lost.
            (Some(Done { reported: false, .. }), None) if self.future.expires_on.is_none() => {
                Decision::Hold(Reason::AmbiguousRepeat(Action::Expire))
            }
            (None | Some(_), _) => Decision::Run,
        }
    }

    fn paid_for_nothing(&self, action: Action) -> Verdict {
        // The same words were carried out before the release, so this may be a late repeat.
        if self.done.is_some() {
            return Decision::Hold(Reason::AmbiguousRepeat(action)).into();
        }
        Verdict { alert: true, ..Decision::Refuse(Reason::PaidForNothing(action)).into() }
    }

    /// Decides a release. It supersedes all jobs: those that do not run are canceled. If no create ever began, there is
    /// nothing to release.
    fn release(&self) -> Verdict {
        if self.future.state == State::Released {
            return self.release_again().into();
        }
        // A running hook cannot be stopped, so its job stays.
        let cancels = self.view.queue.iter().filter(|job| !job.running).map(|job| job.job).collect();
        if self.instance.began || self.instance.adopted || self.instance.state != State::Pending {
            return Verdict { cancels, ..Decision::Run.into() };
        }
        Verdict { cancels, leaves_tombstone: true, ..Decision::Record.into() }
    }

    fn release_again(&self) -> Decision {
        if let Some(job) = self.releasing {
            return Decision::Join(job);
        }
        match (self.instance.tombstone, self.view.approved) {
            (true, true) => Decision::Run,
            // Nothing was ever released here, so the seller's policy decides the answer.
            (true, false) => unknown_release(self.view.policy).decision,
            (false, _) => Decision::Repeat,
        }
    }

    /// Returns true if the hook refused the earlier callback and the instance has changed since. A callback that was
    /// canceled together with a create does not count, because it was never tried.
    fn refused_since(&self) -> bool {
        let standing = self.view.earlier.map(|earlier| &earlier.standing);
        self.superseded && matches!(standing, Some(EarlierOutcome::RefusedByHook { .. }))
    }

    /// Answers for a released instance. If the release is still queued, the answer is that of its job.
    fn released(&self) -> Decision {
        self.releasing.map_or(Decision::Repeat, Decision::Join)
    }

    /// Answers for a state that is reached already or will be. If it will be, the answer is that of the last queued job
    /// with one of these actions, or else of the create.
    fn coming(&self, actions: &[Action]) -> Decision {
        let job = self.last_job(actions).or_else(|| self.last_job(&[Action::Create]));
        job.map_or(Decision::Repeat, |job| Decision::Join(job.job))
    }

    /// Returns the last queued job with one of these actions.
    fn last_job(&self, actions: &[Action]) -> Option<&QueuedJob> {
        self.view.queue.iter().rev().find(|job| actions.contains(&job.action))
    }

    /// Returns true if the renewal that would unfreeze the instance is dead.
    fn waits_for_the_dead(&self) -> bool {
        let last = self.last_job(&[Action::Renew]);
        self.instance.state == State::Frozen && last.is_some_and(|job| job.dead)
    }

    /// Returns true if the instance is provisioned and not released. Only then can a request be fulfilled already.
    fn is_made(&self) -> bool {
        matches!(self.instance.state, State::Active | State::Frozen)
    }

    /// Returns the dead jobs that this action makes unnecessary.
    fn superseding(&self, action: Action) -> Vec<i64> {
        let now = self.view.now;
        let dead =
            self.view.queue.iter().filter(|job| job.dead && supersedes(action, job.action, &job.wants, now));
        dead.map(|job| job.job).collect()
    }
}
