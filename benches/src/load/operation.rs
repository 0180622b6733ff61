//! One operation from its intended start to its end: an object, or a part of one.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout_at};

use super::{
    body::Body,
    check::Checks,
    client::Kept,
    head::Head,
    record::{ErrorKind, Failure, Record},
    target::{Directory, Target},
    workload::{Ask, Shape, Workload, split},
};

/// As curl has it for a request of a browser.
const MOST_REDIRECTS: usize = 5;

/// What all threads of a load share.
pub(super) struct World {
    pub(super) directory: Directory,
    pub(super) targets: Vec<Target>,
    pub(super) workload: Workload,
    pub(super) checks: Checks,
    pub(super) follow: bool,
    /// From the intended start of an operation.
    pub(super) deadline: Duration,
}

/// What a thread writes and the sampler reads.
#[derive(Default)]
pub(super) struct Lane {
    record: Mutex<Record>,
    /// Bytes of bodies that came in answer to operations.
    pub(super) bytes: AtomicU64,
}

impl Lane {
    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of one client.
#[derive(Default)]
pub(super) struct Client {
    kept: Kept,
    /// Of the ranges that are on their way at the same time.
    parts: Vec<Kept>,
}

/// Plays an operation and counts it; the kind of its failure.
pub(super) async fn operate(
    world: &Arc<World>,
    lane: &Arc<Lane>,
    client: &mut Client,
    ask: &Ask,
    intended: Instant,
) -> Option<ErrorKind> {
    let deadline = (intended + world.deadline).into();
    let result = timeout_at(deadline, perform(world, lane, client, ask)).await;
    let result = result.unwrap_or_else(|_| {
        Err(Failure::new(ErrorKind::Timeout, format!("not done within {} s", world.deadline.as_secs_f64())))
    });
    let ended = Instant::now();
    let mut record = lane.record();
    match result {
        Ok(first_byte) => {
            record.completed += 1;
            record.first_byte.record(first_byte - intended);
            record.whole.record(ended - intended);
            None
        }
        Err(failure) => {
            let kind = failure.kind;
            record.errors.record(failure);
            Some(kind)
        }
    }
}

/// When the first byte of a body came.
async fn perform(world: &Arc<World>, lane: &Arc<Lane>, client: &mut Client, ask: &Ask) -> Result<Instant, Failure> {
    match world.workload.shape {
        Shape::Parallel { bytes, at_once } => in_parts(world, lane, client, ask.object, bytes, at_once).await,
        _ => fetch(world, lane, &mut client.kept, ask.object, ask.range.clone()).await,
    }
}

async fn in_parts(
    world: &Arc<World>,
    lane: &Arc<Lane>,
    client: &mut Client,
    object: usize,
    bytes: u64,
    at_once: usize,
) -> Result<Instant, Failure> {
    let size = world.workload.sizes[object];
    if size == 0 {
        return fetch(world, lane, &mut client.kept, object, None).await;
    }
    let ranges = Arc::new(Mutex::new(split(size, bytes)));
    let mut running = JoinSet::<Result<(Kept, Option<Instant>), Failure>>::new();
    for _ in 0..at_once.min(usize::try_from(size.div_ceil(bytes)).unwrap_or(usize::MAX)) {
        let (world, lane, ranges) = (Arc::clone(world), Arc::clone(lane), Arc::clone(&ranges));
        let mut kept = client.parts.pop().unwrap_or_default();
        running.spawn(async move {
            let mut first_byte: Option<Instant> = None;
            loop {
                let next = ranges.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(range) = next else { return Ok((kept, first_byte)) };
                let came = fetch(&world, &lane, &mut kept, object, Some(range)).await?;
                first_byte = Some(first_byte.map_or(came, |first| first.min(came)));
            }
        });
    }
    let mut first_byte: Option<Instant> = None;
    while let Some(part) = running.join_next().await {
        // The first failure ends them all: dropping the set aborts its tasks.
        let (kept, came) = part.expect("no part panics")?;
        client.parts.push(kept);
        first_byte = [first_byte, came].into_iter().flatten().min();
    }
    Ok(first_byte.unwrap_or_else(Instant::now))
}

/// A request and what redirects it leads to; when the first byte of the body came.
async fn fetch(
    world: &World,
    lane: &Lane,
    kept: &mut Kept,
    object: usize,
    range: Option<Range<u64>>,
) -> Result<Instant, Failure> {
    let mut redirected: Option<Target> = None;
    for _ in 0..=MOST_REDIRECTS {
        let target = redirected.as_ref().unwrap_or(&world.targets[object]);
        lane.record().requests += 1;
        let on_open = || lane.record().connections += 1;
        let (mut connection, head) = kept.ask(&world.directory, target, range.as_ref(), on_open).await?;
        let verdict = judge(target, range.as_ref(), &head);
        if let Ok(()) = verdict {
            let mut first_byte = None;
            let mut checker = world.checks.start(object, range.as_ref().map_or(0, |range| range.start));
            let good = connection.read_body(&head, |bytes| {
                first_byte.get_or_insert_with(Instant::now);
                lane.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                checker.take(bytes)
            });
            if good.await? {
                kept.keep(connection);
            }
            checker.finish(range.is_none())?;
            return Ok(first_byte.unwrap_or_else(Instant::now));
        }
        if connection.read_body(&head, |_| Ok(())).await? {
            kept.keep(connection);
        }
        match (world.follow, is_redirect(head.status).then_some(head.location).flatten()) {
            (true, Some(location)) => redirected = Some(redirect(&world.directory, target, &location).await?),
            _ => verdict?,
        }
    }
    Err(too_many(&world.targets[object]))
}

async fn redirect(directory: &Directory, from: &Target, location: &str) -> Result<Target, Failure> {
    let url = from.url.join(location);
    let url = url.map_err(|error| Failure::new(ErrorKind::Protocol, format!("redirect to {location:?}: {error}")))?;
    directory.target(url, Some(&from.url)).await
}

fn too_many(target: &Target) -> Failure {
    Failure::new(ErrorKind::Status, format!("more than {MOST_REDIRECTS} redirects from {}", target.url))
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Whether the answer is the one that was asked for.
fn judge(target: &Target, range: Option<&Range<u64>>, head: &Head) -> Result<(), Failure> {
    let refuse = |kind, reason: String| Err(Failure::new(kind, format!("{}: {reason}", target.url)));
    match (head.status, range, &head.content_range) {
        (200, None, _) => Ok(()),
        (206, Some(range), Some(found)) if *range == found.range => Ok(()),
        (206, Some(range), Some(found)) => {
            let reason = format!("bytes {:?} where {range:?} were asked for", found.range);
            refuse(ErrorKind::Protocol, reason)
        }
        (206, Some(_), None) => refuse(ErrorKind::Protocol, "206 without a Content-Range".to_owned()),
        (200, Some(_), _) => {
            refuse(ErrorKind::Status, "200 to a request for a range: the server ignores it".to_owned())
        }
        (status, ..) if is_redirect(status) => {
            let location = head.location.as_deref().unwrap_or("nowhere");
            refuse(
                ErrorKind::Status,
                format!("{status}, a redirect to {location}, which is not followed unless told to"),
            )
        }
        (status, ..) => refuse(ErrorKind::Status, status.to_string()),
    }
}

/// Finds sizes of objects, over connections that it keeps.
#[derive(Default)]
pub(super) struct Sizer(Kept);

impl Sizer {
    /// Size of a target's object in bytes, asked for by its first byte.
    pub(super) async fn size(&mut self, directory: &Directory, target: &Target, follow: bool) -> Result<u64, Failure> {
        let mut redirected: Option<Target> = None;
        for _ in 0..=MOST_REDIRECTS {
            let target = redirected.as_ref().unwrap_or(target);
            let (mut connection, head) = self.0.ask(directory, target, Some(&(0..1)), || {}).await?;
            let unknown =
                || Failure::new(ErrorKind::Protocol, format!("{}: the answer does not tell the size", target.url));
            match (head.status, &head.content_range, head.body) {
                // The body of a server that ignores ranges is long; its connection is dropped.
                (200, _, Body::Length(size)) => return Ok(size),
                (200, ..) => return Err(unknown()),
                _ => {}
            }
            if connection.read_body(&head, |_| Ok(())).await? {
                self.0.keep(connection);
            }
            match (head.status, &head.content_range, &head.location) {
                (206, found, _) => return found.as_ref().and_then(|found| found.size).ok_or_else(unknown),
                // A range of nothing cannot be satisfied.
                (416, ..) => return Ok(0),
                (status, _, Some(location)) if follow && is_redirect(status) => {
                    redirected = Some(redirect(directory, target, location).await?);
                }
                _ => judge(target, Some(&(0..1)), &head)?,
            }
        }
        Err(too_many(target))
    }
}
