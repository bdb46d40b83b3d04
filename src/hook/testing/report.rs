//! What the test found, for people and for programs.
//!
//! A finding is one sentence: what was wrong, in which step, and what to do. The same finding about the
//! same action is told once, however often it was seen.

use std::fmt;

use serde::Serialize;

use crate::hook::callback::Action;

/// What the test found out about a hook.
///
/// ```
/// # use spid::hook::log::LogHook;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let report = spid::testing::check(LogHook).await;
/// println!("{report}");
/// assert!(report.passed);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[must_use = "a report that nobody reads finds nothing: call `assert_ok`"]
pub struct Report {
    /// Whether there is no fault.
    pub passed: bool,
    /// The seed the test drew from; [`Check::seed`](super::Check::seed) repeats the order of things.
    pub seed: u64,
    /// Attempts made.
    pub calls: u32,
    /// The parts of the test that were run, in order.
    pub sections: Vec<Section>,
    /// The parts that were not run, because nothing could be learnt from them any more.
    pub not_run: Vec<&'static str>,
    /// What was found, in the order it was seen.
    pub findings: Vec<Finding>,
}

/// One part of the test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Section {
    /// What it does.
    pub title: &'static str,
    /// Attempts made in it.
    pub calls: u32,
    /// Faults seen in it, also those that were told before.
    pub faults: u32,
}

/// Something to know about the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What kind of thing it is.
    pub kind: FindingKind,
    /// Whether it breaks the contract; if not, it is a remark.
    pub fault: bool,
    /// What was asked when it was seen.
    pub action: Action,
    /// The part of the test that saw it first.
    pub section: &'static str,
    /// What was wrong, in which step, and what to do.
    pub sentence: String,
    /// How often it was seen.
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
    /// An id no instance can have.
    BadId,
    /// Two orders got one id.
    SharedId,
    /// No attempt succeeded.
    Fails,
    /// What succeeded fails when it is asked again.
    FailsAgain,
    /// After an attempt that was cut short, no other succeeds.
    NotResumed,
    /// What the test asks is refused.
    Refuses,
    /// What succeeded is refused when it is asked again.
    RefusesAgain,
    /// The hook does not do the action.
    Unsupported,
    /// The hook finishes later, so the rest could not be tested.
    Pending,
    /// What succeeded is pending when it is asked again.
    PendingAgain,
    /// The hook panicked.
    Panics,
    /// The hook did not answer by the deadline.
    TooLong,
    /// The hook blocks its thread and cannot be given up at the deadline.
    Blocks,
    /// It worked, but not at the first attempt.
    Flaky,
    /// More exists than was bought.
    Doubled,
    /// Nothing exists though the hook said it did it.
    NothingMade,
    /// Something exists that should be gone.
    LeftBehind,
    /// Something is gone that should be kept.
    DataLost,
    /// What exists was changed by a repeat.
    Changed,
    /// The author's own probe failed.
    ProbeFails,
    /// An address in the answer is none.
    NotAUrl,
}

impl Report {
    /// Panics with the whole report if there is a fault: for the end of a test.
    ///
    /// # Panics
    /// When [`Report::passed`] is false.
    #[track_caller]
    #[expect(clippy::panic, reason = "it is an assertion, and runs in tests only")]
    pub fn assert_ok(self) {
        if !self.passed {
            panic!("the hook is not safe to run twice\n{self}");
        }
    }

    /// The faults.
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

    pub(super) fn find(&mut self, fault: bool, kind: FindingKind, action: Action, sentence: String) {
        let section = self.sections.last_mut();
        let title = section.as_ref().map_or("", |section| section.title);
        if fault {
            self.passed = false;
            if let Some(section) = section {
                section.faults += 1;
            }
        }
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
                writeln!(f, "    ✗ the same again")?;
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
            "✗ one (2 calls)\n    ✗ it fails in one. (seen 2 times)\n✗ two (2 calls)\n    ✗ the same again\n\
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
