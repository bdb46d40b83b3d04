//! Spans for an OpenTelemetry collector: one span for each request of a marketplace, and one for each attempt
//! of a hook.
//!
//! Spans are sent as OTLP over HTTP, in its JSON encoding, by our own client. The official crates (0.33) were
//! considered and rejected for these reasons:
//!
//! * They add 36 crates to 170, and 0.6 MB to the program, for one kind of document.
//! * They need their own thread and executor, in which our client cannot run.
//! * They read settings from variables that `check-config` does not know.
//! * They do not count dropped spans.
//!
//! The tests decode the sent data with the types of these crates.
//!
//! No other part of spid waits for a collector. Spans go into a bounded queue, and a span that finds the queue
//! full is dropped and counted. An attribute is one of the few that this crate names; a parameter, a header or
//! a query string can never become one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::net::{
    Client, ClientError, ClientOptions, ClientRequest, Method, NotAUrl, OutboundPolicy, Tls, Url,
};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};
use spid_hook::Secret;
use spid_hook::text::fault_of_secret;
use spid_hook::time::Clock;
use spid_hook::trace::{SpanId, TraceContext};

/// Options for sending spans: the collector, and our name and credentials there.
#[derive(Debug, Clone)]
pub struct TelemetryOptions {
    /// The collector's base URL; `/v1/traces` is added to its path.
    pub url: Url,
    /// Certificates trusted over https.
    pub tls: Option<Tls>,
    /// Header fields of each request, which authenticate spid at the collector.
    pub headers: TelemetryHeaders,
    /// Name of this service at the collector.
    pub service_name: String,
}

/// Header fields whose values are secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TelemetryHeaders(Vec<(String, Secret)>);

/// Error for a text that is not a list of header fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a header field (`name: value`), or sets a header that spid sets itself{fault}")]
pub struct NotHeaders {
    line: usize,
    /// The first character that a header cannot have, and its position, after a colon; empty if there is none.
    fault: String,
}

/// Header fields that only the HTTP client may set.
const OURS: [&str; 6] =
    ["connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"];

impl TelemetryHeaders {
    /// Reads header fields, one `name: value` per line.
    ///
    /// # Errors
    /// The number of the first invalid line, and none of its text.
    pub fn read(text: &Secret) -> Result<TelemetryHeaders, NotHeaders> {
        let mut headers = Vec::new();
        for (index, line) in text.expose().lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let Some(header) = header(line) else {
                let fault =
                    fault_of_secret(line.trim()).map(|fault| format!(": {fault}")).unwrap_or_default();
                return Err(NotHeaders { line: index + 1, fault });
            };
            headers.push(header);
        }
        Ok(TelemetryHeaders(headers))
    }
}

/// Reads one line. The value must be visible ASCII or spaces, because other bytes cannot be sent in a header.
fn header(line: &str) -> Option<(String, Secret)> {
    let (name, value) = line.split_once(':')?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let fits = !name.is_empty() && name.bytes().all(is_token) && !OURS.contains(&name.as_str());
    let sayable = !value.is_empty() && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (fits && sayable).then(|| (name, Secret::new(value)))
}

impl TelemetryOptions {
    /// Returns the URL that the spans are sent to.
    ///
    /// # Errors
    /// The base URL has an invalid path. A parsed URL never has one.
    fn target(&self) -> Result<Url, NotAUrl> {
        // A collector may be served under a path.
        let base = self.url.target();
        self.url.with_target(&format!("{}/v1/traces", base.trim_end_matches('/')))
    }

    /// Checks that spans could be sent to the URL. It resolves no name and opens no connection.
    ///
    /// # Errors
    /// The fault of the URL.
    pub fn check(&self) -> Result<(), String> {
        // A query usually holds credentials, which belong into `headers`.
        if self.url.target().contains('?') {
            return Err("the URL has a query; put credentials into `headers`".to_owned());
        }
        self.target().map_err(|wrong| wrong.to_string())?;
        let Ok(address) = self.url.host().parse() else { return Ok(()) };
        match OutboundPolicy::Confidential.forbids(address, self.url.is_secure()) {
            Some(why) => Err(format!("{address} is {why}")),
            None => Ok(()),
        }
    }
}

/// Kind of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request of a marketplace.
    Request,
    /// An attempt of a hook.
    Attempt,
}

/// Value of an attribute.
#[derive(Debug, Clone)]
pub enum Value {
    /// A word of our own.
    Word(&'static str),
    /// A name from the configuration, or an id.
    Text(String),
    /// A number.
    Number(i64),
}

/// Start time of a span.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    at: Timestamp,
    since: Instant,
}

/// A span that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// Kind of the span.
    pub kind: Kind,
    /// Trace and id of the span.
    pub context: TraceContext,
    /// The parent span, in the same trace.
    pub parent: Option<SpanId>,
    /// A span of a caller's trace.
    pub link: Option<TraceContext>,
    /// Start time. The span ends when it is handed over.
    pub begun: Begun,
    /// Action of the callback; `None` for a request that is not verified.
    pub action: Option<&'static str>,
    /// True if the request or the attempt failed.
    pub failed: bool,
    /// Further attributes.
    pub attributes: Vec<(&'static str, Value)>,
}

/// A span with its duration.
struct EndedSpan {
    span: Span,
    took: Duration,
}

/// Handle that accepts spans. Without a collector it accepts none and costs nothing. Clones share the queue.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<SpanQueue>>);

struct SpanQueue {
    queue: mpsc::Sender<EndedSpan>,
    clock: Clock,
    metrics: Metrics,
}

impl Spans {
    /// Begins a span. Returns `None` if there is no collector.
    pub fn begin(&self) -> Option<Begun> {
        let taking = self.0.as_ref()?;
        Some(Begun { at: taking.clock.now(), since: Instant::now() })
    }

    /// Hands over a span that ends now.
    pub fn end(&self, span: Span) {
        let Some(taking) = &self.0 else { return };
        let took = span.begun.since.elapsed();
        // Spans of unverified requests get only half of the queue. A flood of them must not displace the spans
        // of orders.
        let crowded = taking.queue.capacity() <= limits::SPANS_QUEUED_MAX_COUNT / 2;
        // `try_send` never waits: a full queue drops the span.
        if (crowded && span.action.is_none()) || taking.queue.try_send(EndedSpan { span, took }).is_err() {
            taking.metrics.count(Metric::SpansDropped, [QUEUE_FULL, ""]);
        }
    }
}

/// Reasons why a span is dropped.
const QUEUE_FULL: &str = "queue-full";
const UNDELIVERED: &str = "undelivered";
const REJECTED: &str = "rejected";

/// Returns the name of a request's method by the conventions of OpenTelemetry. An unknown method is reported as
/// `_OTHER`.
pub fn method(method: &Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Head => "HEAD",
        Method::Other(_) => "_OTHER",
    }
}

/// Task that sends spans to a collector until it is stopped.
pub struct Telemetry {
    spans: Spans,
    stop: watch::Sender<bool>,
    work: JoinHandle<()>,
}

impl Telemetry {
    /// Starts the task.
    pub fn start(options: TelemetryOptions, metrics: Metrics, clock: Clock) -> Telemetry {
        for reason in [QUEUE_FULL, UNDELIVERED, REJECTED] {
            metrics.announce(Metric::SpansDropped, [reason, ""]);
        }
        metrics.announce(Metric::SpansSent, ["", ""]);
        // The queue bounds the memory that waiting spans take.
        let (sender, queue) = mpsc::channel(limits::SPANS_QUEUED_MAX_COUNT);
        let (stop, stopping) = watch::channel(false);
        let client = Client::new(ClientOptions {
            total: Duration::from_millis(limits::SPANS_SEND_MS),
            outbound: OutboundPolicy::Confidential,
            tls: options.tls.clone(),
            keep: 1,
            ..ClientOptions::default()
        });
        let taking = SpanQueue { queue: sender, clock: clock.clone(), metrics: metrics.clone() };
        let (batch, away) = (Vec::new(), false);
        let exporter = SpanExporter { options, client, queue, batch, metrics, clock, stopping, away };
        Telemetry { spans: Spans(Some(Arc::new(taking))), stop, work: tokio::spawn(exporter.run()) }
    }

    /// Returns the handle that accepts spans.
    pub fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// Stops the task. The spans in the queue are still sent, for a limited time.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let within = Duration::from_millis(limits::STOP_SPANS_MS);
        // Wait for the rest of the queue, but not for a collector that hangs.
        if timeout(within, &mut self.work).await.is_err() {
            tracing::warn!("the collector did not accept the last spans in time; they are lost");
            self.work.abort();
        }
    }
}

/// Reason why a batch was not accepted.
struct Undelivered {
    why: String,
    /// `None`: never send it again. `Some`: send it again, after the delay that the collector asked for, if any.
    again: Option<Option<Duration>>,
}

/// Sends batches to the collector, one at a time.
struct SpanExporter {
    options: TelemetryOptions,
    client: Client,
    queue: mpsc::Receiver<EndedSpan>,
    batch: Vec<EndedSpan>,
    metrics: Metrics,
    clock: Clock,
    stopping: watch::Receiver<bool>,
    /// True after the log said that the collector accepts no spans.
    away: bool,
}

impl SpanExporter {
    async fn run(mut self) {
        while self.gather().await {
            let body = encode(&self.options.service_name, &self.batch);
            let count = self.batch.len();
            self.batch.clear();
            self.deliver(body, count).await;
        }
    }

    /// Fills the batch: waits for the first span, then for a short time for more. Returns false when the daemon
    /// stops and all spans are sent.
    async fn gather(&mut self) -> bool {
        let most = limits::SPANS_BATCH_MAX_COUNT;
        let SpanExporter { queue, batch, stopping, .. } = self;
        let came = tokio::select! {
            biased;
            came = queue.recv_many(batch, most) => came,
            // Stopping: close the queue to new spans, and take the rest.
            () = told(stopping) => {
                queue.close();
                queue.recv_many(batch, most).await
            }
        };
        let soon = sleep(Duration::from_millis(limits::SPANS_BATCH_MS));
        tokio::pin!(soon);
        // Wait a moment for more spans. A stop or a full batch ends the wait.
        while came > 0 && batch.len() < most {
            let left = most - batch.len();
            tokio::select! {
                biased;
                more = queue.recv_many(batch, left) => if more == 0 { break },
                () = &mut soon => break,
                () = told(stopping) => break,
            }
        }
        came > 0
    }

    /// Sends a batch, with retries. Meanwhile the queue fills and further spans are dropped, so memory does not grow.
    async fn deliver(&mut self, body: Vec<u8>, count: usize) {
        let mut pause = Duration::from_millis(limits::SPANS_PAUSE_MS);
        for deliveries_left in (0..limits::SPANS_TRIES_COUNT).rev() {
            match self.send(body.clone()).await {
                Ok(rejected) => return self.note_sent(count, rejected.min(count)),
                Err(Undelivered { why, again }) => {
                    self.note_away(&why);
                    // While stopping, a failed attempt is the last one, because the time is limited.
                    let stopping = *self.stopping.borrow();
                    let again = again.filter(|_| !stopping);
                    let Some(wait) = wait_before_next(deliveries_left, again, pause) else { break };
                    pause *= 2;
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = told(&mut self.stopping) => {}
                    }
                }
            }
        }
        self.metrics.add(Metric::SpansDropped, [UNDELIVERED, ""], count as u64);
    }

    /// Sends the batch once. Returns the number of spans that the collector rejected.
    async fn send(&self, body: Vec<u8>) -> Result<usize, Undelivered> {
        let url = self.options.target();
        let url = url.map_err(|wrong| Undelivered { why: wrong.to_string(), again: None })?;
        let mut request = ClientRequest::post(url, "application/json", body);
        for (name, value) in &self.options.headers.0 {
            request = request.with_header(name, value.expose());
        }
        let response = self.client.send(request).await.map_err(|error| Undelivered {
            again: may_work_later(&error).then_some(None),
            why: error.to_string(),
        })?;
        match response.status {
            200..=299 => Ok(rejected(&response.body)),
            status => Err(Undelivered {
                why: format!("the collector answered {status}"),
                // OTLP allows a retry only for these statuses.
                again: [429, 502, 503, 504].contains(&status).then(|| response.retry_after(self.clock.now())),
            }),
        }
    }

    /// Counts a batch that the collector accepted.
    fn note_sent(&mut self, count: usize, rejected: usize) {
        self.metrics.add(Metric::SpansSent, ["", ""], (count - rejected) as u64);
        self.metrics.add(Metric::SpansDropped, [REJECTED, ""], rejected as u64);
        // Log only the change, not every batch.
        if std::mem::take(&mut self.away) {
            tracing::info!("the collector takes spans again");
        }
    }

    /// Logs the first failure of a series.
    fn note_away(&mut self, error: &str) {
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(error, "the collector takes no spans; they are dropped and counted until it does");
        }
    }
}

/// Returns the wait before the next try. `None`: there is no further try, so there is nothing to wait for.
fn wait_before_next(
    deliveries_left: usize,
    again: Option<Option<Duration>>,
    pause: Duration,
) -> Option<Duration> {
    // The collector's own delay takes precedence over ours.
    let wait = again.filter(|_| deliveries_left > 0)?.unwrap_or(pause);
    Some(wait.min(Duration::from_millis(limits::SPANS_PAUSE_MAX_MS)))
}

/// Waits for the signal to stop.
async fn told(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Returns true if sending again may succeed. A wrong configuration does not repair itself.
fn may_work_later(error: &ClientError) -> bool {
    !matches!(error, ClientError::NoTls(_) | ClientError::Forbidden { .. } | ClientError::Unsendable(_))
}

/// Returns `partialSuccess.rejectedSpans` of an answer. OTLP writes the number as a text in JSON.
fn rejected(body: &[u8]) -> usize {
    let answer: Json = serde_json::from_slice(body).unwrap_or_default();
    let rejected = answer.pointer("/partialSuccess/rejectedSpans");
    let count = rejected.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

/// Encodes an `ExportTraceServiceRequest` in the JSON encoding of OTLP: ids in hex, 64-bit numbers as texts,
/// enums as numbers.
fn encode(service_name: &str, spans: &[EndedSpan]) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        attribute("service.name", &Value::Text(service_name.to_owned())),
        attribute("service.version", &Value::Word(version)),
    ];
    let spans: Vec<Json> = spans.iter().map(encode_span).collect();
    let scope = json!({ "scope": { "name": "spid", "version": version }, "spans": spans });
    json!({ "resourceSpans": [{ "resource": { "attributes": resource }, "scopeSpans": [scope] }] })
        .to_string()
        .into_bytes()
}

/// Encodes one span. Its end is the start plus the monotonic duration, so a clock that jumps cannot make it
/// negative.
fn encode_span(EndedSpan { span, took }: &EndedSpan) -> Json {
    let start = span.begun.at.as_nanosecond();
    let end = start.saturating_add(i128::try_from(took.as_nanos()).unwrap_or(0));
    // The numbers are SPAN_KIND_SERVER and SPAN_KIND_CLIENT.
    let (word, kind) = match span.kind {
        Kind::Request => ("callback", 2),
        Kind::Attempt => ("hook", 3),
    };
    let attributes: Vec<Json> = span.attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    let links: Vec<Json> = span
        .link
        .iter()
        .map(|link| json!({ "traceId": link.trace.to_string(), "spanId": link.span.to_string() }))
        .collect();
    json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        "parentSpanId": span.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        "name": span.action.map_or_else(|| word.to_owned(), |action| format!("{word} {action}")),
        "kind": kind,
        "startTimeUnixNano": start.to_string(),
        "endTimeUnixNano": end.to_string(),
        "attributes": attributes,
        "links": links,
        // Status code 2 is STATUS_CODE_ERROR.
        "status": if span.failed { json!({ "code": 2 }) } else { json!({}) },
    })
}

fn attribute(name: &str, value: &Value) -> Json {
    let value = match value {
        Value::Word(word) => json!({ "stringValue": word }),
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": name, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_what_is_wrong_is_never_quoted() {
        let read = |text: &str| TelemetryHeaders::read(&Secret::new(text));
        let headers = read("Authorization: Bearer fake-canary-1\n\nx-tenant: acme\n").unwrap();
        let names: Vec<&str> = headers.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["authorization", "x-tenant"]);
        assert_eq!(headers.0[0].1.expose(), "Bearer fake-canary-1");
        assert!(!format!("{headers:?}").contains("canary"));
        for (text, line) in [
            ("fake-canary-2", 1),
            ("a: b\nfake canary: 3", 2),
            (": fake-canary-4", 1),
            ("a:", 1),
            ("content-type: fake-canary-5", 1),
            ("a: fake-canary-\u{e9}", 1),
        ] {
            let wrong = read(text).unwrap_err();
            assert_eq!(wrong.line, line, "{text}");
            assert!(!wrong.to_string().contains("canary"));
        }
    }

    #[test]
    fn what_a_collector_rejects_is_read_in_both_spellings() {
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":2}}"#), 2);
        for nothing in ["", "{}", "\n", r#"{"partialSuccess":{"rejectedSpans":"-1"}}"#] {
            assert_eq!(rejected(nothing.as_bytes()), 0, "{nothing}");
        }
    }

    fn options(url: &str) -> TelemetryOptions {
        let headers = TelemetryHeaders::default();
        TelemetryOptions { url: url.parse().unwrap(), tls: None, headers, service_name: "spid".to_owned() }
    }

    #[test]
    fn the_path_is_behind_that_of_the_collector() {
        for (url, target) in [
            ("http://127.0.0.1:4318", "/v1/traces"),
            ("http://127.0.0.1:4318/", "/v1/traces"),
            ("http://127.0.0.1:4318/otlp/", "/otlp/v1/traces"),
        ] {
            assert_eq!(options(url).target().unwrap().target(), target);
        }
        assert!(options("http://127.0.0.1:4318/x?key=1").check().is_err());
        assert!(
            options("http://203.0.113.7").check().is_err(),
            "what lets us in would be readable on the way"
        );
        assert!(options("https://203.0.113.7").check().is_ok());
    }

    #[test]
    fn last_try_is_followed_by_no_wait() {
        let pause = Duration::from_secs(2);
        let most = Duration::from_millis(limits::SPANS_PAUSE_MAX_MS);
        assert_eq!(wait_before_next(1, Some(None), pause), Some(pause));
        assert_eq!(wait_before_next(1, Some(Some(most * 2)), pause), Some(most));
        for again in [None, Some(None), Some(Some(most))] {
            assert_eq!(wait_before_next(0, again, pause), None);
        }
        assert_eq!(wait_before_next(3, None, pause), None);
    }

    #[tokio::test]
    async fn without_a_collector_nothing_begins() {
        assert!(Spans::default().begin().is_none());
    }
}
