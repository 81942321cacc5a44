//! Rings against a queue, across threads, and against a hostile other side.

use std::collections::VecDeque;

use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

/// 20 bytes: not a whole number of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Odd {
    parts: [u32; 5],
}

fn odd(n: u32) -> Odd {
    Odd { parts: [n, n.wrapping_mul(3), !n, n ^ 0x5555, n.wrapping_add(1)] }
}

#[test]
fn values_are_invisible_until_published() {
    let (mut producer, consumer) = ring::<u64>(4).unwrap();
    producer.push(1).unwrap();
    producer.push(2).unwrap();
    assert_eq!((consumer.len(), consumer.get(0)), (0, None));
    assert_eq!(producer.free(), 2);
    producer.publish();
    assert_eq!(
        (consumer.len(), consumer.get(0), consumer.get(1), consumer.get(2)),
        (2, Some(1), Some(2), None)
    );
}

#[test]
fn a_ring_holds_what_was_asked_for_and_no_more() {
    for capacity in [1, 2, 3, 5, 8] {
        let (mut producer, mut consumer) = ring::<u16>(capacity).unwrap();
        assert_eq!(
            (producer.capacity(), consumer.capacity(), producer.free()),
            (capacity, capacity, capacity)
        );
        for n in 0..capacity {
            producer.push(n as u16).unwrap();
        }
        assert_eq!(producer.push(99), Err(99));
        producer.publish();
        consumer.release(1);
        assert_eq!(producer.push(99), Ok(()));
        assert_eq!(producer.push(99), Err(99));
    }
    for capacity in [0, (1 << 31) + 1, u32::MAX] {
        assert_eq!(ring::<u64>(capacity).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput));
    }
}

#[test]
fn no_more_is_released_than_was_published() {
    let (mut producer, mut consumer) = ring::<u64>(4).unwrap();
    producer.push(1).unwrap();
    consumer.release(9);
    assert_eq!(producer.free(), 3);
    producer.publish();
    consumer.release(9);
    assert_eq!((consumer.len(), producer.free()), (0, 4));
    assert!(!consumer.is_poisoned() && !producer.is_poisoned());
}

#[test]
fn values_of_no_bytes_are_counted() {
    let (mut producer, mut consumer) = ring::<()>(2).unwrap();
    producer.push(()).unwrap();
    producer.publish();
    assert_eq!((consumer.pop(), consumer.pop()), (Some(()), None));
}

#[test]
fn indices_wrap_around() {
    let (mut producer, mut consumer) = ring_at::<Odd>(3, u32::MAX - 5, 0).unwrap();
    for n in 0..20 {
        producer.push(odd(n)).unwrap();
        producer.push(odd(n + 100)).unwrap();
        producer.publish();
        assert_eq!(consumer.len(), 2);
        assert_eq!(consumer.pop(), Some(odd(n)));
        assert_eq!(consumer.pop(), Some(odd(n + 100)));
    }
    assert!(!consumer.is_poisoned() && !producer.is_poisoned());
}

#[test]
fn a_consumer_believes_no_impossible_index() {
    for nonsense in [5, 1, u32::MAX, 0x8000_0000] {
        let (mut producer, mut consumer) = ring::<u64>(4).unwrap();
        for n in 0..3 {
            producer.push(n).unwrap();
        }
        producer.publish();
        assert_eq!(consumer.len(), 3);
        // More than the ring holds, or less than what was published already.
        producer.storage.tail().store(nonsense, Ordering::Release);
        assert_eq!((consumer.len(), consumer.is_poisoned()), (0, true), "{nonsense}");
        assert_eq!((consumer.get(0), consumer.pop()), (None, None));
        // For ever, even if the peer thinks better of it.
        producer.publish();
        assert_eq!((consumer.len(), consumer.get(0)), (0, None));
        consumer.release(4);
        assert_eq!(consumer.head, 0);
    }
}

#[test]
fn a_producer_believes_no_impossible_index() {
    for nonsense in [4, 0, u32::MAX, 0x8000_0000] {
        let (mut producer, mut consumer) = ring::<u64>(4).unwrap();
        for n in 0..3 {
            producer.push(n).unwrap();
        }
        producer.publish();
        assert_eq!(consumer.len(), 3);
        consumer.release(2);
        assert_eq!(producer.free(), 3);
        // Ahead of what was pushed, or behind what was released already.
        consumer.storage.head().store(nonsense, Ordering::Release);
        assert_eq!((producer.free(), producer.is_poisoned()), (0, true), "{nonsense}");
        assert_eq!(producer.push(1), Err(1));
        consumer.storage.head().store(2, Ordering::Release);
        assert_eq!((producer.free(), producer.push(1)), (0, Err(1)));
    }
}

#[test]
fn a_peer_that_scribbles_everywhere_leads_nobody_astray() {
    let (mut producer, mut consumer) = ring::<Odd>(5).unwrap();
    let storage = Arc::clone(&producer.storage);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut x = 1u32;
            while !stop.load(Ordering::Relaxed) {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                storage.tail().store(x >> 29, Ordering::Relaxed);
                storage.head().store(x >> 29, Ordering::Relaxed);
                storage.entry((x >> 8) as usize % 24, 1)[0].store(u64::from(x));
            }
        });
        for n in 0..20_000 {
            let _ = producer.push(odd(n));
            producer.publish();
            assert!(producer.free() <= 5 && consumer.len() <= 5);
            let _ = consumer.get(n % 7);
            consumer.release(n % 3);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn threads_pass_every_value_once_and_in_order() {
    let (mut producer, mut consumer) = ring_at::<Odd>(37, u32::MAX - 1000, 2).unwrap();
    let count = if cfg!(miri) { 200 } else { 100_000 };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < count {
                // Batches of changing size, published together.
                for _ in 0..next % 7 + 1 {
                    if next < count && producer.push(odd(next)).is_ok() {
                        next += 1;
                    }
                }
                producer.publish();
                if producer.free() == 0 {
                    assert!(!producer.is_poisoned());
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < count {
            let ready = consumer.len();
            for nth in 0..ready {
                assert_eq!(consumer.get(nth), Some(odd(expected + nth)));
            }
            consumer.release(ready);
            expected += ready;
            if ready == 0 {
                assert!(!consumer.is_poisoned());
                std::thread::yield_now();
            }
        }
        assert!(consumer.is_empty());
    });
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Publish,
    Pop,
    Get(u32),
    Release(u32),
    Len,
    Free,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Push),
        3 => Just(Step::Publish),
        3 => Just(Step::Pop),
        2 => (0u32..12).prop_map(Step::Get),
        1 => (0u32..12).prop_map(Step::Release),
        1 => Just(Step::Len),
        1 => Just(Step::Free),
    ]
}

proptest! {
    #[test]
    fn a_ring_is_a_queue(
        capacity in 1u32..10,
        start in prop_oneof![Just(0u32), (u32::MAX - 20)..=u32::MAX, any::<u32>()],
        steps in proptest::collection::vec(any_step(), 1..200),
    ) {
        let (mut producer, mut consumer) = ring_at::<Odd>(capacity, start, 1).unwrap();
        let (mut staged, mut published) = (VecDeque::new(), VecDeque::new());
        let mut next = 0;
        for step in steps {
            let free = capacity as usize - staged.len() - published.len();
            match step {
                Step::Push => {
                    let expected = if free > 0 { Ok(()) } else { Err(odd(next)) };
                    prop_assert_eq!(producer.push(odd(next)), expected);
                    if free > 0 {
                        staged.push_back(odd(next));
                    }
                    next += 1;
                }
                Step::Publish => {
                    producer.publish();
                    published.append(&mut staged);
                }
                Step::Pop => prop_assert_eq!(consumer.pop(), published.pop_front()),
                Step::Get(nth) => {
                    prop_assert_eq!(consumer.get(nth), published.get(nth as usize).copied());
                }
                Step::Release(n) => {
                    consumer.release(n);
                    published.drain(..published.len().min(n as usize));
                }
                Step::Len => prop_assert_eq!(consumer.len() as usize, published.len()),
                Step::Free => prop_assert_eq!(producer.free() as usize, free),
            }
        }
        prop_assert!(!producer.is_poisoned() && !consumer.is_poisoned());
    }
}

#[test]
fn an_entry_is_padded_to_whole_words() {
    assert_eq!(words_per_entry::<()>(), 0);
    assert_eq!(words_per_entry::<u8>(), 1);
    assert_eq!(words_per_entry::<Odd>(), 3);
    assert_eq!(words_per_entry::<[u64; 8]>(), 8);
    assert_eq!(Odd::new_zeroed().parts, [0; 5]);
}

#[test]
fn tails_travel_with_their_values() {
    let (mut producer, mut consumer) = ring_with_tail::<Odd>(4, 21).unwrap();
    for round in 0..10_u8 {
        let tail: Vec<u8> = (0..24).map(|i| round ^ i).collect();
        producer.push_with(odd(round.into()), &tail[..usize::from(round) * 2]).unwrap();
        producer.publish();
        assert_eq!(consumer.get(0), Some(odd(round.into())));
        let whole = usize::from(round) * 2;
        let mut out = [0; 24];
        assert!(consumer.tail(0, 0, &mut out[..whole]));
        assert_eq!(out[..whole], tail[..whole]);
        if round >= 8 {
            assert!(consumer.tail(0, 8, &mut out[..5]));
            assert_eq!(out[..5], tail[8..13]);
        }
        // Neither beyond the tail, nor from the midst of a word, nor of what is not there.
        for (nth, at, len) in [(0, 0, 25), (0, 24, 1), (0, 4, 4), (0, usize::MAX - 7, 8), (1, 0, 1)] {
            assert!(!consumer.tail(nth, at, &mut [0; 25][..len]), "{nth} {at} {len}");
        }
        consumer.release(1);
    }
    assert_eq!(producer.push_with(odd(1), &[0; 25]), Err(odd(1)), "a tail that is too long");
    assert_eq!(producer.free(), 4);
}
