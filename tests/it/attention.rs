//! A bad day, and the attention list in the command line, as JSON, in the console and on the metrics page.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use crate::market_jobs::{self, payment, served, stand_in};
use crate::support::admin::{admin_of, ask, post, with_admin};
use crate::support::daemon::{self, Daemon, Home, about, create, renew, until, upgrade};
use rusqlite::Connection;
use serde_json::{Value, json};
use spid::internals::lab::market_stand_in::Failure;

/// Fails, refuses or waits if a file named after action and order says so. Otherwise it succeeds.
const TOLD: &str = r#"
name=$(order_biz_id)
[ -e "fail-$SPID_ACTION-$name" ] && exit 75
[ -e "refuse-$SPID_ACTION-$name" ] && { printf '{"refuse":"not to this buyer"}'; exit 65; }
[ -e "pend-$SPID_ACTION-$name" ] && { printf '{"pending":"waits for sales"}'; exit 0; }
printf '{}'
"#;

fn home() -> Home {
    let name = r#"order_biz_id() { printf "%s" "$call" | sed -n 's/.*"order_biz_id":"\([^"]*\)".*/\1/p'; }"#;
    let home = Home::configured(&format!("{name}\n{TOLD}"), "60s", 16);
    with_admin(&home, "");
    home
}

fn tell(home: &Home, what: &str) {
    std::fs::write(home.path(what), "").unwrap();
}

/// Changes rows directly, beside the daemon.
fn meddle(home: &Home, sql: &str) -> usize {
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.execute(sql, []).unwrap()
}

/// Sets every failed job to its last attempt.
fn kill_jobs(home: &Home) {
    until("the job has failed", || {
        let sql = "UPDATE job SET state = 4, step = 9, extra = 0 WHERE state = 0 AND attempts > 0";
        (meddle(home, sql) > 0).then_some(())
    });
}

/// Items of the list, by callback name and instance.
fn listed(home: &Home) -> BTreeMap<String, Value> {
    let items = home.list(&["attention"]);
    let key = |item: &Value| {
        format!("{} {}", item["reason"].as_str().unwrap(), item["instance"].as_str().unwrap_or("-"))
    };
    let found = items.iter().filter(|item| item["action"] != "upgrade" || item["reason"] == "dead");
    found.map(|item| (key(item), item.clone())).collect()
}

/// Creates every kind of item of the list.
fn a_bad_day(home: &Home, daemon: &Daemon) {
    // The hook refuses a paid order.
    tell(home, "refuse-create-biz-refused");
    assert_eq!(daemon.deliver(&create("biz-refused")).id(), "0");
    for name in ["biz-dead", "biz-other", "biz-gone", "biz-quiet", "biz-pending", "biz-moved"] {
        assert_eq!(daemon.deliver(&create(name)).id(), name);
    }
    // The hook fails until it is dead.
    tell(home, "fail-upgrade-biz-dead");
    assert!(!daemon.deliver(&upgrade("biz-dead", "gold")).success());
    kill_jobs(home);
    // Another purchase under the same name.
    assert_eq!(daemon.deliver(&create("biz-other").with("orderId", "another")).id(), "0");
    // A paid renewal waits behind a failing upgrade when the instance is released.
    tell(home, "fail-upgrade-biz-gone");
    assert!(!daemon.deliver(&upgrade("biz-gone", "gold")).success());
    kill_jobs(home);
    let renewal = renew("biz-gone", "2031-01-01 00:00:00");
    daemon.connect().write_all(daemon::get_text("/spi", &renewal.signed()).as_bytes()).unwrap();
    until("the renewal waits", || {
        let jobs = home.list(&["jobs", "list", "--state", "queued"]);
        jobs.iter().any(|job| job["action"] == "renew").then_some(())
    });
    assert!(daemon.deliver(&about("releaseInstance", "biz-gone")).success());
    // A person has to finish this.
    tell(home, "pend-renew-biz-pending");
    assert!(!daemon.deliver(&renew("biz-pending", "2031-01-01 00:00:00")).success());
    // A customer from before spid.
    assert!(!daemon.deliver(&renew("biz-unknown", "2031-01-01 00:00:00")).success());
    // The same purchase again, with another date.
    assert_eq!(
        daemon.deliver(&create("biz-moved").with("expiredOn", "2030-02-02 00:00:00")).id(),
        "biz-moved"
    );
    // Done hours ago, but the marketplace has not called again.
    let unreported = "UPDATE callback SET told_at = NULL, last_received_at = last_received_at - 7200000
        WHERE instance = (SELECT instance FROM name WHERE name = 'biz-quiet')";
    assert_eq!(meddle(home, unreported), 1);
}

#[test]
fn everything_of_a_bad_day_is_on_one_list() {
    let home = home();
    let daemon = home.start();
    let admin = admin_of(&daemon);
    assert!(home.look(&["attention"]).lines().count() <= 1, "a good day");
    a_bad_day(&home, &daemon);
    let items = listed(&home);
    let expected = [
        ("refused biz-refused", "create", "not to this buyer"),
        ("dead biz-dead", "upgrade", "75"),
        ("held biz-other", "create", "another order or another buyer"),
        ("superseded biz-gone", "renew", "a later release"),
        ("pending biz-pending", "renew", "waits for sales"),
        ("unknown-instance biz-unknown", "renew", "no instance with this name"),
        ("other-values biz-moved", "create", "no hook was run"),
        ("unreported biz-quiet", "create", "the last delivery was at"),
    ];
    let (list, page) = (home.look(&["attention"]), ask(admin, "/console/").body);
    let served: Value = ask(admin, "/v1/attention").json();
    for (key, action, words) in expected {
        let item = items.get(key).unwrap_or_else(|| panic!("{key} is not in {items:#?}"));
        assert_eq!(item["action"], action, "{key}");
        assert!(item["detail"].as_str().unwrap().contains(words), "{item:#}");
        assert!(item["todo"].as_str().unwrap().contains("spid "), "{item:#}");
        assert!(!item["since"].is_null() && item["deliveries"].as_u64() > Some(0), "{item:#}");
        assert_eq!(item["delivery_limit"], json!(120), "{item:#}");
        let (reason, instance) = key.split_once(' ').unwrap();
        let row = |line: &&str| line.starts_with(reason) && line.contains(instance);
        assert!(list.lines().any(|line| row(&line)), "{key} is not in {list}");
        assert!(page.contains(instance) && page.contains(reason), "{key} is not in {page}");
        assert!(served["items"].as_array().unwrap().contains(item), "{served:#}");
    }
    let told = items.iter().filter(|(key, _)| !key.starts_with("other-values"));
    for (key, item) in told {
        assert!(item["then"].as_str().unwrap().contains("retry page"), "{key}: {item:#}");
        assert!(!item["buyer"].is_null() || !item["order"].is_null(), "{key}: {item:#}");
    }
    let metrics = ask(admin, "/metrics").body;
    for reason in ["refused", "held", "pending", "unknown-instance", "other-values", "unreported"] {
        let row = format!("spid_attention{{reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&row), "{row}{metrics}");
    }
    assert!(metrics.contains("spid_attention{reason=\"deliveries\"} 0\n"), "{metrics}");

    // The output reports the omitted items.
    let shown = home.run(&["attention", "--limit", "2", "--config", "spid.toml"]);
    assert!(
        shown.stderr.contains(&format!("{} more are not shown", items_of(&home) - 2)),
        "{}",
        shown.stderr
    );
    let shown = home.run(&["held", "list", "--limit", "1", "--config", "spid.toml"]);
    assert!(shown.stderr.contains("2 more are not shown"), "{}", shown.stderr);
    drop(daemon);
}

fn items_of(home: &Home) -> usize {
    home.list(&["attention"]).len()
}

#[test]
fn what_was_seen_to_is_off_the_list_and_what_still_waits_is_not() {
    let home = home();
    let daemon = home.start();
    a_bad_day(&home, &daemon);
    let items = listed(&home);
    let number = |key: &str| items[key]["callback"].to_string();
    let act = |arguments: &[&str]| {
        home.run(&[arguments, &["--config", "spid.toml", "--who", "ops", "--why", "refunded"]].concat())
    };
    for key in ["held biz-other", "dead biz-dead", "pending biz-pending"] {
        let ran = act(&["attention", "dismiss", &number(key)]);
        assert_eq!(ran.code, 65, "{key}: {}{}", ran.stdout, ran.stderr);
    }
    let seen_to = [
        "refused biz-refused",
        "superseded biz-gone",
        "unknown-instance biz-unknown",
        "other-values biz-moved",
    ];
    let numbers = seen_to.map(number);
    let ran = act(&[&["attention", "dismiss"][..], &numbers.each_ref().map(String::as_str)].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let left = listed(&home);
    for key in items.keys() {
        assert_eq!(left.contains_key(key), !seen_to.contains(&key.as_str()), "{key}");
    }
    // The marketplace continues to call for it, and it stays off the list.
    assert_eq!(daemon.deliver(&create("biz-refused")).id(), "0");
    assert!(!listed(&home).contains_key("refused biz-refused"));
    assert_eq!(home.list(&["acts"])[0]["act"], "dismiss");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_market_refuses_is_on_the_list_until_it_succeeds() {
    let stand_in = stand_in(vec![payment(1)]);
    let refused = || Failure::Code(400, "Auth.SubAccount.Error");
    stand_in.fail(Some("ConfirmNotification"), refused());
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = market_jobs::home(&[("alibaba", &url)]);
        with_admin(&home, "");
        let daemon = home.start();
        let admin = admin_of(&daemon);
        let calls = || home.list(&["attention"]);
        let item = until("the confirmation is on the list", || calls().pop());
        let job = item["job"].as_str().unwrap().to_owned();
        assert_eq!((&item["reason"], &item["market"]), (&json!("market-call"), &json!("alibaba")));
        assert!(item["detail"].as_str().unwrap().contains("Auth.SubAccount.Error"), "{item:#}");
        let todo = item["todo"].as_str().unwrap();
        assert!(
            todo.contains("spid market check") && todo.contains(&format!("spid jobs retry {job}")),
            "{todo}"
        );
        assert!(todo.ends_with("or drop it") && !item["since"].is_null(), "{item:#}");
        // The same item everywhere.
        assert_eq!(ask(admin, "/v1/attention").json()["items"], json!([item]));
        for page in ["/console/", "/console/work"] {
            let page = ask(admin, page).body;
            assert!(page.contains("market-call") && page.contains("Auth.SubAccount.Error"), "{page}");
        }
        let metrics = ask(admin, "/metrics").body;
        assert!(metrics.contains("spid_attention{reason=\"market-call\"} 1\n"), "{metrics}");
        let shown = home.run(&["attention", "--config", "spid.toml"]);
        assert!(shown.stdout.contains("market-call"), "{}", shown.stdout);
        assert!(shown.stderr.contains("hint: market alibaba: check"), "{}", shown.stderr);
        let retry = |job: &str| {
            let ran = home.run(&["jobs", "retry", job, "--why", "x", "--config", "spid.toml"]);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
        };
        // The button of the console and the API run the same operation.
        let body = "{\"who\": \"ops\", \"why\": \"the key is allowed now\"}";
        let answer = post(admin, &format!("/v1/jobs/{job}/retry"), "application/json", "", body);
        assert_eq!((answer.status, &answer.json()["act"]), (200, &json!("retry")), "{}", answer.body);
        until("it is off the list", || calls().is_empty().then_some(()));

        // A recurring call is on the list after three failures in a row.
        for _ in 0..3 {
            stand_in.fail(Some("DescribeFailedNotifications"), refused());
        }
        let fetch = || home.list(&["jobs", "list", "--kind", "notification-fetch"]).remove(0);
        for step in 1..=3 {
            let job = until("it has failed", || Some(fetch()).filter(|job| job["step"] == step));
            let items = calls();
            assert_eq!(items.len(), usize::from(step == 3), "{items:?}");
            if let [item] = &items[..] {
                assert!(!item["todo"].as_str().unwrap().contains("drop"), "{item:#}");
            }
            retry(job["id"].as_str().unwrap());
        }
        until("it has succeeded", || (fetch()["step"] == 0).then_some(()));
        assert!(calls().is_empty());
        daemon.stop();
    });
}
