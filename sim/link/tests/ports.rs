//! Source ports: queue pairs are spread over several, and each datagram leaves from its own.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyverbs_link::udp::{BindError, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use support::{Arrived, address, collect, push, push_from, skip, udp, ways};

fn transmit(link: &mut impl Link, batch: &mut TxBatch) {
    let now = link.waiter().now();
    link.transmit(batch, now).unwrap();
    assert!(batch.is_empty());
}

/// The ports of a link.
fn ports(link: &impl Link) -> Vec<u16> {
    (0..1000).map(|hash| link.source_port(hash)).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn datagrams_leave_from_their_ports_in_order_with_a_valid_icrc() {
    for io in ways() {
        let (mut a, mut b) = (udp(io), udp(io));
        let (from, to) = (a.info().address, b.info().address);
        let ports = ports(&a);
        assert_eq!(ports.len(), 8);
        let mut batch = TxBatch::with_capacity(1 << 20, 256);
        for mark in 0..160 {
            // Runs of five datagrams, whose sizes change within some of them.
            let port = ports[mark / 5 % ports.len()];
            push_from(&mut batch, (from, port), to, 0, 100 + mark % 7 / 6 * 50, mark as u8);
        }
        transmit(&mut a, &mut batch);
        let arrived = collect(&mut b, 160);
        assert_eq!(arrived.len(), 160, "{io:?}");
        for &port in &ports {
            let expected = (0..160).filter(|mark| ports[mark / 5 % ports.len()] == port).map(|m| m as u8);
            let seen = arrived.iter().filter(|d| d.source_port == port).map(Arrived::mark);
            assert!(seen.eq(expected), "{io:?} {port}");
        }
        assert!(arrived.iter().all(|d| d.ip_id.is_some() && d.source == from), "{io:?}");
        assert_eq!((a.counters().sent(), a.counters().lost()), (160, 0));
    }
}

#[test]
fn without_source_ports_everything_leaves_from_the_roce_port() {
    let options = UdpOptions { source_ports: 0, ..UdpOptions::default() };
    let mut link = UdpLink::bind(address(), &options).unwrap();
    assert_eq!(ports(&link), [4791]);
    let own = link.info().address;
    let mut batch = TxBatch::with_capacity(1 << 10, 4);
    push(&mut batch, own, own, 0, 64, 1);
    transmit(&mut link, &mut batch);
    let arrived = collect(&mut link, 1);
    assert_eq!((arrived[0].source_port, arrived[0].ip_id), (4791, Some(0)));
}

#[test]
fn more_source_ports_than_there_can_be_are_refused() {
    let options = UdpOptions { source_ports: 257, ..UdpOptions::default() };
    let error = UdpLink::bind(address(), &options).err().unwrap();
    assert!(matches!(error, BindError::SourcePorts { given: 257, max: 256 }), "{error}");
    let options = UdpOptions { source_ports: 256, ..options };
    assert!(ports(&UdpLink::bind(address(), &options).unwrap()).len() > 200);
}

#[test]
fn a_port_that_is_not_the_links_loses_its_datagrams_and_no_others() {
    for io in ways() {
        let (mut a, mut b) = (udp(io), udp(io));
        let (from, to) = (a.info().address, b.info().address);
        let mut batch = TxBatch::with_capacity(1 << 12, 16);
        for (mark, port) in [(0, 4791), (1, 77), (2, 77), (3, 4791), (4, a.source_port(9))] {
            push_from(&mut batch, (from, port), to, 0, 100, mark);
        }
        transmit(&mut a, &mut batch);
        assert_eq!(collect(&mut b, 3).iter().map(Arrived::mark).collect::<Vec<_>>(), [0, 3, 4], "{io:?}");
        assert_eq!(a.counters().lost(), 2);
    }
}

#[test]
fn closed_ports_of_peers_and_strangers_disturb_nothing() {
    for io in ways() {
        let (mut a, mut b) = (udp(io), udp(io));
        let (from, to) = (a.info().address, b.info().address);
        let nobody = address();
        let port = a.source_port(1);
        let mut batch = TxBatch::with_capacity(1 << 16, 256);
        for round in 0..50 {
            // The host answers each of these with "port unreachable".
            push_from(&mut batch, (from, port), nobody, 0, 64, 0);
            push_from(&mut batch, (from, port), to, 0, 64, round);
            transmit(&mut a, &mut batch);
        }
        let arrived = collect(&mut b, 50);
        assert!(arrived.iter().map(Arrived::mark).eq(0..50), "{io:?}");
        assert_eq!((a.counters().sent(), a.counters().lost()), (100, 0), "{io:?}");
        // What is sent to a source port is nobody's.
        let stranger = UdpSocket::bind((to, 0)).unwrap();
        stranger.send_to(b"hello", (from, port)).unwrap();
        let mut nothing = RxBatch::with_capacity(1 << 18, 256);
        let waiter = a.waiter();
        let start = waiter.now();
        waiter.wait(Some(start + Duration::from_millis(20)));
        a.receive(&mut nothing, waiter.now()).unwrap();
        assert_eq!(nothing.entries(), []);
    }
}

#[test]
fn ports_are_spread_for_ipv6_too() {
    let loopback: IpAddr = "::1".parse().unwrap();
    let mut link = match UdpLink::bind(loopback, &UdpOptions::default()) {
        Ok(link) => link,
        Err(error @ (BindError::InUse { .. } | BindError::NotLocal { .. })) => {
            return skip(&format!("skipped: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    let mut batch = TxBatch::with_capacity(1 << 18, 64);
    let ports = ports(&link);
    for (mark, &port) in ports.iter().enumerate() {
        for _ in 0..3 {
            push_from(&mut batch, (loopback, port), loopback, 1, 300, mark as u8);
        }
    }
    transmit(&mut link, &mut batch);
    let arrived = collect(&mut link, 3 * ports.len());
    for (i, datagram) in arrived.iter().enumerate() {
        assert_eq!((datagram.source_port, datagram.ip_id, datagram.ecn), (ports[i / 3], Some(0), 1));
    }
}
