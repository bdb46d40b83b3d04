//! Runs what is owed: takes jobs under a lease, runs their hooks, keeps how they ended.
//!
//! One loop takes jobs; each runs in a task of its own. A hook never runs inside a transaction. While
//! it runs its lease is renewed; if that fails for long enough somebody else may take the job, and
//! the late end is fenced off by the store. Nothing a hook does ends the loop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::callback::{Action, Answer};
use crate::clock::{Clock, plus_millis};
use crate::hook::runner::{Attempted, Runner};
use crate::hook::{Call, CallFacts, Subject};
use crate::job;
use crate::limits;
use crate::metrics::{Metric, Metrics};
use crate::store::{Ending, Finished, JobRow, Ready, Store, Taken};

/// What can be chosen about the dispatcher.
#[derive(Debug, Clone)]
pub struct DispatchOptions {
    /// Jobs that run at once, over all hooks.
    pub places: usize,
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
            poll: Duration::from_millis(limits::DISPATCH_POLL_MS),
            renew: Duration::from_millis(limits::LEASE_RENEW_MS),
            stop_within: Duration::from_millis(limits::STOP_HOOKS_MS),
        }
    }
}

/// How long to wait before a store that failed is asked again.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// The attempts that run now, by job and attempt.
type Held = Arc<Mutex<BTreeMap<(i64, u32), JobRow>>>;

/// Runs jobs.
pub struct Dispatch {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    runner: Runner,
    options: DispatchOptions,
    held: Held,
}

impl Dispatch {
    /// A dispatcher for the jobs of `store`.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        runner: Runner,
        options: DispatchOptions,
    ) -> Dispatch {
        Dispatch { store, clock, metrics, runner, options, held: Held::default() }
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
        let mut look = true;
        let mut look_at = Instant::now() + self.options.poll;
        loop {
            if look && self.store.places().available_permits() > 0 {
                self.start_handed(&mut ready, running, &stop);
                (look, look_at) = self.take(running, &stop).await;
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return ready,
                handed = ready.recv() => match handed {
                    Some(Ready { taken, place }) => self.start(*taken, place, running, &stop),
                    None => return ready,
                },
                () = self.store.work() => look = true,
                () = sleep_until(look_at), if !look => look = true,
                // To look there must be a place. Whoever gives one back wakes us here.
                _ = self.store.places().acquire(), if look => {}
                Some(_) = running.join_next(), if !running.is_empty() => {}
            }
        }
    }

    /// Starts what is on its way here, so that its lease counts as held when jobs are taken.
    fn start_handed(
        &self,
        ready: &mut mpsc::UnboundedReceiver<Ready>,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        while let Ok(Ready { taken, place }) = ready.try_recv() {
            self.start(*taken, place, running, stop);
        }
    }

    /// Starts a job that was handed over, unless its lease was lost on the way: the clock may have
    /// jumped while it and a take of ours were both under way, and that take has ended its lease.
    fn start(
        &self,
        taken: Taken,
        place: OwnedSemaphorePermit,
        running: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        match self.store.holds(&taken.job) {
            Ok(false) => {
                tracing::warn!(job = %taken.job.id, "the lease was lost before the attempt began");
            }
            Ok(true) | Err(_) => self.spawn(taken, place, running, stop),
        }
    }

    /// Takes as many due jobs as there are places. Returns whether to look again, and when.
    async fn take(&self, running: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> (bool, Instant) {
        let mut places = Vec::new();
        while let Ok(place) = self.store.places().clone().try_acquire_owned() {
            places.push(place);
        }
        let limit = places.len();
        let poll = Instant::now() + self.options.poll;
        match self.store.take(limit, self.held()).await {
            Ok(taking) => {
                let full = limit > 0 && taking.taken.len() == limit;
                for (taken, place) in taking.taken.into_iter().zip(places) {
                    self.spawn(taken, place, running, stop);
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
        lock(&self.held).insert((taken.job.number, taken.job.attempts), taken.job.clone());
        let attempt = Attempt {
            store: self.store.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            runner: self.runner.clone(),
            held: self.held.clone(),
            stop: stop.clone(),
        };
        running.spawn(async move {
            attempt.run(taken).await;
            drop(place);
        });
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
        if let Err(error) = self.store.finish(job, Ending::GivenBack).await {
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
    runner: Runner,
    held: Held,
    stop: watch::Receiver<bool>,
}

impl Attempt {
    async fn run(mut self, taken: Taken) {
        let ending = self.call(&taken).await;
        self.metrics.count(Metric::Attempts, [taken.job.action.as_str(), word(&ending)]);
        self.finish(&taken, ending).await;
        lock(&self.held).remove(&(taken.job.number, taken.job.attempts));
    }

    async fn call(&mut self, taken: &Taken) -> Ending {
        let Taken { job, callback, origin, instance } = taken;
        let subject = Subject::new(&origin.endpoint, callback, instance.as_ref());
        let slot = tokio::select! {
            biased;
            slot = self.runner.reserve(&subject) => slot,
            _ = self.stop.wait_for(|stop| *stop) => return Ending::GivenBack,
        };
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
        });
        match call {
            Ok(call) => {
                tracing::debug!(job = %job.id, action = %job.action, attempt = job.attempts, hook = slot.hook_name(), "running the hook");
                self.ending(job, slot.run(call).await)
            }
            Err(error) => Ending::Retry { error: error.to_string(), after: None },
        }
    }

    fn ending(&self, job: &JobRow, attempted: Attempted) -> Ending {
        match attempted {
            Attempted::Done(answer) => Ending::Done(answer),
            Attempted::Retry { error, after } => Ending::Retry { error, after },
            Attempted::Refused { reason } => Ending::Refused { reason },
            // A payment is a message: that nobody listens to it is no reason to refuse it.
            Attempted::Unsupported { .. } if job.action == Action::Payment => Ending::Done(Answer::default()),
            Attempted::Unsupported { reason } => {
                self.metrics.count(Metric::Alerts, ["unsupported", ""]);
                tracing::error!(job = %job.id, action = %job.action, "the hook does not support what the marketplace asks: {reason}");
                Ending::Refused { reason }
            }
            Attempted::Pending { note } => Ending::Pending { note },
        }
    }

    /// Keeps the end, however long the store takes to come back: the hook has done its work.
    async fn finish(&mut self, taken: &Taken, ending: Ending) {
        loop {
            match self.store.finish(&taken.job, ending.clone()).await {
                Ok(Finished::Kept { state, note }) => return self.report(taken, state, note.as_deref()),
                Ok(Finished::Fenced) => {
                    self.metrics.count(Metric::Alerts, ["lease-lost", ""]);
                    tracing::warn!(job = %taken.job.id, attempt = taken.job.attempts, "the attempt ended after its lease was lost; its end was not used");
                    return;
                }
                Err(error) => {
                    self.metrics.count(Metric::StoreFaults, ["finish", ""]);
                    tracing::error!(job = %taken.job.id, %error, "the end of an attempt could not be kept; trying again");
                }
            }
            sleep(STORE_PAUSE).await;
        }
    }

    fn report(&self, taken: &Taken, state: job::State, note: Option<&str>) {
        let Taken { job, instance, .. } = taken;
        let id = instance
            .as_ref()
            .and_then(|instance| instance.id.as_deref().or(instance.order_biz_id.as_deref()));
        let note = note.unwrap_or_default();
        match state {
            job::State::Done => {
                tracing::info!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, "done");
            }
            job::State::Dead => {
                self.metrics.count(Metric::Alerts, ["dead", ""]);
                tracing::error!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, "dead: the retry schedule is spent: {note}");
            }
            job::State::Held => {
                self.metrics.count(Metric::Alerts, ["held", ""]);
                tracing::error!(job = %job.id, action = %job.action, instance = id, "held: {note}");
            }
            other => {
                tracing::warn!(job = %job.id, action = %job.action, instance = id, attempt = job.attempts, state = other.as_str(), "not done: {note}");
            }
        }
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
