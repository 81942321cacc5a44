//! Links between hosts, and what they do to datagrams.
//!
//! Whether the n-th datagram of a link is harmed is a function of the seed, the link and n alone. So a
//! run can be repeated with some of its faults left out, and the others still strike where they did.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use anyverbs_engine::Time;
use anyverbs_wire::{Flow, icrc};

use crate::rng::{Rng, Stream};

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// A datagram is lost.
    Loss,
    /// A datagram is lost in a burst (Gilbert-Elliott).
    Burst,
    /// A datagram comes twice.
    Duplicate,
    /// A datagram is overtaken by those close behind it.
    Reorder,
    /// A datagram is late by much more than a round trip.
    Tail,
    /// A bit flips, and the ICRC tells.
    Flip,
    /// A bit of the headers flips, and the ICRC is made right again: an attacker, or a broken switch.
    Repaired,
    /// A datagram is cut short.
    Truncate,
    /// The network marks a datagram that met congestion (ECN).
    Mark,
    /// A host has no time to send.
    Busy,
    /// A host has no memory for a receive.
    Refuse,
    /// A host has no buffer for an early packet.
    NoBuffer,
    /// Receives are posted late.
    LateReceives,
    /// A link carries nothing for a while.
    Partition,
    /// A host forgets one queue pair.
    Forget,
    /// A host crashes, and comes back.
    Restart,
    /// The clock of a host leaps.
    ClockJump,
    /// A region is deregistered while a peer uses it.
    Deregister,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Fault; 18] = [
        Fault::Loss,
        Fault::Burst,
        Fault::Duplicate,
        Fault::Reorder,
        Fault::Tail,
        Fault::Flip,
        Fault::Repaired,
        Fault::Truncate,
        Fault::Mark,
        Fault::Busy,
        Fault::Refuse,
        Fault::NoBuffer,
        Fault::LateReceives,
        Fault::Partition,
        Fault::Forget,
        Fault::Restart,
        Fault::ClockJump,
        Fault::Deregister,
    ];
}

/// That a fault struck: the n-th datagram, or occasion, of an entity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Decision {
    pub(crate) fault: Fault,
    /// A link, an end or a host, as the fault goes.
    pub(crate) entity: u32,
    pub(crate) nth: u64,
}

/// Which faults may strike, and which did.
#[derive(Debug, Default)]
pub(crate) struct Chaos {
    /// No others than these, if there are any.
    pub(crate) allowed: Option<BTreeSet<Decision>>,
    /// Shared with whoever looks after a run that panics.
    pub(crate) taken: Rc<RefCell<Vec<Decision>>>,
    /// No more of them.
    pub(crate) healed: bool,
}

impl Chaos {
    /// Whether a fault that would strike may.
    pub(crate) fn strikes(&mut self, would: bool, fault: Fault, entity: u32, nth: u64) -> bool {
        let decision = Decision { fault, entity, nth };
        let strikes =
            would && !self.healed && self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&decision));
        if strikes {
            self.taken.borrow_mut().push(decision);
        }
        strikes
    }
}

/// How often a link harms datagrams, in parts per thousand.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Rates {
    pub(crate) loss: u64,
    /// How often a burst of losses begins.
    pub(crate) burst: u64,
    pub(crate) duplicate: u64,
    pub(crate) reorder: u64,
    pub(crate) tail: u64,
    pub(crate) flip: u64,
    pub(crate) repaired: u64,
    pub(crate) truncate: u64,
    pub(crate) mark: u64,
}

/// What became of all datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Totals {
    pub(crate) sent: u64,
    pub(crate) duplicated: u64,
    pub(crate) dropped: u64,
    pub(crate) delivered: u64,
}

/// A datagram that arrives.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) datagram: Vec<u8>,
    /// Its headers are a forgery with a right ICRC.
    pub(crate) hostile: bool,
    /// The two ECN bits of its IP header.
    pub(crate) ecn: u8,
}

/// One direction between two hosts.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u32,
    from: usize,
    to: usize,
    rates: Rates,
    nth: u64,
    in_burst: bool,
    /// It carries nothing before then.
    pub(crate) cut_until: Time,
}

/// The time that a datagram takes when nothing is wrong.
const LATENCY: Duration = Duration::from_micros(5);

/// The addresses under which hosts know each other.
pub(crate) fn flow(from: usize, to: usize) -> Flow {
    let address = |host: usize| Ipv4Addr::new(10, 0, 0, host as u8 + 1).into();
    Flow { source: address(from), destination: address(to), source_port: 0xc000 }
}

impl Link {
    pub(crate) fn new(from: usize, to: usize, rates: Rates) -> Link {
        let id = (from * 8 + to) as u32;
        Link { id, from, to, rates, nth: 0, in_burst: false, cut_until: Time::ZERO }
    }

    /// Sends a datagram; returns what arrives, and after how long.
    pub(crate) fn pass(
        &mut self,
        seed: u64,
        chaos: &mut Chaos,
        totals: &mut Totals,
        now: Time,
        mut datagram: Vec<u8>,
    ) -> Vec<(Duration, Flight)> {
        let Link { id, rates, nth, .. } = *self;
        self.nth += 1;
        totals.sent += 1;
        let mut rng = Rng::stream(seed, Stream::Link(id), nth);
        self.walk_burst(seed);
        // Every datagram draws the same numbers, whatever becomes of it.
        let [loss, duplicate, reorder, tail, flip, repaired, truncate, mark] = [
            rates.loss,
            rates.duplicate,
            rates.reorder,
            rates.tail,
            rates.flip,
            rates.repaired,
            rates.truncate,
            rates.mark,
        ]
        .map(|rate| rng.chance(rate));
        let [later, very_late, place, cut] =
            [1 + rng.below(40), 100 + rng.below(6000), rng.next(), rng.next()];

        if now < self.cut_until
            || chaos.strikes(loss, Fault::Loss, id, nth)
            || chaos.strikes(self.in_burst && rng.chance(700), Fault::Burst, id, nth)
        {
            totals.dropped += 1;
            return Vec::new();
        }
        let mut hostile = false;
        if chaos.strikes(repaired, Fault::Repaired, id, nth) {
            let end = datagram.len() - icrc::LEN;
            let bit = place as usize % (end.min(40) * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
            let right = icrc::compute(&flow(self.from, self.to), 0, &datagram[..end]);
            datagram[end..].copy_from_slice(&right);
            hostile = true;
        }
        let copies = 1 + usize::from(chaos.strikes(duplicate, Fault::Duplicate, id, nth));
        totals.duplicated += copies as u64 - 1;
        let mut delay = LATENCY;
        if chaos.strikes(reorder, Fault::Reorder, id, nth) {
            delay += Duration::from_micros(later);
        }
        let ecn = if chaos.strikes(mark, Fault::Mark, id, nth) { 3 } else { 2 };
        let flight = Flight { from: self.from, to: self.to, datagram, hostile, ecn };
        let mut flights = vec![(delay, flight); copies];
        // Only the last copy is harmed further: a good one and a bad one is the case of interest.
        let (delay, flight) = &mut flights[copies - 1];
        if chaos.strikes(tail, Fault::Tail, id, nth) {
            *delay += Duration::from_micros(very_late);
        }
        if chaos.strikes(flip, Fault::Flip, id, nth) {
            let bit = place as usize % (flight.datagram.len() * 8);
            flight.datagram[bit / 8] ^= 1 << (bit % 8);
        }
        if chaos.strikes(truncate, Fault::Truncate, id, nth) {
            let len = cut as usize % flight.datagram.len();
            flight.datagram.truncate(len);
        }
        flights
    }

    /// Bursts begin and end independently of what else happens.
    fn walk_burst(&mut self, seed: u64) {
        let mut rng = Rng::stream(seed, Stream::Burst(self.id), self.nth);
        self.in_burst = if self.in_burst { !rng.chance(200) } else { rng.chance(self.rates.burst) };
    }
}
