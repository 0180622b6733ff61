//! A machine of the cluster.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use pondhawk::swarm::download::LinkId;
use pondhawk_scheduler::cluster::PeerId;

use super::{Lie, job::Job, net::Pipe};

/// Who hears of new pieces here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follower {
    pub(super) node: u32,
    pub(super) link: LinkId,
}

/// One session with the scheduler.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) number: u32,
    pub(super) peer: PeerId,
}

/// See the module.
pub(super) struct Node {
    pub(super) alive: bool,
    /// Counts deaths: what was sent to an earlier life is lost.
    pub(super) life: u32,
    pub(super) lie: Option<Lie>,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    /// Pieces under way to others.
    pub(super) uploads: u32,
    pub(super) session: Option<Session>,
    pub(super) sessions: u32,
    pub(super) jobs: BTreeMap<u32, Job>,
    /// Files that the client has not begun.
    pub(super) waiting: VecDeque<u32>,
    pub(super) done: u32,
    pub(super) followers: BTreeMap<u32, Vec<Follower>>,
    /// The machines are polled then.
    pub(super) poll_at: Option<Duration>,
    pub(super) polled: Duration,
    /// The next report is planned.
    pub(super) reporting: bool,
    /// So is one before its time.
    pub(super) early: bool,
    pub(super) reported: Duration,
    /// Pieces that came since.
    pub(super) unreported: u32,
    /// Within the interval of reports.
    pub(super) phase: Duration,
}

impl Node {
    pub(super) fn new(up: f64, down: f64, files: u32, phase: Duration) -> Self {
        Self {
            alive: true,
            life: 0,
            lie: None,
            up: Pipe::new(up),
            down: Pipe::new(down),
            uploads: 0,
            session: None,
            sessions: 0,
            jobs: BTreeMap::new(),
            waiting: (0..files).collect(),
            done: 0,
            followers: BTreeMap::new(),
            poll_at: None,
            polled: Duration::ZERO,
            reporting: false,
            early: false,
            reported: Duration::ZERO,
            unreported: 0,
            phase,
        }
    }

    /// Files that are being downloaded.
    pub(super) fn active(&self) -> Vec<u32> {
        self.jobs.iter().filter(|(_, job)| job.machine.is_some()).map(|(&file, _)| file).collect()
    }

    pub(super) fn unfollow(&mut self, file: u32, node: u32) {
        if let Some(followers) = self.followers.get_mut(&file) {
            followers.retain(|follower| follower.node != node);
        }
    }
}
