//! What is measured, in which order: rows, and the groups of rows that are measured side by side.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An operation that can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Op {
    /// Two-sided messages into posted receives
    Send,
    /// One-sided writes into the other side's memory
    Write,
    /// One-sided reads of the other side's memory
    Read,
    /// Atomic addition to a counter on the other side
    FetchAdd,
}

/// What is asked of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// How long one takes, one at a time
    Latency,
    /// How many, and how many bytes, go through in a second, many at a time
    Bandwidth,
}

/// What one row does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    /// SEND into posted receives.
    Send,
    /// RDMA WRITE.
    Write,
    /// RDMA READ.
    Read,
    /// Atomic fetch and add.
    FetchAdd,
    /// UDP: the message there, and one of the same size back. The limit for send and write.
    RawEcho,
    /// UDP: eight bytes there, the message back. The limit for read and fetch-add.
    RawGet,
    /// UDP: a stream with segmentation and receive offload.
    RawStream,
    /// UDP: a stream with one datagram a call.
    RawSingle,
}

impl Action {
    /// Its name in tables and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Action::Send => "send",
            Action::Write => "write",
            Action::Read => "read",
            Action::FetchAdd => "fetch-add",
            Action::RawEcho => "raw-echo",
            Action::RawGet => "raw-get",
            Action::RawStream => "raw-stream",
            Action::RawSingle => "raw-single",
        }
    }

    /// Whether it uses plain sockets, without verbs.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Action::RawEcho | Action::RawGet | Action::RawStream | Action::RawSingle)
    }

    /// Whether its latency is half of a round trip, since the other side answers in kind.
    pub(crate) fn is_ping_pong(self) -> bool {
        matches!(self, Action::Send | Action::Write | Action::RawEcho)
    }

    /// The raw row that it is compared with.
    pub(crate) fn limit(self, measure: Measure) -> Option<Action> {
        match (self, measure) {
            (Action::Send | Action::Write, Measure::Latency) => Some(Action::RawEcho),
            (Action::Read | Action::FetchAdd, Measure::Latency) => Some(Action::RawGet),
            (Action::Send | Action::Write | Action::Read | Action::FetchAdd, Measure::Bandwidth) => {
                Some(Action::RawStream)
            }
            _ => None,
        }
    }
}

impl From<Op> for Action {
    fn from(op: Op) -> Self {
        match op {
            Op::Send => Action::Send,
            Op::Write => Action::Write,
            Op::Read => Action::Read,
            Op::FetchAdd => Action::FetchAdd,
        }
    }
}

/// One row of the report, as both sides know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RowSpec {
    /// What is asked.
    pub measure: Measure,
    /// What is done.
    pub action: Action,
    /// The length of a message, in bytes.
    pub size: usize,
    /// How many are under way at a time.
    pub depth: usize,
}

/// The most operations that may be under way at a time.
pub(crate) const DEPTH_MAX: usize = 4096;

/// Buffers of one row take at most this many bytes on a side, so large messages get less depth.
const BUFFER_BYTES_MAX: usize = 8 << 20;

impl RowSpec {
    /// Whether both sides can agree to it: sizes and depths come from the network, too.
    pub(crate) fn is_sane(&self) -> bool {
        (1..=crate::units::SIZE_MAX).contains(&self.size)
            && (1..=DEPTH_MAX).contains(&self.depth)
            && (self.depth == 1 || self.size.saturating_mul(self.depth) <= BUFFER_BYTES_MAX)
            && (self.action != Action::FetchAdd || self.size == 8)
            && match self.measure {
                Measure::Latency => {
                    self.depth == 1 && !matches!(self.action, Action::RawStream | Action::RawSingle)
                }
                Measure::Bandwidth => !matches!(self.action, Action::RawEcho | Action::RawGet),
            }
    }
}

/// How long a row is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Length {
    /// For a time.
    Time(Duration),
    /// For a number of operations.
    Operations(u64),
}

/// What the user asked for, complete.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    /// Operations, in the order of the table.
    pub ops: Vec<Op>,
    /// What to measure of them.
    pub measures: Vec<Measure>,
    /// Sizes for latency, in bytes.
    pub latency_sizes: Vec<usize>,
    /// Sizes for bandwidth, in bytes.
    pub bandwidth_sizes: Vec<usize>,
    /// How long each row is measured.
    pub length: Length,
    /// How long a row runs before it is measured.
    pub warmup: Duration,
    /// How many operations are under way at a time when bandwidth is measured.
    pub depth: usize,
    /// Whether to measure plain sockets, too.
    pub raw: bool,
}

/// Rows that are measured in turns, slice by slice, so that whatever disturbs the machine for a while
/// disturbs all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    /// The rows.
    pub rows: Vec<RowSpec>,
}

/// A row is measured in slices of about this length, and in at most [`ROUNDS_MAX`] of them.
const SLICE: Duration = Duration::from_millis(150);
const ROUNDS_MAX: u32 = 10;

impl Wishes {
    /// The groups, in the order in which they are measured.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        for &measure in &self.measures {
            let sizes = match measure {
                Measure::Latency => &self.latency_sizes,
                Measure::Bandwidth => &self.bandwidth_sizes,
            };
            let mut sizes: Vec<usize> =
                if self.ops.iter().any(|&op| op != Op::FetchAdd) { sizes.clone() } else { Vec::new() };
            // A fetch-add has eight bytes, whatever sizes were asked for.
            if self.ops.contains(&Op::FetchAdd) && !sizes.contains(&8) {
                sizes.insert(0, 8);
            }
            let listed = |size| match measure {
                Measure::Latency => self.latency_sizes.contains(&size),
                Measure::Bandwidth => self.bandwidth_sizes.contains(&size),
            };
            for size in sizes {
                let actions =
                    self.ops.iter().filter(|&&op| if op == Op::FetchAdd { size == 8 } else { listed(size) });
                groups.push(self.group(measure, size, actions.map(|&op| Action::from(op)).collect()));
            }
        }
        groups
    }

    fn group(&self, measure: Measure, size: usize, actions: Vec<Action>) -> Group {
        let depth = match measure {
            Measure::Latency => 1,
            Measure::Bandwidth => self.depth.min((BUFFER_BYTES_MAX / size).max(1)),
        };
        let row = |action| RowSpec { measure, action, size, depth };
        let mut rows = Vec::new();
        for action in actions {
            if self.raw
                && let Some(limit) = action.limit(measure)
                && !rows.contains(&row(limit))
            {
                rows.push(row(limit));
                if limit == Action::RawStream {
                    rows.push(row(Action::RawSingle));
                }
            }
            rows.push(row(action));
        }
        Group { rows }
    }

    /// In how many turns each row of a group is measured.
    pub(crate) fn rounds(&self) -> u32 {
        match self.length {
            Length::Time(time) => {
                (time.as_secs_f64() / SLICE.as_secs_f64()).round().clamp(1.0, f64::from(ROUNDS_MAX)) as u32
            }
            Length::Operations(n) => n.div_ceil(1000).clamp(1, 4) as u32,
        }
    }

    /// The length of slice `round` of [`rounds`](Self::rounds).
    pub(crate) fn slice(&self, round: u32) -> Length {
        let rounds = self.rounds();
        match self.length {
            Length::Time(time) => Length::Time(time / rounds),
            Length::Operations(n) => {
                let (n, rounds, round) = (n, u64::from(rounds), u64::from(round));
                Length::Operations(n * (round + 1) / rounds - n * round / rounds)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes() -> Wishes {
        Wishes {
            ops: vec![Op::Send, Op::Write, Op::Read, Op::FetchAdd],
            measures: vec![Measure::Latency, Measure::Bandwidth],
            latency_sizes: vec![8, 4096],
            bandwidth_sizes: vec![4096, 1 << 20],
            length: Length::Time(Duration::from_millis(600)),
            warmup: Duration::ZERO,
            depth: 128,
            raw: true,
        }
    }

    #[test]
    fn rows_stand_beside_their_limit() {
        for group in wishes().groups() {
            for row in &group.rows {
                assert!(row.is_sane(), "{row:?}");
                if let Some(limit) = row.action.limit(row.measure) {
                    assert_eq!(group.rows.iter().filter(|r| r.action == limit).count(), 1, "{group:?}");
                }
            }
        }
    }

    #[test]
    fn fetch_add_has_eight_bytes_and_no_other_row_has_sizes_not_asked_for() {
        let groups = wishes().groups();
        let sizes = |action, measure| -> Vec<usize> {
            let rows = groups.iter().flat_map(|g| &g.rows);
            rows.filter(|r| r.action == action && r.measure == measure).map(|r| r.size).collect()
        };
        assert_eq!(sizes(Action::FetchAdd, Measure::Latency), [8]);
        assert_eq!(sizes(Action::FetchAdd, Measure::Bandwidth), [8]);
        assert_eq!(sizes(Action::Send, Measure::Bandwidth), [4096, 1 << 20]);
        assert_eq!(sizes(Action::Read, Measure::Latency), [8, 4096]);
        let only = Wishes { ops: vec![Op::FetchAdd], latency_sizes: vec![4096], ..wishes() };
        assert_eq!(only.groups().len(), 2);
    }

    #[test]
    fn depth_shrinks_so_that_buffers_stay_small() {
        let groups = Wishes { bandwidth_sizes: vec![1 << 20, 64 << 20], ..wishes() }.groups();
        let depth = |size| groups.iter().flat_map(|g| &g.rows).find(|r| r.size == size).map(|r| r.depth);
        assert_eq!(depth(1 << 20), Some(8));
        assert_eq!(depth(64 << 20), Some(1));
    }

    #[test]
    fn slices_add_up() {
        for n in [1, 7, 999, 1000, 1001, 12_345] {
            let wishes = Wishes { length: Length::Operations(n), ..wishes() };
            let total: u64 = (0..wishes.rounds())
                .map(|round| match wishes.slice(round) {
                    Length::Operations(n) => n,
                    Length::Time(_) => 0,
                })
                .sum();
            assert_eq!(total, n);
        }
        assert_eq!(wishes().rounds(), 4);
        assert_eq!(wishes().slice(0), Length::Time(Duration::from_millis(150)));
    }

    #[test]
    fn specs_from_the_network_are_bounded() {
        let sane = RowSpec { measure: Measure::Bandwidth, action: Action::Send, size: 8, depth: 16 };
        assert!(sane.is_sane());
        assert!(!RowSpec { size: 0, ..sane }.is_sane());
        assert!(!RowSpec { size: usize::MAX, ..sane }.is_sane());
        assert!(!RowSpec { depth: 0, ..sane }.is_sane());
        assert!(!RowSpec { size: 1 << 20, depth: 4096, ..sane }.is_sane());
        assert!(!RowSpec { measure: Measure::Latency, ..sane }.is_sane());
        assert!(!RowSpec { action: Action::FetchAdd, size: 16, ..sane }.is_sane());
    }
}
