//! The sealing key over the years, with the real daemon: its source, its change while orders arrive, the damage of a
//! leaked old key (none), and the audit of decrypted passwords.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::daemon::{Daemon, Home, PASSWORD, Ran, assert_clean, create, exchange, until};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rusqlite::{Connection, params};
use serde_json::Value;
use spid::internals::store::encryption::{Encryptor, KeySource};
use spid_hook::Secret;

/// Answers with the password each time.
const TELLS: &str =
    r#"printf '{"instance_id":"%s","app":{"username":"u","password":"%s"}}' "$(fake_id)" "$(cat password)""#;

const OLD: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const NEW: &str = "0202020202020202020202020202020202020202020202020202020202020202";

fn home() -> Home {
    let home = Home::with_hook(TELLS);
    std::fs::write(home.path("password"), PASSWORD).unwrap();
    home
}

/// Configures these sealing keys.
fn seal_with(home: &Home, keys: &str) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("sealing_key")).collect();
    let text = kept.join("\n").replace("[store]\n", &format!("[store]\nsealing_keys = {keys}\n"));
    home.configure(&text);
}

fn file(home: &Home, name: &str) -> String {
    format!("{{ file = \"{}\" }}", home.path(name).display())
}

fn both(home: &Home) -> String {
    format!("[{}, {}]", file(home, "new.key"), file(home, "spid.db.key"))
}

fn tells_the_password(daemon: &Daemon, order: &str) -> bool {
    daemon.deliver(&create(order)).body.contains(PASSWORD)
}

fn spid(home: &Home, arguments: &[&str]) -> Ran {
    let config = home.path("spid.toml");
    home.run(&[arguments, &["--config", config.to_str().unwrap()]].concat())
}

fn rotate(home: &Home) -> Ran {
    spid(home, &["seal", "rotate", "--json", "--who", "ops", "--why", "the laptop was stolen"])
}

fn rotated(home: &Home) -> Value {
    let ran = rotate(home);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Output of `seal status`: each key by its position, and the number of answers it has encrypted.
fn status(home: &Home) -> Vec<(String, u64)> {
    let ran = spid(home, &["seal", "status", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    lines
        .iter()
        .map(|line| (line["which"].as_str().unwrap().to_owned(), line["sealed"].as_u64().unwrap()))
        .collect()
}

fn sealed(home: &Home) -> Vec<Vec<u8>> {
    let db = home.database();
    let mut found = db.prepare("SELECT sealed FROM job WHERE sealed IS NOT NULL").unwrap();
    found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Encrypted pieces that are in the files: enough of each to be decrypted in part.
fn found(home: &Home, sealed: &[Vec<u8>]) -> usize {
    let files = home.database_files();
    let is_there = |piece: &[u8]| {
        files.iter().any(|(_, bytes)| bytes.windows(piece.len()).any(|window| window == piece))
    };
    // The nonce and the beginning of the ciphertext, and its end.
    sealed.iter().filter(|one| is_there(&one[12..40]) || is_there(&one[one.len() - 20..])).count()
}

fn acts(home: &Home) -> Vec<String> {
    let rows = home.list(&["acts"]);
    let word = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| format!("{} {} {}", word(row, "who"), word(row, "act"), word(row, "target")))
        .collect()
}

#[test]
fn the_key_is_changed_while_orders_come_in_and_the_old_one_opens_nothing_any_more() {
    let home = home();
    let daemon = home.start();
    for number in 0..40 {
        assert!(tells_the_password(&daemon, &format!("before-{number}")));
    }
    let before = sealed(&home);
    assert_eq!((before.len(), found(&home, &before)), (40, 40));
    std::fs::write(home.path("new.key"), NEW).unwrap();
    seal_with(&home, &both(&home));
    // The daemon cannot decrypt values of a key that it does not have.
    let ran = rotate(&home);
    assert_eq!(ran.code, 65, "{}", ran.stdout);
    assert!(ran.stderr.contains("reload") && ran.stdout.is_empty(), "{}", ran.stderr);
    assert_eq!(status(&home), [("current".to_owned(), 0), ("previous".to_owned(), 40)]);
    assert!(daemon.reload().contains("reload: applied"));
    assert!(tells_the_password(&daemon, "before-0") && tells_the_password(&daemon, "between"));
    assert_eq!(status(&home), [("current".to_owned(), 1), ("previous".to_owned(), 40)]);
    let done = std::thread::scope(|scope| {
        let orders =
            scope.spawn(|| (0..20).all(|number| tells_the_password(&daemon, &format!("while-{number}"))));
        let done = rotated(&home);
        assert!(orders.join().unwrap(), "an order was not answered while the key was changed");
        done
    });
    assert_eq!(
        (&done["reencrypted"], &done["remaining"], &done["traceless"]),
        (&40.into(), &0.into(), &true.into())
    );
    assert_eq!(status(&home), [("current".to_owned(), 61), ("previous".to_owned(), 0)]);
    assert_eq!(found(&home, &before), 0, "a leaked old key opens something");
    assert_eq!(found(&home, &sealed(&home)), 61, "where is it looked for?");
    seal_with(&home, &format!("[{}]", file(&home, "new.key")));
    assert!(daemon.reload().contains("reload: applied"));
    std::fs::remove_file(home.path("spid.db.key")).unwrap();
    assert!(tells_the_password(&daemon, "before-0") && tells_the_password(&daemon, "while-19"));
    daemon.stop();
    let daemon = home.start();
    assert!(tells_the_password(&daemon, "before-39"));
    daemon.stop();
    assert!(!home.path("spid.db.key").exists(), "no key is made that nobody asked for");
    let acts = acts(&home);
    assert!(
        acts.iter()
            .any(|act| act.starts_with("ops reseal everything") && act.ends_with("40 re-encrypted, 0 remain")),
        "{acts:?}"
    );
    for (name, bytes) in home.database_files() {
        assert_clean(&name, &bytes, &[PASSWORD, OLD, NEW]);
    }
}

#[test]
fn no_password_stands_in_any_file_of_the_database_nor_in_a_backup() {
    let home = home();
    let daemon = home.start();
    for number in 0..30 {
        assert!(tells_the_password(&daemon, &format!("order-{number}")));
    }
    let backup = home.path("spid.db.backup");
    assert_eq!(spid(&home, &["backup", backup.to_str().unwrap()]).code, 0);
    let names: Vec<String> = home.database_files().into_iter().map(|(name, _)| name).collect();
    for wanted in ["spid.db", "spid.db-wal", "spid.db-shm", "spid.db.backup"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    for (name, bytes) in home.database_files() {
        assert_clean(&name, &bytes, &[PASSWORD]);
    }
    daemon.stop();
}

/// The daemon notes its keys in the lock file. Without it they are unknown, though the daemon runs.
#[test]
fn a_removed_lock_does_not_hide_the_daemon_from_whoever_seals() {
    let home = home();
    let daemon = home.start();
    assert!(tells_the_password(&daemon, "first"));
    std::fs::remove_file(home.path("spid.db.lock")).unwrap();
    std::fs::write(home.path("new.key"), NEW).unwrap();
    seal_with(&home, &both(&home));
    let ran = rotate(&home);
    assert!(ran.code == 65 && ran.stderr.contains("restart the daemon"), "{} {}", ran.code, ran.stderr);
    assert_eq!(status(&home), [("current".to_owned(), 0), ("previous".to_owned(), 1)]);
    daemon.stop();
    let daemon = home.start();
    assert_eq!(rotated(&home)["reencrypted"], 1);
    assert!(tells_the_password(&daemon, "first"));
}

/// A database with answers that the old key has encrypted, more than fit one commit. Half of them have no key id, as
/// from an older spid.
fn full_home(count: usize) -> Home {
    let home = home();
    home.start().stop();
    std::fs::write(home.path("spid.db.key"), OLD).unwrap();
    let daemon = home.start();
    assert!(tells_the_password(&daemon, "first"));
    daemon.stop();
    let old = Encryptor::from_existing(&[KeySource::File(home.path("spid.db.key"))]).unwrap();
    let cipher = XChaCha20Poly1305::new(&[1; 32].into());
    let mut db = Connection::open(home.path("spid.db")).unwrap();
    let together = db.transaction().unwrap();
    for number in 0..count {
        let id = (number as u128 + 1).to_be_bytes();
        let secret = format!(r#"{{"app":{{"password":"{PASSWORD}"}}}}"#);
        let nonce = [number as u8; 24];
        let payload = Payload { msg: secret.as_bytes(), aad: &id };
        let sealed = match number % 2 {
            0 => old.seal(&id, &Secret::new(secret)).unwrap(),
            _ => [nonce.as_slice(), &cipher.encrypt(&XNonce::from(nonce), payload).unwrap()].concat(),
        };
        let sql =
            "INSERT INTO job (id, callback, in_lane, action, state, attempts, step, extra, due_at, sealed,
                     created_at, ended_at) VALUES (?1, 1, 0, 9, 5, 1, 0, 0, 0, ?2, 0, 0)";
        together.execute(sql, params![id, sealed]).unwrap();
    }
    together.commit().unwrap();
    std::fs::write(home.path("new.key"), NEW).unwrap();
    seal_with(&home, &both(&home));
    home
}

#[test]
fn a_change_that_is_killed_goes_on_where_it_was() {
    let home = full_home(4_000);
    let total = 4_001;
    let mut kills = 0;
    loop {
        let done_before: u64 = status(&home).iter().find(|(which, _)| which == "current").unwrap().1;
        let config = home.path("spid.toml");
        let mut rotation = std::process::Command::new(env!("CARGO_BIN_EXE_spid"))
            .args(["seal", "rotate", "--why", "a test", "--config"])
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let ended = until("something is sealed anew", || {
            let done = sealed(&home).iter().filter(|one| is_new(&home, one)).count() as u64;
            let ended = rotation.try_wait().unwrap();
            (ended.is_some() || done > done_before + 500).then_some(ended)
        });
        if ended.is_some() {
            break;
        }
        rotation.kill().unwrap();
        rotation.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0, "it was never killed in the middle");
    let done = rotated(&home);
    assert_eq!((&done["reencrypted"], &done["remaining"]), (&0.into(), &0.into()));
    assert_eq!(status(&home), [("current".to_owned(), total), ("previous".to_owned(), 0)]);
    let new = Encryptor::from_existing(&[KeySource::File(home.path("new.key"))]).unwrap();
    let db = home.database();
    let mut rows = db.prepare("SELECT id, sealed FROM job").unwrap();
    let opened = rows
        .query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .filter(|(id, sealed)| new.open(id, sealed).unwrap().expose().contains(PASSWORD));
    assert_eq!(opened.count() as u64, total);
}

fn is_new(home: &Home, sealed: &[u8]) -> bool {
    let new = Encryptor::from_existing(&[KeySource::File(home.path("new.key"))]).unwrap();
    sealed.starts_with(&new.header())
}

#[test]
fn a_change_without_the_old_key_says_what_remains() {
    let home = full_home(10);
    seal_with(&home, &format!("[{}]", file(&home, "new.key")));
    let ran = rotate(&home);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("11 answers") && ran.stderr.contains("do not remove it"), "{}", ran.stderr);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["remaining"], 11);
    let ran = spid(&home, &["check-config"]);
    assert!(ran.code == 0 && ran.stderr.contains("6 answers are encrypted with key"), "{}", ran.stderr);
    let warns = |ran: &Ran| ran.stderr.contains("5 answers of an older spid have no key id");
    assert!(
        warns(&ran) && ran.stderr.contains("spid.db.key` exists and `store.sealing_keys` does not list it"),
        "{}",
        ran.stderr
    );
    let ran = spid(&home, &["seal", "status"]);
    assert!(ran.stderr.contains("unnamed answers were stored by an older spid"), "{}", ran.stderr);
    assert_eq!(
        status(&home),
        [("current", 0), ("unnamed", 5), ("unknown", 6)].map(|(which, count)| (which.to_owned(), count))
    );
    std::fs::rename(home.path("new.key"), home.path("away.key")).unwrap();
    assert_eq!(
        status(&home),
        [("unnamed", 5), ("unknown", 6)].map(|(which, count)| (which.to_owned(), count))
    );
    std::fs::rename(home.path("away.key"), home.path("new.key")).unwrap();
    seal_with(&home, &both(&home));
    let ran = spid(&home, &["check-config"]);
    assert!(ran.code == 0 && !warns(&ran), "{}", ran.stderr);
    assert_eq!(rotated(&home)["reencrypted"], 11);
    let ran = spid(&home, &["seal", "status"]);
    assert!(!ran.stderr.contains("unnamed"), "{}", ran.stderr);
}

#[test]
fn the_key_may_come_from_a_variable_or_a_credential() {
    let home = home();
    let folder = home.path("").display().to_string();
    std::fs::write(home.path("sealing"), OLD).unwrap();
    for (keys, variable, value) in [
        (r#"[{ env = "FAKE_SEALING_KEY" }]"#, "FAKE_SEALING_KEY", OLD),
        (r#"[{ credential = "sealing" }]"#, "CREDENTIALS_DIRECTORY", folder.as_str()),
    ] {
        seal_with(&home, keys);
        let daemon = home.start_in(&[(variable, value)]);
        assert!(tells_the_password(&daemon, "order") && tells_the_password(&daemon, "order"));
        daemon.stop();
        assert!(!home.path("spid.db.key").exists());
        // Without a key everything else is visible.
        let ran = spid(&home, &["instances", "list"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let ran = spid(&home, &["check-config"]);
        assert_eq!(ran.code, 78);
        assert!(
            ran.stderr.contains("`store.sealing_keys`") && ran.stderr.contains(variable),
            "{}",
            ran.stderr
        );
        assert_clean("stderr", ran.stderr.as_bytes(), &[OLD]);
    }
}

#[test]
fn a_key_that_the_daemon_makes_is_made_once_and_never_while_it_runs() {
    let home = home();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let own = home.path("own.key").display().to_string();
    home.configure(&text.replace("[store]\n", &format!("[store]\nsealing_key = \"{own}\"\n")));
    let daemon = home.start();
    assert!(tells_the_password(&daemon, "order"));
    assert!(home.path("own.key").exists() && !home.path("spid.db.key").exists());
    // The key is gone, and a reload creates no new one, because the old values could not be decrypted.
    std::fs::rename(home.path("own.key"), home.path("moved.key")).unwrap();
    assert!(daemon.reload().contains("kept the old configuration"));
    assert!(tells_the_password(&daemon, "order") && !home.path("own.key").exists());
    seal_with(&home, &format!("[{}]", file(&home, "moved.key")));
    assert!(daemon.reload().contains("reload: applied"));
    assert!(tells_the_password(&daemon, "order"));
    daemon.stop();
    // With a list, `sealing_key` is the last key.
    std::fs::rename(home.path("moved.key"), home.path("own.key")).unwrap();
    std::fs::write(home.path("new.key"), NEW).unwrap();
    let keys = format!("sealing_key = \"{own}\"\nsealing_keys = [{}]", file(&home, "new.key"));
    home.configure(&text.replace("[store]\n", &format!("[store]\n{keys}\n")));
    assert_eq!(status(&home), [("current".to_owned(), 0), ("previous".to_owned(), 1)]);
}

#[test]
fn what_is_completed_in_the_console_is_sealed_with_the_key_of_the_last_reload() {
    let home = Home::with_hook(r#"printf '{"pending":"waits for sales"}'"#);
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("[server]\n", "[server]\nadmin_listen = \"127.0.0.1:0\"\n"));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("order")).id(), "0");
    std::fs::write(home.path("new.key"), NEW).unwrap();
    seal_with(&home, &format!("[{}]", file(&home, "new.key")));
    assert!(daemon.reload().contains("reload: applied"));
    std::fs::remove_file(home.path("spid.db.key")).unwrap();
    let answer = format!(r#"{{"who":"ops","why":"sold","answer":{{"app":{{"password":"{PASSWORD}"}}}}}}"#);
    let ready = daemon.wait_for_log("ready address=");
    let admin = ready.split("admin=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let request = format!(
        "POST /v1/instances/order/complete HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
    let completed = exchange(admin, &request).unwrap();
    assert_eq!(completed.status, 200, "{}", completed.body);
    assert!(tells_the_password(&daemon, "order"));
    assert_eq!(status(&home), [("current".to_owned(), 1)]);
    daemon.stop();
}

#[test]
fn who_looks_at_a_password_is_kept_before_it_is_shown() {
    let home = home();
    let daemon = home.start();
    let answer = daemon.deliver(&create("order"));
    let id = answer.id();
    for plain in [["instances", "show", "order"].as_slice(), &["instances", "show", "order", "--json"]] {
        let ran = spid(&home, plain);
        assert_eq!(ran.code, 0);
        assert_clean("without --reveal", ran.stdout.as_bytes(), &[PASSWORD]);
    }
    let ran = spid(&home, &["instances", "show", "order", "--reveal"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (64, ""));
    assert!(ran.stderr.contains("--why"), "{}", ran.stderr);
    let ran = spid(&home, &["instances", "show", "order", "--reveal", "--why", "  "]);
    assert_eq!((ran.code, ran.stdout.as_str()), (64, ""));
    let why = ["--reveal", "--who", "ann", "--why", "the buyer lost it"];
    // Without an audit entry no password is shown.
    let lock = Connection::open(home.path("spid.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ran = spid(&home, &[["instances", "show", "order"].as_slice(), &why].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (75, ""), "{}", ran.stderr);
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(acts(&home), Vec::<String>::new());
    let ran = spid(&home, &[["instances", "show", "order"].as_slice(), &why].concat());
    assert!(ran.code == 0 && ran.stdout.contains(&format!("app.password = {PASSWORD}")), "{}", ran.stderr);
    let job = home.list(&["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    let ran = spid(&home, &[["jobs", "show", job.as_str(), "--json"].as_slice(), &why].concat());
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(shown["secrets"][0]["values"]["app.password"], PASSWORD);
    assert_eq!(
        acts(&home),
        [format!("ann reveal job {job}"), format!("ann reveal instance {id} of alibaba-cn")]
    );
    daemon.stop();
}
