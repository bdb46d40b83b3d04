//! HTTP/1.1 in and out, and *the* user of hyper and of rustls.
//!
//! A marketplace is a stranger with a socket, so everything a stranger can do to a server is met
//! here and nowhere else: how much a peer may send, how long it may take, how many peers there may
//! be, what happens when one hangs up. What comes out is a whole [`Request`], what goes in is a whole
//! [`Response`]; no type of hyper passes this module, so that replacing it is a change to this
//! folder.
//!
//! * [`serve`] runs a [`Handler`] behind a listener until it is told to stop.
//! * [`Client`] sends one request, for hooks and for replays.

mod client;
mod link;
mod message;
mod reach;
mod server;
mod tls;
mod url;

pub use client::{Client, ClientError, ClientOptions, ClientRequest, ClientResponse};
pub use message::{Headers, Method, Request, Response};
pub use reach::Reach;
pub use server::{Drained, Handler, ServerOptions, TurnedAway, serve};
pub use tls::{NoTls, ServerTls, Tls};
pub use url::{NotAUrl, Url};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::observe::limits;

/// Why a body was not read to its end.
enum Unread {
    /// It has more bytes than allowed.
    TooLarge,
    /// The peer broke off, or what it sent is not a body.
    Broken(hyper::Error),
}

/// Reads a whole body of at most `max` bytes.
///
/// The bytes are copied together: a list of the chunks as they came would let a peer that sends one
/// byte per chunk occupy a multiple of `max`.
async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Unread> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(Unread::TooLarge);
    }
    let mut whole = BytesMut::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if data.len() > max - whole.len() {
            return Err(Unread::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
