//! From a signed request to a response: one run of the hook for all requests with one idempotency key.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;

use super::kept::KeptAnswers;
use crate::callback::Answer;
use crate::exec::{attempt, bounded_answer, seconds};
use crate::text::plain_log;
use crate::time::Clock;
use crate::webhook::WebhookKeys;
use crate::{AnyHook, AttemptResult, Call, Secret, UnreadableCall};

/// Writes one line to standard error. An error of standard error cannot be reported anywhere.
pub(super) fn log(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain_log(line));
}

/// Response to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// JSON, which may hold passwords.
    pub(super) body: Secret,
    /// Value of `retry-after`, in seconds.
    pub(super) retry_after: Option<u64>,
}

impl Reply {
    fn json(status: u16, body: &serde_json::Value) -> Reply {
        Reply { status, body: Secret::new(body.to_string()), retry_after: None }
    }

    /// Response without an answer of the hook. spid acts on the status alone.
    pub(super) fn empty(status: u16) -> Reply {
        Reply { status, body: Secret::new("{}"), retry_after: None }
    }

    fn later(status: u16, after: Option<Duration>) -> Reply {
        Reply { retry_after: after.map(seconds), ..Reply::empty(status) }
    }

    fn done(answer: Secret) -> Reply {
        Reply { status: 200, body: answer, retry_after: None }
    }

    /// The response to a result, by the contract in `docs/hooks.md`. The texts of errors are in this program's log:
    /// the contract has no member for them.
    fn of(attempted: AttemptResult) -> Reply {
        match attempted {
            AttemptResult::Done(answer) => {
                bounded_answer(&answer).map_or_else(|_| Reply::empty(500), Reply::done)
            }
            AttemptResult::Retry { after, .. } => Reply::later(503, after),
            // A 4xx raises an alert at spid.
            AttemptResult::Misconfigured { after, .. } => Reply::later(424, after),
            AttemptResult::Refused { reason } | AttemptResult::Unsupported { reason } => {
                Reply::json(422, &json!({ "refuse": reason }))
            }
            AttemptResult::Pending { note } => Reply::json(202, &json!({ "pending": note })),
        }
    }
}

/// Header fields of the signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    pub(super) id: &'a str,
    pub(super) timestamp: &'a str,
    pub(super) signature: &'a str,
}

/// Responses to the calls in progress, by idempotency key. `None` until the response is known.
type Running = HashMap<String, watch::Receiver<Option<Reply>>>;

/// State of the server, shared by all requests.
pub(super) struct Receiver {
    pub(super) hook: AnyHook,
    pub(super) keys: WebhookKeys,
    pub(super) tolerance: Duration,
    pub(super) kept: Option<Mutex<KeptAnswers>>,
    pub(super) clock: Clock,
    running: Mutex<Running>,
}

/// Locks a mutex. A panic while it was locked leaves valid data behind, because every change is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    pub(super) fn new(
        hook: AnyHook,
        keys: WebhookKeys,
        tolerance: Duration,
        kept: Option<KeptAnswers>,
    ) -> Receiver {
        let (kept, running) = (kept.map(Mutex::new), Mutex::default());
        Receiver { hook, keys, tolerance, kept, clock: Clock::System, running }
    }

    /// Returns the number of calls in progress.
    pub(super) fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// Answers one request.
    pub(super) async fn answer(self: Arc<Receiver>, signed: Signed<'_>, body: &[u8]) -> Reply {
        let now = self.clock.now();
        let Signed { id, timestamp, signature } = signed;
        let sent = match self.keys.verify(id, timestamp, signature, body, now, self.tolerance) {
            Ok(sent) => sent,
            Err(error) => {
                log(&format!("401: a request is not signed as it must be: {error}"));
                return Reply::empty(401);
            }
        };
        let call = match Call::read(body) {
            Ok(call) => call,
            Err(UnreadableCall::Action(action)) => {
                log(&format!("422: a call has the action `{action}`, which this program does not know"));
                return Reply::json(422, &json!({ "refuse": format!("the hook does not support {action}") }));
            }
            Err(error) => {
                log(&format!("400: {error}"));
                return Reply::empty(400);
            }
        };
        // The signature covers both, so a difference is a bug of the sender.
        if call.context().idempotency_key != id {
            log("400: `webhook-id` is not the idempotency key of the call");
            return Reply::empty(400);
        }
        // Both times are of spid's clock, so a difference between the clocks does not matter.
        let left = Duration::try_from(call.context().deadline.duration_since(sent)).unwrap_or_default();
        let mut reply = self.join_or_begin(call, left);
        // The sender is dropped without a reply only if the task was stopped.
        match reply.wait_for(Option::is_some).await {
            Ok(reply) => reply.clone().unwrap_or_else(|| Reply::empty(503)),
            Err(_) => Reply::empty(503),
        }
    }

    /// Returns the reply to come: of the run in progress with the same key, or of a new one.
    ///
    /// The run is a task of its own. A sender that goes away does not stop it, so its answer is still kept.
    fn join_or_begin(self: Arc<Receiver>, call: Call, left: Duration) -> watch::Receiver<Option<Reply>> {
        let key = call.context().idempotency_key.clone();
        let mut running = lock(&self.running);
        if let Some(reply) = running.get(&key) {
            return reply.clone();
        }
        let (sender, reply) = watch::channel(None);
        running.insert(key.clone(), reply.clone());
        drop(running);
        let done = Done { receiver: Arc::clone(&self), key };
        tokio::spawn(async move {
            let reply = self.run(call, left).await;
            // Removed before the reply is known: the next request with this key finds the kept answer.
            drop(done);
            sender.send_replace(Some(reply));
        });
        reply
    }

    /// Gives a kept answer again, or runs the hook and keeps its answer.
    async fn run(self: Arc<Receiver>, call: Call, left: Duration) -> Reply {
        let context = call.context();
        let (key, now) = (context.idempotency_key.clone(), self.clock.now());
        let named = format!("{} {key}, attempt {}", call.action(), context.attempt);
        let kept = self.kept.as_ref().and_then(|kept| lock(kept).get(&key, now));
        if let Some(answer) = kept {
            log(&format!("{named}: the kept answer is given again"));
            return Reply::done(answer);
        }
        // At a deadline of zero `timeout` would still begin the attempt.
        let late = || AttemptResult::retry("the deadline of the attempt has passed".to_owned());
        let attempted = match left.is_zero() {
            true => late(),
            false => {
                let attempt = attempt(self.hook.clone(), call);
                tokio::time::timeout(left, attempt).await.unwrap_or_else(|_elapsed| late())
            }
        };
        log(&format!("{named}: {}", described(&attempted)));
        if let AttemptResult::Done(answer) = &attempted {
            self.keep(key, answer, now).await;
        }
        Reply::of(attempted)
    }

    /// Keeps an answer. An answer that cannot be kept is still given: spid keeps it, too.
    async fn keep(self: Arc<Receiver>, key: String, answer: &Answer, now: Timestamp) {
        let Ok(answer) = bounded_answer(answer) else { return };
        // The disk may be slow, so this must not hold up other calls.
        let written = tokio::task::spawn_blocking(move || {
            self.kept.as_ref().map_or(Ok(()), |kept| lock(kept).put(&key, &answer, now))
        });
        let failed = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the task was stopped".to_owned(),
        };
        log(&format!("the answer could not be kept, so the same call would run the hook again: {failed}"));
    }
}

/// A short text for the log, without the content of an answer.
fn described(attempted: &AttemptResult) -> String {
    match attempted {
        AttemptResult::Done(answer) => match bounded_answer(answer) {
            Ok(_) => "done".to_owned(),
            Err(error) => error,
        },
        AttemptResult::Retry { error, .. } => format!("retry: {error}"),
        AttemptResult::Misconfigured { error, .. } => format!("misconfigured: {error}"),
        AttemptResult::Refused { reason } | AttemptResult::Unsupported { reason } => {
            format!("refused: {reason}")
        }
        AttemptResult::Pending { note } => format!("pending: {note}"),
    }
}

/// Entry of a call in progress, which is removed when this is dropped, also by a panic.
struct Done {
    receiver: Arc<Receiver>,
    key: String,
}

impl Drop for Done {
    fn drop(&mut self) {
        lock(&self.receiver.running).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::HookError;
    use crate::call::tests::{a_call, an_instance};
    use crate::callback::{Action, Callback};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const TOLERANCE: Duration = Duration::from_secs(300);

    fn keys() -> WebhookKeys {
        WebhookKeys::read(&Secret::new(SECRET)).unwrap()
    }

    fn receiver<F>(hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Receiver>
    where
        F: Future<Output = Result<Answer, HookError>> + Send + 'static,
    {
        let mut receiver = Receiver::new(AnyHook::from_fn(hook), keys(), TOLERANCE, None);
        receiver.clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
        Arc::new(receiver)
    }

    async fn ask(receiver: &Arc<Receiver>, action: Action) -> Reply {
        let call = a_call(&Callback::new(action, "x"), Some(&an_instance()));
        let body = serde_json::to_vec(&call).unwrap();
        let at = receiver.clock.now().as_second();
        let (timestamp, signature) = (at.to_string(), keys().sign("key-1", at, &body));
        let signed = Signed { id: "key-1", timestamp: &timestamp, signature: &signature };
        Arc::clone(receiver).answer(signed, &body).await
    }

    #[tokio::test]
    async fn every_result_has_its_status() {
        for (result, status, body, retry_after) in [
            (Ok(Answer::default()), 200, "{}", None),
            (Err(HookError::retry("no")), 503, "{}", None),
            (Err(HookError::retry_after("no", Duration::from_millis(1_001))), 503, "{}", Some(2)),
            (Err(HookError::misconfigured("no")), 424, "{}", None),
            (Err(HookError::refuse("no")), 422, r#"{"refuse":"no"}"#, None),
            (Err(HookError::pending("later")), 202, r#"{"pending":"later"}"#, None),
            (
                Err(HookError::unsupported("renew")),
                422,
                r#"{"refuse":"the hook does not support renew"}"#,
                None,
            ),
        ] {
            let receiver = receiver(move |_| std::future::ready(result.clone()));
            let reply = ask(&receiver, Action::Renew).await;
            assert_eq!(reply, Reply { status, body: Secret::new(body), retry_after });
        }
        let panics = receiver(|_| -> std::future::Ready<_> { panic!("on purpose") });
        assert_eq!(ask(&panics, Action::Renew).await, Reply::empty(503));
    }

    #[tokio::test]
    async fn a_second_request_with_the_key_waits_for_the_first_one() {
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counted, gate) = (Arc::clone(&runs), Arc::clone(&go));
        let receiver = receiver(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                Ok(Answer { instance_id: Some("i-7".into()), ..Answer::default() })
            }
        });
        let first = ask(&receiver, Action::Renew);
        let second = async {
            tokio::task::yield_now().await;
            assert_eq!(receiver.running(), 1);
            let third = ask(&receiver, Action::Renew);
            let open = async {
                tokio::task::yield_now().await;
                go.notify_one();
            };
            tokio::join!(third, open).0
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.status, &first), (200, &second));
        assert_eq!((runs.load(Ordering::SeqCst), receiver.running()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_at_its_deadline() {
        let receiver = receiver(|_| std::future::pending());
        let started = tokio::time::Instant::now();
        assert_eq!(ask(&receiver, Action::Renew).await, Reply::empty(503));
        assert_eq!(
            started.elapsed().as_secs(),
            600,
            "the deadline is ten minutes after the request was sent"
        );
        receiver.clock.advance(jiff::SignedDuration::from_mins(10));
        assert_eq!(ask(&receiver, Action::Renew).await, Reply::empty(503));
        assert_eq!((started.elapsed().as_secs(), receiver.running()), (600, 0));
    }
}
