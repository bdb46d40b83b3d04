//! Programs and packages that a test needs and that a machine may lack.

use std::io::Write;
use std::path::PathBuf;

/// Folder of a program. Servers are in folders of root's search path.
pub(crate) fn folder_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.find(|folder| folder.join(program).is_file())
}

/// Returns true if the program is missing. Prints the name of its package, or panics if skipping is forbidden.
pub(crate) fn lacks(program: &str, package: &str) -> bool {
    let missing = folder_of(program).is_none();
    if missing {
        skipped(package);
    }
    missing
}

/// Prints that a test is skipped, and how to install the missing program. Panics if skipping is forbidden.
pub(crate) fn skipped(install: &str) {
    assert!(std::env::var_os("SPID_TEST_SKIPS_FORBIDDEN").is_none(), "missing: install {install}");
    // Write past libtest, which hides the output of passing tests.
    let _ = writeln!(std::io::stderr(), "skipped: install {install}");
}
