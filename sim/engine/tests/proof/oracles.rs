//! Oracles: each knows one rule, sees every fact of a run, and says which fact breaks the rule.
//!
//! What they compare with is the [`Book`] of what was asked for, never the state of the engine. Those on
//! what memory holds are in `contents`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyverbs_engine::{Queue, Status, Time};
use anyverbs_wire::{Ext, Operation, Syndrome};

use crate::book::{Book, End, Fact, Placement, When};
use crate::contents::{Ambiguity, Data, ExactlyOnce, Snapshot};
use crate::requests::{Limits, Segmentation};

/// One rule.
pub(crate) trait Oracle {
    fn name(&self) -> &'static str;

    /// # Errors
    /// What breaks the rule.
    fn see(&mut self, book: &Book, when: When, fact: &Fact<'_>) -> Result<(), String>;
}

/// That a rule was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Violation {
    pub(crate) oracle: &'static str,
    pub(crate) what: String,
}

/// All rules together.
pub(crate) struct Oracles(Vec<Box<dyn Oracle>>);

impl Default for Oracles {
    fn default() -> Self {
        Oracles(vec![
            Box::new(Safety::default()),
            Box::new(Completions::default()),
            Box::new(Order::default()),
            Box::new(Data),
            Box::new(Snapshot),
            Box::new(ExactlyOnce::default()),
            Box::new(Segmentation),
            Box::new(Limits::default()),
            Box::new(Endings::default()),
            Box::new(Ambiguity::default()),
            Box::new(Liveness::default()),
            Box::new(Conservation),
        ])
    }
}

impl Oracles {
    pub(crate) fn see(&mut self, book: &Book, when: When, fact: &Fact<'_>) -> Result<(), Violation> {
        for oracle in &mut self.0 {
            let name = oracle.name();
            oracle.see(book, when, fact).map_err(|what| Violation { oracle: name, what })?;
        }
        Ok(())
    }
}

/// The error that an oracle reports, unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// Completion: each work request that was posted completes exactly once and in order, with a completion
/// queue entry where one is due.
#[derive(Default)]
pub(crate) struct Completions {
    sends: BTreeMap<End, usize>,
    receives: BTreeMap<End, VecDeque<u64>>,
    /// By queue: whether a request failed, and whether one did so with a status of its own.
    failed: BTreeMap<(End, bool), (bool, bool)>,
}

impl Oracle for Completions {
    fn name(&self) -> &'static str {
        "completion"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::ReceivePosted { at, slot } => self.receives.entry(at).or_default().push_back(slot),
            Fact::Completed { at, completion, .. } => {
                let side = book.side(at);
                let is_send = completion.queue == Queue::Send;
                let due = if is_send {
                    let next = self.sends.entry(at).or_default();
                    *next += 1;
                    (*next <= side.posted).then_some(*next as u64 - 1)
                } else {
                    self.receives.entry(at).or_default().pop_front()
                };
                ensure!(due == Some(completion.slot), "{at:?}: {completion:?}, but {due:?} is due");
                let success = completion.status == Status::Success;
                let signaled = !success || !is_send || side.wrs[completion.slot as usize].signaled;
                ensure!(completion.signaled == signaled, "{at:?}: {completion:?} is signalled, or not");
                // A failure may be of a later request than those flushed before it, but there is one only.
                let (failed, blamed) = self.failed.entry((at, is_send)).or_default();
                ensure!(!success || !*failed, "{at:?}: {completion:?} behind a failure");
                let own = !success && completion.status != Status::FlushError;
                ensure!(!own || !*blamed, "{at:?}: {completion:?} is the second failure");
                *failed |= !success;
                *blamed |= own;
            }
            Fact::Finished { .. } => {
                for session in 0..book.sessions.len() {
                    for at in [0, 1].map(|side| End { session, side }) {
                        let (side, done) = (book.side(at), self.sends.get(&at).copied().unwrap_or(0));
                        let left = self.receives.get(&at).map_or(0, VecDeque::len);
                        let whole = done == side.posted && left == 0;
                        ensure!(
                            side.dead || whole,
                            "{at:?}: {done} of {} sends, {left} receives left",
                            side.posted
                        );
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Endings: a work request fails only with a status that something in the run accounts for, and a
/// requester gives up neither too early nor with a peer that is there.
#[derive(Default)]
pub(crate) struct Endings {
    ends: BTreeMap<End, Patience>,
}

#[derive(Default)]
struct Patience {
    /// When the last request was completed, by the host's clock.
    progress: Time,
    /// Packets sent, by work request.
    sent: BTreeMap<usize, u32>,
    rnr_naks: u32,
    /// The packet that is being handled is an RNR NAK: what it acknowledges came before it.
    by_rnr_nak: bool,
    accounted: bool,
}

impl Oracle for Endings {
    fn name(&self) -> &'static str {
        "endings"
    }

    fn see(&mut self, book: &Book, when: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Sent { at, header, .. }
                if header.bth.opcode.operation().is_some_and(Operation::is_request) =>
            {
                if let Some((index, _)) = book.wr_at(at, book.number(at, header.bth.psn)) {
                    *self.ends.entry(at).or_default().sent.entry(index).or_default() += 1;
                }
            }
            Fact::Delivered { at, header } => {
                let patience = self.ends.entry(at).or_default();
                patience.by_rnr_nak =
                    matches!(header.ext, Ext::Aeth(aeth) if matches!(aeth.syndrome, Syndrome::RnrNak { .. }));
                patience.rnr_naks += u32::from(patience.by_rnr_nak);
            }
            Fact::Completed { at, completion, .. } if !book.hostile(at) => {
                let patience = self.ends.entry(at).or_default();
                if completion.queue == Queue::Send {
                    let slot = completion.slot as usize;
                    accounts(book, at, slot, completion.status, patience, when)
                        .map_err(|why| format!("{at:?}: {completion:?}: {why}"))?;
                    if completion.status == Status::Success {
                        patience.progress = when.local;
                        patience.rnr_naks = u32::from(patience.by_rnr_nak);
                        patience.sent.remove(&slot);
                    }
                } else {
                    let too_long = completion.status == Status::LocalLengthError
                        && peer_errs(book, at, Status::RemoteInvalidRequest);
                    let fine = matches!(completion.status, Status::Success | Status::FlushError);
                    ensure!(fine || too_long, "{at:?}: {completion:?}");
                }
                patience.accounted |= !matches!(completion.status, Status::Success | Status::FlushError);
            }
            Fact::Errored { at } if !book.hostile(at) => {
                let side = book.side(at);
                let refused = side.deregistered
                    || peer_errs(book, at, Status::RemoteInvalidRequest)
                    || peer_errs(book, at, Status::RemoteAccessError);
                let accounted = self.ends.entry(at).or_default().accounted;
                ensure!(accounted || refused || side.closed, "{at:?} is in the error state without a reason");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether the peer has posted a request that has to be refused so.
fn peer_errs(book: &Book, at: End, status: Status) -> bool {
    let peer = book.side(at.peer());
    peer.wrs[..peer.posted].iter().any(|wr| wr.fails == Some(status))
}

fn accounts(
    book: &Book,
    at: End,
    slot: usize,
    status: Status,
    patience: &Patience,
    when: When,
) -> Result<(), String> {
    let (side, peer) = (book.side(at), book.side(at.peer()));
    let wr = &side.wrs[slot];
    match status {
        Status::Success => ensure!(wr.fails.is_none(), "it should have ended with {:?}", wr.fails),
        Status::FlushError => {}
        Status::RetryExceeded => {
            let since = patience.progress.max(wr.posted_at);
            let limit = side.timeout * (u32::from(side.retry_cnt) + 1);
            let waited = when.local - since;
            ensure!(waited >= limit, "gave up after {waited:?}, not {limit:?}");
            let sent = patience.sent.get(&slot).copied().unwrap_or(0);
            ensure!(sent > u32::from(side.retry_cnt), "gave up after {sent} packets");
            // The last try before the faults ended may have been lost; the next ones are not.
            let answered = book.healed_at.is_some_and(|healed| when.world > healed + side.timeout * 5 / 2);
            ensure!(!answered || peer.dead || peer.errored, "gave up a peer that answers");
        }
        Status::RnrRetryExceeded => {
            let naks = patience.rnr_naks;
            ensure!(side.rnr_retry != 7 && naks > u32::from(side.rnr_retry), "gave up after {naks} RNR NAKs");
        }
        Status::RemoteAccessError => {
            ensure!(wr.fails == Some(status) || peer.deregistered, "nothing was wrong with it");
        }
        _ => ensure!(wr.fails == Some(status), "nothing was wrong with it"),
    }
    Ok(())
}

/// Order: what is acknowledged was placed before, and what completes was placed at the peer.
#[derive(Default)]
pub(crate) struct Order {
    /// By requester.
    ends: BTreeMap<End, Placed>,
}

#[derive(Default)]
struct Placed {
    packets: BTreeSet<u64>,
    /// Everything before this packet was placed, or has nothing to place.
    prefix: u64,
    messages: u64,
}

impl Placed {
    fn advance(&mut self, book: &Book, requester: End) {
        let mtu = book.mtu(requester);
        while let Some((_, wr)) = book.wr_at(requester, self.prefix as i64) {
            let empty = !wr.carries_data() || wr.piece(self.prefix, mtu).1 == 0;
            if !empty && !self.packets.remove(&self.prefix) {
                break;
            }
            self.prefix += 1;
        }
    }
}

impl Oracle for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Placed { at, psn, to: Placement::Region { .. } | Placement::Receive { .. }, .. } => {
                if let Ok(number) = u64::try_from(book.number(at.peer(), psn)) {
                    self.ends.entry(at.peer()).or_default().packets.insert(number);
                }
            }
            Fact::Sent { at, header, .. } if !book.hostile(at) => {
                let number = book.number(at.peer(), header.bth.psn);
                let acknowledged = match (header.bth.opcode.operation(), header.ext) {
                    (Some(Operation::Acknowledge), Ext::Aeth(aeth)) => match aeth.syndrome {
                        Syndrome::Ack { .. } => number + 1,
                        _ => number,
                    },
                    (Some(operation), _) if operation.is_response() => number,
                    _ => return Ok(()),
                };
                let placed = self.ends.entry(at.peer()).or_default();
                placed.advance(book, at.peer());
                let so_far = placed.prefix;
                let fits = (0..=so_far as i64).contains(&acknowledged);
                ensure!(fits, "{at:?} acknowledges up to {acknowledged} with {so_far} placed: {header:?}");
            }
            Fact::Completed { at, completion, .. } if !book.hostile(at) => {
                if completion.status != Status::Success {
                    return Ok(());
                }
                if completion.queue == Queue::Receive {
                    self.ends.entry(at.peer()).or_default().messages += 1;
                    return Ok(());
                }
                let placed = self.ends.entry(at).or_default();
                placed.advance(book, at);
                let wr = &book.side(at).wrs[completion.slot as usize];
                let (end, so_far) = (wr.end(), placed.prefix);
                ensure!(
                    !wr.carries_data() || so_far >= end,
                    "{at:?}: {completion:?} with {so_far} of {end} placed"
                );
                let received = wr.message.is_none_or(|message| placed.messages > message);
                ensure!(received, "{at:?}: {completion:?} before its receive");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Safety: nothing is stored after deregistration, an error of the queue pair or a crash, and nothing but
/// answers leaves then.
#[derive(Default)]
pub(crate) struct Safety {
    deregistered: BTreeSet<End>,
    errored: BTreeSet<End>,
    dead: BTreeSet<End>,
}

impl Oracle for Safety {
    fn name(&self) -> &'static str {
        "safety"
    }

    fn see(&mut self, _: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Deregistered { at } => {
                self.deregistered.insert(at);
            }
            Fact::Errored { at } => {
                self.errored.insert(at);
            }
            Fact::Died { at } => {
                self.dead.insert(at);
            }
            Fact::Completed { at, completion, .. } => {
                ensure!(!self.dead.contains(&at), "{at:?}: {completion:?} of the dead");
                if completion.status != Status::Success {
                    self.errored.insert(at);
                }
            }
            Fact::Placed { at, to, .. } => {
                let gone = matches!(to, Placement::Region { .. }) && self.deregistered.contains(&at);
                ensure!(!gone, "{at:?}: {to:?} is stored after deregistration");
                let over = self.errored.contains(&at) || self.dead.contains(&at);
                ensure!(!over, "{at:?}: {to:?} is stored after the end of the queue pair");
            }
            Fact::Executed { at, operand, .. } => {
                let over = self.errored.contains(&at) || self.dead.contains(&at);
                ensure!(!over, "{at:?}: atomic {operand:#x} is executed after the end of the queue pair");
            }
            Fact::Sent { at, header, .. } => {
                ensure!(!self.dead.contains(&at), "{at:?}: the dead send {header:?}");
                let request = header.bth.opcode.operation().is_some_and(Operation::is_request);
                ensure!(
                    !request || !self.errored.contains(&at),
                    "{at:?} sends {header:?} in the error state"
                );
            }
            _ => {}
        }
        Ok(())
    }
}

/// Liveness: once the faults are over, programs that nothing has broken finish, and soon; everything else
/// ends with an error after `retry_cnt` times the timeout at the latest.
#[derive(Default)]
pub(crate) struct Liveness {
    done: BTreeMap<End, usize>,
}

impl Liveness {
    fn finished(&self, book: &Book, at: End, whole: bool) -> Result<(), String> {
        let (side, done) = (book.side(at), self.done.get(&at).copied().unwrap_or(0));
        let due = if whole { side.wrs.len() } else { side.posted };
        let stuck = side.wrs.get(done);
        ensure!(side.dead || done >= due, "{at:?}: {done} of {due} requests are done; {stuck:?} hangs");
        Ok(())
    }
}

impl Oracle for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn see(&mut self, book: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        match *fact {
            Fact::Completed { at, completion, .. } if completion.queue == Queue::Send => {
                *self.done.entry(at).or_default() += 1;
            }
            Fact::DueIntact { session } => {
                let Some(state) = book.sessions.get(session) else { return Ok(()) };
                let intact = |side: &crate::book::Side| !side.dead && !side.errored && !side.deregistered;
                if !state.hostile && state.sides.iter().all(intact) {
                    self.finished(book, End { session, side: 0 }, true)?;
                    self.finished(book, End { session, side: 1 }, true)?;
                }
            }
            Fact::Due => {
                for session in (0..book.sessions.len()).filter(|session| !book.sessions[*session].hostile) {
                    self.finished(book, End { session, side: 0 }, false)?;
                    self.finished(book, End { session, side: 1 }, false)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Conservation: no datagram appears from nowhere or vanishes.
pub(crate) struct Conservation;

impl Oracle for Conservation {
    fn name(&self) -> &'static str {
        "conservation"
    }

    fn see(&mut self, _: &Book, _: When, fact: &Fact<'_>) -> Result<(), String> {
        if let Fact::Finished { totals, in_flight } = *fact {
            let (into, out) =
                (totals.sent + totals.duplicated, totals.delivered + totals.dropped + in_flight);
            ensure!(into == out, "{totals:?} and {in_flight} in flight: {into} against {out}");
        }
        Ok(())
    }
}
