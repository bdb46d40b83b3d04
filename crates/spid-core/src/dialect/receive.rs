//! Requests as they arrive, and the reasons to deny one.

use jiff::Timestamp;

use crate::query::{QueryError, Rule};
use crate::signature::Mismatch;
use spid_hook::callback::{Nonce, Parameters};

/// A request as it came from the socket. A function looks up the headers, so that nothing is copied.
#[derive(Clone, Copy)]
pub struct RawRequest<'a> {
    /// Method, in upper case as it was sent.
    pub method: &'a str,
    /// Query string without its `?`, still encoded; empty when there is none.
    pub query: &'a [u8],
    /// Returns the value of a header by its lower-case name; `None` when it is missing, given twice or not text.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    /// Body; empty when there is none.
    pub body: &'a [u8],
}

impl<'a> RawRequest<'a> {
    /// A `GET` without headers or a body.
    pub fn get(query: &'a [u8]) -> RawRequest<'a> {
        RawRequest { method: "GET", query, header: &|_| None, body: b"" }
    }

    /// Media type of the body, in lower case, without its parameters.
    pub(super) fn media_type(&self) -> Option<String> {
        let text = (self.header)("content-type")?;
        Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }
}

/// Decoded content of a request, before and during the signature check.
/// Only [`Dialect::callback`](super::Dialect::callback), which takes it verified, can read it.
#[derive(Debug, Clone)]
pub struct Unchecked {
    pub(super) parameters: Parameters,
    pub(super) sent_at: Option<Timestamp>,
    pub(super) nonce: Option<Nonce>,
}

spid_hook::words! {
    /// Words for denials, except those of a [`Rule`]. [`Denial::facts`] uses each, so the list is complete.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum DenialReason {
        MissingSignature = "missing-signature",
        MalformedSignature = "malformed-signature",
        WrongSignature = "wrong-signature",
        Method = "method",
        ContentType = "content-type",
        Malformed = "malformed",
        Source = "source",
        Undated = "undated",
        Stale = "stale",
        Replayed = "replayed",
    }
}

/// Reason for which a request is denied. `Display` is the message for the log.
/// The caller may read only [`Denial::public`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Parameters are ambiguous, or over a limit.
    #[error(transparent)]
    Parameters(#[from] QueryError),
    /// Signature is not valid.
    #[error(transparent)]
    Signature(#[from] Mismatch),
    /// Method that the dialect does not accept.
    #[error("method `{}` is not supported; use {allowed}", method.escape_debug())]
    Method {
        /// Method of the request, shortened.
        method: String,
        /// Accepted methods, as an `Allow` header lists them.
        allowed: &'static str,
    },
    /// Body in a format that the dialect cannot read, and so cannot check.
    #[error("content-type must be {expected}")]
    ContentType {
        /// Accepted media types.
        expected: &'static str,
    },
    /// Signed content that differs from the dialect's documentation.
    #[error("the request is malformed: {detail}")]
    Malformed {
        /// Description of the fault; never contains a value.
        detail: String,
    },
    /// Client address that is in none of the networks the endpoint allows.
    #[error("the client address is in none of the networks in the endpoint's `allow`")]
    Source,
    /// Dated request without a readable date.
    #[error("the timestamp is missing or unreadable")]
    Undated,
    /// Dated request that is too old, or from the future.
    #[error("the timestamp is {off_by_s} s from this clock; the limit is {limit_s} s: compare both clocks")]
    Stale {
        /// Seconds between the request's clock and ours; positive when the request is old.
        off_by_s: i64,
        /// Maximum distance, in seconds.
        limit_s: i64,
    },
    /// Copy of an accepted request. The signature is valid, but the nonce was used before.
    #[error("the nonce was used before: this is a copy of an accepted request")]
    Replayed,
}

impl Denial {
    /// Denies signed content that differs from the documentation.
    pub(super) fn malformed(detail: impl Into<String>) -> Denial {
        Denial::Malformed { detail: detail.into() }
    }

    /// Denies the method of a request, if it is none of `allowed`.
    pub(super) fn method(request: &RawRequest<'_>, allowed: &'static str) -> Denial {
        Denial::Method { method: request.method.chars().take(16).collect(), allowed }
    }

    /// Denies a dated request that is more than `window_ms` from now.
    pub(super) fn check_date(sent_at: Timestamp, now: Timestamp, window_ms: i64) -> Result<(), Denial> {
        let off_by_ms = now.as_millisecond().saturating_sub(sent_at.as_millisecond());
        if off_by_ms.abs() > window_ms {
            return Err(Denial::Stale { off_by_s: off_by_ms / 1000, limit_s: window_ms / 1000 });
        }
        Ok(())
    }

    /// All words that [`Denial::reason`] returns.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        DenialReason::ALL.map(DenialReason::as_str).into_iter().chain(Rule::ALL.map(Rule::as_str))
    }

    /// Short, stable word under which denied requests are counted.
    pub const fn reason(&self) -> &'static str {
        self.facts().0
    }

    /// HTTP status of the reply.
    pub const fn status(&self) -> u16 {
        self.facts().1
    }

    /// Text that the caller may read. Every invalid signature gives the same text.
    pub const fn public(&self) -> &'static str {
        self.facts().2
    }

    /// Reason, status and public text.
    const fn facts(&self) -> (&'static str, u16, &'static str) {
        match self {
            Denial::Parameters(error) => (error.reason(), 400, "bad request"),
            Denial::Signature(Mismatch::Missing) => {
                (DenialReason::MissingSignature.as_str(), 403, "forbidden")
            }
            Denial::Signature(Mismatch::Malformed) => {
                (DenialReason::MalformedSignature.as_str(), 403, "forbidden")
            }
            Denial::Signature(Mismatch::Wrong) => (DenialReason::WrongSignature.as_str(), 403, "forbidden"),
            Denial::Method { .. } => (DenialReason::Method.as_str(), 405, "method not allowed"),
            Denial::ContentType { .. } => {
                (DenialReason::ContentType.as_str(), 415, "unsupported content type")
            }
            Denial::Malformed { .. } => (DenialReason::Malformed.as_str(), 400, "bad request"),
            Denial::Source => (DenialReason::Source.as_str(), 403, "forbidden"),
            Denial::Undated => (DenialReason::Undated.as_str(), 403, "forbidden: no timestamp"),
            Denial::Stale { .. } => {
                (DenialReason::Stale.as_str(), 403, "forbidden: the timestamp is too far from this clock")
            }
            Denial::Replayed => {
                (DenialReason::Replayed.as_str(), 403, "forbidden: the nonce was used before")
            }
        }
    }
}
