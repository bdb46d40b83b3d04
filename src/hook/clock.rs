//! Time as an argument, and ids that sort by time.
//!
//! No module above this one reads the system's clock. It asks the [`Clock`] it was given, so that a test, the
//! simulation and a replay control the time. `clippy.toml` bans the direct calls.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::fmt::temporal::Pieces;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

/// Source of the time.
///
/// ```
/// use spid::clock::Clock;
/// let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
/// clock.advance(jiff::SignedDuration::from_hours(1));
/// assert_eq!(clock.now().to_string(), "2026-01-01T01:00:00Z");
/// ```
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The system's clock.
    #[default]
    System,
    /// A clock that stands still until it is moved; clones share it.
    Manual(Arc<Mutex<Timestamp>>),
    /// A clock that the caller provides.
    Given(Given),
}

/// Clock that the caller provides, for example the clock of a simulation that follows its runtime's simulated
/// time.
#[derive(Clone)]
pub struct Given(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given")
    }
}

impl Clock {
    /// Creates a clock that stands at `start` until it is moved.
    pub fn manual(start: Timestamp) -> Clock {
        Clock::Manual(Arc::new(Mutex::new(start)))
    }

    /// Creates a clock that returns the value of `now`.
    pub fn given(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock::Given(Given(Arc::new(now)))
    }

    /// Returns the present instant, to the millisecond, so that a stored instant reads back equal.
    pub fn now(&self) -> Timestamp {
        let now = match self {
            #[expect(clippy::disallowed_methods, reason = "this is the one place the system's clock is read")]
            Clock::System => Timestamp::now(),
            Clock::Manual(at) => *at.lock().unwrap_or_else(PoisonError::into_inner),
            Clock::Given(Given(now)) => now(),
        };
        // The store keeps milliseconds.
        from_millis(now.as_millisecond())
    }

    /// Moves a manual clock, forwards or back. Any other clock stays as it is.
    pub fn advance(&self, by: SignedDuration) {
        if let Clock::Manual(at) = self {
            let mut at = at.lock().unwrap_or_else(PoisonError::into_inner);
            *at = at.saturating_add(by).unwrap_or(*at);
        }
    }
}

/// Returns the microseconds of the monotonic clock, which never jumps. systemd uses them to tell reloads apart.
/// They say nothing about the time of day.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    u64::try_from(micros).unwrap_or(0)
}

/// Returns the last instant that can be stored. It means "for ever".
pub fn last_instant() -> Timestamp {
    from_millis(Timestamp::MAX.as_millisecond())
}

/// Reads an instant of RFC 3339, with its offset. "For ever" is commonly written 9999-12-31, which is one day
/// after the last instant that can be represented. It is read as that last instant.
pub fn read_rfc3339(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let pieces = Pieces::parse(text).ok()?;
        let is_whole = pieces.time().is_some() && pieces.offset().is_some();
        (is_whole && pieces.date().year() == 9999).then(last_instant)
    })
}

/// Returns the instant `millis` after the epoch, clamped to the range that can be represented.
pub fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// Returns `at` moved by `millis`, clamped to the range that can be represented.
pub fn plus_millis(at: Timestamp, millis: i64) -> Timestamp {
    from_millis(at.as_millisecond().saturating_add(millis))
}

/// A 128-bit id that sorts by the time of its creation: a UUID of version 7 (RFC 9562, section 5.7).
///
/// An id is unique across restarts and restored backups, because 74 of its bits are random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// Creates an id at the instant `now`.
    ///
    /// # Errors
    /// The system's random generator fails. Without it no id is guaranteed to be unique.
    pub fn new(now: Timestamp) -> Result<Id, getrandom::Error> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Id::from_parts(now, bytes))
    }

    /// Creates an id at `now` from the given random bytes, for a simulation that must be repeatable.
    pub fn from_parts(now: Timestamp, random: [u8; 16]) -> Id {
        let mut bytes = random;
        let millis = now.as_millisecond().max(0).to_be_bytes();
        // The first 48 bits are the milliseconds since the epoch.
        for (slot, byte) in bytes.iter_mut().zip(millis.iter().skip(2)) {
            *slot = *byte;
        }
        // Version 7, and the variant of RFC 9562.
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Id(bytes)
    }

    /// Returns the id for the part at `position` of the request with this id. The first part has the id itself.
    /// The others have an id that is computed from it and is equally hard to guess.
    #[must_use]
    pub fn of_part(self, position: usize) -> Id {
        // The first part has the request's id, so that a request of one part needs no second id.
        if position == 0 {
            return self;
        }
        let mut digest = Sha256::new();
        digest.update(self.0);
        digest.update((position as u64).to_be_bytes());
        let mut bytes = self.0;
        // Keep the instant, so that ids still sort by it.
        for (slot, byte) in bytes.iter_mut().skip(6).zip(digest.finalize()) {
            *slot = byte;
        }
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Id(bytes)
    }

    /// Returns the 16 bytes that are stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Creates the id from its 16 stored bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Id {
        Id(bytes)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = hex::encode(self.0);
        let groups = [text.get(..8), text.get(8..12), text.get(12..16), text.get(16..20), text.get(20..)];
        for (index, group) in groups.into_iter().flatten().enumerate() {
            if index > 0 {
                f.write_str("-")?;
            }
            f.write_str(group)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Source of ids.
#[derive(Debug, Clone)]
pub enum Ids {
    /// The system's random generator; clones share the random bytes drawn in advance.
    System(Arc<Mutex<Drawn>>),
    /// A sequence that is the same for the same seed; clones share it.
    Seeded(Arc<Mutex<u64>>),
}

/// Random bytes for the next ids, drawn for many ids at once. Every request needs an id, and one system call
/// per id would cost more than all other steps of its creation.
#[derive(Default)]
pub struct Drawn(Vec<[u8; 16]>);

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Do not print the bytes: future ids must stay secret.
        write!(f, "Drawn({})", self.0.len())
    }
}

impl Drawn {
    const AT_ONCE: usize = 64;

    fn next(&mut self) -> Result<[u8; 16], getrandom::Error> {
        if let Some(random) = self.0.pop() {
            return Ok(random);
        }
        let mut bytes = [[0u8; 16]; Drawn::AT_ONCE];
        getrandom::fill(bytes.as_flattened_mut())?;
        self.0.extend_from_slice(&bytes);
        // `pop` removes the bytes, so no id gets the same ones.
        Ok(self.0.pop().unwrap_or_default())
    }
}

impl Default for Ids {
    fn default() -> Ids {
        Ids::System(Arc::default())
    }
}

impl Ids {
    /// Creates a source whose ids are the same for the same `seed`, for a simulation.
    pub fn seeded(seed: u64) -> Ids {
        Ids::Seeded(Arc::new(Mutex::new(seed)))
    }

    /// Returns the next id, created at the instant `now`.
    ///
    /// # Errors
    /// The system's random generator fails.
    pub fn next(&self, now: Timestamp) -> Result<Id, getrandom::Error> {
        let state = match self {
            Ids::System(drawn) => {
                let random = drawn.lock().unwrap_or_else(PoisonError::into_inner).next()?;
                return Ok(Id::from_parts(now, random));
            }
            Ids::Seeded(state) => state,
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut random = [0u8; 16];
        for half in random.chunks_mut(8) {
            half.copy_from_slice(&split_mix(&mut state).to_be_bytes());
        }
        Ok(Id::from_parts(now, random))
    }
}

/// Generator `SplitMix64`: a counter and a mixer that makes its output look random.
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Error for a text that is not an [`Id`].
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "`{0}` is not an id: expected 32 hex digits in five groups, like 01890a5d-ac96-774b-bcce-b302099a8057"
)]
pub struct NotAnId(String);

impl std::str::FromStr for Id {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Id, NotAnId> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0u8; 16];
        hex::decode_to_slice(&digits, &mut bytes).map_err(|_| NotAnId(text.to_owned()))?;
        Ok(Id(bytes))
    }
}

impl serde::Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_for_many_ids_is_used_once() {
        let ids = Ids::default();
        let made: std::collections::HashSet<Id> =
            (0..10 * Drawn::AT_ONCE).map(|_| ids.clone().next(Timestamp::UNIX_EPOCH).unwrap()).collect();
        assert_eq!(made.len(), 10 * Drawn::AT_ONCE);
        assert!(format!("{ids:?}").contains("Drawn("));
    }

    #[test]
    fn ids_sort_by_time_and_survive_text() {
        let early = Id::from_parts(from_millis(1_000), [0xff; 16]);
        let late = Id::from_parts(from_millis(1_001), [0x00; 16]);
        assert!(early < late);
        assert_eq!(early.to_string().parse::<Id>().unwrap(), early);
        assert_eq!(early.to_string().len(), 36);
        assert_eq!(early.to_string().as_bytes()[14], b'7');
        assert!("not an id".parse::<Id>().is_err());
    }

    #[test]
    fn ids_made_together_differ() {
        let now = from_millis(1);
        assert_ne!(Id::new(now).unwrap(), Id::new(now).unwrap());
    }

    #[test]
    fn a_manual_clock_moves_only_when_moved() {
        let clock = Clock::manual(from_millis(5));
        let same = clock.clone();
        assert_eq!(clock.now(), from_millis(5));
        same.advance(SignedDuration::from_millis(-3));
        assert_eq!(clock.now(), from_millis(2));
    }

    #[test]
    fn instants_are_clamped_not_wrapped() {
        assert_eq!(from_millis(i64::MAX), Timestamp::MAX);
        assert_eq!(plus_millis(from_millis(1), i64::MAX), Timestamp::MAX);
    }

    #[test]
    fn for_ever_is_an_instant_in_every_spelling() {
        for text in [
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999Z",
            "9999-12-31t23:59:59z",
            "9999-12-31T23:59:59+08:00",
            "9999-12-31T00:00:00-12:00",
            "9999-12-30T23:00:00Z",
        ] {
            let at = read_rfc3339(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(at, last_instant(), "{text}");
            assert_eq!(from_millis(at.as_millisecond()), at, "it reads back as it was stored");
        }
        for text in
            ["9999-12-31", "9999-12-31T23:59:59", "9999-13-31T23:59:59Z", "10000-01-01T00:00:00Z", "", "x"]
        {
            assert_eq!(read_rfc3339(text), None, "{text}");
        }
        assert!(read_rfc3339("9999-12-29T00:00:00Z").unwrap() < last_instant());
    }
}
