//! Which queue pair wants to be called when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyverbs_engine::Time;

/// Timers of queue pairs, by number.
///
/// A queue pair has at most one entry that counts, the time in its own `timer` field. A deadline
/// that moves later leaves its entry as it is: it fires early, and is put in again.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Time, u32)>>,
}

impl Timers {
    /// Makes sure that `number` is called by `deadline`, given the entry that it has.
    pub(crate) fn arm(&mut self, number: u32, deadline: Option<Time>, timer: &mut Option<Time>) {
        if let Some(deadline) = deadline
            && timer.is_none_or(|timer| deadline < timer)
        {
            *timer = Some(deadline);
            self.heap.push(Reverse((deadline, number)));
        }
    }

    /// Takes out a timer that is due.
    pub(crate) fn due(&mut self, now: Time) -> Option<(Time, u32)> {
        let Reverse((time, _)) = self.heap.peek()?;
        if *time > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// The earliest entry.
    pub(crate) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((time, _))| *time)
    }
}
