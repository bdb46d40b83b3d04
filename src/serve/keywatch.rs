//! Reports previous keys that can be removed.
//!
//! A rotation that is never finished keeps a key valid that an attacker may have copied long ago. A rotation
//! that is finished too early denies paid orders. So spid watches the keys of each endpoint. It logs a previous
//! key that has signed nothing for a long time, while the current key has signed since.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use crate::store::{ConfiguredKey, KeyUse, Store};
use spid_core::signature::Keys;
use spid_hook::time::Clock;

/// The keys of every endpoint, and the time after which a previous key can be removed.
#[derive(Debug, Clone)]
pub struct Watched {
    keys: Vec<ConfiguredKey>,
    unused_after: Duration,
}

/// A previous key that can be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Idle {
    endpoint: String,
    label: String,
    days: i64,
}

impl Watched {
    /// Creates the list of watched keys. The first key of each endpoint is the current one.
    pub fn new<'e>(
        endpoints: impl IntoIterator<Item = (&'e Arc<str>, &'e Keys)>,
        unused_after: Duration,
    ) -> Watched {
        let of_endpoint = |(endpoint, keys): (&'e Arc<str>, &'e Keys)| {
            keys.iter().map(move |key| ConfiguredKey {
                endpoint: endpoint.clone(),
                label: key.label().clone(),
                mark: key.mark(endpoint),
            })
        };
        Watched { keys: endpoints.into_iter().flat_map(of_endpoint).collect(), unused_after }
    }

    /// Returns the keys that can be removed.
    fn idle(&self, uses: &[KeyUse], now: Timestamp) -> Vec<Idle> {
        let used = |key: &ConfiguredKey| {
            uses.iter().find(|used| used.endpoint == *key.endpoint && used.label == *key.label)
        };
        let current = |key: &ConfiguredKey| self.keys.iter().find(|other| other.endpoint == key.endpoint);
        let idle = |key: &ConfiguredKey| {
            let own = used(key)?;
            // A key that never signed counts from the time when it was first seen.
            let last = own.used_at.unwrap_or(own.since);
            // Without a signature of the current key, the marketplace may still use the previous one.
            let current = current(key).filter(|current| *current != key).and_then(used)?.used_at?;
            let silent = now.duration_since(last);
            // `is_positive`: after the clock was set back, the last use is in the future and says nothing.
            (current > last && silent.unsigned_abs() >= self.unused_after && silent.is_positive()).then(
                || Idle {
                    endpoint: own.endpoint.clone(),
                    label: own.label.clone(),
                    days: silent.as_hours() / 24,
                },
            )
        };
        self.keys.iter().filter_map(idle).collect()
    }
}

/// Task that watches the keys.
pub struct KeyWatch {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    watched: watch::Receiver<Watched>,
}

impl KeyWatch {
    /// Creates the watch. It receives the keys through `watched`, beginning with the present ones.
    pub fn new(store: Store, clock: Clock, metrics: Metrics, watched: watch::Receiver<Watched>) -> KeyWatch {
        KeyWatch { store, clock, metrics, watched }
    }

    /// Checks the keys once a day, and after each change of the keys. Ends when the sender of the keys is gone.
    pub async fn run(mut self) {
        let pause = Duration::from_millis(limits::KEYS_CHECK_MS);
        // The wait ends after a day, or earlier when the keys change. It fails when the sender is gone.
        while !matches!(timeout(pause, self.watched.changed()).await, Ok(Err(_))) {
            self.look().await;
        }
    }

    /// Checks the keys now. After an error of the store the next check does the work.
    pub async fn look(&mut self) {
        let watched = self.watched.borrow_and_update().clone();
        // Tell the store which keys exist, so that it begins to record their use.
        let configured = self.store.configure_keys(watched.keys.clone()).await;
        match configured.and_then(|()| self.store.reader().key_uses()) {
            Ok(uses) => self.say(&watched.idle(&uses, self.clock.now())),
            Err(error) => {
                tracing::warn!(%error, "cannot read from the store when the keys were last used; the next check is in a day");
            }
        }
    }

    fn say(&self, idle: &[Idle]) {
        for Idle { endpoint, label, days } in idle {
            self.metrics.count(Metric::Alerts, ["key-unused", ""]);
            tracing::warn!(
                endpoint,
                key = label,
                days,
                "a previous key has signed nothing for a long time, and the current key is in use: remove the previous key from the configuration"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;
    use spid_core::signature::Key;
    use spid_hook::Secret;
    use spid_hook::time::from_millis;

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    fn keys(labels: &[(&str, &str)]) -> Keys {
        let key = |(label, text): &(&str, &str)| Key::new(*label, Secret::new(*text)).unwrap();
        Keys::new(labels.iter().map(key).collect()).unwrap()
    }

    fn watched(keys: &Keys) -> Watched {
        Watched::new([(&Arc::from("cn"), keys)], Duration::from_millis(limits::KEY_UNUSED_AFTER_MS))
    }

    fn uses(watched: &Watched, used_at: [Option<i64>; 2]) -> Vec<KeyUse> {
        let one = |(key, used): (&ConfiguredKey, Option<i64>)| KeyUse {
            endpoint: key.endpoint.to_string(),
            label: key.label.to_string(),
            mark: key.mark,
            since: from_millis(0),
            used_at: used.map(|day| from_millis(day * DAY_MS)),
        };
        watched.keys.iter().zip(used_at).map(one).collect()
    }

    #[test]
    fn a_previous_key_can_go_once_it_is_silent_and_the_current_one_is_not() {
        let watched = watched(&keys(&[("current", "fake-new"), ("previous", "fake-old")]));
        let days = |used: [Option<i64>; 2], day: i64| {
            let idle = watched.idle(&uses(&watched, used), from_millis(day * DAY_MS));
            idle.into_iter().map(|idle| (idle.label, idle.days)).collect::<Vec<_>>()
        };
        let said = |days: i64| vec![("previous".to_owned(), days)];
        assert_eq!(days([Some(5), Some(2)], 32), said(30));
        assert_eq!(days([Some(40), None], 45), said(45), "never used since it is watched");
        assert_eq!(days([Some(5), Some(2)], 31), [], "not for long enough");
        assert_eq!(days([None, Some(2)], 90), [], "the marketplace may not have changed yet");
        assert_eq!(days([Some(2), Some(5)], 90), [], "the old one was used after the new one");
        assert_eq!(days([Some(90), Some(89)], 5), [], "a clock that was set back says nothing");
        assert_eq!(days([None, None], 90), []);
    }

    #[tokio::test]
    async fn a_label_that_stands_for_another_key_begins_anew() {
        let clock = Clock::System;
        let (store, _closed) = Store::temporary(StoreOptions::default(), clock.clone()).await.unwrap();
        let (endpoint, label): (Arc<str>, Arc<str>) = ("cn".into(), "previous".into());
        let configure = async |texts: &[(&str, &str)]| {
            store.configure_keys(watched(&keys(texts)).keys).await.unwrap();
            store.note_key_use(&endpoint, &label);
            let uses = store.reader().key_uses().unwrap();
            store.flush_counts().await.unwrap();
            uses.into_iter().map(|used| (used.label, used.used_at.is_some())).collect::<Vec<_>>()
        };
        let [current, previous] = ["current", "previous"].map(str::to_owned);
        let both = [("current", "fake-b"), ("previous", "fake-a")];
        assert_eq!(configure(&both).await, [(current.clone(), false), (previous.clone(), false)]);
        assert_eq!(configure(&both).await, [(current.clone(), false), (previous.clone(), true)]);
        let next = [("current", "fake-c"), ("previous", "fake-b")];
        assert_eq!(configure(&next).await, [(current.clone(), false), (previous, false)]);
        assert_eq!(configure(&next[..1]).await, [(current, false)]);
    }
}
