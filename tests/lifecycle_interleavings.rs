//! The interleavings that cost money, each by name, on SQLite and on the model.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

#[macro_use]
mod common;

use common::*;
use spid::callback::{Action, Callback, Doubt, Outcome};
use spid::instance::{State, UnknownInstance};
use spid::job;
use spid::store::{Disposition, Ending, Finished};

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
    // Nobody has looked at the held item when the term really ends.
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

async fn a_refunded_renewal_replayed_is_held(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.done(&renew("b", "r1", day(730))).await;
    bench.done(&refund_renew("b", "refund", day(365))).await;
    assert_eq!(bench.only().expires_on, Some(day(365)));
    assert!(is_held(&bench.deliver(&renew("b", "r1", day(730))).await));
    bench.done(&renew("b", "r2", day(500))).await;
    assert!(is_held(&bench.deliver(&renew("b", "r1", day(730))).await));
    assert!(is_held(&bench.deliver(&refund_renew("b", "refund", day(365))).await));
    assert_eq!((bench.only().expires_on, bench.held().len()), (Some(day(500)), 2));
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
    for ending in [retry(), refused(), Ending::Pending { note: "later".into() }, Ending::GivenBack] {
        let biz = format!("{ending:?}");
        bench.deliver(&create(&biz)).await;
        let creating = bench.take_one().await;
        bench.deliver(&release(&biz)).await;
        bench.finish(&creating, ending).await;
        assert!(!bench.job(creating.job.number).state.is_live());
        // The buyer's marketplace asks for it again before the release has run.
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
        (Action::Release, job::State::Done),
        (Action::Renew, job::State::Cancelled),
        (Action::Upgrade, job::State::Cancelled),
        (Action::Create, job::State::Done),
    ]);
    let late = bench.accept(&renew("b", "r", day(730))).await;
    assert!(late.alert);
    assert!(is_refused(&answer_now(late)));
    assert_eq!(bench.state(), State::Released);
}

async fn a_create_with_another_order_gets_the_stored_id_and_one_held_item(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let creating = bench.take_one().await;
    bench.finish(&creating, done_as("i-1")).await;
    bench.done(&create("b")).await;
    let other = Callback { order_id: Some("another".into()), ..create("b") };
    for _ in 0..3 {
        assert_eq!(told_id(&bench.deliver(&other).await), Some("i-1"));
    }
    let held = bench.held();
    assert_eq!((held.len(), held[0].deliveries), (1, 3));
    assert_eq!(bench.jobs().len(), 1);
    assert_eq!(told_id(&bench.deliver(&create("b")).await), Some("i-1"));
}

async fn a_create_of_another_order_while_the_first_runs_claims_nothing(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let other = Callback { trial: Some(true), ..create("b") };
    assert!(is_held(&bench.deliver(&other).await));
    assert_eq!(bench.jobs_of(Action::Create).len(), 1);
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
        assert_eq!(state_of(&finished), job::State::Held, "id `{id}`");
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
    assert_eq!(state_of(&bench.finish(&second, done_as("i-2")).await), job::State::Held);
    assert_eq!(bench.only().id, None);
}

async fn the_default_id_counts_as_the_last_attempts(bench: &Bench) {
    bench.deliver(&create("b")).await;
    let lost = bench.take_one().await;
    bench.advance(31);
    let second = bench.take_one().await;
    assert_eq!(bench.finish(&lost, done()).await, Finished::Fenced);
    assert_eq!(state_of(&bench.finish(&second, done_as("i-2")).await), job::State::Held);
}

async fn an_order_whose_name_is_another_instances_id_is_held(bench: &Bench) {
    bench.deliver(&create("biz-1")).await;
    let first = bench.take_one().await;
    bench.finish(&first, done_as("biz-2")).await;
    // One order, two pieces: everything but the name is alike.
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
    assert_eq!(bench.job(dead.number).state, job::State::Cancelled);
    assert_eq!(bench.state(), State::Active);
    // The marketplace still asks for the expire it was never told.
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert!(is_held(&bench.deliver(&expire("b")).await));
    assert_eq!(bench.state(), State::Active);
    // The one of next year is another matter.
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
    assert_eq!(bench.job(expiring.job.number).state, job::State::Cancelled);
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

async fn an_expire_supersedes_a_dead_renew(bench: &Bench) {
    bench.done(&create("b")).await;
    bench.deliver(&renew("b", "r", day(730))).await;
    let dead = bench.run_to_death().await;
    bench.go_to_day(365);
    bench.done(&expire("b")).await;
    assert_eq!(bench.job(dead.number).state, job::State::Cancelled);
    assert_eq!(bench.state(), State::Frozen);
    // The renewal was paid: asked for again, it thaws.
    bench.done(&renew("b", "r", day(730))).await;
    assert_eq!((bench.state(), bench.only().expires_on), (State::Active, Some(day(730))));
    assert_ne!(bench.jobs_of(Action::Renew)[0].id, dead.id);
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
    assert_eq!(behind, [job::State::Cancelled; 2]);
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
    assert!(bench.jobs_of(Action::Payment).iter().all(|job| !job.in_lane));
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
    let doubt = Doubt::AmbiguousValue { name: "aliUid".into() };
    let doubtful = Callback { doubts: vec![doubt], ..release("b") };
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
