//! Measured servers: real processes behind real sockets.
//!
//! The benchmark starts its own binary again for the servers that are not the `spid` command. These are bare hyper with
//! a constant response, a socket that answers without parsing, and spid with a hook in the process.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper_util::rt::TokioIo;
use spid::hook::{
    CreateCall, ExpireCall, HookError, Provisioned, ProvisioningHook, ReleaseCall, RenewCall, Updated,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{floor, orders};

/// Constant response, as long as spid's response to a create, so that both send the same number of bytes.
const CONSTANT: &str = r#"{"instanceId":"bench-order-0000000"}"#;

/// A server in its own process; a drop kills it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn itself() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn that_says_where(mut command: Command) -> Server {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Server { child, address: line.trim().parse().unwrap() }
}

/// Starts bare hyper with a constant response, or a socket that answers any input.
pub(crate) fn constant(kind: &str) -> Server {
    let mut command = itself();
    command.arg(format!("server-{kind}"));
    that_says_where(command)
}

/// Starts the floor on an empty database in `folder`.
pub(crate) fn floor(folder: &Path) -> Server {
    let mut command = itself();
    command.arg("server-floor").arg(folder);
    that_says_where(command)
}

/// Builds and starts `benches/peer` on an empty database in `folder`; `None` if it cannot be built here.
pub(crate) fn peer(folder: &Path) -> Option<Server> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--release", "--locked", "--manifest-path"]).arg(manifest);
    build.arg("--target-dir").arg(&target);
    if !build.status().is_ok_and(|status| status.success()) {
        return None;
    }
    let mut command = Command::new(target.join("release/peer"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.arg(orders::KEY).arg(folder.join("peer.db"));
    Some(that_says_where(command))
}

/// Returns an address whose port is free at the moment.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Hook of a measured spid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A hook inside the process that does nothing.
    Inside,
    /// A command that does nothing.
    Command,
}

/// Starts a daemon on the database in `folder`. `environment` can preload a library between daemon and disk.
pub(crate) fn spid(folder: &Path, hook: Hook, environment: &[(&str, String)]) -> Server {
    let address = free_address();
    let config = configure(folder, address, hook);
    let mut command = itself();
    command.args(["serve", "--config"]).arg(config);
    command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let server = Server { child, address };
    wait_until_answered(server.address);
    server
}

fn configure(folder: &Path, address: SocketAddr, hook: Hook) -> PathBuf {
    std::fs::write(folder.join("key"), orders::KEY).unwrap();
    let hook = match hook {
        Hook::Inside => String::new(),
        Hook::Command => {
            "[[hook]]\nname = \"nothing\"\nexec = { command = [\"/bin/echo\", \"{}\"], concurrency = 64 }\n"
                .to_owned()
        }
    };
    let folder_name = folder.display();
    let text = format!(
        "[server]\nlisten = \"{address}\"\nreply_within = \"30s\"\n\n[store]\npath = \"{folder_name}/spid.db\"\n\n\
         [[endpoint]]\nname = \"bench\"\npath = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ file = \"{folder_name}/key\" }}]\n\n{hook}"
    );
    let path = folder.join("spid.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A daemon under valgrind, which counts its instructions.
pub(crate) struct Counted {
    server: Server,
    log: PathBuf,
}

/// Starts a daemon under valgrind on an empty database in `folder`; `None` without valgrind.
pub(crate) fn counted(folder: &Path) -> Option<Counted> {
    let address = free_address();
    let config = configure(folder, address, Hook::Inside);
    let log = folder.join("valgrind.log");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--log-file={}", log.display()));
    command.arg(std::env::current_exe().unwrap()).args(["serve", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().ok()?;
    let server = Server { child, address };
    wait_until_answered(address);
    Some(Counted { server, log })
}

impl Counted {
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Stops the daemon and returns the number of instructions it executed.
    pub(crate) fn executed(mut self) -> Option<f64> {
        let id = rustix::process::Pid::from_child(&self.server.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.server.child.wait().unwrap();
        let log = std::fs::read_to_string(&self.log).unwrap();
        let line = log.lines().find(|line| line.contains("Collected :"))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

/// Preload library between a daemon and its disk, which can slow down syncs.
pub(crate) struct Faultfs(PathBuf);

/// Builds the library; `None` if this machine cannot build it.
pub(crate) fn faultfs() -> Option<Faultfs> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faultfs");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faultfs/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target);
    build.status().is_ok_and(|status| status.success()).then(|| Faultfs(target.join("debug/libfaultfs.so")))
}

impl Faultfs {
    /// Returns the environment that makes each sync of the database in `folder` take `slow_ms` longer.
    pub(crate) fn environment(&self, folder: &Path, slow_ms: u64) -> [(&'static str, String); 3] {
        let path = folder.canonicalize().unwrap().join("spid.db");
        [
            ("LD_PRELOAD", self.0.display().to_string()),
            ("FAULTFS_PATH", path.display().to_string()),
            ("FAULTFS_RULES", format!("sync 1.. slow-{slow_ms}")),
        ]
    }
}

/// Starts Debian's `webhook` with the same command; `None` if it is not installed.
pub(crate) fn webhook(folder: &Path) -> Option<Server> {
    let hooks = r#"[{"id":"nothing","execute-command":"/bin/echo","include-command-output-in-response":true,
        "pass-arguments-to-command":[{"source":"string","name":"{}"}]}]"#;
    let path = folder.join("hooks.json");
    std::fs::write(&path, hooks).unwrap();
    let address = free_address();
    let child = Command::new("webhook")
        .args(["-ip", "127.0.0.1", "-port", &address.port().to_string(), "-hooks"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let server = Server { child, address };
    wait_until_answered(address);
    Some(server)
}

/// Waits until the server answers a request. An open port is not enough, because the server may not be ready yet.
fn wait_until_answered(address: SocketAddr) {
    let begun = Instant::now();
    while !answers(address) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the server did not start within 60 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut socket) = std::net::TcpStream::connect(address) else { return false };
    let request = b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
    let asked = std::io::Write::write_all(&mut socket, request);
    asked.is_ok() && std::io::Read::read(&mut socket, &mut [0]).is_ok_and(|read| read > 0)
}

/// Runs the server that the arguments name, if this process was started as one.
pub(crate) fn as_server(arguments: &[String]) -> Option<ExitCode> {
    match arguments.get(1).map(String::as_str) {
        Some("server-hyper") => Some(serve(hyper_connection)),
        Some("server-null") => Some(serve(null_connection)),
        Some("server-floor") => Some(floor::serve(Path::new(arguments.get(2)?))),
        Some("serve") => Some(spid::run_with(Nothing)),
        _ => None,
    }
}

/// Serves until it is killed; prints its address.
pub(crate) fn serve<F>(connection: impl Fn(tokio::net::TcpStream) -> F) -> ExitCode
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            if let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                tokio::spawn(connection(socket));
            }
        }
    })
}

async fn hyper_connection(socket: tokio::net::TcpStream) {
    let service = hyper::service::service_fn(|_| async {
        let mut response = hyper::Response::new(Full::new(Bytes::from_static(CONSTANT.as_bytes())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok::<_, Infallible>(response)
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn null_connection(mut socket: tokio::net::TcpStream) {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{CONSTANT}", CONSTANT.len());
    let mut buffer = [0_u8; 4096];
    while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A hook that does nothing.
pub(crate) struct Nothing;

impl ProvisioningHook for Nothing {
    async fn create(&self, _call: CreateCall) -> Result<Provisioned, HookError> {
        Ok(Provisioned::new())
    }
    async fn renew(&self, _call: RenewCall) -> Result<Updated, HookError> {
        Ok(Updated::new())
    }
    async fn expire(&self, _call: ExpireCall) -> Result<(), HookError> {
        Ok(())
    }
    async fn release(&self, _call: ReleaseCall) -> Result<(), HookError> {
        Ok(())
    }
}
