//! The decision about one `connect`.

use pondhawk_ebpf::{
    Address, AddressScope, Config, Decision, HEARTBEAT_PAUSED, HTTPS_PORT, MODE_DNS, NamespaceAddress, Original,
};

use crate::{
    kernel::{Connect, now},
    maps,
};

const IPPROTO_TCP: u32 = 6;

/// Decides about an IPv4 `connect` to port 443 and carries it out.
#[inline(always)]
pub(crate) fn steer4(call: &Connect<'_>) {
    if call.protocol() != IPPROTO_TCP {
        return;
    }
    let decision = match decide(call, &call.destination4()) {
        Ok((target, port)) => {
            call.rewrite4(&target, port);
            Decision::RedirectedV4
        }
        Err(reason) => reason,
    };
    maps::count(decision);
}

/// Decides about an IPv6 `connect` to port 443 and carries it out.
#[inline(always)]
pub(crate) fn steer6(call: &Connect<'_>) {
    if call.protocol() != IPPROTO_TCP {
        return;
    }
    let decision = match decide(call, &call.destination6()) {
        Ok((target, port)) => {
            call.rewrite6(&target, port);
            if target.is_v4() { Decision::RedirectedV4 } else { Decision::RedirectedV6 }
        }
        Err(reason) => reason,
    };
    maps::count(decision);
}

/// Where to send the connection, with its original destination already remembered; or why it goes direct.
///
/// The cheap checks come first, and nothing is remembered before the last one has passed. In mode `all` too, another network
/// namespace is redirected only where DNS or the node itself knows the destination: for any other the node could not tell
/// whether the client may reach it, and would have to refuse it.
#[inline(always)]
fn decide(call: &Connect<'_>, destination: &Address) -> Result<(Address, u16), Decision> {
    let config = maps::config().ok_or(Decision::NotConfigured)?;
    let now = now();
    check_heartbeat(config, now)?;
    let scope = destination.scope();
    if matches!(scope, AddressScope::Local) {
        return Err(Decision::LocalScope);
    }
    if config.mode == MODE_DNS && !maps::is_candidate(destination) {
        return Err(Decision::UnknownDestination);
    }
    let netns_cookie = call.netns_cookie();
    let ours = netns_cookie == config.netns_cookie;
    let known = maps::is_known(destination, now);
    let wanted = known
        || ours && config.mode != MODE_DNS
        || maps::is_overheard(&NamespaceAddress { netns_cookie, address: *destination }, now);
    if !wanted {
        return Err(Decision::UnknownDestination);
    }
    if call.mark() == config.mark {
        return Err(Decision::OwnMark);
    }
    if call.device() != 0 {
        return Err(Decision::BoundToDevice);
    }
    // Private networks are reached by other routes and rules from another namespace, so there an answer is not enough.
    if matches!(scope, AddressScope::Private) && (config.allow_private == 0 || !ours && !known) {
        return Err(Decision::PrivateScope);
    }
    if is_node(config, destination) {
        return Err(Decision::LoopGuard);
    }
    let source = call.source(netns_cookie);
    if maps::is_bypassed(&source, now) || maps::is_bypassed(&source.party(config.netns_cookie), now) {
        return Err(Decision::Bypassed);
    }
    let target = target(config, destination.is_v4(), ours).ok_or(Decision::NoNodeAddress)?;
    maps::admit(netns_cookie, now)?;
    let original = Original { source, address: *destination, port: HTTPS_PORT as u32, padding: 0 };
    maps::PENDING.insert(call.cookie(), original, 0).map_err(|_| Decision::FlowInsertFailed)?;
    if !ours {
        call.limit_handshake();
    }
    Ok((target, config.port))
}

/// Whether the node takes connections now.
#[inline(always)]
fn check_heartbeat(config: &Config, now: u64) -> Result<(), Decision> {
    let beat = maps::last_beat();
    if beat == HEARTBEAT_PAUSED {
        return Err(Decision::Paused);
    }
    // A beat from the future (another time namespace) proves nothing either.
    if now.abs_diff(beat) > config.max_silence { Err(Decision::StaleHeartbeat) } else { Ok(()) }
}

/// Whether the node itself has this address.
#[inline(always)]
fn is_node(config: &Config, destination: &Address) -> bool {
    destination.same(&config.node_v6) || config.node_v4 != 0 && destination.same(&Address::v4(config.node_v4))
}

/// The listener's address of this family, as seen from the node's own network namespace or from another.
#[inline(always)]
fn target(config: &Config, v4: bool, ours: bool) -> Option<Address> {
    match (v4, ours) {
        (true, true) => Some(Address::v4(u32::from_ne_bytes([127, 0, 0, 1]))),
        (true, false) => (config.node_v4 != 0).then_some(Address::v4(config.node_v4)),
        (false, true) => (config.loopback_v6 != 0).then_some(Address([0, 0, 0, 1_u32.to_be()])),
        (false, false) => (!config.node_v6.same(&Address::NONE)).then_some(config.node_v6),
    }
}
