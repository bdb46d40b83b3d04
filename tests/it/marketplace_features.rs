//! Features of single marketplaces, on both stores: a nonce for each request, their own public id, freeze and
//! unfreeze without a date, externally provisioned instances, and order lookups.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::bench::*;
use spid::internals::observe::limits;
use spid::internals::store::{AttemptEnd, StoreError};
use spid_hook::callback::{Action, Callback, Nonce, Outcome};
use spid_hook::instance::State;
use spid_hook::time::plus_millis;

/// The callback under a new nonce.
fn marked(bench: &Bench, callback: Callback) -> Callback {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nonce = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    Callback {
        nonce: Some(Nonce { nonce, until: plus_millis(bench.clock.now(), limits::NONCED_WINDOW_MS) }),
        ..callback
    }
}

fn thaw(biz: &str) -> Callback {
    Callback { action: Action::Renew, ..expire(biz) }
}

/// A create whose marketplace names the instance `public`.
fn named(biz: &str, public: &str) -> Callback {
    Callback { marketplace_instance_id: Some(public.into()), ..create(biz) }
}

fn by_id(action: Action, id: &str) -> Callback {
    let mut callback = Callback::new(action, action.as_str());
    callback.subject.instance_id = Some(id.into());
    callback
}

async fn freeze_and_thaw(bench: &Bench) -> Vec<Action> {
    for callback in [expire("b"), thaw("b")] {
        bench.done(&marked(bench, callback)).await;
    }
    bench.jobs().into_iter().rev().skip(1).map(|job| job.action).collect()
}

on_both_backends! {

async fn a_copy_is_not_kept(bench: &Bench) {
    let first = marked(bench, create("b"));
    bench.done(&first).await;
    let before = (bench.callbacks(), bench.jobs());
    let copied = bench.store.accept(bench.acceptance(&first)).await.unwrap_err();
    assert_eq!(copied, StoreError::Replayed);
    let other = Callback { nonce: first.nonce.clone(), ..release("b") };
    assert_eq!(bench.store.accept(bench.acceptance(&other)).await.unwrap_err(), StoreError::Replayed);
    assert_eq!((bench.callbacks(), bench.jobs()), before);
    let mut elsewhere = bench.acceptance(&first);
    elsewhere.account = "other".into();
    assert!(bench.store.accept(elsewhere).await.is_ok(), "another account has marks of its own");
    assert!(bench.done(&marked(bench, create("b"))).await.is_success());
}

async fn a_mark_is_spent_once_without_anything_else(bench: &Bench) {
    let once = marked(bench, create("b")).nonce.unwrap();
    bench.store.consume(ACCOUNT, once.clone()).await.unwrap();
    assert_eq!(bench.store.consume(ACCOUNT, once).await.unwrap_err(), StoreError::Replayed);
    assert!(bench.callbacks().is_empty());
}

async fn a_mark_outlives_its_window_and_a_clock_set_back(bench: &Bench) {
    let once = marked(bench, create("b")).nonce.unwrap();
    bench.store.consume(ACCOUNT, once.clone()).await.unwrap();
    bench.advance((limits::NONCED_WINDOW_MS + limits::NONCE_GRACE_MS) / 1000);
    bench.store.consume(ACCOUNT, marked(bench, create("b")).nonce.unwrap()).await.unwrap();
    bench.advance(-120);
    assert_eq!(bench.store.consume(ACCOUNT, once.clone()).await.unwrap_err(), StoreError::Replayed);
    bench.advance(121);
    bench.store.consume(ACCOUNT, once).await.unwrap();
}

async fn the_first_public_id_is_the_id(bench: &Bench) {
    let first = bench.accept(&named("b", "public-1")).await;
    assert_eq!(first.marketplace_instance_id.as_deref(), Some("public-1"));
    let again = bench.accept(&named("b", "public-2")).await;
    assert_eq!(again.marketplace_instance_id.as_deref(), Some("public-1"));
    let taken = bench.take_one().await;
    bench.finish(&taken, done_as("tenant-1")).await;
    for receipt in [first, again] {
        assert_eq!(told_id(&heard(waiter(receipt)).await), Some("public-1"));
    }
    assert_eq!(bench.only().id.as_deref(), Some("tenant-1"), "the hook's own is the seller's business");
    for name in ["public-1", "tenant-1", "b"] {
        assert!(bench.deliver(&by_id(Action::Query, name)).await.is_success(), "{name}");
    }
    assert!(!bench.deliver(&by_id(Action::Query, "public-2")).await.is_success());
    assert_eq!(told_id(&bench.deliver(&named("b", "public-3")).await), Some("public-1"));
}

async fn a_public_id_that_is_taken_is_no_name(bench: &Bench) {
    bench.done(&named("b", "public-1")).await;
    let other = bench.accept(&named("c", "public-1")).await;
    assert_eq!(other.marketplace_instance_id, None);
    bench.run_due().await;
    assert_eq!(told_id(&heard(waiter(other)).await), Some("c"));
}

async fn an_answer_to_a_query_is_the_create_s(bench: &Bench) {
    drop(bench.accept(&marked(bench, named("b", "public-1"))).await);
    let ask = || marked(bench, by_id(Action::Query, "public-1"));
    assert!(matches!(bench.deliver(&ask()).await, Outcome::Refused { code: "not-ready", .. }));
    bench.run_due().await;
    assert_eq!(bench.unreported().len(), 1);
    assert_eq!(told_id(&bench.deliver(&ask()).await), Some("public-1"));
    assert!(bench.unreported().is_empty(), "what was polled was told");
    assert_eq!(bench.callbacks().len(), 2, "however often it is polled");
}

async fn every_marked_freeze_counts(bench: &Bench) {
    bench.done(&create("b")).await;
    assert_eq!(freeze_and_thaw(bench).await, [Action::Expire, Action::Renew]);
    bench.advance(60);
    let twice = freeze_and_thaw(bench).await;
    assert_eq!(twice, [Action::Expire, Action::Renew, Action::Expire, Action::Renew]);
    assert!(bench.held().is_empty(), "though it is paid for a year");
    assert_eq!(bench.only().expires_on, Some(day(365)));
}

async fn an_unmarked_freeze_may_be_a_copy(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&expire("b")).await;
    bench.done(&renew("b", "r", day(730))).await;
    bench.deliver(&expire("b")).await;
    assert_eq!(bench.held().len(), 1);
    bench.done(&marked(bench, expire("b"))).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_freeze_nobody_was_told_of_does_not_swallow_the_next(bench: &Bench) {
    bench.done(&create("b")).await;
    for expected in [State::Frozen, State::Active, State::Frozen, State::Active] {
        let change = if expected == State::Frozen { expire("b") } else { thaw("b") };
        drop(bench.accept(&marked(bench, change)).await);
        bench.run_due().await;
        assert_eq!(bench.state(), expected);
    }
}

async fn a_freeze_behind_its_thaw_is_another(bench: &Bench) {
    bench.done(&create("b")).await;
    for change in [expire("b"), thaw("b"), expire("b"), expire("b")] {
        drop(bench.accept(&marked(bench, change)).await);
    }
    bench.run_due().await;
    assert_eq!(bench.state(), State::Frozen, "the last word counts");
    assert_eq!(bench.jobs_of(Action::Expire).len(), 2, "and a redelivery of it is no third");
}

async fn a_thaw_of_what_is_not_frozen_runs_nothing(bench: &Bench) {
    bench.done(&create("b")).await;
    assert!(bench.done(&marked(bench, thaw("b"))).await.is_success());
    assert!(bench.jobs_of(Action::Renew).is_empty());
    drop(bench.accept(&marked(bench, expire("b"))).await);
    let renewal = bench.accept(&marked(bench, renew("b", "r", day(730)))).await;
    let behind = bench.accept(&marked(bench, thaw("b"))).await;
    bench.run_due().await;
    for receipt in [renewal, behind] {
        assert!(heard(waiter(receipt)).await.is_success(), "it is thawed when the renewal is done");
    }
    assert_eq!(bench.jobs_of(Action::Renew).len(), 1);
}

async fn a_thaw_of_what_is_not_made_yet_waits_for_it(bench: &Bench) {
    drop(bench.accept(&marked(bench, create("b"))).await);
    let thaws = bench.accept(&marked(bench, thaw("b"))).await;
    bench.run_due().await;
    assert!(heard(waiter(thaws)).await.is_success());
    assert_eq!(bench.state(), State::Active);
}

async fn what_is_made_elsewhere_begins_with_what_is_heard_of_it(bench: &Bench) {
    let of = |callback: Callback| Callback { externally_provisioned: true, ..callback };
    bench.done(&of(renew("l", "r", day(30)))).await;
    let known = bench.only();
    assert_eq!((known.state, known.adopted, known.expires_on), (State::Active, true, Some(day(30))));
    bench.done(&of(release("l"))).await;
    assert_eq!(bench.state(), State::Released);
    bench.done(&of(release("m"))).await;
    assert_eq!(bench.jobs_of(Action::Release).len(), 2, "the hook is told of one that was never heard of, too");
    assert!(!bench.deliver(&of(renew("l", "r2", day(60)))).await.is_success(), "released stays released");
}

async fn a_trial_ends_when_it_is_paid_for(bench: &Bench) {
    bench.done(&Callback { trial: Some(true), ..create("b") }).await;
    bench.done(&renew("b", "r", day(400))).await;
    assert_eq!(bench.only().trial, Some(true), "nobody said otherwise");
    bench.done(&Callback { trial: Some(false), ..renew("b", "s", day(500)) }).await;
    assert_eq!(bench.only().trial, Some(false));
}

async fn what_was_learned_is_kept_with_callback_and_instance(bench: &Bench) {
    let bare = Callback { sku: None, buyer: None, expires_on: None, ..create("b") };
    drop(bench.accept(&bare).await);
    let taken = bench.take_one().await;
    let facts = [("kind".to_owned(), "NEW".to_owned())].into_iter().collect();
    let known = Callback { sku: Some("pro".into()), buyer: Some("7".into()), order_details: Some(facts), ..bare.clone() };
    let instance = bench.store.add_order_details(&taken.job, known.clone()).await.unwrap().unwrap();
    assert_eq!((instance.sku.as_deref(), instance.buyer.as_deref()), (Some("pro"), Some("7")));
    bench.finish(&taken, AttemptEnd::GivenBack).await;
    let again = bench.take_one().await;
    assert_eq!((&*again.callback, again.instance.as_ref()), (&known, Some(&instance)), "the next attempt knows it");
    assert_eq!(bench.store.add_order_details(&taken.job, bare.clone()).await.unwrap(), None, "a lost lease teaches nothing");
    bench.finish_done(&again).await;
    assert!(bench.deliver(&bare).await.is_success(), "its redelivery says no more than before");
    assert_eq!((bench.instances().len(), bench.jobs().len()), (1, 1));
}

async fn a_refused_create_is_told_to_who_asks(bench: &Bench) {
    drop(bench.accept(&named("b", "public-1")).await);
    let ask = || marked(bench, by_id(Action::Query, "public-1"));
    let taken = bench.take_one().await;
    bench.finish(&taken, retry()).await;
    assert!(matches!(bench.deliver(&ask()).await, Outcome::Refused { code: "not-ready", .. }));
    bench.advance(3600);
    let taken = bench.take_one().await;
    bench.finish(&taken, refused()).await;
    let reported = Outcome::Refused { code: "hook", reason: "not to this buyer".into() };
    assert_eq!(bench.deliver(&ask()).await, reported);
}

}
