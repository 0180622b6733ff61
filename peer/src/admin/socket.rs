//! The admin interface on a Unix socket, where the kernel says which user asks.
//!
//! Every local user may connect and read; who may change something is decided by the credentials of each connection. Those who may
//! have places of their own, so that other users cannot keep them out by holding connections.

use std::{
    convert::Infallible,
    fs::Permissions,
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use pondhawk_scheduler::http_port;
use socket2::{Domain, SockAddr, Type};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{AdminError, Caller, Context, Control, routes};
use crate::{metrics::Metrics, uring::PeerCredentials};

/// Connections at a time of users who may change the node, and of all others; one beyond them is closed at once.
const MAX_CONNECTIONS: usize = 16;
/// For the head of a request, the first and the next ones of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Everything on one connection: longer than the longest profile takes.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(120);
/// The wait after accept(2) failed, as it does while the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Every user may connect: the credentials decide what a connection is good for.
const MODE: u32 = 0o666;

/// Who may change the node, beside root and the user that it runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminAccess {
    /// User ids.
    pub users: Vec<u32>,
    /// Group ids; a supplementary group counts.
    pub groups: Vec<u32>,
}

impl AdminAccess {
    /// Whether a process with these credentials may change a node that runs as the user `own`.
    pub fn admits(&self, credentials: &PeerCredentials, own: u32) -> bool {
        let PeerCredentials { uid, groups } = credentials;
        // The kernel gives this one for a socket that has no peer.
        *uid != u32::MAX
            && (*uid == 0
                || *uid == own
                || self.users.contains(uid)
                || groups.iter().any(|group| self.groups.contains(group)))
    }
}

/// The bound socket.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    access: AdminAccess,
}

impl AdminSocket {
    /// Listens at the path, in place of a socket that no process listens on any more. On a Tokio runtime.
    ///
    /// # Errors
    /// [`AdminError`] where another process listens, another file is in the way, or the directory is not there or not this user's.
    pub fn bind(path: &Path, access: AdminAccess) -> Result<Self, AdminError> {
        let failed = |source| AdminError::new(path.display(), source);
        remove_stale(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), access })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until the future is dropped; running answers then end with the runtime.
    pub async fn serve(self, metrics: Arc<Metrics>, control: Arc<dyn Control>) {
        let context = Arc::new(Context { metrics, control });
        let own = rustix::process::geteuid().as_raw();
        let [privileged, other] = [(); 2].map(|()| Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin socket: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(credentials) = PeerCredentials::of(&stream) else { continue };
            let may_change = self.access.admits(&credentials, own);
            let places = if may_change { &privileged } else { &other };
            let Ok(place) = Arc::clone(places).try_acquire_owned() else {
                tracing::debug!(uid = credentials.uid, "admin socket: a connection too many is closed");
                continue;
            };
            let caller = Caller::Socket { uid: credentials.uid, may_change };
            let context = Arc::clone(&context);
            tokio::spawn(async move {
                connection(stream, caller, context).await;
                drop(place);
            });
        }
    }
}

async fn connection(stream: UnixStream, caller: Caller, context: Arc<Context>) {
    let service = service_fn(|request| {
        let (caller, context) = (caller.clone(), Arc::clone(&context));
        async move { Ok::<_, Infallible>(routes::answer(request, &caller, &context).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(http_port::MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIFETIME, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin socket: a connection ended"),
        Err(_) => tracing::debug!("admin socket: a connection was cut after its time"),
    }
}

/// Removes a socket that no process listens on, and leaves everything else in place for bind(2) to refuse.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Connected, or the other process has too many that wait.
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    }
}

/// Connects without waiting, as connect(2) would where the listener has too many that wait.
///
/// # Errors
/// `WouldBlock` in that case; `ConnectionRefused` where no process listens; and what else connect(2) says.
pub(crate) fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}
