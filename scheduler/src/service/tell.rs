//! From what the cluster decides to messages [no I/O].

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use pondhawk_proto::v1 as proto;
use proto::scheduler_message::Body;

use crate::cluster::{DigestRun, Directive, Parent, PeerId, Spreading, TaskName};
use crate::registry::Denial;

/// Digests in one message: 1 MiB of them, well below the bound of a message.
const DIGESTS: usize = 32_768;

/// Messages that wait to be sent, for each peer in order.
#[derive(Default)]
pub(super) struct Letters(HashMap<PeerId, Vec<proto::SchedulerMessage>>);

impl Letters {
    /// Adds a decision; links of one task, told one after the other, share a message, and so do digests.
    pub(super) fn add(&mut self, peer: PeerId, directive: Directive) {
        let letters = self.0.entry(peer).or_default();
        match directive {
            Directive::Link { task, parent } => parents(letters, task).add.push(parent_message(&parent)),
            Directive::Unlink { task, peer } => {
                let parents = parents(letters, task);
                // The receiver parts first and links then, so a link of this message has to go.
                parents.add.retain(|parent| *parent.name != *peer);
                parents.drop.push(peer.to_string());
            }
            Directive::Digests { task, runs } => digests(letters, task, &runs),
            directive => letters.extend(body(directive).map(message)),
        }
    }

    /// All of them; none are left.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (PeerId, Vec<proto::SchedulerMessage>)> {
        self.0.drain()
    }
}

/// A message of its body.
pub(super) fn message(body: Body) -> proto::SchedulerMessage {
    proto::SchedulerMessage { body: Some(body) }
}

/// All that are denied, for nodes to end their connections with them.
pub(super) fn denied(denials: &[Denial]) -> proto::Denied {
    let names = denials.iter().filter_map(|denial| denial.name.clone()).collect();
    let keys = denials.iter().filter_map(|denial| denial.key).map(|key| Bytes::copy_from_slice(&key.0)).collect();
    proto::Denied { names, keys }
}

fn body(directive: Directive) -> Option<Body> {
    Some(match directive {
        // Those share messages.
        Directive::Link { .. } | Directive::Unlink { .. } | Directive::Digests { .. } => return None,
        Directive::Lease { id, task, pieces, silence } => Body::Lease(proto::Lease {
            id,
            task: name(task),
            first: pieces.start,
            count: pieces.end - pieces.start,
            silence_ms: millis(silence),
        }),
        Directive::LeaseEnd { id } => Body::LeaseEnd(proto::LeaseEnd { id }),
        Directive::DigestsWanted { task, pieces } => {
            let runs = pieces.iter().flat_map(|run| [run.start, run.end - run.start]).collect();
            Body::DigestsWanted(proto::DigestsWanted { task: name(task), pieces: Some(proto::PieceSet { runs }) })
        }
        Directive::Dispute { task, piece, first, second, refetch } => Body::Dispute(proto::Dispute {
            task: name(task),
            piece,
            first: first.to_string(),
            second: second.to_string(),
            refetch,
        }),
        Directive::Preheat { task, len, host, name: content, pin } => Body::Preheat(proto::Preheat {
            task: name(task),
            len,
            origin_host: host.to_string(),
            name: content.map_or_else(Bytes::new, |name| Bytes::copy_from_slice(&name)),
            pin,
        }),
        Directive::Spreading { task, spreading: Spreading { peers, complete, failed } } => {
            Body::Spreading(proto::Spreading { task: name(task), peers, complete, failed })
        }
        Directive::Throttle { host, pause } => {
            Body::Throttle(proto::Throttle { origin_host: host.to_string(), for_ms: millis(pause) })
        }
    })
}

/// The message of links at the end, or a new one.
fn parents(letters: &mut Vec<proto::SchedulerMessage>, task: TaskName) -> &mut proto::Parents {
    let open = matches!(letters.last(), Some(proto::SchedulerMessage { body: Some(Body::Parents(parents)) })
        if parents.task == task[..]);
    if !open {
        letters.push(message(Body::Parents(proto::Parents { task: name(task), ..Default::default() })));
    }
    match letters.last_mut() {
        Some(proto::SchedulerMessage { body: Some(Body::Parents(parents)) }) => parents,
        _ => unreachable!("pushed just now"),
    }
}

/// As few messages as their bound allows: fresh digests are often many short runs.
fn digests(letters: &mut Vec<proto::SchedulerMessage>, task: TaskName, runs: &[DigestRun]) {
    let mut room = digest_room(letters, task);
    for run in runs {
        let (mut first, mut rest) = (run.first, &run.digests[..]);
        while !rest.is_empty() {
            if room == 0 {
                letters.push(message(Body::Digests(proto::Digests { task: name(task), ..Default::default() })));
                room = DIGESTS;
            }
            let (part, after) = rest.split_at(rest.len().min(room));
            if let Some(proto::SchedulerMessage { body: Some(Body::Digests(letter)) }) = letters.last_mut() {
                letter.runs.push(proto::DigestRun { first, digests: part.concat().into() });
            }
            first = first.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
            (rest, room) = (after, room - part.len());
        }
    }
}

/// Digests that still fit the message at the end; 0 where that is another one.
fn digest_room(letters: &[proto::SchedulerMessage], task: TaskName) -> usize {
    match letters.last() {
        Some(proto::SchedulerMessage { body: Some(Body::Digests(last)) }) if last.task == task[..] => {
            DIGESTS - last.runs.iter().map(|run| run.digests.len() / 32).sum::<usize>()
        }
        _ => 0,
    }
}

fn parent_message(parent: &Parent) -> proto::Parent {
    proto::Parent {
        name: parent.name.to_string(),
        quic_address: parent.address.to_string(),
        seed: parent.seed,
        nearness: parent.nearness,
        complete: parent.complete,
        quic_endpoints: parent.endpoints.into(),
    }
}

fn name(task: TaskName) -> Bytes {
    Bytes::copy_from_slice(&task)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskName = [1; 32];

    fn parent(name: &str) -> Parent {
        let address = ([10, 0, 0, 1], 65010).into();
        Parent { name: name.into(), address, endpoints: 4, seed: true, nearness: 2, complete: false }
    }

    fn letters(directives: impl IntoIterator<Item = Directive>) -> Vec<Body> {
        let (mut letters, peer) = (Letters::default(), PeerId(3));
        directives.into_iter().for_each(|directive| letters.add(peer, directive));
        letters.take().flat_map(|(_, letters)| letters).filter_map(|letter| letter.body).collect()
    }

    #[test]
    fn links_of_a_task_share_a_message_and_one_that_ended_is_not_in_it() {
        let link = |name: &str| Directive::Link { task: TASK, parent: parent(name) };
        let letters = letters([link("a"), link("b"), Directive::Unlink { task: TASK, peer: "a".into() }]);
        let [Body::Parents(parents)] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!(parents.add.iter().map(|parent| &*parent.name).collect::<Vec<_>>(), ["b"]);
        assert_eq!((parents.add[0].quic_endpoints, &*parents.add[0].quic_address), (4, "10.0.0.1:65010"));
        assert_eq!(parents.drop, ["a"]);
    }

    #[test]
    fn what_lies_between_two_links_keeps_its_place() {
        let link = || Directive::Link { task: TASK, parent: parent("a") };
        let letters = letters([link(), Directive::LeaseEnd { id: 1 }, link()]);
        assert!(matches!(letters[..], [Body::Parents(_), Body::LeaseEnd(_), Body::Parents(_)]), "{letters:?}");
    }

    #[test]
    fn digests_fill_messages_up_to_their_bound() {
        let run = |first, count| DigestRun { first, digests: vec![[7; 32]; count] };
        let told = |runs: Vec<DigestRun>| Directive::Digests { task: TASK, runs: runs.into() };
        let letters = letters([told(vec![run(0, 10)]), told(vec![run(20, DIGESTS), run(40_000, 5)])]);
        let all: Vec<(u32, usize)> = letters
            .iter()
            .flat_map(|letter| match letter {
                Body::Digests(digests) => digests.runs.clone(),
                other => panic!("{other:?}"),
            })
            .map(|run| (run.first, run.digests.len() / 32))
            .collect();
        let split = DIGESTS - 10;
        assert_eq!(letters.len(), 2);
        assert_eq!(all, [(0, 10), (20, split), (20 + u32::try_from(split).unwrap(), 10), (40_000, 5)]);
    }
}
