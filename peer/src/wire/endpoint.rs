//! A shard's QUIC endpoint: where its links begin and end.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use pondhawk_scheduler::warning_limit::WarningLimit;
use quinn::{ClientConfig, Connection, EndpointConfig, Incoming, ServerConfig, TokioRuntime};
use tokio::time::timeout;

use super::{
    DialError, Identity, Library, PeerId, Uploads, WireError,
    callers::{CallerTable, CallerVerdict},
    code,
    denials::DenialList,
    identity::subject_at,
    serve::{self, Service},
    socket, transport,
};
use crate::trace::Tracer;

/// From the first packet to the end of the handshake.
pub(super) const DIAL_WAIT: Duration = Duration::from_secs(5);
/// Refused callers that are remembered, for status.
const REFUSALS: usize = 16;

/// How an endpoint is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// UDP address: the configured port plus the shard's number.
    pub listen: SocketAddr,
    /// The link's MTU in bytes: 1500, 9000 with jumbo frames. Packets grow up to it as far as the path lets them.
    pub link_mtu: u16,
    /// The shard's number: which of another peer's endpoints it dials.
    pub shard: u16,
}

/// One shard's end of all its links. Must be made and used inside the shard's runtime.
pub struct Endpoint {
    quinn: quinn::Endpoint,
    client: RefCell<ClientConfig>,
    options: Options,
    denials: Arc<DenialList>,
    refusals: RefCell<VecDeque<Refusal>>,
    callers: RefCell<CallerTable>,
    warnings: WarningLimit,
}

/// Somebody who could not prove to be a peer of this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it called from.
    pub address: SocketAddr,
    /// Why it was refused.
    pub why: String,
}

impl Endpoint {
    /// Binds the socket.
    pub fn bind(identity: &Identity, options: Options) -> Result<Self, WireError> {
        let payload = transport::payload(options.link_mtu);
        let socket_failed = |source| WireError::Socket { at: options.listen, source };
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(payload).map_err(|error| socket_failed(io::Error::other(error)))?;
        let socket = socket::open(options.listen, payload).map_err(socket_failed)?;
        let (client, server) = configs(identity, payload)?;
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(TokioRuntime))
            .map_err(socket_failed)?;
        let (client, denials) = (RefCell::new(client), Arc::default());
        let (refusals, callers) = (RefCell::default(), RefCell::default());
        Ok(Self { quinn, client, options, denials, refusals, callers, warnings: WarningLimit::default() })
    }

    /// Has no connection with the peers in this list, and ends those that there are when it changes.
    pub fn with_denials(mut self, denials: Arc<DenialList>) -> Self {
        self.denials = denials;
        self
    }

    /// Uses another certificate from now on; links that stand are left as they are.
    pub fn renew(&self, identity: &Identity) -> Result<(), WireError> {
        let (client, server) = configs(identity, transport::payload(self.options.link_mtu))?;
        self.quinn.set_server_config(Some(server));
        *self.client.borrow_mut() = client;
        Ok(())
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// Serves whoever proves to be a peer, until [`Self::close`].
    pub async fn serve(self: Rc<Self>, library: impl Library, uploads: Arc<Uploads>, tracer: Tracer) {
        let service = Rc::new(Service::new(library, uploads, tracer));
        while let Some(incoming) = self.quinn.accept().await {
            let Some(incoming) = self.admit(incoming) else { continue };
            let (endpoint, service) = (Rc::clone(&self), Rc::clone(&service));
            tokio_uring::spawn(async move {
                let (address, is_validated) = (incoming.remote_address().ip(), incoming.remote_address_validated());
                let met = endpoint.meet(incoming).await;
                endpoint.callers.borrow_mut().end_handshake(address, is_validated);
                if let Some((peer, connection)) = met {
                    endpoint.serve_link(&service, &peer, &connection).await;
                }
            });
        }
    }

    /// A caller that has a place among the handshakes; the others are answered and dropped.
    fn admit(&self, incoming: Incoming) -> Option<Incoming> {
        let address = incoming.remote_address().ip();
        match self.callers.borrow_mut().begin_handshake(address, incoming.remote_address_validated()) {
            CallerVerdict::Admit => return Some(incoming),
            // Fails only for a validated address, which is never asked again.
            CallerVerdict::Validate => drop(incoming.retry()),
            CallerVerdict::Refuse => incoming.refuse(),
        }
        None
    }

    /// Serves a peer within its share of the links.
    async fn serve_link<L: Library>(&self, service: &Rc<Service<L>>, peer: &PeerId, connection: &Connection) {
        let Some(blocks) = self.callers.borrow_mut().begin_link(peer) else {
            tracing::debug!(%peer, "a link is refused: the peer, or the node, has too many");
            return connection.close(code::TOO_MUCH, b"you have too many links, or this node has");
        };
        serve::serve(service, peer, connection, blocks).await;
        self.callers.borrow_mut().end_link(peer);
    }

    /// The last callers that were refused, oldest first.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals.borrow().iter().cloned().collect()
    }

    /// Closes all connections at once.
    pub fn close(&self) {
        self.quinn.close(code::DONE, b"shutting down");
    }

    /// Connects to a peer and makes sure that it is that one.
    ///
    /// In TLS 1.3 the dialler is done first: a peer that refuses this side's certificate closes the connection after it.
    pub(super) async fn dial(&self, peer: &PeerId, address: SocketAddr) -> Result<Connection, DialError> {
        if self.denials.covers_name(peer) {
            return Err(DialError::Denied { peer: peer.clone() });
        }
        let failed = |why: String| DialError::Failed { peer: peer.clone(), addr: address, why };
        let client = self.client.borrow().clone();
        let connecting = self.quinn.connect_with(client, address, &peer.dns_name());
        let connecting = connecting.map_err(|error| failed(error.to_string()))?;
        match timeout(DIAL_WAIT, connecting).await {
            Err(_) => Err(DialError::Silent { peer: peer.clone(), addr: address }),
            Ok(Err(error)) => Err(DialError::explain(&error, peer, address)),
            Ok(Ok(connection)) => match subject_at(&connection) {
                Some((_, key)) if self.admits(peer, key, &connection) => Ok(connection),
                Some(_) => Err(DialError::Denied { peer: peer.clone() }),
                None => Err(failed("its certificate cannot be read".to_owned())),
            },
        }
    }

    /// Closes the connection with a peer that is denied, now or as soon as it is.
    fn admits(&self, peer: &PeerId, key: [u8; 32], connection: &Connection) -> bool {
        let close =
            |connection: &Connection| connection.close(code::DENIED, b"you are denied by the cluster's operator");
        if self.denials.covers(peer, &key) {
            close(connection);
            return false;
        }
        let (denials, peer, connection) = (Arc::clone(&self.denials), peer.clone(), connection.clone());
        tokio_uring::spawn(async move {
            tokio::select! {
                () = denials.wait_for(&peer, &key) => {
                    tracing::warn!(%peer, "a connection is closed: a scheduler denies this peer");
                    close(&connection);
                }
                _ = connection.closed() => {}
            }
        });
        true
    }

    pub(super) fn shard(&self) -> u16 {
        self.options.shard
    }

    /// The handshake with a caller; what fails is logged and remembered.
    async fn meet(&self, incoming: Incoming) -> Option<(PeerId, Connection)> {
        let address = incoming.remote_address();
        let why = match timeout(DIAL_WAIT, incoming).await {
            Err(_) => "no handshake in time".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(connection)) => match subject_at(&connection) {
                Some((peer, key)) if self.admits(&peer, key, &connection) => return Some((peer, connection)),
                Some((peer, _)) => format!("{peer} is denied by a scheduler"),
                None => {
                    connection.close(code::NAMELESS, b"your certificate names no peer");
                    "its certificate names no peer".to_owned()
                }
            },
        };
        if let Some(left_out) = self.warnings.allow(Instant::now()) {
            tracing::warn!(%address, why, left_out, "a caller was refused");
        }
        let mut refusals = self.refusals.borrow_mut();
        if refusals.len() == REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { address, why });
        None
    }
}

fn configs(identity: &Identity, payload: u16) -> Result<(ClientConfig, ServerConfig), WireError> {
    let transport = Arc::new(transport::config(payload));
    let mut server = ServerConfig::with_crypto(Arc::new(identity.server_crypto()?));
    server.transport_config(Arc::clone(&transport)).migration(false);
    let mut client = ClientConfig::new(Arc::new(identity.client_crypto()?));
    client.transport_config(transport);
    Ok((client, server))
}
