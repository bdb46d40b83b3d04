//! Goldens: the data and the outputs of the program, compared byte for byte with those it had before.
//!
//! `tests/it/goldens/database.sql` holds a row of every kind, and `outputs/` beside it holds everything that a
//! program may read: the JSON of every command, the JSON and the metrics of the admin listener, the calls that a
//! hook gets, reports and schemas. A rename in the sources that reaches data or an output fails here. Where the
//! change is meant, `SPID_GOLDENS_WRITE=1 cargo test --test it goldens::` writes the outputs anew, and the diff shows what
//! has changed. The database is never written anew by that: it is what users have; see `goldens/database.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has said what it found"
)]

mod database;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::support::admin::{admin_of, ask, post};
use crate::support::daemon::{Answer, Daemon, Home, KEY, Params, about, create, exchange, get_text, until};
use rusqlite::Connection;
use serde_json::{Value, json};

/// The text of a file among the goldens.
macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/goldens/", $name))
    };
}

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/goldens");
const DATABASE: &str = golden!("database.sql");
const SEALING_KEY: &str = golden!("sealing-key");

/// Compares an output with the golden one of this name, or writes that.
#[track_caller]
fn compare(name: &str, output: &str) {
    let path = PathBuf::from(GOLDENS).join("outputs").join(name);
    let output = format!("{}\n", output.trim_end());
    if std::env::var_os("SPID_GOLDENS_WRITE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, output).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_same(&golden, &output, &path.display().to_string());
}

/// Two texts that must be equal; the lines about the first difference are shown.
#[track_caller]
fn assert_same(golden: &str, output: &str, name: &str) {
    if golden == output {
        return;
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (before, now) = (lines(golden), lines(output));
    let first = before.iter().zip(&now).take_while(|(before, now)| before == now).count();
    let about = |lines: &[String]| {
        let from = first.saturating_sub(3).min(lines.len());
        lines[from..(first + 2).min(lines.len())].join("\n")
    };
    panic!(
        "{name} differs from line {} on\n--- golden\n{}\n--- now\n{}",
        first + 1,
        about(&before),
        about(&now)
    );
}

/// A folder with a copy of the database and what opens it.
fn home() -> Home {
    let home = Home::empty();
    load(&home.path("spid.db"));
    for name in ["spid.db.key", "sealing-key"] {
        write_secret(&home.path(name), SEALING_KEY);
    }
    home
}

/// Migrations since the version that made the database. A daemon applies them at its first start, and then does work
/// that changes rows; commands only read.
const MIGRATIONS: [(i64, &str); 2] =
    [(4, include_str!("../../src/store/schema-4.sql")), (5, include_str!("../../src/store/schema-5.sql"))];

fn load(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(DATABASE).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    for (version, migration) in MIGRATIONS {
        db.execute_batch(migration).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
    }
    db
}

/// Key files are for their owner alone.
fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    options.unwrap().write_all(text.as_bytes()).unwrap();
}

/// The first column of what this finds in the database.
fn found(home: &Home, sql: &str) -> Vec<String> {
    let db = home.database();
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A name of each instance, and its account.
fn instances(home: &Home) -> Vec<(String, String)> {
    let of = |column: &str| {
        found(
            home,
            &format!("SELECT {column} FROM name GROUP BY instance HAVING name = min(name) ORDER BY instance"),
        )
    };
    of("name").into_iter().zip(of("account")).collect()
}

/// The ids of all jobs.
fn jobs(home: &Home) -> Vec<String> {
    let id = "lower(hex(id))";
    let part = |from: u32, length: u32| format!("substr({id}, {from}, {length})");
    let parts = [part(1, 8), part(9, 4), part(13, 4), part(17, 4), part(21, 12)].join(" || '-' || ");
    found(home, &format!("SELECT {parts} FROM job ORDER BY number"))
}

fn callbacks(home: &Home) -> Vec<String> {
    found(home, "SELECT CAST(number AS TEXT) FROM callback ORDER BY number")
}

/// Runs commands, and gives what each wrote to stdout and how it ended, its line before it.
fn said(home: &Home, commands: &[Vec<&str>]) -> String {
    let folder = home.path("").display().to_string();
    let mut text = String::new();
    for command in commands {
        let ran = home.run(command);
        text.push_str(&format!("$ spid {}\n{}", command.join(" "), ran.stdout));
        if ran.code != 0 {
            text.push_str(&format!("(exit {})\n", ran.code));
        }
    }
    text.replace(&folder, "FOLDER")
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The same, with a space for each `~`.
fn words_with_spaces(line: &str) -> Vec<String> {
    line.split(' ').map(|word| word.replace('~', " ")).collect()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

/// Puts a star in place of what stands under one of these names, however deep.
fn mask(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match names.contains(&name.as_str()) {
                    true if !value.is_null() => *value = json!("*"),
                    _ => mask(value, names),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| mask(value, names)),
        _ => {}
    }
}

/// The text with a star in place of each number of so many digits or more.
fn without_numbers(text: &str, least: usize) -> String {
    let mut without = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        without.push_str(before);
        without.push_str(if end >= least { "*" } else { &from[..end] });
        rest = &from[end..];
    }
    without + rest
}

// What is stored.

/// Every member of every body must come through the program: one that it does not know any more would be dropped
/// without a word, and be missing at the next write.
#[test]
fn nothing_of_a_body_is_lost() {
    let home = home();
    let db = home.database();
    let mut statement = db.prepare("SELECT number, body FROM callback ORDER BY number").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let rows: Vec<(i64, String)> = rows.map(Result::unwrap).collect();
    let mut members = BTreeSet::new();
    for (number, body) in &rows {
        let stored: Value = serde_json::from_str(body).unwrap();
        let shown = home.json(&["callbacks", "show", &number.to_string()]);
        assert_same(&pretty(&stored), &pretty(&shown["callback"]), &format!("callback {number}"));
        members.extend(stored.as_object().unwrap().keys().cloned());
    }
    let shown = |name: &str| home.json(&["callbacks", "show", name])["callback"]["doubts"].clone();
    let everything = rows.iter().find(|(_, body)| body.contains("koo-everything")).unwrap().0.to_string();
    assert_eq!(shown(&everything).as_array().unwrap().len(), 5, "every doubt");
    let known = "action action_name also body buyer converts dialect doubts expires_on items learned made_elsewhere \
                 order_id ordered parameters product pruned_at public_id refund request_id sent_at sku subject test \
                 trial";
    assert_eq!(members, known.split_whitespace().map(str::to_owned).collect(), "there is each of them");
}

/// A body of a version that is not known yet is left to a newer program.
#[test]
fn a_body_says_its_version() {
    let home = home();
    let db = Connection::open(home.path("spid.db")).unwrap();
    db.execute("UPDATE callback SET body = json_set(body, '$.version', 2) WHERE number = 1", []).unwrap();
    let ran = home.run(&["callbacks", "show", "1", "--json"]);
    assert_eq!(ran.code, 65);
    assert!(ran.stderr.contains("has version 2; this spid supports versions up to 1"), "{}", ran.stderr);
}

/// The program writes the rows of `database.sql`, which an earlier version made. Texts for people may differ, so the
/// rows of today are a golden of their own. Random parts of encrypted values, ids of jobs and the stamp of the last
/// commit are left out.
#[test]
fn what_is_written_is_what_was_written() {
    let made = database::made(&Path::new(GOLDENS).join("sealing-key"));
    let made_rows = without_chance(&made);
    let rows: Vec<&str> = made_rows.lines().filter(|line| line.starts_with("INSERT ")).collect();
    compare("database.sql", &rows.join("\n"));
    let shape = |dump: &str| {
        let lines = dump.lines().filter(|line| !line.contains("INTO sqlite_sequence"));
        lines.map(|line| line.split("VALUES").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let folder = tempfile::tempdir().unwrap();
    let migrated = database::dump(&load(&folder.path().join("spid.db")));
    assert_eq!(shape(&migrated), shape(&made), "tables, columns and the number of rows");
}

fn without_chance(dump: &str) -> String {
    let line = |line: &str| {
        let line =
            match line.strip_prefix("INSERT INTO head ").and_then(|head| head.split_once("VALUES (1, ")) {
                // The first stamp is random.
                Some((columns, values)) => {
                    format!("INSERT INTO head {columns}VALUES (1, *, {}", values.split_once(", ").unwrap().1)
                }
                None => line.to_owned(),
            };
        // The header of what is sealed (`spd1` and the id of the key) stays.
        let Some(at) = line.find("X'73706431") else { return line };
        let (before, sealed) = line.split_at(at);
        let end = 2 + sealed[2..].find('\'').unwrap();
        format!("{before}{}* ({} digits){}", &sealed[..26], end - 26, &sealed[end..])
    };
    let mut text = dump.lines().map(line).collect::<Vec<_>>().join("\n");
    // An operator's act draws the ids of its jobs from the system. All of them are known by their number here.
    let ids =
        |line: &str| Some(line.split_once("INSERT INTO job ")?.1.split_once(", X'")?.1[..32].to_owned());
    for (number, id) in dump.lines().filter_map(ids).enumerate() {
        let lower = id.to_lowercase();
        let shown = [&lower[..8], &lower[8..12], &lower[12..16], &lower[16..20], &lower[20..]].join("-");
        text = text.replace(&id, &format!("job {number}")).replace(&shown, &format!("job {number}"));
    }
    text
}

/// Makes another database, for a comparison; see `goldens/database.rs`.
#[test]
#[ignore = "writes a file: SPID_GOLDENS_DATABASE=FILE"]
fn the_database() {
    let to = std::env::var_os("SPID_GOLDENS_DATABASE").unwrap();
    std::fs::write(to, database::made(&Path::new(GOLDENS).join("sealing-key"))).unwrap();
}

// What commands print.

#[test]
fn lists() {
    let home = home();
    let mut commands: Vec<Vec<&str>> = Vec::new();
    for line in [
        "instances list --json",
        "instances list --json --account koogallery",
        "instances list --json --limit 2",
        "jobs list --json --limit 1000",
        "callbacks list --json --limit 1000",
        "callbacks list --json --untold",
        "held list --json",
        "attention --json",
        "acts --json",
        "seal status --json",
    ] {
        commands.push(words(line));
    }
    for state in ["pending", "active", "frozen", "released"] {
        commands.push(vec!["instances", "list", "--state", state, "--limit", "2", "--json"]);
    }
    let states = ["queued", "running", "pending", "held", "dead", "done", "refused", "dropped", "cancelled"];
    for state in states {
        commands.push(vec!["jobs", "list", "--state", state, "--limit", "2", "--json"]);
    }
    compare("lists.txt", &said(&home, &commands));
}

#[test]
fn details() {
    let home = home();
    let (instances, jobs, callbacks) = (instances(&home), jobs(&home), callbacks(&home));
    assert_eq!((instances.len(), jobs.len(), callbacks.len()), (22, 44, 58));
    let show = |what: &'static str, id| vec![what, "show", id, "--json"];
    let of_instances: Vec<_> = instances.iter().map(|(name, _)| show("instances", name)).collect();
    compare("instances.txt", &said(&home, &of_instances));
    let of_jobs: Vec<_> = jobs.iter().map(|id| show("jobs", id)).collect();
    compare("jobs.txt", &said(&home, &of_jobs));
    let of_callbacks: Vec<_> = callbacks.iter().map(|number| show("callbacks", number)).collect();
    compare("callbacks.txt", &said(&home, &of_callbacks));
    let held =
        found(&home, "SELECT CAST(number AS TEXT) FROM callback WHERE disposition = 1 ORDER BY number");
    compare("held.txt", &said(&home, &held.iter().map(|number| show("held", number)).collect::<Vec<_>>()));
}

#[test]
fn secrets_that_are_revealed() {
    let home = home();
    let sealed = found(
        &home,
        "SELECT DISTINCT coalesce(instance.id, order_biz_id) FROM instance JOIN job
        ON job.instance = instance.number WHERE sealed IS NOT NULL ORDER BY instance.number",
    );
    let show =
        |name| vec!["instances", "show", name, "--json", "--reveal", "--who", "ops", "--why", "golden"];
    let mut text = String::new();
    for name in &sealed {
        let ran = home.run(&show(name));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
        let secrets =
            shown.as_object().unwrap().iter().filter(|(_, value)| value.to_string().contains("fake-"));
        let secrets: serde_json::Map<String, Value> =
            secrets.map(|(name, value)| (name.clone(), value.clone())).collect();
        text.push_str(&format!("{name}: {}\n", pretty(&Value::Object(secrets))));
    }
    let job = found(&home, "SELECT lower(hex(id)) FROM job WHERE sealed IS NOT NULL ORDER BY number LIMIT 1");
    let id = jobs(&home).into_iter().find(|id| id.replace('-', "") == job[0]).unwrap();
    text.push_str(&said(
        &home,
        &[vec!["jobs", "show", &id, "--json", "--reveal", "--who", "ops", "--why", "golden"]],
    ));
    compare("revealed.txt", &text);
}

#[test]
fn exports() {
    let home = home();
    let instances = instances(&home);
    let mut commands = vec![words("instances export --as lines")];
    for (name, account) in &instances {
        let dialect = if account == "koogallery" { "koogallery" } else { "alibaba" };
        commands.push(vec!["instances", "export", name, "--dialect", dialect, "--keep-dates"]);
    }
    compare("exports.txt", &said(&home, &commands));
    let numbers = found(
        &home,
        "SELECT CAST(number AS TEXT) FROM callback WHERE body NOT LIKE '%pruned_at%' ORDER BY number",
    );
    let mut whole = words("callbacks export --keep-personal --keep-dates");
    whole.extend(numbers.iter().map(String::as_str));
    let mut bare = words("callbacks export --keep-dates");
    bare.extend(numbers.iter().map(String::as_str));
    compare("callbacks-export.txt", &said(&home, &[whole, bare]));
}

/// Instances that are exported as lines come back as they were.
#[test]
fn instances_come_back() {
    let lines = home().run(&["instances", "export", "--as", "lines"]).stdout;
    let empty = Home::empty();
    drop(load(&empty.path("spid.db")).execute_batch(
        "PRAGMA foreign_keys = off; DELETE FROM attempt; DELETE FROM job; DELETE FROM callback; DELETE FROM name;
         DELETE FROM purchase; DELETE FROM instance; DELETE FROM act; DELETE FROM once;",
    ));
    std::fs::write(empty.path("lines"), &lines).unwrap();
    let ran =
        empty.run(&["instances", "import", "lines", "--any-account", "--who", "ops", "--why", "golden"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let again = empty.run(&["instances", "export", "--as", "lines"]).stdout;
    assert_same(&lines, &again, "the lines");
}

#[test]
fn upkeep() {
    let home = home();
    let sizes = ["bytes_before", "bytes_after", "bytes_unused"];
    let mut text = String::new();
    for line in [
        "prune --older-than 400d --dry-run --json",
        "prune --older-than 400d --json --who ops --why golden",
        "seal rotate --json --who ops --why golden",
        "seal status --json",
    ] {
        let ran = home.run(&words(line));
        let mut printed: Value = serde_json::from_str(&ran.stdout).unwrap();
        mask(&mut printed, &sizes);
        text.push_str(&format!("$ spid {line}\n{}\n(exit {})\n", pretty(&printed), ran.code));
    }
    compare("upkeep.txt", &text);
}

/// The schemas without their descriptions, which are prose.
#[test]
fn schemas() {
    let home = home();
    for (name, line) in [
        ("hook-schema.json", "hook schema"),
        ("hook-schema-call.json", "hook schema call"),
        ("hook-schema-answer.json", "hook schema answer"),
        ("fixtures-schema.json", "fixtures schema"),
    ] {
        let mut schema: Value = serde_json::from_str(&home.run(&words(line)).stdout).unwrap();
        drop_descriptions(&mut schema);
        compare(name, &pretty(&schema));
    }
}

fn drop_descriptions(value: &mut Value) {
    match value {
        Value::Object(members) => {
            // A member of that name would be described by an object.
            members.retain(|name, value| name != "description" || !value.is_string());
            members.values_mut().for_each(drop_descriptions);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_descriptions),
        _ => {}
    }
}

// Requests of the marketplaces.

#[test]
fn requests() {
    let home = home();
    let mut text = String::new();
    let sign = |dialect: &str, parameters: &str| {
        let line = format!("sign --key-file isv-key --json --dialect {dialect} {parameters}");
        let arguments = words_with_spaces(&line);
        let ran = home.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (line, serde_json::from_str::<Value>(&ran.stdout).unwrap())
    };
    for (dialect, parameters) in REQUESTS {
        let (line, signed) = sign(dialect, parameters);
        let url = signed["url"].as_str().unwrap().to_owned();
        let mut verify = vec!["verify", "--key-file", "isv-key", "--json", "--dialect", dialect];
        let body = signed["body"].as_str().unwrap();
        if !body.is_empty() {
            verify.extend(["--body", body]);
        }
        let headers: Vec<String> = signed["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.as_str().unwrap()))
            .collect();
        for header in &headers {
            verify.extend(["--header", header]);
        }
        verify.push(&url);
        let ran = home.run(&verify);
        let mut verdict: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
        let mut shown = signed;
        if !matches!(*dialect, "alibaba" | "jdcloud") {
            // Dated now, and with a number drawn by chance: the names are what is to stay.
            let names: Vec<&str> =
                url.split(['?', '&']).map(|part| part.split('=').next().unwrap()).collect();
            shown["url"] = json!(names);
            mask(&mut shown, &["spid-signature", "spid-timestamp"]);
            mask(&mut verdict, &["sent_at", "timestamp", "nonce", "signature"]);
            verdict["base"] = match verdict["base"].as_str() {
                Some(base) if base.contains("<digest") => json!(base[base.find("<digest").unwrap()..]),
                base => json!(base.map(|base| without_numbers(base, 10))),
            };
        }
        text.push_str(&format!("$ spid {line}\n{}\n$ spid verify\n{}\n", pretty(&shown), pretty(&verdict)));
    }
    let wrong = said(
        &home,
        &[
            words(
                "verify --key-file isv-key --json action=createInstance&orderBizId=b&token=0123456789abcdef0123456789abcdef",
            ),
            words("verify --key-file isv-key --json action=createInstance"),
        ],
    );
    compare("requests.txt", &(text + &wrong));
}

/// Requests in each dialect, with `~` for a space in a value; together they fill every member of a callback that a dialect fills.
const REQUESTS: &[(&str, &str)] = &[
    (
        "alibaba",
        "createInstance aliUid=10001 orderBizId=b orderId=o productCode=p skuId=s trial=false expiredOn=2099-01-01~00:00:00 seats=5",
    ),
    ("alibaba", "renewInstance aliUid=10001 instanceId=i orderId=o expiredOn=2099-01-01~00:00:00"),
    ("alibaba", "renewInstance aliUid=10001 instanceId=i orderId=o expiredOn=soon"),
    ("alibaba", "upgradeInstance aliUid=10001 instanceId=i skuId=s2"),
    ("alibaba", "expiredInstance aliUid=10001 instanceId=i"),
    ("alibaba", "releaseInstance aliUid=10001 instanceId=i isRefund=true"),
    ("alibaba", "refundRenewInstance aliUid=10001 instanceId=i expiredOn=2098-01-01~00:00:00"),
    ("alibaba", "verify aliUid=10001 instanceId=i timeStamp=1704067200000"),
    ("alibaba", "bindDomain aliUid=10001 instanceId=i domain=example.com"),
    (
        "jdcloud",
        "createInstance accountNum=10001 orderBizId=b orderId=o serviceCode=p skuId=s expiredOn=2099-01-01~00:00:00",
    ),
    (
        "generic",
        "create order_biz_id=b order_id=o buyer=acme product=desk sku=basic trial=true expires_on=2099-01-01T00:00:00Z items.seats=5",
    ),
    ("generic", "release instance_id=i refund=false"),
    ("koogallery", "newInstance businessId=b orderId=o orderLineId=l testFlag=0"),
    ("koogallery", "newInstance businessId=b orderId=o orderLineId=l testFlag=1"),
    (
        "koogallery",
        "refreshInstance instanceId=i orderId=o productId=p expireTime=20990101000000 scene=RENEWAL_CHANGE",
    ),
    ("koogallery", "queryInstance instanceId=i"),
];

// Configurations.

/// The folder of the configuration with every key, with everything that is named in there.
fn configured() -> (Home, Vec<(&'static str, String)>) {
    let home = Home::empty();
    let names = vec!["spi.example.com".to_owned()];
    let certificate = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(home.path("fullchain.pem"), certificate.cert.pem()).unwrap();
    std::fs::write(home.path("ca.pem"), certificate.cert.pem()).unwrap();
    std::fs::create_dir(home.path("credentials")).unwrap();
    write_secret(&home.path("credentials/privkey.pem"), &certificate.signing_key.serialize_pem());
    let hook_secret = "whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=";
    for (name, secret) in [
        ("admin-token", "fake-admin-token-of-goldens"),
        ("app-token", "fake-app-token-of-goldens"),
        ("api-secret", "fake-api-secret"),
        ("sealing-key", SEALING_KEY),
        ("credentials/sealing-key-2", &"12".repeat(32)),
        ("otlp-headers", "authorization: Bearer fake-collector-token"),
        ("credentials/isv-key-2", "fake-isv-key-2"),
        ("jdcloud-key", "fake-jdcloud-key"),
        ("generic-key", "fake-generic-key"),
        ("koogallery-key", "fake-koogallery-key"),
        ("koogallery-key-2", "fake-koogallery-key-2"),
        ("koogallery-secret", "fake-koogallery-secret"),
        ("hook-secret", hook_secret),
    ] {
        write_secret(&home.path(name), secret);
    }
    configure(&home, golden!("spid.toml"));
    let variables = vec![
        ("CREDENTIALS_DIRECTORY", home.path("credentials").display().to_string()),
        ("FAKE_SEALING_KEY", "34".repeat(32)),
        ("FAKE_API_KEY_ID", "FAKEAPIKEYID".to_owned()),
        ("FAKE_ISV_KEY", "fake-isv-key-3".to_owned()),
        ("FAKE_HOOK_SECRET", "whsec_YmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=".to_owned()),
    ];
    (home, variables)
}

fn configure(home: &Home, text: &str) {
    home.configure(&text.replace("FOLDER", &home.path("").display().to_string()));
}

#[test]
fn a_configuration_with_every_key() {
    let (home, variables) = configured();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut text = String::new();
    for line in [
        "check-config --config spid.toml",
        "route --config spid.toml --json --endpoint alibaba-cn --product cmgj000001 --sku basic --buyer 10001",
        "route --config spid.toml --json --endpoint alibaba-cn --product another",
        "route --config spid.toml --json --endpoint koogallery",
    ] {
        let ran = home.run_in(&words(line), &variables);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
        assert!(!ran.stderr.contains("mistake"), "{}", ran.stderr);
        text.push_str(&format!("$ spid {line}\n{}", ran.stdout));
    }
    compare("configuration.txt", &text.replace(&home.path("").display().to_string(), "FOLDER"));
}

/// The configuration above has each key that the default file names.
#[test]
fn every_key_is_in_the_configuration() {
    let file = home().run(&["config", "default"]).stdout;
    let ours = golden!("spid.toml");
    let mut keys = BTreeSet::new();
    for line in file.lines().filter_map(|line| line.strip_prefix('#')) {
        let line = line.trim_start_matches('#');
        let named = line.split_once(" = ").map(|(name, _)| name).or_else(|| line.strip_prefix('['));
        if let Some(name) = named.filter(|name| !name.starts_with(' ') && !name.contains(char::is_whitespace))
        {
            keys.insert(name.trim_matches(['[', ']']).to_owned());
        }
    }
    assert!(keys.len() > 45, "{keys:?}");
    keys.remove("hook.in_process");
    for key in &keys {
        let is_there = ours
            .lines()
            .any(|line| line.starts_with(&format!("{key} = ")) || line.trim_matches(['[', ']']) == key);
        assert!(is_there, "`{key}` is missing");
    }
    let keys: Vec<String> = keys.into_iter().collect();
    compare("configuration-keys.txt", &keys.join("\n"));
}

// A daemon on a copy of the database.

/// The folder of a daemon whose hook is this.
fn daemon_home(hook: &str) -> Home {
    let home = home();
    write_secret(&home.path("koogallery-key"), "fake-koogallery-key");
    configure(&home, &golden!("daemon.toml").replace("HOOK", hook));
    home
}

/// Puts these tables into the configuration.
fn add_to_configuration(home: &Home, tables: &str) {
    let text = std::fs::read_to_string(home.path("spid.toml")).unwrap();
    home.configure(&text.replacen("[store]", &format!("{tables}\n[store]"), 1));
}

/// Log lines as JSON, down to those for debugging.
const JSON_LOG: &str = "[log]\nlevel = \"debug\"\nformat = \"json\"\n";

/// Each kind of line in a log: its level, where it comes from, what it says, and the names of its members.
fn kinds_of_lines(log: &str) -> String {
    let mut kinds = BTreeSet::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        // Of these programs' own libraries nothing is promised.
        if !text("target").starts_with("spid") {
            continue;
        }
        let members: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        let message = without_numbers(&text("message"), 1);
        kinds.insert(format!("{} {}: {message}\n  {}\n", text("level"), text("target"), members.join(" ")));
    }
    kinds.into_iter().collect()
}

/// Nothing is due for a long time, and nothing runs.
const AT_REST: &str =
    "UPDATE job SET state = 0, lease_until = NULL, due_at = 4070908800000 WHERE state IN (0, 1)";

fn change(home: &Home, sql: &str) {
    Connection::open(home.path("spid.db")).unwrap().execute_batch(sql).unwrap();
}

const BUSY: &str = "exec = { command = [\"sh\", \"-c\", \"exit 75\"], retry = [\"8h\"] }";

/// Asks for pages, and gives each with its path and its status, as JSON in lines.
fn pages(admin: SocketAddr, paths: &[String]) -> String {
    paths.iter().map(|path| page(path, ask(admin, path), &[])).collect()
}

fn page(path: &str, answer: Answer, masked: &[&str]) -> String {
    let mut body = answer.json();
    mask(&mut body, masked);
    format!("{} {path}\n{}\n", answer.status, pretty(&body))
}

#[test]
fn the_admin_listener() {
    let home = daemon_home(BUSY);
    change(&home, AT_REST);
    let (instances, jobs, callbacks) = (instances(&home), jobs(&home), callbacks(&home));
    let daemon = home.start();
    let admin = admin_of(&daemon);
    let lists = [
        "instances",
        "instances?limit=2",
        "instances?state=frozen",
        "instances?search=biz-ACT",
        "jobs?limit=1000",
        "jobs?state=dead",
        "jobs?limit=1",
        "callbacks?limit=1000",
        "callbacks?limit=1",
        "callbacks?untold=true",
        "callbacks?held=true",
        "held",
        "held?limit=1",
        "attention",
        "attention?limit=1",
        "acts",
        "acts?limit=1",
        "refusals",
    ];
    let paths: Vec<String> = lists.iter().map(|list| format!("/v1/{list}")).collect();
    compare("admin/lists.txt", &pages(admin, &paths));
    let paths: Vec<String> = instances
        .iter()
        .map(|(name, _)| format!("/v1/instances/{name}"))
        .chain(jobs.iter().map(|id| format!("/v1/jobs/{id}")))
        .chain(callbacks.iter().map(|number| format!("/v1/callbacks/{number}")))
        .chain(["/v1/held/20", "/v1/nothing", "/v1/jobs/nothing", "/v1/callbacks/999"].map(str::to_owned))
        .collect();
    compare("admin/details.txt", &pages(admin, &paths));
    compare("admin/metrics.txt", &metrics(&ask(admin, "/metrics").body));
    refusals(&daemon, admin);
    readiness(admin);
    acts(&home, admin);
}

/// Names, help, types and labels of all metrics, and the values of those that follow from the database alone.
fn metrics(page: &str) -> String {
    let fixed = [
        "spid_instances{",
        "spid_jobs{",
        "spid_held_callbacks ",
        "spid_attention{",
        "spid_unreported_results ",
    ];
    let line = |line: &str| {
        if line.starts_with('#') || fixed.iter().any(|name| line.starts_with(name)) {
            return line.to_owned();
        }
        let (name, _) = line.rsplit_once(' ').unwrap();
        let name = name.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        format!("{name} *")
    };
    page.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn refusals(daemon: &Daemon, admin: SocketAddr) {
    let wrong = format!("{}&token=0123456789abcdef0123456789abcdef", create("biz-wrong").encoded());
    daemon.get(&wrong);
    daemon.get(&create("biz-wrong").encoded());
    let post = crate::support::daemon::post_text("/spi", &wrong);
    exchange(daemon.address, &post).unwrap();
    exchange(daemon.address, &get_text("/koogallery", "signature=00&timestamp=1704067200000&nonce=n"))
        .unwrap();
    let page = page("/v1/refusals", ask(admin, "/v1/refusals"), &["at", "peer", "trace_id"]);
    compare("admin/refusals.txt", &page);
}

fn readiness(admin: SocketAddr) {
    let mut ready = ask(admin, "/readyz").json();
    let volatile = ["free_bytes", "size_bytes", "database_bytes", "wal_bytes", "version", "started_at"];
    mask(&mut ready, &volatile);
    mask(&mut ready, &["oldest_job_age_seconds", "overdue_seconds", "seconds"]);
    compare("admin/readyz.json", &pretty(&ready));
}

/// Acts by hand: how they are asked for, the report of each, and the record. They come last, as they change rows.
fn acts(home: &Home, admin: SocketAddr) {
    let id = |what: &str| {
        let sql = format!("SELECT lower(hex(id)) FROM job WHERE {what} ORDER BY number LIMIT 1");
        let wanted = found(home, &sql).remove(0);
        jobs(home).into_iter().find(|id| id.replace('-', "") == wanted).unwrap()
    };
    let number = |name: &str| {
        let like = format!("body LIKE '%\"{name}\"%' AND disposition = 1");
        found(home, &format!("SELECT CAST(number AS TEXT) FROM callback WHERE {like} ORDER BY number"))
            .remove(0)
    };
    let unknown =
        found(home, "SELECT CAST(number AS TEXT) FROM callback WHERE reason_code = 'unknown-instance'");
    let answer = json!({"instance_id": "i-by-answer", "app": {"front_end_url": "https://app.example.com"}});
    let requests = [
        (format!("/v1/jobs/{}/retry", id("state = 4")), json!({})),
        (format!("/v1/jobs/{}/drop", id("state = 3")), json!({})),
        (format!("/v1/held/{}/approve", number("another-order")), json!({"as": "renew"})),
        (format!("/v1/held/{}/approve", number("another-order")), json!({"as": "conversion"})),
        (format!("/v1/held/{}/reject", number("unknownAction")), json!({})),
        (format!("/v1/held/{}/settle", number("expiredInstance")), json!({})),
        (format!("/v1/attention/{}/dismiss", unknown[0]), json!({})),
        ("/v1/instances/biz-pending-by-hook/complete".to_owned(), json!({"answer": answer})),
        ("/v1/instances/i-old/release".to_owned(), json!({"account": "alibaba-cn"})),
        (format!("/v1/jobs/{}/complete", id("state = 5")), json!({})),
        ("/v1/instances/nothing/release".to_owned(), json!({})),
    ];
    let (known, mut text) = (jobs(home), String::new());
    for (path, more) in requests {
        let mut body = json!({"who": "ops", "why": "golden"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = post(admin, &path, "application/json", "", &body.to_string());
        // The id of a job that is made now is drawn by chance.
        let made = answer.json()["job"]
            .as_str()
            .filter(|made| !known.iter().any(|id| id == made))
            .map(str::to_owned);
        let shown = page(&path, answer, &[]);
        let shown = made.map_or(shown.clone(), |made| shown.replace(&made, "*"));
        text.push_str(&format!("POST {body}\n{shown}"));
    }
    let acts = page("/v1/acts?limit=8", ask(admin, "/v1/acts?limit=8"), &["at"]);
    compare("admin/acts.txt", &(text + &acts));
}

// Hooks.

/// Keeps each call, and the variables it came with, under the job's key.
const KEEPING: &str = r#"exec = { command = ["sh", "-c", "cat > FOLDER/call-$SPID_IDEMPOTENCY_KEY; env | grep -e ^SPID_ -e ^TRACEPARENT= | sort > FOLDER/env-$SPID_IDEMPOTENCY_KEY; case $SPID_ACTION in sign-on) printf '{\"redirect\":\"https://app.example.com/\"}';; other) printf '{\"body\":{\"done\":true}}';; *) printf '{}';; esac"] }"#;

/// A star in place of what is new with each attempt: its deadline, the span in its trace, and when the job before it
/// changed the instance.
fn without_attempt(call: &mut Value) {
    mask(call, &["deadline"]);
    if !call["instance"]["updated_at"].as_str().unwrap().starts_with("2024-") {
        call["instance"]["updated_at"] = json!("*");
    }
    let trace = call["traceparent"].as_str().unwrap();
    let parts: Vec<&str> = trace.split('-').collect();
    call["traceparent"] = json!(format!("{}-{}-*-{}", parts[0], parts[1], parts[3]));
}

#[test]
fn calls_of_an_executable() {
    let home = daemon_home(KEEPING);
    change(&home, "UPDATE job SET due_at = 0 WHERE state = 0");
    let wanted = found(
        &home,
        "SELECT lower(hex(id)) FROM job WHERE state IN (0, 1) AND (instance IS NULL
        OR in_lane = 0 OR instance NOT IN (SELECT instance FROM job WHERE state = 4)) ORDER BY number",
    );
    let keys: Vec<String> =
        jobs(&home).into_iter().filter(|id| wanted.contains(&id.replace('-', ""))).collect();
    assert_eq!(keys.len(), 12);
    add_to_configuration(&home, JSON_LOG);
    let daemon = home.start();
    let mut text = String::new();
    let mut actions = BTreeSet::new();
    for key in keys {
        let variables = until("the hook was called", || {
            let variables = std::fs::read_to_string(home.path(&format!("env-{key}"))).ok()?;
            variables.ends_with('\n').then_some(variables)
        });
        let call = std::fs::read_to_string(home.path(&format!("call-{key}"))).unwrap();
        let mut call: Value = serde_json::from_str(&call).unwrap();
        actions.insert(call["action"].as_str().unwrap().to_owned());
        without_attempt(&mut call);
        let variable = |line: &str| match line.split_once('=') {
            Some((name @ "TRACEPARENT", _)) => format!("{name}=*\n"),
            _ => format!("{line}\n"),
        };
        let variables: String = variables.lines().map(variable).collect();
        text.push_str(&format!("{variables}{}\n", pretty(&call)));
    }
    // What is behind the dead job waits still.
    let open = "SELECT 'open' FROM job WHERE state IN (0, 1) AND blocked = 0";
    until("all are done", || found(&home, open).is_empty().then_some(()));
    let log = daemon.stop();
    compare(
        "log-of-hooks.txt",
        &kinds_of_lines(&log).replace(&home.path("").display().to_string(), "FOLDER"),
    );
    assert_eq!(actions.len(), 9, "every action that a hook gets: {actions:?}");
    compare("hook-calls.txt", &text.replace(&home.path("").display().to_string(), "FOLDER"));
}

#[test]
fn a_call_over_http() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let home = daemon_home(&format!(
        "http = {{ url = \"http://{address}/hook?x=y\", secret = {{ file = \"FOLDER/hook-secret\" }} }}"
    ));
    write_secret(&home.path("hook-secret"), "whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=");
    change(&home, AT_REST);
    change(&home, "UPDATE job SET due_at = 0 WHERE state = 0 AND action = 7");
    let daemon = home.start();
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream);
    let (head, body) = request(&mut reader).unwrap();
    let line = |line: &String| {
        let Some((name, value)) = line.split_once(": ") else { return line.clone() };
        let name = name.to_ascii_lowercase();
        let value = match name.as_str() {
            "webhook-signature" => value.split_once(',').map(|(form, _)| format!("{form},*")).unwrap(),
            "user-agent" => value.replace(env!("CARGO_PKG_VERSION"), "VERSION"),
            "webhook-timestamp" | "traceparent" | "content-length" | "host" => "*".to_owned(),
            _ => value.to_owned(),
        };
        format!("{name}: {value}")
    };
    let mut head: Vec<String> = head.iter().map(line).collect();
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    reader.get_mut().write_all(answer.as_bytes()).unwrap();
    let mut call: Value = serde_json::from_slice(&body).unwrap();
    without_attempt(&mut call);
    daemon.stop();
    head[1..].sort();
    compare("hook-http.txt", &format!("{}\n\n{}", head.join("\n"), pretty(&call)));
}

// Reports.

/// The report of the hook author's test, about a hook without a fault and one with.
#[test]
fn the_report_of_a_hook_test() {
    let home = home();
    let good = r#"cat > /dev/null; case $SPID_ACTION in sign-on) printf '{"redirect":"https://app.example.com/"}';; *) printf '{}';; esac"#;
    std::fs::write(home.path("good.sh"), good).unwrap();
    std::fs::write(home.path("bad.sh"), "cat > /dev/null; printf '{\"refuse\":\"no\"}'; exit 65").unwrap();
    let mut text = String::new();
    for name in ["good.sh", "bad.sh"] {
        let line = format!("hook test --json --kills 0 --seed 7 --exec sh {name}");
        let ran = home.run(&words(&line));
        let mut report: Value = serde_json::from_str(&ran.stdout).unwrap();
        mask(&mut report, &["calls"]);
        text.push_str(&format!("$ spid {line}\n{}\n(exit {})\n", pretty(&report), ran.code));
    }
    compare("hook-test.txt", &text);
}

/// A daemon without rows, whose hook does nothing.
fn empty_daemon() -> (Home, Daemon) {
    let home = daemon_home("log = {}");
    std::fs::remove_file(home.path("spid.db")).unwrap();
    for name in ["sealing-key", "spid.db.key"] {
        std::fs::remove_file(home.path(name)).unwrap();
    }
    let daemon = home.start();
    (home, daemon)
}

#[test]
fn the_report_of_a_replay() {
    let (home, daemon) = empty_daemon();
    let fixture = |name: &str| format!("{}/spi-fixtures/alibaba/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let fixtures = ["create", "life", "wrong-token"].map(fixture);
    let to = format!("http://{}/spi", daemon.address);
    let mut command = words("replay --key-file isv-key --json --db spid.db --junit junit.xml --to");
    command.push(&to);
    command.extend(fixtures.iter().map(String::as_str));
    let ran = home.run(&command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mut report: Value = serde_json::from_str(&ran.stdout).unwrap();
    mask(&mut report, &["duration_ms", "requests"]);
    let junit = std::fs::read_to_string(home.path("junit.xml")).unwrap();
    let time =
        |part: &str| part.split_once('"').map_or_else(|| part.to_owned(), |(_, rest)| format!("*\"{rest}"));
    let mut parts = junit.split(" time=\"");
    let junit = parts.next().unwrap().to_owned()
        + &parts.map(|part| format!(" time=\"{}", time(part))).collect::<String>();
    let text = format!("{}\n{junit}", pretty(&report));
    compare("replay.txt", &text.replace(env!("CARGO_MANIFEST_DIR"), "PROJECT").replace(&to, "URL"));
}

#[test]
fn the_report_of_a_demo() {
    let ran = home().run(&["demo", "--json"]);
    let mut report: Value = serde_json::from_str(&ran.stdout).unwrap();
    mask(&mut report, &["duration_ms", "requests"]);
    compare("demo.json", &pretty(&report));
}

#[test]
fn the_report_of_a_simulated_market() {
    let (home, daemon) = empty_daemon();
    let to = format!("http://{}/spi", daemon.address);
    let mut command = words(
        "simulate --key-file isv-key --orders 6 --day 1ms --seed 7 --run golden --json --ledger ledger",
    );
    command.extend(["--to", &to]);
    let ran = home.run(&command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let volatile = ["requests", "took_ms", "unanswered"];
    let mut summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    mask(&mut summary, &volatile);
    let ledger = std::fs::read_to_string(home.path("ledger")).unwrap();
    let mut lines: BTreeMap<i64, String> = BTreeMap::new();
    for line in ledger.lines() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        mask(&mut line, &volatile);
        lines.insert(line["number"].as_i64().unwrap(), line.to_string());
    }
    let lines: Vec<String> = lines.into_values().collect();
    compare("simulate.txt", &format!("{}\n{}", pretty(&summary), lines.join("\n")));
}

/// Cases, rules, verdicts and the names of all members; what was exchanged is new each time.
#[test]
fn the_judgement_of_a_receiver() {
    let (home, daemon) = empty_daemon();
    let to = format!("http://{}/spi", daemon.address);
    let mut command = words("conformance --key-file isv-key --json --within 60s --to");
    command.push(&to);
    let ran = home.run(&command);
    let mut judgement: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    mask(
        &mut judgement,
        &["spid", "receiver", "began_at", "duration_ms", "target", "answer", "left_out", "said"],
    );
    let mut exchanges = BTreeSet::new();
    for case in judgement["cases"].as_array_mut().unwrap() {
        let made = case.as_object_mut().unwrap().insert("exchanges".to_owned(), json!("*")).unwrap();
        for exchange in made.as_array().unwrap() {
            exchanges.insert(exchange.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" "));
        }
    }
    compare("conformance.txt", &format!("{}\nexchanges: {exchanges:?}", pretty(&judgement)));
}

/// The answers that a marketplace gets, in each outcome.
#[test]
fn answers_to_a_marketplace() {
    let home = daemon_home(BUSY);
    change(&home, AT_REST);
    add_to_configuration(&home, JSON_LOG);
    let daemon = home.start();
    let mut text = String::new();
    let requests: Vec<Params> = vec![
        create("biz-never-before"),
        about("releaseInstance", "i-released"),
        about("renewInstance", "i-nothing").with("expiredOn", "2099-01-01 00:00:00").with("orderId", "o"),
        about("bindDomain", "i-active"),
        about("upgradeInstance", "i-active").with("skuId", "gold").with("seats", "20"),
        about("upgradeInstance", "i-active").with("skuId", "gold").with("seats", "20"),
    ];
    for request in requests {
        let answer = daemon.deliver(&request);
        text.push_str(&format!("{}\n{} {}\n", request.encoded(), answer.status, answer.body));
    }
    until("the hook has failed", || {
        let tried = "SELECT CAST(attempts AS TEXT) FROM job WHERE state = 0 AND attempts = 1 AND created_at > 1750000000000";
        (!found(&home, tried).is_empty()).then_some(())
    });
    let log = daemon.stop();
    compare("log.txt", &kinds_of_lines(&log).replace(&home.path("").display().to_string(), "FOLDER"));
    compare("answers.txt", &text);
}

/// The answers of each dialect to the requests above.
#[test]
fn answers_in_each_dialect() {
    let home = Home::empty();
    let daemon = home.start_dev();
    let mut text = String::new();
    for (dialect, parameters) in REQUESTS {
        let path = if *dialect == "alibaba" { "/spi".to_owned() } else { format!("/{dialect}") };
        let to = format!("http://{}{path}", daemon.address);
        let line = format!("sign --dev --json --dialect {dialect} --to {to} {parameters}");
        let arguments = words_with_spaces(&line);
        let ran = home.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let signed: Value = serde_json::from_str(&ran.stdout).unwrap();
        let part = |name: &str| signed[name].as_str().unwrap();
        let target = part("url").strip_prefix(&format!("http://{}", daemon.address)).unwrap();
        let mut request = format!("{} {target} HTTP/1.1\r\nhost: spi.example\r\n", part("method"));
        for (name, value) in signed["headers"].as_object().unwrap() {
            request.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n{}", part("body").len(), part("body")));
        let answer = exchange(daemon.address, &request).unwrap();
        text.push_str(&format!("{dialect} {parameters}\n{} {}\n", answer.status, answer.body));
    }
    daemon.stop();
    compare("answers-in-each-dialect.txt", &text);
}

/// The files that a daemon keeps beside its database, while a hook runs: a later version finds them.
#[test]
fn files_beside_the_database() {
    let home = daemon_home(
        r#"exec = { command = ["sh", "-c", "while [ ! -e FOLDER/gate-end ] && [ -d FOLDER ]; do sleep 0.02; done; printf '{}'"] }"#,
    );
    change(&home, AT_REST);
    change(&home, "UPDATE job SET due_at = 0 WHERE state = 0 AND action = 7");
    let daemon = home.start();
    let mut text = String::new();
    let marks = until("a hook runs", || {
        let folders = std::fs::read_dir(home.path("")).unwrap().map(|entry| entry.unwrap().path());
        let folder = folders.filter(|path| path.is_dir()).find(|path| {
            std::fs::read_dir(path).unwrap().next().is_some_and(|mark| {
                std::fs::read_to_string(mark.unwrap().path()).is_ok_and(|text| text.ends_with('\n'))
            })
        })?;
        Some(folder)
    });
    let mut names: Vec<String> = std::fs::read_dir(home.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    text.push_str(&format!("{}\n", names.join("\n")));
    let mark = std::fs::read_dir(&marks).unwrap().next().unwrap().unwrap().path();
    let content = std::fs::read_to_string(&mark).unwrap();
    let (boot, rest) = content.split_once('\n').unwrap();
    let name = format!("{}/{}", marks.file_name().unwrap().display(), mark.file_name().unwrap().display());
    text.push_str(&format!(
        "--- {}\n*{}\n{rest}",
        without_numbers(&name, 1),
        if boot.is_empty() { "(no boot)" } else { "" }
    ));
    let lock = std::fs::read_to_string(home.path("spid.db.lock")).unwrap();
    let (stamp, keys) = lock.split_once('\n').unwrap();
    assert_eq!(stamp.len(), 20);
    text.push_str(&format!("--- spid.db.lock\n*\n{keys}\n"));
    home.open_gate("end");
    daemon.stop();
    compare("files.txt", &text);
}

/// Takes requests as a collector of spans does, and gives their bodies.
fn collector() -> (SocketAddr, std::sync::mpsc::Receiver<Value>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            let mut reader = BufReader::new(stream.unwrap());
            std::thread::spawn(move || {
                while let Some((_, body)) = request(&mut reader) {
                    let answer =
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                    sender.send(serde_json::from_slice(&body).unwrap()).unwrap();
                }
            });
        }
    });
    (address, receiver)
}

/// The head and the body of the next request, if one comes.
fn request(reader: &mut BufReader<std::net::TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        head.push(line.to_owned());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// The spans of a request and of its attempt: their names, kinds and attributes.
#[test]
fn spans() {
    let (address, bodies) = collector();
    let home = daemon_home("log = {}");
    change(&home, AT_REST);
    add_to_configuration(&home, &format!("[telemetry]\notlp = \"http://{address}\"\n"));
    let daemon = home.start();
    daemon.deliver_until_done(&create("biz-never-before"));
    daemon.deliver(&about("bindDomain", "i-active"));
    daemon.get(&format!("{}&token=0123456789abcdef0123456789abcdef", create("biz-wrong").encoded()));
    daemon.stop();
    let mut kinds = BTreeSet::new();
    let names = |attributes: &Value| {
        let mut names: Vec<String> = attributes
            .as_array()
            .into_iter()
            .flatten()
            .map(|attribute| {
                let kind: Vec<&String> = attribute["value"].as_object().unwrap().keys().collect();
                format!("{} ({})", attribute["key"].as_str().unwrap(), kind[0])
            })
            .collect();
        names.sort();
        names.join(", ")
    };
    while let Ok(body) = bodies.try_recv() {
        for resource in body["resourceSpans"].as_array().unwrap() {
            kinds.insert(format!("resource: {}", names(&resource["resource"]["attributes"])));
            for scope in resource["scopeSpans"].as_array().unwrap() {
                kinds.insert(format!("scope: {}", scope["scope"]["name"]));
                for span in scope["spans"].as_array().unwrap() {
                    let members: Vec<&str> = span.as_object().unwrap().keys().map(String::as_str).collect();
                    kinds.insert(format!(
                        "span {} of kind {}: {}\n  {}",
                        span["name"],
                        span["kind"],
                        names(&span["attributes"]),
                        members.join(" ")
                    ));
                }
            }
        }
    }
    assert!(kinds.len() > 3, "{kinds:?}");
    compare("spans.txt", &kinds.into_iter().collect::<Vec<_>>().join("\n"));
}

/// No secret of anyone, and no place of this machine, stands in the goldens.
#[test]
fn the_goldens_hold_nothing_of_this_machine() {
    let mut folders = vec![PathBuf::from(GOLDENS)];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            for word in ["/home", "/root", "/tmp/", "/work", KEY, env!("CARGO_MANIFEST_DIR")] {
                let is_code = path.extension().is_some_and(|extension| extension == "rs");
                assert!(is_code || !text.contains(word), "{} holds {word}", path.display());
            }
        }
    }
    assert!(files > 20, "{files}");
}
