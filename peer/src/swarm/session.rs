//! The session with the scheduler: connects, speaks, and comes back. Runs on the control thread.

pub(in crate::swarm) mod channel;
mod convert;
mod live;
pub(in crate::swarm) mod status;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use pondhawk_proto::v1 as proto;
use proto::{peer_message::Body, scheduler_client::SchedulerClient};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

pub use channel::ChannelError;
pub use status::{Snapshot, SwarmStatus};

use super::{
    exchange::Exchange,
    identity::{self, IdentityOptions, Token, jitter},
};
use crate::{
    store::Store,
    tls::Authority,
    wire::{Identity, PeerId},
};
use channel::{Link, Trust};
use live::{End, Live};

/// First and longest rest before the next try.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// First and longest rest after another node with the same name and key took this node's session.
const REPLACED_BACKOFF: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// For the call to be taken.
const OPEN: Duration = Duration::from_secs(10);
/// Messages that wait to be written.
const QUEUE: usize = 64;

/// What a session needs to know of its node.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// `host:port` of each scheduler, in the order of the exchange's seats.
    pub schedulers: Vec<String>,
    /// This node's name.
    pub name: PeerId,
    /// Its first QUIC endpoint; an unspecified address stands for the one the session comes from.
    pub quic_address: SocketAddr,
    /// Endpoints at consecutive ports.
    pub quic_endpoints: u16,
    /// Where the node stands, coarse to fine.
    pub labels: Vec<(String, String)>,
    /// Whether it is there to hold and serve.
    pub seed: bool,
    /// DATA_DIR.
    pub data_dir: PathBuf,
    /// How to join.
    pub token: Option<Token>,
    /// The node's interception CA, for the cluster's root to sign; None: it is not.
    pub authority: Option<Arc<Authority>>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum SessionError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the scheduler at {address} refused or ended the session: {why}")]
    Refused { address: String, why: String },
    #[error(
        "another node took this node's session with the scheduler at {address} ({why}): if this goes on, two machines have one name and key; remove `swarm` from the data directory of one, give it a name of its own (swarm.name), and let it join with a token"
    )]
    Replaced { address: String, why: String },
    #[error("the connection to the scheduler at {address} was lost: {why}")]
    Lost { address: String, why: String },
    #[error("the scheduler at {address} broke the protocol: {what}")]
    Nonsense { address: String, what: &'static str },
}

/// Keeps a certificate and a session with each scheduler, forever: whatever fails is shown in `status`, one for each, and
/// tried again. `identity` is filled for whoever else needs it. At the end of `stop` the sessions are closed.
pub async fn run(
    options: SessionOptions,
    exchange: Arc<Exchange>,
    store: Arc<Store>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    status: Vec<Arc<SwarmStatus>>,
    stop: impl Future<Output = ()>,
) {
    hear_of(&store, &exchange);
    let who = IdentityOptions {
        data_dir: options.data_dir.clone(),
        name: options.name.clone(),
        schedulers: options.schedulers.clone(),
        token: options.token.clone(),
        authority: options.authority.clone(),
    };
    let mut sessions = JoinSet::new();
    for (seat, status) in status.iter().enumerate() {
        let (options, exchange) = (options.clone(), Arc::clone(&exchange));
        let site = Site { options, exchange, seat, store: Arc::clone(&store), status: Arc::clone(status) };
        let certified = identity.subscribe();
        sessions.spawn(async move { site.sessions(certified).await });
    }
    tokio::select! {
        () = identity::keep(who, identity, status) => {}
        () = exchange.keep_homes() => {}
        () = stop => {}
    }
    sessions.shutdown().await;
    (0..options.schedulers.len()).for_each(|seat| exchange.lost(seat));
}

/// What the store does by itself is told as well.
fn hear_of(store: &Store, exchange: &Arc<Exchange>) {
    let (removed, found) = (Arc::clone(exchange), Arc::clone(exchange));
    let told = store.on_removed(Box::new(move |task| removed.gone(task)))
        && store.on_found(Box::new(move |task, len, piece| found.held(task, len, piece, None)));
    if !told {
        tracing::error!("somebody else hears of the store's changes: the swarm does not");
    }
}

/// What all sessions with one scheduler share.
struct Site {
    options: SessionOptions,
    exchange: Arc<Exchange>,
    seat: usize,
    store: Arc<Store>,
    status: Arc<SwarmStatus>,
}

impl Site {
    fn address(&self) -> &String {
        &self.options.schedulers[self.seat]
    }

    /// One session after the other, until nobody gives identities any more.
    async fn sessions(&self, mut identities: watch::Receiver<Option<Arc<Identity>>>) {
        let mut rest = BACKOFF.0;
        let mut replaced_rest = REPLACED_BACKOFF.0;
        loop {
            let Ok(identity) = identities.wait_for(Option::is_some).await.map(|identity| identity.clone()) else {
                return;
            };
            let Some(identity) = identity else { continue };
            let before = self.status.snapshot().sessions;
            let ended = tokio::select! {
                error = self.session(&identity) => Some(error),
                // A new certificate: on with that one.
                _ = identities.changed() => None,
            };
            self.exchange.lost(self.seat);
            let replaced = matches!(ended, Some(SessionError::Replaced { .. }));
            let stood = self.status.snapshot().sessions > before;
            let why = ended.map_or_else(|| "the certificate was replaced".to_owned(), |error| error.to_string());
            if self.status.down(why.clone()) {
                tracing::warn!(scheduler = self.address(), why, "no session with the scheduler");
            }
            if replaced {
                sleep(jitter(replaced_rest)).await;
                replaced_rest = (replaced_rest * 2).min(REPLACED_BACKOFF.1);
                continue;
            }
            rest = if stood { BACKOFF.0 } else { rest };
            sleep(jitter(rest)).await;
            rest = (rest * 2).min(BACKOFF.1);
        }
    }

    /// One session; gives what ended it.
    async fn session(&self, identity: &Identity) -> SessionError {
        match self.connect(identity).await {
            Ok((link, mut live, mut incoming)) => {
                let end = live.run(&mut incoming).await;
                self.explain(end, &link)
            }
            Err(error) => error,
        }
    }

    async fn connect(
        &self,
        identity: &Identity,
    ) -> Result<(Link, Live, tonic::Streaming<proto::SchedulerMessage>), SessionError> {
        let address = self.address();
        let link = channel::connect(address, &Trust::Root(identity.root.clone()), Some(identity)).await?;
        let (out, queue) = mpsc::channel(QUEUE);
        // Just made, so there is room.
        drop(out.try_send(self.hello()));
        let mut client = SchedulerClient::new(link.channel.clone())
            .max_decoding_message_size(pondhawk_proto::MAX_MESSAGE)
            .max_encoding_message_size(pondhawk_proto::MAX_MESSAGE);
        let opening = timeout(OPEN, client.session(ReceiverStream::new(queue))).await;
        let opened = opening.map_err(|_| ChannelError::Silent { address: address.clone() })?;
        let incoming = opened.map_err(|refusal| self.explain(End::Status(refusal), &link))?.into_inner();
        let live =
            Live::new((Arc::clone(&self.exchange), self.seat), Arc::clone(&self.store), Arc::clone(&self.status), out);
        Ok((link, live, incoming))
    }

    fn hello(&self) -> proto::PeerMessage {
        let options = &self.options;
        let label = |(key, value): &(String, String)| proto::Label { key: key.clone(), value: value.clone() };
        convert::message(Body::Hello(proto::Hello {
            protocol_min: pondhawk_proto::PROTOCOL_MIN,
            protocol_max: pondhawk_proto::PROTOCOL_MAX,
            name: options.name.to_string(),
            quic_address: options.quic_address.to_string(),
            labels: options.labels.iter().map(label).collect(),
            seed: options.seed,
            quic_endpoints: options.quic_endpoints.into(),
        }))
    }

    /// TLS knows better than gRPC why a connection broke.
    fn explain(&self, end: End, link: &Link) -> SessionError {
        if let Some(fault) = link.fault() {
            return fault.into();
        }
        let address = self.address().clone();
        match end {
            End::Status(status) if is_transport(&status) => SessionError::Lost { address, why: root_cause(&status) },
            End::Status(status) if status.code() == tonic::Code::Aborted => {
                SessionError::Replaced { address, why: status.message().to_owned() }
            }
            End::Status(status) => SessionError::Refused { address, why: status.message().to_owned() },
            End::Closed => SessionError::Lost { address, why: "the scheduler closed it".to_owned() },
            End::Silent(silence) => SessionError::Lost { address, why: format!("nothing was heard for {silence:?}") },
            End::Stuck => SessionError::Lost { address, why: "the scheduler takes no messages".to_owned() },
            End::Nonsense(what) => SessionError::Nonsense { address, what },
        }
    }
}

/// Whether a status was made here of a broken connection rather than by the scheduler.
fn is_transport(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn root_cause(status: &tonic::Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
