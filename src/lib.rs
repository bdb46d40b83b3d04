//! `spid` receives the signed provisioning callbacks of cloud marketplaces, runs the seller's hook for
//! each, and keeps the state of every instance in SQLite.
//!
//! To build spid with your own hook is three lines: implement [`hook::ProvisioningHook`] and hand it to
//! [`run_with`]; it then is the complete `spid` command with that hook inside.
//!
//! The rules are in the crate `spid-core`, the hook's interface in `spid-hook`. The rooms of this crate, from the
//! bottom up, each of which may use only those before it:
//!
//! * `observe`: bounds, metrics and the requests that were denied
//! * `net`: HTTP server and client, TLS
//! * `store`: the database and its one writer
//! * `hooks`: the runner of the seller's hooks
//! * `lab`, `market_api`: tools that play a marketplace; requests to the marketplaces' own APIs
//! * `admin`: the operator's listener
//! * `serve`: the daemon and the path of a callback
//! * `config`: from a file to the options of every other room
//! * `cli`: one file a command

mod admin;
mod cli;
mod config;
mod hooks;
mod lab;
mod market_api;
mod net;
mod observe;
mod serve;
mod store;

use std::process::ExitCode;

pub use cli::App;
pub use spid_hook as hook;
pub use spid_hook::testing;

/// Runs the `spid` command line of this process.
pub fn run() -> ExitCode {
    cli::run(cli::Program::default(), None)
}

/// Runs the `spid` command line of this process with a hook of the caller's inside: it is the default
/// hook of `serve` and `demo`, and the configuration needs no `[[hook]]`. [`App`] also has a name, a version and a start.
pub fn run_with(hook: impl hook::ProvisioningHook) -> ExitCode {
    cli::run(cli::Program::default(), Some(cli::Inside::of(hook::AnyHook::new(hook))))
}

/// The rooms of the daemon, for its own tests and benches. Not a part of the interface: it changes without notice.
#[doc(hidden)]
pub mod internals {
    /// The room `admin`.
    pub mod admin {
        pub use crate::admin::*;
    }
    /// The room `config`.
    pub mod config {
        pub use crate::config::*;
    }
    /// The room `core`.
    pub mod core {
        pub use spid_core::*;
    }
    /// The room `hooks`.
    pub mod hooks {
        pub use crate::hooks::*;
    }
    /// The room `lab`.
    pub mod lab {
        pub use crate::lab::*;
    }
    /// The room `market_api`.
    pub mod market_api {
        pub use crate::market_api::*;
    }
    /// The room `net`.
    pub mod net {
        pub use crate::net::*;
    }
    /// The room `observe`.
    pub mod observe {
        pub use crate::observe::*;
    }
    /// The room `serve`.
    pub mod serve {
        pub use crate::serve::*;
    }
    /// The room `store`.
    pub mod store {
        pub use crate::store::*;
    }
}
