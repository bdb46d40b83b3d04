//! `spid::App`: a program with its own name and version, and a hook that is started with its settings.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has said what it found")]

use std::process::{Command, Output, Stdio};

use crate::support::daemon::{Home, create};
use crate::support::examples;

fn ran(home: &Home, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(examples::built("app"));
    command.args(arguments).env_clear().current_dir(home.path("")).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A home whose hook has these settings.
fn home(settings: &str) -> Home {
    let home = Home::empty();
    let in_process = format!("in_process = {{ timeout = \"1m\"{settings} }}");
    home.configure(&home.config("60s", &in_process));
    home
}

#[test]
fn the_program_has_its_name_and_version() {
    let home = Home::empty();
    let label = format!("acme-receiver 3.1.4 (spid {})", env!("CARGO_PKG_VERSION"));
    assert_eq!(ran(&home, &["--version"]).1.trim(), label);
    let (code, help, _) = ran(&home, &["--help"]);
    assert!(code == Some(0) && help.starts_with(&label) && help.contains("Usage: acme-receiver "), "{help}");
    let (_, script, _) = ran(&home, &["completions", "bash"]);
    assert!(script.contains("acme-receiver"), "{script}");
}

#[test]
fn the_hook_is_started_with_its_settings() {
    let home = home(", settings = { tenants = \"tenants\", region = \"eu-1\" }");
    let (code, stdout, stderr) = ran(&home, &["check-config", "--config", "spid.toml"]);
    assert!(code == Some(0), "{stdout}{stderr}");
    assert!(!home.path("tenants").exists(), "check-config starts nothing");
    let daemon = home.start_program(&examples::built("app"), &[]);
    let ready = daemon.wait_for_log("ready address=");
    assert!(ready.contains("acme-receiver 3.1.4 (spid "), "{ready}");
    assert_eq!(daemon.deliver_until_done(&create("ob-1")).id(), "ob-1");
    assert!(home.path("tenants/ob-1/password").exists());
    let config = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&config.replace("eu-1", "eu-2"));
    let line = daemon.reload();
    assert!(line.contains("restart required") && line.contains("hook[0].in_process.settings"), "{line}");
    drop(daemon);

    home.configure(&config.replace("eu-1", "us-1"));
    let (code, _, stderr) = ran(&home, &["serve", "--config", "spid.toml"]);
    assert!(
        code == Some(78) && stderr.contains("the hook did not start: there are no tenants in us-1"),
        "{stderr}"
    );
    let (code, stdout, _) = ran(&home, &["check-config", "--config", "spid.toml"]);
    assert_eq!(code, Some(0), "{stdout}");
}

#[test]
fn a_mistake_in_the_settings_is_told_by_its_key_and_never_by_its_value() {
    for (settings, key, words) in [
        ("", "hook[0].in_process.settings", "missing field `tenants`"),
        (", settings = {}", "hook[0].in_process.settings", "missing field `tenants`"),
        (", settings = \"canary\"", "hook[0].in_process.settings", "must be a table"),
        (", settings = { tenants = [\"canary\"] }", "hook[0].in_process.settings.tenants", "invalid type"),
        (
            ", settings = { tenants = \"t\", region = true }",
            "hook[0].in_process.settings.region",
            "invalid type",
        ),
        (
            ", settings = { tenants = \"t\", regoin = \"canary\" }",
            "settings.regoin",
            "unknown field `regoin`",
        ),
    ] {
        let home = home(settings);
        for command in ["check-config", "serve"] {
            let (code, _, stderr) = ran(&home, &[command, "--config", "spid.toml"]);
            assert!(
                code == Some(78) && stderr.contains(key) && stderr.contains(words),
                "{settings}: {stderr}"
            );
            assert!(!stderr.contains("canary"), "{settings}: {stderr}");
        }
    }
    let (code, _, stderr) = ran(&Home::empty(), &["demo"]);
    assert!(code == Some(78) && stderr.contains("needs settings (missing field `tenants`)"), "{stderr}");
    let (code, _, stderr) = ran(&Home::empty(), &["hook", "test"]);
    assert!(code == Some(78) && stderr.contains("needs settings (missing field `tenants`)"), "{stderr}");
}
