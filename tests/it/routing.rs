//! Routes: the hook of an order in `spid route`, in `check-config`, and in the daemon.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{self, Home, Ran, create, upgrade};
use serde_json::{Value, json};

const ROUTES: &str = r#"
[server]
listen = "127.0.0.1:0"
reply_within = "30s"

[store]
path = "FOLDER/spid.db"

[[endpoint]]
name = "alibaba-cn"
account = "alibaba-cn"
path = "/spi"
dialect = "alibaba"
keys = [{ file = "FOLDER/isv-key" }]

[[hook]]
name = "usual"
exec = { command = ["sh", "-c", "cat >/dev/null; printf '{\"instance_id\":\"usual-%s\"}' $SPID_IDEMPOTENCY_KEY"] }

[[hook]]
name = "large"
exec = { command = ["sh", "-c", "cat >/dev/null; printf '{\"instance_id\":\"large-%s\"}' $SPID_IDEMPOTENCY_KEY"], retry = ["5s", "1h"], timeout = "90s", concurrency = 2 }

[[hook]]
name = "test"
log = {}

[[hook]]
name = "forgotten"
log = {}

[[route]]
buyer = "10009"
hook = "test"

[[route]]
endpoint = "alibaba-cn"
product = "cmgj000001"
sku = "large"
hook = "large"
"#;

fn home() -> Home {
    let home = Home::empty();
    home.configure(&ROUTES.replace("FOLDER", &home.path("").display().to_string()));
    home
}

fn route(home: &Home, arguments: &[&str]) -> Ran {
    home.run(&[&["route", "--config", "spid.toml"], arguments].concat())
}

#[test]
fn the_route_of_an_order_and_why() {
    let home = home();
    let said = |arguments: &[&str]| {
        let ran = route(&home, arguments);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    assert_eq!(
        said(&["--product", "cmgj000001", "--sku", "large", "--buyer", "10001"]),
        "large  (route[1] matches: endpoint = \"alibaba-cn\", product = \"cmgj000001\", sku = \"large\")\n\
         \x20 route[0] does not match: buyer\n"
    );
    assert_eq!(
        said(&["--product", "cmgj000002", "--sku", "large"]),
        "usual  (no [[route]] matches, so the first hook gets it)\n  route[0] does not match: buyer\n  route[1] does not match: product\n"
    );
    assert_eq!(
        said(&["--endpoint", "alibaba-cn", "--sku", "large", "--product", "cmgj000001", "--buyer", "10009"]),
        "test  (route[0] matches: buyer = \"10009\")\n"
    );
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&said(&[arguments, &["--json"]].concat())).unwrap()
    };
    assert_eq!(
        json(&["--buyer", "10001"]),
        json!({"hook": "usual", "route": null,
               "passed": [{"route": 0, "unmet": ["buyer"]}, {"route": 1, "unmet": ["product", "sku"]}]})
    );
    assert_eq!(json(&["--buyer", "10009"]), json!({"hook": "test", "route": 0, "passed": []}));
    let wrong = route(&home, &["--endpoint", "alibaba-intl"]);
    assert_eq!(wrong.code, 64);
    assert!(wrong.stderr.contains("no endpoint is called `alibaba-intl`"), "{}", wrong.stderr);
}

#[test]
fn check_config_lists_hooks_and_routes_in_order() {
    let ran = home().run(&["check-config", "--config", "spid.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().skip(2).collect();
    assert_eq!(
        lines,
        [
            "  hook usual  timeout: 10m  concurrency: 16  retry: 5s, 30s, 2m, 10m, 30m, 1h, 2h, 4h, 8h",
            "  hook large  timeout: 1m 30s  concurrency: 2  retry: 5s, 1h",
            "  hook test  timeout: 10m  concurrency: 16  retry: 5s, 30s, 2m, 10m, 30m, 1h, 2h, 4h, 8h",
            "  hook forgotten  timeout: 10m  concurrency: 16  retry: 5s, 30s, 2m, 10m, 30m, 1h, 2h, 4h, 8h",
            "  route[0]  buyer = \"10009\" -> test",
            "  route[1]  endpoint = \"alibaba-cn\", product = \"cmgj000001\", sku = \"large\" -> large",
            "  everything else -> usual",
        ]
    );
    assert_eq!(ran.stderr, "warning: no route leads to the hook `forgotten`\n");
}

#[test]
fn orders_go_where_it_was_said() {
    let home = home();
    let daemon = home.start();
    let buy = |name: &str, sku: &str, buyer: &str| {
        daemon.deliver_until_done(&create(name).with("skuId", sku).with("aliUid", buyer)).id()
    };
    assert!(buy("biz-1", "basic", "10001").starts_with("usual-"));
    let large = buy("biz-2", "large", "10001");
    assert!(large.starts_with("large-"), "{large}");
    assert_eq!(buy("biz-3", "large", "10009"), "biz-3", "the log hook chooses no id");
    // By the applied SKU: the hook of `large` changes what the hook of `large` created.
    daemon.deliver_until_done(&upgrade(&large, "basic"));
    let jobs = home.list(&["jobs", "list"]);
    let upgraded = jobs.iter().find(|job| job["action"] == "upgrade").unwrap();
    assert!(upgraded["answer"].as_str().unwrap().contains("large-"), "{upgraded}");
}

#[test]
fn a_job_is_dead_when_the_list_of_its_hook_is_spent() {
    let home = Home::with_hook("exit 75");
    let config = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&config.replace("concurrency = 16", "concurrency = 16, retry = [\"1s\"]"));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    let dead = daemon::until("it is dead", || home.list(&["jobs", "list", "--state", "dead"]).pop());
    assert_eq!(dead["attempts"], 2);
}
