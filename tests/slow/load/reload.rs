//! Effects of SIGHUP while orders arrive: above all the keys, and never half of a configuration.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::Scope;

use crate::support::daemon::{
    Daemon, Home, KEY, Line, QUICK, assert_clean, create, exchange, get, get_text, renew, until,
};

/// New key, which replaces the one in `KEY`.
const NEW: &str = "fake-canary-next-isv-key-3M";

const HEAD: &str =
    "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nreply_within = \"10s\"\n";
const LOG_HOOK: &str = "[[hook]]\nname = \"provision\"\nlog = {}\n";

/// A configuration with these keys, the endpoint on this path, and further text.
fn config(path: &str, keys: &str, more: &str) -> String {
    format!(
        "{HEAD}[[endpoint]]\nname = \"alibaba-cn\"\npath = \"{path}\"\ndialect = \"alibaba\"\nkeys = {keys}\n{more}"
    )
}

/// A home whose endpoint has only the old key. The new key is ready in a file.
fn home_with_keys() -> Home {
    let home = Home::empty();
    std::fs::write(home.path("next-key"), NEW).unwrap();
    home.configure(&config("/spi", OLD_ALONE, LOG_HOOK));
    home
}

const OLD_ALONE: &str = r#"[{ file = "isv-key", label = "2025" }]"#;
const BOTH: &str = r#"[{ file = "next-key", label = "2026" }, { file = "isv-key", label = "2025" }]"#;
const NEW_ALONE: &str = r#"[{ file = "next-key", label = "2026" }]"#;

fn signed(order: &str, key: &str) -> String {
    let request = create(order);
    format!("{}&token={}", request.encoded(), request.token_with(key))
}

// Key change.

/// Progress of a reload. The state before the signal and after the log line is certain. Between them both states are
/// possible, but never a step back.
#[derive(Default)]
struct Reload {
    stage: AtomicU8,
    probes: AtomicUsize,
}

const SIGNALLED: u8 = 1;
const APPLIED: u8 = 2;
/// Number of requests on each side of a change.
const ENOUGH: usize = 20;
/// Number of reloads without a change.
const AGAIN: u64 = 50;

impl Reload {
    fn stage(&self) -> u8 {
        self.stage.load(Ordering::SeqCst)
    }

    fn run(&self, daemon: &Daemon) {
        until("the probes have seen what holds before", || {
            (self.probes.load(Ordering::SeqCst) >= ENOUGH).then_some(())
        });
        self.stage.store(SIGNALLED, Ordering::SeqCst);
        let line = daemon.reload();
        assert!(line.contains("reload: applied"), "{line}");
        self.stage.store(APPLIED, Ordering::SeqCst);
    }

    /// Sends orders signed with `key`, in sequence, until it has seen enough of the new state. Returns the numbers of
    /// accepted and denied orders.
    fn probe(
        &self,
        over: &AtomicBool,
        address: SocketAddr,
        (name, key): (&str, &str),
        (before, after): (u16, u16),
    ) -> (usize, usize) {
        let mut line = Line::open(address).unwrap();
        let (mut changed, mut seen_after) = (false, 0);
        let mut counts = (0, 0);
        for number in 0.. {
            if over.load(Ordering::SeqCst) {
                break;
            }
            let sent_at = self.stage();
            let answer = line.exchange(&get_text("/spi", &signed(&format!("{name}-{number}"), key))).unwrap();
            let answered_at = self.stage();
            let expected = if changed || sent_at == APPLIED { after } else { before };
            // The verdict may change only between the signal and the log line, and only once.
            let may_change = !changed && answered_at >= SIGNALLED && answer.status == after;
            assert!(answer.status == expected || may_change, "{name}-{number}: {answer:?}");
            changed |= answer.status == after && before != after;
            match answer.status {
                200 => counts.0 += 1,
                _ => counts.1 += 1,
            }
            self.probes.fetch_add(usize::from(answered_at == 0), Ordering::SeqCst);
            seen_after += usize::from(sent_at == APPLIED);
            if seen_after >= ENOUGH {
                break;
            }
        }
        counts
    }
}

/// Ends all calls when the test ends, also if it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Marketplaces that call without a pause. Each signs with the key it is told to use.
#[derive(Default)]
struct Markets {
    /// 0: the old key; 1: the new one.
    mode: AtomicU8,
    passed: [AtomicUsize; 2],
}

impl Markets {
    const COUNT: usize = 4;

    fn call(&self, over: &AtomicBool, address: SocketAddr, number: usize) {
        let mut line = Line::open(address).unwrap();
        for order in 0.. {
            if over.load(Ordering::SeqCst) {
                return;
            }
            let mode = usize::from(self.mode.load(Ordering::SeqCst));
            let key = [KEY, NEW][mode];
            // Each is sent twice: new orders are written, and repeats only read.
            let name = format!("order-{number}-{}", order / 2);
            let answer = line.exchange(&get_text("/spi", &signed(&name, key))).unwrap();
            assert_eq!(answer.id(), name, "refused: {answer:?}");
            self.passed[mode].fetch_add(1, Ordering::SeqCst);
        }
    }

    fn spawn<'s>(&'s self, scope: &'s Scope<'s, '_>, over: &'s AtomicBool, address: SocketAddr) {
        for number in 0..Markets::COUNT {
            scope.spawn(move || self.call(over, address, number));
        }
    }

    fn passed(&self, mode: usize) -> usize {
        self.passed[mode].load(Ordering::SeqCst)
    }

    /// Waits until they have called so often that earlier calls have ended: each calls in sequence.
    fn run_on(&self, mode: usize) {
        let target = self.passed(mode) + ENOUGH * Markets::COUNT;
        until("the marketplaces go on calling", || (self.passed(mode) >= target).then_some(()));
    }
}

#[test]
fn a_key_is_changed_under_load_and_no_call_is_lost_or_let_in_by_mistake() {
    let home = home_with_keys();
    let daemon = home.start();
    let (address, markets) = (daemon.address, Markets::default());
    let (arrival, withdrawal) = (Reload::default(), Reload::default());
    let (over, stranger) = (AtomicBool::new(false), ("stranger", "fake-other-key"));
    let (arrived, withdrawn) = std::thread::scope(|scope| {
        let _end = End(&over);
        markets.spawn(scope, &over, address);
        markets.run_on(0);

        // The new key is added. Calls with the old one still succeed.
        let probe = scope.spawn(|| arrival.probe(&over, address, ("new", NEW), (403, 200)));
        let strange = scope.spawn(|| arrival.probe(&over, address, stranger, (403, 403)));
        home.configure(&config("/spi", BOTH, LOG_HOOK));
        arrival.run(&daemon);
        let arrived = [probe.join().unwrap(), strange.join().unwrap()];
        markets.run_on(0);

        // Reload again and again: there is no moment without a key.
        for _ in 0..AGAIN {
            assert!(daemon.reload().contains("reload: applied"));
        }

        // The marketplaces change their key, each at its own time.
        markets.mode.store(1, Ordering::SeqCst);
        until("each has changed", || (markets.passed(1) >= ENOUGH * Markets::COUNT).then_some(()));

        // The old key is removed. Calls with the new one still succeed.
        let probe = scope.spawn(|| withdrawal.probe(&over, address, ("old", KEY), (200, 403)));
        let strange = scope.spawn(|| withdrawal.probe(&over, address, stranger, (403, 403)));
        home.configure(&config("/spi", NEW_ALONE, LOG_HOOK));
        withdrawal.run(&daemon);
        let withdrawn = [probe.join().unwrap(), strange.join().unwrap()];
        markets.run_on(1);
        (arrived, withdrawn)
    });

    // Every call is counted under the key that signed it.
    let [(new_taken, new_refused), (0, strange)] = arrived else { panic!("{arrived:?}") };
    let [(old_taken, old_refused), (0, stranger)] = withdrawn else { panic!("{withdrawn:?}") };
    let signatures = |label: &str| {
        daemon.counted(&format!("spid_signatures_total{{endpoint=\"alibaba-cn\",key=\"{label}\"}}")) as usize
    };
    assert_eq!(signatures("2025"), markets.passed(0) + old_taken);
    assert_eq!(signatures("2026"), markets.passed(1) + new_taken);
    let refused =
        daemon.counted("spid_denied_total{endpoint=\"alibaba-cn\",reason=\"wrong-signature\"}") as usize;
    assert_eq!(refused, new_refused + old_refused + strange + stranger);
    assert_eq!(daemon.counted("spid_reloads_total{outcome=\"applied\"}"), 2 + AGAIN);
    assert!(home.look(&["callbacks", "show", "1"]).contains("signed with key `2025`"));
    assert_clean("the log", daemon.log().as_bytes(), &[NEW]);
}

// Results of a reload.

#[test]
fn a_reload_that_changes_nothing_says_so() {
    let home = home_with_keys();
    let daemon = home.start();
    assert!(daemon.reload().contains("reload: applied; no key has changed"));
    assert_eq!(daemon.deliver(&create("ob-hup")).id(), "ob-hup");
}

#[test]
fn a_wrong_configuration_is_told_in_full_and_the_old_one_kept() {
    let home = home_with_keys();
    let daemon = home.start();
    let wrong = r#"[{ file = "no-such-key" }, { file = "isv-key", lable = "x" }]"#;
    home.configure(&config("/spi", wrong, LOG_HOOK));
    let line = daemon.reload();
    for part in [
        "kept the old configuration",
        "spid.toml:9: `endpoint[0].keys[0].file`",
        "spid.toml:9: `endpoint[0].keys[1].lable`",
        "did you mean `label`?",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(daemon.deliver(&create("ob-kept")).id(), "ob-kept");
    std::fs::remove_file(home.path("spid.toml")).unwrap();
    assert!(daemon.reload().contains("kept the old configuration"));
    assert_eq!(daemon.deliver(&create("ob-still")).id(), "ob-still");
    home.configure(&config("/spi", NEW_ALONE, LOG_HOOK));
    assert!(daemon.reload().contains("reload: applied changed=\"endpoint[0].keys"));
    assert_eq!(get(daemon.address, &signed("ob-new", NEW)).unwrap().id(), "ob-new");
    assert_eq!(daemon.deliver(&create("ob-old")).status, 403);
    assert_eq!(daemon.counted("spid_reloads_total{outcome=\"kept\"}"), 2);
    assert_eq!(daemon.counted("spid_reloads_total{outcome=\"applied\"}"), 1);
}

#[test]
fn what_needs_a_restart_is_named_and_nothing_of_it_is_applied() {
    let home = home_with_keys();
    let daemon = home.start();
    let moved = "[store]\npath = \"other.db\"\n";
    home.configure(&config("/spi", NEW_ALONE, &format!("{LOG_HOOK}{moved}")));
    let line = daemon.reload();
    assert!(line.contains("restart required") && line.contains("keys=\"store.path\""), "{line}");
    assert_eq!(daemon.deliver(&create("ob-old")).id(), "ob-old", "the keys are the old ones, too");
    assert_eq!(get(daemon.address, &signed("ob-new", NEW)).unwrap().status, 403);
    assert_eq!(daemon.counted("spid_reloads_total{outcome=\"restart-required\"}"), 1);
    assert!(!home.path("other.db").exists());
    daemon.stop();
    let daemon = home.start();
    assert_eq!(get(daemon.address, &signed("ob-new", NEW)).unwrap().id(), "ob-new");
    assert!(home.path("other.db").exists());
}

#[test]
fn a_flag_comes_before_the_file_at_a_reload_too() {
    let home = home_with_keys();
    let daemon = home.start_with(&["--db", "flagged.db"]);
    home.configure(&config("/spi", BOTH, &format!("{LOG_HOOK}[store]\npath = \"other.db\"\n")));
    assert!(daemon.reload().contains("reload: applied"), "the database is still the flag's");
    assert_eq!(get(daemon.address, &signed("ob-new", NEW)).unwrap().id(), "ob-new");
}

#[test]
fn dev_mode_reloads_to_the_same() {
    let home = Home::empty();
    let daemon = home.start_dev();
    assert!(daemon.reload().contains("no key has changed"));
}

// Running work ends with its old configuration.

/// A hook that creates ids beginning with `letter`, and first waits at the gate of that name.
fn hook(home: &Home, letter: char) -> String {
    let folder = home.path("").display().to_string();
    let original = std::fs::read_to_string(home.path("hook.sh")).unwrap();
    let script = original.replace(
        QUICK,
        &format!("wait_for {letter}; printf '{{\"instance_id\":\"{letter}-%s\"}}' \"$SPID_IDEMPOTENCY_KEY\""),
    );
    std::fs::write(home.path(&format!("{letter}.sh")), script).unwrap();
    format!(
        "[[hook]]\nname = \"provision\"\nexec = {{ command = [\"sh\", \"{folder}/{letter}.sh\"], concurrency = 1 }}\n"
    )
}

#[test]
fn what_is_in_flight_ends_with_the_old_and_what_waits_begins_with_the_new() {
    let home = Home::with_hook(QUICK);
    let keys = r#"[{ file = "isv-key" }]"#;
    home.configure(&config("/spi", keys, &hook(&home, 'a')));
    let daemon = home.start();
    let address = daemon.address;
    std::thread::scope(|scope| {
        let first = scope.spawn(move || get(address, &create("ob-first").signed()).unwrap());
        until("the first hook runs", || (home.begun("create").len() == 1).then_some(()));
        let second = scope.spawn(move || get(address, &create("ob-second").signed()).unwrap());
        let jobs = || home.list(&["jobs", "list"]).len();
        until("the second one waits for it", || (jobs() == 2).then_some(()));

        home.configure(&config("/moved", keys, &hook(&home, 'b')).replace("10s", "200ms"));
        let line = daemon.reload();
        assert!(line.contains("reload: applied"), "{line}");
        assert_eq!(daemon.deliver(&create("ob-first")).status, 404, "the path is another one now");
        home.open_gate("b");
        let third = exchange(address, &get_text("/moved", &create("ob-third").signed()));
        assert_eq!(third.unwrap().id(), "0", "one at a time holds across the reload: the old one still runs");
        assert_eq!(home.begun("create").len(), 1);
        home.open_gate("a");
        assert!(first.join().unwrap().id().starts_with("a-"));
        assert!(second.join().unwrap().id().starts_with("b-"));
    });
}

#[test]
fn fewer_places_for_a_hook_are_taken_from_those_that_come_free() {
    let home = Home::impatient(&format!("wait_for \"$SPID_ATTEMPT-$SPID_ACTION\"; {QUICK}"));
    let configure = |concurrency: usize| {
        let hook = format!(
            "exec = {{ command = [\"sh\", \"{}/hook.sh\"], concurrency = {concurrency} }}",
            home.path("").display()
        );
        let text = config("/spi", r#"[{ file = "isv-key" }]"#, &format!("[[hook]]\nname = \"p\"\n{hook}\n"));
        home.configure(&text.replace("10s", "200ms"));
    };
    configure(2);
    let daemon = home.start();
    for order in ["ob-1", "ob-2", "ob-3", "ob-4"] {
        assert_eq!(daemon.deliver(&create(order)).id(), "0");
    }
    let running = || {
        let lines = home.hook_lines();
        let count = |event: &str| lines.iter().filter(|line| line.event == event).count();
        count("begin") - count("end")
    };
    until("two run", || (running() == 2).then_some(()));
    configure(1);
    assert!(daemon.reload().contains("concurrency"));
    home.open_gate("1-create");
    until("all have run", || (home.begun("create").len() == 4 && running() == 0).then_some(()));
    let mut at_once = 2;
    for line in home.hook_lines().into_iter().skip(2) {
        at_once = if line.event == "begin" { at_once + 1 } else { at_once - 1 };
        assert!(line.event == "end" || at_once == 1, "{:?}", home.hook_lines());
    }
    configure(3);
    assert!(daemon.reload().contains("concurrency"));
    for order in ["ob-1", "ob-2", "ob-3"] {
        let id = daemon.deliver_until_done(&create(order)).id();
        assert_eq!(daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).status, 200);
    }
    until("three run at once", || (running() == 3).then_some(()));
    home.open_gate("1-renew");
}

#[test]
fn the_level_of_the_log_is_changed_unless_the_command_line_has_one() {
    let home = home_with_keys();
    let debug = config("/spi", OLD_ALONE, &format!("{LOG_HOOK}[log]\nlevel = \"debug\"\n"));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-quiet")).id(), "ob-quiet");
    home.configure(&debug);
    assert!(daemon.reload().contains("log.level"));
    assert!(!daemon.log().contains("running the hook"));
    assert_eq!(daemon.deliver(&create("ob-loud")).id(), "ob-loud");
    daemon.wait_for_log("running the hook");
    daemon.stop();
    let daemon = home.start_with(&["--log", "info"]);
    assert_eq!(daemon.deliver(&create("ob-info")).id(), "ob-info");
    assert!(!daemon.stop().contains("running the hook"));
}
