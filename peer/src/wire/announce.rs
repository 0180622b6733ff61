//! Tells a peer which pieces of a task are here, as they come.

use std::{ops::Range, rc::Rc, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Library,
    frame::{Frame, MAX_RANGES},
    holdings::{news, snapshot},
    serve::{Followed, Served},
};
use crate::{store::Held, task::TaskId};

/// News of a task are told at most this often: a piece more or less a message.
const TELL_EVERY: Duration = Duration::from_millis(10);
/// How often a task that is not here is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A task that is here is looked at this often even if nothing is said to have changed.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

/// Announces until the peer unfollows or the link ends.
pub(super) async fn announce<L: Library>(link: &Served<L>, task: TaskId, followed: &Rc<Followed>) {
    while !followed.stop.is_set() {
        let held = link.service.find(task).await;
        // Of another length it is not what the peer means by it.
        let Some(held) = held.filter(|held| held.meta.layout == followed.layout && !held.is_removed()) else {
            tokio::select! {
                () = followed.stop.wait() => {}
                () = sleep(LOOK_EVERY) => {}
            }
            continue;
        };
        *followed.held.borrow_mut() = Some(Arc::clone(&held));
        let user = held.user();
        let linked = tell(link, &held, followed).await;
        drop(user);
        *followed.held.borrow_mut() = None;
        if !linked || !(followed.stop.is_set() || link.say(&[Frame::Forget { task }]).await) {
            return;
        }
    }
}

/// Until the task is removed or not followed any more; whether the link still stands.
async fn tell<L: Library>(link: &Served<L>, held: &Held, followed: &Followed) -> bool {
    let task = held.meta.id;
    let mut told = vec![0; held.bitmap().len().div_ceil(64) as usize];
    let mut first = true;
    loop {
        let counted = held.counted();
        if followed.stop.is_set() || held.is_removed() {
            return true;
        }
        let fresh = news(snapshot(held.bitmap()), &mut told);
        if !fresh.is_empty() {
            let frames = match first {
                true => Frame::have(task, followed.layout.len(), held.bitmap().len(), &told),
                false => deltas(task, &fresh),
            };
            first = false;
            if !link.say(&frames).await {
                return false;
            }
            sleep(TELL_EVERY).await;
        }
        tokio::select! {
            () = followed.stop.wait() => {}
            () = counted => {}
            () = sleep(LOOK_ANYWAY) => {}
        }
    }
}

fn deltas(task: TaskId, fresh: &[Range<u32>]) -> Vec<Frame> {
    fresh.chunks(MAX_RANGES).map(|ranges| Frame::HaveDelta { task, ranges: ranges.to_vec() }).collect()
}
