//! The real `spid` binary with a configuration of the test, to be killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use spid_core::dialect::OutRequest;

use super::process::{Process, address_in};

/// A running daemon. Dropping it kills the daemon.
pub(crate) struct Serving(Process);

impl Serving {
    /// Starts `spid serve` on a free port with the configuration `spid.toml` in `folder`. Its log is appended to
    /// `spid.log` there, and its process id is in `daemon.pid`.
    pub(crate) fn start(folder: &Path, environment: &[(String, String)]) -> Serving {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spid"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(folder.join("spid.toml"))
            .envs(environment.iter().cloned())
            .stdin(Stdio::null());
        let log = OpenOptions::new().create(true).append(true).open(folder.join("spid.log")).unwrap();
        let process = Process::start(command, Some(log));
        std::fs::write(folder.join("daemon.pid"), process.id().to_string()).unwrap();
        Serving(process)
    }

    /// Address of the daemon, as soon as it is ready. `None` if it dies before.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.0.line_with(&[" ready address="], 0).map(|ready| address_in(&ready, "address"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.0.signal(rustix::process::Signal::TERM);
    }

    /// Exit status, if it ends before the deadline.
    pub(crate) fn ended_within(&mut self, within: Duration) -> Option<ExitStatus> {
        self.0.ended_within(within)
    }
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
