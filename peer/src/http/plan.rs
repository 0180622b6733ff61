//! From a request and what is stored to what is sent [pure]: preconditions first, then the range (RFC 9110 §13.2.2).

use std::ops::Range;

use super::{
    condition::{Outcome, Stored, evaluate, range_applies},
    head::RequestHead,
    range::{RangeSpec, parse_range},
};

/// What a GET or HEAD for a stored task is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// 200 and everything.
    Whole,
    /// 206 and this range.
    Part(Range<u64>),
    /// 206, multipart: at least two ranges.
    Parts(Vec<Range<u64>>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Plans the answer from a representation of `len` bytes. `now`: Unix seconds. Several Range lines are taken as none:
/// two readers could choose different ones.
pub fn plan(head: &RequestHead, stored: &Stored, len: u64, now: i64) -> Plan {
    match evaluate(head, stored, now) {
        Outcome::NotModified => return Plan::NotModified,
        Outcome::PreconditionFailed => return Plan::PreconditionFailed,
        Outcome::Proceed => {}
    }
    let mut lines = head.get_all("range");
    let (Some(range), None) = (lines.next(), lines.next()) else { return Plan::Whole };
    if !range_applies(head, stored, now) {
        return Plan::Whole;
    }
    match parse_range(range, len) {
        RangeSpec::Ignored(_) => Plan::Whole,
        RangeSpec::Unsatisfiable => Plan::Unsatisfiable,
        RangeSpec::Satisfiable(mut ranges) if ranges.len() == 1 => Plan::Part(ranges.remove(0)),
        RangeSpec::Satisfiable(ranges) => Plan::Parts(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Etag, HeadLimits, Parsed, head::parse};
    use super::*;

    fn planned(method: &str, lines: &str, len: u64) -> Plan {
        let text = format!("{method} / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let Ok(Parsed::Complete { head, .. }) = parse(text.as_bytes(), &HeadLimits::default()) else {
            panic!("{text}")
        };
        plan(&head, &Stored { etag: Etag::parse(b"\"a\""), ..Stored::default() }, len, 1_800_000_000)
    }

    #[test]
    fn a_precondition_outranks_a_range() {
        assert_eq!(planned("GET", "Range: bytes=99-\r\nIf-None-Match: \"a\"\r\n", 10), Plan::NotModified);
        assert_eq!(planned("GET", "Range: bytes=1-\r\nIf-Match: \"b\"\r\n", 10), Plan::PreconditionFailed);
        assert_eq!(planned("GET", "Range: bytes=99-\r\nIf-Range: \"b\"\r\n", 10), Plan::Whole);
        assert_eq!(planned("GET", "Range: bytes=99-\r\nIf-Range: \"a\"\r\n", 10), Plan::Unsatisfiable);
    }

    #[test]
    fn the_ranges_of_resuming_and_of_parallel_clients_are_served() {
        assert_eq!(planned("GET", "", 10), Plan::Whole);
        assert_eq!(planned("GET", "Range: bytes=4-\r\n", 10), Plan::Part(4..10));
        assert_eq!(planned("GET", "Range: bytes=10-\r\n", 10), Plan::Unsatisfiable);
        assert_eq!(planned("GET", "Range: bytes=0-0,500-\r\n", 1000), Plan::Parts(vec![0..1, 500..1000]));
        assert_eq!(planned("GET", "Range: bytes=0-0,1-1\r\n", 10), Plan::Part(0..2));
        assert_eq!(planned("GET", "Range: bytes=0-0\r\nRange: bytes=1-1\r\n", 10), Plan::Whole);
        assert_eq!(planned("HEAD", "Range: bytes=0-0\r\n", 10), Plan::Whole);
        let Ok(Parsed::Complete { head, .. }) =
            parse(include_bytes!("captures/aria2_range.head"), &HeadLimits::default())
        else {
            panic!("aria2's head")
        };
        assert_eq!(plan(&head, &Stored::default(), 8 << 20, 0), Plan::Part(4_194_304..5_242_880));
    }
}
