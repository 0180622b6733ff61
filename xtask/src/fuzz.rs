//! `cargo xtask fuzz`: runs the fuzz targets of peer/fuzz with libFuzzer, on the stable tool chain and without cargo-fuzz.

mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell;
use report::Report;

/// The package of the targets.
const PACKAGE: &str = "pondhawk-fuzz";
/// Adds the instrumentation that libFuzzer needs to the workspace's own crates.
const WRAPPER: &str = "peer/fuzz/wrapper";
/// The corpus in the tree: a folder for each target.
const CORPUS: &str = "peer/fuzz/corpus";
/// Bytes of an input at most.
const MAX_LEN: usize = 4096;
/// Seconds after which an input counts as one that hangs.
const TIMEOUT_SECONDS: u32 = 10;
/// Memory of a target at most, in MiB.
const MEMORY_MIB: u32 = 2048;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target to run; all of them in turn if it is left out.
    target: Option<String>,
    /// Run the target on these inputs only, as to see a finding again.
    #[arg(requires = "target")]
    inputs: Vec<PathBuf>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Print the names of the targets.
    #[arg(long)]
    list: bool,
    /// Put inputs that cover more than the corpus in the tree does into it, instead of fuzzing.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = shell::root()?;
    let names = names(&root)?;
    if args.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let chosen = match &args.target {
        Some(target) if !names.contains(target) => bail!("{target} is not a target: `cargo xtask fuzz --list`"),
        Some(target) => vec![target.clone()],
        None => names,
    };
    let targets = build(&root, &chosen)?;
    if args.keep {
        return targets.iter().try_for_each(|target| target.keep(&root));
    }
    if !args.inputs.is_empty() {
        return targets.iter().try_for_each(|target| target.replay(&args.inputs));
    }
    fuzz(&root, &targets, args.seconds)
}

/// Runs every target for so long, as `cargo xtask test` does.
pub(crate) fn run_all(seconds: u32) -> Result<()> {
    run(&Args { target: None, inputs: Vec::new(), seconds, list: false, keep: false })
}

fn names(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("peer/fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Dependencies come from the ordinary build; the wrapper compiles the workspace's own crates anew.
fn build(root: &Path, names: &[String]) -> Result<Vec<Target>> {
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--package", PACKAGE, "--features", "libfuzzer"]);
    for name in names {
        cargo.args(["--bin", name]);
    }
    cargo.env("RUSTC_WORKSPACE_WRAPPER", root.join(WRAPPER));
    shell::run(&mut cargo)?;
    let dir = shell::target_dir(root);
    let target = |name: &String| Target {
        name: name.clone(),
        program: dir.join("debug").join(name),
        corpus: dir.join("fuzz/corpus").join(name),
        seeds: root.join(CORPUS).join(name),
        artifacts: dir.join("fuzz/artifacts").join(name),
        log: dir.join("fuzz").join(format!("{name}.log")),
    };
    Ok(names.iter().map(target).collect())
}

fn fuzz(root: &Path, targets: &[Target], seconds: u32) -> Result<()> {
    println!("{}", report::HEADING);
    let mut found = Vec::new();
    for target in targets {
        let report = target.fuzz(seconds)?;
        println!("{}", report.line(&target.name));
        if let Some(finding) = report.finding {
            println!("{}\n", finding.message);
            let input =
                finding.input.as_ref().map(|path| path.strip_prefix(root).unwrap_or(path).display().to_string());
            found.push(format!("cargo xtask fuzz {} {}", target.name, input.unwrap_or_default()));
        }
    }
    ensure!(found.is_empty(), "{} found something; to see it again:\n{}", found.len(), found.join("\n"));
    Ok(())
}

/// A target that is built.
struct Target {
    name: String,
    program: PathBuf,
    /// What earlier runs found to cover more; not in the tree.
    corpus: PathBuf,
    /// The corpus in the tree.
    seeds: PathBuf,
    /// Where inputs go that fail.
    artifacts: PathBuf,
    /// What libFuzzer said in the last run.
    log: PathBuf,
}

impl Target {
    fn fuzz(&self, seconds: u32) -> Result<Report> {
        for dir in [&self.corpus, &self.artifacts] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = self.command();
        command.args([format!("-max_total_time={seconds}"), format!("-max_len={MAX_LEN}")]);
        command.args(["-print_final_stats=1", "-use_value_profile=1", "-reload=0"]);
        command.args([&self.corpus, &self.seeds]).stdout(Stdio::null()).stderr(log);
        let status = command.status().with_context(|| format!("cannot start {}", self.program.display()))?;
        let text = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(Report::read(&String::from_utf8_lossy(&text), status.success()))
    }

    fn replay(&self, inputs: &[PathBuf]) -> Result<()> {
        shell::run(self.command().args(inputs))
    }

    /// libFuzzer copies the smallest inputs that add to the coverage of the first folder.
    fn keep(&self, root: &Path) -> Result<()> {
        fs::create_dir_all(&self.corpus).with_context(|| format!("cannot create {}", self.corpus.display()))?;
        let mut command = self.command();
        command.args(["-merge=1", "-use_value_profile=0"]).arg(format!("-max_len={MAX_LEN}"));
        shell::run(command.args([&self.seeds, &self.corpus]).stderr(Stdio::null()).current_dir(root))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("-artifact_prefix={}/", self.artifacts.display()));
        command.args([format!("-timeout={TIMEOUT_SECONDS}"), format!("-rss_limit_mb={MEMORY_MIB}")]);
        command.env("RUST_BACKTRACE", "0");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_files_of_their_folder() {
        let names = names(&shell::root().expect("tests run inside the tree")).expect("the folder is there");
        assert!(names.iter().any(|name| name == "request_head"), "{names:?}");
    }
}
