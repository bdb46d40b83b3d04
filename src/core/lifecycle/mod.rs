//! The lifecycle of one sold instance: (what is applied, what is coming, what is asked) to a decision.
//!
//! [`decide`] is pure and total. It knows no store, no hook and no HTTP; whoever calls it reads the
//! [`View`] and writes the [`Verdict`] inside one transaction, so that nothing is decided on state
//! that has meanwhile changed.
//!
//! A marketplace's request carries neither a time nor an event id. Two kinds are told apart, and the dialect
//! says which one a request is ([`Callback::ordered`]):
//!
//! * An *ordered* request carries the marketplace's own order and asks "has this order been carried out?". Once
//!   it has been, the answer is success, even if a later order has replaced it, and nothing runs again. One
//!   exception: a renewal repeated for a frozen instance runs again, because it may be arrears that were paid.
//! * An *unordered* request is byte for byte the same from one happening to the next: the expire of next year is
//!   the expire of this year. It asks "is it so?", and success is answered only if it is so now.
//!
//! Where it is ambiguous which of two things a request means: if running it takes something from the buyer, it
//! is held for an operator; if running it gives the buyer something, it runs. A request whose job has not ended
//! joins that job. A request never seen before is believed, because the key signed it; the exceptions stand
//! in `expire`.
//!
//! | action | absent | pending | active | frozen | released |
//! |---|---|---|---|---|---|
//! | create | run | join | repeat; held if another purchase | repeat; held if another purchase | id, alert; held if another purchase |
//! | renew | policy | behind | run | run, thaws; held if its expiry is past | refused, alert |
//! | refund-renew | policy | behind | run | run | repeat |
//! | upgrade | policy | behind | run | run, stays frozen | refused, alert |
//! | expire | policy | behind | run, freezes | repeat | repeat |
//! | release | policy, tombstone | cancels; runs if a create ever began | run | run | repeat |

pub mod schedule;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hook::callback::{Action, Callback, Doubt, Expiry};
use crate::hook::clock::plus_millis;
use crate::observe::limits;

/// What has been applied to an instance so far. What is still coming is in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Bought, not yet provisioned.
    Pending,
    /// In use.
    Active,
    /// Expired or in arrears: data kept, no use.
    Frozen,
    /// Given up for good; a tombstone.
    Released,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [State; 4] = [State::Pending, State::Active, State::Frozen, State::Released];

    /// The word used in files, logs and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Active => "active",
            State::Frozen => "frozen",
            State::Released => "released",
        }
    }

    /// The state with this word.
    pub fn from_word(word: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One sold instance, as far as it has been applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// The id the marketplace knows it by; `None` until the create hook has finished.
    pub id: Option<String>,
    /// The marketplace's own id of what was sold.
    pub order_biz_id: Option<String>,
    /// What has been applied.
    pub state: State,
    /// The account it belongs to.
    pub account: String,
    /// The endpoint its first callback came through.
    pub endpoint: String,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product sold.
    pub product: Option<String>,
    /// The SKU in force.
    pub sku: Option<String>,
    /// The order it was created by.
    pub order_id: Option<String>,
    /// Whether it was bought as a trial; `None` when the marketplace did not say.
    pub trial: Option<bool>,
    /// When its term ends, `None` when there is no end or it could not be read.
    pub expires_on: Option<Timestamp>,
    /// The expiry as it was last sent.
    pub expires_on_raw: Option<String>,
    /// The billed quantities in force.
    pub items: BTreeMap<String, String>,
    /// Whether a create attempt ever began: something may exist at the ISV's side.
    pub began: bool,
    /// Whether its release came before anything that would have made it.
    pub tombstone: bool,
    /// Whether it was not created through us but taken over (`adopt`, `import`).
    pub adopted: bool,
    /// True once a trial has been bought for good. The end of the trial, announced late, must not freeze it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converted: bool,
    /// When its buyer came and took it, as the seller's system said; `None` as long as nobody has. It
    /// decides nothing here: the hook gets to know it.
    pub claimed_at: Option<Timestamp>,
    /// Who took it, in the seller's words: the name of a tenant, say.
    pub tenant: Option<String>,
    /// When its first callback came.
    pub created_at: Timestamp,
    /// When the marketplace last changed it. A claim is the buyer's doing, and does not count.
    pub updated_at: Timestamp,
}

impl Instance {
    /// The record a create (or a tombstone) begins with: pending, nothing applied.
    pub fn pending(callback: &Callback, account: &str, endpoint: &str, now: Timestamp) -> Instance {
        let mut instance = Instance {
            id: None,
            order_biz_id: callback.subject.order_biz_id.clone().filter(|name| !name.is_empty()),
            state: State::Pending,
            account: account.to_owned(),
            endpoint: endpoint.to_owned(),
            buyer: None,
            product: None,
            sku: None,
            order_id: None,
            trial: None,
            expires_on: None,
            expires_on_raw: None,
            items: BTreeMap::new(),
            began: false,
            tombstone: false,
            adopted: false,
            converted: false,
            claimed_at: None,
            tenant: None,
            created_at: now,
            updated_at: now,
        };
        instance.describe(callback);
        instance
    }

    /// The record of an instance that was made elsewhere: in use, and what the callback asks of it not
    /// yet applied.
    pub fn adopted(callback: &Callback, account: &str, endpoint: &str, now: Timestamp) -> Instance {
        let sku = callback.sku.clone().filter(|_| callback.action != Action::Upgrade);
        Instance {
            id: callback.subject.names().next().map(str::to_owned),
            state: State::Active,
            sku,
            order_id: None,
            expires_on: None,
            expires_on_raw: None,
            items: BTreeMap::new(),
            adopted: true,
            ..Instance::pending(callback, account, endpoint, now)
        }
    }

    /// Takes over what a create says about the instance it asks for.
    pub fn describe(&mut self, callback: &Callback) {
        self.buyer = callback.buyer.clone();
        self.product = callback.product.clone();
        self.sku = callback.sku.clone();
        self.order_id = callback.order_id.clone();
        self.trial = callback.trial;
        self.expires_on = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
        self.expires_on_raw = callback.expires_on.as_ref().map(|expiry| expiry.raw.clone());
        self.items = callback.items.clone();
    }

    /// Applies what the hook has done. A released instance never changes again.
    pub fn apply(&mut self, callback: &Callback, now: Timestamp) {
        let before = self.expires_on;
        self.effect(callback.action, &Wants::of(callback));
        if self.expires_on != before {
            self.expires_on_raw = callback.expires_on.as_ref().map(|expiry| expiry.raw.clone());
        }
        self.updated_at = now;
    }

    fn effect(&mut self, action: Action, wants: &Wants) {
        if self.state == State::Released {
            return;
        }
        match action {
            Action::Create => self.state = State::Active,
            Action::Renew => {
                self.state = State::Active;
                // A trial that is paid for is none any more, and its end is not the end of what was bought.
                let converts = wants.converts || self.trial != Some(false) && wants.trial == Some(false);
                self.converted |= converts;
                self.trial = wants.trial.or(self.trial);
                self.expires_on = match wants.expires_on {
                    None if converts => None,
                    until => self.expires_on.max(until),
                };
            }
            Action::RefundRenew => self.expires_on = wants.expires_on.or(self.expires_on),
            Action::Upgrade => {
                self.sku = wants.sku.clone().or_else(|| self.sku.take());
                self.items.extend(wants.items.clone());
            }
            Action::Expire => self.state = State::Frozen,
            Action::Release => self.state = State::Released,
            Action::SignOn | Action::Payment | Action::Query | Action::Other => {}
        }
    }

    /// Whether somebody who looks for this text may mean it: a name, the buyer, the order, the product or
    /// the SKU contains it.
    pub fn is_found_by(&self, text: &str) -> bool {
        let wanted = text.to_ascii_lowercase();
        [&self.id, &self.order_biz_id, &self.buyer, &self.order_id, &self.product, &self.sku]
            .into_iter()
            .flatten()
            .any(|word| word.to_ascii_lowercase().contains(&wanted))
    }

    /// What it will be once everything in its lane is done.
    pub fn projected(&self, lane: &[LaneJob]) -> Instance {
        let mut future = self.clone();
        for job in lane {
            future.effect(job.action, &job.wants);
        }
        future
    }

    /// True if the callback names another SKU or other quantities than those in force.
    pub fn differs_from(&self, callback: &Callback) -> bool {
        let wants = Wants::of(callback);
        wants.says_what_changes() && !self.has(&wants)
    }

    /// Whether the upgrade asks for what is already so. One that does not say what it changes never does: the
    /// marketplace has to be asked for that.
    fn has(&self, wants: &Wants) -> bool {
        if !wants.says_what_changes() {
            return false;
        }
        let same_sku = wants.sku.is_none() || wants.sku == self.sku;
        same_sku && wants.items.iter().all(|(name, value)| self.items.get(name) == Some(value))
    }
}

/// The values an action sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// The new expiry.
    pub expires_on: Option<Timestamp>,
    /// The new SKU.
    pub sku: Option<String>,
    /// The new billed quantities.
    pub items: BTreeMap<String, String>,
    /// The trial flag from now on.
    pub trial: Option<bool>,
    /// True if it buys for good what was a trial or another purchase.
    pub converts: bool,
}

impl Wants {
    fn says_what_changes(&self) -> bool {
        self.sku.is_some() || !self.items.is_empty()
    }

    /// The values this callback sets.
    pub fn of(callback: &Callback) -> Wants {
        Wants {
            expires_on: callback.expires_on.as_ref().and_then(|expiry| expiry.at),
            sku: callback.sku.clone(),
            items: callback.items.clone(),
            trial: callback.trial,
            converts: callback.converts,
        }
    }
}

/// A job of the instance that has not ended: it waits, runs, is pending, held or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneJob {
    /// The store's number of the job.
    pub job: i64,
    /// What it will do.
    pub action: Action,
    /// Whether a hook is running for it now, so that it cannot be cancelled.
    pub running: bool,
    /// Whether it ran out of its retry schedule.
    pub dead: bool,
    /// The values it will set.
    pub wants: Wants,
}

/// What is known of the earlier callbacks that read like this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// True if the success of the latest of them was reported to the marketplace.
    pub told: bool,
    /// The latest of them that was carried out, if one was.
    pub done: Option<Done>,
    /// Where the latest of them stands.
    pub standing: Standing,
}

/// An earlier callback that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// True if its success was reported to the marketplace.
    pub told: bool,
    /// True if a job of its own carried it out, and not one that it merely joined.
    pub own: bool,
}

/// Where an occurrence stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its job has not ended.
    Open(i64),
    /// Its job is done.
    Done(i64),
    /// The hook refused it.
    RefusedByHook {
        /// When.
        at: Timestamp,
        /// In the hook's words.
        reason: String,
    },
    /// An operator rejected it.
    Rejected {
        /// In the operator's words.
        reason: String,
    },
    /// An operator found that it is a repeat: success, and nothing to run.
    Settled {
        /// When the marketplace was told so; `None` before it calls again.
        told_at: Option<Timestamp>,
    },
    /// Something that came later made its job unnecessary.
    Superseded,
    /// It was held, and no operator has decided yet.
    Held,
    /// It was refused without a job, or its job was dropped: as if never asked.
    Void,
    /// It needed no job.
    Recorded,
}

/// What to do with a callback for an instance nobody created here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownInstance {
    /// Answer no. The marketplace calls again, and somebody will look.
    #[default]
    Refuse,
    /// Answer yes and do nothing: for sellers who moved here and keep the old customers elsewhere.
    Succeed,
    /// Make a record and run the hook.
    Adopt,
}

/// What the seller decided beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// For an instance nobody created here.
    pub unknown_instance: UnknownInstance,
    /// How far the date of a sign-on may be off, in milliseconds.
    pub sign_on_window_ms: i64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { unknown_instance: UnknownInstance::default(), sign_on_window_ms: limits::DATED_WINDOW_MS }
    }
}

/// Everything a decision may depend on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The instance, as far as it is applied; `None` when no name of the callback is known.
    pub instance: Option<&'a Instance>,
    /// Its jobs that have not ended, in order.
    pub lane: &'a [LaneJob],
    /// What is known of the callback's occurrence.
    pub occurrence: Option<&'a Occurrence>,
    /// What the seller decided beforehand.
    pub policy: Policy,
    /// True while another purchase of this instance is held: what it turns out to be decides about an expire.
    pub conflict: bool,
    /// True if the callback reads like an earlier one by its key, and names other quantities.
    pub other_values: bool,
    /// Whether an operator has looked at this callback and wants it done.
    pub approved: bool,
    /// The present instant.
    pub now: Timestamp,
}

/// Why a callback is refused or held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No instance of this account has that name.
    #[error("no such instance is known here")]
    UnknownInstance,
    /// Neither an instance id nor an order leads to an instance.
    #[error("the request names no instance, and its order leads to none")]
    NamesNothing,
    /// It was released; whatever is paid now is paid for nothing.
    #[error("the instance has been released, so this {0} was paid for nothing")]
    PaidForNothing(Action),
    /// It was asked for, and nothing has been made yet.
    #[error("the instance has not been created yet")]
    NotReady,
    /// It is not in a state in which anybody may sign on.
    #[error("nobody can sign on to an instance that is {0}")]
    NotUsable(State),
    /// The sign-on was used before.
    #[error("this sign-on was used before")]
    SignOnUsed,
    /// The sign-on's date is missing or too far off.
    #[error("this sign-on is not of now: its time is missing, or outside the window")]
    SignOnStale,
    /// Nothing can be decided before an operator has looked.
    #[error("{0}")]
    Doubt(Doubt),
    /// Another purchase has the instance's orderBizId.
    #[error("this orderBizId was bought before, by another order or another buyer")]
    ConflictingCreate,
    /// The purchase the instance was made by, repeated with other values.
    #[error(
        "the purchase was repeated with another SKU, other quantities or another expiry; nothing was run for it"
    )]
    RepeatedWithOtherValues,
    /// A request without an order of its own, repeated after the instance has left what it asks for.
    #[error(
        "this {0} was carried out before, and the instance has changed since; it may be a late repeat or meant anew"
    )]
    AmbiguousRepeat(Action),
    /// An expire of what was bought for good after a trial, and nothing says until when.
    #[error(
        "a trial was bought for good, and nothing says when that term ends; this may be the end of the trial"
    )]
    UnknownTerm,
    /// An expire while another purchase of the instance is held.
    #[error(
        "another purchase of this instance is held, and may have bought it for good; decide that one first"
    )]
    ConversionHeld,
    /// It was released, so there is nothing to be asked about.
    #[error("the instance has been released")]
    Gone,
    /// What was bought has a name that the hook gave, as an id, to what this other orderBizId bought.
    #[error(
        "another instance, bought as `{0}`, has this orderBizId as its id: nothing was made for this order"
    )]
    NameTaken(String),
    /// A create of something whose release came first.
    #[error("its release came before this create")]
    LateCreate,
    /// An expire that may be a late repeat, or the end of a trial, long before the known expiry.
    #[error(
        "the instance is paid until {0}, and this expire may be a late repeat or the end of an earlier term"
    )]
    EarlyExpire(Timestamp),
    /// A renewal that was carried out before, and taken back since.
    #[error("this renewal was carried out before, and the expiry has been lowered since")]
    RefundedRenewal,
    /// A refunded renewal that was carried out before, and renewed since.
    #[error("this refund was carried out before, and the expiry has moved since")]
    LeftExpiry,
    /// An upgrade that the hook refused, before the instance changed.
    #[error("the hook refused this upgrade, and the instance has changed since")]
    LeftSku,
    /// A renewal to a date that is already past.
    #[error("the instance is frozen, and this renewal ends in the past")]
    PastExpiry,
    /// A release of an instance nobody created here.
    #[error("a release of an instance that was not created here")]
    UnknownRelease,
    /// Nothing says which hook an instance taken over belongs to.
    #[error("the instance is unknown, and the request does not say which product it is")]
    UnknownProduct,
    /// The hook said no.
    #[error("{0}")]
    Hook(String),
    /// An operator said no.
    #[error("{0}")]
    Rejected(String),
}

impl Reason {
    /// The code of what a hook refused.
    pub const HOOK: &'static str = "hook";

    /// What the marketplace may read of it. An operator's words, and what another buyer bought, are not for
    /// everybody who can send a callback.
    pub fn told(&self) -> String {
        match self {
            Reason::Rejected(_) => "the seller has declined this".to_owned(),
            Reason::NameTaken(_) => "another instance has this orderBizId as its id".to_owned(),
            other => other.to_string(),
        }
    }

    /// The stable word for logs, counters and `--json`.
    pub const fn code(&self) -> &'static str {
        match self {
            Reason::UnknownInstance => "unknown-instance",
            Reason::NamesNothing => "names-nothing",
            Reason::PaidForNothing(_) => "paid-for-nothing",
            Reason::NotReady => "not-ready",
            Reason::NotUsable(_) => "not-usable",
            Reason::SignOnUsed => "sign-on-used",
            Reason::SignOnStale => "sign-on-stale",
            Reason::Doubt(_) => "doubt",
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

/// What is done with a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A hook invocation is owed for the instance, after those in its lane.
    Run,
    /// A hook invocation is owed that has no place in the lane.
    RunBeside {
        /// Whether success is claimed now: for messages that are done when they are recorded.
        told: bool,
    },
    /// It belongs to this job; the answer is the job's.
    Join(i64),
    /// Nothing changes; what was answered before is answered again.
    Repeat,
    /// Nothing is owed, and that is a success.
    Record,
    /// No. As things stand it will not be done.
    Refuse(Reason),
    /// An operator must look.
    Hold(Reason),
}

/// A decision and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What is done with the callback.
    pub decision: Decision,
    /// Jobs of the lane that end now, unrun.
    pub cancels: Vec<i64>,
    /// The instance is released here and now, without a hook: there was nothing to release.
    pub entombs: bool,
    /// Somebody should look, though nothing waits for it.
    pub alert: bool,
    /// What an operator should know of a success.
    pub notice: Option<Reason>,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Verdict {
        Verdict { decision, cancels: Vec::new(), entombs: false, alert: false, notice: None }
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

/// Decides what is done with a callback. Total: every view and every callback has a verdict.
///
/// An operator's word holds for as long as the callback would be held again: what was rejected is refused, and
/// what was settled succeeds. A settled one that was reported more than a day ago is a new question.
pub fn decide(view: View<'_>, callback: &Callback) -> Verdict {
    let verdict = judge(view, callback);
    if view.approved || !matches!(verdict.decision, Decision::Hold(_)) {
        return verdict;
    }
    match view.occurrence.map(|occurrence| &occurrence.standing) {
        Some(Standing::Rejected { reason }) => Decision::Refuse(Reason::Rejected(reason.clone())).into(),
        Some(Standing::Settled { told_at }) => {
            let holds = told_at.is_none_or(|told| view.now < plus_millis(told, limits::SETTLED_REPEAT_MS));
            if holds { Decision::Repeat.into() } else { verdict }
        }
        _ => verdict,
    }
}

/// Combines the verdicts on the parts of one request into one on the whole, and says which of the parts run.
///
/// What holds or refuses one part holds or refuses them all: nothing of a request is done while another part
/// of it waits for an operator.
pub fn combine(parts: Vec<(Action, Verdict)>) -> (Verdict, Vec<Action>) {
    let runs: Vec<Action> = parts
        .iter()
        .filter(|(_, verdict)| matches!(verdict.decision, Decision::Run | Decision::RunBeside { .. }))
        .map(|(action, _)| *action)
        .collect();
    let rank = |decision: &Decision| match decision {
        Decision::Hold(_) => 0,
        Decision::Refuse(_) => 1,
        Decision::Run | Decision::RunBeside { .. } => 2,
        Decision::Join(_) => 3,
        Decision::Repeat | Decision::Record => 4,
    };
    let mut cancels: Vec<i64> = parts.iter().flat_map(|(_, verdict)| verdict.cancels.clone()).collect();
    cancels.sort_unstable();
    cancels.dedup();
    // Of two parts that wait, the later one is done last: its job answers for both.
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
    match callback.doubts.first().filter(|_| !view.approved) {
        Some(doubt) => doubtful(view, callback, doubt),
        None => undoubted(view, callback),
    }
}

/// A doubtful callback waits for an operator. What one has approved is known by all its bytes: its
/// redeliveries hear what came of it, but run nothing anew.
fn doubtful(view: View<'_>, callback: &Callback, doubt: &Doubt) -> Verdict {
    let approved = view.occurrence.is_some_and(|occurrence| match occurrence.standing {
        Standing::Open(_) | Standing::Done(_) | Standing::Recorded | Standing::RefusedByHook { .. } => true,
        Standing::Rejected { .. }
        | Standing::Settled { .. }
        | Standing::Superseded
        | Standing::Held
        | Standing::Void => false,
    });
    let verdict = undoubted(view, callback);
    match verdict.decision {
        Decision::Join(_) | Decision::Repeat | Decision::Refuse(Reason::Hook(_)) if approved => verdict,
        _ => Decision::Hold(Reason::Doubt(doubt.clone())).into(),
    }
}

fn undoubted(view: View<'_>, callback: &Callback) -> Verdict {
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
    if let Some(taken) = view.instance.filter(|instance| is_anothers(instance, callback)) {
        return Decision::Hold(Reason::NameTaken(taken.order_biz_id.clone().unwrap_or_default())).into();
    }
    if let Some(decision) = open_occurrence(view, callback) {
        let released = view.instance.is_some_and(|instance| instance.state == State::Released);
        return Verdict { alert: released && callback.action == Action::Create, ..decision.into() };
    }
    let Some(instance) = view.instance.filter(|instance| !is_absent(instance, view.lane)) else {
        return absent(view, callback);
    };
    let future = instance.projected(view.lane);
    let known = Known {
        instance,
        future: &future,
        releasing: view.lane.iter().find(|job| job.action == Action::Release).map(|job| job.job),
        done: view.occurrence.and_then(|occurrence| occurrence.done).filter(|_| !view.approved),
        overtaken: !view.approved
            && view.occurrence.is_some_and(|occurrence| is_overtaken(instance, occurrence)),
        no_copy: callback.once.is_some(),
        ordered: callback.ordered,
        thaws: callback.once.is_some() && callback.action == Action::Renew && callback.expires_on.is_none(),
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

/// True if the callback is about the purchase the instance was made by. The marketplace may leave out order or
/// buyer; the SKU, the quantities and the expiry may move between two deliveries of one purchase.
pub fn is_same_purchase(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.order_biz_id, &callback.subject.order_biz_id)
        && agree(&instance.order_id, &callback.order_id)
        && !is_another_buyers(instance, callback)
}

/// True unless instance and callback name different buyers.
pub fn is_by_the_same_buyer(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.buyer, &callback.buyer)
}

/// True if the callback is a create by another buyer than the one the instance was made for.
fn is_another_buyers(instance: &Instance, callback: &Callback) -> bool {
    callback.action == Action::Create && !agree(&instance.buyer, &callback.buyer)
}

/// True unless both say something, and not the same.
fn agree(known: &Option<String>, said: &Option<String>) -> bool {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    filled(known).zip(filled(said)).is_none_or(|(known, said)| known == said)
}

/// Whether the callback found, by its orderBizId, the instance of another order: one whose hook chose
/// that name as its id. Nothing was made for this order, so nothing of that instance may be told to it,
/// and nothing that is said of it may be done to that instance. Who names the id itself means the id.
pub fn is_anothers(instance: &Instance, callback: &Callback) -> bool {
    let says = |name: &&str| !name.is_empty() && *name != "0";
    let asked = callback.subject.order_biz_id.as_deref().filter(says);
    let named_by_id = callback.subject.instance_id.as_deref().filter(says).is_some();
    (callback.action == Action::Create || !named_by_id)
        && asked.is_some()
        && instance.order_biz_id.is_some()
        && asked != instance.order_biz_id.as_deref()
}

/// A repeat of what has not ended joins it, whatever was queued since; what a hook has just refused is refused
/// again.
fn open_occurrence(view: View<'_>, callback: &Callback) -> Option<Decision> {
    match &view.occurrence?.standing {
        Standing::Open(_) if is_another(view, callback) => None,
        Standing::Open(job) => Some(Decision::Join(*job)),
        // A refusal that lies ahead is one of before the clock was set back: its gap has no end.
        Standing::RefusedByHook { at, reason }
            if (*at..plus_millis(*at, limits::FORWARD_GAP_MS)).contains(&view.now) =>
        {
            Some(Decision::Refuse(Reason::Hook(reason.clone())))
        }
        _ => None,
    }
}

/// True if a freeze or an unfreeze is another one than the open one it looks like: it is no copy, no order tells
/// it from the next, and what it asks is neither so nor coming. (It may also have been sent anew after its
/// contrary; that is less likely than that it is meant.)
fn is_another(view: View<'_>, callback: &Callback) -> bool {
    let is_unordered = callback.once.is_some() && !callback.ordered;
    let Some(instance) = view.instance.filter(|_| is_unordered) else { return false };
    let future = instance.projected(view.lane).state;
    match callback.action {
        Action::Expire => future == State::Active,
        Action::Renew if callback.expires_on.is_none() => future == State::Frozen,
        _ => false,
    }
}

/// A record whose create ended without effect is as if it had never been asked for; but while its
/// release is coming, nothing may be queued that would run behind it.
fn is_absent(instance: &Instance, lane: &[LaneJob]) -> bool {
    let coming = |job: &LaneJob| matches!(job.action, Action::Create | Action::Release);
    instance.state == State::Pending && !lane.iter().any(coming)
}

fn absent(view: View<'_>, callback: &Callback) -> Verdict {
    let has_begun = view.instance.is_some_and(|instance| instance.began);
    let was_cancelled = view.occurrence.is_some_and(|known| {
        // A rejection or settlement came after the cancellation.
        matches!(known.standing, Standing::Superseded | Standing::Rejected { .. } | Standing::Settled { .. })
    });
    match callback.action {
        // Its redelivery could not be told from another one: each would be an instance of its own.
        Action::Create if callback.subject.names().next().is_none() => {
            Decision::Hold(Reason::NamesNothing).into()
        }
        // It was tried, and nobody knows how far it came before its release cancelled it: to try it anew under
        // another key could make it twice.
        Action::Create if !view.approved && has_begun && was_cancelled => {
            Decision::Hold(Reason::LateCreate).into()
        }
        Action::Create => Decision::Run.into(),
        // A create began here once and ended without success: something may have to be cleaned up.
        Action::Release if has_begun => Decision::Run.into(),
        Action::Release if callback.subject.names().next().is_none() => {
            Decision::Hold(Reason::NamesNothing).into()
        }
        Action::Release if callback.made_elsewhere && view.instance.is_none() => Decision::Run.into(),
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
    Verdict { entombs: true, ..decision.into() }
}

fn unknown(view: View<'_>, callback: &Callback) -> Decision {
    if callback.subject.names().next().is_none() {
        return Decision::Hold(Reason::NamesNothing);
    }
    // There is no create of it: its first callback is the first that is heard of it.
    if callback.made_elsewhere && view.instance.is_none() {
        return Decision::Run;
    }
    match view.policy.unknown_instance {
        UnknownInstance::Refuse => Decision::Refuse(Reason::UnknownInstance),
        UnknownInstance::Succeed => Decision::Record,
        // Its create was refused here: it is not elsewhere, so there is nothing to take over.
        UnknownInstance::Adopt if view.instance.is_some() => Decision::Refuse(Reason::UnknownInstance),
        UnknownInstance::Adopt if callback.product.is_none() && !view.approved => {
            Decision::Hold(Reason::UnknownProduct)
        }
        UnknownInstance::Adopt => Decision::Run,
    }
}

/// Whether what was asked before came to nothing, or waits for an operator, and the instance may have moved on
/// since.
fn is_overtaken(instance: &Instance, occurrence: &Occurrence) -> bool {
    match occurrence.standing {
        Standing::Superseded | Standing::Held => true,
        Standing::RefusedByHook { at, .. } => instance.updated_at > at,
        _ => false,
    }
}

/// An instance that is there, and what is asked of it.
struct Known<'a> {
    instance: &'a Instance,
    future: &'a Instance,
    releasing: Option<i64>,
    /// An earlier callback that reads like this one was carried out. Never set for what an operator approves.
    done: Option<Done>,
    overtaken: bool,
    /// It is certain that the request is no copy of an earlier one.
    no_copy: bool,
    ordered: bool,
    /// It leaves the term as it is.
    thaws: bool,
    view: View<'a>,
    wants: Wants,
}

impl Known<'_> {
    fn create(&self, callback: &Callback) -> Verdict {
        if self.future.state == State::Released && self.instance.id.is_none() {
            // Of something that never began, an operator may want a beginning after all.
            let begins = self.view.approved && self.instance.state == State::Released && !self.instance.began;
            return if begins { Decision::Run } else { Decision::Hold(Reason::LateCreate) }.into();
        }
        // A held create that was approved as a conversion has been carried out like any other order.
        if !is_same_purchase(self.instance, callback) && self.done.is_none() {
            return Decision::Hold(Reason::ConflictingCreate).into();
        }
        if let Some(job) = self.view.lane.iter().find(|job| job.action == Action::Create) {
            return Decision::Join(job.job).into();
        }
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
            // Frozen until the release that is coming has come, it is not what a renewal promises.
            State::Released
                if self.done.is_some() && self.ordered && self.instance.state != State::Active =>
            {
                self.released()
            }
            State::Released if self.done.is_some() && (self.ordered || is_so) => Decision::Repeat,
            State::Released => return self.paid_for_nothing(Action::Renew),
            State::Frozen if past && !self.view.approved => Decision::Hold(Reason::PastExpiry),
            // Arrears that were paid may repeat order and date. If it was a late repeat after all, that costs a
            // few free days; the other way round it would keep a payer frozen.
            State::Frozen => return run(),
            // It does not depend on a renewal that may never come.
            State::Pending | State::Active if self.thaws && self.waits_for_the_dead() => return run(),
            State::Pending | State::Active if self.thaws && self.instance.state != State::Pending => {
                self.coming(&[Action::Renew])
            }
            State::Pending | State::Active if self.done.is_none() => return run(),
            // Active once the renewal that is coming has come.
            State::Pending | State::Active if self.instance.state != State::Active => {
                self.coming(&[Action::Renew])
            }
            State::Pending | State::Active if self.ordered => Decision::Repeat,
            State::Pending | State::Active if is_so => Decision::Repeat,
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
            // Whatever made it so, an order that the hook refused was not carried out.
            None if self.ordered => Decision::Hold(Reason::LeftSku),
            _ if self.is_made() && self.instance.has(&self.wants) => Decision::Repeat,
            _ if self.future.has(&self.wants) && !is_released => self.coming(&[Action::Upgrade]),
            // It may be the earlier of two, and running it would undo the later one.
            Some(_) => Decision::Hold(Reason::AmbiguousRepeat(Action::Upgrade)),
            None => Decision::Hold(Reason::LeftSku),
        };
        decision.into()
    }

    fn expire(&self) -> Verdict {
        let is_last_word = self.no_copy && self.future.state == State::Active;
        let decision = match (self.instance.state, self.future.state) {
            (_, _) if self.ordered && self.done.is_some() => Decision::Repeat,
            // Frozen it is, whatever is coming.
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

    /// An expire of what is in use. It takes from the buyer, so it runs only where nothing speaks against it.
    fn expire_in_use(&self) -> Decision {
        if self.view.conflict && !self.view.approved {
            return Decision::Hold(Reason::ConversionHeld);
        }
        let believed_until = plus_millis(self.view.now, limits::EXPIRE_EARLY_MS);
        let is_ahead = |expiry: &Timestamp| *expiry > believed_until;
        let applied = self.instance.expires_on.filter(is_ahead);
        // A refund that is on its way may still be dropped, so the longer term counts.
        let paid_until = self.future.expires_on.filter(is_ahead).max(applied);
        let is_renewing = applied.is_none();
        let is_first_doubted = !self.view.approved && (self.future.converted || self.future.adopted);
        match (self.done, paid_until) {
            _ if self.no_copy || self.view.approved => Decision::Run,
            // What ends is the term before the renewal that is on its way.
            (_, Some(expiry)) if is_renewing => Decision::Hold(Reason::EarlyExpire(expiry)),
            (None, None) if self.future.converted && self.future.expires_on.is_none() => {
                Decision::Hold(Reason::UnknownTerm)
            }
            (Some(_), Some(expiry)) => Decision::Hold(Reason::EarlyExpire(expiry)),
            // Arrears, most likely. But the end of a trial that was bought, and of a term that was not bought
            // here, may be announced late.
            (None, Some(expiry)) if self.overtaken || is_first_doubted => {
                Decision::Hold(Reason::EarlyExpire(expiry))
            }
            // Without a known term it cannot be told from a repeat whose answer got lost.
            (Some(Done { told: false, .. }), None) if self.future.expires_on.is_none() => {
                Decision::Hold(Reason::AmbiguousRepeat(Action::Expire))
            }
            (None | Some(_), _) => Decision::Run,
        }
    }

    fn paid_for_nothing(&self, action: Action) -> Verdict {
        if self.done.is_some() {
            return Decision::Hold(Reason::AmbiguousRepeat(action)).into();
        }
        Verdict::from(Decision::Refuse(Reason::PaidForNothing(action))).alerting()
    }

    /// A release overtakes everything: what has not begun ends unrun, and where nothing ever began
    /// there is nothing to release.
    fn release(&self) -> Verdict {
        if self.future.state == State::Released {
            return self.release_again().into();
        }
        let cancels = self.view.lane.iter().filter(|job| !job.running).map(|job| job.job).collect();
        if self.instance.began || self.instance.adopted || self.instance.state != State::Pending {
            return Verdict { cancels, ..Decision::Run.into() };
        }
        Verdict { cancels, entombs: true, ..Decision::Record.into() }
    }

    fn release_again(&self) -> Decision {
        if let Some(job) = self.releasing {
            return Decision::Join(job);
        }
        match (self.instance.tombstone, self.view.approved) {
            (true, true) => Decision::Run,
            // Nothing was ever released here: what may be said of it is the seller's decision.
            (true, false) => unknown_release(self.view.policy).decision,
            (false, _) => Decision::Repeat,
        }
    }

    /// Whether the hook refused it, and the instance has changed since. What was cancelled with a create
    /// is not meant: that was never tried.
    fn refused_since(&self) -> bool {
        let standing = self.view.occurrence.map(|occurrence| &occurrence.standing);
        self.overtaken && matches!(standing, Some(Standing::RefusedByHook { .. }))
    }

    /// Released already, or about to be: then it is true when the release is done.
    fn released(&self) -> Decision {
        self.releasing.map_or(Decision::Repeat, Decision::Join)
    }

    /// True already, or about to be: then it is true when the last job of these actions is done, or else the
    /// create.
    fn coming(&self, actions: &[Action]) -> Decision {
        let last = |wanted: &[Action]| self.view.lane.iter().rev().find(|job| wanted.contains(&job.action));
        let job = last(actions).or_else(|| last(&[Action::Create]));
        job.map_or(Decision::Repeat, |job| Decision::Join(job.job))
    }

    /// True if the renewal that would thaw the instance is out of tries.
    fn waits_for_the_dead(&self) -> bool {
        let last = self.view.lane.iter().rev().find(|job| job.action == Action::Renew);
        self.instance.state == State::Frozen && last.is_some_and(|job| job.dead)
    }

    /// True if what is applied is there and can be in use: only then can anything be so.
    fn is_made(&self) -> bool {
        matches!(self.instance.state, State::Active | State::Frozen)
    }

    /// The dead jobs that this action makes unnecessary.
    fn superseding(&self, action: Action) -> Vec<i64> {
        let now = self.view.now;
        let dead =
            self.view.lane.iter().filter(|job| job.dead && supersedes(action, job.action, &job.wants, now));
        dead.map(|job| job.job).collect()
    }
}

/// True if a dead job no longer matters once `action` comes behind it: what was renewed is not to be frozen any
/// more; and what is frozen was not renewed, unless the renewal was paid for a term that reaches beyond now.
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
    let window = view.policy.sign_on_window_ms;
    let fresh = callback
        .sent_at
        .is_some_and(|sent| sent >= plus_millis(view.now, -window) && sent <= plus_millis(view.now, window));
    if !fresh {
        return Decision::Refuse(Reason::SignOnStale);
    }
    match view.occurrence {
        Some(Occurrence { told: true, .. }) => return Decision::Refuse(Reason::SignOnUsed),
        // Its browser went away before the hook was done: no success was given for it yet.
        Some(Occurrence { standing: Standing::Done(job), .. }) => return Decision::Join(*job),
        _ => {}
    }
    if let Some(decision) = open_occurrence(view, callback) {
        return decision;
    }
    match instance.state {
        State::Active | State::Frozen => Decision::RunBeside { told: false },
        State::Pending | State::Released => Decision::Refuse(Reason::NotUsable(instance.state)),
    }
}

/// A query tells the id, and so nothing before there is one.
fn query(view: View<'_>) -> Decision {
    match view.instance {
        None => Decision::Refuse(Reason::UnknownInstance),
        Some(instance) if instance.state == State::Released => Decision::Refuse(Reason::Gone),
        Some(instance) if instance.id.is_none() => Decision::Refuse(Reason::NotReady),
        Some(_) => Decision::Repeat,
    }
}

fn payment(view: View<'_>) -> Decision {
    match view.occurrence.map(|occurrence| &occurrence.standing) {
        None => Decision::RunBeside { told: true },
        // It was held, so nothing has run for it yet.
        Some(Standing::Held | Standing::Void | Standing::Rejected { .. }) if view.approved => {
            Decision::RunBeside { told: true }
        }
        Some(_) => Decision::Repeat,
    }
}

fn other(view: View<'_>, callback: &Callback) -> Decision {
    if let Some(decision) = open_occurrence(view, callback) {
        return decision;
    }
    match view.occurrence.map(|occurrence| &occurrence.standing) {
        Some(Standing::Done(job)) => Decision::Join(*job),
        _ => Decision::RunBeside { told: false },
    }
}

/// What a callback's occurrence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An instance of the store, by its number.
    Instance(i64),
    /// Nothing that is known; the name the callback used, or its order.
    Named(&'a str),
    /// A purchase of an instance that another purchase made: by its order, however its date moves.
    Purchase(i64),
    /// The purchase that made an instance, repeated with these quantities.
    OtherValues(i64),
}

/// The 16 bytes that are equal for the redeliveries of one request, and differ for anything that
/// would change something else: account, instance, action, order id if given, the values it sets.
///
/// They are equal, too, for two happenings that a marketplace announces with the same words; which
/// of the two it is, [`decide`] tells from what was told and from the state.
pub fn occurrence_key(account: &str, subject: Subject<'_>, callback: &Callback) -> [u8; 16] {
    let mut digest = KeyDigest(Sha256::new());
    digest.text(account);
    match subject {
        // A payment has its own id, and may come before or after the create it pays for.
        _ if callback.action == Action::Payment => {}
        Subject::Instance(number) => digest.text(&format!("instance {number}")),
        Subject::Named(name) => digest.text(&format!("name {name}")),
        Subject::Purchase(number) => {
            digest.text(&format!("purchase of instance {number}"));
            let order = callback.order_id.as_deref().filter(|order| !order.is_empty());
            digest.option(order);
            // An order has one buyer, whether a delivery names him or not.
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
    if callback.doubts.is_empty() {
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
            // A question has a name of its own each time it is asked, which stands in no parameter.
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

/// A digest over texts that cannot run into each other: each goes in behind its length.
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
