//! The listener the marketplace calls: a path leads to an endpoint, and everything else to nothing.
//!
//! Before the signature is looked at there are two cheap questions: does the endpoint take calls from this
//! [source], and were there too many forgeries lately ([rate]). Neither answer depends on anything but
//! addresses, and a request that neither turns away is checked as ever: an address is no proof.
//!
//! [source]: Network
//! [rate]: RateOptions

mod rate;
mod source;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::callback::Action;
use crate::dialect::Refusal;
use crate::http::{Handler, Request, Response, TurnedAway};
use crate::intake::{Endpoint, Intake};
use crate::metrics::{Metric, Metrics};
pub use rate::{NotARate, Rate, RateOptions};
use rate::{Rates, TooMany};
pub use source::{Network, NotANetwork, Proxies, ProxyHeader};

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

/// The endpoints by path, and the intake behind them. Clones share it.
#[derive(Clone)]
pub struct Front {
    endpoints: Arc<HashMap<String, Endpoint>>,
    intake: Intake,
    metrics: Metrics,
    guard: Arc<Guard>,
    rates: Rates,
}

impl Front {
    /// A front for these endpoints, each with the path it answers on.
    pub fn new(
        endpoints: HashMap<String, Endpoint>,
        intake: Intake,
        metrics: Metrics,
        guard: Guard,
    ) -> Front {
        let (endpoints, guard) = (Arc::new(endpoints), Arc::new(guard));
        Front { endpoints, intake, metrics, guard, rates: Rates::default() }
    }

    async fn receive(&self, endpoint: &Endpoint, mut request: Request) -> Response {
        request.client = self.guard.proxies.client(&request);
        let welcome = self.is_welcome(endpoint, &request);
        if !welcome && !self.intake.is_for_a_browser(endpoint, &request) {
            return self.intake.refuse(endpoint, &request, &Refusal::Source);
        }
        if let Err(too_many) = self.rates.check(self.guard.rate, &endpoint.name, request.client) {
            return self.put_off(endpoint, &request, too_many);
        }
        match self.intake.verify(endpoint, &request) {
            Err(response) => {
                self.rates.refused(self.guard.rate, &endpoint.name, request.client);
                response
            }
            // It only looked like a sign-on.
            Ok(received) if !welcome && received.action() != Action::SignOn => {
                self.intake.refuse(endpoint, &request, &Refusal::Source)
            }
            Ok(received) => {
                self.rates.held(request.client);
                self.intake.answer(endpoint, received).await
            }
        }
    }

    fn is_welcome(&self, endpoint: &Endpoint, request: &Request) -> bool {
        let allowed = self.guard.allow.get(&endpoint.name);
        allowed.is_none_or(|networks| networks.iter().any(|network| network.contains(request.client)))
    }

    fn put_off(&self, endpoint: &Endpoint, request: &Request, too_many: TooMany) -> Response {
        let (refusal, wait) = match too_many {
            TooMany::FromAddress(wait) => (Refusal::TooManyFromAddress, wait),
            TooMany::AtEndpoint(wait) => (Refusal::TooManyAtEndpoint, wait),
        };
        let response = self.intake.refuse(endpoint, request, &refusal);
        response.with_header("retry-after", whole_seconds(wait).to_string())
    }
}

/// Rounded up: who comes back then is not too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Handler for Front {
    async fn handle(&self, request: Request) -> Response {
        match self.endpoints.get(request.path()) {
            Some(endpoint) => self.receive(endpoint, request).await,
            None => {
                self.metrics.count(Metric::TurnedAway, ["unknown-path", ""]);
                Response::text(404, "there is no endpoint on this path\n")
            }
        }
    }

    fn turned_away(&self, why: TurnedAway, peer: SocketAddr) {
        self.metrics.count(Metric::TurnedAway, [why.as_str(), ""]);
        tracing::debug!(%peer, reason = why.as_str(), "turned away");
    }
}
