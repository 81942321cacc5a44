//! Building datagrams.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use anyverbs_engine::{QpType, Source, Time, Transmit};
use anyverbs_memory::{Access, RegionTable, Span};
use anyverbs_wire::{Flow, icrc};

use crate::core::Core;
use crate::link::Link;
use crate::qp::QpCore;
use crate::work::pieces;

/// Bytes of an ICRC.
const ICRC: usize = icrc::LEN;

/// A packet whose time has not come.
#[derive(Debug)]
struct Waiting {
    at: Time,
    /// Keeps packets of one time in order.
    sequence: u64,
    qpn: u32,
    transmit: Transmit<Span>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The earliest is the greatest, as a heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// Packets whose time has not come, the earliest first.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    heap: BinaryHeap<Waiting>,
    sequence: u64,
}

impl Deferred {
    fn push(&mut self, qpn: u32, transmit: Transmit<Span>) {
        self.sequence += 1;
        self.heap.push(Waiting { at: transmit.at, sequence: self.sequence, qpn, transmit });
    }

    /// When the first of them is due.
    pub(crate) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|waiting| waiting.at)
    }
}

impl Core {
    /// Sends a packet, now or when it is due. The error is the slot of a send work request whose
    /// memory may not be read.
    pub(crate) fn transmit(&mut self, qpn: u32, now: Time, transmit: &Transmit<Span>) -> Result<(), u64> {
        if transmit.at > now {
            self.deferred.push(qpn, *transmit);
            return Ok(());
        }
        self.build(qpn, transmit)
    }

    /// Sends the packets that have become due, as far as there is room.
    pub(crate) fn send_deferred(&mut self, now: Time) {
        while self.deferred.next().is_some_and(|at| at <= now) && self.make_room(1, now) {
            let Some(waiting) = self.deferred.heap.pop() else { break };
            // Memory that went away meanwhile: the packet is lost, and its repetition reports it.
            let _ = self.build(waiting.qpn, &waiting.transmit);
        }
    }

    /// Writes a datagram into the batch: headers, payload, pad, ICRC. The payload is read once, by
    /// a copy that computes the CRC of what it copied.
    fn build(&mut self, qpn: u32, transmit: &Transmit<Span>) -> Result<(), u64> {
        let Core { qps, regions, tx, link, .. } = self;
        let Some(qp) = qps.get_mut(qpn) else { return Ok(()) };
        let Some((peer, source_port)) = destination(qp, link.as_ref(), transmit) else { return Ok(()) };
        let header = &transmit.header;
        let payload_at = header.header_len();
        let payload_len = transmit.payload.len() as usize;
        let pad_at = payload_at + payload_len;
        let icrc_at = pad_at + usize::from(header.bth.pad);
        let Some(datagram) = tx.push(peer, source_port, qp.engine.ecn(), icrc_at + ICRC) else {
            // Room was made before the engine was asked; if there is none, the packet is lost.
            return Ok(());
        };
        header.emit(&mut datagram[..payload_at]);
        let flow = Flow { source: link.info().address, destination: peer, source_port };
        let crc = icrc::start(&flow, 0, &datagram[..payload_at], icrc_at + ICRC);
        let gathered = gather(regions, qp, transmit.payload, &mut datagram[payload_at..pad_at], crc);
        let Some(crc) = gathered else {
            tx.pop();
            return match transmit.payload {
                // A slot that is free again was acknowledged while this packet waited.
                Source::Send { slot, .. } if qp.sq.get(slot).is_some() => Err(slot),
                _ => Ok(()),
            };
        };
        datagram[pad_at..icrc_at].fill(0);
        let crc = icrc::extend(crc, &datagram[pad_at..icrc_at]);
        datagram[icrc_at..].copy_from_slice(&icrc::finish(crc));
        Ok(())
    }
}

/// Where a packet goes, and the source port that it leaves from: datagrams as their work request says, all others
/// to the peer.
fn destination(qp: &QpCore, link: &dyn Link, transmit: &Transmit<Span>) -> Option<(IpAddr, u16)> {
    match transmit.payload {
        Source::Send { slot, .. } if qp.qp_type == QpType::Ud => {
            let (peer, remote) = qp.sq.get(slot)?.datagram()?;
            Some((peer, link.source_port(remote ^ qp.shared.qpn())))
        }
        _ => Some((qp.peer?, qp.source_port)),
    }
}

/// Copies the payload into the datagram and continues its CRC; `None` if it may not be read.
fn gather(
    regions: &RegionTable,
    qp: &QpCore,
    from: Source<Span>,
    payload: &mut [u8],
    crc: u32,
) -> Option<u32> {
    match from {
        Source::None => Some(crc),
        Source::Region { span, .. } => regions.copy_out_crc(span, payload, crc).ok(),
        Source::Send { slot, offset, len } => {
            let wqe = qp.sq.get(slot)?;
            if wqe.is_inline() {
                return qp.sq.inline(slot, offset, payload).then(|| icrc::extend(crc, payload));
            }
            let mut crc = crc;
            let mut rest = payload;
            for piece in pieces(qp.sq.sges(slot, &wqe), offset, len) {
                let (now, later) = rest.split_at_mut(piece.len as usize);
                rest = later;
                let span = regions.check(piece.key, qp.pd, piece.addr, piece.len, Access::empty()).ok()?;
                crc = regions.copy_out_crc(span, now, crc).ok()?;
            }
            Some(crc)
        }
    }
}
