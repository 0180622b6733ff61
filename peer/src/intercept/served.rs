//! The hosts that the node has served lately: names below the configured suffixes, for its own look-ups and for proofs [pure].

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Hosts remembered. The Hub has about ten; a client that makes names up costs the others a look-up of theirs, no more.
const MAX_HOSTS: usize = 32;

/// Host names, the one served last at the front.
#[derive(Debug, Default)]
pub struct ServedHosts(Mutex<Vec<String>>);

impl ServedHosts {
    /// Records that a request for the host was made.
    pub fn record(&self, host: &str) {
        let mut hosts = self.lock();
        if hosts.first().is_some_and(|first| first == host) {
            return;
        }
        hosts.retain(|known| known != host);
        hosts.truncate(MAX_HOSTS - 1);
        hosts.insert(0, host.to_owned());
    }

    /// Drops a host that has no address.
    pub fn forget(&self, host: &str) {
        self.lock().retain(|known| known != host);
    }

    /// The hosts served lately, followed by those of `configured` that are not among them.
    pub fn and(&self, configured: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut hosts = self.lock().clone();
        for host in configured {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_served_last_comes_first_and_configured_ones_follow() {
        let served = ServedHosts::default();
        served.record("a.hf.co");
        served.record("b.hf.co");
        served.record("a.hf.co");
        assert_eq!(served.and(["hf.co".to_owned(), "b.hf.co".to_owned()]), ["a.hf.co", "b.hf.co", "hf.co"]);
        served.forget("a.hf.co");
        assert_eq!(served.and([]), ["b.hf.co"]);
    }

    #[test]
    fn no_more_hosts_are_remembered_than_the_bound() {
        let served = ServedHosts::default();
        for number in 0..100 {
            served.record(&format!("{number}.hf.co"));
        }
        let hosts = served.and([]);
        assert_eq!(hosts.len(), MAX_HOSTS);
        assert_eq!(hosts[0], "99.hf.co");
    }
}
