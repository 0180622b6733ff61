//! What a scenario needs before it can run.

use std::path::Path;

use super::Context;
use crate::{clients::Client, lab};

/// Something that has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// For namespaces, cgroups and BPF.
    Root,
    /// A program of the system.
    Program(&'static str),
    /// A binary of this workspace, built beside the running one.
    Binary(&'static str),
    /// A real client.
    Client(Client),
    /// The built wire bench of the peer, named on the command line.
    Wire,
}

impl Need {
    /// What is missing, and how to get it.
    pub fn missing(self, context: &Context) -> Option<String> {
        match self {
            Self::Root => (!rustix::process::geteuid().is_root())
                .then(|| "needs root (network namespaces, cgroups, BPF)".to_owned()),
            Self::Program(name) => (!is_program(name)).then(|| format!("{name} is not installed: cargo xtask setup")),
            Self::Binary(name) => lab::binary(name).err().map(|error| error.to_string()),
            Self::Client(client) => client.missing(&context.target),
            Self::Wire => match &context.wire {
                Some(path) if path.is_file() => None,
                _ => Some("no built wire bench is named by --wire; `cargo xtask bench` builds and names it".to_owned()),
            },
        }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => write!(f, "root"),
            Self::Program(name) | Self::Binary(name) => write!(f, "{name}"),
            Self::Client(client) => write!(f, "{}", client.name()),
            Self::Wire => write!(f, "the wire bench"),
        }
    }
}

fn is_program(name: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(name).is_file())
}
