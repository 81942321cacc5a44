//! Memory that the program brings along.

use std::ptr::NonNull;

use crate::region::table::RegisterError;

/// Memory that somebody else allocated, such as the buffers of a C program, with the promise that it may be
/// registered: whoever makes it vouches for it once, and registering it is safe from there on.
///
/// It does not own the memory. Whoever does may free it when all shares of this are gone: a registration
/// holds one.
pub struct ForeignMemory {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: by the contract of `new` the memory may be accessed from any thread while this lives, and it is
// accessed only through a `RegionTable`, whose accesses are racy copies and atomics.
unsafe impl Send for ForeignMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for ForeignMemory {}

impl ForeignMemory {
    /// `len` bytes at `ptr` that may be read and written.
    ///
    /// # Errors
    /// [`RegisterError::OutOfBounds`] for a null pointer, or a range that passes the end of the address space.
    ///
    /// # Safety
    /// As long as this lives (a registration holds a share of it), these bytes must be valid for reads and
    /// writes from any thread, and nobody may hold a reference to bytes that the NIC writes meanwhile, or a
    /// mutable one to bytes that it reads.
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Result<ForeignMemory, RegisterError> {
        Self::checked(ptr, len, true)
    }

    /// `len` bytes at `ptr` that may be read only: registering them with a right to write is refused.
    ///
    /// # Errors
    /// As [`new`](ForeignMemory::new).
    ///
    /// # Safety
    /// As [`new`](ForeignMemory::new), but they need not be valid for writes.
    pub unsafe fn new_read_only(ptr: *const u8, len: usize) -> Result<ForeignMemory, RegisterError> {
        Self::checked(ptr.cast_mut(), len, false)
    }

    fn checked(ptr: *mut u8, len: usize, writable: bool) -> Result<ForeignMemory, RegisterError> {
        let base = NonNull::new(ptr).ok_or(RegisterError::OutOfBounds)?;
        if len > isize::MAX as usize || ptr.addr().checked_add(len).is_none() {
            return Err(RegisterError::OutOfBounds);
        }
        Ok(ForeignMemory { base, len, writable })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of its first byte, which is what work requests name it by unless it is registered with
    /// another one.
    pub fn address(&self) -> u64 {
        self.base.addr().get() as u64
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl std::fmt::Debug for ForeignMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignMemory").field("len", &self.len).field("writable", &self.writable).finish()
    }
}
