//! Tasks that others are to hold.

use super::*;

fn named() -> Option<ContentName> {
    Some(Arc::from(&[1, 2, 3][..]))
}

fn spread(scope: Scope) -> Event {
    Event::Spread { task: TASK, len: LEN, host: "hub".into(), name: named(), scope, pin: false }
}

/// A cluster of a holder of the whole task and five others, of which the last is a seed.
fn cluster() -> (Cluster, Vec<PeerId>) {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..6).map(|n| cluster.connect(PeerInfo { seed: n == 5, ..info(n) })).collect();
    cluster.handle(at(0), peers[0], Event::InventoryStart);
    cluster.handle(at(0), peers[0], Event::Held { task: TASK, len: LEN, complete: true, have: vec![] });
    cluster.handle(at(0), peers[0], Event::InventoryEnd);
    (cluster, peers)
}

fn preheated(all: &[(PeerId, Directive)]) -> Vec<PeerId> {
    let told = all.iter().filter(|(_, directive)| matches!(directive, Directive::Preheat { .. }));
    let mut peers: Vec<_> = told.map(|(peer, _)| *peer).collect();
    peers.sort();
    peers
}

fn last_told(all: &[(PeerId, Directive)], of: PeerId) -> Option<Spreading> {
    let told = all.iter().rev().find_map(|(peer, directive)| match directive {
        Directive::Spreading { spreading, .. } => Some((*peer, *spreading)),
        _ => None,
    });
    told.filter(|(peer, _)| *peer == of).map(|(_, spreading)| spreading)
}

fn has_all() -> Event {
    Event::Progress(Progress { task: TASK, len: LEN, complete: true, ..Progress::default() })
}

#[test]
fn a_spread_is_for_those_that_fit_and_is_over_when_each_has_it_or_will_not() {
    let (mut cluster, peers) = cluster();
    cluster.handle(at(1), peers[0], spread(Scope::default()));
    let told = drain(&mut cluster);
    assert_eq!(preheated(&told), peers[1..]);
    let named = |(_, directive): &(PeerId, Directive)| match directive {
        Directive::Preheat { host, name, len, .. } => Some((host.to_string(), name.clone(), *len)),
        _ => None,
    };
    assert_eq!(told.iter().find_map(named), Some(("hub".to_owned(), self::named(), LEN)));
    assert_eq!(last_told(&told, peers[0]), Some(Spreading { peers: 5, complete: 0, failed: 0 }));
    for peer in &peers[1..5] {
        cluster.handle(at(2), *peer, want(false));
    }
    cluster.handle(at(3), peers[1], has_all());
    cluster.handle(at(3), peers[2], Event::Unwant { task: TASK });
    cluster.tick(at(1_000));
    let all = drain(&mut cluster);
    assert_eq!(last_told(&all, peers[0]), Some(Spreading { peers: 5, complete: 1, failed: 0 }), "some may still begin");
    cluster.tick(at(16_000));
    let all = drain(&mut cluster);
    assert_eq!(last_told(&all, peers[0]), Some(Spreading { peers: 5, complete: 1, failed: 2 }), "two did not");
    for peer in &peers[3..5] {
        cluster.handle(at(16_001), *peer, has_all());
    }
    cluster.tick(at(17_000));
    assert_eq!(last_told(&drain(&mut cluster), peers[0]), Some(Spreading { peers: 5, complete: 3, failed: 2 }));
    cluster.tick(at(18_000));
    assert_eq!((last_told(&drain(&mut cluster), peers[0]), cluster.spread_of(at(18_000), &TASK)), (None, None), "over");
}

#[test]
fn labels_seeds_and_a_count_narrow_it() {
    let (mut cluster, peers) = cluster();
    let mut told = |scope| {
        cluster.handle(at(1), peers[0], spread(scope));
        preheated(&drain(&mut cluster))
    };
    assert_eq!(told(Scope { seeds: true, ..Scope::default() }), peers[5..]);
    let zone = |zone: &str| vec![("zone".to_owned(), zone.to_owned())];
    assert_eq!(told(Scope { labels: zone("z1"), ..Scope::default() }), [peers[1], peers[4]]);
    assert_eq!(told(Scope { labels: zone("nowhere"), ..Scope::default() }), []);
    let three = told(Scope { count: 3, ..Scope::default() });
    assert!(three.len() == 3 && three.contains(&peers[5]), "the seed is among them: {three:?}");
}

#[test]
fn an_operator_can_spread_what_is_known_by_name_and_nothing_else() {
    let (mut cluster, peers) = cluster();
    assert!(!cluster.spread_known(at(1), &TASK, &Scope::default(), false), "nobody said what its name is made of");
    let Event::Want { task, len, host, .. } = want(true) else { unreachable!() };
    let wants = Event::Want { task, len, host, can_fetch: true, connections: 0, wanted: None, name: named() };
    cluster.handle(at(2), peers[1], wants);
    drain(&mut cluster);
    assert!(cluster.spread_known(at(3), &TASK, &Scope::default(), true));
    assert_eq!(preheated(&drain(&mut cluster)), peers, "those that have it hear that they are to keep it");
    assert_eq!(cluster.spread_of(at(4), &TASK), Some(Spreading { peers: 6, complete: 1, failed: 0 }));
    assert!(!cluster.spread_known(at(5), &[9; 32], &Scope::default(), true));
}

#[test]
fn a_seed_is_told_of_its_own_accord_only_what_it_could_verify() {
    let (mut cluster, peers) = cluster();
    cluster.handle(at(1), peers[0], Event::Progress(Progress { task: TASK, gone: true, ..Progress::default() }));
    cluster.handle(at(2), peers[1], want(true));
    assert_eq!(preheated(&drain(&mut cluster)), []);
    let Event::Want { task, len, host, .. } = want(true) else { unreachable!() };
    let wants = Event::Want { task, len, host, can_fetch: true, connections: 0, wanted: None, name: named() };
    cluster.handle(at(3), peers[2], wants);
    assert_eq!(preheated(&drain(&mut cluster)), peers[5..]);
}
