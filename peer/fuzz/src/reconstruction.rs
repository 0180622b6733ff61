//! Reconstructions: what is found in an answer is found again in an answer that is made of it.

use pondhawk::task::reconstruction::urls;
use serde_json::json;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some(found) = urls(bytes) else { return };
    // An entry takes more than this in JSON, so that the node's memory follows the answer's length.
    assert!(found.len() <= bytes.len() / 16, "{} URLs in {} bytes", found.len(), bytes.len());
    let part = |(start, end): &(u64, u64)| json!({ "start": start, "end": end });
    let first: Vec<_> =
        found.iter().map(|(url, range)| json!({ "url": url.as_str(), "url_range": part(range) })).collect();
    let second: Vec<_> =
        found.iter().map(|(url, range)| json!({ "url": url.as_str(), "ranges": [{ "bytes": part(range) }] })).collect();
    for answer in [json!({ "fetch_info": { "x": first } }), json!({ "xorbs": { "x": second } })] {
        assert_eq!(urls(answer.to_string().as_bytes()).as_ref(), Some(&found));
    }
}
