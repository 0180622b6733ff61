//! The decision about one `connect`.

use pondhawk_ebpf::{Address, Config, Decision, HTTPS_PORT, MODE_DNS, Original};

use crate::{
    kernel::{Connect, now},
    maps,
};

const IPPROTO_TCP: u32 = 6;

/// Decides about an IPv4 `connect` and carries it out.
#[inline(always)]
pub(crate) fn steer4(call: &Connect<'_>) {
    if !is_https(call) {
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

/// Decides about an IPv6 `connect` and carries it out.
#[inline(always)]
pub(crate) fn steer6(call: &Connect<'_>) {
    if !is_https(call) {
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

#[inline(always)]
fn is_https(call: &Connect<'_>) -> bool {
    call.protocol() == IPPROTO_TCP && call.port() == HTTPS_PORT
}

/// Where to send the connection, with its original destination already remembered; or why it goes direct.
///
/// The cheap checks come first, and nothing is remembered before the last one has passed.
#[inline(always)]
fn decide(call: &Connect<'_>, destination: &Address) -> Result<(Address, u16), Decision> {
    let config = maps::config().ok_or(Decision::NotConfigured)?;
    let now = now();
    // A beat from the future (another time namespace) proves nothing either.
    if now.abs_diff(maps::last_beat()) > config.max_silence {
        return Err(Decision::StaleHeartbeat);
    }
    if config.mode == MODE_DNS && !maps::is_learnt(destination, now) {
        return Err(Decision::UnknownDestination);
    }
    if call.mark() == config.mark {
        return Err(Decision::OwnMark);
    }
    if call.device() != 0 {
        return Err(Decision::BoundToDevice);
    }
    let source = call.source();
    let ours = source.netns_cookie == config.netns_cookie;
    if destination.is_link_local() || destination.is_loopback() && !ours {
        return Err(Decision::LocalScope);
    }
    if config.port == HTTPS_PORT && is_node(config, destination) {
        return Err(Decision::LoopGuard);
    }
    if maps::is_bypassed(&source, now) {
        return Err(Decision::Bypassed);
    }
    let target = target(config, destination.is_v4(), ours).ok_or(Decision::NoNodeAddress)?;
    let original = Original { source, address: *destination, port: HTTPS_PORT as u32, padding: 0 };
    maps::PENDING.insert(call.cookie(), original, 0).map_err(|_| Decision::FlowInsertFailed)?;
    Ok((target, config.port))
}

/// Whether the node's listener has this address.
#[inline(always)]
fn is_node(config: &Config, destination: &Address) -> bool {
    destination.is_loopback()
        || destination.same(&config.node_v6)
        || config.node_v4 != 0 && destination.same(&Address::v4(config.node_v4))
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
