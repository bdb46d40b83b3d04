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

pub mod entitlement;
pub mod schedule;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits;
use spid_hook::callback::{Action, Callback, Expiry, ValidationIssue};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State, Wants};
use spid_hook::time::plus_millis;

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
    pub wants: Wants,
}

/// Returns the state after all queued jobs.
pub fn projected(instance: &Instance, queue: &[QueuedJob]) -> Instance {
    let mut future = instance.clone();
    for job in queue {
        future.effect(job.action, &job.wants);
    }
    future
}

/// Returns the id for the part at `position` of the request with the id `request`. The first part has the id itself.
/// The others have an id that is computed from it and is equally hard to guess.
#[must_use]
pub fn id_of_part(request: Id, position: usize) -> Id {
    // The first part has the request's id, so that a request of one part needs no second id.
    if position == 0 {
        return request;
    }
    let mut digest = Sha256::new();
    digest.update(request.as_bytes());
    digest.update((position as u64).to_be_bytes());
    let mut bytes = *request.as_bytes();
    // Keep the instant, so that ids still sort by it.
    for (slot, byte) in bytes.iter_mut().skip(6).zip(digest.finalize()) {
        *slot = byte;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Id::from_bytes(bytes)
}

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

/// Policies for a callback about an instance that spid did not create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownInstance {
    /// Refuse. The marketplace calls again, so the problem is noticed.
    #[default]
    Refuse,
    /// Report success and do nothing: for sellers who moved to spid and serve earlier customers elsewhere.
    Succeed,
    /// Create a record and run the hook.
    Adopt,
}

/// Policy of the seller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Policy for an instance that spid did not create.
    pub unknown_instance: UnknownInstance,
    /// Largest allowed difference between the date of a sign-on and now, in milliseconds.
    pub sign_on_window_ms: i64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { unknown_instance: UnknownInstance::default(), sign_on_window_ms: limits::DATED_WINDOW_MS }
    }
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

/// Reasons to refuse or hold a callback.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No instance of this account has that name.
    #[error("no instance with this name is known here")]
    UnknownInstance,
    /// Neither an instance id nor an order identifies an instance.
    #[error("the request names no instance, and no instance was found by its order")]
    NamesNothing,
    /// The instance was released, so every further payment for it is in vain.
    #[error("the instance is released; refund this {0}")]
    PaidForNothing(Action),
    /// The instance was bought, but is not provisioned yet.
    #[error("the instance has not been created yet")]
    NotReady,
    /// The state of the instance allows no sign-on.
    #[error("the instance is {0}, so sign-on is not possible")]
    NotUsable(State),
    /// The sign-on was used before.
    #[error("this sign-on was used before")]
    SignOnUsed,
    /// The date of the sign-on is missing or too far from now.
    #[error("the time of this sign-on is missing, or outside the sign-on window (5 minutes by default)")]
    SignOnStale,
    /// A validation issue; an operator must decide.
    #[error("{0}")]
    ValidationIssue(ValidationIssue),
    /// Another purchase has the orderBizId of this instance.
    #[error("this orderBizId was bought before, by another order or another buyer")]
    ConflictingCreate,
    /// The purchase of the instance was repeated with other values.
    #[error(
        "the purchase was repeated with another SKU, other quantities or another expiry; no hook was run"
    )]
    RepeatedWithOtherValues,
    /// An unordered request was repeated, and the instance is no longer as the request asks.
    #[error(
        "this {0} was carried out before, and the instance has changed since; it may be a late repeat or a new request"
    )]
    AmbiguousRepeat(Action),
    /// An expire for an instance that was bought for good after a trial, with no known end of the term.
    #[error(
        "the trial was bought for good, and the end of that term is unknown; this expire may be for the trial"
    )]
    UnknownTerm,
    /// An expire while another purchase of the instance is held.
    #[error(
        "another purchase of this instance is held and may have bought it for good; decide the held purchase first"
    )]
    ConversionHeld,
    /// The instance was released, so a query has no result.
    #[error("the instance has been released")]
    Gone,
    /// The orderBizId of this order is the id that a hook gave to the instance of another orderBizId.
    #[error(
        "another instance, bought as `{0}`, has this orderBizId as its id; no instance was created for this order"
    )]
    NameTaken(String),
    /// A create that came after its release.
    #[error("the release of this instance came before this create")]
    LateCreate,
    /// An expire long before the known expiry, which may be a late repeat or the end of a trial.
    #[error(
        "the instance is paid until {0}, and this expire may be a late repeat or the end of an earlier term"
    )]
    EarlyExpire(Timestamp),
    /// A renewal that was carried out before and taken back later.
    #[error("this renewal was carried out before, and the expiry has been lowered since")]
    RefundedRenewal,
    /// A refund of a renewal that was carried out before, followed by another renewal.
    #[error("this refund was carried out before, and the expiry has moved since")]
    LeftExpiry,
    /// An upgrade that the hook refused before the instance changed.
    #[error("the hook refused this upgrade, and the instance has changed since")]
    LeftSku,
    /// A renewal to a date in the past.
    #[error("the instance is frozen, and this renewal ends in the past")]
    PastExpiry,
    /// A release of an instance that spid did not create.
    #[error("the instance to release was not created by spid")]
    UnknownRelease,
    /// An unknown instance is to be adopted, but the request does not name the product, which selects the hook.
    #[error("the instance is unknown, and the request names no product")]
    UnknownProduct,
    /// The hook refused.
    #[error("{0}")]
    Hook(String),
    /// An operator rejected the callback.
    #[error("{0}")]
    Rejected(String),
}

impl Reason {
    /// Code of a refusal by the hook.
    pub const HOOK: &'static str = "hook";

    /// Text for the marketplace. It leaves out the operator's words and the purchases of other buyers, because any
    /// sender of a callback can read it.
    pub fn sentence(&self) -> String {
        match self {
            Reason::Rejected(_) => "the seller has declined this".to_owned(),
            Reason::NameTaken(_) => "another instance has this orderBizId as its id".to_owned(),
            other => other.to_string(),
        }
    }

    /// Stable code for logs, counters and `--json`.
    pub const fn code(&self) -> &'static str {
        match self {
            Reason::UnknownInstance => "unknown-instance",
            Reason::NamesNothing => "names-nothing",
            Reason::PaidForNothing(_) => "paid-for-nothing",
            Reason::NotReady => "not-ready",
            Reason::NotUsable(_) => "not-usable",
            Reason::SignOnUsed => "sign-on-used",
            Reason::SignOnStale => "sign-on-stale",
            Reason::ValidationIssue(_) => "doubt",
            Reason::ConflictingCreate => "conflicting-create",
            Reason::RepeatedWithOtherValues => "create-repeated-with-other-values",
            Reason::AmbiguousRepeat(_) => "ambiguous-repeat",
            Reason::UnknownTerm => "unknown-term",
            Reason::ConversionHeld => "conversion-held",
            Reason::Gone => "gone",
            Reason::NameTaken(_) => "name-taken",
            Reason::LateCreate => "late-create",
            Reason::EarlyExpire(_) => "early-expire",
            Reason::RefundedRenewal => "refunded-renewal",
            Reason::LeftExpiry => "left-expiry",
            Reason::LeftSku => "left-sku",
            Reason::PastExpiry => "past-expiry",
            Reason::UnknownRelease => "unknown-release",
            Reason::UnknownProduct => "unknown-product",
            Reason::Hook(_) => Reason::HOOK,
            Reason::Rejected(_) => "rejected",
        }
    }
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

impl Verdict {
    fn alerting(mut self) -> Verdict {
        self.alert = true;
        self
    }

    fn noticing(mut self, notice: Option<Reason>) -> Verdict {
        self.notice = notice;
        self
    }
}

/// Decides a callback. Total: every view and every callback has a verdict.
///
/// An operator's decision applies for as long as the callback would be held: a rejected callback is refused, and a
/// settled one succeeds. A settled callback whose success was reported more than a day ago is decided as a new one.
pub fn decide(view: View<'_>, callback: &Callback) -> Verdict {
    // An operator's decision can only replace a hold.
    let verdict = judge(view, callback);
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

/// Combines the verdicts on the parts of one request, and returns the actions of the parts that run.
///
/// If one part is held or refused, the whole request is: no part runs while another part waits for an operator.
pub fn combine(parts: Vec<(Action, Verdict)>) -> (Verdict, Vec<Action>) {
    let runs: Vec<Action> = parts
        .iter()
        .filter(|(_, verdict)| matches!(verdict.decision, Decision::Run | Decision::RunBeside { .. }))
        .map(|(action, _)| *action)
        .collect();
    // The lowest rank decides: a hold beats a refusal, and both beat a job.
    let rank = |decision: &Decision| match decision {
        Decision::Hold(_) => 0,
        Decision::Refuse(_) => 1,
        Decision::Run | Decision::RunBeside { .. } => 2,
        Decision::Join(_) => 3,
        Decision::Repeat | Decision::Record => 4,
    };
    let mut cancels: Vec<i64> = parts.iter().flat_map(|(_, verdict)| verdict.cancels.clone()).collect();
    // Two parts can cancel the same job.
    cancels.sort_unstable();
    cancels.dedup();
    // If several parts rank equal, the last one decides: its job is done last and answers for all.
    let decides = parts.into_iter().rev().min_by_key(|(_, verdict)| rank(&verdict.decision));
    let Some((_, mut verdict)) = decides else { return (Decision::Record.into(), Vec::new()) };
    match verdict.decision {
        Decision::Hold(_) | Decision::Refuse(_) => (verdict, Vec::new()),
        _ => {
            verdict.cancels = cancels;
            (verdict, runs)
        }
    }
}

fn judge(view: View<'_>, callback: &Callback) -> Verdict {
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
    if let Some(decision) = open_occurrence(view, callback) {
        let released = view.instance.is_some_and(|instance| instance.state == State::Released);
        return Verdict { alert: released && callback.action == Action::Create, ..decision.into() };
    }
    let Some(instance) = view.instance.filter(|instance| !is_absent(instance, view.queue)) else {
        return absent(view, callback);
    };
    // Decide on the state after the queued jobs, because the new job runs after them.
    let future = projected(instance, view.queue);
    let known = Known {
        instance,
        future: &future,
        releasing: view.queue.iter().find(|job| job.action == Action::Release).map(|job| job.job),
        done: view.earlier.and_then(|earlier| earlier.done).filter(|_| !view.approved),
        superseded: !view.approved && view.earlier.is_some_and(|earlier| is_superseded(instance, earlier)),
        no_copy: callback.nonce.is_some(),
        ordered: callback.ordered,
        thaws: callback.nonce.is_some() && callback.action == Action::Renew && callback.expires_on.is_none(),
        view,
        wants: Wants::of(callback),
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

/// Returns true if the callback is about the purchase that created the instance. The marketplace may leave out the
/// order or the buyer. The SKU, the quantities and the expiry may change between two deliveries of one purchase.
pub fn is_same_purchase(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.order_biz_id, &callback.subject.order_biz_id)
        && agree(&instance.order_id, &callback.order_id)
        && !is_another_buyers(instance, callback)
}

/// Returns true unless instance and callback name different buyers.
pub fn is_by_the_same_buyer(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.buyer, &callback.buyer)
}

/// Returns true for a create by another buyer than that of the instance.
fn is_another_buyers(instance: &Instance, callback: &Callback) -> bool {
    callback.action == Action::Create && !agree(&instance.buyer, &callback.buyer)
}

/// Returns true unless both texts are set and differ.
fn agree(known: &Option<String>, said: &Option<String>) -> bool {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    filled(known).zip(filled(said)).is_none_or(|(known, said)| known == said)
}

/// Returns true if the orderBizId of the callback led to the instance of another order, whose hook chose that name as
/// its id. Nothing was created for this order, so the callback must neither learn about that instance nor change it. A
/// callback that also names the instance id means that instance.
pub fn is_anothers(instance: &Instance, callback: &Callback) -> bool {
    let says = |name: &&str| !name.is_empty() && *name != "0";
    let asked = callback.subject.order_biz_id.as_deref().filter(says);
    let named_by_id = callback.subject.instance_id.as_deref().filter(says).is_some();
    (callback.action == Action::Create || !named_by_id)
        && asked.is_some()
        && instance.order_biz_id.is_some()
        && asked != instance.order_biz_id.as_deref()
}

/// Decides a redelivery of a callback that is not finished: it joins the open job, regardless of later jobs. A callback
/// that the hook refused within the last 30 s is refused again.
fn open_occurrence(view: View<'_>, callback: &Callback) -> Option<Decision> {
    match &view.earlier?.standing {
        EarlierOutcome::Open(_) if is_another(view, callback) => None,
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
fn is_another(view: View<'_>, callback: &Callback) -> bool {
    let is_unordered = callback.nonce.is_some() && !callback.ordered;
    let Some(instance) = view.instance.filter(|_| is_unordered) else { return false };
    let future = projected(instance, view.queue).state;
    match callback.action {
        Action::Expire => future == State::Active,
        Action::Renew if callback.expires_on.is_none() => future == State::Frozen,
        _ => false,
    }
}

/// Returns true if the instance counts as absent. A record whose create ended without effect counts as never requested.
/// While its release is queued it does not, because no job may be queued behind the release.
fn is_absent(instance: &Instance, queue: &[QueuedJob]) -> bool {
    let coming = |job: &QueuedJob| matches!(job.action, Action::Create | Action::Release);
    instance.state == State::Pending && !queue.iter().any(coming)
}

fn absent(view: View<'_>, callback: &Callback) -> Verdict {
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

fn unknown_release(policy: Policy) -> Verdict {
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

/// Returns true if the earlier callback had no effect or is held, and the instance may have changed since then.
fn is_superseded(instance: &Instance, earlier: &EarlierCallback) -> bool {
    match earlier.standing {
        EarlierOutcome::Superseded | EarlierOutcome::Held => true,
        EarlierOutcome::RefusedByHook { at, .. } => instance.updated_at > at,
        _ => false,
    }
}

/// An existing instance, and the request for it.
struct Known<'a> {
    instance: &'a Instance,
    future: &'a Instance,
    releasing: Option<i64>,
    /// Earlier callback with the same deduplication key that was carried out. `None` if an operator approved this one.
    done: Option<Done>,
    superseded: bool,
    /// The request carries a nonce, so it cannot be a replay.
    no_copy: bool,
    ordered: bool,
    /// A renewal without a date: it unfreezes the instance and leaves the term unchanged.
    thaws: bool,
    view: View<'a>,
    wants: Wants,
}

impl Known<'_> {
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
        Verdict { alert: late, ..Verdict::from(Decision::Repeat).noticing(notice) }
    }

    fn renew(&self) -> Verdict {
        let past = self.wants.expires_on.is_some_and(|expiry| expiry <= self.view.now);
        let run = || Verdict { cancels: self.superseding(Action::Renew), ..Decision::Run.into() };
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
            State::Frozen => return run(),
            // Run it now: it must not wait for a dead renewal that may never run.
            State::Pending | State::Active if self.thaws && self.waits_for_the_dead() => return run(),
            State::Pending | State::Active if self.thaws && self.instance.state != State::Pending => {
                self.coming(&[Action::Renew])
            }
            // A renewal that was never carried out is believed, because the key signed it.
            State::Pending | State::Active if self.done.is_none() => return run(),
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

    fn refund_renew(&self) -> Decision {
        match self.future.state {
            State::Released => self.released(),
            _ if self.done.is_none() && !self.refused_since() => Decision::Run,
            _ if self.done.is_some() && self.ordered => Decision::Repeat,
            _ if self.is_made() && self.wants.expires_on == self.instance.expires_on => Decision::Repeat,
            _ if self.wants.expires_on == self.future.expires_on => {
                self.coming(&[Action::Renew, Action::RefundRenew])
            }
            _ => Decision::Hold(Reason::LeftExpiry),
        }
    }

    fn upgrade(&self) -> Verdict {
        let is_released = self.future.state == State::Released;
        let decision = match self.done {
            Some(_) if self.ordered => Decision::Repeat,
            None if is_released => return self.paid_for_nothing(Action::Upgrade),
            None if !self.refused_since() => Decision::Run,
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
            (None, Some(expiry)) if self.superseded || is_first_doubted => {
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
        Verdict::from(Decision::Refuse(Reason::PaidForNothing(action))).alerting()
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
        let last = |wanted: &[Action]| self.view.queue.iter().rev().find(|job| wanted.contains(&job.action));
        let job = last(actions).or_else(|| last(&[Action::Create]));
        job.map_or(Decision::Repeat, |job| Decision::Join(job.job))
    }

    /// Returns true if the renewal that would unfreeze the instance is dead.
    fn waits_for_the_dead(&self) -> bool {
        let last = self.view.queue.iter().rev().find(|job| job.action == Action::Renew);
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

/// Returns true if a job with `action` makes a dead job before it unnecessary. A renewed instance must no longer be
/// frozen. A frozen instance was not renewed, unless the dead renewal was paid for a term that ends after now.
pub fn supersedes(action: Action, dead: Action, wanted: &Wants, now: Timestamp) -> bool {
    match (action, dead) {
        (Action::Renew, Action::Expire) => true,
        (Action::Expire, Action::Renew) => wanted.expires_on.is_none_or(|expiry| expiry <= now),
        _ => false,
    }
}

fn sign_on(view: View<'_>, callback: &Callback) -> Decision {
    let Some(instance) = view.instance else {
        return Decision::Refuse(Reason::UnknownInstance);
    };
    // Check the date first: a stale sign-on is refused even if it was never used.
    let window = view.policy.sign_on_window_ms;
    let fresh = callback
        .sent_at
        .is_some_and(|sent| sent >= plus_millis(view.now, -window) && sent <= plus_millis(view.now, window));
    if !fresh {
        return Decision::Refuse(Reason::SignOnStale);
    }
    match view.earlier {
        Some(EarlierCallback { reported: true, .. }) => return Decision::Refuse(Reason::SignOnUsed),
        // The browser left before the hook was done, so no success was reported yet.
        Some(EarlierCallback { standing: EarlierOutcome::Done(job), .. }) => return Decision::Join(*job),
        _ => {}
    }
    if let Some(decision) = open_occurrence(view, callback) {
        return decision;
    }
    match instance.state {
        State::Active | State::Frozen => Decision::RunBeside { reported: false },
        State::Pending | State::Released => Decision::Refuse(Reason::NotUsable(instance.state)),
    }
}

/// Decides a query. The answer of a query is the id, so a query fails until there is one.
fn query(view: View<'_>) -> Decision {
    match view.instance {
        None => Decision::Refuse(Reason::UnknownInstance),
        Some(instance) if instance.state == State::Released => Decision::Refuse(Reason::Gone),
        Some(instance) if instance.id.is_none() => Decision::Refuse(Reason::NotReady),
        Some(_) => Decision::Repeat,
    }
}

fn payment(view: View<'_>) -> Decision {
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

fn other(view: View<'_>, callback: &Callback) -> Decision {
    if let Some(decision) = open_occurrence(view, callback) {
        return decision;
    }
    match view.earlier.map(|earlier| &earlier.standing) {
        // The answer of the finished job is given again.
        Some(EarlierOutcome::Done(job)) => Decision::Join(*job),
        _ => Decision::RunBeside { reported: false },
    }
}

/// Subject of a callback for its deduplication key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An instance of the store, by its number.
    Instance(i64),
    /// No known instance; the name in the callback, or its order.
    Named(&'a str),
    /// A purchase of an instance that another purchase created, identified by its order. Its date may change.
    Purchase(i64),
    /// The purchase that created an instance, repeated with these quantities.
    OtherValues(i64),
}

/// Returns the deduplication key: 16 bytes that are equal for the redeliveries of one request. The key contains
/// the account, the instance or its name, the action, and the values that the action sets. A payment has no instance, and
/// a second purchase no action.
///
/// Two different events that a marketplace announces in the same words have the same key. [`decide`] distinguishes them
/// by the reported results and the state.
pub fn deduplication_key(account: &str, subject: Subject<'_>, callback: &Callback) -> [u8; 16] {
    // Stored keys cannot be recomputed, so the contents and their order must never change.
    let mut digest = KeyDigest(Sha256::new());
    digest.text(account);
    match subject {
        // A payment has its own id, and may come before or after the create that it pays for.
        _ if callback.action == Action::Payment => {}
        Subject::Instance(number) => digest.text(&format!("instance {number}")),
        Subject::Named(name) => digest.text(&format!("name {name}")),
        Subject::Purchase(number) => {
            digest.text(&format!("purchase of instance {number}"));
            let order = callback.order_id.as_deref().filter(|order| !order.is_empty());
            digest.option(order);
            // An order has one buyer, so the buyer counts only without an order: a delivery may leave the buyer out.
            digest.option(callback.buyer.as_deref().filter(|_| order.is_none()));
            digest.option(callback.sku.as_deref());
            for (name, value) in &callback.items {
                digest.text(name);
                digest.text(value);
            }
            return digest.finish();
        }
        Subject::OtherValues(number) => {
            digest.text(&format!("other values of instance {number}"));
            for (name, value) in &callback.items {
                digest.text(name);
                digest.text(value);
            }
        }
    }
    digest.text(callback.action.as_str());
    // With a validation issue, only all signed bytes identify the request.
    if callback.issues.is_empty() {
        values(&mut digest, callback);
    } else {
        everything(&mut digest, callback);
    }
    digest.finish()
}

fn values(digest: &mut KeyDigest, callback: &Callback) {
    match callback.action {
        Action::Create => {
            digest.option(callback.subject.order_biz_id.as_deref());
            digest.option(callback.order_id.as_deref());
            digest.option(callback.sku.as_deref());
            digest.option(callback.trial.map(|trial| if trial { "true" } else { "false" }));
            digest.expiry(callback.expires_on.as_ref());
        }
        Action::Renew | Action::RefundRenew => {
            digest.option(callback.order_id.as_deref());
            digest.expiry(callback.expires_on.as_ref());
        }
        Action::Upgrade => {
            digest.option(callback.order_id.as_deref());
            digest.option(callback.sku.as_deref());
            for (name, value) in &callback.items {
                digest.text(name);
                digest.text(value);
            }
        }
        Action::Expire | Action::Release => digest.option(callback.order_id.as_deref()),
        Action::Payment => match &callback.request_id {
            Some(request) => digest.text(request),
            None => everything(digest, callback),
        },
        Action::Other => {
            // A query has its own id for each call, which is in none of its parameters.
            let said = |id: &&String| callback.parameters.iter().any(|(_, value)| value == id.as_str());
            if let Some(id) = callback.request_id.as_ref().filter(|id| !said(id)) {
                digest.text(id);
            }
            everything(digest, callback);
        }
        Action::SignOn | Action::Query => everything(digest, callback),
    }
}

fn everything(digest: &mut KeyDigest, callback: &Callback) {
    digest.text(&callback.action_name);
    for (name, value) in callback.parameters.iter() {
        digest.text(name);
        digest.text(value);
    }
}

/// Digest of texts. The length before each text keeps two texts from running into each other.
struct KeyDigest(Sha256);

impl KeyDigest {
    fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
    }

    fn option(&mut self, text: Option<&str>) {
        self.0.update([u8::from(text.is_some())]);
        self.text(text.unwrap_or_default());
    }

    fn expiry(&mut self, expiry: Option<&Expiry>) {
        match expiry {
            Some(Expiry { at: Some(at), .. }) => self.text(&at.as_millisecond().to_string()),
            Some(Expiry { raw, at: None }) => self.text(raw),
            None => self.option(None),
        }
    }

    fn finish(self) -> [u8; 16] {
        let mut key = [0u8; 16];
        for (slot, byte) in key.iter_mut().zip(self.0.finalize()) {
            *slot = byte;
        }
        key
    }
}
