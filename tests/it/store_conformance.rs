//! One test suite for every store: SQLite and the model pass the same tests. Tests that only a file needs are at the
//! end.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::support::bench::*;
use spid::internals::observe::limits;
use spid::internals::store::{
    Acceptance, AttemptEnd, AuditNote, Filter, Finished, Reader, Reply, Retrying, Schedules, Store,
    StoreError, StoreOptions,
};
use spid_core::lifecycle::Policy;
use spid_core::lifecycle::schedule;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::Secret;
use spid_hook::callback::{Action, Answer, Callback, Expiry, Field, InstanceRef, Outcome};
use spid_hook::instance::State;
use spid_hook::time::Clock;

const CANARY: &str = "fake-password-canary";

fn with_password() -> AttemptEnd {
    let mut answer = Answer { instance_id: Some("i-1".into()), ..Answer::default() };
    answer.app.insert("admin_url".into(), Field::Plain("https://app.example".into()));
    answer.app.insert("password".into(), Field::Secret(Secret::new(CANARY)));
    AttemptEnd::Done(answer)
}

fn password(outcome: &Outcome) -> Option<String> {
    let Outcome::Applied { answer, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(answer.app["admin_url"].expose(), "https://app.example");
    answer.app.get("password").map(|field| field.expose().to_owned())
}

on_both_backends! {

async fn fifty_accepts_of_one_create_are_one_instance(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let mut tasks = tokio::task::JoinSet::new();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(32));
    for _ in 0..49 {
        let (store, acceptance, gate) = (bench.store.clone(), bench.acceptance(&create("b")), gate.clone());
        tasks.spawn(async move {
            let _place = gate.acquire().await.unwrap();
            store.accept(acceptance).await.unwrap()
        });
    }
    let receipts = tasks.join_all().await;
    assert!(receipts.iter().all(|receipt| matches!(receipt.reply, Reply::Wait(_))));
    bench.run_due().await;
    for receipt in receipts {
        assert_eq!(told_id(&heard(waiter(receipt)).await), Some("b"));
    }
    bench.store.flush_counts().await.unwrap();
    let rows = bench.callbacks();
    assert_eq!((bench.instances().len(), bench.jobs().len(), rows.len()), (1, 1, 1));
    assert_eq!(rows[0].deliveries, 50);
}

async fn concurrent_first_deliveries_are_one_instance(bench: &Bench) {
    let accept = || bench.store.accept(bench.acceptance(&create("b")));
    let (a, b, c, d) = tokio::join!(accept(), accept(), accept(), accept());
    for receipt in [a, b, c, d] {
        waiter(receipt.unwrap());
    }
    let rows = bench.callbacks();
    assert_eq!((bench.instances().len(), bench.jobs().len(), rows.len()), (1, 1, 1));
    assert_eq!(rows[0].deliveries, 4);
}

async fn a_redelivery_of_something_told_is_counted_when_flushed(bench: &Bench) {
    bench.done(&create("b")).await;
    for _ in 0..5 {
        bench.advance(1);
        assert_eq!(told_id(&bench.deliver(&create("b")).await), Some("b"));
    }
    assert_eq!(bench.callbacks()[0].deliveries, 1);
    bench.store.flush_counts().await.unwrap();
    let row = &bench.callbacks()[0];
    assert_eq!((row.deliveries, row.last_received_at), (6, bench.clock.now()));
    bench.store.flush_counts().await.unwrap();
    assert_eq!(bench.callbacks()[0].deliveries, 6);
}

async fn a_dispatcher_gets_jobs_born_leased_while_it_has_places(bench: &Bench) {
    let mut ready = bench.store.attach(1).unwrap();
    assert!(bench.store.attach(1).is_none(), "one dispatcher");
    let buyer = waiter(bench.accept(&create("a")).await);
    let first = ready.recv().await.unwrap();
    assert_eq!((first.taken.job.state, first.taken.job.attempts), (schedule::JobState::Running, 1));
    assert!(first.taken.instance.as_ref().is_some_and(|instance| instance.began));
    waiter(bench.accept(&create("b")).await);
    assert!(ready.try_recv().is_err(), "no place");
    assert_eq!(bench.take_one().await.job.action, Action::Create);
    assert_eq!(state_of(&bench.finish_done(&first.taken).await), schedule::JobState::Done);
    assert!(heard(buyer).await.is_success());
    drop(first);
    waiter(bench.accept(&create("c")).await);
    let third = ready.recv().await.unwrap();
    waiter(bench.accept(&renew("c", "r", day(730))).await);
    assert!(ready.try_recv().is_err(), "its lane is busy");
    bench.store.permits().close();
    drop(third);
    waiter(bench.accept(&create("d")).await);
    assert!(ready.try_recv().is_err(), "the dispatcher stops");
}

async fn work_is_heard_though_nobody_listened_when_it_came(bench: &Bench) {
    let _ready = bench.store.attach(0);
    bench.deliver(&create("b")).await;
    bench.store.work().await;
    assert_eq!(bench.take(9).await.len(), 1);
}

async fn an_old_attempt_is_fenced_off(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let old = bench.take_one().await;
    bench.advance(31);
    let new = bench.take_one().await;
    assert_eq!((new.job.number, new.job.id, new.job.attempts), (old.job.number, old.job.id, 2));
    for ending in [refused(), retry(), AttemptEnd::GivenBack, done_as("b")] {
        assert_eq!(bench.finish(&old, ending).await, Finished::Fenced);
    }
    assert_eq!(bench.job(new.job.number).state, schedule::JobState::Running);
    assert_eq!(state_of(&bench.finish_done(&new).await), schedule::JobState::Done);
    assert_eq!(bench.finish_done(&new).await, Finished::Fenced, "once");
}

async fn a_waiter_hears_the_attempt_that_counts(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let old = bench.take_one().await;
    let buyer = waiter(bench.accept(&create("b")).await);
    bench.advance(31);
    let new = bench.take_one().await;
    bench.finish(&old, refused()).await;
    bench.finish(&new, done_as("i-1")).await;
    assert_eq!(told_id(&heard(buyer).await), Some("i-1"));
}

async fn a_lost_lease_comes_back_and_spends_a_step(bench: &Bench) {
    bench.deliver(&create("b")).await;
    for step in 0..4 {
        let taken = bench.take_one().await;
        assert_eq!((taken.job.step, taken.job.attempts), (step, step + 1));
        bench.advance(30);
        assert!(bench.take(9).await.is_empty(), "the lease still holds");
        bench.advance(1);
    }
    assert!(bench.take(9).await.is_empty());
    let job = &bench.jobs()[0];
    assert_eq!(job.state, schedule::JobState::Dead, "a job that kills the daemon ends");
    assert_eq!(bench.store.reader().attempts(job.number).unwrap().len(), 4);
}

async fn what_the_taker_runs_itself_is_not_lost_however_far_the_clock_jumps(bench: &Bench) {
    bench.accept(&create("biz-1")).await;
    let running = bench.take_one().await.job;
    bench.advance(3600);
    let held = vec![(running.number, running.attempts)];
    assert!(bench.store.lease_due(9, held, None).await.unwrap().taken.is_empty());
    assert_eq!(bench.job(running.number).attempts, running.attempts);
    // An earlier attempt of the same job has another lease.
    let older = vec![(running.number, running.attempts - 1)];
    assert_eq!(bench.store.lease_due(9, older, None).await.unwrap().taken.len(), 1);
}

async fn a_prolonged_lease_is_not_lost(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let taken = bench.take_one().await;
    for _ in 0..10 {
        bench.advance(20);
        bench.store.extend(vec![(taken.job.number, 1), (taken.job.number, 7), (99, 1)]).await.unwrap();
        assert!(bench.take(9).await.is_empty());
    }
    assert_eq!(state_of(&bench.finish_done(&taken).await), schedule::JobState::Done);
}

async fn what_is_given_back_is_due_at_once_and_spends_nothing(bench: &Bench) {
    bench.deliver(&create("b")).await;
    for _ in 0..20 {
        let taken = bench.take_one().await;
        assert_eq!((taken.job.step, taken.job.extra), (0, schedule::Extra::No));
        assert_eq!(state_of(&bench.finish(&taken, AttemptEnd::GivenBack).await), schedule::JobState::Queued);
    }
    assert_eq!(bench.jobs().len(), 1);
}

async fn the_schedule_is_walked_and_then_it_is_dead(bench: &Bench) {
    bench.deliver(&create("b")).await;
    for wait in [50, 100, 190] {
        let taken = bench.take_one().await;
        assert_eq!(state_of(&bench.finish(&taken, retry()).await), schedule::JobState::Queued);
        bench.advance(wait - 1);
        let taking = bench.store.take(9).await.unwrap();
        assert!(taking.taken.is_empty());
        assert_eq!(taking.next_due, Some(bench.jobs()[0].due_at));
        bench.advance(wait / 10 + 1);
    }
    let taken = bench.take_one().await;
    assert_eq!(state_of(&bench.finish(&taken, retry()).await), schedule::JobState::Dead);
    bench.advance(1_000_000);
    assert!(bench.take(9).await.is_empty());
    let attempts = bench.store.reader().attempts(taken.job.number).unwrap();
    assert_eq!(attempts.len(), 4);
    assert!(attempts.iter().all(|attempt| attempt.note == "the machine is on fire"));
}

async fn a_hook_may_ask_for_a_longer_wait(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let taken = bench.take_one().await;
    bench.finish(&taken, retry_after(1000)).await;
    bench.advance(999);
    assert!(bench.take(9).await.is_empty());
    bench.advance(101);
    bench.take_one().await;
}

async fn a_redelivery_brings_a_waiting_attempt_forward_under_the_gap(bench: &Bench) {
    bench.deliver(&create("b")).await;
    for _ in 0..2 {
        let taken = bench.take_one().await;
        bench.finish(&taken, retry()).await;
        bench.advance(60);
    }
    assert!(bench.take(9).await.is_empty(), "the second wait is a hundred seconds");
    bench.deliver(&create("b")).await;
    let forward = bench.take_one().await;
    assert_eq!((forward.job.step, forward.job.extra), (2, schedule::Extra::Waiting));
    bench.finish(&forward, retry()).await;
    assert_eq!((bench.jobs()[0].step, bench.jobs()[0].extra), (2, schedule::Extra::No), "no step is spent");
    bench.advance(10);
    bench.deliver(&create("b")).await;
    bench.advance(19);
    assert!(bench.take(9).await.is_empty(), "not sooner than thirty seconds after the last");
    bench.advance(1);
    bench.take_one().await;
}

async fn a_redelivery_of_a_dead_job_is_one_more_attempt(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let dead = bench.run_to_death().await;
    for _ in 0..2 {
        bench.deliver(&create("b")).await;
        bench.deliver(&create("b")).await;
        assert!(bench.take(9).await.is_empty(), "the gap");
        bench.advance(30);
        let more = bench.take_one().await;
        assert_eq!((more.job.number, more.job.id, more.job.extra), (dead.number, dead.id, schedule::Extra::Dead));
        assert_eq!(state_of(&bench.finish(&more, retry()).await), schedule::JobState::Dead);
        bench.advance(1);
        assert!(bench.take(9).await.is_empty());
    }
    bench.deliver(&create("b")).await;
    bench.advance(30);
    let more = bench.take_one().await;
    assert_eq!(state_of(&bench.finish_done(&more).await), schedule::JobState::Done);
}

async fn a_pending_job_waits_for_somebody(bench: &Bench) {
    let buyer = waiter(bench.accept(&create("b")).await);
    let taken = bench.take_one().await;
    let finished = bench.finish(&taken, AttemptEnd::Pending { note: "legal must sign".into() }).await;
    let Finished::Kept { state, note } = finished else { panic!("fenced") };
    assert_eq!((state, note.as_deref()), (schedule::JobState::Pending, Some("legal must sign")));
    assert_eq!(heard(buyer).await, Outcome::NotYet);
    bench.deliver(&renew("b", "r", day(730))).await;
    bench.advance(1_000_000);
    assert_eq!(bench.deliver(&create("b")).await, Outcome::NotYet);
    assert!(bench.take(9).await.is_empty());
}

async fn what_the_hook_refused_is_asked_again_after_the_gap(bench: &Bench) {
    let buyer = waiter(bench.accept(&create("b")).await);
    let taken = bench.take_one().await;
    bench.finish(&taken, refused()).await;
    let no = Outcome::Refused { code: "hook", reason: "not to this buyer".into() };
    assert_eq!(heard(buyer).await, no);
    bench.advance(29);
    assert_eq!(bench.deliver(&create("b")).await, no);
    assert!(bench.take(9).await.is_empty());
    bench.advance(1);
    assert_eq!(told_id(&bench.done(&create("b")).await), Some("b"));
    assert_eq!((bench.instances().len(), bench.jobs().len(), bench.callbacks().len()), (1, 2, 1));
}

async fn who_waits_is_told_and_who_left_is_not(bench: &Bench) {
    let left = waiter(bench.accept(&create("b")).await);
    drop(left);
    bench.run_due().await;
    let unreported = bench.unreported();
    assert_eq!((unreported.len(), unreported[0].action), (1, Action::Create));
    assert_eq!(bench.store.reader().totals().unwrap().unreported, 1);
    assert_eq!(told_id(&bench.deliver(&create("b")).await), Some("b"));
    assert!(bench.unreported().is_empty());
    bench.advance(5);
    let stays = waiter(bench.accept(&renew("b", "r", day(730))).await);
    bench.run_due().await;
    assert!(bench.unreported().is_empty(), "told in the commit that ended it");
    assert_eq!(bench.callbacks()[0].reported_at, Some(bench.clock.now()));
    assert!(heard(stays).await.is_success());
}

async fn a_password_is_repeated_within_its_window(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let taken = bench.take_one().await;
    bench.finish(&taken, with_password()).await;
    bench.advance(1_000_000);
    assert_eq!(password(&bench.deliver(&create("b")).await).as_deref(), Some(CANARY), "the first telling");
    bench.advance(limits::SECRETS_WINDOW_MS / 1000);
    assert_eq!(password(&bench.deliver(&create("b")).await).as_deref(), Some(CANARY));
    bench.advance(1);
    let late = bench.deliver(&create("b")).await;
    assert_eq!((password(&late), told_id(&late)), (None, Some("i-1")));
}

async fn totals_and_filters_agree(bench: &Bench) {
    bench.done(&create("a")).await;
    bench.deliver(&create("b")).await;
    bench.deliver(&renew("unknown", "r", day(1))).await;
    let reader = bench.store.reader();
    let totals = reader.totals().unwrap();
    assert_eq!((totals.instances["active"], totals.instances["pending"], totals.jobs["queued"]), (1, 1, 1));
    let queued = reader.jobs(&Filter { jobs: vec![schedule::JobState::Queued], ..all() }).unwrap();
    assert_eq!((queued.len(), queued[0].instance), (1, Some(bench.instances()[0].number)));
    let page = reader.callbacks(&Filter { before: Some(3), limit: 1, ..Filter::default() }).unwrap();
    assert_eq!(page.iter().map(|row| row.number).collect::<Vec<_>>(), [2]);
    assert_eq!(reader.job(queued[0].id).unwrap().as_ref(), Some(&queued[0]));
    let (row, callback) = reader.callback(queued[0].callback).unwrap().unwrap();
    assert_eq!((row.job, callback), (Some(queued[0].number), create("b")));
    assert!(reader.instances(&Filter { accounts: vec!["other".into()], ..all() }).unwrap().is_empty());
}

async fn what_is_looked_for_is_found(bench: &Bench) {
    bench.done(&create("a_1")).await;
    bench.done(&create("B%2")).await;
    let reader = bench.store.reader();
    let found = |filter: Filter| -> Vec<String> {
        reader.instances(&filter).unwrap().into_iter().filter_map(|row| row.instance.id).collect()
    };
    let search = |text: &str| found(Filter { search: Some(text.into()), ..all() });
    assert_eq!((search("A_"), search("%"), search("\\")), (vec!["a_1".into()], vec!["B%2".into()], vec![]));
    assert_eq!(search("PRODUCT-"), ["B%2", "a_1"]);
    let end = day(365);
    let expires = |from, to| found(Filter { expires: Some((from, to)), ..all() });
    assert_eq!(expires(end, day(366)), ["B%2", "a_1"]);
    assert!(expires(day(364), end).is_empty() && expires(day(366), day(999)).is_empty());
    let number = end.as_second().div_euclid(24 * 60 * 60);
    assert_eq!(reader.expiries(number, number + 1).unwrap(), [(number, 2)]);
    bench.done(&release("a_1")).await;
    assert_eq!(reader.expiries(number - 9, number + 9).unwrap(), [(number, 1)], "what is released has no term");
    assert_eq!(expires(end, day(366)), ["B%2"]);
    assert!(reader.expiries(number + 1, number + 9).unwrap().is_empty());
    // The marketplace's own id of an instance is a name that no column of the instance holds.
    bench.done(&Callback { marketplace_instance_id: Some("Market-7".into()), ..create("c") }).await;
    let named = |text: &str| reader.instances(&Filter { search: Some(text.into()), ..all() }).unwrap();
    for text in ["market-7", "KET-"] {
        let [row] = named(text).try_into().unwrap();
        assert_eq!(row.instance.order_biz_id.as_deref(), Some("c"), "{text}");
    }
    assert!(search("market_7").is_empty());
}

async fn totals_tell_how_long_orders_wait_and_how_many_tries_are_left(bench: &Bench) {
    let totals = || bench.store.reader().totals().unwrap();
    assert_eq!(totals(), spid::internals::store::Totals::default());
    let began = bench.clock.now();
    for _ in 0..30 {
        bench.deliver(&create("a")).await;
    }
    bench.advance(60);
    bench.deliver(&create("b")).await;
    assert_eq!((totals().oldest_job, totals().next_due), (Some(began), Some(began)));
    assert_eq!((totals().tries, totals().deliveries_used_ratio), (30, 0.25));
    // A refused callback has its answer for every repeat.
    let taken = bench.take(9).await;
    assert_eq!((taken.len(), totals().oldest_job, totals().next_due), (2, Some(began), None), "they run");
    bench.finish(&taken[0], refused()).await;
    assert_eq!((totals().tries, totals().oldest_job), (1, Some(bench.clock.now())));
    bench.finish_done(&taken[1]).await;
    assert_eq!((totals().oldest_job, totals().next_due), (None, None));
    bench.deliver(&create("b")).await;
    assert_eq!((totals().tries, totals().unreported), (0, 0), "told");
}

}

fn path(bench: &Bench) -> std::path::PathBuf {
    bench.folder.as_ref().unwrap().path().join("spid.db")
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

async fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, StoreOptions::default(), spid_hook::time::Clock::manual(start()))
        .await
        .map(|(store, _)| store)
}

#[tokio::test]
async fn no_password_lies_in_any_file() {
    let bench = Bench::sqlite().await;
    bench.deliver(&create("b")).await;
    let taken = bench.take_one().await;
    bench.finish(&taken, with_password()).await;
    bench.deliver(&create("b")).await;
    let names: Vec<_> = files(bench.folder.as_ref().unwrap().path());
    assert!(names.iter().any(|name| name.to_string_lossy().ends_with("-wal")), "{names:?}");
    no_canary(bench.folder.as_ref().unwrap().path());
    let (folder, _) = bench.stop().await;
    no_canary(folder.unwrap().path());
}

fn no_canary(folder: &Path) {
    let files = files(folder);
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
        assert!(!found, "{}", file.display());
    }
}

#[tokio::test]
async fn every_file_is_the_owners_alone() {
    let bench = Bench::sqlite().await;
    bench.deliver(&create("b")).await;
    for file in files(bench.folder.as_ref().unwrap().path()) {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn losing_the_key_loses_the_password_and_no_order() {
    let bench = Bench::sqlite().await;
    bench.deliver(&create("b")).await;
    let taken = bench.take_one().await;
    bench.finish(&taken, with_password()).await;
    let bench = bench.restart().await;
    assert_eq!(password(&bench.deliver(&create("b")).await).as_deref(), Some(CANARY));
    let (folder, clock) = bench.stop().await;
    let path = folder.as_ref().unwrap().path().join("spid.db");
    std::fs::remove_file(path.with_extension("db.key")).unwrap();
    let (store, _closed) = Store::open(&path, StoreOptions::default(), clock).await.unwrap();
    let bench = Bench::sqlite().await;
    let again = answer_now(store.accept(bench.acceptance(&create("b"))).await.unwrap());
    assert_eq!((password(&again), told_id(&again)), (None, Some("i-1")));
}

#[tokio::test]
async fn a_restart_keeps_everything_and_brings_running_jobs_back() {
    let bench = Bench::sqlite().await;
    bench.done(&create("a")).await;
    bench.deliver(&create("b")).await;
    bench.deliver(&renew("a", "r", day(730))).await;
    bench.deliver(&payment("a", "q")).await;
    let running = bench.take(1).await.remove(0);
    let before = (bench.instances(), bench.callbacks());
    let bench = bench.restart().await;
    assert_eq!((bench.instances(), bench.callbacks()), before);
    let job = bench.job(running.job.number);
    assert_eq!(
        (job.state, job.attempts, job.step, job.id),
        (schedule::JobState::Queued, 1, 1, running.job.id)
    );
    assert_eq!(bench.finish_done(&running).await, Finished::Fenced, "the dead daemon's hook comes too late");
    bench.run_due().await;
    assert!(bench.jobs().iter().all(|job| job.state == schedule::JobState::Done));
    assert_eq!(told_id(&bench.deliver(&create("b")).await), Some("b"));
}

#[tokio::test]
async fn a_second_daemon_is_refused_by_every_name_of_the_file() {
    let bench = Bench::sqlite().await;
    let path = path(&bench);
    assert_eq!(open(&path).await.err(), Some(StoreError::InUse(path.clone())));
    let link = path.with_file_name("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(open(&link).await.err(), Some(StoreError::InUse(link)));
    bench.deliver(&create("b")).await;
}

#[tokio::test]
async fn a_lock_that_goes_in_a_moment_is_waited_for() {
    let (folder, _) = Bench::sqlite().await.stop().await;
    let folder = folder.unwrap();
    let path = folder.path().join("spid.db");
    let lock = std::fs::File::open(path.with_extension("db.lock")).unwrap();
    lock.try_lock().unwrap();
    let opening = tokio::spawn({
        let path = path.clone();
        async move { open(&path).await }
    });
    tokio::task::yield_now().await;
    assert!(!opening.is_finished(), "it did not wait");
    drop(lock);
    assert!(opening.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let (folder, _) = Bench::sqlite().await.stop().await;
    let folder = folder.unwrap();
    let path = folder.path().join("spid.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(open(&path).await.err(), Some(StoreError::Newer(path.clone(), 99)));
    assert_eq!(Reader::open(&path).err(), Some(StoreError::Newer(path.clone(), 99)));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_database_of_somebody_else_is_refused_and_left_alone() {
    for version in [0, 1, 99] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theirs.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE instance (number INTEGER PRIMARY KEY)").unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        assert_eq!(open(&path).await.err(), Some(StoreError::NotOurs(path.clone())), "version {version}");
        assert_eq!(Reader::open(&path).err(), Some(StoreError::NotOurs(path.clone())));
        assert_eq!(std::fs::read(&path).unwrap(), before, "version {version}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "dear diary, ".repeat(200)).unwrap();
    assert!(matches!(open(&path).await.err(), Some(StoreError::NotADatabase(..))));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("dear diary"));
    assert_eq!(
        Reader::open(&folder.path().join("none.db")).err(),
        Some(StoreError::NotThere(folder.path().join("none.db")))
    );
}

#[tokio::test]
async fn a_reader_sees_what_is_committed_while_the_daemon_runs() {
    let bench = Bench::sqlite().await;
    let reader = Reader::open(&path(&bench)).unwrap();
    assert!(reader.instances(&all()).unwrap().is_empty());
    bench.done(&create("b")).await;
    assert_eq!(reader.instances(&all()).unwrap(), bench.instances());
    assert_eq!(reader.jobs(&all()).unwrap(), bench.jobs());
}

/// A database of version 1 of the schema: its SQL and rows.
fn of_version_1() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spid.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(include_str!("../store_versions/1.sql")).unwrap();
    (folder, path)
}

/// All columns of all tables, in order.
fn columns(path: &std::path::Path) -> Vec<(String, String)> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut columns = connection
        .prepare(
            "SELECT tables.name, columns.name FROM sqlite_schema AS tables
             JOIN pragma_table_info(tables.name) AS columns
             WHERE tables.type = 'table' AND tables.name <> 'sqlite_sequence' ORDER BY 1, columns.cid",
        )
        .unwrap();
    let found = columns.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    found.map(Result::unwrap).collect()
}

/// Values of these columns, by table.
fn values(path: &std::path::Path, columns: &[(String, String)]) -> Vec<Vec<rusqlite::types::Value>> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let read = |(table, column): &(String, String)| {
        let mut statement = connection.prepare(&format!("SELECT {column} FROM {table} ORDER BY 1")).unwrap();
        let cells = statement.query_map([], |row| row.get(0)).unwrap();
        cells.map(Result::unwrap).collect::<Vec<rusqlite::types::Value>>()
    };
    columns.iter().map(read).collect()
}

#[test]
fn the_first_version_of_the_schema_is_history() {
    assert!(include_str!("../store_versions/1.sql").starts_with(include_str!("../../src/store/schema.sql")));
}

/// Before the new version opens it, there is a copy, and the original is unchanged.
#[test]
fn a_database_of_version_1_can_be_copied_before_it_is_brought_up_to_date() {
    let (folder, path) = of_version_1();
    let copy = folder.path().join("copy.db");
    let (old, before) = (columns(&path), values(&path, &columns(&path)));
    spid::internals::store::backup(&path, &copy).unwrap();
    for database in [&path, &copy] {
        assert_eq!((columns(database), values(database, &old)), (old.clone(), before.clone()));
    }
    assert_eq!(Reader::open(&copy).err(), Some(StoreError::Older(copy.clone(), 1)));
    let twice = spid::internals::store::backup(&path, &copy).unwrap_err();
    assert!(matches!(twice, StoreError::File(..)), "{twice}");
    let nothing = folder.path().join("nothing.db");
    assert_eq!(spid::internals::store::backup(&nothing, &copy).err(), Some(StoreError::NotThere(nothing)));
}

#[tokio::test]
async fn a_database_of_version_1_is_brought_up_to_date_with_all_its_rows() {
    let (_folder, path) = of_version_1();
    let old = columns(&path);
    let before = values(&path, &old);
    assert!(before.iter().map(Vec::len).sum::<usize>() > 100, "there is something to keep");
    assert_eq!(
        Reader::open(&path).err(),
        Some(StoreError::Older(path.clone(), 1)),
        "looking changes nothing"
    );
    assert_eq!(columns(&path), old);

    let (store, closed) = Store::open(&path, StoreOptions::default(), Clock::manual(start())).await.unwrap();
    let shown = store.reader().instances_named("biz-1").unwrap().remove(0).instance;
    assert_eq!(
        (shown.id.as_deref(), shown.state, shown.sku.as_deref()),
        (Some("tenant-1"), State::Active, Some("pro"))
    );
    assert_eq!((shown.claimed_at, shown.tenant), (None, None));
    let repeat = Callback {
        subject: InstanceRef { instance_id: None, order_biz_id: Some("biz-1".into()) },
        order_id: Some("order-1".into()),
        buyer: Some("10001".into()),
        sku: Some("basic".into()),
        items: [("seats".into(), "5".into())].into(),
        trial: Some(false),
        expires_on: Some(Expiry {
            raw: "2030-01-01 00:00:00".into(),
            at: Some("2029-12-31T16:00:00Z".parse().unwrap()),
        }),
        ..Callback::new(Action::Create, "createInstance")
    };
    let acceptance = Acceptance {
        account: "alibaba-cn".into(),
        endpoint: "alibaba-cn".into(),
        key_label: "current".into(),
        delivery_limit: Some(120),
        callback: Arc::new(repeat),
        received_at: start(),
        policy: Policy::default(),
        fetched: false,
        approved: false,
    };
    let Reply::Now(Outcome::Applied { instance_id, .. }) = store.accept(acceptance).await.unwrap().reply
    else {
        panic!("what was told is not known any more")
    };
    assert_eq!(instance_id.as_deref(), Some("tenant-1"));
    drop(store);
    closed.wait().await;

    assert_eq!(values(&path, &old), before, "every row is as it was");
    let (folder, _) = Bench::sqlite().await.stop().await;
    assert_eq!(columns(&path), columns(&folder.unwrap().path().join("spid.db")), "as a new one");
    assert!(Reader::open(&path).is_ok());
}

#[tokio::test]
async fn a_backup_of_version_1_is_restored_into_a_database_of_today() {
    let (_folder, backup) = of_version_1();
    let before = std::fs::read(&backup).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("spid.db");
    let act = AuditNote { who: "a test".into(), why: "the disk died".into() };
    let restored = spid::internals::store::restore(
        &backup,
        &path,
        &StoreOptions::default(),
        Clock::manual(start()),
        &act,
    );
    assert_eq!(restored.unwrap().held, 2);
    assert_eq!(std::fs::read(&backup).unwrap(), before, "the backup stays as it was made");
    let held = Reader::open(&path).unwrap().jobs(&all()).unwrap();
    assert_eq!(held.iter().filter(|job| job.state == schedule::JobState::Held).count(), 2);
    assert!(open(&path).await.is_ok());
}

/// Products whose hooks have their own retry list: one wait, and five.
fn lists() -> Schedules {
    let waits = |product: &str| match product {
        "short" => Some(Schedule::from_millis(vec![50_000])),
        "long" => Some(Schedule::from_millis(vec![10_000; 5])),
        _ => None,
    };
    Schedules {
        usual: steady_schedule(),
        chosen: Some(Arc::new(move |job: &Retrying<'_>| {
            job.instance.and_then(|instance| instance.product.as_deref()).and_then(waits)
        })),
    }
}

#[tokio::test]
async fn a_job_follows_the_retry_list_of_its_own_hook_also_when_its_attempts_are_lost() {
    let retry = || AttemptEnd::Retry { error: "no".into(), after: None };
    for (product, failures) in [("short", 2), ("usual", 4), ("long", 6)] {
        for lost in [false, true] {
            let clock = Clock::manual(start());
            let options = StoreOptions { schedules: lists(), ..StoreOptions::default() };
            let (store, _closed) = crate::support::memory_store::start(options, clock.clone()).await.unwrap();
            let acceptance = Acceptance {
                account: ACCOUNT.into(),
                endpoint: "test".into(),
                key_label: "current".into(),
                delivery_limit: None,
                callback: Arc::new(Callback { product: Some(product.into()), ..create("b") }),
                received_at: clock.now(),
                policy: Policy::default(),
                fetched: false,
                approved: false,
            };
            drop(store.accept(acceptance).await.unwrap());
            let mut tried = 0;
            while let Some(taken) = store.take(1).await.unwrap().taken.pop() {
                tried += 1;
                if !lost {
                    store.finish(&taken, retry()).await.unwrap();
                }
                clock.advance(jiff::SignedDuration::from_mins(10));
            }
            let job = store.reader().jobs(&all()).unwrap().remove(0);
            assert_eq!((job.state, tried), (schedule::JobState::Dead, failures), "{product}, lost: {lost}");
        }
    }
}

/// A copy of the file of a stopped daemon has everything; a remaining log would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_closed_leaves_no_log_behind() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db");
        let clock = Clock::manual(start());
        let (store, closed) = Store::open(&path, StoreOptions::default(), clock).await.unwrap();
        // Used readers are kept for the next query.
        let reads = (0..4).map(|_| {
            let store = store.clone();
            tokio::task::spawn_blocking(move || store.reader().totals().unwrap())
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap();
        }
        store.probe().await.unwrap();
        assert!(folder.path().join("spid.db-wal").exists());
        drop(store);
        closed.wait().await;
        assert!(!folder.path().join("spid.db-wal").exists());
    }
}
