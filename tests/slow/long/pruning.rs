//! Pruning changes no decision: random lives on two stores. One is pruned again and again, the other never. Both must
//! decide, answer and run the same forever.
//!
//! A failing seed is printed. To examine it, set `SEEDS` to it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;
use std::ops::Range;

use crate::support::bench::*;
use crate::support::random::{Announce, Random};
use spid::internals::observe::limits::PRUNE_AGE_MIN_MS;
use spid::internals::store::{
    Acceptance, AttemptEnd, AuditNote, CallbackRow, LeasedJob, OperationError, Operations, PruneOptions,
    Pruned, Receipt, Reply, ResultWaiter, StoreOptions,
};
use spid_core::lifecycle::UnknownInstance;
use spid_core::lifecycle::schedule;
use spid_hook::Secret;
use spid_hook::callback::{Action, Answer, Callback, Field, Outcome, ValidationIssue};
use spid_hook::id::Id;

const SEEDS: Range<u64> = 0..12;
const STEPS: usize = 250;

fn act() -> AuditNote {
    AuditNote { who: "a test".into(), why: "to see what changes".into() }
}

fn options(days: i64) -> PruneOptions {
    let older_than_ms = days * 24 * 60 * 60 * 1000;
    PruneOptions { older_than_ms, secrets: false, dry_run: false, rewrite: false }
}

/// Prunes the store of a bench, as the command does beside a daemon.
fn prune(bench: &Bench, options: PruneOptions) -> Result<Pruned, OperationError> {
    let path = bench.folder.as_ref().unwrap().path().join("spid.db");
    let mut operations = Operations::open(&path, &StoreOptions::default(), bench.clock.clone()).unwrap();
    operations.prune(options, &act(), &mut |_| {})
}

/// Content of a row, without its numbers and counts: rows that were created again have other numbers.
fn seen(row: &CallbackRow) -> (Option<i64>, Action, [u8; 16], String, Option<String>, Option<String>) {
    let disposition = format!("{:?}", row.disposition);
    (
        row.instance,
        row.action,
        row.deduplication_key,
        disposition,
        row.reason_code.clone(),
        row.reason.clone(),
    )
}

/// The pruned store, the other one, and the running work on both.
struct Pair {
    pruned: Bench,
    whole: Bench,
    random: Random,
    waiting: Vec<[ResultWaiter; 2]>,
    running: Vec<[LeasedJob; 2]>,
    gone: Pruned,
}

impl Pair {
    async fn new(seed: u64) -> Pair {
        Pair {
            pruned: Bench::sqlite().await,
            whole: Bench::memory().await,
            random: Random::new(seed),
            waiting: Vec::new(),
            running: Vec::new(),
            gone: Pruned::default(),
        }
    }

    fn callback(&mut self) -> Callback {
        let biz = self.random.one_of(&["b1", "b2", "b3"]);
        let order = self.random.one_of(&["r1", "r2", "r3"]);
        let until = day(self.random.one_of(&[20, 200, 365, 400, 730, 1_500]));
        let mut callback = match self.random.below(24) {
            0..=3 => create(biz),
            4..=6 => renew(biz, order, until),
            7 => refund_renew(biz, order, until),
            8..=9 => upgrade(biz, self.random.one_of(&["basic", "silver", "gold"])),
            10..=11 => expire(biz),
            12 => release(biz),
            13 => payment(biz, self.random.one_of(&["q1", "q2"])),
            14..=15 => sign_on(biz, self.pruned.clock.now()),
            16 => sign_on(biz, day(1)),
            17 => Callback { order_id: Some("another".into()), ..create(biz) },
            18 => Callback { order_id: Some(format!("order-of-{biz}")), ..expire("0") },
            19 => asked(Action::Query, biz, order),
            20 => asked(Action::Other, biz, order),
            21..=22 => self.doubtful(asked(Action::Query, biz, order)),
            _ => self.doubtful(renew(biz, order, until)),
        };
        if self.random.below(8) == 0 {
            callback.product = Some("product-1".into());
        }
        callback
    }

    fn doubtful(&mut self, callback: Callback) -> Callback {
        let name = self.random.one_of(&["expiredOn", "orderId"]).to_owned();
        let parameters = BTreeMap::from([(name.clone(), "1&2".to_owned())]).into_iter().collect();
        Callback { issues: vec![ValidationIssue::AmbiguousValue { name }], parameters, ..callback }
    }

    fn acceptance(&mut self, callback: &Callback) -> Acceptance {
        let mut acceptance = self.pruned.acceptance(callback);
        if self.random.below(6) == 0 {
            acceptance.account = "other".into();
        }
        if self.random.below(6) == 0 {
            acceptance.policy.unknown_instance =
                self.random.one_of(&[UnknownInstance::Adopt, UnknownInstance::Succeed]);
        }
        acceptance.approved = self.random.below(10) == 0;
        acceptance
    }

    async fn deliver(&mut self) {
        let callback = self.callback();
        let acceptance = self.acceptance(&callback);
        let a = self.pruned.store.accept(acceptance.clone()).await.unwrap();
        let b = self.whole.store.accept(acceptance.clone()).await.unwrap();
        assert_eq!((seen(&a.row), a.alert), (seen(&b.row), b.alert), "{acceptance:?}");
        assert_eq!(a.row.reported_at.is_some(), b.row.reported_at.is_some(), "{acceptance:?}");
        match self.replies(a, b, &acceptance) {
            Some(waiting) if self.random.below(3) > 0 => self.waiting.push(waiting),
            _ => {}
        }
    }

    fn replies(&self, a: Receipt, b: Receipt, of: &Acceptance) -> Option<[ResultWaiter; 2]> {
        match (a.reply, b.reply) {
            (Reply::Now(a), Reply::Now(b)) => {
                assert_eq!(a, b, "{of:?}");
                None
            }
            (Reply::Wait(a), Reply::Wait(b)) => Some([a, b]),
            (a, b) => panic!("{a:?} and {b:?} for {of:?}"),
        }
    }

    async fn hear(&mut self) {
        if let Some([a, b]) = self.waiting.pop() {
            assert_eq!(heard(a).await, heard(b).await);
        }
    }

    /// A running job has its complete callback: no job runs from emptied data.
    async fn take(&mut self) {
        let (mut a, mut b) = (self.pruned.take(1000).await, self.whole.take(1000).await);
        a.sort_by_key(|taken| taken.job.number);
        b.sort_by_key(|taken| taken.job.number);
        assert_eq!(a.len(), b.len());
        for (a, b) in a.into_iter().zip(b) {
            assert_eq!((&a.callback, &a.instance), (&b.callback, &b.instance));
            assert_eq!((a.job.action, a.job.attempts), (b.job.action, b.job.attempts));
            assert_eq!(a.callback.pruned_at, None);
            self.running.push([a, b]);
        }
    }

    fn ending(&mut self) -> AttemptEnd {
        match self.random.below(14) {
            0..=5 => done(),
            6..=7 => AttemptEnd::Done(answer(self.random.one_of(&[true, false]))),
            8 => done_as(self.random.one_of(&["i-1", "i-2", "i-3", "b1", ""])),
            9..=11 => retry(),
            12 => refused(),
            _ => AttemptEnd::Pending { note: "later".into() },
        }
    }

    async fn finish(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let which = self.random.below(self.running.len() as u64) as usize;
        let [a, b] = self.running.swap_remove(which);
        let ending = self.ending();
        let (a, b) = (self.pruned.finish(&a, ending.clone()).await, self.whole.finish(&b, ending).await);
        assert_eq!(a, b);
    }

    async fn advance(&mut self) {
        let seconds =
            self.random.one_of(&[30, 60, 240, 3_600, 86_400, 20 * 86_400, 40 * 86_400, 40 * 86_400]);
        for (number, bench) in [&self.pruned, &self.whole].into_iter().enumerate() {
            bench.advance(seconds);
            let held = self.running.iter().map(|pair| (pair[number].job.number, pair[number].job.attempts));
            bench.store.extend(held.collect()).await.unwrap();
        }
    }

    async fn forget(&mut self) {
        self.pruned.store.flush_counts().await.unwrap();
        self.whole.store.flush_counts().await.unwrap();
        let wanted = PruneOptions { secrets: self.random.below(2) == 0, ..options(30) };
        let counted = prune(&self.pruned, PruneOptions { dry_run: true, ..wanted }).unwrap();
        let pruned = prune(&self.pruned, wanted).unwrap();
        assert_eq!(pruned.to_string(), counted.to_string(), "a dry run counts what goes");
        let nothing = prune(&self.pruned, wanted).unwrap();
        assert_eq!(nothing.to_string(), Pruned::default().to_string(), "what is forgotten is forgotten");
        self.gone.callbacks_emptied += pruned.callbacks_emptied;
        self.gone.callbacks_removed += pruned.callbacks_removed;
        self.gone.jobs_removed += pruned.jobs_removed;
        self.gone.attempts_removed += pruned.attempts_removed;
        self.gone.secrets_removed += pruned.secrets_removed;
        self.check_files();
    }

    /// No row refers to a missing row, and the file is valid.
    fn check_files(&self) {
        let path = self.pruned.folder.as_ref().unwrap().path().join("spid.db");
        let db = rusqlite::Connection::open(path).unwrap();
        let loose: i64 =
            db.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
        assert_eq!(loose, 0);
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }

    async fn step(&mut self) {
        match self.random.below(18) {
            0..=6 => self.deliver().await,
            7..=8 => self.take().await,
            9..=12 => self.finish().await,
            13..=15 => self.advance().await,
            16 => self.hear().await,
            _ => self.forget().await,
        }
        self.check();
    }

    /// The present state, the queued state and the waiting items are equal.
    fn check(&self) {
        let of = |bench: &Bench| {
            let instances: Vec<_> = bench
                .instances()
                .into_iter()
                .map(|row| (row.number, row.created_by.is_some(), row.marketplace_instance_id, row.instance))
                .collect();
            let live: Vec<_> = bench
                .jobs()
                .into_iter()
                .filter(|job| job.state.is_live())
                .map(|job| (job.instance, job.action, job.state, job.attempts, job.step, job.note))
                .collect();
            // A callback that came again after it was pruned has a later number.
            let mut unreported: Vec<_> = bench.unreported().iter().map(seen).collect();
            let mut held: Vec<_> = bench.held().iter().map(seen).collect();
            unreported.sort_by_key(|row| row.2);
            held.sort_by_key(|row| row.2);
            (instances, live, unreported, held)
        };
        assert_eq!(of(&self.pruned), of(&self.whole));
    }
}

fn asked(action: Action, biz: &str, what: &str) -> Callback {
    let parameters = BTreeMap::from([("what".to_owned(), what.to_owned())]).into_iter().collect();
    let mut callback = Callback { parameters, ..Callback::new(action, action.as_str()) };
    callback.subject.order_biz_id = Some(biz.into());
    callback
}

fn answer(is_secret: bool) -> Answer {
    let mut answer = Answer::default();
    let value = if is_secret {
        Field::Secret(Secret::new("fake-password"))
    } else {
        Field::Plain("https://a.example".into())
    };
    answer.app.insert("value".into(), value);
    answer
}

#[tokio::test]
async fn what_is_pruned_changes_no_decision() {
    let mut gone = [0; 5];
    for seed in SEEDS {
        let _announce = Announce(seed);
        let mut pair = Pair::new(seed).await;
        for _ in 0..STEPS {
            pair.step().await;
        }
        let all = &pair.gone;
        let counts = [
            all.callbacks_emptied,
            all.callbacks_removed,
            all.jobs_removed,
            all.attempts_removed,
            all.secrets_removed,
        ];
        for (sum, count) in gone.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    assert!(gone.iter().all(|count| *count > 5), "hardly anything was pruned: {gone:?}");
}

/// The whole life of an instance in one text.
async fn lived(bench: &Bench) {
    bench.done(&create("b1")).await;
    bench.done(&renew("b1", "r1", day(730))).await;
    bench.go_to_day(2);
    bench.done(&sign_on("b1", bench.clock.now())).await;
}

#[tokio::test]
async fn a_leaked_url_is_no_first_occurrence_once_its_body_is_gone() {
    let bench = Bench::sqlite().await;
    lived(&bench).await;
    bench.done(&refund_renew("b1", "r2", day(365))).await;
    bench.go_to_day(100);
    let pruned = prune(&bench, options(30)).unwrap();
    assert_eq!((pruned.callbacks_emptied, pruned.callbacks_removed, pruned.jobs_removed), (3, 1, 3));
    // If it were accepted, it would return a refunded year. Its order was carried out, and the answer says only that.
    assert!(bench.deliver(&renew("b1", "r1", day(730))).await.is_success());
    assert_eq!(bench.jobs_of(Action::Renew).len(), 0);
    assert_eq!(told_id(&bench.deliver(&create("b1")).await), Some("b1"));
    assert_eq!(bench.only().expires_on, Some(day(365)));
}

#[tokio::test]
async fn a_request_of_two_parts_is_done_though_its_jobs_are_gone() {
    let bench = Bench::sqlite().await;
    bench.done(&create("b1")).await;
    let both = Callback {
        also: vec![Action::Upgrade],
        sku: Some("gold".into()),
        parameters: BTreeMap::from([("scene".to_owned(), "both".to_owned())]).into_iter().collect(),
        ..renew("b1", "r1", day(730))
    };
    bench.done(&both).await;
    let later = Callback { ordered: true, order_id: Some("u".into()), ..upgrade("b1", "platinum") };
    bench.done(&later).await;
    bench.go_to_day(100);
    prune(&bench, options(30)).unwrap();
    assert!(bench.deliver(&both).await.is_success());
    assert!(bench.take(9).await.is_empty(), "nothing runs again");
    assert_eq!(bench.only().sku.as_deref(), Some("platinum"));
}

#[tokio::test]
async fn a_doubtful_question_that_was_approved_is_answered_for_ever() {
    let bench = Bench::sqlite().await;
    lived(&bench).await;
    let name = "orderId".to_owned();
    let issues = vec![ValidationIssue::AmbiguousValue { name }];
    let question = Callback { issues, ..asked(Action::Query, "b1", "1&2") };
    assert!(matches!(bench.deliver(&question).await, Outcome::Held { .. }));
    let approved = Acceptance { approved: true, ..bench.acceptance(&question) };
    bench.store.accept(approved).await.unwrap();
    for day in [100, 200, 300] {
        bench.go_to_day(day);
        prune(&bench, options(30)).unwrap();
        prune(&bench, options(30)).unwrap();
        assert_eq!(told_id(&bench.deliver(&question).await), Some("b1"));
    }
}

#[tokio::test]
async fn what_is_young_open_held_dead_or_untold_stays_whole() {
    let bench = Bench::sqlite().await;
    lived(&bench).await;
    bench.deliver(&renew("b1", "r3", day(1_000))).await;
    bench.run_due().await;
    let unreported = bench.unreported();
    assert_eq!(unreported.len(), 1);
    bench.deliver(&Callback { order_id: Some("another".into()), ..create("b1") }).await;
    bench.deliver(&upgrade("b1", "gold")).await;
    bench.run_to_death().await;
    bench.go_to_day(100);
    bench.done(&create("b2")).await;
    let before = (bench.callbacks(), bench.jobs());
    prune(&bench, options(30)).unwrap();
    let kept = |action: Action| {
        let of = |rows: &[CallbackRow]| -> Vec<CallbackRow> {
            rows.iter().filter(|row| row.action == action && row.reported_at.is_none()).cloned().collect()
        };
        (of(&before.0), of(&bench.callbacks()))
    };
    for action in [Action::Create, Action::Renew, Action::Upgrade] {
        let (before, after) = kept(action);
        assert_eq!(before, after);
        for row in after {
            let (_, callback) = bench.store.reader().callback(row.number).unwrap().unwrap();
            assert_eq!(callback.pruned_at, None, "{row:?}");
        }
    }
    let dead =
        |jobs: &[schedule::JobState]| jobs.iter().filter(|state| **state == schedule::JobState::Dead).count();
    let states = |bench: &Bench| bench.jobs().iter().map(|job| job.state).collect::<Vec<_>>();
    assert_eq!(dead(&states(&bench)), 1);
    let job = bench.jobs().into_iter().find(|job| job.state == schedule::JobState::Dead).unwrap();
    assert!(!bench.store.reader().attempts(job.number).unwrap().is_empty(), "its attempts say why");
}

#[tokio::test]
async fn what_is_not_old_enough_for_any_marketplace_cannot_be_pruned() {
    let bench = Bench::sqlite().await;
    lived(&bench).await;
    let soon = PruneOptions { older_than_ms: PRUNE_AGE_MIN_MS - 1, ..options(30) };
    assert!(matches!(prune(&bench, soon), Err(OperationError::Impossible(_))));
    let secrets = StoreOptions { secrets_window_ms: 2 * PRUNE_AGE_MIN_MS, ..StoreOptions::default() };
    let path = bench.folder.as_ref().unwrap().path().join("spid.db");
    let mut operations = Operations::open(&path, &secrets, bench.clock.clone()).unwrap();
    let wanted = PruneOptions { secrets: true, ..options(60) };
    assert!(matches!(operations.prune(wanted, &act(), &mut |_| {}), Err(OperationError::Impossible(_))));
    assert!(operations.prune(options(60), &act(), &mut |_| {}).is_ok());
    assert!(bench.jobs().iter().all(|job| job.id != Id::from_bytes([0; 16])));
}

#[tokio::test]
async fn what_the_buyer_said_is_gone_from_the_file() {
    let bench = Bench::sqlite().await;
    let buyer = "fake-canary-buyer-8K";
    let said = BTreeMap::from([("mobile".to_owned(), buyer.to_owned())]).into_iter().collect();
    let asked = Callback { buyer: Some(buyer.into()), parameters: said, ..renew("b1", "r1", day(700)) };
    bench.done(&create("b1")).await;
    bench.done(&asked).await;
    bench.go_to_day(100);
    let path = bench.folder.as_ref().unwrap().path().to_owned();
    let found = || {
        std::fs::read_dir(&path).unwrap().any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(buyer.len()).any(|window| window == buyer.as_bytes())
        })
    };
    assert!(found(), "where is it looked for?");
    let pruned = prune(&bench, PruneOptions { rewrite: true, ..options(30) }).unwrap();
    assert!(pruned.bytes_after <= pruned.bytes_before && pruned.bytes_unused == 0, "{pruned:?}");
    assert!(pruned.traceless && !prune(&bench, options(30)).unwrap().traceless);
    assert!(!found());
}
