//! Runs the commands, configurations and links of the documents, and the example with its own command line.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::examples::{self, root};
use crate::support::executable::executable;
use crate::support::machine::lacks;

const SPID: &str = env!("CARGO_BIN_EXE_spid");

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec!["README.md".into(), "ARCHITECTURE.md".into(), "CHANGELOG.md".into()];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// First block that contains `mark`.
fn block(text: &str, language: &str, mark: &str) -> String {
    blocks(text, language)
        .into_iter()
        .find(|block| block.contains(mark))
        .unwrap_or_else(|| panic!("no block with {mark}"))
}

/// A daemon on a free port, in its own folder.
struct Dev {
    child: Child,
    address: String,
    /// Address of the admin listener. Empty without one.
    admin: String,
    folder: tempfile::TempDir,
}

impl Dev {
    fn start() -> Dev {
        Dev::start_in(tempfile::tempdir().unwrap(), &["--dev", "--listen", "127.0.0.1:0"])
    }

    fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Dev {
        let mut child = Command::new(SPID)
            .arg("serve")
            .args(arguments)
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find_map(|line| {
            let line = line.unwrap();
            let word = |name: &str| Some(line.split(name).nth(1)?.split(' ').next().unwrap().to_owned());
            word("ready address=").map(|address| (address, word("admin=").unwrap_or_default()))
        });
        std::thread::spawn(move || lines.for_each(drop));
        let (address, admin) = ready.unwrap();
        Dev { child, address, admin, folder }
    }

    fn shell(&self, script: &str) -> String {
        let script = script.replace("127.0.0.1:8080", &self.address);
        let path = format!("{}:{}", Path::new(SPID).parent().unwrap().display(), env!("PATH"));
        let output = Command::new("sh")
            .args(["-eu", "-c", &script])
            .current_dir(self.folder.path())
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_readme_s_first_order_is_taken() {
    if lacks("curl", "curl") || lacks("md5sum", "md5sum") || lacks("cut", "cut") {
        return;
    }
    let readme = read("README.md");
    let order = block(&readme, "sh", "md5sum");
    let promised = order.lines().find_map(|line| line.strip_prefix("# ")).unwrap().to_owned();
    let dev = Dev::start();
    assert_eq!(dev.shell(&order), promised);
    assert_eq!(dev.shell(&order), promised);
    let looking = block(&readme, "sh", "spid instances show 1001");
    let looking: Vec<&str> = looking.lines().filter(|line| !line.contains("http://…")).collect();
    let shown = dev.shell(&looking.join("\n"));
    assert!(shown.contains("active") && shown.contains("token="), "{shown}");
}

#[test]
fn the_readme_s_configuration_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("isv-key"), "fake-key-of-a-test\n").unwrap();
    executable(at("provision").as_ref(), &block(&read("README.md"), "sh", "SPID_ACTION"));
    let config = block(&read("README.md"), "toml", "[[endpoint]]")
        .replace("/etc/spid/isv-key", &at("isv-key"))
        .replace("/var/lib/spid/", &at(""))
        .replace("/opt/app/provision", &at("provision"));
    std::fs::write(at("spid.toml"), config).unwrap();
    let output = Command::new(SPID).args(["check-config", "--config", &at("spid.toml")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("keys: current"));
}

/// The first order of the operator, with the log hook.
#[test]
fn the_first_order_is_taken_and_released() {
    if lacks("curl", "curl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("isv-key"), "fake-key-of-a-test\n").unwrap();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n[store]\npath = \"{}\"\n[[endpoint]]\nname = \"a\"\n\
         path = \"/spi\"\ndialect = \"alibaba\"\nkeys = [{{ file = \"{}\" }}]\n[[hook]]\nname = \"h\"\nlog = {{}}\n",
        at("spid.db"),
        at("isv-key"),
    );
    std::fs::write(at("spid.toml"), config).unwrap();
    let (file, key) = (at("spid.toml"), at("isv-key"));
    let daemon = Dev::start_in(folder, &["--config", &file]);
    let order = block(&read("docs/operating.md"), "sh", "first-order")
        .replace(
            "healthcheck --config /etc/spid/spid.toml",
            &format!("healthcheck --url http://{}/readyz", daemon.admin),
        )
        .replace("https://spi.example", &format!("http://{}", daemon.address))
        .replace("/etc/spid/spid.toml", &file)
        .replace("/etc/spid/isv-key", &key);
    let told = daemon.shell(&order);
    assert!(told.contains(r#"{"instanceId":"first-order""#), "{told}");
    assert!(told.contains("active"), "{told}");
    let shown = daemon.shell(&format!("spid instances show first-order --config {file}"));
    assert!(shown.contains("release"), "{shown}");
}

/// The two keys of the key change in the document, in a configuration.
#[test]
fn the_keys_of_a_rotation_are_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["key-2025", "key-2026"] {
        std::fs::write(at(name), format!("fake-{name}\n")).unwrap();
    }
    let text = read("docs/operating.md");
    let keys =
        text.split('`').find(|piece| piece.starts_with("keys = [{") && piece.contains("2026")).unwrap();
    let config = format!(
        "[store]\npath = \"{}\"\n[[endpoint]]\nname = \"a\"\npath = \"/spi\"\ndialect = \"alibaba\"\n{}\n[[hook]]\nname = \"h\"\nlog = {{}}\n",
        at("spid.db"),
        keys.replace("/etc/spid/", &at(""))
    );
    std::fs::write(at("spid.toml"), config).unwrap();
    let output = Command::new(SPID).args(["check-config", "--config", &at("spid.toml")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("keys: 2026, 2025"));
}

/// The document lists every key that a reload cannot change.
#[test]
fn the_keys_that_need_a_restart_are_documented() {
    let text = read("docs/operating.md");
    let row = text.lines().find(|line| line.contains("| `restart-required` |")).unwrap();
    for key in spid::internals::config::NEEDS_RESTART {
        assert!(row.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn every_command_the_documents_name_exists() {
    let is_word = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    };
    let mut seen = std::collections::BTreeMap::new();
    for path in documents() {
        let text = read(path.to_str().unwrap());
        // Commands are code: in a block of a shell, or between backticks.
        let outside: String = text.split("```").step_by(2).collect();
        let spans = outside.split('`').skip(1).step_by(2).filter(|span| span.starts_with("spid "));
        let spans = spans.map(str::to_owned);
        let lines = blocks(&text, "sh").join("\n");
        for line in lines.lines().map(str::to_owned).chain(spans) {
            // A comment of a shell is prose.
            let mut words = line.split('#').next().unwrap().split_whitespace();
            while words.find(|word| *word == "spid" || word.ends_with("(spid")).is_some() {
                let named: Vec<&str> = words.clone().take(2).take_while(is_word).collect();
                if !named.is_empty() {
                    seen.insert(named.join(" "), path.clone());
                }
            }
        }
    }
    assert!(seen.len() > 30, "{seen:?}");
    for (command, path) in seen {
        // The program decides: a second word may be a subcommand or an argument.
        let output = Command::new(SPID).args(command.split(' ')).arg("--help").output().unwrap();
        let path = path.display();
        assert!(output.status.success(), "{path} names `spid {command}`, which does not exist");
    }
}

#[test]
fn the_commands_that_judge_do_what_their_page_says() {
    let page = read("docs/conformance.md");
    let dev = Dev::start();
    let key = |script: String| script.replace("--key-file /etc/spid/isv-key", "--dev");
    // The hook of `--dev` has no application: the two cases that the page names fail.
    let judged = key(block(&page, "sh", "spid conformance")).trim_end().to_owned();
    let told = dev.shell(&format!("{judged} || test $? = 1"));
    assert!(page.contains("passes all but `sign-on` and `app-info`"));
    let failed: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("failed  "))
        .map(|line| line.split_whitespace().nth(2).unwrap())
        .collect();
    assert_eq!(failed, ["sign-on", "app-info"], "{told}");
    for report in ["report.html", "report.md"] {
        assert!(dev.folder.path().join(report).is_file(), "{report}");
    }
    let played = key(block(&page, "sh", "spid simulate")).replace("--orders 1000", "--orders 20 --day 1ms");
    assert!(dev.shell(&played).contains("20 orders, "));
}

#[test]
fn every_case_stands_in_its_page() {
    let page = read("docs/conformance.md");
    let rows = spid::internals::lab::conformance::cases()
        .iter()
        .map(|case| format!("| `{}` | {} | {} | {} |\n", case.id, case.level, case.rule, case.source));
    let table: String = rows.collect();
    assert!(page.ends_with(&table), "the table of docs/conformance.md should be:\n{table}");
    let count = format!("in {} cases", spid::internals::lab::conformance::cases().len());
    assert!(read("CHANGELOG.md").contains(&count), "{count}");
}

#[test]
fn the_hook_test_runs_as_the_document_says() {
    let block = block(&read("docs/hooks.md"), "sh", "spid hook test");
    let line = block.lines().find(|line| line.contains("--exec")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("my-app");
    let line = line.replace("/tmp/my-app", made.to_str().unwrap());
    let path = format!("{}:{}", Path::new(SPID).parent().unwrap().display(), env!("PATH"));
    let output =
        Command::new("sh").args(["-c", &line]).current_dir(root()).env("PATH", path).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("ok: no fault in "), "{line}\n{report}");
    // The document names the sections of the report, so each must exist.
    for title in block_titles() {
        assert!(report.contains(&title), "the report has no `{title}`\n{report}");
    }
}

/// Titles of the test's sections in the document.
fn block_titles() -> Vec<String> {
    let text = block(&read("docs/hooks.md"), "text", "a full life cycle");
    let titles = text.lines().filter_map(|line| line.strip_prefix(['✓', '✗']));
    titles.map(|line| line.split('(').next().unwrap().trim().to_owned()).collect()
}

#[test]
fn every_link_leads_somewhere() {
    for path in documents() {
        let text = read(path.to_str().unwrap());
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let target = root().join(path.parent().unwrap()).join(file);
            assert!(target.exists(), "{}: {link}", path.display());
        }
    }
}

#[test]
fn the_example_hook_plays_the_demo_with_its_own_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(examples::built("my_hook"))
        .args(["demo", "--json"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("\"passed\": true"));
    // The hook ran and released: its folder exists, and the tenant is gone.
    assert_eq!(std::fs::read_dir(folder.path().join("tenants")).unwrap().count(), 0);
}

#[test]
fn the_demo_tells_the_whole_life() {
    let output = Command::new(SPID).arg("demo").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for word in [
        "createInstance",
        "upgradeInstance",
        "renewInstance",
        "expiredInstance",
        "releaseInstance",
        "frozen",
        "released",
        "<token>",
        "ok: ",
    ] {
        assert!(text.contains(word), "the demo does not show {word}\n{text}");
    }
    assert!(!text.contains("isvkey"));
}

#[test]
fn the_number_of_cases_is_the_one_that_is_told() {
    let count = format!("{} cases", spid::internals::lab::conformance::cases().len());
    for document in ["README.md", "CHANGELOG.md"] {
        assert!(read(document).contains(&count), "{document} does not say {count}");
    }
}
