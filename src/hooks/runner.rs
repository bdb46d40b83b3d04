//! Runs hooks and protects the daemon from them.
//!
//! This module decides which hook gets a call, how many calls run at once, and for how long. It also handles a
//! hook that panics, hangs or is no longer wanted. The hook's author writes none of that. The result is an
//! [`AttemptResult`]; the dispatcher decides when to try again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};
use tracing::Instrument as _;

use super::exec::{self, ExecHook};
use super::orphaned_hooks::OrphanedHooks;
use crate::observe::limits;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::callback::Answer;
use spid_hook::{AnyHook, AttemptResult, Call, HookError, Subject};

/// Time in milliseconds to wait for a hook that was told to stop. A hook that awaits stops at once. A hook that
/// blocks its thread cannot be stopped, and is left behind.
const ABORT_GRACE_MS: u64 = 1_000;

/// Code or a program that runs the calls of one hook. Clones share it.
#[derive(Debug, Clone)]
pub enum Executor {
    /// Code in this process, or a service.
    Code(AnyHook),
    /// A program, whose processes the daemon marks.
    Exec(Arc<ExecHook>),
}

impl Executor {
    async fn run(&self, call: Call, orphaned_hooks: Option<OrphanedHooks>) -> Result<Answer, HookError> {
        match self {
            Executor::Code(hook) => hook.answer(call).await,
            Executor::Exec(hook) => hook.run(call, orphaned_hooks).await,
        }
    }
}

impl From<Executor> for AnyHook {
    fn from(executor: Executor) -> AnyHook {
        match executor {
            Executor::Code(hook) => hook,
            Executor::Exec(hook) => exec::unmarked(hook),
        }
    }
}

/// A hook with its name in routes and logs, and its limits.
#[derive(Debug, Clone)]
pub struct NamedHook {
    /// The name.
    pub name: String,
    /// The hook.
    pub hook: Executor,
    /// Maximum duration of one attempt.
    pub timeout: Duration,
    /// Maximum number of attempts in flight, over all instances; at least one.
    pub concurrency: usize,
    /// Delays between failed attempts. `None` means the default schedule.
    pub retry: Option<Schedule>,
}

impl NamedHook {
    /// A hook with the default timeout and concurrency.
    pub fn new(name: impl Into<String>, hook: impl Into<AnyHook>) -> NamedHook {
        NamedHook::run_by(name, Executor::Code(hook.into()))
    }

    /// A program with the default timeout and concurrency. Its processes are marked, so that none outlives a daemon
    /// that is killed.
    pub fn exec(name: impl Into<String>, hook: ExecHook) -> NamedHook {
        NamedHook::run_by(name, Executor::Exec(Arc::new(hook)))
    }

    fn run_by(name: impl Into<String>, hook: Executor) -> NamedHook {
        NamedHook {
            name: name.into(),
            hook,
            timeout: Duration::from_millis(limits::HOOK_TIMEOUT_MS),
            concurrency: limits::HOOK_CONCURRENCY_COUNT,
            retry: None,
        }
    }

    fn permits(&self) -> usize {
        self.concurrency.min(Semaphore::MAX_PERMITS)
    }

    /// Sets the timeout.
    pub fn timeout(self, timeout: Duration) -> NamedHook {
        NamedHook { timeout, ..self }
    }

    /// Sets the concurrency.
    pub fn concurrency(self, concurrency: usize) -> NamedHook {
        NamedHook { concurrency, ..self }
    }

    /// Sets the retry schedule.
    pub fn retry(self, schedule: Schedule) -> NamedHook {
        NamedHook { retry: Some(schedule), ..self }
    }
}

/// Condition that sends calls to a hook. A field that is `None` matches every call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// The endpoint that received the callback.
    pub endpoint: Option<String>,
    /// The product.
    pub product: Option<String>,
    /// The SKU.
    pub sku: Option<String>,
    /// The buyer's account.
    pub buyer: Option<String>,
    /// The name of the hook.
    pub hook: String,
}

impl Route {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.unmet(subject).next().is_none()
    }

    fn wanted(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("endpoint", self.endpoint.as_deref()),
            ("product", self.product.as_deref()),
            ("sku", self.sku.as_deref()),
            ("buyer", self.buyer.as_deref()),
        ]
    }

    /// Returns the conditions: the name of each value, and the value it must have.
    pub fn conditions(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.wanted().into_iter().filter_map(|(name, wanted)| Some((name, wanted?)))
    }

    /// Returns the names of the conditions that this subject does not meet.
    pub fn unmet(&self, subject: &Subject<'_>) -> impl Iterator<Item = &'static str> {
        let given = [Some(subject.endpoint), subject.product, subject.sku, subject.buyer];
        let both = self.wanted().into_iter().zip(given);
        both.filter(|((_, wanted), given)| wanted.is_some() && wanted != given).map(|((name, _), _)| name)
    }
}

/// Hook that a subject is routed to, and the route that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed<'a> {
    /// The hook.
    pub hook: &'a str,
    /// The first route that matches, with its index in the list. `None` means that the default hook gets the call.
    pub route: Option<(usize, &'a Route)>,
}

/// Mistake in a set of hooks and routes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRouting {
    /// The list of hooks is empty.
    #[error("no hook is configured; add a `[[hook]]` table")]
    NoHook,
    /// Two hooks have the same name.
    #[error("two hooks have the name `{0}`; rename one of them")]
    DuplicateName(String),
    /// A hook has a concurrency of 0 and could never run.
    #[error("the hook `{0}` has concurrency 0 and would never run; set at least 1")]
    NoConcurrency(String),
    /// A route names a hook that is not configured.
    #[error("a route names the hook `{0}`, which is not configured; add the hook or correct the route")]
    UnknownHook(String),
}

/// A hook and the bound on its concurrent attempts.
#[derive(Debug)]
struct Entry {
    named: NamedHook,
    permits: Permits,
}

/// Bound on concurrent attempts that can change while permits are in use. A hook's bound outlives a reload
/// under the hook's name.
#[derive(Debug, Clone)]
pub(crate) struct Permits {
    free: Arc<Semaphore>,
    /// Number of permits in use that are not given back when they are dropped, because the bound was lowered.
    surplus: Arc<AtomicUsize>,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Permits {
        Permits { free: Arc::new(Semaphore::new(count)), surplus: Arc::default() }
    }

    /// Raises the bound.
    pub(crate) fn more(&self, count: usize) {
        // Cancel pending reductions first. Only the rest needs new permits.
        let kept = (0..count).filter(|_| self.take_surplus()).count();
        self.free.add_permits(count - kept);
    }

    /// Lowers the bound. Permits in use are removed when they are dropped.
    pub(crate) fn fewer(&self, count: usize) {
        // Record the reduction first, so that a permit dropped meanwhile is removed, too.
        self.surplus.fetch_add(count, Ordering::AcqRel);
        // Remove free permits now. Those in use are removed by `Permit::drop`, as they come free.
        while self.surplus.load(Ordering::Acquire) > 0 {
            let Some(permit) = self.try_take() else { return };
            drop(permit);
        }
    }

    /// Consumes one pending reduction. Returns false if there is none.
    fn take_surplus(&self) -> bool {
        let update =
            self.surplus.fetch_update(Ordering::AcqRel, Ordering::Acquire, |surplus| surplus.checked_sub(1));
        update.is_ok()
    }

    pub(crate) fn try_take(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Permit { permit: Some(permit), permits: self.clone() })
    }

    pub(crate) async fn take(&self) -> Permit {
        // The semaphore is never closed. If it were, running without a bound would be better than not running.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        Permit { permit, permits: self.clone() }
    }
}

/// A permit of [`Permits`]. Dropping it gives the permit back.
#[derive(Debug)]
pub(crate) struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    permits: Permits,
}

impl Drop for Permit {
    fn drop(&mut self) {
        // After a reload with a lower bound, forget the permit instead of returning it.
        if let Some(permit) = self.permit.take_if(|_| self.permits.take_surplus()) {
            permit.forget();
        }
    }
}

/// All hooks of the daemon, with the routes to them. Clones share the bounds.
#[derive(Debug, Clone)]
pub struct Runner {
    inner: Arc<Inner>,
    orphaned_hooks: Option<OrphanedHooks>,
}

#[derive(Debug)]
struct Inner {
    /// All hooks, including those that no route leads to.
    hooks: Vec<Arc<Entry>>,
    default: Arc<Entry>,
    routes: Vec<(Route, Arc<Entry>)>,
}

impl Runner {
    /// Creates a runner from hooks and the routes to them. The first route that matches wins. A call that no
    /// route matches goes to the first hook.
    ///
    /// # Errors
    /// All mistakes, not only the first.
    pub fn new(hooks: Vec<NamedHook>, routes: Vec<Route>) -> Result<Runner, Vec<BadRouting>> {
        // Collect all mistakes, so that an operator corrects the configuration in one step.
        let mut mistakes = mistakes(&hooks);
        let entries: Vec<Arc<Entry>> = hooks.into_iter().map(Entry::new).collect();
        let mut resolved = Vec::new();
        for route in routes {
            match entries.iter().find(|entry| entry.named.name == route.hook) {
                Some(entry) => resolved.push((route, Arc::clone(entry))),
                None => mistakes.push(BadRouting::UnknownHook(route.hook)),
            }
        }
        match entries.first().cloned() {
            // The first hook is the default.
            Some(default) if mistakes.is_empty() => {
                let inner = Inner { hooks: entries, default, routes: resolved };
                Ok(Runner { inner: Arc::new(inner), orphaned_hooks: None })
            }
            _ => Err(mistakes),
        }
    }

    /// Makes the runner mark in `orphaned_hooks` every process that it starts. Hooks and bounds stay.
    pub fn marking(self, orphaned_hooks: OrphanedHooks) -> Runner {
        Runner { orphaned_hooks: Some(orphaned_hooks), ..self }
    }

    /// Returns the hook that gets calls about this subject, and the route that leads to it.
    pub fn route(&self, subject: &Subject<'_>) -> Routed<'_> {
        let mut routes = self.inner.routes.iter().enumerate();
        match routes.find(|(_, (route, _))| route.matches(subject)) {
            Some((index, (route, entry))) => Routed { hook: &entry.named.name, route: Some((index, route)) },
            None => Routed { hook: self.default_hook(), route: None },
        }
    }

    /// Makes this runner the successor of `before`. An attempt that is still in flight counts for the hook that
    /// now has the name. A runner has at most one successor.
    pub fn succeeding(self, before: &Runner) -> Runner {
        // Hooks keep their permits by name. A hook with a new name begins with all permits free.
        let old = before.entries();
        let mut made: BTreeMap<&str, Arc<Entry>> = BTreeMap::new();
        for (name, entry) in self.entries() {
            let entry = match old.get(name) {
                Some(old) => Arc::new(entry.succeeding(old)),
                None => Arc::clone(entry),
            };
            made.insert(name, entry);
        }
        let Inner { hooks, default, routes } = &*self.inner;
        let hooks = hooks.iter().map(|entry| entry_now(&made, entry)).collect();
        let routes = routes.iter().map(|(route, entry)| (route.clone(), entry_now(&made, entry))).collect();
        let inner = Arc::new(Inner { hooks, default: entry_now(&made, default), routes });
        // The marks belong to the store, which a reload does not change.
        Runner { inner, orphaned_hooks: before.orphaned_hooks.clone() }
    }

    fn entries(&self) -> BTreeMap<&str, &Arc<Entry>> {
        self.inner.hooks.iter().map(|entry| (entry.named.name.as_str(), entry)).collect()
    }

    /// Returns the hooks, in the order they were given.
    pub fn hooks(&self) -> impl Iterator<Item = &NamedHook> {
        self.inner.hooks.iter().map(|entry| &entry.named)
    }

    /// Returns the routes, in the order in which they are tried.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.inner.routes.iter().map(|(route, _)| route)
    }

    /// Returns true if any route has a condition on the endpoint.
    pub fn routes_by_endpoint(&self) -> bool {
        self.routes().any(|route| route.endpoint.is_some())
    }

    /// Returns the name of the hook that gets the calls that no route matches.
    pub fn default_hook(&self) -> &str {
        &self.inner.default.named.name
    }

    /// Returns the retry schedule of the hook that gets calls about this subject, if the hook has its own.
    pub fn retry(&self, subject: &Subject<'_>) -> Option<&Schedule> {
        self.entry(subject).named.retry.as_ref()
    }

    /// Returns the maximum duration of an attempt at a call about this subject.
    pub fn timeout(&self, subject: &Subject<'_>) -> Duration {
        self.entry(subject).named.timeout
    }

    /// Waits until the hook for this subject may run one more attempt.
    ///
    /// Build the call afterwards, because its deadline must not include the time spent waiting.
    pub async fn reserve(&self, subject: &Subject<'_>) -> Slot {
        let entry = Arc::clone(self.entry(subject));
        let permit = entry.permits.take().await;
        Slot { entry, permit, orphaned_hooks: self.orphaned_hooks.clone() }
    }

    /// Reserves a slot as [`Runner::reserve`] does, but returns `None` when the hook is busy.
    pub fn try_reserve(&self, subject: &Subject<'_>) -> Option<Slot> {
        let entry = Arc::clone(self.entry(subject));
        let permit = entry.permits.try_take()?;
        Some(Slot { entry, permit, orphaned_hooks: self.orphaned_hooks.clone() })
    }

    /// Returns the hook with this name, or the default one. `None` means that no call can reach a hook of that name.
    pub fn hook(&self, name: Option<&str>) -> Option<&NamedHook> {
        let Inner { default, routes, .. } = &*self.inner;
        // Only these hooks can get a call; a configured hook without a route cannot.
        let all = std::iter::once(default).chain(routes.iter().map(|(_, entry)| entry));
        all.map(|entry| &entry.named).find(|named| name.is_none_or(|name| named.name == name))
    }

    /// Reserves a slot and runs the call. Dropping the returned future stops the hook.
    pub async fn run(&self, call: Call) -> AttemptResult {
        let slot = self.reserve(&call.subject()).await;
        slot.run(call).await
    }

    fn entry(&self, subject: &Subject<'_>) -> &Arc<Entry> {
        let route = self.inner.routes.iter().find(|(route, _)| route.matches(subject));
        route.map_or(&self.inner.default, |(_, entry)| entry)
    }
}

fn mistakes(hooks: &[NamedHook]) -> Vec<BadRouting> {
    let mut mistakes = Vec::new();
    if hooks.is_empty() {
        mistakes.push(BadRouting::NoHook);
    }
    let mut names = BTreeSet::new();
    for hook in hooks {
        if !names.insert(hook.name.as_str()) {
            mistakes.push(BadRouting::DuplicateName(hook.name.clone()));
        }
        if hook.concurrency == 0 {
            mistakes.push(BadRouting::NoConcurrency(hook.name.clone()));
        }
    }
    mistakes
}

impl Entry {
    fn new(named: NamedHook) -> Arc<Entry> {
        let permits = Permits::new(named.permits());
        Arc::new(Entry { named, permits })
    }

    /// Returns this hook with the permits of `old`. If the new bound is lower, permits in use are removed as
    /// they come free.
    fn succeeding(&self, old: &Entry) -> Entry {
        let (named, permits) = (self.named.clone(), old.permits.clone());
        let (wanted, there) = (named.permits(), old.named.permits());
        permits.more(wanted.saturating_sub(there));
        permits.fewer(there.saturating_sub(wanted));
        Entry { named, permits }
    }
}

/// Right to run one hook once.
#[derive(Debug)]
pub struct Slot {
    entry: Arc<Entry>,
    permit: Permit,
    orphaned_hooks: Option<OrphanedHooks>,
}

impl Slot {
    /// Returns the hook's name.
    pub fn hook_name(&self) -> &str {
        &self.entry.named.name
    }

    /// Returns the maximum duration of the attempt, counted from [`Slot::run`].
    pub fn timeout(&self) -> Duration {
        self.entry.named.timeout
    }

    /// Runs the hook for at most [`Slot::timeout`] and catches its panics. Dropping the returned future stops the hook.
    pub async fn run(self, call: Call) -> AttemptResult {
        let Slot { entry, permit, orphaned_hooks } = self;
        let hook = entry.named.hook.clone();
        // The permit moves into the task, so that a hook which cannot be stopped still counts.
        let work = async move {
            let _permit = permit;
            hook.run(call, orphaned_hooks).await
        };
        // A task of its own catches a panic of the hook. The current span is kept, so that the hook's log lines
        // belong to the attempt.
        let mut work = AbortOnDrop(tokio::spawn(work.in_current_span()));
        // Wait for the end of the task, but only until the deadline.
        match tokio::time::timeout(entry.named.timeout, &mut work.0).await {
            Ok(Ok(result)) => AttemptResult::from(result),
            // The task panicked or was aborted.
            Ok(Err(error)) => fell(&entry.named.name, &error),
            Err(_elapsed) => {
                // Deadline: stop the hook and wait for its end, so that it cannot meet the next attempt.
                let timeout = entry.named.timeout;
                match work.stop(&entry.named.name).await {
                    // The hook was done before the stop took effect. The work exists, so its answer counts.
                    Some(result) => AttemptResult::from(result),
                    None => AttemptResult::retry(format!(
                        "the hook `{}` took longer than {timeout:?}",
                        entry.named.name
                    )),
                }
            }
        }
    }
}

/// Returns the result for a task that panicked or was aborted. The panic's text is left out, because it is the
/// author's and may hold anything.
fn fell(name: &str, error: &JoinError) -> AttemptResult {
    let how = if error.is_panic() { "panicked" } else { "was stopped" };
    AttemptResult::retry(format!("the hook `{name}` {how}"))
}

struct AbortOnDrop(JoinHandle<Result<Answer, HookError>>);

impl AbortOnDrop {
    /// Stops the work and waits until it has ended. A child process must be dead before the next attempt is scheduled.
    /// Returns the result of a hook that was done before that.
    async fn stop(&mut self, name: &str) -> Option<Result<Answer, HookError>> {
        // The abort drops the hook's future at its next `await`, which kills a child process.
        self.0.abort();
        let grace = Duration::from_millis(ABORT_GRACE_MS);
        match tokio::time::timeout(grace, &mut self.0).await {
            Ok(ended) => ended.ok(),
            Err(_elapsed) => {
                tracing::error!(
                    hook = name,
                    "the hook blocks its thread and cannot be stopped; its thread keeps running until the hook returns"
                );
                None
            }
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns the entry that has the name of `entry` now.
fn entry_now(made: &BTreeMap<&str, Arc<Entry>>, entry: &Arc<Entry>) -> Arc<Entry> {
    Arc::clone(made.get(entry.named.name.as_str()).unwrap_or(entry))
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Notify, mpsc};

    use super::super::log::LogHook;
    use super::*;
    use spid_hook::callback::Action;
    use spid_hook::testing;
    use spid_hook::{CreateCall, ExpireCall, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};

    /// A hook that does what the test says.
    fn puppet<F>(act: impl Fn() -> F + Send + Sync + 'static) -> NamedHook
    where
        F: Future<Output = Result<Answer, HookError>> + Send + 'static,
    {
        NamedHook::new("puppet", AnyHook::from_fn(move |_call| act()))
    }

    fn create() -> Call {
        testing::call(Action::Create)
    }

    fn only(hook: NamedHook) -> Runner {
        Runner::new(vec![hook], Vec::new()).unwrap()
    }

    #[test]
    fn permits_grow_at_once_and_shrink_as_they_come_free() {
        let permits = Permits::new(2);
        let taken = [permits.try_take(), permits.try_take()];
        assert!(taken.iter().all(Option::is_some) && permits.try_take().is_none());
        permits.fewer(1);
        let [first, second] = taken;
        drop(first);
        assert!(permits.try_take().is_none(), "the second still runs");
        drop(second);
        assert!(permits.try_take().is_some());
        permits.more(2);
        let taken = [permits.try_take(), permits.try_take(), permits.try_take()];
        assert!(taken.iter().all(Option::is_some) && permits.try_take().is_none());
        permits.fewer(2);
        permits.more(1);
        drop(taken);
        let taken = [permits.try_take(), permits.try_take()];
        assert!(taken.iter().all(Option::is_some) && permits.try_take().is_none());
        drop(taken);
        permits.fewer(1);
        let _one = permits.try_take().unwrap();
        assert!(permits.try_take().is_none(), "a free permit goes at once");
    }

    #[tokio::test]
    async fn a_successor_s_hooks_keep_the_permits_of_their_names() {
        let named = |name: &str, concurrency: usize| NamedHook::new(name, LogHook).concurrency(concurrency);
        let call = create();
        let before = Runner::new(vec![named("a", 1)], Vec::new()).unwrap();
        let slot = before.try_reserve(&call.subject()).unwrap();
        let other = Runner::new(vec![named("b", 1), named("a", 1)], Vec::new()).unwrap().succeeding(&before);
        assert_eq!(other.route(&call.subject()).hook, "b");
        assert!(other.try_reserve(&call.subject()).is_some());
        let same = Runner::new(vec![named("a", 1)], Vec::new()).unwrap().succeeding(&before);
        assert!(same.try_reserve(&call.subject()).is_none());
        drop(slot);
        assert!(same.try_reserve(&call.subject()).is_some());
    }

    #[tokio::test]
    async fn an_answer_that_comes_with_the_stop_counts() {
        let done = tokio::spawn(async { Ok(Answer::default()) });
        while !done.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(AbortOnDrop(done).stop("puppet").await, Some(Ok(Answer::default())));
        let never = tokio::spawn(std::future::pending());
        assert_eq!(AbortOnDrop(never).stop("puppet").await, None);
    }

    struct Signal(Arc<Notify>);
    impl Drop for Signal {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn each_error_has_its_end() {
        let ends = [
            (HookError::refuse("no"), AttemptResult::Refused { reason: "no".into() }),
            (
                HookError::misconfigured("gone"),
                AttemptResult::Misconfigured { error: "gone".into(), after: None },
            ),
            (HookError::pending("wait"), AttemptResult::Pending { note: "wait".into() }),
            (
                HookError::unsupported("x"),
                AttemptResult::Unsupported { reason: "the hook does not support x".into() },
            ),
            (
                HookError::retry_after("busy", Duration::MAX),
                AttemptResult::Retry {
                    error: "busy".into(),
                    after: Some(Duration::from_secs(limits::RETRY_AFTER_MAX_S)),
                },
            ),
        ];
        for (error, end) in ends {
            let runner = only(puppet(move || std::future::ready(Err(error.clone()))));
            assert_eq!(runner.run(create()).await, end);
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_retry_and_its_text_stays_out() {
        let runner = only(puppet(|| async { panic!("fake-canary-password") }));
        let AttemptResult::Retry { error, after: None } = runner.run(create()).await else {
            panic!("not a retry")
        };
        assert_eq!(error, "the hook `puppet` panicked");
        let again =
            only(puppet(|| -> std::future::Ready<Result<Answer, HookError>> { panic!("before the future") }));
        assert!(matches!(again.run(create()).await, AttemptResult::Retry { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_that_hangs_is_dropped_at_its_deadline() {
        let gone = Arc::new(Notify::new());
        let signal = Arc::clone(&gone);
        let hanging = puppet(move || {
            let signal = Signal(Arc::clone(&signal));
            async move {
                let _signal = signal;
                std::future::pending().await
            }
        });
        let runner = only(hanging.timeout(Duration::from_secs(5)));
        let end = runner.run(create()).await;
        assert_eq!(
            end,
            AttemptResult::Retry { error: "the hook `puppet` took longer than 5s".into(), after: None }
        );
        gone.notified().await;
    }

    #[tokio::test]
    async fn dropping_the_run_stops_the_hook() {
        let (began_tx, mut began) = mpsc::unbounded_channel();
        let gone = Arc::new(Notify::new());
        let signal = Arc::clone(&gone);
        let runner = only(puppet(move || {
            let signal = Signal(Arc::clone(&signal));
            let began = began_tx.clone();
            async move {
                let _signal = signal;
                began.send(()).unwrap();
                std::future::pending().await
            }
        }));
        tokio::select! {
            _ = runner.run(create()) => panic!("it never ends by itself"),
            _ = began.recv() => {}
        }
        gone.notified().await;
        assert!(runner.try_reserve(&create().subject()).is_some());
    }

    #[tokio::test]
    async fn no_more_run_at_once_than_allowed() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (Arc::clone(&now), Arc::clone(&most));
        let counting = puppet(move || {
            let (now, most) = counters.clone();
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Answer::default())
            }
        });
        let runner = only(counting.concurrency(2));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let runner = runner.clone();
            tasks.spawn(async move { runner.run(create()).await });
        }
        while let Some(end) = tasks.join_next().await {
            assert_eq!(end.unwrap(), AttemptResult::Done(Answer::default()));
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_slot_spends_no_time_of_the_hook() {
        let slow = puppet(|| async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Ok(Answer::default())
        });
        let runner = only(slow.concurrency(1).timeout(Duration::from_secs(5)));
        let (one, two) = tokio::join!(runner.run(create()), runner.run(create()));
        assert_eq!(
            (one, two),
            (AttemptResult::Done(Answer::default()), AttemptResult::Done(Answer::default()))
        );
    }

    #[test]
    fn the_first_route_that_matches_wins() {
        let hooks = ["default", "special", "test"].map(|name| NamedHook::new(name, LogHook)).to_vec();
        let route = |hook: &str| Route { hook: hook.into(), ..Route::default() };
        let routes = vec![
            Route { buyer: Some("10001".into()), ..route("test") },
            Route { product: Some("p".into()), sku: Some("s".into()), ..route("special") },
            Route { endpoint: Some("e".into()), ..route("test") },
        ];
        let runner = Runner::new(hooks, routes).unwrap();
        let name = |endpoint, product, sku, buyer| {
            let routed = runner.route(&Subject { endpoint, product, sku, buyer });
            (routed.hook.to_owned(), routed.route.map(|(index, _)| index))
        };
        assert_eq!(name("x", Some("p"), Some("s"), Some("10001")), ("test".into(), Some(0)));
        assert_eq!(name("e", Some("p"), Some("s"), Some("2")), ("special".into(), Some(1)));
        assert_eq!(name("x", Some("p"), None, None), ("default".into(), None));
        assert_eq!(name("e", Some("p"), None, None), ("test".into(), Some(2)));
        let conditions: Vec<_> = runner.routes().nth(1).unwrap().conditions().collect();
        assert_eq!(conditions, [("product", "p"), ("sku", "s")]);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let hooks = vec![NamedHook::new("a", LogHook), NamedHook::new("a", LogHook).concurrency(0)];
        let routes = vec![Route { hook: "b".into(), ..Route::default() }];
        let mistakes = Runner::new(hooks, routes).unwrap_err();
        assert_eq!(
            mistakes,
            [
                BadRouting::DuplicateName("a".into()),
                BadRouting::NoConcurrency("a".into()),
                BadRouting::UnknownHook("b".into())
            ]
        );
        assert_eq!(Runner::new(Vec::new(), Vec::new()).unwrap_err(), [BadRouting::NoHook]);
    }

    struct Minimal;

    impl ProvisioningHook for Minimal {
        async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> {
            Ok(Provisioned::new().id("i-9").admin("https://a.example", "root", "fake-canary-password"))
        }
        async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
            Ok(Updated::new())
        }
        async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
            Ok(())
        }
        async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_an_author_left_out_is_unsupported() {
        let runner = only(NamedHook::new("mine", Minimal));
        let call = |action| testing::call(action);
        for action in [Action::Upgrade, Action::RefundRenew, Action::SignOn, Action::Payment, Action::Other] {
            let end = runner.run(call(action)).await;
            assert!(matches!(end, AttemptResult::Unsupported { .. }), "{action}: {end:?}");
        }
        for action in [Action::Renew, Action::Expire, Action::Release] {
            assert_eq!(runner.run(call(action)).await, AttemptResult::Done(Answer::default()), "{action}");
        }
        let end = runner.run(call(Action::Create)).await;
        assert!(!format!("{end:?}").contains("fake-canary-password"));
        let AttemptResult::Done(answer) = end else { panic!("not done") };
        assert_eq!(answer.instance_id.as_deref(), Some("i-9"));
    }
}
