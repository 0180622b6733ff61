//! How long peers wait for what they want, and what they are leased meanwhile, as their traces tell it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cluster::{Directive, Event, PeerId, TaskName};
use crate::trace::{Context, Kind, Span, Tracer};

/// Wishes that are traced at a time; more are not.
const MAX_WAITS: usize = 4096;

/// A wish that is a part of a trace.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) task: TaskName,
    pub(super) context: Context,
    /// Whose it is.
    pub(super) name: Arc<str>,
}

/// The wishes that are traced.
#[derive(Default)]
pub(super) struct Waits {
    tracer: Tracer,
    open: HashMap<(PeerId, TaskName), Wait>,
}

struct Wait {
    /// Until the first answer.
    want: Option<Span>,
    /// From the first lease to the wish's end.
    lease: Span,
    leases: u64,
}

impl Waits {
    pub(super) fn new(tracer: Tracer) -> Self {
        Self { tracer, open: HashMap::new() }
    }

    /// A peer wants something. Said again, it goes on waiting.
    pub(super) fn wanted(&mut self, peer: PeerId, traced: Traced) {
        let Traced { task, context, name } = traced;
        if self.open.contains_key(&(peer, task)) || self.open.len() >= MAX_WAITS {
            return;
        }
        let span = |called, kind| {
            let mut span = self.tracer.remote(called, kind, Some(context));
            span.set_with("pondhawk.task", || hex(&task));
            span.set_with("pondhawk.peer", || name.to_string());
            span
        };
        let (want, lease) = (span("want", Kind::Server), span("lease", Kind::Internal).when_busy());
        if want.is_on() {
            self.open.insert((peer, task), Wait { want: Some(want), lease, leases: 0 });
        }
    }

    /// What a peer says may be the end of its wish.
    pub(super) fn said(&mut self, peer: PeerId, event: &Event) {
        if self.open.is_empty() {
            return;
        }
        match event {
            Event::Unwant { task } => drop(self.open.remove(&(peer, *task))),
            Event::Gone => self.open.retain(|(whose, _), _| *whose != peer),
            _ => {}
        }
    }

    /// What a peer is told may be what it waits for.
    pub(super) fn told(&mut self, peer: PeerId, directive: &Directive) {
        if self.open.is_empty() {
            return;
        }
        let (task, answer, pieces) = match directive {
            Directive::Link { task, .. } => (*task, "parents", None),
            Directive::Lease { task, pieces, .. } => (*task, "lease", Some(pieces.end - pieces.start)),
            _ => return,
        };
        let Some(wait) = self.open.get_mut(&(peer, task)) else { return };
        if let Some(mut want) = wait.want.take() {
            want.set("pondhawk.answer", answer);
        }
        if let Some(pieces) = pieces {
            wait.leases += 1;
            wait.lease.add(pieces.into(), 0);
            wait.lease.busy();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(mut want) = self.want.take() {
            want.set("pondhawk.answer", "none");
        }
        if self.leases > 0 {
            self.lease.set("pondhawk.leases", self.leases);
            self.lease.busy();
        }
    }
}

fn hex(task: &TaskName) -> String {
    task.iter().map(|byte| format!("{byte:02x}")).collect()
}
