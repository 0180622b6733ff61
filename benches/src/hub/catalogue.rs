//! What the hub holds: repositories with revisions, and plain objects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use aws_lc_rs::digest;

use super::{
    content::Source,
    query,
    xet::{XetFile, XetShape},
};

/// Who may read a repository, with which bearer token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    #[default]
    Public,
    /// Bearer of the token; to others the repository does not exist (401, RepoNotFound).
    Private(String),
    /// Bearer of the token; others are told that it is gated (401 without a token, 403 with another).
    Gated(String),
}

/// How large files of a repository are named on the CDN. Applies to files added afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CdnStyle {
    /// `/repos/xx/yy/{repo}/{sha256}` with a CloudFront signature.
    Lfs {
        /// Host in Location.
        host: String,
    },
    /// In Xet's storage: hf_xet is offered, and other clients get a bridge URL on `cas-bridge.xethub.hf.co`.
    Xet(XetShape),
    /// `/xet-bridge-us/{repo id}/{xet hash}` with X-Amz-*: the hash is no SHA-256 of the content.
    Bridge {
        /// Host in Location.
        host: String,
    },
}

/// Response headers of a plain object, for tests of what may be cached.
#[derive(Clone, Debug, Default)]
pub struct PlainRules {
    /// ETag; a weak one if it starts with `W/`. The hub puts the quotes.
    pub etag: Option<String>,
    /// Last-Modified, as it is.
    pub last_modified: Option<String>,
    /// Cache-Control, as it is.
    pub cache_control: Option<String>,
    /// Vary, as it is.
    pub vary: Option<String>,
    /// Bearer token without which the answer is 401.
    pub token: Option<String>,
}

/// One file.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) label: String,
    pub(super) name: String,
    pub(super) sha256: String,
    pub(super) source: Source,
    pub(super) home: Home,
    /// For hf_xet.
    pub(super) xet: Option<Arc<XetFile>>,
    generation: AtomicU8,
}

/// Where an object's bytes are served.
#[derive(Debug)]
pub(super) enum Home {
    /// By the Hub itself.
    Hub,
    /// By the CDN, under a signed URL.
    Cdn { host: String, path: String, amz: bool },
    /// By the transfer host, under URLs that are signed for a range.
    Xorb,
    /// By the CDN under /plain/, unsigned.
    Plain(PlainRules),
}

impl Object {
    pub(super) fn new(label: String, name: String, sha256: String, source: Source, home: Home) -> Self {
        Self { label, name, sha256, source, home, xet: None, generation: AtomicU8::new(0) }
    }

    pub(super) fn len(&self) -> u64 {
        self.source.len()
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Changes every byte and the ETag of responses from now on.
    pub(super) fn change(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// The ETag with its quotes, as of that generation.
    pub(super) fn etag(&self, generation: u8) -> Option<String> {
        let tag = match &self.home {
            Home::Hub => &self.sha256[..40],
            Home::Cdn { .. } | Home::Xorb => &self.sha256[..32],
            Home::Plain(rules) => rules.etag.as_deref()?,
        };
        let changed = if generation == 0 { String::new() } else { format!("-{generation}") };
        Some(match tag.strip_prefix("W/") {
            Some(weak) => format!("W/\"{weak}{changed}\""),
            None => format!("\"{tag}{changed}\""),
        })
    }

    pub(super) fn content_type(&self) -> &'static str {
        match self.name.rsplit('.').next() {
            Some("json") => "application/json",
            Some("txt" | "md") => "text/plain; charset=utf-8",
            _ => "binary/octet-stream",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Catalogue {
    repos: BTreeMap<String, Repo>,
    cdn: HashMap<String, Arc<Object>>,
}

#[derive(Debug, Default)]
pub(super) struct Repo {
    pub(super) access: Access,
    style: Option<CdnStyle>,
    revisions: BTreeMap<String, Revision>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Arc<Object>>,
}

impl Repo {
    /// A branch by its name or a commit by its 40 digits.
    pub(super) fn revision(&self, wanted: &str) -> Option<&Revision> {
        self.revisions.get(wanted).or_else(|| self.revisions.values().find(|revision| revision.commit == wanted))
    }

    /// Those of its files that are in Xet's storage.
    pub(super) fn xet_files(&self) -> impl Iterator<Item = &Arc<XetFile>> {
        self.revisions.values().flat_map(|revision| revision.files.values()).filter_map(|object| object.xet.as_ref())
    }

    /// The object with this SHA-256 in any revision.
    pub(super) fn by_sha256(&self, oid: &str) -> Option<&Arc<Object>> {
        self.revisions.values().flat_map(|revision| revision.files.values()).find(|object| object.sha256 == oid)
    }
}

impl Catalogue {
    pub(super) fn repo(&self, repo: &str) -> Option<&Repo> {
        self.repos.get(repo)
    }

    pub(super) fn repo_mut(&mut self, repo: &str) -> &mut Repo {
        self.repos.entry(repo.to_owned()).or_default()
    }

    /// The object behind a path of the CDN.
    pub(super) fn on_cdn(&self, path: &str) -> Option<&Arc<Object>> {
        self.cdn.get(path)
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        let repos = self.repos.values().flat_map(|repo| repo.revisions.values());
        let plain = self.cdn.values().filter(|object| matches!(object.home, Home::Plain(_) | Home::Xorb));
        repos.flat_map(|revision| revision.files.values()).chain(plain)
    }

    pub(super) fn set_style(&mut self, repo: &str, style: CdnStyle) {
        self.repo_mut(repo).style = Some(style);
    }

    /// How files added to this repository are packed for Xet; none: they are not.
    pub(super) fn xet_shape(&self, repo: &str) -> Option<XetShape> {
        match self.repos.get(repo)?.style {
            Some(CdnStyle::Xet(shape)) => Some(shape),
            _ => None,
        }
    }

    /// Adds a file to a revision, which comes to be with its first file; replaces a file of the same path.
    pub(super) fn add_file(&mut self, spec: NewFile<'_>, source: Source, sha256: &str, default_host: &str) {
        let NewFile { repo, revision, path, large, xet } = spec;
        let style = self.repos.get(repo).and_then(|repo| repo.style.clone());
        let home = match &xet {
            Some(file) => bridge("cas-bridge.xethub.hf.co".to_owned(), repo, &file.name),
            None if large => cdn_home(repo, sha256, style, default_host),
            None => Home::Hub,
        };
        let label = if revision == "main" { format!("{repo}/{path}") } else { format!("{repo}@{revision}/{path}") };
        let mut object = Object::new(label, path.to_owned(), sha256.to_owned(), source, home);
        object.xet = xet.map(Arc::new);
        if let Some(file) = &object.xet {
            self.add_xorbs(file);
        }
        let object = Arc::new(object);
        if let Home::Cdn { path, .. } = &object.home {
            self.cdn.insert(path.clone(), Arc::clone(&object));
        }
        let entry = self.repo_mut(repo).revisions.entry(revision.to_owned()).or_default();
        if entry.commit.is_empty() {
            entry.commit = commit_of(repo, revision);
        }
        entry.files.insert(path.to_owned(), object);
    }

    fn add_xorbs(&mut self, file: &XetFile) {
        for xorb in &file.xorbs {
            let source = Source::of_xorb(file.bytes_of(xorb));
            let (label, name) = (format!("xorb/{}", xorb.name), xorb.name.clone());
            let object = Object::new(label, name.clone(), name.clone(), source, Home::Xorb);
            self.cdn.insert(format!("/xorbs/default/{name}"), Arc::new(object));
        }
    }

    pub(super) fn add_plain(&mut self, name: &str, source: Source, sha256: &str, rules: PlainRules) {
        let label = format!("plain/{name}");
        let object = Object::new(label, name.to_owned(), sha256.to_owned(), source, Home::Plain(rules));
        self.cdn.insert(format!("/plain/{name}"), Arc::new(object));
    }
}

/// Where a file goes.
#[derive(Debug)]
pub(super) struct NewFile<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) path: &'a str,
    /// Redirected to the CDN, rather than served by the Hub.
    pub(super) large: bool,
    pub(super) xet: Option<XetFile>,
}

fn cdn_home(repo: &str, sha256: &str, style: Option<CdnStyle>, default_host: &str) -> Home {
    let id = sha256_hex(repo);
    match style.unwrap_or_else(|| CdnStyle::Lfs { host: default_host.to_owned() }) {
        CdnStyle::Lfs { host } => {
            Home::Cdn { host, path: format!("/repos/{}/{}/{id}/{sha256}", &id[..2], &id[2..4]), amz: false }
        }
        CdnStyle::Bridge { host } => bridge(host, repo, &sha256_hex(&format!("xet {sha256}"))),
        // Only with its hash, which the caller has.
        CdnStyle::Xet(_) => Home::Hub,
    }
}

fn bridge(host: String, repo: &str, hash: &str) -> Home {
    Home::Cdn { host, path: format!("/xet-bridge-us/{}/{hash}", &sha256_hex(repo)[..24]), amz: true }
}

/// A revision named by a commit keeps it; a branch gets a commit of its own.
fn commit_of(repo: &str, revision: &str) -> String {
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_commit { revision.to_owned() } else { sha256_hex(&format!("{repo} {revision}"))[..40].to_owned() }
}

fn sha256_hex(text: &str) -> String {
    query::hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}
