//! The ring under every interleaving, and every value that a weak memory model lets a load return;
//! accesses to its entries that its indices do not order are errors.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-memory --release --test loom`
#![cfg(loom)]

use anyverbs_memory::{Popped, record_ring, ring};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Two words, so that a torn or early read shows.
type Value = [u64; 2];

fn value(n: u64) -> Value {
    [n, !n]
}

#[test]
fn values_arrive_whole_once_and_in_order() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<Value>(2).unwrap();
        let sender = thread::spawn(move || {
            let mut next = 1;
            while next <= 3 {
                match producer.push(value(next)) {
                    Ok(()) => {
                        producer.publish();
                        next += 1;
                    }
                    // Full: the consumer has to give a place back before it is written again.
                    Err(_) => thread::yield_now(),
                }
            }
            assert!(!producer.is_poisoned());
        });
        let mut expected = 1;
        while expected <= 3 {
            match consumer.pop() {
                Some(got) => {
                    assert_eq!(got, value(expected));
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        assert_eq!(consumer.pop(), None);
        assert!(!consumer.is_poisoned());
        sender.join().unwrap();
    });
}

#[test]
fn a_batch_is_published_together() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<Value>(2).unwrap();
        let sender = thread::spawn(move || {
            producer.push(value(1)).unwrap();
            producer.push(value(2)).unwrap();
            producer.publish();
            while producer.free() == 0 {
                thread::yield_now();
            }
            producer.push(value(3)).unwrap();
            producer.publish();
        });
        while consumer.is_empty() {
            thread::yield_now();
        }
        // Both or none: the index that shows the first shows the second.
        assert!(consumer.len() >= 2);
        assert_eq!((consumer.get(0), consumer.get(1)), (Some(value(1)), Some(value(2))));
        consumer.release(2);
        sender.join().unwrap();
        assert_eq!(consumer.pop(), Some(value(3)));
    });
}

#[test]
fn records_arrive_whole_once_and_in_order() {
    loom::model(|| {
        // Room for one record of 8 bytes: the consumer has to give its place back before the next.
        let (mut producer, mut consumer) = record_ring(64).unwrap();
        let sender = thread::spawn(move || {
            for n in 1..=2_u64 {
                while !producer.push(&[n; 5], &(!n).to_ne_bytes()) {
                    thread::yield_now();
                }
                let _ = producer.publish();
            }
            assert!(!producer.is_poisoned());
        });
        for n in 1..=2_u64 {
            let mut out = [0; 8];
            while consumer.pop(&mut out) != (Popped::Record { note: [n; 5], len: 8 }) {
                assert!(!consumer.is_poisoned());
                thread::yield_now();
            }
            assert_eq!(u64::from_ne_bytes(out), !n);
            consumer.release();
        }
        sender.join().unwrap();
        assert_eq!(consumer.pop(&mut []), Popped::Empty);
    });
}

#[test]
fn who_sleeps_is_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = record_ring(128).unwrap();
        let rings = Arc::new(AtomicUsize::new(0));
        let sender = {
            let rings = Arc::clone(&rings);
            thread::spawn(move || {
                for n in 1..=2_u64 {
                    assert!(producer.push(&[n; 5], &[]));
                    if producer.publish() {
                        rings.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        };
        let bell = consumer.bell();
        // One look into the ring, then the bell: what came between is seen, or rings.
        let seen = usize::from(consumer.pop(&mut []) != Popped::Empty);
        consumer.release();
        let asleep = bell.arm();
        sender.join().unwrap();
        let rung = rings.load(Ordering::SeqCst);
        assert!(rung <= 1, "nobody who is awake is woken");
        let mut left = 0;
        while consumer.pop(&mut []) != Popped::Empty {
            left += 1;
        }
        assert_eq!(seen + left, 2);
        assert!(!asleep || left == 0 || rung == 1, "asleep, with {left} in the ring, and not woken");
    });
}

#[test]
fn two_sleepers_are_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = record_ring(128).unwrap();
        let (one, two) = (consumer.bell(), consumer.bell());
        let first = thread::spawn(move || one.arm());
        let second = thread::spawn(move || two.arm());
        assert!(producer.push(&[7; 5], &[]));
        let mut rung = producer.publish();
        let asleep = [first.join().unwrap(), second.join().unwrap()];
        assert_ne!(consumer.pop(&mut []), Popped::Empty);
        consumer.release();
        assert!(producer.push(&[8; 5], &[]));
        rung |= producer.publish();
        assert!(rung || asleep == [false; 2], "{asleep:?} and nobody woken");
    });
}
