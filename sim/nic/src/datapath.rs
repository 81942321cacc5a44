//! Carrying out what an engine asks for, in order.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyverbs_engine::{Action, Completion, Event, QpState, Queue, Status, Target, Time};
use anyverbs_memory::{Access, RegionTable, Span};

use crate::address::grh;
use crate::completion::{Entry, Pushed};
use crate::core::Core;
use crate::event::AsyncEvent;
use crate::qp::Receives;
use crate::shared_receive::place_of;
use crate::work::{Sge, pieces};

/// A work request whose own memory turned out not to be usable.
type Fault = (Queue, u64);

/// What went wrong while actions were carried out.
struct Outcome {
    fault: Option<Fault>,
    /// A completion was lost.
    overrun: bool,
}

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

    /// Puts a queue pair whose program has posted to it in front of those that have only answers to send: somebody
    /// waits for what was posted. Not while the link takes nothing more, where the others would wait for ever.
    pub(crate) fn set_ready_first(&mut self, qpn: u32) {
        let Some(qp) = self.qps.get_mut(qpn).filter(|qp| qp.engine.wants_transmit()) else { return };
        if std::mem::replace(&mut qp.ready, true) {
            return;
        }
        match self.blocked {
            true => self.ready.push_back(qpn),
            false => self.ready.push_front(qpn),
        }
    }

    /// Carries out the collected actions, then shows what became of the queue pair: its state, and its timer.
    pub(crate) fn carry_out_all(&mut self, qpn: u32, now: Time, payload: &[u8]) {
        self.carry_out_collected(qpn, now, payload);
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        let state = qp.engine.state();
        if qp.shared.set_state(state) != state && state == QpState::Error {
            // A receive that was posted after the flush, by one who did not see the new state yet, is flushed here;
            // one that is posted later sees the state and rings the doorbell: see `Qp::post_recv`.
            fence(Ordering::SeqCst);
            self.engine(qpn, now, |engine, cx| engine.flush_receives(cx));
            self.carry_out_collected(qpn, now, &[]);
        }
        let Some(qp) = self.qps.get_mut(qpn) else { return };
        let shared = matches!(qp.receives, Receives::Shared(_));
        if state == QpState::Error && shared && !std::mem::replace(&mut qp.last_wqe_told, true) {
            self.events.put(AsyncEvent::LastWqeReached { qpn });
        }
        self.timers.arm(qpn, qp.engine.next_deadline(), &mut qp.timer);
        let Core { timers, qps, .. } = self;
        timers.tidy(qps.len(), |qpn, time| qps.get(qpn).is_some_and(|qp| qp.timer == Some(time)));
    }

    /// Carries out the collected actions, and those that failures among them lead to.
    fn carry_out_collected(&mut self, qpn: u32, now: Time, payload: &[u8]) {
        while !self.actions.is_empty() {
            let actions = std::mem::take(&mut self.actions);
            let outcome = self.carry_out_each(qpn, now, &actions, payload);
            self.actions = actions;
            self.actions.clear();
            if let Some(fault) = outcome.fault {
                self.fail(qpn, now, fault);
            }
            if outcome.overrun {
                // A completion was lost: what the program knows of the queue pair is not true any more.
                let alive = self.qps.get(qpn).is_some_and(|qp| qp.engine.state() != QpState::Error);
                if alive {
                    self.events.put(AsyncEvent::QpFatal { qpn });
                    self.engine(qpn, now, |engine, cx| engine.enter_error(cx));
                }
            }
        }
    }

    fn carry_out_each(&mut self, qpn: u32, now: Time, actions: &[Action<Span>], payload: &[u8]) -> Outcome {
        let mut fault = None;
        let mut overrun = false;
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
                Action::Complete(completion) => {
                    overrun |= !self.complete(qpn, completion, now, &fault);
                }
                Action::PlaceGrh { slot } => {
                    let header = grh(
                        self.arrival.source,
                        self.arrival.destination,
                        self.arrival.ecn,
                        self.arrival.len,
                    );
                    self.place(qpn, Target::Receive { slot: *slot, offset: 0 }, &header, &mut fault);
                }
                Action::Event(event) => {
                    if *event == Event::CommunicationEstablished {
                        self.cm.established.push(qpn);
                    }
                    self.events.put(AsyncEvent::of_queue_pair(*event, qpn));
                }
            }
        }
        Outcome { fault, overrun }
    }

    /// Writes what a completion says to the right queue, and frees its slot. False if the queue was full.
    fn complete(&mut self, qpn: u32, completion: &Completion, now: Time, fault: &Option<Fault>) -> bool {
        let mut completion = *completion;
        if *fault == Some((completion.queue, completion.slot)) && completion.status == Status::Success {
            // Its last bytes could not be placed: it did not succeed.
            completion.status = Status::LocalProtectionError;
            completion.signaled = true;
        }
        let Core { qps, srqs, .. } = self;
        let Some(qp) = qps.get_mut(qpn) else { return true };
        let mut opcode = 0;
        let released = match (completion.queue, &mut qp.receives) {
            (Queue::Send, _) => qp.sq.release(completion.slot).map(|wqe| {
                opcode = wqe.opcode;
                (wqe.wr_id, qp.send_cq.as_ref())
            }),
            (Queue::Receive, Receives::Own(queue)) => {
                queue.release(completion.slot).map(|wqe| (wqe.wr_id, qp.recv_cq.as_ref()))
            }
            (Queue::Receive, _) => {
                let (srqn, place) = place_of(completion.slot);
                srqs.get_mut(srqn).and_then(|srq| {
                    let wqe = srq.release(place)?;
                    let cq = srq.xrc.as_ref().map(|(_, cq)| cq).or(qp.recv_cq.as_ref());
                    Some((wqe.wr_id, cq))
                })
            }
        };
        let Some((wr_id, Some(cq))) = released.filter(|_| completion.signaled) else { return true };
        let pushed = cq.push(Entry::new(wr_id, qpn, opcode, &completion, now), now);
        self.completed = true;
        match pushed {
            Pushed::Overrun => self.events.put(AsyncEvent::CqError { cq: cq.id() }),
            Pushed::TellAt(time) => self.untold.push((time, Arc::clone(cq))),
            Pushed::Done | Pushed::Dead => {}
        }
        matches!(pushed, Pushed::Done | Pushed::TellAt(_))
    }

    fn place(&mut self, qpn: u32, to: Target<Span>, bytes: &[u8], fault: &mut Option<Fault>) {
        let Core { qps, srqs, regions, .. } = self;
        let Some(qp) = qps.get_mut(qpn) else { return };
        let done = match to {
            // A region that went away since the check, a moment ago: only the token's holder
            // deregisters, so this does not happen; nothing would be written if it did.
            Target::Region(span) => regions.copy_in(span, bytes).is_ok(),
            Target::Receive { slot, offset } => match &qp.receives {
                Receives::Own(queue) => queue
                    .get(slot)
                    .is_some_and(|wqe| scatter(regions, qp.pd, queue.sges(slot, &wqe), offset, bytes)),
                _ => {
                    let (srqn, place) = place_of(slot);
                    srqs.get(srqn).is_some_and(|srq| {
                        let sges = srq.sges(place).unwrap_or(&[]).iter().copied();
                        scatter(regions, srq.pd, sges, offset, bytes)
                    })
                }
            },
            Target::Send { slot, offset } => qp
                .sq
                .get(slot)
                .is_some_and(|wqe| scatter(regions, qp.pd, qp.sq.sges(slot, &wqe), offset, bytes)),
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
        let pending = match (queue, &qp.receives) {
            (Queue::Send, _) => qp.sq.get(slot).is_some(),
            (Queue::Receive, Receives::Own(queue)) => queue.get(slot).is_some(),
            (Queue::Receive, _) => {
                let (srqn, place) = place_of(slot);
                self.srqs.get(srqn).is_some_and(|srq| srq.sges(place).is_some())
            }
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
fn scatter(
    regions: &RegionTable,
    pd: u32,
    sges: impl Iterator<Item = Sge>,
    offset: u32,
    bytes: &[u8],
) -> bool {
    let mut rest = bytes;
    for piece in pieces(sges, offset, bytes.len() as u32) {
        let (now, later) = rest.split_at(piece.len as usize);
        rest = later;
        let placed = regions
            .check(piece.key, pd, piece.addr, piece.len, Access::LOCAL_WRITE)
            .is_ok_and(|span| regions.copy_in(span, now).is_ok());
        if !placed {
            return false;
        }
    }
    rest.is_empty()
}
