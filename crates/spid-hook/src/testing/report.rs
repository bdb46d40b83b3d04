//! Report of the test, as data: the texts are in [`english`].
//!
//! A finding is a kind and the values that its sentence shows. The same finding about the same action is reported
//! once, with a count.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::attempt::Cut;
use super::english;
use crate::callback::Action;

/// Result of the test of a hook.
///
/// ```
/// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook;
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
/// #     async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let check = spid_hook::testing::Check::new(MyHook).without(spid_hook::Action::SignOn);
/// let report = check.run().await;
/// println!("{report}");
/// assert!(report.passed);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[must_use = "a report has no effect unless it is checked: call `assert_ok`"]
pub struct Report {
    /// True if there is no fault.
    pub passed: bool,
    /// The seed of the run; [`Check::seed`](super::Check::seed) repeats its order of events.
    pub seed: u64,
    /// Number of attempts made.
    pub calls: u32,
    /// Parts of the test that ran, in order.
    pub sections: Vec<Section>,
    /// Parts that did not run, because they could not find anything more.
    pub not_run: Vec<Part>,
    /// Findings, in the order in which they were seen.
    pub findings: Vec<Finding>,
}

crate::words! {
    /// A part of the test, with its title. The parts run in this order.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum Part {
        /// One instance from the payment to the release; every call is sent twice.
        LifeCycle = "a full life cycle, every call twice",
        /// A trial that is upgraded while frozen and released while in use.
        Trial = "a trial, upgraded while frozen, released while in use",
        /// Releases of instances that are incomplete, released, or never created.
        Releases = "releases of instances that are incomplete, released, or never created",
        /// Several orders at once.
        Orders = "several orders at once",
        /// One call several times at once.
        Concurrent = "one call several times at once",
        /// Attempts that are cut short.
        Cuts = "attempts cut short, then tried again",
        /// The same calls after a restart of the hook.
        Restarts = "the same calls again after a restart of the hook",
    }
}

/// Result of one part of the test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Section {
    /// The part.
    #[serde(rename = "title")]
    pub part: Part,
    /// Number of attempts in this part.
    pub calls: u32,
    /// Number of faults seen in this part, including those that an earlier part reported.
    pub faults: u32,
}

crate::words! {
    /// Circumstance in which the test calls an action, if it is not the usual one.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(super) enum Circumstance {
        #[default]
        Usual = "usual",
        /// A release of an instance whose create is pending.
        PendingCreate = "of a pending create",
        /// A renewal of a frozen instance.
        Thaws = "thaws",
        /// The second expire of one instance.
        Again = "again",
        /// The instance is a trial.
        Trial = "trial",
        Frozen = "while frozen",
        InUse = "while in use",
        NeverCreated = "of an instance that was never created",
        /// The marketplace does not receive the answer of this call.
        AnswerLost = "its answer is lost",
        /// The marketplace did not receive the answer of the create.
        CreateAnswerLost = "of a create whose answer was lost",
        Released = "of a released instance",
        /// Several orders at once.
        AtOnce = "several orders at once",
    }
}

/// A step of the test: an action and its circumstance. `Display` is its name in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub(super) action: Action,
    pub(super) circumstance: Circumstance,
}

impl Step {
    pub(super) const fn new(action: Action, circumstance: Circumstance) -> Step {
        Step { action, circumstance }
    }

    pub(super) const fn usual(action: Action) -> Step {
        Step::new(action, Circumstance::Usual)
    }
}

/// History before an attempt with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// No earlier attempt.
    Nothing,
    /// An answer that was lost.
    Answer,
    /// An attempt that was cut short.
    Cut(Cut),
    /// Several attempts at once.
    AtOnce,
    /// No earlier attempt, but several at the same time as this one.
    Among,
    /// An answer before the hook was restarted.
    Restart,
}

/// Value that the sentence of a finding shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// Number of things that exist.
    Things(usize),
    /// A probe that did not answer within this time.
    ProbeTimeout(Duration),
}

/// Values of a finding, by their names in the sentence.
pub(super) type Values = Vec<(&'static str, Value)>;

/// A fault, or a remark, about the hook.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Kind of the finding.
    pub kind: FindingKind,
    /// True for a breach of the contract, false for a remark.
    pub fault: bool,
    /// Action that was called.
    pub action: Action,
    /// The part of the test that saw it first.
    pub part: Part,
    /// Number of times it was seen.
    pub times: u32,
    pub(super) step: Step,
    pub(super) after: After,
    /// True if a hook must support the action.
    pub(super) required: bool,
    pub(super) values: Values,
}

impl Finding {
    /// Returns one sentence: the step, the fault, and the remedy.
    pub fn sentence(&self) -> String {
        english::sentence(self)
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown {
            kind: FindingKind,
            fault: bool,
            action: Action,
            section: Part,
            sentence: String,
            times: u32,
        }
        let Finding { kind, fault, action, part, times, .. } = *self;
        Shown { kind, fault, action, section: part, sentence: self.sentence(), times }.serialize(serializer)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Attempts with one key gave different ids.
    AnotherId,
    /// Attempts with one key gave answers that differ otherwise.
    AnotherAnswer,
    /// The answer holds an id that no instance can have.
    BadId,
    /// Two orders got one id.
    SharedId,
    /// No attempt succeeded.
    Fails,
    /// A call that succeeded fails when it is repeated.
    FailsAgain,
    /// After an attempt that was cut short, no other attempt succeeds.
    NotResumed,
    /// The hook refuses a call of the test.
    Refuses,
    /// A call that succeeded is refused when it is repeated.
    RefusesAgain,
    /// The hook does not support the action.
    Unsupported,
    /// The hook finishes later, so the call and those after it could not be tested.
    Pending,
    /// A call that succeeded is pending when it is repeated.
    PendingAgain,
    /// The hook panicked.
    Panics,
    /// The hook did not answer by the deadline.
    TooLong,
    /// The hook blocks its thread and cannot be given up at the deadline.
    Blocks,
    /// The call succeeded, but not at the first attempt.
    Flaky,
    /// More exists than was bought.
    Doubled,
    /// Nothing exists although the hook reported success.
    NothingMade,
    /// Something exists that should be gone.
    LeftBehind,
    /// Something is gone that should be kept.
    DataLost,
    /// A repeat changed what exists.
    Changed,
    /// The author's own probe failed.
    ProbeFails,
    /// The author's own restart of the hook failed.
    RestartFails,
    /// An address in the answer is not a URL.
    NotAUrl,
    /// An attempt could not be made. This is a fault of the machine, not of the hook.
    NotTested,
}

impl Report {
    /// Panics with the whole report if there is a fault. Use it at the end of a test.
    ///
    /// # Panics
    /// [`Report::passed`] is false.
    #[track_caller]
    #[expect(clippy::panic, reason = "it is an assertion, and runs in tests only")]
    pub fn assert_ok(self) {
        if !self.passed {
            panic!("the hook did not pass the test\n{self}");
        }
    }

    /// Returns the faults.
    pub fn faults(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.fault)
    }

    pub(super) fn empty(seed: u64) -> Report {
        Report {
            passed: true,
            seed,
            calls: 0,
            sections: Vec::new(),
            not_run: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, part: Part) {
        self.sections.push(Section { part, calls: 0, faults: 0 });
    }

    pub(super) fn count(&mut self, calls: u32) {
        self.calls += calls;
        if let Some(section) = self.sections.last_mut() {
            section.calls += calls;
        }
    }

    /// Records a finding, or counts one more sighting of a known one.
    pub(super) fn find(&mut self, finding: Finding) {
        if finding.fault {
            self.passed = false;
            if let Some(section) = self.sections.last_mut() {
                section.faults += 1;
            }
        }
        // The values are not compared, because they may hold ids that differ in every run.
        let known = self
            .findings
            .iter_mut()
            .find(|one| (one.kind, one.action, one.fault) == (finding.kind, finding.action, finding.fault));
        match known {
            Some(known) => known.times += 1,
            None => self.findings.push(finding),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        english::report(self, f)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        english::finding(self, f)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        english::step(*self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(fault: bool, kind: FindingKind, action: Action, part: Part, error: &str) -> Finding {
        Finding {
            kind,
            fault,
            action,
            part,
            times: 1,
            step: Step::usual(action),
            after: After::Answer,
            required: true,
            values: vec![("error", Value::Text(error.to_owned())), ("attempts", Value::Text("2".to_owned()))],
        }
    }

    #[test]
    fn the_same_finding_is_told_once() {
        let mut report = Report::empty(7);
        for part in [Part::Trial, Part::Orders, Part::Cuts] {
            report.begin(part);
            report.count(2);
            if part != Part::Cuts {
                report.find(finding(
                    true,
                    FindingKind::FailsAgain,
                    Action::Create,
                    part,
                    &format!("{part:?}"),
                ));
            }
        }
        report.find(finding(false, FindingKind::Flaky, Action::Renew, Part::Cuts, "{error}"));
        assert!(!report.passed);
        let [trial, orders, cuts] = [Part::Trial, Part::Orders, Part::Cuts];
        assert_eq!(
            report.to_string(),
            format!(
                "✗ {trial} (2 calls)\n    ✗ `create`: called again with the same idempotency key, the hook failed: \
                 Trial; store the answer under the idempotency key before returning it, and return the stored answer \
                 to a repeat. (seen 2 times)\n✗ {orders} (2 calls)\n    ✗ the same faults as above\n\
                 ✓ {cuts} (2 calls)\n    · `renew`: the hook took 2 attempts; the error before the last attempt was: \
                 {{error}}.\nFAILED: 1 fault in 6 calls (seed 7)"
            )
        );
    }

    #[test]
    #[should_panic(expected = "the hook failed: no room;")]
    fn an_assertion_shows_what_was_found() {
        let mut report = Report::empty(1);
        report.begin(Part::Cuts);
        report.find(finding(true, FindingKind::FailsAgain, Action::Create, Part::Cuts, "no room"));
        report.assert_ok();
    }
}
