//! The `http` hook with real servers: servers that answer, servers that fail in every way, TLS, and the signature as
//! checked by other libraries. (tests/it/example_http.rs tests the examples.)
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::http_client::black_hole;
use crate::support::daemon;
use crate::support::hook::{CANARY, call, call_for, done, instance, refused, retry, run_hook};
use crate::support::machine::skipped;
use crate::support::said::Said;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Sha256;
use spid::internals::config::Config;
use spid::internals::hooks::http::{HttpHook, HttpHookOptions};
use spid::internals::hooks::runner::NamedHook;
use spid::internals::net::{Request, Response, ServerOptions, Tls, serve};
use spid::internals::observe::limits;
use spid_hook::AttemptResult;
use spid_hook::Secret;
use spid_hook::callback::{Action, Callback};
use spid_hook::time::Clock;
use spid_hook::webhook::{WebhookKey, WebhookKeys};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// The example key of the specification's own libraries.
const EXAMPLE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PREVIOUS: &str = "whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=";

fn keys(secrets: &[&str]) -> WebhookKeys {
    let key = |text: &&str| WebhookKey::new(&Secret::new(*text)).unwrap();
    WebhookKeys::new(secrets.iter().map(key).collect()).unwrap()
}

fn hook_with(url: &str, options: HttpHookOptions) -> NamedHook {
    let hook = HttpHook::new(url.parse().unwrap(), keys(&[EXAMPLE]), options);
    NamedHook::new("http", hook).timeout(Duration::from_secs(60))
}

fn hook(url: &str) -> NamedHook {
    hook_with(url, HttpHookOptions::default())
}

fn retry_after(error: &str, seconds: u64) -> AttemptResult {
    AttemptResult::Retry { error: error.into(), after: Some(Duration::from_secs(seconds)) }
}

fn misconfigured(error: &str) -> AttemptResult {
    AttemptResult::Misconfigured { error: error.into(), after: None }
}

/// A server that records its requests.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    async fn start(answer: impl Fn(&Request) -> Response + Clone + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/provision", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let handler = move |request: Request| {
            let response = answer(&request);
            seen.lock().unwrap().push(request);
            std::future::ready(response)
        };
        tokio::spawn(serve(listener, ServerOptions::default(), handler, std::future::pending()));
        Server { url, asked }
    }

    async fn answering(response: Response) -> Server {
        Server::start(move |_| response.clone()).await
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

/// Result of a call with this response.
async fn end_of(response: Response, action: Action) -> AttemptResult {
    let server = Server::answering(response).await;
    let end = run_hook(hook(&server.url), call(action)).await;
    assert_eq!(server.asked().len(), 1, "nothing is sent twice");
    end
}

// Statuses.

#[tokio::test]
async fn a_2xx_with_an_answer_is_done() {
    let answer = r#"{"instance_id": "i-7", "app": {"front_end_url": "https://a.example"}}"#;
    for status in [200, 201] {
        let end = end_of(Response::json(status, answer), Action::Create).await;
        let AttemptResult::Done(answer) = end else { panic!("{end:?}") };
        assert_eq!(answer.instance_id.as_deref(), Some("i-7"));
        assert_eq!(answer.app["front_end_url"].expose(), "https://a.example");
    }
    assert_eq!(end_of(Response::empty(204), Action::Expire).await, done());
    assert_eq!(
        end_of(Response::empty(204), Action::Create).await,
        retry("the answer to `create` is empty; answer at least `{}`")
    );
    assert_eq!(
        end_of(Response::json(200, r#"{"refuse": "no"}"#), Action::Create).await,
        retry("the hook reports success and its answer has `refuse`; remove `refuse`, or report a failure")
    );
}

#[tokio::test]
async fn a_202_is_pending() {
    let pending = |note: &str| AttemptResult::Pending { note: note.into() };
    let said = Response::json(202, r#"{"pending": "sales looks at it"}"#);
    assert_eq!(end_of(said.clone(), Action::Create).await, pending("sales looks at it"));
    let said = Response { status: 200, ..said };
    assert_eq!(end_of(said, Action::Create).await, pending("sales looks at it"));
    for silent in [Response::empty(202), Response::text(202, "Accepted"), Response::json(202, "{}")] {
        let end = end_of(silent, Action::Create).await;
        assert_eq!(end, pending("the hook accepted the call (202) and completes it later"));
    }
}

#[tokio::test]
async fn only_a_422_that_says_refuse_is_a_refusal() {
    let refuse = r#"{"refuse": "no stock"}"#;
    assert_eq!(end_of(Response::json(422, refuse), Action::Create).await, refused("no stock"));
    // Response of a web framework to a body that it does not understand.
    for body in [r#"{"detail": [{"type": "missing"}]}"#, "", "<html>", r#"{"pending": "x"}"#] {
        let end = end_of(Response::json(422, body), Action::Create).await;
        let error = "the hook answered 422 without `refuse` in its body: check that the service accepts the call (`spid hook schema call`)";
        assert_eq!(end, misconfigured(error), "{body}");
    }
    for status in [400, 403, 404, 409, 410, 500, 503] {
        let end = end_of(Response::json(status, refuse), Action::Create).await;
        assert!(!matches!(end, AttemptResult::Refused { .. }), "{status}");
    }
}

#[tokio::test]
async fn every_other_status_is_a_retry_and_what_looks_misconfigured_is_alerted() {
    for status in [408, 425, 429, 500, 502, 503, 504, 599, 600] {
        let end = end_of(Response::text(status, CANARY), Action::Create).await;
        assert_eq!(end, retry(&format!("the hook answered {status}")));
    }
    for status in [400, 401, 403, 404, 405, 409, 410, 413] {
        let end = end_of(Response::text(status, CANARY), Action::Create).await;
        assert_eq!(end, misconfigured(&format!("the hook answered {status}")));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::start(|request| match request.path() {
        "/provision" => Response { status: 307, ..Response::redirect("/elsewhere") },
        _ => Response::json(200, "{}"),
    })
    .await;
    let end = run_hook(hook(&server.url), call(Action::Create)).await;
    let error = "the hook answered 307; redirects are not followed: correct the URL of the hook";
    assert_eq!((end, server.asked().len()), (misconfigured(error), 1));
}

#[tokio::test]
async fn a_hook_may_ask_for_time() {
    let busy = || Response::empty(503);
    let error = "the hook answered 503";
    let after = |text: &'static str| end_of(busy().with_header("retry-after", text), Action::Create);
    assert_eq!(after("90").await, retry_after(error, 90));
    assert_eq!(after("999999999999999999999999").await, retry_after(error, limits::RETRY_AFTER_MAX_S));
    assert_eq!(after("Fri, 31 Dec 9999 23:59:59 GMT").await, retry_after(error, limits::RETRY_AFTER_MAX_S));
    assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT").await, retry_after(error, 0));
    assert_eq!(after("soon").await, retry(error));
    let said = Response::json(503, r#"{"retry_after": 90}"#);
    assert_eq!(end_of(said.clone(), Action::Create).await, retry_after(error, 90));
    let both = said.with_header("retry-after", "30");
    assert_eq!(end_of(both, Action::Create).await, retry_after(error, 30));
    let limited = end_of(Response::empty(429).with_header("retry-after", "7"), Action::Create).await;
    assert_eq!(limited, retry_after("the hook answered 429", 7));
}

#[tokio::test]
async fn an_unreadable_answer_is_a_retry_and_is_never_quoted() {
    let half = format!(r#"{{"app": {{"password": "{CANARY}"#);
    for (body, part) in [
        (half.as_str(), "the answer is not JSON"),
        (
            &format!(r#"{{"app": {{"password": ["{CANARY}"]}}}}"#),
            "`app.password` of the answer is not a text",
        ),
        (
            r#"{"instanceId": "i-1"}"#,
            "the answer has the unknown member `instanceId`; did you mean `instance_id`?",
        ),
        ("<html>Welcome to nginx!</html>", "the answer is not JSON"),
    ] {
        let end = end_of(Response::json(200, body.to_owned()), Action::Create).await;
        let AttemptResult::Retry { error, after: None } = end else { panic!("{end:?}") };
        assert!(error.starts_with(part) && !error.contains(CANARY), "{error}");
    }
    let most = limits::HOOK_ANSWER_MAX_BYTES;
    let longer = Response::json(200, " ".repeat(most + 1));
    assert_eq!(
        end_of(longer, Action::Expire).await,
        retry(&format!("the response is longer than {most} bytes"))
    );
    assert_eq!(end_of(Response::json(200, " ".repeat(most)), Action::Expire).await, done());
}

// The signature.

/// Checks that the specification requires of a receiver, written from it.
fn is_genuine(secret: &str, id: &str, timestamp: &str, signatures: &str, body: &[u8]) -> bool {
    let key = BASE64.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    let expected = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
    signatures.split(' ').any(|one| one == expected)
}

/// A signed request: its id, timestamp, signatures and body.
type Signed = [String; 4];

fn signed(request: &Request) -> Signed {
    let header = |name: &str| request.headers.text(name).unwrap().to_owned();
    let body = String::from_utf8(request.body.to_vec()).unwrap();
    [header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"), body]
}

/// The request itself, and one copy with a changed byte for each of its four parts.
fn altered(signed: &Signed) -> Vec<Signed> {
    let mut all = vec![signed.clone()];
    for part in 0..4 {
        let mut other = signed.clone();
        let at = other[part].rfind(|c: char| c.is_ascii_alphanumeric()).unwrap();
        let new = match other[part].as_bytes()[at] {
            b'0'..=b'8' => (other[part].as_bytes()[at] + 1) as char,
            b'9' => '8',
            b'A' => 'B',
            _ => 'A',
        };
        // Change a byte inside the signature, where every bit of a letter counts.
        let at = if part == 2 { at - 4 } else { at };
        let new = if other[part].as_bytes()[at] == new as u8 { 'C' } else { new };
        other[part].replace_range(at..=at, &new.to_string());
        assert_ne!(&other, signed);
        all.push(other);
    }
    all
}

/// The request of the hook, signed with these secrets.
async fn sent_with(secrets: &[&str], clock: Clock) -> Request {
    let server = Server::answering(Response::json(200, "{}")).await;
    let options = HttpHookOptions { clock, ..HttpHookOptions::default() };
    let hook = HttpHook::new(server.url.parse().unwrap(), keys(secrets), options);
    assert_eq!(run_hook(NamedHook::new("http", hook), call(Action::Create)).await, done());
    server.asked().remove(0)
}

#[test]
fn the_published_vector_holds_for_the_check_in_here() {
    let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
    let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert!(is_genuine(EXAMPLE, id, "1614265330", signature, body));
    assert_eq!(keys(&[EXAMPLE]).sign(id, 1_614_265_330, body), signature);
}

#[tokio::test]
async fn the_call_is_the_body_of_a_signed_post() {
    let clock = Clock::manual("2026-01-01T00:00:00.900Z".parse().unwrap());
    let request = sent_with(&[EXAMPLE], clock).await;
    let header = |name: &str| request.headers.text(name).unwrap();
    assert_eq!((request.method.as_str(), request.path()), ("POST", "/provision"));
    assert_eq!(header("content-type"), "application/json");
    assert_eq!((header("webhook-id"), header("webhook-timestamp")), ("key-1", "1767225600"));
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body, serde_json::to_value(call(Action::Create)).unwrap());
    let verdicts = altered(&signed(&request))
        .into_iter()
        .map(|[id, at, signature, body]| is_genuine(EXAMPLE, &id, &at, &signature, body.as_bytes()));
    assert_eq!(verdicts.collect::<Vec<_>>(), [true, false, false, false, false]);
}

/// The library of the receiver looks for the header in this place. If the key is not an id, there is no header.
#[tokio::test]
async fn the_trace_is_in_the_header_too() {
    let server = Server::answering(Response::json(200, "{}")).await;
    let job = "01890a5d-ac96-774b-bcce-b302099a8057";
    for key in [job, "key-1"] {
        let call = call_for(&Callback::new(Action::Create, "x"), &instance(), key);
        assert_eq!(run_hook(hook(&server.url), call).await, done());
    }
    let asked = server.asked();
    let third_attempt = "00-01890a5dac96774bbcceb302099a8057-bcceb302099a8054-01";
    assert_eq!(asked[0].headers.text("traceparent"), Some(third_attempt));
    let body: Value = serde_json::from_slice(&asked[0].body).unwrap();
    assert_eq!(body["traceparent"], third_attempt);
    assert_eq!(asked[1].headers.text("traceparent"), None);
}

#[tokio::test]
async fn while_the_secret_is_changed_both_receivers_are_content() {
    let request = sent_with(&[EXAMPLE, PREVIOUS], Clock::System).await;
    let [id, at, signature, body] = signed(&request);
    assert_eq!(signature.split(' ').count(), 2);
    for secret in [EXAMPLE, PREVIOUS] {
        assert!(is_genuine(secret, &id, &at, &signature, body.as_bytes()));
        let [.., altered] = &altered(&[id.clone(), at.clone(), signature.clone(), body.clone()])[..] else {
            panic!("nothing")
        };
        assert!(!is_genuine(secret, &id, &at, &signature, altered[3].as_bytes()));
    }
}

#[tokio::test]
async fn another_attempt_has_the_same_id_and_another_timestamp() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let first = signed(&sent_with(&[EXAMPLE], clock.clone()).await);
    clock.advance(jiff::SignedDuration::from_secs(30));
    let second = signed(&sent_with(&[EXAMPLE], clock).await);
    assert_eq!((&first[0], &first[1], &second[1]), (&second[0], &"0".into(), &"30".into()));
    assert_ne!(first[2], second[2]);
}

// Other implementations. `.ci/run` installs them, and has their versions.

/// Folder of a foreign package. Prints how to install it and returns `None` if it is missing.
fn foreign(folder: &str, marker: &str, install: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/cache").join(folder);
    if folder.join(marker).exists() {
        return Some(folder);
    }
    skipped(&format!("with `{install}`"));
    None
}

/// Verdicts of a foreign program on the requests: it reads the cases and prints a list of booleans.
fn verdicts(command: &mut Command, cases: &[(&str, Signed)]) -> Vec<bool> {
    let cases: Vec<Value> = cases
        .iter()
        .map(|(secret, [id, at, signature, body])| {
            let headers = json!({"webhook-id": id, "webhook-timestamp": at, "webhook-signature": signature});
            json!({"secret": secret, "headers": headers, "body": body})
        })
        .collect();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!(cases).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Our request with both keys of a key change, and altered in each of its parts.
async fn cases() -> Vec<(&'static str, Signed)> {
    let both = signed(&sent_with(&[EXAMPLE, PREVIOUS], Clock::System).await);
    let one = signed(&sent_with(&[EXAMPLE], Clock::System).await);
    let mut cases = vec![(EXAMPLE, both.clone()), (PREVIOUS, both)];
    cases.extend(altered(&one).into_iter().map(|signed| (EXAMPLE, signed)));
    cases
}

const EXPECTED: [bool; 7] = [true, true, true, false, false, false, false];

#[tokio::test]
async fn the_python_library_accepts_us_and_no_altered_byte() {
    let install = "pip install --target .ci/cache/py standardwebhooks";
    let Some(folder) = foreign("py", "standardwebhooks", install) else { return };
    let script = "
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
def accepts(case):
    try:
        Webhook(case['secret']).verify(case['body'], case['headers'])
        return True
    except WebhookVerificationError:
        return False
print(json.dumps([accepts(case) for case in json.load(sys.stdin)]))
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).env("PYTHONPATH", folder);
    assert_eq!(verdicts(&mut python, &cases().await), EXPECTED);
}

#[tokio::test]
async fn the_javascript_library_accepts_us_and_no_altered_byte() {
    let install = "npm install --prefix .ci/cache/js standardwebhooks";
    let Some(folder) = foreign("js", "node_modules/standardwebhooks", install) else { return };
    let script = "
const { Webhook, WebhookVerificationError } = require('standardwebhooks');
const accepts = (it) => {
  try { new Webhook(it.secret).verify(it.body, it.headers); return true; }
  catch (error) { if (error instanceof WebhookVerificationError) return false; throw error; }
};
console.log(JSON.stringify(JSON.parse(require('fs').readFileSync(0, 'utf8')).map(accepts)));
";
    let mut node = Command::new("node");
    node.args(["-e", script]).current_dir(&folder).env("NODE_PATH", folder.join("node_modules"));
    assert_eq!(verdicts(&mut node, &cases().await), EXPECTED);
}

// Connections.

/// Reads one request with a body.
async fn read_request(peer: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let whole = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = whole.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse::<usize>().unwrap() {
                return Some(whole);
            }
        }
        let mut chunk = [0; 4096];
        match peer.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => text.extend(&chunk[..count]),
        }
    }
}

async fn say_done(peer: &mut (impl AsyncWrite + Unpin)) {
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    peer.flush().await.unwrap();
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn one_connection_serves_many_calls() {
    let server = Server::answering(Response::json(200, "{}")).await;
    let hook = hook(&server.url);
    for _ in 0..5 {
        assert_eq!(run_hook(hook.clone(), call(Action::Create)).await, done());
    }
    let ports: Vec<u16> = server.asked().iter().map(|request| request.peer.port()).collect();
    assert_eq!(ports, [ports[0]; 5]);
    let options = HttpHookOptions { keep: 0, ..HttpHookOptions::default() };
    assert_eq!(run_hook(hook_with(&server.url, options), call(Action::Create)).await, done());
    assert_eq!(server.asked()[5].headers.text("connection"), Some("close"));
}

#[tokio::test]
async fn a_connection_the_server_closed_meanwhile_is_replaced() {
    let (listener, url) = listener().await;
    let (closed, mut closes) = mpsc::unbounded_channel();
    let server = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut peer, _) = listener.accept().await.unwrap();
            assert!(read_request(&mut peer).await.is_some());
            say_done(&mut peer).await;
            drop(peer);
            closed.send(()).unwrap();
        }
    });
    let hook = hook(&url);
    for _ in 0..3 {
        assert_eq!(run_hook(hook.clone(), call(Action::Create)).await, done());
        closes.recv().await.unwrap();
        // The runtime looks for what has come, and the task of the connection learns of its end.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    server.await.unwrap();
}

#[tokio::test]
async fn a_call_that_may_have_arrived_is_not_sent_again() {
    let (listener, url) = listener().await;
    let server = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        read_request(&mut peer).await.unwrap();
        say_done(&mut peer).await;
        let second = read_request(&mut peer).await;
        drop(peer);
        (second.is_some(), listener)
    });
    let hook = hook(&url);
    assert_eq!(run_hook(hook.clone(), call(Action::Create)).await, done());
    let end = run_hook(hook, call(Action::Create)).await;
    let AttemptResult::Retry { error, after: None } = end else { panic!("{end:?}") };
    assert!(error.starts_with("no usable HTTP response"), "{error}");
    let (arrived, listener) = server.await.unwrap();
    assert!(arrived, "it came over the connection that was kept");
    let more = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx).is_ready())).await;
    assert!(!more, "nobody connected a second time");
}

#[tokio::test]
async fn a_hook_that_hangs_is_hung_up_on() {
    let (listener, url) = listener().await;
    let server = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        read_request(&mut peer).await.unwrap();
        // Only the end follows.
        matches!(peer.read(&mut [0; 1]).await, Ok(0) | Err(_))
    });
    let end = run_hook(hook(&url).timeout(Duration::from_millis(1500)), call(Action::Create)).await;
    assert_eq!(end, retry("the hook `http` took longer than 1.5s"));
    assert!(server.await.unwrap());
}

/// The first address of the host never answers, because the queue of its socket is full.
#[tokio::test]
async fn a_host_whose_ipv6_leads_nowhere_is_called_by_ipv4() {
    let (listener, _) = listener().await;
    let port = listener.local_addr().unwrap().port();
    let Some(_silence) = black_hole((Ipv6Addr::LOCALHOST, port).into()).await else {
        return skipped("this machine has no IPv6");
    };
    let server = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        read_request(&mut peer).await.unwrap();
        say_done(&mut peer).await;
    });
    let addresses = vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
    let hosts = HashMap::from([("isv.example".to_owned(), addresses)]);
    let hook = hook_with(
        &format!("http://isv.example:{port}/"),
        HttpHookOptions { hosts, ..HttpHookOptions::default() },
    );
    assert_eq!(run_hook(hook, call(Action::Create)).await, done());
    server.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_retry() {
    let (listener, url) = listener().await;
    drop(listener);
    let end = run_hook(hook(&url), call(Action::Create)).await;
    let AttemptResult::Retry { error, .. } = end else { panic!("{end:?}") };
    assert!(error.starts_with("cannot connect to 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn what_is_out_of_reach_is_said_before_the_start_and_never_connected_to() {
    for (url, part) in [
        ("http://169.254.169.254/latest", "link-local"),
        ("https://100.100.100.200/latest", "metadata"),
        ("http://[fd00:ec2::254]/", "metadata"),
        ("http://[::ffff:169.254.169.254]/", "link-local"),
        ("http://0.0.0.0/", "unspecified"),
        ("http://203.0.113.1/", "http does not encrypt"),
    ] {
        let hook = HttpHook::new(url.parse().unwrap(), keys(&[EXAMPLE]), HttpHookOptions::default());
        let error = hook.check().unwrap_err().to_string();
        assert!(error.contains(part), "{url}: {error}");
        let end = run_hook(NamedHook::new("http", hook), call(Action::Create)).await;
        let AttemptResult::Misconfigured { error, .. } = end else { panic!("{url}: {end:?}") };
        assert!(error.contains(part), "{url}: {error}");
    }
}

// TLS.

/// A certificate authority for one test, and its file.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.pem()).unwrap();
        Authority { issuer, file }
    }

    fn tls(&self) -> Tls {
        Tls::new(Some(self.file.path())).unwrap()
    }

    /// A server on loopback with a certificate for `name`.
    async fn serve(&self, name: &str) -> u16 {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(answer_all(listener, TlsAcceptor::from(Arc::new(config))));
        port
    }
}

async fn answer_all(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((peer, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut peer) = acceptor.accept::<TcpStream>(peer).await else { return };
            while read_request(&mut peer).await.is_some() {
                say_done(&mut peer).await;
            }
        });
    }
}

async fn over_tls(url: &str, tls: Tls) -> AttemptResult {
    let options = HttpHookOptions { tls: Some(tls), ..HttpHookOptions::default() };
    let hook = hook_with(url, options);
    let first = run_hook(hook.clone(), call(Action::Create)).await;
    assert_eq!(first, run_hook(hook, call(Action::Create)).await);
    first
}

#[tokio::test]
async fn https_is_spoken_with_whom_the_file_of_roots_vouches_for() {
    let authority = Authority::new();
    for (name, host) in [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")] {
        let port = authority.serve(name).await;
        assert_eq!(over_tls(&format!("https://{host}:{port}/"), authority.tls()).await, done());
    }
}

#[tokio::test]
async fn https_is_spoken_with_nobody_else() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let error = |end: AttemptResult| match end {
        AttemptResult::Retry { error, after: None } => error,
        end => panic!("{end:?}"),
    };
    let port = authority.serve("127.0.0.1").await;
    let unknown = error(over_tls(&format!("https://127.0.0.1:{port}/"), stranger.tls()).await);
    assert!(unknown.contains("invalid peer certificate"), "{unknown}");
    let other = authority.serve("other.example").await;
    let other = error(over_tls(&format!("https://127.0.0.1:{other}/"), authority.tls()).await);
    assert!(other.contains("not valid for name"), "{other}");
    let plain = Server::answering(Response::json(200, "{}")).await;
    let plain = error(over_tls(&plain.url.replace("http:", "https:"), authority.tls()).await);
    assert!(plain.starts_with("cannot connect to"), "{plain}");
}

// The configuration.

/// Errors of a configuration with this `http` table.
fn mistakes(http: &str) -> Vec<(String, String)> {
    let environment: HashMap<String, String> = [
        ("KEY", "fake-key"),
        ("NEW", EXAMPLE),
        ("OLD", PREVIOUS),
        ("SHORT", "whsec_ZmFrZQ=="),
        ("RAW", "fake"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let text = format!(
        "[[endpoint]]\nname = \"e\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ env = \"KEY\" }}]\n\
         [[hook]]\nname = \"h\"\nhttp = {{ {http} }}\n"
    );
    let Err(mistakes) = Config::parse(&text, "test", &environment, &[], None) else { return Vec::new() };
    mistakes.mistakes.into_iter().map(|it| (it.key, it.text)).collect()
}

#[test]
fn a_configuration_that_can_work_is_taken() {
    for http in [
        r#"url = "http://127.0.0.1:8090/", secret = { env = "NEW" }"#,
        r#"url = "http://provisioner:8090/", secret = [{ env = "NEW" }, { env = "OLD" }], timeout = "30s", concurrency = 4"#,
        r#"url = "http://203.0.113.1/", secret = { env = "NEW" }, insecure = true"#,
        r#"url = "http://10.0.0.7/", secret = { env = "NEW" }"#,
    ] {
        assert_eq!(mistakes(http), [], "{http}");
    }
}

#[test]
fn the_document_s_configuration_is_one() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hooks.md")).unwrap();
    let tables = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let hook = tables.into_iter().find(|table| table.contains("http = {")).unwrap();
    let endpoint =
        "[[endpoint]]\nname = \"e\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{ env = \"KEY\" }]\n";
    let environment = HashMap::from([("KEY", "fake-key"), ("SPID_HOOK_SECRET", EXAMPLE)]);
    let environment: HashMap<String, String> =
        environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(Config::parse(&format!("{endpoint}{hook}"), "hooks.md", &environment, &[], None).err(), None);
}

#[test]
fn a_mistake_names_its_field_and_no_secret() {
    for (http, key, part) in [
        (r#"url = "http://127.0.0.1/""#, "hook[0].http.secret", "openssl rand"),
        (r#"url = "http://127.0.0.1/", secret = []"#, "hook[0].http.secret", "no key: give one"),
        (r#"url = "http://127.0.0.1/", secret = { env = "RAW" }"#, "hook[0].http.secret.env", "whsec_"),
        (r#"url = "http://127.0.0.1/", secret = { env = "SHORT" }"#, "hook[0].http.secret.env", "4 bytes"),
        (r#"url = "http://127.0.0.1/", secret = { env = "NONE" }"#, "hook[0].http.secret.env", "not set"),
        (
            r#"url = "http://127.0.0.1/", secret = [{ env = "NEW" }, { env = "RAW" }]"#,
            "hook[0].http.secret[1].env",
            "whsec_",
        ),
        (
            r#"url = "http://127.0.0.1/", secret = { env = "NEW", label = "x" }"#,
            "hook[0].http.secret.label",
            "no label",
        ),
        (r#"url = "127.0.0.1", secret = { env = "NEW" }"#, "hook[0].http.url", "http://"),
        (r#"url = "http://203.0.113.1/", secret = { env = "NEW" }"#, "hook[0].http.url", "use https"),
        (
            r#"url = "http://169.254.169.254/", secret = { env = "NEW" }, insecure = true"#,
            "hook[0].http.url",
            "link-local",
        ),
        (
            r#"url = "http://10.0.0.7/", secret = { env = "NEW" }, timeout = "x""#,
            "hook[0].http.timeout",
            "span",
        ),
        (
            r#"url = "https://10.0.0.7/", secret = { env = "NEW" }, ca_file = "/no/such/file""#,
            "hook[0].http.ca_file",
            "/no/such/file",
        ),
        (
            r#"url = "http://10.0.0.7/", secret = { env = "NEW" }, ca_file = "/x""#,
            "hook[0].http.ca_file",
            "https",
        ),
        (r#"url = "http://10.0.0.7/", secret = "fake-secret""#, "hook[0].http.secret", "a list of tables"),
        (
            r#"url = "http://10.0.0.7/", secret = { env = "NEW" }, retries = 3"#,
            "hook[0].http.retries",
            "unknown key",
        ),
    ] {
        let found = mistakes(http);
        let named = found.iter().any(|(at, text)| at == key && text.contains(part));
        assert!(named, "{http}: {found:?}");
        assert!(!format!("{found:?}").contains("fake"), "{found:?}");
    }
}

// The complete daemon.

fn home_with(url: &str) -> daemon::Home {
    let home = daemon::Home::empty();
    std::fs::write(home.path("hook-secret"), format!("{PREVIOUS}\n")).unwrap();
    let folder = home.path("").display().to_string();
    home.configure(&format!(
        r#"
[server]
listen = "127.0.0.1:0"
reply_within = "30s"

[store]
path = "{folder}/spid.db"

[[endpoint]]
name = "alibaba-cn"
path = "/spi"
dialect = "alibaba"
keys = [{{ file = "{folder}/isv-key" }}]

[[hook]]
name = "provision"
http = {{ url = "{url}", secret = {{ file = "{folder}/hook-secret" }}, timeout = "60s" }}
"#
    ));
    home
}

/// The running example.
struct Example {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Example {
    fn start(secret: &str) -> Example {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/http_hook.py"))
            .args(["0", folder.path().to_str().unwrap()])
            .env("SPID_HOOK_SECRET", secret)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let line = Said::by(child.stdout.take().unwrap()).line();
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        Example { child, url, _folder: folder }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_wrong_secret_is_alerted_and_refuses_nobody() {
    let example = Example::start(EXAMPLE);
    let home = home_with(&example.url);
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("reply_within = \"30s\"", "reply_within = \"200ms\""));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&daemon::create("ob-1")).id(), "0");
    let line = daemon.wait_for_log("the hook is probably misconfigured");
    assert!(line.contains("the hook answered 401"), "{line}");
    daemon::until("the job waits for its next attempt", || {
        (home.list(&["jobs", "list"])[0]["state"] == "queued").then_some(())
    });
}
