//! Source of a request: networks, and the client's address behind a proxy.
//!
//! A header from an unknown peer proves nothing. The part that a trusted proxy adds to the header is as reliable as
//! that proxy. So the header is read from its end, where the nearest proxy wrote, and only as far as trusted proxies
//! wrote it.
//!
//! Only *one* header is read, the one that the proxy is configured to write. The proxy passes the other header on as
//! the caller sent it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::net::{Headers, Request};
use crate::observe::limits;

/// A network of addresses, in CIDR notation.
///
/// ```
/// use spid::internals::serve::public::Network;
/// let network: Network = "203.0.113.0/24".parse().unwrap();
/// assert!(network.contains("203.0.113.7".parse().unwrap()));
/// assert!(network.contains("::ffff:203.0.113.7".parse().unwrap()));
/// assert!(!network.contains("203.0.114.7".parse().unwrap()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

/// Errors for a text that is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    /// The text cannot be parsed.
    #[error("`{0}` is not a network, like 203.0.113.0/24, 2001:db8::/32 or a single address")]
    Unreadable(String),
    /// The text has two meanings: an address, or the network that contains it.
    #[error(
        "`{given}` sets bits beyond its prefix length: write the network `{meant}`, or the address without `/`"
    )]
    Beyond {
        /// The text as given.
        given: String,
        /// The network that contains the address.
        meant: Network,
    },
}

impl Network {
    /// Returns true if the network contains every address of its family.
    pub fn is_everything(&self) -> bool {
        self.0.prefix_len() == 0
    }

    /// Returns true if the network contains the address. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        // The address is parsed by the standard library: `IpNet` also accepts `010.0.0.0`, which others read as octal.
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address.parse(), Some(length)),
            None => (text.parse(), None),
        };
        let address: IpAddr = address.map_err(|_| NotANetwork::Unreadable(text.to_owned()))?;
        let network = match length {
            None => Some(IpNet::from(address)),
            // The parser of numbers also accepts `+8`.
            Some(length) if length.starts_with('+') => None,
            Some(length) => length.parse().ok().and_then(|length| IpNet::new(address, length).ok()),
        };
        // The prefix length of a mapped network includes the 96 bits in front, which is never intended here.
        let network = network.filter(|_| address.to_canonical() == address);
        let network = network.ok_or_else(|| NotANetwork::Unreadable(text.to_owned()))?;
        if network.trunc() != network {
            return Err(NotANetwork::Beyond { given: text.to_owned(), meant: Network(network.trunc()) });
        }
        Ok(Network(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Trusted proxies in front of spid. Default: none; then the peer is the client.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Networks that the proxies call from.
    pub trusted: Vec<Network>,
    /// Header in which they write the client's address.
    pub header: ProxyHeader,
}

spid_hook::words! {
    /// Header in which a proxy writes the address of its client.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum ProxyHeader {
        /// `X-Forwarded-For`: written by nearly all proxies.
        #[default]
        XForwardedFor = "x-forwarded-for",
        /// `Forwarded` (RFC 7239).
        Forwarded = "forwarded",
    }
}

impl Proxies {
    /// Returns the address that a request came from: the last one that is no proxy's. If a proxy wrote anything else
    /// than an address, the source is unknown beyond that proxy, so the result is the proxy's own address.
    pub fn client(&self, request: &Request) -> IpAddr {
        let peer = request.peer.ip().to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        // From the end of the header, so that the values the caller wrote in front are never reached.
        for hop in self.hops(&request.headers).take(limits::PROXY_HOPS_MAX_COUNT) {
            // An unreadable value hides the addresses in front of it: stop at the proxy that wrote it.
            let Some(address) = hop else { break };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        client
    }

    /// Returns true if the request came through a trusted proxy.
    pub fn brought(&self, request: &Request) -> bool {
        !self.trusted.is_empty() && self.trusts(request.peer.ip().to_canonical())
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Returns the addresses that the proxies wrote, the nearest proxy first.
    fn hops<'a>(&self, headers: &'a Headers) -> Box<dyn Iterator<Item = Option<IpAddr>> + 'a> {
        let lines = headers.all(self.header.as_str());
        let lines: Vec<&str> = lines.map(|line| std::str::from_utf8(line).unwrap_or("?")).collect();
        // Later header lines and later elements are nearer: read both from the end.
        let lines = lines.into_iter().rev();
        match self.header {
            ProxyHeader::XForwardedFor => Box::new(lines.flat_map(|line| line.rsplit(',')).map(node)),
            ProxyHeader::Forwarded => {
                Box::new(lines.flat_map(|line| split_from_end(line, b',')).map(forwarded_for))
            }
        }
    }
}

/// Returns the `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut client = None;
    for pair in split_from_end(element, b';') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        // Quotes stand around a whole value. An element with other quotes is not well formed, so it is not read.
        if name.contains('"') || (quoted.is_none() && value.contains('"')) {
            return None;
        }
        // An element with two `for` has no single client, so it is not read.
        if name.trim().eq_ignore_ascii_case("for") && client.replace(quoted.unwrap_or(value)).is_some() {
            return None;
        }
    }
    node(client?)
}

/// Splits a line at each separator outside of quotes, the last piece first. The line is read from its end, so that an
/// open quote of the caller cannot reach into the text that a proxy appended.
fn split_from_end(line: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let split =
            last_separator(text, separator).and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?)));
        rest = split.map(|(before, _)| before);
        Some(split.map_or(text, |(_, behind)| behind))
    })
}

/// Returns the position of the last separator outside of quotes.
fn last_separator(text: &str, separator: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut in_quotes = false;
    for (at, byte) in bytes.iter().enumerate().rev() {
        if *byte == b'"' {
            // Within quotes, a quote behind an odd number of backslashes belongs to the value.
            let before = bytes.get(..at).unwrap_or_default();
            let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
            in_quotes = !in_quotes || backslashes % 2 == 1;
        } else if *byte == separator && !in_quotes {
            return Some(at);
        }
    }
    None
}

/// Parses an address in the form that proxies write: with or without a port, an IPv6 address with or without brackets.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = if let Ok(address) = text.parse::<IpAddr>() {
        address
    } else if let Ok(with_port) = text.parse::<SocketAddr>() {
        with_port.ip()
    } else {
        text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into()
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn contains(text: &str, address: &str) -> bool {
        network(text).contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_it_says() {
        for (text, inside, outside) in [
            ("203.0.113.0/24", "203.0.113.255", "203.0.112.255"),
            ("203.0.113.7", "203.0.113.7", "203.0.113.8"),
            ("203.0.113.128/25", "203.0.113.128", "203.0.113.127"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::1", "1.2.3.4"),
        ] {
            assert!(contains(text, inside) && !contains(text, outside), "{text}");
        }
        assert_eq!(network("203.0.113.7").to_string(), "203.0.113.7/32");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_no_network() {
        for text in [
            "",
            "/",
            "10",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "010.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/255.0.0.0",
            "::/129",
            "::ffff:10.0.0.0/104",
            "fe80::1%eth0",
            "a.example",
        ] {
            assert!(matches!(text.parse::<Network>(), Err(NotANetwork::Unreadable(_))), "{text}");
        }
        let beyond = "203.0.113.7/24".parse::<Network>().unwrap_err().to_string();
        assert!(beyond.contains("`203.0.113.0/24`"), "{beyond}");
    }

    /// Returns the client of a request from `peer` behind proxies in 10.0.0.0/8 and at ::1.
    fn client(header: ProxyHeader, peer: &str, lines: &[(&str, &str)]) -> String {
        let proxies = Proxies { trusted: vec![network("10.0.0.0/8"), network("::1")], header };
        let peer = SocketAddr::new(peer.parse().unwrap(), 4711);
        let request = Request::get("/spi").with_peer(peer);
        let request = lines.iter().fold(request, |request, (name, value)| request.with_header(name, value));
        proxies.client(&request).to_string()
    }

    #[test]
    fn only_a_proxy_of_ours_is_believed_and_only_what_it_wrote() {
        let xff = |peer, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
            client(ProxyHeader::XForwardedFor, peer, &lines)
        };
        for (peer, lines, expected, why) in [
            ("203.0.113.7", &["198.51.100.1"][..], "203.0.113.7", "an untrusted peer is not believed"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1", "our proxy says who called it"),
            ("::1", &["198.51.100.1"], "198.51.100.1", "the proxy at ::1 is trusted too"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1", "a mapped address is the IPv4 address"),
            (
                "10.0.0.1",
                &["1.1.1.1, 198.51.100.1"],
                "198.51.100.1",
                "a value that the caller sent is ignored",
            ),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1"], "198.51.100.1", "the same with two header lines"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.0.0.2"], "198.51.100.1", "through two proxies of ours"),
            (
                "10.0.0.1",
                &["1.1.1.1, 10.0.0.9, 198.51.100.1"],
                "198.51.100.1",
                "a trusted address in a value of the caller is ignored",
            ),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3", "the call came from inside"),
            ("10.0.0.1", &[], "10.0.0.1", "the proxy wrote no header"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1", "an unknown client is the proxy"),
            ("10.0.0.1", &["198.51.100.1, "], "10.0.0.1", "an empty value is not skipped"),
            ("10.0.0.1", &["198.51.100.1:443"], "198.51.100.1", "with a port"),
            ("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1", "with a port"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1", "without"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1", "bracketed"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1", "mapped"),
            ("10.0.0.1", &["for=198.51.100.1"], "10.0.0.1", "the other header's way of writing"),
        ] {
            assert_eq!(xff(peer, lines), expected, "{why}: {peer} {lines:?}");
        }
    }

    #[test]
    fn the_other_header_is_the_caller_s_own() {
        let both = [("Forwarded", "for=1.1.1.1"), ("X-Forwarded-For", "198.51.100.1")];
        assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &both), "198.51.100.1");
        assert_eq!(client(ProxyHeader::Forwarded, "10.0.0.1", &both), "1.1.1.1");
        assert_eq!(client(ProxyHeader::Forwarded, "10.0.0.1", &both[1..]), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        let forwarded = |line| client(ProxyHeader::Forwarded, "10.0.0.1", &[("Forwarded", line)]);
        for (line, expected) in [
            ("for=192.0.2.60;proto=https;by=203.0.113.43", "192.0.2.60"),
            ("by=203.0.113.43; For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=1.1.1.1, for=192.0.2.43, for=10.0.0.9", "192.0.2.43"),
            ("for=192.0.2.43;for=1.1.1.1", "10.0.0.1"),
            ("for=unknown", "10.0.0.1"),
            ("for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ("for=\"1.1.1.1", "10.0.0.1"),
            // A separator within quotes belongs to the value, which may be text of the caller.
            ("for=192.0.2.43;ext=\"a,for=1.1.1.1\"", "192.0.2.43"),
            ("for=192.0.2.43;host=\"a,for=1.1.1.1;x\"", "192.0.2.43"),
            ("for=192.0.2.43;host=\"a\\\",for=1.1.1.1;x\"", "192.0.2.43"),
            ("host=\"a\\\\\";for=192.0.2.43", "192.0.2.43"),
            ("for=1.1.1.1;x=\"a, for=192.0.2.43", "192.0.2.43"),
            ("for=1.1.1.1;x=\"a, for=10.0.0.9", "10.0.0.9"),
            ("x=a\"b\";for=1.1.1.1", "10.0.0.1"),
        ] {
            assert_eq!(forwarded(line), expected, "{line}");
        }
    }

    #[test]
    fn a_list_without_an_end_is_not_read_to_its_end() {
        let long = vec!["10.0.0.5"; 2_000].join(",");
        assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", &long)]), "10.0.0.5");
    }

    proptest! {
        /// Any text in front of it does not change the address that the trusted proxy wrote.
        #[test]
        fn nothing_in_front_changes_what_our_proxy_wrote(made_up in "[ -~]{0,200}") {
            let line = format!("{made_up}, 198.51.100.1");
            let lines = [("x-forwarded-for", made_up.as_str()), ("x-forwarded-for", line.as_str())];
            prop_assert_eq!(client(ProxyHeader::XForwardedFor, "10.0.0.1", &lines), "198.51.100.1");
            let line = format!("{made_up}, for=198.51.100.1");
            let lines = [("forwarded", made_up.as_str()), ("forwarded", line.as_str())];
            prop_assert_eq!(client(ProxyHeader::Forwarded, "10.0.0.1", &lines), "198.51.100.1");
        }

        #[test]
        fn a_network_has_its_own_first_and_last_address(bits in 0_u32..=32, address: u32) {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let first = std::net::Ipv4Addr::from(address & mask);
            let network: Network = format!("{first}/{bits}").parse().unwrap();
            prop_assert!(network.contains(IpAddr::V4((address | !mask).into())));
            prop_assert!(bits == 0 || !network.contains(IpAddr::V4((address ^ (1 << (32 - bits))).into())));
        }
    }
}
