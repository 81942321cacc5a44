//! Carrying the engine's answers out, and what each of them has to be.

use anyverbs_engine::*;
use anyverbs_wire::{Ext, NakCode, Service, Syndrome};

use super::{Kind, World};
use crate::memory::Span;
use crate::model::Posted;

impl World {
    /// Carries an action out; returns a bit that stands for it.
    pub(super) fn carry_out(&mut self, kind: Kind, action: &Action<Span>, payload: u32) -> u16 {
        match action {
            Action::Transmit(transmit) => {
                self.on_transmit(transmit);
                1
            }
            Action::Place { from, len, to } => {
                assert!(*len > 0 && u64::from(*from) + u64::from(*len) <= u64::from(payload), "{action:?}");
                self.place(*to, *len);
                2
            }
            Action::PlaceAtomic { from, to } => {
                assert!(from + 8 <= payload, "{action:?}");
                self.granted(*to, 8, Need::RemoteWrite);
                4
            }
            Action::PlaceGrh { slot } => {
                let taken = self.memory.taken.iter_mut().find(|taken| taken.slot == *slot);
                let taken = taken.expect("a receive work request that was taken");
                assert!(self.config.qp_type == QpType::Ud && taken.capacity >= 40, "{taken:?}");
                taken.has_grh = true;
                8
            }
            Action::PlaceValue { to, .. } => {
                let Target::Send { slot, offset: 0 } = *to else { panic!("{action:?}") };
                let posted = self.sends.queue.iter_mut().find(|posted| posted.request.slot == slot);
                let posted = posted.expect("a send work request that was posted");
                assert!(matches!(posted.request.op, Op::FetchAdd { .. } | Op::CompareSwap { .. }));
                assert!(!std::mem::replace(&mut posted.has_value, true), "{action:?} comes twice");
                16
            }
            Action::Hold { buffer } => {
                assert!(matches!(kind, Kind::Packet(..)));
                assert!(self.memory.reserved.remove(buffer), "{action:?} was not reserved");
                self.memory.held.insert(*buffer, payload);
                32
            }
            Action::Release { buffer } => {
                assert!(self.memory.held.remove(buffer).is_some(), "{action:?} is not held");
                64
            }
            Action::Complete(completion) => {
                match completion.queue {
                    Queue::Send => self.complete_send(completion),
                    Queue::Receive => self.complete_receive(completion),
                }
                128 << (completion.status as u16).min(2)
            }
            Action::Event(event) => 1024 << (*event as u16),
        }
    }

    fn granted(&self, span: Span, len: u32, need: Need) {
        let grant = self.memory.grants[span.grant];
        assert!(grant.need == need && len <= grant.len, "{len} bytes of {grant:?}");
    }

    fn place(&mut self, to: Target<Span>, len: u32) {
        match to {
            Target::Region(span) => {
                self.granted(span, len, Need::RemoteWrite);
                if let Some(inbound) = self.requests.inbound.filter(|inbound| inbound.is_write) {
                    let offset = self.memory.grants[span.grant].va.wrapping_sub(inbound.va);
                    let end = offset.checked_add(u64::from(len));
                    assert!(end.is_some_and(|end| end <= u64::from(inbound.len)), "{offset} of {inbound:?}");
                }
            }
            Target::Receive { slot, offset } => {
                let taken = self.memory.taken.iter_mut().find(|taken| taken.slot == slot);
                let taken = taken.expect("a receive work request that was taken");
                let skipped = if taken.has_grh { 40 } else { 0 };
                let restart = offset == skipped && (taken.placed == 0 || self.config.qp_type == QpType::Uc);
                assert!(restart || offset == taken.placed + skipped, "at {offset} of {taken:?}");
                assert!(
                    u64::from(offset) + u64::from(len) <= taken.capacity,
                    "{len} at {offset} of {taken:?}"
                );
                taken.placed = offset - skipped + len;
            }
            Target::Send { slot, offset } => {
                let posted = self.sends.queue.iter_mut().find(|posted| posted.request.slot == slot);
                let posted = posted.expect("a send work request that was posted");
                assert!(matches!(posted.request.op, Op::Read { .. }), "{posted:?}");
                assert!(u64::from(offset) + u64::from(len) <= u64::from(posted.request.len), "{posted:?}");
                let twice = posted.placed.insert(offset, len);
                assert!(twice.is_none(), "placed twice at {offset}");
            }
        }
    }

    fn on_transmit(&mut self, transmit: &Transmit<Span>) {
        let header = &transmit.header;
        assert!(header.is_consistent() && transmit.payload.len() <= self.mtu.bytes(), "{header}");
        assert_eq!(u32::from(header.bth.pad), transmit.payload.len().wrapping_neg() & 3);
        match transmit.payload {
            Source::Region { span, len } => self.granted(span, len, Need::RemoteRead),
            Source::Send { slot, offset, len } => {
                let posted = self.sends.queue.iter().find(|posted| posted.request.slot == slot);
                let posted = posted.expect("a send work request that was posted");
                assert!(offset + len <= posted.request.len, "{offset} + {len} of {posted:?}");
            }
            Source::None => {}
        }
        let Some(operation) = header.bth.opcode.operation() else { return };
        if !self.is_reliable() {
            assert_ne!(header.bth.opcode.service(), Some(Service::Rc));
            self.sends.left += 1;
        } else if operation.is_request() {
            self.sends.sent(self.mtu, header);
        } else {
            let ahead = header.bth.psn.distance(self.requests.expected);
            let nak = match header.ext {
                Ext::Aeth(aeth) => !matches!(aeth.syndrome, Syndrome::Ack { .. }),
                _ => false,
            };
            // A NAK names what was not executed, all others what was.
            let right = if nak { ahead <= 0 } else { ahead < 0 };
            assert!(right || self.requests.is_far, "{header} is {ahead} ahead");
            if let Ext::Aeth(aeth) = header.ext
                && let Syndrome::Nak(code) = aeth.syndrome
                && code != NakCode::PsnSequenceError
            {
                self.owes_nak = false;
            }
        }
    }

    fn complete_send(&mut self, completion: &Completion) {
        let left = std::mem::take(&mut self.sends.left);
        let posted = self.sends.queue.pop_front().expect("a send work request that was posted");
        let Posted { request, first, end, placed, has_value } = posted;
        assert_eq!(completion.slot, request.slot, "in the order of posting");
        let success = completion.status == Status::Success;
        assert_eq!(completion.signaled, request.signaled || !success);
        if !success {
            let state = self.qp.state();
            assert!(matches!(state, QpState::Error | QpState::SendQueueError), "{completion:?} in {state:?}");
            return;
        }
        if !self.is_reliable() {
            assert_eq!(left, end - first, "{completion:?} after {left} packets");
            return;
        }
        // The answer that is being handled counts, and is noted only afterwards.
        match request.op {
            Op::Read { .. } => {
                let len: u64 = placed.values().map(|len| u64::from(*len)).sum();
                assert_eq!(len, u64::from(request.len), "{completion:?}");
            }
            Op::FetchAdd { .. } | Op::CompareSwap { .. } => assert!(has_value, "{completion:?}"),
            _ => {}
        }
        assert!(end <= self.sends.sent_max, "{completion:?} was never sent");
        self.sends.claimed = self.sends.claimed.max(end);
    }

    fn complete_receive(&mut self, completion: &Completion) {
        let in_error = self.qp.state() == QpState::Error;
        let taken = self.memory.taken.pop_front().expect("a receive work request that was taken");
        assert_eq!(completion.slot, taken.slot, "in the order of taking");
        match (completion.status, completion.kind) {
            (Status::Success, ReceiveKind::Send) => {
                let skipped = if self.config.qp_type == QpType::Ud { 40 } else { 0 };
                // A message that was given up may have left something in front of an empty one.
                let is_left_over = self.config.qp_type == QpType::Uc && completion.len == 0;
                let placed = if is_left_over { 0 } else { taken.placed };
                assert_eq!(completion.len, placed + skipped, "{completion:?} of {taken:?}");
            }
            (Status::Success, ReceiveKind::WriteImm) => assert!(completion.imm.is_some()),
            (status, _) => assert!(in_error, "{status:?} of a receive work request"),
        }
    }
}
