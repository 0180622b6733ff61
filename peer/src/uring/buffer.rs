//! A shard's buffers: a few registered with its ring, and more from the heap while it is busy.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut, Range},
    rc::Rc,
    sync::Arc,
};

use io_uring::{opcode, squeue, types};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufPool};

/// A bounded set of equal buffers that belongs to one shard.
///
/// The registered ones are pinned memory, so they are few; past them buffers come from the heap up to the bound, and
/// a handful of those is kept for the next burst.
#[derive(Clone)]
pub struct Pool {
    shared: Rc<Shared>,
}

struct Shared {
    buf_len: usize,
    fixed: Option<FixedBufPool<Vec<u8>>>,
    spare: RefCell<Vec<Box<[u8]>>>,
    spare_max: usize,
    permits: Arc<Semaphore>,
}

impl Pool {
    /// At most `max` buffers of `buf_len` bytes, `registered` of them registered with the calling shard's ring.
    ///
    /// Where the kernel refuses the registration (RLIMIT_MEMLOCK without CAP_IPC_LOCK) all come from the heap: the same
    /// bytes move, at the cost of pinning pages on each operation.
    pub fn new(registered: usize, max: usize, buf_len: usize) -> Self {
        let fixed = FixedBufPool::new((0..registered.min(max)).map(|_| vec![0; buf_len]));
        let fixed = match fixed.register() {
            Ok(()) if registered > 0 => Some(fixed),
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "buffers could not be registered with io_uring: raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK"
                );
                None
            }
        };
        let permits = Arc::new(Semaphore::new(max));
        let shared = Shared { buf_len, fixed, spare: RefCell::default(), spare_max: registered.max(4), permits };
        Self { shared: Rc::new(shared) }
    }

    /// Bytes in each buffer.
    pub fn buf_len(&self) -> usize {
        self.shared.buf_len
    }

    /// A buffer, when one is free. First come, first served.
    pub async fn lease(&self) -> Buf {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await.expect("never closed");
        self.take(permit)
    }

    /// Two buffers at once, so that nobody waits for a second one while holding a first.
    pub async fn lease_pair(&self) -> (Buf, Buf) {
        let mut permits = Arc::clone(&self.shared.permits).acquire_many_owned(2).await.expect("never closed");
        let second = permits.split(1).expect("two were acquired");
        (self.take(permits), self.take(second))
    }

    /// A buffer, if one is free now.
    #[cfg(test)]
    pub(super) fn try_lease(&self) -> Option<Buf> {
        Arc::clone(&self.shared.permits).try_acquire_owned().ok().map(|permit| self.take(permit))
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Buf {
        let fixed = self.shared.fixed.as_ref().and_then(|fixed| fixed.try_next(self.shared.buf_len));
        let memory = match fixed {
            Some(fixed) => Memory::Fixed(fixed),
            None => {
                let spare = self.shared.spare.borrow_mut().pop();
                Memory::Heap(spare.unwrap_or_else(|| vec![0; self.shared.buf_len].into_boxed_slice()))
            }
        };
        Buf { memory, pool: Rc::clone(&self.shared), _permit: permit }
    }
}

/// One buffer on loan from a [`Pool`]; all of it is initialised. It goes back when dropped.
pub struct Buf {
    memory: Memory,
    pool: Rc<Shared>,
    _permit: OwnedSemaphorePermit,
}

enum Memory {
    Fixed(FixedBuf),
    Heap(Box<[u8]>),
}

impl Buf {
    /// The operation that reads into `span`, by the way that this buffer's memory allows.
    pub(super) fn read_entry(&mut self, fd: types::Fd, span: Range<usize>, offset: u64) -> squeue::Entry {
        let len = entry_len(&span);
        match &mut self.memory {
            Memory::Fixed(fixed) => {
                let index = fixed.buf_index();
                opcode::ReadFixed::new(fd, fixed[span].as_mut_ptr(), len, index).offset(offset).build()
            }
            Memory::Heap(heap) => opcode::Read::new(fd, heap[span].as_mut_ptr(), len).offset(offset).build(),
        }
    }

    /// The operation that writes `span`.
    pub(super) fn write_entry(&self, fd: types::Fd, span: Range<usize>, offset: u64) -> squeue::Entry {
        let len = entry_len(&span);
        match &self.memory {
            Memory::Fixed(fixed) => {
                opcode::WriteFixed::new(fd, fixed[span].as_ptr(), len, fixed.buf_index()).offset(offset).build()
            }
            Memory::Heap(heap) => opcode::Write::new(fd, heap[span].as_ptr(), len).offset(offset).build(),
        }
    }
}

fn entry_len(span: &Range<usize>) -> u32 {
    u32::try_from(span.len()).expect("buffers are smaller than 4 GiB")
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Fixed(fixed) => fixed,
            Memory::Heap(heap) => heap,
        }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Fixed(fixed) => fixed,
            Memory::Heap(heap) => heap,
        }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Memory::Heap(heap) = &mut self.memory {
            let mut spare = self.pool.spare.borrow_mut();
            if spare.len() < self.pool.spare_max {
                spare.push(std::mem::take(heap));
            }
        }
    }
}
