//! Which queue pair wants to be called when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyverbs_engine::Time;

/// Entries that are not worth tidying up.
const SLACK: usize = 64;

/// Timers of queue pairs, by number.
///
/// A queue pair has at most one entry that counts, the time in its own `timer` field. A deadline
/// that moves later leaves its entry as it is: it fires early, and is put in again. One that moves earlier, or whose
/// queue pair goes away, leaves its entry behind, and a deadline may be hours away: see [`tidy`](Timers::tidy).
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

    /// Drops the entries that do not count any more, if they are the most of them: so there are never many more than
    /// `live`, the queue pairs that there are, and each costs little on average.
    pub(crate) fn tidy(&mut self, live: u32, counts: impl Fn(u32, Time) -> bool) {
        if self.heap.len() > 2 * live as usize + SLACK {
            self.heap.retain(|Reverse((time, number))| counts(*number, *time));
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_queue_pairs_leave_behind_does_not_pile_up() {
        let mut timers = Timers::default();
        let mut armed: HashMap<u32, Time> = HashMap::new();
        let hours = |n: u32| Time::from_nanos(1_000_000_000_000_000 - u64::from(n));
        for number in 0..10_000 {
            // One queue pair at a time, and its deadline moves earlier before it goes.
            armed.clear();
            let mut timer = None;
            for n in 0..3 {
                timers.arm(number, Some(hours(number + n)), &mut timer);
            }
            armed.insert(number, timer.unwrap());
            timers.tidy(1, |number, time| armed.get(&number) == Some(&time));
            assert!(timers.heap.len() <= SLACK + 5, "{} entries for one queue pair", timers.heap.len());
        }
        assert_eq!(timers.due(hours(0)), Some((hours(10_001), 9_999)), "what counts is still there");
    }
}
