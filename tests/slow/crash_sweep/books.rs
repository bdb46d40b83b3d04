//! Conditions that must hold after every kill, checked in the database and in the hook's own journal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use spid_core::lifecycle::schedule::JobState;

use crate::market::{Answered, Ask, Market};
use crate::support::serving::new_lines;

const RELEASED: i64 = 3;
/// A payment whose attempts were all killed. It was reported when it was recorded, so the marketplace does not call
/// again and cannot restart it, as it does for other dead jobs.
const SPENT: &str = "job.state = 4 AND job.in_lane = 0 AND job.attempts >= 10 AND job.note LIKE '%was lost%'";

/// Findings so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) out_of_order: u64,
    pub(crate) overlaps: u64,
    pub(crate) calls: u64,
}

/// One call, as the hook recorded it.
struct Call {
    what: String,
    key: String,
    account: String,
    biz: String,
    action: String,
    order: String,
    attempt: u64,
    pid: String,
}

pub(crate) struct Books {
    database: PathBuf,
    journal: PathBuf,
    file: Option<File>,
    rest: String,
    pub(crate) tally: Tally,
    /// Every success in an answer, by account, instance and kind. All are checked again at the end.
    answered: Vec<Answered>,
    /// Name and, later, id of each instance, by its number.
    instances: BTreeMap<i64, (String, Option<String>)>,
    released: BTreeSet<i64>,
    /// Number of the job, by key.
    jobs: HashMap<String, i64>,
    /// Use of each key.
    uses: HashMap<String, (String, String)>,
    /// Keys of each callback with an order.
    occurrences: BTreeMap<(String, String), BTreeSet<String>>,
    /// Keys of each action of an instance, for callbacks without an order.
    unordered: BTreeMap<(String, String), BTreeSet<String>>,
    effects: BTreeSet<String>,
    /// The current call of each process id, by its number. Process ids are reused.
    at: HashMap<String, u64>,
    /// The last job begun and the number of its call, by instance.
    lanes: HashMap<String, (i64, u64)>,
    /// Calls that were superseded by a later call of their instance.
    passed: BTreeSet<u64>,
}

impl Books {
    pub(crate) fn new(folder: &Path) -> Books {
        Books {
            database: folder.join("spid.db"),
            journal: folder.join("journal"),
            file: None,
            rest: String::new(),
            tally: Tally::default(),
            answered: Vec::new(),
            instances: BTreeMap::new(),
            released: BTreeSet::new(),
            jobs: HashMap::new(),
            uses: HashMap::new(),
            occurrences: BTreeMap::new(),
            unordered: BTreeMap::new(),
            effects: BTreeSet::new(),
            at: HashMap::new(),
            lanes: HashMap::new(),
            passed: BTreeSet::new(),
        }
    }

    /// The daemon is dead. Its answers must be in the database, and its hook calls must be in order.
    pub(crate) fn check(&mut self, market: &Market) {
        let answered = market.newly_answered();
        if !self.database.exists() {
            if !answered.is_empty() {
                self.tally.lost += 1;
                market.wrong("something was answered, and there is no database".to_owned());
            }
            return;
        }
        // Open it read only: opening it for writing would repair it, and the daemon must do that.
        let connection =
            Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        if !has_schema(&connection) {
            return;
        }
        self.read_journal(&connection, market);
        self.look_at_instances(&connection, market);
        for success in &answered {
            self.tally.answered += 1;
            self.look_for(&connection, success, market);
        }
        self.answered.extend(answered);
    }

    /// Final check: everything once more, and no work is left.
    pub(crate) fn check_all(&mut self, market: &Market) {
        self.check(market);
        let connection =
            Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        for success in std::mem::take(&mut self.answered) {
            self.look_for(&connection, &success, market);
        }
        let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        if sound != "ok" {
            market.wrong(format!("the database is damaged: {sound}"));
        }
        for (job, action, state) in self.unfinished(&connection) {
            self.tally.lost += 1;
            market.wrong(format!("job {job} (action {action}) ended as {state:?}"));
        }
    }

    /// Number of unfinished jobs.
    pub(crate) fn live_jobs(&self) -> i64 {
        let connection =
            Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let sql = format!("SELECT count(*) FROM job WHERE state < 5 AND NOT ({SPENT})");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap_or(i64::MAX)
    }

    /// Messages whose attempts were all killed: dead, and left to an operator.
    pub(crate) fn spent(&self) -> i64 {
        let connection =
            Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let sql = format!("SELECT count(*) FROM job WHERE {SPENT}");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// Jobs that are neither done nor made unnecessary by a release.
    fn unfinished(&self, connection: &Connection) -> Vec<(i64, i64, JobState)> {
        let sql = format!(
            "SELECT job.number, job.action, job.state, instance.state FROM job
             LEFT JOIN instance ON instance.number = job.instance WHERE NOT ({SPENT})"
        );
        let mut statement = connection.prepare(&sql).unwrap();
        let rows = statement.query_map([], |row| {
            let instance: Option<i64> = row.get(3)?;
            Ok((row.get(0)?, row.get(1)?, state(row.get(2)?), instance))
        });
        rows.unwrap()
            .map(Result::unwrap)
            .filter(|(_, _, state, instance)| match state {
                JobState::Done => false,
                JobState::Cancelled => *instance != Some(RELEASED),
                _ => true,
            })
            .map(|(job, action, state, _)| (job, action, state))
            .collect()
    }

    fn look_at_instances(&mut self, connection: &Connection, market: &Market) {
        let mut statement = connection
            .prepare("SELECT number, account || ' ' || order_biz_id, id, state FROM instance")
            .unwrap();
        let rows: Vec<(i64, String, Option<String>, i64)> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut names = BTreeSet::new();
        for (number, name, id, state) in rows {
            if !names.insert(name.clone()) {
                self.tally.doubled += 1;
                market.wrong(format!("{name} is there twice"));
            }
            if let Some((known, Some(before))) = self.instances.get(&number)
                && (id.as_ref() != Some(before) || *known != name)
            {
                market.wrong(format!("{name} had the id {before} and has {id:?}"));
            }
            if state == RELEASED {
                self.released.insert(number);
            } else if self.released.contains(&number) {
                market.wrong(format!("{name} was released and is not any more"));
            }
            self.instances.insert(number, (name, id));
        }
    }

    /// A success in an answer: the database has it as reported, its job is done, and the hook did it.
    fn look_for(&mut self, connection: &Connection, success: &Answered, market: &Market) {
        let found = self.evidence(connection, success);
        if let Err(missing) = found {
            self.tally.lost += 1;
            market.wrong(format!(
                "{} {}: {:?} (order {:?}) was answered with success; {missing}",
                success.account, success.biz, success.step.ask, success.step.order
            ));
        }
    }

    fn evidence(&self, connection: &Connection, success: &Answered) -> Result<(), String> {
        let action = success.step.ask.action();
        let mut statement = connection
            .prepare_cached(
                "SELECT callback.told_at IS NOT NULL, job.state, hex(job.id), instance.id, instance.state
                 FROM callback LEFT JOIN job ON job.number = callback.job
                 LEFT JOIN instance ON instance.number = callback.instance
                 WHERE callback.account = ?1 AND json_extract(callback.body, '$.action') = ?2
                   AND (instance.order_biz_id = ?3 OR ?2 = 'payment')
                   AND (?4 IS NULL OR ?4 IN (json_extract(callback.body, '$.order_id'),
                                             json_extract(callback.body, '$.request_id')))
                   AND callback.instance IS (SELECT instance FROM name WHERE account = ?1 AND name = ?3)
                 ORDER BY callback.number",
            )
            .unwrap();
        let sql_instance = (success.account, action, &success.biz, &success.step.order);
        let rows: Vec<Found> = if success.step.ask == Ask::Payment {
            let mut statement = connection
                .prepare_cached(
                    "SELECT callback.told_at IS NOT NULL, job.state, hex(job.id), NULL, NULL
                     FROM callback LEFT JOIN job ON job.number = callback.job
                     WHERE callback.account = ?1 AND json_extract(callback.body, '$.request_id') = ?2",
                )
                .unwrap();
            let rows = statement.query_map((success.account, &success.step.order), read_found).unwrap();
            rows.map(Result::unwrap).collect()
        } else {
            let rows = statement.query_map(sql_instance, read_found).unwrap();
            rows.map(Result::unwrap).collect()
        };
        if success.step.ask == Ask::Payment {
            return if rows.iter().any(|row| row.0) { Ok(()) } else { Err("it was not kept".to_owned()) };
        }
        // A released instance counts as expired or refunded, even if that was superseded.
        let released = rows.iter().any(|row| row.0 && row.4 == Some(RELEASED));
        if released && matches!(success.step.ask, Ask::Expire | Ask::RefundRenew) {
            return Ok(());
        }
        let is_done = |row: &Found| row.0 && row.1.is_some_and(|number| state(number) == JobState::Done);
        let done: Vec<&Found> = rows.iter().filter(|row| is_done(row)).collect();
        let wanted = if success.step.order.is_some() { 1 } else { success.nth as usize };
        let Some((_, _, key, id, kept)) = done.get(wanted - 1) else {
            return Err(format!("told and done are {} of {wanted}: {rows:?}", done.len()));
        };
        let key = key.clone().unwrap_or_default().to_lowercase();
        if !self.effects.contains(&key) {
            return Err(format!("its hook never did it (key {key})"));
        }
        match success.step.ask {
            Ask::Create | Ask::LateCreate if success.id != *id => {
                Err(format!("the id {:?} was told, and {id:?} is kept", success.id))
            }
            Ask::Release if *kept != Some(RELEASED) => Err(format!("the instance is in state {kept:?}")),
            _ => Ok(()),
        }
    }

    fn read_journal(&mut self, connection: &Connection, market: &Market) {
        for line in new_lines(&mut self.file, &self.journal, &mut self.rest) {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, key, account, biz, action, order, attempt, pid] = words[..] else {
                market.wrong(format!("a line of the journal is torn: {line}"));
                continue;
            };
            let call = Call {
                what: what.to_owned(),
                key: key.replace('-', ""),
                account: account.to_owned(),
                biz: biz.to_owned(),
                action: action.to_owned(),
                order: order.to_owned(),
                attempt: attempt.parse().unwrap(),
                pid: pid.to_owned(),
            };
            self.look_at_call(connection, call, market);
        }
    }

    fn look_at_call(&mut self, connection: &Connection, call: Call, market: &Market) {
        let lane = format!("{} {}", call.account, call.biz);
        if call.what == "begin" {
            self.tally.calls += 1;
            self.at.insert(call.pid.clone(), self.tally.calls);
        } else if self.at.get(&call.pid).is_none_or(|number| self.passed.contains(number)) {
            self.tally.overlaps += 1;
            market.wrong(format!(
                "{lane}: attempt {} at {} ({}) went on after a later one had begun",
                call.attempt, call.action, call.what
            ));
        }
        match call.what.as_str() {
            "begin" => self.look_at_begin(connection, &call, lane, market),
            "effect" => {
                self.effects.insert(call.key);
            }
            _ => {}
        }
    }

    fn look_at_begin(&mut self, connection: &Connection, call: &Call, lane: String, market: &Market) {
        let Some(job) = self.job(connection, &call.key) else {
            self.tally.lost += 1;
            market.wrong(format!(
                "{lane}: the hook was called for a {} nobody has kept ({})",
                call.action, call.key
            ));
            return;
        };
        self.look_at_key(call, &lane, market);
        if call.action == "payment" {
            return;
        }
        if let Some((last, before)) = self.lanes.insert(lane.clone(), (job, self.tally.calls)) {
            if job < last {
                self.tally.out_of_order += 1;
                market.wrong(format!("{lane}: job {job} ({}) began after job {last}", call.action));
            }
            self.passed.insert(before);
        }
    }

    /// One key for a callback, and one callback for a key.
    fn look_at_key(&mut self, call: &Call, lane: &str, market: &Market) {
        let subject = (lane.to_owned(), format!("{} {}", call.action, call.order));
        let used = self.uses.entry(call.key.clone()).or_insert_with(|| subject.clone());
        if *used != subject {
            self.tally.doubled += 1;
            market.wrong(format!("the key {} stood for {used:?} and for {subject:?}", call.key));
        }
        let keys = if call.order == "-" { &mut self.unordered } else { &mut self.occurrences };
        let keys = keys.entry(subject.clone()).or_default();
        keys.insert(call.key.clone());
        let most = if call.order != "-" || call.action == "release" { 1 } else { usize::MAX };
        if keys.len() > most {
            self.tally.doubled += 1;
            market.wrong(format!("{subject:?} has the keys {keys:?}"));
        }
    }

    fn job(&mut self, connection: &Connection, key: &str) -> Option<i64> {
        if let Some(job) = self.jobs.get(key) {
            return Some(*job);
        }
        let mut statement = connection.prepare_cached("SELECT number FROM job WHERE id = ?1").unwrap();
        let job = statement.query_row([hex::decode(key).ok()?], |row| row.get(0)).optional().unwrap()?;
        self.jobs.insert(key.to_owned(), job);
        Some(job)
    }
}

fn has_schema(connection: &Connection) -> bool {
    connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).unwrap() > 0
}

/// Time of the report, the job's state and key, and the instance's id and state.
type Found = (bool, Option<u8>, Option<String>, Option<String>, Option<i64>);

fn read_found(row: &rusqlite::Row<'_>) -> rusqlite::Result<Found> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn state(number: u8) -> JobState {
    JobState::ALL[usize::from(number)]
}
