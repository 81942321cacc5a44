//! The owner of memory that the engine under test talks to: it grants, and remembers what it granted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyverbs_engine::{Denied, Memory, Need, Receive};
use anyverbs_wire::{Feth, Qpn};

/// A key with all rights.
pub(crate) const RKEY: u32 = 0x1234;
/// A key that allows reading alone.
pub(crate) const RKEY_READ: u32 = 0x1235;
/// The shared receive queue of XRC.
pub(crate) const SRQN: Qpn = Qpn::new(0x77);

/// A range that was granted: valid only within the event that asked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Span {
    pub(crate) grant: usize,
}

/// What a check granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) va: u64,
    pub(crate) len: u32,
    pub(crate) need: Need,
}

/// A receive work request that the engine has taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) slot: u64,
    pub(crate) capacity: u64,
    /// Bytes placed, without a gap from the front.
    pub(crate) placed: u32,
    pub(crate) has_grh: bool,
}

#[derive(Debug)]
pub(crate) struct TestMemory {
    /// One past the last byte of the region.
    pub(crate) end: u64,
    pub(crate) is_shared: bool,
    pub(crate) tells_credits: bool,
    /// No key is valid any more.
    pub(crate) is_revoked: bool,
    /// The memory disappears between the check and the use.
    pub(crate) denies_use: bool,
    pub(crate) posted: VecDeque<(u64, u64)>,
    pub(crate) taken: VecDeque<Taken>,
    /// Buffers that may be given at once.
    pub(crate) buffers: usize,
    next_buffer: u32,
    /// Given, and not yet filled by a `Hold`.
    pub(crate) reserved: BTreeSet<u32>,
    /// Filled, with the length of what they hold.
    pub(crate) held: BTreeMap<u32, u32>,
    /// Since the event began:
    pub(crate) grants: Vec<Grant>,
    /// how often something was executed that must be executed once.
    pub(crate) effects: u32,
}

impl TestMemory {
    pub(crate) fn new() -> Self {
        TestMemory {
            end: 1 << 16,
            is_shared: false,
            tells_credits: false,
            is_revoked: false,
            denies_use: false,
            posted: VecDeque::new(),
            taken: VecDeque::new(),
            buffers: 0,
            next_buffer: 0,
            reserved: BTreeSet::new(),
            held: BTreeMap::new(),
            grants: Vec::new(),
            effects: 0,
        }
    }

    fn used(&mut self) -> Result<(), Denied> {
        self.effects += 1;
        if self.denies_use { Err(Denied) } else { Ok(()) }
    }
}

impl Memory for TestMemory {
    type Span = Span;

    fn check(&mut self, rkey: u32, va: u64, len: u32, need: Need) -> Result<Span, Denied> {
        assert!(len > 0, "a check of nothing");
        let right = rkey == RKEY || (rkey == RKEY_READ && need == Need::RemoteRead);
        let fits = va.checked_add(u64::from(len)).is_some_and(|end| end <= self.end);
        if !right || !fits || self.is_revoked {
            return Err(Denied);
        }
        self.grants.push(Grant { va, len, need });
        Ok(Span { grant: self.grants.len() - 1 })
    }

    fn fetch_add(&mut self, span: Span, _add: u64) -> Result<u64, Denied> {
        let grant = self.grants[span.grant];
        assert!(
            grant.need == Need::RemoteAtomic && grant.len == 8 && grant.va.is_multiple_of(8),
            "{grant:?}"
        );
        self.used()?;
        Ok(grant.va)
    }

    fn compare_swap(&mut self, span: Span, _compare: u64, _swap: u64) -> Result<u64, Denied> {
        self.fetch_add(span, 0)
    }

    fn flush(&mut self, rkey: u32, _va: u64, _len: u32, feth: Feth) -> Result<(), Denied> {
        assert!(feth.placement != 0 && feth.placement <= 3, "a placement that nobody knows");
        if rkey != RKEY || self.is_revoked {
            return Err(Denied);
        }
        self.used()
    }

    fn invalidate(&mut self, rkey: u32) -> Result<(), Denied> {
        if rkey != RKEY || self.is_revoked {
            return Err(Denied);
        }
        self.used()
    }

    fn take_receive(&mut self, shared: Option<Qpn>) -> Receive {
        if shared != self.is_shared.then_some(SRQN) {
            return Receive::Unknown;
        }
        self.effects += 1;
        let Some((slot, capacity)) = self.posted.pop_front() else { return Receive::Empty };
        self.taken.push_back(Taken { slot, capacity, placed: 0, has_grh: false });
        Receive::Taken { slot, capacity }
    }

    fn receives_posted(&self) -> Option<u32> {
        self.tells_credits.then_some(self.posted.len() as u32)
    }

    fn hold(&mut self) -> Option<u32> {
        if self.held.len() + self.reserved.len() >= self.buffers {
            return None;
        }
        self.next_buffer += 1;
        self.reserved.insert(self.next_buffer);
        Some(self.next_buffer)
    }
}
