//! What is negotiated arrives, on both sides and in the words of each.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::Mtu;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, Ece, Message};

/// A request with these terms, as the other side hears of it.
fn asked(world: &mut World, terms: Terms) -> (Id, ConnectRequest) {
    let connect = Connect { terms, ..world.request(0, 50) };
    let id = world.call(0, |cm, now, out| cm.connect(now, &connect, b"", out)).unwrap();
    world.run(Duration::from_millis(1));
    (id, only_request(&world.take(1)))
}

/// The answer to a request, as who asked hears of it.
fn answered(world: &mut World, accept: Accept, id: Id) -> ConnectResponse {
    world.call(1, |cm, now, out| cm.accept(now, id, &accept, b"", out)).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::ConnectResponse(response)] = world.take(0)[..] else { panic!("no response") };
    response
}

/// Every value of every field, one at a time, there and back.
#[test]
fn every_term_round_trips() {
    let plain = World::new().request(0, 50).terms;
    let mut all = Vec::new();
    for transport in [Transport::Rc, Transport::Uc, Transport::Xrc] {
        all.push(Terms { transport, ..plain });
    }
    for path_mtu in Mtu::ALL {
        all.push(Terms { path_mtu, ..plain });
    }
    for n in [0, 1, 16, 255] {
        all.push(Terms { responder_resources: n, initiator_depth: 255 - n, ..plain });
    }
    for n in 0..8 {
        all.push(Terms { retry_count: n, rnr_retry_count: 7 - n, ..plain });
    }
    for (flow_control, srq) in [(false, false), (false, true), (true, false), (true, true)] {
        all.push(Terms { flow_control, srq, ..plain });
    }
    all.push(Terms { pkey: 0x8001, ..plain });
    for terms in all {
        let mut world = World::new();
        let (id, request) = asked(&mut world, terms);
        let swapped = Terms {
            responder_resources: terms.initiator_depth,
            initiator_depth: terms.responder_resources,
            ..terms
        };
        assert_eq!(request.terms, swapped);

        let plain = Accept::new(&request, Qpn::new(60), terms.starting_psn);
        assert_eq!(
            (plain.responder_resources, plain.initiator_depth),
            (terms.initiator_depth, terms.responder_resources)
        );
        let accept = Accept { flow_control: terms.flow_control, srq: terms.srq, ..plain };
        let response = answered(&mut world, accept, request.id);
        let xrc = terms.transport == Transport::Xrc;
        assert_eq!((response.id, response.qpn), (id, Qpn::new(60)));
        assert_eq!(response.rnr_retry_count, terms.rnr_retry_count);
        assert_eq!(response.initiator_depth, terms.initiator_depth);
        assert_eq!(response.responder_resources, if xrc { 0 } else { terms.responder_resources });
        assert_eq!(response.flow_control, terms.flow_control && !xrc);
        assert_eq!(response.srq, terms.srq || xrc);
    }
}

/// The target's queue pair is where the kernel puts it and looks for it, and is the one that a DREQ names.
#[test]
fn an_xrc_target_names_its_queue_pair_in_the_other_place() {
    let mut world = World::new();
    let terms = Terms { transport: Transport::Xrc, ..world.request(0, 50).terms };
    let (active, request) = asked(&mut world, terms);
    let accept = Accept::new(&request, Qpn::new(60), terms.starting_psn);
    assert_eq!(answered(&mut world, accept, request.id).qpn, Qpn::new(60));
    let Message::Rep(rep) = last(&world, Attribute::Rep).message else { panic!("no REP") };
    assert_eq!((rep.qpn, rep.ee_context, rep.srq, rep.initiator_depth), (Qpn::new(0), Qpn::new(60), true, 0));
    world.establish(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(1)[..], [Event::Established { .. }]));
    world.disconnect(0, active).unwrap();
    world.settle();
    let Message::Dreq(dreq) = last(&world, Attribute::Dreq).message else { panic!("no DREQ") };
    assert_eq!(dreq.remote_qpn, Qpn::new(60));
    world.assert_clean();
}

/// The other place means nothing to other transports, and the usual one nothing to XRC.
#[test]
fn a_rep_with_its_queue_pair_in_the_wrong_place_is_invalid() {
    for transport in [Transport::Rc, Transport::Uc, Transport::Xrc] {
        let mut world = World::new();
        let terms = Terms { transport, ..world.request(0, 50).terms };
        let (active, request) = asked(&mut world, terms);
        let accept = Accept::new(&request, Qpn::new(60), terms.starting_psn);
        world.drop_if = lose(1, Attribute::Rep, 1);
        world.call(1, |cm, now, out| cm.accept(now, request.id, &accept, b"", out)).unwrap();
        let rep = last(&world, Attribute::Rep);
        let swapped = altered(&rep, |message| {
            let Message::Rep(rep) = message else { panic!("not a REP") };
            std::mem::swap(&mut rep.qpn, &mut rep.ee_context);
        });
        let source = world.sides[1].address;
        world.call(0, |cm, now, out| cm.on_mad(now, source, &swapped, out));
        assert_eq!(world.state(0, active), Some(State::ReqSent));
        assert_eq!(world.sides[0].cm.counters().invalid, 1);
        world.call(0, |cm, now, out| cm.on_mad(now, source, &rep, out));
        assert_eq!(world.state(0, active), Some(State::RepRcvd));
    }
}

const EARLY: Option<Capabilities> = Some(Capabilities { keeps_early_packets: true });
const PLAIN: Option<Capabilities> = Some(Capabilities { keeps_early_packets: false });

/// What either end tells arrives, and an end that does not hear anything does not tell.
#[test]
fn capabilities_are_told_to_who_tells() {
    for ours in [None, PLAIN, EARLY] {
        for theirs in [None, PLAIN, EARLY] {
            let mut world = World::new();
            let terms = Terms { capabilities: ours, ..world.request(0, 50).terms };
            let (_, request) = asked(&mut world, terms);
            assert_eq!(request.terms.capabilities, ours);
            assert_eq!(*request.private_data, [0; 92], "no private data is taken");
            let accept =
                Accept { capabilities: theirs, ..Accept::new(&request, Qpn::new(60), terms.starting_psn) };
            let response = answered(&mut world, accept, request.id);
            assert_eq!(response.capabilities, ours.and(theirs));
            assert_eq!(*response.private_data, [0; 196]);
        }
    }
}

/// librdmacm answers with the vendor id that it was asked with, and options of its own device.
#[test]
fn a_vendor_id_that_comes_back_is_not_an_answer() {
    for options in [0, 1, 0x1000_0000, u32::MAX] {
        let mut world = World::new();
        let terms = Terms { capabilities: EARLY, ..world.request(0, 50).terms };
        let (_, request) = asked(&mut world, terms);
        world.drop_if = lose(1, Attribute::Rep, 1);
        world.accept(1, &request, 60).unwrap();
        let Message::Req(req) = last(&world, Attribute::Req).message else { panic!("no REQ") };
        for options in [options, req.ece.options] {
            let mut rep = last(&world, Attribute::Rep);
            let Message::Rep(body) = &mut rep.message else { panic!("no REP") };
            body.ece = Ece { options, ..req.ece };
            let source = world.sides[1].address;
            world.call(0, |cm, now, out| cm.on_mad(now, source, &rep, out));
            for event in world.take(0) {
                let Event::ConnectResponse(response) = event else { panic!("no response") };
                assert_eq!(response.capabilities, None);
            }
        }
    }
}
