//! The node's own listening sockets, which are never an origin, and the name by which it knows its own requests again.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
};

/// Names that mean this machine wherever it is asked.
const LOCAL_NAME: &str = "localhost";
/// Addresses that no machine has (RFC 5737, RFC 3849): a socket that can be bound to them can be bound to any.
const NO_ONES_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NO_ONES_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Where this process listens for TCP, and the names of its machine.
#[derive(Debug, Default)]
pub struct OwnSockets {
    listening: Mutex<Vec<SocketAddr>>,
    names: Vec<String>,
}

impl OwnSockets {
    /// No sockets yet; the machine is known by its host name.
    pub fn of_this_host() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        Self { listening: Mutex::default(), names: vec![LOCAL_NAME.to_owned(), host] }
    }

    /// Records a socket that listens now. Port 0 is none.
    pub fn record(&self, address: SocketAddr) {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if address.port() != 0 && !listening.contains(&address) {
            listening.push(address);
        }
    }

    /// Whether a connection to this address would be accepted by this process. What the machine's addresses are is asked of
    /// the kernel each time, since they change; and only where the port is one of the node's own.
    pub fn covers(&self, address: SocketAddr) -> bool {
        let target = reached(address.ip());
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let at_port = listening.iter().filter(|own| own.port() == address.port());
        at_port.map(|own| own.ip().to_canonical()).any(|own| own == target || own.is_unspecified() && is_local(target))
    }

    /// The same by host, without brackets, and port: an address, or one of the names of this machine.
    pub fn covers_host(&self, host: &str, port: u16) -> bool {
        if let Ok(address) = host.parse() {
            return self.covers(SocketAddr::new(address, port));
        }
        let host = host.trim_end_matches('.');
        let listening = || self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
            && listening().iter().any(|own| own.port() == port)
    }
}

/// The address at which a connection to `ip` arrives: Linux connects the unspecified address to loopback.
fn reached(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// Whether the address belongs to this machine. Only a local address can be bound, unless ip_nonlocal_bind is set: then the
/// source address towards it must be the address itself.
fn is_local(ip: IpAddr) -> bool {
    let binds = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    if ip.is_loopback() {
        return true;
    }
    let any_binds = if ip.is_ipv4() { binds(NO_ONES_V4.into()) } else { binds(NO_ONES_V6.into()) };
    if any_binds { source_towards(ip) == Some(ip) } else { binds(ip) }
}

/// Connecting a UDP socket sends nothing, and shows which address the kernel would send from.
fn source_towards(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((ip, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// What this node calls itself in Via (RFC 9110 section 7.6.3): unlike any other node, and without the machine's name.
pub fn pseudonym() -> String {
    let mut random = [0; 8];
    // Zeros only cost the detection of loops through other nodes that have no random numbers either.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    format!("pondhawk-{:016x}", u64::from_be_bytes(random))
}

/// Whether a Via field value has an entry of this pseudonym: `[protocol/]version pseudonym [comment]`, in a list.
pub fn via_names(value: &[u8], pseudonym: &str) -> bool {
    let text = String::from_utf8_lossy(value);
    text.split(',')
        .any(|entry| entry.split_ascii_whitespace().nth(1).is_some_and(|by| by.eq_ignore_ascii_case(pseudonym)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(addresses: &[&str]) -> OwnSockets {
        let own = OwnSockets::of_this_host();
        addresses.iter().for_each(|address| own.record(address.parse().unwrap()));
        own
    }

    #[test]
    fn every_way_to_write_the_nodes_own_address_is_its_own() {
        let own = listening(&["0.0.0.0:65001", "[::]:65003"]);
        for address in
            ["127.0.0.1:65001", "127.9.9.9:65001", "0.0.0.0:65001", "[::ffff:127.0.0.1]:65001", "[::1]:65003"]
        {
            assert!(own.covers(address.parse().unwrap()), "{address}");
        }
        for other in ["127.0.0.1:65002", "1.1.1.1:65001", "192.0.2.1:65001", "[2001:db8::1]:65003"] {
            assert!(!own.covers(other.parse().unwrap()), "{other}");
        }
        assert!(own.covers_host("LocalHost.", 65001) && own.covers_host("127.0.0.1", 65001));
        assert!(!own.covers_host("localhost", 443) && !own.covers_host("huggingface.co", 65001));
    }

    #[test]
    fn a_port_that_is_open_at_one_address_leaves_the_others_alone() {
        let own = listening(&["127.0.0.1:65001"]);
        assert!(own.covers("127.0.0.1:65001".parse().unwrap()) && own.covers("0.0.0.0:65001".parse().unwrap()));
        assert!(!own.covers("127.0.0.2:65001".parse().unwrap()) && !own.covers("[::1]:65001".parse().unwrap()));
    }

    #[test]
    fn a_via_entry_is_compared_whole() {
        let own = "pondhawk-0123456789abcdef";
        assert!(via_names(b"1.1 squid, HTTP/1.1 Pondhawk-0123456789ABCDEF (x)", own));
        assert!(
            !via_names(b"1.1 pondhawk-0123456789abcde", own) && !via_names(b"1.1 x (pondhawk-0123456789abcdef)", own)
        );
        assert!(!via_names(b"\xff,,", own) && pseudonym() != pseudonym());
    }
}
