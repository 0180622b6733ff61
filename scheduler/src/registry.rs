//! Which key owns which name in the cluster, which join tokens are used up, and who is denied.
//!
//! A name belongs to the key that joined under it first, until [`NAME_HOLD`] after the end of the key's last certificate, or
//! until an operator releases it. Everything is in one file of the state directory, `peers.json`, or where schedulers share
//! their state, in their Secret: a change is durable, and known to all who share it, before it is answered. One task commits
//! the changes of all joins that wait at a time. Commands of the operator change the file from another process; the task
//! looks every [`LOOK`] whether it was replaced.

pub mod command;
mod entries;
mod file;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

pub use entries::{Admission, Denial, KeyDigest, MAX_REASON, NAME_HOLD, PeerSubject, RegistryRefusal};
pub(crate) use file::FILE;

use crate::authority::AuthorityError;
use crate::kube::State;
use crate::service::unix_now;
use entries::{Bounds, Change, Entries};
use file::{FileStamp, Outcomes};

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(2);
/// Admissions that wait to be committed; past it joins wait for a place.
const QUEUE: usize = 1_024;
/// Tries to write the state that schedulers share, when another one writes it at the same time.
const SHARED_TRIES: u32 = 8;

/// Why a peer is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// By what the registry says.
    #[error(transparent)]
    Refused(#[from] RegistryRefusal),
    /// It cannot be written.
    #[error("the scheduler cannot record this node's name now ({0}): it will be tried again")]
    Unavailable(String),
}

/// The registry of one scheduler that runs.
pub struct PeerRegistry {
    dir: PathBuf,
    entries: watch::Sender<Arc<Entries>>,
    /// Changes when a peer may have lost its place.
    withdrawn: watch::Sender<Arc<[Denial]>>,
    requests: mpsc::Sender<Request>,
    queue: tokio::sync::Mutex<mpsc::Receiver<Request>>,
    /// The state that it is shared by; none: it is this scheduler's own.
    shared: OnceLock<State>,
}

struct Request {
    admission: Admission,
    answer: oneshot::Sender<Result<(), RegistryError>>,
}

impl PeerRegistry {
    /// Reads what is in the state directory. Blocking.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let entries = file::read(dir)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        Ok(Self {
            dir: dir.to_owned(),
            withdrawn: watch::Sender::new(entries.denials.as_slice().into()),
            entries: watch::Sender::new(Arc::new(entries)),
            requests,
            queue: tokio::sync::Mutex::new(queue),
            shared: OnceLock::new(),
        })
    }

    /// Has the registry kept in the state that schedulers share, from now on.
    pub(crate) fn share(&self, state: State) {
        // It is shared once, at the start.
        drop(self.shared.set(state));
    }

    /// Whether a peer may take part now; changes nothing.
    pub fn check(&self, name: &str, key: &KeyDigest) -> Result<(), RegistryRefusal> {
        self.entries.borrow().check(name, key)
    }

    /// Admits a peer: gives the name to its key if no other key owns it, counts the use of the token, and returns when that
    /// is durable. Needs [`Self::run`] beside it.
    pub async fn admit(&self, admission: Admission) -> Result<(), RegistryError> {
        admission.check_token_name()?;
        if self.entries.borrow().is_recorded(&admission) {
            return Ok(self.check(&admission.name, &admission.key)?);
        }
        let (answer, answered) = oneshot::channel();
        let stopped = || RegistryError::Unavailable("the scheduler stops".to_owned());
        self.requests.send(Request { admission, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Releases a name before the scheduler serves; that it belongs to no key is no error. Blocking.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn release(&self, name: &str) -> Result<(), AuthorityError> {
        let release = [Change::Release(name.to_owned())];
        let (entries, _) = file::change(&self.dir, &release, unix_now(), Bounds::DIRECTORY)?;
        self.publish(entries);
        Ok(())
    }

    /// The denials, whenever a peer may have lost its place: by a denial, or because its name was released.
    pub(crate) fn withdrawals(&self) -> watch::Receiver<Arc<[Denial]>> {
        self.withdrawn.subscribe()
    }

    /// Commits what [`Self::admit`] asks for, and looks for changes by others, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut queue = self.queue.lock().await;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = None;
        loop {
            tokio::select! {
                Some(first) = queue.recv() => {
                    let mut batch = vec![first];
                    while batch.len() < QUEUE && let Ok(next) = queue.try_recv() {
                        batch.push(next);
                    }
                    self.commit(batch).await;
                }
                _ = looks.tick() => self.reload(&mut seen).await,
            }
        }
    }

    async fn commit(&self, batch: Vec<Request>) {
        let (changes, answers): (Vec<Change>, Vec<_>) =
            batch.into_iter().map(|request| (Change::Admit(request.admission), request.answer)).unzip();
        let changed = match self.shared.get() {
            None => change_in(self.dir.clone(), changes).await,
            Some(state) => change_shared(state, &changes).await,
        };
        let outcomes = match changed {
            Ok((entries, outcomes)) => {
                self.publish(entries);
                outcomes.into_iter().map(|outcome| outcome.map_err(RegistryError::from)).collect()
            }
            Err(error) => {
                tracing::error!(error, "names and tokens cannot be recorded: nodes cannot join");
                vec![Err(RegistryError::Unavailable(error)); answers.len()]
            }
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // The peer may have gone.
            drop(answer.send(outcome));
        }
    }

    async fn reload(&self, seen: &mut Option<FileStamp>) {
        let (dir, before) = (self.dir.clone(), *seen);
        let reading = tokio::task::spawn_blocking(move || {
            let stamp = file::stamp(&dir);
            (stamp, (before != Some(stamp)).then(|| file::read(&dir)))
        });
        let Ok((stamp, read)) = reading.await else { return };
        *seen = Some(stamp);
        match read {
            Some(Ok(entries)) => self.publish(entries),
            Some(Err(error)) => tracing::error!(%error, "the registry of names is used as it was before"),
            None => {}
        }
    }

    fn publish(&self, entries: Entries) {
        let before = self.entries.borrow().clone();
        if *before == entries {
            return;
        }
        let withdraws = entries.withdraws_from(&before);
        let denials: Option<Arc<[Denial]>> = withdraws.then(|| match entries.denials == before.denials {
            // Sessions compare the list, and send it only when it differs.
            true => self.withdrawn.borrow().clone(),
            false => entries.denials.as_slice().into(),
        });
        self.entries.send_replace(Arc::new(entries));
        if let Some(denials) = denials {
            tracing::info!(denied = denials.len(), "the registry of names was changed");
            self.withdrawn.send_replace(denials);
        }
    }
}

async fn change_in(dir: PathBuf, changes: Vec<Change>) -> Result<(Entries, Outcomes), String> {
    let changing = tokio::task::spawn_blocking(move || file::change(&dir, &changes, unix_now(), Bounds::DIRECTORY));
    changing.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn change_shared(state: &State, changes: &[Change]) -> Result<(Entries, Outcomes), String> {
    let changed = std::sync::Mutex::new(None);
    let change = |dir: &Path| {
        let made = file::change(dir, changes, unix_now(), Bounds::SECRET)?;
        *changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(made);
        Ok(())
    };
    state.renew_in_turn(&change, SHARED_TRIES).await.map_err(|error| error.to_string())?;
    let made = changed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    made.ok_or_else(|| "nothing was changed".to_owned())
}
