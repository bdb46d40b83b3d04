//! A disk, a clock and a power plug that fail when a test says so.
//!
//! A shared library for `LD_PRELOAD` on Linux. It stands between a process and its C library, counts
//! what the process does to the files of one database, and makes chosen calls fail. The process under
//! test is the real one; nothing in it knows of this.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `FAULTFS_PATH` | the database, absolute and without symbolic links; every file whose path begins so is watched: `spid.db`, `-wal`, `-shm`, `.key`, `.lock`. Without it nothing happens. |
//! | `FAULTFS_RULES` | what fails, from the start: rules separated by `;` |
//! | `FAULTFS_CONTROL` | a file of at least 1024 bytes, shared with the test, which may read the counts and change the rules and the clock while the process runs |
//! | `FAULTFS_SYNCED` | a folder: keeps what would be left if the power went now |
//!
//! # Rules
//!
//! `KIND NUMBERS EFFECT`, as in `write 3 ENOSPC`, `sync 2.. EIO`, `reply 1 kill-before`.
//!
//! * KIND: `open`, `read`, `write`, `sync` (fsync and fdatasync, of a file or of the folder),
//!   `truncate`, `remove`, `rename`, all of watched files; and `reply`, a write to a TCP connection.
//! * NUMBERS: `3` is the third call of that kind since the control file was made (or the process was
//!   started, without one); `3..` from the third on.
//! * EFFECT: `ENOSPC`, `EIO`, `EROFS`, `EDQUOT` or a number: the call fails with that error and does
//!   nothing. `kill-before` and `kill-after`: the process gets SIGKILL before or after the call, so
//!   `reply 1 kill-before` is "after the commit, before the reply". `lie`: a `sync` succeeds and has
//!   synced nothing. `slow-10`: it takes ten milliseconds longer.
//!
//! One rule a kind; a later one takes the place of an earlier.
//!
//! # The control file
//!
//! Words of 64 bits in the machine's order. Word 0: what is added to the wall clock, in milliseconds,
//! signed. For kind number k (in the order above), from word 8 + 8k: calls so far, first number that
//! fails (0: none), last number that fails, effect (an error number, 10000 kill-before, 10001
//! kill-after, 10002 lie, 20000 and more slow by the rest in milliseconds), how often it has failed.
//!
//! # What a power cut leaves
//!
//! What was written and not synced is gone; so is a name whose folder was not synced after the file
//! was made or renamed. `FAULTFS_SYNCED` is that state, brought forward at each sync; after the
//! process is dead the test puts it back (all of it, or a mixture with what was on its way). A sync
//! that fails loses the pages it was to write for good, as Linux does: they count as clean although
//! they never reached the disk. The shared-memory file (`-shm`) is memory, and no part of it.
//!
//! No real sync is ever made: the process may be killed, but the machine will not be.

mod calls;
mod control;
mod disk;
