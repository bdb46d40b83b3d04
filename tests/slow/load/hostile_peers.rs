//! Hostile and broken peers: raw bytes against the real daemon.
//!
//! For every peer three things must hold: a valid caller is served, an unsigned request causes no write, and the
//! memory that a peer can use in the daemon is limited.
//!
//! The flood has some ten thousand requests; `SPID_FLOOD=1000000` sets their number.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that panics has said what it found"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::daemon::{
    Answer, Daemon, Home, KEY, Line, QUICK, about, create, exchange, get, get_text, post_text, until,
};
use rustix::process::{Resource, getrlimit};
use spid::internals::observe::limits;

fn bench() -> (Home, Daemon) {
    let home = Home::with_log_hook();
    let daemon = home.start();
    (home, daemon)
}

/// Buys an instance, as without any attack.
fn sell(address: SocketAddr, name: &str) {
    let answer = get(address, &create(name).signed()).unwrap_or_else(|| panic!("{name} was not answered"));
    assert_eq!(answer.id(), name, "the log hook keeps the marketplace's id");
}

fn connect(daemon: &Daemon) -> TcpStream {
    daemon.connect()
}

/// Reads everything until the daemon closes. A reset counts as an end.
fn heard(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("it never closed the connection; it said {:?}", String::from_utf8_lossy(&said))
            }
            Err(_) => break,
        }
    }
    String::from_utf8(said).unwrap()
}

/// Sends these bytes and reads the response. With `waits` the peer keeps its own side open meanwhile.
fn say(daemon: &Daemon, bytes: &[u8], waits: bool) -> String {
    let mut stream = connect(daemon);
    // The daemon may stop reading half way. Then its response counts.
    let _ = stream.write_all(bytes);
    if !waits {
        let _ = stream.shutdown(Shutdown::Write);
    }
    heard(stream)
}

/// Sends the beginning, and then single bytes until the daemon closes.
fn dribble(mut stream: TcpStream, beginning: &str, drop: u8) -> String {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    let mut gone = stream.write_all(beginning.as_bytes()).is_err();
    until("the daemon closes a connection that only dribbles", || {
        match stream.read(&mut buffer) {
            Ok(0) => gone = true,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => gone = true,
        }
        gone = gone || stream.write_all(&[drop]).is_err();
        gone.then_some(())
    });
    String::from_utf8(said).unwrap()
}

/// Statuses of the answers. An answer can begin directly after the body of the one before it.
fn statuses(said: &str) -> Vec<u16> {
    said.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
}

// Slow and endless requests.

#[test]
fn who_dribbles_is_cut_off_and_keeps_nobody_waiting() {
    let (home, daemon) = bench();
    let address = daemon.address;
    let form = "POST /spi HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    let slow = [
        ("", b'G'),
        ("GET /spi?action=", b'x'),
        ("GET /spi HTTP/1.1\r\nhost: a\r\nx: ", b'y'),
        (&format!("{form}content-length: 60000\r\n\r\naction="), b'z'),
        (&format!("{form}transfer-encoding: chunked\r\n\r\nEA60\r\naction="), b'z'),
    ];
    let said: Vec<String> = std::thread::scope(|scope| {
        let peers: Vec<_> = slow
            .iter()
            .map(|(beginning, drop)| {
                let stream = connect(&daemon);
                scope.spawn(move || dribble(stream, beginning, *drop))
            })
            .collect();
        for number in 0..20 {
            sell(address, &format!("ob-beside-{number}"));
        }
        peers.into_iter().map(|peer| peer.join().unwrap()).collect()
    });
    let (late_heads, late_bodies) = said.split_at(3);
    for late_head in late_heads {
        assert_eq!(statuses(late_head), [0_u16; 0], "{late_head:?}");
    }
    for late_body in late_bodies {
        assert_eq!(statuses(late_body), [408], "{late_body:?}");
    }
    sell(address, "ob-after");
    assert_eq!(home.list(&["instances", "list"]).len(), 21);
}

#[test]
fn what_has_no_end_is_refused_before_it_ends() {
    let (home, daemon) = bench();
    let mut endless = connect(&daemon);
    endless.write_all(b"GET /spi HTTP/1.1\r\nhost: a\r\n").unwrap();
    let mut written = 0;
    // Sockets buffer some megabytes. If a peer can write more, the daemon reads.
    while written < 64 * 1024 * 1024 && endless.write_all(&[b'x'; 4096]).is_ok() {
        written += 4096;
    }
    assert!(written < 64 * 1024 * 1024, "the daemon reads headers without an end");
    let long = |bytes: usize| format!("GET /spi?{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(bytes));
    let fields: String = (0..=limits::HEADERS_MAX_COUNT).map(|n| format!("x-{n}: y\r\n")).collect();
    let body = limits::BODY_MAX_BYTES + 1;
    let post = "POST /spi HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    for (bytes, status) in [
        (long(limits::URI_MAX_BYTES + 1), 414),
        (long(limits::HEADERS_MAX_BYTES + 1), 431),
        (format!("GET /spi HTTP/1.1\r\nhost: a\r\n{fields}\r\n"), 431),
        (
            format!("GET /spi HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(limits::HEADERS_MAX_BYTES)),
            431,
        ),
        (format!("{post}content-length: {body}\r\n\r\n{}", "z".repeat(body)), 413),
        (format!("{post}content-length: {}\r\n\r\nz", i64::MAX), 413),
        (format!("{post}content-length: {}\r\n\r\nz", u64::MAX), 431),
        (
            format!("{post}transfer-encoding: chunked\r\n\r\n{body:x}\r\n{}\r\n0\r\n\r\n", "z".repeat(body)),
            413,
        ),
    ] {
        let said = say(&daemon, bytes.as_bytes(), true);
        assert_eq!(statuses(&said), [status], "{:.80}: {said:?}", bytes);
    }
    sell(daemon.address, "ob-after");
    assert_eq!(home.list(&["callbacks", "list"]).len(), 1);
}

// Framing.

#[test]
fn nonsense_is_answered_with_an_error_or_not_at_all() {
    let (home, daemon) = bench();
    let signed = create("ob-smuggled").signed();
    let form = |framing: &str, body: &str| {
        format!(
            "POST /spi HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n{framing}\r\n\r\n{body}"
        )
    };
    let inner = get_text("/spi", &signed);
    let chunked = "transfer-encoding: chunked";
    let mut nonsense = vec![
        "\r\n\r\n\r\n".to_owned(),
        "\0\0\0\0".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /spi HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /spi?{signed} HTTP/1.1\nhost : a\n\n"),
        "CONNECT spi.example:443 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("GET /spi?{signed} HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx"),
    ];
    for (framing, body) in [
        (chunked, "xyz\r\n"),
        (chunked, "-1\r\n\r\n"),
        (chunked, "fffffffffffffffff\r\nx"),
        (chunked, "5\r\nabc"),
        (chunked, "3\r\nabcX\r\n0\r\n\r\n"),
        (chunked, "3;\r\nabc"),
        ("transfer-encoding: gzip, chunked, gzip", "0\r\n\r\n"),
        ("transfer-encoding: gzip, chunked", "0\r\n\r\n"),
        ("transfer-encoding: chunked, identity", "0\r\n\r\n"),
        ("content-length: -1", ""),
        ("content-length: 5x", "abcde"),
        ("content-length: 1\r\ncontent-length: 2", "ab"),
        ("content-length: 1, 2", "ab"),
    ] {
        nonsense.push(form(framing, body));
        nonsense.push(form(framing, &format!("{body}{inner}")));
    }
    for bytes in &nonsense {
        let said = say(&daemon, bytes.as_bytes(), false);
        let errors = statuses(&said).iter().all(|status| *status >= 400);
        assert!(errors && statuses(&said).len() <= 1, "{bytes:?}: {said:?}");
    }
    sell(daemon.address, "ob-after");
    assert_eq!(home.list(&["callbacks", "list"]).len(), 1, "nothing was smuggled in");
}

/// Two lengths: a proxy and a daemon that use different ones would read different requests from one connection.
#[test]
fn a_request_with_two_lengths_is_the_last_one_on_its_connection() {
    let (home, daemon) = bench();
    let inner = get_text("/spi", &create("ob-smuggled").signed());
    let both = format!(
        "POST /spi HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
    );
    let said = say(&daemon, both.as_bytes(), false);
    assert!(statuses(&said).len() <= 1, "what stands behind it was answered: {said:?}");
    sell(daemon.address, "ob-after");
    assert_eq!(home.list(&["callbacks", "list"]).len(), 1, "nothing was smuggled in");
}

#[test]
fn who_sends_many_at_once_is_answered_in_order() {
    let (home, daemon) = bench();
    let names: Vec<String> = (0..50).map(|number| format!("ob-{number}")).collect();
    let mut bytes: String = names.iter().map(|name| get_text("/spi", &create(name).signed())).collect();
    bytes.push_str("NONSENSE\r\n\r\n");
    let said = say(&daemon, bytes.as_bytes(), true);
    let mut at = 0;
    for name in &names {
        let told = format!("\"instanceId\":\"{name}\"");
        at += said[at..].find(&told).unwrap_or_else(|| panic!("{name} is not in its place"));
    }
    assert_eq!(statuses(&said), [vec![200; names.len()], vec![400]].concat());
    assert_eq!(home.list(&["instances", "list"]).len(), names.len());
}

#[test]
fn who_hangs_up_after_sending_has_sent() {
    let (home, daemon) = bench();
    for number in 0..20 {
        let mut stream = connect(&daemon);
        let request = create(&format!("ob-{number}")).signed();
        let text = if number % 2 == 0 { get_text("/spi", &request) } else { post_text("/spi", &request) };
        stream.write_all(text.as_bytes()).unwrap();
        drop(stream);
    }
    until("all of them are there", || (home.list(&["instances", "list"]).len() == 20).then_some(()));
    sell(daemon.address, "ob-after");
}

// Too many connections.

/// As many connections as this process may hold. The daemon has the same limit.
fn horde_size() -> usize {
    const WANTED: u64 = 10_000;
    const OTHERS: u64 = 512;
    let may = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(may.saturating_sub(OTHERS).min(WANTED)).unwrap()
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

#[test]
fn ten_thousand_who_hold_the_line_keep_nobody_out() {
    let (home, daemon) = bench();
    let wanted = horde_size();
    assert!(wanted > limits::CONNECTIONS_MAX_COUNT, "{wanted} descriptors are too few to try");
    let mut horde = Vec::with_capacity(wanted);
    for number in 0..wanted {
        let mut stream = connect(&daemon);
        let beginning: &[u8] = if number % 2 == 0 { b"" } else { b"GET /spi?action=" };
        let _ = stream.write_all(beginning);
        horde.push(stream);
        if number % 1_000 == 999 {
            sell(daemon.address, &format!("ob-among-{number}"));
        } else if number % 64 == 0 {
            // A client that is served now was accepted after all of them, so the system's queue never overflows.
            assert_eq!(exchange(daemon.address, &get_text("/nowhere", "")).unwrap().status, 404);
        }
    }
    for number in 0..20 {
        sell(daemon.address, &format!("ob-beside-{number}"));
    }
    let held = descriptors(&daemon);
    assert!(held <= limits::CONNECTIONS_MAX_COUNT + 64, "{held} descriptors for {wanted} connections");
    drop(horde);
    sell(daemon.address, "ob-after");
    let sold = wanted / 1_000 + 21;
    assert_eq!(home.list(&["instances", "list"]).len(), sold);
}

// The flood.

/// Current memory of a process, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A forged request. Each is different.
fn forged(number: u64) -> String {
    let wanted = create(&format!("ob-forged-{number}")).with("aliUid", &number.to_string());
    let token = wanted.token_with("fake-guess");
    match number % 8 {
        0..=4 => get_text("/spi", &format!("{}&token={token}", wanted.encoded())),
        5 => post_text("/spi", &format!("{}&token={token}", wanted.encoded())),
        6 => get_text("/spi", &wanted.encoded()),
        _ => get_text("/spi", &format!("{}&x=%zz&token={token}", wanted.encoded())),
    }
}

/// Sends these forged requests, some at once on each of a few connections.
fn flood(address: SocketAddr, from: u64, count: u64) {
    const PEERS: u64 = 4;
    const AT_ONCE: u64 = 25;
    std::thread::scope(|scope| {
        for peer in 0..PEERS {
            scope.spawn(move || {
                let mut line = Line::open(address).unwrap();
                let own = (from..from + count).filter(|number| number / AT_ONCE % PEERS == peer);
                let own: Vec<u64> = own.collect();
                for batch in own.chunks(usize::try_from(AT_ONCE).unwrap()) {
                    let text: String = batch.iter().map(|number| forged(*number)).collect();
                    let first = line.exchange(&text);
                    let rest = batch[1..].iter().map(|_| line.answer());
                    for answer in std::iter::once(first).collect::<Vec<_>>().into_iter().chain(rest) {
                        let Answer { status, body } = answer.unwrap();
                        assert!(matches!(status, 400 | 403), "{status}: {body}");
                    }
                }
            });
        }
    });
}

#[test]
fn a_flood_of_forgeries_leaves_no_trace() {
    const WARM_UP: u64 = 5_000;
    let wanted: u64 = std::env::var("SPID_FLOOD").map_or(20_000, |text| text.parse().unwrap());
    let (home, daemon) = bench();
    sell(daemon.address, "ob-before");
    home.wait_until_idle();
    let (files, rows) = (home.database_files(), home.row_counts());
    flood(daemon.address, 0, WARM_UP);
    let before = memory(&daemon);
    let begun = std::time::Instant::now();
    flood(daemon.address, WARM_UP, wanted);
    let (took, after) = (begun.elapsed(), memory(&daemon));
    assert!(home.database_files() == files, "a forgery changed the database's files");
    assert_eq!(home.row_counts(), rows);
    let lines = daemon.log().lines().filter(|line| line.contains("denied: ")).count();
    eprintln!(
        "{wanted} forgeries in {took:.1?}: memory {before} bytes before and {after} after, {lines} lines of log"
    );
    assert!(after <= before + before / 5, "memory grew from {before} to {after} bytes");
    assert!(lines as u64 <= wanted / 10, "{lines} lines of log for {wanted} forgeries");
    sell(daemon.address, "ob-after");
}

// The view of the operator.

fn with_admin(home: &Home) {
    let file = home.path("spid.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    home.configure(&text.replace("[server]", "[server]\nadmin_listen = \"127.0.0.1:0\""));
}

fn admin_address(daemon: &Daemon) -> SocketAddr {
    let ready = daemon.wait_for_log("admin=");
    let (_, rest) = ready.split_once("admin=").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn ask(admin: SocketAddr, host: &str, target: &str) -> Answer {
    exchange(admin, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).unwrap()
}

#[test]
fn a_refusal_is_explained_to_whoever_sits_at_this_machine_and_to_nobody_else() {
    let home = Home::with_log_hook();
    with_admin(&home);
    let daemon = home.start();
    let admin = admin_address(&daemon);
    let request = create("ob-1").with("expiredOn", "2030-01-01 00:00:00");
    let mistaken = request.clone().with("expiredOn", "2030-01-01+00%3A00%3A00");
    let answer = daemon.get(&format!("{}&token={}", request.encoded(), mistaken.token()));
    assert_eq!(answer.status, 403);
    assert!(!answer.body.contains("encoded"), "the caller learns nothing: {answer:?}");
    assert_eq!(daemon.get("a=%zz").status, 400);

    let page = ask(admin, "localhost:8081", "/v1/refusals").json();
    let refusals = page["refusals"].as_array().unwrap();
    let reasons: Vec<&str> = refusals.iter().map(|it| it["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["bad-encoding", "wrong-signature"], "the newest first");
    let wrong = &refusals[1];
    assert!(wrong["explanation"].as_str().unwrap().contains("as they are encoded in the URL"), "{wrong}");
    let base = wrong["base"].as_str().unwrap();
    assert!(base.contains("expiredOn=2030-01-01 00:00:00") && base.ends_with("&key=<key>"), "{base}");
    assert!(!page.to_string().contains(KEY) && !page.to_string().contains(&mistaken.token()));
    assert_eq!((&wrong["endpoint"], &wrong["method"]), (&"alibaba-cn".into(), &"GET".into()));

    let page = ask(admin, "127.0.0.1", "/v1/refusals?limit=1").json();
    assert_eq!(page["refusals"].as_array().unwrap().len(), 1);
    assert_eq!(ask(admin, "localhost", "/v1/refusals?limit=few").status, 400);
    assert_eq!(ask(admin, "rebound.example", "/v1/refusals").status, 403);
    assert_eq!(ask(admin, "rebound.example", "/livez").status, 200);
    assert!(!daemon.log().contains("expiredOn=2030"), "no value stands in the log");
}

#[test]
fn two_hundred_who_are_silent_keep_no_order_out_where_few_files_may_be_open() {
    let home = Home::with_hook(QUICK);
    with_admin(&home);
    let daemon = home.start_with_open_files(64);
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(&daemon)).collect();
    for name in ["ob-1", "ob-2", "ob-3"] {
        assert!(get(daemon.address, &create(name).signed()).unwrap().id().starts_with("i-"), "{name}");
    }
    let admin = admin_address(&daemon);
    let silent_there: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(admin).unwrap()).collect();
    assert_eq!(ask(admin, "localhost", "/readyz").status, 200);
    assert_eq!(home.begun("create").len(), 3);
    let log = daemon.log();
    assert!(!log.contains("cannot accept"), "{log}");
    assert_eq!((silent.len(), silent_there.len()), (200, 50));
}

/// Number of store operations so far.
fn operations(admin: SocketAddr) -> u64 {
    let page = ask(admin, "localhost", "/metrics").body;
    let sum = page.lines().find_map(|line| line.strip_prefix("spid_commit_operations_sum ")).unwrap();
    sum.parse::<f64>().unwrap() as u64
}

/// The link of a sign-on is in the history of a browser. A finder can call it any number of times.
#[test]
fn a_genuine_link_that_is_called_again_and_again_costs_next_to_nothing() {
    let redirects = r#"case $SPID_ACTION in
  sign-on) printf '{"redirect":"https://app.example/in"}' ;;
  *) printf '{"instance_id":"%s"}' "$(fake_id)" ;;
esac"#;
    let home = Home::with_hook(redirects);
    with_admin(&home);
    let daemon = home.start();
    let admin = admin_address(&daemon);
    let id = daemon.deliver(&create("ob-1")).id();
    let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(8));
    let now = spid_hook::time::Clock::System.now().to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string();
    let link = |id: &str, at: &str| about("verify", id).with("timeStamp", at).signed();
    let links = [
        ("stale", link(&id, "2026-01-01 08:00:00")),
        ("of an unknown instance", link("no-such-instance", &now)),
        ("used", link(&id, &now)),
    ];
    const CALLS: u64 = 2_000;
    for (what, link) in &links {
        let first = daemon.get(link).status;
        assert_eq!(first, if *what == "used" { 302 } else { 403 }, "{what}");
        let (written, logged) = (operations(admin), daemon.log().lines().count());
        let mut line = Line::open(daemon.address).unwrap();
        for _ in 0..CALLS {
            assert_eq!(line.exchange(&get_text("/spi", link)).unwrap().status, 403, "{what}");
        }
        let written = operations(admin) - written;
        assert!(written < CALLS / 4, "{what}: {written} operations");
        let logged = daemon.log().lines().count() - logged;
        assert!(logged < 500, "{what}: {logged} lines");
    }
    let about_a_budget = daemon.log().lines().filter(|line| line.contains("tries")).count();
    assert_eq!(about_a_budget, 0, "a browser has no tries to spend");
    assert_eq!(home.begun("sign-on").len(), 1);
    daemon.stop();
    // Each of them is counted.
    let told: Vec<u64> = home
        .list(&["callbacks", "list"])
        .iter()
        .filter(|callback| callback["action"] == "sign-on")
        .map(|callback| callback["deliveries"].as_u64().unwrap())
        .collect();
    assert_eq!(told, [CALLS + 1; 3]);
}
