//! A MAD that is not from the peer, or not of the exchange, changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, Message, Repr};

const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

/// A message for `to` that the wire lost, and the state that it finds there.
struct Case {
    world: World,
    to: usize,
    id: Id,
    mad: Repr,
}

/// Every message that names a connection, on its way to the state that waits for it.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |mut world: World, to: usize, id: Id, attribute| {
        let mad = last(&world, attribute);
        world.drop_if = None;
        world.take(0);
        world.take(1);
        cases.push(Case { world, to, id, mad });
    };
    let holding =
        |from: usize| move |world: &mut World| world.drop_if = Some(Box::new(move |side, _| side == from));

    let mut world = World::new();
    let (active, request) = world.ask(50);
    holding(1)(&mut world);
    world.accept(1, &request, 60).unwrap();
    add(world, 0, active, Attribute::Rep);

    let mut world = World::new();
    let (active, _) = world.ask(50);
    holding(1)(&mut world);
    world.run(seconds(3));
    add(world, 0, active, Attribute::Mra);

    let mut world = World::new();
    let (active, request) = world.ask(50);
    holding(1)(&mut world);
    world.abandon(1, request.id);
    add(world, 0, active, Attribute::Rej);

    let mut world = World::new();
    let (active, passive) = world.ask_and_accept(50);
    holding(0)(&mut world);
    world.establish(0, active).unwrap();
    add(world, 1, passive, Attribute::Rtu);

    let mut world = World::new();
    let (active, passive) = world.connected(50);
    holding(0)(&mut world);
    world.disconnect(0, active).unwrap();
    add(world, 1, passive, Attribute::Dreq);

    let mut world = World::new();
    let (active, passive) = world.connected(50);
    holding(1)(&mut world);
    world.disconnect(0, active).unwrap();
    world.run(Duration::from_millis(1));
    assert_eq!(world.state(1, passive), Some(State::TimeWait));
    add(world, 0, active, Attribute::Drep);
    cases
}

/// Delivers, and says whether anything changed.
fn deliver(case: &mut Case, source: IpAddr, mad: &Repr) -> bool {
    let before = (case.world.state(case.to, case.id), case.world.sides[case.to].cm.usage());
    case.world.call(case.to, |cm, now, out| cm.on_mad(now, source, mad, out));
    let after = (case.world.state(case.to, case.id), case.world.sides[case.to].cm.usage());
    before != after || !case.world.take(case.to).is_empty()
}

fn with_ids(mad: &Repr, ours: Option<u32>, theirs: Option<u32>) -> Repr {
    altered(mad, |message| {
        let (local, remote) = match message {
            Message::Rep(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            Message::Mra(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            Message::Rej(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            Message::Rtu(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            Message::Dreq(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            Message::Drep(m) => (&mut m.local_comm_id, &mut m.remote_comm_id),
            _ => panic!("names no connection"),
        };
        *remote = ours.unwrap_or(*remote);
        *local = theirs.unwrap_or(*local);
    })
}

#[test]
fn only_the_peer_is_heard() {
    for mut case in cases() {
        let mad = case.mad;
        assert!(!deliver(&mut case, STRANGER, &mad), "{mad}");
        let counters = case.world.sides[case.to].cm.counters();
        assert_eq!(counters.wrong_source, 1, "{mad}");
    }
}

#[test]
fn only_the_transaction_is_heard() {
    for mut case in cases() {
        let mut mad = case.mad;
        mad.transaction_id ^= 1 << 40;
        let source = case.world.sides[1 - case.to].address;
        let changed = deliver(&mut case, source, &mad);
        let counters = case.world.sides[case.to].cm.counters();
        // A DREQ begins a transaction.
        let begins = mad.message.attribute() == Attribute::Dreq;
        assert_eq!((changed, counters.wrong_transaction), (begins, u64::from(!begins)), "{mad}");
    }
}

#[test]
fn only_both_ids_are_heard() {
    for mut case in cases() {
        let source = case.world.sides[1 - case.to].address;
        let wrong = with_ids(&case.mad, Some(case.id.comm_id() ^ 1), None);
        assert!(!deliver(&mut case, source, &wrong), "{wrong}");
        let wrong = with_ids(&case.mad, None, Some(0x5555_5555));
        // Before the REP the peer's id is not known.
        let first = matches!(case.mad.message.attribute(), Attribute::Rep | Attribute::Mra | Attribute::Rej);
        assert_eq!(deliver(&mut case, source, &wrong), first, "{wrong}");
        let counters = case.world.sides[case.to].cm.counters();
        assert_eq!(counters.unknown_id, 2 - u64::from(first), "{wrong}");
    }
}

#[test]
fn the_status_has_to_be_zero() {
    for mut case in cases() {
        let mad = Repr { status: 1, ..case.mad };
        let source = case.world.sides[1 - case.to].address;
        assert!(!deliver(&mut case, source, &mad));
        assert_eq!(case.world.sides[case.to].cm.counters().invalid, 1);
    }
}

#[test]
fn a_dreq_has_to_name_the_queue_pair() {
    let mut case = cases().remove(4);
    let source = case.world.sides[0].address;
    let mad = altered(&case.mad, |message| {
        let Message::Dreq(dreq) = message else { panic!("not a DREQ") };
        dreq.remote_qpn = Qpn::new(151);
    });
    assert!(!deliver(&mut case, source, &mad));
    let mad = case.mad;
    assert!(deliver(&mut case, source, &mad));
}

/// The same, untouched, does what it is for: the cases above can fail.
#[test]
fn the_genuine_message_is_heard() {
    for mut case in cases() {
        let source = case.world.sides[1 - case.to].address;
        // An address may come in IPv6's clothes.
        let IpAddr::V4(v4) = source else { panic!("IPv4 expected") };
        let mad = reread(&case.mad);
        assert!(deliver(&mut case, v4.to_ipv6_mapped().into(), &mad), "{mad}");
        case.world.assert_counted();
    }
}

/// Another address with the GUID and queue pair of a connection does not end it.
#[test]
fn a_stranger_does_not_make_a_connection_stale() {
    let mut world = World::new();
    let (_, passive) = world.connected(50);
    let req = altered(&last(&world, Attribute::Req), |message| {
        let Message::Req(req) = message else { panic!("not a REQ") };
        req.local_comm_id ^= 1;
    });
    world.call(1, |cm, now, out| cm.on_mad(now, STRANGER, &req, out));
    assert_eq!(world.state(1, passive), Some(State::Established));
    assert!(matches!(world.take(1)[..], [Event::ConnectRequest(_)]));
}

#[test]
fn what_is_no_mad_is_counted() {
    let mut world = World::new();
    for len in [0, 1, 24, 255, 256, 257, 4096] {
        world.call(0, |cm, now, out| cm.on_datagram(now, STRANGER, &vec![0; len], out));
    }
    assert_eq!(world.sides[0].cm.counters().malformed, 7);
    assert_eq!(world.sides[0].cm.counters().received.total(), 0);
}

#[test]
fn reserved_queue_pairs_are_not_connected() {
    for qpn in [0, 1, 0xff_ffff] {
        let mut world = World::new();
        world.drop_if = lose(0, Attribute::Req, 1);
        world.connect(0, 50);
        let req = altered(&last(&world, Attribute::Req), |message| {
            let Message::Req(req) = message else { panic!("not a REQ") };
            req.qpn = Qpn::new(qpn);
        });
        let source = world.sides[0].address;
        world.call(1, |cm, now, out| cm.on_mad(now, source, &req, out));
        assert!(world.take(1).is_empty());
        assert_eq!(world.sides[1].cm.counters().invalid, 1);

        let mut case = cases().remove(0);
        let source = case.world.sides[1].address;
        let rep = altered(&case.mad, |message| {
            let Message::Rep(rep) = message else { panic!("not a REP") };
            rep.qpn = Qpn::new(qpn);
        });
        assert!(!deliver(&mut case, source, &rep));
    }
}
