//! Parts that `demo`, `replay`, `conformance` and `simulate` share: instance states from the store, progress, files.

use std::collections::BTreeMap;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure};
use crate::lab::scenario::{Answered, Observer, Report, Seen, Sent, States, StepReport};
use crate::net::Url;
use crate::store::{Reader, ViewError};
use spid_hook::instance::State;

/// Interval between two redraws of a progress bar.
const TICK: Duration = Duration::from_millis(200);

/// States of a scenario's instances, read from the store.
pub(crate) struct StoreStates<'a> {
    pub(crate) reader: &'a Reader,
    /// Account of all instances, if the user has named one.
    pub(crate) account: Option<String>,
    /// Accounts of the endpoints, by path.
    pub(crate) accounts: BTreeMap<String, String>,
}

impl States for StoreStates<'_> {
    fn state(&self, url: &Url, name: &str) -> Result<Option<Seen>, String> {
        let path = url.target().split('?').next().unwrap_or_default();
        // Each account can have an instance of this name, so another account's instance must not be taken for ours.
        let account = self.account.as_ref().or_else(|| self.accounts.get(path));
        match self.reader.find(name, account.map(String::as_str)) {
            Ok(row) => Ok(Some(row.instance.into())),
            Err(ViewError::NoInstance(_)) => Ok(None),
            Err(error @ ViewError::Several { .. }) => Err(format!("{error}; name one with --account")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn held(&self) -> u64 {
        self.reader.totals().map_or(0, |totals| totals.held)
    }
}

/// Completes at Ctrl-C, SIGTERM or SIGHUP; the caller then reports what it has so far.
pub(crate) async fn interrupted() {
    // A build server ends a command with SIGTERM, and a closed terminal with SIGHUP.
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<Signal> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    // Without a signal handler the future never completes, and the signal ends the process as usual.
    std::future::poll_fn(|context| {
        let received = signals.iter_mut().any(|signal| signal.poll_recv(context) == Poll::Ready(Some(())));
        if received { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Writes a file that the user asked for.
pub(crate) fn write_file(path: &Path, text: &str) -> Done {
    std::fs::write(path, text)
        .map_err(|error| Failure::new(Exit::Io, format!("{} cannot be written: {error}", path.display())))
}

/// Refuses an address that is not this machine, unless the user has allowed it: a mistyped address must not reach a
/// production system.
pub(crate) fn expect_this_machine(url: &Url, yes: bool, danger: &str, hint: &'static str) -> Done {
    if url.is_loopback() || yes {
        return Ok(());
    }
    let message = format!("{} is not this machine, {danger}", url.authority());
    Err(Failure::new(Exit::Usage, message).hint(hint))
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

/// Progress bar on stderr; drawn only on a terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(length: u64, template: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        // Keeps the bar moving while a request waits for its answer.
        bar.enable_steady_tick(TICK);
        Progress(bar)
    }

    /// Creates a bar that is not drawn.
    pub(crate) fn hidden() -> Progress {
        Progress(ProgressBar::hidden())
    }

    pub(crate) fn set_message(&self, message: &'static str) {
        self.0.set_message(message);
    }

    pub(crate) fn advance(&self) {
        self.0.inc(1);
    }
}

impl Observer for Progress {
    fn answered(&mut self, _: &Answered) {
        self.advance();
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
