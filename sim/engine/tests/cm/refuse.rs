//! How connections are refused.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::Mtu;
use anyverbs_engine::cm::{Cause, Config, Connect, Error, Event, Rejected, State};
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, Message, RejectReason, Req, ServiceId, Subject, Transport};

fn rejected(events: &[Event]) -> Rejected {
    match events {
        [Event::Rejected(rejected), Event::TimewaitExit { id, .. }] if *id == rejected.id => *rejected,
        other => panic!("not rejected: {other:?}"),
    }
}

/// The consumer is asked once and its reason arrives, whatever is lost.
#[test]
fn a_consumers_reason_arrives() {
    for losses in [0, 1, 3] {
        let mut world = World::new();
        let (active, request) = world.ask(50);
        world.drop_if = lose(1, Attribute::Rej, losses);
        let reject = |world: &mut World| {
            let (reason, info) = (RejectReason::CONSUMER, [7; 72]);
            world.call(1, |cm, now, out| cm.reject(now, request.id, reason, &info, b"not today", out))
        };
        reject(&mut world).unwrap();
        assert_eq!(reject(&mut world), Err(Error::UnknownId));
        assert_eq!(world.take(1), [Event::TimewaitExit { id: request.id, qpn: None }]);
        world.settle();
        let rejected = rejected(&world.take(0));
        assert_eq!(
            (rejected.id, rejected.reason, rejected.subject),
            (active, RejectReason::CONSUMER, Subject::Req)
        );
        assert_eq!((rejected.info_len, rejected.info), (72, [7; 72]));
        assert_eq!((rejected.private_data.len(), &rejected.private_data[..10]), (148, &b"not today\0"[..]));
        assert!(world.take(1).is_empty(), "asked twice");
        assert_eq!(world.count(1, Attribute::Rej), losses + 1);
        world.assert_clean();
    }
}

#[test]
fn a_response_may_be_rejected() {
    for losses in [0, 2] {
        let mut world = World::new();
        let (active, passive) = world.ask_and_accept(50);
        world.drop_if = lose(0, Attribute::Rej, losses);
        let reason = RejectReason::INSUFFICIENT_RESOURCES;
        world.call(0, |cm, now, out| cm.reject(now, active, reason, &[1], b"no", out)).unwrap();
        world.settle();
        let rejected = rejected(&world.take(1));
        assert_eq!((rejected.id, rejected.reason, rejected.subject), (passive, reason, Subject::Rep));
        assert_eq!((rejected.info_len, &rejected.private_data[..2]), (1, &b"no"[..]));
        assert_eq!(world.take(0), [Event::TimewaitExit { id: active, qpn: Some(Qpn::new(50)) }]);
        world.assert_clean();
    }
}

#[test]
fn rejecting_has_limits() {
    let mut world = World::new();
    let (active, request) = world.ask(50);
    let mut reject = |side: usize, id, info: &[u8], data: &[u8]| {
        world.call(side, |cm, now, out| cm.reject(now, id, RejectReason::CONSUMER, info, data, out))
    };
    assert_eq!(reject(1, request.id, &[0; 73], b""), Err(Error::InfoTooLong { max: 72 }));
    assert_eq!(reject(1, request.id, b"", &[0; 149]), Err(Error::PrivateDataTooLong { max: 148 }));
    assert_eq!(reject(0, active, b"", b""), Err(Error::OutOfState(State::ReqSent)));
    assert_eq!(reject(1, request.id, &[0; 72], &[0; 148]), Ok(()));
}

#[test]
fn nobody_listens() {
    let mut world = World::new();
    let connect = Connect { service_id: ServiceId(0x99), ..world.request(0, 50) };
    let active = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(999));
    assert!(world.take(0).is_empty());
    world.run(Duration::from_millis(2));
    let refused = rejected(&world.take(0));
    assert_eq!((refused.id, refused.reason), (active, RejectReason::INVALID_SERVICE_ID));
    assert!(world.take(1).is_empty());
    world.assert_clean();

    // Without the hold the answer comes at once.
    let mut world = World::with([config(0), Config { hold_unclaimed: Duration::ZERO, ..config(1) }], 1);
    world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(1));
    assert_eq!(rejected(&world.take(0)).reason, RejectReason::INVALID_SERVICE_ID);
    assert_eq!(world.sides[1].cm.counters().no_listener, 1);
}

/// A request that is taken back while it is held does not come to the listener.
#[test]
fn a_held_request_may_be_taken_back() {
    let mut world = World::new();
    let service_id = ServiceId(0x99);
    let connect = Connect { service_id, ..world.request(0, 50) };
    let active = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(1));
    world.abandon(0, active);
    world.run(Duration::from_millis(1));
    world.call(1, |cm, now, out| cm.listen(now, service_id, 1, out)).unwrap();
    world.settle();
    assert!(world.take(0).is_empty() && world.take(1).is_empty());
    world.assert_clean();
}

#[test]
fn our_side_may_be_patient_with_a_peer_that_does_not_listen_yet() {
    let patient = Config { retry_refused: seconds(5), ..config(0) };
    let curt = Config { hold_unclaimed: Duration::ZERO, ..config(1) };
    let service_id = ServiceId(0x99);
    let mut world = World::with([patient, curt], 1);
    let connect = Connect { service_id, ..world.request(0, 50) };
    world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(seconds(4));
    assert!(world.take(0).is_empty());
    world.call(1, |cm, now, out| cm.listen(now, service_id, 1, out)).unwrap();
    world.run(Duration::from_millis(200));
    let request = only_request(&world.take(1));
    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));

    let connect = Connect { service_id: ServiceId(0x98), ..world.request(0, 51) };
    let active = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(5200));
    let refused = rejected(&world.take(0));
    assert_eq!((refused.id, refused.reason), (active, RejectReason::INVALID_SERVICE_ID));
}

#[test]
fn what_the_device_cannot_do_is_refused_without_asking() {
    let reason_of = |alter: fn(&mut Req)| {
        let mut world = World::with([config(0), Config { max_mtu: Mtu::B2048, ..config(1) }], 1);
        world.drop_if = lose(0, Attribute::Req, 1);
        world.connect(0, 50);
        let req = altered(&last(&world, Attribute::Req), |message| {
            let Message::Req(req) = message else { panic!("not a REQ") };
            alter(req);
        });
        let source = world.sides[0].address;
        world.call(1, |cm, now, out| cm.on_mad(now, source, &req, out));
        world.settle();
        assert!(world.take(1).is_empty());
        assert_eq!(world.sides[1].cm.counters().unacceptable, 1);
        world.assert_clean();
        rejected(&world.take(0)).reason
    };
    assert_eq!(reason_of(|req| req.path_mtu = 5), RejectReason::INVALID_MTU);
    assert_eq!(reason_of(|req| req.path_mtu = 0), RejectReason::INVALID_MTU);
    assert_eq!(reason_of(|req| req.transport = Transport::Rd), RejectReason::INVALID_TRANSPORT);
    assert_eq!(reason_of(|req| req.transport = Transport::Extended), RejectReason::INVALID_TRANSPORT);
}

#[test]
fn a_communication_id_belongs_to_one_connection() {
    let mut world = World::new();
    let (_, request) = world.ask(50);
    let (req, source) = (last(&world, Attribute::Req), world.sides[0].address);
    let mut other = altered(&req, |message| {
        let Message::Req(req) = message else { panic!("not a REQ") };
        req.qpn = Qpn::new(51);
    });
    other.transaction_id ^= 1;
    world.call(1, |cm, now, out| cm.on_mad(now, source, &other, out));
    assert!(world.take(1).is_empty());
    let Message::Rej(rej) = last(&world, Attribute::Rej).message else { panic!("no REJ") };
    assert_eq!(rej.reason, RejectReason::DUPLICATE_COMM_ID);
    // The REJ is of another transaction: the connection goes on.
    world.run(Duration::from_millis(1));
    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(0)[..], [Event::ConnectResponse(_)]));
    assert_eq!(world.sides[0].cm.counters().wrong_transaction, 1);
}

/// A REP for which nobody waits any more is answered, or its sender would repeat it for a minute.
#[test]
fn a_rep_that_comes_too_late_is_refused() {
    let mut world = World::new();
    let (active, request) = world.ask(50);
    world.drop_if = lose(0, Attribute::Rej, 1);
    world.abandon(0, active);
    world.accept(1, &request, 60).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::Rejected(rejected)] = world.take(1)[..] else { panic!("not rejected") };
    assert_eq!((rejected.reason, rejected.subject), (RejectReason::INVALID_COMM_ID, Subject::Rep));
    world.settle();
    world.assert_clean();
}

/// The accepting side gave up, and the other one thinks that it is connected.
#[test]
fn a_late_rtu_is_told_that_it_is_late() {
    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    world.drop_if = Some(Box::new(|_, _| true));
    world.establish(0, active).unwrap();
    world.run(round() * 16);
    assert!(matches!(world.take(1)[..], [Event::Unreachable { id }] if id == passive));
    world.drop_if = None;
    let (rtu, source) = (last(&world, Attribute::Rtu), world.sides[0].address);
    world.call(1, |cm, now, out| cm.on_mad(now, source, &rtu, out));
    world.settle();
    let timed_out = Cause::Rejected(RejectReason::TIMEOUT);
    assert!(
        matches!(world.take(0)[..], [Event::Disconnected { id, cause, .. }, _] if id == active && cause == timed_out)
    );
    world.assert_clean();
}

/// A REJ of the REQ after the REP is late or forged.
#[test]
fn a_connection_that_stands_is_not_ended_by_a_rej_of_its_req() {
    let mut world = World::new();
    let (active, _) = world.connected(50);
    let Message::Rep(rep) = last(&world, Attribute::Rep).message else { panic!("no REP") };
    let req = last(&world, Attribute::Req);
    let rej = anyverbs_wire::mad::Rej {
        local_comm_id: 0,
        remote_comm_id: rep.remote_comm_id,
        subject: Subject::Req,
        info_len: 0,
        reason: RejectReason::CONSUMER,
        info: [0; 72],
        private_data: [0; 148],
    };
    let mad = anyverbs_wire::mad::Repr { message: Message::Rej(rej), ..req };
    let source = world.sides[1].address;
    world.call(0, |cm, now, out| cm.on_mad(now, source, &mad, out));
    assert_eq!(world.state(0, active), Some(State::Established));
    assert_eq!(world.sides[0].cm.counters().out_of_state, 1);
    // Of nothing in particular, it is the peer's way out.
    let mad = altered(&mad, |message| {
        let Message::Rej(rej) = message else { panic!("not a REJ") };
        rej.subject = Subject::Other;
        rej.local_comm_id = rep.local_comm_id;
    });
    world.call(0, |cm, now, out| cm.on_mad(now, source, &mad, out));
    assert!(matches!(world.take(0)[..], [Event::Disconnected { cause: Cause::Rejected(_), .. }]));
}

/// A peer that restarted answers the REQ again, by chance with the same id. That is no repetition.
#[test]
fn a_rep_of_another_life_is_not_a_repetition() {
    let alters: [fn(&mut anyverbs_wire::mad::Rep); 3] = [
        |rep| rep.starting_psn = anyverbs_wire::Psn::new(rep.starting_psn.value() + 1),
        |rep| rep.qpn = Qpn::new(rep.qpn.value() + 1),
        |rep| rep.local_comm_id ^= 1,
    ];
    for alter in alters {
        let mut world = World::new();
        let (active, _) = world.connected(50);
        let other = altered(&last(&world, Attribute::Rep), |message| {
            let Message::Rep(rep) = message else { panic!("not a REP") };
            alter(rep);
        });
        let (source, rtus) = (world.sides[1].address, world.count(0, Attribute::Rtu));
        world.call(0, |cm, now, out| cm.on_mad(now, source, &other, out));
        assert_eq!((world.count(0, Attribute::Rtu), world.count(0, Attribute::Rej)), (rtus, 1));
        assert_eq!(world.sides[0].cm.counters().unknown_id, 1);
        assert_eq!(world.state(0, active), Some(State::Established));
    }
}

/// A peer that restarted names a new connection by the id of an old one, which so is found to be over.
#[test]
fn an_id_that_comes_again_ends_the_old_connection() {
    let mut world = World::new();
    let (old, _) = world.connected(50);
    let Message::Rep(before) = last(&world, Attribute::Rep).message else { panic!("not a REP") };
    let (active, request) = world.ask(51);
    world.drop_if = lose(1, Attribute::Rep, 1);
    world.accept(1, &request, 160).unwrap();
    let rep = altered(&last(&world, Attribute::Rep), |message| {
        let Message::Rep(rep) = message else { panic!("not a REP") };
        rep.local_comm_id = before.local_comm_id;
    });
    let source = world.sides[1].address;
    world.call(0, |cm, now, out| cm.on_mad(now, source, &rep, out));
    assert_eq!(world.sides[0].cm.counters().stale, 1);
    assert_eq!(world.state(0, old), Some(State::DreqSent));
    assert_eq!(world.state(0, active), Some(State::ReqSent));
    world.run(seconds(2));
    world.call(0, |cm, now, out| cm.on_mad(now, source, &rep, out));
    assert_eq!(world.state(0, active), Some(State::RepRcvd));
}
