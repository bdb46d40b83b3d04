//! Programs and packages that a test needs and a machine may lack.

use std::io::Write;
use std::path::PathBuf;

/// The folder a program is in. Servers are where only root looks for them.
pub(crate) fn folder_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.find(|folder| folder.join(program).is_file())
}

/// Returns true where the program is missing. Says so by the name of its package, unless skipping is forbidden.
pub(crate) fn lacks(program: &str, package: &str) -> bool {
    let missing = folder_of(program).is_none();
    if missing {
        skipped(package);
    }
    missing
}

/// Says that a test is skipped, and how to put what it needs in place. Panics where skipping is forbidden.
pub(crate) fn skipped(install: &str) {
    assert!(std::env::var_os("SPID_TEST_SKIPS_FORBIDDEN").is_none(), "missing: install {install}");
    // Written past libtest, which would keep it to itself where the test passes.
    let _ = writeln!(std::io::stderr(), "skipped: install {install}");
}
