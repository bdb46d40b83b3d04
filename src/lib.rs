//! `spid` receives the signed provisioning callbacks of cloud marketplaces, runs the seller's hook for
//! each, and keeps the state of every instance in SQLite.
//!
//! A program of one's own is three lines: implement [`hook::ProvisioningHook`] and hand it to
//! [`run_with`]; it then is the complete `spid` command with that hook inside.
//!
//! The modules, from the bottom up; each may use only those above it in this list:
//!
//! * [`limits`], [`clock`], [`metrics`], [`json`], [`text`]: every bound; time and ids; what is counted; JSON with
//!   its digits; text fit to be shown
//! * [`signature`], [`seal`], [`http`], [`supervisor`], [`trace`]: the only place that touches a key; secrets at
//!   rest; hyper; systemd; what a callback is followed by
//! * [`callback`], [`query`], [`telemetry`]: the words everything else speaks; strict query strings; spans for a
//!   collector
//! * [`dialect`], [`instance`], [`job`]: how marketplaces speak; the lifecycle; the retry schedule
//! * [`hook`], [`store`], [`refusals`], [`orders`], [`outbound`]: the seller's code; what is kept; what was
//!   turned away; what has to be asked; requests to other people's endpoints
//! * [`intake`], [`dispatch`], [`keywatch`], [`testing`]: the path of a callback; the path of a job; old keys;
//!   the hook author's test
//! * [`front`], [`admin`]: the two listeners
//! * [`config`], [`scenario`], [`conformance`], [`market`]: from a file to everything above; fixtures, sent
//!   and compared; any receiver, judged; a marketplace, pretended
//! * [`daemon`]: start and stop, in order

mod admin;
mod cli;
mod config;
mod core;
pub mod hook;
mod hooks;
mod lab;
mod market_api;
mod net;
mod observe;
mod serve;
mod store;

use std::process::ExitCode;

/// Runs the `spid` command line of this process.
pub fn run() -> ExitCode {
    cli::run(None)
}

/// Runs the `spid` command line of this process with a hook of the caller's inside: it is the default
/// hook of `serve` and `demo`, and the configuration needs no `[[hook]]`.
pub fn run_with(hook: impl hook::ProvisioningHook) -> ExitCode {
    cli::run(Some(hook::AnyHook::new(hook)))
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
