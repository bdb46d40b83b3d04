//! Dispatcher: leases due jobs, runs their hooks, stores the outcomes.
//!
//! One loop leases jobs, and each job runs in a task of its own. A hook never runs inside a transaction. While a job
//! runs, its lease is renewed. If the renewal fails for too long, the job may be leased again, and the store then
//! fences off the late outcome. No error of a hook ends the loop.
//!
//! These limits apply:
//! - A *start permit* covers a job from its lease until it is known where the job waits or runs.
//! - Each hook has its own slots, and each marketplace its own permits for order lookups. A job holds one of them at a
//!   time.
//! - A *call permit* counts calls over all hooks. A job holds one only while its hook runs.

mod attempt;
mod calls;
mod endpoints;
mod in_flight;
mod pauses;
mod wait_queues;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::Instrument as _;

use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::{Asker, OrderLookupClients};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::spans::Spans;
use crate::store::{HandedJob, JobRow, LeasedJob, Postpone, Retrying, Store};
use attempt::Attempt;
use calls::Calls;
use in_flight::{Entry, InFlight, lock};
use pauses::Pauses;
use spid_hook::Subject;
use spid_hook::callback::Action;
use spid_hook::time::Clock;
use spid_hook::trace::TraceContext;
use wait_queues::{WaitQueues, WaitsFor};

pub use endpoints::{KnownEndpoint, KnownEndpoints, Successors};

/// Options for the dispatcher.
#[derive(Debug, Clone)]
pub struct DispatchOptions {
    /// Maximum number of concurrent hook calls, over all hooks. One permit is reserved for each hook.
    pub permits: usize,
    /// Maximum number of leased jobs that wait for one busy hook, or for one marketplace.
    pub waiting: usize,
    /// Interval of the poll for due jobs, in addition to wake-ups.
    pub poll: Duration,
    /// Interval of the lease renewal.
    pub renew: Duration,
    /// Time limit at a stop for running hooks.
    pub stop_within: Duration,
}

impl Default for DispatchOptions {
    fn default() -> DispatchOptions {
        DispatchOptions {
            permits: limits::JOBS_RUNNING_MAX_COUNT,
            waiting: limits::JOBS_WAITING_MAX_COUNT,
            poll: Duration::from_millis(limits::DISPATCH_POLL_MS),
            renew: Duration::from_millis(limits::LEASE_RENEW_MS),
            stop_within: Duration::from_millis(limits::STOP_HOOKS_MS),
        }
    }
}

/// The dispatcher.
pub struct Dispatch {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    runner: watch::Receiver<Runner>,
    options: DispatchOptions,
    in_flight: InFlight,
    queues: WaitQueues,
    calls: Calls,
    orders: watch::Receiver<OrderLookupClients>,
    endpoints: watch::Receiver<KnownEndpoints>,
    spans: Spans,
    /// Time at which the last iteration of the loop began.
    iterated_at: watch::Sender<Instant>,
}

impl Dispatch {
    /// Creates a dispatcher for the jobs of `store`. Each attempt uses the runner that is current at its start, to its
    /// end.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        runner: watch::Receiver<Runner>,
        options: DispatchOptions,
    ) -> Dispatch {
        let queues = WaitQueues::new(options.waiting, options.poll);
        let calls = Calls::new(options.permits, &runner.borrow());
        announce(&metrics, &runner.borrow());
        let (_, orders) = watch::channel(OrderLookupClients::default());
        let (_, endpoints) = watch::channel(KnownEndpoints::default());
        let (iterated_at, _) = watch::channel(Instant::now());
        let (in_flight, spans) = (InFlight::default(), Spans::default());
        Dispatch {
            store,
            clock,
            metrics,
            runner,
            options,
            in_flight,
            queues,
            calls,
            orders,
            endpoints,
            spans,
            iterated_at,
        }
    }

    /// Returns the dispatcher with an order lookup, for callbacks that do not contain the order details.
    pub fn asking(self, orders: watch::Receiver<OrderLookupClients>) -> Dispatch {
        Dispatch { orders, ..self }
    }

    /// Returns the dispatcher with the configured endpoints. It then checks the account of a job's endpoint.
    pub fn knowing(self, endpoints: watch::Receiver<KnownEndpoints>) -> Dispatch {
        Dispatch { endpoints, ..self }
    }

    /// Returns the dispatcher with a span for each attempt, for a collector.
    pub fn telling(self, spans: Spans) -> Dispatch {
        Dispatch { spans, ..self }
    }

    /// Returns the time at which the loop's last iteration began. One begins at least once in each [poll](DispatchOptions::poll) as
    /// long as the store answers, so an old time means that it is stuck.
    pub fn iterated_at(&self) -> watch::Receiver<Instant> {
        self.iterated_at.subscribe()
    }

    /// Runs until `stop` is set, then waits for running hooks. Returns the number of hooks that were aborted; their
    /// jobs are due again at the next start.
    pub async fn run(self, stop: watch::Receiver<bool>) -> usize {
        let Some(ready) = self.store.attach(self.options.permits) else {
            tracing::error!("this store already has a dispatcher");
            return 0;
        };
        let mut running = JoinSet::new();
        let ready = tokio::select! {
            biased;
            ready = self.take_and_run(ready, &mut running, stop.clone()) => ready,
            // Never ends; it is polled here so that leases are renewed while the loop runs.
            () = self.maintain() => return 0,
        };
        self.drain(ready, running).await
    }

    /// Runs the loop. An iteration begins at a handed-over job, a wake-up, a due time, or the poll that finds missed ones.
    async fn take_and_run(
        &self,
        mut ready: mpsc::UnboundedReceiver<HandedJob>,
        running: &mut JoinSet<()>,
        stop: watch::Receiver<bool>,
    ) -> mpsc::UnboundedReceiver<HandedJob> {
        let mut stopping = stop.clone();
        let mut runner = self.runner.clone();
        let mut look = true;
        let mut look_at = Instant::now() + self.options.poll;
        let mut pauses = Pauses::default();
        loop {
            // The watchdog reads this.
            self.iterated_at.send_replace(Instant::now());
            // Lease due jobs only if at least one of them can start.
            if look && self.store.permits().available_permits() > 0 {
                self.start_handed(&mut ready, running, &stop);
                (look, look_at) = self.take(running, &stop, &mut pauses).await;
            }
            tokio::select! {
                biased;
                // A stop comes first, so that a busy store cannot delay it.
                _ = stopping.wait_for(|stop| *stop) => return ready,
                // A job created in state running is handed over with its lease and its start permit.
                handed = ready.recv() => match handed {
                    Some(handed) => self.start(handed, running, &stop),
                    None => return ready,
                },
                // A reload added or removed hooks.
                Ok(()) = runner.changed() => self.calls.configure(&runner.borrow_and_update()),
                // A commit made a job due. After an error of the store, the pause comes first.
                () = self.store.work(), if !pauses.is_pausing() => look = true,
                // The next due time, or the poll.
                () = sleep_until(look_at), if !look => look = true,
                // Jobs are due, but no start permit is free: the next one returned starts an iteration.
                Some(()) = self.free(), if look => {}
                // Removes finished tasks from the set.
                Some(_) = running.join_next(), if !running.is_empty() => {}
                // Starts an iteration once per poll, so that the watchdog sees progress although all permits are in use for
                // long.
                () = sleep(self.options.poll) => {}
            }
        }
    }

    /// Waits until a start permit is free. Returns `None` once the store is closed for new jobs.
    async fn free(&self) -> Option<()> {
        let _permit = self.store.permits().acquire().await.ok()?;
        Some(())
    }

    /// Starts jobs that were already handed over, so that `take` counts their leases as held.
    fn start_handed(
        &self,
        ready: &mut mpsc::UnboundedReceiver<HandedJob>,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        while let Ok(handed) = ready.try_recv() {
            self.start(handed, running, stop);
        }
    }

    /// Starts a job that was handed over, unless its lease was lost on the way. The clock may have jumped while the job
    /// and a `take` of this dispatcher were both under way, and that `take` has ended the lease.
    fn start(&self, handed: HandedJob, running: &mut JoinSet<()>, stop: &watch::Receiver<bool>) {
        match self.store.holds(&handed) {
            Ok(false) => {
                tracing::warn!(job = %handed.taken.job.id, "the lease was lost before the attempt began");
            }
            // On a read error the job runs: the store fences off its outcome if the lease was lost.
            Ok(true) | Err(_) => self.spawn(*handed.taken, handed.permit, running, stop),
        }
    }

    /// Returns the function that leaves a job in the store if the wait queue of its hook or marketplace is full.
    /// Returns `None` if no queue is full.
    fn postpone(&self) -> Option<Arc<Postpone>> {
        if !self.queues.is_any_full() {
            return None;
        }
        // Snapshots, because the function runs inside the transaction that leases jobs.
        let (queues, orders) = (self.queues.clone(), self.orders.borrow().clone());
        let endpoints = self.endpoints.borrow().clone();
        let runner = self.runner.borrow().clone();
        Some(Arc::new(move |job: &Retrying<'_>| {
            let Retrying { endpoint, account, callback, .. } = *job;
            let successors = endpoints.successors(endpoint, account, callback.dialect.as_deref());
            let asker = Asker { endpoint, account, successors: successors.names() };
            let server = match orders.asked_endpoint(asker, job.callback) {
                Some(asked) => WaitsFor::Marketplace(asked.to_owned()),
                None => {
                    let endpoint = successors.name().unwrap_or(job.endpoint);
                    let subject = Subject::new(endpoint, job.callback, job.instance);
                    WaitsFor::Hook(runner.route(&subject).hook.to_owned())
                }
            };
            queues.pause(&server)
        }))
    }

    /// Leases at most as many due jobs as there are start permits. Returns true if more may be due, and the next due
    /// time.
    async fn take(
        &self,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
        pauses: &mut Pauses,
    ) -> (bool, Instant) {
        // Permits come before jobs, so that every leased job can start at once.
        let mut permits = Vec::new();
        while let Ok(permit) = self.store.permits().clone().try_acquire_owned() {
            permits.push(permit);
        }
        let limit = permits.len();
        let poll = Instant::now() + self.options.poll;
        match self.store.lease_due(limit, self.in_flight(), self.postpone()).await {
            Ok(taking) => {
                pauses.reset();
                // A full batch may have left more due jobs in the store, so the loop looks again at once.
                let more = taking.taken.len() == limit
                    || taking.postponed + taking.unreadable.len() >= limits::JOBS_POSTPONED_MAX_COUNT;
                let full = limit > 0 && more;
                for (taken, permit) in taking.taken.into_iter().zip(permits) {
                    self.spawn(taken, permit, running, stop);
                }
                for unreadable in &taking.unreadable {
                    unreadable.log(&self.metrics);
                }
                let due = taking.next_due.map_or(poll, |due| self.instant(due));
                (full, due.min(poll))
            }
            Err(error) => {
                let pause = pauses.next();
                self.metrics.count(Metric::StoreFaults, ["take", ""]);
                tracing::error!(%error, again_in = ?pause, "due jobs could not be leased; trying again");
                (false, Instant::now() + pause)
            }
        }
    }

    fn instant(&self, at: jiff::Timestamp) -> Instant {
        let wait = at.as_millisecond() - self.clock.now().as_millisecond();
        Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0))
    }

    fn spawn(
        &self,
        taken: LeasedJob,
        permit: OwnedSemaphorePermit,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        let Some(entry) = Entry::begin(&self.in_flight, &taken.job) else { return };
        let attempt = Attempt {
            store: self.store.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            runner: self.runner.clone(),
            stop: stop.clone(),
            queues: self.queues.clone(),
            calls: self.calls.clone(),
            orders: self.orders.borrow().clone(),
            endpoints: self.endpoints.borrow().clone(),
            spans: self.spans.clone(),
            hook: None,
        };
        let TraceContext { trace, span } = TraceContext::of_attempt(taken.job.id, taken.job.attempts);
        let span = tracing::error_span!("attempt", trace_id = %trace, span_id = %span, callback = taken.job.callback);
        // Boxed, because the future is large and would be copied with the task.
        let work = Box::pin(async move {
            attempt.run(taken, permit).await;
            entry.end();
        });
        running.spawn(work.instrument(span));
    }

    /// Renews leases and writes counts, as long as it is polled.
    async fn maintain(&self) {
        let mut renew = interval(self.options.renew);
        let flush_every = Duration::from_millis(limits::COUNTS_FLUSH_MS);
        let mut flush = interval(flush_every);
        let mut pauses = Pauses::default();
        // A late tick must not be followed by a burst of missed ones.
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = renew.tick() => self.renew().await,
                _ = flush.tick() => match self.flush().await {
                    true => pauses.reset(),
                    false => flush.reset_after(pauses.next().max(flush_every)),
                },
            }
        }
    }

    /// Returns the attempts in flight.
    fn in_flight(&self) -> Vec<(i64, u32)> {
        lock(&self.in_flight).keys().copied().collect()
    }

    async fn renew(&self) {
        let in_flight = self.in_flight();
        if in_flight.is_empty() {
            return;
        }
        if let Err(error) = self.store.extend(in_flight).await {
            self.metrics.count(Metric::StoreFaults, ["extend", ""]);
            tracing::error!(%error, "leases could not be renewed; trying again");
        }
    }

    /// Writes the counts of redeliveries. Returns false if they could not be written.
    async fn flush(&self) -> bool {
        let flushed = self.store.flush_counts().await;
        if let Err(error) = &flushed {
            self.metrics.count(Metric::StoreFaults, ["count", ""]);
            tracing::warn!(%error, "the delivery counts of repeats could not be written; trying again");
        }
        flushed.is_ok()
    }

    /// Waits for running hooks, within the time limit, and gives back the jobs of the others.
    async fn drain(&self, mut ready: mpsc::UnboundedReceiver<HandedJob>, mut running: JoinSet<()>) -> usize {
        // From here on, no job is created in state running.
        self.store.permits().close();
        ready.close();
        // Jobs handed over but not started go back at once.
        while let Ok(HandedJob { taken, .. }) = ready.try_recv() {
            self.give_back(&taken.job).await;
        }
        let all_ended = async { while running.join_next().await.is_some() {} };
        let in_time = tokio::select! {
            biased;
            ended = timeout(self.options.stop_within, all_ended) => ended.is_ok(),
            // Leases are renewed during the wait, because the hooks still run.
            () = self.maintain() => false,
        };
        if !in_time {
            running.shutdown().await;
        }
        // The entries left belong to tasks that were aborted.
        let cut: Vec<JobRow> = std::mem::take(&mut *lock(&self.in_flight)).into_values().collect();
        for job in &cut {
            tracing::warn!(job = %job.id, action = %job.action, "the stop aborted a running hook; its job is due again at the next start");
            self.give_back(job).await;
        }
        self.flush().await;
        cut.len()
    }

    async fn give_back(&self, job: &JobRow) {
        if let Err(error) = self.store.give_back(job).await {
            tracing::warn!(job = %job.id, %error, "the job could not be given back; the next start runs the job again");
        }
    }
}

/// Creates the counters with the value 0, so that an alert rule sees the first increment.
pub(crate) fn announce(metrics: &Metrics, runner: &Runner) {
    for action in Action::ALL.map(Action::as_str) {
        for ending in ["done", "retry", "refused", "pending", "given-back"] {
            metrics.announce(Metric::Attempts, [action, ending]);
        }
    }
    for reason in ["misconfigured", "unsupported", "lease-lost", "dead", "held"] {
        metrics.announce(Metric::Alerts, [reason, ""]);
    }
    for operation in ["take", "extend", "count", "finish"] {
        metrics.announce(Metric::StoreFaults, [operation, ""]);
    }
    for hook in runner.hooks().map(|hook| hook.name.as_str()) {
        metrics.announce_distribution(Metric::HookDuration, [hook, ""]);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::hooks::runner::NamedHook;
    use crate::store::{Acceptance, StoreOptions};
    use spid_core::lifecycle::Policy;
    use spid_hook::AnyHook;
    use spid_hook::callback::{Answer, Callback, InstanceRef};

    pub(super) fn a_create(order: &str, clock: &Clock) -> Acceptance {
        let subject = InstanceRef { instance_id: None, order_biz_id: Some(order.to_owned()) };
        Acceptance {
            account: "acme".to_owned(),
            endpoint: "alibaba-cn".to_owned(),
            key_label: "current".to_owned(),
            callback: Arc::new(Callback { subject, ..Callback::new(Action::Create, "createInstance") }),
            received_at: clock.now(),
            policy: Policy::default(),
            fetched: false,
            approved: false,
            delivery_limit: None,
        }
    }

    /// Paused time advances only while no task is ready, so a loop that spins makes this test hang.
    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_without_a_free_place_sleeps() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        let begun = Arc::new(Notify::new());
        let begins = begun.clone();
        // Its calls start and never end.
        let hook = AnyHook::from_fn(move |_| {
            begins.notify_one();
            std::future::pending()
        });
        let runner = Runner::new(vec![NamedHook::new("endless", hook)], Vec::new()).unwrap();
        let (_runners, runner) = watch::channel(runner);
        let options = DispatchOptions { permits: 1, ..DispatchOptions::default() };
        let dispatch = Dispatch::new(store.clone(), clock.clone(), Metrics::default(), runner, options);
        let (_stop, stopping) = watch::channel(false);
        let running = tokio::spawn(dispatch.run(stopping));
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        begun.notified().await;
        drop(store.accept(a_create("ob-2", &clock)).await.unwrap());
        sleep(Duration::from_millis(10 * limits::DISPATCH_POLL_MS)).await;
        running.abort();
    }

    /// A hook that reports each call with its name, and then waits for a permit.
    fn gated(
        name: &'static str,
        called: mpsc::UnboundedSender<&'static str>,
        gate: Arc<tokio::sync::Semaphore>,
    ) -> AnyHook {
        AnyHook::from_fn(move |_| {
            let _ = called.send(name);
            let gate = gate.clone();
            async move {
                let _permit = gate.acquire().await;
                Ok(Answer::default())
            }
        })
    }

    #[tokio::test]
    async fn reload_reaches_jobs_that_wait_for_a_call_permit() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        let (called, mut calls) = mpsc::unbounded_channel();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let runner = |name| {
            let hook = gated(name, called.clone(), gate.clone());
            Runner::new(vec![NamedHook::new("provision", hook)], Vec::new()).unwrap()
        };
        let (runners, current) = watch::channel(runner("old"));
        let options = DispatchOptions { permits: 1, waiting: 2, ..DispatchOptions::default() };
        let dispatch = Dispatch::new(store.clone(), clock.clone(), Metrics::default(), current, options);
        let queues = dispatch.queues.clone();
        let (_stop, stopping) = watch::channel(false);
        let running = tokio::spawn(dispatch.run(stopping));
        drop(store.accept(a_create("ob-0", &clock)).await.unwrap());
        assert_eq!(calls.recv().await, Some("old"));
        // The hook has free slots, but the only call permit is taken.
        for order in ["ob-1", "ob-2"] {
            drop(store.accept(a_create(order, &clock)).await.unwrap());
        }
        while !queues.is_any_full() {
            sleep(Duration::from_millis(1)).await;
        }
        let new = runner("new").succeeding(&runners.borrow());
        runners.send_replace(new);
        gate.add_permits(3);
        assert_eq!((calls.recv().await, calls.recv().await), (Some("new"), Some("new")));
        running.abort();
    }
}
