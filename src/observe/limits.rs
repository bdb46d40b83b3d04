//! Every bound and every default of the daemon, in one place, units last in the name.
//!
//! A limit that is not here does not exist: code that needs a bound takes it from this file, so
//! that an operator who asks "how much can a peer make us hold?" reads one page. Relations that
//! must hold between the numbers are asserted at compile time at the bottom.

/// Longest request line plus headers we read, in bytes.
pub const HEADERS_MAX_BYTES: usize = 32 * 1024;
/// Most header fields in one request.
pub const HEADERS_MAX_COUNT: usize = 64;
/// Longest request URI, in bytes.
pub const URI_MAX_BYTES: usize = 16 * 1024;
/// Longest request body, in bytes.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// Time a peer has to send its request headers, in milliseconds.
pub const HEADERS_READ_MS: u64 = 10_000;
/// Time a peer has to send its request body, in milliseconds.
pub const BODY_READ_MS: u64 = 10_000;
/// How long an idle kept-alive connection stays open, in milliseconds.
pub const IDLE_MS: u64 = 75_000;
/// Most connections open at once on one listener.
pub const CONNECTIONS_MAX_COUNT: usize = 1024;
/// File descriptors the daemon wants: both listeners full, the pipes of all running hooks, the database.
pub const DESCRIPTORS_WANTED_COUNT: u64 =
    2 * CONNECTIONS_MAX_COUNT as u64 + 8 * JOBS_RUNNING_MAX_COUNT as u64 + 128;
/// File descriptors that are kept free of connections and running hooks where fewer than wanted may be open: for the
/// database and its readers, the listeners, and the start of a hook.
pub const DESCRIPTORS_RESERVED_COUNT: u64 = 40;
/// File descriptors a running hook takes: its three pipes, the process, a connection.
pub const DESCRIPTORS_PER_JOB_COUNT: u64 = 5;
/// Connections a listener has at least, whatever the limit of open files.
pub const CONNECTIONS_MIN_COUNT: usize = 4;
/// Pause after the system refused to hand over a connection (EMFILE and the like), in milliseconds.
pub const ACCEPT_PAUSE_MS: u64 = 100;

/// Most proxies a request is followed back through.
pub const PROXY_HOPS_MAX_COUNT: usize = 16;
/// Refused requests of one address in a second that are borne in the long run; ten seconds' worth at once.
pub const REFUSED_PER_ADDRESS_PER_S: u32 = 20;
/// Refused requests at one endpoint in a second that are borne in the long run; ten seconds' worth at once.
pub const REFUSED_PER_ENDPOINT_PER_S: u32 = 500;
/// How many seconds' worth of a rate may come at once.
pub const RATE_BURST_S: u32 = 10;
/// Addresses of which something is remembered: that their requests were refused, or that one held.
pub const CLIENTS_KNOWN_MAX_COUNT: usize = 8 * 1024;
/// How long an address is remembered for a request that held, in seconds: some marketplaces call once a day.
pub const CLIENT_GOOD_S: u64 = 48 * 60 * 60;

/// Most parameters in one request, query and form together.
pub const PARAMETERS_MAX_COUNT: usize = 128;
/// Longest parameter name, in bytes after decoding.
pub const PARAMETER_NAME_MAX_BYTES: usize = 128;
/// Longest parameter value, in bytes after decoding.
pub const PARAMETER_VALUE_MAX_BYTES: usize = 8 * 1024;
/// Longest name of an instance (its id, its order business id), in bytes.
pub const NAME_MAX_BYTES: usize = 256;

/// How long a callback that an operator settled goes on succeeding after its success was reported: for a
/// marketplace that did not hear the answer.
pub const SETTLED_REPEAT_MS: i64 = 24 * 60 * 60 * 1000;

/// How long something may go on by itself before it needs a person: an order that is still being tried, or a
/// result that the marketplace has not come back for.
pub const ATTENTION_AFTER_MS: i64 = 60 * 60 * 1000;

/// How long the marketplace is kept waiting for a hook, in milliseconds. The vendor states no
/// number; three seconds is below every common proxy and client timeout.
pub const REPLY_WITHIN_MS: u64 = 3_000;
/// How much longer it is kept waiting when what it waits for is being committed just then, in milliseconds.
pub const REPLY_GRACE_MS: u64 = 2_000;
/// How far the clock of a signed, dated request may be off, in milliseconds.
pub const DATED_WINDOW_MS: i64 = 5 * 60 * 1000;
/// How far the clock of a request with a nonce may be off, in milliseconds: KooGallery's minute
/// (support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649476.html).
pub const NONCED_WINDOW_MS: i64 = 60 * 1000;
/// How much longer than its window a nonce is remembered, in milliseconds: a clock that is set back must not
/// make a copy pass for new.
pub const NONCE_GRACE_MS: i64 = 15 * 60 * 1000;
/// Most instances one query may name (KooGallery's hundred).
pub const QUERY_MAX_COUNT: usize = 100;
/// How long passwords and licence keys are repeated after the first complete answer, in milliseconds.
pub const SECRETS_WINDOW_MS: i64 = 24 * 60 * 60 * 1000;
/// Longest file with a key, in bytes.
pub const KEY_FILE_MAX_BYTES: u64 = 16 * 1024;
/// A marketplace's key that is shorter than this is warned of, in bytes: part of it is missing.
pub const KEY_USUAL_MIN_BYTES: usize = 8;
/// Longest configuration, in bytes.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Longest file of certificates, in bytes: all the roots of a system are a quarter of a megabyte.
pub const PEM_FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Longest file that the daemon has written itself beside its database, in bytes.
pub const OWN_FILE_MAX_BYTES: u64 = 16 * 1024;
/// After how long without a signature a previous key is named as one that can go, in milliseconds.
pub const KEY_UNUSED_AFTER_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// How often keys that can go are looked for, in milliseconds.
pub const KEYS_CHECK_MS: u64 = 24 * 60 * 60 * 1000;
/// How exactly is kept when a key signed last, in milliseconds: a write an hour costs nothing, one a callback
/// would.
pub const KEY_USE_STEP_MS: i64 = 60 * 60 * 1000;
/// A repeated expire is believed when the known expiry lies no further ahead than this, in milliseconds.
pub const EXPIRE_EARLY_MS: i64 = 24 * 60 * 60 * 1000;

/// Most store operations that wait for the writer.
pub const WRITER_QUEUE_MAX_COUNT: usize = 1024;
/// Most store operations in one commit.
pub const WRITER_BATCH_MAX_COUNT: usize = 256;
/// Instances of one order that are looked at for an instance whose name is missing.
pub const ORDER_INSTANCES_READ_COUNT: usize = 100;
/// For how long a job is left alone that a newer spid wrote, in milliseconds.
pub const NEWER_PAUSE_MS: i64 = 60_000;
/// Most unreadable rows one connection names.
pub const UNREADABLE_NAMED_MAX_COUNT: usize = 1_000;
/// How long SQLite waits for a lock another process holds, in milliseconds.
pub const STORE_BUSY_MS: u64 = 2_000;
/// How long a start waits for the lock of a daemon that was just killed, in milliseconds.
pub const STORE_LOCK_MS: u64 = 1_000;
/// How many rows are looked at, and changed, in one commit of a prune or of a change of the sealing key.
pub const UPKEEP_BATCH_COUNT: usize = 200;
/// How long such work leaves the database to others after each commit, in milliseconds; longer, if it kept it
/// from them for longer.
pub const UPKEEP_PAUSE_MS: u64 = 5;
/// How long such work waits for a lock another process holds, in milliseconds: it is in nobody's way.
pub const UPKEEP_BUSY_MS: u64 = 15_000;
/// How often it waits so long for readers to let go of the write-ahead log.
pub const UPKEEP_JOURNAL_TRIES_COUNT: usize = 3;
/// Age below which nothing is pruned, in milliseconds: longer than any marketplace calls again.
pub const PRUNE_AGE_MIN_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Widest window in which the date of a sign-on may be, in milliseconds.
pub const SIGN_ON_WINDOW_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a reader waits for a lock another process holds, in milliseconds.
pub const STORE_READ_BUSY_MS: u64 = 100;
/// At how many pages of the write-ahead log its pages are copied into the database, by the thread that writes.
/// More than SQLite does unasked: a page that changes with every order is then copied once for more of them. All
/// of the log is read after a crash, so it must not be many.
pub const STORE_CHECKPOINT_PAGES: u32 = 4_000;
/// What the write-ahead log is cut back to after a checkpoint, in bytes.
pub const STORE_JOURNAL_MAX_BYTES: i64 = 16 * 1024 * 1024;
/// How often the counts of repeated deliveries are written, in milliseconds.
pub const COUNTS_FLUSH_MS: u64 = 1_000;
/// Most distinct callbacks whose counts wait to be written; past it they are written at once.
pub const COUNTS_PENDING_MAX_COUNT: usize = 4_096;
/// How long a readiness probe waits for a write, in milliseconds: longer than a busy lock, shorter than any
/// prober waits.
pub const READY_WITHIN_MS: u64 = 3_000;
/// How long strangers are told what was found at the last probe, in milliseconds: they must not choose how
/// often the disk is written.
pub const READY_REMEMBERED_MS: i64 = 1_000;
/// With less room than this on its disk the daemon is not ready, in bytes: a full write-ahead log, twice.
pub const READY_DISK_MIN_BYTES: u64 = 32 * 1024 * 1024;
/// Shortest token that opens the admin listener, in bytes.
pub const ADMIN_TOKEN_MIN_BYTES: usize = 16;
/// Wrong tokens that one address may show the admin listener before it has to wait for its answer.
pub const ADMIN_GUESSES_FREE_COUNT: u32 = 10;
/// How long one of them is remembered, in milliseconds.
pub const ADMIN_GUESS_FORGOTTEN_MS: u64 = 10_000;
/// How long the answer to a wrong token waits then, in milliseconds.
pub const ADMIN_GUESS_WAIT_MS: u64 = 1_000;
/// How many answers wait at once; the others are 429 at once.
pub const ADMIN_GUESSES_WAITING_COUNT: usize = 16;
/// How often wrong tokens are logged at most, in milliseconds.
pub const ADMIN_GUESSES_LOGGED_EVERY_MS: u64 = 10_000;
/// Rows a list shows unless asked for more.
pub const LIST_DEFAULT_COUNT: usize = 100;
/// Most rows a list of the admin listener shows at once.
pub const LIST_MAX_COUNT: usize = 1_000;

/// How long a job belongs to the dispatcher that took it, in milliseconds.
pub const LEASE_MS: i64 = 30_000;
/// How often leases are renewed while the hook runs, in milliseconds.
pub const LEASE_RENEW_MS: u64 = 10_000;
/// Calls of hooks that run at once, over all hooks. One of them is reserved for each hook. Jobs that wait for a hook, and questions to a marketplace,
/// have bounds of their own and do not count.
pub const JOBS_RUNNING_MAX_COUNT: usize = 64;
/// Jobs that are taken and wait for one busy hook, or for one marketplace that is asked what was ordered. Each
/// hook and each marketplace has so much room of its own. What finds none stays in the store.
pub const JOBS_WAITING_MAX_COUNT: usize = 1_024;
/// How often the dispatcher's poll passes at most before a job is looked at again that found no room.
pub const ROOM_PAUSES_MAX_COUNT: u32 = 12;
/// Due jobs without room that are put off in one look; more of them are put off in the next.
pub const JOBS_POSTPONED_MAX_COUNT: usize = 64;
/// How often the dispatcher looks for due jobs though nothing woke it, in milliseconds.
pub const DISPATCH_POLL_MS: u64 = 5_000;
/// Shortest time between two attempts that redeliveries bring about, in milliseconds.
pub const FORWARD_GAP_MS: i64 = 30_000;
/// The retry schedule: seconds to wait after the first failure, the second, and so on; then dead.
pub const RETRY_SCHEDULE_S: [u64; 9] = [5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800];
/// Most waits a hook's own retry list may have.
pub const RETRY_LIST_MAX_COUNT: usize = 32;
/// Shortest wait in a hook's own retry list, in seconds.
pub const RETRY_LIST_WAIT_MIN_S: u64 = 1;
/// Longest wait in a hook's own retry list, in seconds.
pub const RETRY_LIST_WAIT_MAX_S: u64 = 24 * 60 * 60;
/// Longest wait a hook may ask for (`Retry-After`), in seconds.
pub const RETRY_AFTER_MAX_S: u64 = 8 * 60 * 60;
/// How much a retry is moved at random, in percent of the wait, so that a thousand jobs that failed
/// together do not come back together.
pub const RETRY_JITTER_PERCENT: u64 = 10;

/// Questions to one marketplace that are under way at once.
pub const ENQUIRIES_MAX_COUNT: usize = 16;
/// How long a marketplace may take to say what was ordered, in milliseconds.
pub const ENQUIRY_MS: u64 = 20_000;

/// How long a hook may run unless it is configured otherwise, in milliseconds.
pub const HOOK_TIMEOUT_MS: u64 = 10 * 60 * 1000;
/// Invocations of one hook at once unless it is configured otherwise.
pub const HOOK_CONCURRENCY_COUNT: usize = 16;
/// Most bytes a hook's answer may have.
pub const HOOK_ANSWER_MAX_BYTES: usize = 64 * 1024;
/// How long a connection to an `http` hook is kept for the next call, in milliseconds. Shorter than
/// common servers keep one (5 s), so that we seldom speak to one that is closing at that moment.
pub const HOOK_IDLE_MS: u64 = 4_000;
/// Memory that lines of the log may take which wait to be written, in bytes; further lines are dropped.
pub const LOG_QUEUE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The part of it that lines of hooks and of the levels debug and trace may take, so that there is room for the
/// daemon's own.
pub const LOG_QUEUE_CHATTER_MAX_BYTES: usize = LOG_QUEUE_MAX_BYTES / 2;
/// Longest line of a hook's standard error that is logged whole, in bytes.
pub const HOOK_LOG_LINE_MAX_BYTES: usize = 4 * 1024;
/// Most bytes that are logged of a hook's standard error for one attempt, with what is added to each line.
pub const HOOK_LOG_MAX_BYTES: usize = 256 * 1024;
/// Bytes that a line of the log takes beside what the hook wrote: time, level, ids, names of fields. With it a hook
/// that writes short lines gets some six hundred of them into the log.
pub const HOOK_LOG_LINE_EXTRA_BYTES: usize = 420;
/// How long an attempt may take in the hook author's test, in milliseconds, unless the test says otherwise:
/// it provisions something small.
pub const HOOK_TEST_TIMEOUT_MS: u64 = 30_000;
/// Attempts the test makes until it believes that a call fails.
pub const HOOK_TEST_TRIES_COUNT: u32 = 3;
/// Attempts the test makes at once, with one key and with several.
pub const HOOK_TEST_AT_ONCE_COUNT: usize = 3;
/// Most places at which the test cuts the attempts at one call short.
pub const HOOK_TEST_CUTS_MAX_COUNT: u32 = 8;
/// How long a start waits for a hook of a dead daemon to die once it was killed, in milliseconds.
pub const LEFTOVERS_END_MS: u64 = 5_000;
/// Longest error or reason text that is kept, in bytes.
pub const REASON_MAX_BYTES: usize = 1024;

/// How long any answer of a receiver that is judged may take, in milliseconds. The vendor says "do not
/// block" and no number; five seconds is where common clients give up.
pub const CONFORMANCE_ANSWER_MS: u64 = 5_000;
/// How soon a receiver that is judged is asked again when it says "call again", in milliseconds.
pub const CONFORMANCE_RETRY_MS: u64 = 1_000;
/// How often it is asked at most: the marketplace asks once and repeats 120 times.
pub const CONFORMANCE_RETRIES_COUNT: u32 = 121;
/// How many requests for one order come at once.
pub const CONFORMANCE_CONCURRENT_COUNT: usize = 32;
/// Exchanges of one case that are kept for the report.
pub const CONFORMANCE_SHOWN_COUNT: usize = 8;

/// Longest span of time in a configuration, in seconds: a century. What is longer was mistyped, and no clock can
/// be that far ahead.
pub const SPAN_MAX_S: u64 = 100 * 365 * 86_400;

/// How long a day of the pretended market takes, in milliseconds.
pub const MARKET_DAY_MS: u64 = 1_000;
/// How soon the pretended market calls again, in milliseconds. The vendor does not say.
pub const MARKET_RETRY_MS: u64 = 200;
/// How long a minute of its ladder for payments takes, in milliseconds.
pub const MARKET_MINUTE_MS: u64 = 20;
/// Requests it has on the way at once.
pub const MARKET_AT_ONCE_COUNT: usize = 64;
/// Most orders of a pretended market: each is planned and kept in memory.
pub const MARKET_ORDERS_MAX_COUNT: i64 = 1_000_000;

/// Refused requests that are kept to be looked at, in memory alone.
pub const REFUSALS_KEPT_MAX_COUNT: usize = 256;
/// Refusals of one endpoint and reason that are kept in a second; the rest are counted.
pub const REFUSALS_KEPT_PER_WINDOW_COUNT: u64 = 8;
/// How long the log is silent about an endpoint and a reason it has just logged, in milliseconds.
pub const REFUSALS_WINDOW_MS: i64 = 1_000;
/// Longest signed text that is kept whole, to be explained; of a longer one the beginning is kept.
pub const REFUSAL_EVIDENCE_MAX_BYTES: usize = 4 * 1024;
/// Refusals the admin listener shows unless asked for more.
pub const REFUSALS_SHOWN_COUNT: usize = 50;

/// Spans that wait to be sent to a collector; what finds no room is dropped.
pub const SPANS_QUEUED_MAX_COUNT: usize = 2_048;
/// Spans in one request to the collector.
pub const SPANS_BATCH_MAX_COUNT: usize = 256;
/// How long the first span of a batch waits for others, in milliseconds.
pub const SPANS_BATCH_MS: u64 = 1_000;
/// How long the collector may take for a batch, in milliseconds.
pub const SPANS_SEND_MS: u64 = 10_000;
/// How often a batch is sent before it is dropped.
pub const SPANS_TRIES_COUNT: usize = 4;
/// The pause after the first of these, in milliseconds; after each further one it is doubled.
pub const SPANS_PAUSE_MS: u64 = 1_000;
/// The longest pause a collector may ask for (`Retry-After`), in milliseconds.
pub const SPANS_PAUSE_MAX_MS: u64 = 30_000;

/// How long `healthcheck` waits for an answer, in milliseconds: longer than a readiness probe may take.
pub const HEALTHCHECK_MS: u64 = 5_000;
/// How long a supervisor that does not listen keeps us, in milliseconds.
pub const NOTIFY_MS: u64 = 1_000;
/// How long the writer and the dispatcher have to show that they are alive, in milliseconds. Longer than a disk
/// that is merely slow: who misses this is ended and started again.
pub const ALIVE_WITHIN_MS: u64 = 20_000;

/// How long a stop waits for requests in flight, in milliseconds.
pub const STOP_REQUESTS_MS: u64 = 5_000;
/// How long a stop leaves connections open that have brought no request yet, in milliseconds: a request that
/// is on its way is answered. Longer than any way is, shorter than anybody minds.
pub const STOP_UNASKED_MS: u64 = 500;
/// How long a stop waits for running hooks before it leaves them to the next start, in milliseconds.
pub const STOP_HOOKS_MS: u64 = 20_000;
/// How long a stop waits for the last commit, in milliseconds.
pub const STOP_STORE_MS: u64 = 5_000;
/// How long a stop waits for a collector to take the last spans, in milliseconds.
pub const STOP_SPANS_MS: u64 = 2_000;
/// How long a stop waits until the last lines of the log are written, in milliseconds.
pub const STOP_LOG_MS: u64 = 1_000;

const _: () = assert!(
    PRUNE_AGE_MIN_MS > 4 * SIGN_ON_WINDOW_MAX_MS,
    "a sign-on that is forgotten is refused for its date"
);
const _: () = assert!(DATED_WINDOW_MS <= SIGN_ON_WINDOW_MAX_MS, "the usual window is a window");
const _: () = assert!(LEASE_MS as u64 >= 3 * LEASE_RENEW_MS, "a lease must outlive two missed renewals");
const _: () =
    assert!(NONCE_GRACE_MS >= 2 * NONCED_WINDOW_MS, "a mark outlives what may be dated in the future");
const _: () = assert!(RETRY_SCHEDULE_S.len() <= RETRY_LIST_MAX_COUNT, "the usual list could be written down");
const _: () = assert!(ALIVE_WITHIN_MS > 3 * DISPATCH_POLL_MS, "a dispatcher that waits is alive");
const _: () = assert!(READY_WITHIN_MS < HEALTHCHECK_MS, "who asks hears why it is not ready");
const _: () = assert!(STOP_UNASKED_MS < STOP_REQUESTS_MS, "what comes late has to be answered, too");
const _: () =
    assert!(KEY_USE_STEP_MS as u64 <= KEY_UNUSED_AFTER_MS / 24, "an hour more or less is no matter");
const _: () = assert!(URI_MAX_BYTES < HEADERS_MAX_BYTES, "the URI is part of the header bytes");
const _: () = assert!(PARAMETER_VALUE_MAX_BYTES < URI_MAX_BYTES, "one value must fit a request");
const _: () = assert!(STORE_BUSY_MS < READY_WITHIN_MS, "a busy store says so itself");
const _: () = assert!(WRITER_BATCH_MAX_COUNT <= WRITER_QUEUE_MAX_COUNT, "a batch is drained from the queue");
const _: () = assert!(
    REFUSALS_KEPT_MAX_COUNT * (REASON_MAX_BYTES + 2 * REFUSAL_EVIDENCE_MAX_BYTES) <= 4 * 1024 * 1024,
    "what nobody has verified takes little memory"
);
const _: () = assert!(
    REPLY_WITHIN_MS + REPLY_GRACE_MS < HEADERS_READ_MS,
    "an answer is due sooner than a slow peer is dropped"
);
