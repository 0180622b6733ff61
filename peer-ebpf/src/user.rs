//! For user space: the shared types as map entries, and the one socket option that no safe crate offers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

use crate::{Address, AnswerRecord, Config, FlowKey, NamespaceAddress, NamespaceReach, Original, Source};

// SAFETY: `repr(C)` or `repr(transparent)` over integers, without padding (the crate's tests sum the fields up), and
// every bit pattern is a value.
unsafe impl aya::Pod for Address {}
// SAFETY: as above.
unsafe impl aya::Pod for Config {}
// SAFETY: as above.
unsafe impl aya::Pod for AnswerRecord {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for NamespaceAddress {}
// SAFETY: as above.
unsafe impl aya::Pod for NamespaceReach {}
// SAFETY: as above.
unsafe impl aya::Pod for Original {}
// SAFETY: as above.
unsafe impl aya::Pod for Source {}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

/// An IPv4 address as one word in network byte order.
pub fn network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The cookie of the network namespace a socket lives in (Linux 5.14, `SO_NETNS_COOKIE`).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` outlive the call, and `len` is the size of `cookie`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_a_map() {
        for text in ["127.0.0.1", "255.1.2.3", "::1", "2001:db8::5"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
        let v4 = Ipv4Addr::new(10, 0, 0, 7);
        assert_eq!(Address::from(IpAddr::from(v4)), Address::v4(network_order(v4)));
    }

    #[test]
    fn a_socket_tells_its_network_namespace() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_ne!(netns_cookie(socket).unwrap(), 0);
    }
}
