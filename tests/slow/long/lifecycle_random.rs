//! Random lives on SQLite and on the model in parallel: the same callbacks, deliveries, hook results and clock. Both
//! must give the same answers and have the same rows, and after each step the promises hold.
//!
//! A failing seed is printed. To examine it, set `SEEDS` to it.

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
use spid::internals::store::{
    Acceptance, AttemptEnd, CallbackRow, InstanceRow, JobRow, LeasedJob, Receipt, Reply, ResultWaiter, Totals,
};
use spid_core::lifecycle::UnknownInstance;
use spid_core::lifecycle::schedule;
use spid_hook::callback::{Action, Callback, Outcome};
use spid_hook::id::Id;
use spid_hook::instance::State;
use spid_hook::time::from_millis;

const SEEDS: Range<u64> = 0..40;
const STEPS: usize = 150;

/// One waiter on each store, for the same delivery.
struct Pair {
    row: CallbackRow,
    waiting: [ResultWaiter; 2],
}

/// Both stores, their running work, and the history.
struct Twins {
    benches: [Bench; 2],
    random: Random,
    waiting: Vec<Pair>,
    running: Vec<[LeasedJob; 2]>,
    lost: Vec<[LeasedJob; 2]>,
    seen: Seen,
}

/// Facts that must never change again.
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

/// Data that must be equal in both: everything except ids and values derived from them.
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
            // This client closes its connection.
            (_, Err(_)) => {}
        }
    }

    fn alike(&self, a: Receipt, b: Receipt) -> (CallbackRow, Result<Outcome, [ResultWaiter; 2]>) {
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

    /// A waiter gets the result, or leaves.
    async fn hear(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let which = self.random.below(self.waiting.len() as u64) as usize;
        let Pair { row, waiting: [a, b] } = self.waiting.swap_remove(which);
        let (a, b) = (heard(a).await, heard(b).await);
        assert_eq!(a, b, "{row:?}");
        // Its answer was decided at the commit, and the state may have changed since.
        assert!(!a.is_success() || self.seen.reported.contains(&row.number), "not written down: {row:?}");
    }

    /// An immediate success is true now, and is recorded.
    fn check_answer(&self, callback: &Callback, row: &CallbackRow, outcome: &Outcome) {
        let Outcome::Applied { instance_id, .. } = outcome else { return };
        let bench = &self.benches[1];
        let row = bench.callbacks().into_iter().find(|kept| kept.number == row.number).unwrap();
        assert!(row.reported_at.is_some(), "told, and not written down: {row:?}");
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

    fn check_start(&self, taken: &LeasedJob, jobs: &[JobRow]) {
        let job = &taken.job;
        assert!(!self.seen.done.contains(&job.number), "a job that is done runs again");
        if !job.ordered {
            return;
        }
        let before = jobs.iter().filter(|other| {
            other.ordered
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

    fn ending(&mut self) -> AttemptEnd {
        match self.random.below(12) {
            0..=4 => done(),
            5 => done_as(self.random.one_of(&["i-1", "i-2", "i-3", "b1", "", "0"])),
            6..=8 => retry(),
            9 => refused(),
            10 => AttemptEnd::GivenBack,
            _ if self.random.below(3) == 0 => AttemptEnd::Pending { note: "later".into() },
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

    /// A dispatcher that was believed dead returns with its answer.
    async fn finish_late(&mut self) {
        if let Some(pair) = self.lost.pop() {
            let ending = self.ending();
            self.finish_both(&pair, ending).await;
        }
    }

    async fn finish_both(&self, pair: &[LeasedJob; 2], ending: AttemptEnd) {
        let a = self.benches[0].finish(&pair[0], ending.clone()).await;
        let b = self.benches[1].finish(&pair[1], ending).await;
        assert_eq!(a, b);
    }

    /// Time passes, and the leases of running jobs are renewed.
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
        assert_eq!(a.unreported(), b.unreported());
        // The jitter of a job's wait depends on its id, and each store creates its own ids.
        let totals = [a, b].map(|bench| Totals { next_due: None, ..bench.store.reader().totals().unwrap() });
        assert_eq!(totals[0], totals[1]);
        self.seen.check_instances(&instances);
        self.seen.check_jobs(&jobs, &callbacks);
        for row in callbacks.iter().filter(|row| row.reported_at.is_some()) {
            if self.seen.reported.insert(row.number) {
                let callback = b.store.reader().callback(row.number).unwrap().unwrap().1;
                check_truth(b, row, &callback);
            }
        }
    }
}

/// Returns true if a success that is reported now is true now. For a request with its own order, the order must have
/// been carried out. For any other request, the instance must be in the requested state.
fn check_truth(bench: &Bench, row: &CallbackRow, callback: &Callback) {
    let Some(made) = bench.instances().into_iter().find(|kept| Some(kept.number) == row.instance) else {
        return assert_eq!(callback.action, Action::Payment, "a success for nothing: {callback:?}");
    };
    let now = &made.instance;
    let wanted = callback.expires_on.as_ref().and_then(|expiry| expiry.at);
    let carried_out = || {
        let jobs = bench.jobs_of(callback.action).into_iter();
        let mut done =
            jobs.filter(|job| job.state == schedule::JobState::Done && job.instance == Some(made.number));
        done.any(|job| {
            let of = bench.store.reader().callback(job.callback).unwrap().unwrap().1;
            (of.order_id, of.expires_on, of.sku)
                == (callback.order_id.clone(), callback.expires_on.clone(), callback.sku.clone())
        })
    };
    let is_true = match callback.action {
        Action::Create => now.id.is_some() && (now.order_id.is_none() || now.order_id == callback.order_id),
        // After a reported renewal the instance is usable, unless it is released.
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
            if job.state == schedule::JobState::Done {
                self.done.insert(job.number);
                let first = job.action != Action::Create || created.insert(job.instance);
                assert!(first, "created twice: {job:?}");
            }
            assert!(
                !job.state.is_live() || open.insert(job.callback),
                "two live jobs of one occurrence: {job:?}"
            );
            let alone =
                job.state != schedule::JobState::Running || !job.ordered || running.insert(job.instance);
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
