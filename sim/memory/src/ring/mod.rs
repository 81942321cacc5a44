//! Single-producer, single-consumer rings of plain values.
//!
//! A ring is a [`Block`](crate::Block) of offsets and values, no pointers: another process can map it.
//! Indices run freely (they wrap at 2^32), one written by each side. A side reads the other's
//! index once, checks it, and believes nothing else, so that a hostile peer can make a ring
//! [poisoned](Consumer::is_poisoned) but cannot lead an access outside it.

pub(crate) mod record;
mod storage;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use storage::{Storage, Word};

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
    ring_at(capacity, 0, 0)
}

/// Makes a ring of up to `capacity` values, each with up to `tail` bytes behind it: what differs in
/// length from one queue to another, as the scatter/gather list of a work request does.
///
/// # Errors
/// As [`ring()`].
pub fn ring_with_tail<T>(capacity: u32, tail: usize) -> io::Result<(Producer<T>, Consumer<T>)>
where
    T: Copy + FromBytes + IntoBytes + Immutable,
{
    ring_at(capacity, 0, tail.div_ceil(WORD))
}

/// A ring whose indices start at `start`, with tails of some words.
fn ring_at<T>(capacity: u32, start: u32, tail: usize) -> io::Result<(Producer<T>, Consumer<T>)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a ring of no or too many entries");
    let slots = capacity.checked_next_power_of_two().filter(|_| capacity > 0).ok_or_else(invalid)?;
    let stride = words_per_entry::<T>().checked_add(tail).ok_or_else(invalid)?;
    let words = (slots as usize).checked_mul(stride).ok_or_else(invalid)?;
    let storage = Arc::new(Storage::new(words, start)?);
    let shape = Shape { capacity, mask: slots - 1, stride };
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
    /// Words from one entry to the next.
    stride: usize,
}

impl Shape {
    /// How many values lie between two indices, if that is possible at all.
    fn distance(self, head: u32, tail: u32) -> Option<u32> {
        Some(tail.wrapping_sub(head)).filter(|&n| n <= self.capacity)
    }

    /// The first word of the entry with this free-running index.
    fn first_word(self, index: u32) -> usize {
        (index & self.mask) as usize * self.stride
    }
}

/// Stores bytes in as many words as they take.
#[inline]
fn store(places: &[Word], bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<WORD>();
    for (place, word) in places.iter().zip(words) {
        place.store(u64::from_ne_bytes(*word));
    }
    if let (false, Some(place)) = (rest.is_empty(), places.get(words.len())) {
        let mut last = [0; WORD];
        last[..rest.len()].copy_from_slice(rest);
        place.store(u64::from_ne_bytes(last));
    }
}

/// Fills bytes from as many words as they take.
#[inline]
fn load(places: &[Word], bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<WORD>();
    for (word, place) in words.iter_mut().zip(places) {
        *word = place.load().to_ne_bytes();
    }
    if let (false, Some(place)) = (rest.is_empty(), places.get(words.len())) {
        rest.copy_from_slice(&place.load().to_ne_bytes()[..rest.len()]);
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
        self.push_with(value, &[])
    }

    /// The same, with bytes behind the value: at most as many as the ring was made for, of which the rest
    /// of the tail keeps what it had.
    ///
    /// # Errors
    /// The value itself, if the ring is full or poisoned, or the tail too long.
    #[inline]
    pub fn push_with(&mut self, value: T, tail: &[u8]) -> Result<(), T> {
        if self.free_as_known() == 0 {
            self.refresh();
            if self.free_as_known() == 0 {
                return Err(value);
            }
        }
        let words = words_per_entry::<T>();
        if tail.len().div_ceil(WORD) > self.shape.stride - words {
            return Err(value);
        }
        let first = self.shape.first_word(self.staged);
        let entry = self.storage.entry(first, self.shape.stride);
        let (own, behind) = entry.split_at(words);
        store(own, value.as_bytes());
        store(behind, tail);
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
        let first = self.shape.first_word(self.head.wrapping_add(nth));
        let entry = self.storage.entry(first, words_per_entry::<T>());
        let mut value = T::new_zeroed();
        load(entry, value.as_mut_bytes());
        Some(value)
    }

    /// Fills `out` from the tail of the `nth` published value, from the byte `at` on, a multiple of 8. False if
    /// there is no such value, or its tail has no such bytes; nothing is read then.
    #[inline]
    pub fn tail(&self, nth: u32, at: usize, out: &mut [u8]) -> bool {
        if nth >= self.len_as_known() && nth >= self.len() {
            return false;
        }
        let tail = words_per_entry::<T>()..self.shape.stride;
        let (skip, words) = (at / WORD, out.len().div_ceil(WORD));
        if !at.is_multiple_of(WORD) || skip > tail.len() || words > tail.len() - skip {
            return false;
        }
        let first = self.shape.first_word(self.head.wrapping_add(nth)) + tail.start + skip;
        load(self.storage.entry(first, words), out);
        true
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
