//! The log: the format of a line, its ids from the order to the hook and back, and the values that are never logged.
//! The tests read docs/logging.md, which documents this.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::support::daemon::{
    self, Answer, Daemon, Home, PASSWORD, Params, about, assert_clean, connect, create, get_text, renew,
    until, upgrade,
};
use serde_json::{Map, Value};

/// A secret of a peer that must not be in any log.
const CANARY: &str = "fake-canary-parameter-5T";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

const TALKATIVE: &str = r#"
echo "the hook says hello" >&2
printf '%s' "$TRACEPARENT" > "traceparent-$SPID_ATTEMPT"
case "$SPID_ACTION" in
  create) [ -e gate-go ] || exit 1; printf '{"instance_id":"%s","app":{"password":"PASSWORD"}}' "$(fake_id)" ;;
  other) printf '{"body":{}}' ;;
  *) printf '{}' ;;
esac
"#;

fn talkative(more: &str) -> Home {
    let home = Home::impatient(&TALKATIVE.replace("PASSWORD", PASSWORD)).soon();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("[server]\n", &format!("[server]\n{more}\n")));
    home
}

/// All lines of a log in JSON.
fn objects(log: &str) -> Vec<Map<String, Value>> {
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(read).collect()
}

fn word<'a>(line: &'a Map<String, Value>, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn said<'a>(lines: &'a [Map<String, Value>], message: &str) -> &'a Map<String, Value> {
    let found = lines.iter().find(|line| word(line, "message").starts_with(message));
    found.unwrap_or_else(|| panic!("nobody said `{message}`: {lines:#?}"))
}

/// Sends a request with these header lines, and returns the header of its answer.
fn with_headers(daemon: &Daemon, query: &str, headers: &str) -> String {
    use std::io::{Read as _, Write as _};
    let text =
        get_text("/spi", query).replace("\r\n\r\n", &format!("\r\n{headers}connection: close\r\n\r\n"));
    let mut stream = connect(daemon.address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

#[test]
fn a_trace_leads_from_the_request_through_restarts_to_the_hook_and_back_to_the_order() {
    let home = talkative("");
    let daemon = home.start_with(&["--log-format", "json"]);
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "0", "the hook fails at first");
    until("the attempt has ended", || daemon.log().contains("not done").then_some(()));
    let first = daemon.log();
    daemon.kill();
    home.open_gate("go");
    let job = home.list(&["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    let db = home.path("spid.db").display().to_string();
    assert_eq!(home.run(&["jobs", "retry", &job, "--why", "a test", "--db", &db]).code, 0);
    let daemon = home.start_with(&["--log-format", "json"]);
    daemon.deliver_until_done(&create("ob-1"));
    let second = daemon.stop();

    let trace = job.replace('-', "");
    let detail = home.json(&["jobs", "show", &trace]);
    assert_eq!(
        (&detail["id"], &detail["trace_id"]),
        (&Value::from(job.as_str()), &Value::from(trace.as_str()))
    );
    let detail = home.json(&["callbacks", "show", "1"]);
    assert_eq!(
        (&detail["job"], &detail["trace_id"]),
        (&Value::from(job.as_str()), &Value::from(trace.as_str()))
    );
    assert!(home.look(&["callbacks", "show", "1"]).contains(&format!("job {job}, trace {trace}")));
    assert!(home.look(&["jobs", "show", &job]).contains(&format!("trace {trace}")));

    let (before, after) = (objects(&first), objects(&second));
    let mut spans = BTreeSet::new();
    for (lines, message) in [
        (&before, "received"),
        (&before, "the hook says hello"),
        (&before, "not done"),
        (&after, "the hook says hello"),
        (&after, "done"),
    ] {
        let line = said(lines, message);
        assert_eq!(word(line, "trace_id"), trace, "{line:?}");
        assert_eq!(word(line, "span_id").len(), 16, "{line:?}");
        spans.insert(word(line, "span_id").to_owned());
    }
    assert_eq!(spans.len(), 3, "the request's, and one for each attempt");
    for (lines, attempt) in [(&before, 1), (&after, 2)] {
        let span = word(said(lines, "the hook says hello"), "span_id");
        let told = format!("00-{trace}-{span}-01");
        let variable = std::fs::read_to_string(home.path(&format!("traceparent-{attempt}"))).unwrap();
        assert_eq!(variable, told, "attempt {attempt}");
        let call = std::fs::read(home.path(&format!("call-create-{job}-{attempt}.json"))).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&call).unwrap()["traceparent"], told);
    }
    assert_eq!(said(&after, "done")["callback"], 1, "and the callback, from every line of an attempt");
}

#[test]
fn text_has_the_same_ids() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    let received = daemon.wait_for_log("received endpoint=alibaba-cn");
    let trace = home.list(&["jobs", "list"])[0]["id"].as_str().unwrap().replace('-', "");
    assert!(received.contains(&format!("request{{trace_id={trace} span_id=")), "{received}");
    assert!(daemon.wait_for_log(": done job=").contains(&format!("attempt{{trace_id={trace} span_id=")));
}

#[test]
fn a_trace_from_outside_is_written_down_if_a_proxy_of_ours_brings_it_and_is_never_ours() {
    let home = talkative("trusted_proxies = [\"127.0.0.1\"]");
    home.open_gate("go");
    let daemon = home.start_with(&["--log-format", "json"]);
    let head = with_headers(&daemon, &create("ob-1").signed(), &format!("traceparent: {PARENT}\r\n"));
    for (order, headers) in [
        ("ob-2", format!("traceparent: {CANARY}\r\n")),
        ("ob-3", format!("traceparent: {PARENT}\r\ntraceparent: {PARENT}\r\n")),
        ("ob-4", String::new()),
    ] {
        with_headers(&daemon, &create(order).signed(), &headers);
    }
    home.wait_until_idle();
    let log = daemon.stop();
    let lines = objects(&log);
    let received: Vec<_> = lines.iter().filter(|line| word(line, "message") == "received").collect();
    assert_eq!(received.len(), 4);
    let [first, others @ ..] = &received[..] else { unreachable!() };
    assert_eq!(word(first, "parent_trace_id"), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(word(first, "parent_span_id"), "b7ad6b7169203331");
    assert!(others.iter().all(|line| !line.contains_key("parent_trace_id")), "{others:?}");
    let jobs = home.list(&["jobs", "list"]);
    let own = jobs.last().unwrap()["id"].as_str().unwrap().replace('-', "");
    assert_eq!(word(first, "trace_id"), own, "what comes from outside is no id of a job");
    assert!(head.contains(&format!("\r\nx-request-id: {own}")), "{head}");
    assert_clean("the log", log.as_bytes(), &[CANARY]);
}

#[test]
fn a_stranger_says_nothing_about_traces_and_hears_nothing() {
    let home = Home::with_log_hook();
    let daemon = home.start_with(&["--log", "trace", "--log-format", "json"]);
    let head = with_headers(&daemon, &create("ob-1").signed(), &format!("traceparent: {PARENT}\r\n"));
    assert!(head.starts_with("http/1.1 200") && !head.contains("x-request-id"), "{head}");
    let log = daemon.stop();
    assert!(!log.contains("0af7651916cd43dd8448eb211c80319c"), "{log}");
}

#[test]
fn the_format_is_the_flag_s_or_the_variable_s_or_the_file_s_and_a_reload_changes_it() {
    let home = Home::with_log_hook();
    let plain = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let daemon = home.start();
    home.configure(&format!("{plain}\n[log]\nformat = \"json\"\n"));
    let line = daemon.reload();
    assert!(objects(&line)[0].contains_key("changed") || line.contains("log.format"), "{line}");
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    let line = daemon.wait_for_log("\"received\"");
    assert_eq!(word(&objects(&line)[0], "endpoint"), "alibaba-cn");
    home.configure(&plain);
    daemon.reload();
    assert_eq!(daemon.deliver(&create("ob-2")).id(), "ob-2");
    daemon.wait_for_log("received endpoint=alibaba-cn");
    daemon.stop();
    objects(&home.start_in(&[("SPID_LOG__FORMAT", "json")]).stop());
    objects(&home.start_in(&[("SPID_LOG_FORMAT", "json"), ("SPID_LOG__FORMAT", "text")]).stop());
    let wrong = home.run(&["serve", "--dev", "--log-format", "xml"]);
    assert_eq!(wrong.code, 64, "{}", wrong.stderr);
}

/// A hook's text with a line break is one line, and cannot imitate a line of spid.
#[test]
fn an_event_is_a_line() {
    let script = r#"printf '%s' '{"refuse": "no\n2026-01-01T00:00:00Z ERROR forged: all is lost\u001b[31m"}'; exit 65"#;
    let home = Home::with_hook(script);
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "0");
    let log = daemon.stop();
    let forged: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(!forged.is_empty(), "{log}");
    assert!(forged.iter().all(|line| line.contains("spid::")), "{forged:?}");
    assert!(!log.contains('\u{1b}'));
}

/// All log lines of a life with many errors, at every level, from every crate.
fn a_talkative_life(log_format: &str) -> String {
    let home = talkative("trusted_proxies = [\"127.0.0.1\"]");
    let daemon = home.start_with(&["--log", "trace", "--log-format", log_format]);
    let marked = |request: Params| request.with("remark", CANARY);
    daemon.deliver(&marked(create("ob-1")));
    until("the attempt has ended", || daemon.log().contains("not done").then_some(()));
    home.open_gate("go");
    let id = daemon.deliver(&marked(create("ob-2"))).id();
    daemon.deliver(&marked(create("ob-2")));
    daemon.deliver(&marked(create("ob-2")).with("orderId", "another"));
    for request in [renew(&id, "2031-01-01 00:00:00"), upgrade(&id, "pro"), about("createIdaas", &id)] {
        daemon.deliver(&marked(request));
    }
    daemon.deliver(&marked(Params::new("teleportInstance")));
    daemon.deliver(&marked(about("verify", &id).with("timeStamp", CANARY)));
    let forged = marked(create("ob-3")).encoded();
    assert_eq!(daemon.get(&format!("{forged}&token={CANARY}")).status, 403);
    assert_eq!(daemon.get(&forged).status, 403);
    assert_eq!(daemon.post(&forged).status, 403);
    with_headers(&daemon, &forged, &format!("traceparent: {CANARY}\r\nx-forwarded-for: {CANARY}\r\n"));
    with_headers(&daemon, &forged, &format!("traceparent: {PARENT}\r\n{CANARY}: {CANARY}\r\n"));
    let lost = daemon::exchange(daemon.address, &get_text("/lost", &forged));
    assert!(matches!(lost, Some(Answer { status: 404, .. })));
    daemon.deliver(&marked(about("releaseInstance", &id)));
    home.wait_until_idle();
    daemon.reload();
    daemon.stop()
}

#[test]
fn nothing_of_a_query_string_is_logged_at_any_level_of_any_crate_in_any_format() {
    for log_format in ["text", "json"] {
        let log = a_talkative_life(log_format);
        assert!(log.contains("DEBUG"), "it was to say all it has");
        assert_clean(log_format, log.as_bytes(), &[CANARY, PASSWORD, daemon::KEY]);
    }
}

/// First cells of a table's rows, without their backquotes.
fn first_cells(text: &str, head: &str) -> BTreeSet<String> {
    let rows = text.split(head).nth(1).unwrap_or_else(|| panic!("no table `{head}`")).lines().skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logging.md")).unwrap()
}

#[test]
fn the_document_has_every_field_that_is_written() {
    let documented = first_cells(&document(), "| field |");
    for line in objects(&a_talkative_life("json")) {
        if !word(&line, "target").starts_with("spid") {
            continue;
        }
        let names: BTreeSet<String> = line.keys().cloned().collect();
        let unknown: Vec<_> = names.difference(&documented).collect();
        assert!(unknown.is_empty(), "docs/logging.md does not know {unknown:?} of {line:?}");
        for always in ["timestamp", "level", "target", "message"] {
            assert!(!word(&line, always).is_empty(), "{line:?}");
        }
    }
}

/// The document has no field and no event that the program does not write: each is in the sources.
#[test]
fn the_document_has_nothing_that_is_not_written() {
    let mut sources = String::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|it| it == "rs") => {
                    sources.push_str(&std::fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }
    let missing: Vec<String> = first_cells(&document(), "| event |")
        .into_iter()
        .filter(|event| !sources.contains(&format!("\"{event}")))
        .collect();
    assert!(missing.is_empty(), "no such event: {missing:?}");
    let is_written = |name: &String| {
        let forms = [format!("{name} ="), format!("%{name},"), format!(" {name},"), format!("\"{name}\"")];
        name == "message" || forms.iter().any(|form| sources.contains(form))
    };
    let missing: Vec<String> =
        first_cells(&document(), "| field |").into_iter().filter(|name| !is_written(name)).collect();
    assert!(missing.is_empty(), "no such field: {missing:?}");
}

/// Answers at once and fills the log.
const NOISY: &str = r#"
yes 'a line that may never be read, and some more of them' | head -c 300000 >&2
printf '{"instance_id":"%s"}' "$(fake_id)"
"#;

/// A daemon with a log destination that the test controls, and its metrics.
struct Unheard {
    home: Home,
    daemon: Daemon,
    admin: SocketAddr,
}

impl Unheard {
    fn start(stderr: impl Into<Stdio>) -> Unheard {
        let home = Home::with_hook(NOISY);
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let daemon = home.start_unheard([&sockets[0], &sockets[1]], stderr.into());
        Unheard { home, daemon, admin: sockets[1].local_addr().unwrap() }
    }

    /// Delivers the orders with these numbers. Each is acknowledged.
    fn sell(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let made = self.daemon.deliver(&create(&format!("ob-{number}"))).id();
            assert!(made.starts_with("i-"), "{number}: {made}");
        }
    }

    /// Number of dropped lines with this reason.
    fn dropped(&self, reason: &str) -> u64 {
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let page = daemon::exchange(self.admin, request).unwrap().body;
        let row = format!("spid_log_lines_dropped_total{{reason=\"{reason}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&row)).unwrap().parse().unwrap()
    }

    /// Every order ran once, and a stop works.
    fn end(self, orders: usize) {
        self.home.wait_until_idle();
        let begun: BTreeSet<String> = self.home.begun("create").into_iter().map(|(key, _)| key).collect();
        assert_eq!((begun.len(), self.home.begun("create").len()), (orders, orders));
        assert_eq!(self.home.list(&["instances", "list"]).len(), orders);
        self.daemon.stop();
    }
}

/// Enough orders to fill a pipe and the queue before it.
const MANY: usize = 30;

#[test]
fn a_full_disk_under_the_log_costs_lines_and_no_order() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let unheard = Unheard::start(full);
    unheard.sell(0..3);
    until("lines were dropped", || (unheard.dropped("not-written") > 100).then_some(()));
    unheard.end(3);
}

#[test]
fn a_reader_of_the_log_that_leaves_costs_lines_and_no_order() {
    let (reader, writer) = std::io::pipe().unwrap();
    let unheard = Unheard::start(writer);
    // The reader reads for a while, and then ends.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = reader;
            reader.read_exact(&mut [0; 10_000]).unwrap();
        });
        unheard.sell(0..3);
    });
    until("lines were dropped", || (unheard.dropped("not-written") > 100).then_some(()));
    unheard.end(3);
}

/// Reads a log to its end, while the test checks the lines.
fn heard(mut reader: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let read = Arc::new(Mutex::new(Vec::new()));
    let kept = read.clone();
    std::thread::spawn(move || {
        let mut chunk = [0; 65_536];
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            kept.lock().unwrap().extend_from_slice(&chunk[..count]);
        }
    });
    read
}

#[test]
fn a_reader_of_the_log_that_comes_back_hears_what_was_lost() {
    use rustix::fs::{CWD, Mode, OFlags};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let first = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    drop(first.unwrap());
    let unheard = Unheard::start(writer);
    unheard.sell(0..3);
    until("lines were dropped", || (unheard.dropped("not-written") > 100).then_some(()));
    let read = heard(std::fs::File::open(&path).unwrap());
    unheard.sell(3..4);
    until("the log says what it lost", || {
        let said = String::from_utf8_lossy(&read.lock().unwrap()).into_owned();
        said.contains("lines of the log were dropped").then_some(())
    });
    unheard.end(4);
}

#[test]
fn a_closed_log_costs_no_order() {
    let home = Home::with_hook(NOISY);
    let daemon = home.start_through("exec \"$@\" 2>&-");
    assert!(daemon.deliver(&create("ob-1")).id().starts_with("i-"));
    assert_eq!(home.begun("create").len(), 1);
    daemon.stop();
}

#[test]
fn an_unread_log_delays_no_order_and_says_later_what_it_lost() {
    let (reader, writer) = std::io::pipe().unwrap();
    let unheard = Unheard::start(writer);
    unheard.sell(0..MANY);
    until("lines were dropped", || (unheard.dropped("queue-full") > 100).then_some(()));
    let read = heard(reader);
    let said = || String::from_utf8_lossy(&read.lock().unwrap()).into_owned();
    let line = until("the log says what it lost", || {
        let said = said();
        said.lines().find(|line| line.contains("lines of the log were dropped")).map(str::to_owned)
    });
    let lost: u64 = line.split("suppressed=").nth(1).unwrap().trim().parse().unwrap();
    assert!(lost > 100 && lost <= unheard.dropped("queue-full"), "{line}");
    unheard.sell(MANY..MANY + 1);
    until("what comes now is logged again", || {
        let said = said();
        said.rsplit("were dropped").next()?.contains("received endpoint").then_some(())
    });
    unheard.end(MANY + 1);
}

#[test]
fn a_stop_waits_for_the_log_and_not_for_ever() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let unheard = Unheard::start(writer);
    unheard.sell(0..MANY);
    until("lines were dropped", || (unheard.dropped("queue-full") > 0).then_some(()));
    unheard.end(MANY);
}

/// Output of a hook: very short lines, and lines full of characters to escape.
#[test]
fn what_a_hook_writes_takes_no_more_room_in_the_log_than_it_may() {
    for (format, text) in [("text", "y"), ("json", "y"), ("json", r#""\\"\\"\\"\\"\\"\\"\\""#)] {
        let home = Home::with_hook(&format!(
            r#"yes '{text}' | head -c 600000 >&2; printf '{{"instance_id":"%s"}}' "$(fake_id)""#
        ));
        let daemon = home.start_with(&["--log-format", format]);
        assert!(daemon.deliver(&create("ob-1")).id().starts_with("i-"));
        let log = daemon.stop();
        let written: usize =
            log.lines().filter(|line| line.contains("spid::hook")).map(|line| line.len() + 1).sum();
        assert!((50_000..=256 * 1024 + 1_000).contains(&written), "{format} {text}: {written}");
        assert!(log.contains("more to standard error than the log limit"), "{format} {text}");
    }
}

/// Lines before the daemon gives up reach a terminal.
#[test]
fn what_a_daemon_says_before_it_gives_up_is_read() {
    let home = Home::with_log_hook();
    home.configure("nonsense = 1");
    let config = home.path("spid.toml").display().to_string();
    let ran = home.run(&["serve", "--config", &config]);
    assert_eq!(ran.code, 78, "{}", ran.stderr);
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("nonsense"), "{}", ran.stderr);
}
