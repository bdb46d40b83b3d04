//! A disk, a clock and a power supply that fail when a test requests it.
//!
//! A shared library for `LD_PRELOAD` on Linux. It is between a process and its C library, counts the process's calls
//! on the files of one database, and makes selected calls fail. The process under test is the real one and does not
//! know of this.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `FAULTFS_PATH` | the database, absolute and without symbolic links; every file whose path begins with it is watched: `spid.db`, `-wal`, `-shm`, `.key`, `.lock`. Without it nothing happens. |
//! | `FAULTFS_RULES` | the rules from the start, separated by `;` |
//! | `FAULTFS_CONTROL` | a file of at least 1024 bytes, shared with the test, which may read the counts and change the rules and the clock while the process runs |
//! | `FAULTFS_SYNCED` | a folder with the state after a power failure at this moment |
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
//! There is one rule per kind; a later rule replaces an earlier one.
//!
//! # The control file
//!
//! Words of 64 bits in native byte order. Word 0 is the offset of the wall clock in milliseconds, signed. Kind number
//! k (in the order above) begins at word 8 + 8k: calls so far, first number that fails (0: none), last number that
//! fails, effect, and number of failures. The effect is an error number, 10000 kill-before, 10001 kill-after, 10002
//! lie, or 20000 and more: slow by the rest in milliseconds.
//!
//! # State after a power failure
//!
//! Written and unsynced data is gone. So is a name whose folder was not synced after the file was created or renamed.
//! `FAULTFS_SYNCED` is that state, updated at each sync. After the process is dead, the test restores it, completely
//! or mixed with the data in flight. A sync that fails loses its pages permanently, as on Linux: they count as clean
//! although they never reached the disk. The shared-memory file (`-shm`) is memory, and not a part of it.
//!
//! The library never makes a real sync: the process may be killed, but the machine keeps running.

mod calls;
mod control;
mod disk;
