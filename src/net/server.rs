//! HTTP server: the accept loop, which no error ends, and the limits on each connection.
//!
//! The server has three parts. [`serve`] accepts connections, makes room for them and drains them at a stop. A [`ConnectionState`]
//! is the state of one connection: its phase, since when, and if it was told to end. `answer` is the path of one
//! request: receive it whole, run the handler inside a panic catcher, send the response.
//!
//! The state's own clock bounds every wait for a peer; hyper's header timer is off. So one rule covers headers, idle
//! connections, responses that the peer does not read, and the end of a connection. No timer is created per request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method as WireMethod, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};

use super::{Method, Request, Response, ServerTls, Unread, collect};
use crate::observe::limits;

/// A handler of requests.
///
/// The server clones the handler for each request and expects the same response of every clone, so keep shared state
/// behind an `Arc`. A plain `async` closure that implements `Clone` is a handler too.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Handles one request.
    ///
    /// The future runs to its end even if the peer disconnects meanwhile, because its work may concern more than this
    /// peer. Only the end of `stop_within` aborts it. A panic is answered with 500 and an empty body, and affects no
    /// other request.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Counts a connection or request that was denied before it became a [`Request`].
    fn turned_away(&self, why: HttpFault, peer: SocketAddr) {
        let _ = (why, peer);
    }
}

impl<F, A> Handler for F
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send,
{
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        self(request)
    }
}

/// HTTP faults: reasons why the server denied a connection or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpFault {
    /// The received bytes are not HTTP/1: 400.
    Malformed,
    /// Too many header fields, or too many bytes of them: 431.
    HeadersTooLarge,
    /// The URI is too long: 414. A URI longer than the limit of all headers is `HeadersTooLarge`.
    UriTooLong,
    /// The method is CONNECT, and spid is no proxy: 405.
    NoProxy,
    /// A GET or a HEAD has a body: 400.
    BodyUnexpected,
    /// The body is too large: 413.
    BodyTooLarge,
    /// The body was not received in time: 408.
    BodyLate,
    /// The body broke off or has invalid framing: 400, if the peer is still connected.
    BodyBroken,
    /// The headers were not received in time: closed.
    HeadersLate,
    /// The peer did not read its response in time: closed.
    AnswerNotTaken,
    /// The connection limit was reached, and this connection was the longest without a request: closed.
    Displaced,
    /// The received bytes are not TLS, or no TLS version that spid supports: closed with an alert.
    TlsFailed,
    /// The peer did not finish the TLS handshake in time: closed.
    TlsLate,
}

impl HttpFault {
    /// All faults.
    pub const ALL: [HttpFault; 13] = [
        HttpFault::Malformed,
        HttpFault::HeadersTooLarge,
        HttpFault::UriTooLong,
        HttpFault::NoProxy,
        HttpFault::BodyUnexpected,
        HttpFault::BodyTooLarge,
        HttpFault::BodyLate,
        HttpFault::BodyBroken,
        HttpFault::HeadersLate,
        HttpFault::AnswerNotTaken,
        HttpFault::Displaced,
        HttpFault::TlsFailed,
        HttpFault::TlsLate,
    ];

    /// Returns the fault as one word, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            HttpFault::Malformed => "malformed",
            HttpFault::HeadersTooLarge => "headers_too_large",
            HttpFault::UriTooLong => "uri_too_long",
            HttpFault::NoProxy => "no_proxy",
            HttpFault::BodyUnexpected => "body_unexpected",
            HttpFault::BodyTooLarge => "body_too_large",
            HttpFault::BodyLate => "body_late",
            HttpFault::BodyBroken => "body_broken",
            HttpFault::HeadersLate => "headers_late",
            HttpFault::AnswerNotTaken => "answer_not_taken",
            HttpFault::Displaced => "displaced",
            HttpFault::TlsFailed => "tls_failed",
            HttpFault::TlsLate => "tls_late",
        }
    }

    fn status(self) -> u16 {
        match self {
            HttpFault::UriTooLong => 414,
            HttpFault::HeadersTooLarge => 431,
            HttpFault::NoProxy => 405,
            HttpFault::BodyTooLarge => 413,
            HttpFault::BodyLate => 408,
            _ => 400,
        }
    }
}

/// Options for the server: limits of size, time and number for its peers.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Maximum size of request line plus headers, in bytes. Below 8192 it is 8192, the smallest buffer of hyper.
    pub headers_max_bytes: usize,
    /// Maximum number of header fields.
    pub headers_max_count: usize,
    /// Maximum length of a URI, in bytes.
    pub uri_max_bytes: usize,
    /// Maximum size of a body, in bytes.
    pub body_max_bytes: usize,
    /// Time limit to send the headers, from their first byte. For the first request it starts with the connection and
    /// includes the TLS handshake.
    pub headers_read: Duration,
    /// Time limit to send the body. The same limit applies to reading a response and to closing after it.
    pub body_read: Duration,
    /// Time limit for an idle connection between two requests.
    pub idle: Duration,
    /// Maximum number of connections. At the limit, a new connection displaces the one that is the longest without a
    /// complete request. So a peer cannot block others by holding connections open.
    pub connections_max: usize,
    /// Time limit at a stop for requests in flight.
    pub stop_within: Duration,
    /// Part of `stop_within` for connections without a complete request. The peer may have sent bytes that are still on
    /// their way, and that request is answered.
    pub stop_unasked: Duration,
    /// Certificate of the listener; without one, plain HTTP.
    pub tls: Option<ServerTls>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            headers_max_bytes: limits::HEADERS_MAX_BYTES,
            headers_max_count: limits::HEADERS_MAX_COUNT,
            uri_max_bytes: limits::URI_MAX_BYTES,
            body_max_bytes: limits::BODY_MAX_BYTES,
            headers_read: Duration::from_millis(limits::HEADERS_READ_MS),
            body_read: Duration::from_millis(limits::BODY_READ_MS),
            idle: Duration::from_millis(limits::IDLE_MS),
            connections_max: limits::CONNECTIONS_MAX_COUNT,
            stop_within: Duration::from_millis(limits::STOP_REQUESTS_MS),
            stop_unasked: Duration::from_millis(limits::STOP_UNASKED_MS),
            tls: None,
        }
    }
}

/// Result of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// True if every request in flight was answered and every handler ended.
    pub finished: bool,
    /// Number of handlers that were aborted.
    pub left: usize,
}

/// Serves `listener` with `handler` until `stop` is ready, then drains.
///
/// No error of a peer or of the system ends the accept loop. A stop has these steps:
/// 1. The listener is closed. Connections in its queue stay there for another process that holds the socket.
/// 2. A request received within `stop_unasked` over an open connection is answered, with `connection: close`.
///    Connections without a request are closed after that.
/// 3. Requests in flight, and handlers whose peer disconnected, have until `stop_within` to end.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    options: ServerOptions,
    handler: H,
    stop: impl Future<Output = ()> + Send,
) -> Drained {
    serve_on(listener, options, handler, stop).await
}

/// Source of connections: the listener, or in tests one that fails on demand.
trait Accept: Send + Sync {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        TcpListener::accept(self)
    }
}

async fn serve_on<H: Handler>(
    listener: impl Accept,
    options: ServerOptions,
    handler: H,
    stop: impl Future<Output = ()> + Send,
) -> Drained {
    let server = Arc::new(Server::new(options, handler));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let mut stopping = false;
    while !stopping {
        // `biased` polls the stop first, so that a busy listener cannot delay a stop.
        let (stream, peer) = select! {
            biased;
            () = stop.as_mut() => break,
            accepted = accept(&listener, &server) => accepted,
        };
        // An accepted connection is served even beyond the limit, because its request may be on its way.
        let permit = select! {
            biased;
            permit = server.make_room() => permit,
            () = stop.as_mut() => { stopping = true; None }
        };
        // The slot is registered before the task starts, so that a drain or a displacement sees this connection.
        let slot = ConnectionSlot::take(server.clone(), peer, permit);
        connections.spawn(serve_connection(stream, slot));
        // Finished tasks are removed here, because no other code joins them before the stop.
        while connections.try_join_next().is_some() {}
    }
    // The listener closes before the drain, so that new connections go to the next daemon.
    drop(listener);
    server.drain(connections).await
}

/// State shared by all connections.
struct Server<H> {
    options: ServerOptions,
    handler: H,
    builder: Builder,
    runtime: Handle,
    room: Arc<Semaphore>,
    lines: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    next_line: AtomicU64,
    /// Number of handlers that have started and not ended.
    running: AtomicUsize,
    quiet: Notify,
    /// Handlers whose connection has ended. `None` once a stop has aborted them.
    detached: Mutex<Option<JoinSet<()>>>,
}

impl<H: Handler> Server<H> {
    fn new(options: ServerOptions, handler: H) -> Server<H> {
        let seats = options.connections_max.clamp(1, Semaphore::MAX_PERMITS);
        Server {
            builder: builder(&options),
            runtime: Handle::current(),
            room: Arc::new(Semaphore::new(seats)),
            lines: Mutex::default(),
            next_line: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            quiet: Notify::new(),
            detached: Mutex::new(Some(JoinSet::new())),
            options,
            handler,
        }
    }

    /// Waits for a free connection permit, and returns it.
    async fn make_room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.room.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.displace();
        // The semaphore is never closed, so the result is always a permit.
        self.room.clone().acquire_owned().await.ok()
    }

    /// Tells one connection to end, so that its permit becomes free.
    fn displace(&self) {
        if let Some(line) = self.longest_without_a_request() {
            // A connection in use ends its request normally, so it is not counted as denied.
            if line.progress().0.may_be_cut() {
                self.handler.turned_away(HttpFault::Displaced, line.peer);
            }
            line.tell_to_end();
        }
    }

    /// Returns the connection to displace: first those without a complete request, then those in use, the longest
    /// first. A connection in use completes its request and then closes instead of staying idle.
    fn longest_without_a_request(&self) -> Option<Arc<ConnectionState>> {
        let lines = lock(&self.lines);
        let candidates = lines.values().filter(|line| !line.is_told_to_end());
        let line = candidates.min_by_key(|line| {
            let (phase, since) = line.progress();
            (!phase.may_be_cut(), since)
        });
        line.cloned()
    }

    /// Drains the server: see [`serve`].
    async fn drain(&self, mut connections: JoinSet<()>) -> Drained {
        // Step 1: from now on, every response says `connection: close`.
        lock(&self.lines).values().for_each(|line| line.next_is_last());
        let emptied = async {
            let mut all_ended = pin!(async { while connections.join_next().await.is_some() {} });
            // Step 2: connections without a request get `stop_unasked` for a request on its way; then they are closed.
            if timeout(self.options.stop_unasked, all_ended.as_mut()).await.is_err() {
                lock(&self.lines).values().for_each(|line| line.tell_to_end());
                all_ended.await;
            }
            // Step 3: handlers whose peer disconnected are awaited as well.
            self.handlers_end().await;
        };
        let finished = timeout(self.options.stop_within, emptied).await.is_ok();
        let left = self.running.load(Ordering::Acquire);
        // From here on, a handler that loses its connection is dropped and not detached.
        drop(lock(&self.detached).take());
        connections.shutdown().await;
        Drained { finished, left }
    }

    async fn handlers_end(&self) {
        loop {
            // Interest is registered before the check. Otherwise a handler that ends in between would wake no waiter.
            let mut quiet = pin!(self.quiet.notified());
            quiet.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Receives a request and runs the handler on the task of its connection. If the connection ends first, the
    /// remaining work moves to a new task. That costs less than one task per request.
    fn begin(self: &Arc<Self>, line: Arc<ConnectionState>, request: hyper::Request<Incoming>) -> Attached<H> {
        let server = self.clone();
        // Counted before the first poll, so that a drain that starts now waits for this handler.
        let running = Running::begin(self.clone());
        let work = Box::pin(async move {
            let _running = running;
            match receive(&server.options, &line, request).await {
                Ok(request) => {
                    line.enter(Phase::Busy);
                    server.handler.clone().handle(request).await
                }
                Err(why) => server.turn_away(why, line.peer),
            }
        });
        Attached { work: Some(work), server: self.clone() }
    }

    fn turn_away(&self, why: HttpFault, peer: SocketAddr) -> Response {
        self.handler.turned_away(why, peer);
        // Further bytes on this connection may belong to the body that the server did not read, so the connection
        // closes.
        Response::text(why.status(), format!("{}\n", why.as_str())).with_header("connection", "close")
    }

    fn detach(&self, mut work: Work) {
        if let Some(detached) = lock(&self.detached).as_mut() {
            while detached.try_join_next().is_some() {}
            detached
                .spawn_on(poll_fn(move |cx| poll_catching_panics(&mut work, cx).map(drop)), &self.runtime);
        }
    }
}

fn builder(options: &ServerOptions) -> Builder {
    // hyper panics on a smaller buffer.
    const BUFFER_MIN_BYTES: usize = 8192;
    let mut builder = Builder::new();
    // `ConnectionState::poll_overdue` bounds the wait for headers instead.
    builder.header_read_timeout(None);
    builder.max_header_size(options.headers_max_bytes);
    builder.max_buf_size(options.headers_max_bytes.max(BUFFER_MIN_BYTES));
    builder.max_headers(options.headers_max_count);
    builder
}

/// Accepts the next connection. If no file descriptor is left, another connection is closed to free one.
async fn accept<H: Handler>(listener: &impl Accept, server: &Server<H>) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                    server.displace();
                }
                on_accept_error(&error).await;
            }
        }
    }
}

/// Handles an accept error. A peer that disconnected early costs nothing. A system without free descriptors or memory
/// needs a pause, because the loop would otherwise spin.
async fn on_accept_error(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        debug!(%error, "the peer closed a connection before it was accepted");
        return;
    }
    warn!(%error, "cannot accept connections; trying again");
    sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Phases of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between two requests.
    Idle,
    /// The peer sends the head of a request.
    Head,
    /// The peer sends the body of a request.
    Body,
    /// The handler runs.
    Busy,
    /// The peer reads the response.
    Answer,
    /// spid has closed its side and discards the bytes that the peer still sends.
    Closing,
}

impl Phase {
    /// Returns true if no work is lost when the connection closes now.
    fn may_be_cut(self) -> bool {
        !matches!(self, Phase::Busy | Phase::Answer)
    }

    /// Returns the time limit of this phase. `Body` and `Busy` have their limits in the code that awaits them.
    fn patience(self, options: &ServerOptions) -> Option<Duration> {
        match self {
            Phase::Idle => Some(options.idle),
            Phase::Head => Some(options.headers_read),
            Phase::Answer | Phase::Closing => Some(options.body_read),
            Phase::Body | Phase::Busy => None,
        }
    }
}

/// State of one connection, shared with the server.
struct ConnectionState {
    peer: SocketAddr,
    progress: Mutex<(Phase, Instant)>,
    told_to_end: AtomicBool,
    last: AtomicBool,
    poke: Notify,
}

impl ConnectionState {
    fn new(peer: SocketAddr) -> ConnectionState {
        // A new peer has connected to send a request, so the limit for headers applies and not the one for idle
        // connections.
        let progress = Mutex::new((Phase::Head, Instant::now()));
        let (told_to_end, last) = (AtomicBool::new(false), AtomicBool::new(false));
        ConnectionState { peer, progress, told_to_end, last, poke: Notify::new() }
    }

    fn progress(&self) -> (Phase, Instant) {
        *lock(&self.progress)
    }

    fn enter(&self, phase: Phase) {
        *lock(&self.progress) = (phase, Instant::now());
    }

    fn moves(&self, from: Phase, to: Phase) {
        if self.progress().0 == from {
            self.enter(to);
        }
    }

    /// Makes the next response say `connection: close`, after which the peer sends no request. If the server closed the
    /// connection instead, a request could be on its way, and the peer would not know if it was handled.
    fn next_is_last(&self) {
        self.last.store(true, Ordering::Release);
    }

    fn is_last(&self) -> bool {
        self.last.load(Ordering::Acquire)
    }

    fn tell_to_end(&self) {
        self.next_is_last();
        self.told_to_end.store(true, Ordering::Release);
        self.poke.notify_one();
    }

    fn is_told_to_end(&self) -> bool {
        self.told_to_end.load(Ordering::Acquire)
    }

    /// Becomes ready with the phase that lasted longer than its limit.
    ///
    /// Poll this after the connection, because only the connection's task changes the phase. A phase with an earlier
    /// deadline moves the timer forward here. A timer that fires early is set again, so most requests never touch it.
    fn poll_overdue(
        &self,
        options: &ServerOptions,
        mut timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Phase> {
        let (phase, since) = self.progress();
        let Some(patience) = phase.patience(options) else { return Poll::Pending };
        let due = since + patience;
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            // The timer fired for an earlier phase: set it to the deadline of this one.
            if timer.deadline() >= due {
                return Poll::Ready(phase);
            }
            timer.as_mut().reset(due);
        }
    }
}

/// A connection slot. A drop removes the connection from the server and returns its permit.
struct ConnectionSlot<H: Handler> {
    server: Arc<Server<H>>,
    line: Arc<ConnectionState>,
    id: u64,
    // Fields drop after `Drop::drop`: the connection leaves `lines` first, and then its permit becomes free.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<H: Handler> ConnectionSlot<H> {
    fn take(
        server: Arc<Server<H>>,
        peer: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> ConnectionSlot<H> {
        let line = Arc::new(ConnectionState::new(peer));
        let id = server.next_line.fetch_add(1, Ordering::Relaxed);
        lock(&server.lines).insert(id, line.clone());
        ConnectionSlot { server, line, id, _permit: permit }
    }

    /// Counts the end of a connection, if the server denied it.
    fn count(&self, why: Option<HttpFault>) {
        if let Some(why) = why {
            self.server.handler.turned_away(why, self.line.peer);
        }
    }
}

impl<H: Handler> Drop for ConnectionSlot<H> {
    fn drop(&mut self) {
        lock(&self.server.lines).remove(&self.id);
    }
}

/// Serves one connection until it ends, is told to end, or exceeds a time limit.
async fn serve_connection<H: Handler>(stream: TcpStream, slot: ConnectionSlot<H>) {
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
    let due = slot.line.progress().1 + slot.server.options.headers_read;
    let failed = select! {
        biased;
        shaken = tls.accept(stream) => match shaken {
            Ok(stream) => return Some(Box::new(stream)),
            // A peer that only disconnected did nothing wrong.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => None,
            Err(error) => {
                debug!(peer = %slot.line.peer, %error, "TLS handshake failed");
                Some(HttpFault::TlsFailed)
            }
        },
        () = sleep_until(due) => Some(HttpFault::TlsLate),
        () = slot.line.poke.notified() => None,
    };
    slot.count(failed);
    None
}

/// Serves HTTP on one connection until it ends, is told to end, or exceeds a time limit.
async fn converse<H: Handler>(stream: impl AsyncRead + AsyncWrite + Unpin, slot: &ConnectionSlot<H>) {
    let (server, line) = (&slot.server, &slot.line);
    let wire = TokioIo::new(Wire::new(stream, line.clone(), server.options.body_max_bytes));
    let service = service_fn(|request| answer(server, line, request));
    let mut connection = pin!(server.builder.serve_connection(wire, service));
    let mut timer = pin!(sleep_until(line.progress().1 + server.options.headers_read));
    loop {
        // The order matters: `poll_overdue` must see the phase after the connection was polled.
        select! {
            biased;
            ended = connection.as_mut() => return slot.count(ended.err().and_then(|error| denial_of_error(&error))),
            phase = poll_fn(|cx| line.poll_overdue(&server.options, timer.as_mut(), cx)) => {
                return slot.count(denial_of_timeout(phase));
            }
            () = line.poke.notified() => {
                // A request in flight is completed; hyper then closes the connection.
                if line.progress().0.may_be_cut() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Returns the fault of the peer, if the peer caused this error of a connection.
fn denial_of_error(error: &hyper::Error) -> Option<HttpFault> {
    if error.is_parse_too_large() {
        Some(HttpFault::HeadersTooLarge)
    } else if error.is_parse() {
        Some(HttpFault::Malformed)
    } else {
        None
    }
}

/// Returns the fault for a phase that lasted too long. An idle connection is no fault.
fn denial_of_timeout(phase: Phase) -> Option<HttpFault> {
    match phase {
        Phase::Head => Some(HttpFault::HeadersLate),
        Phase::Answer => Some(HttpFault::AnswerNotTaken),
        _ => None,
    }
}

/// Handles one request. The work is created here and not at the first poll. If the peer's end of stream arrives with
/// the request, hyper drops this future unpolled, and the work continues detached.
fn answer<H: Handler>(
    server: &Arc<Server<H>>,
    line: &Arc<ConnectionState>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<hyper::Response<Full<Bytes>>, Infallible>> + use<H> {
    let (attached, line) = (server.begin(line.clone(), request), line.clone());
    async move {
        let mut response = to_wire(attached.await);
        // Read after the handler, because a stop may have begun while it ran.
        if line.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        line.enter(Phase::Answer);
        Ok(response)
    }
}

async fn receive(
    options: &ServerOptions,
    line: &ConnectionState,
    request: hyper::Request<Incoming>,
) -> Result<Request, HttpFault> {
    // Cheap checks on the head come before the body is read.
    if uri_length(request.uri()) > options.uri_max_bytes {
        return Err(HttpFault::UriTooLong);
    }
    if *request.method() == WireMethod::CONNECT {
        return Err(HttpFault::NoProxy);
    }
    if !is_plainly_framed(request.headers()) {
        return Err(HttpFault::Malformed);
    }
    let (mut request, body) = Request::from_wire(request, line.peer);
    if body.is_end_stream() {
        return Ok(request);
    }
    if matches!(request.method, Method::Get | Method::Head) {
        return Err(HttpFault::BodyUnexpected);
    }
    line.enter(Phase::Body);
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

type Work = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A handler that runs on the task of its connection. A drop before its end moves the work to a task of its own.
struct Attached<H: Handler> {
    work: Option<Work>,
    server: Arc<Server<H>>,
}

impl<H: Handler> Future for Attached<H> {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        // After its end no work is left. hyper never polls again then, and 500 is a response too.
        let Some(work) = self.work.as_mut() else { return Poll::Ready(Response::empty(500)) };
        let response = ready!(poll_catching_panics(work, cx));
        self.work = None;
        Poll::Ready(response)
    }
}

impl<H: Handler> Drop for Attached<H> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.server.detach(work);
        }
    }
}

/// Polls a handler and turns a panic into a response. The handler is not polled again after a panic. So only state that
/// handlers share can be seen half changed.
fn poll_catching_panics(work: &mut Work, cx: &mut Context<'_>) -> Poll<Response> {
    catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))).unwrap_or_else(|_| {
        error!("a handler panicked; responding with 500");
        Poll::Ready(Response::empty(500))
    })
}

/// Counts a handler from its start to any end, a panic included.
struct Running<H: Handler>(Arc<Server<H>>);

impl<H: Handler> Running<H> {
    fn begin(server: Arc<Server<H>>) -> Running<H> {
        server.running.fetch_add(1, Ordering::AcqRel);
        Running(server)
    }
}

impl<H: Handler> Drop for Running<H> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

/// The socket given to hyper. It reports progress to the connection state, and lingers before it closes.
struct Wire<S> {
    stream: S,
    line: Arc<ConnectionState>,
    /// True once the peer has closed its side.
    ended: bool,
    shut: bool,
    /// Number of bytes that are still discarded before the connection is cut.
    discard: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S, line: Arc<ConnectionState>, discard: usize) -> Wire<S> {
        Wire { stream, line, ended: false, shut: false, discard }
    }

    /// Discards the bytes that the peer still sends, until the peer closes too. A socket closed with unread bytes
    /// resets the connection, and the reset can overtake the response that explains the close.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0u8; 2048];
        // `discard` bounds the bytes, and the time limit of `Phase::Closing` bounds the wait.
        while !self.ended && self.discard > 0 && !self.line.is_told_to_end() {
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
            self.line.moves(Phase::Idle, Phase::Head);
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
        self.line.moves(Phase::Answer, Phase::Idle);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Our side closes first: the peer sees the end of the response, and the server then waits for the peer's end.
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
            self.line.enter(Phase::Closing);
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

    /// Fails first as a system out of descriptors does, then as peers do, and then accepts.
    struct Failing {
        listener: TcpListener,
        failures: Mutex<Vec<io::Error>>,
    }

    impl Accept for Failing {
        async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            let failure = lock(&self.failures).pop();
            match failure {
                Some(failure) => Err(failure),
                None => self.listener.accept().await,
            }
        }
    }

    #[tokio::test]
    async fn the_accept_loop_survives_what_accept_can_fail_with() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const EMFILE: i32 = 24;
        const ENFILE: i32 = 23;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let failures = vec![
            io::ErrorKind::ConnectionAborted.into(),
            io::Error::from_raw_os_error(EMFILE),
            io::Error::from_raw_os_error(ENFILE),
            io::ErrorKind::ConnectionReset.into(),
        ];
        let failing = Failing { listener, failures: Mutex::new(failures) };
        let handler = |_: Request| async { Response::text(200, "alive") };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_on(failing, ServerOptions::default(), handler, async move {
            let _ = stopped.await;
        }));
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("alive"), "{answer}");
        stop.send(()).unwrap();
        assert_eq!(server.await.unwrap(), Drained { finished: true, left: 0 });
    }
}
