//! Configuration for an operator: several endpoints, `check-config`, and the printed defaults.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::net::TcpListener;

use crate::support::daemon::{self, Daemon, Home, KEY, create, exchange, get_text, until};
use serde_json::json;

const LOG_HOOK: &str = "[[hook]]\nname = \"try\"\nlog = {}\n";

fn endpoint(name: &str, path: &str, dialect: &str, more: &str) -> String {
    format!(
        "[[endpoint]]\nname = \"{name}\"\npath = \"{path}\"\ndialect = \"{dialect}\"\nkeys = [{{ file = \"{name}.key\" }}]\n{more}\n"
    )
}

/// A home with these endpoints, each with its own key.
fn home_with(endpoints: &[(&str, &str, &str, &str)], more: &str) -> Home {
    let home = Home::empty();
    let mut text = "[server]\nlisten = \"127.0.0.1:0\"\nreply_within = \"5s\"\n".to_owned();
    for (name, path, dialect, account) in endpoints {
        std::fs::write(home.path(&format!("{name}.key")), format!("fake-key-of-{name}\n")).unwrap();
        text.push_str(&endpoint(name, path, dialect, account));
    }
    home.configure(&format!("{text}{LOG_HOOK}{more}"));
    home
}

/// Sends an order for `order` to `path`, signed with the key of `endpoint`.
fn order(daemon: &Daemon, path: &str, endpoint: &str, order: &str) -> daemon::Answer {
    let request = create(order);
    let token = request.token_with(&format!("fake-key-of-{endpoint}"));
    let query = format!("{}&token={token}", request.encoded());
    exchange(daemon.address, &get_text(path, &query)).unwrap()
}

// Several endpoints.

#[test]
fn every_endpoint_has_its_path_its_key_and_its_account() {
    let shared = "account = \"cn\"";
    let home = home_with(
        &[
            ("cn", "/cn", "alibaba", ""),
            ("intl", "/intl", "alibaba", ""),
            ("cn-b", "/cn/b", "alibaba", shared),
        ],
        "",
    );
    let daemon = home.start();
    assert_eq!(order(&daemon, "/cn", "cn", "ob-1").id(), "ob-1");
    assert_eq!(order(&daemon, "/intl", "intl", "ob-1").id(), "ob-1", "the same number of another seller");
    for (path, key) in [("/cn", "intl"), ("/intl", "cn"), ("/cn/b", "cn"), ("/cn", "cn-b")] {
        assert_eq!(order(&daemon, path, key, "ob-2").status, 403, "{path} with the key of {key}");
    }
    assert_eq!(order(&daemon, "/cn/b", "cn-b", "ob-1").id(), "ob-1", "the same order through another door");
    let mut instances: Vec<_> = home
        .list(&["instances", "list"])
        .into_iter()
        .map(|row| json!([row["account"], row["endpoint"], row["id"]]).to_string())
        .collect();
    instances.sort();
    assert_eq!(instances, [r#"["cn","cn","ob-1"]"#, r#"["intl","intl","ob-1"]"#]);
}

#[test]
fn two_dialects_are_spoken_side_by_side() {
    let home = home_with(&[("ali", "/ali", "alibaba", ""), ("jd", "/jd", "jdcloud", "")], "");
    let daemon = home.start();
    assert_eq!(order(&daemon, "/ali", "ali", "ob-1").id(), "ob-1");
    let url = format!("http://{}/jd", daemon.address);
    let expiry = "expiredOn=2030-01-01 00:00:00";
    let parameters =
        ["jdPin=buyer", "orderBizId=ob-2", "orderId=o-2", "serviceCode=s", "skuId=basic", expiry];
    let sign = ["sign", "--dialect", "jdcloud", "--key-file", "jd.key", "--to", &url, "createInstance"];
    let signed = home.run(&[&sign[..], &parameters].concat());
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    let query = signed.stdout.trim_end().split_once('?').unwrap().1;
    assert_eq!(exchange(daemon.address, &get_text("/jd", query)).unwrap().id(), "ob-2");
    assert_ne!(exchange(daemon.address, &get_text("/ali", query)).unwrap().status, 200);
    let row = home.json(&["instances", "show", "ob-2"]);
    assert_eq!((&row["account"], &row["endpoint"]), (&json!("jd"), &json!("jd")));
}

#[test]
fn a_route_leads_an_endpoint_to_a_hook_of_its_own() {
    let refusing = "[[hook]]\nname = \"no\"\nexec = { command = [\"sh\", \"-c\", \"echo '{\\\"refuse\\\": \\\"not here\\\"}'; exit 65\"] }\n[[route]]\nendpoint = \"b\"\nhook = \"no\"\n";
    let home = home_with(&[("a", "/a", "alibaba", ""), ("b", "/b", "alibaba", "")], refusing);
    let daemon = home.start();
    assert_eq!(order(&daemon, "/a", "a", "ob-1").id(), "ob-1");
    assert_eq!(order(&daemon, "/b", "b", "ob-1").id(), "0");
}

/// The README sets SPID_CONFIG permanently. It must not conflict with an explicit argument.
#[test]
fn what_stands_in_the_environment_gives_way_to_what_is_typed() {
    let home = home_with(&[("cn", "/cn", "alibaba", "")], "");
    home.start().stop();
    let run = |arguments: &[&str]| {
        let mut spid = std::process::Command::new(env!("CARGO_BIN_EXE_spid"));
        spid.args(arguments).env("SPID_CONFIG", "nowhere.toml").current_dir(home.path("."));
        let output = spid.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["jobs", "list", "--db", "spid.db"]), (0, String::new()));
    let (code, complaint) = run(&["jobs", "list"]);
    assert!(code == 78 && complaint.contains("nowhere.toml"), "{complaint}");
    let (code, complaint) = run(&["jobs", "list", "--db", "spid.db", "--config", "other.toml"]);
    assert!(code == 64 && complaint.contains("give only one"), "{complaint}");
    let (code, complaint) = run(&["serve", "--dev", "--listen", "0.0.0.0:1"]);
    assert!(code == 64 && complaint.contains("--dev uses a public key"), "{complaint}");
    let (code, complaint) = run(&["serve", "--dev", "--config", "other.toml"]);
    assert!(code == 64 && complaint.contains("`--dev` and `--config` exclude each other"), "{complaint}");
}

// Invalid keys.

#[test]
fn a_doubtful_key_is_warned_of_and_the_documented_one_stays_on_this_machine() {
    let home = home_with(&[("a", "/a", "alibaba", "account = \"a\"")], "");
    let check = || home.run(&["check-config", "--config", "spid.toml"]);
    let ran = check();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stderr);
    for (key, said) in [
        ("a", "the key has 1 characters"),
        ("\"fake-key-of-a\"", "quotes"),
        ("'fake-key-of-a'", "quotes"),
        ("CHANGEME", "placeholder of an example"),
        ("change-me-1", "placeholder of an example"),
        ("isvkey", "placeholder of an example"),
    ] {
        std::fs::write(home.path("a.key"), format!("{key}\n")).unwrap();
        let ran = check();
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let line = ran
            .stderr
            .lines()
            .find(|line| line.contains(said))
            .unwrap_or_else(|| panic!("{key}: {}", ran.stderr));
        assert!(line.contains("spid.toml:8: `endpoint[0].keys[0]`"), "{line}");
        assert!(key.len() < 4 || !ran.stderr.contains(key), "{line}");
        let daemon = home.start();
        assert!(daemon.log().contains(said), "{key}: {}", daemon.log());
        daemon.stop();
    }
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("127.0.0.1:0", "0.0.0.0:0"));
    for command in ["check-config", "serve"] {
        let ran = home.run(&[command, "--config", "spid.toml"]);
        assert_eq!(ran.code, 78, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("`endpoint[0].keys`") && ran.stderr.contains("`isvkey`"),
            "{}",
            ran.stderr
        );
    }
}

// check-config.

#[test]
fn check_config_looks_at_everything_and_tells_everything() {
    let home = Home::empty();
    std::fs::write(home.path("text.db"), "this is no database, whatever it is called").unwrap();
    std::fs::write(home.path("short.key"), "0123").unwrap();
    std::fs::write(home.path("not-executable"), "").unwrap();
    home.configure(
        r#"
[store]
path = "text.db"
sealing_key = "short.key"
[[endpoint]]
name = "a"
path = "/spi"
dialect = "alibaba"
keys = [{ credential = "isv-key" }]
[[hook]]
name = "provision"
exec = { command = ["./not-executable"] }
[[hook]]
name = "call"
http = { url = "http://203.0.113.1/", secret = { env = "FAKE_UNSET" } }
[[route]]
hook = "provisoin"
"#,
    );
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (78, ""), "{}", ran.stderr);
    for (place, text) in [
        ("spid.toml:9: `endpoint[0].keys[0].credential`", "CREDENTIALS_DIRECTORY"),
        ("spid.toml:12: `hook[0].exec.command`", "is not an executable file"),
        ("spid.toml:15: `hook[1].http.secret.env`", "FAKE_UNSET"),
        ("spid.toml:17: `route[0].hook`", "did you mean `provision`?"),
        ("spid.toml:3: `store.path`", "database"),
        ("spid.toml:4: `store.sealing_key`", "64 hex digits"),
    ] {
        let line = ran.stderr.lines().find(|line| line.contains(place));
        assert!(line.is_some_and(|line| line.contains(text)), "{place} … {text}\n{}", ran.stderr);
    }
    assert!(ran.stderr.contains("the configuration has 6 mistakes"), "{}", ran.stderr);
}

#[test]
fn a_configuration_of_the_last_version_is_accepted_with_a_warning() {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let removed =
        "[rate]\nper_address = \"30/s\"\nper_endpoint = \"off\"\n[policy]\nkey_unused_after = \"60d\"\n";
    home.configure(&format!("{removed}{text}"));
    let variables = [("SPID_RATE__PER_ADDRESS", "off")];
    let ran = home.run_in(&["check-config", "--config", "spid.toml"], &variables);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for name in ["spid.toml:1: `rate`", "spid.toml:5: `policy.key_unused_after`", "SPID_RATE__PER_ADDRESS"] {
        let warning = format!("warning: {name}: has no effect since 0.2; remove it\n");
        assert!(ran.stderr.contains(&warning), "{name}: {}", ran.stderr);
    }
    let daemon = home.start_in(&variables);
    daemon.wait_for_log("`rate`: has no effect since 0.2");
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    home.configure(&format!("[rate]\n{text}"));
    assert!(daemon.reload().contains("reload: applied"));
}

/// JSON of a command that reads the whole configuration.
fn json_of(home: &Home, command: &str) -> serde_json::Value {
    let ran = home.run(&[command, "--config", "spid.toml", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn the_last_use_of_each_key_is_shown() {
    let home = Home::with_log_hook();
    std::fs::write(home.path("new-key"), "fake-key-of-next-year").unwrap();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let new = home.path("new-key").display().to_string();
    home.configure(&text.replace("keys = [", &format!("keys = [{{ file = \"{new}\", label = \"next\" }}, ")));
    // Before the first start nothing is recorded.
    assert_eq!(json_of(&home, "keys")[1]["since"], json!(null));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    daemon.stop();
    let keys = json_of(&home, "keys");
    let (next, old) = (&keys[0], &keys[1]);
    assert_eq!(
        (&next["label"], &next["current"], &next["used_at"]),
        (&json!("next"), &json!(true), &json!(null))
    );
    assert_eq!((&old["label"], &old["current"]), (&json!("previous"), &json!(false)));
    assert!(old["used_at"].is_string() && next["since"].is_string(), "{old} {next}");
    let table = home.run(&["keys", "--config", "spid.toml"]).stdout;
    assert!(table.starts_with("ENDPOINT ") && table.contains("LAST-USED"), "{table}");
    let checked = json_of(&home, "check-config");
    assert_eq!(checked["endpoints"][0]["keys"], keys);
    assert_eq!(checked["default_hook"], checked["hooks"][0]["name"]);
    let said = home.run(&["check-config", "--config", "spid.toml"]).stdout;
    assert!(
        said.contains("keys: next (unused since 20") && said.contains("previous (last used 20"),
        "{said}"
    );
}

#[test]
fn check_config_shows_the_application_and_the_markets() {
    let more = r#"
[app]
listen = "127.0.0.1:8082"
tokens = [{ name = "backend", file = "app-token", accounts = ["a"], roles = ["entitlements", "usage"] }]

[[market]]
name = "china"
api = "alibaba-cn"
credentials = "default"
credentials_for = { license = { access_key_id = { env = "FAKE_ID" }, access_key_secret = { env = "FAKE_SECRET" } } }
notifications = { endpoint = "a", every = "90s" }

[[market]]
name = "abroad"
api = "alibaba-intl"
base_url = "http://127.0.0.1:9"
credentials = "default"
"#;
    let home = home_with(&[("a", "/a", "alibaba", "account = \"a\"")], more);
    std::fs::write(home.path("app-token"), "fake-token-of-the-app").unwrap();
    let check = |json: &[&str]| {
        let variables = [("FAKE_ID", "fake-access-key-id"), ("FAKE_SECRET", "fake-access-key-secret")];
        let ran = home.run_in(&[&["check-config", "--config", "spid.toml"], json].concat(), &variables);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        for secret in ["fake-token", "fake-access"] {
            assert!(!ran.stdout.contains(secret) && !ran.stderr.contains(secret), "{}", ran.stdout);
        }
        ran.stdout
    };
    let said = check(&[]);
    let lines = [
        "  app  127.0.0.1:8082\n    token backend  accounts: a  roles: entitlements, usage\n",
        "  market china  alibaba-cn  own credentials: license\n    notifications  endpoint: a  every: 90s\n",
        "  market abroad  alibaba-intl  http://127.0.0.1:9/\n",
    ];
    lines.iter().for_each(|line| assert!(said.contains(line), "{said}"));
    let report: serde_json::Value = serde_json::from_str(&check(&["--json"])).unwrap();
    let token = json!({"name": "backend", "accounts": ["a"], "roles": ["entitlements", "usage"]});
    assert_eq!(report["app"], json!({"listen": "127.0.0.1:8082", "tokens": [token]}));
    let china = json!({
        "name": "china", "api": "alibaba-cn", "credentials_for": ["license"],
        "notifications": {"endpoint": "a", "every": "90s"},
    });
    assert_eq!(report["markets"][0], china);
    assert_eq!(report["markets"][1]["base_url"], "http://127.0.0.1:9/");
}

#[test]
fn check_config_binds_and_makes_nothing() {
    let home = Home::with_log_hook();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string()));
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stdout.contains("spid.toml: ok") && ran.stdout.contains("keys: current"), "{}", ran.stdout);
    assert_eq!(home.database_files(), []);
    home.configure(&text.replace("spid.db", "no-such-folder/spid.db"));
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!(ran.code, 78);
    assert!(ran.stderr.contains("`store.path`") && ran.stderr.contains("no-such-folder"), "{}", ran.stderr);
}

#[test]
fn check_config_is_content_beside_a_daemon_and_says_when_the_sealing_key_is_gone() {
    let home = Home::with_hook(
        r#"printf '{"instance_id":"i-1","app":{"front_end_url":"https://a.example","admin_url":"https://a.example","username":"u","password":"fake"}}'"#,
    );
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "i-1");
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stderr);
    daemon.stop();
    std::fs::remove_file(home.path("spid.db.key")).unwrap();
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.starts_with("warning: the sealing key"), "{}", ran.stderr);
}

#[test]
fn whoever_reads_the_store_need_not_be_able_to_read_the_keys() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    daemon.stop();
    std::fs::remove_file(home.path("isv-key")).unwrap();
    let ran = home.run(&["instances", "list", "--config", "spid.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("ob-1"));
}

#[test]
fn a_key_is_read_from_a_variable_and_from_a_credential() {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let folder = home.path("").display().to_string();
    let file = format!("{{ file = \"{folder}/isv-key\" }}");
    for (key, variable, value) in [
        ("{ env = \"FAKE_KEY\" }", "FAKE_KEY", KEY),
        ("{ credential = \"isv-key\", label = \"systemd\" }", "CREDENTIALS_DIRECTORY", folder.as_str()),
    ] {
        home.configure(&text.replace(&file, key));
        let daemon = home.start_in(&[(variable, value)]);
        assert_eq!(daemon.deliver(&create(variable)).id(), variable);
        daemon.stop();
    }
    assert!(home.look(&["callbacks", "show", "2"]).contains("signed with key `systemd`"));
}

#[test]
fn a_variable_comes_before_the_file() {
    let home = Home::with_log_hook();
    let daemon = home.start_in(&[("SPID_STORE__PATH", "elsewhere.db")]);
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    assert!(home.path("elsewhere.db").exists() && !home.path("spid.db").exists());
}

// Accounts.

/// One endpoint with this name, with or without an account.
fn named(home: &Home, name: &str, account: &str, policy: &str) {
    let text = endpoint(name, "/spi", "alibaba", account).replace(&format!("{name}.key"), "isv-key");
    home.configure(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nreply_within = \"60s\"\n{policy}{text}{LOG_HOOK}"
    ));
}

#[test]
fn a_new_name_of_an_endpoint_loses_no_instance() {
    let home = Home::empty();
    named(&home, "shop", "", "");
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    assert!(daemon.log().contains("write `account = \"shop\"`"), "{}", daemon.log());

    named(&home, "shop-cn", "", "");
    let line = "write `account = \"shop\"` in the [[endpoint]] `shop-cn`";
    let kept = daemon.reload();
    assert!(kept.contains("kept the old configuration") && kept.contains(line), "{kept}");
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    daemon.stop();
    for command in ["check-config", "serve"] {
        let ran = home.run(&[command, "--config", "spid.toml"]);
        assert!(ran.code == 78 && ran.stderr.contains(line), "{command}: {ran:?}");
    }

    named(&home, "shop-cn", "account = \"shop\"", "");
    let ran = home.run(&["check-config", "--config", "spid.toml"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    assert_eq!(daemon.deliver(&daemon::renew("ob-1", "2031-01-01 00:00:00")).status, 200);
    assert_eq!(home.list(&["instances", "list"]).len(), 1);
}

#[test]
fn a_seller_who_leaves_a_marketplace_can_start() {
    let home = Home::empty();
    named(&home, "old", "account = \"old\"", "");
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
    daemon.stop();
    named(&home, "new", "account = \"new\"", "");
    assert_eq!(home.run(&["serve", "--config", "spid.toml"]).code, 78);
    named(&home, "new", "account = \"new\"", "[policy]\nretired_accounts = [\"old\"]\n");
    let daemon = home.start();
    named(&home, "new", "account = \"new\"", "");
    assert!(daemon.reload().contains("`retired_accounts = [\"old\"]` in [policy]"));
    daemon.stop();
    // An account without unreleased instances needs no endpoint.
    named(&home, "old", "account = \"old\"", "");
    let daemon = home.start();
    assert!(daemon.deliver(&daemon::about("releaseInstance", "ob-1")).is_success());
    daemon.stop();
    named(&home, "new", "account = \"new\"", "");
    home.start().stop();
}

#[test]
fn one_key_for_two_accounts_is_refused_unless_it_is_meant() {
    let home = Home::empty();
    std::fs::write(home.path("other-key"), "fake-other-key\n").unwrap();
    // The same key again, in another file and without a line break at the end.
    std::fs::write(home.path("copy-of-key"), KEY).unwrap();
    let check = |endpoints: &[(&str, &str, &str, &str)]| {
        let mut text = String::new();
        for (index, (account, dialect, keys, more)) in endpoints.iter().enumerate() {
            let keys: Vec<String> = keys.split(' ').map(|file| format!("{{ file = \"{file}\" }}")).collect();
            let keys = keys.join(", ");
            text.push_str(&format!(
                "[[endpoint]]\nname = \"e{index}\"\npath = \"/{index}\"\naccount = \"{account}\"\ndialect = \"{dialect}\"\nkeys = [{keys}]\n{more}\n"
            ));
        }
        home.configure(&format!("{text}{LOG_HOOK}"));
        home.run(&["check-config", "--config", "spid.toml"])
    };
    let meant = "shared_key = true";
    for refused in [
        [("a", "alibaba", "isv-key", ""), ("b", "alibaba", "copy-of-key", "")],
        [("a", "alibaba", "isv-key", ""), ("b", "jdcloud", "isv-key", "")],
        [("a", "alibaba", "isv-key", ""), ("b", "alibaba", "other-key isv-key", "")],
        [("a", "generic", "isv-key", ""), ("b", "generic", "isv-key", "")],
        [("a", "alibaba", "isv-key", meant), ("b", "alibaba", "isv-key", "")],
    ] {
        let ran = check(&refused);
        assert_eq!(ran.code, 78, "{refused:?}");
        assert!(ran.stderr.contains("`endpoint[1].keys`: the key `"), "{}", ran.stderr);
        assert!(ran.stderr.contains("of endpoint `e0`") && ran.stderr.contains(meant), "{}", ran.stderr);
        assert!(!ran.stderr.contains(KEY), "{}", ran.stderr);
    }
    let daemon = home.run(&["serve", "--config", "spid.toml"]);
    assert_eq!(daemon.code, 78, "{}", daemon.stderr);
    for fine in [
        [("a", "alibaba", "isv-key", ""), ("a", "alibaba", "isv-key", "")],
        [("a", "alibaba", "isv-key", ""), ("b", "alibaba", "other-key", "")],
        [("a", "alibaba", "isv-key", ""), ("b", "generic", "isv-key", "")],
        [("a", "alibaba", "isv-key", meant), ("b", "alibaba", "isv-key", meant)],
    ] {
        let ran = check(&fine);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{fine:?}");
    }
}

#[test]
fn a_reload_to_one_key_for_two_accounts_keeps_the_old_configuration() {
    let home = home_with(
        &[("a", "/a", "alibaba", "account = \"a\""), ("b", "/b", "alibaba", "account = \"b\"")],
        "",
    );
    let daemon = home.start();
    std::fs::copy(home.path("a.key"), home.path("b.key")).unwrap();
    let kept = daemon.reload();
    assert!(kept.contains("kept the old configuration") && kept.contains("shared_key = true"), "{kept}");
    assert_eq!(order(&daemon, "/b", "a", "ob-1").status, 403);
    assert_eq!(order(&daemon, "/b", "b", "ob-1").id(), "ob-1");
}

/// An order that waits for its next attempt, through the endpoint `shop` with its own route. Then the daemon stops.
/// `text` is the next configuration of endpoints and routes.
fn restarted_with_an_open_order(text: &str) -> (Home, Daemon) {
    let home = Home::empty();
    let folder = home.path("").display().to_string();
    let hook = |name: &str, script: &str| {
        format!(
            "[[hook]]\nname = \"{name}\"\nexec = {{ command = [\"sh\", \"-c\", \"cd {folder}; {script}\"], {} }}\n",
            daemon::SOON
        )
    };
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nreply_within = \"1s\"\n";
    let hooks =
        hook("first", "touch wrong; echo {}") + &hook("mine", "[ -e open ] || exit 75; touch right; echo {}");
    let with = |text: &str| {
        let text = text.replace("shop.key", "isv-key").replace("shop-cn.key", "isv-key");
        home.configure(&format!("{server}{hooks}{}", text.replace("shop-b.key", "isv-key")));
    };
    with(&format!(
        "{}[[route]]\nendpoint = \"shop\"\nhook = \"mine\"\n",
        endpoint("shop", "/spi", "alibaba", "account = \"shop\"")
    ));
    let daemon = home.start();
    assert!(!daemon.deliver(&create("ob-1")).is_success());
    daemon.wait_for_log("not done");
    daemon.stop();
    std::fs::write(home.path("open"), "").unwrap();
    with(text);
    let daemon = home.start();
    (home, daemon)
}

#[test]
fn an_open_order_goes_to_the_hook_of_its_endpoint_under_the_new_name() {
    let (home, daemon) = restarted_with_an_open_order(&format!(
        "{}[[route]]\nendpoint = \"shop-cn\"\nhook = \"mine\"\n",
        endpoint("shop-cn", "/spi", "alibaba", "account = \"shop\"")
    ));
    daemon.wait_for_log(": done job=");
    assert_eq!((home.path("right").exists(), home.path("wrong").exists()), (true, false));
}

#[test]
fn an_open_order_whose_route_cannot_be_decided_goes_to_no_hook() {
    let (home, daemon) = restarted_with_an_open_order(&format!(
        "{}{}[[route]]\nendpoint = \"shop-cn\"\nhook = \"mine\"\n",
        endpoint("shop-cn", "/spi", "alibaba", "account = \"shop\""),
        endpoint("shop-b", "/b", "alibaba", "account = \"shop\"")
    ));
    daemon.wait_for_log("not done: endpoint `shop` is not configured, and routes depend on it");
    assert_eq!((home.path("right").exists(), home.path("wrong").exists()), (false, false));
    // The line comes before the commit.
    until("it is queued", || (home.list(&["jobs", "list"])[0]["state"] == "queued").then_some(()));
}

// Printed defaults.

#[test]
fn the_default_configuration_is_printed_as_it_is() {
    let home = Home::empty();
    let ran = home.run(&["config", "default"]);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/default.toml");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.stdout, std::fs::read_to_string(file).unwrap());
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let home = Home::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = home.run(&["completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{shell}");
        assert!(ran.stdout.contains("check-config"), "{shell}");
    }
    assert_eq!(home.run(&["completions", "csh"]).code, 64);
    let page = home.run(&["man"]);
    assert_eq!(page.code, 0);
    assert!(page.stdout.contains(".TH spid 1") && page.stdout.contains("check\\-config"), "{}", page.stdout);
    assert_eq!(home.run(&["man", "--dir", "man"]).code, 0);
    for name in ["spid.1", "spid-serve.1", "spid-jobs-retry.1", "spid-config-default.1"] {
        assert!(home.path("man").join(name).exists(), "{name}");
    }
}

/// A named pipe. Opening it would wait for a writer.
fn pipe(path: &std::path::Path) {
    let _ = std::fs::remove_file(path);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
}

#[test]
fn a_named_pipe_in_a_file_s_place_is_a_mistake_and_no_wait() {
    let home = Home::with_log_hook();
    pipe(&home.path("pipe"));
    let usual = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let fifo = home.path("pipe").display().to_string();
    let key = home.path("isv-key").display().to_string();
    let in_server = |line: &str| usual.replace("[server]", &format!("[server]\n{line}"));
    let wrong = [
        ("a key", usual.replace(&key, &fifo)),
        ("a credential", usual.replace(&format!("file = \"{key}\""), "credential = \"pipe\"")),
        ("the admin token", in_server(&format!("admin_token = {{ file = \"{fifo}\" }}"))),
        ("a certificate", in_server(&format!("tls = {{ certificate = {{ file = \"{fifo}\" }}, key = {{ file = \"{key}\" }} }}"))),
        ("the sealing key", usual.replace("[store]", &format!("[store]\nsealing_key = \"{fifo}\""))),
        ("a listed sealing key", usual.replace("[store]", &format!("[store]\nsealing_keys = [{{ file = \"{fifo}\" }}]"))),
        ("a hook's secret", usual.replace("log = {}", &format!("http = {{ url = \"http://127.0.0.1:1/\", secret = {{ file = \"{fifo}\" }} }}"))),
        ("a hook's roots", usual.replace("log = {}", &format!("http = {{ url = \"https://127.0.0.1:1/\", secret = {{ env = \"FAKE\" }}, ca_file = \"{fifo}\" }}"))),
    ];
    for (what, text) in wrong {
        assert_ne!(text, usual, "{what}");
        home.configure(&text);
        let config = home.path("spid.toml").display().to_string();
        for command in ["check-config", "serve"] {
            let folder = home.path("").display().to_string();
            let ran = home.run_in(&[command, "--config", &config], &[("CREDENTIALS_DIRECTORY", &folder)]);
            assert_eq!(ran.code, 78, "{what}: {}", ran.stderr);
            assert!(
                ran.stderr.contains("must be a regular file, not a named pipe"),
                "{what}: {}",
                ran.stderr
            );
        }
    }
    let ran = home.run(&["serve", "--config", &fifo]);
    assert!(ran.code == 78 && ran.stderr.contains("not a named pipe"), "{ran:?}");
    home.configure(&usual);
    // In the folder of marks, a named pipe is not a mark.
    std::fs::create_dir(home.path("spid.db.running")).unwrap();
    pipe(&home.path("spid.db.running/4711-42"));
    let daemon = home.start();
    assert!(!home.path("spid.db.running/4711-42").exists());
    // A reload keeps the old configuration, and the next reload works.
    let text = std::fs::read(home.path("isv-key")).unwrap();
    pipe(&home.path("isv-key"));
    let kept = daemon.reload();
    assert!(kept.contains("reload: kept") && kept.contains("not a named pipe"), "{kept}");
    std::fs::remove_file(home.path("isv-key")).unwrap();
    std::fs::write(home.path("isv-key"), text).unwrap();
    assert!(daemon.reload().contains("reload: applied"));
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "ob-1");
}

/// An open descriptor from a shell is read, also if it is a pipe.
#[test]
fn a_key_of_a_command_may_come_through_a_pipe() {
    let home = Home::with_log_hook();
    let spid = env!("CARGO_BIN_EXE_spid");
    let line = format!("printf fake-key | {spid} sign --key-file /dev/stdin releaseInstance instanceId=1");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line]).current_dir(home.path(""));
    let output = daemon::output_of(shell);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
