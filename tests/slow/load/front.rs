//! Access: trusted proxies, peers that imitate one, allow-lists, and floods of forged requests beside a marketplace
//! that sells.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::support::daemon::{Answer, Daemon, Home, about, create, exchange, get_text};
use serde_json::Value;
use spid::internals::config::Config;

/// A daemon with an admin listener, and these lines in its tables.
fn bench(server: &str, endpoint: &str, rest: &str) -> (Home, Daemon, SocketAddr) {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    let text =
        text.replace("[server]", &format!("{rest}\n[server]\nadmin_listen = \"127.0.0.1:0\"\n{server}"));
    home.configure(&text.replace("[[endpoint]]", &format!("[[endpoint]]\n{endpoint}")));
    let daemon = home.start();
    let ready = daemon.wait_for_log("admin=");
    let (_, rest) = ready.split_once("admin=").unwrap();
    let admin = rest.split(' ').next().unwrap().parse().unwrap();
    (home, daemon, admin)
}

fn request(query: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    get_text("/spi", query).replace("\r\n\r\n", &format!("\r\n{fields}\r\n"))
}

fn ask(daemon: &Daemon, query: &str, fields: &[&str]) -> Answer {
    exchange(daemon.address, &request(query, fields)).unwrap()
}

/// A forged request of this client, behind our proxy.
fn forge(daemon: &Daemon, client: &str) -> Answer {
    let forged = format!("{}&token={}", create("ob-forged").encoded(), "0".repeat(32));
    ask(daemon, &forged, &[&format!("X-Forwarded-For: {client}")])
}

/// A purchase of this client, behind our proxy.
fn sell(daemon: &Daemon, client: &str, name: &str) -> Answer {
    ask(daemon, &create(name).signed(), &[&format!("X-Forwarded-For: {client}")])
}

fn refusals(admin: SocketAddr) -> Vec<Value> {
    let page = exchange(admin, "GET /v1/refusals HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap().json();
    page["refusals"].as_array().unwrap().clone()
}

fn counted(admin: SocketAddr, reason: &str) -> u64 {
    let page = exchange(admin, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap().body;
    let mark = format!("reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.split_once(&mark)).map_or(0, |(_, count)| count.parse().unwrap())
}

const TRUSTED: &str = "trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
const ALLOW: &str = "allow = [\"203.0.113.0/24\", \"2001:db8::/32\"]";

#[test]
fn an_endpoint_takes_calls_from_where_it_is_told_to() {
    let (home, daemon, admin) = bench(TRUSTED, ALLOW, "");
    assert_eq!(sell(&daemon, "203.0.113.7", "ob-1").id(), "ob-1");
    assert_eq!(sell(&daemon, "[2001:db8::7]:443", "ob-2").id(), "ob-2");
    assert_eq!(sell(&daemon, "198.51.100.1, 203.0.113.7, 10.0.0.3", "ob-3").id(), "ob-3");
    let stolen = create("ob-stolen").signed();
    let spoofs: [&[&str]; 8] = [
        &[],
        &["X-Forwarded-For: 198.51.100.1"],
        &["X-Forwarded-For: 203.0.113.7, 198.51.100.1"],
        &["X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 198.51.100.1"],
        &["X-Forwarded-For: 203.0.113.7, 198.51.100.1, 10.0.0.3"],
        &["X-Forwarded-For: 203.0.113.7, unknown"],
        &["Forwarded: for=203.0.113.7", "X-Forwarded-For: 198.51.100.1"],
        &["X-Real-IP: 203.0.113.7", "Forwarded: for=203.0.113.7"],
    ];
    for fields in spoofs {
        let answer = ask(&daemon, &stolen, fields);
        assert_eq!(answer.status, 403, "{fields:?}: {answer:?}");
        let without = ask(&daemon, &create("ob-stolen").encoded(), fields);
        assert_eq!(answer.body, without.body, "who may not call does not hear whether the key is right");
    }
    assert_eq!(counted(admin, "source"), 2 * spoofs.len() as u64);
    let kept = refusals(admin);
    for client in ["127.0.0.1", "198.51.100.1"] {
        assert!(kept.iter().any(|it| it["reason"] == "source" && it["client"] == client), "{kept:?}");
    }
    assert_eq!(home.list(&["callbacks", "list"]).len(), 3, "nothing of it was kept");
}

#[test]
fn without_a_trusted_proxy_no_header_is_believed() {
    let (home, daemon, admin) = bench("", ALLOW, "");
    for field in ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "X-Real-IP: 203.0.113.7"] {
        assert_eq!(ask(&daemon, &create("ob-1").signed(), &[field]).status, 403, "{field}");
    }
    assert_eq!(refusals(admin)[0]["client"], "127.0.0.1");
    assert_eq!(home.list(&["callbacks", "list"]), Vec::<Value>::new());
}

#[test]
fn the_other_header_is_read_where_the_proxy_writes_that_one() {
    let server = format!("{TRUSTED}\nproxy_header = \"forwarded\"");
    let (_home, daemon, _) = bench(&server, ALLOW, "");
    let signed = create("ob-1").signed();
    assert_eq!(ask(&daemon, &signed, &["X-Forwarded-For: 203.0.113.7"]).status, 403);
    assert_eq!(ask(&daemon, &signed, &["Forwarded: for=203.0.113.7, for=198.51.100.1"]).status, 403);
    assert_eq!(ask(&daemon, &signed, &["Forwarded: for=\"[2001:db8::1]:9\";proto=https"]).id(), "ob-1");
}

/// A sign-on comes from the browser of a buyer, with any address.
#[test]
fn a_buyer_signs_on_from_anywhere_and_nothing_else_comes_in_that_way() {
    let (home, daemon, admin) = bench(TRUSTED, ALLOW, "");
    let id = sell(&daemon, "203.0.113.7", "ob-1").id();
    let from_anywhere = ["X-Forwarded-For: 198.51.100.1"];
    let sign_on = about("verify", &id).with("timeStamp", "2026-01-01 00:00:00");
    let page = ask(&daemon, &sign_on.signed(), &from_anywhere);
    assert_eq!(counted(admin, "source"), 0, "{page:?}");
    let looked_at = home.list(&["callbacks", "list"]);
    assert!(looked_at.iter().any(|callback| callback["action"] == "sign-on"), "{looked_at:?}");
    let forged = ask(&daemon, &sign_on.encoded(), &from_anywhere);
    assert_eq!((forged.status, refusals(admin)[0]["reason"].as_str()), (403, Some("missing-signature")));
    // A request that is a sign-on in one place and another action in another place has no valid signature.
    let smuggled = format!("{}&action=verify", create("ob-2").signed());
    assert!(ask(&daemon, &smuggled, &from_anywhere).status >= 400);
    let release = about("releaseInstance", &id);
    let smuggled = format!("x=y&action=verify&{}", release.signed());
    assert!(ask(&daemon, &smuggled, &from_anywhere).status >= 400);
    assert_eq!(home.state(&id), "active");
}

#[test]
fn a_flood_of_forged_requests_is_denied_and_the_marketplace_sells_on() {
    let (home, daemon, admin) = bench(TRUSTED, "", "");
    assert_eq!(sell(&daemon, "203.0.113.7", "ob-before").id(), "ob-before");
    for number in 0..1_000 {
        assert_eq!(forge(&daemon, &format!("198.51.100.{}", number % 4)).status, 403);
        if number % 100 == 0 {
            let name = format!("ob-{number}");
            assert_eq!(sell(&daemon, "203.0.113.7", &name).id(), name);
        }
    }
    assert_eq!(counted(admin, "wrong-signature"), 1_000);
    // Not even the address of the flood is denied with a valid signature.
    assert_eq!(sell(&daemon, "198.51.100.1", "ob-after").id(), "ob-after");
    assert_eq!(home.list(&["callbacks", "list"]).len(), 12);
}

#[test]
fn a_reload_changes_who_may_call() {
    let (home, daemon, _) = bench(TRUSTED, ALLOW, "");
    assert_eq!(sell(&daemon, "203.0.113.7", "ob-1").id(), "ob-1");
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replace(ALLOW, "allow = [\"203.0.113.9\", \"198.51.100.0/24\"]"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_for_log("reload: applied");
    assert_eq!(sell(&daemon, "203.0.113.7", "ob-2").status, 403);
    assert_eq!(sell(&daemon, "198.51.100.1", "ob-3").id(), "ob-3");
}

/// Keys of the errors of a configuration with these lines.
fn mistakes(server: &str, endpoint: &str, rest: &str) -> Vec<(String, String)> {
    let text = format!(
        "{rest}\n[server]\n{server}\n[[endpoint]]\nname = \"e\"\npath = \"/spi\"\ndialect = \"alibaba\"\n\
         keys = [{{ env = \"KEY\" }}]\n{endpoint}\n[[hook]]\nname = \"h\"\nlog = {{}}\n"
    );
    let environment = HashMap::from([("KEY".to_owned(), "fake-key".to_owned())]);
    let Err(mistakes) = Config::parse(&text, "test", &environment, &[], None) else { return Vec::new() };
    mistakes.mistakes.into_iter().map(|it| (it.key, it.text)).collect()
}

#[test]
fn a_mistake_about_callers_names_its_key() {
    assert_eq!(mistakes(TRUSTED, ALLOW, ""), []);
    for (server, endpoint, rest, key, part) in [
        (
            "trusted_proxies = [\"10.0.0.0/8\", \"10.0.0.1/8\"]",
            "",
            "",
            "server.trusted_proxies",
            "`10.0.0.0/8`",
        ),
        ("trusted_proxies = [\"0.0.0.0/0\"]", "", "", "server.trusted_proxies", "every address"),
        ("trusted_proxies = [\"::/0\"]", "", "", "server.trusted_proxies", "every address"),
        ("", "allow = []", "", "endpoint[0].allow", "every call is denied"),
        ("", "allow = [\"marketplace.example\"]", "", "endpoint[0].allow", "not a network"),
        ("tls = { certificate = { file = \"/no\" }, key = { file = \"/no\" } }", "", "", "server.tls", "/no"),
        ("tls = { certificate = { file = \"/no\" }, key = {} }", "", "", "server.tls", "the key is missing"),
        (
            "tls = { certificate = { credential = \"c\" }, key = { file = \"/no\" } }",
            "",
            "",
            "server.tls.certificate.credential",
            "LoadCredential=",
        ),
    ] {
        let found = mistakes(server, endpoint, rest);
        assert_eq!(found.len(), 1, "{server}{endpoint}{rest}: {found:?}");
        assert!(found[0].0 == key && found[0].1.contains(part), "{found:?}");
    }
}
