//! Until when a link's other end is who it says.

use std::{
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use quinn::{Connection, VarInt};

use super::{code, identity};

/// Timers are set for no longer than this, so that a clock that is put right counts.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Waits until the certificate that the other end showed in its handshake expires, then closes the connection: a link
/// outlives no certificate.
pub(super) async fn close_when_due(connection: &Connection) {
    let Some(expiry) = identity::expiry(connection) else { return pending().await };
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if expiry <= now {
            let code: VarInt = code::EXPIRED;
            return connection.close(code, b"your certificate has expired");
        }
        tokio::time::sleep(Duration::from_secs(expiry - now).min(LOOK_EVERY)).await;
    }
}
