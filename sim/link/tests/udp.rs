//! Two UDP links on this host exchange real datagrams.

mod support;

use std::net::UdpSocket;
use std::thread;

use anyverbs_link::udp::{BindError, Io, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, LinkInfo, RxBatch, TxBatch};
use support::{Arrived, address, collect, collect_with, push, udp, ways};

fn pair(io: Io) -> (UdpLink, UdpLink) {
    (udp(io), udp(io))
}

fn addresses(a: &impl Link, b: &impl Link) -> (std::net::IpAddr, std::net::IpAddr) {
    (a.info().address, b.info().address)
}

fn transmit(link: &mut impl Link, batch: &mut TxBatch) {
    let now = link.waiter().now();
    link.transmit(batch, now).unwrap();
}

#[test]
fn mixed_sizes_arrive_in_order_with_a_valid_icrc() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        let lens =
            [16, 16, 16, 12, 300, 300, 299, 4136, 4136, 4136, 4136, 20, 20, 60_000, 60_000, 65_507, 16];
        let mut batch = TxBatch::with_capacity(1 << 20, 64);
        for (mark, &len) in lens.iter().enumerate() {
            push(&mut batch, from, to, 0, len, mark as u8);
        }
        transmit(&mut a, &mut batch);
        assert!(batch.is_empty());
        let arrived = collect(&mut b, lens.len());
        let seen: Vec<_> = arrived.iter().map(|d| (d.mark() as usize, d.bytes.len())).collect();
        assert_eq!(seen, lens.iter().copied().enumerate().collect::<Vec<_>>(), "{io:?}");
        for datagram in &arrived {
            assert!(datagram.ip_id.is_some(), "{io:?}: ICRC of datagram {}", datagram.mark());
            assert_eq!((datagram.source, datagram.ecn), (from, 0));
        }
    }
}

#[test]
fn segments_are_stamped_with_their_place_in_the_send() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        let mut batch = TxBatch::with_capacity(1 << 20, 256);
        for mark in 0..200 {
            push(&mut batch, from, to, 0, 64, mark);
        }
        transmit(&mut a, &mut batch);
        let ids: Vec<_> = collect(&mut b, 200).iter().map(|d| d.ip_id).collect();
        // Sends of 64, 64, 64 and 8 datagrams.
        let expected: Vec<_> = (0..200).map(|i| Some(i % 64)).collect();
        assert_eq!(ids, expected, "{io:?}");
        assert_eq!((a.counters().sent(), a.counters().sends()), (200, 4));
        assert_eq!(b.counters().received(), 200);
    }
}

#[test]
fn ecn_marks_travel() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        let mut batch = TxBatch::with_capacity(1 << 16, 64);
        let marks = [0, 1, 2, 2, 2, 3, 0];
        for (i, &ecn) in marks.iter().enumerate() {
            push(&mut batch, from, to, ecn, 100, i as u8);
        }
        transmit(&mut a, &mut batch);
        let seen: Vec<_> = collect(&mut b, marks.len()).iter().map(|d| d.ecn).collect();
        assert_eq!(seen, marks, "{io:?}");
    }
}

#[test]
fn a_batch_too_small_for_what_came_together_loses_nothing() {
    for io in ways() {
        for (bytes, datagrams) in [(1 << 19, 3), (5_000, 256), (100, 1), (70_000, 130)] {
            let (mut a, mut b) = pair(io);
            let (from, to) = addresses(&a, &b);
            let mut batch = TxBatch::with_capacity(1 << 18, 256);
            for mark in 0..150 {
                push(&mut batch, from, to, 0, 100, mark);
            }
            transmit(&mut a, &mut batch);
            let arrived = collect_with(&mut b, 150, &mut RxBatch::with_capacity(bytes, datagrams));
            assert!(arrived.iter().map(Arrived::mark).eq(0..150), "{io:?} {bytes} {datagrams}");
            assert!(arrived.iter().all(|d| d.ip_id.is_some()));
        }
    }
}

#[test]
fn a_receive_adds_behind_what_the_batch_holds() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        let mut batch = TxBatch::with_capacity(1 << 16, 8);
        let mut arrived = RxBatch::with_capacity(1 << 18, 256);
        for mark in 0..3 {
            push(&mut batch, from, to, 0, 1000, mark);
            transmit(&mut a, &mut batch);
            let waiter = b.waiter();
            while arrived.entries().len() <= usize::from(mark) {
                b.receive(&mut arrived, waiter.now()).unwrap();
            }
        }
        let marks: Vec<_> = arrived.entries().iter().map(|e| arrived.bytes()[e.start]).collect();
        assert_eq!(marks, [0, 1, 2]);
    }
}

#[test]
fn a_datagram_without_a_way_is_lost_and_the_others_are_not() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        let mut batch = TxBatch::with_capacity(1 << 18, 64);
        let nowhere = "2001:db8::1".parse().unwrap();
        push(&mut batch, from, to, 0, 100, 0);
        push(&mut batch, from, nowhere, 0, 100, 1);
        push(&mut batch, from, nowhere, 0, 100, 2);
        push(&mut batch, from, to, 0, 100, 3);
        push(&mut batch, from, "240.0.0.1".parse().unwrap(), 0, 100, 4);
        push(&mut batch, from, to, 0, 100, 5);
        push(&mut batch, from, to, 0, 100, 6);
        // Nobody listens there: the host says so, and that breaks nothing either.
        push(&mut batch, from, address(), 0, 100, 7);
        push(&mut batch, from, to, 0, 65_508, 8);
        push(&mut batch, from, to, 0, 100, 9);
        transmit(&mut a, &mut batch);
        assert!(batch.is_empty());
        let marks: Vec<_> = collect(&mut b, 5).iter().map(Arrived::mark).collect();
        assert_eq!(marks, [0, 3, 5, 6, 9], "{io:?}");
        assert_eq!((a.counters().lost(), a.counters().too_large()), (3, 1), "{io:?}");
        // And the next batch still leaves in one piece.
        for mark in 0..10 {
            push(&mut batch, from, to, 0, 100, mark);
        }
        let sends = a.counters().sends();
        transmit(&mut a, &mut batch);
        assert_eq!(a.counters().sends() - sends, 1, "{io:?}");
        let mut nothing = RxBatch::with_capacity(1 << 18, 256);
        let now = a.waiter().now();
        a.receive(&mut nothing, now).unwrap();
        assert_eq!(nothing.entries(), []);
    }
}

#[test]
fn ipv6_has_no_identification_to_correct() {
    let loopback = "::1".parse().unwrap();
    let mut link = match UdpLink::bind(loopback, &UdpOptions { join: false, ..UdpOptions::default() }) {
        Ok(link) => link,
        Err(error @ (BindError::InUse { .. } | BindError::NotLocal { .. })) => {
            return eprintln!("not tested: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!(link.info().max_datagram, 65_536 - 48);
    let lens = [100, 100, 100, 60, 4136, 4136, 65_488];
    let mut batch = TxBatch::with_capacity(1 << 18, 64);
    for (mark, &len) in lens.iter().enumerate() {
        push(&mut batch, loopback, loopback, 2, len, mark as u8);
    }
    transmit(&mut link, &mut batch);
    let arrived = collect(&mut link, lens.len());
    assert!(arrived.iter().map(|d| d.bytes.len()).eq(lens));
    assert!(arrived.iter().all(|d| d.ip_id == Some(0) && d.ecn == 2 && d.source == loopback));
}

#[test]
fn a_link_may_change_hands_between_calls() {
    for io in ways() {
        let (mut a, mut b) = pair(io);
        let (from, to) = addresses(&a, &b);
        for mark in 0..20 {
            (a, b) = thread::spawn(move || {
                let mut batch = TxBatch::with_capacity(1 << 16, 64);
                push(&mut batch, from, to, 0, 64, mark);
                push(&mut batch, from, to, 0, 128, mark);
                transmit(&mut a, &mut batch);
                let arrived = collect(&mut b, 2);
                assert!(arrived.len() == 2 && arrived.iter().all(|d| d.mark() == mark && d.ip_id.is_some()));
                (a, b)
            })
            .join()
            .unwrap();
        }
    }
}

#[test]
fn an_address_that_is_taken_says_by_whom_and_what_to_do() {
    let address = address();
    // A program that knows nothing of us, and a link that does not share.
    let stranger = UdpSocket::bind((address, 4791)).unwrap();
    let refused = |options: &UdpOptions| {
        let error = UdpLink::bind(address, options).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, BindError::InUse { address: a, .. } if a == address), "{text}");
        let us = format!("process {}", std::process::id());
        for part in ["4791", &address.to_string(), "another address", "127.", &us] {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    };
    let alone = UdpOptions { share: false, ..UdpOptions::default() };
    let first = UdpOptions { join: false, ..UdpOptions::default() };
    let all = [&alone, &first, &UdpOptions::default()];
    all.iter().for_each(|options| refused(options));
    drop(stranger);
    let link = UdpLink::bind(address, &alone).unwrap();
    assert_eq!(link.info().prefix, None);
    all.iter().for_each(|options| refused(options));
    drop(link);
    // One that shares is in the way of those only that do not join.
    let link = UdpLink::bind(address, &UdpOptions::default()).unwrap();
    [&alone, &first].iter().for_each(|options| refused(options));
    drop(link);
    UdpLink::bind(address, &alone).unwrap();
}

#[test]
fn what_a_link_says_of_itself() {
    let link = udp(Io::Sockets);
    let LinkInfo { name, detail, max_datagram, reliable, .. } = link.info();
    assert_eq!((*name, *max_datagram, *reliable), ("udp", 65_507, false));
    assert!(detail.starts_with("sockets (as was asked), GSO, GRO"), "{detail}");
}

#[test]
fn the_largest_datagram_is_what_the_interface_of_the_address_carries() {
    // Nothing is sent: this only asks which address of this host has the way out.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("198.51.100.1:9").is_err() {
        return eprintln!("not tested: this host has no network");
    }
    let address = probe.local_addr().unwrap().ip();
    let link = match UdpLink::bind(address, &UdpOptions { join: false, ..UdpOptions::default() }) {
        Ok(link) => link,
        Err(error @ BindError::InUse { .. }) => return eprintln!("not tested: {error}"),
        Err(error) => panic!("{error}"),
    };
    let mtu = (link.info().max_datagram + 28).to_string();
    let interfaces = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    let mtus: Vec<_> = interfaces
        .filter(|interface| interface.file_name() != "lo")
        .filter_map(|interface| std::fs::read_to_string(interface.path().join("mtu")).ok())
        .collect();
    assert!(mtus.iter().any(|other| other.trim() == mtu), "{mtu}: {mtus:?}");
}

#[test]
fn strangers_datagrams_are_handed_over_as_they_are() {
    for io in ways() {
        let mut link = udp(io);
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        for bytes in [&b""[..], b"x", b"hello"] {
            stranger.send_to(bytes, (link.info().address, 4791)).unwrap();
        }
        let arrived = collect(&mut link, 2);
        assert!(arrived.iter().map(|d| &d.bytes[..]).eq([&b"x"[..], b"hello"]), "{arrived:?}");
        assert_eq!(arrived[0].ip_id, None);
    }
}
