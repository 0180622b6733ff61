//! Names that others choose, and how URLs spell them [pure].

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Bytes of one component at most: what file systems take (NAME_MAX).
const COMPONENT_LEN: usize = 255;
/// Bytes of a whole path at most (PATH_MAX).
const PATH_LEN: usize = 4096;

/// Whether a path stays below the folder that it is put in: relative, without empty components and `..`, and of a length that Linux
/// takes. A backslash or a control character is part of a name there like any other character; what is shown to a person goes
/// through [`printable`](crate::cli::human::printable).
pub(crate) fn is_safe(path: &str) -> bool {
    let good = |component: &str| !matches!(component, "" | "." | "..") && component.len() <= COMPONENT_LEN;
    path.len() <= PATH_LEN && path.split('/').all(good) && !path.contains('\0')
}

/// Whether a text is safe as one component.
pub(crate) fn is_component(text: &str) -> bool {
    is_safe(text) && !text.contains('/') && !text.contains(char::is_control)
}

/// The last component.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// RFC 3986's unreserved characters stay as they are.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const OF_PATHS: &AsciiSet = &RESERVED.remove(b'/');

/// A path in a URL: all but unreserved characters and slashes is escaped.
pub(crate) fn encode(path: &str) -> String {
    utf8_percent_encode(path, OF_PATHS).to_string()
}

/// As [`encode`], slashes too.
pub(crate) fn encode_all(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Undoes percent-encoding; a broken escape stays as it is, what is not UTF-8 becomes U+FFFD.
pub(crate) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        let bad = ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b"];
        bad.iter().for_each(|name| assert!(!is_safe(name), "{name:?}"));
        let good = ["..\\x", "back\\slash.txt", "a\nb", "a", "a b/c.bin", ".gitattributes", "a/..b/c..", "ü/日本"];
        good.iter().for_each(|name| assert!(is_safe(name), "{name:?}"));
        assert!(!is_safe(&"a".repeat(256)) && !is_safe(&"a/".repeat(3000)));
    }

    proptest! {
        #[test]
        fn encoding_and_decoding_are_inverse(text in ".{0,40}") {
            prop_assert_eq!(&decode(&encode(&text)), &text);
            prop_assert_eq!(&decode(&encode_all(&text)), &text);
        }
    }
}
