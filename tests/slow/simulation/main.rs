//! The simulation: the real intake, dispatcher, hook runner and store, on one thread, with simulated time and many
//! faults. One seed decides everything.
//!
//! `cargo test --test simulation` runs some seeds. `SPID_SIM_SEEDS=100000` runs more,
//! `SPID_SIM_FIRST=7 SPID_SIM_SEEDS=1` runs one and prints its trace.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that panics has said what it found"
)]

mod check;
mod disk;
mod hook;
mod life;
mod market;
#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;
mod world;

use std::collections::BTreeMap;

use disk::PlantedBug;
use hook::Planned;
use life::{Run, simulate};

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "there is no other way to tell a test how long to run")]
fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Hides the output of intended panics.
fn silence_planned_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<Planned>().is_none() {
            usual(panic);
        }
    }));
}

fn report(seed: u64, run: &Run) -> String {
    let tail = run.trace.iter().rev().take(60).rev().cloned().collect::<Vec<_>>().join("\n");
    format!(
        "{tail}\nseed {seed}: {}\nagain: SPID_SIM_FIRST={seed} SPID_SIM_SEEDS=1 cargo test --test simulation seeds -- --nocapture",
        run.violation.as_deref().unwrap_or("nothing was broken")
    )
}

/// The first of these seeds that breaks a promise, if any.
fn first_broken(seeds: impl Iterator<Item = u64>, planted: PlantedBug) -> Option<(u64, Run)> {
    seeds.map(|seed| (seed, simulate(seed, planted))).find(|(_, run)| run.violation.is_some())
}

#[test]
fn seeds() {
    silence_planned_panics();
    let first = environment("SPID_SIM_FIRST").unwrap_or(1);
    let count = environment("SPID_SIM_SEEDS").unwrap_or(80);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + count {
        let run = simulate(seed, PlantedBug::Nothing);
        assert!(run.violation.is_none(), "\n{}", report(seed, &run));
        run.counts.iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
        if count == 1 {
            println!("{}", report(seed, &run));
        }
    }
    println!("{count} seeds from {first}: no promise broken; {counts:?}");
}

/// Seeds that found a bug once.
#[test]
fn what_was_found_stays_mended() {
    silence_planned_panics();
    for (seed, found) in [
        (1, "the dispatcher span while every place was taken"),
        (4, "a clock that jumped made the dispatcher lose its own leases"),
        (47, "a release reached the instance whose hook had chosen that order's name as its id"),
        (163, "a success was told on what was only coming"),
        (352, "an order the hook had refused was told done, because another order had made it so"),
        (541, "a renewal was told done of what was frozen, because its release was on its way"),
        (2726, "a job lost its lease on its way to the dispatcher, and was run all the same"),
        (51721, "the same, behind a busy hook"),
        (89327, "an answer waited for as long as a commit hung"),
    ] {
        let run = simulate(seed, PlantedBug::Nothing);
        assert!(run.violation.is_none(), "{found}\n{}", report(seed, &run));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    silence_planned_panics();
    for seed in 1..=10 {
        assert_eq!(
            simulate(seed, PlantedBug::Nothing).trace,
            simulate(seed, PlantedBug::Nothing).trace,
            "seed {seed}"
        );
    }
}

#[track_caller]
fn is_found(planted: PlantedBug) {
    silence_planned_panics();
    let Some((seed, run)) = first_broken(1..=2_000, planted) else { panic!("{planted:?} was not found") };
    #[expect(clippy::print_stdout, reason = "how many seeds it took is what one wants to know")]
    {
        println!("{planted:?} was found by seed {seed}: {}", run.violation.unwrap_or_default());
    }
}

#[test]
fn an_answer_before_the_commit_is_found() {
    is_found(PlantedBug::EarlyAnswers);
}

#[test]
fn a_finish_without_its_fence_is_found() {
    is_found(PlantedBug::NoFence);
}

#[test]
fn a_decision_on_what_is_no_longer_so_is_found() {
    is_found(PlantedBug::StaleDecisions);
}

#[test]
fn a_done_callback_that_answers_for_what_is_no_longer_so_is_found() {
    is_found(PlantedBug::DoneJoins);
}
