//! Several schedulers that share their state by way of a Secret, as separate processes.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "support/api_server.rs"]
mod api_server;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pondhawk_scheduler::authority::Authority;
use serde_json::{Value, json};
use tempfile::TempDir;

use api_server::{ApiServer, BEARER, Patch};
use support::{Up, binary};

const STATE: &str = "/api/v1/namespaces/ai/secrets/pondhawk-state";
const JOIN: &str = "/api/v1/namespaces/ai/secrets/pondhawk-join";

/// The objects of an API server by path: what is in them, and their version.
#[derive(Clone, Default)]
struct Objects(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    data: BTreeMap<String, (u64, Value)>,
    /// So many looks at the state find it as it was at first.
    stale: u32,
    /// So many requests about the state are answered with 503.
    away: u32,
    /// So many patches of it with 422, as API servers refuse some that come too late.
    invalid: u32,
    conflicts: u32,
}

impl Objects {
    fn answer(&self, request: &Patch) -> (u16, String) {
        let mut inner = self.0.lock().unwrap();
        let (verb, path) = request.path.split_once(' ').unwrap();
        if request.authorization != format!("Bearer {BEARER}") || !request.kind.starts_with("application/") {
            return (401, "{}".to_owned());
        }
        if path == STATE && inner.away > 0 {
            inner.away -= 1;
            return (503, json!({ "message": "etcd has no leader" }).to_string());
        }
        let (version, data) = inner.data.get(path).cloned().unwrap_or((1, json!({})));
        if verb == "GET" {
            let stale = path == STATE && inner.stale > 0;
            inner.stale -= u32::from(stale);
            let (version, data) = if stale { (1, json!({})) } else { (version, data) };
            return (200, json!({ "metadata": { "resourceVersion": version.to_string() }, "data": data }).to_string());
        }
        if path == STATE && inner.invalid > 0 {
            inner.invalid -= 1;
            return (422, json!({ "message": "the server rejected our request" }).to_string());
        }
        if request.body["metadata"]["resourceVersion"].as_str().is_some_and(|named| named != version.to_string()) {
            inner.conflicts += 1;
            return (409, json!({ "message": "the object has been modified" }).to_string());
        }
        let mut merged = data;
        let strings = request.body["stringData"].as_object().into_iter().flatten();
        let strings = strings.map(|(name, text)| (name.clone(), STANDARD.encode(text.as_str().unwrap()).into()));
        let encoded = request.body["data"].as_object().into_iter().flatten();
        for (name, value) in encoded.map(|(name, value)| (name.clone(), value.clone())).chain(strings) {
            merged[name] = value;
        }
        inner.data.insert(path.to_owned(), (version + 1, merged));
        (200, "{}".to_owned())
    }

    fn set(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock().unwrap());
    }

    fn conflicts(&self) -> u32 {
        self.0.lock().unwrap().conflicts
    }

    /// What stands under a name in an object.
    fn content(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let inner = self.0.lock().unwrap();
        let text = inner.data.get(path)?.1[name].as_str()?.to_owned();
        Some(STANDARD.decode(text).unwrap())
    }
}

struct Cluster {
    objects: Objects,
    account: TempDir,
    server: ApiServer,
}

impl Cluster {
    fn new() -> Self {
        let (objects, account) = (Objects::default(), tempfile::tempdir().unwrap());
        let answering = objects.clone();
        let server = ApiServer::start(account.path(), move |request| answering.answer(request));
        Self { objects, account, server }
    }

    fn in_pod(&self, command: &mut Command) {
        command.args(["--kube-state-secret", "pondhawk-state"]);
        self.server.name_to(self.account.path(), command);
    }

    fn scheduler(&self, dir: &TempDir) -> Up {
        Up::start(dir.path(), |command| {
            self.in_pod(command);
            command.args(["--kube-token-secret", "pondhawk-join"]);
        })
    }

    /// One scheduler that has come up, and what it made.
    fn founded(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.scheduler(&dir).line_with("scheduler up");
        dir
    }
}

fn file(dir: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(dir.path().join(name)).unwrap()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn of_two_that_start_at_once_one_makes_the_cluster_and_the_other_takes_it() {
    let cluster = Cluster::new();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ups = dirs.each_ref().map(|dir| cluster.scheduler(dir));
    ups.iter().for_each(|up| drop(up.line_with("scheduler up")));
    for name in ["swarm-ca.pem", "swarm-ca.key", "token.secret", "trust-root.key", "trust-root.pem", "page.token"] {
        assert_eq!(file(&dirs[0], name), file(&dirs[1], name), "{name}");
        assert_eq!(cluster.objects.content(STATE, name), Some(file(&dirs[0], name)), "{name}");
    }
    assert!(dirs.iter().all(|dir| !dir.path().join("state.new").exists()));
    let [one, other] = dirs.each_ref().map(|dir| Authority::open(dir.path()).unwrap());
    let token = one.token(unix_now(), std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(other.check_token(&token, unix_now()), Ok(()));
}

#[test]
fn one_that_made_a_state_and_was_not_the_first_takes_the_other_s() {
    let cluster = Cluster::new();
    let first = cluster.founded();
    cluster.objects.set(|inner| inner.stale = 1);
    let second = tempfile::tempdir().unwrap();
    let up = Up::start(second.path(), |command| cluster.in_pod(command));
    up.line_with("another scheduler was first");
    up.line_with("scheduler up");
    assert_eq!(cluster.objects.conflicts(), 1);
    assert_eq!(file(&first, "swarm-ca.key"), file(&second, "swarm-ca.key"));
    assert!(!second.path().join("state.new").exists());
}

#[test]
fn a_directory_of_another_cluster_is_refused_with_which_is_which_and_left_alone() {
    let cluster = Cluster::new();
    cluster.founded();
    let other = tempfile::tempdir().unwrap();
    let before = Authority::open(other.path()).unwrap().ca().clone();
    let mut command = binary();
    command.args(["up", "--listen", "127.0.0.1:0", "--page", "off", "--data-dir"]).arg(other.path());
    cluster.in_pod(&mut command);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("of different clusters: swarm-ca.pem is ") && why.contains("empty the directory"), "{why}");
    assert_eq!(*Authority::open(other.path()).unwrap().ca(), before);
}

#[test]
fn a_directory_that_was_there_first_becomes_everybody_s_state() {
    let (cluster, old) = (Cluster::new(), tempfile::tempdir().unwrap());
    let before = Authority::open(old.path()).unwrap().ca().clone();
    cluster.scheduler(&old).line_with("scheduler up");
    let new = cluster.founded();
    assert_eq!(*Authority::open(new.path()).unwrap().ca(), before);
}

#[test]
fn where_a_token_tells_of_a_cluster_no_other_one_is_made_before_its_state_comes() {
    let (cluster, old) = (Cluster::new(), tempfile::tempdir().unwrap());
    let authority = Authority::open(old.path()).unwrap();
    let token = authority.token(unix_now(), std::time::Duration::from_secs(60)).unwrap();
    cluster.objects.set(|inner| {
        inner.data.insert(JOIN.to_owned(), (1, json!({ "token": STANDARD.encode(token) })));
    });
    let new = tempfile::tempdir().unwrap();
    let waiting = cluster.scheduler(&new);
    let line = waiting.line_with("waiting for the state that schedulers share");
    assert!(line.contains("pondhawk-join has a token of a cluster whose CA is"), "{line}");
    let old_up = cluster.scheduler(&old);
    old_up.line_with("scheduler up");
    waiting.line_with("scheduler up");
    assert_eq!(*Authority::open(new.path()).unwrap().ca(), *authority.ca());
}

#[test]
fn while_the_api_server_is_away_a_new_one_waits_and_one_that_has_all_goes_on() {
    let cluster = Cluster::new();
    let old = cluster.founded();
    cluster.objects.set(|inner| inner.away = 2);
    let new = tempfile::tempdir().unwrap();
    let up = cluster.scheduler(&new);
    let line = up.line_with("waiting for the state that schedulers share");
    assert!(line.contains("etcd has no leader"), "{line}");
    up.line_with("scheduler up");
    assert_eq!(file(&old, "swarm-ca.pem"), file(&new, "swarm-ca.pem"));
    cluster.objects.set(|inner| inner.away = u32::MAX);
    let up = cluster.scheduler(&old);
    up.line_with("starting with what is here");
    up.line_with("scheduler up");
}

#[test]
fn a_patch_that_is_refused_is_made_again_of_what_is_there_then() {
    let cluster = Cluster::new();
    cluster.objects.set(|inner| inner.invalid = 1);
    let dir = tempfile::tempdir().unwrap();
    let up = cluster.scheduler(&dir);
    assert!(up.line_with("waiting for the state that schedulers share").contains("422"));
    up.line_with("scheduler up");
    assert_eq!(cluster.objects.content(STATE, "swarm-ca.pem"), Some(file(&dir, "swarm-ca.pem")));
}

#[test]
fn what_a_crash_left_half_written_is_completed() {
    let cluster = Cluster::new();
    let dir = cluster.founded();
    let before = ["swarm-ca.pem", "trust-root.pem", "token.secret"].map(|name| file(&dir, name));
    for name in ["swarm-ca.pem", "trust-root.pem", "token.secret"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    std::fs::create_dir(dir.path().join("state.new")).unwrap();
    cluster.scheduler(&dir).line_with("scheduler up");
    assert_eq!(["swarm-ca.pem", "trust-root.pem", "token.secret"].map(|name| file(&dir, name)), before);
}

#[test]
fn tokens_are_rotated_for_all() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.founded(), cluster.founded());
    let rotate = |words: &[&str], pod: bool| {
        let mut command = binary();
        command.args(words).args(["--rotate", "--data-dir"]).arg(one.path());
        if pod {
            cluster.in_pod(&mut command);
        }
        command.output().unwrap()
    };
    let before = (file(&one, "token.secret"), file(&one, "page.token"));
    assert!(rotate(&["token"], true).status.success() && rotate(&["page-token"], true).status.success());
    assert!(file(&one, "token.secret") != before.0 && file(&one, "page.token") != before.1);
    cluster.scheduler(&other).line_with("scheduler up");
    assert_eq!(file(&other, "token.secret"), file(&one, "token.secret"));
    assert_eq!(file(&other, "page.token"), file(&one, "page.token"));

    cluster.objects.set(|inner| inner.away = u32::MAX);
    let output = rotate(&["token"], true);
    assert!(!output.status.success());
    assert_eq!(file(&other, "token.secret"), file(&one, "token.secret"), "what nobody else hears of is not done");
}

#[test]
fn a_denial_that_one_is_given_is_every_scheduler_s() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.founded(), tempfile::tempdir().unwrap());
    let manage = |words: &[&str], dir: &TempDir| {
        let mut command = binary();
        command.args(words).arg("--data-dir").arg(dir.path());
        cluster.in_pod(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    manage(&["deny", "node-x", "--reason", "stolen"], &one);
    assert_eq!(cluster.objects.content(STATE, "peers.json"), Some(file(&one, "peers.json")));
    let up = cluster.scheduler(&other);
    up.line_with("scheduler up");
    let listed = manage(&["denied"], &other);
    assert!(listed.starts_with("node-x\t-\t") && listed.ends_with("\tstolen\n"), "{listed}");
    manage(&["allow", "node-x"], &other);
    assert_eq!(manage(&["denied"], &other), "");
}

#[test]
fn a_join_token_that_another_one_wrote_is_left_alone() {
    let (cluster, dirs) = (Cluster::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let first = cluster.scheduler(&dirs[0]);
    first.line_with("kept in the cluster");
    let token = cluster.objects.content(JOIN, "token").unwrap();
    let second = cluster.scheduler(&dirs[1]);
    second.line_with("kept in the cluster");
    assert_eq!(cluster.objects.content(JOIN, "token").unwrap(), token);
    let authority = Authority::open(dirs[1].path()).unwrap();
    assert_eq!(authority.check_token(std::str::from_utf8(&token).unwrap(), unix_now()), Ok(()));
}

#[test]
fn both_answer_the_api_server_under_one_ca() {
    let cluster = Cluster::new();
    let webhook = |dir: &Path| {
        let up = Up::start(dir, |command| {
            cluster.in_pod(command);
            command.args(["--webhook", "127.0.0.1:0", "--webhook-config", "pondhawk", "--webhook-image", "x:1"]);
            command.args(["--webhook-host", "pondhawk-webhook.ai.svc"]);
        });
        up.line_with("kept in the cluster");
    };
    let dirs = [cluster.founded(), tempfile::tempdir().unwrap()];
    assert!(!dirs[0].path().join("webhook-ca.key").exists(), "made when there is a webhook");
    dirs.iter().for_each(|dir| webhook(dir.path()));
    let mut bundles = Vec::new();
    while bundles.len() < 2 {
        let patch = cluster.server.next();
        if patch.path.ends_with("/mutatingwebhookconfigurations/pondhawk") {
            bundles.push(patch.body["webhooks"][0]["clientConfig"]["caBundle"].clone());
        }
    }
    assert_eq!(bundles[0], bundles[1]);
}
