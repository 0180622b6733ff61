//! The scheduler in a pod: what it keeps in its cluster, over TLS and as its service account.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "support/api_server.rs"]
mod api_server;
mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use pondhawk_scheduler::authority::{Authority, ParsedToken, fingerprint};

use api_server::{ApiServer, BEARER};
use support::Up;

#[test]
fn a_join_token_and_the_root_are_kept_in_the_cluster() {
    let (state, account) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = ApiServer::start(account.path(), |_| (200, "{}".to_owned()));
    let _up = Up::start(state.path(), |command| {
        command.args(["--kube-token-secret", "pondhawk-join", "--kube-root-config-map", "pondhawk-root"]);
        server.name_to(account.path(), command);
    });
    let mut patches = [server.next(), server.next()];
    patches.sort_by(|a, b| a.path.cmp(&b.path));
    let [root, token] = patches;
    for patch in [&root, &token] {
        assert_eq!(patch.authorization, format!("Bearer {BEARER}"));
        assert_eq!(patch.kind, "application/strategic-merge-patch+json");
    }
    assert_eq!(root.path, "PATCH /api/v1/namespaces/ai/configmaps/pondhawk-root");
    assert_eq!(root.body["data"]["root.pem"], std::fs::read_to_string(state.path().join("trust-root.pem")).unwrap());
    assert_eq!(token.path, "PATCH /api/v1/namespaces/ai/secrets/pondhawk-join");
    let token = token.body["stringData"]["token"].as_str().unwrap();
    let authority = Authority::open(state.path()).unwrap();
    assert_eq!(ParsedToken::parse(token).unwrap().ca, fingerprint(authority.ca()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(authority.check_token(token, now + 23 * 3600), Ok(()));
    assert!(authority.check_token(token, now + 25 * 3600).is_err());
}

#[test]
fn a_refusal_is_logged_with_its_reason_and_tried_again() {
    let (state, account) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = ApiServer::start(account.path(), |_| (404, REFUSAL.to_owned()));
    let up = Up::start(state.path(), |command| {
        command.args(["--kube-token-secret", "join"]);
        server.name_to(account.path(), command);
    });
    let line = up.line_with("cannot be kept in the cluster");
    assert!(line.contains("404") && line.contains("not found"), "{line}");
    let (first, second) = (server.next(), server.next());
    assert_eq!(first.body, second.body);
}

const REFUSAL: &str = r#"{"kind":"Status","message":"secrets \"join\" not found"}"#;

#[test]
fn outside_a_pod_the_options_are_an_error_and_not_ignored() {
    let state = tempfile::tempdir().unwrap();
    let output = support::binary()
        .args(["up", "--listen", "127.0.0.1:0", "--kube-token-secret", "join", "--data-dir"])
        .arg(state.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("this is no pod of a Kubernetes cluster"), "{why}");
}
