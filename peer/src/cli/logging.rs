//! Log lines: one an event, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Takes up another level while the process runs.
pub(super) type Relog = Box<dyn Fn(&Log) + Send + Sync>;

/// Logs from now on; a second call changes nothing. What it gives changes the level.
pub(super) fn start(log: &Log) -> Relog {
    let lines = tracing_subscriber::fmt().with_writer(io::stderr);
    // Two types, as a handle knows what writes.
    let (started, relog): (_, Relog) = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(io::stderr().is_terminal());
            let lines = lines.with_env_filter(filter(log)).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |log: &Log| failed(handle.reload(filter(log)))))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let lines = lines.with_env_filter(filter(log)).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |log: &Log| failed(handle.reload(filter(log)))))
        }
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was set up before");
    }
    relog
}

fn failed(reloaded: Result<(), tracing_subscriber::reload::Error>) {
    if let Err(error) = reloaded {
        tracing::warn!(%error, "log.level stays as it was");
    }
}

fn filter(log: &Log) -> EnvFilter {
    // Config::problems has refused what does not parse.
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // Two crates log what is theirs to know: that this kernel refuses type information of C unions, and each relocation.
    ["aya::bpf=error", "aya_obj=info"].into_iter().fold(filter, |filter, quiet| match quiet.parse() {
        Ok(directive) if !log.level.contains("aya") => filter.add_directive(directive),
        _ => filter,
    })
}
