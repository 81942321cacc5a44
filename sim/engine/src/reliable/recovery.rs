//! Sending again only what is missing.
//!
//! A NAK names the first request that the peer misses, and nothing that is standard names the others. So the
//! requester sends that one again and looks at the answer: an acknowledgement that jumps beyond it, or
//! a NAK further on, says that the peer kept what came early. A NAK of the very next packet says that it
//! did not, or that the next one was lost, too.
//!
//! | peer | a NAK of `m` | the answer names what is behind the repair | the answer jumps further |
//! |---|---|---|---|
//! | unknown | send `m` again, nothing else | go back; the third time in a row: *drops* | *keeps* |
//! | keeps | send `m` again, and go on | repair twice as much | repair what is missing now |
//! | drops | go back | | for a while: then *unknown* |
//!
//! Doubling is for bursts: a repair of one packet takes a round trip.
//!
//! A peer of our own kind keeps what is early, and tells all that it misses in a packet of our own
//! ([`Opcode::MISSING`](anyverbs_wire::Opcode::MISSING)): when another gap opens or is filled, and when an
//! early packet asks for an answer. From the first of them on that is what is gone by. All gaps are repaired
//! in one round trip, a NAK that is lost costs nothing, and a repair is known to be lost as soon as something
//! came that had left after it: no timer has to find out. Other peers get such packets, too, and drop them as
//! being of a service that their queue pair does not have (IBA 9.6.1); they are only sent about packets that
//! are kept, so that a sender that goes back has few of them.
//!
//! Responses that are missing here need no telling: `docs/transport.md` has the figures of both.

use std::time::Duration;

use anyverbs_wire::Missing;

use super::repairs::Repairs;
use crate::qp::Recovery as Mode;
use crate::time::Time;

/// Repairs without a jump that make a peer one that drops.
const MISSES_MAX: u8 = 3;

/// Times of going back after which a peer that drops is asked again.
const BELIEF: u32 = 256;

/// No repair is sent again earlier: a peer may share its processor with us.
const PATIENCE: Duration = Duration::from_micros(100);

/// What is known of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Unknown { misses: u8 },
    Keeps,
    Drops { times: u32 },
}

/// Requests that are sent again: positions `from..end`, of which those before `next` are under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Repair {
    from: u64,
    next: u64,
    end: u64,
    /// One past what had been sent before it: if the answer says nothing of that, it is gone.
    horizon: u64,
    sent_at: Option<Time>,
    backoff: u32,
}

/// What the requester has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Advice {
    /// Nothing beyond the repair that is noted here.
    Repair,
    /// Send everything again from the first unacknowledged packet on.
    GoBack,
}

#[derive(Debug)]
pub(crate) struct Recovery {
    mode: Mode,
    peer: Peer,
    repair: Option<Repair>,
    /// The peer tells what it misses: `repair` is not used any more, but these are.
    tells: bool,
    requests: Repairs,
    /// One past what had been sent when the last of these went.
    horizon: u64,
    /// Missing responses before this position were asked for again.
    asked: u64,
    responses: Repairs,
}

impl Recovery {
    pub(crate) fn new(mode: Mode) -> Self {
        let peer = Peer::Unknown { misses: 0 };
        let [requests, responses] = [0, 1].map(|_| Repairs::new(mode == Mode::Selective));
        Recovery { mode, peer, repair: None, tells: false, requests, horizon: 0, asked: 0, responses }
    }

    /// Whether nothing is being sent again.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.repair.is_none() && self.requests.is_empty() && self.responses.is_empty()
    }

    #[inline]
    pub(crate) fn is_selective(&self) -> bool {
        self.mode == Mode::Selective
    }

    /// Whether an answer has to come before anything new is sent: a peer that drops what is early would
    /// drop it.
    pub(crate) fn is_trial(&self) -> bool {
        self.repair.is_some() && self.peer != Peer::Keeps
    }

    // ---- Requests that the peer misses ------------------------------------------------------

    /// The peer misses `missing`, and nothing before it. `bound`: see [`on_timer`](Self::on_timer).
    pub(crate) fn on_nak(&mut self, now: Time, missing: u64, bound: Option<Duration>) -> Advice {
        if self.tells {
            self.requests.miss(missing, missing + 1, missing);
            return Advice::Repair;
        }
        if let Peer::Drops { times } = &mut self.peer {
            *times += 1;
            if *times < BELIEF {
                return Advice::GoBack;
            }
            self.peer = Peer::Unknown { misses: MISSES_MAX - 1 };
        }
        if self.mode == Mode::GoBackN {
            return Advice::GoBack;
        }
        let Some(repair) = &mut self.repair else {
            return self.start(missing, 1);
        };
        if missing < repair.next {
            // Of a longer repair one packet has come, and the next is right behind it; or the repair was
            // lost; or this NAK is older than the repair.
            let due = repair.sent_at.is_none_or(|at| now - at >= bound.unwrap_or(PATIENCE));
            if missing == repair.from && due {
                *repair = Repair { next: missing, sent_at: None, ..*repair };
            }
            repair.from = missing;
            Advice::Repair
        } else if missing > repair.next {
            self.peer = Peer::Keeps;
            self.start(missing, 1)
        } else if repair.sent_at.is_none() {
            // It is about to leave.
            Advice::Repair
        } else {
            let run = (repair.next - repair.from).max(1).saturating_mul(2);
            self.miss(missing, run)
        }
    }

    /// The peer keeps what comes early and misses what it says: `first`, and the gaps behind it. `sent_max`
    /// is one past what was ever sent. Returns whether something is lost that was not known to be.
    pub(crate) fn on_missing(&mut self, first: u64, missing: &Missing, sent_max: u64) -> bool {
        if !self.is_selective() {
            return false;
        }
        self.peer = Peer::Keeps;
        self.tells = true;
        if let Some(Repair { from, next, horizon, sent_at: Some(at), .. }) = self.repair.take()
            && from < next
        {
            self.horizon = horizon;
            self.requests.sent(at, from, next, horizon);
        }
        let seen = (first + u64::from(missing.seen)).min(sent_max);
        let mut any = self.requests.miss(first, (first + 1).min(sent_max), seen);
        for gap in &missing.gaps {
            let from = first + u64::from(gap.start);
            any |= self.requests.miss(from, (from + u64::from(gap.len)).min(seen), seen);
        }
        any
    }

    /// The answer to a repair named the packet right behind it.
    fn miss(&mut self, missing: u64, run: u64) -> Advice {
        match &mut self.peer {
            Peer::Keeps => self.start(missing, run),
            Peer::Unknown { misses } => {
                *misses += 1;
                if *misses >= MISSES_MAX {
                    self.peer = Peer::Drops { times: 0 };
                }
                self.repair = None;
                Advice::GoBack
            }
            Peer::Drops { .. } => Advice::GoBack,
        }
    }

    fn start(&mut self, from: u64, run: u64) -> Advice {
        self.repair =
            Some(Repair { from, next: from, end: from + run, horizon: 0, sent_at: None, backoff: 0 });
        Advice::Repair
    }

    /// When the repair was sent, once, that the peer has executed if it has executed everything before
    /// `acked`: it had not come before, so the answer is to this.
    pub(crate) fn answered(&self, acked: u64) -> Option<Time> {
        let repair = self.repair.as_ref()?;
        repair.sent_at.filter(|_| repair.from < acked && repair.backoff == 0)
    }

    /// The peer has executed everything before `acked`. If it says so by an acknowledgement, that is all
    /// that it has got (`all`); if it says so by a response, there may be more to come.
    pub(crate) fn on_ack(&mut self, now: Time, acked: u64, all: bool) -> Advice {
        if self.requests.done(acked) && all && acked < self.horizon {
            // It executed repairs and says that it keeps nothing: what had been sent before them is gone.
            self.requests.miss(acked, self.horizon, self.horizon);
        }
        let Some(repair) = &mut self.repair else { return Advice::Repair };
        if acked <= repair.from {
            return Advice::Repair;
        }
        if acked < repair.next {
            // The answer has begun: it is not lost, however long it is.
            repair.from = acked;
            repair.sent_at = Some(now);
            return Advice::Repair;
        }
        if repair.sent_at.is_none() || acked >= repair.horizon {
            // It was late and not lost, or there is nothing else.
            let jumped = repair.sent_at.is_some() && acked > repair.next;
            self.repair = None;
            self.peer = if jumped { Peer::Keeps } else { self.peer };
            return Advice::Repair;
        }
        let run = if acked > repair.next { 1 } else { (repair.next - repair.from).saturating_mul(2) };
        if acked > repair.next {
            self.peer = Peer::Keeps;
            *repair = Repair { from: acked, next: acked, end: acked, ..*repair };
        }
        // It executed the repair and names no gap behind it, so the rest of what had been sent before the
        // repair is gone.
        if all { self.miss(acked, run) } else { Advice::Repair }
    }

    /// Nothing moved for the whole retransmit timer. `unanswered` are the first and the last request of those
    /// that the peer has not executed.
    pub(crate) fn on_timeout(&mut self, una: u64, acked: u64, unanswered: [Option<u64>; 2]) -> Advice {
        self.repair = None;
        self.asked = una;
        self.responses.forget();
        if self.tells {
            self.requests.forget();
            // What comes early makes the peer tell everything.
            for position in unanswered.into_iter().flatten() {
                self.requests.miss(position, position + 1, 0);
            }
            return Advice::Repair;
        }
        if self.is_selective() && self.peer == Peer::Keeps { self.start(acked, 1) } else { Advice::GoBack }
    }

    /// The peer was not ready for `missing`, and may be soon.
    pub(crate) fn on_rnr(&mut self, missing: u64) -> Advice {
        self.repair = None;
        if self.tells {
            self.requests.forget();
            self.requests.miss(missing, missing + 1, 0);
            return Advice::Repair;
        }
        if self.is_selective() && self.peer == Peer::Keeps { self.start(missing, 1) } else { Advice::GoBack }
    }

    /// Nothing is sent again any more.
    pub(crate) fn stop(&mut self) {
        self.repair = None;
        self.requests.clear();
        self.responses.clear();
    }

    /// The next request to send again, and where the repair ends.
    pub(crate) fn next_request(&self, sent_max: u64) -> Option<(u64, u64)> {
        let Some(repair) = &self.repair else { return self.requests.due(sent_max) };
        // What was sent for the first time meanwhile is not part of it.
        let sent = if repair.sent_at.is_none() { sent_max } else { repair.horizon };
        let end = repair.end.min(sent);
        (repair.next < end).then_some((repair.next, end))
    }

    /// The requests `from..end` were sent again; `sent_max` is one past what was ever sent.
    pub(crate) fn request_sent(&mut self, now: Time, from: u64, end: u64, sent_max: u64) {
        if self.tells {
            self.horizon = sent_max;
            self.requests.sent(now, from, end, sent_max);
        } else if let Some(repair) = &mut self.repair {
            if repair.sent_at.is_none() {
                repair.horizon = sent_max;
            }
            repair.next = end;
            repair.sent_at = Some(now);
        }
    }

    // ---- Responses that are missing here ----------------------------------------------------

    /// Up to where missing responses were asked for again.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Up to where responses were asked for again and are under way, if those at `position` are.
    pub(crate) fn response_under_way(&self, position: u64) -> Option<u64> {
        self.responses.covers(position)
    }

    /// No response before `end` has to be asked for again.
    pub(crate) fn responses_complete(&mut self, end: u64) {
        self.asked = self.asked.max(end);
    }

    /// The responses `from..end` were asked for again; `sent_max` is one past what was ever sent.
    pub(crate) fn responses_asked(&mut self, now: Time, from: u64, end: u64, sent_max: u64) {
        self.asked = self.asked.max(end);
        self.responses.sent(now, from, end, sent_max);
    }

    /// The response at `position` came, before others. Answers come in the order of their requests, so what
    /// was asked for again before that was asked for at all is lost.
    pub(crate) fn on_response(&mut self, position: u64, is_here: impl Fn(u64) -> bool) {
        if let Some(lost) = self.responses.end_lost(position + 1, is_here) {
            self.asked = self.asked.min(lost);
        }
    }

    /// The first unacknowledged position moved to `una`; `complete` if no response is missing.
    #[inline]
    pub(crate) fn on_progress(&mut self, una: u64, complete: bool) {
        if self.responses.is_empty() {
            return;
        }
        let _ = self.responses.done(una);
        if complete {
            self.responses.clear();
        }
    }

    // ---- Time -------------------------------------------------------------------------------

    /// When a repair counts as lost itself. `bound`: how long an answer takes at most; without it the
    /// retransmit timer decides.
    pub(crate) fn next_deadline(&self, bound: Option<Duration>) -> Option<Time> {
        let bound = bound?.max(PATIENCE);
        let backoff = |backoff: u32| bound.saturating_mul(1 << backoff.min(16));
        let repair = self.repair.and_then(|repair| Some(repair.sent_at? + backoff(repair.backoff)));
        let told = Time::earliest(self.requests.deadline(bound), self.responses.deadline(bound));
        Time::earliest(repair, told)
    }

    /// Sends repairs again that were not answered.
    pub(crate) fn on_timer(&mut self, now: Time, una: u64, acked: u64, bound: Option<Duration>) {
        let Some(bound) = bound.map(|bound| bound.max(PATIENCE)) else { return };
        let late = |at: Time, backoff: u32| at + bound.saturating_mul(1 << backoff.min(16)) <= now;
        if let Some(repair) = &mut self.repair
            && repair.sent_at.is_some_and(|at| late(at, repair.backoff))
        {
            let from = repair.from.max(acked);
            let (end, backoff) = (repair.end.max(from + 1), repair.backoff + 1);
            *repair = Repair { from, next: from, end, sent_at: None, backoff, ..*repair };
        }
        self.requests.expire(now, bound);
        if self.responses.expire(now, bound) {
            self.responses.forget();
            self.asked = una;
        }
    }
}
