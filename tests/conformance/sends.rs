//! Messages.

use std::time::Duration;

use anyverbs::{Operation, Receive, Request, Status};

use crate::pair::{At, Pair, check, options};

pub(crate) fn every_size_arrives(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let mtu = a_mtu(pair);
    for (seed, len) in
        [0, 1, 7, 64, mtu - 1, mtu, mtu + 1, 3 * mtu, 5 * mtu + 3, 70_000].into_iter().enumerate()
    {
        b.post_recv(pair.b.lease(0, 99)).unwrap();
        a.send(pair.a.lease(len, seed)).unwrap();
        let sent = pair.requests(At::A, 1).remove(0).ok().unwrap();
        assert_eq!((sent.operation, sent.len, sent.imm), (Operation::Send, len, None));
        check(&sent.buffer.unwrap(), len, seed);
        let received = pair.receives(At::B, 1).remove(0).ok().unwrap();
        assert_eq!((received.operation, received.len, received.imm), (Operation::Recv, len, None));
        check(&received.buffer.unwrap(), len, seed);
    }
    pair.finish((a, b));
}

fn a_mtu(pair: &Pair) -> usize {
    pair.a.device.attributes().path_mtu as usize
}

pub(crate) fn immediate_data_arrives(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for imm in [0, 1, 0xdead_beef, u32::MAX] {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send_imm(pair.a.lease(10, 3), imm).unwrap();
        let received = pair.receives(At::B, 1).remove(0).ok().unwrap();
        assert_eq!(received.imm, Some(imm));
        check(&received.buffer.unwrap(), 10, 3);
        pair.requests(At::A, 1).remove(0).ok().unwrap();
    }
    pair.finish((a, b));
}

pub(crate) fn messages_stay_in_order(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let total = 300;
    let (mut sent, mut posted, mut done) = (0, 0, 0);
    for _ in 0..32 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        posted += 1;
    }
    while done < total {
        while sent < total && a.send_room() > 0 && sent < done + 32 {
            a.send(pair.a.lease(sent * 7 % 300, sent)).unwrap();
            sent += 1;
        }
        let received = pair.receives(At::B, 1).remove(0).ok().unwrap();
        check(&received.buffer.unwrap(), done * 7 % 300, done);
        done += 1;
        if posted < total {
            b.post_recv(pair.b.lease(0, 0)).unwrap();
            posted += 1;
        }
        // Frees the slots of what is known to have arrived.
        pair.requests(At::A, 1).remove(0).ok().unwrap();
    }
    pair.finish((a, b));
}

pub(crate) fn ids_come_back(pair: &mut Pair) {
    let (a, b) = pair.connect_with(&options().id(77), &options().id(u64::MAX));
    b.post_recv(Receive::new(pair.b.lease(0, 0)).id(5)).unwrap();
    a.post(Request::send(pair.a.lease(1, 1)).id(u64::MAX - 1).fence().solicited()).unwrap();
    let sent = pair.requests(At::A, 1).remove(0);
    assert_eq!((sent.qp, sent.qp_id, sent.id), (a.number(), 77, u64::MAX - 1));
    let received = pair.receives(At::B, 1).remove(0);
    assert_eq!((received.qp, received.qp_id, received.id), (b.number(), u64::MAX, 5));
    drop((sent, received));
    pair.finish((a, b));
}

pub(crate) fn inline_needs_no_lease(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let max = pair.a.device.attributes().max_inline as usize;
    for len in [0, 1, max] {
        let mut bytes = vec![0; len];
        crate::pair::fill(&mut bytes, 8);
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send_inline(&bytes, 12).unwrap();
        // They were copied.
        bytes.fill(0xee);
        let sent = pair.requests(At::A, 1).remove(0).ok().unwrap();
        assert!(sent.buffer.is_none());
        assert_eq!((sent.id, sent.len), (12, len));
        check(&pair.receives(At::B, 1).remove(0).buffer.unwrap(), len, 8);
    }
    pair.finish((a, b));
}

pub(crate) fn a_receive_that_is_late_is_waited_for(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for seed in 0..3 {
        a.send(pair.a.lease(5000, seed)).unwrap();
    }
    pair.run_for(Duration::from_millis(3));
    for seed in 0..3 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        check(&pair.receives(At::B, 1).remove(0).ok().unwrap().buffer.unwrap(), 5000, seed);
    }
    assert!(pair.requests(At::A, 3).into_iter().all(|sent| sent.status == Status::Success));
    pair.finish((a, b));
}

pub(crate) fn both_directions_at_once(pair: &mut Pair) {
    let (a, b) = pair.connect();
    for seed in 0..40 {
        a.post_recv(pair.a.lease(0, 0)).unwrap();
        b.post_recv(pair.b.lease(0, 0)).unwrap();
        a.send(pair.a.lease(3000 + seed, seed)).unwrap();
        b.send(pair.b.lease(9000 - seed, seed + 100)).unwrap();
    }
    for (seed, received) in pair.receives(At::A, 40).into_iter().enumerate() {
        check(&received.ok().unwrap().buffer.unwrap(), 9000 - seed, seed + 100);
    }
    for (seed, received) in pair.receives(At::B, 40).into_iter().enumerate() {
        check(&received.ok().unwrap().buffer.unwrap(), 3000 + seed, seed);
    }
    for at in [At::A, At::B] {
        assert!(pair.requests(at, 40).into_iter().all(|sent| sent.status == Status::Success));
    }
    pair.finish((a, b));
}

pub(crate) fn waiting_wakes_up(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let before = pair.b.device.now();
    assert!(!pair.b.cq.wait(Duration::from_millis(5)), "nothing comes");
    let waited = pair.b.device.now() - before;
    assert!(waited >= Duration::from_millis(5), "{waited:?}");
    assert!(!pair.b.cq.wait(Duration::ZERO), "nothing is there");

    b.post_recv(pair.b.lease(0, 0)).unwrap();
    a.send(pair.a.lease(20, 1)).unwrap();
    assert!(pair.b.cq.wait(Duration::MAX), "a message comes");
    assert!(pair.a.cq.wait(Duration::from_secs(10)), "its acknowledgement comes");
    check(&pair.receives(At::B, 1).remove(0).ok().unwrap().buffer.unwrap(), 20, 1);
    pair.requests(At::A, 1);
    pair.finish((a, b));
}
