//! A provisioning hook in Rust that spid runs as a program, without spid inside.
//!
//! ```toml
//! [[hook]]
//! name = "provision"
//! exec = { command = ["/opt/app/exec_main", "/var/lib/my-app"] }
//! ```
//!
//! Its own crate needs `spid-hook` alone, which is 24 more crates and no C compiler.

use std::process::ExitCode;

mod tenants;

fn main() -> ExitCode {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "tenants".into());
    spid_hook::exec_main(tenants::Tenants::new(root))
}
