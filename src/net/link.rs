//! Connections to a server, and the pool that keeps them for the next request.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::client::ClientError;
use super::{Url, limits};

/// A client request in hyper's form.
pub(super) type PendingRequest = hyper::Request<Full<Bytes>>;

/// An open connection. A drop closes it and aborts any request in progress.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

/// Reasons why a connection gave no response.
pub(super) enum Unanswered {
    /// The connection was closed before a byte of the request was written. The request is returned and may be sent
    /// again.
    LookupError(PendingRequest),
    /// The connection failed after the write began, so the server may have received the request.
    Broken(ClientError),
}

impl Connection {
    pub(super) async fn open(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection, ClientError> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(limits::HEADERS_MAX_BYTES);
        let (sender, connection) =
            builder.handshake(TokioIo::new(io)).await.map_err(|error| ClientError::broken(&error))?;
        // An error of the connection is also reported to the pending request, so the task may discard it.
        let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
        Ok(Connection { sender, driver })
    }

    /// Sends the request and returns the response, whose body is still unread.
    pub(super) async fn ask(
        &mut self,
        question: PendingRequest,
    ) -> Result<hyper::Response<Incoming>, Unanswered> {
        self.sender.try_send_request(question).await.map_err(|mut error| match error.take_message() {
            Some(question) => Unanswered::LookupError(question),
            None => Unanswered::Broken(ClientError::broken(error.error())),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Pool of connections that wait for the next request.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<IdleConnection>>);

struct IdleConnection {
    link: Connection,
    secure: bool,
    authority: String,
    since: Instant,
}

impl Pool {
    /// Returns an open connection to the host of `url`, if the pool has one.
    pub(super) async fn take(&self, url: &Url, patience: Duration) -> Option<Connection> {
        loop {
            let mut link = self.pick(url)?;
            // `ready` returns at once, unless the server closed the connection or has not read the previous request.
            if matches!(timeout(patience, link.sender.ready()).await, Ok(Ok(()))) {
                return Some(link);
            }
        }
    }

    fn pick(&self, url: &Url) -> Option<Connection> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = Duration::from_millis(limits::HOOK_IDLE_MS);
        // Connections that are too old or closed are dropped here, because no task of their own watches them.
        waiting.retain(|it| it.since.elapsed() < longest && !it.link.sender.is_closed());
        let authority = url.authority();
        let fits = |it: &IdleConnection| it.secure == url.is_secure() && it.authority == authority;
        // `rposition` prefers the most recently used connection: the server is the least likely to have closed it.
        let found = waiting.iter().rposition(fits)?;
        Some(waiting.remove(found).link)
    }

    /// Keeps a connection whose response was read to its end, unless the pool has `most` already.
    pub(super) fn put(&self, url: &Url, link: Connection, most: usize) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < most {
            let (secure, authority) = (url.is_secure(), url.authority());
            waiting.push(IdleConnection { link, secure, authority, since: Instant::now() });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}
