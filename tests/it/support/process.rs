//! A process whose standard error is followed. The daemons of all tests are made of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Maximum wait for an event that must come. Only a broken program needs that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Output on stderr so far, and if it is complete.
#[derive(Default)]
struct Log {
    text: Mutex<(String, bool)>,
    grown: Condvar,
}

impl Log {
    fn follow(&self, stderr: impl Read, mut copy: Option<File>) {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = stderr.read_until(b'\n', &mut line).unwrap_or(0);
            if let Some(copy) = &mut copy {
                copy.write_all(&line).unwrap();
            }
            let mut text = self.text.lock().unwrap();
            text.0.push_str(&String::from_utf8_lossy(&line));
            text.1 = read == 0;
            self.grown.notify_all();
            if read == 0 {
                return;
            }
        }
    }
}

/// A running process. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    log: Arc<Log>,
    follower: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a command. Its output on stderr is also written to `copy`.
    pub(crate) fn start(mut command: Command, copy: Option<File>) -> Process {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, followed) = (child.stderr.take().unwrap(), log.clone());
        let follower = std::thread::spawn(move || followed.follow(stderr, copy));
        Process { child, log, follower: Some(follower) }
    }

    /// A process whose output on stderr is not read.
    pub(crate) fn unheard(child: Child) -> Process {
        let log = Arc::new(Log::default());
        log.text.lock().unwrap().1 = true;
        Process { child, log, follower: None }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Complete output on stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.text.lock().unwrap().0.clone()
    }

    /// Complete output on stderr of a process that has ended or is about to.
    pub(crate) fn whole_log(&mut self) -> String {
        if let Some(follower) = self.follower.take() {
            follower.join().unwrap();
        }
        self.log()
    }

    /// Waits for the line with one of these words that follows `before` similar lines. `None` if the process ended
    /// without it.
    pub(crate) fn line_with(&self, words: &[&str], before: usize) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut text = self.log.text.lock().unwrap();
        loop {
            let mut lines = text.0.lines().filter(|line| words.iter().any(|words| line.contains(words)));
            if let Some(line) = lines.nth(before) {
                return Some(line.to_owned());
            }
            if text.1 {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the process never said {words:?}:\n{}", text.0);
            text = self.log.grown.wait_timeout(text, left).unwrap().0;
        }
    }

    /// Sends a signal. A process that has ended meanwhile does not get it.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Kills it like a power failure: no signal handler, no flush.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.ended_within(PATIENCE).expect("the process ends")
    }

    /// Exit status, if it ends before the deadline.
    pub(crate) fn ended_within(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= deadline => return None,
                None => std::thread::park_timeout(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Address behind this name in the line with which a daemon says that it is ready, as text or as JSON.
pub(crate) fn address_in(ready: &str, name: &str) -> SocketAddr {
    let text = ready.split_once(&format!("{name}=")).or_else(|| ready.split_once(&format!("\"{name}\":\"")));
    text.unwrap().1.split([' ', '"']).next().unwrap().parse().unwrap()
}
