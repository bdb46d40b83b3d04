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

mod calls;
mod rooms;

mod endpoints;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::Instrument as _;

use crate::hooks::runner::{Permit, Runner, Slot};
use crate::market_api::order_lookup::{Asker, LookupError, OrderLookupClients};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::spans::{Begun, Kind, Span, Spans, Value};
use crate::store::{
    AttemptEnd, Finished, HandedJob, JobRow, LeasedJob, Postpone, Retrying, Store, StoreError,
};
use calls::Calls;
use rooms::{Rooms, WaitsFor};
use spid_core::lifecycle::schedule;
use spid_hook::AttemptResult;
use spid_hook::callback::{Action, Answer, Callback};
use spid_hook::time::{Clock, plus_millis};
use spid_hook::trace::TraceContext;
use spid_hook::{Call, CallFacts, Subject};

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

/// First pause after an error of the store. While the store fails, the pause doubles up to the maximum below, because
/// log lines must not fill a disk that is already full.
const STORE_PAUSE: Duration = Duration::from_millis(500);
const STORE_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Pauses after errors of the store, one after the other.
#[derive(Debug, Default)]
struct Pauses {
    /// The pause that was used last; `None` after a success.
    last: Option<Duration>,
}

impl Pauses {
    /// Returns the next pause: twice the last one, up to the maximum.
    fn next(&mut self) -> Duration {
        let pause = self.last.map_or(STORE_PAUSE, |last| (last * 2).min(STORE_PAUSE_MAX));
        self.last = Some(pause);
        pause
    }

    fn reset(&mut self) {
        self.last = None;
    }

    /// Returns true if the last operation failed.
    fn is_pausing(&self) -> bool {
        self.last.is_some()
    }
}

/// Attempts in flight, by job and attempt.
type Held = Arc<Mutex<BTreeMap<(i64, u32), JobRow>>>;

/// Entry of an attempt in flight. If its task panics, the entry is removed: the lease expires, and the job runs again.
/// If a stop aborts the task, the entry remains, and the stop gives the job back.
struct Holding {
    in_flight: Held,
    attempt: (i64, u32),
}

impl Holding {
    /// Adds the attempt. Returns `None` if this or a later attempt at the job is in flight here: this lease was lost
    /// then.
    fn begin(in_flight: &Held, job: &JobRow) -> Option<Holding> {
        let attempt = (job.number, job.attempts);
        let mut all = lock(in_flight);
        if all.range(attempt..=(job.number, u32::MAX)).next().is_some() {
            tracing::warn!(job = %job.id, attempt = job.attempts, "the lease was lost before the attempt began, and a later attempt runs");
            return None;
        }
        all.insert(attempt, job.clone());
        drop(all);
        Some(Holding { in_flight: in_flight.clone(), attempt })
    }

    fn end(self) {
        lock(&self.in_flight).remove(&self.attempt);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                number = self.attempt.0,
                "an attempt panicked outside its hook (a bug in spid); the job runs again when its lease expires"
            );
            lock(&self.in_flight).remove(&self.attempt);
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
    in_flight: Held,
    rooms: Rooms,
    calls: Calls,
    orders: watch::Receiver<OrderLookupClients>,
    endpoints: watch::Receiver<KnownEndpoints>,
    spans: Spans,
    /// Time of the last turn of the loop.
    turned: watch::Sender<Instant>,
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
        let rooms = Rooms::new(options.waiting, options.poll);
        let calls = Calls::new(options.permits, &runner.borrow());
        announce(&metrics, &runner.borrow());
        let (_, orders) = watch::channel(OrderLookupClients::default());
        let (_, endpoints) = watch::channel(KnownEndpoints::default());
        let (turned, _) = watch::channel(Instant::now());
        let (in_flight, spans) = (Held::default(), Spans::default());
        Dispatch {
            store,
            clock,
            metrics,
            runner,
            options,
            in_flight,
            rooms,
            calls,
            orders,
            endpoints,
            spans,
            turned,
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

    /// Returns the time of the loop's last turn. The loop turns at least once in each [poll](DispatchOptions::poll) as
    /// long as the store answers, so an old time means that it is stuck.
    pub fn turned(&self) -> watch::Receiver<Instant> {
        self.turned.subscribe()
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

    /// Runs the loop. A turn starts at a handed-over job, a wake-up, a due time, or the poll that finds missed ones.
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
            self.turned.send_replace(Instant::now());
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
                // Jobs are due, but no start permit is free: the next one returned starts a turn.
                Some(()) = self.free(), if look => {}
                // Removes finished tasks from the set.
                Some(_) = running.join_next(), if !running.is_empty() => {}
                // Starts a turn once per poll, so that the watchdog sees progress although all permits are in use for
                // long.
                () = sleep(self.options.poll) => {}
            }
        }
    }

    /// Waits until a start permit is free. Returns `None` once the store is closed for new jobs.
    async fn free(&self) -> Option<()> {
        let _place = self.store.permits().acquire().await.ok()?;
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

    /// Returns the function that leaves a job in the store if the waiting room of its hook or marketplace is full.
    /// Returns `None` if no room is full.
    fn postpone(&self) -> Option<Arc<Postpone>> {
        if !self.rooms.is_any_full() {
            return None;
        }
        // Snapshots, because the function runs inside the transaction that leases jobs.
        let (rooms, orders) = (self.rooms.clone(), self.orders.borrow().clone());
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
            rooms.pause(&server)
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
        let Some(holding) = Holding::begin(&self.in_flight, &taken.job) else { return };
        let attempt = Attempt {
            store: self.store.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            runner: self.runner.clone(),
            stop: stop.clone(),
            rooms: self.rooms.clone(),
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
            holding.end();
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

fn lock(in_flight: &Held) -> std::sync::MutexGuard<'_, BTreeMap<(i64, u32), JobRow>> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An attempt at a job.
struct Attempt {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    runner: watch::Receiver<Runner>,
    stop: watch::Receiver<bool>,
    rooms: Rooms,
    calls: Calls,
    orders: OrderLookupClients,
    endpoints: KnownEndpoints,
    spans: Spans,
    /// Name of the hook that was called, once it was.
    hook: Option<String>,
}

impl Attempt {
    async fn run(mut self, mut taken: LeasedJob, permit: OwnedSemaphorePermit) {
        // Step 1: look up the order details, if the callback lacks them. Step 2: call the hook.
        let begun = self.spans.begin();
        let ending = match self.complete(&mut taken, permit).await {
            Ok(permit) => self.call(&taken, permit).await,
            Err(ending) => ending,
        };
        // The span ends before the outcome is stored, so that it does not include retries of the store.
        if let Some(begun) = begun {
            self.spans.end(self.span(&taken, begun, &ending));
        }
        self.metrics.count(Metric::Attempts, [taken.job.action.as_str(), word(&ending)]);
        self.finish(&taken, ending).await;
    }

    /// Returns the span of the attempt, a child of the request that created the job.
    fn span(&self, taken: &LeasedJob, begun: Begun, ending: &AttemptEnd) -> Span {
        let LeasedJob { job, instance, origin, .. } = taken;
        let name = instance.as_ref().and_then(|it| it.id.as_ref().or(it.order_biz_id.as_ref()));
        let mut attributes = vec![
            ("spid.endpoint", Value::Text(origin.endpoint.clone())),
            ("spid.job", Value::Text(job.id.to_string())),
            ("spid.attempt", Value::Number(job.attempts.into())),
            ("spid.outcome", Value::Word(word(ending))),
        ];
        attributes.extend(name.map(|name| ("spid.instance", Value::Text(name.clone()))));
        attributes.extend(self.hook.clone().map(|hook| ("spid.hook", Value::Text(hook))));
        Span {
            kind: Kind::Attempt,
            context: TraceContext::of_attempt(job.id, job.attempts),
            parent: Some(TraceContext::of_request(job.id).span),
            link: None,
            begun,
            action: Some(job.action.as_str()),
            failed: matches!(ending, AttemptEnd::Retry { .. }),
            attributes,
        }
    }

    /// Waits for a slot of the hook and a call permit. A job that must wait for either first releases its start permit,
    /// and then enters the waiting room of its hook. So a slow hook does not block the jobs of others.
    ///
    /// Returns `None` if the waiting room is full, or at a stop.
    async fn slot(
        &mut self,
        subject: &Subject<'_>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<(Slot, Permit)> {
        // The usual case: both are free, and no waiting room is needed.
        let mut free = self.runner.borrow_and_update().try_reserve(subject);
        if let Some(slot) = &free
            && let Some(permit) = self.calls.try_take(slot.hook_name())
        {
            return free.map(|slot| (slot, permit));
        }
        drop(permit);
        let hook = self.runner.borrow().route(subject).hook.to_owned();
        let _waiting = self.rooms.of(WaitsFor::Hook(hook)).enter()?;
        let calls = self.calls.clone();
        loop {
            let slot = match free.take() {
                Some(slot) => slot,
                None => self.wait_for_slot(subject).await?,
            };
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                // A waiting job has not begun, so it uses the hook that a reload has configured meanwhile.
                Ok(()) = self.runner.changed() => {}
                permit = calls.take(slot.hook_name()) => return Some((slot, permit)),
            }
        }
    }

    async fn wait_for_slot(&mut self, subject: &Subject<'_>) -> Option<Slot> {
        loop {
            let runner = self.runner.borrow_and_update().clone();
            tokio::select! {
                biased;
                // A waiting job has not begun, so it uses the hook that a reload has configured meanwhile.
                Ok(()) = self.runner.changed() => {}
                slot = runner.reserve(subject) => return Some(slot),
                _ = self.stop.wait_for(|stop| *stop) => return None,
            }
        }
    }

    /// Completes the callback: missing order details are looked up and stored. The start permit is released before the
    /// lookup, so that a slow marketplace does not block other jobs.
    async fn complete(
        &mut self,
        taken: &mut LeasedJob,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<OwnedSemaphorePermit>, AttemptEnd> {
        let successors = self.successors(taken);
        let origin = &taken.origin;
        let asker =
            Asker { endpoint: &origin.endpoint, account: &origin.account, successors: successors.names() };
        let Some(asked) = self.orders.asked_endpoint(asker, &taken.callback) else { return Ok(Some(permit)) };
        drop(permit);
        let room = self.rooms.of(WaitsFor::Marketplace(asked.to_owned()));
        // A full room gives the job back, and `postpone` keeps it in the store until the room has space.
        let Some(_waiting) = room.enter() else { return Err(AttemptEnd::GivenBack) };
        let asking = async {
            let _turn = room.turn().await;
            self.orders.ask(asker, &taken.callback, self.clock.now()).await
        };
        let asked = tokio::select! {
            biased;
            asked = asking => asked,
            _ = self.stop.wait_for(|stop| *stop) => return Err(AttemptEnd::GivenBack),
        };
        self.add_order_details(taken, asked).await.map(|()| None)
    }

    async fn add_order_details(
        &self,
        taken: &mut LeasedJob,
        asked: Result<Option<Callback>, LookupError>,
    ) -> Result<(), AttemptEnd> {
        let again = |error: String| Err(AttemptEnd::Retry { error, after: None });
        let known = match asked {
            Ok(None) => return Ok(()),
            Ok(Some(known)) => known,
            Err(LookupError::Later(error)) => return again(error),
            Err(LookupError::Misconfigured(error)) => {
                return Err(self.misconfigured(&taken.job, "the order lookup", error, None));
            }
        };
        match self.store.add_order_details(&taken.job, known.clone()).await {
            Ok(Some(instance)) => taken.instance = Some(instance),
            // The lease is lost, so the store will fence off the outcome of this attempt.
            Ok(None) => return Err(AttemptEnd::GivenBack),
            Err(error) => return again(format!("the order details could not be stored: {error}")),
        }
        taken.callback = Arc::new(known);
        Ok(())
    }

    /// Returns the configured endpoints that replace the one the callback came through.
    fn successors(&self, taken: &LeasedJob) -> Successors {
        let LeasedJob { origin, callback, .. } = taken;
        self.endpoints.successors(&origin.endpoint, &origin.account, callback.dialect.as_deref())
    }

    /// Returns the endpoint name that decides routes. Fails if the endpoint is gone and a route depends on it: the job
    /// must not go to a hook that was not chosen for it.
    fn routed_as(&self, taken: &LeasedJob) -> Result<String, AttemptEnd> {
        let origin = &taken.origin;
        match self.successors(taken).name() {
            Some(name) => Ok(name.to_owned()),
            None if !self.runner.borrow().routes_by_endpoint() => Ok(origin.endpoint.clone()),
            None => {
                let (endpoint, account) = (&origin.endpoint, &origin.account);
                let error = format!(
                    "endpoint `{endpoint}` is not configured, and routes depend on it: add an [[endpoint]] with this name and `account = \"{account}\"`, or drop the job"
                );
                Err(self.misconfigured(&taken.job, "the route to the hook", error, None))
            }
        }
    }

    fn misconfigured(&self, job: &JobRow, what: &str, error: String, after: Option<Duration>) -> AttemptEnd {
        self.metrics.count(Metric::Alerts, ["misconfigured", ""]);
        tracing::error!(job = %job.id, action = %job.action, "{what} is probably misconfigured: {error}");
        AttemptEnd::Retry { error, after }
    }

    async fn call(&mut self, taken: &LeasedJob, permit: Option<OwnedSemaphorePermit>) -> AttemptEnd {
        let LeasedJob { job, callback, origin, instance } = taken;
        let endpoint = match self.routed_as(taken) {
            Ok(endpoint) => endpoint,
            Err(ending) => return ending,
        };
        let subject = Subject::new(&endpoint, callback, instance.as_ref());
        // The slot comes before the call is built: time spent waiting must not count against the hook's deadline.
        let Some((slot, _permit)) = self.slot(&subject, permit).await else { return AttemptEnd::GivenBack };
        let timeout = i64::try_from(slot.timeout().as_millis()).unwrap_or(i64::MAX);
        let call = Call::new(CallFacts {
            callback,
            instance: instance.as_ref(),
            // The job's id stays the same for all attempts, so that the hook can recognize a retry.
            idempotency_key: job.id.to_string(),
            attempt: job.attempts,
            deadline: plus_millis(self.clock.now(), timeout),
            received_at: origin.received_at,
            account: &origin.account,
            endpoint: &origin.endpoint,
            dashscope_euid: self.dashscope_euid(taken, &subject),
        });
        match call {
            Ok(call) => {
                tracing::debug!(job = %job.id, action = %job.action, attempt = job.attempts, hook = slot.hook_name(), "running the hook");
                let (hook, began) = (slot.hook_name().to_owned(), Instant::now());
                let attempted = slot.run(call).await;
                self.metrics.observe(Metric::HookDuration, [&hook, ""], began.elapsed().as_secs_f64());
                self.hook = Some(hook);
                self.ending(job, attempted)
            }
            Err(error) => AttemptEnd::Retry { error: error.to_string(), after: None },
        }
    }

    /// Returns the value of the header `x-dashscope-euid`, for products that call Model Studio. Product and buyer
    /// belong to the instance, so the dialect of the endpoint that created it decides.
    fn dashscope_euid(&self, taken: &LeasedJob, subject: &Subject<'_>) -> Option<String> {
        let successors = match &taken.instance {
            Some(instance) => self.endpoints.successors(&instance.endpoint, &instance.account, None),
            None => self.successors(taken),
        };
        self.endpoints.dialect_of(&successors)?.dashscope_euid(subject.product?, subject.buyer?)
    }

    fn ending(&self, job: &JobRow, attempted: AttemptResult) -> AttemptEnd {
        match attempted {
            AttemptResult::Done(answer) => AttemptEnd::Done(answer),
            AttemptResult::Retry { error, after } => AttemptEnd::Retry { error, after },
            AttemptResult::Misconfigured { error, after } => {
                self.misconfigured(job, "the hook", error, after)
            }
            AttemptResult::Refused { reason } => AttemptEnd::Refused { reason },
            // A payment is only a notification: a hook that does not handle it is no reason to refuse it.
            AttemptResult::Unsupported { .. } if job.action == Action::Payment => {
                AttemptEnd::Done(Answer::default())
            }
            AttemptResult::Unsupported { reason } => {
                self.metrics.count(Metric::Alerts, ["unsupported", ""]);
                tracing::error!(job = %job.id, action = %job.action, "the hook does not support this action: {reason}");
                AttemptEnd::Refused { reason }
            }
            // The browser does not wait, so no later step could complete a pending sign-on.
            AttemptResult::Pending { note } if job.action == Action::SignOn => {
                let error = format!("a sign-on cannot be pending ({note}): the hook must answer or refuse");
                self.misconfigured(job, "the hook", error, None)
            }
            AttemptResult::Pending { note } => AttemptEnd::Pending { note },
        }
    }

    /// Stores the outcome and retries until the store accepts it, because the hook has already done its work. A store
    /// that has stopped does not come back, so the loop ends there.
    async fn finish(&mut self, taken: &LeasedJob, ending: AttemptEnd) {
        let mut pauses = Pauses::default();
        loop {
            let pause = pauses.next();
            match self.store.finish(taken, ending.clone()).await {
                Ok(Finished::Kept { state, note }) => return self.report(taken, state, note.as_deref()),
                // A later attempt owns the job: this outcome must not change it.
                Ok(Finished::Fenced) => {
                    self.metrics.count(Metric::Alerts, ["lease-lost", ""]);
                    tracing::warn!(job = %taken.job.id, attempt = taken.job.attempts, "the attempt ended after its lease was lost; its outcome was not used");
                    return;
                }
                Err(error @ StoreError::Stopped) => {
                    tracing::error!(job = %taken.job.id, %error, "the outcome of an attempt could not be stored; the job runs again at the next start, with the same idempotency key");
                    return;
                }
                Err(error) => {
                    self.metrics.count(Metric::StoreFaults, ["finish", ""]);
                    tracing::error!(job = %taken.job.id, %error, again_in = ?pause, "the outcome of an attempt could not be stored; trying again");
                }
            }
            sleep(pause).await;
        }
    }

    fn report(&self, taken: &LeasedJob, state: schedule::JobState, note: Option<&str>) {
        let LeasedJob { job, instance, .. } = taken;
        let id = instance
            .as_ref()
            .and_then(|instance| instance.id.as_deref().or(instance.order_biz_id.as_deref()));
        let note = note.unwrap_or_default();
        match state {
            schedule::JobState::Done => {
                tracing::info!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, "done");
            }
            schedule::JobState::Dead => {
                self.metrics.count(Metric::Alerts, ["dead", ""]);
                tracing::error!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, "dead: the retry schedule is used up: {note}");
            }
            schedule::JobState::Held => {
                self.metrics.count(Metric::Alerts, ["held", ""]);
                tracing::error!(job = %job.id, action = %job.action, instance = id, "held: {note}");
            }
            other => {
                tracing::warn!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, state = other.as_str(), "not done: {note}");
            }
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

fn word(ending: &AttemptEnd) -> &'static str {
    match ending {
        AttemptEnd::Done(_) => "done",
        AttemptEnd::Retry { .. } => "retry",
        AttemptEnd::Refused { .. } => "refused",
        AttemptEnd::Pending { .. } => "pending",
        AttemptEnd::GivenBack => "given-back",
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::hooks::runner::NamedHook;
    use crate::store::{Acceptance, StoreOptions};
    use spid_core::lifecycle::Policy;
    use spid_hook::callback::InstanceRef;
    use spid_hook::{
        CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
    };

    /// A hook whose create starts and never ends.
    struct Endless(Arc<Notify>);

    impl ProvisioningHook for Endless {
        async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> {
            self.0.notify_one();
            std::future::pending().await
        }
        async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
            Err(HookError::refuse("not here"))
        }
        async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
            Err(HookError::refuse("not here"))
        }
        async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
            Err(HookError::refuse("not here"))
        }
    }

    fn a_create(order: &str, clock: &Clock) -> Acceptance {
        let subject = InstanceRef { instance_id: None, order_biz_id: Some(order.to_owned()) };
        Acceptance {
            account: "acme".to_owned(),
            endpoint: "alibaba-cn".to_owned(),
            key_label: "current".to_owned(),
            callback: Arc::new(Callback { subject, ..Callback::new(Action::Create, "createInstance") }),
            received_at: clock.now(),
            policy: Policy::default(),
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
        let runner =
            Runner::new(vec![NamedHook::new("endless", Endless(begun.clone()))], Vec::new()).unwrap();
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

    /// A hook that reports each call and then waits for a permit.
    struct Gated {
        name: &'static str,
        called: mpsc::UnboundedSender<&'static str>,
        gate: Arc<tokio::sync::Semaphore>,
    }

    impl ProvisioningHook for Gated {
        async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> {
            let _ = self.called.send(self.name);
            let _permit = self.gate.acquire().await;
            Ok(Provisioned::new())
        }
        async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
            Err(HookError::refuse("not here"))
        }
        async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
            Err(HookError::refuse("not here"))
        }
        async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
            Err(HookError::refuse("not here"))
        }
    }

    #[tokio::test]
    async fn reload_reaches_jobs_that_wait_for_a_call_permit() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        let (called, mut calls) = mpsc::unbounded_channel();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let runner = |name| {
            let hook = Gated { name, called: called.clone(), gate: gate.clone() };
            Runner::new(vec![NamedHook::new("provision", hook)], Vec::new()).unwrap()
        };
        let (runners, current) = watch::channel(runner("old"));
        let options = DispatchOptions { permits: 1, waiting: 2, ..DispatchOptions::default() };
        let dispatch = Dispatch::new(store.clone(), clock.clone(), Metrics::default(), current, options);
        let rooms = dispatch.rooms.clone();
        let (_stop, stopping) = watch::channel(false);
        let running = tokio::spawn(dispatch.run(stopping));
        drop(store.accept(a_create("ob-0", &clock)).await.unwrap());
        assert_eq!(calls.recv().await, Some("old"));
        // The hook has free slots, but the only call permit is taken.
        for order in ["ob-1", "ob-2"] {
            drop(store.accept(a_create(order, &clock)).await.unwrap());
        }
        while !rooms.is_any_full() {
            sleep(Duration::from_millis(1)).await;
        }
        let new = runner("new").succeeding(&runners.borrow());
        runners.send_replace(new);
        gate.add_permits(3);
        assert_eq!((calls.recv().await, calls.recv().await), (Some("new"), Some("new")));
        running.abort();
    }

    #[test]
    fn pauses_of_a_failing_store_double_up_to_a_maximum() {
        let mut pauses = Pauses::default();
        let millis: Vec<u128> = (0..7).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(millis, [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
        pauses.reset();
        assert_eq!(pauses.next(), STORE_PAUSE);
    }

    #[tokio::test]
    async fn what_panicked_is_held_no_longer_and_what_was_cut_short_still_is() {
        let in_flight = Held::default();
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        let job = store.take(1).await.unwrap().taken.remove(0).job;
        let holding = Holding::begin(&in_flight, &job);
        let cut = tokio::spawn(async move {
            let _holding = holding;
            std::future::pending::<()>().await;
        });
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        assert_eq!(lock(&in_flight).len(), 1);
        assert!(Holding::begin(&in_flight, &job).is_none(), "this attempt runs already");
        let later = JobRow { attempts: job.attempts + 1, ..job };
        let holding = Holding::begin(&in_flight, &later);
        assert_eq!(lock(&in_flight).len(), 2);
        let panics = tokio::spawn(async move {
            let _holding = holding;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(lock(&in_flight).keys().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1]);
    }
}
