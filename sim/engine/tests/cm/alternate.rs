//! Alternate paths are refused in so many words.

use std::net::IpAddr;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{ApStatus, Apr, Attribute, Lap, Message, Path, Repr};

fn lap(from: Id, to: Id, remote_qpn: u32) -> Repr {
    let lap = Lap {
        local_comm_id: from.comm_id(),
        remote_comm_id: to.comm_id(),
        remote_qpn: Qpn::new(remote_qpn),
        remote_response_timeout: 20,
        path: Path::NONE,
        private_data: [0; 168],
    };
    Repr { transaction_id: 77, status: 0, message: Message::Lap(lap) }
}

/// Delivers to side 1, and gives the APRs that it sends.
fn deliver(world: &mut World, source: IpAddr, mad: &Repr) -> Vec<Apr> {
    let before = world.sent.len();
    world.call(1, |cm, now, out| cm.on_mad(now, source, &reread(mad), out));
    let apr = |(_, _, mad): &(_, _, Repr)| match mad.message {
        Message::Apr(apr) => {
            assert_eq!(mad.transaction_id, 77);
            apr
        }
        other => panic!("not an APR: {other}"),
    };
    world.sent[before..].iter().map(apr).collect()
}

#[test]
fn a_connection_has_no_alternate_path_and_says_so() {
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    let source = world.sides[0].address;
    // Again, since the answer may be lost.
    for times in 1..=2 {
        let answers = deliver(&mut world, source, &lap(active, passive, 150));
        let [apr] = answers[..] else { panic!("{answers:?}") };
        assert_eq!((apr.local_comm_id, apr.remote_comm_id), (passive.comm_id(), active.comm_id()));
        assert_eq!(apr.status, ApStatus::UNSUPPORTED);
        assert_eq!(world.sides[1].cm.counters().unacceptable, times);
    }
    assert_eq!(world.sides[1].cm.counters().received.get(Attribute::Lap), 2);
    assert_eq!(world.sides[1].cm.counters().sent.get(Attribute::Apr), 2);
    assert_eq!(world.state(1, passive), Some(State::Established));
    // The answer is one to a question that the other side never asked.
    world.settle();
    assert_eq!(world.sides[0].cm.counters().out_of_state, 2);
    assert!(world.take(0).is_empty() && world.take(1).is_empty());
    world.assert_counted();
}

#[test]
fn the_peer_may_ask_before_its_rtu_has_arrived() {
    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    let source = world.sides[0].address;
    assert_eq!(deliver(&mut world, source, &lap(active, passive, 150)).len(), 1);
    assert_eq!(world.state(1, passive), Some(State::RepSent));
}

#[test]
fn a_connection_that_nobody_knows_has_an_answer_of_its_own() {
    let mut world = World::with(
        [config(0), Config { limits: Limits { rate: 1, burst: 2, ..Limits::default() }, ..config(1) }],
        1,
    );
    let (active, passive) = world.connected(50);
    let source = world.sides[0].address;
    let mut unknown = lap(active, passive, 150);
    let Message::Lap(lap) = &mut unknown.message else { panic!("not a LAP") };
    lap.remote_comm_id ^= 1;
    let answers = deliver(&mut world, source, &unknown);
    assert_eq!(answers[0].status, ApStatus::INVALID_COMM_ID);
    assert_eq!(world.sides[1].cm.counters().unknown_id, 1);
    // Strangers share a bucket.
    assert!(deliver(&mut world, source, &unknown).is_empty());
    assert_eq!(world.sides[1].cm.counters().throttled, 1);
}

#[test]
fn only_the_peer_of_a_connection_that_stands_is_answered() {
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    let source = world.sides[0].address;
    let stranger = [192, 0, 2, 9].into();
    assert!(deliver(&mut world, stranger, &lap(active, passive, 150)).is_empty());
    assert_eq!(world.sides[1].cm.counters().wrong_source, 1);
    assert!(deliver(&mut world, source, &lap(active, passive, 151)).is_empty());
    assert_eq!(world.sides[1].cm.counters().unknown_id, 1);
    world.disconnect(1, passive).unwrap();
    assert!(deliver(&mut world, source, &lap(active, passive, 150)).is_empty());
    assert_eq!(world.sides[1].cm.counters().out_of_state, 1);
}
