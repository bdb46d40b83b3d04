//! What a daemon that died left running: process groups of hooks, found by their marks and killed.
//!
//! `kill -9` does not reach the hooks of a daemon. Their jobs come back at the next start, and a hook
//! that still runs would meet the next attempt at its own job. So every group is marked by a small file
//! beside the database, made before the hook gets its call and gone once the group is dead; a start
//! kills what is still marked before anything else runs. After a crash of the machine there is nothing
//! to kill, so a mark is never synced to the disk.
//!
//! A process id alone proves nothing: the system hands the numbers out again. A mark says when the
//! group's leader began, and in which boot; of a group whose leader is gone, a process must carry the
//! idempotency key in its environment. What fits neither is a stranger, and is left alone.
//!
//! Between the start of a process and its mark lies a moment. A hook caught in it reads an empty input
//! instead of a call. All of this needs `/proc`; where there is none, nothing is marked and nothing is
//! killed.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::observe::{files, limits};

/// How often a group that was killed is looked at until it is gone: it is nobody's child any more, so
/// nobody is told.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The folder in which running process groups are marked. Clones share it.
#[derive(Debug, Clone)]
pub struct Leftovers {
    folder: Arc<Path>,
}

impl Leftovers {
    /// Kills what the marks in `folder` lead to, waits until it is dead, and makes the folder if there
    /// is none. The caller must be the only daemon that uses it. What is no mark is left alone.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or is a link: what lies behind one may be of somebody else.
    pub async fn clear(folder: &Path) -> io::Result<Leftovers> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !fs::symlink_metadata(folder)?.is_dir() {
            let message = format!("`{}` must be a folder, and no link to one: remove it", folder.display());
            return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if Marked::name(&path).is_none() {
                continue;
            }
            if let Some(marked) = Marked::read(&path) {
                marked.end().await;
            }
            // One that stays leads to nobody at the next start.
            let _ = fs::remove_file(&path);
        }
        Ok(Leftovers { folder: folder.into() })
    }

    /// Marks the group led by `leader`, whose processes carry `key`. `None` where there is no `/proc`,
    /// or the leader is gone already.
    pub(super) fn mark(&self, leader: Pid, key: &str) -> io::Result<Option<Mark>> {
        let Some(process) = Process::read(leader) else { return Ok(None) };
        let path = self.folder.join(format!("{}-{}", leader.as_raw_nonzero(), process.began));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mark = Mark(path);
        file.write_all(format!("{}\n{key}\n", boot()).as_bytes())?;
        Ok(Some(mark))
    }
}

/// A mark; it goes when this goes.
#[derive(Debug)]
pub(super) struct Mark(PathBuf);

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What a mark says.
struct Marked {
    leader: Pid,
    began: u64,
    key: String,
}

impl Marked {
    /// The numbers that a mark is called by.
    fn name(path: &Path) -> Option<(&str, &str)> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (leader, began) = path.file_name()?.to_str()?.split_once('-')?;
        (is_number(leader) && is_number(began)).then_some((leader, began))
    }

    /// Reads a mark of this boot. One that is cut short was never followed by a call.
    fn read(path: &Path) -> Option<Marked> {
        let (leader, began) = Marked::name(path)?;
        let text = files::read_text(path, limits::OWN_FILE_MAX_BYTES).ok()?;
        let (in_boot, key) = text.strip_suffix('\n')?.split_once('\n')?;
        let leader = pid_of(leader).filter(|leader| leader.as_raw_nonzero().get() > 1)?;
        (in_boot == boot()).then_some(Marked { leader, began: began.parse().ok()?, key: key.to_owned() })
    }

    /// Kills the group, if it is still the one that was marked, and waits until it is dead.
    async fn end(&self) {
        if !self.is_ours(&members(self.leader)) {
            return;
        }
        let group = self.leader.as_raw_nonzero();
        match kill_process_group(self.leader, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                tracing::error!(group, idempotency_key = %self.key, %error, "a hook that the last daemon left running cannot be killed; it may meet the next attempt at its job");
                return;
            }
        }
        let within = Duration::from_millis(limits::LEFTOVERS_END_MS);
        let gone = async {
            while !members(self.leader).is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(within, gone).await.is_ok() {
            tracing::warn!(group, idempotency_key = %self.key, "killed a hook that the last daemon left running");
        } else {
            tracing::error!(group, idempotency_key = %self.key, "a hook that the last daemon left running does not die; it may meet the next attempt at its job");
        }
    }

    fn is_ours(&self, members: &[Process]) -> bool {
        match members.iter().find(|process| process.pid == self.leader) {
            Some(leader) => leader.began == self.began,
            None => members.iter().any(|process| process.carries(&self.key)),
        }
    }
}

/// The processes of a group that live.
fn members(group: Pid) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| pid_of(entry.ok()?.file_name().to_str()?));
    pids.filter_map(Process::read).filter(|process| process.lives && process.group == group).collect()
}

/// A process or a group by its number. A process that is just being buried says that its group is -1.
fn pid_of(text: &str) -> Option<Pid> {
    text.parse().ok().filter(|number| *number > 0).and_then(Pid::from_raw)
}

/// This boot of the machine; empty where nobody says.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A process, as `/proc/PID/stat` has it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    group: Pid,
    /// Whether it still runs: what is dead stays listed until its parent has looked.
    lives: bool,
    /// When it began, in ticks since the machine did.
    began: u64,
}

impl Process {
    fn read(pid: Pid) -> Option<Process> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Process::parse(pid, &String::from_utf8_lossy(&stat))
    }

    /// proc(5): the name is free text in parentheses; behind it stand the state, which is the third
    /// field, the group, the fifth, and the start, the twenty-second.
    fn parse(pid: Pid, stat: &str) -> Option<Process> {
        let (_, behind_the_name) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = behind_the_name.split_ascii_whitespace().collect();
        Some(Process {
            pid,
            group: pid_of(fields.get(2)?)?,
            lives: !matches!(*fields.first()?, "Z" | "X"),
            began: fields.get(19)?.parse().ok()?,
        })
    }

    fn carries(&self, key: &str) -> bool {
        let wanted = format!("SPID_IDEMPOTENCY_KEY={key}");
        let environment =
            fs::read(format!("/proc/{}/environ", self.pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const KEY: &str = "0190-key";

    /// A process in a group of its own that ends when it is killed, or when `stdin` is closed.
    fn a_group(script: &str) -> (Child, Pid) {
        let child = Command::new("sh")
            .args(["-c", script])
            .env("SPID_IDEMPOTENCY_KEY", KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        (child, pid)
    }

    async fn cleared() -> (tempfile::TempDir, Leftovers) {
        let folder = tempfile::tempdir().unwrap();
        let leftovers = Leftovers::clear(&folder.path().join("running")).await.unwrap();
        (folder, leftovers)
    }

    /// As a daemon that is killed: the mark stays.
    fn mark(leftovers: &Leftovers, pid: Pid, key: &str) {
        std::mem::forget(leftovers.mark(pid, key).unwrap().unwrap());
    }

    async fn clear_again(leftovers: &Leftovers) {
        Leftovers::clear(&leftovers.folder).await.unwrap();
        assert_eq!(fs::read_dir(&leftovers.folder).unwrap().count(), 0);
    }

    fn signal_of(mut child: Child) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap())
    }

    #[tokio::test]
    async fn what_is_marked_is_killed_though_it_ignores_a_polite_signal() {
        let (_folder, leftovers) = cleared().await;
        let (child, pid) = a_group("trap '' TERM INT; read line");
        mark(&leftovers, pid, KEY);
        clear_again(&leftovers).await;
        assert_eq!(signal_of(child), Some(9));
    }

    #[tokio::test]
    async fn a_mark_goes_with_its_group() {
        let (_folder, leftovers) = cleared().await;
        let (mut child, pid) = a_group("read line");
        let mark = leftovers.mark(pid, KEY).unwrap().unwrap();
        assert!(mark.0.exists());
        let path = mark.0.clone();
        drop(mark);
        assert!(!path.exists());
        clear_again(&leftovers).await;
        assert_eq!(child.try_wait().unwrap(), None);
        drop(child.stdin.take());
        assert!(child.wait().is_ok());
    }

    #[tokio::test]
    async fn a_stranger_with_the_same_number_lives() {
        let (_folder, leftovers) = cleared().await;
        let (mut child, pid) = a_group("read line");
        let began = Process::read(pid).unwrap().began;
        let number = pid.as_raw_nonzero();
        for (name, text) in [
            (format!("{number}-{}", began + 1), format!("{}\n{KEY}\n", boot())),
            (format!("{number}-{began}"), format!("another-boot\n{KEY}\n")),
            (format!("{number}-{began}"), String::new()),
            (format!("{number}-{began}"), boot()),
            ("1-0".to_owned(), format!("{}\n{KEY}\n", boot())),
            ("0-0".to_owned(), format!("{}\n{KEY}\n", boot())),
        ] {
            fs::write(leftovers.folder.join(&name), text).unwrap();
            clear_again(&leftovers).await;
            assert_eq!(child.try_wait().unwrap(), None, "{name}");
        }
        drop(child.stdin.take());
        assert!(child.wait().is_ok());
    }

    #[tokio::test]
    async fn what_is_no_mark_stays_and_a_link_is_not_followed() {
        let (folder, leftovers) = cleared().await;
        for name in ["note", "-1", "1-", "1-a"] {
            fs::write(leftovers.folder.join(name), "of somebody else").unwrap();
        }
        // A link that is called like a mark goes, and not what it leads to.
        std::os::unix::fs::symlink("note", leftovers.folder.join("7-7")).unwrap();
        Leftovers::clear(&leftovers.folder).await.unwrap();
        assert_eq!(fs::read_dir(&leftovers.folder).unwrap().count(), 4);
        fs::write(leftovers.folder.join("9-9"), "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&leftovers.folder, &link).unwrap();
        let refused = Leftovers::clear(&link).await.unwrap_err().to_string();
        assert!(refused.contains("no link"), "{refused}");
        assert_eq!(fs::read_dir(&leftovers.folder).unwrap().count(), 5);
    }

    #[tokio::test]
    async fn a_group_without_its_leader_is_known_by_the_key() {
        let (_folder, leftovers) = cleared().await;
        for (key, killed) in [("another-key", false), (KEY, true)] {
            // The leader says that its child runs, is marked, and goes; its child holds the pipe.
            let (mut child, pid) =
                a_group("sh -c 'echo up; trap \"\" TERM; while :; do sleep 60; done' & read line");
            let mut stdout = child.stdout.take().unwrap();
            let mut up = [0; 3];
            io::Read::read_exact(&mut stdout, &mut up).unwrap();
            mark(&leftovers, pid, key);
            drop(child.stdin.take());
            child.wait().unwrap();
            clear_again(&leftovers).await;
            let alive = !members(pid).is_empty();
            assert_eq!(alive, !killed, "{key}");
            if alive {
                kill_process_group(pid, Signal::KILL).unwrap();
            }
            assert_eq!(io::Read::read(&mut stdout, &mut up).unwrap(), 0);
        }
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let pid = Pid::from_raw(7).unwrap();
        let stat = "7 (a) Z (b) S 1 9 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9 9";
        let group = Pid::from_raw(9).unwrap();
        assert_eq!(Process::parse(pid, stat), Some(Process { pid, group, lives: true, began: 4242 }));
        assert_eq!(Process::parse(pid, "7 (cut"), None);
        assert_eq!(Process::parse(pid, "7 (cut) S 1"), None);
        // The kernel's word for a process that is just being buried.
        let buried = stat.replace("S 1 9 7", "X 0 -1 -1");
        assert_eq!(Process::parse(pid, &buried), None);
    }
}
