//! A connection to a server, and those that are kept for the next request.

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

/// A request in hyper's form.
pub(super) type Question = hyper::Request<Full<Bytes>>;

/// An open connection. It closes when this goes, whatever is under way on it.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

/// Why a connection gave no answer.
pub(super) enum Unanswered {
    /// It was closed before anything of the question was written: the question comes back whole.
    Unasked(Question),
    /// It may have been heard.
    Broken(ClientError),
}

impl Link {
    pub(super) async fn open(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Link, ClientError> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(limits::HEADERS_MAX_BYTES);
        let (sender, connection) =
            builder.handshake(TokioIo::new(io)).await.map_err(|error| ClientError::broken(&error))?;
        // An error of the connection shows in the answer to the question, too.
        let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
        Ok(Link { sender, driver })
    }

    /// Asks, and returns the answer, its body still to be read.
    pub(super) async fn ask(&mut self, question: Question) -> Result<hyper::Response<Incoming>, Unanswered> {
        self.sender.try_send_request(question).await.map_err(|mut error| match error.take_message() {
            Some(question) => Unanswered::Unasked(question),
            None => Unanswered::Broken(ClientError::broken(error.error())),
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connections that wait for the next request.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<Waiting>>);

struct Waiting {
    link: Link,
    secure: bool,
    authority: String,
    since: Instant,
}

impl Kept {
    /// A connection to where `url` leads that is still good, if there is one.
    pub(super) async fn take(&self, url: &Url, patience: Duration) -> Option<Link> {
        loop {
            let mut link = self.pick(url)?;
            // At once, unless the server closed it or still has not read the last question.
            if matches!(timeout(patience, link.sender.ready()).await, Ok(Ok(()))) {
                return Some(link);
            }
        }
    }

    fn pick(&self, url: &Url) -> Option<Link> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = Duration::from_millis(limits::HOOK_IDLE_MS);
        waiting.retain(|it| it.since.elapsed() < longest && !it.link.sender.is_closed());
        let authority = url.authority();
        let fits = |it: &Waiting| it.secure == url.is_secure() && it.authority == authority;
        let found = waiting.iter().rposition(fits)?;
        Some(waiting.remove(found).link)
    }

    /// Keeps a connection whose answer was read to its end, unless there are `most` already.
    pub(super) fn put(&self, url: &Url, link: Link, most: usize) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < most {
            let (secure, authority) = (url.is_secure(), url.authority());
            waiting.push(Waiting { link, secure, authority, since: Instant::now() });
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}
