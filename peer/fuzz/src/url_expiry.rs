//! When signed URLs end: never later than the plainest parameter says.

use url::Url;

/// Runs the target: a query.
pub fn run(bytes: &[u8]) {
    let Ok(query) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = Url::parse(&format!("https://cdn.hf.co/f?{query}")) else { return };
    let end = pondhawk::fuzz::url_expiry(&url);
    let plain = url.query_pairs().find(|(name, _)| name.eq_ignore_ascii_case("expires"));
    if let Some(plain) = plain.and_then(|(_, value)| value.parse::<u64>().ok()) {
        assert!(end.is_some_and(|end| end <= plain), "{end:?} although Expires says {plain}");
    }
}
