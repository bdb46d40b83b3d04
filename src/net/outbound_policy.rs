//! Addresses that a client may connect to.
//!
//! The URL of a hook comes from the configuration, but the owner of the DNS name decides its address. The metadata
//! service of a cloud gives the machine's credentials to any local process that asks. So spid never connects to a
//! metadata service, even if a name resolves to it.
//!
//! The check is made on the exact addresses that the socket then connects to. A name that resolves differently in
//! between therefore gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Addresses that a [`Client`](super::Client) may connect to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
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
/// Amazon's network of instance metadata, credentials of pods, and name service.
const AMAZON_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32);
/// Shared range of carriers (RFC 6598), in which clouds put their internal services.
const SHARED_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Prefix that networks use for their own NAT64 (RFC 8215).
const LOCAL_NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48);

impl OutboundPolicy {
    /// Returns the reason why this address is forbidden, with or without TLS; `None` if it is allowed.
    pub fn forbids(self, address: IpAddr, secure: bool) -> Option<&'static str> {
        if self == OutboundPolicy::Anywhere {
            return None;
        }
        // An IPv6 address that leads to an IPv4 address must pass in both forms.
        let mut forms = vec![address];
        forms.extend(embedded(address));
        forms.extend(translated(address));
        if let Some(why) = forms.into_iter().find_map(never) {
            return Some(why);
        }
        // An IPv6 form of a private IPv4 address counts as private.
        let public = !is_private(embedded(address).unwrap_or(address));
        let open = self == OutboundPolicy::Confidential && !secure && public;
        open.then_some("a public address, and http does not encrypt: use https")
    }
}

fn never(address: IpAddr) -> Option<&'static str> {
    let metadata = match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6 == METADATA_V6 || AMAZON_V6.contains(&v6),
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

/// Returns true for loopback, the private ranges (RFC 1918, RFC 4193) and the shared range of carriers.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || SHARED_V4.contains(&v4),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

/// Returns the IPv4 address that a packet to this IPv6 address reaches: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let (high, low) = match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(IpAddr::V4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))))
}

/// Returns the IPv4 addresses that a translator may read in an address of [`LOCAL_NAT64`]. RFC 6052 puts the IPv4 address
/// behind a prefix of 48, 56, 64 or 96 bits, and the prefix in use is unknown here. So each of these addresses must be
/// allowed.
fn translated(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return Vec::new() };
    if !LOCAL_NAT64.contains(&v6) {
        return Vec::new();
    }
    let [_, _, _, _, _, _, o6, o7, _, o9, o10, o11, o12, o13, o14, o15] = v6.octets();
    let read = [[o6, o7, o9, o10], [o7, o9, o10, o11], [o9, o10, o11, o12], [o12, o13, o14, o15]];
    // Zeros only show that the address is in another position.
    let addresses = read.map(Ipv4Addr::from).into_iter().filter(|v4| !v4.is_unspecified());
    addresses.map(IpAddr::V4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbids(policy: OutboundPolicy, address: &str, secure: bool) -> bool {
        policy.forbids(address.parse().unwrap(), secure).is_some()
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
                assert!(forbids(OutboundPolicy::Hosts, address, secure), "{address}");
                assert!(forbids(OutboundPolicy::Confidential, address, secure), "{address}");
            }
            assert!(!forbids(OutboundPolicy::Anywhere, address, false));
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
            assert!(!forbids(OutboundPolicy::Confidential, address, false), "{address}");
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
            assert!(forbids(OutboundPolicy::Confidential, address, false), "{address}");
            assert!(!forbids(OutboundPolicy::Confidential, address, true), "{address}");
            assert!(!forbids(OutboundPolicy::Hosts, address, false), "{address}");
        }
    }
}
