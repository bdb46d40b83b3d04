//! The JSON contract of hooks and its schema: every call of the daemon while all fixtures of all dialects run, the
//! answers of the examples to those calls, and the blocks of the documents.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::contract::Contract;
use crate::support::examples;
use crate::support::machine::lacks;
use serde_json::{Value, json};
use spid::internals::hooks::exec::ExecHook;
use spid::internals::hooks::runner::{NamedHook, Runner};
use spid::internals::lab::scenario::{Scenario, Target};
use spid::internals::serve::daemon::{Daemon, DaemonOptions};
use spid::internals::serve::intake::Endpoint;
use spid_core::dialect;
use spid_core::dialect::Options;
use spid_core::signature::Keys;
use spid_hook::time::Clock;
use spid_hook::{Call, Secret};
use tokio::net::TcpListener;

/// Stores every call, and answers like the log hook.
const KEEPER: &str = r#"
cat > "$SPID_IDEMPOTENCY_KEY-$SPID_ATTEMPT.new" && mv "$SPID_IDEMPOTENCY_KEY-$SPID_ATTEMPT.new" "$SPID_IDEMPOTENCY_KEY-$SPID_ATTEMPT.json"
case $SPID_ACTION in
sign-on) printf '{"refuse":"not here"}'; exit 65 ;;
other) printf '{"body":{"success":true}}' ;;
*) printf '{}' ;;
esac
"#;

fn keys() -> Keys {
    Keys::single(Secret::new("isvkey")).unwrap()
}

async fn daemon(calls: &Path, store: PathBuf) -> Daemon {
    let endpoint = |name: &str, account: &str, dialect: &str| Endpoint {
        name: name.into(),
        account: account.into(),
        dialect: dialect::by_name(dialect).unwrap(),
        keys: keys(),
        options: Options::default(),
    };
    let mut endpoints: Vec<(String, Endpoint)> =
        dialect::names().map(|name| (format!("/{name}"), endpoint(name, name, name))).collect();
    // A second site with an account of its own, and the path of the recorded request.
    endpoints.push(("/intl".to_owned(), endpoint("intl", "intl", "alibaba")));
    endpoints.push(("/spi".to_owned(), endpoint("spi", "alibaba", "alibaba")));
    let keeper = ExecHook::new(["sh", "-c", KEEPER]).working_dir(calls);
    let runner = Runner::new(vec![NamedHook::new("keeper", keeper)], Vec::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Daemon::start(listener, None, DaemonOptions::new(store, endpoints, runner)).await.unwrap()
}

/// A call as sent, byte for byte, and parsed.
struct Sent {
    text: String,
    call: Value,
}

impl Sent {
    fn read(file: &Path) -> Sent {
        let text = std::fs::read_to_string(file).unwrap();
        Sent { call: serde_json::from_str(&text).unwrap(), text }
    }
}

/// Sends every fixture of every dialect to a daemon. Returns the calls of its hook, in order.
async fn every_call_of_every_fixture() -> Vec<Sent> {
    let (calls, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(calls.path(), folder.path().join("spid.db")).await;
    for name in dialect::names() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("spi-fixtures").join(name);
        let files: BTreeSet<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        for file in files {
            // Recorded requests are beside their fixtures.
            if file.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let scenario = Scenario::load(&file).unwrap();
            let url = format!("http://{}/{name}", daemon.address());
            let mut target = Target { keep_going: true, ..Target::new(url.parse().unwrap(), keys()) };
            for name in scenario.endpoints() {
                let url = format!("http://{}/{name}", daemon.address());
                target.endpoints.insert(name.to_owned(), url.parse().unwrap());
            }
            for name in scenario.keys() {
                target.other_keys.insert(name.to_owned(), keys());
            }
            let report = scenario.run(&target, None, &Clock::System, &mut ()).await;
            assert!(report.error.is_none(), "{}: {:?}", file.display(), report.error);
        }
    }
    daemon.stop().await;
    let mut files: Vec<_> =
        std::fs::read_dir(calls.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Sent::read(file)).collect()
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {value}"))
}

/// Answer of a command to a call, if there is one.
fn answer(command: &mut Command, call: &str) -> Option<Value> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // A hook that refuses need not read the call.
    let _ = child.stdin.take().unwrap().write_all(call.as_bytes());
    let output = child.wait_with_output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 65 | 75)), "{command:?} ended with {code:?} on {call}");
    let text = String::from_utf8(output.stdout).unwrap();
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).unwrap())
}

/// The examples that are programs, with their commands for a folder of their own.
fn examples() -> Vec<(&'static str, Vec<String>)> {
    let path = |name: &str| examples::source(name).display().to_string();
    let http = "import json, pathlib, sys; sys.path.insert(0, sys.argv[1]); import http_hook; \
                print(json.dumps(http_hook.provision(pathlib.Path('.'), json.load(sys.stdin))[1]))";
    let folder = examples::source("").display().to_string();
    vec![
        ("exec_hook.sh", vec![path("exec_hook.sh"), ".".into()]),
        ("exec_hook.py", vec![path("exec_hook.py"), ".".into()]),
        ("claim_first.py", vec![path("claim_first.py"), "hook".into(), "https://app.example".into()]),
        ("approval.py", vec![path("approval.py"), "hook".into()]),
        ("http_hook.py", vec!["python3".into(), "-B".into(), "-c".into(), http.into(), folder]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_and_what_the_examples_answer_is_the_contract() {
    let contract = Contract::new();
    let calls = every_call_of_every_fixture().await;
    for sent in &calls {
        contract.check_call("the daemon", &sent.call);
        let read = Call::read(sent.text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {}", sent.text));
        assert_eq!(serde_json::to_string(&read).unwrap(), sent.text, "read and written again");
    }
    let actions: BTreeSet<&str> = calls.iter().map(|sent| word(&sent.call, "action")).collect();
    let all =
        ["create", "expire", "other", "payment", "refund-renew", "release", "renew", "sign-on", "upgrade"];
    assert_eq!(Vec::from_iter(actions), all, "every action is asked for in some fixture");
    euids(&calls);
    if lacks("python3", "python3") {
        return;
    }
    for (name, command) in examples() {
        let folder = tempfile::tempdir().unwrap();
        let mut answered = 0;
        let one_of_each =
            all.iter().filter_map(|action| calls.iter().find(|sent| sent.call["action"] == *action));
        for Sent { text, call } in one_of_each {
            let mut child = Command::new(&command[0]);
            child.args(&command[1..]).current_dir(folder.path());
            child.env("SPID_ACTION", word(call, "action"));
            child.env("SPID_IDEMPOTENCY_KEY", word(call, "idempotency_key"));
            if let Some(answer) = answer(&mut child, text) {
                contract.check_answer(name, &answer);
                answered += 1;
            }
        }
        assert!(answered >= 7, "{name} answered {answered} of the {} actions", all.len());
    }
}

/// Every call about a product from Alibaba has the product and buyer for Model Studio, also if the callback itself
/// lacks them. No other call has it.
fn euids(calls: &[Sent]) {
    let mut seen = BTreeSet::new();
    for Sent { call, .. } in calls {
        let instance = &call["instance"];
        let (product, buyer) = (&instance["product"], &instance["buyer"]);
        let is_alibaba = ["alibaba", "intl", "spi"].contains(&word(call, "endpoint"));
        let known = is_alibaba && product.is_string() && buyer.is_string();
        if !known {
            assert!(is_alibaba || call["dashscope_euid"].is_null(), "{call:#}");
            continue;
        }
        let euid: Value = serde_json::from_str(word(call, "dashscope_euid")).unwrap();
        let code = format!("market_{}", product.as_str().unwrap());
        assert_eq!((&euid["moduleCode"], &euid["accountId"]), (&json!(code), buyer));
        seen.insert(word(call, "action"));
    }
    assert!(seen.contains("create") && seen.contains("expire") && seen.contains("release"), "{seen:?}");
}

#[test]
fn what_the_documents_show_is_the_contract() {
    let contract = Contract::new();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hooks.md")).unwrap();
    let (mut calls, mut answers) = (0, 0);
    for block in text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        let value: Value = serde_json::from_str(block).unwrap();
        if value.get("schema").is_some() {
            contract.check_call("docs/hooks.md", &value);
            calls += 1;
        } else {
            contract.check_answer("docs/hooks.md", &value);
            answers += 1;
        }
    }
    assert!(calls > 0 && answers > 0, "{calls} calls and {answers} answers");
}

#[test]
fn the_command_prints_both_schemas() {
    let print = |arguments: &[&str]| -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_spid"))
            .args(["hook", "schema"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let both = print(&[]);
    assert_eq!(both["call"], print(&["call"]));
    assert_eq!(both["answer"], print(&["answer"]));
    assert_eq!(both["call"], spid::hook::schema::call());
    assert!(word(&both["answer"], "title").starts_with("spid.hook/1"));
}
