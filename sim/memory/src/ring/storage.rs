//! Where a ring keeps its indices and values: a block of shared memory, or the model checker's.

#[cfg(loom)]
pub(super) use model::{Storage, Word};
#[cfg(not(loom))]
pub(super) use shared::{Storage, Word};

#[cfg(not(loom))]
mod shared {
    use std::io;
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use crate::{Block, copy};

    // The layout, in bytes. Each index has two cache lines to itself, since CPUs prefetch in pairs.
    const TAIL: usize = 0;
    const HEAD: usize = 128;
    const BELL: usize = 256;
    const ENTRIES: usize = 384;

    /// A ring in a [`Block`].
    pub(crate) struct Storage {
        block: Block,
        words: usize,
    }

    impl Storage {
        /// `words` words of entries, and both indices at `start`.
        pub(crate) fn new(words: usize, start: u32) -> io::Result<Self> {
            let storage = Storage { block: Block::new_anonymous(len(words)?)?, words };
            storage.tail().store(start, Ordering::Relaxed);
            storage.head().store(start, Ordering::Relaxed);
            Ok(storage)
        }

        /// The same in memory that another process can map, both indices at 0.
        pub(crate) fn shared(words: usize) -> io::Result<Self> {
            Ok(Storage { block: Block::new(len(words)?)?, words })
        }

        /// What another process made by `shared`, with as many words.
        pub(crate) fn open(fd: OwnedFd, words: usize) -> io::Result<Self> {
            Ok(Storage { block: Block::open(fd, len(words)?)?, words })
        }

        /// The memory file, if there is one.
        pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
            self.block.fd()
        }

        /// The producer's index.
        pub(crate) fn tail(&self) -> &AtomicU32 {
            // SAFETY: inside the block (which is at least `ENTRIES` long), aligned, and valid while `self` is
            // borrowed; accessed only atomically.
            unsafe { AtomicU32::from_ptr(self.block.as_ptr().add(TAIL).cast()) }
        }

        /// The consumer's index.
        pub(crate) fn head(&self) -> &AtomicU32 {
            // SAFETY: as in `tail`.
            unsafe { AtomicU32::from_ptr(self.block.as_ptr().add(HEAD).cast()) }
        }

        /// Whether the consumer sleeps, or is about to.
        pub(crate) fn bell(&self) -> &AtomicU32 {
            // SAFETY: as in `tail`.
            unsafe { AtomicU32::from_ptr(self.block.as_ptr().add(BELL).cast()) }
        }

        /// Copies bytes to the words from `first` on.
        pub(crate) fn write(&self, first: usize, bytes: &[u8]) {
            let words = self.entry(first, bytes.len().div_ceil(8));
            // SAFETY: the words, which hold the bytes, lie inside the mapping and live as long as `self`; they
            // are reached through atomics or such copies only. `bytes` is private memory: nobody gets a
            // reference into a block that belongs to a ring.
            unsafe { copy::copy_in(words.as_ptr().cast_mut().cast(), bytes) }
        }

        /// Copies bytes from the words from `first` on.
        pub(crate) fn read(&self, first: usize, bytes: &mut [u8]) {
            let words = self.entry(first, bytes.len().div_ceil(8));
            // SAFETY: as in `write`.
            unsafe { copy::copy_out(bytes, words.as_ptr().cast()) }
        }

        /// The words of an entry, which are inside the ring by the mask of the indices.
        #[inline]
        pub(crate) fn entry(&self, first: usize, words: usize) -> &[Word] {
            assert!(words <= self.words && first <= self.words - words);
            // SAFETY: the words lie inside the block, by the check above; they are aligned, as the block is
            // page-aligned and `ENTRIES` a multiple of 8; initialised, as a block is zeroes at first; and
            // valid while `self` is borrowed. `Word` is a transparent atomic, and whoever shares the memory
            // accesses it atomically.
            unsafe {
                let entries = self.block.as_ptr().add(ENTRIES).cast::<Word>();
                std::slice::from_raw_parts(entries.add(first), words)
            }
        }
    }

    /// Bytes of a ring with so many words of entries.
    fn len(words: usize) -> io::Result<usize> {
        let len = words.checked_mul(8).and_then(|n| n.checked_add(ENTRIES));
        len.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }

    /// Eight bytes of an entry.
    #[repr(transparent)]
    pub(crate) struct Word(AtomicU64);

    impl Word {
        #[inline]
        pub(crate) fn load(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        #[inline]
        pub(crate) fn store(&self, value: u64) {
            self.0.store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(loom)]
mod model {
    use std::io;
    use std::os::fd::{BorrowedFd, OwnedFd};

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicU32;

    /// A ring in the memory of the model checker.
    pub(crate) struct Storage {
        tail: AtomicU32,
        head: AtomicU32,
        bell: AtomicU32,
        words: Vec<Word>,
    }

    impl Storage {
        pub(crate) fn new(words: usize, start: u32) -> io::Result<Self> {
            let words = (0..words).map(|_| Word(UnsafeCell::new(0))).collect();
            let [tail, head, bell] = [start, start, 0].map(AtomicU32::new);
            Ok(Storage { tail, head, bell, words })
        }

        /// The model has one process, and no memory that another could map.
        pub(crate) fn shared(_words: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// As [`shared`](Storage::shared).
        pub(crate) fn open(_fd: OwnedFd, _words: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        pub(crate) fn tail(&self) -> &AtomicU32 {
            &self.tail
        }

        pub(crate) fn head(&self) -> &AtomicU32 {
            &self.head
        }

        pub(crate) fn bell(&self) -> &AtomicU32 {
            &self.bell
        }

        pub(crate) fn write(&self, first: usize, bytes: &[u8]) {
            for (place, piece) in self.entry(first, bytes.len().div_ceil(8)).iter().zip(bytes.chunks(8)) {
                let mut word = [0; 8];
                word[..piece.len()].copy_from_slice(piece);
                place.store(u64::from_ne_bytes(word));
            }
        }

        pub(crate) fn read(&self, first: usize, bytes: &mut [u8]) {
            let words = self.entry(first, bytes.len().div_ceil(8));
            for (place, piece) in words.iter().zip(bytes.chunks_mut(8)) {
                piece.copy_from_slice(&place.load().to_ne_bytes()[..piece.len()]);
            }
        }

        pub(crate) fn entry(&self, first: usize, words: usize) -> &[Word] {
            &self.words[first..first + words]
        }
    }

    /// Eight bytes of an entry: a plain cell, of which the checker reports any two accesses that the
    /// indices do not order. That is more than an atomic would tell, since the checker lets no load see
    /// a store of the future.
    pub(crate) struct Word(UnsafeCell<u64>);

    // SAFETY: the model checker fails the test at the first access that races.
    unsafe impl Sync for Word {}

    impl Word {
        pub(crate) fn load(&self) -> u64 {
            // SAFETY: the checker has just found that no write races with this read.
            self.0.with(|word| unsafe { *word })
        }

        pub(crate) fn store(&self, value: u64) {
            // SAFETY: the checker has just found that no access races with this write.
            self.0.with_mut(|word| unsafe { *word = value });
        }
    }
}
