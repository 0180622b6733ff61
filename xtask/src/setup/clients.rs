//! What comes from PyPI, the Hub's own clients first, each in a virtual environment of its own under `target/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};

use super::Part;
use crate::shell;

/// A client and what pip installs for it.
pub(crate) struct Client {
    /// The directory under `target/clients/`.
    pub(crate) name: &'static str,
    pins: &'static [&'static str],
    parts: &'static [Part],
}

/// Every version that the tests promise to work with: the oldest and the newest of each HTTP stack that the Hub's client had.
pub(crate) const CLIENTS: &[Client] = &[
    Client { name: "hf-0.17.1", pins: &["huggingface_hub==0.17.1", "requests==2.31.0"], parts: &[Part::Test] },
    Client { name: "hf-0.36", pins: &["huggingface_hub==0.36.2"], parts: &[Part::Test, Part::Demo] },
    Client { name: "hf-1", pins: &["huggingface_hub==1.33.0"], parts: &[Part::Test] },
    Client {
        name: "hf-2",
        pins: &["huggingface_hub==2.4.0"],
        parts: &[Part::Test, Part::Demo, Part::Bench, Part::Kube],
    },
    Client { name: "hf-transfer", pins: &["huggingface_hub==0.36.2", "hf_transfer==0.1.9"], parts: &[Part::Test] },
    Client { name: "hf-xet", pins: &["huggingface_hub==2.4.0", "hf_xet==1.8.0"], parts: &[Part::Test] },
    // No client: what checks the Helm chart.
    Client {
        name: "chart",
        pins: &["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"],
        parts: &[Part::Chart, Part::Test],
    },
];

impl Client {
    pub(crate) fn wanted_by(&self, parts: &[Part]) -> bool {
        self.parts.iter().any(|part| parts.contains(part))
    }

    fn stamp(&self) -> String {
        self.pins.join("\n") + "\n"
    }
}

/// Installs the clients that are not there yet, side by side: they wait for the network most of the time.
pub(crate) fn install(target: &Path, clients: &[&Client]) -> Result<()> {
    let stale: Vec<&Client> = clients.iter().filter(|client| !is_current(target, client)).copied().collect();
    if stale.is_empty() {
        println!("  Python clients: {} in place", clients.len());
        return Ok(());
    }
    if !shell::on_path("python3") {
        println!("  no python3, so no Python clients: the tests that need them will say so");
        return Ok(());
    }
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = stale.iter().map(|client| scope.spawn(|| install_one(target, client))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("an installing thread panicked")))
            .collect::<Vec<_>>()
    });
    results.into_iter().try_for_each(|result| result?)
}

fn directory(target: &Path, client: &Client) -> PathBuf {
    target.join("clients").join(client.name)
}

fn is_current(target: &Path, client: &Client) -> bool {
    let dir = directory(target, client);
    let stamp = std::fs::read_to_string(dir.join("stamp"));
    stamp.is_ok_and(|stamp| stamp == client.stamp()) && dir.join("bin/python").exists()
}

fn install_one(target: &Path, client: &Client) -> Result<()> {
    let started = Instant::now();
    let dir = directory(target, client);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    let mut pip = Command::new(dir.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]).args(client.pins);
    quiet(&mut pip).with_context(|| format!("client {}", client.name))?;
    // Written last: an environment that was interrupted half-way has no stamp and is made anew.
    std::fs::write(dir.join("stamp"), client.stamp()).context("cannot write the stamp")?;
    println!("  client {}: {} in {:.1} s", client.name, client.pins.join(" "), started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs without output unless it fails: several of these run at once.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_exact_and_every_name_is_used_once() {
        let mut names: Vec<&str> = CLIENTS.iter().map(|client| client.name).collect();
        assert!(CLIENTS.iter().flat_map(|client| client.pins).all(|pin| pin.contains("==")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CLIENTS.len());
    }

    #[test]
    fn an_environment_whose_stamp_names_other_versions_is_stale() {
        let target = std::env::temp_dir().join(format!("pondhawk-xtask-stamp-{}", std::process::id()));
        let client = &CLIENTS[0];
        let dir = directory(&target, client);
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        std::fs::write(dir.join("bin/python"), "").unwrap();
        std::fs::write(dir.join("stamp"), client.stamp()).unwrap();
        assert!(is_current(&target, client));
        std::fs::write(dir.join("stamp"), "huggingface_hub==0.0.1\n").unwrap();
        assert!(!is_current(&target, client));
        std::fs::remove_dir_all(&target).unwrap();
    }
}
