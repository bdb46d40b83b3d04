//! Admin operations: every command with the real binary, beside a running daemon and without one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::admin::{admin_of, ask, with_admin};
use crate::support::daemon::{
    Daemon, Home, KEY, PASSWORD, Params, Ran, about, create, renew, until, upgrade,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use spid::internals::store::{AuditNote, OperationError, Operations, StoreOptions};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::id::Id;
use spid_hook::time::Clock;

/// Fails, refuses or answers `pending` if a file named after the action says so. Otherwise it succeeds.
const TOLD: &str = r#"
[ -e "hang-$SPID_ACTION" ] && wait_for "$SPID_ACTION"
[ -e "fail-$SPID_ACTION" ] && exit 75
[ -e "refuse-$SPID_ACTION" ] && { printf '{"refuse":"not here"}'; exit 65; }
[ -e "pend-$SPID_ACTION" ] && { printf '{"pending":"waits for sales"}'; exit 0; }
case "$SPID_ACTION" in
create) printf '{"instance_id":"%s","app":{"password":"%s"}}' "$(fake_id)" "$(cat password)" ;;
other) printf '{"body":{"done":true}}' ;;
*) printf '{}' ;;
esac
"#;

const EXPIRE: &str = "expiredInstance";
const RELEASE: &str = "releaseInstance";

fn home() -> Home {
    let home = Home::configured(TOLD, "1s", 16);
    std::fs::write(home.path("password"), PASSWORD).unwrap();
    home
}

/// A daemon whose hook has these instructions.
fn started(told: &[&str]) -> (Home, Daemon) {
    let home = home();
    told.iter().for_each(|what| tell_hook(&home, what));
    let daemon = home.start();
    (home, daemon)
}

/// The same with `biz-1` bought, and its id.
fn sold() -> (Home, Daemon, String) {
    let (home, daemon) = started(&[]);
    let id = buy(&daemon, "biz-1");
    (home, daemon, id)
}

/// An instance that was renewed, and whose expiry is repeated before the new term ends; the number of that held callback.
fn with_an_early_expire() -> (Home, Daemon, String, String) {
    let (home, daemon, id) = sold();
    let expire = about(EXPIRE, &id);
    daemon.deliver_until_done(&expire);
    daemon.deliver_until_done(&renew(&id, "2031-01-01 00:00:00"));
    assert!(!daemon.deliver(&expire).success());
    let number = held_number(&home);
    (home, daemon, id, number)
}

/// Instructs the hook for its next calls: `fail-create`, for example.
fn tell_hook(home: &Home, what: &str) {
    std::fs::write(home.path(what), "").unwrap();
}

fn untell_hook(home: &Home, what: &str) {
    std::fs::remove_file(home.path(what)).unwrap();
}

/// Runs an operation and returns its result.
fn act(home: &Home, arguments: &[&str]) -> Ran {
    let db = home.path("spid.db");
    let named = ["--db", db.to_str().unwrap(), "--who", "an operator", "--why", "a test"];
    home.run(&[arguments, &named].concat())
}

/// Runs an operation that must succeed.
fn done(home: &Home, arguments: &[&str]) -> Ran {
    let ran = act(home, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    ran
}

/// Runs an operation that must be refused and change nothing. Returns its output.
fn refused(home: &Home, exit: i32, arguments: &[&str]) -> String {
    let before = contents(home);
    let ran = act(home, arguments);
    assert_eq!(ran.code, exit, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    assert_eq!(contents(home), before, "{arguments:?} changed something");
    ran.stderr
}

/// All rows, without the changes of a running daemon: counts of deliveries, and leases.
fn contents(home: &Home) -> Vec<Value> {
    let lists = [["instances", "list"].as_slice(), &["jobs", "list"], &["callbacks", "list"], &["acts"]];
    let mut rows: Vec<Value> = lists.iter().flat_map(|list| home.list(list)).collect();
    for row in &mut rows {
        for name in ["deliveries", "last_received_at", "lease_until"] {
            row.as_object_mut().unwrap().remove(name);
        }
    }
    rows
}

/// Changes the store beside the daemon, or without one. The daemon runs afterwards.
fn mending(home: &Home, daemon: Daemon, beside: bool, work: impl FnOnce()) -> Daemon {
    if beside {
        work();
        return daemon;
    }
    daemon.stop();
    work();
    home.start()
}

/// Runs the test with the operation beside a running daemon and without one.
fn both_ways(test: impl Fn(bool) + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(|| test(true));
        scope.spawn(|| test(false));
    });
}

/// The database, for changes that would take a day.
fn meddle(home: &Home, sql: &str) {
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    assert_ne!(db.execute(sql, []).unwrap(), 0, "{sql}");
}

/// Marks the job that has just failed as dead, as at the end of its schedule.
fn make_dead(home: &Home) {
    until("the job has failed", || jobs(home, "queued").into_iter().find(|job| job["attempts"] != 0));
    meddle(home, "UPDATE job SET state = 4, step = 9, extra = 0 WHERE state = 0 AND attempts > 0");
}

fn jobs(home: &Home, state: &str) -> Vec<Value> {
    home.list(&["jobs", "list", "--state", state])
}

fn only_job(home: &Home, state: &str) -> Value {
    let jobs = jobs(home, state);
    assert_eq!(jobs.len(), 1, "{state}: {jobs:?}");
    jobs[0].clone()
}

fn word<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {row}"))
}

fn held_callbacks(home: &Home) -> Vec<Value> {
    let mut held = home.list(&["held", "list"]);
    held.retain(|row| row["kind"] == "held-callback");
    held
}

/// Number of the only held callback.
fn held_number(home: &Home) -> String {
    let held = held_callbacks(home);
    assert_eq!(held.len(), 1, "{held:?}");
    held[0]["callback"].to_string()
}

/// The latest entry of the audit log.
fn last_act(home: &Home) -> (String, String) {
    let acts = home.list(&["acts"]);
    assert_eq!((word(&acts[0], "who"), word(&acts[0], "why")), ("an operator", "a test"));
    assert!(acts[0]["at"].is_string());
    (word(&acts[0], "act").to_owned(), word(&acts[0], "target").to_owned())
}

fn buy(daemon: &Daemon, order_biz_id: &str) -> String {
    daemon.deliver_until_done(&create(order_biz_id)).id()
}

#[test]
fn a_dead_job_is_retried_once_with_its_key_and_its_schedule_is_not_doubled() {
    both_ways(|beside| {
        let (home, daemon) = started(&["fail-create"]);
        assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
        make_dead(&home);
        let id = word(&only_job(&home, "dead"), "id").to_owned();
        let daemon = mending(&home, daemon, beside, || {
            let shown = home.look(&["jobs", "list", "--state", "dead"]);
            assert!(shown.contains(&id), "{shown}");
            let said = done(&home, &["jobs", "retry", &id]).stdout;
            assert_eq!(said, format!("job {id} is due now\n"));
        });
        assert_eq!(last_act(&home), ("retry".into(), format!("job {id}")));
        let dead = until("it is dead again", || jobs(&home, "dead").pop());
        assert_eq!((&dead["attempts"], &dead["step"]), (&json!(2), &json!(9)));
        let begun = home.begun("create");
        assert_eq!(begun, [(id.clone(), 1), (id.clone(), 2)]);

        // A redelivery has brought it forward. A further one does not restart its schedule.
        assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
        assert_eq!(only_job(&home, "queued")["extra"], "dead");
        done(&home, &["jobs", "retry", &id]);
        until("it is dead for the third time", || {
            jobs(&home, "dead").pop().filter(|job| job["attempts"] == 3)
        });

        untell_hook(&home, "fail-create");
        done(&home, &["jobs", "retry", &id]);
        assert_eq!(daemon.deliver_until_done(&create("biz-1")).id(), format!("i-{id}"));
        assert!(refused(&home, 65, &["jobs", "retry", &id]).contains("the job is done"));
        assert!(refused(&home, 65, &["jobs", "drop", &id]).contains("the job is done"));
        assert_eq!(home.begun("create").len(), 4);
    });
}

#[test]
fn a_refused_create_is_not_retried_behind_the_back_of_a_new_one() {
    let (home, daemon) = started(&["refuse-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is refused", || jobs(&home, "refused").pop());
    let old = word(&only_job(&home, "refused"), "id").to_owned();

    // No delivery has come since: it gets one more attempt.
    done(&home, &["jobs", "retry", &old]);
    until("it is refused again", || jobs(&home, "refused").pop().filter(|job| job["attempts"] == 2));

    untell_hook(&home, "refuse-create");
    meddle(&home, "UPDATE job SET ended_at = ended_at - 60000 WHERE state = 6");
    let id = buy(&daemon, "biz-1");
    let said = refused(&home, 65, &["jobs", "retry", &old]);
    assert!(said.contains("a later job replaces this one"), "{said}");
    assert_eq!(home.json(&["instances", "show", "biz-1"])["id"], json!(id));
    assert_eq!(home.begun("create").len(), 3);
}

#[test]
fn a_refused_upgrade_is_not_retried_over_a_later_one() {
    let (home, daemon) = started(&["refuse-upgrade"]);
    let id = buy(&daemon, "biz-1");
    assert!(!daemon.deliver(&upgrade(&id, "silver")).success());
    until("it is refused", || jobs(&home, "refused").pop());
    let old = word(&only_job(&home, "refused"), "id").to_owned();
    untell_hook(&home, "refuse-upgrade");
    daemon.deliver_until_done(&upgrade(&id, "gold"));
    assert!(refused(&home, 65, &["jobs", "retry", &old]).contains("has changed since"));
    assert_eq!(home.json(&["instances", "show", &id])["sku"], "gold");
}

#[test]
fn dropping_lets_those_behind_go_on() {
    both_ways(|beside| {
        let (home, daemon) = started(&["fail-upgrade"]);
        let id = buy(&daemon, "biz-1");
        assert!(!daemon.deliver(&upgrade(&id, "gold")).success());
        make_dead(&home);
        let renewal = renew(&id, "2031-01-01 00:00:00");
        assert!(!daemon.deliver(&renewal).success(), "it waits behind the dead one");
        let dead = word(&only_job(&home, "dead"), "id").to_owned();
        let behind = word(&only_job(&home, "queued"), "id").to_owned();
        let said = refused(&home, 65, &["jobs", "retry", &behind]);
        assert!(said.contains(&format!("the job waits for job {dead} (upgrade, dead)")), "{said}");
        let daemon = mending(&home, daemon, beside, || {
            done(&home, &["jobs", "drop", &dead]);
        });
        assert_eq!(last_act(&home), ("drop".into(), format!("job {dead}")));
        daemon.deliver_until_done(&renewal);
        assert_eq!(word(&only_job(&home, "dropped"), "note"), "dropped by an operator: a test");
    });
}

#[test]
fn what_waits_for_a_person_is_said_at_the_next_start() {
    let (home, daemon) = started(&["fail-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    make_dead(&home);
    daemon.stop();
    let daemon = home.start();
    daemon.wait_for_log("work waits for an operator");
    assert!(daemon.log().contains("dead=1 held=0 unreported=0"), "{}", daemon.log());
}

#[test]
fn dropping_a_create_ends_those_behind_it() {
    let (home, daemon) = started(&["fail-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    make_dead(&home);
    assert!(!daemon.deliver(&renew("biz-1", "2031-01-01 00:00:00")).success());
    let dead = word(&only_job(&home, "dead"), "id").to_owned();
    done(&home, &["jobs", "drop", &dead]);
    assert_eq!(word(&only_job(&home, "cancelled"), "action"), "renew");
    assert_eq!(word(&only_job(&home, "cancelled"), "note"), "its instance was not created");
    assert_eq!(home.list(&["held", "list"]), [] as [Value; 0]);
}

#[test]
fn what_a_hook_left_pending_is_completed_by_hand() {
    both_ways(|beside| {
        let (home, daemon) = started(&[]);
        let taken = buy(&daemon, "biz-0");
        tell_hook(&home, "pend-create");
        assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
        until("it is pending", || jobs(&home, "pending").pop());
        let (answer, wrong) = (home.path("answer.json"), home.path("wrong.json"));
        let file = |path: &std::path::Path, answer: &Value| {
            std::fs::write(path, answer.to_string()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let daemon = mending(&home, daemon, beside, || {
            for (answer, told) in [
                (json!({"instanceId": "i-1"}), "the unknown member `instanceId`"),
                (json!({"pending": "still"}), "does not complete a job"),
                (json!({"instance_id": "0"}), "tells a marketplace that there is no id yet"),
                (json!({"instance_id": " "}), "the value is empty"),
                (json!({"instance_id": taken, "app": {"password": PASSWORD}}), "belongs to another instance"),
            ] {
                let wrong = file(&wrong, &answer);
                let said = refused(&home, 65, &["instances", "complete", "biz-1", "--answer", &wrong]);
                assert!(said.contains(told) && !said.contains(PASSWORD), "{said}");
            }
            let right = json!({"instance_id": "i-1", "app": {
                "front_end_url": "https://app.example", "username": "admin", "password": PASSWORD}});
            let answer = file(&answer, &right);
            let said = done(&home, &["instances", "complete", "biz-1", "--answer", &answer]);
            assert!(said.stdout.starts_with("the create of biz-1 is complete"), "{}", said.stdout);
            let unreported = home.list(&["callbacks", "list", "--unreported"]);
            assert_eq!(unreported.len(), 1, "nobody has heard it yet: {unreported:?}");
        });
        assert_eq!(last_act(&home), ("complete".into(), "instance biz-1 of alibaba-cn".into()));
        let told = daemon.deliver(&create("biz-1")).json();
        assert_eq!((&told["instanceId"], &told["appInfo"]["password"]), (&json!("i-1"), &json!(PASSWORD)));
        assert_eq!(told["appInfo"]["frontEndUrl"], "https://app.example");
        assert_eq!(home.list(&["callbacks", "list", "--unreported"]), [] as [Value; 0]);
        meddle(&home, "UPDATE callback SET told_at = told_at - 90000000 WHERE told_at IS NOT NULL");
        let later = daemon.deliver(&create("biz-1")).json();
        assert_eq!((&later["instanceId"], later["appInfo"].get("password")), (&json!("i-1"), None));
        assert!(
            refused(&home, 65, &["instances", "complete", "i-1"]).contains("no job of this instance waits")
        );
        assert_eq!(home.begun("create").len(), 2);
    });
}

#[test]
fn a_claim_is_kept_and_told_to_the_hook() {
    both_ways(|beside| {
        let (home, daemon) = started(&["pend-create"]);
        assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
        until("it is pending", || jobs(&home, "pending").pop());
        let said = refused(&home, 65, &["instances", "claim", "biz-1", "--tenant", "Acme"]);
        assert!(said.contains("not created yet"), "{said}");
        done(&home, &["instances", "complete", "biz-1"]);
        let before = home.json(&["instances", "show", "biz-1"]);
        assert!(
            refused(&home, 66, &["instances", "claim", "biz-9"])
                .contains("there is no instance with the name")
        );
        for tenant in ["", " ", "a\u{1b}[2J", &"x".repeat(300)] {
            assert!(
                refused(&home, 65, &["instances", "claim", "biz-1", "--tenant", tenant]).contains("tenant")
            );
        }
        let daemon = mending(&home, daemon, beside, || {
            let said = done(&home, &["instances", "claim", "biz-1", "--tenant", "Acme"]).stdout;
            assert_eq!(said, "biz-1 is claimed\n");
        });
        assert_eq!(last_act(&home), ("claim".into(), "instance biz-1 of alibaba-cn".into()));
        let mut claimed = home.json(&["instances", "show", "biz-1"]);
        assert_eq!(claimed["tenant"], "Acme");
        let at = word(&claimed, "claimed_at").to_owned();
        let shown = home.look(&["instances", "show", "biz-1"]);
        assert!(
            shown.contains(&format!("claimed_at    {at}")) && shown.contains("tenant        Acme"),
            "{shown}"
        );
        assert!(home.look(&["instances", "list"]).contains(&at));

        // A claim changes no data of the marketplace.
        for name in ["claimed_at", "tenant"] {
            claimed[name] = Value::Null;
        }
        claimed["acts"] = before["acts"].clone();
        assert_eq!(claimed, before);

        // Repeating the claim does no harm. Another tenant is refused.
        let said = done(&home, &["instances", "claim", "biz-1", "--tenant", "Acme"]).stdout;
        assert_eq!(said, format!("biz-1 was claimed at {at}; nothing was changed\n"));
        let said = refused(&home, 65, &["instances", "claim", "biz-1", "--tenant", "Mallory"]);
        assert!(said.contains("`Acme` claimed the instance"), "{said}");
        done(&home, &["instances", "claim", "biz-1", "--tenant", "Acme 2", "--replace"]);

        untell_hook(&home, "pend-create");
        daemon.deliver_until_done(&upgrade("biz-1", "gold"));
        assert_eq!(home.call_of("upgrade")["instance"]["tenant"], "Acme 2");
        daemon.deliver_until_done(&about(RELEASE, "biz-1"));
        assert_eq!(home.json(&["instances", "show", "biz-1"])["tenant"], "Acme 2", "who had it is history");
        assert!(refused(&home, 65, &["instances", "claim", "biz-1", "--tenant", "x"]).contains("released"));
    });
}

#[test]
fn an_answer_for_a_create_does_not_complete_the_release_that_came_instead() {
    let (home, daemon) = started(&["pend-create", "fail-release"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is pending", || jobs(&home, "pending").pop());
    assert!(!daemon.deliver(&about(RELEASE, "biz-1")).success());
    until("the release has failed", || jobs(&home, "queued").pop().filter(|job| job["attempts"] == 1));
    let answer = home.path("answer.json");
    std::fs::write(&answer, r#"{"instance_id":"i-1"}"#).unwrap();
    let complete = ["instances", "complete", "biz-1", "--answer", answer.to_str().unwrap()];
    let said = refused(&home, 65, &complete);
    assert!(said.contains("the waiting job (release) takes no answer"), "{said}");
    done(&home, &["instances", "complete", "biz-1"]);
    assert_eq!(home.state("biz-1"), "released");
    assert!(daemon.deliver_until_done(&about(RELEASE, "biz-1")).success());
}

#[test]
fn no_password_is_sealed_with_a_key_the_daemon_does_not_have() {
    let (home, daemon) = started(&["pend-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is pending", || jobs(&home, "pending").pop());
    daemon.stop();
    let key = home.path("spid.db.key");
    std::fs::rename(&key, home.path("elsewhere.key")).unwrap();
    let answer = home.path("answer.json");
    std::fs::write(&answer, json!({"app": {"password": PASSWORD}}).to_string()).unwrap();
    let complete = ["instances", "complete", "biz-1", "--answer", answer.to_str().unwrap()];
    let said = refused(&home, 78, &complete);
    assert!(said.contains("there is no sealing key at") && said.contains("--config"), "{said}");
    assert!(!key.exists(), "a mender made a key of its own");
    done(&home, &["instances", "complete", "biz-1"]);
    assert!(!key.exists(), "a mender made a key of its own");
}

#[test]
fn an_early_expire_is_approved_and_runs() {
    both_ways(|beside| {
        let (home, daemon, id, number) = with_an_early_expire();
        let daemon = mending(&home, daemon, beside, || {
            let said = done(&home, &["held", "approve", &number]);
            assert!(said.stdout.starts_with(&format!("callback {number}: job ")), "{}", said.stdout);
        });
        assert_eq!(last_act(&home), ("approve".into(), format!("callback {number}")));
        until("it is frozen", || (home.state(&id) == "frozen").then_some(()));
        assert_eq!(home.list(&["callbacks", "list", "--unreported"]).len(), 1);
        assert!(daemon.deliver(&about(EXPIRE, &id)).success());
        assert_eq!(home.list(&["callbacks", "list", "--unreported"]).len(), 0);
        assert_eq!(home.begun("expire").len(), 2);
        assert!(refused(&home, 65, &["held", "approve", &number]).contains("is not held"));
    });
}

#[test]
fn what_is_approved_when_it_is_so_already_runs_nothing_and_is_still_untold() {
    let (home, daemon, id, number) = with_an_early_expire();
    meddle(&home, "UPDATE instance SET state = 2");
    let said = done(&home, &["held", "approve", &number]);
    assert_eq!(said.stdout, format!("callback {number}: done, there was nothing to run\n"));
    assert_eq!(home.list(&["callbacks", "list", "--unreported"]).len(), 1);
    assert!(daemon.deliver(&about(EXPIRE, &id)).success());
    assert_eq!(home.list(&["callbacks", "list", "--unreported"]).len(), 0);
    assert_eq!(home.begun("expire").len(), 1);
}

#[test]
fn a_doubt_that_is_approved_runs_once_and_is_told() {
    both_ways(|beside| {
        let (home, daemon, id) = sold();
        let expire = about(EXPIRE, &id).with("aliUid", "1&b=2");
        assert!(!daemon.deliver(&expire).success());
        let number = held_number(&home);
        let daemon = mending(&home, daemon, beside, || {
            done(&home, &["held", "approve", &number]);
        });
        until("it is frozen", || (home.state(&id) == "frozen").then_some(()));
        for _ in 0..2 {
            assert!(daemon.deliver(&expire).success(), "what was approved is told");
        }
        assert_eq!(held_callbacks(&home), [] as [Value; 0]);
        assert_eq!(home.begun("expire").len(), 1);

        // An approval is not permanent: the next run would freeze a paid instance.
        daemon.deliver_until_done(&renew(&id, "2031-01-01 00:00:00"));
        assert!(!daemon.deliver(&expire).success());
        assert!(!word(&held_callbacks(&home)[0], "reason").is_empty());
        assert_eq!(home.begun("expire").len(), 1);
    });
}

#[test]
fn an_unknown_action_and_a_doubtful_payment_run_once_approved() {
    let (home, daemon) = started(&[]);
    let unknown = Params::new("pleaseDance").with("aliUid", "1");
    daemon.deliver(&unknown);
    done(&home, &["held", "approve", &held_number(&home)]);
    let job = until("the hook has done it", || jobs(&home, "done").pop());
    assert_eq!(word(&job, "action"), "other");
    assert_eq!(daemon.deliver(&unknown).json()["done"], true);

    let payment = Params::new("orderPay").with("requestId", "r-1").with("aliUid", "1&b=2");
    assert!(!daemon.deliver(&payment).success());
    done(&home, &["held", "approve", &held_number(&home)]);
    until("the payment is done", || (jobs(&home, "done").len() == 2).then_some(()));
    assert!(daemon.deliver(&payment).success());
    assert_eq!(home.begun("payment").len(), 1);
    assert_eq!(held_callbacks(&home), [] as [Value; 0]);
}

#[test]
fn a_conflicting_create_is_approved_as_what_it_is() {
    let ways: [(&str, &[(&str, &str)]); 3] = [
        ("renew", &[("renew", "expires_on")]),
        ("upgrade", &[("upgrade", "sku")]),
        ("conversion", &[("renew", "expires_on"), ("upgrade", "sku")]),
    ];
    for (way, runs) in ways {
        let (home, daemon, id) = sold();
        let before = home.json(&["instances", "show", &id]);
        // Each approval buys only its own kind.
        let (sku, term) = match way {
            "renew" => ("basic", "2032-01-01 00:00:00"),
            "upgrade" => ("gold", "2030-01-01 00:00:00"),
            _ => ("gold", "2032-01-01 00:00:00"),
        };
        let other = create("biz-1").with("orderId", "order-2").with("skuId", sku).with("expiredOn", term);
        assert_eq!(daemon.deliver(&other).id(), "0");
        let number = held_number(&home);
        let said = refused(&home, 65, &["held", "approve", &number]);
        assert!(said.contains("use --as conversion, renew or upgrade"), "{said}");
        refused(&home, 64, &["held", "approve", &number, "--as", "release"]);
        for half in ["renew", "upgrade"].into_iter().filter(|_| way == "conversion") {
            let said = refused(&home, 65, &["held", "approve", &number, "--as", half]);
            assert!(said.contains("use --as conversion"), "{said}");
        }
        refused(&home, 64, &["held", "approve", &number, "--as", "dance"]);
        done(&home, &["held", "approve", &number, "--as", way]);
        for (action, shows) in runs {
            until("the hook has done it", || home.begun(action).pop());
            home.wait_until_idle();
            assert_ne!(home.json(&["instances", "show", &id])[shows], before[shows]);
            assert_eq!(home.begun(action).len(), 1);
        }
        let now = home.json(&["instances", "show", &id]);
        assert_eq!(now["order_id"], before["order_id"], "it is still the instance of the first purchase");
        let told = daemon.deliver(&other);
        assert_eq!(told.id(), id, "carried out");
        assert!(!told.body.contains("password"), "{}", told.body);
        assert_eq!(held_callbacks(&home), [] as [Value; 0], "a redelivery opened it again");
        assert_eq!(home.list(&["callbacks", "list", "--unreported"]), [] as [Value; 0]);
        assert_eq!(home.begun("create").len(), 1);
    }
}

#[test]
fn a_trial_that_was_bought_for_good_is_not_frozen_by_its_own_end() {
    let (home, daemon) = started(&[]);
    let trial = create("biz-1").with("trial", "true").with("expiredOn", "2030-01-08 00:00:00");
    let id = daemon.deliver_until_done(&trial).id();
    let paid = create("biz-1")
        .with("orderId", "order-2")
        .with("trial", "false")
        .with("expiredOn", "2032-01-01 00:00:00");
    assert_eq!(daemon.deliver(&paid).id(), "0");
    // Before an operator has decided.
    assert!(!daemon.deliver(&about(EXPIRE, &id)).success());
    assert_eq!(home.json(&["instances", "show", &id])["state"], "active");
    let held = held_callbacks(&home);
    let number_of =
        |action: &str| held.iter().find(|row| row["action"] == action).unwrap()["callback"].to_string();
    done(&home, &["held", "approve", &number_of("create"), "--as", "conversion"]);
    until("it is bought", || (home.json(&["instances", "show", &id])["converted"] == true).then_some(()));
    let now = home.json(&["instances", "show", &id]);
    assert_eq!((&now["trial"], &now["state"]), (&json!(false), &json!("active")));
    assert!(!daemon.deliver(&about(EXPIRE, &id)).success(), "still an early end");
    assert_eq!(home.json(&["instances", "show", &id])["state"], "active");
    // The operator settles it as the end of the trial: success, and nothing is frozen.
    done(&home, &["held", "settle", &number_of("expire")]);
    assert!(daemon.deliver(&about(EXPIRE, &id)).success());
    assert_eq!(home.json(&["instances", "show", &id])["state"], "active");
    assert_eq!(home.begun("expire").len(), 0);
    assert_eq!(last_act(&home).0, "settle");
    assert_eq!(held_callbacks(&home), [] as [Value; 0]);
}

#[test]
fn what_is_settled_succeeds_without_running_and_asks_again_much_later() {
    both_ways(|beside| {
        let (home, daemon, id) = sold();
        daemon.deliver_until_done(&upgrade(&id, "silver"));
        daemon.deliver_until_done(&upgrade(&id, "gold"));
        let repeat = upgrade(&id, "silver");
        assert!(!daemon.deliver(&repeat).success());
        let number = held_number(&home);
        let daemon = mending(&home, daemon, beside, || {
            done(&home, &["held", "settle", &number]);
        });
        for _ in 0..2 {
            assert!(daemon.deliver(&repeat).success());
        }
        assert_eq!(home.json(&["instances", "show", &id])["sku"], "gold");
        assert_eq!(home.begun("upgrade").len(), 2);
        assert_eq!(held_callbacks(&home), [] as [Value; 0]);
        // Two days later the same request may be new.
        meddle(&home, "UPDATE callback SET told_at = told_at - 172800000 WHERE reason_code = 'settled'");
        assert!(!daemon.deliver(&repeat).success());
        assert_eq!(held_callbacks(&home).len(), 1);
        assert!(refused(&home, 65, &["held", "settle", &number]).contains("is not held"));
    });
}

#[test]
fn a_payment_that_is_pending_is_completed_by_its_job() {
    let (home, daemon, _) = sold();
    tell_hook(&home, "pend-payment");
    let payment = about("orderPay", "biz-1").with("requestId", "request-1");
    assert!(daemon.deliver(&payment).success());
    let job = until("the payment is pending", || jobs(&home, "pending").pop());
    let id = job["id"].as_str().unwrap().to_owned();
    done(&home, &["jobs", "complete", &id]);
    assert_eq!(jobs(&home, "pending"), [] as [Value; 0]);
    assert_eq!(last_act(&home), ("complete".into(), format!("job {id}")));
    assert!(refused(&home, 65, &["jobs", "complete", &id]).contains("nothing to complete"));
}

#[test]
fn what_names_nothing_cannot_be_approved_only_rejected() {
    let (home, daemon) = started(&[]);
    assert!(!daemon.deliver(&about(EXPIRE, "0")).success());
    let number = held_number(&home);
    let said = refused(&home, 65, &["held", "approve", &number]);
    assert!(said.contains("names no instance") && said.contains("reject it"), "{said}");
    done(&home, &["held", "reject", &number]);
    assert_eq!(held_callbacks(&home), [] as [Value; 0]);
}

#[test]
fn what_is_rejected_stays_refused_until_it_is_true() {
    both_ways(|beside| {
        let (home, daemon, id, number) = with_an_early_expire();
        let daemon = mending(&home, daemon, beside, || {
            done(&home, &["held", "reject", &number]);
        });
        assert_eq!(last_act(&home), ("reject".into(), format!("callback {number}")));
        let answer = daemon.deliver(&about(EXPIRE, &id));
        assert!(!answer.success());
        assert!(answer.body.contains("the seller has declined this"), "{}", answer.body);
        assert!(!answer.body.contains("a test"), "why is the seller's own business: {}", answer.body);
        assert_eq!(held_callbacks(&home), [] as [Value; 0]);
        assert!(refused(&home, 65, &["held", "reject", &number]).contains("is not held"));

        // The year has ended.
        meddle(&home, "UPDATE instance SET expires_on = 1");
        daemon.deliver_until_done(&about(EXPIRE, &id));
        assert_eq!(home.state(&id), "frozen");
        assert_eq!(home.begun("expire").len(), 2);
    });
}

#[test]
fn an_instance_is_released_by_hand_and_the_marketplace_may_still_ask() {
    both_ways(|beside| {
        let (home, daemon, id) = sold();
        let daemon = mending(&home, daemon, beside, || {
            done(&home, &["instances", "release", "biz-1"]);
        });
        assert_eq!(last_act(&home), ("release".into(), format!("instance {id} of alibaba-cn")));
        until("it is released", || (home.state(&id) == "released").then_some(()));
        assert_eq!(home.list(&["callbacks", "list", "--unreported"]), [] as [Value; 0], "nobody asked");
        for release in [about(RELEASE, &id), about(RELEASE, &id).with("orderId", "order-9")] {
            assert!(daemon.deliver(&release).success());
        }
        assert_eq!(home.begun("release").len(), 1);
        assert!(refused(&home, 65, &["instances", "release", &id]).contains("already released"));
        assert_eq!(daemon.deliver(&create("biz-1")).id(), id);
        assert_eq!(home.begun("create").len(), 1);
    });
}

#[test]
fn what_never_began_is_released_without_the_hook() {
    let (home, daemon) = started(&["fail-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    make_dead(&home);
    assert!(!daemon.deliver(&create("biz-1")).is_success());
    // The state before its first attempt.
    meddle(&home, "UPDATE job SET state = 3, attempts = 0");
    meddle(&home, "UPDATE instance SET began = 0");
    let said = done(&home, &["instances", "release", "biz-1"]);
    assert!(said.stdout.ends_with("done, there was nothing to run\n"), "{}", said.stdout);
    assert_eq!(home.state("biz-1"), "released");
    assert_eq!(word(&only_job(&home, "cancelled"), "action"), "create");
    assert!(home.begun("release").is_empty());
}

#[test]
fn what_began_is_released_with_the_hook_told_so() {
    let (home, daemon) = started(&["pend-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is pending", || jobs(&home, "pending").pop());
    done(&home, &["instances", "release", "biz-1"]);
    until("it is released", || (home.state("biz-1") == "released").then_some(()));
    assert_eq!(home.call_of("release")["maybe_provisioned"], true);
    assert!(daemon.deliver(&about(RELEASE, "biz-1")).success());
}

#[test]
fn instances_are_imported_all_or_none_and_live_on() {
    both_ways(|beside| {
        let (home, daemon) = started(&[]);
        let taken = buy(&daemon, "biz-1");
        let file = home.path("customers.jsonl");
        let import = |lines: &[Value]| {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            std::fs::write(&file, text).unwrap();
            ["instances", "import", "--any-account", file.to_str().unwrap()].map(str::to_owned)
        };
        let old = json!({"account": "alibaba-cn", "id": "old-1", "order_biz_id": "old-biz-1", "product": "cmgj000001",
            "sku": "basic", "buyer": "10001", "expires_on": "2030-01-01T00:00:00Z"});
        let named = |id: &str| json!({"account": "alibaba-cn", "id": id});
        let daemon = mending(&home, daemon, beside, || {
            for (wrong, told) in [
                (json!({"account": "alibaba-cn"}), "an instance without an id"),
                (json!({"account": "alibaba-cn", "id": "old-2", "stat": "active"}), "unknown field `stat`"),
                (json!({"account": "alibaba-cn", "id": "old-2", "state": "pending"}), "pending"),
                (named("0"), "no id yet"),
                (named(""), "the value is empty"),
                (named(&taken), "already has an instance with the name"),
                (named("old-biz-1"), "already has an instance with the name `old-biz-1`"),
            ] {
                let arguments = import(&[old.clone(), wrong]);
                let said = refused(&home, 65, &arguments.each_ref().map(String::as_str));
                assert!(said.contains("customers.jsonl:2: ") && said.contains(told), "{said}");
                assert!(!said.contains(":1: "), "{said}");
            }
            let arguments = import(&[old.clone(), named("old-2")]);
            let said = done(&home, &arguments.each_ref().map(String::as_str));
            assert_eq!(said.stdout, "2 instances imported\n");
        });
        assert_eq!(last_act(&home), ("import".into(), "2 instances".into()));
        assert_eq!(home.json(&["instances", "show", "old-1"])["adopted"], true);
        daemon.deliver_until_done(&renew("old-1", "2031-01-01 00:00:00"));
        assert_eq!(daemon.deliver(&create("old-biz-1")).id(), "old-1", "it is not made a second time");
        // Bought elsewhere and paid for years: an expire now is held.
        assert!(!daemon.deliver(&about(EXPIRE, "old-1")).success());
        done(&home, &["held", "approve", &held_number(&home)]);
        daemon.deliver_until_done(&about(EXPIRE, "old-1"));
        assert_eq!(home.state("old-1"), "frozen");
        daemon.deliver_until_done(&about(RELEASE, "old-1"));
        assert_eq!(home.state("old-biz-1"), "released");
        assert_eq!(home.call_of("release")["maybe_provisioned"], false);
        assert_eq!(home.begun("create").len(), 1);
    });
}

#[test]
fn a_backup_beside_a_writing_daemon_is_restored_with_everything_held() {
    let (home, daemon) = started(&["fail-upgrade"]);
    let id = buy(&daemon, "biz-1");
    assert!(!daemon.deliver(&upgrade(&id, "gold")).success());
    until("it has failed", || jobs(&home, "queued").pop().filter(|job| job["attempts"] == 1));
    let copy = home.path("copy.db");
    let copy = copy.to_str().unwrap();
    let db = home.path("spid.db");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                daemon.deliver(&create(&format!("busy-{number}")));
            }
        });
        until("the daemon writes", || home.begun("create").get(3).cloned());
        let ran = home.run(&["backup", copy, "--db", db.to_str().unwrap()]);
        over.store(true, Ordering::Relaxed);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let again = home.run(&["backup", copy, "--db", db.to_str().unwrap()]);
        assert_eq!(again.code, 74, "{}", again.stderr);
    });

    // Not over an existing database, running or not, nor beside its leftover files.
    assert_eq!(act(&home, &["restore", copy]).code, 75);
    daemon.stop();
    assert!(refused(&home, 65, &["restore", copy]).contains("move the database away"));

    let empty = self::home();
    let nothing_why = ["restore", copy, "--db", "spid.db", "--why", " "];
    assert_eq!(empty.run(&nothing_why).code, 64);
    assert_eq!(act(&empty, &["restore", "nowhere.db"]).code, 66);
    std::fs::write(empty.path("spid.db-wal"), "of another database").unwrap();
    let ran = act(&empty, &["restore", copy]);
    assert!(ran.code == 65 && ran.stderr.contains("spid.db-wal"), "{}", ran.stderr);
    assert!(!empty.path("spid.db").exists());
    std::fs::remove_file(empty.path("spid.db-wal")).unwrap();

    let ran = done(&empty, &["restore", copy]);
    assert!(ran.stderr.contains("no sealing key at"), "{}", ran.stderr);
    assert!(ran.stderr.contains("spid held list"), "{}", ran.stderr);
    assert_eq!(last_act(&empty), ("restore".into(), format!("everything, from {copy}")));
    let held = jobs(&empty, "held");
    let upgrade_job = held.iter().find(|job| job["action"] == "upgrade").unwrap();
    assert!(word(upgrade_job, "note").starts_with("restored from a backup, where the job was queued"));
    assert!(jobs(&empty, "queued").is_empty() && jobs(&empty, "running").is_empty());

    // Nothing runs before an operator has decided, even if the marketplace calls.
    let daemon = empty.start();
    assert!(daemon.log().contains("the sealing key is missing"), "{}", daemon.log());
    assert!(!daemon.deliver(&upgrade(&id, "gold")).success());
    assert!(empty.begun("upgrade").is_empty());
    let repeat = daemon.deliver(&create("biz-1")).json();
    assert_eq!((&repeat["instanceId"], repeat["appInfo"].get("password")), (&json!(id), None));
    let key = word(upgrade_job, "id").to_owned();
    done(&empty, &["jobs", "retry", &key]);
    daemon.deliver_until_done(&upgrade(&id, "gold"));
    assert_eq!(empty.begun("upgrade"), [(key, 2)], "the same key, the next attempt");
}

#[test]
fn a_restored_key_tells_the_password() {
    let (home, daemon, id) = sold();
    let db = home.path("spid.db");
    let copy = home.path("copy.db");
    let copy = copy.to_str().unwrap();
    daemon.stop();
    assert_eq!(home.run(&["backup", copy, "--db", db.to_str().unwrap()]).code, 0);
    let other = self::home();
    std::fs::copy(home.path("spid.db.key"), other.path("spid.db.key")).unwrap();
    let ran = done(&other, &["restore", copy]);
    assert_eq!((ran.stderr.as_str(), jobs(&other, "held").len()), ("", 0));
    let told = other.start().deliver(&create("biz-1")).json();
    assert_eq!((&told["instanceId"], &told["appInfo"]["password"]), (&json!(id), &json!(PASSWORD)));
}

/// Customers from before spid. Their marketplace calls before they are imported.
#[test]
fn an_instance_released_before_it_was_known_is_imported_as_live() {
    for policy in ["refuse", "succeed"] {
        let home = home();
        let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
        home.configure(&format!("{text}\n[policy]\nunknown_instance = \"{policy}\"\n"));
        let daemon = home.start();
        let release = about(RELEASE, "old-1").with("orderBizId", "old-biz-1").with("aliUid", "10001");
        let renewal = renew("old-1", "2031-01-01 00:00:00").with("aliUid", "10001");
        assert_eq!(daemon.deliver(&release).success(), policy == "succeed");
        assert!(!daemon.deliver(&renewal).success(), "{policy}");
        let said = refused(&home, 65, &["instances", "release", "old-1"]);
        assert!(said.contains("import"), "{said}");
        // The list shows which old customer called.
        let called = home.list(&["callbacks", "list"]);
        for row in &called {
            assert_eq!(row["buyer"], "10001", "{row}");
            assert_eq!(row["names"][0], "old-1", "{row}");
        }
        assert!(home.look(&["callbacks", "list"]).contains("old-1, old-biz-1"));

        let line = json!({"account": "alibaba-cn", "id": "old-1", "order_biz_id": "old-biz-1", "sku": "basic",
            "buyer": "10001", "expires_on": "2030-01-01T00:00:00Z"});
        std::fs::write(home.path("customers.jsonl"), line.to_string()).unwrap();
        let said = done(&home, &["instances", "import", "--any-account", "customers.jsonl"]);
        assert_eq!(said.stdout, "1 instances imported\n");
        assert!(
            said.stderr.contains("the marketplace released old-1 before it was imported"),
            "{}",
            said.stderr
        );
        let shown = home.json(&["instances", "show", "old-biz-1"]);
        let facts = ["state", "adopted", "buyer", "order_biz_id"].map(|member| shown[member].clone());
        assert_eq!(facts, [json!("active"), json!(true), json!("10001"), json!("old-biz-1")], "{shown}");
        assert_eq!(home.list(&["instances", "list"]).len(), 1);
        refused(&home, 65, &["instances", "import", "--any-account", "customers.jsonl"]);

        daemon.deliver_until_done(&renewal);
        daemon.deliver_until_done(&release);
        assert_eq!(home.state("old-1"), "released");
        assert_eq!((home.begun("renew").len(), home.begun("release").len()), (1, 1), "{policy}");
    }
}

#[test]
fn a_tombstone_of_an_order_of_our_own_is_no_place_for_an_import() {
    let (home, daemon) = started(&["pend-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is pending", || jobs(&home, "pending").pop());
    done(&home, &["instances", "release", "biz-1"]);
    until("it is released", || (home.state("biz-1") == "released").then_some(()));
    let line = json!({"account": "alibaba-cn", "id": "old-1", "order_biz_id": "biz-1"});
    std::fs::write(home.path("customers.jsonl"), line.to_string()).unwrap();
    let said = refused(&home, 65, &["instances", "import", "--any-account", "customers.jsonl"]);
    assert!(said.contains("already has an instance with the name `biz-1`"), "{said}");
}

#[test]
fn an_import_into_an_account_that_is_not_configured_is_refused() {
    let (home, daemon) = started(&[]);
    daemon.stop();
    let import = |account: &str, more: &[&str]| {
        let good = json!({"account": "alibaba-cn", "id": "old-1"});
        let line = json!({"account": account, "id": "old-2"});
        std::fs::write(home.path("customers.jsonl"), format!("{good}\n{line}\n")).unwrap();
        home.run(&[&["instances", "import", "customers.jsonl", "--why", "a test"], more].concat())
    };
    let configured = ["--config", "spid.toml"];
    let ran = import("alibab-cn", &configured);
    assert_eq!(ran.code, 65, "{}", ran.stderr);
    let told = "customers.jsonl:2: account `alibab-cn` is not configured; did you mean `alibaba-cn`?";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    let ran = import("other", &configured);
    assert!(ran.code == 65 && ran.stderr.contains("use alibaba-cn"), "{}", ran.stderr);
    let ran = import("alibaba-cn", &["--db", "spid.db"]);
    assert!(ran.code == 64 && ran.stderr.contains("--any-account"), "{}", ran.stderr);
    assert_eq!(home.list(&["instances", "list"]).len(), 0);
    assert_eq!(import("alibaba-cn", &configured).code, 0);
    let given_up = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&format!("{given_up}\n[policy]\nretired_accounts = [\"old\"]\n"));
    std::fs::write(home.path("old.jsonl"), json!({"account": "old", "id": "old-3"}).to_string()).unwrap();
    let ran = home.run(&["instances", "import", "old.jsonl", "--why", "a test", "--config", "spid.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn what_is_not_there_and_what_cannot_be_done_is_said() {
    both_ways(|beside| {
        let (home, daemon) = started(&[]);
        buy(&daemon, "biz-1");
        home.wait_until_idle();
        mending(&home, daemon, beside, || {
            let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
            for arguments in [
                &["jobs", "retry", nobody][..],
                &["jobs", "drop", nobody],
                &["held", "approve", "99"],
                &["held", "reject", "99"],
                &["instances", "complete", "nobody"],
                &["instances", "release", "nobody"],
                &["instances", "import", "nowhere.jsonl"],
                &["callbacks", "resend", "99", "--to", "http://127.0.0.1:1/spi", "--key-file", "isv-key"],
            ] {
                refused(&home, 66, arguments);
            }
            refused(&home, 65, &["held", "approve", "1"]);
            refused(&home, 65, &["instances", "complete", "biz-1"]);
            for command in [
                &["jobs", "retry", nobody][..],
                &["held", "approve", "1"],
                &["instances", "release", "biz-1"],
            ] {
                let ran = home.run(&[command, &["--db", "spid.db", "--why", "  "]].concat());
                assert_eq!(ran.code, 64, "{command:?}");
                assert!(ran.stderr.contains("`--why` is empty"), "{}", ran.stderr);
                assert_eq!(home.run(&[command, &["--db", "spid.db"]].concat()).code, 64, "{command:?}");
            }
        });
    });
}

#[test]
fn what_runs_is_left_alone() {
    let (home, daemon) = started(&["hang-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    let id = word(&only_job(&home, "running"), "id").to_owned();
    assert!(refused(&home, 65, &["jobs", "retry", &id]).contains("wait for its end"));
    assert!(refused(&home, 65, &["jobs", "drop", &id]).contains("wait for its end"));
    assert!(refused(&home, 65, &["instances", "complete", "biz-1"]).contains("wait for its end"));
    home.open_gate("create");
    daemon.deliver_until_done(&create("biz-1"));
}

/// The command must not wait for a job if no daemon runs.
#[test]
fn what_ran_when_the_daemon_was_killed_is_told_apart_from_what_runs() {
    let (home, daemon) = started(&["hang-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    let id = word(&only_job(&home, "running"), "id").to_owned();
    until("its hook has begun", || (!home.begun("create").is_empty()).then_some(()));
    daemon.kill();
    meddle(&home, "UPDATE job SET lease_until = 1");
    for arguments in
        [&["jobs", "retry", &id][..], &["jobs", "drop", &id], &["instances", "complete", "biz-1"]]
    {
        let told = refused(&home, 65, arguments);
        assert!(told.contains("the create was running when the daemon stopped"), "{told}");
        assert!(told.contains("start the daemon") && !told.contains("wait for its end"), "{told}");
    }
    untell_hook(&home, "hang-create");
    home.start().deliver_until_done(&create("biz-1"));
}

#[test]
fn of_two_who_mend_the_same_one_does_it() {
    let (home, _daemon, id, number) = with_an_early_expire();
    let mut codes = std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| act(&home, &["held", "approve", &number]).code));
        both.map(|one| one.join().unwrap())
    });
    codes.sort_unstable();
    assert_eq!(codes, [0, 65]);
    until("it is frozen", || (home.state(&id) == "frozen").then_some(()));
    assert_eq!(home.begun("expire").len(), 2);
    assert_eq!(home.list(&["acts"]).len(), 1);
}

#[test]
fn a_callback_is_sent_again_and_that_is_recorded() {
    both_ways(|beside| {
        let (home, daemon, id) = sold();
        let url = format!("http://{}/spi", daemon.address);
        let resend =
            |url: &str| act(&home, &["callbacks", "resend", "1", "--to", url, "--key-file", "isv-key"]);
        if beside {
            let ran = resend(&url);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            assert!(ran.stdout.starts_with("200 ") && ran.stdout.contains(&id), "{}", ran.stdout);
            assert!(!ran.stdout.contains(PASSWORD) && !ran.stderr.contains(KEY));
        } else {
            daemon.stop();
            assert_eq!(resend(&url).code, 69);
        }
        assert_eq!(last_act(&home).0, "resend");
        assert_eq!(resend("http://spi.example/spi").code, 64);
        assert_eq!(home.list(&["acts"]).len(), 1);
    });
}

#[test]
fn every_operation_on_an_instance_is_in_its_history() {
    let home = home();
    with_admin(&home, "");
    let daemon = home.start();
    let url = format!("http://{}/spi", daemon.address);
    let resend = |number: &str| {
        done(&home, &["callbacks", "resend", number, "--to", &url, "--key-file", "isv-key"]);
    };
    let other = buy(&daemon, "biz-0");
    tell_hook(&home, "pend-create");
    tell_hook(&home, "pend-upgrade");
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    until("it is pending", || jobs(&home, "pending").pop());
    let answer = home.path("answer.json");
    std::fs::write(&answer, json!({"instance_id": "i-1", "app": {"password": PASSWORD}}).to_string())
        .unwrap();
    // Its name is `biz-1` until the create is complete.
    done(&home, &["instances", "complete", "biz-1", "--answer", answer.to_str().unwrap()]);
    resend("1");
    resend("2");
    done(&home, &["instances", "claim", "i-1", "--tenant", "tenant-1"]);
    assert!(!daemon.deliver(&upgrade("i-1", "gold")).success());
    let job = until("it is pending", || jobs(&home, "pending").pop());
    done(&home, &["jobs", "retry", word(&job, "id")]);
    until("it is pending again", || jobs(&home, "pending").pop().filter(|job| job["attempts"] == 2));
    done(&home, &["jobs", "drop", word(&job, "id")]);
    done(&home, &["attention", "dismiss", "3"]);
    let show = ["instances", "show", "i-1", "--reveal", "--why", "a test", "--db", "spid.db"];
    assert_eq!(home.run(&show).code, 0);
    done(&home, &["instances", "release", "biz-1"]);

    let words_of = |shown: &Value| -> Vec<String> {
        shown["acts"].as_array().unwrap().iter().map(|entry| word(entry, "act").to_owned()).collect()
    };
    let all = ["complete", "resend", "claim", "retry", "drop", "dismiss", "reveal", "release"];
    assert_eq!(words_of(&home.json(&["instances", "show", "i-1"])), all);
    assert_eq!(words_of(&home.json(&["instances", "show", &other])), ["resend"]);
    let text = home.look(&["instances", "show", "i-1"]);
    assert!(text.contains("resend") && text.contains("callback 2 to 127.0.0.1"), "{text}");
    let admin = admin_of(&daemon);
    let api: Value = serde_json::from_str(&ask(admin, "/v1/instances/i-1").body).unwrap();
    assert_eq!(words_of(&api), all);
    let page = ask(admin, "/console/instances/i-1").body;
    for word in all {
        assert!(page.contains(&format!("{word} (admin operation)")), "{word}: {page}");
    }
}

#[test]
fn an_approval_belongs_to_the_instance_that_it_creates() {
    let (home, daemon) = started(&[]);
    let doubtful = create("biz-1").with("aliUid", "1&b=2");
    assert_eq!(daemon.deliver(&doubtful).id(), "0");
    done(&home, &["held", "approve", &held_number(&home)]);
    until("it is active", || (home.state("biz-1") == "active").then_some(()));
    let shown = home.json(&["instances", "show", "biz-1"]);
    assert_eq!(shown["acts"][0]["act"], "approve", "{shown}");
}

#[test]
fn a_refused_upgrade_is_retried_if_nothing_was_applied_since() {
    let (home, daemon) = started(&["refuse-upgrade"]);
    let id = buy(&daemon, "biz-1");
    assert!(!daemon.deliver(&upgrade(&id, "silver")).success());
    until("it is refused", || jobs(&home, "refused").pop());
    let old = word(&only_job(&home, "refused"), "id").to_owned();
    tell_hook(&home, "pend-renew");
    assert!(!daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
    let waiting = until("it is pending", || jobs(&home, "pending").pop());
    assert!(refused(&home, 65, &["jobs", "retry", &old]).contains("has been queued since"));
    done(&home, &["jobs", "drop", word(&waiting, "id")]);
    untell_hook(&home, "refuse-upgrade");
    done(&home, &["jobs", "retry", &old]);
    until("it is done", || (home.json(&["instances", "show", &id])["sku"] == "silver").then_some(()));
}

#[test]
fn the_tries_of_the_marketplace_are_shown_and_warned_about() {
    let (home, daemon) = started(&["fail-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    let number = home.list(&["callbacks", "list"])[0]["number"].to_string();
    let ways = [&["callbacks", "list"][..], &["callbacks", "show", &number], &["instances", "show", "biz-1"]];
    for (tries, warns) in [(37, false), (60, true), (110, true)] {
        meddle(&home, &format!("UPDATE callback SET deliveries = {tries}"));
        for arguments in ways {
            let ran = home.run(&[arguments, &["--db", "spid.db"]].concat());
            assert!(ran.stdout.contains(&format!(" {tries}/120 ")), "{}", ran.stdout);
            let warning =
                format!("warning: callback {number} (create): {tries} of the marketplace's 120 deliveries");
            assert_eq!(ran.stderr.contains(&warning), warns, "{}", ran.stderr);
        }
    }
    untell_hook(&home, "fail-create");
    let job = word(&only_job(&home, "queued"), "id").to_owned();
    done(&home, &["jobs", "retry", &job]);
    daemon.deliver_until_done(&create("biz-1"));
    let shown = home.look(&["callbacks", "show", &number]);
    assert!(!shown.contains("/120"), "what was told is not tried any more: {shown}");
    let row = home.json(&["callbacks", "show", &number]);
    assert_eq!((&row["delivery_limit"], row["deliveries"].as_u64() > Some(110)), (&json!(120), true));
}

#[test]
fn lists_say_what_to_do_and_json_has_the_names_of_the_docs() {
    let (home, daemon, id) = sold();
    tell_hook(&home, "fail-upgrade");
    assert!(!daemon.deliver(&upgrade(&id, "gold")).success());
    make_dead(&home);
    assert!(!daemon.deliver(&about(EXPIRE, "0")).success());
    let dead = word(&only_job(&home, "dead"), "id").to_owned();
    let held = home.run(&["held", "list", "--db", "spid.db"]);
    assert!(held.stdout.contains(&dead), "{}", held.stdout);
    for command in ["spid held approve", "spid held reject", "spid jobs retry", "spid jobs drop"] {
        assert!(held.stderr.contains(command), "{}", held.stderr);
    }
    let list = home.run(&["jobs", "list", "--state", "dead", "--db", "spid.db"]);
    assert!(list.stderr.contains("spid jobs retry"), "{}", list.stderr);

    let has = |row: &Value, names: &[&str]| {
        for name in names {
            assert!(row.get(name).is_some(), "no `{name}` in {row}");
        }
    };
    let instance = home.json(&["instances", "show", &id]);
    let names = [
        "id",
        "state",
        "account",
        "endpoint",
        "buyer",
        "product",
        "sku",
        "order_id",
        "order_biz_id",
        "expires_on",
    ];
    has(&instance, &names);
    has(&instance, &["items", "trial", "callbacks", "jobs", "created_at", "updated_at"]);
    has(
        &home.list(&["jobs", "list"])[0],
        &["id", "action", "state", "attempts", "callback", "note", "due_at"],
    );
    has(&home.json(&["jobs", "show", &dead]), &["id", "failed_attempts"]);
    let callback = ["number", "action", "account", "endpoint", "disposition", "reason_code", "reason"];
    has(&home.list(&["callbacks", "list"])[0], &callback);
    has(
        &home.list(&["callbacks", "list"])[0],
        &["deliveries", "delivery_limit", "reported_at", "key_label", "received_at"],
    );
    has(&home.list(&["held", "list"])[0], &["kind", "callback", "account", "action", "since", "reason"]);
    done(&home, &["jobs", "retry", &dead]);
    has(&home.list(&["acts"])[0], &["at", "who", "act", "target", "why"]);
}

/// Words of a shell line. Quotes keep blanks together.
fn words(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    quoted
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn the_commands_of_the_docs_are_commands() {
    let text = include_str!("../../docs/operating.md");
    let (_, mending) = text.split_once("## Mending").unwrap();
    let (mending, _) = mending.split_once("\n## ").unwrap();
    let commands: Vec<&str> = mending.lines().filter_map(|line| line.strip_prefix("spid ")).collect();
    assert!(commands.len() > 15, "{commands:?}");
    let home = home();
    home.start().stop();
    for command in commands {
        let command = command.split(['#', '>']).next().unwrap();
        let words = words(command);
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend(["--config", "spid.toml"]);
        let ran = home.run(&words);
        assert_ne!(ran.code, 64, "{command}: {}", ran.stderr);
    }
}

#[test]
fn a_release_that_came_before_anything_else_is_listed_by_the_name_it_used() {
    let (home, daemon) = started(&[]);
    assert!(!daemon.deliver(&about(RELEASE, "old-7")).success());
    let list = home.look(&["instances", "list"]);
    assert!(list.lines().any(|line| line.starts_with("old-7 ") && line.contains("released")), "{list}");
    assert_eq!(home.json(&["instances", "show", "old-7"])["known_as"], "old-7");
}

#[test]
fn a_sign_on_that_a_hook_leaves_pending_is_a_mistake_of_the_hook_and_waits_for_nobody() {
    let (home, daemon, id) = sold();
    tell_hook(&home, "pend-sign-on");
    let now =
        spid_hook::time::Clock::System.now().to_zoned(jiff::tz::TimeZone::get("Asia/Shanghai").unwrap());
    let ticket = about("verify", &id).with("timeStamp", &now.strftime("%Y-%m-%d %H:%M:%S").to_string());
    assert_ne!(daemon.deliver(&ticket).status, 302);
    daemon.wait_for_log("a sign-on cannot be pending");
    assert_eq!(jobs(&home, "pending"), [] as [Value; 0]);
    assert_eq!(home.list(&["attention"]), [] as [Value; 0]);
}

#[test]
fn a_purchase_of_another_buyer_gets_nothing_of_the_first_whatever_an_operator_says() {
    let (home, daemon, id) = sold();
    let other = create("biz-1").with("orderId", "order-2").with("aliUid", "66666");
    let answer = daemon.deliver(&other);
    assert_eq!(answer.id(), "0");
    let number = held_number(&home);
    assert!(refused(&home, 65, &["held", "settle", &number]).contains("this is not a redelivery"));
    for way in ["renew", "upgrade", "conversion"] {
        let said = refused(&home, 65, &["held", "approve", &number, "--as", way]);
        assert!(said.contains("another buyer"), "{said}");
    }
    assert_eq!(daemon.deliver(&other).id(), "0");
    // It does not change the term of another instance.
    meddle(&home, "UPDATE instance SET expires_on = 1");
    daemon.deliver_until_done(&about(EXPIRE, &id));
    assert_eq!(home.state(&id), "frozen");
}

#[test]
fn a_second_purchase_is_approved_where_nothing_was_made_of_the_first() {
    let (home, daemon) = started(&["refuse-create"]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "0");
    untell_hook(&home, "refuse-create");
    // Within the gap after the refusal, the second one has another result.
    let second = create("biz-1").with("orderId", "order-2");
    let id = daemon.deliver_until_done(&second).id();
    assert_ne!(id, "0");
    assert_eq!(home.json(&["instances", "show", &id])["order_id"], "order-2");
    let listed = home.list(&["attention"]);
    assert!(
        listed.iter().any(|item| item["reason"] == "refused"),
        "the first one is still not done: {listed:#?}"
    );
}

/// Bought orders whose create is dead, the newest first.
fn dead_orders(home: &Home, daemon: &Daemon, names: &[&str]) -> Vec<String> {
    for name in names {
        assert_eq!(daemon.deliver(&create(name)).id(), "0");
        make_dead(home);
    }
    let dead = jobs(home, "dead");
    assert_eq!(dead.len(), names.len(), "{dead:?}");
    dead.iter().map(|job| word(job, "id").to_owned()).collect()
}

#[test]
fn jobs_are_chosen_by_state_and_hook_and_changed_only_with_yes() {
    let (home, daemon) = started(&["fail-create"]);
    dead_orders(&home, &daemon, &["biz-1", "biz-2"]);
    let listed = home.run(&["jobs", "list", "--config", "spid.toml", "--json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["hook"], &listed[1]["instance"]), (&json!("provision"), &json!("biz-1")));
    let table = home.run(&["jobs", "list", "--config", "spid.toml"]).stdout;
    assert!(table.contains("  INSTANCE  ORDER ") && table.contains("  provision  "), "{table}");

    let of_hook = |hook: &str, more: &[&str]| {
        let arguments = ["--config", "spid.toml", "--state", "dead", "--hook", hook, "--why", "a test"];
        home.run(&[&["jobs", "retry"], arguments.as_slice(), more].concat())
    };
    let before = contents(&home);
    let counted = of_hook("provision", &[]);
    assert_eq!(counted.code, 64, "{}", counted.stderr);
    assert!(counted.stderr.contains("2 jobs would be retried; nothing was changed"), "{}", counted.stderr);
    assert!(counted.stdout.contains("biz-1") && counted.stdout.contains("biz-2"), "{}", counted.stdout);
    let unknown = of_hook("provisoin", &["--yes"]);
    assert_eq!(unknown.code, 64);
    assert!(unknown.stderr.contains("did you mean `provision`?"), "{}", unknown.stderr);
    assert_eq!(contents(&home), before);
    // The routes are in the configuration, which `--db` does not name.
    assert!(
        refused(&home, 64, &["jobs", "retry", "--state", "dead", "--hook", "provision", "--yes"])
            .contains("--config")
    );
    assert!(refused(&home, 64, &["jobs", "retry", "--yes"]).contains("required"));

    untell_hook(&home, "fail-create");
    let retried = of_hook("provision", &["--yes"]);
    assert_eq!(retried.code, 0, "{}", retried.stderr);
    assert!(retried.stdout.starts_with("2 jobs\n") && retried.stdout.ends_with("2 of 2 jobs retried\n"));
    home.wait_until_idle();
    assert_eq!(jobs(&home, "done").len(), 2);
    assert_eq!(of_hook("provision", &["--yes"]).stdout, "0 jobs\n0 of 0 jobs retried\n");

    tell_hook(&home, "fail-create");
    dead_orders(&home, &daemon, &["biz-3"]);
    let dropped = done(&home, &["jobs", "drop", "--state", "dead", "--yes"]).stdout;
    assert!(dropped.ends_with("1 of 1 jobs dropped\n"), "{dropped}");
    assert_eq!(jobs(&home, "dropped").len(), 1);
    assert_eq!(last_act(&home).0, "drop");
}

/// Between the choice and the change of a job, a daemon or another person may take it out of the chosen state.
#[test]
fn a_chosen_job_that_has_left_the_state_is_left_alone() {
    let (home, daemon) = started(&["fail-create"]);
    let ids = dead_orders(&home, &daemon, &["biz-1"]);
    daemon.stop();
    let id: Id = ids[0].parse().unwrap();
    let note = AuditNote { who: "a".to_owned(), why: "a test".to_owned() };
    let mut operations =
        Operations::open(&home.path("spid.db"), &StoreOptions::default(), Clock::System).unwrap();
    operations.retry(id, &note).unwrap();
    let before = contents(&home);
    let error = operations.drop_chosen(id, Some(JobState::Dead), &note).unwrap_err();
    assert_eq!(error, OperationError::Moved(JobState::Dead, JobState::Queued));
    let error = operations.retry_chosen(id, Some(JobState::Dead), &note).unwrap_err();
    assert_eq!(error.to_string(), "the job is no longer dead: it is queued");
    assert_eq!(contents(&home), before);
    operations.drop_chosen(id, Some(JobState::Queued), &note).unwrap();
}

/// A dropped create ends the jobs behind it. They were chosen, too, and are no failure of the command.
#[test]
fn all_held_jobs_of_an_instance_can_be_dropped_at_once() {
    let (home, daemon) = started(&["fail-create"]);
    dead_orders(&home, &daemon, &["biz-1"]);
    daemon.deliver(&renew("biz-1", "2031-01-01 00:00:00"));
    daemon.stop();
    let (copy, db) = (home.path("copy.db"), home.path("spid.db"));
    let (copy, db) = (copy.to_str().unwrap(), db.to_str().unwrap());
    assert_eq!(home.run(&["backup", copy, "--db", db]).code, 0);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{db}{end}"));
    }
    done(&home, &["restore", copy]);
    assert_eq!(jobs(&home, "held").len(), 2);
    let dropped = done(&home, &["jobs", "drop", "--state", "held", "--yes"]).stdout;
    assert!(dropped.contains("is left alone: the job is no longer held: it is cancelled"), "{dropped}");
    assert!(dropped.ends_with("1 of 2 jobs dropped\n"), "{dropped}");
}

#[test]
fn the_beginning_of_an_id_is_enough_if_only_one_job_has_it() {
    let (home, daemon) = started(&["fail-create"]);
    let ids = dead_orders(&home, &daemon, &["biz-1", "biz-2"]);
    let common = ids[0].chars().zip(ids[1].chars()).take_while(|(a, b)| a == b).count();
    // Ids of one moment begin alike.
    assert!(common > 3, "{ids:?}");
    let said = refused(&home, 64, &["jobs", "retry", &ids[0][..common]]);
    assert!(ids.iter().all(|id| said.contains(&format!("\n  {id}  create  dead"))), "{said}");
    assert!(
        refused(&home, 66, &["jobs", "drop", "ffff"]).contains("no job has an id that begins with `ffff`")
    );
    refused(&home, 64, &["jobs", "drop", "biz-1"]);
    let beginning = &ids[0][..=common];
    assert!(home.look(&["jobs", "show", beginning]).contains(&ids[0]));
    assert_eq!(done(&home, &["jobs", "retry", beginning]).stdout, format!("job {} is due now\n", ids[0]));
}
