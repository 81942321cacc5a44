//! How connections come to stand.

use std::net::IpAddr;
use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::mad::{Attribute, IpHeader, Message, PortSpace, ServiceId, timeout};
use anyverbs_wire::{Psn, Qpn};

#[test]
fn each_side_learns_the_other_and_resources_are_swapped() {
    let mut world = World::new();
    let asked = world.request(0, 50);
    let terms = Terms {
        transport: Transport::Uc,
        responder_resources: 7,
        initiator_depth: 9,
        retry_count: 5,
        rnr_retry_count: 6,
        srq: true,
        ..asked.terms
    };
    let connect = Connect { terms, traffic_class: 0x68, ..asked };
    let active = world.call(0, |cm, now, out| cm.connect(now, &connect, b"hello", out)).unwrap();
    world.run(Duration::from_millis(1));
    let request = only_request(&world.take(1));
    assert_eq!((request.service_id, request.source), (SERVICE, world.sides[0].address));
    // All as it was said, but for what is swapped.
    assert_eq!(request.terms, Terms { responder_resources: 9, initiator_depth: 7, ..terms });
    assert_eq!((request.path.ack_timeout, request.path.traffic_class), (17, 0x68));
    assert_eq!((request.private_data.len(), &request.private_data[..6]), (92, &b"hello\0"[..]));

    let accept = Accept {
        responder_resources: 4,
        initiator_depth: 3,
        rnr_retry_count: 2,
        ..Accept::new(&request, Qpn::new(60), Psn::new(61))
    };
    let passive = request.id;
    world.call(1, |cm, now, out| cm.accept(now, passive, &accept, b"welcome", out)).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::ConnectResponse(response)] = world.take(0)[..] else { panic!("no response") };
    assert_eq!((response.id, response.qpn, response.starting_psn), (active, Qpn::new(60), Psn::new(61)));
    assert_eq!((response.responder_resources, response.initiator_depth), (3, 4));
    assert_eq!((response.rnr_retry_count, response.ack_timeout, response.ca_guid), (2, 17, 0xa1));
    assert_eq!((response.private_data.len(), &response.private_data[..8]), (196, &b"welcome\0"[..]));

    world.establish(0, active).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::Established { id, private_data: Some(data) }] = world.take(1)[..] else {
        panic!("not established")
    };
    assert_eq!((id, data.len(), &data[..6]), (passive, 224, &b"ready\0"[..]));
    // All messages of the handshake are of one transaction.
    assert!(world.sent.iter().all(|(_, _, mad)| mad.transaction_id == world.sent[0].2.transaction_id));
    // A connection that stands costs no timer.
    assert!(world.sides.iter().all(|side| side.cm.next_deadline().is_none()));
    assert_eq!(world.sides[1].cm.usage().pending, 0);
    world.assert_counted();
}

#[test]
fn rdma_cm_puts_its_header_first() {
    let mut world = World::new();
    let (source, destination) = (world.sides[0].address, world.sides[1].address);
    let header = IpHeader { source, destination, source_port: 4242 };
    let connect = Connect { ip_header: Some(header), ..world.request(0, 50) };
    let user = [0xaa; 56];
    let too_long = world.call(0, |cm, now, out| cm.connect(now, &connect, &[0; 57], out));
    assert_eq!(too_long, Err(Error::PrivateDataTooLong { max: 56 }));
    world.call(0, |cm, now, out| cm.connect(now, &connect, &user, out)).unwrap();
    world.run(Duration::from_millis(1));
    let request = only_request(&world.take(1));
    assert_eq!(request.ip_header(), Some((header, &user[..])));
    assert_eq!(request.service_id.port_space(), Some(PortSpace::Tcp));
    let Message::Req(req) = world.sent[0].2.message else { panic!("not a REQ") };
    assert_eq!((req.remote_response_timeout, req.local_response_timeout, req.max_cm_retries), (20, 20, 15));
    assert_eq!(req.primary.local_gid.to_string(), "::ffff:10.0.0.1");
    assert_eq!(req.primary.remote_gid.to_string(), "::ffff:10.0.0.2");
}

#[test]
fn private_data_has_the_size_of_its_message() {
    let mut world = World::new();
    let connect = world.request(0, 50);
    let long = world.call(0, |cm, now, out| cm.connect(now, &connect, &[0; 93], out));
    assert_eq!(long, Err(Error::PrivateDataTooLong { max: 92 }));
    let (active, request) = world.ask(50);
    let accept = Accept::new(&request, Qpn::new(60), Psn::new(0));
    let long = world.call(1, |cm, now, out| cm.accept(now, request.id, &accept, &[0; 197], out));
    assert_eq!(long, Err(Error::PrivateDataTooLong { max: 196 }));
    world.call(1, |cm, now, out| cm.accept(now, request.id, &accept, &[9; 196], out)).unwrap();
    world.run(Duration::from_millis(1));
    let long = world.call(0, |cm, now, out| cm.establish(now, active, &[0; 225], out));
    assert_eq!(long, Err(Error::PrivateDataTooLong { max: 224 }));
    world.call(0, |cm, now, out| cm.establish(now, active, &[9; 224], out)).unwrap();
    let long = world.call(0, |cm, now, out| cm.disconnect(now, active, &[0; 221], out));
    assert_eq!(long, Err(Error::PrivateDataTooLong { max: 220 }));
}

/// Whatever single message is lost, both sides end up connected, and every consumer is told once.
#[test]
fn each_lost_message_of_the_handshake_is_made_good() {
    for (side, message) in [(0, Attribute::Req), (1, Attribute::Rep), (0, Attribute::Rtu)] {
        for losses in [1, 3, 15] {
            let mut world = World::new();
            world.drop_if = lose(side, message, losses);
            // No longer than the loss takes, or the consumer in question would be a slow one.
            let lossy = |of| if of == message { round() * losses as u32 } else { Duration::ZERO };
            let active = world.connect(0, 50);
            world.run(lossy(Attribute::Req) + Duration::from_millis(1));
            let request = only_request(&world.take(1));
            world.accept(1, &request, 60).unwrap();
            world.run(lossy(Attribute::Rep) + Duration::from_millis(1));
            assert_eq!(world.take(0).len(), 1);
            world.establish(0, active).unwrap();
            world.run(lossy(Attribute::Rtu) + Duration::from_millis(1));
            assert!(matches!(world.take(1)[..], [Event::Established { private_data: Some(_), .. }]));
            // A REQ that comes again has the REP sent again, besides its timer.
            let sent = world.count(side, message) - losses;
            assert!(sent == 1 || (sent == 2 && message == Attribute::Rep), "{message} {sent}");
            assert_eq!(world.state(0, active), Some(State::Established));
            assert_eq!(world.state(1, request.id), Some(State::Established));
            world.assert_counted();
        }
    }
}

/// The REQ's timer runs ahead of the REP's, so it is the first to find out.
#[test]
fn a_req_that_comes_again_has_the_rep_sent_again() {
    let mut world = World::new();
    let (_, request) = world.ask(50);
    world.run(seconds(2));
    world.drop_if = lose(1, Attribute::Rep, 1);
    world.accept(1, &request, 60).unwrap();
    world.run(round() - seconds(2));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));
    assert_eq!(world.sides[1].cm.counters().retried.total(), 0);
}

#[test]
fn a_wire_that_repeats_everything_changes_nothing() {
    let mut world = World::new();
    world.faults = Faults { duplicate: 1000, ..Faults::default() };
    let (active, passive) = world.connected(50);
    world.disconnect(0, active).unwrap();
    world.settle();
    let [closed @ .., Event::TimewaitExit { .. }] = &world.take(0)[..] else { panic!("no exit") };
    assert!(matches!(closed, [Event::Disconnected { id, cause: Cause::Local, .. }] if *id == active));
    let [closed @ .., Event::TimewaitExit { .. }] = &world.take(1)[..] else { panic!("no exit") };
    assert!(matches!(closed, [Event::Disconnected { id, cause: Cause::Peer, .. }] if *id == passive));
    let duplicates: u64 = world.sides.iter().map(|side| side.cm.counters().duplicates.total()).sum();
    assert!(duplicates >= 5, "{duplicates}");
    world.assert_clean();
}

#[test]
fn data_establishes_a_connection_whose_rtu_is_lost() {
    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    world.drop_if = lose(0, Attribute::Rtu, 1);
    world.establish(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert!(world.take(1).is_empty());
    let arrive = |world: &mut World, qpn| {
        world.call(1, |cm, now, out| cm.communication_established(now, Qpn::new(qpn), out))
    };
    assert!(!arrive(&mut world, 151));
    assert!(arrive(&mut world, 150));
    assert!(!arrive(&mut world, 150));
    assert_eq!(world.take(1), [Event::Established { id: passive, private_data: None }]);
    world.settle();
    assert_eq!(world.count(1, Attribute::Rep), 1, "no REP again");
    // The RTU after all is a duplicate.
    let (rtu, source) = (last(&world, Attribute::Rtu), world.sides[0].address);
    world.call(1, |cm, now, out| cm.on_mad(now, source, &rtu, out));
    assert!(world.take(1).is_empty());
    assert_eq!(world.sides[1].cm.counters().duplicates.get(Attribute::Rtu), 1);
}

#[test]
fn a_lost_rtu_is_sent_again_when_the_rep_comes_again() {
    let mut world = World::new();
    let (active, _) = world.ask_and_accept(50);
    world.drop_if = lose(0, Attribute::Rtu, 1);
    world.establish(0, active).unwrap();
    world.run(round() + Duration::from_millis(1));
    assert!(matches!(world.take(1)[..], [Event::Established { private_data: Some(_), .. }]));
    assert_eq!((world.count(1, Attribute::Rep), world.count(0, Attribute::Rtu)), (2, 2));
}

/// The REQ's sender hears in time that it has to wait, and does.
#[test]
fn a_slow_consumer_sends_an_mra_and_its_peer_obeys() {
    let mut world = World::new();
    let (active, request) = world.ask(50);
    let service = timeout(24);
    world.run(timeout(20) / 2 + Duration::from_millis(1));
    assert_eq!(world.count(1, Attribute::Mra), 1);
    assert_eq!(world.state(1, request.id), Some(State::MraReqSent));
    assert_eq!(world.state(0, active), Some(State::MraReqRcvd));
    world.run(service - seconds(1));
    assert_eq!(world.count(0, Attribute::Req), 1, "asked again although told to wait");

    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));
    // The active consumer is slow, too.
    world.run(service - seconds(1));
    assert_eq!((world.count(0, Attribute::Mra), world.count(1, Attribute::Rep)), (1, 1));
    assert_eq!(world.state(0, active), Some(State::MraRepSent));
    assert_eq!(world.state(1, request.id), Some(State::MraRepRcvd));
    world.establish(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(1)[..], [Event::Established { .. }]));
    assert!(world.sides.iter().all(|side| side.cm.next_deadline().is_none()));
}

#[test]
fn after_the_promised_time_the_request_is_repeated_and_a_lost_mra_too() {
    let mut world = World::new();
    world.drop_if = lose(1, Attribute::Mra, 1);
    let (active, request) = world.ask(50);
    world.run(round());
    assert_eq!((world.count(0, Attribute::Req), world.count(1, Attribute::Mra)), (2, 2));
    assert_eq!(world.state(0, active), Some(State::MraReqRcvd));
    world.run(timeout(24) + round());
    assert_eq!(world.count(0, Attribute::Req), 3);
    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));
    assert!(world.take(1).is_empty(), "asked twice");
}

#[test]
fn a_request_without_an_answer_is_sent_sixteen_times() {
    let mut world = World::new();
    world.drop_if = Some(Box::new(|from, _| from == 1));
    world.call(1, |cm, _, _| cm.unlisten(SERVICE)).unwrap();
    let active = world.connect(0, 50);
    world.run(round() * 16 - Duration::from_millis(1));
    assert_eq!(world.count(0, Attribute::Req), 16);
    assert!(world.take(0).is_empty());
    world.run(Duration::from_millis(1));
    let exit = Event::TimewaitExit { id: active, qpn: Some(Qpn::new(50)) };
    assert_eq!(world.take(0), [Event::Unreachable { id: active }, exit]);
    assert_eq!(world.sides[0].cm.counters().retried.get(Attribute::Req), 15);
    let times: Vec<_> = world.sent.iter().filter(|(_, from, _)| *from == 0).map(|(at, ..)| *at).collect();
    assert!(times[..16].windows(2).all(|pair| pair[1] - pair[0] == round()));
    world.settle();
    world.assert_clean();
}

/// The REJ timeout of a side that gives up names the request by GUID, since it knows no id of the peer.
#[test]
fn who_gives_up_takes_the_request_back() {
    let mut world = World::new();
    world.drop_if = lose(1, Attribute::Mra, usize::MAX);
    let (active, request) = world.ask(50);
    world.run(round() * 16);
    assert!(
        matches!(world.take(0)[..], [Event::Unreachable { id }, Event::TimewaitExit { .. }] if id == active)
    );
    let [Event::Rejected(rejected)] = world.take(1)[..] else { panic!("not taken back") };
    assert_eq!((rejected.id, rejected.reason.0), (request.id, 4));
    assert_eq!(rejected.info[..8], 0xa0_u64.to_be_bytes());
    assert_eq!(world.accept(1, &request, 60), Err(Error::OutOfState(State::TimeWait)));
    // A copy of the REQ that was overtaken does not come to the consumer.
    let (req, source) = (last(&world, Attribute::Req), world.sides[0].address);
    world.call(1, |cm, now, out| cm.on_mad(now, source, &req, out));
    world.settle();
    assert_eq!(world.take(1), [Event::TimewaitExit { id: request.id, qpn: None }]);
    world.assert_clean();
}

#[test]
fn a_consumer_that_never_answers_does_not_hold_the_table() {
    let mut world = World::new();
    let (_, request) = world.ask(50);
    // What would take the request back is lost.
    world.drop_if = lose(0, Attribute::Rej, 1);
    world.settle();
    assert!(
        matches!(world.take(1)[..], [Event::Unreachable { id }, Event::TimewaitExit { .. }] if id == request.id)
    );
    world.assert_clean();

    world.take(0);
    let (active, passive) = world.ask_and_accept(51);
    world.settle();
    for (side, id) in [(0, active), (1, passive)] {
        let events = world.take(side);
        let [Event::Unreachable { .. } | Event::Rejected(_), Event::TimewaitExit { .. }] = events[..] else {
            panic!("{events:?}")
        };
        assert!(events.iter().all(|event| event.id() == id));
    }
    world.assert_clean();
}

#[test]
fn peers_that_connect_to_each_other_get_two_connections() {
    let mut world = World::new();
    let ids = [world.connect(0, 50), world.connect(1, 70)];
    world.run(Duration::from_millis(1));
    let requests = [only_request(&world.take(0)), only_request(&world.take(1))];
    world.accept(0, &requests[0], 51).unwrap();
    world.accept(1, &requests[1], 71).unwrap();
    world.run(Duration::from_millis(1));
    for (side, id) in ids.into_iter().enumerate() {
        assert!(matches!(world.take(side)[..], [Event::ConnectResponse(response)] if response.id == id));
        world.establish(side, id).unwrap();
    }
    world.run(Duration::from_millis(1));
    for (side, active) in ids.into_iter().enumerate() {
        let passive = requests[side].id;
        assert!(matches!(world.take(side)[..], [Event::Established { id, .. }] if id == passive));
        assert_eq!(world.state(side, passive), Some(State::Established));
        assert_eq!(world.state(side, active), Some(State::Established));
        world.disconnect(side, active).unwrap();
    }
    world.settle();
    world.assert_clean();
}

/// A device that connects to itself plays both parts in one table.
#[test]
fn a_manager_connects_to_itself() {
    let mut world = World::new();
    let here: IpAddr = world.sides[0].address;
    let connect = Connect { destination: here, ..world.request(0, 50) };
    let active = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(1));
    let request = only_request(&world.take(0));
    world.accept(0, &request, 51).unwrap();
    world.run(Duration::from_millis(1));
    world.take(0);
    world.establish(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::Established { id, .. }] if id == request.id));
    world.disconnect(0, request.id).unwrap();
    world.settle();
    assert_eq!(world.take(0).len(), 4);
    world.assert_clean();
}

/// A server that closes its listener between two connections loses none.
#[test]
fn a_request_to_a_silent_port_waits_for_the_listener() {
    let mut world = World::new();
    let port = ServiceId::new(PortSpace::Tcp, 18_515);
    let connect = Connect { service_id: port, ..world.request(0, 50) };
    world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(900));
    assert!(world.take(1).is_empty());
    assert_eq!(world.sides[1].cm.usage().held, 1);
    world.call(1, |cm, now, out| cm.listen(now, port, 1, out)).unwrap();
    let request = only_request(&world.take(1));
    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));
    assert_eq!(world.count(0, Attribute::Req), 1);
}

#[test]
fn calls_that_do_not_fit_the_state_change_nothing() {
    let mut world = World::new();
    let (active, request) = world.ask(50);
    let accept = Accept::new(&request, Qpn::new(60), Psn::new(0));
    assert_eq!(world.establish(0, active), Err(Error::OutOfState(State::ReqSent)));
    assert_eq!(world.disconnect(0, active), Err(Error::OutOfState(State::ReqSent)));
    assert_eq!(world.establish(1, request.id), Err(Error::OutOfState(State::ReqRcvd)));
    let mut try_accept =
        |accept: Accept| world.call(1, |cm, now, out| cm.accept(now, request.id, &accept, b"", out));
    assert_eq!(
        try_accept(Accept { initiator_depth: 2, ..accept }),
        Err(Error::InitiatorDepth { offered: 1 })
    );
    for qpn in [0, 1, 0xff_ffff] {
        assert_eq!(try_accept(Accept { qpn: Qpn::new(qpn), ..accept }), Err(Error::QpnInUse));
    }
    assert_eq!(try_accept(accept), Ok(()));
    assert_eq!(try_accept(accept), Err(Error::OutOfState(State::RepSent)));
    let connect = world.request(0, 50);
    let again = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out));
    assert_eq!(again, Err(Error::QpnInUse));
    world.run(Duration::from_millis(1));
    let accept = Accept::new(&request, Qpn::new(61), Psn::new(0));
    let backwards = world.call(0, |cm, now, out| cm.accept(now, active, &accept, b"", out));
    assert_eq!(backwards, Err(Error::OutOfState(State::RepRcvd)));
}
