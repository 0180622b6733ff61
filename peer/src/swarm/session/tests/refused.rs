//! Nodes that are not let in: each side says clearly why.

use pondhawk_proto::v1::{Hello, PeerMessage, peer_message::Body, scheduler_client::SchedulerClient};
use pondhawk_scheduler::authority::Authority;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use time::OffsetDateTime;

use super::*;
use crate::swarm::session::channel::{self, ChannelError, Trust};

/// An identity signed at some time by the authority in a directory.
fn identity(authority: &Authority, name: &str, at: OffsetDateTime) -> Identity {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let signed = authority.sign(name, csr.der(), at).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Identity { root: signed.chain[1].clone(), chain: signed.chain, key }
}

/// Says Hello under some name over a connection of its own; gives the refusal's text, of TLS where it has one.
async fn hello(address: SocketAddr, trust: &Trust, identity: Option<&Identity>, name: &str) -> String {
    let link = soon(channel::connect(&address.to_string(), trust, identity)).await.unwrap();
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        name: name.to_owned(),
        quic_address: "0.0.0.0:65010".to_owned(),
        ..Hello::default()
    };
    let messages = tokio_stream::iter([PeerMessage { body: Some(Body::Hello(hello)) }]);
    let refusal = soon(SchedulerClient::new(link.channel.clone()).session(messages)).await.unwrap_err();
    link.fault().map_or_else(|| refusal.message().to_owned(), |fault| fault.to_string())
}

#[tokio::test]
async fn without_a_good_token_a_node_says_what_it_needs_and_joins_once_it_has_it() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let node = Node::start("node-a", running.address, None);
    node.fails_with(&["no join token", "pondhawk-scheduler token"]).await;
    assert!(node.identity.borrow().is_none());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let node = Node::start("node-a", running.address, Some(path.clone()));
    node.fails_with(&["cannot read the join token", path.to_str().unwrap(), "No such file"]).await;
    write_token(dir.path(), "hello");
    node.fails_with(&["no join token: expected the output of"]).await;
    write_token(dir.path(), &running.scheduler.authority().token(1_000, HOUR).unwrap());
    node.fails_with(&["the join token has expired", "make a new one"]).await;
    running.token(dir.path());
    node.up().await;
    assert_eq!(node.status.snapshot().error(), None);
    let key = std::fs::metadata(node.dir.path().join("swarm/peer.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
}

#[tokio::test]
async fn a_token_made_worthless_is_refused_on_both_sides() {
    let state = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start(tracing::Level::INFO);
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    Authority::rotate_tokens(state.path()).unwrap();
    let node = Node::start("node-a", running.address, Some(token));
    node.fails_with(&["refused to let this node join", "wrong join token"]).await;
    log.shows("join refused").await;
    assert!(log.text().contains("wrong join token"), "{}", log.text());
    assert!(!log.text().contains("ph1."), "a token in the log");
}

#[tokio::test]
async fn a_token_or_certificate_of_another_cluster_is_told_apart() {
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (log, _guard) = Log::start(tracing::Level::INFO);
    let running = Running::new(&state).await;
    let foreign = Authority::open(other.path()).unwrap();
    let now = OffsetDateTime::now_utc();
    let token = foreign.token(u64::try_from(now.unix_timestamp()).unwrap(), HOUR).unwrap();
    let node = Node::start("node-a", running.address, Some(write_token(other.path(), &token)));
    node.fails_with(&["is of another cluster than this node's join token"]).await;

    let stranger = identity(&foreign, "node-a", now);
    let (address, their_own) = (running.address.to_string(), Trust::Root(foreign.ca().clone()));
    let refused = soon(channel::connect(&address, &their_own, Some(&stranger))).await;
    assert!(matches!(refused, Err(ChannelError::Foreign { with: "certificate", .. })));
    // Whoever trusts any scheduler still shows a certificate that this one does not take.
    let root = Trust::Root(running.scheduler.authority().ca().clone());
    let why = hello(running.address, &root, Some(&stranger), "node-a").await;
    assert!(why.contains("refuses this node's certificate (it is of another cluster's CA)"), "{why}");
    log.shows("the peer's certificate is not of this cluster's CA").await;
}

#[tokio::test]
async fn a_node_moves_to_the_cluster_that_its_token_names() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = Running::new(&first).await;
    let token = running.token(first.path());
    let node = Node::start("node-a", running.address, Some(token));
    node.up().await;
    let address = running.address;
    running.stop().await;
    let running = Running::start(second.path(), address).await;
    node.fails_with(&["is of another cluster than this node's certificate"]).await;
    running.token(first.path());
    until(|| (running.scheduler.status().sessions == 1).then_some(())).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let state = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start(tracing::Level::INFO);
    let running = Running::new(&state).await;
    let authority = running.scheduler.authority();
    let root = Trust::Root(authority.ca().clone());
    let old = identity(authority, "node-a", OffsetDateTime::now_utc() - time::Duration::days(8));
    let why = hello(running.address, &root, Some(&old), "node-a").await;
    assert!(why.contains("refuses this node's certificate (it has expired)"), "{why}");
    log.shows("the peer's certificate has expired").await;
}

#[tokio::test]
async fn a_session_needs_a_certificate_and_the_name_in_it() {
    let state = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start(tracing::Level::INFO);
    let running = Running::new(&state).await;
    let authority = running.scheduler.authority();
    let root = Trust::Root(authority.ca().clone());
    let why = hello(running.address, &root, None, "node-a").await;
    assert!(why.contains("needs a certificate of this cluster"), "{why}");
    let own = identity(authority, "node-a", OffsetDateTime::now_utc());
    let why = hello(running.address, &root, Some(&own), "node-b").await;
    assert!(why.contains(r#"the certificate is of peer "node-a", not of "node-b""#), "{why}");
    log.shows("not of").await;
    let joining = join_as(running.address, &root, &own, "node-b").await;
    assert!(joining.contains(r#"the certificate is of peer "node-a", not of "node-b""#), "{joining}");
}

async fn join_as(address: SocketAddr, trust: &Trust, identity: &Identity, name: &str) -> String {
    let link = soon(channel::connect(&address.to_string(), trust, Some(identity))).await.unwrap();
    let request = pondhawk_proto::v1::JoinRequest {
        protocol_min: 1,
        protocol_max: 1,
        name: name.to_owned(),
        ..Default::default()
    };
    soon(SchedulerClient::new(link.channel.clone()).join(request)).await.unwrap_err().message().to_owned()
}

#[tokio::test]
async fn a_certificate_past_half_its_life_is_renewed_without_a_token() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let first = Node::start("node-a", running.address, Some(token));
    first.up().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("swarm")).unwrap();
    for file in ["peer.key", "peer.pem"] {
        std::fs::copy(first.dir.path().join("swarm").join(file), dir.path().join("swarm").join(file)).unwrap();
    }
    drop(first);
    let pem = dir.path().join("swarm/peer.pem");
    let fresh = std::fs::read(&pem).unwrap();
    let key = KeyPair::from_pem(&std::fs::read_to_string(dir.path().join("swarm/peer.key")).unwrap()).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let ago = OffsetDateTime::now_utc() - time::Duration::days(4);
    let old = running.scheduler.authority().sign("node-a", csr.der(), ago).unwrap();
    std::fs::write(&pem, old.chain.iter().map(crate::swarm::identity::pem).collect::<String>()).unwrap();
    let node = Node::over(dir, "node-a", running.address, None);
    until(|| {
        let identity = node.identity.borrow();
        identity.as_ref().is_some_and(|identity| identity.chain != old.chain).then_some(())
    })
    .await;
    node.up().await;
    let renewed = std::fs::read(&pem).unwrap();
    assert!(renewed != fresh && renewed.len() > 500);
    assert!(node.status.snapshot().certificate_until_unix.unwrap() > old.not_after);
}

#[tokio::test]
async fn a_scheduler_that_is_not_there_is_named() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let (address, token) = (running.address, running.token(state.path()));
    running.stop().await;
    let node = Node::start("node-a", address, Some(token));
    node.fails_with(&["cannot reach the scheduler at", &address.to_string(), "refused", "is it running"]).await;
    assert_eq!(node.exchange.standing(), Standing::Never);
}

/// Says Hello, then `messages`; gives the status that ends the session.
async fn end_of_session(running: &Running, messages: Vec<Body>) -> tonic::Status {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    // A name belongs to one key, and each session here has a key of its own.
    let name = format!("node-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let authority = running.scheduler.authority();
    let own = identity(authority, &name, OffsetDateTime::now_utc());
    let root = Trust::Root(authority.ca().clone());
    let link = soon(channel::connect(&running.address.to_string(), &root, Some(&own))).await.unwrap();
    let hello = Body::Hello(Hello {
        protocol_min: 1,
        protocol_max: 1,
        name,
        quic_address: "0.0.0.0:65010".to_owned(),
        ..Hello::default()
    });
    let (out, queue) = tokio::sync::mpsc::channel(8);
    for body in [hello].into_iter().chain(messages) {
        out.send(PeerMessage { body: Some(body) }).await.unwrap();
    }
    let mut client = SchedulerClient::new(link.channel.clone()).max_encoding_message_size(16 << 20);
    let opened = soon(client.session(tokio_stream::wrappers::ReceiverStream::new(queue))).await.unwrap();
    let mut incoming = opened.into_inner();
    loop {
        match soon(incoming.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("closed without a word"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_peer_that_breaks_a_bound_or_says_nothing_is_told_so() {
    use pondhawk_proto::v1::{Blame, Inventory, LeaseReturn};
    let state = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::start(tracing::Level::INFO);
    let quick = SchedulerOptions { ping: Duration::from_millis(100), ..SchedulerOptions::default() };
    let running = Running::with(state.path(), ([127, 0, 0, 1], 0).into(), quick).await;
    let whole = || Body::Inventory(Inventory { holdings: Vec::new(), last: true });

    let early = end_of_session(&running, vec![Body::LeaseReturn(LeaseReturn::default())]).await;
    assert_eq!(early.code(), tonic::Code::InvalidArgument);
    assert!(early.message().contains("Inventory is expected"), "{early}");
    let wrong = end_of_session(&running, vec![whole(), Body::Blame(Blame::default())]).await;
    assert_eq!((wrong.code(), wrong.message()), (tonic::Code::InvalidArgument, "Blame.peer: no peer's name"));
    let blame = Blame { peer: "x".repeat(5 << 20), ..Blame::default() };
    let long = end_of_session(&running, vec![whole(), Body::Blame(blame)]).await;
    assert_eq!(long.code(), tonic::Code::InvalidArgument);
    assert!(long.message().contains("a message of more than 4194304 bytes"), "{long}");
    let silent = end_of_session(&running, vec![whole()]).await;
    assert_eq!(silent.code(), tonic::Code::DeadlineExceeded);
    log.shows("Blame.peer: no peer's name").await;
}
