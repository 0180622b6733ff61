//! The loop: takes what happens next and lets everybody concerned react.

mod act;
mod links;
mod session;

use std::time::{Duration, Instant};

use pondhawk::swarm::download::{Event as Input, LinkId, RunId, SourceId};
use pondhawk_scheduler::cluster::{Directive, Event};

use super::{
    Report, Scenario,
    control::Control,
    job::Job,
    net::Pipe,
    node::Node,
    queue::{Queue, Random},
};

/// Between two ticks of the scheduler.
const TICK: Duration = Duration::from_millis(50);
/// Between two looks at the scheduler's memory.
const MEASURE: Duration = Duration::from_secs(1);

/// What happens.
#[derive(Debug)]
pub(super) enum What {
    /// A client begins.
    Begin { node: u32 },
    /// The node's machines are polled.
    Poll { node: u32 },
    /// The scheduler gets a message.
    Heard { node: u32, session: u32, events: Vec<Event> },
    /// A node gets one of the scheduler.
    Told { node: u32, session: u32, directive: Box<Directive> },
    /// A node's report is due.
    Due { node: u32, life: u32 },
    /// The scheduler's clock.
    Tick,
    /// A dial is through, or in vain.
    Dialled { node: u32, life: u32, file: u32, parent: u32, pause: Duration },
    /// A node tells its followers of new pieces.
    Have { node: u32, life: u32, file: u32 },
    /// A parent is asked for a piece.
    Asked { parent: u32, request: Request },
    /// A piece arrives.
    Piece { parent: u32, request: Request, version: u8 },
    /// A piece does not.
    NoPiece { request: Request, why: Why },
    /// A dead parent is missed.
    Lost { node: u32, life: u32, file: u32, link: LinkId },
    /// A piece comes from the origin.
    Fetched { node: u32, life: u32, file: u32, run: RunId, piece: u32 },
    /// A node dies.
    Death,
    /// It is back.
    Birth { node: u32 },
    /// The scheduler dies.
    SchedulerDown,
    /// Another one is there.
    SchedulerUp,
    /// A node tries to reach the scheduler.
    Connect { node: u32, life: u32 },
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) node: u32,
    pub(super) life: u32,
    pub(super) file: u32,
    pub(super) link: LinkId,
    pub(super) piece: u32,
}

/// Why a piece does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Stopped,
    Busy,
    Silent,
    Missing,
}

/// See [`Report`].
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) finished: u32,
    pub(super) last_finish: Duration,
    pub(super) last_begin: Duration,
    pub(super) origin_bytes: u64,
    pub(super) messages_up: u64,
    pub(super) messages_down: u64,
    pub(super) client_errors: u32,
    pub(super) mismatches: u32,
    pub(super) refused_pieces: u32,
    pub(super) blames: u32,
}

/// Everything.
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Duration,
    pub(super) queue: Queue<What>,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    pub(super) origin: Pipe,
    pub(super) control: Control,
    pub(super) counts: Counts,
    fingerprint: u64,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let mut random = Random(scenario.seed);
        let files = u32::try_from(scenario.files.len()).expect("a scenario has few files");
        let nodes = (0..scenario.peers).map(|n| node(&scenario, n, files, &mut random)).collect();
        let origin = Pipe::new(scenario.origin);
        let mut world = Self {
            control: Control::new(scenario.seed),
            now: Duration::ZERO,
            queue: Queue::new(),
            random,
            nodes,
            origin,
            counts: Counts::default(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            scenario,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for node in 0..self.scenario.peers {
            let late =
                if node >= self.scenario.peers - self.scenario.late { self.scenario.later } else { Duration::ZERO };
            let at = late + self.random.pause(self.scenario.arrive);
            self.counts.last_begin = self.counts.last_begin.max(at);
            self.queue.add(at, What::Begin { node });
        }
        if let Some(churn) = self.scenario.churn {
            (1..=churn.deaths).for_each(|n| self.queue.add(churn.every * n, What::Death));
        }
        if let Some(restart) = self.scenario.restart {
            self.queue.add(restart.at, What::SchedulerDown);
            self.queue.add(restart.at + restart.down, What::SchedulerUp);
        }
        self.queue.add(TICK, What::Tick);
    }

    pub(super) fn play(mut self) -> Report {
        let begin = Instant::now();
        let honest = self.honest();
        while self.counts.finished < honest
            && let Some((at, what)) = self.queue.take()
        {
            self.now = at;
            if at > self.scenario.limit {
                break;
            }
            self.happen(what);
        }
        self.control.measure();
        self.report(begin.elapsed())
    }

    fn honest(&self) -> u32 {
        self.scenario.peers - self.scenario.liars
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Begin { node } => self.begin(node),
            What::Poll { node } => self.poll(node),
            What::Heard { node, session, events } => self.heard(node, session, events),
            What::Told { node, session, directive } => self.told(node, session, *directive),
            What::Due { node, life } => self.due(node, life),
            What::Tick => self.tick(),
            What::Dialled { node, life, file, parent, pause } => self.dialled(node, life, file, parent, pause),
            What::Have { node, life, file } => self.have(node, life, file),
            What::Asked { parent, request } => self.asked(parent, request),
            What::Piece { parent, request, version } => self.piece(parent, request, version),
            What::NoPiece { request, why } => self.no_piece(request, why),
            What::Lost { node, life, file, link } => self.lost(node, life, file, link),
            What::Fetched { node, life, file, run, piece } => self.fetched(node, life, file, run, piece),
            What::Death => self.death(),
            What::Birth { node } => self.birth(node),
            What::SchedulerDown => self.scheduler_down(),
            What::SchedulerUp => self.scheduler_up(),
            What::Connect { node, life } => self.connect(node, life),
        }
    }

    /// FNV-1a over what happened to whom and when.
    pub(super) fn note(&mut self, values: [u64; 3]) {
        let now = u64::try_from(self.now.as_nanos()).unwrap_or(u64::MAX);
        for value in values.into_iter().chain([now]) {
            self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn tick(&mut self) {
        let told = self.control.tick(self.now);
        self.deliver(told);
        if self.now.as_millis().is_multiple_of(MEASURE.as_millis()) {
            self.control.measure();
        }
        self.queue.add(self.now + TICK, What::Tick);
    }

    /// The client begins with as many files as it downloads at once.
    fn begin(&mut self, node: u32) {
        self.connect(node, self.nodes[node as usize].life);
        for _ in 0..self.scenario.at_once {
            self.next_file(node);
        }
    }

    pub(super) fn next_file(&mut self, node: u32) {
        if let Some(file) = self.nodes[node as usize].waiting.pop_front() {
            self.start(node, file);
        }
    }

    /// A client asks the node for a file.
    pub(super) fn start(&mut self, node: u32, file: u32) {
        let len = self.scenario.files[file as usize];
        let seed = self.random.next();
        let job = self.nodes[node as usize].jobs.entry(file).or_insert_with(|| Job::new(len));
        job.start(seed);
        let leader = self.leader(node, file);
        self.input(node, file, leader);
        self.input(node, file, Input::UrlOffered { source: SourceId(0) });
        self.input(node, file, Input::Want { reader: 1, bytes: 0..len });
    }

    pub(super) fn job(&mut self, node: u32, file: u32) -> Option<&mut Job> {
        self.nodes[node as usize].jobs.get_mut(&file)
    }

    /// Whether the node is in the same life.
    pub(super) fn is_same(&self, node: u32, life: u32) -> bool {
        let node = &self.nodes[node as usize];
        node.alive && node.life == life
    }

    /// Gives a machine an event; it is polled soon.
    pub(super) fn input(&mut self, node: u32, file: u32, event: Input) {
        let now = self.now;
        if let Some(machine) = self.job(node, file).and_then(|job| job.machine.as_mut()) {
            machine.handle(now, event);
            let polled = self.nodes[node as usize].polled;
            self.poll_by(node, now.max(polled + self.scenario.poll_every));
        }
    }

    /// Plans a poll, unless an earlier one is planned.
    pub(super) fn poll_by(&mut self, node: u32, at: Duration) {
        let it = &mut self.nodes[node as usize];
        if it.poll_at.is_none_or(|planned| at < planned) {
            it.poll_at = Some(at);
            self.queue.add(at, What::Poll { node });
        }
    }

    fn poll(&mut self, node: u32) {
        let it = &mut self.nodes[node as usize];
        if it.poll_at != Some(self.now) {
            return;
        }
        it.poll_at = None;
        it.polled = self.now;
        for file in it.active() {
            // Out of its place while its actions change the rest.
            let Some(mut machine) = self.job(node, file).and_then(|job| job.machine.take()) else { continue };
            let mut goes_on = true;
            while goes_on && let Some(action) = machine.poll(self.now) {
                goes_on = self.act(node, file, &mut machine, action);
            }
            let next = machine.poll_timeout().filter(|_| goes_on);
            if let Some(job) = self.job(node, file).filter(|_| goes_on) {
                job.machine = Some(machine);
            }
            if let Some(next) = next {
                // A machine that is due now was polled just now.
                self.poll_by(node, next.max(self.now + Duration::from_millis(1)));
            }
        }
    }

    fn report(&self, wall: Duration) -> Report {
        let scenario = &self.scenario;
        let bytes: u64 = scenario.files.iter().sum();
        let served = f64::from(self.counts.finished);
        let slowest = self.nodes.iter().map(|node| node.down.rate()).fold(f64::INFINITY, f64::min);
        let uplinks: f64 = self.nodes.iter().map(|node| node.up.rate()).sum();
        let total = bytes as f64;
        let spread = f64::from(scenario.peers) * total / (scenario.origin + uplinks);
        let fluid = (total / scenario.origin).max(total / slowest).max(spread);
        let bound = fluid.max(self.counts.last_begin.as_secs_f64() + total / slowest);
        let makespan = self.counts.last_finish.as_secs_f64();
        let each = |count: u64| count as f64 / f64::from(scenario.peers);
        let pieces = scenario.files.iter().map(|&len| Job::new(len).layout.pieces()).sum();
        let (count, memory) = self.control.memory;
        Report {
            name: scenario.name.clone(),
            seed: scenario.seed,
            peers: scenario.peers,
            pieces,
            bytes,
            finished: self.counts.finished,
            honest: self.honest(),
            makespan,
            bound,
            ratio: makespan / bound,
            origin_copies: self.counts.origin_bytes as f64 / total,
            messages_up: each(self.counts.messages_up),
            messages_down: each(self.counts.messages_down),
            client_errors: self.counts.client_errors,
            mismatches: self.counts.mismatches,
            refused_pieces: self.counts.refused_pieces,
            blames: self.counts.blames,
            scheduler_bytes: memory / count.max(1),
            core_events: self.control.events,
            core_events_a_second: self.control.events as f64 / self.control.spent.as_secs_f64().max(1e-9),
            wall: wall.as_secs_f64(),
            fingerprint: self.fingerprint ^ served.to_bits(),
        }
    }
}

fn node(scenario: &Scenario, n: u32, files: u32, random: &mut Random) -> Node {
    let slow = scenario.slow.filter(|slow| n >= scenario.liars && n < scenario.liars + slow.peers);
    let factor = slow.map_or(1.0, |slow| slow.factor) * (1.0 - scenario.loss);
    let phase = random.pause(session::REPORT);
    let mut node = Node::new(scenario.up * factor, scenario.down * factor, files, phase);
    node.lie = (n < scenario.liars).then_some(scenario.lie);
    node
}
