//! What a parent holds of one task, as a download hears of it.

use std::{
    cell::RefCell,
    ops::Range,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    FetchError, Link,
    frame::FrameError,
    holdings::{Holdings, OutOfTask},
};
use crate::task::{Layout, TaskId};

/// News of a task from one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// It has these pieces, which it had not before: rising runs, none empty.
    Pieces(Vec<Range<u32>>),
    /// It has none of them any more.
    Gone,
    /// It asks to be sent no request for so long.
    Throttled(Duration),
}

/// Hears what one parent holds of one task. Dropped, the parent is told to say no more.
pub struct Follow {
    link: Rc<Link>,
    task: TaskId,
    view: Rc<View>,
    told: Vec<u64>,
    forgotten: u32,
    throttle: u32,
}

/// What the parent has said so far, for all followers of the task.
pub(super) struct View {
    pub(super) layout: Layout,
    held: RefCell<Holdings>,
    changed: Notify,
}

impl View {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, held: RefCell::new(Holdings::none_of(layout.pieces())), changed: Notify::new() }
    }

    /// Applies a frame, which may state the task's length.
    pub(super) fn change(
        &self,
        apply: impl FnOnce(&mut Holdings) -> Result<(), OutOfTask>,
        len: Option<u64>,
    ) -> Result<(), FrameError> {
        if len.is_some_and(|len| len != self.layout.len()) {
            return Err(FrameError::OutOfTask);
        }
        apply(&mut self.held.borrow_mut()).map_err(|OutOfTask| FrameError::OutOfTask)?;
        self.changed.notify_waiters();
        Ok(())
    }
}

impl Follow {
    pub(super) fn new(link: Rc<Link>, task: TaskId, view: Rc<View>) -> Self {
        let forgotten = view.held.borrow().forgotten;
        Self { link, task, view, told: Vec::new(), forgotten, throttle: 0 }
    }

    /// The next news; what the parent had said before is told first. Dropping the future loses none.
    ///
    /// # Errors
    /// The link's end: [`FetchError::Blamed`] or [`FetchError::Down`].
    pub async fn next(&mut self) -> Result<Have, FetchError> {
        let (link, view) = (Rc::clone(&self.link), Rc::clone(&self.view));
        loop {
            let (changed, news) = (view.changed.notified(), link.news.notified());
            // What somebody said who sends garbage is worth nothing.
            if let Some(have) = self.news().filter(|_| !link.is_guilty()) {
                return Ok(have);
            }
            if let Some(end) = link.end() {
                return Err(end);
            }
            tokio::select! {
                () = changed => {}
                () = news => {}
                _ = link.connection.closed() => {}
            }
        }
    }

    fn news(&mut self) -> Option<Have> {
        let held = self.view.held.borrow();
        if held.forgotten != self.forgotten {
            self.forgotten = held.forgotten;
            self.told.clear();
            return Some(Have::Gone);
        }
        let pieces = held.news(&mut self.told);
        if !pieces.is_empty() {
            return Some(Have::Pieces(pieces));
        }
        let (number, until) = self.link.throttle().filter(|(number, _)| *number != self.throttle)?;
        self.throttle = number;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(Have::Throttled(left))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if Rc::strong_count(&self.view) == 1 {
            self.link.unfollow(self.task, &self.view);
        }
    }
}
