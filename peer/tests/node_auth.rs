//! A held object is no weaker protected than at its origin.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "node/stage.rs"]
mod stage;

use std::time::{Duration, SystemTime};

use pondhawk_bench::{
    hub::{CdnStyle, Content, PlainRules, XetShape, seeded},
    lab::wait_until,
};
use stage::{CDN, File, Stage};

const MIB: u64 = 1 << 20;
const TOKEN: &str = "Authorization: Bearer hf_a_very_secret_token";

/// An object that only the bearer of the token may have, and its URL.
fn guarded(stage: &Stage) -> (File, String) {
    let rules =
        PlainRules { etag: Some("one".into()), token: Some("hf_a_very_secret_token".into()), ..PlainRules::default() };
    stage.hub.add_plain("guarded", Content::seeded(3 * MIB, 1), rules).unwrap();
    (File { label: "plain/guarded".into(), len: 3 * MIB, seed: 1 }, format!("https://{CDN}/plain/guarded"))
}

#[test]
fn a_bearers_object_is_for_bearers_of_a_good_token_also_on_a_hit() {
    let stage = Stage::open(&["log.level=debug"]);
    let (file, url) = guarded(&stage);
    for _ in 0..2 {
        assert!(stage.node.get(&url, &[TOKEN]).body == file.bytes(0, file.len));
    }
    assert!(stage.ratio(&file) < 1.01, "{} files", stage.ratio(&file));
    for other in [&["Authorization: Bearer guessed"][..], &[]] {
        for ranged in [None, Some("Range: bytes=0-99")] {
            let headers: Vec<_> = other.iter().copied().chain(ranged).collect();
            let refused = stage.node.get(&url, &headers);
            assert_eq!(refused.status, 401, "{headers:?}");
            assert_eq!(refused.body, b"a bearer token is needed", "the origin's own words");
        }
        assert_eq!(stage.node.request("HEAD", &url, other, b"").status, 401);
    }
    let log = stage.node.log();
    assert!(log.contains("plain/guarded"), "the log names the object");
    assert!(!log.contains("hf_a_very_secret_token") && !log.contains("guessed"), "a credential in the log");
}

#[test]
fn no_signature_gets_into_the_log_at_any_level() {
    let stage = Stage::open(&["log.level=trace"]);
    let file = stage.file("signed", 2 * MIB, 2);
    let url = stage.url(&file);
    let forged = url.replace("Signature=", "Signature=Forged");
    assert!(stage.node.get(&url, &[]).complete);
    assert_eq!(stage.node.get(&forged, &[]).status, 403);
    let log = stage.node.log();
    for name in ["Signature", "Policy"] {
        let secret = url.split(&format!("{name}=")).nth(1).unwrap().split('&').next().unwrap();
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{name} in the log: {line:?}");
    }
}

#[test]
fn public_objects_are_served_unasked_to_anyone_and_others_are_not() {
    let rule = format!("authorize.public=[{CDN}/plain/guarded]");
    let stage = Stage::open(&[&rule]);
    let signed = stage.file("signed", 2 * MIB, 3);
    let url = stage.url(&signed);
    assert!(stage.get(&signed).complete);
    assert_eq!(stage.node.get(&url.replace("Signature=", "Signature=A"), &[]).status, 403);

    let rule = format!("authorize.public=[{CDN}]");
    let stage = Stage::open(&[&rule]);
    let file = stage.file("public", 2 * MIB, 4);
    let url = stage.url(&file);
    assert!(stage.node.get(&url, &[]).complete);
    let asked = stage.hub.stats().object(&file.label).all_gets();
    let forged = stage.node.get(&url.replace("Signature=", "Signature=A"), &[]);
    assert!(forged.status == 200 && forged.body == file.bytes(0, file.len));
    assert_eq!(stage.hub.stats().object(&file.label).all_gets(), asked, "the origin was not asked");
}

#[test]
fn a_consent_ends_with_the_url_that_it_was_given_to() {
    let stage = Stage::open(&[]);
    let file = stage.file("short-lived", 2 * MIB, 5);
    // The hub signs for an hour: as if that hour was over in four seconds.
    let at = SystemTime::now() - Duration::from_secs(3600) + Duration::from_secs(4);
    let url = stage.hub.signed_url_at(&file.label, at).unwrap();
    assert!(stage.node.get(&url, &[]).body == file.bytes(0, file.len));
    let ended = || (stage.node.get(&url, &[]).status == 403).then_some(());
    wait_until(Duration::from_secs(8), ended).expect("refused once it has expired, long before authorize.cap");
    assert!(stage.get(&file).body == file.bytes(0, file.len), "and held still");
    assert!(stage.ratio(&file) < 1.01);
}

#[test]
fn a_remembered_consent_spares_the_origin_the_question() {
    let stage = Stage::open(&[]);
    let file = stage.file("asked-once", 2 * MIB, 6);
    let url = stage.url(&file);
    assert!(stage.node.get(&url, &[]).complete);
    let asked = stage.hub.stats().object(&file.label).all_gets();
    for _ in 0..5 {
        assert!(stage.node.get(&url, &[]).complete);
    }
    assert_eq!(stage.hub.stats().object(&file.label).all_gets(), asked);
}

#[test]
fn a_held_xorb_is_given_only_for_the_signed_range_of_a_url_that_the_origin_takes() {
    let stage = Stage::open(&[]);
    stage.hub.set_style("owner/xet", CdnStyle::Xet(XetShape::default()));
    stage.hub.add_file("owner/xet", "main", "m.bin", Content::seeded(3 * MIB, 1)).unwrap();
    let label = stage.hub.xorbs("owner/xet/m.bin").remove(0);
    let url = || stage.hub.signed_url(&label).unwrap();
    let signed = url().split("bytes%3D").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let end: usize = signed.split('-').nth(1).unwrap().parse().unwrap();
    let range = format!("Range: bytes={signed}");
    for _ in 0..2 {
        let answer = stage.node.get(&url(), &[&range]);
        let told = format!("bytes {signed}/{}", end + 1);
        assert_eq!((answer.status, answer.header("content-range")), (206, Some(told.as_str())));
        assert!(answer.complete && answer.body.len() == end + 1);
    }
    let stats = stage.hub.stats().object(&label);
    assert_eq!((stats.heads[&206], stats.all_gets()), (2, 1), "each URL was asked about, the bytes came once");
    let part = stage.hub.xorb_url(&label, &(65_544..131_088)).unwrap();
    let answer = stage.node.get(&part, &["Range: bytes=65544-131087"]);
    assert_eq!(
        (answer.status, &answer.body[8..]),
        (206, seeded(1, 65_536, 65_536).as_slice()),
        "a part of what is held"
    );
    assert_eq!(stage.hub.stats().object(&label).all_gets(), 1);
    let forged = url().replace("Signature=", "Signature=Forged");
    assert_eq!(stage.node.get(&forged, &[&range]).status, 403);
    for other in [&["Range: bytes=0-0"][..], &[]] {
        assert_eq!(stage.node.get(&url(), other).status, 403, "the origin's own refusal of {other:?}");
    }
    assert_eq!(stage.hub.stats().object(&label).body_bytes, end as u64 + 1);
}
