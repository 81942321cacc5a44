//! Memory, and its registration with a device.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use anyverbs_memory::{Access, Block};

use super::domain::DomainInner;
use super::error::Error;
use super::exclusive::Exclusive;
use crate::provider::RegionBackend;

/// Memory that only this program touches: page-aligned, zero-filled when new, and fit to be exposed to peers.
///
/// It is a `[u8]`. [`Domain::expose`](crate::Domain::expose) turns it into a [`Window`](crate::Window), and
/// [`Window::revoke`](crate::Window::revoke) gives it back.
pub struct Memory {
    pub(crate) exclusive: Exclusive,
}

impl Memory {
    /// Allocates `len` bytes, all zero.
    ///
    /// # Errors
    /// [`Error::Limit`] if `len` is zero, and [`Error::Memory`] if the system has none left.
    pub fn new(len: usize) -> Result<Memory, Error> {
        if len == 0 || isize::try_from(len).is_err() {
            return Err(Error::Limit {
                what: "memory",
                asked: len as u64,
                found: format!("1 to {} bytes can be allocated", isize::MAX),
                remedy: "ask for at least one byte",
            });
        }
        let exclusive = Exclusive::allocate(len).map_err(|source| Error::Memory { len, source })?;
        Ok(Memory { exclusive })
    }
}

impl Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.exclusive.bytes(usize::MAX)
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.exclusive.bytes_mut(usize::MAX)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.exclusive.len()).finish()
    }
}

/// A registration: while it lives, the device may reach the memory, with the rights that it was made with.
///
/// Dropping it deregisters first and lets go of the memory then; if the provider cannot deregister, the memory
/// is leaked rather than freed under a device that may still write to it.
pub(crate) struct Registration {
    backend: Option<Box<dyn RegionBackend>>,
    block: Arc<Block>,
    /// What work requests call the memory, copied here so that posting asks nobody.
    pub(crate) local: LocalKey,
    /// A registration must not outlive its protection domain.
    domain: Arc<DomainInner>,
}

/// How a work request names registered memory on this side.
#[derive(Clone, Copy)]
pub(crate) struct LocalKey {
    /// The address of the first registered byte, as the provider counts.
    pub(crate) base: u64,
    /// The local key.
    pub(crate) key: u64,
}

impl Registration {
    /// Registers `range` of `block` with `domain`.
    pub(crate) fn new(
        domain: &Arc<DomainInner>,
        block: &Arc<Block>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Registration, Error> {
        let backend = domain.backend.register(block, range, access)?;
        Ok(Registration {
            local: backend.local(),
            backend: Some(backend),
            block: Arc::clone(block),
            domain: Arc::clone(domain),
        })
    }

    /// The address and the key under which peers reach the memory.
    pub(crate) fn remote(&self) -> Option<(u64, u64)> {
        self.backend.as_ref().map(|backend| backend.remote())
    }

    pub(crate) fn domain(&self) -> &Arc<DomainInner> {
        &self.domain
    }

    /// Deregisters; when it has returned `Ok`, nothing touches the memory through this registration any more.
    pub(crate) fn release(&mut self) -> Result<(), Error> {
        let Some(backend) = self.backend.take() else { return Ok(()) };
        backend.deregister().inspect_err(|_| {
            // The device may still reach the memory, so neither it nor the domain is ever freed.
            mem::forget(Arc::clone(&self.block));
            mem::forget(Arc::clone(&self.domain));
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // What a failure leaks is kept by `release`; nobody is left to be told.
        let _ = self.release();
    }
}
