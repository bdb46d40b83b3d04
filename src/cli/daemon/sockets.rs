//! Supervisor support (systemd): sockets it hands over, and its watchdog. See [`crate::serve::supervisor`].

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::cli::{Exit, Failure};
use crate::config::{Environment as _, ProcessEnvironment};
use crate::serve::daemon::Daemon;
use crate::serve::supervisor::{BadSocket, Sockets, Supervisor};

impl From<BadSocket> for Failure {
    fn from(error: BadSocket) -> Failure {
        Failure::new(Exit::Config, error.to_string())
    }
}

fn variable(name: &str) -> Option<String> {
    ProcessEnvironment.get(name)
}

/// Takes the sockets that the supervisor handed to this process. Must run before the process has a second thread.
pub(crate) fn sockets() -> Result<Sockets, Failure> {
    Ok(Sockets::take(&variable)?)
}

pub(crate) fn supervisor() -> Supervisor {
    Supervisor::find(&variable)
}

/// Listener on a socket that the supervisor handed over, if there is one. Such a socket overrides the configured
/// address.
pub(crate) fn handed(
    socket: Option<std::net::TcpListener>,
    configured: Option<SocketAddr>,
) -> Result<Option<TcpListener>, Failure> {
    let failed =
        |error| Failure::new(Exit::Io, format!("a socket of the supervisor cannot be used: {error}"));
    let Some(listener) = socket.map(TcpListener::from_std).transpose().map_err(failed)? else {
        return Ok(None);
    };
    let address = listener.local_addr().map_err(failed)?;
    if configured.is_some_and(|configured| configured != address) {
        tracing::info!(%address, "listening on the supervisor's socket instead of the configured address");
    }
    Ok(Some(listener))
}

/// Refuses a handed-over socket that other machines can reach, for a service that only this machine may reach.
pub(crate) fn only_on_this_machine(listener: &TcpListener, why: &str) -> Result<(), Failure> {
    match listener.local_addr() {
        // The configuration cannot check this address, because the supervisor opened the socket.
        Ok(address) if !address.ip().is_loopback() => Err(Failure::new(
            Exit::Config,
            format!(
                "the socket that was handed over listens on {address}, and {why}: use ListenStream=127.0.0.1:PORT"
            ),
        )),
        _ => Ok(()),
    }
}

/// Notifies the watchdog at its interval while the daemon is alive. Never returns.
pub(crate) async fn feed_watchdog(supervisor: &Supervisor, daemon: &Daemon) {
    let Some(every) = supervisor.alive_every() else { return std::future::pending().await };
    loop {
        match daemon.alive().await {
            // The writer and the dispatcher have made progress.
            Ok(()) => supervisor.alive(),
            // Without a notification the supervisor's timeout expires, and it restarts the daemon.
            Err(part) => {
                tracing::error!(part, "a component makes no progress; the watchdog is not notified")
            }
        }
        sleep(every).await;
    }
}

/// Notifies the watchdog while the daemon stops. Every step of a stop has its own time limit, so no check is needed.
pub(crate) async fn feed_watchdog_while_stopping(supervisor: &Supervisor) {
    let Some(every) = supervisor.alive_every() else { return std::future::pending().await };
    loop {
        supervisor.alive();
        sleep(every).await;
    }
}
