//! Presigned URLs that the origin has just given out through this node.
//!
//! A CAS server gives a client that may read a file URLs for its parts. A client that presents exactly such a URL has the
//! origin's consent; nothing need be asked until it is as old as any other consent may become.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;
use url::Url;

use crate::expiring::Expiring;

/// URLs remembered at once, 64 bytes each. When there are as many, further ones are asked about like any other.
const MAX_GRANTS: usize = 64 << 10;
/// Answers that are listened to at once.
const MAX_HEARD: usize = 16;

pub(super) struct Grants {
    given: Expiring<()>,
    heard: AtomicUsize,
}

impl Default for Grants {
    fn default() -> Self {
        Self { given: Expiring::new(MAX_GRANTS), heard: AtomicUsize::default() }
    }
}

impl Grants {
    /// The URL may be used for these bytes for so long from now.
    pub(super) fn add(&self, url: &Url, bytes: (u64, u64), now: Instant, life: Duration) {
        self.given.insert(key(url, bytes), (), now, life);
    }

    pub(super) fn has(&self, url: &Url, bytes: (u64, u64), now: Instant) -> bool {
        self.given.get(&key(url, bytes), now).is_some()
    }

    /// A place among those who listen; [`Self::leave`] gives it back.
    pub(super) fn enter(&self) -> bool {
        let entered = |heard| (heard < MAX_HEARD).then_some(heard + 1);
        self.heard.fetch_update(Ordering::AcqRel, Ordering::Acquire, entered).is_ok()
    }

    pub(super) fn leave(&self) {
        self.heard.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Not the URL itself: it is a credential.
fn key(url: &Url, (first, last): (u64, u64)) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&first.to_le_bytes()).update(&last.to_le_bytes()).update(url.as_str().as_bytes());
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_for_one_url_and_range_and_ends() {
        let (grants, url, now) = (Grants::default(), Url::parse("https://h/x?Signature=a").unwrap(), Instant::now());
        grants.add(&url, (0, 9), now, Duration::from_secs(60));
        assert!(grants.has(&url, (0, 9), now) && !grants.has(&url, (0, 8), now));
        assert!(!grants.has(&Url::parse("https://h/x?Signature=b").unwrap(), (0, 9), now));
        assert!(!grants.has(&url, (0, 9), now + Duration::from_secs(60)));
    }

    #[test]
    fn few_listen_at_once() {
        let grants = Grants::default();
        assert!((0..MAX_HEARD).all(|_| grants.enter()) && !grants.enter());
        grants.leave();
        assert!(grants.enter());
    }
}
