//! Entries for the fuzz targets in `peer/fuzz` to parsers that are not part of this crate's interface. No other code calls
//! them, and they may change at any time.

use std::net::IpAddr;
use std::time::Duration;

use pondhawk_proto::v1::PeerMessage;
use pondhawk_proto::v1::peer_message::Body;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::cluster::{Cluster, Event, PeerId};
use crate::service::{hear, tls};
use crate::webhook::{Settings, review};

/// The messages of one session, on their way to the cluster.
#[derive(Default)]
pub struct Session {
    inventory: hear::Inventory,
    peer: Option<PeerId>,
}

impl Session {
    /// Takes the next message of a peer at `remote`, as the service does: Hello first. Whether the session goes on.
    pub fn receive(&mut self, cluster: &mut Cluster, now: Duration, remote: IpAddr, message: PeerMessage) -> bool {
        let Some(peer) = self.peer else {
            let Some(Body::Hello(hello)) = message.body else { return false };
            self.peer = hear::hello(hello, remote).ok().map(|info| cluster.connect(info));
            return self.peer.is_some();
        };
        hear::traced(&message);
        match hear::message(message, &mut self.inventory) {
            Ok(hear::Heard::Events(events)) => events.into_iter().for_each(|event| cluster.handle(now, peer, event)),
            Ok(hear::Heard::Renew(_) | hear::Heard::Nothing) => {}
            Err(_) => {
                cluster.handle(now, peer, Event::Gone);
                return false;
            }
        }
        true
    }
}

/// The peer's name and the end of validity that a client's certificate says, once its chain was verified.
pub fn certified(certificate: &[u8]) -> Option<(String, u64)> {
    tls::certified(&CertificateDer::from(certificate))
        .map(|certified| (certified.name.to_string(), certified.not_after))
}

/// The answer to an AdmissionReview; `None` if the document is not one.
pub fn review(document: &Value, settings: &Settings) -> Option<Value> {
    review::answer(document, settings).ok()
}
