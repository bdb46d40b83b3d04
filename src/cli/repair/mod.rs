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

use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, StoreArguments, not_there};
use crate::config::{Environment, ProcessEnvironment};
use crate::store::{Approved, AuditNote, OperationError, Operations};
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
}

impl OperationArguments {
    pub(crate) fn begin(&self) -> Result<(Operations, AuditNote), Failure> {
        let act = self.note()?;
        Ok((operations(&self.store)?, act))
    }

    fn note(&self) -> Result<AuditNote, Failure> {
        audit_note(self.who.as_deref(), &self.why)
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

fn say_approved(approved: &Approved, output: &mut Output) -> Done {
    match &approved.job {
        Some(job) => output.line(&format!("callback {}: job {job} is queued", approved.callback)),
        None => output.line(&format!("callback {}: done, there was nothing to run", approved.callback)),
    }
}

fn answer(path: &Path) -> Result<Answer, Failure> {
    let text = read_input(path)?;
    spid_hook::read_answer(&text)
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
