//! What was asked for: the sessions of a run and their work requests. The oracles compare what
//! happened with it.

use std::time::Duration;

use anyverbs_engine::{Completion, Mtu, Op, Status, Time};
use anyverbs_wire::{Psn, Repr};

use crate::network::Totals;

/// What memory holds where nobody has written.
pub(crate) const CANARY: u8 = 0xc5;

/// Where the words for atomics are in the region of an end, where what can be read, and where the
/// places for WRITEs begin.
pub(crate) const WORDS: usize = 64;
pub(crate) const READABLE: usize = 128;
pub(crate) const READABLE_LEN: usize = 3072;
pub(crate) const PLACES: usize = READABLE + READABLE_LEN + 64;

/// One of the two ends of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct End {
    pub(crate) session: usize,
    pub(crate) side: usize,
}

impl End {
    pub(crate) fn peer(self) -> End {
        End { side: 1 - self.side, ..self }
    }

    pub(crate) fn id(self) -> usize {
        self.session * 2 + self.side
    }
}

/// What the result of a request with an answer must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// There is none.
    Nothing,
    /// What the peer's program keeps writing, from this offset of its readable area.
    Versions(usize),
    /// What an earlier WRITE of this session has written.
    Written(usize),
    /// The value before; nobody else touches the word.
    Value(u64),
    /// The value before, of a word that all sessions share.
    Shared,
}

/// A work request of a program, as planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wr {
    pub(crate) op: Op,
    pub(crate) len: u32,
    pub(crate) signaled: bool,
    pub(crate) solicited: bool,
    pub(crate) fence: bool,
    /// The number of its first packet, counted from the first of the session.
    pub(crate) first: u64,
    pub(crate) packets: u64,
    /// Which receive of the peer it consumes.
    pub(crate) message: Option<u64>,
    /// Where in the peer's region a WRITE goes.
    pub(crate) place: usize,
    pub(crate) answer: Answer,
    /// How it must end, if not with success.
    pub(crate) fails: Option<Status>,
    /// The version of what the peer's program writes, when it was posted.
    pub(crate) version: u32,
    pub(crate) posted_at: Time,
}

impl Wr {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.packets
    }

    /// Whether its data go from the requester to the responder.
    pub(crate) fn carries_data(&self) -> bool {
        matches!(self.op, Op::Send { .. } | Op::Write { .. })
    }

    /// Offset and length of the payload of a packet.
    pub(crate) fn piece(&self, number: u64, mtu: Mtu) -> (usize, usize) {
        let offset = (number - self.first) as usize * mtu.bytes() as usize;
        (offset, (self.len as usize).saturating_sub(offset).min(mtu.bytes() as usize))
    }
}

/// What is known of one end.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) sq_psn: Psn,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) max_rd_atomic: u8,
    /// The `timeout` attribute.
    pub(crate) timeout: Duration,
    /// All work requests of its program; `posted` of them were posted.
    pub(crate) wrs: Vec<Wr>,
    pub(crate) posted: usize,
    /// The version of its readable area.
    pub(crate) version: u32,
    /// It crashed, or has forgotten its queue pair.
    pub(crate) dead: bool,
    /// The program has closed its queue pair.
    pub(crate) closed: bool,
    /// Its queue pair is in the error state.
    pub(crate) errored: bool,
    pub(crate) deregistered: bool,
}

/// A connection of two queue pairs, from its beginning to the first crash of a host.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) mtu: Mtu,
    pub(crate) sides: [Side; 2],
    /// A forged packet has arrived: nothing but safety can be expected any more.
    pub(crate) hostile: bool,
}

/// All sessions of a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Book {
    pub(crate) sessions: Vec<Session>,
    /// When the faults ended.
    pub(crate) healed_at: Option<Time>,
}

impl Book {
    pub(crate) fn side(&self, end: End) -> &Side {
        &self.sessions[end.session].sides[end.side]
    }

    pub(crate) fn mtu(&self, end: End) -> Mtu {
        self.sessions[end.session].mtu
    }

    pub(crate) fn hostile(&self, end: End) -> bool {
        self.sessions[end.session].hostile
    }

    /// The number of a packet that `requester` sends, or that answers it; before the first it is
    /// negative.
    pub(crate) fn number(&self, requester: End, psn: Psn) -> i64 {
        i64::from(psn.distance(self.side(requester).sq_psn))
    }

    /// The work request, posted already, that a packet of `requester` belongs to.
    pub(crate) fn wr_at(&self, requester: End, number: i64) -> Option<(usize, &Wr)> {
        let number = u64::try_from(number).ok()?;
        let side = self.side(requester);
        let index = side.wrs[..side.posted].partition_point(|wr| wr.end() <= number);
        (index < side.posted).then(|| (index, &side.wrs[index]))
    }
}

/// Where bytes were stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placement {
    Receive { slot: u64, offset: u32 },
    Send { slot: u64, offset: u32 },
    Region { offset: usize },
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fact<'a> {
    ReceivePosted {
        at: End,
        slot: u64,
    },
    /// A queue pair sends.
    Sent {
        at: End,
        header: &'a Repr,
        payload: &'a [u8],
    },
    /// A queue pair is given a packet.
    Delivered {
        at: End,
        header: &'a Repr,
    },
    /// Payload of the packet `psn` was stored.
    Placed {
        at: End,
        psn: Psn,
        to: Placement,
        bytes: &'a [u8],
    },
    /// An atomic was executed: the operand that is added, or swapped in, tells which.
    Executed {
        at: End,
        operand: u64,
        before: u64,
    },
    /// `buffer` is what the work request's memory holds now.
    Completed {
        at: End,
        completion: &'a Completion,
        buffer: &'a [u8],
    },
    /// The queue pair of an end is now in the error state.
    Errored {
        at: End,
    },
    /// An end is gone.
    Died {
        at: End,
    },
    Deregistered {
        at: End,
    },
    /// Long enough after the faults ended for a session that is intact.
    DueIntact {
        session: usize,
    },
    /// Long enough for every session.
    Due,
    /// What a region holds at last.
    Region {
        at: End,
        bytes: &'a [u8],
    },
    /// All queue pairs are closed.
    Finished {
        totals: Totals,
        in_flight: u64,
    },
}

/// When something happened, as the world counts and as the host does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    pub(crate) world: Time,
    pub(crate) local: Time,
}

/// The byte at an offset of the data of a work request.
pub(crate) fn pattern(end: End, wr: usize, offset: usize) -> u8 {
    let name = (end.id() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (wr as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mixed = (name ^ (name >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 8;
    (mixed >> (8 * (offset % 7))) as u8 ^ (offset >> 3) as u8
}

/// The operand of an atomic, which no other has.
pub(crate) fn operand(end: End, wr: usize) -> u64 {
    ((end.id() as u64 + 1) << 32) | (wr as u64 + 1)
}

/// A word of the readable area.
pub(crate) fn readable_word(version: u32, index: usize) -> [u8; 8] {
    ((u64::from(version) << 32) | (index as u64).wrapping_mul(0x9e37_79b9) & 0xffff_ffff).to_le_bytes()
}
