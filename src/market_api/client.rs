//! Client of Alibaba Cloud's marketplace APIs.
//!
//! It signs a call, sends it once and reads the answer. It repeats nothing by itself but a call without an effect that
//! the gateway denied for its nonce: the caller knows what a repetition means, and owed work is repeated by its job.
//!
//! Each market has its own bound of calls at once and its own pace, so that a marketplace that hangs or throttles takes
//! nothing from another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use spid_core::market_api::{ApiCall, ApiError, ErrorClass, Group, Operation, Place, Repeat, read_answer};
use spid_core::signature::{ApiRequest, SignedApiRequest};
use spid_hook::json::Json;
use spid_hook::time::Clock;
use tokio::sync::{Mutex as FairMutex, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::credentials::{Credentials, NoKey};
use crate::net::{Client, ClientError, ClientOptions, ClientRequest, Method, OutboundPolicy, Tls, Url};
use crate::observe::limits;

/// `User-Agent` of every request.
pub(super) const USER_AGENT: &str = concat!("spid/", env!("CARGO_PKG_VERSION"));

spid_hook::words! {
    /// Site of a marketplace, which decides about the hosts of its APIs and about its operations.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Site {
        /// Alibaba Cloud in China.
        AlibabaCn = "alibaba-cn",
        /// Alibaba Cloud, international.
        AlibabaIntl = "alibaba-intl",
    }
}

impl Site {
    /// Returns the host of an operation; `None` if this site does not have it. The hosts are those of the vendor's SDKs;
    /// that of the international API follows from the SDK's rule and is printed nowhere.
    fn host(self, operation: &Operation) -> Option<&'static str> {
        match (self, operation.is_international()) {
            (Site::AlibabaCn, false) => Some("market.aliyuncs.com"),
            (Site::AlibabaIntl, true) => Some("marketplaceintl.aliyuncs.com"),
            (Site::AlibabaIntl, false) if operation.group != Group::Read => {
                Some("market.ap-southeast-1.aliyuncs.com")
            }
            _ => None,
        }
    }
}

/// Options of one market.
pub struct MarketOptions {
    /// Name of the market in the configuration.
    pub name: String,
    /// The site.
    pub site: Site,
    /// Address of the APIs, if it is not the vendor's.
    pub base_url: Option<Url>,
    /// Credentials of every group of operations without its own.
    pub credentials: Credentials,
    /// Credentials of single groups.
    pub credentials_for: BTreeMap<Group, Credentials>,
    /// Calls a second.
    pub calls_per_s: f64,
    /// Calls at once.
    pub concurrency: usize,
    /// Time for one call.
    pub timeout: Duration,
    /// Trust over https. `None`: the system's roots.
    pub tls: Option<Tls>,
    /// The clock that dates the calls.
    pub clock: Clock,
}

/// Client of one market. Clones share its bounds.
#[derive(Clone)]
pub struct MarketClient(Arc<Shared>);

struct Shared {
    options: MarketOptions,
    client: Client,
    permits: Semaphore,
    /// Held by the call that waits for its time; the others queue here in their order.
    turn: FairMutex<()>,
    pace: Mutex<Pace>,
}

/// Pace of the calls.
struct Pace {
    /// Earliest time of the next call.
    next: Instant,
    /// Throttled answers in a row.
    throttled: u32,
}

/// Reason why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API answered a failure.
    #[error("{0}")]
    Api(ApiError),
    /// The API gave no answer.
    #[error("{fault}")]
    Unanswered {
        /// The fault.
        fault: String,
        /// True if the call may have been carried out.
        may_be_applied: bool,
    },
    /// There is no access key.
    #[error("{0}")]
    NoKey(#[from] NoKey),
    /// The configuration makes every call fail.
    #[error("{0}")]
    Misconfigured(String),
}

impl CallError {
    /// Returns true if the call may have been carried out although it has no result.
    pub fn may_be_applied(&self) -> bool {
        match self {
            CallError::Api(error) => error.class.may_be_applied(),
            CallError::Unanswered { may_be_applied, .. } => *may_be_applied,
            CallError::NoKey(_) | CallError::Misconfigured(_) => false,
        }
    }

    /// Returns true if a later call may succeed without a change by a person.
    pub fn is_temporary(&self) -> bool {
        match self {
            CallError::Api(error) => error.class.is_temporary(),
            CallError::Unanswered { .. } => true,
            CallError::NoKey(fault) => fault.is_temporary(),
            CallError::Misconfigured(_) => false,
        }
    }
}

impl fmt::Debug for MarketClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MarketClient").field("name", &self.0.options.name).finish_non_exhaustive()
    }
}

impl MarketClient {
    /// Creates a client. Over plain http it connects only to addresses of the private network.
    pub fn new(options: MarketOptions) -> MarketClient {
        let client = Client::new(ClientOptions {
            total: options.timeout,
            outbound: OutboundPolicy::Confidential,
            tls: options.tls.clone(),
            body_max_bytes: limits::MARKET_ANSWER_MAX_BYTES,
            keep: options.concurrency,
            ..ClientOptions::default()
        });
        let permits = Semaphore::new(options.concurrency.max(1));
        let pace = Mutex::new(Pace { next: Instant::now(), throttled: 0 });
        MarketClient(Arc::new(Shared { options, client, permits, turn: FairMutex::default(), pace }))
    }

    /// Returns the name of the market.
    pub fn name(&self) -> &str {
        &self.0.options.name
    }

    /// Returns the site of the market.
    pub fn site(&self) -> Site {
        self.0.options.site
    }

    /// Returns the address of the APIs, if it is not the vendor's.
    pub fn base_url(&self) -> Option<&Url> {
        self.0.options.base_url.as_ref()
    }

    /// Returns the groups of operations that have credentials of their own.
    pub fn groups_with_credentials(&self) -> impl Iterator<Item = Group> {
        self.0.options.credentials_for.keys().copied()
    }

    /// Returns the address of an operation.
    fn url(&self, operation: &Operation) -> Result<Url, CallError> {
        let options = &self.0.options;
        let Some(host) = options.site.host(operation) else {
            let (site, action) = (options.site.as_str(), operation.action);
            return Err(CallError::Misconfigured(format!("{site} does not have the operation {action}")));
        };
        match &options.base_url {
            Some(url) => Ok(url.clone()),
            None => format!("https://{host}/")
                .parse()
                .map_err(|_| CallError::Misconfigured(format!("`{host}` is no host"))),
        }
    }

    /// Makes a call and returns the document of its success.
    ///
    /// # Errors
    /// See [`CallError`]. It says if the call may have been carried out.
    pub async fn call(&self, call: &ApiCall) -> Result<Json, CallError> {
        // The permit is held until the answer is read, so that a market that hangs stops only its own calls.
        let _permit = self.0.permits.acquire().await;
        let credentials = self.credentials(call.operation.group);
        let url = self.url(call.operation)?;
        let mut again = call.operation.repeat == Repeat::Always;
        loop {
            self.wait_for_turn().await;
            let key = credentials.current().await?;
            let signed = ApiRequest {
                method: call.operation.method,
                host: &url.authority(),
                path: "/",
                action: call.operation.action,
                version: call.operation.version,
                query: parameters(call, Place::Query),
                form: parameters(call, Place::Form),
                user_agent: USER_AGENT,
                date: &date(self.0.options.clock.now()),
                nonce: &nonce(),
            }
            .sign(&key);
            match self.send(&url, call, signed).await {
                // A copy of the request arrived before it. Only a call that may be carried out twice is sent again.
                Err(CallError::Api(ref error)) if error.class == ErrorClass::Nonce && again => again = false,
                other => return other,
            }
        }
    }

    async fn send(&self, url: &Url, call: &ApiCall, signed: SignedApiRequest) -> Result<Json, CallError> {
        let request = to_request(url, call.operation.method, signed).map_err(CallError::Misconfigured)?;
        let answer = match self.0.client.send(request).await {
            Ok(answer) => answer,
            Err(error) => return Err(unanswered(&error)),
        };
        let retry_after = answer.headers.text("x-acs-retry-after");
        let result = read_answer(answer.status, retry_after, &answer.body);
        self.settle_pace(result.as_ref().err());
        result.map_err(|error| CallError::Api(call.masked(error)))
    }

    fn credentials(&self, group: Group) -> &Credentials {
        let options = &self.0.options;
        options.credentials_for.get(&group).unwrap_or(&options.credentials)
    }

    /// Waits until the pace allows a call. A call that is given up while it waits takes no time from the others.
    async fn wait_for_turn(&self) {
        let _turn = self.0.turn.lock().await;
        // A throttled answer may move the time while this call sleeps.
        while let Some(at) = self.take_turn() {
            sleep_until(at).await;
        }
    }

    /// Takes the next time for a call, if it has come; otherwise returns it.
    fn take_turn(&self) -> Option<Instant> {
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now < pace.next {
            return Some(pace.next);
        }
        pace.next = now + Duration::from_secs_f64(1.0 / self.0.options.calls_per_s.max(0.001));
        None
    }

    /// Slows all calls down after a failure with a wait that the gateway named, or after a throttled one by a growing
    /// wait.
    fn settle_pace(&self, error: Option<&ApiError>) {
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let is_throttled = error.is_some_and(|error| error.class == ErrorClass::Throttled);
        pace.throttled = if is_throttled { pace.throttled.saturating_add(1) } else { 0 };
        let growing = limits::MARKET_BACKOFF_MS << pace.throttled.min(6).saturating_sub(1);
        let named = error.and_then(|error| error.retry_after_ms);
        if let Some(wait) = named.or(is_throttled.then_some(growing)) {
            let wait = Duration::from_millis(wait.min(limits::MARKET_BACKOFF_MAX_MS));
            pace.next = pace.next.max(Instant::now() + wait);
        }
    }
}

fn parameters(call: &ApiCall, place: Place) -> &[spid_core::query::Pair] {
    if call.operation.place == place { &call.parameters } else { &[] }
}

fn unanswered(error: &ClientError) -> CallError {
    match error {
        // A later call cannot correct these: an operator must change the configuration.
        ClientError::Forbidden { .. } | ClientError::NoTls(_) | ClientError::Unsendable(_) => {
            CallError::Misconfigured(error.to_string())
        }
        other => CallError::Unanswered { fault: other.to_string(), may_be_applied: other.may_have_arrived() },
    }
}

/// Makes an HTTP request of a signed one.
pub(super) fn to_request(url: &Url, method: &str, signed: SignedApiRequest) -> Result<ClientRequest, String> {
    let target = match signed.query.as_str() {
        "" => "/".to_owned(),
        query => format!("/?{query}"),
    };
    let url = url.with_target(&target).map_err(|error| error.to_string())?;
    let mut request = ClientRequest::get(url);
    request.method = if method == "GET" { Method::Get } else { Method::Post };
    request.body = signed.body.into();
    for (name, value) in signed.headers {
        request.headers.push((name.to_owned(), value));
    }
    Ok(request)
}

/// Returns the form of an instant in a header.
pub(super) fn date(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns a nonce: 128 random bits.
pub(super) fn nonce() -> String {
    let mut bytes = [0_u8; 16];
    // Without the system's generator nothing in this program works; a constant nonce is denied by the gateway.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}
