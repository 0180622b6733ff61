//! Random work, a crash at each point of it, and what the next start finds.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SAMPLES: [Sample; 3] =
    [Sample { number: 1, len: 2 * MIB + 7 }, Sample { number: 2, len: 3 * MIB }, Sample { number: 3, len: 5000 }];
const STEPS: usize = 14;
/// More mutations than `STEPS` steps make.
const MANY: u32 = 10_000;

/// What was reported as held, by task.
type Model = BTreeMap<u8, BTreeSet<u32>>;

/// One random step; `None` once the disk has crashed.
async fn step(store: &Arc<Store>, pool: &Pool, random: &mut Random, model: &mut Model) -> Option<()> {
    let sample = SAMPLES[random.below(3) as usize];
    if random.below(8) == 0 {
        store.remove(&sample.id());
        model.remove(&sample.number);
        return Some(());
    }
    let held = store.create(sample.meta()).await.ok()?;
    let piece = random.below(u64::from(sample.layout().pieces())) as u32;
    sample.add(&held, pool, piece).await.ok()?;
    model.entry(sample.number).or_default().insert(piece);
    Some(())
}

/// Works until the crash, and gives what had been reported by then. Whether it came to the crash.
async fn work(site: &Site, crash_after: u32, seed: u64, power: bool) -> (Model, bool) {
    let (store, disk) = site.open_faulty(Faulty::crashing_after(crash_after, seed));
    let (pool, mut random, mut model) = (pool(), Random(seed), Model::new());
    for _ in 0..STEPS {
        if step(&store, &pool, &mut random, &mut model).await.is_none() {
            assert!(disk.crashed());
            break;
        }
    }
    drop(store);
    if power {
        disk.lose_power();
    }
    (model, disk.crashed())
}

/// What the next start holds; all of it is right.
async fn survivors(site: &Site) -> Model {
    let store = site.open();
    let mut found = Model::new();
    for info in store.list() {
        let sample = SAMPLES.into_iter().find(|sample| sample.id() == info.id).unwrap();
        let Some(held) = store.get(&info.id) else { continue };
        soon(held.checked()).await;
        found.insert(sample.number, sample.right_pieces(&held).into_iter().collect());
    }
    found
}

#[test]
fn a_kill_at_any_operation_loses_no_reported_piece_and_invents_none() {
    on_ring(async {
        for seed in 0..3 {
            for crash_after in 0..MANY {
                let site = Site::new();
                let (reported, crashed) = work(&site, crash_after, seed, false).await;
                let found = survivors(&site).await;
                for (task, pieces) in &reported {
                    let held =
                        found.get(task).unwrap_or_else(|| panic!("seed {seed}, crash {crash_after}: task {task}"));
                    assert!(
                        held.is_superset(pieces),
                        "seed {seed}, crash {crash_after}: {held:?} lacks some of {pieces:?}"
                    );
                }
                if !crashed {
                    assert!(crash_after > 10, "the steps did too little");
                    break;
                }
            }
        }
    });
}

#[test]
fn power_loss_at_any_operation_may_lose_pieces_but_none_that_counts_is_wrong() {
    on_ring(async {
        let mut lost = 0;
        for crash_after in 0..MANY {
            let site = Site::new();
            let (reported, crashed) = work(&site, crash_after, u64::from(crash_after), true).await;
            let found = survivors(&site).await;
            let held = |model: &Model| model.values().map(BTreeSet::len).sum::<usize>();
            lost += held(&reported).saturating_sub(held(&found));
            if !crashed {
                break;
            }
        }
        assert!(lost > 0, "the test's power loss loses nothing");
    });
}
