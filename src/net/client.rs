//! Client that sends one request, for hooks and for replays.
//!
//! This module never sends a request twice after it may have arrived. Only the caller knows the idempotency key, so the
//! caller decides about a retry.
//!
//! A connection may be kept for the next request ([`ClientOptions::keep`]); the pool is hyper-util's. Its own retries are
//! off. If the server has closed a kept connection *before* a byte of the request was written, hyper gives the request
//! back, and it goes over another connection. If the server closes it during the write, spid cannot know if the request
//! arrived, and the error says so.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use tokio::time::timeout;

use super::connect::Connector;
use super::{Headers, Method, NoTls, OutboundPolicy, Tls, Unread, Url, collect, raw};
use crate::observe::limits;

/// Options for the client: limits of time and size, allowed addresses, trust, kept connections.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Time limit to resolve the host, to connect to it and to finish the TLS handshake.
    pub connect: Duration,
    /// Time limit for everything, from the connection to the last byte of the response.
    pub total: Duration,
    /// Maximum size of a response body, in bytes.
    pub body_max_bytes: usize,
    /// Addresses that the client may connect to.
    pub outbound: OutboundPolicy,
    /// Certificate authorities trusted over https. Default: the system's roots, read at first use.
    pub tls: Option<Tls>,
    /// Maximum number of connections to one host kept for the next request; with 0 every request opens its own.
    pub keep: usize,
    /// Addresses of hosts that are not to be resolved by the system. Empty, except in tests.
    pub hosts: HashMap<String, Vec<IpAddr>>,
}

impl Default for ClientOptions {
    /// The time limit of a hook for the whole request, and the header limit of our own listener for the connection.
    fn default() -> ClientOptions {
        ClientOptions {
            connect: Duration::from_millis(limits::HEADERS_READ_MS),
            total: Duration::from_millis(limits::HOOK_TIMEOUT_MS),
            body_max_bytes: limits::HOOK_ANSWER_MAX_BYTES,
            outbound: OutboundPolicy::default(),
            tls: None,
            keep: 0,
            hosts: HashMap::new(),
        }
    }
}

/// A request to send.
#[derive(Clone)]
pub struct ClientRequest {
    /// The method.
    pub method: Method,
    /// The URL that the request goes to.
    pub url: Url,
    /// Header fields. `Host` is added unless given; the client sets the framing headers itself.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl ClientRequest {
    /// Returns a GET request.
    pub fn get(url: Url) -> ClientRequest {
        ClientRequest { method: Method::Get, url, headers: Vec::new(), body: Bytes::new() }
    }

    /// Returns a POST request with `body`, whose media type is `kind`.
    pub fn post(url: Url, kind: &str, body: impl Into<Bytes>) -> ClientRequest {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        ClientRequest { method: Method::Post, url, headers, body: body.into() }
    }

    /// Adds one header field.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> ClientRequest {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Shows no query, no body and no header values, because they may hold secrets.
impl fmt::Debug for ClientRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ClientRequest")
            .field("method", &self.method)
            .field("url", &self.url)
            .field("headers", &names)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// The response to a [`ClientRequest`], read to its end.
#[derive(Clone)]
pub struct ClientResponse {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

impl ClientResponse {
    /// Returns the wait that the server asks for (`Retry-After`): seconds, or a date that is compared with `now`.
    /// Returns `None` if the header is missing or not valid HTTP.
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.headers.text("retry-after")?.trim();
        // A number of seconds too large for `u64` is still a valid number: it means the longest wait.
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        // The last HTTP date lies a day after the last `Timestamp`; none lies before 1970.
        let at = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).unwrap_or(Timestamp::MAX);
        Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
    }
}

/// Shows no body, which may hold an initial password.
impl fmt::Debug for ClientResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientResponse")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Reasons why a request got no response.
///
/// [`ClientError::may_have_arrived`] returns true if the server may have received the request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// TLS cannot be set up.
    #[error("{0}")]
    NoTls(NoTls),
    /// The host has addresses, and [`OutboundPolicy`] allows none of them.
    #[error("connection to {authority} is forbidden: {address} is {why}")]
    Forbidden {
        /// Host and port.
        authority: String,
        /// The last address that was checked.
        address: IpAddr,
        /// Reason why the address is forbidden.
        why: &'static str,
    },
    /// The request is not one that HTTP can carry.
    #[error("the request cannot be sent: {0}")]
    Unsendable(&'static str),
    /// No address of the host accepted a connection.
    #[error("cannot connect to {authority}: {cause}")]
    Connect {
        /// Host and port.
        authority: String,
        /// Text of the operating system's or the TLS error.
        cause: String,
    },
    /// The server closed the connection before a byte of the request was written.
    #[error("{authority} closed the connection before the request was sent")]
    Unsent {
        /// Host and port.
        authority: String,
    },
    /// No complete response came within the time limit.
    #[error("no complete response from {authority} within {within:?}")]
    Late {
        /// Host and port.
        authority: String,
        /// The time limit.
        within: Duration,
    },
    /// The body of the response is longer than allowed.
    #[error("the response is longer than {max_bytes} bytes")]
    TooLarge {
        /// The limit, in bytes.
        max_bytes: usize,
    },
    /// The connection broke, or the received bytes are not an HTTP response.
    #[error("no usable HTTP response: {0}")]
    Broken(String),
}

impl ClientError {
    /// Returns true if the server may have received the request and acted on it. Only if this is false, a retry
    /// certainly does not send the request twice.
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, ClientError::Late { .. } | ClientError::TooLarge { .. } | ClientError::Broken(_))
    }

    pub(super) fn broken(error: &hyper::Error) -> ClientError {
        let cause = error.source().map(|cause| format!(": {cause}"));
        ClientError::Broken(format!("{error}{}", cause.unwrap_or_default()))
    }

    /// Finds the reason in an error of the pool: of the connector, or of hyper.
    fn from_pool(url: &Url, error: &legacy::Error) -> ClientError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(known) = error.downcast_ref::<ClientError>() {
                return known.clone();
            }
            if let Some(error) = error.downcast_ref::<hyper::Error>() {
                // hyper cancels only requests that it still has whole, and gives them back to the pool.
                let unsent = error.is_canceled() || error.is_closed();
                return if unsent {
                    ClientError::Unsent { authority: url.authority() }
                } else {
                    ClientError::broken(error)
                };
            }
            cause = error.source();
        }
        ClientError::Broken(error.to_string())
    }
}

/// A client request in hyper's form.
pub(super) type WireRequest = hyper::Request<Full<Bytes>>;

/// An HTTP client. Clones share the kept connections.
#[derive(Debug, Clone, Default)]
pub struct Client(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    options: ClientOptions,
    // Two transports, so that trusted roots are read only if an https URL is called.
    plain: OnceLock<Transport>,
    secure: OnceLock<Transport>,
}

/// Opens connections, and keeps them for the next request.
#[derive(Debug)]
struct Transport {
    connector: Connector,
    pool: legacy::Client<Connector, Full<Bytes>>,
}

impl Transport {
    fn new(options: &ClientOptions, connector: Connector) -> Transport {
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_millis(limits::HOOK_IDLE_MS))
            .pool_max_idle_per_host(options.keep)
            .http1_max_buf_size(limits::HEADERS_MAX_BYTES)
            // `Host` is set with the other headers.
            .set_host(false)
            // Only `Client::exchange` sends a request again, where a reader sees it.
            .retry_canceled_requests(false)
            .build(connector.clone());
        Transport { connector, pool }
    }
}

impl Client {
    /// Creates a client with the given options.
    pub fn new(options: ClientOptions) -> Client {
        Client(Arc::new(Shared { options, ..Shared::default() }))
    }

    /// Sends `request` once and reads the response, with any status. The client does not follow redirects.
    ///
    /// # Errors
    /// Fails if there is no complete response; see [`ClientError`].
    pub async fn send(&self, request: ClientRequest) -> Result<ClientResponse, ClientError> {
        let options = &self.0.options;
        let url = request.url.clone();
        let wire = encode(request, options.keep > 0)?;
        self.within(&url, async { read(self.exchange(&url, wire).await?, options.body_max_bytes).await })
            .await
    }

    /// Sends `bytes`, a recorded request, to the host of `url` and reads one response.
    ///
    /// # Errors
    /// Fails if there is no complete response; see [`ClientError`].
    pub async fn send_raw(&self, url: &Url, bytes: &[u8]) -> Result<ClientResponse, ClientError> {
        let claimed = raw::claimed_request(bytes)?;
        self.within(url, async {
            let stream = self.transport(url)?.connector.clone().connect(url.uri.clone()).await?;
            raw::send(stream, bytes, claimed, self.0.options.body_max_bytes).await
        })
        .await
    }

    /// Sends the request over a kept connection or a new one. Takes another connection if no byte was written.
    async fn exchange(&self, url: &Url, wire: WireRequest) -> Result<hyper::Response<Incoming>, ClientError> {
        let pool = &self.transport(url)?.pool;
        // Without kept connections, none can be closed already.
        let mut more = if self.0.options.keep == 0 { 0 } else { limits::HOOK_UNSENT_MAX_COUNT };
        loop {
            let error = match pool.request(wire.clone()).await {
                Ok(response) => return Ok(response),
                Err(error) => ClientError::from_pool(url, &error),
            };
            // Anything but `Unsent` may have arrived, or fails again.
            if more == 0 || !matches!(error, ClientError::Unsent { .. }) {
                return Err(error);
            }
            more -= 1;
        }
    }

    async fn within<T>(
        &self,
        url: &Url,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let within = self.0.options.total;
        match timeout(within, work).await {
            Ok(done) => done,
            Err(_) => Err(ClientError::Late { authority: url.authority(), within }),
        }
    }

    fn transport(&self, url: &Url) -> Result<&Transport, ClientError> {
        let Shared { options, plain, secure } = &*self.0;
        let transport = if url.is_secure() { secure } else { plain };
        if let Some(transport) = transport.get() {
            return Ok(transport);
        }
        // TLS is set up before any connection: without trusted roots there is no reason to connect.
        let connector = Connector::new(options, url.is_secure()).map_err(ClientError::NoTls)?;
        Ok(transport.get_or_init(|| Transport::new(options, connector)))
    }
}

fn encode(request: ClientRequest, keep: bool) -> Result<WireRequest, ClientError> {
    let mut headers = Headers::default();
    for (name, value) in &request.headers {
        headers.append(name, value).ok_or(ClientError::Unsendable(
            "a header name or value contains a character that HTTP forbids",
        ))?;
    }
    let mut headers = headers.0;
    // hyper derives the framing from the body. A second length could let the server split the request at another place.
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        return Err(ClientError::Unsendable(
            "spid sets Content-Length and Transfer-Encoding itself: remove these headers",
        ));
    }
    if !headers.contains_key(HOST) {
        let host = HeaderValue::try_from(request.url.authority());
        headers
            .insert(HOST, host.map_err(|_| ClientError::Unsendable("the host cannot be sent in a header"))?);
    }
    if !keep {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut wire = hyper::Request::new(Full::new(request.body));
    *wire.method_mut() = wire_method(request.method.as_str())?;
    *wire.uri_mut() = request.url.uri;
    *wire.headers_mut() = headers;
    Ok(wire)
}

fn wire_method(name: &str) -> Result<hyper::Method, ClientError> {
    hyper::Method::from_bytes(name.as_bytes()).map_err(|_| {
        ClientError::Unsendable("the method contains a character that is not allowed in a method")
    })
}

/// Reads a response of at most `max_bytes` to its end.
pub(super) async fn read(
    answer: hyper::Response<Incoming>,
    max_bytes: usize,
) -> Result<ClientResponse, ClientError> {
    let (head, body) = answer.into_parts();
    let body = collect(body, max_bytes).await.map_err(|unread| match unread {
        Unread::TooLarge => ClientError::TooLarge { max_bytes },
        Unread::Broken(error) => ClientError::broken(&error),
    })?;
    Ok(ClientResponse { status: head.status.as_u16(), headers: Headers(head.headers), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_sent_is_refused_before_connecting() {
        let request = ClientRequest::get(url("http://isv.example/"));
        for (name, value) in [("x", "a\r\nb: c"), ("bad name", "x"), ("Content-Length", "3")] {
            let error = encode(request.clone().with_header(name, value), false).unwrap_err();
            assert!(!error.may_have_arrived(), "{error}");
        }
        let request = ClientRequest { method: Method::Other("GE T".to_owned()), ..request };
        assert!(encode(request, false).unwrap_err().to_string().contains("method"));
    }

    #[test]
    fn the_host_is_the_urls_unless_given() {
        let wire = encode(ClientRequest::get(url("http://[::1]:81/x?y=%20")), true).unwrap();
        assert_eq!(
            (wire.headers()[HOST].as_bytes(), wire.uri().to_string()),
            (&b"[::1]:81"[..], "http://[::1]:81/x?y=%20".into())
        );
        let wire = encode(ClientRequest::get(url("http://[::1]/")).with_header("host", "isv.example"), true)
            .unwrap();
        assert_eq!(wire.headers()[HOST], "isv.example");
    }

    #[test]
    fn a_server_may_ask_to_be_left_alone() {
        let now = "1994-11-06T08:49:00Z".parse().unwrap();
        let asks = |text: &str| {
            let mut headers = Headers::default();
            headers.append("Retry-After", text).unwrap();
            ClientResponse { status: 503, headers, body: Bytes::new() }.retry_after(now)
        };
        for (text, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
            ("Sun Nov  6 08:49:37 1994", Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(asks(text), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn debug_shows_no_secrets() {
        let request = ClientRequest::post(url("http://isv.example/spi?token=sesame"), "text/plain", "sesame")
            .with_header("authorization", "sesame");
        assert!(!format!("{request:?}").contains("sesame"));
        let response = ClientResponse { status: 200, headers: Headers::default(), body: "sesame".into() };
        assert!(!format!("{response:?}").contains("sesame"));
    }
}
