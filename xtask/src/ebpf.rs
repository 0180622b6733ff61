//! `cargo xtask ebpf`: has the peer's build script compile the BPF programs, and says what came of it.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::shell;

/// Variables that `peer/build.rs` sets when it compiled the programs.
const OBJECT: &str = "PONDHAWK_EBPF_OBJECT";
const TOOLCHAIN: &str = "PONDHAWK_EBPF_TOOLCHAIN";

pub(crate) fn run() -> Result<()> {
    let root = shell::root()?;
    let mut cargo = shell::cargo(&root);
    // Checking runs build scripts, and compiles no more of the peer than is needed to know that the object fits in.
    cargo.args(["check", "--package", "pondhawk", "--message-format", "json-render-diagnostics"]);
    cargo.stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo ended with {}", output.status);
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are UTF-8")?;
    report(script_of_the_peer(&messages).as_ref())
}

/// Runs a build of the peer.
///
/// # Errors
/// A build that fails, and one that left the BPF programs out.
pub(crate) fn build(cargo: &mut Command) -> Result<()> {
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "the build ended with {}", output.status);
    ensure!(
        is_built_in(&String::from_utf8_lossy(&output.stdout)),
        "the build has no interception in it, for want of a BPF tool chain: run `cargo xtask setup --only build`"
    );
    Ok(())
}

/// Whether a build that wrote these messages put the BPF programs into the peer.
fn is_built_in(messages: &str) -> bool {
    script_of_the_peer(messages).is_some_and(|script| script.variable(OBJECT).is_some())
}

fn script_of_the_peer(messages: &str) -> Option<Message> {
    messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find(Message::is_of_the_peer)
}

/// The parts of a message of cargo's that we read (The Cargo Book, "External tools").
#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: String,
    #[serde(default)]
    env: Vec<(String, String)>,
}

impl Message {
    fn is_of_the_peer(&self) -> bool {
        let package = self.package_id.rsplit(['/', '#']).next().unwrap_or_default();
        let named = package.starts_with("pondhawk@") || self.package_id.contains("/peer#");
        self.reason == "build-script-executed" && named
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn report(script: Option<&Message>) -> Result<()> {
    let object = script.and_then(|script| script.variable(OBJECT));
    let Some(object) = object else {
        bail!(
            "no BPF tool chain was found, so a peer built here has no interception in it: run `cargo xtask setup --only build`"
        );
    };
    let size = std::fs::metadata(object).with_context(|| format!("{object} is gone"))?.len();
    println!("BPF programs: {size} bytes, {object}");
    if let Some(toolchain) = script.and_then(|script| script.variable(TOOLCHAIN)) {
        println!("compiled with {toolchain}");
    }
    println!("a peer built here has interception in it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package: &str, env: &str) -> Message {
        let text = format!(r#"{{"reason":"build-script-executed","package_id":"{package}","cfgs":[],"env":{env}}}"#);
        serde_json::from_str(&text).expect("valid JSON")
    }

    #[test]
    fn the_peers_build_script_is_told_from_others() {
        assert!(message("path+file:///tree/peer#pondhawk@0.1.0", "[]").is_of_the_peer());
        assert!(!message("path+file:///tree/peer-ebpf#pondhawk-ebpf@0.1.0", "[]").is_of_the_peer());
        assert!(!message("registry+https://example.org/index#ring@0.17.0", "[]").is_of_the_peer());
    }

    #[test]
    fn a_build_without_the_object_is_an_error_that_says_what_to_do() {
        let error =
            report(Some(&message("path+file:///tree/peer#pondhawk@0.1.0", "[]"))).expect_err("nothing was built");
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
        assert!(report(None).is_err());
    }

    #[test]
    fn a_build_tells_whether_interception_is_in_it() {
        let line = |env: &str| {
            format!(
                "noise\n{{\"reason\":\"build-script-executed\",\"package_id\":\"path+file:///tree/peer#pondhawk@0.1.0\",\"env\":{env}}}\n"
            )
        };
        assert!(is_built_in(&line(&format!(r#"[["{OBJECT}","/object"]]"#))));
        assert!(!is_built_in(&line("[]")) && !is_built_in(""));
    }

    #[test]
    fn an_object_that_is_there_is_reported() {
        let file = std::env::current_exe().expect("a test has a path");
        let env = format!(r#"[["{OBJECT}","{}"],["{TOOLCHAIN}","some rustc"]]"#, file.display());
        report(Some(&message("path+file:///tree/peer#pondhawk@0.1.0", &env))).expect("the object exists");
    }
}
