//! Last use of each signature key of an endpoint, so that an operator knows when an old key can be removed.
//!
//! The last use must survive restarts, and a redelivery counts as much as a first delivery. Without the old key a
//! marketplace that still uses it in any request would be denied. So this is a table of its own, and is not derived
//! from the callbacks.
//!
//! A use is noted in memory at once. It is written at most once an hour, in a commit that is made anyway or with the
//! counts of redeliveries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::rows::{KeyUse, Read, Result};
use super::work::Work;
use crate::observe::limits;
use spid_core::signature::KEY_MARK_BYTES;

/// A signature key in the present configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredKey {
    /// Name of the endpoint.
    pub endpoint: Arc<str>,
    /// Label of the key.
    pub label: Arc<str>,
    /// [Mark](spid_core::signature::Key::mark) of the key.
    pub mark: [u8; KEY_MARK_BYTES],
}

impl ConfiguredKey {
    fn is_of(&self, row: &KeyUse) -> bool {
        row.endpoint == *self.endpoint && row.label == *self.label && row.mark == self.mark
    }
}

/// Endpoint and label of a key.
type Name = (Arc<str>, Arc<str>);

/// Use of a key: endpoint, label and time.
pub(super) type Used = (Arc<str>, Arc<str>, Timestamp);

/// Last use of each key, and the last use that was written.
#[derive(Debug, Default)]
pub(super) struct KeysUsed(Mutex<BTreeMap<Name, (Timestamp, Option<Timestamp>)>>);

impl KeysUsed {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, (Timestamp, Option<Timestamp>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, endpoint: &Arc<str>, label: &Arc<str>, now: Timestamp) {
        let mut used = self.lock();
        let entry = used.entry((endpoint.clone(), label.clone())).or_insert((now, None));
        // The clock may be set back: keep the latest use.
        entry.0 = entry.0.max(now);
    }

    /// Returns the uses that are due to be written.
    pub(super) fn due(&self) -> Vec<Used> {
        let mut due = Vec::new();
        for ((endpoint, label), (at, written)) in self.lock().iter() {
            let age_ms = written.map(|written| at.duration_since(written).as_millis());
            if age_ms.is_none_or(|age_ms| age_ms >= limits::KEY_USE_STEP_MS.into()) {
                due.push((endpoint.clone(), label.clone(), *at));
            }
        }
        due
    }

    // Called only after the commit, so that a failed commit loses no use.
    pub(super) fn written(&self, uses: Vec<Used>) {
        let mut used = self.lock();
        for (endpoint, label, at) in uses {
            if let Some(entry) = used.get_mut(&(endpoint, label)) {
                entry.1 = Some(at);
            }
        }
    }

    /// Forgets all uses. After a reload a label may stand for another key, so its next use is written at once.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }
}

/// Sets the keys whose last use is recorded. A new label, or a label with a new key, starts without a use.
pub(super) fn configure(rows: &mut Work<'_>, keys: &[ConfiguredKey], now: Timestamp) -> Result<()> {
    let known = rows.key_uses()?;
    // A label that now stands for another key loses its old row here and gets a new one below.
    for row in known.iter().filter(|row| !keys.iter().any(|key| key.is_of(row))) {
        rows.drop_key_use(&row.endpoint, &row.label);
    }
    for key in keys.iter().filter(|key| !known.iter().any(|row| key.is_of(row))) {
        let (endpoint, label) = (key.endpoint.to_string(), key.label.to_string());
        rows.put_key_use(&KeyUse { endpoint, label, mark: key.mark, since: now, used_at: None });
    }
    Ok(())
}

/// Writes uses of keys. A use of a key that is no longer configured is skipped.
pub(super) fn used(rows: &mut Work<'_>, uses: &[Used]) -> Result<()> {
    if uses.is_empty() {
        return Ok(());
    }
    for mut row in rows.key_uses()? {
        let mut uses = uses.iter();
        if let Some((_, _, at)) = uses.find(|used| *used.0 == row.endpoint && *used.1 == row.label) {
            row.used_at = row.used_at.max(Some(*at));
            rows.put_key_use(&row);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::time::from_millis;

    #[test]
    fn a_use_is_written_at_once_and_then_once_an_hour() {
        let used = KeysUsed::default();
        let (endpoint, label): Name = ("alibaba-cn".into(), "current".into());
        let note = |millis: i64| used.note(&endpoint, &label, from_millis(millis));
        assert!(used.due().is_empty());
        note(1);
        assert_eq!(used.due().len(), 1, "not written yet");
        used.written(used.due());
        note(limits::KEY_USE_STEP_MS);
        assert!(used.due().is_empty());
        note(limits::KEY_USE_STEP_MS + 1);
        assert_eq!(used.due().len(), 1);
        used.written(used.due());
        used.forget();
        note(limits::KEY_USE_STEP_MS + 2);
        assert_eq!(used.due().len(), 1, "the label may be another key's now");
    }
}
