//! Conditions that must hold at every commit, at every answer, and at the end. The check reads the disk and the
//! records of the marketplace and the hooks, and does not know the daemon's own rules.

use std::collections::BTreeMap;

use jiff::Timestamp;
use spid::internals::store::{CallbackRow, Disposition, Filter, InstanceRow, JobRow};
use spid_core::lifecycle::schedule;
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::{Instance, State};

use crate::market::{ACCOUNTS, Event, Order};
use crate::world::Sim;

/// All rows.
pub(crate) fn everything() -> Filter {
    Filter { limit: usize::MAX, ..Filter::default() }
}

/// Rows of the last commit.
#[derive(Default)]
pub(crate) struct Seen {
    instances: BTreeMap<i64, InstanceRow>,
    jobs: BTreeMap<i64, JobRow>,
    callbacks: BTreeMap<i64, CallbackRow>,
}

impl Seen {
    fn read(sim: &Sim) -> Seen {
        let reader = sim.disk.reader();
        let by_number = |row: InstanceRow| (row.number, row);
        Seen {
            instances: reader.instances(&everything()).unwrap().into_iter().map(by_number).collect(),
            jobs: reader.jobs(&everything()).unwrap().into_iter().map(|row| (row.number, row)).collect(),
            callbacks: reader
                .callbacks(&everything())
                .unwrap()
                .into_iter()
                .map(|row| (row.number, row))
                .collect(),
        }
    }
}

/// Compares the committed rows with those before.
pub(crate) fn commit(sim: &Sim) {
    let now = Seen::read(sim);
    let before = std::mem::take(&mut sim.world().seen);
    for (number, old) in &before.instances {
        match now.instances.get(number) {
            Some(new) => instance(sim, old, new, &before, &now),
            None => sim.violate(format_args!("the instance {number} vanished")),
        }
    }
    for (number, old) in &before.jobs {
        match now.jobs.get(number) {
            Some(new) => job_moved(sim, old, new),
            None => sim.violate(format_args!("the job {number} vanished")),
        }
    }
    for (number, old) in &before.callbacks {
        let reported =
            now.callbacks.get(number).map(|new| (new.reported_at, new.deliveries >= old.deliveries));
        let holds = reported
            .is_some_and(|(at, counted)| counted && (old.reported_at.is_none() || at == old.reported_at));
        sim.demand(holds, || format!("the callback {old:?} became {:?}", now.callbacks.get(number)));
    }
    one_each(sim, &now);
    let world = &mut *sim.world();
    if world.rival {
        now.jobs.values().for_each(|job| world.machines.steal(job));
    }
    world.seen = now;
}

fn instance(sim: &Sim, old: &InstanceRow, new: &InstanceRow, before: &Seen, now: &Seen) {
    let (was, is) = (&old.instance, &new.instance);
    sim.demand(was.id.is_none() || was.id == is.id, || format!("the id {:?} became {:?}", was.id, is.id));
    sim.demand(was.state != State::Released || is.state == State::Released, || {
        format!("a released instance became {is:?}")
    });
    sim.demand(is.state != State::Pending || was.state == State::Pending, || {
        format!("{was:?} went back to {is:?}")
    });
    let refunded = now.jobs.values().any(|job| {
        job.action == Action::RefundRenew
            && job.instance == Some(new.number)
            && job.state == schedule::JobState::Done
            && before.jobs.get(&job.number).is_none_or(|job| job.state != schedule::JobState::Done)
    });
    sim.demand(is.expires_on >= was.expires_on || refunded || was.state == State::Pending, || {
        format!("without a refund the expiry {:?} became {:?}", was.expires_on, is.expires_on)
    });
}

fn job_moved(sim: &Sim, old: &JobRow, new: &JobRow) {
    let same = old.id == new.id
        && old.callback == new.callback
        && old.instance == new.instance
        && old.action == new.action
        && old.attempts <= new.attempts
        && (old.state.is_live() || old == new);
    sim.demand(same, || format!("the job {old:?} became {new:?}"));
}

/// One instance per name, one attempt per instance, and leases only for running jobs.
fn one_each(sim: &Sim, now: &Seen) {
    let mut names = BTreeMap::new();
    for row in now.instances.values() {
        let name = (&row.instance.account, &row.instance.order_biz_id);
        if let Some(other) = names.insert(name, row.number) {
            sim.violate(format_args!("{name:?} is two instances: {other} and {}", row.number));
        }
    }
    let mut lanes = BTreeMap::new();
    for job in now.jobs.values() {
        let runs = job.state == schedule::JobState::Running;
        sim.demand(runs == job.lease_until.is_some(), || format!("lease and state disagree: {job:?}"));
        if runs
            && job.ordered
            && let Some(other) = lanes.insert(job.instance, job.number)
        {
            sim.violate(format_args!("two leases in one lane: the jobs {other} and {}", job.number));
        }
    }
}

/// Callback rows for `event`, the oldest first.
fn rows_of(sim: &Sim, order: &Order, event: &Event) -> Vec<CallbackRow> {
    let said: BTreeMap<_, _> = event.parameters(&order.biz).into_iter().collect();
    let accounts = vec![ACCOUNTS[order.account].to_owned()];
    let reader = sim.disk.reader();
    let rows = reader.callbacks(&Filter { accounts, ..everything() }).unwrap();
    let mut rows: Vec<_> = rows
        .into_iter()
        .filter(|row| row.action == event.action)
        .filter(|row| {
            let callback = reader.callback(row.number).unwrap().unwrap().1;
            callback.parameters.iter().eq(said.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        })
        .collect();
    rows.sort_by_key(|row| row.number);
    rows
}

fn instance_of(sim: &Sim, order: &Order) -> Option<InstanceRow> {
    let rows = sim.disk.reader().instances(&everything()).unwrap();
    rows.into_iter().find(|row| {
        row.instance.account == ACCOUNTS[order.account]
            && row.instance.order_biz_id.as_deref() == Some(&order.biz)
    })
}

/// The daemon sent an answer: its content is stored, and true.
pub(crate) fn answer(sim: &Sim, order: usize, event: usize, status: &str, id: Option<&str>) {
    let order = sim.world().orders[order].clone();
    let event = order.events[event].clone();
    if matches!(status, "unavailable" | "rejected") {
        return;
    }
    let rows = rows_of(sim, &order, &event);
    let Some(row) = rows.last() else {
        return sim.violate(format_args!("answered {status} to {event:?}, and nothing is stored of it"));
    };
    if status != "applied" {
        return;
    }
    // One commit can report an older callback and begin a newer one.
    let Some(row) = rows.iter().rev().find(|row| row.reported_at.is_some()) else {
        return sim.violate(format_args!("told a success, and the store does not know: {row:?}"));
    };
    if event.action == Action::Create {
        created(sim, &order, &event, id);
    } else {
        applied(sim, &order, &event, row);
    }
}

fn created(sim: &Sim, order: &Order, event: &Event, id: Option<&str>) {
    let Some(row) = instance_of(sim, order) else {
        return sim.violate(format_args!("told {id:?}, and there is no instance of {}", order.biz));
    };
    let holds = id.is_some_and(|id| !id.is_empty() && id != "0") && row.instance.id.as_deref() == id;
    sim.demand(holds, || format!("told {id:?} of {row:?}"));
    sim.demand(row.instance.state != State::Pending, || format!("told {id:?} before it was true: {row:?}"));
    let same = order.told_id.is_none() || order.told_id.as_deref() == id;
    sim.demand(same, || format!("told {id:?} after {:?}", order.told_id));
    let same = row.instance.order_id.is_none() || row.instance.order_id == event.order_id;
    sim.demand(same, || format!("told another purchase, {event:?}, of {row:?}"));
    let job = row.created_by.and_then(|number| find_job(sim, number));
    let world = sim.world();
    let key = job.and_then(|job| world.machines.keys.get(&job.id.to_string()));
    let made = key.is_some_and(|key| key.done && id.is_some_and(|id| key.ids.contains(id)));
    drop(world);
    sim.demand(made, || format!("told {id:?}, which no machine made"));
}

fn find_job(sim: &Sim, number: i64) -> Option<JobRow> {
    sim.disk.reader().jobs(&everything()).unwrap().into_iter().find(|job| job.number == number)
}

/// Meaning of a success, except for a create. A request with its own order claims that this order was carried out.
/// Any other claims that the instance is now in the requested state.
fn applied(sim: &Sim, order: &Order, event: &Event, row: &CallbackRow) {
    if row.action == Action::Payment {
        return;
    }
    let Some(instance) = instance_of(sim, order).map(|row| row.instance) else {
        return sim.violate(format_args!("told the success of {row:?}, and there is no instance"));
    };
    let until = event.expires_ms.map(spid_hook::time::from_millis);
    let is_gone = instance.state == State::Released;
    let holds = match event.action {
        Action::Expire => is_gone || instance.state == State::Frozen,
        Action::Release => is_gone,
        // After a reported renewal the instance is usable.
        Action::Renew => was_carried_out(sim, order, event) && (is_gone || instance.state == State::Active),
        Action::RefundRenew => was_carried_out(sim, order, event) || is_gone,
        Action::Upgrade if event.order_id.is_some() => was_carried_out(sim, order, event),
        Action::Upgrade => instance.sku == event.sku,
        _ => false,
    };
    sim.demand(holds, || format!("told the success of {event:?} until {until:?}, and it is {instance:?}"));
}

/// Returns true if a hook has done the event's work, with a job for exactly this event.
fn was_carried_out(sim: &Sim, order: &Order, event: &Event) -> bool {
    let rows: Vec<i64> = rows_of(sim, order, event).iter().map(|row| row.number).collect();
    let jobs = sim.disk.reader().jobs(&everything()).unwrap();
    let world = sim.world();
    let mut of_event = jobs.iter().filter(|job| rows.contains(&job.callback));
    of_event.any(|job| world.machines.keys.get(&job.id.to_string()).is_some_and(|key| key.done))
}

/// At the end no event is lost, no work is invented, and the state is the result of the work.
pub(crate) fn end(sim: &Sim) {
    let now = Seen::read(sim);
    for job in now.jobs.values() {
        ended(sim, job, &now);
    }
    for row in now.callbacks.values() {
        sent(sim, row);
    }
    for row in now.instances.values() {
        folded(sim, row, &now);
    }
    let orders = sim.world().orders.clone();
    for order in orders {
        order.events.iter().for_each(|event| settled(sim, &order, event, &now));
    }
}

/// A job has ended, or needs an operator and has a reason, or waits behind such a job.
fn ended(sim: &Sim, job: &JobRow, now: &Seen) {
    let waits = job.state == schedule::JobState::Queued && is_blocked(job, now);
    let ended = !matches!(job.state, schedule::JobState::Queued | schedule::JobState::Running);
    sim.demand(waits || ended, || format!("lost: {job:?}"));
    let reasoned = waits || job.state == schedule::JobState::Done || job.note.is_some();
    sim.demand(reasoned, || format!("ended without a reason: {job:?}"));
}

fn is_blocked(job: &JobRow, now: &Seen) -> bool {
    let stuck = [schedule::JobState::Pending, schedule::JobState::Held, schedule::JobState::Dead];
    now.jobs.values().any(|other| {
        other.ordered
            && other.instance == job.instance
            && other.number < job.number
            && stuck.contains(&other.state)
    })
}

/// Stored data was sent, word for word, for that account.
fn sent(sim: &Sim, row: &CallbackRow) {
    let callback = callback(sim, row.number);
    let world = sim.world();
    let sent = world.orders.iter().filter(|order| ACCOUNTS[order.account] == row.account).any(|order| {
        order.events.iter().filter(|event| event.sent).any(|event| {
            let said: BTreeMap<_, _> = event.parameters(&order.biz).into_iter().collect();
            callback.parameters.iter().eq(said.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        })
    });
    drop(world);
    sim.demand(sent, || format!("nobody sent {callback:?}"));
}

fn callback(sim: &Sim, number: i64) -> Callback {
    sim.disk.reader().callback(number).unwrap().unwrap().1
}

/// The state is the fold of the work, computed here again from the parameters alone.
fn folded(sim: &Sim, row: &InstanceRow, now: &Seen) {
    let lane = now.jobs.values().filter(|job| job.instance == Some(row.number) && job.ordered);
    let described = lane.clone().rfind(|job| job.action == Action::Create);
    let mut fold = Fold { state: State::Pending, expires: None, sku: None };
    if let Some(job) = described {
        fold.describe(&callback(sim, job.callback));
    }
    for job in lane.filter(|job| job.state == schedule::JobState::Done) {
        fold.apply(&callback(sim, job.callback));
    }
    let never_made = now.callbacks.values().any(|callback| {
        callback.instance == Some(row.number)
            && callback.action == Action::Release
            && callback.job.is_none()
            && callback.disposition != Disposition::Held
    });
    if never_made {
        fold.state = State::Released;
    }
    sim.demand(fold.is(&row.instance, described.is_some()), || {
        format!("{fold:?} was folded, and it is {row:?}")
    });
}

#[derive(Debug)]
struct Fold {
    state: State,
    expires: Option<Timestamp>,
    sku: Option<String>,
}

fn expires(callback: &Callback) -> Option<Timestamp> {
    callback.parameters.get("expires_on").map(|text| text.parse().unwrap())
}

impl Fold {
    fn describe(&mut self, callback: &Callback) {
        self.expires = expires(callback);
        self.sku = callback.parameters.get("sku").map(str::to_owned);
    }

    fn apply(&mut self, callback: &Callback) {
        match callback.action {
            Action::Create => self.state = State::Active,
            Action::Renew => {
                self.state = State::Active;
                self.expires = self.expires.max(expires(callback));
            }
            Action::RefundRenew => self.expires = expires(callback),
            Action::Upgrade => self.sku = callback.parameters.get("sku").map(str::to_owned),
            Action::Expire => self.state = State::Frozen,
            Action::Release => self.state = State::Released,
            other => unreachable!("{other} has no lane"),
        }
    }

    fn is(&self, instance: &Instance, described: bool) -> bool {
        let values = self.expires == instance.expires_on && self.sku == instance.sku;
        self.state == instance.state && (values || !described)
    }
}

/// Every request was reported in the end, or an operator knows why not.
fn settled(sim: &Sim, order: &Order, event: &Event, now: &Seen) {
    if !event.sent || event.reported || matches!(event.heard.as_str(), "held" | "refused") {
        return;
    }
    let rows = rows_of(sim, order, event);
    let job = rows.last().and_then(|row| row.job).and_then(|number| now.jobs.get(&number));
    let waits = job.is_some_and(|job| job.state == schedule::JobState::Pending || is_blocked(job, now))
        || rows.last().is_some_and(|row| is_stuck(row, now));
    sim.demand(waits, || format!("never settled: {event:?} of {}: {rows:?}, {job:?}", order.biz));
}

/// Returns true if the instance needs an operator first, so the requested state cannot be true yet.
fn is_stuck(row: &CallbackRow, now: &Seen) -> bool {
    let stuck = [schedule::JobState::Pending, schedule::JobState::Held, schedule::JobState::Dead];
    now.jobs.values().any(|job| job.ordered && job.instance == row.instance && stuck.contains(&job.state))
}

/// No waiter is left, and no data of unverified requests.
pub(crate) fn quiet(sim: &Sim) {
    let in_flight = sim.world().in_flight;
    sim.demand(in_flight == 0, || format!("{in_flight} requests were never answered"));
}
