//! Several requests with one doorbell.

use anyverbs::{Batch, PostReason, Request, Rights};

use crate::pair::{At, Pair, check, options};

pub(crate) fn a_batch_arrives_in_order(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let mut batch = a.batch();
    assert_eq!(batch.submit(), Ok(()), "an empty batch is nothing");
    for round in 0..3 {
        for _ in 0..Batch::CAPACITY {
            b.post_recv(pair.b.lease(0, 0)).unwrap();
        }
        for i in 0..Batch::CAPACITY {
            let seed = round * 100 + i;
            batch.push(Request::send(pair.a.lease(i * 150, seed)).id(seed as u64)).unwrap();
        }
        assert!(batch.is_full());
        batch.submit().unwrap();
        assert!(batch.is_empty());
        for (i, done) in pair.requests(At::A, Batch::CAPACITY).into_iter().enumerate() {
            assert_eq!(done.ok().unwrap().id, (round * 100 + i) as u64);
        }
        for (i, received) in pair.receives(At::B, Batch::CAPACITY).into_iter().enumerate() {
            check(&received.ok().unwrap().buffer.unwrap(), i * 150, round * 100 + i);
        }
    }
    drop(batch);
    pair.finish((a, b));
}

pub(crate) fn a_full_batch_refuses(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let mut batch = a.batch();
    for i in 0..Batch::CAPACITY {
        batch.push(Request::send(pair.a.lease(0, 0)).id(i as u64)).unwrap();
    }
    let refused = batch.push(Request::send(pair.a.lease(9, 9)).id(99)).unwrap_err();
    assert_eq!(refused.reason, PostReason::BatchFull);
    check(&refused.request.into_lease(), 9, 9);
    assert!(batch.pop().is_some());
    assert_eq!(batch.len(), Batch::CAPACITY - 1);

    // What is wrong is refused at once.
    let window = pair.b.domain.window(8, Rights::WRITE).unwrap();
    let refused = batch.push(Request::write(pair.a.lease(9, 9), window.token().all())).unwrap_err();
    assert_eq!(refused.reason, PostReason::TooLong);
    drop((refused, window));

    // What was not submitted goes back to the pool.
    drop(batch);
    pair.finish((a, b));
}

pub(crate) fn a_batch_that_finds_no_slot_keeps_the_rest(pair: &mut Pair) {
    let (a, b) = pair.connect_with(&options().send_depth(4), &options());
    for _ in 0..6 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
    }
    let mut batch = a.batch();
    for i in 0..6 {
        batch.push(Request::send(pair.a.lease(10, i)).id(i as u64)).unwrap();
    }
    assert_eq!(batch.submit(), Err(PostReason::QueueFull));
    assert_eq!(batch.len(), 2);
    assert_eq!(pair.requests(At::A, 4).iter().map(|done| done.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    batch.submit().unwrap();
    assert_eq!(pair.requests(At::A, 2).iter().map(|done| done.id).collect::<Vec<_>>(), [4, 5]);
    for (i, received) in pair.receives(At::B, 6).into_iter().enumerate() {
        check(&received.ok().unwrap().buffer.unwrap(), 10, i);
    }
    drop(batch);
    pair.finish((a, b));
}
