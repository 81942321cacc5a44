//! Atomic operations on the peer's memory.

use anyverbs::{Operation, Rights};

use crate::pair::{At, Pair};

pub(crate) fn fetch_add_counts(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64, Rights::ATOMIC).unwrap();
    window.store_u64(8, u64::MAX - 9).unwrap();
    let counter = window.token().at(8, 8).unwrap();
    for _ in 0..20 {
        a.fetch_add(pair.a.lease(0, 0), counter, 1).unwrap();
    }
    for (i, done) in pair.requests(At::A, 20).into_iter().enumerate() {
        let done = done.ok().unwrap();
        assert_eq!((done.operation, done.len), (Operation::FetchAdd, 8));
        assert_eq!(done.original(), Some((u64::MAX - 9).wrapping_add(i as u64)));
        assert_eq!(done.buffer.unwrap().len(), 8);
    }
    assert_eq!(window.load_u64(8), Ok(10));
    assert_eq!((window.load_u64(0), window.load_u64(16)), (Ok(0), Ok(0)));
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn compare_swap_swaps_if_equal(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(8, Rights::ATOMIC).unwrap();
    let lock = window.token().all();
    for (expected, new, original, after) in
        [(0, 7, 0, 7), (0, 9, 7, 7), (7, u64::MAX, 7, u64::MAX), (u64::MAX, 1, u64::MAX, 1)]
    {
        a.compare_swap(pair.a.lease(0, 0), lock, expected, new).unwrap();
        let done = pair.requests(At::A, 1).remove(0).ok().unwrap();
        assert_eq!((done.operation, done.original()), (Operation::CompareSwap, Some(original)));
        assert_eq!(window.load_u64(0), Ok(after));
    }
    drop(window);
    pair.finish((a, b));
}

pub(crate) fn atomics_and_the_owner_agree(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(8, Rights::ATOMIC | Rights::READ).unwrap();
    let mut originals = Vec::new();
    for _ in 0..30 {
        a.fetch_add(pair.a.lease(0, 0), window.token().all(), 1).unwrap();
        originals.push(window.fetch_add_u64(0, 1).unwrap());
    }
    originals.extend(pair.requests(At::A, 30).into_iter().map(|done| done.original().unwrap()));
    originals.sort_unstable();
    assert_eq!(originals, (0..60).collect::<Vec<_>>(), "each value was seen once");
    assert_eq!(window.compare_swap_u64(0, 60, 5), Ok(60));
    assert_eq!(window.compare_swap_u64(0, 60, 6), Ok(5));
    drop(window);
    pair.finish((a, b));
}
