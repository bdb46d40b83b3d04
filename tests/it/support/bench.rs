//! Test bench for the lifecycle: a store with a manual clock, and short functions for callbacks. Every behavior is
//! tested on SQLite and on the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spid::internals::store::{
    Acceptance, AttemptEnd, CallbackRow, Closed, Filter, Finished, InstanceRow, JobRow, LeasedJob, Receipt,
    Reply, ResultWaiter, Store, StoreOptions,
};
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::schedule::Schedule;
use spid_core::lifecycle::{Policy, UnknownInstance};
use spid_hook::callback::{Action, Answer, Callback, Expiry, Outcome};
use spid_hook::instance::{Instance, State};
use spid_hook::time::Clock;
use tempfile::TempDir;
use tokio::time::Instant;

use super::memory_store;

/// Generates one test per backend from every function.
macro_rules! on_both_backends {
    ($($(#[$meta:meta])* async fn $name:ident($bench:ident: &Bench) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn check($bench: &Bench) $body

            #[tokio::test]
            $(#[$meta])*
            async fn sqlite() {
                check(&Bench::sqlite().await).await;
            }

            #[tokio::test]
            $(#[$meta])*
            async fn memory() {
                check(&Bench::memory().await).await;
            }
        }
    )*};
}
pub(crate) use on_both_backends;

pub(crate) const ACCOUNT: &str = "acme";

/// Start of every test.
pub(crate) fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// Days after the start.
pub(crate) fn day(days: i64) -> Timestamp {
    start().checked_add(SignedDuration::from_hours(24 * days)).unwrap()
}

/// A store, its clock, and its folder.
pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) folder: Option<TempDir>,
    closed: Closed,
}

/// Waits in whole seconds whose jitter never crosses half a minute. A test that moves its clock by half minutes is
/// not affected.
pub(crate) fn steady_schedule() -> Schedule {
    Schedule::from_millis(vec![50_000, 100_000, 190_000])
}

fn options() -> StoreOptions {
    StoreOptions { schedules: steady_schedule().into(), ..StoreOptions::default() }
}

impl Bench {
    pub(crate) async fn sqlite() -> Bench {
        Bench::sqlite_in(tempfile::tempdir().unwrap(), Clock::manual(start())).await
    }

    pub(crate) async fn sqlite_in(folder: TempDir, clock: Clock) -> Bench {
        let path = folder.path().join("spid.db");
        let (store, closed) = Store::open(&path, options(), clock.clone()).await.unwrap();
        Bench { store, clock, folder: Some(folder), closed }
    }

    pub(crate) async fn memory() -> Bench {
        let clock = Clock::manual(start());
        let (store, closed) = memory_store::start(options(), clock.clone()).await.unwrap();
        Bench { store, clock, folder: None, closed }
    }

    /// Stops the store and keeps the folder.
    pub(crate) async fn stop(self) -> (Option<TempDir>, Clock) {
        drop(self.store);
        self.closed.wait().await;
        (self.folder, self.clock)
    }

    /// Stops the store and starts it again on the same files.
    pub(crate) async fn restart(self) -> Bench {
        let (folder, clock) = self.stop().await;
        Bench::sqlite_in(folder.unwrap(), clock).await
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
    }

    /// Sets the clock to `days` after the start.
    pub(crate) fn go_to_day(&self, days: i64) {
        self.clock.advance(day(days).duration_since(self.clock.now()));
    }

    pub(crate) fn acceptance(&self, callback: &Callback) -> Acceptance {
        Acceptance {
            account: ACCOUNT.into(),
            endpoint: "test".into(),
            key_label: "current".into(),
            delivery_limit: Some(120),
            callback: Arc::new(callback.clone()),
            received_at: self.clock.now(),
            policy: Policy::default(),
            fetched: false,
            approved: false,
        }
    }

    pub(crate) async fn accept(&self, callback: &Callback) -> Receipt {
        self.store.accept(self.acceptance(callback)).await.unwrap()
    }

    pub(crate) async fn accept_under(&self, unknown: UnknownInstance, callback: &Callback) -> Receipt {
        let mut acceptance = self.acceptance(callback);
        acceptance.policy.unknown_instance = unknown;
        self.store.accept(acceptance).await.unwrap()
    }

    /// Accepts a callback, and answers at once with the current result.
    pub(crate) async fn deliver(&self, callback: &Callback) -> Outcome {
        answer_now(self.accept(callback).await)
    }

    /// Accepts a callback, lets the hook do everything that is due, and then answers.
    pub(crate) async fn complete(&self, callback: &Callback) -> Outcome {
        match self.accept(callback).await.reply {
            Reply::Now(outcome) => outcome,
            Reply::Wait(waiting) => {
                self.run_due().await;
                heard(waiting).await
            }
        }
    }

    /// Like [`Bench::complete`], but it must succeed.
    pub(crate) async fn done(&self, callback: &Callback) -> Outcome {
        let outcome = self.complete(callback).await;
        assert!(outcome.is_success(), "{:?}: {outcome:?}", callback.action);
        outcome
    }

    pub(crate) async fn take(&self, limit: usize) -> Vec<LeasedJob> {
        self.store.take(limit).await.unwrap().taken
    }

    /// Leases the only due job.
    pub(crate) async fn take_one(&self) -> LeasedJob {
        let mut taken = self.take(2).await;
        assert_eq!(taken.len(), 1, "due: {taken:#?}");
        taken.remove(0)
    }

    pub(crate) async fn finish(&self, taken: &LeasedJob, ending: AttemptEnd) -> Finished {
        self.store.finish(taken, ending).await.unwrap()
    }

    pub(crate) async fn finish_done(&self, taken: &LeasedJob) -> Finished {
        self.finish(taken, done()).await
    }

    /// Lets the hook do everything that is due.
    pub(crate) async fn run_due(&self) {
        loop {
            let taken = self.take(16).await;
            if taken.is_empty() {
                return;
            }
            for job in &taken {
                self.finish_done(job).await;
            }
        }
    }

    /// Leases the only due job, and lets the hook fail until the job is dead.
    pub(crate) async fn run_to_death(&self) -> JobRow {
        loop {
            let taken = self.take_one().await;
            if state_of(&self.finish(&taken, retry()).await) == schedule::JobState::Dead {
                return self.job(taken.job.number);
            }
            self.advance(8 * 3600);
        }
    }

    pub(crate) fn instances(&self) -> Vec<InstanceRow> {
        self.store.reader().instances(&all()).unwrap()
    }

    pub(crate) fn jobs(&self) -> Vec<JobRow> {
        self.store.reader().jobs(&all()).unwrap()
    }

    pub(crate) fn callbacks(&self) -> Vec<CallbackRow> {
        self.store.reader().callbacks(&all()).unwrap()
    }

    pub(crate) fn unreported(&self) -> Vec<CallbackRow> {
        self.store.reader().callbacks(&Filter { unreported: true, ..all() }).unwrap()
    }

    pub(crate) fn held(&self) -> Vec<CallbackRow> {
        let disposition = Some(spid::internals::store::Disposition::Held);
        self.store.reader().callbacks(&Filter { disposition, ..all() }).unwrap()
    }

    pub(crate) fn jobs_of(&self, action: Action) -> Vec<JobRow> {
        self.jobs().into_iter().filter(|job| job.action == action).collect()
    }

    pub(crate) fn job(&self, number: i64) -> JobRow {
        self.jobs().into_iter().find(|job| job.number == number).unwrap()
    }

    /// Checks in SQLite's file that exactly the live jobs behind another live job of their instance are marked as
    /// blocked.
    pub(crate) fn check_blocked(&self) {
        let path = self.folder.as_ref().unwrap().path().join("spid.db");
        let db = rusqlite::Connection::open(path).unwrap();
        let mut statement = db.prepare("SELECT number, blocked FROM job").unwrap();
        let marks = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let marks: BTreeMap<i64, i64> = marks.map(Result::unwrap).collect();
        let mut busy = std::collections::BTreeSet::new();
        let mut jobs = self.jobs();
        jobs.sort_by_key(|job| job.number);
        for job in jobs.iter().filter(|job| job.state.is_live()) {
            let behind = job.ordered && !busy.insert(job.instance.unwrap());
            assert_eq!(marks[&job.number], i64::from(behind), "{job:#?}");
        }
    }

    /// The only instance.
    pub(crate) fn only(&self) -> Instance {
        let mut instances = self.instances();
        assert_eq!(instances.len(), 1, "{instances:#?}");
        instances.remove(0).instance
    }

    pub(crate) fn state(&self) -> State {
        self.only().state
    }
}

/// All rows.
pub(crate) fn all() -> Filter {
    Filter { limit: 10_000, ..Filter::default() }
}

/// The answer, if it is given at once. A waiter is dropped.
pub(crate) fn answer_now(receipt: Receipt) -> Outcome {
    match receipt.reply {
        Reply::Now(outcome) => outcome,
        Reply::Wait(_) => Outcome::NotYet,
    }
}

/// The waiter of a receipt. It must exist.
pub(crate) fn waiter(receipt: Receipt) -> ResultWaiter {
    match receipt.reply {
        Reply::Wait(waiting) => waiting,
        Reply::Now(outcome) => panic!("answered at once: {outcome:?}"),
    }
}

/// Result that a waiter has received so far.
pub(crate) async fn heard(waiting: ResultWaiter) -> Outcome {
    waiting.until(Instant::now()).await
}

pub(crate) fn done() -> AttemptEnd {
    AttemptEnd::Done(Answer::default())
}

pub(crate) fn done_as(id: &str) -> AttemptEnd {
    AttemptEnd::Done(Answer { instance_id: Some(id.into()), ..Answer::default() })
}

pub(crate) fn retry() -> AttemptEnd {
    AttemptEnd::Retry { error: "the machine is on fire".into(), after: None }
}

pub(crate) fn retry_after(seconds: u64) -> AttemptEnd {
    AttemptEnd::Retry { error: "busy".into(), after: Some(Duration::from_secs(seconds)) }
}

pub(crate) fn refused() -> AttemptEnd {
    AttemptEnd::Refused { reason: "not to this buyer".into() }
}

/// State of the job after a stored result.
pub(crate) fn state_of(finished: &Finished) -> schedule::JobState {
    match finished {
        Finished::Kept { state, .. } => *state,
        Finished::Fenced => panic!("fenced"),
    }
}

/// The id of a success.
pub(crate) fn told_id(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Applied { instance_id, .. } => instance_id.as_deref(),
        other => panic!("no success: {other:?}"),
    }
}

fn about(action: Action, biz: &str) -> Callback {
    let mut callback = Callback::new(action, action.as_str());
    callback.subject.order_biz_id = Some(biz.into());
    callback
}

pub(crate) fn expiry(at: Timestamp) -> Option<Expiry> {
    Some(Expiry { raw: at.to_string(), at: Some(at) })
}

/// A create of `biz`, paid for a year.
pub(crate) fn create(biz: &str) -> Callback {
    Callback {
        order_id: Some(format!("order-of-{biz}")),
        product: Some("product-1".into()),
        sku: Some("basic".into()),
        expires_on: expiry(day(365)),
        ordered: true,
        ..about(Action::Create, biz)
    }
}

/// A renewal of `biz` by this order.
pub(crate) fn renew(biz: &str, order: &str, until: Timestamp) -> Callback {
    let order_id = Some(order.into());
    Callback { order_id, expires_on: expiry(until), ordered: true, ..about(Action::Renew, biz) }
}

/// A refund of a renewal. Its content does not distinguish it from the next one.
pub(crate) fn refund_renew(biz: &str, order: &str, until: Timestamp) -> Callback {
    Callback { order_id: Some(order.into()), expires_on: expiry(until), ..about(Action::RefundRenew, biz) }
}

/// A change of the SKU. The international site sends no order with it.
pub(crate) fn upgrade(biz: &str, sku: &str) -> Callback {
    Callback { sku: Some(sku.into()), ..about(Action::Upgrade, biz) }
}

/// The end of the term, or arrears: the same bytes every year.
pub(crate) fn expire(biz: &str) -> Callback {
    about(Action::Expire, biz)
}

/// A release.
pub(crate) fn release(biz: &str) -> Callback {
    about(Action::Release, biz)
}

/// A message that an order was paid.
pub(crate) fn payment(biz: &str, request: &str) -> Callback {
    Callback { request_id: Some(request.into()), ..about(Action::Payment, biz) }
}

/// A sign-on of a buyer, at this instant.
pub(crate) fn sign_on(biz: &str, sent_at: Timestamp) -> Callback {
    let parameters = BTreeMap::from([("timeStamp".to_owned(), sent_at.to_string())]);
    Callback {
        sent_at: Some(sent_at),
        parameters: parameters.into_iter().collect(),
        ..about(Action::SignOn, biz)
    }
}
