//! Requests and responses, complete and independent of a socket.
//!
//! Their `Debug` shows sizes and names only: a query string carries the token, and a response may carry an initial
//! password.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// HTTP method of a request. Only the methods that some part of the daemon answers have a variant of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// GET: reads, has no body.
    Get,
    /// POST: sends a body.
    Post,
    /// HEAD: a GET whose response has no body.
    Head,
    /// Any other method, spelled as the peer sent it, because methods are case-sensitive.
    Other(String),
}

impl Method {
    /// Returns the method in the form of the request line.
    pub fn as_str(&self) -> &str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Head => "HEAD",
            Method::Other(name) => name,
        }
    }
}

impl From<&str> for Method {
    fn from(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "HEAD" => Method::Head,
            other => Method::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Header fields. Names compare without regard to case and are listed in lower case.
#[derive(Clone, Default)]
pub struct Headers(pub(super) HeaderMap);

impl Headers {
    /// Returns the first value of `name`. Use [`Headers::all`] if a second value would be an attack.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(HeaderValue::as_bytes)
    }

    /// Returns the first value of `name`, if it is printable ASCII.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    /// Returns the value of `name`, if the header occurs exactly once and is printable ASCII. Of two values, a proxy in
    /// front of spid may have read the other one.
    pub fn only(&self, name: &str) -> Option<&str> {
        // A second value makes the header ambiguous, even if both are equal.
        let mut values = self.0.get_all(name).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { value.to_str().ok() }
    }

    /// Returns every value of `name`, in the order received.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }

    /// Returns every field: its name in lower case, and its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
    }

    /// Returns the number of fields; a name that occurs twice counts twice.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no fields.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a field after the existing fields of this name. Returns `None` if HTTP cannot carry the name or the value.
    pub(super) fn append(&mut self, name: &str, value: &str) -> Option<()> {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_str(value).ok()?;
        self.0.try_append(name, value).ok().map(drop)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys().map(HeaderName::as_str)).finish()
    }
}

/// Target of a request: parsed by hyper without a copy, or given by the caller that built the request.
#[derive(Clone)]
enum Target {
    Wire(hyper::Uri),
    Given(String),
}

/// A complete request, with its body.
///
/// ```
/// use spid::internals::net::Request;
/// let request = Request::get("/spi?action=renewInstance").with_header("Host", "isv.example");
/// assert_eq!((request.path(), request.query()), ("/spi", &b"action=renewInstance"[..]));
/// assert_eq!(request.headers.text("host"), Some("isv.example"));
/// ```
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    target: Target,
    /// The header fields.
    pub headers: Headers,
    /// The body; empty if the request has none.
    pub body: Bytes,
    /// Address of the other end of the connection, which may be a proxy.
    pub peer: SocketAddr,
    /// Address of the client: the peer's, unless the handler trusts the peer as a proxy and reads the client from a
    /// header.
    pub client: IpAddr,
}

impl Request {
    /// Returns a request that was not received over a socket. `target` is a path, with a query after the first `?`.
    pub fn new(method: Method, target: impl Into<String>) -> Request {
        // No socket exists, so the peer is loopback.
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let target = Target::Given(target.into());
        let (headers, client) = (Headers::default(), peer.ip());
        Request { method, target, headers, body: Bytes::new(), peer, client }
    }

    /// Returns a GET that was not received over a socket.
    pub fn get(target: impl Into<String>) -> Request {
        Request::new(Method::Get, target)
    }

    /// Returns a POST with an empty body that was not received over a socket.
    pub fn post(target: impl Into<String>) -> Request {
        Request::new(Method::Post, target)
    }

    /// Replaces the body with `body`.
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Request {
        self.body = body.into();
        self
    }

    /// Adds one header field. A field that HTTP cannot carry is left out, because it could not have been received
    /// either.
    pub fn with_header(mut self, name: &str, value: &str) -> Request {
        let _ = self.headers.append(name, value);
        self
    }

    /// Sets `peer` as the address that the request came from.
    pub fn with_peer(mut self, peer: SocketAddr) -> Request {
        self.peer = peer;
        // `::ffff:10.0.0.7` becomes `10.0.0.7`, so that rules and limits for IPv4 addresses apply to it.
        self.client = peer.ip().to_canonical();
        self
    }

    /// Builds the request from the head that hyper has read, and also returns the unread body.
    pub(super) fn from_wire<B>(request: hyper::Request<B>, peer: SocketAddr) -> (Request, B) {
        let (head, body) = request.into_parts();
        let method = Method::from(head.method.as_str());
        let (target, headers) = (Target::Wire(head.uri), Headers(head.headers));
        let client = peer.ip().to_canonical();
        (Request { method, target, headers, body: Bytes::new(), peer, client }, body)
    }

    /// Returns the path as received, still percent-encoded.
    pub fn path(&self) -> &str {
        match &self.target {
            Target::Wire(uri) => uri.path(),
            Target::Given(target) => target.split_once('?').map_or(target, |(path, _)| path),
        }
    }

    /// Returns the bytes after the first `?`, as received; empty if there is no query.
    pub fn query(&self) -> &[u8] {
        let query = match &self.target {
            Target::Wire(uri) => uri.query(),
            Target::Given(target) => target.split_once('?').map(|(_, query)| query),
        };
        query.unwrap_or_default().as_bytes()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("query_bytes", &self.query().len())
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .field("peer", &self.peer)
            .field("client", &self.client)
            .finish()
    }
}

/// A response.
///
/// The server adds `Content-Length` and `Date`, and `Cache-Control: no-store` unless the response has that header. A
/// response concerns one callback, so no cache may store it.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code, 200 to 999; any other value is sent as 500.
    pub status: u16,
    /// Header fields in addition to those that are always added.
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// The body; not sent in response to HEAD.
    pub body: Bytes,
}

impl Response {
    /// Returns a response with a body of the media type `kind`.
    pub fn new(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response {
        let headers = vec![(Cow::Borrowed("content-type"), Cow::Borrowed(kind))];
        Response { status, headers, body: body.into() }
    }

    /// Returns a response without a body.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// Returns a JSON response; `body` is the encoded text.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Response {
        Response::new(status, "application/json", body)
    }

    /// Returns a plain text response.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", body)
    }

    /// Returns a `302 Found` that redirects to `location`. A location that does not fit a header is sent as 500.
    pub fn redirect(location: impl Into<String>) -> Response {
        Response::empty(302).with_header("location", location.into())
    }

    /// Adds one header field.
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_ref()).collect();
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &names)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_as_sent() {
        let request = Request::get("/a%20b?x=1?2&token=00");
        assert_eq!((request.path(), request.query()), ("/a%20b", &b"x=1?2&token=00"[..]));
        let bare = Request::post("/spi");
        assert_eq!((bare.path(), bare.query()), ("/spi", &b""[..]));
        let wire = Target::Wire("/a%20b?x=1?2".parse().unwrap());
        let request = Request { target: wire, ..bare };
        assert_eq!((request.path(), request.query()), ("/a%20b", &b"x=1?2"[..]));
    }

    #[test]
    fn headers_are_found_in_any_case_and_all_of_them() {
        let request = Request::get("/").with_header("X-Sign", "one").with_header("x-sign", "two");
        assert_eq!(request.headers.get("X-SIGN"), Some(&b"one"[..]));
        assert_eq!(request.headers.all("x-sign").collect::<Vec<_>>(), [b"one", b"two"]);
        assert_eq!(request.headers.iter().next(), Some(("x-sign", &b"one"[..])));
        assert_eq!((request.headers.len(), request.headers.is_empty()), (2, false));
        assert_eq!((request.headers.text("x-sign"), request.headers.only("x-sign")), (Some("one"), None));
        assert_eq!(Request::get("/").with_header("x-sign", "one").headers.only("X-Sign"), Some("one"));
        assert_eq!(request.with_header("bad name", "v").headers.len(), 2);
    }

    #[test]
    fn debug_shows_no_query_no_values_and_no_body() {
        let request = Request::get("/spi?token=sesame").with_header("authorization", "sesame");
        let request = request.with_body("sesame");
        let response = Response::json(200, "sesame").with_header("location", "sesame");
        let shown = format!("{request:?} {response:?}");
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(shown.contains("/spi") && shown.contains("authorization"), "{shown}");
    }

    #[test]
    fn methods_keep_their_spelling() {
        for name in ["GET", "POST", "HEAD", "get", "PURGE"] {
            assert_eq!(Method::from(name).to_string(), name);
        }
    }
}
