//! Two nodes and their scheduler, which also stops and comes back.

use super::*;
use crate::{
    metrics::{Metrics, Outcome, Source, Way},
    swarm::exchange::Said,
};

const TASK: TaskId = TaskId([7; 32]);
const OTHER: TaskId = TaskId([8; 32]);

fn links(told: &[Told]) -> Vec<String> {
    let link = |told: &Told| if let Told::Link(parent) = told { Some(parent.peer.to_string()) } else { None };
    told.iter().filter_map(link).collect()
}

fn leased(told: &[Told]) -> u32 {
    let pieces = |told: &Told| match told {
        Told::Lease { pieces, .. } => pieces.end - pieces.start,
        _ => 0,
    };
    told.iter().map(pieces).sum()
}

/// Digests told, by piece.
fn digests(told: &[Told]) -> std::collections::BTreeMap<u32, [u8; 32]> {
    let run = |told: &Told| match told {
        Told::Digests(first, digests) => (*first..).zip(digests.clone()).collect(),
        _ => Vec::new(),
    };
    told.iter().flat_map(run).collect()
}

#[tokio::test]
async fn what_one_node_fetches_under_its_leases_another_is_linked_to_and_can_verify() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let (a, b) = (
        Node::start("node-a", running.address, Some(token.clone())),
        Node::start("node-b", running.address, Some(token)),
    );
    assert_eq!(a.up().await, b.up().await);
    assert_eq!(running.scheduler.authority().ca(), &a.identity.borrow().as_ref().unwrap().root);

    let at_a = a.exchange.join(TASK);
    a.exchange.say(Said::Want(want(TASK, true)));
    told(&at_a, |told| leased(told) == 5).await;
    for piece in 0..5 {
        a.exchange.held(TASK, 5 * MIB, piece, Some(digest(piece)));
    }

    let at_b = b.exchange.join(TASK);
    b.exchange.say(Said::Want(want(TASK, false)));
    let told_b = told(&at_b, |told| links(told) == ["node-a"] && digests(told).len() == 5).await;
    assert!(digests(&told_b).iter().all(|(piece, known)| *known == digest(*piece)));
    let Some(Told::Link(parent)) = told_b.iter().find(|told| matches!(told, Told::Link(_))) else { unreachable!() };
    assert_eq!((parent.address, parent.endpoints), ("127.0.0.1:65010".parse().unwrap(), 2));
    assert_eq!((parent.nearness, parent.seed), (1, false));

    until(|| (running.scheduler.status().sessions == 2).then_some(())).await;
    let snapshot = a.status.snapshot();
    assert!(snapshot.connected && snapshot.error().is_none(), "{snapshot:?}");
}

#[tokio::test]
async fn a_scheduler_hears_what_its_nodes_have_moved_and_where_from() {
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let node = Node::start("node-a", running.address, Some(running.token(state.path())));
    let metrics = Metrics::new();
    node.exchange.count(std::time::Instant::now(), Arc::clone(&metrics));
    node.up().await;
    metrics.received(Source::Origin, 1_000);
    metrics.received(Source::Peers, 3_000);
    metrics.sent(4_000);
    metrics.request(Way::Proxy, Outcome::Hit);
    let moved = || running.scheduler.status().moved;
    until(|| (moved().to_clients == 4_000).then_some(())).await;
    assert_eq!((moved().from_origin, moved().from_peers, moved().requests, moved().hits), (1_000, 3_000, 1, 1));
    metrics.received(Source::Peers, 500);
    until(|| (moved().from_peers == 3_500).then_some(())).await;
}

#[tokio::test]
async fn a_scheduler_that_starts_anew_learns_from_the_nodes_what_they_hold_and_want() {
    let (state, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let filled = node_dir.path().to_owned();
    soon(tokio::task::spawn_blocking(move || {
        fill(&filled, TASK, 5);
        fill(&filled, OTHER, 2);
    }))
    .await
    .unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let a = Node::over(node_dir, "node-a", running.address, Some(token.clone()));
    let b = Node::start("node-b", running.address, Some(token));
    let (first, address) = (a.up().await, running.address);
    b.up().await;
    let at_b = b.exchange.join(OTHER);
    b.exchange.say(Said::Want(want(OTHER, true)));
    told(&at_b, |told| links(told) == ["node-a"] && digests(told).len() == 2 && leased(told) == 3).await;

    running.stop().await;
    until(|| matches!(b.exchange.standing(), Standing::Lost { .. }).then_some(())).await;
    let why = b.status.snapshot().session_error.unwrap();
    assert!(why.contains(&address.to_string()), "{why}");
    let running = Running::start(state.path(), address).await;
    // The wish is told again without anybody saying it, links and digests come again, and leases of the new epoch.
    // Whoever comes back first: leases may be out before it is known that two pieces are held.
    let again = told(&at_b, |told| links(told) == ["node-a"] && digests(told).len() == 2 && leased(told) >= 3).await;
    assert!(again.iter().any(|told| matches!(told, Told::Standing(Standing::Up { epoch }) if *epoch != first)));
    assert_eq!(digests(&again)[&1], digest(1));
    // What nobody wanted before is known as well.
    let whole = b.exchange.join(TASK);
    b.exchange.say(Said::Want(want(TASK, true)));
    let told = told(&whole, |told| links(told) == ["node-a"] && digests(told).len() == 5).await;
    assert_eq!(leased(&told), 0);
    assert_eq!(running.scheduler.status().sessions, 2);
}

#[tokio::test]
async fn a_piece_that_leaves_the_store_is_told_and_a_new_session_replaces_the_first() {
    let (state, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let filled = node_dir.path().to_owned();
    soon(tokio::task::spawn_blocking(move || fill(&filled, TASK, 5))).await.unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let a = Node::over(node_dir, "node-a", running.address, Some(token.clone()));
    a.up().await;
    until(|| (running.scheduler.status().tasks == 1).then_some(())).await;
    assert!(a.store.remove(&TASK));
    until(|| (running.scheduler.status().tasks == 0).then_some(())).await;

    let (log, _guard) = Log::start(tracing::Level::INFO);
    // Another machine with the same name gets nothing, whatever its token; one with a copy of the data directory is the same node.
    let stranger = Node::start("node-a", running.address, Some(token.clone()));
    stranger.fails_with(&["belongs to another key", "swarm.name", "forget node-a"]).await;
    let copy = copy_of_identity(&a);
    let twin = Node::over(copy, "node-a", running.address, Some(token));
    twin.up().await;
    log.shows("a second session replaces the first").await;
    a.fails_with(&["replaced by a newer session", "a name of its own"]).await;
    assert_eq!(running.scheduler.status().peers, 1);
    assert!(stranger.identity.borrow().is_none());
}

/// A data directory with the key and the certificate of another node.
fn copy_of_identity(node: &Node) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("swarm")).unwrap();
    for file in ["peer.key", "peer.pem"] {
        std::fs::copy(node.dir.path().join("swarm").join(file), dir.path().join("swarm").join(file)).unwrap();
    }
    dir
}

#[tokio::test]
async fn a_node_that_is_denied_loses_its_session_and_the_others_are_told() {
    use pondhawk_scheduler::authority::certificate_key;
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let (a, b) = (
        Node::start("node-a", running.address, Some(token.clone())),
        Node::start("node-b", running.address, Some(token)),
    );
    a.up().await;
    b.up().await;
    let key = certificate_key(&a.identity.borrow().as_ref().unwrap().chain[0]).unwrap();
    let id = PeerId::new("node-a").unwrap();
    assert!(!b.exchange.denials.covers(&id, &key));
    let manage = |words: &[&str]| {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(subcommand)]
            command: pondhawk_scheduler::registry::command::RegistryCommand,
        }
        let line = Line::parse_from(std::iter::once(&"test").chain(words));
        line.command.run(state.path(), None).unwrap()
    };
    manage(&["deny", "node-a", "--reason", "stolen"]);
    a.fails_with(&["node-a", "is denied on the scheduler (stolen)"]).await;
    until(|| b.exchange.denials.covers(&id, &[0; 32]).then_some(())).await;
    assert!(b.exchange.denials.covers(&PeerId::new("node-x").unwrap(), &key), "its key under any name");
    assert!(manage(&["denied"]).contains("stolen"));
    manage(&["allow", "node-a"]);
    a.up().await;
    until(|| (!b.exchange.denials.covers(&id, &key)).then_some(())).await;
    // The name of a machine whose key was lost is released, and then another key takes it.
    manage(&["forget", "node-a"]);
    a.fails_with(&["was released"]).await;
    let again = Node::start("node-a", running.address, Some(running.token(state.path())));
    again.up().await;
    a.fails_with(&["belongs to another key"]).await;
}

#[tokio::test]
async fn a_token_for_one_node_lets_no_second_one_in() {
    use pondhawk_scheduler::authority::TokenTerms;
    let state = tempfile::tempdir().unwrap();
    let running = Running::new(&state).await;
    let now = crate::swarm::session::status::unix_now();
    let token = running.scheduler.authority().limited_token(now, HOUR, &TokenTerms::single_use()).unwrap();
    let token = write_token(state.path(), &token);
    let first = Node::start("node-a", running.address, Some(token.clone()));
    first.up().await;
    let second = Node::start("node-b", running.address, Some(token));
    second.fails_with(&["refused to let this node join", "used as often as it may be", "--reusable"]).await;
    assert!(second.identity.borrow().is_none());
}

#[tokio::test]
async fn a_node_stands_by_a_digest_that_another_disputes() {
    let (state, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let filled = node_dir.path().to_owned();
    soon(tokio::task::spawn_blocking(move || fill(&filled, TASK, 5))).await.unwrap();
    let running = Running::new(&state).await;
    let token = running.token(state.path());
    let a = Node::over(node_dir, "node-a", running.address, Some(token.clone()));
    a.up().await;
    let b = Node::start("node-b", running.address, Some(token.clone()));
    b.up().await;
    let at_b = b.exchange.join(TASK);
    b.exchange.say(Said::Want(want(TASK, false)));
    told(&at_b, |told| digests(told).len() == 5).await;
    b.exchange.held(TASK, 5 * MIB, 3, Some([9; 32]));
    told(&at_b, |told| told.contains(&Told::Disputed(3))).await;
    // A third that agrees with the first decides it: the one that stood against both has no session any more.
    let c = Node::start("node-c", running.address, Some(token));
    c.up().await;
    let at_c = c.exchange.join(TASK);
    c.exchange.say(Said::Want(want(TASK, false)));
    c.exchange.held(TASK, 5 * MIB, 3, Some(digest(3)));
    told(&at_c, |told| digests(told).get(&3) == Some(&digest(3))).await;
    told(&at_b, |told| told.iter().any(|told| matches!(told, Told::Standing(Standing::Lost { .. })))).await;
}
