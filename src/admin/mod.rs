//! The second listener, for whoever runs the daemon: is it alive, is it ready, what has it counted, what
//! is there, what waits for a person; and the acts that mend it.
//!
//! It has an address of its own, on loopback. There it asks nobody who they are, but wants to be asked for
//! by a name of this machine: a page in a browser that runs here could point a name of its own at 127.0.0.1
//! and read along. With a token (and for any other address there has to be one) it wants the token instead.
//! Whoever has neither learns from `/livez` and `/readyz` a status code each. See `access`.
//!
//! * `health` answers `/livez`, `/readyz` and `/metrics`.
//! * `api` is the JSON under `/v1`: the objects of the command line's `--json`, and its acts.
//! * `console` is the same for people: pages without a script, so that a strict browser may read them.
//! * `acts` is what both do by hand, through the store's own mender.

mod access;
mod api;
mod console;
mod guesses;
mod health;
mod html;
mod operations;
mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use jiff::Timestamp;

use crate::core::query::QueryError;
use crate::core::signature::Secret;
use crate::hook::clock::{Clock, Id};
use crate::net::{Handler, Method, Request, Response};
use crate::observe::denied::Refusals;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::{MendError, Reader, Store, StoreError, StoreOptions, ViewError};
use access::{Access, Denied, Operator};
use guesses::Guesses;
use target::Target;

/// What can be chosen about the admin listener.
#[derive(Debug, Clone, Default)]
pub struct AdminOptions {
    /// What whoever asks must show. `None` only where nobody but this machine can ask.
    pub token: Option<Secret>,
}

/// What the admin listener shows, and where it mends.
pub struct AdminParts {
    /// What is kept.
    pub store: Store,
    /// The database behind it, and how it was opened; `None` for a store in memory, which cannot be mended.
    pub database: Option<(PathBuf, StoreOptions)>,
    /// What was counted.
    pub metrics: Metrics,
    /// What was turned away.
    pub refusals: Refusals,
    /// The time.
    pub clock: Clock,
}

/// Answers what the operator asks. Clones share it.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    parts: AdminParts,
    access: Access,
    guesses: Guesses,
    /// Stands in every form of the console, and a page of another site cannot read it.
    form_token: Secret,
    started: Timestamp,
    /// When it was last found out for a stranger whether the daemon is ready, and what was found.
    remembered: Mutex<Option<(Timestamp, bool)>>,
}

/// Why something was not answered or not done, and the HTTP status for that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    status: u16,
    text: String,
}

impl Fault {
    fn new(status: u16, text: impl Into<String>) -> Fault {
        Fault { status, text: text.into() }
    }

    fn nothing_here() -> Fault {
        Fault::new(404, "there is nothing here")
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        // To come again does not help before the row is mended.
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

impl From<MendError> for Fault {
    fn from(error: MendError) -> Fault {
        match error {
            MendError::Store(error) => error.into(),
            MendError::NotFound(text) => Fault::new(404, text),
            MendError::Impossible(text) => Fault::new(409, text),
        }
    }
}

impl From<QueryError> for Fault {
    fn from(error: QueryError) -> Fault {
        Fault::new(400, error.to_string())
    }
}

impl Admin {
    /// An admin listener's handler.
    ///
    /// # Errors
    /// When the system's random generator fails.
    pub fn new(parts: AdminParts, options: AdminOptions) -> Result<Admin, StoreError> {
        let started = parts.clock.now();
        let random = || {
            Id::new(started).map_err(|_| StoreError::Seal("the system's random generator failed".to_owned()))
        };
        let form_token = Secret::new(format!("{}{}", random()?, random()?));
        for denied in [Denied::NoToken, Denied::WrongToken] {
            parts.metrics.announce(Metric::TurnedAway, [denied.as_str(), ""]);
        }
        let access = Access::new(options.token);
        Ok(Admin {
            inner: Arc::new(Inner {
                parts,
                access,
                guesses: Guesses::default(),
                form_token,
                started,
                remembered: Mutex::default(),
            }),
        })
    }

    fn now(&self) -> Timestamp {
        self.inner.parts.clock.now()
    }

    /// Replaces what can be chosen about the listener. What a request has been let in for already is finished.
    pub fn change(&self, options: AdminOptions) {
        self.inner.access.change(options.token);
    }

    /// Counts and logs a request that is no operator's. Returns whether its answer has to wait.
    fn note(&self, denied: Denied, request: &Request) -> bool {
        self.inner.parts.metrics.count(Metric::TurnedAway, [denied.as_str(), ""]);
        if denied != Denied::WrongToken {
            return false;
        }
        let peer = request.peer;
        let turn = self.inner.guesses.note(peer.ip(), Instant::now());
        if let Some(unlogged) = turn.log {
            let suppressed = (unlogged > 0).then_some(unlogged);
            tracing::warn!(%peer, suppressed, "a wrong token was shown to the admin listener");
        }
        turn.slow
    }

    /// The answer to a request that is no operator's.
    async fn deny(&self, denied: Denied, request: &Request) -> Response {
        if self.note(denied, request) && !self.inner.guesses.wait().await {
            return Response::text(429, "too many wrong tokens came from this address\n")
                .with_header("retry-after", "1");
        }
        denied.response()
    }

    /// Reads what is committed, on a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let store = self.inner.parts.store.clone();
        let done = tokio::task::spawn_blocking(move || work(store.reader())).await;
        done.unwrap_or_else(|_| Err(Fault::new(500, "reading fell over: this is a bug")))
    }

    /// What only an operator is answered.
    async fn operate(&self, operator: &Operator, request: &Request) -> Response {
        let target = match Target::of(request) {
            Ok(target) => target,
            Err(fault) => return api::refuse(&fault),
        };
        match target.segments().first() {
            Some(&"v1") => api::answer(self, request, &target).await,
            Some(&"console") => console::answer(self, operator, request, &target).await,
            None => Response::redirect("/console/"),
            Some(_) => Response::text(404, "there is /livez, /readyz, /metrics, /v1 and /console\n"),
        }
    }
}

fn is_read(request: &Request) -> bool {
    matches!(request.method, Method::Get | Method::Head)
}

impl Handler for Admin {
    async fn handle(&self, request: Request) -> Response {
        let answer = match request.path() {
            path @ ("/livez" | "/readyz" | "/metrics") if !is_read(&request) => {
                Response::text(405, format!("{path} takes only GET\n")).with_header("allow", "GET, HEAD")
            }
            "/livez" => Response::text(200, "alive\n"),
            "/readyz" => self.ready(&request).await,
            "/metrics" => match self.inner.access.may_count(&request) {
                Ok(()) => self.metrics().await,
                Err(denied) => self.deny(denied, &request).await,
            },
            _ => match self.inner.access.check(&request) {
                Ok(operator) => self.operate(&operator, &request).await,
                Err(denied) => self.deny(denied, &request).await,
            },
        };
        answer.with_header("x-content-type-options", "nosniff")
    }
}
