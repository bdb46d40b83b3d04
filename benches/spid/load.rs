//! Load generator: many connections that send requests and check the responses, on one thread.
//!
//! The load must cost less than the server it measures. So requests are prepared in advance, and responses are searched
//! and not parsed. The report includes the processor time of the load itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::machine;

/// Prepared requests, and the text that each response must contain.
pub(crate) struct Requests {
    texts: Vec<Vec<u8>>,
    needle: Vec<u8>,
    next: AtomicUsize,
    repeat: bool,
}

impl Requests {
    /// Repeats one request without end.
    pub(crate) fn same(text: Vec<u8>, needle: &str) -> Arc<Requests> {
        Requests::new(vec![text], needle, true)
    }

    /// Sends these requests in order, and then starts again.
    pub(crate) fn cycle(texts: Vec<Vec<u8>>, needle: &str) -> Arc<Requests> {
        Requests::new(texts, needle, true)
    }

    /// Sends each of these requests once.
    pub(crate) fn each(texts: Vec<Vec<u8>>, needle: &str) -> Arc<Requests> {
        Requests::new(texts, needle, false)
    }

    fn new(texts: Vec<Vec<u8>>, needle: &str, repeat: bool) -> Arc<Requests> {
        Arc::new(Requests { texts, needle: needle.as_bytes().to_vec(), next: AtomicUsize::new(0), repeat })
    }

    fn take(&self) -> Option<(usize, &[u8])> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let index = if self.repeat { number % self.texts.len() } else { number };
        self.texts.get(index).map(|text| (number, text.as_slice()))
    }
}

/// Result of a run of the load.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Correct responses per second.
    pub(crate) rate: f64,
    /// Number of wrong responses.
    pub(crate) wrong: u64,
    /// Times of all responses, in microseconds, sorted.
    pub(crate) took_us: Vec<u32>,
    /// Processor time of the load, as a share of one core.
    pub(crate) load_share: f64,
}

impl Sample {
    pub(crate) fn percentile_us(&self, percent: f64) -> u32 {
        let last = self.took_us.len().saturating_sub(1);
        self.took_us.get((last as f64 * percent / 100.0).round() as usize).copied().unwrap_or(0)
    }

    fn of(took: Vec<(u32, bool)>, elapsed: Duration, processor_s: f64) -> Sample {
        let wrong = took.iter().filter(|(_, right)| !right).count() as u64;
        let mut took_us: Vec<u32> = took.into_iter().map(|(us, _)| us).collect();
        took_us.sort_unstable();
        let right = took_us.len() as f64 - wrong as f64;
        let seconds = elapsed.as_secs_f64();
        Sample { rate: right / seconds, wrong, took_us, load_share: processor_s / seconds }
    }
}

/// Runs a closed loop: each connection sends its next request as soon as it has a response. The run ends after
/// `length`, or when no request is left.
pub(crate) fn closed(
    address: SocketAddr,
    connections: usize,
    requests: &Arc<Requests>,
    length: Duration,
) -> Sample {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut open = Vec::new();
        // All connections are open before the time starts.
        for _ in 0..connections {
            open.push(Line::connect(address).await);
        }
        let before = machine::processor_s(std::process::id());
        let begun = Instant::now();
        let until = begun + length;
        let tasks = open.into_iter().map(|line| tokio::spawn(line.ask_until(requests.clone(), until)));
        let mut took = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            took.extend(task.await.unwrap());
        }
        let processor_s = machine::processor_s(std::process::id()) - before;
        Sample::of(took, begun.elapsed(), processor_s)
    })
}

/// Runs an open loop at a steady rate, independent of the responses: request n is due at `n / rate`. Its time counts
/// from then, even if no connection was free to send it.
pub(crate) fn open(address: SocketAddr, connections: usize, requests: &Arc<Requests>, rate: f64) -> Sample {
    // Threads that sleep, because timers of a tokio runtime are no finer than a millisecond.
    let before = machine::processor_s(std::process::id());
    let begun = Instant::now() + Duration::from_millis(50);
    let asks = (0..connections).map(|_| {
        let requests = requests.clone();
        std::thread::spawn(move || ask_at_rate(address, &requests, begun, rate))
    });
    let asks: Vec<_> = asks.collect();
    let took = asks.into_iter().flat_map(|ask| ask.join().unwrap()).collect();
    let processor_s = machine::processor_s(std::process::id()) - before;
    Sample::of(took, begun.elapsed(), processor_s)
}

fn ask_at_rate(address: SocketAddr, requests: &Requests, begun: Instant, rate: f64) -> Vec<(u32, bool)> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut took, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
    while let Some((number, text)) = requests.take() {
        let due = begun + Duration::from_secs_f64(number as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        socket.write_all(text).unwrap();
        buffer.clear();
        let end = loop {
            if let Some(end) = answer_end(&buffer) {
                break end;
            }
            let mut chunk = [0_u8; 2048];
            let read = socket.read(&mut chunk).unwrap();
            assert!(read > 0, "the connection was closed");
            buffer.extend_from_slice(&chunk[..read]);
        };
        took.push((due.elapsed().as_micros() as u32, contains(&buffer[..end], &requests.needle)));
    }
    took
}

struct Line {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Line {
    async fn connect(address: SocketAddr) -> Line {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Line { socket, buffer: Vec::with_capacity(4096) }
    }

    async fn ask_until(mut self, requests: Arc<Requests>, until: Instant) -> Vec<(u32, bool)> {
        let mut took = Vec::with_capacity(4096);
        while let Some((_, text)) = requests.take() {
            let asked = Instant::now();
            if asked >= until {
                break;
            }
            self.socket.write_all(text).await.unwrap();
            let right = self.hear(&requests.needle).await;
            took.push((asked.elapsed().as_micros() as u32, right));
        }
        took
    }

    /// Reads one response and returns true if it is correct.
    async fn hear(&mut self, needle: &[u8]) -> bool {
        self.buffer.clear();
        loop {
            if let Some(end) = answer_end(&self.buffer) {
                return contains(&self.buffer[..end], needle);
            }
            let read = self.socket.read_buf(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the connection was closed");
        }
    }
}

/// Returns the end of the response at the start of `buffer`, once it is complete.
fn answer_end(buffer: &[u8]) -> Option<usize> {
    let head = find(buffer, b"\r\n\r\n")? + 4;
    let named = [&b"content-length: "[..], b"Content-Length: "];
    let length = named.into_iter().find_map(|name| find(&buffer[..head], name)).map_or(0, |at| {
        let digits = buffer[at + 16..head].iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
    });
    (buffer.len() >= head + length).then_some(head + length)
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    find(text, needle).is_some()
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}
