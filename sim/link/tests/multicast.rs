//! Multicast groups on this host.

mod support;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyverbs_link::udp::{BindError, Io, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use support::{Arrived, collect, push, push_from, skip, udp, ways};

fn transmit(link: &mut impl Link, batch: &mut TxBatch) {
    let now = link.waiter().now();
    link.transmit(batch, now).unwrap();
    assert!(batch.is_empty());
}

/// A group that no other test of this process, and hardly any other process, uses.
fn group(n: u8) -> IpAddr {
    let [_, _, a, b] = std::process::id().to_be_bytes();
    IpAddr::from([239, n, a, b])
}

#[test]
fn all_members_of_one_host_hear_a_group_and_their_own_address() {
    for (n, io) in ways().into_iter().enumerate() {
        let [mut a, mut b, mut c] = [udp(io), udp(io), udp(io)];
        let (group, from) = (group(n as u8), a.info().address);
        b.join(group).unwrap();
        c.join(group).unwrap();
        let mut batch = TxBatch::with_capacity(1 << 20, 256);
        for mark in 0..100 {
            // Full segmented sends, and single ones.
            let len = if mark < 80 { 1000 } else { 100 + usize::from(mark) };
            push_from(&mut batch, (from, a.source_port(7)), group, mark / 60, len, mark);
        }
        for member in [&b, &c] {
            push(&mut batch, from, member.info().address, 0, 64, 200);
        }
        transmit(&mut a, &mut batch);
        assert_eq!((a.counters().lost(), a.counters().too_large()), (0, 0));
        for member in [&mut b, &mut c] {
            let own = member.info().address;
            let arrived = collect(member, 101);
            let of_group: Vec<_> = arrived.iter().filter(|d| d.destination == group).collect();
            assert!(of_group.iter().map(|d| d.mark()).eq(0..100), "{io:?}");
            assert!(of_group.iter().all(|d| d.ip_id.is_some() && d.ecn == d.mark() / 60), "{io:?}");
            let of_own: Vec<_> = arrived.iter().filter(|d| d.destination == own).map(Arrived::mark).collect();
            assert_eq!(of_own, [200], "{io:?}");
        }
    }
}

#[test]
fn a_sleeper_wakes_for_a_group() {
    let [mut a, mut b] = [udp(Io::Auto), udp(Io::Auto)];
    let group = group(100);
    b.join(group).unwrap();
    let waiter = b.waiter();
    let mut batch = TxBatch::with_capacity(1 << 12, 16);
    let mut arrived = RxBatch::with_capacity(1 << 18, 256);
    for mark in 0..10 {
        push(&mut batch, a.info().address, group, 0, 64, mark);
        transmit(&mut a, &mut batch);
        let start = waiter.now();
        waiter.wait(Some(start + Duration::from_secs(10)));
        arrived.clear();
        // The first look after such a sleep is at the group.
        b.receive(&mut arrived, waiter.now()).unwrap();
        let marks: Vec<_> = arrived.entries().iter().map(|e| arrived.bytes()[e.start]).collect();
        assert_eq!(marks, [mark]);
        // Long enough for what is asked often after something came to be asked seldom again.
        for _ in 0..200 {
            b.receive(&mut arrived, waiter.now()).unwrap();
        }
    }
}

#[test]
fn groups_end_by_leaving_and_have_a_limit() {
    let mut link = udp(Io::Auto);
    let own = link.info().address;
    let groups: Vec<IpAddr> = (0..65).map(|n| group(101 + n)).collect();
    for &group in &groups[..64] {
        link.join(group).unwrap();
        link.join(group).unwrap();
    }
    let error = link.join(groups[64]).unwrap_err().to_string();
    assert!(error.contains("64 multicast groups, its limit"), "{error}");
    link.leave(groups[0]);
    link.leave(groups[0]);
    link.join(groups[64]).unwrap();
    let mut batch = TxBatch::with_capacity(1 << 14, 128);
    for (mark, &group) in groups.iter().enumerate() {
        push(&mut batch, own, group, 0, 64, mark as u8);
    }
    transmit(&mut link, &mut batch);
    let mut marks: Vec<_> = collect(&mut link, 64).iter().map(Arrived::mark).collect();
    marks.sort_unstable();
    assert!(marks.into_iter().eq(1..65));
}

#[test]
fn what_is_no_group_is_refused() {
    let mut link = udp(Io::Auto);
    for (address, part) in [
        ("10.0.0.1", "is no multicast group"),
        ("::1", "is no multicast group"),
        ("ff02::1", "different families"),
    ] {
        let error = link.join(address.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(part) && error.to_string().contains(address), "{error}");
        link.leave(address.parse().unwrap());
    }
}

#[test]
fn ipv6_has_no_groups_on_the_loopback_interface() {
    let loopback: IpAddr = "::1".parse().unwrap();
    let mut link = match UdpLink::bind(loopback, &UdpOptions::default()) {
        Ok(link) => link,
        Err(error @ (BindError::InUse { .. } | BindError::NotLocal { .. })) => {
            return skip(&format!("skipped: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    let error = link.join("ff02::4791".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    for part in ["ff02::4791", "::1", "another interface"] {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}
