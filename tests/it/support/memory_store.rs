//! Store in memory, made of plain maps: the model that the tests compare SQLite with, and the disk of the simulation.
//!
//! A transaction is a copy of all tables. That is slow, and obviously correct.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use spid::internals::observe::limits;
use spid::internals::store::encryption::Encryptor;
use spid::internals::store::{
    AttemptRow, AuditEntry, Backend, CallbackRow, Changes, Closed, CommittedRows, DAY_MS, Disposition,
    Filter, InstanceAndQueue, InstanceRow, JobKind, JobRow, KeyUse, Lists, MarketJob, MarketJobs, Numbered,
    Read, ReadableJob, Reader, Store, StoreError, StoreOptions, Stored, StoredCallback, Totals, Unreadable,
};
use spid_core::lifecycle::Reason;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::instance::State;
use spid_hook::time::Clock;

type Result<T> = std::result::Result<T, StoreError>;

/// Starts a store in memory.
pub(crate) async fn start(options: StoreOptions, clock: Clock) -> Result<(Store, Closed)> {
    let backend = Memory::default();
    let reader = Reader::of(backend.reader());
    Store::start(backend, reader, Encryptor::ephemeral()?, options, clock).await
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    instances: BTreeMap<i64, InstanceRow>,
    names: BTreeMap<(String, String), i64>,
    orders: BTreeMap<(String, String, i64), ()>,
    callbacks: BTreeMap<i64, (CallbackRow, Callback)>,
    jobs: BTreeMap<i64, JobRow>,
    market_jobs: BTreeMap<i64, MarketJob>,
    attempts: Vec<AttemptRow>,
    acts: Vec<AuditEntry>,
    key_uses: BTreeMap<(String, String), KeyUse>,
    nonce: BTreeMap<(String, [u8; 16]), Timestamp>,
    commits: u64,
}

/// Writer side of a store in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    committed: Arc<Mutex<Tables>>,
    working: Option<Tables>,
    savepoint: Option<Tables>,
    /// Number of commits that this writer has seen.
    commits: Option<u64>,
}

/// Reader side of a store in memory: the committed tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryReader(Arc<Mutex<Tables>>);

impl Memory {
    /// Creates a writer on the existing tables of this reader.
    #[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
    pub(crate) fn on(committed: &MemoryReader) -> Memory {
        Memory { committed: committed.0.clone(), working: None, savepoint: None, commits: None }
    }

    pub(crate) fn reader(&self) -> MemoryReader {
        MemoryReader(self.committed.clone())
    }

    fn tables(&mut self) -> Result<&mut Tables> {
        self.working.as_mut().ok_or(StoreError::Inconsistent("a write outside a transaction"))
    }

    fn see<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        // Inside a transaction the writer sees its own changes. Readers see only committed tables.
        match &self.working {
            Some(tables) => read(tables),
            None => read(&self.committed.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl MemoryReader {
    fn see<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CommittedRows for MemoryReader {
    fn with(&self, read: &mut dyn FnMut(&dyn Lists) -> Result<()>) -> Result<()> {
        read(self)
    }
}

impl Tables {
    fn queue(&self, instance: i64) -> impl Iterator<Item = &JobRow> {
        self.jobs
            .values()
            .filter(move |job| job.ordered && job.instance == Some(instance) && job.state.is_live())
    }

    /// Returns the instance's queue, each job with its callback.
    fn queue_with_callbacks(&self, instance: i64) -> Vec<(JobRow, Callback)> {
        let said = |job: &JobRow| {
            let (_, callback) = self.callbacks.get(&job.callback)?;
            Some((job.clone(), callback.clone()))
        };
        self.queue(instance).filter_map(said).collect()
    }

    // Only the first live job in the instance's queue may run.
    fn is_head(&self, job: &JobRow) -> bool {
        let Some(instance) = job.instance.filter(|_| job.ordered) else { return true };
        self.queue(instance).next().is_some_and(|first| first.number == job.number)
    }

    fn queued(&self) -> impl Iterator<Item = &JobRow> {
        self.jobs.values().filter(|job| job.state == JobState::Queued)
    }

    fn due(&self, now: Timestamp, limit: usize) -> Vec<JobRow> {
        let mut due: Vec<JobRow> =
            self.queued().filter(|job| job.due_at <= now && self.is_head(job)).cloned().collect();
        due.sort_by_key(|job| (job.due_at, job.number));
        due.truncate(limit);
        due
    }

    fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let later = self.queued().filter(|job| job.due_at > now);
        later.filter(|job| self.is_head(job)).map(|job| job.due_at).min()
    }

    fn unreported(&self, row: &CallbackRow) -> bool {
        let done = |number: i64| self.jobs.get(&number).is_some_and(|job| job.state == JobState::Done);
        let is_done = match row.disposition {
            Disposition::Job => row.job.is_some_and(done),
            Disposition::Recorded => true,
            Disposition::Held | Disposition::Refused => false,
        };
        is_done && row.reported_at.is_none() && row.deliveries > 0
    }

    fn list_callbacks(&self, filter: &Filter) -> Vec<CallbackRow> {
        let rows = self.callbacks.values().rev().map(|(row, _)| row);
        rows.filter(|row| filter.instance.is_none_or(|number| row.instance == Some(number)))
            .filter(|row| filter.accounts.is_empty() || filter.accounts.contains(&row.account))
            .filter(|row| filter.disposition.is_none_or(|wanted| row.disposition == wanted))
            .filter(|row| !filter.unreported || self.unreported(row))
            .filter(|row| filter.before.is_none_or(|before| row.number < before))
            .take(filter.limit)
            .cloned()
            .collect()
    }

    fn list_jobs(&self, filter: &Filter) -> Vec<JobRow> {
        let rows = self.jobs.values().rev();
        rows.filter(|row| filter.instance.is_none_or(|number| row.instance == Some(number)))
            .filter(|row| filter.jobs.is_empty() || filter.jobs.contains(&row.state))
            .filter(|row| filter.before.is_none_or(|before| row.number < before))
            .take(filter.limit)
            .cloned()
            .collect()
    }

    /// Returns true if the text is part of the instance's own fields or of one of its names.
    fn is_found_by(&self, row: &InstanceRow, text: &str) -> bool {
        let wanted = text.to_ascii_lowercase();
        let mut names = self.names.iter().filter(|(_, number)| **number == row.number);
        row.instance.is_found_by(text)
            || names.any(|((_, name), _)| name.to_ascii_lowercase().contains(&wanted))
    }

    fn list_instances(&self, filter: &Filter) -> Vec<InstanceRow> {
        let rows = self.instances.values().rev();
        rows.filter(|row| filter.state.is_none_or(|state| row.instance.state == state))
            .filter(|row| filter.accounts.is_empty() || filter.accounts.contains(&row.instance.account))
            .filter(|row| filter.buyer.is_none() || filter.buyer == row.instance.buyer)
            .filter(|row| filter.tenant.is_none() || filter.tenant == row.instance.tenant)
            .filter(|row| filter.search.as_ref().is_none_or(|text| self.is_found_by(row, text)))
            .filter(|row| filter.expires.is_none_or(|(from, to)| ends(row, from, to)))
            .filter(|row| filter.before.is_none_or(|before| row.number < before))
            .take(filter.limit)
            .cloned()
            .collect()
    }

    fn expiries(&self, first: i64, end: i64) -> Vec<(i64, u64)> {
        let mut days = BTreeMap::new();
        for row in self.instances.values().filter(|row| row.instance.state != State::Released) {
            let day = row.instance.expires_on.map(|at| at.as_millisecond().div_euclid(DAY_MS));
            if let Some(day) = day.filter(|day| (first..end).contains(day)) {
                *days.entry(day).or_default() += 1;
            }
        }
        days.into_iter().collect()
    }

    /// Returns true if the marketplace still calls for the answer to this callback.
    fn is_wanted(&self, row: &CallbackRow) -> bool {
        let lives = |number: i64| {
            self.jobs.get(&number).is_some_and(|job| job.state.is_live() || job.state == JobState::Done)
        };
        row.reported_at.is_none()
            && match row.disposition {
                Disposition::Job => row.job.is_some_and(lives),
                Disposition::Held | Disposition::Recorded => true,
                Disposition::Refused => false,
            }
    }

    fn unserved_accounts(&self, served: &[&str]) -> BTreeMap<String, u64> {
        let mut accounts = BTreeMap::new();
        for InstanceRow { instance, .. } in self.instances.values() {
            if instance.state != State::Released && !served.contains(&instance.account.as_str()) {
                *accounts.entry(instance.account.clone()).or_default() += 1;
            }
        }
        accounts
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for row in self.instances.values() {
            *totals.instances.entry(row.instance.state.as_str()).or_default() += 1;
        }
        for job in self.jobs.values().filter(|job| job.state.is_live()) {
            *totals.jobs.entry(job.state.as_str()).or_default() += 1;
        }
        for (row, _) in self.callbacks.values() {
            totals.held += u64::from(row.disposition == Disposition::Held);
            totals.unreported += u64::from(self.unreported(row));
            if let Some(delivery_limit) = row.delivery_limit.filter(|_| self.is_wanted(row)) {
                totals.tries = totals.tries.max(row.deliveries);
                totals.deliveries_used_ratio =
                    totals.deliveries_used_ratio.max(row.deliveries as f64 / f64::from(delivery_limit));
            }
        }
        let begun =
            self.jobs.values().filter(|job| matches!(job.state, JobState::Queued | JobState::Running));
        totals.oldest_job = begun.map(|job| job.created_at).min();
        totals.next_due = self.queued().filter(|job| self.is_head(job)).map(|job| job.due_at).min();
        totals
    }
}

/// Returns true if the instance is not released and its term ends in this range.
fn ends(row: &InstanceRow, from: Timestamp, to: Timestamp) -> bool {
    let instance = &row.instance;
    instance.state != State::Released && instance.expires_on.is_some_and(|at| from <= at && at < to)
}

fn may_need_a_person(row: &CallbackRow, job: Option<&JobRow>) -> bool {
    let other_values = row.reason_code.as_deref() == Some(Reason::RepeatedWithOtherValues.code());
    // A payment is reported before its hook runs, so its refusal needs a person although it was reported.
    let refused_payment =
        row.action == Action::Payment && job.is_some_and(|job| job.state == JobState::Refused);
    let is_shown = row.reported_at.is_none() || other_values || refused_payment;
    is_shown && row.dismissed_at.is_none() && !matches!(row.action, Action::SignOn | Action::Query)
}

macro_rules! reads {
    ($for:ty) => {
        impl Read for $for {
            fn instance(&self, number: i64) -> Result<Option<InstanceRow>> {
                Ok(self.see(|tables| tables.instances.get(&number).cloned()))
            }
            fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<InstanceAndQueue>> {
                let key = (account.to_owned(), name.to_owned());
                Ok(self.see(|tables| {
                    let number = tables.names.get(&key)?;
                    let row = tables.instances.get(number)?.clone();
                    Some((row, tables.queue_with_callbacks(*number)))
                }))
            }
            fn name_holder(&self, account: &str, name: &str) -> Result<Option<i64>> {
                let key = (account.to_owned(), name.to_owned());
                Ok(self.see(|tables| tables.names.get(&key).copied()))
            }
            fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>> {
                let from = (account.to_owned(), order_id.to_owned(), i64::MIN);
                let to = (account.to_owned(), order_id.to_owned(), i64::MAX);
                Ok(self
                    // Two are enough to show that the order does not name one instance.
                    .see(|tables| tables.orders.range(from..=to).take(2).map(|(key, ())| key.2).collect()))
            }
            fn instance_bought(
                &self,
                account: &str,
                order_id: &str,
                order_biz_id: &str,
            ) -> Result<Option<i64>> {
                let from = (account.to_owned(), order_id.to_owned(), i64::MIN);
                let to = (account.to_owned(), order_id.to_owned(), i64::MAX);
                Ok(self.see(|tables| {
                    let is_it = |number: &i64| {
                        let row = tables.instances.get(number);
                        row.is_some_and(|row| row.instance.order_biz_id.as_deref() == Some(order_biz_id))
                    };
                    let of_order = tables.orders.range(from..=to).map(|(key, ())| key.2);
                    of_order.take(limits::ORDER_INSTANCES_READ_COUNT).find(is_it)
                }))
            }
            fn queue(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>> {
                Ok(self.see(|tables| tables.queue_with_callbacks(instance)))
            }
            fn queue_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
                Ok(self.see(|tables| tables.queue(instance).cloned().collect()))
            }
            fn instance_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
                self.list_jobs(&Filter { instance: Some(instance), limit: usize::MAX, ..Filter::default() })
            }
            fn instance_callbacks(&self, instance: i64) -> Result<Vec<CallbackRow>> {
                self.list_callbacks(&Filter {
                    instance: Some(instance),
                    limit: usize::MAX,
                    ..Filter::default()
                })
            }
            fn has_queue(&self, instance: i64) -> Result<bool> {
                Ok(self.see(|tables| tables.queue(instance).next().is_some()))
            }
            fn nonce_until(&self, account: &str, mark: &[u8; 16]) -> Result<Option<Timestamp>> {
                let key = (account.to_owned(), *mark);
                Ok(self.see(|tables| tables.nonce.get(&key).copied()))
            }
            fn earlier_callbacks(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
                Ok(self.see(|tables| {
                    let rows = tables.callbacks.values().map(|(row, _)| row);
                    let job = |row: &CallbackRow| tables.jobs.get(&row.job?).cloned();
                    rows.filter(|row| row.deduplication_key == *key)
                        .map(|row| (row.clone(), job(row)))
                        .collect()
                }))
            }
            fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>> {
                Ok(self.see(|tables| tables.callbacks.get(&number).cloned()))
            }
            fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>> {
                Ok(self.see(|tables| tables.callbacks.get(&number).map(|(row, _)| row.clone())))
            }
            fn job(&self, number: i64) -> Result<Option<JobRow>> {
                Ok(self.see(|tables| tables.jobs.get(&number).cloned()))
            }
            fn next_number(&self, table: Numbered) -> Result<i64> {
                Ok(self.see(|tables| match table {
                    Numbered::Instance => next(&tables.instances),
                    Numbered::Callback => next(&tables.callbacks),
                    Numbered::Job => next(&tables.jobs).max(next(&tables.market_jobs)),
                }))
            }
            fn job_by_id(&self, id: Id) -> Result<Option<JobRow>> {
                Ok(self.see(|tables| tables.jobs.values().find(|job| job.id == id).cloned()))
            }
            fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<ReadableJob>> {
                Ok(self.see(|tables| tables.due(now, limit).into_iter().map(Ok).collect()))
            }
            fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
                Ok(self.see(|tables| tables.next_due(now)))
            }
            fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<ReadableJob>> {
                let has_ended = |job: &JobRow| {
                    let before = |instant| job.lease_until.is_none_or(|until| until < instant);
                    ended_before.is_none_or(before)
                };
                Ok(self.see(|tables| {
                    let jobs = tables.jobs.values().filter(|job| job.state == JobState::Running);
                    jobs.filter(|job| has_ended(job)).cloned().map(Ok).collect()
                }))
            }
            fn payments(&self, account: &str, order_id: &str) -> Result<Vec<(CallbackRow, Callback)>> {
                Ok(self.see(|tables| {
                    let of_order = |(row, body): &&(CallbackRow, Callback)| {
                        row.action == Action::Payment
                            && row.account == account
                            && body.order_id.as_deref() == Some(order_id)
                    };
                    tables.callbacks.values().filter(of_order).cloned().collect()
                }))
            }
            fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>> {
                Ok(self.see(|tables| {
                    let jobs = tables.market_jobs.values().filter(|job| which.has(job));
                    which.sorted(jobs.cloned().collect())
                }))
            }
            fn key_uses(&self) -> Result<Vec<KeyUse>> {
                Ok(self.see(|tables| tables.key_uses.values().cloned().collect()))
            }
        }

        impl Lists for $for {
            fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>> {
                Ok(self.see(|tables| {
                    let numbers =
                        tables.names.iter().filter(|(key, _)| key.1 == name).map(|(_, number)| number);
                    numbers.filter_map(|number| tables.instances.get(number)).cloned().collect()
                }))
            }
            fn unreadable_instances(&self, _limit: usize) -> Result<Vec<Unreadable>> {
                Ok(Vec::new())
            }
            fn name_of(&self, number: i64) -> Result<Option<(String, String)>> {
                Ok(self.see(|tables| {
                    let named = tables.names.iter().filter(|(_, instance)| **instance == number);
                    named.map(|(key, _)| key.clone()).min_by_key(|(_, name)| name.clone())
                }))
            }
            fn list_instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>> {
                Ok(self.see(|tables| tables.list_instances(filter)))
            }
            fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobRow>> {
                Ok(self.see(|tables| tables.list_jobs(filter)))
            }
            fn list_market_jobs(&self, filter: &Filter, after: i64) -> Result<Vec<MarketJob>> {
                Ok(self.see(|tables| {
                    let jobs = tables.market_jobs.values().rev().filter(|job| job.number > after);
                    jobs.filter(|job| filter.before.is_none_or(|before| job.number < before))
                        .filter(|job| filter.jobs.is_empty() || filter.jobs.contains(&job.state))
                        .filter(|job| filter.kind.is_none_or(|kind| kind == JobKind::Market(job.kind)))
                        .take(filter.limit)
                        .cloned()
                        .collect()
                }))
            }
            fn list_callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>> {
                Ok(self.see(|tables| tables.list_callbacks(filter)))
            }
            fn unreported(&self) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
                Ok(self.see(|tables| {
                    let rows = tables.callbacks.values().map(|(row, _)| row);
                    let job = |row: &CallbackRow| tables.jobs.get(&row.job?);
                    rows.filter(|row| may_need_a_person(row, job(row)))
                        .map(|row| (row.clone(), job(row).cloned()))
                        .collect()
                }))
            }
            fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>> {
                Ok(self.see(|tables| tables.attempts.iter().filter(|row| row.job == job).cloned().collect()))
            }
            fn audit_log(&self, limit: usize) -> Result<Vec<AuditEntry>> {
                Ok(self.see(|tables| tables.acts.iter().rev().take(limit).cloned().collect()))
            }
            fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>> {
                Ok(self.see(|tables| tables.expiries(first, end)))
            }
            fn totals(&self) -> Result<Totals> {
                Ok(self.see(Tables::totals))
            }
            fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>> {
                Ok(self.see(|tables| tables.unserved_accounts(served)))
            }
        }
    };
}

reads!(Memory);
reads!(MemoryReader);

fn next<T>(table: &BTreeMap<i64, T>) -> i64 {
    table.last_key_value().map_or(1, |(number, _)| number + 1)
}

impl Backend for Memory {
    fn begin(&mut self) -> Result<bool> {
        let tables = self.committed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_alone = self.commits == Some(tables.commits);
        self.commits = Some(tables.commits);
        self.working = Some(tables);
        Ok(is_alone)
    }
    fn store(&mut self, changes: &Changes<'_>) -> Result<()> {
        let tables = self.tables()?;
        for stored in &changes.instances {
            let (Stored::Added(row) | Stored::Changed(row)) = stored;
            tables.instances.insert(row.number, InstanceRow::clone(row));
        }
        for (account, name, instance) in &changes.names {
            tables.names.insert(((*account).to_owned(), (*name).to_owned()), *instance);
        }
        for (account, order, instance) in &changes.orders {
            tables.orders.insert(((*account).to_owned(), (*order).to_owned(), *instance), ());
        }
        for stored in &changes.callbacks {
            match stored {
                StoredCallback::Added(row, body) => {
                    tables.callbacks.insert(row.number, (CallbackRow::clone(row), Callback::clone(body)));
                }
                StoredCallback::Changed(row) => {
                    if let Some(stored) = tables.callbacks.get_mut(&row.number) {
                        stored.0 = CallbackRow::clone(row);
                    }
                }
                StoredCallback::Body(number, body) => {
                    if let Some(stored) = tables.callbacks.get_mut(number) {
                        stored.1 = Callback::clone(body);
                    }
                }
            }
        }
        for stored in &changes.jobs {
            let (Stored::Added(row) | Stored::Changed(row)) = stored;
            tables.jobs.insert(row.number, JobRow::clone(row));
        }
        for stored in &changes.market_jobs {
            let (Stored::Added(job) | Stored::Changed(job)) = stored;
            tables.market_jobs.insert(job.number, MarketJob::clone(job));
        }
        tables.attempts.extend(changes.attempts.iter().cloned());
        tables.acts.extend(changes.audit.iter().cloned());
        if let Some(before) = changes.forget_nonces {
            tables.nonce.retain(|_, until| *until >= before);
        }
        for (account, digest, until) in &changes.nonces {
            tables.nonce.insert(((*account).to_owned(), **digest), *until);
        }
        for (endpoint, label) in &changes.dropped_keys {
            tables.key_uses.remove(&((*endpoint).to_owned(), (*label).to_owned()));
        }
        for row in changes.key_uses.iter().copied() {
            tables.key_uses.insert((row.endpoint.clone(), row.label.clone()), row.clone());
        }
        Ok(())
    }
    fn commit(&mut self) -> Result<()> {
        let mut tables =
            self.working.take().ok_or(StoreError::Inconsistent("a commit outside a transaction"))?;
        tables.commits += 1;
        self.commits = Some(tables.commits);
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = tables;
        Ok(())
    }
    fn rollback(&mut self) -> Result<()> {
        self.working = None;
        Ok(())
    }
    fn savepoint(&mut self) -> Result<()> {
        // The writer never nests savepoints, so one copy is enough.
        self.savepoint = self.working.clone();
        Ok(())
    }
    fn release_savepoint(&mut self) -> Result<()> {
        self.savepoint = None;
        Ok(())
    }
    fn rollback_savepoint(&mut self) -> Result<()> {
        self.working = self.savepoint.take();
        Ok(())
    }
    fn in_transaction(&self) -> bool {
        self.working.is_some()
    }
}
