//! A Rust file seen three ways: as written, as code alone, and as code without its tests.
//!
//! Comments and the insides of strings are blanked rather than cut, so that an offset means the same place in every view.

use std::ops::Range;

/// One Rust file.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    /// Without comments and the contents of strings and character literals.
    pub(super) code: String,
    /// Only the comments.
    pub(super) comments: String,
    /// `code` without items under `#[cfg(test)]`.
    pub(super) production: String,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let spans = spans(text.as_bytes());
        let code = blank(text, spans.iter().map(|span| span.range.clone()));
        let comments = keep(text, spans.iter().filter(|span| span.is_comment).map(|span| span.range.clone()));
        let production = blank(&code, test_items(&code).into_iter());
        Self { path, text, code, comments, production }
    }

    /// The line of an offset, counted from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Offsets at which `word` stands alone, not inside a longer identifier.
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let starts = at == 0 || !is_identifier(bytes[at - 1]);
        let ends = bytes.get(at + word.len()).is_none_or(|byte| !is_identifier(*byte));
        starts && ends
    })
}

/// The offset just behind the brace that closes the one at `open`; the end of the file when none does.
pub(super) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

pub(super) fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// A stretch of the file that is no code.
struct Span {
    range: Range<usize>,
    is_comment: bool,
}

fn spans(bytes: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match span_at(bytes, at) {
            Some((range, is_comment)) => {
                at = range.end.max(at + 1);
                spans.push(Span { range, is_comment });
            }
            None => at += 1,
        }
    }
    spans
}

/// The comment or literal that starts at `at`; a literal's range leaves out its quotes.
fn span_at(bytes: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => Some((at..at + line_length(rest), true)),
        [b'/', b'*', ..] => Some((at..at + block_comment_length(rest), true)),
        [b'"', ..] => Some((at..at + string_length(rest), false)),
        [b'r', b'"' | b'#', ..] if at == 0 || !continues_identifier(bytes, at) => {
            raw_string_length(rest).map(|length| (at..at + length, false))
        }
        [b'\'', ..] => char_length(rest).map(|length| (at..at + length, false)),
        _ => None,
    }
}

/// Whether the `r` at `at` belongs to an identifier rather than to a raw string; `br` and `cr` are prefixes too.
fn continues_identifier(bytes: &[u8], at: usize) -> bool {
    match bytes[at - 1] {
        b'b' | b'c' => at >= 2 && is_identifier(bytes[at - 2]),
        before => is_identifier(before),
    }
}

fn line_length(rest: &[u8]) -> usize {
    rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    let length = rest[body..].windows(end.len()).position(|window| window == end);
    Some(length.map_or(rest.len(), |length| body + length + end.len()))
}

/// The length of a character literal; `None` for a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let end = rest[3.min(rest.len())..].iter().position(|byte| *byte == b'\'')?;
        return Some(3 + end + 1);
    }
    let width = match rest.get(1)? {
        0x00..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// The items that only tests compile.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        for (start, _) in code.match_indices(marker) {
            let rest = &code[start..];
            let body = rest.find(['{', ';']).map(|offset| start + offset);
            let end = match body {
                Some(at) if code.as_bytes()[at] == b'{' => closing(code, at),
                Some(at) => at + 1,
                None => code.len(),
            };
            items.push(start..end);
        }
    }
    items
}

fn blank(text: &str, ranges: impl Iterator<Item = Range<usize>>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for range in ranges {
        for byte in &mut bytes[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(bytes).expect("whole characters are blanked")
}

fn keep(text: &str, ranges: impl Iterator<Item = Range<usize>>) -> String {
    let mut bytes: Vec<u8> = text.bytes().map(|byte| if byte == b'\n' { b'\n' } else { b' ' }).collect();
    for range in ranges {
        bytes[range.clone()].copy_from_slice(&text.as_bytes()[range]);
    }
    String::from_utf8(bytes).expect("whole comments are kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("sample.rs", text).code
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let text =
            "a /* x /* y */ z */ b // tail\nlet s = \"q\\\"w\"; let r = r#\"e\"r\"#; let c = '\\''; let d = 'é'; d";
        let code = code(text);
        assert_eq!(code.len(), text.len());
        for blanked in ["x", "z", "tail", "q", "w", "\"e", "é"] {
            assert!(!code.contains(blanked), "{blanked} in {code}");
        }
        assert!(code.contains('b') && code.ends_with("; d"), "{code}");
    }

    #[test]
    fn a_lifetime_opens_no_literal() {
        assert_eq!(code("fn f<'a>(x: &'a str) -> &'a str { x }"), "fn f<'a>(x: &'a str) -> &'a str { x }");
    }

    #[test]
    fn a_raw_identifier_is_no_raw_string() {
        assert_eq!(code("let r#type = 1; tokio"), "let r#type = 1; tokio");
    }

    #[test]
    fn an_escaped_unicode_character_is_blanked_to_its_end() {
        assert_eq!(code("x('\\u{7f}') + y").trim_end(), "x(        ) + y");
    }

    #[test]
    fn items_for_tests_are_not_production_code() {
        let source = Source::new("s.rs", "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}\n");
        assert!(source.production.contains("fn a") && source.production.contains("fn c"));
        assert!(!source.production.contains("fn b"));
        let declared = Source::new("s.rs", "#[cfg(test)]\nmod tests;\nfn c() {}\n");
        assert!(!declared.production.contains("mod tests") && declared.production.contains("fn c"));
    }

    #[test]
    fn words_are_not_found_inside_identifiers() {
        assert_eq!(words("unsafe_code unsafe my_unsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }
}
