//! Quota, eviction, and the directory's order.

use std::fs;

use super::*;
use crate::store::{layout, shelf};

fn sample(number: u8) -> Sample {
    Sample { number, len: MIB }
}

/// Makes the task and receives all of it: room is taken, and others evicted, by bytes that are there.
async fn fill(store: &Arc<Store>, meta: TaskMeta) -> Result<Arc<Held>, StoreError> {
    let sample = Sample { number: meta.id.0[0], len: meta.layout.len() };
    let held = store.create(meta).await?;
    for piece in 0..sample.layout().pieces() {
        sample.add(&held, &pool(), piece).await?;
    }
    Ok(held)
}

fn ids(store: &Store) -> Vec<u8> {
    let mut all: Vec<_> = store.list().iter().map(|info| info.id.0[0]).collect();
    all.sort_unstable();
    all
}

#[test]
fn the_quota_evicts_the_least_recently_used_task_that_nobody_uses() {
    on_ring(async {
        let cost = layout::cost(sample(1).layout());
        let site = Site::with_quota(3 * cost);
        let store = site.open();
        for number in 1..=3 {
            fill(&store, sample(number).meta()).await.unwrap();
        }
        assert!(store.get(&TaskId([1; 32])).is_some());
        let user = store.get(&TaskId([2; 32])).unwrap().user();
        fill(&store, sample(4).meta()).await.unwrap();
        assert_eq!(ids(&store), [1, 2, 4]);
        fill(&store, sample(5).meta()).await.unwrap();
        assert_eq!(ids(&store), [2, 4, 5]);
        let usage = store.usage();
        assert_eq!((usage.reserved, usage.tasks, usage.evictions), (3 * cost, 3, 2));
        drop(user);
        fill(&store, Sample { number: 6, len: 3 * MIB }.meta()).await.unwrap();
        assert_eq!(ids(&store), [6]);
    });
}

#[test]
fn a_task_that_fits_only_if_one_in_use_went_finds_no_room_and_costs_nobody_anything() {
    on_ring(async {
        let cost = layout::cost(sample(1).layout());
        let site = Site::with_quota(2 * cost);
        let store = site.open();
        fill(&store, sample(1).meta()).await.unwrap();
        let held = fill(&store, sample(2).meta()).await.unwrap();
        assert!(store.create(Sample { number: 3, len: 2 * MIB }.meta()).await.unwrap_err().is_no_space());
        assert!(store.create(Sample { number: 3, len: 1 << 40 }.meta()).await.unwrap_err().is_no_space());
        assert_eq!(ids(&store), [1, 2]);
        assert!(!held.is_removed());
        assert_eq!(fs::read_dir(site.path().join("trash")).unwrap().count(), 0);
    });
}

/// One request of one byte, to a server that claims 60 MiB, emptied a store of verified files.
#[test]
fn a_length_that_is_only_claimed_evicts_nothing_and_bytes_evict_what_they_need() {
    on_ring(async {
        let file = |number| Sample { number, len: 20 * MIB };
        let site = Site::with_quota(3 * layout::cost(file(1).layout()));
        let store = site.open();
        for number in 1..=3 {
            fill(&store, file(number).meta()).await.unwrap();
        }
        let claim = Sample { number: 4, len: 60 * MIB };
        let held = store.create(claim.meta()).await.unwrap();
        assert_eq!((ids(&store), store.usage().evictions), (vec![1, 2, 3, 4], 0));
        assert!(store.usage().reserved <= site.options.quota + shelf::NEW_TABLES);
        let mut buf = pool().lease().await;
        buf[0] = claim.piece(0)[0];
        held.write(0, 0, buf, 1).await.0.unwrap();
        assert_eq!(ids(&store), [2, 3, 4], "a byte needs a block: one task at most");
        let free = site.options.quota - store.usage().reserved;
        for piece in 0..u32::try_from(free / MIB).unwrap() {
            claim.add(&held, &pool(), piece).await.unwrap();
            assert!(store.usage().reserved <= site.options.quota);
        }
        assert_eq!(ids(&store), [2, 3, 4]);
        for piece in 0..claim.layout().pieces() {
            claim.add(&held, &pool(), piece).await.unwrap();
            assert!(store.usage().reserved <= site.options.quota);
        }
        assert_eq!((ids(&store), claim.right_pieces(&held).len()), (vec![4], 60));
    });
}

#[test]
fn claims_without_bytes_make_room_for_each_other_and_cost_no_held_byte() {
    on_ring(async {
        // Half of it held: the rest of the quota, and what tables may take beyond it, is claimed twice over.
        let site = Site::with_quota(4 * MIB);
        let store = site.open();
        fill(&store, sample(1).meta()).await.unwrap();
        fill(&store, sample(2).meta()).await.unwrap();
        let most = (2 * MIB + shelf::NEW_TABLES) / layout::table_cost(sample(3).layout());
        for number in 0..2 * u32::try_from(most).unwrap() {
            let mut id = [7; 32];
            id[1..5].copy_from_slice(&number.to_le_bytes());
            drop(store.create(TaskMeta { id: TaskId(id), ..sample(3).meta() }).await.unwrap());
            assert!(store.usage().reserved <= site.options.quota + shelf::NEW_TABLES);
        }
        assert!(store.get(&TaskId([1; 32])).is_some() && store.get(&TaskId([2; 32])).is_some());
    });
}

#[test]
fn what_a_task_takes_of_the_quota_is_known_again_after_a_restart() {
    on_ring(async {
        let site = Site::new();
        for clean in [true, false] {
            let number = u8::from(clean) + 1;
            let store = site.open();
            let part = store.create(Sample { number, len: 40 * MIB }.meta()).await.unwrap();
            for piece in [0, 1, 2, 30] {
                Sample { number, len: 40 * MIB }.add(&part, &pool(), piece).await.unwrap();
            }
            let reserved = store.usage().reserved;
            assert!((4 * MIB..60 * MIB).contains(&reserved), "{reserved}");
            drop(part);
            if clean {
                store.close();
            }
            drop(store);
            let store = site.open();
            let again = store.usage().reserved;
            assert!(again.abs_diff(reserved) <= 2 * MIB, "{again} after {reserved}");
            let part = store.get(&TaskId([number; 32])).unwrap();
            soon(part.checked()).await;
            let before = store.usage().reserved;
            Sample { number, len: 40 * MIB }.add(&part, &pool(), 1).await.unwrap();
            assert_eq!(store.usage().reserved, before, "what is held takes no room twice");
        }
    });
}

#[test]
fn a_pinned_task_is_kept_over_restarts_until_it_is_unpinned() {
    on_ring(async {
        let cost = layout::cost(sample(1).layout());
        let site = Site::with_quota(2 * cost);
        let store = site.open();
        fill(&store, sample(1).meta()).await.unwrap();
        assert!(store.pin(&TaskId([1; 32]), true).await.unwrap());
        assert!(!store.pin(&TaskId([9; 32]), true).await.unwrap());
        fill(&store, sample(2).meta()).await.unwrap();
        store.close();
        drop(store);
        let store = site.open();
        fill(&store, sample(3).meta()).await.unwrap();
        assert_eq!(ids(&store), [1, 3]);
        assert!(store.create(Sample { number: 4, len: 2 * MIB }.meta()).await.unwrap_err().is_no_space());
        store.pin(&TaskId([1; 32]), false).await.unwrap();
        fill(&store, Sample { number: 4, len: 2 * MIB - 4096 }.meta()).await.unwrap();
        assert_eq!(ids(&store), [4]);
    });
}

#[test]
fn the_order_of_use_survives_a_restart() {
    on_ring(async {
        let cost = layout::cost(sample(1).layout());
        let site = Site::with_quota(3 * cost);
        let store = site.open();
        for number in 1..=3 {
            fill(&store, sample(number).meta()).await.unwrap();
        }
        store.get(&TaskId([1; 32])).unwrap();
        store.close();
        drop(store);
        let store = site.open();
        fill(&store, sample(4).meta()).await.unwrap();
        assert_eq!(ids(&store), [1, 3, 4]);
    });
}

#[test]
fn the_background_brings_a_store_above_its_high_water_mark_below_the_low_one() {
    on_ring(async {
        let cost = layout::cost(sample(1).layout());
        let site = Site::with_quota(40 * cost);
        let store = site.open();
        for number in 1..=37 {
            fill(&store, sample(number).meta()).await.unwrap();
        }
        assert_eq!((store.shelf.excess(), store.usage().evictions), (None, 0));
        for number in 38..=39 {
            fill(&store, sample(number).meta()).await.unwrap();
        }
        let until_trimmed = async {
            while store.usage().evictions == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(until_trimmed).await;
        assert_eq!(store.shelf.excess(), None);
        assert!(store.usage().reserved <= 36 * cost && store.usage().reserved > 34 * cost);
    });
}

#[test]
fn files_without_a_record_and_records_without_files_are_dropped_and_foreign_files_left() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let whole = store.create(sample(1).meta()).await.unwrap();
        sample(1).add_all(&whole, &pool()).await;
        let lost = store.create(sample(2).meta()).await.unwrap();
        sample(2).add_all(&lost, &pool()).await;
        drop((whole, lost));
        store.close();
        drop(store);
        let file =
            |number: u8, kind: &str| site.path().join(format!("tasks/{number:02x}/{}.{kind}", TaskId([number; 32])));
        fs::remove_file(file(2, "data")).unwrap();
        fs::create_dir_all(file(7, "data").parent().unwrap()).unwrap();
        fs::write(file(7, "data"), b"x").unwrap();
        fs::write(site.path().join("tasks/07/notes"), b"x").unwrap();
        fs::write(site.path().join("trash/1.data"), b"x").unwrap();

        let store = site.open();
        assert_eq!(ids(&store), [1]);
        assert!(!file(7, "data").exists() && !file(2, "pieces").exists() && !site.path().join("trash/1.data").exists());
        assert!(site.path().join("tasks/07/notes").exists());
        drop(store);
        assert_eq!(ids(&site.open()), [1]);
    });
}

#[test]
fn a_task_whose_piece_table_is_not_its_own_is_dropped_when_it_is_used() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let held = store.create(sample(1).meta()).await.unwrap();
        sample(1).add_all(&held, &pool()).await;
        drop((held, store));
        fs::write(site.path().join(format!("tasks/01/{}.pieces", TaskId([1; 32]))), [1; 128]).unwrap();
        let store = site.open();
        assert!(store.get(&TaskId([1; 32])).is_none());
        assert_eq!((ids(&store), store.usage().reserved), (vec![], 0));
        assert_eq!(store.create(sample(1).meta()).await.unwrap().bitmap().count(), 0);
    });
}

#[test]
fn a_second_peer_is_told_who_has_the_store() {
    let site = Site::new();
    let store = site.open();
    let error = Store::open(site.path(), site.options).err().unwrap();
    assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    drop(store);
    site.open();
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let site = Site::new();
    site.open().close();
    fs::write(site.path().join("version"), "2\n").unwrap();
    let error = Store::open(site.path(), site.options).err().unwrap();
    assert!(matches!(&error, StoreError::Version { found, known: 1, .. } if found == "2"), "{error}");
    assert_eq!(fs::read_to_string(site.path().join("version")).unwrap(), "2\n");
}

#[test]
fn a_task_goes_after_its_time_unless_somebody_uses_it_or_wants_it_kept() {
    on_ring(async {
        let site = Site::new();
        let store = site.open();
        let past = Keeping { until_unix: Some(1_700_000_001), ..Keeping::default() };
        let of = |number, keeping| TaskMeta { keeping, ..sample(number).meta() };
        let used = store.create(of(1, past)).await.unwrap();
        drop(store.create(of(2, past)).await.unwrap());
        assert!(store.pin(&TaskId([2; 32]), true).await.unwrap());
        drop(store.create(of(3, past)).await.unwrap());
        drop(store.create(of(4, Keeping { until_unix: Some(u64::MAX), ..Keeping::default() })).await.unwrap());
        drop(store.create(of(5, Keeping::default())).await.unwrap());
        until(|| ids(&store) == [1, 2, 4, 5]).await;
        drop(used);
        until(|| ids(&store) == [2, 4, 5]).await;
    });
}

/// The index thread looks every second.
async fn until(done: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 20 s");
}
