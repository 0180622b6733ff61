//! What the rest of the machine does while a scenario is measured.

use std::{
    fmt, fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::lab::wait_until;

/// Others that use more of the machine than this make times meaningless.
const MOST: f64 = 0.1;
const LOOK: Duration = Duration::from_secs(1);

/// Shares of the machine's processors, 0 to 1, that other processes used for a second before and a second after a scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// Before it started.
    pub before: f64,
    /// After it had ended.
    pub after: f64,
}

impl Noise {
    /// Whether times measured in between mean nothing.
    pub fn is_busy(&self) -> bool {
        self.before.max(self.after) > MOST
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after } = self;
        write!(f, "others used {:.0} % of the machine before and {:.0} % after", before * 100.0, after * 100.0)?;
        if self.is_busy() { write!(f, ": too noisy to tell") } else { Ok(()) }
    }
}

/// Looks on for a second, or until `interrupted`; the share of all processors that others than this process used.
pub(super) fn others(interrupted: &AtomicBool) -> Result<f64> {
    let (before, own_before) = (read()?, own_ticks()?);
    wait_until(LOOK, || interrupted.load(Ordering::Relaxed).then_some(()));
    let own = own_ticks()?.saturating_sub(own_before);
    Ok(read()?.since(&before, own))
}

/// The first line of /proc/stat (proc_stat(5)), in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// Time stolen by other guests of the host counts as busy: it is gone for us as well.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // Guest time, which follows, is contained in user time.
        let fields: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let [user, nice, system, idle, wait, irq, softirq, steal] = fields.try_into().ok()?;
        let busy = user + nice + system + irq + softirq + steal;
        Some(Self { busy, all: busy + idle + wait })
    }

    fn since(&self, before: &Self, own: u64) -> f64 {
        let busy = self.busy.saturating_sub(before.busy).saturating_sub(own);
        busy as f64 / self.all.saturating_sub(before.all).max(1) as f64
    }
}

fn read() -> Result<Ticks> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    Ticks::parse(&stat).context("/proc/stat has no line of all processors")
}

fn own_ticks() -> Result<u64> {
    let usage = crate::lab::usage(std::process::id()).context("/proc/self/stat")?;
    Ok((usage.cpu_seconds * rustix::param::clock_ticks_per_second() as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_others_is_what_was_busy_without_our_own() {
        let before = Ticks::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n").unwrap();
        let after = Ticks::parse("cpu  140 10 60 930 50 0 5 5 40 0\n").unwrap();
        assert_eq!((before.busy, before.all), (150, 1000));
        assert!((after.since(&before, 20) - 0.25).abs() < 1e-9);
        assert_eq!(after.since(&before, 1000), 0.0);
        assert_eq!(Ticks::parse("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn a_tenth_of_the_machine_before_or_after_is_too_much() {
        assert!(!Noise { before: 0.1, after: 0.02 }.is_busy());
        let noise = Noise { before: 0.0, after: 0.11 };
        assert!(noise.is_busy() && noise.to_string().ends_with("too noisy to tell"));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let share = others(&AtomicBool::new(true)).unwrap();
        assert!((0.0..=1.0).contains(&share));
    }
}
