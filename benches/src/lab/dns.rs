//! A DNS server for a handful of names (RFC 1035, over UDP).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Names and what they stand for. Names are lower case, without a dot at the end.
#[derive(Clone, Debug, Default)]
pub struct DnsRecords {
    /// A and AAAA.
    pub addresses: HashMap<String, Vec<IpAddr>>,
    /// CNAME.
    pub aliases: HashMap<String, String>,
    /// Time to live of every record, in seconds.
    pub ttl: u32,
}

impl DnsRecords {
    /// All these names at all these addresses, for 60 s.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, addresses: &[IpAddr]) -> Self {
        let addresses = names.into_iter().map(|name| (name.to_lowercase(), addresses.to_vec())).collect();
        Self { addresses, aliases: HashMap::new(), ttl: 60 }
    }
}

/// A server on a thread of its own, until dropped.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    queries: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Serves these records in the namespace of the calling thread.
    pub fn start(address: SocketAddr, records: DnsRecords) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        // Bounds how long a drop waits.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let (queries, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&queries), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("dns".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                answer_one(&socket, &records, &counter);
            }
        })?;
        Ok(Self { address, queries, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queries answered so far.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has printed itself.
            let _ = thread.join();
        }
    }
}

fn answer_one(socket: &UdpSocket, records: &DnsRecords, queries: &AtomicU64) {
    let mut packet = [0; 1500];
    // Time-outs come here as errors, too.
    let Ok((len, from)) = socket.recv_from(&mut packet) else { return };
    if let Some(reply) = reply(&packet[..len], records) {
        queries.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = socket.send_to(&reply, from) {
            tracing::debug!(%error, "cannot answer a DNS query");
        }
    }
}

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const NAME_ERROR: u8 = 3;
const MAX_ALIASES: usize = 8;

/// The answer to a query; none: it is no query with one readable question.
fn reply(query: &[u8], records: &DnsRecords) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    let is_query = header[2] & 0x80 == 0 && header[4..6] == [0, 1];
    if !is_query {
        return None;
    }
    let (name, after) = question_name(query)?;
    let question = query.get(12..after + 4)?;
    let kind = u16::from_be_bytes([query[after], query[after + 1]]);
    let (chain, known) = chain(&name, kind, records);
    let code = if known { 0 } else { NAME_ERROR };
    let mut out = vec![header[0], header[1], 0x84 | (header[2] & 1), 0x80 | code, 0, 1];
    out.extend_from_slice(&u16::try_from(chain.len()).ok()?.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(question);
    for record in chain {
        out.extend_from_slice(&record);
    }
    Some(out)
}

/// Lower case, with dots; and the offset behind it.
fn question_name(query: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        match len {
            0 => return Some((name, at)),
            1..=63 => {
                let label = query.get(at..at + len)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                at += len;
            }
            // A question has no compression.
            _ => return None,
        }
    }
}

/// Encoded records from the name over its aliases to addresses, and whether the name exists.
fn chain(name: &str, kind: u16, records: &DnsRecords) -> (Vec<Vec<u8>>, bool) {
    let mut out = Vec::new();
    let mut name = name.to_owned();
    for _ in 0..MAX_ALIASES {
        let Some(target) = records.aliases.get(&name) else { break };
        out.push(record(&name, TYPE_CNAME, records.ttl, &encode_name(target)));
        name.clone_from(target);
    }
    let Some(addresses) = records.addresses.get(&name) else {
        let aliased = !out.is_empty();
        return (out, aliased);
    };
    for address in addresses {
        match (address, kind) {
            (IpAddr::V4(v4), TYPE_A) => out.push(record(&name, TYPE_A, records.ttl, &v4.octets())),
            (IpAddr::V6(v6), TYPE_AAAA) => out.push(record(&name, TYPE_AAAA, records.ttl, &v6.octets())),
            _ => {}
        }
    }
    (out, true)
}

fn record(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut out = encode_name(name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
    out
}

fn encode_name(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend_from_slice(&encode_name(name));
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        packet
    }

    fn records() -> DnsRecords {
        let mut records = DnsRecords::new(["cdn.example"], &[[10, 0, 0, 1].into(), "fd00::1".parse().unwrap()]);
        records.aliases.insert("www.example".into(), "cdn.example".into());
        records
    }

    #[test]
    fn names_are_answered_by_type_whatever_their_case() {
        let reply_a = reply(&query("CDN.example", TYPE_A), &records()).unwrap();
        assert_eq!((reply_a[7], reply_a[3] & 15), (1, 0));
        assert!(reply_a.ends_with(&[0, 4, 10, 0, 0, 1]));
        let reply_aaaa = reply(&query("cdn.example", TYPE_AAAA), &records()).unwrap();
        assert_eq!(reply_aaaa[7], 1);
        assert_eq!(reply(&query("cdn.example", 16), &records()).unwrap()[7], 0);
    }

    #[test]
    fn an_alias_comes_with_the_address_of_its_target() {
        let reply = reply(&query("www.example", TYPE_A), &records()).unwrap();
        assert_eq!(reply[7], 2);
        assert!(reply.ends_with(&[10, 0, 0, 1]));
    }

    #[test]
    fn an_unknown_name_does_not_exist_and_garbage_gets_no_answer() {
        assert_eq!(reply(&query("other.example", TYPE_A), &records()).unwrap()[3] & 15, NAME_ERROR);
        let good = query("cdn.example", TYPE_A);
        for len in 0..good.len() {
            assert_eq!(reply(&good[..len], &records()), None, "{len}");
        }
        assert_eq!(reply(&[0xff; 40], &records()), None);
    }

    #[test]
    fn a_running_server_answers_over_udp() {
        let server = DnsServer::start(([127, 0, 0, 1], 0).into(), records()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(&query("cdn.example", TYPE_A), server.address()).unwrap();
        let mut packet = [0; 512];
        let len = socket.recv(&mut packet).unwrap();
        assert!(packet[..len].ends_with(&[10, 0, 0, 1]));
        assert_eq!(server.queries(), 1);
    }
}
