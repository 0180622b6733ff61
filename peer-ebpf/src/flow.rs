//! From socket cookie to addresses: the node knows a connection only by the latter.

use pondhawk_ebpf::{Decision, FlowKey};

use crate::{
    kernel::{Established, now},
    maps,
};

const ACTIVE_ESTABLISHED: u32 = 4;

/// Files a redirected connection under its addresses.
///
/// The kernel calls this before the handshake's last packet leaves, so the node cannot accept the connection earlier.
#[inline(always)]
pub(crate) fn established(event: &Established<'_>) {
    if event.op() != ACTIVE_ESTABLISHED {
        return;
    }
    let Some(config) = maps::config() else { return };
    if event.remote_port() != config.port {
        return;
    }
    let cookie = event.cookie();
    // SAFETY: only this socket's own `connect` writes under its cookie, and that is over.
    let Some(original) = (unsafe { maps::PENDING.get(cookie) }) else { return };
    let (client, server) = event.addresses();
    let key = FlowKey { client, server, client_port: event.local_port(), server_port: event.remote_port() };
    let filed = maps::FLOWS.insert(key, original, 0);
    let netns_cookie = original.source.netns_cookie;
    maps::record_handshake(netns_cookie, now(), netns_cookie == config.netns_cookie);
    // An entry left behind is evicted as the least recently used.
    let _ = maps::PENDING.remove(cookie);
    maps::count(if filed.is_ok() { Decision::FlowEstablished } else { Decision::FlowLost });
}
