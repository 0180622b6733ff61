//! Disks that fail, and bytes that changed behind our back.

use std::os::unix::fs::FileExt;

use super::*;
use crate::store::Verdict;

const SAMPLE: Sample = Sample { number: 9, len: 3 * MIB + 1 };
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_write_that_fails_blames_the_disk_and_counts_nothing() {
    on_ring(async {
        let site = Site::new();
        let (store, disk) = site.open_faulty(Faulty::default());
        let (pool, held) = (pool(), store.create(SAMPLE.meta()).await.unwrap());
        disk.fail_writes_with(Some(EIO));
        let error = SAMPLE.add(&held, &pool, 0).await.unwrap_err();
        assert!(error.blames_disk() && !error.is_no_space(), "{error}");
        assert!(held.commit(0, blake3::hash(&SAMPLE.piece(0))).await.unwrap_err().blames_disk());
        disk.fail_writes_with(Some(ENOSPC));
        assert!(SAMPLE.add(&held, &pool, 0).await.unwrap_err().is_no_space());
        assert_eq!((held.bitmap().count(), held.valid_end(0)), (0, 0));
        disk.fail_writes_with(None);
        SAMPLE.add(&held, &pool, 0).await.unwrap();
        assert_eq!(SAMPLE.right_pieces(&held), [0]);
    });
}

#[test]
fn bytes_that_changed_while_the_store_was_not_cleanly_closed_are_noticed_and_forgotten_for_good() {
    on_ring(async {
        let site = Site::new();
        let pool = pool();
        let store = site.open();
        let held = store.create(SAMPLE.named_by_sha256()).await.unwrap();
        SAMPLE.add_all(&held, &pool).await;
        assert_eq!(soon(held.settled()).await, Verdict::Verified);
        held.file().write_all_at(b"!", MIB + 1000).unwrap();
        drop((held, store));

        let store = site.open();
        let held = store.get(&SAMPLE.id()).unwrap();
        soon(held.checked()).await;
        assert_eq!(SAMPLE.right_pieces(&held), [0, 2, 3]);
        assert_eq!((held.verdict(), held.valid_end(0)), (Verdict::Pending, MIB));
        drop(held);
        store.close();
        drop(store);

        let store = site.open();
        let held = store.get(&SAMPLE.id()).unwrap();
        assert_eq!(SAMPLE.right_pieces(&held), [0, 2, 3]);
        SAMPLE.add(&held, &pool, 1).await.unwrap();
        assert_eq!(soon(held.settled()).await, Verdict::Verified);
    });
}

#[test]
fn a_piece_that_cannot_be_read_back_does_not_count() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let held = store.create(SAMPLE.meta()).await.unwrap();
        SAMPLE.add_all(&held, &pool()).await;
        drop((held, store));
        let (store, disk) = site.open_faulty(Faulty::default());
        disk.fail_reads_with(Some(EIO));
        let held = store.get(&SAMPLE.id()).unwrap();
        soon(held.checked()).await;
        assert_eq!(held.bitmap().count(), 0);
    });
}

#[test]
fn a_disk_that_gives_nothing_back_is_not_taken_for_a_lying_origin() {
    on_ring(async {
        let site = Site::new();
        let (store, disk) = site.open_faulty(Faulty::default());
        let held = store.create(SAMPLE.named_by_sha256()).await.unwrap();
        disk.fail_reads_with(Some(EIO));
        SAMPLE.add_all(&held, &pool()).await;
        assert_eq!(soon(held.settled()).await, Verdict::Unreadable);
    });
}

#[test]
fn content_that_is_not_what_the_name_says_is_a_mismatch_even_after_a_restart() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let other = Sample { number: 8, ..SAMPLE };
        let meta = TaskMeta { proof: other.named_by_sha256().proof, ..SAMPLE.meta() };
        let held = store.create(meta).await.unwrap();
        SAMPLE.add_all(&held, &pool()).await;
        assert_eq!(soon(held.settled()).await, Verdict::Mismatch);
        drop(held);
        store.close();
        drop(store);
        let held = site.open().get(&SAMPLE.id()).unwrap();
        assert_ne!(held.verdict(), Verdict::Verified);
    });
}

#[test]
fn a_full_disk_evicts_idle_tasks_and_then_says_that_there_is_no_room() {
    on_ring(async {
        let site = Site::new();
        let (store, disk) = site.open_faulty(Faulty::default());
        let pool = pool();
        for number in [1, 2] {
            let sample = Sample { number, len: MIB };
            sample.add(&store.create(sample.meta()).await.unwrap(), &pool, 0).await.unwrap();
        }
        let third = Sample { number: 3, len: MIB };
        let kept = store.create(third.meta()).await.unwrap();
        disk.fill_disk_for(1);
        third.add(&kept, &pool, 0).await.unwrap();
        assert_eq!((store.usage().evictions, third.right_pieces(&kept).len()), (1, 1));
        assert!(store.get(&TaskId([1; 32])).is_none());
        let fourth = store.create(SAMPLE.meta()).await.unwrap();
        disk.fill_disk_for(5);
        let before = store.usage().reserved;
        let error = SAMPLE.add(&fourth, &pool, 0).await.unwrap_err();
        assert!(error.is_no_space() && !error.blames_disk(), "{error}");
        assert!(!kept.is_removed());
        assert!(store.usage().reserved < before, "the second task went");
        disk.fill_disk_for(5);
        let error = store.create(Sample { number: 5, len: MIB }.meta()).await.unwrap_err();
        assert!(error.is_no_space(), "{error}");
        disk.fill_disk_for(0);
        SAMPLE.add_all(&fourth, &pool).await;
        assert_eq!(store.create(SAMPLE.meta()).await.unwrap().meta, SAMPLE.meta());
    });
}
