//! One half of a life under version 2 of the schema, the other half now. `store_versions/2.sql` is the data of the
//! last program with that version after the deliveries below. Today's rules must answer their repeats.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{
    Answer, Daemon, Home, Params, QUICK, about, create, exchange, get_text, upgrade,
};
use serde_json::{Value, json};

const KEY: &str = "fake-key-of-old-times";
const KOO_KEY: &str = "fake-key-of-old-koo";

fn home() -> Home {
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
    let db = rusqlite::Connection::open(home.path("spid.db")).unwrap();
    db.execute_batch(include_str!("../store_versions/2.sql")).unwrap();
    home
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
