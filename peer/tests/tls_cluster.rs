//! The cluster's trust root as real clients see it: a client that trusts it alone is served by every node that has
//! joined, one that trusts only the node's own CA is too, and the constraints hold against whoever has a node's key.

#![expect(clippy::unwrap_used, reason = "a failing test panics, in its helpers too")]

#[path = "tls/node.rs"]
mod node;
#[path = "tls/rogue.rs"]
mod rogue;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use node::{Node, PATIENCE, Seen, assert_whole, curl_args, pattern, run, suffixes};
use pondhawk::tls::{AcceptError, Distrust};
use pondhawk_scheduler::hosts::Suffixes;
use pondhawk_scheduler::trust::TrustRoot;
use rogue::{Rogue, San};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use time::OffsetDateTime;

/// A scheduler's root for the test's hosts and one more.
struct Cluster {
    dir: tempfile::TempDir,
    root: TrustRoot,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = Suffixes::new(["hf.co", "localhost", "another.example"]).unwrap();
        Self { root: TrustRoot::open(dir.path(), &hosts).unwrap(), dir }
    }

    /// What happens at a join.
    fn join(&self, node: &Node) {
        let csr = node.authority.csr().unwrap();
        let chain = self.root.cross_sign(&csr, suffixes().iter(), OffsetDateTime::now_utc()).unwrap();
        node.authority.adopt(&chain).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("trust-root.pem")
    }
}

const STRICT: &str = "ssl.VERIFY_X509_STRICT";
/// What Python 3.13 sets.
const STRICT_PARTIAL: &str = "ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN";
const PYTHON: &str = "
import http.client, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
context.verify_flags |= eval(sys.argv[3])
c = http.client.HTTPSConnection('localhost', int(sys.argv[1]), timeout=20, context=context)
c.request('GET', '/file')
sys.stdout.buffer.write(c.getresponse().read())
";

/// Every client that this machine has gets the file, trusting what is in `roots` and nothing else.
fn assert_served(node: &Node, roots: &Path, label: &str) {
    let (port, url, roots_text) = (node.addr.port().to_string(), node.url(), roots.to_str().unwrap());
    let check = |client: &str, output: Option<std::process::Output>| {
        let Some(output) = output else { return };
        assert_whole(&format!("{client} trusting {label}"), &output);
        let seen = node.saw();
        assert!(matches!(seen, Seen::Served { .. }), "{client} trusting {label}: {seen:?}");
    };
    for version in ["1.2", "1.3"] {
        check("curl", run("curl", &[&curl_args(version)[..], &["--cacert", roots_text, &url]].concat()));
    }
    for flags in [STRICT, STRICT_PARTIAL] {
        check("python3", run("python3", &["-c", PYTHON, &port, roots_text, flags]));
    }
    let ca = format!("--ca-certificate={roots_text}");
    check("wget (GnuTLS)", run("wget", &["-q", "--tries=1", "--timeout=20", "-O", "-", &url, &ca]));
    let script = format!("require('https').get('{url}', answer => answer.pipe(process.stdout))");
    let extra = format!("NODE_EXTRA_CA_CERTS={roots_text}");
    if run("node", &["--version"]).is_some() {
        check("Node.js", run("env", &[&extra, "node", "-e", &script]));
    }
    let body = rustls_get(node.addr, "localhost", roots).unwrap();
    assert!(body.ends_with(&pattern()), "rustls trusting {label}");
    assert!(matches!(node.saw(), Seen::Served { .. }));
}

fn rustls_get(addr: SocketAddr, host: &str, roots: &Path) -> std::io::Result<Vec<u8>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).unwrap() {
        store.add(root.unwrap()).unwrap();
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let tcp = TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut body = Vec::new();
    stream.read_to_end(&mut body)?;
    Ok(body)
}

fn both(node: &Node, cluster: &Cluster) -> PathBuf {
    let path = node.dir.path().join("both.pem");
    let read = |path| std::fs::read_to_string(path).unwrap();
    std::fs::write(&path, read(node.ca()) + &read(cluster.file())).unwrap();
    path
}

#[test]
fn every_client_is_served_under_the_root_the_node_s_own_ca_or_both() {
    let (cluster, node) = (Cluster::new(), Node::start());
    cluster.join(&node);
    assert_served(&node, &cluster.file(), "the cluster's root alone");
    assert_served(&node, &node.ca(), "the node's own CA alone");
    assert_served(&node, &both(&node, &cluster), "both");
}

#[test]
fn one_root_is_enough_for_two_nodes_and_a_renewed_signature_changes_nothing_for_clients() {
    let (cluster, nodes) = (Cluster::new(), [Node::start(), Node::start()]);
    for node in &nodes {
        cluster.join(node);
        let body = rustls_get(node.addr, "localhost", &cluster.file()).unwrap();
        assert!(body.ends_with(&pattern()));
    }
    assert!(rustls_get(nodes[1].addr, "localhost", &nodes[0].ca()).is_err(), "one node's own CA is not the other's");
    cluster.join(&nodes[0]);
    assert!(rustls_get(nodes[0].addr, "localhost", &cluster.file()).unwrap().ends_with(&pattern()));
}

#[test]
fn joining_takes_effect_on_a_running_node() {
    let (cluster, node) = (Cluster::new(), Node::start());
    let (root, url) = (cluster.file(), node.url());
    let curl = || run("curl", &[&curl_args("1.3")[..], &["--cacert", root.to_str().unwrap(), &url]].concat());
    let Some(before) = curl() else { return };
    assert_eq!(before.status.code(), Some(60), "no chain to the root yet");
    let seen = node.saw();
    assert!(matches!(&seen, Seen::Refused(AcceptError::ClientDistrusts(Distrust::Alert(_)))), "{seen:?}");
    cluster.join(&node);
    assert_whole("curl", &curl().unwrap());
    assert!(matches!(node.saw(), Seen::Served { .. }));
}

#[test]
fn openssl_verifies_strictly_and_is_sent_the_leaf_and_the_cross_certificate_only() {
    let (cluster, node) = (Cluster::new(), Node::start());
    cluster.join(&node);
    let command = format!(
        "printf 'GET / HTTP/1.1\\r\\n\\r\\n' | timeout 20 openssl s_client -tls1_2 -showcerts -x509_strict \
         -verify_return_error -verify_hostname localhost -CAfile {} -connect localhost:{} -servername localhost",
        cluster.file().display(),
        node.addr.port()
    );
    if run("openssl", &["version"]).is_none() {
        return;
    }
    let output = run("sh", &["-c", &command]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Verify return code: 0 (ok)"), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("-----BEGIN CERTIFICATE-----").count(), 2);
}

/// Whether curl and rustls, each trusting only the root, take what a thief of the node's key presents.
fn taken(rogue: &Rogue, host: &str, root: &Path) -> (Option<bool>, bool) {
    let url = format!("https://{host}:{}/", rogue.addr.port());
    let to = format!("{host}:{0}:127.0.0.1:{0}", rogue.addr.port());
    let args = ["-sS", "--max-time", "20", "--connect-to", &to, "--cacert", root.to_str().unwrap(), &url];
    let curl = run("curl", &args).map(|output| {
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 60)), "{code:?}: {}", String::from_utf8_lossy(&output.stderr));
        code == Some(0)
    });
    (curl, rustls_get(rogue.addr, host, root).is_ok())
}

fn assert_taken(rogue: &Rogue, host: &str, root: &Path, expected: bool) {
    let (curl, rustls) = taken(rogue, host, root);
    assert!(curl.is_none_or(|taken| taken == expected), "curl and {host}");
    assert_eq!(rustls, expected, "rustls and {host}");
}

#[test]
fn who_has_a_node_s_key_speaks_for_that_node_s_hosts_and_no_others() {
    let (cluster, node) = (Cluster::new(), Node::start());
    cluster.join(&node);
    let rogue = |san| Rogue::start(node.dir.path(), san);
    assert_taken(&rogue(San::Host("cdn.hf.co")), "cdn.hf.co", &cluster.file(), true);
    assert_taken(&rogue(San::Host("example.org")), "example.org", &cluster.file(), false);
    // The root may speak for this one, the node may not.
    assert_taken(&rogue(San::Host("another.example")), "another.example", &cluster.file(), false);
    assert_taken(&rogue(San::Loopback), "127.0.0.1", &cluster.file(), false);
    // Both constraints count: a chain whose every name is inside is not helped by one that is.
    assert_taken(&rogue(San::Two("cdn.hf.co", "example.org")), "cdn.hf.co", &cluster.file(), false);
    assert_taken(&rogue(San::BySubordinate("cdn.hf.co")), "cdn.hf.co", &cluster.file(), false);
}

#[test]
fn gnutls_and_python_hold_to_the_constraints_too() {
    let (cluster, node) = (Cluster::new(), Node::start());
    cluster.join(&node);
    for (host, accepted) in [("cdn.hf.co", true), ("example.org", false), ("another.example", false)] {
        let rogue = Rogue::start(node.dir.path(), San::Host(host));
        let (port, root) = (rogue.addr.port().to_string(), cluster.file());
        let root = root.to_str().unwrap();
        let command = format!(
            "timeout 20 gnutls-cli --x509cafile {root} --sni-hostname {host} --verify-hostname {host} -p {port} 127.0.0.1"
        );
        if run("gnutls-cli", &["--version"]).is_some() {
            let output = run("sh", &["-c", &command]).unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text.contains("Handshake was completed"), accepted, "gnutls and {host}: {text}");
        }
        let script = "
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
context.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20) as s:
    context.wrap_socket(s, server_hostname=sys.argv[3]).close()
";
        if let Some(output) = run("python3", &["-c", script, &port, root, host]) {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), accepted, "python and {host}: {text}");
            assert!(accepted || text.contains("permitted subtree violation"), "{text}");
        }
    }
}
