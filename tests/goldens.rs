//! Goldens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

#[path = "it/goldens/database.rs"]
mod database;

#[test]
#[ignore = "makes another database"]
fn the_database() {
    let to = std::env::var("SPID_GOLDENS_DATABASE").unwrap();
    let key = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/goldens/sealing-key"));
    std::fs::write(to, database::made(key)).unwrap();
}
