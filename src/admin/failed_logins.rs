//! Protection against guessed tokens: wrong ones are counted, some are logged, and an address with many of them is
//! slowed down.
//!
//! The right token is accepted at once, even from an address with a thousand wrong ones. An attacker may share an
//! address with the operator (a proxy, this machine), and must not lock the operator out. A token of 16 bytes cannot
//! be guessed at any speed. The number of delayed answers is limited, so that they do not use up the listener's
//! connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::observe::limits;

/// Recent wrong tokens.
pub(crate) struct FailedLogins {
    recent: Mutex<Recent>,
    waiting: Semaphore,
}

#[derive(Default)]
struct Recent {
    /// Time at which all wrong tokens of an address are forgotten.
    forgotten_at: HashMap<IpAddr, Instant>,
    logged_at: Option<Instant>,
    unlogged: u64,
}

/// Consequence of a wrong token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Consequence {
    /// If set, log this wrong token, with this number of unlogged ones before it.
    pub(crate) log: Option<u64>,
    /// True if the answer is delayed.
    pub(crate) slow: bool,
}

impl Default for FailedLogins {
    fn default() -> FailedLogins {
        FailedLogins {
            recent: Mutex::default(),
            waiting: Semaphore::new(limits::ADMIN_GUESSES_WAITING_COUNT),
        }
    }
}

impl FailedLogins {
    /// Counts a wrong token.
    pub(crate) fn note(&self, address: IpAddr, now: Instant) -> Consequence {
        // A whole IPv6 /64 belongs to one subscriber, who could use each address once.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).note(subscriber(address), now)
    }

    /// Delays the answer to a wrong token. Returns false at once if too many answers are delayed already.
    pub(crate) async fn wait(&self) -> bool {
        // Held until the end of the delay: it counts the delayed answers.
        let Ok(_permit) = self.waiting.try_acquire() else { return false };
        tokio::time::sleep(Duration::from_millis(limits::ADMIN_GUESS_WAIT_MS)).await;
        true
    }
}

impl Recent {
    fn note(&mut self, address: IpAddr, now: Instant) -> Consequence {
        let each = Duration::from_millis(limits::ADMIN_GUESS_FORGOTTEN_MS);
        let burst = each * limits::ADMIN_GUESSES_FREE_COUNT;
        // The table is bounded: forget expired addresses before a new one needs room.
        if self.forgotten_at.len() >= limits::CLIENTS_KNOWN_MAX_COUNT {
            self.forgotten_at.retain(|_, at| *at > now);
        }
        // So many addresses at once are an attack, so a new address is slowed down, too.
        let is_full = self.forgotten_at.len() >= limits::CLIENTS_KNOWN_MAX_COUNT;
        let slow = match self.forgotten_at.get_mut(&address) {
            None if is_full => true,
            None => {
                self.forgotten_at.insert(address, now + each);
                false
            }
            Some(at) => {
                // A leaky bucket: each wrong token adds `each`, up to `burst`; the address is slow while the bucket
                // is full.
                let slow = *at + each > now + burst;
                // Bounded, so that an address is fast again soon after its last wrong token.
                *at = ((*at).max(now) + each).min(now + burst);
                slow
            }
        };
        let window = Duration::from_millis(limits::ADMIN_GUESSES_LOGGED_EVERY_MS);
        let is_due = self.logged_at.is_none_or(|at| now.duration_since(at) >= window);
        if is_due {
            self.logged_at = Some(now);
            return Consequence { log: Some(std::mem::take(&mut self.unlogged)), slow };
        }
        self.unlogged += 1;
        Consequence { log: None, slow }
    }
}

/// Address that represents a subscriber: for IPv6 the /64 network, else the address itself.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from(u128::from(six) & !u128::from(u64::MAX))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_many_wrong_tokens_waits_until_they_are_forgotten() {
        let failed_logins = FailedLogins::default();
        let begin = Instant::now();
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let slow =
            |address, after_ms| failed_logins.note(address, begin + Duration::from_millis(after_ms)).slow;
        let free = limits::ADMIN_GUESSES_FREE_COUNT;
        assert!((0..free).all(|_| !slow(one, 0)));
        assert!(slow(one, 0) && slow(one, 0));
        assert!(!slow(other, 0), "another address is another address");
        assert!(slow(one, limits::ADMIN_GUESS_FORGOTTEN_MS - 1));
        assert!(!slow(one, limits::ADMIN_GUESS_FORGOTTEN_MS * (u64::from(free) + 2)));
    }

    #[test]
    fn the_log_has_few_lines_and_says_what_it_left_out() {
        let failed_logins = FailedLogins::default();
        let begin = Instant::now();
        let log = |after_ms| {
            failed_logins.note(IpAddr::from([192, 0, 2, 1]), begin + Duration::from_millis(after_ms)).log
        };
        assert_eq!([log(0), log(1), log(2)], [Some(0), None, None]);
        assert_eq!(log(limits::ADMIN_GUESSES_LOGGED_EVERY_MS), Some(2));
    }

    #[test]
    fn what_is_known_is_bounded_and_a_network_is_one_subscriber() {
        let failed_logins = FailedLogins::default();
        let now = Instant::now();
        for number in 0..2 * limits::CLIENTS_KNOWN_MAX_COUNT {
            let bits = (0x2001_0db8 << 96) | (number as u128) << 64 | number as u128;
            failed_logins.note(IpAddr::V6(Ipv6Addr::from(bits)), now);
        }
        let recent = failed_logins.recent.lock().unwrap().forgotten_at.len();
        assert_eq!(recent, limits::CLIENTS_KNOWN_MAX_COUNT);
        assert!(failed_logins.note(IpAddr::from([192, 0, 2, 9]), now).slow);
        let [one, other] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(subscriber(one), subscriber(other));
        assert_eq!(subscriber("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded() {
        let failed_logins = std::sync::Arc::new(FailedLogins::default());
        let waits = (0..=limits::ADMIN_GUESSES_WAITING_COUNT).map(|_| {
            let failed_logins = failed_logins.clone();
            tokio::spawn(async move { failed_logins.wait().await })
        });
        let waits: Vec<_> = waits.collect();
        let mut waited = 0;
        for wait in waits {
            waited += usize::from(wait.await.unwrap());
        }
        assert_eq!(waited, limits::ADMIN_GUESSES_WAITING_COUNT);
    }
}
