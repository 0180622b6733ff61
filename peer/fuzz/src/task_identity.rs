//! URLs and what they name: no credentials in a name, hashes only from hosts that are believed.

use pondhawk::task::{Identity, Rules};
use url::Url;

/// Runs the target: a URL, which is also tried as a name of contents.
pub fn run(bytes: &[u8]) {
    check_content_name(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = Url::parse(text) else { return };
    if !matches!(url.scheme(), "http" | "https") {
        return;
    }
    let rules = Rules::default();
    let identity = Identity::of(&url, &rules);
    match &identity {
        Identity::Named(name) => {
            let parsed = Url::parse(name).expect("a name is a URL");
            assert!(parsed.username().is_empty() && parsed.password().is_none(), "{name}");
            assert!(parsed.query_pairs().all(|(key, _)| !key.eq_ignore_ascii_case("x-amz-signature")), "{name}");
            assert_eq!((parsed.host_str(), parsed.path()), (url.host_str(), url.path()));
        }
        hashed => {
            assert!(rules.believes(&url), "{url} is believed");
            if let Some(name) = hashed.to_content_name() {
                assert_eq!(Identity::from_content_name(&name).as_ref(), Some(hashed));
            }
        }
    }
    if let Some(xorb) = Identity::xorb(&url, &rules) {
        assert!(rules.believes(&url) && xorb.signed.iter().all(|(first, last)| first <= last));
    }
}

fn check_content_name(bytes: &[u8]) {
    if let Some(identity) = Identity::from_content_name(bytes) {
        assert_eq!(identity.to_content_name().as_deref(), Some(bytes));
        assert!(identity.task_id(None).is_some());
    }
}
