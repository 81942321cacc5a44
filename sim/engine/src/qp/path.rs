//! Where packets go, and what an event comes with.

use anyverbs_wire::{Bth, Ext, Missing, Opcode, Operation, Psn, Qpn, Repr, Service};

use super::attributes::Mtu;
use crate::action::{Action, Completion, Event, Queue};
use crate::counters::Counters;
use crate::memory::Memory;
use crate::time::Time;
use crate::work::{ReceiveKind, SendRequest, Status};

/// The default partition, full membership (IBA 10.9.1.2).
const DEFAULT_PKEY: u16 = 0xffff;

/// What comes with an event: when it happened, whom to ask, and where the answers go.
pub struct Context<'a, M: Memory> {
    /// When.
    pub now: Time,
    /// The owner of memory and receive queue.
    pub memory: &'a mut M,
    /// What to do, in order.
    pub actions: &'a mut Vec<Action<M::Span>>,
    /// What happened.
    pub counters: &'a mut Counters,
}

impl<M: Memory> Context<'_, M> {
    /// A receive work request is done with.
    pub(crate) fn complete_receive(&mut self, slot: u64, status: Status) {
        if status != Status::FlushError {
            self.counters.resp_cqe_error += 1;
        }
        self.actions.push(Action::Complete(Completion {
            queue: Queue::Receive,
            slot,
            status,
            signaled: true,
            len: 0,
            kind: ReceiveKind::Send,
            imm: None,
            solicited: false,
            invalidated: None,
            source: None,
        }));
    }

    /// A send work request is done with.
    pub(crate) fn complete_send(&mut self, request: &SendRequest, status: Status) {
        if !matches!(status, Status::Success | Status::FlushError) {
            self.counters.req_cqe_error += 1;
        }
        self.actions.push(Action::Complete(Completion {
            queue: Queue::Send,
            slot: request.slot,
            status,
            // An error is reported even for an unsignalled request (IBA 10.7.3.1).
            signaled: request.signaled || status != Status::Success,
            len: request.len,
            kind: ReceiveKind::Send,
            imm: None,
            solicited: false,
            invalidated: None,
            source: None,
        }));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.actions.push(Action::Event(event));
    }
}

/// Where packets go, of which service they are, and how large they may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) service: Service,
    pub(crate) dest_qpn: Qpn,
    pub(crate) mtu: Mtu,
}

impl Path {
    /// The BTH of a packet to the peer.
    pub(crate) fn bth(&self, operation: Operation, psn: Psn, payload: u32) -> Bth {
        Bth {
            opcode: Opcode::new(self.service, operation),
            solicited: false,
            migrated: true,
            pad: (payload.wrapping_neg() & 3) as u8,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: false,
            dest_qpn: self.dest_qpn,
            ack_request: false,
            psn,
        }
    }

    /// The notification that packets of the peer met congestion (IBA A17.9.3).
    pub(crate) fn cnp(&self) -> Repr {
        let bth = Bth {
            opcode: Opcode::CNP,
            solicited: false,
            migrated: false,
            pad: 0,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: true,
            dest_qpn: self.dest_qpn,
            ack_request: false,
            psn: Psn::new(0),
        };
        Repr { bth, xrc_srqn: None, ext: Ext::Cnp }
    }

    /// What is missing here, of which the packet of this PSN is the first.
    pub(crate) fn missing(&self, psn: Psn, missing: Missing) -> Repr {
        let bth = Bth { opcode: Opcode::MISSING, ..self.bth(Operation::Acknowledge, psn, 0) };
        Repr { bth, xrc_srqn: None, ext: Ext::Missing(missing) }
    }
}

/// Whether a packet is of the default partition, which its membership bit does not tell.
pub(crate) fn in_partition(packet: &Repr) -> bool {
    (packet.bth.pkey ^ DEFAULT_PKEY) & 0x7fff == 0
}

/// What one half of a queue pair says after an event; the worse is the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Alive,
    /// The queue pair has to enter the error state; what failed has been reported.
    Fatal,
}
