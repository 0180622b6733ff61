//! Entity tags [pure] (RFC 9110 §8.8.3).

use std::fmt;

/// The validator of one representation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Etag {
    weak: bool,
    opaque: Vec<u8>,
}

impl Etag {
    /// Reads one field value: `"x"` or `W/"x"`. Unquoted text, which some servers send, is no entity tag: `None`.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (etag, rest) = Self::take(value.trim_ascii())?;
        rest.is_empty().then_some(etag)
    }

    /// Reads a list of tags, as If-Match and If-None-Match hold. `None` when any of it is malformed.
    pub fn parse_list(value: &[u8]) -> Option<Vec<Self>> {
        let mut etags = Vec::new();
        let mut rest = value.trim_ascii();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(b",") {
                rest = after.trim_ascii_start();
                continue;
            }
            let (etag, after) = Self::take(rest)?;
            etags.push(etag);
            rest = after.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return None;
            }
        }
        Some(etags)
    }

    fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (weak, bytes) = bytes.strip_prefix(b"W/").map_or((false, bytes), |rest| (true, rest));
        let bytes = bytes.strip_prefix(b"\"")?;
        let end = bytes.iter().position(|byte| *byte == b'"')?;
        let allowed = |byte: &u8| matches!(byte, b'!' | b'#'..=b'~' | 0x80..);
        // A space is outside the grammar but seen; it changes nothing for a comparison of bytes.
        let opaque = &bytes[..end];
        opaque
            .iter()
            .all(|byte| allowed(byte) || *byte == b' ')
            .then(|| (Self { weak, opaque: opaque.to_vec() }, &bytes[end + 1..]))
    }

    /// Whether the tag promises that not one byte differs.
    pub fn is_strong(&self) -> bool {
        !self.weak
    }

    /// What stands between the quotes.
    pub fn opaque(&self) -> &[u8] {
        &self.opaque
    }

    /// Strong comparison: both strong and equal.
    pub fn strong_eq(&self, other: &Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// Weak comparison: equal but for the weakness.
    pub fn weak_eq(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }

    /// The field value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let prefix: &[u8] = if self.weak { b"W/\"" } else { b"\"" };
        [prefix, &self.opaque, b"\""].concat()
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tag_is_quoted_and_may_be_weak() {
        let parse = |text: &str| Etag::parse(text.as_bytes());
        assert!(parse("\"a,b\"").unwrap().is_strong());
        assert!(!parse("W/\"a\"").unwrap().is_strong());
        for bad in ["", "a", "\"a", "a\"", "w/\"a\"", "\"a\"b", "\"a\nb\"", "W/", "*"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_comma_inside_a_tag_does_not_end_it() {
        let list = Etag::parse_list(b" W/\"a,b\" ,, \"c\"").unwrap();
        assert_eq!(list, [Etag::parse(b"W/\"a,b\"").unwrap(), Etag::parse(b"\"c\"").unwrap()]);
        assert_eq!(Etag::parse_list(b"\"a\" \"b\""), None);
        assert_eq!(Etag::parse_list(b"\"a\", b"), None);
    }

    #[test]
    fn a_weak_tag_never_compares_strongly() {
        let [weak, strong] = [b"W/\"a\"".as_slice(), b"\"a\""].map(|text| Etag::parse(text).unwrap());
        assert!(weak.weak_eq(&strong) && weak.weak_eq(&weak));
        assert!(!weak.strong_eq(&strong) && !weak.strong_eq(&weak));
        assert!(strong.strong_eq(&strong));
    }

    proptest! {
        #[test]
        fn a_formatted_tag_reads_back_as_itself(weak: bool, opaque in "[!#-~]{0,20}") {
            let etag = Etag { weak, opaque: opaque.into_bytes() };
            prop_assert_eq!(Etag::parse(&etag.to_bytes()), Some(etag));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let _ = Etag::parse_list(&bytes);
            if let Some(etag) = Etag::parse(&bytes) {
                prop_assert_eq!(etag.to_bytes(), bytes.trim_ascii());
            }
        }
    }
}
