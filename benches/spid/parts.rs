//! Parts of the benchmark.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::load::{self, Requests, Sample};
use crate::report::{Figure, Report, Section};
use crate::servers::{self, Hook, Server};
use crate::{Plan, grow, machine, orders};

type Part = fn(&Plan, &mut Report);

/// The parts by name.
pub(crate) const ALL: [(&str, Part); 10] = [
    ("paths", paths),
    ("peers", peers),
    ("exec", exec),
    ("growth", growth),
    ("latency", latency),
    ("disk", disk),
    ("log", log),
    ("instructions", instructions),
    ("size", size),
    ("build", build),
];

const CONNECTIONS: [usize; 4] = [1, 8, 64, 256];

fn folder(plan: &Plan) -> tempfile::TempDir {
    tempfile::tempdir_in(&plan.cache).unwrap()
}

/// Returns new orders, enough for a round at a rate that no server reaches.
fn news(prefix: &str, round: Duration) -> Arc<Requests> {
    Requests::each(orders::creates(prefix, (round.as_secs_f64() * 25_000.0) as usize), r#""instanceId""#)
}

fn run(server: &Server, connections: usize, requests: &Arc<Requests>, length: Duration) -> Sample {
    let sample = load::closed(server.address, connections, requests, length);
    assert_eq!(sample.wrong, 0, "some responses were wrong");
    sample
}

/// Buys an order and returns the same request for its repeats.
fn bought(server: &Server, name: &str) -> Arc<Requests> {
    let once = Requests::each(vec![orders::create(name)], name);
    assert_eq!(load::closed(server.address, 1, &once, Duration::from_secs(30)).wrong, 0);
    Requests::same(orders::create(name), name)
}

/// Rates of the compared servers, round by round, by name.
struct Rounds<'a> {
    names: Vec<&'a str>,
    rates: Vec<Vec<f64>>,
    shares: Vec<f64>,
}

impl<'a> Rounds<'a> {
    fn new(names: &[&'a str]) -> Rounds<'a> {
        let rates = names.iter().map(|_| Vec::new()).collect();
        Rounds { names: names.to_vec(), rates, shares: vec![0.0; names.len()] }
    }

    fn add(&mut self, name: &str, sample: &Sample) {
        let index = self.names.iter().position(|known| *known == name).unwrap();
        self.rates[index].push(sample.rate);
        self.shares[index] = self.shares[index].max(sample.load_share);
    }

    fn rates(&self, name: &str) -> &[f64] {
        &self.rates[self.names.iter().position(|known| *known == name).unwrap()]
    }

    fn share(&self, name: &str) -> f64 {
        self.shares[self.names.iter().position(|known| *known == name).unwrap()]
    }

    /// Returns the ratio of `name` to `base`, round by round.
    fn ratio(&self, name: &str, base: &str) -> Figure {
        Figure::of(self.rates(name).iter().zip(self.rates(base)).map(|(one, other)| one / other).collect())
    }

    fn rate(&self, name: &str) -> f64 {
        Figure::of(self.rates(name).to_vec()).median
    }
}

/// Measures bare hyper, the floor and spid at each number of connections.
fn paths(plan: &Plan, report: &mut Report) {
    let (bare, null) = (servers::constant("hyper"), servers::constant("null"));
    let (home, floor_home) = (folder(plan), folder(plan));
    let spid = servers::spid(home.path(), Hook::Inside, &[]);
    let floor = servers::floor(floor_home.path());
    let repeat = bought(&spid, "bought-already");
    let floor_repeat = bought(&floor, "bought-already");
    let constant = Requests::same(orders::create("constant"), "instanceId");
    let forged = Requests::same(orders::forged("bought-already"), "403");
    let mut section = Section::new(
        "Against the floor",
        "The floor (`benches/spid/floor.rs`) does only what durability costs: it verifies, writes one row in a group commit, \
         writes \"done\" in a second one, and answers; a repeat is read by its primary key. Bare hyper answers a constant of \
         the same length. A *repeat* is a callback whose work is done. A *new order* is verified, committed, run through an \
         empty hook in the process, committed again, and answered with its final answer. Ratios are spid to the floor, and \
         for a wrong token spid to bare hyper. The load runs on the same cores.",
    );
    for connections in CONNECTIONS {
        let mut rounds = Rounds::new(&PATHS);
        for round in 0..=plan.rounds {
            let new = news(&format!("new-{connections}-{round}"), plan.round);
            let floor_new = news(&format!("new-{connections}-{round}"), plan.round);
            // Interleaved, so that a machine that slows down affects all servers alike.
            for (name, server, requests) in [
                ("bare socket", &null, &constant),
                ("bare hyper", &bare, &constant),
                ("repeat of the floor", &floor, &floor_repeat),
                ("repeat", &spid, &repeat),
                ("new order of the floor", &floor, &floor_new),
                ("new order", &spid, &new),
                ("wrong token", &spid, &forged),
            ] {
                let sample = run(server, connections, requests, plan.round);
                // The first round is a warm-up.
                if round > 0 {
                    rounds.add(name, &sample);
                }
            }
        }
        paths_rows(&mut section, connections, &rounds);
    }
    section.line("memory after this", format!("{:.1} MB", machine::memory_mb(spid.id())));
    report.sections.push(section);
}

/// Measured paths.
const PATHS: [&str; 7] = [
    "bare socket",
    "bare hyper",
    "repeat of the floor",
    "repeat",
    "new order of the floor",
    "new order",
    "wrong token",
];

fn paths_rows(section: &mut Section, connections: usize, rounds: &Rounds<'_>) {
    let at = format!("{connections} connections");
    let repeat = rounds.ratio("repeat", "repeat of the floor");
    let new = rounds.ratio("new order", "new order of the floor");
    if connections == 64 {
        section.at_least(format!("repeat, {at}"), repeat, 0.8);
        section.at_least(format!("new order, {at}"), new, 0.6);
    } else {
        section.line(format!("repeat, {at}"), repeat.shown(2));
        section.line(format!("new order, {at}"), new.shown(2));
    }
    section.line(format!("wrong token, {at}"), rounds.ratio("wrong token", "bare hyper").shown(2));
    let rates = PATHS.map(|name| format!("{:.0}", rounds.rate(name)));
    section.line(format!("responses per second, {at}: {}", PATHS.join(", ")), rates.join(", "));
    let shares = PATHS.map(|name| format!("{:.0} %", 100.0 * rounds.share(name)));
    section.line(
        format!("processor time of the load, at most, of one core, {at}: {}", PATHS.join(", ")),
        shares.join(", "),
    );
}

/// Measures the same number of orders from the first to the last answer, for spid and for other programs.
fn peers(plan: &Plan, report: &mut Report) {
    const CONNECTIONS: usize = 64;
    let count = if plan.rounds > 1 { 100_000 } else { 2_000 };
    let homes: [tempfile::TempDir; 4] = std::array::from_fn(|_| folder(plan));
    let [spid_home, floor_home, peer_home, webhook_home] = homes.each_ref().map(tempfile::TempDir::path);
    let created = |prefix: &str| Requests::each(orders::creates(prefix, count), "instanceId");
    let called = Requests::each(vec![orders::webhook(); count], "{}");
    let mut section = Section::new(
        "End to end",
        "The same number of new orders over 64 connections, each answered with its final answer. The floor is described \
         above. The peer (`benches/peer`) is a receiver as one would write it in an afternoon: axum, sqlx, SQLite, one \
         transaction an order, nothing after it. Debian's `webhook` runs `/bin/echo` and stores nothing; spid with a command \
         runs the same.",
    );
    let mut servers = vec![
        ("spid, hook in the process", Some(servers::spid(spid_home, Hook::Inside, &[])), created("inside")),
        ("the floor", Some(servers::floor(floor_home)), created("floor")),
        ("axum + sqlx", servers::peer(peer_home), created("peer")),
        ("webhook, a command", servers::webhook(webhook_home), called),
    ];
    let exec_home = folder(plan);
    let exec = servers::spid(exec_home.path(), Hook::Command, &[]);
    servers.push(("spid, a command", Some(exec), created("exec")));
    for (name, server, requests) in servers {
        let Some(server) = server else {
            eprintln!("skipped: {name} (install webhook, or let cargo fetch the crates of benches/peer)");
            continue;
        };
        let begun = Instant::now();
        let sample = run(&server, CONNECTIONS, &requests, Duration::from_secs(600));
        let took = begun.elapsed().as_secs_f64();
        let processor_us = machine::processor_s(server.id()) * 1e6 / count as f64;
        section.line(
            format!("{count} orders, {name}: seconds, µs of its processor time an order, p99, memory"),
            format!(
                "{took:.1} s, {processor_us:.0} µs, {:.1} ms, {:.1} MB",
                f64::from(sample.percentile_us(99.0)) / 1000.0,
                machine::memory_mb(server.id())
            ),
        );
    }
    report.sections.push(section);
}

/// Measures a command as the hook, compared with Debian's `webhook`, which runs commands and stores nothing.
fn exec(plan: &Plan, report: &mut Report) {
    let home = folder(plan);
    let Some(webhook) = servers::webhook(home.path()) else {
        eprintln!("skipped: install webhook");
        return;
    };
    let spid = servers::spid(home.path(), Hook::Command, &[]);
    let called = Requests::same(orders::webhook(), "{}");
    let mut section = Section::new(
        "A command as the hook",
        "`/bin/echo {}` for every new order, against Debian's `webhook` (adnanh/webhook), which runs the same and stores nothing.",
    );
    for connections in [8, 64] {
        let mut rounds = Rounds::new(&["webhook", "exec"]);
        for round in 0..=plan.rounds {
            let new = news(&format!("exec-{connections}-{round}"), plan.round);
            for (name, server, requests) in [("webhook", &webhook, &called), ("exec", &spid, &new)] {
                let sample = run(server, connections, requests, plan.round);
                if round > 0 {
                    rounds.add(name, &sample);
                }
            }
        }
        section.at_least(
            format!("new orders, {connections} connections"),
            rounds.ratio("exec", "webhook"),
            1.5,
        );
        section.line(
            format!("per second, {connections} connections: webhook, spid"),
            format!("{:.0}, {:.0}", rounds.rate("webhook"), rounds.rate("exec")),
        );
    }
    report.sections.push(section);
}

/// Measures start, memory, disk and rates on stores with different numbers of orders.
fn growth(plan: &Plan, report: &mut Report) {
    let sizes: Vec<usize> =
        [100, 10_000, 1_000_000].into_iter().filter(|size| *size <= plan.largest).collect();
    let mut section = Section::new(
        "With more instances",
        "The same daemon on stores with this number of finished orders; ratios are against the smallest.",
    );
    let homes: Vec<_> = sizes.iter().map(|size| grow::store(&plan.cache, *size)).collect();
    for (size, home) in sizes.iter().zip(&homes) {
        let begun = Instant::now();
        let server = servers::spid(home.path(), Hook::Inside, &[]);
        let ready_ms = begun.elapsed().as_secs_f64() * 1000.0;
        section.at_most(format!("start to ready, {size} orders"), ready_ms, 100.0, "ms");
        let goal = if *size >= 1_000_000 { 40.0 } else { 12.0 };
        section.at_most(format!("memory idle, {size} orders"), machine::memory_mb(server.id()), goal, "MB");
        let own = format!("{:.1} MB", machine::own_memory_mb(server.id()));
        section.line("anonymous memory (the rest is the binary)", own);
        let bytes = std::fs::metadata(home.path().join("spid.db")).unwrap().len() as f64;
        if *size >= 10_000 {
            section.at_most(
                format!("on disk for an order, {size} orders"),
                bytes / *size as f64 / 1000.0,
                1.5,
                "KB",
            );
        }
    }
    growth_rates(plan, &sizes, &homes, &mut section);
    report.sections.push(section);
}

fn growth_rates(plan: &Plan, sizes: &[usize], homes: &[tempfile::TempDir], section: &mut Section) {
    let daemons: Vec<Server> =
        homes.iter().map(|home| servers::spid(home.path(), Hook::Inside, &[])).collect();
    let names: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut repeats, mut news_made) = (Rounds::new(&names), Rounds::new(&names));
    for round in 0..=plan.rounds {
        for ((size, name), daemon) in sizes.iter().zip(&names).zip(&daemons) {
            // Repeats of orders from all over the store: repeats of one order would stay in every cache.
            let texts = (0..5_000_usize).map(|n| orders::create(&format!("full-{:07}", n * 7_919 % size)));
            let old = Requests::cycle(texts.collect(), "full-");
            let new = news(&format!("grown-{round}"), plan.round);
            let (repeat, fresh) = (run(daemon, 64, &old, plan.round), run(daemon, 64, &new, plan.round));
            if round > 0 {
                repeats.add(name, &repeat);
                news_made.add(name, &fresh);
            }
        }
    }
    for name in &names[1..] {
        section.at_least(
            format!("repeats, {name} orders against {}", names[0]),
            repeats.ratio(name, names[0]),
            0.8,
        );
        section.at_least(
            format!("new orders, {name} orders against {}", names[0]),
            news_made.ratio(name, names[0]),
            0.8,
        );
    }
    for (name, daemon) in names.iter().zip(&daemons) {
        section.line(
            format!("memory after load, {name} orders"),
            format!("{:.1} MB", machine::memory_mb(daemon.id())),
        );
    }
}

/// Measures latency in an open loop: orders arrive at a fixed rate, independent of the responses.
fn latency(plan: &Plan, report: &mut Report) {
    let mut section = Section::new(
        "Latency",
        "1,000 new orders a second arrive on schedule, even if earlier ones have no answer yet; each time counts from the \
         scheduled moment.",
    );
    let count = if plan.rounds > 1 { 20_000 } else { 2_000 };
    let home = folder(plan);
    let spid = servers::spid(home.path(), Hook::Inside, &[]);
    let warm = Requests::each(orders::creates("warm", 500), "instanceId");
    load::open(spid.address, 64, &warm, 500.0);
    let requests = Requests::each(orders::creates("open", count), "instanceId");
    let sample = load::open(spid.address, 64, &requests, 1_000.0);
    for percent in [50.0, 99.0, 99.9] {
        let found = f64::from(sample.percentile_us(percent)) / 1000.0;
        section.line(format!("p{percent} of {count} orders"), format!("{found:.2} ms"));
    }
    let commits = 2.0 * machine::sync_ms(home.path());
    section.line("of which two durable writes, without other writers", format!("{commits:.2} ms"));
    report.sections.push(section);
}

/// Counts instructions, which do not depend on the load of the machine. valgrind counts them, and the difference of a
/// short and a long run leaves out the start.
fn instructions(plan: &Plan, report: &mut Report) {
    const SHORT: usize = 200;
    const LONG: usize = 1_200;
    let mut section = Section::new(
        "Instructions",
        "Instructions of the daemon for one request, without the kernel. There is one connection, so each order has its own \
         commit. Counted by valgrind's callgrind.",
    );
    type Make = fn(usize) -> Vec<Vec<u8>>;
    let kinds: [(&str, Make); 3] = [
        ("a repeat", |count| vec![orders::create("bought-already"); count]),
        ("a new order, to its final answer", |count| orders::creates("counted", count)),
        ("a wrong token", |count| vec![orders::forged("bought-already"); count]),
    ];
    for (name, make) in kinds {
        let executed = |count: usize| {
            let home = folder(plan);
            let daemon = servers::counted(home.path())?;
            bought(daemon.server(), "bought-already");
            let requests = Requests::each(make(count), " ");
            load::closed(daemon.server().address, 1, &requests, Duration::from_secs(120));
            daemon.executed()
        };
        let (Some(short), Some(long)) = (executed(SHORT), executed(LONG)) else {
            eprintln!("skipped: install valgrind");
            return;
        };
        section.line(name, format!("{:.0} thousand", (long - short) / (LONG - SHORT) as f64 / 1000.0));
    }
    report.sections.push(section);
}

/// Measures the time of a build from scratch.
fn build(plan: &Plan, report: &mut Report) {
    let target = folder(plan);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).arg("--target-dir").arg(target.path());
    let begun = Instant::now();
    assert!(command.status().unwrap().success());
    let mut section =
        Section::new("Build", "`cargo build --release` of everything, with all crates already downloaded.");
    section.line("takes", format!("{:.0} s", begun.elapsed().as_secs_f64()));
    report.sections.push(section);
}

/// Measures a disk that takes 10 ms for a sync. The rate must depend on syncs per batch, not per order.
fn disk(plan: &Plan, report: &mut Report) {
    let Some(library) = servers::faultfs() else {
        eprintln!("skipped: install a C linker (build-essential)");
        return;
    };
    let mut section = Section::new(
        "On a slow disk",
        "New orders on a disk that needs 10 ms for a sync, compared with a disk that needs none. The preload library of the \
         fault tests adds the wait and makes no real sync. An order takes two commits, so with separate syncs for each \
         order the rate would be at most 50 a second.",
    );
    let (fast_home, slow_home) = (folder(plan), folder(plan));
    let fast = servers::spid(fast_home.path(), Hook::Inside, &library.environment(fast_home.path(), 0));
    let slow = servers::spid(slow_home.path(), Hook::Inside, &library.environment(slow_home.path(), 10));
    for connections in [1, 64, 256] {
        let mut rounds = Rounds::new(&["fast", "slow"]);
        for round in 0..=plan.rounds.min(3) {
            for (name, server) in [("fast", &fast), ("slow", &slow)] {
                let new = news(&format!("disk-{connections}-{round}"), plan.round);
                let sample = run(server, connections, &new, plan.round);
                if round > 0 {
                    rounds.add(name, &sample);
                }
            }
        }
        let (fast, slow) = (rounds.rate("fast"), rounds.rate("slow"));
        section.line(
            format!("orders a second, {connections} connections: a sync of 0 ms, of 10 ms"),
            format!("{fast:.0}, {slow:.0}"),
        );
    }
    report.sections.push(section);
}

/// Measures the write-ahead log under sustained load, and the stalls that checkpoints cause.
fn log(plan: &Plan, report: &mut Report) {
    let mut section = Section::new(
        "Under sustained load",
        "New orders over 64 connections without a pause; checkpoints truncate the write-ahead log during the run.",
    );
    let home = folder(plan);
    let spid = servers::spid(home.path(), Hook::Inside, &[]);
    let length = if plan.rounds > 1 { Duration::from_secs(20) } else { Duration::from_secs(2) };
    let requests = news("sustained", length.min(Duration::from_secs(20)));
    let largest = watch_log(home.path(), || run(&spid, 64, &requests, length));
    let (sample, largest) = largest;
    section.line("orders a second", format!("{:.0}", sample.rate));
    for percent in [50.0, 99.0, 99.9, 100.0] {
        let found = f64::from(sample.percentile_us(percent)) / 1000.0;
        section.line(format!("p{percent}"), format!("{found:.1} ms"));
    }
    section.line("largest write-ahead log seen", format!("{:.1} MB", largest as f64 / 1e6));
    report.sections.push(section);
}

fn watch_log(home: &Path, measured: impl FnOnce() -> Sample) -> (Sample, u64) {
    let path = home.join("spid.db-wal");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut largest = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                largest = largest.max(std::fs::metadata(&path).map_or(0, |file| file.len()));
                std::thread::sleep(Duration::from_millis(20));
            }
            largest
        }
    });
    let sample = measured();
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    (sample, watcher.join().unwrap())
}

/// Measures the size of the binary.
fn size(_plan: &Plan, report: &mut Report) {
    let mut section = Section::new("Size", "The release binary from `cargo build --release`.");
    let bytes = std::fs::metadata(env!("CARGO_BIN_EXE_spid")).unwrap().len();
    section.line("binary", format!("{:.1} MB", bytes as f64 / 1e6));
    let lock = include_str!("../../Cargo.lock");
    section.line(
        "packages in the lock file, those for tests included",
        lock.matches("[[package]]").count().to_string(),
    );
    report.sections.push(section);
}

/// Runs one load for 10 seconds against a daemon and prints the daemon's process id, for a profiler.
pub(crate) fn drive(plan: &Plan, kind: &str) {
    let home = folder(plan);
    let spid = servers::spid(home.path(), Hook::Inside, &[]);
    let length = Duration::from_secs(10);
    let requests = match kind {
        "new" => news("driven", length),
        "wrong" => Requests::same(orders::forged("bought-already"), "403"),
        _ => bought(&spid, "bought-already"),
    };
    println!("{}", spid.id());
    let before = machine::processor_s(spid.id());
    let sample = run(&spid, 64, &requests, length);
    let spent = machine::processor_s(spid.id()) - before;
    let answers = sample.took_us.len() as f64;
    println!("{:.0} a second, {:.1} µs of processor time each", sample.rate, spent * 1e6 / answers);
}
