//! Ranges of positions that have to go again, or went and are not answered yet.

use std::time::Duration;

use crate::time::Time;

/// Ranges that there is room for. What finds none is told again, or comes with the timer.
const RANGES_MAX: usize = 64;

/// The positions `from..to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    from: u64,
    to: u64,
    /// When it went again, and one past what had ever been sent by then; `None`: it is due.
    sent: Option<(Time, u64)>,
}

impl Range {
    fn has(&self, position: u64) -> bool {
        self.from <= position && position < self.to
    }
}

/// Ranges in the order of their positions, no two of which overlap.
#[derive(Debug)]
pub(super) struct Repairs {
    ranges: Vec<Range>,
    backoff: u32,
}

impl Repairs {
    /// Without any. One that is not `used` takes none, and no memory.
    pub(super) fn new(used: bool) -> Self {
        Repairs { ranges: Vec::with_capacity(if used { RANGES_MAX } else { 0 }), backoff: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.backoff = 0;
    }

    /// The peer has everything before `position`. Returns whether something of that went again.
    pub(super) fn done(&mut self, position: u64) -> bool {
        let before = self.ranges.iter().take_while(|range| range.from < position);
        let (count, sent) =
            before.fold((0, false), |(count, sent), range| (count + 1, sent | range.sent.is_some()));
        if count == 0 {
            return false;
        }
        self.backoff = 0;
        self.ranges.retain(|range| range.to > position);
        if let Some(first) = self.ranges.first_mut() {
            first.from = first.from.max(position);
        }
        sent
    }

    /// The positions `from..to` are missing where everything below `seen` would have come by now: what went
    /// again before something of that did is lost, and what did not go again has to. Returns whether there
    /// is anything that has to go.
    pub(super) fn miss(&mut self, from: u64, to: u64, seen: u64) -> bool {
        let mut any = false;
        let mut at = from;
        while at < to {
            let index = self.ranges.partition_point(|range| range.to <= at);
            let (end, due) = match self.ranges.get(index) {
                Some(range) if range.from <= at => {
                    let lost = range.sent.is_some_and(|(_, horizon)| horizon < seen);
                    (range.to.min(to), lost)
                }
                behind => (behind.map_or(to, |range| range.from.min(to)), true),
            };
            if due && !self.set(Range { from: at, to: end, sent: None }) {
                return any;
            }
            any |= due;
            at = end;
        }
        any
    }

    /// The first range that has to go, of what was ever sent.
    pub(super) fn due(&self, sent_max: u64) -> Option<(u64, u64)> {
        let range = self.ranges.iter().find(|range| range.sent.is_none())?;
        (range.from < sent_max).then_some((range.from, range.to.min(sent_max)))
    }

    /// The positions `from..to` went; `horizon` is one past what was ever sent.
    pub(super) fn sent(&mut self, now: Time, from: u64, to: u64, horizon: u64) {
        // Without room it counts as not sent again: nobody looks for its answer.
        let _ = self.set(Range { from, to, sent: Some((now, horizon)) });
    }

    /// Up to where the range goes that a position is in.
    pub(super) fn covers(&self, position: u64) -> Option<u64> {
        let index = self.ranges.partition_point(|range| range.to <= position);
        self.ranges.get(index).filter(|range| range.has(position)).map(|range| range.to)
    }

    /// Ends ranges of which everything is here, and those that are lost: something came that had been asked
    /// for later. Returns where the first one was that is lost.
    pub(super) fn end_lost(&mut self, seen: u64, is_here: impl Fn(u64) -> bool) -> Option<u64> {
        let mut first = None;
        self.ranges.retain(|range| {
            let missing = (range.from..range.to).any(|position| !is_here(position));
            let lost = missing && range.sent.is_none_or(|(_, horizon)| horizon < seen);
            if lost {
                first = first.or(Some(range.from));
            }
            missing && !lost
        });
        first
    }

    /// Puts a range over those that are there. False, and nothing done, if there is no room.
    fn set(&mut self, new: Range) -> bool {
        let first = self.ranges.partition_point(|range| range.to <= new.from);
        let past = self.ranges.partition_point(|range| range.from < new.to);
        let over = self.ranges.get(first..past).unwrap_or_default();
        let before = over.first().filter(|range| range.from < new.from);
        let before = before.map(|range| Range { to: new.from, ..*range });
        let behind = over.last().filter(|range| range.to > new.to);
        let behind = behind.map(|range| Range { from: new.to, ..*range });
        // Packets of one range that go one by one stay one range.
        let horizon = |range: &Range| range.sent.map(|(_, horizon)| horizon);
        if before.is_none()
            && let Some(last) = first.checked_sub(1)
            && self.ranges[last].to == new.from
            && horizon(&self.ranges[last]) == horizon(&new)
        {
            let from = self.ranges[last].from;
            return self.replace(last, past, [None, Some(Range { from, ..new }), behind]);
        }
        self.replace(first, past, [before, Some(new), behind])
    }

    fn replace(&mut self, first: usize, past: usize, by: [Option<Range>; 3]) -> bool {
        let past = past.max(first);
        let count = by.iter().flatten().count();
        let room = self.ranges.len() - (past - first) + count <= self.ranges.capacity();
        if room {
            self.ranges.drain(first..past);
            by.into_iter().flatten().rev().for_each(|range| self.ranges.insert(first, range));
        }
        room
    }

    // ---- Time -------------------------------------------------------------------------------

    /// When the first range counts as lost again, if it went.
    pub(super) fn deadline(&self, bound: Duration) -> Option<Time> {
        let (at, _) = self.ranges.first()?.sent?;
        Some(at + bound.saturating_mul(1 << self.backoff.min(16)))
    }

    /// Whether that is so by now. Then it has to go again.
    pub(super) fn expire(&mut self, now: Time, bound: Duration) -> bool {
        let late = self.deadline(bound).is_some_and(|at| at <= now);
        if let Some(first) = self.ranges.first_mut().filter(|_| late) {
            first.sent = None;
            self.backoff += 1;
        }
        late
    }

    /// Ends all, and goes on doubling.
    pub(super) fn forget(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repairs(ranges: &[(u64, u64)]) -> Repairs {
        let mut repairs = Repairs::new(true);
        for (from, to) in ranges {
            assert!(repairs.miss(*from, *to, 0));
        }
        repairs
    }

    #[test]
    fn what_is_under_way_does_not_go_again_until_something_later_came() {
        let mut repairs = repairs(&[(10, 12)]);
        assert_eq!(repairs.due(100), Some((10, 12)));
        repairs.sent(Time::ZERO, 10, 11, 50);
        assert_eq!(repairs.due(100), Some((11, 12)));
        repairs.sent(Time::ZERO, 11, 12, 50);
        assert_eq!(repairs.due(100), None);
        assert!(!repairs.miss(10, 12, 50), "everything that came had left before");
        assert!(repairs.miss(11, 12, 51));
        assert_eq!(repairs.due(100), Some((11, 12)), "the other one came");
        repairs.done(12);
        assert!(repairs.is_empty());
    }

    #[test]
    fn nothing_goes_again_that_never_went() {
        let repairs = repairs(&[(10, 20)]);
        assert_eq!(repairs.due(15), Some((10, 15)));
        assert_eq!(repairs.due(10), None);
    }

    #[test]
    fn a_repair_that_is_late_goes_again_and_waits_longer() {
        let bound = Duration::from_micros(10);
        let mut repairs = repairs(&[(1, 2), (5, 6)]);
        assert_eq!(repairs.deadline(bound), None, "it has not left");
        repairs.sent(Time::from_nanos(1_000), 1, 2, 9);
        assert_eq!(repairs.deadline(bound), Some(Time::from_nanos(11_000)));
        assert!(!repairs.expire(Time::from_nanos(10_999), bound));
        assert!(repairs.expire(Time::from_nanos(11_000), bound));
        assert_eq!(repairs.due(9), Some((1, 2)));
        repairs.sent(Time::from_nanos(11_000), 1, 2, 9);
        assert_eq!(repairs.deadline(bound), Some(Time::from_nanos(31_000)));
    }

    #[test]
    fn responses_that_were_asked_for_again_are_lost_when_a_later_one_comes() {
        let mut repairs = Repairs::new(true);
        for (from, horizon) in [(1, 20), (3, 20), (5, 30)] {
            repairs.sent(Time::ZERO, from, from + 1, horizon);
        }
        assert_eq!(repairs.covers(3), Some(4));
        assert_eq!(repairs.end_lost(20, |position| position == 1), None, "asked for before");
        assert_eq!([repairs.covers(1), repairs.covers(3)], [None, Some(4)], "the first is here");
        assert_eq!(repairs.end_lost(21, |_| false), Some(3));
        assert_eq!([repairs.covers(3), repairs.covers(5)], [None, Some(6)]);
    }

    /// Against one note for each position.
    #[test]
    fn ranges_are_as_single_positions_would_be() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % n
        };
        for _ in 0..200 {
            let mut repairs = Repairs::new(true);
            let mut model = [None; 40];
            for step in 1..100 {
                let from = below(40);
                let to = (from + 1 + below(6)).min(40);
                let touched = &mut model[from as usize..to as usize];
                if below(2) == 0 {
                    let seen = below(100);
                    repairs.miss(from, to, seen);
                    for horizon in touched {
                        let lost =
                            horizon.is_none_or(|horizon: Option<u64>| horizon.is_none_or(|it| it < seen));
                        *horizon = if lost { Some(None) } else { *horizon };
                    }
                } else {
                    repairs.sent(Time::ZERO, from, to, step);
                    touched.fill(Some(Some(step)));
                }
                assert!(repairs.ranges.is_sorted_by(|a, b| a.to <= b.from), "{repairs:?}");
                for (position, expected) in (0..).zip(model) {
                    let range = repairs.ranges.iter().find(|range| range.has(position));
                    assert_eq!(range.map(|range| range.sent.map(|sent| sent.1)), expected, "{position}");
                }
            }
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_no_memory_for_more() {
        let mut repairs = Repairs::new(true);
        for position in 0..1000 {
            repairs.miss(2 * position, 2 * position + 1, 0);
        }
        assert_eq!((repairs.ranges.len(), repairs.ranges.capacity()), (RANGES_MAX, RANGES_MAX));
        assert!(!Repairs::new(false).miss(0, 1, 0), "not used");
    }
}
