//! `pondhawk up`: run a node.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Settings, logging};
use crate::node::{self, Source};

/// Where glibc looks up how names are resolved.
const NAME_SERVICES: &str = "/etc/nsswitch.conf";

/// The command's arguments.
#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    settings: Settings,
    /// Join this scheduler's cluster; the same as --set scheduler.join=HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    scheduler: Option<String>,
    /// The file with the token to join with; the same as --set scheduler.token=FILE
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    token: Option<PathBuf>,
}

impl Up {
    /// Runs until the node has drained.
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.settings.set.extend(self.scheduler.map(|join| format!("scheduler.join={join}")));
        self.settings.set.extend(self.token.map(|file| format!("scheduler.token={}", file.display())));
        let loaded = self.settings.load()?;
        let log = logging::start(&loaded.config.log);
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let settings = self.settings;
        if cfg!(target_feature = "crt-static") {
            warn_of_name_services(&std::fs::read_to_string(NAME_SERVICES).unwrap_or_default());
        }
        let read = move || Ok(settings.load().map_err(|error| error.to_string())?.config);
        let source = Source { read: Box::new(read), log };
        node::run(loaded.config, source).map_err(|error| CliError::Node(error.into()))
    }
}

/// A statically linked glibc has two services built in; it loads others from the machine, and aborts where that has another glibc.
fn warn_of_name_services(nsswitch: &str) {
    let services = foreign_services(nsswitch);
    if !services.is_empty() {
        tracing::warn!(
            ?services,
            "this is a static build, which may abort when it resolves a name: leave `files dns` for hosts in {NAME_SERVICES}, or \
             run a dynamically linked build"
        );
    }
}

/// What nsswitch.conf(5) names for hosts beside what is built in.
fn foreign_services(nsswitch: &str) -> Vec<&str> {
    let hosts = nsswitch.lines().find_map(|line| line.trim().strip_prefix("hosts:")).unwrap_or_default();
    let plain = |word: &&str| !word.contains(['[', ']', '=', '!']) && !["files", "dns"].contains(word);
    hosts.split('#').next().unwrap_or_default().split_whitespace().filter(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_a_static_build_has_to_load_are_named() {
        let ubuntu = "passwd: files systemd\nhosts:  files mdns4_minimal [NOTFOUND=return] dns # as ever\n";
        assert_eq!(foreign_services(ubuntu), ["mdns4_minimal"]);
        assert_eq!(foreign_services("hosts: mymachines resolve [!UNAVAIL=return] dns"), ["mymachines", "resolve"]);
        assert!(foreign_services("hosts: files dns\n").is_empty() && foreign_services("").is_empty());
    }
}
