//! HTTP faults: requests and connections that the server denies.

use super::timeouts::Phase;

/// HTTP faults: reasons why the server denied a connection or a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpFault {
    /// The received bytes are not HTTP/1: 400.
    Malformed,
    /// Too many header fields, or too many bytes of them: 431.
    HeadersTooLarge,
    /// The URI is too long: 414. A URI longer than the limit of all headers is `HeadersTooLarge`.
    UriTooLong,
    /// The method is CONNECT, and spid is no proxy: 405.
    NoProxy,
    /// A GET or a HEAD has a body: 400.
    BodyUnexpected,
    /// The body is too large: 413.
    BodyTooLarge,
    /// The body was not received in time: 408.
    BodyLate,
    /// The body broke off or has invalid framing: 400, if the peer is still connected.
    BodyBroken,
    /// The headers were not received in time: closed.
    HeadersLate,
    /// The peer did not read its response in time: closed.
    AnswerNotTaken,
    /// The connection limit was reached, and this connection was the longest without a request: closed.
    Displaced,
    /// The received bytes are not TLS, or no TLS version that spid supports: closed with an alert.
    TlsFailed,
    /// The peer did not finish the TLS handshake in time: closed.
    TlsLate,
}

impl HttpFault {
    /// All faults.
    pub const ALL: [HttpFault; 13] = [
        HttpFault::Malformed,
        HttpFault::HeadersTooLarge,
        HttpFault::UriTooLong,
        HttpFault::NoProxy,
        HttpFault::BodyUnexpected,
        HttpFault::BodyTooLarge,
        HttpFault::BodyLate,
        HttpFault::BodyBroken,
        HttpFault::HeadersLate,
        HttpFault::AnswerNotTaken,
        HttpFault::Displaced,
        HttpFault::TlsFailed,
        HttpFault::TlsLate,
    ];

    /// Returns the fault as one word, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            HttpFault::Malformed => "malformed",
            HttpFault::HeadersTooLarge => "headers_too_large",
            HttpFault::UriTooLong => "uri_too_long",
            HttpFault::NoProxy => "no_proxy",
            HttpFault::BodyUnexpected => "body_unexpected",
            HttpFault::BodyTooLarge => "body_too_large",
            HttpFault::BodyLate => "body_late",
            HttpFault::BodyBroken => "body_broken",
            HttpFault::HeadersLate => "headers_late",
            HttpFault::AnswerNotTaken => "answer_not_taken",
            HttpFault::Displaced => "displaced",
            HttpFault::TlsFailed => "tls_failed",
            HttpFault::TlsLate => "tls_late",
        }
    }

    pub(super) fn status(self) -> u16 {
        match self {
            HttpFault::UriTooLong => 414,
            HttpFault::HeadersTooLarge => 431,
            HttpFault::NoProxy => 405,
            HttpFault::BodyTooLarge => 413,
            HttpFault::BodyLate => 408,
            _ => 400,
        }
    }
}

/// Returns the fault of the peer, if the peer caused this error of a connection.
pub(super) fn denial_of_error(error: &hyper::Error) -> Option<HttpFault> {
    if error.is_parse_too_large() {
        Some(HttpFault::HeadersTooLarge)
    } else if error.is_parse() {
        Some(HttpFault::Malformed)
    } else {
        None
    }
}

/// Returns the fault for a phase that lasted too long. An idle connection is no fault.
pub(super) fn denial_of_timeout(phase: Phase) -> Option<HttpFault> {
    match phase {
        Phase::Head => Some(HttpFault::HeadersLate),
        Phase::Answer => Some(HttpFault::AnswerNotTaken),
        _ => None,
    }
}
