//! `examples/exec_hook.py` and `examples/exec_hook.sh` through a whole life behind the daemon. They are killed before
//! they store the result, and after that but before the answer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has said what it found")]

use std::path::Path;

use crate::support::daemon::{self, Home, SOON, about, create, renew, until, upgrade};
use crate::support::examples;
use crate::support::executable::executable;
use crate::support::machine::lacks;
use serde_json::Value;

/// Runs the Python example with an `os.replace` that reports each stored answer, and waits before or after it if the
/// test says so.
const HELD_PY: &str = r#"
import os, runpy, sys, time
here, real = sys.path[0], os.replace
def wait(when):
    if os.path.exists(f"{here}/hold-{when}"):
        with open(f"{here}/middle", "w") as file:
            file.write(f"{when} {os.getpid()}\n")
    while os.path.exists(f"{here}/hold-{when}"):
        time.sleep(0.02)
def replace(*paths):
    wait("before")
    real(*paths)
    wait("after")
os.replace = replace
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"#;

/// The same for the shell: an `mv` that is found before the system's.
const HELD_MV: &str = r#"#!/bin/sh
here=${0%/*}
wait_for() {
    case $2 in */answers/*) ;; *) return ;; esac
    [ ! -e "$here/hold-$1" ] || echo "$1 $PPID" > "$here/middle"
    while [ -e "$here/hold-$1" ]; do sleep 0.02; done
}
wait_for before "$2"
PATH=${PATH#*:} mv "$@"
wait_for after "$2"
"#;

/// Returns the hook that waits here, as soon as it does.
fn hook_in_the_middle(home: &Home, when: &str) -> i32 {
    until("a hook is in the middle", || {
        let text = std::fs::read_to_string(home.path("middle")).ok()?;
        text.strip_suffix('\n')?.strip_prefix(when)?.trim().parse().ok()
    })
}

fn hold(home: &Home, when: &str) {
    std::fs::write(home.path(&format!("hold-{when}")), "").unwrap();
}

fn let_go(home: &Home, when: &str) {
    std::fs::remove_file(home.path(&format!("hold-{when}"))).unwrap();
}

/// A whole life with two crashes. `state` returns the state that the hook stored, or that there is none.
fn live(home: &Home, command: &[String], state: impl Fn() -> Option<String>) {
    home.configure(&home.config("60s", &format!("exec = {{ command = {command:?}, {SOON} }}")));

    // Kill the hook alone, before it stores anything.
    hold(home, "before");
    let daemon = home.start();
    let (address, order) = (daemon.address, create("ob-1").signed());
    let delivery = std::thread::spawn(move || daemon::get(address, &order));
    examples::kill(hook_in_the_middle(home, "before"));
    delivery.join().unwrap();

    // Kill the daemon at the second attempt, after everything is stored.
    hold(home, "after");
    let_go(home, "before");
    hook_in_the_middle(home, "after");
    assert_eq!(state().as_deref(), Some("active"), "it is done and kept");
    daemon.kill();
    let daemon = home.start(); // the start kills the remaining hook
    let_go(home, "after");
    let made = daemon.deliver_until_done(&create("ob-1"));
    assert_eq!(home.list(&["jobs", "list"])[0]["attempts"], 3);
    assert_eq!(made.json()["appInfo"]["frontEndUrl"], "https://ob-1.app.example");
    let kept = std::fs::read_to_string(home.path("app/ob-1.json")).unwrap_or_default();
    if let Some(password) = made.json()["appInfo"]["password"].as_str() {
        assert!(kept.contains(password), "the password that was kept is the one that is told");
    }

    let id = made.id();
    for (request, after) in [
        (upgrade(&id, "pro"), "active"),
        (about("expiredInstance", &id), "frozen"),
        (renew(&id, "2031-01-01 00:00:00"), "active"),
    ] {
        assert!(daemon.deliver(&request).success());
        assert_eq!(state().as_deref(), Some(after));
    }
    assert!(daemon.deliver(&about("releaseInstance", &id)).success());
    assert!(state().is_none_or(|state| state == "released"));
    assert_eq!(home.state(&id), "released");
}

#[test]
fn the_python_example_lives_a_whole_life_and_two_deaths() {
    if lacks("python3", "python3") {
        return;
    }
    let home = Home::empty();
    std::fs::write(home.path("held.py"), HELD_PY).unwrap();
    let at = |path: &Path| path.display().to_string();
    let command = [
        "python3".to_owned(),
        at(&home.path("held.py")),
        at(&examples::source("exec_hook.py")),
        at(&home.path("app")),
    ];
    live(&home, &command, || {
        let text = std::fs::read(home.path("app/ob-1.json")).ok()?;
        serde_json::from_slice::<Value>(&text).unwrap()["state"].as_str().map(str::to_owned)
    });
}

#[test]
fn the_shell_example_lives_a_whole_life_and_two_deaths() {
    let home = Home::empty();
    executable(&home.path("mv"), HELD_MV);
    let command = [
        "sh".to_owned(),
        "-c".to_owned(),
        r#"PATH=$1:$PATH; export PATH; exec "$2" "$1/app""#.to_owned(),
        "sh".to_owned(),
        home.path("").display().to_string(),
        examples::source("exec_hook.sh").display().to_string(),
    ];
    live(&home, &command, || {
        let text = std::fs::read_to_string(home.path("app/ob-1/state")).ok()?;
        Some(text.trim().to_owned())
    });
}
