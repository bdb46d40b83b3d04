//! `spid hook test`: the examples pass, each kind of planted fault is reported in one sentence, and errors of its
//! command line are reported.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has said what it found")]

use std::collections::HashMap;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::examples;
use crate::support::executable::executable;
use crate::support::said::Said;
use serde_json::{Value, json};
use spid::internals::net::{Request, Response, ServerOptions, serve};
use tokio::net::TcpListener;

const SPID: &str = env!("CARGO_BIN_EXE_spid");
const SECRET: &str = "whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=";
const KEEP: &str = "store the answer under the idempotency key before returning it, and return the stored answer to a repeat.";

/// A folder for the hook's state.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn script(&self, name: &str, text: &str) -> String {
        executable(&self.folder.path().join(name), text);
        self.at(name)
    }

    fn test(&self, arguments: &[&str]) -> Tested {
        let mut command = Command::new(SPID);
        command.args(["hook", "test"]).args(arguments);
        command.current_dir(self.folder.path()).env("SPID_HOOK_SECRET", SECRET);
        Tested::of(&command.output().unwrap())
    }

    /// Created and not released.
    fn left(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(name)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

struct Tested {
    code: Option<i32>,
    report: String,
    told: String,
}

impl Tested {
    fn of(output: &Output) -> Tested {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Tested { code: output.status.code(), report: text(&output.stdout), told: text(&output.stderr) }
    }

    #[track_caller]
    fn passes(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.report, self.told);
        assert!(self.report.lines().last().unwrap().starts_with("ok: no fault in "), "{}", self.report);
        assert!(!self.report.contains("not run") && !self.report.contains('✗'), "{}", self.report);
        self.report
    }

    #[track_caller]
    fn finds(&self, sentence: &str) {
        assert_eq!(self.code, Some(1), "{}{}", self.report, self.told);
        assert!(self.report.contains(&format!("✗ {sentence}")), "{}", self.report);
        assert!(self.report.contains("FAILED: "), "{}", self.report);
        assert!(self.told.contains("error: the hook did not pass the test"), "{}", self.told);
    }
}

fn example(name: &str) -> String {
    examples::source(name).display().to_string()
}

// The examples.

#[test]
fn the_shell_example_passes_and_leaves_nothing() {
    let bench = Bench::new();
    bench.test(&["--exec", &example("exec_hook.sh"), &bench.at("made")]).passes();
    assert_eq!(bench.left("made"), [""; 0]);
}

#[test]
fn the_python_example_passes() {
    let bench = Bench::new();
    let count = bench.script(
        "count",
        "#!/bin/sh\ngrep -l '\"state\": \"[af]' \"$1/$SPID_ORDER_BIZ_ID.json\" 2>/dev/null | wc -l\n",
    );
    bench
        .test(&[
            "--kills",
            "1",
            "--at-once",
            "2",
            "--exec",
            &example("exec_hook.py"),
            &bench.at("made"),
            "--probe",
            &count,
            &bench.at("made"),
        ])
        .passes();
}

/// A listener that stays open until it is dropped.
struct Listening {
    child: Child,
    url: String,
}

impl Listening {
    fn example(root: &str) -> Listening {
        let mut child = Command::new("python3")
            .args([&example("http_hook.py"), "0", root])
            .env("SPID_HOOK_SECRET", SECRET)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let line = Said::by(child.stdout.take().unwrap()).line();
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        Listening { child, url }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_http_example_passes_and_a_wrong_secret_does_not() {
    let bench = Bench::new();
    let listening = Listening::example(&bench.at("made"));
    bench.test(&["--http", &listening.url, "--secret-env", "SPID_HOOK_SECRET"]).passes();
    std::fs::write(bench.at("secret"), format!("{SECRET}\n")).unwrap();
    let restart = bench.script("restart", "#!/bin/sh\necho >> \"$1\"\n");
    let restarted = bench.at("restarted");
    let options = ["--kills", "0", "--restart", &restart, &restarted];
    let listens = ["--http", &listening.url, "--secret-file", &bench.at("secret")];
    let report = bench.test(&[&listens[..], &options[..]].concat()).passes();
    assert!(report.contains("✓ the same calls again after a restart of the hook ("), "{report}");
    assert_eq!(std::fs::read_to_string(restarted).unwrap().lines().count(), 6);
    let failing = ["--kills", "0", "--restart", "false"];
    bench
        .test(&[&listens[..], &failing[..]].concat())
        .finds("`create`: the restart that the test was given failed after this call: `false` ended with");
    std::fs::write(bench.at("other"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let tested = bench.test(&["--http", &listening.url, "--secret-file", &bench.at("other")]);
    tested.finds("`create`: all 3 attempts failed: the hook answered 401; fix that first");
    assert!(!tested.report.contains("whsec_") && !tested.told.contains("whsec_"));
}

#[test]
fn the_rust_example_tests_itself() {
    let bench = Bench::new();
    let mut command = Command::new(examples::built("my_hook"));
    command.args(["hook", "test"]).current_dir(bench.folder.path());
    Tested::of(&command.output().unwrap()).passes();
    assert_eq!(bench.left("tenants"), [""; 0]);
}

// Planted faults.

/// Appends each instance to a list, and the line number is the id.
const APPENDS: &str = r#"#!/bin/sh
cat > /dev/null
case $SPID_ACTION in
create) echo made >> "$1"; echo "{\"instance_id\": \"t-$(wc -l < "$1")\"}" ;;
sign-on | payment) echo '{"refuse": "not sold"}'; exit 65 ;;
*) echo '{}' ;;
esac
"#;

#[test]
fn an_executable_that_appends_is_found() {
    let bench = Bench::new();
    let hook = bench.script("hook", APPENDS);
    let tested = bench.test(&["--exec", &hook, &bench.at("list")]);
    tested.finds(&format!(
        "`create`: called again with the same idempotency key, the hook answered the `instance_id` `t-2`, and `t-1` before; {KEEP}"
    ));
    // Progress goes to stderr, and is not part of the report.
    assert!(tested.told.starts_with("* a full life cycle, every call twice\n"), "{}", tested.told);
    assert!(!tested.told.contains("->"), "{}", tested.told);
}

#[test]
fn what_the_probe_counts_is_told_as_json_too() {
    let bench = Bench::new();
    let hook = bench.script(
        "hook",
        r#"#!/bin/sh
mkdir -p "$1"
name=$(sed 's/.*"order_biz_id":"\([0-9]*\)".*/\1/')
case $SPID_ACTION in
create) echo made >> "$1/$name"; echo '{}' ;;
release) rm -f "$1/$name" ;;
sign-on | payment) exit 65 ;;
esac
"#,
    );
    let count = bench.script("count", "#!/bin/sh\ncat \"$1/$SPID_ORDER_BIZ_ID\" 2>/dev/null | wc -l\n");
    let made = bench.at("made");
    let tested =
        bench.test(&["--exec", &hook, &made, "--probe", &count, &made, "--without", "sign-on", "--json"]);
    assert_eq!(tested.code, Some(1), "{}", tested.told);
    let report: Value = serde_json::from_str(&tested.report).unwrap();
    assert_eq!(report["passed"], false);
    let faults: Vec<&Value> =
        report["findings"].as_array().unwrap().iter().filter(|finding| finding["fault"] == true).collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    let fault = faults.first().unwrap();
    assert_eq!((&fault["kind"], &fault["action"]), (&json!("doubled"), &json!("create")));
    assert_eq!(
        fault["sentence"],
        format!(
            "`create`: called again with the same idempotency key, the hook left 2 things for one order, where 1 should be; {KEEP}"
        )
    );
}

/// Takes a lock, works for a while, and releases the lock. If it is killed meanwhile, the lock stays.
const LOCKS: &str = r#"#!/bin/sh
call=$(cat)
case $SPID_ACTION in sign-on | payment) exit 65 ;; esac
name=$(printf '%s' "$call" | sed 's/.*"order_biz_id":"\([0-9]*\)".*/\1/')
mkdir -p "$1"
mkdir "$1/$name" 2>/dev/null || { echo "$name is being worked on" >&2; exit 75; }
i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done
rmdir "$1/$name"
echo '{}'
"#;

#[test]
fn an_executable_that_is_killed_while_it_holds_a_lock_is_found() {
    let bench = Bench::new();
    let hook = bench.script("hook", LOCKS);
    let tested = bench.test(&["--exec", &hook, &bench.at("locks"), "--kills", "12"]);
    assert_eq!(tested.code, Some(1), "{}{}", tested.report, tested.told);
    let found =
        tested.report.lines().find(|line| line.contains("the hook fails at every further attempt")).unwrap();
    assert!(found.contains("called again after an attempt was cut short after "), "{found}");
    assert!(
        found.contains("is being worked on; the next attempt must find the remains of an earlier one"),
        "{found}"
    );
}

/// A server that answers another password at each attempt.
fn serve_new_passwords(runtime: &tokio::runtime::Runtime) -> String {
    let attempts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let handler = move |request: Request| {
        let call: Value = serde_json::from_slice(&request.body).unwrap();
        let key = call["idempotency_key"].as_str().unwrap().to_owned();
        let attempt = {
            let mut attempts = attempts.lock().unwrap();
            let attempt = attempts.entry(key).or_default();
            *attempt += 1;
            *attempt
        };
        std::future::ready(match call["action"].as_str().unwrap() {
            "create" => {
                let app = json!({ "username": "root", "password": format!("fake-password-{attempt}") });
                Response::json(200, json!({ "app": app }).to_string())
            }
            "sign-on" | "payment" => Response::json(422, r#"{"refuse": "not sold"}"#),
            _ => Response::empty(204),
        })
    };
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/provision", listener.local_addr().unwrap());
    runtime.spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
    url
}

#[test]
fn an_endpoint_with_new_passwords_is_found_and_they_are_not_shown() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve_new_passwords(&runtime);
    let bench = Bench::new();
    let tested = bench.test(&["--http", &url, "--secret-env", "SPID_HOOK_SECRET", "-v"]);
    tested.finds(&format!(
        "`create`: called again with the same idempotency key, the hook answered a different `app.password`; {KEEP}"
    ));
    assert!(tested.told.contains("  -> create, attempt 2: {\"schema\":\"spid.hook/1\""), "{}", tested.told);
    assert!(!tested.report.contains("fake-password") && !tested.told.contains("fake-password"));
}

/// A service that keeps its answers in memory. The restart of the test makes it forget them.
#[test]
fn an_endpoint_that_forgets_its_answers_at_a_restart_is_found() {
    let bench = Bench::new();
    let restart = bench.script("restart", "#!/bin/sh\necho >> \"$1\"\n");
    let restarts = bench.at("restarts");
    let world: Arc<Mutex<(u64, HashMap<String, usize>)>> = Arc::default();
    let file = restarts.clone();
    let handler = move |request: Request| {
        let call: Value = serde_json::from_slice(&request.body).unwrap();
        let key = call["idempotency_key"].as_str().unwrap().to_owned();
        let started = std::fs::metadata(&file).map_or(0, |file| file.len());
        let number = {
            let mut world = world.lock().unwrap();
            if world.0 != started {
                *world = (started, HashMap::new());
            }
            let next = world.1.len() + 1000 * usize::try_from(started).unwrap();
            *world.1.entry(key).or_insert(next)
        };
        std::future::ready(match call["action"].as_str().unwrap() {
            "create" => Response::json(200, json!({ "instance_id": format!("t-{number}") }).to_string()),
            "sign-on" => Response::json(200, json!({ "redirect": "https://a.example" }).to_string()),
            _ => Response::empty(204),
        })
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/provision", listener.local_addr().unwrap());
    runtime.spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
    let known = ["--http", &url, "--secret-env", "SPID_HOOK_SECRET", "--kills", "0"];
    let report = bench.test(&known).passes();
    assert!(report.contains("- the same calls again after a restart of the hook: not tried;"), "{report}");
    let restart = ["--restart", &restart, &restarts];
    bench.test(&[&known[..], &restart[..]].concat()).finds(
        "`create`: called again after its restart, the hook answered the `instance_id` `t-1000`, and `t-",
    );
}

// The command line.

#[test]
fn a_hook_of_the_configuration_is_tested_by_its_name() {
    let bench = Bench::new();
    let hook = bench.script("hook", APPENDS);
    std::fs::write(bench.at("key"), "fake-test-key").unwrap();
    let config = format!(
        "[[endpoint]]\nname = \"e\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ file = {:?} }}]\n\
         [[hook]]\nname = \"try\"\nlog = {{}}\n[[hook]]\nname = \"real\"\nexec = {{ command = [{hook:?}, {:?}] }}\n\
         [[hook]]\nname = \"idle\"\nlog = {{}}\n[[route]]\nsku = \"pro\"\nhook = \"real\"\n",
        bench.at("key"),
        bench.at("list"),
    );
    std::fs::write(bench.at("spid.toml"), config).unwrap();
    // The log hook has no application, and the buyers of this marketplace sign on.
    bench.test(&["--config", "spid.toml"]).finds("`sign-on`: the hook refused the call");
    bench.test(&["--config", "spid.toml", "--without", "sign-on"]).passes();
    let generic =
        std::fs::read_to_string(bench.at("spid.toml")).unwrap().replace("\"alibaba\"", "\"generic\"");
    std::fs::write(bench.at("generic.toml"), generic).unwrap();
    bench.test(&["--config", "generic.toml"]).passes();
    bench.test(&["--config", "spid.toml", "--hook", "real"]).finds("`create`: called again");
    let tested = bench.test(&["--config", "spid.toml", "--hook", "idle"]);
    assert_eq!(tested.code, Some(78));
    assert!(tested.told.contains("`--hook`: no order reaches `idle`: it is neither"), "{}", tested.told);
    let tested = bench.test(&["--config", "spid.toml", "--hook", "reel"]);
    assert_eq!(tested.code, Some(78));
    assert!(tested.told.contains("there is no hook `reel`; did you mean `real`?"), "{}", tested.told);
}

#[test]
fn a_command_line_that_cannot_work_says_so() {
    let bench = Bench::new();
    for (arguments, code, said) in [
        (&[] as &[&str], 64, "no hook given"),
        (&["--exec", "/no/such/hook"], 78, "`--exec`: the hook's command `/no/such/hook` does not exist"),
        (&["--http", "http://127.0.0.1:1/"], 78, "give the secret with --secret-file or --secret-env"),
        (&["--http", "http://169.254.169.254/", "--secret-env", "SPID_HOOK_SECRET"], 78, "link-local"),
        (&["--http", "127.0.0.1"], 64, "--http"),
        (&["--exec", "true", "--timeout", "soon"], 64, "not a time span"),
        (&["--exec", "true", "--without", "explode"], 64, "[possible values: create, renew"),
        (&["--exec", "true", "--item", "seats"], 64, "expected NAME=VALUE"),
        (&["--exec", "true", "--http", "http://127.0.0.1/"], 64, "cannot be used with"),
    ] {
        let tested = bench.test(arguments);
        assert_eq!(tested.code, Some(code), "{arguments:?}: {}", tested.told);
        assert!(tested.told.contains(said), "{arguments:?}: {}", tested.told);
        assert!(tested.report.is_empty(), "{}", tested.report);
    }
}

#[test]
fn what_is_bought_is_as_asked() {
    let bench = Bench::new();
    let hook = bench.script("hook", "#!/bin/sh\ncat >> \"$1\"\necho >> \"$1\"\necho '{}'\n");
    let calls = bench.at("calls");
    let wares = [
        "--product",
        "p-7",
        "--sku",
        "small",
        "--upgrade-to",
        "large",
        "--buyer",
        "b-7",
        "--item",
        "seats=5",
        "--upgraded-item",
        "seats=9",
        "--parameter",
        "region=north",
        "--without",
        "sign-on",
    ];
    bench.test(&[&["--exec", &hook, &calls, "--kills", "1"], &wares[..]].concat()).passes();
    let calls: Vec<Value> = std::fs::read_to_string(calls)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |action: &str| calls.iter().find(|call| call["action"] == action).unwrap();
    let create = of("create");
    let bought = ["product", "sku", "buyer"].map(|name| create[name].as_str().unwrap());
    assert_eq!(bought, ["p-7", "small", "b-7"]);
    assert_eq!((&create["items"]["seats"], &create["parameters"]["region"]), (&json!("5"), &json!("north")));
    let upgrade = of("upgrade");
    assert_eq!((&upgrade["sku"], &upgrade["changes"]["seats"]["to"]), (&json!("large"), &json!("9")));
    assert!(calls.iter().all(|call| call["action"] != "sign-on"));
    assert!(
        calls.iter().any(|call| call["maybe_provisioned"] == true),
        "a half made instance is released, too"
    );
}
