//! What a person sees while files come.

use std::{sync::Arc, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::human::printable;

/// Characters of a file's name that are shown, its end.
const NAME: usize = 32;
/// How often the rate is computed anew while nothing comes.
const TICK: Duration = Duration::from_millis(500);

/// All bars; a terminal has them, anything else only the notes.
#[derive(Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    total: Arc<ProgressBar>,
    quiet: bool,
}

/// One file's.
pub(crate) struct Bar {
    own: ProgressBar,
    total: Arc<ProgressBar>,
}

impl Progress {
    /// With `quiet` neither bars nor notes.
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { bars: MultiProgress::with_draw_target(target), total: Arc::new(ProgressBar::hidden()), quiet }
    }

    /// Shows a bar over so many files together, if they are several.
    pub(crate) fn expect(&mut self, files: usize, bytes: u64) {
        if files > 1 {
            let bar = self.bars.add(ProgressBar::new(bytes).with_style(style()));
            bar.set_message(format!("{files} files"));
            bar.enable_steady_tick(TICK);
            self.total = Arc::new(bar);
        }
    }

    /// A bar for one file.
    pub(crate) fn file(&self, name: &str, bytes: Option<u64>) -> Bar {
        let bar = ProgressBar::no_length().with_style(style());
        let own = match self.total.is_hidden() {
            true => self.bars.add(bar),
            false => self.bars.insert_before(&self.total, bar),
        };
        let cut = name.chars().count().saturating_sub(NAME);
        let shown: String = name.chars().skip(cut).collect();
        own.set_message(printable(&if cut > 0 { format!("…{shown}") } else { shown }));
        bytes.iter().for_each(|&bytes| own.set_length(bytes));
        own.enable_steady_tick(TICK);
        Bar { own, total: Arc::clone(&self.total) }
    }

    /// A line for the person, above the bars.
    pub(crate) fn note(&self, text: &str) {
        let line = format!("pondhawk: {}", printable(text));
        match (self.quiet, self.bars.is_hidden()) {
            (true, _) => {}
            (false, true) => eprintln!("{line}"),
            // A terminal that takes nothing is nobody to tell.
            (false, false) => drop(self.bars.println(line)),
        }
    }

    /// Takes all bars away; what is said from then on stands on lines of its own.
    pub(crate) fn end(&self) {
        self.total.finish_and_clear();
        drop(self.bars.clear());
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }
}

impl Bar {
    /// The file's length, once it is known.
    pub(crate) fn expect(&self, bytes: u64) {
        self.own.set_length(bytes);
    }

    /// Bytes that came.
    pub(crate) fn add(&self, bytes: u64) {
        self.own.inc(bytes);
        self.total.inc(bytes);
    }

    /// So many bytes are there, of this one alone.
    pub(crate) fn at(&self, bytes: u64) {
        self.own.set_position(bytes);
    }

    /// Bytes that were there before, and count for no rate.
    pub(crate) fn had(&self, bytes: u64) {
        self.add(bytes);
        self.own.reset_eta();
        self.total.reset_eta();
    }

    /// Everything comes again.
    pub(crate) fn restart(&self) {
        self.total.set_position(self.total.position().saturating_sub(self.own.position()));
        self.own.reset();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.own.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    let template = "{msg:33} {bytes:>11}/{total_bytes:11} [{bar:24}] {bytes_per_sec:>12} {eta:>5}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
