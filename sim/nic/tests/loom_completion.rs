//! Every interleaving of the writer of a completion queue, its readers, and those who purge and resize it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-nic --release --test loom_completion`
#![cfg(loom)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/completion/arming.rs"]
mod arming;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/error.rs"]
mod error;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/mailbox.rs"]
mod mailbox;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/completion/queue.rs"]
mod queue;

/// An entry with nothing but what the queue looks at.
mod entry {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub(crate) struct Entry {
        pub(crate) qpn: u32,
        pub(crate) number: u32,
    }

    pub(crate) type Cqe = Option<Entry>;

    impl Entry {
        pub(crate) fn is_solicited(&self) -> bool {
            false
        }

        pub(crate) fn read(&self) -> Cqe {
            Some(*self)
        }
    }
}

mod limits {
    /// A place that nobody counts.
    #[derive(Debug)]
    pub(crate) struct Ticket;
}

use std::sync::Arc as StdArc;

use anyverbs_engine::Time;
use entry::Entry;
use limits::Ticket;
use loom::sync::Arc;
use loom::thread;
use queue::{ChannelCore, CqCore, Pushed};

/// The queue pair whose completions stay, and one that is destroyed.
const QP: u32 = 5;
const GONE: u32 = 7;

fn queue(depth: u32) -> Arc<CqCore> {
    Arc::new(CqCore::new(1, depth, None, Ticket).unwrap())
}

/// Writes entries, as the holder of the token does.
fn push(queue: &CqCore, qpn: u32, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert_eq!(queue.push(Entry { qpn, number }, Time::ZERO), Pushed::Done);
    }
}

/// What is there, up to `N` entries.
fn take<const N: usize>(queue: &CqCore) -> Vec<u32> {
    let mut out = Vec::new();
    let taken = queue.take(N, &mut |entry| out.push(entry.unwrap().number));
    assert_eq!(taken, out.len());
    out
}

#[test]
fn each_entry_goes_to_one_reader_in_order() {
    loom::model(|| {
        let queue = queue(2);
        let threads = [(); 2].map(|()| Arc::clone(&queue));
        let [writer, reader] = threads;
        let writer = thread::spawn(move || push(&writer, QP, 0..2));
        let reader = thread::spawn(move || take::<2>(&reader));
        let mut own = take::<1>(&queue);
        writer.join().unwrap();
        let other = reader.join().unwrap();
        assert!(own.is_sorted() && other.is_sorted());
        own.extend(other);
        own.extend(take::<2>(&queue));
        own.sort_unstable();
        assert_eq!(own, [0, 1]);
    });
}

#[test]
fn a_purge_takes_what_is_of_one_queue_pair_and_keeps_the_others_order() {
    loom::model(|| {
        let queue = queue(4);
        push(&queue, QP, 0..1);
        push(&queue, GONE, 10..11);
        push(&queue, QP, 1..2);
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || take::<1>(&queue))
        };
        // One thread has the token: it purges, and then writes.
        queue.purge(GONE);
        push(&queue, QP, 2..3);
        let late = take::<2>(&queue);
        let early = reader.join().unwrap();
        assert!(!late.contains(&10), "a completion of a queue pair that is destroyed");
        let rest = take::<4>(&queue);
        // The other reader took one of the first two at some time, or none was there any more.
        let mut all = [late, rest].concat();
        assert!(all.is_sorted(), "{all:?}");
        all.extend(early.iter().filter(|number| **number != 10));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "the other reader had {early:?}");
    });
}

#[test]
fn another_depth_loses_nothing_and_keeps_the_order() {
    loom::model(|| {
        let queue = queue(2);
        push(&queue, QP, 0..2);
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let first = take::<1>(&queue);
                // Not for a moment is it empty: who finds it so goes to sleep.
                assert_eq!(first, [0]);
                [first, take::<2>(&queue)].concat()
            })
        };
        // One thread has the token.
        queue.resize(4).unwrap();
        push(&queue, QP, 2..4);
        let mut taken = reader.join().unwrap();
        taken.extend(take::<4>(&queue));
        assert_eq!(taken, [0, 1, 2, 3]);
        assert_eq!(queue.depth(), 4);
    });
}

#[test]
fn fewer_places_than_entries_are_refused_whoever_reads() {
    loom::model(|| {
        let queue = queue(2);
        push(&queue, QP, 0..2);
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || take::<1>(&queue))
        };
        let resized = queue.resize(1).is_ok();
        let mut taken = reader.join().unwrap();
        assert_eq!(taken, [0]);
        assert_eq!(queue.depth(), if resized { 1 } else { 2 });
        taken.extend(take::<2>(&queue));
        assert_eq!(taken, [0, 1]);
    });
}

#[test]
fn an_entry_too_many_is_told_of_once_and_the_others_stay() {
    loom::model(|| {
        let queue = queue(1);
        push(&queue, QP, 0..1);
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || take::<1>(&queue))
        };
        let entry = |number| Entry { qpn: QP, number };
        let pushed = [1, 2].map(|number| queue.push(entry(number), Time::ZERO));
        let mut taken = reader.join().unwrap();
        taken.extend(take::<2>(&queue));
        match pushed {
            [Pushed::Overrun, Pushed::Dead] => assert_eq!(taken, [0]),
            [Pushed::Done, Pushed::Overrun] => assert_eq!(taken, [0, 1]),
            // The second only if the first was taken meanwhile, too.
            [Pushed::Done, Pushed::Done] => assert_eq!(taken, [0, 1, 2]),
            other => panic!("{other:?}"),
        }
        assert_eq!(queue.is_overrun(), pushed.contains(&Pushed::Overrun));
    });
}

#[test]
fn who_asks_and_finds_nothing_gets_an_event_and_then_the_entry() {
    loom::model(|| {
        let channel = StdArc::new(ChannelCore::new(Ticket));
        let queue = Arc::new(CqCore::new(1, 2, Some(StdArc::clone(&channel)), Ticket).unwrap());
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || push(&queue, QP, 0..1))
        };
        queue.ask(false);
        let found = take::<1>(&queue);
        // Where it would sleep until the channel has something.
        writer.join().unwrap();
        if found.is_empty() {
            assert_eq!(channel.mailbox.take(), Some(1), "it would sleep for ever");
            assert_eq!(take::<1>(&queue), [0]);
        }
        drop(queue);
        assert_eq!(channel.mailbox.take(), None, "an event of a queue that is gone");
    });
}
