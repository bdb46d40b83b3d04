//! Hooks that a dead daemon left running: finds their process groups by marks, and kills them.
//!
//! `kill -9` of the daemon does not reach its hooks. Their jobs run again after the next start, and a hook that
//! is still running would meet the next attempt at its own job. So spid marks every group with a small file
//! beside the database. The file is created before the hook gets its call, and removed after the group is dead.
//! A start kills the marked groups before anything else runs. After a crash of the machine there is nothing to
//! kill, so a mark is never synced to the disk.
//!
//! A process id alone proves nothing, because the system assigns the numbers again. A mark holds the start time
//! of the group's leader and the id of the boot. If the leader is gone, a process of the group must carry the
//! idempotency key in its environment. A group that fits neither is not ours and is left alone.
//!
//! A hook can be caught between its start and its mark. It then reads an empty input instead of a call. This
//! module needs `/proc`; without it nothing is marked and nothing is killed.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::{Instant, sleep_until};

use crate::observe::{files, limits};

/// First interval between checks for the end of killed groups. They are no children of this process, so no signal
/// reports their end. Each check reads the whole of `/proc`, so the interval doubles up to the maximum.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const LOOK_EVERY_MAX: Duration = Duration::from_millis(100);

/// The folder in which running process groups are marked. Clones share it.
#[derive(Debug, Clone)]
pub struct OrphanedHooks {
    folder: Arc<Path>,
}

impl OrphanedHooks {
    /// Kills the groups that are marked in `folder` and waits until they are dead. Creates the folder if it does
    /// not exist. The caller must be the only daemon that uses the folder. Files that are not marks are left alone.
    ///
    /// # Errors
    /// The folder cannot be created or read, or is a link. A link could lead to files of another owner.
    pub async fn clear(folder: &Path) -> io::Result<OrphanedHooks> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // `symlink_metadata` does not follow a link, so a link is refused here.
        if !fs::symlink_metadata(folder)?.is_dir() {
            let message = format!("`{}` must be a folder and not a link: remove it", folder.display());
            return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
        }
        let (mut marks, mut marked) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // Leave other files alone.
            if MarkedGroup::name(&path).is_none() {
                continue;
            }
            marked.extend(MarkedGroup::read(&path));
            marks.push(path);
        }
        end_all(&marked).await;
        for mark in marks {
            // A mark that cannot be removed does no harm: at the next start its group no longer exists.
            let _ = fs::remove_file(&mark);
        }
        Ok(OrphanedHooks { folder: folder.into() })
    }

    /// Marks the group led by `leader`, whose processes carry `key`. Returns `None` if there is no `/proc`, or
    /// the leader is already gone.
    pub(super) fn mark(&self, leader: Pid, key: &str) -> io::Result<Option<GroupMark>> {
        // No `/proc`, or the leader has ended: there is nothing to mark.
        let Some(process) = Process::read(leader) else { return Ok(None) };
        // The process id and the start time together identify the leader.
        let path = self.folder.join(format!("{}-{}", leader.as_raw_nonzero(), process.began));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mark = GroupMark(path);
        file.write_all(format!("{}\n{key}\n", boot()).as_bytes())?;
        Ok(Some(mark))
    }
}

/// A mark. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct GroupMark(PathBuf);

impl Drop for GroupMark {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Content of a mark.
struct MarkedGroup {
    leader: Pid,
    began: u64,
    key: String,
}

impl MarkedGroup {
    /// Returns the two numbers in the file name of a mark: the leader's process id and its start time.
    fn name(path: &Path) -> Option<(&str, &str)> {
        let (leader, began) = path.file_name()?.to_str()?.split_once('-')?;
        (is_number(leader) && is_number(began)).then_some((leader, began))
    }

    /// Reads a mark of this boot. A mark that is cut short is ignored: its hook never got a call.
    fn read(path: &Path) -> Option<MarkedGroup> {
        let (leader, began) = MarkedGroup::name(path)?;
        let text = files::read_text(path, limits::OWN_FILE_MAX_BYTES).ok()?;
        let (in_boot, key) = text.strip_suffix('\n')?.split_once('\n')?;
        // A signal to the group 1 would be `kill(-1)`, which reaches every process.
        let leader = pid_of(leader).filter(|leader| leader.as_raw_nonzero().get() > 1)?;
        (in_boot == boot()).then_some(MarkedGroup { leader, began: began.parse().ok()?, key: key.to_owned() })
    }

    /// Kills the group. Returns true if its end must be awaited.
    fn kill(&self) -> bool {
        match kill_process_group(self.leader, Signal::KILL) {
            // SRCH: the group ended in the meantime.
            Ok(()) | Err(Errno::SRCH) => true,
            Err(error) => {
                tracing::error!(group = self.number(), idempotency_key = %self.key, %error, "cannot kill a hook of the previous daemon; it may run at the same time as the next attempt at its job");
                false
            }
        }
    }

    fn number(&self) -> i32 {
        self.leader.as_raw_nonzero().get()
    }

    /// Checks that the group is the marked one: by the leader's start time, or by the key if the leader is gone.
    fn is_ours(&self, living: &[Process]) -> bool {
        let mut members = living.iter().filter(|process| process.group == self.leader);
        match members.clone().find(|process| process.pid == self.leader) {
            Some(leader) => leader.began == self.began,
            None => members.any(|process| process.carries(&self.key)),
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Kills the groups that are still the marked ones, all together, and waits until they are dead.
async fn end_all(marked: &[MarkedGroup]) {
    if marked.is_empty() {
        return;
    }
    // Any other group has ended, or its number now belongs to other processes.
    let living = living();
    let ours = marked.iter().filter(|marked| marked.is_ours(&living));
    let killed: Vec<&MarkedGroup> = ours.filter(|marked| marked.kill()).collect();
    // Wait for the end: the next attempt must not meet a process of an earlier one.
    let alive = wait_for_end(killed.iter().map(|killed| killed.leader).collect(), self::living).await;
    for killed in killed {
        let (group, key) = (killed.number(), &killed.key);
        if alive.contains(&killed.leader) {
            tracing::error!(group, idempotency_key = %key, "a hook of the previous daemon is still running after SIGKILL; it may run at the same time as the next attempt at its job");
        } else {
            tracing::warn!(group, idempotency_key = %key, "killed a hook that the last daemon left running");
        }
    }
}

/// Waits until these groups are dead, all of them within one time limit. Returns the groups that still live then.
async fn wait_for_end(mut groups: Vec<Pid>, mut living: impl FnMut() -> Vec<Process>) -> Vec<Pid> {
    let deadline = Instant::now() + Duration::from_millis(limits::ORPHANED_HOOKS_END_MS);
    let mut pause = LOOK_EVERY;
    while !groups.is_empty() {
        let processes = living();
        groups.retain(|group| processes.iter().any(|process| process.group == *group));
        if groups.is_empty() || Instant::now() >= deadline {
            break;
        }
        sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(LOOK_EVERY_MAX);
    }
    groups
}

/// Returns all living processes.
fn living() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| pid_of(entry.ok()?.file_name().to_str()?));
    pids.filter_map(Process::read).filter(|process| process.lives).collect()
}

/// Parses the id of a process or a group. A process that is being reaped reports the group -1.
fn pid_of(text: &str) -> Option<Pid> {
    text.parse().ok().filter(|number| *number > 0).and_then(Pid::from_raw)
}

/// Returns the id of this boot of the machine, or an empty text if it is unknown.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A process, as described by `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    group: Pid,
    /// True while the process runs. A dead process stays listed until its parent has reaped it.
    lives: bool,
    /// Start time, in ticks since the machine was started.
    began: u64,
}

impl Process {
    fn read(pid: Pid) -> Option<Process> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Process::parse(pid, &String::from_utf8_lossy(&stat))
    }

    /// Parses `stat` as proc(5) describes it. The name is free text in parentheses. After it follow the state
    /// (third field), the group (fifth) and the start time (twenty-second).
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

    /// A process in its own group, which ends when it is killed or when `stdin` is closed.
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

    async fn cleared() -> (tempfile::TempDir, OrphanedHooks) {
        let folder = tempfile::tempdir().unwrap();
        let orphaned_hooks = OrphanedHooks::clear(&folder.path().join("running")).await.unwrap();
        (folder, orphaned_hooks)
    }

    /// Marks a group and keeps the mark, as a daemon that is killed does.
    fn mark(orphaned_hooks: &OrphanedHooks, pid: Pid, key: &str) {
        std::mem::forget(orphaned_hooks.mark(pid, key).unwrap().unwrap());
    }

    async fn clear_again(orphaned_hooks: &OrphanedHooks) {
        OrphanedHooks::clear(&orphaned_hooks.folder).await.unwrap();
        assert_eq!(fs::read_dir(&orphaned_hooks.folder).unwrap().count(), 0);
    }

    fn signal_of(mut child: Child) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap())
    }

    #[tokio::test]
    async fn what_is_marked_is_killed_though_it_ignores_a_polite_signal() {
        let (_folder, orphaned_hooks) = cleared().await;
        let (child, pid) = a_group("trap '' TERM INT; read line");
        mark(&orphaned_hooks, pid, KEY);
        clear_again(&orphaned_hooks).await;
        assert_eq!(signal_of(child), Some(9));
    }

    #[tokio::test]
    async fn a_mark_goes_with_its_group() {
        let (_folder, orphaned_hooks) = cleared().await;
        let (mut child, pid) = a_group("read line");
        let mark = orphaned_hooks.mark(pid, KEY).unwrap().unwrap();
        assert!(mark.0.exists());
        let path = mark.0.clone();
        drop(mark);
        assert!(!path.exists());
        clear_again(&orphaned_hooks).await;
        assert_eq!(child.try_wait().unwrap(), None);
        drop(child.stdin.take());
        assert!(child.wait().is_ok());
    }

    #[tokio::test]
    async fn a_stranger_with_the_same_number_lives() {
        let (_folder, orphaned_hooks) = cleared().await;
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
            fs::write(orphaned_hooks.folder.join(&name), text).unwrap();
            clear_again(&orphaned_hooks).await;
            assert_eq!(child.try_wait().unwrap(), None, "{name}");
        }
        drop(child.stdin.take());
        assert!(child.wait().is_ok());
    }

    #[tokio::test]
    async fn what_is_no_mark_stays_and_a_link_is_not_followed() {
        let (folder, orphaned_hooks) = cleared().await;
        for name in ["note", "-1", "1-", "1-a"] {
            fs::write(orphaned_hooks.folder.join(name), "of another program").unwrap();
        }
        // A link with the name of a mark is removed; its target stays.
        std::os::unix::fs::symlink("note", orphaned_hooks.folder.join("7-7")).unwrap();
        OrphanedHooks::clear(&orphaned_hooks.folder).await.unwrap();
        assert_eq!(fs::read_dir(&orphaned_hooks.folder).unwrap().count(), 4);
        fs::write(orphaned_hooks.folder.join("9-9"), "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&orphaned_hooks.folder, &link).unwrap();
        let refused = OrphanedHooks::clear(&link).await.unwrap_err().to_string();
        assert!(refused.contains("not a link"), "{refused}");
        assert_eq!(fs::read_dir(&orphaned_hooks.folder).unwrap().count(), 5);
    }

    #[tokio::test]
    async fn a_group_without_its_leader_is_known_by_the_key() {
        let (_folder, orphaned_hooks) = cleared().await;
        for (key, killed) in [("another-key", false), (KEY, true)] {
            // The leader reports that its child runs, is marked, and exits. Its child holds the pipe.
            let (mut child, pid) =
                a_group("sh -c 'echo up; trap \"\" TERM; while :; do sleep 60; done' & read line");
            let mut stdout = child.stdout.take().unwrap();
            let mut up = [0; 3];
            io::Read::read_exact(&mut stdout, &mut up).unwrap();
            mark(&orphaned_hooks, pid, key);
            drop(child.stdin.take());
            child.wait().unwrap();
            clear_again(&orphaned_hooks).await;
            let alive = living().iter().any(|process| process.group == pid);
            assert_eq!(alive, !killed, "{key}");
            if alive {
                kill_process_group(pid, Signal::KILL).unwrap();
            }
            assert_eq!(io::Read::read(&mut stdout, &mut up).unwrap(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn groups_that_do_not_die_share_one_time_limit() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let process = |number| Process { pid: pid(number), group: pid(number), lives: true, began: 1 };
        let groups: Vec<Pid> = (2..66).map(pid).collect();
        let mut looks = 0;
        let begun = Instant::now();
        let alive = wait_for_end(groups.clone(), || {
            looks += 1;
            // The first group ends soon.
            (if looks > 3 { 3 } else { 2 }..66).map(process).collect()
        });
        assert_eq!(alive.await, groups[1..]);
        assert_eq!(begun.elapsed(), Duration::from_millis(limits::ORPHANED_HOOKS_END_MS));
        assert!(looks < 100, "{looks}");
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let pid = Pid::from_raw(7).unwrap();
        let stat = "7 (a) Z (b) S 1 9 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9 9";
        let group = Pid::from_raw(9).unwrap();
        assert_eq!(Process::parse(pid, stat), Some(Process { pid, group, lives: true, began: 4242 }));
        assert_eq!(Process::parse(pid, "7 (cut"), None);
        assert_eq!(Process::parse(pid, "7 (cut) S 1"), None);
        // The kernel's output for a process that is being reaped.
        let buried = stat.replace("S 1 9 7", "X 0 -1 -1");
        assert_eq!(Process::parse(pid, &buried), None);
    }
}
