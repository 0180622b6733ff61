//! Files that the node fetches into its store before anybody reads them.
//!
//! They go the way of a client's request, consent of the origin included, but for a reader: the admin port queues them, and a
//! few workers on each shard bring them. What a URL or a header holds of secrets stays in memory, and only until it is used.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    admin::{Preheat, PreheatCounts},
    fetch::{self, Found, Source, Terms},
    http::head::{HeadLimits, Parsed, RequestHead, parse},
    limits,
    reply::BodyError,
    shard::Shard,
    store::{Held, Verdict},
    swarm::OriginRequest,
    task::TaskId,
};

/// What is to be brought, what is under way, and what became of the last ones.
#[derive(Default)]
pub struct Preheats {
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    jobs: BTreeMap<u64, Job>,
    waiting: VecDeque<u64>,
    /// Over, the oldest first.
    over: VecDeque<u64>,
    last: u64,
}

struct Job {
    label: String,
    pin: bool,
    stand: Stand,
}

enum Stand {
    Waiting(Box<Wanted>),
    Running(Option<Arc<Held>>),
    Done(TaskId, u64),
    Failed(String),
}

/// What is to be asked for, and on which terms.
struct Wanted {
    request: OriginRequest,
    terms: Terms,
}

impl Preheats {
    /// Queues a request; its number. `None`: [`limits::PREHEATS`] wait already.
    pub fn offer(&self, label: String, request: OriginRequest, terms: Terms, pin: bool) -> Option<u64> {
        let mut inner = self.lock();
        if inner.waiting.len() >= limits::PREHEATS {
            return None;
        }
        inner.last += 1;
        let id = inner.last;
        inner.jobs.insert(id, Job { label, pin, stand: Stand::Waiting(Box::new(Wanted { request, terms })) });
        inner.waiting.push_back(id);
        drop(inner);
        self.wake.notify_one();
        Some(id)
    }

    /// All that is known, by number.
    pub fn list(&self) -> Vec<Preheat> {
        self.lock().jobs.iter().map(|(id, job)| job.report(*id)).collect()
    }

    /// How many stand how.
    pub fn counts(&self) -> PreheatCounts {
        let mut counts = PreheatCounts::default();
        for job in self.lock().jobs.values() {
            let count = match job.stand {
                Stand::Waiting(_) => &mut counts.waiting,
                Stand::Running(_) => &mut counts.running,
                Stand::Done(..) => &mut counts.done,
                Stand::Failed(_) => &mut counts.failed,
            };
            *count += 1;
        }
        counts
    }

    /// The next request, which counts as running from now on.
    fn take(&self) -> Option<(u64, Box<Wanted>)> {
        let mut inner = self.lock();
        let id = inner.waiting.pop_front()?;
        let job = inner.jobs.get_mut(&id)?;
        match std::mem::replace(&mut job.stand, Stand::Running(None)) {
            Stand::Waiting(wanted) => Some((id, wanted)),
            other => {
                job.stand = other;
                None
            }
        }
    }

    fn running(&self, id: u64, held: &Arc<Held>) {
        if let Some(job) = self.lock().jobs.get_mut(&id) {
            job.stand = Stand::Running(Some(Arc::clone(held)));
        }
    }

    fn is_to_be_pinned(&self, id: u64) -> bool {
        self.lock().jobs.get(&id).is_some_and(|job| job.pin)
    }

    fn end(&self, id: u64, outcome: Result<(TaskId, u64), String>) {
        let mut inner = self.lock();
        let Some(job) = inner.jobs.get_mut(&id) else { return };
        job.stand = match outcome {
            Ok((task, bytes)) => Stand::Done(task, bytes),
            Err(why) => Stand::Failed(why),
        };
        inner.over.push_back(id);
        if inner.over.len() > limits::PREHEATS_KEPT
            && let Some(oldest) = inner.over.pop_front()
        {
            inner.jobs.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn report(&self, id: u64) -> Preheat {
        let none = Preheat { id, label: self.label.clone(), ..Preheat::default() };
        match &self.stand {
            Stand::Waiting(_) => Preheat { state: "waiting".to_owned(), ..none },
            Stand::Running(held) => {
                let len = |held: &Arc<Held>| held.meta.layout.len();
                Preheat {
                    state: "running".to_owned(),
                    task: held.as_ref().map(|held| held.meta.id.to_string()),
                    bytes: held.as_ref().map_or(0, len),
                    held_bytes: held.as_ref().map_or(0, |held| held.held_bytes()),
                    ..none
                }
            }
            Stand::Done(task, bytes) => Preheat {
                state: "done".to_owned(),
                task: Some(task.to_string()),
                bytes: *bytes,
                held_bytes: *bytes,
                ..none
            },
            Stand::Failed(why) => Preheat { state: "failed".to_owned(), error: Some(why.clone()), ..none },
        }
    }
}

/// Brings what is queued, one at a time, for as long as the node takes new work.
pub async fn work(shard: Rc<Shard>) {
    let node = Arc::clone(&shard.node);
    loop {
        let woken = node.preheats.wake.notified();
        match node.preheats.take() {
            Some((id, wanted)) => tokio::select! {
                outcome = bring(&shard, id, &wanted) => over(&shard, id, outcome).await,
                () = node.draining() => return,
            },
            None => tokio::select! {
                () = woken => {}
                () = node.draining() => return,
            },
        }
    }
}

/// Pins it, if that was asked for, before it is said to be done.
async fn over(shard: &Shard, id: u64, mut outcome: Result<(TaskId, u64), String>) {
    let node = &shard.node;
    if let Ok((task, _)) = &outcome
        && node.preheats.is_to_be_pinned(id)
        && let Err(error) = node.store.pin(task, true).await
    {
        outcome = Err(format!("not pinned: {error}"));
    }
    match &outcome {
        Ok((task, bytes)) => tracing::info!(%task, bytes, "preheated"),
        Err(why) => tracing::warn!(why, "not preheated"),
    }
    node.preheats.end(id, outcome);
}

async fn bring(shard: &Rc<Shard>, id: u64, wanted: &Wanted) -> Result<(TaskId, u64), String> {
    let head = plain_head().ok_or("no request head")?;
    let source = match fetch::find(shard, &wanted.request, &head, &wanted.terms).await {
        Found::Source(source) => source,
        Found::Answer(error) => return Err(error.to_string()),
        Found::Straight(why) => return Err(format!("not for the store: {why}")),
        Found::Refused(why) => return Err(why.to_owned()),
    };
    shard.node.preheats.running(id, &source.held);
    all_of(&source).await?;
    Ok((source.held.meta.id, source.held.meta.layout.len()))
}

/// Waits, as a reader of all of it, until everything is here and verified.
async fn all_of(source: &Source) -> Result<(), String> {
    let held = &source.held;
    let _reading = source.read(0..held.meta.layout.len());
    let mut deadline = tokio::time::Instant::now() + limits::FETCH_STALL;
    let mut progress = source.progress();
    loop {
        let counted = held.counted();
        match held.verdict() {
            Verdict::Mismatch => return Err(BodyError::Mismatch.to_string()),
            Verdict::Unreadable => return Err(BodyError::Unreadable.to_string()),
            _ if held.is_removed() => return Err("removed meanwhile".to_owned()),
            Verdict::Verified | Verdict::NotNeeded if held.bitmap().is_full() => return Ok(()),
            Verdict::Pending if held.bitmap().is_full() => {
                held.settled().await;
                continue;
            }
            _ => {}
        }
        if let Some(failure) = source.failure() {
            return Err(failure.to_string());
        }
        if source.progress() != progress {
            (progress, deadline) = (source.progress(), tokio::time::Instant::now() + limits::FETCH_STALL);
        }
        tokio::select! {
            () = counted => {}
            () = source.ended() => {}
            () = tokio::time::sleep_until(deadline) => {
                return Err(BodyError::Stalled.to_string());
            }
        }
    }
}

/// A request without a range or a condition.
fn plain_head() -> Option<RequestHead> {
    match parse(b"GET / HTTP/1.1\r\nHost: preheat\r\n\r\n", &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => Some(head),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn offer(preheats: &Preheats, name: &str) -> Option<u64> {
        let url = Url::parse(&format!("https://cdn.example/{name}?Signature=secret")).unwrap();
        let request = OriginRequest::new(url, Vec::new());
        preheats.offer(format!("cdn.example/{name}"), request, Terms::default(), name == "pinned")
    }

    #[test]
    fn the_queue_is_bounded_and_first_come_is_first_served() {
        let preheats = Preheats::default();
        (0..limits::PREHEATS).for_each(|n| assert!(offer(&preheats, &n.to_string()).is_some()));
        assert_eq!(offer(&preheats, "one too many"), None);
        let (first, wanted) = preheats.take().unwrap();
        assert_eq!((first, wanted.request.url.path()), (1, "/0"));
        assert!(offer(&preheats, "now there is room").is_some());
        assert_eq!(preheats.counts().running, 1);
    }

    #[test]
    fn only_the_last_ends_are_remembered_and_no_secret_is_told() {
        let preheats = Preheats::default();
        for n in 0..limits::PREHEATS_KEPT + 3 {
            offer(&preheats, if n == 0 { "pinned" } else { "x" }).unwrap();
            let (id, _) = preheats.take().unwrap();
            assert_eq!(preheats.is_to_be_pinned(id), n == 0);
            preheats.end(id, if n % 2 == 0 { Ok((TaskId([1; 32]), 5)) } else { Err("no".to_owned()) });
        }
        let all = preheats.list();
        assert_eq!((all.len(), all[0].id), (limits::PREHEATS_KEPT, 4));
        assert!(!format!("{all:?}").contains("secret"));
    }
}
