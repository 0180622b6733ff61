//! Behind the redirection: what an intercepted connection is, and whether it is ours.

use std::{rc::Rc, sync::Arc};

use rustls::AlertDescription;
use tokio::time::{Instant, timeout_at};

use super::{
    client_hello::{self, Hello},
    passthrough::pass_through,
    proof::{PassRefusal, PassRequest, REFUSED_FOR},
    redirect::{Flow, Interceptor},
};
use crate::{
    connections::{ClientKey, PlaceRefusal},
    http::{connection, route::Arrival, transport::Transport},
    limits,
    metrics::{self, BypassReason, Direction, HandshakeFailure, PassReason, Way},
    shard::Shard,
    tls::{AcceptError, Distrust, Suffixes, TlsStream},
    uring::Socket,
};

/// Serves one intercepted connection to its end.
///
/// A connection that the BPF program did not send is closed: its original destination is unknown, and the port is no
/// way in of its own. One that has no place goes to its destination from a reserve, and its source around the node for a
/// while: a source that opens connections without end, or a node that has too many, costs a client no download.
pub async fn intercepted(shard: Rc<Shard>, interceptor: Arc<Interceptor>, socket: Socket) {
    let Some(flow) = interceptor.original(socket.peer_addr(), socket.local_addr()) else {
        tracing::debug!(peer = %socket.peer_addr(), "a connection to the intercept port that the programs did not redirect: closed");
        return;
    };
    let node = Arc::clone(&shard.node);
    let admission = node.connections.admit(client_key(&interceptor, &flow));
    let caught = Caught { shard, interceptor, socket, flow };
    let place = match admission {
        Ok(place) => place,
        Err(refusal) => return caught.without_place(refusal).await,
    };
    if place.fills_share() {
        caught.relieve();
    }
    let counted = node.metrics.connection(Way::Intercept);
    let (first, what) = look(&caught.socket, Vec::new(), node.tls.suffixes()).await;
    match what {
        Look::Ours(name) => caught.ours(first, name).await,
        Look::NotOurs(reason) => caught.not_ours(first, reason).await,
        Look::Gone => {}
    }
    drop((counted, place));
}

/// Whose share of the connections an intercepted one counts against: as [`pondhawk_ebpf::Source::party`].
fn client_key(interceptor: &Interceptor, flow: &Flow) -> ClientKey {
    if interceptor.is_own_namespace(&flow.source) {
        ClientKey::User(flow.source.uid)
    } else {
        ClientKey::Namespace(flow.source.netns_cookie)
    }
}

/// One connection and where it came from.
struct Caught {
    shard: Rc<Shard>,
    interceptor: Arc<Interceptor>,
    socket: Socket,
    flow: Flow,
}

/// What a connection turned out to be.
pub(crate) enum Look {
    /// TLS for this server name, one of ours.
    Ours(String),
    /// Anything else.
    NotOurs(PassReason),
    /// The client has left.
    Gone,
}

/// Reads until it is clear what the client speaks, after the bytes that have come already; gives back all that was read.
pub(crate) async fn look(socket: &Socket, already: Vec<u8>, ours: &Suffixes) -> (Vec<u8>, Look) {
    let mut first = already;
    let deadline = Instant::now() + limits::HELLO_WAIT;
    loop {
        match judge(&first, ours).filter(|_| !first.is_empty()) {
            None => {}
            // Gone before our answer, as after we hung for a while: that says nothing about trust.
            Some(Look::Ours(_)) if socket.peer_left() => return (first, Look::Gone),
            Some(look) => return (first, look),
        }
        // Only the wait is dropped at the deadline, never a receive: its bytes would be lost.
        match timeout_at(deadline, socket.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return (first, Look::Gone),
            Err(_) => return (first, Look::NotOurs(PassReason::Silent)),
        }
        first.reserve(limits::HELLO_READ);
        let (received, bytes) = socket.recv(first).await;
        first = bytes;
        match received {
            Err(_) => return (first, Look::Gone),
            // A half-close is for the destination to see, even before the first byte.
            Ok(0) => return (first, Look::NotOurs(PassReason::NotTls)),
            Ok(_) => {}
        }
    }
}

/// None while it cannot be told.
fn judge(first: &[u8], ours: &Suffixes) -> Option<Look> {
    match client_hello::parse(first) {
        Hello::Incomplete { .. } => None,
        Hello::NotTls => Some(Look::NotOurs(PassReason::NotTls)),
        // A cover name or GREASE: they look the same, and the first is not for us to answer.
        Hello::Tls { ech: true, .. } => Some(Look::NotOurs(PassReason::Ech)),
        Hello::Tls { sni: None, .. } => Some(Look::NotOurs(PassReason::NoServerName)),
        Hello::Tls { sni: Some(name), .. } if ours.covers(&name) => Some(Look::Ours(name)),
        Hello::Tls { .. } => Some(Look::NotOurs(PassReason::OtherHost)),
    }
}

impl Caught {
    async fn not_ours(&self, first: Vec<u8>, reason: PassReason) {
        let node = &self.shard.node;
        if let Err(refusal) = self.may_pass().await {
            return self.refuse(refusal);
        }
        node.metrics.passthrough(reason);
        match pass_through(&self.socket, first, self.flow.destination, node.config.intercept.mark.0).await {
            Ok(spliced) => {
                node.metrics.passed(Direction::Up, spliced.forth);
                node.metrics.passed(Direction::Down, spliced.back);
            }
            // The client sees a reset, as it would have from the destination itself.
            Err(error) => {
                self.socket.abort();
                tracing::debug!(destination = %self.flow.destination, %error, "a passed-on connection broke");
            }
        }
    }

    async fn may_pass(&self) -> Result<(), PassRefusal> {
        let node = &self.shard.node;
        let request = PassRequest {
            flow: &self.flow,
            interceptor: &self.interceptor,
            origin: &node.origin,
            allow_private: node.config.origin.allow_private,
            hosts: node.served.and(node.tls.suffixes().iter().map(str::to_owned)),
        };
        node.proofs.check(&request).await
    }

    /// Closes the connection. The client's next one to this destination goes direct.
    fn refuse(&self, refusal: PassRefusal) {
        let node = &self.shard.node;
        node.metrics.pass_refusal(match refusal {
            PassRefusal::Scope => metrics::PassRefusal::Scope,
            PassRefusal::Private => metrics::PassRefusal::Private,
            PassRefusal::Unproven => metrics::PassRefusal::Unproven,
        });
        self.interceptor.refuse(&self.flow.source, self.flow.destination.ip(), REFUSED_FOR);
        self.socket.abort();
        if node.warnings.refused_pass.allow(std::time::Instant::now()).is_some() {
            tracing::warn!(
                source = %self.flow.source, destination = %self.flow.destination,
                "a connection of another network namespace was not passed on: {refusal}. Its DNS answers name this address \
                 for one of intercept.hosts; look into that namespace's name server"
            );
        }
    }

    /// The source has as many connections as it may, or the node has: its next ones go direct, this one to its destination.
    async fn without_place(&self, refusal: PlaceRefusal) {
        let node = &self.shard.node;
        match refusal {
            PlaceRefusal::OverShare => self.relieve(),
            PlaceRefusal::Full => self.interceptor.pause(),
        }
        match node.reserve.admit(client_key(&self.interceptor, &self.flow)) {
            Ok(_place) => self.not_ours(Vec::new(), PassReason::NoPlace).await,
            Err(_) => {
                node.metrics.connection_refused();
                self.socket.abort();
            }
        }
    }

    /// Has further connections of the source's party go direct for a while.
    fn relieve(&self) {
        let node = &self.shard.node;
        self.interceptor.bypass_party(&self.flow.source, limits::OVER_SHARE_BYPASS);
        node.metrics.bypass(BypassReason::OverShare);
        if node.warnings.over_share.allow(std::time::Instant::now()).is_some() {
            tracing::warn!(
                source = %self.flow.source, how_long = ?limits::OVER_SHARE_BYPASS,
                "a client holds its whole share of limits.connections; its further connections go directly for now"
            );
        }
    }

    async fn ours(self, first: Vec<u8>, name: String) {
        let node = Arc::clone(&self.shard.node);
        let deadline = Instant::now() + node.config.limits.handshake_timeout.get();
        match TlsStream::accept(self.socket.clone(), first, Arc::clone(&node.tls.config), deadline).await {
            Ok(stream) => {
                let stall = node.config.limits.send_stall.get();
                let transport = Transport::tls(stream, self.shard.pool.clone(), stall);
                let arrival = Arrival::Terminated { name: name.clone(), way: Way::Intercept };
                let (since, source) = (Instant::now(), self.flow.source);
                let mut proven = None;
                let trusts = || {
                    proven = Some(node.trust.requested(source, std::time::Instant::now()));
                    node.served.record(&name);
                };
                match connection::serve(Rc::clone(&self.shard), transport, arrival, trusts).await {
                    None => {}
                    Some(Distrust::LeftAfterHandshake) if since.elapsed() >= limits::LEFT_AT_ONCE => {}
                    Some(distrust) => self.distrusted(&name, distrust),
                }
            }
            Err(AcceptError::NotOurs { why, read }) => {
                tracing::debug!(host = name, %why, "a handshake that we cannot answer is passed on");
                self.not_ours(read, PassReason::NotTls).await;
            }
            Err(AcceptError::ClientDistrusts(distrust)) => {
                node.metrics.handshake_failure(HandshakeFailure::Untrusted);
                self.distrusted(&name, distrust);
            }
            Err(error) => {
                node.metrics.handshake_failure(failure(&error));
                tracing::debug!(source = %self.flow.source, host = name, %error, "no handshake");
            }
        }
    }

    /// From now on this source's connections go directly, so that its next attempt succeeds. An alert says it plainly; that
    /// the client just left has to be believed of a source that is not known better.
    fn distrusted(&self, host: &str, distrust: Distrust) {
        let node = &self.shard.node;
        let plain = matches!(distrust, Distrust::Alert(_));
        if !plain && !node.trust.left(self.flow.source, std::time::Instant::now()) {
            return;
        }
        let how_long = node.config.intercept.bypass_for.get();
        self.interceptor.bypass(&self.flow.source, how_long);
        node.metrics.bypass(match distrust {
            Distrust::Alert(AlertDescription::UnknownCA) => BypassReason::UnknownCa,
            Distrust::Alert(_) => BypassReason::BadCertificate,
            Distrust::GaveUp | Distrust::LeftAfterHandshake => BypassReason::GaveUp,
        });
        tracing::warn!(
            source = %self.flow.source, host, ?distrust, ?how_long,
            "a client does not trust this node's certificate authority; its connections go directly for now. \
             Run `pondhawk ca install`, or give it the variables that `pondhawk ca env` prints"
        );
    }
}

fn failure(error: &AcceptError) -> HandshakeFailure {
    match error {
        AcceptError::ClientDistrusts(_) => HandshakeFailure::Untrusted,
        AcceptError::ClientLeft | AcceptError::Io(_) => HandshakeFailure::Closed,
        AcceptError::Timeout { .. } => HandshakeFailure::Timeout,
        AcceptError::NotOurs { .. } | AcceptError::Alert(_) | AcceptError::Malformed(_) => HandshakeFailure::Protocol,
    }
}
