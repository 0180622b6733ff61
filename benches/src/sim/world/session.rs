//! Between nodes and the scheduler.

use std::time::Duration;

use pondhawk::swarm::download::{Event as Input, GiveBack, Leader, Wanted};
use pondhawk_scheduler::cluster::{Directive, Event, Progress, ReturnReason};

use super::{What, World};
use crate::sim::{
    control::{file_of, node_of, task},
    job::NOTHING,
    node::Session,
};

/// Between two reports of a node.
pub(super) const REPORT: Duration = Duration::from_millis(200);
/// Pieces that are worth a report before its time, and the least time between two such.
const MANY: u32 = 4;
const APART: Duration = Duration::from_millis(20);
/// The first piece after this time without a report is, too.
const QUIET: Duration = Duration::from_millis(100);
/// A lease is said to be alive this often.
const ALIVE: Duration = Duration::from_secs(1);
/// The longest pause before a node tries to reach the scheduler again.
const BACKOFF: Duration = Duration::from_secs(2);

impl World {
    /// Who leads a download that begins now.
    pub(super) fn leader(&mut self, node: u32, file: u32) -> Input {
        let alone = self.job(node, file).is_some_and(|job| job.alone);
        let session = self.nodes[node as usize].session.is_some();
        Input::Led(if session && !alone { Leader::New } else { Leader::None })
    }

    /// Says Hello, what is held and what is wanted.
    pub(super) fn connect(&mut self, node: u32, life: u32) {
        if !self.is_same(node, life) || self.nodes[node as usize].session.is_some() {
            return;
        }
        let Some(peer) = self.control.connect(self.now, node) else {
            // Refused, or nobody is there.
            let at = self.now + BACKOFF;
            return self.queue.add(at, What::Connect { node, life });
        };
        let it = &mut self.nodes[node as usize];
        it.sessions += 1;
        it.session = Some(Session { number: it.sessions, peer });
        let mut events = vec![Event::InventoryStart];
        let mut wants = Vec::new();
        for (&file, job) in &mut it.jobs {
            job.added.clear();
            job.fetched.clear();
            let have = job.runs_held();
            if !have.is_empty() {
                events.push(Event::Held { task: task(file), len: job.layout.len(), complete: false, have });
            }
            wants.extend(job.said.clone().map(|said| (file, said)));
        }
        events.push(Event::InventoryEnd);
        self.send(node, events);
        for (file, wanted) in wants {
            self.tell(node, file, wanted);
        }
        for file in self.nodes[node as usize].active() {
            let leader = self.leader(node, file);
            self.input(node, file, leader);
        }
    }

    pub(super) fn send(&mut self, node: u32, events: Vec<Event>) {
        if let Some(session) = self.nodes[node as usize].session {
            self.counts.messages_up += 1;
            let at = self.now + self.scenario.latency;
            self.queue.add(at, What::Heard { node, session: session.number, events });
        }
    }

    pub(super) fn heard(&mut self, node: u32, session: u32, events: Vec<Event>) {
        let Some(current) = self.nodes[node as usize].session.filter(|current| current.number == session) else {
            return;
        };
        let told = self.control.hear(self.now, current.peer, events);
        self.deliver(told);
    }

    pub(super) fn deliver(&mut self, told: Vec<(u32, Directive)>) {
        for node in self.control.banned() {
            self.end_session(node);
        }
        let at = self.now + self.scenario.latency;
        for (node, directive) in told {
            if let Some(session) = self.nodes[node as usize].session {
                self.counts.messages_down += 1;
                let directive = Box::new(directive);
                self.queue.add(at, What::Told { node, session: session.number, directive });
            }
        }
    }

    pub(super) fn told(&mut self, node: u32, session: u32, directive: Directive) {
        let it = &self.nodes[node as usize];
        if it.session.is_none_or(|current| current.number != session) {
            return;
        }
        match directive {
            Directive::Link { task, parent } => self.adopt(node, file_of(&task), node_of(&parent.name)),
            Directive::Unlink { task, peer } => self.part(node, file_of(&task), node_of(&peer)),
            Directive::Lease { id, task, pieces, .. } => {
                let file = file_of(&task);
                match self.job(node, file).filter(|job| job.machine.is_some() && !job.alone) {
                    Some(_) => self.input(node, file, Input::Leased { lease: id, pieces }),
                    None => self.give_back(node, id, GiveBack::Unneeded),
                }
            }
            Directive::LeaseEnd { id } => {
                for file in self.nodes[node as usize].active() {
                    self.input(node, file, Input::LeaseEnded { lease: id });
                }
            }
            Directive::Digests { task, runs } => {
                let file = file_of(&task);
                for run in runs.iter() {
                    self.learn(node, file, run.first, &run.digests);
                }
            }
            Directive::DigestsWanted { task, pieces } => {
                let file = file_of(&task);
                let pieces: Vec<u32> = pieces.into_iter().flatten().collect();
                self.report_digests(node, file, &pieces, false);
            }
            Directive::Dispute { task, piece, .. } => {
                let file = file_of(&task);
                if let Some(job) = self.job(node, file) {
                    job.digests[piece as usize] = NOTHING;
                }
                self.input(node, file, Input::Disputed { piece });
                self.report_digests(node, file, &[piece], true);
            }
            Directive::Preheat { .. } | Directive::Spreading { .. } | Directive::Throttle { .. } => {}
        }
    }

    fn learn(&mut self, node: u32, file: u32, first: u32, digests: &[[u8; 32]]) {
        let honest = self.nodes[node as usize].lie.is_none();
        let Some(job) = self.job(node, file).filter(|job| !job.alone) else { return };
        let end = (first + u32::try_from(digests.len()).unwrap_or(0)).min(job.layout.pieces());
        for (piece, digest) in (first..end).zip(digests) {
            job.digests[piece as usize] = digest[0];
        }
        let refuted = |piece: &u32| {
            let at = *piece as usize;
            job.from_peers[at] && job.held[at] != job.digests[at]
        };
        let refuted = (first..end).find(refuted).filter(|_| honest);
        self.input(node, file, Input::Known { pieces: first..end });
        if let Some(piece) = refuted {
            self.input(node, file, Input::Refuted { piece });
        }
    }

    /// Tells the digests of what is on disk, and that it is there.
    fn report_digests(&mut self, node: u32, file: u32, pieces: &[u32], held: bool) {
        let Some(job) = self.job(node, file) else { return };
        let digests = job.digest_runs(pieces);
        let added = if held { digests.iter().map(|run| run.first..run.first + 1).collect() } else { Vec::new() };
        let progress = Progress { task: task(file), len: job.layout.len(), added, digests, ..Progress::default() };
        self.send(node, vec![Event::Progress(progress)]);
    }

    pub(super) fn tell(&mut self, node: u32, file: u32, wanted: Wanted) {
        let Some(job) = self.job(node, file) else { return };
        let (len, alone) = (job.layout.len(), job.alone);
        let event = match wanted.clone() {
            Wanted::Nothing => Event::Unwant { task: task(file) },
            Wanted::Pieces { can_fetch, runs } => Event::Want {
                task: task(file),
                len,
                host: "origin".to_owned(),
                can_fetch: can_fetch && !alone,
                connections: 16,
                wanted: runs,
                name: None,
            },
        };
        job.said = Some(wanted).filter(|wanted| *wanted != Wanted::Nothing);
        // What is held is told before the want ends, for nobody else is to fetch it; and what is gone before the next begins.
        self.report_now(node);
        self.send(node, vec![event]);
    }

    pub(super) fn give_back(&mut self, node: u32, lease: u64, why: GiveBack) {
        let (reason, retry_after) = match why {
            GiveBack::Expired => (ReturnReason::Expired, Duration::ZERO),
            GiveBack::Throttled(after) => (ReturnReason::Throttled, after.unwrap_or_default()),
            GiveBack::Failed => (ReturnReason::Failed, Duration::ZERO),
            GiveBack::Unneeded => (ReturnReason::Unneeded, Duration::ZERO),
        };
        self.report_now(node);
        self.send(node, vec![Event::LeaseReturn { lease, reason, retry_after }]);
    }

    /// A report is made at the node's next interval.
    pub(super) fn report_soon(&mut self, node: u32) {
        let it = &mut self.nodes[node as usize];
        if it.session.is_none() || std::mem::replace(&mut it.reporting, true) {
            return;
        }
        let (phase, life) = (it.phase, it.life);
        let past = self.now.saturating_sub(phase).as_nanos() / REPORT.as_nanos() + 1;
        let at = phase + REPORT * u32::try_from(past).unwrap_or(u32::MAX);
        self.queue.add(at, What::Due { node, life });
    }

    /// Or before that, if there is much to report.
    pub(super) fn report_early(&mut self, node: u32) {
        let now = self.now;
        let it = &mut self.nodes[node as usize];
        let worth = it.unreported >= MANY || now >= it.reported + QUIET;
        if worth && it.session.is_some() && !std::mem::replace(&mut it.early, true) {
            let (at, life) = (self.now.max(it.reported + APART), it.life);
            self.queue.add(at, What::Due { node, life });
        }
    }

    pub(super) fn due(&mut self, node: u32, life: u32) {
        if self.is_same(node, life) {
            let it = &mut self.nodes[node as usize];
            (it.reporting, it.early) = (false, false);
            self.report_now(node);
        }
    }

    /// Reports; the next report is planned while a lease must be kept alive.
    pub(super) fn report_now(&mut self, node: u32) {
        let now = self.now;
        let it = &mut self.nodes[node as usize];
        if it.session.is_none() {
            return;
        }
        let mut events = Vec::new();
        let mut fetching = false;
        for (&file, job) in &mut it.jobs {
            events.extend(job.report(task(file), now, ALIVE));
            fetching |= !job.runs.is_empty();
        }
        if !events.is_empty() {
            (it.reported, it.unreported) = (now, 0);
            self.send(node, events);
        }
        if fetching {
            self.report_soon(node);
        }
    }

    pub(super) fn scheduler_down(&mut self) {
        self.control.end();
        for node in 0..self.scenario.peers {
            self.lose_session(node);
        }
    }

    /// The scheduler has banned the node; it tries to come back.
    fn end_session(&mut self, node: u32) {
        if let Some(session) = self.nodes[node as usize].session {
            self.lose_session(node);
            let told = self.control.hear(self.now, session.peer, vec![Event::Gone]);
            self.deliver(told);
            let life = self.nodes[node as usize].life;
            self.queue.add(self.now + BACKOFF, What::Connect { node, life });
        }
    }

    fn lose_session(&mut self, node: u32) {
        if self.nodes[node as usize].session.take().is_none() {
            return;
        }
        for file in self.nodes[node as usize].active() {
            if self.job(node, file).is_some_and(|job| !job.alone) {
                self.input(node, file, Input::Led(Leader::Lost));
            }
        }
    }

    pub(super) fn scheduler_up(&mut self) {
        self.control.begin();
        for node in 0..self.scenario.peers {
            let at = self.now + self.random.pause(BACKOFF);
            let life = self.nodes[node as usize].life;
            self.queue.add(at, What::Connect { node, life });
        }
    }
}
