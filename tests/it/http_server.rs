//! The HTTP server and client over real loopback sockets, mostly as raw bytes: attacks and errors of a peer.
//!
//! No test asserts a duration; `soon` only ends a test that hangs.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spid::internals::net::{
    Client, ClientError, ClientOptions, ClientRequest, Drained, Handler, HttpFault, Method, Request,
    Response, ServerOptions, Url, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("this should long have ended")
}

/// Echoes the request; `/panic` panics; `/slow` reports its begin and waits until the test releases it.
#[derive(Clone)]
struct Echo {
    turned_away: mpsc::UnboundedSender<HttpFault>,
    seen: mpsc::UnboundedSender<String>,
    gate: Arc<Semaphore>,
}

impl Handler for Echo {
    async fn handle(&self, request: Request) -> Response {
        match request.path() {
            "/panic" => panic!("on purpose"),
            "/slow" => self.slow().await,
            "/redirect" => Response::redirect("https://isv.example/console"),
            _ => Response::text(200, describe(&request)),
        }
    }

    fn turned_away(&self, why: HttpFault, _: SocketAddr) {
        let _ = self.turned_away.send(why);
    }
}

impl Echo {
    async fn slow(&self) -> Response {
        let _ = self.seen.send("began".to_owned());
        self.gate.acquire().await.unwrap().forget();
        let _ = self.seen.send("ended".to_owned());
        Response::text(200, "slow but sure")
    }
}

fn describe(request: &Request) -> String {
    let query = String::from_utf8_lossy(request.query());
    let body = String::from_utf8_lossy(&request.body);
    format!("{} {} [{query}] {body}", request.method, request.path())
}

struct Running {
    address: SocketAddr,
    turned_away: mpsc::UnboundedReceiver<HttpFault>,
    seen: mpsc::UnboundedReceiver<String>,
    gate: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Drained>,
}

/// Long enough that no timeout ends a test that does not ask for it.
fn patient() -> ServerOptions {
    let long = Duration::from_secs(600);
    ServerOptions {
        headers_read: long,
        body_read: long,
        idle: long,
        stop_within: long,
        ..ServerOptions::default()
    }
}

fn hasty() -> ServerOptions {
    let short = Duration::from_millis(200);
    ServerOptions { headers_read: short, body_read: short, idle: short, ..patient() }
}

async fn start_at(address: &str, options: ServerOptions) -> Running {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (turned_away_to, turned_away) = mpsc::unbounded_channel();
    let (seen_to, seen) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let gate = Arc::new(Semaphore::new(0));
    let handler = Echo { turned_away: turned_away_to, seen: seen_to, gate: gate.clone() };
    let task = tokio::spawn(serve(listener, options, handler, async move {
        let _ = stopped.await;
    }));
    Running { address, turned_away, seen, gate, stop: Some(stop), task }
}

async fn start(options: ServerOptions) -> Running {
    start_at("127.0.0.1:0", options).await
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` and reads until the server closes.
    async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut peer = self.connect().await;
        peer.write_all(bytes.as_ref()).await.unwrap();
        rest(&mut peer).await
    }

    /// A valid request on its own connection.
    async fn assert_alive(&self) {
        let answer = self.talk("GET /alive HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("GET /alive [] "), "{answer}");
    }

    async fn why(&mut self) -> HttpFault {
        soon(self.turned_away.recv()).await.unwrap()
    }

    async fn sees(&mut self, what: &str) {
        assert_eq!(soon(self.seen.recv()).await.unwrap(), what);
    }

    fn url(&self, target: &str) -> Url {
        format!("http://{}{target}", self.address).parse().unwrap()
    }

    async fn stop(mut self) -> Drained {
        let _ = self.stop.take().unwrap().send(());
        soon(&mut self.task).await.unwrap()
    }
}

/// Reads until the server closes. A reset counts as a close.
async fn rest(peer: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = soon(peer.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

/// Reads until the received bytes end with `end`.
async fn until(peer: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(soon(peer.read_u8()).await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let server = start(patient()).await;
    let mut peer = server.connect().await;
    for turn in ["one", "two", "three"] {
        peer.write_all(format!("GET /{turn}?a=%20b HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let answer = until(&mut peer, &format!("GET /{turn} [a=%20b] ")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("content-length: ") && answer.contains("cache-control: no-store\r\n"),
            "{answer}"
        );
        assert!(answer.contains("content-type: text/plain; charset=utf-8\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(patient()).await;
    let answer = server
        .talk("GET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert!(answer.find("GET /one").unwrap() < answer.find("GET /two").unwrap());
}

/// A proxy in front of spid may have read the other host.
#[tokio::test]
async fn a_request_names_one_host() {
    let mut server = start(patient()).await;
    for head in [
        "GET /a HTTP/1.1\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        "GET /a HTTP/1.0\r\nHost: a\r\nHost: b\r\n",
    ] {
        let answer = server.talk(format!("{head}\r\n")).await;
        assert!(answer.contains(" 400 ") && !answer.contains("GET /a"), "{head}: {answer}");
        assert_eq!(server.why().await, HttpFault::Malformed);
    }
    // The health checks of load balancers speak HTTP/1.0 and name none.
    let answer = server.talk("GET /a HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 200 ") && answer.ends_with("GET /a [] "), "{answer}");
}

/// `shutdown(SHUT_WR)` after the request, as `nc -N` does.
#[tokio::test]
async fn a_request_that_is_half_closed_after_sending_gets_its_answer() {
    let mut server = start(patient()).await;
    let mut peer = server.connect().await;
    peer.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    peer.shutdown().await.unwrap();
    server.sees("began").await;
    server.gate.add_permits(1);
    let answer = rest(&mut peer).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow but sure"), "{answer}");
    // The end of stream in the same moment as the request.
    let mut peer = server.connect().await;
    peer.write_all(b"POST /spi HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na=1").await.unwrap();
    peer.shutdown().await.unwrap();
    assert!(rest(&mut peer).await.ends_with("POST /spi [] a=1"));
    // An idle peer that half-closes ends the connection.
    let mut peer = server.connect().await;
    peer.shutdown().await.unwrap();
    assert_eq!(rest(&mut peer).await, "");
    server.assert_alive().await;
}

#[tokio::test]
async fn bodies_come_whole_in_either_framing() {
    let server = start(patient()).await;
    let head = "POST /spi HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let sized = server.talk(format!("{head}Content-Length: 7\r\n\r\na=1&b=2")).await;
    assert!(sized.ends_with("POST /spi [] a=1&b=2"), "{sized}");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\na=1\r\n4\r\n&b=2\r\n0\r\n\r\n");
    let chunked = server.talk(chunked).await;
    assert!(chunked.ends_with("POST /spi [] a=1&b=2"), "{chunked}");
    let empty = server.talk(format!("{head}Content-Length: 0\r\n\r\n")).await;
    assert!(empty.ends_with("POST /spi [] "), "{empty}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let server = start(patient()).await;
    let mut peer = server.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    peer.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(until(&mut peer, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    peer.write_all(b"ok").await.unwrap();
    assert!(rest(&mut peer).await.ends_with("POST / [] ok"));
}

#[tokio::test]
async fn head_is_answered_without_a_body() {
    let server = start(patient()).await;
    let answer = server.talk("HEAD /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains(&format!("content-length: {}\r\n", "HEAD /x [] ".len())), "{answer}");
}

#[tokio::test]
async fn http_1_0_is_spoken() {
    let server = start(patient()).await;
    let answer = server.talk("GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("GET /old [] "), "{answer}");
    let answer = server.talk("GET /redirect HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 302") && answer.contains("location: https://isv.example/console\r\n")
    );
}

#[tokio::test]
async fn what_is_over_a_limit_is_told_so_and_counted() {
    let mut server = start(ServerOptions { body_max_bytes: 1000, ..patient() }).await;
    let long = "x".repeat(20 * 1024);
    let many = "h: v\r\n".repeat(65);
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let chunks = format!("1f5\r\n{}\r\n", "y".repeat(0x1f5)).repeat(2);
    let cases = [
        (format!("GET /?{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414, HttpFault::UriTooLong),
        (format!("GET /?{long}{long} HTTP/1.1\r\n"), 431, HttpFault::HeadersTooLarge),
        (format!("GET / HTTP/1.1\r\nx: {long}{long}\r\n\r\n"), 431, HttpFault::HeadersTooLarge),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, HttpFault::HeadersTooLarge),
        (format!("{post}Content-Length: 1001\r\n\r\n{}", "z".repeat(1001)), 413, HttpFault::BodyTooLarge),
        (format!("{post}Content-Length: 99999999999\r\n\r\n"), 413, HttpFault::BodyTooLarge),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"), 413, HttpFault::BodyTooLarge),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx".to_owned(),
            400,
            HttpFault::BodyUnexpected,
        ),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405, HttpFault::NoProxy),
    ];
    for (bytes, status, why) in cases {
        let mut peer = server.connect().await;
        peer.write_all(bytes.as_bytes()).await.unwrap();
        // The client closes its side first, so that the server does not wait for more data to discard.
        let line = until(&mut peer, "\r\n").await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{why:?}: {line}");
        peer.shutdown().await.unwrap();
        assert!(rest(&mut peer).await.matches("HTTP/1.1").count() == 0, "nothing follows a refusal");
        assert_eq!(server.why().await, why);
    }
    server.assert_alive().await;
}

#[tokio::test]
async fn who_is_refused_in_the_middle_of_a_body_may_end_it() {
    let server = start(ServerOptions { body_max_bytes: 50_000, ..patient() }).await;
    let mut peer = server.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50001\r\n\r\n";
    peer.write_all(format!("{head}{}", "z".repeat(40_001)).as_bytes()).await.unwrap();
    let answer = rest(&mut peer).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.ends_with("body_too_large\n"), "{answer}");
    // A reset would fail these assertions, because it could overtake the answer.
    for _ in 0..2 {
        peer.write_all(&[b'z'; 5_000]).await.unwrap();
    }
}

#[tokio::test]
async fn the_largest_of_everything_is_served() {
    let server = start(patient()).await;
    let body = "b".repeat(64 * 1024);
    let head = format!("POST /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", "u".repeat(16 * 1024 - 1));
    let fill = "f: v\r\n".repeat(64 - 3);
    let answer = server.talk(format!("{head}{fill}Content-Length: {}\r\n\r\n{body}", body.len())).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&body));
}

#[tokio::test]
async fn garbage_is_refused_and_harms_nobody() {
    let mut server = start(patient()).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : space\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut peer = server.connect().await;
        peer.write_all(garbage).await.unwrap();
        peer.shutdown().await.unwrap();
        let answer = rest(&mut peer).await;
        let shown = String::from_utf8_lossy(garbage);
        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"),
            "{shown:?}: {answer}"
        );
        assert_eq!(server.why().await, HttpFault::Malformed, "{shown:?}");
    }
    // The preface of HTTP/2 gets no HTTP/1 answer.
    let answer = server.talk("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.contains(" 200 "), "{answer}");
    server.assert_alive().await;
}

/// RFC 9112, section 6.1: a request with both framings is read as chunked, and the connection ends after it. So text
/// that a proxy may have taken for the body is never taken for a request.
#[tokio::test]
async fn a_second_request_cannot_be_smuggled() {
    let server = start(patient()).await;
    for framing in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let mut peer = server.connect().await;
        let request = format!("POST /both HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\n");
        peer.write_all(format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let _ = peer.shutdown().await;
        let answer = rest(&mut peer).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(!answer.contains("smuggled"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_request() {
    let mut server = start(patient()).await;
    let mut peer = server.connect().await;
    peer.write_all(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    drop(peer);
    assert_eq!(server.why().await, HttpFault::BodyBroken);
    assert!(server.seen.try_recv().is_err(), "half a request reached the handler");
}

#[tokio::test]
async fn slow_peers_are_dropped() {
    let mut server = start(hasty()).await;
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(server.why().await, HttpFault::HeadersLate);
    let mut halfway = server.connect().await;
    halfway.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
    assert_eq!(rest(&mut halfway).await, "");
    assert_eq!(server.why().await, HttpFault::HeadersLate);
    let mut bodiless = server.connect().await;
    bodiless.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").await.unwrap();
    let answer = rest(&mut bodiless).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(server.why().await, HttpFault::BodyLate);
}

#[tokio::test]
async fn a_head_in_drops_does_not_earn_more_time() {
    let mut server = start(ServerOptions { idle: Duration::from_secs(600), ..hasty() }).await;
    let mut peer = server.connect().await;
    peer.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until(&mut peer, "GET /one [] ").await;
    // An idle connection may stay open for long, but a header that has begun may not.
    peer.write_all(b"GET /two HTTP/1.1\r\n").await.unwrap();
    let (mut reader, mut writer) = peer.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b"x: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = soon(reader.read_to_end(&mut answer)).await;
    assert!([HttpFault::HeadersLate, HttpFault::HeadersTooLarge].contains(&server.why().await));
    soon(dripping).await.unwrap();
}

#[tokio::test]
async fn idle_connections_are_closed_without_reproach() {
    let mut server = start(ServerOptions { idle: Duration::from_millis(200), ..patient() }).await;
    let mut peer = server.connect().await;
    peer.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(rest(&mut peer).await.ends_with("GET /one [] "));
    assert!(server.turned_away.try_recv().is_err());
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_goes_on() {
    let server = start(patient()).await;
    let answer = server
        .talk("GET /panic HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("content-length: 0\r\n"), "{answer}");
    assert!(answer.ends_with("GET /next [] ") && !answer.contains("on purpose"), "{answer}");
    assert_eq!(server.stop().await, Drained { finished: true, left: 0 });
}

#[tokio::test]
async fn who_hangs_up_cancels_nothing() {
    // There is one slot. It is free again after the handler, because the peer may have closed only its own side.
    let mut server = start(ServerOptions { connections_max: 1, ..patient() }).await;
    let mut peer = server.connect().await;
    peer.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.sees("began").await;
    drop(peer);
    server.gate.add_permits(1);
    server.sees("ended").await;
    server.assert_alive().await;
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight_and_for_nothing_else() {
    let mut server = start(patient()).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until(&mut idle, "GET /one [] ").await;
    let mut halfway = server.connect().await;
    halfway.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.sees("began").await;
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(rest(&mut halfway).await, "");
    assert!(TcpStream::connect(server.address).await.is_err(), "the listener is closed");
    server.gate.add_permits(1);
    let answer = rest(&mut busy).await;
    assert!(answer.contains("connection: close") && answer.ends_with("slow but sure"), "{answer}");
    assert_eq!(soon(&mut server.task).await.unwrap(), Drained { finished: true, left: 0 });
}

/// A peer cannot know of the stop before it sends. A close without an answer would leave it in doubt about a request
/// that was never read.
#[tokio::test]
async fn a_request_on_its_way_at_the_stop_is_answered_and_is_the_last() {
    let mut server = start(ServerOptions { stop_unasked: Duration::from_secs(600), ..patient() }).await;
    let mut kept = server.connect().await;
    kept.write_all(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = until(&mut kept, "GET /one [] ").await;
    assert!(!answer.contains("connection: close"), "{answer}");
    let mut halfway = server.connect().await;
    halfway.write_all(b"GET /two HTTP/1.1\r\nHo").await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.sees("began").await;
    let mut refused = server.connect().await;
    refused.write_all(b"GET /three HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut refused).await.matches("connection: close").count(), 1);
    drop(refused);
    server.stop.take().unwrap().send(()).unwrap();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    kept.write_all(b"GET /four HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    halfway.write_all(b"st: a\r\n\r\n").await.unwrap();
    server.gate.add_permits(1);
    for (mut peer, said) in [(kept, "GET /four [] "), (halfway, "GET /two [] "), (busy, "slow but sure")] {
        let answer = rest(&mut peer).await;
        assert!(answer.contains("connection: close\r\n") && answer.ends_with(said), "{answer}");
    }
    assert_eq!(soon(&mut server.task).await.unwrap(), Drained { finished: true, left: 0 });
}

#[tokio::test]
async fn a_stop_waits_for_the_handlers_of_those_who_hung_up() {
    let mut server = start(patient()).await;
    let mut peer = server.connect().await;
    peer.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.sees("began").await;
    drop(peer);
    server.assert_alive().await;
    server.stop.take().unwrap().send(()).unwrap();
    server.gate.add_permits(1);
    assert_eq!(soon(&mut server.task).await.unwrap(), Drained { finished: true, left: 0 });
    server.sees("ended").await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut server = start(ServerOptions { stop_within: Duration::from_millis(100), ..patient() }).await;
    let mut stays = server.connect().await;
    let mut leaves = server.connect().await;
    for peer in [&mut stays, &mut leaves] {
        peer.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        server.sees("began").await;
    }
    drop(leaves);
    let gate = server.gate.clone();
    let mut seen = std::mem::replace(&mut server.seen, mpsc::unbounded_channel().1);
    assert_eq!(server.stop().await, Drained { finished: false, left: 2 });
    assert_eq!(rest(&mut stays).await, "");
    gate.add_permits(2);
    assert!(soon(seen.recv()).await.is_none(), "a handler that was cut off went on");
}

#[tokio::test]
async fn holding_connections_keeps_nobody_out() {
    let mut server = start(ServerOptions { connections_max: 4, ..patient() }).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(server.connect().await);
    }
    held[3].write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    for _ in 0..9 {
        server.assert_alive().await;
    }
    assert_eq!(server.why().await, HttpFault::Displaced);
    assert_eq!(rest(&mut held[0]).await, "");
}

#[tokio::test]
async fn requests_at_work_are_not_displaced_but_do_not_idle_afterwards() {
    let mut server = start(ServerOptions { connections_max: 2, ..patient() }).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut peer = server.connect().await;
        peer.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        server.sees("began").await;
        busy.push(peer);
    }
    let honest = server.talk("GET /third HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let gate = server.gate.clone();
    let (answer, ()) = soon(async { tokio::join!(honest, async { gate.add_permits(2) }) }).await;
    assert!(answer.ends_with("GET /third [] "), "{answer}");
    for peer in &mut busy {
        until(peer, "slow but sure").await;
    }
}

fn client() -> Client {
    Client::new(ClientOptions { body_max_bytes: 100, ..ClientOptions::default() })
}

#[tokio::test]
async fn the_client_and_the_server_understand_each_other() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        // Without IPv6 there is nothing to test.
        if TcpListener::bind(address).await.is_err() {
            continue;
        }
        let server = start_at(address, patient()).await;
        let answer = soon(client().send(ClientRequest::get(server.url("/spi?a=%2F")))).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"GET /spi [a=%2F] "[..]));
        assert_eq!(answer.headers.text("content-type"), Some("text/plain; charset=utf-8"));
        let post = ClientRequest::post(server.url("/p"), "application/json", "{}");
        assert_eq!(soon(client().send(post)).await.unwrap().body, "POST /p [] {}");
        let head = ClientRequest { method: Method::Head, ..ClientRequest::get(server.url("/")) };
        assert_eq!(soon(client().send(head)).await.unwrap().body, "");
        let answer = soon(client().send(ClientRequest::get(server.url("/redirect")))).await.unwrap();
        assert_eq!(answer.status, 302, "a redirect is an answer");
    }
}

#[tokio::test]
async fn recorded_bytes_are_sent_as_they_are() {
    let server = start(patient()).await;
    let url = server.url("/ignored");
    let cases = [
        ("POST /raw?x HTTP/1.1\r\nHOST: b\r\nContent-Length: 2\r\n\r\nhi", 200, "POST /raw [x] hi"),
        ("HEAD /raw HTTP/1.1\r\nHost: b\r\n\r\n", 200, ""),
        ("GET /raw HTTP/1.0\r\n\r\n", 200, "GET /raw [] "),
        ("\0\0\0\0\r\n\r\n", 400, ""),
    ];
    for (bytes, status, body) in cases {
        let answer = soon(client().send_raw(&url, bytes.as_bytes())).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (status, body.as_bytes()), "{bytes}");
    }
    assert!(!client().send_raw(&url, b"").await.unwrap_err().may_have_arrived());
}

/// A peer that answers every connection with `bytes` and closes.
async fn answering(bytes: &'static [u8]) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut head = [0u8; 1024];
            let _ = peer.read(&mut head).await;
            let _ = peer.write_all(bytes).await;
        }
    });
    url
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error_that_says_why() {
    for (bytes, part) in [
        (&b""[..], "no usable HTTP response"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "no usable HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "no usable HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "longer than 100 bytes"),
    ] {
        let url = answering(bytes).await;
        let error = soon(client().send(ClientRequest::get(url.clone()))).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.may_have_arrived(), "{error}");
        let error = soon(client().send_raw(&url, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn what_never_left_did_not_arrive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = soon(client().send(ClientRequest::get(url.clone()))).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Connect { authority, .. } if *authority == url.authority()),
        "{error}"
    );
    assert!(!error.may_have_arrived());
    let secure = ClientRequest::get(url.to_string().replace("http:", "https:").parse().unwrap());
    assert!(!soon(client().send(secure)).await.unwrap_err().may_have_arrived());
}

#[tokio::test]
async fn the_client_does_not_wait_for_ever() {
    let mut server = start(patient()).await;
    let client = Client::new(ClientOptions { total: Duration::from_millis(100), ..ClientOptions::default() });
    let error = soon(client.send(ClientRequest::get(server.url("/slow")))).await.unwrap_err();
    assert!(matches!(error, ClientError::Late { .. }) && error.may_have_arrived(), "{error}");
    server.sees("began").await;
    server.gate.add_permits(1);
    server.sees("ended").await;
}

#[tokio::test]
async fn a_closure_is_a_handler() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/json", listener.local_addr().unwrap()).parse().unwrap();
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = peers.clone();
    let handler = move |request: Request| {
        seen.lock().unwrap().push(request.peer.ip());
        async { Response::json(200, r#"{"success":true}"#) }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, patient(), handler, async move {
        let _ = stopped.await;
    }));
    let answer = soon(client().send(ClientRequest::get(url))).await.unwrap();
    assert_eq!(answer.headers.get("content-type"), Some(&b"application/json"[..]));
    stop.send(()).unwrap();
    assert_eq!(soon(server).await.unwrap(), Drained { finished: true, left: 0 });
    assert_eq!(peers.lock().unwrap().len(), 1);
}
