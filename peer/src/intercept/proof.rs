//! Where a connection that is not ours may be passed on to.
//!
//! The node connects from its own network namespace, with its own address and past the rules that hold for a pod. So it joins
//! a connection from another namespace only to a destination of which it knows, by itself, that it serves one of the
//! intercepted hosts: one that its own look-ups gave, or one that proves it by a TLS handshake for such a host. A DNS answer
//! that the pod saw proves nothing, since the pod may have written it. What is refused goes direct from the next attempt on.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pondhawk_ebpf::{Address, AddressScope};
use tokio::time::{Instant, timeout};

use super::redirect::{Flow, Interceptor};
use crate::{
    expiring::Expiring,
    swarm::{Origin, is_public},
};

/// Destinations whose proof, or want of one, is remembered.
const MAX_VERDICTS: usize = 4096;
/// How long a proof counts: a content network moves its addresses over days.
const PROVEN_FOR: Duration = Duration::from_secs(3600);
/// How long a destination that did not prove itself is refused without another try, and left alone by the programs.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(600);
/// All handshakes for one destination together: the client waits meanwhile, and gives up after ten seconds.
const PROOF_WAIT: Duration = Duration::from_secs(5);
/// Hosts that a destination may prove itself for.
const HOSTS_A_PROOF: usize = 4;
/// Destinations that one network namespace may have the node connect to for a proof, each minute.
const PROOFS_A_MINUTE: u32 = 6;
/// Network namespaces whose proofs are counted.
const MAX_ASKERS: usize = 1024;

/// Why a connection is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PassRefusal {
    /// An address that is another host for the node than for its client, or the node itself.
    #[error("the address means another host to the node than to the client")]
    Scope,
    /// An address in a private network, which the settings rule out.
    #[error("the address is in a private network, and origin.allow_private is off")]
    Private,
    /// A destination that did not prove that it serves one of the intercepted hosts.
    #[error("the destination did not prove that it serves one of intercept.hosts")]
    Unproven,
}

/// The destinations that have proved themselves, or have not.
#[derive(Debug)]
pub struct DestinationProofs {
    verdicts: Expiring<bool>,
    askers: Mutex<HashMap<u64, ProofBudget>>,
}

/// What a network namespace has left of its proofs.
#[derive(Clone, Copy, Debug)]
struct ProofBudget {
    since: Instant,
    used: u32,
}

impl Default for DestinationProofs {
    fn default() -> Self {
        Self { verdicts: Expiring::new(MAX_VERDICTS), askers: Mutex::default() }
    }
}

/// What the decision about one connection needs.
pub(super) struct PassRequest<'a> {
    pub(super) flow: &'a Flow,
    pub(super) interceptor: &'a Interceptor,
    pub(super) origin: &'a Origin,
    pub(super) allow_private: bool,
    /// Hosts that the destination may prove itself for, the likeliest first.
    pub(super) hosts: Vec<String>,
}

impl DestinationProofs {
    /// Whether the connection may be joined to its destination.
    pub(super) async fn check(&self, request: &PassRequest<'_>) -> Result<(), PassRefusal> {
        let Flow { destination, source } = request.flow;
        let address = destination.ip();
        let scope = Address::from(address).scope();
        if scope == AddressScope::Local {
            return Err(PassRefusal::Scope);
        }
        if request.interceptor.is_own_namespace(source) {
            // The client and the node have the same routes and addresses, so the client could reach it just as well.
            return Ok(());
        }
        if is_own_address(address) {
            return Err(PassRefusal::Scope);
        }
        if !request.allow_private && !is_public(address) {
            return Err(PassRefusal::Private);
        }
        if request.interceptor.knows(address) {
            return Ok(());
        }
        if scope == AddressScope::Private {
            return Err(PassRefusal::Private);
        }
        match self.is_proven(*destination, source.netns_cookie, request).await {
            true => Ok(()),
            false => Err(PassRefusal::Unproven),
        }
    }

    async fn is_proven(&self, destination: SocketAddr, netns_cookie: u64, request: &PassRequest<'_>) -> bool {
        let key = verdict_key(destination);
        if let Some(verdict) = self.verdicts.get(&key, Instant::now()) {
            return verdict;
        }
        if !self.may_ask(netns_cookie, Instant::now()) {
            return false;
        }
        let proven = timeout(PROOF_WAIT, prove(destination, request)).await.unwrap_or(false);
        self.verdicts.insert(key, proven, Instant::now(), if proven { PROVEN_FOR } else { REFUSED_FOR });
        proven
    }

    /// Takes one of the namespace's proofs of this minute.
    fn may_ask(&self, netns_cookie: u64, now: Instant) -> bool {
        const MINUTE: Duration = Duration::from_secs(60);
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if askers.len() >= MAX_ASKERS {
            askers.retain(|_, budget| now.saturating_duration_since(budget.since) < MINUTE);
        }
        if askers.len() >= MAX_ASKERS && !askers.contains_key(&netns_cookie) {
            return false;
        }
        let budget = askers.entry(netns_cookie).or_insert(ProofBudget { since: now, used: 0 });
        if now.saturating_duration_since(budget.since) >= MINUTE {
            *budget = ProofBudget { since: now, used: 0 };
        }
        budget.used += 1;
        budget.used <= PROOFS_A_MINUTE
    }
}

async fn prove(destination: SocketAddr, request: &PassRequest<'_>) -> bool {
    for host in request.hosts.iter().take(HOSTS_A_PROOF) {
        match request.origin.verify_host(destination, host).await {
            Ok(()) => return true,
            Err(error) => {
                tracing::debug!(%destination, host, %error, "a destination does not prove that it serves a host");
            }
        }
    }
    false
}

/// Whether the node has this address: only such can be bound (ip(7)), unless `net.ipv4.ip_nonlocal_bind` is set, with which
/// every destination of other network namespaces would be refused.
fn is_own_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn verdict_key(destination: SocketAddr) -> [u8; 32] {
    blake3::hash(destination.to_string().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_so_many_proofs_a_minute_and_takes_none_from_others() {
        let (proofs, now) = (DestinationProofs::default(), Instant::now());
        for _ in 0..PROOFS_A_MINUTE {
            assert!(proofs.may_ask(1, now));
        }
        assert!(!proofs.may_ask(1, now));
        assert!(proofs.may_ask(2, now));
        assert!(proofs.may_ask(1, now + Duration::from_secs(60)));
    }

    #[test]
    fn no_more_namespaces_are_counted_than_the_bound() {
        let (proofs, now) = (DestinationProofs::default(), Instant::now());
        for netns_cookie in 0..MAX_ASKERS as u64 {
            assert!(proofs.may_ask(netns_cookie, now));
        }
        assert!(!proofs.may_ask(u64::MAX, now));
        assert!(proofs.may_ask(u64::MAX, now + Duration::from_secs(60)));
    }

    #[test]
    fn an_address_of_the_node_is_recognised() {
        assert!(is_own_address("127.0.0.1".parse().unwrap()));
        assert!(!is_own_address("192.0.2.1".parse().unwrap()));
    }
}
