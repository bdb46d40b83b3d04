//! What the tests of hooks hold calls and answers against: our schemas, read by somebody else's validator.
#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::Value;

/// The two schemas of the contract.
pub(crate) struct Contract {
    call: Validator,
    answer: Validator,
}

impl Contract {
    pub(crate) fn new() -> Contract {
        let validator = |schema: &Value| jsonschema::draft202012::new(schema).unwrap();
        Contract {
            call: validator(&spid::hook::schema::call()),
            answer: validator(&spid::hook::schema::answer()),
        }
    }

    pub(crate) fn check_call(&self, from: &str, call: &Value) {
        check(&self.call, from, call);
    }

    pub(crate) fn check_answer(&self, from: &str, answer: &Value) {
        check(&self.answer, from, answer);
    }
}

fn check(validator: &Validator, from: &str, value: &Value) {
    let wrong: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{from}: {wrong:?}\n{value:#}");
}

/// One of the examples.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// Says that Python is missing and returns true, unless skipping is forbidden.
pub(crate) fn no_python() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join("python3").is_file()) {
        return false;
    }
    assert!(std::env::var_os("SPID_TEST_SKIPS_FORBIDDEN").is_none(), "python3 is missing");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: install python3\n");
    true
}
