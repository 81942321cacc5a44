//! What the tests of several files need: free addresses, datagrams with a valid ICRC.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part of it")]

mod namespace;
mod recorder;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyverbs_link::udp::{BindError, Io, UdpLink, UdpOptions};
use anyverbs_nic::link::{Link, RxBatch, RxEntry, TxBatch};
use anyverbs_wire::{Flow, icrc};

pub use namespace::{Namespace, cable};
pub use recorder::{Recorder, Sent, Tape};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback address that no other test uses: of 2^24, by process and number.
pub fn address() -> IpAddr {
    let n = process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let [_, _, a, b] = (n / 254).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, a, b, 1 + (n % 254) as u8))
}

/// A UDP link on an address of its own, or why it cannot be had.
pub fn bind(io: Io) -> Result<UdpLink, BindError> {
    loop {
        match UdpLink::bind(address(), &UdpOptions { io, join: false, ..UdpOptions::default() }) {
            Err(BindError::InUse { .. }) => {}
            other => return other,
        }
    }
}

/// A UDP link on an address of its own.
pub fn udp(io: Io) -> UdpLink {
    bind(io).unwrap_or_else(|error| panic!("{error}"))
}

/// The ways of I/O that can be tested here.
pub fn ways() -> Vec<Io> {
    let mut ways = vec![Io::Sockets, Io::Auto];
    match bind(Io::Uring) {
        Ok(_) => ways.push(Io::Uring),
        Err(error) => eprintln!("not tested: {error}"),
    }
    ways
}

/// Says why a test is left out, whether or not the output of tests is shown.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "{reason}");
}

/// Puts a datagram of `len` bytes into a batch whose ICRC is right for IP identification 0.
pub fn push(batch: &mut TxBatch, source: IpAddr, destination: IpAddr, ecn: u8, len: usize, mark: u8) {
    push_from(batch, (source, 4791), destination, ecn, len, mark);
}

/// The same with a source port.
pub fn push_from(
    batch: &mut TxBatch,
    (source, source_port): (IpAddr, u16),
    destination: IpAddr,
    ecn: u8,
    len: usize,
    mark: u8,
) {
    let datagram = batch.push(destination, source_port, ecn, len).expect("room in the batch");
    let (body, tail) = datagram.split_at_mut(len - icrc::LEN);
    for (i, byte) in body.iter_mut().enumerate() {
        *byte = mark.wrapping_add(i as u8);
    }
    tail.copy_from_slice(&icrc::compute(&Flow { source, destination, source_port }, 0, body));
}

/// Receives until `n` datagrams came: each with its source, its ECN bits, its bytes, and the IP
/// identification that its ICRC fits.
pub fn collect(link: &mut dyn Link, n: usize) -> Vec<Arrived> {
    collect_with(link, n, &mut RxBatch::with_capacity(1 << 19, 512))
}

/// The same, by way of a batch of the caller's.
pub fn collect_with(link: &mut dyn Link, n: usize, batch: &mut RxBatch) -> Vec<Arrived> {
    let waiter = link.waiter();
    let give_up = Instant::now() + Duration::from_secs(10);
    let mut arrived = Vec::new();
    while arrived.len() < n && Instant::now() < give_up {
        batch.clear();
        link.receive(batch, waiter.now()).unwrap();
        if batch.entries().is_empty() {
            waiter.wait(Some(waiter.now() + Duration::from_millis(50)));
        }
        for entry in batch.entries() {
            let bytes = batch.bytes()[entry.range()].to_vec();
            let flow =
                Flow { source: entry.source, destination: entry.destination, source_port: entry.source_port };
            let ip_id = match entry.ip_id {
                Some(id) => icrc::verify_with_id(&flow, id, &bytes).then_some(id),
                None => icrc::verify(&flow, &bytes),
            };
            let RxEntry { source, destination, source_port, ecn, .. } = *entry;
            arrived.push(Arrived {
                source,
                source_port,
                destination,
                ecn,
                ip_id,
                seen_id: entry.ip_id,
                bytes,
            });
        }
    }
    arrived
}

/// A datagram that a link received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub ecn: u8,
    /// The identification that the ICRC fits, as a NIC would accept it from anyone.
    pub ip_id: Option<u16>,
    /// The identification that the link saw.
    pub seen_id: Option<u16>,
    pub bytes: Vec<u8>,
}

impl Arrived {
    /// The first byte, which [`push`] took from its `mark`.
    pub fn mark(&self) -> u8 {
        self.bytes[0]
    }
}
