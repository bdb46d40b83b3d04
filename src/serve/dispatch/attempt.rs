//! One attempt at a job: the order lookup, the wait for a slot, the call of the hook, the outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep};

use super::calls::Calls;
use super::endpoints::{KnownEndpoints, Successors};
use super::pauses::Pauses;
use super::wait_queues::{WaitQueues, WaitsFor};
use crate::hooks::runner::{Permit, Runner, Slot};
use crate::market_api::order_lookup::{Asker, LookupError, OrderLookupClients};
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::spans::{Begun, Kind, Span, Spans, Value};
use crate::store::{AttemptEnd, Finished, JobRow, LeasedJob, Store, StoreError};
use spid_core::lifecycle::schedule;
use spid_hook::AttemptResult;
use spid_hook::callback::{Action, Answer, Callback};
use spid_hook::time::{Clock, plus_millis};
use spid_hook::trace::TraceContext;
use spid_hook::{Call, CallFacts, Subject};

/// An attempt at a job.
pub(super) struct Attempt {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) runner: watch::Receiver<Runner>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) queues: WaitQueues,
    pub(super) calls: Calls,
    pub(super) orders: OrderLookupClients,
    pub(super) endpoints: KnownEndpoints,
    pub(super) spans: Spans,
    /// Name of the hook that was called, once it was.
    pub(super) hook: Option<String>,
}

impl Attempt {
    pub(super) async fn run(mut self, mut taken: LeasedJob, permit: OwnedSemaphorePermit) {
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
    /// and then enters the wait queue of its hook. So a slow hook does not block the jobs of others.
    ///
    /// Returns `None` if the wait queue is full, or at a stop.
    async fn slot(
        &mut self,
        subject: &Subject<'_>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<(Slot, Permit)> {
        // The usual case: both are free, and no wait queue is needed.
        let mut free = self.runner.borrow_and_update().try_reserve(subject);
        if let Some(slot) = &free
            && let Some(permit) = self.calls.try_take(slot.hook_name())
        {
            return free.map(|slot| (slot, permit));
        }
        drop(permit);
        let hook = self.runner.borrow().route(subject).hook.to_owned();
        let _waiting = self.queues.of(WaitsFor::Hook(hook)).enter()?;
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
        let queue = self.queues.of(WaitsFor::Marketplace(asked.to_owned()));
        // A full queue gives the job back, and `postpone` keeps it in the store until the queue has space.
        let Some(_waiting) = queue.enter() else { return Err(AttemptEnd::GivenBack) };
        let asking = async {
            let _lookup_permit = queue.lookup_permit().await;
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
        let known = match asked {
            Ok(None) => return Ok(()),
            Ok(Some(known)) => known,
            Err(LookupError::Later(error)) => return Err(AttemptEnd::Retry { error, after: None }),
            Err(LookupError::Misconfigured(error)) => {
                return Err(self.misconfigured(&taken.job, "the order lookup", error, None));
            }
        };
        match self.store.add_order_details(&taken.job, known.clone()).await {
            Ok(Some(instance)) => taken.instance = Some(instance),
            // The lease is lost, so the store will fence off the outcome of this attempt.
            Ok(None) => return Err(AttemptEnd::GivenBack),
            Err(error) => {
                let error = format!("the order details could not be stored: {error}");
                return Err(AttemptEnd::Retry { error, after: None });
            }
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

fn word(ending: &AttemptEnd) -> &'static str {
    match ending {
        AttemptEnd::Done(_) => "done",
        AttemptEnd::Retry { .. } => "retry",
        AttemptEnd::Refused { .. } => "refused",
        AttemptEnd::Pending { .. } => "pending",
        AttemptEnd::GivenBack => "given-back",
    }
}
