//! Batches on a socket that only notes what it is asked to send.

use super::*;

/// One send: receiver, segment size, content.
type Sent = (SocketAddr, Option<usize>, Vec<u8>);

#[derive(Debug, Default)]
struct Notes {
    sent: Mutex<Vec<Sent>>,
    full: Mutex<bool>,
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // As a socket that becomes writable soon.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncUdpSocket for Notes {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if *self.full.lock().unwrap() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let sent = (transmit.destination, transmit.segment_size, transmit.contents.to_vec());
        self.sent.lock().unwrap().push(sent);
        Ok(())
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(to(0))
    }

    fn max_transmit_segments(&self) -> usize {
        64
    }
}

const MTU: u16 = 1452;

fn to(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn send(socket: &Joined, port: u16, fill: u8, len: usize) -> io::Result<()> {
    let contents = &vec![fill; len][..];
    let segment_size = (len > usize::from(MTU)).then_some(usize::from(MTU));
    socket.try_send(&Transmit { destination: to(port), ecn: None, contents, segment_size, src_ip: None })
}

fn socket() -> (Arc<Notes>, Arc<Joined>) {
    let notes = Arc::new(Notes::default());
    (Arc::clone(&notes), Joined::over(Arc::clone(&notes) as _, MTU))
}

fn sent(notes: &Notes) -> Vec<(u16, usize)> {
    notes.sent.lock().unwrap().iter().map(|(address, _, bytes)| (address.port(), bytes.len())).collect()
}

/// Lets the flusher run as often as it wants.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

const TEN: usize = 10 * MTU as usize;

#[tokio::test]
async fn full_batches_for_one_receiver_leave_as_one_and_in_order() {
    let (notes, socket) = socket();
    for fill in 1..=3 {
        send(&socket, 1, fill, TEN).unwrap();
    }
    assert!(sent(&notes).is_empty());
    settle().await;
    assert_eq!(sent(&notes), [(1, 3 * TEN)]);
    let (_, segment, bytes) = notes.sent.lock().unwrap()[0].clone();
    assert_eq!(segment, Some(usize::from(MTU)));
    assert!((1..=3u8).zip(bytes.chunks(TEN)).all(|(fill, part)| part.iter().all(|byte| *byte == fill)));
}

#[tokio::test]
async fn no_batch_is_longer_than_the_kernel_takes() {
    let (notes, socket) = socket();
    for _ in 0..9 {
        send(&socket, 1, 1, TEN).unwrap();
    }
    settle().await;
    assert_eq!(sent(&notes), [(1, 4 * TEN), (1, 4 * TEN), (1, TEN)]);
}

#[tokio::test]
async fn a_short_datagram_ends_its_batch_and_single_ones_do_not_wait() {
    let (notes, socket) = socket();
    send(&socket, 1, 1, TEN).unwrap();
    send(&socket, 1, 2, 40).unwrap();
    assert_eq!(sent(&notes), [(1, TEN + 40)]);
    send(&socket, 1, 3, 40).unwrap();
    assert_eq!(sent(&notes).last(), Some(&(1, 40)));
    send(&socket, 1, 4, TEN + 7).unwrap();
    assert_eq!(sent(&notes).last(), Some(&(1, TEN + 7)));
}

#[tokio::test]
async fn another_receiver_gets_a_batch_of_its_own_and_never_overtakes() {
    let (notes, socket) = socket();
    send(&socket, 1, 1, TEN).unwrap();
    send(&socket, 2, 2, TEN).unwrap();
    send(&socket, 1, 3, TEN).unwrap();
    settle().await;
    assert_eq!(sent(&notes), [(1, TEN), (2, TEN), (1, TEN)]);
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_where_the_socket_blocks() {
    let (notes, socket) = socket();
    *notes.full.lock().unwrap() = true;
    send(&socket, 1, 1, TEN).unwrap();
    settle().await;
    send(&socket, 1, 2, TEN).unwrap();
    let refused = send(&socket, 2, 3, TEN).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    *notes.full.lock().unwrap() = false;
    settle().await;
    assert_eq!(sent(&notes), [(1, 2 * TEN)]);
    send(&socket, 2, 3, TEN).unwrap();
    settle().await;
    assert_eq!(sent(&notes), [(1, 2 * TEN), (2, TEN)]);
}
