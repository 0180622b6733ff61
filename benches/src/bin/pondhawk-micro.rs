//! Does one small thing again and again, to be counted by valgrind or timed by the caller. The peer's own code, nothing around it.

use std::{
    fs::File,
    hint::black_box,
    io::{Seek as _, SeekFrom, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use pondhawk::{
    http::{HeadLimits, head, range},
    swarm::download::{Action, Download, Event, Leader, LinkId, Policy, Reach, SourceId},
    task::{Bitmap, Layout, digest::WholeDigest},
    uring::{Socket, splice_both},
};

#[path = "micro/secure.rs"]
mod secure;

const MIB: u64 = 1 << 20;
/// Of a piece in what hashes.
const PIECE: usize = 1 << 20;
/// Of a task in what picks.
const PIECES: u64 = 1_000;
const LINKS: u64 = 8;

#[derive(Parser)]
struct Arguments {
    /// What to do.
    what: What,
    /// How often.
    times: u64,
    /// Where to write.
    #[arg(long, default_value = "/dev/shm")]
    data_in: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Read the head of a client's request.
    Head,
    /// Read its Range field.
    Range,
    /// Set a thousand pieces in a bitmap, in no order.
    Bitmap,
    /// Pick and book a thousand pieces of a download from eight links.
    Picker,
    /// BLAKE3 of a piece of 1 MiB.
    Blake3,
    /// BLAKE3 of a piece, and its write.
    Blake3Write,
    /// SHA-256 of a piece.
    Sha256,
    /// Encrypt a piece for a client, in records, buffer by buffer.
    Encrypt,
    /// The same, and send it to a client that takes it from a socket and drops it.
    EncryptSend,
    /// Pass a piece on from one connection to another, both ends of both in this process.
    Splice,
}

const REQUEST: &[u8] =
    b"GET /repos/ab/cd/0123/89ef?response-content-disposition=inline&Expires=1790000000&Policy=eyJTdGF0ZW1lbnQi\
&Signature=abcdefghijklmnopqrstuvwxyz&Key-Pair-Id=K24J24Z295AEI9 HTTP/1.1\r\nHost: cdn-lfs.huggingface.co\r\n\
User-Agent: unknown/None; hf_hub/0.36.2; python/3.11.7; torch/2.6.0\r\nAccept-Encoding: identity\r\nAccept: */*\r\n\
Connection: keep-alive\r\nRange: bytes=10485760-\r\nX-Amzn-Trace-Id: 3f0e8b7c\r\n\r\n";

fn main() -> Result<()> {
    let Arguments { what, times, data_in } = Arguments::parse();
    match what {
        What::Head => repeat(times, || head::parse(black_box(REQUEST), &HeadLimits::default()).is_ok()),
        What::Range => repeat(times, || range::parse_range(black_box(b"bytes=10485760-20971519"), 5 << 30)),
        What::Bitmap => repeat(times, bitmap),
        What::Picker => repeat(times, pick_all),
        What::Blake3 => {
            let piece = vec![7; PIECE];
            repeat(times, || blake3::hash(black_box(&piece)));
        }
        What::Blake3Write => hash_and_write(times, tempfile::tempfile_in(data_in)?)?,
        What::Sha256 => {
            let piece = vec![7; PIECE];
            repeat(times, || {
                let mut digest = WholeDigest::new();
                digest.feed(black_box(&piece));
                digest.finish()
            });
        }
        What::Encrypt => {
            let mut open = secure::open()?;
            repeat(times, || open.encrypt_piece(|_| Ok(())).is_ok());
        }
        What::EncryptSend => encrypt_and_send(times)?,
        What::Splice => splice(times)?,
    }
    Ok(())
}

/// A socket pair whose far end is read and dropped by a thread.
fn drained() -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    Ok(near)
}

fn encrypt_and_send(times: u64) -> Result<()> {
    let (mut open, mut socket) = (secure::open()?, drained()?);
    (0..times).try_for_each(|_| open.encrypt_piece(|records| Ok(socket.write_all(records)?)))
}

/// What a passed-on connection costs: a client's thread writes, the node splices, a server's thread reads.
fn splice(times: u64) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (from_client, _) = listener.accept()?;
    let to_server = drained()?;
    std::thread::spawn(move || {
        let piece = vec![7; PIECE];
        (0..times).try_for_each(|_| client.write_all(&piece))
    });
    let spliced = tokio_uring::start(async {
        let (client, server) = (Socket::new(from_client)?, Socket::new(to_server)?);
        splice_both(&client, &server).await
    })?;
    ensure!(spliced.forth == times * PIECE as u64, "only {} bytes came", spliced.forth);
    Ok(())
}

fn repeat<T>(times: u64, mut what: impl FnMut() -> T) {
    (0..times).for_each(|_| drop(black_box(what())));
}

fn bitmap() -> bool {
    let map = Bitmap::new(1_000);
    // 7 has no divisor in common with 1,000.
    for n in 0..1_000_u32 {
        map.set(n * 7 % 1_000);
    }
    map.is_full()
}

/// A led download whose links have everything: what it decides for each piece, from the first to the last.
fn pick_all() -> u64 {
    let layout = Layout::for_len(PIECES * MIB).expect("a GiB has a layout");
    let mut machine = Download::new(layout, &Bitmap::new(layout.pieces()), Reach::Ranges, Policy::default());
    let (mut now, mut picked) = (Duration::ZERO, 0);
    machine.handle(now, Event::UrlOffered { source: SourceId(1) });
    machine.handle(now, Event::Led(Leader::New));
    machine.handle(now, Event::Want { reader: 1, bytes: 0..layout.len() });
    for link in (0..LINKS).map(LinkId) {
        machine.handle(now, Event::LinkUp { link });
        machine.handle(now, Event::LinkHas { link, pieces: 0..layout.pieces() });
    }
    machine.handle(now, Event::Known { pieces: 0..layout.pieces() });
    while let Some(action) = machine.poll(now) {
        now += Duration::from_millis(1);
        if let Action::Ask { link, piece } = action {
            picked += 1;
            machine.handle(now, Event::PeerPiece { link, piece });
        }
    }
    picked
}

/// Into one file, which begins anew after a GiB.
fn hash_and_write(times: u64, mut file: File) -> Result<()> {
    let piece = vec![7; PIECE];
    for number in 0..times {
        if number.is_multiple_of(1024) {
            file.seek(SeekFrom::Start(0))?;
        }
        black_box(blake3::hash(black_box(&piece)));
        file.write_all(&piece).context("no room for a GiB")?;
    }
    Ok(())
}
