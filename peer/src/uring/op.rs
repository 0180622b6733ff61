//! One-completion operations through tokio-uring's driver.

use std::{io, marker::PhantomData};

use io_uring::{cqueue, squeue};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// Gives the operation's data back with its result.
pub(super) struct GiveBack<D>(PhantomData<D>);

impl<D> OneshotOutputTransform for GiveBack<D> {
    type Output = (io::Result<u32>, D);
    type StoredData = D;

    fn transform_oneshot_output(self, data: D, entry: cqueue::Entry) -> Self::Output {
        let result = u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        (result, data)
    }
}

/// Submits `entry`, keeping `data` alive until its completion.
///
/// # Safety
/// Every pointer and descriptor in `entry` must be owned by `data`, and must stay valid when `data` is moved.
pub(super) unsafe fn submit<D: Unpin + 'static>(data: D, entry: squeue::Entry) -> InFlightOneshot<D, GiveBack<D>> {
    UnsubmittedOneshot::new(data, GiveBack(PhantomData), entry).submit()
}

/// Whether an operation is to be tried again at once: a signal came first.
pub(super) fn interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}
