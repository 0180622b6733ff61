//! One certificate per intercepted host, signed when first asked for and kept in a bounded cache.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use super::authority::{Authority, AuthorityError, Leaf};

/// Hosts remembered. The CDN has a few dozen; a client that invents names below a suffix only evicts.
const MAX_LEAVES: usize = 1024;
/// A leaf with less life than this is replaced before it is presented again.
const REISSUE_BEFORE: Duration = Duration::days(10);

/// Certificates by host name, shared by all shards. The least recently used goes when [`MAX_LEAVES`] are held.
pub struct LeafCache {
    authority: Arc<Authority>,
    // Held for a look-up only, never while signing: two shards may sign the same name once each.
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    by_host: HashMap<String, (Leaf, u64)>,
    clock: u64,
}

impl LeafCache {
    /// An empty cache that signs with `authority`.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self { authority, leaves: Mutex::default() }
    }

    /// The CA that signs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Certificate and key for the host named by the client, or `None` where the node may not speak for it.
    pub fn get(&self, sni: &str, now: OffsetDateTime) -> Option<Result<Arc<CertifiedKey>, AuthorityError>> {
        let host = self.authority.suffixes().leaf_name(sni)?;
        let link = self.authority.link(now);
        if let Some(key) = self.lock().find(&host, now, &link) {
            return Some(Ok(key));
        }
        Some(self.authority.issue(&host, now).map(|leaf| {
            let key = Arc::clone(&leaf.key);
            self.lock().insert(host, leaf);
            key
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for LeafCache {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let sni = hello.server_name()?;
        match self.get(sni, OffsetDateTime::now_utc())? {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(host = sni, %error, "no certificate for an intercepted host");
                None
            }
        }
    }
}

impl fmt::Debug for LeafCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafCache").field("held", &self.lock().by_host.len()).finish_non_exhaustive()
    }
}

impl Leaves {
    /// `link` is the certificate by which the CA is presented now: a leaf under an older one is not found.
    fn find(
        &mut self,
        host: &str,
        now: OffsetDateTime,
        link: &Arc<CertificateDer<'static>>,
    ) -> Option<Arc<CertifiedKey>> {
        self.clock += 1;
        let (leaf, used) = self.by_host.get_mut(host)?;
        *used = self.clock;
        // The start matters where the node's clock was set back after signing.
        let fresh = now >= leaf.not_before && now + REISSUE_BEFORE < leaf.not_after;
        (fresh && Arc::ptr_eq(&leaf.link, link)).then(|| Arc::clone(&leaf.key))
    }

    fn insert(&mut self, host: String, leaf: Leaf) {
        if self.by_host.len() >= MAX_LEAVES && !self.by_host.contains_key(&host) {
            let oldest = self.by_host.iter().min_by_key(|(_, (_, used))| *used).map(|(host, _)| host.clone());
            oldest.and_then(|host| self.by_host.remove(&host));
        }
        self.by_host.insert(host, (leaf, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Suffixes;

    fn cache(dir: &std::path::Path) -> LeafCache {
        let suffixes = Suffixes::new(["hf.co"]).unwrap();
        LeafCache::new(Arc::new(Authority::open(dir, &suffixes).unwrap()))
    }

    #[test]
    fn a_host_keeps_its_certificate_until_the_end_draws_near_and_across_case() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let now = OffsetDateTime::now_utc();
        let first = cache.get("cdn-lfs.hf.co", now).unwrap().unwrap();
        let later = cache.get("CDN-LFS.hf.co", now + Duration::days(19)).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &later));
        let renewed = cache.get("cdn-lfs.hf.co", now + Duration::days(21)).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&first, &renewed));
        let clock_set_back = cache.get("cdn-lfs.hf.co", now).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&clock_set_back, &renewed));
    }

    #[test]
    fn a_host_outside_the_suffixes_gets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        for sni in ["example.org", "hf.co.example.org", "*.hf.co"] {
            assert!(cache.get(sni, OffsetDateTime::now_utc()).is_none(), "{sni}");
        }
    }

    #[test]
    fn a_client_that_invents_names_evicts_the_least_used_and_grows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let now = OffsetDateTime::now_utc();
        let real = cache.get("cdn-lfs.hf.co", now).unwrap().unwrap();
        for i in 0..MAX_LEAVES + 50 {
            cache.get(&format!("x{i}.hf.co"), now).unwrap().unwrap();
            let again = cache.get("cdn-lfs.hf.co", now).unwrap().unwrap();
            assert!(Arc::ptr_eq(&real, &again));
        }
        assert_eq!(cache.lock().by_host.len(), MAX_LEAVES);
    }
}
