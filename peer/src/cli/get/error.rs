//! Why a download failed, and with which exit code.

use std::{io, path::PathBuf};

use super::{filter::PatternError, names, reference::ReferenceError};
use crate::swarm::{OriginError, TrustError};

/// The command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The environment says so.
    #[error("{0} is set, so the Hub is not asked: unset it to download")]
    Offline(&'static str),
    /// Not there, or not for this user.
    #[error("{what}: {why}")]
    Absent { what: String, why: String },
    /// The bytes are not those that were promised; nothing is left of them.
    #[error("{what} has the SHA-256 {got}, and not {wanted}: discarded")]
    Digest { what: String, wanted: String, got: String },
    /// The node found that the bytes are not those that the URL names.
    #[error("{what}: {why}: discarded")]
    Wrong { what: String, why: String },
    /// The Hub names files that would not stay where they belong: blames the Hub.
    #[error("the Hub names files that are no paths within a repository, and they were left out: {}", name_list(.0))]
    Names(Vec<String>),
    /// An answer that makes no sense: blames whoever gave it.
    #[error("{what}: {why}")]
    Answer { what: String, why: String },
    /// The node broke off or refuses.
    #[error("{what}: the node at {node}: {why}; --direct goes around it")]
    Node { what: String, node: String, why: String },
    /// The origin, or the way there.
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("SSL_CERT_FILE: {0}")]
    Trust(#[from] TrustError),
    /// The disk, or what stands in the way there.
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: io::Error },
    /// Others were not begun because of it.
    #[error("{first} ({left} more files were not downloaded)")]
    Several { first: Box<Self>, left: usize },
    #[error("no runtime: {0}")]
    Runtime(io::Error),
}

impl GetError {
    /// For `map_err`: the disk is to blame.
    pub(crate) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { path, source }
    }

    /// As `--help` lists them.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Reference(_) | Self::Pattern(_) => 2,
            Self::Absent { .. } => 3,
            Self::Digest { .. } | Self::Wrong { .. } => 4,
            Self::Several { first, .. } => first.code(),
            _ => 1,
        }
    }

    /// A refusal by the Hub or another server, in its own words where it has some. `code` is the Hub's X-Error-Code.
    pub(crate) fn refused(what: &str, status: u16, code: Option<&str>, said: Option<&str>) -> Self {
        let advice = match status {
            401 | 403 if code == Some("GatedRepo") => {
                " (access to a gated repository is asked for on its page; then HF_TOKEN names a token of that user)"
            }
            401 | 403 => " (a private or gated repository needs a token that may read it: HF_TOKEN)",
            _ => "",
        };
        let said = said.map_or_else(|| format!("answered {status}"), |said| format!("{said} ({status})"));
        let why = format!("{}{advice}", crate::cli::human::printable(&said));
        let what = what.to_owned();
        match status {
            401 | 403 | 404 | 410 | 451 => Self::Absent { what, why },
            _ => Self::Answer { what, why },
        }
    }
}

/// The first names, as Rust literals, and how many more there are.
fn name_list(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What a URL is called in messages: without its query, which may hold a signature.
pub(crate) fn label(url: &url::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    crate::cli::human::printable(&format!("{}://{host}{}", url.scheme(), names::decode(url.path())))
}
