//! Entitlement: may this customer use the service now?
//!
//! The seller's application asks this often, and it must get an answer while the marketplace is away. So the answer
//! comes from committed state and the time alone.

use jiff::Timestamp;
use spid_hook::callback::Action;
use spid_hook::instance::{Instance, State};
use spid_hook::time::plus_millis;

spid_hook::words! {
    /// Reason of an entitlement.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum EntitlementReason {
        /// In use.
        Active = "active",
        /// In use, and a trial.
        Trial = "trial",
        /// The term is over, and the marketplace has not said yet if it was renewed.
        Overrun = "overrun",
        /// Bought, and not provisioned yet.
        Provisioning = "provisioning",
        /// The term is over, and the time for a late renewal, too.
        TermOver = "term-over",
        /// Frozen: expired or in arrears.
        Frozen = "frozen",
        /// Released.
        Released = "released",
    }
}

impl EntitlementReason {
    /// Returns true if the customer may use the service.
    pub const fn is_entitled(self) -> bool {
        matches!(self, EntitlementReason::Active | EntitlementReason::Trial | EntitlementReason::Overrun)
    }
}

/// Answer to the question of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entitlement {
    /// The reason, which decides.
    pub reason: EntitlementReason,
    /// End of the time for a late renewal, once the term is over.
    pub grace_until: Option<Timestamp>,
    /// Time at which the answer changes without a callback. `None`: it does not.
    pub changes_at: Option<Timestamp>,
}

/// Decides about an instance in its committed state.
///
/// `overrun_ms` is the time after the end of a term in which a missing notice does not lock the customer out: the
/// marketplace sends renewals and expiries late. A conversion or renewal that is still owed changes nothing here,
/// because only what was carried out counts.
///
/// ```
/// use spid_core::lifecycle::entitlement::{EntitlementReason, entitlement};
/// use spid_hook::callback::{Action, Callback};
/// use spid_hook::instance::{Instance, State};
/// let now = "2026-01-01T00:00:00Z".parse()?;
/// let mut instance = Instance::pending(&Callback::new(Action::Create, "createInstance"), "acme", "spi", now);
/// assert_eq!(entitlement(&instance, now, 0).reason, EntitlementReason::Provisioning);
/// instance.state = State::Active;
/// assert!(entitlement(&instance, now, 0).reason.is_entitled());
/// # Ok::<(), jiff::Error>(())
/// ```
pub fn entitlement(instance: &Instance, now: Timestamp, overrun_ms: i64) -> Entitlement {
    let fixed = |reason| Entitlement { reason, grace_until: None, changes_at: None };
    match instance.state {
        State::Pending => fixed(EntitlementReason::Provisioning),
        State::Frozen => fixed(EntitlementReason::Frozen),
        State::Released => fixed(EntitlementReason::Released),
        State::Active => active(instance, now, overrun_ms),
    }
}

fn active(instance: &Instance, now: Timestamp, overrun_ms: i64) -> Entitlement {
    let is_trial = instance.trial == Some(true) && !instance.converted;
    let reason = if is_trial { EntitlementReason::Trial } else { EntitlementReason::Active };
    let Some(ends_at) = instance.expires_on else {
        return Entitlement { reason, grace_until: None, changes_at: None };
    };
    if now < ends_at {
        return Entitlement { reason, grace_until: None, changes_at: Some(ends_at) };
    }
    let grace_until = plus_millis(ends_at, overrun_ms);
    let (reason, changes_at) = match now < grace_until {
        true => (EntitlementReason::Overrun, Some(grace_until)),
        false => (EntitlementReason::TermOver, None),
    };
    Entitlement { reason, grace_until: Some(grace_until), changes_at }
}

/// Returns the actions that are owed to an instance and not carried out, each once, in the order of their first.
///
/// A paid renewal among them, of a frozen instance, is a customer who has paid and is locked out.
pub fn owed(actions: impl IntoIterator<Item = Action>) -> Vec<Action> {
    let mut owed = Vec::new();
    for action in actions {
        if !owed.contains(&action) {
            owed.push(action);
        }
    }
    owed
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::callback::Callback;

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn instance(state: State, ends: Option<&str>) -> Instance {
        let mut instance = Instance::pending(
            &Callback::new(Action::Create, "createInstance"),
            "acme",
            "spi",
            at("2026-01-01T00:00:00Z"),
        );
        instance.state = state;
        instance.expires_on = ends.map(at);
        instance
    }

    /// State, end of the term, overrun in days, now; then entitled, reason, grace until, next change.
    type Row = (
        State,
        Option<&'static str>,
        i64,
        &'static str,
        bool,
        EntitlementReason,
        Option<&'static str>,
        Option<&'static str>,
    );

    #[test]
    fn the_table_of_entitlements_holds() {
        use EntitlementReason as R;
        let table: [Row; 11] = [
            (
                State::Pending,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2026-06-01T00:00:00Z",
                false,
                R::Provisioning,
                None,
                None,
            ),
            (State::Active, None, 1, "2026-06-01T00:00:00Z", true, R::Active, None, None),
            (
                State::Active,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2026-12-31T23:59:59Z",
                true,
                R::Active,
                None,
                Some("2027-01-01T00:00:00Z"),
            ),
            (
                State::Active,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2027-01-01T00:00:00Z",
                true,
                R::Overrun,
                Some("2027-01-02T00:00:00Z"),
                Some("2027-01-02T00:00:00Z"),
            ),
            (
                State::Active,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2027-01-01T23:59:59Z",
                true,
                R::Overrun,
                Some("2027-01-02T00:00:00Z"),
                Some("2027-01-02T00:00:00Z"),
            ),
            (
                State::Active,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2027-01-02T00:00:00Z",
                false,
                R::TermOver,
                Some("2027-01-02T00:00:00Z"),
                None,
            ),
            (
                State::Active,
                Some("2027-01-01T00:00:00Z"),
                0,
                "2027-01-01T00:00:00Z",
                false,
                R::TermOver,
                Some("2027-01-01T00:00:00Z"),
                None,
            ),
            (
                State::Frozen,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2026-06-01T00:00:00Z",
                false,
                R::Frozen,
                None,
                None,
            ),
            (State::Frozen, None, 1, "2026-06-01T00:00:00Z", false, R::Frozen, None, None),
            (
                State::Released,
                Some("2027-01-01T00:00:00Z"),
                1,
                "2026-06-01T00:00:00Z",
                false,
                R::Released,
                None,
                None,
            ),
            (State::Released, None, 1, "2028-06-01T00:00:00Z", false, R::Released, None, None),
        ];
        for (state, ends, days, now, entitled, reason, grace, changes) in table {
            let found = entitlement(&instance(state, ends), at(now), days * DAY_MS);
            assert_eq!(found.reason.is_entitled(), entitled, "{state} {ends:?} {now}");
            let expected = Entitlement { reason, grace_until: grace.map(at), changes_at: changes.map(at) };
            assert_eq!(found, expected, "{state} {ends:?} {now}");
        }
    }

    #[test]
    fn a_trial_is_a_trial_until_it_is_bought() {
        let mut trial = instance(State::Active, Some("2027-01-01T00:00:00Z"));
        trial.trial = Some(true);
        let now = at("2026-06-01T00:00:00Z");
        assert_eq!(entitlement(&trial, now, 0).reason, EntitlementReason::Trial);
        trial.converted = true;
        assert_eq!(entitlement(&trial, now, 0).reason, EntitlementReason::Active);
        trial.trial = None;
        assert_eq!(entitlement(&trial, now, 0).reason, EntitlementReason::Active);
    }

    #[test]
    fn the_end_of_time_is_no_end() {
        let mut forever = instance(State::Active, None);
        forever.expires_on = Some(spid_hook::time::last_instant());
        let found = entitlement(&forever, at("2026-06-01T00:00:00Z"), i64::MAX / 2);
        assert_eq!(found.reason, EntitlementReason::Active);
        let late = entitlement(&forever, spid_hook::time::last_instant(), i64::MAX / 2);
        assert!(matches!(late.reason, EntitlementReason::Overrun | EntitlementReason::TermOver));
    }

    #[test]
    fn each_owed_action_is_named_once() {
        let actions = [Action::Renew, Action::Upgrade, Action::Renew];
        assert_eq!(owed(actions), [Action::Renew, Action::Upgrade]);
    }
}
