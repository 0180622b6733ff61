//! Of a URL nothing but its host, and of a reply's head nothing at all, is in what a session says or logs.

use pondhawk_proto::v1 as proto;
use prost::Message as _;
use proto::{PeerMessage, SchedulerMessage, peer_message, scheduler_message::Body};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use url::Url;

use super::*;
use crate::{
    swarm::{
        exchange::{Return, Said, Scope, Spread, Wish, Wrong},
        session::live::Live,
    },
    task::id::{Identity as Named, Rules, label},
};

const URL: &str = "https://someone:p4ssw0rd@cas-bridge.xethub.hf.co/xet-bridge-us/65f0c0ffee/\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef?X-Amz-Credential=AKIDEXAMPLE&\
    X-Amz-Signature=5ec2e7f00d&response-content-disposition=secret-model.bin#fragm3nt";
/// What must not be found.
const SECRETS: [&str; 9] = [
    "p4ssw0rd",
    "someone",
    "65f0c0ffee",
    "0123456789abcdef0123456789abcdef",
    "X-Amz",
    "AKIDEXAMPLE",
    "5ec2e7f00d",
    "secret-model",
    "cook1e",
];

/// A conversation without a network: what the scheduler says goes in, what the session sends comes out.
pub(super) struct Talk {
    say: mpsc::Sender<Result<SchedulerMessage, Status>>,
    sent: mpsc::Receiver<PeerMessage>,
    bytes: Vec<u8>,
    bodies: Vec<peer_message::Body>,
}

impl Talk {
    pub(super) async fn say(&self, body: Body) {
        self.say.send(Ok(SchedulerMessage { body: Some(body) })).await.unwrap();
    }

    /// Takes what is sent until something fits.
    pub(super) async fn until(&mut self, fits: impl Fn(&peer_message::Body) -> bool) {
        loop {
            let message = soon(self.sent.recv()).await.expect("the session ended");
            message.encode(&mut self.bytes).unwrap();
            let body = message.body.unwrap();
            let done = fits(&body);
            self.bodies.push(body);
            if done {
                return;
            }
        }
    }
}

pub(super) fn talk(exchange: &Arc<Exchange>, store: &Arc<Store>) -> Talk {
    let (say, incoming) = mpsc::channel(16);
    let (out, sent) = mpsc::channel(16);
    let status = Arc::new(SwarmStatus::new("scheduler:65100"));
    let mut live = Live::new((Arc::clone(exchange), 0), Arc::clone(store), status, out);
    tokio::spawn(async move { live.run(&mut ReceiverStream::new(incoming)).await });
    Talk { say, sent, bytes: Vec::new(), bodies: Vec::new() }
}

/// Has the session say everything that it can say.
async fn everything(talk: &mut Talk, exchange: &Arc<Exchange>, task: TaskId, host: &str) {
    use peer_message::Body as Sent;
    let name: bytes::Bytes = task.0.to_vec().into();
    talk.say(Body::Welcome(proto::Welcome { protocol: 1, progress_ms: 10, ping_ms: 60_000, epoch: 1 })).await;
    talk.until(|sent| matches!(sent, Sent::Inventory(inventory) if inventory.last)).await;
    let member = exchange.join(task);
    // The hash that the task's name follows from, which opens nothing.
    let hash = [&[2][..], &[0x5a; 32]].concat();
    exchange.say(Said::Want(Want { host: host.to_owned(), name: Some(hash.clone()), ..want(task, true) }));
    talk.until(|sent| matches!(sent, Sent::Want(_))).await;
    talk.say(Body::Lease(proto::Lease { id: 1, task: name.clone(), first: 2, count: 3, silence_ms: 5_000 })).await;
    told(&member, |told| told.iter().any(|told| matches!(told, Told::Lease { id: 1, .. }))).await;
    let wish = Wish { task, len: 5 * MIB, host: host.to_owned(), name: hash, pin: true };
    let followed = exchange.spread(Spread { wish, scope: Scope { count: 2, ..Scope::default() } });
    talk.until(|sent| matches!(sent, Sent::Spread(spread) if spread.pin && spread.count == 2)).await;
    talk.say(Body::Spreading(proto::Spreading { task: name.clone(), peers: 2, complete: 1, failed: 0 })).await;
    until(|| followed.borrow().filter(|now| now.complete == 1)).await;
    exchange.alive(task, 5 * MIB, 1);
    exchange.held(task, 5 * MIB, 2, Some(digest(2)));
    talk.until(|sent| matches!(sent, Sent::Progress(progress) if !progress.tasks.is_empty())).await;
    exchange.say(Said::Return { task, lease: 1, why: Return::Throttled(Some(HOUR)) });
    talk.until(|sent| matches!(sent, Sent::LeaseReturn(_))).await;
    exchange.say(Said::Blame { peer: PeerId::new("node-b").unwrap(), task, piece: 1, kind: Wrong::Piece });
    talk.until(|sent| matches!(sent, Sent::Blame(_))).await;
    let pieces = Some(proto::PieceSet { runs: vec![0, 5] });
    talk.say(Body::DigestsWanted(proto::DigestsWanted { task: name.clone(), pieces })).await;
    let reports = |sent: &Sent, piece| match sent {
        Sent::Progress(progress) => progress.tasks.iter().any(|task| task.digests.iter().any(|run| run.first == piece)),
        _ => false,
    };
    talk.until(|sent| reports(sent, 0)).await;
    let (first, second) = ("node-a".to_owned(), "node-b".to_owned());
    talk.say(Body::Dispute(proto::Dispute { task: name, piece: 1, first, second, refetch: true })).await;
    talk.until(|sent| reports(sent, 1)).await;
    talk.say(Body::Ping(proto::Ping { nonce: 5 })).await;
    talk.until(|sent| matches!(sent, Sent::Pong(_))).await;
    drop(member);
    talk.until(|sent| matches!(sent, Sent::Unwant(_))).await;
    exchange.wrong(task);
    exchange.gone(task);
    let wrong = |task: &proto::TaskProgress| task.gone && task.wrong;
    talk.until(|sent| matches!(sent, Sent::Progress(progress) if progress.tasks.iter().any(wrong))).await;
}

#[tokio::test]
async fn a_session_says_the_host_of_a_signed_url_and_nothing_else_of_it() {
    let url = Url::parse(URL).unwrap();
    let task = Named::of(&url, &Rules::default()).task_id(None).unwrap();
    let host = url.host_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let headers = vec![("Set-Cookie".to_owned(), b"session=cook1e".to_vec())];
    let stored = TaskMeta {
        about: About { label: label(&url), headers, etag: Some("\"5ec2e7f00d\"".to_owned()) },
        ..meta(task)
    };
    soon(tokio::task::spawn_blocking(move || fill_as(&path, stored, 2))).await.unwrap();

    let (log, _guard) = Log::start(tracing::Level::TRACE);
    let (exchange, store) = (Arc::new(Exchange::default()), open_store(dir.path()));
    let mut talk = talk(&exchange, &store);
    everything(&mut talk, &exchange, task, host).await;

    let finds = |text: &[u8], word: &str| text.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(finds(&talk.bytes, host) && finds(&talk.bytes, "node-b"), "the search itself works");
    assert!(log.text().contains("two peers disagree"), "so does the log");
    for secret in SECRETS {
        assert!(!finds(&talk.bytes, secret), "{secret} is in a message");
        assert!(!log.text().contains(secret), "{secret} is in the log:\n{}", log.text());
    }
}
