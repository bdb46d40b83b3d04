//! Phases of a connection, and their time limits.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::{ServerOptions, lock};

/// Phases of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
    pub(super) fn may_be_cut(self) -> bool {
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
pub(super) struct ConnectionState {
    pub(super) peer: SocketAddr,
    progress: Mutex<(Phase, Instant)>,
    told_to_end: AtomicBool,
    last: AtomicBool,
    pub(super) wake_up: Notify,
}

impl ConnectionState {
    pub(super) fn new(peer: SocketAddr) -> ConnectionState {
        // A new peer has connected to send a request, so the limit for headers applies and not the one for idle
        // connections.
        let progress = Mutex::new((Phase::Head, Instant::now()));
        let (told_to_end, last) = (AtomicBool::new(false), AtomicBool::new(false));
        ConnectionState { peer, progress, told_to_end, last, wake_up: Notify::new() }
    }

    pub(super) fn progress(&self) -> (Phase, Instant) {
        *lock(&self.progress)
    }

    pub(super) fn enter(&self, phase: Phase) {
        *lock(&self.progress) = (phase, Instant::now());
    }

    pub(super) fn moves(&self, from: Phase, to: Phase) {
        if self.progress().0 == from {
            self.enter(to);
        }
    }

    /// Makes the next response say `connection: close`, after which the peer sends no request. If the server closed the
    /// connection instead, a request could be on its way, and the peer would not know if it was handled.
    pub(super) fn next_is_last(&self) {
        self.last.store(true, Ordering::Release);
    }

    pub(super) fn is_last(&self) -> bool {
        self.last.load(Ordering::Acquire)
    }

    pub(super) fn tell_to_end(&self) {
        self.next_is_last();
        self.told_to_end.store(true, Ordering::Release);
        self.wake_up.notify_one();
    }

    pub(super) fn is_told_to_end(&self) -> bool {
        self.told_to_end.load(Ordering::Acquire)
    }

    /// Becomes ready with the phase that lasted longer than its limit.
    ///
    /// Poll this after the connection, because only the connection's task changes the phase. A phase with an earlier
    /// deadline moves the timer forward here. A timer that fires early is set again, so most requests never touch it.
    pub(super) fn poll_overdue(
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
