//! How intake and dispatch hear of each other's work without knowing each other.
//!
//! Intake waits for a job; dispatch ends it. Between the two stands this: who waits for which job,
//! a wake-up for the dispatcher that cannot be lost, and the jobs that were born leased.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::ledger::Taken;
use crate::hook::callback::Outcome;
use crate::observe::limits;

/// A leased job on its way to the dispatcher, with its place among those that run at once.
#[derive(Debug)]
pub struct Ready {
    /// The job.
    pub taken: Box<Taken>,
    /// Its place; given back when dropped.
    pub place: OwnedSemaphorePermit,
    /// How many leases had run out when it was handed over. As long as that is so, nobody has ended its own.
    pub(crate) leases_ended: u64,
}

/// What the store tells the dispatcher.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Something may have become due.
    pub(crate) work: Notify,
    /// Places for running jobs: none before a dispatcher is there, and none once it stops.
    pub(crate) places: Arc<Semaphore>,
    ready: mpsc::UnboundedSender<Ready>,
    waiters: Arc<Waiters>,
    leases_ended: AtomicU64,
}

impl Signals {
    pub(crate) fn new() -> (Signals, mpsc::UnboundedReceiver<Ready>) {
        let (ready, receiver) = mpsc::unbounded_channel();
        let signals = Signals {
            work: Notify::new(),
            places: Arc::new(Semaphore::new(0)),
            ready,
            waiters: Arc::default(),
            leases_ended: AtomicU64::new(0),
        };
        (signals, receiver)
    }

    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    /// Hands a job that was born leased to the dispatcher. If there is none any more, the job comes
    /// back when its lease ends or the daemon starts again.
    pub(crate) fn hand_over(&self, taken: Box<Taken>, place: OwnedSemaphorePermit) {
        let _ = self.ready.send(Ready { taken, place, leases_ended: self.leases_ended() });
    }

    /// How many leases ran out since the start.
    pub(crate) fn leases_ended(&self) -> u64 {
        self.leases_ended.load(Ordering::Acquire)
    }

    /// Counts leases that ran out: it is committed that nobody works on these jobs any more.
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

/// Who waits for which job.
///
/// A waiter either leaves before the job's end is written, or hears it: the commit that ends a job
/// records "told" for exactly those who were still there. That is why [`Waiters::claim`] takes them
/// out before the commit, and a waiter that wants to leave after that stays a little longer. Only a
/// commit that hangs lets one go that is recorded as told: to the marketplace that is an answer lost
/// on the wire, it asks again and hears the repeat.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    by_job: HashMap<i64, Vec<Waiter>>,
}

/// Those who hear how a job ended.
#[derive(Debug)]
pub(crate) struct Claimed {
    job: i64,
    waiters: Vec<Waiter>,
}

impl Claimed {
    /// The callbacks that are told.
    pub(crate) fn callbacks(&self) -> Vec<i64> {
        self.waiters.iter().map(|waiter| waiter.callback).collect()
    }

    /// Tells them.
    pub(crate) fn tell(self, outcome: &Outcome) {
        for waiter in self.waiters {
            let _ = waiter.sender.send(outcome.clone());
        }
    }
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for `job` on behalf of `callback`.
    pub(crate) fn join(self: &Arc<Self>, job: i64, callback: i64) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        state.by_job.entry(job).or_default().push(Waiter { ticket, callback, sender });
        Waiting { job, ticket, receiver, waiters: self.clone() }
    }

    /// Whether anybody waits for `job`.
    pub(crate) fn are_there(&self, job: i64) -> bool {
        self.lock().by_job.contains_key(&job)
    }

    /// Takes out everybody who waits for `job`: they will be told.
    pub(crate) fn claim(&self, job: i64) -> Claimed {
        Claimed { job, waiters: self.lock().by_job.remove(&job).unwrap_or_default() }
    }

    /// Puts them back: the end could not be written. Those who have gone meanwhile are not put back, or a later
    /// end would be written as told to them.
    pub(crate) fn restore(&self, claimed: Claimed) {
        let mut there = claimed.waiters;
        there.retain(|waiter| !waiter.sender.is_closed());
        if !there.is_empty() {
            self.lock().by_job.entry(claimed.job).or_default().extend(there);
        }
    }

    /// Leaves. `false`: too late, the end is being written and will be heard.
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

/// Somebody who waits for the end of an attempt.
#[derive(Debug)]
pub struct Waiting {
    job: i64,
    ticket: u64,
    receiver: oneshot::Receiver<Outcome>,
    waiters: Arc<Waiters>,
}

/// How often a waiter that came too late to leave looks again: its end may have failed to be written.
const RECHECK: Duration = Duration::from_millis(250);

impl Waiting {
    /// Waits until `deadline` for the attempt's end, and [`limits::REPLY_GRACE_MS`] longer if it is being
    /// written just then. [`Outcome::NotYet`] when it has not come.
    pub async fn until(mut self, mut deadline: Instant) -> Outcome {
        let last = deadline + Duration::from_millis(limits::REPLY_GRACE_MS);
        loop {
            match tokio::time::timeout_at(deadline, &mut self.receiver).await {
                Ok(Ok(outcome)) => return outcome,
                // The operation that let us wait was not committed.
                Ok(Err(_)) => return Outcome::Unavailable,
                Err(_) if self.waiters.leave(self.job, self.ticket) => return Outcome::NotYet,
                Err(_) if Instant::now() >= last => return Outcome::NotYet,
                Err(_) => deadline = last.min(Instant::now() + RECHECK),
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // First, so that whoever puts it back just now sees that nobody is there.
        self.receiver.close();
        self.waiters.leave(self.job, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_leaves_in_time_is_not_told() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let outcome = waiting.until(Instant::now() + Duration::from_secs(3)).await;
        assert_eq!(outcome, Outcome::NotYet);
        assert!(waiters.claim(1).callbacks().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_claimed_hears_it_a_little_late() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let claimed = waiters.claim(1);
        assert_eq!(claimed.callbacks(), [10]);
        let deadline = Instant::now() + Duration::from_secs(3);
        let waits = tokio::spawn(waiting.until(deadline));
        tokio::time::sleep_until(deadline + Duration::from_millis(limits::REPLY_GRACE_MS - 1)).await;
        claimed.tell(&Outcome::done(Some("i-1".into())));
        assert_eq!(waits.await.unwrap(), Outcome::done(Some("i-1".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_commit_that_hangs() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let claimed = waiters.claim(1);
        let deadline = Instant::now() + Duration::from_secs(3);
        assert_eq!(waiting.until(deadline).await, Outcome::NotYet);
        assert_eq!(Instant::now(), deadline + Duration::from_millis(limits::REPLY_GRACE_MS));
        claimed.tell(&Outcome::done(Some("i-1".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_put_back_may_leave() {
        let waiters = Arc::new(Waiters::default());
        let waiting = waiters.join(1, 10);
        let claimed = waiters.claim(1);
        let waits = tokio::spawn(waiting.until(Instant::now() + Duration::from_secs(3)));
        tokio::time::sleep(Duration::from_secs(5)).await;
        waiters.restore(claimed);
        assert_eq!(waits.await.unwrap(), Outcome::NotYet);
    }
}
