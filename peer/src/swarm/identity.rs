//! This node's key and certificate of the cluster: kept in files, joined for with a token, renewed at half its life.
//!
//! `DATA_DIR/swarm` holds `peer.key` (0600), `peer.pem` (the certificate, then the cluster's CA) and `ca.pem` (that CA
//! alone, for people and tools). The key stays the same for as long as its file does.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pondhawk_proto::v1::{JoinRequest, scheduler_client::SchedulerClient};
use pondhawk_scheduler::authority::{ParsedToken, TokenError, fingerprint, peer_name};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::chain::Chain;
use super::session::{
    SwarmStatus,
    channel::{self, ChannelError, Trust},
    status::unix_now,
};
pub(super) use crate::tls::pem::certificate as pem;
use crate::{
    tls::Authority,
    wire::{Identity, PeerId},
};

/// For the Join call, once connected.
const JOIN: Duration = Duration::from_secs(10);
/// How often the token's file is looked at, and the certificate's age.
const CHECK: Duration = Duration::from_secs(5);
/// First and longest rest after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Where a join token comes from.
#[derive(Clone)]
pub enum Token {
    /// A file, read at each try: it may be rotated.
    File(PathBuf),
    /// The scheduler in this process.
    Own(Arc<dyn Fn() -> Option<String> + Send + Sync>),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "Token({})", path.display()),
            Self::Own(_) => f.write_str("Token(own scheduler)"),
        }
    }
}

/// Who this node is to be, and where it may ask.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// DATA_DIR.
    pub data_dir: PathBuf,
    /// This node's name.
    pub name: PeerId,
    /// `host:port` of each scheduler of the cluster; any of them will do.
    pub schedulers: Vec<String>,
    /// None: only what the files hold.
    pub token: Option<Token>,
    /// The node's interception CA, for the cluster's root to sign; None: it is not.
    pub authority: Option<Arc<Authority>>,
}

/// Why this node has no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum IdentityError {
    #[error(
        "this node has no certificate of the cluster and no join token: put the output of `pondhawk-scheduler token` in a \
         file, and name it with --token FILE or scheduler.token"
    )]
    NoToken,
    #[error("cannot read the join token from {}: {source}: put the output of `pondhawk-scheduler token` there", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("the scheduler of this node gives no join token: see its log")]
    OwnToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the scheduler at {address} refused to let this node join: {why}")]
    Refused { address: String, why: String },
    #[error("the scheduler at {address} answered with a certificate that cannot be used: {why}")]
    Answer { address: String, why: &'static str },
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is open to other users (mode {mode:04o}): run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is damaged ({why}): remove it, release this node's name with `pondhawk-scheduler forget`, and it will join anew with a token", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
}

/// Keeps `identity` filled, forever: with what the files hold, what a token or renewal gives. Failures are shown in `status`
/// and tried again.
pub async fn keep(
    options: IdentityOptions,
    identity: watch::Sender<Option<Arc<Identity>>>,
    status: Vec<Arc<SwarmStatus>>,
) {
    let chain = Chain::new(options.authority.clone(), options.data_dir.clone());
    let mut keeper = Keeper { files: Files::new(&options.data_dir), options, stored: None, chain, identity, status };
    let mut rest = BACKOFF.0;
    loop {
        match keeper.step().await {
            Ok(()) => {
                keeper.status.iter().for_each(|status| _ = status.identity(None));
                rest = BACKOFF.0;
                sleep(CHECK).await;
            }
            Err(error) => {
                // Each of them hears of it.
                let news = keeper.status.iter().filter(|status| status.identity(Some(error.to_string()))).count();
                if news > 0 {
                    tracing::warn!(%error, "no certificate of the cluster");
                }
                sleep(jitter(rest)).await;
                rest = (rest * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Half to all of a duration, so that many nodes do not come at once.
pub(super) fn jitter(rest: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness: the full rest.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    rest - rest / 2 * u32::from(byte[0]) / 256
}

struct Keeper {
    options: IdentityOptions,
    files: Files,
    stored: Option<Stored>,
    chain: Chain,
    identity: watch::Sender<Option<Arc<Identity>>>,
    status: Vec<Arc<SwarmStatus>>,
}

/// A certificate and its key.
struct Stored {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    /// Unix seconds.
    not_before: u64,
    not_after: u64,
}

impl Keeper {
    /// Brings the identity up to date.
    async fn step(&mut self) -> Result<(), IdentityError> {
        if self.stored.is_none() {
            self.stored = self.files.load()?.filter(|stored| self.is_ours(stored));
        }
        let now = unix_now();
        let Some(stored) = self.stored.as_ref().filter(|stored| stored.not_after > now) else {
            self.publish(None);
            let token = self.token()?.ok_or(IdentityError::NoToken)?;
            return self.join_with(&token).await;
        };
        self.publish(Some(stored));
        let (root, half) = (fingerprint(stored.root()), stored.not_before.midpoint(stored.not_after));
        // A token of another cluster is the wish to change over. One that can't be read matters only once it is needed.
        if let Ok(Some(token)) = self.token()
            && ParsedToken::parse(&token).is_ok_and(|parsed| parsed.ca != root && parsed.expiry_unix > now)
        {
            tracing::info!("the join token is of another cluster than the certificate: joining that one");
            return self.join_with(&token).await;
        }
        if now >= half {
            return self.renew().await;
        }
        if self.chain.wanted()
            && let Err(error) = self.renew().await
        {
            // The certificate is good, so this is nobody's trouble but clients' that trust the root alone.
            tracing::debug!(%error, "the node's CA is not signed by the cluster yet");
        }
        Ok(())
    }

    fn is_ours(&self, stored: &Stored) -> bool {
        let named = stored.chain.first().and_then(peer_name);
        let ours = named.as_deref() == Some(self.options.name.as_str());
        if !ours {
            tracing::warn!(certificate = ?named, name = %self.options.name, "the certificate is of another name: joining anew");
        }
        ours
    }

    /// The token as it is now.
    fn token(&self) -> Result<Option<String>, IdentityError> {
        match &self.options.token {
            None => Ok(None),
            Some(Token::Own(make)) => make().map(Some).ok_or(IdentityError::OwnToken),
            Some(Token::File(path)) => match read_short(path) {
                Ok(token) => Ok(Some(token.trim().to_owned())),
                Err(source) => Err(IdentityError::TokenFile { path: path.clone(), source }),
            },
        }
    }

    async fn join_with(&mut self, token: &str) -> Result<(), IdentityError> {
        let parsed = ParsedToken::parse(token)?;
        if parsed.expiry_unix <= unix_now() {
            return Err(TokenError::Expired.into());
        }
        let key = self.files.key()?;
        let chain = self.call(&key, Trust::Pinned(parsed.ca), None, token).await?;
        self.adopt(chain, key, parsed.ca)
    }

    async fn renew(&mut self) -> Result<(), IdentityError> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let identity = stored.identity();
        let root = fingerprint(&identity.root);
        let key = self.files.key()?;
        let chain = self.call(&key, Trust::Root(identity.root.clone()), Some(&identity), "").await?;
        self.adopt(chain, key, root)
    }

    /// Asks the first scheduler that answers at all.
    async fn call(
        &mut self,
        key: &KeyPair,
        trust: Trust,
        identity: Option<&Identity>,
        token: &str,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let mut first = None;
        for address in self.options.schedulers.clone() {
            match self.call_one(&address, key, &trust, identity, token).await {
                Err(error @ IdentityError::Channel(ChannelError::Unreachable { .. } | ChannelError::Silent { .. })) => {
                    first.get_or_insert(error);
                }
                answered => return answered,
            }
        }
        Err(first.unwrap_or(IdentityError::NoToken))
    }

    async fn call_one(
        &mut self,
        address: &str,
        key: &KeyPair,
        trust: &Trust,
        identity: Option<&Identity>,
        token: &str,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let csr = CertificateParams::default().serialize_request(key)?;
        let link = channel::connect(address, trust, identity).await?;
        let mut request = JoinRequest {
            protocol_min: pondhawk_proto::PROTOCOL_MIN,
            protocol_max: pondhawk_proto::PROTOCOL_MAX,
            name: self.options.name.to_string(),
            token: token.to_owned(),
            csr: csr.der().to_vec().into(),
            ..JoinRequest::default()
        };
        self.chain.ask(&mut request);
        let mut client = SchedulerClient::new(link.channel.clone());
        let answer = timeout(JOIN, client.join(request)).await;
        let answer = answer.map_err(|_| ChannelError::Silent { address: address.to_owned() })?;
        let answer = answer.map_err(|refusal| match link.fault() {
            Some(fault) => IdentityError::Channel(fault),
            None => IdentityError::Refused { address: address.to_owned(), why: refusal.message().to_owned() },
        })?;
        let answer = answer.into_inner();
        self.chain.answer(&answer);
        Ok(answer.chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect())
    }

    /// Checks a new chain, stores it, and makes it known.
    fn adopt(&mut self, chain: Vec<CertificateDer<'static>>, key: KeyPair, ca: [u8; 32]) -> Result<(), IdentityError> {
        let bad = |why| IdentityError::Answer { address: self.options.schedulers.join(","), why };
        let stored = Stored::new(chain, key).map_err(bad)?;
        if fingerprint(stored.root()) != ca {
            return Err(bad("its CA is not the one of this cluster"));
        }
        if peer_name(&stored.chain[0]).as_deref() != Some(self.options.name.as_str()) {
            return Err(bad("it has another name"));
        }
        self.files.save(&stored.chain)?;
        tracing::info!(name = %self.options.name, until_unix = stored.not_after, "certificate of the cluster received");
        self.publish(Some(&stored));
        self.stored = Some(stored);
        Ok(())
    }

    /// Tells those who use it, if it is another than before.
    fn publish(&self, stored: Option<&Stored>) {
        self.status.iter().for_each(|status| status.certified(stored.map(|stored| stored.not_after)));
        self.identity.send_if_modified(|known| {
            let same = match (known.as_deref(), stored) {
                (Some(known), Some(stored)) => known.chain == stored.chain,
                (None, None) => true,
                _ => false,
            };
            if !same {
                *known = stored.map(|stored| Arc::new(stored.identity()));
            }
            !same
        });
    }
}

impl Stored {
    /// A chain that belongs to a key; the error says what is wrong with it.
    fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, &'static str> {
        if chain.len() < 2 {
            return Err("it comes without its CA");
        }
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|_| "it is no X.509 certificate")?;
        if leaf.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("it is not of this node's key");
        }
        let unix = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let (not_before, not_after) = (unix(leaf.validity().not_before), unix(leaf.validity().not_after));
        Ok(Self { key, not_before, not_after, chain })
    }

    fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a chain has at least two certificates")
    }

    fn identity(&self) -> Identity {
        Identity {
            chain: self.chain.clone(),
            key: PrivateKeyDer::Pkcs8(self.key.serialize_der().into()),
            root: self.root().clone(),
        }
    }
}

/// The directory; its few small files are read and written blocking.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("swarm") }
    }

    /// What is there, if it is whole: a certificate without its key is none.
    fn load(&self) -> Result<Option<Stored>, IdentityError> {
        let path = self.dir.join("peer.pem");
        let pem = match fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let stored = chain.map_err(|error| error.to_string()).and_then(|chain| {
            let key = self.key().map_err(|error| error.to_string())?;
            Stored::new(chain, key).map_err(str::to_owned)
        });
        if let Err(why) = &stored {
            tracing::warn!(path = %path.display(), why, "the stored certificate cannot be used: joining anew");
        }
        Ok(stored.ok())
    }

    /// The key; made first where there is none.
    fn key(&self) -> Result<KeyPair, IdentityError> {
        let path = self.dir.join("peer.key");
        let file = |source| IdentityError::File { path: path.clone(), source };
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                self.write("peer.key", 0o600, key.serialize_pem().as_bytes())?;
                return Ok(key);
            }
            Err(error) => return Err(file(error)),
        };
        let mode = fs::metadata(&path).map_err(file)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        KeyPair::from_pem(&pem).map_err(|error| IdentityError::Damaged { path, why: error.to_string() })
    }

    fn save(&self, chain: &[CertificateDer<'static>]) -> Result<(), IdentityError> {
        let root = chain.last().map(pem).unwrap_or_default();
        self.write("ca.pem", 0o644, root.as_bytes())?;
        self.write("peer.pem", 0o644, chain.iter().map(pem).collect::<String>().as_bytes())
    }

    /// Written beside and renamed, so that a crash leaves the old file or the new one.
    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), IdentityError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let written = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).and_then(|()| {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
            out.write_all(content)?;
            out.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(&self.dir)?.sync_all()
        });
        written.map_err(|source| IdentityError::File { path, source })
    }
}

/// Whether the node has a key already. Blocking.
pub fn has_key(data_dir: &Path) -> bool {
    data_dir.join("swarm/peer.key").exists()
}

/// A token's file is one line; what is longer is no token.
fn read_short(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(4096).read_to_string(&mut text)?;
    Ok(text)
}
