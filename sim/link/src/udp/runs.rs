//! Which datagrams leave together.

use std::net::IpAddr;
use std::ops::Range;

use anyverbs_nic::link::TxEntry;

/// Segments in one send: kernels before 6.9 take no more.
const SEGMENTS_MAX: usize = 64;

/// Bytes in one send: an IPv4 packet of 65,535 bytes less its IP and UDP headers.
const BYTES_MAX: usize = 65_507;

/// Datagrams at the front of a batch that leave in one send: neighbours in memory, all of one size
/// except that the last may be shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) ecn: u8,
    /// Where the first datagram starts in the batch's bytes.
    pub(super) start: usize,
    /// Bytes of all datagrams.
    pub(super) len: usize,
    /// Bytes of each datagram but the last; of a run of one, its length.
    pub(super) segment: usize,
    /// How many datagrams.
    pub(super) datagrams: usize,
}

impl Run {
    /// The longest run at the front of `entries`; `None` if there are none.
    ///
    /// Only datagrams shorter than `segment_limit` are put together.
    pub(super) fn first(entries: &[TxEntry], segment_limit: usize) -> Option<Run> {
        let head = entries.first()?;
        let mut run = Run {
            destination: head.destination,
            source_port: head.source_port,
            ecn: head.ecn,
            start: head.start,
            len: head.len,
            segment: head.len,
            datagrams: 1,
        };
        // A segment of no bytes would vanish in the send.
        if head.len == 0 || head.len >= segment_limit {
            return Some(run);
        }
        for entry in entries.iter().take(SEGMENTS_MAX).skip(1) {
            let joins = entry.destination == head.destination
                && entry.source_port == head.source_port
                && entry.ecn == head.ecn
                && entry.start == run.start + run.len
                && (1..=run.segment).contains(&entry.len)
                && run.len + entry.len <= BYTES_MAX;
            if !joins {
                break;
            }
            run.len += entry.len;
            run.datagrams += 1;
            if entry.len < run.segment {
                break;
            }
        }
        Some(run)
    }

    /// Where the bytes of all datagrams are.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Where the bytes of datagram `k` are.
    pub(super) fn datagram(&self, k: usize) -> Range<usize> {
        let start = self.start + k * self.segment;
        start..(start + self.segment).min(self.start + self.len)
    }

    /// Datagram `k` as a run of its own.
    pub(super) fn single(&self, k: usize) -> Run {
        let range = self.datagram(k);
        Run { start: range.start, len: range.len(), segment: range.len(), datagrams: 1, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn entries(lens: &[usize]) -> Vec<TxEntry> {
        let mut start = 0;
        lens.iter()
            .map(|&len| {
                let destination = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
                let entry = TxEntry { destination, source_port: 4791, ecn: 0, start, len };
                start += len;
                entry
            })
            .collect()
    }

    fn split(lens: &[usize]) -> Vec<usize> {
        let entries = entries(lens);
        let mut at = 0;
        let mut sizes = Vec::new();
        while let Some(run) = Run::first(&entries[at..], usize::MAX) {
            sizes.push(run.datagrams);
            at += run.datagrams;
        }
        sizes
    }

    #[test]
    fn equal_sizes_join_and_a_shorter_one_ends_the_run() {
        assert_eq!(split(&[100, 100, 100]), [3]);
        assert_eq!(split(&[100, 100, 40, 40]), [3, 1]);
        assert_eq!(split(&[40, 100, 100]), [1, 2]);
        assert_eq!(split(&[100, 0, 100]), [1, 1, 1]);
        assert_eq!(split(&[]), [0; 0]);
    }

    #[test]
    fn limits_of_segments_and_bytes() {
        assert_eq!(split(&[16; 130]), [64, 64, 2]);
        // 15 x 4136 = 62,040; one more would be 66,176.
        assert_eq!(split(&[4136; 16]), [15, 1]);
        assert_eq!(split(&[40_000, 40_000]), [1, 1]);
    }

    #[test]
    fn another_destination_port_or_mark_or_a_gap_ends_the_run() {
        for change in [
            |e: &mut TxEntry| e.destination = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)),
            |e: &mut TxEntry| e.source_port = 4792,
            |e: &mut TxEntry| e.ecn = 3,
            |e: &mut TxEntry| e.start += 1,
        ] {
            let mut entries = entries(&[100, 100, 100]);
            change(&mut entries[1]);
            assert_eq!(Run::first(&entries, usize::MAX).unwrap().datagrams, 1);
        }
    }

    #[test]
    fn sizes_known_not_to_be_segmented_go_alone() {
        assert_eq!(Run::first(&entries(&[100, 100]), 101).unwrap().datagrams, 2);
        assert_eq!(Run::first(&entries(&[100, 100]), 100).unwrap().datagrams, 1);
    }

    #[test]
    fn datagrams_of_a_run_tile_it() {
        let run = Run::first(&entries(&[100, 100, 40]), usize::MAX).unwrap();
        assert_eq!(run.range(), 0..240);
        assert_eq!([run.datagram(0), run.datagram(1), run.datagram(2)], [0..100, 100..200, 200..240]);
        assert_eq!(run.single(2), Run { start: 200, len: 40, segment: 40, datagrams: 1, ..run });
    }
}
