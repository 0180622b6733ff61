//! An open TLS session of the node, its client in memory.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use pondhawk::tls::{
    Authority, LeafCache, Suffixes, server_config,
    session::{Progress, Session},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

/// As the node's buffers are: limits.buffer_size.
const BUFFER: usize = 256 << 10;

/// A session whose handshake is done.
pub(crate) struct Open {
    session: Session,
    plain: Vec<u8>,
    out: Vec<u8>,
}

/// Shakes hands with a client that trusts the node.
pub(crate) fn open() -> Result<Open> {
    let dir = tempfile::tempdir()?;
    let authority = Authority::open(dir.path(), &Suffixes::new(["hf.co"])?)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.info().der.clone())?;
    let server = server_config(Arc::new(LeafCache::new(Arc::new(authority))))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("cdn-lfs.hf.co")?)?;
    let mut session = Session::new(server)?;
    while client.is_handshaking() || client.wants_write() {
        let mut incoming = session.take_incoming()?;
        client.write_tls(&mut incoming)?;
        session.put_incoming(incoming);
        session.advance()?;
        let mut answer = session.take_outgoing();
        while !answer.is_empty() {
            let taken = client.read_tls(&mut answer.as_slice())?;
            answer.drain(..taken);
            client.process_new_packets()?;
        }
    }
    (session.advance()? == Progress::Open).then_some(()).context("the handshake did not end")?;
    let out = vec![0; BUFFER];
    let plain = vec![7; session.max_plain(out.len())];
    Ok(Open { session, plain, out })
}

impl Open {
    /// Encrypts a piece of 1 MiB, and gives each buffer's records away.
    pub(crate) fn encrypt_piece(&mut self, mut give: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = super::PIECE;
        while left > 0 {
            let n = left.min(self.plain.len());
            let encrypted = self.session.encrypt(&self.plain[..n], &mut self.out)?;
            give(&self.out[..encrypted])?;
            left -= n;
        }
        Ok(())
    }
}
