//! A program that is an `exec` hook: one call on standard input, one answer on standard output.
//!
//! The exit codes are those of the contract in `docs/hooks.md`:
//!
//! | exit | meaning |
//! |---|---|
//! | 0 | done or pending, with an answer |
//! | 64 | started by hand: there is no call on standard input |
//! | 65 | refused for good, with the reason |
//! | 74 | standard input or output failed; spid tries again |
//! | 75 | try again, with `retry_after` if the hook asked for a delay |
//! | 78 | configured wrongly, or built for another `schema`; spid tries again |

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::callback::Answer;
use crate::text::plain_log;
use crate::{AnyHook, AttemptResult, Call, HookError, Secret, UnreadableCall, limits, write_answer};

/// Exit code for a program that was started without a call (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// Exit code of a refusal (`EX_DATAERR`): spid does not try again.
const EXIT_REFUSE: u8 = 65;
/// Exit code for standard input or output that failed (`EX_IOERR`).
const EXIT_IO: u8 = 74;
/// Exit code of a retry (`EX_TEMPFAIL`).
const EXIT_RETRY: u8 = 75;
/// Exit code of a wrong configuration (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Runs this process as an `exec` hook: reads one call, runs the hook, and writes the answer.
///
/// The whole program is one line:
///
/// ```no_run
/// use std::process::ExitCode;
/// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook;
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
/// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
///
/// fn main() -> ExitCode {
///     spid_hook::exec_main(MyHook)
/// }
/// ```
///
/// and is configured as
///
/// ```toml
/// [[hook]]
/// name = "provision"
/// exec = { command = ["/opt/app/provision"] }
/// ```
///
/// Write logs to standard error, and nothing to standard output. The hook runs on a tokio runtime of one thread. A
/// hook that was killed or that panicked gets the same call again, with the same idempotency key.
pub fn exec_main(hook: impl Into<AnyHook>) -> ExitCode {
    let hook = hook.into();
    exec_main_with(async move || Ok::<AnyHook, HookError>(hook))
}

/// Runs this process as an `exec` hook as [`exec_main`] does. `start` makes the hook, for example from a connection to
/// a database. It runs on the hook's runtime, and only if there is a call.
///
/// ```no_run
/// # use std::process::ExitCode;
/// # use spid_hook::{CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated};
/// # struct MyHook { plans: String }
/// # impl ProvisioningHook for MyHook {
/// #     async fn create(&self, _: CreateCall) -> Result<Provisioned, HookError> { Ok(Provisioned::new()) }
/// #     async fn renew(&self, _: RenewCall) -> Result<Updated, HookError> { Ok(Updated::new()) }
/// #     async fn expire(&self, _: ExpireCall) -> Result<(), HookError> { Ok(()) }
/// #     async fn release(&self, _: ReleaseCall) -> Result<(), HookError> { Ok(()) }
/// # }
/// fn main() -> ExitCode {
///     spid_hook::exec_main_with(async || {
///         // Any error is a retry.
///         let plans = std::fs::read_to_string("/etc/my-app/plans.toml")?;
///         Ok::<_, std::io::Error>(MyHook { plans })
///     })
/// }
/// ```
pub fn exec_main_with<H, E>(start: impl AsyncFnOnce() -> Result<H, E>) -> ExitCode
where
    H: Into<AnyHook>,
    E: Into<HookError>,
{
    let ended = match call_of_stdin() {
        Ok(call) => run(&call, start),
        Err(ended) => ended,
    };
    ended.tell()
}

/// Output and exit code of a program that is an `exec` hook.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    code: u8,
    /// JSON for standard output. It may hold passwords.
    answer: Option<Secret>,
    /// The last line of standard error, which spid takes as the error text.
    error: Option<String>,
}

impl Ended {
    fn failed(code: u8, error: impl Into<String>) -> Ended {
        Ended { code, answer: None, error: Some(error.into()) }
    }

    fn said(code: u8, answer: &serde_json::Value) -> Ended {
        Ended { code, answer: Some(Secret::new(answer.to_string())), error: None }
    }

    /// Writes the output.
    fn tell(self) -> ExitCode {
        // The error comes first: a reader that closed standard output must not hide it.
        if let Some(error) = &self.error {
            log(error);
        }
        let Some(answer) = &self.answer else { return ExitCode::from(self.code) };
        let mut stdout = std::io::stdout().lock();
        let text = answer.expose().as_bytes();
        let written = stdout.write_all(text).and_then(|()| stdout.write_all(b"\n"));
        match written.and_then(|()| stdout.flush()) {
            Ok(()) => ExitCode::from(self.code),
            Err(error) => {
                // Without its answer a success is none, so spid must try again.
                log(&format!("the answer cannot be written to standard output: {error}"));
                ExitCode::from(EXIT_IO)
            }
        }
    }
}

/// Writes one line to standard error. An error of standard error cannot be reported anywhere.
fn log(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain_log(line));
}

/// Reads the call from standard input.
fn call_of_stdin() -> Result<Vec<u8>, Ended> {
    const NO_CALL: &str = "this program is an exec hook: spid starts it with one call as JSON on standard input; \
        try it with `spid hook test --exec PROGRAM`";
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Ended::failed(EXIT_USAGE, format!("standard input is a terminal; {NO_CALL}")));
    }
    let most = limits::CALL_MAX_BYTES;
    let mut call = Vec::new();
    // Read one byte more than allowed, to tell a call of exactly the maximum from one that is too long.
    let read = stdin.lock().take(most as u64 + 1).read_to_end(&mut call);
    read.map_err(|error| Ended::failed(EXIT_IO, format!("standard input cannot be read: {error}")))?;
    if call.len() > most {
        return Err(Ended::failed(EXIT_RETRY, format!("the call is longer than {most} bytes")));
    }
    if call.trim_ascii().is_empty() {
        return Err(Ended::failed(EXIT_USAGE, format!("standard input is empty; {NO_CALL}")));
    }
    Ok(call)
}

/// Runs the hook for one call.
fn run<H, E>(call: &[u8], start: impl AsyncFnOnce() -> Result<H, E>) -> Ended
where
    H: Into<AnyHook>,
    E: Into<HookError>,
{
    let call = match Call::read(call) {
        Ok(call) => call,
        Err(error) => return unreadable(error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ended::failed(EXIT_RETRY, format!("the runtime did not start: {error}")),
    };
    let attempted = runtime.block_on(async {
        match start().await {
            Ok(hook) => attempt(hook.into(), call).await,
            Err(error) => AttemptResult::from(Err(error.into())),
        }
    });
    // Do not wait for a blocking task of the author: the answer is known.
    runtime.shutdown_background();
    ended(attempted)
}

/// Runs the hook in a task of its own, so that a panic becomes a retry. Dropping the returned future stops the hook.
pub(crate) async fn attempt(hook: AnyHook, call: Call) -> AttemptResult {
    // A set stops its tasks when it is dropped.
    let mut task = JoinSet::new();
    task.spawn(async move { hook.answer(call).await });
    match task.join_next().await {
        Some(Ok(result)) => AttemptResult::from(result),
        // The text of the panic is already on standard error.
        Some(Err(error)) if error.is_panic() => AttemptResult::retry("the hook panicked".to_owned()),
        _ => AttemptResult::retry("the hook was stopped".to_owned()),
    }
}

fn unreadable(error: UnreadableCall) -> Ended {
    match &error {
        UnreadableCall::Schema(_) => Ended::failed(EXIT_CONFIG, error.to_string()),
        // A hook must refuse what it does not know: a retry would not change that.
        UnreadableCall::Action(action) => ended(AttemptResult::from(Err(HookError::unsupported(action)))),
        // Not a refusal: an order must not be lost because of a bug.
        _ => Ended::failed(EXIT_RETRY, error.to_string()),
    }
}

/// Converts a result into an exit code and an output.
fn ended(attempted: AttemptResult) -> Ended {
    match attempted {
        AttemptResult::Done(answer) => done(&answer),
        AttemptResult::Retry { error, after } => failed(EXIT_RETRY, error, after),
        AttemptResult::Misconfigured { error, after } => failed(EXIT_CONFIG, error, after),
        AttemptResult::Refused { reason } | AttemptResult::Unsupported { reason } => {
            Ended::said(EXIT_REFUSE, &json!({ "refuse": reason }))
        }
        AttemptResult::Pending { note } => Ended::said(0, &json!({ "pending": note })),
    }
}

fn done(answer: &Answer) -> Ended {
    match bounded_answer(answer) {
        Ok(answer) => Ended { code: 0, answer: Some(answer), error: None },
        Err(error) => Ended::failed(EXIT_RETRY, error),
    }
}

/// Writes an answer that spid can read: JSON, and not too long.
pub(crate) fn bounded_answer(answer: &Answer) -> Result<Secret, String> {
    let most = limits::HOOK_ANSWER_MAX_BYTES;
    let json = write_answer(answer)?;
    // One byte is left for the line break.
    if json.expose().len() < most {
        Ok(json)
    } else {
        Err(format!("the hook's answer is longer than {most} bytes"))
    }
}

fn failed(code: u8, error: String, after: Option<Duration>) -> Ended {
    let answer = after.map(|after| Secret::new(json!({ "retry_after": seconds(after) }).to_string()));
    Ended { code, answer, error: Some(error) }
}

/// Rounds a delay up to whole seconds: a hook that asks for 500 ms must not be called at once.
pub(crate) fn seconds(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{ParsedAnswer, Provisioned};
    use crate::call::tests::{a_call, an_instance};
    use crate::callback::{Action, Callback};

    fn call(action: Action) -> Vec<u8> {
        serde_json::to_vec(&a_call(&Callback::new(action, "x"), Some(&an_instance()))).unwrap()
    }

    fn ending<F>(call: &[u8], hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Ended
    where
        F: Future<Output = Result<Answer, HookError>> + Send + 'static,
    {
        run(call, async move || Ok::<_, HookError>(AnyHook::from_fn(hook)))
    }

    fn failing(error: HookError) -> Ended {
        ending(&call(Action::Create), move |_| std::future::ready(Err(error.clone())))
    }

    fn told(code: u8, answer: &str) -> Ended {
        Ended { code, answer: Some(Secret::new(answer)), error: None }
    }

    #[test]
    fn every_result_has_its_exit_code_and_text() {
        let retry = failing(HookError::retry("no room\nat all"));
        assert_eq!(retry, Ended::failed(75, "no room at all"));
        let after = failing(HookError::retry_after("busy", Duration::from_millis(1_500)));
        assert_eq!(
            after,
            Ended { answer: told(0, r#"{"retry_after":2}"#).answer, ..Ended::failed(75, "busy") }
        );
        assert_eq!(failing(HookError::misconfigured("no key")), Ended::failed(78, "no key"));
        assert_eq!(failing(HookError::refuse("no \"stock\"")), told(65, r#"{"refuse":"no \"stock\""}"#));
        assert_eq!(failing(HookError::pending("sales")), told(0, r#"{"pending":"sales"}"#));
        let unsupported = failing(HookError::unsupported("upgrade"));
        assert_eq!(unsupported, told(65, r#"{"refuse":"the hook does not support upgrade"}"#));
    }

    #[test]
    fn an_answer_leaves_with_its_password_and_is_read_again() {
        let answer: Answer =
            Provisioned::new().id("i-1").admin("https://a.example", "root", "fake-password").into();
        let given = answer.clone();
        let ended = ending(&call(Action::Create), move |_| std::future::ready(Ok(given.clone())));
        let said = ParsedAnswer::read(ended.answer.unwrap().expose().as_bytes()).unwrap();
        assert_eq!((ended.code, said.answer), (0, answer));
        let huge: Answer = Provisioned::new().info("note", "x".repeat(limits::HOOK_ANSWER_MAX_BYTES)).into();
        let ended = ending(&call(Action::Create), move |_| std::future::ready(Ok(huge.clone())));
        assert_eq!(ended, Ended::failed(75, "the hook's answer is longer than 65536 bytes"));
    }

    #[test]
    fn a_panic_is_a_retry_and_so_is_a_start_that_fails() {
        let panicked = ending(&call(Action::Expire), |_| -> std::future::Ready<_> { panic!("on purpose") });
        assert_eq!(panicked, Ended::failed(75, "the hook panicked"));
        let failed = run(&call(Action::Expire), async || Err::<AnyHook, _>("the database is away"));
        assert_eq!(failed, Ended::failed(75, "the database is away"));
    }

    #[test]
    fn only_an_unknown_action_is_refused() {
        let never = |text: &str| ending(text.as_bytes(), |_| std::future::pending());
        assert_eq!(never("hello").code, 75);
        assert_eq!(never("[]").code, 75);
        assert_eq!(never(r#"{"schema":"spid.hook/1","action":"create"}"#).code, 75);
        let newer = never(r#"{"schema":"spid.hook/2","action":"create"}"#);
        assert_eq!(newer.code, 78);
        assert!(newer.error.unwrap().contains("`spid.hook/2`"));
        let unknown = never(r#"{"schema":"spid.hook/1","action":"teleport"}"#);
        assert_eq!(unknown, told(65, r#"{"refuse":"the hook does not support teleport"}"#));
    }
}
