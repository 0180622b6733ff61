//! Byte ranges [pure] (RFC 9110 §14).

use std::ops::Range;

use super::head::list;

/// A Range field with more ranges than this is ignored and the whole is sent, as the CDN's stores do with any multiple
/// range: the RFC allows it (§14.2), no known client asks for as many, and the work of a reply stays bounded.
pub const MAX_RANGES: usize = 64;
/// Ranges whose gap is smaller than a part's own header lines are sent as one (RFC 9110 §15.3.7.2).
pub const COALESCED_GAP: u64 = 80;

/// What a Range field asks of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// Answer as if there were no Range field.
    Ignored(Ignored),
    /// 416 with `Content-Range: bytes */len`.
    Unsatisfiable,
    /// In the order asked, none empty, none overlapping, all within the representation; at least one. One range goes
    /// out as it is, several as multipart/byteranges; the status is 206.
    Satisfiable(Vec<Range<u64>>),
}

/// Why a Range field has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// A range unit other than bytes.
    NotBytes,
    /// Not in the grammar, or a range that ends before it starts.
    Malformed,
    /// More than [`MAX_RANGES`].
    TooMany,
    /// The representation is empty: no Content-Range can describe a part of it.
    Empty,
}

/// Reads a Range field for a representation of `len` bytes.
///
/// Ranges that overlap, touch, or nearly touch ([`COALESCED_GAP`]) are joined, so the bytes sent never exceed `len`
/// however often the client asks for the same ones.
pub fn parse_range(value: &[u8], len: u64) -> RangeSpec {
    let Some(equals) = value.iter().position(|byte| *byte == b'=') else {
        return RangeSpec::Ignored(Ignored::Malformed);
    };
    if !value[..equals].eq_ignore_ascii_case(b"bytes") {
        return RangeSpec::Ignored(Ignored::NotBytes);
    }
    let specs = &value[equals + 1..];
    if list(specs).take(MAX_RANGES + 1).count() > MAX_RANGES {
        return RangeSpec::Ignored(Ignored::TooMany);
    }
    let Some(parsed) = list(specs).map(Spec::parse).collect::<Option<Vec<_>>>().filter(|specs| !specs.is_empty())
    else {
        return RangeSpec::Ignored(Ignored::Malformed);
    };
    if len == 0 {
        return RangeSpec::Ignored(Ignored::Empty);
    }
    let wanted: Vec<_> = parsed.into_iter().filter_map(|spec| spec.within(len)).collect();
    if wanted.is_empty() {
        return RangeSpec::Unsatisfiable;
    }
    RangeSpec::Satisfiable(coalesce(wanted))
}

enum Spec {
    /// `first-` or `first-last`, inclusive.
    From(u64, Option<u64>),
    /// `-count`.
    Last(u64),
}

impl Spec {
    fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (&text[..dash], &text[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => saturating(last).map(Self::Last),
            (false, true) => Some(Self::From(saturating(first)?, None)),
            (false, false) => {
                let (first, last) = (saturating(first)?, saturating(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(len, |last| last.saturating_add(1).min(len)),
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits as a number; one past `u64` is past every representation's end, which is all that matters.
fn saturating(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// Joins what overlaps or nearly touches; a joined range takes the place of its first asked one.
fn coalesce(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.into_iter().enumerate().collect();
    sorted.sort_by_key(|(_, range)| range.start);
    let mut joined: Vec<(usize, Range<u64>)> = Vec::with_capacity(sorted.len());
    for (asked, range) in sorted {
        match joined.last_mut() {
            Some((first_asked, last)) if range.start < last.end.saturating_add(COALESCED_GAP) => {
                last.end = last.end.max(range.end);
                *first_asked = asked.min(*first_asked);
            }
            _ => joined.push((asked, range)),
        }
    }
    joined.sort_by_key(|(asked, _)| *asked);
    joined.into_iter().map(|(_, range)| range).collect()
}

/// A Content-Range field in bytes (RFC 9110 §14.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// Which bytes the body holds, never empty; `None` in a 416.
    pub range: Option<Range<u64>>,
    /// The whole representation's length, when the sender knows it.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads what an origin sent. `None` for another unit, other text, an empty range, or one past the total.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        let (unit, rest) = text.split_once(' ')?;
        let (range, total) = rest.trim_start().split_once('/')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        if range == "*" {
            return total.map(|_| Self { range: None, total });
        }
        let (first, last) = range.split_once('-')?;
        let range = number(first)?..number(last)?.checked_add(1)?;
        let fits = total.is_none_or(|total| range.end <= total);
        (fits && !range.is_empty()).then_some(Self { range: Some(range), total })
    }
}

impl std::fmt::Display for ContentRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.range {
            Some(range) => write!(f, "bytes {}-{}/", range.start, range.end.saturating_sub(1))?,
            None => f.write_str("bytes */")?,
        }
        match self.total {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

fn number(digits: &str) -> Option<u64> {
    super::head::decimal(digits.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn satisfied(value: &str, len: u64) -> Option<Vec<Range<u64>>> {
        match parse_range(value.as_bytes(), len) {
            RangeSpec::Satisfiable(ranges) => Some(ranges),
            _ => None,
        }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a vector of one range is what is meant")]
    fn the_forms_of_the_rfc_are_read() {
        assert_eq!(satisfied("bytes=0-0", 10_000), Some(vec![0..1]));
        assert_eq!(satisfied("bytes=0-499", 10_000), Some(vec![0..500]));
        assert_eq!(satisfied("Bytes=9500-", 10_000), Some(vec![9500..10_000]));
        assert_eq!(satisfied("bytes=-500", 10_000), Some(vec![9500..10_000]));
        assert_eq!(satisfied("bytes=-50000", 10_000), Some(vec![0..10_000]));
        assert_eq!(satisfied("bytes=0-99999999999999999999999", 10_000), Some(vec![0..10_000]));
        assert_eq!(satisfied("bytes= 0-0, , 500-999 ,-1", 10_000), Some(vec![0..1, 500..1000, 9999..10_000]));
        assert_eq!(satisfied("bytes=500-999,0-0,20000-", 10_000), Some(vec![500..1000, 0..1]));
    }

    #[test]
    fn what_no_byte_satisfies_is_416_and_what_makes_no_sense_is_ignored() {
        for value in ["bytes=10000-", "bytes=-0", "bytes=10000-10001,-0", "bytes=99999999999999999999999-"] {
            assert_eq!(parse_range(value.as_bytes(), 10_000), RangeSpec::Unsatisfiable, "{value}");
        }
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=2-1",
            "bytes=a-b",
            "bytes=0-1;2-3",
            "bytes=0-1,x",
            "bytes=1 - 2",
            "bytes=+1-2",
        ] {
            assert_eq!(parse_range(value.as_bytes(), 10_000), RangeSpec::Ignored(Ignored::Malformed), "{value}");
        }
        assert_eq!(parse_range(b"items=0-1", 10), RangeSpec::Ignored(Ignored::NotBytes));
        assert_eq!(parse_range(b"bytes=0-", 0), RangeSpec::Ignored(Ignored::Empty));
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a vector of one range is what is meant")]
    fn the_same_bytes_asked_for_often_are_sent_once() {
        assert_eq!(satisfied(&format!("bytes={}0-", "0-,".repeat(63)), 1000), Some(vec![0..1000]));
        assert_eq!(satisfied("bytes=0-9,10-19,15-30", 10_000), Some(vec![0..31]));
        assert_eq!(satisfied("bytes=5000-5009,0-9,5050-5060", 10_000), Some(vec![5000..5061, 0..10]));
        let many = format!("bytes=0-0{}", ",1-1".repeat(MAX_RANGES));
        assert_eq!(parse_range(many.as_bytes(), 1000), RangeSpec::Ignored(Ignored::TooMany));
    }

    #[test]
    fn a_content_range_must_hold_bytes_within_its_total() {
        let parse = |text: &str| ContentRange::parse(text.as_bytes());
        assert_eq!(parse("bytes 0-0/1"), Some(ContentRange { range: Some(0..1), total: Some(1) }));
        assert_eq!(parse("bytes 4-9/*"), Some(ContentRange { range: Some(4..10), total: None }));
        assert_eq!(parse("bytes */10"), Some(ContentRange { range: None, total: Some(10) }));
        for bad in [
            "",
            "bytes",
            "bytes */*",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-1/",
            "items 0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes=0-1/2",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..80), len: u64) {
            let _ = parse_range(&value, len);
            let _ = ContentRange::parse(&value);
        }

        #[test]
        fn what_is_satisfied_covers_what_was_asked_once(
            asked in proptest::collection::vec((0u64..2000, 0u64..300), 1..30),
            len in 1u64..2000,
        ) {
            let text: Vec<_> = asked.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect();
            let held = satisfied(&format!("bytes={}", text.join(",")), len).unwrap_or_default();
            for (first, more) in asked {
                for byte in [first, first + more].into_iter().filter(|byte| *byte < len) {
                    prop_assert_eq!(held.iter().filter(|range| range.contains(&byte)).count(), 1);
                }
            }
            prop_assert!(held.iter().all(|range| !range.is_empty() && range.end <= len));
            prop_assert!(held.iter().map(|range| range.end - range.start).sum::<u64>() <= len);
        }

        #[test]
        fn a_formatted_content_range_reads_back_as_itself(
            start in 0u64..u64::MAX / 4,
            len in 1u64..u64::MAX / 4,
            more in proptest::option::of(0u64..u64::MAX / 4),
        ) {
            let it = ContentRange { range: Some(start..start + len), total: more.map(|more| start + len + more) };
            prop_assert_eq!(ContentRange::parse(it.to_string().as_bytes()), Some(it));
        }
    }
}
