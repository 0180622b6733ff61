//! The webhook as an API server meets it: it learns the CA from its own configuration, and asks over TLS.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "support/api_server.rs"]
mod api_server;
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use api_server::{ApiServer, BEARER};
use support::Up;

const HOST: &str = "pondhawk-webhook.ai.svc";

/// A scheduler with a webhook, and what the API server was told of it.
struct Webhook {
    address: SocketAddr,
    ca: CertificateDer<'static>,
    _up: Up,
    _server: ApiServer,
}

impl Webhook {
    fn start(state: &Path, account: &Path) -> Self {
        let server = ApiServer::start(account, |_| (200, "{}".to_owned()));
        let up = Up::start(state, |command| {
            command.args(["--webhook", "127.0.0.1:0", "--webhook-config", "pondhawk-webhook", "--webhook-host", HOST]);
            command.args(["--webhook-image", "registry.example/pondhawk:1"]);
            server.name_to(account, command);
        });
        let line = up.line_with("webhook up");
        let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
        let patch = server.next();
        let at = "PATCH /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/pondhawk-webhook";
        assert_eq!(patch.path, at);
        assert_eq!(patch.authorization, format!("Bearer {BEARER}"));
        assert_eq!(patch.kind, "application/strategic-merge-patch+json");
        let bundles: Vec<_> = patch.body["webhooks"].as_array().unwrap().iter().map(bundle).collect();
        assert_eq!(bundles.len(), 2);
        assert_eq!(bundles[0], bundles[1]);
        let ca = CertificateDer::from_pem_slice(&STANDARD.decode(&bundles[0]).unwrap()).unwrap();
        Self { address, ca, _up: up, _server: server }
    }

    /// One request under this name, as an API server trusts it.
    fn ask(&self, host: &str, request: Request<Full<Bytes>>) -> std::io::Result<(StatusCode, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.exchange(host, request))
    }

    async fn exchange(&self, host: &str, request: Request<Full<Bytes>>) -> std::io::Result<(StatusCode, Bytes)> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await.unwrap().to_bytes()))
    }
}

fn bundle(webhook: &Value) -> String {
    assert!(webhook["name"].as_str().unwrap().ends_with(".trust.pondhawk.internal"));
    webhook["clientConfig"]["caBundle"].as_str().unwrap().to_owned()
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", HOST).body(Full::new(body.into())).unwrap()
}

/// As an API server of 1.32 sends it for a Deployment's pod.
fn review() -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "ml", "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:authenticated"] },
            "object": {
                "kind": "Pod", "apiVersion": "v1",
                "metadata": { "generateName": "train-7c9-", "labels": { "pondhawk/trust": "enabled" } },
                "spec": { "containers": [{ "name": "train", "image": "train:1", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent" }],
                    "restartPolicy": "Always", "schedulerName": "default-scheduler", "enableServiceLinks": true },
                "status": {},
            },
            "oldObject": null, "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

#[test]
fn a_pod_that_is_asked_about_over_tls_gets_the_cluster_s_root() {
    let (state, account) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(state.path(), account.path());
    let asked = webhook.ask(HOST, request("POST", "/pods?timeout=2s", review().to_string()));
    let (status, body) = asked.unwrap();
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["response"]["uid"], review()["request"]["uid"]);
    let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    let init = patch.iter().find(|operation| operation["path"] == "/spec/initContainers").unwrap();
    let root = std::fs::read_to_string(state.path().join("trust-root.pem")).unwrap();
    assert_eq!(init["value"][0]["env"][0]["value"], root);
    assert_eq!(init["value"][0]["image"], "registry.example/pondhawk:1");
    let env = patch.iter().find(|operation| operation["path"] == "/spec/containers/0/env").unwrap();
    assert!(env["value"].as_array().unwrap().iter().any(|variable| variable["name"] == "SSL_CERT_FILE"));
}

#[test]
fn what_is_no_review_is_refused_and_the_next_one_answered() {
    let (state, account) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(state.path(), account.path());
    let long = vec![b' '; (4 << 20) + 1];
    for (asked, expected) in [
        (request("GET", "/pods", ""), StatusCode::METHOD_NOT_ALLOWED),
        (request("POST", "/", review().to_string()), StatusCode::NOT_FOUND),
        (request("POST", "/pods", "{"), StatusCode::BAD_REQUEST),
        (request("POST", "/pods", "{}"), StatusCode::BAD_REQUEST),
        (request("POST", "/pods", long), StatusCode::BAD_REQUEST),
        (request("GET", "/healthz", ""), StatusCode::OK),
        (request("POST", "/pods", review().to_string()), StatusCode::OK),
    ] {
        let what = format!("{} {}", asked.method(), asked.uri());
        assert_eq!(webhook.ask(HOST, asked).unwrap().0, expected, "{what}");
    }
}

#[test]
fn its_certificate_is_for_the_service_and_nobody_else() {
    let (state, account) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(state.path(), account.path());
    let error = webhook.ask("kubernetes.default.svc", request("GET", "/healthz", "")).unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
