//! Nothing grows without bound.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::mad::{Attribute, Message, RejectReason, ServiceId};
use anyverbs_wire::{Psn, Qpn};

fn world(limits: Limits) -> World {
    World::with([config(0), Config { limits, ..config(1) }], 1)
}

/// Requests, each with its own communication id and queue pair.
fn request_many(world: &mut World, n: u32) {
    for qpn in 100..100 + n {
        world.connect(0, qpn);
    }
    world.run(Duration::from_millis(1));
}

#[test]
fn a_full_table_refuses() {
    let mut world = world(Limits { connections: 3, ..Limits::default() });
    request_many(&mut world, 5);
    assert_eq!(world.take(1).len(), 3);
    let refused = world.take(0);
    let reasons: Vec<_> = refused
        .iter()
        .filter_map(|event| match event {
            Event::Rejected(rejected) => Some(rejected.reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [RejectReason::NO_RESOURCES; 2]);
    assert_eq!(world.sides[1].cm.counters().no_resources, 2);
    let connect = world.request(1, 50);
    let full = world.call(1, |cm, now, out| cm.connect(now, &connect, b"", out));
    assert_eq!(full, Err(Error::TooManyConnections));
}

#[test]
fn a_source_does_not_get_the_whole_table() {
    let mut world = world(Limits { connections: 10, connections_per_source: 3, ..Limits::default() });
    request_many(&mut world, 5);
    assert_eq!(world.take(1).len(), 3);
    assert_eq!(world.sides[1].cm.counters().no_resources, 2);
    // What we ask for ourselves is bounded by the table alone.
    let connect = world.request(1, 50);
    world.call(1, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
}

/// What is beyond a share is not refused: its sender repeats it, and is served when there is room.
#[test]
fn a_source_has_its_share() {
    let mut world = world(Limits { requests_per_source: 2, ..Limits::default() });
    request_many(&mut world, 5);
    let first = world.take(1);
    assert_eq!(first.len(), 2);
    assert_eq!(world.sides[1].cm.counters().over_quota, 3);
    assert!(world.take(0).is_empty());
    assert_eq!(world.sides[1].cm.usage().pending, 2);
    for (event, qpn) in first.iter().zip(60..) {
        let Event::ConnectRequest(request) = event else { panic!("not a request") };
        world.accept(1, request, qpn).unwrap();
    }
    world.run(Duration::from_millis(1));
    for event in world.take(0) {
        world.establish(0, event.id()).unwrap();
    }
    world.run(round());
    assert_eq!(world.take(1).len(), 2 + 2);
}

#[test]
fn a_listener_has_its_backlog() {
    let mut world = world(Limits::default());
    world.call(1, |cm, _, _| cm.unlisten(SERVICE)).unwrap();
    world.call(1, |cm, now, out| cm.listen(now, SERVICE, 1, out)).unwrap();
    request_many(&mut world, 3);
    assert_eq!(world.take(1).len(), 1);
    assert_eq!(world.sides[1].cm.counters().over_quota, 2);
}

#[test]
fn strangers_share_a_token_bucket() {
    let mut world = world(Limits { rate: 10, burst: 4, ..Limits::default() });
    request_many(&mut world, 10);
    assert_eq!(world.take(1).len(), 4);
    assert_eq!(world.sides[1].cm.counters().throttled, 6);
    // Connections are not strangers: their messages need no token.
    world.drop_if = lose(1, Attribute::Mra, usize::MAX);
    world.run(round() - Duration::from_millis(2));
    let throttled = world.sides[1].cm.counters().throttled;
    world.run(Duration::from_millis(4));
    let counters = world.sides[1].cm.counters();
    assert_eq!(counters.duplicates.get(Attribute::Req), 4);
    assert_eq!(counters.throttled - throttled, 2);
    assert_eq!(world.take(1).len(), 4);
}

#[test]
fn listeners_holds_and_resolutions_are_bounded() {
    let limits = Limits { listeners: 2, held: 1, resolutions: 1, ..Limits::default() };
    let mut world = world(limits);
    let mut listen = |service| world.call(1, |cm, now, out| cm.listen(now, service, 1, out));
    assert_eq!(listen(SERVICE), Err(Error::ServiceInUse));
    assert_eq!(listen(ServiceId(1)), Ok(()));
    assert_eq!(listen(ServiceId(2)), Err(Error::TooManyListeners));
    assert_eq!(world.call(1, |cm, _, _| cm.unlisten(ServiceId(2))), Err(Error::NotListening));

    for qpn in [50, 51] {
        let connect = Connect { service_id: ServiceId(9), ..world.request(0, qpn) };
        world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    }
    world.run(Duration::from_millis(1));
    assert_eq!((world.sides[1].cm.usage().held, world.take(0).len()), (1, 2));

    let ask =
        SidrAsk { destination: world.sides[0].address, service_id: SERVICE, pkey: 0xffff, ip_header: None };
    let mut resolve = || world.call(1, |cm, now, out| cm.sidr_request(now, &ask, b"", out));
    resolve().unwrap();
    assert_eq!(resolve(), Err(Error::TooManyResolutions));
}

#[test]
fn kept_answers_are_bounded_and_the_oldest_goes_first() {
    let mut world = world(Limits { answers: 2, ..Limits::default() });
    request_many(&mut world, 5);
    for event in world.take(1) {
        let reason = RejectReason::CONSUMER;
        world.call(1, |cm, now, out| cm.reject(now, event.id(), reason, b"", b"", out)).unwrap();
    }
    assert_eq!(world.sides[1].cm.usage().answers, 2);
    world.settle();
    world.assert_clean();
}

/// A peer may name times, but not hours.
#[test]
fn times_that_a_peer_names_are_bounded() {
    let mut world = world(Limits::default());
    world.connect(0, 50);
    let req = altered(&last(&world, Attribute::Req), |message| {
        let Message::Req(req) = message else { panic!("not a REQ") };
        req.local_comm_id = 9;
        req.qpn = Qpn::new(9);
        (req.local_response_timeout, req.remote_response_timeout) = (31, 31);
        req.primary.ack_timeout = 31;
        req.max_cm_retries = 15;
    });
    let source = [192, 0, 2, 1].into();
    world.call(1, |cm, now, out| cm.on_mad(now, source, &req, out));
    let request = only_request(&world.take(1));
    let began = world.now;
    world.accept(1, &request, 60).unwrap();
    while world.state(1, request.id).is_some() {
        assert!(world.step(began + seconds(3600)), "held for more than an hour");
    }
}

/// Times of zero do not make a storm.
#[test]
fn times_that_a_peer_names_are_not_too_short() {
    let mut world = world(Limits::default());
    world.connect(0, 50);
    let req = altered(&last(&world, Attribute::Req), |message| {
        let Message::Req(req) = message else { panic!("not a REQ") };
        req.local_comm_id = 9;
        req.qpn = Qpn::new(9);
        (req.local_response_timeout, req.remote_response_timeout) = (0, 0);
    });
    let source = [192, 0, 2, 1].into();
    world.call(1, |cm, now, out| cm.on_mad(now, source, &req, out));
    let request = only_request(&world.take(1));
    world.accept(1, &request, 60).unwrap();
    world.run(seconds(1));
    assert!(world.count(1, Attribute::Rep) <= 2);
}

#[test]
fn ids_carry_the_prefix_of_their_process() {
    let prefixed = Config { comm_id_prefix: 0xabc, comm_id_prefix_bits: 12, ..config(0) };
    let mut world = World::with([prefixed, config(1)], 1);
    for qpn in 50..60 {
        assert_eq!(world.connect(0, qpn).comm_id() >> 20, 0xabc);
    }
}

#[test]
fn a_source_of_numbers_that_repeats_itself_is_found_out() {
    let mut world = World::new();
    world.sides[0].cm = ConnectionManager::new(config(0), Box::new(|| 42));
    world.connect(0, 50);
    let connect = world.request(0, 51);
    let again = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out));
    assert_eq!(again, Err(Error::NoFreeId));
    world.sides[0].cm = ConnectionManager::new(config(0), Box::new(|| 0));
    let zero = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out));
    assert_eq!(zero, Err(Error::NoFreeId), "0 is no id");
}

/// Ten thousand connections that stand have no timers, and come and go without a trace.
#[test]
fn many_connections_cost_nothing_while_they_stand() {
    let open = Limits { requests_per_source: 20_000, requests: 20_000, rate: 0, ..Limits::default() };
    let mut world = World::with([config(0), Config { limits: open, ..config(1) }], 1);
    world.call(1, |cm, _, _| cm.unlisten(SERVICE)).unwrap();
    world.call(1, |cm, now, out| cm.listen(now, SERVICE, 20_000, out)).unwrap();
    let n = 10_000;
    for qpn in 100..100 + n {
        world.connect(0, qpn);
    }
    world.run(Duration::from_millis(1));
    for (event, qpn) in world.take(1).iter().zip(100..) {
        let Event::ConnectRequest(request) = event else { panic!("not a request") };
        let accept = Accept::new(request, Qpn::new(qpn), Psn::new(0));
        world.call(1, |cm, now, out| cm.accept(now, request.id, &accept, b"", out)).unwrap();
    }
    world.run(Duration::from_millis(1));
    let ids: Vec<_> = world.take(0).iter().map(Event::id).collect();
    assert_eq!(ids.len(), n as usize);
    for id in &ids {
        world.establish(0, *id).unwrap();
    }
    world.run(Duration::from_millis(1));
    assert!(world.next_event().is_none());
    for id in &ids {
        world.disconnect(0, *id).unwrap();
    }
    world.settle();
    world.assert_clean();
}
