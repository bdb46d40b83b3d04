//! The mark on jobs that wait behind another job of their instance. It is correct after every operation by hand, and
//! after every event of a marketplace and a hook.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::bench::*;
use spid::internals::store::{AttemptEnd, AuditNote, Instead, Operations, StoreOptions};
use spid_core::lifecycle::UnknownInstance;
use spid_core::lifecycle::schedule;
use spid_hook::callback::{Action, Answer, Callback};

/// A small generator with the same numbers on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.roll(from.len())].clone()) }
    }
}

fn act() -> AuditNote {
    AuditNote { who: "a test".into(), why: "to see the lane".into() }
}

fn operations(bench: &Bench) -> Operations {
    let path = bench.folder.as_ref().unwrap().path().join("spid.db");
    Operations::open(&path, &StoreOptions::default(), bench.clock.clone()).unwrap()
}

async fn deliver(bench: &Bench, dice: &mut Dice) {
    let biz = dice.pick(&["b1", "b2"]).unwrap();
    let order = format!("r{}", dice.roll(4));
    let callback = match dice.roll(8) {
        0 | 1 => create(biz),
        2 => renew(biz, &order, day(365 + dice.roll(300) as i64)),
        3 => upgrade(biz, dice.pick(&["basic", "silver", "gold"]).unwrap()),
        4 | 5 => expire(biz),
        6 => spid_hook::callback::Callback { order_id: Some("another".into()), ..create(biz) },
        _ => refund_renew(biz, &order, day(20)),
    };
    let policy = dice.pick(&[UnknownInstance::Adopt, UnknownInstance::default()]).unwrap();
    drop(bench.accept_under(policy, &callback).await);
}

async fn run(bench: &Bench, dice: &mut Dice) {
    for taken in bench.take(1 + dice.roll(2)).await {
        let ending = match dice.roll(8) {
            0 | 1 => done(),
            2 | 3 => retry(),
            4 => refused(),
            5 => AttemptEnd::Pending { note: "later".into() },
            // The attempt has no recorded result.
            6 => continue,
            _ => AttemptEnd::GivenBack,
        };
        bench.finish(&taken, ending).await;
    }
}

/// Operations by hand. Most are refused in the current state, which does not matter here.
fn mend(bench: &Bench, dice: &mut Dice) -> bool {
    let mut operations = operations(bench);
    let jobs: Vec<_> = bench.jobs().iter().map(|job| job.id).collect();
    let instances: Vec<_> = bench.instances().iter().map(|row| row.number).collect();
    let held: Vec<_> = bench.held().iter().map(|row| row.number).collect();
    let done = match dice.roll(8) {
        0 | 1 => dice.pick(&jobs).map(|id| operations.retry(id, &act()).is_ok()),
        2 => dice.pick(&jobs).map(|id| operations.drop_job(id, &act()).is_ok()),
        3 | 4 => dice
            .pick(&instances)
            .map(|number| operations.complete(number, &Answer::default(), &act()).is_ok()),
        5 if dice.roll(4) == 0 => {
            dice.pick(&instances).map(|number| operations.release(number, &act()).is_ok())
        }
        5 => None,
        _ => {
            let choices = Instead::ALL.map(Some).into_iter().chain([None]).collect::<Vec<_>>();
            let instead = dice.pick(&choices).unwrap();
            dice.pick(&held).map(|number| operations.approve(number, instead, &act()).is_ok())
        }
    };
    done.unwrap_or(false)
}

#[tokio::test]
async fn jobs_are_marked_as_blocked_exactly_while_another_is_before_them() {
    let (mut acts, mut deepest) = (0, 0);
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let bench = Bench::sqlite().await;
        for _ in 0..120 {
            match dice.roll(8) {
                0..=2 => deliver(&bench, &mut dice).await,
                3..=4 => run(&bench, &mut dice).await,
                5 => bench.advance(dice.pick(&[60, 3_600, 40 * 86_400]).unwrap()),
                _ => acts += usize::from(mend(&bench, &mut dice)),
            }
            bench.check_blocked();
            let live = bench.jobs().into_iter().filter(|job| job.ordered && job.state.is_live()).count();
            deepest = deepest.max(live);
        }
    }
    assert!(acts > 100 && deepest > 4, "too little happened: {acts} acts, {deepest} jobs at once");
}

/// The jobs of a restored database are held, and stay in their order.
#[tokio::test]
async fn a_restored_lane_is_marked_as_it_was() {
    let bench = Bench::sqlite().await;
    bench.done(&create("b")).await;
    for order in ["r1", "r2", "r3"] {
        bench.deliver(&renew("b", order, day(400))).await;
    }
    let folder = bench.folder.as_ref().unwrap().path();
    let (copy, place) = (folder.join("copy.db"), tempfile::tempdir().unwrap());
    spid::internals::store::backup(&folder.join("spid.db"), &copy).unwrap();
    let restored = place.path().join("spid.db");
    spid::internals::store::restore(&copy, &restored, &StoreOptions::default(), bench.clock.clone(), &act())
        .unwrap();
    let db = rusqlite::Connection::open(&restored).unwrap();
    let mut marks = db.prepare("SELECT state, blocked FROM job WHERE state < 5 ORDER BY number").unwrap();
    let marks = marks.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let held =
        schedule::JobState::ALL.iter().position(|state| *state == schedule::JobState::Held).unwrap() as i64;
    let marks: Vec<(i64, i64)> = marks.map(Result::unwrap).collect();
    assert_eq!(marks, [(held, 0), (held, 1), (held, 1)]);
}

/// A daemon of the previous version stored no marks. Opening its database creates them.
/// Copies the rows of a database into one of version 2, which takes its place.
fn make_version_2(path: &std::path::Path) {
    let old = path.with_extension("old");
    let db = rusqlite::Connection::open(&old).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    let schema =
        [include_str!("../../src/store/schema.sql"), include_str!("../../src/store/schema-2.sql")].concat();
    db.execute_batch(&format!("{schema} PRAGMA application_id = 1936746852; PRAGMA user_version = 2;"))
        .unwrap();
    db.execute("ATTACH ?1 AS new", [path.to_str().unwrap()]).unwrap();
    for table in ["instance", "name", "purchase", "callback", "job", "attempt", "act"] {
        let columns = db
            .prepare("SELECT name FROM pragma_table_info(?1)")
            .unwrap()
            .query_map([table], |row| row.get::<_, String>(0))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
            .join(", ");
        db.execute(&format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM new.{table}"), [])
            .unwrap();
    }
    drop(db);
    std::fs::rename(old, path).unwrap();
    // The noted stamp is of a commit that version 2 did not make.
    let _ = std::fs::remove_file(path.with_extension("db.lock"));
}

#[tokio::test]
async fn a_lane_of_an_older_database_is_marked_when_it_is_brought_up_to_date() {
    let bench = Bench::sqlite().await;
    bench.done(&create("b")).await;
    bench.deliver(&renew("b", "r1", day(400))).await;
    bench.run_to_death().await;
    bench.deliver(&upgrade("b", "gold")).await;
    bench.deliver(&upgrade("b", "silver")).await;
    let (folder, clock) = bench.stop().await;
    let path = folder.as_ref().unwrap().path().join("spid.db");
    make_version_2(&path);
    let bench = Bench::sqlite_in(folder.unwrap(), clock).await;
    bench.check_blocked();
    assert!(bench.take(9).await.is_empty());
    let dead = bench.jobs().into_iter().find(|job| job.state == schedule::JobState::Dead).unwrap();
    operations(&bench).drop_job(dead.id, &act()).unwrap();
    bench.check_blocked();
    assert_eq!(bench.take_one().await.job.action, Action::Upgrade);
}

/// The first part was refused, and the second one cancelled with it. A retry brings both back, one behind the other.
#[tokio::test]
async fn the_later_part_of_a_retried_request_waits_for_the_first() {
    let bench = Bench::sqlite().await;
    bench.done(&create("b")).await;
    let both =
        Callback { also: vec![Action::Upgrade], sku: Some("gold".into()), ..renew("b", "r", day(730)) };
    bench.deliver(&both).await;
    let first = bench.take_one().await;
    bench.finish(&first, refused()).await;
    operations(&bench).retry(first.job.id, &act()).unwrap();
    bench.check_blocked();
    let taken = bench.take(9).await;
    assert_eq!(taken.iter().map(|taken| taken.job.action).collect::<Vec<_>>(), [Action::Renew]);
    bench.finish(&taken[0], done()).await;
    assert_eq!(bench.take_one().await.job.action, Action::Upgrade);
}
