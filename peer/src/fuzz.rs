//! Entries for the fuzz targets in `peer/fuzz` to parsers that are not part of this crate's interface. No other code calls
//! them, and they may change at any time.

use std::path::Path;

use hyper::{HeaderMap, header::HeaderName, header::HeaderValue};
use url::Url;

use crate::{
    authorize::expiry,
    cli::get::{hub, reference::Reference},
    store::index,
    swarm::{request, upstream},
};

/// Unix seconds at which the signature of a URL ends; see [`crate::authorize`].
pub fn url_expiry(url: &Url) -> Option<u64> {
    expiry::of(url)
}

/// The paths of the files in one page of a listing by the Hub that are taken; `None` if the page is not a listing.
pub fn hub_listing(page: &[u8]) -> Option<Vec<String>> {
    let leaves: Vec<hub::Leaf> = serde_json::from_slice(page).ok()?;
    let mut listing = hub::Listing::default();
    leaves.into_iter().for_each(|leaf| listing.add(leaf));
    Some(listing.entries.into_iter().map(|entry| entry.path).collect())
}

/// What the Hub's answer about one file leads to.
#[derive(Debug)]
pub struct HubAnswer {
    /// `X-Repo-Commit`, which becomes the name of a folder.
    pub commit: Option<String>,
    /// Where the answer redirects to.
    pub redirect: Option<Url>,
    /// Where the next page of a listing is.
    pub next_page: Option<Url>,
}

/// Reads the headers of an answer to a request for `url`.
pub fn hub_answer(url: &Url, status: u16, fields: &[(String, Vec<u8>)]) -> HubAnswer {
    let headers = header_map(fields);
    HubAnswer {
        commit: hub::said(&headers, url, true).commit,
        redirect: hub::redirect(url, status, &headers),
        next_page: hub::next_page(&headers, url),
    }
}

/// The paths at the Hub that an `hf://` name leads to, below the endpoint: its revision, its listing, its file. `None`: the
/// text is not such a name.
pub fn hub_name(text: &str) -> Option<[String; 3]> {
    let reference = Reference::parse(text).ok()?;
    let file = reference.resolve_path(&reference.revision, &reference.path);
    Some([reference.revision_path(), reference.tree_path(&reference.revision), file])
}

/// The header fields that go to the origin for those that a client sent.
pub fn forwarded(fields: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let headers = request::forwarded(fields);
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

/// Reads the answer of an upstream proxy that arrives in `parts`: the bytes of its head, and its status once it is whole.
pub fn upstream_head<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Option<Option<u16>>) {
    let mut head = Vec::new();
    for part in parts {
        let (taken, is_whole) = upstream::of_head(&head, part);
        head.extend_from_slice(&part[..taken]);
        if is_whole {
            let status = upstream::status(&head);
            return (head, Some(status));
        }
    }
    (head, None)
}

/// Opens the index of a store, as at start; the number of tasks in it.
///
/// # Errors
/// The disk's.
pub fn open_index(path: &Path, aside: &Path) -> Result<usize, String> {
    match index::Index::open(path.to_owned(), aside.to_owned()) {
        Ok((_, tasks)) => Ok(tasks.len()),
        Err(error) => Err(error.to_string()),
    }
}

fn header_map(fields: &[(String, Vec<u8>)]) -> HeaderMap {
    let field = |(name, value): &(String, Vec<u8>)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields.iter().filter_map(field) {
        headers.append(name, value);
    }
    headers
}
