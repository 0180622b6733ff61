//! Peer to peer, verified, disk to disk, against bare quinn from memory to memory, over a veth pair between two network
//! namespaces. Needs root.
//!
//! `cargo bench -p pondhawk --bench wire -- --mib 1024 --rounds 5 --mtu 1500 --mtu 9000`
//!
//! Each side is one thread on a core of its own. Both are run in turn, after a first round that counts for nothing and
//! leaves the page cache warm on both ends; so is that of the file which is about to be written. CPU time includes each side's io_uring workers.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]

mod bare;
mod cpu;
mod ours;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use pondhawk_bench::{
    lab::Netns,
    transfer::{self, Transfer},
};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};

/// What to measure.
#[derive(Parser)]
struct Arguments {
    /// File size in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Rounds of each, after one that does not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MTU of the link; may be given several times.
    #[arg(long, default_values_t = [1500, 9000])]
    mtu: Vec<u16>,
    /// Limits the link, in Mbit/s.
    #[arg(long)]
    shape: Option<u64>,
    /// Pieces under way at a time.
    #[arg(long, default_value_t = 8)]
    pieces: usize,
    /// Streams of bare quinn.
    #[arg(long, default_value_t = 8)]
    streams: u64,
    /// Leaves bare quinn out.
    #[arg(long)]
    only_ours: bool,
    /// Where the two stores are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Writes every run that counts to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo says to a bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One transfer.
struct Run {
    seconds: f64,
    seed_cpu: f64,
    leech_cpu: f64,
}

/// One end of the link: where its thread runs.
struct End {
    netns: Netns,
    address: &'static str,
    core: usize,
}

fn main() {
    let arguments = Arguments::parse();
    println!("{:<6} {:<6} {:>7} {:>16} {:>16}", "MTU", "what", "GB/s", "seed CPU-s/GB", "leech CPU-s/GB");
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let stage = ours::Stage::new(&dir, arguments.mib << 20);
    let mut transfers = Vec::new();
    for &mtu in &arguments.mtu {
        let (seed, leech) = wire(mtu, arguments.shape);
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for round in 0..=arguments.rounds {
            if !arguments.only_ours {
                bare.push(bare::run(&seed, &leech, mtu, arguments.mib << 20, arguments.streams));
            }
            ours.push(ours::run(&stage, &seed, &leech, mtu, arguments.pieces));
            if round == 0 {
                (bare, ours) = (Vec::new(), Vec::new());
            }
        }
        let of = |who: &'static str| move |run: &Run| run.transfer(who, mtu, arguments.mib << 20);
        transfers.extend(bare.iter().map(of("bare")).chain(ours.iter().map(of("ours"))));
        let ours = show(mtu, "ours", &ours, arguments.mib);
        if !arguments.only_ours {
            let bare = show(mtu, "bare", &bare, arguments.mib);
            println!("{mtu:<6} ratio  {:>7.2}", ours / bare);
        }
    }
    if let Some(path) = &arguments.json {
        transfer::save(path, &transfers).unwrap();
    }
}

impl Run {
    fn transfer(&self, who: &str, mtu: u16, bytes: u64) -> Transfer {
        let (seconds, seed_cpu, leech_cpu) = (self.seconds, self.seed_cpu, self.leech_cpu);
        Transfer { who: who.to_owned(), mtu, bytes, seconds, seed_cpu, leech_cpu }
    }
}

/// Two namespaces and a cable between them.
fn wire(mtu: u16, shape: Option<u64>) -> (End, End) {
    let seed = End { netns: Netns::new("seed").unwrap(), address: "10.78.0.1", core: 0 };
    let leech = End { netns: Netns::new("leech").unwrap(), address: "10.78.0.2", core: 1 };
    let peer = leech.netns.name();
    seed.netns.ip(&format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}")).unwrap();
    for end in [&seed, &leech] {
        end.netns.ip(&format!("addr add {}/24 dev eth0", end.address)).unwrap();
        end.netns.ip("link set eth0 up").unwrap();
        if let Some(mbit) = shape {
            end.netns.shape("eth0", mbit * 1_000_000).unwrap();
        }
    }
    (seed, leech)
}

impl End {
    fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address.parse().unwrap(), 0)
    }

    /// The thread is in the namespace and on the core from now on.
    fn enter(&self) {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.netns.name())).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network)).unwrap();
        let mut cores = CpuSet::new();
        cores.set(self.core % thread::available_parallelism().unwrap().get());
        sched_setaffinity(None, &cores).unwrap();
    }
}

/// Runs the two sides on threads of their own. The seed says where it listens; the leech measures.
fn sides<T: Send>(
    seed: &End,
    leech: &End,
    serve: impl FnOnce(mpsc::Sender<SocketAddr>, tokio::sync::oneshot::Receiver<()>) + Send,
    fetch: impl FnOnce(SocketAddr) -> T + Send,
) -> T {
    let (listening, listens) = mpsc::channel();
    let (done, is_done) = tokio::sync::oneshot::channel();
    thread::scope(|scope| {
        let serving = thread::Builder::new().name("seed".into()).spawn_scoped(scope, move || {
            seed.enter();
            serve(listening, is_done);
        });
        let fetching = thread::Builder::new().name("leech".into()).spawn_scoped(scope, move || {
            leech.enter();
            let result = fetch(listens.recv_timeout(Duration::from_secs(10)).unwrap());
            let _ = done.send(());
            result
        });
        let result = fetching.unwrap().join().unwrap();
        serving.unwrap().join().unwrap();
        result
    })
}

/// Measures a piece of work on the leech's thread.
async fn measured(work: impl Future<Output = ()>) -> Run {
    let (before, start) = (cpu::by_side(), Instant::now());
    work.await;
    let (seconds, after) = (start.elapsed().as_secs_f64(), cpu::by_side());
    Run { seconds, seed_cpu: after.seed - before.seed, leech_cpu: after.leech - before.leech }
}

/// Prints medians; the GB/s.
fn show(mtu: u16, what: &str, runs: &[Run], mib: u64) -> f64 {
    let gigabytes = (mib << 20) as f64 / 1e9;
    let median = |of: &dyn Fn(&Run) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let speed = gigabytes / median(&|run| run.seconds);
    let seed = median(&|run| run.seed_cpu) / gigabytes;
    let leech = median(&|run| run.leech_cpu) / gigabytes;
    println!("{mtu:<6} {what:<6} {speed:>7.3} {seed:>16.2} {leech:>16.2}");
    speed
}
