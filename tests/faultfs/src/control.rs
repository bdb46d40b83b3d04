//! Failure rules, and counters of all calls.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = 128;

/// Counted calls, in the order of the control file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Remove,
    Rename,
    Reply,
}

const KINDS: [(&str, Kind); 8] = [
    ("open", Kind::Open),
    ("read", Kind::Read),
    ("write", Kind::Write),
    ("sync", Kind::Sync),
    ("truncate", Kind::Truncate),
    ("remove", Kind::Remove),
    ("rename", Kind::Rename),
    ("reply", Kind::Reply),
];

const KILL_BEFORE: u64 = 10_000;
const KILL_AFTER: u64 = 10_001;
const LIE: u64 = 10_002;
/// Adds this delay in milliseconds.
const SLOW: u64 = 20_000;

/// Effect on one call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Fail(i32),
    Lie,
    KillAfter,
}

impl Verdict {
    /// To be called after the call was made.
    pub(crate) fn after(self) {
        if self == Verdict::KillAfter {
            die();
        }
    }
}

static OWN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// The shared words, or private ones if no test shares any.
fn words() -> &'static [AtomicU64] {
    static WORDS_ONCE: OnceLock<&'static [AtomicU64]> = OnceLock::new();
    WORDS_ONCE.get_or_init(|| {
        let words = std::env::var_os("FAULTFS_CONTROL").and_then(map).unwrap_or(&OWN);
        let rules = std::env::var_os("FAULTFS_RULES").unwrap_or_default().into_string().unwrap_or_default();
        for rule in rules.split(';') {
            if !rule.trim().is_empty() && set(words, rule).is_none() {
                eprintln!("faultfs: `{rule}` is not a rule");
                die();
            }
        }
        words
    })
}

fn map(path: std::ffi::OsString) -> Option<&'static [AtomicU64]> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).ok()?;
    if file.metadata().ok()?.len() < (WORDS * 8) as u64 {
        return None;
    }
    // SAFETY: a new mapping of a file of at least this length; its address is used only here.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            WORDS * 8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: mapped for the lifetime of the process, aligned to a page, and only used atomically.
    Some(unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), WORDS) })
}

fn set(words: &[AtomicU64], rule: &str) -> Option<()> {
    let mut parts = rule.split_whitespace();
    let (kind, numbers, effect) = (parts.next()?, parts.next()?, parts.next()?);
    let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == kind)?;
    let (first, last) = match numbers.strip_suffix("..") {
        Some(first) => (first.parse().ok()?, u64::MAX),
        None => (numbers.parse().ok()?, numbers.parse().ok()?),
    };
    let effect = match effect {
        "ENOSPC" => libc::ENOSPC as u64,
        "EIO" => libc::EIO as u64,
        "EROFS" => libc::EROFS as u64,
        "EDQUOT" => libc::EDQUOT as u64,
        "kill-before" => KILL_BEFORE,
        "kill-after" => KILL_AFTER,
        "lie" => LIE,
        slow if slow.starts_with("slow-") => SLOW + slow.trim_start_matches("slow-").parse::<u64>().ok()?,
        number => number.parse().ok()?,
    };
    let base = base(kind);
    for (offset, value) in [(1, first), (2, last), (3, effect)] {
        words[base + offset].store(value, Ordering::SeqCst);
    }
    Some(())
}

fn base(kind: Kind) -> usize {
    8 + 8 * kind as usize
}

/// Counts a call and returns its effect. Does not return if the process dies before the call.
pub(crate) fn judge(kind: Kind) -> Verdict {
    let words = words();
    let base = base(kind);
    let word = |offset: usize| words[base + offset].load(Ordering::SeqCst);
    let number = words[base].fetch_add(1, Ordering::SeqCst) + 1;
    if word(1) == 0 || number < word(1) || number > word(2) {
        return Verdict::Pass;
    }
    words[base + 4].fetch_add(1, Ordering::SeqCst);
    match word(3) {
        KILL_BEFORE => die(),
        KILL_AFTER => Verdict::KillAfter,
        LIE => Verdict::Lie,
        slow if slow >= SLOW => {
            #[allow(clippy::disallowed_methods, reason = "a slow disk is what it pretends")]
            std::thread::sleep(std::time::Duration::from_millis(slow - SLOW));
            Verdict::Pass
        }
        error => Verdict::Fail(error as i32),
    }
}

/// Offset of the wall clock, in milliseconds.
pub(crate) fn clock_offset_ms() -> i64 {
    words()[0].load(Ordering::SeqCst).cast_signed()
}

/// Ends the process like `kill -9`.
pub(crate) fn die() -> ! {
    loop {
        // SAFETY: no memory is touched.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
            libc::pause();
        }
    }
}
