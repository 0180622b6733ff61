//! Every bound of the node that is not a setting, by name, with what it costs and why it is where it is.

use std::time::Duration;

/// How long an intercepted client may take to show what it speaks. Then it is passed on: a protocol where the server
/// speaks first looks exactly like this.
pub const HELLO_WAIT: Duration = Duration::from_secs(3);

/// Room made for each read of a ClientHello, in bytes; most come in one.
pub const HELLO_READ: usize = 4096;

/// A client that ends a connection so soon after its handshake, without a byte, has looked at the certificate and left.
pub const LEFT_AT_ONCE: Duration = Duration::from_millis(500);

/// Connecting to the original destination of a connection that is passed on: what Linux itself takes is 127 s, which no
/// client waits for.
pub const PASS_CONNECT_WAIT: Duration = Duration::from_secs(20);

/// How long further connections of a source that holds its whole share of the connections go direct. Short: what it holds may
/// end any moment, and the next connection beyond the share sets it again.
pub const OVER_SHARE_BYPASS: Duration = Duration::from_secs(10);

/// A request head, from its first byte to its last.
pub const HEAD_WAIT: Duration = Duration::from_secs(30);

/// The end of a file that is withheld until the whole is verified, in bytes. Only the last byte matters for safety; the
/// others are there to be [dribbled](DRIBBLE_EVERY).
pub const WITHHELD_TAIL: u64 = 4096;

/// One withheld byte is let go this often while the verdict is awaited, so that a client's read timeout (10 s in
/// huggingface_hub) does not fire. 4095 of them last four hours.
pub const DRIBBLE_EVERY: Duration = Duration::from_secs(4);

/// After a file's bytes turned out wrong, ranges of it are refused for so long: clients that put files together from
/// ranges try only the missing ones again, and would complete a wrong file with right bytes.
pub const WHOLE_ONLY: Duration = Duration::from_secs(120);

/// Files remembered for [`WHOLE_ONLY`].
pub const WRONG_TASKS: usize = 1024;

/// How long a request for the end of a file waits for other requests that show that the whole file is wanted, before it
/// is fetched straight from the origin.
pub const WHOLE_WANTED_WAIT: Duration = Duration::from_secs(1);

/// How long, and for how many bytes, a connection that we end is read on, so that the client gets all of the last reply.
pub const LINGER: Duration = Duration::from_secs(1);
/// See [`LINGER`].
pub const LINGER_BYTES: usize = 256 << 10;

/// A reply's head leaves after this even if no byte of its body can: clients stop reading after 10 s of silence, and then
/// count from the head.
pub const FIRST_BYTE_WAIT: Duration = Duration::from_secs(8);

/// What is left of [`FIRST_BYTE_WAIT`] for the first byte when the origin took its time to consent.
pub const FIRST_BYTE_LEAST: Duration = Duration::from_millis(500);

/// How long what an unclean stop left behind may take to be checked before a request goes straight to the origin.
pub const CHECK_WAIT: Duration = Duration::from_secs(3);

/// A download that brought nothing at all for this long has failed, whatever its retries think.
pub const FETCH_STALL: Duration = Duration::from_secs(90);

/// Files that wait to be preheated: a large repository fits; who has more asks again.
pub const PREHEATS: usize = 4096;

/// Other nodes have this long to get a file that was preheated for them: as long as the scheduler remembers it.
pub const SPREAD_WAIT: Duration = Duration::from_secs(24 * 3600);

/// While nothing is heard of them, this often it is seen whether there is still a scheduler to hear from.
pub const SPREAD_LOOK: Duration = Duration::from_secs(10);

/// Preheats that are over and still told of.
pub const PREHEATS_KEPT: usize = 1024;

/// Files that each shard preheats at a time: each of them is fetched by parallel ranges already.
pub const PREHEATS_A_SHARD: usize = 2;

/// Tasks of which it is remembered where their bytes came from.
pub const ORIGINS_KEPT: usize = 4096;

/// Bytes of a node's name in its cluster (RFC 1035 section 2.3.4: a DNS label; names may have dots).
pub const NAME_LEN: usize = 63;

/// Bytes of a JSON answer in which the mirror turns URLs to itself. A xet reconstruction of 10 GB has some 200 URLs of 1 KiB.
pub const TURNED_BODY: usize = 16 << 20;

/// Frames of a passed-through request body that may wait for the origin.
pub const BODY_FRAMES: usize = 4;

/// The longest silence of an origin, or of a client that still owes the rest of its request body, on a request that is
/// passed through: before the head of the answer, and between two parts of a body. The client decides how long it waits, as
/// it would without the node, and a request ends when its client leaves. This bound is above any client's patience and exists
/// so that no task waits for ever for two ends that have both vanished without a word.
pub const PASS_WAIT: Duration = Duration::from_secs(30 * 60);

/// How often the node looks whether the client of a request that is passed through is still there, while it waits for the
/// origin. Each look is one poll(2) that returns at once.
pub const CLIENT_LOOK: Duration = Duration::from_millis(250);

/// How long the shards may go unseen before the heartbeat of the interception stops with them.
pub const SHARD_SILENCE: Duration = Duration::from_secs(1);

/// How long the shards may take to start before the node says that it is up all the same, and not ready.
pub const SHARD_START: Duration = Duration::from_secs(5);

/// How often a shard shows that it is alive, and the heartbeat is written.
pub const BEAT_EVERY: Duration = Duration::from_millis(200);

/// Submissions that a shard's ring takes before it is flushed. A flush of a full ring that fails for want of kernel memory aborts the
/// process (see ARCHITECTURE.md, Threads): more entries make that rarer, and each costs 64 bytes of locked memory.
pub const RING_ENTRIES: u32 = 1024;

/// Buffers of each shard that are registered with its ring, and so pinned from the start: enough for a few streams at a
/// time without cost, while an idle node stays small.
pub const REGISTERED_BUFFERS: usize = 8;

/// Pause after accept(2) failed for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(BEAT_EVERY.as_millis() * 4 <= SHARD_SILENCE.as_millis());
const _: () = assert!(WITHHELD_TAIL > 1);
