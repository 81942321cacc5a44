//! Carrying out what an engine asks for, in order.

use anyverbs_engine::{Action, Completion, Queue, Status, Target, Time};
use anyverbs_memory::{Access, RegionTable, Span};

use crate::core::Core;
use crate::qp::QpCore;
use crate::work::{Sge, pieces};

/// A work request whose own memory turned out not to be usable.
type Fault = (Queue, u64);

impl Core {
    /// Carries out the actions that an event of a queue pair led to, with the payload of the datagram
    /// that caused them; then puts it among the ready if it may have something to send now.
    pub(crate) fn carry_out(&mut self, qpn: u32, now: Time, payload: &[u8]) {
        self.carry_out_all(qpn, now, payload);
        let ready = self.qps.get_mut(qpn).is_some_and(|qp| qp.engine.wants_transmit());
        self.set_ready(qpn, ready);
    }

    /// Puts a queue pair among those with something to send, once.
    pub(crate) fn set_ready(&mut self, qpn: u32, ready: bool) {
        if ready
            && let Some(qp) = self.qps.get_mut(qpn)
            && !std::mem::replace(&mut qp.ready, true)
        {
            self.ready.push_back(qpn);
        }
    }

    /// Carries out the collected actions, and those that failures among them lead to.
    pub(crate) fn carry_out_all(&mut self, qpn: u32, now: Time, payload: &[u8]) {
        while !self.actions.is_empty() {
            let actions = std::mem::take(&mut self.actions);
            let fault = self.carry_out_each(qpn, now, &actions, payload);
            self.actions = actions;
            self.actions.clear();
            if let Some(fault) = fault {
                self.fail(qpn, now, fault);
            }
        }
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        qp.shared.set_state(qp.engine.state());
        self.timers.arm(qpn, qp.engine.next_deadline(), &mut qp.timer);
    }

    fn carry_out_each(
        &mut self,
        qpn: u32,
        now: Time,
        actions: &[Action<Span>],
        payload: &[u8],
    ) -> Option<Fault> {
        let mut fault = None;
        for action in actions {
            match action {
                Action::Transmit(transmit) => {
                    if let Err(slot) = self.transmit(qpn, now, transmit) {
                        fault.get_or_insert((Queue::Send, slot));
                    }
                }
                Action::Place { from, len, to } => {
                    let bytes = payload.get(*from as usize..(*from + *len) as usize).unwrap_or(&[]);
                    self.place(qpn, *to, bytes, &mut fault);
                }
                Action::PlaceValue { value, to } => {
                    self.place(qpn, *to, &value.to_ne_bytes(), &mut fault);
                }
                Action::PlaceAtomic { from, to } => {
                    let word = payload.get(*from as usize..).and_then(|bytes| bytes.first_chunk());
                    // As with `Place` into a region: checked a moment ago.
                    let _ = word.map(|word| self.regions.store(*to, u64::from_ne_bytes(*word)));
                }
                Action::Hold { buffer } => self.held.keep(*buffer, payload, self.datagram_max),
                Action::Release { buffer } => self.held.release(*buffer),
                Action::Complete(completion) => self.complete(qpn, completion, &fault),
                // Only UD queue pairs ask for the first, which this device does not make, and nobody can
                // listen for the second.
                Action::PlaceGrh { .. } | Action::Event(_) => {}
            }
        }
        fault
    }

    fn complete(&mut self, qpn: u32, completion: &Completion, fault: &Option<Fault>) {
        let mut completion = *completion;
        if *fault == Some((completion.queue, completion.slot)) && completion.status == Status::Success {
            // Its last bytes could not be placed: it did not succeed.
            completion.status = Status::LocalProtectionError;
            completion.signaled = true;
        }
        if let Some(qp) = self.qps.get_mut(qpn) {
            self.completed |= qp.complete(&completion);
        }
    }

    fn place(&mut self, qpn: u32, to: Target<Span>, bytes: &[u8], fault: &mut Option<Fault>) {
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        let done = match to {
            // A region that went away since the check, a moment ago: only the token's holder
            // deregisters, so this does not happen; nothing would be written if it did.
            Target::Region(span) => self.regions.copy_in(span, bytes).is_ok(),
            Target::Receive { slot, offset } => {
                qp.rq.get(slot).is_some_and(|wqe| scatter(&self.regions, qp, wqe.sges(), offset, bytes))
            }
            Target::Send { slot, offset } => {
                qp.sq.get(slot).is_some_and(|wqe| scatter(&self.regions, qp, wqe.sges(), offset, bytes))
            }
        };
        match to {
            Target::Receive { slot, .. } if !done => _ = fault.get_or_insert((Queue::Receive, slot)),
            Target::Send { slot, .. } if !done => _ = fault.get_or_insert((Queue::Send, slot)),
            _ => {}
        }
    }

    /// Ends a work request whose own memory may not be used, and its queue pair with it.
    fn fail(&mut self, qpn: u32, now: Time, (queue, slot): Fault) {
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        let pending = match queue {
            Queue::Send => qp.sq.get(slot).is_some(),
            Queue::Receive => qp.rq.get(slot).is_some(),
        };
        let status = Status::LocalProtectionError;
        self.engine(qpn, now, |engine, cx| match (pending, queue) {
            (true, Queue::Send) => engine.local_error(cx, slot, status),
            (true, Queue::Receive) => engine.receive_error(cx, slot, status),
            // It was in the same breath with its completion, and reported there.
            (false, Queue::Send) => engine.send_failed(cx),
            (false, Queue::Receive) => engine.enter_error(cx),
        });
    }
}

/// Copies bytes to where a work request's elements say; false if one of them may not be written.
fn scatter(regions: &RegionTable, qp: &QpCore, sges: &[Sge], offset: u32, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for piece in pieces(sges, offset, bytes.len() as u32) {
        let (now, later) = rest.split_at(piece.len as usize);
        rest = later;
        let placed = regions
            .check(piece.key, qp.pd, piece.addr, piece.len, Access::LOCAL_WRITE)
            .is_ok_and(|span| regions.copy_in(span, now).is_ok());
        if !placed {
            return false;
        }
    }
    rest.is_empty()
}
