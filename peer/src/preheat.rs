//! Files that the node fetches into its store before anybody reads them.
//!
//! They go the way of a client's request, consent of the origin included, but for a reader: the admin port queues them, and a
//! few workers on each shard bring them. What a URL or a header holds of secrets stays in memory, and only until it is used.
//! Other nodes that are to hold them too hear of the task's name alone, by the scheduler, and queue that.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::StatusCode;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    admin::{Preheat, PreheatCounts, PreheatNodes},
    fetch::{self, Found, Source, Terms},
    http::head::{HeadLimits, Parsed, RequestHead, parse},
    limits,
    reply::BodyError,
    shard::Shard,
    store::{Held, Verdict},
    swarm::{
        OriginError, OriginRequest,
        exchange::{Scope, Spread, Spreading, Standing, Wish},
    },
    task::{Identity, TaskId},
    trace::Context,
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
    /// How far other nodes are, where any are to hold it.
    nodes: Option<Spreading>,
    stand: Stand,
}

enum Stand {
    Waiting(Box<Wanted>),
    Running(Option<Arc<Held>>),
    /// Here, and other nodes are to have it too.
    Spreading(Arc<Held>),
    /// With its task, which an empty file has none of, and its length.
    Done(Option<TaskId>, u64),
    Failed(String),
}

/// What is to be brought.
pub enum Wanted {
    /// What a URL names.
    Url {
        /// With the headers of whoever asks.
        request: OriginRequest,
        /// How the rules name it and give it out.
        terms: Terms,
        /// Which other nodes are to hold it too.
        scope: Option<Scope>,
    },
    /// What other nodes hold.
    Wish(Wish),
}

impl Preheats {
    /// Queues a file; its number. `None`: [`limits::PREHEATS`] wait already.
    pub fn offer(&self, label: String, wanted: Wanted, pin: bool) -> Option<u64> {
        let mut inner = self.lock();
        let spreading = inner.jobs.values().filter(|job| matches!(job.stand, Stand::Spreading(_))).count();
        if inner.waiting.len() + spreading >= limits::PREHEATS {
            return None;
        }
        inner.last += 1;
        let id = inner.last;
        inner.jobs.insert(id, Job { label, pin, nodes: None, stand: Stand::Waiting(Box::new(wanted)) });
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
                Stand::Running(_) | Stand::Spreading(_) => &mut counts.running,
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

    fn spreading(&self, id: u64, held: &Arc<Held>, spreading: Spreading) {
        if let Some(job) = self.lock().jobs.get_mut(&id) {
            job.nodes = Some(spreading);
            job.stand = Stand::Spreading(Arc::clone(held));
        }
    }

    fn is_to_be_pinned(&self, id: u64) -> bool {
        self.lock().jobs.get(&id).is_some_and(|job| job.pin)
    }

    fn end(&self, id: u64, outcome: Result<(Option<TaskId>, u64), String>) {
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
        let nodes = self.nodes.map(|Spreading { peers, complete, failed }| PreheatNodes { peers, complete, failed });
        let none = Preheat { id, label: self.label.clone(), nodes, ..Preheat::default() };
        let len = |held: &Arc<Held>| held.meta.layout.len();
        match &self.stand {
            Stand::Waiting(_) => Preheat { state: "waiting".to_owned(), ..none },
            Stand::Running(held) => Preheat {
                state: "running".to_owned(),
                task: held.as_ref().map(|held| held.meta.id.to_string()),
                bytes: held.as_ref().map_or(0, len),
                held_bytes: held.as_ref().map_or(0, |held| held.held_bytes()),
                ..none
            },
            Stand::Spreading(held) => Preheat {
                state: "spreading".to_owned(),
                task: Some(held.meta.id.to_string()),
                bytes: len(held),
                held_bytes: len(held),
                ..none
            },
            Stand::Done(task, bytes) => Preheat {
                state: "done".to_owned(),
                task: task.map(|task| task.to_string()),
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
                brought = bring(&shard, id, &wanted) => match brought {
                    Ok(Brought::Empty) => over(&shard, id, Ok((None, 0))),
                    Ok(Brought::Held { source, spreading: Some(spreading) }) => {
                        // The next file need not wait for the other nodes.
                        tokio_uring::spawn(see_spread(Rc::clone(&shard), id, source, spreading));
                    }
                    Ok(Brought::Held { source, spreading: None }) => over(&shard, id, Ok(named(&source))),
                    Err(why) => over(&shard, id, Err(why)),
                },
                () = node.draining() => return,
            },
            None => tokio::select! {
                () = woken => {}
                () = node.draining() => return,
            },
        }
    }
}

fn over(shard: &Shard, id: u64, outcome: Result<(Option<TaskId>, u64), String>) {
    let node = &shard.node;
    match &outcome {
        Ok((Some(task), bytes)) => tracing::info!(%task, bytes, "preheated"),
        Ok((None, _)) => tracing::info!("preheated: the file is empty"),
        Err(why) => tracing::warn!(why, "not preheated"),
    }
    node.metrics.preheat(outcome.is_ok());
    node.preheats.end(id, outcome);
}

/// What is here, and perhaps on its way to other nodes.
enum Brought {
    Held {
        source: Source,
        spreading: Option<Followed>,
    },
    /// The origin vouches for a file without bytes, of which there is nothing to keep.
    Empty,
}

fn named(source: &Source) -> (Option<TaskId>, u64) {
    (Some(source.held.meta.id), source.held.meta.layout.len())
}

async fn bring(shard: &Rc<Shard>, id: u64, wanted: &Wanted) -> Result<Brought, String> {
    let mut span = shard.node.tracer.request("preheat", || None);
    let brought = bring_traced(shard, id, wanted, span.context()).await;
    if let Err(why) = &brought {
        span.fail(|| why.clone());
    }
    brought
}

async fn bring_traced(shard: &Rc<Shard>, id: u64, wanted: &Wanted, trace: Option<Context>) -> Result<Brought, String> {
    let (source, spreading) = match wanted {
        Wanted::Wish(wish) => (fetch::from_others(shard, wish, trace).await?, None),
        Wanted::Url { request, terms, scope } => {
            let head = plain_head().ok_or("no request head")?;
            let traced = Terms { trace, ..terms.clone() };
            let source = match fetch::find(shard, request, &head, &traced).await {
                Found::Source(source) => *source,
                Found::Answer(error) if refuses_first_byte(shard, request, &error) => return Ok(Brought::Empty),
                Found::Answer(error) => return Err(error.to_string()),
                Found::Straight(_) if is_empty(shard, request).await => return Ok(Brought::Empty),
                Found::Straight(why) => return Err(format!("not for the store: {why}")),
                Found::Refused(why) => return Err(why.to_owned()),
            };
            let spread = |scope| spread(shard, id, request, terms, &source, scope);
            let spreading = scope.as_ref().map(spread).transpose()?;
            (source, spreading)
        }
    };
    shard.node.preheats.running(id, &source.held);
    all_of(&source).await?;
    if shard.node.preheats.is_to_be_pinned(id) {
        let pinned = shard.node.store.pin(&source.held.meta.id, true).await;
        pinned.map_err(|error| format!("not pinned: {error}"))?;
    }
    Ok(Brought::Held { source, spreading })
}

/// Whether the file has no byte. The origin was asked for its first one just now, so that its answer is remembered.
async fn is_empty(shard: &Shard, request: &OriginRequest) -> bool {
    let node = &shard.node;
    let allowed = node.authorizer.authorize(&node.origin, request, false).await;
    allowed.is_ok_and(|allowed| allowed.probe.is_some_and(|probe| probe.total_len == Some(0)))
}

/// A 416 to the question for the first byte says that there is none, with or without a Content-Range (RFC 9110 section 15.5.17).
/// For a range of a xorb other bytes are asked for.
fn refuses_first_byte(shard: &Shard, request: &OriginRequest, error: &OriginError) -> bool {
    error.status() == StatusCode::RANGE_NOT_SATISFIABLE && Identity::xorb(&request.url, &shard.node.rules).is_none()
}

/// Sees a file to the other nodes, while this one keeps it.
async fn see_spread(shard: Rc<Shard>, id: u64, source: Source, spreading: Followed) {
    let node = Arc::clone(&shard.node);
    let outcome = tokio::select! {
        outcome = follow(&shard, id, &source.held, spreading) => outcome,
        () = node.draining() => return,
    };
    over(&shard, id, outcome.map(|()| named(&source)));
}

type Followed = watch::Receiver<Option<Spreading>>;

/// Tells the scheduler who else is to hold it. They begin at once, with what there is.
fn spread(
    shard: &Shard,
    id: u64,
    request: &OriginRequest,
    terms: &Terms,
    source: &Source,
    scope: &Scope,
) -> Result<Followed, String> {
    let node = &shard.node;
    let cluster = node.cluster.as_ref().filter(|_| is_led(shard, &source.held.meta.id));
    let cluster = cluster.ok_or("other nodes cannot be told: no scheduler answers")?;
    let name = terms.identity(&request.url, &node.rules).to_content_name();
    let name = name.ok_or("other nodes cannot be told: the file has no hash for a name, only its URL")?;
    let (task, len, pin) = (source.held.meta.id, source.held.meta.layout.len(), node.preheats.is_to_be_pinned(id));
    let wish = Wish { task, len, host: fetch::origin_host(request), name, pin };
    Ok(cluster.exchange.spread(Spread { wish, scope: scope.clone() }))
}

/// Waits until every other node has it or will not.
async fn follow(shard: &Shard, id: u64, held: &Arc<Held>, mut followed: Followed) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + limits::SPREAD_WAIT;
    loop {
        let now = *followed.borrow_and_update();
        if let Some(spreading) = now {
            shard.node.preheats.spreading(id, held, spreading);
            if spreading.is_over() {
                let Spreading { peers, failed, .. } = spreading;
                return if failed == 0 {
                    Ok(())
                } else {
                    Err(format!("{failed} of {peers} other nodes do not take it"))
                };
            }
        }
        match timeout(limits::SPREAD_LOOK, followed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err("given up for a later wish for the same file".to_owned()),
            Err(_) if now.is_none() => {
                return Err("the scheduler says nothing of other nodes: it may be older than this one".to_owned());
            }
            Err(_) if !is_led(shard, &held.meta.id) => {
                return Err("the scheduler was lost: it cannot say who has it".to_owned());
            }
            Err(_) if tokio::time::Instant::now() > deadline => {
                return Err("other nodes did not get it in time".to_owned());
            }
            Err(_) => {}
        }
    }
}

/// Whether the task's scheduler can be told.
fn is_led(shard: &Shard, task: &TaskId) -> bool {
    let standing = shard.node.cluster.as_ref().map(|cluster| cluster.exchange.standing_of(task));
    matches!(standing, Some(Standing::Up { .. }))
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
        let wanted = Wanted::Url { request, terms: Terms::default(), scope: None };
        preheats.offer(format!("cdn.example/{name}"), wanted, name == "pinned")
    }

    #[test]
    fn the_queue_is_bounded_and_first_come_is_first_served() {
        let preheats = Preheats::default();
        (0..limits::PREHEATS).for_each(|n| assert!(offer(&preheats, &n.to_string()).is_some()));
        assert_eq!(offer(&preheats, "one too many"), None);
        let (first, wanted) = preheats.take().unwrap();
        let Wanted::Url { request, .. } = *wanted else { panic!("offered by its URL") };
        assert_eq!((first, request.url.path()), (1, "/0"));
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
            preheats.end(id, if n % 2 == 0 { Ok((Some(TaskId([1; 32])), 5)) } else { Err("no".to_owned()) });
        }
        let all = preheats.list();
        assert_eq!((all.len(), all[0].id), (limits::PREHEATS_KEPT, 4));
        assert!(!format!("{all:?}").contains("secret"));
    }
}
