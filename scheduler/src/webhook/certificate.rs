//! The webhook's certificate: a CA in the state directory that speaks for Services, and leaves in memory that are renewed.
//!
//! The API server learns the CA from the webhook's configuration, which the scheduler patches at each start. It is kept
//! (`webhook-ca.key`, 0600: key and certificate) so that schedulers which share their state show the same one. It is none of the
//! cluster's other CAs, as these may not speak for a Service's name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use crate::authority::{AuthorityError, check_mode, file, lock, write};
use crate::trust::first_certificate;
use crate::validity::Validity;

/// Where the CA is, in the state directory.
pub(crate) const FILE: &str = "webhook-ca.key";
/// What it may speak for: the names by which an API server reaches Services. It is trusted for the webhook's connections alone.
pub(super) const DOMAIN: &str = "svc";
/// Life of the CA: longer than any cluster's.
const CA_LIFE: Duration = Duration::days(3650);
/// Life of a leaf; the next one comes at half of it.
pub(super) const LIFE: std::time::Duration = std::time::Duration::from_secs(60 * 86_400);
/// For an API server whose clock is behind.
const BACKDATE: Duration = Duration::hours(1);

/// What the port shows to whoever connects.
pub(super) struct Certificate {
    name: String,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
    leaf: RwLock<(Arc<CertifiedKey>, Validity)>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(transparent)]
    File(#[from] AuthorityError),
    #[error("{} is no usable CA ({why}): remove it, and a new one is made", path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("cannot make the webhook's certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("cannot use the webhook's certificate: {0}")]
    Use(#[from] rustls::Error),
}

impl Certificate {
    /// A leaf for `name` of the CA in the state directory `dir`, which is made where there is none. Blocking.
    pub(super) fn open(dir: &Path, name: &str, now: OffsetDateTime) -> Result<Self, CertificateError> {
        let path = dir.join(FILE);
        make(dir, now)?;
        check_mode(&path)?;
        let text = fs::read_to_string(&path).map_err(|source| file(&path, source))?;
        let corrupt = |why: String| CertificateError::Corrupt { path: path.clone(), why };
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| corrupt(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| corrupt(error.to_string()))?;
        let ca = first_certificate(&text).ok_or_else(|| corrupt("no certificate in it".to_owned()))?;
        let der = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| corrupt(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let leaf = RwLock::new(sign(&issuer, name, now)?);
        Ok(Self { name: name.to_owned(), ca, issuer, leaf })
    }

    /// What the API server has to trust, PEM.
    pub(super) fn ca(&self) -> &str {
        &self.ca
    }

    /// Puts a new leaf in the place of the last one.
    pub(super) fn renew(&self, now: OffsetDateTime) -> Result<(), CertificateError> {
        let leaf = sign(&self.issuer, &self.name, now)?;
        *self.leaf.write().unwrap_or_else(PoisonError::into_inner) = leaf;
        Ok(())
    }

    /// Whether the leaf has to be replaced at this time, in Unix seconds.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.leaf.read().unwrap_or_else(PoisonError::into_inner).1.is_due(now)
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({})", self.name)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.leaf.read().unwrap_or_else(PoisonError::into_inner).0))
    }
}

/// Makes the CA in the state directory `dir` where there is none. Blocking.
pub(crate) fn make(dir: &Path, now: OffsetDateTime) -> Result<(), CertificateError> {
    let _turn = lock(dir)?;
    if dir.join(FILE).exists() {
        return Ok(());
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFE;
    params.distinguished_name = named("Pondhawk webhook CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let content = key.serialize_pem() + &params.self_signed(&key)?.pem();
    Ok(write(&dir.join(FILE), 0o600, content.as_bytes())?)
}

fn sign(
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    now: OffsetDateTime,
) -> Result<(Arc<CertifiedKey>, Validity), CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFE;
    // A common name holds 64 characters, a Service's name may be longer.
    params.distinguished_name = named("Pondhawk webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, issuer)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
    let unix = |time: OffsetDateTime| u64::try_from(time.unix_timestamp()).unwrap_or(0);
    let validity = Validity { not_before: unix(now), not_after: unix(now + LIFE) };
    Ok((Arc::new(CertifiedKey::new(vec![leaf.into()], key)), validity))
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
