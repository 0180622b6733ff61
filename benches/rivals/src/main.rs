//! iroh-blobs, file system to file system, over a veth pair between two network namespaces: what `cargo bench -p pondhawk --bench
//! wire` measures of ours. Needs root and two cores.
//!
//! `cargo run --release --bin rival-iroh -- --mib 1024 --rounds 5 --mtu 1500 --mtu 9000`
//!
//! Each side is on a core of its own: a thread with the endpoint's runtime, and the threads of the runtime that a store makes for
//! itself, which inherit the core. A first round counts for nothing.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has no result")]

mod blobs;
mod cpu;

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
    /// Rounds, after one that does not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MTU of the link; may be given several times.
    #[arg(long, default_values_t = [1500, 9000])]
    mtu: Vec<u16>,
    /// Where the two stores are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Flow control of a stream in MiB; iroh's own if left out.
    #[arg(long)]
    window: Option<u32>,
    /// Prints every round, not the medians alone.
    #[arg(long)]
    each: bool,
    /// Writes every run that counts to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One transfer.
struct Run {
    seconds: f64,
    seed_cpu: f64,
    leech_cpu: f64,
    /// What the process used that belongs to neither side, or to threads that have ended.
    other_cpu: f64,
    /// The largest UDP payload in the end, as the leech sends it.
    payload: u16,
    /// Packets that the leech sent, and those of them that it took for lost.
    sent: u64,
    lost: u64,
}

/// One end of the link: where its threads run.
struct End {
    netns: Netns,
    address: &'static str,
    core: usize,
}

fn main() {
    let arguments = Arguments::parse();
    assert!(thread::available_parallelism().unwrap().get() > 1, "each side needs a core of its own");
    println!("{:<6} {:<6} {:>7} {:>16} {:>16}", "MTU", "what", "GB/s", "seed CPU-s/GB", "leech CPU-s/GB");
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let stage = blobs::Stage::new(&dir, arguments.mib << 20, arguments.window.map(|mib| mib << 20));
    let mut transfers = Vec::new();
    for &mtu in &arguments.mtu {
        let (seed, leech) = wire(mtu);
        let mut runs = Vec::new();
        for round in 0..=arguments.rounds {
            let run = blobs::run(&stage, &seed, &leech, mtu, round == 0);
            if arguments.each {
                show(mtu, &format!("({round})"), std::slice::from_ref(&run), arguments.mib);
            }
            if round > 0 {
                runs.push(run);
            }
        }
        show(mtu, "iroh", &runs, arguments.mib);
        transfers.extend(runs.iter().map(|run| run.transfer(mtu, arguments.mib << 20)));
        let other = runs.iter().map(|run| run.other_cpu).fold(0.0, f64::max);
        let (sent, lost) = runs.iter().fold((0, 0), |(sent, lost), run| (sent + run.sent, lost + run.lost));
        let payload = runs.iter().map(|run| run.payload).min().unwrap_or(0);
        println!(
            "{mtu:<6} payload {payload}, at most {other:.2} CPU-s of neither side, {lost} of {sent} packets from leech lost"
        );
    }
    if let Some(path) = &arguments.json {
        transfer::save(path, &transfers).unwrap();
    }
}

impl Run {
    fn transfer(&self, mtu: u16, bytes: u64) -> Transfer {
        let (seconds, seed_cpu, leech_cpu) = (self.seconds, self.seed_cpu, self.leech_cpu);
        Transfer { who: "iroh".to_owned(), mtu, bytes, seconds, seed_cpu, leech_cpu }
    }
}

/// Two namespaces and a cable between them.
fn wire(mtu: u16) -> (End, End) {
    let seed = End { netns: Netns::new("seed").unwrap(), address: "10.79.0.1", core: 0 };
    let leech = End { netns: Netns::new("leech").unwrap(), address: "10.79.0.2", core: 1 };
    let peer = leech.netns.name();
    seed.netns.ip(&format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}")).unwrap();
    for end in [&seed, &leech] {
        end.netns.ip(&format!("addr add {}/24 dev eth0", end.address)).unwrap();
        end.netns.ip("link set eth0 up").unwrap();
    }
    (seed, leech)
}

impl End {
    fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address.parse().unwrap(), 0)
    }

    /// The thread is in the namespace and on the core from now on, and so are those that it starts.
    fn enter(&self) {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.netns.name())).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network)).unwrap();
        let mut cores = CpuSet::new();
        cores.set(self.core);
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
async fn measured(seed: &End, leech: &End, work: impl Future<Output = ()>) -> Run {
    let (before, start) = (cpu::by_side(seed, leech), Instant::now());
    work.await;
    let (seconds, after) = (start.elapsed().as_secs_f64(), cpu::by_side(seed, leech));
    let (seed_cpu, leech_cpu) = (after.seed - before.seed, after.leech - before.leech);
    let other_cpu = after.process - before.process - seed_cpu - leech_cpu;
    Run { seconds, seed_cpu, leech_cpu, other_cpu, payload: 0, sent: 0, lost: 0 }
}

/// Prints medians.
fn show(mtu: u16, what: &str, runs: &[Run], mib: u64) {
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
}
