//! Every interleaving of those who post, complete, and destroy a queue, as its slots see it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs --release --test loom_slots`
#![cfg(loom)]

/// What the slots keep and do not look at.
mod connection {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct QpNumber(pub(crate) u32);
}

mod pool {
    pub(crate) struct Lease;
}

mod request {
    pub(crate) enum Operation {
        Send,
    }
}

#[allow(dead_code, unreachable_pub)]
#[path = "../transport/verbs/slots.rs"]
mod slots;

use connection::QpNumber;
use loom::sync::Arc;
use loom::thread;
use request::Operation;
use slots::{Posted, SlotTable, WorkId};

fn table(count: u32, generation: u64) -> Arc<SlotTable> {
    Arc::new(SlotTable::new(count, 5, generation, QpNumber(7), 0))
}

fn insert(table: &SlotTable, id: u64) -> Option<WorkId> {
    table.insert(Posted { lease: None, id, operation: Operation::Send, len: 0 }).ok()
}

fn take(table: &SlotTable, id: WorkId) -> Option<u64> {
    table.take(id).map(|posted| posted.id)
}

fn drain(table: &SlotTable) -> Vec<u64> {
    table.drain().iter().map(|posted| posted.id).collect()
}

#[test]
fn a_request_comes_back_once_whoever_takes_it() {
    loom::model(|| {
        let table = table(2, 0);
        let id = insert(&table, 1).unwrap();
        let threads = [
            {
                let table = Arc::clone(&table);
                thread::spawn(move || take(&table, id).into_iter().collect::<Vec<_>>())
            },
            {
                let table = Arc::clone(&table);
                thread::spawn(move || drain(&table))
            },
        ];
        let own = take(&table, id);
        let mut all: Vec<u64> = own.into_iter().collect();
        all.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
        assert_eq!(all, [1]);
        assert_eq!(table.room(), 2);
    });
}

#[test]
fn posters_share_the_slots_and_get_ids_of_their_own() {
    loom::model(|| {
        let table = table(2, 0);
        let posters = [1, 2].map(|id| {
            let table = Arc::clone(&table);
            thread::spawn(move || insert(&table, id).map(|work| (work, id)))
        });
        let own = insert(&table, 3).map(|work| (work, 3));
        let posted: Vec<_> =
            posters.into_iter().filter_map(|poster| poster.join().unwrap()).chain(own).collect();
        assert_eq!(posted.len(), 2, "as many as there are slots");
        assert_eq!(table.room(), 0);
        for (work, id) in posted {
            assert_eq!(take(&table, work), Some(id));
        }
        assert_eq!(table.room(), 2);
    });
}

#[test]
fn a_late_completion_does_not_take_what_came_after_it() {
    loom::model(|| {
        let table = table(1, 0);
        let old = insert(&table, 1).unwrap();
        let poller = {
            let table = Arc::clone(&table);
            thread::spawn(move || take(&table, old))
        };
        // Another thread looks up the same completion, and its slot is used again at once.
        let first = take(&table, old);
        let new = insert(&table, 2);
        let second = poller.join().unwrap();
        assert_eq!(first.or(second), Some(1));
        assert!(first.is_none() || second.is_none(), "a request came back twice: {first:?} {second:?}");
        if let Some(new) = new {
            assert_eq!(take(&table, new), Some(2));
        }
    });
}

#[test]
fn a_queue_that_takes_anothers_place_is_safe_from_its_completions() {
    loom::model(|| {
        let old = table(1, 0);
        let id = insert(&old, 1).unwrap();
        let poller = {
            let old = Arc::clone(&old);
            thread::spawn(move || take(&old, id))
        };
        let left = drain(&old);
        let new = table(1, old.next_generation());
        let other = insert(&new, 2).unwrap();
        // The poller had the id before, and finds the new queue in the old one's place.
        assert_eq!(take(&new, id), None);
        let taken = poller.join().unwrap();
        assert_eq!(left.len() + usize::from(taken.is_some()), 1);
        assert_eq!(take(&new, other), Some(2));
    });
}

#[test]
fn draining_keeps_the_order_of_posting_while_others_complete() {
    loom::model(|| {
        let table = table(3, 0);
        let ids = [1, 2].map(|id| insert(&table, id).unwrap());
        let completer = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let taken = take(&table, ids[0]);
                insert(&table, 3).unwrap();
                taken
            })
        };
        let drained = drain(&table);
        let taken = completer.join().unwrap();
        let rest = drain(&table);
        let all: Vec<u64> = drained.iter().chain(&rest).copied().collect();
        assert!(all.is_sorted(), "{drained:?} {rest:?}");
        assert_eq!(all.len() + usize::from(taken.is_some()), 3);
        assert_eq!(table.room(), 3);
    });
}
