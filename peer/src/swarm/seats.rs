//! Which of several schedulers a task belongs to [pure].
//!
//! Each task has one home, found by every node for itself: the scheduler that wins by the highest hash of task and name
//! (rendezvous hashing, Thaler and Ravishankar 1998) among those that are there. One that goes away leaves its tasks to the
//! others, evenly, and moves no other task; when it is back it gets the same ones again.

use std::time::Duration;

use tokio::time::Instant;

use crate::task::TaskId;

/// A scheduler without a session for so long is gone, until it is back: longer than its restart takes.
const GRACE: Duration = Duration::from_secs(3);

/// The schedulers of a cluster, as one node sees them.
#[derive(Debug)]
pub(super) struct Seats(Vec<Seat>);

#[derive(Debug)]
struct Seat {
    /// As every node of the cluster has it.
    name: String,
    /// Since when there is no session; none: there is one.
    lost: Option<Instant>,
    /// Whether tasks have their home here.
    live: bool,
}

impl Seats {
    /// All of them are expected to come.
    pub(super) fn new(names: &[String], now: Instant) -> Self {
        let seat = |name: &String| Seat { name: name.clone(), lost: Some(now), live: true };
        Self(names.iter().map(seat).collect())
    }

    /// The home of a task.
    pub(super) fn home(&self, task: &TaskId) -> usize {
        // The usual cluster has one, and every piece that comes asks.
        if self.0.len() == 1 {
            return 0;
        }
        let live = self.0.iter().enumerate().filter(|(_, seat)| seat.live);
        live.max_by_key(|(_, seat)| weight(task, &seat.name)).map_or(0, |(at, _)| at)
    }

    /// A session begins. Whether tasks have another home now.
    pub(super) fn came(&mut self, at: usize) -> bool {
        let Some(seat) = self.0.get_mut(at) else { return false };
        seat.lost = None;
        !std::mem::replace(&mut seat.live, true)
    }

    /// A session ended, or none came about.
    pub(super) fn left(&mut self, at: usize, now: Instant) {
        if let Some(seat) = self.0.get_mut(at) {
            seat.lost.get_or_insert(now);
        }
    }

    /// Takes those out that have been away for long, unless none is there. Whether tasks have another home now.
    pub(super) fn give_up(&mut self, now: Instant) -> bool {
        if self.0.iter().all(|seat| seat.lost.is_some()) {
            return false;
        }
        let gone = |seat: &&mut Seat| seat.live && seat.lost.is_some_and(|since| now >= since + GRACE);
        let gone: Vec<&mut Seat> = self.0.iter_mut().filter(gone).collect();
        let any = !gone.is_empty();
        gone.into_iter().for_each(|seat| seat.live = false);
        any
    }
}

fn weight(task: &TaskId, name: &str) -> [u8; 32] {
    *blake3::Hasher::new().update(&task.0).update(name.as_bytes()).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u16) -> TaskId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        TaskId(id)
    }

    fn homes(seats: &Seats) -> Vec<usize> {
        (0..3_000).map(|n| seats.home(&task(n))).collect()
    }

    #[test]
    fn tasks_are_spread_evenly_and_only_those_of_a_lost_one_move() {
        let start = Instant::now();
        let names = ["a:65100", "b:65100", "c:65100"].map(str::to_owned);
        let mut seats = Seats::new(&names, start);
        (0..3).for_each(|at| assert!(!seats.came(at)));
        let before = homes(&seats);
        for at in 0..3 {
            let share = before.iter().filter(|home| **home == at).count();
            assert!((900..1_100).contains(&share), "{share}");
        }
        seats.left(1, start);
        assert!(!seats.give_up(start + GRACE / 2) && homes(&seats) == before, "it may be back at once");
        assert!(seats.give_up(start + GRACE) && !seats.give_up(start + GRACE * 2));
        let after = homes(&seats);
        assert!(before.iter().zip(&after).all(|(before, after)| *before == 1 && *after != 1 || before == after));
        let inherited = after.iter().zip(&before).filter(|(after, before)| **before == 1 && **after == 0).count();
        assert!((350..650).contains(&inherited), "its tasks are spread as well: {inherited}");
        assert!(seats.came(1) && homes(&seats) == before, "back, it has what it had");
    }

    #[test]
    fn every_node_finds_the_same_home_in_whichever_order_it_names_them() {
        let now = Instant::now();
        let (one, other) = (["a".to_owned(), "b".to_owned()], ["b".to_owned(), "a".to_owned()]);
        let (one, other) = (Seats::new(&one, now), Seats::new(&other, now));
        assert!((0..100).all(|n| one.home(&task(n)) != other.home(&task(n))));
    }

    #[test]
    fn while_none_is_there_nothing_moves() {
        let start = Instant::now();
        let mut seats = Seats::new(&["a", "b"].map(str::to_owned), start);
        let before = homes(&seats);
        assert!(!seats.give_up(start + GRACE * 9) && homes(&seats) == before);
        assert!(!seats.came(0));
        assert!(seats.give_up(start + GRACE * 9), "the other never came");
        assert!(homes(&seats).iter().all(|home| *home == 0));
    }
}
