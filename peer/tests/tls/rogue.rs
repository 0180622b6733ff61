//! A TLS server that has stolen a node's CA key, and signs what it likes under the node's own chain.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::{Duration, OffsetDateTime};

use crate::node::PATIENCE;

/// What the leaf is for.
#[derive(Clone, Copy)]
pub(crate) enum San {
    Host(&'static str),
    Two(&'static str, &'static str),
    Loopback,
    /// A host, but signed by a CA of its own below the node's.
    BySubordinate(&'static str),
}

pub(crate) struct Rogue {
    pub(crate) addr: SocketAddr,
}

impl Rogue {
    /// Serves an empty reply to any number of clients, as long as the test runs.
    pub(crate) fn start(data_dir: &Path, san: San) -> Self {
        let (chain, key) = forge(data_dir, san);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let config = Arc::new(config);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), client);
                if stream.read(&mut [0; 4096]).is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        Self { addr }
    }
}

fn forge(data_dir: &Path, san: San) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(data_dir.join("ca/ca.key")).unwrap()).unwrap();
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(data_dir.join("ca/cluster.pem")).unwrap().map(Result::unwrap).collect();
    let cross = chain[0].clone();
    let issuer = Issuer::from_ca_cert_der(&cross, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let leaf = leaf_params(san);
    if !matches!(san, San::BySubordinate(_)) {
        return (vec![leaf.signed_by(&key, &issuer).unwrap().into(), cross], private);
    }
    let mut params = dated(CertificateParams::default());
    params.distinguished_name.push(DnType::CommonName, "a CA below the node's");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let sub_key = KeyPair::generate().unwrap();
    let sub = params.signed_by(&sub_key, &issuer).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(params, sub_key)).unwrap();
    (vec![leaf.into(), sub.into(), cross], private)
}

fn leaf_params(san: San) -> CertificateParams {
    let host = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let mut params = dated(CertificateParams::default());
    params.subject_alt_names = match san {
        San::Host(name) | San::BySubordinate(name) => vec![host(name)],
        San::Two(first, second) => vec![host(first), host(second)],
        San::Loopback => vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())],
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params
}
