//! Runs one attempt of the test: on its own thread, with a deadline, catching a panic, and cut short where the
//! test says so.
//!
//! The thread is needed for two reasons. A hook that blocks must not block the test's thread. And two attempts
//! at once must really run at once, even in a runtime with a single thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Builder;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::AttemptResult;
use crate::callback::Answer;
use crate::id::split_mix;
use crate::{AnyHook, Call, HookError};

/// Extra time to wait for a thread after its deadline, before its hook counts as one that blocks.
const GRACE: Duration = Duration::from_secs(1);

/// Number of steps that attempts at once make before the deadline is checked.
const STEPS_AT_A_STRETCH: u32 = 64;

/// End of an attempt. `Display` shows no secret of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The hook returned a result.
    Returned(AttemptResult),
    /// The hook panicked.
    Panicked,
    /// The attempt was given up at its deadline.
    TooLong,
    /// The hook blocks its thread and cannot be given up.
    Blocks,
    /// The test cut the attempt short.
    Cut,
    /// The system gave no thread for the attempt, so the hook was not called.
    NotStarted,
}

/// Point at which an attempt is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The n-th wait, from 1.
    AtWait(u32),
    /// After this time.
    After(Duration),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::english::end(self, f)
    }
}

/// Measurements and result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) end: End,
    /// Number of waits. The attempt can be cut short at each of them.
    pub(super) waits: u32,
    pub(super) took: Duration,
}

impl Ran {
    fn never(end: End) -> Ran {
        Ran { end, waits: 0, took: Duration::ZERO }
    }
}

/// Order in which attempts at once continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interleaving {
    /// On one thread: each attempt runs until it waits, then the next one, in turn.
    RoundRobin,
    /// On one thread: a random attempt that is ready to run, drawn from this seed.
    Seeded(u64),
    /// On one thread for each attempt, started together.
    Threads,
}

/// Runs one attempt.
pub(super) async fn run(hook: &AnyHook, call: Call, within: Duration, cut: Option<Cut>) -> Ran {
    let watched = Watched::new(hook, call, cut);
    let started = on_a_thread(new_thread(), within, async move {
        match cut {
            Some(Cut::After(after)) => cut_after(watched, after, within).await,
            _ => given_up(watched, within).await,
        }
    });
    started.await.unwrap_or_else(Ran::never)
}

/// Runs several attempts at once.
pub(super) async fn at_once(
    hook: &AnyHook,
    calls: Vec<Call>,
    within: Duration,
    interleaving: Interleaving,
) -> Vec<Ran> {
    let count = calls.len();
    let all: Vec<Watched> = calls.into_iter().map(|call| Watched::new(hook, call, None)).collect();
    if interleaving == Interleaving::Threads {
        return on_threads(all, within, new_thread).await;
    }
    let interleaved = on_a_thread(new_thread(), within, async move {
        let mut interleaved = Interleaved::new(all, interleaving);
        let _ = timeout(within, &mut interleaved).await;
        interleaved.ends()
    });
    interleaved.await.unwrap_or_else(|end| vec![Ran::never(end); count])
}

/// Runs every attempt on its own thread.
async fn on_threads(all: Vec<Watched>, within: Duration, thread: impl Fn() -> Builder) -> Vec<Ran> {
    // Start together: the signal releases all threads at the same moment. A barrier would wait forever for a thread
    // that the system does not give.
    let (go, gate) = watch::channel(false);
    let mut started = Vec::new();
    for watched in all {
        let mut gate = gate.clone();
        started.push(on_a_thread(thread(), within, async move {
            let _ = gate.wait_for(|go| *go).await;
            given_up(watched, within).await
        }));
    }
    go.send_replace(true);
    let mut ends = Vec::new();
    for end in started {
        ends.push(end.await.unwrap_or_else(Ran::never));
    }
    ends
}

fn new_thread() -> Builder {
    Builder::new().name("hook-test".to_owned())
}

/// Runs `work` immediately on its own thread, inside the caller's runtime. The error is [`End::NotStarted`], or
/// [`End::Blocks`] if the work is not done in time; the thread is then left behind.
fn on_a_thread<T: Send + 'static>(
    thread: Builder,
    within: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Result<T, End>> {
    let runtime = Handle::current();
    let (back, end) = oneshot::channel();
    let started = thread.spawn(move || {
        let _ = back.send(runtime.block_on(work));
    });
    let within = within.saturating_add(GRACE);
    async move {
        let _running = started.map_err(|_| End::NotStarted)?;
        let end = timeout(within, end).await.map_err(|_elapsed| End::Blocks)?;
        end.map_err(|_dropped| End::Blocks)
    }
}

/// Runs an attempt to its end or its deadline.
async fn given_up(mut watched: Watched, within: Duration) -> Ran {
    match timeout(within, &mut watched).await {
        Ok(end) => watched.ran(end),
        Err(_elapsed) => watched.ran(End::TooLong),
    }
}

/// Runs an attempt and cuts it short after a time.
async fn cut_after(mut watched: Watched, after: Duration, within: Duration) -> Ran {
    let end = tokio::select! {
        // Prefer the end of the attempt, so that an attempt that is done never counts as cut.
        biased;
        end = timeout(within, &mut watched) => end.unwrap_or(End::TooLong),
        () = sleep(after) => End::Cut,
    };
    watched.ran(end)
}

type Work = Pin<Box<dyn Future<Output = Result<Answer, HookError>> + Send>>;

/// A hook at work. It counts its waits, and ends at the wait where it is to be cut.
struct Watched {
    work: Option<Work>,
    cut_at: Option<u32>,
    waits: u32,
    began: Instant,
}

impl Watched {
    fn new(hook: &AnyHook, call: Call, cut: Option<Cut>) -> Watched {
        let hook = hook.clone();
        let work: Work = Box::pin(async move { hook.answer(call).await });
        let cut_at = match cut {
            Some(Cut::AtWait(n)) => Some(n),
            _ => None,
        };
        Watched { work: Some(work), cut_at, waits: 0, began: Instant::now() }
    }

    fn ran(&self, end: End) -> Ran {
        Ran { end, waits: self.waits, took: self.began.elapsed() }
    }
}

impl Future for Watched {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        let Some(work) = self.work.as_mut() else { return Poll::Ready(End::Cut) };
        // A panic of the hook must not end the test.
        let end = match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Ready(result)) => End::Returned(AttemptResult::from(result)),
            Err(_panic) => End::Panicked,
            Ok(Poll::Pending) => {
                // Every `Pending` is one wait: a point at which the attempt can be cut.
                self.waits += 1;
                if self.cut_at != Some(self.waits) {
                    return Poll::Pending;
                }
                End::Cut
            }
        };
        // Drop the hook's future now: a cut must end the attempt at this wait.
        self.work = None;
        Poll::Ready(end)
    }
}

/// Waker of one attempt: records that the attempt may continue, and wakes the task that drives all of them.
struct Woken {
    now: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Woken {
    fn new() -> Arc<Woken> {
        Arc::new(Woken { now: AtomicBool::new(true), waker: Mutex::new(None) })
    }

    fn tell(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.now.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Attempts that continue one step at a time, in an order that can be repeated.
struct Interleaved {
    all: Vec<(Watched, Arc<Woken>, Option<Ran>)>,
    last: usize,
    interleaving: Interleaving,
}

impl Interleaved {
    fn new(all: Vec<Watched>, interleaving: Interleaving) -> Interleaved {
        let all: Vec<_> = all.into_iter().map(|watched| (watched, Woken::new(), None)).collect();
        Interleaved { last: all.len().saturating_sub(1), all, interleaving }
    }

    /// Chooses the next attempt among those that may continue.
    fn next(&mut self) -> Option<usize> {
        let mut ready: Vec<usize> = Vec::new();
        for (index, (_, woken, ran)) in self.all.iter().enumerate() {
            if ran.is_none() && woken.now.load(Ordering::SeqCst) {
                ready.push(index);
            }
        }
        match &mut self.interleaving {
            Interleaving::Seeded(state) => {
                let at = split_mix(state) % u64::try_from(ready.len()).ok().filter(|count| *count > 0)?;
                ready.get(usize::try_from(at).ok()?).copied()
            }
            _ => {
                // Continue with the next attempt after the last one, or begin again with the first.
                let behind = ready.iter().find(|index| **index > self.last);
                behind.or(ready.first()).copied()
            }
        }
    }

    /// Returns the results. An attempt without a result has reached the deadline.
    fn ends(self) -> Vec<Ran> {
        self.all
            .into_iter()
            .map(|(watched, _, ran)| ran.unwrap_or_else(|| watched.ran(End::TooLong)))
            .collect()
    }
}

impl Future for Interleaved {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Give every attempt the current waker, because the task may have moved.
        for (_, woken, _) in &self.all {
            woken.tell(context.waker());
        }
        // Run a bounded number of steps, so that the caller's timeout gets its turn.
        for _ in 0..STEPS_AT_A_STRETCH {
            let Some(index) = self.next() else { break };
            self.last = index;
            let Some((watched, woken, ran)) = self.all.get_mut(index) else { break };
            // Clear the flag before the poll: a wake during the poll must not be lost.
            woken.now.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(woken));
            if let Poll::Ready(end) = Pin::new(&mut *watched).poll(&mut Context::from_waker(&waker)) {
                *ran = Some(watched.ran(end));
            }
        }
        if self.all.iter().all(|(_, _, ran)| ran.is_some()) {
            return Poll::Ready(());
        }
        // Attempts are still ready: ask for another turn.
        if self.next().is_some() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::{Purchase, TestOrders};
    use super::super::report::Step;
    use super::*;
    use crate::callback::Action;
    use crate::time::Clock;
    use crate::{CreateCall, ExpireCall, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};

    const WITHIN: Duration = Duration::from_secs(20);

    /// Hook that records each step of each attempt, and the time at which an attempt is dropped.
    #[derive(Clone, Default)]
    struct Steps(Arc<Mutex<Vec<String>>>);

    struct Attempt(Steps, u32);

    impl Attempt {
        fn note(&self, what: &str) {
            self.0.0.lock().unwrap().push(format!("{} {what}", self.1));
        }
    }

    impl Drop for Attempt {
        fn drop(&mut self) {
            self.note("gone");
        }
    }

    impl ProvisioningHook for Steps {
        async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
            let attempt = Attempt(self.clone(), call.context.attempt);
            for step in ["a", "b", "c"] {
                attempt.note(step);
                tokio::task::yield_now().await;
            }
            Ok(Provisioned::new())
        }
        async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
            Err(HookError::refuse("not asked"))
        }
        async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
            Err(HookError::refuse("not asked"))
        }
        async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
            Err(HookError::refuse("not asked"))
        }
    }

    fn calls(count: usize) -> Vec<Call> {
        let mut orders = TestOrders::new(Purchase::default(), Clock::System);
        let mut order = orders.order(false);
        let mut job = orders.job(&mut order, Step::usual(Action::Create));
        (0..count).map(|_| orders.call(&mut job, WITHIN).unwrap()).collect()
    }

    async fn interleaved(interleaving: Interleaving) -> Vec<String> {
        let steps = Steps::default();
        let all = at_once(&AnyHook::new(steps.clone()), calls(2), WITHIN, interleaving).await;
        assert!(
            all.iter().all(|ran| matches!(ran.end, End::Returned(AttemptResult::Done(_))) && ran.waits == 3)
        );
        steps.0.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn attempts_in_turn_go_on_one_wait_at_a_time() {
        let expected = ["1 a", "2 a", "1 b", "2 b", "1 c", "2 c", "1 gone", "2 gone"];
        assert_eq!(interleaved(Interleaving::RoundRobin).await, expected);
    }

    #[tokio::test]
    async fn a_seed_repeats_itself_and_seeds_differ() {
        assert_eq!(interleaved(Interleaving::Seeded(7)).await, interleaved(Interleaving::Seeded(7)).await);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            seen.insert(interleaved(Interleaving::Seeded(seed)).await);
        }
        assert!(seen.len() > 5, "{seen:?}");
    }

    #[tokio::test]
    async fn attempt_without_a_thread_neither_blocks_the_others_nor_blames_the_hook() {
        let hook = AnyHook::new(Steps::default());
        let all = calls(3).into_iter().map(|call| Watched::new(&hook, call, None)).collect();
        let given = std::cell::Cell::new(0);
        let thread = || {
            given.set(given.get() + 1);
            // No system gives a thread with such a stack.
            if given.get() == 2 { new_thread().stack_size(usize::MAX / 4) } else { new_thread() }
        };
        let ends: Vec<End> = on_threads(all, WITHIN, thread).await.into_iter().map(|ran| ran.end).collect();
        assert_eq!(ends[1], End::NotStarted);
        for end in [&ends[0], &ends[2]] {
            assert!(matches!(end, End::Returned(AttemptResult::Done(_))), "{end:?}");
        }
    }

    #[tokio::test]
    async fn a_cut_attempt_is_dropped_where_it_waits() {
        let steps = Steps::default();
        let call = calls(1).remove(0);
        let ran = run(&AnyHook::new(steps.clone()), call.clone(), WITHIN, Some(Cut::AtWait(2))).await;
        assert_eq!((ran.end, ran.waits), (End::Cut, 2));
        assert_eq!(*steps.0.lock().unwrap(), ["1 a", "1 b", "1 gone"]);
        let ran = run(&AnyHook::new(steps), call, WITHIN, Some(Cut::AtWait(9))).await;
        assert!(
            matches!(ran.end, End::Returned(AttemptResult::Done(_))),
            "it was over before it could be cut"
        );
    }
}
