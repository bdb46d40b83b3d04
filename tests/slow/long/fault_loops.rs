//! Behavior of the daemon when its disk, its clock or its power fails: the real binary, the real SQLite, and every
//! single operation failing once.
//!
//! A fault loop makes the first call fail, then the second, and so on. It ends when a whole life ran without a call
//! left to fail, and never at a fixed number. For every failure: an answer is "try again" or true; acknowledged data
//! is stored byte for byte; a daemon that cannot continue reports the reason; a marketplace that calls again gets
//! everything, with one create per instance.
//!
//! `SPID_FAULTS=all` also runs the long loops.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that panics has said what it found, and one that counts says how many"
)]

use std::collections::{BTreeMap, BTreeSet};

use crate::faults::{Answer, Bench, Daemon, Effect, Kind, library};
use spid::internals::store::Filter;
use spid_hook::instance::State;

/// One callback of the life.
struct Step {
    action: &'static str,
    parameters: &'static [(&'static str, &'static str)],
}

/// Buy, upgrade, renew, freeze; and buy a second instance.
const LIFE: [Step; 5] = [
    Step {
        action: "createInstance",
        parameters: &[
            ("aliUid", "1001"),
            ("orderBizId", "biz-1"),
            ("orderId", "order-1"),
            ("productCode", "product"),
            ("skuId", "basic"),
            ("trial", "false"),
            ("expiredOn", "2030-01-01 00:00:00"),
        ],
    },
    Step { action: "upgradeInstance", parameters: &[("instanceId", "real-biz-1"), ("skuId", "pro")] },
    Step {
        action: "renewInstance",
        parameters: &[
            ("instanceId", "real-biz-1"),
            ("orderId", "order-2"),
            ("expiredOn", "2031-01-01 00:00:00"),
        ],
    },
    Step { action: "expiredInstance", parameters: &[("instanceId", "real-biz-1")] },
    Step {
        action: "createInstance",
        parameters: &[
            ("aliUid", "1002"),
            ("orderBizId", "biz-2"),
            ("orderId", "order-3"),
            ("productCode", "product"),
            ("skuId", "basic"),
            ("trial", "false"),
        ],
    },
];

const RENEWAL: usize = 2;

/// Step after which the daemon is stopped in order and started again, so that its checkpoint and its second start can
/// fail too.
const STOP_AFTER: usize = 2;

/// Memory of a correct marketplace.
#[derive(Default)]
struct Marketplace {
    acknowledged: BTreeMap<usize, String>,
}

/// Course of a life on the failing disk.
#[must_use]
struct Lived {
    marketplace: Marketplace,
    /// The last daemon, if it still runs.
    daemon: Option<Daemon>,
}

fn redeliver(daemon: &Daemon, step: &Step) -> Option<Answer> {
    let answer = daemon.deliver(step.action, step.parameters)?;
    assert!(answer.is_success() || answer.is_try_again(), "{}: {answer:?}\n{}", step.action, daemon.log());
    Some(answer)
}

impl Marketplace {
    fn heard(&mut self, index: usize, answer: &Answer) -> bool {
        if !answer.is_success() {
            return false;
        }
        let before = self.acknowledged.entry(index).or_insert_with(|| answer.body.clone());
        assert_eq!(*before, answer.body, "step {index} was answered differently before");
        true
    }

    /// Calls until the answer is a success. After the first failures `mend` repairs the cause.
    fn insist(&mut self, daemon: &Daemon, index: usize, mut mend: impl FnMut(u32)) -> Result<(), Gone> {
        for tries in 1..=40 {
            let answer = redeliver(daemon, &LIFE[index]).ok_or(Gone)?;
            if self.heard(index, &answer) {
                return Ok(());
            }
            mend(tries);
        }
        panic!("step {index} never succeeds:\n{}", daemon.log());
    }
}

/// The daemon did not answer.
#[derive(Debug)]
struct Gone;

/// Starts the daemon until it succeeds. A start that fails must report the reason.
fn start(bench: &Bench, mut mend: impl FnMut(u32)) -> Daemon {
    for tries in 1..=5 {
        match bench.start() {
            Ok(daemon) => return daemon,
            Err(ended) => ended.assert_said_why(),
        }
        mend(tries);
    }
    panic!("it never starts");
}

/// Plays the whole life, and repeats every unacknowledged step. `mend` is called after each failure.
fn live(bench: &Bench, mend: impl Fn(u32)) -> Lived {
    let mut marketplace = Marketplace::default();
    let mut daemon = start(bench, &mend);
    for index in 0..LIFE.len() {
        while marketplace.insist(&daemon, index, &mend).is_err() {
            daemon.ended().assert_said_why();
            daemon = start(bench, &mend);
        }
        if index == STOP_AFTER {
            let stopped = daemon.stop();
            assert!(stopped.status.success(), "{}", stopped.log);
            daemon = start(bench, &mend);
        }
    }
    Lived { marketplace, daemon: Some(daemon) }
}

/// Starts on a healthy disk and checks the data before any delivery.
fn check_kept(bench: &Bench, marketplace: &Marketplace) -> Daemon {
    let daemon = bench.start_unharmed();
    let all = Filter { limit: 1000, ..Filter::default() };
    let callbacks = bench.reader().callbacks(&all).unwrap();
    for index in marketplace.acknowledged.keys() {
        let step = &LIFE[*index];
        let reported = callbacks.iter().filter(|row| row.reported_at.is_some()).any(|row| {
            let (_, callback) = bench.reader().callback(row.number).unwrap().unwrap();
            callback.action_name == step.action
                && step.parameters.iter().all(|(name, value)| callback.parameters.get(name) == Some(*value))
        });
        assert!(reported, "step {index} was acknowledged and is not kept: {callbacks:#?}");
    }
    daemon
}

/// Delivers everything once more and checks the result. An acknowledged renewal is left out: for an instance that has
/// expired since, it is a new one and unfreezes it.
fn check_converges(bench: &Bench, daemon: &Daemon, mut marketplace: Marketplace) {
    for index in 0..LIFE.len() {
        if index != RENEWAL || !marketplace.acknowledged.contains_key(&index) {
            marketplace.insist(daemon, index, |_| {}).unwrap();
        }
    }
    for (index, step) in LIFE.iter().enumerate().filter(|(index, _)| *index != RENEWAL) {
        let again = redeliver(daemon, step).unwrap();
        assert_eq!(again.body, marketplace.acknowledged[&index], "{}", step.action);
    }
    check_state(bench);
}

fn check_state(bench: &Bench) {
    let all = Filter { limit: 1000, ..Filter::default() };
    let found: BTreeMap<_, _> = bench
        .reader()
        .instances(&all)
        .unwrap()
        .into_iter()
        .map(|row| (row.instance.id.clone().unwrap_or_default(), row.instance))
        .collect();
    assert_eq!(found.len(), 2, "{found:#?}");
    let (one, two) = (&found["real-biz-1"], &found["real-biz-2"]);
    assert_eq!((one.state, one.sku.as_deref()), (State::Frozen, Some("pro")));
    assert_eq!(one.expires_on.unwrap().to_string(), "2030-12-31T16:00:00Z");
    assert_eq!((two.state, two.sku.as_deref()), (State::Active, Some("basic")));
    assert!(bench.reader().jobs(&all).unwrap().iter().all(|job| !job.state.is_live()));
    for (what, keys) in keys_of(bench) {
        assert_eq!(keys.len(), 1, "{what:?} was asked under several keys: {keys:?}");
    }
}

/// Idempotency keys of each request to the hook.
fn keys_of(bench: &Bench) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut keys: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for [action, instance, key] in bench.asked() {
        keys.entry((action, instance)).or_default().insert(key);
    }
    keys
}

/// Kills the daemon, and checks everything.
fn check(bench: &Bench, lived: Lived) {
    let log = lived.daemon.map(Daemon::kill).unwrap_or_default();
    assert!(!log.contains("panicked"), "{log}");
    let daemon = check_kept(bench, &lived.marketplace);
    check_converges(bench, &daemon, lived.marketplace);
}

fn long() -> bool {
    std::env::var_os("SPID_FAULTS").is_some_and(|value| value == "all")
}

/// Makes each call of a kind fail once, one life each, until a life has no such call. The short run takes only every
/// `stride`th call, and always the last one, beyond all calls.
fn once_each(kind: Kind, effect: Effect, stride: u64) {
    if library().is_none() {
        return;
    }
    let stride = if long() { 1 } else { stride };
    for round in 0.. {
        let n = 1 + round * stride;
        let bench = Bench::new();
        bench.control.rule(kind, n, n, effect);
        let lived = live(&bench, |_| {});
        let fired = bench.control.fired(kind);
        check(&bench, lived);
        if fired == 0 {
            assert!(round > 0, "no {kind:?} was ever made: the library does not see them");
            eprintln!("{kind:?} {effect:?}: {round} of {} calls failed, one each", bench.control.calls(kind));
            return;
        }
    }
}

#[test]
fn each_open_fails_once() {
    once_each(Kind::Open, Effect::NoSpace, 1);
    once_each(Kind::Open, Effect::Io, 1);
}

#[test]
fn each_sync_fails_once() {
    once_each(Kind::Sync, Effect::Io, 1);
    once_each(Kind::Sync, Effect::NoSpace, 2);
}

#[test]
fn each_truncation_removal_and_renaming_fails_once() {
    for effect in [Effect::NoSpace, Effect::Io] {
        once_each(Kind::Truncate, effect, 1);
        once_each(Kind::Remove, effect, 1);
        once_each(Kind::Rename, effect, 1);
    }
}

#[test]
fn each_write_finds_no_space_once() {
    once_each(Kind::Write, Effect::NoSpace, 5);
}

#[test]
fn each_write_fails_once() {
    once_each(Kind::Write, Effect::Io, 11);
}

#[test]
fn each_read_fails_once() {
    once_each(Kind::Read, Effect::Io, 7);
}

/// From the n-th call on every call fails, until there is free space again. Then it works again, in the same process
/// if it still runs.
fn from_then_on(kind: Kind, effect: Effect, stride: u64) {
    if library().is_none() {
        return;
    }
    let stride = if long() { 1 } else { stride };
    for round in 0.. {
        let bench = Bench::new();
        bench.control.rule(kind, 1 + round * stride, u64::MAX, effect);
        let lived = live(&bench, |failures| {
            if failures >= 2 {
                bench.control.never(kind);
            }
        });
        let fired = bench.control.fired(kind);
        bench.control.never(kind);
        check(&bench, lived);
        if fired == 0 {
            eprintln!("{kind:?} {effect:?} from then on: {round} lives");
            return;
        }
    }
}

#[test]
fn a_disk_that_fills_up_and_is_emptied() {
    from_then_on(Kind::Write, Effect::NoSpace, 31);
}

#[test]
fn a_disk_that_dies_and_comes_back() {
    from_then_on(Kind::Sync, Effect::Io, 5);
}

#[test]
fn a_filesystem_that_becomes_read_only() {
    from_then_on(Kind::Write, Effect::ReadOnly, 47);
}

/// A daemon after the first `steps` of the life.
fn lived_until(bench: &Bench, steps: usize) -> Lived {
    let mut marketplace = Marketplace::default();
    let daemon = bench.start().unwrap();
    for index in 0..steps {
        marketplace.insist(&daemon, index, |_| {}).unwrap();
    }
    Lived { marketplace, daemon: Some(daemon) }
}

/// Continues the life without faults, and checks everything.
fn live_on(bench: &Bench, daemon: &Daemon, mut marketplace: Marketplace) {
    for index in 0..LIFE.len() {
        if !marketplace.acknowledged.contains_key(&index) {
            marketplace.insist(daemon, index, |_| {}).unwrap();
        }
    }
    check_converges(bench, daemon, marketplace);
}

#[test]
fn a_start_on_a_read_only_filesystem_says_so() {
    if library().is_none() {
        return;
    }
    for first in [true, false] {
        let bench = Bench::new();
        let before = if first { None } else { Some(lived_until(&bench, 2)) };
        if let Some(daemon) = before.and_then(|lived| lived.daemon) {
            daemon.kill();
        }
        for kind in [Kind::Open, Kind::Write, Kind::Sync, Kind::Truncate, Kind::Remove, Kind::Rename] {
            bench.control.always(kind, Effect::ReadOnly);
        }
        let ended = bench.start().err().unwrap();
        ended.assert_said_why();
        assert_eq!(ended.status.code(), Some(74), "{}", ended.log);
    }
}

/// Ready means that a write succeeds, and live that the process runs.
#[test]
fn a_full_disk_is_not_ready() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    let lived = lived_until(&bench, 1);
    let daemon = lived.daemon.unwrap();
    assert_eq!(daemon.admin("/readyz").status, 200);
    bench.control.always(Kind::Write, Effect::NoSpace);
    let answer = daemon.admin("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("disk is full"), "{}", answer.body);
    assert_eq!(daemon.admin("/livez").status, 200);
    assert!(redeliver(&daemon, &LIFE[1]).unwrap().is_try_again());
    // Data on the disk is still in the answers.
    assert!(redeliver(&daemon, &LIFE[0]).unwrap().is_success());
    bench.control.never(Kind::Write);
    assert_eq!(daemon.admin("/readyz").status, 200);
    live_on(&bench, &daemon, lived.marketplace);
}

/// The checkpoint of a stop has no room; the data stays in the log.
#[test]
fn a_stop_on_a_full_disk_is_in_order() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    let lived = lived_until(&bench, 2);
    bench.control.always(Kind::Write, Effect::NoSpace);
    let stopped = lived.daemon.unwrap().stop();
    assert!(stopped.status.success(), "{}", stopped.log);
    assert!(bench.control.fired(Kind::Write) > 0);
    bench.control.never(Kind::Write);
    let daemon = check_kept(&bench, &lived.marketplace);
    live_on(&bench, &daemon, lived.marketplace);
}

#[test]
fn another_process_holds_the_database_for_a_while() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    let lived = lived_until(&bench, 1);
    let daemon = lived.daemon.unwrap();
    let other = rusqlite::Connection::open(bench.database()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert!(redeliver(&daemon, &LIFE[1]).unwrap().is_try_again());
    assert!(redeliver(&daemon, &LIFE[1]).unwrap().is_try_again());
    // Data on the disk is still in the answers.
    assert!(redeliver(&daemon, &LIFE[0]).unwrap().is_success());
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    live_on(&bench, &daemon, lived.marketplace);
}

#[test]
fn a_start_while_another_process_holds_the_database_says_so() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    lived_until(&bench, 1).daemon.unwrap().kill();
    let other = rusqlite::Connection::open(bench.database()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let ended = bench.start().err().unwrap();
    ended.assert_said_why();
    assert_eq!(ended.status.code(), Some(75), "{}", ended.log);
}

/// The data of a damaged log is lost, and a start must report that. After the order to continue, the daemon must
/// work, must not invent data, and must do repeated requests again.
#[test]
fn a_damaged_log_costs_no_more_than_it_held() {
    if library().is_none() {
        return;
    }
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("flipped in the middle", |log| {
            let middle = log.len() / 2;
            log[middle..middle + 16].iter_mut().for_each(|byte| *byte ^= 0x55);
        }),
        ("cut in the middle", |log| log.truncate(log.len() / 2 + 100)),
        ("cut inside its header", |log| log.truncate(20)),
        ("header flipped", |log| log[..32].iter_mut().for_each(|byte| *byte ^= 0xff)),
    ];
    for (what, damage) in damages {
        let bench = Bench::new();
        // The first part is in the database, the second in the log.
        let lived = lived_until(&bench, 2);
        assert!(lived.daemon.unwrap().stop().status.success());
        let daemon = bench.start().unwrap();
        let mut marketplace = lived.marketplace;
        marketplace.insist(&daemon, 2, |_| {}).unwrap();
        marketplace.insist(&daemon, 3, |_| {}).unwrap();
        daemon.kill();
        bench.damage("spid.db-wal", damage);
        let refused = bench.start().err().expect("orders were lost");
        assert!(refused.log.contains("lacks acknowledged commits"), "{what}: {}", refused.log);
        std::fs::remove_file(bench.database().with_extension("db.lock")).unwrap();
        let daemon = bench.start_unharmed();
        // The data of the database is there; the rest must be delivered again.
        marketplace.acknowledged.retain(|index, _| *index < 2);
        for (index, step) in LIFE.iter().enumerate() {
            let answer = redeliver(&daemon, step).unwrap();
            let held = index == 3 && !answer.is_success();
            assert!(held || marketplace.heard(index, &answer), "{what}: step {index}: {answer:?}");
        }
        let creates = keys_of(&bench).into_iter().filter(|((action, _), _)| action == "create");
        assert!(creates.into_iter().all(|(_, keys)| keys.len() == 1), "{what}");
    }
}

#[test]
fn a_damaged_database_is_refused_with_a_reason() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    assert!(lived_until(&bench, 2).daemon.unwrap().stop().status.success());
    let whole = std::fs::read(bench.database()).unwrap();
    bench.damage("spid.db", |file| file[..32].iter_mut().for_each(|byte| *byte ^= 0xff));
    let ended = bench.start().err().unwrap();
    ended.assert_said_why();
    assert_eq!(ended.status.code(), Some(65), "{}", ended.log);
    assert!(ended.log.contains("damaged"), "{}", ended.log);
    // The files are unchanged, for a backup or a specialist.
    let mut found = std::fs::read(bench.database()).unwrap();
    found[..32].iter_mut().for_each(|byte| *byte ^= 0xff);
    assert!(found == whole, "the damaged file was changed");
}

#[test]
fn a_clock_set_back_an_hour_stops_nothing() {
    if library().is_none() {
        return;
    }
    let bench = Bench::new();
    let lived = lived_until(&bench, 1);
    bench.control.shift_clock(-3_600_000);
    let daemon = lived.daemon.unwrap();
    let mut marketplace = lived.marketplace;
    for index in 1..3 {
        marketplace.insist(&daemon, index, |_| {}).unwrap();
    }
    // A hook was running, with a clock one hour ahead, when the daemon died.
    bench.hook_waits(true);
    assert!(redeliver(&daemon, &LIFE[3]).unwrap().is_try_again());
    daemon.kill();
    bench.hook_waits(false);
    bench.control.shift_clock(-7_200_000);
    let daemon = bench.start().unwrap();
    live_on(&bench, &daemon, marketplace);
}

/// Plays the life with a power failure before the n-th sync, for every n. `luck` is as in [`Bench::cut_power`].
fn power_cut_at_each_sync(luck: u64) {
    if library().is_none() {
        return;
    }
    for n in 1.. {
        let bench = Bench::with_a_plug();
        bench.control.rule(Kind::Sync, n, n, Effect::KillBefore);
        let (marketplace, cut) = live_until_the_cut(&bench, luck);
        check_after_cuts(&bench, marketplace);
        if !cut {
            eprintln!("power cut before each of {} syncs, luck {luck}", n - 1);
            return;
        }
    }
}

fn check_after_cuts(bench: &Bench, marketplace: Marketplace) {
    let daemon = check_kept(bench, &marketplace);
    live_on(bench, &daemon, marketplace);
}

/// Plays the life until the daemon dies; then the power fails too.
fn live_until_the_cut(bench: &Bench, luck: u64) -> (Marketplace, bool) {
    let mut marketplace = Marketplace::default();
    let Ok(mut daemon) = bench.start() else {
        bench.cut_power(luck);
        return (marketplace, true);
    };
    for index in 0..LIFE.len() {
        if marketplace.insist(&daemon, index, |_| {}).is_err() {
            drop(daemon);
            bench.cut_power(luck);
            return (marketplace, true);
        }
        if index == STOP_AFTER {
            daemon.stop();
            match bench.start() {
                Ok(next) if bench.control.fired(Kind::Sync) == 0 => daemon = next,
                _ => {
                    bench.cut_power(luck);
                    return (marketplace, true);
                }
            }
        }
    }
    drop(daemon);
    bench.cut_power(luck);
    (marketplace, false)
}

#[test]
fn the_power_goes_before_each_sync() {
    power_cut_at_each_sync(0);
}

#[test]
fn the_power_goes_and_some_of_what_was_on_its_way_arrives() {
    let seeds = if long() { 1..=24 } else { 1..=1 };
    seeds.for_each(|seed: u64| power_cut_at_each_sync(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
}

/// A disk that fails one sync, and then a power failure: data acknowledged after the failed sync is there, although
/// Linux counts the pages of the failed sync as written.
#[test]
fn the_power_goes_after_a_sync_that_failed() {
    if library().is_none() {
        return;
    }
    let stride = if long() { 1 } else { 3 };
    for round in 0.. {
        let bench = Bench::with_a_plug();
        let n = 1 + round * stride;
        bench.control.rule(Kind::Sync, n, n, Effect::Io);
        let lived = live(&bench, |_| {});
        let fired = bench.control.fired(Kind::Sync);
        lived.daemon.map(Daemon::kill);
        bench.cut_power(0);
        check_after_cuts(&bench, lived.marketplace);
        if fired == 0 {
            return;
        }
    }
}

/// Test of the harness: a disk that only claims to sync loses acknowledged data, and the harness sees it.
#[test]
fn a_disk_that_lies_is_found_out() {
    if library().is_none() {
        return;
    }
    let bench = Bench::with_a_plug();
    let lived = lived_until(&bench, 1);
    bench.control.always(Kind::Sync, Effect::Lie);
    let daemon = lived.daemon.unwrap();
    let mut marketplace = lived.marketplace;
    marketplace.insist(&daemon, 1, |_| {}).unwrap();
    daemon.kill();
    bench.cut_power(0);
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_kept(&bench, &marketplace)));
    let message = checked.err().expect("what a lying disk lost was not missed");
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("step 1 was acknowledged and is not kept"), "{message}");
}

/// After the commit and before the reply: the marketplace knows nothing, and calls again.
#[test]
fn a_kill_before_each_reply_loses_and_doubles_nothing() {
    if library().is_none() {
        return;
    }
    for n in 1..=LIFE.len() {
        let bench = Bench::new();
        let daemon = bench.start_with(&format!("reply {n} kill-before")).unwrap();
        let mut marketplace = Marketplace::default();
        let died = (0..LIFE.len()).find(|index| marketplace.insist(&daemon, *index, |_| {}).is_err());
        assert_eq!(died, Some(n - 1));
        assert_eq!(bench.control.fired(Kind::Reply), 1);
        let daemon = bench.start_unharmed();
        live_on(&bench, &daemon, marketplace);
    }
}

/// The library is built offline, from the crates that spid's own build has downloaded.
#[test]
fn the_library_needs_nothing_that_spid_does_not() {
    let locked = |path: &str| {
        let text =
            std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let lock: toml::Table = text.parse().unwrap();
        lock["package"].as_array().unwrap().clone()
    };
    let (ours, spids) = (locked("tests/faultfs/Cargo.lock"), locked("Cargo.lock"));
    for package in ours.iter().filter(|package| package.get("source").is_some()) {
        assert!(
            spids.contains(package),
            "run cargo update in tests/faultfs: {package:?} is not in Cargo.lock"
        );
    }
}
