//! Memory of the device.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyverbs_memory::Block;

use crate::error::NicError;
use crate::nic::Nic;

/// The memory, for as long as its handle or a region over it lives.
pub(crate) struct DmInner {
    nic: Nic,
    len: usize,
    block: Option<Arc<Block>>,
    /// Regions over it.
    regions: AtomicU32,
}

impl Drop for DmInner {
    fn drop(&mut self) {
        self.nic.free_dm(self.len);
    }
}

/// A region's share of device memory.
pub(crate) struct DmShare(Arc<DmInner>);

impl DmShare {
    pub(crate) fn new(dm: &Dm) -> Self {
        dm.inner.regions.fetch_add(1, Ordering::Relaxed);
        DmShare(Arc::clone(&dm.inner))
    }
}

impl Drop for DmShare {
    fn drop(&mut self) {
        self.0.regions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Device memory (`ibv_dm`): memory that the program reaches by copies, and work requests and peers by
/// regions ([`Pd::register_dm`](crate::Pd::register_dm)).
///
/// Here it is memory of the host like any other, but counted: a device has
/// [`max_dm_size`](crate::NicConfig::max_dm_size) bytes of it. It goes back to the device when this and all
/// regions over it are gone.
pub struct Dm {
    inner: Arc<DmInner>,
}

/// Device memory was not freed: regions are registered over it (EBUSY). It comes back with the error.
#[derive(thiserror::Error)]
#[error("{regions} memory regions still use this device memory: drop them first")]
pub struct DmInUse {
    /// The memory.
    pub dm: Dm,
    /// How many regions.
    pub regions: u32,
}

impl std::fmt::Debug for DmInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmInUse").field("regions", &self.regions).finish_non_exhaustive()
    }
}

impl Dm {
    /// The bytes were counted already; they are given back if there is an error.
    pub(crate) fn new(nic: Nic, len: usize) -> Result<Dm, NicError> {
        let mut inner = DmInner { nic, len, block: None, regions: AtomicU32::new(0) };
        let block = Block::new(len).map_err(NicError::system("allocating device memory"))?;
        inner.block = Some(Arc::new(block));
        Ok(Dm { inner: Arc::new(inner) })
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.inner.nic
    }

    pub(crate) fn block(&self) -> Option<&Arc<Block>> {
        self.inner.block.as_ref()
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "device memory is never empty")]
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Copies into it, from byte `at` on (`ibv_memcpy_to_dm`).
    ///
    /// # Errors
    /// [`NicError::OutsideMemory`]; nothing was copied then.
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<(), NicError> {
        let done = self.block().is_some_and(|block| block.write(at, bytes).is_ok());
        self.inside(done, at..at.saturating_add(bytes.len()))
    }

    /// Copies out of it, from byte `at` on (`ibv_memcpy_from_dm`).
    ///
    /// # Errors
    /// [`NicError::OutsideMemory`]; nothing was copied then.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), NicError> {
        let done = self.block().is_some_and(|block| block.read(at, bytes).is_ok());
        self.inside(done, at..at.saturating_add(bytes.len()))
    }

    fn inside(&self, done: bool, Range { start, end }: Range<usize>) -> Result<(), NicError> {
        done.then_some(()).ok_or(NicError::OutsideMemory { start, end, len: self.len() })
    }

    /// Frees it (`ibv_free_dm`), unless a region is registered over it. Dropping it instead leaves it to the
    /// last of them.
    ///
    /// # Errors
    /// [`DmInUse`] gives it back.
    pub fn free(self) -> Result<(), DmInUse> {
        match self.inner.regions.load(Ordering::Relaxed) {
            0 => Ok(()),
            regions => Err(DmInUse { dm: self, regions }),
        }
    }
}
