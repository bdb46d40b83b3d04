//! The fuzz targets without a fuzzer: every committed seed, mutations of the seeds, and plain noise.
//!
//! The bodies are those of `cargo fuzz`; see `fuzz/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use crate::support::examples::root;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use targets::TARGETS;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut files_of = files(&root().join("fuzz/corpus").join(target));
    if target == "scenario" {
        files_of.extend(files(&root().join("spi-fixtures")));
    }
    assert!(files_of.len() >= 3, "{target} has too few seeds");
    files_of.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    /// Repeats a piece in another place.
    Repeat(Index, Index, Index),
}

/// Texts with a meaning for the parsers.
#[rustfmt::skip]
const TELLING: &[&[u8]] = &[
    b"&", b"=", b"%", b"+", b"\n", b"\0", b"%26", b"%3D", b"%00", b"%C3", b"\xff", b"token=", b"\"", b"{",
    b"}", b"[", b"]", b"${", b"null", b"-1", b"1e999", b"9999", b"\xc3\xa9",
];

fn change() -> impl Strategy<Value = Change> {
    let piece = prop::sample::select(TELLING).prop_map(<[u8]>::to_vec);
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        at().prop_map(Change::Cut),
        (at(), piece).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at(), at(), at()).prop_map(|(from, to, at)| Change::Repeat(from, to, at)),
    ]
}

fn apply(input: &mut Vec<u8>, change: &Change) {
    let place = |at: &Index| at.index(input.len() + 1);
    match change {
        Change::Set(at, byte) => {
            let at = place(at);
            if let Some(slot) = input.get_mut(at) {
                *slot = *byte;
            }
        }
        Change::Cut(at) => input.truncate(place(at)),
        Change::Insert(at, piece) => {
            let at = place(at);
            input.splice(at..at, piece.iter().copied());
        }
        Change::Repeat(from, to, at) => {
            let (from, to, at) = (place(from), place(to), place(at));
            let piece = input[from.min(to)..from.max(to)].to_vec();
            input.splice(at..at, piece);
        }
    }
}

fn inputs(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed = (prop::sample::select(seeds), prop::collection::vec(change(), 1..6)).prop_map(
        |(mut input, changes)| {
            changes.iter().for_each(|change| apply(&mut input, change));
            input
        },
    );
    prop_oneof![8 => changed, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

fn smoke(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    for seed in seeds(name) {
        target(&seed);
    }
    let config = Config { cases: 1_000, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&inputs(seeds(name)), |input| {
        target(&input);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

#[test]
fn every_target_is_smoked() {
    let folders: Vec<String> = std::fs::read_dir(root().join("fuzz/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let declared = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    assert_eq!(declared.matches("[[bin]]").count(), TARGETS.len());
    assert_eq!(folders.len(), TARGETS.len(), "{folders:?}");
    for (name, _) in TARGETS {
        assert!(declared.contains(&format!("name = \"{name}\"")), "{name} is not built by cargo fuzz");
        assert!(folders.iter().any(|folder| folder == name), "{name} has no seeds");
        assert!(root().join(format!("fuzz/fuzz_targets/{name}.rs")).exists(), "{name}");
    }
}

#[test]
fn queries() {
    smoke("query");
}

#[test]
fn tokens() {
    smoke("token");
}

#[test]
fn dates() {
    smoke("date");
}

#[test]
fn scenarios() {
    smoke("scenario");
}

#[test]
fn answers() {
    smoke("answer");
}

#[test]
fn configurations() {
    smoke("config");
}
