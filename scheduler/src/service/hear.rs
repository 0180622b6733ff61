//! From messages of peers to events; whatever breaks a bound of scheduler.proto is refused with its name [no I/O].

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use pondhawk_proto::v1 as proto;
use proto::blame::Kind;
use proto::lease_return::Reason;
use proto::peer_message::Body;

use crate::authority::is_peer_name;
use crate::cluster::{
    ContentName, DigestRun, Event, Load, PeerInfo, Progress, ReturnReason, Scope, TaskName, Totals, pieces_of,
};
use crate::trace::Context;

const MAX_PIECE: u32 = 4_194_304;
const MAX_LABELS: usize = 16;
const MAX_LABEL: usize = 63;
const MAX_HOST: usize = 253;
const MAX_WANTED_RUNS: usize = 64;
const MAX_CONTENT_NAME: usize = 64;
const MAX_ENDPOINTS: u32 = 1024;

/// What is wrong with a message.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

/// How far a session has come with its inventory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Inventory {
    /// None yet: nothing else may come.
    #[default]
    Expected,
    /// More of it follows.
    Open,
    /// Whole.
    Done,
}

/// What is to be done for a message.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Give these to the cluster.
    Events(Vec<Event>),
    /// Sign this request.
    Renew(bytes::Bytes),
    /// Nothing: it shows that the peer is there, or is of a later protocol.
    Nothing,
}

/// Takes Hello apart; `remote` is where the session comes from.
pub(crate) fn hello(hello: proto::Hello, remote: IpAddr) -> Result<PeerInfo, Invalid> {
    if !is_peer_name(&hello.name) {
        return Err(invalid("Hello.name: 1 to 63 of a-z, 0-9, '-' and '.'"));
    }
    let mut address: SocketAddr = hello.quic_address.parse().map_err(|_| invalid("Hello.quic_address: no ip:port"))?;
    if address.port() == 0 {
        return Err(invalid("Hello.quic_address: port 0 cannot be dialled"));
    }
    // A node can say at which port it is reached, and which of its own addresses others use. It must not lead them to a third
    // party, which they would all dial, or back to themselves: see `is_advertisable`.
    if !is_advertisable(address.ip().to_canonical(), remote.to_canonical()) {
        address.set_ip(remote.to_canonical());
    }
    if hello.quic_endpoints > MAX_ENDPOINTS || hello.quic_endpoints.max(1) - 1 > u32::from(u16::MAX - address.port()) {
        return Err(invalid("Hello.quic_endpoints: at most 1024, and no port above 65535"));
    }
    let labels = labels("Hello.labels", hello.labels)?;
    let endpoints = u16::try_from(hello.quic_endpoints.max(1)).unwrap_or(1);
    Ok(PeerInfo { name: hello.name.into(), address, endpoints, labels, seed: hello.seed })
}

/// Whether others are linked with `advertised` instead of with the address that a session comes from.
///
/// A node with a network of its own for bulk data advertises an address there, which is private like the one that it comes
/// from, or public like it. Unspecified, loopback, link-local and multicast addresses name no host to others.
/// A session over loopback is one of the scheduler's own machine, which others may know by any of its addresses.
fn is_advertisable(advertised: IpAddr, remote: IpAddr) -> bool {
    if advertised == remote {
        return true;
    }
    match (scope_of(advertised), scope_of(remote)) {
        (HostScope::Local, _) => advertised.is_loopback() && remote.is_loopback(),
        (_, HostScope::Local) => remote.is_loopback(),
        (HostScope::Private, HostScope::Private) => true,
        // A public address that is not the session's own is a stranger's for all that the scheduler knows.
        (HostScope::Private, HostScope::Public) | (HostScope::Public, _) => false,
    }
}

/// How far an address reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HostScope {
    /// This host, this link, or no host at all.
    Local,
    /// A private network (RFC 1918, RFC 4193, RFC 6598).
    Private,
    Public,
}

fn scope_of(address: IpAddr) -> HostScope {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            if a == 0 || v4.is_loopback() || v4.is_link_local() || a >= 224 {
                HostScope::Local
            } else if v4.is_private() || a == 100 && (64..128).contains(&b) || a == 198 && (18..20).contains(&b) {
                HostScope::Private
            } else {
                HostScope::Public
            }
        }
        IpAddr::V6(v6)
            if v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local() =>
        {
            HostScope::Local
        }
        IpAddr::V6(v6) if v6.is_unique_local() => HostScope::Private,
        IpAddr::V6(_) => HostScope::Public,
    }
}

fn labels(field: &str, labels: Vec<proto::Label>) -> Result<Vec<(String, String)>, Invalid> {
    if labels.len() > MAX_LABELS {
        return Err(Invalid(format!("{field}: more than 16")));
    }
    let fits = |text: &str| !text.is_empty() && text.len() <= MAX_LABEL;
    if !labels.iter().all(|label| fits(&label.key) && fits(&label.value)) {
        return Err(Invalid(format!("{field}: keys and values have 1 to 63 bytes")));
    }
    Ok(labels.into_iter().map(|label| (label.key, label.value)).collect())
}

/// The wish in a message that is a part of a trace. Of a wish that is refused nothing is recorded, as its session ends.
pub(crate) fn traced(message: &proto::PeerMessage) -> Option<(TaskName, Context)> {
    let Some(Body::Want(want)) = &message.body else { return None };
    Some(((*want.task).try_into().ok()?, Context::from_bytes(&want.trace)?))
}

/// Takes any later message apart.
pub(crate) fn message(message: proto::PeerMessage, inventory: &mut Inventory) -> Result<Heard, Invalid> {
    let Some(body) = message.body else { return Ok(Heard::Nothing) };
    if *inventory != Inventory::Done && !matches!(body, Body::Inventory(_) | Body::Pong(_)) {
        return Err(invalid("an Inventory is expected after Hello, before anything else"));
    }
    let events = match body {
        Body::Hello(_) => return Err(invalid("a second Hello")),
        Body::Pong(_) => return Ok(Heard::Nothing),
        Body::Renew(renew) => return Ok(Heard::Renew(renew.csr)),
        Body::Inventory(message) => holdings(message, inventory)?,
        Body::Want(message) => vec![want(message)?],
        Body::Unwant(message) => vec![Event::Unwant { task: task("Unwant.task", &message.task)? }],
        Body::Spread(message) => vec![spread(message)?],
        Body::Progress(message) => progress(message)?,
        Body::LeaseReturn(message) => vec![lease_return(&message)],
        Body::Blame(message) => vec![blame(message)?],
    };
    Ok(Heard::Events(events))
}

fn holdings(message: proto::Inventory, state: &mut Inventory) -> Result<Vec<Event>, Invalid> {
    if *state == Inventory::Done {
        return Err(invalid("a second Inventory: what changes after the first one is told by Progress"));
    }
    let mut events = Vec::with_capacity(message.holdings.len() + 2);
    if *state != Inventory::Open {
        events.push(Event::InventoryStart);
    }
    for holding in message.holdings {
        events.push(Event::Held {
            task: task("Holding.task", &holding.task)?,
            len: len("Holding.len", holding.len)?,
            complete: holding.complete,
            have: pieces("Holding.have", holding.have)?,
        });
    }
    *state = if message.last { Inventory::Done } else { Inventory::Open };
    if message.last {
        events.push(Event::InventoryEnd);
    }
    Ok(events)
}

fn spread(message: proto::Spread) -> Result<Event, Invalid> {
    let host = host("Spread.origin_host", message.origin_host)?;
    let labels = labels("Spread.labels", message.labels)?;
    let count = usize::try_from(message.count).unwrap_or(usize::MAX);
    Ok(Event::Spread {
        task: task("Spread.task", &message.task)?,
        len: len("Spread.len", message.len)?,
        host,
        name: content_name("Spread.name", &message.name)?,
        scope: Scope { seeds: message.seeds, labels, count },
        pin: message.pin,
    })
}

fn host(field: &str, host: String) -> Result<String, Invalid> {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b':' | b'-' | b'[' | b']');
    match host.len() <= MAX_HOST && host.bytes().all(fits) {
        true => Ok(host),
        false => Err(Invalid(format!("{field}: a bare host name, at most 253 bytes of [a-z0-9.:-]"))),
    }
}

fn content_name(field: &str, name: &[u8]) -> Result<Option<ContentName>, Invalid> {
    if name.len() > MAX_CONTENT_NAME {
        return Err(Invalid(format!("{field}: more than 64 bytes")));
    }
    Ok((!name.is_empty()).then(|| name.into()))
}

fn want(message: proto::Want) -> Result<Event, Invalid> {
    let host = host("Want.origin_host", message.origin_host)?;
    if host.is_empty() && message.can_fetch {
        return Err(invalid("Want.origin_host: needed by who can fetch"));
    }
    let wanted = message.wanted.map(|set| pieces("Want.wanted", Some(set))).transpose()?;
    if wanted.as_ref().is_some_and(|wanted| wanted.len() > MAX_WANTED_RUNS) {
        return Err(invalid("Want.wanted: more than 64 runs"));
    }
    Ok(Event::Want {
        task: task("Want.task", &message.task)?,
        len: len("Want.len", message.len)?,
        host,
        can_fetch: message.can_fetch,
        connections: message.connections,
        wanted,
        name: content_name("Want.name", &message.name)?,
    })
}

fn progress(message: proto::Progress) -> Result<Vec<Event>, Invalid> {
    let tasks = message.tasks.into_iter().map(|changed| {
        Ok(Event::Progress(Progress {
            task: task("TaskProgress.task", &changed.task)?,
            len: len("TaskProgress.len", changed.len)?,
            added: pieces("TaskProgress.added", changed.added)?,
            lost: pieces("TaskProgress.lost", changed.lost)?,
            complete: changed.complete,
            gone: changed.gone,
            wrong: changed.wrong,
            digests: changed.digests.iter().map(digests).collect::<Result<_, _>>()?,
            alive: changed.alive,
            requests: changed.requests,
        }))
    });
    let totals = message.totals.map(totals);
    let load = Load { uploads: message.uploads, upload_rate: message.upload_rate, totals };
    tasks.chain([Ok(Event::Load(load))]).collect()
}

fn totals(message: proto::Totals) -> (Duration, Totals) {
    let totals = Totals {
        from_origin: message.from_origin_bytes,
        from_peers: message.from_peers_bytes,
        to_clients: message.to_clients_bytes,
        to_peers: message.to_peers_bytes,
        requests: message.requests,
        hits: message.hits,
        joined: message.joined,
        misses: message.misses,
    };
    (Duration::from_millis(message.uptime_ms), totals)
}

fn lease_return(message: &proto::LeaseReturn) -> Event {
    let reason = match message.reason() {
        Reason::Expired => ReturnReason::Expired,
        Reason::Refused => ReturnReason::Refused,
        Reason::Throttled => ReturnReason::Throttled,
        Reason::Unneeded => ReturnReason::Unneeded,
        Reason::Failed | Reason::Unspecified => ReturnReason::Failed,
    };
    let retry_after = Duration::from_millis(message.retry_after_ms.into());
    Event::LeaseReturn { lease: message.lease, reason, retry_after }
}

fn blame(message: proto::Blame) -> Result<Event, Invalid> {
    if !is_peer_name(&message.peer) {
        return Err(invalid("Blame.peer: no peer's name"));
    }
    if message.piece >= MAX_PIECE {
        return Err(invalid("Blame.piece: past 4194303"));
    }
    let silent = matches!(message.kind(), Kind::Silent | Kind::Missing);
    Ok(Event::Blame { task: task("Blame.task", &message.task)?, peer: message.peer, piece: message.piece, silent })
}

fn digests(run: &proto::DigestRun) -> Result<DigestRun, Invalid> {
    let (digests, rest) = run.digests.as_chunks::<32>();
    let end = u32::try_from(digests.len()).ok().and_then(|count| run.first.checked_add(count));
    if !rest.is_empty() || end.is_none_or(|end| end > MAX_PIECE) {
        return Err(invalid("DigestRun: 32 bytes a piece, and no piece past 4194303"));
    }
    Ok(DigestRun { first: run.first, digests: digests.to_vec() })
}

fn task(field: &str, bytes: &[u8]) -> Result<TaskName, Invalid> {
    bytes.try_into().map_err(|_| invalid(&format!("{field}: {} bytes instead of 32", bytes.len())))
}

fn len(field: &str, len: u64) -> Result<u64, Invalid> {
    pieces_of(len).map(|_| len).ok_or_else(|| invalid(&format!("{field}: more than 64 TiB")))
}

fn pieces(field: &str, set: Option<proto::PieceSet>) -> Result<Vec<Range<u32>>, Invalid> {
    let set = set.unwrap_or_default();
    let (pairs, rest) = set.runs.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(invalid(&format!("{field}: runs are pairs of first piece and count")));
    }
    let mut at = 0;
    let mut runs = Vec::with_capacity(pairs.len());
    for &[first, count] in pairs {
        let end = first.checked_add(count).filter(|&end| end <= MAX_PIECE);
        let Some(end) = end.filter(|&end| end > first && first >= at) else {
            return Err(invalid(&format!("{field}: runs are disjoint, not empty, in rising order and below 4194304")));
        };
        at = end;
        runs.push(first..end);
    }
    Ok(runs)
}

fn invalid(what: &str) -> Invalid {
    Invalid(what.to_owned())
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "sets of pieces are lists of runs, also of one")]
mod tests {
    use super::*;

    fn good_hello() -> proto::Hello {
        let label = |key: &str, value: &str| proto::Label { key: key.to_owned(), value: value.to_owned() };
        proto::Hello {
            protocol_min: 1,
            protocol_max: 1,
            name: "node-1".to_owned(),
            quic_address: "0.0.0.0:65010".to_owned(),
            labels: vec![label("zone", "a")],
            seed: true,
            quic_endpoints: 0,
        }
    }

    fn refused(body: Body) -> String {
        let wrong = message(proto::PeerMessage { body: Some(body) }, &mut Inventory::Done);
        wrong.unwrap_err().to_string()
    }

    fn events(body: Body, inventory: &mut Inventory) -> Vec<Event> {
        match message(proto::PeerMessage { body: Some(body) }, inventory) {
            Ok(Heard::Events(events)) => events,
            other => panic!("{other:?}"),
        }
    }

    fn good_want() -> proto::Want {
        proto::Want {
            task: vec![1; 32].into(),
            len: 5 << 20,
            origin_host: "cdn.example:8443".to_owned(),
            can_fetch: true,
            wanted: Some(proto::PieceSet { runs: vec![0, 2, 4, 1] }),
            ..Default::default()
        }
    }

    #[test]
    fn an_unspecified_address_stands_for_where_the_session_comes_from() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        let info = hello(good_hello(), mapped).unwrap();
        assert_eq!((info.address, info.endpoints), ("10.1.2.3:65010".parse().unwrap(), 1));
        assert_eq!((&*info.name, info.seed), ("node-1", true));
        let own = proto::Hello { quic_address: "[fd00::1]:7".to_owned(), ..good_hello() };
        assert_eq!(hello(own, mapped).unwrap().address, "[fd00::1]:7".parse().unwrap());
    }

    #[test]
    fn a_peer_cannot_have_others_dial_a_stranger() {
        let advertised = |address: &str, from: &str| {
            let hello_from = proto::Hello { quic_address: address.to_owned(), ..good_hello() };
            hello(hello_from, from.parse().unwrap()).unwrap().address.to_string()
        };
        for (address, from, linked) in [
            ("203.0.113.9:53", "198.51.100.1", "198.51.100.1:53"),
            ("203.0.113.9:53", "10.0.0.1", "10.0.0.1:53"),
            ("127.0.0.1:65010", "10.0.0.1", "10.0.0.1:65010"),
            ("224.0.0.1:65010", "10.0.0.1", "10.0.0.1:65010"),
            ("169.254.169.254:65010", "10.0.0.1", "10.0.0.1:65010"),
            ("[fe80::1]:65010", "10.0.0.1", "10.0.0.1:65010"),
            ("10.9.9.9:65010", "198.51.100.1", "198.51.100.1:65010"),
            ("10.200.0.1:65010", "10.0.0.1", "10.200.0.1:65010"),
            ("198.51.100.1:65010", "198.51.100.1", "198.51.100.1:65010"),
            ("198.51.100.1:65010", "127.0.0.1", "198.51.100.1:65010"),
        ] {
            assert_eq!(advertised(address, from), linked, "{address} from {from}");
        }
    }

    #[test]
    fn a_hello_out_of_bounds_is_refused_by_the_name_of_its_field() {
        let from = IpAddr::from([10, 0, 0, 1]);
        let label = proto::Label { key: "k".to_owned(), value: "v".repeat(64) };
        let labels = vec![proto::Label { key: "k".to_owned(), value: "v".to_owned() }; 17];
        let cases = [
            (proto::Hello { name: "Node".to_owned(), ..good_hello() }, "Hello.name"),
            (proto::Hello { quic_address: "node:1".to_owned(), ..good_hello() }, "Hello.quic_address"),
            (proto::Hello { quic_address: "0.0.0.0:0".to_owned(), ..good_hello() }, "Hello.quic_address"),
            (proto::Hello { quic_endpoints: 1025, ..good_hello() }, "Hello.quic_endpoints"),
            (proto::Hello { quic_endpoints: 527, ..good_hello() }, "Hello.quic_endpoints"),
            (proto::Hello { labels: vec![label], ..good_hello() }, "Hello.labels"),
            (proto::Hello { labels, ..good_hello() }, "Hello.labels"),
        ];
        for (wrong, field) in cases {
            let error = hello(wrong, from).unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
        let last = proto::Hello { quic_endpoints: 526, ..good_hello() };
        assert!(hello(last, from).is_ok(), "the last endpoint has port 65535");
    }

    #[test]
    fn nothing_but_pong_comes_before_the_inventory_is_whole() {
        let mut state = Inventory::default();
        let early = message(proto::PeerMessage { body: Some(Body::Want(good_want())) }, &mut state);
        assert!(early.unwrap_err().to_string().contains("Inventory is expected"));
        let pong = proto::PeerMessage { body: Some(Body::Pong(proto::Pong { nonce: 1 })) };
        assert!(matches!(message(pong, &mut state), Ok(Heard::Nothing)));
        let holding = proto::Holding { task: vec![1; 32].into(), len: 5 << 20, complete: true, have: None };
        let part = |last| Body::Inventory(proto::Inventory { holdings: vec![holding.clone()], last });
        assert!(matches!(events(part(false), &mut state)[..], [Event::InventoryStart, Event::Held { .. }]));
        assert!(matches!(events(part(true), &mut state)[..], [Event::Held { .. }, Event::InventoryEnd]));
        assert_eq!(events(Body::Want(good_want()), &mut state).len(), 1);
    }

    #[test]
    fn an_inventory_is_told_once_in_a_session() {
        let again = Body::Inventory(proto::Inventory { holdings: Vec::new(), last: true });
        assert!(refused(again).contains("second Inventory"));
    }

    #[test]
    fn a_want_names_a_bare_host_and_few_runs() {
        let Event::Want { host, wanted, .. } = &events(Body::Want(good_want()), &mut Inventory::Done)[0] else {
            panic!()
        };
        assert_eq!((&**host, wanted.as_deref()), ("cdn.example:8443", Some(&[0..2, 4..5][..])));
        for host in
            ["https://cdn.example", "cdn.example/path", "cdn.example?q", "user@cdn", "CDN", &"a".repeat(254), ""]
        {
            let wrong = refused(Body::Want(proto::Want { origin_host: host.to_owned(), ..good_want() }));
            assert!(wrong.starts_with("Want.origin_host"), "{host}: {wrong}");
        }
        let many = proto::PieceSet { runs: (0..65).flat_map(|run| [run * 2, 1]).collect() };
        assert!(refused(Body::Want(proto::Want { wanted: Some(many), ..good_want() })).contains("64 runs"));
        assert!(refused(Body::Want(proto::Want { len: (64 << 40) + 1, ..good_want() })).contains("64 TiB"));
        assert!(refused(Body::Want(proto::Want { task: vec![1; 31].into(), ..good_want() })).contains("31 bytes"));
    }

    #[test]
    fn runs_that_overlap_are_empty_fall_or_end_too_late_are_refused() {
        for runs in [&[0, 2, 1, 1][..], &[0, 0], &[5, 1, 0, 1], &[4_194_304, 1], &[u32::MAX, 2], &[1, u32::MAX], &[1]] {
            let set = Some(proto::PieceSet { runs: runs.to_vec() });
            assert!(pieces("set", set).is_err(), "{runs:?}");
        }
        let whole = Some(proto::PieceSet { runs: vec![0, 4_194_304] });
        assert_eq!(pieces("set", whole).unwrap(), [0..4_194_304]);
    }

    #[test]
    fn digests_are_32_bytes_a_piece() {
        let report = |first, bytes| {
            let digests = vec![proto::DigestRun { first, digests: vec![0; bytes].into() }];
            let changed = proto::TaskProgress { task: vec![1; 32].into(), digests, ..Default::default() };
            Body::Progress(proto::Progress { tasks: vec![changed], ..Default::default() })
        };
        assert_eq!(events(report(4_194_303, 32), &mut Inventory::Done).len(), 2);
        assert!(refused(report(0, 33)).contains("32 bytes a piece"));
        assert!(refused(report(4_194_303, 64)).contains("4194303"));
    }

    #[test]
    fn a_message_without_a_body_is_of_a_later_protocol() {
        assert!(matches!(message(proto::PeerMessage { body: None }, &mut Inventory::Expected), Ok(Heard::Nothing)));
    }
}
