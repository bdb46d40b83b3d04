//! Attacks on each of the fourteen promises: crashes, repeats, early redeliveries, hostile requests.
//!
//! The daemon is the real binary over real sockets and files; the requests are signed by hand.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};

use crate::support::daemon::{
    Answer, Daemon, Home, KEY, Line, PASSWORD, Params, QUICK, about, assert_clean, create, encode, exchange,
    get, get_text, memory_peak, post_text, renew, until, upgrade,
};
use serde_json::{Value, json};

fn payment(request_id: &str) -> Params {
    Params::new("orderPay").with("aliUid", "10001").with("orderId", request_id).with("requestId", request_id)
}

// 1. Acknowledged means kept.

/// Requests that one marketplace got answers for before the daemon died.
fn sell_until_the_end(daemon: &Daemon, seller: String, told: mpsc::Sender<(Params, Answer)>) {
    let address = daemon.address;
    std::thread::spawn(move || {
        for number in 0.. {
            let created = create(&format!("ob-{seller}-{number}"));
            let Some(answer) = get(address, &created.signed()) else { return };
            let upgraded = upgrade(&answer.id(), &format!("sku-{seller}-{number}"));
            if told.send((created, answer)).is_err() {
                return;
            }
            let Some(answer) = get(address, &upgraded.signed()) else { return };
            if told.send((upgraded, answer)).is_err() {
                return;
            }
        }
    });
}

#[test]
fn p01_acknowledged_means_kept_when_killed_after_any_answer() {
    let home = Home::with_hook(QUICK);
    let mut told: Vec<(Params, Answer)> = Vec::new();
    for round in 0..8 {
        let daemon = home.start();
        let (sender, answers) = mpsc::channel();
        for seller in 0..4 {
            sell_until_the_end(&daemon, format!("{round}-{seller}"), sender.clone());
        }
        drop(sender);
        told.extend(answers.iter().take(1 + 3 * round));
        daemon.kill();
        told.extend(answers);
    }
    assert!(told.len() >= 92, "{}", told.len());
    let daemon = home.start();
    home.wait_until_idle();
    let before = home.row_counts();
    for (request, answer) in &told {
        assert!(answer.is_success(), "{answer:?}");
        assert_eq!(&daemon.deliver(request), answer, "{request:?}");
    }
    assert_eq!(home.row_counts(), before, "what was told is known, and nothing of it is new");
    for row in home.list(&["instances", "list"]) {
        assert_eq!(row["state"], "active", "{row}: what was accepted is finished after the crash");
    }
    let told_skus = told.iter().flat_map(|(request, _)| &request.0).filter(|(name, _)| name == "skuId");
    let told_skus: BTreeSet<String> = told_skus.map(|(_, sku)| sku.clone()).collect();
    let kept_skus: BTreeSet<String> = home
        .list(&["instances", "list"])
        .iter()
        .map(|row| row["sku"].as_str().unwrap().to_owned())
        .chain(["basic".to_owned()])
        .collect();
    assert!(told_skus.is_subset(&kept_skus), "{:?}", told_skus.difference(&kept_skus));
}

#[test]
fn p01_acknowledged_means_kept_when_the_disk_is_full() {
    let home = Home::with_log_hook();
    let mut daemon = home.start_on_a_full_disk(6000);
    let (mut told, mut denied) = (Vec::new(), 0);
    for number in 0..4000 {
        let request = match number % 3 {
            0 => create(&format!("ob-{number}")),
            _ => payment(&format!("pay-{number}-")),
        };
        let answer = daemon.deliver(&request);
        match answer.is_success() {
            true => told.push((request, answer)),
            false => denied += 1,
        }
        if denied == 12 {
            break;
        }
    }
    assert_eq!(denied, 12, "the disk never was full");
    assert!(told.len() > 20, "{}", told.len());
    assert!(daemon.is_running(), "a full disk ends nothing");
    daemon.make_room();
    let late = create("ob-when-there-was-room-again");
    let answer = daemon.deliver_until_done(&late);
    told.push((late, answer));
    daemon.kill();
    let daemon = home.start();
    home.wait_until_idle();
    let bodies: Vec<String> = {
        let db = home.database();
        let mut bodies = db.prepare("SELECT body FROM callback").unwrap();
        bodies.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    for (request, answer) in &told {
        let (_, name) = request.0.iter().find(|(name, _)| name == "orderId").unwrap();
        assert!(bodies.iter().any(|body| body.contains(name.as_str())), "{name} was told done and is gone");
        assert_eq!(&daemon.deliver(request), answer, "{request:?}");
    }
}

// 2. One order, one instance, one id.

/// Delivers the same request on this many connections at once.
fn at_once(daemon: &Daemon, request: &Params, count: usize) -> Vec<std::thread::JoinHandle<Option<Answer>>> {
    let barrier = Arc::new(Barrier::new(count));
    let one = || {
        let (barrier, query, address) = (barrier.clone(), request.signed(), daemon.address);
        std::thread::spawn(move || {
            barrier.wait();
            get(address, &query)
        })
    };
    (0..count).map(|_| one()).collect()
}

#[test]
fn p02_one_order_one_instance_one_id() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let request = create("ob-2");
    let daemon = home.start();
    let lost = at_once(&daemon, &request, 32);
    until("the hook has begun", || (!home.begun("create").is_empty()).then_some(()));
    daemon.kill();
    for answer in lost {
        assert_eq!(answer.join().unwrap(), None, "nothing was true yet");
    }

    let daemon = home.start();
    let waiting = at_once(&daemon, &request, 32);
    until("the second attempt has begun", || (home.begun("create").len() == 2).then_some(()));
    home.open_gate("go");
    let mut ids: BTreeSet<String> = BTreeSet::new();
    ids.extend(waiting.into_iter().map(|answer| answer.join().unwrap().unwrap().id()));
    ids.extend((0..18).map(|_| daemon.deliver(&request).id()));
    daemon.kill();
    let daemon = home.start();
    ids.extend((0..50).map(|_| daemon.deliver(&request).id()));

    assert_eq!(ids.len(), 1, "{ids:?}");
    let keys: BTreeSet<String> = home.begun("create").into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(home.list(&["instances", "list"]).len(), 1);
    assert_eq!(home.list(&["jobs", "list"]).len(), 1);
    assert_eq!(home.list(&["callbacks", "list"]).len(), 1);
}

#[test]
fn p02_thirty_two_first_deliveries_at_once_are_one_order() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    for order in ["ob-a", "ob-b", "ob-c"] {
        let answers = at_once(&daemon, &create(order), 32);
        let ids: BTreeSet<String> = answers.into_iter().map(|it| it.join().unwrap().unwrap().id()).collect();
        assert_eq!(ids.len(), 1, "{order}: {ids:?}");
    }
    let keys: BTreeSet<(String, u32)> = home.begun("create").into_iter().collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert_eq!(home.list(&["jobs", "list"]).len(), 3);
}

// 3. At least once, in order, one key for every attempt.

#[test]
fn p03_every_attempt_has_the_same_key_across_failures_and_crashes() {
    // The first attempt fails, the second dies with the daemon, the third succeeds.
    let script = format!(
        r#"[ "$SPID_ACTION-$SPID_ATTEMPT" = create-1 ] && exit 75
           [ "$SPID_ACTION-$SPID_ATTEMPT" = create-2 ] && wait_for second
           {QUICK}"#
    );
    let home = Home::impatient(&script);
    let request = create("ob-3");
    let daemon = home.start();
    assert_eq!(daemon.deliver(&request).id(), "0");
    until("the first attempt is noted", || {
        (home.list(&["jobs", "list"])[0]["state"] == "queued").then_some(())
    });
    daemon.kill();

    let daemon = home.start();
    assert_eq!(daemon.deliver(&request).id(), "0", "a redelivery joins, it makes no second job");
    // The first wait of the schedule, 5 s. No other test here waits for it.
    until("the second attempt has begun", || (home.begun("create").len() == 2).then_some(()));
    daemon.kill();

    let daemon = home.start();
    let id = daemon.deliver_until_done(&request).id();
    let begun = home.begun("create");
    let (key, _) = begun[0].clone();
    assert_eq!(begun, [(key.clone(), 1), (key.clone(), 2), (key.clone(), 3)]);
    assert_eq!(id, format!("i-{key}"));
    let job = home.json(&["jobs", "show", &key]);
    let endings: Vec<&str> =
        job["failed_attempts"].as_array().unwrap().iter().map(|it| it["ending"].as_str().unwrap()).collect();
    assert_eq!(endings, ["retry", "lost"], "{job}");

    // A late result of the dead daemon's hook is not a second result.
    home.open_gate("second");
    assert_eq!(daemon.deliver(&request).id(), id);
    // Another callback has another key.
    assert!(daemon.deliver_until_done(&upgrade(&id, "pro")).success());
    assert_ne!(home.begun("upgrade")[0].0, key);
}

#[test]
fn p03_a_lane_runs_in_order_and_one_at_a_time() {
    let script = r#"
name=$(printf '%s' "$call" | sed 's/.*"order_biz_id":"\([^"]*\)".*/\1/')
mkdir "busy-$name" || echo "$name overlap" >> order
echo "$name $SPID_ACTION" >> order
[ "$SPID_ACTION" = create ] && wait_for go
rmdir "busy-$name"
printf '{}'
"#;
    let home = Home::impatient(script);
    let daemon = home.start();
    let lanes = ["ob-a", "ob-b"];
    let lane = |name: &str| {
        let about = |action: &str| Params::new(action).with("orderBizId", name);
        vec![
            create(name),
            about("upgradeInstance").with("skuId", "pro"),
            about("renewInstance").with("expiredOn", "2031-01-01 00:00:00"),
            about("expiredInstance"),
        ]
    };
    for name in lanes {
        for request in lane(name) {
            assert!(!daemon.deliver(&request).is_success());
        }
    }
    until("both creates run, and nothing else", || (home.begun("create").len() == 2).then_some(()));
    assert_eq!(home.hook_lines().len(), 2);
    home.open_gate("go");
    home.wait_until_idle();
    let order = std::fs::read_to_string(home.path("order")).unwrap();
    for name in lanes {
        let of_this = order.lines().filter_map(|line| line.strip_prefix(&format!("{name} ")));
        let of_this: Vec<&str> = of_this.collect();
        assert_eq!(of_this, ["create", "upgrade", "renew", "expire"], "{order}");
        // Except the renewal: for an instance that was frozen since, a repeat may be a payment of arrears.
        for request in lane(name).into_iter().filter(|request| !request.signed().contains("renewInstance")) {
            assert!(daemon.deliver(&request).is_success(), "{request:?}");
        }
        let row = home.json(&["instances", "show", name]);
        assert_eq!((&row["state"], &row["sku"]), (&json!("frozen"), &json!("pro")));
        assert_eq!(row["expires_on"], "2030-12-31T16:00:00Z");
    }
    assert_eq!(home.hook_lines().len(), 16, "each ran once");
}

// 4. Success is never claimed before it is true.

#[test]
fn p04_success_is_never_claimed_before_it_is_true() {
    let home = Home::impatient(&format!("wait_for \"$SPID_ACTION\"; {QUICK}"));
    let daemon = home.start();
    let request = create("ob-4");
    for _ in 0..3 {
        assert_eq!(daemon.deliver(&request).id(), "0");
    }
    assert_eq!(home.state("ob-4"), "pending");
    home.open_gate("create");
    let id = daemon.deliver_until_done(&request).id();
    assert_eq!(home.begun("create").len(), 1);
    assert_eq!(id, format!("i-{}", home.begun("create")[0].0));

    let requests = [
        renew(&id, "2031-01-01 00:00:00"),
        upgrade(&id, "pro"),
        about("expiredInstance", &id),
        about("releaseInstance", &id),
    ];
    for (request, action) in requests.iter().zip(["renew", "upgrade", "expire", "release"]) {
        let before = home.json(&["instances", "show", &id]);
        for _ in 0..2 {
            assert!(!daemon.deliver(request).success(), "{action}");
        }
        let now = home.json(&["instances", "show", &id]);
        for member in ["state", "sku", "expires_on"] {
            assert_eq!(now[member], before[member], "{action}: {member} changed before it was true");
        }
        home.open_gate(action);
        assert!(daemon.deliver_until_done(request).success());
        assert_eq!(home.begun(action).len(), 1, "{action}");
    }
    assert_eq!(home.state(&id), "released");
}

#[test]
fn p04_a_result_nobody_came_back_for_is_listed_until_it_is_told() {
    let home = Home::impatient(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    let request = create("ob-4");
    assert_eq!(daemon.deliver(&request).id(), "0");
    let unreported = || home.list(&["callbacks", "list", "--unreported"]);
    assert_eq!(unreported(), Vec::<Value>::new(), "a hook still runs for it");
    home.open_gate("go");
    home.wait_until_idle();
    let rows = unreported();
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["action"], &rows[0]["reported_at"]), (&json!("create"), &Value::Null));
    daemon.kill();
    let daemon = home.start();
    daemon.wait_for_log("unreported=1");
    assert_eq!(unreported(), rows);
    assert_ne!(daemon.deliver(&request).id(), "0");
    assert_eq!(unreported(), Vec::<Value>::new());
}

#[test]
fn p04_success_is_never_claimed_for_what_is_no_longer_so() {
    let home = Home::impatient(&format!("wait_for \"$SPID_ACTION\"; {QUICK}"));
    ["create", "renew"].iter().for_each(|action| home.open_gate(action));
    let daemon = home.start();
    let id = daemon.deliver_until_done(&create("ob-4")).id();
    // The marketplace gets "not yet", and does not call again for the result.
    assert!(!daemon.deliver(&upgrade(&id, "b")).success());
    home.open_gate("upgrade");
    home.wait_until_idle();
    assert!(daemon.deliver_until_done(&upgrade(&id, "s")).success());
    // The same request again: a late repeat, or a new purchase. Neither is in force.
    for _ in 0..3 {
        assert!(!daemon.deliver(&upgrade(&id, "b")).success());
    }
    assert_eq!(home.json(&["instances", "show", &id])["sku"], "s");
    assert_eq!(home.begun("upgrade").len(), 2);
    // With its own order it is either the one that was carried out, or another one.
    let ordered = |order: &str, sku: &str| upgrade(&id, sku).with("orderId", order);
    assert!(daemon.deliver_until_done(&ordered("o-1", "c")).success());
    assert!(daemon.deliver_until_done(&ordered("o-2", "s")).success());
    assert!(daemon.deliver(&ordered("o-1", "c")).success(), "it was carried out");
    assert_eq!(home.json(&["instances", "show", &id])["sku"], "s");
    assert_eq!(home.begun("upgrade").len(), 4);
}

// 5. Released stays released.

#[test]
fn p05_released_stays_released() {
    let home = Home::with_hook(QUICK);
    let mut daemon = home.start();
    let bought = create("ob-5");
    let id = daemon.deliver(&bought).id();
    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    let calls = home.hook_lines().len();
    for _ in 0..2 {
        assert_eq!(daemon.deliver(&bought).id(), id, "the stored id, and nothing else");
        let converted = bought.clone().with("orderId", "order-2").with("trial", "true");
        assert_eq!(daemon.deliver(&converted).id(), "0", "another purchase gets nothing of it");
        assert!(!daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
        assert!(!daemon.deliver(&upgrade(&id, "pro")).success());
        assert!(daemon.deliver(&about("expiredInstance", &id)).success(), "it is as good as frozen");
        assert!(daemon.deliver(&about("releaseInstance", &id)).success());
        home.wait_until_idle();
        assert_eq!(home.state(&id), "released");
        assert_eq!(home.hook_lines().len(), calls, "no hook ran for a tombstone");
        daemon.kill();
        daemon = home.start();
    }
    daemon.wait_for_log("the store is open");
    assert_eq!(home.list(&["instances", "list"]).len(), 1);
}

#[test]
fn p05_a_create_that_comes_after_its_release_revives_nothing() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let release = Params::new("releaseInstance").with("orderBizId", "ob-late");
    assert!(!daemon.deliver(&release).success(), "an unknown instance is refused by default");
    for _ in 0..2 {
        assert_eq!(daemon.deliver(&create("ob-late")).id(), "0");
    }
    assert!(!daemon.deliver(&release).success());
    assert_eq!(home.hook_lines(), []);
    assert_eq!(home.state("ob-late"), "released");
    let held = home.list(&["held", "list"]);
    assert_eq!(held.len(), 1);
    assert_eq!(held[0]["action"], "create");
}

#[test]
fn p05_a_release_that_overtakes_the_create_wins() {
    let home = Home::impatient(&format!("[ \"$SPID_ACTION\" = create ] && wait_for go; {QUICK}"));
    let daemon = home.start();
    let release = Params::new("releaseInstance").with("orderBizId", "ob-5");
    let upgrade = Params::new("upgradeInstance").with("orderBizId", "ob-5").with("skuId", "pro");
    assert_eq!(daemon.deliver(&create("ob-5")).id(), "0");
    assert!(!daemon.deliver(&upgrade).success());
    assert!(!daemon.deliver(&release).success(), "the create still runs");
    home.open_gate("go");
    assert!(daemon.deliver_until_done(&release).success());
    assert_eq!(home.state("ob-5"), "released");
    assert_eq!(home.begun("upgrade"), [], "what had not begun is cancelled");
    let calls = home.hook_lines().len();
    daemon.deliver(&create("ob-5"));
    home.wait_until_idle();
    assert_eq!((home.hook_lines().len(), home.state("ob-5").as_str()), (calls, "released"));
}

// 6. What was signed is what the hook gets.

fn as_map(request: &Params) -> BTreeMap<&str, &str> {
    request.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn p06_what_was_signed_is_what_the_hook_gets() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let odd = |request: Params| {
        request
            .with("unknownThing", "x")
            .with("empty", "")
            .with("名字", "中文 值 😀")
            .with("plus", "a+b")
            .with("percent", "a%20b%2Bc")
            .with("space", " a  b ")
            .with("Count", "2")
            .with("Num", "3")
            .with("label", "R&D")
            .with("equation", "a==b=")
            .with("shell", "\"; touch pwned; $(touch pwned) `touch pwned` '\\")
            .with("lines", "a\nb\r\nc\td")
            .with("Token", "not the token")
            .with("instance", "{\"id\":1}")
    };
    let created = odd(create("ob-6"));
    let id = daemon.deliver(&created).id();
    let call = home.call_of("create");
    assert_eq!(call["parameters"], json!(as_map(&created)), "each of them, and nothing else");
    assert_eq!((&call["items"]["Count"], &call["items"]["Num"]), (&json!("2"), &json!("3")));
    assert_clean("the call", call.to_string().as_bytes(), &[&created.token()]);

    // As a form, with spaces as plus; and half in the query, half in the form.
    let renewed = odd(renew(&id, "2031-01-01 00:00:00"));
    assert!(daemon.post(&renewed.signed().replace("%20", "+")).success());
    assert_eq!(home.call_of("renew")["parameters"], json!(as_map(&renewed)));
    let upgraded = odd(upgrade(&id, "pro"));
    let whole = upgraded.signed();
    let (query, form) = whole.split_once("&plus=").unwrap();
    let answer = exchange(daemon.address, &post_text(&format!("/spi?{query}"), &format!("plus={form}")));
    assert!(answer.unwrap().success());
    let call = home.call_of("upgrade");
    assert_eq!(call["parameters"], json!(as_map(&upgraded)));
    assert_clean("the call", call.to_string().as_bytes(), &[&upgraded.token()]);
    assert!(!home.path("pwned").exists());
}

#[test]
fn p06_the_call_says_what_was_signed_also_after_a_crash() {
    let home = Home::impatient(&format!("[ \"$SPID_ATTEMPT\" = 1 ] && wait_for never; {QUICK}"));
    let daemon = home.start();
    let created = create("ob-6").with("unknownThing", "中 + % &").with("empty", "");
    assert_eq!(daemon.deliver(&created).id(), "0");
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    daemon.kill();
    let daemon = home.start();
    daemon.deliver_until_done(&created);
    assert_eq!(home.begun("create").len(), 2);
    assert_eq!(home.call_of("create")["parameters"], json!(as_map(&created)));
}

// 7. Unverified requests leave nothing behind; verified ones are never lost.

fn unverified(number: usize) -> String {
    let honest = create(&format!("ob-forged-{number}"));
    let (text, token) = (honest.encoded(), honest.token());
    let wrong = "0123456789abcdef0123456789abcdef";
    let big = "x".repeat(8000);
    match number % 16 {
        0 => get_text("/spi", &format!("{text}&token={wrong}")),
        1 => get_text("/spi", &text),
        2 => get_text("/spi", &format!("{text}&token=")),
        3 => get_text("/spi", &format!("{text}&token={token}0")),
        4 => get_text("/spi", &format!("{text}&added=1&token={token}")),
        5 => get_text("/spi", &format!("{text}&token={token}&token={token}")),
        6 => get_text("/spi", &format!("{text}&skuId=basic&token={token}")),
        7 => get_text("/spi", &format!("{text}&a=%zz&token={token}")),
        8 => get_text("/spi", &format!("{text}&a=%00&token={token}")),
        9 => get_text("/spi", &format!("{text}&a=%ff&token={token}")),
        10 => get_text("/spi", &format!("{text}&a%26b=1&token={token}")),
        11 => get_text("/spi", &format!("{text}&{}token={token}", "a=1&".repeat(200))),
        12 => get_text("/spi", &format!("{text}&a={big}&token={wrong}")),
        13 => post_text("/spi", &format!("{text}&a={big}&b={big}&c={big}&d={big}&e={big}&token={wrong}")),
        14 => get_text("/elsewhere", &honest.signed()),
        _ => get_text("/spi", &honest.signed().replace("basic", "enterprise")),
    }
}

#[test]
fn p07_unverified_requests_leave_nothing_behind() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-7")).id(), "ob-7");
    home.wait_until_idle();
    let files = || -> Vec<(String, Vec<u8>)> {
        // The shared-memory file holds the readers' marks, and the test reads too.
        home.database_files().into_iter().filter(|(name, _)| !name.ends_with("-shm")).collect()
    };
    let (rows, before, memory) = (home.row_counts(), files(), memory_peak(daemon.pid()));
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for peer in 0..4 {
            let (daemon, refused) = (&daemon, &refused);
            scope.spawn(move || {
                let mut line = Line::open(daemon.address).unwrap();
                for number in 0..800 {
                    let answer = line.exchange(&unverified(number * 4 + peer)).unwrap();
                    assert!([400, 403, 404].contains(&answer.status), "{number}: {answer:?}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(refused.into_inner(), 3200);
    assert_eq!(home.row_counts(), rows);
    let same: Vec<(String, bool)> =
        before.iter().zip(files()).map(|(was, is)| (was.0.clone(), *was == is)).collect();
    assert!(same.iter().all(|(_, same)| *same), "a file was written to: {same:?}");
    let grown = memory_peak(daemon.pid()).saturating_sub(memory);
    // Together they sent more than 9 MB.
    assert!(grown < 4 * 1024 * 1024, "{grown} bytes more memory for requests that do not count");
    assert_eq!(daemon.deliver(&create("ob-7b")).id(), "ob-7b");
}

#[test]
fn p07_verified_requests_never_vanish() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let id = daemon.deliver(&create("ob-7")).id();
    let odd = [
        Params::new("teleportInstance").with("instanceId", &id),
        Params::new("renewInstance").with("instanceId", &id).with("expiredOn", "the day after tomorrow"),
        Params::new("renewInstance").with("instanceId", &id),
        Params::new("createInstance").with("aliUid", "10001"),
        Params::new("expiredInstance").with("instanceId", "0"),
        // The signature of aliUid=1, expiredOn=2099…, for parameters that no marketplace would send.
        Params::new("createInstance")
            .with("aliUid", "1&expiredOn=2099-01-01 00:00:00")
            .with("orderBizId", "ob-forged"),
        Params::new("").with("instanceId", &id),
    ];
    for (index, request) in odd.iter().enumerate() {
        for _ in 0..2 {
            let answer = daemon.deliver(request);
            assert_eq!(answer.status, 200);
            assert!(!answer.is_success(), "{request:?}: {answer:?}");
        }
        let held = home.list(&["held", "list"]);
        assert_eq!(held.len(), index + 1, "{request:?}: {held:?}");
        let shown = home.json(&["callbacks", "show", &held[0]["callback"].to_string()]);
        assert_eq!(shown["callback"]["parameters"], json!(as_map(request)), "kept whole");
        assert_eq!(shown["deliveries"], 2, "a repeat is a count");
    }
    assert_eq!(home.hook_lines().len(), 2, "of all this only the create ran");
    daemon.kill();
    drop(home.start());
    assert_eq!(home.list(&["held", "list"]).len(), odd.len());
}

// 8. No start without a key.

#[test]
fn p08_without_a_sound_key_nothing_starts() {
    // The test holds this port: a daemon that binds it would end with another code (69).
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::empty();
    let write = |name: &str, bytes: &[u8]| std::fs::write(home.path(name), bytes).unwrap();
    write("empty", b"");
    write("newline", b"\n");
    write("blank", b"  \t \n");
    write("bytes", b"\xff\xfe\n");
    std::fs::create_dir(home.path("folder")).unwrap();
    let folder = home.path("").display().to_string();
    let file = |name: &str| format!("keys = [{{ file = \"{folder}/{name}\" }}]");
    let cases = [
        (String::new(), "`endpoint[0].keys`"),
        ("keys = []".to_owned(), "`endpoint[0].keys`"),
        (file("empty"), "`endpoint[0].keys[0].file`"),
        (file("newline"), "`endpoint[0].keys[0].file`"),
        (file("blank"), "`endpoint[0].keys[0].file`"),
        (file("bytes"), "`endpoint[0].keys[0].file`"),
        (file("missing"), "`endpoint[0].keys[0].file`"),
        (file("folder"), "`endpoint[0].keys[0].file`"),
        ("keys = [{ env = \"FAKE_UNSET\" }]".to_owned(), "`endpoint[0].keys[0].env`"),
        ("keys = [{ credential = \"isv-key\" }]".to_owned(), "`endpoint[0].keys[0].credential`"),
        ("keys = [{}]".to_owned(), "`endpoint[0].keys[0]`"),
        (
            format!("keys = [{{ file = \"{folder}/isv-key\" }}, {{ file = \"{folder}/empty\" }}]"),
            "`endpoint[0].keys[1].file`",
        ),
        (format!("keys = [{{ file = \"{folder}/isv-key\", env = \"PATH\" }}]"), "`endpoint[0].keys[0]`"),
        (format!("{}\nkeyz = 1", file("isv-key")), "keyz"),
        (format!("keys = [\"{KEY}\"]"), "keys"),
        (format!("key = \"{KEY}\""), "key"),
        (format!("keys = [{{ key = \"{KEY}\" }}]"), "key"),
        (format!("keys = [{{ value = \"{KEY}\" }}]"), "value"),
        (format!("keys = [{{ file = \"{KEY} }}]"), "spid.toml"),
    ];
    for (keys, named) in cases {
        home.configure(&format!(
            "[server]\nlisten = \"{}\"\n[store]\npath = \"{folder}/spid.db\"\n[[endpoint]]\nname = \"a\"\npath = \"/spi\"\ndialect = \"alibaba\"\n{keys}\n[[hook]]\nname = \"h\"\nlog = {{}}\n",
            taken.local_addr().unwrap()
        ));
        let config = home.path("spid.toml");
        for command in ["serve", "check-config"] {
            let ran = home.run(&[command, "--config", config.to_str().unwrap()]);
            assert_eq!(ran.code, 78, "{command} with {keys:?}: {}", ran.stderr);
            assert!(
                ran.stderr.contains(named),
                "{command} with {keys:?} does not name {named}: {}",
                ran.stderr
            );
            assert!(ran.stderr.contains("spid.toml"), "{}", ran.stderr);
            assert_clean("stderr", ran.stderr.as_bytes(), &[KEY]);
            assert_clean("stdout", ran.stdout.as_bytes(), &[KEY]);
        }
        assert!(home.database_files().is_empty(), "{keys:?}: a store was made");
    }
    for flags in [["--key-file", "empty"], ["--key-file", "missing"], ["--key-env", "FAKE_UNSET"]] {
        let query = create("ob-8").signed();
        let ran = home.run(&["verify", flags[0], flags[1], &query]);
        assert_eq!(ran.code, 78, "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(flags[0]), "{}", ran.stderr);
    }
}

// 9. Secrets are never printed.

/// A hook with secrets in all of its output, including its errors.
fn telltale() -> String {
    let answer = format!(
        r#"{{"instance_id":"%s","app":{{"front_end_url":"https://app.example","admin_url":"https://root:{PASSWORD}@app.example/admin","username":"root","password":"{PASSWORD}","license_id":"{PASSWORD}"}},"host":{{"ip":"192.0.2.1","ftp_username":"ftp","ftp_password":"{PASSWORD}","database_info":"{PASSWORD}"}},"secret_info":{{"pin":"{PASSWORD}"}}}}"#
    );
    format!(
        r#"
case "$SPID_ACTION" in
  create) case "$call" in
    *'"order_biz_id":"ob-broken"'*) printf '{{"app":{{"password":"{PASSWORD}"' ;;
    *'"order_biz_id":"ob-unknown"'*) printf '{{"app":{{"pasword":"{PASSWORD}"}}}}' ;;
    *'"order_biz_id":"ob-type"'*) printf '{{"instance_id":["{PASSWORD}"]}}' ;;
    *'"order_biz_id":"ob-fails"'*) printf '{{"secret_info":{{"pin":"{PASSWORD}"}}}}'; exit 1 ;;
    *'"order_biz_id":"ob-refused"'*) printf '{{"password":"{PASSWORD}"}}'; exit 65 ;;
    *) printf '{answer}' "$(fake_id)" ;;
  esac ;;
  sign-on) printf '{{"redirect":"https://app.example/in?ticket={PASSWORD}"}}' ;;
  other) printf '{{"body":{{"password":"{PASSWORD}"}}}}' ;;
  renew) printf '{{"app":{{"password":"{PASSWORD}"}}}}' ;;
  *) printf '{{}}' ;;
esac
"#
    )
}

fn every_view(home: &Home) -> Vec<Vec<String>> {
    let mut views: Vec<Vec<String>> = ["instances", "jobs", "callbacks", "held"]
        .map(|what| vec![what.to_owned(), "list".to_owned()])
        .to_vec();
    let mut show = |what: &str, id: &Value| {
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        views.push(vec![what.to_owned(), "show".to_owned(), id]);
    };
    for row in home.list(&["instances", "list"]) {
        show("instances", if row["id"].is_null() { &row["order_biz_id"] } else { &row["id"] });
    }
    home.list(&["jobs", "list"]).iter().for_each(|row| show("jobs", &row["id"]));
    home.list(&["callbacks", "list"]).iter().for_each(|row| show("callbacks", &row["number"]));
    views
}

#[test]
fn p09_no_secret_leaves_but_in_the_answer_it_is_meant_for() {
    no_secret_leaves("text");
}

#[test]
fn p09_no_secret_leaves_though_the_log_is_json() {
    no_secret_leaves("json");
}

fn no_secret_leaves(log_format: &str) {
    let home = Home::configured(&telltale(), "2s", 16);
    let daemon = home.start_with(&["--log", "trace", "--log-format", log_format]);
    let bought = create("ob-9");
    let answer = daemon.deliver(&bought);
    let id = answer.id();
    let body = answer.json();
    assert_eq!(body["appInfo"]["password"], PASSWORD, "the marketplace must get it");
    let mut tokens = vec![bought.token()];
    let mut deliver = |request: Params| {
        tokens.push(request.token());
        daemon.deliver(&request)
    };
    assert_eq!(deliver(bought.clone()), answer, "and again, while the window is open");
    for name in ["ob-broken", "ob-unknown", "ob-type", "ob-fails", "ob-refused"] {
        let answer = deliver(create(name));
        assert_eq!(answer.id(), "0", "{name}");
        assert_clean("an answer", answer.body.as_bytes(), &[PASSWORD, KEY]);
    }
    assert!(deliver(renew(&id, "2031-01-01 00:00:00")).success());
    assert!(deliver(upgrade(&id, "pro")).success());
    let sign_on = about("verify", &id).with("timeStamp", "2020-01-01 00:00:00");
    assert_eq!(deliver(sign_on).status, 403);
    deliver(about("createIdaas", &id));
    deliver(Params::new("teleportInstance").with("instanceId", &id));
    assert!(deliver(about("expiredInstance", &id)).success());
    deliver(bought.clone().with("orderId", "another"));
    for query in [bought.encoded(), format!("{}&token={}", bought.encoded(), "0".repeat(32))] {
        let answer = daemon.get(&query);
        assert_eq!(answer.status, 403);
        assert_clean("a refusal", answer.body.as_bytes(), &[PASSWORD, KEY]);
    }
    let changed = bought.signed().replace("basic", "pro");
    assert_eq!(daemon.get(&changed).status, 403);
    assert!(deliver(about("releaseInstance", &id)).success());
    assert_eq!(deliver(bought.clone()).json()["appInfo"], Value::Null, "of what is released, only the id");
    deliver(create("ob-kept"));

    for view in every_view(&home) {
        let mut words: Vec<&str> = view.iter().map(String::as_str).collect();
        assert_clean(&format!("{view:?}"), home.look(&words).as_bytes(), &[PASSWORD, KEY]);
        words.push("--json");
        assert_clean(&format!("{view:?} --json"), home.look(&words).as_bytes(), &[PASSWORD, KEY]);
    }
    let secrets: Vec<&str> = [PASSWORD, KEY].into_iter().chain(tokens.iter().map(String::as_str)).collect();
    let while_running = home.database_files();
    let log = daemon.stop();
    assert!(log.contains("DEBUG"), "it was to say all it has");
    assert_clean("stderr", log.as_bytes(), &secrets);
    for (name, bytes) in while_running.iter().chain(&home.database_files()) {
        assert_clean(name, bytes, &secrets);
    }
    let daemon = home.start();
    let kept = daemon.deliver(&create("ob-kept")).json();
    assert_eq!(kept["appInfo"]["password"], PASSWORD, "sealed, and opened again");
}

#[test]
fn p09_sign_and_verify_never_show_the_key() {
    let home = Home::empty();
    let honest = create("ob-9");
    let forged = honest.signed().replace("basic", "pro");
    let tail = |arguments: &[&str]| -> Vec<String> {
        let head = [arguments[0], "--log", "trace", "--key-file", "isv-key"];
        head.iter().chain(&arguments[1..]).map(|word| (*word).to_owned()).collect()
    };
    let signed = honest.signed();
    let encoded = honest.encoded();
    let cases: Vec<(i32, Vec<String>)> = vec![
        (0, tail(&["verify", &signed])),
        (0, tail(&["verify", "--json", &signed])),
        (1, tail(&["verify", &forged])),
        (1, tail(&["verify", "--json", &forged])),
        (1, tail(&["verify", &encoded])),
        (0, tail(&["sign", "createInstance", "orderBizId=ob-9"])),
        (0, tail(&["sign", "--json", "--post", "createInstance", "orderBizId=ob-9"])),
        (0, tail(&["sign", "--dialect", "generic", "create", "order_biz_id=ob-9"])),
    ];
    for (code, arguments) in cases {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = home.run(&words);
        assert_eq!(ran.code, code, "{words:?}: {}", ran.stderr);
        assert_clean("stdout", ran.stdout.as_bytes(), &[KEY]);
        assert_clean("stderr", ran.stderr.as_bytes(), &[KEY]);
        // The error explains the mismatch without the correct digest.
        if code == 1 {
            let right = Params(honest.0.clone()).with("skuId", "pro").token();
            assert_clean("the explanation", ran.stdout.as_bytes(), &[&right]);
        }
    }
}

// 10. Nothing a peer does ends it.

fn assert_still_sells(daemon: &mut Daemon, order: &str) {
    assert!(daemon.is_running());
    let id = daemon.deliver(&create(order)).id();
    assert_ne!(id, "0");
    assert!(daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
}

#[test]
fn p10_nothing_a_peer_sends_ends_it() {
    let home = Home::with_log_hook();
    let mut daemon = home.start();
    let honest = get_text("/spi", &create("ob-half").signed());
    let mut garbage: Vec<Vec<u8>> = vec![
        vec![0; 4096],
        vec![0xff; 70_000],
        b"\r\n\r\n\r\n".to_vec(),
        b"GET".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"POST /spi HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n".to_vec(),
        b"POST /spi HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc".to_vec(),
        b"POST /spi HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(60_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000)).into_bytes(),
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
    ];
    for cut in [1, 10, honest.len() / 2, honest.len() - 1] {
        garbage.push(honest.as_bytes()[..cut].to_vec());
    }
    let mut left_open = Vec::new();
    for bytes in &garbage {
        let mut stream = daemon.connect();
        // The daemon may close before it has read everything.
        let _ = stream.write_all(bytes);
        left_open.push(stream);
        let mut stream = daemon.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    assert_eq!(home.list(&["instances", "list"]), Vec::<Value>::new(), "half a request is no order");
    assert_still_sells(&mut daemon, "ob-10");
    drop(left_open);
    assert_still_sells(&mut daemon, "ob-10b");
}

#[test]
fn p10_nothing_a_verified_request_says_ends_it() {
    let home = Home::with_log_hook();
    // The hook cannot do some of it, and this test does not wait for that.
    home.configure(&home.config("300ms", "log = {}"));
    let mut daemon = home.start();
    let long = "長".repeat(1200);
    let dates = ["9999-12-31 23:59:59", "0000-00-00 00:00:00", "-9999-01-01 00:00:00", "1", &long];
    let names = [long.as_str(), " ", "0", "../../etc/passwd", "'; DROP TABLE job; --", "\u{202e}", "\u{7f}"];
    for action in ["createInstance", "renewInstance", "upgradeInstance", "expiredInstance", "releaseInstance"]
    {
        for name in names {
            let odd = Params::new(action).with("orderBizId", name).with("instanceId", name);
            let odd = odd.with("orderId", name).with("skuId", name);
            assert_eq!(daemon.post(&odd.signed()).status, 200, "{name}");
        }
        for date in dates {
            let odd = Params::new(action).with("orderBizId", "ob-date").with("expiredOn", date);
            let odd = odd.with("trial", date).with("isRefund", date);
            assert_eq!(daemon.post(&odd.signed()).status, 200, "{date}");
        }
    }
    let many = (0..100).fold(create("ob-many"), |it, n| it.with(&format!("item{n}"), &n.to_string()));
    assert_eq!(daemon.deliver(&many).id(), "ob-many");
    assert_still_sells(&mut daemon, "ob-10");
    for row in home.list(&["callbacks", "list"]) {
        home.look(&["callbacks", "show", &row["number"].to_string()]);
    }
}

#[test]
fn p10_a_marketplace_that_hangs_up_cancels_nothing() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let mut daemon = home.start();
    for number in 0..4 {
        let mut stream = daemon.connect();
        let query = create(&format!("ob-{number}")).signed();
        stream.write_all(get_text("/spi", &query).as_bytes()).unwrap();
        if number % 2 == 0 {
            until("its hook has begun", || (home.begun("create").len() == number + 1).then_some(()));
        }
        // The client leaves without waiting for the answer.
        drop(stream);
        until("its hook has begun", || (home.begun("create").len() == number + 1).then_some(()));
    }
    home.open_gate("go");
    home.wait_until_idle();
    for number in 0..4 {
        assert_eq!(home.state(&format!("ob-{number}")), "active");
        assert_ne!(daemon.deliver(&create(&format!("ob-{number}"))).id(), "0");
    }
    assert_eq!(home.begun("create").len(), 4);
    assert_still_sells(&mut daemon, "ob-10");
}

mod in_process {
    //! A hook that panics must be inside the program.

    use spid::hook::{
        CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
    };
    use spid::internals::hooks::runner::{NamedHook, Runner};
    use spid::internals::serve::daemon::{Daemon, DaemonOptions};
    use spid::internals::serve::intake::Endpoint;
    use spid_core::dialect;
    use spid_core::dialect::Options;
    use spid_core::signature::{Key, Keys};
    use spid_hook::Secret;
    use tokio::net::TcpListener;

    use super::*;

    /// Panics on every create except of `honest`, before the first `await` and after it.
    struct Panics;

    impl ProvisioningHook for Panics {
        async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
            match call.instance.order_biz_id.as_deref() {
                Some("honest") => Ok(Provisioned::new()),
                Some("late") => {
                    tokio::task::yield_now().await;
                    panic!("fake panic, after an await")
                }
                _ => panic!("fake panic"),
            }
        }
        async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> {
            panic!("fake panic")
        }
        async fn expire(&self, _: ExpireCall) -> Result<(), HookError> {
            Ok(())
        }
        async fn release(&self, _: ReleaseCall) -> Result<(), HookError> {
            Ok(())
        }
    }

    async fn deliver(daemon: &Daemon, request: Params) -> Answer {
        let (address, query) = (daemon.address(), request.signed());
        tokio::task::spawn_blocking(move || get(address, &query)).await.unwrap().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p10_a_hook_that_panics_ends_nothing() {
        let endpoint = Endpoint {
            name: "alibaba-cn".into(),
            account: "alibaba-cn".into(),
            dialect: dialect::by_name("alibaba").unwrap(),
            keys: Keys::new(vec![Key::new("current", Secret::new(KEY)).unwrap()]).unwrap(),
            options: Options::default(),
        };
        // The hook has one slot. A panic that kept it would block all orders.
        let hook = NamedHook::new("panics", Panics).concurrency(1);
        let runner = Runner::new(vec![hook], Vec::new()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        let mut options = DaemonOptions::new(path, vec![("/spi".to_owned(), endpoint)], runner);
        options.dispatch.permits = 1;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let daemon = Daemon::start(listener, None, options).await.unwrap();
        for order in ["early", "late", "early-2"] {
            assert_eq!(deliver(&daemon, create(order)).await.id(), "0", "{order}");
        }
        assert_eq!(deliver(&daemon, create("honest")).await.id(), "honest");
        assert!(!deliver(&daemon, renew("honest", "2031-01-01 00:00:00")).await.success());
        assert_eq!(deliver(&daemon, create("honest")).await.id(), "honest");
        let stopped = daemon.stop().await;
        assert!(stopped.answered && stopped.closed && stopped.cut == 0, "{stopped:?}");
    }
}

#[test]
fn the_harness_itself_finds_a_secret_in_every_disguise() {
    let hex: String = KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
    for leak in [KEY.to_owned(), hex, encode(KEY)] {
        let found = std::panic::catch_unwind(|| assert_clean("a leak", leak.as_bytes(), &[KEY]));
        assert!(found.is_err(), "{leak}");
    }
    assert_clean("nothing", b"nothing to see", &[KEY, PASSWORD]);
}

// 11. One bad thing stops only itself.

#[test]
fn p11_an_order_that_cannot_be_read_stops_only_itself_and_a_full_log_nothing() {
    let home = Home::impatient(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    for name in ["ob-bad", "ob-good"] {
        assert_eq!(daemon.deliver(&create(name)).id(), "0");
    }
    daemon.kill();
    let db = rusqlite::Connection::open(home.path("spid.db")).unwrap();
    let spoilt =
        "UPDATE callback SET body = '{}' WHERE json_extract(body, '$.subject.order_biz_id') = 'ob-bad'";
    assert_eq!(db.execute(spoilt, []).unwrap(), 1);
    drop(db);
    home.open_gate("go");
    let daemon = home.start();
    daemon.deliver_until_done(&create("ob-good"));
    daemon.deliver_until_done(&create("ob-new"));
    let items = home.list(&["attention"]);
    let named = |item: &Value| item["detail"].as_str().unwrap().contains("callback");
    assert!(items.iter().any(|item| item["reason"] == "held" && named(item)), "{items:#?}");
}

// 12. Identity is explicit.

#[test]
fn p12_a_start_that_would_orphan_instances_says_so_and_does_not_start() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    daemon.deliver_until_done(&create("ob-12"));
    daemon.stop();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let account = text.lines().find(|line| line.starts_with("account = ")).unwrap().to_owned();
    home.configure(&text.replace(&account, "account = \"another\""));
    for command in [["check-config", "--config", "spid.toml"], ["serve", "--config", "spid.toml"]] {
        let ran = home.run(&command);
        assert_eq!(ran.code, 78, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(&account), "the line to write: {}", ran.stderr);
    }
    home.configure(&text);
    assert!(!home.start().deliver(&create("ob-12")).id().is_empty());
}

// 13. Numbers keep their digits.

#[test]
fn p13_an_id_of_many_digits_keeps_them() {
    let hook =
        r#"printf '{"instance_id":2026113000000000000000%02d}' "$(ls | grep -c '^made-')"; : > "made-$$""#;
    let home = Home::with_hook(hook);
    let daemon = home.start();
    let ids: Vec<String> = ["ob-a", "ob-b"].map(|name| daemon.deliver_until_done(&create(name)).id()).into();
    assert_eq!(ids, ["202611300000000000000000", "202611300000000000000001"]);
}

// 14. A paid order that is not provisioned is always listed.

#[test]
fn p14_an_order_that_the_hook_refuses_is_on_the_list_until_somebody_has_seen_to_it() {
    let home = Home::with_hook(r#"printf '{"refuse":"not to this buyer"}'; exit 65"#);
    let daemon = home.start();
    for _ in 0..3 {
        assert_eq!(daemon.deliver(&create("ob-14")).id(), "0");
    }
    let items = home.list(&["attention"]);
    assert_eq!(items.len(), 1, "{items:#?}");
    let item = &items[0];
    assert_eq!((&item["reason"], &item["instance"]), (&json!("refused"), &json!("ob-14")));
    assert_eq!((&item["deliveries"], &item["delivery_limit"]), (&json!(3), &json!(120)));
    assert_eq!((&item["order"], &item["buyer"]), (&json!("order-of-ob-14"), &json!("10001")));
    assert!(item["detail"].as_str().unwrap().contains("not to this buyer"), "{item:#}");
    let number = item["callback"].to_string();
    let db = home.path("spid.db");
    let dismiss = ["attention", "dismiss", &number, "--db", db.to_str().unwrap(), "--why", "refunded"];
    assert_eq!(home.run(&dismiss).code, 0);
    assert_eq!(home.list(&["attention"]), [] as [Value; 0]);
}

/// The payment is acknowledged before the hook runs, so only the seller learns of the refusal.
#[test]
fn p14_a_payment_that_the_hook_refuses_is_on_the_list_too() {
    let home =
        Home::with_hook(r#"case $SPID_ACTION in payment) exit 65;; esac; echo '{"instance_id":"i-1"}'"#);
    let daemon = home.start();
    daemon.deliver_until_done(&create("ob-14"));
    let payment = about("orderPay", "ob-14").with("requestId", "request-1").with("orderBizId", "ob-14");
    assert!(daemon.deliver(&payment).is_success());
    until("the refusal is listed", || (!home.list(&["attention"]).is_empty()).then_some(()));
    let items = home.list(&["attention"]);
    assert_eq!((items.len(), &items[0]["reason"]), (1, &json!("refused")), "{items:#?}");
    assert_eq!(items[0]["action"], json!("payment"));
    let (number, db) = (items[0]["callback"].to_string(), home.path("spid.db"));
    let dismiss = ["attention", "dismiss", &number, "--db", db.to_str().unwrap(), "--why", "written off"];
    assert_eq!(home.run(&dismiss).code, 0);
    assert_eq!(home.list(&["attention"]), [] as [Value; 0]);
}
