//! `exec_main` as a real program: every action and every result, and a life behind the daemon.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::daemon::{self, Home, SOON, about, create, renew, upgrade};
use crate::support::examples;
use crate::support::hook::{call, call_for, done, instance, refused, run_hook};
use jiff::SignedDuration;
use serde_json::{Value, json};
use spid::internals::hooks::exec::ExecHook;
use spid::internals::hooks::runner::NamedHook;
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::{Instance, State};
use spid_hook::time::Clock;
use spid_hook::{AttemptResult, Call};

fn hook(root: &Path) -> NamedHook {
    let program = examples::built("exec_main").display().to_string();
    NamedHook::new("exec", ExecHook::new([program, root.display().to_string()]))
        .timeout(Duration::from_secs(60))
}

/// The call with a deadline that is still to come.
pub(crate) fn due(call: Call) -> Call {
    let mut value = serde_json::to_value(call).unwrap();
    value["deadline"] = json!(Clock::System.now() + SignedDuration::from_mins(10));
    serde_json::from_value(value).unwrap()
}

/// A create for this SKU.
pub(crate) fn create_of(sku: &str) -> Call {
    let mut callback = Callback::new(Action::Create, "createInstance");
    callback.sku = Some(sku.into());
    due(call_for(&callback, &instance(), "key-1"))
}

/// Every action against a hook over this folder, and every result that the hook can have.
pub(crate) async fn every_action_and_result(root: &Path, hook: impl Fn() -> NamedHook) {
    let AttemptResult::Done(made) = run_hook(hook(), create_of("basic")).await else { panic!("not created") };
    assert_eq!(made.instance_id.as_deref(), Some("biz-1"));
    assert_eq!(made.app["password"].expose(), std::fs::read_to_string(root.join("biz-1/password")).unwrap());
    for action in [Action::Renew, Action::RefundRenew, Action::Upgrade, Action::Expire, Action::Payment] {
        assert_eq!(run_hook(hook(), due(call(action))).await, done(), "{action}");
    }
    assert_eq!(std::fs::read_to_string(root.join("biz-1/state")).unwrap(), "frozen");
    let active = Instance { state: State::Active, ..instance() };
    let sign_on = call_for(&Callback::new(Action::SignOn, "x"), &active, "key-2");
    let AttemptResult::Done(signed_on) = run_hook(hook(), due(sign_on)).await else {
        panic!("not signed on")
    };
    let redirect = signed_on.redirect.unwrap();
    assert!(redirect.expose().starts_with("https://biz-1.app.example/login?ticket="));
    let AttemptResult::Done(other) = run_hook(hook(), due(call(Action::Other))).await else {
        panic!("not answered")
    };
    assert_eq!(other.body.unwrap().expose(), r#"{"success":true}"#);
    let frozen = call_for(&Callback::new(Action::SignOn, "x"), &instance(), "key-3");
    assert_eq!(run_hook(hook(), due(frozen)).await, refused("the instance is not active"));
    assert_eq!(run_hook(hook(), due(call(Action::Release))).await, done());
    assert!(!root.join("biz-1").exists());
}

#[tokio::test]
async fn every_action_and_result_reaches_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    every_action_and_result(root, || hook(root)).await;
    let refused_order = run_hook(hook(root), create_of("discontinued")).await;
    assert_eq!(refused_order, refused("this edition is not sold any more"));
    let pending = run_hook(hook(root), create_of("enterprise")).await;
    assert_eq!(pending, AttemptResult::Pending { note: "sales approves enterprise orders".into() });
    std::fs::write(root.join("maintenance"), "").unwrap();
    let error = "the hook exited with code 75: the platform is in maintenance".to_owned();
    let retry = AttemptResult::Retry { error, after: Some(Duration::from_secs(1)) };
    assert_eq!(run_hook(hook(root), create_of("basic")).await, retry);
    let missing = root.join("missing");
    let AttemptResult::Retry { error, after: None } = run_hook(hook(&missing), create_of("basic")).await
    else {
        panic!("not a retry")
    };
    assert_eq!(error, format!("the hook exited with code 78: {} is not a folder", missing.display()));
}

/// Runs the program with this text on standard input.
fn ran(root: &Path, input: &str) -> Output {
    let mut command = Command::new(examples::built("exec_main"));
    command.arg(root).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_wrong_input_has_its_exit_code_and_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut call = serde_json::to_value(create_of("basic")).unwrap();
    let torn = call.to_string();
    let torn = &torn[..torn.len() / 2];
    call["schema"] = json!("spid.hook/2");
    for (input, code, words) in [
        ("", 64, "standard input is empty; this program is an exec hook"),
        ("\n", 64, "standard input is empty; this program is an exec hook"),
        ("hello", 75, "the call is not JSON: line 1, column 1"),
        (torn, 75, "the call is not JSON"),
        (&call.to_string(), 78, "the schema of the call is `spid.hook/2`; this program reads `spid.hook/1`"),
    ] {
        let output = ran(folder.path(), input);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(code), b"".as_slice()),
            "{stderr}"
        );
        assert!(stderr.contains(words), "{stderr}");
    }
    call["schema"] = json!("spid.hook/1");
    call["action"] = json!("teleport");
    let output = ran(folder.path(), &call.to_string());
    assert_eq!(output.status.code(), Some(65));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, json!({"refuse": "the hook does not support teleport"}));
}

#[test]
fn the_example_lives_a_whole_life_behind_the_daemon() {
    let home = Home::empty();
    let root = home.path("tenants");
    std::fs::create_dir(&root).unwrap();
    let command = [examples::built("exec_main").display().to_string(), root.display().to_string()];
    home.configure(&home.config("60s", &format!("exec = {{ command = {command:?}, {SOON} }}")));
    let daemon = home.start();

    std::fs::write(root.join("maintenance"), "").unwrap();
    let (address, order) = (daemon.address, create("ob-1").signed());
    let delivery = std::thread::spawn(move || daemon::get(address, &order));
    daemon.wait_for_log("the platform is in maintenance");
    std::fs::remove_file(root.join("maintenance")).unwrap();
    delivery.join().unwrap();
    let made = daemon.deliver_until_done(&create("ob-1"));
    let password = std::fs::read_to_string(root.join("ob-1/password")).unwrap();
    assert_eq!(made.json()["appInfo"]["password"], Value::from(password.as_str()));
    assert_eq!(daemon.deliver(&create("ob-1")).json()["appInfo"], made.json()["appInfo"]);

    let id = made.id();
    for (request, file, content) in [
        (upgrade(&id, "pro"), "sku", "pro"),
        (about("expiredInstance", &id), "state", "frozen"),
        (renew(&id, "2031-01-01 00:00:00"), "state", "active"),
    ] {
        assert!(daemon.deliver(&request).success());
        assert_eq!(std::fs::read_to_string(root.join("ob-1").join(file)).unwrap(), content);
    }
    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    assert!(!root.join("ob-1").exists());
    results_in_the_store(&home, &daemon);
    daemon::assert_clean("the daemon's stderr", daemon.log().as_bytes(), &[&password]);
}

/// A refusal and pending work, as the store has them.
pub(crate) fn results_in_the_store(home: &Home, daemon: &daemon::Daemon) {
    daemon.deliver(&create("ob-refused").with("skuId", "discontinued"));
    daemon.deliver(&create("ob-pending").with("skuId", "enterprise"));
    home.wait_until_idle();
    let jobs = home.list(&["jobs", "list"]);
    for (state, note) in
        [("refused", "this edition is not sold any more"), ("pending", "sales approves enterprise orders")]
    {
        let found = jobs.iter().any(|job| job["state"] == state && job["note"] == note);
        assert!(found, "{state}: {jobs:#?}");
    }
}
