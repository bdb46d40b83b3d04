//! Limits on denied requests: counted after the verification, enforced before it.
//!
//! A limit on all *requests* would deny callbacks. The marketplace would lose one of its few deliveries because another
//! caller sent a flood. So only requests that fail the verification are counted. A valid request costs its caller
//! nothing, in any number.
//!
//! The limits apply before the verification, where they save its work:
//! - An address with too many denied requests lately is denied.
//! - If one endpoint had too many denied requests from many addresses, every address without a recent valid request is
//!   denied there.
//!
//! An address with a recent valid request passes both limits. It belongs to the marketplace, or to a proxy in front of
//! the marketplace, and its requests are verified as usual.
//!
//! Loopback addresses are not counted. A loopback peer is this machine, or a local proxy that is not configured as
//! trusted and carries the requests of all callers.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::limits;

/// A steady rate of events. A burst may hold ten seconds' worth, or ten events if the rate is below one per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time that one event uses up: the inverse of the rate.
    each: Duration,
}

/// Error for a text that is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate, like 20/s or 600/m")]
pub struct NotARate(String);

impl Rate {
    /// Returns a rate of `count` events per second; 0 counts as 1.
    pub const fn per_second(count: u32) -> Rate {
        Rate { each: Duration::from_nanos(1_000_000_000 / if count == 0 { 1 } else { count as u64 }) }
    }

    /// Returns the time that a full burst uses.
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
        // The standard parser also accepts `+1`.
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

/// Limits on denied requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    /// Limit for one address (for IPv6, for one /64); `None` for no limit.
    pub per_address: Option<Rate>,
    /// Limit for one endpoint; `None` for no limit.
    pub per_endpoint: Option<Rate>,
}

impl Default for RateOptions {
    fn default() -> RateOptions {
        RateOptions {
            per_address: Some(Rate::per_second(limits::DENIED_PER_ADDRESS_PER_S)),
            per_endpoint: Some(Rate::per_second(limits::DENIED_PER_ENDPOINT_PER_S)),
        }
    }
}

/// Leaky bucket of recent events. One instant is its whole state: the time at which it will be empty.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    empty_at: Instant,
}

impl Bucket {
    fn empty(now: Instant) -> Bucket {
        Bucket { empty_at: now }
    }

    /// Returns the wait until the bucket has room for one event; `None` if it has room now.
    fn full_for(self, rate: Rate, now: Instant) -> Option<Duration> {
        // The level after one more event must not exceed a full burst.
        let room_at = self.empty_at + rate.each;
        let wait = room_at.saturating_duration_since(now + rate.burst());
        (!wait.is_zero()).then_some(wait)
    }

    /// Adds one event. The level never exceeds a full burst.
    fn add(self, rate: Rate, now: Instant) -> Bucket {
        Bucket { empty_at: (self.empty_at.max(now) + rate.each).min(now + rate.burst()) }
    }
}

/// Bounded map of the most recent addresses, which needs no search for the oldest. When one half is full, it becomes
/// the old half, and the previous old half is dropped.
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
        // A flood from many addresses drops the old half, and uses no more memory.
        if self.young.len() >= limits::CLIENTS_KNOWN_MAX_COUNT / 2 && !self.young.contains_key(&address) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(address, known);
    }
}

/// Counts of denied requests for all endpoints and addresses. Clones share them. The limits are an argument of each
/// call, so a reload can change them without a loss of the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    refused: Latest<Bucket>,
    /// Time of the last valid request of an address.
    good: Latest<Instant>,
    /// Counts by endpoint name; unbounded, because there are few endpoints.
    endpoints: HashMap<Arc<str>, Bucket>,
}

/// Limits that a request exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooMany {
    /// The address has too many denied requests; it may call again after this wait.
    FromAddress(Duration),
    /// The endpoint has too many denied requests; an unknown address may call again after this wait.
    AtEndpoint(Duration),
}

impl Rates {
    /// Checks a request before its verification. Fails if its address or its endpoint has too many denied requests.
    pub(super) fn check(
        &self,
        borne: RateOptions,
        endpoint: &Arc<str>,
        client: IpAddr,
    ) -> Result<(), TooMany> {
        // Loopback addresses have no limits.
        let Some(client) = counted(client) else { return Ok(()) };
        let now = Instant::now();
        let counts = self.lock();
        let full = |bucket: Option<Bucket>, rate: Option<Rate>| bucket?.full_for(rate?, now);
        let address = full(counts.refused.get(client), borne.per_address);
        let endpoint = full(counts.endpoints.get(endpoint).copied(), borne.per_endpoint);
        let too_many = match (address, endpoint) {
            (None, None) => return Ok(()),
            // The limit of the address comes first, because only that one is caused by the caller itself.
            (Some(wait), _) => TooMany::FromAddress(wait),
            (None, Some(wait)) => TooMany::AtEndpoint(wait),
        };
        // An address with a recent valid request passes both limits: its owner is probably the marketplace.
        if counts.good.get(client).is_some_and(|since| is_fresh(since, now)) { Ok(()) } else { Err(too_many) }
    }

    /// Counts a request that failed its verification.
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

    /// Records a valid request of an address.
    pub(super) fn valid(&self, client: IpAddr) {
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

/// Returns the key under which an address is counted: for IPv6 its /64, the network of one customer; `None` for
/// loopback.
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

    /// Limits of 2 per second for an address and 10 per second for an endpoint.
    fn bench() -> Bench {
        let borne =
            RateOptions { per_address: Some(Rate::per_second(2)), per_endpoint: Some(Rate::per_second(10)) };
        Bench { borne, rates: Rates::default(), endpoint: "shop".into() }
    }

    impl Bench {
        fn check(&self, client: &str) -> Result<(), TooMany> {
            self.rates.check(self.borne, &self.endpoint, address(client))
        }

        /// Sends forged requests; returns the number that passed the limits.
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
        assert_eq!(bench.check("203.0.113.8"), Ok(()), "the neighboring address is not limited");
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
            bench.rates.valid(address("203.0.113.1"));
        }
        assert_eq!(
            bench.forge("203.0.113.1", 50),
            50,
            "the marketplace's address, its key changed meanwhile"
        );
        advance(Duration::from_secs(limits::CLIENT_GOOD_S)).await;
        assert_eq!(bench.forge("203.0.113.1", 50), 20, "after CLIENT_GOOD_S the address has limits again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_kept_out_and_who_is_known_is_not() {
        let bench = bench();
        bench.rates.valid(address("203.0.113.1"));
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
        bench.rates.valid(address("203.0.113.1"));
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
