//! The hook that is an HTTP endpoint: the call as the JSON body of a signed POST, the answer as the
//! JSON body of the response.
//!
//! The signature is that of Standard Webhooks (github.com/standard-webhooks/standard-webhooks), so that
//! the receiving end can use a library it did not have to write: `webhook-id` is the idempotency key.
//!
//! Only two statuses are believed to come from the hook itself: a 2xx, and a 422 that says `refuse`.
//! Everything else may come from a load balancer in the middle of a deployment, which must not refuse
//! an order that was paid: it is a retry. One that waiting does not mend, a 404 say, is alerted besides.
//!
//! There is no deadline in here: the runner drops the future, and the drop closes the connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::core::signature::WebhookKeys;
use crate::hook::answer::Said;
use crate::hook::callback::{Action, Answer};
use crate::hook::clock::Clock;
use crate::hook::{AnyHook, Call, HookError, HookErrorKind};
use crate::net::{Client, ClientError, ClientOptions, ClientRequest, ClientResponse, Reach, Tls, Url};
use crate::observe::limits;

/// Statuses that say "not now" and of which nobody needs to hear.
const NOT_NOW: [u16; 3] = [408, 425, 429];
/// Who we say we are.
const USER_AGENT: &str = concat!("spid/", env!("CARGO_PKG_VERSION"));

/// What can be chosen about an HTTP hook.
#[derive(Debug, Clone)]
pub struct HttpHookOptions {
    /// Whom it trusts over https; without it the system's roots, read when they are first needed.
    pub tls: Option<Tls>,
    /// Whether a call, which holds a buyer's data, may go unencrypted to a public address.
    pub insecure: bool,
    /// How many connections are kept for the next call.
    pub keep: usize,
    /// The clock of `webhook-timestamp`.
    pub clock: Clock,
}

impl Default for HttpHookOptions {
    fn default() -> HttpHookOptions {
        let keep = limits::HOOK_CONCURRENCY_COUNT;
        HttpHookOptions { tls: None, insecure: false, keep, clock: Clock::System }
    }
}

/// An HTTP endpoint as a hook.
#[derive(Debug, Clone)]
pub struct HttpHook {
    client: Client,
    reach: Reach,
    url: Url,
    keys: WebhookKeys,
    clock: Clock,
}

/// A URL that is out of reach as it stands. A name is looked at when it is resolved, at each call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {why}")]
pub struct OutOfReach {
    address: IpAddr,
    why: &'static str,
}

impl HttpHook {
    /// Calls `url`, signing with every one of `keys`.
    pub fn new(url: Url, keys: WebhookKeys, options: HttpHookOptions) -> HttpHook {
        let reach = if options.insecure { Reach::Hosts } else { Reach::Confidential };
        let client = Client::new(ClientOptions {
            // The runner's deadline ends a call; a second one in here would only compete with it.
            total: Duration::MAX,
            body_max_bytes: limits::HOOK_ANSWER_MAX_BYTES,
            reach,
            tls: options.tls,
            keep: options.keep,
            ..ClientOptions::default()
        });
        HttpHook { client, reach, url, keys, clock: options.clock }
    }

    /// Looks whether the URL could ever be called: for `check-config` and for the start. It resolves
    /// no name and opens no connection.
    ///
    /// # Errors
    /// [`OutOfReach`], for an address that is never connected to.
    pub fn check(&self) -> Result<(), OutOfReach> {
        let Ok(address) = self.url.host().parse::<IpAddr>() else { return Ok(()) };
        match self.reach.forbids(address, self.url.is_secure()) {
            Some(why) => Err(OutOfReach { address, why }),
            None => Ok(()),
        }
    }

    fn request(&self, call: &Call) -> Result<ClientRequest, HookError> {
        let body = serde_json::to_vec(call)?;
        let id = call.context().idempotency_key.as_str();
        let timestamp = self.clock.now().as_second();
        let signature = self.keys.sign(id, timestamp, &body);
        let request = ClientRequest::post(self.url.clone(), "application/json", body)
            .with_header("accept", "application/json")
            .with_header("user-agent", USER_AGENT)
            .with_header("webhook-id", id)
            .with_header("webhook-timestamp", timestamp.to_string())
            .with_header("webhook-signature", signature);
        Ok(match &call.context().traceparent {
            Some(traceparent) => request.with_header("traceparent", traceparent),
            None => request,
        })
    }

    async fn run(&self, call: Call) -> Result<Answer, HookError> {
        let response = self.client.send(self.request(&call)?).await.map_err(unanswered)?;
        judge(&response, call.action(), self.clock.now())
    }
}

impl From<HttpHook> for AnyHook {
    fn from(hook: HttpHook) -> AnyHook {
        let hook = Arc::new(hook);
        AnyHook::from_fn(move |call| {
            let hook = hook.clone();
            async move { hook.run(call).await }
        })
    }
}

fn unanswered(error: ClientError) -> HookError {
    match error {
        ClientError::Forbidden { .. } | ClientError::NoTls(_) | ClientError::Unsendable(_) => {
            HookError::misconfigured(error.to_string())
        }
        error => HookError::from(error),
    }
}

/// What status and body together mean.
fn judge(response: &ClientResponse, action: Action, now: Timestamp) -> Result<Answer, HookError> {
    match response.status {
        202 => Err(HookError::pending(note(response))),
        200..=299 => Said::success(Said::read_any(&response.body)?, action),
        _ => Err(refusal(response).unwrap_or_else(|| failure(response, now))),
    }
}

/// What an error's body says, if it is ours; the pages of proxies are not.
fn said(response: &ClientResponse) -> Option<Said> {
    Said::read_any(&response.body).ok().flatten()
}

fn note(response: &ClientResponse) -> String {
    let given = said(response).and_then(|said| said.pending);
    given.unwrap_or_else(|| "the hook accepted it (202) and completes it later".to_owned())
}

/// A 422 alone is no refusal: frameworks answer it by themselves to a body they do not understand.
fn refusal(response: &ClientResponse) -> Option<HookError> {
    if response.status != 422 {
        return None;
    }
    said(response)?.refuse.map(HookError::refuse)
}

fn failure(response: &ClientResponse, now: Timestamp) -> HookError {
    let status = response.status;
    let after = response.retry_after(now).or_else(|| said(response)?.retry_after);
    let kind = match status {
        300..=499 if !NOT_NOW.contains(&status) => HookErrorKind::Misconfigured { after },
        _ => HookErrorKind::Retry { after },
    };
    let more = match status {
        300..=399 => "; redirects are not followed: is the URL the right one?",
        422 => " without a `refuse`: does it understand the call?",
        _ => "",
    };
    HookError::new(kind, format!("the hook answered {status}{more}"))
}
