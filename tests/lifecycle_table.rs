//! The lifecycle table, written down a second time: every state, lane, occurrence and action that
//! differ in anything, judged by a plain reading of the table and by [`decide`].
//!
//! The reading below knows nothing of how the code gets there. Where the two part, one is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

mod common;

use std::collections::BTreeMap;

use common::{ACCOUNT, create, day, expire, refund_renew, release, renew, upgrade};
use jiff::Timestamp;
use proptest::prelude::*;
use spid::callback::{Action, Callback, Doubt};
use spid::instance::{
    Decision, Instance, LaneJob, Occurrence, Policy, Reason, Standing, State, UnknownInstance, Verdict, View,
    Wants, decide,
};

/// Everything is decided on this day; the term ends on day 365.
const TODAY: i64 = 100;

/// What has been applied.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Applied {
    Absent,
    /// Bought; whether a create attempt ever began.
    Pending {
        began: bool,
    },
    /// In use until this day.
    Active {
        until: i64,
    },
    Frozen {
        until: i64,
    },
    /// Given up; whether it ever got an id.
    Released {
        named: bool,
    },
    /// Its release came before anything else.
    Tombstone,
}

/// One job in the lane.
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

/// What is known of the occurrence.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Never,
    /// It has this job of the lane, by position; success not told.
    Open(usize),
    DoneUntold,
    RefusedJustNow,
    RefusedLongAgo,
    /// The hook refused it, and the instance has changed since.
    RefusedBeforeAChange,
    Superseded,
    Void,
    Told,
    /// Told once, and held when it came again.
    ToldThenHeld,
}

#[derive(Debug, Clone)]
struct Case {
    applied: Applied,
    lane: Vec<Coming>,
    seen: Seen,
    callback: Callback,
    unknown: UnknownInstance,
}

/// The reading's answer.
#[derive(Debug, Clone, PartialEq)]
struct Reading {
    what: What,
    cancels: Vec<i64>,
    entombs: bool,
    alert: bool,
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
        Reading { what, cancels: Vec::new(), entombs: false, alert: false }
    }
}

const SKU: &str = "basic";
const DONE_JOB: i64 = 77;

fn number(position: usize) -> i64 {
    position as i64 + 1
}

/// The job in the lane of this action, the last one.
fn coming(case: &Case, action: Action) -> Option<i64> {
    case.lane.iter().rposition(|job| job.action == action).map(number)
}

/// The last job in the lane that sets the expiry.
fn coming_term(case: &Case) -> Option<i64> {
    coming(case, Action::Renew).max(coming(case, Action::RefundRenew))
}

/// The column of the table a callback falls into, once what is coming has come.
#[derive(Debug, Clone, PartialEq)]
enum Column {
    Absent,
    Active { until: Option<i64>, sku: &'static str },
    Frozen { until: Option<i64>, sku: &'static str },
    Released,
}

/// The days and SKUs that jobs in the lane set.
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
        Applied::Active { until } => Column::Active { until: Some(until), sku: SKU },
        Applied::Frozen { until } => Column::Frozen { until: Some(until), sku: SKU },
        Applied::Released { .. } | Applied::Tombstone => return Column::Released,
    };
    for job in &case.lane {
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

fn dead(case: &Case, action: Action) -> Vec<i64> {
    let jobs = case.lane.iter().enumerate();
    jobs.filter(|(_, job)| job.action == action && job.mood == Mood::Dead).map(|(at, _)| number(at)).collect()
}

/// The table.
fn reading(case: &Case) -> Reading {
    let released = matches!(case.applied, Applied::Released { .. } | Applied::Tombstone);
    let late_create = released && case.callback.action == Action::Create;
    match case.seen {
        Seen::Open(position) => {
            return Reading { alert: late_create, ..What::Join(number(position)).into() };
        }
        // In use again, and the term it was given since is over: that is the next one's end.
        Seen::DoneUntold if is_next_term(case) => {}
        Seen::DoneUntold => return Reading { alert: late_create, ..What::Join(DONE_JOB).into() },
        Seen::RefusedJustNow => return Reading { alert: late_create, ..What::Refuse("hook").into() },
        _ => {}
    }
    let told = matches!(case.seen, Seen::Told | Seen::ToldThenHeld);
    let column = column(case);
    match case.callback.action {
        Action::Create => read_create(case, &column, told),
        Action::Renew => read_renew(case, &column, told),
        Action::RefundRenew => read_refund(case, &column, told),
        Action::Upgrade => read_upgrade(case, &column, told),
        Action::Expire => read_expire(case, &column, told),
        _ => read_release(case, &column, told),
    }
}

fn is_next_term(case: &Case) -> bool {
    let over = matches!(column(case), Column::Active { until: Some(until), .. } if until <= TODAY + 1);
    case.callback.action == Action::Expire && over
}

fn read_create(case: &Case, column: &Column, told: bool) -> Reading {
    let named = matches!(case.applied, Applied::Active { .. } | Applied::Frozen { .. })
        || case.applied == Applied::Released { named: true };
    match column {
        Column::Absent => What::Run.into(),
        // A create that matches a tombstone, or whose own release is coming, is held.
        Column::Released if !named => What::Hold("late-create").into(),
        Column::Released if told => Reading { alert: true, ..What::Repeat.into() },
        Column::Released => Reading { alert: true, ..What::Hold("conflicting-create").into() },
        _ if told => What::Repeat.into(),
        // The same name, bought with other words.
        _ => What::Hold("conflicting-create").into(),
    }
}

fn policy(case: &Case) -> What {
    match case.unknown {
        UnknownInstance::Refuse => What::Refuse("unknown-instance"),
        UnknownInstance::Succeed => What::Record,
        // Its create was refused here, so it is nowhere else either.
        UnknownInstance::Adopt if case.applied != Applied::Absent => What::Refuse("unknown-instance"),
        UnknownInstance::Adopt if case.callback.product.is_none() => What::Hold("unknown-product"),
        UnknownInstance::Adopt => What::Run,
    }
}

fn day_of(callback: &Callback) -> i64 {
    let at = callback.expires_on.as_ref().unwrap().at.unwrap();
    at.duration_since(day(0)).as_hours() / 24
}

fn read_renew(case: &Case, column: &Column, told: bool) -> Reading {
    let asked = day_of(&case.callback);
    let run = Reading { cancels: dead(case, Action::Expire), ..What::Run.into() };
    match column {
        Column::Absent => policy(case).into(),
        Column::Released => Reading { alert: true, ..What::Refuse("paid-for-nothing").into() },
        Column::Frozen { .. } if asked <= TODAY => What::Hold("past-expiry").into(),
        Column::Frozen { .. } => run,
        Column::Active { until, .. } if told && Some(asked) > *until => What::Hold("refunded-renewal").into(),
        // In use as long as that, or about to be: then it is true once the renewal that is coming is done.
        Column::Active { .. }
            if told && matches!(case.applied, Applied::Active { until } if asked <= until) =>
        {
            What::Repeat.into()
        }
        Column::Active { .. } if told => coming_term(case).map_or(What::Repeat, What::Join).into(),
        Column::Active { .. } => run,
    }
}

/// True once the release that is coming has come; true already if it is over.
fn with_the_release(case: &Case) -> What {
    let first = case.lane.iter().position(|job| job.action == Action::Release);
    first.map_or(What::Repeat, |position| What::Join(number(position)))
}

fn read_refund(case: &Case, column: &Column, told: bool) -> Reading {
    match column {
        Column::Absent => policy(case).into(),
        Column::Released => with_the_release(case).into(),
        _ if !told => What::Run.into(),
        Column::Active { until, .. } | Column::Frozen { until, .. }
            if *until == Some(day_of(&case.callback)) =>
        {
            let so = matches!(case.applied, Applied::Active { until } | Applied::Frozen { until } if until == day_of(&case.callback));
            let coming = coming_term(case).filter(|_| !so);
            coming.map_or(What::Repeat, What::Join).into()
        }
        _ => What::Hold("left-expiry").into(),
    }
}

fn read_upgrade(case: &Case, column: &Column, told: bool) -> Reading {
    match column {
        Column::Absent => policy(case).into(),
        Column::Released => Reading { alert: true, ..What::Refuse("paid-for-nothing").into() },
        // Refused, and the instance has changed since: it must not undo what came later.
        _ if !told && case.seen != Seen::RefusedBeforeAChange => What::Run.into(),
        Column::Active { sku, .. } | Column::Frozen { sku, .. }
            if case.callback.sku.as_deref() == Some(*sku) =>
        {
            // So already, or about to be: then it is true once that upgrade is done.
            let coming = coming(case, Action::Upgrade).filter(|_| *sku != SKU);
            coming.map_or(What::Repeat, What::Join).into()
        }
        _ => What::Hold("left-sku").into(),
    }
}

fn read_expire(case: &Case, column: &Column, told: bool) -> Reading {
    let overtaken = matches!(case.seen, Seen::Superseded | Seen::RefusedBeforeAChange);
    match column {
        Column::Absent => policy(case).into(),
        // Frozen it is, and was told to be, whatever is coming.
        Column::Released | Column::Frozen { .. }
            if told && matches!(case.applied, Applied::Frozen { .. }) =>
        {
            What::Repeat.into()
        }
        Column::Released => with_the_release(case).into(),
        Column::Frozen { .. } => coming(case, Action::Expire).map_or(What::Repeat, What::Join).into(),
        // Told before, or overtaken by what came since: not believed more than a day ahead of the end.
        Column::Active { until, .. }
            if (told || overtaken) && until.is_some_and(|until| until > TODAY + 1) =>
        {
            What::Hold("early-expire").into()
        }
        Column::Active { .. } => Reading { cancels: dead(case, Action::Renew), ..What::Run.into() },
    }
}

fn read_release(case: &Case, column: &Column, told: bool) -> Reading {
    let unknown = match case.unknown {
        UnknownInstance::Refuse => What::Refuse("unknown-instance"),
        UnknownInstance::Succeed => What::Record,
        UnknownInstance::Adopt => What::Hold("unknown-release"),
    };
    let not_running = case.lane.iter().enumerate().filter(|(_, job)| job.mood != Mood::Runs);
    let cancels: Vec<i64> = not_running.map(|(position, _)| number(position)).collect();
    match (column, case.applied) {
        (Column::Absent, Applied::Pending { began: true }) => What::Run.into(),
        (Column::Absent, _) => Reading { entombs: true, ..unknown.into() },
        (Column::Released, Applied::Tombstone) if coming(case, Action::Release).is_none() && !told => {
            unknown.into()
        }
        (Column::Released, _) => with_the_release(case).into(),
        // Nothing ever began, so there is nothing to release.
        (_, Applied::Pending { began: false }) => Reading { cancels, entombs: true, ..What::Record.into() },
        _ => Reading { cancels, ..What::Run.into() },
    }
}

fn instance(applied: Applied) -> Option<Instance> {
    let mut instance = Instance::pending(&create("b"), ACCOUNT, "test", day(0));
    let term = |days: i64| Some(day(days));
    match applied {
        Applied::Absent => return None,
        Applied::Pending { began } => instance.began = began,
        Applied::Active { until } => {
            (instance.state, instance.expires_on) = (State::Active, term(until));
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

fn lane_job(position: usize, job: Coming) -> LaneJob {
    let callback = match job.action {
        Action::Create => create("b"),
        Action::Renew => renew("b", "lane", day(LANE_RENEWS_TO)),
        Action::RefundRenew => refund_renew("b", "lane", day(LANE_REFUNDS_TO)),
        Action::Upgrade => upgrade("b", LANE_SKU),
        Action::Expire => expire("b"),
        _ => release("b"),
    };
    LaneJob {
        job: number(position),
        action: job.action,
        running: job.mood == Mood::Runs,
        dead: job.mood == Mood::Dead,
        wants: Wants::of(&callback),
    }
}

fn seconds_ago(seconds: i64) -> Timestamp {
    spid::clock::plus_millis(day(TODAY), -1000 * seconds)
}

fn occurrence(seen: Seen) -> Option<Occurrence> {
    let refused = |seconds| Standing::RefusedByHook { at: seconds_ago(seconds), reason: "no".into() };
    let (told, ever_told, standing) = match seen {
        Seen::Never => return None,
        Seen::Open(position) => (false, false, Standing::Open(number(position))),
        Seen::DoneUntold => (false, false, Standing::Done(DONE_JOB)),
        Seen::RefusedJustNow => (false, false, refused(29)),
        Seen::RefusedLongAgo => (false, false, refused(30)),
        // A day before the instance was last changed.
        Seen::RefusedBeforeAChange => (false, false, refused((TODAY + 1) * 24 * 3600)),
        Seen::Superseded => (false, false, Standing::Superseded),
        Seen::Void => (false, false, Standing::Void),
        Seen::Told => (true, true, Standing::Done(DONE_JOB)),
        Seen::ToldThenHeld => (false, true, Standing::Void),
    };
    Some(Occurrence { told, ever_told, standing })
}

fn judge(case: &Case) -> Verdict {
    let instance = instance(case.applied);
    let lane: Vec<LaneJob> = case.lane.iter().enumerate().map(|(at, job)| lane_job(at, *job)).collect();
    let occurrence = occurrence(case.seen);
    let view = View {
        instance: instance.as_ref(),
        lane: &lane,
        occurrence: occurrence.as_ref(),
        policy: Policy { unknown_instance: case.unknown, ..Policy::default() },
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
    Reading { what, cancels: verdict.cancels.clone(), entombs: verdict.entombs, alert: verdict.alert }
}

fn callbacks() -> Vec<Callback> {
    let named = |mut callback: Callback| {
        callback.product = Some("product-1".into());
        callback
    };
    let mut all = vec![create("b"), expire("b"), named(expire("b")), release("b"), named(release("b"))];
    for until in [TODAY - 1, TODAY, TODAY + 1, LANE_REFUNDS_TO, 365, 500, LANE_RENEWS_TO, 900] {
        all.push(renew("b", "r", day(until)));
        all.push(refund_renew("b", "r", day(until)));
    }
    all.push(named(renew("b", "r", day(500))));
    for sku in [SKU, LANE_SKU, "gold"] {
        all.push(upgrade("b", sku));
    }
    all
}

const APPLIED: [Applied; 12] = [
    Applied::Absent,
    Applied::Pending { began: false },
    Applied::Pending { began: true },
    Applied::Active { until: TODAY - 10 },
    Applied::Active { until: TODAY + 1 },
    Applied::Active { until: TODAY + 2 },
    Applied::Active { until: 365 },
    Applied::Frozen { until: TODAY - 10 },
    Applied::Frozen { until: 365 },
    Applied::Released { named: true },
    Applied::Released { named: false },
    Applied::Tombstone,
];

/// Whether the store could ever hold this: a create in the lane belongs to what is pending, and comes
/// first; nothing follows a release; what is gone has no lane.
fn possible(applied: Applied, lane: &[Coming]) -> bool {
    let position = |action| lane.iter().position(|job| job.action == action);
    let only_first_runs = lane.iter().skip(1).all(|job| job.mood != Mood::Runs);
    let released_last = position(Action::Release).is_none_or(|at| at + 1 == lane.len());
    let fits = match applied {
        Applied::Absent | Applied::Released { .. } | Applied::Tombstone => lane.is_empty(),
        Applied::Pending { began } => {
            let first = lane.first();
            let tried = first.is_some_and(|job| job.action == Action::Create && job.mood != Mood::Waits);
            let created = first.is_none_or(|job| job.action == Action::Create)
                || (began && lane.len() == 1 && first.is_some_and(|job| job.action == Action::Release));
            created && (began || !tried)
        }
        Applied::Active { .. } | Applied::Frozen { .. } => position(Action::Create).is_none(),
    };
    let creates = lane.iter().filter(|job| job.action == Action::Create).count();
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

fn seens(lane: &[Coming], action: Action) -> Vec<Seen> {
    let mut seens = vec![
        Seen::Never,
        Seen::DoneUntold,
        Seen::RefusedJustNow,
        Seen::RefusedLongAgo,
        Seen::RefusedBeforeAChange,
        Seen::Superseded,
        Seen::Void,
        Seen::Told,
        Seen::ToldThenHeld,
    ];
    let own = lane.iter().enumerate().filter(|(_, job)| job.action == action);
    seens.extend(own.map(|(position, _)| Seen::Open(position)));
    seens
}

/// The policy is asked only about what nobody created here.
fn policies(applied: Applied) -> &'static [UnknownInstance] {
    const ALL: [UnknownInstance; 3] =
        [UnknownInstance::Refuse, UnknownInstance::Succeed, UnknownInstance::Adopt];
    match applied {
        Applied::Active { .. } | Applied::Frozen { .. } | Applied::Released { .. } => &ALL[..1],
        Applied::Absent | Applied::Pending { .. } | Applied::Tombstone => &ALL,
    }
}

#[test]
fn every_cell_of_the_table_is_decided_as_it_is_written() {
    let mut cells = 0;
    for lane in lanes() {
        for applied in APPLIED.into_iter().filter(|applied| possible(*applied, &lane)) {
            for callback in callbacks() {
                for seen in seens(&lane, callback.action) {
                    for unknown in policies(applied) {
                        let case = Case {
                            applied,
                            lane: lane.clone(),
                            seen,
                            callback: callback.clone(),
                            unknown: *unknown,
                        };
                        assert_eq!(read_back(&judge(&case)), reading(&case), "{case:#?}");
                        cells += 1;
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
            callback.doubts = vec![Doubt::AmbiguousValue { name: "aliUid".into() }];
            for seen in [Seen::Never, Seen::Void, Seen::Told, Seen::DoneUntold] {
                let callback = callback.clone();
                let case =
                    Case { applied, lane: Vec::new(), seen, callback, unknown: UnknownInstance::Succeed };
                let verdict = judge(&case);
                let held = matches!(verdict.decision, Decision::Hold(Reason::Doubt(_)));
                // What was approved is told again, and nothing runs for it that was not approved.
                let told = matches!(verdict.decision, Decision::Join(_) | Decision::Repeat);
                let approved = matches!(seen, Seen::Told | Seen::DoneUntold);
                assert!(held || approved && told, "{case:?}: {verdict:?}");
                assert!(verdict.cancels.is_empty() && !verdict.entombs);
            }
        }
    }
}

#[test]
fn actions_without_a_lifecycle_stay_out_of_the_lane() {
    for applied in APPLIED {
        for seen in [Seen::Never, Seen::Told, Seen::DoneUntold, Seen::Void] {
            for action in [Action::Payment, Action::SignOn, Action::Query, Action::Other] {
                let mut callback = Callback::new(action, action.as_str());
                callback.sent_at = Some(day(TODAY));
                let case =
                    Case { applied, lane: Vec::new(), seen, callback, unknown: UnknownInstance::Adopt };
                let verdict = judge(&case);
                assert_ne!(verdict.decision, Decision::Run, "{case:?}");
                assert!(verdict.cancels.is_empty() && !verdict.entombs);
                let first = applied != Applied::Absent && seen == Seen::Never;
                let usable = matches!(applied, Applied::Active { .. } | Applied::Frozen { .. });
                match action {
                    Action::Payment if seen == Seen::Never => {
                        assert_eq!(verdict.decision, Decision::RunBeside { told: true });
                    }
                    Action::Payment => assert_eq!(verdict.decision, Decision::Repeat),
                    Action::SignOn if first && usable => {
                        assert_eq!(verdict.decision, Decision::RunBeside { told: false });
                    }
                    Action::SignOn if first || seen == Seen::Told => {
                        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{case:?}");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A step of a life, told to [`decide`] and to a plain account of what a hook would have seen.
fn lives() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..callbacks().len(), 0u8..4), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of callbacks and hook endings: what a lane comes to keeps the promises.
    #[test]
    fn any_life_keeps_the_promises(life in lives()) {
        let mut instance: Option<Instance> = None;
        let mut lane: Vec<(LaneJob, Callback)> = Vec::new();
        let all = callbacks();
        let mut told: BTreeMap<String, i64> = BTreeMap::new();
        let mut next = 1;
        let mut was_released = false;
        for (which, ending) in life {
            let callback = all[which].clone();
            let key = format!("{callback:?}");
            let view: Vec<LaneJob> = lane.iter().map(|(job, _)| job.clone()).collect();
            let mine = lane.iter().find(|(_, of)| format!("{of:?}") == key).map(|(job, _)| job.job);
            let occurrence = match (mine, told.get(&key)) {
                (Some(job), before) => {
                    Some(Occurrence { told: false, ever_told: before.is_some(), standing: Standing::Open(job) })
                }
                (None, Some(job)) => {
                    Some(Occurrence { told: true, ever_told: true, standing: Standing::Done(*job) })
                }
                (None, None) => None,
            };
            let view = View {
                instance: instance.as_ref(),
                lane: &view,
                occurrence: occurrence.as_ref(),
                policy: Policy::default(),
                approved: false,
                now: day(TODAY),
            };
            let verdict = decide(view, &callback);
            let running: Vec<i64> = lane.iter().filter(|(job, _)| job.running).map(|(job, _)| job.job).collect();
            prop_assert!(!verdict.cancels.iter().any(|job| running.contains(job)), "a running hook is not undone");
            prop_assert!(verdict.cancels.iter().all(|job| lane.iter().any(|(other, _)| other.job == *job)));
            lane.retain(|(job, _)| !verdict.cancels.contains(&job.job));
            match &verdict.decision {
                Decision::Run => {
                    prop_assert!(mine.is_none(), "an open occurrence never gets a second job");
                    prop_assert!(!was_released, "nothing runs for what is gone");
                    prop_assert!(!lane.iter().any(|(job, _)| job.action == Action::Release), "nothing behind a release");
                    if instance.is_none() {
                        prop_assert_eq!(callback.action, Action::Create);
                        instance = Some(Instance::pending(&callback, ACCOUNT, "test", day(TODAY)));
                    }
                    let job = LaneJob { job: next, action: callback.action, running: false, dead: false, wants: Wants::of(&callback) };
                    lane.push((job, callback.clone()));
                    next += 1;
                }
                Decision::Join(job) => prop_assert!(lane.iter().any(|(other, _)| other.job == *job)),
                Decision::Repeat => prop_assert!(instance.is_some(), "what is repeated has happened"),
                _ => {}
            }
            if verdict.entombs {
                let mut tomb = instance.take().unwrap_or_else(|| Instance::pending(&callback, ACCOUNT, "test", day(TODAY)));
                tomb.state = State::Released;
                instance = Some(tomb);
            }
            // The hook: does the first job, fails it for good, begins it, or is away.
            if let (Some((job, of)), Some(row)) = (lane.first().cloned(), instance.as_mut()) {
                row.began |= job.action == Action::Create && ending != 3;
                match ending {
                    0 => {
                        row.apply(&of, day(TODAY));
                        told.insert(format!("{of:?}"), job.job);
                        lane.remove(0);
                        row.id.get_or_insert_with(|| "i-1".to_owned());
                    }
                    1 => {
                        lane[0].0.running = false;
                        lane[0].0.dead = true;
                    }
                    2 => lane[0].0.running = !job.dead,
                    _ => {}
                }
            }
            let now_released = instance.as_ref().is_some_and(|row| row.state == State::Released);
            prop_assert!(now_released || !was_released, "released stays released");
            was_released = now_released;
        }
    }
}
