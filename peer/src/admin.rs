//! The admin port: metrics, health, profile, control.
//!
//! | request | answer |
//! |---|---|
//! | GET /metrics | OpenMetrics text |
//! | GET /healthz | 200 while the process answers |
//! | GET /readyz | 200 with what is degraded a line, or 503 with a reason a line |
//! | GET /debug/pprof/profile?seconds=N | CPU profile, pprof's protobuf; one at a time, 1 to 60 s; as a change |
//! | GET /v1/status | [`Status`] as JSON |
//! | GET /v1/tasks[?label=HOST/PATH] | [`Task`]s as a JSON list, all or those of this label |
//! | DELETE /v1/tasks/{id} | 204, 404 unknown, 409 in use or pinned |
//! | PUT, DELETE /v1/tasks/{id}/pin | 204, 404 unknown |
//! | POST /v1/preheats | takes a [`PreheatWanted`]; 202 and a [`PreheatTaken`], 400, 421 host not served, 503 too many |
//! | GET /v1/preheats | [`Preheat`]s as a JSON list |
//!
//! There are two ways in. The TCP port is for reading, by anyone who reaches it; a change or a profile gets 403 there, with the path
//! of the [`socket`], on which the kernel says which user asks: root, the node's own user, and those that [`AdminAccess`]
//! names may change the node, all others may read. A request with `Origin`, as a web page sends, changes nothing in
//! either place. Both run on the control thread's runtime and so never delay a shard.

mod profile;
mod report;
mod routes;
pub(crate) mod socket;

use std::{fmt::Display, io, net::SocketAddr, sync::Arc};

use pondhawk_scheduler::http_port;
use tokio::net::TcpListener;

use crate::{metrics::Metrics, task::TaskId};
pub use report::{
    Interception, LinkReport, Preheat, PreheatCounts, PreheatNodes, PreheatRefusal, PreheatScope, PreheatTaken,
    PreheatWanted, Removal, Status, StoreStatus, SwarmReport, Task,
};
pub use socket::{AdminAccess, AdminSocket};

/// Connections at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

/// What the admin port asks of the node. Called on threads that may block.
pub trait Control: Send + Sync + 'static {
    /// Every task held, whole or in part.
    fn tasks(&self) -> Vec<Task>;

    /// Drops a task that nobody uses.
    fn remove(&self, id: &TaskId) -> Removal;

    /// Keeps a task whatever room is needed, or no longer; whether there is such a task.
    fn pin(&self, id: &TaskId, pinned: bool) -> Result<bool, String>;

    /// Queues a file to be fetched into the store; its number.
    fn preheat(&self, wanted: PreheatWanted) -> Result<u64, PreheatRefusal>;

    /// Files that are, were or will be fetched so.
    fn preheats(&self) -> Vec<Preheat>;

    /// The path of the Unix socket on which changes are accepted; `None`: the node has no such socket.
    fn socket(&self) -> Option<String> {
        None
    }

    /// How the node is.
    fn status(&self) -> Status;

    /// Why the node should get no traffic, a line each: draining, a shard that is not up; none if it is ready.
    fn unready(&self) -> Vec<String>;

    /// What works less well than it could while the node is ready, a line each. It does not make the node unready: what the
    /// interception does not take goes direct, and a pod that blocks the node's port for itself, or holds many connections,
    /// must not take the node away from others.
    fn degraded(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The admin port or socket cannot be opened: the configuration or another process is to blame.
#[derive(Debug, thiserror::Error)]
#[error("the admin interface {place} cannot be opened: {source}")]
pub struct AdminError {
    place: String,
    source: io::Error,
}

impl AdminError {
    fn new(place: impl Display, source: io::Error) -> Self {
        Self { place: place.to_string(), source }
    }
}

/// By which way a request came, which decides what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Caller {
    /// The TCP port, where a peer is known by nothing but its address.
    Port,
    /// The Unix socket.
    Socket { uid: u32, may_change: bool },
}

/// The bound port.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

pub(crate) struct Context {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) control: Arc<dyn Control>,
}

impl Admin {
    /// Opens the port. On a Tokio runtime.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let failed = |source| AdminError::new(address, source);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the future is dropped; running answers then end with the runtime.
    pub async fn serve(self, metrics: Arc<Metrics>, control: Arc<dyn Control>) {
        let context = Arc::new(Context { metrics, control });
        let answer = move |request, _peer| {
            let context = Arc::clone(&context);
            async move { routes::answer(request, &Caller::Port, &context).await }
        };
        http_port::serve(&self.listener, MAX_CONNECTIONS, "admin port", answer).await;
    }
}

#[cfg(test)]
mod tests;
