//! The real daemon under a supervisor: passed sockets, restarts under load, its notifications, and a certificate that
//! is renewed while it runs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::daemon::{Home, QUICK, create, exchange, get, get_text, post_text, until};
use rustix::process::Signal;
use spid::internals::net::{Client, ClientOptions, ClientRequest, Tls};

/// A socket as a supervisor holds it: it stays open when the daemon ends.
fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn with_admin(home: &Home) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("[server]", "[server]\nadmin_listen = \"127.0.0.1:1\""));
}

// Passed sockets.

#[test]
fn sockets_are_taken_by_their_names_and_hooks_get_none_of_it() {
    let home = Home::with_hook(&format!("ls -l /proc/$$/fd > descriptors; env > variables; {QUICK}"));
    with_admin(&home);
    let (spi, admin) = (socket(), socket());
    let variables = [("NOTIFY_SOCKET", "/nowhere"), ("WATCHDOG_USEC", "1000000")];
    let daemon = home.start_supervised("admin:spi", &[&admin, &spi], &variables);
    assert_eq!(daemon.address, spi.local_addr().unwrap());
    let url = format!("http://{}/readyz", admin.local_addr().unwrap());
    let ran = home.run(&["healthcheck", "--url", &url]);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "ready"), "{}", ran.stderr);
    assert_ne!(daemon.deliver(&create("ob-1")).id(), "0");
    let seen = |name| std::fs::read_to_string(home.path(name)).unwrap();
    assert!(!seen("descriptors").contains("socket:"), "{}", seen("descriptors"));
    for word in ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG"] {
        assert!(!seen("variables").contains(word), "{}", seen("variables"));
    }
    daemon.stop();
    assert!(TcpStream::connect(spi.local_addr().unwrap()).is_ok(), "the socket is not the daemon's to close");
}

#[test]
fn a_socket_nobody_understands_is_a_mistake_and_not_silence() {
    let home = Home::with_log_hook();
    let config = home.path("spid.toml").display().to_string();
    let serve = |setup: &str| {
        let script = format!("{setup}; export LISTEN_PID=$$; exec \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config", &config]);
        let connected = TcpStream::connect(socket().local_addr().unwrap()).unwrap();
        command.stdin(std::os::fd::OwnedFd::from(connected)).current_dir(home.path(""));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (setup, said) in [
        ("exec 3<&0; export LISTEN_FDS=1 LISTEN_FDNAMES=spi", "Accept=no"),
        ("exec 3</dev/null; export LISTEN_FDS=1", "Accept=no"),
        ("exec 3<&-; export LISTEN_FDS=1", "Accept=no"),
        ("export LISTEN_FDS=2 LISTEN_FDNAMES=spi:web", "`web`"),
        ("export LISTEN_FDS=2 LISTEN_FDNAMES=spi:spi", "two sockets"),
    ] {
        let (code, stderr) = serve(setup);
        assert!(code == Some(78) && stderr.contains(said), "{setup}: {code:?} {stderr}");
    }
}

#[test]
fn an_admin_socket_that_everybody_reaches_is_refused() {
    let home = Home::with_log_hook();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let script = "exec 3<&0; export LISTEN_FDS=1 LISTEN_FDNAMES=admin LISTEN_PID=$$; exec \"$@\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_spid"), "serve", "--config"])
        .arg(home.path("spid.toml"))
        .stdin(std::os::fd::OwnedFd::from(everywhere))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(78) && stderr.contains("without `server.admin_token`"), "{stderr}");
}

#[test]
fn an_admin_socket_that_everybody_reaches_starts_with_a_token() {
    let home = Home::with_log_hook();
    std::fs::write(home.path("admin-token"), "fake-token-of-a-test").unwrap();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("[server]", "[server]\nadmin_token = { file = \"admin-token\" }"));
    let (spi, admin) = (socket(), TcpListener::bind("0.0.0.0:0").unwrap());
    let daemon = home.start_supervised("admin:spi", &[&admin, &spi], &[]);
    let address = SocketAddr::from(([127, 0, 0, 1], admin.local_addr().unwrap().port()));
    let ask = |token: &str| {
        let head =
            format!("GET /v1/instances HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n");
        exchange(address, &head).unwrap().status
    };
    assert_eq!(ask(""), 401);
    assert_eq!(ask("authorization: Bearer fake-token-of-a-test\r\n"), 200);
    daemon.stop();
}

// Restart under load.

/// A client like a marketplace: it waits for its answer, and obeys `connection`.
struct Caller {
    address: SocketAddr,
    keeps: bool,
    /// Time to send a part of a request, in milliseconds.
    on_the_wire: u64,
    line: Option<BufReader<TcpStream>>,
}

impl Caller {
    /// Sends a request and returns status and body of the answer. Panics if a marketplace would get no answer.
    fn call(&mut self, request: &str) -> (u16, String) {
        let mut line = self.line.take().filter(is_open).unwrap_or_else(|| {
            let stream = TcpStream::connect(self.address).expect("the connection was refused");
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            BufReader::new(stream)
        });
        // A request arrives slowly and in parts: the daemon must not close meanwhile.
        let (first, second) = request.split_at(request.len() / 2);
        for part in [first, second] {
            std::thread::park_timeout(Duration::from_millis(self.on_the_wire));
            line.get_mut()
                .write_all(part.as_bytes())
                .expect("the connection was reset while the request was sent");
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = line.read_line(&mut head).expect("the connection was reset before the answer");
            assert!(read > 0, "the connection was closed before the answer; so far: {head:?}");
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let mut body = vec![0; field("content-length:").unwrap().parse().unwrap()];
        line.read_exact(&mut body).unwrap();
        self.line = Some(line).filter(|_| self.keeps && field("connection:") != Some("close"));
        (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
    }
}

/// Check of every client with kept connections before it uses one again.
fn is_open(line: &BufReader<TcpStream>) -> bool {
    let stream = line.get_ref();
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_restart_under_load_leaves_no_call_unanswered() {
    const CALLERS: usize = 12;
    const RESTARTS: usize = 5;
    let home = Home::with_log_hook();
    let spi = socket();
    let address = spi.local_addr().unwrap();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let callers: usize = std::thread::scope(|scope| {
        // The end of this scope also ends the callers.
        let _end = scopeguard(&over);
        let mut daemon = home.start_supervised("spi", &[&spi], &[]);
        let (over, answered) = (&over, &answered);
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn(move || {
                    let mut calls = 0;
                    let mut line = Caller {
                        address,
                        keeps: caller % 2 == 0,
                        on_the_wire: [0, 3, 10][caller % 3],
                        line: None,
                    };
                    while !over.load(Ordering::Acquire) {
                        let name = format!("ob-{caller}-{calls}");
                        let query = create(&name).signed();
                        let form = caller % 4 < 2;
                        let request = if form { post_text("/spi", &query) } else { get_text("/spi", &query) };
                        let (status, body) = line.call(&request);
                        assert_eq!(status, 200, "{name}: {body}");
                        assert!(body.contains(&format!("\"instanceId\":\"{name}\"")), "{name}: {body}");
                        answered.fetch_add(1, Ordering::AcqRel);
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        let more = |count: usize| {
            let before = answered.load(Ordering::Acquire);
            until("calls are answered", || {
                assert!(!callers.iter().any(|caller| caller.is_finished()), "a caller was left alone");
                (answered.load(Ordering::Acquire) >= before + count).then_some(())
            });
        };
        for _ in 0..RESTARTS {
            more(100);
            let log = daemon.stop();
            assert!(log.contains("answered=true cut=0 closed=true"), "{log}");
            daemon = home.start_supervised("spi", &[&spi], &[]);
        }
        more(100);
        over.store(true, Ordering::Release);
        let calls = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        daemon.stop();
        calls
    });
    assert_eq!(home.list(&["instances", "list", "--state", "active"]).len(), callers, "each once");
}

/// Sets the flag when it is dropped.
fn scopeguard(over: &AtomicBool) -> impl Drop + '_ {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    End(over)
}

/// Period without any daemon.
#[test]
fn a_call_between_two_daemons_waits() {
    let home = Home::with_log_hook();
    let spi = socket();
    let address = spi.local_addr().unwrap();
    home.start_supervised("spi", &[&spi], &[]).stop();
    let waiting: Vec<_> = (0..16)
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            let query = create(&format!("ob-{number}")).signed();
            stream
                .write_all(
                    get_text("/spi", &query).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes(),
                )
                .unwrap();
            stream
        })
        .collect();
    let daemon = home.start_supervised("spi", &[&spi], &[]);
    for (number, mut stream) in waiting.into_iter().enumerate() {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(&format!("\"instanceId\":\"ob-{number}\"")), "{answer}");
    }
    daemon.stop();
}

// Notifications.

#[test]
fn the_supervisor_hears_what_becomes_true_in_order() {
    let home = Home::with_log_hook();
    let path = home.path("notify");
    let heard = UnixDatagram::bind(&path).unwrap();
    heard.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut buffer = [0; 1024];
    let mut next = || {
        let read = heard.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    };
    let signs = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let spi = socket();
    let mut daemon = home.start_supervised("spi", &[&spi], &signs);
    let ready = next();
    assert!(ready.starts_with("READY=1\nSTATUS=taking callbacks on 127.0.0.1:"), "{ready}");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1", "as long as it lives");
    }
    // SIGHUP, with watchdog notifications before, between and after.
    let mut other = || std::iter::repeat_with(&mut next).find(|said| said != "WATCHDOG=1").unwrap();
    daemon.signal(Signal::HUP);
    let reloading = other();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    let ready = other();
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    daemon.signal(Signal::TERM);
    let stopping = other();
    assert!(stopping.starts_with("STOPPING=1\nSTATUS="), "{stopping}");
    assert_eq!(daemon.wait().code(), Some(0));
}

/// A daemon that cannot start sends no notification, because its supervisor would take it for ready.
#[test]
fn a_daemon_that_does_not_start_never_was_ready() {
    let home = Home::with_log_hook();
    let heard = UnixDatagram::bind(home.path("notify")).unwrap();
    heard.set_nonblocking(true).unwrap();
    let first = home.start();
    let config = home.path("spid.toml");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_spid"))
        .args(["serve", "--config"])
        .arg(config)
        .env("NOTIFY_SOCKET", home.path("notify"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert_eq!(heard.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    first.stop();
}

// Health check from outside.

#[test]
fn a_healthcheck_says_how_the_daemon_is_by_its_exit_code() {
    let home = Home::with_log_hook();
    let config = home.path("spid.toml").display().to_string();
    let none = home.run(&["healthcheck", "--config", &config]);
    assert!(none.code == 78 && none.stderr.contains("admin_listen"), "{}", none.stderr);
    let admin = socket();
    let address = admin.local_addr().unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    home.configure(&text.replace("[server]", &format!("[server]\nadmin_listen = \"{address}\"")));
    // It reads no key, because the user of the health check may not have access.
    std::fs::rename(home.path("isv-key"), home.path("key-elsewhere")).unwrap();
    drop(admin);
    let gone = home.run(&["healthcheck", "--config", &config]);
    assert_eq!(gone.code, 69, "{}", gone.stderr);
    std::fs::rename(home.path("key-elsewhere"), home.path("isv-key")).unwrap();
    let daemon = home.start();
    for (arguments, said) in
        [(&["--config", &config][..], "ready"), (&["--config", &config, "--live"], "alive")]
    {
        let ran = home.run(&[&["healthcheck"], arguments].concat());
        assert_eq!((ran.code, ran.stdout.trim()), (0, said), "{}", ran.stderr);
    }
    let other = home.run(&["healthcheck", "--url", &format!("http://{address}/no-such-page")]);
    assert!(other.code == 1 && other.stderr.contains("404"), "{}", other.stderr);
    daemon.stop();
    assert_eq!(home.run(&["healthcheck"]).code, 64);
}

// TLS.

/// A certificate for this machine from its own authority, in the files of the configuration.
fn issue(home: &Home) -> Tls {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer =
        rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    std::fs::write(home.path("tls-certificate"), certificate.pem()).unwrap();
    std::fs::write(home.path("tls-key"), key.serialize_pem()).unwrap();
    std::fs::write(home.path("ca"), issuer.pem()).unwrap();
    Tls::new(Some(&home.path("ca"))).unwrap()
}

/// Id of a create over https. `None` if the certificate is not trusted.
fn sell(address: SocketAddr, tls: &Tls, name: &str) -> Option<String> {
    let client = Client::new(ClientOptions { tls: Some(tls.clone()), ..ClientOptions::default() });
    let url = format!("https://{address}/spi?{}", create(name).signed());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(client.send(ClientRequest::get(url.parse().unwrap()))).ok()?;
    assert_eq!(answer.status, 200);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    Some(body["instanceId"].as_str().unwrap().to_owned())
}

#[test]
fn a_hang_up_shows_the_new_certificate_or_keeps_the_old_one() {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let tls = "tls = { certificate = { credential = \"tls-certificate\" }, key = { file = \"tls-key\" } }";
    home.configure(&text.replace("[server]", &format!("[server]\n{tls}")));
    let old = issue(&home);
    let spi = socket();
    let folder = home.path("").display().to_string();
    let mut daemon = home.start_supervised("spi", &[&spi], &[("CREDENTIALS_DIRECTORY", &folder)]);
    assert_eq!(sell(daemon.address, &old, "ob-1").as_deref(), Some("ob-1"));
    assert!(get(daemon.address, &create("ob-plain").signed()).is_none(), "nothing in the clear");

    std::fs::write(home.path("tls-key"), "").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reload: kept the old configuration");
    assert_eq!(sell(daemon.address, &old, "ob-2").as_deref(), Some("ob-2"));

    let new = issue(&home);
    assert_eq!(sell(daemon.address, &new, "ob-3"), None);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reload: applied");
    assert_eq!(sell(daemon.address, &new, "ob-3").as_deref(), Some("ob-3"));
    assert_eq!(sell(daemon.address, &old, "ob-4"), None);
    home.configure(&text);
    daemon.signal(Signal::HUP);
    let said = daemon.wait_for_log("reload: restart required");
    assert!(said.contains("server.tls"), "{said}");
    assert_eq!(sell(daemon.address, &new, "ob-5").as_deref(), Some("ob-5"));
    assert!(daemon.is_running());
}
