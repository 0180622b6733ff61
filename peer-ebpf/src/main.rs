//! The eBPF programs: who is redirected, where it was going, and what DNS says the wanted names are.
//!
//! A connection's way: [`connect`] rewrites the destination and remembers the old one by socket cookie, [`flow`] files
//! it under the connection's addresses once those are known, the node asks for it at accept. [`dns`] teaches [`connect`]
//! which destinations are wanted: it records which socket asks which name server, and reads only the answers to that. Every program lets everything pass: the worst it can do is not to redirect.

#![no_std]
#![no_main]

mod connect;
mod dns;
mod flow;
mod kernel;
mod maps;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockOpsContext},
};
use pondhawk_ebpf::{DNS_PORT, HTTPS_PORT};

/// The return value of every program: go on.
const ALLOW: i32 = 1;

/// cgroup/connect4: before `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
fn pondhawk_connect4(ctx: SockAddrContext) -> i32 {
    let call = kernel::Connect::new(&ctx);
    match call.port() {
        HTTPS_PORT => connect::steer4(&call),
        DNS_PORT => dns::record_query(&call, &call.destination4()),
        _ => {}
    }
    ALLOW
}

/// cgroup/connect6: before `connect` on an IPv6 socket, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
fn pondhawk_connect6(ctx: SockAddrContext) -> i32 {
    let call = kernel::Connect::new(&ctx);
    match call.port() {
        HTTPS_PORT => connect::steer6(&call),
        DNS_PORT => dns::record_query(&call, &call.destination6()),
        _ => {}
    }
    ALLOW
}

/// cgroup/sendmsg4: before an unconnected UDP socket sends to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
fn pondhawk_sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = kernel::Connect::new(&ctx);
    if call.port() == DNS_PORT {
        dns::record_query(&call, &call.destination4());
    }
    ALLOW
}

/// cgroup/sendmsg6: before an unconnected UDP socket sends to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
fn pondhawk_sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = kernel::Connect::new(&ctx);
    if call.port() == DNS_PORT {
        dns::record_query(&call, &call.destination6());
    }
    ALLOW
}

/// sockops: the handshake of a connection is done.
#[sock_ops]
fn pondhawk_established(ctx: SockOpsContext) -> u32 {
    flow::established(&kernel::Established::new(&ctx));
    ALLOW as u32
}

/// cgroup_skb/ingress: every packet that reaches a socket of the cgroup.
#[cgroup_skb(ingress)]
fn pondhawk_ingress(ctx: SkBuffContext) -> i32 {
    dns::overhear(&ctx);
    ALLOW
}

/// The verifier admits no program that could get here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: the section that the kernel reads the licence from; nothing else uses the name.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
