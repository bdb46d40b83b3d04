//! The examples for claims and for orders that need approval, with the real daemon. Each hook is killed once after
//! its work was done and before it answered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::contract::Contract;
use crate::support::daemon::{self, Home, Line, Ran, about, create, encode, renew, until};
use crate::support::examples;
use crate::support::machine::lacks;
use crate::support::said::Said;
use serde_json::Value;

/// Runs the hook behind it, stores call and answer, and dies the first time an action is done.
const DIES_ONCE: &str = r#"
name=$SPID_ACTION-$SPID_IDEMPOTENCY_KEY-$SPID_ATTEMPT
cat > "call-$name.json"
"$@" < "call-$name.json" > "answer-$name.json" || { code=$?; cat "answer-$name.json"; exit $code; }
[ -e "died-$SPID_ACTION" ] || { : > "died-$SPID_ACTION"; kill -KILL $$; }
cat "answer-$name.json"
"#;

const EXPIRE: &str = "expiredInstance";
const RELEASE: &str = "releaseInstance";

/// A configuration with an example as its hook, in its own working folder.
fn home(hook: &str, arguments: &[&str]) -> Home {
    let home = Home::empty();
    let folder = home.path("").display().to_string();
    std::fs::create_dir(home.path("app")).unwrap();
    std::fs::write(home.path("app/dies-once.sh"), DIES_ONCE).unwrap();
    let mut command =
        vec!["sh".to_owned(), "./dies-once.sh".to_owned(), examples::source(hook).display().to_string()];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let hook = format!(
        r#"exec = {{ command = {command:?}, working_dir = "{folder}/app", retry = ["1s", "1s", "2s"] }}"#
    );
    home.configure(&home.config("5s", &hook));
    home
}

/// A command of an example, as spid's user would run it.
fn app(home: &Home, hook: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    let spid = Path::new(env!("CARGO_BIN_EXE_spid")).parent().unwrap();
    let path = std::env::join_paths(
        std::iter::once(spid.to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    command.arg(examples::source(hook)).args(arguments).current_dir(home.path("app"));
    command.env_clear().env("PATH", path.unwrap()).env("SPID_CONFIG", home.path("spid.toml"));
    command
}

fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Calls of this action to the hook, in order. All calls and answers are checked with the schema.
fn calls(home: &Home, action: &str) -> Vec<Value> {
    let contract = Contract::new();
    let read = |file: &Path| -> Value { serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() };
    let mut files: Vec<_> =
        std::fs::read_dir(home.path("app")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut calls = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with(&format!("call-{action}-")) {
            calls.push(read(&file));
            contract.check_call(name, calls.last().unwrap());
        } else if name.starts_with(&format!("answer-{action}-")) {
            contract.check_answer(name, &read(&file));
        }
    }
    calls
}

/// The sign-up page, on a free port.
struct Page {
    child: Child,
    address: SocketAddr,
}

impl Page {
    fn open(home: &Home) -> Page {
        let mut command = app(home, "claim_first.py", &["serve", "0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = Said::by(child.stdout.take().unwrap()).line();
        let address = line.strip_prefix("http://").unwrap().parse().unwrap();
        Page { child, address }
    }

    fn get(&self, path: &str) -> u16 {
        let request = format!("GET {path} HTTP/1.1\r\nhost: app.example\r\n\r\n");
        Line::open(self.address).unwrap().exchange(&request).unwrap().status
    }

    fn claim(&self, path: &str, tenant: &str) -> u16 {
        let form = format!("tenant={}", encode(tenant));
        let request = daemon::post_text(path, &form);
        Line::open(self.address).unwrap().exchange(&request).unwrap().status
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_buyer_signs_up_first_and_every_later_call_knows_it() {
    if lacks("python3", "python3") {
        return;
    }
    let home = home("claim_first.py", &["hook", "https://app.example"]);
    let daemon = home.start();
    let bought = daemon.deliver_until_done(&create("biz-1")).json();
    assert_eq!(bought["instanceId"], "w-biz-1", "a real id, though nobody has signed up");
    let claim_url = bought["info"]["claim_url"].as_str().unwrap();
    let path = claim_url.strip_prefix("https://app.example").unwrap();
    assert_eq!(calls(&home, "create").len(), 2, "the first one was killed; both gave the same token");

    daemon.deliver_until_done(&renew("w-biz-1", "2031-01-01 00:00:00"));
    let unclaimed = home.json(&["instances", "show", "w-biz-1"]);
    assert_eq!((&unclaimed["claimed_at"], &unclaimed["tenant"]), (&Value::Null, &Value::Null));
    assert_eq!(calls(&home, "renew").pop().unwrap()["instance"]["claimed_at"], Value::Null);

    let page = Page::open(&home);
    assert_eq!(page.get(path), 200);
    assert_eq!(page.claim("/claim/guessed", "Mallory"), 403);
    assert_eq!(home.json(&["instances", "show", "w-biz-1"])["claimed_at"], Value::Null, "a look is no claim");
    assert_eq!(page.claim(path, "Ärzte & Co"), 200);
    let claimed = home.json(&["instances", "show", "w-biz-1"]);
    assert!(claimed["claimed_at"].is_string());
    assert_eq!(claimed["tenant"], "Ärzte & Co");
    assert_eq!(page.claim(path, "Ärzte & Co"), 200, "a double click does no harm");
    assert_eq!(page.claim(path, "Mallory"), 403, "one token, one owner");
    assert_eq!(home.json(&["instances", "show", "w-biz-1"]), claimed);
    let acts = home.list(&["acts"]);
    assert_eq!((acts.len(), &acts[0]["who"], &acts[0]["act"]), (1, &"sign-up page".into(), &"claim".into()));

    daemon.deliver_until_done(&about(EXPIRE, "w-biz-1"));
    let told = calls(&home, "expire").pop().unwrap();
    assert_eq!(told["instance"]["tenant"], "Ärzte & Co");
    assert_eq!(told["instance"]["claimed_at"], claimed["claimed_at"]);
    daemon.deliver_until_done(&about(RELEASE, "w-biz-1"));
    assert_eq!(home.state("w-biz-1"), "released");
    assert_eq!(page.claim(path, "Ärzte & Co"), 403, "what is released belongs to nobody");
    // No file of the example contains the token, because the token was valid until its use.
    for (name, bytes) in home.database_files() {
        let token = path.rsplit('/').next().unwrap();
        daemon::assert_clean(&name, &bytes, &[token]);
    }
}

#[test]
fn a_claim_that_spid_could_not_hear_of_is_told_again() {
    if lacks("python3", "python3") {
        return;
    }
    let home = home("claim_first.py", &["hook", "https://app.example"]);
    let daemon = home.start();
    let bought = daemon.deliver_until_done(&create("biz-1")).json();
    let token = bought["info"]["claim_url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let mut deaf = app(&home, "claim_first.py", &["redeem", &token, "Acme"]);
    deaf.env("SPID_CONFIG", home.path("no-such.toml"));
    assert_eq!(run(deaf).code, 75);
    assert_eq!(home.json(&["instances", "show", "w-biz-1"])["claimed_at"], Value::Null);
    let again = run(app(&home, "claim_first.py", &["redeem", &token, "Acme"]));
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(home.json(&["instances", "show", "w-biz-1"])["tenant"], "Acme");
    assert_eq!(run(app(&home, "claim_first.py", &["redeem", "guessed", "Acme"])).code, 65);
}

#[test]
fn an_order_waits_for_approval_and_is_made_once() {
    if lacks("python3", "python3") {
        return;
    }
    let home = home("approval.py", &["hook"]);
    let daemon = home.start();
    let small = daemon.deliver_until_done(&create("biz-0").with("seats", "5"));
    assert_eq!(small.id(), "t-biz-0");
    let large = create("biz-1").with("seats", "500");
    assert_eq!(daemon.deliver(&large).id(), "0");
    let waits = until("it waits for a person", || home.list(&["held", "list"]).pop());
    assert_eq!(
        (&waits["kind"], &waits["reason"]),
        (&"pending-job".into(), &"500 seats: sales approves it".into())
    );
    assert_eq!(daemon.deliver(&large).id(), "0", "not yet, however often it is asked");
    let spent = home.list(&["held", "list"]).pop().unwrap();
    assert_eq!((&spent["deliveries"], &spent["delivery_limit"]), (&2.into(), &120.into()));
    assert!(home.look(&["held", "list"]).contains("2/120"), "the tries it spends are shown");

    assert_eq!(run(app(&home, "approval.py", &["list"])).stdout, "biz-1\t500 seats\n");
    let approved = run(app(&home, "approval.py", &["approve", "biz-1", "sales said yes"]));
    assert_eq!(approved.code, 0, "{}", approved.stderr);
    assert!(approved.stdout.starts_with("the create of biz-1 is complete"), "{}", approved.stdout);
    let told = daemon.deliver(&large).json();
    assert_eq!(told["instanceId"], "t-biz-1");
    assert!(told["appInfo"]["password"].as_str().is_some_and(|password| password.len() > 10));
    assert_eq!(run(app(&home, "approval.py", &["approve", "biz-1", "again"])).code, 65, "nothing is owed");
    assert_eq!(
        calls(&home, "create").len(),
        3,
        "killed once, then both answered; nothing was run for the approval"
    );
    daemon.deliver_until_done(&about(RELEASE, "t-biz-1"));
    assert_eq!(home.state("t-biz-1"), "released");

    let huge = create("biz-2").with("seats", "5000");
    assert_eq!(daemon.deliver(&huge).id(), "0");
    until("it waits for a person", || home.list(&["held", "list"]).pop());
    let refused = run(app(&home, "approval.py", &["refuse", "biz-2", "we do not have that many"]));
    assert_eq!(refused.code, 0, "{}", refused.stderr);
    let job = until("it is refused", || home.list(&["jobs", "list", "--state", "refused"]).pop());
    assert_eq!(job["note"], "we do not have that many");
    assert_eq!(run(app(&home, "approval.py", &["approve", "biz-2", "after all"])).code, 1);
}
