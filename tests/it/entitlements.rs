//! The listener for the seller's application: entitlements, lists, tokens, and waiting for a change.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, Home, about, assert_clean, create, output_of, renew, until};
use crate::support::examples::{self, Kept};
use crate::support::machine::{lacks, skipped};

const TOKEN: &str = "fake-canary-app-token-5P";
const OTHER: &str = "fake-canary-other-token-6R";

/// Fails if a file named after the action says so. Otherwise it succeeds.
const HOOK: &str = r#"[ -e "fail-$SPID_ACTION" ] && exit 65; printf '{}'"#;

/// A home with an application's listener: the token `backend` of the first endpoint, and `other` of the second.
fn home(more: &str) -> Home {
    let home = Home::with_hook(HOOK);
    let folder = home.path("").display().to_string();
    std::fs::write(home.path("app-token"), TOKEN).unwrap();
    std::fs::write(home.path("other-token"), OTHER).unwrap();
    std::fs::write(home.path("second-key"), "fake-second-isv-key-8T").unwrap();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let app = format!(
        r#"
[app]
listen = "127.0.0.1:0"
tokens = [
  {{ name = "backend", file = "{folder}/app-token", accounts = ["alibaba-cn"], roles = ["entitlements"] }},
  {{ name = "other", file = "{folder}/other-token", accounts = ["second"] }},
]
{more}

[[endpoint]]
name = "second"
account = "second"
path = "/second"
dialect = "alibaba"
keys = [{{ file = "{folder}/second-key" }}]

[store]"#
    );
    home.configure(&text.replace("[store]", &app));
    home
}

fn app_of(daemon: &Daemon) -> SocketAddr {
    let ready = daemon.wait_for_log("app=");
    let (_, rest) = ready.split_once("app=").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// A whole answer: status, headers in lower case, body.
#[derive(Debug)]
struct Whole {
    status: u16,
    head: String,
    body: String,
}

impl Whole {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<String> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))?;
        Some(line.trim().to_owned())
    }
}

fn ask(app: SocketAddr, target: &str, headers: &str) -> Whole {
    let mut socket = TcpStream::connect(app).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Whole { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn entitlement(app: SocketAddr, name: &str) -> Value {
    let answer = ask(app, &format!("/v1/entitlements/{name}"), &bearer(TOKEN));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn an_instance_s_life_is_told_as_it_is_committed() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    assert_eq!(ask(app, "/v1/entitlements/biz-1", &bearer(TOKEN)).status, 404);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    let active = entitlement(app, "biz-1");
    assert_eq!((&active["entitled"], &active["reason"]), (&true.into(), &"active".into()), "{active}");
    assert_eq!((&active["instance"], &active["account"]), (&"biz-1".into(), &"alibaba-cn".into()));
    assert!(active["expires_on"].is_string() && active["grace_until"].is_null(), "{active}");

    // Frozen, and a renewal that the hook refuses: the customer has paid and is locked out, and the answer says so.
    assert!(daemon.deliver(&about("expiredInstance", "biz-1")).success());
    let frozen = entitlement(app, "biz-1");
    assert_eq!((&frozen["entitled"], &frozen["reason"]), (&false.into(), &"frozen".into()), "{frozen}");
    assert_eq!(frozen["pending"], serde_json::json!([]));
    assert!(daemon.deliver(&renew("biz-1", "2090-01-01 00:00:00")).success());
    assert_eq!(entitlement(app, "biz-1")["entitled"], true);
    assert!(daemon.deliver(&about("releaseInstance", "biz-1")).success());
    let released = entitlement(app, "biz-1");
    assert_eq!((&released["entitled"], &released["reason"]), (&false.into(), &"released".into()));
}

#[test]
fn an_overrun_ends_when_its_time_is_over() {
    // The term ended long ago, and no notice came: with the longest overrun the customer is still entitled.
    let ended = || create("biz-1").with("expiredOn", "2026-01-01 00:00:00");
    for (overrun, entitled, reason) in [("36500d", true, "overrun"), ("1h", false, "term-over")] {
        let home = home(&format!("overrun = \"{overrun}\""));
        let daemon = home.start();
        assert_eq!(daemon.deliver(&ended()).id(), "biz-1");
        let answer = entitlement(app_of(&daemon), "biz-1");
        assert_eq!((&answer["entitled"], &answer["reason"]), (&entitled.into(), &reason.into()), "{answer}");
        assert!(answer["grace_until"].is_string(), "{answer}");
    }
}

#[test]
fn a_token_sees_its_accounts_and_nothing_of_others() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    for target in
        ["/v1/entitlements/biz-1", "/v1/instances", "/v1/entitlements?buyer=10001", "/v1/openapi.json"]
    {
        let none = ask(app, target, "");
        assert_eq!((none.status, none.json()["code"].as_str()), (401, Some("no-token")), "{target}");
        assert_eq!(none.header("www-authenticate").as_deref(), Some("bearer realm=\"spid\""));
        let wrong = ask(app, target, &bearer("fake-canary-wrong-token"));
        assert_eq!((wrong.status, wrong.json()["code"].as_str()), (401, Some("wrong-token")), "{target}");
        let twice = format!("{}{}", bearer(TOKEN), bearer("fake"));
        assert_eq!(ask(app, target, &twice).status, 401, "{target}");
    }
    // The same answer for a name of another account and for one that does not exist.
    let foreign = ask(app, "/v1/entitlements/biz-1", &bearer(OTHER));
    let unknown = ask(app, "/v1/entitlements/biz-1x", &bearer(OTHER));
    assert_eq!((foreign.status, unknown.status), (404, 404));
    assert_eq!(foreign.body.replace("biz-1", ""), unknown.body.replace("biz-1x", ""));
    assert_eq!(ask(app, "/v1/instances", &bearer(OTHER)).json()["instances"], serde_json::json!([]));
    let buyer = create("biz-1").0.into_iter().find(|(name, _)| name == "aliUid").unwrap().1;
    let by_buyer = format!("/v1/entitlements?buyer={buyer}");
    assert_eq!(ask(app, &by_buyer, &bearer(OTHER)).json()["entitlements"], serde_json::json!([]));
    assert_eq!(ask(app, &by_buyer, &bearer(TOKEN)).json()["entitlements"][0]["instance"], "biz-1");
    let account = ask(app, "/v1/instances?account=alibaba-cn", &bearer(OTHER));
    assert_eq!((account.status, account.json()["code"].as_str()), (403, Some("account")));
    assert_clean("the log", daemon.log().as_bytes(), &[TOKEN, OTHER, "fake-canary-wrong-token"]);
}

#[test]
fn buyers_and_tenants_find_what_is_live() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    for name in ["biz-1", "biz-2", "biz-3"] {
        assert_eq!(daemon.deliver(&create(name)).id(), name);
    }
    assert!(daemon.deliver(&about("expiredInstance", "biz-3")).success());
    assert!(daemon.deliver(&about("releaseInstance", "biz-3")).success());
    home.look(&["instances", "claim", "biz-2", "--tenant", "ten-ant", "--who", "t", "--why", "test"]);
    let names = |target: &str| {
        let answer = ask(app, target, &bearer(TOKEN)).json();
        let list = answer["entitlements"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
        list.into_iter().map(|one| one["instance"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let buyer = create("biz-1").0.into_iter().find(|(name, _)| name == "aliUid").unwrap().1;
    assert_eq!(names(&format!("/v1/entitlements?buyer={buyer}")), ["biz-2", "biz-1"]);
    assert_eq!(names("/v1/entitlements?tenant=ten-ant"), ["biz-2"]);
    assert_eq!(names("/v1/entitlements"), ["biz-2", "biz-1"]);
    assert_eq!(names(&format!("/v1/entitlements?tenant=ten-ant&buyer={buyer}")), ["biz-2"]);
    assert!(names("/v1/entitlements?tenant=ten-ant&buyer=other").is_empty());
    // A misspelled filter must not show everything.
    for wrong in ["by=1", "buyer=", "tenant"] {
        assert_eq!(ask(app, &format!("/v1/entitlements?{wrong}"), &bearer(TOKEN)).status, 400, "{wrong}");
    }
    let page = ask(app, "/v1/instances?limit=2", &bearer(TOKEN)).json();
    assert_eq!(page["instances"].as_array().unwrap().len(), 2);
    let rest = format!("/v1/instances?limit=2&before={}", page["next"].as_str().unwrap());
    assert_eq!(ask(app, &rest, &bearer(TOKEN)).json()["instances"][0]["instance"], "biz-1");
    let released = ask(app, "/v1/instances?state=released", &bearer(TOKEN)).json();
    assert_eq!(released["instances"][0]["instance"], "biz-3");
}

#[test]
fn a_request_that_waits_is_woken_by_the_commit_and_by_commands_of_an_operator() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    let first = ask(app, "/v1/entitlements/biz-1", &bearer(TOKEN));
    let tag = first.header("etag").unwrap();
    let with_tag = format!("{}if-none-match: {tag}\r\n", bearer(TOKEN));
    let unchanged = ask(app, "/v1/entitlements/biz-1", &with_tag);
    assert_eq!((unchanged.status, unchanged.body.as_str()), (304, ""));
    assert_eq!(unchanged.header("etag").unwrap(), tag);

    // The answer changes more than once: a callback that is accepted is owed, and then carried out.
    let changed_to = move |tag: String, member: &'static str, value: &'static str| {
        std::thread::spawn(move || {
            let mut tag = tag;
            loop {
                let headers = format!("{}if-none-match: {tag}\r\n", bearer(TOKEN));
                let answer = ask(app, "/v1/entitlements/biz-1?wait=60s", &headers);
                assert_eq!(answer.status, 200, "nothing has changed within a minute: {answer:?}");
                tag = answer.header("etag").unwrap();
                if answer.json()[member] == value {
                    return tag;
                }
            }
        })
    };
    let waiting = changed_to(tag, "state", "frozen");
    // Commits of other instances must not answer it.
    assert_eq!(daemon.deliver(&create("biz-2")).id(), "biz-2");
    assert!(daemon.deliver(&about("expiredInstance", "biz-1")).success());
    let tag = waiting.join().unwrap();

    // A command of an operator commits in a process of its own.
    let waiting = changed_to(tag, "tenant", "t-1");
    home.look(&["instances", "claim", "biz-1", "--tenant", "t-1", "--who", "t", "--why", "test"]);
    waiting.join().unwrap();
    for wrong in ["61s", "-1", "1.5", "soon"] {
        let target = format!("/v1/entitlements/biz-1?wait={wrong}");
        assert_eq!(ask(app, &target, &bearer(TOKEN)).status, 400, "{wrong}");
    }
}

#[test]
fn a_stop_answers_those_who_wait() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    let tag = ask(app, "/v1/entitlements/biz-1", &bearer(TOKEN)).header("etag").unwrap();
    let headers = format!("{}if-none-match: {tag}\r\n", bearer(TOKEN));
    let mut socket = TcpStream::connect(app).unwrap();
    let request = format!(
        "GET /v1/entitlements/biz-1?wait=60s HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    // A second connection shows that the listener has taken the first.
    assert_eq!(ask(app, "/v1/entitlements/biz-1", &bearer(TOKEN)).status, 200);
    let log = daemon.stop();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 304 "), "{text:?}: {log}");
}

#[test]
fn a_reload_changes_the_tokens() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    std::fs::write(home.path("app-token"), "fake-canary-new-token-7S").unwrap();
    daemon.reload();
    until("the new token is good", || {
        (ask(app, "/v1/instances", &bearer("fake-canary-new-token-7S")).status == 200).then_some(())
    });
    assert_eq!(ask(app, "/v1/instances", &bearer(TOKEN)).status, 401);
}

#[test]
fn every_answer_is_in_the_document_that_is_served() {
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    let document = ask(app, "/v1/openapi.json", &bearer(TOKEN)).json();
    assert_eq!(document["openapi"], "3.1.0");
    let buyer = create("biz-1").0.into_iter().find(|(name, _)| name == "aliUid").unwrap().1;
    let asked = [
        ("/v1/entitlements/{name}", "/v1/entitlements/biz-1".to_owned()),
        ("/v1/entitlements", format!("/v1/entitlements?buyer={buyer}")),
        ("/v1/instances", "/v1/instances".to_owned()),
    ];
    for (path, target) in asked {
        let answer = ask(app, &target, &bearer(TOKEN)).json();
        let pointer =
            format!("/paths/{}/get/responses/200/content/application~1json/schema", path.replace('/', "~1"));
        let mut schema =
            document.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}: {document}")).clone();
        // The references of the document are below `components`, so they move along.
        schema.as_object_mut().unwrap().insert("components".to_owned(), document["components"].clone());
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let faults: Vec<String> = validator.iter_errors(&answer).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{target}: {faults:?} {answer}");
        let refused = ask(app, &format!("{target}x/y"), "");
        let responses = &document["paths"][path]["get"]["responses"];
        assert!(responses.get(refused.status.to_string()).is_some(), "{refused:?}");
    }
}

#[test]
fn a_wrong_table_is_refused_with_its_reason() {
    let home = home("");
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let cases = [
        (text.replace("accounts = [\"alibaba-cn\"], ", ""), "name the accounts"),
        (text.replace("accounts = [\"second\"]", "accounts = [\"secnd\"]"), "did you mean `second`?"),
        (
            text.replace("roles = [\"entitlements\"]", "roles = [\"entitlement\"]"),
            "did you mean `entitlements`?",
        ),
        (text.replace("name = \"other\"", "name = \"backend\""), "`backend` is the name of an earlier token"),
        (text.replace("other-token", "app-token"), "this token is the same as `backend`"),
    ];
    for (config, reason) in cases {
        home.configure(&config);
        let ran = home.run(&["check-config", "--config", "spid.toml"]);
        assert_eq!(ran.code, 78, "{reason}: {ran:?}");
        assert!(ran.stderr.contains(reason), "{reason}: {ran:?}");
    }
    std::fs::write(home.path("app-token"), "short").unwrap();
    home.configure(&text);
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert!(ran.stderr.contains("fewer than 16 bytes") && !ran.stderr.contains("short"), "{ran:?}");
}

// ---- The examples -----------------------------------------------------------------------------------

/// Runs an example that asks the listener: it survives a `kill -9` of the daemon and tells the change behind it.
fn example_survives(program: &str, source: &str) {
    let home = home("");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let app = format!("[app]\nlisten = \"127.0.0.1:{port}\"");
    home.configure(&text.replace("[app]\nlisten = \"127.0.0.1:0\"", &app));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    let mut command = Kept::command(Path::new(program), "TERM");
    command.arg(examples::source(source)).arg(format!("http://127.0.0.1:{port}"));
    command.arg(home.path("app-token")).arg("biz-1").stdout(Stdio::piped());
    let mut example = Kept::start(command);
    assert_eq!(example.line(), "biz-1: entitled (active)");
    daemon.kill();
    let daemon = home.start();
    assert!(daemon.deliver(&about("expiredInstance", "biz-1")).success());
    assert_eq!(example.line(), "biz-1: not entitled (frozen)");
    assert!(daemon.deliver(&renew("biz-1", "2090-01-01 00:00:00")).success());
    assert_eq!(example.line(), "biz-1: entitled (active)");
    example.kill();
}

#[test]
fn the_python_example_survives_a_restart_and_tells_changes() {
    if !lacks("python3", "python3") {
        example_survives("python3", "entitlement.py");
    }
}

#[test]
fn the_java_example_survives_a_restart_and_tells_changes() {
    // A source file is run by the JDK, not by the runtime alone.
    if !lacks("javac", "default-jdk-headless") {
        example_survives("java", "Entitlement.java");
    }
}

#[test]
fn schemathesis_finds_no_answer_that_the_document_lacks() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/cache/schemathesis");
    if !packages.join("schemathesis").exists() {
        return skipped("with `pip install --target .ci/cache/schemathesis schemathesis==4.32.5`");
    }
    let home = home("");
    let daemon = home.start();
    let app = app_of(&daemon);
    for name in ["biz-1", "biz-2"] {
        assert_eq!(daemon.deliver(&create(name)).id(), name);
    }
    let document = ask(app, "/v1/openapi.json", &bearer(TOKEN)).body;
    std::fs::write(home.path("openapi.json"), document).unwrap();
    let mut command = Command::new("python3");
    command.args([
        "-m",
        "schemathesis.cli",
        "run",
        "openapi.json",
        "--checks",
        "all",
        "--max-examples",
        "40",
    ]);
    command.args(["--seed", "20261130", "--url", &format!("http://{app}")]);
    command.args(["-H", &format!("Authorization: Bearer {TOKEN}")]).current_dir(home.path(""));
    let output = output_of({
        command.env("PYTHONPATH", &packages);
        command
    });
    let report = String::from_utf8_lossy(&output.stdout).replace(TOKEN, "TOKEN");
    assert!(output.status.success(), "{report}");
    assert!(report.contains("Tested: 4"), "{report}");
}
