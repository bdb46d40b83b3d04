//! Recorded requests, sent byte by byte, even if they are no valid HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::task::JoinSet;

use super::client::{ClientError, ClientResponse, WireRequest, read};
use super::connect::Stream;
use crate::observe::limits;

/// Builds the request that hyper believes it sends. Only the method of the recorded request matters for the response: a
/// response to HEAD has no body.
pub(super) fn claimed_request(bytes: &[u8]) -> Result<WireRequest, ClientError> {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    // The recorded bytes may be garbage. A server responds to garbage as it does to a GET.
    let method = hyper::Method::from_bytes(method).unwrap_or(hyper::Method::GET);
    if bytes.is_empty() {
        return Err(ClientError::Unsendable("the recorded request is empty"));
    }
    let mut claimed = hyper::Request::new(Full::default());
    *claimed.method_mut() = method;
    Ok(claimed)
}

/// Writes `bytes` and reads one response.
pub(super) async fn send(
    mut stream: Box<dyn Stream>,
    bytes: &[u8],
    claimed: WireRequest,
    max_bytes: usize,
) -> Result<ClientResponse, ClientError> {
    // A server that denies a request may close before it has read all of it. Its response may still be readable, so a
    // failed write does not end the exchange.
    let written = write(&mut stream, bytes).await;
    let response = respond(stream, claimed, max_bytes).await;
    match written {
        Err(error) if response.is_err() => Err(ClientError::Broken(error.to_string())),
        _ => response,
    }
}

async fn write(stream: &mut Box<dyn Stream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn respond(
    stream: Box<dyn Stream>,
    claimed: WireRequest,
    max_bytes: usize,
) -> Result<ClientResponse, ClientError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(limits::HEADERS_MAX_BYTES);
    let opened = builder.handshake(TokioIo::new(AlreadySent::new(stream))).await;
    let (mut sender, connection) = opened.map_err(|error| ClientError::broken(&error))?;
    // The end of this function drops the set, and with it the connection. Its error is also the request's.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(claimed).await.map_err(|error| ClientError::broken(&error))?;
    read(response, max_bytes).await
}

/// Socket on which the request has already been sent. Writes of hyper are dropped, so that hyper reads the response to
/// bytes that it could never have written itself.
struct AlreadySent {
    stream: Box<dyn Stream>,
    /// Set once hyper has "sent" its request. hyper treats a response that arrives before its request as an error.
    claimed: bool,
    reader: Option<Waker>,
}

impl AlreadySent {
    fn new(stream: Box<dyn Stream>) -> AlreadySent {
        AlreadySent { stream, claimed: false, reader: None }
    }
}

impl AsyncRead for AlreadySent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.claimed {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for AlreadySent {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.claimed = true;
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
