//! The admin listener from outside: access, metrics, pages, and operations by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::admin::{admin_of, ask, ask_with, post, with_admin};
use crate::support::daemon::{
    self, Answer, Daemon, Home, PASSWORD, about, assert_clean, create, renew, until, upgrade,
};
use crate::support::machine::lacks;
use rusqlite::Connection;
use serde_json::{Value, json};

const TOKEN: &str = "fake-canary-admin-token-3K";

/// Fails, refuses or waits if a file named after the action says so. Otherwise it succeeds.
const TOLD: &str = r#"
[ -e "fail-$SPID_ACTION" ] && exit 75
[ -e "pend-$SPID_ACTION" ] && { printf '{"pending":"waits for sales"}'; exit 0; }
case "$SPID_ACTION" in
create) printf '{"app":{"password":"%s"}}' "$(cat password)" ;;
*) printf '{}' ;;
esac
"#;

fn home() -> Home {
    let home = Home::configured(TOLD, "60s", 16);
    std::fs::write(home.path("password"), PASSWORD).unwrap();
    home
}

fn started(home: &Home) -> (Daemon, SocketAddr) {
    with_admin(home, "");
    let daemon = home.start();
    let admin = admin_of(&daemon);
    (daemon, admin)
}

/// Every kind of waiting item of the lifecycle: a dead job, a pending one, two held callbacks.
fn in_trouble(home: &Home, daemon: &Daemon) {
    for name in ["biz-1", "biz-2", "biz-3"] {
        assert_eq!(daemon.deliver(&create(name)).id(), name);
    }
    std::fs::write(home.path("fail-upgrade"), "").unwrap();
    assert!(!daemon.deliver(&upgrade("biz-1", "gold")).success());
    until("the job has failed", || {
        let db = Connection::open(home.path("spid.db")).unwrap();
        db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        let sql = "UPDATE job SET state = 4, step = 9, extra = 0 WHERE state = 0 AND attempts > 0";
        (db.execute(sql, []).unwrap() > 0).then_some(())
    });
    std::fs::remove_file(home.path("fail-upgrade")).unwrap();
    std::fs::write(home.path("pend-renew"), "").unwrap();
    assert!(!daemon.deliver(&renew("biz-2", "2031-01-01 00:00:00")).success());
    std::fs::remove_file(home.path("pend-renew")).unwrap();
    assert_eq!(daemon.deliver(&create("biz-3").with("orderId", "another").with("skuId", "gold")).id(), "0");
    assert!(!daemon.deliver(&about("bindDomain", "biz-3")).success());
}

fn act(admin: SocketAddr, path: &str, more: &Value) -> Answer {
    let mut body = json!({"who": "ops", "why": "a test"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    post(admin, path, "application/json", "", &body.to_string())
}

// Access.

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let home = home();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let serve = |server: &str| {
        home.configure(&text.replace("[server]", &format!("[server]\n{server}")));
        let config = home.path("spid.toml").display().to_string();
        home.run(&["check-config", "--config", &config])
    };
    std::fs::write(home.path("admin-token"), TOKEN).unwrap();
    std::fs::write(home.path("short"), "fake").unwrap();
    let file = |name: &str| format!("admin_token = {{ file = \"{}\" }}", home.path(name).display());
    let everywhere = "admin_listen = \"0.0.0.0:0\"\n";
    for (server, said) in [
        (everywhere.to_owned(), "not a loopback address"),
        (format!("{everywhere}{}", file("short")), "fewer than 16 bytes"),
        (format!("{everywhere}{}", file("nowhere")), "nowhere"),
        (format!("{everywhere}admin_token = {{}}"), "exactly one of"),
    ] {
        let ran = serve(&server);
        assert_eq!(ran.code, 78, "{server}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{server}: {}", ran.stderr);
    }
    assert_eq!(serve(&format!("{everywhere}{}", file("admin-token"))).code, 0);
}

#[test]
fn without_the_token_there_are_two_status_codes() {
    let home = home();
    std::fs::write(home.path("admin-token"), format!("{TOKEN}\n")).unwrap();
    let token = home.path("admin-token").display().to_string();
    with_admin(&home, &format!("admin_token = {{ file = \"{token}\" }}"));
    let daemon = home.start();
    let admin = admin_of(&daemon);
    assert_eq!((ask(admin, "/livez").status, ask(admin, "/readyz").status), (200, 200));
    assert_eq!(ask(admin, "/readyz").body, "ready\n");
    let behind = ["/", "/metrics", "/v1/instances", "/v1/refusals", "/console/", "/console/style.css", "/x"];
    for target in behind {
        assert_eq!(ask(admin, target).status, 401, "{target}");
        assert_eq!(ask_with(admin, target, "authorization: Bearer fake\r\n").status, 401, "{target}");
    }
    let refused = act(admin, "/v1/instances/biz-1/release", &json!({}));
    assert_eq!(refused.status, 401);
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    for target in behind.iter().take(6) {
        assert!(ask_with(admin, target, &bearer).status < 400, "{target}");
    }
    let ready = ask_with(admin, "/readyz", &bearer).json();
    assert_eq!((&ready["ready"], &ready["store"]["writable"]), (&json!(true), &json!(true)));
    assert!(ready["disk"]["free_bytes"].as_u64().unwrap() > 0 && ready["backlog"]["dead"] == 0, "{ready}");
    let log = daemon.stop();
    assert_clean("the log", log.as_bytes(), &[TOKEN]);
}

// Metrics.

fn promtool(arguments: &[&str], input: &str) -> String {
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy");
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(deploy)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn the_metrics_page_is_what_prometheus_expects() {
    if lacks("promtool", "prometheus") {
        return;
    }
    let home = home();
    let (daemon, admin) = started(&home);
    assert_eq!(
        promtool(&["check", "metrics"], &ask(admin, "/metrics").body),
        "",
        "of a daemon that just began"
    );
    in_trouble(&home, &daemon);
    daemon.get(&create("biz-9").encoded());
    assert_eq!(promtool(&["check", "metrics"], &ask(admin, "/metrics").body), "");
}

#[test]
fn the_rules_are_sound_and_fire() {
    if lacks("promtool", "prometheus") {
        return;
    }
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "spid.rules.yml"], "");
    promtool(&["test", "rules", "spid.rules.test.yml"], "");
}

#[test]
fn every_row_is_there_before_anything_happens() {
    let home = home();
    let (daemon, admin) = started(&home);
    let page = ask(admin, "/metrics").body;
    for row in [
        "spid_callbacks_total{action=\"create\",outcome=\"applied\"} 0\n",
        "spid_denied_total{endpoint=\"alibaba-cn\",reason=\"wrong-signature\"} 0\n",
        "spid_denied_total{endpoint=\"alibaba-cn\",reason=\"duplicate-parameter\"} 0\n",
        "spid_denied_total{endpoint=\"alibaba-cn\",reason=\"source\"} 0\n",
        "spid_http_errors_total{reason=\"body_late\"} 0\n",
        "spid_http_errors_total{reason=\"tls_failed\"} 0\n",
        "spid_http_errors_total{reason=\"tls_late\"} 0\n",
        "spid_attempts_total{action=\"renew\",ending=\"retry\"} 0\n",
        "spid_alerts_total{reason=\"dead\"} 0\n",
        "spid_alerts_total{reason=\"budget\"} 0\n",
        "spid_store_faults_total{operation=\"finish\"} 0\n",
        "spid_hook_duration_seconds_count{hook=\"provision\"} 0\n",
        "spid_instances{state=\"released\"} 0\n",
        "spid_jobs{state=\"dead\"} 0\n",
        "spid_held_callbacks 0\n",
        "spid_unreported_results 0\n",
        "spid_deliveries_used_ratio_max 0\n",
        "spid_oldest_job_age_seconds 0\n",
        "spid_ready 1\n",
    ] {
        assert!(page.contains(row), "{row}{page}");
    }
    in_trouble(&home, &daemon);
    for _ in 0..3 {
        assert_eq!(daemon.deliver(&create("biz-1")).id(), "biz-1");
    }
    let page = ask(admin, "/metrics").body;
    for row in [
        "spid_repeats_total{action=\"create\"} 3\n",
        "spid_repeats_total{action=\"upgrade\"} 0\n",
        "spid_callbacks_total{action=\"create\",outcome=\"applied\"} 6\n",
        "spid_instances{state=\"active\"} 3\n",
        "spid_jobs{state=\"dead\"} 1\n",
        "spid_jobs{state=\"pending\"} 1\n",
        "spid_held_callbacks 2\n",
        "spid_deliveries_used_max 1\n",
        "spid_hook_duration_seconds_count{hook=\"provision\"} 5\n",
    ] {
        assert!(page.contains(row), "{row}{page}");
    }
    let value = |name: &str| -> f64 {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
        row.parse().unwrap()
    };
    assert!(value("spid_database_bytes") > 0.0 && value("spid_disk_free_bytes") > 0.0);
    assert!(value("spid_commit_operations_sum") >= value("spid_commit_operations_count"));
    assert!(value("process_start_time_seconds") > 1.7e9);
}

/// Metric names in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with("spid_") || word.starts_with("process_");
    words.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn dashboard_rules_and_documents_name_metrics_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let mut known: BTreeSet<String> = spid::internals::observe::metrics::names().collect();
    let dashboard: Value = serde_json::from_str(&read("examples/deploy/grafana.json")).unwrap();
    let shown = named(&dashboard.to_string());
    for (name, used) in [
        ("the dashboard", shown.clone()),
        ("the rules", named(&read("examples/deploy/spid.rules.yml"))),
        ("their test", named(&read("examples/deploy/spid.rules.test.yml"))),
    ] {
        let strange: Vec<&String> = used.difference(&known).collect();
        assert!(strange.is_empty(), "{name}: {strange:?}");
        assert!(used.len() > 3, "{name}: {used:?}");
    }
    let missing: Vec<&String> = known.difference(&shown).collect();
    assert!(missing.is_empty(), "the dashboard does not show {missing:?}");
    // The text names a histogram once, without the suffixes of its parts.
    known.extend(["spid_hook_duration_seconds", "spid_commit_operations"].map(str::to_owned));
    let told = named(&read("docs/operating.md"));
    let strange: Vec<&String> = told.difference(&known).collect();
    assert!(strange.is_empty(), "docs/operating.md: {strange:?}");
}

#[test]
fn every_alert_is_explained() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join("examples/deploy/spid.rules.yml")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/operating.md")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(document.contains(&format!("`{alert}`")), "docs/operating.md does not explain {alert}");
    }
}

// Pages.

#[test]
fn the_objects_are_those_of_the_command_line() {
    let home = home();
    let (daemon, admin) = started(&home);
    in_trouble(&home, &daemon);
    let list = |what: &str| ask(admin, &format!("/v1/{what}")).json();
    assert_eq!(list("instances")["instances"], json!(home.list(&["instances", "list"])));
    assert_eq!(list("jobs")["jobs"], json!(home.list(&["jobs", "list"])));
    assert_eq!(list("jobs?state=dead")["jobs"], json!(home.list(&["jobs", "list", "--state", "dead"])));
    assert_eq!(list("callbacks")["callbacks"], json!(home.list(&["callbacks", "list"])));
    assert_eq!(list("held")["held"], json!(home.list(&["held", "list"])));
    assert_eq!(list("acts")["acts"], json!(home.list(&["acts"])));
    assert_eq!(list("instances/biz-1"), home.json(&["instances", "show", "biz-1"]));
    assert_eq!(list("callbacks/1"), home.json(&["callbacks", "show", "1"]));
    let job = home.list(&["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(list(&format!("jobs/{job}")), home.json(&["jobs", "show", &job]));
}

#[test]
fn a_list_is_searched_and_read_page_by_page() {
    let home = home();
    let (daemon, admin) = started(&home);
    for number in 1..=7 {
        daemon.deliver(&create(&format!("biz_{number}")));
    }
    daemon.deliver(&create("other%1").with("aliUid", "Someone"));
    let page = |query: &str| ask(admin, &format!("/v1/instances?{query}")).json();
    let ids = |page: &Value| -> Vec<String> {
        let rows = page["instances"].as_array().unwrap().iter();
        rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = page("limit=3&search=BIZ_");
    assert_eq!(ids(&first), ["biz_7", "biz_6", "biz_5"]);
    let second = page(&format!("limit=3&search=biz_&before={}", first["next"]));
    assert_eq!(ids(&second), ["biz_4", "biz_3", "biz_2"]);
    let third = page(&format!("limit=3&search=biz_&before={}", second["next"]));
    assert_eq!((ids(&third), &third["next"]), (vec!["biz_1".to_owned()], &Value::Null));
    assert_eq!(ids(&page("search=%25")), ["other%1"], "a search is text and no pattern");
    assert_eq!(ids(&page("search=someone")), ["other%1"]);
    assert_eq!(ids(&page("search=biz_3&state=active&account=alibaba-cn")), ["biz_3"]);
    assert!(ids(&page("search=biz_3&state=frozen")).is_empty());
    for wrong in ["state=tired", "limit=0", "before=x", "serach=x", "search=%ff"] {
        let answer = ask(admin, &format!("/v1/instances?{wrong}"));
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.json()["error"].is_string());
    }
    for nowhere in ["instances/nobody", "jobs/1", "callbacks/4711", "nothing", "instances/a/b/c"] {
        assert_eq!(ask(admin, &format!("/v1/{nowhere}")).status, 404, "{nowhere}");
    }
}

// Operations.

#[test]
fn an_act_does_what_the_command_does_and_is_kept() {
    let home = home();
    let (daemon, admin) = started(&home);
    in_trouble(&home, &daemon);
    let held = |kind: &str| -> Vec<Value> {
        let mut rows = home.list(&["held", "list"]);
        rows.retain(|row| row["kind"] == kind);
        rows
    };
    let dead = held("dead-job")[0]["job"].as_str().unwrap().to_owned();
    let retried = act(admin, &format!("/v1/jobs/{dead}/retry"), &json!({}));
    assert_eq!((retried.status, &retried.json()["message"]), (200, &json!(format!("job {dead} is due now"))));
    until("the upgrade is done", || {
        (home.json(&["instances", "show", "biz-1"])["sku"] == "gold").then_some(())
    });
    let again = act(admin, &format!("/v1/jobs/{dead}/retry"), &json!({}));
    assert_eq!(again.status, 409, "{again:?}");
    assert!(again.json()["error"].as_str().unwrap().contains("the job is done"));

    let completed =
        act(admin, "/v1/instances/biz-2/complete", &json!({"answer": {}, "account": "alibaba-cn"}));
    assert_eq!(completed.status, 200, "{completed:?}");
    assert_eq!(home.json(&["instances", "show", "biz-2"])["expires_on"], "2030-12-31T16:00:00Z");

    let numbers: Vec<i64> =
        held("held-callback").iter().map(|row| row["callback"].as_i64().unwrap()).collect();
    let [unknown, conflict] = numbers.as_slice() else { panic!("{numbers:?}") };
    assert_eq!(act(admin, &format!("/v1/held/{conflict}/approve"), &json!({})).status, 409);
    let approved = act(admin, &format!("/v1/held/{conflict}/approve"), &json!({"as": "upgrade"}));
    assert_eq!(approved.status, 200, "{approved:?}");
    until("the upgrade is done", || {
        (home.json(&["instances", "show", "biz-3"])["sku"] == "gold").then_some(())
    });
    assert_eq!(act(admin, &format!("/v1/held/{unknown}/reject"), &json!({})).status, 200);
    assert_eq!(act(admin, "/v1/instances/biz-3/release", &json!({})).status, 200);
    until("it is released", || (home.state("biz-3") == "released").then_some(()));

    let acts = home.list(&["acts"]);
    let words: Vec<&str> = acts.iter().rev().map(|act| act["act"].as_str().unwrap()).collect();
    assert_eq!(words, ["retry", "complete", "approve", "reject", "release"]);
    assert!(acts.iter().all(|act| act["who"] == "ops" && act["why"] == "a test"));
    assert!(daemon.log().contains("done by hand"));
}

#[test]
fn an_act_that_is_not_meant_does_nothing() {
    let home = home();
    let (daemon, admin) = started(&home);
    daemon.deliver(&create("biz-1"));
    let body = json!({"who": "ops", "why": "a test"}).to_string();
    let path = "/v1/instances/biz-1/release";
    let send = |kind: &str, headers: &str, body: &str| post(admin, path, kind, headers, body).status;
    assert_eq!(send("application/json", "origin: http://evil.example\r\n", &body), 403);
    assert_eq!(send("application/json", "sec-fetch-site: cross-site\r\n", &body), 403);
    assert_eq!(send("text/plain", "", &body), 415, "a page of another site may send that unasked");
    for wrong in [
        json!({"who": "ops"}),
        json!({"why": "a test"}),
        json!({"who": " ", "why": "a test"}),
        json!({"who": "ops", "why": ""}),
        json!({"who": "ops", "why": "x".repeat(5_000)}),
        json!({"who": "ops", "why": "a test", "wyh": "?"}),
        json!({"who": "ops", "why": "a test", "as": "renew"}),
        json!([]),
    ] {
        assert_eq!(send("application/json", "", &wrong.to_string()), 400, "{wrong}");
    }
    let rebound = format!(
        "POST {path} HTTP/1.1\r\nhost: rebound.example\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(daemon::exchange(admin, &rebound).unwrap().status, 403);
    let form = format!("act=release&target=biz-1&who=ops&why=x&token={}", "0".repeat(72));
    let form = post(admin, "/console/act", "application/x-www-form-urlencoded", "", &form);
    assert_eq!(form.status, 403, "a form that is not ours");
    let delete = format!("DELETE {path} HTTP/1.1\r\nhost: {admin}\r\n\r\n");
    assert_eq!(daemon::exchange(admin, &delete).unwrap().status, 405);
    assert_eq!((home.state("biz-1"), home.list(&["acts"])), ("active".to_owned(), Vec::new()));
}

#[test]
fn a_form_is_taken_from_a_page_of_ours_alone() {
    let home = home();
    let (daemon, admin) = started(&home);
    in_trouble(&home, &daemon);
    let page = ask(admin, "/console/work").body;
    let field = |name: &str| -> String {
        let (_, rest) = page.split_once(&format!("name=\"{name}\" value=\"")).unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let job = home.list(&["jobs", "list", "--state", "dead"])[0]["id"].as_str().unwrap().to_owned();
    let form = |token: &str, why: &str| {
        format!("token={token}&act=drop&target={job}&back=//evil.example&who=ops&why={why}")
    };
    let send = |headers: &str, form: &str| {
        post(admin, "/console/act", "application/x-www-form-urlencoded", headers, form).status
    };
    let token = field("token");
    assert_eq!(send("", &form(&"0".repeat(token.len()), "test")), 403);
    assert_eq!(send("origin: http://evil.example\r\n", &form(&token, "test")), 403);
    assert_eq!(send("sec-fetch-site: same-site\r\n", &form(&token, "test")), 403);
    assert_eq!(send("", &form(&token, "+")), 400, "no reason");
    assert_eq!(send("", &format!("{}&act=retry", form(&token, "test"))), 400, "two acts");
    assert_eq!(home.list(&["acts"]), Vec::<Value>::new());
    let ours = format!("origin: http://{admin}\r\nsec-fetch-site: same-origin\r\n");
    assert_eq!(send(&ours, &form(&token, "test")), 303);
    assert_eq!(send(&ours, &form(&token, "test")), 409, "once");
    assert_eq!(home.list(&["acts"])[0]["act"], "drop");
}

#[test]
fn a_browser_shows_the_token_as_a_password_and_its_name_is_who_acts() {
    let home = home();
    std::fs::write(home.path("admin-token"), TOKEN).unwrap();
    let token = home.path("admin-token").display().to_string();
    with_admin(&home, &format!("admin_token = {{ file = \"{token}\" }}"));
    let daemon = home.start();
    in_trouble(&home, &daemon);
    let admin = admin_of(&daemon);
    let basic = |name: &str, token: &str| {
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{token}"));
        ask_with(admin, "/console/work", &format!("authorization: Basic {pair}\r\n"))
    };
    assert_eq!(basic("mei", "fake").status, 401);
    let page = basic("m\"><b>ei", TOKEN);
    assert_eq!(page.status, 200);
    assert!(page.body.contains("name=\"who\" value=\"m&quot;&gt;&lt;b&gt;ei\""), "{}", page.body);
    assert_clean("the page", page.body.as_bytes(), &[TOKEN]);
}

#[test]
fn no_secret_is_shown() {
    let home = home();
    let (daemon, admin) = started(&home);
    in_trouble(&home, &daemon);
    let job = home.list(&["jobs", "list"]).pop().unwrap()["id"].as_str().unwrap().to_owned();
    let pages = [
        "/metrics",
        "/readyz",
        "/v1/instances",
        "/v1/instances/biz-1",
        "/v1/jobs",
        &format!("/v1/jobs/{job}"),
        "/v1/callbacks",
        "/v1/callbacks/1",
        "/v1/held",
        "/v1/acts",
        "/v1/refusals",
        "/console/",
        "/console/instances/biz-1",
        "/console/work",
        "/console/refusals",
    ];
    daemon.get(&create("biz-1").with("aliUid", "other").encoded());
    for page in pages {
        let answer = ask(admin, page);
        assert_eq!(answer.status, 200, "{page}");
        assert_clean(page, answer.body.as_bytes(), &[PASSWORD, daemon::KEY]);
    }
}
