//! The real daemon as a separate process, with a real socket, real files, and real kills.
//!
//! Nothing here uses spid's own code. The token is computed by hand and the client speaks plain HTTP, so an error in
//! the signing or the parsing cannot cancel itself out.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::process::{PATIENCE, Process, address_in};

/// Key of every endpoint. It must not appear in any output.
pub(crate) const KEY: &str = "fake-canary-isv-key-7Q";
/// Initial password in the answers of hooks. It may appear only in the answer to a create.
pub(crate) const PASSWORD: &str = "fake-canary-initial-password-9Z";

/// Repeats the question until there is an answer.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came true that {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Runs a program to its end. If it does not end in time, it is killed, and the test fails.
pub(crate) fn output_of(mut command: Command) -> Output {
    const LONGEST: Duration = Duration::from_secs(300);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = read(Box::new(child.stdout.take().unwrap()));
    let stderr = read(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + LONGEST;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(2)),
            None => {
                child.kill().unwrap();
                panic!("{command:?} did not end in {LONGEST:?}");
            }
        }
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// First lines of every hook script. The script runs in the test's folder, with the call in `$call` and in a file
/// named after action, key and attempt. `calls` has a line for every begin and end. `wait_for NAME` waits until the
/// test has opened that gate, or has ended.
const PROLOGUE: &str = r#"
call=$(cat)
printf '%s' "$call" > "call-$SPID_ACTION-$SPID_IDEMPOTENCY_KEY-$SPID_ATTEMPT.json"
say() { printf '%s %s %s %s\n' "$1" "$SPID_ACTION" "$SPID_IDEMPOTENCY_KEY" "$SPID_ATTEMPT" >> calls; }
wait_for() { while [ ! -e "gate-$1" ] && [ -d "$folder" ]; do sleep 0.02; done; }
fake_id() { printf 'i-%s' "$SPID_IDEMPOTENCY_KEY"; }
say begin
trap 'say end' EXIT
trap '' PIPE
"#;

/// A hook that does everything at once and names the instance after the key.
pub(crate) const QUICK: &str = r#"printf '{"instance_id":"%s"}' "$(fake_id)""#;

/// The default schedule with a shorter first wait instead of 5 s, for tests that wait for it.
pub(crate) const SOON: &str = r#"retry = ["1s", "30s", "2m", "10m", "30m", "1h", "2h", "4h", "8h"]"#;

/// A folder with a configuration, a key, and the database of the daemon.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

/// One line of `calls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookLine {
    pub(crate) event: String,
    pub(crate) action: String,
    pub(crate) key: String,
    pub(crate) attempt: u32,
}

impl Home {
    /// A home with this script as its exec hook.
    pub(crate) fn with_hook(script: &str) -> Home {
        Home::configured(script, "60s", 16)
    }

    /// A home with an exec hook. The marketplace does not wait for the hook.
    pub(crate) fn impatient(script: &str) -> Home {
        Home::configured(script, "200ms", 16)
    }

    pub(crate) fn configured(script: &str, reply_within: &str, concurrency: usize) -> Home {
        let home = Home::empty();
        let folder = home.path("").display().to_string();
        let script = format!("folder='{folder}'; cd \"$folder\" || exit 75\n{PROLOGUE}\n{script}\n");
        std::fs::write(home.path("hook.sh"), script).unwrap();
        let hook = format!(
            "exec = {{ command = [\"sh\", \"{folder}/hook.sh\"], timeout = \"10m\", concurrency = {concurrency} }}"
        );
        home.configure(&home.config(reply_within, &hook));
        home
    }

    /// A home with a first retry after one second instead of five, for tests that wait for it.
    pub(crate) fn soon(self) -> Home {
        let config = std::fs::read_to_string(self.path("spid.toml")).unwrap();
        let hasty = config.replace("concurrency = ", &format!("{SOON}, concurrency = "));
        assert_ne!(hasty, config);
        self.configure(&hasty);
        self
    }

    /// A home with the log hook.
    pub(crate) fn with_log_hook() -> Home {
        let home = Home::empty();
        home.configure(&home.config("5s", "log = {}"));
        home
    }

    /// A home for a program with its hook inside.
    pub(crate) fn without_hook() -> Home {
        let home = Home::empty();
        home.configure(home.config("60s", "").split("[[hook]]").next().unwrap());
        home
    }

    /// A home with a key file only.
    pub(crate) fn empty() -> Home {
        let home = Home { folder: tempfile::tempdir().unwrap() };
        std::fs::write(home.path("isv-key"), format!("{KEY}\n")).unwrap();
        home
    }

    /// The configuration of one endpoint and one hook; `hook` is the rest of a `[[hook]]` table.
    pub(crate) fn config(&self, reply_within: &str, hook: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
reply_within = "{reply_within}"

[store]
path = "{folder}/spid.db"

[[endpoint]]
name = "alibaba-cn"
account = "alibaba-cn"
path = "/spi"
dialect = "alibaba"
keys = [{{ file = "{folder}/isv-key" }}]

[[hook]]
name = "provision"
{hook}
"#
        )
    }

    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.path("spid.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.folder.path().to_owned(),
            name => self.folder.path().join(name),
        }
    }

    /// Opens this gate: hooks that wait for it, now or later, continue.
    pub(crate) fn open_gate(&self, name: &str) {
        std::fs::write(self.path(&format!("gate-{name}")), "").unwrap();
    }

    /// Lines of the hooks, in order.
    pub(crate) fn hook_lines(&self) -> Vec<HookLine> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let read = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next().unwrap();
            let (event, action, key) = (next(), next(), next());
            HookLine { event, action, key, attempt: next().parse().unwrap() }
        };
        text.lines().map(read).collect()
    }

    /// Calls of this action that began, as (key, attempt).
    pub(crate) fn begun(&self, action: &str) -> Vec<(String, u32)> {
        let begun = |line: &HookLine| line.event == "begin" && line.action == action;
        self.hook_lines().into_iter().filter(begun).map(|line| (line.key, line.attempt)).collect()
    }

    /// The call that a hook got.
    pub(crate) fn call_of(&self, action: &str) -> Value {
        let (key, attempt) = self.begun(action).into_iter().next_back().unwrap();
        let text = std::fs::read(self.path(&format!("call-{action}-{key}-{attempt}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.command(&["serve", "--config"]);
        command.arg(self.path("spid.toml")).args(arguments);
        Daemon::spawn(command)
    }

    /// Starts a program that is spid with a hook inside.
    pub(crate) fn start_program(&self, program: &Path, environment: &[(&str, String)]) -> Daemon {
        let mut command = Command::new(program);
        command.args(["serve", "--config"]).arg(self.path("spid.toml"));
        self.isolate(&mut command);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Daemon::spawn(command)
    }

    /// Starts the daemon with these variables.
    pub(crate) fn start_in(&self, variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command(&["serve", "--config"]);
        command.arg(self.path("spid.toml")).envs(variables.iter().copied());
        Daemon::spawn(command)
    }

    /// Starts the daemon without a configuration.
    pub(crate) fn start_dev(&self) -> Daemon {
        Daemon::spawn(self.command(&["serve", "--dev", "--listen", "127.0.0.1:0"]))
    }

    /// Starts the daemon with this maximum number of open files.
    #[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
    pub(crate) fn start_with_open_files(&self, limit: u32) -> Daemon {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config"]);
        command.arg(self.path("spid.toml"));
        self.isolate(&mut command);
        Daemon::spawn(command)
    }

    /// Starts the daemon with a maximum file size in blocks of 512 bytes, as on a full disk.
    pub(crate) fn start_on_a_full_disk(&self, blocks: u32) -> Daemon {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config"]);
        command.arg(self.path("spid.toml"));
        self.isolate(&mut command);
        Daemon::spawn(command)
    }

    /// Starts the daemon through a shell line, which runs it as `"$@"`. Its address is known before.
    pub(crate) fn start_through(&self, line: &str) -> Daemon {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = Command::new("sh");
        let script =
            format!("exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=spi; {line}");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config"]);
        command.arg(self.path("spid.toml"));
        self.isolate(&mut command);
        let owned = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        let child = command.stdin(owned).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Daemon::unheard(child, socket.local_addr().unwrap())
    }

    /// Starts the daemon as systemd does: with sockets that stay open here, named `names` (at most two), and these
    /// variables.
    #[allow(dead_code, reason = "of the programs of `tests/slow` alone")]
    pub(crate) fn start_supervised(
        &self,
        names: &str,
        sockets: &[&std::net::TcpListener],
        variables: &[(&str, &str)],
    ) -> Daemon {
        Daemon::follow(self.supervised(names, sockets, variables))
    }

    /// Starts the daemon on these sockets, named `spi` and `admin`, with this standard error, which is not read here.
    /// The daemon's address is that of the first socket.
    pub(crate) fn start_unheard(&self, sockets: [&std::net::TcpListener; 2], stderr: Stdio) -> Daemon {
        let mut command = self.supervised("spi:admin", &sockets, &[]);
        let child = command.stderr(stderr).spawn().unwrap();
        Daemon::unheard(child, sockets[0].local_addr().unwrap())
    }

    fn supervised(
        &self,
        names: &str,
        sockets: &[&std::net::TcpListener],
        variables: &[(&str, &str)],
    ) -> Command {
        let mut command = Command::new("sh");
        let count = sockets.len();
        let script = format!(
            "exec 3<&0 4<&1 0</dev/null 1>/dev/null; [ {count} -gt 1 ] || exec 4<&-; [ {count} -gt 0 ] || exec 3<&-; \
             export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec \"$@\""
        );
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config"]);
        command.arg(self.path("spid.toml"));
        self.isolate(&mut command);
        command.stdout(Stdio::null()).envs(variables.iter().copied());
        let owned = |socket: &std::net::TcpListener| std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        if let [first, rest @ ..] = sockets {
            command.stdin(owned(first));
            rest.iter().for_each(|second| {
                command.stdout(owned(second));
            });
        }
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spid"));
        command.args(arguments);
        self.isolate(&mut command);
        command
    }

    /// Keep only the search path of the caller's environment.
    fn isolate(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).current_dir(self.folder.path()).stdin(Stdio::null());
    }

    /// Runs a command to its end, without a store.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(output_of(self.command(arguments)))
    }

    /// Runs a command to its end with these variables.
    pub(crate) fn run_in(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        Ran::of(output_of(command))
    }

    /// Runs a command to its end with this stdout.
    pub(crate) fn run_into(&self, arguments: &[&str], stdout: Stdio) -> ExitStatus {
        self.command(arguments).stdout(stdout).status().unwrap()
    }

    /// Runs a command that reads the store.
    pub(crate) fn look(&self, arguments: &[&str]) -> String {
        let db = self.path("spid.db");
        let ran = self.run(&[arguments, &["--db", db.to_str().unwrap()]].concat());
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    /// Runs a command that reads the store, and returns its JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.look(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that prints a list, and returns its JSON.
    pub(crate) fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let Value::Array(rows) = self.json(&[arguments, &["--limit", "100000"]].concat()) else {
            panic!("{arguments:?} is no list")
        };
        rows
    }

    /// The state of an instance.
    pub(crate) fn state(&self, name: &str) -> String {
        self.json(&["instances", "show", name])["state"].as_str().unwrap().to_owned()
    }

    /// Waits until no job of a hook is queued or running.
    pub(crate) fn wait_until_idle(&self) {
        until("no job waits any more", || {
            let db = self.database();
            let waiting: i64 = db
                .query_row("SELECT count(*) FROM job WHERE state IN (0, 1) AND kind = 0", [], |row| {
                    row.get(0)
                })
                .unwrap();
            (waiting == 0).then_some(())
        });
    }

    /// The database, read only.
    pub(crate) fn database(&self) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(self.path("spid.db"), flags).unwrap();
        db.busy_timeout(Duration::from_secs(5)).unwrap();
        db
    }

    /// Number of rows of every table.
    pub(crate) fn row_counts(&self) -> Vec<(String, i64)> {
        let db = self.database();
        let mut names =
            db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert!(names.len() > 4, "{names:?}");
        let count = |name: &str| {
            db.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0)).unwrap()
        };
        names.into_iter().map(|name| (name.clone(), count(&name))).collect()
    }

    /// The files of the database, with their bytes.
    pub(crate) fn database_files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.starts_with("spid.db") && path.is_file() {
                files.push((name, std::fs::read(path).unwrap()));
            }
        }
        files.sort();
        files
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A hook that still waits at a gate ends when the folder is gone.
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

/// A finished command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Daemon {
    fn spawn(mut command: Command) -> Daemon {
        command.stdout(Stdio::null());
        Daemon::follow(command)
    }

    fn follow(command: Command) -> Daemon {
        let mut daemon =
            Daemon { process: Process::start(command, None), address: ([127, 0, 0, 1], 0).into() };
        // As text or as JSON.
        let ready = daemon.line_with(&["ready address=", "\"message\":\"ready\",\"address\":\""], 0);
        daemon.address = address_in(&ready, "address");
        daemon
    }

    /// A daemon whose log is not read.
    fn unheard(child: Child, address: SocketAddr) -> Daemon {
        Daemon { process: Process::unheard(child), address }
    }

    fn line_with(&self, words: &[&str], before: usize) -> String {
        let line = self.process.line_with(words, before);
        line.unwrap_or_else(|| panic!("the daemon never said {words:?}:\n{}", self.log()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Complete output on stderr so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for these words on stderr.
    pub(crate) fn wait_for_log(&self, words: &str) -> String {
        self.line_with(&[words], 0)
    }

    /// Reloads the configuration, and waits for the line with the result. There is one line per reload.
    pub(crate) fn reload(&self) -> String {
        let before = self.log().lines().filter(|line| line.contains("reload: ")).count();
        self.signal(rustix::process::Signal::HUP);
        self.line_with(&["reload: "], before)
    }

    /// A page of the admin listener.
    pub(crate) fn admin(&self, path: &str) -> String {
        let ready = self.wait_for_log("ready address=");
        let address = address_in(&ready, "admin");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        exchange(address, &request).unwrap().body
    }

    /// Value of the metric with this name and these labels, as written on the page. 0 if there is no such row.
    pub(crate) fn counted(&self, name_and_labels: &str) -> u64 {
        let page = self.admin("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse().unwrap())
    }

    /// Sends SIGTERM.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }

    /// Lets its files grow again; see [`Home::start_on_a_full_disk`].
    pub(crate) fn make_room(&self) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        let unlimited = Rlimit { current: None, maximum: None };
        prlimit(pid, Resource::Fsize, unlimited).unwrap();
    }

    /// Kills it like a power failure: no signal handler, no flush.
    pub(crate) fn kill(mut self) {
        let status = self.process.kill();
        assert_eq!(status.signal(), Some(9), "it had ended before it was killed: {status}\n{}", self.log());
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Stops it in order.
    pub(crate) fn stop(mut self) -> String {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.process.whole_log()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended_within(Duration::ZERO).is_none()
    }

    /// Delivers a callback as the marketplace does.
    pub(crate) fn deliver(&self, request: &Params) -> Answer {
        self.get(&request.signed())
    }

    /// Sends a query string.
    pub(crate) fn get(&self, query: &str) -> Answer {
        self.try_get(query).unwrap()
    }

    /// Sends a query string. The daemon may die meanwhile.
    pub(crate) fn try_get(&self, query: &str) -> Option<Answer> {
        get(self.address, query)
    }

    /// Sends a GET to any path.
    pub(crate) fn get_target(&self, target: &str) -> Answer {
        let request = format!("GET {target} HTTP/1.1\r\nhost: spi.example\r\n\r\n");
        exchange(self.address, &request).unwrap()
    }

    /// Sends a form.
    pub(crate) fn post(&self, form: &str) -> Answer {
        exchange(self.address, &post_text("/spi", form)).unwrap()
    }

    /// Delivers until the answer is a success, and returns the answer.
    pub(crate) fn deliver_until_done(&self, request: &Params) -> Answer {
        until("a redelivery is answered with success", || {
            Some(self.deliver(request)).filter(Answer::is_success)
        })
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill();
        if !std::thread::panicking() {
            // A hook that outlives the daemon must not hold stderr open: it has its own pipes.
            assert_clean("the daemon's stderr", self.process.whole_log().as_bytes(), &[KEY, PASSWORD]);
        } else {
            eprintln!("--- the daemon's stderr ---\n{}", self.log());
        }
    }
}

/// Forms in which a secret could appear: unchanged, and inside hex or base64.
fn disguises(secret: &str) -> Vec<String> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![secret.to_owned(), hex.to_uppercase(), hex];
    forms.push(secret.chars().rev().collect());
    for offset in 0..3 {
        let padded = [vec![b'x'; offset], secret.as_bytes().to_vec()].concat();
        let text = base64(&padded);
        // The part that does not depend on the bytes before and after.
        forms.push(text[4..text.len() - 4].to_owned());
        forms.push(text[4..text.len() - 4].replace('+', "-").replace('/', "_"));
    }
    forms
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(LETTERS[(bits >> shift) as usize & 63]));
        }
    }
    text
}

/// Checks that the text contains no secret in any form.
pub(crate) fn assert_clean(what: &str, bytes: &[u8], secrets: &[&str]) {
    for (index, secret) in secrets.iter().enumerate() {
        for form in disguises(secret) {
            let found = bytes.windows(form.len()).position(|window| window == form.as_bytes());
            if let Some(at) = found {
                let from = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let line = String::from_utf8_lossy(&bytes[from..at]);
                panic!("{what} holds secret number {index} as `{form}`, behind: {line}");
            }
        }
    }
}

/// Parameters of a request, unsigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Params(pub(crate) Vec<(String, String)>);

impl Params {
    pub(crate) fn new(action: &str) -> Params {
        Params(Vec::new()).with("action", action)
    }

    /// Sets a value, and replaces an earlier one.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Params {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The token, computed as on the vendor's page.
    pub(crate) fn token(&self) -> String {
        self.token_with(KEY)
    }

    pub(crate) fn token_with(&self, key: &str) -> String {
        let mut sorted = self.0.clone();
        sorted.sort();
        let mut base: String = sorted.iter().map(|(name, value)| format!("{name}={value}&")).collect();
        base.push_str(&format!("key={key}"));
        Md5::digest(base.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The query string or form, with its token.
    pub(crate) fn signed(&self) -> String {
        format!("{}&token={}", self.encoded(), self.token())
    }

    pub(crate) fn encoded(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        pairs.join("&")
    }
}

/// Percent-encodes everything except letters and digits.
pub(crate) fn encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

pub(crate) fn create(order_biz_id: &str) -> Params {
    Params::new("createInstance")
        .with("aliUid", "10001")
        .with("orderBizId", order_biz_id)
        .with("orderId", &format!("order-of-{order_biz_id}"))
        .with("productCode", "cmgj000001")
        .with("skuId", "basic")
        .with("trial", "false")
        .with("expiredOn", "2030-01-01 00:00:00")
}

/// An action on an existing instance.
pub(crate) fn about(action: &str, instance_id: &str) -> Params {
    Params::new(action).with("aliUid", "10001").with("instanceId", instance_id)
}

pub(crate) fn renew(instance_id: &str, expired_on: &str) -> Params {
    about("renewInstance", instance_id).with("expiredOn", expired_on).with("orderId", expired_on)
}

pub(crate) fn upgrade(instance_id: &str, sku: &str) -> Params {
    about("upgradeInstance", instance_id).with("skuId", sku)
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The instance id in the answer to a create.
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["instanceId"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// The `success` member of any other answer.
    pub(crate) fn success(&self) -> bool {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["success"].as_bool().unwrap_or_else(|| panic!("{self:?}"))
    }

    pub(crate) fn is_success(&self) -> bool {
        let body = self.json();
        let id = body["instanceId"].as_str().is_some_and(|id| id != "0");
        self.status == 200 && (id || body["success"].as_bool() == Some(true))
    }
}

pub(crate) fn get_text(path: &str, query: &str) -> String {
    format!("GET {path}?{query} HTTP/1.1\r\nhost: spi.example\r\n\r\n")
}

pub(crate) fn post_text(path: &str, form: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: spi.example\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    )
}

pub(crate) fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn get(address: SocketAddr, query: &str) -> Option<Answer> {
    exchange(address, &get_text("/spi", query))
}

/// Sends one request on its own connection. `None` if the other side closed first.
pub(crate) fn exchange(address: SocketAddr, request: &str) -> Option<Answer> {
    Line::open(address).ok()?.exchange(request)
}

/// A connection for several requests.
pub(crate) struct Line(BufReader<TcpStream>);

impl Line {
    pub(crate) fn open(address: SocketAddr) -> std::io::Result<Line> {
        Ok(Line(BufReader::new(connect(address)?)))
    }

    pub(crate) fn exchange(&mut self, request: &str) -> Option<Answer> {
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        self.answer()
    }

    /// Reads the next answer. `None` if the other side closed first.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
        };
        let mut body = vec![0; head.lines().find_map(length).unwrap_or(0)];
        self.0.read_exact(&mut body).ok()?;
        Some(Answer { status, body: String::from_utf8(body).unwrap() })
    }
}

/// Maximum memory of a process so far, in bytes.
pub(crate) fn memory_peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
