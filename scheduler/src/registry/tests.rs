//! Who is admitted, by single stories; the file; and a registry that runs.

use super::*;
use crate::authority::{TokenGrant, TokenTerms};
use crate::registry::file::{change, read};

const A: KeyDigest = KeyDigest([1; 32]);
const B: KeyDigest = KeyDigest([2; 32]);
const DAY: u64 = 86_400;
const NOW: u64 = 1_800_000_000;

fn admission(name: &str, key: KeyDigest, token: Option<TokenGrant>) -> Admission {
    Admission { name: name.to_owned(), key, not_after: NOW + 7 * DAY, token }
}

fn token(terms: TokenTerms) -> Option<TokenGrant> {
    Some(TokenGrant { id: "0b".repeat(16), expiry_unix: NOW + DAY, terms })
}

fn reusable() -> Option<TokenGrant> {
    token(TokenTerms::reusable())
}

fn apply(entries: &mut Entries, now: u64, change: &Change) -> Result<(), RegistryRefusal> {
    entries.purge(now);
    entries.apply(change, now, Bounds::DIRECTORY)
}

fn admit(entries: &mut Entries, now: u64, admission: Admission) -> Result<(), RegistryRefusal> {
    apply(entries, now, &Change::Admit(admission))
}

fn taken() -> Result<(), RegistryRefusal> {
    Err(RegistryRefusal::Taken("node-a".to_owned()))
}

#[test]
fn a_name_stays_with_the_key_that_took_it_first_until_long_after_its_certificate() {
    let mut entries = Entries::default();
    admit(&mut entries, NOW, admission("node-a", A, reusable())).unwrap();
    assert_eq!(admit(&mut entries, NOW, admission("node-a", B, reusable())), taken());
    assert_eq!(admit(&mut entries, NOW, admission("node-a", B, None)), taken());
    assert_eq!(entries.check("node-a", &B), taken());
    admit(&mut entries, NOW, admission("node-a", A, None)).unwrap();
    admit(&mut entries, NOW, admission("node-b", B, reusable())).unwrap();
    let end = NOW + 7 * DAY + NAME_HOLD;
    assert_eq!(admit(&mut entries, end - 1, admission("node-a", B, reusable())), taken());
    admit(&mut entries, end, admission("node-a", B, reusable())).unwrap();
}

#[test]
fn a_released_name_is_for_the_next_token_and_not_for_the_key_that_had_it() {
    let mut entries = Entries::default();
    admit(&mut entries, NOW, admission("node-a", A, reusable())).unwrap();
    let before = entries.clone();
    apply(&mut entries, NOW, &Change::Release("node-a".to_owned())).unwrap();
    assert!(entries.withdraws_from(&before));
    let released = || Err(RegistryRefusal::Released("node-a".to_owned()));
    assert_eq!(entries.check("node-a", &A), released());
    assert_eq!(admit(&mut entries, NOW, admission("node-a", A, None)), released());
    admit(&mut entries, NOW, admission("node-a", B, reusable())).unwrap();
    assert_eq!(entries.check("node-a", &A), taken());
    let unknown = apply(&mut entries, NOW, &Change::Release("node-x".to_owned()));
    assert_eq!(unknown, Err(RegistryRefusal::NoSuchName("node-x".to_owned())));
}

#[test]
fn a_token_is_used_once_and_again_only_by_the_node_that_used_it() {
    let mut entries = Entries::default();
    let once = || token(TokenTerms::single_use());
    admit(&mut entries, NOW, admission("node-a", A, once())).unwrap();
    admit(&mut entries, NOW, admission("node-a", A, once())).unwrap();
    assert_eq!(admit(&mut entries, NOW, admission("node-b", B, once())), Err(RegistryRefusal::Spent));
    assert_eq!(entries.check("node-b", &B), Ok(()), "nothing of it was recorded");
    let named = token(TokenTerms { name: Some("node-c".to_owned()), uses: None });
    let other = admit(&mut entries, NOW, admission("node-b", B, named.clone()));
    assert_eq!(other, Err(RegistryRefusal::OtherName("node-c".to_owned())));
    admit(&mut entries, NOW, admission("node-c", B, named)).unwrap();
}

#[test]
fn a_name_is_denied_with_its_key_and_a_key_under_every_name() {
    let mut entries = Entries::default();
    admit(&mut entries, NOW, admission("node-a", A, reusable())).unwrap();
    apply(&mut entries, NOW, &Change::Deny("node-a".parse().unwrap(), "stolen\n".to_owned())).unwrap();
    let why = admit(&mut entries, NOW, admission("node-a", A, None)).unwrap_err().to_string();
    assert!(why.contains("node-a") && why.contains("(stolen)") && why.contains("allow"), "{why}");
    let elsewhere = admit(&mut entries, NOW, admission("node-b", A, reusable())).unwrap_err();
    assert!(elsewhere.to_string().contains("key is denied"), "{elsewhere}");
    apply(&mut entries, NOW, &Change::Allow("node-a".parse().unwrap())).unwrap();
    admit(&mut entries, NOW, admission("node-a", A, None)).unwrap();
    let key: PeerSubject = A.to_string().to_uppercase().parse().unwrap();
    apply(&mut entries, NOW, &Change::Deny(key.clone(), String::new())).unwrap();
    assert!(entries.check("node-b", &A).is_err() && entries.check("node-b", &B).is_ok());
    apply(&mut entries, NOW, &Change::Allow(key)).unwrap();
    assert!(apply(&mut entries, NOW, &Change::Allow("node-a".parse().unwrap())).is_err());
}

#[test]
fn nothing_grows_without_a_bound_and_no_name_with_a_good_certificate_makes_room() {
    let bounds = Bounds { names: 2, tokens: 1, denials: 1 };
    let mut entries = Entries::default();
    let mut admit = |now, name: &str, token| {
        entries.apply(&Change::Admit(Admission { not_after: now + 7 * DAY, ..admission(name, A, token) }), now, bounds)
    };
    admit(NOW, "a", reusable()).unwrap();
    admit(NOW + DAY, "b", token(TokenTerms::single_use())).unwrap();
    assert_eq!(admit(NOW + 20 * DAY, "c", reusable()), Err(RegistryRefusal::TooManyNames(2)));
    admit(NOW + 21 * DAY, "c", reusable()).unwrap();
    let second = TokenGrant { id: "0c".repeat(16), ..token(TokenTerms::single_use()).unwrap() };
    assert_eq!(admit(NOW + 22 * DAY, "d", Some(second)), Err(RegistryRefusal::TooManyTokens(1)));
    assert!(entries.check("a", &B).is_ok() && entries.check("c", &B).is_err());
    let mut deny = |name: &str| entries.apply(&Change::Deny(name.parse().unwrap(), "é".repeat(500)), NOW, bounds);
    deny("x").unwrap();
    deny("x").unwrap();
    assert_eq!(deny("y"), Err(RegistryRefusal::TooManyDenials(1)));
    assert!(entries.denials[0].reason.len() <= MAX_REASON);
}

#[test]
fn the_file_is_private_survives_and_says_when_it_is_damaged() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(dir.path()).unwrap(), Entries::default());
    let changes = [
        Change::Admit(admission("node-a", A, token(TokenTerms::single_use()))),
        Change::Admit(admission("node-a", B, reusable())),
        Change::Deny(PeerSubject::Key(B), "why".to_owned()),
    ];
    let (made, outcomes) = change(dir.path(), &changes, NOW, Bounds::DIRECTORY).unwrap();
    assert_eq!(outcomes, [Ok(()), taken(), Ok(())]);
    assert_eq!(read(dir.path()).unwrap(), made);
    let path = dir.path().join(FILE);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for bad in ["", "{", r#"{"names":{"a":["zz",1]},"tokens":{},"denials":[]}"#, "[]"] {
        std::fs::write(&path, bad).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is damaged") && error.contains("restore it from a backup"), "{bad}: {error}");
    }
}

#[test]
fn the_registry_of_the_most_peers_fits_into_a_secret() {
    let mut entries = Entries::default();
    for n in 0..6_000 {
        let name = format!("{n:0>63}");
        entries.apply(&Change::Admit(admission(&name, A, reusable())), NOW, Bounds::SECRET).unwrap();
    }
    for n in 0..1_000 {
        let id = format!("{n:0>32}");
        let grant = TokenGrant { id, expiry_unix: NOW + DAY, terms: TokenTerms::single_use() };
        let once = Admission { key: B, ..admission("x", B, Some(grant)) };
        entries.names.remove("x");
        entries.names.remove(&format!("{:0>63}", 0));
        entries.apply(&Change::Admit(once), NOW, Bounds::SECRET).unwrap();
    }
    for n in 0..128 {
        let deny = Change::Deny(format!("{n:0>63}").parse().unwrap(), "x".repeat(MAX_REASON));
        entries.apply(&deny, NOW, Bounds::SECRET).unwrap();
    }
    let bytes = serde_json::to_vec(&entries).unwrap().len();
    assert!(bytes < 1_040_000, "{bytes} bytes, and the cluster's keys beside them");
}

#[tokio::test]
async fn of_two_keys_that_join_at_once_one_has_the_name_and_what_another_process_denies_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(PeerRegistry::open(dir.path()).unwrap());
    let running = tokio::spawn(Arc::clone(&registry).run());
    let join = |key| registry.admit(Admission { not_after: unix_now() + DAY, ..admission("node-a", key, reusable()) });
    let (first, second) = tokio::join!(join(A), join(B));
    assert_eq!((first, second), (Ok(()), Err(RegistryError::Refused(RegistryRefusal::Taken("node-a".to_owned())))));
    let again = PeerRegistry::open(dir.path()).unwrap();
    assert_eq!((again.check("node-a", &A), again.check("node-a", &B)), (Ok(()), taken()));

    let mut withdrawals = registry.withdrawals();
    let deny = [Change::Deny("node-a".parse().unwrap(), "why".to_owned())];
    change(dir.path(), &deny, unix_now(), Bounds::DIRECTORY).unwrap();
    tokio::time::timeout(Duration::from_secs(60), withdrawals.changed()).await.unwrap().unwrap();
    assert_eq!(withdrawals.borrow()[0].reason, "why");
    assert!(registry.check("node-a", &A).is_err());
    running.abort();
}
