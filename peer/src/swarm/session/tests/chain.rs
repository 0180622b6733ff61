//! The node's interception CA is signed by the cluster's root with the join, or the node learns why not.

use pondhawk_scheduler::trust::RootInfo;

use super::*;
use crate::{
    swarm::identity::{self, IdentityOptions},
    tls::{Authority, Suffixes},
};

/// What keeps a certificate of the cluster for a node with this CA.
struct Keeping {
    identity: watch::Receiver<Option<Arc<Identity>>>,
    task: JoinHandle<()>,
}

impl Keeping {
    fn start(dir: &Path, scheduler: SocketAddr, token: Option<PathBuf>, authority: Option<&Arc<Authority>>) -> Self {
        let options = IdentityOptions {
            data_dir: dir.to_owned(),
            name: PeerId::new("node-a").unwrap(),
            schedulers: vec![scheduler.to_string()],
            token: token.map(Token::File),
            authority: authority.cloned(),
        };
        let (sender, identity) = watch::channel(None);
        let status = Arc::new(SwarmStatus::new(&options.schedulers[0]));
        Self { identity, task: tokio::spawn(identity::keep(options, sender, vec![status])) }
    }

    async fn certified(&mut self) {
        soon(self.identity.wait_for(Option::is_some)).await.unwrap();
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn authority(dir: &Path, hosts: &[&str]) -> Arc<Authority> {
    Arc::new(Authority::open(dir, &Suffixes::new(hosts).unwrap()).unwrap())
}

async fn chained(authority: &Authority) -> Vec<u8> {
    until(|| authority.cluster_root()).await.der.to_vec()
}

#[tokio::test]
async fn the_first_join_makes_the_node_s_ca_chain_to_the_scheduler_s_root() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = Running::new(&state).await;
    let ca = authority(dir.path(), &["cdn-lfs.hf.co", "us.cdn.hf.co"]);
    let _keeping = Keeping::start(dir.path(), running.address, Some(running.token(dir.path())), Some(&ca));
    let root = RootInfo::of(state.path()).unwrap().expect("the scheduler has made its root");
    assert_eq!(chained(&ca).await, root.der.to_vec());
}

#[tokio::test]
async fn a_node_that_had_joined_before_is_signed_without_a_token() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = Running::new(&state).await;
    let mut keeping = Keeping::start(dir.path(), running.address, Some(running.token(dir.path())), None);
    keeping.certified().await;
    drop(keeping);
    let ca = authority(dir.path(), &["cdn-lfs.hf.co"]);
    assert!(ca.cluster_root().is_none());
    let _keeping = Keeping::start(dir.path(), running.address, None, Some(&ca));
    chained(&ca).await;
}

#[tokio::test]
async fn a_node_that_intercepts_more_than_the_root_covers_is_told_which_host_and_joins_all_the_same() {
    let (log, _guard) = Log::start(tracing::Level::WARN);
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = Running::new(&state).await;
    let ca = authority(dir.path(), &["cdn-lfs.hf.co", "example.org"]);
    let mut keeping = Keeping::start(dir.path(), running.address, Some(running.token(dir.path())), Some(&ca));
    keeping.certified().await;
    log.shows("the scheduler does not sign this node's CA").await;
    let text = log.text();
    assert_eq!(text.matches("may not speak for example.org, only for").count(), 2, "both sides say it: {text}");
    assert!(ca.cluster_root().is_none());
}
