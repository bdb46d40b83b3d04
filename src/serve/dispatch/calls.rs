//! Permits for calls of hooks that run at once, over all hooks. Each configured hook has one of its own; the rest is
//! shared. So a hook that hangs can use up what is shared, and still each other hook runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hooks::runner::{Place, Places, Runner};

/// The permits. Clones share them; they outlive a reload.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    /// Calls that may run at once.
    limit: usize,
    shared: Places,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The permit of each hook's own, by the hook's name.
    own: BTreeMap<String, Places>,
    /// How many permits are shared.
    shared: usize,
}

impl Calls {
    /// Permits for `limit` calls at once, or for one call of each hook if that is more.
    pub(super) fn new(limit: usize, runner: &Runner) -> Calls {
        let state = State { own: BTreeMap::new(), shared: limit };
        let calls = Calls { limit, shared: Places::new(limit), state: Arc::new(Mutex::new(state)) };
        calls.configure(runner);
        let hooks = calls.state().own.len();
        if hooks > limit {
            tracing::warn!(
                hooks,
                limit,
                "more hooks are configured than calls may run at once: each hook runs one call at a time, above the limit"
            );
        }
        calls
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each hook of `runner` a permit of its own. A hook that is gone keeps its permit while its last call runs.
    pub(super) fn configure(&self, runner: &Runner) {
        let names: BTreeSet<&str> = runner.hooks().map(|hook| hook.name.as_str()).collect();
        let mut state = self.state();
        state.own.retain(|name, own| names.contains(name.as_str()) || !withdraw(own));
        for name in names {
            state.own.entry(name.to_owned()).or_insert_with(|| Places::new(1));
        }
        self.share_the_rest(&mut state);
    }

    fn share_the_rest(&self, state: &mut State) {
        let wanted = self.limit.saturating_sub(state.own.len());
        self.shared.more(wanted.saturating_sub(state.shared));
        self.shared.fewer(state.shared.saturating_sub(wanted));
        state.shared = wanted;
    }

    /// The own permit of a hook. A reload may have brought the hook a moment ago.
    fn own(&self, hook: &str) -> Places {
        let mut state = self.state();
        if let Some(own) = state.own.get(hook) {
            return own.clone();
        }
        let own = Places::new(1);
        state.own.insert(hook.to_owned(), own.clone());
        self.share_the_rest(&mut state);
        own
    }

    /// A permit for a call of this hook, if one is free.
    pub(super) fn try_take(&self, hook: &str) -> Option<Place> {
        self.own(hook).try_take().or_else(|| self.shared.try_take())
    }

    /// Waits for a permit for a call of this hook.
    pub(super) async fn take(&self, hook: &str) -> Place {
        let own = self.own(hook);
        tokio::select! {
            biased;
            permit = own.take() => permit,
            permit = self.shared.take() => permit,
        }
    }
}

/// Takes a hook's own permit away for good. `false`: a call holds it.
fn withdraw(own: &Places) -> bool {
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

    fn all(calls: &Calls, hook: &str) -> Vec<Place> {
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
        // All are in use: the new hook runs all the same, and one more comes back to nobody.
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
