//! However it ends, each buffer comes back once, and memory outlives whoever may touch it.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyverbs::{Cq, QpOptions, Rc, Rights};

use crate::pair::{At, COUNT, Pair, check, options};

pub(crate) fn destroying_hands_out_what_is_in_flight(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for _ in 0..10 {
        a.post_recv(pair.a.lease(0, 0)).unwrap();
    }
    // Nobody receives, so these stay in flight.
    let window = pair.b.domain.window(70_000, Rights::all()).unwrap();
    for seed in 0..5 {
        a.send(pair.a.lease(20_000, seed)).unwrap();
    }
    a.read(pair.a.lease(0, 0), window.token().all()).unwrap();
    a.send_inline(b"x", 0).unwrap();
    let leases = a.destroy().unwrap();
    assert_eq!(leases.len(), 16, "five sends, a READ and ten receives");
    for (seed, lease) in leases[..5].iter().enumerate() {
        check(lease, 20_000, seed);
    }
    let mut indices: Vec<_> = leases.iter().map(|lease| lease.index()).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), 16);
    drop(leases);
    assert_eq!(pair.a.cq.reserved(), 0);

    // Nothing of it is written or completes afterwards.
    let mut canary = pair.a.lease(70_000, 7);
    pair.run_for(Duration::from_millis(2));
    check(&canary, 70_000, 7);
    canary.set_len(0).unwrap();
    drop((canary, window));
    b.destroy().unwrap();
    pair.check_idle();
}

pub(crate) fn dropping_gives_leases_back(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for seed in 0..20 {
        a.post_recv(pair.a.lease(0, 0)).unwrap();
        a.send(pair.a.lease(5000, seed)).unwrap();
    }
    assert_eq!(pair.a.pool.available(), COUNT - 40);
    drop(a);
    assert_eq!(pair.a.pool.available(), COUNT);
    drop(b);

    // Before it is connected, too.
    let qp = pair.a.domain.queue_pair::<Rc>(&options(), &pair.a.cq, &pair.a.cq).unwrap();
    qp.post_recv(pair.a.lease(0, 0)).unwrap();
    assert_eq!(qp.destroy().unwrap().len(), 1);
    pair.check_idle();
}

pub(crate) fn what_completed_and_was_not_polled_comes_back_once(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let total = Cq::POLL_MAX + 4;
    for seed in 0..total {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send(pair.a.lease(100, seed)).unwrap();
    }
    // When A's sends are acknowledged, B's receives have completed, and nobody polled for them.
    let mut sent = 0;
    while sent < total {
        sent += pair.a.cq.poll(|completion| assert!(completion.status.is_success()));
    }
    let mut polled = 0;
    pair.b.cq.poll(|_| polled += 1);
    let left = b.destroy().unwrap();
    assert_eq!((polled, left.len()), (Cq::POLL_MAX, 4));
    drop(left);
    a.destroy().unwrap();
    pair.check_idle();
}

pub(crate) fn forgetting_leaks_and_nothing_else(pair: &mut Pair) {
    let cq = pair.a.device.completion_queue(8).unwrap();
    let pool = pair.a.domain.pool(4, 64).unwrap();
    let options = QpOptions::new().send_depth(4).recv_depth(4);
    let qp = pair.a.domain.queue_pair::<Rc>(&options, &cq, &cq).unwrap();
    qp.post_recv(pool.lease().unwrap()).unwrap();
    mem::forget(qp);
    assert_eq!(pool.available(), 3, "its buffer stays with it");
    assert_eq!(cq.reserved(), 8, "and so do its places");
    mem::forget(pool.lease().unwrap());
    assert_eq!(pool.available(), 2);
    drop((pool, cq));

    let window = pair.b.domain.window(64, Rights::all()).unwrap();
    let token = window.token();
    mem::forget(window);
    // The memory of a forgotten window is still there, for peers.
    let (a, b) = pair.connect();
    a.write(pair.a.lease(64, 1), token.all()).unwrap();
    pair.requests(At::A, 1).remove(0).ok().unwrap();
    a.read(pair.a.lease(0, 0), token.all()).unwrap();
    check(&pair.requests(At::A, 1).remove(0).ok().unwrap().buffer.unwrap(), 64, 1);
    mem::forget(a.batch());
    pair.finish((a, b));
}

pub(crate) fn any_order_will_do(pair: &mut Pair) {
    let device = pair.a.device.clone();
    let domain = device.domain().unwrap();
    let cq = device.completion_queue(128).unwrap();
    let pool = domain.pool(2, 64).unwrap();
    let qp = domain.queue_pair::<Rc>(&QpOptions::new(), &cq, &cq).unwrap();
    qp.post_recv(pool.lease().unwrap()).unwrap();
    let mut lease = pool.lease().unwrap();
    drop(pool);
    drop(domain);
    drop(cq);
    drop(device);
    lease.fill(7);
    drop(qp);
    assert!(lease.iter().all(|&byte| byte == 7));
}

pub(crate) fn a_sink_may_destroy_its_queue_pair(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for seed in 0..8 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send(pair.a.lease(100, seed)).unwrap();
    }
    let mut b = Some(b);
    let (mut completions, mut left) = (0, 0);
    while b.is_some() {
        pair.b.cq.poll(|_| {
            completions += 1;
            if let Some(b) = b.take() {
                left = b.destroy().unwrap().len();
            }
        });
        pair.a.cq.poll(drop);
    }
    assert_eq!(completions + left, 8, "each comes back once");
    assert_eq!(pair.b.pool.available(), COUNT);
    a.destroy().unwrap();
    pair.check_idle();
}

pub(crate) fn a_sink_that_panics_loses_nothing(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for _ in 0..4 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send_inline(b"x", 0).unwrap();
    }
    let cq = pair.a.cq.clone();
    assert!(cq.wait(Duration::from_secs(10)));
    let thrown = catch_unwind(AssertUnwindSafe(|| cq.poll(|_| std::panic::resume_unwind(Box::new(1)))));
    assert!(thrown.is_err());
    // The queue works on.
    pair.run_for(Duration::from_millis(1));
    pair.receives(At::B, 4);
    while pair.a.cq.poll(drop) > 0 {}
    a.destroy().unwrap();
    b.destroy().unwrap();
    pair.forget_seen();
    pair.check_idle();
}

pub(crate) fn queues_take_each_others_places(pair: &mut Pair) {
    for round in 0..10 {
        let (a, b) = pair.connect();
        for seed in 0..4 {
            b.post_recv(pair.b.lease(0, 0)).unwrap();
            a.send(pair.a.lease(2000, round * 4 + seed)).unwrap();
        }
        check(&pair.receives(At::B, 1).remove(0).ok().unwrap().buffer.unwrap(), 2000, round * 4);
        // Three sends and receives are somewhere on their way.
        drop((a, b));
        pair.forget_seen();
        pair.check_idle();
    }
}
