//! The admin listener of a daemon that runs: asking it, and what a test of it needs to be there.

use std::net::SocketAddr;

use super::daemon::{Answer, Daemon, Home, exchange};

/// The configuration with an admin listener on a free port.
pub(crate) fn with_admin(home: &Home, more: &str) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let server = format!("[server]\nadmin_listen = \"127.0.0.1:0\"\n{more}");
    home.configure(&text.replace("[server]", &server));
}

/// Where an operator asks.
pub(crate) fn admin_of(daemon: &Daemon) -> SocketAddr {
    let ready = daemon.wait_for_log("admin=");
    let (_, rest) = ready.split_once("admin=").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Asks it as somebody on this machine does.
pub(crate) fn ask(admin: SocketAddr, target: &str) -> Answer {
    ask_with(admin, target, "")
}

/// The same, with more header lines.
pub(crate) fn ask_with(admin: SocketAddr, target: &str, headers: &str) -> Answer {
    exchange(admin, &format!("GET {target} HTTP/1.1\r\nhost: {admin}\r\n{headers}\r\n")).unwrap()
}

/// Sends it something.
pub(crate) fn post(admin: SocketAddr, target: &str, kind: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!(
        "POST {target} HTTP/1.1\r\nhost: {admin}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    exchange(admin, &text).unwrap()
}
