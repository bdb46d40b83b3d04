//! JSON of commands and of the admin listener: one shape for the same thing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::admin::{admin_of, ask, with_admin};
use crate::support::daemon::{Daemon, Home, about, create, renew, until, upgrade};
use rusqlite::Connection;
use serde_json::Value;
use spid_hook::id::Id;

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
        (["jobs", "list"].as_slice(), ["INSTANCE", "ORDER", "HOOK"].as_slice()),
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
    assert!(shown.contains(&id) && shown.contains("  HOOK ") && shown.contains("  provision "), "{shown}");
}
