//! Two looks at a node as what it does between them [pure].

use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use crate::{
    admin::{LinkReport, Status, Task},
    cli::human::{age, percent, printable, size, table},
};

/// Digits of a task's id that are shown.
const SHORT: usize = 12;
/// Columns of a progress bar.
const BAR: usize = 20;
/// Lines that the head, the titles, the gaps and the two counts of what has no room take.
const FIXED: usize = 10;

/// What a node says of itself at a time.
pub(super) struct Sample {
    /// Since the command began.
    pub(super) at: Duration,
    pub(super) status: Status,
    pub(super) tasks: Vec<Task>,
}

/// Bytes a second, and requests a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    origin: u64,
    peers: u64,
    store: u64,
    clients: u64,
    sent_to_peers: u64,
    requests: f64,
}

/// A task that somebody uses, and bytes of it that came a second.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Busy {
    #[serde(flatten)]
    task: Task,
    rate: u64,
}

/// What is shown.
#[derive(Serialize)]
pub(super) struct Frame {
    seconds: f64,
    rates: Rates,
    status: Status,
    /// Those in use, the fastest first.
    busy: Vec<Busy>,
    #[serde(skip)]
    now: (Duration, Vec<Task>),
}

impl Frame {
    /// What happened between the two.
    pub(super) fn new(before: &Sample, now: Sample) -> Self {
        let seconds = now.at.saturating_sub(before.at).as_secs_f64().max(0.001);
        // A node that was started anew counts from zero.
        let rate = |old: u64, new: u64| (new.saturating_sub(old) as f64 / seconds) as u64;
        let (old, new) = (&before.status, &now.status);
        let sent = |status: &Status| status.swarm.as_ref().map_or(0, |swarm| swarm.sent_bytes);
        let requests = new.totals.requests.saturating_sub(old.totals.requests) as f64 / seconds;
        let rates = Rates {
            origin: rate(old.totals.origin_bytes, new.totals.origin_bytes),
            peers: rate(old.totals.peer_bytes, new.totals.peer_bytes),
            store: rate(old.totals.store_bytes, new.totals.store_bytes),
            clients: rate(old.totals.client_bytes, new.totals.client_bytes),
            sent_to_peers: rate(sent(old), sent(new)),
            requests: (requests * 10.0).round() / 10.0,
        };
        let held: HashMap<&str, u64> = before.tasks.iter().map(|task| (task.id.as_str(), task.held_bytes)).collect();
        let busy = now.tasks.iter().filter(|task| task.in_use).map(|task| {
            let old = held.get(task.id.as_str()).copied().unwrap_or(0);
            Busy { task: task.clone(), rate: rate(old, task.held_bytes) }
        });
        let mut busy: Vec<_> = busy.collect();
        busy.sort_by(|a, b| b.rate.cmp(&a.rate).then_with(|| a.task.label.cmp(&b.task.label)));
        Self { seconds, rates, status: now.status, busy, now: (now.at, now.tasks) }
    }

    /// For the next frame to be compared with.
    pub(super) fn into_sample(self) -> Sample {
        let (at, tasks) = self.now;
        Sample { at, status: self.status, tasks }
    }

    /// Lines for so many columns and lines; what has no room is counted.
    pub(super) fn lines(&self, (columns, lines): (u16, u16)) -> Vec<String> {
        let room = usize::from(lines).saturating_sub(FIXED);
        let links = self.status.swarm.iter().flat_map(|swarm| &swarm.links).collect::<Vec<_>>();
        let for_links = links.len().min(room / 3);
        let mut all = self.head();
        all.push(String::new());
        all.extend(self.tasks(room - for_links));
        if !links.is_empty() {
            all.push(String::new());
            all.extend(links_table(&links, for_links));
        }
        let fit = |line: String| line.chars().take(usize::from(columns)).collect::<String>().trim_end().to_owned();
        all.into_iter().map(fit).collect()
    }

    fn head(&self) -> Vec<String> {
        let (status, rates) = (&self.status, &self.rates);
        let ready = if status.unready.is_empty() { "ready".to_owned() } else { status.unready.join("; ") };
        let store = &status.store;
        let totals = &status.totals;
        let served = totals.hits + totals.joined;
        let per_second = |bytes: u64| format!("{:>10}/s", size(bytes));
        vec![
            printable(&format!(
                "pondhawk {}  up {}  {ready}  {} connections",
                status.version,
                age(status.uptime_seconds),
                status.connections
            )),
            format!(
                "store {} of {} in {} tasks, {} requests/s, hit ratio {}, {} preheats to come",
                size(store.bytes),
                size(store.quota),
                store.tasks,
                rates.requests,
                percent(served, served + totals.misses),
                status.preheats.waiting + status.preheats.running
            ),
            format!(
                "in    origin {}   peers {}   store {}",
                per_second(rates.origin),
                per_second(rates.peers),
                per_second(rates.store)
            ),
            format!("out  clients {}   peers {}", per_second(rates.clients), per_second(rates.sent_to_peers)),
        ]
    }

    fn tasks(&self, room: usize) -> Vec<String> {
        let rows: Vec<_> = self.busy.iter().take(room).map(row).collect();
        let text = table(["TASK", "SIZE", "HELD", "", "RATE", "FROM"], &rows, &[1, 2, 4]);
        let left = self.busy.len() - rows.len();
        let more = (left > 0).then(|| format!("and {left} more"));
        let none = self.busy.is_empty().then(|| "no task is in use".to_owned());
        text.lines().map(str::to_owned).chain(more).chain(none).collect()
    }
}

fn row(busy: &Busy) -> [String; 6] {
    let task = &busy.task;
    [
        printable(&task.id.chars().take(SHORT).collect::<String>()),
        size(task.bytes),
        percent(task.held_bytes, task.bytes),
        bar(task.held_bytes, task.bytes),
        format!("{}/s", size(busy.rate)),
        printable(&task.label),
    ]
}

fn bar(part: u64, whole: u64) -> String {
    let full = usize::try_from(u128::from(part) * BAR as u128 / u128::from(whole.max(1))).unwrap_or(BAR).min(BAR);
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

fn links_table(links: &[&LinkReport], room: usize) -> Vec<String> {
    let mut links = links.to_vec();
    links.sort_by(|a, b| b.rate.cmp(&a.rate).then_with(|| a.peer.cmp(&b.peer)));
    let row = |link: &&LinkReport| {
        [printable(&link.peer), link.address.to_string(), size(link.bytes), format!("{}/s", size(link.rate))]
    };
    let rows: Vec<_> = links.iter().take(room).map(row).collect();
    let left = links.len() - rows.len();
    let more = (left > 0).then(|| format!("and {left} more links"));
    let text = table(["LINK", "ADDRESS", "FETCHED", "RATE"], &rows, &[2, 3]);
    text.lines().map(str::to_owned).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::SwarmReport, metrics::Totals};

    fn task(id: char, held_bytes: u64, in_use: bool) -> Task {
        Task {
            id: id.to_string().repeat(64),
            label: format!("cdn.example/{id}\u{1b}[2J"),
            bytes: 10 << 20,
            held_bytes,
            pieces: 10,
            held_pieces: 1,
            verdict: "pending".into(),
            in_use,
            pinned: false,
            origin_bytes: 0,
            peer_bytes: 0,
            created_unix: 1,
            used_unix: 2,
        }
    }

    fn sample(seconds: u64, origin_bytes: u64, tasks: Vec<Task>) -> Sample {
        let link = |n: u16| LinkReport {
            peer: format!("node-{n}"),
            address: ([192, 0, 2, 1], n).into(),
            bytes: 5,
            rate: n.into(),
        };
        let status = Status {
            totals: Totals { origin_bytes, requests: origin_bytes >> 20, ..Totals::default() },
            swarm: Some(SwarmReport { links: (1..30).map(link).collect(), ..SwarmReport::default() }),
            ..Status::default()
        };
        Sample { at: Duration::from_secs(seconds), status, tasks }
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let before = sample(1, 1 << 20, vec![task('a', 1 << 20, true), task('b', 0, false)]);
        let now = sample(3, 5 << 20, vec![task('a', 3 << 20, true), task('b', 0, false), task('c', 4 << 20, true)]);
        let frame = Frame::new(&before, now);
        assert_eq!((frame.rates.origin, frame.rates.requests), (2 << 20, 2.0));
        let busy: Vec<_> = frame.busy.iter().map(|busy| (&busy.task.id[..1], busy.rate)).collect();
        assert_eq!(busy, [("c", 2 << 20), ("a", 1 << 20)]);
        let restarted = Frame::new(&frame.into_sample(), sample(4, 0, Vec::new()));
        assert_eq!(restarted.rates.origin, 0);
    }

    #[test]
    fn a_frame_fits_its_terminal_and_counts_what_it_leaves_out() {
        let tasks: Vec<_> = "abcdefghijklmnopqrstuvwxyz".chars().map(|id| task(id, 5 << 20, true)).collect();
        let frame = Frame::new(&sample(1, 0, Vec::new()), sample(2, 0, tasks));
        for size in [(80, 24), (20, 10), (1, 1), (200, 50)] {
            let lines = frame.lines(size);
            assert!(lines.iter().all(|line| line.chars().count() <= usize::from(size.0)), "{lines:?}");
            assert!(!lines.concat().contains('\u{1b}'));
        }
        let lines = frame.lines((120, 24));
        assert!(lines.len() <= 24 && lines.iter().any(|line| line.starts_with("and 16 more")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("50%  [==========          ]")), "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.starts_with("node-29"))
                && lines.iter().any(|line| line == "and 25 more links")
        );
    }
}
