//! Pauses after errors of the store.

use std::time::Duration;

/// First pause after an error of the store. While the store fails, the pause doubles up to the maximum below, because
/// log lines must not fill a disk that is already full.
const STORE_PAUSE: Duration = Duration::from_millis(500);
const STORE_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Pauses after errors of the store, one after the other.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// The pause that was used last; `None` after a success.
    last: Option<Duration>,
}

impl Pauses {
    /// Returns the next pause: twice the last one, up to the maximum.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.last.map_or(STORE_PAUSE, |last| (last * 2).min(STORE_PAUSE_MAX));
        self.last = Some(pause);
        pause
    }

    pub(super) fn reset(&mut self) {
        self.last = None;
    }

    /// Returns true if the last operation failed.
    pub(super) fn is_pausing(&self) -> bool {
        self.last.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_a_failing_store_double_up_to_a_maximum() {
        let mut pauses = Pauses::default();
        let millis: Vec<u128> = (0..7).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(millis, [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
        pauses.reset();
        assert_eq!(pauses.next(), STORE_PAUSE);
    }
}
