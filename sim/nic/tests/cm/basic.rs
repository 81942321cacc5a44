//! Connections that come to be, and those that do not.

use super::*;
use anyverbs_wire::mad::{Attribute, Message};

#[test]
fn what_one_asks_the_other_hears_and_both_talk_until_one_is_done() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let params = ConnectParams {
        private_data: b"hello",
        source_port: 4242,
        responder_resources: 3,
        initiator_depth: 2,
        retry_count: 6,
        ..ask(&b)
    };
    let mut connecting = a.nic.connect(&qa, &params).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    assert_eq!((request.peer(), request.service()), (a.address(), SERVICE));
    let header = request.ip_header().unwrap();
    assert_eq!((header.source, header.destination, header.source_port), (a.address(), b.address(), 4242));
    assert_eq!((request.private_data().len(), &request.private_data()[..6]), (56, &b"hello\0"[..]));
    let terms = request.terms();
    assert_eq!((terms.responder_resources, terms.initiator_depth, terms.retry_count), (2, 3, 6));
    assert_eq!((terms.qpn.value(), terms.path_mtu), (qa.qpn(), Mtu::B4096));
    assert!(!request.is_canceled());
    let accept = AcceptParams { private_data: b"come in", initiator_depth: Some(1), ..Default::default() };
    let passive = request.accept(&qb, &accept).unwrap();
    assert!(request.accept(&qb, &accept).is_err(), "it is answered");
    let active = connecting.wait(a.late()).unwrap().unwrap();
    assert!(connecting.poll().is_none());
    let response = active.response().unwrap();
    assert_eq!(&response.private_data[..8], b"come in\0");
    assert_eq!((response.responder_resources, response.initiator_depth), (1, 2));
    assert!(matches!(passive.wait(b.late()), Some(ConnectionEvent::Established { private_data: Some(_) })));
    assert_eq!([qa.state(), qb.state()], [QpState::ReadyToSend; 2]);
    assert!(active.is_established() && passive.is_established());
    exchange(&a, &b, [&qa, &qb]);

    active.disconnect(b"bye").unwrap();
    assert_eq!(qa.state(), QpState::Error);
    match passive.wait(b.late()) {
        Some(ConnectionEvent::Disconnected { cause: Cause::Peer, private_data }) => {
            assert_eq!(&private_data[..4], b"bye\0");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(qb.state(), QpState::Error);
    let event = active.wait(a.late());
    assert!(matches!(event, Some(ConnectionEvent::Disconnected { cause: Cause::Local, .. })), "{event:?}");
    for (connection, side) in [(&active, &a), (&passive, &b)] {
        assert!(matches!(connection.wait(side.late()), Some(ConnectionEvent::TimewaitExit)));
        assert!(connection.wait(None).is_none(), "nothing comes any more, so nobody waits for it");
        assert!(connection.has_ended() && connection.disconnect(b"").is_err());
    }
    // The queue pairs, and even the old objects, do no harm to the next connection.
    for qp in [&qa, &qb] {
        qp.to_reset();
        qp.to_init(ALL).unwrap();
    }
    let again = connect(&a, &b, &listener, [&qa, &qb]);
    drop((active, passive));
    exchange(&a, &b, [&qa, &qb]);
    drop((again, listener));
    a.settles();
    b.settles();
}

#[test]
fn a_service_of_no_port_space_has_no_header() {
    let [a, b] = pair();
    let service = ServiceId(0x1234_5678_9abc_def0);
    let listener = b.nic.listen(service, 8).unwrap();
    let qp = a.qp();
    // What looks like a header is the program's own.
    let mut data = [0; 92];
    data[1] = 4 << 4;
    data[91] = 9;
    let params = ConnectParams { service, private_data: &data, ..ask(&b) };
    let mut connecting = a.nic.connect(&qp, &params).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    assert_eq!((request.ip_header(), request.private_data()), (None, &data[..]));
    request.reject(RejectReason::CONSUMER, b"").unwrap();
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::CONSUMER);
    let long = [0; 93];
    let refused = a.nic.connect(&qp, &ConnectParams { private_data: &long, ..params });
    assert!(matches!(refused, Err(NicError::Cm { source: Error::PrivateDataTooLong { max: 92 }, .. })));
    let refused = a.nic.connect(&qp, &ask(&b).private_data(&long[..57]));
    assert!(matches!(refused, Err(NicError::Cm { source: Error::PrivateDataTooLong { max: 56 }, .. })));
}

#[test]
fn a_no_has_its_reason_and_leaves_the_queue_pair_for_the_next_try() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let qp = a.qp();
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    request.reject_with_info(RejectReason(777), b"info", b"not today").unwrap();
    assert!(request.reject(RejectReason::CONSUMER, b"").is_err(), "it is answered");
    match connecting.wait(a.late()).unwrap() {
        Err(ConnectError::Rejected(rejected)) => {
            assert_eq!((rejected.reason, rejected.info_len), (RejectReason(777), 4));
            assert_eq!(
                (&rejected.info[..4], &rejected.private_data[..10]),
                (&b"info"[..], &b"not today\0"[..])
            );
            assert_eq!(rejected.subject, Subject::Req);
        }
        other => panic!("{:?}", other.err()),
    }
    // A request that nobody answers is answered when it is dropped.
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    drop(listener.wait(b.late()).unwrap());
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::CONSUMER);
    // So is one that nobody took.
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    let late = b.late().unwrap();
    while b.nic.cm_usage().pending == 0 {
        assert!(b.nic.waiter().now() < late);
        b.nic.progress();
    }
    drop(listener);
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::CONSUMER);
    // And nobody listens any more.
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    let error = connecting.wait(a.late()).unwrap().err().unwrap();
    assert_eq!(error.to_string(), "the peer rejected the connection: invalid service id");
    assert_eq!(qp.state(), QpState::Init);
    a.settles();
    b.settles();
}

#[test]
fn a_listener_that_comes_soon_after_the_request_gets_it() {
    let slow = CmConfig { hold_unclaimed: Duration::from_secs(20), ..config().cm };
    let [a, b] = pair_with(NicConfig { cm: slow, ..config() });
    let (qa, qb) = (a.qp(), b.qp());
    let mut connecting = a.nic.connect(&qa, &ask(&b)).unwrap();
    let late = b.late().unwrap();
    while b.nic.cm_usage().held == 0 {
        assert!(b.nic.waiter().now() < late);
        b.nic.progress();
    }
    let listener = b.nic.listen(SERVICE, 1).unwrap();
    let mut request = listener.poll().unwrap();
    let _passive = request.accept(&qb, &AcceptParams::default()).unwrap();
    assert!(connecting.wait(a.late()).unwrap().is_ok());
}

#[test]
fn a_peer_that_does_not_answer_is_unreachable() {
    let brief = CmConfig { max_retries: 2, response_timeout: 10, packet_lifetime: 10, ..config().cm };
    let [a, b] = pair_with(NicConfig { cm: brief, ..config() });
    b.knobs.lose(|_| true);
    let _listener = b.nic.listen(SERVICE, 1).unwrap();
    let qp = a.qp();
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    let passing = a.nic.waiter().now() + Duration::from_millis(1);
    assert!(connecting.wait(Some(passing)).is_none());
    let error = connecting.wait(a.late()).unwrap().err().unwrap();
    assert!(matches!(error, ConnectError::Unreachable), "{error}");
    let asked = a.knobs.mads().iter().filter(|mad| matches!(mad.message, Message::Req(_))).count();
    assert_eq!(asked, 3, "once and two retries");
    a.settles();
}

#[test]
fn two_that_ask_each_other_get_two_connections() {
    let [a, b] = pair();
    let listeners = [&a, &b].map(|side| side.nic.listen(SERVICE, 8).unwrap());
    let own = [&a, &b].map(Side::qp);
    let given = [&a, &b].map(Side::qp);
    let mut asking = [a.nic.connect(&own[0], &ask(&b)).unwrap(), b.nic.connect(&own[1], &ask(&a)).unwrap()];
    let mut passive = Vec::new();
    for n in [0, 1] {
        let side = [&a, &b][n];
        let mut request = listeners[n].wait(side.late()).unwrap();
        passive.push(request.accept(&given[n], &AcceptParams::default()).unwrap());
    }
    let active = [0, 1].map(|n| asking[n].wait(a.late()).unwrap().unwrap());
    for connection in &passive {
        assert!(matches!(connection.wait(a.late()), Some(ConnectionEvent::Established { .. })));
    }
    exchange(&a, &b, [&own[0], &given[1]]);
    exchange(&a, &b, [&given[0], &own[1]]);
    drop((active, passive, listeners));
    a.settles();
    b.settles();
}

#[test]
fn two_hundred_connections_stand_and_end() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 256).unwrap();
    let qps: Vec<[Qp; 2]> = (0..200).map(|_| [a.qp(), b.qp()]).collect();
    let mut asking: Vec<Connecting> =
        qps.iter().map(|[qp, _]| a.nic.connect(qp, &ask(&b)).unwrap()).collect();
    let mut passive = Vec::new();
    for [_, qp] in &qps {
        let mut request = listener.wait(b.late()).unwrap();
        passive.push(request.accept(qp, &AcceptParams::default()).unwrap());
    }
    let active: Vec<Connection> =
        asking.iter_mut().map(|connecting| connecting.wait(a.late()).unwrap().unwrap()).collect();
    for connection in &passive {
        assert!(matches!(connection.wait(b.late()), Some(ConnectionEvent::Established { .. })));
    }
    // Whoever was accepted with which: the peer's number is in the answer.
    for ([qp, _], connection) in qps.iter().zip(&active).step_by(40) {
        let peer = connection.response().unwrap().qpn.value();
        let peer = &qps.iter().find(|[_, other]| other.qpn() == peer).unwrap()[1];
        exchange(&a, &b, [qp, peer]);
    }
    assert_eq!([&a, &b].map(|side| side.nic.cm_usage().connections), [200; 2]);
    drop(active);
    for connection in &passive {
        let event = connection.wait(b.late());
        assert!(matches!(event, Some(ConnectionEvent::Disconnected { cause: Cause::Peer, .. })), "{event:?}");
    }
    drop((passive, listener));
    a.settles();
    b.settles();
}

/// A program that moves its queue pairs itself, as librdmacm does.
#[test]
fn queue_pairs_known_by_number_only_are_left_to_the_program() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let mut connecting = a.nic.connect_by_number(qa.qpn(), 17, &ask(&b)).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    let params = AcceptParams::default();
    qb.to_rtr(request.rtr_attributes(&params)).unwrap();
    qb.to_rts(request.rts_attributes(&params, 18)).unwrap();
    let passive = request.accept_by_number(qb.qpn(), 18, &params).unwrap();
    let active = connecting.wait(a.late()).unwrap().unwrap();
    assert!(!active.is_established() && qa.state() == QpState::Init);
    qa.to_rtr(active.rtr_attributes().unwrap()).unwrap();
    qa.to_rts(active.rts_attributes().unwrap()).unwrap();
    active.establish(b"ready").unwrap();
    match passive.wait(b.late()) {
        Some(ConnectionEvent::Established { private_data: Some(data) }) => assert_eq!(&data[..6], b"ready\0"),
        other => panic!("{other:?}"),
    }
    exchange(&a, &b, [&qa, &qb]);
    active.disconnect(b"").unwrap();
    assert!(matches!(passive.wait(b.late()), Some(ConnectionEvent::Disconnected { .. })));
    assert_eq!([qa.state(), qb.state()], [QpState::ReadyToSend; 2], "to the end");
    // The other way to answer an answer.
    let (qc, qd) = (a.qp(), b.qp());
    let mut connecting = a.nic.connect_by_number(qc.qpn(), 17, &ask(&b)).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    let refused = request.accept(&qd, &params).unwrap();
    let answered = connecting.wait(a.late()).unwrap().unwrap();
    answered.reject(RejectReason::CONSUMER, b"no, thanks").unwrap();
    match refused.wait(b.late()) {
        Some(ConnectionEvent::Failed(ConnectError::Rejected(rejected))) => {
            assert_eq!((rejected.reason, rejected.subject), (RejectReason::CONSUMER, Subject::Rep));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(qd.state(), QpState::Error);
}

/// The first packet of the peer says what its RTU would have.
#[test]
fn data_that_overtakes_the_last_message_makes_the_connection_stand() {
    let [a, b] = pair();
    a.knobs.lose(|datagram| tap::is_mad(datagram, &[Attribute::Rtu]));
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let mut connecting = a.nic.connect(&qa, &ask(&b)).unwrap();
    b.receive(&qb, 1);
    let mut request = listener.wait(b.late()).unwrap();
    let passive = request.accept(&qb, &AcceptParams::default()).unwrap();
    assert_eq!(qb.state(), QpState::ReadyToReceive);
    let _active = connecting.wait(a.late()).unwrap().unwrap();
    a.send(&qa, 2);
    assert!(matches!(passive.wait(b.late()), Some(ConnectionEvent::Established { private_data: None })));
    assert_eq!(qb.state(), QpState::ReadyToSend);
    assert_eq!((b.completion(), a.completion()), ((1, WcStatus::Success), (2, WcStatus::Success)));
    exchange(&a, &b, [&qa, &qb]);
}

#[test]
fn what_is_not_possible_is_said() {
    let [a, b] = pair();
    let qp = a.qp();
    assert!(matches!(b.nic.connect(&qp, &ask(&a)), Err(NicError::OtherDevice { .. })));
    let v6 = ConnectParams::new("::1".parse().unwrap(), SERVICE);
    assert!(matches!(a.nic.connect(&qp, &v6), Err(NicError::AddressFamily { .. })));
    let many = ConnectParams { responder_resources: 17, ..ask(&b) };
    assert!(matches!(a.nic.connect(&qp, &many), Err(NicError::OutOfRange { .. })));
    let large = ConnectParams { path_mtu: Some(Mtu::B4096), ..ask(&b) };
    *a.knobs.path.lock().unwrap() = Some(1400);
    assert!(matches!(a.nic.connect(&qp, &large), Err(NicError::OutOfRange { max: 1024, .. })));
    *a.knobs.path.lock().unwrap() = Some(200);
    assert!(matches!(a.nic.connect(&qp, &ask(&b)), Err(NicError::PathMtu { carried: 200, .. })));
    *a.knobs.path.lock().unwrap() = None;
    let asking = a.nic.connect(&qp, &ask(&b)).unwrap();
    let again = a.nic.connect(&qp, &ask(&b));
    assert!(matches!(again, Err(NicError::Cm { source: Error::QpnInUse, .. })));
    drop(asking);
    qp.to_reset();
    assert!(matches!(a.nic.connect(&qp, &ask(&b)), Err(NicError::State { from: QpState::Reset, .. })));
    let listener = a.nic.listen(SERVICE, 1).unwrap();
    let again = a.nic.listen(SERVICE, 1);
    assert!(matches!(again, Err(NicError::Cm { source: Error::ServiceInUse, .. })));
    assert!(a.nic.listen(SERVICE, 0).is_err());
    assert_eq!(a.knobs.services.lock().unwrap().len(), 1);
    drop(listener);
    assert!(a.knobs.services.lock().unwrap().is_empty());
    a.knobs.taken.lock().unwrap().insert(SERVICE.0);
    let error = a.nic.listen(SERVICE, 1).err().unwrap();
    assert_eq!(error.to_string(), "listening on service tcp:7471: process 4711 has it");
    assert_eq!(a.nic.cm_usage().listeners, 0);
}

/// A path that is narrower than the devices: the asker offers what fits, and who is asked refuses what
/// does not.
#[test]
fn the_path_mtu_is_that_of_the_path() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let qp = a.qp();
    *b.knobs.path.lock().unwrap() = Some(1400);
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    match connecting.wait(a.late()).unwrap() {
        Err(ConnectError::Rejected(rejected)) => {
            assert_eq!((rejected.reason, rejected.info_len), (RejectReason::INVALID_MTU, 1));
            assert_eq!(rejected.info[0], 3, "1024 would do");
        }
        other => panic!("{:?}", other.err()),
    }
    *a.knobs.path.lock().unwrap() = Some(1400);
    let mut connecting = a.nic.connect(&qp, &ask(&b)).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    assert_eq!(request.terms().path_mtu, Mtu::B1024);
    let other = b.qp();
    let _passive = request.accept(&other, &AcceptParams::default()).unwrap();
    let _active = connecting.wait(a.late()).unwrap().unwrap();
    exchange(&a, &b, [&qp, &other]);
}

#[test]
fn a_port_that_is_free_is_found() {
    let [a, b] = pair();
    let listeners: Vec<_> = (0..50).map(|_| b.nic.listen_any(PortSpace::Tcp, 1).unwrap()).collect();
    let ports: std::collections::BTreeSet<_> =
        listeners.iter().map(|listener| listener.service().port().unwrap()).collect();
    assert!(ports.len() == 50 && ports.iter().all(|port| *port >= 0xc000), "{ports:?}");
    let (qa, qb) = (a.qp(), b.qp());
    let params = ConnectParams { service: listeners[17].service(), ..ask(&b) };
    let mut connecting = a.nic.connect(&qa, &params).unwrap();
    let mut request = listeners[17].wait(b.late()).unwrap();
    let _passive = request.accept(&qb, &AcceptParams::default()).unwrap();
    assert!(connecting.wait(a.late()).unwrap().is_ok());
}

#[test]
fn a_queue_pair_is_of_the_kind_that_the_connection_is() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 1).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let unreliable = ConnectParams { transport: Transport::Uc, ..ask(&b) };
    let refused = a.nic.connect(&qa, &unreliable);
    assert!(matches!(refused, Err(NicError::Transport { wanted: Transport::Uc, .. })));
    let mut connecting = a.nic.connect_by_number(0x4711, 1, &unreliable).unwrap();
    let mut request = listener.wait(b.late()).unwrap();
    let refused = request.accept(&qb, &AcceptParams::default());
    assert!(matches!(refused, Err(NicError::Transport { wanted: Transport::Uc, .. })));
    // The request still wants an answer.
    request.reject(RejectReason::INVALID_TRANSPORT, b"").unwrap();
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::INVALID_TRANSPORT);
}
