//! Client that sends one request, for hooks and for replays.
//!
//! This module never sends a request twice after it may have arrived. Only the caller knows the idempotency key, so the
//! caller decides about a retry.
//!
//! A connection may be kept for the next request ([`ClientOptions::keep`]). If the server has closed it *before* a byte
//! of the request was written, the request goes over a new connection. If the server closes it during the write, spid
//! cannot know if the request arrived, and the error says so.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::link::{Connection, PendingRequest, Pool, Unanswered};
use super::{Headers, Method, NoTls, Reach, Tls, Unread, Url, collect};
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
    pub reach: Reach,
    /// Certificate authorities trusted over https. Default: the system's roots, read at first use.
    pub tls: Option<Tls>,
    /// Maximum number of connections kept for the next request; with 0 every request opens its own.
    pub keep: usize,
}

impl Default for ClientOptions {
    /// The time limit of a hook for the whole request, and the header limit of our own listener for the connection.
    fn default() -> ClientOptions {
        ClientOptions {
            connect: Duration::from_millis(limits::HEADERS_READ_MS),
            total: Duration::from_millis(limits::HOOK_TIMEOUT_MS),
            body_max_bytes: limits::HOOK_ANSWER_MAX_BYTES,
            reach: Reach::default(),
            tls: None,
            keep: 0,
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
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS cannot be set up.
    #[error("{0}")]
    NoTls(NoTls),
    /// The host has addresses, and [`Reach`] allows none of them.
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
        /// Error of the operating system.
        cause: io::Error,
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
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        ClientError::Broken(format!("{error}{}", cause.unwrap_or_default()))
    }
}

/// An HTTP client. Clones share the kept connections.
#[derive(Debug, Clone, Default)]
pub struct Client {
    options: ClientOptions,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tls: OnceLock<Tls>,
    kept: Pool,
}

impl Client {
    /// Creates a client with the given options.
    pub fn new(options: ClientOptions) -> Client {
        Client { options, shared: Arc::default() }
    }

    /// Sends `request` once and reads the response, with any status. The client does not follow redirects.
    ///
    /// # Errors
    /// Fails if there is no complete response; see [`ClientError`].
    pub async fn send(&self, request: ClientRequest) -> Result<ClientResponse, ClientError> {
        let url = request.url.clone();
        let question = encode(request, self.options.keep > 0)?;
        self.within(&url, async {
            let (link, answer) = self.ask(&url, question).await?;
            let answer = read(answer, self.options.body_max_bytes).await?;
            // Only a connection whose response was read to its end is kept: unread bytes would mix with the next
            // response.
            self.shared.kept.put(&url, link, self.options.keep);
            Ok(answer)
        })
        .await
    }

    /// Sends `bytes`, a recorded request, to the host of `url` and reads one response.
    ///
    /// # Errors
    /// Fails if there is no complete response; see [`ClientError`].
    pub async fn send_raw(&self, url: &Url, bytes: &[u8]) -> Result<ClientResponse, ClientError> {
        let question = question_of(bytes)?;
        self.within(url, async {
            let mut stream = self.connect(url).await?;
            // A server that denies a request may close before it has read all of it. Its response may still be
            // readable, so a failed write does not end the exchange.
            let written = async {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            .await;
            let answer = async {
                let (_link, answer) = ask_over(Spoken::new(stream), question).await?;
                read(answer, self.options.body_max_bytes).await
            }
            .await;
            match written {
                Err(error) if answer.is_err() => Err(ClientError::Broken(error.to_string())),
                _ => answer,
            }
        })
        .await
    }

    /// Sends the request over a kept connection. Opens a new one if none is kept, or if the request was never written.
    async fn ask(
        &self,
        url: &Url,
        question: PendingRequest,
    ) -> Result<(Connection, hyper::Response<Incoming>), ClientError> {
        let Some(mut link) = self.shared.kept.take(url, self.options.connect).await else {
            return ask_over(self.connect(url).await?, question).await;
        };
        match link.ask(question).await {
            Ok(answer) => Ok((link, answer)),
            // No byte of the request was written, so this cannot send it twice.
            Err(Unanswered::LookupError(question)) => ask_over(self.connect(url).await?, question).await,
            Err(Unanswered::Broken(error)) => Err(error),
        }
    }

    async fn within<T>(
        &self,
        url: &Url,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let within = self.options.total;
        let late = |_| ClientError::Late { authority: url.authority(), within };
        timeout(within, work).await.map_err(late)?
    }

    async fn connect(&self, url: &Url) -> Result<Box<dyn Stream>, ClientError> {
        let connected = timeout(self.options.connect, self.reach(url)).await;
        connected.unwrap_or_else(|_| Err(unreachable(url, io::ErrorKind::TimedOut.into())))
    }

    async fn reach(&self, url: &Url) -> Result<Box<dyn Stream>, ClientError> {
        // TLS is set up first: without trusted roots there is no reason to connect.
        let tls = if url.is_secure() { Some(self.tls()?) } else { None };
        let stream = self.connect_tcp(url).await?;
        // A request is small and complete, so Nagle's delay only adds latency.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let stream = tls.connect(url.host(), stream).await.map_err(|cause| unreachable(url, cause))?;
        Ok(Box::new(stream))
    }

    /// Tries the addresses of the host in order, except the forbidden ones.
    async fn connect_tcp(&self, url: &Url) -> Result<TcpStream, ClientError> {
        let found = lookup_host((url.host(), url.port())).await.map_err(|cause| unreachable(url, cause))?;
        let mut failed = unreachable(url, io::Error::other("the name has no address"));
        for address in found {
            failed = match self.connect_to(url, address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
        }
        Err(failed)
    }

    async fn connect_to(&self, url: &Url, address: SocketAddr) -> Result<TcpStream, ClientError> {
        // The check uses the resolved address that the next line connects to, not the name.
        if let Some(why) = self.options.reach.forbids(address.ip(), url.is_secure()) {
            return Err(ClientError::Forbidden { authority: url.authority(), address: address.ip(), why });
        }
        TcpStream::connect(address).await.map_err(|cause| unreachable(url, cause))
    }

    /// Returns the configured TLS, or one with the system's roots, which is created at first use.
    fn tls(&self) -> Result<Tls, ClientError> {
        if let Some(tls) = self.options.tls.as_ref().or_else(|| self.shared.tls.get()) {
            return Ok(tls.clone());
        }
        let tls = Tls::new(None).map_err(ClientError::NoTls)?;
        Ok(self.shared.tls.get_or_init(|| tls).clone())
    }
}

/// A plain or encrypted byte stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn unreachable(url: &Url, cause: io::Error) -> ClientError {
    ClientError::Connect { authority: url.authority(), cause }
}

fn encode(request: ClientRequest, keep: bool) -> Result<PendingRequest, ClientError> {
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
    *wire.uri_mut() = request.url.target;
    *wire.headers_mut() = headers;
    Ok(wire)
}

fn wire_method(name: &str) -> Result<hyper::Method, ClientError> {
    hyper::Method::from_bytes(name.as_bytes()).map_err(|_| {
        ClientError::Unsendable("the method contains a character that is not allowed in a method")
    })
}

/// Builds the request that hyper believes it sends. Only the method of the recorded request matters for the response: a
/// response to HEAD has no body.
fn question_of(bytes: &[u8]) -> Result<PendingRequest, ClientError> {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    // The recorded bytes may be garbage. A server responds to garbage as it does to a GET.
    let method = hyper::Method::from_bytes(method).unwrap_or(hyper::Method::GET);
    if bytes.is_empty() {
        return Err(ClientError::Unsendable("the recorded request is empty"));
    }
    let mut question = hyper::Request::new(Full::default());
    *question.method_mut() = method;
    Ok(question)
}

/// Sends a request over a new connection.
async fn ask_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    question: PendingRequest,
) -> Result<(Connection, hyper::Response<Incoming>), ClientError> {
    let mut link = Connection::open(stream).await?;
    match link.ask(question).await {
        Ok(answer) => Ok((link, answer)),
        Err(Unanswered::LookupError(_)) => Err(ClientError::Broken(
            "the server closed the connection before the request was sent".to_owned(),
        )),
        Err(Unanswered::Broken(error)) => Err(error),
    }
}

async fn read(answer: hyper::Response<Incoming>, max_bytes: usize) -> Result<ClientResponse, ClientError> {
    let (head, body) = answer.into_parts();
    let body = collect(body, max_bytes).await.map_err(|unread| match unread {
        Unread::TooLarge => ClientError::TooLarge { max_bytes },
        Unread::Broken(error) => ClientError::broken(&error),
    })?;
    Ok(ClientResponse { status: head.status.as_u16(), headers: Headers(head.headers), body })
}

/// Socket on which the request has already been sent. Writes of hyper are dropped, so that hyper reads the response to
/// bytes that it could never have written itself.
struct Spoken {
    stream: Box<dyn Stream>,
    /// Set once hyper has "sent" its request. hyper treats a response that arrives before its request as an error.
    asked: bool,
    reader: Option<Waker>,
}

impl Spoken {
    fn new(stream: Box<dyn Stream>) -> Spoken {
        Spoken { stream, asked: false, reader: None }
    }
}

impl AsyncRead for Spoken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.asked {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Spoken {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
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
            (&b"[::1]:81"[..], "/x?y=%20".into())
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
