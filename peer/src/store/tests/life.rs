//! A task's life: made, filled, followed, verified, removed.

use super::*;
use crate::store::Verdict;

const SAMPLE: Sample = Sample { number: 5, len: 3 * MIB + 100 };

#[test]
fn after_a_clean_stop_all_pieces_and_the_verdict_are_there_at_once() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let held = store.create(SAMPLE.named_by_sha256()).await.unwrap();
        SAMPLE.add_all(&held, &pool()).await;
        assert_eq!(soon(held.settled()).await, Verdict::Verified);
        drop(held);
        store.close();
        drop(store);
        let store = site.open();
        let info = store.list().remove(0);
        assert_eq!((info.held, info.len, info.verdict), (SAMPLE.len, SAMPLE.len, Verdict::Verified));
        let held = store.get(&SAMPLE.id()).unwrap();
        assert!(held.bitmap().is_full());
        assert_eq!((held.verdict(), &held.meta), (Verdict::Verified, &SAMPLE.named_by_sha256()));
        SAMPLE.right_pieces(&held);
    });
}

#[test]
fn a_piece_cannot_be_committed_once_the_store_closes() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let held = store.create(SAMPLE.meta()).await.unwrap();
        store.close();
        assert!(matches!(SAMPLE.add(&held, &pool(), 0).await, Err(StoreError::Closed)));
        assert!(matches!(store.create(Sample { number: 6, len: 1 }.meta()).await, Err(StoreError::Closed)));
        assert_eq!(held.bitmap().count(), 0);
    });
}

#[test]
fn two_that_make_a_task_at_once_get_the_same_one() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let (one, two) = tokio::join!(store.create(SAMPLE.meta()), store.create(SAMPLE.meta()));
        assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
        assert_eq!(store.usage().tasks, 1);
    });
}

#[test]
fn a_held_piece_is_not_overwritten_and_a_bad_place_is_refused() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let (pool, held) = (pool(), store.create(SAMPLE.meta()).await.unwrap());
        SAMPLE.add(&held, &pool, 3).await.unwrap();
        let mut buf = pool.lease().await;
        buf[..100].fill(0xee);
        let (result, buf) = held.write(3, 0, buf, 100).await;
        result.unwrap();
        assert_eq!(SAMPLE.right_pieces(&held), [3]);
        assert!(matches!(
            held.write(3, 1, buf, 100).await.0,
            Err(StoreError::OutOfBounds { piece: 3, at: 1, end: 101 })
        ));
        assert!(matches!(held.commit(4, blake3::hash(b"")).await, Err(StoreError::OutOfBounds { .. })));
    });
}

#[test]
fn bytes_that_may_be_served_are_not_overwritten_by_a_later_writer_of_the_piece() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let (pool, held) = (pool(), store.create(SAMPLE.meta()).await.unwrap());
        let fill = async |byte: u8, at: u32, n: usize| {
            let mut buf = pool.lease().await;
            buf[..n].fill(byte);
            held.write(0, at, buf, n).await.0.unwrap();
        };
        fill(1, 0, 100).await;
        held.advance(0, 100);
        fill(2, 0, 60).await;
        fill(2, 60, 80).await;
        let mut bytes = [0; 140];
        std::os::unix::fs::FileExt::read_exact_at(&**held.file(), &mut bytes, 0).unwrap();
        assert_eq!((&bytes[..100], &bytes[100..]), (&[1; 100][..], &[2; 40][..]));
    });
}

#[test]
fn a_reader_of_a_removed_task_reads_on_while_the_name_is_used_anew() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let (pool, old) = (pool(), store.create(SAMPLE.meta()).await.unwrap());
        SAMPLE.add(&old, &pool, 0).await.unwrap();
        let waiter = old.wait_valid(2 * MIB);
        let remove = async { assert!(store.remove(&SAMPLE.id())) };
        assert_eq!(soon(async { tokio::join!(waiter, remove) }).await.0, 2 * MIB);
        assert!(old.is_removed() && !store.remove(&SAMPLE.id()));
        assert!(matches!(SAMPLE.add(&old, &pool, 1).await, Err(StoreError::Removed)));
        let new = store.create(SAMPLE.meta()).await.unwrap();
        assert_eq!(new.bitmap().count(), 0);
        assert_eq!(SAMPLE.right_pieces(&old), [0]);
    });
}

#[test]
fn a_reader_follows_advances_and_commits_made_on_another_thread() {
    let site = Site::new();
    let store = site.open();
    let held = on_ring(store.create(SAMPLE.meta())).unwrap();
    let writer = {
        let held = Arc::clone(&held);
        std::thread::spawn(move || {
            on_ring(async {
                let pool = pool();
                let mut start = pool.lease().await;
                start[..1000].copy_from_slice(&SAMPLE.piece(0)[..1000]);
                held.write(0, 0, start, 1000).await.0.unwrap();
                held.advance(0, 1000);
                held.advance(0, 500);
                SAMPLE.add_all(&held, &pool).await;
            });
        })
    };
    on_ring(async {
        let mut at = 0;
        while at < SAMPLE.len {
            let end = soon(held.wait_valid(at)).await;
            assert!(end > at);
            at = end;
        }
    });
    writer.join().unwrap();
    assert_eq!(SAMPLE.right_pieces(&held), [0, 1, 2, 3]);
}

#[test]
fn many_tasks_are_verified_at_once_whatever_the_order_of_their_pieces() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let pool = pool();
        let samples = (1..=20).map(|number| Sample { number, len: 2 * MIB + u64::from(number) });
        let mut tasks = Vec::new();
        for sample in samples {
            tasks.push((sample, store.create(sample.named_by_sha256()).await.unwrap()));
        }
        for piece in [2, 0, 1] {
            for (sample, held) in &tasks {
                assert_eq!(held.verdict(), Verdict::Pending);
                sample.add(held, &pool, piece).await.unwrap();
            }
        }
        for (_, held) in &tasks {
            assert_eq!(soon(held.settled()).await, Verdict::Verified);
        }
    });
}

#[test]
fn an_empty_task_is_complete_and_verified_without_a_piece() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let held = store.create(Sample { number: 1, len: 0 }.named_by_sha256()).await.unwrap();
        assert!(held.bitmap().is_full());
        assert_eq!(soon(held.settled()).await, Verdict::Verified);
        assert_eq!(held.valid_end(0), 0);
    });
}

#[test]
fn more_tasks_than_files_stay_open_can_be_used_in_turn() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let pool = pool();
        let samples: Vec<_> = (0..=200).map(|number| Sample { number, len: 10 }).collect();
        for sample in &samples {
            let held = store.create(sample.meta()).await.unwrap();
            sample.add_all(&held, &pool).await;
        }
        for sample in &samples {
            assert_eq!(sample.right_pieces(&store.get(&sample.id()).unwrap()), [0]);
        }
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let ours = open.filter(|fd| {
            std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|path| path.starts_with(site.path()))
        });
        assert!(ours.count() < 2 * 200);
    });
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20))]
    #[test]
    fn the_servable_run_is_what_a_byte_by_byte_model_says(
        steps in proptest::collection::vec((0..4_u32, 0..2_000_000_u32, proptest::bool::ANY), 0..8),
        offset in 0..SAMPLE.len + 10,
    ) {
        on_ring(async {
            let site = Site::new();
            let store = site.open();
            let held = store.create(SAMPLE.meta()).await.unwrap();
            let mut model = vec![false; SAMPLE.len as usize];
            for (piece, valid, commit) in steps {
                let bytes = SAMPLE.layout().bytes_of(piece);
                let end = if commit { bytes.end } else { bytes.end.min(bytes.start + u64::from(valid)) };
                match commit {
                    true => held.commit(piece, blake3::hash(b"")).await.unwrap(),
                    false => held.advance(piece, valid),
                }
                model[bytes.start as usize..end as usize].fill(true);
            }
            let run = model.iter().skip(offset as usize).take_while(|valid| **valid).count();
            assert_eq!(held.valid_end(offset), offset + run as u64);
        });
    }
}
