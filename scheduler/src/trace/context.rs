//! Which span of which trace [pure]: its forms on the wire, and which traces are recorded.

/// A span of a trace that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    /// The trace's name, not all zero.
    pub trace: [u8; 16],
    /// The span's, not all zero.
    pub span: [u8; 8],
}

/// The header in which a client says that its request is part of a trace (W3C Trace Context, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The client's own span.
    pub context: Context,
    /// Whether the client may have recorded it.
    pub sampled: bool,
}

impl Context {
    /// Bytes of [`Self::to_bytes`].
    pub const LEN: usize = 24;

    /// The trace's name, then the span's.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..].copy_from_slice(&self.span);
        bytes
    }

    /// What [`Self::to_bytes`] made; `None` for any other length, and for names that are all zero.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, span) = bytes.split_at_checked(16)?;
        let context = Self { trace: trace.try_into().ok()?, span: span.try_into().ok()? };
        context.is_named().then_some(context)
    }

    fn is_named(&self) -> bool {
        self.trace != [0; 16] && self.span != [0; 8]
    }
}

impl Traceparent {
    /// Reads the header's value. A later version's is read as far as this one goes, as section 3.2.4 wants it.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, more) = value.split_at_checked(55)?;
        let &[v0, v1, b'-', ref rest @ ..] = known else { return None };
        let ([trace @ .., b'-'], rest) = rest.split_at(33) else { return None };
        let ([span @ .., b'-'], flags) = rest.split_at(17) else { return None };
        let [version] = hex::<1>(&[v0, v1])?;
        let fits = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.first().is_none_or(|byte| *byte == b'-'),
        };
        let context = Context { trace: hex(trace)?, span: hex(span)? };
        let [flags] = hex::<1>(flags)?;
        (fits && context.is_named()).then_some(Self { context, sampled: flags & 1 == 1 })
    }
}

/// Nodes send none.
#[cfg(test)]
impl std::fmt::Display for Traceparent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("00-")?;
        self.context.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.context.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

/// Lower-case digits only, as the standard says.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// Names of traces and spans: the `n`th of those that a secret seed leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    seed: [u64; 3],
}

impl Names {
    pub(super) fn new(seed: [u64; 3]) -> Self {
        Self { seed }
    }

    /// No two of the first 2^64 are the same, since [`mix`] is one to one.
    pub(super) fn span(&self, n: u64) -> [u8; 8] {
        named(mix(self.seed[0].wrapping_add(n.wrapping_mul(STEP)))).to_be_bytes()
    }

    pub(super) fn trace(&self, n: u64) -> [u8; 16] {
        let half = |seed: u64| mix(seed.wrapping_add(n.wrapping_mul(STEP)));
        let mut name = [0; 16];
        name[..8].copy_from_slice(&half(self.seed[1]).to_be_bytes());
        name[8..].copy_from_slice(&named(half(self.seed[2])).to_be_bytes());
        name
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): its step and its finalizer.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// All zero means no name.
fn named(bits: u64) -> u64 {
    bits.max(1)
}

/// Which share of traces is recorded, from 0 to 1: by the trace's name alone, so that the decision is the same wherever it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(u64);

impl Share {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 2^56")]
    pub(super) fn new(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * (1_u64 << 56) as f64) as u64)
    }

    /// The last seven bytes are the random ones by the standard's level 2.
    pub(super) fn takes(self, trace: &[u8; 16]) -> bool {
        let tail: [u8; 8] = trace[8..].try_into().expect("half of sixteen");
        u64::from_be_bytes(tail) & ((1 << 56) - 1) < self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::{
        collection::vec,
        prelude::{Just, any, prop_oneof},
        prop_assert_eq, proptest,
    };

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<Traceparent> {
        Traceparent::parse(text.as_bytes())
    }

    #[test]
    fn the_standards_own_example_is_read() {
        let read = parse(EXAMPLE).unwrap();
        assert_eq!((read.context.trace[0], read.context.span[7], read.sampled), (0x4b, 0xb7, true));
        assert_eq!(read.to_string(), EXAMPLE);
        assert!(!parse(&EXAMPLE.replace("-01", "-00")).unwrap().sampled);
        assert!(parse(&EXAMPLE.replace("-01", "-03")).unwrap().sampled, "other flags are not ours to judge");
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in ["01-", "cc-", "fe-"] {
            let text = EXAMPLE.replacen("00-", later, 1);
            assert_eq!(parse(&text), parse(EXAMPLE));
            assert_eq!(parse(&format!("{text}-more")), parse(EXAMPLE));
            assert_eq!(parse(&format!("{text}more")), None);
        }
        assert_eq!(parse(&format!("{EXAMPLE}-more")), None, "this version has no more");
    }

    #[test]
    fn what_is_malformed_is_nobodys_trace() {
        let zero_trace = EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16));
        let upper = EXAMPLE.replace("4bf9", "4BF9");
        let shifted = EXAMPLE.replace("4736-00", "473-600");
        let ended = EXAMPLE.trim_end_matches('1');
        let version = EXAMPLE.replacen("00-", "ff-", 1);
        for bad in ["", "00", ended, &zero_trace, &zero_span, &upper, &shifted, &version] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_nothing_and_of_everything_is_exact() {
        assert!(!Share::new(0.0).takes(&[0; 16]) && Share::new(1.0).takes(&[255; 16]));
        assert_eq!((Share::new(7.0), Share::new(-1.0)), (Share::new(1.0), Share::new(0.0)));
    }

    #[test]
    fn half_of_many_traces_is_about_half() {
        let names = Names::new([1, 2, 3]);
        let taken = (0..10_000).filter(|n| Share::new(0.5).takes(&names.trace(*n))).count();
        assert!((4_700..5_300).contains(&taken), "{taken}");
    }

    #[test]
    fn no_two_names_are_the_same() {
        let names = Names::new([u64::MAX, 0, 5]);
        let spans: HashSet<_> = (0..50_000).map(|n| names.span(n)).collect();
        let traces: HashSet<_> = (0..50_000).map(|n| names.trace(n)).collect();
        assert_eq!((spans.len(), traces.len()), (50_000, 50_000));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled in any::<bool>()) {
            let context = Context { trace, span };
            let header = Traceparent { context, sampled };
            let named = context.is_named();
            prop_assert_eq!(Traceparent::parse(header.to_string().as_bytes()), named.then_some(header));
            prop_assert_eq!(Context::from_bytes(&context.to_bytes()), named.then_some(context));
        }

        #[test]
        fn no_bytes_are_too_strange_to_be_judged(
            bytes in vec(prop_oneof![any::<u8>(), Just(b'-'), Just(b'0'), Just(b'a')], 0..70),
        ) {
            if let Some(read) = Traceparent::parse(&bytes) {
                let written = read.to_string();
                prop_assert_eq!(&written.as_bytes()[3..53], &bytes[3..53]);
            }
            prop_assert_eq!(Context::from_bytes(&bytes).is_some_and(|_| bytes.len() != Context::LEN), false);
        }

        #[test]
        fn a_larger_share_takes_all_that_a_smaller_one_takes(trace in any::<[u8; 16]>(), a in 0.0..=1.0, b in 0.0..=1.0) {
            let (small, large) = if a < b { (a, b) } else { (b, a) };
            assert!(!Share::new(small).takes(&trace) || Share::new(large).takes(&trace));
        }
    }
}
