//! Where requests go: URLs, addresses, and the TLS to get there.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{
    LoadError, Plan, head,
    record::{ErrorKind, Failure},
};

/// A server as a URL names it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Host, and port if it is not the scheme's.
    pub(super) authority: String,
    /// None: without TLS.
    pub(super) tls_name: Option<ServerName<'static>>,
    /// At least one.
    pub(super) addresses: Vec<SocketAddr>,
}

/// An object to be asked for.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) endpoint: Arc<Endpoint>,
    /// The request's head but for its range and end.
    pub(super) request: Vec<u8>,
}

/// Fields that are nobody's business but the host's that they were given for.
const SECRET_FIELDS: [&str; 2] = ["authorization", "cookie"];

/// Finds and names servers.
pub(super) struct Directory {
    /// Where to connect instead of what URLs say.
    connect: Option<(String, u16)>,
    /// Where `http://` URLs are asked for in absolute form.
    proxy: Option<(String, u16)>,
    fields: Vec<(String, String)>,
    known: Mutex<HashMap<String, Arc<Endpoint>>>,
    pub(super) tls: TlsConnector,
}

impl Directory {
    pub(super) fn new(plan: &Plan) -> Result<Self, LoadError> {
        let place = |text: &Option<String>| text.as_deref().map(host_and_port).transpose();
        let (connect, proxy) = (place(&plan.connect)?, place(&plan.proxy)?);
        let fields = plan.fields.clone();
        if let Some((name, _)) = fields.iter().find(|field| !is_sendable(field)) {
            return Err(LoadError::Field(name.clone()));
        }
        Ok(Self { connect, proxy, fields, known: Mutex::default(), tls: connector(&plan.authorities)? })
    }

    /// The target of a URL. `from`: the URL that led here by a redirect.
    pub(super) async fn target(&self, url: Url, from: Option<&Url>) -> Result<Target, Failure> {
        let endpoint = self.endpoint(&url).await?;
        let foreign = from.is_some_and(|from| from.origin() != url.origin());
        let fields = self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let fields = fields
            .filter(|(name, _)| !foreign || SECRET_FIELDS.iter().all(|secret| !name.eq_ignore_ascii_case(secret)));
        let proxied = self.proxy.is_some() && endpoint.tls_name.is_none();
        let start = if proxied { url::Position::BeforeScheme } else { url::Position::BeforePath };
        let request = head::request(&url[start..url::Position::AfterQuery], &endpoint.authority, fields);
        Ok(Target { url, endpoint, request })
    }

    async fn endpoint(&self, url: &Url) -> Result<Arc<Endpoint>, Failure> {
        let key = &url[..url::Position::BeforePath];
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Ok(Arc::clone(known));
        }
        let refuse = |message: String| Failure::new(ErrorKind::Connect, message);
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(refuse(format!("{url}: the scheme is http or https, not {other}"))),
        };
        let host = url.host_str().ok_or_else(|| refuse(format!("{url} has no host")))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tls_name = is_tls.then(|| ServerName::try_from(bare.to_owned())).transpose();
        let tls_name = tls_name.map_err(|error| refuse(format!("{host}: {error}")))?;
        let port = url.port_or_known_default().unwrap_or_default();
        let proxy = self.proxy.as_ref().filter(|_| !is_tls);
        let (name, port) = proxy.or(self.connect.as_ref()).cloned().unwrap_or_else(|| (bare.to_owned(), port));
        let found = tokio::net::lookup_host((name.as_str(), port)).await;
        let addresses: Vec<SocketAddr> =
            found.map_err(|error| refuse(format!("{name} has no address: {error}")))?.collect();
        if addresses.is_empty() {
            return Err(refuse(format!("{name} has no address")));
        }
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let endpoint = Arc::new(Endpoint { authority, tls_name, addresses });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(known.entry(key.to_owned()).or_insert(endpoint)))
    }
}

fn is_sendable((name, value): &(String, String)) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let ours = ["host", "range", "connection"];
    !name.is_empty()
        && name.bytes().all(token)
        && value.bytes().all(|byte| byte >= b' ' || byte == b'\t')
        && ours.iter().all(|ours| !name.eq_ignore_ascii_case(ours))
}

fn host_and_port(text: &str) -> Result<(String, u16), LoadError> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) =
        parsed.filter(|(host, _)| !host.is_empty()).ok_or_else(|| LoadError::Connect(text.to_owned()))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

fn connector(authorities: &[PathBuf]) -> Result<TlsConnector, LoadError> {
    let mut roots = RootCertStore::empty();
    // A machine without roots can load a server of its own CA, or one without TLS.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in authorities {
        for certificate in certificates(path)? {
            let add = roots.add(certificate);
            add.map_err(|error| LoadError::Authority { path: path.clone(), reason: error.to_string() })?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let refuse = |reason: String| LoadError::Authority { path: path.to_owned(), reason };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| refuse(error.to_string()))?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refuse(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refuse("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_target_says_the_urls_host_wherever_it_connects_to() {
        let fields = [("Authorization".to_owned(), "secret".to_owned()), ("X-A".to_owned(), "b".to_owned())];
        let plan = Plan { connect: Some("[::1]:8080".to_owned()), fields: fields.to_vec(), ..Plan::default() };
        let directory = Directory::new(&plan).unwrap();
        let url = |text: &str| Url::parse(text).unwrap();
        let target = directory.target(url("https://example.org/a/b?c#d"), None).await.unwrap();
        assert_eq!(target.endpoint.addresses, ["[::1]:8080".parse().unwrap()]);
        assert_eq!(target.endpoint.tls_name, Some(ServerName::try_from("example.org").unwrap()));
        let text = String::from_utf8(target.request).unwrap();
        assert!(text.starts_with("GET /a/b?c HTTP/1.1\r\nhost: example.org\r\n") && text.contains("secret"), "{text}");

        let elsewhere = directory.target(url("http://example.org:81/"), Some(&url("https://example.org/a"))).await;
        let elsewhere = elsewhere.unwrap();
        let text = String::from_utf8(elsewhere.request).unwrap();
        assert!(
            text.contains("host: example.org:81\r\n") && text.contains("X-A") && !text.contains("secret"),
            "{text}"
        );
        assert!(elsewhere.endpoint.tls_name.is_none());
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_the_whole_url_and_only_where_there_is_no_tls() {
        let plan = Plan { proxy: Some("127.0.0.1:3128".to_owned()), ..Plan::default() };
        let directory = Directory::new(&plan).unwrap();
        let target = directory.target(Url::parse("http://example.org/a?b").unwrap(), None).await.unwrap();
        assert_eq!(target.endpoint.addresses, ["127.0.0.1:3128".parse().unwrap()]);
        assert!(target.request.starts_with(b"GET http://example.org/a?b HTTP/1.1\r\nhost: example.org\r\n"));
        let target = directory.target(Url::parse("https://127.0.0.1/a").unwrap(), None).await.unwrap();
        assert_eq!(target.endpoint.addresses, ["127.0.0.1:443".parse().unwrap()]);
        assert!(target.request.starts_with(b"GET /a HTTP/1.1\r\n"));
    }

    #[test]
    fn fields_that_would_break_the_request_are_refused() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert!(is_sendable(&field("x-a", "b c")));
        for bad in [field("", "b"), field("a b", "c"), field("a", "b\r\nc"), field("Range", "bytes=0-1")] {
            assert!(!is_sendable(&bad), "{bad:?}");
        }
    }

    #[test]
    fn where_to_connect_is_a_host_and_a_port() {
        assert_eq!(host_and_port("a.b:1").unwrap(), ("a.b".to_owned(), 1));
        assert_eq!(host_and_port("[::1]:1").unwrap(), ("::1".to_owned(), 1));
        for bad in ["a", ":1", "a:b", "a:70000"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
