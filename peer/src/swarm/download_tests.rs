//! The download machine under chosen and under random schedules.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const NOW: Duration = Duration::ZERO;

fn machine(pieces: u64, policy: Policy) -> Download {
    let layout = Layout::for_len(pieces * MIB).unwrap();
    let mut download = Download::new(layout, &Bitmap::new(layout.pieces()), Reach::Ranges, policy);
    download.handle(NOW, Event::UrlOffered { source: SourceId(1) });
    download
}

fn want(download: &mut Download, reader: u64, bytes: Range<u64>) {
    download.handle(NOW, Event::Want { reader, bytes });
}

fn drain(download: &mut Download, now: Duration) -> Vec<Action> {
    std::iter::from_fn(|| download.poll(now)).collect()
}

fn fetches(actions: &[Action]) -> Vec<Fetch> {
    let fetch = |action: &Action| if let Action::Fetch(fetch) = action { Some(fetch.clone()) } else { None };
    actions.iter().filter_map(fetch).collect()
}

fn finish(download: &mut Download, fetch: &Fetch) {
    for piece in fetch.pieces.clone() {
        download.handle(NOW, Event::PieceDone { run: fetch.run, piece });
    }
    download.handle(NOW, Event::RunEnded { run: fetch.run });
}

fn fail(download: &mut Download, fetch: &Fetch, class: Class) {
    download.handle(NOW, Event::RunFailed { run: fetch.run, class });
}

#[test]
fn runs_start_where_readers_stand_and_ramp_up_with_pieces_done() {
    let mut download = machine(640, Policy::default());
    want(&mut download, 1, 0..640 * MIB);
    want(&mut download, 2, 300 * MIB..310 * MIB);
    let first = fetches(&drain(&mut download, NOW));
    let starts: Vec<_> = first.iter().map(|fetch| fetch.pieces.start).collect();
    assert_eq!((first.len(), starts.contains(&0), starts.contains(&300)), (4, true, true), "{starts:?}");
    finish(&mut download, &first[0]);
    let more = fetches(&drain(&mut download, NOW));
    assert!(more.len() > 1, "{more:?}");
}

#[test]
fn a_short_tail_is_spread_one_piece_a_run() {
    let mut download = machine(20, Policy { first_runs: 16, ..Policy::default() });
    want(&mut download, 1, 0..20 * MIB);
    let runs = fetches(&drain(&mut download, NOW));
    assert_eq!((runs.len(), runs.iter().all(|fetch| fetch.pieces.len() == 1)), (16, true));
}

#[test]
fn a_cut_run_goes_on_at_the_byte_after_the_last_one_written() {
    let mut download = machine(1, Policy::default());
    want(&mut download, 1, 0..MIB);
    let fetch = fetches(&drain(&mut download, NOW)).remove(0);
    download.handle(NOW, Event::Progress { run: fetch.run, piece: 0, valid: 777 });
    fail(&mut download, &fetch, Class::transient());
    assert!(drain(&mut download, NOW).is_empty());
    let due = download.poll_timeout().unwrap();
    let again = fetches(&drain(&mut download, due)).remove(0);
    assert_eq!((again.pieces.clone(), again.from), (0..1, 777));
    finish(&mut download, &again);
    assert_eq!(drain(&mut download, NOW), [Action::Done]);
}

#[test]
fn attempts_without_progress_run_out_and_progress_renews_them() {
    let mut download = machine(1, Policy::default());
    want(&mut download, 1, 0..MIB);
    let attempts = Policy::default().backoff.attempts;
    let mut now = NOW;
    for round in 1..=2 * attempts {
        let fetch = fetches(&drain(&mut download, now)).remove(0);
        if round == attempts {
            download.handle(now, Event::Progress { run: fetch.run, piece: 0, valid: 1 });
        }
        if round == 2 * attempts - 1 {
            download.handle(now, Event::RunFailed { run: fetch.run, class: Class::transient() });
            assert_eq!(drain(&mut download, now), [Action::Fail(Reason::Exhausted)]);
            return;
        }
        download.handle(now, Event::RunFailed { run: fetch.run, class: Class::transient() });
        now = download.poll_timeout().unwrap();
    }
    panic!("never exhausted");
}

#[test]
fn an_expired_url_is_replaced_by_the_next_clients_and_without_one_readers_are_told_until_one_comes() {
    let mut download = machine(1, Policy::default());
    want(&mut download, 1, 0..MIB);
    download.handle(NOW, Event::UrlOffered { source: SourceId(2) });
    let fetch = fetches(&drain(&mut download, NOW)).remove(0);
    fail(&mut download, &fetch, Class::Credentials);
    let second = fetches(&drain(&mut download, NOW)).remove(0);
    assert_eq!((fetch.source, second.source), (SourceId(1), SourceId(2)));
    fail(&mut download, &second, Class::Credentials);
    assert_eq!(drain(&mut download, NOW), [Action::Fail(Reason::Credentials)]);
    assert!(drain(&mut download, NOW).is_empty());
    download.handle(NOW, Event::UrlOffered { source: SourceId(3) });
    assert_eq!(fetches(&drain(&mut download, NOW))[0].source, SourceId(3));
}

#[test]
fn an_origin_that_ignores_ranges_gets_one_request_for_all() {
    let mut download = machine(100, Policy::default());
    want(&mut download, 1, 0..100 * MIB);
    let runs = fetches(&drain(&mut download, NOW));
    fail(&mut download, &runs[1], Class::IgnoredRange);
    let actions = drain(&mut download, NOW);
    let cancelled = actions.iter().filter(|action| matches!(action, Action::Cancel(_))).count();
    let whole = fetches(&actions);
    assert_eq!((cancelled, whole.len(), whole[0].whole, whole[0].pieces.clone()), (3, 1, true, 0..100));
    fail(&mut download, &whole[0], Class::IgnoredRange);
    assert_eq!(drain(&mut download, NOW)[0], Action::Fail(Reason::Refused));
}

#[test]
fn the_last_reader_to_leave_stops_the_download_after_the_pieces_under_way() {
    let mut download = machine(640, Policy::default());
    want(&mut download, 1, 0..640 * MIB);
    want(&mut download, 2, 0..640 * MIB);
    let runs = fetches(&drain(&mut download, NOW));
    download.handle(NOW, Event::Unwant { reader: 1 });
    assert!(drain(&mut download, NOW).is_empty());
    download.handle(NOW, Event::Unwant { reader: 2 });
    let trims: Vec<_> = runs.iter().map(|fetch| Action::Trim(fetch.run)).collect();
    assert_eq!(drain(&mut download, NOW), trims);
    for fetch in &runs {
        download.handle(NOW, Event::PieceDone { run: fetch.run, piece: fetch.pieces.start });
        download.handle(NOW, Event::RunEnded { run: fetch.run });
    }
    assert!(drain(&mut download, NOW).is_empty() && download.is_idle());
}

#[test]
fn without_a_url_and_without_readers_it_may_be_put_away_even_if_it_should_finish_alone() {
    let mut download = machine(2, Policy { finish_alone: true, first_runs: 1, ..Policy::default() });
    want(&mut download, 1, 0..2 * MIB);
    let fetch = fetches(&drain(&mut download, NOW)).remove(0);
    fail(&mut download, &fetch, Class::Credentials);
    assert_eq!(drain(&mut download, NOW), [Action::Fail(Reason::Credentials)]);
    assert!(!download.is_idle(), "its reader may bring a new URL");
    download.handle(NOW, Event::Unwant { reader: 1 });
    assert!(download.is_idle());
}

#[test]
fn with_finish_alone_the_rest_is_fetched_without_readers() {
    let mut download = machine(2, Policy { finish_alone: true, first_runs: 1, ..Policy::default() });
    want(&mut download, 1, 0..10);
    let first = fetches(&drain(&mut download, NOW)).remove(0);
    download.handle(NOW, Event::Unwant { reader: 1 });
    finish(&mut download, &first);
    let rest = fetches(&drain(&mut download, NOW)).remove(0);
    assert_eq!(rest.pieces, 1..2);
}

#[test]
fn a_throttling_origin_gets_half_as_many_runs() {
    let mut download = machine(640, Policy { first_runs: 8, ..Policy::default() });
    want(&mut download, 1, 0..640 * MIB);
    let runs = fetches(&drain(&mut download, NOW));
    let after = Duration::from_secs(2);
    fail(&mut download, &runs[0], Class::Transient { after: Some(after), throttled: true });
    runs[1..5].iter().for_each(|fetch| download.handle(NOW, Event::RunEnded { run: fetch.run }));
    assert!(drain(&mut download, NOW).is_empty());
    assert!(download.poll_timeout().unwrap() >= after);
}

/// What a simulated origin does to the run that is chosen.
#[derive(Clone, Debug)]
enum Fate {
    Piece,
    Bytes(u32),
    Fails(Class),
    ReaderLeaves(u64),
    ReaderComes(u64, u64, u64),
}

fn fate() -> impl Strategy<Value = Fate> {
    let class = prop_oneof![
        Just(Class::transient()),
        Just(Class::Transient { after: Some(Duration::from_secs(1)), throttled: true }),
        Just(Class::Busy),
        Just(Class::Credentials),
        Just(Class::IgnoredRange),
    ];
    prop_oneof![
        4 => Just(Fate::Piece),
        2 => (1_u32..1000).prop_map(Fate::Bytes),
        2 => class.prop_map(Fate::Fails),
        1 => (1_u64..5).prop_map(Fate::ReaderLeaves),
        1 => (1_u64..5, 0..200 * MIB, 1..200 * MIB).prop_map(|(reader, start, len)| Fate::ReaderComes(reader, start, len)),
    ]
}

/// Carries out actions and checks what must hold after each.
struct World {
    download: Download,
    running: BTreeMap<RunId, Fetch>,
    trimmed: HashSet<RunId>,
    done: HashSet<u32>,
    now: Duration,
    next_source: u64,
    failed: Option<Reason>,
    finished: bool,
    max_runs: usize,
}

impl World {
    fn settle(&mut self) {
        while let Some(action) = self.download.poll(self.now) {
            match action {
                Action::Fetch(fetch) => self.fetch(fetch),
                Action::Trim(run) => drop(self.trimmed.insert(run)),
                Action::Cancel(run) => assert!(self.running.remove(&run).is_some()),
                Action::Done => self.finished = true,
                Action::Fail(Reason::Credentials) => self.offer(),
                Action::Fail(reason) => self.failed = Some(reason),
                Action::Ask { .. } | Action::Stop { .. } | Action::Return { .. } | Action::Tell(_) => {
                    panic!("there are no other nodes: {action:?}")
                }
            }
        }
    }

    fn offer(&mut self) {
        self.next_source += 1;
        self.download.handle(self.now, Event::UrlOffered { source: SourceId(self.next_source) });
    }

    fn fetch(&mut self, fetch: Fetch) {
        let overlaps = |other: &Fetch| other.pieces.start < fetch.pieces.end && fetch.pieces.start < other.pieces.end;
        assert!(
            !fetch.pieces.is_empty() && !self.running.values().any(overlaps),
            "{fetch:?} against {:?}",
            self.running
        );
        assert!(
            fetch.whole || fetch.pieces.clone().all(|piece| !self.done.contains(&piece)),
            "{fetch:?} fetches a held piece"
        );
        self.running.insert(fetch.run, fetch);
        assert!(self.running.len() <= self.max_runs);
    }

    fn meet(&mut self, fate: &Fate, chosen: usize) {
        match *fate {
            Fate::ReaderLeaves(reader) => return self.download.handle(self.now, Event::Unwant { reader }),
            Fate::ReaderComes(reader, start, len) => {
                return self.download.handle(self.now, Event::Want { reader, bytes: start..start + len });
            }
            _ => {}
        }
        let Some(run) = self.running.keys().nth(chosen % self.running.len().max(1)).copied() else { return };
        match *fate {
            Fate::Fails(class) => {
                self.running.remove(&run);
                self.download.handle(self.now, Event::RunFailed { run, class });
            }
            Fate::Bytes(valid) => {
                let piece = self.running[&run].pieces.start;
                self.download.handle(self.now, Event::Progress { run, piece, valid });
            }
            _ => self.piece_done(run),
        }
    }

    fn piece_done(&mut self, run: RunId) {
        let fetch = self.running.get_mut(&run).unwrap();
        let piece = fetch.pieces.start;
        fetch.pieces.start += 1;
        let ended = fetch.pieces.is_empty() || self.trimmed.contains(&run);
        self.done.insert(piece);
        self.download.handle(self.now, Event::PieceDone { run, piece });
        if ended {
            self.running.remove(&run);
            self.download.handle(self.now, Event::RunEnded { run });
        }
    }

    /// An origin that answers from now on.
    fn recover(&mut self) {
        for _ in 0..10_000 {
            self.settle();
            if self.finished || self.failed.is_some() {
                return;
            }
            match self.running.keys().next().copied() {
                Some(run) => self.piece_done(run),
                None => self.now = self.download.poll_timeout().expect("something runs or is due"),
            }
        }
        panic!("does not terminate");
    }
}

proptest! {
    #[test]
    fn whatever_fails_no_piece_is_fetched_twice_at_once_and_an_origin_that_recovers_completes_the_task(
        fates in proptest::collection::vec((fate(), 0_usize..16), 0..200),
        max_runs in 1_usize..20,
        finish_alone: bool,
        seed: u64,
    ) {
        let policy = Policy { max_runs, finish_alone, seed, ..Policy::default() };
        let mut world = World {
            download: machine(200, policy),
            running: BTreeMap::new(), trimmed: HashSet::new(), done: HashSet::new(),
            now: NOW, next_source: 1, failed: None, finished: false, max_runs,
        };
        want(&mut world.download, 1, 0..200 * MIB);
        for (fate, chosen) in &fates {
            world.settle();
            world.meet(fate, *chosen);
            world.now += Duration::from_millis(50);
        }
        world.download.handle(world.now, Event::Want { reader: 9, bytes: 0..200 * MIB });
        world.recover();
        match world.failed {
            None => prop_assert_eq!(world.done.len(), 200),
            Some(reason) => prop_assert!(matches!(reason, Reason::Exhausted | Reason::Refused)),
        }
    }
}
