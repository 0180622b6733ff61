//! Between nodes: dialling, following, asking; and nodes that die.

use std::time::Duration;

use pondhawk::swarm::download::{Event as Input, LinkId};
use pondhawk_scheduler::cluster::Event;

use super::{Request, What, Why, World};
use crate::sim::{
    Lie,
    control::{name_of, task},
    job::{Asked, NOTHING, WRONG, runs},
    node::Follower,
};

/// First and longest pause before a parent is dialled again.
const REDIAL: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// A piece of which no byte comes for so long does not come.
const SILENCE: Duration = Duration::from_secs(5);
/// A link without a sign of life is lost after this.
const IDLE: Duration = Duration::from_secs(15);
/// With more pieces under way to others a node answers that it is busy.
const UPLOADS: u32 = 64;
/// A busy parent is left alone for so long.
const BUSY: Duration = Duration::from_millis(100);

/// Parents.
impl World {
    /// The scheduler names a parent, perhaps again.
    pub(super) fn adopt(&mut self, node: u32, file: u32, parent: u32) {
        self.part(node, file, parent);
        let life = self.nodes[node as usize].life;
        let Some(job) = self.job(node, file).filter(|job| job.machine.is_some() && !job.alone) else { return };
        job.parents.insert(parent, None);
        let at = self.now + self.scenario.latency * 3;
        self.queue.add(at, What::Dialled { node, life, file, parent, pause: REDIAL[0] });
    }

    pub(super) fn dialled(&mut self, node: u32, life: u32, file: u32, parent: u32, pause: Duration) {
        let there = self.nodes[parent as usize].alive;
        let wanted =
            |world: &mut Self| world.job(node, file).is_some_and(|job| job.parents.get(&parent) == Some(&None));
        if !self.is_same(node, life) || !wanted(self) {
            return;
        }
        if !there {
            let pause_after = (pause * 2).min(REDIAL[1]);
            let again = What::Dialled { node, life, file, parent, pause: pause_after };
            return self.queue.add(self.now + pause, again);
        }
        let Some(job) = self.job(node, file) else { return };
        let link = LinkId(job.next_link);
        job.next_link += 1;
        job.links.insert(link, parent);
        job.parents.insert(parent, Some(link));
        self.input(node, file, Input::LinkUp { link });
        let other = &mut self.nodes[parent as usize];
        let claims_all = other.lie == Some(Lie::Silence);
        let has = other.jobs.get(&file).map(super::Job::runs_held).unwrap_or_default();
        other.followers.entry(file).or_default().push(Follower { node, link });
        let all = self.job(node, file).map_or(0, |job| job.layout.pieces());
        let has = if claims_all { std::iter::once(0..all).collect() } else { has };
        for pieces in has {
            self.input(node, file, Input::LinkHas { link, pieces });
        }
    }

    /// Parts from a parent; it is not dialled before it is named again.
    pub(super) fn part(&mut self, node: u32, file: u32, parent: u32) {
        let Some(link) = self.job(node, file).and_then(|job| job.parents.remove(&parent)) else { return };
        self.nodes[parent as usize].unfollow(file, node);
        if let Some(link) = link {
            if let Some(job) = self.job(node, file) {
                job.links.remove(&link);
            }
            self.input(node, file, Input::LinkDown { link });
        }
    }

    pub(super) fn part_all(&mut self, node: u32, file: u32) {
        let parents: Vec<u32> =
            self.job(node, file).map(|job| job.parents.keys().copied().collect()).unwrap_or_default();
        parents.into_iter().for_each(|parent| self.part(node, file, parent));
    }

    /// The keeper dials again.
    pub(super) fn lost(&mut self, node: u32, life: u32, file: u32, link: LinkId) {
        if !self.is_same(node, life) {
            return;
        }
        let Some(parent) = self.job(node, file).and_then(|job| job.links.remove(&link)) else { return };
        self.input(node, file, Input::LinkDown { link });
        if let Some(job) = self.job(node, file) {
            job.parents.insert(parent, None);
        }
        self.queue.add(self.now + REDIAL[0], What::Dialled { node, life, file, parent, pause: REDIAL[0] });
    }
}

/// Pieces.
impl World {
    /// A piece is on disk: followers and the scheduler hear of it.
    pub(super) fn hold(&mut self, node: u32, file: u32, piece: u32, version: u8, from_origin: bool) {
        self.note([u64::from(node), u64::from(file) << 32 | u64::from(piece), u64::from(version)]);
        let at = self.now + self.scenario.have_every + self.scenario.latency;
        let life = self.nodes[node as usize].life;
        let Some(job) = self.job(node, file) else { return };
        job.held[piece as usize] = version;
        job.from_peers[piece as usize] = !from_origin;
        job.added.push(piece);
        job.fresh.push(piece);
        if from_origin {
            job.fetched.push(piece);
        }
        if !std::mem::replace(&mut job.have_due, true) {
            self.queue.add(at, What::Have { node, life, file });
        }
        self.nodes[node as usize].unreported += 1;
        self.report_soon(node);
        self.report_early(node);
    }

    pub(super) fn have(&mut self, node: u32, life: u32, file: u32) {
        if !self.is_same(node, life) {
            return;
        }
        let Some(job) = self.job(node, file) else { return };
        job.have_due = false;
        let mut fresh = std::mem::take(&mut job.fresh);
        fresh.sort_unstable();
        let fresh = runs(fresh);
        let followers = self.nodes[node as usize].followers.get(&file).cloned().unwrap_or_default();
        for Follower { node: follower, link } in followers {
            let linked = self.job(follower, file).is_some_and(|job| job.links.contains_key(&link));
            for pieces in fresh.iter().filter(|_| linked) {
                self.input(follower, file, Input::LinkHas { link, pieces: pieces.clone() });
            }
        }
    }

    pub(super) fn asked(&mut self, parent: u32, request: Request) {
        let now = self.now;
        let latency = self.scenario.latency;
        let other = &mut self.nodes[parent as usize];
        let held = other.jobs.get(&request.file).map_or(NOTHING, |job| job.held[request.piece as usize]);
        if !self.is_asked(&request) {
            return;
        }
        let other = &mut self.nodes[parent as usize];
        let refusal = match other.lie {
            _ if !other.alive => Some((Why::Silent, SILENCE)),
            Some(Lie::Silence) => Some((Why::Silent, SILENCE)),
            _ if held == NOTHING => Some((Why::Missing, latency)),
            _ if other.uploads >= UPLOADS => Some((Why::Busy, latency)),
            _ => None,
        };
        if let Some((why, after)) = refusal {
            return self.queue.add(now + after, What::NoPiece { request, why });
        }
        let version = if other.lie == Some(Lie::Pieces) { WRONG } else { held };
        let bytes = other.jobs[&request.file].bytes_of(request.piece);
        let sent = other.up.send(now, bytes);
        other.uploads += 1;
        let taken = self.nodes[request.node as usize].down.send(now, bytes);
        if let Some(asked) = self.job(request.node, request.file).and_then(|job| job.asked.get_mut(&key(&request))) {
            asked.way = Some((sent, taken));
        }
        self.queue.add(sent.max(taken) + latency, What::Piece { parent, request, version });
    }

    pub(super) fn piece(&mut self, parent: u32, request: Request, version: u8) {
        self.nodes[parent as usize].uploads -= 1;
        if !self.nodes[parent as usize].alive {
            return self.queue.add(self.now + SILENCE, What::NoPiece { request, why: Why::Silent });
        }
        if !self.is_asked(&request) {
            return;
        }
        let Request { node, file, link, piece, .. } = request;
        let Some(job) = self.job(node, file) else { return };
        let digest = job.digests[piece as usize];
        if digest == version {
            job.asked.remove(&(link, piece));
            self.hold(node, file, piece, version, false);
            self.input(node, file, Input::PeerPiece { link, piece });
        } else if digest == NOTHING {
            self.no_piece(request, Why::Stopped);
        } else {
            self.counts.refused_pieces += 1;
            self.blame_for(request, false);
        }
    }

    pub(super) fn no_piece(&mut self, request: Request, why: Why) {
        if !self.is_asked(&request) {
            return;
        }
        let Request { node, file, link, piece, .. } = request;
        match why {
            Why::Silent | Why::Missing => self.blame_for(request, true),
            Why::Stopped | Why::Busy => {
                if let Some(asked) = self.unask(&request) {
                    self.take_back(&request, asked);
                }
                self.input(node, file, Input::PeerFailed { link, piece });
            }
        }
        if why == Why::Busy {
            self.input(node, file, Input::LinkBusy { link, pause: BUSY });
        }
    }

    fn is_asked(&mut self, request: &Request) -> bool {
        self.is_same(request.node, request.life)
            && self.job(request.node, request.file).is_some_and(|job| job.asked.contains_key(&key(request)))
    }

    fn unask(&mut self, request: &Request) -> Option<Asked> {
        self.job(request.node, request.file)?.asked.remove(&key(request))
    }

    /// What is not sent yet of a piece that is not wanted any more is not sent.
    fn take_back(&mut self, request: &Request, asked: Asked) {
        let Some((sent, taken)) = asked.way else { return };
        let Some(bytes) = self.job(request.node, request.file).map(|job| job.bytes_of(request.piece)) else { return };
        let now = self.now;
        self.nodes[asked.parent as usize].up.take_back(now, bytes, sent);
        self.nodes[request.node as usize].down.take_back(now, bytes, taken);
    }

    /// The parent misbehaved: the scheduler hears of it, and the node parts from it.
    fn blame_for(&mut self, request: Request, silent: bool) {
        let Some(Asked { parent, .. }) = self.unask(&request) else { return };
        self.counts.blames += 1;
        let Request { node, file, link, piece, .. } = request;
        self.send(node, vec![Event::Blame { peer: name_of(parent), task: task(file), piece, silent }]);
        self.input(node, file, Input::PeerFailed { link, piece });
        self.part(node, file, parent);
    }
}

/// Deaths.
impl World {
    pub(super) fn death(&mut self) {
        let count = u64::from(self.scenario.peers);
        let node = u32::try_from(self.random.below(count)).unwrap_or(0);
        let Some(churn) = self.scenario.churn.filter(|_| self.nodes[node as usize].alive) else { return };
        for file in self.nodes[node as usize].jobs.keys().copied().collect::<Vec<_>>() {
            self.part_all(node, file);
            if let Some(job) = self.job(node, file) {
                job.stop();
            }
        }
        let it = &mut self.nodes[node as usize];
        it.alive = false;
        it.life += 1;
        (it.reporting, it.early) = (false, false);
        it.poll_at = None;
        let followers = std::mem::take(&mut it.followers);
        if let Some(session) = it.session.take() {
            let told = self.control.hear(self.now, session.peer, vec![Event::Gone]);
            self.deliver(told);
        }
        for (file, followers) in followers {
            for Follower { node, link } in followers {
                let life = self.nodes[node as usize].life;
                self.queue.add(self.now + IDLE, What::Lost { node, life, file, link });
            }
        }
        self.queue.add(self.now + churn.back, What::Birth { node });
    }

    /// Back with what is on its disk; the clients ask again.
    pub(super) fn birth(&mut self, node: u32) {
        let it = &mut self.nodes[node as usize];
        it.alive = true;
        let life = it.life;
        let pending: Vec<u32> =
            it.jobs.iter().filter(|(_, job)| job.held.contains(&NOTHING)).map(|(&file, _)| file).collect();
        self.connect(node, life);
        pending.into_iter().for_each(|file| self.start(node, file));
    }
}

fn key(request: &Request) -> (LinkId, u32) {
    (request.link, request.piece)
}
