//! Peers that do not keep to the protocol: quinn itself with a certificate of the cluster, or none.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use crate::stage::Cluster;
use pondhawk::{
    task::TaskId,
    wire::{
        Identity,
        frame::{ALPN, Frame, Request, VERSION},
    },
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

/// What a message of no meaning looks like: a frame of a known kind without its body.
pub(crate) const GARBAGE: &[u8] = &[0, 0, 0, 2, 1, 9];

/// A dialler that trusts this root, and shows a certificate or none.
pub(crate) fn dialler(identity: Option<&Identity>, root: &CertificateDer<'static>, window: u32) -> Endpoint {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => config.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(window.into());
    client.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    endpoint.set_default_client_config(client);
    endpoint
}

/// Connects by the peer's name in the cluster.
pub(crate) async fn connect(endpoint: &Endpoint, address: SocketAddr, peer: &str) -> Connection {
    endpoint.connect(address, &format!("{peer}.peer.pondhawk.internal")).unwrap().await.unwrap()
}

/// Sends these bytes on the control stream.
pub(crate) async fn control(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    (send, recv)
}

/// Frames as they are sent.
pub(crate) fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// The greeting.
pub(crate) fn hello() -> Vec<u8> {
    encoded(&[Frame::Hello { version: VERSION }])
}

/// The application code and text with which the other end closes the connection.
pub(crate) async fn closed(connection: &Connection) -> (u64, String) {
    application_close(connection.closed().await)
}

/// The application code and text of a close by the other end.
pub(crate) fn application_close(reason: ConnectionError) -> (u64, String) {
    match reason {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("{other:?}"),
    }
}

/// The first packets of so many handshakes, each of a connection of its own. They are received here, so that none was sent
/// to a peer yet.
pub(crate) async fn first_packets(cluster: &Cluster, count: usize) -> Vec<Vec<u8>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = dialler(Some(&cluster.identity("spoofer")), cluster.authority.ca(), 1 << 20);
    let mut packets: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut dials = Vec::new();
    while packets.len() < count {
        dials.push(endpoint.connect(sink.local_addr().unwrap(), "seed.peer.pondhawk.internal").unwrap());
        let mut packet = vec![0; 2048];
        let len = sink.recv(&mut packet).await.unwrap();
        packet.truncate(len);
        // The destination's connection ID (RFC 9000 section 17.2): what is sent again names the same one.
        let id = packet[6..6 + usize::from(packet[5])].to_vec();
        packets.entry(id).or_insert(packet);
    }
    packets.into_values().collect()
}

/// A request for a piece, on a stream of its own.
pub(crate) async fn request(connection: &Connection, task: TaskId, piece: u32) -> (SendStream, RecvStream) {
    control(connection, &Request { task, piece, from: 0 }.encode()).await
}

/// A parent that says hello, then `said` once a task is followed.
pub(crate) fn talker(identity: &Identity, said: Vec<u8>) -> Endpoint {
    serve(identity, move |connection| {
        let said = said.clone();
        async move {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            send.write_all(&hello()).await.unwrap();
            let mut greeting = vec![0; hello().len() + 1];
            recv.read_exact(&mut greeting).await.unwrap();
            send.write_all(&said).await.unwrap();
            connection.closed().await;
        }
    })
}

/// A parent that says `said` as soon as the control stream is there, and `answer` to each request for a piece.
pub(crate) fn parent(identity: &Identity, said: Vec<u8>, answer: Option<Vec<u8>>) -> Endpoint {
    serve(identity, move |connection| {
        let (said, answer) = (said.clone(), answer.clone());
        async move { misbehave(&connection, &said, answer.as_deref()).await }
    })
}

fn serve<F: Future<Output = ()> + Send + 'static>(
    identity: &Identity,
    behave: impl Fn(Connection) -> F + Send + Sync + 'static,
) -> Endpoint {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::server(server, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let connection = incoming.await.unwrap();
            tokio::spawn(behave(connection));
        }
    });
    endpoint
}

async fn misbehave(connection: &Connection, said: &[u8], answer: Option<&[u8]>) {
    let (mut send, _recv) = connection.accept_bi().await.unwrap();
    // The other end may have closed already.
    let _ = send.write_all(said).await;
    let mut streams = Vec::new();
    while let Ok((mut send, recv)) = connection.accept_bi().await {
        if let Some(answer) = answer {
            let _ = send.write_all(answer).await;
            let _ = send.finish();
        }
        streams.push((send, recv));
    }
}
