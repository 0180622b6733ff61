//! The rules for the tree as a whole and for files that aren't Rust.

use std::collections::BTreeSet;
use std::path::Path;

use super::{File, Violation};

/// What may stand at the root of the repository.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    ".rustfmt.toml",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "peer",
    "peer-ebpf",
    "proto",
    "rust-toolchain.toml",
    "scheduler",
    "xtask",
];

/// Directories of the machine that somebody worked on.
const MACHINE: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Settings that tie the tree to one package mirror.
const MIRRORS: &[&str] = &[
    concat!("index", "-url"),
    concat!("PIP_IN", "DEX_URL"),
    concat!("PIP_FIND", "_LINKS"),
    concat!("replace", "-with"),
    concat!("GOPROXY", "=http"),
    concat!("npm config set", " registry"),
];

/// The one place that dependencies come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn check(root: &Path, paths: &[String], files: &[File]) -> Vec<Violation> {
    let mut found = strangers(paths);
    for file in files {
        found.extend(machine_paths(file));
        found.extend(mirrors(file));
        if file.path.ends_with("Cargo.lock") {
            found.extend(foreign_sources(file));
        }
        if file.path.ends_with(".md") {
            found.extend(dead_links(root, file));
        } else if !file.path.ends_with(".rs") {
            found.extend(leftovers(file));
        }
    }
    found
}

fn strangers(paths: &[String]) -> Vec<Violation> {
    let tops: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').next()).collect();
    let strangers = tops.into_iter().filter(|top| !ROOT.contains(top));
    strangers.map(|top| at(top, 1, "has no place at the root of the repository")).collect()
}

fn machine_paths(file: &File) -> Vec<Violation> {
    let hits = lines(file).flat_map(|(line, text)| {
        let named = MACHINE.iter().filter(|dir| names_directory(text, dir));
        named.map(move |dir| at(&file.path, line, format!("`{dir}..` is a path of one machine")))
    });
    hits.collect()
}

/// Whether a path that starts with `dir` stands in the text, rather than a longer path or URL that contains it.
fn names_directory(text: &str, dir: &str) -> bool {
    text.match_indices(dir).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-/}~$)*".contains(c)))
    })
}

fn mirrors(file: &File) -> Vec<Violation> {
    let hits = lines(file).filter_map(|(line, text)| {
        let setting = MIRRORS.iter().find(|setting| text.contains(**setting))?;
        Some(at(&file.path, line, format!("`{setting}` ties the tree to a package mirror")))
    });
    hits.collect()
}

fn foreign_sources(file: &File) -> Vec<Violation> {
    let hits = lines(file).filter_map(|(line, text)| {
        let source = text.strip_prefix("source = ")?.trim_matches('"');
        (source != CRATES_IO).then(|| at(&file.path, line, format!("`{source}` is not crates.io")))
    });
    hits.collect()
}

fn leftovers(file: &File) -> Vec<Violation> {
    let hits = lines(file).filter_map(|(line, text)| {
        let (_, comment) = text.split_once('#')?;
        let word = ["TODO", "FIXME"].into_iter().find(|word| comment.contains(word))?;
        Some(at(&file.path, line, format!("{word}: finish it, or say in an issue what is left")))
    });
    hits.collect()
}

/// Relative links whose file doesn't exist. Code, fenced or inline, holds no links.
fn dead_links(root: &Path, file: &File) -> Vec<Violation> {
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    let mut fenced = false;
    for (line, text) in lines(file) {
        if text.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for target in links(&without_inline_code(text)) {
            let path = target.split('#').next().unwrap_or_default();
            let full = match path.strip_prefix('/') {
                Some(absolute) => root.join(absolute),
                None => root.join(folder).join(path),
            };
            if !path.is_empty() && !full.exists() {
                found.push(at(&file.path, line, format!("the link to `{target}` leads nowhere")));
            }
        }
    }
    found
}

/// The targets of the Markdown links of a line that point into the tree.
fn links(text: &str) -> Vec<String> {
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let reference = text.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    let inside = |target: &&str| !target.contains("://") && !target.starts_with("mailto:");
    inline.chain(reference).filter(inside).map(str::to_owned).collect()
}

fn without_inline_code(text: &str) -> String {
    // A link's text may be code, so only what stands between backticks goes, and an odd backtick is text.
    let pieces: Vec<&str> = text.split('`').collect();
    if pieces.len().is_multiple_of(2) { text.to_owned() } else { pieces.into_iter().step_by(2).collect() }
}

fn lines(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.text.lines().enumerate().map(|(index, text)| (index + 1, text))
}

fn at(path: &str, line: usize, message: impl Into<String>) -> Violation {
    Violation { path: path.to_owned(), line, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn shown(found: &[Violation]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_stranger_at_the_root_is_reported_once() {
        let paths = ["notes/a.md", "notes/b.md", "peer/src/lib.rs"].map(str::to_owned);
        assert_eq!(shown(&strangers(&paths)), ["notes:1: has no place at the root of the repository"]);
    }

    #[test]
    fn paths_of_a_machine_are_reported_but_not_the_urls_and_variables_that_look_like_them() {
        let bad = format!("ok\ncp {}x y\n", MACHINE[0]);
        assert_eq!(machine_paths(&file("a.sh", &bad)).len(), 1);
        assert_eq!(machine_paths(&file("a.sh", &bad))[0].line, 2);
        let good = format!("https://host{}x and $DIR{}y and target{}z\n", MACHINE[0], MACHINE[1], MACHINE[2]);
        assert_eq!(shown(&machine_paths(&file("a.sh", &good))), Vec::<String>::new());
    }

    #[test]
    fn a_setting_for_a_package_mirror_is_reported() {
        assert_eq!(mirrors(&file("a.sh", &format!("pip install --{} x\n", MIRRORS[0]))).len(), 1);
        assert!(mirrors(&file("a.sh", "pip install x\n")).is_empty());
    }

    #[test]
    fn a_locked_dependency_from_elsewhere_is_reported() {
        let lock = file("Cargo.lock", &format!("source = \"{CRATES_IO}\"\nsource = \"git+https://example.org/x#1\"\n"));
        assert_eq!(shown(&foreign_sources(&lock)), ["Cargo.lock:2: `git+https://example.org/x#1` is not crates.io"]);
    }

    #[test]
    fn leftovers_in_comments_of_scripts_are_reported() {
        assert_eq!(leftovers(&file("a.toml", concat!("x = 1 # TO", "DO\n"))).len(), 1);
        assert!(leftovers(&file("a.toml", concat!("x = \"TO", "DO\"\n"))).is_empty());
    }

    #[test]
    fn dead_relative_links_are_reported_and_living_ones_are_not() {
        let root = crate::shell::root().expect("tests run inside the tree");
        let text = "[a](src/main.rs) [b](nowhere.md#x) [c](https://example.org) [d](#here) `[e](gone.md)`\n\
                    ```\n[f](gone.md)\n```\n[g](/Cargo.toml)\n[`h`](gone.md \"title\")\n[i]: also-gone.md\n";
        let found = shown(&dead_links(&root, &file("xtask/README.md", text)));
        let expected = [(1, "nowhere.md#x"), (6, "gone.md"), (7, "also-gone.md")]
            .map(|(line, target)| format!("xtask/README.md:{line}: the link to `{target}` leads nowhere"));
        assert_eq!(found, expected);
    }
}
