//! Listener for the seller's own application: may this customer use the service?
//!
//! It has its own address and its own tokens. A token names the accounts that it may see and what it may do; there is no
//! access without one, not even from this machine. The application gets less power here than an operator has.
//!
//! * `entitlements` answers the question, and waits for a change if asked to.
//! * `instances` lists what a token may see.
//! * `openapi` describes both, from the types that are sent.

mod entitlements;
mod instances;
mod openapi;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use crate::admin::Fault;
use crate::admin::failed_logins::FailedLogins;
use crate::admin::target::Target;
use crate::net::{Handler, Method, Request, Response};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::{Reader, Store};
use spid_core::query;
use spid_core::signature::Presented;
use spid_hook::Secret;
use spid_hook::text::plain_json;
use spid_hook::time::Clock;

spid_hook::words! {
    /// A thing that a token may do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Role {
        /// Ask about entitlements and list instances.
        Entitlements = "entitlements",
        /// Report usage.
        Usage = "usage",
        /// Activate licence codes.
        Activate = "activate",
    }
}

/// A token of the application.
#[derive(Debug, Clone, Serialize)]
pub struct AppToken {
    /// Name for logs.
    pub name: String,
    /// The token.
    #[serde(skip)]
    pub secret: Secret,
    /// Accounts that it may see.
    pub accounts: Vec<String>,
    /// Things that it may do.
    pub roles: Vec<Role>,
}

/// Options for the listener.
#[derive(Debug, Clone, Default)]
pub struct AppOptions {
    /// The tokens.
    pub tokens: Vec<AppToken>,
    /// Time after the end of a term in which a customer stays entitled although no renewal came, in milliseconds.
    pub overrun_ms: i64,
}

/// Handler of the listener. Clones share it.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    options: RwLock<Arc<AppOptions>>,
    failed: FailedLogins,
    /// Permits for requests that wait for a change.
    waits: Semaphore,
    commits: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
}

/// Reason why a request has no answer: status, stable code, and text.
#[derive(Debug)]
struct Refusal {
    status: u16,
    code: &'static str,
    text: String,
}

/// Body of a refusal.
#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    error: &'a str,
}

impl Refusal {
    fn new(status: u16, code: &'static str, text: impl Into<String>) -> Refusal {
        Refusal { status, code, text: text.into() }
    }

    fn response(&self) -> Response {
        let body = ErrorBody { code: self.code, error: &self.text };
        let response = json(self.status, &body).unwrap_or_else(|_| Response::empty(500));
        match self.status {
            401 => response.with_header("www-authenticate", "Bearer realm=\"spid\""),
            503 => response.with_header("retry-after", "1"),
            _ => response,
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        let code = match fault.status {
            400 => "bad-request",
            503 => "store-unavailable",
            _ => "internal",
        };
        Refusal::new(fault.status, code, fault.text)
    }
}

fn json(status: u16, value: &impl Serialize) -> Result<Response, Refusal> {
    match serde_json::to_string(value) {
        Ok(text) => Ok(Response::json(status, plain_json(&text).into_owned())),
        Err(_) => Err(Refusal::new(500, "internal", "the answer cannot be written as JSON; report the log")),
    }
}

impl App {
    /// Creates the handler. Requests that wait for a change are answered as soon as `stopping` is true.
    pub fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        options: AppOptions,
        stopping: watch::Receiver<bool>,
    ) -> App {
        let commits = store.commits();
        metrics.announce(Metric::HttpFault, [WRONG_TOKEN, ""]);
        App(Arc::new(Shared {
            store,
            clock,
            metrics,
            options: RwLock::new(Arc::new(options)),
            failed: FailedLogins::default(),
            waits: Semaphore::new(limits::APP_WAITS_MAX_COUNT),
            commits,
            stopping,
        }))
    }

    /// Replaces the options. Requests that are being answered end with the old ones.
    pub fn change(&self, options: AppOptions) {
        *self.0.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    fn options(&self) -> Arc<AppOptions> {
        self.0.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads committed data on a thread that may block on the disk.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Refusal> {
        let store = self.0.store.clone();
        match tokio::task::spawn_blocking(move || work(store.reader())).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Refusal::new(500, "internal", "internal error while reading; report the log")),
        }
    }

    /// Returns the token of a request.
    async fn authorize(&self, request: &Request, options: &AppOptions) -> Result<AppToken, Refusal> {
        let text = "send a token of [app] as `Authorization: Bearer …`";
        if request.headers.get("authorization").is_none() {
            return Err(Refusal::new(401, "no-token", text));
        }
        // Two headers count as a wrong token: a proxy in front may have read the other one.
        let presented = request.headers.only("authorization").and_then(Presented::of);
        let mut found = None;
        if let Some(presented) = presented {
            // Every token is compared, and each in constant time, so that the duration says nothing about them.
            for token in &options.tokens {
                if presented.token == token.secret {
                    found = Some(token);
                }
            }
        }
        match found {
            Some(token) => Ok(token.clone()),
            None => Err(self.wrong_token(request).await),
        }
    }

    /// Counts, logs and delays a wrong token.
    async fn wrong_token(&self, request: &Request) -> Refusal {
        self.0.metrics.count(Metric::HttpFault, [WRONG_TOKEN, ""]);
        let peer = request.peer;
        let turn = self.0.failed.note(peer.ip(), Instant::now());
        if let Some(unlogged) = turn.log {
            let suppressed = (unlogged > 0).then_some(unlogged);
            tracing::warn!(%peer, suppressed, "a wrong token was shown to the application's listener");
        }
        if turn.slow && !self.0.failed.wait().await {
            return Refusal::new(
                429,
                "too-many-wrong-tokens",
                "too many wrong tokens came from this address",
            );
        }
        Refusal::new(401, "wrong-token", "the token is wrong")
    }

    async fn answer(&self, request: &Request) -> Result<Response, Refusal> {
        let options = self.options();
        let token = self.authorize(request, &options).await?;
        if !matches!(request.method, Method::Get | Method::Head) {
            return Err(Refusal::new(405, "method", "only GET and HEAD are allowed"));
        }
        let target = Target::of(request)?;
        refuse_empty(request)?;
        match target.segments().as_slice() {
            ["v1", "openapi.json"] => {
                target.only(&[])?;
                json(200, &openapi::document())
            }
            ["v1", "entitlements", name] => {
                token.allows(Role::Entitlements)?;
                entitlements::one(self, &options, &token, request, &target, name).await
            }
            ["v1", "entitlements"] => {
                token.allows(Role::Entitlements)?;
                entitlements::list(self, &options, &token, &target).await
            }
            ["v1", "instances"] => {
                token.allows(Role::Entitlements)?;
                instances::list(self, &token, &target).await
            }
            _ => Err(Refusal::new(
                404,
                "unknown-path",
                "unknown path; there are /v1/entitlements, /v1/instances and /v1/openapi.json",
            )),
        }
    }
}

/// Refuses a parameter without a value. A program that has lost a value must not get the answer to another question.
fn refuse_empty(request: &Request) -> Result<(), Refusal> {
    let parameters = query::parse(request.query(), None).map_err(Fault::from)?;
    match parameters.iter().find(|(_, value)| value.is_empty()) {
        Some((name, _)) => Err(Refusal::new(400, "bad-request", format!("the parameter `{name}` is empty"))),
        None => Ok(()),
    }
}

/// Label of the metric for wrong tokens.
const WRONG_TOKEN: &str = "wrong-app-token";

impl AppToken {
    fn allows(&self, role: Role) -> Result<(), Refusal> {
        match self.roles.contains(&role) {
            true => Ok(()),
            false => {
                let text = format!("the token `{}` does not have the role `{}`", self.name, role.as_str());
                Err(Refusal::new(403, "role", text))
            }
        }
    }
}

impl Handler for App {
    async fn handle(&self, request: Request) -> Response {
        let answer = self.answer(&request).await.unwrap_or_else(|refusal| refusal.response());
        let answer = if answer.status == 405 { answer.with_header("allow", "GET, HEAD") } else { answer };
        answer.with_header("x-content-type-options", "nosniff")
    }
}
