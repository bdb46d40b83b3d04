//! Runs what is owed: takes jobs under a lease, runs their hooks, keeps how they ended.
//!
//! One loop takes jobs; each runs in a task of its own. A hook never runs inside a transaction. While
//! it runs its lease is renewed; if that fails for long enough somebody else may take the job, and
//! the late end is fenced off by the store. Nothing a hook does ends the loop.
//!
//! What runs a job has a bound of its own: each hook, and each marketplace that is asked what was ordered. A job
//! holds the permit of one of them at a time, and one of those for calls of hooks, over all hooks, only while
//! its hook runs. A job that was taken holds a place until it is known where it waits or runs.

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

use crate::core::lifecycle::schedule;
use crate::hook::callback::{Action, Answer, Callback};
use crate::hook::clock::{Clock, plus_millis};
use crate::hook::trace::TraceContext;
use crate::hook::{Call, CallFacts, Subject};
use crate::hooks::runner::{Attempted, Place, Runner, Slot};
use crate::market_api::order_lookup::{Asker, Orders, Unasked};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::spans::{Begun, Kind, Span, Spans, Value};
use crate::store::{Ending, Finished, JobRow, Postpone, Ready, Retrying, Store, StoreError, Taken};
use calls::Calls;
use rooms::{Rooms, Server};

pub use endpoints::{KnownEndpoint, KnownEndpoints, Successors};

/// What can be chosen about the dispatcher.
#[derive(Debug, Clone)]
pub struct DispatchOptions {
    /// Calls of hooks that run at once, over all hooks. One of them is each hook's own.
    pub places: usize,
    /// Jobs that are taken and wait for one busy hook, or for one marketplace.
    pub waiting: usize,
    /// How often it looks for due jobs though nothing woke it.
    pub poll: Duration,
    /// How often leases are renewed.
    pub renew: Duration,
    /// How long a stop waits for running hooks.
    pub stop_within: Duration,
}

impl Default for DispatchOptions {
    fn default() -> DispatchOptions {
        DispatchOptions {
            places: limits::JOBS_RUNNING_MAX_COUNT,
            waiting: limits::JOBS_WAITING_MAX_COUNT,
            poll: Duration::from_millis(limits::DISPATCH_POLL_MS),
            renew: Duration::from_millis(limits::LEASE_RENEW_MS),
            stop_within: Duration::from_millis(limits::STOP_HOOKS_MS),
        }
    }
}

/// How long to wait before a store that failed is asked again; how long at most, when it fails again and
/// again: a full disk must not be filled with the news of it.
const STORE_PAUSE: Duration = Duration::from_millis(500);
const STORE_PAUSE_MAX: Duration = Duration::from_secs(8);

/// The attempts that run now, by job and attempt.
type Held = Arc<Mutex<BTreeMap<(i64, u32), JobRow>>>;

/// A job that runs. A task that panics holds it no longer: its lease is left to run out, and the job
/// comes back. A task that is cut short by a stop still does: the stop gives its job back.
struct Holding {
    held: Held,
    attempt: (i64, u32),
}

impl Holding {
    /// Holds the job. `None` when a later attempt at it runs here: then this lease was lost on its way.
    fn begin(held: &Held, job: &JobRow) -> Option<Holding> {
        let attempt = (job.number, job.attempts);
        let mut all = lock(held);
        if all.range(attempt..=(job.number, u32::MAX)).next().is_some() {
            tracing::warn!(job = %job.id, attempt = job.attempts, "the lease was lost before the attempt began, and a later attempt runs");
            return None;
        }
        all.insert(attempt, job.clone());
        drop(all);
        Some(Holding { held: held.clone(), attempt })
    }

    fn end(self) {
        lock(&self.held).remove(&self.attempt);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                number = self.attempt.0,
                "an attempt panicked outside of its hook: this is a bug; the job comes back when its lease ends"
            );
            lock(&self.held).remove(&self.attempt);
        }
    }
}

/// Runs jobs.
pub struct Dispatch {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    runner: watch::Receiver<Runner>,
    options: DispatchOptions,
    held: Held,
    rooms: Rooms,
    calls: Calls,
    orders: watch::Receiver<Orders>,
    endpoints: watch::Receiver<KnownEndpoints>,
    spans: Spans,
    /// When the loop last went round.
    turned: watch::Sender<Instant>,
}

impl Dispatch {
    /// A dispatcher for the jobs of `store`. Each attempt begins with the runner that is there then, and
    /// ends with it.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        runner: watch::Receiver<Runner>,
        options: DispatchOptions,
    ) -> Dispatch {
        let rooms = Rooms::new(options.waiting, options.poll);
        let calls = Calls::new(options.places, &runner.borrow());
        announce(&metrics, &runner.borrow());
        let (_, orders) = watch::channel(Orders::default());
        let (_, endpoints) = watch::channel(KnownEndpoints::default());
        let (turned, _) = watch::channel(Instant::now());
        let (held, spans) = (Held::default(), Spans::default());
        Dispatch {
            store,
            clock,
            metrics,
            runner,
            options,
            held,
            rooms,
            calls,
            orders,
            endpoints,
            spans,
            turned,
        }
    }

    /// The same, asking there what was ordered where a callback does not say.
    pub fn asking(self, orders: watch::Receiver<Orders>) -> Dispatch {
        Dispatch { orders, ..self }
    }

    /// The same, with the endpoints that are configured: what comes from another one is not taken for theirs.
    pub fn knowing(self, endpoints: watch::Receiver<KnownEndpoints>) -> Dispatch {
        Dispatch { endpoints, ..self }
    }

    /// The same, telling a collector of each attempt.
    pub fn telling(self, spans: Spans) -> Dispatch {
        Dispatch { spans, ..self }
    }

    /// When the loop last went round. It does so at least once in each [poll](DispatchOptions::poll), as long
    /// as the store answers: whoever watches this knows that it is not stuck.
    pub fn turned(&self) -> watch::Receiver<Instant> {
        self.turned.subscribe()
    }

    /// Runs until `stop` is set, then lets running hooks end. Returns how many were cut short; their
    /// jobs are due again at the next start.
    pub async fn run(self, stop: watch::Receiver<bool>) -> usize {
        let Some(ready) = self.store.attach(self.options.places) else {
            tracing::error!("a dispatcher is attached to this store already");
            return 0;
        };
        let mut running = JoinSet::new();
        let ready = tokio::select! {
            biased;
            ready = self.take_and_run(ready, &mut running, stop.clone()) => ready,
            () = self.keep_house() => return 0,
        };
        self.drain(ready, running).await
    }

    /// The loop: hand-overs, wake-ups, due times, and a poll for whatever all of these missed.
    async fn take_and_run(
        &self,
        mut ready: mpsc::UnboundedReceiver<Ready>,
        running: &mut JoinSet<()>,
        stop: watch::Receiver<bool>,
    ) -> mpsc::UnboundedReceiver<Ready> {
        let mut stopping = stop.clone();
        let mut runner = self.runner.clone();
        let mut look = true;
        let mut look_at = Instant::now() + self.options.poll;
        loop {
            self.turned.send_replace(Instant::now());
            if look && self.store.places().available_permits() > 0 {
                self.start_handed(&mut ready, running, &stop);
                (look, look_at) = self.take(running, &stop).await;
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return ready,
                handed = ready.recv() => match handed {
                    Some(handed) => self.start(handed, running, &stop),
                    None => return ready,
                },
                Ok(()) = runner.changed() => self.calls.configure(&runner.borrow_and_update()),
                () = self.store.work() => look = true,
                () = sleep_until(look_at), if !look => look = true,
                // There is something to take and no place for it: the first that is given back will do.
                Some(()) = self.free(), if look => {}
                Some(_) = running.join_next(), if !running.is_empty() => {}
                // To be seen turning, though all places are taken for long.
                () = sleep(self.options.poll) => {}
            }
        }
    }

    /// Waits until one more job could be taken. `None` once there never will be.
    async fn free(&self) -> Option<()> {
        let _place = self.store.places().acquire().await.ok()?;
        Some(())
    }

    /// Starts what is on its way here, so that its lease counts as held when jobs are taken.
    fn start_handed(
        &self,
        ready: &mut mpsc::UnboundedReceiver<Ready>,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        while let Ok(handed) = ready.try_recv() {
            self.start(handed, running, stop);
        }
    }

    /// Starts a job that was handed over, unless its lease was lost on the way: the clock may have
    /// jumped while it and a take of ours were both under way, and that take has ended its lease.
    fn start(&self, handed: Ready, running: &mut JoinSet<()>, stop: &watch::Receiver<bool>) {
        match self.store.holds(&handed) {
            Ok(false) => {
                tracing::warn!(job = %handed.taken.job.id, "the lease was lost before the attempt began");
            }
            Ok(true) | Err(_) => self.spawn(*handed.taken, handed.place, running, stop),
        }
    }

    /// Leaves jobs in the store whose hook, or whose marketplace, has as many waiting as it has room for.
    fn postpone(&self) -> Option<Arc<Postpone>> {
        if !self.rooms.is_any_full() {
            return None;
        }
        let (rooms, orders) = (self.rooms.clone(), self.orders.borrow().clone());
        let endpoints = self.endpoints.borrow().clone();
        let runner = self.runner.borrow().clone();
        Some(Arc::new(move |job: &Retrying<'_>| {
            let Retrying { endpoint, account, callback, .. } = *job;
            let successors = endpoints.successors(endpoint, account, callback.dialect.as_deref());
            let asker = Asker { endpoint, account, successors: successors.names() };
            let server = match orders.asked_endpoint(asker, job.callback) {
                Some(asked) => Server::Orders(asked.to_owned()),
                None => {
                    let endpoint = successors.name().unwrap_or(job.endpoint);
                    let subject = Subject::new(endpoint, job.callback, job.instance);
                    Server::Hook(runner.route(&subject).hook.to_owned())
                }
            };
            rooms.pause(&server)
        }))
    }

    /// Takes as many due jobs as there are places. Returns whether to look again, and when.
    async fn take(&self, running: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> (bool, Instant) {
        let mut places = Vec::new();
        while let Ok(place) = self.store.places().clone().try_acquire_owned() {
            places.push(place);
        }
        let limit = places.len();
        let poll = Instant::now() + self.options.poll;
        match self.store.take_where_there_is_room(limit, self.held(), self.postpone()).await {
            Ok(taking) => {
                let more = taking.taken.len() == limit
                    || taking.postponed + taking.aside.len() >= limits::JOBS_POSTPONED_MAX_COUNT;
                let full = limit > 0 && more;
                for (taken, place) in taking.taken.into_iter().zip(places) {
                    self.spawn(taken, place, running, stop);
                }
                for aside in &taking.aside {
                    aside.log(&self.metrics);
                }
                let due = taking.next_due.map_or(poll, |due| self.instant(due));
                (full, due.min(poll))
            }
            Err(error) => {
                self.metrics.count(Metric::StoreFaults, ["take", ""]);
                tracing::error!(%error, "due jobs could not be taken; trying again");
                (false, Instant::now() + STORE_PAUSE)
            }
        }
    }

    fn instant(&self, at: jiff::Timestamp) -> Instant {
        let wait = at.as_millisecond() - self.clock.now().as_millisecond();
        Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0))
    }

    fn spawn(
        &self,
        taken: Taken,
        place: OwnedSemaphorePermit,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        let Some(holding) = Holding::begin(&self.held, &taken.job) else { return };
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
        // On the heap: it is large, and would be moved about with the task.
        let work = Box::pin(async move {
            attempt.run(taken, place).await;
            holding.end();
        });
        running.spawn(work.instrument(span));
    }

    /// Renews leases and writes counts, as long as it is polled.
    async fn keep_house(&self) {
        let mut renew = interval(self.options.renew);
        let mut flush = interval(Duration::from_millis(limits::COUNTS_FLUSH_MS));
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = renew.tick() => self.renew().await,
                _ = flush.tick() => self.flush().await,
            }
        }
    }

    /// The attempts that run now.
    fn held(&self) -> Vec<(i64, u32)> {
        lock(&self.held).keys().copied().collect()
    }

    async fn renew(&self) {
        let held = self.held();
        if held.is_empty() {
            return;
        }
        if let Err(error) = self.store.extend(held).await {
            self.metrics.count(Metric::StoreFaults, ["extend", ""]);
            tracing::error!(%error, "leases could not be renewed; trying again");
        }
    }

    async fn flush(&self) {
        if let Err(error) = self.store.flush_counts().await {
            self.metrics.count(Metric::StoreFaults, ["count", ""]);
            tracing::warn!(%error, "the counts of repeats could not be written; trying again");
        }
    }

    /// Lets running hooks end, within bounds; gives back the jobs of those that do not.
    async fn drain(&self, mut ready: mpsc::UnboundedReceiver<Ready>, mut running: JoinSet<()>) -> usize {
        self.store.places().close();
        ready.close();
        while let Ok(Ready { taken, .. }) = ready.try_recv() {
            self.give_back(&taken.job).await;
        }
        let all_ended = async { while running.join_next().await.is_some() {} };
        let in_time = tokio::select! {
            biased;
            ended = timeout(self.options.stop_within, all_ended) => ended.is_ok(),
            () = self.keep_house() => false,
        };
        if !in_time {
            running.shutdown().await;
        }
        let cut: Vec<JobRow> = std::mem::take(&mut *lock(&self.held)).into_values().collect();
        for job in &cut {
            tracing::warn!(job = %job.id, action = %job.action, "the hook was still running; its job is due again at the next start");
            self.give_back(job).await;
        }
        self.flush().await;
        cut.len()
    }

    async fn give_back(&self, job: &JobRow) {
        if let Err(error) = self.store.give_back(job).await {
            tracing::warn!(job = %job.id, %error, "the job could not be given back; it comes back at the next start");
        }
    }
}

fn lock(held: &Held) -> std::sync::MutexGuard<'_, BTreeMap<(i64, u32), JobRow>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One attempt at one job.
struct Attempt {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    runner: watch::Receiver<Runner>,
    stop: watch::Receiver<bool>,
    rooms: Rooms,
    calls: Calls,
    orders: Orders,
    endpoints: KnownEndpoints,
    spans: Spans,
    /// The hook that was run, once it was.
    hook: Option<String>,
}

impl Attempt {
    async fn run(mut self, mut taken: Taken, place: OwnedSemaphorePermit) {
        let begun = self.spans.begin();
        let ending = match self.complete(&mut taken, place).await {
            Ok(place) => self.call(&taken, place).await,
            Err(ending) => ending,
        };
        if let Some(begun) = begun {
            self.spans.end(self.span(&taken, begun, &ending));
        }
        self.metrics.count(Metric::Attempts, [taken.job.action.as_str(), word(&ending)]);
        self.finish(&taken, ending).await;
    }

    /// What a collector is told of it. It belongs to the request that made the job.
    fn span(&self, taken: &Taken, begun: Begun, ending: &Ending) -> Span {
        let Taken { job, instance, origin, .. } = taken;
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
            failed: matches!(ending, Ending::Retry { .. }),
            attributes,
        }
    }

    /// The right to run the hook, and the permit for one more call. A job that must wait for either gives its place
    /// back and waits in the room of its hook: a hook that is slow must not keep the jobs of the others from running.
    /// `None` when there is no room to wait, or everything stops.
    async fn slot(
        &mut self,
        subject: &Subject<'_>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Option<(Slot, Place)> {
        let mut free = self.runner.borrow_and_update().try_reserve(subject);
        if let Some(slot) = &free
            && let Some(permit) = self.calls.try_take(slot.hook_name())
        {
            return free.map(|slot| (slot, permit));
        }
        drop(place);
        let hook = self.runner.borrow().route(subject).hook.to_owned();
        let _waiting = self.rooms.of(Server::Hook(hook)).enter()?;
        let calls = self.calls.clone();
        loop {
            let slot = match free.take() {
                Some(slot) => slot,
                None => self.wait_for_slot(subject).await?,
            };
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                // What waits has not begun: it takes the hook that is configured by then.
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
                // What waits has not begun: it takes the hook that is configured by then.
                Ok(()) = self.runner.changed() => {}
                slot = runner.reserve(subject) => return Some(slot),
                _ = self.stop.wait_for(|stop| *stop) => return None,
            }
        }
    }

    /// Makes sure that the callback says what was ordered: what it does not say is asked for, and kept. The place
    /// is given back before a marketplace is asked: however long that takes, it keeps no hook from running.
    async fn complete(
        &mut self,
        taken: &mut Taken,
        place: OwnedSemaphorePermit,
    ) -> Result<Option<OwnedSemaphorePermit>, Ending> {
        let successors = self.successors(taken);
        let origin = &taken.origin;
        let asker =
            Asker { endpoint: &origin.endpoint, account: &origin.account, successors: successors.names() };
        let Some(asked) = self.orders.asked_endpoint(asker, &taken.callback) else { return Ok(Some(place)) };
        drop(place);
        let room = self.rooms.of(Server::Orders(asked.to_owned()));
        let Some(_waiting) = room.enter() else { return Err(Ending::GivenBack) };
        let asking = async {
            let _turn = room.turn().await;
            self.orders.ask(asker, &taken.callback, self.clock.now()).await
        };
        let asked = tokio::select! {
            biased;
            asked = asking => asked,
            _ = self.stop.wait_for(|stop| *stop) => return Err(Ending::GivenBack),
        };
        self.learn(taken, asked).await.map(|()| None)
    }

    async fn learn(&self, taken: &mut Taken, asked: Result<Option<Callback>, Unasked>) -> Result<(), Ending> {
        let again = |error: String| Err(Ending::Retry { error, after: None });
        let known = match asked {
            Ok(None) => return Ok(()),
            Ok(Some(known)) => known,
            Err(Unasked::Later(error)) => return again(error),
            Err(Unasked::Misconfigured(error)) => {
                return Err(self.misconfigured(&taken.job, "the way to the marketplace", error, None));
            }
        };
        match self.store.learn(&taken.job, known.clone()).await {
            Ok(Some(instance)) => taken.instance = Some(instance),
            // The lease is lost: the end of this attempt will be fenced off.
            Ok(None) => return Err(Ending::GivenBack),
            Err(error) => return again(format!("what was ordered could not be kept: {error}")),
        }
        taken.callback = Arc::new(known);
        Ok(())
    }

    /// The endpoints that stand for the one the callback came through.
    fn successors(&self, taken: &Taken) -> Successors {
        let Taken { origin, callback, .. } = taken;
        self.endpoints.successors(&origin.endpoint, &origin.account, callback.dialect.as_deref())
    }

    /// The name of the endpoint that routes are decided by. A route that nobody can decide must not lead to
    /// whatever hook is the first.
    fn routed_as(&self, taken: &Taken) -> Result<String, Ending> {
        let origin = &taken.origin;
        match self.successors(taken).name() {
            Some(name) => Ok(name.to_owned()),
            None if !self.runner.borrow().routes_by_endpoint() => Ok(origin.endpoint.clone()),
            None => {
                let (endpoint, account) = (&origin.endpoint, &origin.account);
                let error = format!(
                    "endpoint `{endpoint}` is not configured any more, and there are routes by endpoint: add an [[endpoint]] with this name and `account = \"{account}\"`, or drop the job"
                );
                Err(self.misconfigured(&taken.job, "the way to the hook", error, None))
            }
        }
    }

    fn misconfigured(&self, job: &JobRow, what: &str, error: String, after: Option<Duration>) -> Ending {
        self.metrics.count(Metric::Alerts, ["misconfigured", ""]);
        tracing::error!(job = %job.id, action = %job.action, "{what} looks wrongly configured: {error}");
        Ending::Retry { error, after }
    }

    async fn call(&mut self, taken: &Taken, place: Option<OwnedSemaphorePermit>) -> Ending {
        let Taken { job, callback, origin, instance } = taken;
        let endpoint = match self.routed_as(taken) {
            Ok(endpoint) => endpoint,
            Err(ending) => return ending,
        };
        let subject = Subject::new(&endpoint, callback, instance.as_ref());
        let Some((slot, _permit)) = self.slot(&subject, place).await else { return Ending::GivenBack };
        let timeout = i64::try_from(slot.timeout().as_millis()).unwrap_or(i64::MAX);
        let call = Call::new(CallFacts {
            callback,
            instance: instance.as_ref(),
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
            Err(error) => Ending::Retry { error: error.to_string(), after: None },
        }
    }

    /// The buyer and the product are the instance's, so the marketplace is the one it was bought at.
    fn dashscope_euid(&self, taken: &Taken, subject: &Subject<'_>) -> Option<String> {
        let successors = match &taken.instance {
            Some(instance) => self.endpoints.successors(&instance.endpoint, &instance.account, None),
            None => self.successors(taken),
        };
        self.endpoints.dialect_of(&successors)?.dashscope_euid(subject.product?, subject.buyer?)
    }

    fn ending(&self, job: &JobRow, attempted: Attempted) -> Ending {
        match attempted {
            Attempted::Done(answer) => Ending::Done(answer),
            Attempted::Retry { error, after } => Ending::Retry { error, after },
            Attempted::Misconfigured { error, after } => self.misconfigured(job, "the hook", error, after),
            Attempted::Refused { reason } => Ending::Refused { reason },
            // A payment is a message: that nobody listens to it is no reason to refuse it.
            Attempted::Unsupported { .. } if job.action == Action::Payment => Ending::Done(Answer::default()),
            Attempted::Unsupported { reason } => {
                self.metrics.count(Metric::Alerts, ["unsupported", ""]);
                tracing::error!(job = %job.id, action = %job.action, "the hook does not support what the marketplace asks: {reason}");
                Ending::Refused { reason }
            }
            // The browser does not wait, so nothing could complete it.
            Attempted::Pending { note } if job.action == Action::SignOn => {
                let error = format!("a sign-on cannot be pending ({note}): answer it, or refuse it");
                self.misconfigured(job, "the hook", error, None)
            }
            Attempted::Pending { note } => Ending::Pending { note },
        }
    }

    /// Keeps the end, however long the store takes to come back: the hook has done its work. A store that
    /// has ended does not come back.
    async fn finish(&mut self, taken: &Taken, ending: Ending) {
        let mut pause = STORE_PAUSE;
        loop {
            match self.store.finish(taken, ending.clone()).await {
                Ok(Finished::Kept { state, note }) => return self.report(taken, state, note.as_deref()),
                Ok(Finished::Fenced) => {
                    self.metrics.count(Metric::Alerts, ["lease-lost", ""]);
                    tracing::warn!(job = %taken.job.id, attempt = taken.job.attempts, "the attempt ended after its lease was lost; its end was not used");
                    return;
                }
                Err(error @ StoreError::Stopped) => {
                    tracing::error!(job = %taken.job.id, %error, "the end of an attempt could not be kept; the job runs again at the next start, with the same idempotency key");
                    return;
                }
                Err(error) => {
                    self.metrics.count(Metric::StoreFaults, ["finish", ""]);
                    tracing::error!(job = %taken.job.id, %error, again_in = ?pause, "the end of an attempt could not be kept; trying again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(STORE_PAUSE_MAX);
        }
    }

    fn report(&self, taken: &Taken, state: schedule::JobState, note: Option<&str>) {
        let Taken { job, instance, .. } = taken;
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
                tracing::error!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, "dead: the retry schedule is spent: {note}");
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

/// Shows what may be counted as 0, so that somebody can be alerted by the first of it.
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

fn word(ending: &Ending) -> &'static str {
    match ending {
        Ending::Done(_) => "done",
        Ending::Retry { .. } => "retry",
        Ending::Refused { .. } => "refused",
        Ending::Pending { .. } => "pending",
        Ending::GivenBack => "given-back",
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::core::lifecycle::Policy;
    use crate::hook::callback::InstanceRef;
    use crate::hook::{
        CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
    };
    use crate::hooks::runner::NamedHook;
    use crate::store::{Acceptance, StoreOptions};

    /// A hook whose create begins and never ends.
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
            budget: None,
        }
    }

    /// Time that is paused moves on only while nothing is ready: a loop that spins stops it for ever.
    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_without_a_free_place_sleeps() {
        let clock = Clock::System;
        let (store, _closed) = Store::in_memory(StoreOptions::default(), clock.clone()).await.unwrap();
        let begun = Arc::new(Notify::new());
        let runner =
            Runner::new(vec![NamedHook::new("endless", Endless(begun.clone()))], Vec::new()).unwrap();
        let (_runners, runner) = watch::channel(runner);
        let options = DispatchOptions { places: 1, ..DispatchOptions::default() };
        let dispatch = Dispatch::new(store.clone(), clock.clone(), Metrics::default(), runner, options);
        let (_stop, stopping) = watch::channel(false);
        let running = tokio::spawn(dispatch.run(stopping));
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        begun.notified().await;
        drop(store.accept(a_create("ob-2", &clock)).await.unwrap());
        sleep(Duration::from_millis(10 * limits::DISPATCH_POLL_MS)).await;
        running.abort();
    }

    #[tokio::test]
    async fn what_panicked_is_held_no_longer_and_what_was_cut_short_still_is() {
        let held = Held::default();
        let clock = Clock::System;
        let (store, _closed) = Store::in_memory(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        let job = store.take(1).await.unwrap().taken.remove(0).job;
        let holding = Holding::begin(&held, &job);
        let cut = tokio::spawn(async move {
            let _holding = holding;
            std::future::pending::<()>().await;
        });
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        assert_eq!(lock(&held).len(), 1);
        assert!(Holding::begin(&held, &job).is_none(), "this attempt runs already");
        let later = JobRow { attempts: job.attempts + 1, ..job };
        let holding = Holding::begin(&held, &later);
        assert_eq!(lock(&held).len(), 2);
        let panics = tokio::spawn(async move {
            let _holding = holding;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(lock(&held).keys().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1]);
    }
}
