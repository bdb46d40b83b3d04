//! Standard error, which may be full, closed, or read by a program that has stopped reading.
//!
//! A command writes to standard error directly and waits for its reader, as programs usually do. The daemon must not
//! wait, because an order would wait for the log. So `serve` starts a queue of lines and a thread that writes them. A
//! line is dropped and counted if the queue has no room for it, or if it cannot be written. Once lines get through
//! again, the log says how many were dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::observe::limits;
use crate::observe::metrics::{Metric, Metrics};

/// Reason of a drop: the queue had no room, because the writing thread is stuck or too slow.
const QUEUE_FULL: &str = "queue-full";
/// Reason of a drop: the system refused to write the line.
const NOT_WRITTEN: &str = "not-written";
/// Target of lines that hooks write, as in docs/logging.md.
const OF_HOOKS: &str = "spid::hook";
/// Memory that a queued line takes beside its text, in bytes.
const LINE_OVERHEAD_BYTES: usize = 32;

/// Standard error of this process. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Stderr {
    /// Queue of the daemon; empty until `start_queue`.
    queue: Arc<OnceLock<Queue>>,
}

impl Stderr {
    /// Queues all lines from now on, and counts dropped lines in `metrics`.
    pub(crate) fn start_queue(&self, metrics: Metrics) -> io::Result<()> {
        // The writing thread uses the descriptor directly, because of the lock of `std::io::stderr`.
        let queue = Queue::start(metrics, Descriptor)?;
        // The first queue wins: a second call does not replace it, and its own queue stays empty.
        let _ = self.queue.set(queue);
        Ok(())
    }

    /// Writes one or more whole lines, or queues them.
    pub(crate) fn write(&self, lines: &[u8]) {
        self.write_within(lines, limits::LOG_QUEUE_MAX_BYTES);
    }

    /// Writes whole lines, or queues them if at most `most` bytes are in the queue then.
    fn write_within(&self, lines: &[u8], most: usize) {
        match self.queue.get() {
            Some(queue) => queue.push(lines, most),
            None => drop(io::stderr().lock().write_all(lines)),
        }
    }

    /// Waits until the queue is written, but no longer than `limits::STOP_LOG_MS`.
    pub(crate) fn flush(&self) {
        if let Some(queue) = self.queue.get() {
            queue.flush(Duration::from_millis(limits::STOP_LOG_MS));
        }
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { stderr: self.clone(), most: limits::LOG_QUEUE_MAX_BYTES }
    }

    fn make_writer_for(&self, event: &Metadata<'_>) -> Line {
        // Chatter gets less of the queue, so that it cannot push out the daemon's own lines.
        let chatter = *event.level() > Level::INFO || event.target() == OF_HOOKS;
        let most = if chatter { limits::LOG_QUEUE_CHATTER_MAX_BYTES } else { limits::LOG_QUEUE_MAX_BYTES };
        Line { stderr: self.clone(), most }
    }
}

/// Writer of one event, which tracing-subscriber writes with a single call.
pub(crate) struct Line {
    stderr: Stderr,
    most: usize,
}

impl Write for Line {
    /// Never fails: tracing-subscriber would report a failure on standard error, and panic if that fails.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stderr.write_within(bytes, self.most);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// File descriptor 2, without the lock of [`std::io::stderr`]. A panic or an author's hook may need that lock, so a
/// stuck write must not hold it.
struct Descriptor;

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        loop {
            match rustix::io::write(stderr.as_fd(), bytes) {
                // Another program has set the pipe or the terminal to non-blocking mode: wait until it is writable.
                Err(rustix::io::Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Queue of lines for the writing thread. Clones share it.
#[derive(Clone)]
struct Queue(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Notified when a line arrives, and when the last one has been written.
    changed: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Number of dropped lines that the log has not mentioned yet.
    dropped: u64,
    /// True while a line is being written.
    writing: bool,
}

/// Next step of the writing thread.
enum Next {
    Write(Box<[u8]>),
    /// Log that this many lines were dropped.
    Mention(u64),
}

impl Queue {
    /// Starts the thread that writes to `out`.
    fn start(metrics: Metrics, out: impl Write + Send + 'static) -> io::Result<Queue> {
        // Export both counters with 0 from the start, so that a first drop is visible as an increase.
        for reason in [QUEUE_FULL, NOT_WRITTEN] {
            metrics.announce(Metric::LogLinesDropped, [reason, ""]);
        }
        let shared = Shared { waiting: Mutex::default(), changed: Condvar::new(), metrics };
        let queue = Queue(Arc::new(shared));
        let written = queue.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || written.write_all_to(out))?;
        Ok(queue)
    }

    /// Queues a line if at most `most` bytes are in the queue then, or drops it. Never blocks.
    fn push(&self, line: &[u8], most: usize) {
        let mut waiting = self.lock();
        let size = line.len() + LINE_OVERHEAD_BYTES;
        // Dropping protects the order: it must not wait for the reader of the log.
        if waiting.bytes + size > most {
            waiting.dropped += 1;
            drop(waiting);
            self.0.metrics.count(Metric::LogLinesDropped, [QUEUE_FULL, ""]);
            return;
        }
        waiting.bytes += size;
        waiting.lines.push_back(line.into());
        // Released before the notification, so that the woken thread does not wait for the lock.
        drop(waiting);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, but at most `within`.
    fn flush(&self, within: Duration) {
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        let waited = self.0.changed.wait_timeout_while(self.lock(), within, busy);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes lines until the process ends.
    fn write_all_to(&self, mut out: impl Write) {
        // `healthy`: the last line was written completely. `torn`: the log ends with a part of a line.
        let (mut healthy, mut torn) = (false, false);
        loop {
            match self.next(healthy) {
                Next::Write(line) => {
                    healthy = write_line(&mut out, &line, &mut torn);
                    if !healthy {
                        self.lock().dropped += 1;
                        self.0.metrics.count(Metric::LogLinesDropped, [NOT_WRITTEN, ""]);
                    }
                }
                // This event goes through the queue itself, which is empty now.
                Next::Mention(dropped) => tracing::warn!(
                    suppressed = dropped,
                    "lines of the log were dropped: standard error could not be written, or not fast enough"
                ),
            }
        }
    }

    /// Waits for the next step. Dropped lines are mentioned when the queue is empty, so that the message finds room
    /// in it. They are mentioned only after a line was written: on a failing log the message would be dropped itself.
    fn next(&self, healthy: bool) -> Next {
        let mut waiting = self.lock();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes = waiting.bytes.saturating_sub(line.len() + LINE_OVERHEAD_BYTES);
                waiting.writing = true;
                return Next::Write(line);
            }
            // Waiting lines come first; the message about dropped lines follows them.
            if healthy && waiting.dropped > 0 {
                return Next::Mention(std::mem::take(&mut waiting.dropped));
            }
            // Nothing left to do: wake `flush`, then wait for the next line.
            waiting.writing = false;
            self.0.changed.notify_all();
            waiting = self.0.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line. If the log ends with a part of an earlier line, a line break comes first. Returns true if the whole
/// line was written.
fn write_line(out: &mut impl Write, line: &[u8], torn: &mut bool) -> bool {
    if *torn && out.write(b"\n").is_ok_and(|count| count == 1) {
        *torn = false;
    }
    if *torn {
        return false;
    }
    let mut rest = line;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => {
                *torn = rest.len() < line.len();
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Fails if the test says so, and passes on what was written.
    struct Paper {
        written: SyncSender<Vec<u8>>,
        full: Arc<Mutex<bool>>,
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if *self.full.lock().unwrap() {
                return Err(ErrorKind::StorageFull.into());
            }
            self.written.send(bytes.to_vec()).map_err(|_| ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Bench {
        queue: Queue,
        metrics: Metrics,
        full: Arc<Mutex<bool>>,
        written: Receiver<Vec<u8>>,
    }

    /// Queue whose writer blocks until the test receives what was written.
    fn bench() -> Bench {
        let (metrics, full) = (Metrics::default(), Arc::new(Mutex::new(false)));
        let (sender, written) = sync_channel(0);
        let paper = Paper { written: sender, full: full.clone() };
        Bench { queue: Queue::start(metrics.clone(), paper).unwrap(), metrics, full, written }
    }

    impl Bench {
        fn push(&self, line: &[u8]) {
            self.queue.push(line, limits::LOG_QUEUE_MAX_BYTES);
        }

        fn dropped(&self, reason: &str) -> u64 {
            self.metrics.value(Metric::LogLinesDropped, [reason, ""])
        }

        fn next(&self) -> Vec<u8> {
            self.written.recv_timeout(Duration::from_secs(60)).unwrap()
        }
    }

    #[test]
    fn a_stuck_writer_blocks_no_push_and_takes_bounded_memory() {
        let bench = bench();
        let line = [b'x'; 1_000];
        let pushed = 2 * limits::LOG_QUEUE_MAX_BYTES / line.len();
        for _ in 0..pushed {
            bench.push(&line);
        }
        assert!(bench.queue.lock().bytes <= limits::LOG_QUEUE_MAX_BYTES);
        let dropped = usize::try_from(bench.dropped(QUEUE_FULL)).unwrap();
        assert!(dropped > 0);
        bench.queue.flush(Duration::from_millis(1));
        for _ in 0..pushed - dropped {
            assert_eq!(bench.next(), line);
        }
        bench.push(b"again\n");
        assert_eq!(bench.next(), b"again\n");
    }

    #[test]
    fn lines_of_hooks_leave_room_for_the_daemon_s_own() {
        let bench = bench();
        let line = [b'x'; 1_000];
        for _ in 0..2 * limits::LOG_QUEUE_MAX_BYTES / line.len() {
            bench.queue.push(&line, limits::LOG_QUEUE_CHATTER_MAX_BYTES);
        }
        let dropped = bench.dropped(QUEUE_FULL);
        assert!(dropped > 0);
        bench.push(b"received\n");
        assert_eq!(bench.dropped(QUEUE_FULL), dropped);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_one_gets_through() {
        let bench = bench();
        *bench.full.lock().unwrap() = true;
        for _ in 0..3 {
            bench.push(b"lost\n");
        }
        bench.queue.flush(Duration::from_secs(60));
        assert_eq!(bench.dropped(NOT_WRITTEN), 3);
        *bench.full.lock().unwrap() = false;
        bench.push(b"found\n");
        assert_eq!(bench.next(), b"found\n");
        assert_eq!((bench.dropped(NOT_WRITTEN), bench.dropped(QUEUE_FULL)), (3, 0));
    }

    /// Writer with room for this many bytes.
    struct Small(Vec<u8>, usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.1 - self.0.len());
            self.0.extend(&bytes[..count]);
            if count > 0 { Ok(count) } else { Err(ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_does_not_run_into_the_next_one() {
        let (mut out, mut torn) = (Small(Vec::new(), 7), false);
        assert!(write_line(&mut out, b"one\n", &mut torn));
        assert!(!write_line(&mut out, b"second\n", &mut torn));
        assert!(!write_line(&mut out, b"third\n", &mut torn));
        out.1 = 100;
        assert!(write_line(&mut out, b"fourth\n", &mut torn));
        assert_eq!(out.0, b"one\nsec\nfourth\n");
    }
}
