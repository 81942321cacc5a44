//! The engine as the world drives it. What a change of the engine's interface touches is here.

use std::collections::{BTreeMap, VecDeque};

use anyverbs_engine::*;
use anyverbs_wire::{Psn, Qpn};

use crate::book::Placement;
use crate::plan::{SHARED_RKEY, SHARED_VA, Setup};

/// A range of registered memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Span {
    pub(crate) shared: bool,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// The memory that belongs to one queue pair.
#[derive(Debug)]
pub(crate) struct EndMemory {
    pub(crate) rkey: u32,
    pub(crate) base: u64,
    pub(crate) region: Vec<u8>,
    pub(crate) registered: bool,
    /// Receives that were posted, and those that the engine has taken.
    pub(crate) posted: VecDeque<(u64, Vec<u8>)>,
    pub(crate) taken: BTreeMap<u64, Vec<u8>>,
    pub(crate) sends: BTreeMap<u64, Vec<u8>>,
    /// Buffers for early packets, with what is in them; there are this many.
    pub(crate) held: BTreeMap<u32, Option<Held>>,
    pub(crate) buffers: usize,
    pub(crate) reserved: u32,
}

/// An early packet that is kept.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) psn: Psn,
    pub(crate) payload: Vec<u8>,
}

/// An atomic that was executed: its operand, and the value before.
pub(crate) type Executed = (u64, u64);

/// What the engine sees of a host's memory during one call.
pub(crate) struct View<'a> {
    pub(crate) own: &'a mut EndMemory,
    pub(crate) shared: &'a mut [u8; 8],
    /// There is no memory for a receive now.
    pub(crate) refuse: bool,
    /// Nor a buffer for an early packet.
    pub(crate) no_buffer: bool,
    pub(crate) executed: Vec<Executed>,
}

impl View<'_> {
    fn word(&mut self, span: Span, update: impl FnOnce(u64) -> u64, operand: u64) -> Result<u64, Denied> {
        let bytes = if span.shared {
            &mut self.shared[..]
        } else if self.own.registered {
            &mut self.own.region[span.offset..span.offset + 8]
        } else {
            return Err(Denied);
        };
        let before = u64::from_ne_bytes((&*bytes).try_into().expect("eight bytes"));
        bytes.copy_from_slice(&update(before).to_ne_bytes());
        self.executed.push((operand, before));
        Ok(before)
    }
}

impl Memory for View<'_> {
    type Span = Span;

    fn check(&mut self, rkey: u32, va: u64, len: u32, need: Need) -> Result<Span, Denied> {
        let within = |base: u64, size: usize| {
            let offset = va.checked_sub(base)?;
            let end = offset.checked_add(u64::from(len))?;
            (end <= size as u64).then_some(offset as usize)
        };
        let (shared, offset) = if rkey == SHARED_RKEY && need == Need::RemoteAtomic {
            (true, within(SHARED_VA, 8))
        } else if rkey == self.own.rkey && self.own.registered {
            (false, within(self.own.base, self.own.region.len()))
        } else {
            (false, None)
        };
        offset.map(|offset| Span { shared, offset, len: len as usize }).ok_or(Denied)
    }

    fn fetch_add(&mut self, span: Span, add: u64) -> Result<u64, Denied> {
        self.word(span, |before| before.wrapping_add(add), add)
    }

    fn compare_swap(&mut self, span: Span, compare: u64, swap: u64) -> Result<u64, Denied> {
        self.word(span, |before| if before == compare { swap } else { before }, swap)
    }

    fn receives_posted(&self) -> Option<u32> {
        Some(self.own.posted.len() as u32)
    }

    fn hold(&mut self) -> Option<u32> {
        let room = self.own.held.len() < self.own.buffers && !std::mem::take(&mut self.no_buffer);
        room.then(|| {
            self.own.reserved += 1;
            self.own.held.insert(self.own.reserved, None);
            self.own.reserved
        })
    }

    fn take_receive(&mut self, shared: Option<Qpn>) -> Receive {
        if shared.is_some() {
            return Receive::Unknown;
        }
        if std::mem::take(&mut self.refuse) {
            return Receive::Empty;
        }
        match self.own.posted.pop_front() {
            Some((slot, buffer)) => {
                let capacity = buffer.len() as u64;
                self.own.taken.insert(slot, buffer);
                Receive::Taken { slot, capacity }
            }
            None => Receive::Empty,
        }
    }
}

/// A queue pair in the state ReadyToSend.
pub(crate) fn connect(setup: &Setup) -> QueuePair {
    let mut qp = QueuePair::new(setup.config);
    assert!(qp.to_init() && qp.to_rtr(&setup.rtr) && qp.to_rts(&setup.rts));
    qp
}

/// The request that a program posts.
pub(crate) fn request(wr: &crate::book::Wr, slot: u64) -> SendRequest {
    let crate::book::Wr { op, len, signaled, solicited, fence, .. } = *wr;
    SendRequest { slot, op, len, signaled, solicited, fence, destination: Destination::Connected }
}

/// The datagram that is being handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) psn: Psn,
    pub(crate) payload: &'a [u8],
}

/// What carrying out an action comes to.
pub(crate) enum Deed {
    /// A datagram leaves at this time of the host.
    Send {
        at: Time,
        header: anyverbs_wire::Repr,
        payload: Vec<u8>,
    },
    Placed {
        psn: Psn,
        to: Placement,
        bytes: Vec<u8>,
    },
    Completed {
        completion: Completion,
        buffer: Vec<u8>,
    },
    /// Nothing that an oracle looks at.
    Unseen,
}

/// Carries out one action on memory. The error says what was wrong with it: it names memory that it must
/// not touch.
pub(crate) fn carry_out(
    memory: &mut EndMemory,
    action: &Action<Span>,
    arrival: Option<Arrival<'_>>,
) -> Result<Deed, String> {
    match *action {
        Action::Transmit(Transmit { at, header, payload }) => {
            let payload = gather(memory, payload)?;
            Ok(Deed::Send { at, header, payload })
        }
        Action::Place { from, len, to } => {
            let arrival = arrival.ok_or_else(|| format!("{action:?} without a datagram"))?;
            let range = from as usize..from as usize + len as usize;
            let bytes = arrival.payload.get(range).ok_or_else(|| format!("{action:?} beyond the payload"))?;
            let to = place(memory, to, bytes)?;
            Ok(Deed::Placed { psn: arrival.psn, to, bytes: bytes.to_vec() })
        }
        Action::PlaceValue { value, to } => {
            let arrival = arrival.ok_or_else(|| format!("{action:?} without a datagram"))?;
            let bytes = value.to_ne_bytes();
            let to = place(memory, to, &bytes)?;
            Ok(Deed::Placed { psn: arrival.psn, to, bytes: bytes.to_vec() })
        }
        Action::PlaceAtomic { from, to } => {
            let bytes = Action::Place { from, len: 8, to: Target::Region(to) };
            carry_out(memory, &bytes, arrival)
        }
        Action::Hold { buffer } => {
            let Arrival { psn, payload } = arrival.ok_or_else(|| format!("{action:?} without a datagram"))?;
            let place = memory.held.get_mut(&buffer).filter(|held| held.is_none());
            let place = place.ok_or_else(|| format!("{action:?} of a buffer that is not reserved"))?;
            *place = Some(Held { psn, payload: payload.to_vec() });
            Ok(Deed::Unseen)
        }
        Action::Release { buffer } => {
            let held = memory.held.remove(&buffer);
            held.map(|_| Deed::Unseen).ok_or_else(|| format!("{action:?} of a buffer that is not in use"))
        }
        Action::PlaceGrh { .. } => Err(format!("{action:?}, but no queue pair is UD")),
        Action::Event(_) => Ok(Deed::Unseen),
        Action::Complete(completion) => {
            let Completion { queue, slot, .. } = completion;
            let buffer = match queue {
                Queue::Send => memory.sends.remove(&slot),
                Queue::Receive => memory.taken.remove(&slot),
            };
            let buffer = buffer.ok_or_else(|| format!("{completion:?} of a slot that is not in use"))?;
            Ok(Deed::Completed { completion, buffer })
        }
    }
}

fn gather(memory: &EndMemory, source: Source<Span>) -> Result<Vec<u8>, String> {
    let bytes = match source {
        Source::None => Some(&[][..]),
        Source::Send { slot, offset, len } => {
            memory.sends.get(&slot).and_then(|buffer| buffer.get(offset as usize..(offset + len) as usize))
        }
        Source::Region { span, len } => {
            let end = span.offset + len as usize;
            if memory.registered { memory.region.get(span.offset..end) } else { None }
        }
    };
    bytes.map(<[u8]>::to_vec).ok_or_else(|| format!("sends {source:?}, which it may not read"))
}

fn place(memory: &mut EndMemory, to: Target<Span>, bytes: &[u8]) -> Result<Placement, String> {
    let (buffer, at, placement) = match to {
        Target::Receive { slot, offset } => {
            (memory.taken.get_mut(&slot), offset as usize, Placement::Receive { slot, offset })
        }
        Target::Send { slot, offset } => {
            (memory.sends.get_mut(&slot), offset as usize, Placement::Send { slot, offset })
        }
        Target::Region(span) => {
            let fits = memory.registered && span.len >= bytes.len();
            (fits.then_some(&mut memory.region), span.offset, Placement::Region { offset: span.offset })
        }
    };
    let place = buffer.and_then(|buffer| buffer.get_mut(at..at + bytes.len()));
    place
        .ok_or_else(|| format!("stores {} bytes at {to:?}, which it may not write", bytes.len()))?
        .copy_from_slice(bytes);
    Ok(placement)
}
