//! Posting and polling allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use anyverbs::{Cq, Device, DeviceOptions, Pool, Qp, QpOptions, Rc, RemoteSlice, Request, Rights};

/// Counts what is allocated on any thread, so the progress threads of the devices count, too.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it is, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

struct Side {
    cq: Cq,
    pool: Pool,
    qp: Qp<Rc>,
}

/// Every operation once, and the wait for all of it.
fn round(a: &Side, b: &Side, window: RemoteSlice, counter: RemoteSlice) {
    let lease = || a.pool.lease().expect("leases come back every round");
    for _ in 0..6 {
        b.qp.post_recv(b.pool.lease().expect("leases come back every round")).unwrap();
    }
    a.qp.send(lease()).unwrap();
    a.qp.send_imm(lease(), 1).unwrap();
    a.qp.send_inline(b"inline", 3).unwrap();
    a.qp.write(lease(), window).unwrap();
    a.qp.write_imm(lease(), window, 2).unwrap();
    a.qp.read(lease(), window).unwrap();
    a.qp.fetch_add(lease(), counter, 1).unwrap();
    a.qp.compare_swap(lease(), counter, 0, 1).unwrap();
    let mut batch = a.qp.batch();
    batch.push(Request::send(lease())).unwrap();
    batch.push(Request::send(lease())).unwrap();
    batch.submit().unwrap();
    let (mut sent, mut received) = (0, 0);
    while sent < 10 || received < 6 {
        let count = |completion: anyverbs::Completion| assert!(completion.status.is_success());
        sent += a.cq.poll(count);
        received += b.cq.poll(count);
    }
}

#[test]
fn posting_and_polling_allocate_nothing() {
    let open = || {
        let device = Device::open(&DeviceOptions::new()).unwrap();
        let domain = device.domain().unwrap();
        let cq = device.completion_queue(128).unwrap();
        let pool = domain.pool(16, 10_000).unwrap();
        let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
        (domain, cq, pool, qp)
    };
    let ((_domain_a, cq_a, pool_a, qp_a), (domain_b, cq_b, pool_b, qp_b)) = (open(), open());
    let (to_a, to_b) = (qp_a.endpoint(), qp_b.endpoint());
    let a = Side { cq: cq_a, pool: pool_a, qp: qp_a.connect(&to_b).unwrap() };
    let b = Side { cq: cq_b, pool: pool_b, qp: qp_b.connect(&to_a).unwrap() };
    let window = domain_b.window(10_008, Rights::all()).unwrap();
    let (bytes, counter) = (window.token().at(0, 10_000).unwrap(), window.token().at(10_000, 8).unwrap());

    // Queues inside find the size that they need.
    for _ in 0..200 {
        round(&a, &b, bytes, counter);
    }
    // The test harness has threads, too: a few allocations in all would be theirs, one a round ours.
    let rounds = 500;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..rounds {
        round(&a, &b, bytes, counter);
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(allocations < 10, "{allocations} allocations in {rounds} rounds of 10 requests");
}
