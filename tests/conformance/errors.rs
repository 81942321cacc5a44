//! What goes wrong is said, once for each request.

use std::time::Duration;

use anyverbs::{Completion, Lease, Qp, Rc, Request, Rights, Status};

use crate::pair::{At, COUNT, Pair, check, options};

/// The first request fails with `expected`, the others are flushed, and each lease is back.
fn check_failed_and_flushed(pair: &Pair, done: Vec<Completion>, expected: Status) {
    let mut leases = Vec::new();
    for (i, completion) in done.into_iter().enumerate() {
        assert_eq!(completion.id, i as u64, "each request completes once, in order");
        assert_eq!(completion.len, 0);
        match i {
            0 => pair.check_refused(completion.status, expected),
            _ => assert_eq!(completion.status, Status::WrFlushErr),
        }
        leases.push(completion.buffer.expect("it brings its buffer back"));
    }
    assert_distinct(&leases);
}

fn assert_distinct(leases: &[Lease]) {
    let mut indices: Vec<_> = leases.iter().map(Lease::index).collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), leases.len(), "no buffer comes back twice");
}

/// Ends a case whose queue pairs failed: what the peer flushes is not looked at.
fn finish(pair: &mut Pair, qps: (Qp<Rc>, Qp<Rc>)) {
    let left = qps.1.destroy().unwrap();
    assert_distinct(&left);
    drop(left);
    qps.0.destroy().unwrap();
    pair.check_idle();
}

pub(crate) fn writing_without_the_right_fails_and_flushes(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64, Rights::READ).unwrap();
    a.post(Request::write(pair.a.lease(64, 1), window.token().all()).id(0)).unwrap();
    for id in 1..10 {
        a.post(Request::send(pair.a.lease(100, 1)).id(id)).unwrap();
    }
    let done = pair.requests(At::A, 10);
    check_failed_and_flushed(pair, done, Status::RemAccessErr);
    let mut found = [9; 64];
    window.read(0, &mut found).unwrap();
    assert_eq!(found, [0; 64], "nothing was written");
    drop(window);
    finish(pair, (a, b));
}

pub(crate) fn reading_without_the_right_fails(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64, Rights::WRITE | Rights::ATOMIC).unwrap();
    a.post(Request::read(pair.a.lease(64, 4), window.token().all()).id(0)).unwrap();
    a.post(Request::fetch_add(pair.a.lease(0, 0), window.token().all(), 1).id(1)).unwrap();
    let done = pair.requests(At::A, 2);
    assert_eq!(done[0].buffer.as_ref().unwrap().len(), 0, "none of its bytes are valid");
    assert_eq!(done[1].original(), None);
    check_failed_and_flushed(pair, done, Status::RemAccessErr);
    assert_eq!(window.load_u64(0), Ok(0));
    drop(window);
    finish(pair, (a, b));
}

pub(crate) fn a_revoked_window_is_out_of_reach(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(4096, Rights::all()).unwrap();
    let token = window.token();
    a.write(pair.a.lease(4096, 1), token.all()).unwrap();
    pair.requests(At::A, 1).remove(0).ok().unwrap();
    let memory = window.revoke().unwrap();
    check(&memory, 4096, 1);
    a.post(Request::write(pair.a.lease(4096, 2), token.all()).id(0)).unwrap();
    let done = pair.requests(At::A, 1);
    check_failed_and_flushed(pair, done, Status::RemAccessErr);
    check(&memory, 4096, 1);
    finish(pair, (a, b));
}

pub(crate) fn an_atomic_that_is_not_aligned_fails(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64, Rights::ATOMIC).unwrap();
    let askew = window.token().at(4, 8).unwrap();
    a.post(Request::fetch_add(pair.a.lease(0, 0), askew, 1).id(0)).unwrap();
    let done = pair.requests(At::A, 1);
    check_failed_and_flushed(pair, done, Status::RemInvReqErr);
    drop(window);
    finish(pair, (a, b));
}

pub(crate) fn a_receive_that_is_too_small_fails(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let small = pair.b.domain.pool(3, 100).unwrap();
    for _ in 0..3 {
        b.post_recv(small.lease().unwrap()).unwrap();
    }
    a.post(Request::send(pair.a.lease(101, 1)).id(0)).unwrap();
    a.post(Request::send(pair.a.lease(1, 1)).id(1)).unwrap();
    let done = pair.requests(At::A, 2);
    check_failed_and_flushed(pair, done, Status::RemInvReqErr);
    let received = pair.receives(At::B, 3);
    let statuses: Vec<_> = received.iter().map(|completion| completion.status).collect();
    assert_eq!(statuses, [Status::LocLenErr, Status::WrFlushErr, Status::WrFlushErr]);
    assert!(received.iter().all(|completion| completion.buffer.as_ref().unwrap().is_empty()));
    drop(received);
    assert_eq!(small.available(), 3);
    finish(pair, (a, b));
}

pub(crate) fn no_receive_for_too_long_fails(pair: &mut Pair) {
    let (a, b) = pair.connect_with(&options().rnr_retry(2), &options());
    for id in 0..3 {
        a.post(Request::send(pair.a.lease(10, 1)).id(id)).unwrap();
    }
    let done = pair.requests(At::A, 3);
    check_failed_and_flushed(pair, done, Status::RnrRetryExcErr);
    finish(pair, (a, b));
}

pub(crate) fn a_peer_that_is_gone_fails(pair: &mut Pair) {
    let quick = options().ack_timeout(Duration::from_millis(4)).retry_count(1);
    let (a, b) = pair.connect_with(&quick, &options());
    b.destroy().unwrap();
    for id in 0..5 {
        a.post(Request::send(pair.a.lease(10_000, 1)).id(id)).unwrap();
    }
    let done = pair.requests(At::A, 5);
    check_failed_and_flushed(pair, done, Status::RetryExcErr);
    a.destroy().unwrap();
    pair.check_idle();
}

pub(crate) fn a_failed_queue_pair_flushes_what_comes_later(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(64, Rights::READ).unwrap();
    a.post_recv(pair.a.lease(0, 0)).unwrap();
    a.write(pair.a.lease(64, 1), window.token().all()).unwrap();
    assert!(!pair.requests(At::A, 1).remove(0).status.is_success());
    a.send(pair.a.lease(1, 1)).unwrap();
    a.post_recv(pair.a.lease(0, 0)).unwrap();
    assert_eq!(pair.requests(At::A, 1).remove(0).status, Status::WrFlushErr);
    let flushed = pair.receives(At::A, 2);
    assert!(flushed.iter().all(|completion| completion.status == Status::WrFlushErr));
    drop(flushed);
    assert_eq!(pair.a.pool.available(), COUNT);
    drop(window);
    finish(pair, (a, b));
}
