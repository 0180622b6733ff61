//! Messages of peers to the scheduler, as bytes of protobuf: refused or understood, the cluster stays consistent, and what
//! it remembers is bounded by what was sent.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pondhawk_proto::v1::peer_message::Body;
use pondhawk_proto::v1::{Hello, PeerMessage};
use pondhawk_scheduler::cluster::{Cluster, Options};
use pondhawk_scheduler::fuzz::Session;
use prost::Message as _;

/// Messages of one input at most.
const MAX_MESSAGES: usize = 64;
/// Bytes that the cluster may remember whatever a peer says: the fixed parts of a peer and a task.
const FIXED: usize = 64 << 10;
/// Bytes of memory for each byte of a message: a run of two bytes can name pieces of a whole bitmap's word.
const FACTOR: usize = 4096;

/// Runs the target: each message is two bytes of length and its bytes. The first byte says which of two sessions the
/// messages start with; Hello has been sent for both.
pub fn run(bytes: &[u8]) {
    let mut cluster = Cluster::new(Options::default());
    let mut now = Duration::ZERO;
    let remote = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
    let mut sessions = [Some(Session::default()), Some(Session::default())];
    for (n, session) in sessions.iter_mut().enumerate() {
        let hello = PeerMessage { body: Some(Body::Hello(hello(n))) };
        let open = session.as_mut().is_some_and(|session| session.receive(&mut cluster, now, remote, hello));
        assert!(open, "a good Hello is refused");
    }
    let Some((first, mut rest)) = bytes.split_first() else { return };
    for n in 0..MAX_MESSAGES {
        let Some((len, after)) = rest.split_first_chunk::<2>() else { break };
        let (message, after) = after.split_at(usize::from(u16::from_be_bytes(*len)).min(after.len()));
        rest = after;
        now += Duration::from_millis(100);
        let session = &mut sessions[(n + usize::from(*first)) % 2];
        if let (Some(open), Ok(message)) = (session.as_mut(), PeerMessage::decode(message))
            && !open.receive(&mut cluster, now, remote, message)
        {
            *session = None;
        }
        cluster.tick(now);
        while cluster.poll().is_some() {}
    }
    let (_, memory) = cluster.memory();
    assert!(memory <= FIXED + FACTOR * bytes.len(), "{memory} bytes for {} bytes", bytes.len());
}

fn hello(n: usize) -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        name: format!("node-{n}"),
        quic_address: "0.0.0.0:65010".to_owned(),
        ..Hello::default()
    }
}
