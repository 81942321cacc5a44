//! Once a queue pair is connected, its calls allocate nothing: not for a packet, not for a message, and not
//! when packets are lost.

mod lean;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use anyverbs_engine::{Config, Mtu, Op};
use anyverbs_wire::{Feth, Selectivity};
use lean::{Faults, Pair};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; a thread-local number is counted besides, which needs
// no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above, which is the system's, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as above, and the caller's promise about `len` is passed on.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

/// Every operation, with the bytes of a message and how many messages. Long ones are of 256 packets, and short
/// ones make an answer of every packet or so.
const WORK: [(&str, Op, u32, u64); 15] = {
    let (va, rkey) = (64, 7);
    let write = Op::Write { va, rkey, imm: None };
    [
        ("SEND", Op::Send { imm: None }, 1 << 20, 40),
        ("SEND, short", Op::Send { imm: None }, 8, 10_000),
        ("SEND, empty", Op::Send { imm: None }, 0, 1_000),
        ("SEND with immediate", Op::Send { imm: Some(1) }, 10_000, 1_000),
        ("WRITE", write, 1 << 20, 40),
        ("WRITE, short", write, 8, 10_000),
        ("WRITE with immediate", Op::Write { va, rkey, imm: Some(1) }, 10_000, 1_000),
        ("READ", Op::Read { va, rkey }, 1 << 20, 40),
        ("READ, short", Op::Read { va, rkey }, 8, 10_000),
        ("READ of three packets", Op::Read { va, rkey }, 10_000, 1_000),
        ("FETCH_ADD", Op::FetchAdd { va, rkey, add: 1 }, 8, 10_000),
        ("SEND with invalidate", Op::SendInvalidate { rkey }, 10_000, 1_000),
        ("FLUSH", Op::Flush { va, rkey, feth: FETH }, 8, 10_000),
        ("ATOMIC WRITE", Op::AtomicWrite { va, rkey }, 8, 10_000),
        ("CMP_SWAP", Op::CompareSwap { va, rkey, compare: 1, swap: 2 }, 8, 10_000),
    ]
};

const FETH: Feth = Feth { placement: Feth::GLOBAL, selectivity: Selectivity::Range };

#[test]
fn the_count_counts() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(vec![1, 2, 3]))), 1);
    let mut grown: Vec<u64> = Vec::with_capacity(1);
    assert_eq!(allocations_of(|| std::hint::black_box(&mut grown).reserve_exact(2)), 1);
}

#[test]
fn packets_allocate_nothing() {
    let mut pair = Pair::new(Config::default(), Mtu::B4096);
    for (_, op, len, _) in WORK {
        pair.run(4, op, len, |_, _, _, _| {});
    }
    for (name, op, len, messages) in WORK {
        let before = pair.sides.each_ref().map(|side| side.counters.rcvd_pkts);
        let allocations = allocations_of(|| pair.run(messages, op, len, |_, _, _, _| {}));
        assert_eq!(allocations, 0, "{name}: {messages} messages");
        for (side, before) in pair.sides.iter().zip(before) {
            assert!(side.counters.rcvd_pkts > before, "{name}: both sides receive");
        }
    }
    assert_eq!(pair.lost, 0);
    let packets = pair.sides.each_ref().map(|side| side.counters.sent_pkts);
    assert!(packets.iter().all(|packets| *packets > 40_000), "{packets:?} packets sent");
}

/// The first packet that comes early makes room for all that ever will; nothing after it needs any.
#[test]
fn losses_allocate_nothing() {
    for seed in 1..=3 {
        let mut pair = Pair::new(Config::default(), Mtu::B4096);
        pair.faults = Faults { loss: 10, reorder: 10, seed };
        let first = allocations_of(|| pair.run(20, WORK[4].1, WORK[4].2, |_, _, _, _| {}));
        assert!(first <= 1, "{first} allocations for the first losses, seed {seed}");
        for (name, op, len, messages) in WORK {
            let lost = pair.lost;
            let allocations = allocations_of(|| pair.run(messages, op, len, |_, _, _, _| {}));
            assert_eq!(allocations, 0, "{name}: {messages} messages, seed {seed}");
            assert!(pair.lost > lost, "{name}: nothing was lost, seed {seed}");
        }
        let [requester, responder] = &pair.sides;
        let early = responder.counters.rx_kept_early;
        let repairs = requester.counters.completer_retry_err;
        assert!(early > 100 && repairs > 100, "{early} early packets, {repairs} repairs, seed {seed}");
    }
}
