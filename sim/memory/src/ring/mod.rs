//! Single-producer, single-consumer rings of plain values.
//!
//! A ring is a [`Block`](crate::Block) of offsets and values, no pointers: another process can map it.
//! Indices run freely (they wrap at 2^32), one written by each side. A side reads the other's
//! index once, checks it, and believes nothing else, so that a hostile peer can make a ring
//! [poisoned](Consumer::is_poisoned) but cannot lead an access outside it.

mod storage;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use storage::Storage;

/// The bytes of an entry are moved as whole words.
const WORD: usize = 8;

/// Makes a ring of up to `capacity` values.
///
/// # Errors
/// `InvalidInput` if `capacity` is zero or above 2^31, or the ring would not fit in memory;
/// otherwise what the system says to an allocation.
pub fn ring<T>(capacity: u32) -> io::Result<(Producer<T>, Consumer<T>)>
where
    T: Copy + FromBytes + IntoBytes + Immutable,
{
    ring_at(capacity, 0)
}

/// A ring whose indices start at `start`.
fn ring_at<T>(capacity: u32, start: u32) -> io::Result<(Producer<T>, Consumer<T>)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a ring of no or too many entries");
    let slots = capacity.checked_next_power_of_two().filter(|_| capacity > 0).ok_or_else(invalid)?;
    let words = (slots as usize).checked_mul(words_per_entry::<T>()).ok_or_else(invalid)?;
    let storage = Arc::new(Storage::new(words, start)?);
    let shape = Shape { capacity, mask: slots - 1 };
    let producer = Producer {
        storage: Arc::clone(&storage),
        shape,
        staged: start,
        head: Cell::new(start),
        poisoned: Cell::new(false),
        values: PhantomData,
    };
    let consumer = Consumer {
        storage,
        shape,
        head: start,
        tail: Cell::new(start),
        poisoned: Cell::new(false),
        values: PhantomData,
    };
    Ok((producer, consumer))
}

const fn words_per_entry<T>() -> usize {
    size_of::<T>().div_ceil(WORD)
}

/// What both sides know privately of the ring: never read back from shared memory.
#[derive(Clone, Copy, Debug)]
struct Shape {
    capacity: u32,
    mask: u32,
}

impl Shape {
    /// How many values lie between two indices, if that is possible at all.
    fn distance(self, head: u32, tail: u32) -> Option<u32> {
        Some(tail.wrapping_sub(head)).filter(|&n| n <= self.capacity)
    }

    /// The first word of the entry with this free-running index.
    fn first_word<T>(self, index: u32) -> usize {
        (index & self.mask) as usize * words_per_entry::<T>()
    }
}

/// The side of a ring that puts values in.
pub struct Producer<T> {
    storage: Arc<Storage>,
    shape: Shape,
    /// The index after the last value pushed, published or not.
    staged: u32,
    /// The consumer's index when last looked at.
    head: Cell<u32>,
    poisoned: Cell<bool>,
    values: PhantomData<T>,
}

impl<T: Copy + FromBytes + IntoBytes + Immutable> Producer<T> {
    /// The number of values that the ring holds at most, as asked for.
    pub fn capacity(&self) -> u32 {
        self.shape.capacity
    }

    /// How many values can be pushed now. Staged values count as in the ring.
    pub fn free(&self) -> u32 {
        self.refresh();
        self.free_as_known()
    }

    /// Puts a value at the end of the ring, invisible until [`publish`](Producer::publish).
    ///
    /// # Errors
    /// The value itself, if the ring is full or poisoned.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.free_as_known() == 0 {
            self.refresh();
            if self.free_as_known() == 0 {
                return Err(value);
            }
        }
        let first = self.shape.first_word::<T>(self.staged);
        let entry = self.storage.entry(first, words_per_entry::<T>());
        let (words, rest) = value.as_bytes().as_chunks::<WORD>();
        for (place, word) in entry.iter().zip(words) {
            place.store(u64::from_ne_bytes(*word));
        }
        if let (false, Some(place)) = (rest.is_empty(), entry.last()) {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            place.store(u64::from_ne_bytes(last));
        }
        self.staged = self.staged.wrapping_add(1);
        Ok(())
    }

    /// Makes all pushed values visible to the consumer.
    #[inline]
    pub fn publish(&mut self) {
        // Release: the consumer that sees this index sees the values before it.
        self.storage.tail().store(self.staged, Ordering::Release);
    }

    /// Whether the consumer's side has written an impossible index. Such a ring counts as full for ever.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    fn free_as_known(&self) -> u32 {
        if self.poisoned.get() {
            return 0;
        }
        self.shape.capacity - self.staged.wrapping_sub(self.head.get()).min(self.shape.capacity)
    }

    fn refresh(&self) {
        // Acquire: the consumer has finished reading the entries before its index.
        let head = self.storage.head().load(Ordering::Acquire);
        // The index must not go back either: the entries between are the consumer's no more.
        let known = self.staged.wrapping_sub(self.head.get());
        match self.shape.distance(head, self.staged) {
            Some(used) if used <= known => self.head.set(head),
            _ => self.poisoned.set(true),
        }
    }
}

/// The side of a ring that takes values out.
pub struct Consumer<T> {
    storage: Arc<Storage>,
    shape: Shape,
    /// The index of the first value that was not released.
    head: u32,
    /// The producer's index when last looked at.
    tail: Cell<u32>,
    poisoned: Cell<bool>,
    values: PhantomData<T>,
}

impl<T: Copy + FromBytes + IntoBytes + Immutable> Consumer<T> {
    /// The number of values that the ring holds at most, as asked for.
    pub fn capacity(&self) -> u32 {
        self.shape.capacity
    }

    /// How many published values there are.
    #[inline]
    pub fn len(&self) -> u32 {
        // Acquire: the values before this index are there.
        let tail = self.storage.tail().load(Ordering::Acquire);
        match self.shape.distance(self.head, tail) {
            Some(len) if len >= self.len_as_known() => self.tail.set(tail),
            _ => self.poisoned.set(true),
        }
        self.len_as_known()
    }

    /// Whether there is no published value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the `nth` published value, counted from 0 at the oldest; it stays in the ring.
    #[inline]
    pub fn get(&self, nth: u32) -> Option<T> {
        if nth >= self.len_as_known() && nth >= self.len() {
            return None;
        }
        let first = self.shape.first_word::<T>(self.head.wrapping_add(nth));
        let entry = self.storage.entry(first, words_per_entry::<T>());
        let mut value = T::new_zeroed();
        let (words, rest) = value.as_mut_bytes().as_chunks_mut::<WORD>();
        for (word, place) in words.iter_mut().zip(entry) {
            *word = place.load().to_ne_bytes();
        }
        if let (false, Some(place)) = (rest.is_empty(), entry.last()) {
            rest.copy_from_slice(&place.load().to_ne_bytes()[..rest.len()]);
        }
        Some(value)
    }

    /// Takes the `n` oldest values out of the ring (all of them, if `n` is more), and gives their
    /// places back to the producer.
    #[inline]
    pub fn release(&mut self, n: u32) {
        if n > self.len_as_known() {
            self.len();
        }
        self.head = self.head.wrapping_add(n.min(self.len_as_known()));
        // Release: our reads of the entries are over before the producer may overwrite them.
        self.storage.head().store(self.head, Ordering::Release);
    }

    /// Takes the oldest value out of the ring.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let value = self.get(0)?;
        self.release(1);
        Some(value)
    }

    /// Whether the producer's side has written an impossible index. Such a ring counts as empty for ever.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    fn len_as_known(&self) -> u32 {
        if self.poisoned.get() { 0 } else { self.tail.get().wrapping_sub(self.head) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
