//! The console in a real Chromium, used like a person does. `SPID_TEST_PICTURES=FOLDER` stores a picture of each
//! page, for a phone and a desktop, light and dark.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

use crate::support::admin::{admin_of, with_admin};
use crate::support::chromium::Chromium;
use crate::support::daemon::{self, Daemon, Home, PASSWORD, about, create, renew, until, upgrade};
use crate::support::machine::lacks;
use base64::Engine as _;
use rusqlite::Connection;
use serde_json::json;

/// Fails if a file says so. Otherwise it creates an instance named after its order.
const TOLD: &str = r#"
[ -e "fail-$SPID_ACTION" ] && { echo 'the provisioner is down' >&2; exit 75; }
[ -e "pend-$SPID_ACTION" ] && { printf '{"pending":"waits for sales"}'; exit 0; }
case "$SPID_ACTION" in
create) printf '{"app":{"front_end_url":"https://app.example","password":"%s"}}' "$(cat password)" ;;
*) printf '{}' ;;
esac
"#;

/// Hostile text of a marketplace, for the pages that show it.
const HOSTILE: &str = r#"<script>document.title='ran';alert(1)</script><img src=x onerror=alert(2)>"'>&lt;"#;

/// A daemon with an admin listener, and a browser. `None` without a browser.
struct Bench {
    home: Home,
    daemon: Daemon,
    browser: Chromium,
}

impl Bench {
    fn start() -> Option<Bench> {
        if lacks("chromium", "chromium") {
            return None;
        }
        let home = Home::configured(TOLD, "60s", 16);
        std::fs::write(home.path("password"), PASSWORD).unwrap();
        with_admin(&home, "");
        let daemon = home.start();
        Some(Bench { home, daemon, browser: Chromium::start() })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", admin_of(&self.daemon))
    }

    fn open(&mut self, path: &str) {
        let url = self.url(path);
        self.browser.open(&url);
    }

    /// Marks the job of this action on this instance as dead.
    fn kill(&self, action: &str) {
        let mark = self.home.path(&format!("fail-{action}"));
        std::fs::write(&mark, "").unwrap();
        let daemon = self.daemon.address;
        let query = upgrade("biz-1", "gold").signed();
        let asked = std::thread::spawn(move || daemon::get(daemon, &query));
        assert!(!asked.join().unwrap().unwrap().success());
        let sql = "UPDATE job SET state = 4, step = 9, extra = 0 WHERE state = 0 AND attempts > 0";
        until("the job has failed", || {
            let db = Connection::open(self.home.path("spid.db")).unwrap();
            db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
            (db.execute(sql, []).unwrap() > 0).then_some(())
        });
        std::fs::remove_file(mark).unwrap();
    }

    /// Opens the form of an operation and enters the reason, and the operator if the form asks for it.
    fn act(&mut self, label: &str) {
        self.browser.click(".act:not([open]) summary", label);
        self.browser.write(".act[open] input[name=who]", "ops");
        self.browser.write(".act[open] input[name=why]", "looked at it");
        self.browser.follow(".act[open] button", label);
    }

    /// Stores a picture of every page if `SPID_TEST_PICTURES` is set.
    fn take_pictures(&mut self, pages: &[(&str, &str)]) {
        let Some(folder) = std::env::var_os("SPID_TEST_PICTURES") else { return };
        let folder = std::path::PathBuf::from(folder);
        for (screen, width, height) in [("phone", 390, 844), ("desk", 1280, 900)] {
            for scheme in ["light", "dark"] {
                self.browser.look_at(width, height, scheme);
                for (name, path) in pages {
                    self.open(path);
                    let picture = base64::engine::general_purpose::STANDARD.decode(self.browser.picture());
                    std::fs::write(folder.join(format!("{name}-{screen}-{scheme}.png")), picture.unwrap())
                        .unwrap();
                }
            }
        }
    }
}

#[test]
fn an_instance_is_found_and_its_life_is_read() {
    let Some(mut bench) = Bench::start() else { return };
    for number in 1..=60 {
        bench.daemon.deliver(&create(&format!("biz-{number}")));
    }
    bench.daemon.deliver(&renew("biz-7", "2031-01-01 00:00:00"));
    bench.open("/");
    assert!(bench.browser.text().contains("60"), "active instances");
    let keys =
        bench.browser.evaluate("document.querySelector('table:has(td[data-label=\"Last used\"])').innerText");
    assert!(keys.to_string().contains("alibaba-cn") && !keys.to_string().contains("not yet"), "{keys}");
    bench.browser.follow("nav a", "Instances");
    assert!(!bench.browser.text().contains("biz-7\n"), "it is on the second page");
    bench.browser.follow("a.button", "Next page");
    assert!(bench.browser.text().contains("biz-7"));
    bench.browser.follow("a.button", "First page");
    bench.browser.write("input[name=search]", "BIZ-7");
    bench.browser.follow("form button", "Search");
    bench.browser.follow("a.name", "biz-7");
    let text = bench.browser.text();
    for words in
        ["order-of-biz-7", "renew asked through alibaba-cn", "job: create", "reported", "2030-12-31 16:00:00"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    bench.browser.click(".timeline summary", "answer without secrets");
    assert!(bench.browser.text().contains("https://app.example"));
    assert!(!bench.browser.evaluate("document.documentElement.outerHTML").to_string().contains(PASSWORD));

    bench.open("/console/expiry?month=2030-12");
    bench.browser.follow(".month a", "1");
    assert!(bench.browser.text().contains("biz-7"));
    let complaints = bench.browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_dead_job_is_retried_with_a_reason() {
    let Some(mut bench) = Bench::start() else { return };
    bench.daemon.deliver(&create("biz-1"));
    bench.kill("upgrade");
    bench.open("/console/work");
    let text = bench.browser.text();
    assert!(text.contains("dead") && text.contains("the provisioner is down"), "{text}");

    // Without a reason the browser itself does not send the form.
    bench.browser.click(".act summary", "Retry");
    bench.browser.write(".act[open] input[name=who]", "ops");
    bench.browser.click(".act[open] button", "Retry");
    assert_eq!(
        bench.browser.evaluate("document.querySelectorAll('.act[open] input:invalid').length"),
        json!(1)
    );
    assert_eq!(bench.home.list(&["acts"]), Vec::<serde_json::Value>::new());
    bench.browser.write(".act[open] input[name=why]", "the provisioner is back");
    bench.browser.follow(".act[open] button", "Retry");
    assert!(bench.browser.text().contains("Done: the job is due now"));
    until("the upgrade is done", || {
        (bench.home.json(&["instances", "show", "biz-1"])["sku"] == "gold").then_some(())
    });
    let act = &bench.home.list(&["acts"])[0];
    assert_eq!((&act["act"], &act["who"]), (&json!("retry"), &json!("ops")));
    assert_eq!(act["why"], json!("the provisioner is back"));
    bench.open("/console/instances/biz-1");
    let text = bench.browser.text();
    assert!(text.contains("retry (admin operation)") && text.contains("the provisioner is back"), "{text}");
}

#[test]
fn a_held_callback_is_approved() {
    let Some(mut bench) = Bench::start() else { return };
    bench.daemon.deliver(&create("biz-1"));
    bench.daemon.deliver(&create("biz-1").with("orderId", "another").with("skuId", "gold"));
    bench.open("/console/");
    bench.browser.follow("a", "Open the work list");
    assert!(bench.browser.text().contains("possibly a converted trial"));
    bench.browser.click(".act summary", "Approve");
    bench.browser.evaluate("document.querySelector('select[name=as]').value = 'upgrade'");
    bench.browser.write(".act[open] input[name=who]", "ops");
    bench.browser.write(".act[open] input[name=why]", "the trial was converted");
    bench.browser.follow(".act[open] button", "Approve");
    assert!(bench.browser.text().contains("Done: approved"), "{}", bench.browser.text());
    assert!(bench.browser.text().contains("Nothing needs attention"));
    until("the upgrade is done", || {
        (bench.home.json(&["instances", "show", "biz-1"])["sku"] == "gold").then_some(())
    });

    // The page explains an impossible operation, and links back.
    bench.open("/console/instances/biz-1");
    bench.act("Release");
    until("it is released", || (bench.home.state("biz-1") == "released").then_some(()));
    bench.open("/console/instances/biz-1");
    assert!(bench.browser.text().contains("No operations: the instance is released."));
}

#[test]
fn what_a_marketplace_sends_stays_text() {
    let Some(mut bench) = Bench::start() else { return };
    let hostile = create("biz-1")
        .with("aliUid", HOSTILE)
        .with("skuId", HOSTILE)
        .with(&format!("label{}", HOSTILE.replace(['=', '&'], "")), HOSTILE);
    assert_eq!(bench.daemon.deliver(&hostile).id(), "biz-1");
    let named = format!("biz-{HOSTILE}");
    bench.daemon.deliver(&create(&named));
    bench.daemon.deliver(&about("bindDomain", &named).with("domain", HOSTILE));
    bench.daemon.get(&format!("{}&token={}", hostile.encoded(), "0".repeat(32)));
    let own = daemon::encode(&named);
    let pages = ["", "instances", "instances/biz-1", "work", "refusals", "nowhere"];
    let mut pages: Vec<String> = pages.iter().map(|page| format!("/console/{page}")).collect();
    pages.push(format!("/console/instances/{own}"));
    pages.push(format!("/console/instances?search={own}&account={own}"));
    pages.push(format!("/console/instances/{own}?account={own}&done={own}"));
    for page in &pages {
        bench.open(page);
        let strange = "document.querySelectorAll('script, img:not([src=\"/console/icon.svg\"])').length";
        assert_eq!(bench.browser.evaluate(strange), json!(0), "{page}");
        assert_ne!(bench.browser.evaluate("document.title"), json!("ran"), "{page}");
    }
    bench.open(&format!("/console/instances/{own}"));
    bench.browser.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)");
    let text = bench.browser.text();
    assert!(text.contains(HOSTILE) && text.contains(&named), "{text}");
    assert_eq!(bench.browser.count("Page.javascriptDialogOpening"), 0);
}

#[test]
fn a_page_is_read_without_a_script_and_on_a_phone() {
    let Some(mut bench) = Bench::start() else { return };
    bench.daemon.deliver(&create("biz-1"));
    bench.daemon.deliver(&renew("biz-1", "2031-01-01 00:00:00"));
    for number in 2..=30 {
        let day = format!("2030-01-{:02} 12:00:00", number * number % 27 + 1);
        bench.daemon.deliver(&create(&format!("biz-{number}")).with("expiredOn", &day));
    }
    bench.kill("upgrade");
    bench.daemon.deliver(&create("biz-1").with("orderId", "another"));
    bench.daemon.get(&create("biz-1").with("token", "0").encoded());
    let pages = [
        ("now", "/console/"),
        ("instances", "/console/instances"),
        ("life", "/console/instances/biz-1"),
        ("work", "/console/work"),
        ("refusals", "/console/refusals"),
        ("expiry", "/console/expiry?month=2030-01"),
    ];
    bench.browser.look_at(390, 844, "dark");
    for (name, path) in pages {
        bench.open(path);
        let scripts = "document.scripts.length + [...document.querySelectorAll('*')].filter(it => it.getAttributeNames().some(name => name.startsWith('on') || name === 'style')).length";
        assert_eq!(bench.browser.evaluate(scripts), json!(0), "{name}");
        let wide = bench.browser.evaluate("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= 390, "{name} is {wide} wide");
        let back = bench.browser.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(back, json!("rgb(15, 20, 26)"), "{name}");
    }
    bench.take_pictures(&pages);
}
