//! Options of a daemon, those of them that a reload changes, and the errors of a start.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::admin::AdminOptions;
use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::OrderLookupClients;
use crate::net::{ServerOptions, ServerTls};
use crate::serve::app::AppOptions;
use crate::serve::dispatch::DispatchOptions;
use crate::serve::intake::{Endpoint, IntakeOptions, Orphans};
use crate::serve::market_jobs::Market;
use crate::serve::public::AccessPolicy;
use crate::serve::spans::TelemetryOptions;
use crate::store::{StoreError, StoreOptions};
use spid_hook::time::Clock;
use tokio::net::TcpListener;

/// Options for a daemon, with its parts.
pub struct DaemonOptions {
    /// Path of the database.
    pub store_path: PathBuf,
    /// Options for the store.
    pub store: StoreOptions,
    /// Options that a reload changes.
    pub live: LiveOptions,
    /// Accounts with live instances that deliberately have no endpoint any more.
    pub retired_accounts: Vec<String>,
    /// Options for the dispatcher.
    pub dispatch: DispatchOptions,
    /// Limits on peers, for both listeners.
    pub server: ServerOptions,
    /// Listener for the seller's application. Default: none.
    pub app: Option<TcpListener>,
    /// Collector of spans. Default: none.
    pub telemetry: Option<TelemetryOptions>,
    /// The clock.
    pub clock: Clock,
}

/// Options that a running daemon can change by a reload. All others need a restart.
#[derive(Clone)]
pub struct LiveOptions {
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// The hooks.
    pub runner: Runner,
    /// Order lookup at marketplaces whose callbacks do not contain the order details.
    pub orders: OrderLookupClients,
    /// Options for the intake.
    pub intake: IntakeOptions,
    /// Access policy for callers of the public listener.
    pub access_policy: AccessPolicy,
    /// Certificate of the public listener; without one, plain HTTP. A reload cannot turn TLS on or off.
    pub tls: Option<ServerTls>,
    /// Options for the admin listener.
    pub admin: AdminOptions,
    /// Options for the application's listener; ignored if the daemon runs without it.
    pub app: AppOptions,
    /// Markets whose APIs are called.
    pub markets: Vec<Market>,
}

impl LiveOptions {
    /// Returns options with these endpoints and hooks, and defaults for everything else.
    pub fn new(endpoints: Vec<(String, Endpoint)>, runner: Runner) -> LiveOptions {
        LiveOptions {
            endpoints,
            runner,
            orders: OrderLookupClients::default(),
            intake: IntakeOptions::default(),
            access_policy: AccessPolicy::default(),
            tls: None,
            admin: AdminOptions::default(),
            app: AppOptions::default(),
            markets: Vec::new(),
        }
    }
}

impl DaemonOptions {
    /// Returns options with these endpoints and hooks, and defaults for everything else.
    pub fn new(store_path: PathBuf, endpoints: Vec<(String, Endpoint)>, runner: Runner) -> DaemonOptions {
        DaemonOptions {
            store_path,
            store: StoreOptions::default(),
            live: LiveOptions::new(endpoints, runner),
            retired_accounts: Vec::new(),
            dispatch: DispatchOptions::default(),
            server: ServerOptions::default(),
            app: None,
            telemetry: None,
            clock: Clock::System,
        }
    }
}

/// Reasons why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder beside the database in which running hooks are marked cannot be used.
    #[error("the folder for marks of running hooks cannot be used: {0}")]
    Leftovers(#[source] std::io::Error),
    /// The admin listener is reachable from other machines, and no token protects it.
    #[error(
        "the admin listener at {0} is not on loopback and has no token: set a token, or listen on 127.0.0.1"
    )]
    Unguarded(SocketAddr),
    /// Accounts have live instances, but no endpoint.
    #[error(transparent)]
    Orphans(#[from] Orphans),
    /// A listener cannot be used.
    #[error("the listener cannot be used: {0}")]
    Listener(#[from] std::io::Error),
}
