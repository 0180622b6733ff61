//! Creating and loading the CA, and each way in which it can be unusable.

use super::*;

fn suffixes(names: &[&str]) -> Suffixes {
    Suffixes::new(names).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_second_start_finds_the_first_one_s_ca() {
    let data = tempfile::tempdir().unwrap();
    let first = Authority::open(&data.path().join("new/dir"), &suffixes(&["hf.co"])).unwrap();
    let again = Authority::open(&data.path().join("new/dir"), &suffixes(&["cdn.hf.co"])).unwrap();
    assert_eq!(first.info().fingerprint, again.info().fingerprint);
    assert_eq!(again.info().permitted, ["hf.co"]);
    let dir = data.path().join("new/dir/ca");
    assert_eq!((mode(&dir), mode(&dir.join(CERT)), mode(&dir.join(KEY))), (0o755, 0o644, 0o600));
    assert_eq!(fs::read_dir(data.path().join("new/dir")).unwrap().count(), 1, "nothing is left of the creation");
}

#[test]
fn nodes_that_start_at_once_agree_on_one_ca() {
    let data = tempfile::tempdir().unwrap();
    let open = || Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap().info().fingerprint;
    let all = std::thread::scope(|scope| {
        let threads = (0..8).map(|_| scope.spawn(open)).collect::<Vec<_>>();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(all.iter().all(|fingerprint| *fingerprint == all[0]));
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_to_run() {
    let data = tempfile::tempdir().unwrap();
    Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap();
    let key = data.path().join("ca/ca.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let error = Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap_err().to_string();
    assert!(error.contains(&format!("chmod 600 {}", key.display())), "{error}");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(data.path().join("ca"), Permissions::from_mode(0o777)).unwrap();
    let error = Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap_err();
    assert!(matches!(error, AuthorityError::DirExposed { mode: 0o777, .. }), "{error}");
}

#[test]
fn a_ca_too_narrow_for_the_configuration_says_which_host_and_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    Authority::open(data.path(), &suffixes(&["cdn.hf.co"])).unwrap();
    let error = Authority::open(data.path(), &suffixes(&["cdn.hf.co", "huggingface.co"])).unwrap_err().to_string();
    assert!(error.contains("may not speak for huggingface.co") && error.contains("ca.old"), "{error}");
    assert!(!error.contains("speak for cdn"), "{error}");
}

#[test]
fn half_a_ca_is_never_completed_silently() {
    for (gone, left) in [(CERT, KEY), (KEY, CERT)] {
        let data = tempfile::tempdir().unwrap();
        Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap();
        fs::remove_file(data.path().join("ca").join(gone)).unwrap();
        let before = fs::read(data.path().join("ca").join(left)).unwrap();
        let error = Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap_err();
        assert!(matches!(error, AuthorityError::Incomplete { missing, .. } if missing == gone), "{error}");
        assert_eq!(fs::read(data.path().join("ca").join(left)).unwrap(), before);
    }
}

#[test]
fn a_key_of_another_ca_a_torn_file_and_an_unconstrained_ca_are_refused() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap();
    Authority::open(other.path(), &suffixes(&["hf.co"])).unwrap();
    let refused = |why: &str| {
        let error = Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap_err();
        assert!(matches!(&error, AuthorityError::Corrupt { .. }) && error.to_string().contains(why), "{error}");
    };
    fs::copy(other.path().join("ca/ca.pem"), data.path().join("ca/ca.pem")).unwrap();
    refused("does not belong");
    fs::write(data.path().join("ca/ca.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    refused("no usable CA");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    fs::write(data.path().join("ca/ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(data.path().join("ca/ca.key"), key.serialize_pem()).unwrap();
    refused("not constrained");
}

#[test]
fn an_expired_ca_and_a_clock_that_is_wrong_are_told_apart() {
    let data = tempfile::tempdir().unwrap();
    let names = suffixes(&["hf.co"]);
    Authority::open(data.path(), &names).unwrap();
    let load = |days| Authority::load(&ca_dir(data.path()), &names, OffsetDateTime::now_utc() + Duration::days(days));
    assert!(matches!(load(3_651), Err(AuthorityError::Expired { .. })));
    assert!(matches!(load(-2), Err(AuthorityError::NotYetValid { .. })));
    let authority = load(3_640).unwrap();
    let leaf = authority.issue("a.hf.co", OffsetDateTime::now_utc() + Duration::days(3_640)).unwrap();
    assert_eq!(leaf.not_after, authority.info().not_after, "a leaf does not outlive its CA");
}

#[test]
fn what_a_crash_left_is_removed_once_it_is_old() {
    let data = tempfile::tempdir().unwrap();
    let (old, recent) = (data.path().join(".ca-new-1-0"), data.path().join(".ca-new-2-0"));
    for dir in [&old, &recent] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join(KEY), "key").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - STALE_NEW_DIR * 2;
    File::open(&old).unwrap().set_modified(long_ago).unwrap();
    Authority::open(data.path(), &suffixes(&["hf.co"])).unwrap();
    assert!(!old.exists() && recent.exists());
}

#[test]
fn a_ca_certificate_can_be_read_without_its_key() {
    let data = tempfile::tempdir().unwrap();
    assert!(CaInfo::of(data.path()).unwrap().is_none());
    let authority = Authority::open(data.path(), &suffixes(&["hf.co", "xethub.hf.co", "huggingface.co"])).unwrap();
    fs::remove_file(data.path().join("ca/ca.key")).unwrap();
    let info = CaInfo::of(data.path()).unwrap().unwrap();
    assert_eq!(info.fingerprint, authority.info().fingerprint);
    assert_eq!(info.permitted, ["hf.co", "huggingface.co"]);
    assert_eq!(info.fingerprint_text().len(), 32 * 3 - 1);
    let long = format!("{}.hf.co", "a".repeat(60));
    assert!(authority.issue(&long, OffsetDateTime::now_utc()).is_ok(), "a host too long for a common name");
}
