//! Random lives on SQLite and on the model side by side: the same callbacks, deliveries, hook endings
//! and clock. Both must answer alike and hold the same rows, and after each step the promises hold.
//!
//! A seed that fails is printed; to look into it, make `SEEDS` that one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::support::bench::*;
use crate::support::random::{Announce, Random};
use spid::callback::{Action, Callback, Outcome};
use spid::clock::{Id, from_millis};
use spid::instance::{State, UnknownInstance};
use spid::job;
use spid::store::{
    Acceptance, CallbackRow, Ending, InstanceRow, JobRow, Receipt, Reply, Taken, Totals, Waiting,
};

const SEEDS: Range<u64> = 0..40;
const STEPS: usize = 150;

/// A waiter on each store, for the same delivery.
struct Pair {
    row: CallbackRow,
    waiting: [Waiting; 2],
}

/// Both stores, what runs on them, and what was seen so far.
struct Twins {
    benches: [Bench; 2],
    random: Random,
    waiting: Vec<Pair>,
    running: Vec<[Taken; 2]>,
    lost: Vec<[Taken; 2]>,
    seen: Seen,
}

/// What may never be otherwise again.
#[derive(Default)]
struct Seen {
    released: BTreeSet<i64>,
    ids: BTreeMap<i64, String>,
    keys: BTreeMap<Id, i64>,
    done: BTreeSet<i64>,
    /// Callbacks whose success was reported.
    reported: BTreeSet<i64>,
    deliveries: u64,
}

/// What both must agree on: everything but the ids, and what is drawn from them.
fn comparable(mut job: JobRow) -> JobRow {
    job.id = Id::from_bytes([0; 16]);
    job.due_at = from_millis(0);
    job
}

impl Twins {
    async fn new(seed: u64) -> Twins {
        Twins {
            benches: [Bench::sqlite().await, Bench::memory().await],
            random: Random::new(seed),
            waiting: Vec::new(),
            running: Vec::new(),
            lost: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn callback(&mut self) -> Callback {
        let biz = self.random.one_of(&["b1", "b2", "b3"]);
        let order = self.random.one_of(&["r1", "r2", "r3"]);
        let until = day(self.random.one_of(&[20, 200, 365, 400, 730]));
        let mut callback = match self.random.below(16) {
            0..=3 => create(biz),
            4..=5 => renew(biz, order, until),
            6 => refund_renew(biz, order, until),
            7..=8 => {
                let upgrade = upgrade(biz, self.random.one_of(&["basic", "silver", "gold"]));
                let ordered = self.random.below(2) == 0;
                Callback { ordered, order_id: Some(order.to_owned()).filter(|_| ordered), ..upgrade }
            }
            9..=10 => expire(biz),
            11 => release(biz),
            12 => payment(biz, self.random.one_of(&["q1", "q2"])),
            13 => sign_on(biz, self.benches[0].clock.now()),
            14 => Callback { order_id: Some("another".into()), ..create(biz) },
            _ => Callback { order_id: Some(format!("order-of-{biz}")), ..expire("0") },
        };
        if self.random.below(8) == 0 {
            callback.product = Some("product-1".into());
        }
        callback
    }

    fn acceptance(&mut self, callback: &Callback) -> Acceptance {
        let mut acceptance = self.benches[0].acceptance(callback);
        if self.random.below(6) == 0 {
            acceptance.account = "other".into();
        }
        if self.random.below(6) == 0 {
            acceptance.policy.unknown_instance = UnknownInstance::Adopt;
        }
        acceptance
    }

    async fn deliver(&mut self) {
        let callback = self.callback();
        let acceptance = self.acceptance(&callback);
        let [a, b] = &self.benches;
        let a = a.store.accept(acceptance.clone()).await.unwrap();
        let b = b.store.accept(acceptance).await.unwrap();
        self.seen.deliveries += 1;
        assert_eq!((&a.row, a.alert), (&b.row, b.alert), "{callback:?}");
        match self.alike(a, b) {
            (row, Ok(outcome)) => self.check_answer(&callback, &row, &outcome),
            (row, Err(waiting)) if self.random.below(2) == 0 => self.waiting.push(Pair { row, waiting }),
            // This one hangs up.
            (_, Err(_)) => {}
        }
    }

    fn alike(&self, a: Receipt, b: Receipt) -> (CallbackRow, Result<Outcome, [Waiting; 2]>) {
        let reply = match (a.reply, b.reply) {
            (Reply::Now(a), Reply::Now(b)) => {
                assert_eq!(a, b);
                Ok(a)
            }
            (Reply::Wait(a), Reply::Wait(b)) => Err([a, b]),
            (a, b) => panic!("{a:?} and {b:?}"),
        };
        (a.row, reply)
    }

    /// Somebody who waits hears it, or leaves.
    async fn hear(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let which = self.random.below(self.waiting.len() as u64) as usize;
        let Pair { row, waiting: [a, b] } = self.waiting.swap_remove(which);
        let (a, b) = (heard(a).await, heard(b).await);
        assert_eq!(a, b, "{row:?}");
        // What it says was judged when it was committed: much may have happened since.
        assert!(!a.is_success() || self.seen.reported.contains(&row.number), "not written down: {row:?}");
    }

    /// A success that is answered at once is true now, and is written down.
    fn check_answer(&self, callback: &Callback, row: &CallbackRow, outcome: &Outcome) {
        let Outcome::Applied { instance_id, .. } = outcome else { return };
        let bench = &self.benches[1];
        let row = bench.callbacks().into_iter().find(|kept| kept.number == row.number).unwrap();
        assert!(row.told_at.is_some(), "told, and not written down: {row:?}");
        if callback.action == Action::Create {
            let made = bench.instances().into_iter().find(|kept| Some(kept.number) == row.instance).unwrap();
            assert_eq!(*instance_id, made.instance.id);
        }
        check_truth(bench, &row, callback);
    }

    async fn take(&mut self) {
        let [a, b] = &self.benches;
        let (mut a, mut b) = (a.take(1000).await, b.take(1000).await);
        a.sort_by_key(|taken| taken.job.number);
        b.sort_by_key(|taken| taken.job.number);
        assert_eq!(a.len(), b.len());
        let jobs = self.benches[1].jobs();
        for (a, b) in a.into_iter().zip(b) {
            assert_eq!((comparable(a.job.clone()), &a.instance), (comparable(b.job.clone()), &b.instance));
            assert_eq!((&a.callback, &a.origin), (&b.callback, &b.origin));
            self.check_start(&b, &jobs);
            self.running.push([a, b]);
        }
    }

    fn check_start(&self, taken: &Taken, jobs: &[JobRow]) {
        let job = &taken.job;
        assert!(!self.seen.done.contains(&job.number), "a job that is done runs again");
        if !job.in_lane {
            return;
        }
        let before = jobs.iter().filter(|other| {
            other.in_lane
                && other.instance == job.instance
                && other.number < job.number
                && other.state.is_live()
        });
        assert_eq!(before.count(), 0, "out of order: {job:?}");
        assert_ne!(
            taken.instance.as_ref().unwrap().state,
            State::Released,
            "a hook for what is gone: {job:?}"
        );
    }

    fn ending(&mut self) -> Ending {
        match self.random.below(12) {
            0..=4 => done(),
            5 => done_as(self.random.one_of(&["i-1", "i-2", "i-3", "b1", "", "0"])),
            6..=8 => retry(),
            9 => refused(),
            10 => Ending::GivenBack,
            _ if self.random.below(3) == 0 => Ending::Pending { note: "later".into() },
            _ => done(),
        }
    }

    async fn finish(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let which = self.random.below(self.running.len() as u64) as usize;
        let pair = self.running.swap_remove(which);
        if self.random.below(8) == 0 {
            self.lost.push(pair);
            return;
        }
        let ending = self.ending();
        self.finish_both(&pair, ending).await;
    }

    /// A dispatcher that was thought dead comes back with its answer.
    async fn finish_late(&mut self) {
        if let Some(pair) = self.lost.pop() {
            let ending = self.ending();
            self.finish_both(&pair, ending).await;
        }
    }

    async fn finish_both(&self, pair: &[Taken; 2], ending: Ending) {
        let a = self.benches[0].finish(&pair[0], ending.clone()).await;
        let b = self.benches[1].finish(&pair[1], ending).await;
        assert_eq!(a, b);
    }

    /// Time passes; the leases of what still runs are kept up.
    async fn advance(&mut self) {
        let seconds = self.random.one_of(&[30, 60, 60, 120, 240, 3_600, 86_400, 40 * 86_400]);
        for (number, bench) in self.benches.iter().enumerate() {
            bench.advance(seconds);
            let held = self.running.iter().map(|pair| (pair[number].job.number, pair[number].job.attempts));
            bench.store.extend(held.collect()).await.unwrap();
        }
    }

    async fn step(&mut self) {
        match self.random.below(16) {
            0..=5 => self.deliver().await,
            6..=8 => self.take().await,
            9..=11 => self.finish().await,
            12..=13 => self.advance().await,
            14 => self.hear().await,
            _ => self.finish_late().await,
        }
        self.check().await;
    }

    async fn check(&mut self) {
        for bench in &self.benches {
            bench.store.flush_counts().await.unwrap();
        }
        self.benches[0].check_blocked();
        let [a, b] = &self.benches;
        let (instances, jobs, callbacks) = (b.instances(), b.jobs(), b.callbacks());
        assert_eq!(a.instances(), instances);
        assert_eq!(a.callbacks(), callbacks);
        let both = [a.jobs(), jobs.clone()].map(|jobs| jobs.into_iter().map(comparable).collect::<Vec<_>>());
        assert_eq!(both[0], both[1]);
        assert_eq!(a.untold(), b.untold());
        // A job's wait is moved by its id, and each store gives its own.
        let totals = [a, b].map(|bench| Totals { next_due: None, ..bench.store.reader().totals().unwrap() });
        assert_eq!(totals[0], totals[1]);
        self.seen.check_instances(&instances);
        self.seen.check_jobs(&jobs, &callbacks);
        for row in callbacks.iter().filter(|row| row.told_at.is_some()) {
            if self.seen.reported.insert(row.number) {
                let callback = b.store.reader().callback(row.number).unwrap().unwrap().1;
                check_truth(b, row, &callback);
            }
        }
    }
}

/// Whether a success that is reported now is true now. A request with an order of its own asks whether that
/// order has been carried out; any other asks for a state.
fn check_truth(bench: &Bench, row: &CallbackRow, callback: &Callback) {
    let Some(made) = bench.instances().into_iter().find(|kept| Some(kept.number) == row.instance) else {
        return assert_eq!(callback.action, Action::Payment, "a success for nothing: {callback:?}");
    };
    let now = &made.instance;
    let wanted = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
    let carried_out = || {
        let jobs = bench.jobs_of(callback.action).into_iter();
        let mut done = jobs.filter(|job| job.state == job::State::Done && job.instance == Some(made.number));
        done.any(|job| {
            let of = bench.store.reader().callback(job.callback).unwrap().unwrap().1;
            (of.order_id, of.expires_on, of.sku)
                == (callback.order_id.clone(), callback.expires_on.clone(), callback.sku.clone())
        })
    };
    let is_true = match callback.action {
        Action::Create => now.id.is_some() && (now.order_id.is_none() || now.order_id == callback.order_id),
        // Whoever is told that it is renewed can use it, unless it is gone for good.
        Action::Renew if callback.ordered => {
            carried_out() && matches!(now.state, State::Active | State::Released)
        }
        Action::Renew => now.state == State::Active && now.expires_on >= wanted,
        Action::RefundRenew => now.state == State::Released || now.expires_on == wanted,
        Action::Upgrade if callback.ordered => carried_out(),
        Action::Upgrade => now.sku == callback.sku,
        Action::Expire => matches!(now.state, State::Frozen | State::Released),
        Action::Release => now.state == State::Released,
        Action::SignOn | Action::Payment | Action::Query | Action::Other => true,
    };
    assert!(is_true, "told, and not true: {callback:?} of {now:?}");
}

impl Seen {
    fn check_instances(&mut self, instances: &[InstanceRow]) {
        let mut live = BTreeSet::new();
        for InstanceRow { number, instance, .. } in instances {
            let released = instance.state == State::Released;
            assert!(released || !self.released.contains(number), "released stays released: {instance:?}");
            if released {
                self.released.insert(*number);
            } else if let Some(name) = &instance.order_biz_id {
                let made = matches!(instance.state, State::Active | State::Frozen);
                assert_eq!(made, instance.id.is_some(), "whoever uses it can name it: {instance:?}");
                assert!(live.insert((&instance.account, name)), "two live instances: {instance:?}");
            }
            if let Some(id) = &instance.id {
                let before = self.ids.entry(*number).or_insert_with(|| id.clone());
                assert_eq!(before, id, "an id changes");
            }
        }
    }

    fn check_jobs(&mut self, jobs: &[JobRow], callbacks: &[CallbackRow]) {
        let numbers: BTreeSet<i64> = callbacks.iter().map(|row| row.number).collect();
        let (mut running, mut open, mut created) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for job in jobs {
            assert!(numbers.contains(&job.callback), "no callback: {job:?}");
            let before = *self.keys.entry(job.id).or_insert(job.callback);
            assert_eq!(before, job.callback, "a key of two occurrences: {job:?}");
            if job.state == job::State::Done {
                self.done.insert(job.number);
                let first = job.action != Action::Create || created.insert(job.instance);
                assert!(first, "created twice: {job:?}");
            }
            assert!(
                !job.state.is_live() || open.insert(job.callback),
                "two live jobs of one occurrence: {job:?}"
            );
            let alone = job.state != job::State::Running || !job.in_lane || running.insert(job.instance);
            assert!(alone, "two run in one lane: {job:?}");
        }
        let deliveries: u64 = callbacks.iter().map(|row| row.deliveries).sum();
        assert_eq!(deliveries, self.deliveries, "every delivery is counted");
    }
}

#[tokio::test]
async fn both_stores_live_the_same_lives_and_keep_the_promises() {
    for seed in SEEDS {
        let _announce = Announce(seed);
        let mut twins = Twins::new(seed).await;
        for _ in 0..STEPS {
            twins.step().await;
        }
    }
}
