//! What an operator changes in the registry, from the command line of either binary, whether or not the scheduler runs.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::entries::{Bounds, Change, NameOwner, PeerSubject};
use super::file;
use crate::kube::StateFlags;
use crate::service::unix_now;

/// Changes and shows who belongs to the cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum RegistryCommand {
    /// Release a node's name: the next node that joins under it with a token owns it.
    ///
    /// For a machine whose data directory, and with it its key, was lost. The key that had the name loses its session at once and
    /// gets no other under it; to keep it out of the cluster altogether, deny it.
    Forget(Forget),
    /// Keep a node out: its sessions and its connections with other nodes end within a minute, and it gets no others.
    ///
    /// By name, the key that owns the name is denied with it. It lasts until `allow`.
    Deny(Deny),
    /// Lift a denial.
    Allow(Allow),
    /// List who is denied: name, SHA-256 of the key, since when, why.
    Denied,
    /// List the names that belong to a key: name, SHA-256 of the key, until when.
    #[command(name = "ls")]
    Peers,
}

/// Which name.
#[derive(Args, Clone, Debug)]
pub struct Forget {
    /// The node's name
    name: String,
}

/// Whom, and why.
#[derive(Args, Clone, Debug)]
pub struct Deny {
    /// The node's name, or the SHA-256 of its public key in hexadecimal, as `peers` lists it
    peer: PeerSubject,
    /// Why; it is shown to the node, and in its log and the scheduler's
    #[arg(long, default_value = "")]
    reason: String,
}

/// Whom.
#[derive(Args, Clone, Debug)]
pub struct Allow {
    /// As it was denied
    peer: PeerSubject,
}

impl RegistryCommand {
    /// Carries it out in the state directory `dir`, and where `shared` says so, in the state that schedulers share; gives what
    /// is to be printed. Blocking.
    ///
    /// # Errors
    /// There is no cluster, or the registry refuses the change or cannot be written.
    pub fn run(&self, dir: &Path, shared: Option<&StateFlags>) -> anyhow::Result<String> {
        if !dir.join(crate::authority::CERT).exists() {
            bail!("{} has no cluster: start the scheduler once, or name its --data-dir", dir.display());
        }
        match self {
            Self::Forget(forget) => {
                change(dir, shared, Change::Release(forget.name.clone()))?;
                Ok(format!("released {}: a node can join under it with a token\n", forget.name))
            }
            Self::Deny(deny) => {
                change(dir, shared, Change::Deny(deny.peer.clone(), deny.reason.clone()))?;
                Ok("denied: schedulers and nodes end its connections within a minute\n".to_owned())
            }
            Self::Allow(allow) => {
                change(dir, shared, Change::Allow(allow.peer.clone()))?;
                Ok("allowed\n".to_owned())
            }
            Self::Denied => denied(dir),
            Self::Peers => peers(dir),
        }
    }
}

fn change(dir: &Path, shared: Option<&StateFlags>, change: Change) -> anyhow::Result<()> {
    let changes = [change];
    let outcome = Mutex::new(None);
    let bounds = match shared {
        Some(flags) if flags.is_shared() => Bounds::SECRET,
        _ => Bounds::DIRECTORY,
    };
    let make = |dir: &Path| {
        let (_, mut outcomes) = file::change(dir, &changes, unix_now(), bounds)?;
        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcomes.pop();
        Ok(())
    };
    match shared {
        Some(flags) => flags.renew(dir, &make)?,
        None => make(dir)?,
    }
    let outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.context("nothing was changed")?.map_err(anyhow::Error::from)
}

fn denied(dir: &Path) -> anyhow::Result<String> {
    let entries = file::read(dir)?;
    let line = |denial: &super::Denial| {
        let name = denial.name.as_deref().unwrap_or("-");
        let key = denial.key.map_or_else(|| "-".to_owned(), |key| key.to_string());
        format!("{name}\t{key}\t{}\t{}\n", date(denial.since), denial.reason)
    };
    Ok(entries.denials.iter().map(line).collect())
}

fn peers(dir: &Path) -> anyhow::Result<String> {
    let entries = file::read(dir)?;
    let line = |(name, NameOwner(key, until)): (&String, &NameOwner)| {
        let key = key.map_or_else(|| "released".to_owned(), |key| key.to_string());
        format!("{name}\t{key}\t{}\n", date(*until))
    };
    Ok(entries.names.iter().map(line).collect())
}

fn date(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| unix.to_string())
}
