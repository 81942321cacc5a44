//! How connections end.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, timeout};

fn causes(events: &[Event]) -> Vec<Cause> {
    let cause = |event: &Event| match event {
        Event::Disconnected { cause, .. } => Some(*cause),
        _ => None,
    };
    events.iter().filter_map(cause).collect()
}

#[test]
fn both_sides_wait_before_ids_and_queue_pairs_are_free() {
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    world.disconnect(0, active).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::Disconnected { cause: Cause::Peer, private_data, .. }] = world.take(1)[..] else {
        panic!("not disconnected")
    };
    assert_eq!((private_data.len(), &private_data[..4]), (220, &b"bye\0"[..]));
    assert_eq!(causes(&world.take(0)), [Cause::Local]);
    for (side, id, qpn) in [(0, active, 50), (1, passive, 150)] {
        assert_eq!(world.state(side, id), Some(State::TimeWait));
        assert!(world.sides[side].cm.holds_qpn(Qpn::new(qpn)));
        let connect = world.request(side, qpn);
        let early = world.call(side, |cm, now, out| cm.connect(now, &connect, b"", out));
        assert_eq!(early, Err(Error::QpnInUse));
    }
    world.run(timeout(17) - Duration::from_millis(2));
    assert!(world.take(0).is_empty() && world.take(1).is_empty());
    world.run(Duration::from_millis(2));
    assert_eq!(world.take(0), [Event::TimewaitExit { id: active, qpn: Some(Qpn::new(50)) }]);
    assert_eq!(world.take(1), [Event::TimewaitExit { id: passive, qpn: Some(Qpn::new(150)) }]);
    world.assert_clean();
    world.connected(50);
}

/// The consumer of the side that is asked hears of it before the answer leaves.
#[test]
fn the_event_comes_before_the_answer() {
    let mut world = World::new();
    let (active, _) = world.connected(50);
    world.drop_if = lose(0, Attribute::Dreq, 1);
    world.disconnect(0, active).unwrap();
    let (dreq, source) = (last(&world, Attribute::Dreq), world.sides[0].address);
    let mut actions = Vec::new();
    let now = world.now;
    world.sides[1].cm.on_mad(now, source, &dreq, &mut actions);
    assert!(matches!(actions[..], [Action::Event(Event::Disconnected { .. }), Action::SendMad { .. }]));
}

#[test]
fn lost_dreqs_and_dreps_are_made_good() {
    for (side, message) in [(0, Attribute::Dreq), (1, Attribute::Drep)] {
        for losses in [1, 15] {
            let mut world = World::new();
            let (active, _) = world.connected(50);
            world.drop_if = lose(side, message, losses);
            world.disconnect(0, active).unwrap();
            world.settle();
            assert_eq!(causes(&world.take(0)), [Cause::Local]);
            assert_eq!(causes(&world.take(1)), [Cause::Peer]);
            assert_eq!(world.count(0, Attribute::Dreq), losses + 1);
            world.assert_clean();
        }
    }
}

#[test]
fn a_peer_that_does_not_answer_is_left() {
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    world.drop_if = Some(Box::new(|_, _| true));
    world.disconnect(0, active).unwrap();
    world.run(round() * 16);
    assert_eq!(causes(&world.take(0)), [Cause::Timeout]);
    assert_eq!(world.count(0, Attribute::Dreq), 16);
    // The other one does not know. Its own disconnection is answered although nobody remembers.
    world.drop_if = None;
    world.settle();
    world.disconnect(1, passive).unwrap();
    world.settle();
    assert_eq!(causes(&world.take(1)), [Cause::Local]);
    world.assert_clean();
}

#[test]
fn both_sides_may_disconnect_at_once() {
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    world.disconnect(0, active).unwrap();
    world.disconnect(1, passive).unwrap();
    assert_eq!(world.disconnect(1, passive), Err(Error::OutOfState(State::DreqSent)));
    world.settle();
    for side in 0..2 {
        let events = world.take(side);
        assert_eq!(causes(&events), [Cause::Local]);
        assert!(matches!(events[..], [Event::Disconnected { .. }, Event::TimewaitExit { .. }]));
        assert_eq!((world.count(side, Attribute::Dreq), world.count(side, Attribute::Drep)), (1, 1));
    }
    world.assert_clean();
}

#[test]
fn a_connection_that_does_not_stand_yet_is_ended_once_it_does() {
    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    world.disconnect(1, passive).unwrap();
    assert_eq!(world.disconnect(1, passive), Err(Error::OutOfState(State::RepSent)));
    world.run(Duration::from_millis(1));
    assert_eq!(world.count(1, Attribute::Dreq), 0);
    world.establish(0, active).unwrap();
    world.settle();
    assert!(matches!(
        world.take(1)[..],
        [Event::Disconnected { cause: Cause::Local, .. }, Event::TimewaitExit { .. }]
    ));
    let [Event::Disconnected { cause: Cause::Peer, private_data, .. }, _] = world.take(0)[..] else {
        panic!("not disconnected")
    };
    assert_eq!(&private_data[..3], b"bye");
    world.assert_clean();
}

/// The active side is done before its RTU has arrived.
#[test]
fn a_dreq_may_overtake_the_rtu() {
    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    world.drop_if = lose(0, Attribute::Rtu, 1);
    world.establish(0, active).unwrap();
    world.disconnect(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert!(
        matches!(world.take(1)[..], [Event::Disconnected { id, cause: Cause::Peer, .. }] if id == passive)
    );
    let (rtu, source) = (last(&world, Attribute::Rtu), world.sides[0].address);
    world.call(1, |cm, now, out| cm.on_mad(now, source, &rtu, out));
    assert_eq!(world.sides[1].cm.counters().out_of_state, 1);
    world.settle();
    world.assert_clean();
}

/// A consumer may let go in every state. It hears no more, its peer is told, nothing is left.
#[test]
fn abandoned_connections_end_by_themselves() {
    /// Brings side and id to a state; the last is what the peer has to establish.
    type Reach = fn(&mut World) -> (usize, Id, Option<Id>);
    let states: [(State, Reach); 8] = [
        (State::ReqSent, |world| (0, world.ask(50).0, None)),
        (State::ReqRcvd, |world| (1, world.ask(50).1.id, None)),
        (State::MraReqSent, |world| {
            let id = world.ask(50).1.id;
            world.run(seconds(3));
            (1, id, None)
        }),
        (State::RepRcvd, |world| (0, world.ask_and_accept(50).0, None)),
        (State::RepSent, |world| {
            let (active, passive) = world.ask_and_accept(50);
            (1, passive, Some(active))
        }),
        (State::Established, |world| (0, world.connected(50).0, None)),
        (State::DreqSent, |world| {
            let id = world.connected(50).1;
            world.disconnect(1, id).unwrap();
            (1, id, None)
        }),
        (State::TimeWait, |world| {
            let id = world.connected(50).1;
            world.disconnect(1, id).unwrap();
            world.run(Duration::from_millis(1));
            world.take(1);
            (1, id, None)
        }),
    ];
    for (state, reach) in states {
        for losses in [0, 2] {
            let mut world = World::new();
            let (side, id, waiting) = reach(&mut world);
            assert_eq!(world.state(side, id), Some(state));
            let mut left = losses;
            world.drop_if = Some(Box::new(move |from, _| {
                let lost = from == side && left > 0;
                left -= u32::from(lost);
                lost
            }));
            world.abandon(side, id);
            if let Some(waiting) = waiting {
                world.establish(1 - side, waiting).unwrap();
            }
            finish(&mut world, side, state);
        }
    }
}

fn finish(world: &mut World, side: usize, state: State) {
    world.settle();
    assert!(world.take(side).is_empty(), "{state:?}: an event after letting go");
    let other = world.take(1 - side);
    assert!(matches!(other.last(), Some(Event::TimewaitExit { .. })), "{state:?}: {other:?}");
    world.assert_clean();
}

/// Our timewait is about our ids and queue pair. The peer's is its own business, and may have ended before.
#[test]
fn a_peers_queue_pair_may_be_connected_anew_while_we_wait() {
    let mut world = World::new();
    let (active, _) = world.connected(50);
    world.drop_if = lose(1, Attribute::Drep, 1);
    world.disconnect(0, active).unwrap();
    world.run(seconds(2));
    assert_eq!(world.state(0, active), Some(State::DreqSent));
    assert!(matches!(world.take(1)[..], [_, Event::TimewaitExit { .. }]));
    // Too early: for us the old connection is not over yet.
    world.connect(1, 150);
    world.run(Duration::from_millis(1));
    assert!(matches!(world.take(1)[..], [Event::Rejected(rejected)] if rejected.reason.0 == 10));
    world.run(round() - seconds(2));
    assert_eq!(world.state(0, active), Some(State::TimeWait));
    world.take(0);
    world.connect(1, 150);
    world.run(Duration::from_millis(1));
    only_request(&world.take(0));
}

/// The survivor of a crash learns from the restarted peer's REQ that its connection is stale.
#[test]
fn a_restarted_peer_ends_its_stale_connection() {
    let mut world = World::new();
    let (_, passive) = world.connected(50);
    world.restart(0, config(0));
    let retried = world.connect(0, 50);
    world.run(Duration::from_millis(1));
    let [Event::Rejected(rejected)] = world.take(0)[..] else { panic!("not rejected") };
    assert_eq!((rejected.id, rejected.reason.0), (retried, 10));
    assert_eq!(world.state(0, retried), Some(State::TimeWait));
    let events = world.take(1);
    assert!(matches!(events[..], [Event::Disconnected { id, cause: Cause::Stale, .. }] if id == passive));
    assert_eq!(world.sides[1].cm.counters().stale, 1);
    assert_eq!(world.count(1, Attribute::Dreq), 1);
    world.settle();
    world.take(0);
    world.take(1);
    // The next attempt works.
    world.connected(50);
}

/// The passive side restarted, and gives the queue pair of the old connection to a new one.
#[test]
fn a_stale_rep_is_rejected_and_the_old_connection_ended() {
    let mut world = World::new();
    let (old, _) = world.connected(50);
    world.restart(1, config(1));
    let active = world.connect(0, 51);
    world.run(Duration::from_millis(1));
    let request = only_request(&world.take(1));
    // The REJ is lost once, so that the REP comes again.
    world.drop_if = lose(0, Attribute::Rej, 1);
    world.accept(1, &request, 150).unwrap();
    world.run(round() * 2);
    let events = world.take(0);
    assert!(
        matches!(events[0], Event::Rejected(rejected) if rejected.id == active && rejected.reason.0 == 10)
    );
    assert_eq!(causes(&events), [Cause::Stale]);
    assert!(events.iter().any(|event| event.id() == old));
    let events = world.take(1);
    assert!(
        matches!(events[0], Event::Rejected(rejected) if rejected.id == request.id && rejected.reason.0 == 10)
    );
    world.settle();
    world.assert_clean();
}
