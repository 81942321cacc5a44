//! What must have happened, told from the outside: by the packets that were fed and the answers alone.

use std::collections::{BTreeMap, VecDeque};

use anyverbs_engine::{MESSAGE_MAX, Mtu, Op, SendRequest};
use anyverbs_wire::{Ext, Operation, Psn, Repr};

/// A send work request that has not completed.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) request: SendRequest,
    /// The position of its first packet, counted from the start of the queue pair.
    pub(crate) first: u64,
    pub(crate) end: u64,
    /// What was placed into its memory: lengths by offset.
    pub(crate) placed: BTreeMap<u32, u32>,
    pub(crate) has_value: bool,
}

/// The requester.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    pub(crate) queue: VecDeque<Posted>,
    pub(crate) base: Psn,
    pub(crate) next: u64,
    /// One past the last position that was sent.
    pub(crate) sent_max: u64,
    /// One past the last position that an answer could acknowledge.
    pub(crate) acked: u64,
    /// One past the last position of a work request that completed well.
    pub(crate) claimed: u64,
    /// Packets of the work request at the front that have left: of unreliable queue pairs.
    pub(crate) left: u64,
}

impl Sends {
    pub(crate) fn psn(&self, position: u64) -> Psn {
        self.base.add((position & 0x00ff_ffff) as u32)
    }

    /// The first position that may still be looked at.
    pub(crate) fn una(&self) -> u64 {
        self.queue.front().map_or(self.next, |posted| posted.first)
    }

    /// The position of a PSN that is not before `una`.
    pub(crate) fn position(&self, psn: Psn) -> Option<u64> {
        let una = self.una();
        u64::try_from(psn.distance(self.psn(una))).ok().map(|ahead| una + ahead)
    }

    pub(crate) fn post(&mut self, mtu: Mtu, request: SendRequest) {
        let packets = if matches!(request.op, Op::Flush { .. }) { 1 } else { mtu.packets(request.len) };
        let (first, end) = (self.next, self.next + u64::from(packets));
        self.next = end;
        self.queue.push_back(Posted { request, first, end, placed: BTreeMap::new(), has_value: false });
    }

    /// A post was refused.
    pub(crate) fn unpost(&mut self) {
        if let Some(posted) = self.queue.pop_back() {
            self.next = posted.first;
        }
    }

    /// A request leaves.
    pub(crate) fn sent(&mut self, mtu: Mtu, header: &Repr) {
        let psns = match (header.bth.opcode.operation(), header.ext) {
            (Some(Operation::ReadRequest), Ext::Reth(reth)) => u64::from(mtu.packets(reth.len)),
            _ => 1,
        };
        let position = self.position(header.bth.psn);
        let position = position.unwrap_or_else(|| panic!("{header} is of a request that has completed"));
        assert!(position + psns <= self.next, "{header} is of no request that was posted");
        self.sent_max = self.sent_max.max(position + psns);
    }

    /// What the oldest READ expects to arrive, for packets that nearly fit: its first missing packet.
    pub(crate) fn response_len(&self, mtu: Mtu, psn: Psn) -> u32 {
        let Some(position) = self.position(psn) else { return 0 };
        let Some(posted) = self.queue.iter().find(|posted| position < posted.end) else { return 0 };
        match posted.request.op {
            Op::Read { .. } => {
                let offset = (position.saturating_sub(posted.first) as u32).saturating_mul(mtu.bytes());
                posted.request.len.saturating_sub(offset).min(mtu.bytes())
            }
            _ => 0,
        }
    }
}

/// A message that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Inbound {
    pub(crate) is_write: bool,
    pub(crate) va: u64,
    pub(crate) len: u32,
    pub(crate) received: u32,
}

/// The responder of a reliable queue pair.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) expected: Psn,
    pub(crate) inbound: Option<Inbound>,
    /// Early packets that were kept, by PSN, with the length of their payload.
    pub(crate) early: BTreeMap<u32, (Repr, u32)>,
    /// The last READ that was executed: its PSN, address, key and length.
    pub(crate) last_read: Option<(Psn, u64, u32, u32)>,
    /// A READ was so long that its responses may be half of all PSNs behind what is expected.
    pub(crate) is_far: bool,
}

impl Requests {
    /// The expected packet was executed: it must have been one that may be.
    pub(crate) fn executed(&mut self, mtu: Mtu, packet: &Repr, payload: u32) {
        use Operation as O;
        let operation = packet.bth.opcode.operation().unwrap_or(O::Acknowledge);
        let mut psns = 1;
        match operation {
            O::ReadRequest | O::FetchAdd | O::CompareSwap | O::Flush | O::AtomicWrite => {
                assert_eq!(self.inbound, None, "{packet} between the packets of a message");
                assert_eq!(payload, if operation == O::AtomicWrite { 8 } else { 0 }, "{packet}");
                if let (O::ReadRequest, Ext::Reth(reth)) = (operation, packet.ext) {
                    assert!(reth.len <= MESSAGE_MAX, "{packet}");
                    psns = mtu.packets(reth.len);
                    self.is_far |= psns >= 1 << 21;
                    self.last_read = Some((packet.bth.psn, reth.va, reth.rkey, reth.len));
                }
            }
            _ => self.inbound = self.piece(mtu, operation, packet, payload),
        }
        self.expected = self.expected.add(psns);
        // Only what is ahead of the expected packet can have its turn.
        let expected = self.expected;
        self.early.retain(|psn, _| Psn::new(*psn).distance(expected) >= 0);
    }

    /// What is in progress behind a packet of a SEND or WRITE.
    fn piece(&self, mtu: Mtu, operation: Operation, packet: &Repr, payload: u32) -> Option<Inbound> {
        use Operation as O;
        let is_write = (O::WriteFirst as u8..=O::WriteOnlyImm as u8).contains(&(operation as u8));
        let first = matches!(
            operation,
            O::SendFirst
                | O::SendOnly
                | O::SendOnlyImm
                | O::SendOnlyInvalidate
                | O::WriteFirst
                | O::WriteOnly
                | O::WriteOnlyImm
        );
        let last = !matches!(operation, O::SendFirst | O::SendMiddle | O::WriteFirst | O::WriteMiddle);
        assert!(payload <= mtu.bytes() && (last || payload == mtu.bytes()), "{packet} of {payload} bytes");
        assert!(first || payload > 0, "{packet} is empty");
        let mut inbound = match (first, self.inbound) {
            (true, None) => match packet.ext {
                Ext::Reth(reth) | Ext::RethImm(reth, _) => {
                    Inbound { is_write, va: reth.va, len: reth.len, received: 0 }
                }
                _ => Inbound { is_write, va: 0, len: MESSAGE_MAX, received: 0 },
            },
            (false, Some(inbound)) if inbound.is_write == is_write => inbound,
            (_, inbound) => panic!("{packet} was executed in {inbound:?}"),
        };
        inbound.received += payload;
        assert!(inbound.received <= inbound.len && inbound.len <= MESSAGE_MAX, "{packet}: {inbound:?}");
        assert!(!is_write || last == (inbound.received == inbound.len), "{packet}: {inbound:?}");
        (!last).then_some(inbound)
    }
}
