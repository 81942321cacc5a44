//! Registered buffers that are lent and come back.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use anyverbs_memory::Access;

use super::domain::DomainInner;
use super::error::{Error, OutOfBounds};
use super::exclusive::Exclusive;
use super::region::{LocalKey, Registration};

/// Leases start at multiples of this, so that two of them never share a cache line.
const ALIGNMENT: usize = 64;

/// Registered memory, cut into leases of one size.
///
/// Peers have no rights in it. Cloning a pool gives another handle to the same one; its memory lives as long as a
/// handle or a lease of it does.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    /// What is not lent. Never grows beyond the capacity that it was made with. Last in, first out: the buffer
    /// that is warm in the cache goes out again.
    free: Mutex<Vec<Exclusive>>,
    count: usize,
    size: u32,
    stride: usize,
    /// Dropped after the leases (each holds the pool) and before the memory (each lease holds the block).
    registration: Registration,
}

impl Pool {
    pub(crate) fn new(domain: &Arc<DomainInner>, count: usize, size: usize) -> Result<Pool, Error> {
        let limit = |what, asked, found: &str, remedy| Error::Limit {
            what,
            asked: asked as u64,
            found: found.to_owned(),
            remedy,
        };
        if count == 0 {
            return Err(limit("number of leases", count, "a pool has at least one", "ask for one or more"));
        }
        let size_u32 = u32::try_from(size).ok().filter(|&size| size > 0 && size <= i32::MAX.unsigned_abs());
        let Some(size_u32) = size_u32 else {
            return Err(limit(
                "size of a lease",
                size,
                "a message has 1 to 2147483647 bytes of room",
                "cut the message up",
            ));
        };
        let stride = size.next_multiple_of(ALIGNMENT);
        let Some(len) = stride.checked_mul(count).filter(|&len| isize::try_from(len).is_ok()) else {
            return Err(limit("number of leases", count, "they do not fit into memory", "ask for fewer"));
        };
        let memory = Exclusive::allocate(len).map_err(|source| Error::Memory { len, source })?;
        // Local rights only: no peer reaches a lease, whatever key it guesses.
        let registration = Registration::new(domain, memory.block(), 0..len, Access::LOCAL_WRITE)?;
        let mut free: Vec<_> = memory.divide(stride).collect();
        free.reverse();
        let inner = PoolInner { free: Mutex::new(free), count, size: size_u32, stride, registration };
        Ok(Pool { inner: Arc::new(inner) })
    }

    /// Lends a buffer, or `None` when all of them are out.
    ///
    /// Its length is its capacity, and its bytes are what its last user left.
    pub fn lease(&self) -> Option<Lease> {
        let exclusive = self.inner.free().pop()?;
        Some(Lease { exclusive: Some(exclusive), len: self.inner.size, pool: Arc::clone(&self.inner) })
    }

    /// Bytes in a lease.
    pub fn size(&self) -> usize {
        self.inner.size as usize
    }

    /// How many leases there are, lent or not.
    pub fn count(&self) -> usize {
        self.inner.count
    }

    /// How many leases are not lent.
    pub fn available(&self) -> usize {
        self.inner.free().len()
    }
}

impl PoolInner {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Exclusive>> {
        // No code panics while it holds the list, and a list is right after each single step.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("count", &self.count())
            .field("size", &self.size())
            .field("available", &self.available())
            .finish()
    }
}

/// A buffer of a [`Pool`]: a `[u8]` of [`len`](slice::len) bytes, until it is posted.
///
/// Posting moves it into the queue; it comes back in a [`Completion`](crate::Completion), from
/// [`Qp::destroy`](crate::Qp::destroy), or in the error of a post that was refused. So nobody looks at a buffer
/// that a device is working on. Dropping a lease gives it back to its pool.
///
/// It keeps the memory alive: a lease may outlive the pool's handles, the domain's and the device's.
pub struct Lease {
    /// `None` only inside of `drop`.
    exclusive: Option<Exclusive>,
    len: u32,
    pool: Arc<PoolInner>,
}

impl Lease {
    /// How many bytes it has room for.
    pub fn capacity(&self) -> usize {
        self.pool.size as usize
    }

    /// Says how many of its bytes are in use, from the first: what is sent, and what the slice covers.
    ///
    /// # Errors
    /// [`OutOfBounds`] if `len` is more than the capacity; the length is then as it was.
    pub fn set_len(&mut self, len: usize) -> Result<(), OutOfBounds> {
        match u32::try_from(len) {
            Ok(len) if len <= self.pool.size => {
                self.len = len;
                Ok(())
            }
            _ => Err(OutOfBounds { offset: 0, len: len as u64, size: u64::from(self.pool.size) }),
        }
    }

    /// Copies `bytes` to its beginning and makes them its length.
    ///
    /// # Errors
    /// [`OutOfBounds`] if there are more of them than the capacity; the lease is then as it was.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<(), OutOfBounds> {
        self.set_len(bytes.len())?;
        self.copy_from_slice(bytes);
        Ok(())
    }

    /// Which lease of its pool it is, from 0: the same memory has the same index every time it is lent.
    pub fn index(&self) -> usize {
        self.exclusive.as_ref().map_or(0, |exclusive| exclusive.start() / self.pool.stride)
    }

    /// How work requests name its memory: the address of its first byte, and the key.
    pub(crate) fn local(&self) -> LocalKey {
        let LocalKey { base, key } = self.pool.registration.local;
        let start = self.exclusive.as_ref().map_or(0, |exclusive| exclusive.start() as u64);
        LocalKey { base: base + start, key }
    }

    /// The protection domain that its memory is registered with.
    pub(crate) fn domain(&self) -> &Arc<DomainInner> {
        self.pool.registration.domain()
    }

    /// Sets the length to what a device reported, which is never believed beyond the capacity.
    pub(crate) fn set_len_reported(&mut self, len: u32) {
        self.len = len.min(self.pool.size);
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.exclusive.as_ref().map_or(&[], |exclusive| exclusive.bytes(self.len as usize))
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.exclusive.as_mut().map_or(&mut [], |exclusive| exclusive.bytes_mut(self.len as usize))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(exclusive) = self.exclusive.take() {
            self.pool.free().push(exclusive);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("index", &self.index())
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}
