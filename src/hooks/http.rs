//! The `http` hook: the call is the JSON body of a signed POST, and the answer is the JSON body of the response.
//!
//! The signature follows Standard Webhooks (github.com/standard-webhooks/standard-webhooks), so that the seller
//! can verify it with an existing library. `webhook-id` is the idempotency key.
//!
//! spid accepts only two kinds of response as the hook's own answer: a 2xx, and a 422 that says `refuse`. Any
//! other response may come from a load balancer during a deployment, which must not refuse a paid order, so it
//! is a retry. A status that waiting does not repair, for example 404, also raises an alert.
//!
//! This module has no deadline: the runner drops the future, and the drop closes the connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::net::{
    Client, ClientError, ClientOptions, ClientRequest, ClientResponse, OutboundPolicy, Tls, Url,
};
use crate::observe::limits;
use spid_hook::answer::ParsedAnswer;
use spid_hook::callback::{Action, Answer};
use spid_hook::time::Clock;
use spid_hook::webhook::WebhookKeys;
use spid_hook::{AnyHook, Call, HookError, HookErrorKind};

/// Statuses that mean "not now" and need no alert.
const NOT_NOW: [u16; 3] = [408, 425, 429];
/// Value of the `user-agent` header.
const USER_AGENT: &str = concat!("spid/", env!("CARGO_PKG_VERSION"));

/// Options for an HTTP hook.
#[derive(Debug, Clone)]
pub struct HttpHookOptions {
    /// Certificates trusted over https. `None` means the system's roots, which are read at the first use.
    pub tls: Option<Tls>,
    /// Permits a call, which holds a buyer's data, to go unencrypted to a public address.
    pub insecure: bool,
    /// Number of connections kept open for later calls.
    pub keep: usize,
    /// Clock for `webhook-timestamp`.
    pub clock: Clock,
    /// Addresses of hosts that are not to be resolved by the system. Empty, except in tests.
    pub hosts: HashMap<String, Vec<IpAddr>>,
}

impl Default for HttpHookOptions {
    fn default() -> HttpHookOptions {
        let keep = limits::HOOK_CONCURRENCY_COUNT;
        HttpHookOptions { tls: None, insecure: false, keep, clock: Clock::System, hosts: HashMap::new() }
    }
}

/// An HTTP endpoint as a hook.
#[derive(Debug, Clone)]
pub struct HttpHook {
    client: Client,
    outbound: OutboundPolicy,
    url: Url,
    keys: WebhookKeys,
    clock: Clock,
}

/// Error for a URL with an address that spid never connects to. A host name is checked when it is resolved, at
/// each call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {why}")]
pub struct ForbiddenAddress {
    address: IpAddr,
    why: &'static str,
}

impl HttpHook {
    /// Creates a hook that calls `url` and signs with every key of `keys`.
    pub fn new(url: Url, keys: WebhookKeys, options: HttpHookOptions) -> HttpHook {
        let outbound = if options.insecure { OutboundPolicy::Hosts } else { OutboundPolicy::Confidential };
        let client = Client::new(ClientOptions {
            // The runner's deadline ends a call; a second one in here would only compete with it.
            total: Duration::MAX,
            body_max_bytes: limits::HOOK_ANSWER_MAX_BYTES,
            outbound,
            tls: options.tls,
            keep: options.keep,
            hosts: options.hosts,
            ..ClientOptions::default()
        });
        HttpHook { client, outbound, url, keys, clock: options.clock }
    }

    /// Checks that the URL could be called. `check-config` and the start of the daemon use it. It resolves no
    /// name and opens no connection.
    ///
    /// # Errors
    /// [`ForbiddenAddress`], for an address that spid never connects to.
    pub fn check(&self) -> Result<(), ForbiddenAddress> {
        // A host name is checked later, when it is resolved.
        let Ok(address) = self.url.host().parse::<IpAddr>() else { return Ok(()) };
        match self.outbound.forbids(address, self.url.is_secure()) {
            Some(why) => Err(ForbiddenAddress { address, why }),
            None => Ok(()),
        }
    }

    fn request(&self, call: &Call) -> Result<ClientRequest, HookError> {
        // Sign exactly the bytes that are sent.
        let body = serde_json::to_vec(call)?;
        // The id is the same for every attempt, so that the receiver recognizes a repetition.
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

/// Converts an error of the client. Errors that a retry alone cannot repair also raise an alert.
fn unanswered(error: ClientError) -> HookError {
    match error {
        // Waiting does not repair these errors.
        ClientError::Forbidden { .. } | ClientError::NoTls(_) | ClientError::Unsendable(_) => {
            HookError::misconfigured(error.to_string())
        }
        error => HookError::from(error),
    }
}

/// Combines the status and the body into a result.
fn judge(response: &ClientResponse, action: Action, now: Timestamp) -> Result<Answer, HookError> {
    match response.status {
        // 202 is "accepted, completed later". All other 2xx mean that the work is done.
        202 => Err(HookError::pending(note(response))),
        200..=299 => ParsedAnswer::success(ParsedAnswer::read_any(&response.body)?, action),
        _ => Err(refusal(response).unwrap_or_else(|| failure(response, now))),
    }
}

/// Reads the body of an error response as an answer. Returns `None` for the error pages of proxies.
fn said(response: &ClientResponse) -> Option<ParsedAnswer> {
    ParsedAnswer::read_any(&response.body).ok().flatten()
}

fn note(response: &ClientResponse) -> String {
    let given = said(response).and_then(|said| said.pending);
    given.unwrap_or_else(|| "the hook accepted the call (202) and completes it later".to_owned())
}

/// Returns a refusal only if the body says `refuse`. A 422 alone is none: frameworks answer 422 to a body they
/// do not understand.
fn refusal(response: &ClientResponse) -> Option<HookError> {
    if response.status != 422 {
        return None;
    }
    said(response)?.refuse.map(HookError::refuse)
}

fn failure(response: &ClientResponse, now: Timestamp) -> HookError {
    let status = response.status;
    // The header takes precedence over the body's `retry_after`.
    let after = response.retry_after(now).or_else(|| said(response)?.retry_after);
    let kind = match status {
        // A redirect or a client error comes from a wrong URL or a wrong request. 5xx may be temporary.
        300..=499 if !NOT_NOW.contains(&status) => HookErrorKind::Misconfigured { after },
        _ => HookErrorKind::Retry { after },
    };
    let more = match status {
        300..=399 => "; redirects are not followed: correct the URL of the hook",
        422 => {
            " without `refuse` in its body: check that the service accepts the call (`spid hook schema call`)"
        }
        _ => "",
    };
    HookError::new(kind, format!("the hook answered {status}{more}"))
}
