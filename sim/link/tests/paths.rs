//! Two hosts with a cable between them: path MTUs, ECN marks, IPv6, multicast. They are network namespaces,
//! which takes an administrator's rights.

mod support;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyverbs_link::udp::{BindError, Io, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use anyverbs_nic::*;
use anyverbs_wire::{Flow, icrc};
use rustix::net::sockopt;
use support::{Arrived, Namespace, cable, collect, push, push_from, ways};

const LEFT: [&str; 3] = ["10.77.0.1", "fd77::1", "fe80::1"];
const RIGHT: [&str; 3] = ["10.77.0.2", "fd77::2", "fe80::2"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(at: &Namespace, address: &str, io: Io) -> UdpLink {
    link_with(at, address, UdpOptions { io, ..UdpOptions::default() }).unwrap()
}

fn link_with(at: &Namespace, address: &str, options: UdpOptions) -> Result<UdpLink, BindError> {
    // A process that another test is about to start may have a copy of an earlier link's socket.
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    at.run(|| {
        loop {
            match UdpLink::bind(ip(address), &options) {
                Err(BindError::InUse { .. }) if std::time::Instant::now() < patience => {
                    std::thread::yield_now()
                }
                other => return other,
            }
        }
    })
}

fn transmit(link: &mut impl Link, batch: &mut TxBatch) {
    let now = link.waiter().now();
    link.transmit(batch, now).unwrap();
    assert!(batch.is_empty());
}

#[test]
fn traffic_of_every_family_with_segments_marks_and_a_valid_icrc() {
    let Some([left, right]) = cable() else { return };
    for io in ways() {
        for (from, to) in LEFT.into_iter().zip(RIGHT) {
            let (mut a, mut b) = (link(&left, from, io), link(&right, to, io));
            let v6 = ip(from).is_ipv6();
            assert_eq!(a.info().max_datagram, if v6 { 1500 - 48 } else { 1500 - 28 });
            let mut batch = TxBatch::with_capacity(1 << 20, 256);
            let mut sent = Vec::new();
            for mark in 0..120 {
                let (ecn, len) = (mark / 20 % 4, [64, 1080, 300][usize::from(mark / 40)]);
                let source = (ip(from), a.source_port(u32::from(mark / 10)));
                push_from(&mut batch, source, ip(to), ecn, len, mark);
                sent.push((mark, ecn, len, source.1));
            }
            transmit(&mut a, &mut batch);
            assert!(a.counters().sends() < 40, "they left in segmented sends");
            let mut arrived = collect(&mut b, 120);
            // Those of different ports may overtake one another.
            arrived.sort_by_key(Arrived::mark);
            let seen: Vec<_> =
                arrived.iter().map(|d| (d.mark(), d.ecn, d.bytes.len(), d.source_port)).collect();
            assert_eq!(seen, sent, "{io:?} {from}");
            assert!(arrived.iter().all(|d| d.ip_id.is_some() && d.source == ip(from)), "{io:?} {from}");
            // And back, from what came.
            push_from(&mut batch, (ip(to), b.source_port(3)), arrived[0].source, 3, 100, 7);
            transmit(&mut b, &mut batch);
            let back = collect(&mut a, 1);
            assert_eq!((back[0].ecn, back[0].source, back[0].ip_id), (3, ip(to), Some(0)));
        }
    }
}

#[test]
fn datagrams_that_the_kernel_puts_together_have_one_mark() {
    let Some([left, right]) = cable() else { return };
    // Receive offload on, and slow: what arrives is held for a while, to be put together.
    // (The kernel does so on such a cable only if the other end segments for itself.)
    left.set_offload("left", 0x1F, false).unwrap();
    right.set_offload("right", 0x2C, true).unwrap();
    let hold = "mount -t sysfs sys /sys && echo 20000000 > /sys/class/net/right/gro_flush_timeout";
    right.command("unshare", &["-m", "sh", "-c", hold]).unwrap();
    for (from, to) in LEFT.into_iter().zip(RIGHT) {
        let sender = left.run(|| {
            let scope = sys_index("left");
            let bound = named(ip(from), 0, scope);
            let socket = UdpSocket::bind(bound).unwrap();
            let is_v4 = ip(from).is_ipv4();
            if is_v4 {
                // Don't fragment, as every RoCE sender says.
                set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
            }
            (socket, scope)
        });
        let (socket, scope) = sender;
        let mut b = link(&right, to, Io::Sockets);
        let marks: Vec<u8> = (0..48).map(|i| [0, 0, 0, 2, 2, 3, 3, 3, 0, 1, 1, 1][i % 12]).collect();
        let source_port = socket.local_addr().unwrap().port();
        for (i, &ecn) in marks.iter().enumerate() {
            if ip(from).is_ipv4() {
                sockopt::set_ip_tos(&socket, ecn).unwrap();
            } else {
                sockopt::set_ipv6_tclass(&socket, u32::from(ecn)).unwrap();
            }
            let mut datagram = vec![i as u8; 100];
            let flow = Flow { source: ip(from), destination: ip(to), source_port };
            datagram.extend(icrc::compute(&flow, 0, &datagram));
            socket.send_to(&datagram, named(ip(to), 4791, scope)).unwrap();
        }
        // Until all of them are held, or have come.
        std::thread::sleep(Duration::from_millis(60));
        let (mut batch, mut seen) = (RxBatch::with_capacity(1 << 19, 512), Vec::new());
        let waiter = b.waiter();
        let give_up = waiter.now() + Duration::from_secs(10);
        while seen.len() < marks.len() && waiter.now() < give_up {
            batch.clear();
            b.receive(&mut batch, waiter.now()).unwrap();
            for entry in batch.entries() {
                let flow = Flow { source: entry.source, destination: entry.destination, source_port };
                assert!(icrc::verify(&flow, &batch.bytes()[entry.range()]).is_some());
                seen.push((batch.bytes()[entry.start], entry.ecn));
            }
        }
        seen.sort_unstable();
        let expected: Vec<_> = marks.iter().enumerate().map(|(i, &ecn)| (i as u8, ecn)).collect();
        assert_eq!(seen, expected, "{from}");
        // The runs of one mark came together, and no two of them.
        assert!(b.counters().receives() < 40, "{from}: {} receives", b.counters().receives());
        assert!(b.counters().receives() >= 20, "{from}: {} receives", b.counters().receives());
    }
}

/// The number of an interface in this thread's namespace.
fn sys_index(name: &str) -> u32 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    rustix::net::netdevice::name_to_index(&socket, name).unwrap()
}

fn named(address: IpAddr, port: u16, scope: u32) -> std::net::SocketAddr {
    match address {
        IpAddr::V4(_) => (address, port).into(),
        IpAddr::V6(v6) => std::net::SocketAddrV6::new(v6, port, 0, scope).into(),
    }
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    use std::os::fd::AsRawFd;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the kernel reads an `int`, which outlives the call.
    let rc = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value, 4) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

/// A NIC on a link, with a queue pair of it.
struct Host {
    nic: Nic,
    cq: Cq,
    mr: Mr,
    qp: Qp,
}

fn host(link: UdpLink) -> Host {
    let nic = Nic::open(Box::new(link), NicConfig::default()).unwrap();
    let pd = nic.alloc_pd().unwrap();
    let cq = nic.create_cq(64).unwrap();
    let mr = pd.register(Arc::new(Block::new(1 << 16).unwrap()), 0..1 << 16, Access::all()).unwrap();
    let init = QpInit { max_send_wr: 8, max_recv_wr: 8, signal_all: true, ..QpInit::new(&cq) };
    let qp = pd.create_qp(init).unwrap();
    qp.to_init(Access::all()).unwrap();
    Host { nic, cq, mr, qp }
}

impl Host {
    fn connect(&self, peer: &Host, path_mtu: Mtu) -> Result<(), NicError> {
        self.qp.to_rtr(RtrAttributes {
            peer: peer.nic.attributes().gid,
            dest_qpn: peer.qp.qpn(),
            rq_psn: peer.qp.initial_psn(),
            path_mtu,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 1,
        })?;
        self.qp.to_rts(RtsAttributes {
            sq_psn: self.qp.initial_psn(),
            max_rd_atomic: 1,
            retry_cnt: 2,
            rnr_retry: 7,
            timeout: 10,
        })
    }

    /// Writes `len` bytes to the peer's memory: how that ended.
    fn write(&self, peer: &Host, len: u32) -> WcStatus {
        let sges = [Sge { addr: 0, len, key: self.mr.key() }];
        let op = SendOp::Write { addr: 0, rkey: peer.mr.key() };
        let wr = SendWr::new(1, op, &sges);
        self.qp.post_send(&[wr]).unwrap();
        assert!(self.cq.wait(Some(self.nic.waiter().now() + Duration::from_secs(20))));
        let blank = Cqe::EMPTY;
        let mut out = [blank];
        assert_eq!(self.cq.poll(&mut out), 1);
        out[0].status
    }
}

#[test]
fn path_mtus_are_found_out_and_refused_and_their_shrinking_is_counted() {
    let Some([left, right]) = cable() else { return };
    for end in [&left, &right] {
        let (name, peer) = if std::ptr::eq(end, &left) { ("left", 2) } else { ("right", 1) };
        end.ip(&format!("link set {name} mtu 9000"));
        end.ip(&format!("route add 10.77.0.{peer}/32 dev {name} mtu lock 1200"));
        end.ip(&format!("route add fd77::{peer}/128 dev {name} mtu 1300"));
    }
    let a = link(&left, LEFT[0], Io::Auto);
    assert_eq!(a.info().max_datagram, 9000 - 28);
    assert_eq!(a.path_max_datagram(ip(RIGHT[0])), 1200 - 28);
    assert_eq!(a.path_max_datagram(ip("10.77.0.3")), 9000 - 28);
    // No route: nothing arrives anyway.
    assert_eq!(a.path_max_datagram(ip("192.0.2.1")), 9000 - 28);
    let six = link(&left, LEFT[1], Io::Auto);
    assert_eq!(six.path_max_datagram(ip(RIGHT[1])), 1300 - 48);
    assert_eq!(six.path_max_datagram(ip("fd77::3")), 9000 - 48);

    let (a, b) = (host(a), host(link(&right, RIGHT[0], Io::Auto)));
    let error = a.connect(&b, Mtu::B4096).unwrap_err();
    assert!(
        matches!(error, NicError::PathMtu { given: 4096, fits: Some(1024), carried: 1172, .. }),
        "{error}"
    );
    a.connect(&b, Mtu::B1024).unwrap();
    b.connect(&a, Mtu::B1024).unwrap();
    assert_eq!(a.write(&b, 50_000), WcStatus::Success);
    assert_eq!(a.nic.counters().tx_too_large, 0);
    // The path shrinks: what fits still goes, what does not is counted, and ends by its retries.
    left.ip("route change 10.77.0.2/32 dev left mtu lock 600");
    assert_eq!(a.write(&b, 300), WcStatus::Success);
    assert_eq!(a.nic.counters().tx_too_large, 0);
    assert_eq!(a.write(&b, 50_000), WcStatus::RetryExcErr);
    assert!(a.nic.counters().tx_too_large > 40, "{:?}", a.nic.counters());
}

#[test]
fn an_mtu_can_be_set_by_hand() {
    let Some([left, _right]) = cable() else { return };
    let with = |mtu| link_with(&left, LEFT[0], UdpOptions { mtu: Some(mtu), ..UdpOptions::default() });
    let a = with(1400).unwrap();
    assert_eq!((a.info().max_datagram, a.path_max_datagram(ip(RIGHT[0]))), (1372, 1372));
    drop(a);
    for given in [0, 300, 1501] {
        let error = with(given).err().unwrap();
        assert!(matches!(error, BindError::Mtu { interface: 1500, least: 348, .. }), "{error}");
        assert!(error.to_string().contains(&format!("an MTU of {given} bytes")), "{error}");
    }
}

#[test]
fn a_link_local_address_of_several_interfaces_is_refused() {
    let Some([left, _right]) = cable() else { return };
    left.ip("link add other type veth peer name another");
    left.ip("link set other up");
    left.ip("addr add fe80::1/64 dev other nodad");
    let error = link_with(&left, "fe80::1", UdpOptions::default()).err().unwrap();
    assert!(matches!(error, BindError::Ambiguous { .. }), "{error}");
    for part in ["fe80::1", "left, other", "ip address add"] {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}

#[test]
fn a_group_is_heard_by_its_members_on_this_network() {
    let Some([left, right]) = cable() else { return };
    for io in ways() {
        for ((from, to), groups) in LEFT.into_iter().zip(RIGHT).zip([
            ["239.1.2.3", "239.1.2.4"],
            ["ff05::77", "ff05::78"],
            ["ff02::77", "ff02::78"],
        ]) {
            let (mut a, mut b) = (link(&left, from, io), link(&right, to, io));
            // A second address of the same host: another member.
            right.add_address(&second(to), "right");
            let mut c = link(&right, second(to).split('/').next().unwrap(), io);
            let [group, other] = groups.map(ip);
            right.run(|| b.join(group)).unwrap();
            right.run(|| c.join(group)).unwrap();
            left.run(|| a.join(group)).unwrap();
            right.run(|| b.join(group)).unwrap();
            let mut batch = TxBatch::with_capacity(1 << 20, 64);
            for mark in 0..30 {
                let to = if mark % 3 == 2 { other } else { group };
                push_from(&mut batch, (ip(from), a.source_port(1)), to, 2, 500, mark);
            }
            transmit(&mut a, &mut batch);
            for member in [&mut a, &mut b, &mut c] {
                let arrived = collect(member, 20);
                let marks: Vec<_> = arrived.iter().map(Arrived::mark).collect();
                assert_eq!(marks, (0..30).filter(|mark| mark % 3 != 2).collect::<Vec<_>>(), "{io:?} {group}");
                let all = |d: &Arrived| d.destination == group && d.source == ip(from) && d.ecn == 2;
                assert!(arrived.iter().all(|d| all(d) && d.ip_id.is_some()), "{io:?} {group}");
            }
            b.leave(group);
            push(&mut batch, ip(from), group, 0, 100, 99);
            push(&mut batch, ip(from), ip(to), 0, 100, 100);
            transmit(&mut a, &mut batch);
            assert_eq!(collect(&mut b, 1)[0].mark(), 100, "{io:?} {group}");
            assert_eq!(collect(&mut c, 1)[0].mark(), 99, "{io:?} {group}");
            right.ip(&format!("addr del {} dev right", second(to)));
        }
    }
}

/// Another address of the same network, with its prefix.
fn second(address: &str) -> String {
    if ip(address).is_ipv4() {
        "10.77.0.22/24".into()
    } else {
        format!("{}22/64 nodad", &address[..address.len() - 1])
    }
}
