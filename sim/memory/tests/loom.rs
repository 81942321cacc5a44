//! The ring under every interleaving, and every value that a weak memory model lets a load return;
//! accesses to its entries that its indices do not order are errors.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-memory --release --test loom`
#![cfg(loom)]

use anyverbs_memory::ring;
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
