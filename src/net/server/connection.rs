//! One connection: the TLS handshake, its requests, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::service::service_fn;
use hyper::{Method as WireMethod, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tracing::{debug, error};

use super::reject::{HttpFault, denial_of_error, denial_of_timeout};
use super::timeouts::{ConnectionState, Phase};
use super::{Handler, Server, ServerOptions, lock};
use crate::net::{Method, Request, Response, ServerTls, Unread, collect};

/// A connection slot. A drop removes the connection from the server and returns its permit.
pub(super) struct ConnectionSlot<H: Handler> {
    server: Arc<Server<H>>,
    state: Arc<ConnectionState>,
    id: u64,
    // Fields drop after `Drop::drop`: the connection leaves `states` first, and then its permit becomes free.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<H: Handler> ConnectionSlot<H> {
    pub(super) fn take(
        server: Arc<Server<H>>,
        peer: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> ConnectionSlot<H> {
        let state = Arc::new(ConnectionState::new(peer));
        let id = server.next_connection.fetch_add(1, Ordering::Relaxed);
        lock(&server.states).insert(id, state.clone());
        ConnectionSlot { server, state, id, _permit: permit }
    }

    /// Counts the end of a connection, if the server denied it.
    fn count(&self, why: Option<HttpFault>) {
        if let Some(why) = why {
            self.server.handler.turned_away(why, self.state.peer);
        }
    }
}

impl<H: Handler> Drop for ConnectionSlot<H> {
    fn drop(&mut self) {
        lock(&self.server.states).remove(&self.id);
    }
}

/// Serves one connection until it ends, is told to end, or exceeds a time limit.
pub(super) async fn serve_connection<H: Handler>(stream: TcpStream, slot: ConnectionSlot<H>) {
    // Responses are small and complete, so Nagle's delay only adds latency.
    let _ = stream.set_nodelay(true);
    match &slot.server.options.tls {
        None => converse(stream, &slot).await,
        Some(tls) => {
            if let Some(stream) = shake_hands(tls, stream, &slot).await {
                converse(stream, &slot).await;
            }
        }
    }
}

/// Runs the TLS handshake, within the time limit of the first headers.
async fn shake_hands<H: Handler>(
    tls: &ServerTls,
    stream: TcpStream,
    slot: &ConnectionSlot<H>,
) -> Option<Box<TlsStream<TcpStream>>> {
    let due = slot.state.progress().1 + slot.server.options.headers_read;
    let failed = select! {
        biased;
        shaken = tls.accept(stream) => match shaken {
            Ok(stream) => return Some(Box::new(stream)),
            // A peer that only disconnected did nothing wrong.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => None,
            Err(error) => {
                debug!(peer = %slot.state.peer, %error, "TLS handshake failed");
                Some(HttpFault::TlsFailed)
            }
        },
        () = sleep_until(due) => Some(HttpFault::TlsLate),
        () = slot.state.wake_up.notified() => None,
    };
    slot.count(failed);
    None
}

/// Serves HTTP on one connection until it ends, is told to end, or exceeds a time limit.
async fn converse<H: Handler>(stream: impl AsyncRead + AsyncWrite + Unpin, slot: &ConnectionSlot<H>) {
    let (server, state) = (&slot.server, &slot.state);
    let wire = TokioIo::new(Wire::new(stream, state.clone(), server.options.body_max_bytes));
    let service = service_fn(|request| answer(server, state, request));
    let mut connection = pin!(server.builder.serve_connection(wire, service));
    let mut timer = pin!(sleep_until(state.progress().1 + server.options.headers_read));
    loop {
        // The order matters: `poll_overdue` must see the phase after the connection was polled.
        select! {
            biased;
            ended = connection.as_mut() => return slot.count(ended.err().and_then(|error| denial_of_error(&error))),
            phase = poll_fn(|cx| state.poll_overdue(&server.options, timer.as_mut(), cx)) => {
                return slot.count(denial_of_timeout(phase));
            }
            () = state.wake_up.notified() => {
                // A request in flight is completed; hyper then closes the connection.
                if state.progress().0.may_be_cut() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Handles one request. The work is created here and not at the first poll. If hyper drops this future, the work
/// continues detached.
fn answer<H: Handler>(
    server: &Arc<Server<H>>,
    state: &Arc<ConnectionState>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<hyper::Response<Full<Bytes>>, Infallible>> + use<H> {
    let (attached, state) = (server.begin(state.clone(), request), state.clone());
    async move {
        let mut response = to_wire(attached.await);
        // Read after the handler, because a stop may have begun while it ran.
        if state.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        state.enter(Phase::Answer);
        Ok(response)
    }
}

pub(super) async fn receive(
    options: &ServerOptions,
    state: &ConnectionState,
    request: hyper::Request<Incoming>,
) -> Result<Request, HttpFault> {
    // Cheap checks on the head come before the body is read.
    if uri_length(request.uri()) > options.uri_max_bytes {
        return Err(HttpFault::UriTooLong);
    }
    if *request.method() == WireMethod::CONNECT {
        return Err(HttpFault::NoProxy);
    }
    if !is_plainly_framed(request.headers()) || !names_one_host(&request) {
        return Err(HttpFault::Malformed);
    }
    let (mut request, body) = Request::from_wire(request, state.peer);
    if body.is_end_stream() {
        return Ok(request);
    }
    if matches!(request.method, Method::Get | Method::Head) {
        return Err(HttpFault::BodyUnexpected);
    }
    state.enter(Phase::Body);
    let body = timeout(options.body_read, collect(body, options.body_max_bytes)).await;
    request.body = body.map_err(|_| HttpFault::BodyLate)?.map_err(|unread| match unread {
        Unread::TooLarge => HttpFault::BodyTooLarge,
        Unread::Broken(_) => HttpFault::BodyBroken,
    })?;
    Ok(request)
}

/// Returns false for a transfer coding other than a single `chunked`. Such a coding would stay in the body, and a proxy
/// in front of spid may have read another framing. If a request has both framings, hyper keeps `chunked`, removes the
/// length, and closes the connection after the response.
fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// Returns false for two `Host` headers, and for an HTTP/1.1 request without one (RFC 9112, 3.2). A proxy in front of spid
/// may have read the other one.
fn names_one_host(request: &hyper::Request<Incoming>) -> bool {
    let count = request.headers().get_all(HOST).iter().count();
    count == 1 || count == 0 && request.version() == Version::HTTP_10
}

fn uri_length(uri: &hyper::Uri) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    target + uri.authority().map_or(0, |authority| authority.as_str().len())
}

fn to_wire(response: Response) -> hyper::Response<Full<Bytes>> {
    encode(response).unwrap_or_else(|what| {
        error!(what, "the handler's response cannot be sent; responding with 500");
        plain_500()
    })
}

fn plain_500() -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::default());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn encode(response: Response) -> Result<hyper::Response<Full<Bytes>>, &'static str> {
    let status = StatusCode::from_u16(response.status).ok().filter(|status| !status.is_informational());
    let mut headers = HeaderMap::with_capacity(response.headers.len() + 1);
    for (name, value) in &response.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header name is not valid")?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| "a header value contains a line break or another control character")?;
        // The handler does not control the framing: hyper derives it from the body that is sent.
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING {
            headers.append(name, value);
        }
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let mut wire = hyper::Response::new(Full::new(response.body));
    *wire.status_mut() = status.ok_or("the status is not between 200 and 999")?;
    *wire.headers_mut() = headers;
    Ok(wire)
}

/// The socket given to hyper. It reports progress to the connection state, and lingers before it closes.
struct Wire<S> {
    stream: S,
    state: Arc<ConnectionState>,
    /// True once the peer has closed its side.
    ended: bool,
    shut: bool,
    /// Number of bytes that are still discarded before the connection is cut.
    discard: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S, state: Arc<ConnectionState>, discard: usize) -> Wire<S> {
        Wire { stream, state, ended: false, shut: false, discard }
    }

    /// Discards the bytes that the peer still sends, until the peer closes too. A socket closed with unread bytes
    /// resets the connection, and the reset can overtake the response that explains the close.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0u8; 2048];
        // `discard` bounds the bytes, and the time limit of `Phase::Closing` bounds the wait.
        while !self.ended && self.discard > 0 && !self.state.is_told_to_end() {
            let mut buf = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            self.ended = read.is_err() || buf.filled().is_empty();
            self.discard = self.discard.saturating_sub(buf.filled().len());
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            self.ended = true;
        } else {
            self.state.moves(Phase::Idle, Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes once it has written everything, so the peer now has its response.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.state.moves(Phase::Answer, Phase::Idle);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Our side closes first: the peer sees the end of the response, and the server then waits for the peer's end.
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
            self.state.enter(Phase::Closing);
        }
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_sent_becomes_a_500() {
        for response in [
            Response::redirect("https://isv.example/\r\nset-cookie: a=b"),
            Response::empty(200).with_header("bad name", "x"),
            Response::empty(101),
            Response::empty(42),
        ] {
            assert!(encode(response.clone()).is_err(), "{response:?}");
            assert_eq!(to_wire(response).status(), 500);
        }
    }

    #[test]
    fn answers_are_not_cached_unless_they_say_so() {
        let wire = to_wire(Response::json(200, "{}"));
        assert_eq!(wire.headers()[CACHE_CONTROL], "no-store");
        let wire = to_wire(Response::text(200, "x").with_header("Cache-Control", "max-age=60"));
        assert_eq!(wire.headers()[CACHE_CONTROL], "max-age=60");
        assert_eq!(wire.headers().get_all(CACHE_CONTROL).iter().count(), 1);
    }

    #[test]
    fn framing_is_not_the_handlers_business() {
        let response = Response::text(200, "abc").with_header("Content-Length", "99");
        let wire = to_wire(response.with_header("transfer-encoding", "chunked"));
        assert!(
            !wire.headers().contains_key(CONTENT_LENGTH) && !wire.headers().contains_key(TRANSFER_ENCODING)
        );
    }
}
