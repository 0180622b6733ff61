//! The node's own certificate authority: created on first start, constrained to the host suffixes the node intercepts.
//!
//! `DATA_DIR/ca/` holds `ca.pem` (0644), `ca.key` (0600), `bundle.pem` and, in a cluster, `cluster.pem`. The directory is 0755, not 0700: clients of
//! other users read the two PEM files; only the key is secret. Key and certificate appear together by one rename, so
//! neither a crash nor a second node starting on the same directory leaves half a CA.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::Suffixes;

mod cluster;

pub use cluster::{ChainError, Cluster};

/// Life of the CA: its replacement means touching every client.
const CA_VALIDITY: Duration = Duration::days(3650);
/// Life of a leaf; they are reissued without anybody noticing.
const LEAF_VALIDITY: Duration = Duration::days(30);
/// Certificates begin this long before they are made, for clients whose clock is behind.
const BACKDATE: Duration = Duration::days(1);
/// Leftovers of a crashed creation older than this are removed.
const STALE_NEW_DIR: std::time::Duration = std::time::Duration::from_secs(3600);
/// Longest common name (RFC 5280, appendix A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The node's CA, ready to sign. Shared by all shards.
#[derive(Debug)]
pub struct Authority {
    info: CaInfo,
    issuer: Issuer<'static, KeyPair>,
    suffixes: Suffixes,
    own: Arc<CertificateDer<'static>>,
    cluster: RwLock<Option<Arc<Cluster>>>,
}

/// What a CA certificate says; readable without the key.
#[derive(Clone, Debug)]
pub struct CaInfo {
    /// `DATA_DIR/ca/ca.pem`, or the file that it is part of.
    pub path: PathBuf,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate as PEM text, one block, ending in a newline.
    pub pem: String,
    /// SHA-256 of the DER form.
    pub fingerprint: [u8; 32],
    /// The subject, as text.
    pub subject: String,
    /// Permitted dNSName subtrees, as they stand in the certificate.
    pub permitted: Vec<String>,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    public_key: Vec<u8>,
}

/// A certificate and key for one host, with the instants between which it may be presented.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Chain (leaf, then the CA by whose certificate it is presented) and key for rustls.
    pub key: Arc<CertifiedKey>,
    /// That certificate: see [`Authority::adopt`].
    pub link: Arc<CertificateDer<'static>>,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

/// Why there is no usable CA. Each message names the way out.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum AuthorityError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the CA's key {path} is open to other users (mode {mode:04o}): run `chmod 600 {path}`; if somebody may have copied it, replace the CA",
        path = path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error(
        "the CA's directory {path} can be changed by other users (mode {mode:04o}): run `chmod 755 {path}`",
        path = path.display()
    )]
    DirExposed { path: PathBuf, mode: u32 },
    #[error("{} has no {missing}: restore it from a backup, or {}", dir.display(), replace(dir))]
    Incomplete { dir: PathBuf, missing: &'static str },
    #[error("{} is no usable CA ({why}): restore it from a backup, or {}", path.display(), replace(path.parent().unwrap_or(path)))]
    Corrupt { path: PathBuf, why: String },
    #[error("the CA in {} may not speak for {missing}, which is configured now; to widen it, {}", dir.display(), replace(dir))]
    NotCovering { dir: PathBuf, missing: String },
    #[error("the CA in {} expired at {since}: {}", dir.display(), replace(dir))]
    Expired { dir: PathBuf, since: OffsetDateTime },
    #[error("the CA in {} is valid only from {from}: is the clock right?", dir.display())]
    NotYetValid { dir: PathBuf, from: OffsetDateTime },
    #[error("cannot sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("cannot use a certificate just signed: {0}")]
    Use(#[from] rustls::Error),
    #[error("the node's CA as signed by the cluster is not usable: {0}")]
    Chain(#[from] ChainError),
    #[error("no system root certificates found (looked at {0}): name a file of them with `--roots`")]
    NoSystemRoots(String),
}

fn replace(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "replace it: `mv {dir} {dir}.old`, start the node, run `pondhawk ca install`, and give clients the new bundle"
    )
}

impl Authority {
    /// Loads the CA of this data directory, creating it first where there is none. Blocking.
    ///
    /// Errors where the CA exists and is not safe or not enough: it is never replaced silently, since clients trust it.
    pub fn open(data_dir: &Path, suffixes: &Suffixes) -> Result<Self, AuthorityError> {
        let dir = ca_dir(data_dir);
        if !dir.join(CERT).exists() && !dir.join(KEY).exists() {
            create(data_dir, suffixes)?;
        }
        remove_stale(data_dir);
        Self::load(&dir, suffixes, OffsetDateTime::now_utc())
    }

    /// What the certificate says.
    pub fn info(&self) -> &CaInfo {
        &self.info
    }

    /// The suffixes this node serves, each covered by the CA.
    pub fn suffixes(&self) -> &Suffixes {
        &self.suffixes
    }

    /// A new key and a certificate for `host`, valid from a day before `now`. `host` comes from
    /// [`Suffixes::leaf_name`]: the CA's constraints make any other worthless.
    pub fn issue(&self, host: &str, now: OffsetDateTime) -> Result<Leaf, AuthorityError> {
        let mut params = leaf_params(&[host])?;
        let not_after = (now + LEAF_VALIDITY).min(self.info.not_after);
        params.not_before = now - BACKDATE;
        params.not_after = not_after;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let signer = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
        let link = self.link(now);
        let key = Arc::new(CertifiedKey::new(vec![leaf.into(), CertificateDer::clone(&link)], signer));
        Ok(Leaf { key, link, not_before: params.not_before, not_after })
    }

    fn load(dir: &Path, suffixes: &Suffixes, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let info = CaInfo::read(dir)?;
        let key = read_key(dir)?;
        if key.public_key_raw() != info.public_key {
            return Err(AuthorityError::Corrupt { path: info.path, why: "it does not belong to ca.key".to_owned() });
        }
        info.check(dir, suffixes, now)?;
        let issuer = Issuer::from_ca_cert_der(&info.der, key)?;
        let own = Arc::new(info.der.clone());
        let authority = Self { info, issuer, suffixes: suffixes.clone(), own, cluster: RwLock::default() };
        authority.load_cluster(now);
        Ok(authority)
    }
}

impl CaInfo {
    /// Reads the CA certificate of this data directory; needs no access to the key. `None` where there is none yet.
    pub fn of(data_dir: &Path) -> Result<Option<Self>, AuthorityError> {
        match Self::read(&ca_dir(data_dir)) {
            Err(AuthorityError::Incomplete { missing: CERT, .. }) => Ok(None),
            result => result.map(Some),
        }
    }

    /// The fingerprint as OpenSSL prints it: `AB:CD:...`.
    pub fn fingerprint_text(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    fn read(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(CERT);
        let pem = read(&path, dir, CERT)?;
        Self::parse(path, pem)
    }

    fn parse(path: PathBuf, pem: String) -> Result<Self, AuthorityError> {
        let corrupt = |why: String| AuthorityError::Corrupt { path: path.clone(), why };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| corrupt(e.to_string()))?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| corrupt(e.to_string()))?;
        if !cert.is_ca() {
            return Err(corrupt("it is not a CA certificate".to_owned()));
        }
        let constraints = cert.name_constraints().map_err(|e| corrupt(e.to_string()))?;
        let permitted =
            constraints.and_then(|c| c.value.permitted_subtrees.as_ref()).map(Vec::as_slice).unwrap_or_default();
        Ok(Self {
            fingerprint: digest(&der),
            subject: cert.subject().to_string(),
            permitted: permitted.iter().filter_map(|subtree| dns_name(&subtree.base)).collect(),
            not_before: cert.validity().not_before.to_datetime(),
            not_after: cert.validity().not_after.to_datetime(),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            der: der.clone(),
            pem,
            path,
        })
    }

    fn check(&self, dir: &Path, suffixes: &Suffixes, now: OffsetDateTime) -> Result<(), AuthorityError> {
        let dir = dir.to_path_buf();
        if now >= self.not_after {
            return Err(AuthorityError::Expired { dir, since: self.not_after });
        }
        if now < self.not_before {
            return Err(AuthorityError::NotYetValid { dir, from: self.not_before });
        }
        if self.permitted.is_empty() {
            let why =
                "it is not constrained to any host suffix: whoever has its key could impersonate every host".to_owned();
            return Err(AuthorityError::Corrupt { path: self.path.clone(), why });
        }
        let permitted = Suffixes::new(&self.permitted)
            .map_err(|e| AuthorityError::Corrupt { path: self.path.clone(), why: e.to_string() })?;
        let missing = permitted.missing(suffixes);
        if missing.is_empty() { Ok(()) } else { Err(AuthorityError::NotCovering { dir, missing }) }
    }
}

const CERT: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEW_PREFIX: &str = ".ca-new-";

pub(super) fn ca_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("ca")
}

fn digest(der: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    }
}

fn read(path: &Path, dir: &Path, missing: &'static str) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => AuthorityError::Incomplete { dir: dir.to_path_buf(), missing },
        _ => AuthorityError::Read { path: path.to_path_buf(), source },
    })
}

fn read_key(dir: &Path) -> Result<KeyPair, AuthorityError> {
    let path = dir.join(KEY);
    let pem = read(&path, dir, KEY)?;
    let mode = mode_of(&path)?;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::KeyExposed { path, mode });
    }
    // Whoever may rename files here may put a key of his own in place.
    let dir_mode = mode_of(dir)?;
    if dir_mode & 0o022 != 0 {
        return Err(AuthorityError::DirExposed { path: dir.to_path_buf(), mode: dir_mode });
    }
    KeyPair::from_pem(&pem).map_err(|e| AuthorityError::Corrupt { path, why: e.to_string() })
}

fn mode_of(path: &Path) -> Result<u32, AuthorityError> {
    let metadata = fs::metadata(path).map_err(|source| AuthorityError::Read { path: path.to_path_buf(), source })?;
    Ok(metadata.permissions().mode() & 0o7777)
}

/// Makes the CA in a directory of its own and renames that into place. Of two nodes that do so at once one wins: the
/// other's rename meets a directory that is not empty, and it goes on with the winner's.
fn create(data_dir: &Path, suffixes: &Suffixes) -> Result<(), AuthorityError> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let unique = format!("{NEW_PREFIX}{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    let new = data_dir.join(unique);
    let (cert, key) = make(suffixes, OffsetDateTime::now_utc())?;
    let written = write_new(data_dir, &new, &cert, &key).and_then(|()| match fs::rename(&new, ca_dir(data_dir)) {
        Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            fs::remove_dir_all(&new)
        }
        result => result.and_then(|()| File::open(data_dir)?.sync_all()),
    });
    written.map_err(|source| {
        let _ = fs::remove_dir_all(&new);
        AuthorityError::Write { path: ca_dir(data_dir), source }
    })
}

fn write_new(data_dir: &Path, new: &Path, cert: &str, key: &str) -> io::Result<()> {
    fs::create_dir_all(data_dir)?;
    match fs::remove_dir_all(new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(new)?;
    write_file(&new.join(KEY), 0o600, key)?;
    write_file(&new.join(CERT), 0o644, cert)?;
    // Explicitly, since the umask may have taken bits away from what other users need.
    fs::set_permissions(new.join(CERT), Permissions::from_mode(0o644))?;
    fs::set_permissions(new, Permissions::from_mode(0o755))?;
    File::open(new)?.sync_all()
}

fn write_file(path: &Path, mode: u32, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// A node killed between creating and renaming leaves a directory with a key nobody trusts.
fn remove_stale(data_dir: &Path) {
    let Ok(entries) = fs::read_dir(data_dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(NEW_PREFIX)) {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > STALE_NEW_DIR) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn make(suffixes: &Suffixes, now: OffsetDateTime) -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate()?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // Two CAs of one name in a trust store confuse the search for an issuer: the key's digest tells them apart.
    let id = digest(key.public_key_raw()).iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    let host = host.chars().filter(char::is_ascii).take(MAX_COMMON_NAME - 28).collect::<String>();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_VALIDITY;
    params.distinguished_name = name(&format!("Pondhawk node CA {host} {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
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
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Everything but the dates of a leaf for these hosts.
fn leaf_params(hosts: &[&str]) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let common = hosts.first().filter(|host| host.len() <= MAX_COMMON_NAME);
    params.distinguished_name = name(common.unwrap_or(&"intercepted host"));
    for host in hosts {
        params.subject_alt_names.push(SanType::DnsName((*host).try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Python 3.13 verifies with X509_V_FLAG_X509_STRICT, which wants it.
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Pondhawk");
    name.push(DnType::CommonName, common);
    name
}

#[cfg(test)]
mod tests;
