//! A fixed address for a daemon that has another address after every start.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that panics has said what it found"
)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
pub(crate) struct Forwarder {
    address: SocketAddr,
    leads_to: Arc<Mutex<Option<SocketAddr>>>,
}

impl Forwarder {
    /// Listens until the test ends. Without a destination it closes every connection.
    pub(crate) async fn start() -> Forwarder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let forwarder = Forwarder { address: listener.local_addr().unwrap(), leads_to: Arc::default() };
        let leads_to = forwarder.leads_to.clone();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let to = *leads_to.lock().unwrap();
                tokio::spawn(async move {
                    let Some(to) = to else { return };
                    if let Ok(mut to) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
        forwarder
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn leads_to(&self, address: Option<SocketAddr>) {
        *self.leads_to.lock().unwrap() = address;
    }
}
