//! Peers that are not who they should be, say what has no meaning, or say nothing: refused and blamed, with clear words.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "wire/raw.rs"]
mod raw;
#[path = "wire/stage.rs"]
mod stage;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use pondhawk::{
    task::TaskId,
    wire::{
        BlameKind, DialError, Identity,
        denials::DeniedPeers,
        frame::{Frame, Pieces, Request, Response},
    },
};
use pondhawk_scheduler::authority::certificate_key;
use raw::{GARBAGE, application_close, closed, connect, control, dialler, encoded, hello, request};
use stage::{Cluster, Peer, Sample, on_a_shard};

const FILE: Sample = Sample::SMALL;
/// quinn's own window of a stream.
const WINDOW: u32 = 1 << 20;
/// More than a certificate's life.
const LONG_AGO: Duration = Duration::from_secs(8 * 24 * 3600);

/// What the peer remembers of the last caller that it refused.
async fn refusal(peer: &Peer) -> String {
    loop {
        if let Some(refusal) = peer.endpoint.refusals().pop() {
            return refusal.why;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn dial(from: &Peer, to: &Peer) -> DialError {
    from.links.link(&to.as_parent()).await.map(|_| ()).unwrap_err()
}

#[test]
fn a_caller_without_a_certificate_is_refused() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start(&cluster, "seed");
        let nobody = dialler(None, cluster.authority.ca(), WINDOW);
        let connection = connect(&nobody, seed.endpoint.local_addr().unwrap(), "seed").await;
        let why = connection.closed().await.to_string();
        assert!(why.contains("no certificates"), "{why}");
        let why = refusal(&seed).await;
        assert!(why.contains("no certificates"), "{why}");
    });
}

#[test]
fn a_caller_of_another_cluster_is_refused_and_both_are_told_why() {
    on_a_shard(async {
        let (cluster, other) = (Cluster::new(), Cluster::new());
        let seed = Peer::start(&cluster, "seed");
        let stranger = Identity { root: cluster.authority.ca().clone(), ..other.identity("leech") };
        let stranger = Peer::start_with(&stranger, "leech", 64, 0);
        let error = dial(&stranger, &seed).await;
        assert!(matches!(error, DialError::RefusedUs { .. }), "{error}");
        assert!(error.to_string().contains("seed"), "{error}");
        let why = refusal(&seed).await;
        assert!(why.contains("UnknownIssuer"), "{why}");
    });
}

#[test]
fn a_parent_of_another_cluster_is_not_trusted() {
    on_a_shard(async {
        let (cluster, other) = (Cluster::new(), Cluster::new());
        let (seed, leech) = (Peer::start(&other, "seed"), Peer::start(&cluster, "leech"));
        let error = dial(&leech, &seed).await;
        assert!(matches!(error, DialError::NotTrusted { .. }), "{error}");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        let why = refusal(&seed).await;
        assert!(why.contains("error 48"), "the alert is unknown_ca: {why}");
        assert!(matches!(dial(&leech, &seed).await, DialError::Backoff { .. }));
    });
}

#[test]
fn an_expired_certificate_is_refused_on_either_side() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let old = cluster.identity_at("old", SystemTime::now() - LONG_AGO);
        let (old, good) = (Peer::start_with(&old, "old", 64, 0), Peer::start(&cluster, "good"));
        let error = dial(&old, &good).await;
        assert!(matches!(error, DialError::RefusedUs { .. }), "{error}");
        assert!(error.to_string().contains("expired"), "{error}");
        let why = refusal(&good).await;
        assert!(why.contains("expired"), "{why}");
        let error = dial(&good, &old).await;
        assert!(matches!(error, DialError::NotTrusted { .. }), "{error}");
        assert!(error.to_string().contains("expired"), "{error}");
    });
}

#[test]
fn a_renewed_certificate_is_used_by_the_next_links() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let old = cluster.identity_at("peer", SystemTime::now() - LONG_AGO);
        let (peer, good) = (Peer::start_with(&old, "peer", 64, 0), Peer::start(&cluster, "good"));
        assert!(matches!(dial(&good, &peer).await, DialError::NotTrusted { .. }));
        peer.endpoint.renew(&cluster.identity("peer")).unwrap();
        assert!(matches!(dial(&good, &peer).await, DialError::Backoff { .. }));
        tokio::time::sleep(Duration::from_millis(300)).await;
        good.link_to(&peer).await;
        peer.link_to(&good).await;
    });
}

#[test]
fn a_peer_under_another_ones_address_is_not_trusted() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        let parent = stage::parent("other", seed.endpoint.local_addr().unwrap());
        let error = leech.links.link(&parent).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, DialError::NotTrusted { .. }), "{error}");
        assert!(error.to_string().contains("other"), "{error}");
    });
}

#[test]
fn the_schedulers_certificate_is_no_peers() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start(&cluster, "seed");
        let (signed, key) = cluster.authority.own(SystemTime::now().into()).unwrap();
        let root = cluster.authority.ca().clone();
        let scheduler = Identity { chain: signed.chain, key, root };
        let endpoint = dialler(Some(&scheduler), &scheduler.root, WINDOW);
        let connection = connect(&endpoint, seed.endpoint.local_addr().unwrap(), "seed").await;
        assert_eq!(closed(&connection).await.1, "your certificate names no peer");
        assert_eq!(refusal(&seed).await, "its certificate names no peer");
    });
}

#[test]
fn a_caller_that_sends_garbage_has_its_link_closed_and_hears_why() {
    let task = TaskId([1; 32]);
    let have = Frame::Have { task, len: 5, pieces: Pieces::All };
    let too_long = Frame::Follow { task, len: u64::MAX };
    let follows: Vec<Frame> = (0..600u16)
        .map(|number| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            Frame::Follow { task: TaskId(id), len: 5 }
        })
        .collect();
    let cases: [(Vec<u8>, u64, &str); 6] = [
        (GARBAGE.to_vec(), 1, "you sent a malformed frame of kind 1"),
        (vec![0xff; 64], 1, "you sent a frame of 4294967295 bytes"),
        (encoded(&[Frame::Unfollow { task }]), 1, "you sent a frame that was not expected"),
        ([hello(), encoded(&[have])].concat(), 1, "you sent a frame that was not expected"),
        ([hello(), encoded(&[too_long])].concat(), 1, "you sent a frame that was not expected"),
        ([hello(), encoded(&follows)].concat(), 5, "you follow too many tasks"),
    ];
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start(&cluster, "seed");
        let evil = dialler(Some(&cluster.identity("evil")), cluster.authority.ca(), WINDOW);
        for (said, code, text) in cases {
            let connection = connect(&evil, seed.endpoint.local_addr().unwrap(), "seed").await;
            let _streams = control(&connection, &said).await;
            assert_eq!(closed(&connection).await, (code, text.to_owned()));
        }
    });
}

#[test]
fn a_garbage_request_closes_the_link() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start(&cluster, "seed");
        let evil = dialler(Some(&cluster.identity("evil")), cluster.authority.ca(), WINDOW);
        for request in [vec![9; 41], vec![1; 7]] {
            let connection = connect(&evil, seed.endpoint.local_addr().unwrap(), "seed").await;
            let _control = control(&connection, &hello()).await;
            let (mut send, _recv) = control(&connection, &request).await;
            send.finish().unwrap();
            assert_eq!(closed(&connection).await, (1, "you sent a malformed head of a piece".to_owned()));
        }
    });
}

#[test]
fn a_parent_that_sends_garbage_frames_is_blamed_and_left_alone() {
    let task = FILE.id();
    let (pieces, wrong_len) = (Pieces::Bits { first: 4, count: 9, bits: vec![1, 0] }, Pieces::All);
    let cases = [
        GARBAGE.to_vec(),
        hello(),
        encoded(&[Frame::Unfollow { task }]),
        encoded(&[Frame::Have { task, len: FILE.len, pieces }]),
        encoded(&[Frame::Have { task, len: 1, pieces: wrong_len }]),
        encoded(&[Frame::HaveDelta { task, ranges: vec![0..1, 3..6] }]),
    ];
    on_a_shard(async {
        let cluster = Cluster::new();
        let leech = Peer::start(&cluster, "leech");
        for (number, said) in cases.into_iter().enumerate() {
            let name = format!("liar-{number}");
            let liar = raw::talker(&cluster.identity(&name), said);
            let parent = stage::parent(&name, liar.local_addr().unwrap());
            let link = leech.links.link(&parent).await.unwrap();
            let mut follow = link.follow(FILE.id(), FILE.layout());
            let error = follow.next().await.unwrap_err();
            let blame = error.blame().unwrap();
            assert_eq!((blame.peer.as_str(), blame.kind), (name.as_str(), BlameKind::Garbage), "case {number}");
            let again = leech.links.link(&parent).await.map(|_| ());
            assert!(matches!(again, Err(DialError::Backoff { .. })), "{again:?}");
        }
    });
}

#[test]
fn a_parent_whose_answers_are_garbage_is_blamed() {
    let short = [Response::Bytes(1 << 20).encode().to_vec(), vec![7; 100]].concat();
    let cases = [vec![9; 5], vec![0], Response::Bytes(5).encode().to_vec(), short];
    on_a_shard(async {
        let cluster = Cluster::new();
        let leech = Peer::start(&cluster, "leech");
        let held = leech.store.create(FILE.meta()).await.unwrap();
        for (number, answer) in cases.into_iter().enumerate() {
            let name = format!("liar-{number}");
            let liar = raw::parent(&cluster.identity(&name), hello(), Some(answer));
            let link = leech.links.link(&stage::parent(&name, liar.local_addr().unwrap())).await.unwrap();
            let error = leech.fetch(&link, &held, 0, FILE.digest(0)).await.unwrap_err();
            assert_eq!(error.blame().unwrap().kind, BlameKind::Garbage, "case {number}");
            assert!(!held.bitmap().get(0) && !link.is_up());
        }
    });
}

#[test]
fn a_parent_that_accepts_and_says_nothing_is_silent() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let leech = Peer::start(&cluster, "leech");
        let held = leech.store.create(FILE.meta()).await.unwrap();
        let mute = raw::parent(&cluster.identity("mute"), Vec::new(), None);
        let slow = raw::parent(&cluster.identity("slow"), hello(), None);
        let to_mute = stage::parent("mute", mute.local_addr().unwrap());
        let to_slow = stage::parent("slow", slow.local_addr().unwrap());
        let link = leech.links.link(&to_slow).await.unwrap();
        let (dialled, fetched) = tokio::join!(leech.links.link(&to_mute), leech.fetch(&link, &held, 0, FILE.digest(0)));
        assert!(matches!(dialled.map(|_| ()), Err(DialError::Silent { .. })));
        let error = fetched.unwrap_err();
        assert_eq!(error.blame().unwrap().kind, BlameKind::Silent);
    });
}

#[test]
fn a_caller_that_takes_nothing_loses_its_piece_and_the_memory_is_free() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let lazy = dialler(Some(&cluster.identity("lazy")), cluster.authority.ca(), 64 << 10);
        let connection = connect(&lazy, seed.endpoint.local_addr().unwrap(), "seed").await;
        let _control = control(&connection, &hello()).await;
        let (_send, mut recv) = request(&connection, FILE.id(), 0).await;
        let uploads = || seed.exchange.uploads.load(Ordering::Relaxed);
        while uploads() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Others are served meanwhile.
        let held: Arc<_> = leech.store.create(FILE.meta()).await.unwrap();
        let link = leech.link_to(&seed).await;
        leech.fetch(&link, &held, 1, FILE.digest(1)).await.unwrap();
        while uploads() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let end = recv.read_to_end(2 << 20).await.unwrap_err();
        assert!(end.to_string().contains("reset"), "{end}");
    });
}

#[test]
fn a_peer_that_is_denied_loses_its_links_and_gets_no_others() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (a, b) = (cluster.identity("a"), cluster.identity("b"));
        let key = bytes::Bytes::copy_from_slice(&certificate_key(&b.chain[0]).unwrap());
        let (a, b) = (Peer::start_with(&a, "a", 64, 0), Peer::start_with(&b, "b", 64, 0));
        let link = a.link_to(&b).await;
        b.exchange.denials.replace(0, DeniedPeers::new(vec!["a".to_owned()], &[]).unwrap());
        while link.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = a.links.link(&b.as_parent()).await.err().unwrap();
        assert!(matches!(refused, DialError::RefusedUs { .. }), "{refused}");
        let denied = b.links.link(&a.as_parent()).await.err().unwrap();
        assert!(matches!(denied, DialError::Denied { .. }), "{denied}");
        // By its key the dialler finds it out once it has seen the certificate.
        b.exchange.denials.replace(0, DeniedPeers::default());
        a.exchange.denials.replace(0, DeniedPeers::new(Vec::new(), &[key]).unwrap());
        let denied = loop {
            match a.links.link(&b.as_parent()).await {
                Err(DialError::Backoff { wait, .. }) => tokio::time::sleep(wait).await,
                ended => break ended.err().unwrap(),
            }
        };
        assert!(matches!(denied, DialError::Denied { .. }), "{denied}");
        a.exchange.denials.replace(0, DeniedPeers::default());
        loop {
            match a.links.link(&b.as_parent()).await {
                Err(DialError::Backoff { wait, .. }) => tokio::time::sleep(wait).await,
                ended => break drop(ended.unwrap()),
            }
        }
    });
}

#[test]
fn a_caller_that_resets_streams_without_end_is_disconnected() {
    /// Ten times what one link may abandon at once.
    const MOST: usize = 50_000;
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let evil = dialler(Some(&cluster.identity("evil")), cluster.authority.ca(), WINDOW);
        let connection = connect(&evil, seed.endpoint.local_addr().unwrap(), "seed").await;
        let _control = control(&connection, &hello()).await;
        for _ in 0..MOST {
            let Ok((mut send, mut recv)) = connection.open_bi().await else { break };
            let _ = send.write_all(&[1]).await;
            let _ = (send.reset(0u8.into()), recv.stop(0u8.into()));
        }
        let expected = (5, "too many of your requests led to nothing".to_owned());
        assert_eq!(connection.close_reason().map(application_close), Some(expected));
        fetch_second_piece(&seed, &leech).await;
    });
}

#[test]
fn a_caller_that_asks_for_what_is_not_there_without_end_is_disconnected() {
    const MOST: usize = 50_000;
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let evil = dialler(Some(&cluster.identity("evil")), cluster.authority.ca(), WINDOW);
        let connection = connect(&evil, seed.endpoint.local_addr().unwrap(), "seed").await;
        let _control = control(&connection, &hello()).await;
        for _ in 0..MOST {
            let Ok((mut send, mut recv)) = connection.open_bi().await else { break };
            let _ = send.write_all(&Request { task: TaskId([9; 32]), piece: 0, from: 0 }.encode()).await;
            let _ = send.finish();
            let _ = recv.read_to_end(64).await;
        }
        let expected = (5, "too many of your requests led to nothing".to_owned());
        assert_eq!(connection.close_reason().map(application_close), Some(expected));
        fetch_second_piece(&seed, &leech).await;
    });
}

#[test]
fn one_peer_with_connections_without_end_leaves_links_for_others() {
    /// More than an endpoint serves at all.
    const MANY: usize = 600;
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let evil = dialler(Some(&cluster.identity("evil")), cluster.authority.ca(), WINDOW);
        let address = seed.endpoint.local_addr().unwrap();
        let mut links = Vec::new();
        for _ in 0..MANY {
            // A refused connection is what the test is about.
            let Ok(connection) = evil.connect(address, "seed.peer.pondhawk.internal").unwrap().await else { break };
            links.push(connection);
        }
        fetch_second_piece(&seed, &leech).await;
        let open = links.iter().filter(|link| link.close_reason().is_none()).count();
        assert!(open <= 64, "{open} links of one peer");
    });
}

#[test]
fn handshakes_that_never_end_leave_room_for_peers() {
    /// More than an endpoint takes at all, so that it would be full without a check of the source address.
    const MANY: usize = 1200;
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let (to_seed, first_packets) = (seed.endpoint.local_addr().unwrap(), raw::first_packets(&cluster, MANY).await);
        let spoofer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for packet in first_packets {
            spoofer.send_to(&packet, to_seed).await.unwrap();
            tokio::task::yield_now().await;
        }
        fetch_second_piece(&seed, &leech).await;
    });
}

/// The honest peer's part: one piece, by a link of its own.
async fn fetch_second_piece(seed: &Peer, leech: &Peer) {
    let held: Arc<_> = leech.store.create(FILE.meta()).await.unwrap();
    let link = leech.link_to(seed).await;
    leech.fetch(&link, &held, 1, FILE.digest(1)).await.unwrap();
    assert!(held.bitmap().get(1));
}
