//! Once a link is made, its calls allocate nothing.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use anyverbs_link::capture::Captured;
use anyverbs_link::fault::Faulty;
use anyverbs_link::udp::{UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use support::{push, udp, ways};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; a thread-local number is counted besides,
// which needs no allocation itself.
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
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

#[test]
fn the_count_counts() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(vec![1, 2, 3]))), 1);
}

/// Sends mixed batches to itself, through everything, and receives until all is quiet.
fn exercise(link: &mut dyn Link) -> usize {
    let waiter = link.waiter();
    let address = link.info().address;
    let mut tx = TxBatch::with_capacity(1 << 20, 256);
    let mut rx = RxBatch::with_capacity(1 << 19, 512);
    let mut received = 0;
    let allocations = allocations_of(|| {
        for round in 0..50 {
            for (mark, len) in [(1, 64), (2, 64), (3, 4000), (4, 4000), (5, 30_000), (6, 30_000), (7, 16)] {
                push(&mut tx, address, address, mark & 3, len, mark + round);
            }
            for _ in 0..20 {
                link.transmit(&mut tx, waiter.now()).unwrap();
                rx.clear();
                link.receive(&mut rx, waiter.now()).unwrap();
                received += rx.entries().len();
            }
            waiter.wait(Some(waiter.now() + Duration::from_micros(10)));
        }
    });
    assert!(received > 300, "{received}");
    allocations
}

#[test]
fn sending_and_receiving_allocates_nothing() {
    for io in ways() {
        assert_eq!(exercise(&mut udp(io)), 0, "{io:?}");
    }
}

#[test]
fn handing_over_allocates_nothing() {
    for io in ways() {
        let mut owner = udp(io);
        let address = owner.info().address;
        let mut member = UdpLink::bind(address, &UdpOptions { io, ..UdpOptions::default() }).unwrap();
        let mut tx = TxBatch::with_capacity(1 << 20, 256);
        let mut rx = RxBatch::with_capacity(1 << 19, 512);
        let waiter = member.waiter();
        while owner.counters().members() == 0 {
            owner.receive(&mut rx, waiter.now()).unwrap();
        }
        // The mark makes the sixth byte, and so the queue pair's number, begin with the prefix.
        let mark = member.info().prefix.unwrap().value.wrapping_sub(5) as u8;
        let mut received = 0;
        let allocations = allocations_of(|| {
            for _ in 0..50 {
                for len in [64, 64, 4000, 4000, 30_000, 16] {
                    push(&mut tx, address, address, 2, len, mark);
                }
                for _ in 0..20 {
                    owner.transmit(&mut tx, waiter.now()).unwrap();
                    rx.clear();
                    owner.receive(&mut rx, waiter.now()).unwrap();
                    assert_eq!(rx.entries(), []);
                    member.receive(&mut rx, waiter.now()).unwrap();
                    received += rx.entries().len();
                }
                waiter.wait(Some(waiter.now() + Duration::from_micros(10)));
            }
        });
        assert_eq!((allocations, received), (0, 300), "{io:?}");
    }
}

#[test]
fn faults_and_captures_allocate_nothing() {
    let profile = "loss=0.01,duplicate=0.1,reorder=0.1,corrupt=0.1,delay=5us,jitter=5us";
    let faulty = Faulty::new(udp(support::ways()[0]), profile.parse().unwrap(), 0);
    let captured = Captured::new(faulty, Box::new(std::io::sink()), Duration::ZERO).unwrap();
    let mut link: Box<dyn Link> = Box::new(captured);
    assert_eq!(exercise(&mut link), 0);
}
