//! The scheduler in a Kubernetes cluster: keeps a fresh join token in a Secret, the trust root in a ConfigMap, and the
//! webhook's CA in its configuration.
//!
//! The objects are made by whoever installs the scheduler (the Helm chart), so that its service account needs the right to
//! patch these and nothing else. No key leaves the data directory: a Secret that is read or lost gives away a token of a day.
//! That ends where several schedulers share their [`state`] by way of a Secret: then whoever may read it can make nodes, and
//! speak for the CDN to every pod that trusts the cluster's root.

mod api;
mod shared;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::sleep;

pub use api::{ACCOUNT_DIR, Api, ApiError};
pub use state::{Renewal, State, StateError, StateFlags};

use crate::authority::{Authority, AuthorityError};
use crate::hosts::Suffixes;
use crate::service::{Scheduler, unix_now};
use crate::webhook::{self, WebhookError};

/// How long a token in the Secret is good for.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// When the next one takes its place: a node that reads the Secret as kubelet last copied it still has hours.
const TOKEN_AGE: Duration = Duration::from_secs(6 * 3600);
/// Between two rounds: an object that somebody made anew is filled again.
const ROUND: Duration = Duration::from_secs(300);
/// First and longest rest after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is kept in the cluster, from the command line.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "In a Kubernetes cluster")]
pub struct Flags {
    /// Keep a join token in this Secret of the scheduler's namespace, under `token`: good for a day, a new one every six
    /// hours. The Secret must be there, and the pod's service account must be allowed to patch it.
    #[arg(long, value_name = "NAME", env = "PONDHAWK_SCHEDULER_KUBE_TOKEN_SECRET")]
    kube_token_secret: Option<String>,
    /// Keep the cluster's trust root in this ConfigMap of the scheduler's namespace, under `root.pem`; as above.
    #[arg(long, value_name = "NAME", env = "PONDHAWK_SCHEDULER_KUBE_ROOT_CONFIG_MAP")]
    kube_root_config_map: Option<String>,
    #[command(flatten)]
    state: StateFlags,
    #[command(flatten)]
    webhook: webhook::Flags,
}

/// Why nothing is kept.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum KubeError {
    Api(#[from] ApiError),
    Webhook(#[from] WebhookError),
    State(#[from] StateError),
}

/// Both admit a pod to the same webhook: the one by its own label, the other by its namespace's. Names as in the chart.
const WEBHOOKS: [&str; 2] = ["pods.trust.pondhawk.internal", "namespaces.trust.pondhawk.internal"];

impl Flags {
    /// Makes the state directory `dir` that of the cluster, where schedulers share it; has to come before it is used. Waits for
    /// the API server.
    ///
    /// # Errors
    /// This is no pod; the directory is another cluster's, or cannot be written.
    pub async fn share(&self, dir: &Path, hosts: &Suffixes) -> Result<Option<State>, KubeError> {
        let Some(secret) = self.state.kube_state_secret.clone() else { return Ok(None) };
        let state = State {
            api: self.api()?,
            secret,
            dir: dir.to_owned(),
            hosts: hosts.clone(),
            webhook: self.webhook.webhook.is_some(),
            token_secret: self.kube_token_secret.clone(),
            turn: Arc::default(),
        };
        state.open().await?;
        Ok(Some(state))
    }

    /// Begins to keep what was asked for, on the current runtime and until it ends; nothing where nothing was. `state` is what
    /// [`Flags::share`] gave, `dir` the state directory.
    ///
    /// # Errors
    /// This is no pod, or one without a service account; the webhook's port is taken.
    pub async fn start(&self, scheduler: &Scheduler, dir: &Path, state: Option<State>) -> Result<(), KubeError> {
        let mut objects = Vec::new();
        if let Some(name) = &self.kube_token_secret {
            let tokens = Tokens { authority: Arc::clone(scheduler.authority()), last: None, shared: state.is_some() };
            objects.push((Kind::Secret(tokens), name.clone()));
        }
        if let Some(name) = &self.kube_root_config_map {
            objects.push((Kind::Root(scheduler.trust().info().pem.clone()), name.clone()));
        }
        if let Some(state) = state {
            scheduler.registry().share(state.clone());
            tokio::spawn(state.follow());
        }
        if objects.is_empty() && self.webhook.webhook.is_none() {
            return Ok(());
        }
        let api = self.api()?;
        if let Some((webhook, config)) = self.webhook.bind(dir, &scheduler.trust().info().pem, api.namespace()).await? {
            objects.push((Kind::Webhook(webhook.ca().to_owned()), config));
            tokio::spawn(webhook.serve());
        }
        for (kind, name) in objects {
            tokio::spawn(keep(api.clone(), kind, name));
        }
        Ok(())
    }

    fn api(&self) -> Result<Api, ApiError> {
        self.state.api()
    }
}

enum Kind {
    Secret(Tokens),
    Root(String),
    /// With the CA of the port, PEM.
    Webhook(String),
}

impl Kind {
    /// Where it is, and what is to stand in it.
    fn wanted(&mut self, namespace: &str, name: &str) -> Result<(String, Value), AuthorityError> {
        let (plural, body) = match self {
            Self::Secret(tokens) => ("secrets", json!({ "stringData": { "token": tokens.current()? } })),
            Self::Root(pem) => ("configmaps", json!({ "data": { "root.pem": pem } })),
            Self::Webhook(pem) => {
                let ca = STANDARD.encode(pem);
                let trusting = WEBHOOKS.map(|name| json!({ "name": name, "clientConfig": { "caBundle": ca } }));
                let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
                return Ok((path, json!({ "webhooks": trusting })));
            }
        };
        Ok((format!("/api/v1/namespaces/{namespace}/{plural}/{name}"), body))
    }
}

/// The token in the Secret.
struct Tokens {
    authority: Arc<Authority>,
    last: Option<(String, Instant)>,
    /// Whether other schedulers write there, too.
    shared: bool,
}

impl Tokens {
    /// Whether the token in the Secret is as good as a new one, whoever wrote it.
    fn suffices(&self, token: &str) -> bool {
        let rest = TOKEN_TTL.saturating_sub(TOKEN_AGE);
        self.authority.check_token(token, unix_now() + rest.as_secs()).is_ok()
    }

    /// The last one, or a new one where that is old, or worthless because the secret behind it was rotated.
    fn current(&mut self) -> Result<String, AuthorityError> {
        let good = |token: &str| self.authority.check_token(token, unix_now()).is_ok();
        match &self.last {
            Some((token, made)) if made.elapsed() < TOKEN_AGE && good(token) => Ok(token.clone()),
            _ => {
                let token = self.authority.token(unix_now(), TOKEN_TTL)?;
                self.last = Some((token.clone(), Instant::now()));
                Ok(token)
            }
        }
    }
}

async fn keep(api: Api, mut kind: Kind, name: String) {
    let mut rest = BACKOFF.0;
    let mut told: Option<String> = None;
    loop {
        match round(&api, &mut kind, &name).await {
            Ok(path) => {
                if told.as_ref() != Some(&path) {
                    tracing::info!(path, "kept in the cluster");
                }
                told = Some(path);
                rest = BACKOFF.0;
                sleep(ROUND).await;
            }
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(object = name, error, "cannot be kept in the cluster: trying again");
                }
                told = Some(error);
                sleep(rest).await;
                rest = (rest * 2).min(BACKOFF.1);
            }
        }
    }
}

async fn round(api: &Api, kind: &mut Kind, name: &str) -> Result<String, String> {
    if let Kind::Secret(tokens) = kind
        && tokens.shared
    {
        let path = format!("/api/v1/namespaces/{}/secrets/{name}", api.namespace());
        let secret = api.get(&path).await.map_err(|error| error.to_string())?;
        if token_in(&secret).is_some_and(|token| tokens.suffices(&token)) {
            return Ok(path);
        }
    }
    let (path, body) = kind.wanted(api.namespace(), name).map_err(|error| error.to_string())?;
    api.patch(&path, &body).await.map_err(|error| error.to_string())?;
    Ok(path)
}

/// What stands under `token` in a Secret.
fn token_in(secret: &Value) -> Option<String> {
    let token = STANDARD.decode(secret["data"]["token"].as_str()?).ok()?;
    String::from_utf8(token).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_until_the_secret_behind_it_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path()).unwrap());
        let mut tokens = Tokens { authority: Arc::clone(&authority), last: None, shared: false };
        let first = tokens.current().unwrap();
        assert_eq!(authority.check_token(&first, unix_now()), Ok(()));
        assert_eq!(tokens.current().unwrap(), first);
        assert!(tokens.suffices(&first) && !tokens.suffices("") && !tokens.suffices(&first.replace("ph1", "ph2")));
        let old = authority.token(unix_now(), TOKEN_TTL - TOKEN_AGE - Duration::from_secs(1)).unwrap();
        assert!(!tokens.suffices(&old), "six hours old");
        Authority::rotate_tokens(dir.path()).unwrap();
        assert!(!tokens.suffices(&first), "another scheduler rotated");
        let second = tokens.current().unwrap();
        assert_ne!(second, first);
        assert_eq!(authority.check_token(&second, unix_now()), Ok(()));
    }

    #[test]
    fn each_object_is_named_by_the_path_that_the_role_allows() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path()).unwrap());
        let mut secret = Kind::Secret(Tokens { authority, last: None, shared: false });
        let (path, body) = secret.wanted("ai", "pondhawk-join").unwrap();
        assert_eq!(path, "/api/v1/namespaces/ai/secrets/pondhawk-join");
        assert!(body["stringData"]["token"].as_str().unwrap().starts_with("ph1."));
        let (path, body) = Kind::Root("PEM".to_owned()).wanted("ai", "pondhawk-root").unwrap();
        assert_eq!(path, "/api/v1/namespaces/ai/configmaps/pondhawk-root");
        assert_eq!(body, json!({ "data": { "root.pem": "PEM" } }));
    }
}
