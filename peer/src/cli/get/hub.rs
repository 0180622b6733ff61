//! What the Hub says of a repository: its commit, its files, where a file's bytes are.

use hyper::{HeaderMap, Method, header};
use serde::Deserialize;
use url::Url;

use super::{
    error::{GetError, label},
    names,
    reference::Reference,
    web::{Lines, Web},
};
use crate::task::id::parse_hex32;

/// Redirects of one request (a renamed repository, a cache of small files).
pub(crate) const REDIRECTS: usize = 5;
/// Files of one repository: beyond the Hub's own recommended 100,000 tenfold.
const MAX_FILES: usize = 1_000_000;
/// Answers in which they are listed: a hundred files in each.
const MAX_PAGES: usize = MAX_FILES / 100;

/// The Hub at an endpoint, with a user's rights.
pub(crate) struct Hub {
    endpoint: Url,
    lines: Lines,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Checked to stay within a folder.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: Option<[u8; 32]>,
}

/// The files of a repository, or of a folder in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    /// Paths that leave the repository or that no file can have.
    pub(crate) refused: Vec<String>,
}

impl Listing {
    /// Adds a file, to those that are refused if its path is not safe.
    pub(crate) fn add(&mut self, leaf: Leaf) {
        match names::is_safe(&leaf.path) {
            true => self.entries.push(entry(leaf)),
            false => self.refused.push(leaf.path),
        }
    }

    /// Keeps what passes.
    pub(crate) fn retain(&mut self, passes: impl Fn(&str) -> bool) {
        self.entries.retain(|entry| passes(&entry.path));
        self.refused.retain(|path| passes(path));
    }

    /// The error that the refused paths are, once everything else is done.
    pub(crate) fn refusal(refused: Vec<String>) -> Result<(), GetError> {
        if refused.is_empty() { Ok(()) } else { Err(GetError::Names(refused)) }
    }
}

/// What the Hub says of one file.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) commit: Option<String>,
    /// As sent.
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<[u8; 32]>,
    /// Where the bytes are: on the Hub, or signed on its CDN.
    pub(crate) url: Url,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
pub(crate) struct Leaf {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: Option<u64>,
}

impl Hub {
    /// `lines` go to the Hub and to nobody else.
    pub(crate) fn new(endpoint: Url, token: Option<&str>, mut lines: Lines) -> Self {
        if let Some(token) = token {
            lines.push(("authorization".to_owned(), format!("Bearer {token}").into_bytes()));
        }
        Self { endpoint, lines }
    }

    /// What goes with a request for bytes that the Hub itself has.
    pub(crate) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// The commit that the reference's revision means now.
    pub(crate) async fn commit(&self, web: &Web, reference: &Reference) -> Result<String, GetError> {
        let url = self.url(&reference.revision_path())?;
        let revision: Revision = self.document(web, &url).await?.0;
        match names::is_component(&revision.sha) {
            true => Ok(revision.sha),
            false => Err(GetError::Answer { what: label(&url), why: "its commit is none".to_owned() }),
        }
    }

    /// The files at and below the reference's path, at a commit.
    pub(crate) async fn files(&self, web: &Web, reference: &Reference, commit: &str) -> Result<Listing, GetError> {
        let mut next = Some(self.url(&reference.tree_path(commit))?);
        let mut listing = Listing::default();
        let mut pages = 0;
        while let Some(url) = next {
            let too_many = |why| Err(GetError::Answer { what: label(&url), why });
            let (leaves, headers, at): (Vec<Leaf>, _, _) = self.document(web, &url).await?;
            for leaf in leaves.into_iter().filter(|leaf| leaf.kind == "file" && reference.holds(&leaf.path)) {
                listing.add(leaf);
            }
            pages += 1;
            if listing.entries.len() + listing.refused.len() > MAX_FILES {
                return too_many(format!("more than {MAX_FILES} files"));
            }
            next = next_page(&headers, &at);
            if next.is_some() && pages >= MAX_PAGES {
                return too_many(format!("a listing of more than {MAX_PAGES} pages"));
            }
            if next.as_ref().is_some_and(|next| url.scheme() == "https" && next.scheme() != "https") {
                return too_many("its next page is not at an https URL".to_owned());
            }
        }
        Ok(listing)
    }

    /// Where a file's bytes are. The commit in `revision` keeps a download of many files at one state of the repository.
    pub(crate) async fn locate(
        &self,
        web: &Web,
        reference: &Reference,
        revision: &str,
        path: &str,
    ) -> Result<Located, GetError> {
        let mut url = self.url(&reference.resolve_path(revision, path))?;
        let what = label(&url);
        let mut found: Option<Located> = None;
        for _ in 0..=REDIRECTS {
            let reply = web.ask(Method::HEAD, &url, self.lines()).await?;
            let next = redirect(&url, reply.status, &reply.headers);
            if next.is_none() && reply.status != 200 {
                return Err(reply.refusal(&what).await);
            }
            // The first answer that says something of the file is the Hub's; a cache behind it may know less.
            let said = said(&reply.headers, &url, next.is_none());
            let mut kept = match found {
                None => said,
                Some(first) => first.or(said),
            };
            match next {
                Some(next) if web.is_hub(&next) => url = next.clone(),
                Some(next) if url.scheme() == "https" && next.scheme() != "https" => {
                    return Err(GetError::Answer { what, why: "redirected from https to another scheme".to_owned() });
                }
                Some(next) => {
                    kept.url = next;
                    return Ok(kept);
                }
                None => {
                    kept.url = url;
                    return Ok(kept);
                }
            }
            found = Some(kept);
        }
        Err(GetError::Answer { what, why: "too many redirects".to_owned() })
    }

    /// The document, the head of its answer, and where redirects led.
    async fn document<T: serde::de::DeserializeOwned>(
        &self,
        web: &Web,
        url: &Url,
    ) -> Result<(T, HeaderMap, Url), GetError> {
        let (body, headers, at) = web.document(url, &self.lines).await?;
        let wrong = |error: serde_json::Error| GetError::Answer { what: label(url), why: error.to_string() };
        Ok((serde_json::from_slice(&body).map_err(wrong)?, headers, at))
    }

    fn url(&self, path: &str) -> Result<Url, GetError> {
        let text = format!("{}/{path}", self.endpoint.as_str().trim_end_matches('/'));
        Url::parse(&text).map_err(|error| GetError::Answer { what: text, why: error.to_string() })
    }
}

impl Located {
    fn or(self, later: Self) -> Self {
        Self {
            commit: self.commit.or(later.commit),
            etag: self.etag.or(later.etag),
            size: self.size.or(later.size),
            sha256: self.sha256.or(later.sha256),
            url: later.url,
        }
    }
}

fn entry(leaf: Leaf) -> Entry {
    let sha256 = leaf.lfs.as_ref().and_then(|lfs| parse_hex32(&lfs.oid));
    let size = leaf.lfs.and_then(|lfs| lfs.size).unwrap_or(leaf.size);
    Entry { path: leaf.path, size, sha256 }
}

/// What a HEAD's answer tells. The length of the answer itself is the file's only at the end of all redirects.
pub(crate) fn said(headers: &HeaderMap, url: &Url, last: bool) -> Located {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let linked = text("x-linked-etag").or_else(|| text("etag"));
    let size = text("x-linked-size").or_else(|| text("content-length").filter(|_| last));
    Located {
        commit: text("x-repo-commit").filter(|commit| names::is_component(commit)),
        sha256: linked.as_deref().and_then(|etag| parse_hex32(etag.trim_start_matches("W/").trim_matches('"'))),
        etag: linked,
        size: size.and_then(|size| size.parse().ok()),
        url: url.clone(),
    }
}

/// Where an answer redirects to.
pub(crate) fn redirect(from: &Url, status: u16, headers: &HeaderMap) -> Option<Url> {
    let location = headers.get(header::LOCATION).filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308))?;
    from.join(location.to_str().ok()?).ok()
}

/// `Link: <URL>; rel="next"` (RFC 8288).
pub(crate) fn next_page(headers: &HeaderMap, from: &Url) -> Option<Url> {
    let links = headers.get_all(header::LINK).iter().filter_map(|line| line.to_str().ok());
    let next = links.flat_map(|line| line.split(',')).find(|link| link.contains("rel=\"next\""))?;
    from.join(next.split('<').nth(1)?.split('>').next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_listing_goes_on_where_its_link_says() {
        let from = Url::parse("https://h/api/models/o/r/tree/c?recursive=true").unwrap();
        let link = headers(&[("link", "<https://h/api/models/o/r/tree/c?recursive=true&cursor=x>; rel=\"next\"")]);
        assert_eq!(next_page(&link, &from).unwrap().query(), Some("recursive=true&cursor=x"));
        assert_eq!(next_page(&headers(&[("link", "<https://h/x>; rel=\"prev\"")]), &from), None);
    }

    #[test]
    fn what_stands_for_the_linked_file_wins_over_what_is_of_the_answer() {
        let url = Url::parse("https://h/o/r/resolve/main/x").unwrap();
        let sha = "ab".repeat(32);
        let linked = HeaderMap::from_iter([
            (header::ETAG, "\"of the redirect\"".parse().unwrap()),
            ("x-linked-etag".parse().unwrap(), format!("\"{sha}\"").parse().unwrap()),
            ("x-linked-size".parse().unwrap(), "7".parse().unwrap()),
            (header::CONTENT_LENGTH, "29".parse().unwrap()),
        ]);
        let said = said(&linked, &url, false);
        assert_eq!((said.size, said.sha256), (Some(7), Some([0xab; 32])));
        let small = super::said(&headers(&[("etag", "\"e\""), ("content-length", "29")]), &url, true);
        assert_eq!((small.size, small.sha256, small.etag.as_deref()), (Some(29), None, Some("\"e\"")));
    }
}
