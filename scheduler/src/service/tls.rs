//! TLS of the scheduler's port: its own certificate, renewed in place, and who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version::TLS13};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authority::{Authority, AuthorityError, LIFE, certificate_key, peer_name};
use crate::registry::KeyDigest;

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the other end to read why its handshake failed.
const LINGER: Duration = Duration::from_secs(1);
/// Handshakes under way, and connections without a certificate: those are for joining.
const MAX_STRANGERS: usize = 1024;
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
pub(super) struct Certified {
    pub(super) name: Arc<str>,
    /// Of the public key; the same after a renewal.
    pub(super) key: KeyDigest,
    /// Unix seconds.
    pub(super) not_after: u64,
}

/// A connection whose handshake is done.
pub(super) struct Conn {
    tls: TlsStream<TcpStream>,
    remote: Remote,
    /// A stranger's time and place.
    stranger: Option<(Pin<Box<Sleep>>, OwnedSemaphorePermit)>,
}

/// What the server is given; it is never an error.
type Accepted = Result<Conn, io::Error>;

/// The scheduler's certificate, which handshakes take from here.
pub(super) struct Own {
    authority: Arc<Authority>,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Own {
    /// Issues the first one.
    pub(super) fn new(authority: Arc<Authority>) -> Result<Arc<Self>, TlsError> {
        let key = RwLock::new(issue(&authority)?);
        Ok(Arc::new(Self { authority, key }))
    }

    /// Issues the next one at half the life of the last, forever.
    pub(super) async fn renew(self: Arc<Self>) {
        loop {
            sleep(LIFE / 2).await;
            match issue(&self.authority) {
                Ok(key) => *self.key.write().unwrap_or_else(PoisonError::into_inner) = key,
                Err(error) => tracing::error!(%error, "the scheduler's certificate could not be renewed"),
            }
        }
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Own")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
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
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
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
        let Ok(place) = Arc::clone(&strangers).try_acquire_owned() else {
            tracing::warn!(peer = %address, limit = MAX_STRANGERS, "refused: too many connections without a certificate");
            continue;
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            if let Some(conn) = handshake(&acceptor, tcp, address, place).await {
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

async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
) -> Option<Conn> {
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
            tracing::warn!(peer = %address, error = %refusal(&error), "refused: the TLS handshake failed");
            linger(tcp).await;
            return None;
        }
        Err(_) => {
            tracing::warn!(peer = %address, "refused: no TLS handshake within {HANDSHAKE:?}");
            return None;
        }
    };
    let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.and_then(certified);
    if shown.is_some() && certificate.is_none() {
        tracing::warn!(peer = %address, "refused: the certificate is no peer's");
        return None;
    }
    let stranger = certificate.is_none().then(|| (Box::pin(sleep(STRANGER_LIFE)), place));
    Some(Conn { tls, remote: Remote { address, local, certificate }, stranger })
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

/// What the handshake's error means here.
fn refusal(error: &io::Error) -> String {
    use rustls::CertificateError::{Expired, ExpiredContext, UnknownIssuer};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
            "the peer's certificate has expired: it has to join again with a token".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => {
            "the peer's certificate is not of this cluster's CA".to_owned()
        }
        _ => error.to_string(),
    }
}

fn certified(certificate: &CertificateDer<'_>) -> Option<Certified> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    let key = KeyDigest(certificate_key(certificate)?);
    Some(Certified { name: peer_name(certificate)?.into(), key, not_after })
}

fn issue(authority: &Authority) -> Result<Arc<CertifiedKey>, TlsError> {
    let (signed, key) = authority.own(OffsetDateTime::now_utc())?;
    let key = provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(CertifiedKey::new(signed.chain, key)))
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
        if let Some((deadline, _)) = &mut self.stranger
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
