//! The table of metrics, and the handle that counts.
//!
//! There is no global registry. Each daemon creates its own [`Metrics`] and passes it down, so that two daemons
//! in one process do not share counters. Labels hold words of our own code or of the configuration, and never
//! an instance's id or anything that a peer sent.
//!
//! A counter that has not been incremented is shown as 0 after it was [announced](Metrics::announce). An alert
//! on the first dead job must not depend on an earlier one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    /// Upper bounds of the buckets. The last bucket has no bound and is not listed.
    Histogram(&'static [f64]),
    Gauge,
}

/// Row of the table.
struct Family {
    metric: Metric,
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
}

const COUNTER: Kind = Kind::Counter;
const GAUGE: Kind = Kind::Gauge;
const HOOK_SECONDS: Kind =
    Kind::Histogram(&[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0]);
const OPERATIONS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]);

/// Defines the metrics, and the table that shows them in this order.
macro_rules! metrics {
    ($($metric:ident $name:literal $kind:ident $labels:tt $help:literal)*) => {
        /// Name of a metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric {
            $(
                #[doc = $help]
                $metric,
            )*
        }

        const TABLE: [Family; [$($name),*].len()] = [
            $(Family { metric: Metric::$metric, name: $name, kind: $kind, labels: &$labels, help: $help }),*
        ];
    };
}

metrics! {
    Callbacks "spid_callbacks_total" COUNTER ["action", "outcome"] "Verified callbacks, by action and outcome."
    DeniedRequests "spid_denied_total" COUNTER ["endpoint", "reason"] "Requests denied before anything was stored, by endpoint and reason."
    HttpFault "spid_http_errors_total" COUNTER ["reason"] "HTTP and TLS faults of connections and requests, by reason."
    Repeats "spid_repeats_total" COUNTER ["action"] "Redeliveries of callbacks, finished or not, by action."
    Attempts "spid_attempts_total" COUNTER ["action", "ending"] "Ended hook attempts by action and ending."
    MarketCalls "spid_market_calls_total" COUNTER ["kind", "result"] "Ended attempts at jobs of the market client, by kind and result."
    Alerts "spid_alerts_total" COUNTER ["reason"] "Events that an operator should look at, by reason."
    StoreFaults "spid_store_faults_total" COUNTER ["operation"] "Store operations that failed, by operation."
    Signatures "spid_signatures_total" COUNTER ["endpoint", "key"] "Valid signatures, by endpoint and label of the key."
    Reloads "spid_reloads_total" COUNTER ["outcome"] "Configuration reloads, by outcome."
    SpansSent "spid_spans_sent_total" COUNTER [] "Spans that the collector accepted."
    SpansDropped "spid_spans_dropped_total" COUNTER ["reason"] "Spans dropped before the collector accepted them, by reason."
    LogLinesDropped "spid_log_lines_dropped_total" COUNTER ["reason"] "Lines of the log that were dropped, by reason."
    HookDuration "spid_hook_duration_seconds" HOOK_SECONDS ["hook"] "Duration of hook attempts in seconds, by hook."
    CommitOperations "spid_commit_operations" OPERATIONS [] "Operations of the store in one commit."
    Instances "spid_instances" GAUGE ["state"] "Instances by state."
    Jobs "spid_jobs" GAUGE ["state"] "Jobs that have not ended, by state."
    OldestJobAge "spid_oldest_job_age_seconds" GAUGE [] "Age of the oldest job that is queued or running; 0 without one."
    JobsOverdue "spid_jobs_overdue_seconds" GAUGE [] "Longest time for which a job that could run has been due; 0 without one."
    HeldCallbacks "spid_held_callbacks" GAUGE [] "Callbacks held for an operator."
    Attention "spid_attention" GAUGE ["reason"] "Attention items, by reason: the list of `spid attention`."
    UnreportedResults "spid_unreported_results" GAUGE [] "Results not reported to the marketplace."
    DeliveriesUsed "spid_deliveries_used_max" GAUGE [] "Maximum number of deliveries spent on a result that is not reported yet."
    DeliveriesUsedRatio "spid_deliveries_used_ratio_max" GAUGE [] "Maximum used fraction of the delivery limit for unreported results; at 1 the marketplace gives up."
    KeyLastUsed "spid_key_last_used_seconds" GAUGE ["endpoint", "key"] "Last use of a signature key, in seconds since 1970, exact to an hour; 0 if it has signed nothing since it was configured."
    Ready "spid_ready" GAUGE [] "1 if a write succeeds in time, as in /readyz; else 0."
    DatabaseSize "spid_database_bytes" GAUGE [] "Size of the database."
    WalSize "spid_database_wal_bytes" GAUGE [] "Size of the database's write-ahead log."
    DiskFree "spid_disk_free_bytes" GAUGE [] "Free space for the daemon's user on the disk of the database."
    DiskSize "spid_disk_bytes" GAUGE [] "Size of the disk of the database."
    ProcessStart "process_start_time_seconds" GAUGE [] "Start time of the daemon, in seconds since 1970."
    BuildInfo "spid_build_info" GAUGE ["version"] "Version of the running program."
}

/// Returns the names of all metrics as a scrape shows them. A histogram has three names.
pub fn names() -> impl Iterator<Item = String> {
    TABLE.iter().flat_map(|family| {
        let suffixes: &[&str] = match family.kind {
            Kind::Histogram(_) => &["_bucket", "_sum", "_count"],
            Kind::Counter | Kind::Gauge => &[""],
        };
        suffixes.iter().map(|suffix| format!("{}{suffix}", family.name))
    })
}

type Key = (Metric, [String; 2]);

/// Observed values, in buckets that do not overlap. The rendering adds them up.
#[derive(Debug, Default)]
struct Distribution {
    buckets: Vec<AtomicU64>,
    /// Sum in millionths, as an integer, so that it can be added to without a lock.
    sum_micros: AtomicU64,
}

#[derive(Debug, Default)]
struct Cells {
    counts: BTreeMap<Key, AtomicU64>,
    distributions: BTreeMap<Key, Distribution>,
}

/// Handle that counts and renders metrics. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<RwLock<Cells>>);

/// Values that are measured when the metrics are read.
#[derive(Debug, Default)]
pub struct Gauges(Vec<(Metric, [String; 2], f64)>);

impl Gauges {
    /// Sets a gauge. A metric without a label uses an empty one.
    pub fn set(&mut self, metric: Metric, label: &str, value: f64) {
        self.set_with(metric, [label, ""], value);
    }

    /// Sets a gauge with two labels.
    pub fn set_with(&mut self, metric: Metric, labels: [&str; 2], value: f64) {
        self.0.push((metric, labels.map(str::to_owned), value));
    }
}

impl Metrics {
    /// Adds one to a counter. Missing labels are empty.
    pub fn count(&self, metric: Metric, labels: [&str; 2]) {
        self.add(metric, labels, 1);
    }

    /// Shows a counter as 0 until it is incremented.
    pub fn announce(&self, metric: Metric, labels: [&str; 2]) {
        self.add(metric, labels, 0);
    }

    /// Adds `more` to a counter.
    pub fn add(&self, metric: Metric, labels: [&str; 2], more: u64) {
        let key = (metric, labels.map(str::to_owned));
        // An existing counter needs only the shared lock; the exclusive lock is taken once per label set.
        if let Some(cell) = self.0.read().unwrap_or_else(PoisonError::into_inner).counts.get(&key) {
            cell.fetch_add(more, Ordering::Relaxed);
            return;
        }
        let mut cells = self.0.write().unwrap_or_else(PoisonError::into_inner);
        cells.counts.entry(key).or_default().fetch_add(more, Ordering::Relaxed);
    }

    /// Adds a measurement to its bucket. Missing labels are empty.
    pub fn observe(&self, metric: Metric, labels: [&str; 2], value: f64) {
        let key = (metric, labels.map(str::to_owned));
        if let Some(cell) = self.0.read().unwrap_or_else(PoisonError::into_inner).distributions.get(&key) {
            cell.observe(bounds(metric), value);
            return;
        }
        self.distribution(key, |cell| cell.observe(bounds(metric), value));
    }

    /// Shows a histogram as empty until a value is observed.
    pub fn announce_distribution(&self, metric: Metric, labels: [&str; 2]) {
        self.distribution((metric, labels.map(str::to_owned)), |_| {});
    }

    /// Runs `work` on a histogram and creates the histogram if needed.
    fn distribution(&self, key: Key, work: impl FnOnce(&Distribution)) {
        let bounds = bounds(key.0).len();
        let mut cells = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let cell = cells.distributions.entry(key).or_insert_with(|| Distribution::of(bounds));
        work(cell);
    }

    /// Returns the value of a counter with these labels.
    pub fn value(&self, metric: Metric, labels: [&str; 2]) -> u64 {
        let key = (metric, labels.map(str::to_owned));
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        cells.counts.get(&key).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Renders all counters, and the given gauges, in the text format of Prometheus. A metric without values is
    /// left out.
    pub fn render(&self, gauges: &Gauges) -> String {
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        for family in &TABLE {
            let rows = match family.kind {
                Kind::Counter => cells.count_rows(family),
                Kind::Histogram(bounds) => cells.distribution_rows(family, bounds),
                Kind::Gauge => gauges.rows(family),
            };
            // A family without values has no lines at all, not even HELP and TYPE.
            if !rows.is_empty() {
                let Family { name, help, .. } = family;
                let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {}\n{rows}", family.kind.word());
            }
        }
        page
    }
}

fn bounds(metric: Metric) -> &'static [f64] {
    match TABLE.get(metric as usize).map(|family| family.kind) {
        Some(Kind::Histogram(bounds)) => bounds,
        _ => &[],
    }
}

impl Distribution {
    fn of(bounds: usize) -> Distribution {
        Distribution {
            buckets: (0..=bounds).map(|_| AtomicU64::new(0)).collect(),
            sum_micros: AtomicU64::new(0),
        }
    }

    fn observe(&self, bounds: &[f64], value: f64) {
        let position = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        if let Some(bucket) = self.buckets.get(position) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        // The sum of a histogram never decreases, so a negative value counts as zero.
        self.sum_micros.fetch_add((value.max(0.0) * 1e6) as u64, Ordering::Relaxed);
    }
}

impl Cells {
    fn count_rows(&self, family: &Family) -> String {
        let mut rows = String::new();
        for ((_, values), cell) in self.counts.iter().filter(|((of, _), _)| *of == family.metric) {
            let labels = braced(&pairs(family.labels, values));
            let _ = writeln!(rows, "{}{labels} {}", family.name, cell.load(Ordering::Relaxed));
        }
        rows
    }

    fn distribution_rows(&self, family: &Family, bounds: &[f64]) -> String {
        let (mut rows, name) = (String::new(), family.name);
        for ((_, values), cell) in self.distributions.iter().filter(|((of, _), _)| *of == family.metric) {
            let labels = pairs(family.labels, values);
            let mut below = 0;
            let uppers = bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (bucket, upper) in cell.buckets.iter().zip(uppers) {
                // Prometheus buckets are cumulative.
                below += bucket.load(Ordering::Relaxed);
                let labels = braced(&[labels.clone(), vec![format!("le=\"{upper}\"")]].concat());
                let _ = writeln!(rows, "{name}_bucket{labels} {below}");
            }
            let sum = cell.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
            let labels = braced(&labels);
            let _ = writeln!(rows, "{name}_sum{labels} {sum}\n{name}_count{labels} {below}");
        }
        rows
    }
}

impl Gauges {
    fn rows(&self, family: &Family) -> String {
        let mut rows = String::new();
        for (_, values, number) in self.0.iter().filter(|(of, ..)| *of == family.metric) {
            let labels = braced(&pairs(family.labels, values));
            let _ = writeln!(rows, "{}{labels} {number}", family.name);
        }
        rows
    }
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Histogram(_) => "histogram",
            Kind::Gauge => "gauge",
        }
    }
}

fn pairs(labels: &[&str], values: &[String]) -> Vec<String> {
    labels.iter().zip(values).map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect()
}

fn braced(pairs: &[String]) -> String {
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

/// Escapes a label value as the text format requires.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics) -> String {
        metrics.render(&Gauges::default())
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.count(Metric::DeniedRequests, ["alibaba-cn", "wrong-signature"]);
        metrics.clone().count(Metric::DeniedRequests, ["alibaba-cn", "wrong-signature"]);
        metrics.announce(Metric::DeniedRequests, ["alibaba-cn", "stale"]);
        metrics.announce(Metric::DeniedRequests, ["alibaba-cn", "wrong-signature"]);
        assert_eq!(metrics.value(Metric::DeniedRequests, ["alibaba-cn", "wrong-signature"]), 2);
        let page = page(&metrics);
        assert!(page.contains("spid_denied_total{endpoint=\"alibaba-cn\",reason=\"wrong-signature\"} 2\n"));
        assert!(page.contains("spid_denied_total{endpoint=\"alibaba-cn\",reason=\"stale\"} 0\n"));
        assert!(page.contains("# TYPE spid_denied_total counter\n") && !page.contains("spid_callbacks"));
    }

    #[test]
    fn buckets_hold_all_that_is_not_more() {
        let metrics = Metrics::default();
        metrics.announce_distribution(Metric::HookDuration, ["provision", ""]);
        for seconds in [0.01, 0.02, 3.0, 4_000.0] {
            metrics.observe(Metric::HookDuration, ["provision", ""], seconds);
        }
        let page = page(&metrics);
        for row in [
            "spid_hook_duration_seconds_bucket{hook=\"provision\",le=\"0.01\"} 1\n",
            "spid_hook_duration_seconds_bucket{hook=\"provision\",le=\"1\"} 2\n",
            "spid_hook_duration_seconds_bucket{hook=\"provision\",le=\"600\"} 3\n",
            "spid_hook_duration_seconds_bucket{hook=\"provision\",le=\"+Inf\"} 4\n",
            "spid_hook_duration_seconds_sum{hook=\"provision\"} 4003.03\n",
            "spid_hook_duration_seconds_count{hook=\"provision\"} 4\n",
        ] {
            assert!(page.contains(row), "{row}{page}");
        }
        metrics.observe(Metric::CommitOperations, ["", ""], 2.0);
        assert!(self::page(&metrics).contains("spid_commit_operations_bucket{le=\"2\"} 1\n"));
    }

    #[test]
    fn a_gauge_is_what_it_is_set_to() {
        let mut gauges = Gauges::default();
        gauges.set(Metric::Jobs, "dead", 3.0);
        gauges.set(Metric::DeliveriesUsedRatio, "", 0.25);
        let page = Metrics::default().render(&gauges);
        assert!(page.contains("# TYPE spid_jobs gauge\nspid_jobs{state=\"dead\"} 3\n"), "{page}");
        assert!(page.contains("\nspid_deliveries_used_ratio_max 0.25\n"), "{page}");
    }

    #[test]
    fn a_label_cannot_break_out() {
        let metrics = Metrics::default();
        metrics.count(Metric::HttpFault, ["a\"b\n\\", ""]);
        assert!(page(&metrics).contains("{reason=\"a\\\"b\\n\\\\\"} 1\n"));
    }

    #[test]
    fn every_name_follows_the_conventions() {
        for family in &TABLE {
            let Family { metric, name, kind, labels, help } = family;
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(name.starts_with("spid_") || *metric == Metric::ProcessStart, "{name}");
            assert!(labels.len() <= 2 && help.ends_with('.'), "{name}");
        }
        let names: std::collections::BTreeSet<String> = names().collect();
        assert_eq!(names.len(), TABLE.len() + 4, "each once, and two histograms");
    }
}
