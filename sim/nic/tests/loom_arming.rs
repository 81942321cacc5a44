//! Every interleaving of a program that asks to be told and a writer of completions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-nic --release --test loom_arming`
#![cfg(loom)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/completion/arming.rs"]
mod arming;

use arming::Arming;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A queue as far as it matters here: how much was written, and how often that was told.
struct Queue {
    arming: Arming,
    written: AtomicUsize,
    told: AtomicUsize,
}

impl Queue {
    fn new() -> Arc<Queue> {
        Arc::new(Queue { arming: Arming::new(), written: AtomicUsize::new(0), told: AtomicUsize::new(0) })
    }

    fn write(&self, solicited: bool) {
        self.written.fetch_add(1, Ordering::Release);
        if self.arming.wants(solicited) && self.arming.answer() {
            self.told.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Asks, then looks: what was there.
    fn ask_and_look(&self, solicited_only: bool) -> usize {
        self.arming.ask(solicited_only);
        self.written.load(Ordering::Acquire)
    }
}

#[test]
fn whoever_asks_and_finds_nothing_is_told_of_what_comes() {
    loom::model(|| {
        let queue = Queue::new();
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.write(false))
        };
        let found = queue.ask_and_look(false);
        writer.join().unwrap();
        let told = queue.told.load(Ordering::SeqCst);
        assert!(found == 1 || told == 1, "it would sleep for ever");
        assert!(told <= 1);
    });
}

#[test]
fn one_question_has_one_answer_whoever_writes() {
    loom::model(|| {
        let queue = Queue::new();
        queue.arming.ask(true);
        let writers = [true, true].map(|solicited| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.write(solicited))
        });
        queue.write(false);
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(queue.told.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn to_ask_for_more_while_a_writer_is_at_it_is_not_lost() {
    loom::model(|| {
        let queue = Queue::new();
        queue.arming.ask(true);
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.write(false))
        };
        let found = queue.ask_and_look(false);
        writer.join().unwrap();
        assert!(found == 1 || queue.told.load(Ordering::SeqCst) == 1);
    });
}
