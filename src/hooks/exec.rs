//! The `exec` hook: an executable that gets the call as JSON on standard input and answers with JSON on
//! standard output. Its standard error goes to the log.
//!
//! Buyers choose parameter values, so no value of a call ever reaches a shell, an argument or the environment.
//! The child leads its own process group. spid kills the whole group when the attempt is over, however the
//! attempt ends. A process left running would have no deadline and could meet the next attempt. (A hook that
//! wants to leave a process running starts it in another process group, as `setsid` does.)
//!
//! This module has no deadline: the runner drops the future, and the drop kills the group.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use super::orphaned_hooks::{GroupMark, OrphanedHooks};
use crate::observe::{files, limits};
use spid_hook::Secret;
use spid_hook::answer::ParsedAnswer;
use spid_hook::callback::{Action, Answer};
use spid_hook::text;
use spid_hook::{AnyHook, Call, Context, HookError};

/// Environment variables that a hook inherits, if they are set.
pub const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];
/// Exit code of a refusal (`EX_DATAERR`): the work will not be done, and spid does not try again.
pub const EXIT_REFUSE: i32 = 65;
/// Time in milliseconds for which output is still read after the child has exited, when another process holds
/// the pipe open.
const EXIT_GRACE_MS: u64 = 500;
/// Longest first line of a script that the system reads, in bytes.
const FIRST_LINE_MAX_BYTES: u64 = 256;
/// Search path for a command when `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// An executable as a hook.
#[derive(Debug, Clone)]
pub struct ExecHook {
    command: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    /// Settings of the hook, which it gets as environment variables.
    settings: Vec<(String, Secret)>,
    /// Working folder. It is absolute, so that it names the same folder before and after the child has changed to it.
    folder: Option<PathBuf>,
}

/// Reason why a command cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// The command is empty.
    #[error("the hook's command is empty; give the program and its arguments")]
    Empty,
    /// The file does not exist.
    #[error("the hook's command `{0}` does not exist; correct the path, or add its directory to PATH")]
    Missing(String),
    /// The file exists but cannot be executed.
    #[error("the hook's command `{0}` is not an executable file; set its executable bit (chmod +x)")]
    NotExecutable(String),
    /// The file is empty, so it would succeed and do nothing.
    #[error("the hook's command `{0}` is an empty file; copy the program again")]
    EmptyFile(String),
    /// The first line of a script ends with CR LF, so the system looks for an interpreter whose name ends with CR.
    #[error(
        "the hook's command `{0}` has Windows line ends, so its interpreter is not found; convert it (sed -i 's/\r$//')"
    )]
    WindowsLines(String),
    /// A byte order mark comes before `#!`, so the system does not see the interpreter.
    #[error(
        "the hook's command `{0}` begins with a byte order mark, which hides its `#!` line; save it without one"
    )]
    ByteOrderMark(String),
    /// The interpreter of a script does not exist, or cannot be executed.
    #[error(
        "the interpreter `{1}` of the hook's command `{0}` does not exist or is not executable; install it or correct the first line"
    )]
    NoInterpreter(String, String),
    /// The working folder does not exist, or is not a folder.
    #[error("the hook's working folder `{}` does not exist or is not a folder; create it or correct `working_dir`", .0.display())]
    NoFolder(PathBuf),
}

impl ExecHook {
    /// Creates a hook that runs `command`: the program, then fixed arguments. The hook inherits the present
    /// values of [`KEPT_VARIABLES`] from this process, and no other variables.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> ExecHook {
        let mut environment = Vec::new();
        for name in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                environment.push((OsString::from(name), value));
            }
        }
        ExecHook {
            command: command.into_iter().map(Into::into).collect(),
            environment,
            settings: Vec::new(),
            folder: None,
        }
    }

    /// Adds an environment variable, such as the address of the hook's database.
    pub fn setting(mut self, name: impl Into<String>, value: Secret) -> ExecHook {
        self.settings.push((name.into(), value));
        self
    }

    /// Sets the working folder of the command; the default is this process's own. A command that is a relative
    /// path is searched there.
    pub fn working_dir(self, folder: impl AsRef<Path>) -> ExecHook {
        let folder = folder.as_ref();
        // Without a current folder the path cannot be made absolute and stays as given.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        ExecHook { folder: Some(folder), ..self }
    }

    /// Checks that the command can be started. `check-config` and the start of the daemon use it.
    ///
    /// # Errors
    /// [`BadCommand`], with the reason.
    pub fn check(&self) -> Result<(), BadCommand> {
        let program = self.command.first().filter(|program| !program.is_empty()).ok_or(BadCommand::Empty)?;
        if let Some(folder) = self.folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(BadCommand::NoFolder(folder.clone()));
        }
        // Tell a missing file from one that cannot be executed: the remedies differ.
        let found: Vec<PathBuf> = self.candidates(program).into_iter().filter(|path| path.exists()).collect();
        if found.is_empty() {
            return Err(BadCommand::Missing(program.clone()));
        }
        let executable = found.iter().find(|path| is_executable(path));
        let path = executable.ok_or_else(|| BadCommand::NotExecutable(program.clone()))?;
        self.check_first_line(path, program)
    }

    /// Checks the interpreter that a script names in its first line.
    fn check_first_line(&self, path: &Path, program: &str) -> Result<(), BadCommand> {
        let named = program.to_owned();
        let mut start = Vec::new();
        // A program may be executable and not readable.
        let Ok(file) = files::open(path) else { return Ok(()) };
        if let Some(loader) = loader_of(&file).filter(|loader| !is_executable(Path::new(loader))) {
            return Err(BadCommand::NoInterpreter(named, loader));
        }
        let Ok(length) = file.take(FIRST_LINE_MAX_BYTES).read_to_end(&mut start) else { return Ok(()) };
        if length == 0 {
            return Err(BadCommand::EmptyFile(named));
        }
        if start.starts_with("\u{feff}#!".as_bytes()) {
            return Err(BadCommand::ByteOrderMark(named));
        }
        let Some(line) = start.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next())
        else {
            return Ok(());
        };
        if line.ends_with(b"\r") {
            return Err(BadCommand::WindowsLines(named));
        }
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let Some(interpreter) = words.next() else { return Ok(()) };
        if interpreter.starts_with('/') && !is_executable(Path::new(interpreter)) {
            return Err(BadCommand::NoInterpreter(named, interpreter.to_owned()));
        }
        // `env` searches the real interpreter in PATH. Its options and variables come before that name.
        let is_env = Path::new(interpreter).file_name() == Some(OsStr::new("env"));
        let searched = words.find(|word| !word.starts_with('-') && !word.contains('=')).filter(|_| is_env);
        match searched.filter(|name| !self.candidates(name).iter().any(|path| is_executable(path))) {
            Some(name) => Err(BadCommand::NoInterpreter(named, name.to_owned())),
            None => Ok(()),
        }
    }

    fn candidates(&self, program: &str) -> Vec<PathBuf> {
        if program.contains('/') {
            return vec![self.in_folder(program)];
        }
        // Search the PATH that the child gets, not the present one of this process.
        let own = self
            .settings
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| OsStr::new(value.expose()));
        let inherited =
            self.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
        let path = own.or(inherited).unwrap_or(OsStr::new(DEFAULT_PATH));
        std::env::split_paths(path).map(|folder| folder.join(program)).collect()
    }

    /// Resolves a path of the command line as the child finds it from its working folder.
    fn in_folder(&self, path: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| PathBuf::from(path), |folder| folder.join(path))
    }

    fn spawn(
        &self,
        call: &Call,
        orphaned_hooks: Option<&OrphanedHooks>,
    ) -> Result<(Child, Group), HookError> {
        let (program, arguments) = self.command.split_first().ok_or(BadCommand::Empty)?;
        let context = call.context();
        // The system decides if a relative path is searched before or after the change of folder, so resolve it here.
        let path = if program.contains('/') { self.in_folder(program) } else { PathBuf::from(program) };
        let mut command = Command::new(path);
        command
            .args(arguments)
            // Nothing of the call goes into an argument, and only ids of our own and the action go into the
            // environment.
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(self.settings.iter().map(|(name, value)| (name, value.expose())))
            .env("SPID_ACTION", call.action().as_str())
            .env("SPID_IDEMPOTENCY_KEY", &context.idempotency_key)
            .env("SPID_ATTEMPT", context.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A process group of its own, so that one signal reaches the hook and everything it started.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(traceparent) = &context.traceparent {
            command.env("TRACEPARENT", traceparent);
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let child = command.spawn().map_err(|error| self.not_started(program, &error))?;
        // Mark the group before the caller writes the call: a killed daemon must find every hook that got a call.
        let mut group = Group::led_by(&child);
        group.mark(orphaned_hooks, &context.idempotency_key);
        Ok((child, group))
    }

    /// Builds the error of a failed start. The system's error does not say which file is missing: the command,
    /// its interpreter or the folder. So the check names it.
    fn not_started(&self, program: &str, error: &std::io::Error) -> HookError {
        match self.check() {
            // The file is missing or not executable. Waiting does not repair that, so raise an alert.
            Err(wrong) => HookError::misconfigured(format!("cannot start `{program}`: {error}: {wrong}")),
            // For example no memory or no process is available at this moment.
            Ok(()) => HookError::retry(format!("cannot start `{program}`: {error}")),
        }
    }

    pub(super) async fn run(
        &self,
        call: Call,
        orphaned_hooks: Option<OrphanedHooks>,
    ) -> Result<Answer, HookError> {
        let request = serde_json::to_vec(&call)?;
        let (mut child, group) = self.spawn(&call, orphaned_hooks.as_ref())?;
        let mut heard = HookOutput::new(&call);
        // Feed the call and read the output until the child has exited. An error still goes through the next step.
        let ended = converse(&mut child, &request, &mut heard).await;
        // Kill the whole group before the result is known, so that no process of this attempt meets the next one.
        drop(group);
        let status = ended?;
        // Log a last line that has no newline.
        heard.log.finish();
        judge(status, &heard, call.action())
    }
}

/// Returns the loader that an ELF program names, such as `/lib64/ld-linux-x86-64.so.2`. The system says "no such file" if
/// it is missing, as for a glibc program in an image with musl. Looks only into 64-bit little-endian programs.
fn loader_of(file: &File) -> Option<String> {
    const INTERPRETER: u64 = 3;
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let number = |at: u64, length: usize| {
        Some(read(at, length)?.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte)))
    };
    if read(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    // The table of segments: its position, the size of an entry, and their count.
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let entries = (0..count).map(|index| table.saturating_add(index.saturating_mul(size)));
    let entry = entries.into_iter().find(|at| number(*at, 4) == Some(INTERPRETER))?;
    let (at, length) = (number(entry.saturating_add(8), 8)?, number(entry.saturating_add(32), 8)?);
    let length = usize::try_from(length.min(FIRST_LINE_MAX_BYTES)).ok()?;
    let name = String::from_utf8(read(at, length)?).ok()?;
    Some(name.trim_end_matches('\0').to_owned())
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

impl From<ExecHook> for AnyHook {
    fn from(hook: ExecHook) -> AnyHook {
        unmarked(Arc::new(hook))
    }
}

/// Runs the hook outside of a daemon, where no start looks for processes that were left.
pub(super) fn unmarked(hook: Arc<ExecHook>) -> AnyHook {
    AnyHook::from_fn(move |call| {
        let hook = hook.clone();
        async move { hook.run(call, None).await }
    })
}

/// The child's process group. Dropping it kills the group.
///
/// After the child has been reaped, the system could in theory give its number to another process. The number
/// is used for at most [`EXIT_GRACE_MS`] after that, and the system assigns every other number first.
struct Group {
    leader: Option<Pid>,
    /// Mark of the group, removed after the group is killed.
    mark: Option<GroupMark>,
}

impl Group {
    fn led_by(child: &Child) -> Group {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Group { leader: id.and_then(Pid::from_raw), mark: None }
    }

    /// Marks the group before the hook gets its call. A mark that cannot be written does not prevent the run.
    /// It matters only if the daemon is killed, and then the idempotency key protects.
    fn mark(&mut self, orphaned_hooks: Option<&OrphanedHooks>, key: &str) {
        let (Some(orphaned_hooks), Some(leader)) = (orphaned_hooks, self.leader) else { return };
        match orphaned_hooks.mark(leader, key) {
            Ok(mark) => self.mark = mark,
            Err(error) => {
                tracing::warn!(idempotency_key = key, %error, "could not mark the running hook; if the daemon is killed now, the next start cannot find and kill it");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // An error means that the group is already empty. The death is not waited for: a killed process runs no more
            // code of the hook, and one that hangs in the system could not be waited for either.
            let _ = kill_process_group(leader, Signal::KILL);
        }
        // Remove the mark last: while it exists, the next start can still find and kill the group.
        drop(self.mark.take());
    }
}

/// Output of the child so far. The reading may be cut short, so this is kept outside of it.
struct HookOutput {
    stdout: Vec<u8>,
    log: LineLog,
}

impl HookOutput {
    fn new(call: &Call) -> HookOutput {
        HookOutput { stdout: Vec::new(), log: LineLog::new(call.action(), call.context().clone()) }
    }

    async fn listen(
        &mut self,
        stdout: Option<impl AsyncRead + Unpin>,
        stderr: Option<impl AsyncRead + Unpin>,
    ) -> Result<(), HookError> {
        let HookOutput { stdout: answer, log } = self;
        tokio::try_join!(read_answer(stdout, answer), read_log(stderr, log))?;
        Ok(())
    }
}

/// Writes the call and reads the output at the same time, until the child has exited and its output has ended.
/// It does not wait for a process that inherited the output and outlives the child.
async fn converse(
    child: &mut Child,
    request: &[u8],
    heard: &mut HookOutput,
) -> Result<ExitStatus, HookError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (feed, listen, exit) = (feed(stdin, request), heard.listen(stdout, stderr), child.wait());
    // Write and read at the same time. A child that answers before it reads would otherwise block on a full pipe.
    tokio::pin!(feed, listen, exit);
    let (mut fed, mut listened) = (false, false);
    // Run until the child exits. An error while reading ends the conversation; the caller then kills the group.
    let status = loop {
        tokio::select! {
            // 1. Write the call.
            () = &mut feed, if !fed => fed = true,
            // 2. Read both outputs. An answer that is too long ends the attempt.
            ended = &mut listen, if !listened => {
                ended?;
                listened = true;
            }
            // 3. Wait for the exit, even if the input is not read or the output is closed early.
            status = &mut exit => break status?,
        }
    };
    // The child has exited, but its output may still be in the pipe, or another process may hold the pipe open.
    if !listened {
        let grace = Duration::from_millis(EXIT_GRACE_MS);
        tokio::time::timeout(grace, &mut listen).await.unwrap_or(Ok(()))?;
    }
    Ok(status)
}

/// Writes the call to standard input. A child need not read its input, so a broken pipe says nothing about the answer.
async fn feed(stdin: Option<ChildStdin>, request: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(request).await;
        // Close the input, because hooks read up to its end.
        let _ = stdin.shutdown().await;
    }
}

async fn read_answer(stdout: Option<impl AsyncRead + Unpin>, answer: &mut Vec<u8>) -> Result<(), HookError> {
    let Some(stdout) = stdout else { return Ok(()) };
    let most = limits::HOOK_ANSWER_MAX_BYTES;
    // Read one byte more than allowed, to tell an answer of exactly the maximum from one that is too long.
    stdout.take(most as u64 + 1).read_to_end(answer).await?;
    if answer.len() > most {
        return Err(HookError::retry(format!("the hook's answer is longer than {most} bytes")));
    }
    Ok(())
}

async fn read_log(stderr: Option<impl AsyncRead + Unpin>, log: &mut LineLog) -> Result<(), HookError> {
    let Some(mut stderr) = stderr else { return Ok(()) };
    // Read in small pieces: a line may have any length, and only its beginning is kept.
    let mut chunk = [0u8; 1024];
    loop {
        let count = stderr.read(&mut chunk).await?;
        match chunk.get(..count) {
            None | Some([]) => return Ok(()),
            Some(bytes) => log.push(bytes),
        }
    }
}

/// Standard error, split into lines. Each line is logged once, cut to a maximum length, with control characters
/// escaped.
struct LineLog {
    action: Action,
    context: Context,
    line: Vec<u8>,
    cut: bool,
    /// Bytes of the log that this attempt may still write.
    left: usize,
    last: Option<String>,
}

impl LineLog {
    fn new(action: Action, context: Context) -> LineLog {
        LineLog {
            action,
            context,
            line: Vec::new(),
            cut: false,
            left: limits::HOOK_LOG_MAX_BYTES,
            last: None,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        if let Some(first) = pieces.next() {
            self.extend(first);
        }
        for piece in pieces {
            self.finish();
            self.extend(piece);
        }
    }

    fn extend(&mut self, piece: &[u8]) {
        let room = limits::HOOK_LOG_LINE_MAX_BYTES - self.line.len();
        // Keep reading what does not fit, so that the child never blocks on a full pipe; only the log line is cut.
        self.cut |= piece.len() > room;
        self.line.extend(piece.iter().take(room));
    }

    /// Logs the collected line and begins the next one.
    fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut text = printable(&line);
        if std::mem::take(&mut self.cut) {
            text.push('…');
        }
        // Empty lines are not logged.
        if text.trim().is_empty() {
            return;
        }
        self.log(&text);
        self.last = Some(text);
    }

    fn log(&mut self, text: &str) {
        if self.left == 0 {
            return;
        }
        // Count the bytes first: the line that uses up the budget is replaced by one warning.
        self.left = self.left.saturating_sub(written_bytes(text));
        let (action, context) = (self.action.as_str(), &self.context);
        let (key, attempt) = (context.idempotency_key.as_str(), context.attempt);
        if self.left > 0 {
            tracing::info!(target: "spid::hook", action, idempotency_key = key, attempt, "{text}");
        } else {
            tracing::warn!(target: "spid::hook", action, idempotency_key = key, attempt,
                "the hook wrote more to standard error than the log limit per attempt; the rest is not logged");
        }
    }
}

/// Returns the maximum number of bytes a line takes in the log: a quotation mark, a backslash and a tab take
/// two in JSON.
fn written_bytes(text: &str) -> usize {
    let doubled = text.bytes().filter(|byte| matches!(byte, b'"' | b'\\' | b'\t')).count();
    limits::HOOK_LOG_LINE_EXTRA_BYTES + text.len() + doubled
}

fn printable(line: &[u8]) -> String {
    text::plain_log(&String::from_utf8_lossy(line.trim_ascii_end())).into_owned()
}

/// Combines the exit status and the output into a result.
fn judge(status: ExitStatus, heard: &HookOutput, action: Action) -> Result<Answer, HookError> {
    match status.code() {
        Some(0) => ParsedAnswer::success(ParsedAnswer::read_any(&heard.stdout)?, action),
        // A refusal is final, so it needs this code. All other codes and signals are retries.
        Some(EXIT_REFUSE) => Err(refusal(heard)),
        _ => Err(failure(status, heard)),
    }
}

/// Returns the reason of a refusal. The marketplace reads it, so only the text that the hook wrote for others
/// is used, and never a line of its log.
///
/// Other output contradicts the code: a crash can end with it, and a success was answered. A retry is safe then.
fn refusal(heard: &HookOutput) -> HookError {
    let fault = match ParsedAnswer::read_any(&heard.stdout) {
        Ok(None) => {
            return HookError::refuse(format!(
                "the hook refused the call (exit code {EXIT_REFUSE}) without a reason"
            ));
        }
        Ok(Some(ParsedAnswer { refuse: Some(reason), .. })) => return HookError::refuse(reason),
        Ok(Some(_)) => "its answer has no `refuse`".to_owned(),
        Err(unreadable) => unreadable.to_string(),
    };
    HookError::retry(format!(
        "the hook exited with code {EXIT_REFUSE}, which refuses, but {fault}; answer `{{\"refuse\": \"…\"}}` or nothing"
    ))
}

fn failure(status: ExitStatus, heard: &HookOutput) -> HookError {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("the hook exited with code {code}"),
        (None, Some(signal)) => format!("the hook was killed by {}", signal_name(signal)),
        (None, None) => "the hook ended in an unknown way".to_owned(),
    };
    // The last line of standard error is usually the error itself.
    let message = match &heard.log.last {
        Some(line) => format!("{how}: {line}"),
        None => how,
    };
    match ParsedAnswer::read_any(&heard.stdout).ok().flatten().and_then(|said| said.retry_after) {
        Some(after) => HookError::retry_after(message, after),
        None => HookError::retry(message),
    }
}

fn signal_name(number: i32) -> String {
    const NAMES: [(Signal, &str); 13] = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
    ];
    let known = NAMES.iter().find(|(signal, _)| signal.as_raw() == number);
    known.map_or_else(|| format!("signal {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::testing;

    fn log() -> LineLog {
        let call = testing::call(Action::Create);
        LineLog::new(Action::Create, call.context().clone())
    }

    #[test]
    fn lines_are_put_together_across_reads() {
        let mut log = log();
        log.push(b"one\ntw");
        assert_eq!(log.last.as_deref(), Some("one"));
        log.push(b"o\r\n\n");
        assert_eq!(log.last.as_deref(), Some("two"));
        log.push(b"no newline");
        log.finish();
        assert_eq!(log.last.as_deref(), Some("no newline"));
    }

    #[test]
    fn lines_are_bounded_and_printable() {
        let mut log = log();
        log.push(b"\x1b[31mred\xff\n");
        assert_eq!(log.last.as_deref(), Some("\\u{1b}[31mred\u{fffd}"));
        log.push(&vec![b'x'; limits::HOOK_LOG_LINE_MAX_BYTES * 3]);
        assert_eq!(log.line.len(), limits::HOOK_LOG_LINE_MAX_BYTES);
        log.push(b"\nnext\n");
        assert_eq!(log.last.as_deref(), Some("next"));
        for _ in 0..limits::HOOK_LOG_MAX_BYTES {
            log.push(b"word\n");
        }
        assert_eq!(log.left, 0);
    }

    #[test]
    fn a_command_is_checked_before_it_is_needed() {
        let check = |command: &[&str]| ExecHook::new(command.iter().copied()).check();
        assert_eq!(check(&["sh", "-c", "true"]), Ok(()));
        assert_eq!(check(&["/bin/sh"]), Ok(()));
        assert_eq!(check(&[]), Err(BadCommand::Empty));
        assert_eq!(check(&[""]), Err(BadCommand::Empty));
        assert_eq!(check(&["/no/such/file"]), Err(BadCommand::Missing("/no/such/file".into())));
        let nowhere = "no-such-command-anywhere";
        assert_eq!(check(&[nowhere]), Err(BadCommand::Missing(nowhere.into())));
        assert_eq!(check(&["/"]), Err(BadCommand::NotExecutable("/".into())));
        let plain = tempfile::NamedTempFile::new().unwrap();
        let path = plain.path().to_str().unwrap();
        assert_eq!(check(&[path]), Err(BadCommand::NotExecutable(path.into())));
    }

    /// Files that the system finds and executes, and that nevertheless never run.
    #[test]
    fn a_script_that_cannot_start_is_no_command() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hook");
        let name = path.to_str().unwrap().to_owned();
        let check = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            ExecHook::new([name.as_str()]).check()
        };
        let lacks = |interpreter: &str| Err(BadCommand::NoInterpreter(name.clone(), interpreter.to_owned()));
        assert_eq!(check(""), Err(BadCommand::EmptyFile(name.clone())));
        assert_eq!(check("#!/bin/sh\r\nexit 0\r\n"), Err(BadCommand::WindowsLines(name.clone())));
        assert_eq!(check("#!/usr/bin/env sh\r\n"), Err(BadCommand::WindowsLines(name.clone())));
        assert_eq!(check("\u{feff}#!/bin/sh\n"), Err(BadCommand::ByteOrderMark(name.clone())));
        assert_eq!(check("#!/opt/no/such/python3\n"), lacks("/opt/no/such/python3"));
        assert_eq!(check("#! /etc/passwd\n"), lacks("/etc/passwd"));
        assert_eq!(check("#!/usr/bin/env no-such-python3\n"), lacks("no-such-python3"));
        assert_eq!(check("#!/usr/bin/env -S A=b no-such-python3 -u\n"), lacks("no-such-python3"));
        let works =
            ["#!/bin/sh\n", "#!/usr/bin/env sh\n", "#!/usr/bin/env -S A=b sh -eu\n", "exit 0\n", "\u{7f}ELF"];
        // A program for a system with another loader.
        let own = std::fs::read("/proc/self/exe").unwrap();
        let loader = loader_of(&File::open("/proc/self/exe").unwrap());
        let place = |loader: String| own.windows(loader.len()).position(|part| part == loader.as_bytes());
        if let Some(at) = loader.and_then(place) {
            let mut other = own.clone();
            *other.get_mut(at + 1).unwrap() = b'?';
            std::fs::write(&path, &other).unwrap();
            let wrong = ExecHook::new([name.as_str()]).check().unwrap_err();
            assert!(wrong.to_string().starts_with("the interpreter `/?"), "{wrong}");
        }
        assert_eq!(ExecHook::new(["/proc/self/exe"]).check(), Ok(()));
        for works in works {
            assert_eq!(check(works), Ok(()), "{works}");
        }
    }

    #[test]
    fn a_working_folder_is_checked_and_is_where_relative_commands_are() {
        let check = |folder: &Path, command: &str| ExecHook::new([command]).working_dir(folder).check();
        assert_eq!(check(Path::new("/bin"), "./sh"), Ok(()));
        assert_eq!(check(Path::new("/"), "bin/sh"), Ok(()));
        assert_eq!(check(Path::new("/"), "sh"), Ok(()));
        assert_eq!(check(Path::new("/"), "./sh"), Err(BadCommand::Missing("./sh".into())));
        for nowhere in ["/no/such/folder", "/bin/sh"] {
            assert_eq!(check(Path::new(nowhere), "/bin/sh"), Err(BadCommand::NoFolder(nowhere.into())));
        }
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(signal_name(Signal::KILL.as_raw()), "SIGKILL");
        assert_eq!(signal_name(120), "signal 120");
    }
}
