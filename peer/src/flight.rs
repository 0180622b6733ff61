//! One question for all who ask the same at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Questions under way, by their keys.
#[derive(Debug)]
pub struct FlightTable<V> {
    flights: Mutex<HashMap<[u8; 32], Arc<Flight<V>>>>,
}

/// Who holds the lock asks; who gets it later finds the outcome. If the asking client leaves, the next one asks.
#[derive(Debug)]
struct Flight<V> {
    outcome: tokio::sync::Mutex<Option<V>>,
}

impl<V> Default for FlightTable<V> {
    fn default() -> Self {
        Self { flights: Mutex::default() }
    }
}

impl<V: Clone> FlightTable<V> {
    /// The outcome of `ask`, or of the one that was under way for this key when this one came.
    pub async fn once(&self, key: [u8; 32], ask: impl Future<Output = V>) -> V {
        let seat = Seat { table: self, key, flight: self.board(key) };
        let mut outcome = seat.flight.outcome.lock().await;
        if let Some(known) = outcome.as_ref() {
            return known.clone();
        }
        let answer = ask.await;
        outcome.insert(answer).clone()
    }

    fn board(&self, key: [u8; 32]) -> Arc<Flight<V>> {
        let fresh = || Arc::new(Flight { outcome: tokio::sync::Mutex::new(None) });
        Arc::clone(self.lock().entry(key).or_insert_with(fresh))
    }
}

impl<V> FlightTable<V> {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Arc<Flight<V>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a flight: the last one to leave removes it, however it left.
struct Seat<'a, V> {
    table: &'a FlightTable<V>,
    key: [u8; 32],
    flight: Arc<Flight<V>>,
}

impl<V> Drop for Seat<'_, V> {
    fn drop(&mut self) {
        let mut flights = self.table.lock();
        let landed = self.flight.outcome.try_lock().is_ok_and(|outcome| outcome.is_some());
        let alone = Arc::strong_count(&self.flight) <= 2;
        let ours = flights.get(&self.key).is_some_and(|other| Arc::ptr_eq(other, &self.flight));
        if ours && (landed || alone) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn those_who_ask_at_the_same_time_share_one_answer_and_later_ones_ask_again() {
        let (table, asked) = (FlightTable::default(), AtomicU32::new(0));
        let ask = || async {
            tokio::task::yield_now().await;
            asked.fetch_add(1, Ordering::Relaxed)
        };
        let (one, two, other) =
            tokio::join!(table.once([1; 32], ask()), table.once([1; 32], ask()), table.once([2; 32], ask()));
        assert!(one == two && one != other, "{one} {two} {other}");
        assert_eq!((table.once([1; 32], ask()).await, table.lock().len()), (2, 0));
    }

    #[tokio::test]
    async fn the_next_one_asks_where_the_asking_one_leaves() {
        let table = FlightTable::default();
        let leaving =
            tokio::time::timeout(std::time::Duration::from_millis(1), table.once([1; 32], std::future::pending()));
        let (left, stayed) = tokio::join!(leaving, table.once([1; 32], async { 'a' }));
        assert!(left.is_err() && stayed == 'a' && table.lock().is_empty());
    }
}
