//! The ring against the real kernel.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use super::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
}

fn file_with(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Arc::new(file)
}

/// A connected pair: the client's blocking end, and the address-less other end for [`Socket::new`].
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn read_all(mut stream: TcpStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn registered_and_heap_buffers_write_and_read_the_same_bytes() {
    tokio_uring::start(async {
        for registered in [2, 0] {
            let pool = Pool::new(registered, 2, 8192);
            let file = file_with(b"");
            let (mut out, back) = pool.lease_pair().await;
            assert!(pool.try_lease().is_none(), "the bound holds");
            out.copy_from_slice(&pattern(8192));
            let (result, out) = file::write_all_at(&file, out, 100..8192, 4096).await;
            result.unwrap();
            let (result, back) = file::read_exact_at(&file, back, 0..8092, 4096).await;
            result.unwrap();
            assert_eq!(back[..8092], out[100..]);
            drop((out, back));
            assert!(pool.try_lease().is_some());
            assert_eq!(
                file::read_exact_at(&file, pool.lease().await, 0..1, 1 << 20).await.0.unwrap_err().kind(),
                std::io::ErrorKind::UnexpectedEof
            );
        }
    });
}

#[test]
fn a_file_goes_to_a_slow_reader_whole() {
    let bytes = pattern(5 << 20);
    let (client, server) = pair();
    let reader = thread::spawn(move || {
        let mut client = client;
        let (mut got, mut chunk) = (Vec::new(), vec![0; 100_000]);
        loop {
            match client.read(&mut chunk).unwrap() {
                0 => return got,
                n => got.extend_from_slice(&chunk[..n]),
            }
        }
    });
    tokio_uring::start(async {
        let (socket, pool, file) = (Socket::new(server).unwrap(), Pool::new(2, 4, 65536), file_with(&bytes));
        let send = SendFile { socket: &socket, file: &file, pool: &pool, stall: Duration::from_secs(20) };
        send.send(1..bytes.len() as u64).await.unwrap();
        let beyond = send.send(bytes.len() as u64 - 1..bytes.len() as u64 + 1).await.unwrap_err();
        let end = bytes.len() as u64;
        assert!(matches!(beyond, SendFileError::File { at, .. } if at == end || at == end - 1), "{beyond}");
        socket.shutdown(std::net::Shutdown::Both);
    });
    let got = reader.join().unwrap();
    assert!(got.starts_with(&bytes[1..]));
}

#[test]
fn a_reader_that_takes_nothing_runs_into_the_stall_limit() {
    let (client, server) = pair();
    let error = tokio_uring::start(async {
        let (socket, pool, file) =
            (Socket::new(server).unwrap(), Pool::new(2, 4, 65536), file_with(&pattern(32 << 20)));
        let send = SendFile { socket: &socket, file: &file, pool: &pool, stall: Duration::from_millis(50) };
        send.send(0..32 << 20).await.unwrap_err()
    });
    assert!(matches!(error, SendFileError::Stalled), "{error}");
    drop(client);
}

#[test]
fn heads_come_and_go_and_the_end_of_the_stream_is_zero() {
    let (mut client, server) = pair();
    client.write_all(b"GET").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let reader = read_all(client);
    tokio_uring::start(async {
        let socket = Socket::new(server).unwrap();
        socket.readable().await.unwrap();
        let (result, bytes) = socket.recv(Vec::with_capacity(16)).await;
        assert_eq!((result.unwrap(), &bytes[..]), (3, &b"GET"[..]));
        let (result, bytes) = socket.recv(bytes).await;
        assert_eq!((result.unwrap(), bytes.len()), (0, 3));
        assert_eq!(socket.recv(Vec::new()).await.0.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        socket.send_all(pattern(300_000)).await.0.unwrap();
    });
    assert_eq!(reader.join().unwrap(), pattern(300_000));
}

#[test]
fn spliced_ends_keep_their_half_closes_and_every_byte() {
    let (client, near) = pair();
    let (mut server, far) = pair();
    let answer = thread::spawn(move || {
        let mut request = Vec::new();
        server.read_to_end(&mut request).unwrap();
        server.write_all(&pattern(3 << 20)).unwrap();
        request
    });
    let mut sender = client.try_clone().unwrap();
    let ask = thread::spawn(move || {
        sender.write_all(&pattern(2 << 20)).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reader = read_all(client);
    let spliced = tokio_uring::start(async {
        let (near, far) = (Socket::new(near).unwrap(), Socket::new(far).unwrap());
        splice_both(&near, &far).await.unwrap()
    });
    ask.join().unwrap();
    assert_eq!(answer.join().unwrap(), pattern(2 << 20));
    assert_eq!(reader.join().unwrap(), pattern(3 << 20));
    assert_eq!(spliced, Spliced { forth: 2 << 20, back: 3 << 20 });
}

#[test]
fn a_dropped_wait_leaves_the_socket_usable() {
    let (mut client, server) = pair();
    tokio_uring::start(async {
        let socket = Socket::new(server).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(10), socket.readable()).await;
        assert!(waited.is_err(), "nothing was sent yet");
        client.write_all(b"late").unwrap();
        assert_eq!(&socket.recv(Vec::with_capacity(8)).await.1[..], b"late");
    });
}

#[test]
fn the_kernel_of_the_tests_has_what_the_node_needs() {
    probe::probe().unwrap();
}

#[test]
fn a_client_that_has_reset_its_connection_is_no_failure_of_accept() {
    tokio_uring::start(async {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let gone = TcpStream::connect(address).unwrap();
        socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
        drop(gone);
        let here = TcpStream::connect(address).unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.peer_addr(), here.local_addr().unwrap());
    });
}

#[test]
fn a_file_in_memory_is_read_and_written_without_the_rings_workers() {
    // Every Linux has one there; a container may not.
    let Ok(file) = tempfile::tempfile_in("/dev/shm").map(Arc::new) else {
        eprintln!("no /dev/shm: files in memory are not tried");
        return;
    };
    assert!(file::in_memory(&file));
    tokio_uring::start(async {
        let pool = Pool::new(1, 2, 8192);
        let (mut out, back) = pool.lease_pair().await;
        out.copy_from_slice(&pattern(8192));
        let (result, out) = file::write_all_at(&file, out, 0..8192, 4096).await;
        result.unwrap();
        let (result, back) = file::read_exact_at(&file, back, 0..8192, 4096).await;
        result.unwrap();
        assert_eq!(back[..], out[..]);
        let (result, _) = file::read_exact_at(&file, back, 0..8192, 8192).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        let (result, bytes) = file::fill_from(&file, vec![0; 4096], 4096, 4096).await;
        result.unwrap();
        assert_eq!(bytes, pattern(8192)[..4096]);
    });
}
