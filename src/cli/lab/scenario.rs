//! Parts that `demo` and `replay` share: reading instance states from the store, and printing progress.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output::{Output, shown};
use crate::lab::scenario::{Answered, Observer, Report, Seen, Sent, States, StepReport};
use crate::store::Reader;
use spid_hook::instance::State;

/// States of a scenario's instances, read from the store.
pub(crate) struct Kept<'a>(pub(crate) &'a Reader);

impl States for Kept<'_> {
    fn state(&self, name: &str) -> Option<Seen> {
        let rows = self.0.instances_named(name).ok()?;
        // The names of accounts are independent. Of several instances with this name, the running scenario has changed
        // its own last.
        let instance = rows.into_iter().max_by_key(|row| (row.instance.updated_at, row.number))?.instance;
        Some(Seen {
            id: instance.id,
            state: instance.state,
            expires_on: instance.expires_on,
            sku: instance.sku,
            items: instance.items,
        })
    }

    fn held(&self) -> u64 {
        self.0.totals().map_or(0, |totals| totals.held)
    }
}

/// Prints every step, request, answer and state as it happens.
pub(crate) struct Narrator<'a> {
    output: &'a mut Output,
    /// Maximum number of requests of a step that are printed; the others are only counted.
    most: u32,
    left_out: u32,
}

impl<'a> Narrator<'a> {
    pub(crate) fn new(output: &'a mut Output) -> Narrator<'a> {
        Narrator { output, most: 2, left_out: 0 }
    }

    fn say(&mut self, line: &str) {
        // A closed stdout must not end the scenario that is running.
        let _ = self.output.line(line);
    }
}

impl Observer for Narrator<'_> {
    fn step_started(&mut self, name: &str, action: &str) {
        self.left_out = 0;
        self.say(&format!("\n* {} ({})", shown(name), shown(action)));
    }

    fn sent(&mut self, request: &Sent) {
        if request.delivery > self.most {
            self.left_out += 1;
            return;
        }
        self.say(&format!("  -> {} {}", request.method, shown(&request.target)));
        if !request.body.is_empty() {
            self.say(&format!("     {}", shown(&request.body)));
        }
    }

    fn answered(&mut self, answer: &Answered) {
        if answer.delivery > self.most {
            return;
        }
        let location = answer.location.as_deref().map(|url| format!(" {}", shown(url))).unwrap_or_default();
        self.say(&format!("  <- {}{location} {}", answer.status, shown(briefly(answer.body.trim()))));
    }

    fn looked(&mut self, name: &str, seen: Option<&Seen>) {
        if self.left_out > 0 {
            self.say(&format!("     … and {} similar ones", self.left_out));
        }
        match seen {
            Some(seen) => self.say(&format!("     instance {}: {}", shown(name), described(seen))),
            None => self.say(&format!("     there is no instance {}", shown(name))),
        }
    }

    fn step_ended(&mut self, step: &StepReport) {
        for failure in &step.failures {
            self.say(&format!("  !! {failure}"));
        }
        for what in &step.not_checked {
            self.say(&format!("     {what}: not checked, because no database was given (--db or --config)"));
        }
    }
}

fn described(seen: &Seen) -> String {
    let mut text = match seen.state {
        State::Frozen => "frozen (data kept, access blocked)".to_owned(),
        state => state.to_string(),
    };
    if let Some(sku) = &seen.sku {
        text.push_str(&format!(", SKU {}", shown(sku)));
    }
    for (name, value) in &seen.items {
        text.push_str(&format!(", {}={}", shown(name), shown(value)));
    }
    if let Some(expires_on) = seen.expires_on {
        text.push_str(&format!(", expires {expires_on}"));
    }
    text
}

/// Maximum length of a printed page, in characters. Only a buyer sees a whole page.
const PAGE_MAX_COUNT: usize = 200;

/// Shortens an answer for printing: JSON for a marketplace stays whole, anything else is cut.
pub(crate) fn briefly(body: &str) -> &str {
    let end = body.char_indices().nth(PAGE_MAX_COUNT).map(|(end, _)| end);
    end.filter(|_| !body.starts_with('{')).and_then(|end| body.get(..end)).unwrap_or(body)
}

/// Minimum number of requests of a run for which a progress bar is shown.
const LONG_RUN: u64 = 200;

/// Progress bar on stderr for long runs; drawn only on a terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(requests: u64) -> Progress {
        let bar = ProgressBar::new(requests);
        // A short run needs no bar, and a log file must not contain one.
        if requests < LONG_RUN || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress(bar)
    }
}

impl Observer for Progress {
    fn answered(&mut self, _: &Answered) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Summary of a scenario's result, in one line.
pub(crate) fn summary(report: &Report) -> String {
    let requests: u64 = report.steps.iter().map(|step| step.requests).sum();
    let met = report.steps.iter().filter(|step| step.passed).count();
    let all = report.steps.len() + report.not_run.len();
    let verdict = if report.passed { "ok" } else { "FAILED" };
    format!("{verdict}: {} — {met} of {all} steps as expected, {requests} requests", report.title)
}
