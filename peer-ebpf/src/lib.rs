//! What the eBPF programs and the node share: map keys and values, byte for byte.
//!
//! No type here has padding: the kernel compares map keys as bytes, and the verifier refuses uninitialised ones.

#![cfg_attr(not(any(test, feature = "user")), no_std)]

#[cfg(feature = "user")]
pub mod user;

/// Ports and protocols the programs care about.
pub const HTTPS_PORT: u16 = 443;

/// How many connections may be on their way between `connect` and the handshake's end.
pub const MAX_PENDING: u32 = 8192;
/// How many established flows may wait to be asked for by the node.
pub const MAX_FLOWS: u32 = 8192;
/// How many destination addresses are known at a time; the least recently used falls out.
pub const MAX_LEARNT: u32 = 8192;
/// How many sources may be bypassed at a time.
pub const MAX_BYPASSED: u32 = 1024;
/// How many host suffixes can be configured.
pub const MAX_SUFFIXES: u32 = 16;
/// Bytes of a suffix in its wire form, which has one more than its dotted form. Not more than the headers in front of a
/// DNS question: 20 of IPv4, 8 of UDP, 12 of DNS.
pub const SUFFIX_LEN: usize = 40;

/// An address learnt from a DNS answer counts at least so long, whatever its TTL: clients keep addresses longer.
pub const MIN_LEARNT_SECONDS: u64 = 300;
/// And at most so long.
pub const MAX_LEARNT_SECONDS: u64 = 86_400;

/// Redirect connections to learnt addresses.
pub const MODE_DNS: u32 = 1;
/// Redirect every connection to port 443.
pub const MODE_ALL: u32 = 2;

/// An IPv6 address as four words in network byte order; IPv4 in its v4-mapped form (RFC 4291, 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// `::`, which stands for "none" in [`Config`].
    pub const NONE: Self = Self([0; 4]);

    /// The v4-mapped form of an IPv4 address given in network byte order.
    #[inline(always)]
    pub const fn v4(network_order: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), network_order])
    }

    /// Whether this is an IPv4 address in its v4-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
    }

    /// 169.254.0.0/16 or fe80::/10.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 16 == 0xa9fe;
        }
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// Compares word by word: `memcmp` is a call in BPF.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) | (self.0[2] ^ other.0[2]) | (self.0[3] ^ other.0[3]) == 0
    }
}

/// The node's settings, the only entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The node's own network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// A heartbeat older than this many nanoseconds means that nobody listens.
    pub max_silence: u64,
    /// [`MODE_DNS`] or [`MODE_ALL`].
    pub mode: u32,
    /// `SO_MARK` of the node's own sockets; never 0.
    pub mark: u32,
    /// Where the node listens, host byte order.
    pub port: u16,
    /// 1 when `::1` can be connected to in the node's namespace.
    pub loopback_v6: u16,
    /// The node's IPv4 address for other network namespaces, network byte order; 0: none.
    pub node_v4: u32,
    /// The node's IPv6 address for other network namespaces.
    pub node_v6: Address,
}

/// Who connects: the finest thing that the kernel tells for free and that outlives one process.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Source {
    /// cgroup v2 id: the inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// The network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// User id, as seen from the initial user namespace.
    pub uid: u32,
    /// Always 0.
    pub padding: u32,
}

/// Where a redirected connection was going, and who opened it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Original {
    /// Who connected.
    pub source: Source,
    /// The address it asked for.
    pub address: Address,
    /// The port it asked for, host byte order.
    pub port: u32,
    /// Always 0.
    pub padding: u32,
}

/// An established connection as its client sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The client's end.
    pub client: Address,
    /// The node's end.
    pub server: Address,
    /// Host byte order.
    pub client_port: u16,
    /// Host byte order.
    pub server_port: u16,
}

/// What a program decided; the index of its counter.
///
/// A connection that is not TCP to port 443 is not counted: it must cost next to nothing.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// IPv4 (v4-mapped too): sent to the node.
    RedirectedV4,
    /// IPv6: sent to the node.
    RedirectedV6,
    /// Direct: the node never wrote its settings.
    NotConfigured,
    /// Direct: the node has been silent for too long.
    StaleHeartbeat,
    /// Direct: one of the node's own sockets.
    OwnMark,
    /// Direct: it goes to the node's own listener anyway.
    LoopGuard,
    /// Direct: an address that leads the node elsewhere, since it is link-local or another namespace's loopback.
    LocalScope,
    /// Direct: the socket is bound to a device, through which the node cannot be reached.
    BoundToDevice,
    /// Direct: mode `dns`, and no name we want has this address.
    UnknownDestination,
    /// Direct: this source is bypassed for a while.
    Bypassed,
    /// Direct: from another network namespace, and the node has no address of this family for it.
    NoNodeAddress,
    /// Direct: the original destination could not be remembered.
    FlowInsertFailed,
    /// A redirected connection was established, and its flow is there to be asked for.
    FlowEstablished,
    /// A redirected connection was established, but its flow could not be kept.
    FlowLost,
    /// An address was taken from a DNS answer.
    DnsLearnt,
    /// A DNS answer for a name we want could not be read to its end.
    DnsMalformed,
}

impl Decision {
    /// Every decision, in the order of the counters.
    pub const ALL: [Self; 16] = [
        Self::RedirectedV4,
        Self::RedirectedV6,
        Self::NotConfigured,
        Self::StaleHeartbeat,
        Self::OwnMark,
        Self::LoopGuard,
        Self::LocalScope,
        Self::BoundToDevice,
        Self::UnknownDestination,
        Self::Bypassed,
        Self::NoNodeAddress,
        Self::FlowInsertFailed,
        Self::FlowEstablished,
        Self::FlowLost,
        Self::DnsLearnt,
        Self::DnsMalformed,
    ];

    /// How many counters there are.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RedirectedV4 => "redirected_v4",
            Self::RedirectedV6 => "redirected_v6",
            Self::NotConfigured => "not_configured",
            Self::StaleHeartbeat => "stale_heartbeat",
            Self::OwnMark => "own_mark",
            Self::LoopGuard => "loop_guard",
            Self::LocalScope => "local_scope",
            Self::BoundToDevice => "bound_to_device",
            Self::UnknownDestination => "unknown_destination",
            Self::Bypassed => "bypassed",
            Self::NoNodeAddress => "no_node_address",
            Self::FlowInsertFailed => "flow_insert_failed",
            Self::FlowEstablished => "flow_established",
            Self::FlowLost => "flow_lost",
            Self::DnsLearnt => "dns_learnt",
            Self::DnsMalformed => "dns_malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shared_type_has_padding() {
        assert_eq!(size_of::<Config>(), 8 + 8 + 4 + 4 + 2 + 2 + 4 + 16);
        assert_eq!(size_of::<Source>(), 8 + 8 + 4 + 4);
        assert_eq!(size_of::<Original>(), size_of::<Source>() + 16 + 4 + 4);
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2);
    }

    #[test]
    fn every_decision_has_the_counter_of_its_number() {
        for (index, decision) in Decision::ALL.into_iter().enumerate() {
            assert_eq!(decision as usize, index, "{}", decision.name());
        }
    }

    #[test]
    fn link_local_is_told_in_both_families() {
        assert!(Address::v4(u32::from_ne_bytes([169, 254, 169, 254])).is_link_local());
        assert!(!Address::v4(u32::from_ne_bytes([169, 253, 0, 1])).is_link_local());
        assert!(Address([0xfe80_0000_u32.to_be(), 0, 0, 1]).is_link_local());
        assert!(Address([0xfebf_0000_u32.to_be(), 0, 0, 1]).is_link_local());
        assert!(!Address([0xfec0_0000_u32.to_be(), 0, 0, 1]).is_link_local());
    }

    #[test]
    fn loopback_is_told_in_both_families() {
        assert!(Address::v4(u32::from_ne_bytes([127, 9, 9, 9])).is_loopback());
        assert!(!Address::v4(u32::from_ne_bytes([128, 0, 0, 1])).is_loopback());
        assert!(Address([0, 0, 0, 1_u32.to_be()]).is_loopback());
        assert!(!Address::NONE.is_loopback());
    }
}
