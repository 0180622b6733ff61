//! Certificates and requests for them: names that are read are names of peers, and what is signed says what was asked for.

use std::sync::OnceLock;

use pondhawk_scheduler::authority::{Authority, is_peer_name, peer_name};
use pondhawk_scheduler::fuzz::certified;
use pondhawk_scheduler::hosts::Suffixes;
use pondhawk_scheduler::trust::TrustRoot;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

const NAME: &str = "node-1";

/// Runs the target: bytes that come as a certificate, and as a request for one.
pub fn run(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let name = peer_name(&certificate);
    assert!(name.as_deref().is_none_or(is_peer_name));
    if let Some((certified, _)) = certified(bytes) {
        assert_eq!(Some(certified), name);
    }
    let (authority, root) = signers();
    let now = OffsetDateTime::now_utc();
    if let Ok(signed) = authority.sign(NAME, bytes, now) {
        assert_eq!(peer_name(&signed.chain[0]).as_deref(), Some(NAME));
        assert_eq!(signed.chain.len(), 2);
    }
    if let Ok(chain) = root.cross_sign(bytes, ["hf.co"], now) {
        assert_eq!(chain.len(), 2);
        assert!(peer_name(&chain[0]).is_none(), "a node's CA has a peer's name");
    }
}

fn signers() -> &'static (Authority, TrustRoot) {
    static SIGNERS: OnceLock<(Authority, TrustRoot)> = OnceLock::new();
    SIGNERS.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(&dir.path().join("authority")).expect("an authority");
        let hosts = Suffixes::new(["hf.co"]).expect("a suffix");
        (authority, TrustRoot::open(&dir.path().join("root"), &hosts).expect("a root"))
    })
}
