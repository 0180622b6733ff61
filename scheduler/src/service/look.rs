//! How others look into a scheduler that runs, and ask something of it: answered by the task that owns the cluster.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Status;
use super::actor::Input;
use super::counts::SessionCounts;
use super::tls::Own;
use crate::cluster::Cluster;
use crate::trace::{Counts, Tracer};

/// For an answer; a cluster that takes longer is too busy to be looked at.
const ANSWER: Duration = Duration::from_secs(5);

/// A question to the cluster, or a change of it, with the time since its start.
pub(super) type Question = Box<dyn FnOnce(&mut Cluster, Duration) + Send>;

/// A way to look into a scheduler, whether it serves or not.
#[derive(Clone)]
pub struct Viewer {
    pub(super) inputs: watch::Receiver<Option<mpsc::WeakSender<Input>>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) sessions: Arc<SessionCounts>,
    pub(super) tracer: Tracer,
    pub(super) own: Arc<Own>,
}

impl Viewer {
    /// Whether the scheduler serves.
    pub fn serving(&self) -> bool {
        self.inputs.borrow().as_ref().is_some_and(|inputs| inputs.upgrade().is_some())
    }

    /// Why nodes cannot use the scheduler now; `None`: they can.
    pub fn unready(&self) -> Option<&'static str> {
        if !self.serving() {
            return Some("nodes are not served");
        }
        let valid = self.own.is_valid();
        (!valid).then_some("the scheduler's certificate is not valid at this time: check the machine's clock")
    }

    /// At most a tick (50 ms) old; nothing of it costs the cluster anything.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// What became of joins and sessions.
    pub fn sessions(&self) -> &SessionCounts {
        &self.sessions
    }

    /// What became of its traces.
    pub fn traces(&self) -> Counts {
        self.tracer.counts().unwrap_or_default()
    }

    /// Asks the cluster: everybody else waits meanwhile. `None` where it does not serve, or is too busy.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Cluster, Duration) -> T + Send + 'static,
    ) -> Option<T> {
        self.change(|cluster, now| question(cluster, now)).await
    }

    /// Has the cluster do something; what it decides is told to its nodes at once. `None` as with [`Viewer::ask`].
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Cluster, Duration) -> T + Send + 'static,
    ) -> Option<T> {
        let inputs = self.inputs.borrow().as_ref()?.upgrade()?;
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |cluster, now| {
            // Whoever asked may have given up waiting.
            drop(answer.send(change(cluster, now)));
        });
        let asked = async {
            inputs.send(Input::Look(question)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER, asked).await.ok()?
    }
}
