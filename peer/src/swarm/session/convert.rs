//! Between the messages of scheduler.proto and the types of the exchange and the store [no I/O].

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use bytes::Bytes;
use pondhawk_proto::v1 as proto;
use proto::{lease_return::Reason, peer_message::Body};

use crate::{
    metrics::Totals,
    store::Holding,
    swarm::exchange::{Changes, Parent, Return, Said, Spread, Want, Wish, Wrong},
    task::TaskId,
    wire::PeerId,
};

/// Digests in one Progress: 1 MiB of them.
const DIGESTS: usize = 32_768;
/// Runs of pieces in one message, at most 10 bytes each.
const RUNS: usize = 100_000;
/// Tasks in one message.
const TASKS: usize = 4_096;
/// Longest host name that a scheduler passes on, with a port: as it accepts from nodes.
const MAX_HOST: usize = 253;
/// Longest content name, as in scheduler.proto.
const MAX_CONTENT_NAME: usize = 64;
/// Longest pause of an origin that one Throttle can bring about: the most that a scheduler itself waits.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A message of its body.
pub(super) fn message(body: Body) -> proto::PeerMessage {
    proto::PeerMessage { body: Some(body) }
}

/// What was said, as a message.
pub(super) fn said(said: Said) -> proto::PeerMessage {
    message(match said {
        Said::Want(want) => Body::Want(self::want(want)),
        Said::Spread(Spread { wish, scope }) => Body::Spread(proto::Spread {
            task: name(&wish.task),
            len: wish.len,
            origin_host: wish.host,
            name: wish.name.into(),
            seeds: scope.seeds,
            labels: scope.labels.into_iter().map(|(key, value)| proto::Label { key, value }).collect(),
            count: scope.count,
            pin: wish.pin,
        }),
        Said::Unwant(task) => Body::Unwant(proto::Unwant { task: name(&task) }),
        Said::Return { lease, why, .. } => Body::LeaseReturn(lease_return(lease, why)),
        Said::Blame { peer, task, piece, kind } => Body::Blame(proto::Blame {
            peer: peer.to_string(),
            task: name(&task),
            piece,
            kind: match kind {
                Wrong::Piece => proto::blame::Kind::WrongPiece,
                Wrong::Garbage => proto::blame::Kind::Garbage,
                Wrong::Silent => proto::blame::Kind::Silent,
                Wrong::Missing => proto::blame::Kind::Missing,
            }
            .into(),
        }),
    })
}

/// A wish.
pub(super) fn want(want: Want) -> proto::Want {
    proto::Want {
        task: name(&want.task),
        len: want.len,
        origin_host: want.host,
        can_fetch: want.can_fetch,
        content_named: want.content_named,
        connections: want.connections,
        wanted: want.wanted.map(|runs| piece_set(&runs)),
        name: want.name.map_or_else(Bytes::new, Bytes::from),
        trace: want.trace.map_or_else(Bytes::new, |context| Bytes::copy_from_slice(&context.to_bytes())),
    }
}

/// A lease that goes back.
pub(super) fn lease_return(lease: u64, why: Return) -> proto::LeaseReturn {
    let (reason, retry_after) = match why {
        Return::Expired => (Reason::Expired, None),
        Return::Refused => (Reason::Refused, None),
        Return::Throttled(retry_after) => (Reason::Throttled, retry_after),
        Return::Failed => (Reason::Failed, None),
        Return::Unneeded => (Reason::Unneeded, None),
    };
    let retry_after = retry_after.map_or(0, |after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
    proto::LeaseReturn { lease, reason: reason.into(), retry_after_ms: retry_after }
}

/// The store's content as messages, in the order in which they are sent.
pub(super) struct InventoryReport {
    /// At least one; the last one says that it is the last.
    pub(super) inventory: Vec<proto::Inventory>,
    /// Runs of pieces beyond the first [`RUNS`] of a task. A scheduler takes a second Holding of a task in place of the first
    /// one, whereas a Progress adds to what it knows.
    pub(super) additions: Vec<proto::Progress>,
}

/// Encodes everything that is held. Each task has exactly one Holding.
pub(super) fn inventory(holdings: Vec<Holding>) -> InventoryReport {
    let mut inventory = vec![proto::Inventory::default()];
    let mut additions = Vec::new();
    let mut room = RUNS;
    for holding in holdings {
        let (first, rest) = holding.have.split_at(holding.have.len().min(RUNS));
        if room < first.len() || inventory.last().is_some_and(|message| message.holdings.len() >= TASKS) {
            inventory.push(proto::Inventory::default());
            room = RUNS;
        }
        room -= first.len();
        let held = proto::Holding {
            task: name(&holding.task),
            len: holding.len,
            complete: holding.complete,
            have: (!holding.complete).then(|| piece_set(first)),
        };
        inventory.last_mut().expect("never empty").holdings.push(held);
        additions.extend(rest.chunks(RUNS).map(|part| {
            let (task, added) = (name(&holding.task), Some(piece_set(part)));
            let entry = proto::TaskProgress { task, len: holding.len, added, ..Default::default() };
            proto::Progress { tasks: vec![entry], ..Default::default() }
        }));
    }
    inventory.last_mut().expect("never empty").last = true;
    InventoryReport { inventory, additions }
}

/// All changes, in as few messages as their bound allows.
pub(super) fn progress(changes: impl IntoIterator<Item = (TaskId, Changes)>) -> Vec<proto::Progress> {
    let mut messages = vec![proto::Progress::default()];
    let (mut digests, mut runs) = (0, 0);
    for entry in changes.into_iter().flat_map(|(task, changes)| task_progress(&task, changes)) {
        let more_digests: usize = entry.digests.iter().map(|run| run.digests.len() / 32).sum();
        let more_runs = entry.added.as_ref().map_or(0, |set| set.runs.len() / 2) + entry.alive.len() + 1;
        let full = messages.last().is_some_and(|message| message.tasks.len() >= TASKS);
        if full || digests + more_digests > DIGESTS || runs + more_runs > RUNS {
            messages.push(proto::Progress::default());
            (digests, runs) = (0, 0);
        }
        digests += more_digests;
        runs += more_runs;
        messages.last_mut().expect("never empty").tasks.push(entry);
    }
    messages
}

/// What the node did since its start, `sent` bytes to other peers among it.
pub(super) fn totals(uptime: Duration, totals: &Totals, sent: u64) -> proto::Totals {
    proto::Totals {
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        from_origin_bytes: totals.origin_bytes,
        from_peers_bytes: totals.peer_bytes,
        to_clients_bytes: totals.client_bytes,
        to_peers_bytes: sent,
        requests: totals.requests,
        hits: totals.hits,
        joined: totals.joined,
        misses: totals.misses,
    }
}

/// A report of digests alone, of pieces that are known to be held.
pub(super) fn digests_report(task: &TaskId, len: u64, digests: Vec<(u32, [u8; 32])>) -> Vec<proto::Progress> {
    progress([(*task, Changes { len, digests, ..Changes::default() })])
}

/// A parent as told; `None` where its name or address is none.
pub(super) fn parent(parent: &proto::Parent) -> Option<Parent> {
    Some(Parent {
        peer: PeerId::new(&parent.name).ok()?,
        address: parent.quic_address.parse().ok()?,
        endpoints: u16::try_from(parent.quic_endpoints.max(1)).ok()?,
        nearness: parent.nearness,
        seed: parent.seed,
    })
}

/// Whether a parent's endpoints can be addresses of one host. An older scheduler passes on what a peer advertised, and packets to
/// a group or to every host of a network would go to others than that peer.
pub(super) fn is_dialable(parent: &Parent) -> bool {
    let ip = parent.address.ip().to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let last = u32::from(parent.address.port()) + u32::from(parent.endpoints.max(1)) - 1;
    !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast && parent.address.port() != 0 && last <= 65_535
}

/// First piece and digests; `None` where it is not 32 bytes a piece.
pub(super) fn digest_run(run: &proto::DigestRun) -> Option<(u32, Vec<[u8; 32]>)> {
    let (digests, rest) = run.digests.as_chunks::<32>();
    rest.is_empty().then(|| (run.first, digests.to_vec()))
}

/// The task that bytes name.
pub(super) fn task(bytes: &Bytes) -> Option<TaskId> {
    Some(TaskId(bytes[..].try_into().ok()?))
}

/// Of digests in rising order those that a set names.
pub(super) fn select(digests: Vec<(u32, [u8; 32])>, set: &proto::PieceSet) -> Vec<(u32, [u8; 32])> {
    let (runs, _) = set.runs.as_chunks::<2>();
    let mut runs = runs.iter().map(|&[first, count]| first..first.saturating_add(count)).peekable();
    let named = move |(piece, _): &(u32, [u8; 32])| {
        while runs.next_if(|run| run.end <= *piece).is_some() {}
        runs.peek().is_some_and(|run| run.contains(piece))
    };
    digests.into_iter().filter(named).collect()
}

/// A task to hold without a URL; `None` where nothing says what its name is made of, or where a name is longer than the protocol
/// allows: thousands of wishes wait at once.
pub(super) fn wish(preheat: proto::Preheat) -> Option<Wish> {
    let proto::Preheat { task, len, origin_host, name, pin } = preheat;
    let fits = (1..=MAX_CONTENT_NAME).contains(&name.len()) && origin_host.len() <= MAX_HOST;
    let task = self::task(&task).filter(|_| fits)?;
    // The bytes are copied, since a slice would keep the whole message in memory.
    Some(Wish { task, len, host: origin_host, name: name.to_vec(), pin })
}

/// An origin's host and for how long it is left alone; `None` where the host is longer than any that the node asks.
pub(super) fn pause(throttle: proto::Throttle) -> Option<(String, Duration)> {
    let pause = Duration::from_millis(throttle.for_ms.into()).min(MAX_PAUSE);
    (throttle.origin_host.len() <= MAX_HOST).then_some((throttle.origin_host, pause))
}

/// A duration in milliseconds that the scheduler chose, within the bounds that the node accepts.
pub(super) fn millis(chosen: u32, bounds: RangeInclusive<Duration>) -> Duration {
    Duration::from_millis(chosen.into()).clamp(*bounds.start(), *bounds.end())
}

/// Several entries where one would be too long. What is gone comes first: what was added came after.
fn task_progress(task: &TaskId, changes: Changes) -> Vec<proto::TaskProgress> {
    let entry =
        || proto::TaskProgress { task: name(task), len: changes.len, requests: changes.requests, ..Default::default() };
    let mut entries = Vec::new();
    if changes.gone {
        entries.push(proto::TaskProgress { gone: true, wrong: changes.wrong, ..entry() });
    }
    for part in runs_of(changes.added).chunks(RUNS / 2) {
        entries.push(proto::TaskProgress { added: Some(piece_set(part)), ..entry() });
    }
    let digests: Vec<(u32, [u8; 32])> = BTreeMap::from_iter(changes.digests).into_iter().collect();
    for part in digests.chunks(DIGESTS) {
        entries.push(proto::TaskProgress { digests: digest_runs(part), ..entry() });
    }
    let alive: Vec<u64> = changes.alive.into_iter().collect();
    for part in alive.chunks(RUNS / 2) {
        entries.push(proto::TaskProgress { alive: part.to_vec(), ..entry() });
    }
    merged(entries)
}

/// The usual report is short: one entry.
fn merged(mut entries: Vec<proto::TaskProgress>) -> Vec<proto::TaskProgress> {
    let short = |entry: &proto::TaskProgress| {
        entry.digests.iter().map(|run| run.digests.len() / 32).sum::<usize>() < DIGESTS / 2
            && entry.added.as_ref().is_none_or(|set| set.runs.len() < RUNS / 2)
    };
    let mergeable = entries.len() > 1 && entries.iter().all(|entry| !entry.gone && short(entry));
    if mergeable {
        let mut one = entries.remove(0);
        for entry in entries.drain(..) {
            one.added = one.added.or(entry.added);
            one.digests.extend(entry.digests);
            one.alive.extend(entry.alive);
        }
        entries.push(one);
    }
    entries
}

fn digest_runs(digests: &[(u32, [u8; 32])]) -> Vec<proto::DigestRun> {
    digests
        .chunk_by(|(before, _), (after, _)| before + 1 == *after)
        .map(|run| proto::DigestRun {
            first: run[0].0,
            digests: run.iter().flat_map(|(_, digest)| *digest).collect::<Vec<u8>>().into(),
        })
        .collect()
}

fn runs_of(mut pieces: Vec<u32>) -> Vec<Range<u32>> {
    pieces.sort_unstable();
    pieces.dedup();
    pieces.chunk_by(|before, after| before + 1 == *after).map(|run| run[0]..run[run.len() - 1] + 1).collect()
}

fn piece_set(runs: &[Range<u32>]) -> proto::PieceSet {
    proto::PieceSet { runs: runs.iter().flat_map(|run| [run.start, run.end - run.start]).collect() }
}

fn name(task: &TaskId) -> Bytes {
    Bytes::copy_from_slice(&task.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// What a scheduler knows of a task after all messages: a Holding replaces, a Progress adds.
    fn known_pieces(report: &InventoryReport, task: TaskId) -> Vec<u32> {
        let mut known = Vec::new();
        let pieces = |set: &proto::PieceSet| {
            let (runs, _) = set.runs.as_chunks::<2>();
            runs.iter().flat_map(|&[first, count]| first..first + count).collect::<Vec<_>>()
        };
        let holdings = report.inventory.iter().flat_map(|message| &message.holdings);
        for holding in holdings.filter(|holding| holding.task == task.0[..]) {
            known = pieces(holding.have.as_ref().unwrap());
        }
        for added in report.additions.iter().flat_map(|message| &message.tasks).filter(|added| added.task == task.0[..])
        {
            known.extend(pieces(added.added.as_ref().unwrap()));
        }
        known
    }

    /// Bytes of heap that a conversion may take for each byte of the message, and beyond.
    const HEAP: (usize, usize) = (8, 1024);

    #[test]
    fn a_holding_of_more_runs_than_a_message_takes_reaches_the_scheduler_whole() {
        let (large, small) = (TaskId([1; 32]), TaskId([2; 32]));
        let runs = u32::try_from(RUNS * 2 + 1).unwrap();
        let have: Vec<Range<u32>> = (0..runs).map(|run| run * 2..run * 2 + 1).collect();
        let holdings = vec![
            Holding { task: large, len: 1 << 42, complete: false, have },
            Holding { task: small, len: 4 << 20, complete: false, have: std::iter::once(1..3).collect() },
        ];
        let report = inventory(holdings);
        assert_eq!(known_pieces(&report, large), (0..runs).map(|run| run * 2).collect::<Vec<_>>());
        assert_eq!(known_pieces(&report, small), [1, 2]);
        let last: Vec<bool> = report.inventory.iter().map(|message| message.last).collect();
        assert_eq!(last.iter().filter(|last| **last).count(), 1);
        assert_eq!(last.last(), Some(&true));
        let longest = report.inventory.iter().map(prost::Message::encoded_len);
        let longest = longest.chain(report.additions.iter().map(prost::Message::encoded_len)).max();
        assert!(longest.unwrap() < pondhawk_proto::MAX_MESSAGE);
    }

    #[test]
    fn names_that_are_longer_than_the_protocol_allows_are_not_kept() {
        let preheat = |host: usize, name: usize| proto::Preheat {
            task: vec![0; 32].into(),
            origin_host: "h".repeat(host),
            name: vec![1; name].into(),
            ..Default::default()
        };
        assert!(wish(preheat(MAX_HOST, MAX_CONTENT_NAME)).is_some());
        assert!(wish(preheat(MAX_HOST + 1, 33)).is_none() && wish(preheat(1, MAX_CONTENT_NAME + 1)).is_none());
        let throttle = |host: usize| proto::Throttle { origin_host: "h".repeat(host), for_ms: u32::MAX };
        assert_eq!(pause(throttle(MAX_HOST)), Some(("h".repeat(MAX_HOST), MAX_PAUSE)));
        assert_eq!(pause(throttle(MAX_HOST + 1)), None);
    }

    #[test]
    fn durations_that_a_scheduler_chooses_stay_within_bounds() {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(1);
        assert_eq!(millis(0, bounds.clone()), Duration::from_millis(10));
        assert_eq!(millis(u32::MAX, bounds), Duration::from_secs(1));
    }

    proptest! {
        /// Every message of a scheduler, with each field at its edges, is converted or refused.
        #[test]
        fn arbitrary_messages_are_converted_within_a_constant_times_their_size(
            text in ".{0,300}",
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            numbers in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()], 0..60),
            held in proptest::collection::btree_set(any::<u32>(), 0..50),
        ) {
            let first = numbers.first().copied().unwrap_or(0);
            let run = proto::DigestRun { first, digests: bytes.clone().into() };
            if let Some((_, digests)) = digest_run(&run) {
                prop_assert!(digests.capacity() * 32 <= run.encoded_len() * HEAP.0 + HEAP.1);
            }
            let told = proto::Parent {
                name: text.clone(),
                quic_address: format!("127.0.0.1:{first}"),
                quic_endpoints: first,
                ..Default::default()
            };
            let _ = parent(&told).is_some_and(|parent| is_dialable(&parent));
            let _ = task(&bytes.clone().into());
            let digests: Vec<(u32, [u8; 32])> = held.iter().map(|piece| (*piece, [0; 32])).collect();
            let selected = select(digests, &proto::PieceSet { runs: numbers });
            prop_assert!(selected.iter().all(|(piece, _)| held.contains(piece)));
            let preheat = proto::Preheat {
                task: vec![0; 32].into(),
                len: u64::MAX,
                origin_host: text.clone(),
                name: bytes.into(),
                pin: true,
            };
            let size = preheat.encoded_len();
            if let Some(wish) = wish(preheat) {
                prop_assert!(wish.host.capacity() + wish.name.capacity() <= size * HEAP.0 + HEAP.1);
            }
            let _ = pause(proto::Throttle { origin_host: text, for_ms: first });
        }

        /// Bytes that decode as a message of the scheduler reach the same functions.
        #[test]
        fn arbitrary_bytes_that_decode_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            use proto::scheduler_message::Body as Message;
            let Ok(message) = proto::SchedulerMessage::decode(&bytes[..]) else { return Ok(()) };
            match message.body {
                Some(Message::Parents(parents)) => parents.add.iter().for_each(|told| drop(parent(told))),
                Some(Message::Digests(digests)) => digests.runs.iter().for_each(|run| drop(digest_run(run))),
                Some(Message::Preheat(preheat)) => drop(wish(preheat)),
                Some(Message::Throttle(throttle)) => drop(pause(throttle)),
                _ => {}
            }
        }
    }

    #[test]
    fn only_addresses_of_one_host_are_dialled() {
        let dialable = |address: &str, endpoints| {
            let told = proto::Parent {
                name: "p".into(),
                quic_address: address.into(),
                quic_endpoints: endpoints,
                ..Default::default()
            };
            parent(&told).is_some_and(|parent| is_dialable(&parent))
        };
        for address in ["10.0.0.1:65010", "127.0.0.1:65010", "[fd00::1]:65010", "198.51.100.1:1"] {
            assert!(dialable(address, 4), "{address}");
        }
        for address in
            ["0.0.0.0:65010", "[::]:65010", "224.0.0.1:65010", "[ff02::1]:65010", "255.255.255.255:65010", "10.0.0.1:0"]
        {
            assert!(!dialable(address, 1), "{address}");
        }
        assert!(
            !dialable("[::ffff:224.0.0.1]:65010", 1) && !dialable("10.0.0.1:65535", 2) && dialable("10.0.0.1:65535", 1)
        );
    }
}
