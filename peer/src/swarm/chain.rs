//! The node's interception CA below the cluster's root: signed with every join and renewal.

use std::path::PathBuf;
use std::sync::Arc;

use pondhawk_proto::v1::{JoinRequest, JoinResponse};
use rustls::pki_types::CertificateDer;

use crate::tls::Authority;

/// Asks the scheduler to sign the node's CA, and gives the answer to those who use it.
pub(super) struct Chain {
    authority: Option<Arc<Authority>>,
    data_dir: PathBuf,
    /// The scheduler has answered since the start: it is not asked again before the next renewal.
    answered: bool,
}

impl Chain {
    /// Without an authority nothing is ever asked for.
    pub(super) fn new(authority: Option<Arc<Authority>>, data_dir: PathBuf) -> Self {
        Self { authority, data_dir, answered: false }
    }

    /// Whether a join is due for this alone: the node has a certificate of the cluster, but its CA does not chain to the
    /// root (it joined before there was one, or what it intercepts has changed).
    pub(super) fn wanted(&self) -> bool {
        !self.answered && self.authority.as_ref().is_some_and(|authority| authority.cluster_root().is_none())
    }

    /// Puts the request into one to join.
    pub(super) fn ask(&self, join: &mut JoinRequest) {
        let Some(authority) = &self.authority else { return };
        match authority.csr() {
            Ok(csr) => {
                join.intercept_csr = csr.into();
                join.intercept_suffixes = authority.suffixes().iter().map(str::to_owned).collect();
            }
            Err(error) => tracing::warn!(%error, "the node's CA cannot be signed by the cluster"),
        }
    }

    /// Takes what the scheduler says. A node whose CA is not signed does all else that a node of the cluster does.
    pub(super) fn answer(&mut self, answer: &JoinResponse) {
        let Some(authority) = &self.authority else { return };
        self.answered = true;
        if answer.intercept_chain.is_empty() {
            let why = if answer.intercept_refused.is_empty() { "it has no root" } else { &answer.intercept_refused };
            tracing::warn!(why, "the scheduler does not sign this node's CA: clients have to trust this node's own");
            return;
        }
        let chain: Vec<_> = answer.intercept_chain.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
        let adopted = authority.adopt(&chain).and_then(|()| authority.write_bundle(&self.data_dir));
        if let Err(error) = adopted {
            tracing::warn!(%error, "clients have to trust this node's own CA");
        }
    }
}
