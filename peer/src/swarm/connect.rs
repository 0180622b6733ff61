//! Connections to an origin: name, address rule, socket options, verified TLS.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};

use super::{
    address,
    error::OriginError,
    own::OwnSockets,
    upstream::{self, Upstream},
};
use crate::tls::bundle::SYSTEM_BUNDLES;

/// Addresses of one name that are tried before the origin counts as unreachable.
const MAX_ADDRESSES: usize = 6;
/// Names whose addresses are remembered.
const MAX_NAMES: usize = 512;
/// How long they are: a CDN moves its clients within a minute, and getaddrinfo tells no TTL.
const NAME_TTL: Duration = Duration::from_secs(30);
/// An idle connection is probed after this, so that a vanished origin is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How connections are made.
#[derive(Clone, Debug)]
pub(super) struct ConnectOptions {
    /// SO_MARK of every socket, so that the node's own connections are not caught by its interceptor.
    pub mark: Option<u32>,
    /// Whether a socket that cannot be marked (no CAP_NET_ADMIN) is an error: set while interception is on.
    pub mark_required: bool,
    /// PEM files of CAs trusted beside the system's.
    pub extra_cas: Vec<PathBuf>,
    /// Whether private, loopback and link-local addresses may be origins.
    pub allow_private: bool,
    /// `host` or `host:port` to the address that serves it, whatever DNS says; the address rule does not apply to these.
    pub overrides: Vec<(String, SocketAddr)>,
    /// What is never connected to.
    pub(super) own: Arc<OwnSockets>,
    /// By which proxy, and what not.
    pub proxy: Option<Upstream>,
    /// For name, TCP and TLS together.
    pub timeout: Duration,
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tls: bool,
    /// As in the URL: no brackets around an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
}

/// What hyper speaks HTTP/1.1 over.
pub(super) type Stream = TokioIo<Box<dyn Duplex>>;

/// A byte stream in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Host and port to their addresses, permitted or not, and since when these are known.
type Names = HashMap<(String, u16), (Instant, Vec<SocketAddr>)>;

/// Makes connections; shared by all shards.
pub(super) struct Connector {
    options: ConnectOptions,
    tls: tokio_rustls::TlsConnector,
    names: Mutex<Names>,
}

/// The trust anchors could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum TrustError {
    /// A configured file is unreadable or holds no certificate.
    #[error("no CA certificate could be read from {path}")]
    File { path: PathBuf },
    /// Neither the system nor the configuration gives a root.
    #[error("no trusted root certificate: install the ca-certificates package or configure extra CAs")]
    Empty,
    /// rustls cannot work with its own provider.
    #[error("TLS setup: {0}")]
    Setup(#[from] rustls::Error),
}

impl Connector {
    /// Reads the trust anchors: blocking file reads, done once.
    pub(super) fn new(options: ConnectOptions) -> Result<Self, TrustError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(trusted_roots(&options.extra_cas)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        Ok(Self { options, tls, names: Mutex::default() })
    }

    /// A new connection to `place`, TLS done. `at` labels errors, and `via` tells a proxy on the way which ones came before.
    pub(super) async fn connect(&self, place: &Place, at: &str, via: Option<&str>) -> Result<Stream, OriginError> {
        let deadline = Instant::now() + self.options.timeout;
        let late = |waiting| OriginError::Timeout { at: at.to_owned(), waiting };
        let socket = self.reach(place, deadline, at, via).await?;
        if !place.tls {
            return Ok(TokioIo::new(Box::new(socket)));
        }
        let name = ServerName::try_from(place.host.clone()).map_err(|_| OriginError::Url { at: at.to_owned() })?;
        let secured =
            timeout_at(deadline, self.tls.connect(name, socket)).await.map_err(|_| late("in the TLS handshake"))?;
        Ok(TokioIo::new(Box::new(secured.map_err(|error| handshake_error(error, at))?)))
    }

    /// Whether the server at `address` has a certificate for `host`: TLS is verified as for any origin, and the connection
    /// ends with the handshake.
    pub(super) async fn verify(&self, address: SocketAddr, host: &str) -> Result<(), OriginError> {
        let at = format!("{host} at {address}");
        let deadline = Instant::now() + self.options.timeout;
        let late = || OriginError::Timeout { at: at.clone(), waiting: "in the TLS handshake" };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| OriginError::Url { at: at.clone() })?;
        let socket = self.connect_one_of(&[address], deadline, &at).await?;
        let secured = timeout_at(deadline, self.tls.connect(name, socket)).await.map_err(|_| late())?;
        secured.map(drop).map_err(|error| handshake_error(error, &at))
    }

    /// A new TCP connection to `place`, whatever is to be spoken on it.
    pub(super) async fn dial(
        &self,
        place: &Place,
        at: &str,
        via: Option<&str>,
    ) -> Result<std::net::TcpStream, OriginError> {
        let socket = self.reach(place, Instant::now() + self.options.timeout, at, via).await?;
        socket.into_std().map_err(|source| OriginError::Connect { at: at.to_owned(), source })
    }

    async fn reach(
        &self,
        place: &Place,
        deadline: Instant,
        at: &str,
        via: Option<&str>,
    ) -> Result<TcpStream, OriginError> {
        // Before the name is resolved, and where a proxy resolves it.
        if self.overridden(place).is_none() && self.options.own.covers_host(&place.host, place.port) {
            return Err(OriginError::Loop { at: at.to_owned(), place: format!("{}:{}", place.host, place.port) });
        }
        if let Some(proxy) = self.options.proxy.as_ref().filter(|proxy| proxy.is_for(&place.host)) {
            return self.through(proxy, place, (deadline, via), at).await;
        }
        let late = |_| OriginError::Timeout { at: at.to_owned(), waiting: "resolving the name" };
        let addresses = timeout_at(deadline, self.addresses(place, at)).await.map_err(late)??;
        self.connect_one_of(&addresses, deadline, at).await
    }

    /// A tunnel to `place`. A name is left to the proxy, and with it the rule for the addresses behind it.
    async fn through(
        &self,
        proxy: &Upstream,
        place: &Place,
        (deadline, via): (Instant, Option<&str>),
        at: &str,
    ) -> Result<TcpStream, OriginError> {
        let target = match (self.overridden(place), place.host.parse::<IpAddr>()) {
            (Some(fixed), _) => fixed.to_string(),
            (None, Ok(literal)) => self.permit(vec![SocketAddr::new(literal, place.port)], at)?[0].to_string(),
            (None, Err(_)) => format!("{}:{}", place.host, place.port),
        };
        let failed = |why: String| OriginError::Proxy { at: at.to_owned(), proxy: proxy.to_string(), why };
        let (host, port) = proxy.place();
        let late = |_| failed("its name was not resolved in time".to_owned());
        let found = timeout_at(deadline, self.look_up(host, port)).await.map_err(late)?;
        let addresses = found.map_err(|error| failed(format!("its name was not resolved: {error}")))?;
        let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
        let mut socket = match self.connect_one_of(addresses, deadline, at).await {
            Err(OriginError::Connect { source, .. }) => return Err(failed(format!("no connection to it: {source}"))),
            Err(OriginError::Timeout { .. }) => return Err(failed("no connection to it in time".to_owned())),
            other => other?,
        };
        match timeout_at(deadline, open_tunnel(&mut socket, proxy, &target, via)).await {
            Ok(Ok(200..=299)) => Ok(socket),
            // tinyproxy says 401 to a wrong password.
            Ok(Ok(401 | 407)) => Err(OriginError::Login { at: at.to_owned(), proxy: proxy.to_string() }),
            Ok(Ok(508)) => Err(OriginError::Loop { at: at.to_owned(), place: format!("the way through {proxy}") }),
            Ok(Ok(status)) => Err(failed(format!("it answered {status} to CONNECT {target}"))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("it did not answer CONNECT {target} in time"))),
        }
    }

    /// The permitted addresses of `place`.
    async fn addresses(&self, place: &Place, at: &str) -> Result<Vec<SocketAddr>, OriginError> {
        if let Some(fixed) = self.overridden(place) {
            return Ok(vec![fixed]);
        }
        let resolve = |source| OriginError::Resolve { at: at.to_owned(), source };
        let found = self.look_up(&place.host, place.port).await.map_err(resolve)?;
        self.permit(found, at)
    }

    /// All addresses of a host, at least one; those of a name are remembered for [`NAME_TTL`].
    async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(literal, port)]);
        }
        let key = (host.to_owned(), port);
        if let Some(known) = self.remembered(&key) {
            return Ok(known);
        }
        let found: Vec<_> = lookup_host((host, port)).await?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
        }
        self.remember(key, found.clone());
        Ok(found)
    }

    fn overridden(&self, place: &Place) -> Option<SocketAddr> {
        let with_port = format!("{}:{}", place.host, place.port);
        let matches = |name: &str| name.eq_ignore_ascii_case(&place.host) || name.eq_ignore_ascii_case(&with_port);
        self.options.overrides.iter().find(|(name, _)| matches(name)).map(|(_, address)| *address)
    }

    /// Drops what the address rule forbids; an error if nothing is left. Names that resolve to a mix keep their public part.
    fn permit(&self, mut addresses: Vec<SocketAddr>, at: &str) -> Result<Vec<SocketAddr>, OriginError> {
        let first = addresses[0].ip();
        addresses.retain(|address| self.options.allow_private || address::is_public(address.ip()));
        addresses.truncate(MAX_ADDRESSES);
        match addresses.is_empty() {
            true => Err(OriginError::Refused { at: at.to_owned(), address: first }),
            false => Ok(addresses),
        }
    }

    fn remembered(&self, key: &(String, u16)) -> Option<Vec<SocketAddr>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(key).filter(|(since, _)| since.elapsed() < NAME_TTL).map(|(_, addresses)| addresses.clone())
    }

    fn remember(&self, key: (String, u16), addresses: Vec<SocketAddr>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES {
            names.retain(|_, (since, _)| since.elapsed() < NAME_TTL);
        }
        if names.len() < MAX_NAMES {
            names.insert(key, (Instant::now(), addresses));
        }
    }

    /// The first address that answers; each gets its share of the time that is left, so that one black hole does not take it all.
    async fn connect_one_of(&self, all: &[SocketAddr], deadline: Instant, at: &str) -> Result<TcpStream, OriginError> {
        let mut last = OriginError::Timeout { at: at.to_owned(), waiting: "connecting" };
        for (index, address) in all.iter().enumerate() {
            if self.options.own.covers(*address) {
                last = OriginError::Loop { at: at.to_owned(), place: address.to_string() };
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(all.len() - index).unwrap_or(1);
            let socket = self.socket(*address, at)?;
            match timeout(share, socket.connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = OriginError::Connect { at: at.to_owned(), source },
                Err(_) => last = OriginError::Timeout { at: at.to_owned(), waiting: "connecting" },
            }
        }
        Err(last)
    }

    /// The mark is set before connect(): the interceptor looks at the socket there.
    fn socket(&self, address: SocketAddr, at: &str) -> Result<TcpSocket, OriginError> {
        let failed = |source| OriginError::Connect { at: at.to_owned(), source };
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
        let options = socket2::SockRef::from(&socket);
        if let Some(mark) = self.options.mark
            && let Err(source) = options.set_mark(mark)
            && self.options.mark_required
        {
            return Err(OriginError::Mark { at: at.to_owned(), source });
        }
        socket.set_nodelay(true).map_err(failed)?;
        options.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE)).map_err(failed)?;
        Ok(socket)
    }
}

/// Asks the proxy for a tunnel and reads the head of its final answer, and nothing of what comes out of the tunnel; gives its status.
async fn open_tunnel(socket: &mut TcpStream, proxy: &Upstream, target: &str, via: Option<&str>) -> io::Result<u16> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    socket.write_all(proxy.request(target, via).as_bytes()).await?;
    let (mut head, mut seen, mut read) = (Vec::new(), [0; 1024], 0);
    loop {
        let there = socket.peek(&mut seen).await?;
        if there == 0 {
            return Err(wrong("it closed the connection instead of an answer"));
        }
        let (take, over) = upstream::of_head(&head, &seen[..there]);
        socket.read_exact(&mut seen[..take]).await?;
        head.extend_from_slice(&seen[..take]);
        read += take;
        if over {
            let status = upstream::status(&head).ok_or_else(|| wrong("its answer is not HTTP"))?;
            if !upstream::is_interim(status) {
                return Ok(status);
            }
            head.clear();
        }
        // Interim answers count as well, so that a proxy cannot send them for ever.
        if read > upstream::MAX_HEAD {
            return Err(wrong("the head of its answer is too long"));
        }
    }
}

/// The system's roots by file (the environment's SSL_CERT_FILE is the clients' business, not the node's), and `extra`.
fn trusted_roots(extra: &[PathBuf]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()) {
        roots.add_parsable_certificates(rustls_native_certs::load_certs_from_paths(Some(bundle), None).certs);
    }
    for path in extra {
        let found = rustls_native_certs::load_certs_from_paths(Some(path), None).certs;
        if roots.add_parsable_certificates(found).0 == 0 {
            return Err(TrustError::File { path: path.clone() });
        }
    }
    if roots.is_empty() { Err(TrustError::Empty) } else { Ok(roots) }
}

/// tokio-rustls wraps what rustls says in an io::Error; what the kernel says stays one.
fn handshake_error(error: io::Error, at: &str) -> OriginError {
    let at = at.to_owned();
    match error.downcast::<rustls::Error>() {
        Ok(source) => OriginError::Tls { at, source },
        Err(source) => OriginError::Connect { at, source },
    }
}
