//! The second listener, for whoever runs the daemon: is it alive, is it ready, what has it counted, what
//! did it turn away and why.
//!
//! It has an address of its own, on loopback: it asks nobody who they are. The first three show totals
//! and counts only. A refused request is shown as it was read, and what stands in it may be personal;
//! so `/v1/refusals` also wants to be asked for by a name of this machine. Otherwise a page in a
//! browser that runs here could point a name of its own at 127.0.0.1 and read along.

use serde::Serialize;

use std::time::Duration;

use tokio::time::timeout;

use crate::http::{Handler, Method, Request, Response};
use crate::limits;
use crate::metrics::{Metrics, gauge};
use crate::query;
use crate::refusals::{Refusals, Shown};
use crate::store::{Store, Totals};

/// Answers `/livez`, `/readyz`, `/metrics` and `/v1/refusals`. Clones share it.
#[derive(Clone)]
pub struct Admin {
    store: Store,
    metrics: Metrics,
    refusals: Refusals,
}

/// The body of `/v1/refusals`.
#[derive(Serialize)]
struct RefusalsPage {
    /// The newest first.
    refusals: Vec<Shown>,
}

impl Admin {
    /// An admin listener's handler for this store, these counts and these refusals.
    pub fn new(store: Store, metrics: Metrics, refusals: Refusals) -> Admin {
        Admin { store, metrics, refusals }
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

    fn refusals(&self, request: &Request) -> Response {
        if !request.headers.only("host").is_some_and(is_this_machine) {
            return Response::text(403, "ask for it as localhost, 127.0.0.1 or [::1]\n");
        }
        let Some(limit) = limit(request.query()) else {
            return Response::text(400, "there is one parameter: limit, a number\n");
        };
        let page = RefusalsPage { refusals: self.refusals.latest(limit) };
        match serde_json::to_string(&page) {
            Ok(text) => Response::json(200, text),
            Err(error) => Response::text(500, format!("{error}\n")),
        }
    }
}

/// Whether a `Host` header names this machine by a name nobody else can have.
fn is_this_machine(host: &str) -> bool {
    let without_port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    matches!(without_port.map_or(host, |(name, _)| name), "localhost" | "127.0.0.1" | "[::1]")
}

fn limit(text: &[u8]) -> Option<usize> {
    match query::parse(text, None).ok()?.as_slice() {
        [] => Some(limits::REFUSALS_SHOWN_COUNT),
        [(name, value)] if name == "limit" => value.parse().ok(),
        _ => None,
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
            (Method::Get | Method::Head, "/v1/refusals") => self.refusals(&request),
            (Method::Get | Method::Head, _) => {
                Response::text(404, "there is /livez, /readyz, /metrics and /v1/refusals\n")
            }
            _ => Response::text(405, "only GET\n").with_header("allow", "GET, HEAD"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_nobody_else_can_have_are_this_machine() {
        for host in ["localhost", "localhost:8081", "127.0.0.1:1", "[::1]", "[::1]:8081"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8081", "localhost.evil.example", "localhost:x", "[::1", ":80"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn a_limit_is_a_number_or_not_there() {
        assert_eq!((limit(b""), limit(b"limit=3")), (Some(limits::REFUSALS_SHOWN_COUNT), Some(3)));
        for wrong in ["limit=", "limit=-1", "limit=x", "limits=3", "limit=1&limit=2", "limit=1&a=2"] {
            assert_eq!(limit(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
