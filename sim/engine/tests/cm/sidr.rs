//! Which queue pair takes a service's datagrams.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, IpHeader, PortSpace, ServiceId, SidrStatus};

const UDP: ServiceId = ServiceId::new(PortSpace::Udp, 7471);

fn world() -> World {
    let mut world = World::new();
    world.call(1, |cm, now, out| cm.listen(now, UDP, 10, out)).unwrap();
    world
}

fn ask(world: &mut World, service_id: ServiceId) -> Id {
    let (source, destination) = (world.sides[0].address, world.sides[1].address);
    let ip_header = Some(IpHeader { source, destination, source_port: 9 });
    let ask = SidrAsk { destination, service_id, pkey: 0xffff, ip_header };
    world.call(0, |cm, now, out| cm.sidr_request(now, &ask, b"who?", out)).unwrap()
}

const ANSWER: SidrAnswer<'_> =
    SidrAnswer { status: SidrStatus::VALID, qpn: Qpn::new(77), qkey: 0x0123_4567, info: b"info" };

/// One question, one answer, whatever is lost or repeated.
#[test]
fn a_question_is_answered_once() {
    for (lost, losses) in [(Attribute::SidrReq, 2), (Attribute::SidrRep, 2), (Attribute::SidrRep, 0)] {
        let mut world = world();
        world.faults.duplicate = 500;
        world.drop_if = lose(usize::from(lost == Attribute::SidrRep), lost, losses);
        let id = ask(&mut world, UDP);
        world.run(round() * 3);
        let [Event::SidrRequest(request)] = world.take(1)[..] else { panic!("not asked once") };
        assert_eq!((request.service_id, request.source, request.pkey), (UDP, world.sides[0].address, 0xffff));
        let (header, user) = request.ip_header().unwrap();
        assert_eq!((header.source_port, user.len(), &user[..5]), (9, 180, &b"who?\0"[..]));
        world.call(1, |cm, now, out| cm.sidr_reply(now, request.id, &ANSWER, b"me", out)).unwrap();
        let again = world.call(1, |cm, now, out| cm.sidr_reply(now, request.id, &ANSWER, b"me", out));
        assert_eq!(again, Err(Error::UnknownId));
        world.settle();
        let [Event::SidrReply(reply)] = world.take(0)[..] else { panic!("not answered once") };
        assert_eq!((reply.id, reply.status, reply.qpn), (id, SidrStatus::VALID, Qpn::new(77)));
        assert_eq!((reply.qkey, reply.info_len, &reply.info[..5]), (0x0123_4567, 4, &b"info\0"[..]));
        assert_eq!((reply.private_data.len(), &reply.private_data[..3]), (136, &b"me\0"[..]));
        assert!(world.take(1).is_empty(), "asked twice");
        world.assert_clean();
    }
}

#[test]
fn nobody_listens_or_answers() {
    let mut world = world();
    let id = ask(&mut world, ServiceId(5));
    world.settle();
    let [Event::SidrReply(reply)] = world.take(0)[..] else { panic!("not answered") };
    assert_eq!((reply.id, reply.status), (id, SidrStatus::UNSUPPORTED));

    let id = ask(&mut world, ServiceId(6));
    world.run(Duration::from_millis(500));
    world.call(1, |cm, now, out| cm.listen(now, ServiceId(6), 1, out)).unwrap();
    assert!(matches!(world.take(1)[..], [Event::SidrRequest(_)]));
    // Its consumer does not answer, and both sides end.
    world.drop_if = lose(0, Attribute::SidrReq, usize::MAX);
    world.settle();
    assert_eq!(world.take(0), [Event::Unreachable { id }]);
    assert!(matches!(world.take(1)[..], [Event::Unreachable { .. }]));
    assert_eq!(world.count(0, Attribute::SidrReq), 2 + 15);
    world.assert_clean();
}

#[test]
fn questions_may_be_abandoned() {
    let mut world = world();
    let id = ask(&mut world, UDP);
    world.abandon(0, id);
    world.run(Duration::from_millis(1));
    let [Event::SidrRequest(request)] = world.take(1)[..] else { panic!("not asked") };
    world.abandon(1, request.id);
    world.settle();
    assert!(world.take(0).is_empty() && world.take(1).is_empty());
    assert_eq!(world.sides[0].cm.counters().unknown_id, 1);
    world.assert_clean();

    ask(&mut world, UDP);
    world.run(Duration::from_millis(1));
    let [Event::SidrRequest(request)] = world.take(1)[..] else { panic!("not asked") };
    world.abandon(1, request.id);
    world.settle();
    assert!(matches!(world.take(0)[..], [Event::SidrReply(reply)] if reply.status == SidrStatus::REJECTED));
    world.assert_clean();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut world = world();
    let destination = world.sides[1].address;
    let ask = SidrAsk { destination, service_id: UDP, pkey: 0xffff, ip_header: None };
    let long = world.call(0, |cm, now, out| cm.sidr_request(now, &ask, &[0; 217], out));
    assert_eq!(long, Err(Error::PrivateDataTooLong { max: 216 }));
    let own = world.call(0, |cm, now, out| cm.sidr_request(now, &ask, &[1; 216], out)).unwrap();
    world.run(Duration::from_millis(1));
    let [Event::SidrRequest(request)] = world.take(1)[..] else { panic!("not asked") };
    assert!(request.ip_header().is_none() && *request.private_data == [1; 216]);
    let mut reply = |side: usize, id, answer: SidrAnswer<'_>, data: &[u8]| {
        world.call(side, |cm, now, out| cm.sidr_reply(now, id, &answer, data, out))
    };
    let long = reply(1, request.id, SidrAnswer { info: &[0; 73], ..ANSWER }, b"");
    assert_eq!(long, Err(Error::InfoTooLong { max: 72 }));
    assert_eq!(reply(1, request.id, ANSWER, &[0; 137]), Err(Error::PrivateDataTooLong { max: 136 }));
    assert_eq!(reply(0, own, ANSWER, b""), Err(Error::UnknownId));
    assert_eq!(reply(1, request.id, ANSWER, &[0; 136]), Ok(()));
}
