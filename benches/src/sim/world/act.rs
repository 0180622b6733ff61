//! What a machine decides, carried out as the peer's driver would.

use pondhawk::swarm::download::{Action, Download, Event as Input, Fetch, Reason, RunId, Wanted};

use super::{Request, What, Why, World};
use crate::sim::{
    Lie,
    job::{Asked, NOTHING, RIGHT, Running, WRONG},
    net::duration,
};

impl World {
    /// Carries out one action of a machine that is out of its place; false if it is over.
    pub(super) fn act(&mut self, node: u32, file: u32, machine: &mut Download, action: Action) -> bool {
        match action {
            Action::Fetch(fetch) => self.fetch(node, file, &fetch),
            Action::Trim(run) => {
                if let Some(running) = self.job(node, file).and_then(|job| job.runs.get_mut(&run)) {
                    running.trimmed = true;
                }
            }
            Action::Cancel(run) => {
                if let Some(job) = self.job(node, file) {
                    job.runs.remove(&run);
                }
            }
            Action::Ask { link, piece } => {
                let life = self.nodes[node as usize].life;
                let request = Request { node, life, file, link, piece };
                let Some(job) = self.job(node, file) else { return false };
                match job.links.get(&link).copied().filter(|_| job.digests[piece as usize] != NOTHING) {
                    Some(parent) => {
                        job.asked.insert((link, piece), Asked { parent, way: None });
                        self.queue.add(self.now + self.scenario.latency, What::Asked { parent, request });
                    }
                    None => machine.handle(self.now, Input::PeerFailed { link, piece }),
                }
            }
            Action::Stop { link, piece } => {
                let life = self.nodes[node as usize].life;
                let request = Request { node, life, file, link, piece };
                self.queue.add(self.now + self.scenario.latency, What::NoPiece { request, why: Why::Stopped });
            }
            Action::Return { lease, why } => self.give_back(node, lease, why),
            Action::Tell(wanted) => self.tell(node, file, wanted),
            Action::Fail(Reason::Credentials) => self.counts.client_errors += 1,
            Action::Fail(Reason::Refuted) => {
                self.close(node, file);
                if let Some(job) = self.job(node, file) {
                    job.drop_wrong(false);
                }
                self.counts.mismatches += 1;
                self.start(node, file);
                return false;
            }
            Action::Fail(_) => {
                self.counts.client_errors += 1;
                self.close(node, file);
                return false;
            }
            Action::Done => {
                self.done(node, file);
                return false;
            }
        }
        true
    }

    fn fetch(&mut self, node: u32, file: u32, fetch: &Fetch) {
        let Some(job) = self.job(node, file) else { return };
        job.runs.insert(fetch.run, Running { end: fetch.pieces.end, trimmed: false });
        self.fetch_piece(node, file, fetch.run, fetch.pieces.start, 3);
        self.report_soon(node);
    }

    /// The next piece of a run; the first one waits for the connection and the answer.
    fn fetch_piece(&mut self, node: u32, file: u32, run: RunId, piece: u32, round_trips: u32) {
        let Some(bytes) = self.job(node, file).map(|job| job.bytes_of(piece)) else { return };
        self.counts.origin_bytes += bytes;
        let now = self.now + self.scenario.latency * 2 * round_trips;
        let alone = now + duration(bytes, self.scenario.connection);
        let shared = self.origin.send(now, bytes);
        let it = &mut self.nodes[node as usize];
        let taken = it.down.send(now, bytes);
        let life = it.life;
        self.queue.add(alone.max(shared).max(taken), What::Fetched { node, life, file, run, piece });
    }

    pub(super) fn fetched(&mut self, node: u32, life: u32, file: u32, run: RunId, piece: u32) {
        if !self.is_same(node, life) {
            return;
        }
        let lie = self.nodes[node as usize].lie;
        let Some(running) = self.job(node, file).and_then(|job| job.runs.get(&run)) else { return };
        let (end, trimmed) = (running.end, running.trimmed);
        let version = if lie == Some(Lie::Digests) { WRONG } else { RIGHT };
        self.hold(node, file, piece, version, true);
        self.input(node, file, Input::PieceDone { run, piece });
        if trimmed || piece + 1 == end {
            if let Some(job) = self.job(node, file) {
                job.runs.remove(&run);
            }
            self.input(node, file, Input::RunEnded { run });
        } else {
            self.fetch_piece(node, file, run, piece + 1, 0);
        }
    }

    /// Every piece is there: the client gets the last bytes if the whole has its SHA-256.
    fn done(&mut self, node: u32, file: u32) {
        let honest = self.nodes[node as usize].lie.is_none();
        self.close(node, file);
        let Some(job) = self.job(node, file) else { return };
        if honest && job.held.contains(&WRONG) {
            job.drop_wrong(true);
            self.counts.mismatches += 1;
            return self.start(node, file);
        }
        let it = &mut self.nodes[node as usize];
        it.done += 1;
        if honest && it.done as usize == self.scenario.files.len() {
            self.counts.finished += 1;
            self.counts.last_finish = self.now;
        }
        self.next_file(node);
    }

    /// The download is over; what is on disk is served on.
    fn close(&mut self, node: u32, file: u32) {
        self.part_all(node, file);
        let wanted = self.job(node, file).is_some_and(|job| {
            job.runs.clear();
            job.asked.clear();
            job.said.is_some()
        });
        if wanted {
            self.tell(node, file, Wanted::Nothing);
        }
    }
}
