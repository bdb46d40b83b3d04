//! Running under a supervisor: its sockets, and its watchdog. See [`crate::supervisor`].

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::time::sleep;

use super::{Exit, Failure};
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

/// The sockets this process was started with. To be called before it has a second thread.
pub(super) fn sockets() -> Result<Sockets, Failure> {
    Ok(Sockets::take(&variable)?)
}

pub(super) fn supervisor() -> Supervisor {
    Supervisor::find(&variable)
}

/// A listener on a socket that was handed over, if one was; it comes before what is configured.
pub(super) fn handed(
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
        tracing::info!(%address, "listening on the socket that was handed over, not on the configured address");
    }
    Ok(Some(listener))
}

/// A handed-over socket that everybody reaches, for something only this machine may reach.
pub(super) fn only_on_this_machine(listener: &TcpListener, why: &str) -> Result<(), Failure> {
    match listener.local_addr() {
        Ok(address) if !address.ip().is_loopback() => Err(Failure::new(
            Exit::Config,
            format!(
                "the socket that was handed over listens on {address}, and {why}: use ListenStream=127.0.0.1:PORT"
            ),
        )),
        _ => Ok(()),
    }
}

/// Gives a sign of life whenever one is due and there is life. Never ends.
pub(super) async fn feed_watchdog(supervisor: &Supervisor, daemon: &Daemon) {
    let Some(every) = supervisor.alive_every() else { return std::future::pending().await };
    loop {
        match daemon.alive().await {
            Ok(()) => supervisor.alive(),
            Err(part) => {
                tracing::error!(part, "no sign of life; the supervisor is not told that all is well")
            }
        }
        sleep(every).await;
    }
}

/// Gives signs of life while the daemon stops: each step of a stop is bounded, so it needs no watching.
pub(super) async fn feed_watchdog_while_stopping(supervisor: &Supervisor) {
    let Some(every) = supervisor.alive_every() else { return std::future::pending().await };
    loop {
        supervisor.alive();
        sleep(every).await;
    }
}
