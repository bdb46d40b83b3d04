//! Addresses that spid sends requests to, with a strict parser.
//!
//! If a strict and a lenient parser read the same address differently, a request can reach the wrong host. So this
//! parser rejects unusual input, and its error names the part that is wrong.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Error for a text that is not a usable address. The error does not repeat the address, which may hold a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a usable URL: {0}")]
pub struct NotAUrl(&'static str);

/// An `http` or `https` URL: scheme, host, port, path and query.
///
/// ```
/// use spid::internals::net::Url;
/// let url: Url = "http://[::1]:8080/spi?action=verify".parse().unwrap();
/// assert_eq!((url.host(), url.port(), url.target()), ("::1", 8080, "/spi?action=verify"));
/// assert!(url.is_loopback());
/// assert!("http://user@example.com/".parse::<Url>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    secure: bool,
    host: String,
    port: u16,
    pub(super) uri: hyper::Uri,
}

impl Url {
    /// Returns true if the scheme is `https`.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Returns the host: a name or an address, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port; without one in the URL, the default port of the scheme.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns path and query in the form of the request line.
    pub fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    /// Returns the value of a `Host` header: brackets around IPv6, the port unless it is the default port of the
    /// scheme.
    pub fn authority(&self) -> String {
        self.uri.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Returns true if the host is certainly this machine. A name that only resolves to this machine does not count.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }

    /// Returns a URL with the same host and another path and query.
    ///
    /// # Errors
    /// Fails if `target` does not start with `/`, or holds a character that no path or query may have.
    pub fn with_target(&self, target: &str) -> Result<Url, NotAUrl> {
        Ok(Url { uri: absolute(self.secure, &self.authority(), target)?, ..self.clone() })
    }
}

/// Shows the URL without its query, which may hold a token.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.uri.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Url {
    type Err = NotAUrl;

    fn from_str(text: &str) -> Result<Url, NotAUrl> {
        check_characters(text)?;
        let (scheme, rest) =
            text.split_once("://").ok_or(NotAUrl("the URL does not start with `http://` or `https://`"))?;
        let secure = parse_scheme(scheme)?;
        // A query may follow the host without a path: `http://host?x=1`.
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = parse_authority(authority)?;
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let port = port.unwrap_or(default_port(secure));
        let mut authority = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if port != default_port(secure) {
            authority = format!("{authority}:{port}");
        }
        let uri = absolute(secure, &authority, &target)?;
        Ok(Url { secure, host, port, uri })
    }
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

fn check_characters(text: &str) -> Result<(), NotAUrl> {
    for byte in text.bytes() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return Err(NotAUrl("the URL contains white space")),
            0..=31 | 127 => return Err(NotAUrl("the URL contains a control character")),
            128.. => {
                return Err(NotAUrl(
                    "the URL contains a character that is not ASCII: percent-encode this character",
                ));
            }
            b'#' => {
                return Err(NotAUrl(
                    "the URL has a fragment (`#`), which is never sent: remove the fragment",
                ));
            }
            // Browsers read a backslash as a slash, other parsers as part of the host.
            b'\\' => return Err(NotAUrl("the URL contains a backslash: use `/`")),
            _ => {}
        }
    }
    Ok(())
}

fn parse_scheme(scheme: &str) -> Result<bool, NotAUrl> {
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok(false),
        "https" => Ok(true),
        _ => Err(NotAUrl("the scheme is neither `http` nor `https`")),
    }
}

fn parse_authority(authority: &str) -> Result<(String, Option<u16>), NotAUrl> {
    // User names are never sent, and `trusted.example@evil.example` misleads the reader about the host.
    if authority.contains('@') {
        return Err(NotAUrl("the URL has a user name or password before the host: remove both"));
    }
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(NotAUrl("the host has `[` without `]`"))?;
        let address: Ipv6Addr =
            host.parse().map_err(|_| NotAUrl("the text in the brackets is not an IPv6 address"))?;
        // The parsed form is kept, so that two spellings of one address compare as equal.
        return Ok((address.to_string(), parse_port(rest)?));
    }
    let end = authority.find(':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(end);
    check_name(host)?;
    Ok((host.to_owned(), parse_port(port)?))
}

fn check_name(host: &str) -> Result<(), NotAUrl> {
    if host.is_empty() {
        return Err(NotAUrl("the URL has no host"));
    }
    if host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
        Ok(())
    } else {
        Err(NotAUrl("the host has a character that is not allowed in a host name"))
    }
}

/// Parses the text after the host: nothing, or a colon and a number.
fn parse_port(rest: &str) -> Result<Option<u16>, NotAUrl> {
    const WRONG: NotAUrl = NotAUrl("the port is not a number from 1 to 65535");
    if rest.is_empty() {
        return Ok(None);
    }
    let digits = rest.strip_prefix(':').ok_or(WRONG)?;
    // The standard parser also accepts `+80`.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WRONG);
    }
    digits.parse().ok().filter(|port| *port != 0).map(Some).ok_or(WRONG)
}

fn absolute(secure: bool, authority: &str, target: &str) -> Result<hyper::Uri, NotAUrl> {
    check_characters(target)?;
    if !target.starts_with('/') {
        return Err(NotAUrl("the path does not start with `/`"));
    }
    let scheme = if secure { "https" } else { "http" };
    let uri = format!("{scheme}://{authority}{target}");
    uri.parse().map_err(|_| NotAUrl("the path or the query has a character that is not allowed in a URL: percent-encode this character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        text.parse::<Url>().unwrap_err().to_string()
    }

    #[test]
    fn what_a_url_says_is_what_we_use() {
        let cases = [
            ("http://example.com", "example.com", 80, "/", "example.com"),
            ("HTTPS://example.com/a/b", "example.com", 443, "/a/b", "example.com"),
            ("http://example.com:80/", "example.com", 80, "/", "example.com"),
            ("http://10.0.0.7:8080?x=1", "10.0.0.7", 8080, "/?x=1", "10.0.0.7:8080"),
            ("http://[::1]/spi?a=%2F&b=//", "::1", 80, "/spi?a=%2F&b=//", "[::1]"),
            ("http://[0:0::1]:9/", "::1", 9, "/", "[::1]:9"),
            ("http://a/@", "a", 80, "/@", "a"),
        ];
        for (text, host, port, target, authority) in cases {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.target()), (host, port, target), "{text}");
            assert_eq!(url.authority(), authority, "{text}");
            assert_eq!(url.is_secure(), text.starts_with("HTTPS"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("example.com/spi", "http://"),
            ("ftp://example.com/", "scheme"),
            ("http:///spi", "no host"),
            ("http://:80/", "no host"),
            ("http://me:pw@example.com/", "user name"),
            ("http://example.com/#top", "fragment"),
            ("http://example.com/a b", "white space"),
            ("http://example.com/\r\nHost: x", "white space"),
            ("http://example.com/\u{1}", "control"),
            ("http://exämple.com/", "ASCII"),
            ("http://example.com\\@evil/", "backslash"),
            ("http://example.com:/", "port"),
            ("http://example.com:0/", "port"),
            ("http://example.com:65536/", "port"),
            ("http://example.com:+80/", "port"),
            ("http://[::1/", "without `]`"),
            ("http://[::1]80/", "port"),
            ("http://[fe80::1%eth0]/", "IPv6"),
            ("http://::1/", "no host"),
            ("http://exa%6dple.com/", "host"),
        ];
        for (text, part) in cases {
            assert!(why(text).contains(part), "{text}: {}", why(text));
        }
    }

    #[test]
    fn only_certain_loopback_counts() {
        for yes in ["http://localhost/", "http://127.0.0.1:1/", "http://127.9.9.9/", "http://[::1]/"] {
            assert!(yes.parse::<Url>().unwrap().is_loopback(), "{yes}");
        }
        for no in ["http://localhost.example/", "http://10.0.0.1/", "http://127.0.0.1.example/"] {
            assert!(!no.parse::<Url>().unwrap().is_loopback(), "{no}");
        }
    }

    #[test]
    fn the_query_is_not_shown() {
        let url: Url = "http://isv.example/spi?token=sesame".parse().unwrap();
        assert_eq!(format!("{url} {url:?}"), "http://isv.example/spi http://isv.example/spi");
        assert_eq!(url.with_target("/other?x").unwrap().target(), "/other?x");
        assert!(url.with_target("other").is_err());
    }
}
