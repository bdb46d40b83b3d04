//! Spans for an OpenTelemetry collector: one for each request of a marketplace, one for each attempt of a hook.
//!
//! They are sent as OTLP over HTTP, in its JSON encoding, by our own client. The official crates (0.33) were
//! weighed and left out: 36 more crates on 170 and 0.6 MB more of program for one kind of document, a thread and
//! an executor of their own that our client cannot run in, settings from variables that `check-config` knows
//! nothing of, and no number of what was dropped. Their types read in the tests what is sent here.
//!
//! Nothing waits for a collector. What is to be sent goes into a bounded queue, and what finds it full is
//! dropped and counted. An attribute is one of the few this crate names; there is no way for a parameter, a
//! header or a query string to become one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::core::signature::Secret;
use crate::hook::clock::Clock;
use crate::hook::text::fault_of_secret;
use crate::hook::trace::{SpanId, TraceContext};
use crate::net::{Client, ClientError, ClientOptions, ClientRequest, Method, NotAUrl, Reach, Tls, Url};
use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};

/// Where spans are sent, and as whose.
#[derive(Debug, Clone)]
pub struct TelemetryOptions {
    /// The collector's base URL; `/v1/traces` is added to its path.
    pub url: Url,
    /// Whom it trusts over https.
    pub tls: Option<Tls>,
    /// Header fields of each request, which let us in.
    pub headers: TelemetryHeaders,
    /// The name we are known by there.
    pub service_name: String,
}

/// Header fields whose values are secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TelemetryHeaders(Vec<(String, Secret)>);

/// A text that is no list of header fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} is not a header field, like `authorization: Bearer …`, or is one we set ourselves{fault}"
)]
pub struct NotHeaders {
    line: usize,
    /// The first character that a header cannot have, and its position, behind a colon; empty if there is none.
    fault: String,
}

/// What belongs to the request and to nobody else.
const OURS: [&str; 6] =
    ["connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"];

impl TelemetryHeaders {
    /// Reads `name: value`, a line each.
    ///
    /// # Errors
    /// The number of a line that is none, and nothing of it.
    pub fn read(text: &Secret) -> Result<TelemetryHeaders, NotHeaders> {
        let lines = text.expose().lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let wrong = |index, line: &str| {
            let fault = fault_of_secret(line.trim()).map(|fault| format!(": {fault}")).unwrap_or_default();
            NotHeaders { line: index + 1, fault }
        };
        let read = |(index, line): (usize, &str)| header(line).ok_or_else(|| wrong(index, line));
        lines.map(read).collect::<Result<_, _>>().map(TelemetryHeaders)
    }
}

fn header(line: &str) -> Option<(String, Secret)> {
    let (name, value) = line.split_once(':')?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let fits = !name.is_empty() && name.bytes().all(is_token) && !OURS.contains(&name.as_str());
    let sayable = !value.is_empty() && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (fits && sayable).then(|| (name, Secret::new(value)))
}

impl TelemetryOptions {
    /// Where the spans go.
    ///
    /// # Errors
    /// Never, unless the path was none to begin with.
    fn target(&self) -> Result<Url, NotAUrl> {
        let base = self.url.target();
        self.url.with_target(&format!("{}/v1/traces", base.trim_end_matches('/')))
    }

    /// Looks whether spans could ever be sent there. It resolves no name and opens no connection.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn check(&self) -> Result<(), String> {
        if self.url.target().contains('?') {
            return Err("it has a query; what lets us in belongs into `headers`".to_owned());
        }
        self.target().map_err(|wrong| wrong.to_string())?;
        let Ok(address) = self.url.host().parse() else { return Ok(()) };
        match Reach::Confidential.forbids(address, self.url.is_secure()) {
            Some(why) => Err(format!("{address} is {why}")),
            None => Ok(()),
        }
    }
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request of a marketplace.
    Request,
    /// An attempt of a hook.
    Attempt,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub enum Value {
    /// A word of our own.
    Word(&'static str),
    /// A name from the configuration, or an id.
    Text(String),
    /// A number.
    Number(i64),
}

/// When a span began.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    at: Timestamp,
    since: Instant,
}

/// A span that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// What it is of.
    pub kind: Kind,
    /// Where it stands.
    pub context: TraceContext,
    /// The span it belongs to, in the same trace.
    pub parent: Option<SpanId>,
    /// A span of somebody else's trace.
    pub link: Option<TraceContext>,
    /// When it began. It ends when it is handed over.
    pub begun: Begun,
    /// What was asked; `None` for what nobody has verified.
    pub action: Option<&'static str>,
    /// Whether it failed.
    pub failed: bool,
    /// What else is said of it.
    pub attributes: Vec<(&'static str, Value)>,
}

/// A span, and how long it took.
struct Ended {
    span: Span,
    took: Duration,
}

/// Takes spans. Without a collector nothing is taken and nothing costs anything. Clones share the queue.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Taking>>);

struct Taking {
    queue: mpsc::Sender<Ended>,
    clock: Clock,
    metrics: Metrics,
}

impl Spans {
    /// Begins a span; `None` when nobody collects it.
    pub fn begin(&self) -> Option<Begun> {
        let taking = self.0.as_ref()?;
        Some(Begun { at: taking.clock.now(), since: Instant::now() })
    }

    /// Hands over a span that ends now.
    pub fn end(&self, span: Span) {
        let Some(taking) = &self.0 else { return };
        let took = span.begun.since.elapsed();
        // What nobody has verified has half of the queue: a flood of it must not crowd out the orders.
        let crowded = taking.queue.capacity() <= limits::SPANS_QUEUED_MAX_COUNT / 2;
        if (crowded && span.action.is_none()) || taking.queue.try_send(Ended { span, took }).is_err() {
            taking.metrics.count(Metric::SpansDropped, [QUEUE_FULL, ""]);
        }
    }
}

/// Why a span was dropped.
const QUEUE_FULL: &str = "queue-full";
const UNDELIVERED: &str = "undelivered";
const REJECTED: &str = "rejected";

/// A request's method as the conventions of OpenTelemetry want it: one that is made up is not told.
pub fn method(method: &Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Head => "HEAD",
        Method::Other(_) => "_OTHER",
    }
}

/// What sends spans to a collector, until it is stopped.
pub struct Telemetry {
    spans: Spans,
    stop: watch::Sender<bool>,
    work: JoinHandle<()>,
}

impl Telemetry {
    /// Begins to send.
    pub fn start(options: TelemetryOptions, metrics: Metrics, clock: Clock) -> Telemetry {
        for reason in [QUEUE_FULL, UNDELIVERED, REJECTED] {
            metrics.announce(Metric::SpansDropped, [reason, ""]);
        }
        metrics.announce(Metric::SpansSent, ["", ""]);
        let (sender, queue) = mpsc::channel(limits::SPANS_QUEUED_MAX_COUNT);
        let (stop, stopping) = watch::channel(false);
        let client = Client::new(ClientOptions {
            total: Duration::from_millis(limits::SPANS_SEND_MS),
            reach: Reach::Confidential,
            tls: options.tls.clone(),
            keep: 1,
            ..ClientOptions::default()
        });
        let taking = Taking { queue: sender, clock: clock.clone(), metrics: metrics.clone() };
        let (batch, away) = (Vec::new(), false);
        let courier = Courier { options, client, queue, batch, metrics, clock, stopping, away };
        Telemetry { spans: Spans(Some(Arc::new(taking))), stop, work: tokio::spawn(courier.run()) }
    }

    /// Where spans are handed over.
    pub fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// Sends what is there, for a moment, and no more.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let within = Duration::from_millis(limits::STOP_SPANS_MS);
        if timeout(within, &mut self.work).await.is_err() {
            tracing::warn!("the collector does not take the last spans in time; they are lost");
            self.work.abort();
        }
    }
}

/// Why a batch was not taken.
struct Undelivered {
    why: String,
    /// When it may be tried again; `None` for never.
    again: Option<Option<Duration>>,
}

/// Carries batches to the collector, one at a time.
struct Courier {
    options: TelemetryOptions,
    client: Client,
    queue: mpsc::Receiver<Ended>,
    batch: Vec<Ended>,
    metrics: Metrics,
    clock: Clock,
    stopping: watch::Receiver<bool>,
    /// Whether it was said that nothing is taken.
    away: bool,
}

impl Courier {
    async fn run(mut self) {
        while self.gather().await {
            let body = encode(&self.options.service_name, &self.batch);
            let count = self.batch.len();
            self.batch.clear();
            self.deliver(body, count).await;
        }
    }

    /// Fills the batch: the first that comes, and what comes soon after it. `false` once all is sent and
    /// nothing will come.
    async fn gather(&mut self) -> bool {
        let most = limits::SPANS_BATCH_MAX_COUNT;
        let Courier { queue, batch, stopping, .. } = self;
        let came = tokio::select! {
            biased;
            came = queue.recv_many(batch, most) => came,
            () = told(stopping) => {
                queue.close();
                queue.recv_many(batch, most).await
            }
        };
        let soon = sleep(Duration::from_millis(limits::SPANS_BATCH_MS));
        tokio::pin!(soon);
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

    /// Sends a batch, more than once if need be. Meanwhile the queue fills, and then spans are dropped: memory
    /// does not grow.
    async fn deliver(&mut self, body: Vec<u8>, count: usize) {
        let mut pause = Duration::from_millis(limits::SPANS_PAUSE_MS);
        for _ in 0..limits::SPANS_TRIES_COUNT {
            match self.send(body.clone()).await {
                Ok(rejected) => return self.note_sent(count, rejected.min(count)),
                Err(Undelivered { why, again }) => {
                    self.note_away(&why);
                    let stopping = *self.stopping.borrow();
                    let Some(asked) = again.filter(|_| !stopping) else { break };
                    let most = Duration::from_millis(limits::SPANS_PAUSE_MAX_MS);
                    let wait = asked.unwrap_or(pause).min(most);
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

    /// Sends it once. Returns how many spans the collector has rejected.
    async fn send(&self, body: Vec<u8>) -> Result<usize, Undelivered> {
        let never = |why: String| Undelivered { why, again: None };
        let url = self.options.target().map_err(|wrong| never(wrong.to_string()))?;
        let request = ClientRequest::post(url, "application/json", body);
        let headers = self.options.headers.0.iter();
        let request =
            headers.fold(request, |request, (name, value)| request.with_header(name, value.expose()));
        let response = self.client.send(request).await.map_err(|error| Undelivered {
            again: may_work_later(&error).then_some(None),
            why: error.to_string(),
        })?;
        match response.status {
            200..=299 => Ok(rejected(&response.body)),
            status => Err(Undelivered {
                why: format!("the collector answered {status}"),
                again: [429, 502, 503, 504].contains(&status).then(|| response.retry_after(self.clock.now())),
            }),
        }
    }

    fn note_sent(&mut self, count: usize, rejected: usize) {
        self.metrics.add(Metric::SpansSent, ["", ""], (count - rejected) as u64);
        self.metrics.add(Metric::SpansDropped, [REJECTED, ""], rejected as u64);
        if std::mem::take(&mut self.away) {
            tracing::info!("the collector takes spans again");
        }
    }

    fn note_away(&mut self, error: &str) {
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(error, "the collector takes no spans; they are dropped and counted until it does");
        }
    }
}

/// Waits until it is time to stop.
async fn told(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn may_work_later(error: &ClientError) -> bool {
    !matches!(error, ClientError::NoTls(_) | ClientError::Forbidden { .. } | ClientError::Unsendable(_))
}

/// `partialSuccess.rejectedSpans` of an answer: a number, which JSON of this kind writes as a text.
fn rejected(body: &[u8]) -> usize {
    let answer: Json = serde_json::from_slice(body).unwrap_or_default();
    let rejected = answer.pointer("/partialSuccess/rejectedSpans");
    let count = rejected.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

/// `ExportTraceServiceRequest` in the JSON encoding of OTLP: ids in hex, long numbers as texts, enums as numbers.
fn encode(service_name: &str, spans: &[Ended]) -> Vec<u8> {
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

fn encode_span(Ended { span, took }: &Ended) -> Json {
    let start = span.begun.at.as_nanosecond();
    let end = start.saturating_add(i128::try_from(took.as_nanos()).unwrap_or(0));
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

    #[tokio::test]
    async fn without_a_collector_nothing_begins() {
        assert!(Spans::default().begin().is_none());
    }
}
