//! The real daemon on a failing disk: builds the preload library (`tests/faultfs`), starts `spid serve` with it,
//! delivers signed callbacks, and records the hook's calls and the acknowledged answers.
//!
//! The library is built at the first use, offline: its only dependency is one of spid's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that panics has said what it found"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;
use spid::internals::store::Reader;
use spid_core::dialect;
use spid_core::dialect::Sending;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::time::Clock;
use tempfile::TempDir;

use crate::support::faultfs;
use crate::support::machine::skipped;
use crate::support::process::{PATIENCE, Process, address_in};
use crate::support::random::Random;

const KEY: &str = "fake-fault-key";

/// The preload library. Prints why the test is skipped and returns `None` if it is missing.
pub(crate) fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let built = faultfs::build();
    if let Err(why) = &built {
        skipped(&format!("a C linker (build-essential): tests/faultfs cannot be built: {why}"));
    }
    built.ok()
}

/// Kinds of calls that are counted and can fail, in the order of the control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Remove,
    Rename,
    Reply,
}

/// Effect on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    NoSpace,
    Io,
    ReadOnly,
    KillBefore,
    Lie,
}

impl Effect {
    fn word(self) -> u64 {
        match self {
            Effect::NoSpace => 28,
            Effect::Io => 5,
            Effect::ReadOnly => 30,
            Effect::KillBefore => 10_000,
            Effect::Lie => 10_002,
        }
    }
}

/// The control file, for the test.
pub(crate) struct Control(File);

impl Control {
    fn new(path: &Path) -> Control {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(1024).unwrap();
        Control(file)
    }

    fn set(&self, word: u64, value: u64) {
        self.0.write_all_at(&value.to_ne_bytes(), word * 8).unwrap();
    }

    fn get(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, word * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// From the `first` to the `last` call of this kind, counted from the start.
    pub(crate) fn rule(&self, kind: Kind, first: u64, last: u64, effect: Effect) {
        let base = 8 + 8 * kind as u64;
        self.set(base + 2, last);
        self.set(base + 3, effect.word());
        self.set(base + 1, first);
    }

    /// Every call of this kind, from now on.
    pub(crate) fn always(&self, kind: Kind, effect: Effect) {
        self.rule(kind, 1, u64::MAX, effect);
    }

    pub(crate) fn never(&self, kind: Kind) {
        self.set(8 + 8 * kind as u64 + 1, 0);
    }

    pub(crate) fn calls(&self, kind: Kind) -> u64 {
        self.get(8 + 8 * kind as u64)
    }

    /// Number of times that the rule was applied.
    pub(crate) fn fired(&self, kind: Kind) -> u64 {
        self.get(8 + 8 * kind as u64 + 4)
    }

    pub(crate) fn shift_clock(&self, millis: i64) {
        self.set(0, millis.cast_unsigned());
    }
}

/// A folder with a configuration, a hook that records its calls, and a database for several daemons.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) control: Control,
    keeps_synced: bool,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// "Try again": an answer without a claim of success.
    pub(crate) fn is_try_again(&self) -> bool {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        self.status == 200 && (body["instanceId"] == "0" || body["success"] == false)
    }

    pub(crate) fn is_success(&self) -> bool {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        let id = body["instanceId"].as_str().is_some_and(|id| !id.is_empty() && id != "0");
        self.status == 200 && (id || body["success"] == true)
    }
}

/// A daemon that ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: String,
}

impl Ended {
    /// It ended in order, or with a message and an exit code that give the reason, never by a panic or a signal.
    pub(crate) fn assert_said_why(&self) {
        let code = self.status.code();
        assert!(
            matches!(code, Some(65 | 74 | 75 | 78)) && self.log.contains("error: "),
            "{:?}\n{}",
            self.status,
            self.log
        );
        assert!(!self.log.contains("panicked"), "{}", self.log);
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    process: Process,
    address: SocketAddr,
    admin: SocketAddr,
}

/// Records each call before it does anything; then gives the same answer each time.
const HOOK: &str = r#"
read -r call
case $call in
*'"order_biz_id":"biz-1"'*) name=biz-1 ;;
*'"order_biz_id":"biz-2"'*) name=biz-2 ;;
*) name=unknown ;;
esac
echo "$SPID_ACTION $name $SPID_IDEMPOTENCY_KEY" >>"$1"
if [ -e "$1.waits" ]; then
    exec sleep 600
fi
case $SPID_ACTION in
create) echo "{\"instance_id\":\"real-$name\",\"app\":{\"front_end_url\":\"https://$name.example\",\"password\":\"fake-of-$name\"}}" ;;
*) echo '{}' ;;
esac
"#;

impl Bench {
    pub(crate) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("state")).unwrap();
        fs::create_dir(path("synced")).unwrap();
        fs::write(path("key"), KEY).unwrap();
        fs::write(path("hook.sh"), HOOK).unwrap();
        fs::write(path("asked"), "").unwrap();
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nreply_within = \"2s\"\n\
             [store]\npath = {:?}\n\
             [[endpoint]]\nname = \"test\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ file = {:?} }}]\n\
             [[hook]]\nname = \"keeper\"\nexec = {{ command = [\"/bin/sh\", {:?}, {:?}] }}\n",
            database(&folder),
            path("key"),
            path("hook.sh"),
            path("asked"),
        );
        fs::write(path("spid.toml"), config).unwrap();
        let control = Control::new(&path("control"));
        Bench { folder, control, keeps_synced: false }
    }

    /// A bench with power failures.
    pub(crate) fn with_a_plug() -> Bench {
        Bench { keeps_synced: true, ..Bench::new() }
    }

    pub(crate) fn database(&self) -> PathBuf {
        database(&self.folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a daemon on the failing disk.
    pub(crate) fn start(&self) -> Result<Daemon, Ended> {
        self.start_with("")
    }

    /// Like [`Bench::start`], with rules as text, as `tests/faultfs` describes them.
    pub(crate) fn start_with(&self, rules: &str) -> Result<Daemon, Ended> {
        let mut command = self.command();
        command
            .env("FAULTFS_RULES", rules)
            .env("LD_PRELOAD", library().unwrap())
            .env("FAULTFS_PATH", self.database().canonicalize().unwrap_or(self.database()))
            .env("FAULTFS_CONTROL", self.path("control"));
        if self.keeps_synced {
            command.env("FAULTFS_SYNCED", self.path("synced"));
        }
        Daemon::spawn(command)
    }

    /// Starts a daemon on a healthy disk.
    pub(crate) fn start_unharmed(&self) -> Daemon {
        Daemon::spawn(self.command()).unwrap_or_else(|ended| panic!("{}", ended.log))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spid"));
        command.arg("serve").arg("--config").arg(self.path("spid.toml"));
        command
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::open(&self.database()).unwrap()
    }

    /// Calls of the hook: action, instance, idempotency key.
    pub(crate) fn asked(&self) -> Vec<[String; 3]> {
        let text = fs::read_to_string(self.path("asked")).unwrap();
        let line = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            words.try_into().unwrap()
        };
        text.lines().map(line).collect()
    }

    /// Makes the hook hang, or work again.
    pub(crate) fn hook_waits(&self, waits: bool) {
        let path = self.path("asked.waits");
        if waits { fs::write(path, "").unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// Changes a file beside the database, or the database.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path("state").join(name);
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(path, content).unwrap();
    }

    /// Power failure: unsynced data is gone. `luck` decides how much of the data in flight arrived nevertheless, in
    /// blocks of 512 bytes; with luck 0, none.
    pub(crate) fn cut_power(&self, luck: u64) {
        let mut random = (luck > 0).then(|| Random::new(luck));
        for name in names(&self.path("state")) {
            let real = self.path("state").join(&name);
            let synced = self.path("synced").join(&name);
            if synced.exists() {
                let torn = torn(&fs::read(&synced).unwrap(), &fs::read(&real).unwrap(), &mut random);
                fs::write(&real, torn).unwrap();
            } else {
                fs::remove_file(&real).unwrap();
            }
        }
        for name in names(&self.path("synced")) {
            let real = self.path("state").join(&name);
            if !real.exists() {
                fs::copy(self.path("synced").join(&name), real).unwrap();
            }
        }
    }
}

fn database(folder: &TempDir) -> PathBuf {
    folder.path().canonicalize().unwrap().join("state/spid.db")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The synced content, with some of the data in flight.
fn torn(safe: &[u8], on_its_way: &[u8], random: &mut Option<Random>) -> Vec<u8> {
    let mut arrives = || random.as_mut().is_some_and(|random| random.percent(50));
    let mut content = safe.to_vec();
    if arrives() && on_its_way.len() > content.len() {
        content.resize(on_its_way.len(), 0);
    }
    for (to, from) in content.chunks_mut(512).zip(on_its_way.chunks(512)) {
        if arrives() && to.len() <= from.len() {
            to.copy_from_slice(&from[..to.len()]);
        }
    }
    content
}

impl Daemon {
    fn spawn(mut command: Command) -> Result<Daemon, Ended> {
        command.stdin(Stdio::null());
        let mut process = Process::start(command, None);
        match process.line_with(&[" ready "], 0) {
            Some(line) => {
                let [address, admin] = [" address", " admin"].map(|name| address_in(&line, name));
                Ok(Daemon { process, address, admin })
            }
            None => Err(Ended { status: process.wait(), log: process.whole_log() }),
        }
    }

    /// Delivers a callback as the marketplace would. `None` if there was no answer.
    pub(crate) fn deliver(&self, action: &str, parameters: &[(&str, &str)]) -> Option<Answer> {
        let pairs: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let keys = Keys::single(Secret::new(KEY)).unwrap();
        let sending = Sending::at(Clock::System.now());
        let request = dialect::by_name("alibaba").unwrap().request(action, &pairs, &keys, &sending);
        self.get(self.address, &format!("/spi?{}", request.query))
    }

    /// Sends a request to the admin listener.
    pub(crate) fn admin(&self, path: &str) -> Answer {
        self.get(self.admin, path).unwrap()
    }

    fn get(&self, address: SocketAddr, target: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", address);
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no answer to {target}:\n{}", self.log())
            }
            Err(_) => return None,
        }
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, body: body.to_owned() })
    }

    /// Kills it like `kill -9`. Returns its log.
    pub(crate) fn kill(mut self) -> String {
        self.process.kill();
        self.process.whole_log()
    }

    /// Stops it, and waits for its end.
    pub(crate) fn stop(self) -> Ended {
        self.process.signal(Signal::TERM);
        self.ended()
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(mut self) -> Ended {
        Ended { status: self.process.wait(), log: self.process.whole_log() }
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}
