//! JSON of commands and of the admin listener: one shape for the same thing, and results of operations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::admin::{admin_of, ask, post, with_admin};
use crate::support::daemon::{Daemon, Home, Ran, about, create, renew, until, upgrade};
use rusqlite::Connection;
use serde_json::{Value, json};
use spid_hook::id::Id;

const SPID: &str = env!("CARGO_BIN_EXE_spid");

/// Fails or waits if a file named after the action says so. Otherwise it succeeds.
const TOLD: &str = r#"
[ -e "fail-$SPID_ACTION" ] && exit 75
[ -e "pend-$SPID_ACTION" ] && { printf '{"pending":"waits for sales"}'; exit 0; }
case "$SPID_ACTION" in
create) printf '{"instance_id":"%s"}' "$(fake_id)" ;;
*) printf '{}' ;;
esac
"#;

/// A daemon with a dead job, a pending one, two held callbacks, a refused one of an unknown instance, and a release that
/// came before its instance.
fn in_trouble() -> (Home, Daemon) {
    let home = Home::configured(TOLD, "60s", 16);
    with_admin(&home, "");
    let daemon = home.start();
    let ids = ["biz-1", "biz-2", "biz-3"].map(|name| daemon.deliver_until_done(&create(name)).id());
    std::fs::write(home.path("fail-upgrade"), "").unwrap();
    assert!(!daemon.deliver(&upgrade(&ids[0], "gold")).success());
    until("the job has failed", || {
        let sql = "UPDATE job SET state = 4, step = 9, extra = 0 WHERE state = 0 AND attempts > 0";
        let db = Connection::open(home.path("spid.db")).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        (db.execute(sql, []).unwrap() > 0).then_some(())
    });
    std::fs::remove_file(home.path("fail-upgrade")).unwrap();
    std::fs::write(home.path("pend-renew"), "").unwrap();
    assert!(!daemon.deliver(&renew(&ids[1], "2031-01-01 00:00:00")).success());
    std::fs::remove_file(home.path("pend-renew")).unwrap();
    assert_eq!(daemon.deliver(&create("biz-3").with("orderId", "another").with("skuId", "gold")).id(), "0");
    assert!(!daemon.deliver(&about("bindDomain", "biz-3")).success());
    assert!(!daemon.deliver(&renew("biz-unknown", "2031-01-01 00:00:00")).success());
    // Its release comes before anything else, so the instance has no other name.
    daemon.deliver(&about("releaseInstance", "biz-gone"));
    (home, daemon)
}

/// Runs an operation with the audit note of a test.
fn act(home: &Home, arguments: &[&str]) -> Ran {
    home.run(&[arguments, &["--who", "ops", "--why", "a test", "--config", "spid.toml"]].concat())
}

/// Runs an operation that must succeed, and returns its JSON.
fn report(home: &Home, arguments: &[&str]) -> Value {
    let ran = act(home, &[arguments, &["--json"]].concat());
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", ran.stdout))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// Everything that is reported about instances, jobs and callbacks, each with its source.
fn everything(home: &Home, admin: std::net::SocketAddr) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let lists = ["instances list", "jobs list", "callbacks list", "held list", "attention"];
    for command in lists {
        let words: Vec<&str> = command.split(' ').collect();
        all.push((command.to_owned(), Value::Array(home.list(&words))));
    }
    for instance in home.list(&["instances", "list"]) {
        let names = ["id", "order_biz_id", "known_as"].map(|member| instance[member].as_str());
        let name = names.into_iter().flatten().next().unwrap();
        all.push((format!("instances show {name}"), home.json(&["instances", "show", name])));
        let path = format!("/v1/instances/{name}");
        all.push((path.clone(), ask(admin, &path).json()));
    }
    for job in home.list(&["jobs", "list"]) {
        let id = text(&job["id"]);
        all.push((format!("jobs show {id}"), home.json(&["jobs", "show", id])));
        all.push((format!("/v1/jobs/{id}"), ask(admin, &format!("/v1/jobs/{id}")).json()));
    }
    for callback in home.list(&["callbacks", "list"]) {
        let number = callback["number"].to_string();
        all.push((format!("callbacks show {number}"), home.json(&["callbacks", "show", &number])));
        let path = format!("/v1/callbacks/{number}");
        all.push((path.clone(), ask(admin, &path).json()));
    }
    for path in ["/v1/instances", "/v1/jobs", "/v1/callbacks", "/v1/held", "/v1/attention"] {
        all.push((path.to_owned(), ask(admin, path).json()));
    }
    all
}

/// Calls `each` for every member of the value, at any depth.
fn members<'v>(value: &'v Value, each: &mut dyn FnMut(&'v str, &'v Value)) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                each(name, inner);
                members(inner, each);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| members(inner, each)),
        _ => {}
    }
}

#[test]
fn instance_is_always_a_name_and_job_always_an_id() {
    let (home, daemon) = in_trouble();
    let all = everything(&home, admin_of(&daemon));
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for (source, value) in &all {
        members(value, &mut |member, value| match member {
            "instance_name" | "job_id" => panic!("{source} has a second member `{member}`"),
            "instance" if !value.is_null() => {
                let name = value.as_str().unwrap_or_else(|| panic!("{source}: instance is {value}"));
                names.insert(name);
            }
            "job" if !value.is_null() => {
                let id = value.as_str().unwrap_or_else(|| panic!("{source}: job is {value}"));
                ids.insert(id.parse::<Id>().unwrap());
            }
            _ => {}
        });
    }
    assert_eq!((names.len(), ids.len()), (5, 5), "{names:?} {ids:?}");
    // Other commands take them. The refused renewal has a name, and no instance.
    for name in names {
        let ran = home.run(&["instances", "show", name, "--db", "spid.db"]);
        assert_eq!(ran.code == 0, name != "biz-unknown", "{name}: {}", ran.stderr);
    }
    for id in ids {
        home.json(&["jobs", "show", &id.to_string()]);
    }
}

#[test]
fn a_job_and_a_callback_have_one_shape_everywhere() {
    let (home, daemon) = in_trouble();
    let admin = admin_of(&daemon);
    let without = |value: &Value, names: &[&str]| {
        let mut object = value.as_object().unwrap().clone();
        names.iter().for_each(|name| drop(object.remove(*name)));
        Value::Object(object)
    };
    let of_api = ask(admin, "/v1/jobs").json()["jobs"].as_array().unwrap().clone();
    let jobs = home.list(&["jobs", "list"]);
    assert_eq!((&jobs, jobs.len()), (&of_api, 5));
    for job in &jobs {
        let shown = home.json(&["jobs", "show", text(&job["id"])]);
        assert_eq!(&without(&shown, &["failed_attempts", "trace_id"]), job);
        let history = home.json(&["instances", "show", text(&job["instance"])]);
        assert!(history["jobs"].as_array().unwrap().contains(job), "{job}");
    }
    let of_api = ask(admin, "/v1/callbacks").json()["callbacks"].as_array().unwrap().clone();
    let callbacks = home.list(&["callbacks", "list"]);
    assert_eq!((&callbacks, callbacks.len()), (&of_api, 9));
    for callback in &callbacks {
        let shown = home.json(&["callbacks", "show", &callback["number"].to_string()]);
        assert_eq!(&without(&shown, &["callback", "trace_id"]), callback);
        // The job of a callback is one that names this callback.
        if let Some(id) = callback["job"].as_str() {
            let job = jobs.iter().find(|job| job["id"] == id).unwrap();
            assert_eq!((&job["callback"], &job["order"]), (&callback["number"], &callback["order"]));
        }
    }
    let history = home.json(&["instances", "show", "biz-1"]);
    let mut listed: Vec<&Value> = callbacks.iter().filter(|one| one["instance"] == history["id"]).collect();
    listed.reverse();
    assert_eq!(history["callbacks"].as_array().unwrap().iter().collect::<Vec<_>>(), listed);
}

/// A person who sees a dead job must see whose it is.
#[test]
fn tables_of_work_name_the_customer() {
    let (home, daemon) = in_trouble();
    daemon.stop();
    let line = |arguments: &[&str], wanted: &str| {
        let table = home.look(arguments);
        let line = table.lines().find(|line| line.contains(wanted)).unwrap_or_else(|| panic!("{table}"));
        (table.lines().next().unwrap().to_owned(), line.to_owned())
    };
    let id = text(&home.json(&["instances", "show", "biz-1"])["id"]).to_owned();
    for (list, columns) in [
        (["jobs", "list"].as_slice(), ["INSTANCE", "ORDER", "KIND", "TARGET"].as_slice()),
        (&["callbacks", "list"], &["INSTANCE", "ORDER", "BUYER"]),
        (&["held", "list"], &["INSTANCE", "ORDER", "BUYER"]),
    ] {
        let (header, line) = line(list, "upgrade");
        columns.iter().for_each(|column| assert!(header.contains(column), "{list:?}: {header}"));
        assert!(line.contains(&id) && line.contains("order-of-biz-1"), "{list:?}: {line}");
    }
    let (_, unknown) = line(&["callbacks", "list"], "biz-unknown");
    assert!(unknown.contains("2031-01-01 00:00:00") && unknown.contains("10001"), "{unknown}");
    let dead = &home.list(&["jobs", "list", "--state", "dead"])[0];
    let shown = home.run(&["jobs", "show", text(&dead["id"]), "--config", "spid.toml"]).stdout;
    assert!(shown.contains(&id) && shown.contains("  TARGET ") && shown.contains("  provision "), "{shown}");
}

#[test]
fn every_operation_reports_in_one_shape() {
    let (home, daemon) = in_trouble();
    let admin = admin_of(&daemon);
    let job = |state: &str| text(&home.list(&["jobs", "list", "--state", state])[0]["id"]).to_owned();
    let held = |action: &str| {
        let found = home.list(&["held", "list"]);
        found.iter().find(|item| item["action"] == action).unwrap()["callback"].as_i64().unwrap()
    };
    let (dead, pending) = (job("dead"), job("pending"));
    let (purchase, message) = (held("create"), held("other"));
    let is = |report: &Value, wanted: Value| {
        let mut seen = report.clone();
        let message = seen.as_object_mut().unwrap().remove("message").unwrap();
        assert!(!text(&message).is_empty() && !text(&message).ends_with('\n'));
        assert_eq!(seen, wanted, "{report}");
    };

    let retried = report(&home, &["jobs", "retry", &dead]);
    is(&retried[0], json!({"act": "retry", "changed": true, "job": dead}));
    assert_eq!(retried[0]["message"], format!("job {dead} is due now"));
    home.wait_until_idle();
    let completed = report(&home, &["jobs", "complete", &pending]);
    is(&completed, json!({"act": "complete", "changed": true, "job": pending}));
    let number = purchase.to_string();
    let approved = report(&home, &["held", "approve", &number, "--as", "upgrade"]);
    let made = approved["callback"].clone();
    assert_eq!(home.json(&["callbacks", "show", &made.to_string()])["job"], approved["job"]);
    is(&approved, json!({"act": "approve", "changed": true, "callback": made, "job": approved["job"]}));
    let rejected = report(&home, &["held", "reject", &message.to_string()]);
    is(&rejected, json!({"act": "reject", "changed": true, "callback": message}));
    let dismissed = report(&home, &["attention", "dismiss", "1", "2"]);
    is(&dismissed[1], json!({"act": "dismiss", "changed": true, "callback": 2}));
    assert_eq!(dismissed.as_array().unwrap().len(), 2);
    home.wait_until_idle();

    // An instance is reported by its id, by whichever of its names it was given.
    let id = home.json(&["instances", "show", "biz-1"])["id"].clone();
    let claimed = report(&home, &["instances", "claim", "biz-1", "--tenant", "acme"]);
    is(&claimed, json!({"act": "claim", "changed": true, "instance": id}));
    let again = report(&home, &["instances", "claim", "biz-1", "--tenant", "acme"]);
    is(&again, json!({"act": "claim", "changed": false, "instance": id}));
    let released = report(&home, &["instances", "release", "biz-1"]);
    assert_eq!((&released["instance"], &released["changed"]), (&id, &json!(true)));
    assert!(released["job"].is_string() && released["callback"].is_i64(), "{released}");

    // The listener reports as the command does.
    let body = json!({"who": "ops", "why": "a test"}).to_string();
    let answer = post(admin, "/v1/attention/3/dismiss", "application/json", "", &body).json();
    is(&answer, json!({"act": "dismiss", "changed": true, "callback": 3}));
    let key = home.path("isv-key").display().to_string();
    let to = format!("http://{}/spi", daemon.address);
    let resent = report(&home, &["callbacks", "resend", "3", "--to", &to, "--key-file", &key]);
    is(&resent, json!({"act": "resend", "changed": true, "callback": 3, "status": 200}));

    let line = json!({"account": "alibaba-cn", "id": "i-old"}).to_string();
    std::fs::write(home.path("old.jsonl"), line).unwrap();
    let old = home.path("old.jsonl").display().to_string();
    let imported = report(&home, &["instances", "import", &old, "--any-account"]);
    is(&imported, json!({"act": "import", "changed": true, "instances": 1, "released_before": []}));
    let pruned = report(&home, &["prune", "--older-than", "400d", "--dry-run"]);
    assert_eq!((&pruned["act"], &pruned["changed"]), (&json!("prune"), &json!(false)));
    assert!(pruned["dry_run"] == true && pruned["bytes_after"].is_u64(), "{pruned}");
    let rotated = report(&home, &["seal", "rotate", "--keep-traces"]);
    assert_eq!((&rotated["act"], &rotated["remaining"]), (&json!("rotate"), &json!(0)));
    daemon.stop();

    let copy = home.path("copy.db").display().to_string();
    let ran = home.run(&["backup", &copy, "--config", "spid.toml", "--json"]);
    let backed_up: Value = serde_json::from_str(&ran.stdout).unwrap();
    let database = backed_up["database"].clone();
    is(&backed_up, json!({"act": "backup", "changed": true, "file": copy, "database": database}));
    for name in ["spid.db", "spid.db-wal", "spid.db-shm"] {
        let _ = std::fs::remove_file(home.path(name));
    }
    let restored = report(&home, &["restore", &copy]);
    let wanted =
        json!({"act": "restore", "changed": true, "database": database, "held": 0, "missing_key": null});
    is(&restored, wanted);
}

/// What was done before a failure stays done, so a program must learn of it.
#[test]
fn results_before_a_failure_are_printed() {
    let (home, daemon) = in_trouble();
    daemon.stop();
    let dead = text(&home.list(&["jobs", "list", "--state", "dead"])[0]["id"]).to_owned();
    let done = text(&home.list(&["jobs", "list", "--state", "done"])[0]["id"]).to_owned();
    let ran = act(&home, &["jobs", "drop", &dead, &done, "--json"]);
    let reports: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, reports.as_array().unwrap().len()), (65, 1), "{}", ran.stdout);
    assert_eq!((&reports[0]["act"], &reports[0]["job"]), (&json!("drop"), &json!(dead)));
    assert!(ran.stderr.starts_with("error: the job is done"), "{}", ran.stderr);

    // Without a result, an error is all that is written, as with every other command.
    for arguments in [["jobs", "drop", &done, "--json"], ["held", "approve", "999", "--json"]] {
        let ran = act(&home, &arguments);
        assert!(ran.code != 0 && ran.stderr.starts_with("error: "), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

#[test]
fn a_change_of_many_jobs_reports_each() {
    let (home, daemon) = in_trouble();
    let many = |more: &[&str]| act(&home, &[&["jobs", "drop", "--state", "dead", "--json"], more].concat());
    let chosen = many(&[]);
    let listed: Value = serde_json::from_str(&chosen.stdout).unwrap();
    assert_eq!((chosen.code, &listed[0]["state"]), (64, &json!("dead")), "{}", chosen.stderr);
    let dropped = many(&["--yes"]);
    let reports: Value = serde_json::from_str(&dropped.stdout).unwrap();
    assert_eq!((dropped.code, reports.as_array().unwrap().len()), (0, 1), "{}", dropped.stderr);
    assert_eq!((&reports[0]["job"], &reports[0]["changed"]), (&listed[0]["id"], &json!(true)));
    assert_eq!(many(&["--yes"]).stdout, "[]\n");
    daemon.stop();
}

/// Commands that print something else than a report: text for a file, or nothing but a log.
const WITHOUT_JSON: [&str; 8] = [
    "serve",
    "config default",
    "instances export",
    "callbacks export",
    "hook schema",
    "fixtures schema",
    "completions",
    "man",
];

#[test]
fn every_command_that_reports_has_json() {
    let mut without = BTreeSet::new();
    let mut waiting = vec![String::new()];
    let mut count = 0;
    while let Some(command) = waiting.pop() {
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = std::process::Command::new(SPID).args(&words).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}");
        // The commands of the whole program are in groups. A long description goes on in lines that begin further right.
        let listed = if words.is_empty() { Some(help.as_str()) } else { help.split("Commands:\n").nth(1) };
        let lines =
            listed.unwrap_or_default().lines().take_while(|line| words.is_empty() || !line.is_empty());
        let lines =
            lines.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with([' ', '-'])));
        let names = lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        let names: Vec<&str> = names.collect();
        waiting.extend(names.iter().map(|name| format!("{command} {name}").trim().to_owned()));
        if names.is_empty() {
            count += 1;
            if !help.contains("--json") {
                without.insert(command);
            }
        }
    }
    assert!(count > 40, "{count}");
    assert_eq!(without, WITHOUT_JSON.map(str::to_owned).into());
}

#[test]
fn checked_fixtures_are_reported_as_json() {
    let home = Home::empty();
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/spi-fixtures");
    std::fs::write(home.path("wrong.toml"), "title = 1\n").unwrap();
    let wrong = home.path("wrong.toml").display().to_string();
    let ran = home.run(&["fixtures", "check", good, &wrong, "--json"]);
    let files: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    let (last, sound) = files.split_last().unwrap();
    assert_eq!(ran.code, 65, "{}", ran.stderr);
    assert!(
        last["file"] == json!(wrong) && last["error"].is_string() && last.get("steps").is_none(),
        "{last}"
    );
    assert!(!sound.is_empty());
    assert!(sound.iter().all(|file| file["title"].is_string() && file["steps"].as_u64() > Some(0)));
}
