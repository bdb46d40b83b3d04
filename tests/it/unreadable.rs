//! One unreadable row: each kind of column of every table, damaged in one row. The real daemon starts, stops only the
//! order of that row, names the row, and does everything else, also after `kill -9`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{Daemon, Home, Params, SOON, about, create, renew, until};
use rusqlite::Connection;
use serde_json::Value;

/// Fails the order `biz-bad` and hangs in `biz-hung`, until a file repairs them.
const HOOK: &str = r#"
if [ ! -e healed ]; then
    case "$call" in
    *biz-bad*) exit 75 ;;
    *biz-hung*) wait_for hung ;;
    esac
fi
case "$SPID_ACTION" in
create) printf '{"instance_id":"%s"}' "$(fake_id)" ;;
*) printf '{}' ;;
esac
"#;

fn home() -> Home {
    let home = Home::configured(HOOK, "1s", 16).soon();
    let config = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&config.replace("[server]", "[server]\nadmin_listen = \"127.0.0.1:0\""));
    home
}

/// A database with three orders: one is done, one waits for its retry, and one was running when the daemon was
/// killed.
fn lived() -> Home {
    let home = home();
    // On a busy machine a retry after one second could begin before the kill.
    let config = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    assert!(config.contains(SOON), "{config}");
    home.configure(&config.replace(SOON, "retry = [\"1h\"]"));
    let daemon = home.start();
    daemon.deliver_until_done(&create("biz-good"));
    for order in ["biz-bad", "biz-hung"] {
        assert_eq!(daemon.deliver(&create(order)).id(), "0");
    }
    until("the failed one waits", || {
        let count = "SELECT count(*) FROM job WHERE state = 0 AND attempts > 0";
        home.database().query_row(count, [], |row| row.get::<_, i64>(0)).ok().filter(|count| *count == 1)
    });
    daemon.kill();
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.execute_batch(
        "PRAGMA wal_checkpoint(TRUNCATE);
         UPDATE job SET due_at = 1 WHERE state = 0;
         INSERT INTO act (at, who, act, target, why) VALUES (1, 'ops', 'retry', 'job', 'a test'), (2, 'ops', 'retry', 'job', 'a test');
         INSERT INTO once VALUES ('alibaba-cn', x'00112233445566778899aabbccddeeff', 1);",
    )
    .unwrap();
    home
}

/// The same in another home, with repaired hooks.
fn copy(of: &Home) -> Home {
    let home = home();
    for file in ["spid.db", "spid.db.key"] {
        std::fs::copy(of.path(file), home.path(file)).unwrap();
    }
    std::fs::write(home.path("healed"), "").unwrap();
    home
}

/// Changes rows like a disk or a program without the schema: no check of types and NOT NULL applies.
fn spoil(home: &Home, sql: &str) {
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.execute_batch(
        "PRAGMA foreign_keys = OFF;
         CREATE TEMP TABLE kept AS SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%';
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(replace(replace(sql, 'STRICT, ', ''), ') STRICT', ')'), 'NOT NULL', '')
           WHERE name IN (SELECT name FROM kept);
         PRAGMA writable_schema = RESET;",
    )
    .unwrap();
    assert_eq!(db.execute(sql, []).unwrap(), 1, "{sql}");
    db.execute_batch(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = (SELECT sql FROM kept WHERE kept.name = sqlite_schema.name)
           WHERE name IN (SELECT name FROM kept);
         PRAGMA writable_schema = RESET;",
    )
    .unwrap();
}

/// The damage: the statement, and the text that names the row.
struct Case {
    sql: &'static str,
    named: &'static str,
    /// The order beside it that continues.
    other: &'static str,
}

/// If the waiting order is damaged, the running one continues, and vice versa.
const fn bad(sql: &'static str, named: &'static str) -> Case {
    Case { sql, named, other: "biz-hung" }
}

const fn hung(sql: &'static str, named: &'static str) -> Case {
    Case { sql, named, other: "biz-bad" }
}

fn check_commands(home: &Home, daemon: &Daemon) {
    for list in [
        ["instances", "list"].as_slice(),
        &["jobs", "list"],
        &["callbacks", "list"],
        &["held", "list"],
        &["attention"],
        &["acts"],
    ] {
        assert!(!home.look(list).is_empty());
        home.list(list);
    }
    for path in ["/v1/instances", "/v1/jobs", "/v1/callbacks", "/v1/held", "/v1/attention", "/v1/acts"] {
        let body = daemon.admin(path);
        let parsed: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        assert!(parsed.get("error").is_none(), "{path}: {body}");
    }
    for (page, heading) in [
        ("/console", "Latest callbacks"),
        ("/console/work", "Work that needs attention"),
        ("/console/instances", "Instances"),
    ] {
        let body = daemon.admin(page);
        assert!(body.contains(heading), "{page}: {body}");
    }
    assert!(daemon.admin("/metrics").contains("spid_jobs"));
}

/// Everything that does not need the row is done.
fn check_others(daemon: &Daemon, other: &str, round: usize) {
    let id = daemon.deliver_until_done(&create(&format!("biz-new-{round}"))).id();
    daemon.deliver_until_done(&renew(&id, "2031-01-01 00:00:00"));
    daemon.deliver_until_done(&create(other));
    daemon.deliver_until_done(&create("biz-good"));
}

fn check(template: &Home, case: &Case) {
    let home = copy(template);
    spoil(&home, case.sql);
    let mut said = String::new();
    for round in 0..2 {
        let daemon = home.start();
        check_others(&daemon, case.other, round);
        check_commands(&home, &daemon);
        said.push_str(&daemon.log());
        daemon.kill();
    }
    for list in [
        ["instances", "list"].as_slice(),
        &["jobs", "list"],
        &["callbacks", "list"],
        &["acts"],
        &["jobs", "list", "--state", "held"],
    ] {
        let db = home.path("spid.db");
        let ran = home.run(&[list, &["--db", db.to_str().unwrap()]].concat());
        said.push_str(&(ran.stdout + &ran.stderr));
    }
    assert!(said.contains(case.named), "{}: nothing names `{}`:\n{said}", case.sql, case.named);
}

fn check_all(cases: &[Case]) {
    let template = lived();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    check(&template, case);
                }
            });
        }
    });
}

/// Callback 2 and job 2 belong to the waiting order, 3 to the running one.
#[test]
fn a_callback_that_cannot_be_read_stops_its_order_alone() {
    check_all(&[
        bad(
            "UPDATE callback SET body = '{}' WHERE number = 2",
            "row 2 of table `callback` cannot be read: `body`",
        ),
        bad("UPDATE callback SET body = 'no JSON' WHERE number = 2", "row 2 of table `callback`"),
        bad("UPDATE callback SET body = NULL WHERE number = 2", "row 2 of table `callback`"),
        bad(
            "UPDATE callback SET action = -1 WHERE number = 2",
            "row 2 of table `callback` cannot be read: `action` is -1",
        ),
        bad("UPDATE callback SET account = CAST(x'ff' AS TEXT) WHERE number = 2", "`account` is not UTF-8"),
        bad("UPDATE callback SET received_at = NULL WHERE number = 2", "`received_at` is of the wrong type"),
        bad("UPDATE callback SET deliveries = 'many' WHERE number = 2", "`deliveries` is of the wrong type"),
        bad("UPDATE callback SET budget = -5 WHERE number = 2", "`budget` is -5"),
        bad("UPDATE callback SET told_at = 'then' WHERE number = 2", "`told_at` is of the wrong type"),
        hung(
            "UPDATE callback SET body = '{}' WHERE number = 3",
            "row 3 of table `callback` cannot be read: `body`",
        ),
        hung("DELETE FROM callback WHERE number = 3", "`callback` is 3, but that row is missing"),
    ]);
}

#[test]
fn a_job_that_cannot_be_read_stops_its_order_alone() {
    check_all(&[
        bad("UPDATE job SET id = x'00' WHERE number = 2", "row 2 of table `job` cannot be read: `id`"),
        bad("UPDATE job SET attempts = -1 WHERE number = 2", "`attempts` is -1"),
        bad("UPDATE job SET action = -1 WHERE number = 2", "`action` is -1"),
        bad("UPDATE job SET extra = NULL WHERE number = 2", "`extra` is of the wrong type"),
        bad("UPDATE job SET state = -3 WHERE number = 2", "`state` is -3"),
        bad("UPDATE job SET due_at = 'soon' WHERE number = 2", "`due_at` is of the wrong type"),
        bad("UPDATE job SET note = CAST(x'ff' AS TEXT) WHERE number = 2", "`note` is not UTF-8"),
        bad("UPDATE job SET callback = NULL WHERE number = 2", "`callback` is of the wrong type"),
        hung("UPDATE job SET step = 'first' WHERE number = 3", "`step` is of the wrong type"),
        hung("UPDATE job SET lease_until = 'long' WHERE number = 3", "`lease_until` is of the wrong type"),
        hung("UPDATE job SET created_at = NULL WHERE number = 3", "`created_at` is of the wrong type"),
    ]);
}

#[test]
fn an_instance_that_cannot_be_read_stops_its_orders_alone() {
    check_all(&[
        bad(
            "UPDATE instance SET state = -1 WHERE number = 2",
            "row 2 of table `instance` cannot be read: `state` is -1",
        ),
        bad("UPDATE instance SET items = 'none' WHERE number = 2", "`items` is not a map of items"),
        bad("UPDATE instance SET account = NULL WHERE number = 2", "`account` is of the wrong type"),
        bad("UPDATE instance SET began = 'yes' WHERE number = 2", "`began` is of the wrong type"),
        bad("UPDATE instance SET sku = CAST(x'ff' AS TEXT) WHERE number = 2", "`sku` is not UTF-8"),
        hung("UPDATE instance SET created_at = 'once' WHERE number = 3", "`created_at` is of the wrong type"),
    ]);
}

#[test]
fn a_row_of_what_stands_beside_orders_stops_none() {
    check_all(&[
        bad("UPDATE attempt SET ending = NULL WHERE job = 2", ""),
        bad(
            "UPDATE act SET who = CAST(x'ff' AS TEXT) WHERE number = 1",
            "row 1 of table `act` cannot be read: `who`",
        ),
        bad("UPDATE act SET at = 'then' WHERE number = 2", "row 2 of table `act`"),
        bad("UPDATE key_use SET mark = x'00'", ""),
        bad("UPDATE key_use SET since = 'ever'", ""),
        bad("UPDATE purchase SET instance = 'which' WHERE order_id = 'order-of-biz-bad'", ""),
        bad("UPDATE purchase SET account = CAST(x'ff' AS TEXT) WHERE order_id = 'order-of-biz-bad'", ""),
        bad("UPDATE once SET until = 'then'", ""),
    ]);
}

/// Rows that a newer spid may have written stay unchanged.
#[test]
fn what_a_newer_spid_wrote_is_skipped_and_not_held() {
    let template = lived();
    let skipped = |sql: &str, row: i64, other: &str, state: i64| {
        let home = copy(&template);
        spoil(&home, sql);
        let daemon = home.start();
        check_others(&daemon, other, 0);
        check_commands(&home, &daemon);
        let named = format!("skipped: row {row} of table");
        daemon.wait_for_log(&named);
        let kept = "SELECT state FROM job WHERE number = ?1";
        let kept: i64 = home.database().query_row(kept, [row], |row| row.get(0)).unwrap();
        assert_eq!(kept, state, "{sql}");
        assert_eq!(daemon.log().matches(&named).count(), 1, "it is said at each look:\n{}", daemon.log());
    };
    for sql in [
        "UPDATE callback SET body = json_set(body, '$.version', 2) WHERE number = 2",
        "UPDATE callback SET body = '{\"version\": 9, \"new\": true}' WHERE number = 2",
        "UPDATE callback SET action = 77 WHERE number = 2",
        "UPDATE job SET action = 77 WHERE number = 2",
        "UPDATE instance SET state = 77 WHERE number = 2",
    ] {
        skipped(sql, 2, "biz-hung", 0);
    }
    for sql in [
        "UPDATE callback SET body = json_set(body, '$.version', 2) WHERE number = 3",
        "UPDATE job SET action = 77 WHERE number = 3",
    ] {
        skipped(sql, 3, "biz-bad", 1);
    }
}

/// The complete repair: held and named, repaired by hand, retried, done.
#[test]
fn an_order_is_done_once_its_row_is_mended() {
    let template = lived();
    let home = copy(&template);
    let body: String = home
        .database()
        .query_row("SELECT body FROM callback WHERE number = 2", [], |row| row.get(0))
        .unwrap();
    spoil(&home, "UPDATE callback SET body = '{}' WHERE number = 2");
    let daemon = home.start();
    daemon.wait_for_log("held: row 2 of table `callback` cannot be read: `body`");
    let held = home.list(&["held", "list"]).into_iter().find(|row| row["kind"] == "held-job").unwrap();
    assert!(held["reason"].as_str().unwrap().contains("row 2 of table `callback`"), "{held}");
    // The marketplace is told to call again, and no success is reported.
    assert_eq!(daemon.deliver(&create("biz-bad")).id(), "0");
    assert!(!daemon.deliver(&Params::new("expiredInstance").with("orderBizId", "biz-bad")).is_success());
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    db.execute("UPDATE callback SET body = ?1 WHERE number = 2", [body]).unwrap();
    let (job, path) = (held["job"].as_str().unwrap(), home.path("spid.db"));
    let ran = home.run(&["jobs", "retry", job, "--why", "it is mended", "--db", path.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    daemon.deliver_until_done(&create("biz-bad"));
    daemon.stop();
}

/// A name that leads nowhere or is missing is not free: its order must not run a second time.
#[test]
fn an_order_whose_name_cannot_be_read_is_not_done_twice() {
    let template = lived();
    for sql in [
        "UPDATE name SET instance = 'which' WHERE name = 'biz-good'",
        "UPDATE name SET instance = 99 WHERE name = 'biz-good'",
        "UPDATE name SET name = CAST(x'ff' AS TEXT) WHERE name = 'biz-good'",
        "UPDATE name SET account = CAST(x'ff' AS TEXT) WHERE name = 'biz-good'",
        "DELETE FROM name WHERE name = 'biz-good'",
    ] {
        let home = copy(&template);
        spoil(&home, sql);
        let daemon = home.start();
        assert_eq!(daemon.deliver(&create("biz-good")).id(), "0");
        daemon.wait_for_log("row alibaba-cn/biz-good of table `name` cannot be read");
        daemon.deliver_until_done(&create("biz-new"));
        check_commands(&home, &daemon);
        let sold = "SELECT count(*) FROM instance WHERE order_biz_id = 'biz-good'";
        let sold: i64 = home.database().query_row(sold, [], |row| row.get(0)).unwrap();
        assert_eq!(sold, 1, "{sql}");
    }
}

/// Number of a new row, for any damage to the counter or to the rows before.
#[test]
fn a_number_that_is_lost_or_has_no_next_stops_no_new_order() {
    check_all(&[
        bad("UPDATE head SET job = 0", ""),
        bad("UPDATE head SET job = -9223372036854775808", ""),
        bad("UPDATE head SET job = 9223372036854775807", ""),
        bad("UPDATE head SET callback = 9223372036854775807", ""),
        bad("UPDATE head SET instance = 9223372036854775807", ""),
        bad("UPDATE head SET instance = 0, callback = 0, active = -9223372036854775808", ""),
        bad("UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'act'", ""),
        bad("UPDATE job SET number = 99 WHERE number = 2", ""),
        bad("UPDATE job SET number = 9223372036854775807 WHERE number = 2", ""),
        bad("UPDATE callback SET number = 9223372036854775807 WHERE number = 2", ""),
        bad("UPDATE instance SET number = 9223372036854775807 WHERE number = 2", ""),
        bad("UPDATE act SET number = 9223372036854775807 WHERE number = 2", ""),
    ]);
}

#[test]
fn an_account_that_cannot_be_read_stops_no_start() {
    check_all(&[
        bad(
            "UPDATE name SET account = CAST(x'ff' AS TEXT) WHERE name = 'biz-bad'",
            "of table `name` cannot be read: `account` is not UTF-8",
        ),
        bad(
            "UPDATE purchase SET account = CAST(x'ff' AS TEXT) WHERE order_id = 'order-of-biz-bad'",
            "of table `purchase` cannot be read: `account` is not UTF-8",
        ),
    ]);
}

#[test]
fn an_instance_that_cannot_be_read_is_not_called_missing() {
    let template = lived();
    for (sql, named) in [
        (
            "UPDATE instance SET buyer = CAST(x'ff' AS TEXT) WHERE number = 2",
            "row 2 of table `instance` cannot be read: `buyer` is not UTF-8",
        ),
        ("DELETE FROM instance WHERE number = 2", "row alibaba-cn/biz-bad of table `name` cannot be read"),
    ] {
        let home = copy(&template);
        spoil(&home, sql);
        let daemon = home.start();
        for command in [&["show"][..], &["release", "--why", "test"]] {
            let ran = home.run(&[&["instances"], command, &["biz-bad", "--config", "spid.toml"]].concat());
            assert!(ran.code == 65 && ran.stderr.contains(named), "{sql}: {command:?}: {ran:?}");
        }
        for path in ["/v1/instances/biz-bad", "/console/instances/biz-bad"] {
            let body = daemon.admin(path);
            assert!(body.contains("cannot be read"), "{sql}: {path}: {body}");
        }
    }
}

#[test]
fn unreadable_name_of_an_instance_stops_no_list() {
    let home = home();
    let daemon = home.start();
    // Its release came before anything else, so its only name is in another table.
    assert!(!daemon.deliver(&about("releaseInstance", "old-7")).success());
    daemon.stop();
    spoil(&home, "UPDATE name SET name = CAST(x'ff' AS TEXT) WHERE name = 'old-7'");
    assert_eq!(home.list(&["instances", "list"]).len(), 1);
    assert_eq!(home.list(&["callbacks", "list"])[0]["instance"], "old-7");
    check_commands(&home, &home.start());
}

#[test]
fn unreadable_instance_is_on_the_attention_list() {
    let home = lived();
    spoil(&home, "UPDATE instance SET sku = CAST(x'ff' AS TEXT) WHERE number = 2");
    let daemon = home.start();
    let items = home.list(&["attention"]);
    let unreadable: Vec<&Value> = items.iter().filter(|item| item["reason"] == "unreadable").collect();
    let [item] = unreadable.as_slice() else { panic!("{items:?}") };
    assert_eq!((&item["account"], &item["instance"]), (&"alibaba-cn".into(), &"biz-bad".into()), "{item}");
    assert!(item.get("callback").is_none() && item.get("action").is_none(), "{item}");
    assert_eq!(item["detail"], "row 2 of table `instance` cannot be read: `sku` is not UTF-8");
    assert_eq!(item["todo"], "repair row 2 of table `instance`, or restore a backup");
    let shown = home.run(&["attention", "--config", "spid.toml"]);
    assert!(shown.stderr.contains("hint: instance biz-bad: repair row 2"), "{shown:?}");
    for path in ["/v1/attention", "/console/", "/console/work"] {
        let body = daemon.admin(path);
        assert!(body.contains("row 2 of table `instance` cannot be read"), "{path}: {body}");
    }
    assert!(!daemon.admin("/metrics").contains("unreadable\"}"));
}
