//! An HTTP/1.1 server on hyper, with bounds on sizes, times and connections.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::receive::{Receiver, Reply, Signed, log};
use crate::limits;

/// Maximum number of connections.
const CONNECTIONS_MAX_COUNT: usize = 128;
/// Maximum number of header fields.
const HEADERS_MAX_COUNT: usize = 64;
/// Maximum size of the head of a request, in bytes.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Maximum time for the head of a request, also on a connection that is kept open, in milliseconds.
const HEAD_TIMEOUT_MS: u64 = 10_000;
/// Maximum time for the body of a request, in milliseconds.
const BODY_TIMEOUT_MS: u64 = 30_000;
/// Pause after an error of `accept`, in milliseconds: the process may be out of descriptors.
const ACCEPT_PAUSE_MS: u64 = 100;
/// Pause between two looks at the calls in progress during a stop, in milliseconds.
const STOP_POLL_MS: u64 = 20;

/// Serves requests until `stop` completes, and then ends the connections in order. Returns false if that took longer
/// than `within`.
pub(super) async fn serve(
    listener: TcpListener,
    receiver: Arc<Receiver>,
    stop: impl Future<Output = ()>,
    within: Duration,
) -> bool {
    let (stopping, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX_COUNT));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        // 1. Wait for room, so that further connections wait in the queue of the system.
        // 2. Accept one connection, and serve it in a task of its own.
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve_connection(stream, Arc::clone(&receiver), stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                log(&format!("a connection cannot be accepted: {error}"));
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
        // Forget the connections that have ended.
        while connections.try_join_next().is_some() {}
    }
    // No connection is accepted from here on.
    drop(listener);
    stopping.send_replace(true);
    let ended = async {
        while connections.join_next().await.is_some() {}
        // A call whose sender went away still runs, and its answer is kept.
        while receiver.running() > 0 {
            tokio::time::sleep(Duration::from_millis(STOP_POLL_MS)).await;
        }
    };
    tokio::time::timeout(within, ended).await.is_ok()
}

async fn serve_connection(stream: TcpStream, receiver: Arc<Receiver>, mut stopped: watch::Receiver<bool>) {
    // Answers are small and complete, so there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let receiver = Arc::clone(&receiver);
        async move { Ok::<_, Infallible>(respond(request, receiver).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_TIMEOUT_MS))
        .max_headers(HEADERS_MAX_COUNT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Errors are those of the peer: a connection that was cut, or a request that is not HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    // The request in progress is still answered.
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn respond(request: Request<Incoming>, receiver: Arc<Receiver>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        let mut response = response(&Reply::empty(405));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    // The body is read before anything is judged, so that the connection can be used again.
    let within = Duration::from_millis(BODY_TIMEOUT_MS);
    let body = match tokio::time::timeout(within, read(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(status)) => return response(&Reply::empty(status)),
        Err(_elapsed) => return response(&Reply::empty(408)),
    };
    let field = |name| single(&head.headers, name).unwrap_or_default();
    let signed = Signed {
        id: field("webhook-id"),
        timestamp: field("webhook-timestamp"),
        signature: field("webhook-signature"),
    };
    response(&receiver.answer(signed, &body).await)
}

/// Returns the value of a header field that is there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Reads a body; the error is the status of the response.
///
/// The bytes are copied into one buffer. A list of the received chunks would let a sender of one byte per chunk, who need
/// not know the key, occupy many times the limit.
async fn read(mut body: Incoming) -> Result<Vec<u8>, u16> {
    let most = limits::CALL_MAX_BYTES;
    // A body that announces too much is not read at all.
    if body.size_hint().lower() > most as u64 {
        return Err(413);
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| 400_u16)?.into_data() else { continue };
        if data.len() > most - whole.len() {
            return Err(413);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

fn response(reply: &Reply) -> Response<Full<Bytes>> {
    let body = Bytes::copy_from_slice(reply.body.expose().as_bytes());
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = reply.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
