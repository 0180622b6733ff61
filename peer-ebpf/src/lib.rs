//! What the eBPF programs and the node share: map keys and values, byte for byte.
//!
//! No type here has padding: the kernel compares map keys as bytes, and the verifier refuses uninitialised ones.

#![cfg_attr(not(any(test, feature = "user")), no_std)]

#[cfg(feature = "user")]
pub mod user;

/// Ports and protocols the programs care about.
pub const HTTPS_PORT: u16 = 443;
/// Where name servers answer.
pub const DNS_PORT: u16 = 53;

/// How many connections may be on their way between `connect` and the handshake's end.
pub const MAX_PENDING: u32 = 8192;
/// How many established flows may wait to be asked for by the node.
pub const MAX_FLOWS: u32 = 8192;
/// How many destinations that the node resolved itself are known at a time. Only the node writes them.
pub const MAX_KNOWN: u32 = 4096;
/// How many destinations from overheard DNS answers are remembered at a time, all network namespaces together; the least
/// recently used is evicted. A namespace that fills the map costs the others only what the node did not resolve itself.
pub const MAX_OVERHEARD: u32 = 8192;
/// Words of 64 bits in the sketch of wanted destinations: 65,536 bits, of which each destination sets one.
pub const CANDIDATE_WORDS: u32 = 1024;
/// How many questions to name servers are remembered at a time; the least recently used is evicted, and its answer ignored.
pub const MAX_QUERIES: u32 = 8192;
/// For how many network namespaces it is recorded whether the node can be reached from them.
pub const MAX_NAMESPACES: u32 = 4096;
/// How many sources may be bypassed at a time.
pub const MAX_BYPASSED: u32 = 1024;
/// How many host suffixes can be configured.
pub const MAX_SUFFIXES: u32 = 16;
/// Bytes of a suffix in its wire form, which has one more than its dotted form. Not more than the headers in front of a
/// DNS question: 20 of IPv4, 8 of UDP, 12 of DNS.
pub const SUFFIX_LEN: usize = 40;

/// An address learnt from a DNS answer counts at least so long, whatever its TTL: clients keep addresses longer.
pub const MIN_LEARNT_SECONDS: u64 = 300;
/// And at most so long: content networks answer with a TTL of minutes, so a longer one is a mistake or an attack.
pub const MAX_LEARNT_SECONDS: u64 = 3600;

/// A redirected connection that has not reached the node after this long counts as lost. The node is on the same machine.
pub const REACH_GRACE_NANOS: u64 = 2_000_000_000;
/// While a network namespace cannot reach the node, one connection is redirected so often to find out whether it can again.
pub const REACH_TRIAL_NANOS: u64 = 60_000_000_000;

/// The value of the heartbeat while the node has too many connections to take more.
pub const HEARTBEAT_PAUSED: u64 = 1;

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

    /// How far the address reaches. IPv4 addresses count alike in their v4-mapped form and behind the NAT64 prefix
    /// 64:ff9b::/96 (RFC 6052).
    #[inline(always)]
    pub const fn scope(&self) -> AddressScope {
        let [first, second, third, last] =
            [u32::from_be(self.0[0]), u32::from_be(self.0[1]), u32::from_be(self.0[2]), u32::from_be(self.0[3])];
        let mapped = first == 0 && second == 0 && third == 0xffff;
        let nat64 = first == 0x0064_ff9b && second == 0 && third == 0;
        if mapped || nat64 {
            return scope_v4(last);
        }
        // ::/96 has `::`, `::1` and the IPv4-compatible addresses, which Linux connects to no host.
        let low = first == 0 && second == 0 && third == 0;
        let link_local = first >> 22 == 0xfe80 >> 6;
        let multicast = first >> 24 == 0xff;
        if low || link_local || multicast {
            return AddressScope::Local;
        }
        // Unique local (RFC 4193) and the deprecated site-local addresses.
        if first >> 25 == 0xfc >> 1 || first >> 22 == 0xfec0 >> 6 {
            return AddressScope::Private;
        }
        AddressScope::Public
    }

    /// The destination's bit in the sketch of wanted destinations: the index of its word, and the word with that bit.
    #[inline(always)]
    pub const fn candidate_bit(&self) -> (u32, u64) {
        let folded = self.0[0] ^ self.0[1].rotate_left(8) ^ self.0[2].rotate_left(16) ^ self.0[3];
        // Fibonacci hashing: the product's high bits depend on all bits of the factor.
        let hash = folded.wrapping_mul(0x9e37_79b1) >> 16;
        (hash >> 6 & (CANDIDATE_WORDS - 1), 1 << (hash & 63))
    }

    /// Compares word by word: `memcmp` is a call in BPF.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) | (self.0[2] ^ other.0[2]) | (self.0[3] ^ other.0[3]) == 0
    }
}

/// How far an address reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressScope {
    /// The host or the link that it is used on: unspecified, loopback, link-local, multicast, broadcast and reserved. Such a
    /// destination is another one when the node connects to it in a client's place, so it is never redirected.
    Local,
    /// A private network (RFC 1918, RFC 4193) or one behind a carrier's NAT (RFC 6598).
    Private,
    /// Everything else.
    Public,
}

/// The scope of an IPv4 address in host byte order.
#[inline(always)]
const fn scope_v4(address: u32) -> AddressScope {
    let (eight, sixteen) = (address >> 24, address >> 16);
    // 0.0.0.0 is the host itself to Linux; 224.0.0.0 and beyond are multicast, reserved and broadcast.
    if eight == 0 || eight == 127 || sixteen == 0xa9fe || eight >= 224 {
        return AddressScope::Local;
    }
    let shared = address >> 22 == 0x6440_0000 >> 22;
    if eight == 10 || sixteen >> 4 == 0xac10 >> 4 || sixteen == 0xc0a8 || shared {
        return AddressScope::Private;
    }
    AddressScope::Public
}

/// A destination as one network namespace means it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NamespaceAddress {
    /// The network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// The destination.
    pub address: Address,
}

/// A destination that a DNS answer gave. Times are CLOCK_MONOTONIC in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerRecord {
    /// The end of its life.
    pub until: u64,
    /// Until then the node refuses to connect to it in a client's place, and connections to it go direct; 0: not refused.
    pub refused_until: u64,
}

/// A question to a name server, as its answer is recognised by.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DnsQuery {
    /// The cookie of the socket that asked.
    pub socket_cookie: u64,
    /// The name server.
    pub server: Address,
}

/// Whether redirected connections from a network namespace arrive. Times are CLOCK_MONOTONIC in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamespaceReach {
    /// The first redirected connection since one last arrived; 0: none is outstanding.
    pub failing_since: u64,
    /// The last connection that was redirected while others were outstanding.
    pub last_trial: u64,
    /// When a handshake was last finished; 0: never.
    pub established: u64,
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
    /// 1 when destinations in private networks are redirected.
    pub allow_private: u32,
    /// Always 0.
    pub padding: u32,
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

impl Source {
    /// All sources that share the limits of this one: in the node's own network namespace those of the same user, since
    /// the machine's services are told apart by it; elsewhere the whole namespace, where users are its owner's to choose.
    #[inline(always)]
    pub const fn party(&self, own_netns: u64) -> Self {
        let uid = if self.netns_cookie == own_netns { self.uid } else { u32::MAX };
        Self { cgroup_id: 0, netns_cookie: self.netns_cookie, uid, padding: 0 }
    }
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
    /// Direct: an address that leads the node elsewhere ([`AddressScope::Local`]).
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
    /// Direct: the node has nearly as many connections as it may.
    Paused,
    /// Direct: an address in a private network, which the settings leave alone.
    PrivateScope,
    /// Direct: the first redirected connection of this network namespace is still under way.
    Untried,
    /// Direct: redirected connections of this network namespace do not arrive at the node.
    Unreachable,
    /// A DNS answer for a name we want was ignored, as its socket did not ask the sender.
    DnsUnasked,
}

impl Decision {
    /// Every decision, in the order of the counters.
    pub const ALL: [Self; 21] = [
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
        Self::Paused,
        Self::PrivateScope,
        Self::Untried,
        Self::Unreachable,
        Self::DnsUnasked,
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
            Self::Paused => "paused",
            Self::PrivateScope => "private_scope",
            Self::Untried => "untried",
            Self::Unreachable => "unreachable",
            Self::DnsUnasked => "dns_unasked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shared_type_has_padding() {
        assert_eq!(size_of::<Config>(), 8 + 8 + 4 + 4 + 2 + 2 + 4 + 16 + 4 + 4);
        assert_eq!(size_of::<Source>(), 8 + 8 + 4 + 4);
        assert_eq!(size_of::<Original>(), size_of::<Source>() + 16 + 4 + 4);
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2);
        assert_eq!(size_of::<NamespaceAddress>(), 8 + 16);
        assert_eq!(size_of::<AnswerRecord>(), 8 + 8);
        assert_eq!(size_of::<DnsQuery>(), 8 + 16);
        assert_eq!(size_of::<NamespaceReach>(), 8 + 8 + 8);
    }

    #[test]
    fn every_decision_has_the_counter_of_its_number() {
        for (index, decision) in Decision::ALL.into_iter().enumerate() {
            assert_eq!(decision as usize, index, "{}", decision.name());
        }
    }

    fn scope_of(text: &str) -> AddressScope {
        let octets = match text.parse().unwrap() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        let word = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().unwrap());
        Address([word(0), word(4), word(8), word(12)]).scope()
    }

    #[test]
    fn an_address_that_means_another_host_to_the_node_is_local() {
        let v4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
        let v6 = ["::", "::1", "::7f00:1", "fe80::1", "febf::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"];
        for text in v4.into_iter().chain(v6) {
            assert_eq!(scope_of(text), AddressScope::Local, "{text}");
        }
    }

    #[test]
    fn private_networks_are_recognised_in_every_form() {
        let v4 = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255"];
        let v6 = ["fc00::1", "fdff::1", "fec0::1", "::ffff:10.9.0.1", "64:ff9b::a09:1"];
        for text in v4.into_iter().chain(v6) {
            assert_eq!(scope_of(text), AddressScope::Private, "{text}");
        }
    }

    #[test]
    fn all_other_addresses_are_public() {
        let v4 = ["1.1.1.1", "11.0.0.1", "126.0.0.1", "128.0.0.1", "169.253.0.1", "172.15.0.1", "172.32.0.1"];
        let more = ["100.63.0.1", "100.128.0.1", "192.167.0.1", "223.255.255.1", "2600:9000::1", "2001:db8::1"];
        let embedded = ["::ffff:1.1.1.1", "64:ff9b::101:101"];
        for text in v4.into_iter().chain(more).chain(embedded) {
            assert_eq!(scope_of(text), AddressScope::Public, "{text}");
        }
    }

    #[test]
    fn neighbours_spread_over_the_sketch() {
        let bits: std::collections::HashSet<_> =
            (0..=255).map(|host| Address::v4(u32::from_ne_bytes([192, 0, 2, host])).candidate_bit()).collect();
        assert!(bits.len() > 240, "{} bits for 256 addresses", bits.len());
        assert!(bits.iter().all(|(word, mask)| *word < CANDIDATE_WORDS && mask.is_power_of_two()));
    }

    #[test]
    fn users_are_told_apart_in_the_own_network_namespace_only() {
        let source = Source { cgroup_id: 9, netns_cookie: 1, uid: 1000, padding: 0 };
        assert_eq!(source.party(1), Source { cgroup_id: 0, ..source });
        assert_eq!(source.party(2), Source { cgroup_id: 0, uid: u32::MAX, ..source });
    }
}
