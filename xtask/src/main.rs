//! The project's own commands, run as `cargo xtask COMMAND`.
//!
//! - [`setup`] finds or installs what building and testing needs
//! - [`ebpf`] builds the peer and says whether interception is in it
//! - [`statics`] builds binaries that need no libc, for images and virtual machines
//! - [`image`] makes a container image of them
//! - [`deb`] makes a Debian package
//! - [`vm`] runs the node on other kernels
//! - [`tidy`] checks the rules of the tree that no compiler knows
//! - [`chart`] checks the Helm chart, and renders it for kustomize
//! - [`kube`] runs the chart on a Kubernetes node made of this machine
//! - [`fuzz`] runs the fuzz targets
//! - [`test`] runs every check, as CI does
//! - [`demo`] shows real clients on three nodes that share one download
//! - [`bench`] measures what the project promises
//! - [`soak`] runs a cluster under real clients and random faults

#![deny(unsafe_code)]

mod bench;
mod chart;
mod deb;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod kube;
mod setup;
mod shell;
mod soak;
mod statics;
mod steps;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Pondhawk's own commands", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the tools that building and testing need; safe to run again.
    Setup(setup::Args),
    /// Build the peer with its BPF programs and say whether interception is in it.
    Ebpf,
    /// Build the programs statically, interception included, for images and virtual machines.
    Static,
    /// Make a container image of a node and a scheduler, without a registry.
    Image(image::Args),
    /// Make a Debian package of a node and a scheduler.
    Deb(deb::Args),
    /// Run the node on other kernels, in emulated machines.
    Vm(vm::Args),
    /// Check the rules of the tree: structure, purity, sizes, links.
    Tidy,
    /// Check the Helm chart without a cluster; --render writes deploy/kustomize from it.
    Chart(chart::Args),
    /// Run the Helm chart on a real Kubernetes node made of this machine, as root; the first time builds Kubernetes.
    Kube(kube::Args),
    /// Fuzz the parsers of outside bytes; a failing input ends in target/fuzz/artifacts.
    Fuzz(fuzz::Args),
    /// Set up, check formatting, lint, tidy, build and run every test, and fuzz every target for a moment.
    Test(test::Args),
    /// Show unmodified clients on three nodes that share one download.
    Demo(demo::Args),
    /// Measure what the project promises, beside what people would otherwise run.
    Bench(bench::Args),
    /// Run a cluster under real clients and random faults, and check after each minute that no promise was broken.
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Ebpf => ebpf::run(),
        Command::Static => statics::run(),
        Command::Image(args) => image::run(&args),
        Command::Deb(args) => deb::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Tidy => tidy::run(),
        Command::Chart(args) => chart::run(&args),
        Command::Kube(args) => kube::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Soak(args) => soak::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
