//! The path of a callback: verify, store, wait a short time, and answer with the result so far.
//!
//! Every request takes two steps, [`Intake::verify`] and [`Intake::answer`]. The public listener takes them, in the
//! daemon as in simulations. Before the signature is verified, nothing is stored and the answer says little. After that
//! no callback may be lost: a callback that cannot be stored now is answered "call again", never "done".
//!
//! Intake and dispatcher never call each other. The dispatcher runs the job that intake creates, and intake hears of
//! its result through the signals of the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use crate::net::{Request, Response};
use crate::observe::denied::{DeniedRequests, Evidence, Facts};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::market_jobs::Fault;
use crate::store::{Acceptance, CallbackRow, ConfiguredKey, Receipt, Reply, Store, StoreError};
use spid_core::dialect::{Denial, Dialect, Options, RawRequest, Reply as WireReply, Sending};
use spid_core::lifecycle::{Policy, Reason};
use spid_core::market_api::Notification;
use spid_core::signature::{Keys, Signer};
use spid_hook::callback::{Action, Callback, Outcome};
use spid_hook::id::Id;
use spid_hook::instance::State;
use spid_hook::time::Clock;

/// A configured URL path: one dialect, one seller account, and its keys.
#[derive(Clone)]
pub struct Endpoint {
    /// Name in logs, metrics and the store.
    pub name: Arc<str>,
    /// Account, the stable name under which the instances are stored.
    pub account: Arc<str>,
    /// Dialect: the protocol of the marketplace.
    pub dialect: &'static dyn Dialect,
    /// Keys of the endpoint, the current one first.
    pub keys: Keys,
    /// Options for the dialect.
    pub options: Options,
}

impl Endpoint {
    /// Returns the signature keys, the current one first, as the store records their last use.
    pub fn configured_keys(&self) -> impl Iterator<Item = ConfiguredKey> {
        self.keys.iter().map(|key| ConfiguredKey {
            endpoint: self.name.clone(),
            label: key.label().clone(),
            mark: key.mark(&self.name),
        })
    }
}

/// Live instances of accounts that no endpoint serves. The daemon does not start with them: it would take a redelivered
/// create for a new one, and every renewal for that of an unknown instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines().collect::<Vec<_>>().join("; "))]
pub struct Orphans {
    /// Number of live instances by account.
    accounts: BTreeMap<String, u64>,
    /// Endpoint that was probably renamed.
    renamed: Option<Arc<str>>,
}

impl Orphans {
    /// Finds unserved accounts with live instances. `unserved` returns all such accounts that are not in its argument.
    ///
    /// # Errors
    /// The errors of `unserved`.
    pub fn find(
        endpoints: &[(String, Endpoint)],
        retired: &[String],
        unserved: impl FnOnce(&[&str]) -> Result<BTreeMap<String, u64>, StoreError>,
    ) -> Result<Option<Orphans>, StoreError> {
        // A retired account is closed on purpose, so its instances are not orphans.
        let served = endpoints.iter().map(|(_, endpoint)| &*endpoint.account);
        let known: Vec<&str> = served.chain(retired.iter().map(String::as_str)).collect();
        let accounts = unserved(&known)?;
        if accounts.is_empty() {
            return Ok(None);
        }
        // An account with the name of its endpoint may be a default, which a renamed endpoint changed by accident.
        let mut named = endpoints.iter().filter(|(_, endpoint)| endpoint.account == endpoint.name);
        let renamed = match (named.next(), named.next()) {
            (Some((_, only)), None) => Some(only.name.clone()),
            _ => None,
        };
        Ok(Some(Orphans { accounts, renamed }))
    }

    /// Returns a message for each account, with the line to add to the configuration.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let endpoint = self.renamed.as_ref().map_or_else(
            || "the [[endpoint]] of this account's marketplace".to_owned(),
            |name| format!("the [[endpoint]] `{name}`"),
        );
        self.accounts.iter().map(move |(account, count)| {
            format!(
                "account `{account}` has {count} live instances and no [[endpoint]]: write `account = \"{account}\"` in {endpoint}, or, if the account is closed, `retired_accounts = [\"{account}\"]` in [policy]"
            )
        })
    }
}

/// Options for the intake.
#[derive(Debug, Clone)]
pub struct IntakeOptions {
    /// Longest time that a marketplace waits for a hook.
    pub reply_within: Duration,
    /// Policy of the seller.
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

/// Receiver of callbacks.
#[derive(Clone)]
pub struct Intake {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    refusals: DeniedRequests,
    options: IntakeOptions,
}

/// A request with a valid signature.
pub struct Received {
    callback: Callback,
    key_label: Arc<str>,
    signer: Signer,
    id: Option<Id>,
}

impl Received {
    /// Sets the id of the request. The first job that the request creates gets the same id.
    pub fn as_request(self, id: Option<Id>) -> Received {
        Received { id, ..self }
    }

    /// Action that the request asks for.
    pub fn action(&self) -> Action {
        self.callback.action
    }
}

/// An answer and its outcome in one word.
pub struct Answered {
    /// Response to send.
    pub response: Response,
    /// Action that was asked for; `None` if the request was not verified.
    pub action: Option<Action>,
    /// Outcome of the first callback in the request, or the reason why the request was denied.
    pub outcome: &'static str,
}

/// Origin of a request, and the deadline of its answer.
#[derive(Clone, Copy)]
struct Asking<'a> {
    endpoint: &'a Endpoint,
    key_label: &'a str,
    /// Id of the request.
    id: Option<Id>,
    deadline: Instant,
    /// True if the callback was fetched.
    fetched: bool,
}

/// Error: the request is a copy of an accepted one, so nothing was stored.
struct Copied;

impl Intake {
    /// Creates an intake that stores callbacks in `store` and denied requests in `refusals`.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        refusals: DeniedRequests,
        options: IntakeOptions,
    ) -> Intake {
        let intake = Intake { store, clock, metrics, refusals, options };
        intake.announce_counts();
        intake
    }

    /// Registers all counters with 0, so that an alert can fire on the first increase.
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
        for operation in ["accept", "accept-late", "spend"] {
            self.metrics.announce(Metric::StoreFaults, [operation, ""]);
        }
    }

    /// Registers the counters of denied requests of an endpoint with 0.
    pub fn announce(&self, endpoint: &Endpoint) {
        for reason in Denial::reasons() {
            self.metrics.announce(Metric::DeniedRequests, [&endpoint.name, reason]);
        }
    }

    /// Returns this intake with other options.
    pub fn with_options(&self, options: IntakeOptions) -> Intake {
        Intake { options, ..self.clone() }
    }

    /// Creates an id for a request; `None` if the system's random generator fails, which the store reports later.
    pub fn new_id(&self) -> Option<Id> {
        self.store.new_id(self.clock.now()).ok()
    }

    /// Answers a request with a valid signature. The time limit of the answer starts with this call.
    pub async fn answer(&self, endpoint: &Endpoint, request: &Request, received: Received) -> Answered {
        let deadline = Instant::now() + self.options.reply_within;
        let Received { callback, key_label, signer, id } = received;
        // The key was used, even if the callback cannot be stored.
        self.metrics.count(Metric::Signatures, [&endpoint.name, &key_label]);
        self.store.note_key_use(&endpoint.name, &key_label);
        let asking = Asking { endpoint, key_label: &key_label, id, deadline, fetched: false };
        match self.keep_all(asking, callback).await {
            Ok(answered) => {
                let (action, outcome) = first(&answered);
                let reply = endpoint.dialect.reply_to_all(&answered, &endpoint.options);
                Answered { response: response(reply.protected(&signer)), action, outcome }
            }
            // This answer is signed with the key that verified the request.
            Err(Copied) => self.refuse_as(endpoint, request, &Denial::Replayed, Some(signer)),
        }
    }

    /// Returns true if the request claims, unverified, to come from the browser of a buyer.
    pub fn is_for_a_browser(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let header = |name: &str| request.headers.only(name);
        endpoint.dialect.is_for_a_browser(&raw(request, &header))
    }

    /// Denies a request: counts it, keeps it in memory if there are few, and returns the dialect's error answer.
    pub fn refuse(&self, endpoint: &Endpoint, request: &Request, refusal: &Denial) -> Answered {
        self.refuse_as(endpoint, request, refusal, endpoint.keys.signer())
    }

    /// Verifies a request before anything is stored: cheap, strict, and without a trace on disk.
    ///
    /// # Errors
    /// The answer to a request that was [denied](Intake::refuse).
    pub fn verify(&self, endpoint: &Endpoint, request: &Request) -> Result<Received, Answered> {
        let header = |name: &str| request.headers.only(name);
        let raw = raw(request, &header);
        // Parse first: strict, and without a key.
        self.read(endpoint, &raw).map_err(|denial| self.refuse(endpoint, request, &denial))
    }

    fn read(&self, endpoint: &Endpoint, raw: &RawRequest<'_>) -> Result<Received, Denial> {
        // Parse first: strict, and without a key.
        let verified = endpoint.dialect.parts(raw, self.clock.now())?.verify(&endpoint.keys)?;
        // Only a verified request becomes a callback.
        let (key_label, signer) = (verified.key_label().clone(), verified.signer());
        let mut callback = endpoint.dialect.callback(verified, &endpoint.options);
        callback.dialect = Some(endpoint.dialect.name().to_owned());
        Ok(Received { callback, key_label, signer, id: None })
    }

    /// Keeps a payment that the marketplace gave up sending and that was fetched from it, as if it had come.
    pub(super) async fn keep_fetched(
        &self,
        endpoint: &Endpoint,
        notification: &Notification,
    ) -> Result<(), Fault> {
        let received = self.fetched(endpoint, notification).map_err(Fault::Left)?;
        let deadline = Instant::now() + self.options.reply_within;
        let asking = Asking { endpoint, key_label: "fetched", id: None, deadline, fetched: true };
        let kept = self.keep_all(asking, received.callback).await;
        match kept.unwrap_or_default().iter().any(|(_, outcome)| *outcome != Outcome::Unavailable) {
            true => Ok(()),
            false => Err(Fault::Later("the message could not be kept".to_owned())),
        }
    }

    /// Reads a fetched message like a request.
    ///
    /// The message has no signature: the signed call that fetched it vouches for it. So the endpoint's own key signs it
    /// here.
    fn fetched(&self, endpoint: &Endpoint, notification: &Notification) -> Result<Received, &'static str> {
        let (action, parameters) = notification.payment().ok_or("it is not about a payment")?;
        let sending = Sending::at(self.clock.now());
        let request = endpoint.dialect.request(action, &parameters, &endpoint.keys, &sending);
        let header = |name: &str| request.header(name);
        let (query, body) = (request.query.as_bytes(), request.body.as_slice());
        let raw = RawRequest { method: request.method, query, header: &header, body };
        self.read(endpoint, &raw).map_err(|_| "its message is malformed")
    }

    /// Returns true if a request to a path without an endpoint has a valid signature of this one.
    pub(super) fn is_signed_for(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let header = |name: &str| request.headers.only(name);
        let signed = endpoint.dialect.parts(&raw(request, &header), self.clock.now());
        signed.is_ok_and(|signed| signed.verify(&endpoint.keys).is_ok())
    }

    fn refuse_as(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        refusal: &Denial,
        signer: Option<Signer>,
    ) -> Answered {
        let header = |name: &str| request.headers.only(name);
        let raw = raw(request, &header);
        let facts = Facts {
            endpoint: &endpoint.name,
            peer: request.peer,
            client: request.client,
            method: raw.method,
            // The health check of a load balancer asks for the path and carries nothing.
            is_probe: matches!(raw.method, "GET" | "HEAD" | "OPTIONS")
                && raw.query.is_empty()
                && raw.body.is_empty(),
            refusal,
        };
        // The closure runs only for the few denied requests that are kept.
        self.refusals.note(facts, || evidence(endpoint, &raw, self.clock.now(), refusal));
        let reply = endpoint.dialect.refuse(&raw, refusal);
        let reply = match signer {
            Some(signer) => reply.protected(&signer),
            None => reply,
        };
        Answered { response: response(reply), action: None, outcome: refusal.reason() }
    }

    /// Stores everything that the request asks for, and returns the outcomes at the deadline.
    async fn keep_all(
        &self,
        mut asking: Asking<'_>,
        callback: Callback,
    ) -> Result<Vec<(Callback, Outcome)>, Copied> {
        // Store all parts before waiting for any: a slow hook must not keep a later part out of the store.
        let mut kept = Vec::new();
        for callback in asking.endpoint.dialect.split(callback) {
            let mut callback = Arc::new(callback);
            let reply = if callback.test {
                Reply::Now(self.try_out(asking, &callback).await?)
            } else {
                self.keep(asking, &mut callback).await?
            };
            // Only the first job can have the id of the request.
            asking.id = None;
            kept.push((callback, reply));
        }
        // All parts are stored. Now wait; all waits share one deadline.
        let mut answered = Vec::new();
        for (callback, reply) in kept {
            let outcome = match reply {
                Reply::Now(outcome) => outcome,
                Reply::Wait(waiting) => waiting.until(asking.deadline).await,
            };
            self.metrics.count(Metric::Callbacks, [callback.action.as_str(), outcome.as_str()]);
            answered.push((Arc::unwrap_or_clone(callback), outcome));
        }
        Ok(answered)
    }

    /// Answers a test call of the marketplace with the outcome that a real call would have. A test call runs no hook
    /// and stores only its nonce digest, because the test includes that the store can be written.
    async fn try_out(&self, asking: Asking<'_>, callback: &Callback) -> Result<Outcome, Copied> {
        let Asking { endpoint, deadline, .. } = asking;
        // A copy of a test call is denied like any other copy.
        if let Some(nonce) = callback.nonce.clone() {
            match timeout_at(deadline, self.store.consume(&endpoint.account, nonce)).await {
                Ok(Ok(())) => {}
                Ok(Err(StoreError::Replayed)) => return Err(Copied),
                Ok(Err(_)) | Err(_) => {
                    self.metrics.count(Metric::StoreFaults, ["spend", ""]);
                    return Ok(Outcome::Unavailable);
                }
            }
        }
        tracing::info!(endpoint = %endpoint.name, action = %callback.action, "test call of the marketplace");
        Ok(match (callback.issues.first(), &callback.marketplace_instance_id) {
            (Some(issue), _) => refused(&Reason::ValidationIssue(issue.clone())),
            (None, Some(id)) => Outcome::done(Some(id.clone())),
            // The test call is no test order of the marketplace's own, so it must name a live instance.
            (None, None) if self.is_alive(&endpoint.account, callback) => Outcome::done(None),
            (None, None) => refused(&Reason::UnknownInstance),
        })
    }

    /// Returns true if the callback names a live instance. A callback without a name always passes. So does one about
    /// an externally provisioned instance, because this store may not know all of those.
    fn is_alive(&self, account: &str, callback: &Callback) -> bool {
        let named = callback.subject.names().next().filter(|_| !callback.externally_provisioned);
        let Some(name) = named else { return true };
        let rows = self.store.reader().instances_named(name).unwrap_or_default();
        rows.iter().any(|row| row.instance.account == account && row.instance.state != State::Released)
    }

    /// Stores the callback. Returns the answer, or a wait for it.
    async fn keep(&self, asking: Asking<'_>, callback: &mut Arc<Callback>) -> Result<Reply, Copied> {
        let Asking { endpoint, key_label, id, deadline, fetched } = asking;
        let acceptance = Acceptance {
            account: endpoint.account.to_string(),
            endpoint: endpoint.name.to_string(),
            key_label: key_label.to_string(),
            delivery_limit: endpoint.dialect.delivery_limit(callback),
            callback: callback.clone(),
            received_at: self.clock.now(),
            policy: self.options.policy,
            fetched,
            approved: false,
        };
        // A store that is slower than the deadline gets the answer "call again".
        let receipt = match timeout_at(deadline, self.store.accept_as(id, acceptance)).await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(StoreError::Replayed)) => return Err(Copied),
            Ok(Err(error)) => {
                self.metrics.count(Metric::StoreFaults, ["accept", ""]);
                if let Some(suppressed) = self.turn_to_log(endpoint, "accept") {
                    tracing::error!(endpoint = %endpoint.name, action = %callback.action, %error, suppressed, "the callback could not be kept; the marketplace is told to call again");
                }
                return Ok(Reply::Now(Outcome::Unavailable));
            }
            Err(_) => {
                self.metrics.count(Metric::StoreFaults, ["accept-late", ""]);
                if let Some(suppressed) = self.turn_to_log(endpoint, "accept-late") {
                    tracing::error!(endpoint = %endpoint.name, action = %callback.action, suppressed, "the store is slow: the callback was not kept in time; the marketplace is told to call again");
                }
                return Ok(Reply::Now(Outcome::Unavailable));
            }
        };
        self.note(endpoint, callback, &receipt);
        // The first delivery decided the marketplace's id of the instance.
        if callback.marketplace_instance_id != receipt.marketplace_instance_id {
            Arc::make_mut(callback).marketplace_instance_id = receipt.marketplace_instance_id;
        }
        Ok(receipt.reply)
    }

    /// Returns `None` if a line about this receipt must not be logged, else the number of lines that were left out before
    /// it. A valid request can be repeated without end, so redeliveries get at most one log line per second and reason.
    fn may_log(&self, receipt: &Receipt, endpoint: &Endpoint, reason: &str) -> Option<Option<u64>> {
        match receipt.repeated {
            true => self.turn_to_log(endpoint, reason),
            false => Some(None),
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
            if let Some(suppressed) = self.may_log(receipt, endpoint, reason) {
                tracing::error!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, reason, suppressed, "a released instance was asked for again; run: spid callbacks show {}", row.number);
            }
        } else if let Some(reason) = row.reason.as_deref() {
            let reason_code = row.reason_code.as_deref().unwrap_or_default();
            if let Some(suppressed) = self.may_log(receipt, endpoint, reason_code) {
                tracing::warn!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, disposition = row.disposition.as_str(), suppressed, "{reason}");
            }
        } else if !receipt.repeated {
            tracing::info!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, "received");
        } else {
            tracing::debug!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, deliveries = row.deliveries, "received again");
        }
        if callback.action == Action::Create
            && callback.expires_on.as_ref().is_some_and(|expiry| expiry.at.is_none())
        {
            tracing::warn!(endpoint = %endpoint.name, callback = row.number, "the expiry is not a readable date; the instance has no expiry");
        }
        self.warn_of_delivery_limit(endpoint, callback, row);
    }

    /// Takes a turn to log a line that can be as frequent as requests. `None`: a line for this reason was logged just
    /// now. Otherwise the number of suppressed lines, if there were any.
    pub(super) fn turn_to_log(&self, endpoint: &Endpoint, reason: &str) -> Option<Option<u64>> {
        let unlogged = self.refusals.turn_to_log(&endpoint.name, reason)?;
        Some((unlogged > 0).then_some(unlogged))
    }

    /// Warns before the delivery limit of the marketplace is reached: at half of it and at 90 %.
    fn warn_of_delivery_limit(&self, endpoint: &Endpoint, callback: &Callback, row: &CallbackRow) {
        // A reported callback needs no further delivery.
        let Some(delivery_limit) = row.delivery_limit.map(u64::from).filter(|_| row.reported_at.is_none())
        else {
            return;
        };
        match DeliveryLimitWarning::at(row.deliveries, delivery_limit) {
            Some(DeliveryLimitWarning::NearlyUsed) => {
                self.metrics.count(Metric::Alerts, ["budget", ""]);
                tracing::error!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, deliveries = row.deliveries, delivery_limit, "the marketplace is about to give up; repair the cause, or reset the counter on the seller's retry page");
            }
            Some(DeliveryLimitWarning::HalfUsed) => {
                tracing::warn!(endpoint = %endpoint.name, action = %callback.action, callback = row.number, deliveries = row.deliveries, delivery_limit, "the marketplace has made half of its deliveries");
            }
            None => {}
        }
    }
}

/// Warning that the marketplace will stop calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryLimitWarning {
    /// Half of the delivery limit is used up.
    HalfUsed,
    /// 90 % of the delivery limit is used up.
    NearlyUsed,
}

impl DeliveryLimitWarning {
    /// Returns the warning for exactly this delivery, so that each warning is logged once per callback. With a small
    /// limit both are due at the same delivery: then the more urgent one counts.
    fn at(deliveries: u64, delivery_limit: u64) -> Option<DeliveryLimitWarning> {
        if deliveries == (delivery_limit * 9).div_ceil(10) {
            Some(DeliveryLimitWarning::NearlyUsed)
        } else if deliveries == delivery_limit.div_ceil(2) {
            Some(DeliveryLimitWarning::HalfUsed)
        } else {
            None
        }
    }
}

/// Collects the evidence that explains a signature mismatch. It parses the request again, and only for the few denied
/// requests that are kept, so that no data is copied for the others.
fn evidence(endpoint: &Endpoint, raw: &RawRequest<'_>, now: Timestamp, refusal: &Denial) -> Option<Evidence> {
    let Denial::Signature(mismatch) = *refusal else { return None };
    let signed = endpoint.dialect.parts(raw, now).ok()?;
    Some(Evidence { mismatch, parts: signed.parts, presented: signed.presented, keys: endpoint.keys.clone() })
}

/// Action and outcome that represent a request of several parts: those of the first part.
fn first(answered: &[(Callback, Outcome)]) -> (Option<Action>, &'static str) {
    let first = answered.first();
    first.map_or((None, "nothing"), |(callback, outcome)| (Some(callback.action), outcome.as_str()))
}

fn refused(reason: &Reason) -> Outcome {
    Outcome::Refused { code: reason.code(), reason: reason.sentence() }
}

fn raw<'a>(request: &'a Request, header: &'a dyn Fn(&str) -> Option<&'a str>) -> RawRequest<'a> {
    RawRequest { method: request.method.as_str(), query: request.query(), header, body: &request.body }
}

fn response(reply: WireReply) -> Response {
    let mut response = Response::new(reply.status, reply.content_type, reply.body);
    for (name, value) in reply.headers {
        response = response.with_header(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marketplace_about_to_give_up_is_always_announced() {
        use DeliveryLimitWarning::{HalfUsed, NearlyUsed};
        for (delivery_limit, half, nearly) in
            [(1, None, 1), (2, Some(1), 2), (10, Some(5), 9), (120, Some(60), 108)]
        {
            let of = |wanted| {
                (1..=delivery_limit)
                    .filter(move |count| DeliveryLimitWarning::at(*count, delivery_limit) == Some(wanted))
            };
            assert_eq!(of(NearlyUsed).collect::<Vec<_>>(), [nearly], "limit {delivery_limit}");
            assert_eq!(
                of(HalfUsed).collect::<Vec<_>>(),
                half.into_iter().collect::<Vec<_>>(),
                "limit {delivery_limit}"
            );
        }
    }
}
