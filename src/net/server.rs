//! The accept loop that survives everything, and what a connection may do.
//!
//! Three parts. [`serve`] accepts, makes room and drains. A [`Line`] is what the rest of the server
//! knows of one connection: what it is doing, since when, and whether it was told to end. The path of
//! one request is `answer`: receive it whole, run the handler behind a wall, send what it says.
//!
//! All waiting for a peer is bounded by the line's own clock instead of hyper's header timer: one
//! rule then covers headers, idling, answers nobody takes and the end of a connection, and no timer is
//! set up per request.

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

/// What answers requests.
///
/// Clones answer alike: one is made per request, so keep what they share behind an `Arc`. A plain
/// `async` closure that can be cloned is a handler too.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request.
    ///
    /// The future is run to its end even when the peer hangs up meanwhile, because what it does may
    /// concern more than this peer; only the end of `stop_within` cuts it off. A panic is answered
    /// with 500 and an empty body, and ends nothing else.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Called for everything that was turned away before it became a request, to count it.
    fn turned_away(&self, why: TurnedAway, peer: SocketAddr) {
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

/// Why a peer got no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TurnedAway {
    /// What it sent is not HTTP/1: 400.
    Malformed,
    /// Too many header fields, or too many bytes of them: 431.
    HeadersTooLarge,
    /// The URI is too long: 414. One that is longer than all headers may be is `HeadersTooLarge`.
    UriTooLong,
    /// The method is CONNECT, and this is no proxy: 405.
    NoProxy,
    /// A body where none belongs, in a GET or a HEAD: 400.
    BodyUnexpected,
    /// The body is too large: 413.
    BodyTooLarge,
    /// The body did not come in time: 408.
    BodyLate,
    /// The body broke off or is not one: 400, if anybody is still there.
    BodyBroken,
    /// The headers did not come in time: closed.
    HeadersLate,
    /// It did not take its answer in time: closed.
    AnswerNotTaken,
    /// All connections were taken, and this one had been without a request the longest: closed.
    Displaced,
    /// What it sent is not TLS, or none we speak: closed with an alert.
    TlsFailed,
    /// It did not finish the TLS handshake in time: closed.
    TlsLate,
}

impl TurnedAway {
    /// Every reason.
    pub const ALL: [TurnedAway; 11] = [
        TurnedAway::Malformed,
        TurnedAway::HeadersTooLarge,
        TurnedAway::UriTooLong,
        TurnedAway::NoProxy,
        TurnedAway::BodyUnexpected,
        TurnedAway::BodyTooLarge,
        TurnedAway::BodyLate,
        TurnedAway::BodyBroken,
        TurnedAway::HeadersLate,
        TurnedAway::AnswerNotTaken,
        TurnedAway::Displaced,
    ];

    /// The reason in one word, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            TurnedAway::Malformed => "malformed",
            TurnedAway::HeadersTooLarge => "headers_too_large",
            TurnedAway::UriTooLong => "uri_too_long",
            TurnedAway::NoProxy => "no_proxy",
            TurnedAway::BodyUnexpected => "body_unexpected",
            TurnedAway::BodyTooLarge => "body_too_large",
            TurnedAway::BodyLate => "body_late",
            TurnedAway::BodyBroken => "body_broken",
            TurnedAway::HeadersLate => "headers_late",
            TurnedAway::AnswerNotTaken => "answer_not_taken",
            TurnedAway::Displaced => "displaced",
            TurnedAway::TlsFailed => "tls_failed",
            TurnedAway::TlsLate => "tls_late",
        }
    }

    fn status(self) -> u16 {
        match self {
            TurnedAway::UriTooLong => 414,
            TurnedAway::HeadersTooLarge => 431,
            TurnedAway::NoProxy => 405,
            TurnedAway::BodyTooLarge => 413,
            TurnedAway::BodyLate => 408,
            _ => 400,
        }
    }
}

/// How much and how long a peer may.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Longest request line plus headers, in bytes; below 8192 hyper's smallest buffer still holds 8192.
    pub headers_max_bytes: usize,
    /// Most header fields.
    pub headers_max_count: usize,
    /// Longest URI, in bytes.
    pub uri_max_bytes: usize,
    /// Longest body, in bytes.
    pub body_max_bytes: usize,
    /// Time to send the headers, from the first byte; for the first request, from the connection, a TLS
    /// handshake included.
    pub headers_read: Duration,
    /// Time to send the body. Taking an answer, and closing after one, get as much.
    pub body_read: Duration,
    /// How long a connection may stay between two requests.
    pub idle: Duration,
    /// Most connections at once. At the bound, a new one displaces the one that has been without a
    /// complete request the longest, so that holding connections open keeps nobody out.
    pub connections_max: usize,
    /// How long a stop waits for requests in flight.
    pub stop_within: Duration,
    /// How much of that a connection without a complete request gets: what its peer has sent already is
    /// on its way, and is answered.
    pub stop_unasked: Duration,
    /// The certificate to show; without one, plain HTTP.
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

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Whether every request in flight was answered, and every handler came to its end.
    pub finished: bool,
    /// Handlers that were cut off.
    pub left: usize,
}

/// Serves `listener` with `handler` until `stop` is ready, then drains.
///
/// Nothing a peer or the system does ends the accept loop. On a stop the listener is closed, and what
/// waits in its queue stays there for whoever else holds the socket. A request that comes within
/// `stop_unasked` over a connection that is open is answered, with `connection: close`; connections that
/// bring none are closed then. What is in flight, together with the handlers whose peer hung up, has
/// `stop_within` to end.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    options: ServerOptions,
    handler: H,
    stop: impl Future<Output = ()> + Send,
) -> Drained {
    serve_on(listener, options, handler, stop).await
}

/// Where connections come from: the listener, or in tests something that fails on cue.
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
        let (stream, peer) = select! {
            biased;
            () = stop.as_mut() => break,
            accepted = accept(&listener, &server) => accepted,
        };
        // Who has been let in is served, even beyond the bound: the request may be on its way.
        let permit = select! {
            biased;
            permit = server.make_room() => permit,
            () = stop.as_mut() => { stopping = true; None }
        };
        let seat = Seat::take(server.clone(), peer, permit);
        connections.spawn(attend(stream, seat));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    server.drain(connections).await
}

/// What all connections share.
struct Server<H> {
    options: ServerOptions,
    handler: H,
    builder: Builder,
    runtime: Handle,
    room: Arc<Semaphore>,
    lines: Mutex<HashMap<u64, Arc<Line>>>,
    next_line: AtomicU64,
    /// Handlers that have begun and not ended.
    running: AtomicUsize,
    quiet: Notify,
    /// Handlers whose connection is gone. `None` once a stop has given up on them.
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

    /// Waits until there is room for one more connection, and takes it.
    async fn make_room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.room.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.displace();
        // The semaphore is never closed, so this is always a permit.
        self.room.clone().acquire_owned().await.ok()
    }

    /// Tells one connection to end, so that another finds room.
    fn displace(&self) {
        if let Some(line) = self.longest_without_a_request() {
            if line.progress().0.may_be_cut() {
                self.handler.turned_away(TurnedAway::Displaced, line.peer);
            }
            line.tell_to_end();
        }
    }

    /// The connection to displace: one without a complete request before one at work, the longest first.
    /// One at work ends its request, and then closes instead of idling.
    fn longest_without_a_request(&self) -> Option<Arc<Line>> {
        let lines = lock(&self.lines);
        let candidates = lines.values().filter(|line| !line.is_told_to_end());
        let line = candidates.min_by_key(|line| {
            let (phase, since) = line.progress();
            (!phase.may_be_cut(), since)
        });
        line.cloned()
    }

    /// Ends the server: see [`serve`].
    async fn drain(&self, mut connections: JoinSet<()>) -> Drained {
        lock(&self.lines).values().for_each(|line| line.next_is_last());
        let emptied = async {
            let mut all_ended = pin!(async { while connections.join_next().await.is_some() {} });
            if timeout(self.options.stop_unasked, all_ended.as_mut()).await.is_err() {
                lock(&self.lines).values().for_each(|line| line.tell_to_end());
                all_ended.await;
            }
            self.handlers_end().await;
        };
        let finished = timeout(self.options.stop_within, emptied).await.is_ok();
        let left = self.running.load(Ordering::Acquire);
        // From here on a handler that loses its connection is dropped, not detached.
        drop(lock(&self.detached).take());
        connections.shutdown().await;
        Drained { finished, left }
    }

    async fn handlers_end(&self) {
        loop {
            let mut quiet = pin!(self.quiet.notified());
            quiet.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Receives a request and runs the handler on this connection's task. If the connection ends first,
    /// the rest of it moves to a task of its own: that is cheaper than one task per request.
    fn begin(self: &Arc<Self>, line: Arc<Line>, request: hyper::Request<Incoming>) -> Attached<H> {
        let server = self.clone();
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

    fn turn_away(&self, why: TurnedAway, peer: SocketAddr) -> Response {
        self.handler.turned_away(why, peer);
        // What follows on this connection may be the rest of what we refused to read.
        Response::text(why.status(), format!("{}\n", why.as_str())).with_header("connection", "close")
    }

    fn detach(&self, mut work: Work) {
        if let Some(detached) = lock(&self.detached).as_mut() {
            while detached.try_join_next().is_some() {}
            detached.spawn_on(poll_fn(move |cx| poll_walled(&mut work, cx).map(drop)), &self.runtime);
        }
    }
}

fn builder(options: &ServerOptions) -> Builder {
    // hyper panics on a smaller buffer.
    const BUFFER_MIN_BYTES: usize = 8192;
    let mut builder = Builder::new();
    builder.header_read_timeout(None);
    builder.max_header_size(options.headers_max_bytes);
    builder.max_buf_size(options.headers_max_bytes.max(BUFFER_MIN_BYTES));
    builder.max_headers(options.headers_max_count);
    builder
}

/// The next connection. Where no descriptor is left for it, another connection has to give up its own.
async fn accept<H: Handler>(listener: &impl Accept, server: &Server<H>) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                    server.displace();
                }
                survive(&error).await;
            }
        }
    }
}

/// An accept failed. A peer that went away again costs nothing; a system that has no descriptors or
/// no memory left needs a moment, or the loop would spin.
async fn survive(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        debug!(%error, "a connection was gone before it was accepted");
        return;
    }
    warn!(%error, "cannot accept connections just now");
    sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing: between two requests.
    Idle,
    /// Sending the head of a request.
    Head,
    /// Sending the body of a request.
    Body,
    /// Waiting for the handler.
    Busy,
    /// Taking its answer.
    Answer,
    /// We have closed our side and discard what the peer still sends.
    Closing,
}

impl Phase {
    /// Whether closing the connection loses nothing that was begun.
    fn may_be_cut(self) -> bool {
        !matches!(self, Phase::Busy | Phase::Answer)
    }

    /// How long the peer may keep us in this phase. `Body` and `Busy` are timed where they are awaited.
    fn patience(self, options: &ServerOptions) -> Option<Duration> {
        match self {
            Phase::Idle => Some(options.idle),
            Phase::Head => Some(options.headers_read),
            Phase::Answer | Phase::Closing => Some(options.body_read),
            Phase::Body | Phase::Busy => None,
        }
    }
}

/// What the server knows of one connection.
struct Line {
    peer: SocketAddr,
    progress: Mutex<(Phase, Instant)>,
    told_to_end: AtomicBool,
    last: AtomicBool,
    poke: Notify,
}

impl Line {
    fn new(peer: SocketAddr) -> Line {
        // A new peer has connected in order to send: it gets the time for a head, not for idling.
        let progress = Mutex::new((Phase::Head, Instant::now()));
        let (told_to_end, last) = (AtomicBool::new(false), AtomicBool::new(false));
        Line { peer, progress, told_to_end, last, poke: Notify::new() }
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

    /// The next answer says `connection: close`, and nobody sends another request then. A connection
    /// that was closed instead could cross with a request on its way, and nobody would know its fate.
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

    /// Ready with the phase the peer has stayed in for too long.
    ///
    /// To be polled after the connection, on whose task alone the phase changes: a change moves the timer
    /// forward here, and a timer that rings early is set again, so that most requests never touch it.
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
            if timer.deadline() >= due {
                return Poll::Ready(phase);
            }
            timer.as_mut().reset(due);
        }
    }
}

/// A place among the connections, given back when it is dropped.
struct Seat<H: Handler> {
    server: Arc<Server<H>>,
    line: Arc<Line>,
    id: u64,
    // Dropped after `Drop::drop` has struck the line off, so that room is made before it is taken.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<H: Handler> Seat<H> {
    fn take(server: Arc<Server<H>>, peer: SocketAddr, permit: Option<OwnedSemaphorePermit>) -> Seat<H> {
        let line = Arc::new(Line::new(peer));
        let id = server.next_line.fetch_add(1, Ordering::Relaxed);
        lock(&server.lines).insert(id, line.clone());
        Seat { server, line, id, _permit: permit }
    }

    /// Counts the end of a connection, if it was turned away.
    fn count(&self, why: Option<TurnedAway>) {
        if let Some(why) = why {
            self.server.handler.turned_away(why, self.line.peer);
        }
    }
}

impl<H: Handler> Drop for Seat<H> {
    fn drop(&mut self) {
        lock(&self.server.lines).remove(&self.id);
    }
}

/// Serves one connection until it ends, is told to end, or is overdue.
async fn attend<H: Handler>(stream: TcpStream, seat: Seat<H>) {
    // Answers are small and whole: waiting to fill a segment only costs the peer time.
    let _ = stream.set_nodelay(true);
    match &seat.server.options.tls {
        None => converse(stream, &seat).await,
        Some(tls) => {
            if let Some(stream) = shake_hands(tls, stream, &seat).await {
                converse(stream, &seat).await;
            }
        }
    }
}

/// Agrees on TLS, in the time a peer has for its first head.
async fn shake_hands<H: Handler>(
    tls: &ServerTls,
    stream: TcpStream,
    seat: &Seat<H>,
) -> Option<Box<TlsStream<TcpStream>>> {
    let due = seat.line.progress().1 + seat.server.options.headers_read;
    let failed = select! {
        biased;
        shaken = tls.accept(stream) => match shaken {
            Ok(stream) => return Some(Box::new(stream)),
            // Who merely went away did nothing wrong.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => None,
            Err(error) => {
                debug!(peer = %seat.line.peer, %error, "no TLS");
                Some(TurnedAway::TlsFailed)
            }
        },
        () = sleep_until(due) => Some(TurnedAway::TlsLate),
        () = seat.line.poke.notified() => None,
    };
    seat.count(failed);
    None
}

/// Speaks HTTP over one connection until it ends, is told to end, or is overdue.
async fn converse<H: Handler>(stream: impl AsyncRead + AsyncWrite + Unpin, seat: &Seat<H>) {
    let (server, line) = (&seat.server, &seat.line);
    let wire = TokioIo::new(Wire::new(stream, line.clone(), server.options.body_max_bytes));
    let service = service_fn(|request| answer(server, line, request));
    let mut connection = pin!(server.builder.serve_connection(wire, service));
    let mut timer = pin!(sleep_until(line.progress().1 + server.options.headers_read));
    loop {
        select! {
            biased;
            ended = connection.as_mut() => return seat.count(ended.err().and_then(|error| blame(&error))),
            phase = poll_fn(|cx| line.poll_overdue(&server.options, timer.as_mut(), cx)) => {
                return seat.count(reproach(phase));
            }
            () = line.poke.notified() => {
                if line.progress().0.may_be_cut() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What the peer did wrong, if a connection that ended with `error` ended by its fault.
fn blame(error: &hyper::Error) -> Option<TurnedAway> {
    if error.is_parse_too_large() {
        Some(TurnedAway::HeadersTooLarge)
    } else if error.is_parse() {
        Some(TurnedAway::Malformed)
    } else {
        None
    }
}

/// What it means to stay in `phase` for too long. To idle is no fault.
fn reproach(phase: Phase) -> Option<TurnedAway> {
    match phase {
        Phase::Head => Some(TurnedAway::HeadersLate),
        Phase::Answer => Some(TurnedAway::AnswerNotTaken),
        _ => None,
    }
}

/// The path of one request. The work is made here and not at the first poll: a request whose end of
/// stream comes along with it is dropped by hyper unpolled, and goes on detached all the same.
fn answer<H: Handler>(
    server: &Arc<Server<H>>,
    line: &Arc<Line>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<hyper::Response<Full<Bytes>>, Infallible>> + use<H> {
    let (attached, line) = (server.begin(line.clone(), request), line.clone());
    async move {
        let mut response = to_wire(attached.await);
        if line.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        line.enter(Phase::Answer);
        Ok(response)
    }
}

async fn receive(
    options: &ServerOptions,
    line: &Line,
    request: hyper::Request<Incoming>,
) -> Result<Request, TurnedAway> {
    if uri_length(request.uri()) > options.uri_max_bytes {
        return Err(TurnedAway::UriTooLong);
    }
    if *request.method() == WireMethod::CONNECT {
        return Err(TurnedAway::NoProxy);
    }
    if !is_plainly_framed(request.headers()) {
        return Err(TurnedAway::Malformed);
    }
    let (mut request, body) = Request::from_wire(request, line.peer);
    if body.is_end_stream() {
        return Ok(request);
    }
    if matches!(request.method, Method::Get | Method::Head) {
        return Err(TurnedAway::BodyUnexpected);
    }
    line.enter(Phase::Body);
    let body = timeout(options.body_read, collect(body, options.body_max_bytes)).await;
    request.body = body.map_err(|_| TurnedAway::BodyLate)?.map_err(|unread| match unread {
        Unread::TooLarge => TurnedAway::BodyTooLarge,
        Unread::Broken(_) => TurnedAway::BodyBroken,
    })?;
    Ok(request)
}

/// False for a transfer coding beside `chunked`, which would be left in the body, and which a proxy before us may have
/// read as another framing. Of a request with both framings hyper keeps `chunked`, hides the length, and closes the
/// connection behind the answer.
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
        error!(what, "the handler's answer cannot be sent; answering 500");
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
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name is none")?;
        let value =
            HeaderValue::from_str(value).map_err(|_| "a header's value has a line break or the like")?;
        // Framing is not the handler's business: hyper derives it from the body that is really sent.
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING {
            headers.append(name, value);
        }
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let mut wire = hyper::Response::new(Full::new(response.body));
    *wire.status_mut() = status.ok_or("the status is not one of an answer")?;
    *wire.headers_mut() = headers;
    Ok(wire)
}

type Work = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A handler at work on its connection's task; if dropped before its end, it goes on without.
struct Attached<H: Handler> {
    work: Option<Work>,
    server: Arc<Server<H>>,
}

impl<H: Handler> Future for Attached<H> {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        // Polled after its end there is no work left; nobody does that, and 500 is an answer too.
        let Some(work) = self.work.as_mut() else { return Poll::Ready(Response::empty(500)) };
        let response = ready!(poll_walled(work, cx));
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

/// Polls a handler behind a wall: its panic is an answer. After one it is not polled again, so a
/// state that the panic left half changed is seen by nobody but what the handler itself shares.
fn poll_walled(work: &mut Work, cx: &mut Context<'_>) -> Poll<Response> {
    catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))).unwrap_or_else(|_| {
        error!("a handler panicked; answering 500");
        Poll::Ready(Response::empty(500))
    })
}

/// Counts a handler from its begin to its end, whatever the end is.
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

/// The socket, as hyper sees it: it tells the line what passes, and it closes politely.
struct Wire<S> {
    stream: S,
    line: Arc<Line>,
    /// The peer has closed its side.
    ended: bool,
    shut: bool,
    /// How much is still discarded before the connection is cut, in bytes.
    discard: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S, line: Arc<Line>, discard: usize) -> Wire<S> {
        Wire { stream, line, ended: false, shut: false, discard }
    }

    /// Discards what the peer still sends, until it closes too. Closing a socket with unread bytes
    /// resets the connection, and the reset can overtake the answer that says why we close.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0u8; 2048];
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

    /// hyper flushes once everything has been written: then the peer has its answer.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.line.moves(Phase::Answer, Phase::Idle);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Fails as a system out of descriptors does, then as peers do, then accepts.
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
