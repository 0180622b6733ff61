//! TLS of the scheduler's port: its own certificate, renewed in place, and who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version::TLS13};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::shares::{PlaceShares, SharedPlace};
use crate::authority::{Authority, AuthorityError, certificate_key, peer_name};
use crate::port_slots::network;
use crate::registry::KeyDigest;
use crate::validity::{self, Validity};
use crate::warning_limit::WarningLimit;

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the other end to read why its handshake failed.
const LINGER: Duration = Duration::from_secs(1);
/// Handshakes under way. Each costs some 30 KiB for at most [`HANDSHAKE`].
const MAX_HANDSHAKES: usize = 1024;
/// Of one address: several nodes can be behind one, and dial again when they are refused.
const MAX_HANDSHAKES_OF_ONE: usize = 64;
/// Connections without a certificate, which are for joining. They are apart from the handshakes, so that they never keep a
/// node out that has a certificate to show.
const MAX_STRANGERS: usize = 256;
/// Of one address.
const MAX_STRANGERS_OF_ONE: usize = 32;
/// Connections under certificates of the cluster.
const MAX_MEMBERS: usize = 1 << 20;
/// Under one name: a node has one, and a second one while it renews or reconnects.
const MAX_MEMBERS_OF_ONE: usize = 16;
/// How long a connection without a certificate may last.
const STRANGER_LIFE: Duration = Duration::from_secs(30);
/// Ready connections that wait to be served.
const BACKLOG: usize = 64;
/// Rest after an accept that failed: mostly there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) address: SocketAddr,
    /// Where it found the scheduler.
    pub(super) local: IpAddr,
    /// What its certificate says; none: it showed none.
    pub(super) certificate: Option<Certified>,
}

/// What a certificate of this cluster says.
#[derive(Clone, Debug)]
pub(crate) struct Certified {
    pub(crate) name: Arc<str>,
    /// Of the public key; the same after a renewal.
    pub(super) key: KeyDigest,
    /// Unix seconds.
    pub(crate) not_after: u64,
}

/// A connection whose handshake is done.
pub(super) struct Conn {
    tls: TlsStream<TcpStream>,
    remote: Remote,
    /// When a connection without a certificate ends.
    deadline: Option<Pin<Box<Sleep>>>,
    _place: ConnPlace,
}

/// What a connection occupies once its handshake is done.
#[expect(dead_code, reason = "held for its drop")]
enum ConnPlace {
    Stranger(SharedPlace<IpAddr>),
    Member(SharedPlace<Arc<str>>),
}

/// The places of the port.
struct PortPlaces {
    handshakes: Arc<PlaceShares<IpAddr>>,
    strangers: Arc<PlaceShares<IpAddr>>,
    members: Arc<PlaceShares<Arc<str>>>,
    warnings: RefusalWarnings,
}

/// What strangers can cause the log to say.
#[derive(Default)]
struct RefusalWarnings {
    full: WarningLimit,
    expired: WarningLimit,
    foreign: WarningLimit,
    handshake: WarningLimit,
    late: WarningLimit,
    certificate: WarningLimit,
}

impl RefusalWarnings {
    /// What the handshake's error means here, and its limit: a reason that many strangers cause must not hide another one.
    fn refusal(&self, error: &io::Error) -> (&WarningLimit, String) {
        use rustls::CertificateError::{Expired, ExpiredContext, UnknownIssuer};
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
                (&self.expired, "the peer's certificate has expired: it has to join again with a token".to_owned())
            }
            Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => {
                (&self.foreign, "the peer's certificate is not of this cluster's CA".to_owned())
            }
            _ => (&self.handshake, error.to_string()),
        }
    }
}

impl PortPlaces {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            handshakes: PlaceShares::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_ONE),
            strangers: PlaceShares::new(MAX_STRANGERS, MAX_STRANGERS_OF_ONE),
            members: PlaceShares::new(MAX_MEMBERS, MAX_MEMBERS_OF_ONE),
            warnings: RefusalWarnings::default(),
        })
    }

    /// The place of a connection after its handshake; `None`: there is none for this party.
    fn after_handshake(&self, address: IpAddr, certificate: Option<&Certified>) -> Option<ConnPlace> {
        match certificate {
            Some(certificate) => self.members.take(Arc::clone(&certificate.name)).map(ConnPlace::Member),
            None => self.strangers.take(network(address)).map(ConnPlace::Stranger),
        }
    }
}

/// What the server is given; it is never an error.
type Accepted = Result<Conn, io::Error>;

/// The scheduler's certificate, which handshakes take from here.
pub(super) struct Own {
    authority: Arc<Authority>,
    current: RwLock<(Arc<CertifiedKey>, Validity)>,
}

impl Own {
    /// Issues the first one.
    pub(super) fn new(authority: Arc<Authority>) -> Result<Arc<Self>, TlsError> {
        Self::issued_at(authority, OffsetDateTime::now_utc())
    }

    /// Issues the first one as of another time.
    pub(super) fn issued_at(authority: Arc<Authority>, now: OffsetDateTime) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(issue(&authority, now)?);
        Ok(Arc::new(Self { authority, current }))
    }

    /// Issues the next one when [`Validity::is_due`] says so, until the future is dropped.
    pub(super) async fn renew(self: Arc<Self>) {
        loop {
            sleep(validity::LOOK_EVERY).await;
            if !self.validity().is_due(unix_now()) {
                continue;
            }
            match issue(&self.authority, OffsetDateTime::now_utc()) {
                Ok(issued) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = issued;
                    tracing::info!(until_unix = self.validity().not_after, "the scheduler's certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "the scheduler's certificate could not be renewed");
                    sleep(validity::RETRY_AFTER).await;
                }
            }
        }
    }

    /// Whether nodes accept the certificate now.
    pub(super) fn is_valid(&self) -> bool {
        self.validity().holds(unix_now())
    }

    fn validity(&self) -> Validity {
        self.current.read().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Own")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).0))
    }
}

/// Why the port can't speak TLS.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TlsError {
    Authority(#[from] AuthorityError),
    Rustls(#[from] rustls::Error),
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS 1.3 that asks for a certificate of the cluster and takes none for an answer, but no wrong one.
pub(super) fn server_config(ca: &CertificateDer<'static>, own: Arc<Own>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive the certificate that it was made with.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts until the receiver is gone; handshakes run beside each other.
pub(super) async fn accept(listener: TcpListener, config: Arc<ServerConfig>, ready: mpsc::Sender<Accepted>) {
    let acceptor = TlsAcceptor::from(config);
    let places = PortPlaces::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.handshakes.take(network(address.ip())) else {
            if let Some(left_out) = places.warnings.full.allow(Instant::now()) {
                tracing::warn!(peer = %address, left_out, "refused: too many handshakes under way, or of this address");
            }
            continue;
        };
        let (acceptor, ready, places) = (acceptor.clone(), ready.clone(), Arc::clone(&places));
        tokio::spawn(async move {
            let conn = handshake(&acceptor, tcp, address, &places).await;
            drop(place);
            if let Some(conn) = conn {
                drop(ready.send(Ok(conn)).await);
            }
        });
    }
}

/// Queue between [`accept`] and the server.
pub(super) fn backlog() -> (mpsc::Sender<Accepted>, mpsc::Receiver<Accepted>) {
    mpsc::channel(BACKLOG)
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn handshake(acceptor: &TlsAcceptor, tcp: TcpStream, address: SocketAddr, places: &PortPlaces) -> Option<Conn> {
    let warnings = &places.warnings;
    // Messages are small and wanted at once.
    let _ = tcp.set_nodelay(true);
    let local = tcp.local_addr().ok()?.ip().to_canonical();
    let tls = match timeout(HANDSHAKE, acceptor.accept(tcp).into_fallible()).await {
        Ok(Ok(tls)) => tls,
        // Whoever asks only whether the port is open: a load balancer, a probe.
        Ok(Err((error, _))) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(peer = %address, "closed before a TLS handshake");
            return None;
        }
        Ok(Err((error, tcp))) => {
            let (limit, why) = warnings.refusal(&error);
            if let Some(left_out) = limit.allow(Instant::now()) {
                tracing::warn!(peer = %address, error = %why, left_out, "refused: the TLS handshake failed");
            }
            linger(tcp).await;
            return None;
        }
        Err(_) => {
            if let Some(left_out) = warnings.late.allow(Instant::now()) {
                tracing::warn!(peer = %address, left_out, "refused: no TLS handshake within {HANDSHAKE:?}");
            }
            return None;
        }
    };
    let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.and_then(certified);
    if shown.is_some() && certificate.is_none() {
        if let Some(left_out) = warnings.certificate.allow(Instant::now()) {
            tracing::warn!(peer = %address, left_out, "refused: the certificate is no peer's");
        }
        return None;
    }
    let Some(place) = places.after_handshake(address.ip(), certificate.as_ref()) else {
        if let Some(left_out) = warnings.full.allow(Instant::now()) {
            tracing::warn!(peer = %address, left_out, "refused: too many connections without a certificate, or of one peer");
        }
        return None;
    };
    let deadline = certificate.is_none().then(|| Box::pin(sleep(STRANGER_LIFE)));
    Some(Conn { tls, remote: Remote { address, local, certificate }, deadline, _place: place })
}

/// Reads on until the other end has read the alert: a close with unread bytes would make TCP drop it.
async fn linger(mut tcp: TcpStream) {
    let drained = async {
        tcp.shutdown().await?;
        let mut rest = [0; 4096];
        while tcp.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection is over.
    drop(timeout(LINGER, drained).await);
}

pub(crate) fn certified(certificate: &CertificateDer<'_>) -> Option<Certified> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    let key = KeyDigest(certificate_key(certificate)?);
    Some(Certified { name: peer_name(certificate)?.into(), key, not_after })
}

fn issue(authority: &Authority, now: OffsetDateTime) -> Result<(Arc<CertifiedKey>, Validity), TlsError> {
    let (signed, key) = authority.own(now)?;
    let not_before = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let key = provider().key_provider.load_private_key(key)?;
    let validity = Validity { not_before, not_after: signed.not_after };
    Ok((Arc::new(CertifiedKey::new(signed.chain, key)), validity))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl Connected for Conn {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        self.remote.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::net::TcpSocket;

    use super::*;
    use crate::authority::{LIFE, SCHEDULER_NAME};

    /// Far longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn authority() -> (tempfile::TempDir, Arc<Authority>) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path()).unwrap());
        (dir, authority)
    }

    /// A machine whose clock was eight days behind at the start once showed an expired certificate for days.
    #[tokio::test]
    async fn a_certificate_that_the_clock_has_left_is_replaced() {
        let (_dir, authority) = authority();
        for wrong in [OffsetDateTime::now_utc() - LIFE * 2, OffsetDateTime::now_utc() + LIFE * 2] {
            let own = Own::issued_at(Arc::clone(&authority), wrong).unwrap();
            assert!(!own.is_valid());
            let renewal = tokio::spawn(Arc::clone(&own).renew());
            let valid = async {
                while !own.is_valid() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(LONG, valid).await.expect("it is replaced");
            renewal.abort();
        }
    }

    #[tokio::test]
    async fn connections_that_never_shake_hands_do_not_keep_other_addresses_out() {
        let (_dir, authority) = authority();
        let own = Own::new(Arc::clone(&authority)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = server_config(authority.ca(), own).unwrap();
        let (ready, mut accepted) = backlog();
        tokio::spawn(accept(listener, config, ready));
        let mut silent = Vec::new();
        for _ in 0..MAX_HANDSHAKES + 76 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority.ca().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let tcp = socket.connect(address).await.unwrap();
        let name = ServerName::try_from(SCHEDULER_NAME).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let _tls = timeout(LONG, connector.connect(name, tcp)).await.expect("in time").expect("a handshake");
        let conn = timeout(LONG, accepted.recv()).await.expect("in time").unwrap().unwrap();
        assert_eq!(conn.remote.address.ip().to_string(), "127.0.0.2");
    }
}
