//! The few calls to a Kubernetes API server that the scheduler makes: single objects, as the service account of its pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Where a pod finds its service account.
pub const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// For one call, from connecting to the last byte of the answer.
const CALL: Duration = Duration::from_secs(10);
/// The longest answer that is read: etcd takes objects of 1.5 MiB.
const MAX_ANSWER: usize = 2 << 20;

/// An API server, and as whom it is asked.
#[derive(Clone, Debug)]
pub struct Api {
    /// A name or an address, without brackets.
    host: String,
    port: u16,
    account: PathBuf,
    namespace: String,
}

/// Why the API server did not do as asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum ApiError {
    #[error(
        "this is no pod of a Kubernetes cluster ({0} is not set): leave the options that begin with --kube and --webhook away"
    )]
    NoCluster(&'static str),
    #[error("KUBERNETES_SERVICE_PORT is {0:?}, which is no port")]
    Port(String),
    #[error("cannot read {}: {source}: the pod needs a service account (automountServiceAccountToken)", path.display())]
    Account { path: PathBuf, source: io::Error },
    #[error("{} holds no CA certificate that can be used", .0.display())]
    Ca(PathBuf),
    #[error("cannot set TLS up for the API server: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the API server's name {0:?} is none")]
    Name(String),
    #[error("cannot reach the API server at {at}: {source}")]
    Connect { at: String, source: io::Error },
    #[error("the connection to the API server broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the API server did not answer within {CALL:?}")]
    Silent,
    #[error("the API server refuses to {verb} {path}: {status}: {why}")]
    Refused { verb: &'static str, path: String, status: StatusCode, why: String },
    #[error("the API server's answer about {0} is no object of at most {MAX_ANSWER} bytes")]
    Answer(String),
}

impl ApiError {
    /// Whether the API server could not be asked, or could not answer: as one that restarts.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Http(_) | Self::Silent => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }

    /// Whether somebody else has changed the object since it was read.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::CONFLICT, .. })
    }
}

impl Api {
    /// The API server of the pod that this process runs in; `variable` reads the environment. Blocking.
    pub fn of_pod(account: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        let needed = |name: &'static str| variable(name).ok_or(ApiError::NoCluster(name));
        let host = needed("KUBERNETES_SERVICE_HOST")?;
        let port = needed("KUBERNETES_SERVICE_PORT")?;
        let port = port.parse().map_err(|_| ApiError::Port(port))?;
        let namespace = read(account, "namespace")?.trim().to_owned();
        Ok(Self { host, port, account: account.to_owned(), namespace })
    }

    /// The namespace of the pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Merges `body` into the object at `path`, as `kubectl patch` does (a strategic merge). The object must be there, and of
    /// the `resourceVersion` that the body's metadata may name.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<(), ApiError> {
        let merged = self.call(Method::PATCH, path, body.to_string().into());
        timeout(CALL, merged).await.map_err(|_| ApiError::Silent)?.map(drop)
    }

    /// The object at `path`.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        let asked = async {
            let answer = self.call(Method::GET, path, Bytes::new()).await?;
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok();
            let object = body.and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
            object.ok_or_else(|| ApiError::Answer(path.to_owned()))
        };
        timeout(CALL, asked).await.map_err(|_| ApiError::Silent)?
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ApiError> {
        // Both files are renewed in place while the pod lives.
        let token = read(&self.account, "token")?;
        let at = self.authority();
        let connect = |source| ApiError::Connect { at: at.clone(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(connect)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ApiError::Name(self.host.clone()))?;
        let tls = TlsConnector::from(self.tls()?).connect(name, tcp).await.map_err(connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        // It ends with the sender and the answer; what breaks it, these report.
        tokio::spawn(connection);
        let verb = if method == Method::GET { "get" } else { "patch" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &at)
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(CONTENT_TYPE, "application/strategic-merge-patch+json")
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("pondhawk-scheduler/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|_| ApiError::Name(path.to_owned()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let read = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let why = read.map_or_else(|_| String::new(), |body| message(&body.to_bytes()));
        Err(ApiError::Refused { verb, path: path.to_owned(), status, why })
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, ApiError> {
        let path = self.account.join("ca.crt");
        let pem = read(&self.account, "ca.crt")?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok));
        if roots.is_empty() {
            return Err(ApiError::Ca(path));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read(account: &Path, name: &str) -> Result<String, ApiError> {
    let path = account.join(name);
    fs::read_to_string(&path).map_err(|source| ApiError::Account { path, source })
}

/// What a `Status` object says, or the beginning of whatever else came.
fn message(body: &[u8]) -> String {
    let status = serde_json::from_slice::<Value>(body).ok();
    let said = status.as_ref().and_then(|status| status["message"].as_str()).map(str::to_owned);
    let text = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_pod_it_says_so() {
        let error = Api::of_pod(Path::new("/nowhere"), |_| None).unwrap_err();
        assert!(matches!(error, ApiError::NoCluster("KUBERNETES_SERVICE_HOST")), "{error}");
        let error = Api::of_pod(Path::new("/nowhere"), |_| Some("443".to_owned())).unwrap_err();
        assert!(matches!(error, ApiError::Account { .. }), "{error}");
    }

    #[test]
    fn a_refusal_is_told_in_the_server_s_words() {
        assert_eq!(message(br#"{"kind":"Status","message":"secrets \"x\" not found"}"#), "secrets \"x\" not found");
        assert_eq!(message(b"no healthy upstream"), "no healthy upstream");
        assert_eq!(message(&[b'x'; 1000]).len(), 300);
    }
}
