//! The lifecycle table, written a second time: every relevant state, queue, earlier callback and action, decided by a
//! plain reading of the table and by [`decide`].
//!
//! The reading below does not use the code. If the two disagree, one of them is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;

use crate::support::bench::{ACCOUNT, create, day, expire, refund_renew, release, renew, upgrade};
use jiff::Timestamp;
use proptest::prelude::*;
use spid_core::lifecycle::{
    Decision, Done, EarlierCallback, EarlierOutcome, Policy, QueuedJob, Reason, UnknownInstance, Verdict,
    View, decide,
};
use spid_hook::callback::{Action, Callback, ValidationIssue};
use spid_hook::instance::{Instance, RequestedValues, State};

/// Day of all decisions; the term ends on day 365.
const TODAY: i64 = 100;

/// Applied state.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Applied {
    Absent,
    /// Bought; true if a create attempt ever began.
    Pending {
        began: bool,
    },
    /// In use until this day; `None` if the end is not known.
    Active {
        until: Option<i64>,
        origin: Origin,
    },
    Frozen {
        until: i64,
    },
    /// Released; true if it ever got an id.
    Released {
        named: bool,
    },
    /// Its release came before any other callback.
    Tombstone,
}

/// Origin of an instance, as far as it matters for a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    Bought,
    /// A trial that was bought for good.
    Converted,
    /// Imported or adopted.
    Elsewhere,
}

/// One job in the instance's queue.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Coming {
    action: Action,
    mood: Mood,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Waits,
    Runs,
    Dead,
}

/// Earlier callback with the same deduplication key.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Never,
    /// Its job is in the instance's queue, at this position.
    Open(usize),
    /// Carried out; true if its success was reported.
    Done {
        reported: bool,
    },
    RefusedJustNow,
    RefusedLongAgo,
    /// The hook refused it, and the instance has changed since.
    RefusedBeforeAChange,
    /// The hook refused it, and what is queued was accepted since. The instance has not changed.
    RefusedBeforeTheQueue,
    Superseded,
    /// Held, and not decided yet.
    Held,
    Void,
    /// Carried out once and reported, and held when it came again.
    DoneThenHeld,
    /// Rejected by an operator, and never carried out.
    Rejected,
    /// Settled by an operator as a repeat; the marketplace has not called since.
    Settled,
    /// The same, and success was reported two days ago.
    SettledLongAgo,
}

impl Seen {
    fn done(self) -> bool {
        matches!(self, Seen::Done { .. } | Seen::DoneThenHeld)
    }
}

#[derive(Debug, Clone)]
struct Case {
    applied: Applied,
    queue: Vec<Coming>,
    seen: Seen,
    callback: Callback,
    unknown: UnknownInstance,
    /// True if another purchase of the instance is held.
    conflict: bool,
    /// True if it names other quantities than the earlier purchase.
    other_values: bool,
}

/// Verdict of the reading.
#[derive(Debug, Clone, PartialEq)]
struct Reading {
    what: What,
    cancels: Vec<i64>,
    leaves_tombstone: bool,
    alert: bool,
    notice: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Run,
    Join(i64),
    Repeat,
    Record,
    Refuse(&'static str),
    Hold(&'static str),
}

impl From<What> for Reading {
    fn from(what: What) -> Reading {
        Reading { what, cancels: Vec::new(), leaves_tombstone: false, alert: false, notice: None }
    }
}

const SKU: &str = "basic";
const BUYER: &str = "buyer-1";
const DONE_JOB: i64 = 77;

fn number(position: usize) -> i64 {
    position as i64 + 1
}

/// The last job of this action in the instance's queue.
fn coming(case: &Case, action: Action) -> Option<i64> {
    case.queue.iter().rposition(|job| job.action == action).map(number)
}

/// The last job in the instance's queue that sets the expiry.
fn coming_term(case: &Case) -> Option<i64> {
    coming(case, Action::Renew).max(coming(case, Action::RefundRenew))
}

/// Column of the table for a callback, for the state after the queued jobs.
#[derive(Debug, Clone, PartialEq)]
enum Column {
    Absent,
    Active { until: Option<i64>, sku: &'static str },
    Frozen { until: Option<i64>, sku: &'static str },
    Released,
}

/// Days and SKUs that the queued jobs set.
const LANE_RENEWS_TO: i64 = 800;
const LANE_REFUNDS_TO: i64 = 200;
const LANE_SKU: &str = "lane";

fn column(case: &Case) -> Column {
    let creating = coming(case, Action::Create).is_some();
    let releasing = coming(case, Action::Release).is_some();
    let mut column = match case.applied {
        Applied::Absent => return Column::Absent,
        Applied::Pending { .. } if releasing => return Column::Released,
        Applied::Pending { .. } if !creating => return Column::Absent,
        Applied::Pending { .. } => Column::Active { until: Some(365), sku: SKU },
        Applied::Active { until, .. } => Column::Active { until, sku: SKU },
        Applied::Frozen { until } => Column::Frozen { until: Some(until), sku: SKU },
        Applied::Released { .. } | Applied::Tombstone => return Column::Released,
    };
    for job in &case.queue {
        column = match (job.action, column) {
            (Action::Release, _) | (_, Column::Released) => Column::Released,
            (Action::Renew, Column::Active { until, sku } | Column::Frozen { until, sku }) => {
                Column::Active { until: until.max(Some(LANE_RENEWS_TO)), sku }
            }
            (Action::Expire, Column::Active { until, sku }) => Column::Frozen { until, sku },
            (Action::RefundRenew, Column::Active { sku, .. }) => {
                Column::Active { until: Some(LANE_REFUNDS_TO), sku }
            }
            (Action::RefundRenew, Column::Frozen { sku, .. }) => {
                Column::Frozen { until: Some(LANE_REFUNDS_TO), sku }
            }
            (Action::Upgrade, Column::Active { until, .. }) => Column::Active { until, sku: LANE_SKU },
            (Action::Upgrade, Column::Frozen { until, .. }) => Column::Frozen { until, sku: LANE_SKU },
            (_, column) => column,
        };
    }
    column
}

/// Dead jobs of this action, with the paid term of each.
fn dead(case: &Case, action: Action) -> Vec<i64> {
    let jobs = case.queue.iter().enumerate();
    jobs.filter(|(_, job)| job.action == action && job.mood == Mood::Dead).map(|(at, _)| number(at)).collect()
}

/// The table. An operator's earlier decision applies as long as the table holds the callback.
fn reading(case: &Case) -> Reading {
    let read = by_the_table(case);
    match (case.seen, read.what) {
        (Seen::Rejected, What::Hold(_)) => What::Refuse("rejected").into(),
        (Seen::Settled, What::Hold(_)) => What::Repeat.into(),
        _ => read,
    }
}

fn by_the_table(case: &Case) -> Reading {
    let released = matches!(case.applied, Applied::Released { .. } | Applied::Tombstone);
    let late_create = released && case.callback.action == Action::Create;
    match case.seen {
        Seen::Open(position) => {
            return Reading { alert: late_create, ..What::Join(number(position)).into() };
        }
        Seen::RefusedJustNow => return Reading { alert: late_create, ..What::Refuse("hook").into() },
        _ => {}
    }
    let column = column(case);
    match case.callback.action {
        Action::Create => read_create(case, &column),
        Action::Renew => read_renew(case, &column),
        Action::RefundRenew => read_refund(case, &column).into(),
        Action::Upgrade => read_upgrade(case, &column),
        Action::Expire => read_expire(case, &column),
        _ => read_release(case, &column),
    }
}

fn read_create(case: &Case, column: &Column) -> Reading {
    let named = matches!(case.applied, Applied::Active { .. } | Applied::Frozen { .. })
        || case.applied == Applied::Released { named: true };
    let other_order = case.callback.order_id.is_some() && case.callback.order_id != create("b").order_id;
    let other_buyer = case.callback.buyer.as_deref().is_some_and(|buyer| buyer != BUYER);
    let was_tried = case.applied == Applied::Pending { began: true };
    match column {
        // A release cancelled it, and did nothing itself: the progress of the create is unknown.
        Column::Absent
            if was_tried
                && matches!(
                    case.seen,
                    Seen::Superseded | Seen::Rejected | Seen::Settled | Seen::SettledLongAgo
                ) =>
        {
            What::Hold("late-create").into()
        }
        Column::Absent => What::Run.into(),
        // Hold a create that matches a tombstone, or whose own release is queued.
        Column::Released if !named => What::Hold("late-create").into(),
        // Another purchase, in any state. One that an operator approved as a conversion succeeds.
        _ if (other_order || other_buyer) && !case.seen.done() => What::Hold("conflicting-create").into(),
        // The same purchase, while its create is queued.
        _ if coming(case, Action::Create).is_some() => {
            What::Join(coming(case, Action::Create).unwrap()).into()
        }
        column => Reading {
            alert: *column == Column::Released,
            // The same purchase with other values.
            notice: (!case.seen.done() || case.other_values).then_some("create-repeated-with-other-values"),
            ..What::Repeat.into()
        },
    }
}

fn policy(case: &Case) -> What {
    match case.unknown {
        UnknownInstance::Refuse => What::Refuse("unknown-instance"),
        UnknownInstance::Succeed => What::Record,
        // Its create was refused here, so the instance does not exist.
        UnknownInstance::Adopt if case.applied != Applied::Absent => What::Refuse("unknown-instance"),
        UnknownInstance::Adopt if case.callback.product.is_none() => What::Hold("unknown-product"),
        UnknownInstance::Adopt => What::Run,
    }
}

fn day_of(callback: &Callback) -> i64 {
    let at = callback.expires_on.as_ref().unwrap().at.unwrap();
    at.duration_since(day(0)).as_hours() / 24
}

/// A paid request that can never be done: the instance is released, or its release is queued.
fn gone(case: &Case, is_so: bool) -> Reading {
    match (case.seen.done(), case.callback.ordered) {
        (true, true) => What::Repeat.into(),
        (true, false) if is_so => What::Repeat.into(),
        (true, false) => What::Hold("ambiguous-repeat").into(),
        (false, _) => Reading { alert: true, ..What::Refuse("paid-for-nothing").into() },
    }
}

fn read_renew(case: &Case, column: &Column) -> Reading {
    let asked = day_of(&case.callback);
    let run = Reading { cancels: dead(case, Action::Expire), ..What::Run.into() };
    let (done, ordered) = (case.seen.done(), case.callback.ordered);
    match (column, case.applied) {
        (Column::Absent, _) => policy(case).into(),
        // It was carried out, but helps only when the instance is in use again, or released.
        (Column::Released, applied) if done && ordered && !matches!(applied, Applied::Active { .. }) => {
            with_the_release(case).into()
        }
        (Column::Released, applied) => {
            gone(case, matches!(applied, Applied::Active { until: Some(until), .. } if asked <= until))
        }
        (Column::Frozen { .. }, _) if asked <= TODAY => What::Hold("past-expiry").into(),
        // Arrears may be paid with the same order and date: run it again, for any earlier decision.
        (Column::Frozen { .. }, _) => run,
        (Column::Active { .. }, _) if !done => run,
        // Active only after the queued renewal is done.
        (Column::Active { .. }, Applied::Frozen { .. } | Applied::Pending { .. }) => {
            with_the_job(case, coming(case, Action::Renew)).into()
        }
        // It was carried out, even if it was taken back later.
        (Column::Active { .. }, _) if ordered => What::Repeat.into(),
        (Column::Active { .. }, Applied::Active { until: Some(until), .. }) if asked <= until => {
            What::Repeat.into()
        }
        (Column::Active { until: Some(until), .. }, _) if asked <= *until => {
            with_the_job(case, coming_term(case)).into()
        }
        (Column::Active { .. }, _) => What::Hold("refunded-renewal").into(),
    }
}

/// Waits for this job, or else for the create. Success if neither is queued.
fn with_the_job(case: &Case, job: Option<i64>) -> What {
    job.or(coming(case, Action::Create)).map_or(What::Repeat, What::Join)
}

/// Waits for the queued release. Success if the release is done.
fn with_the_release(case: &Case) -> What {
    let first = case.queue.iter().position(|job| job.action == Action::Release);
    first.map_or(What::Repeat, |position| What::Join(number(position)))
}

/// Returns true if the hook refused the request before another one was carried out or queued.
fn refused_before_another(case: &Case) -> bool {
    case.seen == Seen::RefusedBeforeAChange
        || case.seen == Seen::RefusedBeforeTheQueue && !case.queue.is_empty()
}

fn read_refund(case: &Case, column: &Column) -> What {
    let asked = Some(day_of(&case.callback));
    let term = match case.applied {
        Applied::Active { until, .. } => until,
        Applied::Frozen { until } => Some(until),
        _ => None,
    };
    match column {
        Column::Absent => policy(case),
        Column::Released => with_the_release(case),
        // Refused, and the instance has changed or will change since: a late run would undo a later payment.
        _ if !case.seen.done() && !refused_before_another(case) => What::Run,
        _ if case.seen.done() && case.callback.ordered => What::Repeat,
        // The instance is in the requested state.
        _ if term == asked => What::Repeat,
        // The instance will be in the requested state.
        Column::Active { until, .. } | Column::Frozen { until, .. } if *until == asked => {
            with_the_job(case, coming_term(case))
        }
        // A redelivery and a second refund to the same date look the same, and a run takes a paid term away.
        _ => What::Hold("left-expiry"),
    }
}

fn read_upgrade(case: &Case, column: &Column) -> Reading {
    let asked = case.callback.sku.as_deref();
    let is_so = asked == Some(SKU);
    let (done, ordered) = (case.seen.done(), case.callback.ordered);
    // A later purchase must not be undone, neither an applied one nor one that is queued.
    let is_replaced = case.queue.iter().any(|job| job.action == Action::Upgrade);
    let refused_before =
        case.seen == Seen::RefusedBeforeAChange || case.seen == Seen::RefusedBeforeTheQueue && is_replaced;
    match column {
        Column::Absent => policy(case).into(),
        Column::Released => {
            let is_there = matches!(case.applied, Applied::Active { .. } | Applied::Frozen { .. });
            gone(case, is_so && is_there)
        }
        _ if done && ordered => What::Repeat.into(),
        _ if !done && !refused_before => What::Run.into(),
        // The state is right for another reason: this order was not carried out.
        _ if !done && ordered => What::Hold("left-sku").into(),
        // Done or refused before: the state is right already, or will be.
        _ if is_so && !matches!(case.applied, Applied::Pending { .. }) => What::Repeat.into(),
        Column::Active { sku, .. } | Column::Frozen { sku, .. } if asked == Some(*sku) => {
            with_the_job(case, coming(case, Action::Upgrade)).into()
        }
        _ if done => What::Hold("ambiguous-repeat").into(),
        _ => What::Hold("left-sku").into(),
    }
}

const fn is_ahead(until: i64) -> bool {
    until > TODAY + 1
}

/// The queued term, or the applied one if it is longer.
fn longer(coming: Option<i64>, applied: Applied) -> Option<i64> {
    match applied {
        Applied::Active { until, .. } => coming.max(until),
        Applied::Pending { .. } => coming.max(Some(365)),
        _ => coming,
    }
}

fn read_expire(case: &Case, column: &Column) -> Reading {
    let superseded = matches!(case.seen, Seen::Superseded | Seen::Held) || refused_before_another(case);
    let (done, ordered) = (case.seen.done(), case.callback.ordered);
    let doubted =
        matches!(case.applied, Applied::Active { origin: Origin::Converted | Origin::Elsewhere, .. });
    let run: Reading = What::Run.into();
    // A dead renewal does not matter after its paid term. A queued renewal does.
    const { assert!(LANE_RENEWS_TO > TODAY) };
    match (column, case.applied) {
        (Column::Absent, _) => policy(case).into(),
        _ if ordered && done => What::Repeat.into(),
        // The instance is frozen.
        (_, Applied::Frozen { .. }) => What::Repeat.into(),
        (Column::Released, _) => with_the_release(case).into(),
        (Column::Frozen { .. }, _) => with_the_job(case, coming(case, Action::Expire)).into(),
        (Column::Active { .. }, _) if case.conflict => What::Hold("conversion-held").into(),
        // The term before the queued renewal ends.
        (Column::Active { until: Some(until), .. }, Applied::Active { until: applied, .. })
            if is_ahead(*until) && !applied.is_some_and(is_ahead) =>
        {
            What::Hold("early-expire").into()
        }
        (Column::Active { until: None, .. }, Applied::Active { origin: Origin::Converted, .. }) if !done => {
            What::Hold("unknown-term").into()
        }
        // A queued refund may still be dropped, so the longer term counts.
        (Column::Active { until, .. }, applied) => match (done, longer(*until, applied)) {
            (true, Some(until)) if is_ahead(until) => What::Hold("early-expire").into(),
            (true, Some(_)) => run,
            (true, None) if case.seen == (Seen::Done { reported: false }) => {
                What::Hold("ambiguous-repeat").into()
            }
            (true, None) => run,
            (false, Some(until)) if is_ahead(until) && (superseded || doubted) => {
                What::Hold("early-expire").into()
            }
            (false, _) => run,
        },
    }
}

fn read_release(case: &Case, column: &Column) -> Reading {
    let unknown = match case.unknown {
        UnknownInstance::Refuse => What::Refuse("unknown-instance"),
        UnknownInstance::Succeed => What::Record,
        UnknownInstance::Adopt => What::Hold("unknown-release"),
    };
    let not_running = case.queue.iter().enumerate().filter(|(_, job)| job.mood != Mood::Runs);
    let cancels: Vec<i64> = not_running.map(|(position, _)| number(position)).collect();
    match (column, case.applied) {
        (Column::Absent, Applied::Pending { began: true }) => What::Run.into(),
        (Column::Absent, _) => Reading { leaves_tombstone: true, ..unknown.into() },
        // A tombstone alone is not a success: nothing was released here.
        (Column::Released, Applied::Tombstone) if coming(case, Action::Release).is_none() => unknown.into(),
        (Column::Released, _) => with_the_release(case).into(),
        // No create ever began, so there is nothing to release.
        (_, Applied::Pending { began: false }) => {
            Reading { cancels, leaves_tombstone: true, ..What::Record.into() }
        }
        _ => Reading { cancels, ..What::Run.into() },
    }
}

fn instance(applied: Applied) -> Option<Instance> {
    let mut instance = Instance::pending(&create("b"), ACCOUNT, "test", day(0));
    instance.buyer = Some(BUYER.to_owned());
    let term = |days: i64| Some(day(days));
    match applied {
        Applied::Absent => return None,
        Applied::Pending { began } => instance.began = began,
        Applied::Active { until, origin } => {
            (instance.state, instance.expires_on) = (State::Active, until.and_then(term));
            instance.converted = origin == Origin::Converted;
            instance.adopted = origin == Origin::Elsewhere;
        }
        Applied::Frozen { until } => {
            (instance.state, instance.expires_on) = (State::Frozen, term(until));
        }
        Applied::Released { .. } => instance.state = State::Released,
        Applied::Tombstone => (instance.state, instance.tombstone) = (State::Released, true),
    }
    let named = matches!(applied, Applied::Active { .. } | Applied::Frozen { .. })
        || applied == Applied::Released { named: true };
    instance.began |= named;
    instance.id = named.then(|| "i-1".to_owned());
    Some(instance)
}

fn queued_job(position: usize, job: Coming) -> QueuedJob {
    let callback = match job.action {
        Action::Create => create("b"),
        Action::Renew => renew("b", "lane", day(LANE_RENEWS_TO)),
        Action::RefundRenew => refund_renew("b", "lane", day(LANE_REFUNDS_TO)),
        Action::Upgrade => upgrade("b", LANE_SKU),
        Action::Expire => expire("b"),
        _ => release("b"),
    };
    QueuedJob {
        job: number(position),
        action: job.action,
        running: job.mood == Mood::Runs,
        dead: job.mood == Mood::Dead,
        wants: RequestedValues::of(&callback),
        accepted_at: seconds_ago(3_600),
    }
}

fn seconds_ago(seconds: i64) -> Timestamp {
    spid_hook::time::plus_millis(day(TODAY), -1000 * seconds)
}

fn earlier(seen: Seen) -> Option<EarlierCallback> {
    let done = |reported| Done { reported, own: true };
    let refused = |seconds| EarlierOutcome::RefusedByHook { at: seconds_ago(seconds), reason: "no".into() };
    let settled = |reported_at| EarlierOutcome::Settled { reported_at };
    let (reported, done, standing) = match seen {
        Seen::Never => return None,
        Seen::Open(position) => (false, None, EarlierOutcome::Open(number(position))),
        Seen::Done { reported } => (reported, Some(done(reported)), EarlierOutcome::Done(DONE_JOB)),
        Seen::RefusedJustNow => (false, None, refused(29)),
        Seen::RefusedLongAgo => (false, None, refused(30)),
        // One day before the last change of the instance.
        Seen::RefusedBeforeAChange => (false, None, refused((TODAY + 1) * 24 * 3600)),
        Seen::RefusedBeforeTheQueue => (false, None, refused(2 * 3_600)),
        Seen::Superseded => (false, None, EarlierOutcome::Superseded),
        Seen::Held => (false, None, EarlierOutcome::Held),
        Seen::Void => (false, None, EarlierOutcome::Void),
        Seen::DoneThenHeld => (false, Some(done(true)), EarlierOutcome::Held),
        Seen::Rejected => (false, None, EarlierOutcome::Rejected { reason: "no".into() }),
        Seen::Settled => (false, None, settled(None)),
        Seen::SettledLongAgo => (true, None, settled(Some(seconds_ago(2 * 24 * 3600)))),
    };
    Some(EarlierCallback { reported, done, standing })
}

fn judge(case: &Case) -> Verdict {
    let instance = instance(case.applied);
    let queue: Vec<QueuedJob> = case.queue.iter().enumerate().map(|(at, job)| queued_job(at, *job)).collect();
    let earlier = earlier(case.seen);
    let view = View {
        instance: instance.as_ref(),
        queue: &queue,
        earlier: earlier.as_ref(),
        policy: Policy { unknown_instance: case.unknown, ..Policy::default() },
        conflict: case.conflict,
        other_values: case.other_values,
        approved: false,
        now: day(TODAY),
    };
    decide(view, &case.callback)
}

fn read_back(verdict: &Verdict) -> Reading {
    let what = match &verdict.decision {
        Decision::Run => What::Run,
        Decision::RunBeside { .. } => panic!("no action of the lifecycle runs beside its lane"),
        Decision::Join(job) => What::Join(*job),
        Decision::Repeat => What::Repeat,
        Decision::Record => What::Record,
        Decision::Refuse(reason) => What::Refuse(reason.code()),
        Decision::Hold(reason) => What::Hold(reason.code()),
    };
    Reading {
        what,
        cancels: verdict.cancels.clone(),
        leaves_tombstone: verdict.leaves_tombstone,
        alert: verdict.alert,
        notice: verdict.notice.as_ref().map(Reason::code),
    }
}

fn callbacks() -> Vec<Callback> {
    let named = |mut callback: Callback| {
        callback.product = Some("product-1".into());
        callback
    };
    let ordered = |callback: Callback| Callback { ordered: true, order_id: Some("r".into()), ..callback };
    let mut all = vec![create("b"), expire("b"), named(expire("b")), release("b"), named(release("b"))];
    all.push(Callback { order_id: Some("another".into()), ..create("b") });
    all.push(Callback { buyer: Some("another".into()), ..create("b") });
    all.push(Callback { order_id: None, buyer: None, ..create("b") });
    all.push(ordered(expire("b")));
    for until in [TODAY - 1, TODAY, TODAY + 1, LANE_REFUNDS_TO, 365, 500, LANE_RENEWS_TO, 900] {
        for callback in [renew("b", "r", day(until)), refund_renew("b", "r", day(until))] {
            all.push(Callback { ordered: false, ..callback.clone() });
            all.push(ordered(callback));
        }
    }
    all.push(named(renew("b", "r", day(500))));
    for sku in [SKU, LANE_SKU, "gold"] {
        all.push(upgrade("b", sku));
        all.push(ordered(upgrade("b", sku)));
    }
    // The callback has no order details: an order lookup is needed.
    let silent = Callback { sku: None, ..upgrade("b", SKU) };
    all.push(ordered(silent.clone()));
    all.push(silent);
    all
}

const fn bought(until: i64) -> Applied {
    Applied::Active { until: Some(until), origin: Origin::Bought }
}

const APPLIED: [Applied; 16] = [
    Applied::Absent,
    Applied::Pending { began: false },
    Applied::Pending { began: true },
    bought(TODAY - 10),
    bought(TODAY + 1),
    bought(TODAY + 2),
    bought(365),
    Applied::Active { until: None, origin: Origin::Bought },
    Applied::Active { until: Some(365), origin: Origin::Converted },
    Applied::Active { until: None, origin: Origin::Converted },
    Applied::Active { until: Some(365), origin: Origin::Elsewhere },
    Applied::Frozen { until: TODAY - 10 },
    Applied::Frozen { until: 365 },
    Applied::Released { named: true },
    Applied::Released { named: false },
    Applied::Tombstone,
];

/// True if the store can hold this. A queued create belongs to a pending instance and comes first, nothing follows a
/// release, and a released instance has no queue.
fn possible(applied: Applied, queue: &[Coming]) -> bool {
    let position = |action| queue.iter().position(|job| job.action == action);
    let only_first_runs = queue.iter().skip(1).all(|job| job.mood != Mood::Runs);
    let released_last = position(Action::Release).is_none_or(|at| at + 1 == queue.len());
    let fits = match applied {
        Applied::Absent | Applied::Released { .. } | Applied::Tombstone => queue.is_empty(),
        Applied::Pending { began } => {
            let first = queue.first();
            let tried = first.is_some_and(|job| job.action == Action::Create && job.mood != Mood::Waits);
            let created = first.is_none_or(|job| job.action == Action::Create)
                || (began && queue.len() == 1 && first.is_some_and(|job| job.action == Action::Release));
            created && (began || !tried)
        }
        Applied::Active { .. } | Applied::Frozen { .. } => position(Action::Create).is_none(),
    };
    let creates = queue.iter().filter(|job| job.action == Action::Create).count();
    only_first_runs && released_last && fits && creates <= 1
}

fn lanes() -> Vec<Vec<Coming>> {
    let actions = [
        Action::Create,
        Action::Renew,
        Action::RefundRenew,
        Action::Upgrade,
        Action::Expire,
        Action::Release,
    ];
    let moods = [Mood::Waits, Mood::Runs, Mood::Dead];
    let one: Vec<Coming> = actions
        .into_iter()
        .flat_map(|action| moods.into_iter().map(move |mood| Coming { action, mood }))
        .collect();
    let mut lanes = vec![Vec::new()];
    for first in &one {
        lanes.push(vec![*first]);
        for second in &one {
            lanes.push(vec![*first, *second]);
            let third = Coming { action: Action::Expire, mood: Mood::Waits };
            lanes.push(vec![*first, *second, third]);
        }
    }
    lanes
}

fn seens(queue: &[Coming], action: Action) -> Vec<Seen> {
    let mut seens = vec![
        Seen::Never,
        Seen::Done { reported: false },
        Seen::Done { reported: true },
        Seen::DoneThenHeld,
        Seen::RefusedJustNow,
        Seen::RefusedLongAgo,
        Seen::RefusedBeforeAChange,
        Seen::RefusedBeforeTheQueue,
        Seen::Superseded,
        Seen::Held,
        Seen::Void,
        Seen::Rejected,
        Seen::Settled,
        Seen::SettledLongAgo,
    ];
    let own = queue.iter().enumerate().filter(|(_, job)| job.action == action);
    seens.extend(own.map(|(position, _)| Seen::Open(position)));
    seens
}

/// The policy matters only for instances that were not created here.
fn policies(applied: Applied) -> &'static [UnknownInstance] {
    const ALL: [UnknownInstance; 3] =
        [UnknownInstance::Refuse, UnknownInstance::Succeed, UnknownInstance::Adopt];
    match applied {
        Applied::Active { .. } | Applied::Frozen { .. } | Applied::Released { .. } => &ALL[..1],
        Applied::Absent | Applied::Pending { .. } | Applied::Tombstone => &ALL,
    }
}

/// A held purchase matters only to an expire, other quantities only to a create.
fn variants(action: Action) -> Vec<(bool, bool)> {
    match action {
        Action::Expire => vec![(false, false), (true, false)],
        Action::Create => vec![(false, false), (false, true)],
        _ => vec![(false, false)],
    }
}

#[test]
fn every_cell_of_the_table_is_decided_as_it_is_written() {
    let mut cells = 0;
    for queue in lanes() {
        for applied in APPLIED.into_iter().filter(|applied| possible(*applied, &queue)) {
            for callback in callbacks() {
                for seen in seens(&queue, callback.action) {
                    // With three queued jobs, check only results that depend on the queue.
                    if queue.len() > 2 && !matches!(seen, Seen::Never | Seen::Done { .. } | Seen::Open(_)) {
                        continue;
                    }
                    for unknown in policies(applied) {
                        for (conflict, other_values) in variants(callback.action) {
                            let case = Case {
                                applied,
                                queue: queue.clone(),
                                seen,
                                callback: callback.clone(),
                                unknown: *unknown,
                                conflict,
                                other_values,
                            };
                            assert_eq!(read_back(&judge(&case)), reading(&case), "{case:#?}");
                            cells += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(cells > 100_000, "only {cells} cells");
}

#[test]
fn a_doubt_comes_before_everything() {
    for applied in APPLIED {
        for mut callback in callbacks() {
            callback.issues = vec![ValidationIssue::AmbiguousValue { name: "aliUid".into() }];
            let all =
                [Seen::Never, Seen::Void, Seen::Done { reported: true }, Seen::Done { reported: false }];
            for seen in all {
                let callback = callback.clone();
                let unknown = UnknownInstance::Succeed;
                let case = Case {
                    applied,
                    queue: Vec::new(),
                    seen,
                    callback,
                    unknown,
                    conflict: false,
                    other_values: false,
                };
                let verdict = judge(&case);
                let held = matches!(verdict.decision, Decision::Hold(Reason::ValidationIssue(_)));
                // After an approval, repeats get the result, and nothing runs that was not approved.
                let reported = matches!(verdict.decision, Decision::Join(_) | Decision::Repeat);
                let approved = matches!(seen, Seen::Done { .. });
                assert!(held || approved && reported, "{case:?}: {verdict:?}");
                assert!(verdict.cancels.is_empty() && !verdict.leaves_tombstone);
            }
        }
    }
}

#[test]
fn actions_without_a_lifecycle_stay_out_of_the_lane() {
    for applied in APPLIED {
        for seen in [Seen::Never, Seen::Done { reported: true }, Seen::Done { reported: false }, Seen::Void] {
            for action in [Action::Payment, Action::SignOn, Action::Query, Action::Other] {
                let mut callback = Callback::new(action, action.as_str());
                callback.sent_at = Some(day(TODAY));
                let unknown = UnknownInstance::Adopt;
                let case = Case {
                    applied,
                    queue: Vec::new(),
                    seen,
                    callback,
                    unknown,
                    conflict: false,
                    other_values: false,
                };
                let verdict = judge(&case);
                assert_ne!(verdict.decision, Decision::Run, "{case:?}");
                assert!(verdict.cancels.is_empty() && !verdict.leaves_tombstone);
                let first = applied != Applied::Absent && seen == Seen::Never;
                let usable = matches!(applied, Applied::Active { .. } | Applied::Frozen { .. });
                match action {
                    Action::Payment if seen == Seen::Never => {
                        assert_eq!(verdict.decision, Decision::RunBeside { reported: true });
                    }
                    Action::Payment => assert_eq!(verdict.decision, Decision::Repeat),
                    Action::SignOn if first && usable => {
                        assert_eq!(verdict.decision, Decision::RunBeside { reported: false });
                    }
                    Action::SignOn if first || seen == (Seen::Done { reported: true }) => {
                        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{case:?}");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// One step of a life, for [`decide`] and for a plain record of the hook's view.
fn lives() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..callbacks().len(), 0u8..4), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// For any sequence of callbacks and hook results, the instance's queue keeps the promises.
    #[test]
    fn any_life_keeps_the_promises(life in lives()) {
        let mut instance: Option<Instance> = None;
        let mut queue: Vec<(QueuedJob, Callback)> = Vec::new();
        let all = callbacks();
        let mut reported: BTreeMap<String, i64> = BTreeMap::new();
        let mut next = 1;
        let mut was_released = false;
        for (which, ending) in life {
            let callback = all[which].clone();
            let key = format!("{callback:?}");
            let view: Vec<QueuedJob> = queue.iter().map(|(job, _)| job.clone()).collect();
            let mine = queue.iter().find(|(_, of)| format!("{of:?}") == key).map(|(job, _)| job.job);
            let earlier = match (mine, reported.get(&key)) {
                (Some(job), before) => {
                    let done = before.map(|_| Done { reported: true, own: true });
                    Some(EarlierCallback { reported: false, done, standing: EarlierOutcome::Open(job) })
                }
                (None, Some(job)) => {
                    let done = Some(Done { reported: true, own: true });
                    Some(EarlierCallback { reported: true, done, standing: EarlierOutcome::Done(*job) })
                }
                (None, None) => None,
            };
            let view = View {
                instance: instance.as_ref(),
                queue: &view,
                earlier: earlier.as_ref(),
                policy: Policy::default(),
                conflict: false,
                other_values: false,
                approved: false,
                now: day(TODAY),
            };
            let verdict = decide(view, &callback);
            let running: Vec<i64> = queue.iter().filter(|(job, _)| job.running).map(|(job, _)| job.job).collect();
            prop_assert!(!verdict.cancels.iter().any(|job| running.contains(job)), "a running hook is not undone");
            prop_assert!(verdict.cancels.iter().all(|job| queue.iter().any(|(other, _)| other.job == *job)));
            queue.retain(|(job, _)| !verdict.cancels.contains(&job.job));
            match &verdict.decision {
                Decision::Run => {
                    prop_assert!(mine.is_none(), "an open occurrence never gets a second job");
                    prop_assert!(!was_released, "nothing runs for what is gone");
                    prop_assert!(!queue.iter().any(|(job, _)| job.action == Action::Release), "nothing behind a release");
                    if instance.is_none() {
                        prop_assert_eq!(callback.action, Action::Create);
                        instance = Some(Instance::pending(&callback, ACCOUNT, "test", day(TODAY)));
                    }
                    let job = QueuedJob { job: next, action: callback.action, running: false, dead: false, wants: RequestedValues::of(&callback), accepted_at: day(TODAY) };
                    queue.push((job, callback.clone()));
                    next += 1;
                }
                Decision::Join(job) => prop_assert!(queue.iter().any(|(other, _)| other.job == *job)),
                Decision::Repeat => prop_assert!(instance.is_some(), "what is repeated has happened"),
                _ => {}
            }
            if verdict.leaves_tombstone {
                let mut tomb = instance.take().unwrap_or_else(|| Instance::pending(&callback, ACCOUNT, "test", day(TODAY)));
                tomb.state = State::Released;
                instance = Some(tomb);
            }
            // The hook completes the first job, fails it for good, begins it, or does not run.
            if let (Some((job, of)), Some(row)) = (queue.first().cloned(), instance.as_mut()) {
                row.began |= job.action == Action::Create && ending != 3;
                match ending {
                    0 => {
                        row.apply(&of, day(TODAY));
                        reported.insert(format!("{of:?}"), job.job);
                        queue.remove(0);
                        row.id.get_or_insert_with(|| "i-1".to_owned());
                    }
                    1 => {
                        queue[0].0.running = false;
                        queue[0].0.dead = true;
                    }
                    2 => queue[0].0.running = !job.dead,
                    _ => {}
                }
            }
            let now_released = instance.as_ref().is_some_and(|row| row.state == State::Released);
            prop_assert!(now_released || !was_released, "released stays released");
            was_released = now_released;
        }
    }
}
