//! How others look into a scheduler that runs: what they ask is answered by the task that owns the cluster.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Status;
use super::actor::Input;
use super::counts::SessionCounts;
use crate::cluster::Cluster;

/// For an answer; a cluster that takes longer is too busy to be looked at.
const ANSWER: Duration = Duration::from_secs(5);

/// A question to the cluster, with the time since its start.
pub(super) type Question = Box<dyn FnOnce(&Cluster, Duration) + Send>;

/// A way to look into a scheduler, whether it serves or not.
#[derive(Clone)]
pub struct Viewer {
    pub(super) inputs: watch::Receiver<Option<mpsc::WeakSender<Input>>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) sessions: Arc<SessionCounts>,
}

impl Viewer {
    /// Whether the scheduler serves.
    pub fn serving(&self) -> bool {
        self.inputs.borrow().as_ref().is_some_and(|inputs| inputs.upgrade().is_some())
    }

    /// At most a tick (50 ms) old; nothing of it costs the cluster anything.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// What became of joins and sessions.
    pub fn sessions(&self) -> &SessionCounts {
        &self.sessions
    }

    /// Asks the cluster: everybody else waits meanwhile. `None` where it does not serve, or is too busy.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Cluster, Duration) -> T + Send + 'static,
    ) -> Option<T> {
        let inputs = self.inputs.borrow().as_ref()?.upgrade()?;
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |cluster, now| {
            // Whoever asked may have given up waiting.
            drop(answer.send(question(cluster, now)));
        });
        let asked = async {
            inputs.send(Input::Look(question)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER, asked).await.ok()?
    }
}
