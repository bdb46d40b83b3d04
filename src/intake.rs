//! The path of a callback: verify, keep, wait a little, answer what is true by then.
//!
//! Everything that comes in goes through [`Intake::receive`], and there is no second way. Before the
//! signature holds nothing is kept and little is said. After it nothing may vanish: what cannot be
//! stored now is answered "call again", never "done".
//!
//! Intake and dispatch never meet. A job that was made here is run elsewhere; what is heard of it
//! comes through the store's signals.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use crate::callback::{Action, Callback, Outcome};
use crate::clock::Clock;
use crate::dialect::{Dialect, Options, RawRequest, Refusal, Reply as WireReply};
use crate::http::{Request, Response};
use crate::instance::Policy;
use crate::limits;
use crate::metrics::{Metric, Metrics};
use crate::refusals::{Evidence, Facts, Refusals};
use crate::signature::Keys;
use crate::store::{Acceptance, CallbackRow, Receipt, Reply, Store};

/// A configured URL path: one dialect, one seller account, its keys.
#[derive(Clone)]
pub struct Endpoint {
    /// Its name in logs, metrics and the store.
    pub name: Arc<str>,
    /// The stable name its instances are kept under.
    pub account: Arc<str>,
    /// How its marketplace speaks.
    pub dialect: &'static dyn Dialect,
    /// Its keys, the current one first.
    pub keys: Keys,
    /// What it decides about its dialect.
    pub options: Options,
}

/// What can be chosen about the intake.
#[derive(Debug, Clone)]
pub struct IntakeOptions {
    /// How long a marketplace is kept waiting for a hook.
    pub reply_within: Duration,
    /// What the seller decided beforehand.
    pub policy: Policy,
}

impl Default for IntakeOptions {
    fn default() -> IntakeOptions {
        IntakeOptions {
            reply_within: Duration::from_millis(limits::REPLY_WITHIN_MS),
            policy: Policy::default(),
        }
    }
}

/// Receives callbacks.
#[derive(Clone)]
pub struct Intake {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    refusals: Refusals,
    options: IntakeOptions,
}

/// A callback whose signature held.
pub struct Received {
    callback: Callback,
    key_label: Arc<str>,
}

impl Received {
    /// What it asks.
    pub fn action(&self) -> Action {
        self.callback.action
    }
}

impl Intake {
    /// An intake that keeps what it receives in `store`, and what it turns away in `refusals`.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        refusals: Refusals,
        options: IntakeOptions,
    ) -> Intake {
        let intake = Intake { store, clock, metrics, refusals, options };
        intake.announce_counts();
        intake
    }

    /// Shows what may be counted as 0, so that somebody can be alerted by the first of it.
    fn announce_counts(&self) {
        for action in Action::ALL.map(Action::as_str) {
            for outcome in Outcome::WORDS {
                self.metrics.announce(Metric::Callbacks, [action, outcome]);
            }
            self.metrics.announce(Metric::Repeats, [action, ""]);
        }
        for reason in ["late-create", "paid-for-nothing", "budget"] {
            self.metrics.announce(Metric::Alerts, [reason, ""]);
        }
        for operation in ["accept", "accept-late"] {
            self.metrics.announce(Metric::StoreFaults, [operation, ""]);
        }
    }

    /// The same for the refusals of an endpoint.
    pub fn announce(&self, endpoint: &Endpoint) {
        for reason in Refusal::reasons() {
            self.metrics.announce(Metric::Refusals, [&endpoint.name, reason]);
        }
    }

    /// The same intake with other choices.
    pub fn with_options(&self, options: IntakeOptions) -> Intake {
        Intake { options, ..self.clone() }
    }

    /// Answers one request to `endpoint`.
    pub async fn receive(&self, endpoint: &Endpoint, request: Request) -> Response {
        match self.verify(endpoint, &request) {
            Ok(received) => self.answer(endpoint, received).await,
            Err(refused) => refused,
        }
    }

    /// Answers a callback whose signature held. The marketplace is kept waiting from now on.
    pub async fn answer(&self, endpoint: &Endpoint, received: Received) -> Response {
        let deadline = Instant::now() + self.options.reply_within;
        let Received { callback, key_label } = received;
        self.metrics.count(Metric::Signatures, [&endpoint.name, &key_label]);
        self.store.note_key_use(&endpoint.name, &key_label);
        let outcome = self.keep(endpoint, &callback, &key_label, deadline).await;
        self.metrics.count(Metric::Callbacks, [callback.action.as_str(), outcome.as_str()]);
        response(endpoint.dialect.reply(&callback, &outcome, &endpoint.options))
    }

    /// Whether the request says of itself, unverified, that the browser of a buyer sent it.
    pub fn is_for_a_browser(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let header = |name: &str| request.headers.only(name);
        endpoint.dialect.is_for_a_browser(&raw(request, &header))
    }

    /// Turns a request away: counted, kept in memory if there are few, this dialect's "no".
    pub fn refuse(&self, endpoint: &Endpoint, request: &Request, refusal: &Refusal) -> Response {
        let header = |name: &str| request.headers.only(name);
        let raw = raw(request, &header);
        let facts = Facts {
            endpoint: &endpoint.name,
            peer: request.peer,
            client: request.client,
            method: raw.method,
            refusal,
        };
        self.refusals.note(facts, || evidence(endpoint, &raw, self.clock.now(), refusal));
        response(endpoint.dialect.refuse(&raw, refusal))
    }

    /// Before the signature: cheap, strict, and without a trace on disk.
    ///
    /// # Errors
    /// The answer to a request that was turned away; then it was [refused](Intake::refuse).
    pub fn verify(&self, endpoint: &Endpoint, request: &Request) -> Result<Received, Response> {
        let header = |name: &str| request.headers.only(name);
        let raw = raw(request, &header);
        let now = self.clock.now();
        let refuse = |refusal: Refusal| self.refuse(endpoint, request, &refusal);
        let signed = endpoint.dialect.parts(&raw, now).map_err(refuse)?;
        let verified = signed.verify(&endpoint.keys).map_err(|mismatch| refuse(mismatch.into()))?;
        let key_label = verified.key_label().clone();
        Ok(Received { callback: endpoint.dialect.callback(verified, &endpoint.options), key_label })
    }

    /// After the signature: what is true of the callback by `deadline`.
    async fn keep(
        &self,
        endpoint: &Endpoint,
        callback: &Callback,
        key_label: &Arc<str>,
        deadline: Instant,
    ) -> Outcome {
        let acceptance = Acceptance {
            account: endpoint.account.to_string(),
            endpoint: endpoint.name.to_string(),
            key_label: key_label.to_string(),
            budget: endpoint.dialect.budget(),
            callback: callback.clone(),
            received_at: self.clock.now(),
            policy: self.options.policy,
            approved: false,
        };
        let receipt = match timeout_at(deadline, self.store.accept(acceptance)).await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(error)) => {
                self.metrics.count(Metric::StoreFaults, ["accept", ""]);
                tracing::error!(endpoint = %endpoint.name, action = %callback.action, %error, "the callback could not be kept; the marketplace is told to call again");
                return Outcome::Unavailable;
            }
            Err(_) => {
                self.metrics.count(Metric::StoreFaults, ["accept-late", ""]);
                tracing::error!(endpoint = %endpoint.name, action = %callback.action, "the store is slow: the callback was not kept in time; the marketplace is told to call again");
                return Outcome::Unavailable;
            }
        };
        self.note(endpoint, callback, &receipt);
        match receipt.reply {
            Reply::Now(outcome) => outcome,
            Reply::Wait(waiting) => waiting.until(deadline).await,
        }
    }

    fn note(&self, endpoint: &Endpoint, callback: &Callback, receipt: &Receipt) {
        let row = &receipt.row;
        if receipt.repeated {
            self.metrics.count(Metric::Repeats, [callback.action.as_str(), ""]);
        }
        if receipt.alert {
            let reason = row.reason_code.as_deref().unwrap_or("late-create");
            self.metrics.count(Metric::Alerts, [reason, ""]);
            tracing::error!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, reason, "a released instance was asked for again; look at it: spid callbacks show {}", row.number);
        } else if let Some(reason) = row.reason.as_deref() {
            tracing::warn!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, disposition = ?row.disposition, "{reason}");
        } else if !receipt.repeated {
            tracing::info!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, "received");
        }
        if callback.action == Action::Create
            && callback.expires_on.as_ref().is_some_and(|expiry| expiry.at.is_none())
        {
            tracing::warn!(endpoint = %endpoint.name, callback = row.number, "the expiry cannot be read as a date; the instance has none");
        }
        self.warn_of_budget(endpoint, callback, row);
    }

    /// Marketplaces stop calling after so many tries: say it in time.
    fn warn_of_budget(&self, endpoint: &Endpoint, callback: &Callback, row: &CallbackRow) {
        let Some(budget) = endpoint.dialect.budget().map(u64::from).filter(|_| row.told_at.is_none()) else {
            return;
        };
        if row.deliveries == budget.div_ceil(2) {
            tracing::warn!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, tries = row.deliveries, budget, "half of the marketplace's tries are spent");
        } else if row.deliveries == (budget * 9).div_ceil(10) {
            self.metrics.count(Metric::Alerts, ["budget", ""]);
            tracing::error!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, tries = row.deliveries, budget, "the marketplace is about to give up; mend it, or reset its counter on the seller's retry page");
        }
    }
}

fn raw<'a>(request: &'a Request, header: &'a dyn Fn(&str) -> Option<&'a str>) -> RawRequest<'a> {
    RawRequest { method: request.method.as_str(), query: request.query(), header, body: &request.body }
}

/// What a signature that did not hold is explained from. The request is taken apart once more, for the
/// few refusals that are kept, so that nothing is copied for all the others.
fn evidence(
    endpoint: &Endpoint,
    raw: &RawRequest<'_>,
    now: Timestamp,
    refusal: &Refusal,
) -> Option<Evidence> {
    let Refusal::Signature(mismatch) = *refusal else { return None };
    let signed = endpoint.dialect.parts(raw, now).ok()?;
    Some(Evidence { mismatch, parts: signed.parts, presented: signed.presented, keys: endpoint.keys.clone() })
}

fn response(reply: WireReply) -> Response {
    let mut response = Response::new(reply.status, reply.content_type, reply.body);
    for (name, value) in reply.headers {
        response = response.with_header(name, value);
    }
    response
}
