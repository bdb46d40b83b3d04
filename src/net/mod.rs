//! HTTP/1.1 server and client. Only this module uses hyper and rustls.
//!
//! A marketplace is an untrusted peer, so all limits on a peer are in this module:
//! - how many bytes a peer may send,
//! - how long a peer may take,
//! - how many peers may be connected at once,
//! - how spid handles a peer that disconnects.
//!
//! The server hands a complete [`Request`] to its handler and sends a complete [`Response`]. No type of hyper leaves
//! this module, so a replacement of hyper changes only this folder.
//!
//! * [`serve`] runs a [`Handler`] on a listener until its stop signal.
//! * [`Client`] sends one request, for hooks and for replays.

mod client;
mod connect;
mod message;
mod outbound_policy;
mod raw;
mod server;
mod tls;
mod url;

pub use client::{Client, ClientError, ClientOptions, ClientRequest, ClientResponse};
pub use message::{Headers, Method, Request, Response};
pub use outbound_policy::OutboundPolicy;
pub use server::{Drained, Handler, HttpFault, ServerOptions, serve};
pub use tls::{NoTls, ServerTls, Tls};
pub use url::{NotAUrl, Url};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

/// Reasons why a body was not read to its end.
enum Unread {
    /// The body has more bytes than allowed.
    TooLarge,
    /// The peer closed the connection, or the bytes it sent are not a valid body.
    Broken(hyper::Error),
}

/// Reads a whole body of at most `max` bytes.
///
/// The bytes are copied into one buffer. A list of the received chunks would let a peer that sends one byte per chunk
/// occupy a multiple of `max`.
async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Unread> {
    // A declared length above the limit is denied before any byte is read or allocated.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(Unread::TooLarge);
    }
    let mut whole = BytesMut::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        // `max - whole.len()` cannot underflow: every earlier chunk passed this check.
        if data.len() > max - whole.len() {
            return Err(Unread::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
