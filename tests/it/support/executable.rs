//! Executables that can be run at once.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes one, by another process: if this one had it open for writing, whatever another test starts meanwhile
/// would have it open, too, until it runs its own program, and nobody can run a file that is open for writing.
pub(crate) fn executable(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", r#"cat > "$0" && chmod 755 "$0""#]).arg(path).stdin(Stdio::piped());
    let mut writing = writer.spawn().unwrap();
    writing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writing.wait().unwrap().success());
}
