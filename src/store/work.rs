//! The unit of work: rows are loaded for a decision, changed in memory, and stored in one step.
//!
//! * *Load*: a read of a [`Work`] asks the backend once, and keeps the row.
//! * *Decide*: the rules read and change rows of the `Work` alone. They are synchronous, and their only effects are
//!   those rows.
//! * *Store*: [`WorkRows::changes`] returns the changed rows, each of them once, for the backend to write.
//!
//! Several operations may share a `Work`, and then share its commit. If one fails, [`Work::undo`] takes back its
//! changes and leaves those of the others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::StoreError;
use super::rows::{
    AttemptRow, AuditEntry, CallbackRow, DueMarketJobs, InstanceAndQueue, InstanceRow, JobRow, KeyUse,
    MarketJob, MarketJobs, Numbered, Read, ReadableJob, Result,
};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State};

/// State of a row in memory, compared with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// As loaded.
    None,
    /// Not in the database yet.
    Added,
    /// In the database with other values, or to be removed from it.
    Changed,
}

/// A row in memory. `None`: there is no such row.
#[derive(Debug, Clone)]
struct Slot<V> {
    row: Option<V>,
    change: Change,
}

/// The rows of one table that were loaded or changed, by key.
#[derive(Debug)]
struct Table<K, V> {
    slots: BTreeMap<K, Slot<V>>,
    /// Slots as they were before the present operation changed them.
    before: Vec<(K, Option<Slot<V>>)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table { slots: BTreeMap::new(), before: Vec::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Returns the row, if it was loaded or changed. `Some(None)`: it is known that there is no such row.
    fn get(&self, key: &K) -> Option<Option<V>> {
        self.slots.get(key).map(|slot| slot.row.clone())
    }

    /// Keeps a row that the backend returned, unless a newer one is here.
    fn load(&mut self, key: K, row: Option<V>) {
        self.slots.entry(key).or_insert(Slot { row, change: Change::None });
    }

    fn add(&mut self, key: K, row: V) {
        self.set(key, Some(row), Change::Added);
    }

    fn put(&mut self, key: K, row: V) {
        self.set(key, Some(row), Change::Changed);
    }

    fn remove(&mut self, key: K) {
        self.set(key, None, Change::Changed);
    }

    fn set(&mut self, key: K, row: Option<V>, change: Change) {
        // A row that was added in this unit of work is inserted with its latest values.
        let change = match self.slots.get(&key) {
            Some(Slot { change: Change::Added, .. }) => Change::Added,
            _ => change,
        };
        let before = self.slots.insert(key.clone(), Slot { row, change });
        self.before.push((key, before));
    }

    fn undo(&mut self) {
        while let Some((key, before)) = self.before.pop() {
            match before {
                Some(slot) => self.slots.insert(key, slot),
                None => self.slots.remove(&key),
            };
        }
    }

    /// Returns the rows that are there now.
    fn rows(&self) -> impl Iterator<Item = &V> {
        self.slots.values().filter_map(|slot| slot.row.as_ref())
    }

    /// Returns the keys of the rows that were changed.
    fn changed(&self) -> BTreeSet<K> {
        let changed = self.slots.iter().filter(|(_, slot)| slot.change != Change::None);
        changed.map(|(key, _)| key.clone()).collect()
    }

    /// Returns the rows to store in the order of their keys: `true` for an added one, `None` for a removed one.
    fn changes(&self) -> impl Iterator<Item = (&K, Option<&V>, bool)> {
        let changed = self.slots.iter().filter(|(_, slot)| slot.change != Change::None);
        changed.map(|(key, slot)| (key, slot.row.as_ref(), slot.change == Change::Added))
    }

    /// Marks all rows as stored, and forgets those that are not wanted.
    fn settle(&mut self, is_wanted: impl Fn(&K, &V) -> bool) {
        self.slots.retain(|key, slot| {
            slot.change = Change::None;
            slot.row.as_ref().is_some_and(|row| is_wanted(key, row))
        });
    }
}

/// A row to store.
#[derive(Debug, PartialEq, Eq)]
pub enum Stored<'a, T> {
    /// Insert it.
    Added(&'a T),
    /// Update the row with its number.
    Changed(&'a T),
}

impl<'a, T> Stored<'a, T> {
    fn of(row: &'a T, is_added: bool) -> Stored<'a, T> {
        if is_added { Stored::Added(row) } else { Stored::Changed(row) }
    }
}

/// A callback to insert, or the columns of one that changed.
#[derive(Debug, PartialEq, Eq)]
pub enum StoredCallback<'a> {
    /// Insert the callback with its content.
    Added(&'a CallbackRow, &'a Callback),
    /// Update what may change in the row.
    Changed(&'a CallbackRow),
    /// Replace the content.
    Body(i64, &'a Callback),
}

/// Changes of a unit of work, in the order in which they must be stored: a row before those that refer to it.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    /// Instances.
    pub instances: Vec<Stored<'a, InstanceRow>>,
    /// New names: account, name, and number of the instance.
    pub names: Vec<(&'a str, &'a str, i64)>,
    /// Orders: account, order, and number of the instance. They may be stored already.
    pub orders: Vec<(&'a str, &'a str, i64)>,
    /// Callbacks.
    pub callbacks: Vec<StoredCallback<'a>>,
    /// Jobs.
    pub jobs: Vec<Stored<'a, JobRow>>,
    /// Jobs of the market client.
    pub market_jobs: Vec<Stored<'a, MarketJob>>,
    /// Instances in whose queue a job has ended: the next one may run now.
    pub unblocked: Vec<i64>,
    /// Live jobs to hold, with a note, because their row or another row that they need cannot be read.
    pub held_unreadable: Vec<(i64, &'a str)>,
    /// Queued jobs that cannot be read, with a later due time.
    pub postponed: Vec<(i64, Timestamp)>,
    /// Attempts that did not succeed.
    pub attempts: &'a [AttemptRow],
    /// Entries of the audit log.
    pub audit: &'a [AuditEntry],
    /// Nonce digests that were kept until before this instant are deleted.
    pub forget_nonces: Option<Timestamp>,
    /// New nonce digests: account, digest, and the time until which it is kept.
    pub nonces: Vec<(&'a str, &'a [u8; 16], Timestamp)>,
    /// Keys that are no longer configured: endpoint and label.
    pub dropped_keys: Vec<(&'a str, &'a str)>,
    /// Configured keys with their last use.
    pub key_uses: Vec<&'a KeyUse>,
    /// Added instances in each state, less those that left it.
    pub states: [i64; State::ALL.len()],
    /// True if the database must be written even if nothing changed.
    pub touch: bool,
}

impl Changes<'_> {
    /// Returns the highest number of an added instance, callback and job; 0 without one.
    pub fn highest_added(&self) -> [i64; 3] {
        let mut highest = [0; 3];
        let [instance, callback, job] = &mut highest;
        // The rows are in the order of their numbers.
        for row in &self.instances {
            if let Stored::Added(row) = row {
                *instance = row.number;
            }
        }
        for row in &self.callbacks {
            if let StoredCallback::Added(row, _) = row {
                *callback = row.number;
            }
        }
        for row in &self.jobs {
            if let Stored::Added(row) = row {
                *job = row.number;
            }
        }
        for row in &self.market_jobs {
            if let Stored::Added(row) = row {
                *job = row.number.max(*job);
            }
        }
        highest
    }

    /// Returns the number of rows to write.
    pub fn rows_count(&self) -> usize {
        [
            self.instances.len(),
            self.names.len(),
            self.orders.len(),
            self.callbacks.len(),
            self.jobs.len(),
            self.market_jobs.len(),
            self.unblocked.len(),
            self.held_unreadable.len(),
            self.postponed.len(),
            self.attempts.len(),
            self.audit.len(),
            self.forget_nonces.iter().len(),
            self.nonces.len(),
            self.dropped_keys.len(),
            self.key_uses.len(),
            usize::from(self.touch),
        ]
        .into_iter()
        .sum()
    }
}

/// Rows of a unit of work, as loaded and changed.
#[derive(Debug, Default)]
pub struct WorkRows {
    instances: Table<i64, InstanceRow>,
    /// State of each stored instance as it was loaded.
    states: BTreeMap<i64, State>,
    names: Table<(String, String), i64>,
    orders: Table<(String, String, i64), ()>,
    callbacks: Table<i64, CallbackRow>,
    bodies: Table<i64, Arc<Callback>>,
    jobs: Table<i64, JobRow>,
    market_jobs: Table<i64, MarketJob>,
    held_unreadable: Table<i64, String>,
    postponed: Table<i64, Timestamp>,
    unblocked: Table<i64, ()>,
    nonces: Table<(String, [u8; 16]), Timestamp>,
    key_uses: Table<(String, String), KeyUse>,
    attempts: Appended<AttemptRow>,
    audit: Appended<AuditEntry>,
    /// Numbers of jobs that may be in a queue, of each loaded queue. The job's row decides if it is.
    queues: BTreeMap<i64, Vec<i64>>,
    /// Numbers of stored callbacks by deduplication key, of each loaded key.
    keys: BTreeMap<[u8; 16], Vec<i64>>,
    /// Numbers of added callbacks by deduplication key.
    added_keys: BTreeMap<[u8; 16], Vec<i64>>,
    next: BTreeMap<Numbered, i64>,
    forget_nonces: Option<Timestamp>,
    are_keys_loaded: bool,
    touch: bool,
}

impl WorkRows {
    /// Returns what changed.
    pub fn changes(&self) -> Changes<'_> {
        let mut changes = Changes {
            attempts: &self.attempts.rows,
            audit: &self.audit.rows,
            forget_nonces: self.forget_nonces,
            touch: self.touch,
            ..Changes::default()
        };
        for (number, row, is_added) in self.instances.changes() {
            let Some(row) = row else { continue };
            if let Some(count) = changes.states.get_mut(row.instance.state as usize) {
                *count += 1;
            }
            let before = self.states.get(number);
            if let Some(count) = before.and_then(|state| changes.states.get_mut(*state as usize)) {
                *count -= 1;
            }
            changes.instances.push(Stored::of(row, is_added));
        }
        for ((account, name), instance, _) in self.names.changes() {
            changes.names.extend(instance.map(|instance| (account.as_str(), name.as_str(), *instance)));
        }
        for ((account, order, instance), ..) in self.orders.changes() {
            changes.orders.push((account, order, *instance));
        }
        for (number, row, is_added) in self.callbacks.changes() {
            let Some(row) = row else { continue };
            let body = self.bodies.slots.get(number).filter(|_| is_added);
            changes.callbacks.push(match body.and_then(|slot| slot.row.as_ref()) {
                Some(body) => StoredCallback::Added(row, body),
                None => StoredCallback::Changed(row),
            });
        }
        for (number, body, is_added) in self.bodies.changes() {
            let body = body.filter(|_| !is_added);
            changes.callbacks.extend(body.map(|body| StoredCallback::Body(*number, body)));
        }
        for (_, row, is_added) in self.jobs.changes() {
            changes.jobs.extend(row.map(|row| Stored::of(row, is_added)));
        }
        for (_, row, is_added) in self.market_jobs.changes() {
            changes.market_jobs.extend(row.map(|row| Stored::of(row, is_added)));
        }
        changes.unblocked = self.unblocked.changes().map(|(instance, ..)| *instance).collect();
        for (number, note, _) in self.held_unreadable.changes() {
            changes.held_unreadable.extend(note.map(|note| (*number, note.as_str())));
        }
        for (number, until, _) in self.postponed.changes() {
            changes.postponed.extend(until.map(|until| (*number, *until)));
        }
        for ((account, digest), until, _) in self.nonces.changes() {
            changes.nonces.extend(until.map(|until| (account.as_str(), digest, *until)));
        }
        for ((endpoint, label), row, _) in self.key_uses.changes() {
            match row {
                Some(row) => changes.key_uses.push(row),
                None => changes.dropped_keys.push((endpoint, label)),
            }
        }
        changes
    }

    /// Returns the rows that the next unit of work will need, after these were stored: running jobs, whose attempts
    /// will end, with their instances and callbacks.
    ///
    /// They may be used only if no other process has committed since.
    #[must_use]
    pub fn settled(mut self) -> WorkRows {
        // A job that was set aside has other values in the database.
        let (held, postponed) = (&self.held_unreadable.slots, &self.postponed.slots);
        let is_aside = |number: &i64| held.contains_key(number) || postponed.contains_key(number);
        self.jobs.settle(|number, job| job.state == JobState::Running && !is_aside(number));
        let (mut instances, mut callbacks) = (BTreeSet::new(), BTreeSet::new());
        for job in self.jobs.rows() {
            instances.extend(job.instance);
            callbacks.insert(job.callback);
        }
        self.instances.settle(|number, _| instances.contains(number));
        self.callbacks.settle(|number, _| callbacks.contains(number));
        self.queues.retain(|instance, _| instances.contains(instance));
        let states = self.instances.rows().map(|row| (row.number, row.instance.state)).collect();
        WorkRows {
            instances: self.instances,
            states,
            callbacks: self.callbacks,
            jobs: self.jobs,
            queues: self.queues,
            next: self.next,
            ..WorkRows::default()
        }
    }
}

/// Rows that are only added.
#[derive(Debug)]
struct Appended<T> {
    rows: Vec<T>,
    kept: usize,
}

impl<T> Default for Appended<T> {
    fn default() -> Appended<T> {
        Appended { rows: Vec::new(), kept: 0 }
    }
}

/// Rows that decisions read and change, on top of the rows of a backend.
pub struct Work<'a> {
    stored: &'a dyn Read,
    rows: RefCell<WorkRows>,
}

/// Calls a method of each table.
macro_rules! each_table {
    ($rows:expr, $do:ident) => {{
        $rows.instances.$do();
        $rows.names.$do();
        $rows.orders.$do();
        $rows.callbacks.$do();
        $rows.bodies.$do();
        $rows.jobs.$do();
        $rows.market_jobs.$do();
        $rows.held_unreadable.$do();
        $rows.postponed.$do();
        $rows.unblocked.$do();
        $rows.nonces.$do();
        $rows.key_uses.$do();
    }};
}

impl<K, V> Table<K, V> {
    /// Keeps the changes of the operation that ends here.
    fn keep(&mut self) {
        self.before.clear();
    }
}

impl<'a> Work<'a> {
    /// Begins a unit of work on the rows of a transaction.
    pub fn on(stored: &'a dyn Read) -> Work<'a> {
        Work::with(stored, WorkRows::default())
    }

    /// Begins a unit of work with rows that are known to be as they are stored.
    pub fn with(stored: &'a dyn Read, rows: WorkRows) -> Work<'a> {
        Work { stored, rows: RefCell::new(rows) }
    }

    /// Keeps the changes of the operation that ends here.
    pub fn keep(&mut self) {
        let rows = self.rows.get_mut();
        each_table!(rows, keep);
        rows.attempts.kept = rows.attempts.rows.len();
        rows.audit.kept = rows.audit.rows.len();
    }

    /// Takes back all changes since the last [`Work::keep`].
    pub fn undo(&mut self) {
        let rows = self.rows.get_mut();
        each_table!(rows, undo);
        rows.attempts.rows.truncate(rows.attempts.kept);
        rows.audit.rows.truncate(rows.audit.kept);
    }

    /// Ends the unit of work, and returns its rows with what changed in them.
    pub fn into_rows(self) -> WorkRows {
        self.rows.into_inner()
    }

    /// Adds an instance. Returns its number.
    pub fn add_instance(&mut self, instance: &Instance) -> Result<i64> {
        let number = self.take_number(Numbered::Instance)?;
        let instance = instance.clone();
        let row =
            InstanceRow { number, created_by: None, marketplace_instance_id: None, known_as: None, instance };
        let rows = self.rows.get_mut();
        rows.instances.add(number, row);
        // Nothing waits for an instance that did not exist.
        rows.queues.insert(number, Vec::new());
        Ok(number)
    }

    /// Changes an instance, which was read before.
    pub fn put_instance(&mut self, row: &InstanceRow) {
        let mut row = row.clone();
        if row.instance.id.is_some() || row.instance.order_biz_id.is_some() {
            row.known_as = None;
        }
        self.rows.get_mut().instances.put(row.number, row);
    }

    /// Gives the instance a name. `false`: another instance of the account has it.
    pub fn add_name(&mut self, account: &str, name: &str, instance: i64) -> Result<bool> {
        // A name belongs to one instance of an account: it is never moved to another instance.
        if let Some(holder) = self.name_holder(account, name)? {
            return Ok(holder == instance);
        }
        self.rows.get_mut().names.add((account.to_owned(), name.to_owned()), instance);
        // An instance without names of its own is listed by this one.
        if let Some(row) = self.instance(instance)?
            && row.name().is_none()
        {
            self.put_instance(&InstanceRow { known_as: Some(name.to_owned()), ..row });
        }
        Ok(true)
    }

    /// Records that the order belongs to the instance.
    pub fn add_order(&mut self, account: &str, order_id: &str, instance: i64) {
        let key = (account.to_owned(), order_id.to_owned(), instance);
        let orders = &mut self.rows.get_mut().orders;
        if !orders.slots.contains_key(&key) {
            orders.add(key, ());
        }
    }

    /// Adds a callback with its content. Returns its number; the number in `row` is ignored.
    pub fn add_callback(&mut self, row: &CallbackRow, callback: &Arc<Callback>) -> Result<i64> {
        let number = self.take_number(Numbered::Callback)?;
        let rows = self.rows.get_mut();
        rows.added_keys.entry(row.deduplication_key).or_default().push(number);
        rows.callbacks.add(number, CallbackRow { number, ..row.clone() });
        rows.bodies.add(number, callback.clone());
        Ok(number)
    }

    /// Changes the row of a callback. What its first delivery said stays as it is.
    pub fn put_callback(&mut self, row: &CallbackRow) {
        self.rows.get_mut().callbacks.put(row.number, row.clone());
    }

    /// Replaces the content of a callback, for example by one with order details.
    pub fn put_body(&mut self, number: i64, callback: Arc<Callback>) {
        self.rows.get_mut().bodies.put(number, callback);
    }

    /// Stores the nonce digest of a request. `false`: it is stored already.
    pub fn add_nonce(&mut self, account: &str, digest: &[u8; 16], until: Timestamp) -> Result<bool> {
        let is_new = self.nonce_until(account, digest)?.is_none();
        if is_new {
            self.rows.get_mut().nonces.add((account.to_owned(), *digest), until);
        }
        Ok(is_new)
    }

    /// Deletes the nonce digests that were kept until before this instant.
    pub fn forget_nonces(&mut self, before: Timestamp) {
        let forget = &mut self.rows.get_mut().forget_nonces;
        *forget = (*forget).max(Some(before));
    }

    /// Records that success was reported at `at`. The first report counts, so a later one does not move its time.
    pub fn put_reported(&mut self, callback: i64, at: Timestamp) -> Result<()> {
        match self.callback_row(callback) {
            Ok(Some(row)) if row.reported_at.is_none() => {
                self.put_callback(&CallbackRow { reported_at: Some(at), ..row });
            }
            // An unreadable row is not marked: once it is repaired, its result counts as unreported.
            Ok(_) | Err(StoreError::Unreadable(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Adds a job, with the number that [`Work::take_number`] returned for it.
    pub fn add_job(&mut self, row: &JobRow) -> Result<()> {
        let mut row = row.clone();
        if let Some(instance) = row.instance.filter(|_| row.ordered) {
            // A job that is created in state running is the first of its instance's queue.
            row.blocked = row.state == JobState::Queued && self.has_queue(instance)?;
            let rows = self.rows.get_mut();
            if let Some(queue) = rows.queues.get_mut(&instance) {
                queue.push(row.number);
            }
        }
        self.rows.get_mut().jobs.add(row.number, row);
        Ok(())
    }

    /// Changes a job. If it has ended, the next one in the instance's queue may become due.
    pub fn put_job(&mut self, row: &JobRow) -> Result<()> {
        let mut row = row.clone();
        let Some(instance) = row.instance.filter(|_| row.ordered) else {
            self.rows.get_mut().jobs.put(row.number, row);
            return Ok(());
        };
        if !row.state.is_live() {
            // An ended job is never blocked.
            row.blocked = false;
            self.rows.get_mut().jobs.put(row.number, row);
            return self.unblock(instance);
        }
        if self.job(row.number)?.is_some_and(|before| !before.state.is_live()) {
            // The job comes back to the queue, behind the jobs that are before it now.
            let queue = self.queue_jobs(instance)?;
            row.blocked = queue.iter().any(|before| before.number < row.number);
            if let Some(numbers) = self.rows.get_mut().queues.get_mut(&instance)
                && let Err(position) = numbers.binary_search(&row.number)
            {
                numbers.insert(position, row.number);
            }
        }
        self.rows.get_mut().jobs.put(row.number, row);
        Ok(())
    }

    /// Lets the first job of the instance's queue run, after the job before it has ended.
    ///
    /// Each end of a job calls this function, so no job stays blocked without a job before it.
    fn unblock(&mut self, instance: i64) -> Result<()> {
        match self.queue_jobs(instance) {
            Ok(queue) => {
                if let Some(first) = queue.into_iter().next().filter(|first| first.blocked) {
                    self.rows.get_mut().jobs.put(first.number, JobRow { blocked: false, ..first });
                }
            }
            // A row of the queue cannot be read, so the backend finds the first job by itself.
            Err(StoreError::Unreadable(_)) => self.rows.get_mut().unblocked.put(instance, ()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Adds a job of the market client, with the number that [`Work::take_number`] returned for it.
    pub fn add_market_job(&mut self, job: MarketJob) {
        self.rows.get_mut().market_jobs.add(job.number, job);
    }

    /// Changes a job of the market client.
    pub fn put_market_job(&mut self, job: MarketJob) {
        self.rows.get_mut().market_jobs.put(job.number, job);
    }

    /// Holds a live job whose row, or another row that it needs, cannot be read.
    pub fn hold_unreadable(&mut self, job: i64, note: &str) {
        self.rows.get_mut().held_unreadable.put(job, note.to_owned());
    }

    /// Sets the due time of a queued job that cannot be read.
    pub fn postpone(&mut self, job: i64, until: Timestamp) {
        self.rows.get_mut().postponed.put(job, until);
    }

    /// Adds an attempt that did not succeed.
    pub fn add_attempt(&mut self, row: AttemptRow) {
        self.rows.get_mut().attempts.rows.push(row);
    }

    /// Adds an entry to the audit log.
    pub fn add_audit_entry(&mut self, row: AuditEntry) {
        self.rows.get_mut().audit.rows.push(row);
    }

    /// Adds a configured key, or replaces the one with its endpoint and label.
    pub fn put_key_use(&mut self, row: &KeyUse) {
        let key = (row.endpoint.clone(), row.label.clone());
        self.rows.get_mut().key_uses.put(key, row.clone());
    }

    /// Removes a configured key.
    pub fn drop_key_use(&mut self, endpoint: &str, label: &str) {
        self.rows.get_mut().key_uses.remove((endpoint.to_owned(), label.to_owned()));
    }

    /// Makes the commit write to the disk, even if nothing changes.
    pub fn touch(&mut self) {
        self.rows.get_mut().touch = true;
    }

    /// Returns the number for the next row of a table. It is not given again, even if the operation is undone.
    pub fn take_number(&mut self, table: Numbered) -> Result<i64> {
        let number = self.next_number(table)?;
        self.rows.get_mut().next.insert(table, number + 1);
        Ok(number)
    }

    /// Returns a row of a table, and loads it if this unit of work does not have it.
    fn row<K: Ord + Clone, V: Clone>(
        &self,
        table: impl Fn(&mut WorkRows) -> &mut Table<K, V>,
        key: K,
        load: impl FnOnce(&dyn Read) -> Result<Option<V>>,
    ) -> Result<Option<V>> {
        if let Some(known) = table(&mut self.rows.borrow_mut()).get(&key) {
            return Ok(known);
        }
        let loaded = load(self.stored)?;
        table(&mut self.rows.borrow_mut()).load(key, loaded.clone());
        Ok(loaded)
    }

    /// Keeps an instance that the backend returned.
    fn load_instance(&self, row: &InstanceRow) {
        let rows = &mut *self.rows.borrow_mut();
        rows.states.entry(row.number).or_insert(row.instance.state);
        rows.instances.load(row.number, Some(row.clone()));
    }

    /// Returns the numbers of jobs that may be in the queue, if the queue was loaded.
    fn numbers_of_queue(&self, instance: i64) -> Option<Vec<i64>> {
        self.rows.borrow().queues.get(&instance).cloned()
    }

    /// Keeps a queue that the backend returned.
    fn load_queue(&self, instance: i64, jobs: &[JobRow]) {
        let rows = &mut *self.rows.borrow_mut();
        for job in jobs {
            rows.jobs.load(job.number, Some(job.clone()));
        }
        let mut numbers: Vec<i64> = jobs.iter().map(|job| job.number).collect();
        // Jobs of the queue that this unit of work has brought back are not in it yet.
        let others = rows.jobs.rows().filter(|job| job.instance == Some(instance) && job.ordered);
        numbers.extend(others.map(|job| job.number));
        numbers.sort_unstable();
        numbers.dedup();
        rows.queues.insert(instance, numbers);
    }

    /// Keeps the content of the callbacks of a queue. Their rows are read if something needs them.
    fn load_bodies(&self, queue: &[(JobRow, Callback)]) {
        let rows = &mut *self.rows.borrow_mut();
        for (job, callback) in queue {
            rows.bodies.load(job.callback, Some(Arc::new(callback.clone())));
        }
    }

    /// Returns the content of a callback.
    fn body(&self, number: i64) -> Result<Option<Arc<Callback>>> {
        if let Some(known) = self.rows.borrow().bodies.get(&number) {
            return Ok(known);
        }
        let Some((row, body)) = self.stored.callback(number)? else { return Ok(None) };
        let rows = &mut *self.rows.borrow_mut();
        rows.callbacks.load(number, Some(row));
        let body = Arc::new(body);
        rows.bodies.load(number, Some(body.clone()));
        Ok(Some(body))
    }

    /// Returns the numbers of the jobs that were changed here: what the backend has of them is out of date.
    fn changed_jobs(&self) -> BTreeSet<i64> {
        let rows = self.rows.borrow();
        let mut changed = rows.jobs.changed();
        changed.extend(rows.held_unreadable.changed());
        changed.extend(rows.postponed.changed());
        changed
    }
}

fn number_of(job: &ReadableJob) -> i64 {
    match job {
        Ok(job) => job.number,
        Err((number, _)) => *number,
    }
}

impl Read for Work<'_> {
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>> {
        let known = self.rows.borrow().instances.get(&number);
        if let Some(known) = known {
            return Ok(known);
        }
        let row = self.stored.instance(number)?;
        if let Some(row) = &row {
            self.load_instance(row);
        }
        Ok(row)
    }

    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<InstanceAndQueue>> {
        let key = (account.to_owned(), name.to_owned());
        let known = self.rows.borrow().names.get(&key);
        let number = match known {
            Some(known) => known,
            // One step loads the name, its instance and its queue.
            None => {
                let found = self.stored.instance_by_name(account, name)?;
                let number = found.as_ref().map(|(row, _)| row.number);
                if let Some((row, queue)) = found {
                    self.load_instance(&row);
                    self.load_bodies(&queue);
                    if self.numbers_of_queue(row.number).is_none() {
                        let jobs: Vec<JobRow> = queue.into_iter().map(|(job, _)| job).collect();
                        self.load_queue(row.number, &jobs);
                    }
                }
                self.rows.borrow_mut().names.load(key, number);
                number
            }
        };
        let Some(row) = self.instance_of(number)? else { return Ok(None) };
        let queue = self.queue(row.number)?;
        Ok(Some((row, queue)))
    }

    fn name_holder(&self, account: &str, name: &str) -> Result<Option<i64>> {
        let key = (account.to_owned(), name.to_owned());
        self.row(|rows| &mut rows.names, key, |stored| stored.name_holder(account, name))
    }

    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>> {
        let mut numbers = self.stored.instances_by_order(account, order_id)?;
        for (of, order, number) in self.rows.borrow().orders.changed() {
            if of == account && order == order_id && !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        numbers.truncate(2);
        Ok(numbers)
    }

    fn instance_bought(&self, account: &str, order_id: &str, order_biz_id: &str) -> Result<Option<i64>> {
        // An instance that was added here has its names here, so it is found by name.
        self.stored.instance_bought(account, order_id, order_biz_id)
    }

    fn queue(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>> {
        if self.numbers_of_queue(instance).is_none() {
            let queue = self.stored.queue(instance)?;
            self.load_bodies(&queue);
            let jobs: Vec<JobRow> = queue.into_iter().map(|(job, _)| job).collect();
            self.load_queue(instance, &jobs);
        }
        let mut queue = Vec::new();
        for job in self.queue_jobs(instance)? {
            // A backend leaves out a job without its callback, too.
            if let Some(callback) = self.body(job.callback)? {
                queue.push((job, Callback::clone(&callback)));
            }
        }
        Ok(queue)
    }

    fn has_queue(&self, instance: i64) -> Result<bool> {
        match self.queue_jobs(instance) {
            Ok(queue) => Ok(!queue.is_empty()),
            // A row that cannot be read still waits.
            Err(StoreError::Unreadable(_)) => self.stored.has_queue(instance),
            Err(error) => Err(error),
        }
    }

    fn queue_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        let numbers = match self.numbers_of_queue(instance) {
            Some(numbers) => numbers,
            None => {
                let jobs = self.stored.queue_jobs(instance)?;
                self.load_queue(instance, &jobs);
                self.numbers_of_queue(instance).unwrap_or_default()
            }
        };
        let mut queue = Vec::new();
        for number in numbers {
            queue.extend(self.job(number)?.filter(|job| job.state.is_live()));
        }
        Ok(queue)
    }

    fn instance_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        let stored = self.stored.instance_jobs(instance)?;
        let rows = &mut *self.rows.borrow_mut();
        for job in stored {
            rows.jobs.load(job.number, Some(job));
        }
        let mut jobs: Vec<JobRow> =
            rows.jobs.rows().filter(|job| job.instance == Some(instance)).cloned().collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.number));
        Ok(jobs)
    }

    fn instance_callbacks(&self, instance: i64) -> Result<Vec<CallbackRow>> {
        let stored = self.stored.instance_callbacks(instance)?;
        let rows = &mut *self.rows.borrow_mut();
        for row in stored {
            rows.callbacks.load(row.number, Some(row));
        }
        let mut callbacks: Vec<CallbackRow> =
            rows.callbacks.rows().filter(|row| row.instance == Some(instance)).cloned().collect();
        callbacks.sort_by_key(|row| std::cmp::Reverse(row.number));
        Ok(callbacks)
    }

    fn nonce_until(&self, account: &str, digest: &[u8; 16]) -> Result<Option<Timestamp>> {
        let key = (account.to_owned(), *digest);
        let until = self.row(|rows| &mut rows.nonces, key, |stored| stored.nonce_until(account, digest))?;
        // A digest that this unit of work forgets is not stored any more.
        let forget = self.rows.borrow().forget_nonces;
        Ok(until.filter(|until| forget.is_none_or(|before| *until >= before)))
    }

    fn earlier_callbacks(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
        if !self.rows.borrow().keys.contains_key(key) {
            let earlier = self.stored.earlier_callbacks(key)?;
            let rows = &mut *self.rows.borrow_mut();
            rows.keys.insert(*key, earlier.iter().map(|(row, _)| row.number).collect());
            for (row, job) in earlier {
                // The row may name a job that was pruned. `None` then keeps a second look at it from being needed.
                if let Some(number) = row.job {
                    rows.jobs.load(number, job);
                }
                rows.callbacks.load(row.number, Some(row));
            }
        }
        let mut numbers = Vec::new();
        {
            let rows = self.rows.borrow();
            for known in [rows.keys.get(key), rows.added_keys.get(key)] {
                numbers.extend(known.into_iter().flatten().copied());
            }
        }
        let mut earlier = Vec::new();
        for number in numbers {
            // The number of an added callback stays in the list after an undo, without a row.
            let Some(Some(row)) = self.rows.borrow().callbacks.get(&number) else { continue };
            let job = self.job_of(row.job)?;
            earlier.push((row, job));
        }
        Ok(earlier)
    }

    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>> {
        let body = self.body(number)?;
        let row = self.callback_row(number)?;
        Ok(row.zip(body).map(|(row, body)| (row, Callback::clone(&body))))
    }

    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>> {
        self.row(|rows| &mut rows.callbacks, number, |stored| stored.callback_row(number))
    }

    fn job(&self, number: i64) -> Result<Option<JobRow>> {
        self.row(|rows| &mut rows.jobs, number, |stored| stored.job(number))
    }

    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>> {
        let known = self.rows.borrow().jobs.rows().find(|job| job.id == id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let stored = self.stored.job_by_id(id)?;
        if let Some(job) = &stored {
            self.rows.borrow_mut().jobs.load(job.number, Some(job.clone()));
        }
        Ok(stored)
    }

    fn next_number(&self, table: Numbered) -> Result<i64> {
        let known = self.rows.borrow().next.get(&table).copied();
        match known {
            Some(number) => Ok(number),
            None => self.stored.next_number(table),
        }
    }

    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<ReadableJob>> {
        let changed = self.changed_jobs();
        let mut due = self.stored.due(now, limit.saturating_add(changed.len()))?;
        due.retain(|job| !changed.contains(&number_of(job)));
        // Of the jobs that were changed here, some have become due, and others are leased or postponed.
        let rows = self.rows.borrow();
        let set_aside = |number| {
            rows.held_unreadable.slots.contains_key(&number) || rows.postponed.slots.contains_key(&number)
        };
        let own = changed.iter().filter_map(|number| rows.jobs.get(number).flatten());
        due.extend(own.filter(|job| job.is_due(now) && !set_aside(job.number)).map(Ok));
        due.sort_by_key(|job| job.as_ref().map_or((Timestamp::MIN, 0), |job| (job.due_at, job.number)));
        due.truncate(limit);
        Ok(due)
    }

    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        let stored = self.stored.next_due(now)?;
        let rows = self.rows.borrow();
        let queued = rows.jobs.rows().filter(|job| job.state == JobState::Queued && !job.blocked);
        let own = queued.map(|job| job.due_at).filter(|due_at| *due_at > now).min();
        let postponed = rows.postponed.rows().filter(|until| **until > now).min().copied();
        Ok([stored, own, postponed].into_iter().flatten().min())
    }

    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<ReadableJob>> {
        let changed = self.changed_jobs();
        let mut running = self.stored.running(ended_before)?;
        running.retain(|job| !changed.contains(&number_of(job)));
        Ok(running)
    }

    fn payments(&self, account: &str, order_id: &str) -> Result<Vec<(CallbackRow, Callback)>> {
        let mut payments = self.stored.payments(account, order_id)?;
        // The content of a stored payment never changes, so only the added ones are missing.
        let rows = self.rows.borrow();
        for (number, row, _) in rows.callbacks.changes().filter(|(_, _, is_added)| *is_added) {
            let (Some(row), Some(Some(body))) = (row, rows.bodies.get(number)) else { continue };
            let is_of_order = row.account == account && body.order_id.as_deref() == Some(order_id);
            if row.action == Action::Payment && is_of_order {
                payments.push((row.clone(), Callback::clone(&body)));
            }
        }
        Ok(payments)
    }

    fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>> {
        let rows = self.rows.borrow();
        let own = &rows.market_jobs.slots;
        // Changed jobs may have left the selection, so ask for that many more.
        let asked = match which {
            MarketJobs::Due(due) => {
                MarketJobs::Due(DueMarketJobs { limit: due.limit.saturating_add(own.len()), ..due })
            }
            other => other,
        };
        let mut jobs = self.stored.market_jobs(asked)?;
        jobs.retain(|job| !own.contains_key(&job.number));
        jobs.extend(rows.market_jobs.rows().filter(|job| which.has(job)).cloned());
        Ok(which.sorted(jobs))
    }

    fn key_uses(&self) -> Result<Vec<KeyUse>> {
        if !self.rows.borrow().are_keys_loaded {
            let stored = self.stored.key_uses()?;
            let rows = &mut *self.rows.borrow_mut();
            for row in stored {
                rows.key_uses.load((row.endpoint.clone(), row.label.clone()), Some(row));
            }
            rows.are_keys_loaded = true;
        }
        Ok(self.rows.borrow().key_uses.rows().cloned().collect())
    }
}
