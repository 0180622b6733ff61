//! The server's half of a TLS connection without I/O: bytes in, bytes out. [pure]
//!
//! rustls's unbuffered API leaves the buffers to us: one for what came in and is not yet processed (bounded by
//! [`MAX_INCOMING`]), one for handshake records to be sent, one for plaintext the client sent. Application data goes
//! straight into the caller's buffer ([`Session::encrypt`]).

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{AlertDescription, Error, HandshakeKind, InvalidMessage, PeerMisbehaved, ProtocolVersion, ServerConfig};

/// Largest record on the wire: header and 2^14 + 2048 bytes (RFC 5246, section 6.2.3; TLS 1.3 allows less).
const MAX_RECORD: usize = 5 + 16_384 + 2_048;
/// Unprocessed bytes held: one record and the start of the next. Only a ClientHello spans records, and none in use is
/// near this.
pub const MAX_INCOMING: usize = MAX_RECORD + 2_048;
/// First size of the incoming buffer: requests are small, so most connections never hold a large one.
const FIRST_INCOMING: usize = 4_096;
/// Plaintext of a full record.
pub const RECORD_PLAIN: usize = 16_384;
/// What a record adds at most: 5 of header, 8 of explicit nonce in TLS 1.2 (or 1 of content type in 1.3), 16 of tag.
const RECORD_OVERHEAD: usize = 5 + 8 + 16;
/// Room kept for a KeyUpdate of our own, which may precede the data.
const KEY_UPDATE_ROOM: usize = 64;
/// Handshake records queued for sending at once: two tickets, a certificate flight. More is a bug, not a client.
const MAX_OUTGOING: usize = 64 << 10;

/// What the connection can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The handshake waits for more bytes (after what [`Session::take_outgoing`] gives has been sent).
    Handshaking,
    /// Application data may be sent; more may be received unless [`Session::peer_closed`].
    Open,
    /// Closed by both sides.
    Closed,
}

/// Why plaintext could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The caller did not ask [`Session::max_plain`].
    #[error("{0} bytes of room are needed for the encrypted data")]
    NoRoom(usize),
    /// TLS 1.2 keys may not encrypt more (2^24 records, 256 GiB).
    #[error("the connection's keys are used up")]
    KeysUsedUp,
    /// The handshake is not finished, or the connection is closed.
    #[error("the connection is not open")]
    NotOpen,
    /// What the client sent meanwhile broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Error),
}

/// One server-side connection.
pub struct Session {
    conn: UnbufferedServerConnection,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    received: Vec<u8>,
    peer_closed: bool,
    received_any: bool,
    failed: Option<Error>,
}

impl Session {
    /// A connection that has seen no byte yet.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            conn: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            received: Vec::new(),
            peer_closed: false,
            received_any: false,
            failed: None,
        })
    }

    /// The incoming buffer, with spare capacity to receive into. Give it back by [`Session::put_incoming`]. Errors where
    /// it is full though nothing in it can be processed: a record or ClientHello that claims more than we hold.
    pub fn take_incoming(&mut self) -> Result<Vec<u8>, Error> {
        let held = self.incoming.len();
        if held >= MAX_INCOMING {
            return Err(Error::InvalidMessage(InvalidMessage::MessageTooLarge));
        }
        if held == self.incoming.capacity() {
            let more = held.max(FIRST_INCOMING).min(MAX_INCOMING - held);
            self.incoming.reserve_exact(more);
        }
        Ok(std::mem::take(&mut self.incoming))
    }

    /// Gives the incoming buffer back, with what was received appended.
    pub fn put_incoming(&mut self, incoming: Vec<u8>) {
        self.incoming = incoming;
    }

    /// The last `n` bytes received, as long as nothing was processed since.
    pub fn last_incoming(&self, n: usize) -> &[u8] {
        &self.incoming[self.incoming.len().saturating_sub(n)..]
    }

    /// Processes what came in. Plaintext and records to send are queued inside. An error is final: it is given again
    /// by every later call, and the alert that tells the client is in [`Session::take_outgoing`].
    pub fn advance(&mut self) -> Result<Progress, Error> {
        loop {
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            match self.step() {
                Ok(None) => {}
                Ok(Some(progress)) => return Ok(progress),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Handshake records and alerts to send, in order, before any data encrypted later. Empty where there are none.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// Whether [`Session::take_outgoing`] would give something.
    pub fn wants_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Moves the client's plaintext to the end of `into`; bytes moved.
    pub fn take_received(&mut self, into: &mut Vec<u8>) -> usize {
        let n = self.received.len();
        into.append(&mut self.received);
        n
    }

    /// Whether bytes of the client are here that no receive is needed for: plaintext, or records not looked at yet.
    pub fn has_buffered(&self) -> bool {
        !self.received.is_empty() || !self.incoming.is_empty()
    }

    /// The most plaintext that [`Session::encrypt`] fits into `room` bytes now.
    pub fn max_plain(&self, room: usize) -> usize {
        let room = room.saturating_sub(self.outgoing.len() + KEY_UPDATE_ROOM);
        let record = RECORD_PLAIN + RECORD_OVERHEAD;
        room / record * RECORD_PLAIN + (room % record).saturating_sub(RECORD_OVERHEAD)
    }

    /// Room that `plain` bytes need now.
    pub fn room_for(&self, plain: usize) -> usize {
        self.outgoing.len() + KEY_UPDATE_ROOM + plain + plain.div_ceil(RECORD_PLAIN) * RECORD_OVERHEAD
    }

    /// Encrypts all of `plain` into `out`, behind handshake records still to be sent; bytes written. On
    /// [`SealError::NoRoom`] nothing was encrypted.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        self.seal(out, |traffic, out| traffic.encrypt(plain, out))
    }

    /// The `close_notify` alert, behind handshake records still to be sent.
    pub fn close(&mut self) -> Result<Vec<u8>, SealError> {
        let mut out = vec![0; self.outgoing.len() + KEY_UPDATE_ROOM];
        #[expect(clippy::redundant_closure_for_method_calls, reason = "the path alone fixes a lifetime")]
        let n = self.seal(&mut out, |traffic, out| traffic.queue_close_notify(out))?;
        out.truncate(n);
        Ok(out)
    }

    /// Whether the client ended its direction by `close_notify`.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether the client ever sent application data.
    pub fn received_any(&self) -> bool {
        self.received_any
    }

    /// Whether the client was sent a certificate (it is not on resumption), `flights` being the batches of handshake
    /// records sent so far: the first one is only a HelloRetryRequest where rustls says there was one.
    pub fn presented_certificate(&self, flights: u32) -> bool {
        match self.conn.handshake_kind() {
            Some(HandshakeKind::Full) => flights >= 1,
            Some(HandshakeKind::FullWithHelloRetryRequest) => flights >= 2,
            _ => false,
        }
    }

    /// Whether the client waits for the last records of the handshake (1.2), or only for data (1.3).
    pub fn must_flush_handshake(&self) -> bool {
        self.conn.protocol_version() != Some(ProtocolVersion::TLSv1_3)
    }

    /// Protocol version and cipher suite, for logs and tests.
    pub fn negotiated(&self) -> Option<(ProtocolVersion, rustls::CipherSuite)> {
        Some((self.conn.protocol_version()?, self.conn.negotiated_cipher_suite()?.suite()))
    }

    /// Whether the session continues an earlier one.
    pub fn is_resumed(&self) -> bool {
        self.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    fn step(&mut self) -> Result<Option<Progress>, Error> {
        let UnbufferedStatus { mut discard, state } = self.conn.process_tls_records(&mut self.incoming);
        let outcome = match state {
            Err(error) => Err(error),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    self.received_any |= !record.payload.is_empty();
                    self.received.extend_from_slice(record.payload);
                }
                Ok(None)
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.outgoing).map(|()| None),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(None)
            }
            Ok(ConnectionState::PeerClosed) => {
                self.peer_closed = true;
                Ok(None)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Some(Progress::Handshaking)),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Some(Progress::Open)),
            Ok(ConnectionState::Closed) => Ok(Some(Progress::Closed)),
            // Early data is not offered (max_early_data_size is 0).
            Ok(_) => Err(Error::PeerMisbehaved(PeerMisbehaved::TooMuchEarlyDataReceived)),
        };
        self.incoming.drain(..discard.min(self.incoming.len()));
        outcome
    }

    /// rustls hands out the alert for the client before it looks at the bytes again, which it must not do after an
    /// error: hence exactly one step more, and none where the error is itself an alert.
    fn fail(&mut self, error: Error) {
        if !matches!(error, Error::AlertReceived(_)) {
            let _ = self.step();
        }
        self.failed = Some(error);
    }

    fn seal(
        &mut self,
        out: &mut [u8],
        write: impl FnOnce(&mut WriteTraffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<usize, SealError> {
        if self.advance()? != Progress::Open {
            return Err(SealError::NotOpen);
        }
        let head = self.outgoing.len();
        let Some((front, rest)) = out.split_at_mut_checked(head) else { return Err(SealError::NoRoom(head)) };
        let UnbufferedStatus { discard, state } = self.conn.process_tls_records(&mut self.incoming);
        let written = match state? {
            ConnectionState::WriteTraffic(mut traffic) => write(&mut traffic, rest).map_err(|error| match error {
                EncryptError::InsufficientSize(size) => SealError::NoRoom(head + size.required_size),
                EncryptError::EncryptExhausted => SealError::KeysUsedUp,
            })?,
            _ => return Err(SealError::NotOpen),
        };
        self.incoming.drain(..discard.min(self.incoming.len()));
        front.copy_from_slice(&self.outgoing);
        self.outgoing.clear();
        Ok(head + written)
    }
}

type WriteTraffic<'c> = rustls::unbuffered::WriteTraffic<'c, rustls::server::ServerConnectionData>;

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let start = outgoing.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return Ok(()),
    };
    if start + needed > MAX_OUTGOING {
        return Err(Error::General("too many handshake records queued".to_owned()));
    }
    outgoing.resize(start + needed, 0);
    let written = data.encode(&mut outgoing[start..]).map_err(|error| Error::General(error.to_string()))?;
    outgoing.truncate(start + written);
    Ok(())
}

/// Whether an alert says that the client does not accept our certificate, rather than that something went wrong.
pub fn is_distrust(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::UnknownCA
            | A::BadCertificate
            | A::CertificateUnknown
            | A::CertificateExpired
            | A::CertificateRevoked
            | A::UnsupportedCertificate
            | A::BadCertificateStatusResponse
            | A::AccessDenied
    )
}

#[cfg(test)]
mod tests;
