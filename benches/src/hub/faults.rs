//! What the hub does wrong on purpose, to which requests and how often.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// One kind of misbehaviour. Offsets named `after` count bytes of the response's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// 503 instead of the object.
    Status503 {
        /// Seconds in Retry-After; none: no such header.
        retry_after: Option<u64>,
    },
    /// The connection ends with FIN after this many bytes; only responses longer than that are hit.
    Cut {
        /// Bytes of the body that are sent.
        after: u64,
    },
    /// The connection ends with RST after this many bytes (the last of them may be lost on the way).
    Reset {
        /// Bytes of the body that are sent.
        after: u64,
    },
    /// Nothing is sent for a while after this many bytes, then the rest.
    Stall {
        /// Bytes of the body before the pause.
        after: u64,
        /// Length of the pause in milliseconds.
        millis: u64,
    },
    /// The byte at this offset of the object is inverted; only responses that hold it are hit.
    CorruptByte {
        /// Offset in the object.
        offset: u64,
    },
    /// Chunked, without Content-Length, ETag kept, ranges ignored.
    NoLength,
    /// 200 with the whole object whatever Range says.
    IgnoreRange,
    /// 403 as for a bad signature.
    Forbidden,
    /// This response is the old object; from then on the object has other bytes and another ETag.
    ChangeEtag,
    /// 200 with Content-Encoding: gzip (stored blocks) whatever Accept-Encoding says.
    Gzip,
    /// One more redirect before the object.
    Redirect,
    /// The answer begins only after this time. For [`Place::Api`].
    Delay {
        /// In milliseconds.
        millis: u64,
    },
}

impl FaultKind {
    /// Whether bytes of the object arrive wrong.
    pub fn corrupts(&self) -> bool {
        matches!(self, Self::CorruptByte { .. } | Self::ChangeEtag)
    }
}

/// Which endpoint a fault is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Where the object's bytes come from: the CDN, or the Hub for small files. GET only.
    #[default]
    Bytes,
    /// `/{repo}/resolve/...` of a file that is redirected; GET and HEAD. Only Status503 and Forbidden apply there.
    Resolve,
    /// `/api/...`; the label is the path. Only Delay applies there.
    Api,
}

/// A fault, what it hits and how often. All filters must match; `kind`'s own conditions as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// Label of the object (`owner/name/path`, see [`super::Hub::add_file`]); none: every object.
    #[serde(default)]
    pub object: Option<String>,
    /// How often in total; none: without end.
    #[serde(default)]
    pub times: Option<u32>,
    /// Chance that a matching request is hit, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// Endpoint.
    #[serde(default)]
    pub place: Place,
    /// Only requests for at least this many bytes: spares one-byte probes.
    #[serde(default)]
    pub min_bytes: u64,
}

fn always() -> f64 {
    1.0
}

impl Fault {
    /// Hits every object's bytes, every time.
    pub fn new(kind: FaultKind) -> Self {
        Self { kind, object: None, times: None, probability: 1.0, place: Place::Bytes, min_bytes: 0 }
    }

    /// At most `times` times.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only the object with this label.
    #[must_use]
    pub fn object(self, label: impl Into<String>) -> Self {
        Self { object: Some(label.into()), ..self }
    }

    /// With this chance instead of always.
    #[must_use]
    pub fn probability(self, probability: f64) -> Self {
        Self { probability, ..self }
    }

    /// At the resolve endpoint instead of at the bytes.
    #[must_use]
    pub fn at_resolve(self) -> Self {
        Self { place: Place::Resolve, ..self }
    }

    /// Only for requests of at least this many bytes.
    #[must_use]
    pub fn min_bytes(self, min_bytes: u64) -> Self {
        Self { min_bytes, ..self }
    }

    fn matches(&self, ask: &Ask<'_>) -> bool {
        self.place == ask.place
            && self.times != Some(0)
            && self.object.as_deref().is_none_or(|label| label == ask.label)
            && ask.end - ask.start >= self.min_bytes
            && match self.kind {
                FaultKind::Cut { after } | FaultKind::Reset { after } | FaultKind::Stall { after, .. } => {
                    ask.end - ask.start > after
                }
                FaultKind::CorruptByte { offset } => (ask.start..ask.end).contains(&offset),
                FaultKind::Redirect => !ask.redirected,
                _ => true,
            }
    }
}

/// A request as faults see it: which object, which of its bytes.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) place: Place,
    pub(super) label: &'a str,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) redirected: bool,
}

/// The faults in force. Shared: changes apply to the next request.
#[derive(Debug)]
pub struct Faults(Mutex<State>);

#[derive(Debug)]
struct State {
    armed: Vec<Fault>,
    random: u64,
}

impl Faults {
    /// The generator behind `probability` starts from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(State { armed: Vec::new(), random: seed | 1 }))
    }

    /// Puts a fault in force, beside those already there.
    pub fn add(&self, fault: Fault) {
        self.lock().armed.push(fault);
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.lock().armed.clear();
    }

    /// Starts the generator behind `probability` anew.
    pub fn seed(&self, seed: u64) {
        self.lock().random = seed | 1;
    }

    /// Faults in force, with what is left of their counts.
    pub fn list(&self) -> Vec<Fault> {
        self.lock().armed.clone()
    }

    /// The faults that hit this request; their counts go down.
    pub(super) fn take(&self, ask: &Ask<'_>) -> Vec<FaultKind> {
        let State { armed, random } = &mut *self.lock();
        let mut hit = Vec::new();
        for fault in armed.iter_mut().filter(|fault| fault.matches(ask)) {
            if next_unit(random) < fault.probability {
                fault.times = fault.times.map(|times| times - 1);
                hit.push(fault.kind.clone());
            }
        }
        armed.retain(|fault| fault.times != Some(0));
        hit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }
}

/// The next number of a xorshift64 generator, in 0..1.
fn next_unit(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(label: &str, start: u64, end: u64) -> Ask<'_> {
        Ask { place: Place::Bytes, label, start, end, redirected: false }
    }

    #[test]
    fn a_count_is_used_up_by_matching_requests_only() {
        let faults = Faults::new(1);
        faults.add(Fault::new(FaultKind::Cut { after: 10 }).times(1).object("a/b/c"));
        assert!(faults.take(&ask("a/b/other", 0, 100)).is_empty());
        assert!(faults.take(&ask("a/b/c", 0, 10)).is_empty());
        assert_eq!(faults.take(&ask("a/b/c", 0, 11)), [FaultKind::Cut { after: 10 }]);
        assert!(faults.take(&ask("a/b/c", 0, 11)).is_empty());
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_corrupt_byte_hits_only_ranges_that_hold_it() {
        let faults = Faults::new(1);
        faults.add(Fault::new(FaultKind::CorruptByte { offset: 50 }));
        assert!(faults.take(&ask("x", 0, 50)).is_empty());
        assert_eq!(faults.take(&ask("x", 50, 51)).len(), 1);
    }

    #[test]
    fn the_same_seed_hits_the_same_requests() {
        let draw = |seed| {
            let faults = Faults::new(seed);
            faults.add(Fault::new(FaultKind::Forbidden).probability(0.3));
            (0..200).map(|_| faults.take(&ask("x", 0, 1)).len()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(9));
        let hits: usize = draw(5).iter().sum();
        assert!((30..90).contains(&hits), "{hits} of 200");
    }

    #[test]
    fn a_fault_is_readable_from_short_json() {
        let fault: Fault = serde_json::from_str(r#"{"kind":{"kind":"cut","after":5},"times":1}"#).unwrap();
        assert_eq!(fault, Fault::new(FaultKind::Cut { after: 5 }).times(1));
    }
}
