//! Connections of the client: addresses of a host, TCP, TLS.
//!
//! Name resolution and the check of the addresses are ours; the connector of hyper-util gets the addresses that may be
//! used. It tries both families of a host side by side (RFC 8305), so a host whose IPv6 leads nowhere is reached by IPv4.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec;

use hyper::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tower_service::Service;

use super::client::{ClientError, ClientOptions};
use super::{NoTls, OutboundPolicy, Tls};

/// A plain or encrypted byte stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connection for Box<dyn Stream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Opens connections, all of them with TLS or all without.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: Option<Tls>,
    outbound: OutboundPolicy,
    hosts: Arc<HashMap<String, Vec<IpAddr>>>,
    /// Time limit for everything up to the end of the TLS handshake.
    within: Duration,
}

impl Connector {
    /// Creates a connector. With TLS and without configured roots, it reads the system's.
    pub(super) fn new(options: &ClientOptions, secure: bool) -> Result<Connector, NoTls> {
        let tls = match (secure, &options.tls) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls.clone()),
            (true, None) => Some(Tls::new(None)?),
        };
        let hosts = Arc::new(options.hosts.clone());
        Ok(Connector { tls, outbound: options.outbound, hosts, within: options.connect })
    }

    /// Opens a connection to the host of `uri`.
    pub(super) async fn connect(self, uri: Uri) -> Result<Box<dyn Stream>, ClientError> {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        match timeout(self.within, self.open(&authority, uri)).await {
            Ok(opened) => opened,
            Err(_) => Err(unreachable(&authority, &io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    async fn open(&self, authority: &str, uri: Uri) -> Result<Box<dyn Stream>, ClientError> {
        // `Uri` keeps the brackets of an IPv6 address.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let found = self.resolve(&host, port).await.map_err(|error| unreachable(authority, &error))?;
        let mut tcp = HttpConnector::new_with_resolver(Resolved(self.allowed(authority, found)?));
        tcp.enforce_http(false);
        // An address that does not answer leaves time for the others of its family.
        tcp.set_connect_timeout(Some(self.within));
        // A request is small and complete, so Nagle's delay only adds latency.
        tcp.set_nodelay(true);
        let stream = tcp.call(uri).await.map_err(|error| unreachable(authority, &error))?.into_inner();
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = tls.connect(&host, stream).await.map_err(|error| unreachable(authority, &error))?;
        Ok(Box::new(stream))
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self.hosts.get(host) {
            Some(addresses) => Ok(addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()),
            None => Ok(lookup_host((host, port)).await?.collect()),
        }
    }

    /// Leaves out the forbidden addresses. Fails if no address is left.
    fn allowed(&self, authority: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ClientError> {
        let mut allowed = Vec::new();
        let mut failed = unreachable(authority, &io::Error::other("the name has no address"));
        for address in found {
            match self.outbound.forbids(address.ip(), self.tls.is_some()) {
                None => allowed.push(address),
                Some(why) => {
                    failed = ClientError::Forbidden {
                        authority: authority.to_owned(),
                        address: address.ip(),
                        why,
                    };
                }
            }
        }
        if allowed.is_empty() { Err(failed) } else { Ok(allowed) }
    }
}

/// Lets the pool open connections.
impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ClientError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { Ok(TokioIo::new(connector.connect(uri).await?)) })
    }
}

/// Addresses that have passed the check, so that the socket connects to exactly these.
#[derive(Debug, Clone)]
struct Resolved(Vec<SocketAddr>);

impl Service<Name> for Resolved {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}

/// Makes an error from the innermost cause, which is the operating system's or rustls'.
fn unreachable(authority: &str, error: &(dyn Error + 'static)) -> ClientError {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    ClientError::Connect { authority: authority.to_owned(), cause: innermost.to_string() }
}
