//! What a download came to, for people and for programs.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    error::GetError,
    transfer::{From, Got},
};
use crate::cli::human;

/// The command's outcome.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// As asked for.
    pub(crate) what: String,
    /// The repository's state, where it is of the Hub.
    pub(crate) commit: Option<String>,
    /// The file, or the folder of several.
    pub(crate) path: Option<PathBuf>,
    /// Sums over the files.
    bytes: u64,
    received: u64,
    seconds: f64,
    pub(crate) files: Vec<FileReport>,
    error: Option<Failure>,
}

/// One file that is there now.
#[derive(Debug, Serialize)]
pub(crate) struct FileReport {
    /// In the repository, or the name.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// If it was checked.
    pub(crate) sha256: Option<String>,
    /// Whether it was there before, whole.
    pub(crate) kept: bool,
    #[serde(flatten)]
    pub(crate) got: Got,
}

#[derive(Debug, Serialize)]
struct Failure {
    code: u8,
    message: String,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(what: &str) -> Self {
        Self { what: what.to_owned(), ..Self::default() }
    }

    /// Sums up.
    pub(crate) fn end(&mut self, took: Duration, error: Option<&GetError>) {
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        self.bytes = self.files.iter().map(|file| file.bytes).sum();
        self.received = self.files.iter().map(|file| file.got.received).sum();
        self.seconds = (took.as_secs_f64() * 1000.0).round() / 1000.0;
        self.error = error.map(|error| Failure { code: error.code(), message: error.to_string() });
    }

    /// For standard output: where it is.
    pub(crate) fn place(&self) -> String {
        self.path.as_ref().map(|path| format!("{}\n", path.display())).unwrap_or_default()
    }

    /// For a person, in a line.
    pub(crate) fn summary(&self) -> String {
        let files = match self.files.len() {
            1 => String::new(),
            n => format!("{n} files, "),
        };
        let kept = match self.files.iter().filter(|file| file.kept).count() {
            0 => String::new(),
            n if n == self.files.len() => return format!("{files}{}: was there already", human::size(self.bytes)),
            n => format!(", {n} were there"),
        };
        let from: Vec<_> = self.files.iter().filter_map(|file| file.got.from).collect();
        let sum = |part: fn(&From) -> u64| human::size(from.iter().map(part).sum());
        let from = match from.is_empty() {
            true => String::new(),
            false => format!(
                " ({} from the store, {} from peers, {} from the origin)",
                sum(|from| from.store),
                sum(|from| from.peers),
                sum(|from| from.origin)
            ),
        };
        let rate = human::size((self.received as f64 / self.seconds.max(0.001)) as u64);
        format!("{files}{} in {:.1} s, {rate}/s{from}{kept}", human::size(self.bytes), self.seconds)
    }
}
