//! From a running daemon to a fixture and back: an exported life, replayed into an empty daemon, ends in the same
//! state.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::path::Path;

use crate::support::daemon::{Daemon, Home, Ran};
use serde_json::Value;

const BUYER: &str = "1958273645001122";
const MOBILE: &str = "13912345678";

/// The steps of a scenario, without its head.
const LIFE: &str = r#"
[vars]
term = { time = "now + 30d" }
second = { time = "now + 60d" }
soon = { time = "now + 12h" }

[[step]]
name = "buy"
action = "createInstance"
retry = { every = "20ms", limit = 500 }
capture = { id = "instanceId" }
params = { aliUid = "BUYER", orderBizId = "4711", orderId = "815", productCode = "cmgj000001", skuId = "basic", mobile = "MOBILE", Count = "2", expiredOn = "${term}" }
expect = { json = { instanceId = { not = "0" } } }

[[step]]
name = "pay"
action = "orderPay"
params = { aliUid = "BUYER", orderBizId = "4711", orderId = "815", requestId = "r-1", productCode = "cmgj000001", skuId = "basic" }

[[step]]
name = "upgrade"
action = "upgradeInstance"
retry = { every = "20ms", limit = 500 }
params = { instanceId = "${id}", orderId = "816", skuId = "pro", Count = "5" }
expect = { json = { success = true } }

[[step]]
name = "renew"
action = "renewInstance"
retry = { every = "20ms", limit = 500 }
params = { instanceId = "${id}", orderId = "817", expiredOn = "${second}" }
expect = { json = { success = true } }

[[step]]
name = "refund"
action = "refundRenewInstance"
retry = { every = "20ms", limit = 500 }
params = { instanceId = "${id}", expiredOn = "${soon}" }
expect = { json = { success = true } }

[[step]]
name = "expire"
action = "expiredInstance"
retry = { every = "20ms", limit = 500 }
params = { instanceId = "${id}" }
expect = { json = { success = true } }
"#;

const END: &str = r#"
[[step]]
name = "release"
action = "releaseInstance"
retry = { every = "20ms", limit = 500 }
params = { instanceId = "${id}", isRefund = "false" }
expect = { json = { success = true } }

[[step]]
name = "late renewal"
action = "renewInstance"
params = { instanceId = "${id}", orderId = "818", expiredOn = "${second}" }
expect = { json = { success = false } }
"#;

fn scenario(steps: &str) -> String {
    let steps = steps.replace("BUYER", BUYER).replace("MOBILE", MOBILE);
    format!("version = 1\ntitle = \"t\"\ndialect = \"alibaba\"\nsource = \"s\"\n{steps}")
}

fn replay(home: &Home, daemon: &Daemon, file: &Path) -> Ran {
    let (url, key, db) =
        (format!("http://{}/spi", daemon.address), home.path("isv-key"), home.path("spid.db"));
    let path = |path: &Path| path.display().to_string();
    let arguments = ["replay", &path(file), "--to", &url, "--key-file", &path(&key), "--db", &path(&db)]
        .map(str::to_owned);
    home.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A daemon with these events.
fn lived(steps: &str) -> (Home, Daemon) {
    let home = Home::with_log_hook();
    let daemon = home.start();
    let file = home.path("life.toml");
    std::fs::write(&file, scenario(steps)).unwrap();
    let ran = replay(&home, &daemon, &file);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    (home, daemon)
}

/// Final state of an instance's life.
fn end(home: &Home, id: &str, members: &[&str]) -> Vec<Value> {
    let shown = home.json(&["instances", "show", id]);
    members.iter().map(|member| shown[*member].clone()).collect()
}

const STATE: [&str; 4] = ["state", "product", "sku", "items"];
const ALL: [&str; 9] =
    ["id", "order_biz_id", "order_id", "buyer", "expires_on", "state", "product", "sku", "items"];

/// Exports the only instance of a daemon, and replays it into an empty one.
fn again(home: &Home, arguments: &[&str]) -> (String, Home) {
    let text = home.look(&[&["instances", "export", "4711"], arguments].concat());
    let other = Home::with_log_hook();
    let daemon = other.start();
    let file = other.path("exported.toml");
    std::fs::write(&file, &text).unwrap();
    let ran = replay(&other, &daemon, &file);
    assert_eq!(ran.code, 0, "{text}\n{}{}", ran.stdout, ran.stderr);
    (text, other)
}

fn only(home: &Home) -> String {
    let instances = home.list(&["instances", "list"]);
    assert_eq!(instances.len(), 1, "{instances:#?}");
    instances[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_life_replayed_as_it_was_ends_in_the_same_state() {
    for steps in [LIFE.to_owned(), [LIFE, END].concat()] {
        let (home, _daemon) = lived(&steps);
        let (_, other) = again(&home, &["--keep-personal", "--keep-dates"]);
        assert_eq!(end(&other, "4711", &ALL), end(&home, "4711", &ALL));
    }
}

#[test]
fn a_life_without_what_is_somebodys_own_ends_in_the_same_state() {
    for steps in [LIFE.to_owned(), [LIFE, END].concat()] {
        let (home, _daemon) = lived(&steps);
        let (text, other) = again(&home, &[]);
        for own in [BUYER, MOBILE, "4711", "815", "816", "r-1"] {
            assert!(!text.contains(own), "{own} in\n{text}");
        }
        assert_eq!(end(&other, &only(&other), &STATE), end(&home, "4711", &STATE));
    }
}

#[test]
fn callbacks_are_exported_by_their_numbers() {
    let (home, _daemon) = lived(LIFE);
    let text = home.look(&["callbacks", "export", "1", "3"]);
    assert!(text.contains("createInstance") && text.contains("upgradeInstance"), "{text}");
    assert!(!text.contains("renewInstance") && !text.contains(BUYER), "{text}");
    let file = home.path("two.toml");
    std::fs::write(&file, &text).unwrap();
    let other = Home::with_log_hook();
    let daemon = other.start();
    let ran = replay(&other, &daemon, &file);
    assert_eq!(ran.code, 0, "{text}\n{}{}", ran.stdout, ran.stderr);
    let db = home.path("spid.db").display().to_string();
    let missing = home.run(&["callbacks", "export", "99", "--db", &db]);
    assert_eq!((missing.code, missing.stdout.as_str()), (66, ""), "{}", missing.stderr);
}
