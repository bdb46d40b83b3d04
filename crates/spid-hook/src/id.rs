//! Ids that sort by the time of their creation.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

/// A 128-bit id that sorts by the time of its creation: a UUID of version 7 (RFC 9562, section 5.7).
///
/// An id is unique across restarts and restored backups, because 74 of its bits are random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// Number of characters of an id in text.
    const CHARACTERS: usize = 36;

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
    System(Arc<Mutex<RandomPool>>),
    /// A sequence that is the same for the same seed; clones share it.
    Seeded(Arc<Mutex<u64>>),
}

/// Random bytes for the next ids, drawn for many ids at once. Every request needs an id, and one system call
/// per id would cost more than all other steps of its creation.
#[derive(Default)]
pub struct RandomPool(Vec<[u8; 16]>);

impl std::fmt::Debug for RandomPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Do not print the bytes: future ids must stay secret.
        write!(f, "RandomPool({})", self.0.len())
    }
}

impl RandomPool {
    const AT_ONCE: usize = 64;

    fn next(&mut self) -> Result<[u8; 16], getrandom::Error> {
        if let Some(random) = self.0.pop() {
            return Ok(random);
        }
        let mut bytes = [[0u8; 16]; RandomPool::AT_ONCE];
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
            Ids::System(pool) => {
                let random = pool.lock().unwrap_or_else(PoisonError::into_inner).next()?;
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
#[doc(hidden)]
pub fn split_mix(state: &mut u64) -> u64 {
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
        let is_hex = hex::decode_to_slice(&digits, &mut bytes).is_ok();
        let id = Id(bytes);
        // Five groups as `Display` writes them, or no groups at all.
        if is_hex && (digits == text || id.to_string().eq_ignore_ascii_case(text)) {
            return Ok(id);
        }
        // The error quotes the text only as far as an id is long.
        Err(NotAnId(text.chars().take(Id::CHARACTERS).collect()))
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
    use crate::time::from_millis;

    #[test]
    fn what_is_drawn_for_many_ids_is_used_once() {
        let ids = Ids::default();
        let made: std::collections::HashSet<Id> =
            (0..10 * RandomPool::AT_ONCE).map(|_| ids.clone().next(Timestamp::UNIX_EPOCH).unwrap()).collect();
        assert_eq!(made.len(), 10 * RandomPool::AT_ONCE);
        assert!(format!("{ids:?}").contains("RandomPool("));
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
    fn hyphens_of_an_id_stand_between_its_groups() {
        let id = Id::from_parts(from_millis(1_000), [7; 16]);
        let text = id.to_string();
        for same in [text.clone(), text.to_uppercase(), text.replace('-', "")] {
            assert_eq!(same.parse::<Id>().unwrap(), id, "{same}");
        }
        let digits = text.replace('-', "");
        for wrong in [format!("{text}-"), format!("-{digits}"), format!("{}--{}", &digits[..8], &digits[8..])]
        {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
        let error = "x".repeat(100_000).parse::<Id>().unwrap_err().to_string();
        assert!(error.len() < 200, "{} bytes", error.len());
    }

    #[test]
    fn ids_made_together_differ() {
        let now = from_millis(1);
        assert_ne!(Id::new(now).unwrap(), Id::new(now).unwrap());
    }
}
