//! The client against servers that close connections whenever they like: no request is sent twice, and each error says
//! if the request may have arrived.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spid::internals::net::{Client, ClientError, ClientOptions, ClientRequest, OutboundPolicy, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinSet, yield_now};

const CALLS: usize = 10_000;
const AT_ONCE: usize = 16;

/// Server that answers, hangs up after the answer, or hangs up without one, by the number of the call.
#[derive(Default)]
struct Fickle {
    /// Number of times that each call has arrived.
    arrived: Mutex<Vec<usize>>,
    connections: AtomicUsize,
}

impl Fickle {
    async fn serve(self: Arc<Fickle>, listener: TcpListener) {
        while let Ok((peer, _)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(self.clone().attend(peer));
        }
    }

    async fn attend(self: Arc<Fickle>, mut peer: TcpStream) {
        while let Some(call) = read_call(&mut peer).await {
            self.arrived.lock().unwrap()[call] += 1;
            let mood = call.wrapping_mul(2_654_435_761) >> 7;
            if mood.is_multiple_of(29) {
                return;
            }
            if peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
            if mood.is_multiple_of(3) {
                // The end of the connection arrives with the answer, a little later, or while the next call is written.
                for _ in 0..mood % 5 {
                    yield_now().await;
                }
                return;
            }
        }
    }
}

/// Reads a whole request and returns the number in its body.
async fn read_call(peer: &mut TcpStream) -> Option<usize> {
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                return body.parse().ok();
            }
        }
        let mut chunk = [0; 1024];
        let count = peer.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_sent_twice_and_every_error_says_if_it_may_have_arrived() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let server = Arc::new(Fickle { arrived: Mutex::new(vec![0; CALLS]), ..Fickle::default() });
    tokio::spawn(server.clone().serve(listener));
    let client = Client::new(ClientOptions { keep: AT_ONCE, ..ClientOptions::default() });
    let mut callers = JoinSet::new();
    for caller in 0..AT_ONCE {
        let (client, url) = (client.clone(), url.clone());
        callers.spawn(async move {
            let mut ends = Vec::new();
            for call in (caller..CALLS).step_by(AT_ONCE) {
                let request = ClientRequest::post(url.clone(), "text/plain", call.to_string());
                ends.push((call, client.send(request).await));
            }
            ends
        });
    }
    let ends: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    assert_eq!(ends.len(), CALLS);
    let arrived = server.arrived.lock().unwrap().clone();
    let (mut answered, mut unknown) = (0, 0);
    for (call, end) in ends {
        match end {
            Ok(response) => {
                assert_eq!((response.status, arrived[call]), (200, 1), "call {call}");
                answered += 1;
            }
            Err(error) if error.may_have_arrived() => {
                assert!(arrived[call] <= 1, "call {call} arrived {} times: {error}", arrived[call]);
                unknown += 1;
            }
            Err(error) => assert_eq!(arrived[call], 0, "call {call}: {error}"),
        }
    }
    let connections = server.connections.load(Ordering::Relaxed);
    assert!(answered > CALLS / 2 && unknown > 0, "{answered} answered, {unknown} unknown");
    assert!(connections < CALLS, "connections are used again: {connections}");
}

/// Socket whose queue is full, so that further connections get no answer at all. Returns what holds the queue.
pub(crate) async fn black_hole(address: SocketAddr) -> Option<(TcpListener, Vec<TcpStream>)> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.ok()?;
    socket.bind(address).ok()?;
    let listener = socket.listen(1).ok()?;
    let mut queued = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(listener.local_addr().unwrap())).await
    {
        queued.push(stream.unwrap());
    }
    Some((listener, queued))
}

/// Calls a host with two addresses, of which the first never answers.
async fn call_past_the_black_hole(silent: IpAddr, connect: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(_silence) = black_hole(SocketAddr::new(silent, port)).await else {
        assert!(silent.is_ipv6(), "only a machine without IPv6 has nothing to test");
        return;
    };
    let server = Arc::new(Fickle { arrived: Mutex::new(vec![0; 2]), ..Fickle::default() });
    tokio::spawn(server.clone().serve(listener));
    let hosts = HashMap::from([("isv.example".to_owned(), vec![silent, Ipv4Addr::LOCALHOST.into()])]);
    let url: Url = format!("http://isv.example:{port}/").parse().unwrap();
    let client = Client::new(ClientOptions { connect, hosts, ..ClientOptions::default() });
    // With one address after the other, the first would use up the whole time limit.
    let response = client.send(ClientRequest::post(url, "text/plain", "1")).await.unwrap();
    assert_eq!((response.status, server.arrived.lock().unwrap()[1]), (200, 1));
}

#[tokio::test]
async fn an_ipv6_address_that_never_answers_does_not_keep_ipv4_from_answering() {
    call_past_the_black_hole(Ipv6Addr::LOCALHOST.into(), Duration::from_secs(30)).await;
}

#[tokio::test]
async fn one_of_two_ipv4_addresses_that_never_answers_does_not_keep_the_other_from_answering() {
    call_past_the_black_hole(Ipv4Addr::new(127, 0, 0, 2).into(), Duration::from_secs(4)).await;
}

#[tokio::test]
async fn only_allowed_addresses_of_a_host_are_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Arc::new(Fickle { arrived: Mutex::new(vec![0; 2]), ..Fickle::default() });
    tokio::spawn(server.clone().serve(listener));
    let metadata: IpAddr = Ipv4Addr::new(169, 254, 169, 254).into();
    let hosts = HashMap::from([
        ("both.example".to_owned(), vec![metadata, Ipv4Addr::LOCALHOST.into()]),
        ("metadata.example".to_owned(), vec![metadata]),
        ("empty.example".to_owned(), vec![]),
    ]);
    let client = Client::new(ClientOptions {
        outbound: OutboundPolicy::Confidential,
        hosts,
        ..ClientOptions::default()
    });
    let call = |host: &str| {
        let url: Url = format!("http://{host}:{port}/").parse().unwrap();
        client.send(ClientRequest::post(url, "text/plain", "1"))
    };
    assert_eq!(call("both.example").await.unwrap().status, 200);
    let error = call("metadata.example").await.unwrap_err();
    assert!(matches!(&error, ClientError::Forbidden { address, .. } if *address == metadata), "{error}");
    let error = call("empty.example").await.unwrap_err();
    assert!(error.to_string().ends_with("the name has no address"), "{error}");
    assert!(!error.may_have_arrived());
}

/// Server that follows the answer to the first request of a connection with bytes nobody asked for.
async fn serve_poison(listener: TcpListener, poison: &'static [u8]) {
    while let Ok((mut peer, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut first = true;
            while let Some(call) = read_call(&mut peer).await {
                let own = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{call:04}");
                let bytes = if first { poison } else { own.as_bytes() };
                first = false;
                if peer.write_all(bytes).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// A kept connection whose server sent more than one answer is not used again: the next call would get the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_after_an_answer_never_become_the_answer_to_the_next_call() {
    const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let answers: [(&str, u16); 9] = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{evil}", 200),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{evil}", 200),
        ("HTTP/1.1 204 No Content\r\n\r\n{evil}", 204),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil{evil}", 204),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nevil{evil}", 304),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}", 200),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n{evil}", 200),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{evil}", 200),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok{evil}", 200),
    ];
    for (answer, status) in answers {
        let poison = answer.replace("{evil}", EVIL).leak().as_bytes();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(serve_poison(listener, poison));
        for call in 0..200 {
            let client = Client::new(ClientOptions { keep: 1, ..ClientOptions::default() });
            let send = || client.send(ClientRequest::post(url.clone(), "text/plain", call.to_string()));
            let first = send().await.unwrap();
            assert_eq!((first.status, first.body.starts_with(b"evil")), (status, false), "{answer}");
            // Another connection, whose first answer is the same, or none.
            let second = send().await;
            let evil = second.as_ref().is_ok_and(|second| second.body == "evil");
            assert!(!evil, "{answer}: {second:?}");
        }
        server.abort();
    }
}

/// Waits no longer than a loaded machine may need.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap()
}

/// A request that ends without a complete answer ends its connection, too: a kept one would bring the late answer to the
/// next call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_complete_answer_is_closed() {
    let endings: [(&str, &[u8]); 5] = [
        ("no complete response", b""),
        ("no complete response", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"),
        ("no complete response", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"),
        ("longer than 100 bytes", b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n"),
        ("no usable HTTP response", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!"),
    ];
    for (said, bytes) in endings {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            assert_eq!(read_call(&mut peer).await, Some(7));
            peer.write_all(bytes).await.unwrap();
            // The end of the connection, or its reset, and not another request.
            assert_eq!(peer.read(&mut [0; 1]).await.unwrap_or_default(), 0, "{said}");
        });
        let client = Client::new(ClientOptions {
            total: Duration::from_millis(500),
            body_max_bytes: 100,
            keep: 4,
            ..ClientOptions::default()
        });
        let error = soon(client.send(ClientRequest::post(url, "text/plain", "7"))).await.unwrap_err();
        assert!(error.to_string().contains(said) && error.may_have_arrived(), "{error}");
        soon(server).await.unwrap();
    }
}

/// Interim answers earn a server no more time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_without_end_are_too_late() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let server = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        while peer.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await.is_ok() {}
    });
    let total = Duration::from_millis(500);
    let client = Client::new(ClientOptions { total, keep: 4, ..ClientOptions::default() });
    let error = soon(client.send(ClientRequest::post(url, "text/plain", "7"))).await.unwrap_err();
    assert!(error.may_have_arrived(), "{error}");
    soon(server).await.unwrap();
}
