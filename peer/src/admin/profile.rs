//! A CPU profile of the whole process, as `go tool pprof` and pprof.me read it.
//!
//! It shows the node's own code only: a sample taken inside libc or the vDSO is dropped, and with it the time in system calls.
//! Measured on the admin port under load: 79 samples where 2.56 s of CPU time make 253. `perf` shows the rest. The first
//! profile reads the debug information, which stays resident (170 MB in a debug build).

use std::time::Duration;

use hyper::StatusCode;
use pprof::{ProfilerGuard, ProfilerGuardBuilder, protos::Message};
use tokio::sync::Mutex;

/// Samples a second and thread; a prime, so that it does not beat with timers.
const FREQUENCY: i32 = 99;
const DEFAULT_SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 60;
/// The profiler is the process' one SIGPROF.
static PROFILER: Mutex<()> = Mutex::const_new(());

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    #[error("seconds must be a number from 1 to {MAX_SECONDS}")]
    Seconds,
    #[error("a profile is being taken; try again later")]
    Busy,
    #[error("the profiler failed: {0}")]
    Profiler(String),
}

impl ProfileError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Seconds => StatusCode::BAD_REQUEST,
            Self::Busy => StatusCode::CONFLICT,
            Self::Profiler(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Profiles for as long as the query's `seconds` says. Ends early, and frees the profiler, when dropped.
pub(super) async fn take(query: Option<&str>) -> Result<Vec<u8>, ProfileError> {
    let wait = Duration::from_secs(seconds(query)?);
    let _alone = PROFILER.try_lock().map_err(|_| ProfileError::Busy)?;
    let failed = |error: pprof::Error| ProfileError::Profiler(error.to_string());
    // Unwinding from inside these may deadlock or crash: they are entered with half-built frames.
    let blocklist = ["libc", "libgcc", "pthread", "vdso"];
    let guard = ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&blocklist).build().map_err(failed)?;
    tokio::time::sleep(wait).await;
    tokio::task::spawn_blocking(move || encode(&guard).map_err(failed))
        .await
        .map_err(|error| ProfileError::Profiler(error.to_string()))?
}

fn encode(guard: &ProfilerGuard<'static>) -> Result<Vec<u8>, pprof::Error> {
    Ok(guard.report().build()?.pprof()?.encode_to_vec())
}

fn seconds(query: Option<&str>) -> Result<u64, ProfileError> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let Some((_, text)) = pairs.into_iter().find(|(name, _)| name == "seconds") else { return Ok(DEFAULT_SECONDS) };
    text.parse().ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds)).ok_or(ProfileError::Seconds)
}
