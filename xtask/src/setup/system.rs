//! Installing packages where the system is one that we know, and saying what to do where it is not.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::packages::Tool;
use crate::shell;

/// Another package manager may hold dpkg's lock; wait this long for it, in seconds.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";

/// Installs these tools on Debian 12; elsewhere, or without the right to, lists them.
pub(crate) fn provide(missing: &[&Tool]) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian_12(&release) {
        println!("  this is not Debian 12, so nothing is installed here. Missing:");
        list(missing);
        return Ok(());
    }
    match privilege() {
        Some(prefix) => install(prefix, missing),
        None => {
            println!("  neither root nor password-less sudo, so nothing is installed. Missing:");
            list(missing);
            let names: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
            println!("  as root: apt-get update && apt-get install --no-install-recommends {}", names.join(" "));
            Ok(())
        }
    }
}

fn list(missing: &[&Tool]) {
    for tool in missing {
        println!("    {:<24} {}", tool.package, tool.hint);
    }
}

fn is_debian_12(os_release: &str) -> bool {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"'))
    };
    value("ID") == Some("debian") && value("VERSION_ID") == Some("12")
}

/// The words to put before a command that needs root, or `None` when there is no way.
fn privilege() -> Option<&'static [&'static str]> {
    if shell::is_root() {
        return Some(&[]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    sudo.is_ok_and(|output| output.status.success()).then_some(&["sudo", "-n"])
}

fn install(prefix: &[&str], missing: &[&Tool]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    println!("  installing {}", names.join(" "));
    // A list that is hours old may name versions that the mirrors have dropped. One broken source among several fails the
    // update, and what we need may still come from the others.
    if let Err(error) = shell::run(&mut apt(prefix, &["-qq", "update"])) {
        println!("  going on with the package lists that are here: {error:#}");
    }
    let mut arguments = vec!["-qq", "install", "-y", "--no-install-recommends"];
    arguments.extend(names);
    shell::run(&mut apt(prefix, &arguments)).context("packages could not be installed")
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Command {
    let settings = ["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "RUNLEVEL=1"];
    let words = prefix
        .iter()
        .chain(&["env"])
        .chain(&settings)
        .chain(&["apt-get", "-o", LOCK_TIMEOUT, "-o", "Dpkg::Use-Pty=0"])
        .chain(arguments);
    let words: Vec<&str> = words.copied().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_12_counts_as_known() {
        assert!(is_debian_12("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n"));
        assert!(!is_debian_12("ID=debian\nVERSION_ID=\"13\"\n"));
        assert!(!is_debian_12("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12\"\n"));
        assert!(!is_debian_12(""));
    }
}
