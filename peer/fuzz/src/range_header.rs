//! Range fields, against a reading of RFC 9110 section 14 that marks single bytes; Content-Range; multipart replies.

use std::ops::Range;

use pondhawk::http::multipart::Multipart;
use pondhawk::http::range::{COALESCED_GAP, MAX_RANGES, parse_range};
use pondhawk::http::{ContentRange, RangeSpec, Segment};

/// Representations of up to this many bytes.
const MAX_LEN: u64 = 1 << 12;

/// Runs the target: two bytes of length, then the field's value.
pub fn run(bytes: &[u8]) {
    let Some((len, value)) = bytes.split_first_chunk::<2>() else { return };
    let len = u64::from(u16::from_be_bytes(*len)) % MAX_LEN;
    check_content_range(value);
    match (parse_range(value, len), naive(value, len)) {
        (RangeSpec::Satisfiable(ranges), Some(asked)) => check_ranges(&ranges, &asked, len),
        (RangeSpec::Unsatisfiable, Some(asked)) => assert!(len > 0 && !asked.contains(&true)),
        (RangeSpec::Ignored(_), Some(_)) => assert!(len == 0, "a well-formed field is ignored"),
        (RangeSpec::Ignored(_), None) => {}
        (other, None) => panic!("a malformed field is {other:?}"),
    }
    // Lengths near the end of the number space.
    if let RangeSpec::Satisfiable(ranges) = parse_range(value, u64::MAX - len) {
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= u64::MAX - len));
    }
}

/// Which bytes of `len` a field asks for; `None` if it is malformed, of another unit, or of too many ranges.
fn naive(value: &[u8], len: u64) -> Option<Vec<bool>> {
    let text = std::str::from_utf8(value).ok()?;
    let (unit, specs) = text.split_once('=')?;
    let trimmed = specs.split(',').map(|spec| spec.trim_matches(|c: char| c.is_ascii_whitespace()));
    let specs: Vec<&str> = trimmed.filter(|spec| !spec.is_empty()).collect();
    if !unit.eq_ignore_ascii_case("bytes") || specs.is_empty() || specs.len() > MAX_RANGES {
        return None;
    }
    let mut asked = vec![false; usize::try_from(len).ok()?];
    for spec in specs {
        let (first, last) = spec.split_once('-')?;
        let range = match (number(first)?, number(last)?) {
            (None, None) => return None,
            (None, Some(count)) => u128::from(len).saturating_sub(count)..u128::from(len),
            (Some(first), None) => first..u128::from(len),
            (Some(first), Some(last)) if first > last => return None,
            (Some(first), Some(last)) => first..last.saturating_add(1),
        };
        let wanted = asked.iter_mut().zip(0_u128..).filter(|(_, at)| range.contains(at));
        wanted.for_each(|(byte, _)| *byte = true);
    }
    Some(asked)
}

/// Nothing, or digits, where more of them than a u128 holds are its greatest value. Outer `None`: neither.
#[expect(clippy::option_option, reason = "a malformed number differs from one that is left out")]
fn number(digits: &str) -> Option<Option<u128>> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // The node's numbers end at u64::MAX, past every representation's end.
    let value = || digits.parse().unwrap_or(u128::MAX).min(u64::MAX.into());
    Some((!digits.is_empty()).then(value))
}

fn check_ranges(ranges: &[Range<u64>], asked: &[bool], len: u64) {
    let mut sent = vec![false; asked.len()];
    for range in ranges {
        assert!(range.start < range.end && range.end <= len, "{ranges:?} of {len}");
        for at in range.clone() {
            let byte = &mut sent[usize::try_from(at).expect("within the representation")];
            assert!(!*byte, "{ranges:?} overlap");
            *byte = true;
        }
        // A range begins and ends with a byte that was asked for, and joins no wider gap than the bound.
        let within = &asked[usize::try_from(range.start).unwrap_or(0)..usize::try_from(range.end).unwrap_or(0)];
        assert!(within.first() == Some(&true) && within.last() == Some(&true));
        let gap = within.split(|byte| *byte).map(<[_]>::len).max().unwrap_or(0);
        assert!((gap as u64) < COALESCED_GAP, "a gap of {gap}");
    }
    assert!(asked.iter().zip(&sent).all(|(asked, sent)| *sent || !*asked), "a byte that was asked for is left out");
    check_multipart(ranges, len);
}

fn check_multipart(ranges: &[Range<u64>], len: u64) {
    let multipart = Multipart::new([7; 16], Some(b"text/plain"), ranges.to_vec(), len);
    let mut total = 0;
    let mut bodies = Vec::new();
    for segment in multipart.segments() {
        match segment {
            Segment::Text(text) => total += text.len() as u64,
            Segment::Body(range) => {
                total += range.end - range.start;
                bodies.push(range);
            }
        }
    }
    assert_eq!((total, &bodies[..]), (multipart.content_length(), ranges));
}

fn check_content_range(value: &[u8]) {
    if let Some(parsed) = ContentRange::parse(value) {
        assert_eq!(ContentRange::parse(parsed.to_string().as_bytes()), Some(parsed));
    }
}
