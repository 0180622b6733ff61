//! Log lines: one an event, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Logs from now on; a second call changes nothing.
pub(super) fn start(log: &Log) {
    // Config::problems has refused what does not parse.
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // Two crates log what is theirs to know: that this kernel refuses type information of C unions, and each relocation.
    let filter = ["aya::bpf=error", "aya_obj=info"].into_iter().fold(filter, |filter, quiet| match quiet.parse() {
        Ok(directive) if !log.level.contains("aya") => filter.add_directive(directive),
        _ => filter,
    });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was set up before");
    }
}
