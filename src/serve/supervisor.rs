//! Whoever started us, if it is systemd or speaks as systemd does: the sockets it hands over, and what it
//! wants to hear.
//!
//! A socket that is handed over outlives the daemon: while one stops and the next starts, calls wait in
//! its queue instead of being refused. So an upgrade loses none. The other direction is a datagram for each
//! thing that became true (ready, reloading, stopping), and a sign of life in time, or we are ended and started
//! again. Without a supervisor all of this does nothing.
//!
//! The protocols: `sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::hook::clock::monotonic_us;
use crate::observe::limits;

/// What looks up a variable of the environment.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Whether a variable names this process, and not one that we inherited it from.
fn names_us(pid: &str) -> bool {
    pid.parse() == Ok(std::process::id())
}

/// The listening sockets we were started with.
#[derive(Debug, Default)]
pub struct Sockets {
    /// The one marketplaces call.
    pub spi: Option<TcpListener>,
    /// The one the operator looks at.
    pub admin: Option<TcpListener>,
}

/// Why a socket we were started with cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSocket {
    /// It has no name we know.
    #[error(
        "a socket is called `{name}`, and only `spi` and `admin` are known: set FileDescriptorName= in its socket unit"
    )]
    Unknown {
        /// Its name; empty for none.
        name: String,
    },
    /// Its name is taken.
    #[error(
        "two sockets are called `{name}`, and there is one listener: use one ListenStream= (`[::]:8080` takes both families)"
    )]
    Twice {
        /// Its name.
        name: &'static str,
    },
    /// It is something else.
    #[error(
        "the socket `{name}` is not one that listens for TCP connections: use ListenStream= with Accept=no"
    )]
    NotListening {
        /// Its name.
        name: &'static str,
    },
    /// The system does not let us.
    #[error("the socket `{name}` cannot be used: {error}")]
    Io {
        /// Its name.
        name: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

impl Sockets {
    /// Takes the sockets, and strikes them out of the environment: to be called once, while this process has
    /// a single thread.
    ///
    /// # Errors
    /// [`BadSocket`]. A socket that is not understood is not left in its queue's silence.
    pub fn take(variables: Variables<'_>) -> Result<Sockets, BadSocket> {
        // `listenfd` does without the pid; the sockets of a parent that forgot to close them are not ours.
        if !variables("LISTEN_PID").is_some_and(|pid| names_us(&pid)) {
            return Ok(Sockets::default());
        }
        let names = variables("LISTEN_FDNAMES").unwrap_or_default();
        let mut given = ListenFd::from_env();
        let names = assign(&names, given.len())?;
        let mut sockets = Sockets::default();
        for (index, name) in names.into_iter().enumerate() {
            let slot = if name == ADMIN { &mut sockets.admin } else { &mut sockets.spi };
            *slot = Some(take(&mut given, index, name)?);
        }
        Ok(sockets)
    }
}

const SPI: &str = "spi";
const ADMIN: &str = "admin";

/// What each of `count` sockets is for. A single one needs no name: systemd gives it its unit's.
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

fn take(given: &mut ListenFd, index: usize, name: &'static str) -> Result<TcpListener, BadSocket> {
    let taken = given.take_tcp_listener(index).ok().flatten();
    let socket = taken.ok_or(BadSocket::NotListening { name })?;
    // A socket that does not listen (Accept=yes) would fail each accept, and nobody would see why.
    if !socket_acceptconn(&socket).unwrap_or(false) {
        return Err(BadSocket::NotListening { name });
    }
    socket.set_nonblocking(true).map_err(|error| BadSocket::Io { name, error })?;
    Ok(socket)
}

/// Where to say what became true.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that the environment tells of; one that hears nothing if it tells of none.
    pub fn find(variables: Variables<'_>) -> Supervisor {
        let address = variables("NOTIFY_SOCKET").and_then(|name| address(&name));
        let ours = variables("WATCHDOG_PID").is_none_or(|pid| names_us(&pid));
        let period = variables("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        let watchdog = period.filter(|us| ours && *us > 0).map(Duration::from_micros);
        Supervisor { address, watchdog }
    }

    /// The daemon is up, or up again after a reload: `status` is what it does, for whoever looks.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The daemon reads its configuration anew; [`Supervisor::ready`] follows, whatever comes of it.
    pub fn reloading(&self) {
        // systemd wants to know which reload this is about (Type=notify-reload).
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
    }

    /// The daemon has begun to stop.
    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    /// How often to give a sign of life; `None` when nobody waits for one. A quarter of the time after which
    /// we would be ended: one that fails, though it took its time, is followed by another in time.
    pub fn alive_every(&self) -> Option<Duration> {
        self.address.as_ref().and(self.watchdog).map(|period| period / 4)
    }

    /// A sign of life. Say it only of what was looked at.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, words: &str) {
        let Some(address) = &self.address else { return };
        if let Err(error) = send(address, words) {
            tracing::warn!(%error, "the supervisor could not be told: {}", words.lines().next().unwrap_or(words));
        }
    }
}

/// A line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn address(name: &str) -> Option<SocketAddr> {
    let address = match name.strip_prefix('@') {
        Some(name) => abstract_address(name),
        None => SocketAddr::from_pathname(name),
    };
    address.inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET is no address")).ok()
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
    socket.set_write_timeout(Some(Duration::from_millis(limits::NOTIFY_MS)))?;
    socket.send_to_addr(words.as_bytes(), address).map(drop)
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
        assert_eq!(every(&[us]), None, "nobody would hear it");
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
        supervisor.ready("nobody hears it, and that is no reason to fail");
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
