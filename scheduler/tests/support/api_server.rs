//! An API server as far as the scheduler needs one: takes requests over TLS and says what came.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::support::LONG;

/// The token of the service account.
pub(crate) const BEARER: &str = "bearer-of-the-pod";

/// A request that came: a patch, or with no body a look at an object.
#[derive(Debug)]
pub(crate) struct Patch {
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) kind: String,
    pub(crate) body: Value,
}

type Answer = dyn Fn(&Patch) -> (u16, String) + Send + Sync;

/// Answers every request with what `answer` says: a status and a body.
pub(crate) struct ApiServer {
    address: SocketAddr,
    patches: mpsc::Receiver<Patch>,
    _runtime: tokio::runtime::Runtime,
}

impl ApiServer {
    /// Starts it, and writes the service account of a pod in namespace `ai` to `account`.
    pub(crate) fn start(account: &Path, answer: impl Fn(&Patch) -> (u16, String) + Send + Sync + 'static) -> Self {
        let answer: Arc<Answer> = Arc::new(answer);
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(account.join("ca.crt"), own.cert.pem()).unwrap();
        std::fs::write(account.join("token"), format!("{BEARER}\n")).unwrap();
        std::fs::write(account.join("namespace"), "ai").unwrap();
        let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, patches) = mpsc::channel();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, sender, answer) = (acceptor.clone(), sender.clone(), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|request| take(request, &sender, &*answer));
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { address, patches, _runtime: runtime }
    }

    /// What a process in that pod has in its environment and on its command line.
    pub(crate) fn name_to(&self, account: &Path, command: &mut Command) {
        command.env("KUBERNETES_SERVICE_HOST", self.address.ip().to_string());
        command.env("KUBERNETES_SERVICE_PORT", self.address.port().to_string());
        command.arg("--kube-account").arg(account);
    }

    /// The next patch.
    pub(crate) fn next(&self) -> Patch {
        self.patches.recv_timeout(LONG).expect("a patch comes")
    }
}

async fn take(
    request: Request<Incoming>,
    sender: &mpsc::Sender<Patch>,
    answer: &Answer,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (authorization, kind) = (header("authorization"), header("content-type"));
    let path = format!("{} {}", request.method(), request.uri().path());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    let patch = Patch { path, authorization, kind, body };
    let (status, text) = answer(&patch);
    let _ = sender.send(patch);
    Ok(Response::builder().status(status).body(Full::new(text.into())).unwrap())
}
