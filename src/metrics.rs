//! One table of metric names, and the handle that counts.
//!
//! There is no global registry: a [`Metrics`] is made per daemon and passed down, so that two
//! daemons in one process do not count into each other. Labels hold words from our own code, never
//! an instance's id or anything a peer sent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Verified callbacks.
    Callbacks,
    /// Requests that were turned away before they counted.
    Refusals,
    /// Connections and requests that never became one.
    TurnedAway,
    /// Callbacks that repeated something finished.
    Repeats,
    /// Ended attempts.
    Attempts,
    /// Things somebody should look at.
    Alerts,
    /// Store operations that failed.
    StoreFaults,
    /// Signatures that held.
    Signatures,
    /// Times the configuration was to be read again.
    Reloads,
}

impl Metric {
    /// Name, label and help text of every metric, in the order they are shown.
    const TABLE: [(Metric, &'static str, &'static [&'static str], &'static str); 9] = [
        (
            Metric::Callbacks,
            "spid_callbacks_total",
            &["action", "outcome"],
            "Verified callbacks by action and by what was answered.",
        ),
        (
            Metric::Refusals,
            "spid_refusals_total",
            &["endpoint", "reason"],
            "Requests refused before they counted, by reason.",
        ),
        (
            Metric::TurnedAway,
            "spid_turned_away_total",
            &["reason"],
            "Connections that brought no whole request, by reason.",
        ),
        (Metric::Repeats, "spid_repeats_total", &["action"], "Callbacks that repeated something finished."),
        (
            Metric::Attempts,
            "spid_attempts_total",
            &["action", "ending"],
            "Ended hook attempts by action and ending.",
        ),
        (Metric::Alerts, "spid_alerts_total", &["reason"], "Things somebody should look at, by reason."),
        (
            Metric::StoreFaults,
            "spid_store_faults_total",
            &["operation"],
            "Store operations that failed, by operation.",
        ),
        (
            Metric::Signatures,
            "spid_signatures_total",
            &["endpoint", "key"],
            "Signatures that held, by the label of the key.",
        ),
        (
            Metric::Reloads,
            "spid_reloads_total",
            &["outcome"],
            "Times the configuration was to be read again, by outcome.",
        ),
    ];
}

type Cells = BTreeMap<(Metric, [String; 2]), AtomicU64>;

/// Counts, and shows what was counted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<RwLock<Cells>>);

impl Metrics {
    /// Adds one. Missing labels are empty.
    pub fn count(&self, metric: Metric, labels: [&str; 2]) {
        let key = (metric, labels.map(str::to_owned));
        if let Some(cell) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            cell.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut cells = self.0.write().unwrap_or_else(PoisonError::into_inner);
        cells.entry(key).or_default().fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted under these labels.
    pub fn value(&self, metric: Metric, labels: [&str; 2]) -> u64 {
        let key = (metric, labels.map(str::to_owned));
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(&key).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        for (metric, name, labels, help) in Metric::TABLE {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} counter");
            for ((_, values), cell) in cells.iter().filter(|((of, _), _)| *of == metric) {
                let pairs: Vec<String> = labels
                    .iter()
                    .zip(values)
                    .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                    .collect();
                let _ = writeln!(page, "{name}{{{}}} {}", pairs.join(","), cell.load(Ordering::Relaxed));
            }
        }
        page
    }
}

/// One gauge in Prometheus' text format.
pub fn gauge(page: &mut String, name: &str, help: &str, values: &[(&str, &str, u64)]) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (label, value, number) in values {
        let labels =
            if label.is_empty() { String::new() } else { format!("{{{label}=\"{}\"}}", escape(value)) };
        let _ = writeln!(page, "{name}{labels} {number}");
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.count(Metric::Refusals, ["alibaba-cn", "wrong-signature"]);
        metrics.clone().count(Metric::Refusals, ["alibaba-cn", "wrong-signature"]);
        assert_eq!(metrics.value(Metric::Refusals, ["alibaba-cn", "wrong-signature"]), 2);
        let page = metrics.render();
        assert!(page.contains("spid_refusals_total{endpoint=\"alibaba-cn\",reason=\"wrong-signature\"} 2\n"));
        assert!(page.contains("# TYPE spid_callbacks_total counter\n"));
    }

    #[test]
    fn a_label_cannot_break_out() {
        let metrics = Metrics::default();
        metrics.count(Metric::TurnedAway, ["a\"b\n\\", ""]);
        assert!(metrics.render().contains("{reason=\"a\\\"b\\n\\\\\"} 1\n"));
    }

    #[test]
    fn every_name_follows_the_conventions() {
        for (_, name, labels, help) in Metric::TABLE {
            assert!(name.starts_with("spid_") && name.ends_with("_total"), "{name}");
            assert!(labels.len() <= 2 && help.ends_with('.'), "{name}");
        }
    }
}
