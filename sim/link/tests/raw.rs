//! Datagrams as kernel rxe sends them: with IP identifications, and without a UDP checksum.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyverbs_link::udp::{UdpLink, UdpOptions};
use anyverbs_nic::link::Link;
use anyverbs_wire::{Flow, encapsulate, icrc};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use support::{address, collect, skip};

/// Sends whole IP packets.
struct Stranger {
    socket: OwnedFd,
    flow: Flow,
}

impl Stranger {
    /// `None`, and a word about it, where raw sockets are not allowed.
    fn new(to: &UdpLink) -> Option<Stranger> {
        match socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)) {
            Ok(socket) => {
                let flow = Flow { source: address(), destination: to.info().address, source_port: 0xC123 };
                Some(Stranger { socket, flow })
            }
            Err(error) => {
                skip(&format!("skipped: raw sockets are not allowed here: {error}"));
                None
            }
        }
    }

    fn send(&self, ip_id: u16, ecn: u8, mark: u8, checksum: u16, is_right: bool) {
        let mut datagram = vec![mark; 60];
        let mut icrc = icrc::compute(&self.flow, ip_id, &datagram);
        icrc[1] ^= u8::from(!is_right);
        datagram.extend(icrc);
        let mut headers = [0; 48];
        let len = encapsulate(&self.flow, ip_id, ecn, 64, datagram.len(), &mut headers);
        if checksum != 0 {
            let checksum = udp_checksum(&headers[..len], &datagram);
            headers[26..28].copy_from_slice(&checksum.to_be_bytes());
        }
        let packet = [&headers[..len], &datagram].concat();
        let to = SocketAddr::new(self.flow.destination, 0);
        assert_eq!(sendto(&self.socket, &packet, SendFlags::empty(), &to).unwrap(), packet.len());
    }
}

/// The UDP checksum over the pseudo header, the UDP header and the datagram.
fn udp_checksum(headers: &[u8], datagram: &[u8]) -> u16 {
    let udp = &headers[20..28];
    let pseudo = [&headers[12..20], &[0, 17], &udp[4..6]].concat();
    let all = [&pseudo[..], udp, datagram].concat();
    let sum: u32 = all.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    !((folded & 0xFFFF) + (folded >> 16)) as u16
}

/// A link that was told that a peer uses identifications.
fn link(raw: bool) -> UdpLink {
    let mut link = UdpLink::bind(address(), &UdpOptions { raw, ..UdpOptions::default() }).unwrap();
    link.reveal_ids();
    link.reveal_ids();
    link
}

#[test]
fn each_comes_once_with_the_identification_where_it_matters() {
    let mut link = link(true);
    let Some(stranger) = Stranger::new(&link) else { return };
    let detail = &link.info().detail;
    assert!(detail.contains(", raw socket where a peer needs it"), "{detail}");
    let ids = [0x1234, 128, 5, 0xFFFF, 127, 4791];
    // The last one has a checksum, as another RoCE stack may send it.
    for (mark, id) in ids.into_iter().enumerate() {
        stranger.send(id, mark as u8 & 3, mark as u8, u16::from(id == 4791), true);
    }
    let mut arrived = collect(&mut link, ids.len());
    arrived.sort_by_key(|d| d.mark());
    assert_eq!(arrived.len(), ids.len());
    for (mark, (id, datagram)) in ids.into_iter().zip(&arrived).enumerate() {
        assert_eq!((usize::from(datagram.mark()), usize::from(datagram.ecn)), (mark, mark & 3), "{id}");
        assert_eq!((datagram.source, datagram.source_port), (stranger.flow.source, 0xC123));
        assert_eq!(datagram.bytes.len(), 64);
        // Small ones are told from the ICRC; those with a checksum come by the UDP socket.
        let (fits, seen) = match id {
            4791 => (None, None),
            0..128 => (Some(id), None),
            _ => (Some(id), Some(id)),
        };
        assert_eq!((datagram.ip_id, datagram.seen_id), (fits, seen), "{id}");
    }
    assert_eq!(collect_for(&mut link, 30), 0, "nothing comes twice");
}

/// How many datagrams come in so many milliseconds.
fn collect_for(link: &mut UdpLink, ms: u64) -> usize {
    let waiter = link.waiter();
    let end = waiter.now() + Duration::from_millis(ms);
    let mut batch = anyverbs_nic::link::RxBatch::with_capacity(1 << 18, 256);
    while waiter.now() < end {
        waiter.wait(Some(end));
        link.receive(&mut batch, waiter.now()).unwrap();
    }
    batch.entries().len()
}

#[test]
fn many_with_random_identifications_and_some_wrong() {
    for raw in [true, false] {
        let mut link = link(raw);
        let Some(stranger) = Stranger::new(&link) else { return };
        let mut id = 1_u16;
        let mut sent = Vec::new();
        for n in 0..100_u8 {
            id = id.wrapping_mul(25173).wrapping_add(13849) | 128;
            let is_right = n % 5 != 0;
            stranger.send(id, 0, n, 0, is_right);
            sent.push((n, id, is_right));
        }
        let arrived = collect(&mut link, sent.len());
        assert_eq!(arrived.len(), sent.len(), "raw: {raw}");
        for (datagram, (mark, id, is_right)) in arrived.iter().zip(sent) {
            // They come by one way, so in order.
            assert_eq!(datagram.mark(), mark);
            if raw {
                assert_eq!((datagram.seen_id, datagram.ip_id), (Some(id), is_right.then_some(id)));
            } else {
                let found = icrc::verify_any_id(&stranger.flow, &datagram.bytes);
                assert_eq!((datagram.seen_id, datagram.ip_id, found), (None, None, is_right.then_some(id)));
            }
        }
    }
}

#[test]
fn a_sleeper_wakes_for_them_and_the_other_way_stays_open() {
    let mut link = link(true);
    let Some(stranger) = Stranger::new(&link) else { return };
    let waiter = link.waiter();
    for n in 0..20 {
        // Even ones come by the raw socket, odd ones by the UDP socket; the first asks nobody twice.
        stranger.send(if n % 2 == 0 { 1000 } else { 1 }, 0, n, 0, true);
        let limit = waiter.now() + Duration::from_secs(10);
        let arrived = collect(&mut link, 1);
        assert_eq!(arrived.iter().map(|d| d.mark()).collect::<Vec<_>>(), [n]);
        assert!(waiter.now() < limit, "it came when the sleep was over, not when the datagram came");
    }
    // A flood of the one kind does not keep the other out.
    for n in 0..200 {
        stranger.send(2000, 0, n, 0, true);
        if n == 150 {
            stranger.send(0x7F, 0, 255, 0, true);
        }
    }
    let place = collect(&mut link, 201).iter().position(|d| d.mark() == 255).unwrap();
    assert!(place < 50, "at {place}");
}

#[test]
fn nobody_pays_for_it_before_a_peer_needs_it() {
    let mut link = UdpLink::bind(address(), &UdpOptions::default()).unwrap();
    let Some(stranger) = Stranger::new(&link) else { return };
    for (mark, seen) in [(0, None), (1, Some(1000))] {
        stranger.send(1000, 0, mark, 0, true);
        let arrived = collect(&mut link, 1);
        assert_eq!((arrived[0].mark(), arrived[0].seen_id), (mark, seen));
        link.reveal_ids();
    }
}

#[test]
fn without_the_right_to_raw_sockets_a_link_says_so() {
    let (raw, detail) = std::thread::spawn(|| {
        drop_capabilities();
        let link = link(true);
        (link.info().warnings.clone(), link.info().detail.clone())
    })
    .join()
    .unwrap();
    assert!(detail.contains(", no raw socket (Op"), "{detail}");
    // Nor may it have larger buffers than the system's limit; where that is small, it says what to do.
    let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
    if limit.trim().parse::<usize>().unwrap() < 8 << 20 {
        let text = raw.join("; ");
        for part in ["the receive buffer has", "of 8192 KiB", "sysctl -w net.core.rmem_max=8388608"] {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
        assert!(detail.contains("(net.core.rmem_max)"), "{detail}");
    } else {
        assert!(raw.is_empty(), "{raw:?}");
    }
    let asked = link(false);
    assert!(asked.info().detail.contains(", no raw socket (as was asked)"), "{}", asked.info().detail);
}

/// Takes all rights of an administrator from this thread, and from no other.
fn drop_capabilities() {
    // A `cap_user_header` of version 3 for this thread, and no capabilities.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: the call only reads both, which are as long as version 3 says.
    let rc = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn ipv6_has_nothing_of_all_this() {
    let loopback: IpAddr = "::1".parse().unwrap();
    if let Ok(link) = UdpLink::bind(loopback, &UdpOptions::default()) {
        assert!(!link.info().detail.contains("raw socket"), "{}", link.info().detail);
    }
}
