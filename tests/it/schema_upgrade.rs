//! One half of a life under version 2 of the schema, the other half now. `store_versions/2.sql` is the data of the
//! last program with that version after the deliveries below. Today's rules must answer their repeats.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{
    Answer, Daemon, Home, Params, QUICK, about, create, exchange, get_text, until, upgrade,
};
use serde_json::{Value, json};

const KEY: &str = "fake-key-of-old-times";
const KOO_KEY: &str = "fake-key-of-old-koo";

fn home() -> Home {
    let home = home_without_database();
    let db = rusqlite::Connection::open(home.path("spid.db")).unwrap();
    db.execute_batch(include_str!("../store_versions/2.sql")).unwrap();
    home
}

fn home_without_database() -> Home {
    let home = Home::with_hook(QUICK);
    std::fs::write(home.path("key"), KEY).unwrap();
    std::fs::write(home.path("key2"), KOO_KEY).unwrap();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let (head, rest) = text.split_once("[[endpoint]]").unwrap();
    let (_, hooks) = rest.split_once("[[hook]]").unwrap();
    home.configure(&format!(
        "{head}
[[endpoint]]
name = \"ali\"
account = \"ali\"
path = \"/spi\"
dialect = \"alibaba\"
timezone = \"UTC\"
keys = [{{ file = \"key\" }}]
[[endpoint]]
name = \"koo\"
account = \"koo\"
path = \"/koo\"
dialect = \"koogallery\"
keys = [{{ file = \"key2\" }}]
orders = {{ none = true }}
[[hook]]{hooks}"
    ));
    home
}

/// Fills a database of version 4 with orders that are done, and one that is queued.
fn version_4(home: &Home, orders: u32) {
    let db = rusqlite::Connection::open(home.path("spid.db")).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    for schema in [
        include_str!("../../src/store/schema.sql"),
        include_str!("../../src/store/schema-2.sql"),
        include_str!("../../src/store/schema-3.sql"),
        include_str!("../../src/store/schema-4.sql"),
    ] {
        db.execute_batch(schema).unwrap();
    }
    let count = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {orders})");
    db.execute_batch(&format!(
        "PRAGMA application_id = 1936746852; PRAGMA user_version = 4; BEGIN;
         INSERT INTO instance (id, order_biz_id, state, account, endpoint, buyer, order_id, began, tombstone, adopted,
           created_by, created_at, updated_at)
           {count} SELECT 'i-' || i, 'biz-' || i, 1 + (i % 10 = 0), 'ali', 'ali', 'b' || i % 7, 'o-' || i, 1, 0, 0, i, i, i FROM n;
         INSERT INTO name {count} SELECT 'ali', 'biz-' || i, i FROM n;
         INSERT INTO purchase {count} SELECT 'ali', 'o-' || i, i FROM n;
         INSERT INTO callback (account, endpoint, key_label, occurrence, instance, job, action, disposition, received_at,
           last_received_at, deliveries, told_at, body)
           {count} SELECT 'ali', 'ali', 'key', randomblob(16), i, i, 0, 0, i, i, 1, i,
             '{{\"action\":\"create\",\"action_name\":\"createInstance\",\"subject\":{{\"order_biz_id\":\"biz-' || i || '\"}},\"parameters\":{{}}}}' FROM n;
         INSERT INTO job (id, callback, instance, in_lane, action, state, attempts, step, extra, due_at, created_at, ended_at)
           {count} SELECT randomblob(16), i, i, 1, 0, 5, 1, 0, 0, i, i, i FROM n;
         UPDATE instance SET id = NULL, state = 0 WHERE number = {orders};
         UPDATE job SET state = 0, ended_at = NULL WHERE number = {orders};
         UPDATE callback SET told_at = NULL WHERE number = {orders};
         COMMIT;"
    ))
    .unwrap();
}

/// The migration is one commit: killed at any time it leaves the old database, and the next start does it again.
#[test]
fn a_migration_that_is_killed_is_done_by_the_next_start() {
    const ORDERS: u32 = 20_000;
    let home = home_without_database();
    version_4(&home, ORDERS);
    let log = home.path("spid.db-wal");
    let mut unfinished = 0;
    for megabytes in [0, 1, 3, 6] {
        let said = std::fs::File::create(home.path("said")).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
        command
            .args(["serve", "--config"])
            .arg(home.path("spid.toml"))
            .current_dir(home.path(""))
            .stderr(said);
        let mut daemon = command.spawn().unwrap();
        // The write-ahead log grows as the rows are written.
        until("the migration has come so far, or has ended", || {
            let written = std::fs::metadata(&log).map_or(0, |log| log.len());
            let said = std::fs::read_to_string(home.path("said")).unwrap();
            assert!(!said.contains("error"), "{said}");
            (written > megabytes << 20 || said.contains("migrated the database schema")).then_some(())
        });
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let version: i64 = home.database().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        unfinished += u32::from(version == 4);
        if version > 4 {
            break;
        }
    }
    assert!(unfinished > 0, "no kill came in time");
    let daemon = home.start();
    home.wait_until_idle();
    let number = |sql: &str| -> i64 { home.database().query_row(sql, [], |row| row.get(0)).unwrap() };
    let ok: String = home.database().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(ok, "ok");
    for table in ["instance", "callback", "job"] {
        assert_eq!(number(&format!("SELECT count(*) FROM {table}")), i64::from(ORDERS), "{table}");
    }
    // The queued job has run, and the totals follow.
    assert_eq!(home.state("biz-20000"), "active", "{:?}", home.list(&["jobs", "list"]).first());
    let counted = number("SELECT pending * 1000000 + active * 2 + frozen * 3 FROM head");
    let rows = number("SELECT sum(CASE state WHEN 0 THEN 1000000 WHEN 1 THEN 2 ELSE 3 END) FROM instance");
    assert_eq!(counted, rows);
    daemon.stop();
}

fn say(daemon: &Daemon, request: &Params) -> Answer {
    let query = format!("{}&token={}", request.encoded(), request.token_with(KEY));
    exchange(daemon.address, &get_text("/spi", &query)).unwrap()
}

/// The comment beside each delivery names the data that version 2 stored.
#[test]
fn what_an_older_spid_kept_is_answered_by_todays_rules() {
    let home = home();
    let daemon = home.start();
    // Carried out and unreported, and then replaced by `s`.
    assert!(!say(&daemon, &upgrade("biz-up", "b")).success());
    assert_eq!(home.json(&["instances", "show", "biz-up"])["sku"], "s");
    assert!(say(&daemon, &upgrade("biz-up", "s")).success());
    // Another purchase under the same name; its answer had the id of the first.
    let paid = create("biz-trial").with("orderId", "paid").with("expiredOn", "2031-01-01 00:00:00");
    let answer = say(&daemon, &paid);
    assert_eq!(answer.id(), "0", "{}", answer.body);
    assert!(!answer.body.contains("frontEndUrl"), "{}", answer.body);
    let trial = create("biz-trial").with("trial", "true").with("expiredOn", "2029-01-08 00:00:00");
    assert_eq!(say(&daemon, &trial).id(), "biz-trial", "the first purchase");
    // The trial ends before an operator has looked.
    assert!(!say(&daemon, &about("expiredInstance", "biz-trial")).success());
    assert_eq!(home.state("biz-trial"), "active");
    // A renewal that was carried out and refunded.
    let renewal =
        about("renewInstance", "biz-renew").with("orderId", "r1").with("expiredOn", "2031-01-01 00:00:00");
    assert!(say(&daemon, &renewal).success());
    assert_eq!(home.json(&["instances", "show", "biz-renew"])["expires_on"], "2030-01-01T00:00:00Z");
    // Released: the answer is the id, and nothing else.
    let gone = say(&daemon, &create("biz-gone"));
    assert_eq!((gone.id().as_str(), gone.body.contains("frontEndUrl")), ("biz-gone", false));
    // The instance is frozen.
    assert!(say(&daemon, &about("expiredInstance", "biz-expired")).success());
    // Refused long ago: run again, with its own key.
    assert_ne!(say(&daemon, &create("biz-refused")).id(), "0");
    let keys: std::collections::BTreeSet<String> =
        home.list(&["jobs", "list"]).iter().map(|job| job["id"].to_string()).collect();
    assert_eq!(keys.len(), home.list(&["jobs", "list"]).len());
    let created: Vec<Value> = home.list(&["jobs", "list"]);
    assert_eq!(created.iter().filter(|job| job["action"] == "create" && job["state"] == "done").count(), 7);
}

/// Version 2 stored a renewal with a change of the product as two callbacks: one done and reported, one waiting.
#[test]
fn a_request_of_two_parts_that_an_older_spid_kept_as_two_is_done_when_both_are() {
    let home = home();
    let daemon = home.start();
    home.wait_until_idle();
    let scenario = home.path("koo.toml");
    let text = "version = 1
title = \"the other half\"
dialect = \"koogallery\"
source = \"none\"
[[step]]
name = \"change\"
action = \"refreshInstance\"
retry = { every = \"200ms\", limit = 100 }
params = { instanceId = \"koo-1\", orderId = \"CS2\", productId = \"p-2\", expireTime = \"20310101000000\", scene = \"RENEWAL_CHANGE\" }
expect = { json = { resultCode = \"000000\" } }
";
    std::fs::write(&scenario, text).unwrap();
    let to = format!("http://{}/koo", daemon.address);
    let ran = home.run(&["replay", "koo.toml", "--to", &to, "--key-file", "key2"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let jobs = home.list(&["jobs", "list"]);
    let of = |action: &str| {
        jobs.iter()
            .filter(|job| {
                job["action"] == action && job["created_at"].as_str() > Some("2026-11-30T16:55:19.56")
            })
            .map(|job| job["state"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((of("renew"), of("upgrade")), (vec![json!("done")], vec![json!("done")]), "{jobs:#?}");
}
