//! Spans from the real daemon to a collector over a real socket, decoded with the types of OpenTelemetry's own crate.
//! A collector that is missing, hangs or rejects spans must not affect the daemon.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use crate::support::daemon::{
    Daemon, Home, KEY, Line, PASSWORD, about, assert_clean, connect, create, get_text, memory_peak, until,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;

const CANARY: &str = "fake-canary-parameter-5T";
const LETS_IN: &str = "Bearer fake-canary-collector-token-8W";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Behavior of a collector.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Takes,
    Rejects(u16),
    TakesAllButOne,
    Hangs,
}

struct Heard {
    head: String,
    body: Vec<u8>,
}

struct Collector {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    heard: Arc<(Mutex<Vec<Heard>>, Condvar)>,
}

impl Collector {
    fn start(mood: Mood) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, heard) = (Arc::new(Mutex::new(mood)), Arc::new((Mutex::new(Vec::new()), Condvar::new())));
        let (moody, hears) = (mood.clone(), heard.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mood, heard) = (moody.clone(), hears.clone());
                std::thread::spawn(move || converse(stream.unwrap(), &mood, &heard));
            }
        });
        Collector { address, mood, heard }
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.heard.0.lock().unwrap().iter().map(|heard| heard.body.clone()).collect()
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.bodies().iter().map(|body| serde_json::from_slice(body).unwrap()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|request| request.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

fn converse(stream: TcpStream, mood: &Mutex<Mood>, heard: &(Mutex<Vec<Heard>>, Condvar)) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let head = head.to_ascii_lowercase().replace(&LETS_IN.to_ascii_lowercase(), LETS_IN);
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).ok()?;
        let mood = *mood.lock().unwrap();
        if mood != Mood::Hangs {
            heard.0.lock().unwrap().push(Heard { head, body });
            heard.1.notify_all();
        }
        let (status, body) = match mood {
            Mood::Takes => (200, "{}"),
            Mood::TakesAllButOne => (200, r#"{"partialSuccess":{"rejectedSpans":"1"}}"#),
            Mood::Rejects(status) => (status, "no"),
            Mood::Hangs => loop {
                std::thread::park();
            },
        };
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
    }
}

const HOOK: &str = r#"
case "$SPID_ACTION" in
  create) [ -e gate-go ] || exit 1; printf '{"instance_id":"%s","app":{"password":"PASSWORD"}}' "$(fake_id)" ;;
  *) printf '{}' ;;
esac
"#;

/// A daemon that sends its spans to this address.
fn home(collector: SocketAddr) -> Home {
    let home = Home::impatient(&HOOK.replace("PASSWORD", PASSWORD)).soon();
    std::fs::write(home.path("otlp-headers"), format!("authorization: {LETS_IN}\nx-tenant: acme\n")).unwrap();
    let server = "[server]\nadmin_listen = \"127.0.0.1:0\"\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap().replace("[server]\n", server);
    let folder = home.path("").display().to_string();
    home.configure(&format!(
        "{text}\n[telemetry]\notlp = \"http://{collector}/otlp\"\nservice_name = \"spid-of-acme\"\n\
         headers = {{ file = \"{folder}/otlp-headers\" }}\n"
    ));
    home
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|it| it.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} in {attributes:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// Attributes that the document lists.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logging.md")).unwrap();
    let rows =
        text.split("| attribute |").nth(1).unwrap().lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_collector_sees_requests_and_attempts_in_the_trace_of_their_job_and_nothing_secret() {
    let collector = Collector::start(Mood::Takes);
    let home = home(collector.address);
    let daemon = home.start_with(&["--log", "trace"]);
    let bought = create("ob-1").with("remark", CANARY);
    let request = get_text("/spi", &bought.signed())
        .replace("\r\n\r\n", &format!("\r\ntraceparent: {PARENT}\r\nconnection: close\r\n\r\n"));
    let mut stream = connect(daemon.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    until("the attempt has ended", || daemon.log().contains("not done").then_some(()));
    home.open_gate("go");
    let job = home.list(&["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    let db = home.path("spid.db").display().to_string();
    assert_eq!(home.run(&["jobs", "retry", &job, "--why", "a test", "--db", &db]).code, 0);
    let id = daemon.deliver_until_done(&bought).id();
    assert_eq!(daemon.get(&create("ob-2").with("remark", CANARY).encoded()).status, 403);
    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    home.wait_until_idle();
    let log = daemon.stop();

    let spans = collector.spans();
    let trace = job.replace('-', "");
    let ours: Vec<Span> = spans.iter().filter(|span| hex(&span.trace_id) == trace).cloned().collect();
    let requests = named(&ours, "callback create");
    let attempts = named(&ours, "hook create");
    assert_eq!((requests.len(), attempts.len(), ours.len()), (1, 2, 3), "{ours:#?}");
    let request = requests[0];
    assert_eq!((request.kind, request.parent_span_id.len()), (2, 0), "a server's, and nobody's child");
    assert_eq!(hex(&request.links[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.links[0].span_id), "b7ad6b7169203331");
    for (index, (attempt, outcome, code)) in
        [(attempts[0], "retry", 2), (attempts[1], "done", 0)].into_iter().enumerate()
    {
        assert_eq!(attempt.parent_span_id, request.span_id);
        assert_eq!(attempt.kind, 3);
        let told = |name| attribute(&attempt.attributes, name);
        assert_eq!(told("spid.attempt"), (index + 1).to_string());
        assert_eq!((told("spid.job"), told("spid.outcome")), (job.clone(), outcome.to_owned()));
        assert_eq!((told("spid.hook"), told("spid.endpoint")), ("provision".into(), "alibaba-cn".into()));
        assert_eq!(attempt.status.as_ref().map_or(0, |status| status.code), code);
        assert!(attempt.start_time_unix_nano <= attempt.end_time_unix_nano);
        let call = std::fs::read(home.path(&format!("call-create-{job}-{}.json", index + 1))).unwrap();
        let call: Value = serde_json::from_slice(&call).unwrap();
        assert_eq!(call["traceparent"], format!("00-{trace}-{}-01", hex(&attempt.span_id)));
    }
    assert_ne!(attempts[0].span_id, attempts[1].span_id);
    let released = named(&spans, "hook release")[0];
    assert_eq!(attribute(&released.attributes, "spid.instance"), id);
    let refused = named(&spans, "callback")[0];
    assert_eq!(attribute(&refused.attributes, "spid.outcome"), "missing-signature");
    assert_eq!(attribute(&refused.attributes, "http.response.status_code"), "403");

    let documented = documented();
    for attribute in spans.iter().flat_map(|span| &span.attributes) {
        assert!(documented.contains(&attribute.key), "docs/logging.md does not know {}", attribute.key);
    }
    let resource = collector.requests()[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name"), "spid-of-acme");
    let token = bought.token();
    for heard in collector.heard.0.lock().unwrap().iter() {
        assert!(heard.head.starts_with("post /otlp/v1/traces http/1.1"), "{}", heard.head);
        assert!(heard.head.contains(&format!("authorization: {LETS_IN}")), "{}", heard.head);
        assert!(heard.head.contains("content-type: application/json"), "{}", heard.head);
        assert_clean("a span", &heard.body, &[CANARY, PASSWORD, KEY, &token, LETS_IN]);
    }
    assert_clean("the log", log.as_bytes(), &[CANARY, PASSWORD, KEY, &token, LETS_IN]);
}

/// A request that is denied early, again and again.
fn knock(daemon: &Daemon, times: usize) {
    let mut line = Line::open(daemon.address).unwrap();
    let text = get_text("/spi", "action=createInstance");
    for _ in 0..times {
        assert!(line.exchange(&text).unwrap().status >= 400);
    }
}

fn dropped(daemon: &Daemon, reason: &str) -> u64 {
    daemon.counted(&format!("spid_spans_dropped_total{{reason=\"{reason}\"}}"))
}

#[test]
fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let collector = Collector::start(Mood::Hangs);
    let home = home(collector.address);
    home.open_gate("go");
    let daemon = home.start();
    knock(&daemon, 200);
    let before = memory_peak(daemon.pid());
    knock(&daemon, 3_000);
    assert_ne!(daemon.deliver_until_done(&create("ob-1")).id(), "0", "and it goes on selling");
    assert!(dropped(&daemon, "queue-full") > 0);
    let grown = memory_peak(daemon.pid()) - before;
    assert!(grown < 16 * 1024 * 1024, "{grown} bytes more");
    // The flood was unverified, so there was room for the order.
    collector.set(Mood::Takes);
    until("the order's spans come", || (!named(&collector.spans(), "hook create").is_empty()).then_some(()));
    until("and its requests'", || (!named(&collector.spans(), "callback create").is_empty()).then_some(()));
    collector.set(Mood::Hangs);
    knock(&daemon, 1);
    let log = daemon.stop();
    assert!(log.contains("the last spans"), "{log}");
    assert!(log.contains("closed=true"), "{log}");
}

#[test]
fn what_a_collector_does_not_take_is_dropped_and_counted_until_it_does() {
    let collector = Collector::start(Mood::Rejects(500));
    let home = home(collector.address);
    home.open_gate("go");
    let daemon = home.start();
    assert_ne!(daemon.deliver_until_done(&create("ob-1")).id(), "0");
    until("a batch is given up", || (dropped(&daemon, "undelivered") >= 2).then_some(()));
    daemon.wait_for_log("the collector takes no spans; they are dropped and counted until it does");
    collector.set(Mood::TakesAllButOne);
    knock(&daemon, 3);
    daemon.wait_for_log("the collector takes spans again");
    until("one is counted as rejected", || (dropped(&daemon, "rejected") == 1).then_some(()));
    // A batch that the collector may accept later is sent again.
    collector.set(Mood::Rejects(503));
    let refused = collector.bodies().len();
    let lost = dropped(&daemon, "undelivered");
    knock(&daemon, 1);
    until("it was sent once", || (collector.bodies().len() > refused).then_some(()));
    collector.set(Mood::Takes);
    until("it was sent again", || (collector.bodies().len() > refused + 1).then_some(()));
    assert_eq!(dropped(&daemon, "undelivered"), lost);
    let bodies = collector.bodies();
    assert_eq!(bodies[refused], bodies[refused + 1], "the same spans");
    daemon.stop();
}

#[test]
fn a_token_of_the_collector_changes_at_a_restart_and_a_reload_says_so() {
    let collector = Collector::start(Mood::Takes);
    let home = home(collector.address);
    let daemon = home.start();
    assert!(daemon.reload().contains("applied"));
    std::fs::write(home.path("otlp-headers"), "authorization: Bearer fake-canary-4F\n").unwrap();
    let said = daemon.reload();
    assert!(said.contains("restart required") && said.contains("telemetry.headers"), "{said}");
    assert!(!said.contains("canary"), "{said}");
    daemon.stop();
}

#[test]
fn a_collector_that_is_not_there_is_no_reason_not_to_start_or_to_stop() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = home(nobody);
    home.open_gate("go");
    let daemon = home.start();
    assert_ne!(daemon.deliver_until_done(&create("ob-1")).id(), "0");
    daemon.wait_for_log("the collector takes no spans");
    let log = daemon.stop();
    assert!(log.contains("closed=true"), "{log}");
}

#[test]
fn without_a_collector_nothing_is_counted_and_mistakes_are_told_beforehand() {
    let home = Home::with_log_hook();
    let plain = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&plain.replace("[server]\n", "[server]\nadmin_listen = \"127.0.0.1:0\"\n"));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    assert!(!daemon.admin("/metrics").contains("spid_spans"));
    daemon.stop();
    std::fs::write(home.path("headers"), "authorization fake-canary-3V\n").unwrap();
    let file = home.path("spid.toml").display().to_string();
    for (telemetry, wrong) in [
        ("otlp = \"collector:4318\"", "telemetry.otlp"),
        ("otlp = \"http://203.0.113.7:4318\"", "use https"),
        ("otlp = \"http://127.0.0.1:4318?key=fake-canary-3V\"", "the URL has a query"),
        (
            "otlp = \"http://127.0.0.1:4318\"\nheaders = { file = \"headers\" }",
            "line 1 is not a header field",
        ),
        ("otlp = \"http://127.0.0.1:4318\"\nca_file = \"x\"", "`ca_file` has no effect"),
        ("otpl = \"http://127.0.0.1:4318\"", "did you mean `otlp`"),
        ("service_name = \"\"", "the value is empty"),
    ] {
        home.configure(&format!("{plain}\n[telemetry]\n{telemetry}\n"));
        let ran = home.run(&["check-config", "--config", &file]);
        assert_eq!(ran.code, 78, "{telemetry}: {}", ran.stderr);
        assert!(ran.stderr.contains(wrong), "{telemetry}: {}", ran.stderr);
        assert_clean("the mistake", ran.stderr.as_bytes(), &["fake-canary-3V"]);
    }
}
