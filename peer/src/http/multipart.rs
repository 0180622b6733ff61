//! multipart/byteranges replies [pure] (RFC 9110 §14.6): every length is known before the first byte goes out.

use std::{fmt::Write, ops::Range};

use super::range::ContentRange;

/// A 206 reply of several ranges.
#[derive(Clone, Debug)]
pub struct Multipart {
    boundary: String,
    content_type: Option<Vec<u8>>,
    ranges: Vec<Range<u64>>,
    total: u64,
}

/// What goes out next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Text(Vec<u8>),
    /// These bytes of the task.
    Body(Range<u64>),
}

impl Multipart {
    /// A reply of these ranges of a representation of `total` bytes. `random` must be unpredictable: nobody may craft
    /// an object that holds the boundary. A Content-Type that could break a header line is left out.
    pub fn new(random: [u8; 16], content_type: Option<&[u8]>, ranges: Vec<Range<u64>>, total: u64) -> Self {
        let boundary = format!("pondhawk{:032x}", u128::from_be_bytes(random));
        let content_type = content_type.filter(|value| super::response::is_field_value(value)).map(<[u8]>::to_vec);
        Self { boundary, content_type, ranges, total }
    }

    /// The reply's Content-Type.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The reply's Content-Length.
    pub fn content_length(&self) -> u64 {
        let sizes = self.segments().map(|segment| match segment {
            Segment::Text(text) => text.len() as u64,
            Segment::Body(range) => range.end - range.start,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// All that goes out, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        let parts =
            self.ranges.iter().flat_map(|range| [Segment::Text(self.part_head(range)), Segment::Body(range.clone())]);
        parts.chain(std::iter::once_with(|| Segment::Text(format!("\r\n--{}--\r\n", self.boundary).into_bytes())))
    }

    fn part_head(&self, range: &Range<u64>) -> Vec<u8> {
        let content_range = ContentRange { range: Some(range.clone()), total: Some(self.total) };
        let mut text = String::with_capacity(160);
        // Writing to a String never fails.
        let _ = write!(text, "\r\n--{}\r\nContent-Range: {content_range}\r\n", self.boundary);
        let mut head = text.into_bytes();
        if let Some(content_type) = &self.content_type {
            head.extend_from_slice(b"Content-Type: ");
            head.extend_from_slice(content_type);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(multipart: &Multipart, object: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in multipart.segments() {
            match segment {
                Segment::Text(text) => out.extend(text),
                Segment::Body(range) => out.extend(&object[range.start as usize..range.end as usize]),
            }
        }
        out
    }

    #[test]
    fn parts_are_set_apart_as_the_rfc_shows() {
        let multipart = Multipart::new([0; 16], Some(b"text/plain"), vec![0..2, 5..9], 10);
        let b = "pondhawk00000000000000000000000000000000";
        let part = |range: &str, body: &str| {
            format!("\r\n--{b}\r\nContent-Range: bytes {range}/10\r\nContent-Type: text/plain\r\n\r\n{body}")
        };
        let expected = format!("{}{}\r\n--{b}--\r\n", part("0-1", "01"), part("5-8", "5678"));
        assert_eq!(String::from_utf8(written(&multipart, b"0123456789")).unwrap(), expected);
        assert_eq!(multipart.content_type(), format!("multipart/byteranges; boundary={b}"));
    }

    #[test]
    fn a_content_type_cannot_smuggle_a_line_into_a_part() {
        let multipart = Multipart::new([7; 16], Some(b"a\r\nX: y"), vec![0..1, 2..3], 4);
        assert!(!String::from_utf8(written(&multipart, b"0123")).unwrap().contains("Content-Type"));
    }

    proptest! {
        #[test]
        fn the_length_told_is_the_length_sent(
            ranges in proptest::collection::vec((0u64..500, 1u64..500), 1..9),
            random: [u8; 16],
            typed: bool,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let multipart = Multipart::new(random, typed.then_some(b"a/b"), ranges, 1000);
            prop_assert_eq!(written(&multipart, &[b'x'; 1000]).len() as u64, multipart.content_length());
        }
    }
}
