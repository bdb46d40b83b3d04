//! Liveness check of the daemon, for a supervisor that restarts the process after a failed check.
//!
//! A running process or a firing timer proves nothing. Two components must be alive: the writer, which stores
//! everything, and the dispatcher, which runs the jobs. The check sends a probe to the writer and reads the
//! dispatcher's last turn.
//!
//! An error counts as an answer: an operator can repair a full disk, a restart cannot.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::observe::limits;
use crate::store::{Store, StoreError};

/// The components that must be alive.
pub(super) struct Liveness {
    pub(super) store: Store,
    /// Time of the last turn of the dispatcher's loop.
    pub(super) iterated_at: watch::Receiver<Instant>,
    /// Time limit for both components.
    pub(super) within: Duration,
}

impl Liveness {
    /// Creates a check with the default time limit for both components.
    pub(super) fn of(store: Store, iterated_at: watch::Receiver<Instant>) -> Liveness {
        Liveness { store, iterated_at, within: Duration::from_millis(limits::ALIVE_WITHIN_MS) }
    }

    /// Returns the name of the first component that is not alive, as the error.
    pub(super) async fn check(&self) -> Result<(), &'static str> {
        // The probe passes through the same queue as every write, so a writer that hangs is noticed.
        if !answers(|| self.store.probe(), self.within).await {
            return Err("writer");
        }
        if self.iterated_at.borrow().elapsed() > self.within { Err("dispatcher") } else { Ok(()) }
    }
}

/// Returns true if the writer answers the probe in time, with success or an error. A full queue is not an answer,
/// because a writer that hangs also fills its queue.
async fn answers<A>(ask: impl Fn() -> A, within: Duration) -> bool
where
    A: Future<Output = Result<(), StoreError>>,
{
    let pause = Duration::from_millis(limits::ACCEPT_PAUSE_MS);
    let answered = timeout(within, async {
        loop {
            match ask().await {
                // The probe found no room in the queue: ask again until the time limit.
                Err(StoreError::Overloaded) => sleep(pause).await,
                Err(StoreError::Stopped) => return false,
                Ok(()) | Err(_) => return true,
            }
        }
    });
    answered.await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_lives_and_nobody_else() {
        assert!(answers(|| ready(Ok(())), WITHIN).await);
        assert!(
            answers(|| ready(Err(StoreError::Full)), WITHIN).await,
            "a full disk is no reason to restart"
        );
        assert!(answers(|| ready(Err(StoreError::Busy)), WITHIN).await);
        assert!(!answers(|| ready(Err(StoreError::Stopped)), WITHIN).await);
        assert!(!answers(pending, WITHIN).await, "a writer that hangs");
        assert!(!answers(|| ready(Err(StoreError::Overloaded)), WITHIN).await, "a queue that does not move");
        let asked = Cell::new(0);
        let crowded = || {
            asked.set(asked.get() + 1);
            ready(if asked.get() < 50 { Err(StoreError::Overloaded) } else { Ok(()) })
        };
        assert!(answers(crowded, WITHIN).await, "a queue that is merely full");
    }
}
