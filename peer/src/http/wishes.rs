//! What a request asks of the node itself, in headers that never reach an origin [pure].
//!
//! Each has our own name and the one that Dragonfly's clients know: `X-Pondhawk-Registry` and `X-Dragonfly-Registry`, and so on.
//! `X-Dragonfly-Piece-Length` and other names of its are taken off and change nothing: a task's pieces follow from its length.

use url::Url;

use super::{destination::Destination, head::RequestHead};

const PREFIXES: [&str; 2] = ["x-pondhawk-", "x-dragonfly-"];
/// Names in one filter.
const MAX_PARAMETERS: usize = 32;
/// Bytes of a tag or an application.
const MAX_NAMESPACE: usize = 256;

/// What the node is asked for beside the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `Registry`: the origin of an origin-form request, scheme and host.
    pub registry: Option<Url>,
    /// `Filtered-Query-Params` (comma) or `Filter` (ampersand): parameters that are no part of the name.
    pub drop_params: Vec<String>,
    /// `Tag` and `Application`: names without a hash are told apart by them.
    pub namespace: Option<String>,
    /// `Use-P2P`: keep the file, or pass the request through, whatever the rules say.
    pub store: Option<bool>,
    /// `Prefetch`: a range is wanted, and the rest soon.
    pub prefetch: bool,
}

/// A wish that cannot be read. The text is meant for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// No URL.
    #[error("the Registry header is no http or https URL of a host")]
    Registry,
    /// Too much of it.
    #[error("the header {0} is too long or no text")]
    Text(&'static str),
}

impl Wishes {
    /// Reads them; of a wish that is there under both names ours counts.
    pub fn of(head: &RequestHead) -> Result<Self, WishError> {
        let registry = text(head, "registry")?.map(|text| registry(text).ok_or(WishError::Registry)).transpose()?;
        let mut drop_params = split(text(head, "filtered-query-params")?, ',');
        drop_params.extend(split(text(head, "filter")?, '&'));
        if drop_params.len() > MAX_PARAMETERS {
            return Err(WishError::Text("filter"));
        }
        let (tag, application) = (text(head, "tag")?, text(head, "application")?);
        let namespace = (tag.is_some() || application.is_some())
            .then(|| format!("{}\n{}", tag.unwrap_or_default(), application.unwrap_or_default()));
        if namespace.as_ref().is_some_and(|text| text.len() > MAX_NAMESPACE) {
            return Err(WishError::Text("tag"));
        }
        let store = text(head, "use-p2p")?.and_then(flag);
        let prefetch = text(head, "prefetch")?.and_then(flag) == Some(true);
        Ok(Self { registry, drop_params, namespace, store, prefetch })
    }
}

/// Whether a lower-case header name is a wish.
pub fn is_wish(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn text<'a>(head: &'a RequestHead, name: &'static str) -> Result<Option<&'a str>, WishError> {
    let find = |prefix: &&str| head.get(&format!("{prefix}{name}"));
    let Some(value) = PREFIXES.iter().find_map(find) else { return Ok(None) };
    let text = std::str::from_utf8(value).map_err(|_| WishError::Text(name))?.trim();
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn split(text: Option<&str>, separator: char) -> Vec<String> {
    let names = text.into_iter().flat_map(|text| text.split(separator));
    names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn flag(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("true") || text == "1" => Some(true),
        _ if text.eq_ignore_ascii_case("false") || text == "0" => Some(false),
        _ => None,
    }
}

/// Scheme and authority; what follows them is not ours to follow.
fn registry(text: &str) -> Option<Url> {
    let mut url = Url::parse(text).ok()?;
    Destination::of(&url).ok()?;
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Parsed, parse};

    fn wishes(lines: &str) -> Result<Wishes, WishError> {
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let Ok(Parsed::Complete { head, .. }) = parse(request.as_bytes(), &HeadLimits::default()) else { panic!() };
        Wishes::of(&head)
    }

    #[test]
    fn dragonflys_names_and_ours_mean_the_same() {
        for prefix in ["X-Dragonfly-", "x-pondhawk-"] {
            let lines = format!(
                "{prefix}Registry: https://index.docker.io/v1\r\n{prefix}Filter: a&b\r\n{prefix}Use-P2P: True\r\n\
                 {prefix}Prefetch: true\r\n{prefix}Tag: t\r\n{prefix}Piece-Length: 4mib\r\n"
            );
            let read = wishes(&lines).unwrap();
            assert_eq!(read.registry.unwrap().as_str(), "https://index.docker.io/");
            assert_eq!((read.drop_params.join(" "), read.store, read.prefetch), ("a b".to_owned(), Some(true), true));
            assert_eq!(read.namespace.as_deref(), Some("t\n"));
        }
        assert_eq!(wishes("X-Dragonfly-Filtered-Query-Params: a, b\r\n").unwrap().drop_params, ["a", "b"]);
        assert_eq!(wishes("Accept: x\r\n").unwrap(), Wishes::default());
    }

    #[test]
    fn a_wish_that_cannot_be_read_is_an_error() {
        assert_eq!(wishes("X-Dragonfly-Registry: ftp://x\r\n").unwrap_err(), WishError::Registry);
        assert_eq!(wishes("X-Dragonfly-Registry: https://u:p@x\r\n").unwrap_err(), WishError::Registry);
        assert!(wishes(&format!("X-Dragonfly-Tag: {}\r\n", "a".repeat(300))).is_err());
        assert!(wishes(&format!("X-Dragonfly-Filter: {}\r\n", "a&".repeat(40))).is_err());
    }
}
