//! Queries of the SQLite backend: the columns of each table, and the rows read from them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rusqlite::types::{FromSql, Type, Value, ValueRef};
use rusqlite::{Row, params, params_from_iter};

use super::Sqlite;
use super::codes::{
    CANCELLED, DONE, HELD, JOB_REFUSED, PAYMENT, QUERY, QUEUED, RECORDED, REFUSED, RELEASED, RUNNING,
    SIGN_ON, WITH_JOB,
};
use crate::observe::limits;
use crate::store::StoreError;
use crate::store::rows::{
    AttemptRow, AuditEntry, CallbackRow, DAY_MS, Disposition, Filter, InstanceAndQueue, InstanceRow, JobKind,
    JobRow, KeyUse, Lists, MarketJob, MarketJobKind, MarketJobs, Numbered, Read, ReadableJob, Result, Totals,
    Unreadable,
};
use spid_core::lifecycle::schedule::{Extra, JobState};
use spid_hook::callback::{Action, Callback};
use spid_hook::id::Id;
use spid_hook::instance::{Instance, State};
use spid_hook::time::from_millis;

fn at_position<T: Copy>(all: &[T], position: Option<i64>) -> Option<T> {
    position
        .and_then(|position| usize::try_from(position).ok())
        .and_then(|position| all.get(position))
        .copied()
}

/// Cursor over the columns of one row, read in order. Access by name would search all columns, for every row of every
/// callback.
struct Columns<'a> {
    row: &'a Row<'a>,
    table: &'static str,
    first: usize,
    next: usize,
}

impl<'a> Columns<'a> {
    fn of(table: &'static str, row: &'a Row<'a>) -> Columns<'a> {
        Columns::behind(table, row, 0)
    }

    /// Creates a cursor that starts at column `first` of a joined row.
    fn behind(table: &'static str, row: &'a Row<'a>, first: usize) -> Columns<'a> {
        Columns { row, table, first, next: first }
    }

    fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1).map_err(|error| self.unreadable(fault(&error), false))
    }

    fn instant(&mut self) -> rusqlite::Result<Timestamp> {
        Ok(from_millis(self.next()?))
    }

    fn instant_or_none(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        Ok(self.next::<Option<i64>>()?.map(from_millis))
    }

    /// Reads a stored index into `all`. An index above 0 that `all` does not have may come from a newer spid.
    fn one_of<T: Copy>(&mut self, all: &[T]) -> rusqlite::Result<T> {
        self.one_of_after(all, 0)
    }

    /// Reads a stored index into `all`, of which the first one is stored as `first`.
    fn one_of_after<T: Copy>(&mut self, all: &[T], first: i64) -> rusqlite::Result<T> {
        let stored = self.next::<i64>()?;
        match at_position(all, stored.checked_sub(first)) {
            Some(value) => Ok(value),
            None => Err(self.unreadable(format!("is {stored}, which is not a known value"), stored > 0)),
        }
    }

    /// Error about the column that was read last.
    fn unreadable(&self, fault: String, newer: bool) -> rusqlite::Error {
        let column = self.row.as_ref().column_name(self.next - 1).unwrap_or("?");
        // Every column list starts with the key of its table.
        let row = match self.row.get_ref(self.first) {
            Ok(ValueRef::Integer(number)) => number.to_string(),
            Ok(ValueRef::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => "?".to_owned(),
        };
        let unreadable = Unreadable { table: self.table, row, fault: format!("`{column}` {fault}"), newer };
        rusqlite::Error::FromSqlConversionFailure(self.next - 1, Type::Null, Box::new(unreadable))
    }
}

fn fault(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::IntegralValueOutOfRange(_, value) => format!("is {value}, which is out of range"),
        rusqlite::Error::InvalidColumnType(_, _, kind) => format!("is of the wrong type, {kind}"),
        rusqlite::Error::Utf8Error(..) => "is not UTF-8".to_owned(),
        other => format!("cannot be used: {other}"),
    }
}

/// Error about a row that refers to an instance that does not exist.
pub(super) fn dangling_reference(table: &'static str, account: &str, key: &str) -> rusqlite::Error {
    let (row, fault) =
        (format!("{account}/{key}"), "`instance` refers to an instance that does not exist".to_owned());
    let unreadable = Unreadable { table, row, fault, newer: false };
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, Box::new(unreadable))
}

/// Number under which a kind of jobs is stored. A hook's kind is 0.
pub(super) fn kind_code(kind: MarketJobKind) -> i64 {
    kind as i64 + 1
}

/// Deduplication key of a job of the market client. The name of a market has no `/`.
pub(super) fn key_of(market: &str, about: &str) -> String {
    format!("{market}/{about}")
}

/// Integer in a computed column; `None` if it cannot be read.
pub(super) fn integer(row: &Row<'_>, column: usize) -> Option<i64> {
    row.get(column).ok()
}

pub(super) fn millis(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_millisecond)
}

/// Columns of an instance, in the order they are read.
pub(super) const INSTANCE_COLUMNS: &str = "instance.number, instance.created_by, instance.public_id, instance.id, instance.order_biz_id, instance.state,
         instance.account, instance.endpoint, instance.buyer, instance.product, instance.sku,
         instance.order_id, instance.trial, instance.expires_on, instance.expires_on_raw, instance.items,
         instance.began, instance.tombstone, instance.adopted, instance.converted, instance.claimed_at, instance.tenant,
         instance.created_at, instance.updated_at, instance.known_as";

/// Number of columns in [`INSTANCE_COLUMNS`].
const INSTANCE_COLUMNS_COUNT: usize = 25;

pub(super) fn read_instance(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    let mut columns = Columns::of("instance", row);
    let (number, created_by, marketplace_instance_id) = (columns.next()?, columns.next()?, columns.next()?);
    let instance = Instance {
        id: columns.next()?,
        order_biz_id: columns.next()?,
        state: columns.one_of(&State::ALL)?,
        account: columns.next()?,
        endpoint: columns.next()?,
        buyer: columns.next()?,
        product: columns.next()?,
        sku: columns.next()?,
        order_id: columns.next()?,
        trial: columns.next()?,
        expires_on: columns.instant_or_none()?,
        expires_on_raw: columns.next()?,
        items: read_items(&mut columns)?,
        began: columns.next()?,
        tombstone: columns.next()?,
        adopted: columns.next()?,
        converted: columns.next()?,
        claimed_at: columns.instant_or_none()?,
        tenant: columns.next()?,
        created_at: columns.instant()?,
        updated_at: columns.instant()?,
    };
    let known_as = columns.next()?;
    Ok(InstanceRow { number, created_by, marketplace_instance_id, known_as, instance })
}

fn read_items(columns: &mut Columns<'_>) -> rusqlite::Result<BTreeMap<String, String>> {
    let items = columns.next::<Option<String>>()?.map(|text| serde_json::from_str(&text)).transpose();
    let items =
        items.map_err(|error| columns.unreadable(format!("is not a map of items: {error}"), false))?;
    Ok(items.unwrap_or_default())
}

/// Columns of a callback, in the order they are read. Queries that need the body append it.
const CALLBACK_COLUMNS: &str =
    "callback.number, callback.account, callback.endpoint, callback.key_label, callback.occurrence,
         callback.instance, callback.job, callback.action, callback.disposition, callback.reason_code,
         callback.reason, callback.received_at, callback.last_received_at, callback.deliveries,
         callback.budget, callback.told_at, callback.dismissed_at";

/// Number of columns in [`CALLBACK_COLUMNS`].
const CALLBACK_COLUMNS_COUNT: usize = 17;

fn read_callback(row: &Row<'_>) -> rusqlite::Result<CallbackRow> {
    let mut columns = Columns::of("callback", row);
    Ok(CallbackRow {
        number: columns.next()?,
        account: columns.next()?,
        endpoint: columns.next()?,
        key_label: columns.next()?,
        deduplication_key: columns.next()?,
        instance: columns.next()?,
        job: columns.next()?,
        action: columns.one_of(&Action::ALL)?,
        disposition: columns.one_of(&Disposition::ALL)?,
        reason_code: columns.next()?,
        reason: columns.next()?,
        received_at: columns.instant()?,
        last_received_at: columns.instant()?,
        deliveries: columns.next::<i64>()?.unsigned_abs(),
        delivery_limit: columns.next()?,
        reported_at: columns.instant_or_none()?,
        dismissed_at: columns.instant_or_none()?,
    })
}

/// Reads the body of callback `number` from column `behind`.
fn read_body(row: &Row<'_>, behind: usize, number: i64) -> rusqlite::Result<Callback> {
    let body = row.get_ref(behind)?.as_bytes();
    let body =
        body.map_err(|error| unreadable_body(behind, number, format!("is not text: {error}"), false))?;
    let known = Callback::VERSION;
    let read = match serde_json::from_slice::<Callback>(body) {
        Ok(callback) if callback.version <= known => return Ok(callback),
        read => read,
    };
    // Read the version alone, because a newer body may not fit our type.
    let version = serde_json::from_slice::<Version>(body).map_or(0, |body| body.version);
    let fault = match read {
        _ if version > known => format!("has version {version}; this spid supports versions up to {known}"),
        Err(error) => format!("is not a callback: {error}"),
        Ok(_) => "is not a callback".to_owned(),
    };
    Err(unreadable_body(behind, number, fault, version > known))
}

fn unreadable_body(column: usize, number: i64, fault: String, newer: bool) -> rusqlite::Error {
    let fault = format!("`body` {fault}");
    let unreadable = Unreadable { table: "callback", row: number.to_string(), fault, newer };
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, Box::new(unreadable))
}

/// Version member of a body, which every version of spid writes.
#[derive(serde::Deserialize)]
struct Version {
    #[serde(default)]
    version: u32,
}

/// Returns the query for the number of the next row of a table.
///
/// The number is higher than that of every existing row, and of every deleted row, which table `head` remembers.
/// Rows edited or removed by hand must not block later inserts. So the query ignores values that are not integers,
/// and numbers from 2^53 - 1 upwards. Nothing could follow those, because JSON has no higher integers.
fn next_number_sql(table: &str) -> String {
    format!(
        "SELECT 1 + max(0, coalesce((SELECT max(number) FROM {table} WHERE number < 9007199254740991), 0),
           coalesce((SELECT {table} FROM head WHERE id = 1 AND {table} < 9007199254740991), 0))"
    )
}

/// Columns of a job, in the order they are read.
const JOB_COLUMNS: &str =
    "job.number, job.id, job.callback, job.instance, job.in_lane, job.action, job.state, job.attempts,
         job.step, job.extra, job.due_at, job.lease_until, job.attempted_at, job.note, job.answer,
         job.sealed, job.proposed_id, job.created_at, job.ended_at, job.blocked";

/// Number of columns in [`JOB_COLUMNS`].
const JOB_COLUMNS_COUNT: usize = 20;

fn read_job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    read_job_behind(row, 0)
}

/// Reads a job whose columns start at column `behind` of a joined row.
fn read_job_behind(row: &Row<'_>, behind: usize) -> rusqlite::Result<JobRow> {
    let mut columns = Columns::behind("job", row, behind);
    Ok(JobRow {
        number: columns.next()?,
        id: Id::from_bytes(columns.next()?),
        callback: columns.next()?,
        instance: columns.next()?,
        ordered: columns.next()?,
        action: columns.one_of(&Action::ALL)?,
        state: columns.one_of(&JobState::ALL)?,
        attempts: columns.next()?,
        step: columns.next()?,
        extra: columns.one_of(&Extra::ALL)?,
        due_at: columns.instant()?,
        lease_until: columns.instant_or_none()?,
        attempted_at: columns.instant_or_none()?,
        note: columns.next()?,
        answer: columns.next()?,
        sealed: columns.next()?,
        proposed_id: columns.next()?,
        created_at: columns.instant()?,
        ended_at: columns.instant_or_none()?,
        blocked: columns.next()?,
    })
}

/// Reads a callback, and the job whose columns follow it, if it has one.
fn read_callback_and_job(row: &Row<'_>) -> rusqlite::Result<(CallbackRow, Option<JobRow>)> {
    let callback = read_callback(row)?;
    // A callback without a job has NULL in all job columns.
    let is_there = row.get_ref(CALLBACK_COLUMNS_COUNT)? != ValueRef::Null;
    let job = is_there.then(|| read_job_behind(row, CALLBACK_COLUMNS_COUNT)).transpose()?;
    Ok((callback, job))
}

fn number_of(job: &ReadableJob) -> i64 {
    match job {
        Ok(job) => job.number,
        Err((number, _)) => *number,
    }
}

/// Reads the id of a job and the encrypted part of its answer, from the columns number, id and sealed.
pub(super) fn read_sealed(row: &Row<'_>) -> rusqlite::Result<(Id, Vec<u8>)> {
    let mut columns = Columns::behind("job", row, 0);
    let _number: i64 = columns.next()?;
    Ok((Id::from_bytes(columns.next()?), columns.next()?))
}

/// Reads a job. An unreadable job gives its number and the error, so that the caller can hold it.
fn read_readable(row: &Row<'_>) -> rusqlite::Result<ReadableJob> {
    // Only an unreadable row is a result; every other error ends the query.
    read_job(row).map(Ok).or_else(|error| match (StoreError::from(error), integer(row, 0)) {
        (StoreError::Unreadable(unreadable), Some(number)) => Ok(Err((number, unreadable))),
        (other, _) => Err(rusqlite::Error::ToSqlConversionFailure(Box::new(other))),
    })
}

fn read_attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    let mut columns = Columns::of("attempt", row);
    Ok(AttemptRow {
        job: columns.next()?,
        attempt: columns.next()?,
        ended_at: columns.instant()?,
        ending: columns.next()?,
        note: columns.next()?,
    })
}

/// Columns of a job of the market client, in the order they are read.
const MARKET_JOB_COLUMNS: &str =
    "job.number, job.id, job.kind, job.key, job.state, job.attempts, job.step, job.due_at,
         job.lease_until, job.attempted_at, job.note, job.created_at, job.ended_at";

fn read_market_job(row: &Row<'_>) -> rusqlite::Result<MarketJob> {
    let mut columns = Columns::of("job", row);
    let (number, id) = (columns.next()?, Id::from_bytes(columns.next()?));
    // Kind 0 is a hook's.
    let kind = columns.one_of_after(&MarketJobKind::ALL, 1)?;
    let key: String = columns.next()?;
    let Some((market, about)) = key.split_once('/') else {
        return Err(columns.unreadable("does not name a market".to_owned(), false));
    };
    Ok(MarketJob {
        number,
        id,
        kind,
        market: market.to_owned(),
        about: about.to_owned(),
        state: columns.one_of(&JobState::ALL)?,
        attempts: columns.next()?,
        step: columns.next()?,
        due_at: columns.instant()?,
        lease_until: columns.instant_or_none()?,
        attempted_at: columns.instant_or_none()?,
        note: columns.next()?,
        created_at: columns.instant()?,
        ended_at: columns.instant_or_none()?,
    })
}

/// Payments of an order. The expression is that of the index `callback_payment`.
pub(super) fn payments_sql() -> String {
    format!(
        "SELECT {CALLBACK_COLUMNS}, body FROM callback WHERE action = {PAYMENT}
             AND CASE WHEN json_valid(body) THEN json_extract(body, '$.order_id') END = ?1 AND account = ?2"
    )
}

/// Due jobs. Jobs behind another one in their instance's queue are not in the index that this query reads.
pub(super) fn due_sql() -> String {
    format!(
        "SELECT {JOB_COLUMNS} FROM job
             WHERE state = {QUEUED} AND state < 2 AND kind = 0 AND blocked = 0 AND due_at <= ?1
             ORDER BY due_at, number LIMIT ?2"
    )
}

/// Due time of the next job that is not blocked and not due yet.
pub(super) fn next_due_sql() -> String {
    format!(
        "SELECT min(due_at) FROM job
             WHERE state = {QUEUED} AND state < 2 AND kind = 0 AND blocked = 0 AND due_at > ?1"
    )
}

/// Condition for a callback of a marketplace that succeeded and is not reported: its job succeeded, or an operator's
/// approval found nothing left to do. Every other callback without a job is reported in the commit that records it.
fn is_unreported_sql() -> String {
    format!(
        "(told_at IS NULL AND deliveries > 0
             AND (disposition = {RECORDED} OR disposition = {WITH_JOB}
               AND EXISTS (SELECT 1 FROM job WHERE job.number = callback.job AND job.state = {DONE})))"
    )
}

/// Highest count of deliveries, and highest part of the delivery limit, of the callbacks that still wait for an answer.
/// A refused, dropped or canceled callback had its answer, so further deliveries of it change nothing.
fn deliveries_used_sql() -> String {
    format!(
        "SELECT max(deliveries), max(deliveries * 1.0 / budget) FROM callback
             WHERE told_at IS NULL AND budget IS NOT NULL AND disposition <> {REFUSED}
             AND (disposition <> {WITH_JOB}
               OR EXISTS (SELECT 1 FROM job WHERE job.number = callback.job AND job.state <= {DONE}))"
    )
}

/// Conditions of a list query, added one by one, with their parameters.
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn new(filter: &Filter) -> Conditions {
        // The condition `1` is true, so that every further condition can begin with AND.
        let mut conditions = Conditions { sql: "1".to_owned(), values: Vec::new() };
        // Pages go from the newest row to the oldest.
        conditions.add("number < ?", filter.before);
        conditions
    }

    fn add(&mut self, sql: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.sql.push_str(" AND ");
            self.sql.push_str(sql);
            self.values.push(value.into());
        }
    }

    fn any_of(&mut self, column: &str, texts: &[String]) {
        if texts.is_empty() {
            return;
        }
        let marks = vec!["?"; texts.len()].join(", ");
        self.sql.push_str(&format!(" AND {column} IN ({marks})"));
        self.values.extend(texts.iter().cloned().map(Value::Text));
    }

    /// Jobs in one of these states. An empty list stands for every state.
    fn states(&mut self, states: &[JobState]) {
        if !states.is_empty() {
            let numbers: Vec<String> = states.iter().map(|state| (*state as i64).to_string()).collect();
            self.sql.push_str(&format!(" AND state IN ({})", numbers.join(", ")));
        }
    }

    fn search(&mut self, text: &str) {
        let columns = ["id", "order_biz_id", "buyer", "order_id", "product", "sku"];
        let found = columns.map(|column| format!("{column} LIKE ? ESCAPE '\\'"));
        // An instance may have names that no column holds, such as the id that the marketplace gave it.
        let named = "number IN (SELECT instance FROM name WHERE name LIKE ? ESCAPE '\\')";
        self.sql.push_str(&format!(" AND ({} OR {named})", found.join(" OR ")));
        // `%` and `_` in the text are literal. LIKE ignores the case of ASCII letters.
        let plain = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        self.values.extend(columns.iter().chain(&["name"]).map(|_| Value::Text(format!("%{plain}%"))));
    }

    fn query(mut self, columns: &str, table: &str, limit: usize) -> (String, Vec<Value>) {
        self.values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        (
            format!("SELECT {columns} FROM {table} WHERE {} ORDER BY number DESC LIMIT ?", self.sql),
            self.values,
        )
    }
}

/// Texts of the two queries that every callback needs. They are made once for each connection, because to write the text
/// costs as much as to read the row.
#[derive(Debug)]
pub(super) struct Queries {
    instance_by_name: String,
    earlier_callbacks: String,
}

impl Default for Queries {
    fn default() -> Queries {
        Queries {
            instance_by_name: format!(
                "SELECT {INSTANCE_COLUMNS},
                   EXISTS (SELECT 1 FROM job WHERE job.instance = name.instance AND job.state < {DONE} AND job.in_lane = 1)
                 FROM name LEFT JOIN instance ON instance.number = name.instance
                 WHERE name.account = ?1 AND name.name = ?2"
            ),
            earlier_callbacks: format!(
                "SELECT {CALLBACK_COLUMNS}, {JOB_COLUMNS}
                 FROM callback LEFT JOIN job ON job.number = callback.job
                 WHERE callback.occurrence = ?1 ORDER BY callback.number"
            ),
        }
    }
}

impl Read for Sqlite {
    fn instance(&self, number: i64) -> Result<Option<InstanceRow>> {
        self.one(
            &format!("SELECT {INSTANCE_COLUMNS} FROM instance WHERE number = ?1"),
            [number],
            read_instance,
        )
    }

    fn instance_by_name(&self, account: &str, name: &str) -> Result<Option<InstanceAndQueue>> {
        // A name without its instance must not look like a free name: its order would be carried out twice.
        let read = |row: &Row<'_>| match row.get_ref(0)? {
            ValueRef::Null => Err(dangling_reference("name", account, name)),
            _ => Ok((read_instance(row)?, row.get(INSTANCE_COLUMNS_COUNT)?)),
        };
        match self.one(&self.queries.instance_by_name, [account, name], read)? {
            // A second query reads the queue, and only if it is not empty.
            Some((row, true)) => {
                let queue = self.queue(row.number)?;
                Ok(Some((row, queue)))
            }
            Some((row, false)) => Ok(Some((row, Vec::new()))),
            None => Ok(None),
        }
    }

    fn name_holder(&self, account: &str, name: &str) -> Result<Option<i64>> {
        self.one("SELECT instance FROM name WHERE account = ?1 AND name = ?2", [account, name], |row| {
            row.get::<_, i64>(0).map_err(|_| dangling_reference("name", account, name))
        })
    }

    fn instances_by_order(&self, account: &str, order_id: &str) -> Result<Vec<i64>> {
        // Two rows are enough: the caller needs to know only that the order has more than one instance.
        self.many(
            "SELECT instance.number FROM purchase LEFT JOIN instance ON instance.number = purchase.instance
             WHERE purchase.account = ?1 AND purchase.order_id = ?2 LIMIT 2",
            [account, order_id],
            |row| integer(row, 0).ok_or_else(|| dangling_reference("purchase", account, order_id)),
        )
    }

    fn instance_bought(&self, account: &str, order_id: &str, order_biz_id: &str) -> Result<Option<i64>> {
        let most = i64::try_from(limits::ORDER_INSTANCES_READ_COUNT).unwrap_or(i64::MAX);
        let sql = "SELECT instance FROM purchase WHERE account = ?1 AND order_id = ?2 LIMIT ?3";
        let bought: Vec<i64> = self.many(sql, params![account, order_id, most], |row| row.get(0))?;
        // Nearly always the order is new, and then the instances need not be read.
        for number in bought {
            let sql = "SELECT number FROM instance WHERE number = ?1 AND order_biz_id = ?2";
            if let Some(number) = self.one(sql, params![number, order_biz_id], |row| row.get(0))? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn queue(&self, instance: i64) -> Result<Vec<(JobRow, Callback)>> {
        self.many(
            &format!(
                "SELECT {JOB_COLUMNS}, callback.body
             FROM job JOIN callback ON callback.number = job.callback
             WHERE job.instance = ?1 AND job.state < {DONE} AND job.in_lane = 1 ORDER BY job.number"
            ),
            [instance],
            |row| {
                let job = read_job(row)?;
                let callback = read_body(row, JOB_COLUMNS_COUNT, job.callback)?;
                Ok((job, callback))
            },
        )
    }

    fn queue_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        let sql = &format!(
            "SELECT {JOB_COLUMNS} FROM job
             WHERE instance = ?1 AND state < {DONE} AND in_lane = 1 ORDER BY number"
        );
        self.many(sql, [instance], read_job)
    }

    fn instance_jobs(&self, instance: i64) -> Result<Vec<JobRow>> {
        self.list_jobs(&Filter { instance: Some(instance), limit: usize::MAX, ..Filter::default() })
    }

    fn instance_callbacks(&self, instance: i64) -> Result<Vec<CallbackRow>> {
        self.list_callbacks(&Filter { instance: Some(instance), limit: usize::MAX, ..Filter::default() })
    }

    fn has_queue(&self, instance: i64) -> Result<bool> {
        let sql =
            &format!("SELECT 1 FROM job WHERE instance = ?1 AND state < {DONE} AND in_lane = 1 LIMIT 1");
        Ok(self.one(sql, [instance], |_| Ok(()))?.is_some())
    }

    fn nonce_until(&self, account: &str, mark: &[u8; 16]) -> Result<Option<Timestamp>> {
        let sql = "SELECT until FROM once WHERE account = ?1 AND mark = ?2";
        self.one(sql, rusqlite::params![account, mark], |row| Ok(from_millis(row.get(0)?)))
    }

    fn earlier_callbacks(&self, key: &[u8; 16]) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
        self.many(&self.queries.earlier_callbacks, [key], read_callback_and_job)
    }

    fn callback(&self, number: i64) -> Result<Option<(CallbackRow, Callback)>> {
        let sql = &format!("SELECT {CALLBACK_COLUMNS}, body FROM callback WHERE number = ?1");
        self.one(sql, [number], |row| {
            Ok((read_callback(row)?, read_body(row, CALLBACK_COLUMNS_COUNT, number)?))
        })
    }

    fn callback_row(&self, number: i64) -> Result<Option<CallbackRow>> {
        let sql = &format!("SELECT {CALLBACK_COLUMNS} FROM callback WHERE number = ?1");
        self.one(sql, [number], read_callback)
    }

    fn job(&self, number: i64) -> Result<Option<JobRow>> {
        self.one(&format!("SELECT {JOB_COLUMNS} FROM job WHERE number = ?1"), [number], read_job)
    }

    fn next_number(&self, table: Numbered) -> Result<i64> {
        let table = match table {
            Numbered::Instance => "instance",
            Numbered::Callback => "callback",
            Numbered::Job => "job",
        };
        let next = self.one(&next_number_sql(table), [], |row| row.get(0))?;
        next.ok_or(StoreError::Inconsistent("a row has no number"))
    }

    fn job_by_id(&self, id: Id) -> Result<Option<JobRow>> {
        self.one(
            &format!("SELECT {JOB_COLUMNS} FROM job WHERE id = ?1 AND kind = 0"),
            [id.as_bytes()],
            read_job,
        )
    }

    fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<ReadableJob>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Skipped jobs are still due and sort first, so read that many more rows.
        let skipped = self.skipped.borrow();
        let with_skipped = limit.saturating_add(skipped.len() as i64);
        let mut due = self.many(&due_sql(), [now.as_millisecond(), with_skipped], read_readable)?;
        due.retain(|job| !skipped.contains(&number_of(job)));
        due.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(due)
    }

    fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        let next = self.one(&next_due_sql(), [now.as_millisecond()], |row| Ok(integer(row, 0)))?;
        Ok(next.flatten().map(from_millis))
    }

    fn running(&self, ended_before: Option<Timestamp>) -> Result<Vec<ReadableJob>> {
        let sql = &format!(
            "SELECT {JOB_COLUMNS} FROM job WHERE state = {RUNNING} AND state < 2 AND kind = 0 AND blocked = 0
             AND (?1 IS NULL OR lease_until IS NULL OR lease_until < ?1) ORDER BY number"
        );
        let mut running = self.many(sql, [millis(ended_before)], read_readable)?;
        // Skipped jobs stay unchanged until the next start.
        running.retain(|job| !self.skipped.borrow().contains(&number_of(job)));
        Ok(running)
    }

    fn payments(&self, account: &str, order_id: &str) -> Result<Vec<(CallbackRow, Callback)>> {
        self.readable(&payments_sql(), [order_id, account], |row| {
            let callback = read_callback(row)?;
            let body = read_body(row, CALLBACK_COLUMNS_COUNT, callback.number)?;
            Ok((callback, body))
        })
    }

    fn market_jobs(&self, which: MarketJobs<'_>) -> Result<Vec<MarketJob>> {
        let (condition, values) = match which {
            MarketJobs::Number(number) => ("number = ? AND kind > 0".to_owned(), vec![number.into()]),
            MarketJobs::Live(kind, market, about) => (
                format!("kind = {} AND key = ? AND key IS NOT NULL AND state < {DONE}", kind_code(kind)),
                vec![key_of(market, about).into()],
            ),
            MarketJobs::Id(id) => ("id = ? AND kind > 0".to_owned(), vec![id.as_bytes().to_vec().into()]),
            MarketJobs::Due(due) => (
                format!(
                    "state = {QUEUED} AND state < 2 AND kind = {} AND blocked = 0 AND due_at <= ?1
                     AND substr(key, 1, length(?2)) = ?2 ORDER BY due_at, number LIMIT ?3",
                    kind_code(due.kind)
                ),
                vec![
                    due.now.as_millisecond().into(),
                    key_of(due.market, "").into(),
                    Value::Integer(i64::try_from(due.limit).unwrap_or(i64::MAX)),
                ],
            ),
            MarketJobs::Running => {
                (format!("state = {RUNNING} AND state < 2 AND kind > 0 AND blocked = 0"), Vec::new())
            }
            MarketJobs::AllLive => (format!("kind > 0 AND key IS NOT NULL AND state < {DONE}"), Vec::new()),
        };
        let sql = format!("SELECT {MARKET_JOB_COLUMNS} FROM job WHERE {condition}");
        Ok(which.sorted(self.readable(&sql, params_from_iter(values), read_market_job)?))
    }

    fn key_uses(&self) -> Result<Vec<KeyUse>> {
        let sql = "SELECT endpoint, label, mark, since, used_at FROM key_use ORDER BY endpoint, label";
        self.readable(sql, [], |row| {
            let mut columns = Columns::of("key_use", row);
            Ok(KeyUse {
                endpoint: columns.next()?,
                label: columns.next()?,
                mark: columns.next()?,
                since: columns.instant()?,
                used_at: columns.instant_or_none()?,
            })
        })
    }
}

impl Lists for Sqlite {
    fn instances_named(&self, name: &str) -> Result<Vec<InstanceRow>> {
        let sql = &format!(
            "SELECT {INSTANCE_COLUMNS}, name.account
             FROM name LEFT JOIN instance ON instance.number = name.instance
             WHERE name.name = ?1 ORDER BY instance.number"
        );
        let (found, mut unreadable) = self.partition(sql, [name], |row| match row.get_ref(0)? {
            ValueRef::Null => {
                let account = row.get_ref(INSTANCE_COLUMNS_COUNT)?.as_bytes().unwrap_or_default();
                Err(dangling_reference("name", &String::from_utf8_lossy(account), name))
            }
            _ => read_instance(row),
        })?;
        // Every match is unreadable: an unreadable instance must not look like a missing one.
        if let Some(last) = unreadable.pop_if(|_| found.is_empty()) {
            return Err(StoreError::Unreadable(Box::new(last)));
        }
        unreadable.into_iter().for_each(|unreadable| self.log_once(unreadable));
        Ok(found)
    }

    fn unreadable_instances(&self, limit: usize) -> Result<Vec<Unreadable>> {
        let sql = &format!("SELECT {INSTANCE_COLUMNS} FROM instance ORDER BY number DESC LIMIT ?1");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (_, unreadable) = self.partition(sql, [limit], |row| read_instance(row).map(drop))?;
        Ok(unreadable)
    }

    fn name_of(&self, number: i64) -> Result<Option<(String, String)>> {
        let sql = "SELECT account, name FROM name WHERE instance = ?1 ORDER BY name LIMIT 1";
        self.one(sql, [number], |row| {
            let mut columns = Columns::of("name", row);
            Ok((columns.next()?, columns.next()?))
        })
    }

    fn list_instances(&self, filter: &Filter) -> Result<Vec<InstanceRow>> {
        let mut conditions = Conditions::new(filter);
        match filter.state {
            // A literal lets SQLite use the partial index.
            Some(State::Frozen) => conditions.sql.push_str(&format!(" AND state = {}", State::Frozen as i64)),
            state => conditions.add("state = ?", state.map(|state| state as i64)),
        }
        conditions.any_of("account", &filter.accounts);
        conditions.add("buyer = ?", filter.buyer.clone());
        conditions.add("tenant = ?", filter.tenant.clone());
        if let Some(text) = &filter.search {
            conditions.search(text);
        }
        // A released instance has no term that can end.
        if let Some((from, to)) = filter.expires {
            conditions.sql.push_str(&format!(" AND state <> {RELEASED}"));
            conditions.add("expires_on >= ?", Some(from.as_millisecond()));
            conditions.add("expires_on < ?", Some(to.as_millisecond()));
        }
        let (sql, values) = conditions.query(INSTANCE_COLUMNS, "instance", filter.limit);
        self.readable(&sql, params_from_iter(values), read_instance)
    }

    fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobRow>> {
        let mut conditions = Conditions::new(filter);
        conditions.sql.push_str(" AND kind = 0");
        conditions.add("instance = ?", filter.instance);
        conditions.states(&filter.jobs);
        let (sql, values) = conditions.query(JOB_COLUMNS, "job", filter.limit);
        self.readable(&sql, params_from_iter(values), read_job)
    }

    fn list_market_jobs(&self, filter: &Filter, after: i64) -> Result<Vec<MarketJob>> {
        let mut conditions = Conditions::new(filter);
        match filter.kind {
            Some(JobKind::Market(kind)) => conditions.add("kind = ?", Some(kind_code(kind))),
            _ => conditions.sql.push_str(" AND kind > 0"),
        }
        conditions.add("number > ?", Some(after));
        conditions.states(&filter.jobs);
        let (sql, values) = conditions.query(MARKET_JOB_COLUMNS, "job", filter.limit);
        self.readable(&sql, params_from_iter(values), read_market_job)
    }

    fn list_callbacks(&self, filter: &Filter) -> Result<Vec<CallbackRow>> {
        let mut conditions = Conditions::new(filter);
        conditions.add("instance = ?", filter.instance);
        conditions.any_of("account", &filter.accounts);
        match filter.disposition {
            // A literal instead of a parameter lets SQLite use the partial index of held callbacks.
            Some(Disposition::Held) => {
                conditions.sql.push_str(&format!(" AND disposition = {HELD}"));
            }
            other => conditions.add("disposition = ?", other.map(|disposition| disposition as i64)),
        }
        if filter.unreported {
            conditions.sql.push_str(&format!(" AND {}", is_unreported_sql()));
        }
        let (sql, values) = conditions.query(CALLBACK_COLUMNS, "callback", filter.limit);
        self.readable(&sql, params_from_iter(values), read_callback)
    }

    fn instances_of(&self, numbers: &[i64]) -> Result<Vec<InstanceRow>> {
        let sql = &format!("SELECT {INSTANCE_COLUMNS} FROM instance WHERE {NUMBERED}");
        Ok(self.partition(sql, [json_array(numbers)], read_instance)?.0)
    }

    fn jobs_of(&self, numbers: &[i64]) -> Result<Vec<JobRow>> {
        let sql = &format!("SELECT {JOB_COLUMNS} FROM job WHERE {NUMBERED}");
        Ok(self.partition(sql, [json_array(numbers)], read_job)?.0)
    }

    fn callbacks_of(&self, numbers: &[i64]) -> Result<Vec<(CallbackRow, Callback)>> {
        let sql = &format!("SELECT {CALLBACK_COLUMNS}, body FROM callback WHERE {NUMBERED}");
        let (found, _) = self.partition(sql, [json_array(numbers)], |row| {
            let callback = read_callback(row)?;
            let body = read_body(row, CALLBACK_COLUMNS_COUNT, callback.number)?;
            Ok((callback, body))
        })?;
        Ok(found)
    }

    fn unreported(&self) -> Result<Vec<(CallbackRow, Option<JobRow>)>> {
        // Three queries, because each has its own index. Sign-ons and queries need no person.
        let find = |condition: &str| {
            let sql = format!(
                "SELECT {CALLBACK_COLUMNS}, {JOB_COLUMNS} FROM callback LEFT JOIN job ON job.number = callback.job
                 WHERE {condition} AND callback.dismissed_at IS NULL
                 AND callback.action NOT IN ({SIGN_ON}, {QUERY}) ORDER BY callback.number"
            );
            self.readable(&sql, [], read_callback_and_job)
        };
        let mut found = find("callback.told_at IS NULL")?;
        // Success was reported, but an operator must learn of the other values.
        let noticed =
            "callback.reason_code = 'create-repeated-with-other-values' AND callback.told_at IS NOT NULL";
        found.extend(find(noticed)?);
        // The marketplace heard success before the hook ran, so only the seller can hear that the hook refused.
        found.extend(find(&format!(
            "job.action = {PAYMENT} AND job.state = {JOB_REFUSED}
             AND callback.told_at IS NOT NULL"
        ))?);
        found.sort_by_key(|(row, _)| row.number);
        Ok(found)
    }

    fn attempts(&self, job: i64) -> Result<Vec<AttemptRow>> {
        self.readable("SELECT job, attempt, ended_at, ending, note FROM attempt WHERE job = ?1 ORDER BY attempt, ended_at",
            [job],
            read_attempt,
        )
    }

    fn audit_log(&self, limit: usize) -> Result<Vec<AuditEntry>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = "SELECT number, at, who, act, target, why FROM act ORDER BY number DESC LIMIT ?1";
        self.readable(sql, [limit], |row| {
            let mut columns = Columns::of("act", row);
            let _number: i64 = columns.next()?;
            Ok(AuditEntry {
                at: columns.instant()?,
                who: columns.next()?,
                act: columns.next()?,
                target: columns.next()?,
                why: columns.next()?,
            })
        })
    }

    fn expiries(&self, first: i64, end: i64) -> Result<Vec<(i64, u64)>> {
        // `expires_on / DAY_MS` is the day, counted from 1970-01-01 in UTC.
        let sql = &format!(
            "SELECT expires_on / ?1, count(*) FROM instance WHERE state <> {RELEASED}
             AND expires_on >= ?2 * ?1 AND expires_on < ?3 * ?1 GROUP BY 1 ORDER BY 1"
        );
        self.many(sql, [DAY_MS, first, end], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
    }

    fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        let sql = "SELECT pending, active, frozen, released FROM head WHERE id = 1";
        let counts = self.one(sql, [], |row| {
            Ok(State::ALL.map(|state| integer(row, state as usize).unwrap_or(0).max(0).unsigned_abs()))
        })?;
        let counts = State::ALL.into_iter().zip(counts.unwrap_or_default());
        totals
            .instances
            .extend(counts.filter(|(_, count)| *count > 0).map(|(state, count)| (state.as_str(), count)));
        // Jobs that have not ended, and jobs in a state that this spid does not know.
        let sql = &format!(
            "SELECT state, count(*) FROM job WHERE kind = 0 AND (state < {DONE} OR state > {CANCELLED}) GROUP BY state"
        );
        for (state, count) in self.counts(sql)? {
            let state = at_position(&JobState::ALL, state);
            *totals.jobs.entry(state.map_or(UNKNOWN_STATE, JobState::as_str)).or_default() += count;
        }
        let held = &format!("SELECT count(*) FROM callback WHERE disposition = {HELD}");
        totals.held = self.count(held)?;
        totals.unreported =
            self.count(&format!("SELECT count(*) FROM callback WHERE {}", is_unreported_sql()))?;
        // The second condition lets SQLite use the index of live jobs.
        let queued = &format!(
            "SELECT min(created_at) FROM job WHERE state = {QUEUED} AND state < {DONE} AND kind = 0"
        );
        let queued = self.earliest(queued)?;
        let running = self.earliest(&format!(
            "SELECT min(created_at) FROM job WHERE state = {RUNNING} AND state < {DONE} AND kind = 0"
        ))?;
        totals.oldest_job = queued.into_iter().chain(running).min();
        totals.next_due = self.earliest(&format!(
            "SELECT min(due_at) FROM job WHERE state = {QUEUED} AND state < 2 AND kind = 0 AND blocked = 0"
        ))?;
        let used = self.one(&deliveries_used_sql(), [], |row| {
            Ok((integer(row, 0), row.get::<_, Option<f64>>(1).ok().flatten()))
        })?;
        let (deliveries, ratio) = used.unwrap_or_default();
        totals.tries = deliveries.unwrap_or(0).unsigned_abs();
        totals.deliveries_used_ratio = ratio.unwrap_or(0.0);
        Ok(totals)
    }

    fn unserved_accounts(&self, served: &[&str]) -> Result<BTreeMap<String, u64>> {
        let mut unserved = BTreeMap::new();
        for account in self.accounts()? {
            if served.contains(&account.as_str()) {
                continue;
            }
            let sql = &format!("SELECT count(*) FROM instance WHERE account = ?1 AND state <> {RELEASED}");
            let count = self.one(sql, [&account], |row| row.get::<_, i64>(0))?.unwrap_or(0);
            if count > 0 {
                unserved.insert(account, count.unsigned_abs());
            }
        }
        Ok(unserved)
    }
}

/// Condition that a row has one of the numbers in a JSON array: one statement for any number of them.
const NUMBERED: &str = "number IN (SELECT value FROM json_each(?1))";

fn json_array(numbers: &[i64]) -> String {
    format!("{numbers:?}")
}

/// Returns the query for the accounts of a table that is sorted by account.
fn accounts_sql(table: &str) -> String {
    format!(
        "WITH RECURSIVE found(account) AS (SELECT min(account) FROM {table}
           UNION ALL SELECT (SELECT min(account) FROM {table} WHERE account > found.account)
           FROM found WHERE found.account IS NOT NULL)
         SELECT account FROM found WHERE account IS NOT NULL"
    )
}

/// Word for a stored state that this spid does not know.
const UNKNOWN_STATE: &str = "unreadable";

impl Sqlite {
    /// Returns the groups of a query of two columns: a number, and a count.
    fn counts(&self, sql: &str) -> Result<Vec<(Option<i64>, u64)>> {
        self.many(sql, [], |row| Ok((integer(row, 0), integer(row, 1).unwrap_or(0).unsigned_abs())))
    }

    /// Returns the count that a query computes.
    fn count(&self, sql: &str) -> Result<u64> {
        Ok(self.one(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs())
    }

    /// Returns the instant that a query computes.
    fn earliest(&self, sql: &str) -> Result<Option<Timestamp>> {
        Ok(self.one(sql, [], |row| Ok(integer(row, 0)))?.flatten().map(from_millis))
    }

    /// Returns every account that has an instance with a name or an order.
    ///
    /// Both tables are sorted by account, so each step of the query skips to the next account. A start must not read a
    /// million rows to find three accounts. An unreadable account is logged and left out.
    fn accounts(&self) -> Result<BTreeSet<String>> {
        let mut accounts = BTreeSet::new();
        for table in ["name", "purchase"] {
            accounts.extend(self.readable(&accounts_sql(table), [], |row| Columns::of(table, row).next())?);
        }
        Ok(accounts)
    }
}
