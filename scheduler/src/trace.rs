//! Traces: where the time of one client's request went, on each node that it touched.
//!
//! Who records something opens a [`Span`], with the [`Context`] of what it is a part of; contexts are passed on by hand, since
//! a download is shared by requests and runs on another thread than most of them. A span that ends is put into a bounded queue,
//! and lost, and counted, where there is no room: nobody waits for a trace. A thread of its own takes them from there to a
//! collector, by OTLP over gRPC. Off, there is neither queue nor thread, and a span is a `None`.

mod context;
mod export;
mod outage;
mod span;

pub use context::{Context, Traceparent};
pub use export::{EndpointError, Exporter, Settings, TraceError, check_endpoint, start};
pub use span::{Counts, Kind, Span, Tracer, Value};

#[cfg(test)]
pub(crate) mod tests;
