//! Call permits: the limit on concurrent hook calls, over all hooks. Each configured hook has one permit of its own,
//! and the rest is shared. So a hook that hangs can use up the shared permits, and every other hook still runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hooks::runner::{Permit, Permits, Runner};

/// The call permits. Clones share them, and they outlive a reload.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    /// Maximum number of concurrent calls.
    limit: usize,
    shared: Permits,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Permit that belongs to one hook, by the hook's name.
    own: BTreeMap<String, Permits>,
    /// Number of shared permits.
    shared: usize,
}

impl Calls {
    /// Creates permits for `limit` concurrent calls, or for one call of each hook if that is more.
    pub(super) fn new(limit: usize, runner: &Runner) -> Calls {
        let state = State { own: BTreeMap::new(), shared: limit };
        let calls = Calls { limit, shared: Permits::new(limit), state: Arc::new(Mutex::new(state)) };
        calls.configure(runner);
        let hooks = calls.state().own.len();
        if hooks > limit {
            tracing::warn!(
                hooks,
                limit,
                "more hooks than concurrent calls are configured: each hook may run one call, which exceeds the limit"
            );
        }
        calls
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each hook of `runner` a permit of its own. A removed hook keeps its permit while its last call runs.
    pub(super) fn configure(&self, runner: &Runner) {
        let names: BTreeSet<&str> = runner.hooks().map(|hook| hook.name.as_str()).collect();
        let mut state = self.state();
        state.own.retain(|name, own| names.contains(name.as_str()) || !withdraw(own));
        for name in names {
            state.own.entry(name.to_owned()).or_insert_with(|| Permits::new(1));
        }
        self.share_the_rest(&mut state);
    }

    fn share_the_rest(&self, state: &mut State) {
        // Shared permits shrink as hooks are added, so that the total stays at the limit.
        let wanted = self.limit.saturating_sub(state.own.len());
        self.shared.more(wanted.saturating_sub(state.shared));
        self.shared.fewer(state.shared.saturating_sub(wanted));
        state.shared = wanted;
    }

    /// Returns the own permit of a hook. Creates it if a reload has just added the hook and `configure` has not run
    /// yet.
    fn own(&self, hook: &str) -> Permits {
        let mut state = self.state();
        if let Some(own) = state.own.get(hook) {
            return own.clone();
        }
        let own = Permits::new(1);
        state.own.insert(hook.to_owned(), own.clone());
        self.share_the_rest(&mut state);
        own
    }

    /// Returns a permit for a call of this hook, if one is free.
    pub(super) fn try_take(&self, hook: &str) -> Option<Permit> {
        self.own(hook).try_take().or_else(|| self.shared.try_take())
    }

    /// Waits for a permit for a call of this hook.
    pub(super) async fn take(&self, hook: &str) -> Permit {
        let own = self.own(hook);
        tokio::select! {
            // The own permit is tried first, because the shared ones may help any hook.
            biased;
            permit = own.take() => permit,
            permit = self.shared.take() => permit,
        }
    }
}

/// Removes a hook's own permit for good. Returns `false` if a call holds it.
fn withdraw(own: &Permits) -> bool {
    // The permit is taken first, so that `fewer` cannot remove it from a running call.
    let Some(permit) = own.try_take() else { return false };
    own.fewer(1);
    drop(permit);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::log::LogHook;
    use crate::hooks::runner::NamedHook;

    fn runner(names: &[&str]) -> Runner {
        Runner::new(names.iter().map(|name| NamedHook::new(*name, LogHook)).collect(), Vec::new()).unwrap()
    }

    fn all(calls: &Calls, hook: &str) -> Vec<Permit> {
        std::iter::from_fn(|| calls.try_take(hook)).collect()
    }

    #[tokio::test]
    async fn every_hook_can_run_one_call_and_all_of_them_no_more_than_the_limit() {
        let calls = Calls::new(5, &runner(&["a", "b", "c"]));
        let of_a = all(&calls, "a");
        let (of_b, of_c) = (all(&calls, "b"), all(&calls, "c"));
        assert_eq!((of_a.len(), of_b.len(), of_c.len()), (3, 1, 1));
        drop(of_a);
        assert_eq!(all(&calls, "c").len(), 2, "what is shared goes to any of them");
        drop((of_b, of_c));
        assert_eq!(all(&calls, "b").len(), 3);
    }

    #[tokio::test]
    async fn more_hooks_than_the_limit_run_one_call_each() {
        let calls = Calls::new(1, &runner(&["a", "b"]));
        let (of_a, of_b) = (all(&calls, "a"), all(&calls, "b"));
        assert_eq!((of_a.len(), of_b.len()), (1, 1));
    }

    #[tokio::test]
    async fn a_reload_moves_permits_between_what_is_shared_and_the_hooks() {
        let calls = Calls::new(4, &runner(&["a", "b"]));
        let of_a = all(&calls, "a");
        assert_eq!(of_a.len(), 3);
        // All permits are in use: the new hook still runs, and one returned permit is removed.
        calls.configure(&runner(&["a", "b", "c"]));
        let of_c = all(&calls, "c");
        assert_eq!(of_c.len(), 1);
        drop(of_a);
        let of_a = all(&calls, "a");
        assert_eq!(of_a.len(), 2);
        drop((of_a, of_c));
        calls.configure(&runner(&["a"]));
        assert_eq!(all(&calls, "a").len(), 4);
    }

    #[tokio::test]
    async fn a_hook_that_is_gone_keeps_its_permit_while_it_runs() {
        let calls = Calls::new(3, &runner(&["a", "b"]));
        let of_b = calls.try_take("b").unwrap();
        calls.configure(&runner(&["a"]));
        assert_eq!(all(&calls, "a").len(), 2);
        drop(of_b);
        calls.configure(&runner(&["a"]));
        assert_eq!(all(&calls, "a").len(), 3);
    }
}
