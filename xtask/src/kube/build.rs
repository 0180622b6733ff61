//! Kubernetes from Debian's source package: the version of Debian 12, with Debian's Go, and nothing from elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

const VERSION: &str = "v1.20.2";
const PROGRAMS: [&str; 4] = ["kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

const DISPATCHER: &str = "staging/src/k8s.io/apiserver/pkg/admission/plugin/webhook/mutating/dispatcher.go";

/// Where the programs are.
pub(super) struct Programs(PathBuf);

impl Programs {
    /// A command of one of them.
    pub(super) fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }

    /// What holds a pod's namespaces open.
    pub(super) fn pause(&self) -> PathBuf {
        self.0.join("pause")
    }
}

/// Builds what is not there yet, which takes some ten minutes.
pub(super) fn kubernetes(folder: &Path) -> Result<Programs> {
    let source = folder.join("src");
    let built = source.join("_output/local/go/bin");
    if PROGRAMS.iter().all(|program| built.join(program).exists()) && built.join("pause").exists() {
        return Ok(Programs(built));
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    if !source.exists() {
        fetch(folder)?;
    }
    let version = format!(
        "KUBE_GIT_COMMIT='0'\nKUBE_GIT_TREE_STATE='archive'\nKUBE_GIT_VERSION='{VERSION}'\nKUBE_GIT_MAJOR='1'\nKUBE_GIT_MINOR='20'\n"
    );
    fs::write(source.join(".version-file"), version).context("cannot write the version")?;
    let dispatcher = source.join(DISPATCHER);
    let text = fs::read_to_string(&dispatcher).context("the source is not Kubernetes'")?;
    fs::write(&dispatcher, with_standard_json(&text)).context("cannot change the source")?;
    let what = PROGRAMS.map(|program| format!("cmd/{program}")).join(" ");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut make = Command::new("make");
    make.current_dir(&source).arg(format!("WHAT={what}")).arg("GOLDFLAGS=-s -w");
    make.env("PATH", format!("/usr/lib/go-1.19/bin:{path}")).env("KUBE_GIT_VERSION_FILE", source.join(".version-file"));
    make.env("FORCE_HOST_GO", "y").env("CGO_ENABLED", "0").env("GOPROXY", "off");
    shell::run(&mut make)?;
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O2", "-o"]).arg(built.join("pause")).arg(source.join("build/pause/linux/pause.c"));
    // The program says its version with this.
    shell::run(cc.arg(format!("-DVERSION={VERSION}")))?;
    Ok(Programs(built))
}

/// From where this machine has its packages, with their sources.
fn fetch(folder: &Path) -> Result<()> {
    let (parts, lists) = (folder.join("apt"), folder.join("lists"));
    fs::create_dir_all(&parts).context("cannot create a folder for apt")?;
    fs::create_dir_all(lists.join("partial")).context("cannot create a folder for apt")?;
    let there = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    for path in there.chain([PathBuf::from("/etc/apt/sources.list")]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.file_name().unwrap_or_default();
        fs::write(parts.join(name), with_sources(&text)).context("cannot write apt's sources")?;
    }
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(folder).args(["-qq", "-o", "Dir::Etc::SourceList=/dev/null", "-o"]);
        apt.arg(format!("Dir::Etc::SourceParts={}", parts.display())).arg("-o");
        apt.arg(format!("Dir::State::Lists={}", lists.display())).args(words);
        apt
    };
    if let Err(error) = shell::run(&mut apt(&["update"])) {
        println!("  going on with what apt found: {error:#}");
    }
    shell::run(&mut apt(&["source", "--download-only", "kubernetes"]))?;
    let names = fs::read_dir(folder).context("the folder is gone")?.flatten().map(|entry| entry.path());
    let described = names.filter(|path| path.extension().is_some_and(|ending| ending == "dsc")).max();
    let described = described.context("apt brought no source package")?;
    shell::run(Command::new("dpkg-source").current_dir(folder).args(["--extract"]).arg(described).arg("src"))
}

/// Notes webhooks' patches down with Go's own JSON: the library that it has for it dates from before Go 1.18, under which it reads
/// maps that are not there, so that the API server ends with the first patch.
fn with_standard_json(text: &str) -> String {
    let own = "var encodingjson standard\n\ntype standard struct{}\n\n\
               func (standard) Marshal(v interface{}) ([]byte, error) { return stdjson.Marshal(v) }";
    let Some(at) = text.find("var encodingjson = json.CaseSensitiveJSONIterator()") else { return text.to_owned() };
    let (imports, rest) = text.split_at(at);
    let import = "\"k8s.io/apimachinery/pkg/runtime/serializer/json\"";
    let imports = imports.replace(import, &format!("stdjson \"encoding/json\"\n\t{import}"));
    imports + &rest.replace("var encodingjson = json.CaseSensitiveJSONIterator()", own)
}

/// The same sources, asked for source packages; in either of apt's two notations.
fn with_sources(text: &str) -> String {
    let line = |line: &str| match line {
        "Types: deb" => "Types: deb-src".to_owned(),
        line => line.strip_prefix("deb ").map_or_else(|| line.to_owned(), |rest| format!("deb-src {rest}")),
    };
    text.lines().map(|each| line(each) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_was_changed_stays_as_it_is() {
        let once = with_standard_json("var encodingjson = json.CaseSensitiveJSONIterator()\n");
        assert!(once.contains("stdjson.Marshal"));
        assert_eq!(with_standard_json(&once), once);
    }

    #[test]
    fn source_packages_come_from_where_packages_do() {
        assert_eq!(with_sources("Types: deb\nURIs: x\n"), "Types: deb-src\nURIs: x\n");
        assert_eq!(with_sources("# deb y\ndeb x bookworm main\n"), "# deb y\ndeb-src x bookworm main\n");
    }
}
