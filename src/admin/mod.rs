//! Admin listener, for the operator: liveness, readiness, metrics, recorded data, the list of what needs attention,
//! and admin operations.
//!
//! It has its own address, on loopback by default. There it needs no credentials, but the request must name this
//! machine as its host. Otherwise a page in a local browser could point a name of its own at 127.0.0.1 and read the
//! answers. If a token is configured, the token is required instead; any address but loopback requires a token.
//! Without either, a client gets only the status codes of `/livez` and `/readyz`. See `access`.
//!
//! * `health` answers `/livez`, `/readyz` and `/metrics`.
//! * `api` is the JSON under `/v1`: the objects of the command line's `--json`, and its operations.
//! * `console` shows the same to people: pages without scripts, so that a strict content policy allows them.
//! * `acts` runs the operations of both, through the store's own admin operations.

mod access;
mod api;
mod console;
pub(crate) mod failed_logins;
mod health;
mod operations;
pub(crate) mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use jiff::Timestamp;

use crate::net::{Handler, Method, Request, Response};
use crate::observe::denied::DeniedRequests;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::{OperationError, Reader, Store, StoreError, StoreOptions, ViewError};
use access::{Access, Denied, Operator};
use failed_logins::FailedLogins;
use spid_core::query::QueryError;
use spid_hook::Secret;
use spid_hook::id::Id;
use spid_hook::time::Clock;
use target::Target;

/// Options for the admin listener.
#[derive(Debug, Clone, Default)]
pub struct AdminOptions {
    /// Token that clients must show. `None` is allowed only if no other machine can reach the listener.
    pub token: Option<Secret>,
}

/// Parts of the daemon that the admin listener shows and changes.
pub struct AdminParts {
    /// Store of the daemon.
    pub store: Store,
    /// Database file and its options, for operations; `None` for a store in memory, which has no operations.
    pub database: Option<(PathBuf, StoreOptions)>,
    /// Metrics of the daemon.
    pub metrics: Metrics,
    /// Denied requests.
    pub refusals: DeniedRequests,
    /// Clock of the daemon.
    pub clock: Clock,
}

/// Handler of the admin listener. Clones share it.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    parts: AdminParts,
    access: Access,
    failed_logins: FailedLogins,
    /// Token in every form of the console; a page of another site cannot read it.
    form_token: Secret,
    started: Timestamp,
    /// Time and result of the last readiness check for a client without access.
    remembered: Mutex<Option<(Timestamp, bool)>>,
}

/// Reason why a request failed, and its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Fault {
        Fault { status, text: text.into() }
    }

    fn nothing_here() -> Fault {
        Fault::new(404, "page not found")
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        // A retry does not help until the row is repaired, so the status is not 503.
        let status = if matches!(error, StoreError::Unreadable(_)) { 500 } else { 503 };
        Fault::new(status, error.to_string())
    }
}

impl From<ViewError> for Fault {
    fn from(error: ViewError) -> Fault {
        let text = error.to_string();
        match error {
            ViewError::Store(error) => error.into(),
            ViewError::NotFound(_) | ViewError::NoInstance(_) => Fault::new(404, text),
            ViewError::Several { .. } => Fault::new(409, text),
        }
    }
}

impl From<OperationError> for Fault {
    fn from(error: OperationError) -> Fault {
        match error {
            OperationError::Store(error) => error.into(),
            OperationError::NotFound(text) => Fault::new(404, text),
            OperationError::Impossible(text) => Fault::new(409, text),
            OperationError::Moved(..) => Fault::new(409, error.to_string()),
        }
    }
}

impl From<QueryError> for Fault {
    fn from(error: QueryError) -> Fault {
        Fault::new(400, error.to_string())
    }
}

impl Admin {
    /// Creates the handler of an admin listener.
    ///
    /// # Errors
    /// Returns an error if the system's random generator fails.
    pub fn new(parts: AdminParts, options: AdminOptions) -> Result<Admin, StoreError> {
        let started = parts.clock.now();
        let mut form_token = String::new();
        // Two ids, because only 74 of an id's 128 bits are random.
        for _ in 0..2 {
            let id = Id::new(started)
                .map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))?;
            form_token.push_str(&id.to_string());
        }
        let form_token = Secret::new(form_token);
        // Export the counters with 0 from the start, so that a first denial is visible as an increase.
        for denied in [Denied::NoToken, Denied::WrongToken] {
            parts.metrics.announce(Metric::HttpFault, [denied.as_str(), ""]);
        }
        let access = Access::new(options.token);
        Ok(Admin {
            inner: Arc::new(Inner {
                parts,
                access,
                failed_logins: FailedLogins::default(),
                form_token,
                started,
                remembered: Mutex::default(),
            }),
        })
    }

    fn now(&self) -> Timestamp {
        self.inner.parts.clock.now()
    }

    /// Replaces the options. Requests that were accepted before are finished.
    pub fn change(&self, options: AdminOptions) {
        self.inner.access.change(options.token);
    }

    /// Counts and logs a denied request. Returns true if its answer must be delayed.
    fn note(&self, denied: Denied, request: &Request) -> bool {
        self.inner.parts.metrics.count(Metric::HttpFault, [denied.as_str(), ""]);
        // Only a wrong token can be a guess. A request without a token is counted, and not slowed down.
        if denied != Denied::WrongToken {
            return false;
        }
        let peer = request.peer;
        let consequence = self.inner.failed_logins.note(peer.ip(), Instant::now());
        if let Some(unlogged) = consequence.log {
            // The field is absent if nothing was suppressed.
            let suppressed = (unlogged > 0).then_some(unlogged);
            tracing::warn!(%peer, suppressed, "a wrong token was shown to the admin listener");
        }
        consequence.slow
    }

    /// Answers a denied request.
    async fn deny(&self, denied: Denied, request: &Request) -> Response {
        // Delay a guess. If too many are delayed already, refuse at once to keep connections free.
        if self.note(denied, request) && !self.inner.failed_logins.wait().await {
            return Response::text(429, "too many wrong tokens came from this address\n")
                .with_header("retry-after", "1");
        }
        denied.response()
    }

    /// Reads committed data on a thread that may block on the disk.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let store = self.inner.parts.store.clone();
        let done = tokio::task::spawn_blocking(move || work(store.reader())).await;
        done.unwrap_or_else(|_| Err(Fault::new(500, "internal error while reading; report the log")))
    }

    /// Answers requests that only an operator may make.
    async fn operate(&self, operator: &Operator, request: &Request) -> Response {
        let target = match Target::of(request) {
            Ok(target) => target,
            Err(fault) => return api::refuse(&fault),
        };
        match target.segments().first() {
            Some(&"v1") => api::answer(self, request, &target).await,
            Some(&"console") => console::answer(self, operator, request, &target).await,
            None => Response::redirect("/console/"),
            Some(_) => {
                Response::text(404, "not found; available are /livez, /readyz, /metrics, /v1 and /console\n")
            }
        }
    }
}

fn is_read(request: &Request) -> bool {
    matches!(request.method, Method::Get | Method::Head)
}

impl Handler for Admin {
    async fn handle(&self, request: Request) -> Response {
        let answer = match request.path() {
            // Health first: probes must work without a token.
            path @ ("/livez" | "/readyz" | "/metrics") if !is_read(&request) => {
                Response::text(405, format!("{path} takes only GET\n")).with_header("allow", "GET, HEAD")
            }
            "/livez" => Response::text(200, "alive\n"),
            "/readyz" => self.ready(&request).await,
            // Metrics contain only totals, so they have a weaker rule than the data below.
            "/metrics" => match self.inner.access.may_count(&request) {
                Ok(()) => self.metrics().await,
                Err(denied) => self.deny(denied, &request).await,
            },
            _ => match self.inner.access.check(&request) {
                Ok(operator) => self.operate(&operator, &request).await,
                Err(denied) => self.deny(denied, &request).await,
            },
        };
        // Answers may contain text of others, which a browser must not interpret as another type.
        answer.with_header("x-content-type-options", "nosniff")
    }
}
