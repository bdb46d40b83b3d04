//! Files in `examples/deploy`: systemd accepts the units and rates them as safe, the daemon and its hooks work in the
//! sandbox, the parts of the image exist, and a real nginx runs the proxy.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::daemon::{self, Home, create, exchange, get_text, until};
use crate::support::examples::root;
use crate::support::machine::lacks;

const SPID: &str = env!("CARGO_BIN_EXE_spid");

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// Lines of a unit without comments, as key and value.
fn settings(unit: &str) -> Vec<(String, String)> {
    let lines = unit.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    let split = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    lines.map(|line| split(line).unwrap_or_else(|| panic!("no setting: {line}"))).collect()
}

fn all(unit: &str, key: &str) -> Vec<String> {
    settings(unit).into_iter().filter(|(known, _)| known == key).map(|(_, value)| value).collect()
}

/// The units in their own folder, with the binary of this build.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["spid.service", "spid.socket"] {
        let text = read(&format!("examples/deploy/{name}")).replace("/usr/bin/spid", SPID);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn systemd_analyze(arguments: &[&str], folder: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

// systemd.

#[test]
fn systemd_takes_the_units_without_a_complaint() {
    if lacks("systemd-analyze", "systemd") {
        return;
    }
    let folder = units();
    let verify = ["verify", "--man=no", "--recursive-errors=no", "./spid.service", "./spid.socket"];
    let (taken, said) = systemd_analyze(&verify, folder.path());
    assert!(taken && said.is_empty(), "{said}");
}

#[test]
fn systemd_finds_the_service_safe() {
    if lacks("systemd-analyze", "systemd") {
        return;
    }
    let folder = units();
    let security = ["security", "--offline=yes", "--no-pager", "--threshold=20", "./spid.service"];
    let (safe, said) = systemd_analyze(&security, folder.path());
    assert!(safe, "{said}");
}

#[test]
fn the_unit_calls_commands_that_are_there() {
    let unit = read("examples/deploy/spid.service");
    let home = Home::empty();
    for line in [all(&unit, "ExecStart"), all(&unit, "ExecStartPre")].concat() {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[0], "/usr/bin/spid", "{line}");
        let help = home.run(&[words[1], "--help"]);
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.stdout.contains(flag), "`{}` has no {flag}", words[1]);
        }
    }
    assert_eq!(all(&unit, "Type"), ["notify"]);
    assert_eq!(all(&unit, "KillMode"), ["mixed"], "systemd must not signal the hooks");
    assert_eq!(all(&read("examples/deploy/spid.socket"), "FileDescriptorName"), ["spi"]);
}

/// The unit provides every credential of the configuration, and no other.
#[test]
fn the_example_configuration_goes_with_the_unit() {
    let unit = read("examples/deploy/spid.service");
    let config = read("examples/deploy/spid.toml");
    for credential in all(&unit, "LoadCredential") {
        let (name, _) = credential.split_once(':').unwrap();
        assert!(config.contains(&format!("{{ credential = \"{name}\" }}")), "{name}");
    }
    let state = format!("/var/lib/{}", all(&unit, "StateDirectory")[0]);
    assert!(config.contains(&format!("path = \"{state}/")), "{state}");
    let home = Home::empty();
    let output = Command::new(SPID)
        .args(["check-config", "--config"])
        .arg(root().join("examples/deploy/spid.toml"))
        .env("CREDENTIALS_DIRECTORY", home.path(""))
        .env("SPID_STORE__PATH", home.path("spid.db"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// System calls of each of systemd's sets.
fn call_sets() -> BTreeMap<String, Vec<String>> {
    let (_, said) = systemd_analyze(&["syscall-filter", "--no-pager"], root());
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in said.lines() {
        let word = line.trim();
        if line.starts_with('@') {
            current = word.to_owned();
        } else if !word.is_empty() && !word.starts_with('#') {
            sets.entry(current.clone()).or_default().push(word.to_owned());
        }
    }
    sets
}

fn calls_of(name: &str, sets: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    match sets.get(name) {
        Some(members) => members.iter().flat_map(|member| calls_of(member, sets)).collect(),
        None => [name.to_owned()].into(),
    }
}

/// System calls that the unit's `SystemCallFilter=` lines allow.
fn let_through(unit: &str) -> BTreeSet<String> {
    let sets = call_sets();
    let mut calls = calls_of("@default", &sets);
    for line in all(unit, "SystemCallFilter") {
        let denies = line.starts_with('~');
        for name in line.trim_start_matches('~').split(' ') {
            let named = calls_of(name, &sets);
            if denies { calls = &calls - &named } else { calls.extend(named) }
        }
    }
    calls
}

/// System calls of a daemon and its hook over a whole life: start, sale, reload, stop.
fn asked_of_the_system(home: &Home) -> BTreeSet<String> {
    let trace = home.path("trace");
    let mut child = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .args([SPID, "serve", "--config"])
        .arg(home.path("spid.toml"))
        .current_dir(home.path(""))
        .stderr(std::fs::File::create(home.path("log")).unwrap())
        .spawn()
        .unwrap();
    let log = || std::fs::read_to_string(home.path("log")).unwrap();
    let address: SocketAddr = until("the traced daemon is ready", || {
        let text = log();
        let (_, rest) = text.split_once("ready address=")?;
        rest.split_once(' ').map(|(address, _)| address.parse().unwrap())
    });
    assert_ne!(exchange(address, &get_text("/spi", &create("ob-1").signed())).unwrap().id(), "0");
    // The first traced process is the daemon itself.
    let first = std::fs::read_to_string(&trace).unwrap();
    let pid = first.split(' ').next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    until("it has reloaded", || log().contains("reload: ").then_some(()));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success(), "{}", log());
    let calls = std::fs::read_to_string(&trace).unwrap();
    let name = |line: &str| {
        let call = line.split_once(' ')?.1.trim_start();
        let name = call.split_once('(')?.0;
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then(|| name.to_owned())
    };
    calls.lines().filter_map(name).collect()
}

#[test]
fn the_unit_s_filter_lets_through_what_the_daemon_and_a_hook_do() {
    if lacks("systemd-analyze", "systemd") || lacks("strace", "strace") {
        return;
    }
    let home = Home::with_hook(daemon::QUICK);
    let asked = asked_of_the_system(&home);
    assert!(asked.len() > 40 && asked.contains("execve"), "{asked:?}");
    let unit = read("examples/deploy/spid.service");
    let mut denied: BTreeSet<String> = &asked - &let_through(&unit);
    // As root, SQLite restores the owner of its files. The unit does not run as root.
    denied.remove("fchown");
    assert!(denied.is_empty(), "the unit denies {denied:?}");
}

// The image.

/// Instructions of a Dockerfile, with continued lines joined.
fn instructions(text: &str) -> Vec<String> {
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let joined = text.replace("\\\n", " ");
    joined.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_image_is_made_of_what_is_there() {
    let dockerfile = instructions(&read("examples/deploy/Dockerfile"));
    let ignored = read("examples/deploy/Dockerfile.dockerignore");
    let copied: Vec<&str> = dockerfile
        .iter()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| line.split(' ').rev().skip(1))
        .collect();
    for source in &copied {
        assert!(root().join(source).exists(), "{source}");
        assert!(ignored.contains(&format!("!{source}\n")), "{source} is kept from the build");
    }
    // Files that the sources include are copied too.
    for (file, text) in sources() {
        for (_, rest) in
            text.match_indices("include_str!(\"").map(|(at, mark)| text.split_at(at + mark.len()))
        {
            let named = file.parent().unwrap().join(rest.split('"').next().unwrap());
            let named = named.canonicalize().unwrap();
            let named = named.strip_prefix(root().canonicalize().unwrap()).unwrap().to_owned();
            assert!(copied.iter().any(|source| named.starts_with(source)), "{}", named.display());
        }
    }
    let build = dockerfile.iter().find(|line| line.starts_with("FROM rust:")).unwrap();
    let version = build.trim_start_matches("FROM rust:").split('-').next().unwrap();
    let wanted =
        read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    let number = |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().unwrap()).collect() };
    assert!(number(version) >= number(wanted.unwrap().trim_matches('"')), "{version}");
}

fn sources() -> Vec<(PathBuf, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

#[test]
fn the_image_runs_as_nobody_and_asks_how_it_is() {
    let dockerfile = instructions(&read("examples/deploy/Dockerfile"));
    let last_stage = dockerfile.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    let stage = &dockerfile[last_stage..];
    let one = |name: &str| {
        let mut lines = stage.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let line = lines.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(lines.next().is_none(), "{name} stands there twice");
        line.to_owned()
    };
    // A numeric user lets Kubernetes check runAsNonRoot.
    let user = one("USER");
    assert!(user.split(':').all(|id| id.parse::<u32>().unwrap() > 0), "{user}");
    assert!(stage.iter().all(|line| !line.starts_with("RUN ")), "there may be no shell");
    let words = |json: &str| serde_json::from_str::<Vec<String>>(json).unwrap();
    let health = one("HEALTHCHECK");
    let health = words(health.split_once("CMD ").unwrap().1);
    let home = Home::empty();
    assert_eq!(home.run(&[&health[1], "--help"]).code, 0, "{health:?}");
    let start = [words(&one("ENTRYPOINT")), words(&one("CMD"))].concat();
    assert_eq!((start[0].as_str(), start[0] == health[0]), ("/usr/bin/spid", true));
    assert_eq!(home.run(&[&start[1], "--help"]).code, 0);
    // Neither command names the configuration. Both use this variable.
    let (variable, _) =
        one("ENV").split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    for command in [&health[1], &start[1]] {
        let help = home.run(&[command, "--help"]).stdout;
        assert!(help.contains(&format!("{variable}=")), "{command}: {help}");
    }
    assert!(stage.iter().any(|line| line.starts_with("COPY") && line.ends_with(&one("VOLUME"))));
}

// The proxy.

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The nginx of the document, with the paths and ports of a test.
fn nginx(home: &Home, spid: SocketAddr) -> (Nginx, SocketAddr) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = read("docs/operating.md");
    let block = text.split("```nginx\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    for mark in ["127.0.0.1:8080", "listen 443 ssl;"] {
        assert!(block.contains(mark), "{mark}");
    }
    let folder = home.path("").display().to_string();
    let block: String = block
        .replace("127.0.0.1:8080", &spid.to_string())
        .replace("listen 443 ssl;", &format!("listen 127.0.0.1:{port};"))
        .lines()
        .filter(|line| !line.contains("ssl_certificate"))
        .map(|line| format!("{line}\n"))
        .collect();
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\nevents {{}}\n\
         http {{ access_log {folder}/access.log;\n{temps}{block}}}\n"
    );
    std::fs::write(home.path("nginx.conf"), config).unwrap();
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    let child = Command::new("nginx")
        .args(["-e", &format!("{folder}/nginx.log"), "-c"])
        .arg(home.path("nginx.conf"))
        .env("PATH", path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let nginx = Nginx(child);
    until("nginx listens", || TcpStream::connect(address).ok());
    (nginx, address)
}

/// Sends a purchase through the proxy from this local address, and returns the status.
fn sell(proxy: SocketAddr, from: &str, fields: &[&str]) -> String {
    let url = format!("http://{proxy}/spi?{}", create("ob-1").signed());
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--interface", from]).arg(url);
    for field in fields {
        curl.args(["-H", field]);
    }
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

#[test]
fn behind_the_document_s_proxy_the_caller_is_known_and_cannot_lie() {
    if lacks("nginx", "nginx-light") || lacks("curl", "curl") {
        return;
    }
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let text = text.replace("[server]", "[server]\ntrusted_proxies = [\"127.0.0.1\"]");
    home.configure(&text.replace("[[endpoint]]", "[[endpoint]]\nallow = [\"127.0.0.5\"]"));
    let daemon = home.start();
    let (_nginx, proxy) = nginx(&home, daemon.address);
    assert_eq!(sell(proxy, "127.0.0.5", &[]), "200", "the query goes through as it was signed");
    assert_eq!(sell(proxy, "127.0.0.5", &["X-Forwarded-For: 198.51.100.1"]), "200");
    for fields in [
        &[][..],
        &["X-Forwarded-For: 127.0.0.5"],
        &["X-Forwarded-For: 127.0.0.5, 127.0.0.5"],
        &["Forwarded: for=127.0.0.5", "X-Real-IP: 127.0.0.5"],
    ] {
        assert_eq!(sell(proxy, "127.0.0.6", fields), "403", "{fields:?}");
    }
    let log = std::fs::read_to_string(home.path("access.log")).unwrap_or_default();
    assert!(!log.contains("token="), "{log}");
    daemon.stop();
}
