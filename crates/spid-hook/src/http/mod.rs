//! A program that is an `http` hook: a small server that verifies signed calls, runs the hook and keeps its answers.
//!
//! The server speaks HTTP/1.1 without TLS. Bind it to a loopback address or a private network, or put it behind a proxy
//! that ends TLS.

mod kept;
mod receive;
mod server;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use kept::{AnswerKey, BadAnswerKey};

use crate::time::Clock;
use crate::webhook::WebhookKeys;
use crate::{AnyHook, HookError, HookErrorKind};
use kept::{KeptAnswers, KeptError, Opened};
use receive::{Receiver, log};

/// Exit code for an address that cannot be used (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code for a file or a signal handler that failed (`EX_IOERR`).
const EXIT_IO: u8 = 74;
/// Exit code for a start that may succeed later, and for a stop that cut calls off (`EX_TEMPFAIL`).
const EXIT_TRY_AGAIN: u8 = 75;
/// Exit code of a wrong configuration (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Allowed difference between the clocks of spid and of this program, as Standard Webhooks recommends.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// Time for which an answer is kept. spid stops its retries long before that.
const ANSWER_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time that calls in progress have during a stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Options for [`http_main`].
///
/// ```
/// use spid_hook::Secret;
/// use spid_hook::http::{AnswerKey, HttpOptions};
/// use spid_hook::webhook::WebhookKeys;
///
/// // The secret that spid signs with, and a key of this program's own: `openssl rand -hex 32`.
/// let keys = WebhookKeys::read(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))?;
/// let answer_key = AnswerKey::new(&Secret::new("07".repeat(32)))?;
/// let options = HttpOptions::new(([127, 0, 0, 1], 8090).into(), keys)
///     .answers("/var/lib/my-app/answers")
///     .answer_key(answer_key);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct HttpOptions {
    listen: SocketAddr,
    keys: WebhookKeys,
    answers: Option<PathBuf>,
    answer_key: Option<AnswerKey>,
    answer_age: Duration,
    tolerance: Duration,
    stop_within: Duration,
}

impl HttpOptions {
    /// Creates options for a server on this address. Requests must be signed with one of the keys. Answers are not kept.
    pub fn new(listen: SocketAddr, keys: WebhookKeys) -> HttpOptions {
        HttpOptions {
            listen,
            keys,
            answers: None,
            answer_key: None,
            answer_age: ANSWER_AGE,
            tolerance: TOLERANCE,
            stop_within: STOP_WITHIN,
        }
    }

    /// Keeps every answer of a success in this file, by its idempotency key. The same call gets the same answer again,
    /// with the same password, and the hook does not run.
    ///
    /// The file has the permissions 0600. An answer is on the disk before it is given. Answers hold first passwords, so
    /// they are kept only with an [`answer_key`](HttpOptions::answer_key). Only one process can use the file.
    ///
    /// **Limits.** The file does not help a hook that provisioned something and died before its answer was written: the
    /// same call runs the hook again. So the hook still looks first at what is there. Refusals, retries and pending
    /// work are not kept.
    #[must_use]
    pub fn answers(self, file: impl Into<PathBuf>) -> HttpOptions {
        HttpOptions { answers: Some(file.into()), ..self }
    }

    /// Sets the key that encrypts the kept answers. Keep it out of the folder of the file.
    #[must_use]
    pub fn answer_key(self, key: AnswerKey) -> HttpOptions {
        HttpOptions { answer_key: Some(key), ..self }
    }

    /// Sets how long an answer is kept. The default is 30 days.
    #[must_use]
    pub fn answer_age(self, age: Duration) -> HttpOptions {
        HttpOptions { answer_age: age, ..self }
    }

    /// Sets the allowed distance of `webhook-timestamp` from now. The default is 5 minutes.
    #[must_use]
    pub fn tolerance(self, tolerance: Duration) -> HttpOptions {
        HttpOptions { tolerance, ..self }
    }

    /// Sets how long a stop waits for calls in progress. The default is 30 seconds.
    #[must_use]
    pub fn stop_within(self, within: Duration) -> HttpOptions {
        HttpOptions { stop_within: within, ..self }
    }
}

/// Runs this process as an `http` hook until SIGTERM or SIGINT.
///
/// ```no_run
/// use std::process::ExitCode;
/// use spid_hook::Secret;
/// use spid_hook::http::{HttpOptions, http_main};
/// use spid_hook::webhook::WebhookKeys;
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
///     let secret = std::fs::read_to_string("/etc/my-app/hook-secret").unwrap_or_default();
///     match WebhookKeys::read(&Secret::new(secret)) {
///         Ok(keys) => http_main(MyHook, HttpOptions::new(([127, 0, 0, 1], 8090).into(), keys)),
///         Err(error) => {
///             eprintln!("error: {error}");
///             ExitCode::from(78)
///         }
///     }
/// }
/// ```
///
/// A POST to any path is a call. The server writes `listening on http://ADDRESS/` to standard output once it accepts
/// calls, and one line for each call to standard error. There is no TLS: listen on a loopback address or in a private
/// network, or behind a proxy.
///
/// While a call runs, another request with the same idempotency key waits for the same answer. An attempt ends at the
/// deadline of its call. A sender that goes away does not end it.
pub fn http_main(hook: impl Into<AnyHook>, options: HttpOptions) -> ExitCode {
    let hook = hook.into();
    http_main_with(async move || Ok::<AnyHook, HookError>(hook), options)
}

/// Runs this process as an `http` hook as [`http_main`] does. `start` makes the hook, for example from a connection to
/// a database. It runs on the hook's runtime, before the first call is accepted.
pub fn http_main_with<H, E>(start: impl AsyncFnOnce() -> Result<H, E>, options: HttpOptions) -> ExitCode
where
    H: Into<AnyHook>,
    E: Into<HookError>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failed::new(EXIT_IO, format!("the runtime did not start: {error}")).tell(),
    };
    let ended = runtime.block_on(run(start, options));
    // Do not wait for a hook that blocks its thread.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => failed.tell(),
    }
}

/// Reason why the program ends.
struct Failed {
    code: u8,
    text: String,
}

impl Failed {
    fn new(code: u8, text: impl Into<String>) -> Failed {
        Failed { code, text: text.into() }
    }

    fn tell(self) -> ExitCode {
        log(&format!("error: {}", self.text));
        ExitCode::from(self.code)
    }
}

impl From<KeptError> for Failed {
    fn from(error: KeptError) -> Failed {
        let code = match error {
            KeptError::File { .. } => EXIT_IO,
            KeptError::InUse(_) => EXIT_TRY_AGAIN,
            KeptError::WrongKey(_) => EXIT_CONFIG,
        };
        Failed::new(code, error.to_string())
    }
}

async fn run<H, E>(start: impl AsyncFnOnce() -> Result<H, E>, options: HttpOptions) -> Result<(), Failed>
where
    H: Into<AnyHook>,
    E: Into<HookError>,
{
    // Signal handlers come first: an early signal must not be lost.
    let mut signals = Signals::install()
        .map_err(|error| Failed::new(EXIT_IO, format!("signals cannot be handled: {error}")))?;
    let kept = kept_answers(&options)?;
    let hook = start().await.map_err(|error| not_started(&error.into()))?.into();
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        Failed::new(EXIT_UNAVAILABLE, format!("cannot listen on {}: {error}", options.listen))
    })?;
    let address = listener.local_addr().unwrap_or(options.listen);
    let receiver = Arc::new(Receiver::new(hook, options.keys, options.tolerance, kept));
    // A supervisor that does not read standard output is no reason to end.
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "listening on http://{address}/").and_then(|()| stdout.flush());
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let served =
        server::serve(listener, receiver, async { stopping.await.unwrap_or_default() }, options.stop_within);
    let second = async move {
        signals.next().await;
        log("stopping: no more connections are accepted, and calls in progress are answered");
        let _ = stop.send(());
        signals.next().await;
    };
    let served = tokio::select! {
        served = served => Some(served),
        () = second => None,
    };
    match served {
        Some(true) => Ok(()),
        Some(false) => {
            let text = "the stop took too long, and calls were cut off; spid tries them again";
            Err(Failed::new(EXIT_TRY_AGAIN, text))
        }
        None => Err(Failed::new(EXIT_TRY_AGAIN, "stopped at once by a second signal")),
    }
}

fn not_started(error: &HookError) -> Failed {
    let code = match error.kind() {
        HookErrorKind::Misconfigured { .. } => EXIT_CONFIG,
        _ => EXIT_TRY_AGAIN,
    };
    Failed::new(code, format!("the hook did not start: {}", error.message()))
}

/// Opens the file of answers, or says why answers are not kept.
fn kept_answers(options: &HttpOptions) -> Result<Option<KeptAnswers>, Failed> {
    let why = match (&options.answers, &options.answer_key) {
        (Some(path), Some(key)) => return open(path, key, options.answer_age).map(Some),
        (None, _) => "no file is given",
        (Some(_), None) => "no answer key is given, and answers hold passwords",
    };
    log(&format!("warning: answers are not kept: {why}; the same call runs the hook again"));
    Ok(None)
}

fn open(path: &Path, key: &AnswerKey, age: Duration) -> Result<KeptAnswers, Failed> {
    let Opened { kept, warnings } = KeptAnswers::open(path, key, age, Clock::System.now())?;
    for warning in warnings {
        log(&format!("warning: {}: {warning}", path.display()));
    }
    Ok(kept)
}

/// The signals that stop the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
