//! `spid verify`: each request with one fault is explained, and requests without one are valid.
#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use md5::{Digest, Md5};

use crate::support::daemon::{Home, KEY, Params, create, encode};

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn md5(text: &str) -> String {
    hex(Md5::digest(text))
}

/// Text of the parameters, in this order and with this text between names, values and pairs.
fn joined(pairs: &[(String, String)], equals: &str, separator: &str) -> String {
    let texts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}{equals}{value}")).collect();
    texts.join(separator)
}

/// Time of a sign-on, as the marketplace writes it: UTC+8.
fn china(minutes: i64) -> String {
    let at = spid_hook::time::Clock::System.now() + jiff::SignedDuration::from_mins(minutes);
    at.to_zoned(jiff::tz::TimeZone::get("Asia/Shanghai").unwrap()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn sign_on(minutes: i64) -> String {
    Params::new("verify").with("instanceId", "i-1").with("timeStamp", &china(minutes)).signed()
}

#[test]
fn each_request_with_a_fault_is_explained_and_none_without() {
    let home = Home::with_log_hook();
    let order = create("ob 1").with("Count", "2");
    let (sent, mut sorted) = (order.0.clone(), order.0.clone());
    sorted.sort();
    let mut by_value = sent.clone();
    by_value.sort_by(|one, other| one.1.cmp(&other.1));
    let mut with_key = sent.clone();
    with_key.push(("key".to_owned(), KEY.to_owned()));
    with_key.sort();
    let encoded: Vec<(String, String)> =
        sorted.iter().map(|(name, value)| (name.clone(), encode(value))).collect();
    let text = joined(&sorted, "=", "&");
    let token = |token: String| format!("{}&token={token}", order.encoded());
    let url = |rest: &str| format!("https://spi.example{rest}?{}", order.signed());
    let good = order.signed();

    let explained = [
        // Ways to compute the token.
        (
            token(md5(&format!("{}&key={KEY}", joined(&sent, "=", "&")))),
            "in the order in which they are sent",
        ),
        (token(md5(&format!("{}&key={KEY}", joined(&by_value, "=", "&")))), "sorts the parameters by value"),
        (
            token(md5(&format!("{}&key={KEY}", joined(&encoded, "=", "&")))),
            "with %20 for a space; sign decoded",
        ),
        (token(md5(&format!("key={KEY}&{text}"))), "puts the key first; append it at the end"),
        (token(md5(&format!("{KEY}{text}"))), "puts the key first, without `key=`"),
        (token(md5(&joined(&with_key, "=", "&"))), "sorts the key among the parameters"),
        (token(md5(&format!("{text}{KEY}"))), "appends the key without `&key=`"),
        (token(md5(&text)), "signs without the key"),
        (token(md5(&format!("{}&key={KEY}", joined(&sorted, "", "")))), "joins names and values without `=`"),
        (token(hex(sha2::Sha256::digest(format!("{text}&key={KEY}")))), "computes SHA-256; compute MD5"),
        (token(md5(&format!("{text}&key={KEY}"))[8..24].to_owned()), "sends 16 digits"),
        // Requests that changed on their way.
        (good.replace("skuId=basic", "skuId=pro"), "the key differs, or a parameter changed in transit"),
        (format!("{good}&channel=new"), "`channel` is not signed"),
        (good.replace("token=", "sign="), "`sign` may be the signature, whose name must be `token`"),
        (good.replace('&', "&amp;"), "the URL has `&amp;` between parameters"),
        (format!("{good}&skuId=pro"), "twice"),
        // Requests with a valid signature that the daemon refuses.
        (sign_on(-6), "spid refuses the request: the time of this sign-on is missing, or outside"),
        (sign_on(6), "spid refuses the request: the time of this sign-on is missing, or outside"),
        (url("/spi/"), "its path is `/spi/`, and the endpoint's is `/spi`: the answer is 404"),
        (url("//spi"), "its path is `//spi`"),
        (url("/SPI"), "its path is `/SPI`"),
    ];
    let check = |argument: &str| home.run(&["verify", "--config", "spid.toml", argument]);
    for (argument, says) in &explained {
        let ran = check(argument);
        assert_eq!(ran.code, 1, "{argument}: {}", ran.stdout);
        assert!(ran.stdout.contains(says), "{says}: {argument}: {}", ran.stdout);
        assert!(!ran.stdout.contains(KEY), "{}", ran.stdout);
    }
    let with_url = order.clone().with("label", "https://a.example/?x").signed();
    let valid = [
        good.clone(),
        with_url.replace("%3A%2F%2F", "://").replace("%3F", "?"),
        format!("?{good}"),
        url("/spi"),
        // A proxy may serve any other path.
        url("/market/callbacks"),
        format!("/spi?{good}"),
        format!("GET /spi?{good} HTTP/1.1"),
        format!("GET /spi?{good}"),
        format!("\"GET /spi?{good} HTTP/1.0\"\n"),
        format!("{}#fragment", url("/spi")),
        sign_on(-4),
    ];
    for argument in &valid {
        let ran = check(argument);
        assert_eq!(ran.code, 0, "{argument}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.starts_with("the signature is valid: key `current`"), "{}", ran.stdout);
    }
    let empty = check("https://spi.example/spi");
    assert!(empty.stdout.contains("the request carries no signature"), "{}", empty.stdout);
}

/// The window and the zone of the configuration decide, as in the daemon.
#[test]
fn the_time_of_a_sign_on_is_judged_by_the_configuration() {
    let home = Home::with_log_hook();
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&format!("{text}\n[policy]\nsign_on_window = \"10m\"\n"));
    assert_eq!(home.run(&["verify", "--config", "spid.toml", &sign_on(-8)]).code, 0);
    let late = home.run(&["verify", "--config", "spid.toml", "--json", &sign_on(-12)]);
    assert_eq!(late.code, 1);
    let verdict: serde_json::Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!(verdict.get("verified"), Some(&true.into()));
    assert!(verdict.get("refusal").is_some(), "{verdict}");
}
