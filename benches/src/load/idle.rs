//! Connections that are open, have asked once, and wait.

use std::sync::Arc;

use serde::Serialize;
use tokio::task::JoinSet;

use super::{client::Connection, operation::World, record::Failure};

/// Connections being opened, or asked once more, at the same time by each thread; fewer than any server's backlog.
const AT_ONCE: usize = 32;

/// What became of the idle connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Idle {
    /// Were to be opened.
    pub wanted: usize,
    /// Were opened and answered.
    pub opened: usize,
    /// Of these, those that answered once more after the load.
    pub answered: usize,
    /// The first reason why one did not.
    pub error: Option<String>,
}

impl Idle {
    pub(super) fn add(&mut self, other: Self) {
        self.wanted += other.wanted;
        self.opened += other.opened;
        self.answered += other.answered;
        self.error = self.error.take().or(other.error);
    }
}

/// The idle connections of one thread.
pub(super) struct Held {
    world: Arc<World>,
    connections: Vec<Connection>,
    report: Idle,
}

impl Held {
    /// Opens them; each asks for the first object's first byte.
    pub(super) async fn open(world: &Arc<World>, count: usize) -> Self {
        let mut held = Self {
            world: Arc::clone(world),
            connections: Vec::with_capacity(count),
            report: Idle { wanted: count, ..Idle::default() },
        };
        let opened = |world: Arc<World>| async move {
            let connection = Connection::open(&world.directory, &world.targets[0].endpoint).await?;
            answered(&world, connection).await
        };
        held.connections = held.each((0..count).map(|_| opened(Arc::clone(world)))).await;
        held.report.opened = held.connections.len();
        held
    }

    /// Asks each once more.
    pub(super) async fn finish(mut self) -> Idle {
        let connections = std::mem::take(&mut self.connections);
        let world = Arc::clone(&self.world);
        let asked = connections.into_iter().map(|connection| {
            let world = Arc::clone(&world);
            async move { answered(&world, connection).await }
        });
        self.report.answered = self.each(asked).await.len();
        self.report
    }

    async fn each<F>(&mut self, all: impl Iterator<Item = F>) -> Vec<Connection>
    where
        F: Future<Output = Result<Connection, Failure>> + Send + 'static,
    {
        let (mut running, mut good, mut all) = (JoinSet::new(), Vec::new(), all);
        loop {
            while running.len() < AT_ONCE
                && let Some(next) = all.next()
            {
                running.spawn(next);
            }
            match running.join_next().await {
                None => return good,
                Some(Ok(Ok(connection))) => good.push(connection),
                Some(Ok(Err(failure))) => {
                    self.report.error.get_or_insert_with(|| failure.to_string());
                }
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

async fn answered(world: &World, mut connection: Connection) -> Result<Connection, Failure> {
    let head = connection.ask(&world.targets[0].request, Some(&(0..1))).await?;
    connection.read_body(&head, |_| Ok(())).await?;
    Ok(connection)
}
