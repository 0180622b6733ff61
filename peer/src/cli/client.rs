//! Asks a node on its admin socket or port: one request a connection, blocking, bounded.
//!
//! Reads go to the socket where there is one, else to the port. Changes are accepted on the socket alone: where only the port of a
//! node on this machine is known, the node is asked for its socket there.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use crate::admin::{Status, socket};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// 64 MiB: a list of some 200,000 tasks.
const MAX_ANSWER: usize = 64 << 20;
const MAX_HEADERS: usize = 64;
/// How far apart the start times may seem that one node reports on its port and on its socket.
const SAME_START_SECONDS: u64 = 2;

/// Where a node is asked: at least one of both is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdminPlace {
    /// The path of its socket.
    pub(super) socket: Option<PathBuf>,
    /// `host:port` of its port.
    pub(super) port: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("no node answers at {admin} ({source}); start one with `pondhawk up`, or name another with --admin")]
    NoNode { admin: String, source: io::Error },
    #[error("the socket {} refuses this user ({source}): run the command as root or as the node's user", path.display())]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("the node at {admin} broke off: {source}")]
    Cut { admin: String, source: io::Error },
    #[error("what listens at {admin} is no pondhawk node: {why}")]
    Stranger { admin: String, why: String },
    #[error("the node refuses ({status}): {why}")]
    Refused { status: u16, why: String },
}

/// A connection to either.
enum Connection {
    Socket(UnixStream),
    Port(TcpStream),
}

impl AdminPlace {
    /// A path, or `host:port`.
    pub(super) fn named(text: &str) -> Self {
        match text.strip_prefix("unix:").unwrap_or(text) {
            path if path.starts_with('/') => Self { socket: Some(path.into()), port: None },
            port => Self { socket: None, port: Some(port.to_owned()) },
        }
    }

    /// Whether the node is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.socket.is_some() || self.port.as_deref().is_some_and(super::get::is_this_machine)
    }

    /// Asks the socket, and where none answers the port.
    fn connect(&self) -> Result<Connection, ClientError> {
        let by_socket = self.socket.as_deref().map(connect_socket);
        match (by_socket, &self.port) {
            (Some(Ok(connection)), _) => Ok(connection),
            (_, Some(port)) => connect_port(port),
            (Some(Err(error)), None) => Err(error),
            (None, None) => {
                let source = io::Error::new(
                    io::ErrorKind::NotFound,
                    "the configuration has neither admin.socket nor listen.admin",
                );
                Err(ClientError::NoNode { admin: "this machine".to_owned(), source })
            }
        }
    }

    /// Connects to where the node accepts changes. A port that does not tell is asked all the same: it says why not.
    fn connect_for_change(&self) -> Result<Connection, ClientError> {
        let by_socket = self.socket.as_deref().map(connect_socket);
        match (by_socket, &self.port) {
            (Some(Ok(connection)), _) => Ok(connection),
            (Some(Err(error @ ClientError::Forbidden { .. })), _) | (Some(Err(error)), None) => Err(error),
            (_, Some(port)) if self.is_local() => match socket_of(port)? {
                Some(connection) => Ok(connection),
                None => connect_port(port),
            },
            _ => self.connect(),
        }
    }
}

impl fmt::Display for AdminPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.port, &self.socket) {
            (Some(port), _) => f.write_str(port),
            (None, Some(path)) => path.display().fmt(f),
            (None, None) => f.write_str("this machine"),
        }
    }
}

/// Asks and reads the answer's JSON.
pub(super) fn get<T: DeserializeOwned>(admin: &AdminPlace, path: &str) -> Result<T, ClientError> {
    document(exchanged(admin.connect()?, &admin.to_string(), "GET", path, &[])?, &admin.to_string(), path)
}

/// Deletes; the answer's status if it is 204, 404 or 409.
pub(super) fn delete(admin: &AdminPlace, path: &str) -> Result<u16, ClientError> {
    match change(admin, "DELETE", path, &[])? {
        (status @ (204 | 404 | 409), _) => Ok(status),
        (status, body) => Err(refused(status, &body)),
    }
}

/// Sends a document and reads the answer's; `None`: the node has too much to do now.
pub(super) fn post<T: DeserializeOwned>(
    admin: &AdminPlace,
    path: &str,
    document: &impl serde::Serialize,
) -> Result<Option<T>, ClientError> {
    let stranger = |why: String| ClientError::Stranger { admin: admin.to_string(), why };
    let document = serde_json::to_vec(document).map_err(|error| stranger(error.to_string()))?;
    match change(admin, "POST", path, &document)? {
        (200 | 202, body) => serde_json::from_slice(&body).map(Some).map_err(|error| stranger(error.to_string())),
        (503, _) => Ok(None),
        (404, _) => Err(stranger(format!("it has no {path}"))),
        (status, body) => Err(refused(status, &body)),
    }
}

/// Puts something into force; whether it is there at all.
pub(super) fn put(admin: &AdminPlace, path: &str) -> Result<bool, ClientError> {
    match change(admin, "PUT", path, &[])? {
        (204, _) => Ok(true),
        (404, _) => Ok(false),
        (status, body) => Err(refused(status, &body)),
    }
}

fn refused(status: u16, body: &[u8]) -> ClientError {
    let why = String::from_utf8_lossy(&body[..body.len().min(300)]);
    ClientError::Refused { status, why: super::human::printable(why.trim()) }
}

fn change(admin: &AdminPlace, method: &str, path: &str, document: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
    exchanged(admin.connect_for_change()?, &admin.to_string(), method, path, document)
}

fn document<T: DeserializeOwned>((status, body): (u16, Vec<u8>), admin: &str, path: &str) -> Result<T, ClientError> {
    let stranger = |why: String| ClientError::Stranger { admin: admin.to_owned(), why };
    match status {
        200 => serde_json::from_slice(&body).map_err(|error| stranger(error.to_string())),
        404 => Err(stranger(format!("it has no {path}"))),
        _ => Err(refused(status, &body)),
    }
}

fn exchanged(
    mut connection: Connection,
    admin: &str,
    method: &str,
    path: &str,
    document: &[u8],
) -> Result<(u16, Vec<u8>), ClientError> {
    let length = document.len();
    // A path is no host (RFC 9112 section 3.2); the node does not look at it.
    let host = if admin.contains('/') { "localhost" } else { admin };
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    let bytes = exchange(&mut connection, &[head.as_bytes(), document].concat())
        .map_err(|source| ClientError::Cut { admin: admin.to_owned(), source })?;
    parse(bytes).map_err(|why| ClientError::Stranger { admin: admin.to_owned(), why })
}

fn connect_socket(path: &Path) -> Result<Connection, ClientError> {
    socket::connect(path).map(Connection::Socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: path.to_owned(), source },
        _ => ClientError::NoNode { admin: path.display().to_string(), source },
    })
}

/// Tries each address of the name.
fn connect_port(admin: &str) -> Result<Connection, ClientError> {
    let none = |source| ClientError::NoNode { admin: admin.to_owned(), source };
    let addresses: Vec<SocketAddr> = admin.to_socket_addrs().map_err(none)?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => return Ok(Connection::Port(socket)),
            Err(error) => last = error,
        }
    }
    Err(none(last))
}

/// The socket of the node behind a port of this machine; `None` where it has none, or where another node listens at that path: a port
/// may be forwarded from elsewhere.
fn socket_of(port: &str) -> Result<Option<Connection>, ClientError> {
    let status = |connection, admin: &str| -> Result<Status, ClientError> {
        document(exchanged(connection, admin, "GET", "/v1/status", &[])?, admin, "/v1/status")
    };
    let told = status(connect_port(port)?, port)?;
    let Some(path) = &told.admin_socket else { return Ok(None) };
    let connection = match connect_socket(Path::new(path)) {
        Ok(connection) => connection,
        Err(error @ ClientError::Forbidden { .. }) => return Err(error),
        Err(_) => return Ok(None),
    };
    let there = status(connection, path)?;
    let same = there.pid == told.pid && there.uptime_seconds.abs_diff(told.uptime_seconds) <= SAME_START_SECONDS;
    match same {
        true => connect_socket(Path::new(path)).map(Some),
        false => Ok(None),
    }
}

impl Connection {
    fn set_timeouts(&self, write: Duration, read: Duration) -> io::Result<()> {
        match self {
            Self::Socket(socket) => {
                socket.set_write_timeout(Some(write))?;
                socket.set_read_timeout(Some(read))
            }
            Self::Port(socket) => {
                socket.set_write_timeout(Some(write))?;
                socket.set_read_timeout(Some(read))
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(chunk),
            Self::Port(socket) => socket.read(chunk),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.write_all(bytes),
            Self::Port(socket) => socket.write_all(bytes),
        }
    }
}

fn exchange(connection: &mut Connection, request: &[u8]) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER;
    connection.set_timeouts(ANSWER, ANSWER)?;
    connection.write_all(request)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.set_timeouts(ANSWER, left)?;
        match connection.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(n) if answer.len() + n > MAX_ANSWER => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Status and body; an answer to HTTP/1.0 has no transfer coding, and its length says whether it is whole.
fn parse(mut answer: Vec<u8>) -> Result<(u16, Vec<u8>), String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(at) = head.parse(&answer).map_err(|error| error.to_string())? else {
        return Err("its answer is not HTTP".into());
    };
    let status = head.code.unwrap_or(0);
    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let body = answer.split_off(at);
    match length {
        Some(length) if length != body.len() => Err(format!("its answer has {} of {length} bytes", body.len())),
        _ => Ok((status, body)),
    }
}
