//! Adopting what the real trust root signs, and refusing what anybody else might send.

use std::sync::Arc;

use pondhawk_scheduler::trust::{CROSS_VALIDITY, TrustRoot};
use rcgen::{BasicConstraints, CidrSubnet, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose};
use tempfile::TempDir;
use time::Duration;

use super::*;
use crate::tls::LeafCache;
use crate::tls::bundle::bundle_path;

const HOSTS: [&str; 2] = ["cdn.hf.co", "huggingface.co"];

struct Setup {
    data: TempDir,
    state: TempDir,
    authority: Authority,
    root: TrustRoot,
}

impl Setup {
    fn new() -> Self {
        let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(data.path(), &suffixes(&HOSTS)).unwrap();
        let root = TrustRoot::open(state.path(), &suffixes(&["hf.co", "huggingface.co"])).unwrap();
        Self { data, state, authority, root }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.root.cross_sign(&self.authority.csr().unwrap(), self.authority.suffixes().iter(), now()).unwrap()
    }

    fn refused(&self, chain: &[CertificateDer<'_>]) -> ChainError {
        let error = self.authority.adopt(chain).unwrap_err();
        assert!(self.authority.cluster_root().is_none() && !self.file().exists(), "nothing changes: {error}");
        let AuthorityError::Chain(error) = error else { panic!("{error}") };
        error
    }

    fn file(&self) -> std::path::PathBuf {
        self.data.path().join("ca/cluster.pem")
    }

    fn reopened(&self) -> Authority {
        Authority::open(self.data.path(), &suffixes(&HOSTS)).unwrap()
    }
}

fn suffixes(names: &[&str]) -> Suffixes {
    Suffixes::new(names).unwrap()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[test]
fn the_chain_is_adopted_kept_across_a_restart_and_goes_into_the_bundle() {
    let setup = Setup::new();
    let chain = setup.chain();
    assert!(setup.authority.cluster_root().is_none());
    assert!(Cluster::of(setup.data.path()).unwrap().is_none());
    setup.authority.adopt(&chain).unwrap();
    let root = setup.authority.cluster_root().unwrap();
    assert_eq!((&root.der, &root.pem), (&setup.root.info().der, &setup.root.info().pem));
    assert_eq!(root.fingerprint_text(), setup.root.info().fingerprint_text());
    let again = setup.reopened();
    assert_eq!(again.cluster_root().unwrap().der, root.der);
    assert_eq!(*again.link(now()), chain[0]);
    fs::remove_file(setup.data.path().join("ca/ca.key")).unwrap();
    let seen = Cluster::of(setup.data.path()).unwrap().expect("readable without the key");
    assert_eq!(seen.root.permitted, ["hf.co", "huggingface.co"]);
    assert!((seen.not_after - now() - CROSS_VALIDITY).abs() < Duration::minutes(5));
    if again.write_bundle(setup.data.path()).is_ok() {
        let bundle = fs::read_to_string(bundle_path(setup.data.path())).unwrap();
        assert!(bundle.contains(root.pem.trim()) && bundle.contains(again.info().pem.trim()));
    }
}

#[test]
fn leafs_follow_an_adoption_at_once_and_fall_back_when_it_runs_out() {
    let setup = Setup::new();
    let chain = setup.chain();
    let Setup { authority, root, .. } = setup;
    let (authority, now) = (Arc::new(authority), now());
    let leaves = LeafCache::new(Arc::clone(&authority));
    let link = |at| leaves.get("a.cdn.hf.co", at).unwrap().unwrap().cert[1].clone();
    assert_eq!(link(now), authority.info().der);
    authority.adopt(&chain).unwrap();
    assert_eq!(link(now), chain[0]);
    let first = leaves.get("a.cdn.hf.co", now).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &leaves.get("a.cdn.hf.co", now).unwrap().unwrap()), "kept while nothing changes");
    assert_eq!(first.cert.len(), 2, "the root is not sent");
    let renewed = root.cross_sign(&authority.csr().unwrap(), HOSTS, now).unwrap();
    authority.adopt(&renewed).unwrap();
    assert_eq!(link(now), renewed[0]);
    assert_eq!(link(now + CROSS_VALIDITY + Duration::days(1)), authority.info().der);
    assert_eq!(link(now - Duration::days(2)), authority.info().der, "a clock set back");
}

#[test]
fn what_is_not_this_node_s_ca_signed_by_the_root_is_refused() {
    let (setup, other) = (Setup::new(), Setup::new());
    let (ours, theirs) = (setup.chain(), other.chain());
    assert_eq!(setup.refused(&ours[..1]), ChainError::Count(1));
    assert!(matches!(setup.refused(&[ours[0].clone(), b"x"[..].into()]), ChainError::Unreadable(_)));
    assert!(matches!(setup.refused(&theirs), ChainError::Subject(_)));
    assert!(matches!(setup.refused(&[ours[0].clone(), theirs[1].clone()]), ChainError::Issuer(_)));
    let mut tampered = ours[0].to_vec();
    *tampered.last_mut().unwrap() ^= 1;
    assert!(matches!(setup.refused(&[tampered.into(), ours[1].clone()]), ChainError::Refused(_)));
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let (_, own) = x509_parser::parse_x509_certificate(&setup.authority.info().der).unwrap();
    params.distinguished_name = same_name(own.subject()).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let chain = setup.root.cross_sign(csr.der(), HOSTS, now()).unwrap();
    assert_eq!(setup.refused(&chain), ChainError::Key);
}

#[test]
fn a_chain_too_narrow_or_out_of_date_is_refused_with_what_is_wrong() {
    let setup = Setup::new();
    let csr = setup.authority.csr().unwrap();
    let chain = setup.root.cross_sign(&csr, ["cdn.hf.co"], now()).unwrap();
    assert_eq!(setup.refused(&chain), ChainError::NotCovering("huggingface.co".to_owned()));
    let chain = setup.root.cross_sign(&csr, HOSTS, now() + Duration::days(3)).unwrap();
    assert!(matches!(setup.refused(&chain), ChainError::NotYetValid(_)));
    let error = setup.authority.adopt_at(&setup.chain(), now() + CROSS_VALIDITY + Duration::days(1)).unwrap_err();
    assert!(matches!(error, AuthorityError::Chain(ChainError::Expired(_))), "{error}");
}

/// A root and a signature under it as a scheduler of other making might give them.
fn foreign(setup: &Setup, permitted: &[&str], excluded: bool, cas_below: u8) -> Vec<CertificateDer<'static>> {
    let constrained = |names: &[&str]| rcgen::NameConstraints {
        permitted_subtrees: names.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect(),
        excluded_subtrees: [CidrSubnet::from_v4_prefix([0; 4], 0), CidrSubnet::from_v6_prefix([0; 16], 0)]
            .into_iter()
            .filter(|_| excluded)
            .map(GeneralSubtree::IpAddress)
            .collect(),
    };
    let ca = |name: DistinguishedName, cas_below, names: &[&str]| {
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(cas_below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(constrained(names));
        params
    };
    let key = KeyPair::generate().unwrap();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "another root");
    let root_params = ca(name, cas_below, permitted);
    let root = root_params.self_signed(&key).unwrap();
    let (_, own) = x509_parser::parse_x509_certificate(&setup.authority.info().der).unwrap();
    let mut params = ca(same_name(own.subject()).unwrap(), 0, &HOSTS);
    params.not_before = now() - Duration::days(1);
    params.not_after = now() + Duration::days(9);
    let cross = params.signed_by(setup.authority.issuer.key(), &Issuer::from_params(&root_params, &key)).unwrap();
    vec![cross.into(), root.into()]
}

#[test]
fn a_root_that_could_speak_for_too_much_or_sign_no_ca_never_reaches_a_bundle() {
    let setup = Setup::new();
    let enough: &[&str] = &["hf.co", "huggingface.co"];
    assert_eq!(setup.refused(&foreign(&setup, enough, false, 1)), ChainError::Addresses);
    assert_eq!(setup.refused(&foreign(&setup, &["co"], true, 1)), ChainError::TooWide("co".to_owned()));
    assert!(matches!(setup.refused(&foreign(&setup, &[], true, 1)), ChainError::TooWide(_)));
    assert_eq!(
        setup.refused(&foreign(&setup, &["hf.co"], true, 1)),
        ChainError::NotCovering("huggingface.co".to_owned())
    );
    assert_eq!(setup.refused(&foreign(&setup, enough, true, 0)), ChainError::Usage);
    setup.authority.adopt(&foreign(&setup, enough, true, 1)).unwrap();
}

#[test]
fn a_damaged_or_foreign_file_costs_the_chain_but_not_the_start() {
    let setup = Setup::new();
    setup.authority.adopt(&setup.chain()).unwrap();
    let good = fs::read(setup.file()).unwrap();
    fs::write(setup.file(), &good[..good.len() / 2]).unwrap();
    assert!(setup.reopened().cluster_root().is_none());
    fs::write(setup.file(), b"").unwrap();
    assert!(setup.reopened().cluster_root().is_none());
    let other = Setup::new();
    other.authority.adopt(&other.chain()).unwrap();
    fs::copy(other.file(), setup.file()).unwrap();
    let authority = setup.reopened();
    assert!(authority.cluster_root().is_none());
    authority.adopt(&setup.chain()).unwrap();
    assert!(setup.reopened().cluster_root().is_some());
    drop(setup.state);
}

#[test]
fn a_new_root_takes_the_place_of_the_old() {
    let (setup, other) = (Setup::new(), Setup::new());
    setup.authority.adopt(&setup.chain()).unwrap();
    let chain = other.root.cross_sign(&setup.authority.csr().unwrap(), HOSTS, now()).unwrap();
    setup.authority.adopt(&chain).unwrap();
    assert_eq!(setup.authority.cluster_root().unwrap().der, other.root.info().der);
    assert_eq!(setup.reopened().cluster_root().unwrap().der, other.root.info().der);
}
