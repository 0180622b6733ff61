//! Overhears DNS answers (RFC 1035, RFC 3596): the addresses of wanted names.
//!
//! The question decides whether an answer is wanted; then every A and AAAA record in it counts, so that a chain of
//! CNAMEs needs no following. Runs on every packet that comes in, so it leaves early.
//!
//! An answer counts only at a socket that asked its sender, and only for the network namespace of that socket: anything can
//! send packets from port 53, and what a namespace's own name server says must not steer the connections of others. The
//! identifier of the message is not compared: the question is not seen on its way out, and a sender that has to forge the
//! name server's address and guess the socket's port gains one destination that the node still has to prove. Where a load
//! balancer in the kernel replaces the name server's address after these programs ran, its answers are not recognised.

use aya_ebpf::{maps::lpm_trie::Key, programs::SkBuffContext};
use pondhawk_ebpf::{
    Address, DNS_PORT, Decision, DnsQuery, MAX_LEARNT_SECONDS, MIN_LEARNT_SECONDS, NamespaceAddress, SUFFIX_LEN,
};

use crate::{
    kernel::{Connect, now, packet_cookie},
    maps,
};

const IPPROTO_UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const DNS_HEADER: usize = 12;
/// More labels than any host name that a suffix is configured for.
const MAX_QUESTION_LABELS: usize = 16;
/// Owner names of answers are compressed by every server in use: a pointer, or a few labels and a pointer.
const MAX_OWNER_LABELS: usize = 10;
/// Records beyond these are not read: the CDN's answers have at most 8 addresses and 3 CNAMEs.
const MAX_ANSWERS: usize = 24;
/// No valid offset is larger; tells the verifier that sums do not overflow.
const MAX_OFFSET: usize = 0xffff;
const NANOS: u64 = 1_000_000_000;

/// Remembers which name server a socket asks.
#[inline(always)]
pub(crate) fn record_query(call: &Connect<'_>, server: &Address) {
    if call.protocol() == u32::from(IPPROTO_UDP) {
        maps::record_query(&DnsQuery { socket_cookie: call.cookie(), server: *server }, call.netns_cookie());
    }
}

/// Takes the addresses from a packet that is a DNS answer for a wanted name.
#[inline(always)]
pub(crate) fn overhear(packet: &SkBuffContext) {
    if let Some(dns) = dns_offset(packet)
        && let Some(answers) = answer_count(packet, dns)
        && let Some(end) = question_end(packet, dns + DNS_HEADER)
        && is_wanted(packet, dns + DNS_HEADER, end)
    {
        let Some(netns_cookie) = asker(packet) else {
            maps::count(Decision::DnsUnasked);
            return;
        };
        // QTYPE and QCLASS follow the name.
        if read_answers(packet, end + 5, answers, netns_cookie).is_none() {
            maps::count(Decision::DnsMalformed);
        }
    }
}

/// The network namespace of the socket that the packet arrives at, if the socket asked the packet's sender.
#[inline(always)]
fn asker(packet: &SkBuffContext) -> Option<u64> {
    let server = match packet.load::<u8>(0).ok()? >> 4 {
        4 => Address::v4(packet.load::<u32>(12).ok()?),
        _ => Address(packet.load::<[u32; 4]>(8).ok()?),
    };
    maps::asker(&DnsQuery { socket_cookie: packet_cookie(packet), server })
}

/// Where the DNS message starts, if this is UDP from port 53.
#[inline(always)]
fn dns_offset(packet: &SkBuffContext) -> Option<usize> {
    let head: [u8; 20] = packet.load(0).ok()?;
    let udp = match head[0] >> 4 {
        4 if head[9] == IPPROTO_UDP => {
            let is_later_fragment = head[6] & 0x1f != 0 || head[7] != 0;
            (!is_later_fragment).then_some(usize::from(head[0] & 15) * 4)?
        }
        6 if head[6] == IPPROTO_UDP => 40,
        _ => return None,
    };
    let source_port: [u8; 2] = packet.load(udp).ok()?;
    (u16::from_be_bytes(source_port) == DNS_PORT).then_some(udp + UDP_HEADER)
}

/// How many answers follow, if this is a successful response to one question.
#[inline(always)]
fn answer_count(packet: &SkBuffContext, dns: usize) -> Option<usize> {
    let header: [u8; DNS_HEADER] = packet.load(dns).ok()?;
    let is_response = header[2] & 0x80 != 0;
    let no_error = header[3] & 0x0f == 0;
    let one_question = header[4] == 0 && header[5] == 1;
    (is_response && no_error && one_question).then_some(usize::from(u16::from_be_bytes([header[6], header[7]])))
}

/// The offset of the zero byte that ends the question's name, which is never compressed.
#[inline(always)]
fn question_end(packet: &SkBuffContext, start: usize) -> Option<usize> {
    let mut offset = start;
    let mut labels = 0;
    while labels < MAX_QUESTION_LABELS {
        match packet.load::<u8>(offset).ok()? {
            0 => return Some(offset),
            len @ 1..=63 => offset += 1 + usize::from(len),
            _ => return None,
        }
        labels += 1;
    }
    None
}

/// Whether the name ends in a configured suffix: its wire form read backwards starts with the suffix read backwards.
///
/// The length bytes take part, so that only whole labels match. There are at least 40 bytes of headers in front of a
/// name, so that the window starts in the packet. It is read and turned round at constant places: without CAP_PERFMON
/// the verifier refuses a variable index into the stack.
#[inline(always)]
fn is_wanted(packet: &SkBuffContext, start: usize, end: usize) -> bool {
    let Ok([a, b, c, d, e]) = packet.load::<[u64; SUFFIX_LEN / 8]>(end.wrapping_sub(SUFFIX_LEN)) else { return false };
    let words = [e, d, c, b, a].map(|word| lower(word).swap_bytes().to_ne_bytes());
    // What stands in front of a short name takes no part.
    let len = (end - start).min(SUFFIX_LEN);
    maps::SUFFIXES.get(Key::new(len as u32 * 8, words)).is_some()
}

/// ASCII upper case to lower case, in all 8 bytes at once. Length bytes are at most 63, below any letter.
#[inline(always)]
fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low_bits = word & (0x7f * ONES);
    let from_a = low_bits + (0x80 - b'A' as u64) * ONES;
    let beyond_z = low_bits + (0x7f - b'Z' as u64) * ONES;
    let is_upper = !word & (from_a ^ beyond_z) & (0x80 * ONES);
    word | is_upper >> 2
}

/// Learns from the records; None if the message ends, or is odd, before they do.
///
/// The scope of an address is checked when it is connected to: its branches in this loop are too many for the verifier.
#[inline(always)]
fn read_answers(packet: &SkBuffContext, start: usize, answers: usize, netns_cookie: u64) -> Option<()> {
    let now = now();
    let mut offset = start;
    let mut record = 0;
    while record < MAX_ANSWERS {
        if record >= answers {
            break;
        }
        if offset > MAX_OFFSET {
            return None;
        }
        let fixed = skip_name(packet, offset)?;
        let head: [u8; 10] = packet.load(fixed).ok()?;
        let data = fixed + head.len();
        let ttl = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let len = u16::from_be_bytes([head[8], head[9]]);
        if let Some(address) = address(packet, data, [head[0], head[1]], len) {
            let seconds = u64::from(ttl).clamp(MIN_LEARNT_SECONDS, MAX_LEARNT_SECONDS);
            maps::record_answer(&NamespaceAddress { netns_cookie, address }, now + seconds * NANOS);
            maps::count(Decision::DnsLearnt);
        }
        offset = data + usize::from(len);
        record += 1;
    }
    Some(())
}

/// The address in an A or AAAA record.
#[inline(always)]
fn address(packet: &SkBuffContext, data: usize, kind: [u8; 2], len: u16) -> Option<Address> {
    match (kind, len) {
        ([0, 1], 4) => packet.load::<u32>(data).ok().map(Address::v4),
        ([0, 28], 16) => packet.load::<[u32; 4]>(data).ok().map(Address),
        _ => None,
    }
}

/// The offset behind a name: labels up to a zero byte or a compression pointer (RFC 1035, 4.1.4).
#[inline(always)]
fn skip_name(packet: &SkBuffContext, start: usize) -> Option<usize> {
    let mut offset = start;
    let mut labels = 0;
    while labels < MAX_OWNER_LABELS {
        match packet.load::<u8>(offset).ok()? {
            0 => return Some(offset + 1),
            len @ 1..=63 => offset += 1 + usize::from(len),
            0xc0..=0xff => return Some(offset + 2),
            _ => return None,
        }
        labels += 1;
    }
    None
}
