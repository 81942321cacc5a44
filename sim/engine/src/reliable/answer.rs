//! The responder's answers: READ responses, results, acknowledgements, and what is said to duplicates
//! (IBA 9.7.5.1).

use anyverbs_wire::{Aeth, Ext, NakCode, Operation, Repr, Reth, Syndrome, credit};

use super::responder::{Inbound, Responder, Silence};
use crate::action::{Action, Event, Source, Transmit};
use crate::memory::{Memory, Need};
use crate::pacer::Outflow;
use crate::qp::{Context, Mtu, Path, Verdict};
use crate::time::Time;

/// What an operation of one packet came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The value that an atomic found.
    Value(u64),
    /// FLUSH and ATOMIC WRITE: it is done.
    Done,
}

/// An answer that still has to leave. Answers leave in the order of their requests (C9-108).
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Read { reth: Reth, first: u64, sent: u32, again: bool },
    Once { position: u64, result: Outcome, again: bool },
    Nak { position: u64, syndrome: Syndrome },
}

impl Reply {
    /// Whether nothing of this answer has left, and the other is the same.
    fn is_unsent(&self, other: &Reply) -> bool {
        match (self, other) {
            (Reply::Read { first, reth, sent: 0, .. }, Reply::Read { first: again, reth: same, .. }) => {
                first == again && reth == same
            }
            (Reply::Once { position, .. }, Reply::Once { position: again, .. }) => position == again,
            _ => false,
        }
    }

    /// Leaves what was asked for later to the answer to that: the requester has got what is before it.
    /// False if nothing remains.
    fn leave_to(&mut self, mtu: Mtu, asked: &std::ops::Range<u64>) -> bool {
        let Reply::Read { reth, first, sent, again: true } = self else { return true };
        let end = *first + u64::from(mtu.packets(reth.len));
        if asked.start >= end || asked.end < end || asked.end <= *first {
            return true;
        }
        let before = asked.start.saturating_sub(*first) as u32;
        if before <= *sent {
            return false;
        }
        reth.len = before * mtu.bytes();
        true
    }

    /// Whether it is the first answer to its request. Answers to duplicates take no resource of
    /// their own: the requester counts its requests, not how often it sent them.
    pub(super) fn is_first(&self) -> bool {
        matches!(self, Reply::Read { again: false, .. } | Reply::Once { again: false, .. })
    }
}

/// What was promised to be remembered for duplicates: a responder resource (IBA 9.7.4.1.2).
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    Read { first: u64, packets: u32, reth: Reth },
    Once { position: u64, result: Outcome },
}

impl Resource {
    /// Whether a READ request asks for a part of this one (C9-105): same key, inside its range, and
    /// at the place that its PSN says.
    fn covers_read(&self, mtu: Mtu, position: u64, again: &Reth) -> bool {
        let Resource::Read { first, packets, reth } = self else {
            return false;
        };
        let Some(ahead) = position.checked_sub(*first).filter(|ahead| *ahead < u64::from(*packets)) else {
            return false;
        };
        let offset = ahead * u64::from(mtu.bytes());
        again.rkey == reth.rkey
            && again.va == reth.va.wrapping_add(offset)
            && offset + u64::from(again.len) <= u64::from(reth.len)
    }
}

impl Responder {
    pub(super) fn remember(&mut self, resource: Resource) {
        if self.resources.len() == self.max_resources {
            self.resources.pop_front();
        }
        self.resources.push_back(resource);
    }

    /// A request that was executed before (C9-105): SEND and WRITE are acknowledged again, a READ
    /// is executed again, the result of an atomic, FLUSH or ATOMIC WRITE is replayed, and what is not
    /// remembered is dropped.
    pub(super) fn on_duplicate(&mut self, mtu: Mtu, position: u64, packet: &Repr) {
        let reply = match packet.ext {
            Ext::Reth(reth) if packet.bth.opcode.operation() == Some(Operation::ReadRequest) => {
                let remembered =
                    self.resources.iter().any(|resource| resource.covers_read(mtu, position, &reth));
                remembered.then_some(Reply::Read { reth, first: position, sent: 0, again: true })
            }
            Ext::Atomic(_) | Ext::Flush(..) | Ext::AtomicWrite(_) => {
                self.resources.iter().find_map(|resource| match resource {
                    Resource::Once { position: own, result } if *own == position => {
                        Some(Reply::Once { position, result: *result, again: true })
                    }
                    _ => None,
                })
            }
            _ => {
                self.ack_due = true;
                None
            }
        };
        let Some(mut reply) = reply else { return };
        // A requester may ask again and again while an answer waits for its time. It gets one, and where it
        // asked last: one that goes back wants the answers in that order.
        if let Some(waiting) = self.replies.iter().position(|other| other.is_unsent(&reply))
            && let Some(waiting) = self.replies.remove(waiting)
        {
            reply = waiting;
        }
        if let Reply::Read { reth, first, .. } = reply {
            let asked = first..first + u64::from(mtu.packets(reth.len));
            self.replies.retain_mut(|other| other.leave_to(mtu, &asked));
        }
        if reply.is_first() || self.replies.len() < 2 * self.max_resources {
            self.replies.push_back(reply);
        }
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.paced_until.is_none() && (self.ack_due || self.missing_due || !self.replies.is_empty())
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.paced_until
    }

    /// Looks at the pace again: it may have risen.
    pub(crate) fn on_timer(&mut self) {
        self.paced_until = None;
    }

    /// Emits up to `budget` packets; says whether the queue pair goes on, and whether more could
    /// leave at once.
    pub(crate) fn transmit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        outflow: &mut Outflow,
        mut budget: usize,
    ) -> (Verdict, bool) {
        self.paced_until = None;
        while let Some(reply) = self.replies.front().copied() {
            if budget == 0 {
                return (Verdict::Alive, true);
            }
            budget -= 1;
            match reply {
                Reply::Read { reth, first, sent, again } => {
                    if !self.is_time(cx.now, outflow) {
                        return (Verdict::Alive, false);
                    }
                    if !self.read_response(cx, path, outflow, reth, first, sent) {
                        cx.counters.resp_remote_access_errors += 1;
                        let syndrome = Syndrome::Nak(NakCode::RemoteAccess);
                        let position = first + u64::from(sent);
                        self.replies.pop_front();
                        self.replies.push_front(Reply::Nak { position, syndrome });
                        if !again {
                            cx.event(Event::AccessError);
                            self.replies.truncate(1);
                            return (Verdict::Fatal, true);
                        }
                        // A duplicate may be late: the READ was answered, and the memory is gone since.
                        // That ends nothing here, and a requester that has its answer ignores the NAK.
                    }
                }
                Reply::Once { position, result, .. } => {
                    self.replies.pop_front();
                    let aeth = self.ack(cx);
                    // FLUSH and ATOMIC WRITE are answered by an empty READ response (IBA A19.4.3).
                    let (operation, ext) = match result {
                        Outcome::Value(value) => (Operation::AtomicAcknowledge, Ext::AtomicAck(aeth, value)),
                        Outcome::Done => (Operation::ReadResponseOnly, Ext::Aeth(aeth)),
                    };
                    self.emit(cx, path, operation, position, ext, Source::None);
                }
                Reply::Nak { position, syndrome } => {
                    self.replies.pop_front();
                    let ext = Ext::Aeth(Aeth { syndrome, msn: self.msn });
                    self.emit(cx, path, Operation::Acknowledge, position, ext, Source::None);
                }
            }
        }
        if self.missing_due {
            self.missing_due = false;
            // Who is not ready has nothing sent again before its time.
            if self.silence == Silence::Sequence
                && let Some(missing) = self.early.missing(path.mtu)
            {
                let header = path.missing(self.psn(self.expected), missing);
                self.last_at = self.last_at.max(cx.now);
                let payload = Source::None;
                cx.actions.push(Action::Transmit(Transmit { at: self.last_at, header, payload }));
            }
        }
        if self.ack_due {
            self.ack_due = false;
            let ext = Ext::Aeth(self.ack(cx));
            self.emit(cx, path, Operation::Acknowledge, self.expected.wrapping_sub(1), ext, Source::None);
        }
        (Verdict::Alive, false)
    }

    /// Whether the pace allows another packet of a READ response, and since when if so.
    fn is_time(&mut self, now: Time, outflow: &Outflow) -> bool {
        match outflow.ready(now) {
            Ok(at) => self.last_at = self.last_at.max(at),
            Err(later) => self.paced_until = Some(later),
        }
        self.paced_until.is_none()
    }

    /// Emits the next packet of a READ response; false if the memory may no longer be read.
    fn read_response<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        outflow: &mut Outflow,
        reth: Reth,
        first: u64,
        sent: u32,
    ) -> bool {
        use Operation as O;
        let packets = path.mtu.packets(reth.len);
        let offset = sent * path.mtu.bytes();
        let len = (reth.len - offset).min(path.mtu.bytes());
        let payload = if len == 0 {
            Source::None
        } else {
            let va = reth.va.wrapping_add(u64::from(offset));
            match cx.memory.check(reth.rkey, va, len, Need::RemoteRead) {
                Ok(span) => Source::Region { span, len },
                Err(_) => return false,
            }
        };
        let last = sent + 1 == packets;
        let (operation, ext) = match (sent == 0, last) {
            (true, true) => (O::ReadResponseOnly, Ext::Aeth(self.ack(cx))),
            (true, false) => (O::ReadResponseFirst, Ext::Aeth(self.ack(cx))),
            (false, false) => (O::ReadResponseMiddle, Ext::None),
            (false, true) => (O::ReadResponseLast, Ext::Aeth(self.ack(cx))),
        };
        outflow.sent(cx.now, self.last_at, payload.len());
        self.emit(cx, path, operation, first + u64::from(sent), ext, payload);
        if last {
            self.replies.pop_front();
        } else if let Some(Reply::Read { sent, .. }) = self.replies.front_mut() {
            *sent += 1;
        }
        true
    }

    /// Emits an answer, behind those before it.
    fn emit<M: Memory>(
        &mut self,
        cx: &mut Context<'_, M>,
        path: &Path,
        operation: Operation,
        position: u64,
        ext: Ext,
        payload: Source<M::Span>,
    ) {
        let bth = path.bth(operation, self.psn(position), payload.len());
        self.last_at = self.last_at.max(cx.now);
        let header = Repr { bth, xrc_srqn: None, ext };
        cx.actions.push(Action::Transmit(Transmit { at: self.last_at, header, payload }));
    }

    /// A positive acknowledgement, with the credits that the receive queue is worth (IBA 9.7.7.2.3). The
    /// receive work request of the message in progress counts: that message is not in the MSN.
    fn ack<M: Memory>(&self, cx: &Context<'_, M>) -> Aeth {
        let posted = if self.tells_credits { cx.memory.receives_posted() } else { None };
        let credit = posted.map_or(credit::UNLIMITED, |posted| {
            let begun = matches!(self.inbound, Some(Inbound::Send { .. }));
            credit::encode(posted.saturating_add(u32::from(begun)))
        });
        Aeth { syndrome: Syndrome::Ack { credit }, msn: self.msn }
    }
}
