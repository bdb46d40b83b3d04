//! Executables that can run immediately.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Creates an executable through another process. If this process had the file open for writing, a child of another
/// test could inherit the descriptor. Until the child executes its own program, nothing could run the file.
pub(crate) fn executable(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", r#"cat > "$0" && chmod 755 "$0""#]).arg(path).stdin(Stdio::piped());
    let mut writing = writer.spawn().unwrap();
    writing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writing.wait().unwrap().success());
}
