//! Input that other programs and people write: numbers with all their digits, ids and keys without invisible
//! characters, tokens that are never shown.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

#[path = "common/admin.rs"]
mod admin;
#[path = "common/daemon.rs"]
mod common;

use admin::{admin_of, ask, post, with_admin};
use common::{Home, KEY, create, exchange, get_text};

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
