//! Carries the faults out. Each fault is over, and what it hit is back, before the next one of its lane begins.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    Soak, SoakError, pause,
    schedule::{NodeFault, NodeFaults, OriginFaults, SchedulerFault, SchedulerFaults},
};
use crate::{
    hub::Fault,
    lab::cluster::{Joining, SchedulerProcess},
};

/// How often a lane looks whether the minute is over.
const LOOK: Duration = Duration::from_millis(50);

impl Soak<'_> {
    /// What happens to nodes until the minute has `ended`.
    pub(super) fn break_nodes(
        &self,
        faults: &mut NodeFaults,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        for fault in faults {
            if !rest(fault.pause, ended) {
                break;
            }
            self.count_fault(&format!("node-{}: {:?} for {:?}", fault.target, fault.kind, fault.lasts));
            self.troubles.begin_node(fault.target, fault.kind);
            self.break_node(fault.target, fault.kind, fault.lasts, ended)?;
            self.troubles.end_node(fault.target);
        }
        Ok(())
    }

    fn break_node(
        &self,
        number: usize,
        kind: NodeFault,
        lasts: Duration,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        let (cluster, node) = (&self.cluster, &self.cluster.nodes()[number]);
        match kind {
            NodeFault::Kill => {
                node.kill()?;
                rest(lasts, ended);
                // It has its certificate: it needs no token any more.
                let joining = match &self.joining {
                    Joining::To { schedulers, .. } => Joining::To { schedulers: schedulers.clone(), token: None },
                    Joining::Alone => Joining::Alone,
                };
                node.start(&joining)?;
            }
            NodeFault::Freeze => {
                node.freeze()?;
                rest(lasts, ended);
                node.thaw()?;
            }
            NodeFault::Unplug => {
                cluster.cut(number)?;
                rest(lasts, ended);
                cluster.heal(number)?;
                // The bridge forwards again within a second.
                pause(Duration::from_secs(1));
            }
            NodeFault::FillDisk => self.disks[number].fill(lasts, ended)?,
        }
        Ok(())
    }

    /// What happens to schedulers until the minute has `ended`.
    pub(super) fn break_schedulers(
        &self,
        faults: &mut SchedulerFaults,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        for fault in faults {
            if !rest(fault.pause, ended) {
                break;
            }
            self.count_fault(&format!("scheduler-{}: {:?} for {:?}", fault.target, fault.kind, fault.lasts));
            let Some(scheduler) = self.cluster.schedulers().nth(fault.target) else { break };
            self.break_scheduler(scheduler, fault.kind, fault.lasts, ended)?;
        }
        Ok(())
    }

    fn break_scheduler(
        &self,
        scheduler: &SchedulerProcess,
        kind: SchedulerFault,
        lasts: Duration,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        match kind {
            SchedulerFault::Kill => {
                scheduler.kill()?;
                rest(lasts, ended);
                scheduler.restart()?;
            }
            SchedulerFault::Freeze => {
                scheduler.freeze()?;
                rest(lasts, ended);
                scheduler.thaw()?;
            }
            SchedulerFault::Unplug => {
                self.cluster.set_link(scheduler.host(), false)?;
                rest(lasts, ended);
                self.cluster.set_link(scheduler.host(), true)?;
            }
        }
        Ok(())
    }

    /// What the origin does wrong until the minute has `ended`.
    pub(super) fn break_origin(
        &self,
        faults: &mut OriginFaults,
        ended: &(impl Fn() -> bool + Sync),
    ) -> Result<(), SoakError> {
        for fault in faults {
            if !rest(fault.pause, ended) {
                break;
            }
            self.count_fault(&format!("origin: {:?} for {:?}", fault.kind, fault.lasts));
            let armed = Fault::new(fault.kind.kind.clone()).times(1).min_bytes(2);
            let object = fault.kind.file.map(|file| super::FILES[file].label());
            self.troubles.begin_origin(fault.kind);
            self.cluster.hub().add_fault(&Fault { object, ..armed })?;
            rest(fault.lasts, ended);
            self.cluster.hub().clear_faults()?;
            self.troubles.end_origin();
        }
        Ok(())
    }

    fn count_fault(&self, what: &str) {
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        eprintln!("  {what}");
    }
}

/// Waits; whether the minute was not over meanwhile.
fn rest(time: Duration, ended: &impl Fn() -> bool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && !ended() {
        pause(LOOK.min(end.saturating_duration_since(Instant::now())));
    }
    !ended()
}
