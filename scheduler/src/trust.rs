//! The cluster's trust root: the one certificate that a pod trusts on every node.
//!
//! Every node terminates TLS under a CA of its own. This root signs those CAs a second time (same subject, same key), so
//! that their leafs verify under it as well. It is not the swarm's CA: clients trust this one, and it is constrained to
//! the hosts that the cluster intercepts.
//!
//! The state directory holds `trust-root.key` (0600: key and certificate, so that both appear at once) and
//! `trust-root.pem` (0644: the certificate again, to be handed out).

pub mod variables;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::authority::LIFE;
use crate::hosts::{NameError, Suffixes};

/// Life of the root: its replacement means touching every client.
const ROOT_VALIDITY: Duration = Duration::days(3650);
/// Life of a cross certificate: that of the peer's own certificate, with which it is renewed at half of it, and half of it more for
/// schedulers that are away. It cannot be revoked, so this is how long a node that was denied can still speak for the hosts.
pub const CROSS_VALIDITY: Duration = Duration::seconds(LIFE.as_secs() as i64 * 3 / 2);
/// Certificates begin this long before they are made, for clients whose clock is behind.
const BACKDATE: Duration = Duration::days(1);
/// A node intercepts at most this many suffixes.
const MAX_SUFFIXES: usize = 64;
/// A request of one EC key and a name has some 300 bytes.
const MAX_REQUEST: usize = 4096;

pub(crate) const KEY: &str = "trust-root.key";
pub(crate) const CERT: &str = "trust-root.pem";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The root, ready to sign.
#[derive(Debug)]
pub struct TrustRoot {
    info: RootInfo,
    issuer: Issuer<'static, KeyPair>,
}

/// What the root certificate says; readable without the key.
#[derive(Clone, Debug)]
pub struct RootInfo {
    /// `trust-root.pem`.
    pub path: PathBuf,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate as PEM text, one block, ending in a newline.
    pub pem: String,
    /// The subject, as text.
    pub subject: String,
    /// The host suffixes that it may speak for.
    pub permitted: Suffixes,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    subject_der: Vec<u8>,
    public_key: Vec<u8>,
}

/// Why there is no usable root, or a node's CA was not signed. Each message names the way out.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TrustError {
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the trust root's key {path} is open to other users (mode {mode:04o}): run `chmod 600 {path}`; if somebody may have copied it, replace the root",
        path = path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error(
        "the trust root's directory {path} can be changed by other users (mode {mode:04o}): run `chmod 700 {path}`",
        path = path.display()
    )]
    DirExposed { path: PathBuf, mode: u32 },
    #[error("{} is there and {KEY} is not: restore it from a backup, or {}", path.display(), replace(path))]
    Incomplete { path: PathBuf },
    #[error("{} is no usable trust root ({why}): restore it from a backup, or {}", path.display(), replace(path))]
    Corrupt { path: PathBuf, why: String },
    #[error("the trust root {} may not speak for {missing}, which is configured now; to widen it, {}", path.display(), replace(path))]
    NotCovering { path: PathBuf, missing: String },
    #[error("the trust root {} expired at {since}: {}", path.display(), replace(path))]
    Expired { path: PathBuf, since: OffsetDateTime },
    #[error("the trust root {} is valid only from {from}: is the scheduler's clock right?", path.display())]
    NotYetValid { path: PathBuf, from: OffsetDateTime },
    #[error("the request for the node's CA is not a valid PKCS #10 request")]
    Request,
    #[error("the node's CA has a key of a kind that not every client takes: P-256 or P-384 is needed")]
    KeyKind,
    #[error("the node's CA cannot have the subject {0:?}: it must have one, and not the root's")]
    Subject(String),
    #[error("{0} host suffixes are asked for, {MAX_SUFFIXES} are allowed")]
    TooMany(usize),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the cluster's trust root may not speak for {missing}, only for {permitted} and what is below")]
    Refused { missing: String, permitted: String },
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

fn replace(path: &Path) -> String {
    let dir = path.parent().unwrap_or(path).display();
    format!(
        "replace it: move {dir}/{KEY} and {dir}/{CERT} away, start the scheduler, and give clients the new {CERT}; the nodes' own CAs stay good meanwhile"
    )
}

impl TrustRoot {
    /// Loads the root of this state directory, creating it for `hosts` where there is none. Blocking.
    ///
    /// Errors where it exists and is not safe or not enough: it is never replaced silently, since clients trust it.
    pub fn open(dir: &Path, hosts: &Suffixes) -> Result<Self, TrustError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| file(dir, source))?;
        if !dir.join(KEY).exists() {
            if dir.join(CERT).exists() {
                return Err(TrustError::Incomplete { path: dir.join(CERT) });
            }
            create(dir, hosts)?;
        }
        Self::load(dir, hosts, OffsetDateTime::now_utc())
    }

    /// What the certificate says.
    pub fn info(&self) -> &RootInfo {
        &self.info
    }

    /// Signs a node's CA for `suffixes`: the request's subject and key, at most [`CROSS_VALIDITY`]. Returns that
    /// certificate, then the root. Whoever calls has made sure that the node belongs to the cluster.
    pub fn cross_sign<S: AsRef<str>>(
        &self,
        csr: &[u8],
        suffixes: impl IntoIterator<Item = S>,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        self.info.check_dates(now)?;
        let suffixes = self.allowed(suffixes)?;
        let request = self.request(csr)?;
        let mut params = ca_params(request.params.distinguished_name, &suffixes, 0);
        params.not_before = (now - BACKDATE).max(self.info.not_before);
        params.not_after = (now + CROSS_VALIDITY).min(self.info.not_after);
        // Python 3.13 verifies with X509_V_FLAG_X509_STRICT, which wants it.
        params.use_authority_key_identifier_extension = true;
        let cross = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(vec![cross.into(), self.info.der.clone()])
    }

    fn allowed<S: AsRef<str>>(&self, suffixes: impl IntoIterator<Item = S>) -> Result<Suffixes, TrustError> {
        let suffixes: Vec<S> = suffixes.into_iter().collect();
        if suffixes.len() > MAX_SUFFIXES {
            return Err(TrustError::TooMany(suffixes.len()));
        }
        let suffixes = Suffixes::new(&suffixes)?;
        let permitted = &self.info.permitted;
        match permitted.missing(&suffixes) {
            none if none.is_empty() => Ok(suffixes),
            missing => Err(TrustError::Refused { missing, permitted: permitted.to_string() }),
        }
    }

    /// Reads a request; its signature shows that the node has the key.
    fn request(&self, csr: &[u8]) -> Result<CertificateSigningRequestParams, TrustError> {
        if csr.len() > MAX_REQUEST {
            return Err(TrustError::Request);
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(|_| TrustError::Request)?;
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384].contains(&request.public_key.algorithm()) {
            return Err(TrustError::KeyKind);
        }
        let subject = subject_of(csr).ok_or(TrustError::Request)?;
        // A CA named like its issuer looks self-signed to whoever builds a chain.
        if subject.0 == self.info.subject_der || request.params.distinguished_name.iter().next().is_none() {
            return Err(TrustError::Subject(subject.1.chars().take(200).collect()));
        }
        Ok(request)
    }

    fn load(dir: &Path, hosts: &Suffixes, now: OffsetDateTime) -> Result<Self, TrustError> {
        let path = dir.join(KEY);
        check_modes(dir, &path)?;
        let text = fs::read_to_string(&path).map_err(|source| file(&path, source))?;
        let corrupt = |why: String| TrustError::Corrupt { path: path.clone(), why };
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| corrupt(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| corrupt(error.to_string()))?;
        let info = RootInfo::parse(&path, dir.join(CERT), &text)?;
        if key.public_key_raw() != info.public_key {
            return Err(corrupt("its key and its certificate do not belong together".to_owned()));
        }
        info.publish()?;
        info.check_dates(now)?;
        match info.permitted.missing(hosts) {
            none if none.is_empty() => Ok(Self { issuer: Issuer::from_ca_cert_der(&info.der, key)?, info }),
            missing => Err(TrustError::NotCovering { path: info.path, missing }),
        }
    }
}

impl RootInfo {
    /// Reads the root of this state directory; needs no access to the key. `None` where there is none yet. Blocking.
    pub fn of(dir: &Path) -> Result<Option<Self>, TrustError> {
        let path = dir.join(CERT);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&path, path.clone(), &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file(&path, source)),
        }
    }

    /// SHA-256 of the certificate as OpenSSL prints it: `AB:CD:...`.
    pub fn fingerprint_text(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.der);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    fn parse(source: &Path, path: PathBuf, text: &str) -> Result<Self, TrustError> {
        let corrupt = |why: String| TrustError::Corrupt { path: source.to_owned(), why };
        let pem = first_certificate(text).ok_or_else(|| corrupt("no certificate in it".to_owned()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| corrupt(error.to_string()))?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|error| corrupt(error.to_string()))?;
        if !cert.is_ca() {
            return Err(corrupt("it is not a CA certificate".to_owned()));
        }
        let permitted = Suffixes::new(permitted_names(&cert))
            .map_err(|_| corrupt("it is not constrained to any host suffix".to_owned()))?;
        Ok(Self {
            subject: cert.subject().to_string(),
            subject_der: cert.subject().as_raw().to_vec(),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            not_before: cert.validity().not_before.to_datetime(),
            not_after: cert.validity().not_after.to_datetime(),
            der: der.clone(),
            pem,
            permitted,
            path,
        })
    }

    /// Writes `trust-root.pem` where a crash, or somebody, left none. One that is of another root is an error.
    fn publish(&self) -> Result<(), TrustError> {
        match Self::of(self.path.parent().unwrap_or(Path::new("/")))? {
            Some(published) if published.der == self.der => Ok(()),
            Some(_) => {
                let why = format!("it is not the certificate in {KEY}");
                Err(TrustError::Corrupt { path: self.path.clone(), why })
            }
            None => write_once(&self.path, 0o644, self.pem.as_bytes()),
        }
    }

    fn check_dates(&self, now: OffsetDateTime) -> Result<(), TrustError> {
        let path = self.path.clone();
        match () {
            () if now >= self.not_after => Err(TrustError::Expired { path, since: self.not_after }),
            () if now < self.not_before => Err(TrustError::NotYetValid { path, from: self.not_before }),
            () => Ok(()),
        }
    }
}

/// The first certificate of a PEM text, alone.
pub(crate) fn first_certificate(text: &str) -> Option<String> {
    let block = &text[text.find(BEGIN)?..];
    Some(format!("{}\n", &block[..block.find(END)? + END.len()]))
}

fn permitted_names(cert: &X509Certificate<'_>) -> Vec<String> {
    let constraints = cert.name_constraints().ok().flatten();
    let permitted = constraints.and_then(|found| found.value.permitted_subtrees.as_ref());
    let names = permitted.into_iter().flatten().filter_map(|subtree| match subtree.base {
        GeneralName::DNSName(name) => Some(name.to_owned()),
        _ => None,
    });
    names.collect()
}

/// The subject of a request, as it stands there and as text; `None` of what is no request, or more than one.
fn subject_of(csr: &[u8]) -> Option<(Vec<u8>, String)> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let (rest, request) = X509CertificationRequest::from_der(csr).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let subject = &request.certification_request_info.subject;
    Some((subject.as_raw().to_vec(), subject.to_string()))
}

fn create(dir: &Path, hosts: &Suffixes) -> Result<(), TrustError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // Two roots of one name in a trust store confuse the search for an issuer: the key's digest tells them apart.
    let id = &digest::digest(&digest::SHA256, key.public_key_raw());
    let id = id.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Pondhawk");
    name.push(DnType::CommonName, format!("Pondhawk cluster root {id}"));
    let now = OffsetDateTime::now_utc();
    let mut params = ca_params(name, hosts, 1);
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_VALIDITY;
    let content = key.serialize_pem() + &params.self_signed(&key)?.pem();
    write_once(&dir.join(KEY), 0o600, content.as_bytes())
}

fn ca_params(subject: DistinguishedName, suffixes: &Suffixes, cas_below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(cas_below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: suffixes.iter().map(|suffix| GeneralSubtree::DnsName(suffix.to_owned())).collect(),
        // A list of permitted DNS names says nothing about addresses (RFC 5280, section 4.2.1.10).
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    params
}

fn check_modes(dir: &Path, key: &Path) -> Result<(), TrustError> {
    let mode_of = |path: &Path| {
        let metadata = fs::metadata(path).map_err(|source| file(path, source))?;
        Ok::<u32, TrustError>(metadata.permissions().mode() & 0o7777)
    };
    let (key_mode, dir_mode) = (mode_of(key)?, mode_of(dir)?);
    if key_mode & 0o077 != 0 {
        return Err(TrustError::KeyExposed { path: key.to_owned(), mode: key_mode });
    }
    // Whoever may rename files here may put a root of his own in place.
    if dir_mode & 0o022 != 0 {
        return Err(TrustError::DirExposed { path: dir.to_owned(), mode: dir_mode });
    }
    Ok(())
}

/// Makes a whole file appear, or leaves the one that is there: of two schedulers that start at once one wins.
fn write_once(path: &Path, mode: u32, content: &[u8]) -> Result<(), TrustError> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.new", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
    let new = path.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut out| {
            out.set_permissions(fs::Permissions::from_mode(mode))?;
            out.write_all(content)?;
            out.sync_all()
        })
        .and_then(|()| fs::hard_link(&new, path))
        .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) });
    let _ = fs::remove_file(&new);
    let synced = written.and_then(|()| fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all());
    synced.map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> TrustError {
    TrustError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
