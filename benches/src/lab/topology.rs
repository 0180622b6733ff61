//! Hosts on a common switch.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{LabError, Netns, sweep};

/// A small network of its own: a switch, a host `hub` (10.77.0.2, fd77::2), a host `node` (10.77.0.3, fd77::3), and as many pods as
/// wanted (from 10.77.0.10). Nothing of it is in the machine's own namespace, so labs can run side by side.
#[derive(Debug)]
pub struct Lab {
    hub: Attachment,
    node: Attachment,
    switch: Netns,
    next_pod: Cell<u8>,
}

/// A host on the switch, by its interface `eth0`.
#[derive(Debug)]
pub struct Attachment {
    /// Its namespace.
    pub netns: Netns,
    /// Address on the switch.
    pub v4: Ipv4Addr,
    /// Address on the switch.
    pub v6: Ipv6Addr,
}

impl Lab {
    /// Builds the network; needs root. Removes first what killed runs have left.
    pub fn new() -> Result<Self, LabError> {
        sweep_once();
        let switch = switch()?;
        let hub = attach(&switch, "hub", 2)?;
        let node = attach(&switch, "node", 3)?;
        Ok(Self { hub, node, switch, next_pod: Cell::new(10) })
    }

    /// Where the hub and its DNS server are meant to run.
    pub fn hub(&self) -> &Attachment {
        &self.hub
    }

    /// Where the peer is meant to run.
    pub fn node(&self) -> &Attachment {
        &self.node
    }

    /// A further host.
    ///
    /// # Panics
    /// After 245 of them.
    pub fn pod(&self) -> Result<Attachment, LabError> {
        let host = self.next_pod.get();
        self.next_pod.set(host.checked_add(1).expect("a lab has room for 245 pods"));
        attach(&self.switch, "pod", host)
    }
}

impl Attachment {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Removes what killed runs have left, once in the life of this process.
pub(super) fn sweep_once() {
    static SWEEP: std::sync::Once = std::sync::Once::new();
    SWEEP.call_once(|| sweep().iter().for_each(|name| eprintln!("removed {name}, which a killed run had left")));
}

/// A namespace with a bridge `br0`.
pub(super) fn switch() -> Result<Netns, LabError> {
    let switch = Netns::new("switch")?;
    switch.ip("link add br0 type bridge stp_state 0 forward_delay 0")?;
    switch.ip("link set br0 up")?;
    Ok(switch)
}

/// A host at 10.77.0.`host`, by its `eth0` on the switch's port `port{host}`.
pub(super) fn attach(switch: &Netns, name: &str, host: u8) -> Result<Attachment, LabError> {
    let netns = Netns::new(name)?;
    let v4 = Ipv4Addr::new(10, 77, 0, host);
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into());
    netns.ip(&format!("link add eth0 type veth peer name port{host} netns {}", switch.name()))?;
    switch.ip(&format!("link set port{host} master br0"))?;
    switch.ip(&format!("link set port{host} up"))?;
    netns.ip(&format!("addr add {v4}/24 dev eth0"))?;
    // Duplicate address detection would leave the address unusable for a second.
    netns.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
    netns.ip("link set eth0 up")?;
    netns.ip("route add default dev eth0")?;
    Ok(Attachment { netns, v4, v6 })
}
