//! The one clock of the store: Unix milliseconds, for LRU order and listings.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now; 0 if the clock is set before 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
