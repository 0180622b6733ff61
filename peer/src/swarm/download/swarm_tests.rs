//! The machine with a scheduler and links, under chosen and under random schedules.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::super::*;
use crate::swarm::retry::Class;

const MIB: u64 = 1 << 20;
const NOW: Duration = Duration::ZERO;

fn machine(pieces: u64, leader: Leader) -> Download {
    let layout = Layout::for_len(pieces * MIB).unwrap();
    let mut download = Download::new(layout, &Bitmap::new(layout.pieces()), Reach::Ranges, Policy::default());
    download.handle(NOW, Event::UrlOffered { source: SourceId(1) });
    download.handle(NOW, Event::Led(leader));
    download
}

fn drain(download: &mut Download, now: Duration) -> Vec<Action> {
    std::iter::from_fn(|| download.poll(now)).collect()
}

fn want_all(download: &mut Download) {
    let len = download.layout.len();
    download.handle(NOW, Event::Want { reader: 1, bytes: 0..len });
}

fn fetched(actions: &[Action]) -> BTreeSet<u32> {
    actions
        .iter()
        .filter_map(|action| if let Action::Fetch(fetch) = action { Some(fetch.pieces.clone()) } else { None })
        .flatten()
        .collect()
}

fn asked(actions: &[Action]) -> Vec<(LinkId, u32)> {
    actions
        .iter()
        .filter_map(|action| if let Action::Ask { link, piece } = action { Some((*link, *piece)) } else { None })
        .collect()
}

fn link(download: &mut Download, id: u64, has: Range<u32>) -> LinkId {
    let link = LinkId(id);
    download.handle(NOW, Event::LinkUp { link });
    download.handle(NOW, Event::LinkHas { link, pieces: has });
    link
}

#[test]
fn a_piece_that_is_refuted_ends_the_download_for_it_cannot_be_taken_back_from_readers() {
    let mut download = machine(100, Leader::New);
    want_all(&mut download);
    download.handle(NOW, Event::Leased { lease: 7, pieces: 0..1 });
    let run = drain(&mut download, NOW).into_iter().find_map(|action| match action {
        Action::Fetch(fetch) => Some(fetch.run),
        _ => None,
    });
    download.handle(NOW, Event::Refuted { piece: 50 });
    assert_eq!(drain(&mut download, NOW), [Action::Cancel(run.unwrap()), Action::Fail(Reason::Refuted)]);
}

#[test]
fn links_that_have_everything_are_asked_in_order_and_others_for_what_is_rare() {
    let ask = |has: Range<u32>| {
        let mut download = machine(100, Leader::New);
        want_all(&mut download);
        let full = link(&mut download, 1, 0..100);
        link(&mut download, 2, has);
        download.handle(NOW, Event::Known { pieces: 0..100 });
        let mut pieces = Vec::new();
        // No more is asked at once than a link gives soon: what comes makes room.
        for _ in 0..20 {
            for (link, piece) in asked(&drain(&mut download, NOW)) {
                pieces.push((link, piece));
                download.handle(NOW, Event::PeerPiece { link, piece });
            }
        }
        (full, pieces)
    };
    let (_, pieces) = ask(0..100);
    assert_eq!(pieces.iter().map(|(_, piece)| *piece).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    let (full, pieces) = ask(0..50);
    let first = pieces.iter().filter(|(link, piece)| *link == full && *piece >= 50).count();
    assert_eq!(first, 50);
    assert!(pieces.iter().position(|(_, piece)| *piece >= 50).unwrap() < 20, "the rare half is not left for the end");
}

/// A window of eight pieces under a scheduler.
fn window() -> Download {
    let layout = Layout::for_len(8 * MIB).unwrap();
    let mut download = Download::new(layout, &Bitmap::new(8), Reach::Window, Policy::default());
    download.handle(NOW, Event::UrlOffered { source: SourceId(1) });
    download.handle(NOW, Event::Led(Leader::New));
    want_all(&mut download);
    download
}

#[test]
fn a_window_comes_whole_to_who_may_fetch_the_piece_that_its_reader_stands_before() {
    let mut download = window();
    assert_eq!(drain(&mut download, NOW), [Action::Tell(Wanted::Pieces { can_fetch: true, runs: None })]);
    download.handle(NOW, Event::Leased { lease: 1, pieces: 4..8 });
    assert!(drain(&mut download, NOW).is_empty(), "another node has the first piece, and so the rest with it");
    download.handle(NOW, Event::Leased { lease: 2, pieces: 0..2 });
    let Action::Fetch(fetch) = drain(&mut download, NOW).remove(0) else { panic!("no fetch") };
    assert_eq!((fetch.pieces.clone(), fetch.whole), (0..8, true));
    download.handle(NOW, Event::LeaseEnded { lease: 1 });
    assert!(drain(&mut download, NOW).is_empty(), "what is not leased any more comes all the same");
}

#[test]
fn a_window_that_another_node_brings_costs_no_request_unless_that_node_stops() {
    let mut download = window();
    let other = link(&mut download, 1, 0..2);
    download.handle(NOW, Event::Known { pieces: 0..2 });
    for (link, piece) in asked(&drain(&mut download, NOW)) {
        assert_eq!(link, other);
        download.handle(NOW, Event::PeerPiece { link, piece });
    }
    download.handle(NOW, Event::LinkDown { link: other });
    assert!(fetched(&drain(&mut download, NOW)).is_empty());
    let patience = Leases::patience(Policy::default().seed) + Duration::from_secs(1);
    drain(&mut download, patience / 2);
    let rest = fetched(&drain(&mut download, patience * 2));
    assert_eq!(rest, (2..8).collect());
}

/// A scheduler that answers pings and leases nothing would hold a download of thousands of pieces to sixteen for each wait.
#[test]
fn a_scheduler_that_leases_nothing_holds_a_download_up_for_a_few_waits_only() {
    let mut download = machine(500, Leader::New);
    want_all(&mut download);
    drain(&mut download, NOW);
    let (step, mut now, mut held) = (Duration::from_millis(250), NOW, 0);
    while now < Duration::from_secs(45) {
        now += step;
        loop {
            let runs: Vec<_> = drain(&mut download, now)
                .into_iter()
                .filter_map(|action| if let Action::Fetch(fetch) = action { Some(fetch) } else { None })
                .collect();
            if runs.is_empty() {
                break;
            }
            for Fetch { run, pieces, .. } in runs {
                held += pieces.len();
                pieces.for_each(|piece| download.handle(now, Event::PieceDone { run, piece }));
                download.handle(now, Event::RunEnded { run });
            }
        }
    }
    assert_eq!(held, 500);
}

#[test]
fn under_a_scheduler_only_leased_pieces_are_fetched_from_the_origin() {
    let mut download = machine(100, Leader::New);
    want_all(&mut download);
    let all = Action::Tell(Wanted::Pieces { can_fetch: true, runs: None });
    assert_eq!(drain(&mut download, NOW), [all]);
    download.handle(NOW, Event::Leased { lease: 7, pieces: 10..12 });
    assert_eq!(fetched(&drain(&mut download, NOW)), (10..12).collect());
    assert_eq!((download.lease_of(11), download.lease_of(12)), (Some(7), None));
}

#[test]
fn alone_everything_is_fetched_and_a_leader_that_comes_gets_it_all_back() {
    let mut download = machine(100, Leader::None);
    want_all(&mut download);
    assert!(!fetched(&drain(&mut download, NOW)).is_empty());
    download.handle(NOW, Event::Led(Leader::New));
    let trims = drain(&mut download, NOW).iter().filter(|action| matches!(action, Action::Trim(_))).count();
    assert!(trims > 0);
}

#[test]
fn a_lost_leaders_leases_last_for_the_grace_and_then_the_node_is_alone() {
    let mut download = machine(100, Leader::New);
    want_all(&mut download);
    download.handle(NOW, Event::Leased { lease: 1, pieces: 0..1 });
    let first = drain(&mut download, NOW);
    download.handle(NOW, Event::Led(Leader::Lost));
    assert_eq!(fetched(&first), [0].into());
    assert!(fetched(&drain(&mut download, Duration::from_secs(4))).is_empty());
    assert!(!fetched(&drain(&mut download, Duration::from_secs(6))).is_empty());
}

#[test]
fn a_lease_that_shrinks_or_ends_trims_the_run_in_it() {
    let mut download = machine(1000, Leader::New);
    want_all(&mut download);
    download.handle(NOW, Event::Leased { lease: 1, pieces: 0..60 });
    let fetch = drain(&mut download, NOW);
    let last = fetch
        .iter()
        .rev()
        .find_map(|action| if let Action::Fetch(fetch) = action { Some(fetch.clone()) } else { None })
        .unwrap();
    assert!(last.pieces.len() > 1, "{fetch:?}");
    download.handle(NOW, Event::Leased { lease: 1, pieces: 0..last.pieces.start + 1 });
    assert_eq!(drain(&mut download, NOW), [Action::Trim(last.run)]);
    download.handle(NOW, Event::RunEnded { run: last.run });
    download.handle(NOW, Event::LeaseEnded { lease: 1 });
    assert!(fetched(&drain(&mut download, NOW)).is_empty());
}

#[test]
fn what_links_have_is_asked_of_them_once_its_digest_is_known_and_not_of_the_origin() {
    let mut download = machine(8, Leader::New);
    want_all(&mut download);
    link(&mut download, 1, 0..8);
    download.handle(NOW, Event::Leased { lease: 1, pieces: 4..8 });
    let before = drain(&mut download, NOW);
    assert!(asked(&before).is_empty());
    // A few at a time: others wait for them.
    assert_eq!(fetched(&before), (4..6).collect(), "nobody can verify what the link has");
    download.handle(NOW, Event::Known { pieces: 0..4 });
    let after: BTreeSet<u32> = asked(&drain(&mut download, NOW)).into_iter().map(|(_, piece)| piece).collect();
    assert!(!after.is_empty() && after.is_subset(&(0..4).collect()), "{after:?}");
}

#[test]
fn the_pieces_that_a_reader_needs_next_come_first_and_then_rare_ones() {
    let mut download = machine(200, Leader::New);
    want_all(&mut download);
    let rich = link(&mut download, 1, 0..200);
    for id in 2..5 {
        link(&mut download, id, 0..150);
    }
    download.handle(NOW, Event::Known { pieces: 0..200 });
    let mut rare = 0;
    let mut first = BTreeSet::new();
    for _ in 0..40 {
        for (at, (link, piece)) in asked(&drain(&mut download, NOW)).into_iter().enumerate() {
            if at < 4 && first.len() < 4 {
                first.insert(piece);
            }
            rare += u32::from(link == rich && piece >= 150);
            download.handle(NOW, Event::PeerPiece { link, piece });
        }
    }
    assert_eq!(first, (0..4).collect());
    assert!(rare > 10, "{rare} rare ones of the link that alone has them");
}

#[test]
fn a_reader_that_waits_too_long_gets_its_piece_from_the_origin_without_a_lease() {
    let mut download = machine(8, Leader::New);
    want_all(&mut download);
    let dead = link(&mut download, 1, 0..8);
    download.handle(NOW, Event::Known { pieces: 0..8 });
    let first = asked(&drain(&mut download, NOW));
    assert!(first.contains(&(dead, 0)), "{first:?}");
    let late = Duration::from_secs(9);
    let actions = drain(&mut download, late);
    assert!(actions.contains(&Action::Stop { link: dead, piece: 0 }), "{actions:?}");
    assert!(fetched(&actions).is_empty(), "the link still writes at it");
    download.handle(late, Event::PeerFailed { link: dead, piece: 0 });
    assert_eq!(fetched(&drain(&mut download, late)), [0].into());
}

#[test]
fn a_piece_that_a_lost_link_was_asked_for_is_free_only_once_it_is_answered_for() {
    let mut download = machine(4, Leader::New);
    want_all(&mut download);
    let lost = link(&mut download, 1, 0..1);
    download.handle(NOW, Event::Known { pieces: 0..4 });
    assert_eq!(asked(&drain(&mut download, NOW)), [(lost, 0)]);
    download.handle(NOW, Event::LinkDown { link: lost });
    let other = link(&mut download, 2, 0..1);
    assert_eq!(drain(&mut download, NOW), [Action::Stop { link: lost, piece: 0 }]);
    download.handle(NOW, Event::PeerFailed { link: lost, piece: 0 });
    assert_eq!(asked(&drain(&mut download, NOW)), [(other, 0)]);
}

#[test]
fn a_late_piece_moves_to_a_link_that_brings_it_sooner() {
    let mut download = machine(64, Leader::New);
    want_all(&mut download);
    let slow = link(&mut download, 1, 0..1);
    download.handle(NOW, Event::Known { pieces: 0..64 });
    assert_eq!(asked(&drain(&mut download, NOW)), [(slow, 0)]);
    let fast = link(&mut download, 2, 0..64);
    let mut now = NOW;
    let mut stopped = false;
    for _ in 0..40 {
        now += Duration::from_millis(100);
        for action in drain(&mut download, now) {
            match action {
                Action::Ask { link, piece } => {
                    assert_eq!(link, fast);
                    if piece != 0 {
                        download.handle(now, Event::PeerPiece { link, piece });
                    }
                }
                Action::Stop { link, piece } => {
                    assert_eq!((link, piece), (slow, 0));
                    stopped = true;
                    download.handle(now, Event::PeerFailed { link, piece });
                }
                _ => {}
            }
        }
    }
    assert!(stopped);
}

#[test]
fn without_a_url_leases_go_back_and_links_carry_on() {
    let mut download = machine(8, Leader::New);
    want_all(&mut download);
    let parent = link(&mut download, 1, 4..8);
    download.handle(NOW, Event::Leased { lease: 3, pieces: 0..4 });
    let run = drain(&mut download, NOW)
        .into_iter()
        .find_map(|action| if let Action::Fetch(fetch) = action { Some(fetch.run) } else { None });
    download.handle(NOW, Event::RunFailed { run: run.unwrap(), class: Class::Credentials });
    let actions = drain(&mut download, Duration::from_millis(60));
    assert!(actions.contains(&Action::Return { lease: 3, why: GiveBack::Expired }), "{actions:?}");
    assert!(actions.contains(&Action::Tell(Wanted::Pieces { can_fetch: false, runs: None })), "{actions:?}");
    download.handle(NOW, Event::Known { pieces: 4..8 });
    let asked = asked(&drain(&mut download, Duration::from_millis(60)));
    assert!(asked.iter().all(|(link, _)| *link == parent) && !asked.is_empty());
}

#[test]
fn a_lease_that_no_reader_needs_goes_back_and_one_that_is_done_is_forgotten() {
    let mut download = machine(100, Leader::New);
    download.handle(NOW, Event::Want { reader: 1, bytes: 0..2 * MIB });
    let runs = Some(std::iter::once(0..2).collect());
    assert_eq!(drain(&mut download, NOW), [Action::Tell(Wanted::Pieces { can_fetch: true, runs })]);
    download.handle(NOW, Event::Leased { lease: 1, pieces: 0..2 });
    download.handle(NOW, Event::Leased { lease: 2, pieces: 50..52 });
    for action in drain(&mut download, NOW) {
        if let Action::Fetch(fetch) = action {
            fetch.pieces.clone().for_each(|piece| download.handle(NOW, Event::PieceDone { run: fetch.run, piece }));
            download.handle(NOW, Event::RunEnded { run: fetch.run });
        }
    }
    let later = drain(&mut download, Duration::from_secs(1));
    let back: Vec<_> = later.iter().filter(|action| matches!(action, Action::Return { .. })).collect();
    assert_eq!(back, [&Action::Return { lease: 2, why: GiveBack::Unneeded }]);
}

#[derive(Clone, Debug)]
enum Step {
    Lease(u64, Range<u32>),
    EndLease(u64),
    Link(u64, Range<u32>),
    Down(u64),
    Forget(u64),
    Known(Range<u32>),
    Dispute(u32),
    Lead(u8),
    /// Answers some of what is under way; whether well.
    Answer(usize, bool),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = || (0u32..40, 1u32..20).prop_map(|(start, len)| start..start + len);
    let step = prop_oneof![
        (0u64..6, run()).prop_map(|(lease, run)| Step::Lease(lease, run)),
        (0u64..6).prop_map(Step::EndLease),
        (0u64..5, run()).prop_map(|(link, run)| Step::Link(link, run)),
        (0u64..5).prop_map(Step::Down),
        (0u64..5).prop_map(Step::Forget),
        run().prop_map(Step::Known),
        (0u32..40).prop_map(Step::Dispute),
        (0u8..4).prop_map(Step::Lead),
        (0usize..50, proptest::bool::weighted(0.7)).prop_map(|(which, well)| Step::Answer(which, well)),
        (1u64..3000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What the driver and the world would do, with what must always hold.
struct World {
    download: Download,
    now: Duration,
    runs: BTreeMap<RunId, (Range<u32>, bool)>,
    asked: BTreeMap<(LinkId, u32), bool>,
    links: BTreeMap<u64, LinkId>,
    next_link: u64,
    held: HashSet<u32>,
    done: bool,
}

impl World {
    fn new() -> Self {
        let mut download = machine(40, Leader::New);
        want_all(&mut download);
        let (runs, asked, links) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { download, now: NOW, runs, asked, links, next_link: 0, held: HashSet::new(), done: false }
    }

    fn poll(&mut self) {
        while let Some(action) = self.download.poll(self.now) {
            match action {
                Action::Fetch(fetch) => {
                    for piece in fetch.pieces.clone() {
                        assert!(!self.held.contains(&piece), "{piece} is held");
                        assert!(self.asked.keys().all(|(_, other)| *other != piece), "two write at {piece}");
                        assert!(self.runs.values().all(|(run, _)| !run.contains(&piece)), "two runs at {piece}");
                    }
                    self.runs.insert(fetch.run, (fetch.pieces, false));
                }
                Action::Ask { link, piece } => {
                    assert!(!self.held.contains(&piece));
                    assert!(self.runs.values().all(|(run, _)| !run.contains(&piece)), "two write at {piece}");
                    assert!(self.asked.keys().all(|(_, other)| *other != piece), "two write at {piece}");
                    self.asked.insert((link, piece), false);
                }
                Action::Stop { link, piece } => {
                    if let Some(stopped) = self.asked.get_mut(&(link, piece)) {
                        *stopped = true;
                    }
                }
                Action::Trim(run) => {
                    if let Some((_, trimmed)) = self.runs.get_mut(&run) {
                        *trimmed = true;
                    }
                }
                Action::Cancel(run) => drop(self.runs.remove(&run)),
                Action::Done => self.done = true,
                Action::Fail(reason) => panic!("{reason:?}"),
                Action::Return { .. } | Action::Tell(_) => {}
            }
        }
    }

    fn piece_of_run(&mut self, run: RunId) {
        let Some((pieces, trimmed)) = self.runs.get_mut(&run) else { return };
        let piece = pieces.start;
        pieces.start += 1;
        let over = Range::is_empty(pieces) || *trimmed;
        self.held.insert(piece);
        self.download.handle(self.now, Event::PieceDone { run, piece });
        if over {
            self.runs.remove(&run);
            self.download.handle(self.now, Event::RunEnded { run });
        }
    }

    fn answer(&mut self, which: usize, well: bool) {
        let (runs, asked) = (self.runs.len(), self.asked.len());
        if runs + asked == 0 {
            return;
        }
        let which = which % (runs + asked);
        if which < runs {
            let run = *self.runs.keys().nth(which).unwrap();
            if well {
                return self.piece_of_run(run);
            }
            self.runs.remove(&run);
            return self.download.handle(self.now, Event::RunFailed { run, class: Class::Busy });
        }
        let ((link, piece), stopped) = self.asked.pop_first().unwrap();
        if well && !stopped {
            self.held.insert(piece);
            self.download.handle(self.now, Event::PeerPiece { link, piece });
        } else {
            self.download.handle(self.now, Event::PeerFailed { link, piece });
        }
    }

    fn step(&mut self, step: Step) {
        let event = match step {
            Step::Lease(lease, pieces) => Event::Leased { lease, pieces },
            Step::EndLease(lease) => Event::LeaseEnded { lease },
            Step::Link(id, pieces) => {
                let link = *self.links.entry(id).or_insert_with(|| {
                    self.next_link += 1;
                    self.download.handle(self.now, Event::LinkUp { link: LinkId(self.next_link) });
                    LinkId(self.next_link)
                });
                Event::LinkHas { link, pieces }
            }
            Step::Down(id) => match self.links.remove(&id) {
                Some(link) => Event::LinkDown { link },
                None => return,
            },
            Step::Forget(id) => match self.links.get(&id) {
                Some(link) => Event::LinkForgot { link: *link },
                None => return,
            },
            Step::Known(pieces) => Event::Known { pieces },
            Step::Dispute(piece) => Event::Disputed { piece },
            Step::Lead(which) => {
                let leaders = [Leader::None, Leader::Lost, Leader::Same, Leader::New];
                Event::Led(leaders[usize::from(which)])
            }
            Step::Answer(which, well) => return self.answer(which, well),
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                return;
            }
        };
        self.download.handle(self.now, event);
    }
}

proptest! {
    #[test]
    fn no_piece_has_two_writers_and_every_download_ends_whatever_scheduler_and_links_do(steps in steps()) {
        let mut world = World::new();
        world.poll();
        for step in steps {
            world.step(step);
            world.poll();
        }
        // The leader falls asleep for good: the node finishes with its links and the origin.
        for _ in 0..2_000 {
            if world.done {
                break;
            }
            world.now += Duration::from_millis(500);
            world.poll();
            while !world.runs.is_empty() || !world.asked.is_empty() {
                world.answer(0, true);
                world.poll();
            }
        }
        prop_assert!(world.done, "{} of 40", world.held.len());
        prop_assert_eq!(world.held.len(), 40);
    }
}
