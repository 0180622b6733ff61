//! What the store tells the swarm.

use std::sync::Mutex;

use super::*;
use crate::store::Holding;

const WHOLE: Sample = Sample { number: 1, len: 2 * MIB };
const PART: Sample = Sample { number: 2, len: 5 * MIB };
const NONE: Sample = Sample { number: 3, len: MIB };

/// All of one task, pieces 0, 1 and 3 of another, nothing of a third.
async fn fill(store: &Arc<Store>) {
    let pool = pool();
    WHOLE.add_all(&store.create(WHOLE.meta()).await.unwrap(), &pool).await;
    let part = store.create(PART.meta()).await.unwrap();
    for piece in [3, 0, 1] {
        PART.add(&part, &pool, piece).await.unwrap();
    }
    store.create(NONE.meta()).await.unwrap();
}

fn inventory(store: &Store) -> Vec<Holding> {
    let mut all = store.inventory();
    all.sort_by_key(|holding| holding.task);
    all
}

fn expected() -> [Holding; 2] {
    let part = vec![0..2, 3..4];
    [
        Holding { task: WHOLE.id(), len: WHOLE.len, complete: true, have: Vec::new() },
        Holding { task: PART.id(), len: PART.len, complete: false, have: part },
    ]
}

fn digests(pieces: &[u32]) -> Vec<(u32, [u8; 32])> {
    pieces.iter().map(|&piece| (piece, blake3::hash(&PART.piece(piece)).into())).collect()
}

#[test]
fn an_inventory_names_what_is_held_whether_it_is_open_or_not_and_is_no_use_of_it() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        fill(&store).await;
        assert_eq!(inventory(&store), expected());
        store.close();
        drop(store);
        let store = site.open();
        let before = store.list();
        assert_eq!(inventory(&store), expected());
        assert_eq!(store.digests(&PART.id()).unwrap(), Some((PART.len, digests(&[0, 1, 3]))));
        assert_eq!(store.list(), before);
        let held = store.get(&PART.id()).unwrap();
        PART.add(&held, &pool(), 4).await.unwrap();
        assert_eq!(held.digests().unwrap(), digests(&[0, 1, 3, 4]));
        assert_eq!(store.digests(&TaskId([9; 32])).unwrap(), None);
    });
}

#[test]
fn after_an_unclean_stop_pieces_are_told_once_they_are_checked() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        fill(&store).await;
        drop(store);
        let store = site.open();
        let found = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&found);
        assert!(store.on_found(Box::new(move |task, len, piece| hook.lock().unwrap().push((task, len, piece)))));
        assert_eq!(inventory(&store), []);
        assert_eq!(store.digests(&PART.id()).unwrap(), Some((PART.len, Vec::new())));
        soon(store.get(&PART.id()).unwrap().checked()).await;
        assert_eq!(*found.lock().unwrap(), [0, 1, 3].map(|piece| (PART.id(), PART.len, piece)));
        assert_eq!(inventory(&store), expected()[1..]);
    });
}

#[test]
fn whoever_leaves_the_store_is_told() {
    on_ring(async {
        let site = Site::with_quota(8 * MIB);
        let store = site.open();
        let gone = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&gone);
        assert!(store.on_removed(Box::new(move |task| hook.lock().unwrap().push(task))));
        assert!(!store.on_removed(Box::new(|_| {})), "the first one counts");
        // The last one needs the room of the first.
        for sample in [WHOLE, PART, Sample { number: 4, len: 2 * MIB }] {
            sample.add_all(&store.create(sample.meta()).await.unwrap(), &pool()).await;
        }
        assert_eq!(*gone.lock().unwrap(), [WHOLE.id()]);
        assert!(store.remove(&PART.id()));
        assert_eq!(*gone.lock().unwrap(), [WHOLE.id(), PART.id()]);
    });
}
