//! Load tests of anything that serves large objects over HTTP/1.1, and scenarios that each measure a promise of the project beside
//! what people would otherwise run.

#![deny(unsafe_code)]

mod load;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures what serves large objects over HTTP/1.1: a Pondhawk node, an origin, a web server.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Load(Box<load::Arguments>),
    /// Run scenarios and print what they found out.
    Run(run::Arguments),
    /// List the scenarios and what they need.
    List,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Load(arguments) => load::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::List => {
            run::list();
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
