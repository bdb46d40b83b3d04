//! The listener the marketplace calls: a path leads to an endpoint, and everything else to nothing.
//!
//! What is behind the paths may change while requests are answered: the whole of it at once, between one
//! request and the next. A request ends with what it began with.
//!
//! Before the signature is looked at there are two cheap questions: does the endpoint take calls from this
//! [source], and were there too many forgeries lately ([rate]). Neither answer depends on anything but
//! addresses, and a request that neither turns away is checked as ever: an address is no proof.
//!
//! [source]: Network
//! [rate]: RateOptions

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

pub use super::client_address::{Network, NotANetwork, Proxies, ProxyHeader};
pub use super::limiter::{NotARate, Rate, RateOptions};
use super::limiter::{Rates, TooMany};
use crate::core::dialect::Refusal;
use crate::hook::callback::Action;
use crate::hook::clock::Id;
use crate::hook::trace::TraceContext;
use crate::net::{Handler, Request, Response, TurnedAway};
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::intake::{Answered, Endpoint, Intake};
use crate::serve::spans;
use crate::serve::spans::{Kind, Span, Spans, Value};

/// Who may call. Without a word: everybody, and the peer is the client.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// The proxies before us.
    pub proxies: Proxies,
    /// The networks an endpoint takes calls from, by its name; without an entry, from anywhere. A sign-on comes
    /// from the browser of a buyer, who may be anywhere: it is never asked for its source.
    pub allow: HashMap<Arc<str>, Vec<Network>>,
    /// How many forgeries are looked at.
    pub rate: RateOptions,
}

/// What a request that led nowhere is counted under.
const UNKNOWN_PATH: &str = "unknown-path";

/// What is behind the paths: everything a request is judged by.
pub struct Doors {
    /// The endpoints by path.
    pub endpoints: HashMap<String, Endpoint>,
    /// The intake behind them.
    pub intake: Intake,
    /// Who may call.
    pub guard: Guard,
}

impl Doors {
    /// These endpoints, each with the path it answers on. What its marketplace calls behind that path is its
    /// own, unless it is another endpoint's path.
    pub fn new(endpoints: Vec<(String, Endpoint)>, intake: Intake, guard: Guard) -> Doors {
        let mut behind: HashMap<String, Endpoint> = HashMap::new();
        for (path, endpoint) in &endpoints {
            for tail in endpoint.dialect.tails() {
                behind.insert(format!("{}{tail}", path.trim_end_matches('/')), endpoint.clone());
            }
        }
        behind.extend(endpoints);
        Doors { endpoints: behind, intake, guard }
    }
}

/// The listener's handler. Clones share the doors.
#[derive(Clone)]
pub struct Front {
    doors: watch::Receiver<Arc<Doors>>,
    metrics: Metrics,
    rates: Rates,
    spans: Spans,
}

impl Front {
    /// A front for these doors, and for those that are sent after them.
    pub fn new(doors: watch::Receiver<Arc<Doors>>, metrics: Metrics) -> Front {
        for reason in TurnedAway::ALL.map(TurnedAway::as_str).into_iter().chain([UNKNOWN_PATH]) {
            metrics.announce(Metric::TurnedAway, [reason, ""]);
        }
        let behind = doors.borrow().clone();
        behind.endpoints.values().for_each(|endpoint| behind.intake.announce(endpoint));
        Front { doors, metrics, rates: Rates::default(), spans: Spans::default() }
    }

    /// The same, telling a collector of each request.
    pub fn telling(self, spans: Spans) -> Front {
        Front { spans, ..self }
    }

    /// Receives a request under an id of its own, which stands in every line of the log about it.
    async fn follow(&self, doors: &Doors, endpoint: &Endpoint, request: Request) -> Response {
        let Some(id) = doors.intake.new_id() else {
            return self.receive(doors, endpoint, request, None).await.response;
        };
        let context = TraceContext::of_request(id);
        let brought = doors.guard.proxies.brought(&request);
        let parent = brought.then(|| request.headers.only("traceparent")).flatten();
        let parent = parent.and_then(TraceContext::read);
        let span = tracing::error_span!(
            "request",
            trace_id = %context.trace,
            span_id = %context.span,
            parent_trace_id = parent.map(|parent| tracing::field::display(parent.trace)),
            parent_span_id = parent.map(|parent| tracing::field::display(parent.span)),
        );
        let begun = self.spans.begin().map(|begun| (begun, spans::method(&request.method)));
        let answered = self.receive(doors, endpoint, request, Some(id)).instrument(span).await;
        if let Some((begun, method)) = begun {
            let attributes = attributes(endpoint, method, &answered);
            let action = answered.action.map(Action::as_str);
            let failed = answered.response.status >= 500;
            let (kind, link) = (Kind::Request, parent);
            self.spans.end(Span { kind, context, parent: None, link, begun, action, failed, attributes });
        }
        let response = answered.response;
        // For the log of the proxy; a marketplace has no use for it.
        if brought { response.with_header("x-request-id", context.trace.to_string()) } else { response }
    }

    async fn receive(
        &self,
        doors: &Doors,
        endpoint: &Endpoint,
        mut request: Request,
        id: Option<Id>,
    ) -> Answered {
        let Doors { intake, guard, .. } = doors;
        request.client = guard.proxies.client(&request);
        let welcome = guard.lets_in(endpoint, &request);
        if !welcome && !intake.is_for_a_browser(endpoint, &request) {
            return intake.refuse(endpoint, &request, &Refusal::Source);
        }
        if let Err(too_many) = self.rates.check(guard.rate, &endpoint.name, request.client) {
            return put_off(intake, endpoint, &request, too_many);
        }
        match intake.verify(endpoint, &request) {
            Err(refused) => {
                self.rates.refused(guard.rate, &endpoint.name, request.client);
                refused
            }
            // It only looked like a sign-on.
            Ok(received) if !welcome && received.action() != Action::SignOn => {
                intake.refuse(endpoint, &request, &Refusal::Source)
            }
            Ok(received) => {
                self.rates.held(request.client);
                intake.answer(endpoint, &request, received.as_request(id)).await
            }
        }
    }
}

impl Guard {
    fn lets_in(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let allowed = self.allow.get(&endpoint.name);
        allowed.is_none_or(|networks| networks.iter().any(|network| network.contains(request.client)))
    }
}

/// What a collector is told of a request.
fn attributes(endpoint: &Endpoint, method: &'static str, answered: &Answered) -> Vec<(&'static str, Value)> {
    let status = i64::from(answered.response.status);
    vec![
        ("http.request.method", Value::Word(method)),
        ("http.response.status_code", Value::Number(status)),
        ("spid.endpoint", Value::Text(endpoint.name.to_string())),
        ("spid.dialect", Value::Word(endpoint.dialect.name())),
        ("spid.outcome", Value::Word(answered.outcome)),
    ]
}

fn put_off(intake: &Intake, endpoint: &Endpoint, request: &Request, too_many: TooMany) -> Answered {
    let (refusal, wait) = match too_many {
        TooMany::FromAddress(wait) => (Refusal::TooManyFromAddress, wait),
        TooMany::AtEndpoint(wait) => (Refusal::TooManyAtEndpoint, wait),
    };
    let Answered { response, action, outcome } = intake.refuse(endpoint, request, &refusal);
    let response = response.with_header("retry-after", whole_seconds(wait).to_string());
    Answered { response, action, outcome }
}

/// Rounded up: who comes back then is not too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Handler for Front {
    async fn handle(&self, request: Request) -> Response {
        let doors = self.doors.borrow().clone();
        match doors.endpoints.get(request.path()) {
            Some(endpoint) => self.follow(&doors, endpoint, request).await,
            None => {
                self.metrics.count(Metric::TurnedAway, [UNKNOWN_PATH, ""]);
                Response::text(404, "there is no endpoint on this path\n")
            }
        }
    }

    fn turned_away(&self, why: TurnedAway, peer: SocketAddr) {
        self.metrics.count(Metric::TurnedAway, [why.as_str(), ""]);
        tracing::debug!(%peer, reason = why.as_str(), "turned away");
    }
}
