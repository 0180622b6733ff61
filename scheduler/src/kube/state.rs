//! The state directory of several schedulers, which they share by way of a Secret.
//!
//! What is in a directory was in the Secret before: a new state is made aside, written to the Secret only if that is still the
//! empty one which was read, and put into the directory when it is there. So of schedulers that start at once one makes the
//! cluster and the others take it, and what a crash leaves half done the next start completes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::api::{ACCOUNT_DIR, Api, ApiError};
use super::shared::{Differs, Files, Kept, NoBase64, agreed, files, is_whole};
use crate::authority::{self, Authority, AuthorityError, ParsedToken, hex, lock, write};
use crate::hosts::Suffixes;
use crate::page;
use crate::service::random;
use crate::trust::{TrustError, TrustRoot};
use crate::webhook::certificate::{self, CertificateError};

/// Where a new state is made, in the state directory.
const ASIDE: &str = "state.new";
/// First and longest rest while the start waits for the API server.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Between two looks at the Secret: a token that was renewed is good everywhere within this.
const LOOK: Duration = Duration::from_secs(30);

/// Tries of a command to change the Secret while schedulers change it, too.
const COMMAND_TRIES: u32 = 8;
/// Longest rest between two such tries.
const CONFLICT_REST: Duration = Duration::from_millis(400);

/// Changes something in a state directory.
pub type Renewal<'a> = &'a (dyn Fn(&Path) -> Result<(), AuthorityError> + Sync);

/// The Secret, from the command line.
#[derive(Args, Clone, Debug)]
pub struct StateFlags {
    /// Share the state with other schedulers by way of this Secret of the scheduler's namespace: the CA, the trust root, the
    /// tokens. It must be there, empty at first, and the pod's service account be allowed to get and patch it. Whoever may
    /// read it has the keys of the cluster.
    #[arg(long, value_name = "NAME", env = "PONDHAWK_SCHEDULER_KUBE_STATE_SECRET")]
    pub(super) kube_state_secret: Option<String>,
    /// Where the pod's service account is.
    #[arg(long, value_name = "DIR", env = "PONDHAWK_SCHEDULER_KUBE_ACCOUNT", default_value = ACCOUNT_DIR)]
    pub(super) kube_account: PathBuf,
}

impl StateFlags {
    /// Has `renew` change something in the state directory `dir`; where schedulers share it, for all of them. `renew` may be
    /// called more than once, each time with a directory that has the newest state. Blocking.
    ///
    /// # Errors
    /// The API server cannot be reached, or other schedulers change the state at each try: nothing is renewed.
    pub fn renew(&self, dir: &Path, renew: Renewal<'_>) -> Result<(), StateError> {
        let Some(secret) = self.kube_state_secret.clone() else { return Ok(renew(dir)?) };
        let (api, dir) = (self.api()?, dir.to_owned());
        let (hosts, turn) = (Suffixes::hub(), Arc::default());
        let state = State { api, secret, dir, hosts, webhook: false, token_secret: None, turn };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(StateError::Runtime)?.block_on(state.renew_in_turn(renew, COMMAND_TRIES))
    }

    /// Whether schedulers share their state.
    pub fn is_shared(&self) -> bool {
        self.kube_state_secret.is_some()
    }

    pub(super) fn api(&self) -> Result<Api, ApiError> {
        Api::of_pod(&self.kube_account, |name| std::env::var(name).ok())
    }
}

/// Why a state is not shared.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum StateError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the Secret {secret} holds no base64 under {name}")]
    Secret { secret: String, name: &'static str },
    #[error(
        "{dir} and the Secret {secret} are of different clusters: {name} is {here} in the directory and {there} in the Secret; to join the Secret's, empty the directory (or delete its volume claim); to keep the directory's, stop all schedulers, take `data` out of the Secret, and start this one first"
    )]
    Differs { dir: String, secret: String, name: &'static str, here: String, there: String },
    #[error(
        "the Secret {secret} is empty, but {token} has a token of a cluster whose CA is {ca}: waiting for its scheduler to put its state there (restart it with --kube-state-secret); if it is gone for good, empty {token}"
    )]
    Founded { secret: String, token: String, ca: String },
    #[error("the Secret {0} holds no state yet: start the scheduler once")]
    Empty(String),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl StateError {
    /// Whether it may be over by itself.
    fn passes(&self) -> bool {
        matches!(self, Self::Api(_) | Self::Founded { .. } | Self::Secret { .. })
    }
}

/// A state directory and its Secret.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) api: Api,
    pub(super) secret: String,
    pub(super) dir: PathBuf,
    /// Which the trust root is for, if it has to be made.
    pub(super) hosts: Suffixes,
    /// Whether the webhook's CA belongs to it.
    pub(super) webhook: bool,
    /// The Secret with a join token, which tells whether there is a cluster already.
    pub(super) token_secret: Option<String>,
    /// Held from reading the Secret until the directory is as it: what is older never replaces what is newer.
    pub(super) turn: Arc<Mutex<()>>,
}

impl State {
    /// Makes directory and Secret the same, and waits until that is possible. A directory that has all is enough while the API
    /// server is away.
    pub(super) async fn open(&self) -> Result<(), StateError> {
        let mut rest = PATIENCE.0;
        let mut told = String::new();
        loop {
            let error = match self.agree().await {
                Ok(()) => return Ok(()),
                Err(StateError::Api(error)) if error.is_conflict() => {
                    tracing::info!(secret = self.secret, "another scheduler was first: taking its state");
                    continue;
                }
                Err(error) if error.passes() => error,
                Err(error) => return Err(error),
            };
            if matches!(&error, StateError::Api(error) if error.is_away()) && is_whole(&self.local()?, self.webhook) {
                tracing::warn!(secret = self.secret, %error, "not compared with the Secret yet: starting with what is here");
                return Ok(());
            }
            let why = error.to_string();
            if told != why {
                tracing::warn!(secret = self.secret, error = why, "waiting for the state that schedulers share");
                told = why;
            }
            sleep(rest).await;
            rest = (rest * 2).min(PATIENCE.1);
        }
    }

    /// Takes what was renewed elsewhere, for ever.
    pub(super) async fn follow(self) {
        let mut told = String::new();
        loop {
            sleep(LOOK).await;
            let why = self.agree().await.err().map_or_else(String::new, |error| error.to_string());
            if told != why && !why.is_empty() {
                tracing::warn!(
                    secret = self.secret,
                    error = why,
                    "the state is not compared with the Secret: trying again"
                );
            }
            told = why;
        }
    }

    /// One look at the Secret, and what follows from it.
    async fn agree(&self) -> Result<(), StateError> {
        let _turn = self.turn.lock().await;
        let (kept, local) = (self.kept().await?, self.local()?);
        let mut all = self.agreed(&local, &kept)?;
        if !is_whole(&all, self.webhook) {
            if !all.contains_key(authority::CERT) {
                self.nobody_else().await?;
            }
            all = self.aside(&all, |dir| self.complete(dir))?;
        }
        self.put(&kept, &local, &all).await
    }

    /// Has `renew` change something in a state directory, and everything else follow: the Secret, then the directory. Begins anew
    /// where another scheduler has changed the Secret meanwhile, at most `tries` times.
    pub(crate) async fn renew_in_turn(&self, renew: Renewal<'_>, tries: u32) -> Result<(), StateError> {
        let mut left = tries;
        loop {
            left = left.saturating_sub(1);
            match self.renew(renew).await {
                Err(StateError::Api(error)) if error.is_conflict() && left > 0 => {
                    let part = CONFLICT_REST / u32::try_from(random() % 8 + 1).unwrap_or(1);
                    sleep(part).await;
                }
                ended => return ended,
            }
        }
    }

    async fn renew(&self, renew: Renewal<'_>) -> Result<(), StateError> {
        let _turn = self.turn.lock().await;
        let (kept, local) = (self.kept().await?, self.local()?);
        if !kept.files.contains_key(authority::CERT) {
            return Err(StateError::Empty(self.secret.clone()));
        }
        let all = self.agreed(&local, &kept)?;
        let all = self.aside(&all, |dir| Ok(renew(dir)?))?;
        self.put(&kept, &local, &all).await
    }

    async fn kept(&self) -> Result<Kept, StateError> {
        let no_base64 = |NoBase64(name)| StateError::Secret { secret: self.secret.clone(), name };
        Kept::parse(&self.api.get(&self.path(&self.secret)).await?).map_err(no_base64)
    }

    fn agreed(&self, local: &Files, kept: &Kept) -> Result<Files, StateError> {
        agreed(local, &kept.files).map_err(|Differs { name, here, there }| {
            let dir = self.dir.display().to_string();
            StateError::Differs { dir, secret: self.secret.clone(), name, here, there }
        })
    }

    /// Of a cluster that has one scheduler the others may come up first when there are to be more.
    async fn nobody_else(&self) -> Result<(), StateError> {
        let Some(name) = &self.token_secret else { return Ok(()) };
        let secret = self.api.get(&self.path(name)).await?;
        let token = super::token_in(&secret).and_then(|token| ParsedToken::parse(&token).ok());
        let founded = |token: ParsedToken| StateError::Founded {
            secret: self.secret.clone(),
            token: name.clone(),
            ca: hex(&token.ca[..16]),
        };
        token.map_or(Ok(()), |token| Err(founded(token)))
    }

    /// Makes in a directory what it lacks.
    fn complete(&self, dir: &Path) -> Result<(), StateError> {
        Authority::open(dir)?;
        TrustRoot::open(dir, &self.hosts)?;
        page::token(dir, false)?;
        if self.webhook {
            certificate::make(dir, OffsetDateTime::now_utc())?;
        }
        Ok(())
    }

    /// What becomes of these files in a directory of their own.
    fn aside(&self, all: &Files, change: impl FnOnce(&Path) -> Result<(), StateError>) -> Result<Files, StateError> {
        let _turn = self.lock()?;
        let aside = self.dir.join(ASIDE);
        remove(&aside)?;
        DirBuilder::new().mode(0o700).create(&aside).map_err(|source| authority::file(&aside, source))?;
        for shared in files(true) {
            if let Some(content) = all.get(shared.name) {
                write(&aside.join(shared.name), shared.mode, content)?;
            }
        }
        let changed = change(&aside).and_then(|()| Ok(read(&aside)?));
        remove(&aside)?;
        changed
    }

    /// The Secret first: what is in the directory counts as known to all.
    async fn put(&self, kept: &Kept, local: &Files, all: &Files) -> Result<(), StateError> {
        if let Some(patch) = kept.patch(all) {
            self.api.patch(&self.path(&self.secret), &patch).await?;
            let names: Vec<&str> =
                patch["data"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            tracing::info!(secret = self.secret, files = names.join(","), "state put into the Secret");
        }
        let new: Vec<_> = files(true).filter(|shared| all.get(shared.name) != local.get(shared.name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let _turn = self.lock()?;
        for shared in &new {
            if let Some(content) = all.get(shared.name) {
                write(&self.dir.join(shared.name), shared.mode, content)?;
            }
        }
        let names: Vec<&str> = new.iter().map(|shared| shared.name).collect();
        tracing::info!(secret = self.secret, files = names.join(","), "state as in the Secret");
        Ok(())
    }

    fn local(&self) -> Result<Files, AuthorityError> {
        read(&self.dir)
    }

    fn lock(&self) -> Result<fs::File, AuthorityError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| authority::file(&self.dir, source))?;
        lock(&self.dir)
    }

    fn path(&self, secret: &str) -> String {
        format!("/api/v1/namespaces/{}/secrets/{secret}", self.api.namespace())
    }
}

/// The files in a directory that schedulers share.
fn read(dir: &Path) -> Result<Files, AuthorityError> {
    let mut found = Files::new();
    for shared in files(true) {
        let path = dir.join(shared.name);
        match fs::read(&path) {
            Ok(content) => drop(found.insert(shared.name, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(authority::file(&path, source)),
        }
    }
    Ok(found)
}

fn remove(dir: &Path) -> Result<(), AuthorityError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(authority::file(dir, error)),
        _ => Ok(()),
    }
}
