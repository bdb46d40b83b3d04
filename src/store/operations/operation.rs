//! Admin operations as values: their targets, and their results as the command line, the API and the console show them.

use serde::Serialize;

use super::{Approved, AuditNote, Claim, Claimed, Instead, OperationDone, Operations};
use crate::store::rows::{InstanceRow, JobKind};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Answer;
use spid_hook::id::Id;

/// Admin operation and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminOperation {
    /// Retries a job.
    Retry(ChosenJob),
    /// Drops a job.
    Drop(ChosenJob),
    /// Approves a held callback.
    Approve {
        /// Number of the callback.
        callback: i64,
        /// Real meaning of a conflicting create.
        instead: Option<Instead>,
    },
    /// Rejects a held callback.
    Reject(i64),
    /// Settles a held callback.
    Settle(i64),
    /// Takes a callback off the attention list.
    Dismiss(i64),
    /// Completes the job that an instance waits for.
    Complete {
        /// The instance.
        instance: NamedInstance,
        /// Answer of the finished work.
        answer: Box<Answer>,
    },
    /// Completes a job.
    CompleteJob {
        /// Id of the job.
        job: Id,
        /// Answer of the finished work.
        answer: Box<Answer>,
    },
    /// Records a claim.
    Claim {
        /// The instance.
        instance: NamedInstance,
        /// The claim.
        claim: Claim,
    },
    /// Releases an instance.
    Release(NamedInstance),
}

/// Job by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChosenJob {
    /// Id of the job.
    pub id: Id,
    /// State by which the job was chosen, and in which it must still be.
    pub state: Option<JobState>,
}

/// Instance by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedInstance {
    /// The name.
    pub name: String,
    /// Account of the instance, needed if several accounts have an instance of that name.
    pub account: Option<String>,
}

/// Result of an admin operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperationReport {
    /// Name of the operation.
    pub act: &'static str,
    /// Result as a sentence.
    pub message: String,
    /// False if the operation had nothing to change, or was not possible.
    pub changed: bool,
    /// Name of the instance that the operation was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Job that the operation changed or created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// Job that must end before this one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Id>,
    /// Callback that the operation changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<i64>,
}

impl OperationReport {
    /// Returns the report of an operation that has changed something.
    pub fn new(act: &'static str, message: impl Into<String>) -> OperationReport {
        let message = message.into();
        let (instance, job, behind, callback) = (None, None, None, None);
        OperationReport { act, message, changed: true, instance, job, behind, callback }
    }
}

impl AdminOperation {
    /// Word of the operation in paths, forms and the audit log.
    pub const fn word(&self) -> &'static str {
        match self {
            AdminOperation::Retry(_) => "retry",
            AdminOperation::Drop(_) => "drop",
            AdminOperation::Approve { .. } => "approve",
            AdminOperation::Reject(_) => "reject",
            AdminOperation::Settle(_) => "settle",
            AdminOperation::Dismiss(_) => "dismiss",
            AdminOperation::Complete { .. } | AdminOperation::CompleteJob { .. } => "complete",
            AdminOperation::Claim { .. } => "claim",
            AdminOperation::Release(_) => "release",
        }
    }

    /// Returns the name of the instance that [`Operations::run`] needs.
    pub const fn instance(&self) -> Option<&NamedInstance> {
        match self {
            AdminOperation::Complete { instance, .. }
            | AdminOperation::Claim { instance, .. }
            | AdminOperation::Release(instance) => Some(instance),
            _ => None,
        }
    }

    /// Returns a report about the targets of the operation.
    pub fn report(&self, message: impl Into<String>) -> OperationReport {
        let job = match self {
            AdminOperation::Retry(job) | AdminOperation::Drop(job) => Some(job.id),
            AdminOperation::CompleteJob { job, .. } => Some(*job),
            _ => None,
        };
        let callback = match self {
            AdminOperation::Reject(number)
            | AdminOperation::Settle(number)
            | AdminOperation::Dismiss(number) => Some(*number),
            _ => None,
        };
        OperationReport { job, callback, ..OperationReport::new(self.word(), message) }
    }

    /// Returns the report of an operation that left its target as it was.
    pub fn unchanged(&self, message: impl Into<String>) -> OperationReport {
        OperationReport { changed: false, ..self.report(message) }
    }

    /// Report about this target of an operation with one possible result.
    fn done(&self, target: &str) -> OperationReport {
        self.report(format!("{target} {}", result(self.word()).unwrap_or_default()))
    }

    fn approved(&self, approved: &Approved) -> OperationReport {
        let Approved { callback, job } = *approved;
        let message = match job {
            Some(job) => format!("callback {callback}: job {job} is queued"),
            None => format!("callback {callback}: done, there was nothing to run"),
        };
        OperationReport { job, callback: Some(callback), ..self.report(message) }
    }
}

/// Returns the words that follow the target in the result of an operation, if it has only one possible result.
pub fn result(word: &str) -> Option<&'static str> {
    match word {
        "drop" => Some("is dropped; another delivery of the callback creates a new job"),
        "reject" => Some("is rejected, and so are its redeliveries"),
        "settle" => Some("is settled: its next delivery is answered with success, and nothing runs"),
        "dismiss" => Some("is removed from the attention list"),
        "complete" => Some("is complete; spid reports it at the next delivery"),
        _ => None,
    }
}

impl Operations {
    /// Runs an operation. `row` is the instance that it names.
    ///
    /// # Errors
    /// Fails if the operation is not possible. Nothing is changed then.
    pub fn run(
        &mut self,
        operation: &AdminOperation,
        row: Option<&InstanceRow>,
        note: &AuditNote,
    ) -> OperationDone<OperationReport> {
        let instance = row.map_or(0, |row| row.number);
        let report = match operation {
            AdminOperation::Retry(ChosenJob { id, state }) => match self.retry_chosen(*id, *state, note)? {
                None => operation.report(format!("job {id} is due now")),
                // The jobs of an instance run in order.
                Some(ahead) => {
                    let message = format!("job {id} is due when job {ahead}, which is before it, has ended");
                    OperationReport { behind: Some(ahead), ..operation.report(message) }
                }
            },
            AdminOperation::Drop(ChosenJob { id, state }) => match self.drop_chosen(*id, *state, note)? {
                JobKind::Hook => operation.done(&format!("job {id}")),
                JobKind::Market(kind) => {
                    let kind = kind.as_str();
                    operation.report(format!(
                        "job {id} ({kind}) is dropped; spid adds another one if the call is still owed"
                    ))
                }
            },
            AdminOperation::Approve { callback, instead } => {
                operation.approved(&self.approve(*callback, *instead, note)?)
            }
            AdminOperation::Reject(callback) => {
                self.reject(*callback, note)?;
                operation.done(&format!("callback {callback}"))
            }
            AdminOperation::Settle(callback) => {
                self.settle(*callback, note)?;
                operation.done(&format!("callback {callback}"))
            }
            AdminOperation::Dismiss(callback) => {
                self.dismiss(*callback, note)?;
                operation.done(&format!("callback {callback}"))
            }
            AdminOperation::CompleteJob { job, answer } => {
                let action = self.complete_job(*job, answer, note)?;
                operation.done(&format!("job {job} ({action})"))
            }
            AdminOperation::Complete { instance: named, answer } => {
                let action = self.complete(instance, answer, note)?;
                operation.done(&format!("the {action} of {}", named.name))
            }
            AdminOperation::Claim { instance: named, claim } => match self.claim(instance, claim, note)? {
                Claimed::Now => operation.report(format!("{} is claimed", named.name)),
                Claimed::Before(at) => {
                    operation.unchanged(format!("{} was claimed at {at}; nothing was changed", named.name))
                }
            },
            AdminOperation::Release(_) => operation.approved(&self.release(instance, note)?),
        };
        Ok(OperationReport { instance: row.and_then(InstanceRow::name).map(str::to_owned), ..report })
    }
}
