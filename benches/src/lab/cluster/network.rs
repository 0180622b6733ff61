//! One switch, and links with a rate.

use std::{net::Ipv4Addr, sync::Arc};

use crate::lab::{Attachment, LabError, Netns, topology};

/// What a cable carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Bits a second in each direction; none: as fast as the machine.
    pub rate: Option<u64>,
    /// Largest packet in bytes; none: 1500.
    pub mtu: Option<u32>,
}

/// A machine of the cluster. Lives as long as one of its clones.
#[derive(Clone, Debug)]
pub struct Host {
    pub(super) attachment: Arc<Attachment>,
    port: String,
}

/// The switch and all that is attached to it.
#[derive(Debug)]
pub(super) struct Network {
    hosts: Vec<Host>,
    switch: Netns,
}

impl Network {
    pub(super) fn new() -> Result<Self, LabError> {
        Ok(Self { hosts: Vec::new(), switch: topology::switch()? })
    }

    /// A host at 10.77.0.`number`.
    pub(super) fn add(&mut self, name: &str, number: u8, link: Link) -> Result<Host, LabError> {
        let attachment = Arc::new(topology::attach(&self.switch, name, number)?);
        let host = Host { attachment, port: format!("port{number}") };
        self.shape(&host, link)?;
        self.hosts.push(host.clone());
        Ok(host)
    }

    pub(super) fn v4(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, number)
    }

    /// At the switch's end: at the host's, taking the interface down would take its routes away.
    pub(super) fn set_link(&self, host: &Host, up: bool) -> Result<(), LabError> {
        let state = if up { "up" } else { "down" };
        self.switch.ip(&format!("link set {} {state}", host.port)).map(drop)
    }

    fn shape(&self, host: &Host, link: Link) -> Result<(), LabError> {
        let ends = [(host.netns(), "eth0"), (&self.switch, host.port.as_str())];
        for (netns, interface) in ends {
            if let Some(mtu) = link.mtu {
                netns.ip(&format!("link set {interface} mtu {mtu}"))?;
            }
            if let Some(rate) = link.rate {
                netns.shape(interface, rate)?;
            }
        }
        Ok(())
    }
}

impl Host {
    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.attachment.netns
    }

    /// Address on the switch.
    pub fn v4(&self) -> Ipv4Addr {
        self.attachment.v4
    }
}
