//! Answers of an upstream proxy: cut at the same byte however they arrive, and never past the empty line.

use pondhawk::fuzz::upstream_head;
use pondhawk::swarm::upstream::Upstream;

/// Runs the target: the answer's bytes, which are a proxy's URL as well.
pub fn run(bytes: &[u8]) {
    let whole = upstream_head([bytes]);
    for step in [1, 2, 5] {
        assert_eq!(upstream_head(bytes.chunks(step)), whole, "in parts of {step} bytes");
    }
    let (head, status) = whole;
    assert!(bytes.starts_with(&head));
    match status {
        Some(status) => assert!(status.is_none_or(|status| status < 1000)),
        None => assert_eq!(head, bytes, "bytes of an unfinished head are lost"),
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(proxy) = Upstream::new(text)
    {
        assert!(!proxy.place().0.is_empty());
        assert!(!proxy.to_string().contains(char::is_whitespace), "{proxy}");
    }
}
