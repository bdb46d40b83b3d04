//! Sending one request, for hooks and for replays.
//!
//! Every request gets a connection of its own, and none is ever sent twice: whether a request that
//! may have arrived is sent again is the caller's decision, because only the caller knows its key. A
//! connection that is kept for reuse can be closed by the other end at the very moment it is reused,
//! and then nobody knows whether the request arrived.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::select;
use tokio::time::timeout;

use super::{Headers, Method, Unread, Url, collect};
use crate::limits;

/// How long and how much.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Time to find the host and connect to it.
    pub connect: Duration,
    /// Time for everything, from the connection to the last byte of the answer.
    pub total: Duration,
    /// Longest body of an answer, in bytes.
    pub body_max_bytes: usize,
}

impl Default for ClientOptions {
    /// As patient as a hook is allowed to be slow, and connecting as patient as our own listener.
    fn default() -> ClientOptions {
        ClientOptions {
            connect: Duration::from_millis(limits::HEADERS_READ_MS),
            total: Duration::from_millis(limits::HOOK_TIMEOUT_MS),
            body_max_bytes: limits::HOOK_ANSWER_MAX_BYTES,
        }
    }
}

/// A request to send.
#[derive(Clone)]
pub struct ClientRequest {
    /// What is asked.
    pub method: Method,
    /// Where it goes.
    pub url: Url,
    /// Header fields. `Host` is added unless it is given; the framing is ours.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl ClientRequest {
    /// A GET.
    pub fn get(url: Url) -> ClientRequest {
        ClientRequest { method: Method::Get, url, headers: Vec::new(), body: Bytes::new() }
    }

    /// A POST of `body`, whose media type is `kind`.
    pub fn post(url: Url, kind: &str, body: impl Into<Bytes>) -> ClientRequest {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        ClientRequest { method: Method::Post, url, headers, body: body.into() }
    }

    /// The request with one more header field.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> ClientRequest {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Neither query nor body nor header values: they may hold secrets.
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

/// The answer to a [`ClientRequest`], read to its end.
#[derive(Clone)]
pub struct ClientResponse {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// Without the body, which may hold a first password.
impl fmt::Debug for ClientResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientResponse")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Why there is no answer.
///
/// [`ClientError::may_have_arrived`] says what the other end may know of it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL asks for something this build cannot do.
    #[error("{url}: https is not built in yet; put a proxy that speaks TLS in between, or use http")]
    Unsupported {
        /// The URL, without its query.
        url: Url,
    },
    /// The request is not one that HTTP can carry.
    #[error("the request cannot be sent: {0}")]
    Unsendable(&'static str),
    /// Nobody could be reached.
    #[error("cannot connect to {authority}: {cause}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the system says.
        cause: io::Error,
    },
    /// No complete answer came in time.
    #[error("no complete answer from {authority} within {within:?}")]
    Late {
        /// Host and port.
        authority: String,
        /// The time that was given.
        within: Duration,
    },
    /// The body of the answer is longer than allowed.
    #[error("the answer is longer than {max_bytes} bytes")]
    TooLarge {
        /// The bound.
        max_bytes: usize,
    },
    /// The connection broke, or what came is not an HTTP answer.
    #[error("no usable answer: {0}")]
    Broken(String),
}

impl ClientError {
    /// Whether the other end may have received and acted on the request. Only if not, sending it again
    /// is certainly not sending it twice.
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, ClientError::Late { .. } | ClientError::TooLarge { .. } | ClientError::Broken(_))
    }

    fn broken(error: &hyper::Error) -> ClientError {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        ClientError::Broken(format!("{error}{}", cause.unwrap_or_default()))
    }
}

/// Sends requests. Cheap to clone: it holds no connections.
#[derive(Debug, Clone, Default)]
pub struct Client {
    options: ClientOptions,
}

impl Client {
    /// A client with the given bounds.
    pub fn new(options: ClientOptions) -> Client {
        Client { options }
    }

    /// Sends `request` once and reads the answer, whatever its status. Redirects are answers too.
    ///
    /// # Errors
    /// When there is no complete answer; see [`ClientError`].
    pub async fn send(&self, request: ClientRequest) -> Result<ClientResponse, ClientError> {
        let url = request.url.clone();
        let wire = encode(request)?;
        self.within(&url, async {
            let stream = self.connect(&url).await?;
            exchange(stream, wire, self.options.body_max_bytes).await
        })
        .await
    }

    /// Sends `bytes`, a request as it was recorded, to the host of `url` and reads one answer.
    ///
    /// # Errors
    /// When there is no complete answer; see [`ClientError`].
    pub async fn send_raw(&self, url: &Url, bytes: &[u8]) -> Result<ClientResponse, ClientError> {
        let question = question_of(bytes)?;
        self.within(url, async {
            let mut stream = self.connect(url).await?;
            // A server that refuses a request may close before it has read all of it; its answer
            // can be there nevertheless.
            let written = stream.write_all(bytes).await;
            let answer = exchange(Spoken::new(stream), question, self.options.body_max_bytes).await;
            match written {
                Err(error) if answer.is_err() => Err(ClientError::Broken(error.to_string())),
                _ => answer,
            }
        })
        .await
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

    async fn connect(&self, url: &Url) -> Result<TcpStream, ClientError> {
        if url.is_secure() {
            return Err(ClientError::Unsupported { url: url.clone() });
        }
        let connected = timeout(self.options.connect, TcpStream::connect((url.host(), url.port()))).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let failed = |cause| ClientError::Connect { authority: url.authority(), cause };
        let stream = stream.map_err(failed)?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

fn encode(request: ClientRequest) -> Result<hyper::Request<Full<Bytes>>, ClientError> {
    let mut headers = Headers::default();
    for (name, value) in &request.headers {
        headers
            .append(name, value)
            .ok_or(ClientError::Unsendable("a header has a name or a value HTTP forbids"))?;
    }
    let mut headers = headers.0;
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        return Err(ClientError::Unsendable(
            "its framing (Content-Length, Transfer-Encoding) is not to be given",
        ));
    }
    if !headers.contains_key(HOST) {
        let host = HeaderValue::try_from(request.url.authority());
        headers.insert(HOST, host.map_err(|_| ClientError::Unsendable("the host does not fit a header"))?);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut wire = hyper::Request::new(Full::new(request.body));
    *wire.method_mut() = wire_method(request.method.as_str())?;
    *wire.uri_mut() = request.url.target;
    *wire.headers_mut() = headers;
    Ok(wire)
}

fn wire_method(name: &str) -> Result<hyper::Method, ClientError> {
    hyper::Method::from_bytes(name.as_bytes())
        .map_err(|_| ClientError::Unsendable("its method has a character no method has"))
}

/// The request hyper is to believe it has sent: of the recorded one only the method matters for reading
/// the answer, since one to HEAD has no body.
fn question_of(bytes: &[u8]) -> Result<hyper::Request<Full<Bytes>>, ClientError> {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    // Garbage may be what is replayed; whatever answers it answers as to a GET.
    let method = hyper::Method::from_bytes(method).unwrap_or(hyper::Method::GET);
    if bytes.is_empty() {
        return Err(ClientError::Unsendable("it is empty"));
    }
    let mut question = hyper::Request::new(Full::default());
    *question.method_mut() = method;
    Ok(question)
}

/// One request, one answer, on a connection of their own.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: hyper::Request<Full<Bytes>>,
    max_bytes: usize,
) -> Result<ClientResponse, ClientError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(limits::HEADERS_MAX_BYTES);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(io)).await.map_err(|error| ClientError::broken(&error))?;
    let mut talk = pin!(async {
        let response = sender.send_request(request).await.map_err(|error| ClientError::broken(&error))?;
        let (head, body) = response.into_parts();
        let body = collect(body, max_bytes).await.map_err(|unread| match unread {
            Unread::TooLarge => ClientError::TooLarge { max_bytes },
            Unread::Broken(error) => ClientError::broken(&error),
        })?;
        Ok(ClientResponse { status: head.status.as_u16(), headers: Headers(head.headers), body })
    });
    let mut connection = pin!(connection);
    // `talk` speaks through `connection`, which has to be driven; its own end shows in `talk`.
    select! {
        biased;
        answer = talk.as_mut() => answer,
        _ = connection.as_mut() => talk.await,
    }
}

/// A socket on which the request has been spoken already: what hyper writes is dropped, so that it
/// reads the answer to bytes it could never have written itself.
struct Spoken {
    stream: TcpStream,
    /// hyper has "sent" its request. An answer it saw earlier would be one to no question, an error.
    asked: bool,
    reader: Option<Waker>,
}

impl Spoken {
    fn new(stream: TcpStream) -> Spoken {
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
            let error = encode(request.clone().with_header(name, value)).unwrap_err();
            assert!(!error.may_have_arrived(), "{error}");
        }
        let request = ClientRequest { method: Method::Other("GE T".to_owned()), ..request };
        assert!(encode(request).unwrap_err().to_string().contains("method"));
    }

    #[test]
    fn the_host_is_the_urls_unless_given() {
        let wire = encode(ClientRequest::get(url("http://[::1]:81/x?y=%20"))).unwrap();
        assert_eq!(
            (wire.headers()[HOST].as_bytes(), wire.uri().to_string()),
            (&b"[::1]:81"[..], "/x?y=%20".into())
        );
        let wire =
            encode(ClientRequest::get(url("http://[::1]/")).with_header("host", "isv.example")).unwrap();
        assert_eq!(wire.headers()[HOST], "isv.example");
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
