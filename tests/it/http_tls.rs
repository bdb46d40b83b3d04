//! The listener behind TLS: three kinds of valid clients, a renewed certificate, and hostile peers before the first
//! byte of HTTP.
//!
//! No test asserts a duration; `soon` only ends a test that hangs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has said what it found")]

use crate::support::machine::lacks;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use spid::internals::net::{
    Client, ClientError, ClientOptions, ClientRequest, Drained, Handler, HttpFault, Request, Response,
    ServerOptions, ServerTls, Tls, Url, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("this should long have ended")
}

/// A certificate authority for one test, and the files of its server.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "an authority for one test");
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let authority = Authority { issuer, folder };
        authority.issue("localhost");
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a new certificate for `name` and its key over the old ones.
    fn issue(&self, name: &str) {
        self.issue_with(
            rcgen::CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap(),
        );
    }

    fn issue_with(&self, parameters: rcgen::CertificateParams) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file("certificate.pem"), certificate.pem() + &self.issuer.pem()).unwrap();
        std::fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
    }

    fn load(&self) -> ServerTls {
        ServerTls::load(&self.file("certificate.pem"), &self.file("key.pem")).unwrap()
    }

    fn client(&self, keep: usize) -> Client {
        let tls = Tls::new(Some(&self.file("ca.pem"))).unwrap();
        Client::new(ClientOptions { tls: Some(tls), keep, ..ClientOptions::default() })
    }

    /// A connector with these protocols.
    fn connector(&self, protocols: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

#[derive(Clone)]
struct Hello {
    turned_away: mpsc::UnboundedSender<HttpFault>,
}

impl Handler for Hello {
    async fn handle(&self, request: Request) -> Response {
        let body = String::from_utf8_lossy(&request.body);
        Response::text(200, format!("{} {} {body}", request.method, request.path()))
    }

    fn turned_away(&self, why: HttpFault, _: SocketAddr) {
        let _ = self.turned_away.send(why);
    }
}

struct Running {
    address: SocketAddr,
    turned_away: mpsc::UnboundedReceiver<HttpFault>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

/// Long enough that no timeout ends a test that does not ask for it.
fn patient(tls: ServerTls) -> ServerOptions {
    let long = Duration::from_secs(600);
    ServerOptions {
        headers_read: long,
        body_read: long,
        idle: long,
        stop_within: long,
        tls: Some(tls),
        ..ServerOptions::default()
    }
}

fn hasty(tls: ServerTls) -> ServerOptions {
    ServerOptions { headers_read: Duration::from_secs(2), ..patient(tls) }
}

async fn start(options: ServerOptions) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (turned_away_to, turned_away) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let handler = Hello { turned_away: turned_away_to };
    let task = tokio::spawn(serve(listener, options, handler, async move {
        let _ = stopped.await;
    }));
    Running { address, turned_away, stop, task }
}

impl Running {
    async fn why(&mut self) -> HttpFault {
        soon(self.turned_away.recv()).await.unwrap()
    }

    fn url(&self, target: &str) -> Url {
        format!("https://localhost:{}{target}", self.address.port()).parse().unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn shake_hands(&self, authority: &Authority) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake_hands_as(authority.connector(&[b"http/1.1"]), "localhost").await
    }

    async fn shake_hands_as(&self, with: TlsConnector, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        soon(with.connect(name, self.connect().await)).await
    }

    async fn assert_alive(&self, authority: &Authority) {
        assert_eq!(ask(&authority.client(0), self.url("/alive")).await, "GET /alive ");
    }

    async fn stop(self) -> Drained {
        self.stop.send(()).unwrap();
        soon(self.task).await.unwrap()
    }
}

async fn ask(client: &Client, url: Url) -> String {
    let answer = soon(client.send(ClientRequest::get(url))).await.unwrap();
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// Reads until the server closes. A reset counts as a close.
async fn rest(peer: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    let _ = soon(peer.read_to_end(&mut said)).await;
    said
}

async fn output_of(tool: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    // s_client ends with its input, so close the input after everything was sent.
    let output = soon(child.wait_with_output()).await.unwrap();
    drop(stdin);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

// Valid clients.

#[tokio::test]
async fn our_own_client_is_served_again_and_again_over_one_connection() {
    let authority = Authority::new();
    let server = start(patient(authority.load())).await;
    let client = authority.client(1);
    for _ in 0..3 {
        assert_eq!(ask(&client, server.url("/spi")).await, "GET /spi ");
    }
    let body = "x".repeat(60_000);
    let posted = ClientRequest::post(server.url("/spi"), "text/plain", body.clone());
    let answer = soon(client.send(posted)).await.unwrap();
    assert_eq!(answer.body, format!("POST /spi {body}"));
    assert_eq!(server.stop().await, Drained { finished: true, left: 0 });
}

/// Nothing of a request is sent to a server that cannot prove its name.
#[tokio::test]
async fn our_own_client_sends_nothing_to_a_server_with_a_wrong_certificate() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut expired = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut future = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    future.not_before = rcgen::date_time_ymd(2200, 1, 1);
    let another_name = rcgen::CertificateParams::new(vec!["isv.example".to_owned()]).unwrap();
    for (parameters, trusts, said) in [
        (another_name, &authority, "not valid for name"),
        (expired, &authority, "expired"),
        (future, &authority, "not valid yet"),
        (
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap(),
            &other,
            "invalid peer certificate",
        ),
    ] {
        authority.issue_with(parameters);
        let server = start(patient(authority.load())).await;
        let client = trusts.client(4);
        for _ in 0..2 {
            let request = ClientRequest::post(server.url("/spi"), "text/plain", "x");
            let error = soon(client.send(request)).await.unwrap_err();
            assert!(error.to_string().contains(said), "{said}: {error}");
            assert!(matches!(error, ClientError::Connect { .. }) && !error.may_have_arrived(), "{error:?}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn curl_is_served_over_every_version_we_speak() {
    if lacks("curl", "curl") {
        return;
    }
    let authority = Authority::new();
    let server = start(patient(authority.load())).await;
    let (url, roots) = (server.url("/spi"), authority.file("ca.pem"));
    let url = format!("https://{}{}", url.authority(), url.target());
    let roots = roots.to_str().unwrap();
    for version in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"], &["--http2"]] {
        let said = output_of("curl", &[&["-sS", "--cacert", roots, &url], version].concat(), "").await;
        assert_eq!(said, "GET /spi ", "{version:?}");
    }
    let old = output_of("curl", &["-sS", "--tls-max", "1.1", "--cacert", roots, &url], "").await;
    assert!(old.starts_with("curl: ("), "{old}");
    assert_eq!(server.stop().await, Drained { finished: true, left: 0 });
}

#[tokio::test]
async fn openssl_finds_the_chain_in_order_and_the_protocol_agreed() {
    if lacks("openssl", "openssl") {
        return;
    }
    let authority = Authority::new();
    let server = start(patient(authority.load())).await;
    let (at, roots) = (server.address.to_string(), authority.file("ca.pem"));
    let arguments = [
        "s_client",
        "-connect",
        &at,
        "-servername",
        "localhost",
        "-verify_return_error",
        "-verify_hostname",
        "localhost",
        "-alpn",
        "h2,http/1.1",
        "-ign_eof",
        "-CAfile",
        roots.to_str().unwrap(),
    ];
    let said =
        output_of("openssl", &arguments, "GET /spi HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    for part in ["Verify return code: 0 (ok)", "ALPN protocol: http/1.1", "GET /spi "] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn a_stop_answers_over_tls_what_is_on_its_way() {
    let authority = Authority::new();
    let options = ServerOptions { stop_unasked: Duration::from_secs(600), ..patient(authority.load()) };
    let server = start(options).await;
    let peer = server.shake_hands(&authority).await.unwrap();
    let shaking = server.connect().await;
    // Connections are accepted in order, so that one was accepted too.
    server.assert_alive(&authority).await;
    server.stop.send(()).unwrap();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let late =
        authority.connector(&[b"http/1.1"]).connect(ServerName::try_from("localhost").unwrap(), shaking);
    let late = soon(late).await.unwrap();
    for mut peer in [peer, late] {
        peer.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut said = String::new();
        // The stream ends with a close_notify: a truncation would be an error here.
        soon(peer.read_to_string(&mut said)).await.unwrap();
        assert!(said.contains("connection: close\r\n") && said.ends_with("GET /late "), "{said}");
    }
    assert_eq!(soon(server.task).await.unwrap(), Drained { finished: true, left: 0 });
}

// The certificate is renewed.

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on() {
    let authority = Authority::new();
    let tls = authority.load();
    let server = start(patient(tls.clone())).await;
    let mut open = server.shake_hands(&authority).await.unwrap();
    let to = |name: &'static str| server.shake_hands_as(authority.connector(&[]), name);
    assert!(to("localhost").await.is_ok() && to("new.example").await.is_err());

    authority.issue("new.example");
    assert!(to("localhost").await.is_ok(), "nobody has said so yet");
    tls.reload().unwrap();
    assert!(to("new.example").await.is_ok() && to("localhost").await.is_err());
    open.write_all(b"GET /open HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let said = rest(&mut open).await;
    assert!(said.ends_with(b"GET /open "), "what is open keeps what it agreed on");
}

#[tokio::test]
async fn files_that_do_not_fit_together_change_nothing() {
    let authority = Authority::new();
    let tls = authority.load();
    let server = start(patient(tls.clone())).await;
    let key = std::fs::read(authority.file("key.pem")).unwrap();
    authority.issue("new.example");
    std::fs::write(authority.file("key.pem"), key).unwrap();
    let why = tls.reload().unwrap_err().to_string();
    assert!(why.contains("do not match"), "{why}");
    server.assert_alive(&authority).await;
    std::fs::write(authority.file("certificate.pem"), "").unwrap();
    assert!(tls.reload().unwrap_err().to_string().contains("the file contains no certificate"));
    server.assert_alive(&authority).await;
}

// Hostile peers.

#[tokio::test]
async fn garbage_is_no_handshake() {
    let authority = Authority::new();
    let mut server = start(patient(authority.load())).await;
    let hello = [0x16, 3, 1, 0xff, 0xff];
    for garbage in [
        &b"GET /spi HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"\0\0\0\0\0\0\0\0",
        &hello,
        &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
        &[0x80, 0x2e, 1, 3, 1],
        &[0x15, 3, 3, 0, 2, 2, 40],
        &[0xff; 100_000],
    ] {
        let mut peer = server.connect().await;
        let _ = peer.write_all(garbage).await;
        let said = rest(&mut peer).await;
        assert!(!said.windows(4).any(|window| window == b"HTTP"), "no answer in the clear: {said:?}");
        assert_eq!(server.why().await, HttpFault::TlsFailed, "{garbage:?}");
    }
    server.assert_alive(&authority).await;
}

#[tokio::test]
async fn who_wants_another_protocol_is_told_so() {
    let authority = Authority::new();
    let mut server = start(patient(authority.load())).await;
    let refused = server.shake_hands_as(authority.connector(&[b"h2"]), "localhost").await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    assert_eq!(server.why().await, HttpFault::TlsFailed);
    server.assert_alive(&authority).await;
}

#[tokio::test]
async fn a_handshake_in_drops_earns_no_more_time() {
    let authority = Authority::new();
    let mut server = start(hasty(authority.load())).await;
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, b"");
    assert_eq!(server.why().await, HttpFault::TlsLate);
    let mut dribbling = server.connect().await;
    // The header of a record of 512 bytes that never ends.
    let _ = dribbling.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await;
    soon(async {
        while dribbling.write_all(&[7]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(server.why().await, HttpFault::TlsLate);
}

#[tokio::test]
async fn the_time_for_a_head_includes_the_handshake() {
    let authority = Authority::new();
    let mut server = start(hasty(authority.load())).await;
    let mut peer = server.shake_hands(&authority).await.unwrap();
    peer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(rest(&mut peer).await, b"");
    assert_eq!(server.why().await, HttpFault::HeadersLate);
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_reproach() {
    let authority = Authority::new();
    let options = ServerOptions { idle: Duration::from_millis(200), ..patient(authority.load()) };
    let mut server = start(options).await;
    let mut peer = server.shake_hands(&authority).await.unwrap();
    peer.write_all(b"GET /one HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(rest(&mut peer).await.ends_with(b"GET /one "));
    assert!(server.turned_away.try_recv().is_err());
}

#[tokio::test]
async fn holding_handshakes_open_keeps_nobody_out() {
    let authority = Authority::new();
    let mut server = start(ServerOptions { connections_max: 4, ..patient(authority.load()) }).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(server.connect().await);
    }
    for _ in 0..6 {
        server.assert_alive(&authority).await;
    }
    assert_eq!(server.why().await, HttpFault::Displaced);
    for peer in &mut held[..1] {
        assert_eq!(rest(peer).await, b"");
    }
}

#[tokio::test]
async fn who_hangs_up_in_the_handshake_is_not_counted() {
    let authority = Authority::new();
    let mut server = start(patient(authority.load())).await;
    for beginning in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
        let mut peer = server.connect().await;
        peer.write_all(beginning).await.unwrap();
        peer.shutdown().await.unwrap();
        assert_eq!(rest(&mut peer).await, b"");
    }
    server.assert_alive(&authority).await;
    assert!(server.turned_away.try_recv().is_err());
}
