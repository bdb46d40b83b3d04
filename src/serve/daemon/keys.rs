//! Record of the signature keys whose last use the store keeps.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::observe::limits;
use crate::serve::intake::Endpoint;
use crate::store::{ConfiguredKey, Store};

/// Returns the signature keys of these endpoints.
pub(super) fn configured_keys(endpoints: &[(String, Endpoint)]) -> Vec<ConfiguredKey> {
    endpoints.iter().flat_map(|(_, endpoint)| endpoint.configured_keys()).collect()
}

/// Tells the store whose last use it records: these keys, and the keys sent later, until the sender is dropped.
pub(super) async fn record_keys(
    store: &Store,
    keys: Vec<ConfiguredKey>,
) -> watch::Sender<Vec<ConfiguredKey>> {
    // The first keys are recorded before the first callback, so that its signature counts as a use.
    let mut recorded = record(store, keys.clone()).await;
    let (sender, mut receiver) = watch::channel(keys);
    let store = store.clone();
    tokio::spawn(async move {
        loop {
            let pause = if recorded { Duration::MAX } else { Duration::from_millis(limits::KEYS_RETRY_MS) };
            // An error means that the daemon stops.
            if let Ok(Err(_)) = timeout(pause, receiver.changed()).await {
                return;
            }
            let keys = receiver.borrow_and_update().clone();
            recorded = record(&store, keys).await;
        }
    });
    sender
}

/// Returns false if the store could not record the keys.
async fn record(store: &Store, keys: Vec<ConfiguredKey>) -> bool {
    let recorded = store.configure_keys(keys).await;
    if let Err(error) = &recorded {
        tracing::warn!(%error, "the last use of signature keys cannot be recorded; spid tries again in a minute");
    }
    recorded.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::StoreOptions;
    use spid_core::dialect::Options;
    use spid_core::signature::{Key, Keys};
    use spid_hook::Secret;
    use spid_hook::time::Clock;

    #[tokio::test]
    async fn a_label_that_stands_for_another_key_begins_anew() {
        let (store, _closed) = Store::temporary(StoreOptions::default(), Clock::System).await.unwrap();
        let (endpoint, label): (Arc<str>, Arc<str>) = ("cn".into(), "previous".into());
        let configure = async |texts: &[(&str, &str)]| {
            let key = |(label, text): &(&str, &str)| Key::new(*label, Secret::new(*text)).unwrap();
            let keys = Keys::new(texts.iter().map(key).collect()).unwrap();
            let dialect = spid_core::dialect::by_name("alibaba").unwrap();
            let (name, options) = (endpoint.clone(), Options::default());
            let account = name.clone();
            let served = Endpoint { name, account, dialect, keys, options };
            assert!(record(&store, served.configured_keys().collect()).await);
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
