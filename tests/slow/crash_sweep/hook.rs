//! The hook of the sweep: a careful hook that sometimes kills its daemon.
//!
//! It writes a journal, one line per write, and stores the provisioned instances by idempotency key. For a known key
//! it gives the stored answer.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::random::mixed;

/// Moment at which this hook, or a concurrent one, kills the daemon. The driver writes one such word into a file, and
/// the first hook that takes the file obeys.
pub(crate) const KILLS: [&str; 4] = ["before", "between", "answered", "afterwards"];

struct Hook {
    folder: PathBuf,
    key: String,
    /// First word of a journal line.
    line: String,
    orders_kill: Option<String>,
}

pub(crate) fn main(folder: &Path) -> ExitCode {
    let mut text = String::new();
    if std::io::stdin().read_to_string(&mut text).is_err() || text.is_empty() {
        return ExitCode::FAILURE; // the daemon died before it wrote the call
    }
    let Ok(call) = serde_json::from_str::<Value>(&text) else { return ExitCode::FAILURE };
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let key = word(&call["idempotency_key"]);
    let order = call["order_id"].as_str().or(call["parameters"]["requestId"].as_str()).unwrap_or("-");
    let line = format!(
        "{key} {} {} {} {order} {} {}",
        word(&call["account"]),
        word(&call["instance"]["order_biz_id"]),
        word(&call["action"]),
        call["attempt"],
        std::process::id(),
    );
    let mut hook = Hook { folder: folder.to_owned(), key, line, orders_kill: None };
    hook.orders_kill = hook.take_order();
    hook.run(call["attempt"].as_u64().unwrap_or(0), &word(&call["action"]))
}

impl Hook {
    fn run(&self, attempt: u64, action: &str) -> ExitCode {
        self.journal("begin");
        self.obey("before");
        let luck = mixed(self.key.bytes().fold(attempt, |sum, byte| mixed(sum ^ u64::from(byte))));
        std::thread::sleep(Duration::from_micros(luck % 8_000));
        let heals = self.folder.join("heal").exists();
        if attempt == 1 && (luck >> 32).is_multiple_of(50) && !heals {
            self.journal("fail");
            return ExitCode::from(75);
        }
        let (answer, new) = self.provision(action);
        self.journal(if new { "effect" } else { "again" });
        self.obey("between");
        let _ = std::io::stdout().write_all(answer.as_bytes());
        let _ = std::io::stdout().flush();
        self.obey("answered");
        if self.orders_kill.as_deref() == Some("afterwards") {
            self.leave_a_killer(luck >> 48);
        }
        self.journal("end");
        ExitCode::SUCCESS
    }

    /// Uses one write, so that lines of different processes do not mix.
    fn journal(&self, what: &str) {
        let path = self.folder.join("journal");
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(format!("{what} {}\n", self.line).as_bytes()));
    }

    /// The answer for this key, and true if it was created now. It is created once, completely or not at all.
    fn provision(&self, action: &str) -> (String, bool) {
        let path = self.folder.join("provisioned").join(&self.key);
        let answer = match action {
            "create" => json!({"instance_id": format!("tenant-{}", &self.key)}),
            _ => json!({}),
        };
        let draft = path.with_extension(std::process::id().to_string());
        fs::write(&draft, answer.to_string()).unwrap();
        let made = fs::hard_link(&draft, &path);
        let _ = fs::remove_file(&draft);
        match made {
            Ok(()) => (answer.to_string(), true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (fs::read_to_string(&path).unwrap(), false)
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn take_order(&self) -> Option<String> {
        let mine = self.folder.join(format!("order.{}", std::process::id()));
        fs::rename(self.folder.join("order"), &mine).ok()?;
        let order = fs::read_to_string(&mine).ok();
        let _ = fs::remove_file(&mine);
        order
    }

    /// Kills the daemon if that was ordered for this moment, and then continues for a while as a leftover process.
    fn obey(&self, moment: &str) {
        if self.orders_kill.as_deref() == Some(moment) {
            self.journal("kills");
            kill_daemon(&self.folder, parent_id());
            std::thread::sleep(Duration::from_millis(400));
            self.journal("late");
        }
    }

    /// A process outside of the group that kills the daemon when the hook is gone.
    fn leave_a_killer(&self, milliseconds: u64) {
        let killer = Command::new(std::env::current_exe().unwrap())
            .arg("--kill")
            .arg(&self.folder)
            .args([parent_id().to_string(), std::process::id().to_string(), (milliseconds % 4).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        self.journal("kills");
        drop(killer);
    }
}

/// `--kill FOLDER DAEMON HOOK MS`: waits until the hook is gone, and then for this time.
pub(crate) fn killer(arguments: &[String]) -> ExitCode {
    let [folder, daemon, hook, milliseconds] = arguments else { return ExitCode::FAILURE };
    let stat = format!("/proc/{hook}/stat");
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
        std::thread::sleep(Duration::from_micros(100));
    }
    std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
    kill_daemon(Path::new(folder), daemon.parse().unwrap_or(0));
    ExitCode::SUCCESS
}

/// Kills only the daemon that the driver started: a hook whose parent is gone has another parent.
fn kill_daemon(folder: &Path, daemon: u32) {
    let known = fs::read_to_string(folder.join("daemon.pid")).unwrap_or_default();
    let pid = i32::try_from(daemon).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    if let (true, Some(pid)) = (known == daemon.to_string(), pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
