//! Accept loop, which no error ends.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::connection::{ConnectionSlot, serve_connection};
use super::{Drained, Handler, Server, ServerOptions};
use crate::observe::limits;

/// Source of connections: the listener, or in tests one that fails on demand.
pub(super) trait Accept: Send + Sync {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        TcpListener::accept(self)
    }
}

pub(super) async fn serve_on<H: Handler>(
    listener: impl Accept,
    options: ServerOptions,
    handler: H,
    stop: impl Future<Output = ()> + Send,
) -> Drained {
    let server = Arc::new(Server::new(options, handler));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let mut stopping = false;
    while !stopping {
        // 1. Accept. `biased` polls the stop first, so that a busy listener cannot delay a stop.
        let (stream, peer) = select! {
            biased;
            () = stop.as_mut() => break,
            accepted = accept(&listener, &server) => accepted,
        };
        // 2. Take a permit, if need be from another connection. An accepted connection is served even beyond the limit, because its request may be on its way.
        let permit = select! {
            biased;
            permit = server.make_room() => permit,
            () = stop.as_mut() => { stopping = true; None }
        };
        // 3. Serve the connection in a task of its own. The slot is registered before the task starts, so that a drain or a displacement sees this connection.
        let slot = ConnectionSlot::take(server.clone(), peer, permit);
        connections.spawn(serve_connection(stream, slot));
        // 4. Finished tasks are removed here, because no other code joins them before the stop.
        while connections.try_join_next().is_some() {}
    }
    // 5. The listener closes before the drain, so that new connections go to the next daemon.
    drop(listener);
    server.drain(connections).await
}

/// Accepts the next connection. If no file descriptor is left, another connection is closed to free one.
async fn accept<H: Handler>(listener: &impl Accept, server: &Server<H>) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                    server.displace();
                }
                on_accept_error(&error).await;
            }
        }
    }
}

/// Handles an accept error. A peer that disconnected early costs nothing. A system without free descriptors or memory
/// needs a pause, because the loop would otherwise spin.
async fn on_accept_error(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        debug!(%error, "the peer closed a connection before it was accepted");
        return;
    }
    warn!(%error, "cannot accept connections; trying again");
    sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{Response, ServerOptions, lock};
    use super::*;
    use crate::net::Request;

    /// Fails first as a system out of descriptors does, then as peers do, and then accepts.
    struct Failing {
        listener: TcpListener,
        failures: Mutex<Vec<io::Error>>,
    }

    impl Accept for Failing {
        async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            let failure = lock(&self.failures).pop();
            match failure {
                Some(failure) => Err(failure),
                None => self.listener.accept().await,
            }
        }
    }

    #[tokio::test]
    async fn the_accept_loop_survives_what_accept_can_fail_with() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const EMFILE: i32 = 24;
        const ENFILE: i32 = 23;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let failures = vec![
            io::ErrorKind::ConnectionAborted.into(),
            io::Error::from_raw_os_error(EMFILE),
            io::Error::from_raw_os_error(ENFILE),
            io::ErrorKind::ConnectionReset.into(),
        ];
        let failing = Failing { listener, failures: Mutex::new(failures) };
        let handler = |_: Request| async { Response::text(200, "alive") };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_on(failing, ServerOptions::default(), handler, async move {
            let _ = stopped.await;
        }));
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("alive"), "{answer}");
        stop.send(()).unwrap();
        assert_eq!(server.await.unwrap(), Drained { finished: true, left: 0 });
    }
}
