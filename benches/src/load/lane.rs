//! One thread of the generator: its share of an open or a closed loop.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    arrivals::Arrivals,
    operation::{Client, Lane, World, operate},
    record::ErrorKind,
    workload::Ask,
};

/// A client of a closed loop that gets no connection waits this long before the next try, then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Which part of a load a thread plays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) thread: usize,
    pub(super) threads: usize,
}

impl Share {
    /// This thread's part of a number of things.
    pub(super) fn of(self, count: usize) -> usize {
        count / self.threads + usize::from(self.thread < count % self.threads)
    }
}

/// Plays this thread's clients of a closed loop: until the tickets are used up, or `cut` is true.
pub(super) async fn closed(
    world: &Arc<World>,
    lane: &Arc<Lane>,
    share: Share,
    clients: usize,
    tickets: &Arc<AtomicU64>,
    mut cut: watch::Receiver<bool>,
) {
    let mut running = JoinSet::new();
    for number in (share.thread..clients).step_by(share.threads) {
        running.spawn(closed_client(Arc::clone(world), Arc::clone(lane), number, Arc::clone(tickets)));
    }
    tokio::select! {
        () = all(&mut running) => {}
        // What is under way is dropped with the tasks. That the other side is gone means the same.
        _ = cut.wait_for(|cut| *cut) => {}
    }
}

async fn all(running: &mut JoinSet<()>) {
    while let Some(ended) = running.join_next().await {
        ended.expect("no client panics");
    }
}

async fn closed_client(world: Arc<World>, lane: Arc<Lane>, number: usize, tickets: Arc<AtomicU64>) {
    let mut stream = world.workload.stream(number);
    let mut client = Client::default();
    let mut pause = FIRST_PAUSE;
    let take = |left: u64| left.checked_sub(1);
    while tickets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        let ask = stream.next(&world.workload);
        lane.record().arrived += 1;
        let failure = operate(&world, &lane, &mut client, &ask, Instant::now()).await;
        if let Some(ErrorKind::Connect | ErrorKind::Tls) = failure {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
        }
    }
}

/// The bounds of an open loop, those of a thread where it says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenLoop {
    pub(super) arrivals: Arrivals,
    /// Of all threads.
    pub(super) rate: f64,
    /// How many arrivals there are, of all threads.
    pub(super) requests: u64,
    /// No arrival is later than this.
    pub(super) duration: Duration,
    /// Of this thread.
    pub(super) connections: usize,
    /// Of this thread.
    pub(super) queue: usize,
}

/// Plays this thread's arrivals, and waits until all that have started are done or `cut` is true.
pub(super) async fn open(
    world: &Arc<World>,
    lane: &Arc<Lane>,
    share: Share,
    plan: OpenLoop,
    start: Instant,
    mut cut: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    let mut pool = Pool { shared: Arc::default(), running: JoinSet::new(), plan };
    let play = async {
        // Every thread goes through all arrivals and plays its share, so that the load is the same with any number of threads.
        let arrivals = world.workload.schedule(plan.arrivals, plan.rate).zip(0..plan.requests);
        for ((at, ask), _) in arrivals.skip(share.thread).step_by(share.threads) {
            if at >= plan.duration {
                break;
            }
            let intended = start + at;
            alarm.wait_until(intended).await?;
            pool.submit(world, lane, Job { ask, intended });
        }
        pool.shared.lock().close();
        all(&mut pool.running).await;
        Ok(())
    };
    tokio::select! {
        result = play => result,
        _ = cut.wait_for(|cut| *cut) => Ok(()),
    }
}

/// An arrival.
struct Job {
    ask: Ask,
    intended: Instant,
}

/// The workers of a thread, each with a connection, and the arrivals that wait for one.
struct Pool {
    shared: Arc<Waiting>,
    running: JoinSet<()>,
    plan: OpenLoop,
}

#[derive(Default)]
struct Waiting(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Workers without a job. The last one gets the next: its connection is the warmest.
    idle: Vec<oneshot::Sender<Job>>,
    workers: usize,
    closed: bool,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker does next.
enum Next {
    Job(Job),
    Wait(oneshot::Receiver<Job>),
}

impl Queue {
    /// None: there is nothing to do any more.
    fn next(&mut self) -> Option<Next> {
        if let Some(job) = self.jobs.pop_front() {
            return Some(Next::Job(job));
        }
        if self.closed {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.idle.push(sender);
        Some(Next::Wait(receiver))
    }

    fn close(&mut self) {
        self.closed = true;
        self.idle.clear();
    }
}

impl Pool {
    fn submit(&mut self, world: &Arc<World>, lane: &Arc<Lane>, job: Job) {
        {
            let mut record = lane.record();
            record.arrived += 1;
            record.lag.record(job.intended.elapsed());
        }
        let mut queue = self.shared.lock();
        let mut job = job;
        while let Some(worker) = queue.idle.pop() {
            match worker.send(job) {
                Ok(()) => return,
                Err(unsent) => job = unsent,
            }
        }
        if queue.workers < self.plan.connections {
            queue.workers += 1;
            queue.jobs.push_back(job);
            let worker = work(Arc::clone(world), Arc::clone(lane), Arc::clone(&self.shared));
            self.running.spawn(worker);
        } else if queue.jobs.len() < self.plan.queue {
            queue.jobs.push_back(job);
        } else {
            lane.record().not_started += 1;
        }
    }
}

async fn work(world: Arc<World>, lane: Arc<Lane>, shared: Arc<Waiting>) {
    let mut client = Client::default();
    loop {
        let next = shared.lock().next();
        let job = match next {
            Some(Next::Job(job)) => job,
            Some(Next::Wait(receiver)) => match receiver.await {
                Ok(job) => job,
                Err(_) => return,
            },
            None => return,
        };
        operate(&world, &lane, &mut client, &job.ask, job.intended).await;
    }
}

/// A timer of the kernel's precision: tokio's own rounds up to a millisecond, longer than what is measured.
struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for the sake of other types; an OwnedFd stays open and the same"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    async fn wait_until(&mut self, instant: Instant) -> io::Result<()> {
        let left = instant.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Behind the schedule, the workers get their turn all the same.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        timerfd_settime(
            self.0.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0_u8; 8])?));
            if let Ok(result) = read {
                return result.map(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_threads_add_up() {
        for (count, threads) in [(0, 1), (1, 2), (7, 3), (1000, 7)] {
            let shares = (0..threads).map(|thread| Share { thread, threads }.of(count));
            assert_eq!(shares.sum::<usize>(), count);
        }
    }

    #[tokio::test]
    async fn an_alarm_comes_at_its_time_or_later_and_again() {
        let mut alarm = Alarm::new().unwrap();
        for micros in [300, 0, 2_000] {
            let instant = Instant::now() + Duration::from_micros(micros);
            alarm.wait_until(instant).await.unwrap();
            assert!(Instant::now() >= instant);
        }
    }
}
