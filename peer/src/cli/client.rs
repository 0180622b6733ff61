//! Asks a node's admin port: one request a connection, blocking, bounded.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// 64 MiB: a list of some 200,000 tasks.
const MAX_ANSWER: usize = 64 << 20;
const MAX_HEADERS: usize = 64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("no node answers at {admin} ({source}); start one with `pondhawk up`, or name another with --admin")]
    NoNode { admin: String, source: io::Error },
    #[error("the node at {admin} broke off: {source}")]
    Cut { admin: String, source: io::Error },
    #[error("what listens at {admin} is no pondhawk node: {why}")]
    Stranger { admin: String, why: String },
    #[error("the node refuses ({status}): {why}")]
    Refused { status: u16, why: String },
}

/// Asks and reads the answer's JSON.
pub(super) fn get<T: DeserializeOwned>(admin: &str, path: &str) -> Result<T, ClientError> {
    let (status, body) = ask(admin, "GET", path)?;
    let stranger = |why: String| ClientError::Stranger { admin: admin.to_owned(), why };
    match status {
        200 => serde_json::from_slice(&body).map_err(|error| stranger(error.to_string())),
        404 => Err(stranger(format!("it has no {path}"))),
        _ => Err(refused(status, &body)),
    }
}

/// Deletes; the answer's status if it is 204, 404 or 409.
pub(super) fn delete(admin: &str, path: &str) -> Result<u16, ClientError> {
    match ask(admin, "DELETE", path)? {
        (status @ (204 | 404 | 409), _) => Ok(status),
        (status, body) => Err(refused(status, &body)),
    }
}

/// Sends a document and reads the answer's; `None`: the node has too much to do now.
pub(super) fn post<T: DeserializeOwned>(
    admin: &str,
    path: &str,
    document: &impl serde::Serialize,
) -> Result<Option<T>, ClientError> {
    let stranger = |why: String| ClientError::Stranger { admin: admin.to_owned(), why };
    let document = serde_json::to_vec(document).map_err(|error| stranger(error.to_string()))?;
    match exchanged(admin, "POST", path, &document)? {
        (200 | 202, body) => serde_json::from_slice(&body).map(Some).map_err(|error| stranger(error.to_string())),
        (503, _) => Ok(None),
        (404, _) => Err(stranger(format!("it has no {path}"))),
        (status, body) => Err(refused(status, &body)),
    }
}

/// Puts something into force; whether it is there at all.
pub(super) fn put(admin: &str, path: &str) -> Result<bool, ClientError> {
    match ask(admin, "PUT", path)? {
        (204, _) => Ok(true),
        (404, _) => Ok(false),
        (status, body) => Err(refused(status, &body)),
    }
}

fn refused(status: u16, body: &[u8]) -> ClientError {
    let why = String::from_utf8_lossy(&body[..body.len().min(300)]);
    ClientError::Refused { status, why: super::human::printable(why.trim()) }
}

fn ask(admin: &str, method: &str, path: &str) -> Result<(u16, Vec<u8>), ClientError> {
    exchanged(admin, method, path, &[])
}

fn exchanged(admin: &str, method: &str, path: &str, document: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
    let mut socket = connect(admin).map_err(|source| ClientError::NoNode { admin: admin.to_owned(), source })?;
    let length = document.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {admin}\r\nContent-Length: {length}\r\n\r\n");
    let bytes = exchange(&mut socket, &[head.as_bytes(), document].concat())
        .map_err(|source| ClientError::Cut { admin: admin.to_owned(), source })?;
    parse(bytes).map_err(|why| ClientError::Stranger { admin: admin.to_owned(), why })
}

/// Tries each address of the name.
fn connect(admin: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = admin.to_socket_addrs()?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(socket: &mut TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER;
    socket.set_write_timeout(Some(ANSWER))?;
    socket.write_all(request)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut chunk) {
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
