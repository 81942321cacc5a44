//! Whatever is dropped, and whenever: nothing stays behind.

use super::*;
use anyverbs_nic::link::NumberPrefix;
use anyverbs_wire::mad::{Attribute, Message};

/// Brings a connection to each of its states, and drops both its ends there.
#[test]
fn a_connection_can_be_dropped_in_every_state() {
    for stop in 0..7 {
        let [a, b] = pair();
        let listener = b.nic.listen(SERVICE, 8).unwrap();
        let (qa, qb) = (a.qp(), b.qp());
        if stop == 4 {
            // It is accepted and never stands.
            a.knobs.lose(|datagram| tap::is_mad(datagram, &[Attribute::Rtu]));
        }
        let mut connecting = a.nic.connect(&qa, &ask(&b)).unwrap();
        'stop: {
            if stop == 0 {
                break 'stop;
            }
            let mut request = listener.wait(b.late()).unwrap();
            if stop == 1 {
                drop(connecting);
                let late = b.late().unwrap();
                while !request.is_canceled() {
                    assert!(b.nic.waiter().now() < late, "the asker's word arrives");
                    b.nic.progress();
                }
                assert!(request.accept(&qb, &AcceptParams::default()).is_err());
                assert_eq!(qb.state(), QpState::Init, "nothing has happened to it");
                break 'stop;
            }
            let passive = request.accept(&qb, &AcceptParams::default()).unwrap();
            if stop == 2 {
                drop(passive);
                assert_eq!(qb.state(), QpState::Error);
                break 'stop;
            }
            let active = connecting.wait(a.late()).unwrap().unwrap();
            if stop == 3 || stop == 4 {
                drop(passive);
                break 'stop;
            }
            assert!(passive.wait(b.late()).is_some());
            if stop == 5 {
                drop(active);
                assert_eq!(qa.state(), QpState::Error);
                break 'stop;
            }
            active.disconnect(b"").unwrap();
        }
        a.knobs.lose_nothing();
        drop(listener);
        a.settles();
        b.settles();
        // The numbers are free again.
        for (side, qp) in [(&a, &qa), (&b, &qb)] {
            qp.to_reset();
            qp.to_init(ALL).unwrap();
            drop(side.nic.connect(qp, &ConnectParams::new(side.address(), SERVICE)).unwrap());
        }
    }
}

/// The queue pair may go before the connection does.
#[test]
fn a_queue_pair_can_be_dropped_in_every_state() {
    for stop in 0..4 {
        let [a, b] = pair();
        let listener = b.nic.listen(SERVICE, 8).unwrap();
        let (qa, qb) = (a.qp(), b.qp());
        let mut connecting = a.nic.connect(&qa, &ask(&b)).unwrap();
        if stop == 0 {
            drop(qa);
            let mut request = listener.wait(b.late()).unwrap();
            let passive = request.accept(&qb, &AcceptParams::default()).unwrap();
            let error = connecting.wait(a.late()).unwrap().err().unwrap();
            assert!(matches!(error, ConnectError::NotReady(NicError::State { .. })), "{error}");
            let event = passive.wait(b.late());
            assert!(matches!(event, Some(ConnectionEvent::Failed(ConnectError::Rejected(_)))), "{event:?}");
            assert_eq!(qb.state(), QpState::Error);
        } else {
            let mut request = listener.wait(b.late()).unwrap();
            let passive = request.accept(&qb, &AcceptParams::default()).unwrap();
            if stop == 1 {
                // Which of the two comes first is not ours to say.
                drop(qb);
                let first = passive.wait(b.late());
                let expected = matches!(first, Some(ConnectionEvent::Failed(ConnectError::NotReady(_))))
                    || matches!(first, Some(ConnectionEvent::Established { .. }));
                assert!(expected, "{first:?}");
            } else {
                let active = connecting.wait(a.late()).unwrap().unwrap();
                drop(if stop == 2 { qa } else { qb });
                active.disconnect(b"").unwrap();
            }
        }
        drop((listener, connecting));
        a.settles();
        b.settles();
    }
}

/// Late packets of a connection that is over would otherwise be taken for the next one's.
#[test]
fn numbers_in_timewait_are_not_given_out() {
    // Few numbers, so that one comes again soon; and a timewait that is longer than the test.
    let prefix = NumberPrefix { bits: 16, value: 0xabcd };
    let long = CmConfig { packet_lifetime: 23, response_timeout: 8, ..config().cm };
    let config = NicConfig { cm: long, ..config() };
    let [a, b] = tap::pair_with_prefix(Some(prefix)).map(|link| Side::open(link, config));
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let held = qa.qpn();
    let [active, _passive] = connect(&a, &b, &listener, [&qa, &qb]);
    drop((qa, active));
    let late = a.late().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 253 {
        assert!(a.nic.waiter().now() < late, "{} numbers", seen.len());
        seen.insert(a.qp().qpn());
    }
    assert!(!seen.contains(&held));
    assert!(seen.iter().all(|qpn| prefix.is_of(*qpn, 24)));
    assert_eq!(a.nic.attributes().max_qp, 128);
}

/// Of several processes at one address each has its own numbers, by which MADs find it.
#[test]
fn communication_ids_and_request_ids_have_the_prefix() {
    let prefix = NumberPrefix { bits: 12, value: 0x123 };
    let [a, b] = tap::pair_with_prefix(Some(prefix)).map(|link| Side::open(link, config()));
    let listener = b.nic.listen(SERVICE, 64).unwrap();
    let qps: Vec<_> = (0..20).map(|_| (a.qp(), b.qp())).collect();
    let connections: Vec<_> = qps.iter().map(|(qa, qb)| connect(&a, &b, &listener, [qa, qb])).collect();
    let ud = UdParams { peer: b.address(), service: SERVICE, private_data: b"", source_port: 0 };
    a.nic.resolve_ud(&ud).unwrap().wait(a.late()).unwrap();
    let mut checked = [0; 3];
    for mad in a.knobs.mads().iter().chain(&b.knobs.mads()) {
        let (kind, id) = match &mad.message {
            Message::Req(req) => (0, req.local_comm_id),
            Message::Rep(rep) => (1, rep.local_comm_id),
            Message::SidrReq(request) => (2, request.request_id),
            _ => continue,
        };
        assert!(prefix.is_of(id, 32), "{id:#x} in {mad:?}");
        checked[kind] += 1;
    }
    assert!(checked[0] >= 20 && checked[1] >= 20 && checked[2] >= 1, "{checked:?}");
    assert!(qps.iter().all(|(qp, _)| prefix.is_of(qp.qpn(), 24)));
    drop(connections);
}

/// What a program leaves behind when it goes is told to its peer.
#[test]
fn a_device_that_closes_disconnects() {
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    let [active, passive] = connect(&a, &b, &listener, [&qa, &qb]);
    drop((active, qa, a));
    let event = passive.wait(b.late());
    assert!(matches!(event, Some(ConnectionEvent::Disconnected { cause: Cause::Peer, .. })), "{event:?}");
}

/// Wakers are for those who neither poll nor sleep.
#[test]
fn a_waker_is_called_for_what_comes_and_for_what_has_come() {
    use std::sync::mpsc;
    use std::task::{Wake, Waker};
    struct Bell(mpsc::Sender<&'static str>, &'static str);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(self.1);
        }
    }
    let (sender, heard) = mpsc::channel();
    let bell = |name| Waker::from(Arc::new(Bell(sender.clone(), name)));
    let rings = |name| loop {
        let rung = heard.recv_timeout(Duration::from_secs(30)).expect("the bell rings");
        if rung == name {
            break;
        }
    };
    let [a, b] = pair();
    let listener = b.nic.listen(SERVICE, 8).unwrap();
    listener.set_waker(&bell("listener"));
    let (qa, qb) = (a.qp(), b.qp());
    let mut connecting = a.nic.connect(&qa, &ask(&b)).unwrap();
    connecting.set_waker(&bell("connecting"));
    rings("listener");
    let passive = listener.poll().unwrap().accept(&qb, &AcceptParams::default()).unwrap();
    passive.set_waker(&bell("passive"));
    rings("connecting");
    let active = connecting.poll().unwrap().unwrap();
    rings("passive");
    active.set_waker(&bell("active"));
    passive.disconnect(b"").unwrap();
    rings("active");
    active.set_waker(&bell("what has come"));
    rings("what has come");
}
