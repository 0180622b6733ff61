//! SIGHUP: the configuration is read again, what can change in a running node changes, and the rest is named.

use std::{fmt, sync::PoisonError};

use super::{Node, NodeError, build};
use crate::{
    config::{Config, Log, change::Change},
    http::rules::Front,
};

/// Where a node has its configuration from, and what a new one means outside of it.
pub struct Source {
    /// Reads it again, as at the start; else says why not.
    pub read: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Logs as this says from now on.
    pub log: Box<dyn Fn(&Log) + Send + Sync>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

/// Reads the configuration again and takes up what of it can be. Gives what holds from now on, with all that needs a
/// restart as it was. What is wrong anywhere in it changes nothing. Blocks on files.
pub(super) fn reload(node: &Node, source: &Source, now: Config) -> Config {
    let new = match (source.read)() {
        Ok(new) => new,
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            return now;
        }
    };
    let changes = now.changes(&new);
    let taken = now.with_live(&changes);
    if let Err(error) = apply(node, &now, &taken) {
        tracing::error!("the configuration stays as it was: {error}");
        return now;
    }
    tell(&changes);
    // Last: a level that is less than this would hide what was told.
    (source.log)(&taken.log);
    taken
}

fn tell(changes: &[Change]) {
    for change in changes {
        if change.is_live() {
            tracing::info!("reload: {change}");
        } else {
            tracing::warn!("reload: {change} needs a restart");
        }
    }
    let waiting = changes.iter().filter(|change| !change.is_live()).count();
    tracing::info!(changed = changes.len() - waiting, waiting, "configuration read again");
}

/// What can be wrong comes first, so that it is all or nothing.
fn apply(node: &Node, now: &Config, new: &Config) -> Result<(), NodeError> {
    let authorize = build::authorize_options(new)?;
    let front = Front::new(new)?;
    let store = (now.store != new.store).then(|| build::store_options(new)).transpose()?;
    if now.authorize != new.authorize {
        node.authorizer.set_options(authorize)?;
    }
    if (&now.rules, &now.proxy, &now.mirror) != (&new.rules, &new.proxy, &new.mirror) {
        node.front.replace(front)?;
    }
    if let Some(store) = store {
        node.store.set_options(store);
    }
    node.origin.set_rate(new.origin.rate.0);
    if let Some(cluster) = &node.cluster {
        cluster.uploads.set_bounds(u32::from(new.swarm.uploads), new.swarm.upload_rate.0);
        cluster.pace.lock().unwrap_or_else(PoisonError::into_inner).set_rate(new.swarm.download_rate.0);
    }
    node.connections.set_max(new.limits.connections as usize);
    Ok(())
}
