//! Several links of one process on one address: whose datagrams are whose, and what happens when one goes.

mod support;

use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyverbs_link::udp::{BindError, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use anyverbs_wire::mad::{self, Drep, Message, PortSpace, Rej, RejectReason, ServiceId, SidrReq, Subject};
use anyverbs_wire::{Bth, Deth, Ext, Flow, Opcode, Operation, Psn, Qpn, Repr, Service, icrc};
use support::address;

/// A link, and what it has received and nobody has looked at.
struct Node {
    link: UdpLink,
    rx: RxBatch,
    got: Vec<Got>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Got {
    mark: u8,
    source: IpAddr,
    source_port: u16,
    ecn: u8,
    len: usize,
}

impl Node {
    fn open(address: IpAddr) -> Node {
        let link = UdpLink::bind(address, &UdpOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        Node { link, rx: RxBatch::with_capacity(1 << 19, 512), got: Vec::new() }
    }

    fn address(&self) -> IpAddr {
        self.link.info().address
    }

    fn prefix(&self) -> u32 {
        self.link.info().prefix.expect("a link that shares has a prefix").value
    }

    /// What the NIC does, once: everything that came has to have a right ICRC.
    fn progress(&mut self) {
        self.rx.clear();
        let now = self.link.waiter().now();
        self.link.receive(&mut self.rx, now).unwrap_or_else(|error| panic!("{error}"));
        for entry in self.rx.entries() {
            let bytes = &self.rx.bytes()[entry.range()];
            let flow =
                Flow { source: entry.source, destination: entry.destination, source_port: entry.source_port };
            assert!(icrc::verify(&flow, bytes).is_some(), "{entry:?}");
            self.got.push(Got {
                mark: bytes[11],
                source: entry.source,
                source_port: entry.source_port,
                ecn: entry.ecn,
                len: entry.len,
            });
        }
    }

    /// Sends datagrams of these lengths, the first marked `mark`, to a queue pair with this prefix.
    fn send(&mut self, to: IpAddr, prefix: u32, mark: u8, lens: &[usize]) {
        let (source, source_port) = (self.address(), self.link.source_port(7));
        let mut batch = TxBatch::with_capacity(1 << 20, 512);
        for (mark, &len) in (mark..).zip(lens) {
            let datagram = batch.push(to, source_port, 2, len).unwrap();
            datagram.fill(mark);
            let qpn = Qpn::new(prefix << 16 | 0x1234);
            let opcode = Opcode::new(Service::Rc, Operation::SendOnly);
            let bth = Bth::new(opcode, qpn, Psn::new(u32::from(mark)));
            datagram[..Bth::LEN].copy_from_slice(&bth.emit());
            sign(datagram, source, to, source_port);
        }
        self.transmit(&mut batch);
    }

    fn send_mad(&mut self, to: IpAddr, mark: u8, message: Message) {
        let (source, source_port) = (self.address(), self.link.source_port(7));
        let opcode = Opcode::new(Service::Ud, Operation::SendOnly);
        let bth = Bth::new(opcode, Qpn::GSI, Psn::new(u32::from(mark)));
        let deth = Deth { qkey: mad::QKEY, source_qpn: Qpn::GSI };
        let repr = Repr { bth, xrc_srqn: None, ext: Ext::Deth(deth) };
        let mad = mad::Repr { transaction_id: 1, status: 0, message }.emit();
        let mut batch = TxBatch::with_capacity(1 << 10, 1);
        let datagram = batch.push(to, source_port, 2, repr.datagram_len(mad.len())).unwrap();
        let at = repr.emit(datagram);
        datagram[at..at + mad.len()].copy_from_slice(&mad);
        sign(datagram, source, to, source_port);
        self.transmit(&mut batch);
    }

    fn transmit(&mut self, batch: &mut TxBatch) {
        let now = self.link.waiter().now();
        while !batch.is_empty() {
            self.link.transmit(batch, now).unwrap();
        }
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.got).iter().map(|got| got.mark).collect()
    }
}

fn sign(datagram: &mut [u8], source: IpAddr, destination: IpAddr, source_port: u16) {
    let (body, tail) = datagram.split_at_mut(datagram.len() - icrc::LEN);
    tail.copy_from_slice(&icrc::compute(&Flow { source, destination, source_port }, 0, body));
}

/// Lets all make progress until `done`.
fn drive(nodes: &mut [Node], done: impl Fn(&[Node]) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !done(nodes) {
        let got = || nodes.iter().map(|node| node.got.len()).collect::<Vec<_>>();
        assert!(Instant::now() < give_up, "not done: {:?}", got());
        nodes.iter_mut().for_each(Node::progress);
        thread::yield_now();
    }
}

fn drive_until(nodes: &mut [Node], counts: &[usize]) {
    drive(nodes, |nodes| nodes.iter().zip(counts).all(|(node, count)| node.got.len() >= *count));
    // Nothing more comes.
    for _ in 0..20 {
        nodes.iter_mut().for_each(Node::progress);
    }
    assert!(nodes.iter().map(|node| node.got.len()).eq(counts.iter().copied()));
}

/// Has the last one send to all others until those have received something.
fn receive_again(nodes: &mut [Node]) {
    let last = nodes.len() - 1;
    let to = nodes[0].address();
    let give_up = Instant::now() + Duration::from_secs(20);
    while nodes[..last].iter().any(|node| node.got.is_empty()) {
        assert!(Instant::now() < give_up);
        for n in 0..last {
            let prefix = nodes[n].prefix();
            nodes[last].send(to, prefix, 0, &[100]);
        }
        nodes.iter_mut().for_each(Node::progress);
    }
    // What is under way still comes.
    for _ in 0..100 {
        nodes.iter_mut().for_each(Node::progress);
    }
    nodes.iter_mut().for_each(|node| node.got.clear());
}

/// Three links of one address, the first of which has the port, and one of another.
fn three_and_one() -> Vec<Node> {
    let shared = address();
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::open(shared)).collect();
    nodes.push(Node::open(address()));
    drive(&mut nodes, |nodes| nodes[0].link.counters().members() == 2);
    nodes
}

#[test]
fn each_link_gets_its_own_datagrams_in_order_and_answers_from_its_own_port() {
    let mut nodes = three_and_one();
    let shared = nodes[0].address();
    let prefixes: Vec<u32> = nodes[..3].iter().map(Node::prefix).collect();
    let ports: Vec<u16> = nodes.iter().map(|node| node.link.source_port(7)).collect();
    assert!(!ports.contains(&4791), "{ports:?}");
    assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2], "{ports:?}");
    let lens = [16, 1000, 1000, 1000, 300, 4136, 4136, 65_507, 17];
    for (n, prefix) in prefixes.iter().enumerate() {
        nodes[3].send(shared, *prefix, 20 * n as u8, &lens);
    }
    drive_until(&mut nodes, &[9, 9, 9, 0]);
    let from = nodes[3].address();
    for (n, node) in nodes[..3].iter_mut().enumerate() {
        for (k, got) in node.got.drain(..).enumerate() {
            let mark = (20 * n + k) as u8;
            let expected = Got { mark, source: from, source_port: ports[3], ecn: 2, len: lens[k] };
            assert_eq!(got, expected);
        }
    }
    let counters = nodes[0].link.counters();
    assert_eq!((counters.forwarded(), counters.overrun(), counters.unclaimed()), (18, 0, 0));
    assert_eq!((counters.received(), nodes[1].link.counters().received()), (9, 9));
    // And back; and among themselves, the owner included.
    let there = nodes[3].prefix();
    for (n, port) in ports[..3].iter().enumerate() {
        nodes[n].send(from, there, 100 + n as u8, &[64]);
        nodes[n].send(shared, prefixes[(n + 1) % 3], 110 + n as u8, &[64, 64]);
        drive(&mut nodes, |nodes| nodes[3].got.len() == 1 && nodes[(n + 1) % 3].got.len() == 2);
        let got = nodes[3].got.pop().unwrap();
        assert_eq!((got.mark, got.source_port, got.source), (100 + n as u8, *port, shared));
        let got = nodes[(n + 1) % 3].take();
        assert_eq!(got, [110 + n as u8, 111 + n as u8]);
    }
}

#[test]
fn when_the_owner_goes_another_one_takes_over_until_none_is_left() {
    let mut nodes = three_and_one();
    let shared = nodes[0].address();
    // The first to go is the owner, and the others race.
    for left in [2, 1] {
        let gone = nodes.remove(0);
        let prefix = gone.prefix();
        drop(gone);
        let outsider = left;
        receive_again(&mut nodes);
        assert_eq!(
            nodes[..left].iter().map(|node| node.link.counters().members()).sum::<u64>(),
            left as u64 - 1
        );
        for n in 0..left {
            let prefix = nodes[n].prefix();
            assert_ne!(nodes[n].link.source_port(0), 4791, "the port that it sends from stays");
            nodes[n].got.clear();
            nodes[outsider].send(shared, prefix, 50, &[100; 40]);
            drive(&mut nodes, |nodes| nodes[n].got.len() >= 40);
            assert!(nodes[n].take().into_iter().eq(50..90));
            assert!(UdpSocket::bind((shared, 4791)).is_err());
            assert_eq!(nodes[n].link.counters().takeovers(), 3 - left as u64);
        }
        // What is for those who are gone is nobody's.
        let unclaimed =
            |nodes: &[Node]| nodes.iter().map(|node| node.link.counters().unclaimed()).sum::<u64>();
        let before = unclaimed(&nodes);
        nodes[outsider].send(shared, prefix, 0, &[100; 3]);
        if left == 2 {
            drive(&mut nodes, |nodes| unclaimed(nodes) == before + 3);
        }
    }
    // Those that come later join the one that is left, under new numbers.
    nodes.insert(1, Node::open(shared));
    assert_ne!(nodes[0].prefix(), nodes[1].prefix());
    drive(&mut nodes, |nodes| nodes[0].link.counters().members() == 1);
    let prefix = nodes[1].prefix();
    nodes[2].send(shared, prefix, 1, &[100]);
    nodes[0].got.clear();
    drive(&mut nodes, |nodes| nodes[1].got.len() == 1);
    // A member goes: the owner hears it.
    nodes.remove(1);
    drive(&mut nodes, |nodes| nodes[0].link.counters().members() == 0);
}

#[test]
fn a_member_that_does_not_read_loses_its_own_datagrams_only() {
    let mut nodes = three_and_one();
    let shared = nodes[0].address();
    let (idle, other) = (nodes[1].prefix(), nodes[2].prefix());
    let idler = nodes.remove(1);
    let mut sent = 0;
    let give_up = Instant::now() + Duration::from_secs(20);
    while nodes[0].link.counters().overrun() == 0 {
        assert!(Instant::now() < give_up);
        nodes[2].send(shared, idle, 0, &[4000; 50]);
        nodes[2].send(shared, other, 0, &[1000; 5]);
        sent += 5;
        drive(&mut nodes, |nodes| nodes[1].got.len() >= sent);
    }
    // What fits into two MiB it gets later, whole and in order.
    nodes.insert(1, idler);
    drive(&mut nodes, |nodes| nodes[1].got.len() >= (2 << 20) / 4056);
    assert!(nodes[1].got.iter().enumerate().all(|(n, got)| usize::from(got.mark) == n % 50));
    nodes[1].got.clear();
    nodes[3].send(shared, idle, 200, &[100]);
    drive(&mut nodes, |nodes| !nodes[1].got.is_empty());
    assert_eq!(nodes[1].take(), [200]);
}

const SERVICE: ServiceId = ServiceId::new(PortSpace::Udp, 7471);

fn ask() -> Message {
    let private_data = [0; 216];
    Message::SidrReq(SidrReq { request_id: 5, pkey: 0xFFFF, service_id: SERVICE, private_data })
}

fn answer(name: u32) -> Message {
    Message::Drep(Drep { local_comm_id: 9, remote_comm_id: name, private_data: [0; 224] })
}

#[test]
fn a_service_belongs_to_one_link_and_requests_go_there() {
    let mut nodes = three_and_one();
    let shared = nodes[0].address();
    let expect = |nodes: &mut Vec<Node>, counts: [usize; 4]| {
        let last = nodes.len() - 1;
        nodes[last].send_mad(shared, 3, ask());
        drive_until(nodes, &counts[3 - last..]);
        nodes.iter_mut().for_each(|node| node.got.clear());
    };
    // Nobody's: the owner answers.
    expect(&mut nodes, [1, 0, 0, 0]);
    nodes[2].link.claim_service(SERVICE.0).unwrap();
    nodes[2].link.claim_service(SERVICE.0).unwrap();
    let error = nodes[0].link.claim_service(SERVICE.0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let us = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&us) && error.to_string().contains("udp:7471"), "{error}");
    expect(&mut nodes, [0, 0, 1, 0]);
    // It changes hands, to a member, to the owner, and back.
    for to in [1, 0, 2] {
        nodes.iter_mut().for_each(|node| node.link.release_service(SERVICE.0));
        nodes[to].link.claim_service(SERVICE.0).unwrap();
        let mut counts = [0; 4];
        counts[to] = 1;
        expect(&mut nodes, counts);
    }
    // Another address is another matter.
    nodes[3].link.claim_service(SERVICE.0).unwrap();
    // A new owner knows of it.
    nodes.remove(0);
    receive_again(&mut nodes);
    expect(&mut nodes, [0, 0, 1, 0]);
    // It is free when its link is gone, and unclaimed requests go to whoever is the owner.
    nodes.remove(1);
    receive_again(&mut nodes);
    nodes[0].link.claim_service(SERVICE.0).unwrap();
    nodes[1].send_mad(shared, 3, ask());
    drive(&mut nodes, |nodes| nodes[0].got.len() == 1);
}

#[test]
fn answers_go_by_the_name_of_the_connection() {
    let mut nodes = three_and_one();
    let shared = nodes[0].address();
    for n in 0..3 {
        let name = nodes[n].prefix() << 24 | 0x00AB_CDEF;
        nodes[3].send_mad(shared, 3, answer(name));
        let mut counts = [0; 4];
        counts[n] = 1;
        drive_until(&mut nodes, &counts);
        nodes[n].got.clear();
    }
    // Of those who are gone: the owner's NIC says so.
    let free = (1..0xFF).find(|prefix| nodes[..3].iter().all(|node| node.prefix() != *prefix)).unwrap();
    nodes[3].send_mad(shared, 3, answer(free << 24));
    drive_until(&mut nodes, &[1, 0, 0, 0]);
    // One that names nothing of its receiver.
    let rej = Rej {
        local_comm_id: 7,
        remote_comm_id: 0,
        subject: Subject::Other,
        info_len: 0,
        reason: RejectReason::TIMEOUT,
        info: [0; 72],
        private_data: [0; 148],
    };
    nodes[3].send_mad(shared, 3, Message::Rej(rej));
    drive_until(&mut nodes, &[2, 1, 1, 0]);
}

#[test]
fn a_link_has_only_so_many_services() {
    let mut link = Node::open(address()).link;
    for id in 0..128 {
        link.claim_service(id).unwrap();
    }
    let error = link.claim_service(128).unwrap_err();
    assert!(error.to_string().contains("128 services at most"), "{error}");
    link.release_service(5);
    link.claim_service(128).unwrap();
}

/// Sleeps in the waiter of a link, and receives, until something came; says how long no datagram had to
/// wait for a deadline.
fn sleep_until_something_comes(mut node: Node) -> Node {
    let waiter = node.link.waiter();
    while node.got.is_empty() {
        waiter.wait(node.link.next_deadline());
        node.progress();
    }
    node
}

#[test]
fn a_member_that_sleeps_is_woken_by_datagrams_and_by_the_death_of_the_owner() {
    let shared = address();
    let owner = Node::open(shared);
    let member = Node::open(shared);
    let mut outsider = Node::open(address());
    let prefix = member.prefix();
    let (done, wakened) = mpsc::channel();
    // Nobody polls: all sleep without a deadline.
    let counters = owner.link.counters();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let waiter = owner.link.waiter();
    let owning = {
        let stop = std::sync::Arc::clone(&stop);
        let (mut owner, waiter) = (owner, std::sync::Arc::clone(&waiter));
        thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                waiter.wait(owner.link.next_deadline());
                owner.progress();
            }
        })
    };
    let sleeping = thread::spawn(move || {
        let mut member = member;
        for _ in 0..60 {
            member = sleep_until_something_comes(member);
            done.send(member.take().len()).unwrap();
        }
    });
    let say = |outsider: &mut Node, patience| {
        outsider.send(shared, prefix, 1, &[100]);
        wakened.recv_timeout(patience)
    };
    for _ in 0..50 {
        let woken = say(&mut outsider, Duration::from_secs(10));
        assert_eq!(woken, Ok(1), "{counters:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    waiter.wake();
    owning.join().unwrap();
    // What is sent before the member has the port is lost.
    let mut woken = 0;
    let give_up = Instant::now() + Duration::from_secs(20);
    while woken < 10 {
        assert!(Instant::now() < give_up);
        woken += usize::from(say(&mut outsider, Duration::from_millis(20)).is_ok());
    }
    sleeping.join().unwrap();
}

#[test]
fn addresses_of_ipv6_are_shared_too() {
    let loopback = "::1".parse().unwrap();
    let first = match UdpLink::bind(loopback, &UdpOptions { join: false, ..UdpOptions::default() }) {
        Ok(link) => link,
        Err(error @ (BindError::InUse { .. } | BindError::NotLocal { .. })) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let first = Node { link: first, rx: RxBatch::with_capacity(1 << 19, 512), got: Vec::new() };
    let mut nodes = [first, Node::open(loopback)];
    drive(&mut nodes, |nodes| nodes[0].link.counters().members() == 1);
    let [to_owner, to_member] = [0, 1].map(|n: usize| nodes[n].prefix());
    nodes[0].send(loopback, to_member, 1, &[64, 64, 3000]);
    nodes[1].send(loopback, to_owner, 5, &[64, 64, 3000]);
    drive_until(&mut nodes, &[3, 3]);
    assert_eq!((nodes[0].take(), nodes[1].take()), (vec![5, 6, 7], vec![1, 2, 3]));
}
