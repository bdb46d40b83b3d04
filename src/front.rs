//! The listener the marketplace calls: a path leads to an endpoint, and everything else to nothing.
//!
//! What is behind the paths may change while requests are answered: the whole of it at once, between one
//! request and the next. A request ends with what it began with.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::http::{Handler, Request, Response, TurnedAway};
use crate::intake::{Endpoint, Intake};
use crate::metrics::{Metric, Metrics};

/// What a request that led nowhere is counted under.
const UNKNOWN_PATH: &str = "unknown-path";

/// What is behind the paths: everything a request is judged by.
pub struct Doors {
    /// The endpoints by path.
    pub endpoints: HashMap<String, Endpoint>,
    /// The intake behind them.
    pub intake: Intake,
}

/// The listener's handler. Clones share the doors.
#[derive(Clone)]
pub struct Front {
    doors: watch::Receiver<Arc<Doors>>,
    metrics: Metrics,
}

impl Front {
    /// A front for these doors, and for those that are sent after them.
    pub fn new(doors: watch::Receiver<Arc<Doors>>, metrics: Metrics) -> Front {
        for reason in TurnedAway::ALL.map(TurnedAway::as_str).into_iter().chain([UNKNOWN_PATH]) {
            metrics.announce(Metric::TurnedAway, [reason, ""]);
        }
        let behind = doors.borrow().clone();
        behind.endpoints.values().for_each(|endpoint| behind.intake.announce(endpoint));
        Front { doors, metrics }
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request) -> Response {
        let doors = self.doors.borrow().clone();
        match doors.endpoints.get(request.path()) {
            Some(endpoint) => doors.intake.receive(endpoint, request).await,
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
