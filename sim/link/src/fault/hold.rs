//! Where datagrams wait that are to arrive later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use anyverbs_nic::Time;
use anyverbs_nic::link::TxBatch;

/// Bytes of a page: a datagram takes as many as it needs.
const PAGE: usize = 2048;
/// Pages of all datagrams.
const PAGES: usize = 4096;
/// Datagrams that wait to be overtaken, rather than for a time.
const BEHIND_MAX: usize = 64;

/// The end of a list of pages.
const END: u32 = u32::MAX;

/// A datagram that waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Held {
    due: Time,
    /// Datagrams that are due at the same time leave in the order in which they came.
    number: u64,
    destination: IpAddr,
    source_port: u16,
    ecn: u8,
    first_page: u32,
    len: usize,
    /// How many datagrams have yet to overtake it; 0: it waits only for its time.
    overtakers: u32,
}

/// A bounded store of datagrams, made once.
pub(super) struct Hold {
    bytes: Box<[u8]>,
    /// For each page the one that follows it, in a datagram or among the free ones.
    next: Box<[u32]>,
    first_free: u32,
    free: usize,
    by_time: BinaryHeap<Reverse<Held>>,
    /// Those that wait to be overtaken. They have a time, too, in case nobody comes.
    behind: Vec<Held>,
    number: u64,
}

impl Hold {
    pub(super) fn new() -> Hold {
        let next = (1..PAGES as u32).chain([END]).collect();
        Hold {
            bytes: vec![0; PAGES * PAGE].into_boxed_slice(),
            next,
            first_free: 0,
            free: PAGES,
            by_time: BinaryHeap::with_capacity(PAGES),
            behind: Vec::with_capacity(BEHIND_MAX),
            number: 0,
        }
    }

    /// Keeps a datagram until `due`, or until `overtakers` others have passed, if not 0. Returns
    /// false, and keeps nothing, if there is no room.
    pub(super) fn keep(&mut self, datagram: &Datagram<'_>, due: Time, overtakers: u32) -> bool {
        let len = datagram.bytes.len();
        let full = if overtakers > 0 { self.behind.len() == BEHIND_MAX } else { self.by_time.len() == PAGES };
        // An empty datagram takes a page, too.
        if full || self.free < len.div_ceil(PAGE).max(1) {
            return false;
        }
        let first_page = self.first_free;
        let mut page = first_page;
        let mut chunks = datagram.bytes.chunks(PAGE).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let start = page as usize * PAGE;
            self.bytes[start..start + chunk.len()].copy_from_slice(chunk);
            self.free -= 1;
            let next = self.next[page as usize];
            if chunks.peek().is_none() {
                self.next[page as usize] = END;
                self.first_free = next;
                break;
            }
            page = next;
        }
        let held = Held {
            due,
            number: self.number,
            destination: datagram.destination,
            source_port: datagram.source_port,
            ecn: datagram.ecn,
            first_page,
            len,
            overtakers,
        };
        self.number += 1;
        if overtakers > 0 {
            self.behind.push(held);
        } else {
            self.by_time.push(Reverse(held));
        }
        true
    }

    /// When the next datagram is due.
    pub(super) fn next_due(&self) -> Option<Time> {
        let by_time = self.by_time.peek().map(|held| held.0.due);
        self.behind.iter().map(|held| held.due).chain(by_time).min()
    }

    /// One more datagram, which arrives at `arrival`, passes those that wait to be overtaken.
    pub(super) fn overtake(&mut self, arrival: Time) {
        for held in self.behind.iter_mut().filter(|held| held.overtakers > 0) {
            held.overtakers -= 1;
            if held.overtakers == 0 && arrival <= held.due {
                // Behind the last one that overtook it, even if that waits here, too.
                held.due = arrival;
                held.number = self.number;
                self.number += 1;
            }
        }
    }

    /// Moves what is due to `batch`, in the order in which it is due, as much as fits.
    pub(super) fn release(&mut self, batch: &mut TxBatch, now: Time) {
        loop {
            let behind = (0..self.behind.len()).min_by_key(|&i| (self.behind[i].due, self.behind[i].number));
            let first_behind = behind.map(|i| self.behind[i]);
            let first_by_time = self.by_time.peek().map(|held| held.0);
            let Some(held) = first_behind.into_iter().chain(first_by_time).min() else { return };
            if held.due > now || !self.copy_out(&held, batch) {
                return;
            }
            match behind {
                Some(i) if first_behind == Some(held) => drop(self.behind.remove(i)),
                _ => drop(self.by_time.pop()),
            }
            self.free_pages(&held);
        }
    }

    fn copy_out(&self, held: &Held, batch: &mut TxBatch) -> bool {
        let Some(target) = batch.push(held.destination, held.source_port, held.ecn, held.len) else {
            return false;
        };
        let mut page = held.first_page;
        for chunk in target.chunks_mut(PAGE) {
            let start = page as usize * PAGE;
            chunk.copy_from_slice(&self.bytes[start..start + chunk.len()]);
            page = self.next[page as usize];
        }
        true
    }

    fn free_pages(&mut self, held: &Held) {
        let mut last = held.first_page;
        self.free += 1;
        while self.next[last as usize] != END {
            last = self.next[last as usize];
            self.free += 1;
        }
        self.next[last as usize] = self.first_free;
        self.first_free = held.first_page;
    }
}

/// A datagram that is to be kept.
pub(super) struct Datagram<'a> {
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) ecn: u8,
    pub(super) bytes: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datagram(bytes: &[u8]) -> Datagram<'_> {
        Datagram { destination: [10, 0, 0, 1].into(), source_port: 4791, ecn: 0, bytes }
    }

    fn at(ns: u64) -> Time {
        Time::from_nanos(ns)
    }

    /// What comes out by `now`: each datagram's length and first byte.
    fn released(hold: &mut Hold, now: u64) -> Vec<(usize, u8)> {
        let mut batch = TxBatch::with_capacity(1 << 20, 1024);
        hold.release(&mut batch, at(now));
        batch.entries().iter().map(|e| (e.len, batch.bytes().get(e.start).copied().unwrap_or(0))).collect()
    }

    #[test]
    fn they_come_out_when_due_and_in_order() {
        let mut hold = Hold::new();
        for (due, mark) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            assert!(hold.keep(&datagram(&[mark]), at(due), 0));
        }
        assert_eq!(hold.next_due(), Some(at(10)));
        assert_eq!(released(&mut hold, 9), []);
        assert_eq!(released(&mut hold, 20), [(1, 2), (1, 4), (1, 3)]);
        assert_eq!(released(&mut hold, 30), [(1, 1)]);
        assert_eq!(hold.next_due(), None);
    }

    #[test]
    fn the_overtaken_come_out_behind_their_overtakers_or_when_nobody_comes() {
        let mut hold = Hold::new();
        assert!(hold.keep(&datagram(&[1]), at(100), 2));
        assert!(hold.keep(&datagram(&[2]), at(100), 1));
        hold.overtake(at(5));
        assert_eq!(released(&mut hold, 5), [(1, 2)]);
        assert_eq!(hold.next_due(), Some(at(100)));
        hold.overtake(at(6));
        assert_eq!(released(&mut hold, 6), [(1, 1)]);
        assert!(hold.keep(&datagram(&[3]), at(100), 9));
        assert_eq!(released(&mut hold, 99), []);
        assert_eq!(released(&mut hold, 100), [(1, 3)]);
    }

    #[test]
    fn the_overtaken_stay_behind_overtakers_that_wait_themselves() {
        let mut hold = Hold::new();
        assert!(hold.keep(&datagram(&[1]), at(150), 1));
        assert!(hold.keep(&datagram(&[2]), at(50), 0));
        hold.overtake(at(50));
        assert_eq!(released(&mut hold, 50), [(1, 2), (1, 1)]);
    }

    #[test]
    fn it_is_bounded_and_keeps_what_it_has() {
        let mut hold = Hold::new();
        let large = vec![7; 60_000];
        let mut kept = 0;
        while hold.keep(&datagram(&large), at(1), 0) {
            kept += 1;
        }
        assert_eq!(kept, PAGES / 60_000_usize.div_ceil(PAGE));
        let mut behind = Hold::new();
        assert_eq!((0..1000).filter(|_| behind.keep(&datagram(&[1]), at(1), 1)).count(), BEHIND_MAX);
        // A batch that takes only a part leaves the rest to come.
        let mut batch = TxBatch::with_capacity(1 << 20, 3);
        hold.release(&mut batch, at(1));
        assert_eq!(batch.len(), 3);
        assert_eq!(released(&mut hold, 1).len(), 17);
        let mut rest = kept - 20;
        while rest > 0 {
            rest -= released(&mut hold, 1).len();
        }
        assert_eq!(hold.free, PAGES);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(rounds in prop::collection::vec((0..9000_usize, 0..100_u64), 1..60)) {
            let mut hold = Hold::new();
            let mut batch = TxBatch::with_capacity(1 << 20, 128);
            let mut model = Vec::new();
            for (i, &(len, due)) in rounds.iter().enumerate() {
                let bytes: Vec<_> = (0..len).map(|k| (k * 7 + i) as u8).collect();
                prop_assert!(hold.keep(&datagram(&bytes), at(due), 0));
                model.push((due, i, bytes));
                if i % 7 == 0 {
                    hold.release(&mut batch, at(50));
                    model.sort();
                    let kept = model.split_off(model.partition_point(|m| m.0 <= 50));
                    for (entry, (_, _, bytes)) in batch.entries().iter().zip(&model) {
                        prop_assert_eq!(&batch.bytes()[entry.range()], &bytes[..]);
                    }
                    prop_assert_eq!(batch.len(), model.len());
                    batch.consume(model.len());
                    model = kept;
                }
            }
            hold.release(&mut batch, at(100));
            prop_assert_eq!(batch.len(), model.len());
            batch.consume(batch.len());
            prop_assert_eq!(hold.free, PAGES);
            let mut pages = 0;
            let mut page = hold.first_free;
            while page != END {
                pages += 1;
                page = hold.next[page as usize];
            }
            prop_assert_eq!(pages, PAGES);
        }
    }
}
