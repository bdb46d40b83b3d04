//! The `spid` command: parse, run, exit code. Everything else is in the library.

/// Allocator of the whole process: a request consists of many small strings that are allocated and freed together.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    spid::run()
}
