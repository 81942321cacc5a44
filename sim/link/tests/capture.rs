//! What a capture file says is what passed.

mod support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyverbs_link::capture::{Captured, wall_origin};
use anyverbs_link::fault::Faulty;
use anyverbs_link::udp::Io;
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, RxBatch, TxBatch};
use anyverbs_wire::{Flow, icrc};
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use support::{Recorder, collect, push, udp};

const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A path of its own in the directory for temporary files, that goes when the test does.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> TempPath {
        let name = format!("anyverbs-link-{}-{name}.pcapng", std::process::id());
        TempPath(std::env::temp_dir().join(name))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The packets of a capture, after a look at its interface.
fn packets(capture: impl io::Read) -> Vec<EnhancedPacketBlock<'static>> {
    let mut reader = PcapNgReader::new(capture).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            Block::EnhancedPacket(packet) => packets.push(packet),
            Block::InterfaceDescription(interface) => {
                assert_eq!(interface.linktype, DataLink::RAW);
                assert!(interface.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
            }
            other => panic!("{other:?}"),
        }
    }
    packets
}

fn read(path: &Path) -> Vec<EnhancedPacketBlock<'static>> {
    packets(File::open(path).unwrap())
}

fn direction(packet: &EnhancedPacketBlock<'_>) -> u32 {
    match packet.options[..] {
        [EnhancedPacketOption::Flags(flags)] => flags,
        ref other => panic!("{other:?}"),
    }
}

/// Reads an IPv4 and UDP header: the flow, the identification, the TOS and the datagram.
fn dissect(packet: &[u8]) -> (Flow, u16, u8, &[u8]) {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let ip = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into();
    assert_eq!((packet[0], packet[9], word(22)), (0x45, 17, 4791));
    assert_eq!((usize::from(word(2)), usize::from(word(24))), (packet.len(), packet.len() - 20));
    let flow = Flow { source: ip(12), destination: ip(16), source_port: word(20) };
    (flow, word(4), packet[1], &packet[28..])
}

#[test]
fn both_directions_of_udp_are_there_with_valid_icrcs_and_wall_time() {
    let path = TempPath::new("udp");
    let plain = udp(Io::Auto);
    let origin = wall_origin(plain.waiter().now());
    let mut a = Captured::create(plain, &path.0, origin).unwrap();
    let mut b = udp(Io::Auto);
    let (from, to) = (a.info().address, b.info().address);
    let mut batch = TxBatch::with_capacity(1 << 20, 64);
    for mark in 0..10 {
        push(&mut batch, from, to, 2, 1000, mark);
    }
    let now = a.waiter().now();
    a.transmit(&mut batch, now).unwrap();
    assert_eq!(collect(&mut b, 10).len(), 10);
    for mark in 10..20 {
        push(&mut batch, to, from, 0, 500, mark);
    }
    b.transmit(&mut batch, now).unwrap();
    assert_eq!(collect(&mut a, 10).len(), 10);
    let status = a.status();
    drop(a);
    assert_eq!((status.packets(), status.missed()), (20, 0));

    let packets = read(&path.0);
    assert_eq!(packets.len(), 20);
    let wall = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    for (i, packet) in packets.iter().enumerate() {
        let (flow, ip_id, tos, datagram) = dissect(&packet.data);
        let out = i < 10;
        assert_eq!(direction(packet), if out { OUTBOUND } else { INBOUND });
        assert_eq!((flow.source, flow.destination), if out { (from, to) } else { (to, from) });
        assert_eq!((tos, datagram.len()), if out { (2, 1000) } else { (0, 500) });
        assert_eq!(usize::from(datagram[0]), i);
        // Right for the identification that the packet shows: a dissector finds no fault.
        let (body, tail) = datagram.split_at(datagram.len() - icrc::LEN);
        assert_eq!(tail, icrc::compute(&flow, ip_id, body), "packet {i} of ID {ip_id}");
        assert!(wall.abs_diff(packet.timestamp) < Duration::from_secs(30));
    }
}

#[test]
fn timestamps_are_the_origin_and_the_time_to_the_nanosecond() {
    let path = TempPath::new("time");
    let (recorder, tape) = Recorder::new(false);
    let mut link = Captured::create(recorder, &path.0, Duration::from_secs(1_000_000_000)).unwrap();
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, 1);
    link.transmit(&mut batch, Time::from_nanos(123_456_789)).unwrap();
    tape.lock().unwrap().arriving.push(vec![9; 33]);
    link.receive(&mut RxBatch::with_capacity(1 << 16, 16), Time::from_nanos(5_000_000_001)).unwrap();
    // On a virtual clock, a capture has no wishes of its own.
    assert_eq!(link.next_deadline(), None);
    drop(link);
    let packets = read(&path.0);
    let times: Vec<_> = packets.iter().map(|p| p.timestamp).collect();
    assert_eq!(times, [Duration::new(1_000_000_000, 123_456_789), Duration::new(1_000_000_005, 1)]);
    let (flow, ip_id, tos, datagram) = dissect(&packets[1].data);
    assert_eq!((flow.source_port, ip_id, tos, datagram), (0xC123, 0, 1, &[9; 33][..]));
}

#[test]
fn what_the_link_did_not_take_is_captured_once() {
    let path = TempPath::new("left");
    let (recorder, tape) = Recorder::new(false);
    let mut link = Captured::create(recorder, &path.0, Duration::ZERO).unwrap();
    tape.lock().unwrap().takes = Some(2);
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    for round in 0..5 {
        let mark = 2 * round;
        push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, mark);
        push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, mark + 1);
        push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, 100 + round);
        link.transmit(&mut batch, Time::ZERO).unwrap();
    }
    assert_eq!(batch.len(), 5);
    tape.lock().unwrap().takes = None;
    link.transmit(&mut batch, Time::ZERO).unwrap();
    drop(link);
    let seen: Vec<_> = read(&path.0).iter().map(|p| p.data[28]).collect();
    assert_eq!(seen, [0, 1, 100, 2, 3, 101, 4, 5, 102, 6, 7, 103, 8, 9, 104]);
    assert_eq!(tape.lock().unwrap().sent.len(), 15);
}

#[test]
fn faults_inside_are_not_seen_and_faults_outside_are() {
    for (outside, expected) in [(false, 10), (true, 0)] {
        let path = TempPath::new(if outside { "outside" } else { "inside" });
        let (recorder, _tape) = Recorder::new(false);
        let loss = "loss=1".parse().unwrap();
        let mut link: Box<dyn Link> = if outside {
            Box::new(Faulty::new(Captured::create(recorder, &path.0, Duration::ZERO).unwrap(), loss, 0))
        } else {
            Box::new(Captured::create(Faulty::new(recorder, loss, 0), &path.0, Duration::ZERO).unwrap())
        };
        let mut batch = TxBatch::with_capacity(1 << 16, 64);
        for mark in 0..10 {
            push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, mark);
        }
        link.transmit(&mut batch, Time::ZERO).unwrap();
        drop(link);
        assert_eq!(read(&path.0).len(), expected);
    }
}

/// A disk with so many bytes left.
#[derive(Clone)]
struct Disk {
    written: Arc<Mutex<Vec<u8>>>,
    size: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = self.written.lock().unwrap();
        let n = bytes.len().min(self.size - written.len());
        if n == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        written.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn packets_are_written_before_long_though_nothing_follows() {
    let disk = Disk { written: Arc::default(), size: usize::MAX };
    let (recorder, _tape) = Recorder::new(true);
    let mut link = Captured::new(recorder, Box::new(disk.clone()), Duration::ZERO).unwrap();
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 64, 1);
    link.transmit(&mut batch, Time::ZERO).unwrap();
    let written = || packets(&disk.written.lock().unwrap()[..]).len();
    assert_eq!(written(), 0);
    let due = link.next_deadline().unwrap();
    assert!(due.since(Time::ZERO) <= Duration::from_secs(1));
    link.receive(&mut RxBatch::with_capacity(1 << 10, 1), due).unwrap();
    assert_eq!((written(), link.next_deadline()), (1, None));
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_link() {
    let disk = Disk { written: Arc::default(), size: 300_000 };
    let (recorder, tape) = Recorder::new(true);
    let mut link = Captured::new(recorder, Box::new(disk), Duration::ZERO).unwrap();
    let status = link.status();
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    for _ in 0..1000 {
        push(&mut batch, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0, 1000, 1);
        link.transmit(&mut batch, Time::ZERO).unwrap();
    }
    assert_eq!(tape.lock().unwrap().sent.len(), 1000);
    assert_eq!(status.error().map(io::Error::kind), Some(io::ErrorKind::StorageFull));
    assert_eq!(status.packets() + status.missed(), 1000);
    assert!(status.packets() > 200 && status.missed() > 100, "{status:?}");
    assert_eq!(link.next_deadline(), None);
    // And one that is full from the start is an error at once.
    let (recorder, _tape) = Recorder::new(true);
    let disk = Disk { written: Arc::default(), size: 10 };
    assert!(Captured::new(recorder, Box::new(disk), Duration::ZERO).is_err());
}
