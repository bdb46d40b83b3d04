//! Signals between intake and dispatch, which do not know each other.
//!
//! Intake waits for a job, and dispatch ends it. This module holds:
//!
//! * the waiters of each job,
//! * a wake-up of the dispatcher that cannot be lost,
//! * the jobs that were created in state running, on their way to the dispatcher.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::rules::LeasedJob;
use crate::observe::limits;
use spid_hook::callback::Outcome;

/// A leased job on its way to the dispatcher, with its permit to run.
#[derive(Debug)]
pub struct HandedJob {
    /// The job.
    pub taken: Box<LeasedJob>,
    /// Permit of the dispatcher. Dropping it returns the permit.
    pub permit: OwnedSemaphorePermit,
    /// Number of ended leases at the hand-over. While the number is the same, the lease of this job has not ended.
    pub(crate) leases_ended: u64,
}

/// Signals from the store to the dispatcher and to waiters.
#[derive(Debug)]
pub(crate) struct StoreSignals {
    /// Notified when a job may have become due.
    pub(crate) work: Notify,
    /// Permits for running jobs. There are none before a dispatcher is attached and none after it stops.
    pub(crate) permits: Arc<Semaphore>,
    ready: mpsc::UnboundedSender<HandedJob>,
    waiters: Arc<Waiters>,
    leases_ended: AtomicU64,
    commits: watch::Sender<u64>,
}

impl StoreSignals {
    pub(crate) fn new() -> (StoreSignals, mpsc::UnboundedReceiver<HandedJob>) {
        let (ready, receiver) = mpsc::unbounded_channel();
        let signals = StoreSignals {
            work: Notify::new(),
            permits: Arc::new(Semaphore::new(0)),
            ready,
            waiters: Arc::default(),
            leases_ended: AtomicU64::new(0),
            commits: watch::Sender::new(0),
        };
        (signals, receiver)
    }

    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    /// Tells those who wait for a change that something was committed.
    pub(crate) fn commit(&self) {
        // Nearly always there are none, and then this costs one load.
        if self.commits.receiver_count() > 0 {
            self.commits.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Returns a receiver that changes after each commit of this process.
    pub(crate) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }

    /// Hands a job that was created in state running to the dispatcher.
    ///
    /// Without a dispatcher the job comes back when its lease ends or the daemon starts again.
    pub(crate) fn hand_over(&self, taken: Box<LeasedJob>, permit: OwnedSemaphorePermit) {
        let _ = self.ready.send(HandedJob { taken, permit, leases_ended: self.leases_ended() });
    }

    /// Returns the number of leases that have ended since the start.
    pub(crate) fn leases_ended(&self) -> u64 {
        self.leases_ended.load(Ordering::Acquire)
    }

    /// Counts leases that have ended. It is committed that these jobs are not running.
    pub(crate) fn end_leases(&self, count: u64) {
        self.leases_ended.fetch_add(count, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    callback: i64,
    sender: oneshot::Sender<Outcome>,
}

/// Waiters of each job.
///
/// A waiter either leaves before the end of the job is written, or it receives the outcome. The commit that ends a job
/// records the result as reported for exactly the callbacks whose waiters are still present. So [`Waiters::drain`]
/// takes the waiters out before the commit, and a waiter that wants to leave after that stays a little longer.
///
/// Only a commit that hangs lets a waiter go whose result is recorded as reported. To the marketplace that is an answer
/// lost on the wire: it calls again and receives the answer to a redelivery.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    by_job: HashMap<i64, Vec<Waiter>>,
}

/// Waiters that were taken out because the end of their job is being written.
#[derive(Debug)]
pub(crate) struct DrainedWaiters {
    job: i64,
    waiters: Vec<Waiter>,
}

impl DrainedWaiters {
    /// Returns the numbers of the callbacks to which the result is reported.
    pub(crate) fn callbacks(&self) -> Vec<i64> {
        self.waiters.iter().map(|waiter| waiter.callback).collect()
    }

    /// Sends the outcome to each waiter.
    pub(crate) fn send(self, outcome: &Outcome) {
        for waiter in self.waiters {
            // A closed receiver is a waiter whose grace has ended: nothing to do.
            let _ = waiter.sender.send(outcome.clone());
        }
    }
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a waiter for `job` on behalf of `callback`.
    pub(crate) fn join(self: &Arc<Self>, job: i64, callback: i64) -> ResultWaiter {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        state.by_job.entry(job).or_default().push(Waiter { ticket, callback, sender });
        ResultWaiter { job, ticket, receiver, waiters: self.clone() }
    }

    /// Returns true if `job` has a waiter.
    pub(crate) fn are_there(&self, job: i64) -> bool {
        self.lock().by_job.contains_key(&job)
    }

    /// Takes out all waiters of `job`. They will receive the outcome of the commit.
    pub(crate) fn drain(&self, job: i64) -> DrainedWaiters {
        DrainedWaiters { job, waiters: self.lock().by_job.remove(&job).unwrap_or_default() }
    }

    /// Puts waiters back after the end of their job could not be written.
    ///
    /// A waiter that has gone meanwhile is not put back: a later end would be recorded as reported to it.
    pub(crate) fn restore(&self, drained: DrainedWaiters) {
        let mut there = drained.waiters;
        there.retain(|waiter| !waiter.sender.is_closed());
        if !there.is_empty() {
            self.lock().by_job.entry(drained.job).or_default().extend(there);
        }
    }

    /// Removes a waiter. `false`: too late, the end is being written and the waiter will receive it.
    fn leave(&self, job: i64, ticket: u64) -> bool {
        let mut state = self.lock();
        let Some(waiters) = state.by_job.get_mut(&job) else { return false };
        let before = waiters.len();
        waiters.retain(|waiter| waiter.ticket != ticket);
        let left = waiters.len() < before;
        if waiters.is_empty() {
            state.by_job.remove(&job);
        }
        left
    }
}

/// A waiter for the end of an attempt.
#[derive(Debug)]
pub struct ResultWaiter {
    job: i64,
    ticket: u64,
    receiver: oneshot::Receiver<Outcome>,
    waiters: Arc<Waiters>,
}

/// Interval at which a waiter that came too late to leave tries again, because writing the end may have failed.
const RECHECK: Duration = Duration::from_millis(250);

impl ResultWaiter {
    /// Waits until `deadline` for the end of the attempt. Returns [`Outcome::NotYet`] if it has not come.
    ///
    /// If the end is being written at the deadline, the wait goes on for at most [`limits::REPLY_GRACE_MS`].
    pub async fn until(mut self, mut deadline: Instant) -> Outcome {
        let last = deadline + Duration::from_millis(limits::REPLY_GRACE_MS);
        loop {
            match tokio::time::timeout_at(deadline, &mut self.receiver).await {
                Ok(Ok(outcome)) => return outcome,
                // The sender was dropped: the operation that added this waiter was not committed.
                Ok(Err(_)) => return Outcome::Unavailable,
                // Left in time: the commit that ends the job will not record the result as reported to this callback.
                Err(_) if self.waiters.leave(self.job, self.ticket) => return Outcome::NotYet,
                // The commit hangs. The result may be recorded as reported although this answer says "not yet".
                Err(_) if Instant::now() >= last => return Outcome::NotYet,
                // The end is being written. Wait for it, but try to leave again soon, in case the commit fails.
                Err(_) => deadline = last.min(Instant::now() + RECHECK),
            }
        }
    }
}

impl Drop for ResultWaiter {
    fn drop(&mut self) {
        // Close first: if `restore` runs at this moment, it must see that this waiter is gone.
        self.receiver.close();
        self.waiters.leave(self.job, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiter_that_leaves_in_time_is_not_reported_to() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let outcome = waiting.until(Instant::now() + Duration::from_secs(3)).await;
        assert_eq!(outcome, Outcome::NotYet);
        assert!(waiters.drain(1).callbacks().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn drained_waiter_receives_the_outcome_a_little_late() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let drained = waiters.drain(1);
        assert_eq!(drained.callbacks(), [10]);
        let deadline = Instant::now() + Duration::from_secs(3);
        let waits = tokio::spawn(waiting.until(deadline));
        tokio::time::sleep_until(deadline + Duration::from_millis(limits::REPLY_GRACE_MS - 1)).await;
        drained.send(&Outcome::done(Some("i-1".into())));
        assert_eq!(waits.await.unwrap(), Outcome::done(Some("i-1".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn commit_that_hangs_ends_the_wait() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let drained = waiters.drain(1);
        let deadline = Instant::now() + Duration::from_secs(3);
        assert_eq!(waiting.until(deadline).await, Outcome::NotYet);
        assert_eq!(Instant::now(), deadline + Duration::from_millis(limits::REPLY_GRACE_MS));
        drained.send(&Outcome::done(Some("i-1".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn restored_waiter_may_leave() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let drained = waiters.drain(1);
        let waits = tokio::spawn(waiting.until(Instant::now() + Duration::from_secs(3)));
        tokio::time::sleep(Duration::from_secs(5)).await;
        waiters.restore(drained);
        assert_eq!(waits.await.unwrap(), Outcome::NotYet);
    }
}
