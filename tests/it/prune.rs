//! `prune` with the real binary beside a daemon that takes orders: killed in the middle, repeated, and requests for
//! deleted data. `pruning.rs` tests that it changes no decision.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::process::Stdio;

use crate::support::daemon::{Home, QUICK, Ran, assert_clean, create, renew, until};
use rusqlite::Connection;
use serde_json::Value;

const BUYER: &str = "fake-canary-buyer-4T";

fn prune(home: &Home, more: &[&str]) -> Ran {
    let db = home.path("spid.db");
    home.run(&[&["prune", "--older-than", "400d", "--db", db.to_str().unwrap()], more].concat())
}

const WHY: [&str; 4] = ["--who", "ops", "--why", "a year is enough"];

/// Moves everything to two years ago.
fn age(home: &Home) {
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let ago = 730_i64 * 24 * 60 * 60 * 1000;
    let sql = format!(
        "BEGIN; UPDATE callback SET received_at = received_at - {ago}, last_received_at = last_received_at - {ago},
           told_at = told_at - {ago};
         UPDATE job SET created_at = created_at - {ago}, ended_at = ended_at - {ago}; COMMIT"
    );
    db.execute_batch(&sql).unwrap();
}

/// As many done and reported sign-ons as in a busy year.
fn fill(home: &Home, count: usize) {
    let mut db = Connection::open(home.path("spid.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let together = db.transaction().unwrap();
    let body = format!(r#"{{"action":"sign-on","action_name":"verify","buyer":"{BUYER}"}}"#);
    for number in 0..count {
        let mark = (1_000_000 + number as u128).to_be_bytes();
        let sql = "INSERT INTO callback (account, endpoint, key_label, occurrence, action, disposition, received_at,
                     last_received_at, deliveries, told_at, body, job)
                   VALUES ('alibaba-cn', 'alibaba-cn', 'current', ?1, 6, 0, 0, 0, 1, 0, ?2,
                     (SELECT coalesce(max(number), 0) + 1 FROM job))";
        together.execute(sql, rusqlite::params![mark, body]).unwrap();
        let sql = "INSERT INTO job (id, callback, in_lane, action, state, attempts, step, extra, due_at, created_at,
                     ended_at) VALUES (?1, ?2, 0, 6, 5, 1, 0, 0, 0, 0, 0)";
        together.execute(sql, rusqlite::params![mark, together.last_insert_rowid()]).unwrap();
    }
    together.commit().unwrap();
}

fn sign_ons(home: &Home) -> i64 {
    home.database().query_row("SELECT count(*) FROM job WHERE action = 6", [], |row| row.get(0)).unwrap()
}

#[test]
fn what_is_old_goes_beside_a_daemon_that_takes_orders_and_a_kill_harms_nothing() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let id = daemon.deliver(&create("old").with("mobile", BUYER)).id();
    let old = renew(&id, "2031-01-01 00:00:00");
    assert!(daemon.deliver(&old).is_success());
    age(&home);
    fill(&home, 6_000);
    let db = home.path("spid.db");
    std::thread::scope(|scope| {
        let orders = scope.spawn(|| {
            (0..30).all(|number| daemon.deliver(&create(&format!("new-{number}"))).id().starts_with("i-"))
        });
        let mut killed = std::process::Command::new(env!("CARGO_BIN_EXE_spid"))
            .args(["prune", "--older-than", "400d", "--why", "a test", "--db", db.to_str().unwrap()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("something has gone", || (sign_ons(&home) < 5_500).then_some(()));
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(sign_ons(&home) > 0, "it was over before it was killed");
        let ran = prune(&home, &[["--json"].as_slice(), &WHY].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let pruned: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((&pruned["callbacks_emptied"], &pruned["dry_run"]), (&2.into(), &false.into()));
        assert!(pruned["bytes_unused"].as_u64().unwrap() > 100_000, "{pruned}");
        assert!(orders.join().unwrap(), "an order was not answered meanwhile");
    });
    assert_eq!(sign_ons(&home), 0);
    let hooks = home.hook_lines().len();
    assert_eq!(daemon.deliver(&create("old")).id(), id, "the stored answer");
    assert!(daemon.deliver(&old).is_success());
    assert_eq!(home.hook_lines().len(), hooks, "a repeat runs nothing");
    daemon.stop();
    let acts: Vec<String> = home.list(&["acts"]).iter().map(|row| row["act"].to_string()).collect();
    assert_eq!(acts, ["\"prune\""; 3], "the killed one is known by its beginning alone");
    let ran = prune(&home, &[["--vacuum"].as_slice(), &WHY].concat());
    assert!(ran.code == 0 && ran.stdout.contains(" 0 of them unused"), "{}{}", ran.stdout, ran.stderr);
    for (name, bytes) in home.database_files() {
        assert_clean(&name, &bytes, &[BUYER]);
    }
}

/// Only the configuration has the time for which passwords are repeated.
#[test]
fn passwords_go_only_where_it_is_known_how_long_they_are_told() {
    let home = Home::with_hook(QUICK);
    home.start().stop();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let config = home.path("spid.toml").display().to_string();
    let known = ["prune", "--older-than", "31d", "--secrets", "--dry-run", "--config", &config];
    let ran = prune(&home, &["--secrets", "--dry-run"]);
    assert!(ran.code == 64 && ran.stderr.contains("use --config"), "{}", ran.stderr);
    let ran = home.run(&["prune", "--older-than", "400d", "--secrets", "--dry-run"]);
    assert!(ran.code == 64 && ran.stderr.contains("use --config"), "{}", ran.stderr);
    assert_eq!(home.run(&known).code, 0);
    home.configure(&format!("{text}\n[policy]\nsecrets_window = \"60d\"\n"));
    let ran = home.run(&known);
    assert!(ran.code == 65 && ran.stderr.contains("`policy.secrets_window`"), "{}", ran.stderr);
}

#[test]
fn what_was_pruned_says_so() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("old").with("mobile", BUYER)).id().len(), 38);
    age(&home);
    let whole = home.database_files().len();
    let ran = prune(&home, &["--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("would be: 1 callbacks emptied, 0 removed"), "{}", ran.stdout);
    assert!(home.look(&["callbacks", "show", "1"]).contains(BUYER));
    assert_eq!((home.list(&["acts"]).len(), home.database_files().len()), (0, whole));
    let ran = prune(&home, &[]);
    assert!(ran.code == 64 && ran.stderr.contains("--why"), "{}", ran.stderr);
    let ran = home.run(&["prune", "--older-than", "29d", "--why", "a test", "--db", "spid.db"]);
    assert!(ran.code == 65 && ran.stderr.contains("30 days"), "{}", ran.stderr);
    assert_eq!(prune(&home, &WHY).code, 0);
    let shown = home.look(&["callbacks", "show", "1"]);
    assert!(shown.contains("the content was pruned at") && !shown.contains(BUYER), "{shown}");
    for command in [
        ["callbacks", "export", "1"].as_slice(),
        &[
            "callbacks",
            "resend",
            "1",
            "--to",
            "http://127.0.0.1:1/spi",
            "--key-file",
            "isv-key",
            "--why",
            "a test",
        ],
    ] {
        let ran = home.run(&[command, &["--db", "spid.db"]].concat());
        assert!(ran.code == 65 && ran.stderr.contains("was pruned at"), "{}", ran.stderr);
    }
    let ran = home.run(&["instances", "export", "old", "--db", "spid.db"]);
    assert!(ran.code == 0 && ran.stderr.contains("or pruned"), "{}", ran.stderr);
    daemon.stop();
}
