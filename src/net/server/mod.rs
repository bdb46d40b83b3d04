//! HTTP server: the accept loop, which no error ends, and the limits on each connection.
//!
//! The server has three parts. [`serve`] accepts connections, makes room for them and drains them at a stop. A [`ConnectionState`]
//! is the state of one connection: its phase, since when, and if it was told to end. `answer` is the path of one
//! request: receive it whole, run the handler inside a panic catcher, send the response.
//!
//! The state's own clock bounds every wait for a peer; hyper's header timer is off. So one rule covers headers, idle
//! connections, responses that the peer does not read, and the end of a connection. No timer is created per request.

mod accept;
mod connection;
mod reject;
mod timeouts;

pub use reject::HttpFault;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::error;

use self::accept::serve_on;
use self::connection::receive;
use self::timeouts::{ConnectionState, Phase};
use super::{Request, Response, ServerTls};
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

/// State shared by all connections.
struct Server<H> {
    options: ServerOptions,
    handler: H,
    builder: Builder,
    runtime: Handle,
    room: Arc<Semaphore>,
    states: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    next_connection: AtomicU64,
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
            states: Mutex::default(),
            next_connection: AtomicU64::new(0),
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
        if let Some(state) = self.longest_without_a_request() {
            // A connection in use ends its request normally, so it is not counted as denied.
            if state.progress().0.may_be_cut() {
                self.handler.turned_away(HttpFault::Displaced, state.peer);
            }
            state.tell_to_end();
        }
    }

    /// Returns the connection to displace: first those without a complete request, then those in use, the longest
    /// first. A connection in use completes its request and then closes instead of staying idle.
    fn longest_without_a_request(&self) -> Option<Arc<ConnectionState>> {
        let states = lock(&self.states);
        let candidates = states.values().filter(|state| !state.is_told_to_end());
        let state = candidates.min_by_key(|state| {
            let (phase, since) = state.progress();
            (!phase.may_be_cut(), since)
        });
        state.cloned()
    }

    /// Drains the server: see [`serve`].
    async fn drain(&self, mut connections: JoinSet<()>) -> Drained {
        // Step 1: from now on, every response says `connection: close`.
        lock(&self.states).values().for_each(|state| state.next_is_last());
        let emptied = async {
            let mut all_ended = pin!(async { while connections.join_next().await.is_some() {} });
            // Step 2: connections without a request get `stop_unasked` for a request on its way; then they are closed.
            if timeout(self.options.stop_unasked, all_ended.as_mut()).await.is_err() {
                lock(&self.states).values().for_each(|state| state.tell_to_end());
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
    fn begin(
        self: &Arc<Self>,
        state: Arc<ConnectionState>,
        request: hyper::Request<Incoming>,
    ) -> Attached<H> {
        let server = self.clone();
        // Counted before the first poll, so that a drain that starts now waits for this handler.
        let running = Running::begin(self.clone());
        let work = Box::pin(async move {
            let _running = running;
            match receive(&server.options, &state, request).await {
                Ok(request) => {
                    state.enter(Phase::Busy);
                    server.handler.clone().handle(request).await
                }
                Err(why) => server.turn_away(why, state.peer),
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
    // A client may close its side once the request is sent, and it still reads the answer. A client that has gone looks
    // the same, and keeps its slot until the handler ends.
    builder.half_close(true);
    builder.max_header_size(options.headers_max_bytes);
    builder.max_buf_size(options.headers_max_bytes.max(BUFFER_MIN_BYTES));
    builder.max_headers(options.headers_max_count);
    builder
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
