//! Where and with what the figures were taken.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use time::{OffsetDateTime, macros::format_description};

use crate::lab::clean_command;

/// What figures depend on besides our own code, each as `(name, what it is)`.
#[derive(Clone, Debug)]
pub struct Machine {
    /// In the order to show them in.
    pub facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// Asks the kernel, and the programs that we compare with for their versions; `target` is cargo's target directory, where the
    /// Python clients are. What is not installed is said to be so.
    pub fn look(target: &Path) -> Self {
        let facts = vec![
            ("date", today()),
            ("kernel", rustix::system::uname().release().to_string_lossy().into_owned()),
            ("CPU", cpu_model()),
            ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
            ("memory", memory()),
            ("nginx", nginx()),
            ("huggingface_hub", hub_client(target)),
            ("curl", curl()),
        ];
        Self { facts }
    }
}

fn today() -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

fn cpu_model() -> String {
    value_in("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned())
}

fn memory() -> String {
    value_in("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned())
}

fn value_in(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn nginx() -> String {
    let said = first_line("nginx", &["-v"]);
    said.strip_prefix("nginx version: ").map_or(said.clone(), str::to_owned)
}

fn curl() -> String {
    let said = first_line("curl", &["--version"]);
    said.split(" (").next().unwrap_or_default().trim_start_matches("curl ").to_owned()
}

fn hub_client(target: &Path) -> String {
    let python = target.join("clients/hf-2/bin/python");
    first_line(python, &["-c", "from importlib.metadata import version; print(version('huggingface_hub'))"])
}

/// On whichever of its outputs the program writes it.
fn first_line(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let mut command: Command = clean_command(program);
    let said = command.args(arguments).output().map(|output| [output.stdout, output.stderr].concat());
    let said = said.map(|said| String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned());
    said.unwrap_or_else(|_| "not installed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_said_to_be_so() {
        let machine = Machine::look(Path::new("/nowhere"));
        let fact = |name| machine.facts.iter().find(|(fact, _)| *fact == name).map(|(_, value)| value.as_str());
        assert_eq!(fact("huggingface_hub"), Some("not installed"));
        assert!(fact("kernel").is_some_and(|kernel| !kernel.is_empty()) && fact("cores") != Some("0"));
    }
}
