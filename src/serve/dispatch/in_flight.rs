//! Attempts in flight in this dispatcher.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::JobRow;

/// Attempts in flight, by job and attempt.
pub(super) type InFlight = Arc<Mutex<BTreeMap<(i64, u32), JobRow>>>;

/// Entry of an attempt in flight. If its task panics, the entry is removed: the lease expires, and the job runs again.
/// If a stop aborts the task, the entry remains, and the stop gives the job back.
pub(super) struct Entry {
    in_flight: InFlight,
    attempt: (i64, u32),
}

impl Entry {
    /// Adds the attempt. Returns `None` if this or a later attempt at the job is in flight here: this lease was lost
    /// then.
    pub(super) fn begin(in_flight: &InFlight, job: &JobRow) -> Option<Entry> {
        let attempt = (job.number, job.attempts);
        let mut all = lock(in_flight);
        if all.range(attempt..=(job.number, u32::MAX)).next().is_some() {
            tracing::warn!(job = %job.id, attempt = job.attempts, "the lease was lost before the attempt began, and a later attempt runs");
            return None;
        }
        all.insert(attempt, job.clone());
        drop(all);
        Some(Entry { in_flight: in_flight.clone(), attempt })
    }

    pub(super) fn end(self) {
        lock(&self.in_flight).remove(&self.attempt);
    }
}

impl Drop for Entry {
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

pub(super) fn lock(in_flight: &InFlight) -> MutexGuard<'_, BTreeMap<(i64, u32), JobRow>> {
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
        let in_flight = InFlight::default();
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        drop(store.accept(a_create("ob-1", &clock)).await.unwrap());
        let job = store.take(1).await.unwrap().taken.remove(0).job;
        let entry = Entry::begin(&in_flight, &job);
        let cut = tokio::spawn(async move {
            let _holding = entry;
            std::future::pending::<()>().await;
        });
        cut.abort();
        assert!(cut.await.unwrap_err().is_cancelled());
        assert_eq!(lock(&in_flight).len(), 1);
        assert!(Entry::begin(&in_flight, &job).is_none(), "this attempt runs already");
        let later = JobRow { attempts: job.attempts + 1, ..job };
        let entry = Entry::begin(&in_flight, &later);
        assert_eq!(lock(&in_flight).len(), 2);
        let panics = tokio::spawn(async move {
            let _holding = entry;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(lock(&in_flight).keys().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1]);
    }
}
