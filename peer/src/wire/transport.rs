//! Windows, timers and congestion control of all links.
//!
//! Cubic, with a raised initial window. Measured with benches/wire over a veth pair on two cores: shaped to 1 Gbit/s, Cubic
//! and NewReno both fill 944 Mbit/s; Cubic is the one that also recovers fast on longer or faster lines. BBR costs a quarter
//! more CPU time a byte, and so a quarter of the speed of an unshaped line. No gain, so left as quinn has it: fewer
//! acknowledgements (they go out once a batch anyway), streams one after the other, windows of 8 or 16 MiB.

use std::{sync::Arc, time::Duration};

use quinn::{MtuDiscoveryConfig, TransportConfig, congestion::CubicConfig};

/// A peer that is gone is known to be gone after this.
const IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// 10 Gbit/s x 1 ms is 1.25 MB, and one stream may use it alone.
const STREAM_WINDOW: u32 = 2 << 20;
/// Bounds what one link can make us buffer, each way: a line that is full for 3 ms bears a scheduling hiccup. More only
/// fills caches: what is read is still warm if it was not received long ago.
const LINK_WINDOW: u32 = 4 << 20;
/// The control stream and the pieces asked for at a time.
pub(super) const STREAMS: u32 = 64;
/// IPv6 and UDP headers.
pub(super) const HEADERS: u16 = 48;
/// A UDP payload that every Ethernet carries; discovery goes on from there to the link's own.
const ETHERNET_PAYLOAD: u16 = 1452;
/// Round trips in a data centre take 50 us to 1 ms. quinn's 333 ms are for the Internet.
const INITIAL_RTT: Duration = Duration::from_millis(5);
/// What is sent before the first acknowledgement: a tenth of a millisecond's worth at 10 Gbit/s. A switch buffers that.
const INITIAL_WINDOW: u64 = 128 << 10;

/// The largest UDP payload of a link with this MTU.
pub(super) fn payload(link_mtu: u16) -> u16 {
    link_mtu.clamp(1280, 65_500) - HEADERS
}

/// For packets of at most `payload` bytes.
pub(super) fn config(payload: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(payload);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(congestion))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(payload.min(ETHERNET_PAYLOAD))
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(LINK_WINDOW.into())
        .send_window(LINK_WINDOW.into())
        .max_concurrent_bidi_streams(STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE.try_into().expect("seconds fit")));
    transport
}
