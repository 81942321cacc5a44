//! Single-producer, single-consumer rings of records: a note of fixed size and bytes of any number.
//!
//! The consumer makes the ring and hands its memory file to the producer, in this or another process.
//! As in a ring of values, indices run freely (here they count words) and are written by one side each.
//! A side reads an index or a length of the other once, checks it, and uses what it has checked: a
//! hostile or dying other side can poison the ring, or put nonsense into records, and nothing else.
//!
//! # Sleeping
//! A consumer that wants to sleep arms the [`Bell`], looks into the ring once more, and sleeps if it is
//! empty. A producer that has published looks whether the bell is armed, disarms it, and then wakes the
//! consumer by whatever the two have agreed on. Each side writes first and looks second, with a fence
//! between, so at least one of them sees the other, and a producer wakes nobody who is awake.

use std::cell::Cell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::fence;

#[cfg(loom)]
use loom::sync::atomic::fence;
use std::sync::atomic::Ordering;

use super::storage::Storage;
use super::{Shape, WORD};

/// What a record carries beside its bytes.
pub type Note = [u64; 5];

/// Words before the bytes of a record: their number, and the note.
const HEADER: u32 = 1 + 5;

/// Makes a ring of `bytes` bytes, which records take 48 of beside their own, rounded up to a multiple of 8.
///
/// # Errors
/// `InvalidInput` if `bytes` is less than 64 or not a power of two, or above 2^34; otherwise what the
/// system says to an allocation.
pub fn record_ring(bytes: usize) -> io::Result<(RecordProducer, RecordConsumer)> {
    ring_at(bytes, 0)
}

/// A ring whose indices start at `start`.
fn ring_at(bytes: usize, start: u32) -> io::Result<(RecordProducer, RecordConsumer)> {
    let shape = shape(bytes)?;
    let storage = Arc::new(Storage::new(shape.capacity as usize, start)?);
    Ok((RecordProducer::new(Arc::clone(&storage), shape, start), RecordConsumer::new(storage, shape, start)))
}

fn shape(bytes: usize) -> io::Result<Shape> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("a ring of {bytes} bytes"));
    let words = u32::try_from(bytes / WORD).ok().filter(|words| *words <= 1 << 31);
    let capacity = words.filter(|words| bytes.is_power_of_two() && *words >= 8).ok_or_else(invalid)?;
    Ok(Shape { capacity, mask: capacity - 1, stride: 1 })
}

/// How many words a record of `len` bytes takes, if there is any ring that it fits into.
fn words_of(len: u64) -> Option<u32> {
    u32::try_from(len.div_ceil(WORD as u64)).ok()?.checked_add(HEADER)
}

/// The words of a ring, by free-running index.
struct Words {
    storage: Arc<Storage>,
    shape: Shape,
}

impl Words {
    fn place(&self, index: u32) -> usize {
        (index & self.shape.mask) as usize
    }

    /// How many of `len` bytes from `index` on lie before the end of the ring, where they go on at its
    /// beginning.
    fn before_end(&self, index: u32, len: usize) -> usize {
        len.min((self.shape.capacity as usize - self.place(index)) * WORD)
    }

    fn store(&self, index: u32, word: u64) {
        self.storage.entry(self.place(index), 1)[0].store(word);
    }

    fn load(&self, index: u32) -> u64 {
        self.storage.entry(self.place(index), 1)[0].load()
    }

    fn write(&self, index: u32, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(self.before_end(index, bytes.len()));
        self.storage.write(self.place(index), first);
        if !rest.is_empty() {
            self.storage.write(0, rest);
        }
    }

    fn read(&self, index: u32, bytes: &mut [u8]) {
        let (first, rest) = bytes.split_at_mut(self.before_end(index, bytes.len()));
        self.storage.read(self.place(index), first);
        if !rest.is_empty() {
            self.storage.read(0, rest);
        }
    }
}

/// The side of a ring that puts records in.
pub struct RecordProducer {
    words: Words,
    /// The index after the last record pushed.
    staged: u32,
    /// The index after the last record published.
    published: u32,
    /// The consumer's index when last looked at.
    head: u32,
    poisoned: bool,
}

impl RecordProducer {
    fn new(storage: Arc<Storage>, shape: Shape, start: u32) -> Self {
        let words = Words { storage, shape };
        RecordProducer { words, staged: start, published: start, head: start, poisoned: false }
    }

    /// The producer of the ring of `bytes` bytes that a consumer, of any process, made with
    /// [`RecordConsumer::create`] and handed over by its descriptor.
    ///
    /// # Errors
    /// As [`record_ring`], and `InvalidData` if the descriptor is not of such a ring's memory.
    pub fn open(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        let shape = shape(bytes)?;
        let storage = Arc::new(Storage::open(fd, shape.capacity as usize)?);
        Ok(RecordProducer::new(storage, shape, 0))
    }

    /// Puts a record at the end of the ring, invisible until [`publish`](RecordProducer::publish). False
    /// if there is no room for it, or the ring is poisoned.
    #[inline]
    pub fn push(&mut self, note: &Note, bytes: &[u8]) -> bool {
        let Some(words) = words_of(bytes.len() as u64) else { return false };
        if words > self.free_as_known() {
            self.refresh();
            if words > self.free_as_known() {
                return false;
            }
        }
        self.words.store(self.staged, bytes.len() as u64);
        for (i, word) in (1..).zip(note) {
            self.words.store(self.staged.wrapping_add(i), *word);
        }
        self.words.write(self.staged.wrapping_add(HEADER), bytes);
        self.staged = self.staged.wrapping_add(words);
        true
    }

    /// Makes all pushed records visible to the consumer. True if it sleeps, and has to be woken.
    #[inline]
    #[must_use = "a consumer that sleeps has to be woken"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.staged {
            return false;
        }
        self.published = self.staged;
        // Release: the consumer that sees this index sees the records before it.
        self.words.storage.tail().store(self.staged, Ordering::Release);
        // Pairs with the fence in `Bell::arm`: either we see the bell armed, or it sees our index.
        fence(Ordering::SeqCst);
        let bell = self.words.storage.bell();
        bell.load(Ordering::Relaxed) != 0 && bell.swap(0, Ordering::Relaxed) != 0
    }

    /// Whether the consumer's side has written an impossible index. Such a ring counts as full for ever.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    fn free_as_known(&self) -> u32 {
        let capacity = self.words.shape.capacity;
        if self.poisoned { 0 } else { capacity - self.staged.wrapping_sub(self.head).min(capacity) }
    }

    fn refresh(&mut self) {
        // Acquire: the consumer has finished reading the words before its index.
        let head = self.words.storage.head().load(Ordering::Acquire);
        // The index must not go back: the words between are the consumer's no more.
        let known = self.staged.wrapping_sub(self.head);
        match self.words.shape.distance(head, self.staged) {
            Some(used) if used <= known => self.head = head,
            _ => self.poisoned = true,
        }
    }
}

/// What [`RecordConsumer::pop`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Popped {
    /// No record.
    Empty,
    /// A record of more bytes than there was room for; it stays.
    Larger {
        /// Its bytes.
        len: usize,
    },
    /// A record, whose bytes are at the front of the buffer.
    Record {
        /// Its note.
        note: Note,
        /// How many bytes.
        len: usize,
    },
}

/// The side of a ring that takes records out.
pub struct RecordConsumer {
    words: Words,
    /// The index after the last record that was taken.
    taken: u32,
    /// The producer's index when last looked at.
    tail: Cell<u32>,
    poisoned: Cell<bool>,
}

impl RecordConsumer {
    fn new(storage: Arc<Storage>, shape: Shape, start: u32) -> Self {
        let words = Words { storage, shape };
        RecordConsumer { words, taken: start, tail: Cell::new(start), poisoned: Cell::new(false) }
    }

    /// Makes a ring in memory that the producer's process can map: see [`RecordProducer::open`].
    ///
    /// # Errors
    /// As [`record_ring`], and `Unsupported` where the system denies memory files.
    pub fn create(bytes: usize) -> io::Result<Self> {
        let shape = shape(bytes)?;
        let storage = Arc::new(Storage::shared(shape.capacity as usize)?);
        if storage.fd().is_none() {
            let denied = "the system denies memory files that two processes share (memfd_create)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, denied));
        }
        Ok(RecordConsumer::new(storage, shape, 0))
    }

    /// The memory file, for the producer's process.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.words.storage.fd()
    }

    /// What threads that wait for this ring arm before they sleep.
    pub fn bell(&self) -> Bell {
        Bell { storage: Arc::clone(&self.words.storage) }
    }

    /// Takes the oldest record, if its bytes fit into `out`, and copies them there. Its place belongs to
    /// the producer again after [`release`](RecordConsumer::release).
    #[inline]
    pub fn pop(&mut self, out: &mut [u8]) -> Popped {
        let Some((len, words)) = self.first() else { return Popped::Empty };
        let Some(out) = out.get_mut(..len) else { return Popped::Larger { len } };
        let mut note = Note::default();
        for (i, word) in (1..).zip(&mut note) {
            *word = self.words.load(self.taken.wrapping_add(i));
        }
        self.words.read(self.taken.wrapping_add(HEADER), out);
        self.taken = self.taken.wrapping_add(words);
        Popped::Record { note, len }
    }

    /// Takes the oldest record unseen.
    pub fn skip(&mut self) {
        if let Some((_, words)) = self.first() {
            self.taken = self.taken.wrapping_add(words);
        }
    }

    /// Gives the places of all records that were taken back to the producer.
    #[inline]
    pub fn release(&mut self) {
        // Release: our reads of the records are over before the producer may overwrite them.
        self.words.storage.head().store(self.taken, Ordering::Release);
    }

    /// Whether there is no published record.
    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// Whether the producer's side has written an impossible index or length. Such a ring counts as empty
    /// for ever.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    /// Bytes and words of the oldest record, which are checked to lie in what was published.
    fn first(&self) -> Option<(usize, u32)> {
        if self.poisoned.get() {
            return None;
        }
        if self.taken == self.tail.get() {
            self.refresh();
        }
        let there = self.there();
        if there == 0 {
            return None;
        }
        // The length is read once: what is checked here is what is used.
        let len = self.words.load(self.taken);
        match words_of(len) {
            Some(words) if words <= there => Some((len as usize, words)),
            _ => {
                self.poisoned.set(true);
                None
            }
        }
    }

    /// Published words, as known.
    fn there(&self) -> u32 {
        if self.poisoned.get() { 0 } else { self.tail.get().wrapping_sub(self.taken) }
    }

    fn refresh(&self) {
        // Acquire: the records before this index are there.
        let tail = self.words.storage.tail().load(Ordering::Acquire);
        match self.words.shape.distance(self.taken, tail) {
            Some(_) => self.tail.set(tail),
            None => self.poisoned.set(true),
        }
    }
}

/// The sleeping side of a ring: any number of threads may arm it.
pub struct Bell {
    storage: Arc<Storage>,
}

impl Bell {
    /// Asks the producer to wake this side when it publishes. False if there is something in the ring
    /// already, and no reason to sleep.
    #[must_use = "who sleeps with something in the ring may never be woken"]
    pub fn arm(&self) -> bool {
        self.storage.bell().store(1, Ordering::Relaxed);
        // Pairs with the fence in `publish`.
        fence(Ordering::SeqCst);
        let head = self.storage.head().load(Ordering::Acquire);
        self.storage.tail().load(Ordering::Acquire) == head
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
