//! Report of the test, for people and for programs.
//!
//! A finding is one sentence: the fault, the step, and the remedy. The same finding about the same action is
//! reported once, with a count.

use std::fmt;

use serde::Serialize;

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
/// let report = spid_hook::testing::check(MyHook).await;
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
    pub not_run: Vec<&'static str>,
    /// Findings, in the order in which they were seen.
    pub findings: Vec<Finding>,
}

/// A part of the test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Section {
    /// Description of the part.
    pub title: &'static str,
    /// Number of attempts made in it.
    pub calls: u32,
    /// Number of faults seen in it, including those that an earlier part reported.
    pub faults: u32,
}

/// A fault, or a remark, about the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Kind of the finding.
    pub kind: FindingKind,
    /// True for a breach of the contract, false for a remark.
    pub fault: bool,
    /// Action that was called.
    pub action: Action,
    /// The part of the test that saw it first.
    pub section: &'static str,
    /// The fault, the step, and the remedy.
    pub sentence: String,
    /// Number of times it was seen.
    pub times: u32,
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
    /// The hook finishes later, so the rest could not be tested.
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
            panic!("the hook is not safe to run twice\n{self}");
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

    pub(super) fn begin(&mut self, title: &'static str) {
        self.sections.push(Section { title, calls: 0, faults: 0 });
    }

    pub(super) fn count(&mut self, calls: u32) {
        self.calls += calls;
        if let Some(section) = self.sections.last_mut() {
            section.calls += calls;
        }
    }

    /// Records a finding, or counts one more sighting of a known one.
    pub(super) fn find(&mut self, fault: bool, kind: FindingKind, action: Action, sentence: String) {
        let section = self.sections.last_mut();
        let title = section.as_ref().map_or("", |section| section.title);
        if fault {
            self.passed = false;
            if let Some(section) = section {
                section.faults += 1;
            }
        }
        // The sentence is not compared, because it may name ids that differ in every run.
        let known = |one: &&mut Finding| one.kind == kind && one.action == action && one.fault == fault;
        match self.findings.iter_mut().find(known) {
            Some(finding) => finding.times += 1,
            None => {
                self.findings.push(Finding { kind, fault, action, section: title, sentence, times: 1 });
            }
        }
    }

    fn line(&self) -> String {
        let faults = self.faults().count();
        let (calls, seed) = (self.calls, self.seed);
        match faults {
            0 => format!("ok: no fault in {calls} calls (seed {seed})"),
            1 => format!("FAILED: 1 fault in {calls} calls (seed {seed})"),
            _ => format!("FAILED: {faults} faults in {calls} calls (seed {seed})"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.sections {
            let tick = if section.faults == 0 { '✓' } else { '✗' };
            writeln!(f, "{tick} {} ({} calls)", section.title, section.calls)?;
            for finding in self.findings.iter().filter(|finding| finding.section == section.title) {
                writeln!(f, "    {finding}")?;
            }
            let first_seen = |one: &Finding| one.fault && one.section == section.title;
            if section.faults > 0 && !self.findings.iter().any(first_seen) {
                writeln!(f, "    ✗ the same faults as above")?;
            }
        }
        for title in &self.not_run {
            writeln!(f, "- {title}: not run")?;
        }
        f.write_str(&self.line())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.fault { '✗' } else { '·' }, self.sentence)?;
        if self.times > 1 && self.fault {
            write!(f, " (seen {} times)", self.times)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_finding_is_told_once() {
        let mut report = Report::empty(7);
        for title in ["one", "two", "three"] {
            report.begin(title);
            report.count(2);
            if title != "three" {
                report.find(true, FindingKind::Fails, Action::Create, format!("it fails in {title}."));
            }
        }
        report.find(false, FindingKind::Flaky, Action::Renew, "a remark.".to_owned());
        assert!(!report.passed);
        assert_eq!(
            report.to_string(),
            "✗ one (2 calls)\n    ✗ it fails in one. (seen 2 times)\n✗ two (2 calls)\n    ✗ the same faults as above\n\
             ✓ three (2 calls)\n    · a remark.\nFAILED: 1 fault in 6 calls (seed 7)"
        );
    }

    #[test]
    #[should_panic(expected = "it fails.")]
    fn an_assertion_shows_what_was_found() {
        let mut report = Report::empty(1);
        report.begin("one");
        report.find(true, FindingKind::Fails, Action::Create, "it fails.".to_owned());
        report.assert_ok();
    }
}
