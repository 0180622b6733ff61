//! `pondhawk up`: run a node.

use super::{CliError, Settings, logging};

/// Runs until the node has drained.
pub(super) fn run(settings: &Settings) -> Result<(), CliError> {
    let loaded = settings.load()?;
    logging::start(&loaded.config.log);
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    crate::node::run(loaded.config).map_err(|error| CliError::Node(error.into()))
}
