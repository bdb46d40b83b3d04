//! The replaced C library calls.
//!
//! Each makes the system call itself, so it needs no symbol lookup and cannot recurse through the C library. `open`
//! is variadic in C. On the 64-bit Linux ABIs a missing third argument is read as garbage. As in the kernel, it is
//! not used unless a file is created.

use std::cell::Cell;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{
    c_char, c_int, c_long, c_uint, c_void, clockid_t, iovec, mode_t, msghdr, off_t, size_t, sockaddr,
    socklen_t, ssize_t, timespec,
};

use crate::control::{self, Kind, Verdict};
use crate::disk::{self, Disk, Watched};

thread_local! {
    /// Set while this library uses files itself, because its own calls also come here.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `ours`, unless the call comes from this library.
fn outside<T>(ours: impl FnOnce() -> Option<T>) -> Option<T> {
    if INSIDE.replace(true) {
        return None;
    }
    let done = ours();
    INSIDE.set(false);
    done
}

fn fail(error: c_int) -> c_long {
    // SAFETY: the address of this thread's errno.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Applies the rules to a call on a watched file, makes the call, and records its effect.
fn judged(kind: Kind, call: impl FnOnce() -> c_long, account: impl FnOnce(c_long)) -> c_long {
    let verdict = control::judge(kind);
    let done = match verdict {
        Verdict::Fail(error) => return fail(error),
        _ => call(),
    };
    if done >= 0 {
        account(done);
    }
    verdict.after();
    done
}

/// Like [`judged`], for a call on an open file. Files that are not watched pass unchanged.
fn on_file(
    kind: Kind,
    descriptor: c_int,
    call: impl Fn() -> c_long,
    account: impl FnOnce(&mut Disk, &str, c_long),
) -> c_long {
    if !disk::is_watched(descriptor) {
        return call();
    }
    let ours = outside(|| {
        let mut disk = disk::disk()?;
        let Some(Watched::File(name)) = disk.on(descriptor) else { return None };
        Some(judged(kind, &call, |done| account(&mut disk, &name, done)))
    });
    ours.unwrap_or_else(call)
}

/// # Safety
/// `path` is null or a C string.
unsafe fn watched(path: *const c_char) -> Option<Watched> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees it.
    disk::place()?.watched(Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes())))
}

/// # Safety
/// As `openat`.
unsafe fn open_at(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let call = || unsafe { libc::syscall(libc::SYS_openat, folder, path, flags, mode as c_uint) };
    let ours = outside(|| {
        // SAFETY: the caller guarantees it.
        let on = unsafe { watched(path) }?;
        let mut disk = disk::disk()?;
        match on {
            Watched::Folder => {
                let descriptor = call();
                if descriptor >= 0 {
                    disk.opened(descriptor as c_int, Watched::Folder, false, false);
                }
                Some(descriptor)
            }
            file => {
                // SAFETY: as above.
                let is_new = unsafe { libc::access(path, libc::F_OK) } != 0;
                let emptied = flags & libc::O_TRUNC != 0;
                Some(judged(Kind::Open, call, |descriptor| {
                    disk.opened(descriptor as c_int, file, is_new, emptied);
                }))
            }
        }
    });
    ours.unwrap_or_else(call) as c_int
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged; the same holds in all functions below.
    unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(libc::AT_FDCWD, path, flags | libc::O_LARGEFILE, mode) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(folder, path, flags, mode) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: see `open`.
    unsafe { open_at(folder, path, flags | libc::O_LARGEFILE, mode) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_close, descriptor) };
    if !disk::is_watched(descriptor) {
        return call() as c_int;
    }
    let ours = outside(|| {
        // Forget it first: another thread may get the number as soon as it is free.
        disk::disk()?.closed(descriptor);
        Some(call())
    });
    ours.unwrap_or_else(call) as c_int
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(descriptor: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_read, descriptor, buffer, count) };
    on_file(Kind::Read, descriptor, call, |_, _, _| {}) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread(descriptor: c_int, buffer: *mut c_void, count: size_t, at: off_t) -> ssize_t {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_pread64, descriptor, buffer, count, at) };
    on_file(Kind::Read, descriptor, call, |_, _, _| {}) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(
    descriptor: c_int,
    buffer: *mut c_void,
    count: size_t,
    at: off_t,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { pread(descriptor, buffer, count, at) }
}

/// Position of the next `write`, after `written` bytes were written.
fn position_before(descriptor: c_int, written: c_long) -> u64 {
    // SAFETY: no memory is touched.
    let now = unsafe { libc::lseek(descriptor, 0, libc::SEEK_CUR) };
    u64::try_from(now - written).unwrap_or(0)
}

/// A write at the position of the file, or to a connection.
fn write_here(descriptor: c_int, call: impl Fn() -> c_long) -> c_long {
    let done = outside(|| is_tcp(descriptor).then(|| judged(Kind::Reply, &call, |_| {})));
    done.unwrap_or_else(|| {
        on_file(Kind::Write, descriptor, call, |disk, name, written| {
            disk.written(name, position_before(descriptor, written), written.unsigned_abs());
        })
    })
}

fn is_tcp(descriptor: c_int) -> bool {
    let mut domain: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: both addresses have the given sizes; errno is restored for the caller.
    let answered = unsafe {
        let before = *libc::__errno_location();
        let domain: *mut c_int = &mut domain;
        let answered =
            libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN, domain.cast(), &mut length);
        *libc::__errno_location() = before;
        answered
    };
    answered == 0 && (domain == libc::AF_INET || domain == libc::AF_INET6)
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: see `open`.
    write_here(descriptor, || unsafe { libc::syscall(libc::SYS_write, descriptor, buffer, count) }) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(descriptor: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: see `open`.
    write_here(descriptor, || unsafe { libc::syscall(libc::SYS_writev, descriptor, parts, count) }) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    at: off_t,
) -> ssize_t {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, buffer, count, at) };
    on_file(Kind::Write, descriptor, call, |disk, name, written| {
        disk.written(name, at.unsigned_abs(), written.unsigned_abs());
    }) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    at: off_t,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { pwrite(descriptor, buffer, count, at) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: see `open`.
    unsafe { sendto(descriptor, buffer, count, flags, std::ptr::null(), 0) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_length: socklen_t,
) -> ssize_t {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_sendto, descriptor, buffer, count, flags, to, to_length) };
    write_here(descriptor, call) as ssize_t
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(descriptor: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: see `open`.
    write_here(descriptor, || unsafe { libc::syscall(libc::SYS_sendmsg, descriptor, message, flags) })
        as ssize_t
}

fn sync(descriptor: c_int, number: c_long) -> c_int {
    if !disk::is_watched(descriptor) {
        // SAFETY: no memory is touched.
        return unsafe { libc::syscall(number, descriptor) } as c_int;
    }
    let ours = outside(|| {
        let mut disk = disk::disk()?;
        let on = disk.on(descriptor)?;
        let verdict = control::judge(Kind::Sync);
        let done = match verdict {
            Verdict::Fail(error) => {
                disk.lost(&on);
                return Some(fail(error));
            }
            Verdict::Lie => 0,
            _ => match disk.sync(&on) {
                Ok(()) => 0,
                Err(error) => fail(error.raw_os_error().unwrap_or(libc::EIO)),
            },
        };
        verdict.after();
        Some(done)
    });
    // SAFETY: no memory is touched.
    ours.unwrap_or_else(|| unsafe { libc::syscall(number, descriptor) }) as c_int
}

/// As in C.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(descriptor: c_int) -> c_int {
    sync(descriptor, libc::SYS_fsync)
}

/// As in C.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    sync(descriptor, libc::SYS_fdatasync)
}

/// As in C.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate(descriptor: c_int, length: off_t) -> c_int {
    // SAFETY: no memory is touched.
    let call = || unsafe { libc::syscall(libc::SYS_ftruncate, descriptor, length) };
    on_file(Kind::Truncate, descriptor, call, |disk, name, _| {
        // The length is metadata of the file; the last page represents it.
        disk.written(name, length.unsigned_abs().saturating_sub(1), 1);
    }) as c_int
}

/// As in C.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(descriptor: c_int, length: off_t) -> c_int {
    ftruncate(descriptor, length)
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) };
    let ours = outside(|| {
        // SAFETY: see `open`.
        let Watched::File(name) = (unsafe { watched(path) })? else { return None };
        let mut disk = disk::disk()?;
        Some(judged(Kind::Remove, call, |_| disk.removed(&name)))
    });
    ours.unwrap_or_else(call) as c_int
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: see `open`.
    let call = || unsafe {
        libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0 as c_uint)
    };
    let ours = outside(|| {
        // SAFETY: see `open`.
        let (old, new) = unsafe { (watched(from)?, watched(to)?) };
        let (Watched::File(old), Watched::File(new)) = (old, new) else { return None };
        let mut disk = disk::disk()?;
        Some(judged(Kind::Rename, call, |_| disk.renamed(&old, &new)))
    });
    ours.unwrap_or_else(call) as c_int
}

/// A second name for a file, which fails as a renaming does.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: see `open`.
    let call = || unsafe { libc::syscall(libc::SYS_linkat, from_folder, from, to_folder, to, flags) };
    let ours = outside(|| {
        // SAFETY: see `open`.
        let (old, new) = unsafe { (watched(from)?, watched(to)?) };
        let (Watched::File(old), Watched::File(new)) = (old, new) else { return None };
        let mut disk = disk::disk()?;
        Some(judged(Kind::Rename, call, |_| disk.linked(&old, &new)))
    });
    ours.unwrap_or_else(call) as c_int
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: see `open`.
    let done = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    if done != 0 || clock != libc::CLOCK_REALTIME || time.is_null() {
        return done;
    }
    if let Some(offset) = outside(|| Some(control::clock_offset_ms())) {
        // SAFETY: the kernel has just written to this address.
        let time = unsafe { &mut *time };
        let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        let shifted = nanos + i128::from(offset) * 1_000_000;
        time.tv_sec = shifted.div_euclid(1_000_000_000) as libc::time_t;
        time.tv_nsec = shifted.rem_euclid(1_000_000_000) as c_long;
    }
    done
}
