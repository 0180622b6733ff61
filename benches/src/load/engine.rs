//! Sets a load up, plays it on its threads, and samples what goes on.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{self, Runtime},
    sync::{Barrier, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};
use url::Url;

use super::{
    LoadError, Pace, Plan, Shape,
    check::{Check, Checks},
    idle::{Held, Idle},
    lane::{self, OpenLoop, Share},
    operation::{self, Lane, World},
    outcome::{Outcome, Sample, Setup},
    process::Watch,
    progress::Progress,
    record::Record,
    target::Directory,
    workload::{Popularity, Workload},
};
use crate::lab::thread_cpu;

/// Between two samples.
const TICK: Duration = Duration::from_millis(250);
/// Without a duration: as good as forever, and an `Instant` still holds it.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Files open besides connections.
const OTHER_FILES: u64 = 64;

pub(super) fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome, LoadError> {
    validate(plan)?;
    allow_files(plan)?;
    let mut watch = Watch::new(&plan.processes)?;
    let runtime = single()?;
    let world = Arc::new(runtime.block_on(world(plan))?);
    let stage = Arc::new(Stage {
        lanes: (0..plan.threads).map(|_| Arc::default()).collect(),
        ready: Barrier::new(plan.threads + 1),
        start: OnceLock::new(),
        tickets: Arc::new(AtomicU64::new(plan.requests.unwrap_or(u64::MAX))),
    });
    let (cut, is_cut) = watch::channel(false);
    let (busy, ended) = mpsc::channel::<()>(1);
    let threads: Vec<_> = (0..plan.threads)
        .map(|number| {
            let (world, stage, plan) = (Arc::clone(&world), Arc::clone(&stage), plan.clone());
            let (is_cut, busy) = (is_cut.clone(), busy.clone());
            // Here and not on the thread: the others would wait for one that fails.
            let runtime = single()?;
            thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || runtime.block_on(play(&world, &stage, &plan, number, is_cut, busy)))
        })
        .collect::<Result<_, _>>()?;
    drop((busy, is_cut));
    let mut outcome = runtime.block_on(observe(plan, &stage, &mut watch, ended, &cut, stop));
    let mut idle = Idle::default();
    for thread in threads {
        let played = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        outcome.generator_cpu_seconds += played.cpu_seconds;
        idle.add(played.idle);
    }
    outcome.idle = (plan.idle > 0).then_some(idle);
    Ok(outcome)
}

fn validate(plan: &Plan) -> Result<(), LoadError> {
    let positive = |name, number: usize| if number == 0 { Err(LoadError::Zero(name)) } else { Ok(()) };
    let finite = |name, number: f64| {
        if number.is_finite() && number > 0.0 { Ok(()) } else { Err(LoadError::Number(name, number)) }
    };
    if plan.urls.is_empty() {
        return Err(LoadError::NoUrl);
    }
    positive("the number of threads", plan.threads)?;
    match plan.pace {
        Pace::Closed { clients } => positive("the number of clients", clients)?,
        Pace::Open { rate, connections, .. } => {
            finite("the rate", rate)?;
            positive("the number of connections", connections)?;
        }
    }
    match plan.shape {
        Shape::Whole => {}
        Shape::Random { bytes } | Shape::Sequential { bytes, .. } => positive("the size of a range", bytes as usize)?,
        Shape::Parallel { bytes, at_once } => {
            positive("the size of a range", bytes as usize)?;
            positive("the number of ranges at once", at_once)?;
        }
    }
    if let Popularity::Zipf(exponent) = plan.popularity {
        finite("the exponent of the Zipf distribution", exponent)?;
    }
    if plan.shape != Shape::Whole && matches!(plan.check, Check::Sha256(_)) {
        return Err(LoadError::DigestOfRanges);
    }
    Ok(())
}

/// Raises the limit of open files to what the load needs.
fn allow_files(plan: &Plan) -> Result<(), LoadError> {
    let clients = match plan.pace {
        Pace::Closed { clients } => clients,
        Pace::Open { connections, .. } => connections,
    };
    let each = if let Shape::Parallel { at_once, .. } = plan.shape { at_once } else { 1 };
    let wanted = (clients * each + plan.idle) as u64 + OTHER_FILES;
    let limits = getrlimit(Resource::Nofile);
    if limits.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if let Some(limit) = limits.maximum.filter(|maximum| *maximum < wanted) {
        return Err(LoadError::Files { wanted, limit });
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limits }).map_err(io::Error::from)?;
    Ok(())
}

fn single() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

async fn world(plan: &Plan) -> Result<World, LoadError> {
    let directory = Directory::new(plan)?;
    let mut targets = Vec::with_capacity(plan.urls.len());
    let mut sizes = vec![0; plan.urls.len()];
    for text in &plan.urls {
        let refuse = |reason: String| LoadError::Url { url: text.clone(), reason };
        let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse(format!("its scheme is {}", url.scheme())));
        }
        let target = directory.target(url, None).await;
        targets.push(target.map_err(|failure| LoadError::Target(failure.to_string()))?);
    }
    if plan.shape.needs_sizes() {
        let mut sizer = operation::Sizer::default();
        for (size, target) in sizes.iter_mut().zip(&targets) {
            let found = tokio::time::timeout(plan.deadline, sizer.size(&directory, target, plan.follow)).await;
            let found = found.map_err(|_| LoadError::Target(format!("{} does not answer", target.url)))?;
            *size = found.map_err(|failure| LoadError::Target(failure.to_string()))?;
        }
    }
    Ok(World {
        directory,
        targets,
        workload: Workload::new(sizes, plan.shape, plan.popularity, plan.seed),
        checks: Checks::open(&plan.check, plan.urls.len())?,
        follow: plan.follow,
        deadline: plan.deadline,
    })
}

/// Where threads and the sampler meet.
struct Stage {
    lanes: Vec<Arc<Lane>>,
    /// Passed when all idle connections are open.
    ready: Barrier,
    start: OnceLock<Instant>,
    /// Operations that a closed loop may still start.
    tickets: Arc<AtomicU64>,
}

impl Stage {
    async fn started(&self) -> Instant {
        self.ready.wait().await;
        *self.start.get_or_init(Instant::now)
    }

    fn bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.bytes.load(Ordering::Relaxed)).sum()
    }
}

/// What a thread has to say at its end.
struct Played {
    cpu_seconds: f64,
    idle: Idle,
}

async fn play(
    world: &Arc<World>,
    stage: &Stage,
    plan: &Plan,
    thread: usize,
    cut: watch::Receiver<bool>,
    busy: mpsc::Sender<()>,
) -> io::Result<Played> {
    let share = Share { thread, threads: plan.threads };
    let held = Held::open(world, share.of(plan.idle)).await;
    let start = stage.started().await;
    let cpu_before = thread_cpu();
    let lane = &stage.lanes[thread];
    match plan.pace {
        Pace::Closed { clients } => lane::closed(world, lane, share, clients, &stage.tickets, cut).await,
        Pace::Open { rate, arrivals, connections, queue } => {
            let open = OpenLoop {
                arrivals,
                rate,
                requests: plan.requests.unwrap_or(u64::MAX),
                duration: plan.duration.unwrap_or(FOREVER),
                // A thread without any could play none of its arrivals.
                connections: share.of(connections).max(1),
                queue: share.of(queue),
            };
            lane::open(world, lane, share, open, start, cut).await?;
        }
    }
    let cpu_seconds = (thread_cpu() - cpu_before).as_secs_f64();
    drop(busy);
    Ok(Played { cpu_seconds, idle: held.finish().await })
}

/// Samples until the load is over; what came of it, but for what only the threads know.
async fn observe(
    plan: &Plan,
    stage: &Stage,
    watch: &mut Watch,
    mut ended: mpsc::Receiver<()>,
    cut: &watch::Sender<bool>,
    stop: &AtomicBool,
) -> Outcome {
    let start = stage.started().await;
    watch.start();
    let end = start + plan.duration.unwrap_or(FOREVER);
    let mut sampler = Sampler { stage, watch, start, total: Record::default(), series: Vec::new() };
    let mut progress = plan.progress.then(Progress::default);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let is_done = loop {
        tokio::select! {
            _ = ended.recv() => break true,
            () = sleep_until(end.into()) => break false,
            _ = ticks.tick() => {}
        }
        let window = sampler.sample();
        if let Some(progress) = &mut progress {
            progress.add(&sampler.series, &window);
        }
        if stop.load(Ordering::Relaxed) {
            break false;
        }
    };
    sampler.sample();
    let in_time = sampler.series.last().cloned().unwrap_or_default();
    let process = (!plan.processes.is_empty()).then(|| sampler.watch.sample().clone());
    if !is_done {
        if matches!(plan.pace, Pace::Closed { .. }) || stop.load(Ordering::Relaxed) {
            cut.send_replace(true);
        }
        drain(&mut ended, cut, stop).await;
    }
    sampler.collect();
    if let Some(progress) = progress {
        progress.finish();
    }
    outcome(plan, sampler, &in_time, process)
}

/// Waits for what an open loop has under way, unless it is stopped.
async fn drain(ended: &mut mpsc::Receiver<()>, cut: &watch::Sender<bool>, stop: &AtomicBool) {
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            _ = ended.recv() => return,
            _ = ticks.tick() => {}
        }
        if stop.load(Ordering::Relaxed) {
            cut.send_replace(true);
        }
    }
}

struct Sampler<'a> {
    stage: &'a Stage,
    watch: &'a mut Watch,
    start: Instant,
    total: Record,
    series: Vec<Sample>,
}

impl Sampler<'_> {
    /// Adds a sample; what was counted since the last one.
    fn sample(&mut self) -> Record {
        let window = self.collect();
        let used = self.watch.sample();
        let millis = |share| window.whole.quantile(share).as_secs_f64() * 1e3;
        self.series.push(Sample {
            seconds: self.start.elapsed().as_secs_f64(),
            bytes: self.stage.bytes(),
            completed: self.total.completed,
            failed: self.total.errors.count(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            cpu_seconds: used.cpu_seconds,
            rss: used.rss,
        });
        window
    }

    fn collect(&mut self) -> Record {
        let mut window = Record::default();
        for lane in &self.stage.lanes {
            lane.record().move_to(&mut window);
        }
        window.clone().move_to(&mut self.total);
        window
    }
}

fn outcome(
    plan: &Plan,
    sampler: Sampler<'_>,
    in_time: &Sample,
    process: Option<super::process::ProcessUse>,
) -> Outcome {
    let Sampler { stage, total, series, .. } = sampler;
    let failed = total.errors.count();
    Outcome {
        setup: Setup::new(plan),
        seconds: in_time.seconds,
        bytes: in_time.bytes,
        completed: in_time.completed,
        all_bytes: stage.bytes(),
        all_completed: total.completed,
        failed,
        not_started: total.not_started,
        unfinished: total.arrived - total.completed - failed - total.not_started,
        requests: total.requests,
        connections: total.connections,
        first_byte: total.first_byte,
        whole: total.whole,
        lag: total.lag,
        errors: total.errors,
        generator_cpu_seconds: 0.0,
        process,
        idle: None,
        series,
    }
}
