//! The complete daemon: accepted requests, start and stop, and exit codes of its commands.

use std::net::TcpListener;

use crate::support::daemon::{
    Home, Line, Params, QUICK, about, connect, create, exchange, get, get_text, post_text, renew, until,
    upgrade,
};
use rustix::process::Signal;
use serde_json::{Value, json};

// Requests.

#[test]
fn a_form_is_as_good_as_a_query_string() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert_eq!(daemon.post(&create("ob-post").signed()).id(), "ob-post");
    assert_eq!(daemon.deliver(&create("ob-post")).id(), "ob-post", "and the same order");
    assert_eq!(home.list(&["callbacks", "list"]).len(), 1);
    let renewed = renew("ob-post", "2031-01-01 00:00:00");
    assert!(daemon.post(&renewed.signed()).success());
}

#[test]
fn a_space_is_a_space_as_percent_20_and_as_plus() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let spaced = create("ob-space").with("label", "two  words").with("sum", "1+1");
    let percent = spaced.signed();
    assert!(percent.contains("%20") && percent.contains("%2B"));
    let id = daemon.get(&percent).id();
    assert_eq!(daemon.get(&percent.replace("%20", "+")).id(), id);
    assert_eq!(daemon.post(&percent.replace("%20", "+")).id(), id);
    let call = home.call_of("create");
    assert_eq!(call["parameters"]["label"], "two  words");
    assert_eq!(call["parameters"]["sum"], "1+1");
    assert_eq!(call["parameters"]["expiredOn"], "2030-01-01 00:00:00");
    // An unencoded plus is decoded as a space, so it is not the signed text.
    assert_eq!(daemon.get(&percent.replace("%2B", "+")).status, 403);
    assert_eq!(home.begun("create").len(), 1);
}

#[test]
fn several_requests_come_over_one_connection() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    let mut line = Line::open(daemon.address).unwrap();
    for number in 0..5 {
        let name = format!("ob-{number}");
        let query = create(&name).signed();
        assert_eq!(line.exchange(&get_text("/spi", &query)).unwrap().id(), name);
        assert_eq!(line.exchange(&get_text("/spi", &create(&name).encoded())).unwrap().status, 403);
        assert_eq!(line.exchange(&post_text("/spi", &query)).unwrap().id(), name);
    }
}

#[test]
fn only_the_configured_path_leads_anywhere() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    let query = create("ob-path").signed();
    for path in ["/", "/spi/", "/SPI", "//spi", "/spi/../spi", "/metrics", "/readyz"] {
        assert_eq!(exchange(daemon.address, &get_text(path, &query)).unwrap().status, 404, "{path}");
    }
    let put = get_text("/spi", &query).replace("GET", "PUT");
    assert!(exchange(daemon.address, &put).unwrap().status >= 400);
    assert_eq!(home.list(&["callbacks", "list"]), Vec::<Value>::new());
}

#[test]
fn an_old_expire_sent_again_is_held_and_freezes_nothing() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let id = daemon.deliver(&create("ob-old").with("expiredOn", "2020-01-01 00:00:00")).id();
    let expire = about("expiredInstance", &id);
    assert!(daemon.deliver(&expire).success());
    assert!(daemon.deliver(&renew(&id, "2099-01-01 00:00:00")).success());
    assert_eq!(home.state(&id), "active");

    assert!(!daemon.deliver(&expire).success(), "byte for byte the one of back then");
    assert_eq!(home.state(&id), "active");
    assert_eq!(home.begun("expire").len(), 1);
    let held = home.list(&["held", "list"]);
    assert_eq!(held.len(), 1);
    assert_eq!((&held[0]["action"], &held[0]["instance"]), (&json!("expire"), &json!(id)));
    assert!(held[0]["reason"].as_str().unwrap().contains("paid until 2098-12-31"), "{held:?}");
    daemon.wait_for_log("disposition=\"held\"");
}

// Hooks.

#[test]
fn a_hook_that_outlasts_the_answer_runs_once() {
    let home = Home::impatient(&format!("wait_for go; {QUICK}"));
    let daemon = home.start();
    let request = create("ob-slow");
    for _ in 0..5 {
        assert_eq!(daemon.deliver(&request).id(), "0");
    }
    home.open_gate("go");
    let id = daemon.deliver_until_done(&request).id();
    assert_eq!(home.begun("create"), [(id.trim_start_matches("i-").to_owned(), 1)]);
    let rows = home.list(&["callbacks", "list"]);
    assert_eq!(rows.len(), 1, "six deliveries are one callback");
    assert!(rows[0]["deliveries"].as_u64().unwrap() >= 6, "{rows:?}");
}

#[test]
fn a_refusal_of_the_hook_is_told_and_tried_no_more() {
    let script = r#"echo "the licence pool is empty" >&2; echo '{"refuse": "no licence left"}'; exit 65"#;
    let home = Home::with_hook(script);
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-no")).id(), "0");
    assert_eq!(daemon.deliver(&create("ob-no")).id(), "0");
    assert_eq!(home.begun("create").len(), 1);
    let jobs = home.list(&["jobs", "list"]);
    assert_eq!((&jobs[0]["state"], &jobs[0]["note"]), (&json!("refused"), &json!("no licence left")));
    assert!(daemon.log().contains("the licence pool is empty"));
}

#[test]
fn an_id_that_another_instance_has_is_held() {
    let home = Home::with_hook(r#"printf '{"instance_id":"always-the-same"}'"#);
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "always-the-same");
    assert_eq!(daemon.deliver(&create("ob-2")).id(), "0");
    let held = home.list(&["held", "list"]);
    assert_eq!((held.len(), &held[0]["kind"]), (1, &json!("held-job")));
    assert_eq!(home.state("ob-2"), "pending");
    assert_eq!(home.state("always-the-same"), "active");
}

#[test]
fn what_an_operator_writes_is_not_told_to_the_marketplace() {
    let home = Home::with_hook(r#"printf '{"instance_id":"always-the-same"}'"#);
    let daemon = home.start();
    let asked = about("bindDomain", "always-the-same");
    assert!(!daemon.deliver(&asked).success());
    let number = home.list(&["held", "list"])[0]["callback"].to_string();
    let why = ["--why", "the buyer owes us money"];
    let ran = home.run(&["held", "reject", &number, "--db", "spid.db", why[0], why[1]]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told = daemon.deliver(&asked).json()["message"].as_str().unwrap().to_owned();
    assert!(told.contains("declined") && !told.contains("money"), "{told}");
}

// Start and stop.

#[test]
fn a_stop_answers_what_is_in_flight_and_lets_its_hook_end() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let mut daemon = home.start();
    let (address, query) = (daemon.address, create("ob-stop").signed());
    let in_flight = std::thread::spawn(move || get(address, &query));
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping");
    until("it accepts nothing more", || connect(address).is_err().then_some(()));
    assert!(daemon.is_running(), "it waits for the hook");
    home.open_gate("go");
    let answer = in_flight.join().unwrap().unwrap();
    assert_eq!(answer.id(), format!("i-{}", home.begun("create")[0].0));
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(home.state("ob-stop"), "active");
    assert_eq!(home.list(&["callbacks", "list", "--unreported"]), Vec::<Value>::new());
}

#[test]
fn a_stop_gives_back_what_it_could_not_begin() {
    // The hook has one slot. The second job is leased and waits for it.
    let home = Home::configured(&format!("wait_for go; {QUICK}"), "200ms", 1);
    let mut daemon = home.start();
    for name in ["ob-a", "ob-b"] {
        assert_eq!(daemon.deliver(&create(name)).id(), "0");
    }
    assert_eq!(home.begun("create").len(), 1);
    daemon.signal(Signal::TERM);
    let state = |name: &str| home.json(&["instances", "show", name])["jobs"][0]["state"].clone();
    until("the second job is given back", || (state("ob-b") == "queued").then_some(()));
    assert_eq!(state("ob-a"), "running");
    home.open_gate("go");
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!((state("ob-a"), state("ob-b")), (json!("done"), json!("queued")));
    let given_back = home.json(&["instances", "show", "ob-b"])["jobs"][0]["id"].as_str().unwrap().to_owned();
    let job = home.json(&["jobs", "show", &given_back]);
    assert_eq!((&job["step"], &job["failed_attempts"]), (&json!(0), &json!([])), "it spent nothing");

    let daemon = home.start();
    let id = daemon.deliver_until_done(&create("ob-b")).id();
    assert_eq!(id, format!("i-{given_back}"));
}

#[test]
fn a_second_signal_stops_at_once_and_loses_nothing() {
    let home = Home::impatient(&format!("[ \"$SPID_ATTEMPT\" = 1 ] && wait_for never; {QUICK}"));
    let mut daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-now")).id(), "0");
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(75));
    let daemon = home.start();
    daemon.deliver_until_done(&create("ob-now"));
    let keys: Vec<String> = home.begun("create").into_iter().map(|(key, _)| key).collect();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
}

#[test]
fn a_repeat_s_count_is_written_at_the_latest_when_it_stops() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    for _ in 0..7 {
        assert_eq!(daemon.deliver(&create("ob-count")).id(), "ob-count");
    }
    daemon.stop();
    let rows = home.list(&["callbacks", "list"]);
    assert_eq!((rows.len(), &rows[0]["deliveries"]), (1, &json!(7)));
}

#[test]
fn a_second_daemon_keeps_its_hands_off_the_store() {
    let home = Home::with_hook(&format!("wait_for go; {QUICK}"));
    let mut daemon = home.start();
    let (address, query) = (daemon.address, create("ob-two").signed());
    let in_flight = std::thread::spawn(move || get(address, &query));
    until("the hook has begun", || (home.begun("create").len() == 1).then_some(()));
    let config = home.path("spid.toml");
    let second = home.run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(second.code, 75, "{}", second.stderr);
    assert!(second.stderr.contains("another spid daemon is using"), "{}", second.stderr);
    assert!(second.stderr.contains("spid.db"), "{}", second.stderr);
    assert!(daemon.is_running());
    home.open_gate("go");
    assert_ne!(in_flight.join().unwrap().unwrap().id(), "0");
    assert_eq!(home.begun("create").len(), 1, "its running job was not taken for lost");
    daemon.kill();
    home.start().stop();
}

// Exit codes of commands.

#[test]
fn every_failure_has_its_exit_code() {
    let home = Home::with_log_hook();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = home.path("spid.toml").display().to_string();
    std::fs::write(home.path("text.db"), "this is no database, whatever it is called").unwrap();
    let other = rusqlite::Connection::open(home.path("other.db")).unwrap();
    other.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(other);
    let cases: &[(i32, &[&str], &str)] = &[
        (64, &[], "Usage"),
        (64, &["serve"], "--config"),
        (64, &["no-such-command"], "no-such-command"),
        (64, &["serve", "--no-such-flag"], "--no-such-flag"),
        (64, &["jobs", "list", "--log", "a=b=c"], "not a filter"),
        (64, &["instances", "list", "--state", "tired", "--db", "spid.db"], "tired"),
        (64, &["serve", "--dev", "--listen", "0.0.0.0:0"], "loopback"),
        (64, &["sign", "--key-file", "isv-key", "--dialect", "klingon", "x"], "klingon"),
        (64, &["sign", "--key-file", "isv-key", "createInstance", "novalue"], "NAME=VALUE"),
        (64, &["jobs", "show", "not-an-id", "--db", "spid.db"], "id"),
        (65, &["instances", "list", "--db", "text.db"], "database"),
        (65, &["instances", "list", "--db", "other.db"], "not a spid database"),
        (66, &["instances", "list", "--db", "missing.db"], "missing.db"),
        (66, &["instances", "list"], "spid.db"),
        (66, &["replay", ".", "--to", "http://127.0.0.1:1/spi", "--key-file", "isv-key"], "./*.toml"),
        (69, &["serve", "--config", &config, "--listen", &address], "in use"),
        (78, &["serve", "--config", "missing.toml"], "missing.toml"),
    ];
    for (code, arguments, said) in cases {
        let ran = home.run(arguments);
        assert_eq!(ran.code, *code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{arguments:?} does not say `{said}`: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}: stdout is data");
    }
    home.start().stop();
    for missing in [["instances", "no-such"], ["callbacks", "4711"]] {
        let ran = home.run(&[missing[0], "show", missing[1], "--db", "spid.db"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (66, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(missing[1]), "{}", ran.stderr);
    }
}

#[test]
fn help_and_version_are_no_failures() {
    let home = Home::empty();
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"], &["held", "list", "--help"]] {
        let ran = home.run(arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(ran.stdout.contains("spid") || ran.stdout.contains("--json"), "{}", ran.stdout);
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-pipe")).id(), "ob-pipe");
    for arguments in [
        &["callbacks", "list"][..],
        &["callbacks", "list", "--json"],
        &["instances", "show", "ob-pipe"],
        &["held", "list"],
        &["jobs", "list"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let db = home.path("spid.db").display().to_string();
        let status = home.run_into(&[arguments, &["--db", &db]].concat(), writer.into());
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn looking_changes_nothing_and_works_without_a_daemon() {
    let home = Home::with_hook(QUICK);
    let daemon = home.start();
    let id = daemon.deliver(&create("ob-look")).id();
    assert!(daemon.deliver(&upgrade(&id, "pro")).success());
    let views = [
        vec!["instances", "list"],
        vec!["instances", "show", &id],
        vec!["jobs", "list"],
        vec!["callbacks", "list"],
        vec!["callbacks", "show", "1"],
        vec!["held", "list"],
    ];
    let seen: Vec<String> = views.iter().map(|view| home.look(view)).collect();
    daemon.kill();
    for (view, before) in views.iter().zip(&seen) {
        assert_eq!(&home.look(view), before, "{view:?}");
    }
    home.start().stop();
    for (view, before) in views.iter().zip(&seen) {
        assert_eq!(&home.look(view), before, "{view:?}");
    }
}

#[test]
fn a_signed_request_of_the_command_line_is_taken_by_the_daemon() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    let honest = create("ob-sign").with("label", "R&D + 中文");
    let pairs: Vec<String> = honest.0[1..].iter().map(|(name, value)| format!("{name}={value}")).collect();
    let url = format!("http://{}/spi", daemon.address);
    let mut arguments = vec!["sign", "--key-file", "isv-key", "--to", &url, "createInstance"];
    arguments.extend(pairs.iter().map(String::as_str));
    let signed = home.run(&arguments);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    let query = signed.stdout.trim_end().split_once('?').unwrap().1;
    assert!(query.contains(&honest.token()), "the token computed by hand is the same");
    arguments[3] = "--url";
    assert_eq!(home.run(&arguments).stdout, signed.stdout, "as it was called before");
    let behind = ["sign", "--key-file", "isv-key", "--to", "http://a.example/spi?tenant=7", "x"];
    let behind = home.run(&behind).stdout;
    assert!(behind.starts_with("http://a.example/spi?tenant=7&action=x&"), "{behind}");
    assert_eq!(daemon.get(query).id(), "ob-sign");
    let verified = home.run(&["verify", "--key-file", "isv-key", "--json", signed.stdout.trim_end()]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let verdict: Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(verdict["verified"], true);
    assert!(!home.run(&["verify", "--key-file", "isv-key", &Params::new("x").encoded()]).stdout.is_empty());
}

/// A core would hold the key, and so does the memory of the process.
#[test]
fn a_daemon_that_crashes_leaves_no_core() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    use std::os::unix::process::ExitStatusExt as _;
    let home = Home::with_hook(&format!(r#"cat "/proc/$PPID/environ" > environment; {QUICK}"#));
    let mut daemon = home.start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
    assert!(daemon.deliver(&create("ob-1")).id().starts_with("i-"));
    if !rustix::process::geteuid().is_root() {
        let environment = std::fs::read(home.path("environment")).unwrap();
        assert_eq!(environment, b"", "a hook read the environment of the daemon");
    }
    // The process allows cores again, but none is written.
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let hard = rustix::process::getrlimit(Resource::Core).maximum;
    prlimit(pid, Resource::Core, Rlimit { current: hard, maximum: hard }).unwrap();
    daemon.signal(Signal::ABORT);
    let status = daemon.wait();
    assert!(!status.core_dumped(), "{status}");
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
}

#[test]
fn dev_mode_needs_no_configuration() {
    let home = Home::empty();
    let daemon = home.start_dev();
    let request = create("ob-dev");
    assert_eq!(daemon.deliver(&request).status, 403, "signed with another key");
    let query = format!("{}&token={}", request.encoded(), request.token_with("isvkey"));
    assert_eq!(daemon.get(&query).id(), "ob-dev");
    assert_eq!(home.state("ob-dev"), "active", "the store is spid.db, here");
}

#[test]
fn a_start_says_that_the_last_daemon_was_killed() {
    const KILLED: &str = "the last daemon of this database was killed";
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert!(!daemon.log().contains(KILLED), "this is the first start");
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    daemon.kill();
    let daemon = home.start();
    daemon.wait_for_log(KILLED);
    daemon.stop();
    assert!(!home.start().log().contains(KILLED), "the last one was stopped");
}

#[test]
fn key_and_address_come_from_the_configuration() {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let signed = ["sign", "--config", "spid.toml", "createInstance", "orderBizId=ob-1", "aliUid=1"];
    let configured = home.run(&signed);
    assert_eq!(configured.code, 0, "{}", configured.stderr);
    let url = configured.stdout.trim();
    assert!(url.starts_with("http://127.0.0.1:0/spi?"), "{url}");
    let verified = home.run(&["verify", "--config", "spid.toml", url]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert!(verified.stdout.starts_with("the signature is valid: key `current`"), "{}", verified.stdout);
    // A key on the command line goes before SPID_CONFIG.
    let other = home.run_in(&["verify", "--dev", url], &[("SPID_CONFIG", "spid.toml")]);
    assert_eq!(other.code, 1, "{}", other.stdout);

    let second = text.split("[[hook]]").next().unwrap().split("[[endpoint]]").nth(1).unwrap();
    let second = second
        .replace("alibaba-cn", "jdcloud-cn")
        .replace("/spi", "/jd")
        .replace("\"alibaba\"", "\"jdcloud\"");
    home.configure(
        &format!("{text}\n[[endpoint]]{second}shared_key = true\n")
            .replace("account = \"alibaba-cn\"", "account = \"alibaba-cn\"\nshared_key = true"),
    );
    let several = home.run(&signed);
    assert_eq!(several.code, 64);
    assert!(several.stderr.contains("hint: use alibaba-cn, jdcloud-cn"), "{}", several.stderr);
    let chosen = home.run(&[signed.as_slice(), &["--endpoint", "jdcloud-cn"]].concat());
    assert!(chosen.stdout.starts_with("http://127.0.0.1:0/jd?"), "{}{}", chosen.stdout, chosen.stderr);
    // A key beside the name of an endpoint would sign for it with a key that is not its own.
    let both =
        home.run(&["sign", "--dev", "--config", "spid.toml", "--endpoint", "jdcloud-cn", "createInstance"]);
    assert!(both.code == 64 && both.stderr.contains("--endpoint"), "{}", both.stderr);
    let none = home.run(&["sign", "createInstance"]);
    assert_eq!(none.code, 64);
    assert!(none.stderr.contains("--config FILE"), "{}", none.stderr);
}

#[test]
fn tools_that_play_the_marketplace_take_key_and_address_from_the_configuration() {
    let home = Home::with_log_hook();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")));
    let _daemon = home.start();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/spi-fixtures/alibaba/life.toml");
    let url = format!("http://127.0.0.1:{port}/spi");
    for arguments in [
        &["replay", "--quiet", "--config", "spid.toml", fixture][..],
        &["replay", "--quiet", "--config", "spid.toml", "--to", &url, "--set", "vars.order=again", fixture],
        &[
            "simulate",
            "--config",
            "spid.toml",
            "--orders",
            "2",
            "--rate",
            "50",
            "--day",
            "100ms",
            "--retry",
            "50ms",
        ],
        &["conformance", "--config", "spid.toml", "--only", "create"],
    ] {
        let ran = home.run(arguments);
        assert!(!ran.stderr.contains("there is no"), "{arguments:?}: {}", ran.stderr);
        assert!(matches!(ran.code, 0 | 1), "{arguments:?}: {} {}", ran.code, ran.stderr);
    }
    let elsewhere =
        home.run(&["replay", "--config", "spid.toml", "--to", "http://127.0.0.1:1/other", fixture]);
    assert_eq!(elsewhere.code, 64);
    assert!(
        elsewhere.stderr.contains("no endpoint of the configuration has the path `/other`"),
        "{}",
        elsewhere.stderr
    );
    let nothing = home.run(&["simulate", "--dev"]);
    assert_eq!(nothing.code, 64);
}

#[test]
fn help_lists_the_commands_by_purpose() {
    let home = Home::empty();
    let help = home.run(&["--help"]).stdout;
    for line in
        ["\nRun:\n", "\nInspect:\n", "\nRepair:\n", "\nKeys:\n", "\nDevelop:\n", "\nGlobal options:\n"]
    {
        assert_eq!(help.matches(line).count(), 1, "{line}{help}");
    }
    assert!(help.lines().all(|line| line.len() <= 110), "{help}");
    assert!(!help.contains("acts"), "{help}");
    // The old name still works.
    assert!(home.run(&["acts", "--help"]).stdout.contains("spid audit"));
}

/// A mistake in the marketplace's settings: the calls come to a path that no endpoint has.
#[test]
fn signed_calls_to_another_path_leave_a_line() {
    let home = Home::with_log_hook();
    for path in ["/spi/", "//spi", "/SPI", "/other"] {
        let daemon = home.start();
        let order = create("ob-1").signed();
        for _ in 0..3 {
            let target = format!("{path}?{order}");
            assert_eq!(daemon.get_target(&target).status, 404, "{path}");
        }
        let line = daemon.wait_for_log("a callback came to a path without an endpoint");
        assert!(line.contains("WARN") && line.trim_end().ends_with(&format!(" path={path}")), "{line}");
        assert!(line.contains("the endpoint's path is /spi"), "{line}");
        assert!(!daemon.log().contains("ob-1"), "the query is not logged");
        daemon.stop();
    }
}

/// A load balancer asks every few seconds, and so do scanners.
#[test]
fn health_checks_and_scanners_do_not_fill_the_log() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    for target in ["/livez", "/spi", "/spi/", "/wp-login.php?user=admin", "/"] {
        daemon.get_target(target);
    }
    // A callback whose signature is missing is still logged.
    assert_eq!(daemon.get(&create("ob-1").encoded()).status, 403);
    daemon.wait_for_log("denied: the request carries no signature");
    let log = daemon.log();
    let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("listen")).count();
    assert_eq!(warnings, 1, "{log}");
}
