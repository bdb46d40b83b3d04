//! The `spid` command: parse, run, exit code. Everything else is in the library.

/// A request is many small texts that come and go together.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    spid::run()
}
