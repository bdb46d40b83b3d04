//! The crash sweep: the real daemon with real sockets and real SQLite, killed again and again at random and at chosen
//! moments, while a marketplace calls until it gets success.
//!
//! `cargo test` does a few dozen kills. For thousands of kills:
//!
//! ```text
//! cargo test --test crash_sweep -- --kills 1000 [--seed S] [--keep]
//! ```
//!
//! After every kill the sweep compares the database (read only) and the journal of the hook with the answers. Every
//! success in an answer is stored and true. Every instance has one owner and one id. Hooks ran in order, each
//! callback with one key and each key with one callback. Leftover processes of a dead daemon are dead before the next
//! attempt. At the end everything is delivered until it succeeds, and every job is done.
//!
//! `kill -9` loses no data that the kernel has, so the sweep does not test `fsync` or power failures.
//!
//! The hook is this program, with `--hook`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the driver of other processes: it waits, prints, and panics when it has found something"
)]

mod books;
mod hook;
mod market;
#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::books::Books;
use crate::market::{ENDPOINTS, KEY, Market, client};
use crate::support::faultfs;
use crate::support::random::Random;
use crate::support::serving::Serving;

const NAME: &str = "crash_sweep";
/// Number of kills in an ordinary test run.
const KILLS: u64 = 60;
const CLIENTS: u64 = 8;
/// Time until everything must end well without kills. A job that is dead after too many kills is tried again 30 s
/// after its last attempt.
const HEAL_WITHIN: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--hook") => hook::main(Path::new(&arguments[1])),
        Some("--kill") => hook::killer(&arguments[1..]),
        _ => test(&arguments),
    }
}

/// Options of the command line: our own, among those of a test runner.
struct Plan {
    kills: u64,
    seed: u64,
    keep: bool,
}

fn test(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    let mut plan = Plan { kills: KILLS, seed: now_in_micros(), keep: false };
    let mut chosen = true;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).expect("a number is missing");
        match word.as_str() {
            "--kills" => plan.kills = number(),
            "--seed" => plan.seed = number(),
            "--keep" => plan.keep = true,
            "--test-threads" | "--format" | "--color" | "--skip" => drop(words.next()),
            filter if !filter.starts_with('-') => chosen = NAME.contains(filter),
            _ => {}
        }
    }
    println!("\nrunning {} test", u8::from(chosen));
    let passed = !chosen || sweep(&plan);
    let (word, passes, failures) = if passed { ("ok", u8::from(chosen), 0) } else { ("FAILED", 0, 1) };
    println!(
        "test result: {word}. {passes} passed; {failures} failed; 0 ignored; 0 measured; {} filtered out",
        u8::from(!chosen)
    );
    println!("{passes} passed, {failures} failed");
    ExitCode::from(failures)
}

fn now_in_micros() -> u64 {
    spid_hook::time::Clock::System.now().as_microsecond().unsigned_abs()
}

/// A folder for everything. It is deleted unless there is a finding.
fn prepare() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("spid-crash-sweep-").tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("provisioned")).unwrap();
    fs::write(at("key"), KEY).unwrap();
    let mut text = format!("server.reply_within = \"200ms\"\nstore.path = {:?}\n", at("spid.db"));
    for (account, dialect) in ENDPOINTS {
        text.push_str(&format!(
            "[[endpoint]]\nname = \"{account}\"\naccount = \"{account}\"\nshared_key = true\npath = \"/{account}\"\ndialect = \"{dialect}\"\n\
             timezone = \"UTC\"\nkeys = [{{ file = {:?} }}]\n",
            at("key")
        ));
    }
    let program = std::env::current_exe().unwrap();
    text.push_str(&format!(
        "[[hook]]\nname = \"provision\"\nexec = {{ command = [{program:?}, \"--hook\", {:?}] }}\n",
        folder.path()
    ));
    fs::write(at("spid.toml"), text).unwrap();
    folder
}

fn sweep(plan: &Plan) -> bool {
    let folder = prepare();
    let market = Market::new(plan.seed, CLIENTS);
    let mut driver = Driver {
        folder: folder.path().to_owned(),
        market: &market,
        random: Random::new(plan.seed),
        books: Books::new(folder.path()),
        kills: 0,
        faults: build_faults(),
    };
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn({
                let market = &market;
                move || client(market, number)
            });
        }
        driver.kill_until(plan.kills);
        driver.heal();
    });
    driver.finish(plan);
    let passed = market.violations() == 0;
    if !passed || plan.keep {
        println!("everything is kept in {}", folder.keep().display());
    }
    passed
}

/// The preload library. Without it the sweep kills at random moments instead of at a system call.
fn build_faults() -> Option<PathBuf> {
    faultfs::build()
        .inspect_err(|why| {
            println!("nothing is killed at calls to the system: tests/faultfs cannot be built: {why}")
        })
        .ok()
}

/// Moment of a kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// During the start, perhaps before it listens.
    Starting,
    /// After some time.
    Sometime,
    /// Directly after a request was sent.
    Sent,
    /// After a stop was requested.
    Stopping,
    /// By its own hook.
    Hook,
    /// At a system call: between the request and its commit, within the commit, or between the commit and the answer.
    Call,
}

const MOMENTS: [Moment; 13] = [
    Moment::Starting,
    Moment::Sometime,
    Moment::Sometime,
    Moment::Sent,
    Moment::Sent,
    Moment::Sent,
    Moment::Stopping,
    Moment::Hook,
    Moment::Hook,
    Moment::Hook,
    Moment::Call,
    Moment::Call,
    Moment::Call,
];

struct Driver<'a> {
    folder: PathBuf,
    market: &'a Market,
    random: Random,
    books: Books,
    kills: u64,
    /// The library that kills at system calls, if it could be built.
    faults: Option<PathBuf>,
}

impl Driver<'_> {
    fn kill_until(&mut self, kills: u64) {
        let begin = Instant::now();
        while self.kills < kills && self.market.violations() < 20 {
            self.start_and_kill();
            self.books.check(self.market);
            if self.kills.is_multiple_of(100) && self.kills > 0 {
                let tally = &self.books.tally;
                eprintln!("{} kills in {:.0?}: {tally:?}", self.kills, begin.elapsed());
            }
        }
    }

    fn start_and_kill(&mut self) {
        let _ = fs::remove_file(self.folder.join("order"));
        let moment = self.random.one_of(&MOMENTS);
        let environment = self.faults_at(moment);
        let mut daemon = Serving::start(&self.folder, &environment);
        if let Moment::Starting = moment {
            self.pause_micros(30_000);
            daemon.kill();
        }
        self.market.daemon_is_at(daemon.address());
        match moment {
            Moment::Starting => {}
            Moment::Sometime => self.pause_micros(90_000),
            Moment::Sent => self.wait_for_a_request(),
            Moment::Stopping => {
                self.pause_micros(60_000);
                daemon.terminate();
                self.pause_micros(30_000);
            }
            Moment::Hook => self.order_a_kill(&mut daemon),
            Moment::Call if self.faults.is_some() => drop(daemon.ended_within(Duration::from_millis(500))),
            Moment::Call => self.pause_micros(90_000),
        }
        daemon.kill();
        let ended = daemon.ended_within(Duration::from_secs(30)).expect("a killed process must end");
        self.market.daemon_is_at(None);
        self.kills += u64::from(ended.code().is_none());
        if let Some(code) = ended.code().filter(|code| *code != 0) {
            self.market.wrong(format!("the daemon ended by itself with {code}; see spid.log"));
        }
    }

    /// Tells the preloaded library the call at which to kill.
    fn faults_at(&mut self, moment: Moment) -> Vec<(String, String)> {
        let (Moment::Call, Some(library)) = (moment, self.faults.clone()) else { return Vec::new() };
        let (kind, most) = self.random.one_of(&[("sync", 40), ("write", 120), ("reply", 20)]);
        let side = self.random.one_of(&["before", "after"]);
        let rule = format!("{kind} {} kill-{side}", 1 + self.random.below(most));
        let pair = |name: &str, value: &Path| (name.to_owned(), value.to_str().unwrap().to_owned());
        let database = self.folder.canonicalize().unwrap().join("spid.db");
        vec![
            pair("LD_PRELOAD", &library),
            pair("FAULTFS_PATH", &database),
            ("FAULTFS_RULES".to_owned(), rule),
        ]
    }

    fn pause_micros(&mut self, most: u64) {
        std::thread::sleep(Duration::from_micros(self.random.below(most)));
    }

    fn wait_for_a_request(&mut self) {
        self.pause_micros(60_000);
        let before = self.market.sent.load(Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.market.sent.load(Ordering::Relaxed) == before && Instant::now() < deadline {
            std::hint::spin_loop();
        }
        let until = Instant::now() + Duration::from_micros(self.random.below(3_000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }

    /// Leaves the order for the next hook that begins.
    fn order_a_kill(&mut self, daemon: &mut Serving) {
        self.pause_micros(40_000);
        let draft = self.folder.join("order.draft");
        fs::write(&draft, self.random.one_of(&hook::KILLS)).unwrap();
        fs::rename(&draft, self.folder.join("order")).unwrap();
        let _ = daemon.ended_within(Duration::from_secs(2));
    }

    /// Without further kills every delivery succeeds, and every job ends.
    fn heal(&mut self) {
        let _ = fs::remove_file(self.folder.join("order"));
        fs::write(self.folder.join("heal"), "").unwrap();
        self.market.heals.store(true, Ordering::Relaxed);
        let mut daemon = Serving::start(&self.folder, &[]);
        self.market.daemon_is_at(daemon.address());
        let deadline = Instant::now() + HEAL_WITHIN;
        let settled = |driver: &Driver<'_>| {
            driver.market.clients.load(Ordering::Relaxed) == 0 && driver.books.live_jobs() == 0
        };
        while !settled(self) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.market.given_up.store(true, Ordering::Relaxed);
        while self.market.clients.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.terminate();
        let ended = daemon.ended_within(Duration::from_secs(40));
        if !ended.is_some_and(|status| status.success()) {
            self.market.wrong(format!("the last stop was not a clean one: {ended:?}"));
        }
    }

    fn finish(&mut self, plan: &Plan) {
        self.books.check_all(self.market);
        let left = fs::read_dir(self.folder.join("spid.db.running")).map_or(0, Iterator::count);
        if left > 0 {
            self.market.wrong(format!("{left} marks of running hooks are left"));
        }
        let tally = &self.books.tally;
        println!(
            "hook calls {}, overlapping attempts {}, payments out of tries {}, violations {}",
            tally.calls,
            tally.overlaps,
            self.books.spent(),
            self.market.violations(),
        );
        println!(
            "crash sweep: kills {}, callbacks answered {}, lost {}, doubled {}, out of order {}, seed {}",
            self.kills, tally.answered, tally.lost, tally.doubled, tally.out_of_order, plan.seed
        );
    }
}
