//! Attempts in flight in this dispatcher.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::JobRow;

/// Attempts in flight, by job and attempt.
pub(super) type Held = Arc<Mutex<BTreeMap<(i64, u32), JobRow>>>;

/// Entry of an attempt in flight. If its task panics, the entry is removed: the lease expires, and the job runs again.
/// If a stop aborts the task, the entry remains, and the stop gives the job back.
pub(super) struct Holding {
    in_flight: Held,
    attempt: (i64, u32),
}

impl Holding {
    /// Adds the attempt. Returns `None` if this or a later attempt at the job is in flight here: this lease was lost
    /// then.
    pub(super) fn begin(in_flight: &Held, job: &JobRow) -> Option<Holding> {
        let attempt = (job.number, job.attempts);
        let mut all = lock(in_flight);
        if all.range(attempt..=(job.number, u32::MAX)).next().is_some() {
            tracing::warn!(job = %job.id, attempt = job.attempts, "the lease was lost before the attempt began, and a later attempt runs");
            return None;
        }
        all.insert(attempt, job.clone());
        drop(all);
        Some(Holding { in_flight: in_flight.clone(), attempt })
    }

    pub(super) fn end(self) {
        lock(&self.in_flight).remove(&self.attempt);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                number = self.attempt.0,
                "an attempt panicked outside its hook (a bug in spid); the job runs again when its lease expires"
            );
            lock(&self.in_flight).remove(&self.attempt);
        }
    }
}

pub(super) fn lock(in_flight: &Held) -> MutexGuard<'_, BTreeMap<(i64, u32), JobRow>> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::tests::a_create;
    use super::*;
    use crate::store::{Store, StoreOptions};
    use spid_hook::time::Clock;

    #[tokio::test]
    async fn what_panicked_is_held_no_longer_and_what_was_cut_short_still_is() {
        let in_flight = Held::default();
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        let job = store.take(1).await.unwrap().taken.remove(0).job;
        let holding = Holding::begin(&in_flight, &job);
        let cut = tokio::spawn(async move {
            let _holding = holding;
            std::future::pending::<()>().await;
        });
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        assert_eq!(lock(&in_flight).len(), 1);
        assert!(Holding::begin(&in_flight, &job).is_none(), "this attempt runs already");
        let later = JobRow { attempts: job.attempts + 1, ..job };
        let holding = Holding::begin(&in_flight, &later);
        assert_eq!(lock(&in_flight).len(), 2);
        let panics = tokio::spawn(async move {
            let _holding = holding;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(lock(&in_flight).keys().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1]);
    }
}
