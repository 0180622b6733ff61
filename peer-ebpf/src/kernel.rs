//! The kernel's contexts and helpers behind safe names.
//!
//! Context fields are read and written volatile, one by one: the verifier rewrites each access by its offset and width,
//! so the compiler must not merge them.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock_addr, bpf_sock_ops},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie,
        bpf_ktime_get_ns, bpf_setsockopt,
    },
    programs::{SkBuffContext, SockAddrContext, SockOpsContext},
};
use pondhawk_ebpf::{Address, Source};

const AF_INET: u32 = 2;
/// tcp(7): the level of TCP's options, and how often a SYN is sent again.
const SOL_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
/// One more SYN after the first: `connect` gives up after three seconds instead of two minutes.
const SYN_RETRIES: i32 = 1;

/// One field of a context. The place expression must go through the context pointer that the kernel passed.
macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context which the kernel passed to this program, at its own offset and width.
        unsafe { read_volatile(&raw const $place) }
    };
}

macro_rules! write {
    ($place:expr, $value:expr) => {
        // SAFETY: as for `read`, and the verifier refuses a write to a field that isn't writable.
        unsafe { write_volatile(&raw mut $place, $value) }
    };
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no side effects.
    unsafe { bpf_ktime_get_ns() }
}

/// The number of the socket that a packet arrives at; 0: none.
#[inline(always)]
pub(crate) fn packet_cookie(packet: &SkBuffContext) -> u64 {
    // SAFETY: the context which the kernel passed.
    unsafe { bpf_get_socket_cookie(packet.as_ptr()) }
}

/// A `connect` call under way, or the `sendmsg` call of an unconnected UDP socket.
pub(crate) struct Connect<'a> {
    ctx: &'a SockAddrContext,
    raw: *mut bpf_sock_addr,
}

impl<'a> Connect<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, raw: ctx.sock_addr }
    }

    /// `IPPROTO_*`.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        read!((*self.raw).protocol)
    }

    /// The destination port, host byte order.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        u16::from_be(read!((*self.raw).user_port) as u16)
    }

    /// The destination of a `connect4`.
    #[inline(always)]
    pub(crate) fn destination4(&self) -> Address {
        Address::v4(read!((*self.raw).user_ip4))
    }

    /// The destination of a `connect6`.
    #[inline(always)]
    pub(crate) fn destination6(&self) -> Address {
        Address([
            read!((*self.raw).user_ip6[0]),
            read!((*self.raw).user_ip6[1]),
            read!((*self.raw).user_ip6[2]),
            read!((*self.raw).user_ip6[3]),
        ])
    }

    /// The socket's `SO_MARK`.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        let sock = read!((*self.raw).__bindgen_anon_1.sk);
        read!((*sock).mark)
    }

    /// The interface the socket is bound to (`SO_BINDTODEVICE`); 0: none.
    #[inline(always)]
    pub(crate) fn device(&self) -> u32 {
        let sock = read!((*self.raw).__bindgen_anon_1.sk);
        read!((*sock).bound_dev_if)
    }

    /// The socket's own number, for as long as it lives.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the context which the kernel passed.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// The network namespace of the socket (`SO_NETNS_COOKIE`).
    #[inline(always)]
    pub(crate) fn netns_cookie(&self) -> u64 {
        // SAFETY: the context which the kernel passed.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// Who calls, from the network namespace that [`Connect::netns_cookie`] gave.
    #[inline(always)]
    pub(crate) fn source(&self, netns_cookie: u64) -> Source {
        // SAFETY: no arguments, no side effects.
        let (cgroup_id, uid_gid) = unsafe { (bpf_get_current_cgroup_id(), bpf_get_current_uid_gid()) };
        Source { cgroup_id, netns_cookie, uid: uid_gid as u32, padding: 0 }
    }

    /// Bounds how long the socket waits for the handshake (Linux 5.9): if its packets are dropped on the way to the node, the
    /// client is to try again while it still has patience.
    #[inline(always)]
    pub(crate) fn limit_handshake(&self) {
        let mut retries = SYN_RETRIES;
        // SAFETY: the context which the kernel passed, and an integer of the length given that outlives the call. A failure
        // leaves the socket as patient as it was.
        unsafe {
            let (value, len) = ((&raw mut retries).cast(), size_of::<i32>() as i32);
            bpf_setsockopt(self.ctx.as_ptr(), SOL_TCP, TCP_SYNCNT, value, len);
        }
    }

    /// Sends a `connect4` elsewhere: `address` is v4-mapped.
    #[inline(always)]
    pub(crate) fn rewrite4(&self, address: &Address, port: u16) {
        write!((*self.raw).user_ip4, address.0[3]);
        write!((*self.raw).user_port, u32::from(port.to_be()));
    }

    /// Sends a `connect6` elsewhere.
    #[inline(always)]
    pub(crate) fn rewrite6(&self, address: &Address, port: u16) {
        write!((*self.raw).user_ip6[0], address.0[0]);
        write!((*self.raw).user_ip6[1], address.0[1]);
        write!((*self.raw).user_ip6[2], address.0[2]);
        write!((*self.raw).user_ip6[3], address.0[3]);
        write!((*self.raw).user_port, u32::from(port.to_be()));
    }
}

/// A callback of a TCP socket's life.
pub(crate) struct Established<'a> {
    ctx: &'a SockOpsContext,
    raw: *mut bpf_sock_ops,
}

impl<'a> Established<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a SockOpsContext) -> Self {
        Self { ctx, raw: ctx.ops }
    }

    /// `BPF_SOCK_OPS_*`.
    #[inline(always)]
    pub(crate) fn op(&self) -> u32 {
        read!((*self.raw).op)
    }

    /// Host byte order. The field holds the network-order port in its upper half on little endian.
    #[inline(always)]
    pub(crate) fn remote_port(&self) -> u16 {
        u32::from_be(read!((*self.raw).remote_port)) as u16
    }

    /// Host byte order, as the field is.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> u16 {
        read!((*self.raw).local_port) as u16
    }

    /// (local, remote). An IPv6 socket connected to a v4-mapped address counts as IPv4.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> (Address, Address) {
        let remote = Address([
            read!((*self.raw).remote_ip6[0]),
            read!((*self.raw).remote_ip6[1]),
            read!((*self.raw).remote_ip6[2]),
            read!((*self.raw).remote_ip6[3]),
        ]);
        if read!((*self.raw).family) == AF_INET || remote.is_v4() {
            return (Address::v4(read!((*self.raw).local_ip4)), Address::v4(read!((*self.raw).remote_ip4)));
        }
        let local = Address([
            read!((*self.raw).local_ip6[0]),
            read!((*self.raw).local_ip6[1]),
            read!((*self.raw).local_ip6[2]),
            read!((*self.raw).local_ip6[3]),
        ]);
        (local, remote)
    }

    /// The same number as in [`Connect::cookie`].
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the context which the kernel passed.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }
}
