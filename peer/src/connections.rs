//! How many connections clients hold, and how many each may: no client takes the places of the others.
//!
//! Beside the bound on all there is a share for each client, as fine as a client can be told from others. Near the bound the
//! node stops to intercept ([`Connections::is_crowded`]) until places are free: what it does not take goes direct.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Of the bound, one part in this many is a client's share.
const SHARES: usize = 4;
/// Loopback has this many of the shares: behind it are all local users of the proxy, whom TCP does not tell apart.
const LOOPBACK_SHARES: usize = 3;
/// Of the reserve a client may have one part in this many of the bound.
const RESERVE_PARTS: usize = 32;
/// And at least this: connections that were redirected before the programs learnt that they should not be.
const MIN_RESERVE: usize = 64;

/// Who holds a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ClientKey {
    /// A local user: intercepted in the node's own network namespace, or on the Unix socket.
    User(u32),
    /// Another network namespace, by its cookie.
    Namespace(u64),
    /// A machine; of IPv6 its network, /64, in which it can take any address.
    Address(IpAddr),
    /// This machine, by TCP.
    Loopback,
}

impl ClientKey {
    /// A client of a TCP port that everything can connect to.
    pub fn of_peer(peer: IpAddr) -> Self {
        match peer.to_canonical() {
            address if address.is_loopback() => Self::Loopback,
            IpAddr::V4(v4) => Self::Address(v4.into()),
            IpAddr::V6(v6) => Self::Address(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
        }
    }
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceRefusal {
    /// The client holds its whole share.
    OverShare,
    /// All clients together hold as many as there may be.
    Full,
}

/// The connections open at a time, all shards together.
#[derive(Debug)]
pub struct Connections {
    max: AtomicUsize,
    open: AtomicUsize,
    crowded: AtomicBool,
    /// Connections by client, of clients that have any: never more entries than connections.
    held: Mutex<HashMap<ClientKey, usize>>,
}

impl Connections {
    /// At most `max`.
    pub fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            open: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// The places from which connections that found none among `max` are passed on to where they were going: the few that were
    /// under way already when the programs were told to redirect no more. Cost: six descriptors each.
    pub fn reserve(max: usize) -> Self {
        Self::new((max / RESERVE_PARTS).max(MIN_RESERVE) * SHARES)
    }

    /// Another bound for those to come; none that is open is closed.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// A place for one more of the client, until the guard drops.
    pub fn admit(self: &Arc<Self>, client: ClientKey) -> Result<Place, PlaceRefusal> {
        let max = self.max.load(Ordering::Relaxed);
        let mut held = self.lock();
        let open = self.open.load(Ordering::Relaxed);
        if open >= max {
            self.crowded.store(true, Ordering::Relaxed);
            return Err(PlaceRefusal::Full);
        }
        let own = held.get(&client).copied().unwrap_or(0) + 1;
        let share = share(max, client);
        if own > share {
            return Err(PlaceRefusal::OverShare);
        }
        held.insert(client, own);
        self.open.store(open + 1, Ordering::Release);
        if open + 1 >= high_mark(max) {
            self.crowded.store(true, Ordering::Relaxed);
        }
        drop(held);
        Ok(Place { connections: Arc::clone(self), client, fills_share: own == share })
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether so many are open that no more should be intercepted: from seven eighths of the bound until three quarters.
    pub fn is_crowded(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let low = (max - max / 4).min(high_mark(max).saturating_sub(1));
        if self.crowded.load(Ordering::Relaxed) && self.open() <= low {
            self.crowded.store(false, Ordering::Relaxed);
        }
        self.crowded.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientKey, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn high_mark(max: usize) -> usize {
    max - max / 8
}

fn share(max: usize, client: ClientKey) -> usize {
    let parts = if client == ClientKey::Loopback { LOOPBACK_SHARES } else { 1 };
    (max / SHARES).max(1) * parts
}

/// One open connection.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    client: ClientKey,
    fills_share: bool,
}

impl Place {
    /// Whether it is the last that its client gets for now.
    pub fn fills_share(&self) -> bool {
        self.fills_share
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.connections.lock();
        self.connections.open.fetch_sub(1, Ordering::AcqRel);
        match held.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(held.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many(connections: &Arc<Connections>, client: ClientKey, count: usize) -> Vec<Place> {
        (0..count).map_while(|_| connections.admit(client).ok()).collect()
    }

    #[test]
    fn the_bound_on_connections_holds_and_places_come_back() {
        let connections = Arc::new(Connections::new(1));
        let place = connections.admit(ClientKey::User(0)).unwrap();
        assert_eq!(connections.admit(ClientKey::User(1)).unwrap_err(), PlaceRefusal::Full);
        drop(place);
        let _one = connections.admit(ClientKey::User(0)).unwrap();
        connections.set_max(2);
        let _two = connections.admit(ClientKey::User(1)).unwrap();
        assert_eq!(connections.admit(ClientKey::User(2)).unwrap_err(), PlaceRefusal::Full);
    }

    #[test]
    fn a_client_takes_its_share_and_leaves_the_rest_to_others() {
        let connections = Arc::new(Connections::new(16));
        let mut greedy = many(&connections, ClientKey::Namespace(7), 100);
        assert_eq!(greedy.len(), 4);
        assert_eq!(greedy.iter().filter(|place| place.fills_share()).count(), 1);
        assert_eq!(connections.admit(ClientKey::Namespace(7)).unwrap_err(), PlaceRefusal::OverShare);
        assert_eq!(many(&connections, ClientKey::User(7), 100).len(), 4);
        greedy.pop();
        assert!(connections.admit(ClientKey::Namespace(7)).is_ok());
        assert_eq!(many(&connections, ClientKey::Loopback, 100).len(), 12);
    }

    #[test]
    fn a_client_without_connections_is_not_remembered() {
        let connections = Arc::new(Connections::new(100));
        for number in 0..1000 {
            connections.admit(ClientKey::Namespace(number)).unwrap();
        }
        assert_eq!((connections.open(), connections.lock().len()), (0, 0));
    }

    #[test]
    fn a_crowded_node_has_places_again_before_it_intercepts_again() {
        let connections = Arc::new(Connections::new(80));
        let mut places: Vec<Place> = (0..69).map(|user| connections.admit(ClientKey::User(user)).unwrap()).collect();
        assert!(!connections.is_crowded());
        places.push(connections.admit(ClientKey::User(70)).unwrap());
        assert!(connections.is_crowded());
        places.truncate(61);
        assert!(connections.is_crowded(), "not before a quarter is free");
        places.truncate(60);
        assert!(!connections.is_crowded());
    }

    #[test]
    fn a_bound_of_one_is_crowded_only_while_it_is_reached() {
        let connections = Arc::new(Connections::new(1));
        let place = connections.admit(ClientKey::User(0)).unwrap();
        assert!(connections.is_crowded());
        drop(place);
        assert!(!connections.is_crowded());
    }

    #[test]
    fn a_machine_is_one_client_whatever_its_addresses() {
        let key = |text: &str| ClientKey::of_peer(text.parse().unwrap());
        assert_eq!(key("127.8.9.1"), ClientKey::Loopback);
        assert_eq!(key("::1"), ClientKey::Loopback);
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.2"), key("192.0.2.1"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8::1"));
    }
}
