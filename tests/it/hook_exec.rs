//! The `exec` hook with real processes: processes that answer, processes that fail in every way, and the two examples
//! through a whole life.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that panics has said what it found")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::executable::executable;
use crate::support::hook::{CANARY, call, call_for, done, instance, refused, retry, run_hook};
use serde_json::Value;
use spid::hook::Call;
use spid::internals::hooks::exec::ExecHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::observe::limits;
use spid_hook::AttemptResult;
use spid_hook::callback::{Action, Answer, Callback, Expiry, Parameters};
use spid_hook::instance::Instance;

/// A call whose JSON is more than a pipe can hold.
fn big_call() -> Call {
    let mut callback = Callback::new(Action::Expire, "x");
    callback.parameters = Parameters::from_iter([("big".to_owned(), "x".repeat(2 * 1024 * 1024))]);
    call_for(&callback, &instance(), "key-1")
}

fn shell(script: &str) -> NamedHook {
    NamedHook::new("exec", ExecHook::new(["sh", "-c", script])).timeout(Duration::from_secs(60))
}

async fn run(script: &str, action: Action) -> AttemptResult {
    run_hook(shell(script), call(action)).await
}

/// A named pipe that every process of a hook holds open. It ends when the last of them is dead.
struct Lifeline {
    _folder: tempfile::TempDir,
    path: PathBuf,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Lifeline {
    fn new() -> Lifeline {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lifeline");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
        let reader = path.clone();
        std::thread::spawn(move || {
            let file = BufReader::new(std::fs::File::open(reader).unwrap());
            for line in file.lines() {
                sender.send(line.unwrap()).unwrap();
            }
        });
        Lifeline { _folder: folder, path, lines }
    }

    /// Line of a script that makes it, and all its child processes, hold the pipe open.
    fn hold(&self) -> String {
        format!("exec 9>'{}'; echo held >&9;", self.path.display())
    }

    async fn held(&mut self) {
        assert_eq!(self.lines.recv().await.as_deref(), Some("held"));
    }

    async fn is_cut(&mut self) {
        let end = tokio::time::timeout(Duration::from_secs(30), self.lines.recv()).await;
        assert_eq!(end.ok(), Some(None), "a process of the hook is still alive");
    }
}

#[tokio::test]
async fn an_answer_is_done() {
    let script = r#"echo '{"instance_id": "i-7", "app": {"front_end_url": "https://a.example"}}'"#;
    let AttemptResult::Done(answer) = run(script, Action::Create).await else { panic!("not done") };
    assert_eq!(answer.instance_id.as_deref(), Some("i-7"));
    assert_eq!(answer.app["front_end_url"].expose(), "https://a.example");
    assert_eq!(run("echo '{}'", Action::Create).await, done());
}

#[tokio::test]
async fn silence_is_enough_where_nothing_has_to_be_said() {
    for action in [Action::Renew, Action::RefundRenew, Action::Upgrade, Action::Expire, Action::Release] {
        assert_eq!(run("exit 0", action).await, done(), "{action}");
    }
    assert_eq!(
        run("exit 0", Action::Create).await,
        retry("the answer to `create` is empty; answer at least `{}`")
    );
}

#[tokio::test]
async fn every_exit_code_has_its_meaning() {
    let create = Action::Create;
    assert_eq!(
        run(r#"echo '{"pending": "sales looks at it"}'"#, create).await,
        AttemptResult::Pending { note: "sales looks at it".into() }
    );
    assert_eq!(
        run(r#"echo '{"refuse": "no stock"}'; echo noise >&2; exit 65"#, create).await,
        refused("no stock")
    );
    // The log of a hook is not for the marketplace.
    assert_eq!(
        run("echo first >&2; echo last >&2; exit 65", create).await,
        refused("the hook refused the call (exit code 65) without a reason")
    );
    assert_eq!(
        run("exit 65", create).await,
        refused("the hook refused the call (exit code 65) without a reason")
    );
    // What contradicts the code is no refusal: a paid order would be lost.
    for (output, fault) in [
        ("Traceback (most recent call last):", "the answer is not JSON: line 1, column 1"),
        (r#"{"instance_id": "i-1"}"#, "its answer has no `refuse`"),
        ("{}", "its answer has no `refuse`"),
    ] {
        let AttemptResult::Retry { error, .. } = run(&format!("echo '{output}'; exit 65"), create).await
        else {
            panic!("{output} refuses")
        };
        assert!(
            error.contains("the hook exited with code 65, which refuses, but") && error.contains(fault),
            "{error}"
        );
    }
    assert_eq!(run("exit 75", create).await, retry("the hook exited with code 75"));
    assert_eq!(run("echo why >&2; exit 1", create).await, retry("the hook exited with code 1: why"));
    assert_eq!(run("echo '{}'; exit 255", create).await, retry("the hook exited with code 255"));
    assert_eq!(
        run(r#"echo '{"retry_after": 90}'; exit 75"#, create).await,
        AttemptResult::Retry {
            error: "the hook exited with code 75".into(),
            after: Some(Duration::from_secs(90))
        }
    );
    assert_eq!(run("kill -TERM $$", create).await, retry("the hook was killed by SIGTERM"));
    assert_eq!(run("kill -KILL $$", create).await, retry("the hook was killed by SIGKILL"));
}

#[tokio::test]
async fn an_unreadable_answer_is_a_retry_and_is_never_quoted() {
    let half = format!(r#"printf '{{"app": {{"password": "{CANARY}"'"#);
    let AttemptResult::Retry { error, .. } = run(&half, Action::Create).await else { panic!("not a retry") };
    assert!(error.starts_with("the answer is not JSON"), "{error}");
    assert!(!error.contains(CANARY));
    assert_eq!(
        run(r#"echo '{"instanceId": "i-1"}'"#, Action::Create).await,
        retry("the answer has the unknown member `instanceId`; did you mean `instance_id`?")
    );
    assert_eq!(run("echo hello", Action::Expire).await, retry("the answer is not JSON: line 1, column 1"));
}

#[tokio::test]
async fn a_command_that_is_not_there_is_a_retry_and_somebody_hears_of_it() {
    let missing = NamedHook::new("exec", ExecHook::new(["/no/such/hook"]));
    let AttemptResult::Misconfigured { error, .. } = run_hook(missing, call(Action::Create)).await else {
        panic!("nobody is alerted")
    };
    assert!(error.starts_with("cannot start `/no/such/hook`"), "{error}");
    assert!(error.contains("does not exist; correct the path"), "{error}");
}

#[tokio::test]
async fn a_hook_runs_in_its_working_folder() {
    let folder = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\nprintf '{\"instance_id\":\"%s\"}' \"$(pwd -P)\"\n";
    executable(&folder.path().join("hook"), script);
    for command in [vec!["./hook"], vec!["sh", "./hook"]] {
        let hook = ExecHook::new(command).working_dir(folder.path());
        assert_eq!(hook.check(), Ok(()));
        let end = run_hook(NamedHook::new("exec", hook), call(Action::Create)).await;
        let AttemptResult::Done(answer) = end else { panic!("{end:?}") };
        assert_eq!(answer.instance_id.as_deref(), folder.path().canonicalize().unwrap().to_str());
    }
    let gone = ExecHook::new(["sh", "-c", "exit 0"]).working_dir(folder.path());
    drop(folder);
    let end = run_hook(NamedHook::new("exec", gone), call(Action::Expire)).await;
    let AttemptResult::Misconfigured { error, .. } = end else { panic!("{end:?}") };
    assert!(error.contains("working folder"), "{error}");
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_with_all_it_started() {
    let mut lifeline = Lifeline::new();
    let script = format!("{} sleep 600 & sleep 600", lifeline.hold());
    let end = run_hook(shell(&script).timeout(Duration::from_millis(1500)), call(Action::Create)).await;
    assert_eq!(end, retry("the hook `exec` took longer than 1.5s"));
    lifeline.held().await;
    lifeline.is_cut().await;
}

#[tokio::test]
async fn a_run_that_is_dropped_kills_the_hook() {
    let mut lifeline = Lifeline::new();
    let script = format!("{} sleep 600 & sleep 600", lifeline.hold());
    tokio::select! {
        end = run(&script, Action::Create) => panic!("ended by itself: {end:?}"),
        () = lifeline.held() => {}
    }
    lifeline.is_cut().await;
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipe_does_not_hold_us() {
    let mut lifeline = Lifeline::new();
    let script = format!("{} sleep 600 & echo '{{}}'", lifeline.hold());
    assert_eq!(run(&script, Action::Create).await, done());
    lifeline.held().await;
    lifeline.is_cut().await;
}

#[tokio::test]
async fn a_grandchild_that_keeps_nothing_is_killed_too() {
    let mut lifeline = Lifeline::new();
    let script = format!("{} sleep 600 >/dev/null 2>&1 </dev/null & echo '{{}}'", lifeline.hold());
    assert_eq!(run(&script, Action::Create).await, done());
    lifeline.held().await;
    lifeline.is_cut().await;
}

#[tokio::test]
async fn a_hook_that_never_stops_talking_is_killed() {
    let mut lifeline = Lifeline::new();
    let script = format!("{} yes", lifeline.hold());
    let most = limits::HOOK_ANSWER_MAX_BYTES;
    assert_eq!(
        run(&script, Action::Create).await,
        retry(&format!("the hook's answer is longer than {most} bytes"))
    );
    lifeline.held().await;
    lifeline.is_cut().await;
}

#[tokio::test]
async fn input_that_nobody_reads_hurts_nobody() {
    assert_eq!(run("echo '{}'", Action::Expire).await, done());
    assert_eq!(run_hook(shell("echo '{}'"), big_call()).await, done());
    assert_eq!(run_hook(shell("exec <&-; echo '{}'"), big_call()).await, done());
}

#[tokio::test]
async fn input_and_output_do_not_wait_for_each_other() {
    let script = "head -c 60000 /dev/zero | tr '\\0' ' '; cat >/dev/null; echo '{}'";
    assert_eq!(run_hook(shell(script), big_call()).await, done());
}

#[tokio::test]
async fn the_hook_gets_the_call_and_a_clean_environment() {
    let folder = tempfile::tempdir().unwrap();
    let script = "cat >\"$0/call\"; env >\"$0/env\"; echo \"$#\" >\"$0/argc\"";
    let hook = ExecHook::new(["sh", "-c", script, folder.path().to_str().unwrap()]);
    let call = call(Action::Expire);
    assert_eq!(run_hook(NamedHook::new("exec", hook), call.clone()).await, done());

    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&read("call")).unwrap(), serde_json::to_value(&call).unwrap());
    assert_eq!(read("argc"), "0\n");
    let env = read("env");
    for line in ["SPID_ACTION=expire", "SPID_IDEMPOTENCY_KEY=key-1", "SPID_ATTEMPT=3"] {
        assert!(env.lines().any(|it| it == line), "{line} is missing from {env}");
    }
    let shells_own = ["PWD", "OLDPWD", "SHLVL", "_"];
    for name in env.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        let kept = spid::internals::hooks::exec::KEPT_VARIABLES.contains(&name) || shells_own.contains(&name);
        assert!(kept || name.starts_with("SPID_"), "{name} came through");
    }
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn standard_error_is_logged_and_passwords_are_not() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let script = format!(
        r#"printf 'step one\033[2J\n' >&2; echo '{{"app": {{"username": "root", "password": "{CANARY}"}}}}'"#
    );
    let end = run(&script, Action::Create).await;
    assert!(matches!(end, AttemptResult::Done(_)));
    assert!(!format!("{end:?}").contains(CANARY));

    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("step one\\u{1b}[2J"), "{log}");
    assert!(log.contains("key-1"), "{log}");
    assert!(!log.contains(CANARY), "{log}");
}

/// Runs an example hook through a life. The caller can check its stored state.
struct Life {
    runner: Runner,
    instance: Instance,
    job: u32,
}

impl Life {
    fn new(interpreter: &str, script: &str, root: &Path) -> Life {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(script);
        let command = [interpreter, script.to_str().unwrap(), root.to_str().unwrap()];
        let hook = NamedHook::new("example", ExecHook::new(command)).timeout(Duration::from_secs(60));
        Life { runner: Runner::new(vec![hook], Vec::new()).unwrap(), instance: instance(), job: 0 }
    }

    /// Runs one job twice, as after a crash, and returns the answer, which must be the same.
    async fn step(&mut self, mut callback: Callback) -> Answer {
        self.job += 1;
        callback.parameters = Parameters::from_iter([
            ("forged".to_owned(), r#""instance":{"id":"x","order_biz_id":"evil""#.to_owned()),
            ("order_biz_id".to_owned(), "evil".to_owned()),
        ]);
        let call = call_for(&callback, &self.instance, &format!("key-{}", self.job));
        let first = self.runner.run(call.clone()).await;
        let second = self.runner.run(call).await;
        assert_eq!(first, second);
        match first {
            AttemptResult::Done(answer) => answer,
            other => panic!("{}: {other:?}", callback.action),
        }
    }

    async fn act(&mut self, action: Action) -> Answer {
        self.step(Callback::new(action, "x")).await
    }
}

fn until(action: Action, at: &str) -> Callback {
    let expires_on = Some(Expiry { raw: at.into(), at: Some(at.parse().unwrap()) });
    Callback { expires_on, ..Callback::new(action, "x") }
}

#[tokio::test]
async fn the_shell_example_lives_a_whole_life() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::new("sh", "exec_hook.sh", folder.path());
    let state = || std::fs::read_to_string(folder.path().join("biz-1/state")).unwrap();

    let made = life.act(Action::Create).await;
    assert_eq!(made.instance_id.as_deref(), Some("biz-1"));
    assert_eq!(made.app["front_end_url"].expose(), "https://biz-1.app.example");
    life.instance.id = made.instance_id;
    assert_eq!(state(), "active\n");
    let signed_on = life.act(Action::SignOn).await.redirect.unwrap();
    let ticket = signed_on.expose().strip_prefix("https://biz-1.app.example/login?ticket=").unwrap();
    assert!(folder.path().join("biz-1/tickets").join(ticket).exists() && ticket.len() == 32, "{ticket}");
    for (action, after) in [
        (Action::Upgrade, "active\n"),
        (Action::Expire, "frozen\n"),
        (Action::Upgrade, "frozen\n"),
        (Action::RefundRenew, "frozen\n"),
        (Action::Renew, "active\n"),
    ] {
        life.act(action).await;
        assert_eq!(state(), after, "{action}");
    }
    life.act(Action::Release).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let end = life.runner.run(call(Action::SignOn)).await;
    assert_eq!(end, refused("the instance is not active"));
    let end = life.runner.run(call(Action::Other)).await;
    assert_eq!(end, refused("this hook does not support that"));
}

#[tokio::test]
async fn the_python_example_lives_a_whole_life() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::new("python3", "exec_hook.py", folder.path());
    let kept = || -> Value {
        let mut text = String::new();
        std::fs::File::open(folder.path().join("biz-1.json")).unwrap().read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    };

    let made = life.act(Action::Create).await;
    assert_eq!(made.instance_id.as_deref(), Some("biz-1"));
    assert!(!made.app["password"].expose().is_empty());
    life.instance.id = made.instance_id;
    let signed_on = life.act(Action::SignOn).await.redirect;
    assert!(signed_on.unwrap().expose().starts_with("https://biz-1.app.example/login?ticket="));
    let more = Callback {
        sku: Some("pro".into()),
        items: BTreeMap::from([("seats".into(), "9".into())]),
        ..Callback::new(Action::Upgrade, "x")
    };
    life.step(more).await;
    assert_eq!((&kept()["sku"], &kept()["items"]["seats"]), (&"pro".into(), &"9".into()));
    life.act(Action::Expire).await;
    assert_eq!(kept()["state"], "frozen");
    life.step(until(Action::Renew, "2027-01-01T00:00:00Z")).await;
    assert_eq!((&kept()["state"], &kept()["expires_on"]), (&"active".into(), &"2027-01-01T00:00:00Z".into()));
    life.step(until(Action::RefundRenew, "2026-06-01T00:00:00Z")).await;
    assert_eq!(kept()["expires_on"], "2026-06-01T00:00:00Z");
    life.act(Action::Release).await;
    assert_eq!(kept()["state"], "released");
    let end =
        life.runner.run(call_for(&Callback::new(Action::SignOn, "x"), &life.instance, "key-late")).await;
    assert_eq!(end, refused("it is released"));
}

/// Settings of the configuration reach the hook, and nothing of spid's own environment.
#[tokio::test]
async fn a_hook_gets_its_settings_and_they_are_not_printed() {
    let hook = ExecHook::new(["sh", "-c", r#"printf '{"instance_id": "%s"}' "$DATABASE_URL-$SPID_ACTION""#])
        .setting("DATABASE_URL", spid_hook::Secret::new("postgres://fake"));
    assert!(!format!("{hook:?}").contains("postgres"), "{hook:?}");
    let hook = NamedHook::new("exec", hook).timeout(Duration::from_secs(60));
    let AttemptResult::Done(answer) = run_hook(hook, call(Action::Create)).await else { panic!("not done") };
    assert_eq!(answer.instance_id.as_deref(), Some("postgres://fake-create"));
}

/// A file that the system cannot start is a configuration to repair, and the message names the fault.
#[tokio::test]
async fn a_script_without_its_interpreter_says_so_at_run_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hook");
    for (text, says) in [
        ("#!/bin/sh\r\nexit 0\r\n", "has Windows line ends"),
        ("#!/opt/no/such/python3\n", "the interpreter `/opt/no/such/python3`"),
    ] {
        executable(&path, text);
        let hook = NamedHook::new("exec", ExecHook::new([path.to_str().unwrap()]));
        let AttemptResult::Misconfigured { error, .. } = run_hook(hook, call(Action::Create)).await else {
            panic!("{text}")
        };
        assert!(error.contains(says), "{error}");
    }
}

/// spid was killed between the start of the hook and its call: the examples change nothing and do not refuse.
#[test]
fn the_examples_do_nothing_without_a_call() {
    for (name, arguments) in [
        ("exec_hook.sh", &["made"][..]),
        ("exec_hook.py", &["made"]),
        ("approval.py", &["hook"]),
        ("claim_first.py", &["hook", "https://app.example"]),
        ("nginx_entitlements.py", &["hosts.map", "app.example", "127.0.0.1:9", "true"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for action in Action::ALL {
            let ended = std::process::Command::new(crate::support::examples::source(name))
                .args(arguments)
                .current_dir(folder.path())
                .env("SPID_ACTION", action.as_str())
                .env("SPID_IDEMPOTENCY_KEY", "key-1")
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            assert!(!matches!(ended.status.code(), Some(0 | 65)), "{name}, {action}: {ended:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{name}");
    }
}
