//! What the Hub says, with other hosts' URLs turned to the mirror itself [pure].

use serde::de::IgnoredAny;
use url::Url;

use crate::http::{head::decimal, response::field, route::ORIGIN_PREFIX, rules::Front, target::Authority};

/// The URL of a file at the Hub, in parts.
///
/// | path | what |
/// |---|---|
/// | `/{repository}/resolve/{revision}/{path}` | a file of a repository |
/// | `/buckets/{owner}/{name}/resolve/{path}` | a file of a bucket, which has no revisions |
/// | `/api/resolve-cache/{kind}/{repository}/{commit}/{path}` | where the Hub leads to for small files |
///
/// A repository is `owner/name`, or one name for the oldest models and datasets; `datasets/`, `spaces/` or `kernels/` stands
/// before those that are no model. A revision is a branch, a tag or a commit in one segment, its slashes escaped, or one of
/// the Hub's own references, whose slashes may be raw: `refs/pr/{number}` and `refs/convert/{format}`. `raw/`, `blob/`,
/// `tree/` and all else below `/api/` are no files in this sense and pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// The URL's path up to the revision, which it ends before.
    pub before: String,
    /// A branch, a tag, a reference, or a commit; empty in a bucket.
    pub revision: String,
    /// The rest of the path, with its slash; without it in a bucket.
    pub after: String,
}

/// Hexadecimal digits of a commit.
const COMMIT_LEN: usize = 40;
/// What stands before a repository that is no model.
const KINDS: [&str; 3] = ["datasets", "spaces", "kernels"];

impl HubFile {
    /// By the path of the URL. `None` also where the path can be cut in two ways.
    pub fn of(url: &Url) -> Option<Self> {
        let segments: Vec<&str> = url.path().strip_prefix('/')?.split('/').collect();
        let cut = match segments[..] {
            ["api", "resolve-cache", _, ..] => cached_cut(&segments)?,
            ["api", ..] => return None,
            ["buckets", _, _, "resolve", ..] => (4, 4),
            _ => repository_cut(&segments)?,
        };
        Self::cut(&segments, cut)
    }

    /// The revision is made of the segments `from..to`, and something must follow it.
    fn cut(segments: &[&str], (from, to): (usize, usize)) -> Option<Self> {
        let joined = |segments: &[&str]| segments.join("/");
        let path = segments.get(to..).map(joined).filter(|path| !path.is_empty())?;
        let after = if from == to { path } else { format!("/{path}") };
        Some(Self { before: format!("/{}/", joined(&segments[..from])), revision: joined(&segments[from..to]), after })
    }
}

/// Where the revision begins and ends behind `resolve`.
fn repository_cut(segments: &[&str]) -> Option<(usize, usize)> {
    let owner = usize::from(KINDS.contains(segments.first()?));
    // One name, or owner and name.
    let mut cuts =
        [owner + 1, owner + 2].into_iter().filter(|at| segments.get(*at) == Some(&"resolve")).filter_map(|at| {
            let len = match segments.get(at + 1..)? {
                ["refs", "pr", number, _, ..] if number.bytes().all(|byte| byte.is_ascii_digit()) => 3,
                ["refs", "convert", _, _, ..] => 3,
                ["", ..] => return None,
                [_, _, ..] => 1,
                _ => return None,
            };
            Some((at + 1, at + 1 + len))
        });
    cuts.next().filter(|_| cuts.next().is_none())
}

/// `/api/resolve-cache/{kind}/{repository}/{commit}/{path}`: the commit is behind one name or two.
fn cached_cut(segments: &[&str]) -> Option<(usize, usize)> {
    let at = [4, 5].into_iter().find(|at| segments.get(*at).is_some_and(|segment| is_commit(segment)))?;
    Some((at, at + 1))
}

/// Whether what is at the URL is made for its caller, and names further URLs for it: a xet token, of a repository's revision
/// or of a bucket, which has none; a xet reconstruction; a batch of git-lfs.
pub fn is_directions(url: &Url) -> bool {
    let path = url.path();
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    match segments[..] {
        ["api", ref below @ ..] => below.contains(&"xet-read-token"),
        ["v1" | "v2" | "v3", "reconstructions", ..] => true,
        _ => path.ends_with("/info/lfs/objects/batch"),
    }
}

/// Whether the revision is a commit, which always means the same files.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_LEN && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The Hub under another address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `http://node:65001`, as the client calls it; no slash at the end.
    pub ours: String,
    /// `https://huggingface.co`; no slash at the end.
    pub hub: String,
}

impl Base {
    /// A URL as the mirror's client should follow it; `None`: it may stay as it is.
    pub fn turned(&self, url: &str, front: &Front) -> Option<String> {
        if let Some(rest) = url.strip_prefix(&self.hub).filter(|rest| rest.is_empty() || rest.starts_with(['/', '?'])) {
            return Some(format!("{}{rest}", self.ours));
        }
        let rest = url.strip_prefix("https://")?;
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A port other than 443 would be lost; the served hosts have none.
        let bare = Authority::parse(host.as_bytes()).filter(|it| it.port.is_none_or(|port| port == 443))?;
        let leads_there = Url::parse(url).is_ok_and(|url| front.serves_origin(&url));
        // Path and query stay as they were signed, byte for byte.
        leads_there.then(|| format!("{}{ORIGIN_PREFIX}{}{path}", self.ours, bare.host))
    }

    /// Turns what headers lead to: Location, Link, and X-Xet-Cas-Url of a token.
    pub fn turn_headers(&self, headers: &mut [(String, Vec<u8>)], front: &Front) {
        for (name, value) in headers {
            let Ok(text) = std::str::from_utf8(value) else { continue };
            let turned = match name.as_str() {
                "location" | "x-xet-cas-url" | "x-xet-refresh-route" => self.turned(text, front),
                "link" => Some(self.turned_links(text, front)),
                _ => None,
            };
            if let Some(turned) = turned {
                *value = turned.into_bytes();
            }
        }
    }

    /// `<URL>; rel="next", <URL>; ...` (RFC 8288).
    fn turned_links(&self, text: &str, front: &Front) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, (url, after))) =
            rest.split_once('<').and_then(|(before, rest)| Some((before, rest.split_once('>')?)))
        {
            let turned = self.turned(url, front);
            out.extend([before, "<", turned.as_deref().unwrap_or(url), ">"]);
            rest = after;
        }
        out + rest
    }

    /// Turns every string of a JSON document that is a URL, but for the names of fields; `None`: the bytes are not JSON.
    /// Everything else stays byte for byte: a document that is read and written again loses digits of its numbers.
    pub fn turned_json(&self, body: &[u8], front: &Front) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(body).ok()?;
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        // In a well-formed document the first quote outside of a string begins one.
        while let Some(start) = rest.find('"') {
            let (before, string) = rest.split_at(start);
            let (string, after) = string.split_at(string_len(string));
            out.push_str(before);
            match self.turned_string(string, front).filter(|_| !after.trim_start().starts_with(':')) {
                Some(turned) => out.push_str(&turned),
                None => out.push_str(string),
            }
            rest = after;
        }
        out.push_str(rest);
        Some(out.into_bytes())
    }

    /// The same for one string with its quotes; `None` if it stays as it is.
    fn turned_string(&self, string: &str, front: &Front) -> Option<String> {
        let url: String = serde_json::from_str(string).ok()?;
        serde_json::to_string(&self.turned(&url, front)?).ok()
    }
}

/// Bytes of the JSON string that the text begins with, quotes included.
fn string_len(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return at + 1,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    text.len()
}

/// What the Hub answered for a file, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The bytes are at this URL.
    Elsewhere(Url),
    /// The Hub itself has them.
    Here,
    /// A refusal, or a redirection that the client should follow.
    Other,
}

/// Reads the answer to a HEAD of `asked`; names in lower case.
pub fn resolved(status: u16, headers: &[(String, Vec<u8>)], asked: &Url) -> Resolved {
    let location = || std::str::from_utf8(field(headers, "location")?).ok();
    match status {
        200 => Resolved::Here,
        301 | 302 | 303 | 307 | 308 => match location().and_then(|location| asked.join(location).ok()) {
            Some(url) if url.host_str() != asked.host_str() => Resolved::Elsewhere(url),
            _ => Resolved::Other,
        },
        _ => Resolved::Other,
    }
}

/// The head of a file as a client should see it that follows redirects within one host: as if the Hub had the bytes.
/// Gives the headers, and the length.
pub fn as_if_here(headers: &[(String, Vec<u8>)]) -> (Vec<(String, Vec<u8>)>, Option<u64>) {
    let len = field(headers, "x-linked-size").and_then(decimal);
    let dropped = ["location", "content-length", "content-type", "etag", "vary"];
    let kept = headers.iter().filter(|(name, _)| !dropped.contains(&name.as_str()));
    let mut out: Vec<_> = kept.cloned().collect();
    let etag = field(headers, "x-linked-etag").or_else(|| field(headers, "etag"));
    out.extend(etag.map(|etag| ("etag".to_owned(), etag.to_vec())));
    out.push(("content-type".to_owned(), b"application/octet-stream".to_vec()));
    (out, len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn front() -> Front {
        let yaml = "intercept: {hosts: [cdn.hf.co, xethub.hf.co]}";
        Front::new(&Config::parse(yaml, std::path::Path::new("test")).unwrap()).unwrap()
    }

    fn base() -> Base {
        Base { ours: "http://node:65001".into(), hub: "https://huggingface.co".into() }
    }

    fn header(name: &str, value: &str) -> (String, Vec<u8>) {
        (name.to_owned(), value.as_bytes().to_vec())
    }

    #[test]
    fn paths_are_told_apart() {
        let url = |path: &str| Url::parse(&format!("https://huggingface.co{path}")).unwrap();
        let kind = |path: &str| HubFile::of(&url(path));
        let file = |before: &str, revision: &str, after: &str| {
            Some(HubFile { before: before.into(), revision: revision.into(), after: after.into() })
        };
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let cache = "/api/resolve-cache";
        for (path, before, revision, after) in [
            ("/o/m/resolve/main/a/b.bin?x=1", "/o/m/resolve/", "main", "/a/b.bin"),
            ("/o/m/resolve/refs/pr/1/config.json", "/o/m/resolve/", "refs/pr/1", "/config.json"),
            ("/o/m/resolve/refs%2Fpr%2F1/f", "/o/m/resolve/", "refs%2Fpr%2F1", "/f"),
            ("/o/m/resolve/refs/x/y", "/o/m/resolve/", "refs", "/x/y"),
            (
                "/datasets/o/d/resolve/refs/convert/parquet/a/0.parquet",
                "/datasets/o/d/resolve/",
                "refs/convert/parquet",
                "/a/0.parquet",
            ),
            ("/datasets/squad/resolve/main/f", "/datasets/squad/resolve/", "main", "/f"),
            ("/spaces/o/s/resolve/main/app.py", "/spaces/o/s/resolve/", "main", "/app.py"),
            ("/kernels/o/k/resolve/v1/build.toml", "/kernels/o/k/resolve/", "v1", "/build.toml"),
            ("/gpt2/resolve/main/x", "/gpt2/resolve/", "main", "/x"),
            ("/gpt2/resolve/main/resolve/x", "/gpt2/resolve/", "main", "/resolve/x"),
            ("/o/m/resolve/main/resolve/x", "/o/m/resolve/", "main", "/resolve/x"),
            ("/buckets/o/b/resolve/a%2Fb.bin", "/buckets/o/b/resolve/", "", "a%2Fb.bin"),
            ("/buckets/o/b/resolve/a/b.bin", "/buckets/o/b/resolve/", "", "a/b.bin"),
            (&format!("{cache}/models/o/m/{commit}/a/c.json"), &format!("{cache}/models/o/m/"), commit, "/a/c.json"),
            (&format!("{cache}/models/gpt2/{commit}/c.json"), &format!("{cache}/models/gpt2/"), commit, "/c.json"),
        ] {
            assert_eq!(kind(path), file(before, revision, after), "{path}");
        }
        for other in [
            "/o/m/raw/main/README.md",
            "/o/m/blob/main/resolve/main/x",
            "/o/m/tree/main",
            "/o/m/resolve/main",
            "/o/m/resolve/main/",
            "/o/m/resolve//x",
            "/gpt2/resolve/resolve/main/f",
            "/api/models/o/m/resolve/main/f",
            "/api/resolve-cache/models/o/m/main/f",
            "/buckets/o/b/resolve/",
            "/api/models/o/m",
            "/",
        ] {
            assert_eq!(kind(other), None, "{other}");
            assert!(!is_directions(&url(other)), "{other}");
        }
        let reconstruction = format!("/v2/reconstructions/{}", "a".repeat(64));
        for directions in [
            "/api/models/o/m/xet-read-token/main",
            "/api/models/o/m/xet-read-token/refs%2Fpr%2F1",
            "/api/models/o/m/xet-read-token",
            "/api/buckets/o/b/xet-read-token",
            "/o/m.git/info/lfs/objects/batch",
            "/datasets/o/d.git/info/lfs/objects/batch",
            &reconstruction,
        ] {
            assert!(is_directions(&url(directions)) && kind(directions).is_none(), "{directions}");
        }
        assert!(is_commit(commit) && !is_commit("main"));
    }

    #[test]
    fn the_hub_and_the_served_hosts_become_the_mirror_and_others_stay() {
        let turned = |url| base().turned(url, &front());
        assert_eq!(turned("https://huggingface.co/api/x?y").as_deref(), Some("http://node:65001/api/x?y"));
        assert_eq!(turned("https://huggingface.co").as_deref(), Some("http://node:65001"));
        let cas = turned("https://cas-server.xethub.hf.co").unwrap();
        assert_eq!(cas, "http://node:65001/_origin/cas-server.xethub.hf.co");
        assert!(
            turned("https://a.cdn.hf.co:443/x?Signature=1").unwrap().ends_with("/_origin/a.cdn.hf.co/x?Signature=1")
        );
        for stays in [
            "https://huggingface.com/",
            "https://huggingface.coat/",
            "https://s3.example/x",
            "/a",
            "http://cdn.hf.co/",
            "https://evil.example\\.cdn.hf.co/x",
            "https://u@cdn.hf.co/x",
            "https://cdn.hf.co:8443/x",
        ] {
            assert_eq!(turned(stays), None, "{stays}");
        }
    }

    #[test]
    fn links_and_json_are_turned_wherever_a_url_stands() {
        let mut headers = vec![
            header("link", "<https://huggingface.co/api/t>; rel=\"xet-auth\", <https://x.example/>; rel=\"next\""),
            header("location", "https://huggingface.co/new/name"),
            header("x-error-message", "https://huggingface.co/stays"),
        ];
        base().turn_headers(&mut headers, &front());
        let text: Vec<_> = headers.iter().map(|(_, value)| String::from_utf8(value.clone()).unwrap()).collect();
        assert_eq!(text[0], "<http://node:65001/api/t>; rel=\"xet-auth\", <https://x.example/>; rel=\"next\"");
        assert_eq!(text[1..], ["http://node:65001/new/name", "https://huggingface.co/stays"]);
        let json =
            br#"{"a":[{"url":"https://t.xethub.hf.co/xorbs/1?S=2"}],"casUrl":"https://cas-server.xethub.hf.co","n":1}"#;
        let turned = String::from_utf8(base().turned_json(json, &front()).unwrap()).unwrap();
        assert!(turned.contains("http://node:65001/_origin/t.xethub.hf.co/xorbs/1?S=2"), "{turned}");
        assert_eq!(base().turned_json(b"<html>", &front()), None);
    }

    #[test]
    fn a_document_changes_in_nothing_but_its_urls() {
        let json = r#"{ "z": 9.999998999999999e+30, "a": 123456789012345678901, "https://huggingface.co/x": "\u0041\"",
            "a": "https:\/\/huggingface.co\/x" , "s": "\ud800", "e": "\\" }"#;
        let turned = base().turned_json(json.as_bytes(), &front()).unwrap();
        let expected = json.replace(r#""https:\/\/huggingface.co\/x""#, r#""http://node:65001/x""#);
        assert_eq!(String::from_utf8(turned).unwrap(), expected);
    }

    #[test]
    fn a_redirected_file_looks_like_one_of_the_hubs_own() {
        let asked = Url::parse("https://huggingface.co/o/m/resolve/main/f").unwrap();
        let headers = [
            header("location", "https://cdn.hf.co/x?S=1"),
            header("x-linked-etag", "\"abc\""),
            header("x-linked-size", "12"),
            header("etag", "\"other\""),
            header("x-repo-commit", "c"),
        ];
        let Resolved::Elsewhere(url) = resolved(302, &headers, &asked) else { panic!() };
        assert_eq!(url.as_str(), "https://cdn.hf.co/x?S=1");
        let (seen, len) = as_if_here(&headers);
        assert_eq!(len, Some(12));
        assert!(seen.contains(&header("etag", "\"abc\"")) && seen.contains(&header("x-repo-commit", "c")));
        assert!(!seen.iter().any(|(name, _)| name == "location"));
        assert_eq!(resolved(307, &[header("location", "/new/f")], &asked), Resolved::Other);
        assert_eq!(resolved(404, &[], &asked), Resolved::Other);
    }

    proptest! {
        #[test]
        fn no_answer_of_a_hub_panics_and_what_is_not_turned_stays(text in ".*", json in "[\\[\\]{}:,\"a-z0-9 /.]*") {
            let mut headers = vec![header("link", &text), header("location", &text)];
            let before = headers.clone();
            base().turn_headers(&mut headers, &front());
            prop_assert!(headers == before || text.contains("huggingface.co") || text.contains("hf.co"));
            let _ = base().turned_json(json.as_bytes(), &front());
            if let Ok(url) = Url::parse(&format!("https://huggingface.co/{text}")) {
                let _ = (HubFile::of(&url), is_directions(&url));
            }
        }
    }
}
