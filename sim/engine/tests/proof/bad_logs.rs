//! Each oracle can fail: a session of a few requests, and logs that break one rule each.

use std::time::Duration;

use anyverbs_engine::{Completion, Mtu, Op, Queue, ReceiveKind, Status, Time};
use anyverbs_wire::{Aeth, Bth, Ext, NakCode, Opcode, Operation, Psn, Qpn, Repr, Reth, Service, Syndrome};

use crate::book::{Answer, Book, CANARY, End, Fact, Placement, Session, Side, When, Wr, operand, pattern};
use crate::network::Totals;
use crate::oracles::{Oracles, Violation};

const A: End = End { session: 0, side: 0 };
const B: End = End { session: 0, side: 1 };
const FIRST: Psn = Psn::new(0xff_fffe);

fn wr(op: Op, len: u32, first: u64, packets: u64) -> Wr {
    Wr {
        op,
        len,
        signaled: true,
        solicited: false,
        fence: false,
        first,
        packets,
        message: None,
        place: 4000,
        answer: Answer::Nothing,
        fails: None,
        version: 3,
        posted_at: Time::ZERO,
    }
}

/// A has posted a SEND of 300 bytes, a WRITE, a FETCH_ADD and a READ, of a packet each but the first.
fn book() -> Book {
    let side = |wrs: Vec<Wr>| Side {
        sq_psn: FIRST,
        retry_cnt: 3,
        rnr_retry: 2,
        max_rd_atomic: 1,
        timeout: Duration::from_millis(1),
        posted: wrs.len(),
        wrs,
        version: 5,
        dead: false,
        closed: false,
        errored: false,
        deregistered: false,
    };
    let wrs = vec![
        Wr { message: Some(0), ..wr(Op::Send { imm: None }, 300, 0, 2) },
        wr(Op::Write { va: 4000, rkey: 1, imm: None }, 10, 2, 1),
        Wr { answer: Answer::Value(0), ..wr(Op::FetchAdd { va: 64, rkey: 1, add: operand(A, 2) }, 8, 3, 1) },
        Wr { answer: Answer::Versions(0), ..wr(Op::Read { va: 128, rkey: 1 }, 8, 4, 1) },
    ];
    let session = Session { mtu: Mtu::B256, sides: [side(wrs), side(Vec::new())], hostile: false };
    Book { sessions: vec![session], healed_at: None }
}

fn completion(queue: Queue, slot: u64, status: Status) -> Completion {
    let len = if queue == Queue::Receive { 300 } else { 0 };
    Completion {
        queue,
        slot,
        status,
        signaled: true,
        len,
        kind: ReceiveKind::Send,
        imm: None,
        solicited: false,
        invalidated: None,
        source: None,
    }
}

fn data(wr: usize, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|offset| pattern(A, wr, offset)).collect()
}

fn packet(operation: Operation, number: u32, ext: Ext) -> Repr {
    let bth = Bth::new(Opcode::new(Service::Rc, operation), Qpn::new(9), FIRST.add(number));
    Repr { bth, xrc_srqn: None, ext }
}

fn ack(number: u32, syndrome: Syndrome) -> Repr {
    packet(Operation::Acknowledge, number, Ext::Aeth(Aeth { syndrome, msn: 0 }))
}

/// A log under construction: it stops at the first rule broken.
struct Log {
    book: Book,
    oracles: Oracles,
    now: Time,
    verdict: Result<(), Violation>,
}

impl Log {
    fn new() -> Log {
        Log { book: book(), oracles: Oracles::default(), now: Time::ZERO, verdict: Ok(()) }
    }

    fn fact(mut self, fact: Fact<'_>) -> Log {
        if self.verdict.is_ok() {
            self.verdict = self.oracles.see(&self.book, When { world: self.now, local: self.now }, &fact);
        }
        self
    }

    fn after(mut self, passed: Duration) -> Log {
        self.now = self.now + passed;
        self
    }

    fn sent(self, at: End, header: Repr, payload: &[u8]) -> Log {
        self.fact(Fact::Sent { at, header: &header, payload })
    }

    fn placed(self, number: u32, to: Placement, bytes: &[u8]) -> Log {
        self.fact(Fact::Placed { at: B, psn: FIRST.add(number), to, bytes })
    }

    fn done(self, at: End, completion: Completion, buffer: &[u8]) -> Log {
        self.fact(Fact::Completed { at, completion: &completion, buffer })
    }

    fn ended(self, slot: u64, status: Status) -> Log {
        self.done(A, completion(Queue::Send, slot, status), &[])
    }

    /// The SEND arrives, packet by packet.
    fn send_arrives(self) -> Log {
        let mut buffer = data(0, 0, 300);
        buffer.extend([CANARY; 20]);
        self.fact(Fact::ReceivePosted { at: B, slot: 0 })
            .placed(0, Placement::Receive { slot: 0, offset: 0 }, &data(0, 0, 256))
            .placed(1, Placement::Receive { slot: 0, offset: 256 }, &data(0, 256, 44))
            .done(B, completion(Queue::Receive, 0, Status::Success), &buffer)
    }

    fn all_but_read(self) -> Log {
        self.send_arrives()
            .ended(0, Status::Success)
            .placed(2, Placement::Region { offset: 4000 }, &data(1, 0, 10))
            .sent(B, ack(2, Syndrome::ACK), &[])
            .ended(1, Status::Success)
            .fact(Fact::Executed { at: B, operand: operand(A, 2), before: 0 })
            .done(A, completion(Queue::Send, 2, Status::Success), &0u64.to_ne_bytes())
    }

    fn read(self, version: u32) -> Log {
        let word = crate::book::readable_word(version, 0);
        self.done(A, completion(Queue::Send, 3, Status::Success), &word)
    }

    #[track_caller]
    fn breaks(self, oracle: &str) {
        let broken = self.verdict.expect_err("a bad log");
        assert_eq!(broken.oracle, oracle, "{broken:?}");
    }

    #[track_caller]
    fn holds(self) {
        self.verdict.expect("a good log");
    }
}

fn finished(in_flight: u64) -> Fact<'static> {
    Fact::Finished { totals: Totals { sent: 5, duplicated: 1, dropped: 2, delivered: 3 }, in_flight }
}

#[test]
fn a_good_log_is_accepted() {
    for version in 3..=5 {
        let log = Log::new().all_but_read().read(version);
        log.fact(Fact::DueIntact { session: 0 }).fact(Fact::Due).fact(finished(1)).holds();
    }
}

#[test]
fn completion_fails() {
    Log::new().send_arrives().ended(1, Status::FlushError).breaks("completion");
    Log::new().send_arrives().ended(0, Status::Success).ended(0, Status::Success).breaks("completion");
    Log::new().all_but_read().fact(finished(1)).breaks("completion");
    let unasked = Completion { signaled: false, ..completion(Queue::Send, 0, Status::Success) };
    Log::new().send_arrives().done(A, unasked, &[]).breaks("completion");
    Log::new().send_arrives().ended(0, Status::FlushError).ended(1, Status::Success).breaks("completion");
}

#[test]
fn order_fails() {
    Log::new().sent(B, ack(0, Syndrome::ACK), &[]).breaks("order");
    Log::new().sent(B, ack(1, Syndrome::Nak(NakCode::PsnSequenceError)), &[]).breaks("order");
    Log::new().fact(Fact::ReceivePosted { at: B, slot: 0 }).ended(0, Status::Success).breaks("order");
}

#[test]
fn data_fails() {
    let post = || Log::new().fact(Fact::ReceivePosted { at: B, slot: 0 });
    post().placed(0, Placement::Receive { slot: 0, offset: 0 }, &data(0, 1, 256)).breaks("data");
    post().placed(0, Placement::Receive { slot: 0, offset: 8 }, &data(0, 0, 256)).breaks("data");
    post().placed(9, Placement::Receive { slot: 0, offset: 0 }, &data(0, 0, 256)).breaks("data");
    let mut beyond = data(0, 0, 300);
    beyond.push(!CANARY);
    post().done(B, completion(Queue::Receive, 0, Status::Success), &beyond).breaks("data");
}

#[test]
fn snapshot_fails() {
    Log::new().all_but_read().read(2).breaks("snapshot");
    Log::new().all_but_read().read(6).breaks("snapshot");
}

#[test]
fn exactly_once_fails() {
    let place = Placement::Region { offset: 4000 };
    Log::new().placed(2, place, &data(1, 0, 10)).placed(2, place, &data(1, 0, 10)).breaks("exactly once");
    let executed = Fact::Executed { at: B, operand: operand(A, 2), before: 0 };
    Log::new().fact(executed).fact(executed).breaks("exactly once");
    Log::new().fact(Fact::Executed { at: B, operand: operand(A, 2), before: 1 }).breaks("exactly once");
    Log::new().fact(Fact::Executed { at: B, operand: operand(A, 1), before: 0 }).breaks("exactly once");
}

#[test]
fn segmentation_fails() {
    Log::new().sent(A, packet(Operation::SendOnly, 0, Ext::None), &data(0, 0, 256)).breaks("segmentation");
    Log::new().sent(A, packet(Operation::SendLast, 1, Ext::None), &data(0, 0, 44)).breaks("segmentation");
    let reth = Ext::Reth(Reth { va: 136, rkey: 1, len: 8 });
    Log::new().sent(A, packet(Operation::ReadRequest, 4, reth), &[]).breaks("segmentation");
}

#[test]
fn limits_fail() {
    let atomic = || packet(Operation::FetchAdd, 3, Ext::None);
    let read = || packet(Operation::ReadRequest, 4, Ext::Reth(Reth { va: 128, rkey: 1, len: 8 }));
    Log::new().sent(A, atomic(), &[]).sent(A, atomic(), &[]).holds();
    Log::new().sent(A, atomic(), &[]).sent(A, read(), &[]).breaks("limits");
    let mut fenced = Log::new();
    fenced.book.sessions[0].sides[0].wrs[3].fence = true;
    fenced.sent(A, read(), &[]).breaks("limits");
}

#[test]
fn endings_fail() {
    let tried = |times: usize| {
        let first = || packet(Operation::SendFirst, 0, Ext::None);
        (0..times).fold(Log::new(), |log, _| log.sent(A, first(), &data(0, 0, 256)))
    };
    let long = Duration::from_millis(5);
    tried(4).ended(0, Status::RetryExceeded).breaks("endings");
    tried(3).after(long).ended(0, Status::RetryExceeded).breaks("endings");
    tried(4).after(long).ended(0, Status::RetryExceeded).holds();
    let mut healed = tried(4).after(long);
    healed.book.healed_at = Some(Time::ZERO);
    healed.ended(0, Status::RetryExceeded).breaks("endings");
    Log::new().ended(0, Status::RnrRetryExceeded).breaks("endings");
    Log::new().ended(0, Status::RemoteAccessError).breaks("endings");
    Log::new().fact(Fact::Errored { at: A }).breaks("endings");
}

#[test]
fn safety_fails() {
    let place = Placement::Region { offset: 4000 };
    let write = data(1, 0, 10);
    Log::new().fact(Fact::Deregistered { at: B }).placed(2, place, &write).breaks("safety");
    Log::new().fact(Fact::Died { at: B }).placed(2, place, &write).breaks("safety");
    Log::new().fact(Fact::Died { at: B }).sent(B, ack(0, Syndrome::ACK), &[]).breaks("safety");
    let mut closed = Log::new();
    closed.book.sessions[0].sides[1].closed = true;
    closed.fact(Fact::Errored { at: B }).placed(2, place, &write).breaks("safety");
    let late = packet(Operation::SendFirst, 0, Ext::None);
    Log::new().ended(0, Status::FlushError).sent(A, late, &data(0, 0, 256)).breaks("safety");
}

#[test]
fn liveness_fails() {
    Log::new().all_but_read().fact(Fact::DueIntact { session: 0 }).breaks("liveness");
    Log::new().all_but_read().fact(Fact::Due).breaks("liveness");
}

#[test]
fn conservation_fails() {
    Log::new().all_but_read().read(3).fact(finished(0)).breaks("conservation");
}

#[test]
fn ambiguity_fails() {
    let end = crate::book::PLACES + 1000;
    let mut region = vec![CANARY; end];
    region[crate::book::WORDS..crate::book::WORDS + 32].fill(0);
    let readable = crate::plan::readable(5);
    region[crate::book::READABLE..].iter_mut().zip(readable).for_each(|(byte, now)| *byte = now);
    let sum = operand(A, 2).to_ne_bytes();
    let written = |region: &[u8]| {
        let mut region = region.to_vec();
        region[4000..4010].copy_from_slice(&data(1, 0, 10));
        region[64..72].copy_from_slice(&sum);
        region
    };
    let good = written(&region);
    Log::new().all_but_read().fact(Fact::Region { at: B, bytes: &good }).holds();
    Log::new().all_but_read().fact(Fact::Region { at: B, bytes: &region }).breaks("ambiguity");
    // Flushed: it may be there, or not, or a part of it; but nothing else.
    let flushed = || Log::new().send_arrives().ended(0, Status::Success).ended(1, Status::FlushError);
    let mut part = region.clone();
    part[4000..4005].copy_from_slice(&data(1, 0, 5));
    flushed().fact(Fact::Region { at: B, bytes: &region }).holds();
    flushed().fact(Fact::Region { at: B, bytes: &part }).holds();
    part[4020] ^= 1;
    flushed().fact(Fact::Region { at: B, bytes: &part }).breaks("ambiguity");
}
