//! Options of a daemon, the changes that a reload makes to them, and the errors of a start.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::admin::AdminOptions;
use crate::hooks::runner::Runner;
use crate::market_api::order_lookup::OrderLookupClients;
use crate::net::{ServerOptions, ServerTls};
use crate::serve::app::AppOptions;
use crate::serve::dispatch::DispatchOptions;
use crate::serve::intake::{Endpoint, IntakeOptions, Orphans};
use crate::serve::public::AccessPolicy;
use crate::serve::spans::TelemetryOptions;
use crate::store::encryption::Encryptor;
use crate::store::{StoreError, StoreOptions};
use spid_hook::time::Clock;
use tokio::net::TcpListener;

/// Options for a daemon, with its parts.
pub struct DaemonOptions {
    /// Path of the database.
    pub store_path: PathBuf,
    /// Options for the store.
    pub store: StoreOptions,
    /// The endpoints, each with its path.
    pub endpoints: Vec<(String, Endpoint)>,
    /// Accounts with live instances that deliberately have no endpoint any more.
    pub retired_accounts: Vec<String>,
    /// The hooks.
    pub runner: Runner,
    /// Order lookup at marketplaces whose callbacks do not contain the order details.
    pub orders: OrderLookupClients,
    /// Options for the intake.
    pub intake: IntakeOptions,
    /// Options for the dispatcher.
    pub dispatch: DispatchOptions,
    /// Limits on peers, for both listeners.
    pub server: ServerOptions,
    /// Options for the admin listener.
    pub admin: AdminOptions,
    /// Listener for the seller's application, with its options. Default: none.
    pub app: Option<(TcpListener, AppOptions)>,
    /// Certificate of the public listener; without one, plain HTTP.
    pub tls: Option<ServerTls>,
    /// Access policy for callers of the public listener.
    pub access_policy: AccessPolicy,
    /// Collector of spans. Default: none.
    pub telemetry: Option<TelemetryOptions>,
    /// The clock.
    pub clock: Clock,
}

/// Settings that a running daemon can change by a reload. All others need a restart.
pub struct Changes {
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
    /// Certificate used from the next handshake on; ignored if the daemon runs without TLS.
    pub tls: Option<ServerTls>,
    /// Time for which passwords and license keys are repeated after their first report, in milliseconds.
    pub secrets_window_ms: i64,
    /// Sealing keys from now on; `None` keeps the current ones.
    pub encryptor: Option<Encryptor>,
    /// Options for the admin listener.
    pub admin: AdminOptions,
    /// Options for the application's listener; ignored if the daemon runs without it.
    pub app: AppOptions,
}

impl DaemonOptions {
    /// Returns options with these endpoints and hooks, and defaults for everything else.
    pub fn new(store_path: PathBuf, endpoints: Vec<(String, Endpoint)>, runner: Runner) -> DaemonOptions {
        DaemonOptions {
            store_path,
            store: StoreOptions::default(),
            endpoints,
            retired_accounts: Vec::new(),
            runner,
            orders: OrderLookupClients::default(),
            intake: IntakeOptions::default(),
            dispatch: DispatchOptions::default(),
            server: ServerOptions::default(),
            admin: AdminOptions::default(),
            app: None,
            tls: None,
            access_policy: AccessPolicy::default(),
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
