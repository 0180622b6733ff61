//! What a reconstruction says about URLs [pure].
//!
//! A CAS server answers `/v1/reconstructions/{file}` and `/v2/...` with the xorbs that make a file, and URLs signed for their
//! bytes. Who is given such a URL may fetch these bytes with it.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use url::Url;

/// URLs in one answer at most: what is beyond is asked for in its own name.
const MAX_URLS: usize = 16 << 10;

/// Whether a URL's path is that of a reconstruction.
pub fn is_reconstruction(url: &Url) -> bool {
    let segments = url.path_segments().map(|segments| segments.take(4).collect::<Vec<_>>());
    matches!(segments.as_deref(), Some(["v1" | "v2", "reconstructions", hash]) if hash.len() == 64)
}

/// Each URL with the first and the last byte that it is given out for. `None`: not a reconstruction.
pub fn urls(answer: &[u8]) -> Option<Vec<(Url, (u64, u64))>> {
    let answer: Answer<'_> = serde_json::from_slice(answer).ok()?;
    let first = answer.fetch_info.into_values().flatten().map(|it| (it.url, it.url_range));
    let second = answer
        .xorbs
        .into_values()
        .flatten()
        .flat_map(|it| it.ranges.into_iter().map(move |range| (it.url.clone(), range.bytes)));
    let parsed = first.chain(second).take(MAX_URLS);
    Some(parsed.filter_map(|(url, bytes)| Some((Url::parse(&url).ok()?, (bytes.start, bytes.end)))).collect())
}

#[derive(Deserialize)]
struct Answer<'a> {
    /// Version 1.
    #[serde(borrow, default)]
    fetch_info: BTreeMap<Cow<'a, str>, Vec<Single<'a>>>,
    /// Version 2.
    #[serde(borrow, default)]
    xorbs: BTreeMap<Cow<'a, str>, Vec<Several<'a>>>,
}

#[derive(Deserialize)]
struct Single<'a> {
    #[serde(borrow)]
    url: Cow<'a, str>,
    url_range: Bytes,
}

#[derive(Deserialize)]
struct Several<'a> {
    #[serde(borrow)]
    url: Cow<'a, str>,
    ranges: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    bytes: Bytes,
}

/// Both inclusive.
#[derive(Deserialize)]
struct Bytes {
    start: u64,
    end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_are_found_in_both_versions_with_what_they_are_good_for() {
        let first = br#"{"offset_into_first_range":0,"terms":[{"hash":"a","unpacked_length":1,"range":{"start":0,"end":1}}],
            "fetch_info":{"a":[{"range":{"start":0,"end":1},"url":"https:\/\/h/x?a=b%3D1","url_range":{"start":5,"end":9}}]}}"#;
        let second = br#"{"offset_into_first_range":0,"terms":[],"xorbs":{"a":[{"url":"https://h/x",
            "ranges":[{"chunks":{"start":0,"end":1},"bytes":{"start":0,"end":4}},
                      {"chunks":{"start":3,"end":4},"bytes":{"start":9,"end":12}}]}]}}"#;
        let found = |json: &[u8]| -> Vec<(String, (u64, u64))> {
            urls(json).unwrap().into_iter().map(|(url, bytes)| (url.to_string(), bytes)).collect()
        };
        assert_eq!(found(first), [("https://h/x?a=b%3D1".to_owned(), (5, 9))]);
        assert_eq!(found(second), [("https://h/x".to_owned(), (0, 4)), ("https://h/x".to_owned(), (9, 12))]);
        assert_eq!(urls(b"not json"), None);
        assert_eq!(urls(b"{}"), Some(Vec::new()));
    }

    #[test]
    fn a_reconstruction_is_told_by_its_path() {
        let is = |path: &str| is_reconstruction(&Url::parse(&format!("https://h{path}")).unwrap());
        let hash = "a".repeat(64);
        assert!(is(&format!("/v1/reconstructions/{hash}")) && is(&format!("/v2/reconstructions/{hash}?x=y")));
        assert!(!is("/v1/reconstructions") && !is(&format!("/v1/reconstructions/{hash}/x")));
        assert!(!is("/v3/reconstructions/a") && !is(&format!("/v1/shards/{hash}")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            drop(urls(&bytes));
        }
    }
}
