//! When each key of an endpoint signed last, so that somebody can say of an old one that it can go.
//!
//! It must survive restarts, and redeliveries count as much as first ones: a marketplace that signs with
//! the old key in any request would be turned away without it. So it is a table of its own and not read
//! off the callbacks. A use is remembered at once and written, in a commit that is made anyway or with the
//! counts of repeats, at most once an hour.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::rows::{KeyUse, Result, Write};
use crate::core::signature::KEY_MARK_BYTES;
use crate::observe::limits;

/// A key that is configured now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredKey {
    /// The endpoint.
    pub endpoint: Arc<str>,
    /// The label of the key.
    pub label: Arc<str>,
    /// Its [mark](crate::signature::Key::mark).
    pub mark: [u8; KEY_MARK_BYTES],
}

/// Endpoint and label.
type Name = (Arc<str>, Arc<str>);

/// A use of a key: the endpoint, its label, and when.
pub(super) type Used = (Arc<str>, Arc<str>, Timestamp);

/// What was used lately, and until when that is written.
#[derive(Debug, Default)]
pub(super) struct KeysUsed(Mutex<BTreeMap<Name, (Timestamp, Option<Timestamp>)>>);

impl KeysUsed {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, (Timestamp, Option<Timestamp>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, endpoint: &Arc<str>, label: &Arc<str>, now: Timestamp) {
        let mut used = self.lock();
        let entry = used.entry((endpoint.clone(), label.clone())).or_insert((now, None));
        entry.0 = entry.0.max(now);
    }

    /// What is to be written.
    pub(super) fn due(&self) -> Vec<Used> {
        let is_due = |at: Timestamp, written: Option<Timestamp>| {
            written.is_none_or(|written| {
                at.duration_since(written).as_millis() >= limits::KEY_USE_STEP_MS.into()
            })
        };
        let used = self.lock();
        let due = used.iter().filter(|(_, (at, written))| is_due(*at, *written));
        due.map(|((endpoint, label), (at, _))| (endpoint.clone(), label.clone(), *at)).collect()
    }

    pub(super) fn written(&self, uses: Vec<Used>) {
        let mut used = self.lock();
        for (endpoint, label, at) in uses {
            if let Some(entry) = used.get_mut(&(endpoint, label)) {
                entry.1 = Some(at);
            }
        }
    }

    /// Labels may stand for other keys from now on: what comes is written at once.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }
}

/// Makes these the keys that are watched. A label that has come, or stands for another key than before,
/// begins anew.
pub(super) fn configure(rows: &mut dyn Write, keys: &[ConfiguredKey], now: Timestamp) -> Result<()> {
    let known = rows.key_uses()?;
    let is = |row: &KeyUse, key: &ConfiguredKey| {
        row.endpoint == *key.endpoint && row.label == *key.label && row.mark == key.mark
    };
    for row in known.iter().filter(|row| !keys.iter().any(|key| is(row, key))) {
        rows.drop_key_use(&row.endpoint, &row.label)?;
    }
    for key in keys.iter().filter(|key| !known.iter().any(|row| is(row, key))) {
        let (endpoint, label) = (key.endpoint.to_string(), key.label.to_string());
        rows.put_key_use(&KeyUse { endpoint, label, mark: key.mark, since: now, used_at: None })?;
    }
    Ok(())
}

/// Keeps that keys were used. One that is no longer configured is passed over.
pub(super) fn used(rows: &mut dyn Write, uses: &[Used]) -> Result<()> {
    if uses.is_empty() {
        return Ok(());
    }
    for mut row in rows.key_uses()? {
        let of_row = |used: &&Used| *used.0 == row.endpoint && *used.1 == row.label;
        if let Some((_, _, at)) = uses.iter().find(of_row) {
            row.used_at = row.used_at.max(Some(*at));
            rows.put_key_use(&row)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::clock::from_millis;

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
