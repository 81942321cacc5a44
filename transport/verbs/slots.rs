//! Where posted requests wait for their completion.

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use super::connection::QpNumber;
use super::pool::Lease;
use super::request::Operation;

/// How the bits of a work-request id are shared out: which queue of its completion queue, which generation, which
/// slot.
///
/// Each request has a generation of its own, and a queue that takes the place of another one goes on counting where
/// that one ended. So a completion that a thread took from the provider, and looks up only when the queue is destroyed
/// and its place taken again, finds nothing: 2^34 requests would have to pass by meanwhile, and the last of them be in
/// the same slot.
const QUEUE_BITS: u32 = 14;
const GENERATION_BITS: u32 = 34;
const SLOT_BITS: u32 = 16;
const _: () = assert!(QUEUE_BITS + GENERATION_BITS + SLOT_BITS == u64::BITS);

/// The most queues that one completion queue tells apart.
pub(crate) const QUEUES_MAX: usize = 1 << QUEUE_BITS;
/// The most slots that a queue can have.
pub(crate) const SLOTS_MAX: u32 = 1 << SLOT_BITS;

/// A work-request id, as the provider carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WorkId(pub(crate) u64);

impl WorkId {
    fn new(queue: u32, generation: u64, slot: u32) -> WorkId {
        let generation = generation & ((1 << GENERATION_BITS) - 1);
        WorkId(u64::from(queue) << (GENERATION_BITS + SLOT_BITS) | generation << SLOT_BITS | u64::from(slot))
    }

    /// Which queue of its completion queue.
    pub(crate) fn queue(self) -> usize {
        (self.0 >> (GENERATION_BITS + SLOT_BITS)) as usize
    }

    fn generation(self) -> u64 {
        self.0 >> SLOT_BITS & ((1 << GENERATION_BITS) - 1)
    }

    fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// A posted request, as its queue keeps it.
pub(crate) struct Posted {
    pub(crate) lease: Option<Lease>,
    /// The program's own number for it.
    pub(crate) id: u64,
    pub(crate) operation: Operation,
    /// The bytes that it moves, if it succeeds and the completion does not say.
    pub(crate) len: u32,
}

/// The slots of one queue: one for each request that can be outstanding, allocated with the queue.
pub(crate) struct SlotTable {
    slots: Mutex<Slots>,
    /// The number of the queue pair, and the id that the program gave it.
    pub(crate) number: QpNumber,
    pub(crate) qp_id: u64,
    /// Which queue of its completion queue it is.
    queue: u32,
}

struct Slots {
    entries: Box<[Option<Entry>]>,
    /// Slots without a request; never longer than `entries`.
    free: Vec<u32>,
    /// The generation of the next request.
    generation: u64,
}

struct Entry {
    id: WorkId,
    posted: Posted,
}

impl SlotTable {
    /// `count` free slots, for the queue that its completion queue knows as `queue`, counting generations from
    /// `generation` on.
    pub(crate) fn new(count: u32, queue: u32, generation: u64, number: QpNumber, qp_id: u64) -> SlotTable {
        let entries = (0..count).map(|_| None).collect();
        let slots = Slots { entries, free: (0..count).rev().collect(), generation };
        SlotTable { slots: Mutex::new(slots), number, qp_id, queue }
    }

    /// Keeps a request; the id under which it can be taken out again.
    ///
    /// # Errors
    /// The request, if all slots are taken.
    pub(crate) fn insert(&self, posted: Posted) -> Result<WorkId, Posted> {
        let mut slots = self.lock();
        let slots = &mut *slots;
        let Some(slot) = slots.free.pop() else { return Err(posted) };
        let id = WorkId::new(self.queue, slots.generation, slot);
        slots.generation = slots.generation.wrapping_add(1);
        slots.entries[slot as usize] = Some(Entry { id, posted });
        Ok(id)
    }

    /// Takes a request out. `None` if there is none with this id (any more).
    pub(crate) fn take(&self, id: WorkId) -> Option<Posted> {
        let mut slots = self.lock();
        let slots = &mut *slots;
        let entry = slots.entries.get_mut(id.slot())?.take_if(|entry| entry.id == id)?;
        slots.free.push(id.slot() as u32);
        Some(entry.posted)
    }

    /// Takes out every request that is left, in the order in which they were posted.
    pub(crate) fn drain(&self) -> Vec<Posted> {
        let mut slots = self.lock();
        let slots = &mut *slots;
        let mut all = Vec::with_capacity(slots.entries.len() - slots.free.len());
        for (slot, entry) in slots.entries.iter_mut().enumerate() {
            if let Some(entry) = entry.take() {
                slots.free.push(slot as u32);
                all.push(entry);
            }
        }
        all.sort_by_key(|entry| entry.id.generation());
        all.into_iter().map(|entry| entry.posted).collect()
    }

    /// The generation at which a queue that takes this one's place goes on.
    pub(crate) fn next_generation(&self) -> u64 {
        self.lock().generation
    }

    /// How many more requests it takes.
    pub(crate) fn room(&self) -> usize {
        self.lock().free.len()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing in this file panics between two steps that belong together.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn posted(id: u64) -> Posted {
        Posted { lease: None, id, operation: Operation::Send, len: 0 }
    }

    fn table(count: u32) -> SlotTable {
        SlotTable::new(count, 5, 0, QpNumber::new(7), 0)
    }

    #[test]
    fn a_request_is_taken_once() {
        let table = table(2);
        let first = table.insert(posted(1)).ok().unwrap();
        let second = table.insert(posted(2)).ok().unwrap();
        assert_eq!(first.queue(), 5);
        assert_eq!(table.insert(posted(3)).err().unwrap().id, 3);
        assert_eq!(table.take(first).unwrap().id, 1);
        assert!(table.take(first).is_none());
        assert_eq!(table.take(second).unwrap().id, 2);
        assert_eq!(table.room(), 2);
    }

    #[test]
    fn an_old_id_does_not_take_what_came_after_it() {
        let table = table(1);
        let old = table.insert(posted(1)).ok().unwrap();
        table.take(old);
        let new = table.insert(posted(2)).ok().unwrap();
        assert_ne!(old, new);
        assert!(table.take(old).is_none());
        assert_eq!(table.take(new).unwrap().id, 2);
    }

    #[test]
    fn an_old_id_does_not_take_what_another_table_in_its_place_holds() {
        let old = table(1);
        let id = old.insert(posted(1)).ok().unwrap();
        let new = SlotTable::new(1, 5, old.next_generation(), QpNumber::new(8), 0);
        new.insert(posted(2)).ok().unwrap();
        assert!(new.take(id).is_none());
    }

    #[test]
    fn ids_from_nowhere_take_nothing() {
        let table = table(4);
        for id in [0, u64::MAX, 5 << 50, 5 << 50 | 9] {
            assert!(table.take(WorkId(id)).is_none());
        }
    }

    #[test]
    fn draining_leaves_every_slot_free() {
        let table = table(3);
        let ids: Vec<_> = (0..3).map(|id| table.insert(posted(id)).ok().unwrap()).collect();
        table.take(ids[1]);
        table.insert(posted(3)).ok().unwrap();
        assert_eq!(table.drain().iter().map(|p| p.id).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(table.room(), 3);
        assert!(ids.iter().all(|&id| table.take(id).is_none()));
    }

    #[test]
    fn the_largest_of_everything_fits_an_id() {
        let id = WorkId::new(QUEUES_MAX as u32 - 1, u64::MAX, SLOTS_MAX - 1);
        assert_eq!(id.0, u64::MAX);
        assert_eq!((id.queue(), id.slot()), (QUEUES_MAX - 1, SLOTS_MAX as usize - 1));
    }
}
