//! `http_main` as a real program: every action and result, wrong requests, and answers that survive `kill -9`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::example_http::{Example, Kill, PublicListener, SECRET, deliver_and_kill};
use super::hook_main_exec::{create_of, every_action_and_result, results_in_the_store};
use crate::support::daemon::{self, Home, SOON, about, create, renew, until, upgrade};
use crate::support::examples;
use crate::support::executable::executable;
use crate::support::hook::{refused, run_hook};
use crate::support::said::Said;
use serde_json::Value;
use spid::internals::hooks::http::{HttpHook, HttpHookOptions};
use spid::internals::hooks::runner::NamedHook;
use spid_hook::time::Clock;
use spid_hook::webhook::WebhookKeys;
use spid_hook::{AttemptResult, Secret};

const ANSWER_KEY: &str = "0707070707070707070707070707070707070707070707070707070707070707";
const OTHER_SECRET: &str = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXI=";

fn keys(secret: &str) -> WebhookKeys {
    WebhookKeys::read(&Secret::new(secret)).unwrap()
}

/// The program, with what it writes to standard error.
struct Server {
    child: Child,
    address: SocketAddr,
    stderr: Said,
}

fn command(root: &Path, answer_key: Option<&str>) -> Command {
    let mut command = Command::new(examples::built("http_main"));
    command.arg("127.0.0.1:0").arg(root).env("SPID_HOOK_SECRET", format!("{OTHER_SECRET} {SECRET}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match answer_key {
        Some(key) => command.env("HOOK_ANSWER_KEY", key),
        None => command.env_remove("HOOK_ANSWER_KEY"),
    };
    command
}

impl Server {
    fn start(root: &Path, answer_key: Option<&str>) -> Server {
        let mut child = command(root, answer_key).spawn().unwrap();
        let (stdout, stderr) =
            (Said::by(child.stdout.take().unwrap()), Said::by(child.stderr.take().unwrap()));
        let line = stdout.line();
        let address =
            line.strip_prefix("listening on http://").unwrap().trim_end_matches('/').parse().unwrap();
        Server { child, address, stderr }
    }

    fn hook(&self) -> NamedHook {
        let url = format!("http://{}/provision", self.address).parse().unwrap();
        let hook = HttpHook::new(url, keys(SECRET), HttpHookOptions::default());
        NamedHook::new("http", hook).timeout(Duration::from_secs(60))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn end(mut self) -> ExitStatus {
        until("the server ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_action_and_result_reaches_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let server = Server::start(root, None);
    let warning = server.stderr.line();
    assert!(warning.contains("answers are not kept: no answer key is given"), "{warning}");
    every_action_and_result(root, || server.hook()).await;
    let run = |sku: &str| run_hook(server.hook(), create_of(sku));
    assert_eq!(run("discontinued").await, refused("this edition is not sold any more"));
    assert_eq!(
        run("enterprise").await,
        AttemptResult::Pending { note: "sales approves enterprise orders".into() }
    );
    std::fs::write(root.join("maintenance"), "").unwrap();
    let (error, after) = ("the hook answered 503".to_owned(), Some(Duration::from_secs(1)));
    assert_eq!(run("basic").await, AttemptResult::Retry { error, after });
    assert!(!root.join("answers").exists(), "without a key nothing is kept");
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_missing_is_an_alert() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let server = Server::start(&root, None);
    std::fs::remove_dir(&root).unwrap();
    let error = "the hook answered 424".to_owned();
    assert_eq!(
        run_hook(server.hook(), create_of("basic")).await,
        AttemptResult::Misconfigured { error, after: None }
    );
}

/// A POST of a call, with these header fields.
fn post(body: &str, id: &str, timestamp: i64, signature: &str) -> String {
    format!(
        "POST /provision HTTP/1.1\r\nhost: hook.example\r\nwebhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\n\
         webhook-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_request_that_is_not_genuine_is_denied_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), Some(ANSWER_KEY));
    let status = |request: &str| daemon::exchange(server.address, request).unwrap().status;
    let (body, now) = (serde_json::to_string(&create_of("basic")).unwrap(), Clock::System.now().as_second());
    let signed = |secret: &str, id: &str, at: i64, body: &str| keys(secret).sign(id, at, body.as_bytes());
    let genuine = signed(SECRET, "key-1", now, &body);
    let strange = signed("whsec_ZXZpbC1ldmlsLWV2aWwtZXZpbC1ldmlsLWV2aWw=", "key-1", now, &body);
    let old = signed(SECRET, "key-1", now - 301, &body);
    for (request, expected) in [
        (post(&body, "key-1", now, &strange), 401),
        (post(&body, "key-1", now, ""), 401),
        (post(&body, "key-2", now, &genuine), 401),
        (post(&body, "key-1", now + 1, &genuine), 401),
        (post(&body.replace("basic", "other"), "key-1", now, &genuine), 401),
        (post(&body, "key-1", now - 301, &old), 401),
        (daemon::post_text("/provision", &body), 401),
        ("GET / HTTP/1.1\r\nhost: hook.example\r\n\r\n".to_owned(), 405),
        ("POST / HTTP/1.1\r\nhost: hook.example\r\ncontent-length: 99999999\r\n\r\n".to_owned(), 413),
        (post("hello", "key-1", now, &signed(SECRET, "key-1", now, "hello")), 400),
        // Signed, but the id of another call.
        (post(&body, "key-2", now, &signed(SECRET, "key-2", now, &body)), 400),
    ] {
        assert_eq!(status(&request), expected, "{request}");
    }
    let long = format!("POST / HTTP/1.1\r\nhost: hook.example\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    assert!(daemon::exchange(server.address, &long).is_none_or(|answer| answer.status == 431));
    // A body that never ends does not disturb others.
    let mut half = daemon::connect(server.address).unwrap();
    let request = post(&body, "key-1", now, &genuine);
    half.write_all(&request.as_bytes()[..request.len() - 10]).unwrap();
    assert!(!folder.path().join("biz-1").exists(), "nothing ran");

    assert_eq!(status(&post(&body, "key-1", now, &genuine)), 200);
    let other = signed(OTHER_SECRET, "key-1", now, &body);
    assert_eq!(status(&post(&body, "key-1", now, &other)), 200, "either secret is accepted");
    let unknown = body.replace(r#""action":"create""#, r#""action":"teleport""#);
    let request = post(&unknown, "key-1", now, &signed(SECRET, "key-1", now, &unknown));
    let answer = daemon::exchange(server.address, &request).unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (422, r#"{"refuse":"the hook does not support teleport"}"#)
    );
    drop(half);
}

/// A script that starts the example with its answer key, for a test that starts it again and again.
fn with_key(home: &Home) -> PathBuf {
    let script = home.path("http_main.sh");
    let program = examples::built("http_main");
    let text = format!("#!/bin/sh\nHOOK_ANSWER_KEY={ANSWER_KEY} exec '{}' \"$@\"\n", program.display());
    executable(&script, &text);
    script
}

#[test]
fn an_answer_survives_kill_9_and_a_torn_line() {
    let home = Home::empty();
    let root = home.path("tenants");
    std::fs::create_dir(&root).unwrap();
    let answers = root.join("answers");
    let example = Example { program: with_key(&home), arguments: vec!["127.0.0.1:0".into(), root.clone()] };
    let (front, url) = PublicListener::start(example);
    std::fs::write(home.path("hook-secret"), format!("{SECRET}\n")).unwrap();
    let secret = home.path("hook-secret").display().to_string();
    let hook = format!(r#"http = {{ url = "{url}", secret = {{ file = "{secret}" }}, {SOON} }}"#);
    home.configure(&home.config("60s", &hook));
    let daemon = home.start();

    let mut password = String::new();
    let made = deliver_and_kill(Kill::BeforeTheAnswer, &front, &daemon, &create("ob-1"), || {
        password = std::fs::read_to_string(root.join("ob-1/password")).unwrap();
        let kept = std::fs::read(&answers).unwrap();
        assert_eq!(answers.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        daemon::assert_clean("the file of answers", &kept, &[&password]);
        // What a power cut might leave, and a hook that would not do it again.
        std::fs::write(&answers, [kept.as_slice(), &kept[..kept.len() / 2]].concat()).unwrap();
        std::fs::write(root.join("maintenance"), "").unwrap();
    });
    assert_eq!(made.json()["appInfo"]["password"], Value::from(password.as_str()));
    assert_eq!(std::fs::read_to_string(&answers).unwrap().lines().count(), 1, "the torn line is gone");
    std::fs::remove_file(root.join("maintenance")).unwrap();

    let id = made.id();
    assert!(daemon.deliver(&upgrade(&id, "pro")).success());
    let expired = deliver_and_kill(Kill::AtTheCall, &front, &daemon, &about("expiredInstance", &id), || {});
    assert!(expired.success());
    assert_eq!(std::fs::read_to_string(root.join("ob-1/state")).unwrap(), "frozen");
    assert!(daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    assert!(!root.join("ob-1").exists());
    results_in_the_store(&home, &daemon);
    daemon::assert_clean("the daemon's stderr", daemon.log().as_bytes(), &[&password]);
}

#[test]
fn a_wrong_answer_key_and_a_second_server_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let server = Server::start(root, Some(ANSWER_KEY));
    let failed = |key: &str| {
        let mut child = command(root, Some(key)).spawn().unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (child.wait().unwrap().code(), text)
    };
    let (code, text) = failed(ANSWER_KEY);
    assert!(code == Some(75) && text.contains("is in use by another process"), "{code:?} {text}");
    let (body, now) = (serde_json::to_string(&create_of("basic")).unwrap(), Clock::System.now().as_second());
    let request = post(&body, "key-1", now, &keys(SECRET).sign("key-1", now, body.as_bytes()));
    assert_eq!(daemon::exchange(server.address, &request).unwrap().status, 200);
    server.signal(rustix::process::Signal::KILL);
    server.end();
    let (code, text) = failed(&ANSWER_KEY.replace("07", "08"));
    assert!(code == Some(78) && text.contains("can be decrypted with this key"), "{code:?} {text}");
    assert_eq!(
        std::fs::read_to_string(root.join("answers")).unwrap().lines().count(),
        1,
        "nothing is deleted"
    );
}
