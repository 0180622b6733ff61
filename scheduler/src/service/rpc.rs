//! The two calls of scheduler.proto.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use pondhawk_proto::v1 as proto;
use proto::scheduler_message::Body;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Options;
use super::actor::{Input, Session};
use super::counts::SessionCounts;
use super::hear::{self, Heard, Inventory};
use super::tell::{denied, message};
use super::tls::{Certified, Remote, unix_now};
use super::waits::Traced;
use crate::authority::{Authority, AuthorityError, Signed, is_peer_name, request_key};
use crate::registry::{Admission, Denial, KeyDigest, PeerRegistry, RegistryError};
use crate::trust::TrustRoot;

/// For the first message of a session.
const HELLO: Duration = Duration::from_secs(10);
/// For a peer to read what waits for it, and for the cluster to handle its last message, before the next one is heard.
const UNHEARD: Duration = Duration::from_secs(30);
/// Pings without any answer that end a session.
const SILENT_PINGS: u32 = 3;

/// What both calls need.
pub(super) struct Rpc {
    pub(super) authority: Arc<Authority>,
    pub(super) trust: Arc<TrustRoot>,
    pub(super) registry: Arc<PeerRegistry>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) options: Options,
    pub(super) epoch: u64,
    pub(super) counts: Arc<SessionCounts>,
}

#[tonic::async_trait]
impl proto::scheduler_server::Scheduler for Rpc {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinResponse>, Status> {
        let remote = remote(&request)?;
        let request = request.into_inner();
        let admitted = self.admit(&request, &remote).await;
        self.counts.join(admitted.is_ok());
        let signed = admitted.inspect_err(|refusal| {
            // Of the name only what fits: it is not checked yet.
            let name: String = request.name.chars().take(63).collect();
            tracing::warn!(peer = ?name, address = %remote.address, why = refusal.message(), "join refused");
        })?;
        tracing::info!(peer = request.name, address = %remote.address, renewal = request.token.is_empty(), "joined");
        let (intercept_chain, intercept_refused) = self.cross_sign(&request);
        Ok(Response::new(proto::JoinResponse {
            chain: chain(&signed),
            not_after_unix: signed.not_after,
            protocol: pondhawk_proto::PROTOCOL_MAX.min(request.protocol_max),
            intercept_chain,
            intercept_refused,
        }))
    }

    type SessionStream = Outgoing;

    async fn session(&self, request: Request<Streaming<proto::PeerMessage>>) -> Result<Response<Outgoing>, Status> {
        let remote = remote(&request)?;
        let mut incoming = request.into_inner();
        let opening = self.open_session(&remote, &mut incoming).await;
        self.counts.session(opening.is_ok());
        opening
            .map(|(opened, outgoing)| {
                tokio::spawn(opened.run(incoming));
                Response::new(outgoing)
            })
            .inspect_err(|refusal| {
                let name = remote.certificate.as_ref().map(|certificate| &*certificate.name);
                tracing::warn!(peer = name, address = %remote.address, why = refusal.message(), "session refused");
            })
    }
}

impl Rpc {
    /// A certificate for a peer that has a token, or a certificate already, and whose name no other key owns.
    async fn admit(&self, request: &proto::JoinRequest, remote: &Remote) -> Result<Signed, Status> {
        common_version(request.protocol_min, request.protocol_max)?;
        if !is_peer_name(&request.name) {
            return Err(Status::invalid_argument("JoinRequest.name: 1 to 63 of a-z, 0-9, '-' and '.'"));
        }
        let token = match &remote.certificate {
            _ if !request.token.is_empty() => {
                let granted = self.authority.token_grant(&request.token, unix_now());
                Some(granted.map_err(|error| Status::unauthenticated(error.to_string()))?)
            }
            Some(certificate) => {
                must_be(certificate, &request.name)?;
                keeps_key(certificate, &request.csr)?;
                None
            }
            None => return Err(Status::unauthenticated("neither a join token nor a certificate of this cluster")),
        };
        // Signed first: that checks that the peer has the key. The certificate leaves only after the name is recorded.
        let signed = self.sign(&request.name, &request.csr)?;
        let key = request_key(&request.csr).map(KeyDigest);
        let key = key.ok_or_else(|| Status::invalid_argument(AuthorityError::Request.to_string()))?;
        let admission = Admission { name: request.name.clone(), key, not_after: signed.not_after, token };
        self.registry.admit(admission).await.map_err(|error| refusal(&error))?;
        Ok(signed)
    }

    /// The interception CA of a peer that was admitted, as the trust root signs it, or why it does not.
    fn cross_sign(&self, request: &proto::JoinRequest) -> (Vec<Bytes>, String) {
        if request.intercept_csr.is_empty() {
            return Default::default();
        }
        match self.trust.cross_sign(&request.intercept_csr, &request.intercept_suffixes, OffsetDateTime::now_utc()) {
            Ok(chain) => (chain.iter().map(|der| Bytes::copy_from_slice(der)).collect(), String::new()),
            Err(error) => {
                tracing::warn!(peer = request.name, %error, "the peer's interception CA was not signed");
                (Vec::new(), error.to_string())
            }
        }
    }

    fn sign(&self, name: &str, csr: &[u8]) -> Result<Signed, Status> {
        self.authority.sign(name, csr, OffsetDateTime::now_utc()).map_err(|error| match error {
            AuthorityError::Request | AuthorityError::Name(_) => Status::invalid_argument(error.to_string()),
            error => {
                tracing::error!(%error, "cannot sign a certificate");
                Status::internal("the scheduler cannot sign: see its log")
            }
        })
    }

    /// Lets a certificate's owner have a session. One that was signed before names were recorded takes its name here; where
    /// that cannot be written, the certificate is enough.
    async fn confirm(&self, certificate: &Certified) -> Result<(), Status> {
        let Certified { name, key, not_after } = certificate;
        let admission = Admission { name: name.to_string(), key: *key, not_after: *not_after, token: None };
        match self.registry.admit(admission).await {
            Err(RegistryError::Unavailable(_)) => {}
            admitted => return admitted.map_err(|error| refusal(&error)),
        }
        self.registry.check(name, key).map_err(|refused| refusal(&refused.into()))
    }

    async fn open_session(
        &self,
        remote: &Remote,
        incoming: &mut Streaming<proto::PeerMessage>,
    ) -> Result<(Open, Outgoing), Status> {
        let Some(certificate) = remote.certificate.clone() else {
            return Err(Status::unauthenticated("a session needs a certificate of this cluster: join first"));
        };
        let first = timeout(HELLO, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded(format!("no Hello within {HELLO:?}")))??;
        let Some(proto::peer_message::Body::Hello(hello)) = first.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("the first message of a session is Hello"));
        };
        let protocol = common_version(hello.protocol_min, hello.protocol_max)?;
        must_be(&certificate, &hello.name)?;
        self.confirm(&certificate).await?;
        let info =
            hear::hello(hello, remote.address.ip()).map_err(|what| Status::invalid_argument(what.to_string()))?;
        let (session, queue, over) = Session::new(remote.local, Arc::clone(&self.counts));
        session.send(message(Body::Welcome(proto::Welcome {
            protocol,
            progress_ms: millis(self.options.progress),
            ping_ms: millis(self.options.ping),
            epoch: self.epoch,
        })));
        tracing::info!(peer = %info.name, quic = %info.address, seed = info.seed, "session opened");
        let withdrawals = self.registry.withdrawals();
        let opened = Open {
            session: Arc::clone(&session),
            certificate,
            registry: Arc::clone(&self.registry),
            denials: Arc::new([]),
            withdrawals,
            inputs: self.inputs.clone(),
            authority: Arc::clone(&self.authority),
            ping: self.options.ping,
            traces: self.options.tracer.is_on(),
            inventory: Inventory::default(),
        };
        let origin = remote.address.ip();
        let sender = Arc::clone(&session);
        self.inputs.send(Input::Connect { info, origin, session }).await.map_err(|_| stops())?;
        Ok((opened, Outgoing { session: sender, queue, over: Some(over) }))
    }
}

/// A session that stands. Whatever becomes of it, the cluster hears of its end.
struct Open {
    session: Arc<Session>,
    certificate: Certified,
    registry: Arc<PeerRegistry>,
    /// As told last.
    denials: Arc<[Denial]>,
    withdrawals: watch::Receiver<Arc<[Denial]>>,
    inputs: mpsc::Sender<Input>,
    authority: Arc<Authority>,
    ping: Duration,
    traces: bool,
    inventory: Inventory,
}

impl Drop for Open {
    fn drop(&mut self) {
        let gone = Input::Gone { session: Arc::clone(&self.session) };
        if let Err(mpsc::error::TrySendError::Full(gone)) = self.inputs.try_send(gone)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let inputs = self.inputs.clone();
            // It fails only where the cluster is gone as well.
            runtime.spawn(async move { drop(inputs.send(gone).await) });
        }
    }
}

impl Open {
    async fn run(mut self, mut incoming: Streaming<proto::PeerMessage>) {
        let session = Arc::clone(&self.session);
        let why = tokio::select! {
            () = session.ended() => None,
            why = self.listen(&mut incoming) => why,
        };
        let name = &self.certificate.name;
        match why {
            Some(why) => {
                tracing::warn!(peer = %name, why = why.message(), "session ended");
                session.end(why);
            }
            None => tracing::info!(peer = %name, "session closed"),
        }
        session.end(Status::ok(""));
    }

    /// Takes messages until the peer closes, or something is wrong with it.
    async fn listen(&mut self, incoming: &mut Streaming<proto::PeerMessage>) -> Option<Status> {
        let mut pings = interval(self.ping);
        let mut nonce = 0;
        let silence = self.ping * SILENT_PINGS;
        let mut heard = Instant::now();
        self.withdrawals.mark_changed();
        loop {
            let received = tokio::select! {
                received = incoming.message() => received,
                Ok(()) = self.withdrawals.changed() => match self.look_at_denials() {
                    Ok(()) => continue,
                    Err(why) => return Some(why),
                },
                _ = pings.tick() => {
                    // Here and not by a timer of its own: a certificate expires by the wall clock, which can be set.
                    if self.certificate.not_after <= unix_now() {
                        return Some(Status::unauthenticated("the session's certificate has expired"));
                    }
                    nonce += 1;
                    self.session.send(message(Body::Ping(proto::Ping { nonce })));
                    continue;
                }
                () = sleep_until(heard + silence) => {
                    return Some(Status::deadline_exceeded(format!("nothing heard for {silence:?}")));
                }
            };
            let received = match received {
                Ok(Some(received)) => received,
                Ok(None) => return None,
                Err(status) => return lost(&status),
            };
            if let Err(why) = self.take(received).await {
                return Some(why);
            }
            // Not before: a busy cluster may have made it wait.
            heard = Instant::now();
        }
    }

    /// Ends the session of a peer that lost its place, and tells the others who is denied.
    fn look_at_denials(&mut self) -> Result<(), Status> {
        let denials = Arc::clone(&self.withdrawals.borrow_and_update());
        let Certified { name, key, .. } = &self.certificate;
        self.registry.check(name, key).map_err(|refused| refusal(&refused.into()))?;
        if denials[..] != self.denials[..] {
            self.session.send(message(Body::Denied(denied(&denials))));
            self.denials = denials;
        }
        Ok(())
    }

    async fn take(&mut self, received: proto::PeerMessage) -> Result<(), Status> {
        let traced = hear::traced(&received).filter(|_| self.traces);
        let heard = hear::message(received, &mut self.inventory);
        match heard.map_err(|what| Status::invalid_argument(what.to_string()))? {
            Heard::Nothing => Ok(()),
            Heard::Events(events) => {
                let name = &self.certificate.name;
                let traced = traced.map(|(task, context)| Traced { task, context, name: Arc::from(&**name) });
                let slot = timeout(UNHEARD, self.session.next_slot()).await.map_err(|_| {
                    Status::resource_exhausted(format!("too slow: the peer has read nothing for {UNHEARD:?}"))
                })?;
                let input = Input::Events { session: Arc::clone(&self.session), events, traced, slot: Some(slot) };
                self.inputs.send(input).await.map_err(|_| stops())
            }
            Heard::Renew(csr) => {
                keeps_key(&self.certificate, &csr)?;
                let signed = self.authority.sign(&self.certificate.name, &csr, OffsetDateTime::now_utc());
                let signed = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
                let renewed = proto::Renewed { chain: chain(&signed), not_after_unix: signed.not_after };
                self.session.send(message(Body::Renewed(renewed)));
                Ok(())
            }
        }
    }
}

/// Messages to a peer: those queued, or the reason of the end before any that is left.
pub(super) struct Outgoing {
    session: Arc<Session>,
    queue: mpsc::Receiver<proto::SchedulerMessage>,
    over: Option<oneshot::Receiver<Status>>,
}

impl Stream for Outgoing {
    type Item = Result<proto::SchedulerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if let Poll::Ready(why) = Pin::new(over).poll(cx) {
            self.over = None;
            return Poll::Ready(why.ok().filter(|why| why.code() != Code::Ok).map(Err));
        }
        let message = self.queue.poll_recv(cx);
        if let Poll::Ready(Some(message)) = &message {
            self.session.sent(message);
        }
        message.map(|message| message.map(Ok))
    }
}

fn stops() -> Status {
    Status::unavailable("the scheduler stops")
}

fn remote<T>(request: &Request<T>) -> Result<Remote, Status> {
    request.extensions().get::<Remote>().cloned().ok_or_else(|| Status::internal("the connection has no address"))
}

fn must_be(certificate: &Certified, name: &str) -> Result<(), Status> {
    if *certificate.name == *name {
        return Ok(());
    }
    let shown: String = name.chars().take(63).collect();
    let own = &certificate.name;
    Err(Status::permission_denied(format!("the certificate is of peer {own:?}, not of {shown:?}")))
}

/// A renewal is for the key that the certificate is of: who has that key for a moment cannot put another in its place.
fn keeps_key(certificate: &Certified, csr: &[u8]) -> Result<(), Status> {
    match request_key(csr) {
        Some(key) if KeyDigest(key) == certificate.key => Ok(()),
        Some(_) => Err(Status::permission_denied("a certificate is renewed for the key that it is of, and no other")),
        None => Err(Status::invalid_argument(AuthorityError::Request.to_string())),
    }
}

fn refusal(error: &RegistryError) -> Status {
    match error {
        RegistryError::Refused(refused) => Status::permission_denied(refused.to_string()),
        RegistryError::Unavailable(_) => Status::unavailable(error.to_string()),
    }
}

fn common_version(min: u32, max: u32) -> Result<u32, Status> {
    pondhawk_proto::common_version(min, max).ok_or_else(|| {
        let (own_min, own_max) = (pondhawk_proto::PROTOCOL_MIN, pondhawk_proto::PROTOCOL_MAX);
        Status::failed_precondition(format!(
            "the peer speaks protocol {min} to {max}, this scheduler {own_min} to {own_max}: update the older one"
        ))
    })
}

/// What an error of the stream means: a peer that went away is no news.
fn lost(status: &Status) -> Option<Status> {
    match status.code() {
        Code::OutOfRange | Code::InvalidArgument | Code::Internal if status.message().contains("message length") => {
            Some(Status::invalid_argument(format!("a message of more than {} bytes", pondhawk_proto::MAX_MESSAGE)))
        }
        Code::Internal => Some(Status::invalid_argument(format!("no message: {}", status.message()))),
        _ => None,
    }
}

fn chain(signed: &Signed) -> Vec<Bytes> {
    signed.chain.iter().map(|certificate| certificate.to_vec().into()).collect()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
