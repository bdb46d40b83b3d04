//! Whether the daemon lives, for a supervisor that ends and restarts it if not.
//!
//! A process that exists proves nothing, and neither does a timer that rings. What has to be alive is the
//! writer, without which nothing is kept, and the dispatcher, without which nothing is done; so one is asked, and
//! the other is watched. An error is an answer: a full disk is mended by an operator and by no restart.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::observe::limits;
use crate::store::{Store, StoreError};

/// What has to be alive.
pub(super) struct Liveness {
    pub(super) store: Store,
    /// When the dispatcher last went round.
    pub(super) turned: watch::Receiver<Instant>,
    /// How long both have.
    pub(super) within: Duration,
}

impl Liveness {
    /// Both are given the usual time.
    pub(super) fn of(store: Store, turned: watch::Receiver<Instant>) -> Liveness {
        Liveness { store, turned, within: Duration::from_millis(limits::ALIVE_WITHIN_MS) }
    }

    /// The part that is not alive, if one is not.
    pub(super) async fn check(&self) -> Result<(), &'static str> {
        if !answers(|| self.store.probe(), self.within).await {
            return Err("writer");
        }
        if self.turned.borrow().elapsed() > self.within { Err("dispatcher") } else { Ok(()) }
    }
}

/// Whether the writer comes to this question in time, whatever it then says. A queue that is full may be full
/// because it does not move.
async fn answers<A>(ask: impl Fn() -> A, within: Duration) -> bool
where
    A: Future<Output = Result<(), StoreError>>,
{
    let pause = Duration::from_millis(limits::ACCEPT_PAUSE_MS);
    let answered = timeout(within, async {
        loop {
            match ask().await {
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
