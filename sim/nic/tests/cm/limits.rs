//! What peers may take, and what happens beyond it.

use super::*;

fn quotas(quotas: Quotas) -> NicConfig {
    NicConfig { quotas, ..config() }
}

/// Opens with the quotas on the side that is asked.
fn asked_with(limits: Quotas) -> [Side; 2] {
    let [a, b] = tap::pair();
    [Side::open(a, config()), Side::open(b, quotas(limits))]
}

#[test]
fn a_peer_gets_so_many_connections_and_the_next_when_one_is_over() {
    let [a, b] = asked_with(Quotas { connections_per_peer: 2, ..Quotas::default() });
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let qps: Vec<_> = (0..3).map(|_| (a.qp(), b.qp())).collect();
    let mut connections: Vec<_> =
        qps[..2].iter().map(|(qa, qb)| connect(&a, &b, &listener, [qa, qb])).collect();
    let mut third = a.nic.connect(&qps[2].0, &ask(&b)).unwrap();
    assert_eq!(reason(third.wait(a.late()).unwrap().err().unwrap()), RejectReason::NO_RESOURCES);
    assert!(b.nic.cm_counters().no_resources > 0);
    drop(connections.pop());
    let late = b.late().unwrap();
    while b.nic.cm_usage().connections > 1 {
        assert!(b.nic.waiter().now() < late, "timewait ends");
        b.nic.progress();
    }
    connections.push(connect(&a, &b, &listener, [&qps[2].0, &qps[2].1]));
}

/// A request beyond a share is dropped, not refused: it comes again, and is served when there is room.
#[test]
fn unanswered_requests_have_their_share_and_the_listener_its_backlog() {
    for (limits, backlog) in [
        (Quotas { requests_per_peer: 1, ..Quotas::default() }, 8),
        (Quotas { requests: 1, ..Quotas::default() }, 8),
        (Quotas::default(), 1),
    ] {
        let [a, b] = asked_with(limits);
        let listener = b.nic.listen(SERVICE, backlog).unwrap();
        let qps: Vec<_> = (0..3).map(|_| (a.qp(), b.qp())).collect();
        let mut asking: Vec<_> = qps.iter().map(|(qa, _)| a.nic.connect(qa, &ask(&b)).unwrap()).collect();
        let mut passive = Vec::new();
        for (_, qb) in &qps {
            let mut request = listener.wait(b.late()).unwrap();
            assert!(listener.poll().is_none(), "one at a time");
            assert_eq!(b.nic.cm_usage().pending, 1);
            let connection = request.accept(qb, &AcceptParams::default()).unwrap();
            assert!(matches!(connection.wait(b.late()), Some(ConnectionEvent::Established { .. })));
            passive.push(connection);
        }
        assert!(b.nic.cm_counters().over_quota > 0);
        for connecting in &mut asking {
            assert!(connecting.wait(a.late()).unwrap().is_ok());
        }
    }
}

/// However many requests come at once, so many are looked at.
#[test]
fn requests_come_out_of_a_bucket() {
    let [a, b] = asked_with(Quotas { request_rate: 1, request_burst: 3, ..Quotas::default() });
    let listener = b.nic.listen(SERVICE, 64).unwrap();
    let qps: Vec<_> = (0..20).map(|_| a.qp()).collect();
    let asking: Vec<_> = qps.iter().map(|qp| a.nic.connect(qp, &ask(&b)).unwrap()).collect();
    let late = b.late().unwrap();
    while b.nic.cm_counters().received.total() < 20 {
        assert!(b.nic.waiter().now() < late);
        b.nic.progress();
    }
    let seconds = b.nic.waiter().now().as_nanos() / 1_000_000_000;
    let taken = std::iter::from_fn(|| listener.poll()).count() as u64;
    assert!(taken >= 3 && taken <= 3 + seconds + 1, "{taken} in {seconds} s");
    assert!(b.nic.cm_counters().throttled > 0);
    drop(asking);
}

#[test]
fn a_peer_gets_so_many_queue_pairs_however_they_are_connected() {
    let limits = Quotas { qp_per_peer: Some(2), ..Quotas::default() };
    let [a, b] = asked_with(limits);
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let rtr = RtrAttributes {
        peer: a.address(),
        dest_qpn: 17,
        rq_psn: 0,
        path_mtu: Mtu::B1024,
        max_dest_rd_atomic: 1,
        min_rnr_timer: 1,
    };
    let by_hand = b.qp();
    by_hand.to_rtr(rtr).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let _connections = connect(&a, &b, &listener, [&qa, &qb]);
    let third = b.qp();
    assert!(matches!(third.to_rtr(rtr), Err(NicError::Exhausted { limit: 2, .. })));
    assert_eq!(third.state(), QpState::Init);
    // A request can still be heard, and said no to.
    let other = a.qp();
    let mut connecting = a.nic.connect(&other, &ask(&b)).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    let refused = request.accept(&third, &AcceptParams::default());
    assert!(matches!(refused, Err(NicError::Exhausted { limit: 2, .. })));
    drop(request);
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::CONSUMER);
    assert_eq!(b.nic.quota_counters().qp_per_peer, 2);
    // Another address has its own share, and what is reset is given back.
    third.to_rtr(RtrAttributes { peer: [10, 9, 9, 9].into(), ..rtr }).unwrap();
    by_hand.to_reset();
    by_hand.to_init(ALL).unwrap();
    by_hand.to_rtr(rtr).unwrap();
}

/// Half of what a peer sends comes early, and a quarter of the buffers is all that it gets.
#[test]
fn early_packets_of_one_peer_have_their_share_of_the_buffers() {
    let [a, b] = tap::pair();
    let few = NicConfig { max_early: 64, ..config() };
    let [a, b] = [Side::open(a, config()), Side::open(b, few)];
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let _connections = connect(&a, &b, &listener, [&qa, &qb]);
    // Of small writes each has a packet. The first of many is lost once: the others are early.
    let mut count = 0;
    a.knobs.lose(move |datagram| {
        count += usize::from(!tap::is_management(datagram));
        count == 1 && !tap::is_management(datagram)
    });
    let op = SendOp::Write { addr: 0, rkey: b.mr.key() };
    let sges = [Sge { addr: 0, len: 60_000, key: a.mr.key() }];
    for wr_id in 0..4 {
        let wr = SendWr::new(wr_id, op, &sges);
        qa.post_send(&[wr]).unwrap();
    }
    let done: Vec<_> = (0..4).map(|_| a.completion()).collect();
    assert_eq!(done, [0, 1, 2, 3].map(|wr_id| (wr_id, WcStatus::Success)));
    let kept = b.nic.counters().rx_kept_early;
    assert!(kept > 0 && b.nic.quota_counters().held_quota > 0, "{kept} kept");
    drop((qa, qb));
}
