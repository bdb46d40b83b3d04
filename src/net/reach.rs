//! Addresses that a client may connect to.
//!
//! The URL of a hook comes from the configuration, but the owner of the DNS name decides its address. The metadata
//! service of a cloud gives the machine's credentials to any local process that asks. So spid never connects to a
//! metadata service, even if a name resolves to it.
//!
//! The check is made on the exact addresses that the socket then connects to. A name that resolves differently in
//! between therefore gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that a [`Client`](super::Client) may connect to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// Any address, because a person typed the URL.
    #[default]
    Anywhere,
    /// Any host, but no link-local, multicast or unspecified address and no metadata service of a cloud.
    Hosts,
    /// The addresses of `Hosts`; without TLS only loopback and private ones.
    Confidential,
}

/// Metadata services outside the link-local range: Alibaba Cloud, Azure, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// Metadata service of Google Cloud.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

impl Reach {
    /// Returns the reason why this address is forbidden, with or without TLS; `None` if it is allowed.
    pub fn forbids(self, address: IpAddr, secure: bool) -> Option<&'static str> {
        // An IPv6 address that leads to an IPv4 address must pass in both forms.
        let forms = [Some(address), embedded(address)].into_iter().flatten().chain(translated(address));
        let forbidden = || forms.clone().find_map(never);
        match self {
            Reach::Anywhere => None,
            Reach::Hosts => forbidden(),
            Reach::Confidential => forbidden().or_else(|| {
                // An IPv6 form of a private IPv4 address counts as private.
                let open = !secure && !is_private(embedded(address).unwrap_or(address));
                open.then_some("a public address, and http does not encrypt: use https")
            }),
        }
    }
}

fn never(address: IpAddr) -> Option<&'static str> {
    let metadata = match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        // Amazon's fd00:ec2::/32 holds instance metadata, credentials of pods, and name service.
        IpAddr::V6(v6) => v6 == METADATA_V6 || v6.segments().starts_with(&[0xfd00, 0xec2]),
    };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if metadata {
        Some("a cloud's metadata service")
    } else if link_local {
        Some("a link-local address, which clouds use for their metadata service")
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("a multicast or broadcast address")
    } else if address.is_unspecified() {
        Some("the unspecified address, which names no host")
    } else {
        None
    }
}

/// Returns true for loopback, the private ranges (RFC 1918, RFC 4193), and the shared range of carriers (RFC 6598), in
/// which clouds put their internal services.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_loopback() || v4.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

/// Returns the IPv4 address that a packet to this IPv6 address reaches: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

/// Returns the IPv4 addresses that a translator may read in an address of the prefix 64:ff9b:1::/48, which networks use
/// for their own NAT64 (RFC 8215). RFC 6052 puts the IPv4 address behind a prefix of 48, 56, 64 or 96 bits, and the
/// prefix in use is unknown here. So each of these addresses must be allowed.
fn translated(address: IpAddr) -> impl Iterator<Item = IpAddr> + Clone {
    let bits = match address {
        IpAddr::V6(v6) if v6.segments().starts_with(&[0x64, 0xff9b, 1]) => Some(v6.to_bits()),
        _ => None,
    };
    let octets = bits.map(u128::to_be_bytes);
    let places = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
    let read = move |place: [usize; 4]| {
        let octet = |at: usize| octets.as_ref().and_then(|octets| octets.get(at)).copied();
        let [a, b, c, d] = place.map(octet);
        Some(Ipv4Addr::new(a?, b?, c?, d?))
    };
    // Zeros only show that the address is in another place.
    places.into_iter().filter_map(read).filter(|v4| !v4.is_unspecified()).map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbids(reach: Reach, address: &str, secure: bool) -> bool {
        reach.forbids(address.parse().unwrap(), secure).is_some()
    }

    #[test]
    fn a_metadata_service_is_no_hook_in_whatever_disguise() {
        for address in [
            "169.254.169.254",
            "169.254.0.23",
            "fe80::1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::100.100.100.200",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:a9:fe:a9fe::",
            "64:ff9b:1:0:a9:fea9:fe00::",
            "64:ff9b:1:6464:64:c800::",
            "2002:a9fe:a9fe::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
        ] {
            for secure in [false, true] {
                assert!(forbids(Reach::Hosts, address, secure), "{address}");
                assert!(forbids(Reach::Confidential, address, secure), "{address}");
            }
            assert!(!forbids(Reach::Anywhere, address, false));
        }
    }

    #[test]
    fn a_private_address_is_a_normal_place_for_a_hook() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "10.0.0.7",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.201",
            "fd12:3456::1",
            "::ffff:10.0.0.7",
        ] {
            assert!(!forbids(Reach::Confidential, address, false), "{address}");
        }
    }

    #[test]
    fn what_goes_over_the_internet_is_encrypted() {
        for address in [
            "203.0.113.1",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "::ffff:203.0.113.1",
            "64:ff9b:1::10.0.0.7",
        ] {
            assert!(forbids(Reach::Confidential, address, false), "{address}");
            assert!(!forbids(Reach::Confidential, address, true), "{address}");
            assert!(!forbids(Reach::Hosts, address, false), "{address}");
        }
    }
}
