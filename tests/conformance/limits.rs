//! What is too much, too long or of somebody else is refused, with what was refused handed back.

use std::net::IpAddr;

use anyverbs::{Endpoint, Error, PostReason, QpOptions, Rc, Request, Rights};

use crate::pair::{At, Pair, SIZE, check, options};

pub(crate) fn a_full_queue_hands_the_lease_back(pair: &mut Pair) {
    let (a, b) = pair.connect_with(&options().send_depth(3).recv_depth(2), &options());
    for _ in 0..3 {
        a.send(pair.a.lease(10, 1)).unwrap();
    }
    assert_eq!(a.send_room(), 0);
    let refused = a.send(pair.a.lease(10, 5)).unwrap_err();
    assert_eq!(refused.reason, PostReason::QueueFull);
    check(&refused.request, 10, 5);
    let refused = a.post(Request::send(refused.request).id(8)).unwrap_err();
    assert_eq!(refused.reason, PostReason::QueueFull);
    check(&refused.request.into_lease(), 10, 5);
    assert_eq!(a.send_inline(&[], 0), Err(PostReason::QueueFull));

    for _ in 0..2 {
        a.post_recv(pair.a.lease(0, 0)).unwrap();
    }
    let refused = a.post_recv(pair.a.lease(7, 3)).unwrap_err();
    assert_eq!((refused.reason, a.recv_room()), (PostReason::QueueFull, 0));
    check(&refused.request, 7, 3);
    drop(refused);

    // A slot is free again when its completion was polled.
    for _ in 0..4 {
        b.post_recv(pair.b.lease(0, 0)).unwrap();
    }
    pair.requests(At::A, 3);
    a.send(pair.a.lease(10, 6)).unwrap();
    pair.requests(At::A, 1);
    check(&pair.receives(At::B, 4).remove(3).buffer.unwrap(), 10, 6);
    pair.finish((a, b));
}

pub(crate) fn the_completion_queue_must_have_room(pair: &mut Pair) {
    let cq = pair.a.device.completion_queue(10).unwrap();
    let make = |send, recv| {
        pair.a.domain.queue_pair::<Rc>(&QpOptions::new().send_depth(send).recv_depth(recv), &cq, &cq)
    };
    let _first = make(3, 4).unwrap();
    assert_eq!(cq.reserved(), 7);
    let error = make(2, 2).unwrap_err();
    assert!(matches!(error, Error::CompletionQueueTooSmall { depth: 10, reserved: 9, asked: 2 }), "{error}");
    let text = error.to_string();
    assert!(text.contains("10 places") && text.contains("at least 11 deep"), "{text}");
    assert_eq!(cq.reserved(), 7, "a failure reserves nothing");
    let _second = make(1, 2).unwrap();
    assert!(make(1, 0).is_err());
    drop(make(0, 0).unwrap());
}

pub(crate) fn credit_comes_back(pair: &mut Pair) {
    let cq = pair.a.device.completion_queue(8).unwrap();
    for _ in 0..100 {
        let options = QpOptions::new().send_depth(4).recv_depth(4);
        let qp = pair.a.domain.queue_pair::<Rc>(&options, &cq, &cq).unwrap();
        assert_eq!(cq.reserved(), 8);
        drop(qp);
        assert_eq!(cq.reserved(), 0);
    }
}

pub(crate) fn lengths_are_checked_when_posting(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let window = pair.b.domain.window(100_000, Rights::all()).unwrap();
    let token = window.token();
    let lease = || pair.a.lease(100, 1);
    let reason = |request| {
        let refused = a.post(request).unwrap_err();
        check(&refused.request.into_lease(), 100, 1);
        refused.reason
    };
    assert_eq!(reason(Request::write(lease(), token.at(0, 99).unwrap())), PostReason::TooLong);
    assert_eq!(reason(Request::read(lease(), token.at(0, SIZE as u64 + 1).unwrap())), PostReason::TooLong);
    assert_eq!(reason(Request::fetch_add(lease(), token.at(0, 7).unwrap(), 1)), PostReason::TooShort);
    let four = pair.a.domain.pool(1, 4).unwrap();
    let refused = a.compare_swap(four.lease().unwrap(), token.all(), 0, 1).unwrap_err();
    assert_eq!(refused.reason, PostReason::TooShort);
    let inline = vec![0; pair.a.device.attributes().max_inline as usize + 1];
    assert_eq!(a.send_inline(&inline, 0), Err(PostReason::TooLong));
    assert_eq!(a.write_inline(&[1, 2], token.at(0, 1).unwrap(), 0), Err(PostReason::TooLong));
    assert_eq!(a.send_room(), 64, "nothing took a slot");
    drop((window, refused));
    pair.finish((a, b));
}

pub(crate) fn leases_stay_in_their_domain(pair: &mut Pair) {
    let (a, b) = pair.connect();
    let other_domain = pair.a.device.domain().unwrap().pool(1, 64).unwrap();
    for lease in [other_domain.lease().unwrap(), pair.b.lease(10, 1)] {
        let refused = a.send(lease).unwrap_err();
        assert_eq!(refused.reason, PostReason::WrongDomain);
        let refused = a.post_recv(refused.request).unwrap_err();
        assert_eq!(refused.reason, PostReason::WrongDomain);
        let refused = a.batch().push(Request::send(refused.request)).unwrap_err();
        assert_eq!(refused.reason, PostReason::WrongDomain);
    }
    pair.finish((a, b));
}

pub(crate) fn completion_queues_stay_on_their_device(pair: &mut Pair) {
    let error = pair.a.domain.queue_pair::<Rc>(&options(), &pair.a.cq, &pair.b.cq).unwrap_err();
    assert!(matches!(error, Error::ForeignDevice { what: "receive completion queue" }), "{error}");
    assert_eq!(pair.a.cq.reserved() + pair.b.cq.reserved(), 0);
}

pub(crate) fn options_are_checked(pair: &mut Pair) {
    let attributes = pair.a.device.attributes();
    let new = QpOptions::new;
    for (options, what) in [
        (new().send_depth(attributes.max_qp_wr + 1), "send queue depth"),
        (new().recv_depth(u32::MAX), "receive queue depth"),
        (new().retry_count(8), "retry count"),
        (new().rnr_retry(8), "RNR retry count"),
        (new().path_mtu(255), "path MTU"),
        (new().path_mtu(1000), "path MTU"),
        (new().path_mtu(8192), "path MTU"),
        (new().max_rd_atomic(0), "READs under way"),
        (new().max_rd_atomic(255), "READs under way"),
    ] {
        let error = pair.a.domain.queue_pair::<Rc>(&options, &pair.a.cq, &pair.a.cq).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }) && error.to_string().starts_with(what), "{error}");
    }
    for depth in [0, attributes.max_cqe + 1] {
        assert!(matches!(pair.a.device.completion_queue(depth), Err(Error::Limit { .. })));
    }
    assert_eq!(pair.a.cq.reserved(), 0);

    // Small packets work, too.
    let (a, b) = pair.connect_with(&options().path_mtu(256), &options().path_mtu(512));
    b.post_recv(pair.b.lease(0, 0)).unwrap();
    a.send(pair.a.lease(5000, 3)).unwrap();
    check(&pair.receives(At::B, 1).remove(0).ok().unwrap().buffer.unwrap(), 5000, 3);
    pair.requests(At::A, 1);
    pair.finish((a, b));
}

pub(crate) fn families_do_not_mix(pair: &mut Pair) {
    let own: IpAddr = pair.a.device.address();
    assert!(own.is_ipv4());
    let qp = pair.a.domain.queue_pair::<Rc>(&options(), &pair.a.cq, &pair.a.cq).unwrap();
    qp.post_recv(pair.a.lease(0, 0)).unwrap();
    let text = qp.endpoint().to_string();
    let peer: Endpoint = text.replace(&own.to_string(), "2001:db8::1").parse().unwrap();
    let error = qp.connect(&peer).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains("IPv6"), "{error}");
    pair.check_idle();
}
