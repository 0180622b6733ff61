//! `cargo xtask tidy`: the rules of the tree that neither the compiler nor clippy knows.
//!
//! Every tracked file is read once; all violations are collected and printed as `file:line: message`. The tables that say
//! which module may do what are in [`rules`]; [`source`] tells code from comments and strings; [`tree`] holds the rules
//! about files that aren't Rust.

mod rules;
mod source;
mod tree;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    /// Counted from 1.
    line: usize,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A tracked file that holds text.
struct File {
    /// Relative to the root, with forward slashes.
    path: String,
    text: String,
}

pub(crate) fn run() -> Result<()> {
    let root = shell::root()?;
    let paths = tracked(&root)?;
    let files = read(&root, &paths)?;
    let mut found = tree::check(&root, &paths, &files);
    let sources = files.iter().filter(|file| file.path.ends_with(".rs"));
    found.extend(sources.flat_map(|file| rules::check(&source::Source::new(&file.path, &file.text))));
    found.sort();
    for violation in &found {
        println!("{violation}");
    }
    if !found.is_empty() {
        bail!("{} violations in {} files", found.len(), files.len());
    }
    println!("  {} files are tidy", files.len());
    Ok(())
}

/// The files that git tracks or would add. In a tree without git's metadata (a release archive) every file outside `target/` counts.
fn tracked(root: &Path) -> Result<Vec<String>> {
    if !root.join(".git").exists() {
        let mut paths = Vec::new();
        walk(root, root, &mut paths)?;
        return Ok(paths);
    }
    let mut git = Command::new("git");
    // The tree may belong to another user, as in a container that mounts it; reading the list is harmless.
    git.current_dir(root).args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let list = shell::output(&mut git)?;
    Ok(list.split_terminator('\0').map(str::to_owned).collect())
}

fn walk(root: &Path, dir: &Path, paths: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let relative =
            path.strip_prefix(root).expect("entries of a directory lie below it").to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if relative != "target" {
                walk(root, &path, paths)?;
            }
        } else {
            paths.push(relative);
        }
    }
    Ok(())
}

/// Reads the files that hold text; binary ones, and those deleted in the work tree, are left out.
fn read(root: &Path, paths: &[String]) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for path in paths {
        let full = root.join(path);
        if !full.is_file() {
            continue;
        }
        let bytes = std::fs::read(&full).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes)
            && !text.contains('\0')
        {
            files.push(File { path: path.clone(), text });
        }
    }
    Ok(files)
}
