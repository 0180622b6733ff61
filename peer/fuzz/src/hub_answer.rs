//! The Hub's answers to the command line: paths stay in their folder, pages and redirects are URLs, names are read whole.

use std::path::{Component, Path};

use pondhawk::fuzz::{hub_answer, hub_listing, hub_name};
use url::Url;

/// Runs the target: a listing, an answer's header lines, and an `hf://` name, all of the same bytes.
pub fn run(bytes: &[u8]) {
    if let Some(paths) = hub_listing(bytes) {
        for path in paths {
            check_path(&path);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(paths) = hub_name(text)
    {
        check_name(&paths);
    }
    check_answer(bytes);
}

fn check_path(path: &str) {
    let stays = |component| matches!(component, Component::Normal(_));
    assert!(!path.is_empty() && Path::new(path).components().all(stays), "{path:?} leaves its folder");
    assert!(!path.contains(char::is_control), "{path:?} holds control characters");
}

/// A name adds nothing to the host, no query of its own, and no way out of the repository.
fn check_name(paths: &[String; 3]) {
    let endpoint = Url::parse("https://huggingface.co/prefix/").expect("a URL");
    for path in paths {
        let url = Url::parse(&format!("{endpoint}{path}")).expect("a name makes a URL");
        assert_eq!(url.host_str(), endpoint.host_str());
        assert!(url.path().starts_with("/prefix/"), "{path} leads to {url}");
        assert!(url.fragment().is_none());
        assert!(matches!(url.query(), None | Some("recursive=true")), "{path} leads to {url}");
    }
}

fn check_answer(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?.to_owned();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    });
    let fields: Vec<(String, Vec<u8>)> = lines.collect();
    let asked = Url::parse("https://huggingface.co/api/models/o/r/tree/main").expect("a URL");
    let answer = hub_answer(&asked, 307, &fields);
    if let Some(commit) = &answer.commit {
        check_path(commit);
    }
    let has = |name: &str| fields.iter().any(|(field, _)| field.eq_ignore_ascii_case(name));
    assert!(answer.redirect.is_none() || has("location"));
    assert!(answer.next_page.is_none() || has("link"));
}
