//! The mutating webhook: pods that ask for it by a label trust the cluster's root, whatever image they run.
//!
//! [`patch`] says what a pod lacks, [`review`] speaks the API server's language, [`certificate`] is what the port shows. It can
//! do no more than be asked: whatever goes wrong here, the API server makes the pod without it (`failurePolicy: Ignore`).

pub(crate) mod certificate;
mod patch;
pub(crate) mod review;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::http_port::{self, text, typed};
use crate::{service::unix_now, validity};
use certificate::{Certificate, CertificateError};
pub use patch::Settings;

/// Connections at a time: an API server keeps a few open.
const CONNECTIONS: usize = 64;
/// For a TLS handshake, and for a request's head to come.
const HEAD: Duration = Duration::from_secs(10);
/// For the rest of a request.
const BODY: Duration = Duration::from_secs(5);
/// The longest question: etcd takes objects of 1.5 MiB, and a review may hold an old one too.
const MAX_REVIEW: usize = 4 << 20;

/// The webhook, from the command line.
#[derive(Args, Clone, Debug)]
// One of this name is around it already.
#[group(skip)]
#[command(next_help_heading = "Pods that trust the cluster's root")]
pub struct Flags {
    /// Answer the API server here (HTTPS, POST /pods): pods that it asks about get the cluster's root, written by an init
    /// container, and the variables by which clients find it.
    #[arg(long, value_name = "ADDR", env = "PONDHAWK_SCHEDULER_WEBHOOK", requires_all = ["webhook_config", "webhook_host", "webhook_image"])]
    pub webhook: Option<SocketAddr>,
    /// The MutatingWebhookConfiguration whose webhooks are told the CA of this port; the service account must be allowed to
    /// patch it.
    #[arg(long, value_name = "NAME", env = "PONDHAWK_SCHEDULER_WEBHOOK_CONFIG")]
    pub webhook_config: Option<String>,
    /// The name by which the API server reaches this port: SERVICE.NAMESPACE.svc.
    #[arg(long, value_name = "NAME", env = "PONDHAWK_SCHEDULER_WEBHOOK_HOST", value_parser = service)]
    pub webhook_host: Option<String>,
    /// The image of the init container: one with /usr/bin/pondhawk.
    #[arg(long, value_name = "IMAGE", env = "PONDHAWK_SCHEDULER_WEBHOOK_IMAGE")]
    pub webhook_image: Option<String>,
}

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum WebhookError {
    #[error("--webhook cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot set TLS up for the webhook: {0}")]
    Tls(#[from] rustls::Error),
}

/// A webhook that listens.
pub struct Webhook {
    listener: TcpListener,
    certificate: Arc<Certificate>,
    acceptor: TlsAcceptor,
    settings: Arc<Settings>,
}

impl Webhook {
    /// Opens the port under a new certificate for `host`, of the CA in the state directory `dir`.
    pub async fn bind(address: SocketAddr, host: &str, dir: &Path, settings: Settings) -> Result<Self, WebhookError> {
        let listen = |source| WebhookError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let certificate = Arc::new(Certificate::open(dir, host, OffsetDateTime::now_utc())?);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(&certificate) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        tracing::info!(%address, host, "webhook up");
        Ok(Self { listener, certificate, acceptor: Arc::new(config).into(), settings: Arc::new(settings) })
    }

    /// What the API server has to trust, PEM.
    pub fn ca(&self) -> &str {
        self.certificate.ca()
    }

    /// Answers for ever.
    pub async fn serve(self) {
        tokio::spawn(renew(Arc::clone(&self.certificate)));
        http_port::accept(&self.listener, CONNECTIONS, "the webhook", |tcp, peer, _slot| {
            let (acceptor, settings) = (self.acceptor.clone(), Arc::clone(&self.settings));
            async move {
                if let Err(error) = connection(tcp, acceptor, settings).await {
                    tracing::debug!(%peer, %error, "a connection to the webhook ended");
                }
            }
        })
        .await;
    }
}

async fn renew(certificate: Arc<Certificate>) {
    loop {
        sleep(validity::LOOK_EVERY).await;
        if !certificate.is_due(unix_now()) {
            continue;
        }
        if let Err(error) = certificate.renew(OffsetDateTime::now_utc()) {
            tracing::error!(%error, "the webhook's certificate could not be renewed");
            sleep(validity::RETRY_AFTER).await;
        }
    }
}

async fn connection(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    settings: Arc<Settings>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let tls = timeout(HEAD, acceptor.accept(tcp)).await??;
    let service = service_fn(move |request| {
        let settings = Arc::clone(&settings);
        async move { Ok::<_, Infallible>(reply(request, &settings).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    Ok(http.serve_connection(TokioIo::new(tls), service).await?)
}

async fn reply(request: Request<Incoming>, settings: &Settings) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "ok\n"),
        (&Method::POST, "/pods") => pods(request, settings).await,
        (_, "/pods") => text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n"),
        _ => text(StatusCode::NOT_FOUND, "no such page\n"),
    }
}

async fn pods(request: Request<Incoming>, settings: &Settings) -> Response<Full<Bytes>> {
    let read = timeout(BODY, Limited::new(request.into_body(), MAX_REVIEW).collect()).await;
    let Ok(Ok(body)) = read else {
        return text(StatusCode::BAD_REQUEST, format!("no review of at most {MAX_REVIEW} bytes within {BODY:?}\n"));
    };
    let review = match serde_json::from_slice::<Value>(&body.to_bytes()) {
        Ok(review) => review,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    match review::answer(&review, settings) {
        Ok(answer) => typed(StatusCode::OK, "application/json", answer.to_string()),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

impl Flags {
    /// The port, with a CA that is kept in `dir`, for pods of other namespaces than `own_namespace`; nothing where none is wanted.
    ///
    /// # Errors
    /// The port is taken; the CA cannot be kept.
    pub async fn bind(
        &self,
        dir: &Path,
        root: &str,
        own_namespace: &str,
    ) -> Result<Option<(Webhook, String)>, WebhookError> {
        let all = (self.webhook, &self.webhook_config, &self.webhook_host, &self.webhook_image);
        let (Some(address), Some(config), Some(host), Some(image)) = all else { return Ok(None) };
        let (image, root, own_namespace) = (image.clone(), root.to_owned(), own_namespace.to_owned());
        let webhook = Webhook::bind(address, host, dir, Settings { image, root, own_namespace }).await?;
        Ok(Some((webhook, config.clone())))
    }
}

/// A name by which an API server reaches a Service: the only kind that the CA may speak for.
fn service(name: &str) -> Result<String, String> {
    let (_, last) = name.rsplit_once('.').unwrap_or_default();
    if last == certificate::DOMAIN { Ok(name.to_owned()) } else { Err("SERVICE.NAMESPACE.svc is needed".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_reached_by_a_service_s_name() {
        assert_eq!(service("pondhawk-webhook.ai.svc").as_deref(), Ok("pondhawk-webhook.ai.svc"));
        assert!(service("svc").is_err() && service("").is_err() && service("webhook.example").is_err());
        assert!(service("a.b.svc.cluster.local").is_err(), "no API server asks by this name");
    }
}
