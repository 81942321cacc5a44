//! A link through which nothing passes to or from one address while its gate is closed.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use anyverbs_link::udp::UdpLink;
use anyverbs_nic::Time;
use anyverbs_nic::link::{Link, LinkError, LinkInfo, RxBatch, RxEntry, TxBatch, Waiter};

#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<Option<IpAddr>>>);

impl Gate {
    pub(crate) fn close(&self, address: IpAddr) {
        *self.0.lock().unwrap() = Some(address);
    }

    pub(crate) fn open(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn closed_to(&self) -> Option<IpAddr> {
        *self.0.lock().unwrap()
    }
}

pub(crate) struct Gated {
    inner: UdpLink,
    gate: Gate,
    out: TxBatch,
    /// Where a datagram that did not pass "came" from: nobody is connected to it.
    nowhere: IpAddr,
}

impl Gated {
    pub(crate) fn new(inner: UdpLink, gate: Gate) -> Gated {
        let out = TxBatch::with_capacity(4 << 20, 512);
        Gated { inner, gate, out, nowhere: [203, 0, 113, 1].into() }
    }
}

impl Link for Gated {
    fn info(&self) -> &LinkInfo {
        self.inner.info()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.inner.waiter()
    }

    fn transmit(&mut self, batch: &mut TxBatch, now: Time) -> Result<(), LinkError> {
        let Some(closed) = self.gate.closed_to() else {
            return self.inner.transmit(batch, now);
        };
        for entry in batch.entries() {
            if entry.destination != closed
                && let Some(place) = self.out.push(entry.destination, entry.source_port, entry.ecn, entry.len)
            {
                place.copy_from_slice(&batch.bytes()[entry.range()]);
            }
        }
        batch.consume(usize::MAX);
        self.inner.transmit(&mut self.out, now)
    }

    fn receive(&mut self, batch: &mut RxBatch, now: Time) -> Result<(), LinkError> {
        self.inner.receive(batch, now)?;
        let Some(closed) = self.gate.closed_to() else { return Ok(()) };
        let entries: Vec<RxEntry> = batch.entries().to_vec();
        let bytes = batch.bytes().to_vec();
        batch.clear();
        for entry in entries {
            let source = if entry.source == closed { self.nowhere } else { entry.source };
            batch.buffer()[entry.range()].copy_from_slice(&bytes[entry.range()]);
            assert!(batch.push(RxEntry { source, ..entry }));
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Time> {
        self.inner.next_deadline()
    }
}
