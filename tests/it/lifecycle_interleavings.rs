//! The interleavings that cost money, one test each, on SQLite and on the model.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::bench::*;
use spid::internals::store::{AttemptEnd, Disposition, Finished};
use spid_core::lifecycle::UnknownInstance;
use spid_core::lifecycle::schedule;
use spid_hook::callback::{Action, Callback, Outcome, ValidationIssue};
use spid_hook::instance::State;

fn is_held(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Held { .. })
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { .. })
}

on_both_backends! {

async fn an_untold_expire_joins_its_job_though_a_renew_was_queued_since(bench: &Bench) {
    bench.done(&create("b")).await;
    assert_eq!(bench.deliver(&expire("b")).await, Outcome::NotYet);
    assert_eq!(bench.deliver(&renew("b", "r", day(730))).await, Outcome::NotYet);
    let again = waiter(bench.accept(&expire("b")).await);
    assert_eq!(bench.jobs_of(Action::Expire).len(), 1);
    bench.run_due().await;
    assert!(heard(again).await.is_success());
    assert_eq!(bench.state(), State::Active);
    assert_eq!(bench.only().expires_on, Some(day(730)));
}

async fn a_told_expire_replayed_after_a_renew_is_held_and_next_years_is_true(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    bench.done(&expire("b")).await;
    bench.done(&renew("b", "r", day(730))).await;
    bench.advance(3600);
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert_eq!((bench.state(), bench.held().len()), (State::Active, 1));
    // No operator has decided the held item when the term really ends.
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
    assert_eq!(bench.jobs_of(Action::Expire).len(), 2);
}

async fn next_years_expire_runs_with_no_replay_between(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    bench.done(&expire("b")).await;
    bench.done(&renew("b", "r", day(730))).await;
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    let jobs = bench.jobs_of(Action::Expire);
    assert_eq!((bench.state(), jobs.len()), (State::Frozen, 2));
    assert_ne!(jobs[0].id, jobs[1].id, "two occurrences, two idempotency keys");
}

async fn a_late_renew_after_a_longer_one_does_not_shorten(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "long", day(1000))).await;
    bench.done(&renew("b", "short", day(730))).await;
    assert_eq!(bench.only().expires_on, Some(day(1000)));
}

async fn arrears_paid_thaw_the_instance(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
    bench.done(&renew("b", "arrears", day(400))).await;
    assert_eq!(bench.state(), State::Active);
}

async fn the_same_renew_thaws_when_arrears_came_between(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "r", day(730))).await;
    bench.done(&expire("b")).await;
    bench.done(&renew("b", "r", day(730))).await;
    assert_eq!(bench.state(), State::Active);
    assert_eq!(bench.jobs_of(Action::Renew).len(), 2);
}

async fn a_renewal_carried_out_and_refunded_succeeds_again_and_runs_nothing(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "r1", day(730))).await;
    bench.done(&refund_renew("b", "refund", day(365))).await;
    assert_eq!(bench.only().expires_on, Some(day(365)));
    assert!(bench.deliver(&renew("b", "r1", day(730))).await.is_success(), "its order was carried out");
    bench.done(&renew("b", "r2", day(500))).await;
    assert!(bench.deliver(&renew("b", "r1", day(730))).await.is_success());
    assert!(is_held(&bench.deliver(&refund_renew("b", "refund", day(365))).await));
    assert_eq!((bench.only().expires_on, bench.held().len()), (Some(day(500)), 1));
    assert_eq!(bench.jobs_of(Action::Renew).len(), 2);
}

async fn a_refunded_renewal_without_an_order_is_held_when_it_is_repeated(bench: &Bench) {
    let unordered = |until| Callback { ordered: false, order_id: None, ..renew("b", "", until) };
    bench.done(&create("b")).await;
    bench.done(&unordered(day(730))).await;
    bench.done(&refund_renew("b", "refund", day(365))).await;
    assert!(is_held(&bench.deliver(&unordered(day(730))).await));
    assert_eq!(bench.only().expires_on, Some(day(365)));
}

async fn an_upgrade_done_but_unreported_is_no_success_once_another_has_replaced_it(bench: &Bench) {
    bench.done(&create("b")).await;
    // The marketplace does not call again for the result of this one.
    assert_eq!(bench.deliver(&upgrade("b", "silver")).await, Outcome::NotYet);
    bench.run_due().await;
    bench.done(&upgrade("b", "gold")).await;
    assert!(is_held(&bench.deliver(&upgrade("b", "silver")).await));
    assert_eq!((bench.only().sku.as_deref(), bench.jobs_of(Action::Upgrade).len()), (Some("gold"), 2));
    // With its own order, the request identifies the renewal that was carried out.
    let ordered = |order: &str, sku: &str| Callback {
        ordered: true,
        order_id: Some(order.into()),
        ..upgrade("b", sku)
    };
    assert_eq!(bench.deliver(&ordered("u1", "iron")).await, Outcome::NotYet);
    bench.run_due().await;
    bench.done(&ordered("u2", "gold")).await;
    assert!(bench.deliver(&ordered("u1", "iron")).await.is_success());
    bench.done(&ordered("u3", "iron")).await;
    assert_eq!(bench.only().sku.as_deref(), Some("iron"), "the same bought anew runs");
    assert_eq!((bench.unreported().len(), bench.held().len()), (0, 1));
}

async fn items_count_as_much_as_the_sku(bench: &Bench) {
    let seats = |count: &str| Callback {
        items: [("seats".to_owned(), count.to_owned())].into(),
        ..upgrade("b", "basic")
    };
    bench.done(&create("b")).await;
    for count in ["5", "9"] {
        assert_eq!(bench.deliver(&seats(count)).await, Outcome::NotYet);
        bench.run_due().await;
    }
    assert!(is_held(&bench.deliver(&seats("5")).await));
    assert!(bench.deliver(&seats("9")).await.is_success());
}

async fn a_renewal_done_but_unreported_thaws_who_is_frozen_since(bench: &Bench) {
    bench.done(&create("b")).await;
    assert_eq!(bench.deliver(&renew("b", "r", day(730))).await, Outcome::NotYet);
    bench.run_due().await;
    bench.done(&expire("b")).await;
    // The arrears are paid; the marketplace repeats order and date.
    bench.done(&renew("b", "r", day(730))).await;
    assert_eq!(bench.state(), State::Active);
    let keys: Vec<_> = bench.jobs_of(Action::Renew).iter().map(|job| job.id).collect();
    assert_eq!(keys.len(), 2, "under a key of its own");
    assert_ne!(keys[0], keys[1]);
}

async fn a_refund_done_but_unreported_is_no_success_once_the_term_has_moved(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "r1", day(730))).await;
    assert_eq!(bench.deliver(&refund_renew("b", "x", day(365))).await, Outcome::NotYet);
    bench.run_due().await;
    bench.done(&renew("b", "r2", day(730))).await;
    assert!(is_held(&bench.deliver(&refund_renew("b", "x", day(365))).await));
    assert_eq!(bench.only().expires_on, Some(day(730)));
}

async fn an_expire_done_but_unreported_is_no_success_for_who_is_in_use_again(bench: &Bench) {
    let undated = Callback { expires_on: None, ..create("b") };
    bench.done(&undated).await;
    assert_eq!(bench.deliver(&expire("b")).await, Outcome::NotYet);
    bench.run_due().await;
    bench.done(&Callback { expires_on: None, ..renew("b", "r", day(0)) }).await;
    assert_eq!(bench.state(), State::Active);
    assert!(is_held(&bench.deliver(&expire("b")).await), "no term says whether it is the next one");
    assert_eq!(bench.state(), State::Active);
}

async fn an_idempotency_key_stands_for_one_payload(bench: &Bench) {
    let seats = |count: &str| Callback {
        items: [("seats".to_owned(), count.to_owned())].into(),
        ..create("b")
    };
    bench.deliver(&seats("5")).await;
    let first = bench.take_one().await;
    bench.finish(&first, refused()).await;
    bench.advance(60);
    bench.deliver(&seats("9")).await;
    let mut seen = vec![(first.job.id, first.callback.items["seats"].clone())];
    for _ in 0..3 {
        let taken = bench.take_one().await;
        seen.push((taken.job.id, taken.callback.items["seats"].clone()));
        bench.finish(&taken, retry()).await;
        bench.advance(3600);
    }
    assert_eq!(seen.iter().map(|(_, seats)| seats.as_str()).collect::<Vec<_>>(), ["5", "9", "9", "9"]);
    assert_ne!(seen[0].0, seen[1].0, "another payload, another key");
    assert!(seen[1..].iter().all(|(key, _)| *key == seen[1].0));
    assert_eq!(bench.callbacks().len(), 2);
}

async fn a_refused_order_that_comes_again_as_it_was_stays_one_callback(bench: &Bench) {
    for _ in 0..3 {
        bench.deliver(&create("b")).await;
        let taken = bench.take_one().await;
        bench.finish(&taken, refused()).await;
        bench.advance(60);
    }
    assert_eq!((bench.callbacks().len(), bench.callbacks()[0].deliveries), (1, 3));
    assert_eq!(bench.jobs_of(Action::Create).len(), 3);
}

async fn a_request_of_two_parts_is_told_when_both_are_done(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    let waiting = waiter(bench.accept(&both).await);
    let renewing = bench.take_one().await;
    assert_eq!((renewing.job.action, renewing.callback.action), (Action::Renew, Action::Renew));
    assert_eq!(bench.deliver(&both).await, Outcome::NotYet);
    bench.finish_done(&renewing).await;
    assert!(bench.unreported().is_empty(), "half of it is not a result");
    let upgrading = bench.take_one().await;
    assert_eq!((upgrading.job.action, upgrading.callback.action), (Action::Upgrade, Action::Upgrade));
    assert_eq!((upgrading.callback.expires_on.as_ref(), upgrading.callback.sku.as_deref()), (None, Some("gold")));
    assert_ne!(renewing.job.id, upgrading.job.id);
    bench.finish_done(&upgrading).await;
    assert!(heard(waiting).await.is_success());
    assert!(bench.deliver(&both).await.is_success());
    let now = bench.only();
    assert_eq!((now.sku.as_deref(), now.expires_on), (Some("gold"), Some(day(730))));
    assert_eq!((bench.jobs().len(), bench.callbacks().len()), (3, 2));
}

async fn a_doubt_about_one_part_holds_both(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback {
        also: vec![Action::Upgrade],
        sku: Some("gold".into()),
        expires_on: None,
        issues: vec![ValidationIssue::UnreadableDate { name: "expireTime".into() }],
        ..renew("b", "r", day(730))
    };
    assert!(is_held(&bench.deliver(&both).await));
    assert!(bench.take(9).await.is_empty());
    assert_eq!((bench.held().len(), bench.only().sku.as_deref()), (1, Some("basic")));
}

async fn a_part_that_is_refused_takes_those_behind_it_along(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    bench.deliver(&both).await;
    let renewing = bench.take_one().await;
    bench.finish(&renewing, refused()).await;
    assert!(bench.take(9).await.is_empty(), "no hook runs for half of a request");
    assert!(is_refused(&bench.deliver(&both).await));
    bench.advance(60);
    // After a refusal both parts run again.
    bench.done(&both).await;
    let now = bench.only();
    assert_eq!((now.sku.as_deref(), now.expires_on), (Some("gold"), Some(day(730))));
}

async fn a_part_that_is_dead_is_brought_forward_by_a_repeat_of_the_whole(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    bench.deliver(&both).await;
    let dead = bench.run_to_death().await;
    assert_eq!(dead.action, Action::Renew);
    bench.advance(3600);
    bench.done(&both).await;
    assert_eq!(bench.only().sku.as_deref(), Some("gold"));
    assert_eq!(bench.jobs().len(), 3);
}

async fn a_create_that_was_tried_is_not_tried_anew_because_its_release_was_refused(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let tried = bench.take_one().await;
    bench.finish(&tried, retry()).await;
    bench.deliver(&release("b")).await;
    let taken = bench.take_one().await;
    assert_eq!(taken.job.action, Action::Release);
    bench.finish(&taken, refused()).await;
    bench.advance(60);
    assert!(is_held(&bench.deliver(&create("b")).await));
    assert!(is_held(&bench.deliver(&create("b")).await));
    assert_eq!(bench.jobs_of(Action::Create).len(), 1, "under no other key");
}

async fn a_release_cancels_both_parts(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    bench.deliver(&both).await;
    bench.done(&release("b")).await;
    let states: Vec<_> = bench.jobs().iter().map(|job| (job.action, job.state)).collect();
    assert_eq!(states[1..3], [(Action::Upgrade, schedule::JobState::Cancelled), (Action::Renew, schedule::JobState::Cancelled)]);
    assert!(is_refused(&bench.deliver(&both).await), "paid for nothing");
}

async fn an_upgrade_redelivered_after_a_later_one_is_held(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&upgrade("b", "silver")).await;
    bench.done(&upgrade("b", "gold")).await;
    assert!(is_held(&bench.deliver(&upgrade("b", "silver")).await));
    assert!(bench.deliver(&upgrade("b", "gold")).await.is_success());
    assert_eq!(bench.only().sku.as_deref(), Some("gold"));
    assert_eq!(bench.jobs_of(Action::Upgrade).len(), 2);
}

async fn a_release_waits_for_a_running_create_that_succeeds(bench: &Bench) {
    let buyer = waiter(bench.accept(&create("b")).await);
    let creating = bench.take_one().await;
    assert_eq!(bench.deliver(&release("b")).await, Outcome::NotYet);
    assert!(bench.take(9).await.is_empty(), "one at a time");
    bench.finish(&creating, done_as("i-1")).await;
    assert_eq!(told_id(&heard(buyer).await), Some("i-1"));
    let releasing = bench.take_one().await;
    assert_eq!(releasing.job.action, Action::Release);
    assert_eq!(releasing.instance.as_ref().and_then(|i| i.id.as_deref()), Some("i-1"));
    bench.finish_done(&releasing).await;
    assert_eq!(bench.state(), State::Released);
    let late = bench.accept(&create("b")).await;
    assert!(late.alert);
    assert_eq!(told_id(&answer_now(late)), Some("i-1"));
    assert_eq!(bench.jobs_of(Action::Create).len(), 1);
}

async fn an_untold_create_of_a_released_instance_tells_the_id_and_alerts(bench: &Bench) {
    bench.deliver(&create("b")).await;
    bench.run_due().await;
    bench.done(&release("b")).await;
    let late = bench.accept(&create("b")).await;
    assert!(late.alert);
    assert_eq!(told_id(&answer_now(late)), Some("b"));
    assert_eq!(bench.state(), State::Released);
}

async fn a_release_follows_a_running_create_that_fails(bench: &Bench) {
    for ending in [retry(), refused(), AttemptEnd::Pending { note: "later".into() }, AttemptEnd::GivenBack] {
        let biz = format!("{ending:?}");
        bench.deliver(&create(&biz)).await;
        let creating = bench.take_one().await;
        bench.deliver(&release(&biz)).await;
        bench.finish(&creating, ending).await;
        assert!(!bench.job(creating.job.number).state.is_live());
        // The buyer's marketplace calls for it again before the release has run.
        bench.advance(60);
        assert!(is_held(&bench.deliver(&create(&biz)).await), "{biz}");
        let releasing = bench.take_one().await;
        assert_eq!(releasing.job.action, Action::Release);
        bench.finish_done(&releasing).await;
        assert!(is_held(&bench.deliver(&create(&biz)).await));
        bench.advance(3600);
        assert!(bench.take(9).await.is_empty(), "nothing runs behind a release");
    }
    assert_eq!(bench.jobs_of(Action::Create).len(), 4);
}

async fn two_releases_of_a_failed_create_are_one_job(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let creating = bench.take_one().await;
    bench.deliver(&release("b")).await;
    bench.finish(&creating, refused()).await;
    let other = Callback { order_id: Some("another".into()), ..release("b") };
    let waiting = waiter(bench.accept(&other).await);
    bench.run_due().await;
    assert!(heard(waiting).await.is_success());
    assert_eq!(bench.jobs_of(Action::Release).len(), 1);
}

async fn a_release_of_a_create_that_never_began_needs_no_hook(bench: &Bench) {
    bench.deliver(&create("b")).await;
    assert!(bench.deliver(&release("b")).await.is_success());
    assert!(bench.take(9).await.is_empty());
    assert_eq!(bench.state(), State::Released);
    assert!(is_held(&bench.deliver(&create("b")).await));
    assert!(bench.deliver(&release("b")).await.is_success());
}

async fn a_release_before_its_create_is_a_tombstone(bench: &Bench) {
    let early = release("b");
    assert!(is_refused(&bench.deliver(&early).await));
    assert!(is_refused(&bench.deliver(&early).await));
    assert!(bench.only().tombstone);
    assert!(is_held(&bench.deliver(&create("b")).await));
    assert!(is_held(&bench.deliver(&create("b")).await));
    assert_eq!((bench.jobs().len(), bench.held().len()), (0, 1));
}

async fn a_release_overtakes_what_failed_and_what_waits(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&upgrade("b", "gold")).await;
    bench.run_to_death().await;
    bench.deliver(&renew("b", "r", day(730))).await;
    let gone = waiter(bench.accept(&release("b")).await);
    bench.run_due().await;
    assert!(heard(gone).await.is_success());
    let states: Vec<_> = bench.jobs().iter().map(|job| (job.action, job.state)).collect();
    assert_eq!(states, [
        (Action::Release, schedule::JobState::Done),
        (Action::Renew, schedule::JobState::Cancelled),
        (Action::Upgrade, schedule::JobState::Cancelled),
        (Action::Create, schedule::JobState::Done),
    ]);
    let late = bench.accept(&renew("b", "r", day(730))).await;
    assert!(late.alert);
    assert!(is_refused(&answer_now(late)));
    assert_eq!(bench.state(), State::Released);
}

async fn a_create_of_another_purchase_is_held_and_gets_nothing_of_the_first(bench: &Bench) {
    let first = Callback { buyer: Some("buyer-1".into()), ..create("b") };
    let other_order = Callback { order_id: Some("another".into()), ..first.clone() };
    let other_buyer = Callback { buyer: Some("buyer-2".into()), ..first.clone() };
    bench.deliver(&first).await;
    assert!(is_held(&bench.deliver(&other_order).await), "while the first runs");
    let creating = bench.take_one().await;
    bench.finish(&creating, done_as("i-1")).await;
    bench.done(&first).await;
    for _ in 0..2 {
        assert!(is_held(&bench.deliver(&other_order).await));
        assert!(is_held(&bench.deliver(&other_buyer).await));
    }
    let deliveries: Vec<u64> = bench.held().iter().map(|row| row.deliveries).collect();
    assert_eq!(deliveries, [2, 3], "one for the other buyer, one for the other order");
    assert_eq!(bench.jobs().len(), 1);
    assert_eq!(told_id(&bench.deliver(&first).await), Some("i-1"));
    assert_eq!(bench.held().len(), 2, "the first buyer's repeat settles nothing of the others'");
    bench.done(&release("b")).await;
    assert!(is_held(&bench.deliver(&other_order).await), "also of what is released");
    let late = bench.accept(&first).await;
    assert!(late.alert, "the purchase itself is told its id, and that is alerted");
    assert_eq!(told_id(&answer_now(late)), Some("i-1"));
}

async fn the_same_purchase_with_other_values_is_told_its_id_and_runs_nothing(bench: &Bench) {
    bench.done(&create("b")).await;
    // Marketplaces have been seen to change the date of a create between its deliveries.
    let moved = Callback { expires_on: expiry(day(366)), ..create("b") };
    for _ in 0..2 {
        assert_eq!(told_id(&bench.deliver(&moved).await), Some("b"));
    }
    assert!(bench.held().is_empty());
    let row = bench.callbacks().into_iter().find(|row| row.reason_code.is_some()).unwrap();
    assert_eq!(row.reason_code.as_deref(), Some("create-repeated-with-other-values"));
    assert_eq!((bench.jobs().len(), bench.only().expires_on), (1, Some(day(365))));
}

async fn the_same_purchase_with_other_values_joins_what_has_not_ended(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let moved = Callback { expires_on: expiry(day(366)), trial: Some(true), ..create("b") };
    let waiting = waiter(bench.accept(&moved).await);
    bench.run_due().await;
    assert_eq!(told_id(&heard(waiting).await), Some("b"));
    assert_eq!(bench.jobs_of(Action::Create).len(), 1);
}

async fn an_expire_waits_while_another_purchase_of_the_instance_is_held(bench: &Bench) {
    let trial = Callback { trial: Some(true), expires_on: expiry(day(7)), ..create("b") };
    bench.done(&trial).await;
    let bought = Callback { order_id: Some("paid".into()), trial: Some(false), ..create("b") };
    assert!(is_held(&bench.deliver(&bought).await));
    bench.go_to_day(7);
    assert!(is_held(&bench.deliver(&expire("b")).await), "it would freeze who has paid");
    assert_eq!(bench.state(), State::Active);
}

async fn an_expire_of_what_was_not_bought_here_is_not_believed_early(bench: &Bench) {
    let paid = Callback { product: Some("product-1".into()), ..renew("b", "r", day(730)) };
    waiter(bench.accept_under(UnknownInstance::Adopt, &paid).await);
    bench.run_due().await;
    assert!(is_held(&bench.deliver(&expire("b")).await));
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_tombstone_is_never_a_success_by_itself(bench: &Bench) {
    let receipt = bench.accept_under(UnknownInstance::Succeed, &release("b")).await;
    assert!(answer_now(receipt).is_success());
    assert!(is_refused(&bench.deliver(&release("b")).await), "the seller has changed the policy since");
}

async fn an_id_that_will_not_do_holds_the_create(bench: &Bench) {
    bench.deliver(&create("first")).await;
    let first = bench.take_one().await;
    bench.finish(&first, done_as("i-1")).await;
    for (number, id) in ["i-1", "", "  ", "0", "first"].into_iter().enumerate() {
        let biz = format!("b{number}");
        let buyer = waiter(bench.accept(&create(&biz)).await);
        let creating = bench.take_one().await;
        let finished = bench.finish(&creating, done_as(id)).await;
        assert_eq!(state_of(&finished), schedule::JobState::Held, "id `{id}`");
        assert!(is_held(&heard(buyer).await));
        assert!(is_held(&bench.deliver(&create(&biz)).await));
        assert_eq!(bench.instances()[0].instance.id, None);
        assert_eq!(bench.instances()[0].instance.state, State::Pending);
    }
    assert_eq!(bench.store.reader().instances_named("i-1").unwrap().len(), 1);
}

async fn another_id_than_the_last_attempts_holds_the_create(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let lost = bench.take_one().await;
    bench.advance(31);
    let second = bench.take_one().await;
    assert_eq!(bench.finish(&lost, done_as("i-1")).await, Finished::Fenced);
    assert_eq!(state_of(&bench.finish(&second, done_as("i-2")).await), schedule::JobState::Held);
    assert_eq!(bench.only().id, None);
}

async fn the_default_id_counts_as_the_last_attempts(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let lost = bench.take_one().await;
    bench.advance(31);
    let second = bench.take_one().await;
    assert_eq!(bench.finish(&lost, done()).await, Finished::Fenced);
    assert_eq!(state_of(&bench.finish(&second, done_as("i-2")).await), schedule::JobState::Held);
}

async fn an_order_whose_name_is_another_instances_id_is_held(bench: &Bench) {
    bench.deliver(&create("biz-1")).await;
    let first = bench.take_one().await;
    bench.finish(&first, done_as("biz-2")).await;
    // One order for two instances: everything but the name is the same.
    let second = Callback { order_id: create("biz-1").order_id, ..create("biz-2") };
    assert!(is_held(&bench.deliver(&second).await), "nothing was made for it, so no id is told");
    assert!(is_held(&bench.deliver(&second).await));
    assert_eq!(told_id(&bench.deliver(&create("biz-1")).await), Some("biz-2"));
    assert_eq!((bench.held().len(), bench.jobs().len()), (1, 1));
}

async fn a_renew_supersedes_a_dead_expire(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&expire("b")).await;
    let dead = bench.run_to_death().await;
    bench.done(&renew("b", "r", day(730))).await;
    assert_eq!(bench.job(dead.number).state, schedule::JobState::Cancelled);
    assert_eq!(bench.state(), State::Active);
    // The marketplace still calls for the expire, because it has no answer yet.
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert_eq!(bench.state(), State::Active);
    // Next year's expire is a different one.
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_renew_that_waits_supersedes_an_expire_that_dies(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&expire("b")).await;
    let expiring = bench.take_one().await;
    bench.deliver(&renew("b", "r", day(730))).await;
    bench.finish(&expiring, retry()).await;
    for _ in 0..3 {
        bench.advance(3600);
        let again = bench.take_one().await;
        assert_eq!(again.job.action, Action::Expire);
        bench.finish(&again, retry()).await;
    }
    assert_eq!(bench.job(expiring.job.number).state, schedule::JobState::Cancelled);
    let renewing = bench.take_one().await;
    assert_eq!(renewing.job.action, Action::Renew);
    bench.finish_done(&renewing).await;
    assert_eq!(bench.state(), State::Active);
}

async fn a_renew_that_waits_supersedes_a_dead_expire_after_its_one_more_attempt(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&expire("b")).await;
    bench.run_to_death().await;
    bench.advance(3600);
    bench.deliver(&expire("b")).await;
    bench.deliver(&renew("b", "r", day(730))).await;
    let again = bench.take_one().await;
    assert_eq!(again.job.action, Action::Expire);
    bench.finish(&again, retry()).await;
    bench.run_due().await;
    assert_eq!((bench.state(), bench.only().expires_on), (State::Active, Some(day(730))));
}

async fn an_expire_the_hook_refused_does_not_freeze_who_renewed_since(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    bench.deliver(&expire("b")).await;
    let expiring = bench.take_one().await;
    bench.finish(&expiring, refused()).await;
    bench.advance(60);
    bench.done(&renew("b", "r", day(730))).await;
    bench.advance(60);
    for _ in 0..2 {
        assert!(is_held(&bench.deliver(&expire("b")).await));
    }
    assert_eq!(bench.state(), State::Active);
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_refused_upgrade_is_held_only_after_another_was_applied(bench: &Bench) {
    bench.done(&create("b")).await;
    let ordered = |order: &str, sku: &str| Callback {
        ordered: true,
        order_id: Some(order.into()),
        ..upgrade("b", sku)
    };
    let (first, second) = (ordered("u1", "silver"), ordered("u2", "gold"));
    bench.deliver(&first).await;
    let refusing = bench.take_one().await;
    bench.finish(&refusing, refused()).await;
    let changed_at = bench.only().updated_at;
    bench.advance(60);
    // The hook refuses the second one, too.
    bench.deliver(&second).await;
    let upgrading = bench.take_one().await;
    bench.finish(&upgrading, refused()).await;
    bench.advance(60);
    assert_eq!(bench.only().updated_at, changed_at, "nothing was applied");
    assert_eq!(bench.deliver(&first).await, Outcome::NotYet, "nothing was applied since its refusal");
    let refusing = bench.take_one().await;
    bench.finish(&refusing, refused()).await;
    bench.advance(60);
    // Now the second one is running: a later purchase, which the first one would undo.
    bench.deliver(&second).await;
    let upgrading = bench.take_one().await;
    assert!(is_held(&bench.deliver(&first).await));
    assert_eq!(bench.jobs_of(Action::Upgrade).len(), 4);
    // It is refused, so nothing was bought since.
    bench.finish(&upgrading, refused()).await;
    bench.advance(60);
    assert_eq!(bench.deliver(&first).await, Outcome::NotYet);
    let again = bench.take_one().await;
    bench.finish(&again, refused()).await;
    bench.advance(60);
    // Something else is applied after the last refusal.
    bench.done(&ordered("u3", "platinum")).await;
    assert!(is_held(&bench.deliver(&first).await));
    assert_eq!((bench.only().sku.as_deref(), bench.held().len()), (Some("platinum"), 1));
    assert_eq!(bench.held()[0].reason_code.as_deref(), Some("left-sku"));
}

async fn a_refused_upgrade_comes_again_while_another_is_queued(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&upgrade("b", "silver")).await;
    let refusing = bench.take_one().await;
    bench.finish(&refusing, refused()).await;
    bench.advance(60);
    bench.deliver(&upgrade("b", "gold")).await;
    assert!(is_held(&bench.deliver(&upgrade("b", "silver")).await), "it would undo what was bought later");
    bench.run_due().await;
    assert_eq!(bench.only().sku.as_deref(), Some("gold"));
}

async fn what_takes_from_the_buyer_is_held_behind_a_payment_that_is_only_queued(bench: &Bench) {
    bench.done(&create("b")).await;
    for (number, taking) in [expire("b"), refund_renew("b", "x", day(300))].into_iter().enumerate() {
        bench.deliver(&taking).await;
        let refusing = bench.take_one().await;
        bench.finish(&refusing, refused()).await;
        bench.advance(60);
        let renewal = renew("b", &format!("r{number}"), day(730));
        assert_eq!(bench.deliver(&renewal).await, Outcome::NotYet);
        assert!(is_held(&bench.deliver(&taking).await), "{}", taking.action);
        bench.run_due().await;
        bench.done(&renewal).await;
        assert_eq!((bench.state(), bench.only().expires_on), (State::Active, Some(day(730))));
    }
}

async fn an_instance_changes_when_a_job_is_done_not_when_it_is_accepted(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let created_at = bench.only().created_at;
    assert_eq!(bench.only().updated_at, created_at);
    let creating = bench.take_one().await;
    bench.advance(5);
    bench.finish(&creating, refused()).await;
    assert_eq!(bench.only().updated_at, created_at);
    bench.advance(60);
    // A create that comes again describes the instance again.
    bench.deliver(&create("b")).await;
    assert_eq!(bench.only().updated_at, bench.clock.now());
    bench.advance(5);
    bench.run_due().await;
    let made_at = bench.clock.now();
    assert_eq!(bench.only().updated_at, made_at);
    bench.advance(60);
    bench.deliver(&renew("b", "r", day(730))).await;
    assert_eq!(bench.only().updated_at, made_at, "only accepted");
    bench.advance(5);
    bench.run_due().await;
    assert_eq!(bench.only().updated_at, bench.clock.now());
    // A release without a hook leaves a tombstone, or ends an instance that never began.
    bench.deliver(&create("never")).await;
    bench.advance(5);
    bench.deliver(&release("never")).await;
    let rows = bench.instances();
    assert!(rows.iter().any(|row| row.instance.state == State::Released && row.instance.updated_at == bench.clock.now()));
}

async fn arrears_the_hook_refused_to_act_on_are_asked_again(bench: &Bench) {
    bench.done(&create("b")).await;
    for _ in 0..3 {
        bench.advance(60);
        bench.deliver(&expire("b")).await;
        let expiring = bench.take_one().await;
        bench.finish(&expiring, refused()).await;
    }
    bench.advance(60);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn next_years_expire_runs_though_this_years_was_never_told(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    bench.deliver(&expire("b")).await;
    bench.run_due().await;
    bench.done(&renew("b", "r", day(730))).await;
    bench.go_to_day(730);
    bench.done(&expire("b")).await;
    assert_eq!(bench.state(), State::Frozen);
}

async fn an_upgrade_the_hook_refused_does_not_undo_a_later_one(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&upgrade("b", "silver")).await;
    let upgrading = bench.take_one().await;
    bench.finish(&upgrading, refused()).await;
    bench.advance(60);
    bench.done(&upgrade("b", "gold")).await;
    bench.advance(60);
    assert!(is_held(&bench.deliver(&upgrade("b", "silver")).await));
}

async fn an_expire_supersedes_a_dead_renew_whose_term_is_over(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&renew("b", "r", day(400))).await;
    let dead = bench.run_to_death().await;
    bench.go_to_day(401);
    bench.done(&expire("b")).await;
    assert_eq!(bench.job(dead.number).state, schedule::JobState::Cancelled);
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_dead_renew_that_was_paid_beyond_now_is_not_cancelled_by_an_expire(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&renew("b", "r", day(730))).await;
    let dead = bench.run_to_death().await;
    bench.go_to_day(365);
    // The old term ends.
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert_eq!(bench.job(dead.number).state, schedule::JobState::Dead);
    assert!(bench.take(9).await.is_empty(), "the buyer is not frozen before somebody has looked");
    // The renewal comes again and succeeds this time.
    bench.done(&renew("b", "r", day(730))).await;
    assert_eq!((bench.state(), bench.only().expires_on), (State::Active, Some(day(730))));
    assert!(is_held(&bench.deliver(&expire("b")).await));
}

async fn an_expire_of_the_old_term_does_not_run_behind_the_renewal(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    // The payment comes in the last minute, and the hook is slow.
    bench.deliver(&renew("b", "r", day(730))).await;
    let renewing = bench.take_one().await;
    assert!(is_held(&bench.deliver(&expire("b")).await));
    bench.finish_done(&renewing).await;
    assert!(bench.take(9).await.is_empty());
    assert_eq!(bench.state(), State::Active);
}

async fn the_end_of_a_trial_does_not_run_behind_what_bought_it(bench: &Bench) {
    for until in [None, expiry(day(730))] {
        let biz = format!("b-{}", until.is_some());
        bench.done(&Callback { trial: Some(true), expires_on: expiry(day(7)), ..create(&biz) }).await;
        bench.deliver(&Callback { trial: Some(false), expires_on: until.clone(), ..renew(&biz, "paid", day(0)) }).await;
        assert!(is_held(&bench.deliver(&expire(&biz)).await), "{until:?}: while it is on its way");
        bench.run_due().await;
        assert!(is_held(&bench.deliver(&expire(&biz)).await), "{until:?}: once it is done");
        let now = bench.instances().into_iter().find(|row| row.instance.id.as_deref() == Some(&biz)).unwrap();
        let term = until.and_then(|expiry| expiry.at);
        assert_eq!((now.instance.state, now.instance.converted, now.instance.expires_on), (State::Active, true, term));
    }
}

async fn an_upgrade_that_does_not_say_what_it_changes_is_never_so_by_itself(bench: &Bench) {
    let silent = Callback { sku: None, ordered: true, order_id: Some("u".into()), ..upgrade("b", "") };
    bench.done(&create("b")).await;
    bench.deliver(&silent).await;
    let upgrading = bench.take_one().await;
    bench.finish(&upgrading, refused()).await;
    bench.advance(60);
    bench.done(&renew("b", "r", day(730))).await;
    bench.advance(60);
    assert!(is_held(&bench.deliver(&silent).await), "it was refused, and nothing ran since");
    assert_eq!(bench.jobs_of(Action::Upgrade).len(), 1);
}

async fn a_refund_the_hook_refused_takes_nothing_that_was_paid_since(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "r1", day(730))).await;
    bench.deliver(&refund_renew("b", "x", day(365))).await;
    let refunding = bench.take_one().await;
    bench.finish(&refunding, refused()).await;
    bench.advance(60);
    bench.done(&renew("b", "r2", day(1000))).await;
    bench.advance(60);
    assert!(is_held(&bench.deliver(&refund_renew("b", "x", day(365))).await));
    assert_eq!(bench.only().expires_on, Some(day(1000)));
}

async fn an_expire_is_judged_by_the_longer_term_while_a_refund_is_on_its_way(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&expire("b")).await;
    bench.done(&renew("b", "r1", day(730))).await;
    bench.deliver(&refund_renew("b", "x", day(1))).await;
    bench.run_to_death().await;
    assert!(is_held(&bench.deliver(&expire("b")).await));
}

async fn two_thaws_are_two_callbacks_and_one_that_ends_takes_no_other_along(bench: &Bench) {
    let marked = |nonce: &str, callback: Callback| Callback {
        nonce: Some(spid_hook::callback::Nonce { nonce: nonce.into(), until: day(9) }),
        ..callback
    };
    let thaw = |nonce: &str| marked(nonce, Callback { action: Action::Renew, ..expire("b") });
    bench.done(&create("b")).await;
    bench.done(&marked("f1", expire("b"))).await;
    bench.deliver(&thaw("t1")).await;
    bench.deliver(&marked("f2", expire("b"))).await;
    bench.deliver(&thaw("t2")).await;
    let thawing = bench.take_one().await;
    bench.finish(&thawing, refused()).await;
    bench.run_due().await;
    assert_eq!(bench.state(), State::Active, "the last word counts");
    assert_eq!(bench.jobs_of(Action::Renew).len(), 2);
    let of: Vec<i64> = bench.jobs_of(Action::Renew).iter().map(|job| job.callback).collect();
    assert_ne!(of[0], of[1]);
}

async fn a_thaw_does_not_depend_on_a_dead_renewal(bench: &Bench) {
    let once = Some(spid_hook::callback::Nonce { nonce: "t".into(), until: day(9) });
    bench.done(&create("b")).await;
    bench.done(&expire("b")).await;
    bench.deliver(&renew("b", "r", day(730))).await;
    bench.run_to_death().await;
    bench.deliver(&Callback { action: Action::Renew, nonce: once, ..expire("b") }).await;
    assert_eq!(bench.jobs_of(Action::Renew).len(), 2, "it has a job of its own");
}

async fn a_part_that_was_done_does_not_run_again(bench: &Bench) {
    bench.done(&create("b")).await;
    let both = Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    bench.deliver(&both).await;
    let renewing = bench.take_one().await;
    bench.finish_done(&renewing).await;
    let upgrading = bench.take_one().await;
    bench.finish(&upgrading, refused()).await;
    for _ in 0..2 {
        bench.advance(60);
        bench.deliver(&both).await;
        let again = bench.take_one().await;
        assert_eq!(again.job.action, Action::Upgrade);
        bench.finish(&again, refused()).await;
    }
    assert_eq!(bench.jobs_of(Action::Renew).len(), 1, "one order, one renewal");
    bench.advance(60);
    bench.done(&both).await;
    assert_eq!(bench.only().sku.as_deref(), Some("gold"));
}

async fn a_purchase_that_repeats_with_other_quantities_is_noticed(bench: &Bench) {
    let seats = |count: &str| Callback {
        items: [("seats".to_owned(), count.to_owned())].into(),
        ..create("b")
    };
    bench.done(&seats("5")).await;
    for _ in 0..2 {
        assert_eq!(told_id(&bench.deliver(&seats("500")).await), Some("b"));
    }
    let noticed = || {
        let rows = bench.callbacks().into_iter();
        rows.filter(|row| row.reason_code.as_deref() == Some("create-repeated-with-other-values")).count()
    };
    assert_eq!((noticed(), bench.jobs().len()), (1, 1));
    // Later changes by an upgrade are not part of the purchase.
    bench.done(&Callback { items: [("seats".to_owned(), "9".to_owned())].into(), ..upgrade("b", "basic") }).await;
    assert_eq!(told_id(&bench.deliver(&seats("5")).await), Some("b"));
    assert_eq!(noticed(), 1);
}

async fn another_purchase_is_one_callback_however_its_date_moves(bench: &Bench) {
    bench.done(&create("b")).await;
    for days in 400..404 {
        let moved = Callback { order_id: Some("another".into()), expires_on: expiry(day(days)), ..create("b") };
        assert!(is_held(&bench.deliver(&moved).await));
    }
    let held = bench.held();
    assert_eq!((held.len(), held[0].deliveries), (1, 4));
    let said = bench.store.reader().callback(held[0].number).unwrap().unwrap().1;
    assert_eq!(said.expires_on, expiry(day(400)), "what an operator looks at does not change under the eyes");
    let more = Callback { order_id: Some("another".into()), sku: Some("gold".into()), ..create("b") };
    assert!(is_held(&bench.deliver(&more).await));
    assert_eq!(bench.held().len(), 2, "another SKU is another matter");
}

async fn another_buyer_hears_nothing_of_a_create_that_is_still_open(bench: &Bench) {
    let first = Callback { buyer: Some("buyer-1".into()), ..create("b") };
    bench.deliver(&first).await;
    let evil = Callback { buyer: Some("buyer-2".into()), ..create("b") };
    assert!(is_held(&bench.deliver(&evil).await));
    bench.run_due().await;
    assert!(is_held(&bench.deliver(&evil).await));
    assert_eq!(bench.unreported().len(), 1, "the first buyer has not heard yet");
    assert_eq!(told_id(&bench.deliver(&first).await), Some("b"));
}

async fn an_ordered_upgrade_that_was_refused_is_not_done_because_another_made_it_so(bench: &Bench) {
    let ordered = |order: &str| Callback { ordered: true, order_id: Some(order.into()), ..upgrade("b", "gold") };
    bench.done(&create("b")).await;
    bench.deliver(&ordered("u1")).await;
    let upgrading = bench.take_one().await;
    bench.finish(&upgrading, refused()).await;
    bench.advance(60);
    bench.done(&ordered("u2")).await;
    bench.advance(60);
    assert!(is_held(&bench.deliver(&ordered("u1")).await));
}

async fn a_renew_that_dies_before_a_waiting_expire_stays_dead(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&renew("b", "r", day(730))).await;
    let renewing = bench.take_one().await;
    bench.deliver(&expire("b")).await;
    bench.finish(&renewing, retry()).await;
    for _ in 0..3 {
        bench.advance(3600);
        let again = bench.take_one().await;
        bench.finish(&again, retry()).await;
    }
    assert_eq!(bench.job(renewing.job.number).state, schedule::JobState::Dead);
    assert_eq!(bench.state(), State::Active);
}

async fn a_dead_upgrade_stops_those_behind_it(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&upgrade("b", "gold")).await;
    bench.run_to_death().await;
    bench.deliver(&renew("b", "r", day(730))).await;
    bench.advance(24 * 3600);
    assert!(bench.take(9).await.is_empty());
}

async fn a_create_the_hook_refused_takes_those_behind_it_along_and_may_come_again(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let creating = bench.take_one().await;
    bench.deliver(&renew("b", "r", day(730))).await;
    bench.deliver(&upgrade("b", "gold")).await;
    bench.finish(&creating, refused()).await;
    let behind: Vec<_> = bench.jobs().iter().filter(|job| job.action != Action::Create).map(|job| job.state).collect();
    assert_eq!(behind, [schedule::JobState::Cancelled; 2]);
    assert!(is_refused(&bench.deliver(&create("b")).await));
    assert!(is_refused(&bench.deliver(&renew("b", "r", day(730))).await));
    bench.advance(31);
    assert_eq!(told_id(&bench.done(&create("b")).await), Some("b"));
    let keys: Vec<_> = bench.jobs_of(Action::Create).iter().map(|job| job.id).collect();
    assert_eq!(keys.len(), 2);
    bench.done(&renew("b", "r", day(730))).await;
}

async fn an_instance_called_zero_is_found_by_its_order(bench: &Bench) {
    bench.done(&create("b")).await;
    let mut nameless = release("0");
    nameless.subject.instance_id = Some(String::new());
    nameless.order_id = create("b").order_id;
    bench.done(&nameless).await;
    assert_eq!(bench.state(), State::Released);
}

async fn an_instance_called_zero_whose_order_says_nothing_is_held(bench: &Bench) {
    bench.done(&create("b")).await;
    let two = Callback { order_id: create("b").order_id, ..create("c") };
    bench.done(&two).await;
    for order in [None, Some("unheard-of".to_owned()), create("b").order_id] {
        for named in [release("0"), expire("0"), renew("0", "r", day(400)), upgrade("0", "gold"), create("0")] {
            let nameless = Callback { order_id: order.clone(), ..named };
            if nameless.action == Action::Create && order.is_some() {
                continue;
            }
            assert!(is_held(&bench.deliver(&nameless).await), "{nameless:?}");
        }
    }
    assert_eq!((bench.instances().len(), bench.jobs().len()), (2, 2));
}

async fn two_accounts_with_the_same_order_name_are_two_instances(bench: &Bench) {
    bench.done(&create("b")).await;
    let mut other = bench.acceptance(&create("b"));
    other.account = "other".into();
    assert_eq!(answer_now(bench.store.accept(other).await.unwrap()), Outcome::NotYet);
    bench.run_due().await;
    let instances = bench.instances();
    assert_eq!(instances.len(), 2);
    assert!(instances.iter().all(|row| row.instance.id.as_deref() == Some("b")));
    bench.done(&release("b")).await;
    let released: Vec<_> = bench.instances().iter().map(|row| row.instance.state).collect();
    assert_eq!(released, [State::Active, State::Released]);
}

async fn a_payment_is_one_whether_it_comes_before_or_after_its_create(bench: &Bench) {
    assert!(bench.deliver(&payment("b", "q1")).await.is_success());
    bench.done(&create("b")).await;
    assert!(bench.deliver(&payment("b", "q1")).await.is_success());
    assert!(bench.deliver(&payment("b", "q2")).await.is_success());
    assert_eq!(bench.jobs_of(Action::Payment).len(), 2);
    assert!(bench.jobs_of(Action::Payment).iter().all(|job| !job.ordered));
}

async fn a_sign_on_is_used_once(bench: &Bench) {
    bench.done(&create("b")).await;
    let ticket = sign_on("b", bench.clock.now());
    bench.done(&ticket).await;
    assert!(is_refused(&bench.deliver(&ticket).await));
    assert_eq!(bench.jobs_of(Action::SignOn).len(), 1);
    bench.advance(1);
    bench.done(&sign_on("b", bench.clock.now())).await;
    assert!(is_refused(&bench.deliver(&sign_on("b", day(-1))).await));
    assert!(is_refused(&bench.deliver(&sign_on("unknown", bench.clock.now())).await));
}

async fn nobody_signs_on_to_what_is_gone(bench: &Bench) {
    bench.deliver(&create("b")).await;
    assert!(is_refused(&bench.deliver(&sign_on("b", bench.clock.now())).await));
    bench.run_due().await;
    bench.done(&expire("b")).await;
    bench.done(&sign_on("b", bench.clock.now())).await;
    bench.done(&release("b")).await;
    bench.advance(1);
    assert!(is_refused(&bench.deliver(&sign_on("b", bench.clock.now())).await));
}

async fn a_query_tells_no_success_before_there_is_one(bench: &Bench) {
    let query = Callback { action: Action::Query, ..expire("b") };
    assert!(is_refused(&bench.deliver(&query).await));
    bench.deliver(&create("b")).await;
    assert!(is_refused(&bench.deliver(&query).await));
    assert_eq!(bench.jobs().len(), 1);
    bench.run_due().await;
    for _ in 0..2 {
        assert_eq!(told_id(&bench.deliver(&query).await), Some("b"));
    }
}

async fn an_unknown_instance_is_refused_and_leaves_one_row(bench: &Bench) {
    for _ in 0..3 {
        assert!(is_refused(&bench.deliver(&renew("b", "r", day(730))).await));
    }
    let rows = bench.callbacks();
    assert_eq!((rows.len(), rows[0].deliveries, rows[0].disposition), (1, 3, Disposition::Refused));
    assert!(bench.instances().is_empty());
}

async fn an_unknown_instance_succeeds_where_the_seller_says_so_and_leaves_one_row(bench: &Bench) {
    for _ in 0..3 {
        let receipt = bench.accept_under(UnknownInstance::Succeed, &expire("b")).await;
        assert!(answer_now(receipt).is_success());
    }
    let receipt = bench.accept_under(UnknownInstance::Succeed, &release("c")).await;
    assert!(answer_now(receipt).is_success());
    bench.store.flush_counts().await.unwrap();
    let rows = bench.callbacks();
    assert_eq!((rows.len(), rows[1].deliveries), (2, 3));
    assert!(bench.jobs().is_empty());
    assert!(is_held(&bench.deliver(&create("c")).await));
}

async fn an_unknown_instance_is_adopted_where_the_seller_says_so(bench: &Bench) {
    let paid = renew("b", "r", day(730));
    let blind = bench.accept_under(UnknownInstance::Adopt, &paid).await;
    assert!(is_held(&answer_now(blind)), "nothing says which product it is");
    let paid = Callback { product: Some("product-1".into()), ..paid };
    waiter(bench.accept_under(UnknownInstance::Adopt, &paid).await);
    let taken = bench.take_one().await;
    let before = taken.instance.clone().unwrap();
    assert!(before.adopted);
    assert_eq!(before.expires_on, None, "what the hook is to do has not been done");
    bench.finish_done(&taken).await;
    assert_eq!(bench.only().expires_on, Some(day(730)));
    let gone = bench.accept_under(UnknownInstance::Adopt, &release("c")).await;
    assert!(is_held(&answer_now(gone)));
}

async fn what_the_hook_refused_to_create_is_not_adopted(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let creating = bench.take_one().await;
    bench.finish(&creating, refused()).await;
    let paid = Callback { product: Some("product-1".into()), ..renew("b", "r", day(730)) };
    assert!(is_refused(&answer_now(bench.accept_under(UnknownInstance::Adopt, &paid).await)));
    assert_eq!(bench.state(), State::Pending);
    bench.advance(60);
    bench.done(&create("b")).await;
    bench.done(&paid).await;
}

async fn what_was_refused_and_then_adopted_is_one_job(bench: &Bench) {
    let paid = Callback { product: Some("product-1".into()), ..renew("b", "r", day(730)) };
    assert!(is_refused(&bench.deliver(&paid).await));
    for _ in 0..2 {
        waiter(bench.accept_under(UnknownInstance::Adopt, &paid).await);
    }
    bench.run_due().await;
    assert!(answer_now(bench.accept_under(UnknownInstance::Adopt, &paid).await).is_success());
    assert_eq!(bench.jobs_of(Action::Renew).len(), 1);
}

async fn a_renewal_into_the_past_does_not_thaw(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.go_to_day(365);
    bench.done(&expire("b")).await;
    assert!(is_held(&bench.deliver(&renew("b", "r", day(364))).await));
    assert_eq!(bench.state(), State::Frozen);
}

async fn a_doubtful_callback_is_held_once_and_changes_nothing(bench: &Bench) {
    bench.done(&create("b")).await;
    let issue = ValidationIssue::AmbiguousValue { name: "aliUid".into() };
    let doubtful = Callback { issues: vec![issue], ..release("b") };
    for _ in 0..3 {
        assert!(is_held(&bench.deliver(&doubtful).await));
    }
    assert_eq!((bench.held().len(), bench.state()), (1, State::Active));
}

async fn a_create_with_no_name_at_all_is_held_once(bench: &Bench) {
    let mut nameless = create("0");
    nameless.order_id = None;
    for _ in 0..2 {
        assert!(is_held(&bench.deliver(&nameless).await));
    }
    assert_eq!((bench.held().len(), bench.instances().len()), (1, 0));
}

}
