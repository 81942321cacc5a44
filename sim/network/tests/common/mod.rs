//! A NIC small enough to compute by hand: it queues what arrives, or sends it back, and has one
//! timer.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyverbs_network::{Network, NetworkConfig};
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, Progress, RxBatch, TxBatch, Waiter};

pub fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub fn ns(ns: u64) -> Time {
    Time::from_nanos(ns)
}

/// 1 us, a byte a nanosecond, no framing: a datagram of n bytes arrives after n + 1000 ns.
pub fn plain() -> NetworkConfig {
    NetworkConfig {
        latency: Duration::from_micros(1),
        bandwidth_bits_per_s: 8_000_000_000,
        overhead_bytes: 0,
        ..NetworkConfig::default()
    }
}

/// A datagram that a NIC saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub at: Time,
    pub from: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub ecn: u8,
    pub bytes: Vec<u8>,
}

pub struct FakeNic {
    pub waiter: Arc<dyn Waiter>,
    echo: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    link: Box<dyn Link>,
    rx: RxBatch,
    tx: TxBatch,
    seen: VecDeque<Seen>,
    timer: Option<Time>,
    timer_passed: Vec<Time>,
}

impl FakeNic {
    pub fn open(network: &Network, n: u8) -> Arc<FakeNic> {
        Self::new(network, n, false)
    }

    /// One that sends everything back, with its first byte one more.
    pub fn echo(network: &Network, n: u8) -> Arc<FakeNic> {
        Self::new(network, n, true)
    }

    fn new(network: &Network, n: u8, echo: bool) -> Arc<FakeNic> {
        let link: Box<dyn Link> = Box::new(network.host(address(n)));
        let waiter = link.waiter();
        assert!(!waiter.wants_progress_thread());
        let inner = Inner {
            link,
            rx: RxBatch::with_capacity(10_000, 4),
            tx: TxBatch::with_capacity(1 << 20, 1000),
            seen: VecDeque::new(),
            timer: None,
            timer_passed: Vec::new(),
        };
        let nic = Arc::new(FakeNic { waiter, echo, inner: Mutex::new(inner) });
        let weak: Weak<FakeNic> = Arc::downgrade(&nic);
        network.attach(address(n), weak);
        nic
    }

    pub fn now(&self) -> Time {
        self.waiter.now()
    }

    /// Sleeps until then, whatever happens.
    pub fn sleep_until(&self, at: Time) {
        while self.now() < at {
            self.waiter.wait(Some(at));
        }
    }

    /// Queues a datagram and rings the doorbell.
    pub fn send(&self, to: IpAddr, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap();
        inner.tx.push(to, 50_000, 1, bytes.len()).expect("room").copy_from_slice(bytes);
        drop(inner);
        self.progress();
    }

    pub fn join(&self, group: IpAddr) -> std::io::Result<()> {
        self.inner.lock().unwrap().link.join(group)
    }

    pub fn leave(&self, group: IpAddr) {
        self.inner.lock().unwrap().link.leave(group);
    }

    /// Datagrams that the link has not taken yet.
    pub fn backlog(&self) -> usize {
        self.inner.lock().unwrap().tx.len()
    }

    pub fn set_timer(&self, at: Time) {
        self.inner.lock().unwrap().timer = Some(at);
    }

    pub fn timer_passed(&self) -> Vec<Time> {
        self.inner.lock().unwrap().timer_passed.clone()
    }

    pub fn poll(&self) -> Option<Seen> {
        self.progress();
        self.inner.lock().unwrap().seen.pop_front()
    }

    /// The next datagram; sleeps until it is there.
    pub fn recv(&self) -> Seen {
        loop {
            if let Some(seen) = self.poll() {
                return seen;
            }
            self.waiter.wait(None);
        }
    }

    /// The next datagram; polls until it is there.
    pub fn recv_polling(&self) -> Seen {
        loop {
            if let Some(seen) = self.poll() {
                return seen;
            }
            self.waiter.relax();
        }
    }
}

impl Progress for FakeNic {
    fn progress(&self) -> Option<Time> {
        let now = self.waiter.now();
        let inner = &mut *self.inner.lock().unwrap();
        let mut new = false;
        loop {
            inner.rx.clear();
            inner.link.receive(&mut inner.rx, now).unwrap();
            if inner.rx.entries().is_empty() {
                break;
            }
            for entry in inner.rx.entries() {
                let bytes = &inner.rx.bytes()[entry.range()];
                if self.echo {
                    let reply = inner.tx.push(entry.source, 50_001, entry.ecn, bytes.len()).expect("room");
                    reply.copy_from_slice(bytes);
                    reply[0] = reply[0].wrapping_add(1);
                } else {
                    let (from, source_port, ecn) = (entry.source, entry.source_port, entry.ecn);
                    let destination = entry.destination;
                    let bytes = bytes.to_vec();
                    inner.seen.push_back(Seen { at: now, from, destination, source_port, ecn, bytes });
                    new = true;
                }
            }
        }
        inner.link.transmit(&mut inner.tx, now).unwrap();
        if inner.timer.is_some_and(|at| at <= now) {
            inner.timer = None;
            inner.timer_passed.push(now);
            new = true;
        }
        if new {
            self.waiter.wake();
        }
        inner.timer
    }
}
