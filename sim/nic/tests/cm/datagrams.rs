//! Datagram services.

use super::*;

const UDP: ServiceId = ServiceId::new(PortSpace::Udp, 9000);

fn params(b: &Side) -> UdParams<'static> {
    UdParams { peer: b.address(), service: UDP, private_data: b"who", source_port: 4242 }
}

fn resolve(a: &Side, params: &UdParams<'_>, answer: impl FnOnce()) -> SidrReply {
    let resolving = a.nic.resolve_ud(params).unwrap();
    answer();
    let reply = resolving.wait(a.late()).expect("told").expect("answered");
    assert!(resolving.wait(None).is_none(), "nothing comes any more, so nobody waits for it");
    reply
}

#[test]
fn a_service_tells_its_queue_pair() {
    let [a, b] = pair();
    let listener = b.nic.listen_ud(UDP, 8).unwrap();
    assert_eq!(listener.service(), UDP);
    let reply = resolve(&a, &params(&b), || {
        let request = listener.wait(b.late()).unwrap();
        assert_eq!(request.peer(), a.address());
        assert_eq!(request.ip_header().unwrap().source_port, 4242);
        assert_eq!((request.private_data().len(), &request.private_data()[..4]), (180, &b"who\0"[..]));
        request.accept(0x4711, UD_QKEY, b"me").unwrap();
        assert!(request.accept(0x4711, UD_QKEY, b"me").is_err(), "it is answered");
    });
    assert_eq!((reply.status, reply.qpn.value(), reply.qkey), (SidrStatus::VALID, 0x4711, UD_QKEY));
    assert_eq!(&reply.private_data[..3], b"me\0");

    let reply = resolve(&a, &params(&b), || {
        listener.wait(b.late()).unwrap().reject(SidrStatus::NO_QP, b"later").unwrap();
    });
    assert_eq!((reply.status, &reply.private_data[..6]), (SidrStatus::NO_QP, &b"later\0"[..]));
    let reply = resolve(&a, &params(&b), || drop(listener.wait(b.late()).unwrap()));
    assert_eq!(reply.status, SidrStatus::REJECTED);
    drop(listener);
    let reply = resolve(&a, &params(&b), || {});
    assert_eq!(reply.status, SidrStatus::UNSUPPORTED);
    a.settles();
    b.settles();
}

/// A door for datagrams lets no connections in, and the other way round.
#[test]
fn services_are_of_one_kind() {
    let [a, b] = pair();
    let (udp, tcp) = (b.nic.listen_ud(UDP, 8).unwrap(), b.nic.listen(SERVICE, 8).unwrap());
    let qp = a.qp();
    let mut connecting = a.nic.connect(&qp, &ConnectParams { service: UDP, ..ask(&b) }).unwrap();
    assert_eq!(reason(connecting.wait(a.late()).unwrap().err().unwrap()), RejectReason::INVALID_SERVICE_ID);
    let reply = resolve(&a, &UdParams { service: SERVICE, ..params(&b) }, || {});
    assert_eq!(reply.status, SidrStatus::UNSUPPORTED);
    assert!(udp.poll().is_none() && tcp.poll().is_none());
    drop((udp, tcp));
    a.settles();
    b.settles();
}

#[test]
fn nobody_answers_and_questions_are_dropped() {
    let brief = CmConfig { max_retries: 1, response_timeout: 10, packet_lifetime: 10, ..config().cm };
    let [a, b] = pair_with(NicConfig { cm: brief, ..config() });
    let listener = b.nic.listen_ud(UDP, 8).unwrap();
    b.knobs.lose(|_| true);
    let resolving = a.nic.resolve_ud(&params(&b)).unwrap();
    assert!(matches!(resolving.wait(a.late()), Some(None)), "unreachable");
    let unwanted = a.nic.resolve_ud(&params(&b)).unwrap();
    drop(unwanted);
    let long = [0; 181];
    assert!(a.nic.resolve_ud(&UdParams { private_data: &long, ..params(&b) }).is_err());
    assert_eq!(a.nic.cm_usage().resolutions, 0);
    // A request that nobody takes is gone when its sender has given up.
    b.settles_but(Usage { listeners: 1, ..Usage::default() });
    assert!(listener.poll().is_none());
    drop(listener);
    a.settles();
    b.settles();
}
