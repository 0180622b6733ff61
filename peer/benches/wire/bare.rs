//! Bare quinn, from memory to memory.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, ClientConfig, EndpointConfig, MtuDiscoveryConfig, Runtime, ServerConfig, TokioRuntime,
    TransportConfig, UdpPoller,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    udp::{RecvMeta, Transmit},
};
use rustls::{RootCertStore, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::sync::oneshot;

use super::{End, Run, measured, sides};

/// How long a new connection is left alone before it is measured: MTU discovery takes some round trips.
pub(crate) const SETTLE: Duration = Duration::from_millis(300);
const CHUNK: usize = 256 << 10;

/// Moves `len` bytes once.
pub(crate) fn run(seed: &End, leech: &End, mtu: u16, len: u64, streams: u64) -> Run {
    let signed = rcgen::generate_simple_self_signed(vec!["seed".to_owned()]).unwrap();
    let payload = mtu - 48;
    let (certificate, key) = (signed.cert.der().clone(), signed.signing_key.serialize_der());
    let mut crypto = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.into()))
        .unwrap();
    crypto.alpn_protocols = vec![b"bare".to_vec()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    server.transport_config(Arc::new(transport(payload)));
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![b"bare".to_vec()];
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    client.transport_config(Arc::new(transport(payload)));
    sides(
        seed,
        leech,
        |listening, done| on_tokio(serve(seed.any_port(), payload, server, listening, done)),
        |address| on_tokio(fetch(leech.any_port(), payload, client, address, len, streams)),
    )
}

/// quinn's own, but for the MTU.
fn transport(payload: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(payload);
    let mut transport = TransportConfig::default();
    transport.initial_mtu(payload.min(1452)).mtu_discovery_config(Some(discovery));
    transport
}

/// The cheapest cipher for quinn as well.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

async fn serve(
    listen: SocketAddr,
    payload: u16,
    server: ServerConfig,
    listening: std::sync::mpsc::Sender<SocketAddr>,
    done: oneshot::Receiver<()>,
) {
    let endpoint = endpoint(listen, payload, Some(server));
    listening.send(endpoint.local_addr().unwrap()).unwrap();
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let chunk = Bytes::from(vec![7; CHUNK]);
    let answering = async {
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let chunk = chunk.clone();
            tokio::spawn(async move {
                let mut len = [0; 8];
                recv.read_exact(&mut len).await.unwrap();
                for _ in 0..u64::from_be_bytes(len) / CHUNK as u64 {
                    send.write_chunk(chunk.clone()).await.unwrap();
                }
                send.finish().unwrap();
            });
        }
    };
    tokio::select! {
        () = answering => {}
        _ = done => {}
    }
}

async fn fetch(
    listen: SocketAddr,
    payload: u16,
    client: ClientConfig,
    address: SocketAddr,
    len: u64,
    streams: u64,
) -> Run {
    let endpoint = endpoint(listen, payload, None);
    let connection = endpoint.connect_with(client, address, "seed").unwrap().await.unwrap();
    tokio::time::sleep(SETTLE).await;
    let run = measured(async {
        let mut readers = Vec::new();
        for _ in 0..streams {
            let connection = connection.clone();
            readers.push(tokio::spawn(async move {
                let (mut send, mut recv) = connection.open_bi().await.unwrap();
                send.write_all(&(len / streams).to_be_bytes()).await.unwrap();
                let mut got = 0;
                while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.unwrap() {
                    got += chunk.bytes.len() as u64;
                }
                assert_eq!(got, len / streams);
            }));
        }
        for reader in readers {
            reader.await.unwrap();
        }
    });
    let run = run.await;
    connection.close(0u32.into(), b"");
    run
}

fn endpoint(listen: SocketAddr, payload: u16, server: Option<ServerConfig>) -> quinn::Endpoint {
    let inner = TokioRuntime.wrap_udp_socket(UdpSocket::bind(listen).unwrap()).unwrap();
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(payload).unwrap();
    let socket = Arc::new(Jumbo { inner, segments: usize::from((u16::MAX - 48) / payload) });
    quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime)).unwrap()
}

fn on_tokio<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What quinn needs to send jumbo frames at all: batches below 64 KiB.
#[derive(Debug)]
struct Jumbo {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl AsyncUdpSocket for Jumbo {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
