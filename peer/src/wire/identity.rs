//! Who a peer is, and how it proves that: TLS 1.3 with certificates of the swarm's CA on both sides.

use std::{fmt, sync::Arc};

use pondhawk_scheduler::authority::{self, PEER_SUFFIX};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use x509_parser::prelude::*;

use super::{WireError, frame::ALPN};

/// A peer's name in the cluster: 1 to 63 of `a-z`, `0-9`, `.` and `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Arc<str>);

/// Not the name of a peer.
#[derive(Debug, thiserror::Error)]
#[error(
    "a peer's name is 1 to 63 of a-z, 0-9, '.' and '-', and each part between dots starts and ends with a letter or digit"
)]
pub struct PeerIdError;

impl PeerId {
    /// Checks a name, as the scheduler does before it signs one.
    pub fn new(name: &str) -> Result<Self, PeerIdError> {
        authority::is_peer_name(name).then(|| Self(name.into())).ok_or(PeerIdError)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in its certificate: `<name>.peer.pondhawk.internal`.
    pub fn dns_name(&self) -> String {
        format!("{}{PEER_SUFFIX}", self.0)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.0)
    }
}

/// This peer's proof of who it is.
pub struct Identity {
    /// Its certificate, then what leads to the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's key.
    pub key: PrivateKeyDer<'static>,
    /// The swarm's CA.
    pub root: CertificateDer<'static>,
}

impl Identity {
    /// The name in the certificate.
    pub fn peer(&self) -> Result<PeerId, WireError> {
        let named = self.chain.first().and_then(peer_of);
        named.ok_or_else(|| WireError::Identity(format!("it names no <peer>{PEER_SUFFIX}")))
    }

    /// Sessions are never resumed: a resumed one would not check the certificate again.
    pub(super) fn server_crypto(&self) -> Result<QuicServerConfig, WireError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider()).build();
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .with_client_cert_verifier(verifier.map_err(bad)?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(bad)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config).map_err(bad)
    }

    pub(super) fn client_crypto(&self) -> Result<QuicClientConfig, WireError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(bad)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        QuicClientConfig::try_from(config).map_err(bad)
    }

    fn roots(&self) -> Result<RootCertStore, WireError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).map_err(bad)?;
        Ok(roots)
    }
}

/// The peer that a certificate names. Whether it may be believed is the handshake's business.
fn peer_of(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    PeerId::new(&authority::peer_name(certificate)?).ok()
}

/// Who is at the other end of a connection whose handshake is done, and the SHA-256 of its public key.
pub(super) fn subject_at(connection: &quinn::Connection) -> Option<(PeerId, [u8; 32])> {
    let leaf = leaf_at(connection)?;
    Some((peer_of(&leaf)?, authority::certificate_key(&leaf)?))
}

/// When the certificate at the other end expires, in Unix seconds.
pub(super) fn expiry(connection: &quinn::Connection) -> Option<u64> {
    let leaf = leaf_at(connection)?;
    let (_, certificate) = X509Certificate::from_der(&leaf).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

fn leaf_at(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// AES-128 first: it is the cheapest cipher where the CPU has AES, and as safe as its keys.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn bad(error: impl fmt::Display) -> WireError {
    WireError::Identity(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_name_is_a_dns_label_or_several() {
        for good in ["a", "node-1.rack2", &"a".repeat(63)] {
            assert_eq!(PeerId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a.", "A", "a_b", "a..b", "a b", &"a".repeat(64)] {
            assert!(PeerId::new(bad).is_err(), "{bad}");
        }
    }
}
