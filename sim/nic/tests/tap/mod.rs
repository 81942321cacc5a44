//! A pipe whose datagrams are seen, lost and forged as a test wants.
#![allow(dead_code)] // Each test uses its part.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, NumberPrefix, RxBatch, RxEntry, TxBatch, Waiter};
use anyverbs_wire::mad::{self, Attribute};
use anyverbs_wire::{Bth, Deth, Ext, Flow, Opcode, Operation, Packet, Psn, Qpn, Repr, Service, icrc};

use crate::pipe::{self, Pipe};

/// Says of each datagram that leaves whether it is lost.
type Loss = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// What a test can do to one end.
#[derive(Default)]
pub(crate) struct Knobs {
    pub(crate) loss: Mutex<Option<Loss>>,
    /// Everything that was sent and not lost.
    pub(crate) sent: Mutex<Vec<Vec<u8>>>,
    /// What is to arrive as if it came from the address.
    pub(crate) forged: Mutex<VecDeque<(IpAddr, Vec<u8>)>>,
    pub(crate) services: Mutex<BTreeSet<u64>>,
    /// Services that somebody else has.
    pub(crate) taken: Mutex<BTreeSet<u64>>,
    /// The largest datagram that reaches the peer.
    pub(crate) path: Mutex<Option<usize>>,
}

impl Knobs {
    pub(crate) fn lose(&self, loss: impl FnMut(&[u8]) -> bool + Send + 'static) {
        *self.loss.lock().unwrap() = Some(Box::new(loss));
    }

    pub(crate) fn lose_nothing(&self) {
        *self.loss.lock().unwrap() = None;
    }

    /// The MADs that were sent and not lost.
    pub(crate) fn mads(&self) -> Vec<mad::Repr> {
        self.sent.lock().unwrap().iter().filter_map(|datagram| parse_mad(datagram)).collect()
    }
}

pub(crate) struct Tap {
    inner: Pipe,
    info: LinkInfo,
    knobs: Arc<Knobs>,
    tx: TxBatch,
}

/// Two ends, with what can be done to each.
pub(crate) fn pair() -> [(Tap, Arc<Knobs>); 2] {
    pair_with_prefix(None)
}

pub(crate) fn pair_with_prefix(prefix: Option<NumberPrefix>) -> [(Tap, Arc<Knobs>); 2] {
    pipe::pair().map(|inner| {
        let knobs = Arc::new(Knobs::default());
        let info = LinkInfo { prefix, ..inner.info().clone() };
        let tx = TxBatch::with_capacity(8 << 20, 4096);
        (Tap { inner, info, knobs: Arc::clone(&knobs), tx }, knobs)
    })
}

impl Link for Tap {
    fn info(&self) -> &LinkInfo {
        &self.info
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn path_max_datagram(&self, _peer: IpAddr) -> usize {
        self.knobs.path.lock().unwrap().unwrap_or(self.info.max_datagram)
    }

    fn claim_service(&mut self, id: u64) -> io::Result<()> {
        if self.knobs.taken.lock().unwrap().contains(&id) {
            return Err(io::Error::other("process 4711 has it"));
        }
        assert!(self.knobs.services.lock().unwrap().insert(id), "claimed twice");
        Ok(())
    }

    fn release_service(&mut self, id: u64) {
        assert!(self.knobs.services.lock().unwrap().remove(&id), "released and not claimed");
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        let mut loss = self.knobs.loss.lock().unwrap();
        for entry in batch.entries() {
            let datagram = &batch.bytes()[entry.range()];
            if loss.as_mut().is_some_and(|lost| lost(datagram)) {
                continue;
            }
            self.knobs.sent.lock().unwrap().push(datagram.to_vec());
            let copy = self.tx.push(entry.destination, entry.source_port, entry.ecn, entry.len).unwrap();
            copy.copy_from_slice(datagram);
        }
        batch.consume(batch.len());
        self.inner.transmit(&mut self.tx, now)
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        self.inner.receive(batch, now)?;
        let mut start = batch.entries().iter().map(|entry| entry.start + entry.len).max().unwrap_or(0);
        while let Some((source, datagram)) = self.knobs.forged.lock().unwrap().pop_front() {
            let len = datagram.len();
            batch.buffer()[start..start + len].copy_from_slice(&datagram);
            let destination = self.info.address;
            let entry = RxEntry { source, destination, source_port: 4791, ip_id: None, ecn: 0, start, len };
            assert!(batch.push(entry));
            start += len;
        }
        Ok(())
    }
}

/// The MAD in a datagram to queue pair 1.
pub(crate) fn parse_mad(datagram: &[u8]) -> Option<mad::Repr> {
    let packet = Packet::new_checked(datagram).ok()?;
    (packet.dest_qpn() == Qpn::GSI).then_some(())?;
    mad::Packet::new_checked(packet.payload()).ok().map(|mad| mad::Repr::parse(&mad))
}

/// Whether a datagram is one of these messages.
pub(crate) fn is_mad(datagram: &[u8], messages: &[Attribute]) -> bool {
    parse_mad(datagram).is_some_and(|mad| messages.contains(&mad.message.attribute()))
}

/// A datagram with a right ICRC.
pub(crate) fn datagram(from: IpAddr, to: IpAddr, header: &Repr, payload: &[u8]) -> Vec<u8> {
    let mut header = *header;
    header.bth.pad = anyverbs_wire::pad(payload.len());
    let mut bytes = vec![0; header.datagram_len(payload.len())];
    let at = header.emit(&mut bytes);
    bytes[at..at + payload.len()].copy_from_slice(payload);
    seal(from, to, &mut bytes);
    bytes
}

/// Makes the ICRC of a datagram right.
pub(crate) fn seal(from: IpAddr, to: IpAddr, datagram: &mut [u8]) {
    let icrc_at = datagram.len() - icrc::LEN;
    let flow = Flow { source: from, destination: to, source_port: 4791 };
    let icrc = icrc::compute(&flow, 0, &datagram[..icrc_at]);
    datagram[icrc_at..].copy_from_slice(&icrc);
}

/// The header of a MAD.
pub(crate) fn mad_header() -> Repr {
    let opcode = Opcode::new(Service::Ud, Operation::SendOnly);
    let deth = Deth { qkey: mad::QKEY, source_qpn: Qpn::GSI };
    Repr { bth: Bth::new(opcode, Qpn::GSI, Psn::new(0)), xrc_srqn: None, ext: Ext::Deth(deth) }
}

/// Whether a datagram is for queue pair 1.
pub(crate) fn is_management(datagram: &[u8]) -> bool {
    Packet::new_checked(datagram).is_ok_and(|packet| packet.dest_qpn() == Qpn::GSI)
}
