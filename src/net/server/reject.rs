//! HTTP faults: requests and connections that the server denies.

use super::timeouts::Phase;

spid_hook::words! {
    /// HTTP faults: reasons why the server denied a connection or a request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum HttpFault {
        /// The received bytes are not HTTP/1: 400.
        Malformed = "malformed",
        /// Too many header fields, or too many bytes of them: 431.
        HeadersTooLarge = "headers_too_large",
        /// The URI is too long: 414. A URI longer than the limit of all headers is `HeadersTooLarge`.
        UriTooLong = "uri_too_long",
        /// The method is CONNECT, and spid is no proxy: 405.
        NoProxy = "no_proxy",
        /// A GET or a HEAD has a body: 400.
        BodyUnexpected = "body_unexpected",
        /// The body is too large: 413.
        BodyTooLarge = "body_too_large",
        /// The body was not received in time: 408.
        BodyLate = "body_late",
        /// The body broke off or has invalid framing: 400, if the peer is still connected.
        BodyBroken = "body_broken",
        /// The headers were not received in time: closed.
        HeadersLate = "headers_late",
        /// The peer did not read its response in time: closed.
        AnswerNotTaken = "answer_not_taken",
        /// The connection limit was reached, and this connection was the longest without a request: closed.
        Displaced = "displaced",
        /// The received bytes are not TLS, or no TLS version that spid supports: closed with an alert.
        TlsFailed = "tls_failed",
        /// The peer did not finish the TLS handshake in time: closed.
        TlsLate = "tls_late",
    }
}

impl HttpFault {
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
