//! Public listener, which the marketplaces call: each path leads to an endpoint, and any other path gets a 404.
//!
//! A reload replaces the routes as a whole, between two requests. A request keeps the routes that it started with.
//!
//! One cheap check comes before the signature: may this [source](Network) call the endpoint. A request that passes it is
//! verified as usual, because an address proves nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::Instrument as _;

pub use super::client_address::{Network, NotANetwork, Proxies, ProxyHeader};
use crate::net::{Handler, HttpFault, Request, Response};
use crate::observe::metrics::{Metric, Metrics};
use crate::serve::intake::{Answered, Endpoint, Intake};
use crate::serve::spans;
use crate::serve::spans::{Kind, Span, Spans, Value};
use spid_core::dialect::Denial;
use spid_core::query;
use spid_hook::callback::Action;
use spid_hook::id::Id;
use spid_hook::text;
use spid_hook::trace::TraceContext;

/// Access policy for callers. Default: any address may call, and the peer is the client.
#[derive(Debug, Clone, Default)]
pub struct AccessPolicy {
    /// The trusted proxies in front of spid.
    pub proxies: Proxies,
    /// Networks that may call an endpoint, by its name; without an entry, any address may call. A sign-on comes from
    /// the browser of a buyer, which may have any address, so it always passes.
    pub allow: HashMap<Arc<str>, Vec<Network>>,
}

/// Reason under which a request to an unknown path is counted.
const UNKNOWN_PATH: &str = "unknown-path";

/// Longest part of an unknown path in the log, in characters.
const PATH_SHOWN_CHARS: usize = 200;

/// Returns true if a path differs from an endpoint's only in slashes or capitals.
pub fn resembles(called: &str, path: &str) -> bool {
    let plain = |path: &str| {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.map(str::to_ascii_lowercase).collect::<Vec<_>>()
    };
    plain(called) == plain(path)
}

/// Routes of the public listener: everything that decides about a request.
pub struct Routes {
    /// The endpoints by path.
    pub endpoints: HashMap<String, Endpoint>,
    /// The intake for all endpoints.
    pub intake: Intake,
    /// Access policy for callers.
    pub access_policy: AccessPolicy,
}

impl Routes {
    /// Creates the routes for these endpoints, each with its path. An endpoint also owns the paths that its marketplace
    /// calls below that path, except a path that is configured for another endpoint.
    pub fn new(endpoints: Vec<(String, Endpoint)>, intake: Intake, access_policy: AccessPolicy) -> Routes {
        let mut behind: HashMap<String, Endpoint> = HashMap::new();
        for (path, endpoint) in &endpoints {
            for tail in endpoint.dialect.path_suffixes() {
                behind.insert(format!("{}{tail}", path.trim_end_matches('/')), endpoint.clone());
            }
        }
        // Configured paths are inserted last, so that they replace a derived path of another endpoint.
        behind.extend(endpoints);
        Routes { endpoints: behind, intake, access_policy }
    }

    /// Logs a callback to a path without an endpoint: without this line, a mistake in the marketplace's settings leaves no
    /// trace. Requests of scanners and probes are only counted.
    fn log_unknown_path(&self, request: &Request) {
        let called = request.path();
        let near = self.endpoints.iter().find(|(path, _)| resembles(called, path));
        let carries_data = !request.query().is_empty() || !request.body.is_empty();
        let meant = near.filter(|_| carries_data).or_else(|| {
            self.endpoints.iter().find(|(_, endpoint)| self.intake.is_signed_for(endpoint, request))
        });
        let Some((path, endpoint)) = meant else { return };
        if let Some(suppressed) = self.intake.turn_to_log(endpoint, UNKNOWN_PATH) {
            // A path may hold a token, too.
            let called: String = query::masked(called).chars().take(PATH_SHOWN_CHARS).collect();
            let called = text::plain_log(&called);
            tracing::warn!(endpoint = %endpoint.name, peer = %request.peer, path = %called, suppressed,
                "a callback came to a path without an endpoint and was answered 404; the endpoint's path is {path}");
        }
    }
}

/// Handler of the public listener. Clones share the routes.
#[derive(Clone)]
pub struct PublicListener {
    routes: watch::Receiver<Arc<Routes>>,
    metrics: Metrics,
    spans: Spans,
}

impl PublicListener {
    /// Creates a handler for these routes, and for the routes sent later.
    pub fn new(routes: watch::Receiver<Arc<Routes>>, metrics: Metrics) -> PublicListener {
        for reason in HttpFault::ALL.map(HttpFault::as_str).into_iter().chain([UNKNOWN_PATH]) {
            metrics.announce(Metric::HttpFault, [reason, ""]);
        }
        let behind = routes.borrow().clone();
        behind.endpoints.values().for_each(|endpoint| behind.intake.announce(endpoint));
        PublicListener { routes, metrics, spans: Spans::default() }
    }

    /// Returns the handler with a span for each request, for a collector.
    pub fn telling(self, spans: Spans) -> PublicListener {
        PublicListener { spans, ..self }
    }

    /// Receives a request under a new id, which every log line about the request contains.
    async fn follow(&self, routes: &Routes, endpoint: &Endpoint, request: Request) -> Response {
        // Without an id, the request is still handled, but has no trace.
        let Some(id) = routes.intake.new_id() else {
            return self.receive(routes, endpoint, request, None).await.response;
        };
        let context = TraceContext::of_request(id);
        let brought = routes.access_policy.proxies.brought(&request);
        // Only a trusted proxy may name a parent span, and it becomes a link: the trace id is always our own.
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
        let answered = self.receive(routes, endpoint, request, Some(id)).instrument(span).await;
        if let Some((begun, method)) = begun {
            let attributes = attributes(endpoint, method, &answered);
            let action = answered.action.map(Action::as_str);
            let failed = answered.response.status >= 500;
            let (kind, link) = (Kind::Request, parent);
            self.spans.end(Span { kind, context, parent: None, link, begun, action, failed, attributes });
        }
        let response = answered.response;
        // Only the log of the proxy needs this header; a marketplace does not use it.
        if brought { response.with_header("x-request-id", context.trace.to_string()) } else { response }
    }

    async fn receive(
        &self,
        routes: &Routes,
        endpoint: &Endpoint,
        mut request: Request,
        id: Option<Id>,
    ) -> Answered {
        let Routes { intake, access_policy, .. } = routes;
        request.client = access_policy.proxies.client(&request);
        let welcome = access_policy.allows(endpoint, &request);
        // A sign-on may come from any address, because a buyer's browser sends it: its signature decides.
        if !welcome && !intake.is_for_a_browser(endpoint, &request) {
            return intake.refuse(endpoint, &request, &Denial::Source);
        }
        match intake.verify(endpoint, &request) {
            Err(denied) => denied,
            // The request only looked like a sign-on, so the source check applies to it after all.
            Ok(received) if !welcome && received.action() != Action::SignOn => {
                intake.refuse(endpoint, &request, &Denial::Source)
            }
            Ok(received) => intake.answer(endpoint, &request, received.as_request(id)).await,
        }
    }
}

impl AccessPolicy {
    fn allows(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let allowed = self.allow.get(&endpoint.name);
        allowed.is_none_or(|networks| networks.iter().any(|network| network.contains(request.client)))
    }
}

/// Returns the attributes of a request's span.
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

impl Handler for PublicListener {
    async fn handle(&self, request: Request) -> Response {
        // One clone for the whole request: a reload in between must not mix two configurations.
        let routes = self.routes.borrow().clone();
        match routes.endpoints.get(request.path()) {
            Some(endpoint) => self.follow(&routes, endpoint, request).await,
            None => {
                self.metrics.count(Metric::HttpFault, [UNKNOWN_PATH, ""]);
                routes.log_unknown_path(&request);
                Response::text(404, "no endpoint has this path\n")
            }
        }
    }

    fn turned_away(&self, why: HttpFault, peer: SocketAddr) {
        self.metrics.count(Metric::HttpFault, [why.as_str(), ""]);
        tracing::debug!(%peer, reason = why.as_str(), "turned away");
    }
}
