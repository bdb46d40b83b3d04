//! How many forged requests are looked at, and on which side of the signature that is counted.
//!
//! A limit that counted *requests* would turn callbacks away: the marketplace would lose one of its few
//! tries because somebody else was loud. So what is counted stands behind the check, and is the refusals alone: a
//! request whose signature holds costs its caller nothing, however many there are. And what is turned away stands
//! before the check, where it spares the work: first who had too many requests refused lately, and, when so
//! many come from so many that one endpoint has had too many, everybody of whom nothing good is known. An
//! address that lately sent something which held is let through both: it is the marketplace's, or a
//! proxy's that the marketplace stands behind, and it is checked like any other.
//!
//! Loopback is nobody's address: it is this machine, or a proxy on it that nobody has told us of, with
//! everybody behind it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::limits;

/// How often something may happen: a steady rate, and ten seconds of it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// What one occurrence takes of the time.
    each: Duration,
}

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate, like 20/s or 600/m")]
pub struct NotARate(String);

impl Rate {
    /// So many in a second; at least one.
    pub const fn per_second(count: u32) -> Rate {
        Rate { each: Duration::from_nanos(1_000_000_000 / if count == 0 { 1 } else { count as u64 }) }
    }

    /// How long it takes to use up what may happen at once.
    fn burst(self) -> Duration {
        self.each.max(Duration::from_secs(1)) * limits::RATE_BURST_S
    }
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Rate, NotARate> {
        let wrong = || NotARate(text.to_owned());
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let span = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(wrong()),
        };
        let digits = count.bytes().all(|byte| byte.is_ascii_digit());
        let count: u32 = count.parse().ok().filter(|count| *count > 0 && digits).ok_or_else(wrong)?;
        Ok(Rate { each: span / count })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}/s", 1.0 / self.each.as_secs_f64())
    }
}

/// How many refused requests are borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    /// From one address (of IPv6, one /64); `None` for any number.
    pub per_address: Option<Rate>,
    /// At one endpoint; `None` for any number.
    pub per_endpoint: Option<Rate>,
}

impl Default for RateOptions {
    fn default() -> RateOptions {
        RateOptions {
            per_address: Some(Rate::per_second(limits::REFUSED_PER_ADDRESS_PER_S)),
            per_endpoint: Some(Rate::per_second(limits::REFUSED_PER_ENDPOINT_PER_S)),
        }
    }
}

/// What has flowed in lately. One instant says it all: when it will be empty.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    empty_at: Instant,
}

impl Bucket {
    fn empty(now: Instant) -> Bucket {
        Bucket { empty_at: now }
    }

    /// How long until there is room again; `None` when there is.
    fn full_for(self, rate: Rate, now: Instant) -> Option<Duration> {
        let room_at = self.empty_at + rate.each;
        let wait = room_at.saturating_duration_since(now + rate.burst());
        (!wait.is_zero()).then_some(wait)
    }

    /// What was let in while there was room is never more than fills it.
    fn add(self, rate: Rate, now: Instant) -> Bucket {
        Bucket { empty_at: (self.empty_at.max(now) + rate.each).min(now + rate.burst()) }
    }
}

/// What is known of some addresses, the latest ones: a bounded number, without a search for the oldest. When
/// one half is full, it becomes the older half, and what was that is forgotten.
#[derive(Debug)]
struct Latest<T> {
    young: HashMap<IpAddr, T>,
    old: HashMap<IpAddr, T>,
}

impl<T> Default for Latest<T> {
    fn default() -> Latest<T> {
        Latest { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<T: Copy> Latest<T> {
    fn get(&self, address: IpAddr) -> Option<T> {
        self.young.get(&address).or_else(|| self.old.get(&address)).copied()
    }

    fn put(&mut self, address: IpAddr, known: T) {
        if self.young.len() >= limits::CLIENTS_KNOWN_MAX_COUNT / 2 && !self.young.contains_key(&address) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(address, known);
    }
}

/// The refused requests of all endpoints and addresses. Clones share them. What is borne is said at each
/// question, so that it may change while they are remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    refused: Latest<Bucket>,
    /// Since when something is known to be good of an address.
    good: Latest<Instant>,
    /// By the endpoint's name: there are few.
    endpoints: HashMap<Arc<str>, Bucket>,
}

/// Too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooMany {
    /// From this address: it may ask again after so long.
    FromAddress(Duration),
    /// At this endpoint.
    AtEndpoint(Duration),
}

impl Rates {
    /// Before the signature is looked at: whether too many of this kind did not hold.
    pub(super) fn check(
        &self,
        borne: RateOptions,
        endpoint: &Arc<str>,
        client: IpAddr,
    ) -> Result<(), TooMany> {
        let Some(client) = counted(client) else { return Ok(()) };
        let now = Instant::now();
        let counts = self.lock();
        let full = |bucket: Option<Bucket>, rate: Option<Rate>| bucket?.full_for(rate?, now);
        let address = full(counts.refused.get(client), borne.per_address);
        let endpoint = full(counts.endpoints.get(endpoint).copied(), borne.per_endpoint);
        let too_many = match (address, endpoint) {
            (None, None) => return Ok(()),
            (Some(wait), _) => TooMany::FromAddress(wait),
            (None, Some(wait)) => TooMany::AtEndpoint(wait),
        };
        if counts.good.get(client).is_some_and(|since| is_fresh(since, now)) { Ok(()) } else { Err(too_many) }
    }

    /// A request was refused after it was looked at.
    pub(super) fn refused(&self, borne: RateOptions, endpoint: &Arc<str>, client: IpAddr) {
        let Some(client) = counted(client) else { return };
        let now = Instant::now();
        let mut counts = self.lock();
        if let Some(rate) = borne.per_address {
            let bucket = counts.refused.get(client).unwrap_or(Bucket::empty(now));
            counts.refused.put(client, bucket.add(rate, now));
        }
        if let Some(rate) = borne.per_endpoint {
            let bucket = counts.endpoints.entry(endpoint.clone()).or_insert(Bucket::empty(now));
            *bucket = bucket.add(rate, now);
        }
    }

    /// A request held.
    pub(super) fn held(&self, client: IpAddr) {
        if let Some(client) = counted(client) {
            self.lock().good.put(client, Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < Duration::from_secs(limits::CLIENT_GOOD_S)
}

/// What is counted for an address: of IPv6, the network that one customer gets; of this machine, nothing.
fn counted(client: IpAddr) -> Option<IpAddr> {
    match client {
        _ if client.is_loopback() => None,
        IpAddr::V4(_) => Some(client),
        IpAddr::V6(v6) => Some(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    struct Bench {
        borne: RateOptions,
        rates: Rates,
        endpoint: Arc<str>,
    }

    /// Two a second of an address, ten a second of an endpoint.
    fn bench() -> Bench {
        let borne =
            RateOptions { per_address: Some(Rate::per_second(2)), per_endpoint: Some(Rate::per_second(10)) };
        Bench { borne, rates: Rates::default(), endpoint: "shop".into() }
    }

    impl Bench {
        fn check(&self, client: &str) -> Result<(), TooMany> {
            self.rates.check(self.borne, &self.endpoint, address(client))
        }

        /// Sends forgeries; returns how many of them were looked at.
        fn forge(&self, client: &str, count: usize) -> usize {
            let looked_at = |_: &usize| {
                let passed = self.check(client).is_ok();
                if passed {
                    self.rates.refused(self.borne, &self.endpoint, address(client));
                }
                passed
            };
            (0..count).filter(looked_at).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_forges_is_looked_at_less_and_less() {
        let bench = bench();
        assert_eq!(bench.forge("203.0.113.7", 1_000), 20, "ten seconds' worth at once");
        assert_eq!(bench.check("203.0.113.7"), Err(TooMany::FromAddress(Duration::from_millis(500))));
        assert_eq!(bench.check("203.0.113.8"), Ok(()), "its neighbour did nothing");
        advance(Duration::from_secs(3)).await;
        assert_eq!(bench.forge("203.0.113.7", 1_000), 6, "then as many as the rate allows");
        advance(Duration::from_secs(3_600)).await;
        assert_eq!(bench.forge("203.0.113.7", 1_000), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_holds_costs_nothing_and_opens_the_door() {
        let bench = bench();
        for _ in 0..1_000 {
            assert_eq!(bench.check("203.0.113.1"), Ok(()));
            bench.rates.held(address("203.0.113.1"));
        }
        assert_eq!(
            bench.forge("203.0.113.1", 50),
            50,
            "the marketplace's address, its key changed meanwhile"
        );
        advance(Duration::from_secs(limits::CLIENT_GOOD_S)).await;
        assert_eq!(bench.forge("203.0.113.1", 50), 20, "in the end it is an address like any other");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_kept_out_and_who_is_known_is_not() {
        let bench = bench();
        bench.rates.held(address("203.0.113.1"));
        let looked_at: usize = (0..200).map(|n| bench.forge(&format!("198.51.100.{n}"), 10)).sum();
        assert_eq!(looked_at, 100, "ten seconds' worth of the endpoint");
        assert!(matches!(bench.check("192.0.2.1"), Err(TooMany::AtEndpoint(_))));
        assert_eq!(bench.check("203.0.113.1"), Ok(()), "the marketplace");
        let other: Arc<str> = "other".into();
        assert_eq!(bench.rates.check(bench.borne, &other, address("192.0.2.1")), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_customer_s_addresses_are_one_and_this_machine_s_are_none() {
        let bench = bench();
        let looked_at: usize = (0..50).map(|n| bench.forge(&format!("2001:db8::{n:x}"), 1)).sum();
        assert_eq!(looked_at, 20);
        assert_eq!(bench.check("2001:db8:0:1::1"), Ok(()));
        assert_eq!(bench.forge("127.0.0.1", 1_000) + bench.forge("::1", 1_000), 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_many_addresses_fills_no_memory_and_pushes_nobody_out() {
        let borne = RateOptions { per_endpoint: None, ..RateOptions::default() };
        let bench = Bench { borne, rates: Rates::default(), endpoint: "shop".into() };
        bench.rates.held(address("203.0.113.1"));
        for n in 0..3 * limits::CLIENTS_KNOWN_MAX_COUNT {
            let client = IpAddr::V4(u32::try_from(0x0a00_0000 + n).unwrap().into());
            bench.rates.refused(borne, &bench.endpoint, client);
        }
        let counts = bench.rates.lock();
        let known = counts.refused.young.len() + counts.refused.old.len();
        assert!(known <= limits::CLIENTS_KNOWN_MAX_COUNT, "{known}");
        assert!(counts.good.get(address("203.0.113.1")).is_some());
    }

    #[test]
    fn a_rate_is_a_number_and_a_unit() {
        assert_eq!("20/s".parse(), Ok(Rate::per_second(20)));
        assert_eq!("600/m".parse(), Ok(Rate::per_second(10)));
        assert_eq!("30/m".parse::<Rate>().unwrap().to_string(), "0.5/s");
        for wrong in
            ["", "20", "/s", "0/s", "-1/s", "+1/s", "1.5/s", "20/h", "20 /s", "20/s ", "99999999999/s"]
        {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
