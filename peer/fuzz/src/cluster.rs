//! The scheduler's core under any events: it stays consistent, and a peer that can fetch gets every piece in the end.

use std::ops::Range;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use pondhawk_scheduler::cluster::{
    Cluster, DigestRun, Directive, Event, Options, PeerId, PeerInfo, Progress, ReturnReason, Scope,
};

const PEERS: u32 = 12;
/// Forty pieces.
const LEN: u64 = 40 << 20;
const TASKS: u8 = 3;
const MAX_STEPS: usize = 120;

/// Runs the target: the bytes choose what happens.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut world = World::new(input.arbitrary().unwrap_or(false));
    for _ in 0..MAX_STEPS {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
    }
}

struct World {
    cluster: Cluster,
    ids: Vec<PeerId>,
    now: Duration,
    /// Leases as the peers were told, newest last.
    leases: Vec<(PeerId, u64, [u8; 32], Range<u32>)>,
}

impl World {
    fn new(small: bool) -> Self {
        let links = if small { 3 } else { 16 };
        let connections = if small { 6 } else { 64 };
        let options =
            Options { max_links: links, parents: links.min(12), origin_connections: connections, ..Options::default() };
        let mut cluster = Cluster::new(options);
        let ids = (0..PEERS).map(|n| cluster.connect(info(n))).collect();
        Self { cluster, ids, now: Duration::ZERO, leases: Vec::new() }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        self.now += Duration::from_millis(30);
        match input.int_in_range(0..=17)? {
            0 => self.now += Duration::from_millis(input.int_in_range(1..=4000)?),
            1 => {
                let n = input.int_in_range(0..=PEERS - 1)?;
                // One that was forgotten has another id.
                self.ids[n as usize] = self.cluster.connect(info(n));
            }
            2 => self.return_lease(input)?,
            3 => self.complete_lease(input)?,
            _ => {
                let peer = *input.choose(&self.ids)?;
                let event = event(input)?;
                self.cluster.handle(self.now, peer, event);
            }
        }
        self.cluster.tick(self.now);
        self.cluster.check_invariants(self.now);
        self.receive();
        Ok(())
    }

    /// What the peers are told: a lease keeps its peer and its start, and never grows.
    fn receive(&mut self) {
        while let Some((peer, directive)) = self.cluster.poll() {
            match directive {
                Directive::Lease { id, task, pieces, .. } => {
                    assert!(!pieces.is_empty());
                    match self.leases.iter_mut().find(|(_, known, ..)| *known == id) {
                        Some((holder, _, of, run)) => {
                            assert!(*holder == peer && *of == task, "a lease changes its holder");
                            assert!(run.start == pieces.start && pieces.end < run.end, "{run:?} became {pieces:?}");
                            *run = pieces;
                        }
                        None => self.leases.push((peer, id, task, pieces)),
                    }
                }
                Directive::LeaseEnd { id } => self.leases.retain(|(_, known, ..)| *known != id),
                _ => {}
            }
        }
    }

    fn return_lease(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let reasons = [
            ReturnReason::Expired,
            ReturnReason::Refused,
            ReturnReason::Throttled,
            ReturnReason::Failed,
            ReturnReason::Unneeded,
        ];
        let reason = *input.choose(&reasons)?;
        // Also one that is not the peer's, or that nobody has.
        let lease = match self.leases.is_empty() {
            true => input.arbitrary()?,
            false => input.choose(&self.leases)?.1,
        };
        let peer = *input.choose(&self.ids)?;
        let retry_after = Duration::from_millis(input.int_in_range(0..=u64::from(u32::MAX))?);
        self.cluster.handle(self.now, peer, Event::LeaseReturn { lease, reason, retry_after });
        Ok(())
    }

    fn complete_lease(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some((peer, id, task, pieces)) = self.leases.pop() else { return Ok(()) };
        let digest = [input.int_in_range(0..=2)?; 32];
        let digests = vec![DigestRun { first: pieces.start, digests: vec![digest; pieces.len()] }];
        let progress =
            Progress { task, len: LEN, added: vec![pieces], digests, alive: vec![id], ..Progress::default() };
        self.cluster.handle(self.now, peer, Event::Progress(progress));
        Ok(())
    }
}

fn info(n: u32) -> PeerInfo {
    PeerInfo {
        name: format!("p{n}").into(),
        address: ([10, 0, 0, 1], 1).into(),
        endpoints: 1,
        labels: vec![("zone".into(), format!("z{}", n % 3)), ("rack".into(), format!("r{}", n % 5))],
        seed: n.is_multiple_of(4),
    }
}

fn event(input: &mut Unstructured<'_>) -> Result<Event> {
    let task = [input.int_in_range(0..=TASKS - 1)?; 32];
    let host = if input.arbitrary()? { "a" } else { "b" }.to_owned();
    // Some peers are wrong about a task's length.
    let len = if input.ratio(1, 40)? { input.int_in_range(0..=2 * LEN)? } else { LEN };
    Ok(match input.int_in_range(0..=15)? {
        0..=3 => Event::Want {
            task,
            len,
            host,
            can_fetch: input.arbitrary()?,
            connections: input.int_in_range(0..=6)?,
            wanted: if input.arbitrary()? { Some(runs(input)?) } else { None },
            name: Some([1][..].into()),
        },
        4 => {
            let scope = Scope { seeds: input.arbitrary()?, labels: Vec::new(), count: input.int_in_range(0..=3)? };
            Event::Spread { task, len, host, name: Some([1][..].into()), scope, pin: input.arbitrary()? }
        }
        5 => Event::Unwant { task },
        6..=10 => Event::Progress(progress(input, task, len)?),
        11 => Event::Gone,
        12 => Event::InventoryStart,
        13 => Event::InventoryEnd,
        14 => Event::Held { task, len, complete: input.ratio(1, 4)?, have: runs(input)? },
        _ => Event::Blame {
            peer: format!("p{}", input.int_in_range(0..=PEERS)?),
            task,
            piece: input.int_in_range(0..=60)?,
            silent: input.arbitrary()?,
        },
    })
}

fn progress(input: &mut Unstructured<'_>, task: [u8; 32], len: u64) -> Result<Progress> {
    let what = input.int_in_range(0..=23)?;
    let lost = if what < 4 { runs(input)? } else { Vec::new() };
    let mut digests = Vec::new();
    for _ in 0..input.int_in_range(0..=2)? {
        let digest = [input.int_in_range(0..=2)?; 32];
        digests
            .push(DigestRun { first: input.int_in_range(0..=50)?, digests: vec![digest; input.int_in_range(0..=4)?] });
    }
    Ok(Progress {
        task,
        len,
        added: runs(input)?,
        lost,
        digests,
        complete: what == 5,
        gone: what == 6 || what == 7,
        wrong: what == 7,
        requests: input.int_in_range(0..=20)?,
        alive: Vec::new(),
    })
}

/// Disjoint and rising, as the service makes sure; some end past the task.
fn runs(input: &mut Unstructured<'_>) -> Result<Vec<Range<u32>>> {
    let mut at = 0;
    let mut runs = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let start = at + input.int_in_range(0..=20)?;
        at = start + input.int_in_range(1..=16)?;
        runs.push(start..at);
    }
    Ok(runs)
}
