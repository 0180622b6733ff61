//! The scheduler's page, its metrics and its health, on a port of their own.
//!
//! | request | answer | needs the token |
//! |---|---|---|
//! | GET / | the page, or the form that asks for the token | - |
//! | POST /login, /logout | sets the cookie that stands for the token, or takes it back | - |
//! | GET /v1/cluster | a [`Snapshot`](crate::cluster::snapshot::Snapshot) as JSON | yes |
//! | GET /v1/events | Server-Sent Events: `history`, then a `snapshot` a second | yes |
//! | GET /v1/nodes/{name} | a [`NodeDetail`](crate::cluster::snapshot::NodeDetail) as JSON | yes |
//! | POST /v1/tasks/{id}/spread | has nodes hold a task that others hold: 202, 400, 403, 404, 409 nobody said what its name is made of | yes |
//! | GET /metrics | OpenMetrics text | if [`Options::metrics_need_token`] |
//! | GET /healthz, /readyz | 200; readyz 503 while nodes are not served | no |
//!
//! That one is the only change that can be made here, and never for another site's page. What looking costs the cluster is
//! bounded: one snapshot a second however many look, and none while nobody does.

mod access;
mod feed;
mod history;
mod html;
mod metrics;
mod routes;
mod spread;

use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::authority::AuthorityError;
use crate::http_port;
use crate::service::Viewer;
use access::Access;
pub(crate) use access::FILE as TOKEN_FILE;
use feed::Feed;

/// Connections at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 128;

/// What can be set.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether `/metrics` asks for the token, as `Authorization: Bearer TOKEN`.
    pub metrics_need_token: bool,
    /// A file with the token, read at each use so that it may be renewed in place; none: one made in the state directory.
    pub token_file: Option<std::path::PathBuf>,
}

/// What is needed to serve the port.
pub struct Page {
    context: Arc<Context>,
}

struct Context {
    viewer: Viewer,
    access: Access,
    feed: Feed,
    metrics_need_token: bool,
}

impl Page {
    /// Makes the token in the scheduler's state directory `dir` where there is none. Blocking.
    pub fn open(dir: &Path, viewer: Viewer, options: Options) -> Result<Self, AuthorityError> {
        let access = match options.token_file {
            Some(file) => Access::given(file)?,
            None => Access::own(dir)?,
        };
        let feed = Feed::new(viewer.clone());
        let metrics_need_token = options.metrics_need_token;
        Ok(Self { context: Arc::new(Context { viewer, access, feed, metrics_need_token }) })
    }

    /// Answers until the future is dropped; running answers then end with the runtime.
    pub async fn serve(self, listener: TcpListener) {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "page up");
        }
        let (context, feeding) = (Arc::clone(&self.context), Arc::clone(&self.context));
        let answer = move |request, remote| {
            let context = Arc::clone(&context);
            async move { routes::answer(request, remote, &context).await }
        };
        tokio::select! {
            () = http_port::serve(&listener, MAX_CONNECTIONS, "the page's port", answer) => {}
            () = feeding.feed.run() => {}
        }
    }
}

/// The token with which people look at the page of the scheduler whose state is in `dir`: made where there is none, or with
/// `anew` in place of the one there is, whose cookies are worthless from then on. Blocking.
pub fn token(dir: &Path, anew: bool) -> Result<String, AuthorityError> {
    if anew {
        Access::renew(dir)?;
    }
    Access::own(dir)?.token()
}

#[cfg(test)]
mod tests;
