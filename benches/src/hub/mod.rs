//! A Hub-shaped origin: the Hub, its CDN and what goes wrong with them, as a library for tests and as the binary
//! `pondhawk-hub`.
//!
//! It answers what huggingface_hub (0.17 to 2.x), git-lfs and plain HTTP clients ask: resolve with a redirect to a signed URL,
//! the CDN behind it, the model API, the LFS batch API, and, for repositories in [`CdnStyle::Xet`], hf_xet. Everything asked is counted per object, and faults can be
//! put on any object ([`Fault`]). Further paths: `/plain/{name}` on CDN hosts, `/_echo` (any method, the body comes back),
//! `/_hub/...` (control, see `control.rs`).

mod api;
mod body;
mod catalogue;
mod cdn;
mod cert;
mod content;
mod control;
mod faults;
mod gzip;
mod lfs;
mod manners;
mod pace;
mod query;
mod range;
mod resolve;
mod routes;
mod rules;
mod server;
mod signing;
mod stats;
mod wire;
mod xet;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, RwLock, RwLockReadGuard},
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

pub use self::{
    catalogue::{Access, CdnStyle, PlainRules},
    cert::CertificateError,
    content::{Content, seeded},
    faults::{Fault, FaultKind, Faults, Place},
    manners::Manners,
    pace::{Limits, Rates},
    rules::ApiRules,
    stats::{ObjectStats, Stats},
    xet::XetShape,
};
use self::{
    catalogue::{Catalogue, Home, NewFile, Object},
    content::{BlockCache, Source},
    server::Endpoint,
    signing::Signer,
    stats::StatsBook,
    xet::XetFile,
};

/// Host names that the hub plays.
#[derive(Clone, Debug)]
pub struct Names {
    /// Of the Hub.
    pub hub: String,
    /// Of the CDN; the first is the one in Location unless a repository has another [`CdnStyle`].
    pub cdn: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        let cdn = [
            "cdn-lfs.huggingface.co",
            "cdn-lfs-us-1.hf.co",
            "cdn-lfs.hf.co",
            "cas-bridge.xethub.hf.co",
            "us.gcp.cdn.hf.co",
            xet::CAS_HOST,
            xet::TRANSFER_HOST,
        ];
        Self { hub: "huggingface.co".into(), cdn: cdn.map(str::to_owned).into() }
    }
}

/// How a hub is started. The default listens with TLS and plain on free ports of 127.0.0.1.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// TLS listeners; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Listener without TLS, for control and plain HTTP.
    pub plain_listen: Option<SocketAddr>,
    /// Host names.
    pub names: Names,
    /// Port in Location; none: that of the first TLS listener. 443 is left out.
    pub cdn_port: Option<u16>,
    /// `https` or `http` in Location.
    pub cdn_scheme: String,
    /// How long signed URLs are good.
    pub url_lifetime: Duration,
    /// Key of the signatures.
    pub secret: Vec<u8>,
    /// Bytes of generated content kept in memory (0: generated each time, about 0.2 CPU-s a GiB).
    pub keep_in_memory: u64,
    /// Files of at least this many bytes are redirected to the CDN, smaller ones come from the Hub.
    pub large_from: u64,
    /// Threads that serve.
    pub threads: usize,
    /// Seed of the faults' probabilities.
    pub seed: u64,
}

impl Default for HubOptions {
    fn default() -> Self {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: vec![free],
            plain_listen: Some(free),
            names: Names::default(),
            cdn_port: None,
            cdn_scheme: "https".into(),
            url_lifetime: Duration::from_secs(3600),
            secret: b"pondhawk".to_vec(),
            keep_in_memory: 64 << 20,
            large_from: 64 << 10,
            threads: 2,
            seed: 1,
        }
    }
}

/// Why a hub did not start or take a file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address is in use or not this machine's.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No listener was asked for.
    #[error("a hub needs at least one listener")]
    NoListener,
    /// The certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No thread or runtime.
    #[error("cannot start the hub's threads: {0}")]
    Threads(#[source] io::Error),
    /// Content or CA file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// What the file is for.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running hub. Stops when dropped: listeners and connections are closed then.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    tls_addresses: Vec<SocketAddr>,
    plain_address: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts a hub on threads of its own; works inside and outside of a runtime.
    pub fn start(options: HubOptions) -> Result<Self, HubError> {
        let mut addresses = options.listen.iter().map(SocketAddr::ip).collect::<Vec<_>>();
        addresses.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)]);
        let identity = cert::identity(&certificate_names(&options.names), &addresses)?;
        let tls: Vec<TcpListener> = options.listen.iter().map(|address| bind(*address)).collect::<Result<_, _>>()?;
        let plain = options.plain_listen.map(bind).transpose()?;
        let tls_addresses: Vec<_> = tls.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let plain_address = plain.as_ref().and_then(|listener| listener.local_addr().ok());
        let first = tls_addresses.first().or(plain_address.as_ref()).ok_or(HubError::NoListener)?;
        let port = options.cdn_port.unwrap_or(first.port());
        let acceptor = TlsAcceptor::from(identity.tls);
        let endpoints = tls
            .into_iter()
            .map(|listener| Endpoint { listener, tls: Some(acceptor.clone()) })
            .chain(plain.map(|listener| Endpoint { listener, tls: None }))
            .collect();
        let threads = options.threads.max(1);
        let shared = Arc::new(Shared::new(options, port, identity.ca_pem));
        let (stop, thread) = spawn(threads, endpoints, &shared).map_err(HubError::Threads)?;
        Ok(Self { shared, tls_addresses, plain_address, stop: Some(stop), thread: Some(thread) })
    }

    /// Adds a file to a repository (`owner/name`, or `datasets/owner/name`) at a branch or commit; both come to be with their first
    /// file. Gives the content's SHA-256 in hexadecimal, for which the content is read once.
    ///
    /// Its label, in statistics and faults, is `{repo}/{path}` on `main` and `{repo}@{revision}/{path}` elsewhere.
    pub fn add_file(&self, repo: &str, revision: &str, path: &str, content: Content) -> Result<String, HubError> {
        self.shared.add_file(repo, revision, path, content, None)
    }

    /// As [`Hub::add_file`], but says whether it is redirected to the CDN rather than going by its size.
    pub fn add_file_as(
        &self,
        repo: &str,
        revision: &str,
        path: &str,
        content: Content,
        on_cdn: bool,
    ) -> Result<String, HubError> {
        self.shared.add_file(repo, revision, path, content, Some(on_cdn))
    }

    /// Adds an object at `/plain/{name}` of the CDN hosts, unsigned, with these headers; label `plain/{name}`.
    pub fn add_plain(&self, name: &str, content: Content, rules: PlainRules) -> Result<String, HubError> {
        let (source, sha256) = self.shared.open(name, content)?;
        self.shared.catalogue_mut().add_plain(name, source, &sha256, rules);
        Ok(sha256)
    }

    /// Who may read the repository from now on.
    pub fn set_access(&self, repo: &str, access: Access) {
        self.shared.catalogue_mut().repo_mut(repo).access = access;
    }

    /// How large files added to this repository from now on are named.
    pub fn set_style(&self, repo: &str, style: CdnStyle) {
        self.shared.catalogue_mut().set_style(repo, style);
    }

    /// Changes all bytes and the ETag of the object with this label; false: there is none.
    pub fn change(&self, label: &str) -> bool {
        self.shared.with_object(label, Object::change).is_some()
    }

    /// A fresh URL of the object's bytes, signed where it has a signature; none: no object has this label.
    /// Files that come from the Hub itself have an unsigned resolve-like URL of `main`.
    pub fn signed_url(&self, label: &str) -> Option<String> {
        self.signed_url_at(label, SystemTime::now())
    }

    /// As [`Hub::signed_url`], signed as if it were `at`: an expired one for a time long ago.
    pub fn signed_url_at(&self, label: &str, at: SystemTime) -> Option<String> {
        self.shared.with_object(label, |object| self.shared.signed_url(object, at))
    }

    /// Labels of the xorbs of a file in Xet's storage, in order; of another file none.
    pub fn xorbs(&self, label: &str) -> Vec<String> {
        let names = |object: &Object| {
            let xorbs = object.xet.iter().flat_map(|file| &file.xorbs);
            xorbs.map(|xorb| format!("xorb/{}", xorb.name)).collect()
        };
        self.shared.with_object(label, names).unwrap_or_default()
    }

    /// A fresh URL for these bytes of the xorb with this label.
    pub fn xorb_url(&self, label: &str, bytes: &std::ops::Range<u64>) -> Option<String> {
        let now = SystemTime::now();
        self.shared.with_object(label, |object| xet::xorb_url(&self.shared, &object.sha256, bytes, now))
    }

    /// The commit that a branch stands for.
    pub fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        Some(self.shared.catalogue().repo(repo)?.revision(revision)?.commit.clone())
    }

    /// Certificate of the CA that signed the hub's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.shared.ca_pem
    }

    /// Writes [`Hub::ca_pem`] to a file.
    pub fn write_ca(&self, path: &Path) -> Result<(), HubError> {
        std::fs::write(path, self.ca_pem())
            .map_err(|source| HubError::File { path: path.display().to_string(), source })
    }

    /// Faults in force.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What differs from one request or one caller to the next.
    pub fn manners(&self) -> &Manners {
        &self.shared.manners
    }

    /// Rate limits in force.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// How the API behaves.
    pub fn api_rules(&self) -> &ApiRules {
        &self.shared.api_rules
    }

    /// Counts since the start or the last reset.
    pub fn stats(&self) -> Stats {
        self.shared.stats.snapshot()
    }

    /// Sets all counts to zero.
    pub fn reset_stats(&self) {
        self.shared.stats.reset();
    }

    /// Addresses of the TLS listeners, in the order of the options.
    pub fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls_addresses
    }

    /// The first TLS listener.
    ///
    /// # Panics
    /// If the options had none.
    pub fn tls_address(&self) -> SocketAddr {
        *self.tls_addresses.first().expect("the options named a TLS listener")
    }

    /// Address of the listener without TLS.
    pub fn plain_address(&self) -> Option<SocketAddr> {
        self.plain_address
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has already ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has printed itself.
            let _ = thread.join();
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, HubError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| HubError::Listen { address, source })
}

fn spawn(
    threads: usize,
    endpoints: Vec<Endpoint>,
    shared: &Arc<Shared>,
) -> io::Result<(oneshot::Sender<()>, JoinHandle<()>)> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name("hub").enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new()
        .name("hub-main".into())
        .spawn(move || server::run(&runtime, endpoints, &shared, stopped))?;
    Ok((stop, thread))
}

fn certificate_names(names: &Names) -> Vec<String> {
    let mut all = vec![names.hub.clone(), "localhost".to_owned()];
    all.extend(names.cdn.iter().cloned());
    all.extend(["*.hf.co", "*.huggingface.co", "*.xethub.hf.co", "*.gcp.cdn.hf.co"].map(str::to_owned));
    all.dedup();
    all
}

/// What all connections use.
#[derive(Debug)]
struct Shared {
    names: Names,
    ca_pem: String,
    scheme: String,
    port: u16,
    url_lifetime: Duration,
    large_from: u64,
    signer: Signer,
    catalogue: RwLock<Catalogue>,
    cache: Arc<BlockCache>,
    faults: Faults,
    manners: Manners,
    limits: Limits,
    api_rules: ApiRules,
    stats: StatsBook,
}

impl Shared {
    fn new(options: HubOptions, port: u16, ca_pem: String) -> Self {
        Self {
            names: options.names,
            ca_pem,
            scheme: options.cdn_scheme,
            port,
            url_lifetime: options.url_lifetime,
            large_from: options.large_from,
            signer: Signer::new(&options.secret),
            catalogue: RwLock::default(),
            cache: Arc::new(BlockCache::new(options.keep_in_memory)),
            faults: Faults::new(options.seed),
            manners: Manners::default(),
            limits: Limits::default(),
            api_rules: ApiRules::default(),
            stats: StatsBook::default(),
        }
    }

    fn catalogue(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.catalogue.read().expect("no writer panics")
    }

    fn catalogue_mut(&self) -> std::sync::RwLockWriteGuard<'_, Catalogue> {
        self.catalogue.write().expect("no writer panics")
    }

    fn with_object<T>(&self, label: &str, use_it: impl FnOnce(&Object) -> T) -> Option<T> {
        let object = self.catalogue().objects().find(|object| object.label == label).cloned()?;
        Some(use_it(&object))
    }

    fn open(&self, path: &str, content: Content) -> Result<(Source, String), HubError> {
        let wrong = |source| HubError::File { path: path.to_owned(), source };
        let source = Source::open(content, &self.cache).map_err(wrong)?;
        let sha256 = query::hex(&source.sha256().map_err(wrong)?);
        Ok((source, sha256))
    }

    fn add_file(
        &self,
        repo: &str,
        revision: &str,
        path: &str,
        content: Content,
        on_cdn: Option<bool>,
    ) -> Result<String, HubError> {
        let again = content.clone();
        let (source, sha256) = self.open(path, content)?;
        let large = on_cdn.unwrap_or(source.len() >= self.large_from);
        let host = self.names.cdn.first().unwrap_or(&self.names.hub);
        let shape = self.catalogue().xet_shape(repo).filter(|_| large);
        let xet = shape.map(|shape| self.open_xet(path, again, shape)).transpose()?;
        self.catalogue_mut().add_file(NewFile { repo, revision, path, large, xet }, source, &sha256, host);
        Ok(sha256)
    }

    fn signed_url(&self, object: &Object, at: SystemTime) -> String {
        let disposition = resolve::disposition(&object.name);
        let (host, path, query) = match &object.home {
            Home::Hub => {
                let path =
                    format!("/{}", object.label.replacen(&object.name, &format!("resolve/main/{}", object.name), 1));
                (&self.names.hub, path, String::new())
            }
            Home::Xorb => return xet::xorb_url(self, object.sha256.as_str(), &(0..object.len()), at),
            Home::Plain(_) => {
                let host = self.names.cdn.first().unwrap_or(&self.names.hub);
                (host, format!("/{}", object.label), String::new())
            }
            Home::Cdn { host, path, amz: true } => {
                (host, path.clone(), format!("?{}", self.signer.amz(path, at, self.url_lifetime, &disposition)))
            }
            Home::Cdn { host, path, amz: false } => {
                let expires = at.duration_since(UNIX_EPOCH).unwrap_or_default() + self.url_lifetime;
                let query = self.signer.cloudfront(path, expires.as_secs(), &disposition, object.content_type());
                (host, path.clone(), format!("?{query}"))
            }
        };
        format!("{}{path}{query}", self.base(host))
    }

    /// Scheme, host and port.
    fn base(&self, host: &str) -> String {
        let standard = if self.scheme == "https" { 443 } else { 80 };
        let port = if self.port == standard { String::new() } else { format!(":{}", self.port) };
        format!("{}://{host}{port}", self.scheme)
    }

    fn open_xet(&self, path: &str, content: Content, shape: XetShape) -> Result<XetFile, HubError> {
        let wrong = |source| HubError::File { path: path.to_owned(), source };
        let source = Source::open(content, &self.cache).map_err(wrong)?;
        XetFile::new(source, shape).map_err(wrong)
    }
}
