//! `examples/postgres_tenant.rs` with a real PostgreSQL: a whole life, a hook that is killed between the role and the
//! database, and overlapping attempts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::daemon::{self, Daemon, Home, about, create, encode, renew, until, upgrade};
use crate::support::examples::{self, Kept};
use crate::support::machine::{folder_of, skipped};
use crate::support::said::Said;

/// Folder of the newest PostgreSQL. Returns `None` and prints a note if there is none.
fn programs() -> Option<PathBuf> {
    let debian = Path::new("/usr/lib/postgresql").read_dir().into_iter().flatten().flatten();
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = debian
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").is_file())
        .max_by_key(version);
    let found = newest.or_else(|| folder_of("initdb"));
    if found.is_none() {
        skipped("postgresql");
    }
    found
}

/// User of the server, because PostgreSQL refuses root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = |name: &str| {
        let mut fields = users.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    user("postgres").or_else(|| user("nobody"))
}

/// A PostgreSQL for the test, with a socket in its own folder.
struct Cluster {
    _server: Kept, // dropped before its folder
    programs: PathBuf,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start(programs: PathBuf) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let (home, data) = (folder.path(), folder.path().join("data"));
        if let Some((user, group)) = unprivileged() {
            chown(home, Some(user), Some(group)).unwrap();
        }
        let mut initdb = demoted(Command::new(programs.join("initdb")), home);
        initdb.args(["--no-sync", "--no-locale", "--encoding=UTF8", "--username=postgres", "--auth=trust"]);
        let made = initdb.arg("-D").arg(&data).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let rules = "local all postgres trust\nlocal all provisioner trust\nlocal all all scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();

        let mut server = demoted(Kept::command(&programs.join("postgres"), "QUIT"), home);
        server.arg("-D").arg(&data).arg("-k").arg(home);
        server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "log_statement=all"]);
        server.stderr(std::fs::File::create(home.join("log")).unwrap());
        let cluster = Cluster { _server: Kept::start(server), programs, folder };
        until("the server is ready", || cluster.psql(&cluster.admin(), "SELECT 1").ok());
        cluster.ask("CREATE ROLE provisioner LOGIN CREATEROLE CREATEDB");
        cluster.ask("CREATE DATABASE provisioning OWNER provisioner");
        cluster.ask("REVOKE ALL ON DATABASE provisioning, postgres, template1 FROM PUBLIC");
        cluster
    }

    fn at(&self) -> String {
        encode(self.folder.path().to_str().unwrap())
    }

    fn admin(&self) -> String {
        format!("postgresql://postgres@{}/postgres", self.at())
    }

    fn client(&self, url: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        psql.env_clear().env("PATH", path).args(["-XAtqw", "-v", "ON_ERROR_STOP=1", url]);
        psql
    }

    /// Result of a statement for a user of this URL, or the error.
    fn psql(&self, url: &str, statement: &str) -> Result<String, String> {
        let output = self.client(url).args(["-c", statement]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Result of a statement for the superuser.
    fn ask(&self, statement: &str) -> String {
        self.psql(&self.admin(), statement).unwrap()
    }

    /// A session that stays open.
    fn session(&self, url: &str, statements: &str) -> Session {
        let mut psql = self.client(url).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = Said::by(psql.stdout.take().unwrap());
        writeln!(psql.stdin.as_mut().unwrap(), "{statements}; SELECT 'ready';").unwrap();
        assert_eq!(answers.line(), "ready");
        Session { psql }
    }

    /// Blocks the creation of databases while it exists.
    fn hold_databases(&self) -> Session {
        self.session(&self.admin(), "BEGIN; LOCK TABLE pg_database IN SHARE MODE")
    }

    fn wait_until(&self, what: &str, condition: &str) {
        until(what, || (self.ask(&format!("SELECT {condition}")) == "t").then_some(()));
    }

    fn wait_for_the_middle_of_a_create(&self) {
        let waiting =
            "FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE%' AND wait_event_type = 'Lock'";
        self.wait_until("a create waits for the database", &format!("count(*) = 1 {waiting}"));
        assert_eq!(self.tenants(), ["1", "0"]);
    }

    /// Number of tenants' roles and databases.
    fn tenants(&self) -> [String; 2] {
        let count = |from: &str| self.ask(&format!("SELECT count(*) FROM {from} LIKE 'tenant_%'"));
        [count("pg_roles WHERE rolname"), count("pg_database WHERE datname")]
    }

    /// The example with this configuration, as its author would start it.
    fn start_daemon(&self, home: &Home) -> Daemon {
        std::fs::write(home.path("tenant-secret"), "fake-secret-of-the-hook-fake-secret\n").unwrap();
        let admin = format!("host={} user=provisioner dbname=provisioning", self.folder.path().display());
        let environment = [
            ("TENANTS_ADMIN", admin),
            ("TENANTS_SECRET_FILE", home.path("tenant-secret").display().to_string()),
            ("TENANTS_AT", self.at()),
        ];
        home.start_program(&examples::built("postgres_tenant"), &environment)
    }
}

/// A program of the server, run as a user that the server accepts.
fn demoted(mut command: Command, home: &Path) -> Command {
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command.current_dir(home);
    command
}

/// A connected client. Dropping it ends the connection.
struct Session {
    psql: Child,
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.psql.stdin.take());
        let _ = self.psql.wait();
    }
}

/// Connection data in the answer to the buyer.
fn told(answer: &daemon::Answer) -> String {
    answer.json()["hostInfo"]["databaseInfo"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// Delivers a create and kills the daemon between the role and the database.
fn kill_in_the_middle_of_a_create(cluster: &Cluster, home: &Home) -> Session {
    let hold = cluster.hold_databases();
    let daemon = cluster.start_daemon(home);
    let (address, order) = (daemon.address, create("ob-1").signed());
    let delivery = std::thread::spawn(move || daemon::get(address, &order));
    cluster.wait_for_the_middle_of_a_create();
    daemon.kill();
    assert_eq!(delivery.join().unwrap(), None, "an answer came from a dead daemon");
    hold
}

#[test]
fn a_tenant_lives_a_whole_life_with_a_kill_between_role_and_database() {
    let Some(programs) = programs() else { return };
    let (cluster, home) = (Cluster::start(programs), Home::without_hook());
    let hold = kill_in_the_middle_of_a_create(&cluster, &home);
    cluster.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'provisioner'");
    drop(hold);
    cluster.wait_until(
        "the dead attempt is gone",
        "count(*) = 0 FROM pg_stat_activity WHERE usename = 'provisioner'",
    );
    assert_eq!(cluster.tenants(), ["1", "0"], "a role, and no database");

    let daemon = cluster.start_daemon(&home);
    let made = daemon.deliver_until_done(&create("ob-1"));
    assert_eq!(cluster.tenants(), ["1", "1"]);
    let (id, url) = (made.id(), told(&made));
    assert_eq!(
        cluster.psql(&url, "CREATE TABLE kept AS SELECT 7 AS seven; SELECT current_user").unwrap(),
        id
    );
    assert_eq!(told(&daemon.deliver(&create("ob-1"))), url);
    let password = url.split([':', '@']).nth(2).unwrap().to_owned();

    let mut sessions: Vec<Session> = (0..5).map(|_| cluster.session(&url, "SELECT")).collect();
    let refused = |why: &str| {
        let error = cluster.psql(&url, "SELECT 1").unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused("too many connections for role");
    assert!(daemon.deliver(&upgrade(&id, "pro")).success());
    sessions.push(cluster.session(&url, "SELECT"));

    assert!(daemon.deliver(&about("expiredInstance", &id)).success());
    refused("is not permitted to log in");
    cluster.wait_until(
        "no session is left",
        &format!("count(*) = 0 FROM pg_stat_activity WHERE usename = '{id}'"),
    );
    assert!(daemon.deliver(&renew(&id, "2031-01-01 00:00:00")).success());
    assert_eq!(cluster.psql(&url, "SELECT seven FROM kept").unwrap(), "7");

    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    assert_eq!(cluster.tenants(), ["0", "0"]);
    assert_eq!(daemon.deliver(&create("ob-1")).id(), id, "what is released stays released");
    assert_eq!(cluster.tenants(), ["0", "0"]);
    let log = std::fs::read(cluster.folder.path().join("log")).unwrap();
    daemon::assert_clean("PostgreSQL's log", &log, &[&password]);
    daemon::assert_clean("the daemon's stderr", daemon.log().as_bytes(), &[&password]);
}

#[test]
fn what_a_killed_attempt_left_running_does_not_meet_the_next_one() {
    let Some(programs) = programs() else { return };
    let (cluster, home) = (Cluster::start(programs), Home::without_hook());
    let hold = kill_in_the_middle_of_a_create(&cluster, &home);
    let daemon = cluster.start_daemon(&home);
    cluster.wait_until(
        "the next attempt waits for the dead one",
        "count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
    );
    drop(hold);
    let url = told(&daemon.deliver_until_done(&create("ob-1")));
    assert_eq!(cluster.tenants(), ["1", "1"]);
    assert!(cluster.psql(&url, "SELECT 1").is_ok());
    let attempts = home.list(&["jobs", "list"])[0]["attempts"].clone();
    assert_eq!(attempts, 2, "neither attempt harmed the other");
}

#[test]
fn hostile_names_are_names_and_daemons_that_do_not_know_each_other_agree() {
    let Some(programs) = programs() else { return };
    let cluster = Cluster::start(programs);
    let long = "x".repeat(100);
    let names = [
        r#"x"; DROP ROLE postgres; --"#,
        r"'; DROP DATABASE postgres; \'",
        "$$ ü\n",
        &long,
        &format!("{long}y"),
    ];
    // The second database of spid starts after the first was lost: it has no orders.
    let homes = [Home::without_hook(), Home::without_hook()];
    let daemons = homes.each_ref().map(|home| cluster.start_daemon(home));
    let mut urls = Vec::new();
    for name in names {
        let order = create(name);
        let answers = std::thread::scope(|scope| {
            let deliveries =
                daemons.each_ref().map(|daemon| scope.spawn(|| daemon.deliver_until_done(&order)));
            deliveries.map(|delivery| told(&delivery.join().unwrap()))
        });
        assert_eq!(answers[0], answers[1], "{name}");
        urls.push(answers[0].clone());
    }
    assert_eq!(cluster.tenants(), ["5", "5"]);
    let comments = "SELECT string_agg(shobj_description(oid, 'pg_database'), '|' ORDER BY shobj_description(oid, 'pg_database') COLLATE \"C\") \
                    FROM pg_database WHERE datname LIKE 'tenant_%'";
    let mut told_names = names.map(|name| format!("alibaba-cn/{name}"));
    told_names.sort();
    assert_eq!(cluster.ask(comments), told_names.join("|"));

    let (own, other) = (&urls[0], urls[1].rsplit('/').next().unwrap());
    assert!(cluster.psql(own, "SELECT 1").is_ok());
    for closed in [other, "provisioning", "postgres"] {
        let (server, _) = own.rsplit_once('/').unwrap();
        let error = cluster.psql(&format!("{server}/{closed}"), "SELECT 1").unwrap_err();
        assert!(error.contains("permission denied for database"), "{closed}: {error}");
    }
}
