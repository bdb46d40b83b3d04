//! The preload library that makes system calls fail (`tests/faultfs`). It is built at the first use, offline: its
//! only dependency is one of spid's.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library and returns its path, or the reason why that is not possible.
pub(crate) fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faultfs");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--offline", "--manifest-path"])
        .arg(root.join("tests/faultfs/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        // Flags, wrappers and coverage of the outer cargo must not affect this build.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .output();
    match built {
        Ok(output) if output.status.success() => Ok(target.join("debug/libfaultfs.so")),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}
