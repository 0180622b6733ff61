//! The warnings that clients cause, each of which is written once in a while [pure].

use pondhawk_scheduler::warning_limit::WarningLimit;

/// The warnings of the interception that clients can cause.
#[derive(Debug, Default)]
pub struct Warnings {
    /// A connection was not passed on.
    pub refused_pass: WarningLimit,
    /// A client holds its whole share of the connections.
    pub over_share: WarningLimit,
}
