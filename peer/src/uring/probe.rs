//! What this kernel's io_uring can do, asked once at start.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// The kernel has no usable io_uring.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// io_uring_setup(2) failed.
    #[error(
        "io_uring is not available here ({0}): check the kernel.io_uring_disabled sysctl and the container's seccomp profile"
    )]
    Unavailable(io::Error),
    /// An operation that the node cannot do without is missing.
    #[error("this kernel's io_uring has no {0}: Linux 5.10 or later is needed")]
    Missing(&'static str),
    /// Not every shard gets a ring.
    #[error(
        "io_uring gives no ring to every shard ({0}): raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity), grant CAP_IPC_LOCK, \
         or set fewer `shards`"
    )]
    Ring(io::Error),
}

/// The features that the node chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Zero-copy sends (6.0), for devices that can.
    pub send_zc: bool,
    /// The kernel skips interrupts for task work that the shard would notice anyway (5.19).
    pub coop_taskrun: bool,
}

/// Operations without which no shard can run.
const NEEDED: [(u8, &str); 9] = [
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
];

/// Asks the kernel.
///
/// # Errors
/// [`ProbeError`], which says what to change.
pub fn probe() -> Result<Features, ProbeError> {
    let ring: IoUring = IoUring::new(2).map_err(ProbeError::Unavailable)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(ProbeError::Unavailable)?;
    if let Some((_, name)) = NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(ProbeError::Missing(name));
    }
    Ok(Features {
        send_zc: probe.is_supported(opcode::SendZc::CODE),
        coop_taskrun: tokio_uring::uring_builder().setup_coop_taskrun().build(2).is_ok(),
    })
}

/// The ring that a shard runs on.
pub fn ring_builder(features: Features) -> io_uring::Builder {
    let mut builder = tokio_uring::uring_builder();
    if features.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    builder
}
