//! The oracles on requests, as a requester sends them.

use std::collections::{BTreeMap, BTreeSet};

use anyverbs_engine::{Op, Queue};
use anyverbs_wire::{Ext, Operation};

use crate::book::{Book, End, Fact, Placement, When, pattern};
use crate::oracles::{Oracle, ensure};

/// Segmentation: a request packet is the piece of its message that its PSN says (IBA 9.5, 9.7.2).
pub(crate) struct Segmentation;

impl Oracle for Segmentation {
    fn name(&self) -> &'static str {
        "segmentation"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        use Operation as O;
        let Fact::Sent { at, header, payload } = *fact else { return Ok(()) };
        let Some(operation) = header.bth.opcode.operation().filter(|operation| operation.is_request()) else {
            return Ok(());
        };
        if book.hostile(at) {
            return Ok(());
        }
        let number = book.number(at, header.bth.psn);
        let Some((index, wr)) = book.wr_at(at, number) else {
            return Err(format!("{at:?} sends packet {number}, which nobody posted: {header:?}"));
        };
        let number = number as u64;
        let (offset, len) = wr.piece(number, book.mtu(at));
        let (first, last) = (number == wr.first, number + 1 == wr.end());
        let right = match (wr.op, operation) {
            (Op::Send { .. }, O::SendOnly | O::SendOnlyImm) => first && last,
            (Op::Send { .. }, O::SendFirst) => first && !last,
            (Op::Send { .. }, O::SendMiddle) => !first && !last,
            (Op::Send { .. }, O::SendLast | O::SendLastImm) => !first && last,
            (Op::Write { .. }, O::WriteOnly | O::WriteOnlyImm) => first && last,
            (Op::Write { .. }, O::WriteFirst) => first && !last,
            (Op::Write { .. }, O::WriteMiddle) => !first && !last,
            (Op::Write { .. }, O::WriteLast | O::WriteLastImm) => !first && last,
            (Op::Read { .. }, O::ReadRequest) => true,
            (Op::FetchAdd { .. }, O::FetchAdd) | (Op::CompareSwap { .. }, O::CompareSwap) => true,
            _ => false,
        };
        ensure!(right, "{at:?} sends {header:?} as packet {number} of {wr:?}");
        match (wr.op, header.ext) {
            (Op::Read { va, .. }, Ext::Reth(reth)) => {
                let part = reth.va == va + offset as u64 && reth.len as usize <= wr.len as usize - offset;
                ensure!(part, "{at:?} reads {reth:?}, which is no part of {wr:?}");
            }
            (Op::Write { va, .. }, Ext::Reth(reth) | Ext::RethImm(reth, _)) => {
                ensure!(reth.va == va && reth.len == wr.len, "{at:?} writes {reth:?}, not {wr:?}");
            }
            _ => {}
        }
        let expected = |i: usize| pattern(at, index, offset + i);
        let data = !wr.carries_data()
            || payload.len() == len && payload.iter().enumerate().all(|(i, byte)| *byte == expected(i));
        ensure!(data, "{at:?} sends other bytes than packet {number} of {wr:?}");
        Ok(())
    }
}

/// Limits: no more READs and atomics wait for their answers than agreed, and a fenced request waits for
/// all of them (IBA 9.7.4.1.2, 10.8.3.3).
#[derive(Default)]
pub(crate) struct Limits {
    ends: BTreeMap<End, Answers>,
}

#[derive(Default)]
struct Answers {
    /// The first packet of each request that has an answer, and the one behind its last.
    requested: BTreeSet<(u64, u64)>,
    placed: BTreeSet<u64>,
    completed: usize,
}

impl Answers {
    /// An answer was stored; they may come in any order.
    fn placed(&mut self, number: u64) {
        self.placed.insert(number);
        self.requested.retain(|(first, end)| (*first..*end).any(|number| !self.placed.contains(&number)));
    }

    /// Everything before this packet is done with.
    fn done(&mut self, number: u64) {
        self.placed = self.placed.split_off(&number);
        self.requested.retain(|(_, end)| *end > number);
    }
}

impl Oracle for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Sent { at, header, .. } if !book.hostile(at) => {
                let number = book.number(at, header.bth.psn);
                let Some(operation) = header.bth.opcode.operation().filter(|op| op.is_request()) else {
                    return Ok(());
                };
                let Some((index, wr)) = book.wr_at(at, number) else { return Ok(()) };
                let (side, answers) = (book.side(at), self.ends.entry(at).or_default());
                if wr.fence {
                    let earlier = side.wrs.iter().enumerate().take(index).skip(answers.completed);
                    let waited = earlier.map(|(_, wr)| wr).all(|wr| wr.carries_data());
                    ensure!(waited, "{at:?} sends request {index}, which is fenced, before earlier answers");
                }
                let psns = match (operation, header.ext) {
                    (Operation::ReadRequest, Ext::Reth(reth)) => book.mtu(at).packets(reth.len),
                    (Operation::FetchAdd | Operation::CompareSwap, _) => 1,
                    _ => return Ok(()),
                };
                let (first, end) = (number as u64, number as u64 + u64::from(psns));
                // Asking for a part of what was asked for takes no resource of the peer.
                if !answers.requested.iter().any(|of| of.0 <= first && end <= of.1) {
                    answers.requested.insert((first, end));
                }
                let (waiting, most) = (answers.requested.len(), side.max_rd_atomic);
                ensure!(
                    waiting <= usize::from(most),
                    "{at:?}: {waiting} requests wait for answers, not {most}"
                );
            }
            Fact::Placed { at, psn, to: Placement::Send { .. }, .. } if !book.hostile(at) => {
                let number = book.number(at, psn);
                self.ends.entry(at).or_default().placed(number.max(0) as u64);
            }
            Fact::Completed { at, completion, .. } if completion.queue == Queue::Send => {
                let answers = self.ends.entry(at).or_default();
                answers.completed += 1;
                answers.done(book.side(at).wrs[completion.slot as usize].end());
            }
            _ => {}
        }
        Ok(())
    }
}
