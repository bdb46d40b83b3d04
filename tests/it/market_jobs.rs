//! Jobs of the market client: the store's rules on both backends, and a daemon that fetches what a marketplace gave up
//! sending, killed in between.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::time::Duration;

use serde_json::{Value, json};
use spid::internals::lab::market_stand_in::{Books, Failure, MarketStandIn, StoredNotification};
use spid::internals::net::{Request, ServerOptions, Url, serve};
use spid::internals::store::{CallEnd, Filter, JobKind, MarketJob, MarketJobKind, MarketJobs, OwedCall};
use spid_core::lifecycle::schedule::JobState;
use spid_core::signature::ApiKey;
use spid_hook::Secret;
use spid_hook::id::Id;
use spid_hook::time::Clock;
use tokio::net::TcpListener;

use crate::support::admin::{admin_of, ask, with_admin};
use crate::support::bench::{Bench, on_both_backends};
use crate::support::daemon::{Daemon, Home, about, create, until};

const FETCH: MarketJobKind = MarketJobKind::NotificationFetch;
const CONFIRM: MarketJobKind = MarketJobKind::NotificationConfirm;

fn owed(number: u8, kind: MarketJobKind, key: &str) -> OwedCall {
    let (market, about) = key.split_once('/').unwrap();
    let (market, about) = (market.to_owned(), about.to_owned());
    OwedCall { id: Id::from_bytes([number; 16]), kind, market, about, held: None }
}

fn done(again: Duration) -> CallEnd {
    CallEnd::Done { again, note: None }
}

fn failed() -> CallEnd {
    CallEnd::Retry { error: "no answer".to_owned(), after: None }
}

fn jobs(bench: &Bench) -> Vec<MarketJob> {
    bench.store.reader().market_jobs(MarketJobs::AllLive).unwrap()
}

async fn lease(bench: &Bench, kind: MarketJobKind) -> Vec<MarketJob> {
    bench.store.lease_market_jobs("m", kind, 9).await.unwrap()
}

async fn finish(bench: &Bench, job: &MarketJob, end: CallEnd, found: Vec<OwedCall>) -> Option<MarketJob> {
    bench.store.finish_market_job(job, end, found).await.unwrap()
}

on_both_backends! {

async fn a_recurring_job_is_one_row_that_comes_back(bench: &Bench) {
    for round in 0..3 {
        bench.store.configure_market_jobs(vec![owed(round, FETCH, "m/notifications")], true).await.unwrap();
        let [job] = lease(bench, FETCH).await.try_into().unwrap();
        assert_eq!(job.attempts, u32::from(round) + 1);
        assert!(lease(bench, FETCH).await.is_empty(), "it runs already");
        let job = finish(bench, &job, done(Duration::from_secs(60)), Vec::new()).await.unwrap();
        assert_eq!((job.state, job.id), (JobState::Queued, Id::from_bytes([0; 16])));
        bench.advance(59);
        assert!(lease(bench, FETCH).await.is_empty(), "not due yet");
        bench.advance(1);
    }
    assert_eq!(jobs(bench).len(), 1);
    bench.store.configure_market_jobs(Vec::new(), true).await.unwrap();
    assert!(jobs(bench).is_empty(), "no longer configured");
}

async fn a_call_is_owed_once_and_leaves_when_it_is_done(bench: &Bench) {
    bench.store.configure_market_jobs(vec![owed(1, FETCH, "m/notifications")], true).await.unwrap();
    let [fetch] = lease(bench, FETCH).await.try_into().unwrap();
    let found = vec![owed(2, CONFIRM, "m/a"), owed(3, CONFIRM, "m/a"), owed(4, CONFIRM, "m/b")];
    finish(bench, &fetch, done(Duration::ZERO), found).await.unwrap();
    let mut confirms = lease(bench, CONFIRM).await;
    assert_eq!(confirms.iter().map(|job| job.about.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(bench.store.lease_market_jobs("other", CONFIRM, 9).await.unwrap().is_empty());
    // While it is owed it is not owed again, and once it is done it may be.
    let fetch = lease(bench, FETCH).await.pop().unwrap();
    finish(bench, &fetch, done(Duration::ZERO), vec![owed(5, CONFIRM, "m/a")]).await.unwrap();
    assert_eq!(jobs(bench).len(), 3);
    for confirm in confirms.drain(..) {
        let ended = finish(bench, &confirm, done(Duration::ZERO), Vec::new()).await.unwrap();
        assert_eq!(ended.state, JobState::Done);
        assert!(finish(bench, &confirm, failed(), Vec::new()).await.is_none(), "a second end is fenced");
    }
    assert_eq!(jobs(bench).len(), 1);
    let fetch = lease(bench, FETCH).await.pop().unwrap();
    finish(bench, &fetch, done(Duration::ZERO), vec![owed(6, CONFIRM, "m/a")]).await.unwrap();
    assert_eq!(jobs(bench).len(), 2);
}

async fn a_call_that_fails_waits_longer_each_time_and_then_for_a_person(bench: &Bench) {
    bench.store.configure_market_jobs(vec![owed(1, FETCH, "m/notifications")], true).await.unwrap();
    let fetch = lease(bench, FETCH).await.pop().unwrap();
    finish(bench, &fetch, done(Duration::from_secs(1 << 30)), vec![owed(2, CONFIRM, "m/a")]).await.unwrap();
    let mut waits = Vec::new();
    let dead = loop {
        let confirm = lease(bench, CONFIRM).await.pop().unwrap();
        let job = finish(bench, &confirm, failed(), Vec::new()).await.unwrap();
        if job.state == JobState::Dead {
            break job;
        }
        let wait = job.due_at.as_second() - bench.clock.now().as_second();
        waits.push(wait);
        bench.advance(wait);
    };
    assert!(waits.is_sorted() && waits.len() == 8 && waits[0] == 30, "{waits:?}");
    assert_eq!(dead.note.as_deref(), Some("no answer"));
    // A recurring one never stops.
    bench.advance(1 << 30);
    for _ in 0..20 {
        let fetch = lease(bench, FETCH).await.pop().unwrap();
        let job = finish(bench, &fetch, failed(), Vec::new()).await.unwrap();
        assert_eq!(job.state, JobState::Queued);
        bench.advance(12 * 60 * 60);
    }
}

async fn jobs_are_listed_by_kind_state_and_page(bench: &Bench) {
    bench.store.configure_market_jobs(vec![owed(1, FETCH, "m/notifications")], true).await.unwrap();
    let fetch = lease(bench, FETCH).await.pop().unwrap();
    finish(bench, &fetch, done(Duration::from_secs(60)), vec![owed(2, CONFIRM, "m/a"), owed(3, CONFIRM, "m/b")]).await;
    let confirm = lease(bench, CONFIRM).await.remove(0);
    finish(bench, &confirm, CallEnd::Refused { error: "no".to_owned() }, Vec::new()).await.unwrap();
    let listed = |filter: Filter| {
        let jobs = bench.store.reader().every_job(&filter).unwrap();
        jobs.iter().map(|job| (job.id().as_bytes()[0], job.number())).collect::<Vec<_>>()
    };
    let all = Filter { limit: 9, ..Filter::default() };
    let numbers = listed(all.clone());
    let ids = |filter: Filter| listed(filter).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(all.clone()), [3, 2, 1], "the newest first");
    assert_eq!(ids(Filter { kind: Some(JobKind::Market(CONFIRM)), ..all.clone() }), [3, 2]);
    assert_eq!(ids(Filter { kind: Some(JobKind::Hook), ..all.clone() }), [0; 0]);
    assert_eq!(ids(Filter { jobs: vec![JobState::Dead], ..all.clone() }), [2]);
    assert_eq!(ids(Filter { limit: 1, before: Some(numbers[0].1), ..all }), [2]);
    let words = bench.store.reader().job_words().unwrap();
    assert_eq!(words[2], (Id::from_bytes([1; 16]), "notification-fetch", JobState::Queued));
}

async fn a_reload_leaves_running_attempts_alone_and_a_start_does_not(bench: &Bench) {
    let recurring = || vec![owed(1, FETCH, "m/notifications")];
    bench.store.configure_market_jobs(recurring(), true).await.unwrap();
    let running = lease(bench, FETCH).await.pop().unwrap();
    bench.store.configure_market_jobs(recurring(), false).await.unwrap();
    assert!(lease(bench, FETCH).await.is_empty(), "it still runs");
    bench.store.configure_market_jobs(recurring(), true).await.unwrap();
    assert_eq!(lease(bench, FETCH).await.pop().unwrap().attempts, 2);
    assert!(finish(bench, &running, done(Duration::ZERO), Vec::new()).await.is_none());
}

async fn an_attempt_whose_lease_ran_out_is_made_again_and_its_late_end_is_fenced(bench: &Bench) {
    bench.store.configure_market_jobs(vec![owed(1, FETCH, "m/notifications")], true).await.unwrap();
    let first = lease(bench, FETCH).await.pop().unwrap();
    bench.advance(10 * 60 + 1);
    let second = lease(bench, FETCH).await.pop().unwrap();
    assert_eq!((first.id, second.attempts), (second.id, 2));
    assert!(finish(bench, &first, done(Duration::ZERO), vec![owed(2, CONFIRM, "m/a")]).await.is_none());
    assert_eq!(jobs(bench).len(), 1, "nothing of a fenced end is kept");
    assert!(finish(bench, &second, done(Duration::ZERO), Vec::new()).await.is_some());
}

}

// ---- the daemon ---------------------------------------------------------------------------------------

pub(crate) fn payment(number: u32) -> StoredNotification {
    let message = json!({
        "action": "orderPay", "orderId": format!("o-{number}"), "orderBizId": format!("biz-{number}"),
        "aliUid": "1234567890", "productCode": "cmapi00001", "skuId": "yuncode1",
    });
    StoredNotification { id: format!("{number:032x}"), message }
}

pub(crate) fn stand_in(notifications: Vec<StoredNotification>) -> MarketStandIn {
    let key = ApiKey::new("FAKEID", Secret::new("fake-secret"), None).unwrap();
    MarketStandIn::new(vec![key], Clock::System, Books { notifications, ..Books::default() })
}

pub(crate) async fn served(stand_in: &MarketStandIn) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stand_in = stand_in.clone();
    let handler = move |request: Request| stand_in.clone().answer(request);
    tokio::spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
    format!("http://{address}/").parse().unwrap()
}

/// A home with these markets, each a name and the address of its stand-in.
pub(crate) fn home(markets: &[(&str, &Url)]) -> Home {
    // An instance without an id in the answer is named by its `orderBizId`.
    let home = Home::with_hook("printf {}");
    let mut text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    std::fs::write(home.path("api-secret"), "fake-secret").unwrap();
    std::fs::write(home.path("api-id"), "FAKEID").unwrap();
    for (name, url) in markets {
        let folder = home.path("").display().to_string();
        text.push_str(&format!(
            "\n[[market]]\nname = \"{name}\"\napi = \"alibaba-cn\"\nbase_url = \"http://{}/\"\ncalls_per_minute = 60000\n\
             credentials = {{ access_key_id = {{ file = \"{folder}/api-id\" }}, access_key_secret = {{ file = \"{folder}/api-secret\" }} }}\n\
             notifications = {{ endpoint = \"alibaba-cn\", every = \"1s\" }}\n",
            url.authority()
        ));
    }
    home.configure(&text);
    home
}

fn is_empty(stand_in: &MarketStandIn) -> Option<()> {
    stand_in.books().notifications.is_empty().then_some(())
}

/// Payments in the store: the order and the number of deliveries.
fn payments(home: &Home) -> Vec<(String, u64)> {
    let kept = home.list(&["callbacks", "list"]).into_iter().filter(|row| row["action"] == "payment");
    let mut kept: Vec<_> = kept
        .map(|row| (row["order"].as_str().unwrap().to_owned(), row["deliveries"].as_u64().unwrap()))
        .collect();
    kept.sort();
    kept
}

fn hook_ran(home: &Home) -> usize {
    home.begun("payment").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_was_given_up_is_kept_once_confirmed_and_run_once() {
    let stand_in = stand_in((1..=12).map(payment).collect());
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = home(&[("alibaba", &url)]);
        let daemon = home.start();
        until("every notification is confirmed", || is_empty(&stand_in));
        home.wait_until_idle();
        let kept = payments(&home);
        assert_eq!(kept.len(), 12, "{kept:?}");
        assert!(kept.iter().all(|(_, deliveries)| *deliveries == 1), "{kept:?}");
        assert_eq!(hook_ran(&home), 12);
        // Another delivery by the marketplace itself is a repeat.
        let repeat = about("orderPay", "biz-1").with("orderBizId", "biz-1").with("orderId", "o-1");
        let repeat = repeat.with("aliUid", "1234567890").with("productCode", "cmapi00001");
        let answer = daemon.deliver(&repeat.with("skuId", "yuncode1").with("requestId", &payment(1).id));
        assert!(answer.success(), "{}", answer.body);
        assert_eq!(hook_ran(&home), 12);
        daemon.stop();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_loses_no_payment_and_runs_none_twice() {
    let stand_in = stand_in((1..=9).map(payment).collect());
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = home(&[("alibaba", &url)]);
        for lost in ["DescribeFailedNotifications", "ConfirmNotification", "ConfirmNotification"] {
            // The call is carried out and its answer never comes: the daemon dies while it waits.
            stand_in.fail(Some(lost), Failure::LostAnswer);
            let asked = stand_in.calls().iter().filter(|call| call.action == lost).count();
            let daemon = home.start();
            until("the call has come", || {
                (stand_in.calls().iter().filter(|call| call.action == lost).count() > asked).then_some(())
            });
            daemon.kill();
        }
        let daemon = home.start();
        until("every notification is confirmed", || is_empty(&stand_in));
        home.wait_until_idle();
        let kept: Vec<String> = payments(&home).into_iter().map(|(order, _)| order).collect();
        assert_eq!(kept, (1..=9).map(|number| format!("o-{number}")).collect::<Vec<_>>());
        let mut keys: Vec<String> = home.begun("payment").into_iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 9, "each payment has one idempotency key");
        daemon.stop();
    });
}

/// Most payments are for a product that makes no instance, so the order alone must show that one was kept before.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_of_the_same_order_under_another_request_id_is_held() {
    for has_instance in [true, false] {
        let stand_in = stand_in(vec![payment(1)]);
        let url = served(&stand_in).await;
        tokio::task::block_in_place(|| {
            let home = home(&[("alibaba", &url)]);
            // Before the market is asked, the payment comes under another id.
            let with_market = std::fs::read_to_string(home.path("spid.toml")).unwrap();
            home.configure(with_market.split("[[market]]").next().unwrap());
            let daemon = home.start();
            if has_instance {
                assert_ne!(daemon.deliver(&create("biz-1")).id(), "0");
            }
            let paid = about("orderPay", "biz-1").with("orderBizId", "biz-1").with("orderId", "o-1");
            let paid = paid.with("aliUid", "1234567890").with("productCode", "cmapi00001");
            assert!(
                daemon.deliver(&paid.with("skuId", "yuncode1").with("requestId", "another-id")).success()
            );
            home.wait_until_idle();
            home.configure(&with_market);
            daemon.reload();
            until("the payment is confirmed", || is_empty(&stand_in));
            let held: Vec<Value> = home.list(&["held", "list"]);
            assert_eq!(held.len(), 1, "{held:?}");
            assert!(held[0]["reason"].as_str().unwrap().contains("another request id"), "{held:?}");
            assert_eq!(hook_ran(&home), 1);
            daemon.stop();
        });
    }
}

/// The vendor does not say if messages of other kinds are on this list. They stay there, and hide no payment behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_kind_waits_for_a_person_and_hides_no_payment() {
    let other = |number: u32| StoredNotification {
        id: format!("{number:032}"),
        message: json!({"action": "createInstance", "orderBizId": format!("x-{number}")}),
    };
    let mut notifications: Vec<StoredNotification> = (900..925).map(other).collect();
    notifications.push(payment(1));
    let stand_in = stand_in(notifications);
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = home(&[("alibaba", &url)]);
        let daemon = home.start();
        until("the payment is confirmed", || (stand_in.books().notifications.len() == 25).then_some(()));
        assert_eq!(payments(&home).len(), 1);
        assert_eq!(home.list(&["callbacks", "list"]).len(), 1, "nothing else is kept");
        daemon.wait_for_log("a failed notification is left at the marketplace");
        let waiting: Vec<Value> =
            home.list(&["attention"]).into_iter().filter(|item| item["reason"] == "market-call").collect();
        assert_eq!(waiting.len(), 25);
        assert!(waiting[0]["detail"].as_str().unwrap().contains("createInstance"), "{:?}", waiting[0]);
        // Once a person has done it, a retry confirms it.
        let job = waiting[0]["job"].as_str().unwrap();
        let ran = home.run(&["jobs", "retry", job, "--why", "done by hand", "--config", "spid.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        until("it is confirmed", || (stand_in.books().notifications.len() == 24).then_some(()));
        daemon.stop();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_market_that_hangs_takes_nothing_from_another_nor_from_an_order() {
    let (hangs, works) = (stand_in(vec![payment(1)]), stand_in((2..=25).map(payment).collect()));
    for _ in 0..100 {
        hangs.fail(None, Failure::Hang);
    }
    let (slow, quick) = (served(&hangs).await, served(&works).await);
    tokio::task::block_in_place(|| {
        let home = home(&[("hangs", &slow), ("works", &quick)]);
        let daemon: Daemon = home.start();
        assert_ne!(daemon.deliver(&create("biz-ordered")).id(), "0");
        until("the other market's are confirmed", || is_empty(&works));
        assert!(!hangs.calls().is_empty());
        assert_eq!(hangs.books().notifications.len(), 1);
        daemon.stop();
    });
}

/// Runs an operation. Returns its exit code and its output.
fn operate(home: &Home, arguments: &[&str]) -> (i32, String) {
    let ran = home.run(&[arguments, &["--why", "by hand", "--who", "ops", "--config", "spid.toml"]].concat());
    (ran.code, format!("{}{}", ran.stdout, ran.stderr))
}

/// The only job with this state and kind.
fn only(home: &Home, state: &str, kind: &str) -> Value {
    until("there is one job", || {
        let mut found = home.list(&["jobs", "list", "--state", state, "--kind", kind]);
        if found.len() == 1 { found.pop() } else { None }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_and_retries_a_call_that_was_refused() {
    let stand_in = stand_in(vec![payment(1)]);
    stand_in.fail(Some("ConfirmNotification"), Failure::Code(400, "Auth.SubAccount.Error"));
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = home(&[("alibaba", &url)]);
        with_admin(&home, "");
        let daemon = home.start();
        let admin = admin_of(&daemon);
        let dead = only(&home, "dead", "notification-confirm");
        home.wait_until_idle();
        assert_eq!(
            (&dead["market"], &dead["about"], &dead["attempts"]),
            (&json!("alibaba"), &json!(payment(1).id), &json!(1))
        );
        assert!(
            dead.get("number").is_none() && dead["note"].as_str().unwrap().contains("Auth.SubAccount.Error")
        );
        let id = dead["id"].as_str().unwrap();
        // Every job has a kind, in the text, in JSON and at the admin listener.
        let text = home.look(&["jobs", "list"]);
        assert!(text.lines().next().unwrap().contains("KIND"), "{text}");
        let target = format!("market alibaba: {}", payment(1).id);
        assert!(text.contains(&target) && text.contains("market alibaba: notifications"), "{text}");
        let mut kinds: Vec<Value> =
            home.list(&["jobs", "list"]).iter().map(|job| job["kind"].clone()).collect();
        kinds.sort_by_key(Value::to_string);
        assert_eq!(kinds, ["hook", "notification-confirm", "notification-fetch"]);
        let served = |path: &str| ask(admin, &format!("/v1/jobs{path}")).json();
        assert_eq!(served("?state=dead&kind=notification-confirm")["jobs"], json!([dead]));
        assert_eq!(served("?kind=hook")["jobs"], json!(home.list(&["jobs", "list", "--kind", "hook"])));
        assert_eq!(served("?limit=1")["jobs"].as_array().unwrap().len(), 1);
        assert_eq!(ask(admin, "/v1/jobs?kind=other").status, 400);
        assert_eq!(served(&format!("/{id}")), dead);
        assert_eq!(home.json(&["jobs", "show", &id[..30]]), dead, "the beginning of an id is enough");
        // No answer completes it, and a retry makes the call.
        let (code, said) = operate(&home, &["jobs", "complete", id]);
        assert!(code == 65 && said.contains("takes no answer"), "{said}");
        let bulk = ["jobs", "retry", "--state", "dead", "--kind", "notification-confirm"];
        assert_eq!(operate(&home, &bulk).0, 64, "only listed");
        let (code, said) = operate(&home, &[&bulk[..], &["--yes"]].concat());
        assert!(code == 0 && said.contains(&format!("job {id} is due now")), "{said}");
        until("the notification is confirmed", || is_empty(&stand_in));
        until("the job is done", || (home.json(&["jobs", "show", id])["state"] == "done").then_some(()));
        assert_eq!(operate(&home, &["jobs", "retry", id]).0, 65);
        let acts = home.list(&["audit"]);
        assert_eq!((&acts[0]["act"], &acts[0]["target"]), (&json!("retry"), &json!(format!("job {id}"))));
        for (result, count) in [("done", 1), ("refused", 1), ("retry", 0)] {
            let row = format!(
                "spid_market_calls_total{{kind=\"notification-confirm\",result=\"{result}\"}} {count}\n"
            );
            let metrics = ask(admin, "/metrics").body;
            assert!(metrics.contains(&row), "{row}{metrics}");
        }
        daemon.stop();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_is_not_made_and_a_recurring_or_running_one_is_not_dropped() {
    let stand_in = stand_in(vec![payment(1)]);
    stand_in.fail(Some("ConfirmNotification"), Failure::Code(400, "Auth.SubAccount.Error"));
    let url = served(&stand_in).await;
    tokio::task::block_in_place(|| {
        let home = home(&[("alibaba", &url)]);
        let daemon = home.start();
        let dead = only(&home, "dead", "notification-confirm");
        let fetch = home.list(&["jobs", "list", "--kind", "notification-fetch"]).remove(0);
        let fetch = fetch["id"].as_str().unwrap();
        stand_in.fail(Some("DescribeFailedNotifications"), Failure::Hang);
        only(&home, "running", "notification-fetch");
        let (code, said) = operate(&home, &["jobs", "retry", fetch]);
        assert!(code == 65 && said.contains("is running now"), "{said}");
        daemon.stop();
        let (code, said) = operate(&home, &["jobs", "drop", fetch]);
        assert!(code == 65 && said.contains("remove it from the configuration"), "{said}");
        // A choice by state leaves the recurring one out.
        let (code, said) = operate(&home, &["jobs", "drop", "--state", "queued", "--yes"]);
        assert!(code == 0 && said.contains("0 of 0 jobs dropped"), "{said}");
        let id = dead["id"].as_str().unwrap();
        let (code, said) = operate(&home, &["jobs", "drop", id, "--json"]);
        let report: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (code, &report[0]["act"], &report[0]["changed"]),
            (0, &json!("drop"), &json!(true)),
            "{said}"
        );
        let dropped = home.json(&["jobs", "show", id]);
        assert_eq!(
            (&dropped["state"], &dropped["note"]),
            (&json!("dropped"), &json!("dropped by ops: by hand"))
        );
        assert!(!dropped["ended_at"].is_null());
        assert_eq!(operate(&home, &["jobs", "drop", id]).0, 65);
        // The marketplace still lists the notification, so the next fetch owes another confirmation.
        let daemon = home.start();
        until("the notification is confirmed", || is_empty(&stand_in));
        assert_eq!(hook_ran(&home), 1);
        daemon.stop();
    });
}
