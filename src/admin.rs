//! The second listener, for whoever runs the daemon: is it alive, is it ready, what has it counted.
//!
//! It has an address of its own, loopback unless configured otherwise, and shows totals and counts
//! only: nothing of a buyer, an order or an instance.

use std::time::Duration;

use tokio::time::timeout;

use crate::http::{Handler, Method, Request, Response};
use crate::limits;
use crate::metrics::{Metrics, gauge};
use crate::store::{Store, Totals};

/// Answers `/livez`, `/readyz` and `/metrics`. Clones share it.
#[derive(Clone)]
pub struct Admin {
    store: Store,
    metrics: Metrics,
}

impl Admin {
    /// An admin listener's handler for this store.
    pub fn new(store: Store, metrics: Metrics) -> Admin {
        Admin { store, metrics }
    }

    /// Ready means: a write goes through, and in time.
    async fn ready(&self) -> Response {
        let within = Duration::from_millis(limits::READY_WITHIN_MS);
        match timeout(within, self.store.probe()).await {
            Ok(Ok(())) => Response::text(200, "ready\n"),
            Ok(Err(error)) => Response::text(503, format!("not ready: {error}\n")),
            Err(_) => Response::text(503, "not ready: the disk does not take a write in time\n"),
        }
    }

    fn page(&self) -> Response {
        let mut page = self.metrics.render();
        match self.store.reader().totals() {
            Ok(totals) => gauges(&mut page, &totals),
            Err(error) => return Response::text(503, format!("the store cannot be read: {error}\n")),
        }
        Response::new(200, "text/plain; version=0.0.4; charset=utf-8", page)
    }
}

fn gauges(page: &mut String, totals: &Totals) {
    let rows =
        |counts: &std::collections::BTreeMap<&'static str, u64>| -> Vec<(&'static str, &'static str, u64)> {
            counts.iter().map(|(state, count)| ("state", *state, *count)).collect()
        };
    gauge(page, "spid_instances", "Instances by state.", &rows(&totals.instances));
    gauge(page, "spid_jobs", "Jobs that have not ended, by state.", &rows(&totals.jobs));
    gauge(page, "spid_held_callbacks", "Callbacks that wait for an operator.", &[("", "", totals.held)]);
    gauge(page, "spid_untold_results", "Results the marketplace was not told.", &[("", "", totals.untold)]);
    gauge(page, "spid_build_info", "The version that runs.", &[("version", env!("CARGO_PKG_VERSION"), 1)]);
}

impl Handler for Admin {
    async fn handle(&self, request: Request) -> Response {
        match (&request.method, request.path()) {
            (Method::Get | Method::Head, "/livez") => Response::text(200, "alive\n"),
            (Method::Get | Method::Head, "/readyz") => self.ready().await,
            (Method::Get | Method::Head, "/metrics") => self.page(),
            (Method::Get | Method::Head, _) => Response::text(404, "there is /livez, /readyz and /metrics\n"),
            _ => Response::text(405, "only GET\n").with_header("allow", "GET, HEAD"),
        }
    }
}
