//! TLS on an accepted connection: the handshake, and a stream whose encrypt and send are separate.

use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::{AlertDescription, Error, ServerConfig, SupportedCipherSuite};
use tokio::time::{Instant, timeout, timeout_at};

use super::leaf::LeafCache;
use super::session::{Progress, SealError, Session, is_distrust};
use crate::uring::{Buf, Socket};

/// How long a last message (an alert, `close_notify`) may take to leave; the connection is over either way.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How a client showed that it does not trust the node's CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It said so by an alert: OpenSSL, rustls and Go do.
    Alert(AlertDescription),
    /// It left (end, reset) after our certificate and before the end of the handshake.
    GaveUp,
    /// It finished the handshake and left without sending a byte: GnuTLS (wget, aria2c) and Node.js check afterwards.
    /// The weakest sign: a client that connects ahead of need, or a port check, looks the same.
    LeftAfterHandshake,
}

/// Why a connection did not become a TLS stream.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The ClientHello is none we can answer (no TLS, no or a foreign SNI, no http/1.1 in its ALPN, no common cipher).
    /// Nothing was sent: the connection can still be spliced to its destination, `read` first.
    #[error("not a connection for us: {why}")]
    NotOurs {
        /// rustls's reason.
        why: Error,
        /// All that was read, the given bytes included.
        read: Vec<u8>,
    },
    /// The client does not accept our certificate.
    #[error("the client does not trust the node's CA ({0:?})")]
    ClientDistrusts(Distrust),
    /// The deadline passed. Where the client had our certificate it may be one that asks a person.
    #[error("the client did not finish the handshake in time (certificate sent: {certificate_sent})")]
    Timeout {
        /// Whether the client had our certificate by then.
        certificate_sent: bool,
    },
    /// The client left before our certificate.
    #[error("the client left before the handshake")]
    ClientLeft,
    /// The client ended the handshake by an alert that says nothing about trust.
    #[error("the client refused the handshake: {0:?}")]
    Alert(AlertDescription),
    /// The client broke the protocol after our first answer.
    #[error("the client broke the TLS protocol: {0}")]
    Malformed(Error),
    /// The socket failed.
    #[error("the client's connection failed: {0}")]
    Io(#[source] io::Error),
}

/// Why an established stream ended. The client's doing, except [`TlsError::Seal`].
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The client does not accept our certificate, and said so after the handshake.
    #[error("the client does not trust the node's CA ({0:?})")]
    ClientDistrusts(Distrust),
    /// The client ended the connection by an alert.
    #[error("the client ended the connection: {0:?}")]
    Alert(AlertDescription),
    /// The client broke the protocol.
    #[error("the client broke the TLS protocol: {0}")]
    Malformed(#[source] Error),
    /// An earlier call was dropped before it finished: bytes are missing.
    #[error("an earlier operation on this connection was abandoned")]
    Abandoned,
    /// Encryption failed.
    #[error(transparent)]
    Seal(SealError),
    /// The socket failed.
    #[error("the client's connection failed: {0}")]
    Io(#[from] io::Error),
}

/// The configuration of all intercepted connections; build it once and share it, since tickets are resumed only under
/// the same one. Offers http/1.1 by ALPN without requiring ALPN; a client that offers only others is not ours.
pub fn server_config(leaves: Arc<LeafCache>) -> Result<Arc<ServerConfig>, Error> {
    let provider = rustls::crypto::CryptoProvider { cipher_suites: suites(), ..aws_lc_rs::default_provider() };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(leaves);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    // Stateless, so every shard resumes what another began and nothing is kept per client.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// AES-128-GCM first, whatever the client prefers: both ends run on this machine's CPU, and AES-256 costs a sixth more
/// of it a byte (14 rounds, not 10: 0.063 against 0.054 CPU-s/GB measured), for data that hardly leaves the machine.
fn suites() -> Vec<SupportedCipherSuite> {
    let first = [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
    let rest = aws_lc_rs::DEFAULT_CIPHER_SUITES.iter().filter(|suite| !first.contains(suite)).copied();
    first.into_iter().chain(rest).collect()
}

/// An established connection with an intercepted client.
///
/// Calls that receive or send are cancelled only to end the connection: after a dropped `recv` or `send` every call
/// gives [`TlsError::Abandoned`].
pub struct TlsStream {
    socket: Socket,
    session: Session,
    busy: bool,
    ended: Option<End>,
}

/// How the client ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By `close_notify`: nothing is missing.
    CloseNotify,
    /// By closing or resetting the socket. Common between requests; inside one, it was cut.
    Cut,
}

impl TlsStream {
    /// Runs the handshake until `deadline`. `already` is what was read from `socket` before: the ClientHello or its
    /// beginning. On [`AcceptError::NotOurs`] the caller splices by its own clone of the socket.
    pub async fn accept(
        socket: Socket,
        already: Vec<u8>,
        config: Arc<ServerConfig>,
        deadline: Instant,
    ) -> Result<Self, AcceptError> {
        let session = Session::new(config).map_err(AcceptError::Malformed)?;
        let mut stream = Self { socket, session, busy: false, ended: None };
        let mut handshake = Handshake { read: already, flights: 0 };
        match timeout_at(deadline, handshake.run(&mut stream)).await {
            Ok(result) => result.map(|()| stream),
            Err(_) => {
                Err(AcceptError::Timeout { certificate_sent: stream.session.presented_certificate(handshake.flights) })
            }
        }
    }

    /// Appends plaintext of the client to `into`; bytes appended. 0 is the end: [`TlsStream::ended`] says which.
    pub async fn recv(&mut self, into: &mut Vec<u8>) -> Result<usize, TlsError> {
        loop {
            let n = self.session.take_received(into);
            if n > 0 || self.ended.is_some() {
                return Ok(n);
            }
            if let Err(error) = self.session.advance() {
                self.send_last_word().await;
                return Err(error.into());
            }
            let n = self.session.take_received(into);
            if n > 0 {
                return Ok(n);
            }
            if self.session.peer_closed() {
                self.ended = Some(End::CloseNotify);
            } else if self.wait_for_more().await? == 0 {
                self.ended = Some(End::Cut);
            }
        }
    }

    /// Encrypts and sends small things: response heads.
    pub async fn send(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        let mut out = vec![0; self.session.room_for(plain.len())];
        let n = self.encrypt(plain, &mut out)?;
        out.truncate(n);
        self.send_raw(out).await
    }

    /// Encrypts all of `plain` (at most [`TlsStream::max_plain`] of `out`'s length) into `out` and sends it from there.
    pub async fn send_buf(&mut self, plain: &[u8], mut out: Buf) -> (Result<(), TlsError>, Buf) {
        match self.encrypt(plain, &mut out) {
            Ok(n) => self.send_encrypted(out, 0..n).await,
            Err(error) => (Err(error), out),
        }
    }

    /// Encrypts all of `plain` into `out`; bytes written. They must be sent, in the order of the calls: a caller
    /// overlaps them by sending one buffer through [`TlsStream::socket`] while it fills the next.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, TlsError> {
        if self.busy {
            return Err(TlsError::Abandoned);
        }
        self.session.encrypt(plain, out).map_err(TlsError::from)
    }

    /// Sends `out[span]`, which [`TlsStream::encrypt`] wrote.
    pub async fn send_encrypted(&mut self, out: Buf, span: Range<usize>) -> (Result<(), TlsError>, Buf) {
        self.busy = true;
        let (result, out) = self.socket.send_buf(out, span).await;
        self.busy = false;
        (result.map_err(TlsError::Io), out)
    }

    /// The most plaintext that fits into `out_len` bytes when encrypted now.
    pub fn max_plain(&self, out_len: usize) -> usize {
        self.session.max_plain(out_len)
    }

    /// How the client ended its direction, where [`TlsStream::recv`] gave 0.
    pub fn ended(&self) -> Option<End> {
        self.ended
    }

    /// Whether the client's end says that it does not trust us: it was shown a certificate and never sent a byte. Ask
    /// after [`TlsStream::recv`] gave 0 or failed.
    pub fn distrust(&self) -> Option<Distrust> {
        let silent = !self.session.received_any() && !self.session.is_resumed();
        silent.then_some(Distrust::LeftAfterHandshake)
    }

    /// The socket beneath, for sending what [`TlsStream::encrypt`] wrote.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The protocol's state, for logs.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sends `close_notify`, waiting for at most a second, and ends our direction: the rest of the connection too where
    /// that does not get through, or where an abandoned operation still holds the socket.
    pub async fn close(mut self) {
        if let Ok(last) = self.session.close()
            && !self.busy
        {
            self.busy = timeout(LAST_WORD, self.socket.send_all(last)).await.is_err();
        }
        self.socket.shutdown(Shutdown::Write);
    }

    /// Sends what the client may wait for (tickets, a refusal to renegotiate, an answer to its KeyUpdate), then receives.
    /// A reset is an end like any other.
    async fn wait_for_more(&mut self) -> Result<usize, TlsError> {
        if self.session.wants_send() {
            let pending = self.session.take_outgoing();
            match self.send_raw(pending).await {
                Err(TlsError::Io(error)) if is_gone(&error) => return Ok(0),
                result => result?,
            }
        }
        match self.fill().await {
            Err(TlsError::Io(error)) if is_gone(&error) => Ok(0),
            result => result,
        }
    }

    async fn fill(&mut self) -> Result<usize, TlsError> {
        if self.busy {
            return Err(TlsError::Abandoned);
        }
        let incoming = self.session.take_incoming().map_err(TlsError::Malformed)?;
        self.busy = true;
        let (result, incoming) = self.socket.recv(incoming).await;
        self.busy = false;
        self.session.put_incoming(incoming);
        Ok(result?)
    }

    async fn send_raw(&mut self, bytes: Vec<u8>) -> Result<(), TlsError> {
        if self.busy {
            return Err(TlsError::Abandoned);
        }
        self.busy = true;
        let (result, _) = self.socket.send_all(bytes).await;
        self.busy = false;
        Ok(result?)
    }

    async fn send_last_word(&mut self) {
        let alert = self.session.take_outgoing();
        if !alert.is_empty() && !self.busy {
            self.busy = timeout(LAST_WORD, self.socket.send_all(alert)).await.is_err();
        }
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // An abandoned operation keeps the socket open in the kernel, however long the client stays silent.
        if self.busy {
            self.socket.shutdown(Shutdown::Both);
        }
    }
}

/// What the handshake has to remember for judging its failure.
struct Handshake {
    /// Bytes read, until the first answer makes a splice impossible.
    read: Vec<u8>,
    /// Batches of records sent.
    flights: u32,
}

impl Handshake {
    async fn run(&mut self, stream: &mut TlsStream) -> Result<(), AcceptError> {
        stream.session.put_incoming(self.read.clone());
        loop {
            let progress = match stream.session.advance() {
                Ok(progress) => progress,
                Err(error) => return Err(self.refuse(stream, error).await),
            };
            let done = progress == Progress::Open;
            if stream.session.wants_send() && (!done || stream.session.must_flush_handshake()) {
                self.flights += 1;
                self.read = Vec::new();
                let flight = stream.session.take_outgoing();
                stream.send_raw(flight).await.map_err(|error| self.broken(stream, error))?;
            }
            if done {
                return Ok(());
            }
            if stream.session.peer_closed() {
                return Err(self.left(stream));
            }
            self.read_more(stream).await?;
        }
    }

    async fn read_more(&mut self, stream: &mut TlsStream) -> Result<(), AcceptError> {
        let n = match stream.fill().await {
            Ok(n) => n,
            Err(TlsError::Malformed(error)) => return Err(self.refuse(stream, error).await),
            Err(error) => return Err(self.broken(stream, error)),
        };
        if n == 0 {
            return Err(self.left(stream));
        }
        if self.flights == 0 {
            self.read.extend_from_slice(stream.session.last_incoming(n));
        }
        Ok(())
    }

    /// rustls gave up, on the client's bytes or because of an alert in them.
    async fn refuse(&mut self, stream: &mut TlsStream, error: Error) -> AcceptError {
        if self.flights == 0 {
            return AcceptError::NotOurs { why: error, read: std::mem::take(&mut self.read) };
        }
        let presented = stream.session.presented_certificate(self.flights);
        match error {
            Error::AlertReceived(alert) if presented && is_distrust(alert) => {
                AcceptError::ClientDistrusts(Distrust::Alert(alert))
            }
            Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => self.left(stream),
            Error::AlertReceived(alert) => AcceptError::Alert(alert),
            error => {
                stream.send_last_word().await;
                AcceptError::Malformed(error)
            }
        }
    }

    fn broken(&self, stream: &TlsStream, error: TlsError) -> AcceptError {
        match error {
            TlsError::Io(e) if is_gone(&e) => self.left(stream),
            TlsError::Io(e) => AcceptError::Io(e),
            error => AcceptError::Io(io::Error::other(error)),
        }
    }

    fn left(&self, stream: &TlsStream) -> AcceptError {
        if stream.session.presented_certificate(self.flights) {
            AcceptError::ClientDistrusts(Distrust::GaveUp)
        } else {
            AcceptError::ClientLeft
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected)
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::AlertReceived(alert) if is_distrust(alert) => Self::ClientDistrusts(Distrust::Alert(alert)),
            Error::AlertReceived(alert) => Self::Alert(alert),
            error => Self::Malformed(error),
        }
    }
}

impl From<SealError> for TlsError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Protocol(error) => error.into(),
            error => Self::Seal(error),
        }
    }
}
