//! Helpers for the tests of the examples: their paths, and programs that they need.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::said::Said;

/// Maximum time of a server to end after a stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Source of an example.
pub(crate) fn source(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

/// Variables that cargo sets for a test. A cargo inside the test must not get them, because it would build the
/// dependencies again.
const OF_THIS_PACKAGE: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// A Rust example. `cargo test` has built it beside this test; `cargo test --test …` has not.
pub(crate) fn built(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", name]).current_dir(root());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    for (name, _) in std::env::vars_os() {
        let known = name.to_str().unwrap_or_default();
        if OF_THIS_PACKAGE.iter().any(|prefix| known.starts_with(prefix)) {
            build.env_remove(name);
        }
    }
    assert!(build.status().unwrap().success(), "the example does not build");
    let this = std::env::current_exe().unwrap();
    this.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// `kill -9`.
pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Runs a server until it ends. It gets the signal that is read from standard input, or the last signal when the
/// other end of the input is closed.
const KEEPER: &str = r#"
end=$1; shift; exec 3<&0
"$@" 3<&- & server=$!
{ read -r signal <&3; kill -"${signal:-$end}" $server; } >/dev/null & wait $server"#;

/// A server for the test. It ends when this is dropped, and also if the test is killed.
pub(crate) struct Kept {
    keeper: Child,
    said: Option<Said>,
}

impl Kept {
    /// The command for this program, which ends with this signal. Arguments can be added.
    pub(crate) fn command(program: &Path, end: &str) -> Command {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh", end]).arg(program).stdin(Stdio::piped()).stdout(Stdio::null());
        keeper
    }

    pub(crate) fn start(mut keeper: Command) -> Kept {
        let mut keeper = keeper.spawn().unwrap();
        let said = keeper.stdout.take().map(Said::by);
        Kept { keeper, said }
    }

    /// Next line of its output, if its command has a pipe for it.
    pub(crate) fn line(&self) -> String {
        self.said.as_ref().unwrap().line()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.keeper.stdin.take().unwrap().write_all(b"KILL\n").unwrap();
        self.end().expect("a server that was killed is still there");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.keeper.try_wait().unwrap().is_some()
    }

    /// Exit status, if it ends in time.
    fn end(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.keeper.try_wait().unwrap() {
                None if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(5)),
                ended => return ended,
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if self.end().is_none() {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
    }
}
