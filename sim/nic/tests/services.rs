//! Every type of queue pair, shared receive queues, long lists and inline data, over a pipe.

mod pipe;
mod side;

use std::net::IpAddr;
use std::time::Duration;

use anyverbs_nic::*;
use side::*;

#[test]
fn unreliable_connections_send_and_write_and_do_nothing_else() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let make =
        |side: &Side, cq: &Cq| side.pd.create_qp(QpInit { qp_type: QpType::Uc, ..QpInit::new(cq) }).unwrap();
    let [qp_a, qp_b] = [make(&a, &cq_a), make(&b, &cq_b)];
    connect((&a, &qp_a), (&b, &qp_b));
    a.block.write(0, &[7; 3000]).unwrap();
    qp_b.post_recv(&[RecvWr { wr_id: 1, sges: &[b.sge(0, 4000)] }]).unwrap();
    qp_b.post_recv(&[RecvWr { wr_id: 2, sges: &[] }]).unwrap();
    let write = SendOp::WriteImm { addr: 8192, rkey: b.mr.key(), imm: 5 };
    let sges = [a.sge(0, 3000)];
    qp_a.post_send(&[SendWr::new(10, SendOp::Send, &sges), SendWr::new(11, write, &sges)]).unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 2)), [(10, WcStatus::Success), (11, WcStatus::Success)]);
    let got = b.completions(&cq_b, 2);
    assert_eq!(outcome(&got), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!((got[0].byte_len, got[1].imm, got[1].opcode), (3000, Some(5), WcOpcode::RecvRdmaWithImm));
    assert_eq!([b.bytes(0, 3000), b.bytes(8192, 3000)], [vec![7; 3000], vec![7; 3000]]);
    let read = SendOp::Read { addr: 0, rkey: b.mr.key() };
    let refused = qp_a.post_send(&[SendWr::new(12, read, &sges)]).unwrap_err();
    assert_eq!(refused.reason, PostReason::BadOperation);
}

#[test]
fn datagrams_go_to_whom_they_name_and_bring_their_sender() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let [qp_a, qp_b] = [datagram_qp(&a, &cq_a, 1), datagram_qp(&b, &cq_b, 2)];
    a.block.write(0, b"to whom it may concern").unwrap();
    let ah = a.pd.create_ah(AhAttributes::new(b.nic.attributes().gid)).unwrap();
    let to = |remote_qkey| Destination::Datagram { ah: &ah, remote_qpn: qp_b.qpn(), remote_qkey };
    qp_b.post_recv(&[RecvWr { wr_id: 1, sges: &[b.sge(0, 200)] }]).unwrap();
    let sges = [a.sge(0, 22)];
    // The first does not have the right key, and is not seen.
    let wrs = [3, 2].map(|key| SendWr { destination: to(key), ..SendWr::new(9, SendOp::SendImm(8), &sges) });
    qp_a.post_send(&wrs).unwrap();
    let got = b.completions(&cq_b, 1)[0];
    assert_eq!((got.wr_id, got.byte_len, got.imm), (1, 40 + 22, Some(8)));
    assert_eq!(got.source_qpn, Some(qp_a.qpn()));
    assert_eq!(b.bytes(40, 22), b"to whom it may concern");
    assert_eq!(b.nic.counters().qkey_viol_cntr, 1);

    // The answer goes by what stands in front of the message.
    let header: [u8; GRH_LEN] = b.bytes(0, GRH_LEN).try_into().unwrap();
    let back = b.pd.create_ah(AhAttributes::from_grh(&header).unwrap()).unwrap();
    assert_eq!(back.attributes().destination, a.nic.attributes().gid);
    qp_a.post_recv(&[RecvWr { wr_id: 2, sges: &[a.sge(1000, 41)] }]).unwrap();
    let destination =
        Destination::Datagram { ah: &back, remote_qpn: got.source_qpn.unwrap(), remote_qkey: 1 };
    let inline = Some(&b"!"[..]);
    qp_b.post_send(&[SendWr { destination, inline, ..SendWr::new(3, SendOp::Send, &[]) }]).unwrap();
    let answer = a.completions(&cq_a, 3).into_iter().find(|cqe| cqe.opcode == WcOpcode::Recv).unwrap();
    assert_eq!((answer.wr_id, answer.byte_len), (2, 41));
    assert_eq!(a.bytes(1040, 1), b"!");
}

#[test]
fn a_datagram_that_is_too_long_or_goes_nowhere_is_refused() {
    let [a, _b] = sides();
    let cq = a.nic.create_cq(64).unwrap();
    let qp = datagram_qp(&a, &cq, 1);
    let reason = |wr: SendWr<'_>| qp.post_send(&[wr]).map_err(|error| error.reason);
    assert_eq!(reason(SendWr::new(1, SendOp::Send, &[])), Err(PostReason::BadOperation), "no destination");
    let ah = a.pd.create_ah(AhAttributes::new("10.0.0.2".parse().unwrap())).unwrap();
    let destination = Destination::Datagram { ah: &ah, remote_qpn: 7, remote_qkey: 1 };
    let write = SendOp::Write { addr: 0, rkey: 1 };
    let wr = SendWr { destination, ..SendWr::new(1, write, &[]) };
    assert_eq!(reason(wr), Err(PostReason::BadOperation), "a datagram that writes");
    let other = a.nic.alloc_pd().unwrap();
    let foreign = other.create_ah(AhAttributes::new("10.0.0.2".parse().unwrap())).unwrap();
    let destination = Destination::Datagram { ah: &foreign, remote_qpn: 7, remote_qkey: 1 };
    let wr = SendWr { destination, ..SendWr::new(1, SendOp::Send, &[]) };
    assert_eq!(reason(wr), Err(PostReason::BadDestination));
    for (address, what) in [("::1", "address families"), ("0.0.0.0", "no host")] {
        let error = a.pd.create_ah(AhAttributes::new(address.parse().unwrap())).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    // Longer than a packet: it fails when it is carried out, and the send queue stops.
    let long = [a.sge(0, 4097)];
    let destination = Destination::Datagram { ah: &ah, remote_qpn: 7, remote_qkey: 1 };
    qp.post_send(&[SendWr { destination, ..SendWr::new(4, SendOp::Send, &long) }]).unwrap();
    assert_eq!(outcome(&a.completions(&cq, 1)), [(4, WcStatus::LocLenErr)]);
    assert_eq!(qp.state(), QpState::SendQueueError);
    qp.resume().unwrap();
    assert_eq!(qp.state(), QpState::ReadyToSend);
}

#[test]
fn a_group_is_heard_by_those_who_are_attached() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let sender = datagram_qp(&a, &cq_a, 1);
    let hearers = [(); 3].map(|()| datagram_qp(&b, &cq_b, 5));
    let group: IpAddr = "239.1.2.3".parse().unwrap();
    for (n, qp) in hearers.iter().enumerate() {
        let at = 4096 * n as u64;
        qp.post_recv(&[RecvWr { wr_id: n as u64, sges: &[b.sge(at, 100)] }]).unwrap();
    }
    for qp in &hearers[..2] {
        qp.attach_mcast(group).unwrap();
        qp.attach_mcast(group).unwrap();
    }
    let ah = a.pd.create_ah(AhAttributes::new(group)).unwrap();
    let destination = Destination::Datagram { ah: &ah, remote_qpn: MULTICAST_QPN, remote_qkey: 5 };
    let wr = SendWr { destination, inline: Some(b"all"), ..SendWr::new(1, SendOp::Send, &[]) };
    sender.post_send(&[wr]).unwrap();
    let mut heard: Vec<u64> = b.completions(&cq_b, 2).iter().map(|cqe| cqe.wr_id).collect();
    heard.sort_unstable();
    assert_eq!(heard, [0, 1]);
    assert_eq!([b.bytes(40, 3), b.bytes(4096 + 40, 3)], [*b"all"; 2]);

    // Nobody is left: what comes is nobody's.
    hearers[0].detach_mcast(group).unwrap();
    assert!(hearers[0].detach_mcast(group).is_err());
    let [_, second, third] = hearers;
    drop(second);
    sender.post_send(&[wr]).unwrap();
    a.completions(&cq_a, 2);
    assert!(!cq_b.wait(Some(b.nic.waiter().now() + Duration::from_millis(20))));
    for wrong in ["10.0.0.1", "ff02::1"] {
        assert!(third.attach_mcast(wrong.parse().unwrap()).is_err(), "{wrong}");
    }
}

#[test]
fn queue_pairs_share_a_receive_queue_and_its_limit_is_told_once() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let srq = b.pd.create_srq(SrqInit { max_wr: 8, max_sge: 3, limit: 3 }).unwrap();
    let pairs = [(); 2].map(|()| {
        let from = a.pd.create_qp(QpInit::new(&cq_a)).unwrap();
        let to = b.pd.create_qp(QpInit { srq: Some(&srq), ..QpInit::new(&cq_b) }).unwrap();
        connect((&a, &from), (&b, &to));
        (from, to)
    });
    let refused = pairs[0].1.post_recv(&[RecvWr { wr_id: 1, sges: &[] }]).unwrap_err();
    assert_eq!(refused.reason, PostReason::NoReceiveQueue);
    for n in 0..4 {
        let at = 1000 * n;
        srq.post_recv(&[RecvWr {
            wr_id: n,
            sges: &[b.sge(at, 2), b.sge(at + 100, 0), b.sge(at + 200, 3000)],
        }])
        .unwrap();
    }
    assert_eq!(srq.attributes(), SrqAttributes { max_wr: 8, max_sge: 3, limit: 3, waiting: 4 });
    a.block.write(0, &[9; 2500]).unwrap();
    for (n, (from, _)) in pairs.iter().enumerate() {
        from.post_send(&[SendWr::new(n as u64, SendOp::Send, &[a.sge(0, 10)])]).unwrap();
        let got = b.completions(&cq_b, 1)[0];
        assert_eq!((got.wr_id, got.qpn, got.byte_len), (n as u64, pairs[n].1.qpn(), 10));
        let at = 1000 * n;
        assert_eq!(
            [b.bytes(at, 3), b.bytes(at + 200, 9)].concat(),
            b"\x09\x09\0\x09\x09\x09\x09\x09\x09\x09\x09\0"
        );
    }
    assert_eq!(b.event(), AsyncEvent::SrqLimitReached { srqn: srq.number() });
    assert_eq!(b.nic.poll_async_event(), None, "told once");

    // One that fails flushes nothing of what others may still take.
    pairs[0].1.to_error().unwrap();
    assert_eq!(b.event(), AsyncEvent::LastWqeReached { qpn: pairs[0].1.qpn() });
    assert_eq!(srq.attributes().waiting, 2);
    pairs[1].0.post_send(&[SendWr::new(7, SendOp::Send, &[a.sge(0, 2500)])]).unwrap();
    assert_eq!(outcome(&b.completions(&cq_b, 1)), [(2, WcStatus::Success)]);
    drop(pairs);
    // The last share is with whoever has it: the queue lives without queue pairs.
    assert_eq!(srq.attributes().waiting, 1);
}

#[test]
fn a_receive_that_a_destroyed_queue_pair_had_taken_is_not_lost_to_the_others() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let srq = b.pd.create_srq(SrqInit { max_wr: 2, max_sge: 1, limit: 0 }).unwrap();
    // Many more rounds than there are places: each must be free again after its queue pair is gone.
    for round in 0..50 {
        let from = a.pd.create_qp(QpInit::new(&cq_a)).unwrap();
        let to = b.pd.create_qp(QpInit { srq: Some(&srq), ..QpInit::new(&cq_b) }).unwrap();
        connect((&a, &from), (&b, &to));
        srq.post_recv(&[RecvWr { wr_id: round, sges: &[b.sge(0, MEMORY as u32)] }]).unwrap();
        let sges = [a.sge(0, MEMORY as u32)];
        from.post_send(&[SendWr::new(round, SendOp::Send, &sges)]).unwrap();
        while srq.attributes().waiting == 1 {
            std::thread::yield_now();
        }
        drop(to);
    }
    assert_eq!(srq.attributes().waiting, 0);
}

#[test]
fn extended_connections_reach_every_shared_receive_queue_of_their_domain() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let domain = b.nic.open_xrcd().unwrap();
    let other = b.nic.open_xrcd().unwrap();
    let init = SrqInit { max_wr: 8, max_sge: 1, limit: 0 };
    let srqs = [&domain, &domain, &other].map(|domain| b.pd.create_xrc_srq(init, domain, &cq_b).unwrap());
    let target = b.nic.create_xrc_target(&domain).unwrap();
    let from = a.pd.create_qp(QpInit { qp_type: QpType::XrcSend, ..QpInit::new(&cq_a) }).unwrap();
    connect((&a, &from), (&b, &target));
    for (n, srq) in srqs.iter().enumerate() {
        srq.post_recv(&[RecvWr { wr_id: n as u64, sges: &[b.sge(1000 * n as u64, 500)] }]).unwrap();
    }
    a.block.write(0, b"xrc").unwrap();
    let sges = [a.sge(0, 3)];
    let to = |srq: &Srq, op| SendWr {
        destination: Destination::SharedReceive(srq.number()),
        ..SendWr::new(5, op, &sges)
    };
    let write = SendOp::Write { addr: 3000, rkey: b.mr.key() };
    from.post_send(&[to(&srqs[1], SendOp::Send), to(&srqs[0], SendOp::Send), to(&srqs[1], write)]).unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 3)), [(5, WcStatus::Success); 3]);
    let got = b.completions(&cq_b, 2);
    assert_eq!(
        got.iter().map(|cqe| (cqe.wr_id, cqe.qpn)).collect::<Vec<_>>(),
        [(1, target.qpn()), (0, target.qpn())]
    );
    assert_eq!([b.bytes(0, 3), b.bytes(1000, 3), b.bytes(3000, 3)], [*b"xrc"; 3]);
    let refused = from.post_send(&[SendWr::new(6, SendOp::Send, &sges)]).unwrap_err();
    assert_eq!(refused.reason, PostReason::BadOperation, "it has to name a shared receive queue");

    // A queue of another domain is as good as none.
    from.post_send(&[to(&srqs[2], SendOp::Send)]).unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 1)), [(5, WcStatus::RemInvReqErr)]);
    assert_eq!(srqs[2].attributes().waiting, 1);
}

#[test]
fn memory_of_another_domain_than_the_shared_receive_queues_is_out_of_reach() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let domain = b.nic.open_xrcd().unwrap();
    let foreign = b.nic.alloc_pd().unwrap();
    let init = SrqInit { max_wr: 8, max_sge: 1, limit: 0 };
    let srq = foreign.create_xrc_srq(init, &domain, &cq_b).unwrap();
    let target = b.nic.create_xrc_target(&domain).unwrap();
    let from = a.pd.create_qp(QpInit { qp_type: QpType::XrcSend, ..QpInit::new(&cq_a) }).unwrap();
    connect((&a, &from), (&b, &target));
    let destination = Destination::SharedReceive(srq.number());
    let write = SendOp::Write { addr: 0, rkey: b.mr.key() };
    from.post_send(&[SendWr { destination, ..SendWr::new(1, write, &[a.sge(0, 8)]) }]).unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 1)), [(1, WcStatus::RemAccessErr)]);
}

#[test]
fn long_lists_and_inline_data_up_to_the_limits() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let (max_sge, max_inline) = (a.nic.attributes().max_sge, a.nic.attributes().max_inline);
    let make = |side: &Side, cq: &Cq| {
        let init = QpInit { max_send_sge: max_sge, max_recv_sge: max_sge, max_inline, ..QpInit::new(cq) };
        side.pd.create_qp(init).unwrap()
    };
    let [qp_a, qp_b] = [make(&a, &cq_a), make(&b, &cq_b)];
    connect((&a, &qp_a), (&b, &qp_b));
    let message: Vec<u8> = (0..max_sge * 100).map(|i| (i * 7 % 251) as u8).collect();
    a.block.write(0, &message).unwrap();
    // Gathered from pieces that are not in order, scattered to others.
    let from: Vec<Sge> = (0..max_sge).map(|i| a.sge(u64::from(i) * 100, 100)).collect();
    let to: Vec<Sge> = (0..max_sge).rev().map(|i| b.sge(u64::from(i) * 200, 100)).collect();
    qp_b.post_recv(&[RecvWr { wr_id: 1, sges: &to }]).unwrap();
    qp_a.post_send(&[SendWr::new(1, SendOp::Send, &from)]).unwrap();
    assert_eq!(b.completions(&cq_b, 1)[0].byte_len, max_sge * 100);
    let received: Vec<u8> = (0..max_sge).rev().flat_map(|i| b.bytes(i as usize * 200, 100)).collect();
    assert_eq!(received, message);

    let inline: Vec<u8> = (0..max_inline).map(|i| (i % 255) as u8).collect();
    let write = SendOp::Write { addr: 32768, rkey: b.mr.key() };
    let wr = SendWr { inline: Some(&inline), ..SendWr::new(2, write, &[]) };
    qp_a.post_send(&[wr]).unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 2)), [(1, WcStatus::Success), (2, WcStatus::Success)]);
    assert_eq!(b.bytes(32768, inline.len()), inline);

    let more = [&inline[..], &[0]].concat();
    let refused = qp_a.post_send(&[SendWr { inline: Some(&more), ..wr }]).unwrap_err();
    assert_eq!(refused.reason, PostReason::BadInline);
    let many = vec![a.sge(0, 1); max_sge as usize + 1];
    let refused = qp_a.post_send(&[SendWr::new(3, SendOp::Send, &many)]).unwrap_err();
    assert_eq!(refused.reason, PostReason::TooManySges);
    let init = QpInit { max_send_sge: max_sge + 1, ..QpInit::new(&cq_a) };
    assert!(matches!(a.pd.create_qp(init), Err(NicError::OutOfRange { attribute: "max_send_sge", .. })));
}

#[test]
fn unsignalled_sends_complete_only_when_they_fail() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let make =
        |side: &Side, cq: &Cq| side.pd.create_qp(QpInit { max_send_wr: 4, ..QpInit::new(cq) }).unwrap();
    let [qp_a, qp_b] = [make(&a, &cq_a), make(&b, &cq_b)];
    connect((&a, &qp_a), (&b, &qp_b));
    let sges = [a.sge(0, 8)];
    let write = |rkey, wr_id, signaled| SendWr {
        signaled,
        ..SendWr::new(wr_id, SendOp::Write { addr: 0, rkey }, &sges)
    };
    // Many more than the queue holds: a signalled one now and then tells that those before it are done.
    for round in 0..20 {
        let wrs = [0, 1, 2].map(|n| write(b.mr.key(), round * 10 + n, n == 2));
        qp_a.post_send(&wrs).unwrap();
        assert_eq!(outcome(&a.completions(&cq_a, 1)), [(round * 10 + 2, WcStatus::Success)]);
    }
    qp_a.post_send(&[write(b.mr.key() ^ 1, 900, false), write(b.mr.key(), 901, false)]).unwrap();
    let expected = [(900, WcStatus::RemAccessErr), (901, WcStatus::WrFlushErr)];
    assert_eq!(outcome(&a.completions(&cq_a, 2)), expected);
}

#[test]
fn a_send_queue_drains_and_goes_on() {
    let [a, b] = sides();
    let [cq_a, cq_b] = [&a, &b].map(|side| side.nic.create_cq(64).unwrap());
    let make = |side: &Side, cq: &Cq| side.pd.create_qp(QpInit::new(cq)).unwrap();
    let [qp_a, qp_b] = [make(&a, &cq_a), make(&b, &cq_b)];
    connect((&a, &qp_a), (&b, &qp_b));
    let sges = [a.sge(0, 8)];
    let write = |wr_id| SendWr::new(wr_id, SendOp::Write { addr: 0, rkey: b.mr.key() }, &sges);
    qp_a.post_send(&[write(1)]).unwrap();
    a.completions(&cq_a, 1);
    qp_a.to_sqd().unwrap();
    assert_eq!(a.event(), AsyncEvent::SendQueueDrained { qpn: qp_a.qpn() });
    assert_eq!(qp_a.attributes().state, QpState::SendQueueDrain);
    qp_a.post_send(&[write(2)]).unwrap();
    assert!(!cq_a.wait(Some(a.nic.waiter().now() + Duration::from_millis(20))), "nothing begins");
    qp_a.resume().unwrap();
    assert_eq!(outcome(&a.completions(&cq_a, 1)), [(2, WcStatus::Success)]);
    assert!(matches!(qp_a.resume(), Err(NicError::State { .. })));
}

#[test]
fn what_was_set_can_be_asked() {
    let [a, b] = sides();
    let cq = a.nic.create_cq(8).unwrap();
    let init = QpInit {
        max_send_wr: 5,
        max_recv_wr: 6,
        max_send_sge: 2,
        max_recv_sge: 3,
        max_inline: 40,
        ..QpInit::new(&cq)
    };
    let qp = a.pd.create_qp(init).unwrap();
    qp.to_init(Access::REMOTE_READ).unwrap();
    let rtr = RtrAttributes {
        peer: b.nic.attributes().gid,
        dest_qpn: 99,
        rq_psn: 7,
        path_mtu: Mtu::B512,
        max_dest_rd_atomic: 2,
        min_rnr_timer: 3,
    };
    qp.to_rtr(rtr).unwrap();
    let rts = RtsAttributes { sq_psn: 1, max_rd_atomic: 2, retry_cnt: 3, rnr_retry: 4, timeout: 5 };
    qp.to_rts(rts).unwrap();
    let expected = QpAttributes {
        qp_type: QpType::Rc,
        state: QpState::ReadyToSend,
        access: Access::REMOTE_READ,
        qkey: 0,
        rtr: Some(rtr),
        rts: Some(rts),
        max_send_wr: 5,
        max_recv_wr: 6,
        max_send_sge: 2,
        max_recv_sge: 3,
        max_inline: 40,
    };
    assert_eq!(qp.attributes(), expected);
    qp.set_access(Access::REMOTE_WRITE).unwrap();
    assert_eq!(qp.attributes().access, Access::REMOTE_WRITE);
    qp.to_reset();
    let reset = qp.attributes();
    assert_eq!((reset.state, reset.rtr, reset.rts), (QpState::Reset, None, None));
    let port = a.nic.port();
    assert!(port.active && port.gid_tbl_len == 1);
    assert!(matches!(qp.set_qkey(1), Err(NicError::Invalid { .. })));
}
