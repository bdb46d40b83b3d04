//! What the tests of the examples share: where an example is, and what it needs of the machine.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source of an example.
pub(crate) fn source(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

/// An example in Rust. `cargo test` has built it beside this test; `cargo test --test …` has not.
pub(crate) fn built(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", name]).current_dir(root());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the example does not build");
    let this = std::env::current_exe().unwrap();
    this.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// Says what is missing and returns true, unless skipping is forbidden.
pub(crate) fn skipped(missing: &[&str]) -> bool {
    if missing.is_empty() {
        return false;
    }
    assert!(std::env::var_os("SPID_TEST_SKIPS_FORBIDDEN").is_none(), "missing: {missing:?}");
    let _ = writeln!(std::io::stderr(), "skipped: install {}", missing.join(" "));
    true
}

/// The folder a command is in.
pub(crate) fn folder_of(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find(|folder| folder.join(command).is_file())
}
