//! The one thread that writes, and how it makes one commit of many operations.
//!
//! It blocks for one operation, drains what queued meanwhile, runs each in a savepoint of its own,
//! commits, and only then answers. There is no timer: the queue that builds up during one `fsync`
//! is the next batch, so a slow disk costs one `fsync` a batch and a fast one costs no waiting.
//!
//! The steps of a batch are types: what has been [`Operated`] cannot be answered, only committed; what
//! has [`Ended`] can only be answered. A simulation drives the same steps, one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::keys::{self, ConfiguredKey};
use super::ledger::{self, Acceptance, Accepted, Birth, Finish, Finished, Taken, Told};
use super::rows::{Backend, Result};
use super::signals::{Claimed, Signals, Waiting};
use super::{Shared, StoreError};
use crate::callback::{Action, Answer, Callback, Once, Outcome};
use crate::clock::{Id, plus_millis};
use crate::instance::Instance;
use crate::limits;
use crate::metrics::Metric;

/// What a caller waits for.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// One operation.
pub(crate) enum Command {
    Accept(Box<AcceptCommand>),
    Finish(Box<FinishCommand>),
    Take { limit: usize, held: Vec<(i64, u32)>, now: Timestamp, reply: Reply<Taking> },
    Extend { held: Vec<(i64, u32)>, now: Timestamp, reply: Reply<()> },
    Recover { now: Timestamp, reply: Reply<usize> },
    Count { counts: Vec<(i64, u64, Timestamp)>, keys: Vec<keys::Used>, reply: Reply<()> },
    ConfigureKeys { keys: Vec<ConfiguredKey>, now: Timestamp, reply: Reply<()> },
    Spend { account: String, once: Once, now: Timestamp, reply: Reply<()> },
    Learn { attempt: (i64, u32), callback: Box<Callback>, now: Timestamp, reply: Reply<Option<Instance>> },
    Probe { reply: Reply<()> },
}

pub(crate) struct AcceptCommand {
    pub(crate) acceptance: Acceptance,
    pub(crate) id: Id,
    /// A place among the running jobs: with it the new job may be born leased.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Keys whose use is to be written by now.
    pub(crate) keys: Vec<keys::Used>,
    pub(crate) reply: Reply<(Accepted, Option<Waiting>)>,
}

pub(crate) struct FinishCommand {
    pub(crate) finish: Finish,
    /// The answer as the hook gave it, for those who wait.
    pub(crate) answer: Answer,
    pub(crate) reply: Reply<Finished>,
}

/// Jobs taken up, and when to look again.
#[derive(Debug, Default)]
pub struct Taking {
    /// The jobs.
    pub taken: Vec<Taken>,
    /// When the next one becomes due.
    pub next_due: Option<Timestamp>,
}

/// What is left to do once the batch is committed, or has failed.
pub(super) enum After {
    Accept {
        done: Result<(Accepted, Option<Waiting>)>,
        place: Option<OwnedSemaphorePermit>,
        reply: Reply<(Accepted, Option<Waiting>)>,
    },
    Finish {
        done: Result<Finished>,
        claimed: Claimed,
        answer: Answer,
        reply: Reply<Finished>,
    },
    Take {
        done: Result<Taking>,
        reply: Reply<Taking>,
    },
    Unit {
        done: Result<()>,
        reply: Reply<()>,
    },
    Recover {
        done: Result<usize>,
        reply: Reply<usize>,
    },
    Learn {
        done: Result<Option<Instance>>,
        reply: Reply<Option<Instance>>,
    },
}

/// A batch whose operations have run, in a transaction that is still open.
pub(super) struct Operated {
    pub(super) begun: Result<()>,
    pub(super) results: Vec<After>,
}

/// A batch whose transaction has ended, well or not.
pub(super) struct Ended {
    pub(super) committed: Result<()>,
    pub(super) results: Vec<After>,
}

/// The one who writes.
pub(super) struct Writer<B> {
    pub(super) backend: B,
    pub(super) queue: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
}

impl<B: Backend> Writer<B> {
    pub(super) fn new(backend: B, queue: mpsc::Receiver<Command>, shared: Arc<Shared>) -> Writer<B> {
        Writer { backend, queue, shared }
    }

    /// Writes until every sender is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let batch = self.gather(first, limits::WRITER_BATCH_MAX_COUNT);
            let operated = self.operate(batch);
            let ended = self.commit(operated);
            self.settle(ended);
        }
    }

    /// What queued behind `first`, up to `most` operations.
    pub(super) fn gather(&mut self, first: Command, most: usize) -> Vec<Command> {
        let mut batch = vec![first];
        while batch.len() < most {
            match self.queue.try_recv() {
                Ok(command) => batch.push(command),
                Err(_) => break,
            }
        }
        batch
    }

    /// Begins a transaction and runs the operations in it.
    pub(super) fn operate(&mut self, batch: Vec<Command>) -> Operated {
        let begun = self.backend.begin();
        let mut results: Vec<After> = Vec::with_capacity(batch.len());
        for command in batch {
            let usable = match &begun {
                Ok(()) if self.backend.in_transaction() => Ok(()),
                Ok(()) => Err(StoreError::Io("the transaction was ended by an earlier fault".to_owned())),
                Err(error) => Err(error.clone()),
            };
            results.push(operate(&mut self.backend, command, usable, &self.shared));
        }
        Operated { begun, results }
    }

    /// Commits; what cannot be committed is rolled back.
    pub(super) fn commit(&mut self, operated: Operated) -> Ended {
        let Operated { begun, results } = operated;
        let committed = match begun {
            Ok(()) if self.backend.in_transaction() => self.backend.commit(),
            Ok(()) => Err(StoreError::Io("the transaction was ended by a fault".to_owned())),
            Err(error) => Err(error),
        };
        self.shared.metrics.observe(Metric::CommitOperations, ["", ""], results.len() as f64);
        if let Err(error) = &committed {
            tracing::error!(%error, operations = results.len(), "the store could not commit; nothing of the batch was kept");
            if let Err(error) = self.backend.rollback() {
                tracing::error!(%error, "the store could not roll back");
            }
        }
        Ended { committed, results }
    }

    /// Answers.
    pub(super) fn settle(&self, ended: Ended) {
        for after in ended.results {
            after.settle(&ended.committed, &self.shared.signals);
        }
    }
}

/// Runs one operation in its savepoint: what it did is kept whole or not at all. Where even the
/// savepoint fails nobody can say what the transaction holds, so it is given up with all that is in it.
///
/// A panic is walled in: whatever a peer sent that brought it about, it must not end the writing for
/// everybody else.
fn guarded<B: Backend, T>(
    backend: &mut B,
    usable: Result<()>,
    operation: impl FnOnce(&mut B) -> Result<T>,
) -> Result<T> {
    usable?;
    backend.savepoint()?;
    let done = catch_unwind(AssertUnwindSafe(|| operation(backend))).unwrap_or_else(|_| {
        tracing::error!("an operation of the store panicked: this is a bug; nothing of it was kept");
        Err(StoreError::Inconsistent("an operation panicked"))
    });
    let ended = match &done {
        Ok(_) => backend.release_savepoint(),
        Err(_) if backend.in_transaction() => backend.rollback_savepoint(),
        Err(_) => Ok(()),
    };
    if let Err(error) = ended {
        backend.rollback()?;
        return Err(error);
    }
    done
}

fn operate<B: Backend>(backend: &mut B, command: Command, usable: Result<()>, shared: &Shared) -> After {
    match command {
        Command::Accept(command) => accept(backend, *command, usable, shared),
        Command::Finish(command) => finish(backend, *command, usable, shared),
        Command::Take { limit, held, now, reply } => {
            let done = guarded(backend, usable, |rows| {
                let until = plus_millis(now, limits::LEASE_MS);
                let taken = ledger::take(rows, limit, &held, until, &shared.schedules, now)?;
                Ok(Taking { taken, next_due: rows.next_due(now)? })
            });
            After::Take { done, reply }
        }
        Command::Extend { held, now, reply } => {
            let until = plus_millis(now, limits::LEASE_MS);
            let done = guarded(backend, usable, |rows| ledger::extend(rows, &held, until));
            After::Unit { done, reply }
        }
        Command::Recover { now, reply } => {
            let recover = |rows: &mut B| ledger::recover(rows, &shared.schedules, now, |_| true);
            After::Recover { done: guarded(backend, usable, recover), reply }
        }
        Command::Count { counts, keys, reply } => {
            let count = |rows: &mut B| ledger::count(rows, &counts).and_then(|()| keys::used(rows, &keys));
            After::Unit { done: guarded(backend, usable, count), reply }
        }
        Command::ConfigureKeys { keys, now, reply } => {
            let done = guarded(backend, usable, |rows| keys::configure(rows, &keys, now));
            After::Unit { done, reply }
        }
        Command::Spend { account, once, now, reply } => {
            let done = guarded(backend, usable, |rows| ledger::spend(rows, &account, &once, now));
            After::Unit { done, reply }
        }
        Command::Learn { attempt, callback, now, reply } => {
            let done = guarded(backend, usable, |rows| ledger::learn(rows, attempt, &callback, now));
            After::Learn { done, reply }
        }
        Command::Probe { reply } => After::Unit { done: guarded(backend, usable, B::touch), reply },
    }
}

fn accept<B: Backend>(backend: &mut B, command: AcceptCommand, usable: Result<()>, shared: &Shared) -> After {
    let AcceptCommand { acceptance, id, place, keys, reply } = command;
    let lease_until = place.is_some().then(|| plus_millis(acceptance.received_at, limits::LEASE_MS));
    // Whoever gave up waiting for the store has answered "call again" by now.
    let birth = Birth { id, lease_until, heard: !reply.is_closed() };
    let accepted = guarded(backend, usable, |rows| {
        keys::used(rows, &keys)?;
        ledger::accept(rows, &acceptance, birth)
    });
    let done = accepted.map(|accepted| {
        let waiters = shared.signals.waiters();
        let waiting = match accepted.told {
            // One sign-on lets one browser in: whoever comes with it meanwhile is not told where to go.
            Told::Wait(job) if accepted.row.action == Action::SignOn && waiters.are_there(job) => None,
            Told::Wait(job) => Some(waiters.join(job, accepted.row.number)),
            _ => None,
        };
        (accepted, waiting)
    });
    After::Accept { done, place, reply }
}

fn finish<B: Backend>(backend: &mut B, command: FinishCommand, usable: Result<()>, shared: &Shared) -> After {
    let FinishCommand { finish, answer, reply } = command;
    let claimed = shared.signals.waiters().claim(finish.job);
    let told = claimed.callbacks();
    let done = guarded(backend, usable, |rows| ledger::finish(rows, &finish, &told));
    After::Finish { done, claimed, answer, reply }
}

/// The operation's own result, unless the commit failed: then nothing of it is true.
fn kept<T>(done: Result<T>, committed: &Result<()>) -> Result<T> {
    match committed {
        Ok(()) => done,
        Err(error) => Err(error.clone()),
    }
}

impl After {
    /// Answers, after the commit and never before.
    fn settle(self, committed: &Result<()>, signals: &Signals) {
        match self {
            After::Accept { done, place, reply } => {
                settle_accept(kept(done, committed), place, reply, signals)
            }
            After::Finish { done, claimed, answer, reply } => {
                settle_finish(kept(done, committed), claimed, answer, reply, signals);
            }
            After::Take { done, reply } => drop(reply.send(kept(done, committed))),
            After::Unit { done, reply } => drop(reply.send(kept(done, committed))),
            After::Recover { done, reply } => drop(reply.send(kept(done, committed))),
            After::Learn { done, reply } => drop(reply.send(kept(done, committed))),
        }
    }
}

fn settle_accept(
    kept: Result<(Accepted, Option<Waiting>)>,
    place: Option<OwnedSemaphorePermit>,
    reply: Reply<(Accepted, Option<Waiting>)>,
    signals: &Signals,
) {
    let kept = kept.map(|(mut accepted, waiting)| {
        match (accepted.taken.take(), place) {
            (Some(taken), Some(place)) => signals.hand_over(taken, place),
            _ if accepted.wakes => signals.work.notify_one(),
            _ => {}
        }
        (accepted, waiting)
    });
    let _ = reply.send(kept);
}

fn settle_finish(
    kept: Result<Finished>,
    claimed: Claimed,
    answer: Answer,
    reply: Reply<Finished>,
    signals: &Signals,
) {
    match &kept {
        Ok(Finished::Kept { told, wakes, .. }) => {
            claimed.tell(&outcome_for_waiters(told, answer));
            if *wakes {
                signals.work.notify_one();
            }
        }
        Ok(Finished::Fenced) | Err(_) => signals.waiters().restore(claimed),
    }
    let _ = reply.send(kept);
}

fn outcome_for_waiters(told: &Told, answer: Answer) -> Outcome {
    match told {
        Told::Applied(stored) => {
            Outcome::Applied { instance_id: stored.instance_id.clone(), answer: Box::new(answer) }
        }
        Told::Refused(code, reason) => Outcome::Refused { code, reason: reason.clone() },
        Told::Held(reason) => Outcome::Held { reason: reason.clone() },
        Told::NotYet | Told::Wait(_) => Outcome::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::super::rows::{ActRow, Read, Write};
    use super::*;

    fn act(text: &str) -> ActRow {
        let text = text.to_owned();
        ActRow {
            at: Timestamp::UNIX_EPOCH,
            who: text.clone(),
            act: text.clone(),
            target: text.clone(),
            why: text,
        }
    }

    #[test]
    fn a_panic_takes_back_its_own_operation_and_no_other() {
        let mut backend = Memory::default();
        let reader = backend.reader();
        backend.begin().unwrap();
        guarded(&mut backend, Ok(()), |rows| rows.add_act(&act("before"))).unwrap();
        let panicked = guarded(&mut backend, Ok(()), |rows| -> Result<()> {
            rows.add_act(&act("half done"))?;
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        assert!(matches!(panicked, Err(StoreError::Inconsistent(_))), "{panicked:?}");
        guarded(&mut backend, Ok(()), |rows| rows.add_act(&act("after"))).unwrap();
        backend.commit().unwrap();
        let kept: Vec<String> = reader.list_acts(10).unwrap().into_iter().map(|act| act.act).collect();
        assert_eq!(kept, ["after", "before"]);
    }
}
