//! Waiting queues for leased jobs, which wait for a busy hook or for the order lookup at a marketplace. Each hook and
//! each marketplace has its own queue, so that none uses up the queue of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::observe::limits;

/// The hook or marketplace that a job waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WaitsFor {
    /// The hook with this name.
    Hook(String),
    /// The marketplace of this endpoint, for an order lookup.
    Marketplace(String),
}

/// The wait queues, created at first use. Clones share them. They outlive a reload, because their names do.
#[derive(Debug, Clone)]
pub(super) struct WaitQueues {
    /// Number of jobs in each queue.
    capacity: usize,
    /// Minimum time for which a job stays in the store if its queue is full.
    pause: Duration,
    queues: Arc<Mutex<BTreeMap<WaitsFor, Arc<WaitQueue>>>>,
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    free: Arc<Semaphore>,
    /// Permits for concurrent order lookups at one marketplace.
    lookups: Semaphore,
    pace: Mutex<Pace>,
    /// Number of jobs that the queue takes.
    capacity: usize,
}

/// Pace at which jobs leave a queue.
#[derive(Debug)]
struct Pace {
    /// Time at which the queue was filled. While it stays full, no job has left since then.
    full_since: Instant,
    /// Time for which the last job that left had waited; zero if the queue was empty since then.
    waited: Duration,
}

/// The position of one job in a queue; a drop frees it.
#[derive(Debug)]
pub(super) struct Waiter {
    queue: Arc<WaitQueue>,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.queue.pace().waited = self.since.elapsed();
    }
}

impl WaitQueues {
    pub(super) fn new(capacity: usize, pause: Duration) -> WaitQueues {
        WaitQueues { capacity: capacity.clamp(1, Semaphore::MAX_PERMITS), pause, queues: Arc::default() }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<WaitsFor, Arc<WaitQueue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, server: WaitsFor) -> Arc<WaitQueue> {
        self.all().entry(server).or_insert_with(|| Arc::new(WaitQueue::new(self.capacity))).clone()
    }

    pub(super) fn is_any_full(&self) -> bool {
        self.all().values().any(|queue| queue.is_full())
    }

    /// Returns the time for which a job for this server should stay in the store; `None` if its queue has space. Jobs
    /// leave a queue in the order they entered, so the last wait shows how long a full queue takes to empty.
    pub(super) fn pause(&self, server: &WaitsFor) -> Option<Duration> {
        let queue = self.all().get(server).filter(|queue| queue.is_full())?.clone();
        let pace = queue.pace();
        // Half of that wait, so that jobs return before the queue is empty. If the queue has been full for longer, it is
        // stuck, and the pause grows. The time before it was full does not count.
        let pause = (pace.waited / 2).max(pace.full_since.elapsed());
        Some(pause.clamp(self.pause, self.pause * limits::ROOM_PAUSES_MAX_COUNT))
    }
}

impl WaitQueue {
    fn new(capacity: usize) -> WaitQueue {
        WaitQueue {
            free: Arc::new(Semaphore::new(capacity)),
            lookups: Semaphore::new(limits::ORDER_LOOKUPS_MAX_COUNT),
            pace: Mutex::new(Pace { full_since: Instant::now(), waited: Duration::ZERO }),
            capacity,
        }
    }

    fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the queue. Returns `None` if it is full.
    pub(super) fn enter(self: &Arc<WaitQueue>) -> Option<Waiter> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        let free = self.free.available_permits();
        let mut pace = self.pace();
        if free + 1 >= self.capacity {
            // The queue was empty, so an earlier wait says nothing about the jobs that come now.
            pace.waited = Duration::ZERO;
        }
        if free == 0 {
            pace.full_since = Instant::now();
        }
        drop(pace);
        Some(Waiter { queue: self.clone(), since: Instant::now(), _permit: permit })
    }

    /// Waits for a permit for an order lookup.
    pub(super) async fn lookup_permit(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // The semaphore is never closed. If it were, a lookup without a limit would be better than none.
        self.lookups.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_full_room_is_nobody_elses_and_says_how_long_it_takes_to_empty() {
        let queues = WaitQueues::new(2, PAUSE);
        let (slow, quick) = (WaitsFor::Hook("slow".into()), WaitsFor::Hook("quick".into()));
        let first = queues.of(slow.clone()).enter().unwrap();
        assert_eq!(queues.pause(&slow), None);
        let second = queues.of(slow.clone()).enter().unwrap();
        assert!(queues.of(slow.clone()).enter().is_none());
        assert!(queues.of(quick.clone()).enter().is_some());
        assert_eq!((queues.pause(&quick), queues.pause(&slow)), (None, Some(PAUSE)));
        // No job leaves: the longer this lasts, the longer the pause, up to its maximum.
        tokio::time::advance(PAUSE * 4).await;
        assert_eq!(queues.pause(&slow), Some(PAUSE * 4));
        tokio::time::advance(PAUSE * 1_000).await;
        assert_eq!(queues.pause(&slow), Some(PAUSE * limits::ROOM_PAUSES_MAX_COUNT));
        drop(first);
        assert_eq!(queues.pause(&slow), None);
        tokio::time::advance(PAUSE).await;
        let _third = queues.of(slow.clone()).enter().unwrap();
        drop(second);
        let _fourth = queues.of(slow.clone()).enter().unwrap();
        assert_eq!(queues.pause(&slow), Some(PAUSE * limits::ROOM_PAUSES_MAX_COUNT), "it waited for long");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_does_not_postpone_the_next_burst() {
        let queues = WaitQueues::new(2, PAUSE);
        let hook = WaitsFor::Hook("quick".into());
        let queue = queues.of(hook.clone());
        // The last job of an earlier burst waited for long, and then nothing happened for longer.
        let slow = queue.enter().unwrap();
        tokio::time::advance(PAUSE * 100).await;
        drop(slow);
        tokio::time::advance(PAUSE * 100).await;
        let _burst = [queue.enter().unwrap(), queue.enter().unwrap()];
        assert_eq!(queues.pause(&hook), Some(PAUSE));
    }
}
