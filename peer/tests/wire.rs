//! Two peers over QUIC on this host: pieces move, are verified, and news travel.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![expect(clippy::single_range_in_vec_init, reason = "one run of pieces is what is meant")]

#[path = "wire/stage.rs"]
mod stage;

use std::{cell::Cell, ops::Range, sync::Arc};

use pondhawk::{
    store::Held,
    task::TaskId,
    trace::Context,
    wire::{BlameKind, FetchError, Follow, Have, Stop},
};
use stage::{Cluster, Peer, Sample, on_a_shard};

const FILE: Sample = Sample::SMALL;

/// The next news, which are pieces.
async fn pieces(follow: &mut Follow) -> Vec<Range<u32>> {
    match follow.next().await.unwrap() {
        Have::Pieces(pieces) => pieces,
        other => panic!("{other:?}"),
    }
}

/// The bytes of a held piece, as they lie on disk.
fn on_disk(held: &Held, piece: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let bytes = held.meta.layout.bytes_of(piece);
    let mut out = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
    held.file().read_exact_at(&mut out, bytes.start).unwrap();
    out
}

async fn empty(peer: &Peer) -> Arc<Held> {
    peer.store.create(FILE.meta()).await.unwrap()
}

#[test]
fn a_file_goes_from_one_store_to_another_piece_by_piece() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        let mut follow = link.follow(FILE.id(), FILE.layout());
        assert_eq!(pieces(&mut follow).await, [0..5]);
        for piece in 0..5 {
            let expected = FILE.piece(piece);
            let got = leech.fetch(&link, &held, piece, FILE.digest(piece)).await.unwrap();
            assert_eq!(got, expected.len() as u64);
            assert!(held.bitmap().get(piece) && on_disk(&held, piece) == expected, "piece {piece}");
        }
        assert_eq!(seed.exchange.sent(), FILE.len + 5 * 5, "the file and an answer's head a piece");
        let status = leech.links.snapshot();
        assert_eq!((status.len(), status[0].bytes, status[0].under_way), (1, FILE.len, 0));
    });
}

#[test]
fn a_parent_that_records_nothing_is_told_of_a_trace_and_serves_all_the_same() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        seed.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        let mut follow = link.follow(FILE.id(), FILE.layout());
        let context = Context { trace: [7; 16], span: [8; 8] };
        // The second is of a task that is not followed, as when that has just ended.
        [FILE.id(), TaskId([9; 32])].into_iter().for_each(|task| link.trace(task, context));
        assert_eq!(pieces(&mut follow).await, [0..5]);
        leech.fetch(&link, &held, 1, FILE.digest(1)).await.unwrap();
        assert!(held.bitmap().get(1) && link.is_up());
    });
}

#[test]
fn a_piece_with_another_digest_is_blamed_and_not_held() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (liar, leech) = (Peer::start(&cluster, "liar"), Peer::start(&cluster, "leech"));
        liar.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&liar).await;
        let error = leech.fetch(&link, &held, 1, [9; 32]).await.unwrap_err();
        let blame = error.blame().unwrap();
        assert_eq!((blame.peer.as_str(), blame.kind), ("liar", BlameKind::WrongBytes));
        assert!(!held.bitmap().get(1) && held.valid_end(FILE.layout().bytes_of(1).start) == 1 << 20);
        leech.fetch(&link, &held, 1, FILE.digest(1)).await.unwrap();
        assert!(held.bitmap().get(1));
    });
}

#[test]
fn a_piece_that_is_not_there_is_missing() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        let partial = seed.store.create(FILE.meta()).await.unwrap();
        seed.add(&partial, FILE, 0).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        leech.fetch(&link, &held, 0, FILE.digest(0)).await.unwrap();
        let error = leech.fetch(&link, &held, 1, FILE.digest(1)).await.unwrap_err();
        assert_eq!(error.blame().unwrap().kind, BlameKind::Missing);
        assert!(matches!(leech.fetch(&link, &held, 5, [0; 32]).await, Err(FetchError::NoSuchPiece(5))));
        let other = Sample { number: 8, ..FILE };
        let unknown = leech.store.create(other.meta()).await.unwrap();
        let error = leech.fetch(&link, &unknown, 0, other.digest(0)).await.unwrap_err();
        assert_eq!(error.blame().unwrap().kind, BlameKind::Missing);
    });
}

#[test]
fn news_of_pieces_come_while_the_parent_still_downloads() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let (seed, leech) = (Peer::start(&cluster, "seed"), Peer::start(&cluster, "leech"));
        let link = leech.link_to(&seed).await;
        let mut follow = link.follow(FILE.id(), FILE.layout());
        let mut late = link.follow(TaskId([1; 32]), FILE.layout());
        // Followed before the parent has anything of it.
        let growing = seed.store.create(FILE.meta()).await.unwrap();
        for piece in [3, 0, 1] {
            seed.add(&growing, FILE, piece).await;
            assert_eq!(pieces(&mut follow).await, [piece..piece + 1]);
        }
        seed.add(&growing, FILE, 2).await;
        let mut second = link.follow(FILE.id(), FILE.layout());
        let mut seen = pieces(&mut second).await;
        while seen.last().unwrap().end < 4 {
            seen = pieces(&mut second).await;
        }
        assert!(seed.store.remove(&FILE.id()));
        drop(growing);
        loop {
            match follow.next().await.unwrap() {
                Have::Gone => break,
                Have::Pieces(pieces) => assert_eq!(pieces, [2..3]),
                other => panic!("{other:?}"),
            }
        }
        // It comes back as another one.
        seed.hold(FILE).await;
        let mut had = 0;
        while had < 5 {
            had += pieces(&mut follow).await.into_iter().map(|run| run.len()).sum::<usize>();
        }
        assert_eq!(had, 5);
        let none = tokio::time::timeout(std::time::Duration::from_millis(300), late.next()).await;
        assert!(none.is_err(), "nothing is said of a task that is nowhere");
    });
}

#[test]
fn a_stopped_fetch_ends_and_leaves_the_link_as_it_was() {
    on_a_shard(async {
        let cluster = Cluster::new();
        // Slow enough to be stopped in the middle.
        let seed = Peer::start_with(&cluster.identity("seed"), "seed", 64, 2_000_000);
        let leech = Peer::start(&cluster, "leech");
        seed.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        let (stop, moved) = (Stop::new(), Cell::new(0));
        let fetch = link.fetch_piece(&held, 0, FILE.digest(0), &leech.pool, &stop, &moved);
        let stopper = async {
            while moved.get() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            stop.set();
        };
        let (fetched, ()) = tokio::join!(fetch, stopper);
        assert!(matches!(fetched, Err(FetchError::Stopped)), "{fetched:?}");
        assert!(!held.bitmap().get(0));
        leech.fetch(&link, &held, 4, FILE.digest(4)).await.unwrap();
        let again = link.fetch_piece(&held, 0, FILE.digest(0), &leech.pool, &stop, &moved).await;
        assert!(matches!(again, Err(FetchError::Stopped)));
    });
}

#[test]
fn more_pieces_than_a_node_gives_at_a_time_are_busy() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start_with(&cluster.identity("seed"), "seed", 1, 4_000_000);
        let leech = Peer::start(&cluster, "leech");
        seed.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        let (first, second) =
            tokio::join!(leech.fetch(&link, &held, 0, FILE.digest(0)), leech.fetch(&link, &held, 1, FILE.digest(1)),);
        let busy = [&first, &second].iter().filter(|got| matches!(got, Err(FetchError::Busy(_)))).count();
        assert_eq!(busy, 1, "{first:?} {second:?}");
        assert!(first.is_ok() || second.is_ok());
    });
}

#[test]
fn a_parent_with_a_long_backlog_asks_to_be_left_alone() {
    on_a_shard(async {
        let cluster = Cluster::new();
        let seed = Peer::start_with(&cluster.identity("seed"), "seed", 64, 200_000);
        let leech = Peer::start(&cluster, "leech");
        seed.hold(FILE).await;
        let held = empty(&leech).await;
        let link = leech.link_to(&seed).await;
        let mut follow = link.follow(FILE.id(), FILE.layout());
        assert_eq!(pieces(&mut follow).await, [0..5]);
        let (stop, moved) = (Stop::new(), Cell::new(0));
        let slow = link.fetch_piece(&held, 0, FILE.digest(0), &leech.pool, &stop, &moved);
        let asking = async {
            // The backlog builds up with the first blocks.
            loop {
                match leech.fetch(&link, &held, 4, FILE.digest(4)).await {
                    Err(FetchError::Busy(peer)) => break assert_eq!(peer, seed.id),
                    fetched => drop(fetched.unwrap()),
                }
            }
            let have = follow.next().await.unwrap();
            assert!(matches!(have, Have::Throttled(wait) if wait.as_secs() < 30), "{have:?}");
            stop.set();
        };
        let (fetched, ()) = tokio::join!(slow, asking);
        assert!(matches!(fetched, Err(FetchError::Stopped)), "{fetched:?}");
    });
}
