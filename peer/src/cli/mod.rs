//! The commands of the pondhawk binary.
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly, 3 no node answers. `get` does without a node: 3 is there what is not there
//! or not for this user, 4 a wrong digest. Of `config import` 4 says that keys were lost.

pub mod ca;
mod client;
mod config;
mod explain;
pub(crate) mod get;
mod human;
mod logging;
mod ls;
mod peers;
mod pin;
mod preheat;
mod rm;
mod status;
mod token;
mod top;
mod up;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, Loaded},
    tls::Suffixes,
};
use client::{AdminPlace, ClientError};

/// A failed command.
const FAILED: u8 = 1;
/// No node answers.
const NO_NODE: u8 = 3;
/// What was printed is not all of what was read.
const INCOMPLETE: u8 = 4;
/// Read where `--config` is not given and it exists.
const DEFAULT_FILE: &str = "/etc/pondhawk/config.yaml";

#[derive(Debug, Parser)]
#[command(name = "pondhawk", version, about = "Downloads every model and data set once, and serves it from here")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT
    Up(up::Up),
    /// Download a file or a repository of the Hub by way of the node
    Get(get::Get),
    /// List the tasks that the node keeps, the last used first
    Ls(ls::Ls),
    /// Have the node fetch files into its store before anybody asks for them
    Preheat(preheat::Preheat),
    /// Keep tasks whatever room is needed
    Pin(pin::Pin),
    /// Let pinned tasks go again when room is needed
    Unpin(pin::Pin),
    /// Remove tasks that nobody uses now
    Rm(rm::Rm),
    /// Show how the node is
    Status(status::Status),
    /// Watch what the node is doing
    Top(top::Top),
    /// Show the node's certificate authority, and make clients trust it
    Ca(CaCommand),
    /// Print a token with which another node joins this one, which is its own scheduler: by default, one node
    Token(token::Token),
    /// Show and change who may take part in the cluster whose scheduler this node is
    Peers(peers::Peers),
    /// Print, check and explain configurations
    Config(config::ConfigCommand),
    /// Show what a node with this configuration would do with a URL
    Explain(explain::Explain),
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Settings {
    /// The configuration file [default: /etc/pondhawk/config.yaml where it exists]
    #[arg(long, value_name = "FILE", env = "PONDHAWK_CONFIG")]
    config: Option<PathBuf>,
    /// Set one key, as in store.quota=20GiB; PONDHAWK_STORE__QUOTA=20GiB in the environment does the same
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// A `ca` command and the configuration that says whose CA and for which hosts.
#[derive(Debug, Args)]
struct CaCommand {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    ca: ca::Ca,
}

/// Which node is asked.
#[derive(Debug, Args)]
struct Node {
    /// The node's admin socket or port; only the socket accepts changes [default: those of this machine's configuration, else
    /// /var/lib/pondhawk/admin.sock and 127.0.0.1:65002]
    #[arg(long, value_name = "PATH|ADDRESS", env = "PONDHAWK_ADMIN")]
    admin: Option<String>,
}

impl Node {
    fn place(&self) -> AdminPlace {
        match self.admin.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => AdminPlace::named(text),
            None => get::configured().admin,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Ca(#[from] ca::CaError),
    #[error("{0}")]
    Task(String),
    /// Some were done; the output says which were not.
    #[error("{message}")]
    Partly { done: String, message: String },
    /// The output lacks something that the input had.
    #[error("{message}")]
    Incomplete { done: String, message: String },
    #[error("{0:#}")]
    Node(anyhow::Error),
    /// What was downloaded nevertheless is in `done`.
    #[error("{error}")]
    Get { done: String, error: get::GetError },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(output) => print(&output),
        Err(error) => {
            if let CliError::Partly { done, .. } | CliError::Incomplete { done, .. } | CliError::Get { done, .. } =
                &error
            {
                print(done);
            }
            // File names in it are chosen by others: nothing that a terminal would obey.
            let message = error.to_string();
            let lines: Vec<_> = message.split('\n').map(human::printable).collect();
            eprintln!("pondhawk: {}", lines.join("\n"));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: Command) -> Result<String, CliError> {
    match command {
        Command::Up(command) => command.run().map(|()| String::new()),
        Command::Token(command) => command.run(),
        Command::Peers(command) => command.run(),
        Command::Get(command) => command.run(),
        Command::Ls(command) => command.run(),
        Command::Preheat(command) => command.run(),
        Command::Pin(command) => command.run(true),
        Command::Unpin(command) => command.run(false),
        Command::Rm(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Ca(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Explain(command) => command.run(),
    }
}

impl CaCommand {
    fn run(&self) -> Result<String, CliError> {
        let config = self.settings.load()?.config;
        let suffixes = Suffixes::new(&config.intercept.hosts).map_err(ca::CaError::from)?;
        let mut output = Vec::new();
        ca::run(&self.ca, &config.data_dir, &suffixes, &mut output)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }
}

fn exit_code(error: &CliError) -> u8 {
    match error {
        CliError::Client(ClientError::NoNode { .. }) => NO_NODE,
        CliError::Incomplete { .. } => INCOMPLETE,
        CliError::Get { error, .. } => error.code(),
        _ => FAILED,
    }
}

/// Prints, unless whoever reads has gone (`pondhawk ls | head`).
fn print(output: &str) -> ExitCode {
    match io::stdout().write_all(output.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("pondhawk: standard output: {error}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

impl Settings {
    fn load(&self) -> Result<Loaded, ConfigError> {
        let default = PathBuf::from(DEFAULT_FILE);
        let file = self.config.clone().or_else(|| default.exists().then_some(default));
        // A variable that is no Unicode is none of our keys.
        let environment =
            std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        Config::load(file.as_deref(), environment, &self.set)
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("reports are plain data with text keys");
    format!("{text}\n")
}
