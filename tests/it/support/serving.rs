//! The real `spid` binary with a configuration of the test, to be killed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use spid_core::dialect::OutRequest;

/// A running daemon. Dropping it kills the daemon.
pub(crate) struct Serving {
    child: Child,
    ready: Receiver<SocketAddr>,
}

impl Serving {
    /// Starts `spid serve` on a free port with the configuration `spid.toml` in `folder`. Its log is appended to
    /// `spid.log` there, and its process id is in `daemon.pid`.
    pub(crate) fn start(folder: &Path, environment: &[(String, String)]) -> Serving {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_spid"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(folder.join("spid.toml"))
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(folder.join("daemon.pid"), child.id().to_string()).unwrap();
        let (sender, ready) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = OpenOptions::new().create(true).append(true).open(folder.join("spid.log")).unwrap();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(address) = address_in(&line) {
                    let _ = sender.send(address);
                }
                writeln!(log, "{line}").unwrap();
            }
        });
        Serving { child, ready }
    }

    /// Address of the daemon, as soon as it is ready. `None` if it dies before.
    pub(crate) fn address(&mut self) -> Option<SocketAddr> {
        match self.ready.recv_timeout(Duration::from_secs(30)) {
            Ok(address) => Some(address),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the daemon is neither ready nor dead"),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// Exit status, if it ends before the deadline.
    pub(crate) fn ended_within(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= deadline => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, behind) = line.split_once(" ready address=")?;
    behind.split(' ').next()?.parse().ok()
}

/// Sends a request and reads the body of the answer. `sent` is called after the request is written.
pub(crate) fn deliver(
    to: SocketAddr,
    path: &str,
    request: &OutRequest,
    sent: impl FnOnce(),
) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let target = if request.query.is_empty() { path.to_owned() } else { format!("{path}?{}", request.query) };
    let mut head = format!("{} {target} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n", request.method);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", request.body.len()));
    stream.write_all(&[head.as_bytes(), &request.body].concat())?;
    sent();
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body.to_owned())
}

/// Reads new complete lines of a growing file.
pub(crate) fn new_lines(file: &mut Option<File>, path: &Path, rest: &mut String) -> Vec<String> {
    if file.is_none() {
        *file = File::open(path).ok();
    }
    let Some(file) = file else { return Vec::new() };
    file.read_to_string(rest).unwrap();
    let whole = rest.rfind('\n').map_or(0, |at| at + 1);
    let lines: String = rest.drain(..whole).collect();
    lines.lines().map(str::to_owned).collect()
}
