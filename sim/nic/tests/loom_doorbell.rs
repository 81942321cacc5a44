//! Every interleaving of posters and the one who answers their doorbell.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-nic --release --test loom_doorbell`
#![cfg(loom)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/doorbell.rs"]
mod doorbell;

use anyverbs_memory::{Consumer, Producer, ring};
use doorbell::Doorbell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A queue's doorbell, and how often the queue stands among those to be looked at.
struct Shared {
    doorbell: Doorbell,
    rung: AtomicUsize,
}

fn post(shared: &Shared, queue: &mut Producer<u64>, value: u64) {
    queue.push(value).unwrap();
    queue.publish();
    if shared.doorbell.ring() {
        shared.rung.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the holder of the token does with each queue that rang: how much it found.
fn work_off(shared: &Shared, queue: &mut Consumer<u64>) -> usize {
    let mut found = 0;
    for _ in 0..shared.rung.swap(0, Ordering::SeqCst) {
        shared.doorbell.answer();
        while queue.pop().is_some() {
            found += 1;
        }
    }
    found
}

#[test]
fn whatever_was_posted_is_found() {
    loom::model(|| {
        let shared = Arc::new(Shared { doorbell: Doorbell::new(), rung: AtomicUsize::new(0) });
        let (mut producer, mut consumer) = ring::<u64>(4).unwrap();
        let poster = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (1..=2).for_each(|value| post(&shared, &mut producer, value)))
        };
        let mut found = work_off(&shared, &mut consumer);
        found += work_off(&shared, &mut consumer);
        // The one who works next, whoever that is, knows of nothing but the doorbells: here another thread.
        let late = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let found = work_off(&shared, &mut consumer);
                (found, consumer)
            })
        };
        let (more, mut consumer) = late.join().unwrap();
        poster.join().unwrap();
        found += more + work_off(&shared, &mut consumer);
        assert_eq!(found, 2, "a work request that nobody will look at");
    });
}
