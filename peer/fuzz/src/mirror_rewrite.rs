//! Answers of the Hub with their URLs turned to the node: nothing else changes, and no line break gets into a header.

use std::path::Path;
use std::sync::OnceLock;

use pondhawk::config::Config;
use pondhawk::http::mirror::rewrite::{Base, HubFile, Resolved, as_if_here, resolved};
use pondhawk::http::rules::Front;
use serde_json::Value;
use url::Url;

const OURS: &str = "http://node:65001";
const HUB: &str = "https://huggingface.co";

/// Runs the target: a JSON document, a URL, and header lines, all of the same bytes.
pub fn run(bytes: &[u8]) {
    let base = Base { ours: OURS.to_owned(), hub: HUB.to_owned() };
    if let Some(turned) = base.turned_json(bytes, front()) {
        let after = serde_json::from_slice::<Value>(&turned);
        // Numbers that no type holds, and halves of surrogate pairs, stay as they are.
        match serde_json::from_slice::<Value>(bytes) {
            Ok(before) => check_values(&before, &after.expect("it is JSON again")),
            Err(_) => assert!(after.is_err()),
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_turned(&base, text);
        check_path(text);
    }
    check_headers(&base, bytes);
}

/// The same document but for strings that are URLs.
fn check_values(before: &Value, after: &Value) {
    match (before, after) {
        (Value::Array(before), Value::Array(after)) => {
            assert_eq!(before.len(), after.len());
            before.iter().zip(after).for_each(|(before, after)| check_values(before, after));
        }
        (Value::Object(before), Value::Object(after)) => {
            assert!(before.keys().eq(after.keys()));
            before.values().zip(after.values()).for_each(|(before, after)| check_values(before, after));
        }
        (Value::String(before), Value::String(after)) => {
            assert!(before == after || (before.starts_with("https://") && after.starts_with(OURS)));
        }
        (before, after) => assert_eq!(before, after),
    }
}

fn check_turned(base: &Base, text: &str) {
    let Some(turned) = base.turned(text, front()) else { return };
    let rest = turned.strip_prefix(OURS).expect("a turned URL is the node's");
    assert!(rest.is_empty() || rest.starts_with(['/', '?']), "{turned}");
    if let (Ok(before), Ok(after)) = (Url::parse(text), Url::parse(&turned)) {
        let host = before.host_str().unwrap_or_default();
        assert!(host == "huggingface.co" || front().serves(host), "{text} is turned");
        assert_eq!(after.host_str(), Some("node"));
        assert_eq!(before.query(), after.query());
    }
}

fn check_path(text: &str) {
    let Ok(url) = Url::parse(HUB).expect("a URL").join(text) else { return };
    if let Some(file) = HubFile::of(&url)
        && url.host_str() == Some("huggingface.co")
    {
        let whole = format!("{}{}{}", file.before, file.revision, file.after);
        assert_eq!(whole, url.path());
    }
}

fn check_headers(base: &Base, bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?.to_ascii_lowercase();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    });
    let headers: Vec<(String, Vec<u8>)> = lines.collect();
    let mut turned = headers.clone();
    base.turn_headers(&mut turned, front());
    assert!(headers.iter().map(|(name, _)| name).eq(turned.iter().map(|(name, _)| name)));
    assert!(turned.iter().all(|(_, value)| !value.contains(&b'\n')));
    let asked = Url::parse("https://huggingface.co/o/r/resolve/main/f").expect("a URL");
    if let Resolved::Elsewhere(url) = resolved(302, &headers, &asked) {
        assert_ne!(url.host_str(), asked.host_str());
    }
    let (kept, _) = as_if_here(&headers);
    assert!(kept.iter().all(|(name, _)| name != "location" && name != "content-length"));
}

fn front() -> &'static Front {
    static FRONT: OnceLock<Front> = OnceLock::new();
    FRONT.get_or_init(|| {
        let yaml = "intercept: {hosts: [cdn.hf.co, xethub.hf.co]}";
        let config = Config::parse(yaml, Path::new("fuzz")).expect("the configuration is well-formed");
        Front::new(&config).expect("the configuration can be followed")
    })
}
