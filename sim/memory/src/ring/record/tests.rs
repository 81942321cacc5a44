//! Record rings against a queue, across threads and mappings, and against a hostile other side.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

fn bytes(n: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n as usize).wrapping_mul(31).wrapping_add(i) as u8).collect()
}

fn note(n: u32) -> Note {
    [1, 2, 3, 4, 5].map(|k| u64::from(n) * k)
}

fn pop(consumer: &mut RecordConsumer) -> Option<(Note, Vec<u8>)> {
    let mut out = [0; 1 << 12];
    match consumer.pop(&mut out) {
        Popped::Record { note, len } => Some((note, out[..len].to_vec())),
        Popped::Empty => None,
        Popped::Larger { len } => panic!("{len} bytes"),
    }
}

#[test]
fn records_of_all_sizes_pass_whole_across_the_end_of_the_ring() {
    for start in [0, u32::MAX - 100] {
        let (mut producer, mut consumer) = ring_at(1024, start).unwrap();
        for n in 0..500 {
            let len = n as usize * 7 % 900;
            assert!(producer.push(&note(n), &bytes(n, len)), "{n}");
            assert_eq!(pop(&mut consumer), None, "not published");
            assert!(!producer.publish(), "nobody sleeps");
            assert_eq!(pop(&mut consumer), Some((note(n), bytes(n, len))));
            consumer.release();
        }
        assert!(!producer.is_poisoned() && !consumer.is_poisoned());
    }
}

#[test]
fn a_full_ring_takes_nothing_and_loses_nothing() {
    let (mut producer, mut consumer) = record_ring(256).unwrap();
    // 48 + 16 bytes each.
    for n in 0..4 {
        assert!(producer.push(&note(n), &bytes(n, 9)));
    }
    assert!(!producer.push(&note(4), &[]));
    let _ = producer.publish();
    assert_eq!(pop(&mut consumer), Some((note(0), bytes(0, 9))));
    assert!(!producer.push(&note(4), &[]), "taken, and not released");
    consumer.release();
    assert!(producer.push(&note(4), &bytes(4, 16)));
    let _ = producer.publish();
    for n in 1..4 {
        assert_eq!(pop(&mut consumer), Some((note(n), bytes(n, 9))));
    }
    assert_eq!(pop(&mut consumer), Some((note(4), bytes(4, 16))));
    consumer.release();
    assert!(!producer.push(&note(5), &[0; 256 - 48 + 1]), "larger than the ring");
    assert!(producer.push(&note(5), &[7; 256 - 48]));
}

#[test]
fn what_does_not_fit_stays_until_it_is_skipped() {
    let (mut producer, mut consumer) = record_ring(1024).unwrap();
    assert!(producer.push(&note(1), &bytes(1, 100)));
    assert!(producer.push(&note(2), &bytes(2, 5)));
    let _ = producer.publish();
    assert_eq!(consumer.pop(&mut [0; 99]), Popped::Larger { len: 100 });
    assert_eq!(consumer.pop(&mut []), Popped::Larger { len: 100 });
    consumer.skip();
    assert_eq!(pop(&mut consumer), Some((note(2), bytes(2, 5))));
    consumer.skip();
    assert_eq!(pop(&mut consumer), None);
}

#[test]
fn impossible_sizes_are_refused() {
    for size in [0, 8, 32, 63, 65, 96, usize::MAX, 1 << 63] {
        assert_eq!(record_ring(size).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput), "{size}");
    }
    assert!(record_ring(64).is_ok());
}

#[test]
fn a_ring_is_opened_by_its_descriptor_and_only_with_its_size() {
    let mut consumer = RecordConsumer::create(4096).unwrap();
    let fd = || consumer.fd().unwrap().try_clone_to_owned().unwrap();
    for size in [2048, 8192] {
        assert_eq!(
            RecordProducer::open(fd(), size).err().map(|e| e.kind()),
            Some(io::ErrorKind::InvalidData)
        );
    }
    let mut producer = RecordProducer::open(fd(), 4096).unwrap();
    assert!(consumer.bell().arm());
    assert!(producer.push(&note(1), b"over there"));
    assert!(producer.publish(), "it sleeps");
    assert!(!consumer.bell().arm(), "there is something");
    assert_eq!(pop(&mut consumer), Some((note(1), b"over there".to_vec())));
    consumer.release();
    assert!(producer.push(&note(2), &[]));
    assert!(producer.publish(), "armed by the look above");
    assert!(producer.push(&note(3), &[]));
    assert!(!producer.publish(), "woken already");
    assert!(!producer.publish(), "nothing new");
}

#[test]
fn a_consumer_believes_no_impossible_index_or_length() {
    let push = |storage: &Storage, consumer: &mut RecordConsumer, tail: u32, len: u64| {
        storage.entry(0, 1)[0].store(len);
        storage.tail().store(tail, Ordering::Release);
        let popped = consumer.pop(&mut [0; 4096]);
        assert_eq!((popped, consumer.is_poisoned()), (Popped::Empty, true), "{tail} {len}");
        // For ever, even if the peer thinks better of it.
        storage.entry(0, 1)[0].store(1);
        storage.tail().store(8, Ordering::Release);
        assert_eq!(consumer.pop(&mut [0; 4096]), Popped::Empty);
        consumer.skip();
        consumer.release();
        assert_eq!(storage.head().load(Ordering::Relaxed), 0);
    };
    for (tail, len) in [
        (129, 1),
        (u32::MAX, 1),
        (1 << 31, 1),
        (5, 0),
        (8, 17),
        (128, 1024 - 48 + 1),
        (128, u64::MAX),
        (128, 1 << 32),
        (128, (1 << 35) - 48),
        (128, (1 << 35) + 1),
    ] {
        let (producer, mut consumer) = record_ring(1024).unwrap();
        push(&producer.words.storage, &mut consumer, tail, len);
    }
}

#[test]
fn a_producer_believes_no_impossible_index() {
    for nonsense in [17, 0, u32::MAX, 1 << 31] {
        let (mut producer, mut consumer) = record_ring(128).unwrap();
        assert!(producer.push(&note(1), &[1; 8]));
        assert!(producer.push(&note(2), &[2; 16]));
        let _ = producer.publish();
        pop(&mut consumer);
        consumer.release();
        assert!(!producer.push(&note(3), &[3; 24]), "no room for 72 bytes");
        // Ahead of what was pushed, or behind what was released already.
        producer.words.storage.head().store(nonsense, Ordering::Release);
        assert!(!producer.push(&note(3), &[3; 24]));
        assert!(producer.is_poisoned(), "{nonsense}");
        producer.words.storage.head().store(15, Ordering::Release);
        assert!(!producer.push(&note(3), &[]));
    }
}

#[test]
fn a_peer_that_scribbles_everywhere_leads_nobody_astray() {
    let stop = AtomicBool::new(false);
    let rounds = if cfg!(miri) { 50 } else { 20_000 };
    for start in [0, u32::MAX - 5000] {
        let storage = Arc::new(Storage::new(64, start).unwrap());
        let shape = shape(512).unwrap();
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut x = 1_u32;
                while !stop.load(Ordering::Relaxed) {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    storage.tail().store(start.wrapping_add(x >> 25), Ordering::Relaxed);
                    storage.head().store(start.wrapping_add(x >> 25), Ordering::Relaxed);
                    storage.bell().store(x, Ordering::Relaxed);
                    storage.entry((x >> 8) as usize % 64, 1)[0].store(u64::from(x >> 24));
                }
            });
            let mut out = [0; 512];
            for n in 0..rounds {
                let mut producer = RecordProducer::new(Arc::clone(&storage), shape, start);
                let mut consumer = RecordConsumer::new(Arc::clone(&storage), shape, start);
                for k in 0..4 {
                    let _ = producer.push(&note(n), &out[..(n + k) as usize % 300]);
                    let _ = producer.publish();
                    let _ = consumer.bell().arm();
                    match consumer.pop(&mut out) {
                        Popped::Record { len, .. } | Popped::Larger { len } => assert!(len <= 512 - 48),
                        Popped::Empty => {}
                    }
                    consumer.release();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn threads_that_sleep_pass_every_record_once_and_in_order() {
    let (mut producer, mut consumer) = ring_at(2048, u32::MAX - 1000).unwrap();
    let count = if cfg!(miri) { 100 } else { 50_000 };
    let sleeper = std::thread::current();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < count {
                if producer.push(&note(next), &bytes(next, next as usize % 301)) {
                    next += 1;
                } else {
                    std::thread::yield_now();
                }
                if producer.publish() {
                    sleeper.unpark();
                }
            }
            assert!(!producer.is_poisoned());
        });
        let bell = consumer.bell();
        for n in 0..count {
            let got = loop {
                if let Some(got) = pop(&mut consumer) {
                    break got;
                }
                consumer.release();
                if bell.arm() {
                    std::thread::park();
                }
            };
            assert_eq!(got, (note(n), bytes(n, n as usize % 301)));
            consumer.release();
        }
    });
}

proptest! {
    /// Any order of pushes and pops gives what a queue gives.
    #[test]
    fn a_ring_is_a_queue(
        start in any::<u32>(),
        steps in proptest::collection::vec((0..4_u8, 0..400_usize), 1..200),
    ) {
        let (mut producer, mut consumer) = ring_at(1024, start).unwrap();
        let mut staged = VecDeque::new();
        let mut published = VecDeque::new();
        let mut n = 0;
        for (step, len) in steps {
            match step {
                0 | 1 => {
                    n += 1;
                    if producer.push(&note(n), &bytes(n, len)) {
                        staged.push_back((note(n), bytes(n, len)));
                    } else {
                        let used: usize = staged.iter().chain(&published)
                            .map(|(_, bytes): &(Note, Vec<u8>)| 48 + bytes.len().next_multiple_of(8)).sum();
                        prop_assert!(used + 48 + len.next_multiple_of(8) > 1024, "{used} and {len} fit");
                    }
                }
                2 => {
                    let _ = producer.publish();
                    published.append(&mut staged);
                }
                _ => {
                    prop_assert_eq!(pop(&mut consumer), published.pop_front());
                    consumer.release();
                }
            }
        }
        prop_assert!(!producer.is_poisoned() && !consumer.is_poisoned());
    }

    /// Whatever stands in the memory, both sides stay inside it, and agree that something is wrong or go on.
    #[test]
    fn no_memory_leads_outside(
        words in proptest::collection::vec(prop_oneof![any::<u64>(), 0..600_u64], 32),
        indices in any::<[u32; 3]>(),
        near in any::<bool>(),
    ) {
        let (mut producer, mut consumer) = ring_at(256, 0).unwrap();
        let storage = Arc::clone(&producer.words.storage);
        for (i, word) in words.iter().enumerate() {
            storage.entry(i, 1)[0].store(*word);
        }
        let [tail, head, bell] = indices.map(|index| if near { index % 34 } else { index });
        storage.tail().store(tail, Ordering::Relaxed);
        storage.head().store(head, Ordering::Relaxed);
        storage.bell().store(bell, Ordering::Relaxed);
        let mut out = [0; 256];
        for _ in 0..40 {
            match consumer.pop(&mut out) {
                Popped::Record { len, .. } => prop_assert!(len <= 256 - 48),
                Popped::Larger { .. } => consumer.skip(),
                Popped::Empty => break,
            }
        }
        prop_assert_eq!(consumer.pop(&mut out), Popped::Empty);
        let _ = producer.push(&note(1), &[0; 300]);
        while producer.push(&note(1), &[0; 60]) {
            prop_assert!(producer.staged <= 512);
            // What the hostile side may do at once: follow.
            if near {
                break;
            }
        }
    }
}
