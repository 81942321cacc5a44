//! Memory that the NIC owns and that another process can map.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::copy;

/// Why an access to a [`Block`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The range ends outside the block.
    #[error("the range is outside the block")]
    OutOfBounds,
    /// A 64-bit access needs an offset that is a multiple of 8.
    #[error("the offset is not a multiple of 8")]
    Misaligned,
}

/// Zero-filled, page-aligned memory, which other processes can map where the system allows it.
///
/// A block is a sealed memory file: nobody who gets its descriptor can shrink it, so no access to
/// it can fault. Where memory files are denied (some sandboxes), it is anonymous memory with
/// the same interface and no descriptor.
///
/// The contents are *racy*: other threads, peers and processes may write to them at any time. The
/// safe methods copy in and out; see the [crate documentation](crate) for what that means.
pub struct Block {
    base: NonNull<u8>,
    len: usize,
    id: u64,
    fd: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to the `Block` alone and is not tied to a thread. Safe methods touch it
// only by bytewise-atomic copies and atomic operations, which may run concurrently; the methods that
// make references are unsafe and leave exclusion to their caller.
unsafe impl Send for Block {}
// SAFETY: as for `Send`: every safe method takes `&self` and is sound when raced with any other.
unsafe impl Sync for Block {}

/// Who may write to a block through its descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    ReadWrite,
    ReadOnly,
}

impl Block {
    /// Allocates `len` bytes of zeroes.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is zero or above `isize::MAX`; otherwise what the system said, such as
    /// too many open files or not enough memory.
    pub fn new(len: usize) -> io::Result<Block> {
        Self::allocate(len, Sharing::ReadWrite)
    }

    /// Allocates `len` bytes of zeroes that other processes can map for reading only.
    ///
    /// # Errors
    /// As [`Block::new`].
    pub fn new_read_only_to_others(len: usize) -> io::Result<Block> {
        Self::allocate(len, Sharing::ReadOnly)
    }

    /// Allocates `len` bytes of zeroes that no other process can map.
    ///
    /// They take no file descriptor, of which a process may have a thousand or so: what there is two of for
    /// each queue pair has to be of this kind.
    ///
    /// # Errors
    /// As [`Block::new`].
    pub fn new_anonymous(len: usize) -> io::Result<Block> {
        check_len(len)?;
        Ok(Block { base: map(len, None)?, len, id: next_id(), fd: None })
    }

    /// Maps the block that another process made with [`Block::new`] and handed over by its descriptor, which
    /// is closed: this block has none.
    ///
    /// # Errors
    /// `InvalidInput` for a length of zero or above `isize::MAX`; `InvalidData` if the descriptor is no sealed
    /// memory file of exactly `len` bytes, since accesses to another file could fault; otherwise what the
    /// system said.
    pub fn open(fd: OwnedFd, len: usize) -> io::Result<Block> {
        check_len(len)?;
        check_foreign(&fd, len)?;
        let base = map(len, Some(fd.as_fd()))?;
        Ok(Block { base, len, id: next_id(), fd: None })
    }

    fn allocate(len: usize, sharing: Sharing) -> io::Result<Block> {
        check_len(len)?;
        let (base, fd) = match memory_file(len) {
            Ok(fd) => {
                let base = map(len, Some(fd.as_fd()))?;
                // Sealed after it is mapped, so that our own mapping stays writable.
                let fd = seal(&fd, sharing).is_ok().then_some(fd);
                (base, fd)
            }
            // Denied by a sandbox, or a kernel without memory files: keep the memory to ourselves.
            Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => (map(len, None)?, None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Block { base, len, id: next_id(), fd })
    }

    /// The number of bytes that were asked for.
    #[expect(clippy::len_without_is_empty, reason = "a block is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number of this block within this process; never reused.
    ///
    /// Shared tables name a block by it, since an address means nothing to another process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The first byte, page-aligned. Valid for reads and writes of [`len`](Block::len) bytes while
    /// the block lives; the memory is racy, so make no reference to it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The memory file, for another process to map; `None` if the memory is anonymous, or another's.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Copies `dst.len()` bytes out, from offset `at`.
    ///
    /// # Errors
    /// [`BlockError::OutOfBounds`], and then nothing was copied.
    pub fn read(&self, at: usize, dst: &mut [u8]) -> Result<(), BlockError> {
        let src = self.at(at, dst.len())?;
        // SAFETY: `at` has checked that the range lies in the mapping, which lives as long as `self`. A
        // caller holds `&mut` to bytes of this block only by the promise of `slice_mut` that nobody
        // else touches them, so `dst` does not overlap the range.
        unsafe { copy::copy_out(dst, src) };
        Ok(())
    }

    /// Copies `src` in, to offset `at`; its last byte becomes visible last.
    ///
    /// # Errors
    /// [`BlockError::OutOfBounds`], and then nothing was copied.
    pub fn write(&self, at: usize, src: &[u8]) -> Result<(), BlockError> {
        let dst = self.at(at, src.len())?;
        // SAFETY: as in `read`, with the promise of `slice`.
        unsafe { copy::copy_in(dst, src) };
        Ok(())
    }

    /// Reads the 64-bit word at offset `at`, in this machine's byte order, with acquire ordering.
    ///
    /// # Errors
    /// [`BlockError::OutOfBounds`]; [`BlockError::Misaligned`] if `at` is no multiple of 8.
    pub fn load_u64(&self, at: usize) -> Result<u64, BlockError> {
        Ok(self.word(at)?.load(Ordering::Acquire))
    }

    /// Writes the 64-bit word at offset `at`, in this machine's byte order, with release ordering.
    ///
    /// # Errors
    /// As [`load_u64`](Block::load_u64).
    pub fn store_u64(&self, at: usize, value: u64) -> Result<(), BlockError> {
        self.word(at)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Adds to the 64-bit word at offset `at`, wrapping, and returns what it was before.
    ///
    /// # Errors
    /// As [`load_u64`](Block::load_u64).
    pub fn fetch_add_u64(&self, at: usize, add: u64) -> Result<u64, BlockError> {
        Ok(self.word(at)?.fetch_add(add, Ordering::SeqCst))
    }

    /// Stores `swap` in the 64-bit word at offset `at` if it equals `compare`, and returns what it
    /// was before.
    ///
    /// # Errors
    /// As [`load_u64`](Block::load_u64).
    pub fn compare_swap_u64(&self, at: usize, compare: u64, swap: u64) -> Result<u64, BlockError> {
        let (Ok(before) | Err(before)) =
            self.word(at)?.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst);
        Ok(before)
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    /// While the slice lives, nobody may write to the range: no peer has a right to it, no work
    /// request that writes it is in flight, and no other method of this block writes to it.
    ///
    /// # Panics
    /// Like slice indexing, if `range` is not within the block.
    pub unsafe fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the block");
        // SAFETY: the range lies in the mapping, which outlives the borrow of `self` and was zero-filled
        // by the kernel; the caller vouches that nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(range.start), range.len()) }
    }

    /// The bytes of `range`, to write to.
    ///
    /// # Safety
    /// While the slice lives, nobody else may touch the range: no peer has a right to it, no work
    /// request that names it is in flight, and no other method of this block reaches it.
    ///
    /// # Panics
    /// Like slice indexing, if `range` is not within the block.
    #[expect(clippy::mut_from_ref, reason = "exclusion is per range, and the caller's promise")]
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the block");
        // SAFETY: the range lies in the mapping, which outlives the borrow of `self` and was zero-filled
        // by the kernel; the caller vouches that nobody else touches it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().add(range.start), range.len()) }
    }

    /// A pointer to `len` bytes at offset `at`, all of them inside the block.
    fn at(&self, at: usize, len: usize) -> Result<*mut u8, BlockError> {
        if at > self.len || len > self.len - at {
            return Err(BlockError::OutOfBounds);
        }
        // SAFETY: `at <= self.len`, so the result is inside the mapping or one past its end.
        Ok(unsafe { self.as_ptr().add(at) })
    }

    fn word(&self, at: usize) -> Result<&AtomicU64, BlockError> {
        let ptr = self.at(at, 8)?;
        if !at.is_multiple_of(8) {
            return Err(BlockError::Misaligned);
        }
        // SAFETY: eight bytes inside the mapping, aligned because the mapping is page-aligned, valid while
        // `self` is borrowed. Everybody who may race with it uses atomic or assembly accesses.
        Ok(unsafe { AtomicU64::from_ptr(ptr.cast()) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and is unmapped once, here. Whoever
        // still needs the memory holds an `Arc` of the block. The call fails only for a bad range.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("id", &self.id).field("len", &self.len).field("fd", &self.fd).finish()
    }
}

fn check_len(len: usize) -> io::Result<()> {
    if len == 0 || len > isize::MAX as usize {
        let reason = "a block of no or too many bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn memory_file(len: usize) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(c"anyverbs", flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"anyverbs", flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, len as u64)?;
    Ok(fd)
}

/// Fixes the size of the file (a shorter one would turn accesses into SIGBUS), and its sharing.
fn seal(fd: &OwnedFd, sharing: Sharing) -> Result<(), Errno> {
    let mut seals = SealFlags::SHRINK | SealFlags::GROW;
    if sharing == Sharing::ReadOnly {
        seals |= SealFlags::FUTURE_WRITE;
    }
    rustix::fs::fcntl_add_seals(fd, seals)?;
    rustix::fs::fcntl_add_seals(fd, SealFlags::SEAL)
}

/// Refuses a file of another process whose size may change or whose pages may be missing.
fn check_foreign(fd: &OwnedFd, len: usize) -> io::Result<()> {
    // The file system of memory files, tmpfs (TMPFS_MAGIC): huge pages of hugetlbfs may run out, which
    // turns an access into SIGBUS.
    const TMPFS: i64 = 0x0102_1994;
    let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let Ok(seals) = rustix::fs::fcntl_get_seals(fd) else {
        return invalid("a descriptor of no memory file".to_owned());
    };
    if !seals.contains(SealFlags::SHRINK | SealFlags::SEAL) {
        return invalid(format!("a memory file that may shrink (seals {seals:?})"));
    }
    let system = rustix::fs::fstatfs(fd)?.f_type as i64;
    if system != TMPFS {
        return invalid(format!("a file of file system {system:#x}, not a memory file of small pages"));
    }
    let size = rustix::fs::fstat(fd)?.st_size;
    if u64::try_from(size) != Ok(len as u64) {
        return invalid(format!("a memory file of {size} bytes instead of {len}"));
    }
    Ok(())
}

fn map(len: usize, fd: Option<BorrowedFd<'_>>) -> Result<NonNull<u8>, Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a null hint without MAP_FIXED makes a new mapping, and so disturbs no memory in use.
    let base = unsafe {
        match fd {
            Some(fd) => rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0),
            // Private, since the system joins such mappings that are neighbours, and limits how many there are.
            None => rustix::mm::mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE),
        }
    }?;
    NonNull::new(base.cast()).ok_or(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_zeroes_page_aligned_and_of_the_length_asked_for() {
        let block = Block::new(5000).unwrap();
        assert_eq!(block.len(), 5000);
        assert_eq!(block.as_ptr().addr() % 4096, 0);
        let mut bytes = vec![1; 5000];
        block.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0));
        assert_ne!(block.id(), Block::new(1).unwrap().id());
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for len in [0, isize::MAX as usize + 1, usize::MAX] {
            assert_eq!(Block::new(len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(Block::new_anonymous(len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(Block::new(isize::MAX as usize / 2).is_err());
    }

    #[test]
    fn bytes_go_in_and_out_within_bounds_only() {
        let block = Block::new(100).unwrap();
        block.write(97, b"end").unwrap();
        let mut out = [0; 4];
        block.read(96, &mut out).unwrap();
        assert_eq!(&out, b"\0end");
        block.read(100, &mut []).unwrap();

        // The page goes on behind byte 100, the block does not.
        assert_eq!(block.write(97, b"over"), Err(BlockError::OutOfBounds));
        assert_eq!(block.read(101, &mut []), Err(BlockError::OutOfBounds));
        assert_eq!(block.read(usize::MAX, &mut out), Err(BlockError::OutOfBounds));
        assert_eq!(block.read(usize::MAX - 3, &mut out), Err(BlockError::OutOfBounds));
    }

    #[test]
    fn words_are_atomic_aligned_and_within_bounds() {
        let block = Block::new(20).unwrap();
        block.store_u64(8, u64::MAX).unwrap();
        assert_eq!(block.fetch_add_u64(8, 3), Ok(u64::MAX));
        assert_eq!(block.load_u64(8), Ok(2));
        assert_eq!(block.compare_swap_u64(8, 1, 7), Ok(2));
        assert_eq!(block.compare_swap_u64(8, 2, 7), Ok(2));
        assert_eq!(block.load_u64(8), Ok(7));
        let mut bytes = [0; 8];
        block.read(8, &mut bytes).unwrap();
        assert_eq!(bytes, 7u64.to_ne_bytes());

        assert_eq!(block.load_u64(4), Err(BlockError::Misaligned));
        assert_eq!(block.store_u64(16, 1), Err(BlockError::OutOfBounds));
        assert_eq!(block.fetch_add_u64(usize::MAX - 7, 1), Err(BlockError::OutOfBounds));
    }

    #[test]
    fn additions_of_threads_all_count() {
        let block = Block::new(8).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..1000).map(|_| block.fetch_add_u64(0, 1)).all(|done| done.is_ok()));
            }
        });
        assert_eq!(block.load_u64(0), Ok(3000));
    }

    #[test]
    fn slices_are_the_same_bytes() {
        let block = Block::new(64).unwrap();
        // SAFETY: nobody else knows of the block, and the slice ends before the next use.
        unsafe { block.slice_mut(10..15) }.copy_from_slice(b"hello");
        let mut out = [0; 5];
        block.read(10, &mut out).unwrap();
        assert_eq!(&out, b"hello");
        // SAFETY: as above.
        assert_eq!(unsafe { block.slice(11..14) }, b"ell");
        // SAFETY: as above.
        assert!(unsafe { block.slice(64..64) }.is_empty());
    }

    #[test]
    #[should_panic(expected = "range outside the block")]
    fn a_slice_outside_the_block_is_refused() {
        let block = Block::new(64).unwrap();
        // SAFETY: nobody else knows of the block.
        let _ = unsafe { block.slice(60..65) };
    }

    /// Maps a block's file a second time, as another process would.
    fn map_again(block: &Block, protection: ProtFlags) -> Result<*mut u8, Errno> {
        let fd = block.fd().expect("this system has memory files");
        // SAFETY: a new mapping at an address of the kernel's choice.
        unsafe { rustix::mm::mmap(ptr::null_mut(), block.len(), protection, MapFlags::SHARED, fd, 0) }
            .map(|base| base.cast())
    }

    #[test]
    fn another_mapping_sees_and_writes_the_same_bytes() {
        let block = Block::new(4096).unwrap();
        let other = map_again(&block, ProtFlags::READ | ProtFlags::WRITE).unwrap();
        block.write(0, b"there").unwrap();
        let mut out = [0; 5];
        // SAFETY: the mapping is 4096 bytes long and lives until the end of the process.
        unsafe {
            copy::copy_out(&mut out, other);
            copy::copy_in(other.add(5), b" and back");
        }
        assert_eq!(&out, b"there");
        let mut all = [0; 14];
        block.read(0, &mut all).unwrap();
        assert_eq!(&all, b"there and back");
    }

    #[test]
    fn nobody_can_shrink_a_block() {
        let block = Block::new(8192).unwrap();
        let fd = block.fd().unwrap();
        assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 16384), Err(Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE), Err(Errno::PERM));
    }

    #[test]
    fn a_block_is_opened_by_its_descriptor_and_nothing_else_is() {
        let block = Block::new(8192).unwrap();
        let again = || block.fd().unwrap().try_clone_to_owned().unwrap();
        let other = Block::open(again(), 8192).unwrap();
        block.write(100, b"seen").unwrap();
        let mut out = [0; 4];
        other.read(100, &mut out).unwrap();
        assert_eq!(&out, b"seen");
        assert!(other.fd().is_none());

        let refused = |fd, len| Block::open(fd, len).unwrap_err().to_string();
        assert!(refused(again(), 4096).contains("8192 bytes instead of 4096"));
        assert!(refused(again(), 8193).contains("instead of 8193"));
        assert_eq!(Block::open(again(), 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let unsealed = memory_file(4096).unwrap();
        assert!(refused(unsealed, 4096).contains("may shrink"));
        let plain = std::fs::File::open("/dev/null").unwrap();
        assert!(refused(plain.into(), 4096).contains("no memory file"));
        // Sealed against new writers: it cannot be mapped for writing.
        let read_only = Block::new_read_only_to_others(4096).unwrap();
        assert!(Block::open(read_only.fd().unwrap().try_clone_to_owned().unwrap(), 4096).is_err());
    }

    #[test]
    fn others_can_only_read_what_is_read_only_to_them() {
        let block = Block::new_read_only_to_others(4096).unwrap();
        block.write(0, b"mine").unwrap();
        assert_eq!(map_again(&block, ProtFlags::READ | ProtFlags::WRITE), Err(Errno::PERM));
        let other = map_again(&block, ProtFlags::READ).unwrap();
        let mut out = [0; 4];
        // SAFETY: the mapping is 4096 bytes long and lives until the end of the process.
        unsafe { copy::copy_out(&mut out, other) };
        assert_eq!(&out, b"mine");
    }

    #[test]
    fn anonymous_memory_serves_as_well() {
        let block = Block::new_anonymous(4000).unwrap();
        block.write(3990, &[7; 10]).unwrap();
        assert_eq!(block.load_u64(3992), Ok(0x0707_0707_0707_0707));
        assert!(block.fd().is_none());
    }
}
