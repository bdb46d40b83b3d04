//! `examples/http_hook.py` and `examples/http_hook.mjs` through a whole life behind the daemon. They are killed when
//! a call arrives, and when it is done but not answered.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::support::daemon::{self, Answer, Home, Line, SOON, about, create, renew, until, upgrade};
use crate::support::examples::{self, Kept};
use crate::support::executable::executable;
use crate::support::machine::{lacks, skipped};
use serde_json::{Value, json};

pub(crate) const SECRET: &str = "whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=";

/// A body that was not signed.
const FORGED: &str = r#"{"action": "release", "idempotency_key": "x", "account": "alibaba-cn",
    "instance": {"order_biz_id": "ob-1"}}"#;

/// One example: its command, and the place of its state.
#[derive(Clone)]
pub(crate) struct Example {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<PathBuf>,
}

impl Example {
    pub(crate) fn start(&self) -> (Kept, SocketAddr) {
        let mut command = Kept::command(&self.program, "KILL");
        command.args(&self.arguments).env("SPID_HOOK_SECRET", SECRET).stdout(Stdio::piped());
        let hook = Kept::start(command);
        let said = hook.line();
        let address =
            said.strip_prefix("listening on http://").unwrap().trim_end_matches('/').parse().unwrap();
        (hook, address)
    }
}

/// Moment at which the hook is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    Never,
    /// The call has arrived, and nothing is done.
    AtTheCall,
    /// Everything is done, and the answer is not sent.
    BeforeTheAnswer,
}

/// Proxy between the daemon and the hook. It kills the hook when the test says so.
pub(crate) struct PublicListener {
    example: Example,
    hook: Option<(Kept, SocketAddr)>,
    kill: Kill,
}

impl PublicListener {
    pub(crate) fn start(example: Example) -> (Arc<Mutex<PublicListener>>, String) {
        let hook = Some(example.start());
        let front = Arc::new(Mutex::new(PublicListener { example, hook, kill: Kill::Never }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/provision", listener.local_addr().unwrap());
        let shared = Arc::downgrade(&front);
        std::thread::spawn(move || {
            for peer in listener.incoming() {
                let Some(front) = shared.upgrade() else { return };
                let mut peer = peer.unwrap();
                let Some(request) = request(&mut peer) else { continue };
                if let Some(Answer { status, body }) = front.lock().unwrap().pass(&request) {
                    let length = body.len();
                    let head =
                        format!("HTTP/1.1 {status} -\r\nconnection: close\r\ncontent-length: {length}");
                    let _ = write!(peer, "{head}\r\n\r\n{body}");
                }
            }
        });
        (front, url)
    }

    fn pass(&mut self, request: &str) -> Option<Answer> {
        let (hook, address) = self.hook.as_mut()?;
        let answer =
            (self.kill != Kill::AtTheCall).then(|| Line::open(*address).unwrap().exchange(request).unwrap());
        if self.kill == Kill::Never {
            return answer;
        }
        hook.kill();
        self.hook = None;
        None
    }
}

/// Reads a request with its body. `None` if the daemon closed the connection first.
fn request(peer: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        peer.read_exact(&mut byte).ok()?;
        text.push(char::from(byte[0]));
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    peer.read_exact(&mut body).ok()?;
    Some(text + &String::from_utf8(body).unwrap())
}

/// Delivers a request, kills the hook meanwhile, and starts the hook again.
pub(crate) fn deliver_and_kill(
    kill: Kill,
    front: &Mutex<PublicListener>,
    daemon: &daemon::Daemon,
    order: &daemon::Params,
    meanwhile: impl FnOnce(),
) -> Answer {
    front.lock().unwrap().kill = kill;
    std::thread::scope(|scope| {
        let delivery = scope.spawn(|| daemon.deliver_until_done(order));
        until("the hook is killed", || front.lock().unwrap().hook.is_none().then_some(()));
        meanwhile();
        let mut front = front.lock().unwrap();
        front.hook = Some(front.example.start());
        front.kill = Kill::Never;
        drop(front);
        delivery.join().unwrap()
    })
}

/// State of the only instance, as the hook stored it.
struct Remembered {
    state: Value,
    answers: Vec<Value>,
}

/// A whole life. `kept` reads the hook's state; `torn` damages the file like a power failure.
fn live(example: Example, kept: impl Fn() -> Remembered, torn: impl FnOnce()) {
    let (front, url) = PublicListener::start(example);
    let home = Home::empty();
    std::fs::write(home.path("hook-secret"), format!("{SECRET}\n")).unwrap();
    let secret = home.path("hook-secret").display().to_string();
    home.configure(
        &home.config(
            "60s",
            &format!(r#"http = {{ url = "{url}", secret = {{ file = "{secret}" }}, {SOON} }}"#),
        ),
    );
    let daemon = home.start();

    let mut remembered = Value::Null;
    let made = deliver_and_kill(Kill::BeforeTheAnswer, &front, &daemon, &create("ob-1"), || {
        remembered = kept().answers.pop().unwrap();
        torn();
    });
    let password = &made.json()["appInfo"]["password"];
    assert!(password.as_str().is_some_and(|password| password.len() > 15), "{made:?}");
    assert_eq!(password, &remembered["app"]["password"], "what was remembered is what is told");
    let id = made.id();

    assert!(daemon.deliver(&upgrade(&id, "pro")).success());
    assert_eq!((&kept().state["state"], &kept().state["sku"]), (&json!("active"), &json!("pro")));
    let expire = about("expiredInstance", &id);
    let expired = deliver_and_kill(Kill::AtTheCall, &front, &daemon, &expire, || {
        assert_eq!(kept().state["state"], "active");
    });
    assert!(expired.success());
    assert_eq!(kept().state["state"], "frozen");
    assert!(daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
    assert_eq!(kept().state["expires_on"], "2030-12-31T16:00:00Z");

    let before = kept().state;
    let address = front.lock().unwrap().hook.as_ref().map(|(_, address)| *address).unwrap();
    let forged = daemon::post_text("/provision", FORGED);
    assert_eq!(daemon::exchange(address, &forged).unwrap().status, 401);
    daemon::connect(address).unwrap().write_all(&forged.as_bytes()[..forged.len() - 10]).unwrap();
    assert_eq!(kept().state, before, "anybody can send a POST, and half of one");

    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    assert_eq!(kept().state, json!({"state": "released"}));
    assert_eq!(home.state(&id), "released");
    assert!(!daemon.log().contains("whsec_"));
}

#[test]
fn the_python_example_lives_a_whole_life_and_two_deaths() {
    if lacks("python3", "python3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let kept = || {
        let text = std::fs::read(root.join("ob-1.json")).unwrap();
        let mut state: Value = serde_json::from_slice(&text).unwrap();
        let answers = state.as_object_mut().unwrap().remove("answers").unwrap();
        Remembered { state, answers: answers.as_object().unwrap().values().cloned().collect() }
    };
    let torn = || std::fs::write(root.join("ob-1.new"), r#"{"state": "act"#).unwrap();
    let program = examples::source("http_hook.py");
    live(Example { program, arguments: vec!["0".into(), root.clone()] }, kept, torn);
}

#[test]
fn the_node_example_lives_a_whole_life_and_two_deaths() {
    let packages = examples::root().join(".ci/cache/js/node_modules");
    if lacks("node", "nodejs") {
        return;
    }
    if !packages.join("standardwebhooks").exists() {
        skipped("with `npm install --prefix .ci/cache/js standardwebhooks`");
        return;
    }
    // An author has the file and the package beside it.
    let folder = tempfile::tempdir().unwrap();
    let (program, journal) = (folder.path().join("http_hook.mjs"), folder.path().join("done.jsonl"));
    executable(&program, &std::fs::read_to_string(examples::source("http_hook.mjs")).unwrap());
    std::os::unix::fs::symlink(packages, folder.path().join("node_modules")).unwrap();
    let kept = || {
        let text = std::fs::read_to_string(&journal).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let state = lines.last().unwrap()["state"].clone();
        Remembered { state, answers: lines.iter().map(|line| line["answer"].clone()).collect() }
    };
    let torn = || {
        let mut file = std::fs::OpenOptions::new().append(true).open(&journal).unwrap();
        file.write_all(br#"{"key":"01890a5d-ac96"#).unwrap();
    };
    live(Example { program, arguments: vec!["0".into(), journal.clone()] }, kept, torn);
}
