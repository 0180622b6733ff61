//! How the node's CA chains to the cluster's root, so that a client which trusts that root trusts every node.
//!
//! The scheduler signs the node's CA a second time: a *cross certificate* of the same subject and key. Leafs are then
//! presented with it in place of the node's self-signed certificate; they verify under either root. `cluster.pem` holds
//! the cross certificate, then the root. It is not worth a refusal to start: the next join brings another.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::{GeneralName, NameConstraints, ParsedExtension};
use x509_parser::x509::X509Name;

use super::super::bundle::replace_file;
use super::super::pem;
use super::{Authority, AuthorityError, CaInfo, Suffixes, ca_dir, leaf_params};

const FILE: &str = "cluster.pem";

/// The node's place below the cluster's root.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The root; its path is that of `cluster.pem`.
    pub root: CaInfo,
    /// Until when the root's signature on the node's CA is good.
    pub not_after: OffsetDateTime,
    not_before: OffsetDateTime,
    pub(super) cross: Arc<CertificateDer<'static>>,
}

/// Why a chain from the scheduler is not used. The scheduler is to blame, or the file was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ChainError {
    #[error("{0} certificates, not two (the node's CA as signed by the root, then the root)")]
    Count(usize),
    #[error("a certificate that cannot be read: {0}")]
    Unreadable(String),
    #[error("it is for the CA {0:?}, not for this node's")]
    Subject(String),
    #[error("it is for another key than this node's CA has")]
    Key,
    #[error("it is issued by {0:?}, not by the root that came with it")]
    Issuer(String),
    #[error("it may not speak for {0}, which this node intercepts")]
    NotCovering(String),
    #[error("the cluster's root may speak for any host under {0}, which is more than clients should trust it with")]
    TooWide(String),
    #[error("the cluster's root may not sign CAs of servers")]
    Usage,
    #[error("the cluster's root is not kept from speaking for IP addresses")]
    Addresses,
    #[error("it is valid only from {0}: do the clocks of this node and the scheduler agree?")]
    NotYetValid(OffsetDateTime),
    #[error("it expired at {0}: do the clocks of this node and the scheduler agree?")]
    Expired(OffsetDateTime),
    #[error("a client that trusts the root would refuse it: {0}")]
    Refused(String),
}

impl Authority {
    /// A PKCS #10 request, DER, with the subject and the key of the node's CA, for the scheduler to sign.
    pub fn csr(&self) -> Result<Vec<u8>, AuthorityError> {
        let unreadable = |error: x509_parser::nom::Err<_>| ChainError::Unreadable(error.to_string());
        let (_, own) = x509_parser::parse_x509_certificate(&self.info.der).map_err(unreadable)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = same_name(own.subject()).ok_or_else(|| ChainError::Subject(String::new()))?;
        Ok(params.serialize_request(self.issuer.key())?.der().to_vec())
    }

    /// Takes the node's CA as the scheduler signed it, then the root, and presents leafs under it from now on. Blocking.
    ///
    /// Nothing changes where it is refused: it must be of this CA's name and key, cover the node's suffixes, be valid
    /// now, and a client that trusts only the root must accept a leaf under it.
    pub fn adopt(&self, chain: &[CertificateDer<'_>]) -> Result<(), AuthorityError> {
        self.adopt_at(chain, OffsetDateTime::now_utc())
    }

    pub(super) fn adopt_at(&self, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<(), AuthorityError> {
        let path = self.cluster_file();
        let cluster = self.examine(chain, now)?;
        let text = chain.iter().map(pem::certificate).collect::<String>();
        replace_file(&path, text.as_bytes()).map_err(|source| AuthorityError::Write { path, source })?;
        let root = cluster.root.fingerprint_text();
        let until = cluster.not_after;
        let before = self.cluster.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::new(cluster));
        match before {
            Some(before) if before.root.fingerprint_text() != root => {
                tracing::warn!(%root, "the cluster has a new trust root: clients that trust only the old one have to be given it");
            }
            _ => tracing::info!(%root, %until, "the node's CA chains to the cluster's trust root"),
        }
        Ok(())
    }

    /// The root that pods trust on every node; `None` where the node belongs to no cluster, or its CA no longer chains
    /// to it.
    pub fn cluster_root(&self) -> Option<CaInfo> {
        self.cluster().map(|cluster| cluster.root.clone())
    }

    /// The certificate to present after a leaf: the cross certificate while it is valid, else the node's own.
    pub(in crate::tls) fn link(&self, now: OffsetDateTime) -> Arc<CertificateDer<'static>> {
        match self.cluster() {
            Some(cluster) if cluster.not_before <= now && now < cluster.not_after => Arc::clone(&cluster.cross),
            _ => Arc::clone(&self.own),
        }
    }

    /// Loads what an earlier [`Self::adopt`] left. What is no longer good is ignored: the next join replaces it.
    pub(super) fn load_cluster(&self, now: OffsetDateTime) {
        let path = self.cluster_file();
        let loaded = read_chain(&path).and_then(|chain| chain.map(|chain| self.examine(&chain, now)).transpose());
        match loaded {
            Ok(cluster) => *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = cluster.map(Arc::new),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "only clients that trust this node's own CA are served until it joins the cluster again");
            }
        }
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cluster_file(&self) -> std::path::PathBuf {
        self.info.path.with_file_name(FILE)
    }

    fn examine(&self, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<Cluster, AuthorityError> {
        let cluster = Cluster::read(&self.cluster_file(), chain, &self.info)?;
        cluster.check(&self.suffixes, now)?;
        self.prove(&cluster, now)?;
        Ok(cluster)
    }

    /// Asks a verifier that trusts only the root about a leaf for everything the node speaks for: signatures, path
    /// length, usages, constraints and dates as a client sees them.
    fn prove(&self, cluster: &Cluster, now: OffsetDateTime) -> Result<(), AuthorityError> {
        let hosts = self.suffixes.iter().collect::<Vec<_>>();
        let mut params = leaf_params(&hosts)?;
        (params.not_before, params.not_after) = (cluster.not_before, cluster.not_after);
        let leaf = params.signed_by(&KeyPair::generate()?, &self.issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(cluster.root.der.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), aws_lc_rs::default_provider().into())
            .build()
            .map_err(|error| ChainError::Refused(error.to_string()))?;
        let now =
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.unix_timestamp().max(0).unsigned_abs()));
        for host in hosts {
            let name = ServerName::try_from(host).map_err(|error| ChainError::Refused(error.to_string()))?;
            verifier
                .verify_server_cert(leaf.der(), &[CertificateDer::clone(&cluster.cross)], &name, &[], now)
                .map_err(|error| ChainError::Refused(error.to_string()))?;
        }
        Ok(())
    }
}

impl Cluster {
    /// Reads how the CA of this data directory chains to a cluster; needs no access to its key and says nothing about
    /// dates. `None` where it does not.
    pub fn of(data_dir: &Path) -> Result<Option<Self>, AuthorityError> {
        let path = ca_dir(data_dir).join(FILE);
        let (Some(own), Some(chain)) = (CaInfo::of(data_dir)?, read_chain(&path)?) else { return Ok(None) };
        Ok(Some(Self::read(&path, &chain, &own)?))
    }

    fn read(path: &Path, chain: &[CertificateDer<'_>], own: &CaInfo) -> Result<Self, AuthorityError> {
        let [cross, root_der] = chain else { return Err(ChainError::Count(chain.len()).into()) };
        let unreadable = |error: x509_parser::nom::Err<_>| ChainError::Unreadable(error.to_string());
        let (_, cert) = x509_parser::parse_x509_certificate(cross).map_err(unreadable)?;
        let (_, ours) = x509_parser::parse_x509_certificate(&own.der).map_err(unreadable)?;
        let (_, root) = x509_parser::parse_x509_certificate(root_der).map_err(unreadable)?;
        if cert.subject().as_raw() != ours.subject().as_raw() {
            return Err(ChainError::Subject(cert.subject().to_string()).into());
        }
        // Leafs name their issuer's key by its identifier too: one that differs breaks the chain for OpenSSL.
        if cert.public_key().raw != ours.public_key().raw || key_id(&cert) != key_id(&ours) {
            return Err(ChainError::Key.into());
        }
        if cert.issuer().as_raw() != root.subject().as_raw() {
            return Err(ChainError::Issuer(cert.issuer().to_string()).into());
        }
        if !signs_cas(&root) {
            return Err(ChainError::Usage.into());
        }
        if !root.name_constraints().ok().flatten().is_some_and(|found| excludes_addresses(found.value)) {
            return Err(ChainError::Addresses.into());
        }
        Ok(Self {
            root: CaInfo::parse(path.to_owned(), pem::certificate(root_der))?,
            not_before: cert.validity().not_before.to_datetime(),
            not_after: cert.validity().not_after.to_datetime(),
            cross: Arc::new(cross.clone().into_owned()),
        })
    }

    fn check(&self, suffixes: &Suffixes, now: OffsetDateTime) -> Result<(), AuthorityError> {
        let cross = CaInfo::parse(self.root.path.clone(), pem::certificate(&self.cross))?;
        let permitted = |ca: &CaInfo| Suffixes::new(&ca.permitted).map_err(|_| ChainError::TooWide("any name".into()));
        for ca in [&cross, &self.root] {
            match permitted(ca)?.missing(suffixes) {
                none if none.is_empty() => {}
                missing => return Err(ChainError::NotCovering(missing).into()),
            }
            if now < ca.not_before {
                return Err(ChainError::NotYetValid(ca.not_before).into());
            }
            if now >= ca.not_after {
                return Err(ChainError::Expired(ca.not_after).into());
            }
        }
        // The root goes into clients' bundles: a whole top-level domain is not for the scheduler to ask for.
        match permitted(&self.root)?.iter().find(|name| !name.contains('.') && !suffixes.covers(name)) {
            Some(name) => Err(ChainError::TooWide(name.to_owned()).into()),
            None => Ok(()),
        }
    }
}

fn read_chain(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, AuthorityError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|source| AuthorityError::Read { path: path.to_owned(), source })?,
    };
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    Ok(Some(chain.map_err(|error| ChainError::Unreadable(error.to_string()))?))
}

fn key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

/// What verifiers built on webpki do not ask of a root, and others do.
fn signs_cas(root: &X509Certificate<'_>) -> bool {
    let path = root.basic_constraints().ok().flatten().and_then(|basic| basic.value.path_len_constraint);
    let signs = root.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
    let servers =
        root.extended_key_usage().ok().flatten().is_none_or(|usage| usage.value.server_auth || usage.value.any);
    path != Some(0) && signs && servers
}

/// Whether every IPv4 and every IPv6 address is excluded: address and mask, all zero (RFC 5280, section 4.2.1.10).
fn excludes_addresses(constraints: &NameConstraints<'_>) -> bool {
    let excluded = |len: usize| {
        constraints.excluded_subtrees.iter().flatten().any(|subtree| match subtree.base {
            GeneralName::IPAddress(bytes) => bytes.len() == len && bytes.iter().all(|byte| *byte == 0),
            _ => false,
        })
    };
    excluded(8) && excluded(32)
}

/// A certificate's name for a request, with the same kinds of strings; `None` for one that cannot be said that way.
fn same_name(name: &X509Name<'_>) -> Option<DistinguishedName> {
    let mut same = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let text = attribute.as_str().ok()?;
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
            _ => return None,
        };
        same.push(DnType::CustomDnType(attribute.attr_type().iter()?.collect()), value);
    }
    Some(same)
}

#[cfg(test)]
mod tests;
