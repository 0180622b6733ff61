//! What to fetch next, from the origin or a link, and what to tell the scheduler [pure].

use std::{ops::Range, time::Duration};

use super::{
    Action, Download, GiveBack, Leader, LinkId, MAX_WANTED, Phase, Reach, Wanted,
    bits::{self, Bits},
    leases::Leases,
    links::{self, Free},
    skip_held,
};

/// Between two looks at who waits too long.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two tellings of what is wanted: readers come and go by the dozen.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Under a scheduler a run is at most this part of the task: others come a moment later and want their share.
const LED_SHARE: u64 = 256;
/// Runs at the start there, for the same reason; one more with each piece done as long as nobody else is there.
const LED_FIRST_RUNS: usize = 2;
/// For a piece that a link has a reader waits so many times longer before it is fetched without a lease.
const LINKED_PATIENCE: u32 = 4;
/// Pieces that a reader is about to need: asked for before rarer ones.
const WINDOW: u32 = 4;

/// The pieces that links may be asked for.
struct Unclaimed<'a> {
    held: &'a Bits,
    busy: &'a Bits,
}

impl Free for Unclaimed<'_> {
    fn word(&self, index: usize) -> u64 {
        !self.held.word(index) & !self.busy.word(index)
    }
}

/// The scheduler's side.
impl Download {
    pub(super) fn led(&mut self, now: Duration, leader: Leader) {
        self.leases.lead(now, leader);
        if !matches!(leader, Leader::None) && self.next_run == 0 {
            self.limit = self.limit.min(LED_FIRST_RUNS);
        }
        // A new leader gives to others what runs here without its knowledge.
        if matches!(leader, Leader::New) {
            self.trim_unleased();
        }
        self.told.get_or_insert(Wanted::Nothing);
    }

    pub(super) fn leased(&mut self, lease: u64, pieces: Range<u32>) {
        let why = match (self.reach != Reach::Whole, self.sources.is_empty()) {
            (true, false) if self.leases.add(lease, pieces) => return self.trim_unleased(),
            (_, true) => GiveBack::Expired,
            _ => GiveBack::Failed,
        };
        self.queued.push_back(Action::Return { lease, why });
    }

    /// Runs that reach into what is not leased (any more) end after the piece that they are in.
    pub(super) fn trim_unleased(&mut self) {
        // One request brings everything, whoever may fetch the rest.
        if !self.leases.is_led() || !self.is_ranged() {
            return;
        }
        let mut ended = Vec::new();
        for run in &mut self.runs {
            // The piece under way is finished in any case.
            let under_way = u32::from(run.parked.is_none());
            let next = run.pieces.start + under_way;
            if let Some(end) = (next..run.pieces.end).find(|piece| !self.leases.may(*piece)) {
                match run.parked {
                    None => self.queued.push_back(Action::Trim(run.id)),
                    Some(_) => ended.push((run.id, end)),
                }
            }
        }
        for (run, end) in ended {
            self.cut_parked(run, end);
        }
    }

    fn cut_parked(&mut self, id: super::RunId, end: u32) {
        let Some(run) = self.runs.iter_mut().find(|run| run.id == id) else { return };
        self.busy.clear_run(end..run.pieces.end);
        run.pieces.end = end;
        if run.pieces.is_empty() {
            self.end_run(id);
        }
    }

    /// Without a URL a lease is of no use here.
    pub(super) fn return_if_expired(&mut self) {
        if !self.sources.is_empty() || !self.leases.is_led() {
            return;
        }
        let back = self.leases.take().into_iter().map(|lease| Action::Return { lease, why: GiveBack::Expired });
        self.queued.extend(back);
        let parked: Vec<_> = self.runs.iter().filter(|run| run.parked.is_some()).map(|run| run.id).collect();
        // With links others may bring it; without, the readers must renew the URL.
        if !self.links.is_empty() {
            parked.into_iter().for_each(|run| self.end_run(run));
        }
    }

    /// Tells what is wanted if that has changed.
    pub(super) fn tell(&mut self, now: Duration) -> Option<Action> {
        if self.told.is_none() || now < self.may_tell {
            return None;
        }
        let wanted = self.wanted();
        if self.told.as_ref() == Some(&wanted) {
            return None;
        }
        self.may_tell = now + TELL_EVERY;
        self.told = Some(wanted.clone());
        Some(Action::Tell(wanted))
    }

    fn wanted(&self) -> Wanted {
        let all = 0..self.layout.pieces();
        let can_fetch = !self.sources.is_empty() && self.reach != Reach::Whole;
        let mut runs = match (self.wants.is_empty(), self.policy.finish_alone) {
            (true, false) => return Wanted::Nothing,
            (_, true) => vec![all.clone()],
            (false, false) => merged(self.wants.values().map(|want| want.all.clone())),
        };
        if runs.first() == Some(&all) {
            return Wanted::Pieces { can_fetch, runs: None };
        }
        runs.retain(|run| bits::first(run.clone(), |index| !self.held.word(index)).is_some());
        runs.truncate(MAX_WANTED);
        if runs.is_empty() { Wanted::Nothing } else { Wanted::Pieces { can_fetch, runs: Some(runs) } }
    }

    /// Now and then: whoever waits too long is helped, leases of no use go back.
    pub(super) fn look(&mut self, now: Duration) {
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        self.leases.tire(now);
        self.relieve(now);
        let held = &self.held;
        self.leases.prune(|piece| held.get(piece));
        let wants = merged(self.wants.values().map(|want| want.pieces.clone()));
        let finish_alone = self.policy.finish_alone;
        let wanted = |piece| finish_alone || wants.iter().any(|run| run.contains(&piece));
        let back = self.leases.take_unneeded(|piece| !held.get(piece) && wanted(piece));
        self.queued.extend(back.into_iter().map(|lease| Action::Return { lease, why: GiveBack::Unneeded }));
        let missing: usize = wants.iter().map(ExactSizeIterator::len).sum();
        let moved = self.links.hedge(now, missing <= links::TAIL);
        self.queued.extend(moved.into_iter().map(|(link, piece)| Action::Stop { link, piece }));
    }

    /// Lets pieces be fetched without a lease that a reader has waited for too long.
    fn relieve(&mut self, now: Duration) {
        if self.policy.from_links {
            return;
        }
        let patience = Leases::patience(self.policy.seed);
        // Nobody else could bring it: then the client has to hear that its URL is no good any more.
        let hopeless = self.sources.is_empty() && self.links.is_empty();
        // What links have comes from them, if later, as long as anything does: in a crowd everybody waits for the same
        // pieces, and an origin that all fall back to at once serves nobody.
        let is_fed = self.fed.is_some_and(|last| now < last + patience);
        let mut stuck = Vec::new();
        for want in self.wants.values_mut() {
            skip_held(&self.held, want);
            let piece = want.pieces.start;
            let fetched = self.runs.iter().any(|run| run.pieces.start == piece);
            if want.stands.0 != piece || fetched {
                want.stands = (piece, now);
            }
            let linked = is_fed && self.links.word(piece as usize / 64) >> (piece % 64) & 1 == 1;
            let patience = if linked { patience * LINKED_PATIENCE } else { patience };
            if !want.pieces.is_empty() && !fetched && (hopeless || now >= want.stands.1 + patience) {
                want.stands.1 = now;
                stuck.push(piece);
            }
        }
        if !self.leases.is_led() && self.links.is_empty() {
            return;
        }
        for piece in stuck {
            if !self.leases.is_permitted(piece) {
                self.leases.permit(piece, is_fed);
            }
            let stopped = self.links.stop(piece);
            self.queued.extend(stopped.map(|link| Action::Stop { link, piece }));
        }
    }
}

/// The links' side.
impl Download {
    pub(super) fn answered(&mut self, now: Duration, link: LinkId, piece: u32, bytes: Option<u64>) {
        if self.links.answered(now, link, piece, bytes) {
            self.busy.clear(piece);
        }
    }

    pub(super) fn ask(&mut self, now: Duration) -> Option<Action> {
        // An origin that knows no ranges sends everything at once.
        let all_comes = !self.is_ranged() && !self.runs.is_empty();
        if self.links.is_empty() || self.phase == Phase::Ended || all_comes {
            return None;
        }
        self.wants.values_mut().for_each(|want| skip_held(&self.held, want));
        let all = std::iter::once(0..self.layout.pieces()).collect::<Vec<_>>();
        let wants = merged(self.wants.values().map(|want| want.pieces.clone()));
        let wanted = if self.policy.finish_alone { &all[..] } else { &wants[..] };
        let window =
            |want: &super::Want| want.pieces.start..want.pieces.end.min(want.pieces.start.saturating_add(WINDOW));
        let windows = merged(self.wants.values().map(window));
        let free = Unclaimed { held: &self.held, busy: &self.busy };
        let (link, piece) = self.links.ask(now, &windows, wanted, &free)?;
        self.busy.set(piece);
        Some(Action::Ask { link, piece })
    }
}

/// The origin's side.
impl Download {
    /// The next pieces to fetch: first a piece that a reader stands before, readers taking turns; then the next free
    /// piece of a reader; without readers the first free piece at all.
    pub(super) fn pick(&mut self) -> Option<Range<u32>> {
        self.wants.values_mut().for_each(|want| skip_held(&self.held, want));
        if self.wants.is_empty() {
            let all = 0..self.layout.pieces();
            let first = self.policy.finish_alone.then(|| self.first_free(all.clone())).flatten()?;
            return Some(self.extend(first, all.end));
        }
        let after = self.wants.range(self.served_last + 1..).chain(self.wants.range(..=self.served_last));
        let turns: Vec<_> = after.map(|(reader, want)| (*reader, want.pieces.clone())).collect();
        let stands = |(_, pieces): &&(u64, Range<u32>)| !pieces.is_empty() && self.is_free(pieces.start);
        let urgent = turns.iter().find(stands).map(|(reader, pieces)| (*reader, pieces.start, pieces.end));
        let next = || {
            let mut free = turns.iter().map(|(reader, pieces)| (*reader, self.first_free(pieces.clone()), pieces.end));
            free.find_map(|(reader, first, end)| first.map(|first| (reader, first, end)))
        };
        let (reader, first, end) = match self.reach {
            Reach::Window => urgent?,
            Reach::Ranges | Reach::Whole => urgent.or_else(next)?,
        };
        self.served_last = reader;
        Some(self.extend(first, end))
    }

    /// From `first` on, free pieces up to `end`: not past a run's length, nor past a free piece that another reader stands before.
    fn extend(&self, first: u32, end: u32) -> Range<u32> {
        if !self.is_ranged() {
            let last = self.wants.values().map(|want| want.pieces.end).max().unwrap_or(end);
            return first..last.max(end);
        }
        let longest = first.saturating_add(self.run_pieces(first, end)).min(end);
        let stops = |piece: &u32| {
            let stood_before = self.wants.values().any(|want| want.pieces.start == *piece && !want.pieces.is_empty());
            !self.is_free(*piece) || stood_before
        };
        first..(first + 1..longest).find(stops).unwrap_or(longest)
    }

    /// Pieces in a run: what is left is cut so that every slot gets two more runs, up to the policy's length.
    fn run_pieces(&self, first: u32, end: u32) -> u32 {
        let bytes = match (self.leases.is_led(), self.links.is_empty()) {
            (false, _) => self.policy.run_len,
            (true, true) => self.policy.led_run_len[0].min(self.layout.len() / LED_SHARE),
            (true, false) => self.policy.led_run_len[1],
        };
        let longest = u32::try_from(bytes / u64::from(self.layout.piece_len())).unwrap_or(u32::MAX).max(1);
        let share = u32::try_from(2 * self.policy.max_runs.max(1)).unwrap_or(u32::MAX);
        let enough = longest.saturating_mul(share) as usize;
        let free = (first..end).filter(|piece| self.is_free(*piece)).take(enough).count();
        u32::try_from(free).unwrap_or(u32::MAX).div_ceil(share).clamp(1, longest)
    }

    fn first_free(&self, pieces: Range<u32>) -> Option<u32> {
        bits::first(pieces, |index| self.free_word(index))
    }

    fn is_free(&self, piece: u32) -> bool {
        self.free_word(piece as usize / 64) >> (piece % 64) & 1 == 1
    }

    /// Pieces that may be fetched from the origin now. An origin that knows no ranges sends everything anyway.
    fn free_word(&self, index: usize) -> u64 {
        let unclaimed = !self.held.word(index) & !self.busy.word(index);
        if self.reach == Reach::Whole {
            return unclaimed;
        }
        unclaimed & (self.leases.word(index) & !self.links.word(index) | self.leases.permitted(index))
    }
}

/// The same pieces as rising runs that do not touch.
fn merged(runs: impl Iterator<Item = Range<u32>>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = runs.filter(|run| !run.is_empty()).collect();
    runs.sort_unstable_by_key(|run| run.start);
    let mut all: Vec<Range<u32>> = Vec::with_capacity(runs.len().min(MAX_WANTED));
    for run in runs {
        match all.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => all.push(run),
        }
    }
    all
}

#[cfg(test)]
#[path = "swarm_tests.rs"]
mod tests;
