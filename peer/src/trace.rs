//! Where the time of a request went: spans of this node, told to a collector ([`pondhawk_scheduler::trace`]).
//!
//! Nothing of a URL's query is said, as it may be a signature, nor any header of a client.

use std::{cell::RefCell, rc::Rc};

pub use pondhawk_scheduler::trace::{Context, Counts, Kind, Span, Tracer};
use pondhawk_scheduler::trace::{Exporter, Settings, TraceError, start};
use url::Url;

use crate::{config, swarm::OriginRequest};

/// Parts of one download that are recorded; what is beyond only counts. A 5 GiB file comes in some hundred runs.
pub const MAX_PARTS: u32 = 256;

/// The tracer of a node, and what is to be finished when it has drained; both are nothing where no endpoint is set.
///
/// # Errors
/// [`TraceError`]: the endpoint is wrong, or the system gives no thread.
pub fn of_node(settings: &config::Tracing, name: &str) -> Result<(Tracer, Option<Exporter>), TraceError> {
    let Some(endpoint) = settings.endpoint.clone() else { return Ok((Tracer::default(), None)) };
    let (sample, follow) = (settings.sample, settings.follow);
    let settings = Settings { endpoint, sample, follow, service: "pondhawk", instance: name.to_owned() };
    start(&settings).map(|(tracer, exporter)| (tracer, Some(exporter)))
}

/// A request's span, to which whoever answers it adds. It ends when nobody has it any more.
#[derive(Clone, Debug, Default)]
pub struct RequestSpan(Option<Rc<RefCell<Span>>>);

impl RequestSpan {
    /// Nothing, without memory, where the span is none.
    pub fn new(span: Span) -> Self {
        Self(span.is_on().then(|| Rc::new(RefCell::new(span))))
    }

    /// Under which its parts are recorded.
    pub fn context(&self) -> Option<Context> {
        self.0.as_ref()?.borrow().context()
    }

    /// Adds something, if it is recorded.
    pub fn note(&self, add: impl FnOnce(&mut Span)) {
        if let Some(span) = &self.0 {
            add(&mut span.borrow_mut());
        }
    }

    /// The status with which it is answered; the last one counts.
    pub fn status(&self, status: u16) {
        self.note(|span| span.set("http.response.status_code", u64::from(status)));
    }
}

/// The spans of a download and of its parts, of which there are at most [`MAX_PARTS`].
#[derive(Debug, Default)]
pub struct Trunk {
    span: RefCell<Span>,
    parts: RefCell<Parts>,
}

/// How many there are [pure].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    told: u32,
    left_out: u64,
}

impl Parts {
    fn one_more(&mut self) -> bool {
        let fits = self.told < MAX_PARTS;
        if fits {
            self.told += 1;
        } else {
            self.left_out += 1;
        }
        fits
    }
}

impl Trunk {
    /// Of a download with this span.
    pub fn new(span: Span) -> Self {
        Self { span: RefCell::new(span), parts: RefCell::default() }
    }

    /// Under which others record what they do for it.
    pub fn context(&self) -> Option<Context> {
        self.span.borrow().context()
    }

    /// A part of it; nothing when there are too many, or it is over.
    pub fn part(&self, name: &'static str, kind: Kind) -> Span {
        let span = self.span.borrow();
        if span.is_on() && self.parts.borrow_mut().one_more() { span.child(name, kind) } else { Span::default() }
    }

    /// Its end, for what is known only then.
    pub fn end(&self, say: impl FnOnce(&mut Span)) {
        let mut span = self.span.take();
        if span.is_on() {
            let left_out = self.parts.borrow().left_out;
            if left_out > 0 {
                span.set("pondhawk.parts_left_out", left_out);
            }
            say(&mut span);
        }
    }
}

/// What a client asks for.
pub fn asked_of_node(span: &mut Span, method: &str, url: Option<&Url>) {
    // Only the standard's methods may be told as they are.
    span.set_with("http.request.method", || method_name(method));
    let Some(url) = url else { return };
    span.set_with("url.scheme", || url.scheme().to_owned());
    span.set_with("server.address", || url.host_str().unwrap_or_default().to_owned());
    span.set_with("url.path", || url.path().to_owned());
}

/// What an origin is asked for.
pub fn asked_of_origin(span: &mut Span, method: &'static str, request: &OriginRequest) {
    span.set("http.request.method", method);
    span.set_with("server.address", || request.url.host_str().unwrap_or_default().to_owned());
    span.set_with("server.port", || u64::from(request.url.port_or_known_default().unwrap_or(0)));
    span.set_with("url.full", || request.label());
}

/// By the semantic conventions, so that no client makes up values.
pub fn method_name(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_has_no_more_parts_than_may_be_told() {
        let mut parts = Parts::default();
        let told = (0..1000).filter(|_| parts.one_more()).count();
        assert_eq!((told, parts.left_out), (256, 744));
    }

    #[test]
    fn a_method_is_one_of_the_standards_or_another() {
        assert_eq!((method_name("GET"), method_name("get"), method_name("PROPFIND")), ("GET", "_OTHER", "_OTHER"));
    }

    #[test]
    fn what_is_not_recorded_is_nothing() {
        let request = RequestSpan::new(Span::default());
        request.note(|_| panic!("nobody adds to it"));
        let trunk = Trunk::default();
        trunk.end(|_| panic!("nor ends it"));
        assert_eq!((request.context(), trunk.context()), (None, None));
        assert_eq!(*trunk.parts.borrow(), Parts::default(), "nothing is left out of nothing");
    }
}
