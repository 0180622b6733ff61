//! The download machine under any scheduler, links, readers and origin: no piece has two writers, and every download ends.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use pondhawk::swarm::download::{
    Action, Download, Event, Fetch, Leader, LinkId, MAX_WANTED, Policy, Reach, Reason, RunId, SourceId, Wanted,
};
use pondhawk::swarm::retry::Class;
use pondhawk::task::{Bitmap, Layout};

const PIECES: u32 = 40;
const MIB: u64 = 1 << 20;
const MAX_STEPS: usize = 300;
/// Rounds of half a second after which a download with a good origin must have ended.
const MAX_ROUNDS: usize = 4_000;

/// Runs the target: the bytes choose what happens.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(mut world) = World::new(&mut input) else { return };
    world.settle();
    for _ in 0..MAX_STEPS {
        if input.is_empty() || world.ended() || world.step(&mut input).is_err() {
            break;
        }
        world.settle();
    }
    world.recover();
}

/// What the driver and everything around it would do, with what must always hold.
struct World {
    download: Download,
    now: Duration,
    runs: BTreeMap<RunId, Fetch>,
    trimmed: BTreeSet<RunId>,
    /// What links were asked for, and whether they were told to stop.
    asked: BTreeMap<(LinkId, u32), bool>,
    links: BTreeMap<u64, LinkId>,
    next_link: u64,
    next_source: u64,
    held: BTreeSet<u32>,
    is_done: bool,
    failure: Option<Reason>,
}

impl World {
    fn new(input: &mut Unstructured<'_>) -> Result<Self> {
        let reach = *input.choose(&[Reach::Ranges, Reach::Ranges, Reach::Whole, Reach::Window])?;
        let policy = Policy { finish_alone: input.arbitrary()?, seed: input.arbitrary()?, ..Policy::default() };
        let layout = Layout::for_len(u64::from(PIECES) * MIB).expect("a short task");
        let mut download = Download::new(layout, &Bitmap::new(PIECES), reach, policy);
        let now = Duration::ZERO;
        download.handle(now, Event::UrlOffered { source: SourceId(1) });
        if input.arbitrary()? {
            download.handle(now, Event::Led(Leader::New));
        }
        download.handle(now, Event::Want { reader: 1, bytes: 0..layout.len() });
        Ok(Self {
            download,
            now,
            runs: BTreeMap::new(),
            trimmed: BTreeSet::new(),
            asked: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            next_source: 1,
            held: BTreeSet::new(),
            is_done: false,
            failure: None,
        })
    }

    fn ended(&self) -> bool {
        self.is_done || self.failure.is_some()
    }

    fn settle(&mut self) {
        while let Some(action) = self.download.poll(self.now) {
            match action {
                Action::Fetch(fetch) => self.fetch(fetch),
                Action::Ask { link, piece } => {
                    assert!(!self.held.contains(&piece), "{piece} is held and asked for");
                    self.check_no_writer(piece);
                    self.asked.insert((link, piece), false);
                }
                Action::Stop { link, piece } => {
                    if let Some(stopped) = self.asked.get_mut(&(link, piece)) {
                        *stopped = true;
                    }
                }
                Action::Trim(run) => drop(self.trimmed.insert(run)),
                Action::Cancel(run) => {
                    assert!(self.runs.remove(&run).is_some(), "{run:?} is cancelled and not under way");
                }
                Action::Done => {
                    assert_eq!(self.held.len() as u32, PIECES, "done too early");
                    self.is_done = true;
                }
                Action::Fail(Reason::Credentials) => self.offer(),
                Action::Fail(reason) => self.failure = Some(reason),
                Action::Tell(Wanted::Pieces { runs: Some(runs), .. }) => {
                    assert!(runs.len() <= MAX_WANTED && runs.iter().all(|run| !run.is_empty()));
                    assert!(runs.windows(2).all(|pair| pair[0].end <= pair[1].start), "{runs:?}");
                }
                Action::Return { .. } | Action::Tell(_) => {}
            }
        }
    }

    fn offer(&mut self) {
        self.next_source += 1;
        self.download.handle(self.now, Event::UrlOffered { source: SourceId(self.next_source) });
    }

    fn fetch(&mut self, fetch: Fetch) {
        assert!(!fetch.pieces.is_empty());
        for piece in fetch.pieces.clone() {
            // One request for everything passes over what is held.
            assert!(fetch.whole || !self.held.contains(&piece), "{fetch:?} fetches a held piece");
            if !self.held.contains(&piece) && !fetch.whole {
                self.check_no_writer(piece);
            }
        }
        self.runs.insert(fetch.run, fetch);
    }

    fn check_no_writer(&self, piece: u32) {
        assert!(self.asked.keys().all(|(_, other)| *other != piece), "{piece} has another writer, a link");
        let writes = |run: &Fetch| run.pieces.contains(&piece) && !run.whole;
        assert!(!self.runs.values().any(writes), "{piece} has another writer, a run");
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let event = match input.int_in_range(0..=16)? {
            0 => Event::Leased { lease: input.int_in_range(0..=5)?, pieces: pieces(input)? },
            1 => Event::LeaseEnded { lease: input.int_in_range(0..=5)? },
            2 | 3 => return self.link_has(input),
            4 => match self.links.remove(&input.int_in_range(0..=4)?) {
                Some(link) => Event::LinkDown { link },
                None => return Ok(()),
            },
            5 => Event::LinkForgot { link: LinkId(input.int_in_range(0..=9)?) },
            6 => {
                let pause = Duration::from_millis(input.int_in_range(0..=10_000)?);
                Event::LinkBusy { link: LinkId(input.int_in_range(0..=9)?), pause }
            }
            7 | 8 => Event::Known { pieces: pieces(input)? },
            9 => Event::Disputed { piece: input.int_in_range(0..=PIECES - 1)? },
            10 => Event::Led(*input.choose(&[Leader::None, Leader::Lost, Leader::Same, Leader::New])?),
            11 => Event::Unwant { reader: input.int_in_range(1..=4)? },
            12 => {
                let start = input.int_in_range(0..=u64::from(PIECES) * MIB)?;
                let bytes = start..start.saturating_add(input.int_in_range(0..=60 * MIB)?);
                Event::Want { reader: input.int_in_range(1..=4)?, bytes }
            }
            13 => {
                self.offer();
                return Ok(());
            }
            14 => {
                self.now += Duration::from_millis(input.int_in_range(1..=3000)?);
                return Ok(());
            }
            _ => return self.answer(input),
        };
        self.download.handle(self.now, event);
        Ok(())
    }

    fn link_has(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let id = input.int_in_range(0..=4)?;
        let next = &mut self.next_link;
        let (download, now) = (&mut self.download, self.now);
        let link = *self.links.entry(id).or_insert_with(|| {
            *next += 1;
            download.handle(now, Event::LinkUp { link: LinkId(*next) });
            LinkId(*next)
        });
        self.download.handle(self.now, Event::LinkHas { link, pieces: pieces(input)? });
        Ok(())
    }

    /// One of the things under way comes to something.
    fn answer(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let fates = [
            None,
            None,
            None,
            Some(Class::transient()),
            Some(Class::Transient { after: Some(Duration::from_secs(1)), throttled: true }),
            Some(Class::Busy),
            Some(Class::Credentials),
            Some(Class::IgnoredRange),
        ];
        let fate = *input.choose(&fates)?;
        let which = input.choose_index((self.runs.len() + self.asked.len()).max(1))?;
        if let Some(run) = self.runs.keys().nth(which).copied() {
            match fate {
                None if input.ratio(1, 4)? => {
                    let piece = self.runs[&run].pieces.start;
                    let valid = input.int_in_range(1..=1000)?;
                    self.download.handle(self.now, Event::Progress { run, piece, valid });
                }
                None => self.piece_done(run),
                Some(class) => {
                    self.runs.remove(&run);
                    self.download.handle(self.now, Event::RunFailed { run, class });
                }
            }
        } else if let Some(key) = self.asked.keys().nth(which - self.runs.len()).copied() {
            self.answer_link(key, fate.is_none());
        }
        Ok(())
    }

    fn answer_link(&mut self, (link, piece): (LinkId, u32), well: bool) {
        let stopped = self.asked.remove(&(link, piece)).unwrap_or(true);
        if well && !stopped {
            self.held.insert(piece);
            self.download.handle(self.now, Event::PeerPiece { link, piece });
        } else {
            self.download.handle(self.now, Event::PeerFailed { link, piece });
        }
    }

    fn piece_done(&mut self, run: RunId) {
        let Some(fetch) = self.runs.get_mut(&run) else { return };
        let piece = fetch.pieces.start;
        fetch.pieces.start += 1;
        let is_over = fetch.pieces.is_empty() || self.trimmed.contains(&run);
        // A request for everything passes over pieces that others write or have written.
        if self.asked.keys().all(|(_, other)| *other != piece) && self.held.insert(piece) {
            self.download.handle(self.now, Event::PieceDone { run, piece });
        }
        if is_over {
            self.runs.remove(&run);
            self.download.handle(self.now, Event::RunEnded { run });
        }
    }

    /// The scheduler says nothing any more, everything else works: what readers want comes.
    fn recover(&mut self) {
        self.download.handle(self.now, Event::Want { reader: 9, bytes: 0..u64::from(PIECES) * MIB });
        self.offer();
        for _ in 0..MAX_ROUNDS {
            self.settle();
            if self.ended() {
                return;
            }
            if let Some(run) = self.runs.keys().next().copied() {
                self.piece_done(run);
            } else if let Some(key) = self.asked.keys().next().copied() {
                self.answer_link(key, true);
            } else {
                self.now += Duration::from_millis(500);
            }
        }
        panic!("the download does not end: {} of {PIECES} pieces", self.held.len());
    }
}

fn pieces(input: &mut Unstructured<'_>) -> Result<Range<u32>> {
    let start = input.int_in_range(0..=PIECES - 1)?;
    Ok(start..start + input.int_in_range(1..=20)?)
}
