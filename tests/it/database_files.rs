//! Database files that are moved, deleted, replaced and linked while a daemon runs. No acknowledged data is lost,
//! nothing runs twice, and no second daemon starts.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::path::PathBuf;

use crate::support::admin::{admin_of, ask, with_admin};
use crate::support::daemon::{self, Daemon, Home, QUICK, Ran, create, get, until};

const FILES: [&str; 3] = ["spid.db", "spid.db-wal", "spid.db-shm"];

fn home() -> Home {
    let home = Home::with_hook(QUICK);
    with_admin(&home, "");
    home
}

/// Orders an instance and returns its id, or `None` if the marketplace is to call again.
fn order(daemon: &Daemon, name: &str) -> Option<String> {
    let answer = daemon.deliver(&create(name));
    answer.is_success().then(|| answer.id())
}

/// Reasons why the daemon is not ready. `None` if it is ready.
fn unready(daemon: &Daemon) -> Option<String> {
    let answer = ask(admin_of(daemon), "/readyz");
    (answer.status != 200).then_some(answer.body)
}

fn serve(home: &Home, config: &str) -> Ran {
    home.run(&["serve", "--config", config])
}

fn move_all(home: &Home, from: &str, to: &str) {
    for file in FILES {
        std::fs::rename(home.path(from).join(file), home.path(to).join(file)).unwrap();
    }
}

#[test]
fn a_database_moved_away_acknowledges_nothing_until_it_is_back() {
    let home = home();
    let daemon = home.start();
    let first = order(&daemon, "ob-1").unwrap();
    assert_eq!(unready(&daemon), None);
    std::fs::create_dir(home.path("away")).unwrap();
    move_all(&home, "", "away");
    for _ in 0..3 {
        assert_eq!(order(&daemon, "ob-2"), None, "a new order went into a file that no start finds");
        assert_eq!(order(&daemon, "ob-1"), None, "a repeat was answered out of it");
    }
    let why = unready(&daemon).expect("it is not ready");
    assert!(why.contains("spid.db` was moved, deleted or replaced"), "{why}");
    assert!(!home.path("spid.db").exists(), "another database was made in its place");
    move_all(&home, "away", "");
    assert_eq!(order(&daemon, "ob-1"), Some(first.clone()));
    let second = order(&daemon, "ob-2").unwrap();
    assert_eq!(unready(&daemon), None);
    daemon.stop();
    let daemon = home.start();
    assert_eq!((order(&daemon, "ob-1"), order(&daemon, "ob-2")), (Some(first), Some(second)));
    assert_eq!(home.begun("create").len(), 2);
}

#[test]
fn what_a_hook_did_meanwhile_is_kept_once_the_database_is_back() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    let (address, query) = (daemon.address, create("ob-1").signed());
    let in_flight = std::thread::spawn(move || get(address, &query));
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    std::fs::create_dir(home.path("away")).unwrap();
    move_all(&home, "", "away");
    home.open_gate("go");
    daemon.wait_for_log("the outcome of an attempt could not be stored");
    move_all(&home, "away", "");
    let id = daemon.deliver_until_done(&create("ob-1")).id();
    // It may be reported already, by the first result that was stored.
    if let Some(answer) = in_flight.join().unwrap().filter(daemon::Answer::is_success) {
        assert_eq!(answer.id(), id);
    }
    assert_eq!(home.begun("create").len(), 1);
}

#[test]
fn another_file_in_its_place_is_not_the_database() {
    let home = home();
    let daemon = home.start();
    let first = order(&daemon, "ob-1").unwrap();
    home.look(&["backup", "copy.db"]);
    std::fs::rename(home.path("copy.db"), home.path("spid.db")).unwrap();
    assert_eq!((order(&daemon, "ob-1"), order(&daemon, "ob-2")), (None, None));
    assert!(unready(&daemon).expect("it is not ready").contains("restore a backup"));
    let copy = home.path("spid.db");
    let before = std::fs::read(&copy).unwrap();
    daemon.stop();
    assert_eq!(std::fs::read(&copy).unwrap(), before, "the stop wrote into a file that is not its own");
    for file in ["spid.db-wal", "spid.db-shm"] {
        let _ = std::fs::remove_file(home.path(file));
    }
    let daemon = home.start();
    assert_eq!(order(&daemon, "ob-1"), Some(first));
}

#[test]
fn a_log_deleted_under_the_daemon_is_brought_home_by_its_stop() {
    for file in ["spid.db-wal", "spid.db-shm"] {
        let home = home();
        let daemon = home.start();
        let first = order(&daemon, "ob-1").unwrap();
        std::fs::remove_file(home.path(file)).unwrap();
        assert_eq!(order(&daemon, "ob-2"), None, "{file}");
        let why = unready(&daemon).expect("it is not ready");
        assert!(why.contains(file) && why.contains("stop the daemon"), "{why}");
        daemon.stop();
        let daemon = home.start();
        assert_eq!(order(&daemon, "ob-1"), Some(first), "{file}");
        assert!(order(&daemon, "ob-2").is_some());
        assert_eq!(home.begun("create").len(), 2, "{file}");
    }
}

#[test]
fn a_database_that_is_gone_is_not_begun_anew() {
    let home = home();
    let daemon = home.start();
    order(&daemon, "ob-1").unwrap();
    daemon.stop();
    std::fs::remove_file(home.path("spid.db")).unwrap();
    let ran = serve(&home, "spid.toml");
    assert_eq!(ran.code, 66, "{}", ran.stderr);
    for words in ["spid restore", "spid.db.key` shows", "remove"] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(!home.path("spid.db").exists());
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert!(ran.code == 78 && ran.stderr.contains("`store.path`"), "{ran:?}");
    // An empty file is not a database either.
    std::fs::write(home.path("spid.db"), "").unwrap();
    assert_eq!(serve(&home, "spid.toml").code, 66);
    std::fs::remove_file(home.path("spid.db.key")).unwrap();
    let daemon = home.start();
    assert_eq!(home.list(&["instances", "list"]).len(), 0);
    daemon.stop();
}

/// Each command says what is wrong with the file that it was given. A restore is given a backup, so restoring one is no
/// advice.
#[test]
fn a_file_that_is_no_database_is_named_with_its_fault() {
    let home = home();
    let daemon = home.start();
    order(&daemon, "ob-1").unwrap();
    daemon.stop();
    std::fs::write(home.path("garbage.db"), "this is no database, whatever it is called. ".repeat(99))
        .unwrap();
    std::fs::write(home.path("empty.db"), "").unwrap();
    std::fs::create_dir(home.path("folder.db")).unwrap();
    let theirs = rusqlite::Connection::open(home.path("theirs.db")).unwrap();
    theirs.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(theirs);
    // The header is right, but the pages behind it are not.
    let mut pages = std::fs::read(home.path("spid.db")).unwrap();
    pages[4096..].fill(0x5a);
    std::fs::write(home.path("broken.db"), pages).unwrap();
    let cases = [
        ("garbage.db", "is not a SQLite file", "is not a SQLite file"),
        ("empty.db", "is empty", "is empty"),
        ("folder.db", "is a directory", "is a directory"),
        ("theirs.db", "another program made", "is not a spid database"),
        ("broken.db", "is damaged (", "is damaged: "),
    ];
    for (file, restored, opened) in cases {
        let ran = home.run(&["restore", file, "--db", "new.db", "--why", "a test"]);
        let said = format!("`{file}` cannot be restored: ");
        assert!(ran.code == 65 && ran.stderr.contains(&said) && ran.stderr.contains(restored), "{ran:?}");
        assert!(!ran.stderr.contains("restore a backup"), "{ran:?}");
        assert!(!home.path("new.db").exists());
        let made = std::fs::read_dir(home.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        // Only the lock remains.
        let made: Vec<_> = made.filter(|name| name.to_string_lossy().starts_with("new.db")).collect();
        assert_eq!(made, ["new.db.lock"][..made.len()], "{file}");
        for command in
            [&["backup", "copy.db"][..], &["instances", "list"], &["held", "approve", "1", "--why", "a test"]]
        {
            let ran = home.run(&[command, &["--db", file]].concat());
            assert!(ran.code == 65 && ran.stderr.contains(opened), "{command:?}: {ran:?}");
            assert!(ran.stderr.contains(file), "{command:?}: {ran:?}");
            assert!(!home.path("copy.db").exists());
        }
    }
    // A daemon starts on an empty file, but not on a directory or on another file.
    for (file, fault) in [("folder.db", "is a directory"), ("garbage.db", "is not a SQLite file")] {
        with_database_at(&home, "other.toml", file);
        let ran = serve(&home, "other.toml");
        assert!(ran.code == 65 && ran.stderr.contains(fault), "{ran:?}");
        let ran = home.run(&["check-config", "--config", "other.toml"]);
        assert!(ran.code == 78 && ran.stderr.contains(fault), "{ran:?}");
    }
}

/// Without the key the log remains, and without the log the mark of a running hook.
#[test]
fn what_a_killed_daemon_left_shows_that_there_was_a_database() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    let (address, query) = (daemon.address, create("ob-1").signed());
    let in_flight = std::thread::spawn(move || get(address, &query));
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    daemon.kill();
    let _ = in_flight.join();
    for file in ["spid.db", "spid.db.key"] {
        std::fs::remove_file(home.path(file)).unwrap();
    }
    for (left, gone) in [("spid.db-wal", Some("spid.db-wal")), ("spid.db.running", None)] {
        let ran = serve(&home, "spid.toml");
        assert!(ran.code == 66 && ran.stderr.contains(&format!("{left}` shows")), "{left}: {ran:?}");
        gone.into_iter().for_each(|file| std::fs::remove_file(home.path(file)).unwrap());
    }
}

/// A second daemon must not kill the first one's hook, for any name of the database.
#[test]
fn no_link_and_no_removed_lock_lets_a_second_daemon_in() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    let (address, query) = (daemon.address, create("ob-1").signed());
    let in_flight = std::thread::spawn(move || get(address, &query));
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let real = home.path("spid.db");
    let elsewhere = |name: &str, path: PathBuf| {
        let other = text.replace(real.to_str().unwrap(), path.to_str().unwrap());
        assert_ne!(other, text);
        std::fs::write(home.path(name), other).unwrap();
    };
    std::fs::create_dir(home.path("links")).unwrap();
    std::fs::hard_link(&real, home.path("links/hard.db")).unwrap();
    elsewhere("hard.toml", home.path("links/hard.db"));
    std::os::unix::fs::symlink(&real, home.path("links/soft.db")).unwrap();
    elsewhere("soft.toml", home.path("links/soft.db"));
    let refused = |config: &str| {
        let second = serve(&home, config);
        assert_eq!(second.code, 75, "{config}: {}", second.stderr);
        assert!(second.stderr.contains("another spid daemon is using"), "{config}: {}", second.stderr);
    };
    refused("hard.toml");
    refused("soft.toml");
    std::fs::remove_file(home.path("spid.db.lock")).unwrap();
    refused("spid.toml");
    refused("soft.toml");
    home.open_gate("go");
    assert_ne!(in_flight.join().unwrap().unwrap().id(), "0");
    assert_eq!(home.begun("create").len(), 1, "the hook of the first daemon was killed and begun again");
    daemon.stop();
    // Without the lock its note is gone too, so either name may be the one with the log.
    assert_eq!(serve(&home, "spid.toml").code, 65);
    std::fs::remove_file(home.path("links/hard.db")).unwrap();
    home.start().stop();
}

fn copy_all(home: &Home, from: &str, to: &str) {
    for file in FILES {
        // Written in place, as `cp` does: the file stays the same.
        std::fs::write(home.path(to).join(file), std::fs::read(home.path(from).join(file)).unwrap()).unwrap();
    }
}

#[test]
fn an_old_copy_written_over_the_open_files_acknowledges_nothing_and_is_not_started_on() {
    let home = home();
    let daemon = home.start();
    let first = order(&daemon, "ob-1").unwrap();
    std::fs::create_dir(home.path("old")).unwrap();
    copy_all(&home, "", "old");
    let second = order(&daemon, "ob-2").unwrap();
    std::fs::create_dir(home.path("new")).unwrap();
    copy_all(&home, "", "new");
    copy_all(&home, "old", "");
    for _ in 0..3 {
        for name in ["ob-2", "ob-3", "ob-1"] {
            assert_eq!(order(&daemon, name), None, "{name}");
        }
    }
    let why = unready(&daemon).expect("it is not ready");
    assert!(why.contains("was overwritten or truncated") && why.contains("spid restore"), "{why}");
    daemon.kill();
    copy_all(&home, "old", "");
    let ran = serve(&home, "spid.toml");
    assert!(ran.code == 66 && ran.stderr.contains("lacks acknowledged commits"), "{ran:?}");
    copy_all(&home, "new", "");
    let daemon = home.start();
    assert_eq!((order(&daemon, "ob-1"), order(&daemon, "ob-2")), (Some(first), Some(second)));
    assert_eq!(home.begun("create").len(), 2);
}

/// A database that was copied without its log replaces the open one, then an empty file does. Then the log is
/// truncated.
#[test]
fn one_file_overwritten_or_cut_is_noticed() {
    for spoil in ["backup", "empty", "log"] {
        let home = home();
        let daemon = home.start();
        order(&daemon, "ob-1").unwrap();
        home.look(&["backup", "copy.db"]);
        let (file, with) = match spoil {
            "backup" => ("spid.db", std::fs::read(home.path("copy.db")).unwrap()),
            "empty" => ("spid.db", Vec::new()),
            _ => ("spid.db-wal", Vec::new()),
        };
        std::fs::write(home.path(file), with).unwrap();
        assert_eq!(order(&daemon, "ob-2"), None, "{spoil}");
        assert_eq!(order(&daemon, "ob-2"), None, "{spoil}");
        assert!(unready(&daemon).is_some(), "{spoil}");
        assert_eq!(home.begun("create").len(), 1, "{spoil}");
    }
}

/// Writes and log truncation of other commands beside the daemon are not taken for an overwrite.
#[test]
fn what_other_commands_write_is_not_taken_for_an_overwriting() {
    let home = home();
    let daemon = home.start();
    for round in 0..3 {
        for number in 0..4 {
            order(&daemon, &format!("ob-{round}-{number}")).unwrap();
        }
        home.look(&["prune", "--older-than", "30d", "--vacuum", "--why", "test"]);
        order(&daemon, &format!("ob-{round}-after")).unwrap();
        home.look(&["instances", "release", &format!("ob-{round}-0"), "--why", "test"]);
        assert_eq!(unready(&daemon), None);
    }
    daemon.kill();
    // A program that reads the database checkpoints the log and removes it.
    home.look(&["instances", "list"]);
    let daemon = home.start();
    assert!(order(&daemon, "ob-9").is_some());
    daemon.stop();
    assert!(order(&home.start(), "ob-10").is_some());
}

/// A configuration with another name of the database.
fn with_database_at(home: &Home, config: &str, database: &str) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let other = text.replace(home.path("spid.db").to_str().unwrap(), home.path(database).to_str().unwrap());
    assert_ne!(other, text);
    std::fs::write(home.path(config), other).unwrap();
}

/// After a crash everything can be in the log. Without the log the file does not count as a new database.
#[test]
fn a_database_without_its_log_is_not_begun_anew() {
    let home = home();
    let daemon = home.start();
    let first = order(&daemon, "ob-1").unwrap();
    daemon.kill();
    let refused = |config: &str| {
        for command in ["serve", "check-config"] {
            let ran = home.run(&[command, "--config", config]);
            assert!(matches!(ran.code, 66 | 78), "{command} {config}: {ran:?}");
            assert!(ran.stderr.contains("shows that there was one"), "{command} {config}: {ran:?}");
        }
    };
    std::fs::create_dir(home.path("new")).unwrap();
    with_database_at(&home, "new.toml", "new/spid.db");
    for file in ["spid.db", "spid.db.key"] {
        std::fs::copy(home.path(file), home.path("new").join(file)).unwrap();
    }
    refused("new.toml");
    let log = home.path("spid.db-wal");
    std::fs::rename(&log, home.path("log")).unwrap();
    refused("spid.toml");
    // A key in another place does not hide the loss either.
    std::fs::rename(home.path("spid.db.key"), home.path("key")).unwrap();
    refused("spid.toml");
    std::fs::rename(home.path("key"), home.path("spid.db.key")).unwrap();
    let _ = std::fs::remove_file(home.path("spid.db-shm"));
    std::fs::rename(home.path("log"), &log).unwrap();
    let daemon = home.start();
    assert_eq!(order(&daemon, "ob-1"), Some(first.clone()));
    daemon.stop();
    // A database that was closed in order needs no log, and can be moved.
    for file in ["spid.db", "spid.db.key"] {
        std::fs::rename(home.path(file), home.path("new").join(file)).unwrap();
    }
    for left in ["spid.db-wal", "spid.db-shm"] {
        let _ = std::fs::remove_file(home.path("new").join(left));
    }
    std::fs::rename(home.path("new.toml"), home.path("spid.toml")).unwrap();
    let daemon = home.start();
    assert_eq!(order(&daemon, "ob-1"), Some(first));
    assert_eq!(home.begun("create").len(), 1);
}

/// One part is in the database, the other in the log beside the first name.
#[test]
fn a_start_through_a_hard_link_is_refused() {
    let home = home();
    let daemon = home.start();
    order(&daemon, "ob-1").unwrap();
    daemon.stop();
    let daemon = home.start();
    order(&daemon, "ob-2").unwrap();
    daemon.kill();
    std::fs::create_dir(home.path("hard")).unwrap();
    std::fs::hard_link(home.path("spid.db"), home.path("hard/spid.db")).unwrap();
    with_database_at(&home, "hard.toml", "hard/spid.db");
    for command in [&["serve"][..], &["check-config"], &["instances", "list"], &["backup", "copy.db"]] {
        let ran = home.run(&[command, &["--config", "hard.toml"]].concat());
        assert!(
            matches!(ran.code, 65 | 78) && ran.stderr.contains("several hard links"),
            "{command:?}: {ran:?}"
        );
    }
    assert!(!home.path("copy.db").exists());
    let daemon = home.start();
    assert!(order(&daemon, "ob-2").is_some());
    assert_eq!(home.begun("create").len(), 2);
}

#[test]
fn a_command_through_another_name_leaves_the_database_of_a_daemon_alone() {
    let home = home();
    home.start().stop();
    let daemon = home.start();
    let first = order(&daemon, "ob-1").unwrap();
    std::fs::create_dir(home.path("hard")).unwrap();
    std::fs::hard_link(home.path("spid.db"), home.path("hard/spid.db")).unwrap();
    std::fs::write(home.path("list"), "{\"account\":\"a\",\"id\":\"i-1\",\"state\":\"active\"}\n").unwrap();
    for command in [
        &["prune", "--older-than", "30d", "--vacuum", "--why", "test"][..],
        &["instances", "release", "ob-1", "--why", "test"],
        &["instances", "import", "list", "--any-account", "--why", "test"],
        &["backup", "copy.db"],
        &["instances", "list"],
        &["attention"],
    ] {
        let ran = home.run(&[command, &["--db", home.path("hard/spid.db").to_str().unwrap()]].concat());
        assert!(ran.code == 75 && ran.stderr.contains("under another path"), "{command:?}: {ran:?}");
    }
    assert_eq!(std::fs::read_dir(home.path("hard")).unwrap().count(), 1, "nothing was made there");
    home.look(&["backup", "copy.db"]);
    assert_eq!(order(&daemon, "ob-1"), Some(first.clone()));
    assert!(order(&daemon, "ob-2").is_some());
    daemon.stop();
    assert_eq!(order(&home.start(), "ob-1"), Some(first));
}
