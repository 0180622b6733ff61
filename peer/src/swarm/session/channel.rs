//! One TLS connection to the scheduler, as a gRPC channel; whatever fails says what to do about it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use pondhawk_scheduler::authority::{SCHEDULER_NAME, fingerprint};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::wire::Identity;

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);

/// What the scheduler's certificate must lead to.
#[derive(Clone, Debug)]
pub(in crate::swarm) enum Trust {
    /// The CA with this SHA-256, which the scheduler itself shows: from a token.
    Pinned([u8; 32]),
    /// This CA.
    Root(CertificateDer<'static>),
}

/// Why there is no connection, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Neither a host name that is known, nor an open port.
    #[error("cannot reach the scheduler at {address}: {source}: is it running, and its port open to this node?")]
    Unreachable {
        /// As configured.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// No answer.
    #[error("the scheduler at {address} does not answer within {CONNECT:?}: is the port right, and open to this node?")]
    Silent {
        /// As configured.
        address: String,
    },
    /// It has another CA.
    #[error(
        "the scheduler at {address} is of another cluster than this node's {with}: \
         give this node a token of that scheduler (`pondhawk-scheduler token`), or the address of its own"
    )]
    Foreign {
        /// As configured.
        address: String,
        /// Token or certificate.
        with: &'static str,
    },
    /// The scheduler does not accept this node's certificate.
    #[error("the scheduler at {address} refuses this node's certificate ({why}): give this node a new join token")]
    Certificate {
        /// As configured.
        address: String,
        /// The alert.
        why: &'static str,
    },
    /// Anything else that TLS does not like.
    #[error("no TLS with the scheduler at {address}: {why}")]
    Tls {
        /// As configured.
        address: String,
        /// What.
        why: String,
    },
}

/// A connection, and what TLS had to say about it after the handshake.
#[derive(Debug)]
pub(in crate::swarm) struct Link {
    pub(in crate::swarm) channel: Channel,
    address: String,
    fault: Arc<Fault>,
}

/// In TLS 1.3 the client hears only after its handshake whether its certificate is accepted.
#[derive(Debug, Default)]
struct Fault(Mutex<Option<rustls::Error>>);

/// Connects to `address` (`host:port`), with this node's certificate where there is one.
pub(in crate::swarm) async fn connect(
    address: &str,
    trust: &Trust,
    identity: Option<&Identity>,
) -> Result<Link, ChannelError> {
    let config = client_config(trust, identity)
        .map_err(|error| ChannelError::Tls { address: address.to_owned(), why: error.to_string() })?;
    let fault = Arc::new(Fault::default());
    let connecting = timeout(CONNECT, handshake(address, trust, config));
    let tls = connecting.await.map_err(|_| ChannelError::Silent { address: address.to_owned() })??;
    let mut stream = Some(TokioIo::new(Watched { tls, fault: Arc::clone(&fault) }));
    // The one stream there is: tonic's own reconnection finds none, and the caller starts over.
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    // No TLS of tonic's: the stream has it.
    let endpoint = Endpoint::from_static("http://scheduler.pondhawk.internal");
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| ChannelError::Tls { address: address.to_owned(), why: error.to_string() })?;
    Ok(Link { channel, address: address.to_owned(), fault })
}

impl Link {
    /// Why the scheduler's TLS ended the connection, if it did.
    pub(in crate::swarm) fn fault(&self) -> Option<ChannelError> {
        let address = self.address.clone();
        let fault = self.fault.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(match fault {
            rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
                ChannelError::Certificate { address, why: "it has expired" }
            }
            rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
                ChannelError::Certificate { address, why: "it is of another cluster's CA" }
            }
            rustls::Error::AlertReceived(AlertDescription::BadCertificate) => {
                ChannelError::Certificate { address, why: "it is not valid" }
            }
            error => ChannelError::Tls { address, why: error.to_string() },
        })
    }
}

async fn handshake(address: &str, trust: &Trust, config: ClientConfig) -> Result<TlsStream<TcpStream>, ChannelError> {
    let unreachable = |source| ChannelError::Unreachable { address: address.to_owned(), source };
    let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let name = ServerName::try_from(SCHEDULER_NAME).expect("a host name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| refused(address, trust, error))
}

fn refused(address: &str, trust: &Trust, error: io::Error) -> ChannelError {
    let address = address.to_owned();
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            let with = match trust {
                Trust::Pinned(_) => "join token",
                Trust::Root(_) => "certificate",
            };
            ChannelError::Foreign { address, with }
        }
        Some(error) => ChannelError::Tls { address, why: error.to_string() },
        None => ChannelError::Unreachable { address, source: error },
    }
}

fn client_config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13])?;
    let builder = match trust {
        Trust::Root(root) => builder.with_root_certificates(roots(root.clone())?),
        Trust::Pinned(ca) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { ca: *ca, provider }))
        }
    };
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn roots(root: CertificateDer<'static>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    Ok(roots)
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Trusts exactly the CA with this SHA-256, and checks everything else as usual.
#[derive(Debug)]
struct Pinned {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::from(CertificateError::UnknownIssuer);
        let ca = shown.iter().find(|certificate| fingerprint(certificate) == self.ca).ok_or_else(unknown)?;
        let roots = Arc::new(roots(ca.clone().into_owned())?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, shown, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// A stream that keeps the TLS error it ends with: gRPC would only say that something is broken.
struct Watched {
    tls: TlsStream<TcpStream>,
    fault: Arc<Fault>,
}

impl Watched {
    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(error) = tls_error(error)
        {
            self.fault.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        self.note(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tls).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tls).poll_flush(cx);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
