//! All limits and defaults of the daemon, in one place, with the unit at the end of each name.
//!
//! Code that needs a limit takes it from this file. So one page answers the question how much a peer can make
//! the daemon hold. The relations between the numbers are asserted at compile time at the end of the file.

pub use spid_core::limits::*;
pub use spid_hook::limits::*;

/// Maximum size of the request line and the headers, in bytes.
pub const HEADERS_MAX_BYTES: usize = 32 * 1024;
/// Maximum number of header fields in one request.
pub const HEADERS_MAX_COUNT: usize = 64;
/// Maximum length of a request URI, in bytes.
pub const URI_MAX_BYTES: usize = 16 * 1024;
/// Maximum size of a request body, in bytes.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// Time for a peer to send its request headers, in milliseconds.
pub const HEADERS_READ_MS: u64 = 10_000;
/// Time for a peer to send its request body, in milliseconds.
pub const BODY_READ_MS: u64 = 10_000;
/// Time for which an idle kept-alive connection stays open, in milliseconds.
pub const IDLE_MS: u64 = 75_000;
/// Maximum number of open connections on one listener.
pub const CONNECTIONS_MAX_COUNT: usize = 1024;
/// Number of file descriptors the daemon wants: both listeners full, the pipes of all running hooks, and the database.
pub const DESCRIPTORS_WANTED_COUNT: u64 =
    2 * CONNECTIONS_MAX_COUNT as u64 + 8 * JOBS_RUNNING_MAX_COUNT as u64 + 128;
/// Number of file descriptors kept free of connections and running hooks, if the system allows fewer than
/// wanted. They are for the database and its readers, the listeners, and the start of a hook.
pub const DESCRIPTORS_RESERVED_COUNT: u64 = 40;
/// Number of file descriptors of a running hook: three pipes, the process, and a connection.
pub const DESCRIPTORS_PER_JOB_COUNT: u64 = 5;
/// Minimum number of connections of a listener, for any limit of open files.
pub const CONNECTIONS_MIN_COUNT: usize = 4;
/// Pause in milliseconds after the system failed to accept a connection (EMFILE and similar errors).
pub const ACCEPT_PAUSE_MS: u64 = 100;

/// Maximum number of proxies through which the client of a request is traced back.
pub const PROXY_HOPS_MAX_COUNT: usize = 16;
/// Maximum number of remembered addresses that sent wrong admin tokens.
pub const CLIENTS_KNOWN_MAX_COUNT: usize = 8 * 1024;

/// Time in milliseconds after which something unfinished needs a person. Examples are an order that is still
/// retried, and a result that the marketplace has not asked for again.
pub const ATTENTION_AFTER_MS: i64 = 60 * 60 * 1000;

/// Time in milliseconds for which the marketplace waits for a hook. The vendor states no number. Three seconds
/// is below every common timeout of proxies and clients.
pub const REPLY_WITHIN_MS: u64 = 3_000;
/// Additional wait in milliseconds if the result is being committed at the end of the first wait.
pub const REPLY_GRACE_MS: u64 = 2_000;
/// Time in milliseconds for which a nonce is remembered beyond its window. A clock that is set back must not
/// make a copy look new.
pub const NONCE_GRACE_MS: i64 = 15 * 60 * 1000;
/// Time in milliseconds for which passwords and license keys are repeated after the first complete answer.
pub const SECRETS_WINDOW_MS: i64 = 24 * 60 * 60 * 1000;
/// Maximum size of a key file, in bytes.
pub const KEY_FILE_MAX_BYTES: u64 = 16 * 1024;
/// Usual minimum length of a marketplace's key, in bytes. A shorter key causes a warning, because a part of it
/// is probably missing.
pub const KEY_USUAL_MIN_BYTES: usize = 8;
/// Maximum size of the configuration, in bytes.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Maximum size of a certificate file, in bytes. All root certificates of a system take a quarter of a megabyte.
pub const PEM_FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Maximum size of a file that the daemon itself has written beside its database, in bytes.
pub const OWN_FILE_MAX_BYTES: u64 = 16 * 1024;
/// Pause in milliseconds after the store could not record which keys are configured.
pub const KEYS_RETRY_MS: u64 = 60_000;
/// Precision of the time at which a key signed last, in milliseconds. One write per hour costs nothing; one
/// write per callback would.
pub const KEY_USE_STEP_MS: i64 = 60 * 60 * 1000;

/// Maximum number of store operations that wait for the writer.
pub const WRITER_QUEUE_MAX_COUNT: usize = 1024;
/// Maximum number of store operations in one commit.
pub const WRITER_BATCH_MAX_COUNT: usize = 256;
/// Maximum number of an order's instances that are searched for an instance whose name is missing.
pub const ORDER_INSTANCES_READ_COUNT: usize = 100;
/// Time in milliseconds for which a job written by a newer spid is left alone.
pub const NEWER_PAUSE_MS: i64 = 60_000;
/// Maximum number of unreadable rows that one connection reports.
pub const UNREADABLE_NAMED_MAX_COUNT: usize = 1_000;
/// Time for which SQLite waits for a lock of another process, in milliseconds.
pub const STORE_BUSY_MS: u64 = 2_000;
/// Time for which a start waits for the lock of a daemon that was just killed, in milliseconds.
pub const STORE_LOCK_MS: u64 = 1_000;
/// Number of rows read and changed in one commit of a maintenance operation: a prune, or a change of the sealing key.
pub const MAINTENANCE_BATCH_COUNT: usize = 200;
/// Minimum pause of a maintenance operation after each commit, in milliseconds, for other users of the
/// database. The pause is longer if the commit took longer.
pub const MAINTENANCE_PAUSE_MS: u64 = 5;
/// Time for which a maintenance operation waits for a lock of another process, in milliseconds. It can wait
/// long, because nothing waits for it.
pub const MAINTENANCE_BUSY_MS: u64 = 15_000;
/// Number of such waits for readers to release the write-ahead log.
pub const MAINTENANCE_JOURNAL_ATTEMPTS_COUNT: usize = 3;
/// Minimum age for pruning, in milliseconds. It is longer than the time after which any marketplace calls again.
pub const PRUNE_AGE_MIN_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Maximum window for the date of a sign-on, in milliseconds.
pub const SIGN_ON_WINDOW_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// Time for which a reader waits for a lock of another process, in milliseconds.
pub const STORE_READ_BUSY_MS: u64 = 100;
/// Size of the write-ahead log, in pages, at which the writer thread copies its pages into the database. The
/// number is above SQLite's default, so that a page that changes with every order is copied less often. It must
/// not be large, because the whole log is read after a crash.
pub const STORE_CHECKPOINT_PAGES: u32 = 4_000;
/// Size to which the write-ahead log is truncated after a checkpoint, in bytes.
pub const STORE_JOURNAL_MAX_BYTES: i64 = 16 * 1024 * 1024;
/// Interval between writes of the counts of redeliveries, in milliseconds.
pub const COUNTS_FLUSH_MS: u64 = 1_000;
/// Maximum number of callbacks whose counts wait to be written. Beyond it a count is written immediately.
pub const COUNTS_PENDING_MAX_COUNT: usize = 4_096;
/// Time for which a readiness probe waits for a write, in milliseconds. It is longer than a busy lock, and
/// shorter than any prober waits.
pub const READY_WITHIN_MS: u64 = 3_000;
/// Time in milliseconds for which unauthenticated callers get the result of the last probe. They must not
/// control how often the disk is written.
pub const READY_REMEMBERED_MS: i64 = 1_000;
/// Minimum free disk space in bytes; below it the daemon is not ready. It is twice the size of a full write-ahead log.
pub const READY_DISK_MIN_BYTES: u64 = 32 * 1024 * 1024;
/// Minimum length of the token of the admin listener, in bytes.
pub const ADMIN_TOKEN_MIN_BYTES: usize = 16;
/// Number of wrong tokens that one address may send to the admin listener before its answers are delayed.
pub const ADMIN_GUESSES_FREE_COUNT: u32 = 10;
/// Time after which one wrong token is forgotten, in milliseconds.
pub const ADMIN_GUESS_FORGOTTEN_MS: u64 = 10_000;
/// Delay of the answer to a further wrong token, in milliseconds.
pub const ADMIN_GUESS_WAIT_MS: u64 = 1_000;
/// Maximum number of answers that are delayed at once. Further wrong tokens get 429 immediately.
pub const ADMIN_GUESSES_WAITING_COUNT: usize = 16;
/// Minimum interval between log lines about wrong tokens, in milliseconds.
pub const ADMIN_GUESSES_LOGGED_EVERY_MS: u64 = 10_000;
/// Default number of rows in a list.
pub const LIST_DEFAULT_COUNT: usize = 100;
/// Number of rows of a list for which the rows that they refer to are read at once.
pub const LIST_PART_COUNT: usize = 500;
/// Maximum number of rows in a list of the admin listener.
pub const LIST_MAX_COUNT: usize = 1_000;

/// Duration of the lease of a dispatcher on a job, in milliseconds.
pub const LEASE_MS: i64 = 30_000;
/// Interval at which leases are renewed while the hook runs, in milliseconds.
pub const LEASE_RENEW_MS: u64 = 10_000;
/// Maximum number of hook calls in flight, over all hooks. One of them is reserved for each hook. Jobs that
/// wait for a hook, and order lookups, have their own limits and do not count.
pub const JOBS_RUNNING_MAX_COUNT: usize = 64;
/// Maximum number of jobs that are taken and wait for one busy hook, or for the order lookup at one
/// marketplace. Each hook and each marketplace has its own limit. Further jobs stay in the store.
pub const JOBS_WAITING_MAX_COUNT: usize = 1_024;
/// Maximum delay, in polls of the dispatcher, until a job that found no room is looked at again.
pub const ROOM_PAUSES_MAX_COUNT: u32 = 12;
/// Maximum number of due jobs without room that are postponed at one poll. The others are postponed at the next.
pub const JOBS_POSTPONED_MAX_COUNT: usize = 64;
/// Interval at which the dispatcher looks for due jobs without being woken, in milliseconds.
pub const DISPATCH_POLL_MS: u64 = 5_000;
/// Maximum length of a hook's own retry list.
pub const RETRY_LIST_MAX_COUNT: usize = 32;
/// Minimum wait in a hook's own retry list, in seconds.
pub const RETRY_LIST_WAIT_MIN_S: u64 = 1;
/// Maximum wait in a hook's own retry list, in seconds.
pub const RETRY_LIST_WAIT_MAX_S: u64 = 24 * 60 * 60;

/// Maximum number of order lookups in flight at one marketplace.
pub const ORDER_LOOKUPS_MAX_COUNT: usize = 16;
/// Time for a marketplace to answer an order lookup, in milliseconds.
pub const ORDER_LOOKUP_MS: u64 = 20_000;
/// Longest wait that a client of the application's listener may ask for, in seconds.
pub const APP_WAIT_MAX_S: u64 = 60;
/// Maximum number of requests of the application that wait for a change.
pub const APP_WAITS_MAX_COUNT: usize = 256;
/// Interval at which a waiting request reads without a commit of this process, in milliseconds.
pub const APP_POLL_MS: u64 = 1_000;
/// Minimum time between two reads of a waiting request, in milliseconds.
pub const APP_REREAD_MS: u64 = 50;
/// Time after the end of a term in which a customer stays entitled by default, in milliseconds.
pub const APP_OVERRUN_MS: i64 = 24 * 60 * 60 * 1000;
/// Number of the newest instances that the console and the JSON API check for unreadable rows. `spid attention` checks all.
pub const ATTENTION_CHECKED_COUNT: usize = 10_000;
/// Time for a marketplace's API to answer a call, in milliseconds. The vendor's own library waits 10 s.
pub const MARKET_CALL_MS: u64 = 15_000;
/// Default number of calls of a marketplace's API a minute. The vendor's limits are unknown.
pub const MARKET_CALLS_PER_MINUTE: usize = 120;
/// Default number of calls of a marketplace's API at once.
pub const MARKET_CALLS_MAX_COUNT: usize = 4;
/// Time for the metadata service of the machine to answer, in milliseconds.
pub const METADATA_MS: u64 = 2_000;
/// Wait after a failed renewal of a temporary key that has not ended yet, in milliseconds.
pub const KEY_RENEWAL_PAUSE_MS: u64 = 30_000;
/// Maximum size of an answer of a marketplace's API, in bytes.
pub const MARKET_ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Wait after the first throttled call, in milliseconds. It doubles with each further one.
pub const MARKET_BACKOFF_MS: u64 = 1_000;
/// Longest wait after a throttled call, in milliseconds.
pub const MARKET_BACKOFF_MAX_MS: u64 = 60_000;
/// Lease of a job of the market client, in milliseconds. It is longer than the calls of an attempt can take.
pub const MARKET_LEASE_MS: i64 = 10 * 60 * 1000;
/// Waits before the next attempt at a job of the market client, in milliseconds. A recurring job keeps the last one.
pub const MARKET_JOB_WAITS_MS: [i64; 8] = [
    30_000,
    2 * 60_000,
    10 * 60_000,
    30 * 60_000,
    60 * 60_000,
    3 * 60 * 60_000,
    6 * 60 * 60_000,
    12 * 60 * 60_000,
];
/// Number of failures in a row after which a recurring job of the market client needs a person.
pub const MARKET_JOB_FAILURES_COUNT: u32 = 3;
/// Maximum number of attempts at jobs of one market at once.
pub const MARKET_JOBS_RUNNING_MAX_COUNT: usize = 8;
/// Interval of the look for due jobs of the market client, in milliseconds.
pub const MARKET_JOB_POLL_MS: u64 = 1_000;
/// Default interval of the look for notifications that a marketplace has given up sending, in milliseconds. An entry
/// appears there only after hours of failed calls.
pub const FAILED_NOTIFICATIONS_MS: i64 = 30 * 60_000;
/// Maximum number of pages of failed notifications that are read in turn.
pub const FAILED_NOTIFICATIONS_PAGES_MAX_COUNT: u32 = 100;
/// Number of failed notifications on one page. The vendor's maximum is unknown; this is its sample.
pub const FAILED_NOTIFICATIONS_PAGE_COUNT: u32 = 10;
/// Maximum size of a file of credentials, in bytes.
pub const CREDENTIALS_FILE_MAX_BYTES: u64 = 256 * 1024;

/// Default timeout of a hook, in milliseconds.
pub const HOOK_TIMEOUT_MS: u64 = 10 * 60 * 1000;
/// Default concurrency of a hook.
pub const HOOK_CONCURRENCY_COUNT: usize = 16;
/// Time for which a connection to an `http` hook is kept for the next call, in milliseconds. It is shorter than
/// the common idle time of servers (5 s), so that a call seldom uses a connection that the server is closing.
pub const HOOK_IDLE_MS: u64 = 4_000;
/// Maximum number of further connections for a request that no byte was written of, because its server had closed the
/// kept connection.
pub const HOOK_UNSENT_MAX_COUNT: usize = 4;
/// Maximum memory of log lines that wait to be written, in bytes. Further lines are dropped.
pub const LOG_QUEUE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Part of that memory for lines of hooks and of the levels debug and trace, in bytes. The rest stays free for
/// the daemon's own lines.
pub const LOG_QUEUE_CHATTER_MAX_BYTES: usize = LOG_QUEUE_MAX_BYTES / 2;
/// Maximum length of a line of a hook's standard error that is logged, in bytes. Longer lines are cut.
pub const HOOK_LOG_LINE_MAX_BYTES: usize = 4 * 1024;
/// Maximum number of bytes logged of a hook's standard error for one attempt, including the fields added to each line.
pub const HOOK_LOG_MAX_BYTES: usize = 256 * 1024;
/// Bytes of a log line beside the hook's text: time, level, ids, names of fields. With it, a hook that writes
/// short lines gets about 600 of them into the log.
pub const HOOK_LOG_LINE_EXTRA_BYTES: usize = 420;
/// Time for which a start waits for the killed hooks of a dead daemon to end, in milliseconds.
pub const ORPHANED_HOOKS_END_MS: u64 = 5_000;

/// Maximum time for any answer of an SPI endpoint under test, in milliseconds. The vendor says "do not block"
/// and gives no number. Five seconds is the timeout of common clients.
pub const CONFORMANCE_ANSWER_MS: u64 = 5_000;
/// Delay in milliseconds before an SPI endpoint under test that says "call again" is called again.
pub const CONFORMANCE_RETRY_MS: u64 = 1_000;
/// Maximum number of such calls: the marketplace calls once and repeats the call 120 times.
pub const CONFORMANCE_RETRIES_COUNT: u32 = 121;
/// Number of concurrent requests for one order.
pub const CONFORMANCE_CONCURRENT_COUNT: usize = 32;
/// Maximum number of exchanges of one case in the report.
pub const CONFORMANCE_SHOWN_COUNT: usize = 8;

/// Maximum time span in a configuration, in seconds: a century. A longer one is a typing error, and no clock
/// can be that far ahead.
pub const SPAN_MAX_S: u64 = 100 * 365 * 86_400;

/// Length of a day of the simulated marketplace, in milliseconds.
pub const MARKET_DAY_MS: u64 = 1_000;
/// Delay before the simulated marketplace calls again, in milliseconds. The vendor does not state it.
pub const MARKET_RETRY_MS: u64 = 200;
/// Length of a minute in the simulated marketplace's retry ladder for payments, in milliseconds.
pub const MARKET_MINUTE_MS: u64 = 20;
/// Maximum number of requests of the simulated marketplace in flight.
pub const MARKET_AT_ONCE_COUNT: usize = 64;
/// Maximum number of orders of the simulated marketplace. Each order is planned and kept in memory.
pub const MARKET_ORDERS_MAX_COUNT: i64 = 1_000_000;

/// Maximum number of denied requests that are kept for inspection, in memory only.
pub const DENIED_KEPT_MAX_COUNT: usize = 256;
/// Maximum number of denied requests of one endpoint and reason that are kept per second. The rest are only counted.
pub const DENIED_KEPT_PER_WINDOW_COUNT: u64 = 8;
/// Minimum interval between log lines about one endpoint and reason, in milliseconds.
pub const DENIED_WINDOW_MS: i64 = 1_000;
/// Maximum length of a signed text that is kept whole for an explanation, in bytes. Of a longer text the
/// beginning is kept.
pub const DENIED_EVIDENCE_MAX_BYTES: usize = 4 * 1024;
/// Default number of denied requests that the admin listener shows.
pub const DENIED_SHOWN_COUNT: usize = 50;

/// Maximum number of spans that wait to be sent to a collector. Further spans are dropped.
pub const SPANS_QUEUED_MAX_COUNT: usize = 2_048;
/// Maximum number of spans in one request to the collector.
pub const SPANS_BATCH_MAX_COUNT: usize = 256;
/// Time for which the first span of a batch waits for others, in milliseconds.
pub const SPANS_BATCH_MS: u64 = 1_000;
/// Time for the collector to accept a batch, in milliseconds.
pub const SPANS_SEND_MS: u64 = 10_000;
/// Number of attempts to send a batch before it is dropped.
pub const SPANS_TRIES_COUNT: usize = 4;
/// Pause after the first failed attempt, in milliseconds. It is doubled after each further one.
pub const SPANS_PAUSE_MS: u64 = 1_000;
/// Maximum pause that a collector may ask for (`Retry-After`), in milliseconds.
pub const SPANS_PAUSE_MAX_MS: u64 = 30_000;

/// Time for which `healthcheck` waits for an answer, in milliseconds. It is longer than a readiness probe may take.
pub const HEALTHCHECK_MS: u64 = 5_000;
/// Maximum time for a notification to a supervisor that does not read, in milliseconds.
pub const NOTIFY_MS: u64 = 1_000;
/// Time for the writer and the dispatcher to show that they are alive, in milliseconds. It is longer than a
/// slow disk needs, because the supervisor restarts a daemon that misses it.
pub const ALIVE_WITHIN_MS: u64 = 20_000;

/// Time for which a stop waits for requests in flight, in milliseconds.
pub const STOP_REQUESTS_MS: u64 = 5_000;
/// Time in milliseconds for which a stop keeps connections open that have not sent a request yet. A request that is
/// already on the network is then answered. The time is longer than any network delay, and too short to be noticed.
pub const STOP_UNASKED_MS: u64 = 500;
/// Time for which a stop waits for running hooks before it aborts them, in milliseconds. Their jobs run again at the next
/// start.
pub const STOP_HOOKS_MS: u64 = 20_000;
/// Time for which a stop waits for the last commit, in milliseconds.
pub const STOP_STORE_MS: u64 = 5_000;
/// Time for which a stop waits for a collector to accept the last spans, in milliseconds.
pub const STOP_SPANS_MS: u64 = 2_000;
/// Time for which a stop waits until the last lines of the log are written, in milliseconds.
pub const STOP_LOG_MS: u64 = 1_000;

const _: () = assert!(
    PRUNE_AGE_MIN_MS > 4 * SIGN_ON_WINDOW_MAX_MS,
    "a sign-on that is forgotten is refused for its date"
);
const _: () = assert!(DATED_WINDOW_MS <= SIGN_ON_WINDOW_MAX_MS, "the default window is within the maximum");
const _: () = assert!(LEASE_MS as u64 >= 3 * LEASE_RENEW_MS, "a lease must outlive two missed renewals");
const _: () =
    assert!(NONCE_GRACE_MS >= 2 * NONCED_WINDOW_MS, "a nonce outlives requests that are dated in the future");
const _: () = assert!(
    RETRY_SCHEDULE_S.len() <= RETRY_LIST_MAX_COUNT,
    "the default schedule fits into a configured list"
);
const _: () = assert!(ALIVE_WITHIN_MS > 3 * DISPATCH_POLL_MS, "a dispatcher that waits is alive");
const _: () = assert!(READY_WITHIN_MS < HEALTHCHECK_MS, "healthcheck waits long enough to get the reason");
const _: () = assert!(STOP_UNASKED_MS < STOP_REQUESTS_MS, "a late request must still be answered");
const _: () = assert!(URI_MAX_BYTES < HEADERS_MAX_BYTES, "the URI is part of the header bytes");
const _: () = assert!(PARAMETER_VALUE_MAX_BYTES < URI_MAX_BYTES, "one value must fit a request");
const _: () =
    assert!(STORE_BUSY_MS < READY_WITHIN_MS, "a busy store reports its error before the probe times out");
const _: () = assert!(WRITER_BATCH_MAX_COUNT <= WRITER_QUEUE_MAX_COUNT, "a batch is drained from the queue");
const _: () = assert!(
    DENIED_KEPT_MAX_COUNT * (REASON_MAX_BYTES + 2 * DENIED_EVIDENCE_MAX_BYTES) <= 4 * 1024 * 1024,
    "unverified requests take little memory"
);
const _: () = assert!(
    REPLY_WITHIN_MS + REPLY_GRACE_MS < HEADERS_READ_MS,
    "an answer is due sooner than a slow peer is dropped"
);
