//! Input from other programs and people: numbers keep their digits, ids and keys have no invisible characters, tokens
//! are never shown.
#![expect(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use crate::support::admin::{admin_of, ask, ask_with, post, with_admin};
use crate::support::daemon::{Home, KEY, create, exchange, get_text, renew};

// Numbers.

#[test]
fn ids_that_a_hook_writes_as_numbers_keep_their_digits() {
    let home = Home::with_hook(
        r#"case "$call" in
*biz-1*) printf '{"instance_id": 202611300000000000000001, "info": {"price": 1.50}}' ;;
*) printf '{"instance_id": 202611300000000000000002}' ;;
esac"#,
    );
    let daemon = home.start();
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "202611300000000000000001");
    assert_eq!(daemon.deliver(&create("biz-2")).id(), "202611300000000000000002");
    let first = home.json(&["instances", "show", "202611300000000000000001"]);
    assert_eq!(first["order_biz_id"], "biz-1");
    assert!(home.look(&["instances", "show", "biz-1", "--json"]).contains("1.50"));
}

#[test]
fn answers_given_by_hand_keep_their_digits() {
    let home = Home::with_hook(r#"printf '{"pending": "by hand"}'"#);
    with_admin(&home, "");
    let daemon = home.start();
    let admin = admin_of(&daemon);
    for name in ["biz-1", "biz-2"] {
        assert!(!daemon.deliver(&create(name)).is_success());
    }
    let body = r#"{"who": "w", "why": "y", "answer": {"instance_id": 202611300000000000000001}}"#;
    let said = post(admin, "/v1/instances/biz-1/complete", "application/json", "", body);
    assert_eq!(said.status, 200, "{said:?}");
    std::fs::write(home.path("answer"), r#"{"instance_id": 202611300000000000000002}"#).unwrap();
    let answer = home.path("answer").display().to_string();
    home.look(&["instances", "complete", "biz-2", "--who", "w", "--why", "y", "--answer", &answer]);
    assert_eq!(daemon.deliver(&create("biz-1")).id(), "202611300000000000000001");
    assert_eq!(daemon.deliver(&create("biz-2")).id(), "202611300000000000000002");
}

// Tokens.

#[test]
fn a_genuine_token_under_another_name_is_shown_nowhere() {
    let home = Home::with_log_hook();
    with_admin(&home, "");
    let daemon = home.start();
    let admin = admin_of(&daemon);
    let request = create("biz-1");
    let token = request.token();
    let pairs = request.encoded();
    let twisted = [
        format!("{pairs}&amp;token={token}"),
        format!("{pairs}&Token={token}"),
        format!("{pairs}&%2574oken={token}"),
        format!("{pairs}&remark={token}"),
        format!("{pairs}&{token}=x"),
        format!("{pairs}&{token}=1&{token}=2"),
        format!("{pairs}&x{token}={token}&token={token}"),
        format!("{pairs}&token={token}&token={token}"),
        format!("{pairs}&token={token}{token}"),
        format!("{pairs}&a=%{token}"),
    ];
    let mut shown = String::new();
    for query in &twisted {
        let answer = daemon.get(query);
        assert!(answer.status >= 400, "{answer:?}");
        shown.push_str(&answer.body);
        let url = format!("http://127.0.0.1/spi?{query}");
        for json in [&[][..], &["--json"]] {
            let ran = home.run(&[&["verify", "--key-file", "isv-key", &url], json].concat());
            shown.push_str(&(ran.stdout + &ran.stderr));
        }
    }
    // A token that was appended to the path.
    let path = get_text(&format!("/spi/{token}"), "a=1");
    shown.push_str(&exchange(daemon.address, &path).unwrap().body);
    shown.push_str(&ask(admin, "/v1/refusals").body);
    shown.push_str(&ask(admin, "/console/refusals").body);
    shown.push_str(&daemon.log());
    assert!(shown.contains("wrong-signature") && shown.contains("biz-1"), "{shown}");
    assert!(!shown.to_lowercase().contains(&token), "{shown}");
    assert!(!shown.contains(KEY));
    assert!(daemon.deliver(&request).is_success(), "the token was a genuine one");
}

// Printed answers.

/// Tokens of the requests to the receivers.
static TOKENS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A receiver with one answer for every request, as long as the test runs. `TOKEN` stands for the token of the
/// request.
fn receiver(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 16 * 1024];
            let _ = stream.read(&mut request);
            let request = String::from_utf8_lossy(&request);
            let token = request.split_once("token=").map_or("", |(_, rest)| rest.get(..32).unwrap_or(""));
            TOKENS.lock().unwrap().push(token.to_owned());
            let body = body.replace("TOKEN", token);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close";
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn a_replay_shows_neither_secrets_nor_control_characters_of_an_answer() {
    let home = Home::with_log_hook();
    std::fs::write(
        home.path("f.toml"),
        "version = 1\ntitle = \"t\"\ndialect = \"alibaba\"\nsource = \"s\"\n[[step]]\nname = \"buy\"\n\
         action = \"createInstance\"\nparams = { orderBizId = \"b\" }\n\
         expect = { json = { instanceId = \"i\" }, body_contains = \"nowhere\", status = 201 }\n",
    )
    .unwrap();
    for body in [
        "Warning: line 7\n{\"instanceId\":\"i-1\",\"appInfo\":{\"password\":\"fake-canary\"}}\u{1b}]0;gotcha\u{7}",
        "{\"instanceId\":\"\u{1b}[2Ji-\u{202e}1\",\"message\":\"\u{9b}31m\",\"password\":\"fake-canary\"",
        "{\"instanceId\":\"i-1\",\"message\":\"tok:TOKEN\",\"TOKEN\":1,\"trace\":[\"TOKEN\"]}",
        "{\"instanceId\":\"TOKEN\"}",
        "{\"instanceId\":\"i-1\",\"a\":\"https://root:fake-canary@x/\",\"b\":\"https://x/?pw=fake-canary\"}",
        "{\"instanceId\":\"i-\u{202e}1\",\"note\":\"{\\\"pwd\\\":\\\"fake-canary\\\"}\"}",
    ] {
        let to = format!("http://{}/spi", receiver(body));
        let usual = ["replay", "f.toml", "--to", &to, "--key-file", "isv-key"];
        for more in [&["--junit", "j.xml"][..], &["--json"]] {
            let ran = home.run(&[&usual[..], more].concat());
            assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
            let junit = std::fs::read_to_string(home.path("j.xml")).unwrap();
            for shown in [ran.stdout, ran.stderr, junit] {
                assert!(!shown.contains("fake-canary"), "{shown}");
                for token in TOKENS.lock().unwrap().iter().filter(|token| !token.is_empty()) {
                    assert!(!shown.contains(token), "{shown}");
                }
                assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{shown:?}");
            }
        }
    }
}

// The admin token.

#[test]
fn an_error_about_a_url_does_not_repeat_its_password() {
    let home = Home::with_log_hook();
    let url = "http://seller:fake-password@127.0.0.1:1/spi";
    let commands: [&[&str]; 4] = [
        &["replay", "--dev", "--to", url, "fixture.toml"],
        &["conformance", "--dev", "--to", url],
        &["simulate", "--dev", "--to", url],
        &["callbacks", "resend", "1", "--dev", "--to", url],
    ];
    for command in commands {
        let ran = home.run(command);
        assert_eq!(ran.code, 64, "{}", ran.stderr);
        assert!(ran.stderr.contains("http://***@127.0.0.1:1/spi"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("fake-password"), "{}", ran.stderr);
    }
}

#[test]
fn a_revoked_admin_token_is_refused_after_a_reload_and_wrong_ones_lock_nobody_out() {
    let home = Home::with_log_hook();
    let (old, new) = ("fake-canary-admin-token-old", "fake-canary-admin-token-new");
    std::fs::write(home.path("admin-token"), old).unwrap();
    with_admin(&home, &format!("admin_token = {{ file = \"{}\" }}", home.path("admin-token").display()));
    let daemon = home.start();
    let admin = admin_of(&daemon);
    let status =
        |token: &str| ask_with(admin, "/v1/jobs", &format!("authorization: Bearer {token}\r\n")).status;
    assert_eq!((status(old), status(new)), (200, 401));
    std::fs::write(home.path("admin-token"), new).unwrap();
    daemon.reload();
    assert_eq!((status(old), status(new)), (401, 200));
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| assert!([401, 429].contains(&status("fake-canary-guess"))));
            assert_eq!(status(new), 200, "the right token is let in whoever else asks");
        }
    });
    let metrics = ask_with(admin, "/metrics", &format!("authorization: Bearer {new}\r\n")).body;
    assert!(metrics.contains("spid_http_errors_total{reason=\"wrong-admin-token\"} 32"), "{metrics}");
    let log = daemon.log();
    assert!(log.contains("a wrong token was shown to the admin listener"), "{log}");
    assert!(log.matches("a wrong token was shown").count() < 32 && !log.contains("fake-canary"), "{log}");
}

// Keys.

/// Invisible characters, each with its number and its position in the key.
const UNSEEN: [(&str, &str); 4] = [
    ("\u{feff}fake-canary-0123456789", "character 1 of 23 is U+FEFF"),
    ("fake-canary-0123456789\u{200b}", "character 23 of 23 is U+200B"),
    ("fake-canary\u{a0}0123456789", "character 12 of 22 is U+00A0"),
    ("fake-canary-0123456789 ", "character 23 of 23 is a space"),
];

#[test]
fn a_key_with_a_character_that_nobody_sees_is_refused_wherever_it_is_read() {
    let home = Home::empty();
    let config = r#"
[server]
admin_listen = "127.0.0.1:0"
admin_token = { file = "odd" }
[store]
path = "spid.db"
sealing_key = "odd"
[[endpoint]]
name = "a"
path = "/a"
dialect = "alibaba"
keys = [{ file = "odd" }, { env = "ODD" }, { credential = "odd" }]
[[endpoint]]
name = "b"
path = "/b"
dialect = "koogallery"
keys = [{ file = "isv-key" }]
orders = { access_key = "FAKE", secret_key = { file = "odd" } }
[[hook]]
name = "call"
http = { url = "http://127.0.0.1:1/", secret = { file = "odd" } }
"#;
    home.configure(config);
    let permits = [
        "`server.admin_token.file`",
        "`store.sealing_key`",
        "`endpoint[0].keys[0].file`",
        "`endpoint[0].keys[1].env`",
        "`endpoint[0].keys[2].credential`",
        "`endpoint[1].orders.secret_key.file`",
        "`hook[0].http.secret.file`",
    ];
    for (odd, said) in UNSEEN {
        std::fs::write(home.path("odd"), format!("{odd}\n")).unwrap();
        let folder = home.path("").display().to_string();
        let variables = [("ODD", odd), ("CREDENTIALS_DIRECTORY", folder.as_str())];
        let checked = home.run_in(&["check-config", "--config", "spid.toml"], &variables);
        assert_eq!(checked.code, 78, "{}", checked.stderr);
        for place in permits {
            let line = checked.stderr.lines().find(|line| line.contains(place));
            let line = line.unwrap_or_else(|| panic!("{place}\n{}", checked.stderr));
            // White space around a sealing key is always trimmed.
            assert!(line.contains(said) || place.contains("sealing") && odd.ends_with(' '), "{said}: {line}");
        }
        let verify = |from: [&str; 2]| home.run_in(&["verify", from[0], from[1], "a=b&token=c"], &variables);
        for ran in [verify(["--key-file", "odd"]), verify(["--key-env", "ODD"])] {
            assert!(ran.code == 78 && ran.stderr.contains(said), "{}", ran.stderr);
            assert!(!ran.stderr.contains("canary"), "{}", ran.stderr);
        }
        assert!(!checked.stderr.contains("canary"), "{}", checked.stderr);
    }
    std::fs::write(home.path("fine"), "fake key+/=~!\r\n").unwrap();
    let ran = home.run(&["verify", "--key-file", "fine", "a=b&token=c"]);
    assert_eq!(ran.code, 1, "one line ending is trimmed as ever: {}", ran.stderr);
}

// Ids and other texts.

/// Escapes in JSON, and in an error.
const ODD: [(&str, &str); 6] = [
    ("i\\n1", "U+000A"),
    ("i\\u001b[2J", "U+001B"),
    ("i-\\u202e1", "U+202E"),
    ("i-\\u2028", "U+2028"),
    ("\\ufeffi-1", "U+FEFF"),
    ("i-1 ", "a space"),
];

/// Returns true if the text cannot move a cursor or reorder text.
fn assert_plain(shown: &str) {
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
    assert!(
        !shown.contains(odd) && !shown.contains(['\u{202e}', '\u{2028}', '\u{61c}', '\u{feff}']),
        "{shown:?}"
    );
}

#[test]
fn ids_that_cannot_be_seen_are_refused_from_hooks_by_hand_and_from_imports() {
    let home = Home::with_hook(
        r#"[ -e id ] && printf '{"instance_id": "%s"}' "$(cat id)" || printf '{"pending": "p"}'"#,
    );
    let daemon = home.start();
    assert!(!daemon.deliver(&create("by-hand")).is_success());
    let db = home.path("spid.db").display().to_string();
    for (number, (id, fault)) in ODD.into_iter().enumerate() {
        std::fs::write(home.path("id"), id).unwrap();
        let name = format!("biz-{number}");
        assert!(!daemon.deliver(&create(&name)).is_success());
        let shown = home.look(&["instances", "show", &name]);
        assert!(shown.contains(fault) && home.state(&name) == "pending", "{id}: {shown}");
        assert_plain(&shown);

        let act = ["--who", "w", "--why", "y", "--db", &db];
        std::fs::write(home.path("answer"), format!(r#"{{"instance_id": "{id}"}}"#)).unwrap();
        let ran = home.run(&[&["instances", "complete", "by-hand", "--answer", "answer"], &act[..]].concat());
        assert!(ran.code != 0 && ran.stderr.contains(fault), "{id}: {}", ran.stderr);
        assert_plain(&ran.stderr);
        for line in [
            format!(r#"{{"account": "alibaba-cn", "id": "{id}"}}"#),
            format!(r#"{{"account": "alibaba-cn", "id": "i-{number}", "order_biz_id": "{id}"}}"#),
            format!(r#"{{"account": "alibaba-cn", "id": "i-{number}", "tenant": "{id}"}}"#),
        ] {
            std::fs::write(home.path("lines"), &line).unwrap();
            let ran = home.run(&[&["instances", "import", "lines", "--any-account"], &act[..]].concat());
            assert!(ran.code != 0 && ran.stderr.contains(fault), "{line}: {}", ran.stderr);
            assert_plain(&ran.stderr);
        }
        let tenant = serde_json::from_str::<String>(&format!("\"{id}\"")).unwrap();
        let ran = home.run(&[&["instances", "claim", "by-hand", "--tenant", &tenant], &act[..]].concat());
        assert!(ran.code != 0 && ran.stderr.contains(fault), "{id}: {}", ran.stderr);
    }
    std::fs::remove_file(home.path("id")).unwrap();
}

#[test]
fn what_a_marketplace_or_a_hook_wrote_is_shown_without_moving_a_cursor() {
    let home = Home::with_hook(
        r#"printf 'hook says \033[2J\342\200\256 hello\n' >&2; printf '{"refuse": "no \\u001b]0;x\\u202e"}'; exit 65"#,
    );
    with_admin(&home, "");
    let daemon = home.start();
    let admin = admin_of(&daemon);
    let odd = "biz-\u{1b}[2J\u{202e}\u{61c}\u{2028}1";
    assert!(!daemon.deliver(&create(odd).with("note", odd)).is_success());
    for arguments in [
        &["instances", "list"][..],
        &["instances", "list", "--json"],
        &["instances", "show", odd],
        &["instances", "show", odd, "--json"],
        &["callbacks", "list"],
        &["callbacks", "show", "1"],
        &["callbacks", "show", "1", "--json"],
        &["jobs", "list"],
    ] {
        assert_plain(&home.look(arguments));
    }
    let exported = home.look(&["callbacks", "export", "1", "--keep-personal"]);
    assert_plain(&exported);
    std::fs::write(home.path("exported.toml"), &exported).unwrap();
    let checked = home.run(&["fixtures", "check", "exported.toml"]);
    assert_eq!(checked.code, 0, "{exported}{}", checked.stderr);
    let shown = home.json(&["callbacks", "show", "1"]).to_string();
    assert!(shown.contains('\u{61c}'), "JSON means what was sent: {shown}");
    for target in ["/v1/instances", "/v1/callbacks", "/console/instances", "/console/work", "/console/"] {
        assert_plain(&ask(admin, target).body);
    }
    assert_plain(&daemon.log());
}

#[test]
fn an_import_may_say_for_ever() {
    let home = Home::with_log_hook();
    let daemon = home.start();
    let line = r#"{"account": "alibaba-cn", "id": "i-1", "expires_on": "9999-12-31T23:59:59Z"}"#;
    std::fs::write(home.path("lines"), line).unwrap();
    let lines = home.path("lines").display().to_string();
    home.look(&["instances", "import", &lines, "--any-account", "--who", "w", "--why", "y"]);
    assert!(
        home.json(&["instances", "show", "i-1"])["expires_on"].as_str().unwrap().starts_with("9999-12-30")
    );
    assert!(daemon.deliver(&renew("i-1", "9999-12-31 23:59:59")).is_success());
}
