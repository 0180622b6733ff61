//! Digests, disputes and bans in single stories.

use super::*;

#[test]
fn two_that_agree_outvote_the_liar() {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..3).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(true));
    }
    cluster.handle(at(1), peers[0], digest(4, 66));
    cluster.handle(at(2), peers[1], digest(4, 1));
    let told = drain(&mut cluster);
    assert_eq!(told.iter().filter(|(_, d)| matches!(d, Directive::Dispute { refetch: true, .. })).count(), 2);
    cluster.handle(at(3), peers[1], digest(4, 1));
    assert!(cluster.members.get(0).unwrap().banned_until.is_none());
    cluster.handle(at(4), peers[2], digest(4, 1));
    assert!(cluster.members.get(0).unwrap().banned_until.is_some());
    assert!(cluster.members.get(1).unwrap().banned_until.is_none());
    assert!(cluster.seen_entry(0, 0).unwrap().links.is_empty());
}

#[test]
fn a_peer_that_two_blame_is_nobodys_parent_and_one_accuser_is_not_enough() {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..4).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(false));
    }
    let blame = || Event::Blame { peer: "p0".into(), task: TASK, piece: 0, silent: false };
    cluster.handle(at(1), peers[1], blame());
    cluster.handle(at(1), peers[1], blame());
    assert_eq!(cluster.seen_entry(0, 0).unwrap().links.len(), 2);
    cluster.handle(at(2), peers[2], blame());
    assert!(cluster.seen_entry(0, 0).unwrap().links.is_empty());
}

fn reported(piece: u32, byte: u8) -> Event {
    let digests = vec![DigestRun { first: piece, digests: vec![[byte; 32]] }];
    let added = vec![piece..piece + 1];
    Event::Progress(Progress { task: TASK, len: LEN, added, digests, ..Progress::default() })
}

fn crowd(count: u32) -> (Cluster, Vec<PeerId>) {
    let mut cluster = Cluster::new(Options::default());
    let peers: Vec<_> = (0..count).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(true));
    }
    (cluster, peers)
}

#[test]
fn a_disputed_piece_is_fetched_by_a_third_and_repeating_a_claim_changes_nothing() {
    let (mut cluster, peers) = crowd(2);
    cluster.handle(at(1), peers[0], reported(4, 66));
    cluster.handle(at(2), peers[1], reported(4, 1));
    for again in 0..3 {
        cluster.handle(at(3 + again), peers[1], reported(4, 1));
        cluster.handle(at(3 + again), peers[0], reported(4, 66));
    }
    assert!(cluster.seen_entry(0, 0).unwrap().have.has(4) && cluster.seen_entry(0, 1).unwrap().have.has(4));
    assert!(!cluster.seen(0).unwrap().is_held(4));
    drain(&mut cluster);
    let third = cluster.connect(info(2));
    cluster.handle(at(10), third, want(true));
    cluster.handle(at(11), peers[0], Event::Gone);
    cluster.handle(at(11), peers[1], Event::Gone);
    let mut leased = Vec::new();
    for tick in 1..80 {
        cluster.tick(at(10 + tick * 50));
        for (_, run) in leases(&drain(&mut cluster), third) {
            cluster.handle(at(10 + tick * 50), third, added(vec![run.clone()]));
            leased.push(run);
        }
    }
    assert!(leased.iter().any(|run| run.contains(&4)), "{leased:?}");
    cluster.handle(at(4_100), third, reported(4, 1));
    assert!(cluster.is_banned(at(4_100), 0) && !cluster.is_banned(at(4_100), 1));
    assert!(cluster.seen(0).unwrap().is_held(4));
}

#[test]
fn what_a_liar_was_the_first_to_say_is_believed_no_more_until_one_that_fetched_it_says_so() {
    let (mut cluster, peers) = crowd(4);
    for piece in [7, 8] {
        cluster.handle(at(1), peers[0], reported(piece, 66));
        cluster.handle(at(2), peers[3], added(vec![piece..piece + 1]));
    }
    cluster.handle(at(3), peers[1], reported(7, 1));
    cluster.handle(at(4), peers[2], reported(7, 1));
    assert!(cluster.is_banned(at(4), 0));
    let task = cluster.seen(0).unwrap();
    assert_eq!((task.digests.of(7), task.digests.of(8)), (Some((2, [1; 32])), None));
    assert!(task.is_held(7) && !task.is_held(8));
    assert!(!cluster.seen_entry(0, 3).unwrap().have.has(7), "it was deceived");
    let disputes = drain(&mut cluster).into_iter().filter(|(_, told)| matches!(told, Directive::Dispute { .. }));
    let told: Vec<PeerId> = disputes.map(|(to, _)| to).collect();
    assert_eq!(told, [peers[0], peers[1]], "whoever is told repeats what he claims: only the parties are");
    cluster.handle(at(5), peers[1], reported(8, 1));
    assert_eq!(cluster.seen(0).unwrap().digests.of(8), Some((1, [1; 32])));
    assert!(cluster.seen(0).unwrap().is_held(8));
}

#[test]
fn a_banned_peer_is_not_believed_and_what_it_holds_does_not_count() {
    let (mut cluster, peers) = crowd(3);
    cluster.handle(at(1), peers[0], added(vec![0..100]));
    assert_eq!(cluster.seen(0).unwrap().free.total(), 0);
    for accuser in [1, 2] {
        let blame = Event::Blame { peer: "p0".into(), task: TASK, piece: 0, silent: false };
        cluster.handle(at(2), peers[accuser], blame);
    }
    drain(&mut cluster);
    cluster.handle(at(3), peers[0], reported(5, 66));
    assert_eq!(cluster.seen(0).unwrap().digests.of(5), None);
    assert!(!cluster.seen(0).unwrap().is_held(5));
    assert!(!cluster.leases.is_empty());
}

#[test]
fn those_that_lose_a_banned_link_get_new_ones() {
    let mut cluster = Cluster::new(Options { parents: 4, max_links: 4, ..Options::default() });
    let peers: Vec<_> = (0..8).map(|n| cluster.connect(info(n))).collect();
    for &peer in &peers {
        cluster.handle(at(0), peer, want(false));
    }
    cluster.ban(at(1), 0, at(300_000));
    (1..5).for_each(|second| cluster.tick(at(second * 1_000)));
    for peer in 1..8 {
        let links = &cluster.seen_entry(0, peer).unwrap().links;
        assert!(!links.is_empty() && !links.contains(&0), "{peer}: {links:?}");
    }
    (300..304).for_each(|second| cluster.tick(at(second * 1_000)));
    assert!(!cluster.seen_entry(0, 0).unwrap().links.is_empty(), "the ban is over");
}

#[test]
fn another_holder_is_asked_when_the_first_does_not_answer_with_digests() {
    let mut cluster = Cluster::new(Options::default());
    let holders: Vec<_> = (0..3).map(|n| cluster.connect(info(n))).collect();
    for &holder in &holders {
        cluster.handle(at(0), holder, Event::Held { task: TASK, len: LEN, complete: false, have: vec![0..50] });
    }
    let wants = cluster.connect(info(9));
    cluster.handle(at(1), wants, want(false));
    let mut asked = Vec::new();
    for tick in 1..180 {
        cluster.tick(at(tick * 50));
        asked.extend(drain(&mut cluster).into_iter().filter_map(|(to, directive)| match directive {
            Directive::DigestsWanted { pieces, .. } => Some((to, pieces)),
            _ => None,
        }));
    }
    assert_eq!(asked.len(), 3);
    assert!(asked.windows(2).all(|pair| pair[0].0 != pair[1].0) && asked.iter().all(|(_, runs)| *runs == [0..50]));
}

#[test]
fn digests_take_no_more_memory_than_allowed_and_tasks_that_nobody_wants_go_first() {
    let mut cluster = Cluster::new(Options { digest_memory: 30_000, ..Options::default() });
    let (a, b) = (cluster.connect(info(0)), cluster.connect(info(1)));
    let report = |task: u8| {
        let digests = vec![DigestRun { first: 0, digests: vec![[task; 32]; 100] }];
        Event::Progress(Progress { task: [task; 32], len: LEN, added: vec![0..100], digests, ..Progress::default() })
    };
    let host = String::new();
    let want =
        Event::Want { task: [1; 32], len: LEN, host, can_fetch: false, connections: 0, wanted: None, name: None };
    cluster.handle(at(0), b, want);
    for task in 1..20 {
        cluster.handle(at(1), a, report(task));
        assert!(cluster.digest_bytes <= 30_000);
    }
    assert!(cluster.seen(0).unwrap().digests.of(99).is_some(), "the one that is wanted");
    assert!(cluster.seen(1).unwrap().digests.of(99).is_none());
    assert!(cluster.seen(18).unwrap().digests.of(99).is_some(), "the newest");
}

#[test]
fn digests_of_a_huge_task_are_told_in_parts_and_made_once() {
    let mut cluster = Cluster::new(Options::default());
    let len = 5_000 << 24;
    let a = cluster.connect(info(0));
    let digests = vec![DigestRun { first: 0, digests: vec![[1; 32]; 5_000] }];
    let progress = Progress { task: TASK, len, complete: true, digests, ..Progress::default() };
    cluster.handle(at(0), a, Event::Progress(progress));
    let mut told = Vec::new();
    for n in 1..3 {
        let peer = cluster.connect(info(n));
        let host = String::new();
        let want = Event::Want { task: TASK, len, host, can_fetch: false, connections: 0, wanted: None, name: None };
        cluster.handle(at(1), peer, want);
        told.push(
            drain(&mut cluster)
                .into_iter()
                .filter_map(|(_, directive)| match directive {
                    Directive::Digests { runs, .. } => Some(runs),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        );
    }
    let count = |runs: &Arc<[DigestRun]>| runs.iter().map(|run| run.digests.len()).sum::<usize>();
    assert_eq!(told[0].iter().map(count).collect::<Vec<_>>(), [1_024, 1_024, 1_024, 1_024, 904]);
    assert!(told[0].iter().zip(&told[1]).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn a_peer_that_died_and_came_back_is_not_banned_for_its_silence_but_one_that_stays_silent_is() {
    let (mut cluster, peers) = crowd(8);
    let silent = || Event::Blame { peer: "p0".into(), task: TASK, piece: 0, silent: true };
    cluster.handle(at(20_000), peers[0], Event::Gone);
    let again = cluster.connect(info(0));
    cluster.handle(at(22_000), again, Event::InventoryStart);
    cluster.handle(at(22_000), again, Event::InventoryEnd);
    cluster.handle(at(22_000), again, want(true));
    peers[1..6].iter().for_each(|&peer| cluster.handle(at(25_000), peer, silent()));
    assert!(!cluster.is_banned(at(25_000), 0));
    peers[1..6].iter().for_each(|&peer| cluster.handle(at(40_000), peer, silent()));
    assert!(cluster.is_banned(at(40_000), 0) && !cluster.is_banned(at(70_001), 0));
    assert_eq!(cluster.take_banned(), [peers[0]]);
}

/// All pieces read by peers in turn, and then one finds the whole wrong.
fn doubted(count: u32) -> (Cluster, Vec<PeerId>) {
    let (mut cluster, peers) = crowd(count);
    for piece in 0..100 {
        cluster.handle(at(1), peers[(piece % count) as usize], reported(piece, 1));
    }
    drain(&mut cluster);
    let wrong = Progress { task: TASK, len: LEN, gone: true, wrong: true, ..Progress::default() };
    for &peer in &peers {
        cluster.handle(at(1_000), peer, Event::Progress(wrong.clone()));
        cluster.handle(at(1_000), peer, want(true));
    }
    (cluster, peers)
}

/// Every peer reads what it is leased, from `from` on, says `byte` of a piece, and stands by it; who read each.
fn read_all(cluster: &mut Cluster, peers: &[PeerId], from: u64, byte: impl Fn(PeerId, u32) -> u8) -> Vec<Vec<PeerId>> {
    let mut read = vec![Vec::new(); 100];
    let mut held = vec![vec![false; 100]; peers.len()];
    for tick in 0..400 {
        let now = at(from + tick * 50);
        cluster.tick(now);
        let all = drain(cluster);
        for (peer, directive) in &all {
            if let Directive::Dispute { piece, .. } = directive {
                cluster.handle(now, *peer, reported(*piece, byte(*peer, *piece)));
            }
        }
        for (n, &peer) in peers.iter().enumerate() {
            for piece in leases(&all, peer).into_iter().flat_map(|(_, run)| run) {
                if !std::mem::replace(&mut held[n][piece as usize], true) {
                    read[piece as usize].push(peer);
                    cluster.handle(now, peer, reported(piece, byte(peer, piece)));
                }
            }
        }
    }
    read
}

#[test]
fn a_task_that_turned_out_wrong_is_read_once_more_by_others_than_those_who_reported() {
    let (mut cluster, peers) = doubted(4);
    assert!((0..100).all(|piece| cluster.seen(0).unwrap().digests.of(piece).is_none()));
    let read = read_all(&mut cluster, &peers, 1_000, |_, _| 1);
    for (piece, by) in read.iter().enumerate() {
        assert!(by.len() == 1 && by[0] != peers[piece % 4], "piece {piece}: {by:?}");
        assert!(cluster.seen(0).unwrap().digests.of(piece as u32).is_some());
    }
    assert!(!cluster.seen(0).unwrap().digests.doubts.any());
    assert!(peers.iter().all(|peer| !cluster.is_banned(at(30_000), peer.0)));
}

#[test]
fn the_second_reading_finds_the_liar_whatever_it_says_then() {
    let (mut cluster, peers) = doubted(4);
    let liar = peers[3];
    let read = read_all(&mut cluster, &peers, 1_000, |peer, piece| match (peer == liar, piece % 4 == 3) {
        (true, _) => 66,
        (false, true) => 2,
        (false, false) => 1,
    });
    assert!(cluster.is_banned(at(21_000), liar.0));
    assert!(peers[..3].iter().all(|peer| !cluster.is_banned(at(21_000), peer.0)));
    for piece in 0..100u32 {
        let right = if piece % 4 == 3 { 2 } else { 1 };
        let known = cluster.seen(0).unwrap().digests.of(piece).map(|(_, digest)| digest[0]);
        assert!(known.is_none_or(|known| known == right), "piece {piece}: {known:?}");
    }
    let copies = read.iter().map(Vec::len).sum::<usize>();
    assert!(copies <= 250, "{copies} pieces read of 100");
}

#[test]
fn what_a_peer_repeats_without_a_lease_ends_no_doubt_and_one_alone_reads_its_own() {
    let (mut cluster, peers) = doubted(2);
    let all = drain(&mut cluster);
    let own = |peer: PeerId| leases(&all, peer).into_iter().flat_map(|(_, run)| run).collect::<Vec<_>>();
    let piece = (0..100).find(|piece| !own(peers[0]).contains(piece)).unwrap();
    cluster.handle(at(1_001), peers[0], reported(piece, 1));
    assert!(cluster.seen(0).unwrap().digests.of(piece).is_none());
    cluster.handle(at(1_002), peers[1], Event::Gone);
    cluster.tick(at(20_000));
    let read = read_all(&mut cluster, &peers[..1], 20_000, |_, _| 1);
    assert!(read.iter().zip(0..).all(|(by, n)| n == piece || by.len() == 1), "{read:?}");
}

#[test]
fn a_task_is_doubted_once_in_two_minutes() {
    let (mut cluster, peers) = doubted(2);
    read_all(&mut cluster, &peers, 1_000, |_, _| 1);
    let wrong = || Event::Progress(Progress { task: TASK, len: LEN, gone: true, wrong: true, ..Progress::default() });
    cluster.handle(at(100_000), peers[0], wrong());
    assert!(!cluster.seen(0).unwrap().digests.doubts.any());
    cluster.handle(at(122_000), peers[0], wrong());
    assert!(cluster.seen(0).unwrap().digests.doubts.any());
}

#[test]
fn strangers_of_a_task_cause_no_ban_and_open_no_dispute() {
    let (mut cluster, peers) = crowd(3);
    cluster.handle(at(1), peers[0], reported(4, 1));
    // Two identities that took no part, though they are known and want something else.
    let strangers: Vec<_> = (10..12).map(|n| cluster.connect(info(n))).collect();
    let wrong = || Progress { task: TASK, len: LEN, gone: true, wrong: true, ..Progress::default() };
    for &stranger in &strangers {
        let elsewhere = Event::Want {
            task: [9; 32],
            len: LEN,
            host: "hub".into(),
            can_fetch: true,
            connections: 0,
            wanted: None,
            name: None,
        };
        cluster.handle(at(2), stranger, elsewhere);
        cluster.handle(at(3), stranger, Event::Blame { peer: "p0".into(), task: TASK, piece: 4, silent: false });
        cluster.handle(at(3), stranger, Event::Blame { peer: "p0".into(), task: [9; 32], piece: 4, silent: false });
        cluster.handle(at(3), stranger, Event::Blame { peer: "p0".into(), task: [8; 32], piece: 4, silent: false });
        cluster.handle(at(4), stranger, Event::Progress(wrong()));
        cluster.handle(at(5), stranger, digest(4, 66));
        cluster.handle(at(5), stranger, digest(5, 66));
    }
    assert!(!cluster.is_banned(at(6), 0));
    let task = cluster.seen(0).unwrap();
    assert_eq!((task.digests.of(4), task.digests.of(5)), (Some((0, [1; 32])), None));
    assert!(!task.digests.any_disputed());
    assert_eq!((cluster.counts().bans, cluster.counts().disputes), (0, 0));
}

#[test]
fn accusers_from_one_address_are_one_voice_and_so_are_those_who_agree_on_a_digest() {
    let (mut cluster, peers) = crowd(4);
    for &peer in &peers[1..3] {
        cluster.set_origin(peer, [10, 0, 0, 66].into());
    }
    cluster.set_origin(peers[0], [10, 0, 0, 1].into());
    cluster.set_origin(peers[3], [10, 0, 0, 4].into());
    let blame = || Event::Blame { peer: "p0".into(), task: TASK, piece: 0, silent: false };
    cluster.handle(at(1), peers[0], reported(4, 1));
    cluster.handle(at(2), peers[1], reported(4, 66));
    cluster.handle(at(3), peers[2], reported(4, 66));
    cluster.handle(at(4), peers[1], blame());
    cluster.handle(at(5), peers[2], blame());
    assert!(!cluster.is_banned(at(6), 0));
    assert!(cluster.seen(0).unwrap().digests.any_disputed());
    cluster.handle(at(7), peers[3], reported(4, 1));
    assert!(cluster.is_banned(at(8), 1) && cluster.is_banned(at(8), 2) && !cluster.is_banned(at(8), 0));
}

#[test]
fn an_accusation_that_comes_after_the_end_of_the_link_counts() {
    let (mut cluster, peers) = crowd(4);
    let blame = || Event::Blame { peer: "p0".into(), task: TASK, piece: 0, silent: false };
    for &peer in &peers[..3] {
        let complete = Progress { task: TASK, len: LEN, complete: true, ..Progress::default() };
        cluster.handle(at(1), peer, Event::Progress(complete));
    }
    assert!(!cluster.seen_entry(0, 1).unwrap().links.contains(&0), "two that hold everything are parted");
    cluster.handle(at(2), peers[1], blame());
    cluster.handle(at(2), peers[2], blame());
    assert!(cluster.is_banned(at(3), 0));
}
