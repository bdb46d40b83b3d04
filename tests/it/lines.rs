//! Instances as JSON lines, exported from one installation and imported into another without a change.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{self, Home, about, create, renew, upgrade};
use serde_json::Value;

/// Names the instance after the key, and fails for the one that is to stay pending.
const HOOK: &str = r#"
case "$call" in *ob-pending*) exit 75 ;; esac
printf '{"instance_id":"%s"}' "$(fake_id)"
"#;

fn export(home: &Home, more: &[&str]) -> daemon::Ran {
    let db = home.path("spid.db");
    let ran =
        home.run(&[&["instances", "export", "--as", "lines", "--db", db.to_str().unwrap()], more].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran
}

fn import(home: &Home, lines: &str) -> daemon::Ran {
    std::fs::write(home.path("lines.jsonl"), lines).unwrap();
    let (db, file) = (home.path("spid.db"), home.path("lines.jsonl"));
    let why = ["--why", "moved here", "--db", db.to_str().unwrap()];
    home.run(&[["instances", "import", file.to_str().unwrap()].as_slice(), &why, &["--any-account"]].concat())
}

/// All names and orders, by the orderBizId or the name itself.
fn tables(home: &Home) -> Vec<(String, String, String)> {
    let db = home.database();
    let sql = "SELECT 'name', name.account || ' ' || name.name, coalesce(instance.order_biz_id, '-')
                 FROM name JOIN instance ON instance.number = name.instance
               UNION SELECT 'order', purchase.account || ' ' || purchase.order_id, coalesce(instance.order_biz_id, '-')
                 FROM purchase JOIN instance ON instance.number = purchase.instance ORDER BY 1, 2, 3";
    let mut rows = db.prepare(sql).unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// The instances, without the fields about their origin.
fn instances(home: &Home) -> Vec<Value> {
    let mut rows = home.list(&["instances", "list"]);
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("adopted")));
    rows
}

#[test]
fn what_is_exported_is_imported_as_it_was() {
    let home = Home::impatient(HOOK);
    let daemon = home.start();
    let made = |order: &str| daemon.deliver_until_done(&create(order)).id();
    let (used, frozen, released) = (made("ob-used"), made("ob-frozen"), made("ob-released"));
    daemon.deliver_until_done(&renew(&used, "2031-01-01 00:00:00").with("orderId", "order-of-a-renewal"));
    daemon.deliver_until_done(&upgrade(&used, "gold"));
    daemon.deliver_until_done(&about("expiredInstance", &frozen));
    daemon.deliver_until_done(&about("releaseInstance", &released));
    // Its release comes before any other callback.
    assert!(!daemon.deliver(&about("releaseInstance", "never-made")).is_success());
    let whole = (instances(&home), tables(&home));
    assert!(whole.1.iter().any(|row| row.1.ends_with(" order-of-a-renewal")), "{:?}", whole.1);
    assert_eq!(whole.0.len(), 4);
    daemon.deliver(&create("ob-pending"));
    let ran = export(&home, &[]);
    assert!(ran.stderr.contains("1 pending"), "{}", ran.stderr);
    daemon.stop();

    let other = Home::impatient(HOOK);
    other.start().stop();
    let taken = import(&other, &ran.stdout);
    assert_eq!((taken.code, taken.stdout.as_str()), (0, "4 instances imported\n"), "{}", taken.stderr);
    assert_eq!((instances(&other), tables(&other)), whole);
    assert_eq!(export(&other, &[]).stdout, ran.stdout, "and out again");
    let again = import(&other, &ran.stdout);
    assert_eq!(again.code, 65);
    assert_eq!(again.stderr.matches("already").count(), 4, "{}", again.stderr);

    let daemon = other.start();
    assert!(
        !daemon.deliver(&renew(&released, "2032-01-01 00:00:00")).is_success(),
        "released stays released"
    );
    assert!(daemon.deliver_until_done(&renew(&frozen, "2032-01-01 00:00:00")).is_success());
    assert_eq!(other.state(&frozen), "active");
    assert_eq!(daemon.deliver(&create("never-made")).id(), "0", "a tombstone is none");
    assert_eq!(other.hook_lines().iter().filter(|line| line.event == "begin").count(), 1);
    daemon.stop();
}

#[test]
fn one_instance_or_one_account_can_be_exported_alone() {
    let home = Home::with_hook(HOOK);
    let daemon = home.start();
    let [one, _] = ["ob-1", "ob-2"].map(|order| daemon.deliver(&create(order)).id());
    let ran = export(&home, &[&one]);
    assert_eq!(ran.stdout.lines().count(), 1);
    assert!(ran.stdout.contains(&one) && ran.stderr.is_empty(), "{}", ran.stderr);
    assert_eq!(export(&home, &["--account", "alibaba-cn"]).stdout.lines().count(), 2);
    assert_eq!(export(&home, &["--account", "another"]).stdout, "");
    let db = home.path("spid.db");
    let ran = home.run(&["instances", "export", "--db", db.to_str().unwrap()]);
    assert!(ran.code == 64 && ran.stderr.contains("--as lines"), "{}", ran.stderr);
    daemon.stop();
}
