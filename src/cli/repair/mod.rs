//! Admin operations: changes that a person makes by hand. Each needs a reason, and is recorded in the audit log.
//!
//! The commands open the database themselves, so they work with and without a running daemon. A running daemon starts
//! jobs that became due within a few seconds.

pub(crate) mod backup;
pub(crate) mod held;
pub(crate) mod instances;
pub(crate) mod jobs;
pub(crate) mod prune;
pub(crate) mod resend;

use std::io::Read as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, StoreArguments, not_there};
use crate::config::{Environment, ProcessEnvironment};
use crate::store::{AdminOperation, AuditNote, OperationError, OperationReport, Operations};
use spid_hook::callback::Answer;
use spid_hook::time::Clock;

/// Arguments of every admin operation.
#[derive(Args)]
pub(crate) struct OperationArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// Reason, for the audit log.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Name of the person who acts; the default is your user name, under sudo the name of the user who called it.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl OperationArguments {
    /// Runs an operation and prints its result.
    fn run(&self, operation: &AdminOperation, output: &mut Output) -> Done {
        // The reader finds the instance; `begin` then opens the database for writing.
        let row = match operation.instance() {
            Some(named) => Some(self.store.reader()?.find(&named.name, named.account.as_deref())?),
            None => None,
        };
        let (mut operations, act) = self.begin()?;
        let report = operations.run(operation, row.as_ref(), &act)?;
        print_report(report, &json!({}), self.json, output)
    }

    /// Runs several operations, and prints a line for each or all results as JSON.
    fn run_all(
        &self,
        output: &mut Output,
        run: impl FnOnce(&mut Reports<'_>, &mut Operations, &AuditNote) -> Done,
    ) -> Done {
        let (mut operations, act) = self.begin()?;
        let mut reports = Reports { json: self.json, output, reports: Vec::new() };
        let done = run(&mut reports, &mut operations, &act);
        let Reports { output, reports, .. } = reports;
        // After a failure the earlier operations stay done, and a program must learn of them.
        if self.json && (done.is_ok() || !reports.is_empty()) {
            output.json(&reports)?;
        }
        done
    }

    pub(crate) fn begin(&self) -> Result<(Operations, AuditNote), Failure> {
        let act = self.note()?;
        Ok((operations(&self.store)?, act))
    }

    fn note(&self) -> Result<AuditNote, Failure> {
        audit_note(self.who.as_deref(), &self.why)
    }
}

/// Prints the result of an operation: a line, or JSON with values of its own.
pub(crate) fn print_report(
    report: OperationReport,
    details: &impl Serialize,
    json: bool,
    output: &mut Output,
) -> Done {
    #[derive(Serialize)]
    struct Detailed<'a, T> {
        #[serde(flatten)]
        report: OperationReport,
        #[serde(flatten)]
        details: &'a T,
    }
    if json { output.json(&Detailed { report, details }) } else { output.line(&shown(&report.message)) }
}

/// Results of several operations.
struct Reports<'o> {
    json: bool,
    output: &'o mut Output,
    reports: Vec<OperationReport>,
}

impl Reports<'_> {
    /// Prints a result, or keeps it for the JSON at the end.
    fn add(&mut self, report: OperationReport) -> Done {
        if self.json {
            self.reports.push(report);
            return Ok(());
        }
        self.line(&report.message)
    }

    /// Prints the reason of an operation that failed, and keeps it for the JSON.
    fn add_failed(&mut self, report: OperationReport) {
        self.output.print_error(&shown(&report.message));
        self.reports.push(report);
    }

    /// Prints a line that JSON does not need.
    fn line(&mut self, line: &str) -> Done {
        if self.json { Ok(()) } else { self.output.line(&shown(line)) }
    }
}

/// Audit information of an operation: the acting person and the reason.
pub(crate) fn audit_note(who: Option<&str>, why: &str) -> Result<AuditNote, Failure> {
    if why.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "`--why` is empty: give a reason for the audit log"));
    }
    // Under sudo the user who called sudo is the person who acts, not root.
    let who = match who {
        Some(who) => who.to_owned(),
        None => ["SUDO_USER", "USER", "LOGNAME"]
            .iter()
            .find_map(|name| ProcessEnvironment.get(name))
            .unwrap_or_else(|| "unknown".to_owned()),
    };
    Ok(AuditNote { who, why: why.to_owned() })
}

/// Opens the database for admin operations.
pub(crate) fn operations(store: &StoreArguments) -> Result<Operations, Failure> {
    let (path, options) = store.location()?;
    Operations::open(&path, &options, Clock::System).map_err(not_there)
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Failure {
        match error {
            OperationError::Store(error) => error.into(),
            OperationError::NotFound(text) => Failure::new(Exit::NoInput, text),
            OperationError::Impossible(text) => Failure::new(Exit::Data, text),
            OperationError::Moved(..) => Failure::new(Exit::Data, error.to_string()),
        }
    }
}

/// Reads the answer of finished work; without a file it is empty.
fn answer(path: Option<&Path>) -> Result<Box<Answer>, Failure> {
    let Some(path) = path else { return Ok(Box::default()) };
    let text = read_input(path)?;
    spid_hook::read_answer(&text)
        .map(Box::new)
        .map_err(|error| Failure::new(Exit::Data, format!("{}: {error}", path.display())))
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::new(Exit::NoInput, format!("{}: {error}", path.display()));
    if path != Path::new("-") {
        return std::fs::read(path).map_err(unreadable);
    }
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}
