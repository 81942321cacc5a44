//! The oracles on what memory holds.

use std::collections::{BTreeMap, BTreeSet};

use anyverbs_engine::{Op, Queue, ReceiveKind, Status};

use crate::book::{
    Answer, Book, CANARY, End, Fact, PLACES, Placement, READABLE, READABLE_LEN, WORDS, When, Wr, operand,
    pattern, readable_word,
};
use crate::oracles::{Oracle, ensure};
use crate::plan::readable;

/// Whether bytes are those of a work request from an offset of its data.
fn is_pattern(end: End, wr: usize, offset: usize, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(i, byte)| *byte == pattern(end, wr, offset + i))
}

/// Data: payload goes exactly where its work request says, and a receive holds its message and nothing
/// else.
pub(crate) struct Data;

impl Oracle for Data {
    fn name(&self) -> &'static str {
        "data"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Placed { at, psn, to, bytes } if !book.hostile(at) => {
                let requester = at.peer();
                let number = book.number(requester, psn);
                let at_place = |wr: &Wr| {
                    let (offset, len) = wr.piece(number as u64, book.mtu(at));
                    let place = match (to, wr.op) {
                        (Placement::Region { offset: at }, Op::Write { .. }) => at == wr.place + offset,
                        (Placement::Receive { slot, offset: at }, Op::Send { .. }) => {
                            Some(slot) == wr.message && at as usize == offset
                        }
                        _ => false,
                    };
                    (place && len == bytes.len(), offset)
                };
                if matches!(to, Placement::Send { .. }) {
                    return Ok(());
                }
                let Some((index, wr)) = book.wr_at(requester, number) else {
                    return Err(format!("{at:?} stores packet {number}, which nobody posted, at {to:?}"));
                };
                let (right, offset) = at_place(wr);
                ensure!(right, "{at:?} stores packet {number} of {wr:?} at {to:?}");
                let same = is_pattern(requester, index, offset, bytes);
                ensure!(same, "{at:?} stores other bytes than packet {number} of {wr:?}");
            }
            Fact::Completed { at, completion, buffer } if !book.hostile(at) => {
                if completion.queue == Queue::Send || completion.status != Status::Success {
                    return Ok(());
                }
                let sender = book.side(at.peer());
                let mut posted = sender.wrs[..sender.posted].iter().enumerate();
                let Some((index, wr)) = posted.find(|(_, wr)| wr.message == Some(completion.slot)) else {
                    return Err(format!("{at:?}: {completion:?} of a message that nobody sent"));
                };
                let (kind, imm, filled) = match wr.op {
                    Op::Write { imm, .. } => (ReceiveKind::WriteImm, imm, 0),
                    Op::Send { imm } => (ReceiveKind::Send, imm, wr.len as usize),
                    _ => return Err(format!("{at:?}: {completion:?} of {wr:?}")),
                };
                let same = (completion.kind, completion.imm, completion.len, completion.solicited)
                    == (kind, imm, wr.len, wr.solicited);
                ensure!(same, "{at:?}: {completion:?} of {wr:?}");
                let (message, rest) = buffer.split_at(filled);
                ensure!(is_pattern(at.peer(), index, 0, message), "{at:?}: {completion:?} holds other bytes");
                ensure!(
                    rest.iter().all(|byte| *byte == CANARY),
                    "{at:?}: bytes behind the message: {completion:?}"
                );
            }
            _ => {}
        }
        Ok(())
    }
}

/// Snapshot: a READ returns what the memory held at some time between its posting and its completion, and
/// never less than what an earlier WRITE of the same queue pair has written.
pub(crate) struct Snapshot;

impl Oracle for Snapshot {
    fn name(&self) -> &'static str {
        "snapshot"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Completed { at, completion, buffer } = *fact else { return Ok(()) };
        if book.hostile(at) || completion.queue == Queue::Receive || completion.status != Status::Success {
            return Ok(());
        }
        let wr = &book.side(at).wrs[completion.slot as usize];
        match wr.answer {
            Answer::Written(of) => {
                ensure!(is_pattern(at, of, 0, buffer), "{at:?}: {completion:?} does not return WRITE {of}");
            }
            Answer::Versions(from) => {
                let versions = wr.version..=book.side(at.peer()).version;
                for (i, word) in buffer.chunks(8).enumerate() {
                    let held = |version| readable_word(version, from / 8 + i)[..word.len()] == *word;
                    let known = versions.clone().any(held);
                    ensure!(
                        known,
                        "{at:?}: {completion:?}: word {i} is {word:x?}, of no version in {versions:?}"
                    );
                }
            }
            Answer::Nothing | Answer::Value(_) | Answer::Shared => {}
        }
        Ok(())
    }
}

/// Exactly once: no packet is stored twice, no atomic executed twice or out of turn, and the requester
/// gets the value that its own execution found.
#[derive(Default)]
pub(crate) struct ExactlyOnce {
    stored: BTreeSet<(End, i64)>,
    /// The values before, by operand.
    executed: BTreeMap<u64, u64>,
}

impl Oracle for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Placed { at, psn, to, .. } if !book.hostile(at) => {
                let number = book.number(at.peer(), psn);
                let answer = matches!(to, Placement::Send { .. });
                ensure!(
                    answer || self.stored.insert((at, number)),
                    "{at:?} stores packet {number} again at {to:?}"
                );
            }
            Fact::Executed { at, operand: given, before } if !book.hostile(at) => {
                let requester = book.side(at.peer());
                let index = (given as u32 as usize).wrapping_sub(1);
                let posted = index < requester.posted && operand(at.peer(), index) == given;
                ensure!(posted, "{at:?} executes atomic {given:#x}, which nobody posted");
                ensure!(
                    self.executed.insert(given, before).is_none(),
                    "{at:?} executes atomic {given:#x} again"
                );
                let expected = requester.wrs[index].answer;
                let in_turn = expected == Answer::Shared || expected == Answer::Value(before);
                ensure!(in_turn, "{at:?} executes atomic {given:#x} on {before:#x}, not on {expected:x?}");
            }
            Fact::Completed { at, completion, buffer } if !book.hostile(at) => {
                let success = completion.queue == Queue::Send && completion.status == Status::Success;
                if !success {
                    return Ok(());
                }
                let slot = completion.slot as usize;
                if let Answer::Value(_) | Answer::Shared = book.side(at).wrs[slot].answer {
                    let found = self.executed.get(&operand(at, slot)).map(|before| before.to_ne_bytes());
                    let same = found.is_some_and(|found| found[..] == *buffer);
                    ensure!(
                        same,
                        "{at:?}: {completion:?} returns {buffer:x?}, its execution found {found:x?}"
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Ambiguity: what succeeded was executed. What was flushed may have been, wholly or in part, and both are
/// right; what was never posted was not.
#[derive(Default)]
pub(crate) struct Ambiguity {
    succeeded: BTreeSet<(End, u64)>,
    /// Where, and which: a forged operand may be that of another session.
    executed: BTreeSet<(End, u64)>,
}

impl Oracle for Ambiguity {
    fn name(&self) -> &'static str {
        "ambiguity"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Completed { at, completion, .. }
                if completion.queue == Queue::Send && completion.status == Status::Success =>
            {
                self.succeeded.insert((at, completion.slot));
            }
            Fact::Executed { at, operand, .. } => {
                self.executed.insert((at, operand));
            }
            Fact::Region { at, bytes } if !book.hostile(at) => {
                let writer = at.peer();
                let mut model = vec![CANARY; bytes.len()];
                model[READABLE..READABLE + READABLE_LEN]
                    .iter_mut()
                    .zip(readable(book.side(at).version))
                    .for_each(|(byte, now)| *byte = now);
                model[WORDS..WORDS + 32].fill(0);
                let side = book.side(writer);
                for (index, wr) in side.wrs[..side.posted].iter().enumerate() {
                    self.apply(&mut model, bytes, (writer, index), wr);
                }
                let wrong = model.iter().zip(bytes).position(|(model, byte)| model != byte);
                ensure!(
                    wrong.is_none(),
                    "{at:?}: the region holds something else at {wrong:?} (places: {PLACES})"
                );
            }
            _ => {}
        }
        Ok(())
    }
}

impl Ambiguity {
    /// Puts into the model what a work request did; where it may have done it or not, the memory decides.
    fn apply(&self, model: &mut [u8], memory: &[u8], (writer, index): (End, usize), wr: &Wr) {
        let executed = self.executed.contains(&(writer.peer(), operand(writer, index)));
        match (wr.op, wr.answer) {
            (Op::Write { .. }, _) if wr.fails.is_none() => {
                let sure = self.succeeded.contains(&(writer, index as u64));
                for offset in 0..wr.len as usize {
                    let (at, byte) = (wr.place + offset, pattern(writer, index, offset));
                    if sure || memory[at] == byte {
                        model[at] = byte;
                    }
                }
            }
            (Op::FetchAdd { va, add, .. }, Answer::Value(before)) if executed => {
                store(model, va, before.wrapping_add(add));
            }
            (Op::CompareSwap { va, compare, swap, .. }, Answer::Value(before)) if executed => {
                store(model, va, if before == compare { swap } else { before });
            }
            _ => {}
        }
    }
}

/// Stores a word; bases are multiples of 64, so the address says which word it is.
fn store(model: &mut [u8], va: u64, value: u64) {
    let at = WORDS + (va % 64) as usize;
    model[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}
