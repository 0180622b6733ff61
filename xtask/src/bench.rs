//! `cargo xtask bench`: sets up and builds what the scenarios need, and runs them. They themselves are in benches/src/scenario/, run by
//! `pondhawk-bench`.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    setup::{self, Part},
    shell,
    steps::Steps,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenarios to run; all when not given.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with charts to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Small files and few rounds: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Build other people's transfer programs, too, and measure them beside ours: minutes more.
    #[arg(long)]
    rivals: bool,
    /// List the scenarios.
    #[arg(long)]
    list: bool,
}

/// What is built.
#[derive(Default)]
struct Built {
    wire: Option<PathBuf>,
    rival: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = shell::root()?;
    let target = shell::target_dir(&root);
    let bench = target.join("release/pondhawk-bench");
    let mut built = Built::default();
    let mut steps = Steps::new();
    if args.list {
        let ready = steps.run("build", || build_binaries(&root));
        ensure!(ready, "the scenarios are not built");
        return Err(Command::new(bench).arg("list").exec()).context("pondhawk-bench does not start");
    }
    let mut ready = steps.run("setup", || setup::prepare(&[Part::Build, Part::Bench]));
    ready = ready && steps.run("build", || build_binaries(&root));
    if ready && args.wants("peer-link") {
        ready = steps.run("build the wire bench", || {
            built.wire = Some(build_wire(&root)?);
            Ok(())
        });
        if ready && args.rivals {
            ready = steps.run("build the rivals", || {
                built.rival = Some(build_rival(&root, &target)?);
                Ok(())
            });
        }
    }
    steps.finish()?;
    ensure!(ready, "not everything that the scenarios need is there");
    // Becomes the bench: a signal sent to this process then reaches the one that has namespaces to clean up.
    let error = command(&bench, &target, args, &built)?.exec();
    Err(error).context("pondhawk-bench does not start")
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name || wanted == "all")
    }
}

/// Optimised also for a quick run: the lab deals with gigabytes.
fn build_binaries(root: &Path) -> Result<()> {
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release", "--bins"]);
    cargo.args(["--package=pondhawk", "--package=pondhawk-bench", "--package=pondhawk-scheduler"]);
    shell::run(&mut cargo)
}

fn build_wire(root: &Path) -> Result<PathBuf> {
    let mut cargo = shell::cargo(root);
    cargo.args(["bench", "--package=pondhawk", "--bench=wire", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo ended with {}", output.status);
    let messages = String::from_utf8(output.stdout).context("cargo's messages are UTF-8")?;
    executable(&messages, "wire").context("cargo names no executable of the wire bench")
}

/// Of the target with this name, among cargo's messages (The Cargo Book, "External tools").
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut built =
        messages.filter(|message| message["target"]["name"] == name && message["target"]["kind"][0] == "bench");
    built.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

fn build_rival(root: &Path, target: &Path) -> Result<PathBuf> {
    let folder = target.join("rivals");
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release", "--manifest-path=benches/rivals/Cargo.toml"]);
    shell::run(cargo.arg("--target-dir").arg(&folder))?;
    let path = folder.join("release/rival-iroh");
    if !path.is_file() {
        bail!("{} was not built", path.display());
    }
    Ok(path)
}

fn command(bench: &Path, target: &Path, args: &Args, built: &Built) -> Result<Command> {
    let here = std::env::current_dir().context("the working directory is gone")?;
    let mut command = Command::new(bench);
    command.arg("run").arg("--target").arg(target);
    let files = [
        ("--json", args.json.as_ref().map(|path| here.join(path))),
        ("--html", args.html.as_ref().map(|path| here.join(path))),
        ("--wire", built.wire.clone()),
        ("--rival", built.rival.clone()),
    ];
    for (option, path) in files {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    if args.quick {
        command.arg("--quick");
    }
    if args.names.is_empty() {
        command.arg("all")
    } else {
        command.args(&args.names)
    };
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(names: &[&str]) -> Args {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Args { names, json: Some("out.json".into()), html: None, quick: true, rivals: false, list: false }
    }

    #[test]
    fn no_name_means_all_and_what_is_built_is_handed_on() {
        let built = Built { wire: Some("deps/wire-1".into()), rival: None };
        let command = command(Path::new("bench"), Path::new("t"), &args(&[]), &built).expect("a folder");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(words[..3], ["run", "--target", "t"]);
        assert!(words.ends_with(&["--wire", "deps/wire-1", "--quick", "all"].map(str::to_owned)), "{words:?}");
        assert!(args(&[]).wants("peer-link") && args(&["peer-link"]).wants("peer-link"));
        assert!(!args(&["scheduler"]).wants("peer-link"));
    }

    #[test]
    fn the_bench_is_told_from_a_test_of_the_same_name() {
        let message = |kind: &str, path: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"wire","kind":["{kind}"]}},"executable":"{path}"}}"#
            )
        };
        let messages = format!("{}\nnoise\n{}\n", message("test", "/a"), message("bench", "/b"));
        assert_eq!(executable(&messages, "wire"), Some("/b".into()));
    }
}
