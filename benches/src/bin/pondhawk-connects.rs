//! Opens connections one after the other and prints, as JSON, what `connect` took: `{"median_ns": .., "p90_ns": ..}`. Or accepts them.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use rustix::net::sockopt::set_socket_linger;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Accept and close connections until killed.
    Accept {
        /// Where.
        address: SocketAddr,
    },
    /// Open connections there.
    Open {
        /// Where.
        address: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 5_000)]
        count: usize,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Accept { address } => accept(address),
        Command::Open { address, count } => open(address, count),
    }
}

fn accept(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    loop {
        // A client that has reset its connection by now has measured what it wanted.
        let _ = listener.accept();
    }
}

fn open(address: SocketAddr, count: usize) -> Result<()> {
    let mut nanoseconds = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        let stream = TcpStream::connect(address).with_context(|| format!("connection {}", nanoseconds.len()))?;
        nanoseconds.push(begin.elapsed().as_nanos());
        // Closed by a reset, or ports would run out in TIME-WAIT.
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    nanoseconds.sort_unstable();
    let at = |part: f64| nanoseconds.get((count as f64 * part) as usize).copied().unwrap_or(0);
    println!("{{\"median_ns\": {}, \"p90_ns\": {}}}", at(0.5), at(0.9));
    Ok(())
}
