//! Files given by a path: opened without waiting, and read up to a limit.
//!
//! Opening a named pipe waits for a writer, and a device or a pipe may never end. A daemon that waits for such
//! a file can neither start nor reload. So only regular files are read, and a link must lead to one. An
//! exception is a descriptor that this process was started with (`/dev/stdin`, `/dev/fd/N`: a redirection of
//! the shell). It may be of any kind.

use std::fs::{File, FileType};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// Paths under which the system shows a process its own descriptors.
const DESCRIPTORS: [&str; 3] = ["/dev/fd", "/dev/stdin", "/proc/self/fd"];

/// Opens a regular file for reading.
///
/// # Errors
/// The system's error, or the kind of a file that is not regular.
pub fn open(path: &Path) -> io::Result<File> {
    // The operator chose the redirection, so a pipe is intended here.
    if DESCRIPTORS.iter().any(|place| path.starts_with(place)) {
        return File::open(path);
    }
    // Without NONBLOCK, opening a named pipe would wait for a writer.
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let file = File::from(opened);
    // Check the opened file, not the path: the path could be replaced in between.
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let message = format!("must be a regular file, not {}", name(kind));
    Err(io::Error::new(ErrorKind::InvalidInput, message))
}

/// Reads a regular file completely. The bytes are wiped from memory when they are dropped.
///
/// # Errors
/// Errors of [`open`], and an error if the file is longer than `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    // Read one byte more than allowed, to detect a file that is too long.
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("the file is longer than {most} bytes")));
    }
    Ok(bytes)
}

/// Reads a regular text file completely.
///
/// # Errors
/// Errors of [`read`], and an error if the file is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let bytes = read(path, most)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "the file is not UTF-8 text"))?;
    Ok(text.to_owned())
}

fn name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "something else",
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("text"), "abc").unwrap();
        std::os::unix::fs::symlink(at("text"), at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        std::os::unix::fs::symlink(at("pipe"), at("link-to-pipe")).unwrap();
        assert_eq!(read_text(&at("text"), 3).unwrap(), "abc");
        assert_eq!(read_text(&at("link"), 3).unwrap(), "abc");
        let refused = |path: &Path| read(path, 100).unwrap_err().to_string();
        for pipe in ["pipe", "link-to-pipe"] {
            assert_eq!(refused(&at(pipe)), "must be a regular file, not a named pipe");
        }
        assert_eq!(refused(folder.path()), "must be a regular file, not a directory");
        assert_eq!(refused(Path::new("/dev/zero")), "must be a regular file, not a device");
        assert_eq!(read(&at("text"), 2).unwrap_err().to_string(), "the file is longer than 2 bytes");
        assert_eq!(read(&at("missing"), 2).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
