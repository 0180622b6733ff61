//! `pondhawk get`: a file or a repository, by way of the node.
//!
//! The Hub itself is asked directly, with the user's token, which the node never hears; the bytes, which the Hub leaves to its
//! CDN, come through the node's proxy port. Everything is verified, complete or not there, and gone on with after a cut.

mod cache;
mod error;
mod filter;
pub(crate) mod hub;
mod names;
mod place;
pub(super) mod progress;
pub(crate) mod reference;
mod report;
mod settings;
mod taken;
mod transfer;
mod web;
mod work;

pub(super) mod remote;

use std::{path::PathBuf, time::Instant};

use clap::Args;

use super::CliError;
pub(super) use error::GetError;
pub(super) use hub::Listing;
use progress::Progress;
use report::Report;
pub(super) use settings::{configured, is_this_machine};

const EXIT_CODES: &str = "\
Exit codes:
  0  everything is there and right
  1  failed; what came is kept as NAME.*.part and gone on with the next time
  2  used wrongly
  3  not found, or not allowed: see HF_TOKEN
  4  the bytes do not have the SHA-256 that the Hub or --digest names; nothing is left of them

Where no node answers, files come straight from the origin, and a line says so.
SSL_CERT_FILE names certificates to trust beside the system's, HTTPS_PROXY and NO_PROXY the way to what is not asked of the node.";

/// The command's arguments.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Get {
    /// A URL, or hf://[datasets/|spaces/]owner/repo[@revision][/path]
    #[arg(value_name = "URL|hf://...")]
    what: String,
    /// The file to write, or the folder to write into [default: the name at the end, here]
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Everything below the path of an hf:// name; without a path it is the whole repository anyway
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    patterns: Patterns,
    /// What the file has to be; files in the Hub's LFS are always checked
    #[arg(long, value_name = "sha256:HEX", conflicts_with_all = ["recursive", "include", "exclude"])]
    digest: Option<String>,
    #[command(flatten)]
    rights: Rights,
    /// Write into the cache of the Hub's clients, where they find it offline [default: HF_HUB_CACHE, else below HF_HOME]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, conflicts_with = "output")]
    hf_cache: Option<Option<PathBuf>>,
    /// Files at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// The node's proxy port [default: the one of this machine's configuration, else 127.0.0.1:65001]
    #[arg(long, value_name = "ADDRESS", env = "PONDHAWK_NODE")]
    node: Option<String>,
    /// Not by way of a node, whatever --node says
    #[arg(long)]
    direct: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    /// Neither progress nor notes
    #[arg(short, long)]
    quiet: bool,
}

/// As whom the Hub and other servers are asked.
#[derive(Debug, Args)]
pub(super) struct Rights {
    /// A header for the URL's own host, or for the Hub; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The Hub's token [default: HF_TOKEN, else the file that the Hub's clients keep it in]
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The Hub [default: https://huggingface.co]
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    endpoint: Option<String>,
}

/// Which files of a repository.
#[derive(Debug, Args)]
pub(super) struct Patterns {
    /// Only files whose path in the repository matches, as *.safetensors; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No files whose path in the repository matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
}

impl Get {
    pub(super) fn run(&self) -> Result<String, CliError> {
        let runtime = runtime()?;
        let progress = Progress::new(self.quiet);
        let started = Instant::now();
        let mut report = Report::new(&self.what);
        let outcome = runtime.block_on(work::run(self, progress.clone(), &mut report));
        progress.end();
        report.end(started.elapsed(), outcome.as_ref().err());
        // Nothing that is still under way is of use.
        runtime.shutdown_background();
        if outcome.is_ok() {
            progress.note(&report.summary());
        }
        let done = match self.json {
            true => super::json(&report),
            false => outcome.as_ref().map_or_else(|_| String::new(), |()| report.place()),
        };
        outcome.map(|()| done.clone()).map_err(|error| CliError::Get { done, error })
    }
}

/// Threads for requests, and for what blocks on disks.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, GetError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(GetError::Runtime)
}
