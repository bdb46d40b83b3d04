//! Denied requests, for operators who look for the reason.
//!
//! Denied requests go to three sinks: metrics (all), log (one line per second, endpoint and reason), memory
//! (the last 256). A log line contains the number of lines left out before it, so a flood of forged tokens
//! cannot fill the disk. The requests in memory are stored with the data needed to explain them. They are never
//! written to disk, because they are not verified and may hold personal data.
//!
//! Because of floods, an explanation is computed only when it is requested. And only the first few requests per
//! second are kept. Each further request costs a lock and a lookup in a small table. A thousand requests of one
//! kind do not displace the earlier ones.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use spid_core::dialect::{Denial, explain, shown_base};
use spid_core::signature::{Keys, Mismatch, Parts};
use spid_hook::time::Clock;

/// Handle that counts, logs and keeps denied requests. Clones share the data.
#[derive(Clone)]
pub struct DeniedRequests {
    clock: Clock,
    metrics: Metrics,
    kept: Arc<Mutex<Kept>>,
}

/// Facts about a denied request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The name of the endpoint that received it.
    pub endpoint: &'a Arc<str>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Address of the client, by the header of a trusted proxy.
    pub client: IpAddr,
    /// The method, as it was sent.
    pub method: &'a str,
    /// True if the request carries neither parameters nor a body, like a health check.
    pub is_probe: bool,
    /// Reason of the denial.
    pub refusal: &'a Denial,
}

/// Data from which an invalid signature is explained. This type has no `Debug`, because values may be personal.
pub struct Evidence {
    /// Kind of the mismatch.
    pub mismatch: Mismatch,
    /// The signed parts of the request, as spid read them.
    pub parts: Parts,
    /// The digest that came with the request.
    pub presented: Option<String>,
    /// The keys that were tried.
    pub keys: Keys,
}

/// A denied request, as it is shown. It may hold personal data, so it must not be logged.
#[derive(Clone, Serialize)]
pub struct Shown {
    /// Time of the request.
    pub at: Timestamp,
    /// The endpoint.
    pub endpoint: String,
    /// The other end of the connection, which may be a proxy.
    pub peer: SocketAddr,
    /// Address of the client: the peer's, or the address that a trusted proxy gives.
    pub client: IpAddr,
    /// The method, shortened.
    pub method: String,
    /// The reason under which the metrics count it.
    pub reason: &'static str,
    /// The text in the log.
    pub message: String,
    /// The change that would make the signature valid, as far as it can be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    /// The text that is hashed, with `<key>` for the key and `<token>` for a value that may be a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// True if only the beginning of the base string was kept; then there is no explanation.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub base_cut: bool,
    /// Number of requests just before it, with the same endpoint and reason, that were counted and not kept.
    pub not_kept_before: u64,
}

#[derive(Default)]
struct Kept {
    /// A counter for each endpoint and reason. Both are words of our own or of the configuration, so there are few.
    lanes: BTreeMap<(Arc<str>, &'static str), Lane>,
    /// Counters for log lines about verified requests.
    repeated: BTreeMap<(Arc<str>, String), Lane>,
    entries: VecDeque<Arc<Entry>>,
}

/// Counter of recent denials at one endpoint for one reason.
#[derive(Clone, Copy, Default)]
struct Lane {
    began: Timestamp,
    seen: u64,
}

/// Decision about one denied request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Log it, with this number of requests that were not logged before it.
    log: Option<u64>,
    /// Keep it, with this number of requests that were not kept before it.
    keep: Option<u64>,
}

impl Lane {
    /// Counts the next request. A clock that was set back begins a new window.
    fn next(&mut self, now: Timestamp) -> Turn {
        let age_ms = now.as_millisecond().saturating_sub(self.began.as_millisecond());
        if self.seen > 0 && (0..limits::DENIED_WINDOW_MS).contains(&age_ms) {
            self.seen += 1;
            let keep = (self.seen <= limits::DENIED_KEPT_PER_WINDOW_COUNT).then_some(0);
            return Turn { log: None, keep };
        }
        // A new window. Report how many requests of the previous one were left out.
        let before = std::mem::replace(self, Lane { began: now, seen: 1 }).seen;
        let not_kept = before.saturating_sub(limits::DENIED_KEPT_PER_WINDOW_COUNT);
        Turn { log: Some(before.saturating_sub(1)), keep: Some(not_kept) }
    }
}

/// A denied request in memory.
struct Entry {
    /// The request, without its base and explanation.
    shown: Shown,
    base: Option<Base>,
}

/// The signed text, whole or cut to the maximum size.
enum Base {
    Whole(Evidence),
    Beginning(String),
}

impl DeniedRequests {
    /// Creates an empty collection.
    pub fn new(clock: Clock, metrics: Metrics) -> DeniedRequests {
        DeniedRequests { clock, metrics, kept: Arc::default() }
    }

    /// Counts a denied request, and logs and keeps it unless there were many of its kind just now. `evidence`
    /// is called only for a request that is kept.
    pub fn note(&self, facts: Facts<'_>, evidence: impl FnOnce() -> Option<Evidence>) {
        let Facts { endpoint, peer, client, refusal, .. } = facts;
        let reason = refusal.reason();
        // The metrics count every denied request.
        self.metrics.count(Metric::DeniedRequests, [endpoint, reason]);
        // A health check comes every few seconds. Its lines would hide those of callbacks.
        if facts.is_probe {
            tracing::debug!(%endpoint, %peer, reason, "denied: {refusal}");
            return;
        }
        let now = self.clock.now();
        // The lock is released at the end of this line, before the slow steps.
        let turn = self.lock().lanes.entry((endpoint.clone(), reason)).or_default().next(now);
        if let Some(unlogged) = turn.log {
            let suppressed = (unlogged > 0).then_some(unlogged);
            // The client is logged only if a proxy gave another address than the peer's.
            let client = (client != peer.ip().to_canonical()).then(|| tracing::field::display(client));
            tracing::warn!(%endpoint, %peer, client, reason, suppressed, "denied: {refusal}");
        }
        if let Some(not_kept_before) = turn.keep {
            let base = evidence().map(Base::of);
            self.keep(Entry::new(facts, now, not_kept_before, base));
        }
    }

    /// Decides if a line about a verified request is logged, because such lines can be as frequent as the
    /// requests. Returns `None` if the log just had a line about this endpoint and reason, otherwise the number
    /// of lines left out before.
    pub fn turn_to_log(&self, endpoint: &Arc<str>, reason: &str) -> Option<u64> {
        let now = self.clock.now();
        self.lock().repeated.entry((endpoint.clone(), reason.to_owned())).or_default().next(now).log
    }

    /// Returns the last `limit` kept requests, the newest first, with explanations.
    pub fn latest(&self, limit: usize) -> Vec<Shown> {
        // Copy the entries and release the lock before the explanations, which take time.
        let latest: Vec<Arc<Entry>> = self.lock().entries.iter().rev().take(limit).cloned().collect();
        latest.iter().map(|entry| entry.show()).collect()
    }

    fn keep(&self, entry: Entry) {
        let mut kept = self.lock();
        // The oldest entry makes room.
        if kept.entries.len() >= limits::DENIED_KEPT_MAX_COUNT {
            kept.entries.pop_front();
        }
        kept.entries.push_back(Arc::new(entry));
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(facts: Facts<'_>, at: Timestamp, not_kept_before: u64, base: Option<Base>) -> Entry {
        let shown = Shown {
            at,
            endpoint: facts.endpoint.to_string(),
            peer: facts.peer,
            client: facts.client,
            // The caller chooses the method, so bound its length.
            method: facts.method.chars().take(16).collect(),
            reason: facts.refusal.reason(),
            message: cut(facts.refusal.to_string(), limits::REASON_MAX_BYTES),
            explanation: None,
            base: None,
            base_cut: false,
            not_kept_before,
        };
        Entry { shown, base }
    }

    fn show(&self) -> Shown {
        let (base, explanation, base_cut) = match &self.base {
            Some(Base::Whole(evidence)) => {
                (Some(shown_base(&evidence.parts)), Some(evidence.explain()), false)
            }
            Some(Base::Beginning(text)) => (Some(text.clone()), None, true),
            None => (None, None, false),
        };
        Shown { explanation, base, base_cut, ..self.shown.clone() }
    }
}

impl Evidence {
    fn explain(&self) -> String {
        explain(self.mismatch, &self.parts, self.presented.as_deref(), &self.keys)
    }

    fn bytes(&self) -> usize {
        let presented = self.presented.as_ref().map_or(0, String::len);
        presented + self.parts.bytes()
    }
}

impl Base {
    fn of(evidence: Evidence) -> Base {
        if evidence.bytes() <= limits::DENIED_EVIDENCE_MAX_BYTES {
            Base::Whole(evidence)
        } else {
            Base::Beginning(cut(shown_base(&evidence.parts), limits::DENIED_EVIDENCE_MAX_BYTES))
        }
    }
}

/// Returns the beginning of a text, at most `most` bytes. The memory is reduced to that size.
fn cut(mut text: String, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use spid_hook::Secret;
    use spid_hook::time::from_millis;

    struct Bench {
        clock: Clock,
        metrics: Metrics,
        refusals: DeniedRequests,
        endpoint: Arc<str>,
    }

    impl Bench {
        fn new() -> Bench {
            let (clock, metrics) = (Clock::manual(from_millis(1_000_000)), Metrics::default());
            let refusals = DeniedRequests::new(clock.clone(), metrics.clone());
            Bench { clock, metrics, refusals, endpoint: "shop".into() }
        }

        fn note(&self, refusal: &Denial, evidence: impl FnOnce() -> Option<Evidence>) {
            let peer = SocketAddr::from(([127, 0, 0, 1], 9));
            let facts = Facts {
                endpoint: &self.endpoint,
                peer,
                client: peer.ip(),
                method: "GET",
                is_probe: false,
                refusal,
            };
            self.refusals.note(facts, evidence);
        }

        fn later(&self, millis: i64) {
            self.clock.advance(SignedDuration::from_millis(millis));
        }
    }

    const WRONG: Denial = Denial::Signature(Mismatch::Wrong);

    fn evidence(received: &str, signed: &str) -> Option<Evidence> {
        let keys = Keys::single(Secret::new("fake-key")).unwrap();
        let parts = |value: &str| Parts::Pairs(vec![("name".to_owned(), value.to_owned())]);
        let presented = Some(parts(signed).sign(&keys));
        Some(Evidence { mismatch: Mismatch::Wrong, parts: parts(received), presented, keys })
    }

    #[test]
    fn a_refusal_is_shown_with_its_base_string_and_explained() {
        let bench = Bench::new();
        bench.note(&WRONG, || evidence("a b", "a+b"));
        bench.note(&Denial::Undated, || None);
        let shown = bench.refusals.latest(10);
        assert_eq!(shown.iter().map(|it| it.reason).collect::<Vec<_>>(), ["undated", "wrong-signature"]);
        assert_eq!(shown[1].base.as_deref(), Some("name=a b&key=<key>"));
        assert!(shown[1].explanation.as_ref().unwrap().contains("as they are encoded"));
        assert!(shown[0].base.is_none() && shown[0].explanation.is_none());
        let json = serde_json::to_string(&shown).unwrap();
        assert!(!json.contains("fake-key"), "{json}");
        assert_eq!(bench.refusals.latest(1).len(), 1);
    }

    #[test]
    fn many_alike_are_counted_and_few_of_them_kept() {
        let bench = Bench::new();
        let mut asked = 0;
        for _ in 0..1_000 {
            bench.note(&WRONG, || {
                asked += 1;
                None
            });
        }
        bench.note(&Denial::Undated, || None);
        assert_eq!(asked, limits::DENIED_KEPT_PER_WINDOW_COUNT);
        assert_eq!(bench.metrics.value(Metric::DeniedRequests, ["shop", "wrong-signature"]), 1_000);
        bench.later(limits::DENIED_WINDOW_MS);
        bench.note(&WRONG, || None);
        let shown = bench.refusals.latest(2);
        assert_eq!(shown[0].not_kept_before, 1_000 - limits::DENIED_KEPT_PER_WINDOW_COUNT);
        assert_eq!(shown[1].reason, "undated", "another reason has a lane of its own");
    }

    #[test]
    fn the_log_has_one_line_a_window_and_says_what_it_left_out() {
        let mut lane = Lane::default();
        let at = |millis: i64| from_millis(1_000_000 + millis);
        assert_eq!(lane.next(at(0)), Turn { log: Some(0), keep: Some(0) });
        assert_eq!(lane.next(at(999)), Turn { log: None, keep: Some(0) });
        for _ in 0..50 {
            lane.next(at(999));
        }
        assert_eq!(lane.next(at(1_000)).log, Some(51));
        assert_eq!(lane.next(at(900)).log, Some(0), "a clock that was set back silences nothing");
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_size() {
        let bench = Bench::new();
        let long = "é".repeat(limits::DENIED_EVIDENCE_MAX_BYTES);
        for _ in 0..limits::DENIED_KEPT_MAX_COUNT + 10 {
            bench.later(limits::DENIED_WINDOW_MS);
            bench.note(&WRONG, || evidence(&long, "x"));
        }
        let shown = bench.refusals.latest(usize::MAX);
        assert_eq!(shown.len(), limits::DENIED_KEPT_MAX_COUNT);
        assert!(shown.iter().all(|it| it.base_cut && it.explanation.is_none()));
        let longest = shown.iter().filter_map(|it| it.base.as_ref()).map(String::len).max();
        assert!(longest.unwrap() <= limits::DENIED_EVIDENCE_MAX_BYTES);
        let detail = "x".repeat(100_000);
        bench.note(&Denial::Malformed { detail }, || None);
        assert_eq!(bench.refusals.latest(1)[0].message.len(), limits::REASON_MAX_BYTES);
    }
}
