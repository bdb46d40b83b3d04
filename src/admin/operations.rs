//! Admin operations of the listener: the operations of the command line, through the same code, each with the acting
//! person and the reason.
//!
//! An operation opens the database beside the daemon's own writer; SQLite's lock orders the two. Afterwards the
//! dispatcher is woken, so that due jobs do not wait for its next poll.

use super::api::{callback_number, job_id};
use super::{Admin, Fault};
use crate::observe::limits;
use crate::store::{
    AdminOperation, AuditNote, ChosenJob, InstanceRow, Instead, NamedInstance, OperationReport, Operations,
};
use spid_hook::callback::Answer;

/// Details that a client gives beside the target.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Account of the instance, if several accounts have an instance of that name.
    pub(super) account: Option<String>,
    /// Real meaning of a conflicting create.
    pub(super) instead: Option<String>,
    /// Answer that completes the work, as JSON.
    pub(super) answer: Option<String>,
}

/// Reads an operation from its path, like `jobs/ID/retry`, and the details.
pub(super) fn read_operation(path: &[&str], given: Given) -> Result<AdminOperation, Fault> {
    let Given { account, instead, answer } = given;
    // A detail that the operation ignores is an error, because the client expects an effect of it.
    let ignored = (account.is_some() && !matches!(path, ["instances", ..]))
        || (instead.is_some() && !matches!(path, ["held", _, "approve"]))
        || (answer.is_some() && !matches!(path, [.., "complete"]));
    let operation = match path {
        ["jobs", id, "retry"] => AdminOperation::Retry(chosen(id)?),
        ["jobs", id, "drop"] => AdminOperation::Drop(chosen(id)?),
        ["jobs", id, "complete"] => {
            AdminOperation::CompleteJob { job: job_id(id)?, answer: read_answer(answer.as_deref())? }
        }
        ["held", number, "approve"] => AdminOperation::Approve {
            callback: callback_number(number)?,
            instead: read_instead(instead.as_deref())?,
        },
        ["held", number, "reject"] => AdminOperation::Reject(callback_number(number)?),
        ["held", number, "settle"] => AdminOperation::Settle(callback_number(number)?),
        ["attention", number, "dismiss"] => AdminOperation::Dismiss(callback_number(number)?),
        ["instances", name, "complete"] => AdminOperation::Complete {
            instance: NamedInstance { name: (*name).to_owned(), account },
            answer: read_answer(answer.as_deref())?,
        },
        ["instances", name, "release"] => {
            AdminOperation::Release(NamedInstance { name: (*name).to_owned(), account })
        }
        _ => {
            return Err(Fault::new(
                404,
                "unknown operation; use jobs/ID/retry|drop|complete, held/N/approve|reject|settle, attention/N/dismiss or instances/ID/complete|release",
            ));
        }
    };
    if ignored {
        let text = "the operation ignores `account`, `as` or `answer`: remove the member";
        return Err(Fault::new(400, text));
    }
    Ok(operation)
}

/// Reads a job that may be in any state.
fn chosen(id: &str) -> Result<ChosenJob, Fault> {
    Ok(ChosenJob { id: job_id(id)?, state: None })
}

/// Reads the real meaning of a conflicting create.
fn read_instead(word: Option<&str>) -> Result<Option<Instead>, Fault> {
    let Some(word) = word.filter(|word| !word.is_empty()) else { return Ok(None) };
    match Instead::from_word(word) {
        Some(instead) => Ok(Some(instead)),
        None => Err(Fault::new(400, format!("`as` must be renew, upgrade or conversion, not `{word}`"))),
    }
}

/// Reads an answer; without one it is empty.
fn read_answer(text: Option<&str>) -> Result<Box<Answer>, Fault> {
    let Some(text) = text else { return Ok(Box::default()) };
    let answer = spid_hook::read_answer(text.as_bytes());
    answer.map(Box::new).map_err(|error| Fault::new(400, format!("the answer: {error}")))
}

/// Checks the acting person and the reason: both are required, and limited in length.
pub(super) fn signed(who: &str, why: &str) -> Result<AuditNote, Fault> {
    Ok(AuditNote { who: check_note("who", who)?, why: check_note("why", why)? })
}

fn check_note(name: &str, text: &str) -> Result<String, Fault> {
    let text = text.trim();
    match text.len() {
        0 => Err(Fault::new(400, format!("`{name}` is empty: give a name or reason for the audit log"))),
        1..=limits::REASON_MAX_BYTES => Ok(text.to_owned()),
        _ => Err(Fault::new(400, format!("`{name}` is longer than {} bytes", limits::REASON_MAX_BYTES))),
    }
}

impl Admin {
    /// Runs an operation and wakes the dispatcher.
    pub(super) async fn act(
        &self,
        operation: AdminOperation,
        act: AuditNote,
    ) -> Result<OperationReport, Fault> {
        // Names are resolved by the daemon's reader, before a second connection is opened.
        let instance = match operation.instance() {
            Some(named) => Some(self.instance(named).await?),
            None => None,
        };
        let parts = &self.inner.parts;
        let Some((path, options)) = parts.database.clone() else {
            return Err(Fault::new(501, "admin operations need a database file; this store is in memory"));
        };
        let (clock, word, who) = (parts.clock.clone(), operation.word(), act.who.clone());
        let store = parts.store.clone();
        let work = move || {
            // If the database file was moved or replaced, the operation would write to a file that the daemon does
            // not use.
            store.is_in_place()?;
            // The operation encrypts with the keys of the running store, which a reload may have changed.
            let mut operations = Operations::open(&path, &options, clock)?.sealing_like(&store);
            operations.run(&operation, instance.as_ref(), &act)
        };
        // The operation waits for SQLite's lock, so it must not block an async thread.
        let done = tokio::task::spawn_blocking(work).await;
        let report =
            done.map_err(|_| Fault::new(500, "internal error while running the command; report the log"))??;
        tracing::info!(act = word, who, "done by hand: {}", report.message);
        // The operation may have made jobs due.
        parts.store.wake();
        Ok(report)
    }

    async fn instance(&self, named: &NamedInstance) -> Result<InstanceRow, Fault> {
        let NamedInstance { name, account } = named.clone();
        self.read(move |reader| Ok(reader.find(&name, account.as_deref())?)).await
    }
}
