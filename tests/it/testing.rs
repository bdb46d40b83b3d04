//! The test kit for hook authors: it reports every planted fault in one correct sentence, and reports nothing for
//! correct hooks.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spid::hook::{
    Context, CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, RefundRenewCall, ReleaseCall,
    RenewCall, SignOnCall, SignedOn, Updated, UpgradeCall,
};
use spid::internals::hooks::log::LogHook;
use spid::testing;
use spid::testing::{Check, FindingKind, Part, Report};
use spid_hook::callback::Action;
use spid_hook::instance::{Instance, State};
use tokio::task::yield_now;

/// Fault of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A new id for each attempt, from a counter.
    CountsIds,
    /// A new password for each attempt.
    NewPassword,
    PanicsAgain,
    FailsAgain,
    RefusesAgain,
    PendingAgain,
    /// Checks if the key is known, waits, then creates a tenant.
    ChecksThenInserts,
    /// Creates the tenant first, waits, and then notes that it was created.
    NotesTooLate,
    /// Marks the order as in work, and misreads its own mark later.
    Locks,
    OneIdForAll,
    TheIdZero,
    /// Adds the difference, instead of setting the value.
    AddsSeats,
    ExpireDeletes,
    ReleaseForgets,
    ReleaseKnowsOnlyIds,
    ReleaseOnce,
    CreateMakesNothing,
    NeverBack,
    Blocks,
    AlwaysFails,
    Refuses,
    RelativeUrl,
    NeedsTwoAttempts,
    NoUpgradeWhileFrozen,
    Pending,
    PendingRenewals,
    PendingAndRefusesRenewals,
    /// Keeps answers in memory, which a restart clears.
    ForgetsAnswers,
}

#[derive(Default)]
struct World {
    /// By order: tenants, seats, and if they may be used.
    tenants: BTreeMap<String, Tenant>,
    answers: BTreeMap<String, (String, String)>,
    marked: BTreeSet<String>,
    attempts: BTreeMap<String, u32>,
    made: u32,
}

#[derive(Debug, Clone, Default)]
struct Tenant {
    count: usize,
    seats: i64,
    frozen: bool,
}

/// A correct hook with the given faults, and a wait at every possible place.
#[derive(Clone)]
struct Hook {
    wrong: Wrong,
    world: Arc<Mutex<World>>,
}

fn name(instance: &Instance) -> String {
    instance.order_biz_id.clone().unwrap()
}

impl Hook {
    fn new(wrong: Wrong) -> Hook {
        Hook { wrong, world: Arc::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.world.lock().unwrap())
    }

    fn tenant<T>(&self, instance: &Instance, act: impl FnOnce(&mut Tenant) -> T) -> T {
        self.with(|world| act(world.tenants.entry(name(instance)).or_default()))
    }

    fn attempt(&self, context: &Context) -> u32 {
        self.with(|world| {
            let attempts = world.attempts.entry(context.idempotency_key.clone()).or_default();
            *attempts += 1;
            *attempts
        })
    }

    /// Creates the tenant and stores the answer in one step.
    fn make(&self, instance: &Instance, key: &str) -> (String, String) {
        let wrong = self.wrong;
        self.with(|world| {
            let kept = world.answers.get(key).filter(|_| wrong != Wrong::ChecksThenInserts);
            if let Some(kept) = kept {
                return kept.clone();
            }
            world.made += 1;
            let id = match wrong {
                Wrong::OneIdForAll => "tenant".to_owned(),
                Wrong::TheIdZero => "0".to_owned(),
                _ => format!("t-{}", world.made),
            };
            let answer = (id, format!("fake-password-{}", world.made));
            if wrong != Wrong::CreateMakesNothing {
                let tenant = world.tenants.entry(name(instance)).or_default();
                *tenant = Tenant { count: tenant.count + 1, seats: 5, frozen: false };
            }
            if !matches!(wrong, Wrong::CountsIds | Wrong::ChecksThenInserts | Wrong::NotesTooLate) {
                world.answers.insert(key.to_owned(), answer.clone());
            }
            answer
        })
    }

    async fn made(&self, call: &CreateCall) -> Result<(String, String), HookError> {
        let key = call.context.idempotency_key.as_str();
        let attempt = self.attempt(&call.context);
        let again = attempt > 1;
        match self.wrong {
            Wrong::PanicsAgain if again => panic!("this tenant is there already"),
            Wrong::FailsAgain if again => return Err(HookError::retry("this tenant is there already")),
            Wrong::RefusesAgain if again => return Err(HookError::refuse("this tenant is there already")),
            Wrong::PendingAgain if again => return Err(HookError::pending("somebody is at it")),
            Wrong::NeedsTwoAttempts if !again => return Err(HookError::retry("not yet")),
            Wrong::Pending | Wrong::PendingAndRefusesRenewals => {
                return Err(HookError::pending("waits for sales"));
            }
            Wrong::AlwaysFails => return Err(HookError::retry("the database is not there")),
            Wrong::Refuses => return Err(HookError::refuse("this product is not ours")),
            Wrong::ChecksThenInserts => {
                let kept = self.with(|world| world.answers.get(key).cloned());
                yield_now().await;
                if let Some(kept) = kept {
                    return Ok(kept);
                }
                let made = self.make(&call.instance, key);
                self.with(|world| world.answers.insert(key.to_owned(), made.clone()));
                return Ok(made);
            }
            Wrong::NotesTooLate => {
                if let Some(kept) = self.with(|world| world.answers.get(key).cloned()) {
                    return Ok(kept);
                }
                let made = self.make(&call.instance, key);
                yield_now().await;
                self.with(|world| world.answers.insert(key.to_owned(), made.clone()));
                return Ok(made);
            }
            Wrong::Locks => {
                if !self.with(|world| world.marked.insert(name(&call.instance))) {
                    return Err(HookError::retry("the order is being worked on"));
                }
                yield_now().await;
                let made = self.make(&call.instance, key);
                self.with(|world| world.marked.remove(&name(&call.instance)));
                return Ok(made);
            }
            _ => {}
        }
        yield_now().await;
        let made = self.make(&call.instance, key);
        yield_now().await;
        Ok(made)
    }
}

impl ProvisioningHook for Hook {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        let (id, mut password) = self.made(&call).await?;
        if self.wrong == Wrong::NewPassword {
            password = format!("fake-password-of-attempt-{}", call.context.attempt);
        }
        let url = if self.wrong == Wrong::RelativeUrl { "tenant/app" } else { "https://tenant.example" };
        Ok(Provisioned::new().id(id).app(url).admin("https://tenant.example/admin", "root", password))
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        yield_now().await;
        match self.wrong {
            Wrong::PendingRenewals => return Err(HookError::pending("waits for sales")),
            Wrong::PendingAndRefusesRenewals => return Err(HookError::refuse("no renewals")),
            _ => {}
        }
        self.tenant(&call.instance, |tenant| tenant.frozen = false);
        Ok(Updated::new())
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        if self.wrong == Wrong::NoUpgradeWhileFrozen && call.instance.state == State::Frozen {
            return Err(HookError::refuse("thaw it first"));
        }
        yield_now().await;
        self.tenant(&call.instance, |tenant| match self.wrong {
            Wrong::AddsSeats => tenant.seats += 4,
            _ => tenant.seats = 9,
        });
        Ok(Updated::new())
    }

    async fn refund_renew(&self, _call: RefundRenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        match self.wrong {
            Wrong::NeverBack => std::future::pending().await,
            Wrong::Blocks => {
                let (kept, blocked) = std::sync::mpsc::channel::<()>();
                let _ = blocked.recv();
                drop(kept);
            }
            Wrong::ExpireDeletes => self.tenant(&call.instance, |tenant| tenant.count = 0),
            _ => {}
        }
        yield_now().await;
        self.tenant(&call.instance, |tenant| tenant.frozen = true);
        Ok(())
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        yield_now().await;
        if self.wrong == Wrong::ReleaseForgets
            || (self.wrong == Wrong::ReleaseKnowsOnlyIds && call.instance.id.is_none())
        {
            return Ok(());
        }
        let gone = self.with(|world| world.tenants.remove(&name(&call.instance)));
        match gone {
            None if self.wrong == Wrong::ReleaseOnce => Err(HookError::retry("there is no such tenant")),
            _ => Ok(()),
        }
    }

    async fn sign_on(&self, call: SignOnCall) -> Result<SignedOn, HookError> {
        Ok(SignedOn::redirect(format!("https://tenant.example/?ticket={}", call.context.attempt)))
    }
}

/// The test of an author whose test can count what exists.
fn check_of(hook: &Hook) -> Check {
    let (counting, looking) = (hook.clone(), hook.clone());
    Check::new(hook.clone())
        .timeout(Duration::from_secs(20))
        .count(move |instance| {
            let count =
                counting.with(|world| world.tenants.get(&name(&instance)).map_or(0, |tenant| tenant.count));
            async move { Ok(count) }
        })
        .state(move |instance| {
            let state = looking.with(|world| format!("{:?}", world.tenants.get(&name(&instance))));
            async move { Ok(state) }
        })
}

async fn report_on(wrong: Wrong) -> Report {
    check_of(&Hook::new(wrong)).run().await
}

/// Sentence about the first fault.
fn first(report: &Report) -> (FindingKind, Action, String) {
    let fault = report.faults().next().unwrap_or_else(|| panic!("nothing was found\n{report}"));
    (fault.kind, fault.action, fault.sentence())
}

#[track_caller]
fn only(report: &Report, kind: FindingKind, action: Action, sentence: &str) {
    assert_eq!(first(report), (kind, action, sentence.to_owned()), "\n{report}");
    assert_eq!(report.faults().count(), 1, "\n{report}");
    assert!(!report.passed);
    assert!(!report.to_string().contains("fake-password"), "{report}");
}

const KEEP: &str = "store the answer under the idempotency key before returning it, and return the stored answer to a repeat";
const WIN: &str = "let one attempt win, with a unique index or a lock on the idempotency key, and return its answer to the others";
const GO_ON: &str = "the next attempt must find the remains of an earlier one and continue from there";

#[tokio::test]
async fn a_hook_that_is_right_passes_and_leaves_nothing() {
    let hook = Hook::new(Wrong::Nothing);
    let report = check_of(&hook).requires(Action::Upgrade).run().await;
    assert_eq!(report.not_run, [Part::Restarts], "{report}");
    assert!(report.to_string().contains("after a restart of the hook: not tried;"), "{report}");
    assert!(report.sections.iter().all(|section| section.calls > 0), "{report}");
    let remarks: Vec<Action> = report.findings.iter().map(|finding| finding.action).collect();
    assert_eq!(remarks, [Action::Payment], "{report}");
    report.assert_ok();
    assert!(hook.with(|world| world.tenants.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_with_threads_is_as_good() {
    report_on(Wrong::Nothing).await.assert_ok();
    Check::new(LogHook).without(Action::SignOn).run().await.assert_ok();
}

#[tokio::test]
async fn an_id_from_a_counter_is_found_without_a_probe() {
    let report = testing::check(Hook::new(Wrong::CountsIds)).await;
    let sentence = format!(
        "`create`: called again with the same idempotency key, the hook answered the `instance_id` `t-2`, and `t-1` before; {KEEP}."
    );
    only(&report, FindingKind::AnotherId, Action::Create, &sentence);
}

#[tokio::test]
async fn with_a_probe_it_says_how_many_exist() {
    let report = report_on(Wrong::CountsIds).await;
    let sentence = format!(
        "`create`: called again with the same idempotency key, the hook left 2 things for one order, where 1 should be; {KEEP}."
    );
    let doubled = report.faults().find(|fault| fault.kind == FindingKind::Doubled).unwrap();
    assert_eq!(doubled.sentence(), sentence);
}

#[tokio::test]
async fn what_an_attempt_answers_anew_is_named_and_not_shown() {
    let report = report_on(Wrong::NewPassword).await;
    let sentence = format!(
        "`create`: called again with the same idempotency key, the hook answered a different `app.password`; {KEEP}."
    );
    only(&report, FindingKind::AnotherAnswer, Action::Create, &sentence);
}

#[tokio::test]
async fn whatever_a_repeat_gets_instead_of_an_answer_is_told() {
    let again = "`create`: called again with the same idempotency key, the hook";
    for (wrong, kind, what) in [
        (Wrong::PanicsAgain, FindingKind::Panics, "panicked"),
        (Wrong::RefusesAgain, FindingKind::RefusesAgain, "refused (this tenant is there already)"),
        (
            Wrong::PendingAgain,
            FindingKind::PendingAgain,
            "answered pending (somebody is at it) for work that was done before",
        ),
        (Wrong::FailsAgain, FindingKind::FailsAgain, "failed: this tenant is there already"),
    ] {
        let report = report_on(wrong).await;
        assert_eq!(first(&report), (kind, Action::Create, format!("{again} {what}; {KEEP}.")), "\n{report}");
    }
}

#[tokio::test]
async fn a_race_between_check_and_insert_is_found_every_time() {
    for seed in 0..5 {
        let report = check_of(&Hook::new(Wrong::ChecksThenInserts)).seed(seed).run().await;
        let (kind, action, sentence) = first(&report);
        assert_eq!((kind, action), (FindingKind::AnotherId, Action::Create), "\n{report}");
        assert!(
            sentence.starts_with(
                "`create`: called several times at once with one idempotency key, the hook answered"
            ) && sentence.contains(WIN),
            "{sentence}"
        );
        let doubled = report.faults().find(|fault| fault.kind == FindingKind::Doubled).unwrap();
        assert_eq!(
            doubled.sentence(),
            format!(
                "`create`: called again after several attempts at once, the hook left 3 things for one order, where 1 should be; {WIN}."
            )
        );
        assert!(report.sections[0].faults + report.sections[3].faults == 0, "\n{report}");
    }
}

#[tokio::test]
async fn what_a_cut_attempt_leaves_behind_is_found() {
    let report = report_on(Wrong::NotesTooLate).await;
    let found = report.faults().filter(|fault| fault.part == Part::Cuts);
    // The concurrent calls have met it before, and the same fault is reported once.
    assert_eq!(found.count(), 0);
    assert!(report.sections.last().unwrap().faults > 0, "\n{report}");

    let alone = check_of(&Hook::new(Wrong::Locks)).run().await;
    let stuck = alone.faults().find(|fault| fault.kind == FindingKind::NotResumed).unwrap();
    assert_eq!(
        stuck.sentence(),
        format!(
            "`create`: called again after an attempt was cut short where it waits for the first time, the hook fails at every further attempt: the order is being worked on; {GO_ON}."
        )
    );
}

#[tokio::test]
async fn an_id_that_cannot_be_one_is_found() {
    let report = report_on(Wrong::TheIdZero).await;
    let (kind, _, sentence) = first(&report);
    assert_eq!(kind, FindingKind::BadId);
    assert!(sentence.contains("`0` tells a marketplace that there is no id yet"), "{sentence}");
    let report = report_on(Wrong::OneIdForAll).await;
    let (kind, _, sentence) = first(&report);
    assert_eq!(kind, FindingKind::SharedId);
    assert!(sentence.contains("both got the `instance_id` `tenant`; give each order its own"), "{sentence}");
    assert_eq!(report.faults().count(), 1, "\n{report}");
}

#[tokio::test]
async fn what_the_probes_see_is_judged() {
    let report = report_on(Wrong::AddsSeats).await;
    only(
        &report,
        FindingKind::Changed,
        Action::Upgrade,
        "`upgrade`: called again with the same idempotency key, the hook left the instance \
         `Some(Tenant { count: 1, seats: 13, frozen: false })`, which had been \
         `Some(Tenant { count: 1, seats: 9, frozen: false })`; set values (\"9 seats\"), never add to them (\"4 more\").",
    );
    let report = report_on(Wrong::ExpireDeletes).await;
    only(
        &report,
        FindingKind::DataLost,
        Action::Expire,
        "`expire`: the call left nothing, and 1 thing existed before; only a release may remove anything.",
    );
    let report = report_on(Wrong::CreateMakesNothing).await;
    only(
        &report,
        FindingKind::NothingMade,
        Action::Create,
        "`create`: the create succeeded and nothing exists; create the instance before answering, or fix the test's `count` probe.",
    );
}

#[tokio::test]
async fn a_release_has_to_find_everything_and_nothing() {
    let left =
        "the release left 1 thing; remove everything, including the remains of attempts that were cut short.";
    let report = report_on(Wrong::ReleaseForgets).await;
    only(&report, FindingKind::LeftBehind, Action::Release, &format!("`release`: {left}"));
    let report = report_on(Wrong::ReleaseKnowsOnlyIds).await;
    let step = "`release (of a create whose answer was lost)`";
    only(&report, FindingKind::LeftBehind, Action::Release, &format!("{step}: {left}"));
    let report = report_on(Wrong::ReleaseOnce).await;
    let (kind, action, sentence) = first(&report);
    assert_eq!((kind, action), (FindingKind::FailsAgain, Action::Release));
    assert!(sentence.contains("the hook failed: there is no such tenant"), "{sentence}");
}

#[tokio::test]
async fn a_hook_that_never_comes_back_is_given_up() {
    for (wrong, kind, part) in [
        (Wrong::NeverBack, FindingKind::TooLong, "the hook did not answer within 1s"),
        (Wrong::Blocks, FindingKind::Blocks, "the hook blocked its thread for more than 1s"),
    ] {
        let report = check_of(&Hook::new(wrong)).timeout(Duration::from_secs(1)).run().await;
        let found = report.faults().find(|fault| fault.kind == kind).unwrap_or_else(|| panic!("{report}"));
        assert!(found.sentence().contains(part), "{}", found.sentence());
        assert!(!report.not_run.is_empty(), "{report}");
    }
}

#[tokio::test]
async fn where_nothing_is_made_nothing_else_is_asked() {
    for (wrong, kind, part) in [
        (Wrong::AlwaysFails, FindingKind::Fails, "all 3 attempts failed: the database is not there"),
        (
            Wrong::Refuses,
            FindingKind::Refuses,
            "the hook refused a required call (this product is not ours), so a paid order is lost",
        ),
    ] {
        let report = report_on(wrong).await;
        assert_eq!(first(&report).0, kind);
        assert!(first(&report).2.contains(part), "{report}");
        assert_eq!((report.faults().count(), report.not_run.len()), (1, 6), "{report}");
    }
}

#[tokio::test]
async fn what_is_not_sold_need_not_be_done() {
    struct Small(Hook);
    impl ProvisioningHook for Small {
        async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
            self.0.create(call).await
        }
        async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
            self.0.renew(call).await
        }
        async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
            self.0.expire(call).await
        }
        async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
            self.0.release(call).await
        }
    }
    let small = || Small(Hook::new(Wrong::Nothing));
    let report = testing::check(small()).await;
    let (kind, action, sentence) = first(&report);
    assert_eq!((kind, action), (FindingKind::Unsupported, Action::SignOn), "{report}");
    assert!(sentence.contains("the buyers of a listing sign on; answer a `redirect`"), "{sentence}");
    let check = || Check::new(small()).without(Action::SignOn);
    let report = check().run().await;
    assert!(
        report.passed && report.to_string().contains("· `upgrade`: the hook does not support the action"),
        "{report}"
    );
    let report = check().requires(Action::Upgrade).run().await;
    only(
        &report,
        FindingKind::Unsupported,
        Action::Upgrade,
        "`upgrade`: the hook does not support a required action; implement it.",
    );
    let report = check().without(Action::Upgrade).run().await;
    assert!(!report.to_string().contains("upgrade`"), "{report}");
}

#[tokio::test]
async fn remarks_are_no_faults() {
    let report = report_on(Wrong::RelativeUrl).await;
    assert!(
        report.passed && report.to_string().contains("· `create`: `front_end_url` does not begin with"),
        "{report}"
    );
    let report = report_on(Wrong::NeedsTwoAttempts).await;
    let said = "· `create`: the hook took 2 attempts; the error before the last attempt was: not yet.";
    assert!(report.passed && report.to_string().contains(said), "{report}");
}

#[tokio::test]
async fn a_probe_that_fails_is_not_the_hook_s_fault_and_is_told() {
    let check = Check::new(LogHook).without(Action::SignOn).count(|_| async { Ok("many".parse::<usize>()?) });
    let report = check.run().await;
    only(
        &report,
        FindingKind::ProbeFails,
        first(&report).1,
        "`payment`: the test's own probe failed after this call: invalid digit found in string; fix the probe.",
    );
}

#[tokio::test]
async fn a_test_may_be_a_task_of_its_own() {
    tokio::spawn(testing::check(Hook::new(Wrong::Nothing))).await.unwrap().assert_ok();
}

#[tokio::test]
async fn what_is_refused_only_while_frozen_is_asked_again_elsewhere() {
    let report = report_on(Wrong::NoUpgradeWhileFrozen).await;
    assert!(
        report.to_string().contains("· `upgrade (while frozen)`: the hook refused the call (thaw it first)"),
        "{report}"
    );
    let hook = Hook::new(Wrong::NoUpgradeWhileFrozen);
    let report = check_of(&hook).requires(Action::Upgrade).run().await;
    let (kind, action, _) = first(&report);
    assert_eq!(
        (kind, action, report.faults().count()),
        (FindingKind::Refuses, Action::Upgrade, 1),
        "{report}"
    );
}

#[tokio::test]
async fn a_hook_that_only_answers_pending_was_not_tested() {
    for wrong in [Wrong::Pending, Wrong::PendingRenewals] {
        let report = report_on(wrong).await;
        let (kind, _, sentence) = first(&report);
        assert_eq!((kind, report.passed), (FindingKind::Pending, false), "{report}");
        assert!(
            sentence.contains(
                "the call is pending (waits for sales), so neither it nor the calls after it were tested"
            ),
            "{report}"
        );
    }
}

#[tokio::test]
async fn a_hook_whose_creates_a_person_completes_is_tested_to_the_end() {
    let hook = Hook::new(Wrong::Pending);
    let report = check_of(&hook).pending(Action::Create).run().await;
    assert_eq!(report.not_run, [Part::Restarts], "{report}");
    report.assert_ok();
    // The other faults of such a hook are found.
    let report = check_of(&Hook::new(Wrong::PendingAndRefusesRenewals)).pending(Action::Create).run().await;
    assert_eq!((first(&report).0, first(&report).1), (FindingKind::Refuses, Action::Renew), "{report}");
}

#[tokio::test]
async fn a_hook_that_keeps_answers_in_memory_is_found_by_a_restart() {
    let hook = Hook::new(Wrong::ForgetsAnswers);
    let again = hook.clone();
    let restart = move || {
        again.with(|world| world.answers.clear());
        let hook = again.clone();
        async move { Ok(hook) }
    };
    let report = check_of(&hook).restart(restart).run().await;
    let (kind, action, sentence) = first(&report);
    assert_eq!((kind, action), (FindingKind::AnotherId, Action::Create), "{report}");
    assert!(
        sentence.contains("called again after its restart, the hook answered the `instance_id`")
            && sentence.ends_with("because memory does not survive a restart."),
        "{sentence}"
    );

    let hook = Hook::new(Wrong::Nothing);
    let same = hook.clone();
    let report = check_of(&hook).restart(move || std::future::ready(Ok(same.clone()))).run().await;
    assert!(report.passed && report.not_run.is_empty(), "{report}");
    let broken = || std::future::ready(Err::<Hook, _>(HookError::retry("no such service")));
    let report = check_of(&Hook::new(Wrong::Nothing)).restart(broken).run().await;
    assert_eq!(first(&report).0, FindingKind::RestartFails, "{report}");
    let report = check_of(&Hook::new(Wrong::Nothing)).starts_for_every_call().run().await;
    assert!(report.passed && report.not_run.is_empty(), "{report}");
}

#[tokio::test]
async fn a_report_is_json_too() {
    let report = report_on(Wrong::NewPassword).await;
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["passed"], false);
    assert_eq!(json["findings"][1]["kind"], "another-answer");
    assert_eq!(json["findings"][1]["action"], "create");
    assert_eq!(json["sections"][0]["title"], "a full life cycle, every call twice");
}

#[tokio::test]
#[should_panic(expected = "the hook answered a different `app.password`")]
async fn an_assertion_says_what_was_found() {
    report_on(Wrong::NewPassword).await.assert_ok();
}
