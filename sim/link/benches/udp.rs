//! Measures the ways in which a UDP link can call the kernel, side by side on loopback:
//! `cargo bench -p anyverbs-link --bench udp [-- ROUNDS [PART OF A NAME]]`.
//!
//! Compare only figures of one run, since machines change their mind from second to second: rounds
//! are interleaved, and each figure is the median of all rounds, with the best in brackets.

use std::env;
use std::hint::spin_loop;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyverbs_link::udp::{Io, UdpLink, UdpOptions};
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use rustix::time::{ClockId, clock_gettime};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 2));
const WAYS: [Io; 3] = [Io::Sockets, Io::Uring, Io::Auto];

const PING: usize = 64;
const PINGS: u32 = 5_000;
/// A packet of 4 KiB with its headers, and how many of them fill a send.
const FULL: usize = 4136;
const FULLS: usize = 15;
/// Bytes on their way at most.
const WINDOW: usize = 1 << 20;
const STREAM: usize = 256 << 20;

/// How a program that found nothing passes the time.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Relax {
    Spin,
    Yield,
    /// Yields after this many empty polls.
    YieldAfter(u32),
}

impl Relax {
    fn relax(self, polls: &mut u32) {
        *polls += 1;
        match self {
            Relax::Spin => spin_loop(),
            Relax::Yield => thread::yield_now(),
            Relax::YieldAfter(n) if *polls > n => thread::yield_now(),
            Relax::YieldAfter(_) => spin_loop(),
        }
    }
}

struct Node {
    link: UdpLink,
    tx: TxBatch,
    rx: RxBatch,
    relax: Relax,
}

impl Node {
    fn new(address: IpAddr, io: Io, relax: Relax) -> Node {
        let give_up = Instant::now() + Duration::from_secs(5);
        let link = loop {
            match UdpLink::bind(address, &UdpOptions { io, join: false, ..UdpOptions::default() }) {
                Ok(link) => break link,
                Err(error) if Instant::now() > give_up => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        Node {
            link,
            tx: TxBatch::with_capacity(1 << 20, 512),
            rx: RxBatch::with_capacity(1 << 20, 512),
            relax,
        }
    }

    fn send(&mut self, to: IpAddr, len: usize, count: usize) {
        for _ in 0..count {
            self.tx.push(to, 4791, 0, len).unwrap();
        }
        while !self.tx.is_empty() {
            self.link.transmit(&mut self.tx, Time::ZERO).unwrap();
        }
    }

    /// Polls until something is there: how many datagrams, and how many bytes.
    fn poll(&mut self, give_up: Option<Instant>) -> Option<(usize, usize)> {
        let mut polls = 0;
        loop {
            self.rx.clear();
            self.link.receive(&mut self.rx, Time::ZERO).unwrap();
            if !self.rx.entries().is_empty() {
                return Some((self.rx.entries().len(), self.rx.entries().iter().map(|e| e.len).sum()));
            }
            self.relax.relax(&mut polls);
            if polls % 4096 == 0 && give_up.is_some_and(|at| Instant::now() > at) {
                return None;
            }
        }
    }
}

/// The other process: answers pings, and each window of a stream with one small datagram.
fn peer(io: Io, relax: Relax) {
    let mut node = Node::new(THERE, io, relax);
    let mut unanswered = 0;
    loop {
        let Some((datagrams, bytes)) = node.poll(Some(Instant::now() + Duration::from_secs(20))) else {
            return;
        };
        let len = node.rx.entries()[datagrams - 1].len;
        match len {
            1 => return,
            PING => node.send(HERE, PING, datagrams),
            _ => {
                unanswered += bytes;
                if unanswered >= WINDOW / 4 {
                    node.send(HERE, PING, 1);
                    unanswered -= WINDOW / 4;
                }
            }
        }
    }
}

fn start_peer(io: Io, relax: Relax) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--peer", &format!("{io:?}"), &format!("{relax:?}")])
        .spawn()
        .unwrap()
}

/// One-way time of a ping, in microseconds.
fn ping(io: Io, relax: Relax) -> f64 {
    with_peer(io, relax, |node| {
        let start = Instant::now();
        for _ in 0..PINGS {
            node.send(THERE, PING, 1);
            node.poll(None);
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(PINGS) / 2.0
    })
}

/// GB/s of a stream of full packets, with a window.
fn stream(io: Io, relax: Relax, sends: usize) -> f64 {
    with_peer(io, relax, |node| {
        let start = Instant::now();
        let (mut sent, mut acknowledged) = (0, 0);
        let give_up = Some(start + Duration::from_secs(20));
        while acknowledged < STREAM {
            while sent < STREAM + WINDOW && sent - acknowledged < WINDOW {
                node.send(THERE, FULL, sends * FULLS);
                sent += FULL * sends * FULLS;
            }
            let Some((datagrams, _)) = node.poll(give_up) else { return 0.0 };
            acknowledged += datagrams * (WINDOW / 4);
        }
        acknowledged as f64 / start.elapsed().as_secs_f64() / 1e9
    })
}

fn with_peer(io: Io, relax: Relax, run: impl FnOnce(&mut Node) -> f64) -> f64 {
    let mut node = Node::new(HERE, io, relax);
    let mut peer = start_peer(io, relax);
    // Until it is there.
    loop {
        node.send(THERE, PING, 1);
        if node.poll(Some(Instant::now() + Duration::from_millis(50))).is_some() {
            break;
        }
    }
    while node.poll(Some(Instant::now() + Duration::from_millis(50))).is_some() {}
    let figure = run(&mut node);
    node.send(THERE, 1, 1);
    peer.wait().unwrap();
    figure
}

/// Processor time of this process, in nanoseconds.
fn clock() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Nanoseconds of processor time that each of `n` calls takes: unlike the time that passes, it does
/// not count what other programs take.
fn processor_time(n: u32, mut call: impl FnMut()) -> f64 {
    let start = clock();
    for _ in 0..n {
        call();
    }
    (clock() - start) / f64::from(n)
}

/// Nanoseconds of a poll that finds nothing.
fn empty_poll(io: Io) -> f64 {
    let mut node = Node::new(HERE, io, Relax::Spin);
    processor_time(200_000, || node.link.receive(&mut node.rx, Time::ZERO).unwrap())
}

/// Nanoseconds a datagram, sent to as many addresses at once, where nobody looks at them.
fn fan_out(io: Io, fan: u8) -> f64 {
    let sinks: Vec<_> =
        (0..fan).map(|i| UdpSocket::bind((Ipv4Addr::new(127, 78, 0, i + 1), 4791)).unwrap()).collect();
    let mut node = Node::new(HERE, io, Relax::Spin);
    let round = processor_time(20_000, || {
        for sink in &sinks {
            node.tx.push(sink.local_addr().unwrap().ip(), 4791, 0, PING).unwrap();
        }
        node.link.transmit(&mut node.tx, Time::ZERO).unwrap();
    });
    round / f64::from(fan)
}

/// Nanoseconds of a datagram of 1 KiB, of those that arrive together: from the socket to the NIC of the link
/// that has the port, or on to a link that shares its address.
fn received(io: Io, by_member: bool) -> f64 {
    let mut owner = Node::new(HERE, io, Relax::Spin);
    let mut member = UdpLink::bind(HERE, &UdpOptions { io, ..UdpOptions::default() }).unwrap();
    let mut sender = Node::new(THERE, io, Relax::Spin);
    while owner.link.counters().members() == 0 {
        owner.link.receive(&mut owner.rx, Time::ZERO).unwrap();
    }
    let link = if by_member { &member } else { &owner.link };
    let prefix = link.info().prefix.unwrap().value as u8;
    let mut spent = 0.0;
    let mut count = 0;
    for _ in 0..20_000 {
        for _ in 0..FULLS {
            sender.tx.push(HERE, 4791, 0, 1064).unwrap()[5] = prefix;
        }
        sender.link.transmit(&mut sender.tx, Time::ZERO).unwrap();
        let start = clock();
        owner.rx.clear();
        owner.link.receive(&mut owner.rx, Time::ZERO).unwrap();
        count += owner.rx.entries().len();
        if by_member {
            owner.rx.clear();
            member.receive(&mut owner.rx, Time::ZERO).unwrap();
            count += owner.rx.entries().len();
        }
        spent += clock() - start;
    }
    spent / count as f64
}

/// Microseconds from the end of the link that has the port until one that shared its address, and sleeps, has
/// it.
fn take_over(io: Io) -> f64 {
    let mut owner = Node::new(HERE, io, Relax::Spin);
    let mut member = UdpLink::bind(HERE, &UdpOptions { io, ..UdpOptions::default() }).unwrap();
    let waiter = member.waiter();
    while owner.link.counters().members() == 0 {
        owner.link.receive(&mut owner.rx, waiter.now()).unwrap();
    }
    let mut rx = RxBatch::with_capacity(1 << 20, 512);
    let closing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        drop(owner);
        start
    });
    while member.counters().takeovers() == 0 || member.next_deadline().is_some() {
        waiter.wait(member.next_deadline());
        member.receive(&mut rx, waiter.now()).unwrap();
    }
    let end = Instant::now();
    end.duration_since(closing.join().unwrap()).as_secs_f64() * 1e6
}

/// Nanoseconds for a datagram to itself and back out of the kernel, with these options; `reveal`: after a
/// peer was heard that uses IP identifications.
fn to_itself(options: &UdpOptions, reveal: bool) -> f64 {
    let mut link = UdpLink::bind(HERE, options).unwrap();
    if reveal {
        link.reveal_ids();
    }
    let (tx, rx) = (TxBatch::with_capacity(1 << 16, 64), RxBatch::with_capacity(1 << 18, 256));
    let mut node = Node { link, tx, rx, relax: Relax::Spin };
    let port = node.link.source_port(7);
    processor_time(20_000, || {
        node.tx.push(HERE, port, 0, PING).unwrap();
        node.link.transmit(&mut node.tx, Time::ZERO).unwrap();
        node.poll(None);
    })
}

/// What the parts of the options cost.
fn options(plan: &Plan) {
    let all = UdpOptions::default();
    let variants = [
        ("one port", UdpOptions { source_ports: 0, ..all.clone() }, false),
        ("default", all.clone(), false),
        ("with a raw socket", all, true),
    ];
    if !"64 B to itself".contains(&plan.filter) {
        return;
    }
    let mut figures = vec![Vec::new(); variants.len()];
    for _ in 0..plan.rounds {
        for (figures, (_, options, reveal)) in figures.iter_mut().zip(&variants) {
            figures.push(to_itself(options, *reveal));
        }
    }
    print!("{:<34}", "64 B to itself");
    for (mut figures, (name, ..)) in figures.into_iter().zip(variants) {
        figures.sort_by(f64::total_cmp);
        print!("  {name} {:.0} [{:.0}]", figures[figures.len() / 2], figures[0]);
    }
    println!("  ns");
}

/// What to measure, and how often.
struct Plan {
    rounds: u32,
    /// Only figures whose name has this in it.
    filter: String,
}

impl Plan {
    fn report(&self, name: &str, unit: &str, most_is_best: bool, mut run: impl FnMut(Io) -> f64) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut figures = vec![Vec::new(); WAYS.len()];
        for _ in 0..self.rounds {
            for (figures, io) in figures.iter_mut().zip(WAYS) {
                figures.push(run(io));
            }
        }
        print!("{name:<34}");
        for (mut figures, io) in figures.into_iter().zip(WAYS) {
            figures.sort_by(f64::total_cmp);
            let best = if most_is_best { figures[figures.len() - 1] } else { figures[0] };
            print!("  {io:?} {:.2} [{best:.2}]", figures[figures.len() / 2]);
        }
        println!("  {unit}");
    }
}

fn parse_way(text: &str) -> Io {
    WAYS.into_iter().find(|io| format!("{io:?}") == text).unwrap()
}

fn main() {
    let relaxes = [Relax::Spin, Relax::Yield, Relax::YieldAfter(100)];
    let arguments: Vec<_> = env::args().collect();
    if let [_, flag, io, relax] = &arguments[..]
        && flag == "--peer"
    {
        let relax = relaxes.into_iter().find(|r| format!("{r:?}") == *relax).unwrap();
        return peer(parse_way(io), relax);
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let is_filter = |argument: &&String| !argument.starts_with('-') && argument.parse::<u32>().is_err();
    let filter = arguments.iter().skip(1).find(is_filter).cloned().unwrap_or_default();
    let plan = Plan { rounds, filter };
    plan.report("empty poll", "ns", false, empty_poll);
    plan.report("15 x 1 KiB received", "ns each", false, |io| received(io, false));
    plan.report("15 x 1 KiB handed over", "ns each", false, |io| received(io, true));
    plan.report("take-over", "us", false, take_over);
    options(&plan);
    for fan in [1, 4, 16] {
        plan.report(&format!("send to {fan}"), "ns each", false, |io| fan_out(io, fan));
    }
    for relax in relaxes {
        plan.report(&format!("64 B one-way, {relax:?}"), "us", false, |io| ping(io, relax));
    }
    for relax in relaxes {
        plan.report(&format!("15 x 4136 B, {relax:?}"), "GB/s", true, |io| stream(io, relax, 1));
        plan.report(&format!("4 x 15 x 4136 B, {relax:?}"), "GB/s", true, |io| stream(io, relax, 4));
    }
}
