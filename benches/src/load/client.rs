//! One HTTP/1.1 connection, and a client that keeps a few.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{
    body::Body,
    head::{self, Head},
    record::{ErrorKind, Failure},
    target::{Directory, Endpoint, Target},
};

/// Bytes read at once, into one buffer a thread: idle connections cost no memory but the kernel's.
const READ: usize = 256 << 10;
/// Bytes read at once while the head is awaited; what of it is body is copied once more.
const HEAD_READ: usize = 16 << 10;
/// A longer head is refused.
const LONGEST_HEAD: usize = 64 << 10;
/// Ciphertext read at once. rustls itself reads 4 KiB at a time.
const TLS_READ: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Stream {
    /// Reads at most `most` bytes and gives them to `sink`; without any, the stream has ended.
    async fn read<R>(&mut self, most: usize, mut sink: impl FnMut(&[u8]) -> R) -> io::Result<R> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut into = ReadBuf::new(&mut buffer[..most]);
                ready!(match self {
                    Self::Plain(stream) => Pin::new(stream).poll_read(context, &mut into),
                    Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, &mut into),
                })?;
                Poll::Ready(Ok(sink(into.filled())))
            })
        })
        .await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }
}

/// A connection between two requests.
pub(super) struct Connection {
    stream: Stream,
    endpoint: Arc<Endpoint>,
    /// The request, then the head of its answer with what came along with it.
    text: Vec<u8>,
    was_used: bool,
}

/// Why there is no head of an answer.
pub(super) enum NoHead {
    /// The server has closed the connection since the last answer, as it may; another connection is to be tried.
    Stale(Failure),
    Failed(Failure),
}

impl From<Failure> for NoHead {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<NoHead> for Failure {
    fn from(no_head: NoHead) -> Self {
        let (NoHead::Stale(failure) | NoHead::Failed(failure)) = no_head;
        failure
    }
}

impl Connection {
    pub(super) async fn open(directory: &Directory, endpoint: &Arc<Endpoint>) -> Result<Self, Failure> {
        let stream = connect(endpoint).await?;
        let stream = match &endpoint.tls_name {
            None => Stream::Plain(stream),
            Some(name) => {
                let stream = BufReader::with_capacity(TLS_READ, stream);
                let stream = directory.tls.connect(name.clone(), stream).await;
                let stream = stream.map_err(|error| Failure::new(ErrorKind::Tls, tls_reason(endpoint, &error)))?;
                Stream::Tls(Box::new(stream))
            }
        };
        Ok(Self { stream, endpoint: Arc::clone(endpoint), text: Vec::new(), was_used: false })
    }

    /// Sends a request and awaits the head of its answer.
    pub(super) async fn ask(&mut self, request: &[u8], range: Option<&Range<u64>>) -> Result<Head, NoHead> {
        head::complete(&mut self.text, request, range);
        let written = self.stream.write(&self.text).await;
        self.text.clear();
        if let Err(error) = written {
            return Err(self.unanswered(&error.to_string()));
        }
        loop {
            let text = &mut self.text;
            let read = self.stream.read(HEAD_READ, |bytes| {
                text.extend_from_slice(bytes);
                bytes.len()
            });
            match read.await {
                Ok(0) => return Err(self.unanswered("the connection was closed")),
                Err(error) => return Err(self.unanswered(&error.to_string())),
                Ok(_) => {}
            }
            while let Some(head) = head::parse(&self.text).map_err(|error| protocol(error.to_string()))? {
                self.text.drain(..head.len);
                if head.status >= 200 {
                    self.was_used = true;
                    return Ok(head);
                }
            }
            if self.text.len() > LONGEST_HEAD {
                return Err(protocol(format!("a head of more than {LONGEST_HEAD} bytes")).into());
            }
        }
    }

    fn unanswered(&self, reason: &str) -> NoHead {
        let failure = protocol(format!("no answer from {}: {reason}", self.endpoint.authority));
        if self.was_used && self.text.is_empty() { NoHead::Stale(failure) } else { NoHead::Failed(failure) }
    }

    /// Reads the body of the answer whose head `ask` gave; whether the connection is good for another request.
    pub(super) async fn read_body(
        &mut self,
        head: &Head,
        mut sink: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let mut body = head.body;
        let mut progress = Progress::default();
        progress.take(&mut body, &self.text, &mut sink)?;
        while !body.is_done() {
            let read = self.stream.read(READ, |bytes| {
                progress.take(&mut body, bytes, &mut sink)?;
                Ok::<bool, Failure>(bytes.is_empty())
            });
            let ended = match read.await {
                Ok(taken) => taken?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => true,
                Err(error) => return Err(short(body, progress.received, &error.to_string())),
            };
            match body {
                Body::UntilEnd if ended => return Ok(false),
                _ if ended => return Err(short(body, progress.received, "the connection was closed")),
                _ => {}
            }
        }
        Ok(head.keep_alive && !progress.has_more)
    }
}

/// Of one body.
#[derive(Default)]
struct Progress {
    received: u64,
    /// Something follows the body that nobody has asked for.
    has_more: bool,
}

impl Progress {
    fn take(
        &mut self,
        body: &mut Body,
        bytes: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut result = Ok(());
        let used = body.take(bytes, |data| {
            self.received += data.len() as u64;
            if result.is_ok() && !data.is_empty() {
                result = sink(data);
            }
        });
        let used = used.map_err(|error| protocol(error.to_string()))?;
        self.has_more |= used < bytes.len();
        result
    }
}

async fn connect(endpoint: &Endpoint) -> Result<TcpStream, Failure> {
    let mut reason = String::new();
    for address in &endpoint.addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is one write; there is nothing to gather.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => reason = connect_reason(*address, &error),
        }
    }
    Err(Failure::new(ErrorKind::Connect, reason))
}

fn connect_reason(address: std::net::SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => "; nothing listens there",
        io::ErrorKind::AddrNotAvailable => "; no port is left for one more connection to that address",
        _ => "",
    };
    format!("{address}: {error}{advice}")
}

fn tls_reason(endpoint: &Endpoint, error: &io::Error) -> String {
    let text = error.to_string();
    let advice = if text.contains("UnknownIssuer") { "; name the file with its CA's certificate" } else { "" };
    format!("{}: {text}{advice}", endpoint.authority)
}

fn protocol(message: String) -> Failure {
    Failure::new(ErrorKind::Protocol, message)
}

fn short(body: Body, received: u64, reason: &str) -> Failure {
    let of = if let Body::Length(left) = body { format!(" of {}", received + left) } else { String::new() };
    Failure::new(ErrorKind::ShortBody, format!("{reason} after {received}{of} bytes"))
}

/// Connections of one client that sends one request at a time; several where redirects lead to other hosts.
#[derive(Default)]
pub(super) struct Kept(Vec<Connection>);

/// Connections to more hosts than this are not kept.
const MOST_KEPT: usize = 8;

impl Kept {
    /// Sends a request on a kept connection or a new one.
    pub(super) async fn ask(
        &mut self,
        directory: &Directory,
        target: &Target,
        range: Option<&Range<u64>>,
        mut on_open: impl FnMut(),
    ) -> Result<(Connection, Head), Failure> {
        let kept = self.0.iter().position(|connection| Arc::ptr_eq(&connection.endpoint, &target.endpoint));
        if let Some(index) = kept {
            let mut connection = self.0.swap_remove(index);
            match connection.ask(&target.request, range).await {
                Ok(head) => return Ok((connection, head)),
                Err(NoHead::Failed(failure)) => return Err(failure),
                Err(NoHead::Stale(_)) => {}
            }
        }
        let mut connection = Connection::open(directory, &target.endpoint).await?;
        on_open();
        let head = connection.ask(&target.request, range).await?;
        Ok((connection, head))
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(&mut self, connection: Connection) {
        if self.0.len() == MOST_KEPT {
            self.0.remove(0);
        }
        self.0.push(connection);
    }
}
