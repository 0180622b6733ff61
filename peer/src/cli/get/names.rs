//! Names that others choose, and how URLs spell them [pure].

/// Bytes of one component at most: what file systems take (NAME_MAX).
const COMPONENT_LEN: usize = 255;
/// Bytes of a whole path at most (PATH_MAX).
const PATH_LEN: usize = 4096;

/// Whether a path stays below the folder that it is put in, whoever chose it: relative, no `..`, nothing that a terminal or
/// a file system takes for something else.
pub(crate) fn is_safe(path: &str) -> bool {
    let good = |component: &str| !matches!(component, "" | "." | "..") && component.len() <= COMPONENT_LEN;
    path.len() <= PATH_LEN && path.split('/').all(good) && !path.contains(char::is_control) && !path.contains('\\')
}

/// The last component.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A path in a URL: all but RFC 3986's unreserved characters and slashes is escaped.
pub(crate) fn encode(path: &str) -> String {
    escape(path, b"-._~/")
}

/// As [`encode`], slashes too.
pub(crate) fn encode_all(text: &str) -> String {
    escape(text, b"-._~")
}

/// Undoes percent-encoding; a broken escape stays as it is, what is not UTF-8 becomes U+FFFD.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (out.push(byte), at += 3).0,
            None => (out.push(bytes[at]), at += 1).0,
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn escape(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        let bad = ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", "a\u{1b}[2J", "..\\x"];
        bad.iter().for_each(|name| assert!(!is_safe(name), "{name:?}"));
        let good = ["a", "a b/c.bin", ".gitattributes", "a/..b/c..", "ü/日本"];
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
