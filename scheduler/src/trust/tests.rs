//! Creating and loading the root, each way in which it can be unusable, and what it signs.

use super::*;

fn suffixes(names: &[&str]) -> Suffixes {
    Suffixes::new(names).unwrap()
}

fn request(subject: &str) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !subject.is_empty() {
        params.distinguished_name.push(DnType::CommonName, subject);
    }
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_second_start_finds_the_first_one_s_root_and_a_lost_copy_comes_back() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("scheduler");
    assert!(RootInfo::of(&dir).unwrap().is_none());
    let first = TrustRoot::open(&dir, &suffixes(&["hf.co"])).unwrap();
    assert_eq!((mode(&dir), mode(&dir.join(KEY)), mode(&dir.join(CERT))), (0o700, 0o600, 0o644));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "nothing is left of the creation");
    let published = fs::read_to_string(dir.join(CERT)).unwrap();
    assert_eq!(published, first.info().pem);
    fs::remove_file(dir.join(CERT)).unwrap();
    let again = TrustRoot::open(&dir, &suffixes(&["cdn.hf.co"])).unwrap();
    assert_eq!(again.info().der, first.info().der);
    assert_eq!(RootInfo::of(&dir).unwrap().unwrap().fingerprint_text(), first.info().fingerprint_text());
}

#[test]
fn schedulers_that_start_at_once_agree_on_one_root() {
    let state = tempfile::tempdir().unwrap();
    let open = || TrustRoot::open(state.path(), &suffixes(&["hf.co"])).unwrap().info().der.clone();
    let all = std::thread::scope(|scope| {
        let threads = (0..8).map(|_| scope.spawn(open)).collect::<Vec<_>>();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(all.iter().all(|root| *root == all[0]));
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 2);
}

#[test]
fn a_root_that_is_open_to_others_torn_half_or_foreign_is_refused_and_kept() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = suffixes(&["hf.co"]);
    TrustRoot::open(here.path(), &names).unwrap();
    TrustRoot::open(there.path(), &names).unwrap();
    let refused = || TrustRoot::open(here.path(), &names).unwrap_err();
    let (key, cert) = (here.path().join(KEY), here.path().join(CERT));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused().to_string().contains(&format!("chmod 600 {}", key.display())));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(here.path(), fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(refused(), TrustError::DirExposed { mode: 0o770, .. }));
    fs::set_permissions(here.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let (content, published) = (fs::read(&key).unwrap(), fs::read(&cert).unwrap());
    fs::copy(there.path().join(CERT), &cert).unwrap();
    assert!(refused().to_string().contains("not the certificate in"));
    fs::write(&cert, published).unwrap();
    fs::write(&key, &content[..content.len() / 2]).unwrap();
    assert!(matches!(refused(), TrustError::Corrupt { .. }));
    fs::remove_file(&key).unwrap();
    assert!(matches!(refused(), TrustError::Incomplete { .. }));
    assert!(!key.exists(), "no new root beside the old certificate");
}

#[test]
fn a_root_too_narrow_for_the_configuration_or_out_of_date_says_so() {
    let state = tempfile::tempdir().unwrap();
    let names = suffixes(&["hf.co"]);
    TrustRoot::open(state.path(), &names).unwrap();
    let error = TrustRoot::open(state.path(), &suffixes(&["a.hf.co", "huggingface.co"])).unwrap_err().to_string();
    assert!(error.contains("may not speak for huggingface.co, which"), "{error}");
    let load = |days| TrustRoot::load(state.path(), &names, OffsetDateTime::now_utc() + Duration::days(days));
    assert!(matches!(load(3_651), Err(TrustError::Expired { .. })));
    assert!(matches!(load(-2), Err(TrustError::NotYetValid { .. })));
    let root = load(3_640).unwrap();
    let late = OffsetDateTime::now_utc() + Duration::days(3_640);
    let chain = root.cross_sign(&request("node").1, ["hf.co"], late).unwrap();
    let (_, cross) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(cross.validity().not_after.to_datetime(), root.info().not_after, "it does not outlive the root");
}

#[test]
fn a_node_s_ca_is_signed_with_its_subject_its_key_and_its_hosts_only() {
    let state = tempfile::tempdir().unwrap();
    let root = TrustRoot::open(state.path(), &suffixes(&["hf.co", "huggingface.co"])).unwrap();
    let (key, csr) = request("some node");
    let now = OffsetDateTime::now_utc();
    let chain = root.cross_sign(&csr, ["*.CDN.hf.co", "x.cdn.hf.co"], now).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], root.info().der);
    let (_, cross) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(cross.subject().to_string(), "CN=some node");
    assert_eq!(cross.issuer().as_raw(), root.info().subject_der);
    assert_eq!(cross.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(permitted_names(&cross), ["cdn.hf.co"]);
    let basic = cross.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0));
    assert!(cross.name_constraints().unwrap().unwrap().critical);
    let days = (cross.validity().not_after.to_datetime() - now).whole_days();
    assert!((9..=10).contains(&days), "{days}");
}

#[test]
fn what_the_root_does_not_cover_is_refused_by_name() {
    let state = tempfile::tempdir().unwrap();
    let root = TrustRoot::open(state.path(), &suffixes(&["hf.co"])).unwrap();
    let now = OffsetDateTime::now_utc();
    let (_, csr) = request("node");
    let error = root.cross_sign(&csr, ["cdn.hf.co", "example.org"], now).unwrap_err().to_string();
    assert!(error.contains("may not speak for example.org, only for hf.co"), "{error}");
    let sign = |csr: &[u8], names: &[&str]| root.cross_sign(csr, names, now).unwrap_err();
    assert!(matches!(sign(&csr, &["co"]), TrustError::Refused { .. }), "a suffix of the root's own");
    assert!(matches!(sign(&csr, &[]), TrustError::Name(NameError::NoSuffixes)));
    assert!(matches!(sign(&csr, &["10.0.0.1"]), TrustError::Name(NameError::NotAName(_))));
    assert!(matches!(sign(&csr, &["a.hf.co"; MAX_SUFFIXES + 1]), TrustError::TooMany(_)));
}

#[test]
fn a_request_without_proof_or_name_or_in_the_root_s_name_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let root = TrustRoot::open(state.path(), &suffixes(&["hf.co"])).unwrap();
    let sign = |csr: &[u8]| root.cross_sign(csr, ["hf.co"], OffsetDateTime::now_utc()).unwrap_err();
    let (_, csr) = request("node");
    let mut forged = csr.clone();
    let name = forged.windows(4).position(|bytes| bytes == b"node").unwrap();
    forged[name] = b'm';
    assert!(matches!(sign(&forged), TrustError::Request), "the signature covers the name");
    assert!(matches!(sign(b"x"), TrustError::Request));
    assert!(matches!(sign(&csr.repeat(2)), TrustError::Request), "something follows it");
    assert!(matches!(sign(&csr.repeat(MAX_REQUEST)), TrustError::Request));
    assert!(matches!(sign(&request("").1), TrustError::Subject(_)));
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Pondhawk");
    let own = root.info().subject.rsplit("CN=").next().unwrap().to_owned();
    params.distinguished_name.push(DnType::CommonName, own);
    let csr = params.serialize_request(&key).unwrap();
    assert!(matches!(sign(csr.der()), TrustError::Subject(_)));
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&ed25519).unwrap();
    assert!(matches!(sign(csr.der()), TrustError::KeyKind));
}
