//! The texts of the report, in English.

use std::fmt;

use super::attempt::{Cut, End};
use super::report::{After, Circumstance, Finding, FindingKind, Part, Report, Step, Value};
use crate::AttemptResult;
use crate::callback::Action;

pub(super) fn report(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for section in &report.sections {
        let tick = if section.faults == 0 { '✓' } else { '✗' };
        writeln!(f, "{tick} {} ({} calls)", section.part, section.calls)?;
        let mut has_fault = false;
        for finding in report.findings.iter().filter(|finding| finding.part == section.part) {
            has_fault |= finding.fault;
            writeln!(f, "    {finding}")?;
        }
        if section.faults > 0 && !has_fault {
            writeln!(f, "    ✗ the same faults as above")?;
        }
    }
    for part in &report.not_run {
        match part {
            Part::Restarts => {
                writeln!(
                    f,
                    "- {part}: not tried; name a restart with `Check::restart`, or `--restart` for a service"
                )?;
            }
            part => writeln!(f, "- {part}: not run")?,
        }
    }
    let (calls, seed) = (report.calls, report.seed);
    match report.faults().count() {
        0 => write!(f, "ok: no fault in {calls} calls (seed {seed})"),
        1 => write!(f, "FAILED: 1 fault in {calls} calls (seed {seed})"),
        faults => write!(f, "FAILED: {faults} faults in {calls} calls (seed {seed})"),
    }
}

pub(super) fn finding(finding: &Finding, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} {}", if finding.fault { '✗' } else { '·' }, finding.sentence())?;
    if finding.times > 1 && finding.fault {
        write!(f, " (seen {} times)", finding.times)?;
    }
    Ok(())
}

pub(super) fn step(step: Step, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match step.circumstance {
        Circumstance::Usual => write!(f, "{}", step.action),
        circumstance => write!(f, "{} ({circumstance})", step.action),
    }
}

/// Returns the sentence of a finding: its template, with the values in place of their names.
pub(super) fn sentence(finding: &Finding) -> String {
    let mut text = format!("`{}`: ", finding.step);
    let mut rest = template(finding);
    // Each name is replaced once, from left to right: a value that looks like a name stays as it is.
    while let Some((before, (name, after))) =
        rest.split_once('{').and_then(|(before, behind)| Some((before, behind.split_once('}')?)))
    {
        text.push_str(before);
        text.push_str(&value(finding, name));
        rest = after;
    }
    text + rest + "."
}

fn value(finding: &Finding, name: &str) -> String {
    match name {
        "hook" => hook(finding.after),
        "remedy" => remedy(finding).to_owned(),
        _ => match finding.values.iter().find(|(known, _)| *known == name) {
            Some((_, Value::Text(text))) => text.clone(),
            Some((_, Value::Things(0))) => "nothing".to_owned(),
            Some((_, Value::Things(1))) => "1 thing".to_owned(),
            Some((_, Value::Things(count))) => format!("{count} things"),
            Some((_, Value::ProbeTimeout(within))) => format!("the probe did not answer within {within:?}"),
            None => String::new(),
        },
    }
}

/// Returns the beginning of a sentence about the hook at that attempt.
fn hook(after: After) -> String {
    match after {
        After::Nothing => "the hook".to_owned(),
        After::Answer => "called again with the same idempotency key, the hook".to_owned(),
        After::Cut(at) => format!("called again after an attempt was cut short {}, the hook", cut(at)),
        After::AtOnce => "called again after several attempts at once, the hook".to_owned(),
        After::Among => "called several times at once with one idempotency key, the hook".to_owned(),
        After::Restart => "called again after its restart, the hook".to_owned(),
    }
}

fn cut(cut: Cut) -> String {
    match cut {
        Cut::AtWait(1) => "where it waits for the first time".to_owned(),
        Cut::AtWait(2) => "where it waits for the second time".to_owned(),
        Cut::AtWait(3) => "where it waits for the third time".to_owned(),
        Cut::AtWait(n) => format!("where it waits for the {n}th time"),
        Cut::After(after) => format!("after {:.1} ms", after.as_secs_f64() * 1000.0),
    }
}

fn remedy(finding: &Finding) -> &'static str {
    match (finding.after, finding.kind) {
        (After::Nothing, FindingKind::Doubled) => "check what exists before you create anything",
        (After::Nothing, FindingKind::Fails) if finding.required => {
            "fix that first, or set the values the hook needs in the test"
        }
        (After::Nothing, FindingKind::Fails) => {
            "refuse an action that the hook does not support, because a retry continues for most of a day"
        }
        (After::Nothing, _) => "return a retry error instead",
        (After::Answer, _) => {
            "store the answer under the idempotency key before returning it, and return the stored answer to a repeat"
        }
        (After::Cut(_), _) => {
            "the next attempt must find the remains of an earlier one and continue from there"
        }
        (After::Restart, _) => {
            "store the answer in a file or a database before returning it, because memory does not survive a restart"
        }
        (After::AtOnce | After::Among, _) => {
            "let one attempt win, with a unique index or a lock on the idempotency key, and return its answer to the others"
        }
    }
}

/// Returns the sentence of a finding about a call that the hook does not carry out.
const fn refusal(finding: &Finding) -> &'static str {
    match (finding.fault, finding.action, finding.kind) {
        (true, Action::SignOn, _) => {
            "the hook refused the call, but the buyers of a listing sign on; answer a `redirect`, or leave the action out of the test if your listing has no sign-on (`Check::without`, `--without sign-on`)"
        }
        (true, _, FindingKind::Unsupported) => "the hook does not support a required action; implement it",
        (true, ..) => {
            "the hook refused a required call ({reason}), so a paid order is lost; if the hook needs another product, SKU or parameter, set it in the test"
        }
        (false, _, FindingKind::Unsupported) => {
            "the hook does not support the action; this is no fault if the marketplace never sends it"
        }
        (false, ..) => {
            "the hook refused the call ({reason}); this is no fault if the marketplace never sends it"
        }
    }
}

/// Returns the sentence of a finding, with names in braces for its values.
const fn template(finding: &Finding) -> &'static str {
    match finding.kind {
        FindingKind::AnotherId => {
            "{hook} answered the `instance_id` `{now}`, and `{before}` before; {remedy}"
        }
        FindingKind::AnotherAnswer => "{hook} answered a different {members}; {remedy}",
        FindingKind::BadId => {
            "the `instance_id` of the answer is invalid: {fault}; answer an id unique to this instance, or none to keep the marketplace's id"
        }
        FindingKind::SharedId => {
            "the orders {other} and {order} both got the `instance_id` `{id}`; give each order its own, from `order_biz_id` or a counter in a transaction"
        }
        FindingKind::Fails => "all {attempts} attempts failed: {error}; {remedy}",
        FindingKind::FailsAgain => "{hook} failed: {error}; {remedy}",
        FindingKind::NotResumed => "{hook} fails at every further attempt: {error}; {remedy}",
        FindingKind::Refuses | FindingKind::Unsupported => refusal(finding),
        FindingKind::RefusesAgain => "{hook} refused ({reason}); {remedy}",
        FindingKind::Pending => {
            "the call is pending ({note}), so neither it nor the calls after it were tested; let the hook finish at once in the test, or say that a person completes the call (`Check::pending`, `--pending`): the test then goes on as if it were completed"
        }
        FindingKind::PendingAgain => {
            "{hook} answered pending ({note}) for work that was done before; {remedy}"
        }
        FindingKind::Panics => "{hook} panicked; {remedy}",
        FindingKind::TooLong => {
            "{hook} did not answer within {within}; do the long part in the background and answer `pending`, or raise the timeout"
        }
        FindingKind::Blocks => {
            "{hook} blocked its thread for more than {within}; use async calls, or move the blocking part into `tokio::task::spawn_blocking`"
        }
        FindingKind::Flaky => {
            "the hook took {attempts} attempts; the error before the last attempt was: {error}"
        }
        FindingKind::Doubled => "{hook} left {now} for one order, where {usual} should be; {remedy}",
        FindingKind::NothingMade => {
            "the create succeeded and nothing exists; create the instance before answering, or fix the test's `count` probe"
        }
        FindingKind::LeftBehind => {
            "the release left {now}; remove everything, including the remains of attempts that were cut short"
        }
        FindingKind::DataLost => match finding.after {
            After::Nothing => {
                "the call left {now}, and {before} existed before; only a release may remove anything"
            }
            _ => "{hook} left {now}, and {before} existed before; a repeat must change nothing",
        },
        FindingKind::Changed => {
            "{hook} left the instance `{now}`, which had been `{before}`; set values (\"9 seats\"), never add to them (\"4 more\")"
        }
        FindingKind::RestartFails => {
            "the restart that the test was given failed after this call: {error}; fix the restart"
        }
        FindingKind::ProbeFails => "the test's own probe failed after this call: {error}; fix the probe",
        FindingKind::NotAUrl => {
            "`{member}` does not begin with https:// or http://, so no browser can open it; answer the complete URL"
        }
        FindingKind::NotTested => {
            "an attempt was not made, because the system gave no thread for it: the test is incomplete; allow more threads, and run it again"
        }
    }
}

/// Describes the end of an attempt, without a secret of the answer.
pub(super) fn end(end: &End, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match end {
        End::Returned(AttemptResult::Done(answer)) => {
            write!(f, "done {}", answer.split().open.as_deref().unwrap_or("{}"))
        }
        End::Returned(AttemptResult::Retry { error, .. }) => write!(f, "retry: {error}"),
        End::Returned(AttemptResult::Misconfigured { error, .. }) => {
            write!(f, "retry, misconfigured: {error}")
        }
        End::Returned(AttemptResult::Refused { reason }) => write!(f, "refused: {reason}"),
        End::Returned(AttemptResult::Unsupported { reason }) => write!(f, "unsupported: {reason}"),
        End::Returned(AttemptResult::Pending { note }) => write!(f, "pending: {note}"),
        End::Panicked => f.write_str("panicked"),
        End::TooLong => f.write_str("no answer by the deadline"),
        End::Blocks => f.write_str("blocks its thread"),
        End::Cut => f.write_str("cut short by the test"),
        End::NotStarted => f.write_str("not made: no thread"),
    }
}
