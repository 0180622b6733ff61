//! The cluster's identity: one CA, join tokens, certificates of a week.
//!
//! The state directory holds `swarm-ca.pem` (0644), `swarm-ca.key` (0600) and `token.secret` (0600); who owns which name is in
//! the [registry](crate::registry). This CA signs peers
//! and the scheduler, nothing that a client trusts: it is constrained to `pondhawk.internal`.

pub mod token;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::{constant_time, digest, hmac, rand};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;

pub use token::{ParsedToken, TokenError, TokenGrant, TokenTerms};

/// Life of a peer's certificate; it is renewed at half of it. A certificate that must end sooner is denied
/// in the [registry](crate::registry).
pub const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Name that the scheduler's certificate has.
pub const SCHEDULER_NAME: &str = "scheduler.pondhawk.internal";
/// What follows a peer's name in its certificate.
pub const PEER_SUFFIX: &str = ".peer.pondhawk.internal";
const DOMAIN: &str = "pondhawk.internal";
const CA_LIFE: time::Duration = time::Duration::days(3650);
pub(crate) const CERT: &str = "swarm-ca.pem";
pub(crate) const KEY: &str = "swarm-ca.key";
pub(crate) const SECRET: &str = "token.secret";
/// For peers whose clock is behind.
const BACKDATE: time::Duration = time::Duration::hours(1);

/// The CA and the secret behind the tokens.
pub struct Authority {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    secret: PathBuf,
}

/// A certificate just signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Leaf, then CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Unix seconds.
    pub not_after: u64,
}

/// Why there is no identity to be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum AuthorityError {
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is open to other users (mode {mode:04o}): run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is damaged ({why}): restore it from a backup, or remove the directory and let every peer join anew", path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error(
        "{} is damaged ({why}): restore it from a backup; removing it forgets which key owns which name, which tokens are used up, and who is denied",
        path.display()
    )]
    Registry { path: PathBuf, why: String },
    #[error("the certificate request is not a valid PKCS #10 request")]
    Request,
    #[error("{0:?} is no peer name: 1 to 63 of a-z, 0-9, '-' and '.', neither first nor last a '.' or '-'")]
    Name(String),
}

impl Authority {
    /// Loads the state, creating it first where there is none. Blocking.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| file(dir, source))?;
        let _turn = lock(dir)?;
        let (cert_path, key_path) = (dir.join(CERT), dir.join(KEY));
        if !cert_path.exists() {
            let key = match key_path.exists() {
                true => read_key(&key_path)?,
                false => KeyPair::generate()?,
            };
            write(&key_path, 0o600, key.serialize_pem().as_bytes())?;
            write(&cert_path, 0o644, ca_params(&key).self_signed(&key)?.pem().as_bytes())?;
        }
        let corrupt = |why: String| AuthorityError::Corrupt { path: cert_path.clone(), why };
        let pem = fs::read(&cert_path).map_err(|source| file(&cert_path, source))?;
        let ca = CertificateDer::from_pem_slice(&pem).map_err(|error| corrupt(error.to_string()))?;
        let key = read_key(&key_path)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&ca).map_err(|error| corrupt(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(corrupt("it does not belong to swarm-ca.key".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&ca, key)?;
        let secret = dir.join(SECRET);
        if !secret.exists() {
            write(&secret, 0o600, &random_bytes())?;
        }
        read_secret(&secret)?;
        Ok(Self { ca, issuer, secret })
    }

    /// Makes every token handed out so far worthless, at once: also for a scheduler that runs.
    pub fn rotate_tokens(dir: &Path) -> Result<(), AuthorityError> {
        let _turn = lock(dir)?;
        write(&dir.join(SECRET), 0o600, &random_bytes())
    }

    /// The cluster's root.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// A token good for `ttl` with which any number of nodes can join, each under a name that no other key owns.
    pub fn token(&self, now_unix: u64, ttl: Duration) -> Result<String, AuthorityError> {
        self.limited_token(now_unix, ttl, &TokenTerms::reusable())
    }

    /// A join token good for `ttl` under these terms; see [`token`] for its form.
    pub fn limited_token(&self, now_unix: u64, ttl: Duration, terms: &TokenTerms) -> Result<String, AuthorityError> {
        if let Some(name) = terms.name.as_deref().filter(|name| !is_peer_name(name)) {
            return Err(AuthorityError::Name(name.chars().take(80).collect()));
        }
        let ca = hex(digest::digest(&digest::SHA256, &self.ca).as_ref());
        let expiry = now_unix.saturating_add(ttl.as_secs());
        let body = terms.body(&ca, expiry, &hex(&random_bytes()));
        let tag = hmac::sign(&read_secret(&self.secret)?, body.as_bytes());
        Ok(format!("{body}.{}", hex(tag.as_ref())))
    }

    /// Whether a token is genuine and has not expired. Reads the secret, for another process may have rotated it.
    pub fn check_token(&self, token: &str, now_unix: u64) -> Result<(), TokenError> {
        self.token_grant(token, now_unix).map(drop)
    }

    /// What a genuine token that has not expired grants. How often it was used is the registry's business.
    pub fn token_grant(&self, token: &str, now_unix: u64) -> Result<TokenGrant, TokenError> {
        let parsed = ParsedToken::parse(token)?;
        let (body, tag) = token.trim().rsplit_once('.').ok_or(TokenError::Malformed)?;
        let secret = read_secret(&self.secret).map_err(|error| {
            tracing::error!(%error, "join tokens cannot be checked");
            TokenError::Unchecked
        })?;
        let expected = hex(hmac::sign(&secret, body.as_bytes()).as_ref());
        constant_time::verify_slices_are_equal(expected.as_bytes(), tag.as_bytes()).map_err(|_| TokenError::Wrong)?;
        if parsed.expiry_unix <= now_unix { Err(TokenError::Expired) } else { Ok(parsed.into_grant()) }
    }

    /// A certificate for the peer `name` and the public key in a PKCS #10 request, whose other content is ignored.
    pub fn sign(&self, name: &str, csr: &[u8], now: OffsetDateTime) -> Result<Signed, AuthorityError> {
        if !is_peer_name(name) {
            return Err(AuthorityError::Name(name.chars().take(80).collect()));
        }
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(|_| AuthorityError::Request)?;
        request.params = leaf_params(name, &format!("{name}{PEER_SUFFIX}"), now)?;
        let leaf = request.signed_by(&self.issuer)?;
        Ok(self.signed(leaf.into(), request.params.not_after))
    }

    /// Certificate and key of the scheduler itself.
    pub fn own(&self, now: OffsetDateTime) -> Result<(Signed, PrivateKeyDer<'static>), AuthorityError> {
        let key = KeyPair::generate()?;
        let params = leaf_params("scheduler", SCHEDULER_NAME, now)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((self.signed(leaf.into(), params.not_after), PrivateKeyDer::Pkcs8(key.serialize_der().into())))
    }

    fn signed(&self, leaf: CertificateDer<'static>, not_after: OffsetDateTime) -> Signed {
        let not_after = u64::try_from(not_after.unix_timestamp()).unwrap_or(0);
        Signed { chain: vec![leaf, self.ca.clone()], not_after }
    }
}

/// Whether a name may be a peer's.
pub fn is_peer_name(name: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-');
    (1..=63).contains(&name.len()) && name.split('.').all(label)
}

/// The peer's name in a certificate of the cluster (its chain is checked elsewhere). `None` for the scheduler's.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let name = names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => name.strip_suffix(PEER_SUFFIX),
        _ => None,
    })?;
    is_peer_name(name).then(|| name.to_owned())
}

/// SHA-256 of the public key in a certificate (its SubjectPublicKeyInfo, DER). It stays the same when the certificate is
/// renewed.
pub fn certificate_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(sha256(parsed.public_key().raw))
}

/// The same of the key in a PKCS #10 request, whose signature is checked where it is signed.
pub fn request_key(csr: &[u8]) -> Option<[u8; 32]> {
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(csr).ok()?;
    Some(sha256(request.certification_request_info.subject_pki.raw))
}

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    sha256(certificate)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn ca_params(key: &KeyPair) -> CertificateParams {
    let id = hex(&digest::digest(&digest::SHA256, key.public_key_raw()).as_ref()[..4]);
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFE;
    params.distinguished_name = named(&format!("Pondhawk swarm CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    params
}

fn leaf_params(name: &str, host: &str, now: OffsetDateTime) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFE;
    params.distinguished_name = named(name);
    params.subject_alt_names = vec![SanType::DnsName(host.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Of two processes at one state, the first creates it.
pub(crate) fn lock(dir: &Path) -> Result<fs::File, AuthorityError> {
    let path = dir.join("lock");
    let locked = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).and_then(|lock| {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(lock)
    });
    locked.map_err(|source| file(&path, source))
}

fn read_secret(path: &Path) -> Result<hmac::Key, AuthorityError> {
    check_mode(path)?;
    let secret = fs::read(path).map_err(|source| file(path, source))?;
    if secret.len() != 32 {
        return Err(AuthorityError::Corrupt { path: path.to_owned(), why: "not 32 bytes".to_owned() });
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
}

fn read_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    check_mode(path)?;
    let pem = fs::read_to_string(path).map_err(|source| file(path, source))?;
    KeyPair::from_pem(&pem).map_err(|error| AuthorityError::Corrupt { path: path.to_owned(), why: error.to_string() })
}

pub(crate) fn check_mode(path: &Path) -> Result<(), AuthorityError> {
    let mode = fs::metadata(path).map_err(|source| file(path, source))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 { Err(AuthorityError::Exposed { path: path.to_owned(), mode }) } else { Ok(()) }
}

/// Written beside and renamed, so that a crash leaves the old file or the new one.
pub(crate) fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), AuthorityError> {
    let new = path.with_extension("new");
    let written = fs::remove_file(&new).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    written
        .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(mode).open(&new))
        .and_then(|mut out| out.write_all(content).and_then(|()| out.sync_all()))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|source| file(path, source))
}

pub(crate) fn file(path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File { path: path.to_owned(), source }
}

pub(crate) fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).expect("the kernel has random bytes");
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_64_digits() {
        assert_eq!(unhex(&"0a".repeat(32)), Some([10; 32]));
        for bad in ["", "0a", &"zz".repeat(32), &"0a".repeat(33), &"€".repeat(32)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_only_here() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(here.path()).unwrap();
        let token = authority.token(1_000, Duration::from_secs(60)).unwrap();
        assert_eq!(authority.check_token(&token, 1_059), Ok(()));
        assert_eq!(authority.check_token(&token, 1_060), Err(TokenError::Expired));
        assert_eq!(Authority::open(here.path()).unwrap().check_token(&token, 1_001), Ok(()));
        assert_eq!(Authority::open(there.path()).unwrap().check_token(&token, 1_001), Err(TokenError::Wrong));
        let later = token.replacen(".424.", ".ffff.", 1);
        assert_ne!(later, token);
        assert_eq!(authority.check_token(&later, 1_001), Err(TokenError::Wrong));
        assert_eq!(authority.check_token("ph1.x", 1_001), Err(TokenError::Malformed));
        Authority::rotate_tokens(here.path()).unwrap();
        assert_eq!(authority.check_token(&token, 1_001), Err(TokenError::Wrong));
        assert_eq!(Authority::open(here.path()).unwrap().check_token(&token, 1_001), Err(TokenError::Wrong));
    }

    #[test]
    fn a_certificate_names_the_peer_whatever_the_request_says() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
        let now = OffsetDateTime::now_utc();
        let signed = authority.sign("node-1", csr.der(), now).unwrap();
        assert_eq!(peer_name(&signed.chain[0]).as_deref(), Some("node-1"));
        assert!(matches!(authority.sign("Node", csr.der(), now), Err(AuthorityError::Name(_))));
        assert!(matches!(authority.sign("node", b"x", now), Err(AuthorityError::Request)));
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::open(dir.path()).unwrap());
        fs::set_permissions(dir.path().join("swarm-ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Authority::open(dir.path()), Err(AuthorityError::Exposed { .. })));
    }
}
