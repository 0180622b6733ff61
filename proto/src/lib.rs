//! The messages of the swarm, generated from `pondhawk/v1/*.proto` and committed; and those in which traces leave it.
//!
//! After a change there: `cargo run -p pondhawk-proto --example generate`.

/// Version 1 of the package; see `pondhawk/v1/scheduler.proto` for what each field means.
#[path = "generated/pondhawk.v1.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated: documented in the .proto file")]
#[rustfmt::skip]
pub mod v1;

/// OpenTelemetry's protocol, as far as it is sent; see `opentelemetry/trace.proto`.
#[path = "generated/opentelemetry.proto.collector.trace.v1.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated: documented in the .proto file")]
#[rustfmt::skip]
pub mod otlp;

/// Lowest protocol version this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Highest protocol version this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The highest version that both this build and a partner of the given range know.
pub fn common_version(min: u32, max: u32) -> Option<u32> {
    let highest = max.min(PROTOCOL_MAX);
    (highest >= min.max(PROTOCOL_MIN)).then_some(highest)
}
