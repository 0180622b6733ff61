//! URLs of each kind that is known, and what must not be taken for one.

use super::*;
use proptest::prelude::*;

const SHA: &str = "0f3e5a7b9c1d2e4f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";
const REPO: &str = "aa11bb22cc33dd44ee55ff6600778899aa11bb22cc33dd44ee55ff6600778899";

fn identity(url: &str) -> Identity {
    Identity::of(&Url::parse(url).unwrap(), &Rules::default())
}

fn lfs(host: &str, query: &str) -> String {
    format!("https://{host}/repos/aa/11/{REPO}/{SHA}{query}")
}

fn hash() -> [u8; 32] {
    parse_hex32(SHA).unwrap()
}

fn etag(text: &str) -> Etag {
    Etag::parse(text.as_bytes()).unwrap()
}

#[test]
fn an_lfs_object_is_one_task_on_every_host_of_the_hub_whoever_signed_it() {
    let sha = Identity::ContentSha256(hash());
    let signed = "?response-content-disposition=x&Expires=1&Policy=a&Signature=b&Key-Pair-Id=c";
    for url in [
        lfs("cdn-lfs.huggingface.co", signed),
        lfs("cdn-lfs-us-1.hf.co", "?Expires=2&Signature=z"),
        lfs("CDN-LFS.hf.co:443", ""),
        lfs("cdn-lfs.hf.co", "").replace(SHA, &SHA.to_uppercase()),
    ] {
        assert_eq!(identity(&url), sha, "{url}");
    }
    assert_eq!(sha.sha256(), Some(hash()));
    assert!(sha.task_id(None).is_some());
    assert_eq!(sha.task_id(None), sha.task_id(Some(&etag("\"a\""))));
}

#[test]
fn a_stranger_cannot_claim_a_hash_of_the_hub() {
    for url in [
        lfs("evil.example", ""),
        lfs("xhf.co", ""),
        lfs("hf.co.evil.example", ""),
        lfs("cdn-lfs.hf.co", "").replace("https", "http"),
        lfs("cdn-lfs.hf.co", "/"),
        lfs("cdn-lfs.hf.co", "/x"),
        lfs("cdn-lfs.hf.co", "").replace(SHA, &SHA[1..]),
        lfs("cdn-lfs.hf.co", "").replace(SHA, &SHA.replacen('f', "g", 1)),
        lfs("cdn-lfs.hf.co", "").replace("/0f", "/%30f"),
        lfs("cdn-lfs.hf.co", "").replace("/aa/11/", "/a/11/"),
        lfs("cdn-lfs.hf.co", "").replace("/repos/", "/x/repos/"),
        format!("https://evil.example/xorbs/default/{SHA}?X-Xet-Signed-Range=bytes%3D0-1"),
        format!("http://us.aws.cdn.hf.co/xet-bridge-us/r/{SHA}"),
    ] {
        let named = identity(&url);
        assert!(matches!(named, Identity::Named(_)), "{url}");
        assert_eq!(named.task_id(None), None, "{url}");
    }
}

#[test]
fn a_suffix_covers_whole_labels_only() {
    for (host, suffix, covered) in [
        ("hf.co", "hf.co", true),
        ("a.b.hf.co", "hf.co", true),
        ("a.hf.co", ".hf.co", true),
        ("xhf.co", "hf.co", false),
        ("hf.co.evil", "hf.co", false),
        ("co", "hf.co", false),
        ("evil.", "", false),
        ("evil.", ".", false),
    ] {
        assert_eq!(is_under(host, suffix), covered, "{host} {suffix}");
    }
}

#[test]
fn plain_http_is_believed_only_where_a_rule_says_so() {
    let url = Url::parse(&lfs("cdn-lfs.hf.co", "").replace("https", "http")).unwrap();
    let lab = Rules { trust_plain_http: true, ..Rules::default() };
    assert_eq!(Identity::of(&url, &lab), Identity::ContentSha256(hash()));
}

#[test]
fn a_bridge_path_is_a_xet_hash_and_never_a_sha256() {
    for url in [
        format!("https://cas-bridge.xethub.hf.co/xet-bridge-us/665544332211/{SHA}?X-Amz-Signature=a"),
        format!("https://us.aws.cdn.hf.co/xet-bridge-us/other/{SHA}?user_id=1"),
    ] {
        assert_eq!(identity(&url), Identity::XetFile(hash()));
        assert_eq!(identity(&url).sha256(), None);
    }
}

#[test]
fn a_xorb_is_keyed_with_the_range_it_is_signed_for() {
    let xorb = |query: &str| identity(&format!("https://transfer.xethub.hf.co/xorbs/default/{SHA}?{query}"));
    let held = Identity::Xorb { hash: hash(), signed: Some((5, 9)) };
    assert_eq!(xorb("X-Xet-Signed-Range=bytes%3D5-9&Expires=1&Policy=a&Signature=b&Key-Pair-Id=c"), held);
    assert_eq!(xorb("Signature=z&X-Xet-Signed-Range=bytes=5-9"), held);
    assert_eq!(xorb("user_id=1"), Identity::Xorb { hash: hash(), signed: None });
    for odd in [
        "bytes%3D5-",
        "bytes%3D-5",
        "bytes%3D9-5",
        "bytes%3D0-1%2C5-9",
        "0-1",
        "bytes%3D0-1&X-Xet-Signed-Range=bytes%3D0-2",
    ] {
        let named = xorb(&format!("X-Xet-Signed-Range={odd}"));
        assert!(matches!(&named, Identity::Named(name) if name.contains("Signed-Range")), "{odd}");
    }
}

#[test]
fn a_url_that_is_signed_for_several_ranges_is_used_for_one_at_a_time() {
    let url = |query: &str| Url::parse(&format!("https://transfer.xethub.hf.co/xorbs/default/{SHA}?{query}")).unwrap();
    let xorb = |query: &str| Identity::xorb(&url(query), &Rules::default()).unwrap();
    let two = xorb("X-Xet-Signed-Range=bytes%3D0-9%2C20-29&Signature=a");
    assert_eq!((two.hash, two.signed.as_slice()), (hash(), [(0, 9), (20, 29)].as_slice()));
    assert_eq!(two.asked(b"bytes=20-29"), Some((20, 29)));
    for other in [&b"bytes=0-29"[..], b"bytes=0-9,20-29", b"bytes=1-9", b"bytes=0-", b"", b"\xff"] {
        assert_eq!(two.asked(other), None);
    }
    assert_eq!(xorb("Signature=a").asked(b"bytes=0-9"), None);
    let many = (0..2000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
    assert_eq!(xorb(&format!("X-Xet-Signed-Range=bytes={many}")).signed, []);
    let stranger =
        Url::parse(&format!("https://evil.example/xorbs/default/{SHA}?X-Xet-Signed-Range=bytes=0-9")).unwrap();
    assert_eq!(Identity::xorb(&stranger, &Rules::default()), None);
}

#[test]
fn every_kind_has_ids_of_its_own() {
    let name = format!("https://h/{SHA}");
    let mut ids: Vec<_> = [
        Identity::ContentSha256(hash()),
        Identity::XetFile(hash()),
        Identity::Xorb { hash: hash(), signed: None },
        Identity::Xorb { hash: hash(), signed: Some((0, 1)) },
        Identity::Xorb { hash: hash(), signed: Some((0, 2)) },
        Identity::Named(name),
    ]
    .iter()
    .map(|identity| identity.task_id(Some(&etag("\"a\""))).unwrap())
    .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[test]
fn the_ids_stay_what_they_are() {
    // Peers of different versions must agree, and stores outlive upgrades: a change here needs a new context version.
    let id = Identity::ContentSha256(hash()).task_id(None).unwrap();
    assert_eq!(id.to_string(), "01bc3341a59bbf99a6095a9703ac0dc92597ba12ff06f30a19e32ed8b73de90f");
    let named = Identity::Named("https://h/a?b=c".into()).task_id(Some(&etag("\"e\""))).unwrap();
    assert_eq!(named.to_string(), "fdc199f31eda7dad34f8a1c0c42c1733a05c3f7c8efd3c45d88f7c547d46b2b8");
}

#[test]
fn a_mutable_name_needs_a_strong_validator() {
    let url = "https://huggingface.co/gpt2/resolve/main/config.json";
    let name = identity(url);
    assert_eq!(name, Identity::Named(url.into()));
    assert_eq!(name.task_id(None), None);
    assert_eq!(name.task_id(Some(&etag("W/\"a\""))), None);
    let first = name.task_id(Some(&etag("\"a\""))).unwrap();
    assert_ne!(name.task_id(Some(&etag("\"b\""))), Some(first));
}

#[test]
fn a_name_keeps_what_selects_content_and_nothing_that_grants_access() {
    let name = |url: &str| match identity(url) {
        Identity::Named(name) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(name("https://u:secret@H.example:443/a%2fb?b=1&a=2&X-Amz-Date=3#f"), "https://h.example/a%2fb?b=1&a=2");
    assert_eq!(name("http://h:8080/a?Expires=1&Signature=s"), "http://h:8080/a");
    assert_ne!(name("https://h/a/"), name("https://h/a"));
    assert_ne!(name("https://h/a%2Fb"), name("https://h/a%2fb"));
    assert_ne!(name("https://h/a?b=1&c=2"), name("https://h/a?c=2&b=1"));
    assert_ne!(name("https://h/a"), name("http://h/a"));
}

#[test]
fn a_label_shows_no_query_and_no_credentials() {
    let url = Url::parse("https://user:secret@cdn.hf.co:8443/a/b?Signature=secret#x").unwrap();
    assert_eq!(label(&url), "cdn.hf.co:8443/a/b");
}

#[test]
fn a_name_of_hashes_can_be_told_without_its_url_and_a_name_that_is_a_url_cannot() {
    for identity in [
        Identity::ContentSha256(hash()),
        Identity::XetFile(hash()),
        Identity::Xorb { hash: hash(), signed: Some((7, 1 << 40)) },
    ] {
        let name = identity.to_content_name().unwrap();
        assert_eq!(Identity::from_content_name(&name), Some(identity));
        assert_eq!(Identity::from_content_name(&name[..name.len() - 1]), None);
        assert_eq!(Identity::from_content_name(&[&name[..], &[0]].concat()), None);
    }
    assert_eq!(Identity::Named("https://a/b?token=secret".to_owned()).to_content_name(), None);
    assert_eq!(Identity::Xorb { hash: hash(), signed: None }.to_content_name(), None);
    assert_eq!(Identity::from_content_name(&[9; 33]), None);
}

proptest! {
    #[test]
    fn no_told_name_makes_it_panic(name in proptest::collection::vec(any::<u8>(), 0..70)) {
        if let Some(identity) = Identity::from_content_name(&name) {
            prop_assert_eq!(identity.to_content_name(), Some(name));
        }
    }

    #[test]
    fn a_task_id_reads_back_as_itself(bytes: [u8; 32]) {
        prop_assert_eq!(TaskId(bytes).to_string().parse::<TaskId>().unwrap(), TaskId(bytes));
        prop_assert_eq!(parse_hex32(&TaskId(bytes).to_string().to_uppercase()), Some(bytes));
    }

    #[test]
    fn no_url_panics_and_none_leaks_its_signature(
        path in "(/[a-zA-Z0-9%._~-]{0,12}){0,6}",
        query in "[a-zA-Z0-9=&%_-]{0,40}",
    ) {
        let url = format!("https://cdn-lfs.hf.co{path}?{query}&Signature=SECRET&X-Amz-Signature=SECRET");
        if let Ok(url) = Url::parse(&url) {
            let shown = format!("{:?} {}", Identity::of(&url, &Rules::default()), label(&url));
            prop_assert!(!shown.contains("SECRET"));
        }
    }

    #[test]
    fn text_between_fields_never_moves(a in "[a-z]{0,6}", b in "[a-z]{0,6}", c in "[a-z]{0,6}", d in "[a-z]{0,6}") {
        let id = |name: &str, tag: &str| Identity::Named(name.into()).task_id(Some(&etag(&format!("\"{tag}\""))));
        prop_assert_eq!(id(&a, &b) == id(&c, &d), (a, b) == (c, d));
    }
}
