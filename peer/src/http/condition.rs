//! Conditional requests [pure] (RFC 9110 §13), against one stored representation.

use super::{date, etag::Etag, head::RequestHead, response::field};

/// The validators of what would be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The origin's entity tag.
    pub etag: Option<Etag>,
    /// Another entity tag under which the same bytes were given out. There is one only where a hash names the bytes.
    pub alternate: Option<Etag>,
    /// The origin's Last-Modified, Unix seconds.
    pub last_modified: Option<i64>,
    /// The origin's Date on the same response, Unix seconds: it decides whether Last-Modified is a strong validator.
    pub date: Option<i64>,
}

/// What the preconditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
}

impl Stored {
    /// The validators among the stored headers of the origin (names in lower case).
    pub fn of(headers: &[(String, Vec<u8>)], now: i64) -> Self {
        let get = |name: &str| field(headers, name);
        Self {
            etag: get("etag").and_then(Etag::parse),
            alternate: None,
            last_modified: get("last-modified").and_then(|value| date::parse(value, now)),
            date: get("date").and_then(|value| date::parse(value, now)),
        }
    }

    /// Every entity tag of these bytes.
    fn tags(&self) -> impl Iterator<Item = &Etag> {
        self.etag.iter().chain(&self.alternate)
    }

    /// A modification within the second of the response could have been followed by another one (RFC 9110 §8.8.2.2).
    fn strong_last_modified(&self) -> Option<i64> {
        let (modified, date) = (self.last_modified?, self.date?);
        (modified < date).then_some(modified)
    }
}

/// Evaluates all preconditions but If-Range in the order of RFC 9110 §13.2.2. `now`: Unix seconds.
pub fn evaluate(head: &RequestHead, stored: &Stored, now: i64) -> Outcome {
    let reads = matches!(head.method.as_str(), "GET" | "HEAD");
    let date_of = |name| head.get(name).and_then(|value| date::parse(value, now));
    if head.get("if-match").is_some() {
        if !matches(head, "if-match", stored, Etag::strong_eq) {
            return Outcome::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (date_of("if-unmodified-since"), stored.last_modified)
        && modified > since
    {
        return Outcome::PreconditionFailed;
    }
    if head.get("if-none-match").is_some() {
        return match matches(head, "if-none-match", stored, Etag::weak_eq) {
            true if reads => Outcome::NotModified,
            true => Outcome::PreconditionFailed,
            false => Outcome::Proceed,
        };
    }
    match (date_of("if-modified-since"), stored.last_modified) {
        (Some(since), Some(modified)) if reads && modified <= since => Outcome::NotModified,
        _ => Outcome::Proceed,
    }
}

/// Whether the Range field counts: GET, and no If-Range or one that names exactly what is stored (RFC 9110 §13.1.5). A
/// part of another version must never be appended to what the client has, so whatever cannot be compared strongly says
/// no.
pub fn range_applies(head: &RequestHead, stored: &Stored, now: i64) -> bool {
    if head.method != "GET" {
        return false;
    }
    let mut values = head.get_all("if-range");
    let Some(value) = values.next() else { return true };
    if values.next().is_some() {
        return false;
    }
    match Etag::parse(value) {
        Some(etag) => stored.tags().any(|held| held.strong_eq(&etag)),
        None => date::parse(value, now).is_some_and(|asked| stored.strong_last_modified() == Some(asked)),
    }
}

/// Whether any tag of the field, or its `*`, matches. A malformed field matches nothing.
fn matches(head: &RequestHead, name: &str, stored: &Stored, same: fn(&Etag, &Etag) -> bool) -> bool {
    let values = head.get_all(name).collect::<Vec<_>>();
    if values == [b"*"] {
        return true;
    }
    let listed = values.into_iter().map(Etag::parse_list).collect::<Option<Vec<_>>>();
    listed.is_some_and(|lists| lists.iter().flatten().any(|etag| stored.tags().any(|held| same(held, etag))))
}

#[cfg(test)]
mod tests {
    use super::super::head::{HeadLimits, Parsed, parse};
    use super::*;
    use Outcome::{NotModified, PreconditionFailed, Proceed};

    const NOW: i64 = 1_800_000_000;
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn request(method: &str, lines: &str) -> RequestHead {
        let text = format!("{method} / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n");
        match parse(text.as_bytes(), &HeadLimits::default()) {
            Ok(Parsed::Complete { head, .. }) => head,
            other => panic!("{other:?}"),
        }
    }

    fn stored(etag: &str) -> Stored {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        Stored::of(&[header("etag", etag), header("last-modified", MODIFIED), header("date", AFTER)], NOW)
    }

    #[test]
    fn each_condition_is_weighed_by_its_own_comparison() {
        for (lines, strong, weak) in [
            ("If-None-Match: \"a\"", NotModified, NotModified),
            ("If-None-Match: W/\"a\"", NotModified, NotModified),
            ("If-None-Match: \"b\"\r\nIf-None-Match: \"c\", \"a\"", NotModified, NotModified),
            ("If-None-Match: *", NotModified, NotModified),
            ("If-None-Match: \"b\"", Proceed, Proceed),
            ("If-None-Match: a", Proceed, Proceed),
            ("If-Match: \"a\"", Proceed, PreconditionFailed),
            ("If-Match: W/\"a\"", PreconditionFailed, PreconditionFailed),
            ("If-Match: *", Proceed, Proceed),
            ("If-Match: \"b\"", PreconditionFailed, PreconditionFailed),
        ] {
            assert_eq!(evaluate(&request("GET", lines), &stored("\"a\""), NOW), strong, "{lines}");
            assert_eq!(evaluate(&request("HEAD", lines), &stored("W/\"a\""), NOW), weak, "weak, {lines}");
        }
        assert_eq!(evaluate(&request("POST", "If-None-Match: \"a\""), &stored("\"a\""), NOW), PreconditionFailed);
    }

    #[test]
    fn either_tag_of_the_same_bytes_is_as_good_as_the_other() {
        let both = Stored { alternate: Etag::parse(b"\"b\""), ..stored("\"a\"") };
        for tag in ["\"a\"", "\"b\""] {
            assert!(
                range_applies(&request("GET", &format!("Range: bytes=1-\r\nIf-Range: {tag}")), &both, NOW),
                "{tag}"
            );
            assert_eq!(evaluate(&request("GET", &format!("If-None-Match: {tag}")), &both, NOW), NotModified);
            assert_eq!(evaluate(&request("GET", &format!("If-Match: {tag}")), &both, NOW), Proceed);
        }
        assert!(!range_applies(&request("GET", "Range: bytes=1-\r\nIf-Range: \"c\""), &both, NOW));
    }

    #[test]
    fn dates_count_only_where_no_tag_is_given() {
        for (lines, outcome) in [
            (format!("If-Modified-Since: {MODIFIED}"), NotModified),
            (format!("If-Modified-Since: {BEFORE}"), Proceed),
            (format!("If-Modified-Since: {AFTER}\r\nIf-None-Match: \"b\""), Proceed),
            (format!("If-Unmodified-Since: {MODIFIED}"), Proceed),
            (format!("If-Unmodified-Since: {BEFORE}"), PreconditionFailed),
            (format!("If-Unmodified-Since: {BEFORE}\r\nIf-Match: \"a\""), Proceed),
            ("If-Modified-Since: yesterday".to_owned(), Proceed),
            ("If-Unmodified-Since: yesterday".to_owned(), Proceed),
        ] {
            assert_eq!(evaluate(&request("GET", &lines), &stored("\"a\""), NOW), outcome, "{lines}");
        }
        let dateless = Stored { last_modified: None, ..stored("\"a\"") };
        assert_eq!(evaluate(&request("GET", &format!("If-Unmodified-Since: {BEFORE}")), &dateless, NOW), Proceed);
    }

    #[test]
    fn a_range_applies_only_to_the_very_version_that_the_client_has() {
        for (lines, applies) in [
            (String::new(), true),
            ("If-Range: \"a\"".to_owned(), true),
            ("If-Range: W/\"a\"".to_owned(), false),
            ("If-Range: \"b\"".to_owned(), false),
            (format!("If-Range: {MODIFIED}"), true),
            (format!("If-Range: {AFTER}"), false),
            ("If-Range: nonsense".to_owned(), false),
        ] {
            let lines = format!("Range: bytes=1-\r\n{lines}");
            assert_eq!(range_applies(&request("GET", lines.trim_end()), &stored("\"a\""), NOW), applies, "{lines}");
        }
        assert!(!range_applies(&request("HEAD", "Range: bytes=1-"), &stored("\"a\""), NOW));
        let lines = format!("Range: bytes=1-\r\nIf-Range: {MODIFIED}");
        let same_second = Stored { date: stored("").last_modified, ..stored("") };
        assert!(!range_applies(&request("GET", &lines), &same_second, NOW));
        assert!(!range_applies(&request("GET", "If-Range: \"a\""), &stored("W/\"a\""), NOW));
    }
}
