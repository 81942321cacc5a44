//! Packet captures of any link, in pcapng files that Wireshark and tcpdump read.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, RxEntry, TxBatch, Waiter};
use anyverbs_wire::{Flow, encapsulate, icrc};
use pcap_file::pcapng::Block;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 256 << 10;

/// How long a packet stays unwritten at most, on a link whose clock is a real one.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// The longest packet of a file, as its header has it.
const SNAPLEN: u32 = 256 << 10;

/// IPv6 and UDP headers, the longest.
const HEADERS_MAX: usize = 48;

/// The hop count that packets have in captures: what Linux sends.
const TTL: u8 = 64;

/// The direction of a packet, as the option `epb_flags` has it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// How a capture fares. Shared with whoever watches it.
#[derive(Default, Debug)]
pub struct CaptureStatus {
    packets: AtomicU64,
    missed: AtomicU64,
    error: OnceLock<io::Error>,
}

impl CaptureStatus {
    /// Packets in the capture.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Packets that passed after the capture had failed, and are not in it.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Why the capture ended early, say because the disk is full. The link works on.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.get()
    }
}

/// The wall clock (since 1970) at [`Time::ZERO`] of a link whose time is `now` at present: the
/// origin of a capture that is to show when things really happened.
pub fn wall_origin(now: Time) -> Duration {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wall.saturating_sub(now.since(Time::ZERO))
}

/// A pcapng file that is being written.
struct Capture {
    writer: PcapNgWriter<BufWriter<Box<dyn Write + Send>>>,
    /// The block that each packet is written by, used again and again.
    block: Block<'static>,
    origin: Duration,
    status: Arc<CaptureStatus>,
    /// When the first packet was captured that may not be in the file yet.
    unwritten: Option<Time>,
}

impl Capture {
    fn new(output: Box<dyn Write + Send>, info: &LinkInfo, origin: Duration) -> io::Result<Capture> {
        let output = BufWriter::with_capacity(BUFFER, output);
        let mut writer = PcapNgWriter::new(output).map_err(into_io_error)?;
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: SNAPLEN,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(format!("{} {}", info.name, info.address))),
                // Timestamps count units of 10^-9 s.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        writer.write_pcapng_block(interface).map_err(into_io_error)?;
        writer.get_mut().flush()?;
        let block = Block::EnhancedPacket(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: 0,
            data: Cow::Owned(Vec::with_capacity(info.max_datagram + HEADERS_MAX)),
            options: vec![EnhancedPacketOption::Flags(0)],
        });
        Ok(Capture { writer, block, origin, status: Arc::default(), unwritten: None })
    }

    /// Writes one packet, unless the capture has failed before.
    fn packet(&mut self, flow: &Flow, ip_id: u16, ecn: u8, datagram: &[u8], direction: u32, now: Time) {
        if self.status.error().is_some() {
            self.status.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Block::EnhancedPacket(packet) = &mut self.block {
            let mut headers = [0; HEADERS_MAX];
            let headers_len = encapsulate(flow, ip_id, ecn, TTL, datagram.len(), &mut headers);
            let data = packet.data.to_mut();
            data.clear();
            data.extend_from_slice(&headers[..headers_len]);
            data.extend_from_slice(datagram);
            packet.original_len = data.len() as u32;
            packet.timestamp = self.origin.saturating_add(now.since(Time::ZERO));
            if let Some(option) = packet.options.first_mut() {
                *option = EnhancedPacketOption::Flags(direction);
            }
        }
        match self.writer.write_block(&self.block) {
            Ok(_) => {
                self.status.packets.fetch_add(1, Ordering::Relaxed);
                self.unwritten.get_or_insert(now);
            }
            Err(error) => self.fail(into_io_error(error)),
        }
    }

    fn flush(&mut self) {
        self.unwritten = None;
        if self.status.error().is_none()
            && let Err(error) = self.writer.get_mut().flush()
        {
            self.fail(error);
        }
    }

    /// Ends the capture: behind a block that is there in part, a reader would find nothing.
    fn fail(&mut self, error: io::Error) {
        self.status.missed.fetch_add(1, Ordering::Relaxed);
        self.unwritten = None;
        // Only the first error is kept; there is none after it.
        let _ = self.status.error.set(error);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.flush();
    }
}

fn into_io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// A link whose datagrams are written to a capture, in both directions.
///
/// Packets are written as the network would show them: IP, UDP and the datagram. Those that the
/// NIC sends have the IP identification 0, for which it made their ICRC; those that it receives
/// have the one that their ICRC fits.
///
/// When the file cannot be written any more the capture ends, [`CaptureStatus`] says why, and the
/// link works on.
pub struct Captured<L: Link> {
    inner: L,
    capture: Capture,
    left: Left,
    /// Packets are not to stay unwritten for long. On a virtual clock there is no hurry, and a
    /// deadline of ours would change the run.
    hurries: bool,
}

/// Datagrams at the front of a batch that are in the capture already, because the link did not
/// take them when they were to be sent first.
#[derive(Default)]
struct Left {
    /// Where the batch has its bytes: which batch it is.
    batch: usize,
    datagrams: usize,
}

impl<L: Link> Captured<L> {
    /// Captures what passes `inner` in a new file at `path`. `origin` is the wall clock (since
    /// 1970) at [`Time::ZERO`]: [`wall_origin`] for a real clock, anything for a virtual one.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub fn create(inner: L, path: &Path, origin: Duration) -> io::Result<Captured<L>> {
        Self::new(inner, Box::new(File::create(path)?), origin)
    }

    /// The same, to anything that can be written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(inner: L, output: Box<dyn Write + Send>, origin: Duration) -> io::Result<Captured<L>> {
        let capture = Capture::new(output, inner.info(), origin)?;
        let hurries = inner.waiter().wants_progress_thread();
        Ok(Captured { inner, capture, left: Left::default(), hurries })
    }

    /// How the capture fares, to be read while the NIC has the link.
    pub fn status(&self) -> Arc<CaptureStatus> {
        Arc::clone(&self.capture.status)
    }

    fn flush_if_due(&mut self, now: Time) {
        if self.flush_deadline().is_some_and(|at| at <= now) {
            self.capture.flush();
        }
    }

    fn flush_deadline(&self) -> Option<Time> {
        self.capture.unwritten.filter(|_| self.hurries).map(|since| since + FLUSH_AFTER)
    }
}

impl<L: Link> Link for Captured<L> {
    fn info(&self) -> &LinkInfo {
        self.inner.info()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn source_port(&self, flow_hash: u32) -> u16 {
        self.inner.source_port(flow_hash)
    }

    fn path_max_datagram(&self, peer: IpAddr) -> usize {
        self.inner.path_max_datagram(peer)
    }

    fn claim_service(&mut self, id: u64) -> io::Result<()> {
        self.inner.claim_service(id)
    }

    fn release_service(&mut self, id: u64) {
        self.inner.release_service(id);
    }

    fn join(&mut self, group: IpAddr) -> io::Result<()> {
        self.inner.join(group)
    }

    fn leave(&mut self, group: IpAddr) {
        self.inner.leave(group);
    }

    fn reveal_ids(&mut self) {
        self.inner.reveal_ids();
    }

    fn too_large(&self) -> u64 {
        self.inner.too_large()
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        let source = self.inner.info().address;
        let bytes = batch.bytes();
        let which = bytes.as_ptr() as usize;
        let captured = if self.left.batch == which { self.left.datagrams } else { 0 };
        for entry in batch.entries().iter().skip(captured) {
            let flow = Flow { source, destination: entry.destination, source_port: entry.source_port };
            self.capture.packet(&flow, 0, entry.ecn, &bytes[entry.range()], OUTBOUND, now);
        }
        let result = self.inner.transmit(batch, now);
        self.left = Left { batch: which, datagrams: batch.len() };
        self.flush_if_due(now);
        result
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        let before = batch.entries().len();
        let result = self.inner.receive(batch, now);
        for entry in batch.entries().iter().skip(before) {
            let datagram = &batch.bytes()[entry.range()];
            let RxEntry { source, destination, source_port, .. } = *entry;
            let flow = Flow { source, destination, source_port };
            let ip_id = entry.ip_id.or_else(|| icrc::verify(&flow, datagram)).unwrap_or(0);
            self.capture.packet(&flow, ip_id, entry.ecn, datagram, INBOUND, now);
        }
        self.flush_if_due(now);
        result
    }

    fn next_deadline(&self) -> Option<Time> {
        self.inner.next_deadline().into_iter().chain(self.flush_deadline()).min()
    }
}
