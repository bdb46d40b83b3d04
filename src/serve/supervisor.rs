//! Supervisor: systemd, or a program with the same protocols. It hands over listening sockets and receives
//! notifications.
//!
//! A socket that is handed over outlives the daemon. While one daemon stops and the next starts, calls wait in
//! the socket's queue instead of being refused, so an upgrade loses none. In the other direction the daemon
//! sends a datagram for each change (ready, reloading, stopping) and regular watchdog signals. Without these
//! signals in time, the supervisor ends and restarts the daemon. Without a supervisor this module does nothing.
//!
//! The protocols: `sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::observe::limits;

/// Lookup of an environment variable.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns true if a variable names this process, and not a parent from which the variable was inherited.
fn names_us(pid: &str) -> bool {
    pid.parse() == Ok(std::process::id())
}

/// The listening sockets that the supervisor handed over.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Socket of the public listener, which marketplaces call.
    pub spi: Option<TcpListener>,
    /// Socket of the admin listener, for the operator.
    pub admin: Option<TcpListener>,
}

/// Reason why a socket of the supervisor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSocket {
    /// The name is unknown.
    #[error(
        "the socket `{name}` has an unknown name; set FileDescriptorName= to `spi` or `admin` in its socket unit"
    )]
    Unknown {
        /// The socket's name; empty if it has none.
        name: String,
    },
    /// The name is already used.
    #[error(
        "two sockets have the name `{name}`, but there is one such listener; use one ListenStream= (`[::]:8080` serves IPv4 and IPv6)"
    )]
    Twice {
        /// The socket's name.
        name: &'static str,
    },
    /// The socket does not listen for TCP connections.
    #[error("the socket `{name}` does not listen for TCP connections; use ListenStream= with Accept=no")]
    NotListening {
        /// The socket's name.
        name: &'static str,
    },
    /// The system reports an error.
    #[error("the socket `{name}` cannot be used: {error}")]
    Io {
        /// The socket's name.
        name: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

impl Sockets {
    /// Takes the sockets and removes their variables from the environment. Call it once, while this process has
    /// a single thread.
    ///
    /// # Errors
    /// [`BadSocket`]. A socket that is not understood is an error, because calls would wait in its queue
    /// without an answer.
    pub fn take(variables: Variables<'_>) -> Result<Sockets, BadSocket> {
        // `listenfd` does not check the pid. Sockets that a parent forgot to close are not for this process.
        if !variables("LISTEN_PID").is_some_and(|pid| names_us(&pid)) {
            return Ok(Sockets::default());
        }
        let names = variables("LISTEN_FDNAMES").unwrap_or_default();
        let mut given = ListenFd::from_env();
        let names = assign(&names, given.len())?;
        let mut sockets = Sockets::default();
        for (index, name) in names.into_iter().enumerate() {
            // `assign` has checked that each name occurs once.
            let slot = if name == ADMIN { &mut sockets.admin } else { &mut sockets.spi };
            *slot = Some(take(&mut given, index, name)?);
        }
        Ok(sockets)
    }
}

const SPI: &str = "spi";
const ADMIN: &str = "admin";

/// Assigns a purpose to each of `count` sockets. A single socket needs no name, because systemd then uses the
/// name of its unit.
fn assign(names: &str, count: usize) -> Result<Vec<&'static str>, BadSocket> {
    let mut given = names.split(':');
    let mut assigned = Vec::new();
    for _ in 0..count {
        let name = match given.next().unwrap_or_default() {
            SPI => SPI,
            ADMIN => ADMIN,
            _ if count == 1 => SPI,
            name => return Err(BadSocket::Unknown { name: name.to_owned() }),
        };
        if assigned.contains(&name) {
            return Err(BadSocket::Twice { name });
        }
        assigned.push(name);
    }
    Ok(assigned)
}

/// Takes one socket and checks that it listens.
fn take(given: &mut ListenFd, index: usize, name: &'static str) -> Result<TcpListener, BadSocket> {
    let taken = given.take_tcp_listener(index).ok().flatten();
    let socket = taken.ok_or(BadSocket::NotListening { name })?;
    // A socket that does not listen (Accept=yes) would fail each accept, without a visible reason.
    if !socket_acceptconn(&socket).unwrap_or(false) {
        return Err(BadSocket::NotListening { name });
    }
    // The listener is used by tokio, which needs nonblocking sockets.
    socket.set_nonblocking(true).map_err(|error| BadSocket::Io { name, error })?;
    Ok(socket)
}

/// Address of the supervisor's notification socket, and the period of its watchdog.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Finds the supervisor that the environment names. Without one the result ignores all notifications.
    pub fn find(variables: Variables<'_>) -> Supervisor {
        let address = variables("NOTIFY_SOCKET").and_then(|name| address(&name));
        // Without WATCHDOG_PID the watchdog is meant for the process that gets the variable.
        let ours = variables("WATCHDOG_PID").is_none_or(|pid| names_us(&pid));
        let period = variables("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        let watchdog = period.filter(|us| ours && *us > 0).map(Duration::from_micros);
        Supervisor { address, watchdog }
    }

    /// Reports that the daemon is up, or up again after a reload. `status` describes its work for the operator.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Reports that the daemon reads its configuration again. [`Supervisor::ready`] follows in every case.
    pub fn reloading(&self) {
        // systemd needs this time to tell reloads apart (Type=notify-reload).
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
    }

    /// Reports that the daemon has begun to stop.
    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    /// Returns the interval between watchdog signals; `None` if the supervisor expects none. The interval is a
    /// quarter of the time after which the supervisor ends the daemon. So a slow signal that fails is followed
    /// by another one in time.
    pub fn alive_every(&self) -> Option<Duration> {
        self.address.as_ref().and(self.watchdog).map(|period| period / 4)
    }

    /// Sends a watchdog signal. Send it only after a check of the components.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, words: &str) {
        let Some(address) = &self.address else { return };
        // A lost notification must not stop the daemon.
        if let Err(error) = send(address, words) {
            tracing::warn!(%error, "could not notify the supervisor: {}", words.lines().next().unwrap_or(words));
        }
    }
}

/// Replaces line breaks, because a line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Parses the address of the notification socket. A leading `@` means an abstract socket.
fn address(name: &str) -> Option<SocketAddr> {
    let address = match name.strip_prefix('@') {
        Some(name) => abstract_address(name),
        None => SocketAddr::from_pathname(name),
    };
    address.inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET is not a valid socket address")).ok()
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

fn send(address: &SocketAddr, words: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A supervisor that does not read must not block the daemon for long.
    socket.set_write_timeout(Some(Duration::from_millis(limits::NOTIFY_MS)))?;
    socket.send_to_addr(words.as_bytes(), address).map(drop)
}

/// Returns the microseconds of the monotonic clock, which never jumps. systemd uses them to tell reloads apart.
/// They say nothing about the time of day.
fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    u64::try_from(micros).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let pairs: HashMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        move |name| pairs.get(name).cloned()
    }

    #[test]
    fn sockets_are_known_by_their_names() {
        let names = |names, count| assign(names, count).map_err(|error| error.to_string());
        assert_eq!(names("spi:admin", 2), Ok(vec!["spi", "admin"]));
        assert_eq!(names("admin:spi", 2), Ok(vec!["admin", "spi"]));
        assert_eq!(names("", 0), Ok(vec![]));
        for one in ["", "spid.socket", "unknown", "spi"] {
            assert_eq!(names(one, 1), Ok(vec!["spi"]), "{one}");
        }
        assert_eq!(names("admin", 1), Ok(vec!["admin"]));
        assert!(names("spi:spid.socket", 2).unwrap_err().contains("`spid.socket`"));
        assert!(names("spi", 2).unwrap_err().contains("FileDescriptorName="));
        assert!(names("spi:spi", 2).unwrap_err().contains("two sockets"));
    }

    #[test]
    fn sockets_meant_for_another_process_are_left_alone() {
        for pid in ["1", "", "x"] {
            let taken = Sockets::take(&variables(&[("LISTEN_PID", pid), ("LISTEN_FDS", "1")])).unwrap();
            assert!(taken.spi.is_none() && taken.admin.is_none(), "{pid}");
        }
    }

    #[test]
    fn a_sign_of_life_is_due_in_time_and_only_if_it_is_ours() {
        let every = |pairs: &[(&str, &str)]| Supervisor::find(&variables(pairs)).alive_every();
        let socket = ("NOTIFY_SOCKET", "/run/systemd/notify");
        let (us, pid) = (("WATCHDOG_USEC", "6000000"), std::process::id().to_string());
        assert_eq!(every(&[socket, us, ("WATCHDOG_PID", &pid)]), Some(Duration::from_millis(1_500)));
        assert_eq!(every(&[socket, us]), Some(Duration::from_millis(1_500)));
        assert_eq!(every(&[socket, us, ("WATCHDOG_PID", "1")]), None);
        assert_eq!(every(&[socket, ("WATCHDOG_USEC", "0")]), None);
        assert_eq!(every(&[socket, ("WATCHDOG_USEC", "soon")]), None);
        assert_eq!(every(&[us]), None, "without a listener no signal is due");
    }

    #[test]
    fn what_becomes_true_is_said_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::find(&variables(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
        let mut buffer = [0; 256];
        let mut next = || {
            let read = heard.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..read].to_vec()).unwrap()
        };
        supervisor.ready("serving\nREADY=0");
        assert_eq!(next(), "READY=1\nSTATUS=serving READY=0");
        supervisor.reloading();
        let reloading = next();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0);
        supervisor.alive();
        assert_eq!(next(), "WATCHDOG=1");
        supervisor.stopping("stopping");
        assert_eq!(next(), "STOPPING=1\nSTATUS=stopping");
        drop(heard);
        supervisor.ready("without a listener this is no failure");
        Supervisor::default().ready("no more than this is");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_abstract_address_is_one_too() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("spid-test-{}", std::process::id());
        let heard = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Supervisor::find(&variables(&[("NOTIFY_SOCKET", &format!("@{name}"))])).alive();
        let mut buffer = [0; 64];
        assert_eq!(heard.recv(&mut buffer).unwrap(), "WATCHDOG=1".len());
    }
}
