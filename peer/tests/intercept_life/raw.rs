//! Servers and clients below HTTP: what a connection carries, byte for byte.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::mpsc,
    thread,
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use pondhawk_bench::lab::Netns;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::site::Site;

/// No end of a connection waits longer for the other.
const PATIENCE: Duration = Duration::from_secs(40);

/// What every client script begins with: argv[1] is the address; `hello(name)` makes a real ClientHello.
const PRELUDE: &str = r"
import hashlib, socket, ssl, struct, sys
def hello(name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try: tls.do_handshake()
    except ssl.SSLWantReadError: pass
    return out.read()
def with_extension(record, extension):
    body = record[9:]
    at = 34
    at += 1 + body[at]
    at += 2 + struct.unpack('>H', body[at:at + 2])[0]
    at += 1 + body[at]
    extensions = body[at + 2:] + extension
    body = body[:at] + struct.pack('>H', len(extensions)) + extensions
    message = b'\x01' + struct.pack('>I', len(body))[1:] + body
    return record[:3] + struct.pack('>H', len(message)) + message
def rest(s):
    got = b''
    while True:
        more = s.recv(65536)
        if not more: return got
        got += more
s = socket.create_connection((sys.argv[1], 443), 40)
";

/// Runs a Python client, which prints what it has to tell, in the trusting group on the node's host.
pub(crate) fn client(site: &Site, to: SocketAddr, script: &str, arguments: &[&str]) -> String {
    let script = format!("{PRELUDE}{script}");
    let address = to.ip().to_string();
    let words = [&["python3", "-c", &script, &address], arguments].concat();
    let done = site.run(&site.trusting, site.host(), &words);
    let both = [done.stdout, done.stderr].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

/// Answers `connections` connections to the address, one after the other, in the hub's namespace; gives what `answer` made of each.
pub(crate) fn serve<T: Send + 'static>(
    netns: &Netns,
    address: SocketAddr,
    connections: usize,
    answer: impl Fn(TcpStream) -> io::Result<T> + Send + 'static,
) -> mpsc::Receiver<io::Result<T>> {
    let namespace = format!("/run/netns/{}", netns.name());
    let (results, made) = mpsc::channel();
    let (ready, listening) = mpsc::channel();
    thread::spawn(move || {
        let namespace = File::open(namespace).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            if results.send(answer(stream)).is_err() {
                return;
            }
        }
    });
    listening.recv().unwrap();
    made
}

/// What the next connection came to.
pub(crate) fn next<T>(made: &mpsc::Receiver<io::Result<T>>) -> io::Result<T> {
    made.recv_timeout(PATIENCE).unwrap()
}

/// Sends back all that comes, until the client ends its direction; then ends its own. Gives what came.
pub(crate) fn echo(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            stream.shutdown(Shutdown::Write)?;
            return Ok(all);
        }
        stream.write_all(&buffer[..n])?;
        all.extend_from_slice(&buffer[..n]);
    }
}

/// Reads to the end, then answers with the SHA-256 of what came and the same number of bytes of a stream of its own, whose
/// SHA-256 is the result.
pub(crate) fn swap(mut stream: TcpStream) -> io::Result<(u64, String, String)> {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        total += n as u64;
    }
    let came = hex(hash);
    let mut hash = Context::new(&SHA256);
    let mut left = total as usize;
    for number in 0_u64.. {
        // No two blocks are alike, so that a lost, doubled or moved one shows.
        for (at, word) in buffer.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(number << 32 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        let n = left.min(buffer.len());
        hash.update(&buffer[..n]);
        stream.write_all(&buffer[..n])?;
        left -= n;
        if left == 0 {
            break;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok((total, came, hex(hash)))
}

fn hex(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
