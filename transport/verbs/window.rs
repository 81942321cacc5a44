//! Memory that peers may reach.

use std::fmt;
use std::sync::Arc;

use anyverbs_memory::Access;

use super::domain::DomainInner;
use super::error::{Error, OutOfBounds};
use super::region::{Memory, Registration};
use super::remote::RemoteToken;

bitflags::bitflags! {
    /// What peers may do with a [`Window`].
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Rights: u32 {
        /// RDMA WRITE, with and without immediate data.
        const WRITE = 1 << 1;
        /// RDMA READ.
        const READ = 1 << 2;
        /// FETCH_ADD and COMPARE_SWAP, on 8 bytes aligned to 8.
        const ATOMIC = 1 << 3;
    }
}

impl Rights {
    /// The registration flags. Verbs want the local write right wherever a peer may write.
    fn access(self) -> Access {
        let mut access = Access::empty();
        for (right, flags) in [
            (Rights::WRITE, Access::REMOTE_WRITE | Access::LOCAL_WRITE),
            (Rights::READ, Access::REMOTE_READ),
            (Rights::ATOMIC, Access::REMOTE_ATOMIC | Access::LOCAL_WRITE),
        ] {
            if self.contains(right) {
                access |= flags;
            }
        }
        access
    }
}

/// Memory that peers may read and write at any moment, with the rights that it was made with.
///
/// It is never a slice: the program copies bytes in and out, or uses the atomics, and both may race with peers
/// without harm. A copy that races with a write sees old bytes and new ones mixed; only the atomics, and the
/// order in which completions arrive, say more than that.
///
/// [`token`](Window::token) is what a peer needs; [`revoke`](Window::revoke) ends its rights and gives the memory
/// back. Dropping the window does the same and frees the memory.
pub struct Window {
    /// First to be dropped: nobody reaches the memory when it is freed.
    registration: Registration,
    memory: Memory,
    rights: Rights,
}

impl Window {
    pub(crate) fn new(domain: &Arc<DomainInner>, memory: Memory, rights: Rights) -> Result<Window, Error> {
        let exclusive = &memory.exclusive;
        let range = exclusive.start()..exclusive.start() + exclusive.len();
        let registration = Registration::new(domain, exclusive.block(), range, rights.access())?;
        Ok(Window { registration, memory, rights })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.memory.exclusive.len()
    }

    /// Whether it has no bytes, which is never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What peers may do.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// What a peer needs to reach it. Whoever has the token and a connection has the rights.
    pub fn token(&self) -> RemoteToken {
        // A window that was not revoked is registered; an impossible key reaches nothing.
        let (base, key) = self.registration.remote().unwrap_or((0, 0));
        RemoteToken::new(base, self.len() as u64, key)
    }

    /// Copies bytes from `offset` on into `to`.
    ///
    /// # Errors
    /// [`OutOfBounds`] if they are not all inside of the window; nothing is copied then.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        let at = self.locate(offset, to.len())?;
        self.memory.exclusive.block().read(at, to).map_err(|_| self.out(offset, to.len()))
    }

    /// Copies `from` into the window, from `offset` on.
    ///
    /// # Errors
    /// [`OutOfBounds`] if it does not all fit there; nothing is copied then.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let at = self.locate(offset, from.len())?;
        self.memory.exclusive.block().write(at, from).map_err(|_| self.out(offset, from.len()))
    }

    /// Loads 8 bytes, in native order, at once.
    ///
    /// # Errors
    /// [`OutOfBounds`] if `offset` is not a multiple of 8, or leaves the window.
    pub fn load_u64(&self, offset: usize) -> Result<u64, OutOfBounds> {
        let at = self.locate(offset, 8)?;
        self.memory.exclusive.block().load_u64(at).map_err(|_| self.out(offset, 8))
    }

    /// Stores 8 bytes, in native order, at once.
    ///
    /// # Errors
    /// As [`load_u64`](Window::load_u64).
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<(), OutOfBounds> {
        let at = self.locate(offset, 8)?;
        self.memory.exclusive.block().store_u64(at, value).map_err(|_| self.out(offset, 8))
    }

    /// Adds to 8 bytes, in native order, and returns what they were. Wraps around.
    ///
    /// On the software NIC this is atomic with peers' atomics too; on hardware only if the device says so.
    ///
    /// # Errors
    /// As [`load_u64`](Window::load_u64).
    pub fn fetch_add_u64(&self, offset: usize, add: u64) -> Result<u64, OutOfBounds> {
        let at = self.locate(offset, 8)?;
        self.memory.exclusive.block().fetch_add_u64(at, add).map_err(|_| self.out(offset, 8))
    }

    /// Stores `new` in 8 bytes if they are `expected`, and returns what they were; atomic as
    /// [`fetch_add_u64`](Window::fetch_add_u64) is.
    ///
    /// # Errors
    /// As [`load_u64`](Window::load_u64).
    pub fn compare_swap_u64(&self, offset: usize, expected: u64, new: u64) -> Result<u64, OutOfBounds> {
        let at = self.locate(offset, 8)?;
        self.memory.exclusive.block().compare_swap_u64(at, expected, new).map_err(|_| self.out(offset, 8))
    }

    /// Ends the peers' rights and gives the memory back as memory that only this program touches.
    ///
    /// A request of a peer that comes later fails there with [`Status::RemAccessErr`](crate::Status::RemAccessErr);
    /// one that is under way is finished, or cut off, before this returns.
    ///
    /// # Errors
    /// [`Error::Provider`] if the device cannot deregister; the memory is then leaked, since peers may still write
    /// to it.
    pub fn revoke(mut self) -> Result<Memory, Error> {
        self.registration.release()?;
        Ok(self.memory)
    }

    /// Where in the block `len` bytes at `offset` are.
    fn locate(&self, offset: usize, len: usize) -> Result<usize, OutOfBounds> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.memory.exclusive.start() + offset),
            _ => Err(self.out(offset, len)),
        }
    }

    fn out(&self, offset: usize, len: usize) -> OutOfBounds {
        OutOfBounds { offset: offset as u64, len: len as u64, size: self.len() as u64 }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("len", &self.len()).field("rights", &self.rights).finish()
    }
}
