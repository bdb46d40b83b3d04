#!/usr/bin/env python3
"""Figures of style and size of the sources, as a table: tests/style.py [--tests SECONDS].

Lines and functions leave out `#[cfg(test)]` modules and files of tests. Comments count as doc comments (`///`, `//!`)
or plain comments (`//`). `tests/tidy.rs` keeps the openers at zero; this script shows the rest of the figures, to compare
one version with the next. The number of published items needs `cargo doc --no-deps`; without it the line is missing.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPENERS = re.compile(r"(What|Whether|How|Where|Why|Who|Whom|Whose|When|Which)\b")
PRONOUNS = re.compile(r"\b(some|no|any|every)body\b|\b(who|what|which)ever\b|\bwhom\b", re.I)
FUNCTION = re.compile(r"\s*(pub(\([^)]*\))? )?(const )?(async )?fn \w+")
CLOSURE = re.compile(r"\blet (mut )?\w+ = (move )?\|")


def sources():
    for top in [ROOT / "src", *sorted(ROOT.glob("crates/*/src"))]:
        for path in sorted(top.rglob("*.rs")):
            if path.name != "tests.rs":
                yield path


def without_tests(lines):
    """The lines before the first `#[cfg(test)]` module; tests are at the end of a file here."""
    for index, line in enumerate(lines):
        if line.startswith("#[cfg(test)]") and index + 1 < len(lines) and "mod " in lines[index + 1]:
            return lines[:index]
    return lines


def read():
    figures = dict(files=0, lines=0, code=0, functions=0, closures=0, doc=0, plain=0, blocks=0, openers=0, words=0, pronouns=0)
    for path in sources():
        lines = without_tests(path.read_text().splitlines())
        figures["files"] += 1
        figures["lines"] += len(lines)
        inside = False
        for line in lines:
            text = line.strip()
            doc = text.startswith(("///", "//!"))
            if doc:
                figures["doc"] += 1
                words = text[3:].strip()
                figures["words"] += len(words.split())
                figures["pronouns"] += len(PRONOUNS.findall(words))
                if not inside:
                    figures["blocks"] += 1
                    figures["openers"] += bool(OPENERS.match(words))
            elif text.startswith("//"):
                figures["plain"] += 1
            elif text:
                figures["code"] += 1
                figures["functions"] += bool(FUNCTION.match(line))
                figures["closures"] += bool(CLOSURE.search(line))
            inside = doc
    return figures


def crates(*features):
    command = ["cargo", "tree", "-p", "spid-hook", "-e", "normal", "--prefix", "none", "--locked", *features]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return len({line.split(" (")[0] for line in output.splitlines()} - {""}) - 1


def published():
    pages = [ROOT / f"target/doc/{name}/all.html" for name in ("spid", "spid_hook")]
    if all(page.exists() for page in pages):
        yield "published items", sum(len(re.findall(r"<li>", page.read_text())) for page in pages)


def executables():
    manifest = (ROOT / "Cargo.toml").read_text()
    return manifest.count("[[test]]") + 1 + len(list(ROOT.glob("crates/*")))


def main():
    figures = read()
    rows = [
        ("files", figures["files"]),
        ("lines without tests", figures["lines"]),
        ("code lines (no blanks, no comments)", figures["code"]),
        ("functions", figures["functions"]),
        ("local closures per 1,000 lines", f"{1000 * figures['closures'] / figures['lines']:.1f}"),
        ("doc comments, share of lines", f"{100 * figures['doc'] / figures['lines']:.1f} %"),
        ("plain comments, share of lines", f"{100 * figures['plain'] / figures['lines']:.1f} %"),
        ("doc comments that open with what, whether, how …", f"{100 * figures['openers'] / figures['blocks']:.1f} %"),
        ("somebody, nobody, whoever … per 1,000 words", f"{1000 * figures['pronouns'] / figures['words']:.2f}"),
        ("entries of src/", len(list((ROOT / "src").iterdir()))),
        *published(),
        ("crates a hook author compiles", crates()),
        ("crates with the feature `http`", crates("--features", "http")),
        ("test executables", executables()),
    ]
    if "--tests" in sys.argv:
        rows.append(("seconds of `cargo test`, once built", sys.argv[sys.argv.index("--tests") + 1]))
    print("| figure | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


main()
