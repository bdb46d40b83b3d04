//! Tests of the configuration: the default file against the defaults, the order of precedence, and reports of
//! mistakes.

use super::*;
use crate::hooks::runner::Runner;

const ENDPOINT: &str = r#"
[[endpoint]]
name = "a"
path = "/spi"
dialect = "alibaba"
keys = [{ env = "FAKE" }]
"#;
const HOOK: &str = "[[hook]]\nname = \"try\"\nlog = {}\n";

fn environment(variables: &[(&str, &str)]) -> HashMap<String, String> {
    let fake = [("FAKE", "fake-key")];
    fake.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str, variables: &[(&str, &str)], flags: &[Flag]) -> Result<Config, Mistakes> {
    Config::parse(text, "spid.toml", &environment(variables), flags, None)
}

fn lines(text: &str) -> Vec<String> {
    lines_with(text, &[])
}

fn lines_with(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    read(text, variables, &[]).err().map_or_else(Vec::new, |wrong| wrong.lines().collect())
}

fn complete(text: &str) -> String {
    format!("{text}{ENDPOINT}{HOOK}")
}

// The default file.

/// Line without its comment mark, if it holds a key or the head of a table.
fn uncommented<'l>(line: &'l str, mark: &str) -> Option<&'l str> {
    let rest = line.strip_prefix(mark)?;
    rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[').then_some(rest)
}

/// Default file with its examples, and optionally with its defaults.
fn default_file(with_defaults: bool) -> String {
    let line = |line: &'static str| match (uncommented(line, "##"), uncommented(line, "#")) {
        (Some(example), _) => example,
        (None, Some(default)) if with_defaults => default,
        _ => line,
    };
    DEFAULT_FILE.lines().map(|it| line(it).to_owned() + "\n").collect()
}

/// Reads the default file, with the files it names in a temporary folder.
fn read_default_file(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let secret = "whsec_ZmFrZWZha2VmYWtlZmFrZWZha2VmYWtl";
    for (name, content) in [
        ("isv-key", "fake-key-of-a-test"),
        ("old", "fake-old-key"),
        ("hook-secret", secret),
        ("admin-token", "fake-admin-token-of-a-test"),
        ("app-token", "fake-app-token-of-a-test"),
        ("ram-key-id", "FAKERAMKEYID"),
        ("ram-key", "fake-ram-key-of-a-test"),
        ("otlp-headers", "authorization: Bearer fake-token-of-a-collector"),
        ("koogallery-key", "fake-key-of-another-market"),
        ("koogallery-secret", "fake-secret-of-another-market"),
    ] {
        std::fs::write(at(name), content).unwrap();
    }
    let authority = rcgen::generate_simple_self_signed(["authority.example".to_owned()]).unwrap();
    std::fs::write(at("ca.pem"), authority.cert.pem()).unwrap();
    std::fs::write(at("fullchain.pem"), authority.cert.pem()).unwrap();
    std::fs::write(at("privkey.pem"), authority.signing_key.serialize_pem()).unwrap();
    let text = text
        .replace("/etc/spid/", &format!("{}/", folder.path().display()))
        .replace("/opt/app/provision", "/bin/sh")
        .replace("\"/opt/app\"", "\"/\"");
    let credentials = folder.path().display().to_string();
    let variables = [("ISV_KEY", "fake-other-key"), ("CREDENTIALS_DIRECTORY", credentials.as_str())];
    let hook = Some(AnyHook::from(LogHook).into());
    let config = Config::parse(&text, "spid.toml", &environment(&variables), &[], hook);
    let mut config = config.unwrap_or_else(|wrong| panic!("{wrong}"));
    for value in config.settings.values_mut() {
        *value = value.replace(&credentials, "");
    }
    config
}

#[test]
fn taking_away_the_marks_of_the_defaults_changes_nothing() {
    let examples = read_default_file(&default_file(false));
    let all = read_default_file(&default_file(true));
    assert_ne!(default_file(false), default_file(true));
    assert_eq!(examples.settings, all.settings);
    assert_eq!(read(&complete(""), &[], &[]).unwrap().listen, all.listen);
}

#[test]
fn every_key_there_is_stands_in_the_default_file_once() {
    let known: Vec<String> = read_default_file(&default_file(true)).settings.into_keys().collect();
    let text = default_file(true);
    for key in known {
        let leaf = key.rsplit('.').next().unwrap();
        // Members of an inline table are within a line.
        let written = |line: &&str| {
            let inline = ["{", ","].map(|before| format!("{before} {leaf} = "));
            line.starts_with(&format!("{leaf} = ")) || inline.iter().any(|member| line.contains(member))
        };
        assert!(
            text.lines().any(|line| written(&line)) || leaf == "label",
            "{key} is not in the default file"
        );
    }
    let mut table = String::new();
    let mut seen: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if line.starts_with('[') {
            // Each table of a list has keys of its own.
            table = format!("{line} {}", seen.len());
        } else if line.split(" = ").next() != Some("name") {
            seen.push(format!("{table} {}", line.split(" = ").next().unwrap()));
        }
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "a key stands there twice");
}

#[test]
fn the_default_file_states_the_limits() {
    let all = read_default_file(&default_file(true));
    let millis = |duration: Duration| duration.as_millis() as u64;
    assert_eq!(millis(all.live.intake.reply_within), limits::REPLY_WITHIN_MS);
    assert_eq!(all.live.intake.policy.sign_on_window_ms, limits::DATED_WINDOW_MS);
    assert_eq!(all.store.secrets_window_ms, limits::SECRETS_WINDOW_MS);
    for hook in ["hook[0].exec", "hook[1].http", "hook[3].in_process"] {
        let timeout = format!("{:?}", Duration::from_millis(limits::HOOK_TIMEOUT_MS));
        assert_eq!(all.settings[&format!("{hook}.timeout")], timeout);
        let retry = format!("{:?}", limits::RETRY_SCHEDULE_S.map(Duration::from_secs));
        assert_eq!(all.settings[&format!("{hook}.retry")], retry);
        let concurrency = limits::HOOK_CONCURRENCY_COUNT.to_string();
        assert_eq!(all.settings[&format!("{hook}.concurrency")], concurrency);
    }
}

#[test]
fn the_hook_inside_stands_where_it_is_written_or_first() {
    let inside = || Some(AnyHook::from(LogHook).into());
    let runner = |text: &str| {
        let config =
            Config::parse(&format!("{ENDPOINT}{text}"), "spid.toml", &environment(&[]), &[], inside());
        config.unwrap_or_else(|wrong| panic!("{wrong}")).live.runner
    };
    let names = |runner: &Runner| runner.hooks().map(|hook| hook.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&runner("")), ["in-process"]);
    assert_eq!(names(&runner(HOOK)), ["in-process", "try"]);
    let own =
        "[[hook]]\nname = \"mine\"\nin_process = { timeout = \"5s\", concurrency = 2, retry = [\"7s\"] }\n";
    let runner = runner(&format!("{HOOK}{own}"));
    assert_eq!(names(&runner), ["try", "mine"]);
    let mine = runner.hooks().last().unwrap();
    assert_eq!((mine.timeout, mine.concurrency, mine.retry.is_some()), (Duration::from_secs(5), 2, true));
    let wrong = lines(&format!("{ENDPOINT}{own}"));
    assert!(wrong[0].contains("this program has no in-process hook"), "{wrong:?}");
    let twice = format!("{ENDPOINT}{own}{}", own.replace("mine", "mine-too"));
    let wrong = Config::parse(&twice, "spid.toml", &environment(&[]), &[], inside()).err().unwrap();
    assert!(wrong.to_string().contains("an earlier [[hook]] uses it already"), "{wrong}");
}

#[test]
fn a_key_that_needs_a_restart_is_a_key() {
    let all = read_default_file(&default_file(true));
    for key in NEEDS_RESTART {
        assert!(all.settings.contains_key(key), "{key}");
    }
}

// Order of precedence.

#[test]
fn a_flag_comes_before_a_variable_before_the_file_before_the_default() {
    let port = |text: &str, variable: Option<&str>, flag: Option<&str>| {
        let variables: Vec<(&str, &str)> =
            variable.iter().map(|value| ("SPID_SERVER__LISTEN", *value)).collect();
        let flag = flag.map(|value| Flag { name: "--listen", key: "server.listen", value: value.to_owned() });
        let flags: Vec<Flag> = flag.into_iter().collect();
        read(&complete(text), &variables, &flags).unwrap().listen.port()
    };
    let file = "[server]\nlisten = \"127.0.0.1:1\"\n";
    let (variable, flag) = (Some("127.0.0.1:2"), Some("127.0.0.1:3"));
    assert_eq!(port("", None, None), 8080);
    assert_eq!(port(file, None, None), 1);
    assert_eq!(port(file, variable, None), 2);
    assert_eq!(port("", variable, None), 2);
    assert_eq!(port(file, variable, flag), 3);
    assert_eq!(port(file, None, flag), 3);
}

#[test]
fn every_key_of_the_plain_tables_has_its_variable() {
    let all = read_default_file(&default_file(true));
    for key in all.settings.keys().filter(|key| !key.contains('[')) {
        let variable = format!("SPID_{}", key.replace('.', "__").to_uppercase());
        let wrong = read(&complete(""), &[(&variable, "")], &[]).err();
        let wrong = wrong.unwrap_or_else(|| panic!("{variable} was not read"));
        assert_eq!(wrong.mistakes.len(), 1, "{wrong}");
        assert_eq!((&wrong.mistakes[0].key, &wrong.mistakes[0].origin), (key, &Origin::Variable(variable)));
    }
}

#[test]
fn a_mistake_is_told_of_the_place_that_counts() {
    let file = complete("[server]\nlisten = \"x\"\n");
    let variables = [("SPID_SERVER__LISTEN", "y")];
    let flags = [Flag { name: "--listen", key: "server.listen", value: "z".to_owned() }];
    assert!(lines(&file)[0].starts_with("spid.toml:2: `server.listen`: `x` is not"));
    assert!(lines_with(&file, &variables)[0].starts_with("SPID_SERVER__LISTEN: `server.listen`: `y` is not"));
    let by_flag = read(&file, &variables, &flags).err().unwrap();
    assert!(by_flag.to_string().starts_with("--listen: `server.listen`: `z` is not"));
}

#[test]
fn a_variable_that_overrides_nothing_is_a_mistake() {
    let wrong =
        lines_with(&complete(""), &[("SPID_SERVER__LISTE", "x"), ("SPID_LOG", "x"), ("SPID_HOOK_KEY", "x")]);
    assert_eq!(wrong, ["SPID_SERVER__LISTE: unknown variable; did you mean `SPID_SERVER__LISTEN`?"]);
    // One underscore instead of two would be ignored in silence.
    for (wrong, right) in [
        ("SPID_SERVER_LISTEN", "SPID_SERVER__LISTEN"),
        ("SPID_SERVER_ADMIN_LISTEN", "SPID_SERVER__ADMIN_LISTEN"),
        ("SPID_STORE_PATH", "SPID_STORE__PATH"),
        ("SPID_SERVER__ADMIN_TOKEN_FILE", "SPID_SERVER__ADMIN_TOKEN__FILE"),
    ] {
        let found = lines_with(&complete(""), &[(wrong, "x")]);
        assert_eq!(found, [format!("{wrong}: unknown variable; did you mean `{right}`?")]);
    }
    // Variables of hooks, of Kubernetes and of our own commands stay allowed.
    let others =
        ["SPID_HOOK_SECRET", "SPID_SERVICE_HOST", "SPID_PORT", "SPID_LOG_FORMAT"].map(|name| (name, "x"));
    assert!(read(&complete(""), &others, &[]).is_ok());
}

#[test]
fn hints_name_each_key_once() {
    for text in ["[server]\nqqqqqqqq = 1\n", "[qqqqqqqq]\n", "[policy]\nqqqqqqqq = 1\n"] {
        let wrong = lines_with(&complete(text), &[("SPID_QQQQQQQQ__QQQQQQQQ", "x")]).join("\n");
        for line in wrong.lines() {
            let known: Vec<&str> = line.split("; use ").nth(1).unwrap().split(", ").collect();
            let mut once = known.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), known.len(), "{line}");
        }
    }
}

#[test]
fn settings_of_an_exec_hook_are_texts_or_come_from_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, "postgres://fake\n").unwrap();
    let hook = |env: &str| {
        complete("").replace("log = {}", &format!("exec = {{ command = [\"sh\"], env = {{ {env} }} }}"))
    };
    let good =
        hook(&format!("MODE = \"test\", DATABASE_URL = {{ file = {file:?} }}, TOKEN = {{ env = \"FAKE\" }}"));
    assert!(read(&good, &[("FAKE", "fake-token")], &[]).is_ok(), "{:?}", lines_with(&good, &[("FAKE", "x")]));
    for (env, says) in [
        ("SPID_ACTION = \"x\"", "`SPID_ACTION`: spid sets this variable itself"),
        ("\"1A\" = \"x\"", "`1A`: the name of a variable has letters, digits"),
        ("A = 7", ".env.A`: the value must be a table"),
        ("A = { file = \"/no/such/file\" }", "cannot be read"),
        ("A = { fil = \"x\" }", "exactly one of `file`, `env` and `credential`"),
        ("A = \"a\\u0000b\"", "contains a NUL"),
    ] {
        let found = lines(&hook(env)).join("\n");
        assert!(found.contains(says), "{says}: {found}");
    }
}

// Removed keys.

#[test]
fn a_key_of_an_earlier_version_is_a_warning_with_its_line() {
    let file = "[rate]\nper_address = \"20/s\"\n[policy]\nkey_unused_after = 7\nsecrets_window = \"1h\"\n";
    let variables = [("SPID_RATE__PER_ENDPOINT", "off"), ("SPID_POLICY__KEY_UNUSED_AFTER", "1d")];
    let config = read(&complete(file), &variables, &[]).unwrap();
    assert_eq!(config.store.secrets_window_ms, 3_600_000);
    let text = "has no effect since 0.2; remove it";
    let mut removed = config.warnings.clone();
    removed.retain(|warning| warning.ends_with(text));
    assert_eq!(
        removed,
        [
            format!("spid.toml:1: `rate`: {text}"),
            format!("spid.toml:4: `policy.key_unused_after`: {text}"),
            format!("SPID_RATE__PER_ENDPOINT: {text}"),
            format!("SPID_POLICY__KEY_UNUSED_AFTER: {text}"),
        ]
    );
    // The head alone, as the default file of the last version has it.
    assert!(read(&complete("[rate]\n"), &[], &[]).is_ok());
    // A removed key is no suggestion.
    let wrong = lines_with(&complete("[qqqqqqqq]\n"), &[]).join("\n");
    assert!(wrong.contains("use server, policy"), "{wrong}");
}

// Mistakes.

#[test]
fn every_mistake_is_told_at_once_with_its_line_and_key() {
    let text = r#"[server]
listen = 8080
lisen = "127.0.0.1:8080"
reply_within = "soon"
[polcy]
[policy]
unknown_instance = "adpot"
retired_accounts = true
[[endpoint]]
name = "a"
path = "spi"
dialect = "alibab"
keys = [{ file = "no-such-file" }, 7]
timezone = "Asia/Shanghi"
[[endpoint]]
name = "a"
path = "/spi"
dialect = "generic"
keys = [{ env = "FAKE", label = "x" }, { env = "FAKE", label = "x" }]
[[hook]]
name = "h"
exec = { command = "true", timeout = "10 parsecs", concurrency = 0 }
[[route]]
hook = "g"
endpoint = "b"
"#;
    let told = lines(text);
    let expected = [
        ("spid.toml:2: `server.listen`: ", "text in quotes"),
        ("spid.toml:3: `server.lisen`: ", "did you mean `listen`?"),
        ("spid.toml:4: `server.reply_within`: ", "is not a time span"),
        ("spid.toml:5: `polcy`: ", "did you mean `policy`?"),
        ("spid.toml:7: `policy.unknown_instance`: ", "refuse, succeed, adopt"),
        ("spid.toml:8: `policy.retired_accounts`: ", "a list of texts, not true or false"),
        ("spid.toml:11: `endpoint[0].path`: ", "begins with `/`"),
        ("spid.toml:12: `endpoint[0].dialect`: ", "did you mean `alibaba`?"),
        ("spid.toml:13: `endpoint[0].keys[0].file`: ", "cannot be read"),
        ("spid.toml:13: `endpoint[0].keys[1]`: ", "a table, not a number"),
        ("spid.toml:14: `endpoint[0].timezone`: ", "is not a time zone"),
        ("spid.toml:16: `endpoint[1].name`: ", "an earlier endpoint"),
        ("spid.toml:19: `endpoint[1].keys[1].label`: ", "an earlier key"),
        ("spid.toml:22: `hook[0].exec.command`: ", "a list of texts"),
        ("spid.toml:22: `hook[0].exec.timeout`: ", "is not a time span"),
        ("spid.toml:22: `hook[0].exec.concurrency`: ", "above zero"),
        ("spid.toml:24: `route[0].hook`: ", "there is no hook `g`"),
        ("spid.toml:25: `route[0].endpoint`: ", "there is no endpoint `b`"),
    ];
    for (place, text) in expected {
        let found = told.iter().find(|line| line.starts_with(place));
        assert!(found.is_some_and(|line| line.contains(text)), "{place} … {text}\n{}", told.join("\n"));
    }
    assert_eq!(told.len(), expected.len(), "{}", told.join("\n"));
    let numbers = told.iter().map(|line| line.split(':').nth(1).unwrap().parse::<usize>().unwrap());
    assert!(numbers.is_sorted(), "in the order of the file\n{}", told.join("\n"));
}

#[test]
fn every_mistake_of_syntax_is_told_at_once() {
    let told = lines("[server\n[store]\npath = spid.db\npath = \"b\"\n[policy]\nwindow = \n");
    for number in [1, 3, 4, 6] {
        let place = format!("spid.toml:{number}: ");
        assert!(told.iter().any(|line| line.starts_with(&place)), "{place}\n{}", told.join("\n"));
    }
}

#[test]
fn a_table_that_is_none_and_a_list_that_is_none_are_told() {
    let told = lines("server = 1\nendpoint = 2\nroute = [3]\n[hook]\nname = \"x\"\n");
    for place in ["1: `server`: ", "2: `endpoint`: ", "3: `route[0]`: ", "4: `hook`: "] {
        assert!(told.iter().any(|line| line.starts_with(&format!("spid.toml:{place}"))), "{place}\n{told:?}");
    }
    assert!(!told.iter().any(|line| line.contains("is configured")), "one mistake is told once: {told:?}");
}

#[test]
fn what_may_be_a_key_is_not_repeated() {
    for text in [
        "keys = [\"fake-canary\"]",
        "keys = \"fake-canary\"",
        "keys = [{ file = [\"fake-canary\"] }]",
        "keys = [{ value = \"fake-canary\" }]",
        "keys = [{ file = \"fake-canary }]",
        "keys = [{ file = fake-canary }]",
        "key = \"fake-canary\"",
        "keys = [{ env = \"fake-canary\" }]",
        "keys = [{ file = \"fake-canary\" }]",
        "keys = [{ credential = \"fake-canary\" }]",
        "keys = [{ credential = \"fake/canary\" }]",
        "keys = [{ fake-canary = 1 }]",
        "fake-canary = 1",
        "fake-canary = ",
        "fake-canary",
        "keys = [{ env = \"FAKE\" }]\n[store]\nsealing_keys = [{ env = \"fake-canary\" }]\nx = 1",
        "keys = [{ env = \"FAKE\" }]\n[server]\nadmin_token = { file = \"fake-canary\" }",
        "keys = [{ env = \"FAKE\" }]\n[server]\nadmin_token = { env = \"fake-canary\" }",
        "keys = [{ env = \"FAKE\" }]\n[server]\nadmin_token = { fake-canary = 1 }",
        "keys = [{ env = \"FAKE\" }]\n[server]\nadmin_token = \"fake-canary\"",
    ] {
        let text =
            format!("[[endpoint]]\nname = \"a\"\npath = \"/spi\"\ndialect = \"alibaba\"\n{text}\n{HOOK}");
        let told = lines(&text);
        assert!(!told.is_empty() && told.iter().all(|line| !line.contains("canary")), "{told:?}");
    }
}

#[test]
fn the_public_url_is_one_a_browser_can_open() {
    let keys = |url: &str| {
        let text = format!("{ENDPOINT}public_url = \"{url}\"\n{HOOK}");
        let wrong = read(&text, &[], &[]).err();
        wrong.map_or_else(Vec::new, |wrong| wrong.mistakes.into_iter().map(|it| it.key).collect())
    };
    assert!(keys("https://spi.example/spi").is_empty());
    for wrong in ["spi.example", "/spi", "ftp://spi.example", "https://"] {
        assert_eq!(keys(wrong), ["endpoint[0].public_url"], "{wrong}");
    }
}

#[test]
fn a_path_that_no_caller_asks_for_is_refused_with_the_one_to_write() {
    let told = |path: &str| {
        let endpoint = ENDPOINT.replace("\"/spi\"", &format!("\"{path}\""));
        assert!(endpoint.contains(path), "{endpoint}");
        lines(&format!("{endpoint}{HOOK}")).join("\n")
    };
    for fine in [
        "/spi",
        "/",
        "/a/b/",
        "/%E5%9B%9E%E8%B0%83",
        "/a%20b",
        "/v1.0/~x_y-z/a:b@c",
        "/...",
        "/.well-known/x",
    ] {
        assert_eq!(told(fine), "", "{fine}");
    }
    for (path, instead) in [
        ("/回调", "`/%E5%9B%9E%E8%B0%83`"),
        ("/a b", "`/a%20b`"),
        ("/{x}", "`/%7Bx%7D`"),
        ("/a/../spi", "`/spi`"),
        ("/./spi", "`/spi`"),
        ("/a/%2E%2e/spi", "`/spi`"),
        ("/spi/..", "`/`"),
        ("/a/b/..", "`/a/`"),
        ("/回/../调", "`/%E8%B0%83`"),
        ("/100%", "`%25`"),
        ("/%zz", "`%25`"),
        ("spi", "begins with `/`"),
        ("/spi?x", "no `?`"),
        ("/spi#x", "no `?` or `#`"),
    ] {
        assert!(told(path).contains("`endpoint[0].path`") && told(path).contains(instead), "{}", told(path));
    }
    for url in ["https://a.example/回", "https://a.example/x/../y", "https://a.example/%zz"] {
        for name in ["public_url", "test_url"] {
            let said = lines(&format!("{ENDPOINT}{name} = \"{url}\"\n{HOOK}"));
            assert!(said.len() == 1 && said[0].contains(name), "{said:?}");
        }
    }
}

// Changes.

#[test]
fn what_has_changed_is_named_and_a_key_s_content_counts() {
    let read = |text: &str, key: &str| read(&complete(text), &[("FAKE", key)], &[]);
    let before = read("", "fake-key").unwrap();
    assert!(before.changes(&read("# a remark\n", "fake-key").unwrap()).is_empty());
    assert!(before.changes(&read("[server]\nreply_within = \"3000ms\"\n", "fake-key").unwrap()).is_empty());
    let after = read("[store]\npath = \"b.db\"\n[log]\nlevel = \"debug\"\n", "fake-other-key").unwrap();
    assert_eq!(before.changes(&after), ["endpoint[0].keys", "log.level", "store.path"]);
}

// Hooks.

fn hook(table: &str) -> Vec<String> {
    lines(&format!("{ENDPOINT}[[hook]]\nname = \"do\"\n{table}\n"))
}

#[test]
fn a_hook_has_a_retry_list_of_its_own() {
    let text = |waits: &str| {
        format!("{ENDPOINT}[[hook]]\nname = \"do\"\nexec = {{ command = [\"sh\"], retry = {waits} }}\n")
    };
    let config = read(&text(r#"["5s", "1m 30s", "24h"]"#), &[], &[]).unwrap();
    let retry = config.live.runner.hooks().next().unwrap().retry.clone();
    assert_eq!(
        retry,
        Some(spid_core::lifecycle::schedule::Schedule::from_millis(vec![5_000, 90_000, 86_400_000]))
    );
    let many = format!("[{}]", ["\"5s\""; limits::RETRY_LIST_MAX_COUNT + 1].join(", "));
    for waits in
        ["[]", many.as_str(), r#"["5s", "soon"]"#, r#"["999ms"]"#, r#"["25h"]"#, r#"["-5s"]"#, r#""5s""#]
    {
        let wrong = lines(&text(waits));
        assert_eq!(wrong.len(), 1, "{waits}: {wrong:?}");
        assert!(wrong[0].starts_with("spid.toml:9: `hook[0].exec.retry`: "), "{wrong:?}");
    }
}

#[test]
fn a_working_folder_must_be_there() {
    let folder = |path: &str| hook(&format!("exec = {{ command = [\"sh\"], working_dir = \"{path}\" }}"));
    assert!(folder("/").is_empty());
    for wrong in ["/no/such/folder", "/etc/passwd"] {
        assert!(folder(wrong)[0].starts_with("spid.toml:9: `hook[0].exec.working_dir`: "), "{wrong}");
    }
}

// The admin listener.

#[test]
fn the_admin_listener_leaves_this_machine_only_with_a_token() {
    let server = |lines: &str| {
        lines_with(&complete(&format!("[server]\n{lines}\n")), &[("TOKEN", "fake-admin-token")])
    };
    assert!(server("admin_listen = \"127.0.0.1:8081\"").is_empty());
    assert!(server("admin_listen = \"0.0.0.0:8081\"")[0].contains("is not a loopback address"));
    assert!(server("admin_listen = \"0.0.0.0:8081\"\nadmin_token = { env = \"TOKEN\" }").is_empty());
    let short = server("admin_token = { env = \"FAKE\" }");
    assert!(short[0].contains("`server.admin_token.env`: the token has fewer than 16 bytes"), "{short:?}");
}

// Order lookups.

#[test]
fn a_marketplace_that_has_to_be_asked_is_not_forgotten() {
    let koogallery = |orders: &str| {
        let endpoint = ENDPOINT.replace("alibaba", "koogallery");
        lines(&format!("{endpoint}{orders}\n{HOOK}"))
    };
    let good = "access_key = \"FAKEACCESS\", secret_key = { env = \"FAKE\" }";
    let url = "url = \"http://127.0.0.1:9\"";
    assert_eq!(koogallery(&format!("orders = {{ {good}, {url} }}")), [""; 0]);
    let scoped = format!("orders = {{ {good}, {url}, region = \"r\", service = \"s\" }}");
    assert_eq!(koogallery(&scoped), [""; 0]);
    assert_eq!(koogallery("orders = { none = true }"), [""; 0]);
    for (orders, key) in [
        (String::new(), "endpoint[0].orders"),
        ("orders = {}".to_owned(), "endpoint[0].orders"),
        (format!("orders = {{ {good}, {url}, region = \"r\" }}"), "endpoint[0].orders"),
        (format!("orders = {{ {good}, url = \"mkt\" }}"), "endpoint[0].orders.url"),
        (
            format!("orders = {{ access_key = \"\", secret_key = {{ env = \"FAKE\" }}, {url} }}"),
            "endpoint[0].orders.secret_key.env",
        ),
    ] {
        let wrong = koogallery(&orders);
        assert_eq!(wrong.len(), 1, "{orders}: {wrong:?}");
        assert!(wrong[0].contains(&format!("`{key}`: ")), "{orders}: {wrong:?}");
    }
    let alibaba = lines(&format!("{ENDPOINT}orders = {{ {good} }}\n{HOOK}"));
    assert!(alibaba[0].contains("`endpoint[0].orders`: alibaba says in its callbacks"), "{alibaba:?}");
}
