//! Keeps the layout: who may import whom, who may name which crate, what every file begins with.
//!
//! The order of the modules is read from ARCHITECTURE.md, so that the table people read is the table
//! that holds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has said what it found"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, by its path from the root of the project.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    found
}

/// Sources of the three crates, each with the heading of its table in ARCHITECTURE.md.
const CRATES: [(&str, &str); 3] = [
    ("src", "### Rooms of `spid`"),
    ("crates/spid-core/src", "### Modules of `spid-core`"),
    ("crates/spid-hook/src", "### Modules of `spid-hook`"),
];

/// Every Rust file of the three crates.
fn all_sources() -> BTreeMap<PathBuf, String> {
    CRATES.iter().flat_map(|(folder, _)| sources(folder)).collect()
}

/// Ranks of the modules of one crate, from its table in ARCHITECTURE.md.
fn ranks(heading: &str) -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = text.split_once(heading).unwrap_or_else(|| panic!("ARCHITECTURE.md has no `{heading}`"));
    let table = table.split("\n#").next().unwrap();
    let mut ranks = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Ok(rank) = cells[1].parse::<u32>() else { continue };
        for name in cells[2].split('`').skip(1).step_by(2) {
            assert_eq!(ranks.insert(name.to_owned(), rank), None, "{name} has two ranks");
        }
    }
    ranks
}

/// Top-level module of a file; `None` for `lib.rs` and `main.rs`.
fn module_of(folder: &str, path: &Path) -> Option<String> {
    let inside = path.strip_prefix(folder).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    let name = first.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// What a file imports or names: paths as their first segments.
#[derive(Default)]
struct Names {
    paths: Vec<Vec<String>>,
}

impl Names {
    fn of(text: &str) -> Names {
        let mut names = Names::default();
        names.visit_file(&syn::parse_file(text).unwrap());
        names
    }

    fn uses(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.uses(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.paths.push(with(&name.ident)),
            syn::UseTree::Rename(name) => self.paths.push(with(&name.ident)),
            syn::UseTree::Glob(_) => self.paths.push(before.to_vec()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.uses(before, tree)),
        }
    }

    /// Paths inside macros, which the parser leaves as tokens.
    fn tokens(&mut self, stream: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in stream {
            match token {
                TokenTree::Ident(name) if colons == 2 || path.is_empty() => {
                    path.push(name.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() && colons < 2 => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) => {
                    self.paths.push(std::mem::replace(&mut path, vec![name.to_string()]));
                }
                TokenTree::Group(group) => {
                    self.paths.push(std::mem::take(&mut path));
                    self.tokens(group.stream());
                }
                _ => self.paths.push(std::mem::take(&mut path)),
            }
            colons = 0;
        }
        self.paths.push(path);
        self.paths.retain(|path| path.len() > 1);
    }

    /// The modules of our own crate that are named.
    fn own(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().filter(|path| path[0] == "crate").filter_map(|path| path.get(1)).map(String::as_str)
    }

    fn names_crate(&self, name: &str) -> bool {
        self.paths.iter().any(|path| path[0] == name)
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.uses(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

#[test]
fn a_module_imports_only_modules_of_a_lower_rank() {
    let mut wrong = Vec::new();
    for (folder, heading) in CRATES {
        let ranks = ranks(heading);
        let mut found = std::collections::BTreeSet::new();
        for (path, text) in sources(folder) {
            let Some(module) = module_of(folder, &path) else { continue };
            let own = *ranks.get(&module).unwrap_or_else(|| panic!("{heading} does not list `{module}`"));
            for other in Names::of(&text).own() {
                // Items of `lib.rs` itself have no rank.
                let Some(rank) = ranks.get(other) else { continue };
                if other != module && *rank >= own {
                    wrong.push(format!("{} ({own}) names crate::{other} ({rank})", path.display()));
                }
            }
            found.insert(module);
        }
        assert!(ranks.keys().all(|name| found.contains(name)), "{heading} lists a module that is not there");
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_root_crate_has_at_most_ten_rooms() {
    let rooms = ranks("### Rooms of `spid`");
    assert!(rooms.len() <= 10, "{rooms:?}");
    let entries: Vec<_> =
        std::fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(entries.len(), rooms.len() + 2, "src/ holds rooms, lib.rs and main.rs: {entries:?}");
}

#[test]
fn a_crate_depends_only_on_crates_below() {
    for (manifest, forbidden) in [
        ("crates/spid-hook/Cargo.toml", vec!["spid", "spid-core", "rusqlite", "tokio-rustls", "rustls"]),
        ("crates/spid-core/Cargo.toml", vec!["spid", "tokio", "hyper", "rusqlite", "rustix"]),
    ] {
        let text = std::fs::read_to_string(root().join(manifest)).unwrap();
        let dependencies = text.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(!forbidden.contains(&name), "{manifest} depends on {name}");
        }
    }
}

/// A hook author compiles `spid-hook` on any machine with Rust. The bounds are those of docs/hooks.md.
#[test]
fn a_hook_author_compiles_few_crates_and_no_c() {
    for (features, most) in [("", 40), ("http", 60)] {
        let output = std::process::Command::new(env!("CARGO"))
            .args(["tree", "--package", "spid-hook", "--edges", "normal,build", "--prefix", "none"])
            .args(["--format", "{lib}", "--offline", "--locked", "--features", features])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let crates: std::collections::BTreeSet<&str> = text
            .lines()
            .map(|line| line.trim_end_matches(" (*)").trim())
            .filter(|name| !name.is_empty())
            .collect();
        assert!(
            crates.contains("serde_json") && crates.len() <= most,
            "{features}: {} of {crates:?}",
            crates.len()
        );
        for compiler in ["cc", "cmake", "bindgen", "ring", "libsqlite3_sys"] {
            assert!(!crates.contains(compiler), "{features}: {compiler} needs a C compiler");
        }
    }
}

#[test]
fn siblings_of_one_kind_are_strangers() {
    for (folder, siblings) in [
        ("crates/spid-core/src", vec!["dialect", "lifecycle"]),
        ("crates/spid-core/src/dialect", vec!["alibaba", "generic", "jdcloud", "koogallery"]),
        ("src/store", vec!["rules", "sqlite"]),
        ("src/hooks", vec!["exec", "http", "log"]),
        ("src/serve", vec!["intake", "dispatch"]),
    ] {
        for (path, text) in sources(folder) {
            // A sibling may be a folder: then every file in it is the sibling.
            let own = path.strip_prefix(folder).unwrap().components().next().unwrap().as_os_str();
            let own = own.to_str().unwrap().trim_end_matches(".rs");
            if !siblings.contains(&own) {
                continue;
            }
            for path_named in &Names::of(&text).paths {
                // A path inside of another crate cannot name the sibling.
                let Some(named) = path_named.iter().find(|named| siblings.contains(&named.as_str())) else {
                    continue;
                };
                let is_own_crate =
                    matches!(path_named[0].as_str(), "crate" | "super" | "self") || path_named[0] == *named;
                assert!(!is_own_crate || named == own, "{} names its sibling {named}", path.display());
            }
        }
    }
}

#[test]
fn a_dependency_is_named_where_it_belongs() {
    let files: Vec<_> = all_sources().into_iter().map(|(path, text)| (path, Names::of(&text))).collect();
    for (name, homes) in [
        ("rusqlite", vec!["src/store/sqlite"]),
        ("clap", vec!["src/cli"]),
        ("hyper", vec!["src/net", "crates/spid-hook/src/http"]),
        ("hyper_util", vec!["src/net", "crates/spid-hook/src/http"]),
        ("http_body_util", vec!["src/net", "crates/spid-hook/src/http"]),
        ("tokio_rustls", vec!["src/net"]),
        ("rustls_native_certs", vec!["src/net"]),
        ("httpdate", vec!["src/net"]),
        ("listenfd", vec!["src/serve/supervisor"]),
        ("chacha20poly1305", vec!["src/store/encryption", "crates/spid-hook/src/http"]),
        (
            "hmac",
            vec![
                "crates/spid-core/src/signature",
                "crates/spid-hook/src/webhook",
                "crates/spid-hook/src/http",
            ],
        ),
        ("md5", vec!["crates/spid-core/src/signature"]),
        (
            "base64",
            vec![
                "crates/spid-core/src/signature",
                "crates/spid-hook/src/webhook",
                "crates/spid-hook/src/http",
            ],
        ),
        ("aes", vec!["crates/spid-core/src/signature"]),
        ("cbc", vec!["crates/spid-core/src/signature"]),
        ("sha1", vec!["crates/spid-core/src/signature"]),
        ("subtle", vec!["crates/spid-core/src/signature", "crates/spid-hook/src"]),
        ("serde_urlencoded", vec!["crates/spid-core/src/query"]),
        ("tracing_subscriber", vec!["src/cli"]),
        ("mimalloc", vec!["src/main"]),
    ] {
        let mut at_home = false;
        for (path, names) in &files {
            if names.names_crate(name) {
                let is_home =
                    |home: &&str| path.starts_with(home) || path.with_extension("").starts_with(home);
                assert!(
                    homes.iter().any(is_home),
                    "{} names {name}, which belongs in {homes:?}",
                    path.display()
                );
                at_home = true;
            }
        }
        assert!(at_home, "{name} is named nowhere: is it still a dependency?");
    }
}

#[test]
fn only_the_command_line_names_the_lab() {
    for (path, text) in sources("src") {
        let is_lab = Names::of(&text).own().any(|other| other == "lab");
        assert!(
            !is_lab || path.starts_with("src/cli") || path.starts_with("src/lab") || path.ends_with("lib.rs"),
            "{} names the lab",
            path.display()
        );
    }
}

#[test]
fn nothing_below_config_sees_the_configuration() {
    let ranks = ranks("### Rooms of `spid`");
    for (path, text) in sources("src") {
        let Some(module) = module_of("src", &path) else { continue };
        if ranks[&module] < ranks["config"] {
            assert!(Names::of(&text).own().all(|other| other != "config"), "{} sees config", path.display());
        }
    }
}

/// Doc comments of a file, each joined into one text, with the line of its first line.
fn doc_comments(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        match (doc, found.last_mut()) {
            (Some(doc), Some((_, before))) if is_inside => {
                before.push(' ');
                before.push_str(doc.trim());
            }
            (Some(doc), _) => found.push((index + 1, doc.trim().to_owned())),
            (None, _) => {}
        }
        is_inside = doc.is_some();
    }
    found
}

/// A reader looks for the name of the thing first: "Options for the dispatcher.", "Returns the instance, if …".
#[test]
fn a_doc_comment_opens_with_a_noun_or_a_verb() {
    let never = [
        "What",
        "Whether",
        "How",
        "Who",
        "Whom",
        "Whose",
        "Where",
        "Why",
        "When",
        "Which",
        "Says whether",
        "The same as",
    ];
    let rarely = ["It", "Its", "That", "As", "One"];
    let (mut wrong, mut rare, mut all) = (Vec::new(), 0, 0);
    for (path, text) in all_sources() {
        for (line, comment) in doc_comments(&text) {
            let opens = |words: &[&str]| {
                words.iter().any(|word| {
                    comment
                        .strip_prefix(word)
                        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
                })
            };
            all += 1;
            rare += usize::from(opens(&rarely));
            if opens(&never) {
                wrong.push(format!("{}:{line}: {comment}", path.display()));
            }
        }
    }
    assert!(all > 3_000, "the reader of doc comments found only {all}");
    assert!(rare * 50 < all, "{rare} of {all} doc comments open with a pronoun");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Pronouns that stand for a person or a thing the reader has to guess.
#[test]
fn no_pronoun_stands_for_a_person() {
    let words = ["some", "no", "any", "every"].map(|word| format!("{word}body"));
    let more = ["who", "what", "which"].map(|word| format!("{word}ever"));
    let banned: Vec<String> = words.into_iter().chain(more).chain(["who".to_owned() + "m"]).collect();
    let mut wrong = Vec::new();
    for (path, text) in all_sources() {
        for (index, line) in text.lines().enumerate() {
            let mut of_the_line = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if of_the_line.any(|word| banned.iter().any(|banned| word.eq_ignore_ascii_case(banned))) {
                wrong.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} lines\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_file_opens_with_its_why() {
    for (path, text) in all_sources().into_iter().chain(sources("tests")).chain(sources("examples")) {
        assert!(text.starts_with("//! "), "{} does not begin with `//!`", path.display());
    }
}

#[test]
fn main_is_parse_run_exit_code() {
    let lines = std::fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    assert!(lines < 20, "src/main.rs has {lines} lines");
}

/// The longest function, in lines.
#[derive(Default)]
struct Longest {
    lines: usize,
    name: String,
}

impl Longest {
    fn see(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let span = block.brace_token.span;
        let lines = span.close().end().line - span.open().start().line + 1;
        if lines > self.lines {
            *self = Longest { lines, name: signature.ident.to_string() };
        }
    }
}

impl<'ast> Visit<'ast> for Longest {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.see(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.see(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}

#[test]
fn functions_are_short() {
    for (path, text) in all_sources() {
        let mut longest = Longest::default();
        longest.visit_file(&syn::parse_file(&text).unwrap());
        assert!(longest.lines <= 70, "{}: `{}` has {} lines", path.display(), longest.name, longest.lines);
    }
}

#[test]
fn no_mutable_statics() {
    for (path, text) in all_sources() {
        assert!(!text.contains("static mut "), "{}", path.display());
        for line in text.lines().filter(|line| line.trim_start().starts_with("static ")) {
            let cell = ["Mutex", "RwLock", "Atomic", "OnceLock", "LazyLock", "Cell"]
                .iter()
                .any(|cell| line.contains(cell));
            assert!(!cell, "{}: {line}", path.display());
        }
    }
}

/// Cargo looks for no test programs by itself here, so a file that nothing includes would never be compiled.
#[test]
fn every_test_file_belongs_to_a_program() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let texts = sources("tests");
    for path in texts.keys().filter(|path| !path.starts_with("tests/faultfs")) {
        let (folder, name) = (path.parent().unwrap(), path.file_stem().unwrap().to_str().unwrap());
        let is_declared = match name {
            "mod" => continue,
            "main" | "tidy" => manifest.contains(&format!("path = \"{}\"", path.display())),
            _ => [folder.join("main.rs"), folder.join("mod.rs"), folder.with_extension("rs")]
                .iter()
                .any(|parent| texts.get(parent).is_some_and(|text| text.contains(&format!("mod {name};\n")))),
        };
        assert!(is_declared, "{} is part of no test program", path.display());
    }
}

/// A program that was written by the process that starts it may be "busy": another test has forked meanwhile. And a
/// program that says nothing must not be waited for without end.
#[test]
fn programs_are_written_and_heard_in_one_place_each() {
    let written =
        [["set_permi", "ssions"].concat(), ["from_", "mode("].concat(), ["fs::copy(exam", "ples"].concat()];
    let heard = [
        ["stdout.take().unwrap()).read", "_line"].concat(),
        ["stdout.as_mut().unwrap()).read", "_line"].concat(),
    ];
    for (path, text) in sources("tests") {
        let found = written.iter().find(|word| text.contains(word.as_str()));
        assert!(found.is_none(), "{} has {found:?}: use tests/it/support/executable.rs", path.display());
        let found = heard.iter().find(|word| text.contains(word.as_str()));
        assert!(found.is_none(), "{} has {found:?}: use tests/it/support/said.rs", path.display());
    }
}

/// This test program, run by the watchdog as cargo would.
fn watched(seconds: &str, test: &str) -> std::process::Output {
    std::process::Command::new(root().join("tests/watchdog"))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .env("SPID_TEST_SECONDS", seconds)
        .env("SPID_TEST_HANGS", "1")
        .output()
        .unwrap()
}

#[test]
#[ignore = "run by the tests of the watchdog"]
fn hangs() {
    while std::env::var_os("SPID_TEST_HANGS").is_some() {
        std::thread::park();
    }
}

#[test]
#[ignore = "run by the tests of the watchdog"]
fn ends() {}

#[test]
fn a_test_that_hangs_is_named_and_ends_the_run() {
    let output = watched("1", "hangs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(9), "{said}");
    assert!(said.contains("watchdog: ") && said.lines().any(|line| line == "hangs"), "{said}");
    let output = watched("60", "ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let config = std::fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
    assert!(config.contains("runner = \"tests/watchdog\""), "cargo does not use it");
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut texts = all_sources();
    texts.extend(sources("tests"));
    texts.extend(sources("examples"));
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Cargo.toml", ".ci/run"] {
        texts.insert(name.into(), std::fs::read_to_string(root().join(name)).unwrap());
    }
    let banned = [["/wo", "rk/"].concat(), ["../sha", "red"].concat(), ["/ro", "ot/"].concat()];
    for (path, text) in texts {
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{} names {word}", path.display());
        }
    }
}

#[test]
fn the_reader_of_imports_sees_through_groups_paths_and_macros() {
    let text = "use crate::{a::{b, c}, d as e};\nfn f() -> crate::g::H { let _ = vec![crate::i::J]; x(rusqlite::k) }\n\
                #[cfg(test)] mod tests { use crate::z; }";
    let names = Names::of(text);
    let mut own: Vec<&str> = names.own().collect();
    own.sort_unstable();
    own.dedup();
    assert_eq!(own, ["a", "d", "g", "i"]);
    assert!(names.names_crate("rusqlite") && !names.names_crate("clap"));
}
