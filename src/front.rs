//! The listener the marketplace calls: a path leads to an endpoint, and everything else to nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::http::{Handler, Request, Response, TurnedAway};
use crate::intake::{Endpoint, Intake};
use crate::metrics::{Metric, Metrics};

/// What a request that led nowhere is counted under.
const UNKNOWN_PATH: &str = "unknown-path";

/// The endpoints by path, and the intake behind them. Clones share it.
#[derive(Clone)]
pub struct Front {
    endpoints: Arc<HashMap<String, Endpoint>>,
    intake: Intake,
    metrics: Metrics,
}

impl Front {
    /// A front for these endpoints, each with the path it answers on. What its marketplace calls behind that
    /// path is its own, unless it is another endpoint's path.
    pub fn new(mut endpoints: HashMap<String, Endpoint>, intake: Intake, metrics: Metrics) -> Front {
        for reason in TurnedAway::ALL.map(TurnedAway::as_str).into_iter().chain([UNKNOWN_PATH]) {
            metrics.announce(Metric::TurnedAway, [reason, ""]);
        }
        endpoints.values().for_each(|endpoint| intake.announce(endpoint));
        for (path, endpoint) in endpoints.clone() {
            for tail in endpoint.dialect.tails() {
                let behind = format!("{}{tail}", path.trim_end_matches('/'));
                endpoints.entry(behind).or_insert_with(|| endpoint.clone());
            }
        }
        Front { endpoints: Arc::new(endpoints), intake, metrics }
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request) -> Response {
        match self.endpoints.get(request.path()) {
            Some(endpoint) => self.intake.receive(endpoint, request).await,
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
