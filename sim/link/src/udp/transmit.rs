//! The way out.

use std::sync::Arc;

use anyverbs_nic::link::TxBatch;
use anyverbs_wire::icrc::{self, InTurn};
use rustix::io::Errno;

use super::backend::Kernel;
use super::runs::Run;
use super::{SENDS_MAX, UdpCounters, count};

/// Bytes of an ICRC, the end of every datagram.
const ICRC: usize = icrc::LEN;

/// Changes the ICRC of each datagram of `runs` from the one for IP identification 0 to the one for
/// its place in its run, or back: the ICRC is linear, so the second correction undoes the first.
fn restamp(bytes: &mut [u8], runs: &[Run]) {
    for run in runs.iter().filter(|run| run.datagrams > 1 && run.destination.is_ipv4()) {
        if let Some(datagrams) = bytes.get_mut(run.range()) {
            restamp_run(datagrams, run.segment);
        }
    }
}

fn restamp_run(datagrams: &mut [u8], segment: usize) {
    let mut in_turn = InTurn::new(segment);
    let mut whole = datagrams.chunks_exact_mut(segment);
    let mut id = 0;
    for datagram in &mut whole {
        if let Some(tail) = datagram.last_chunk_mut::<ICRC>() {
            *tail = in_turn.correct(*tail);
        }
        id += 1;
    }
    let rest = whole.into_remainder();
    let len = rest.len();
    if let Some(tail) = rest.last_chunk_mut::<ICRC>() {
        *tail = icrc::correct_id(*tail, len, id);
    }
}

/// What a failed send means.
enum Failure {
    /// The socket's buffer is full.
    Full,
    /// The kernel does not take these together.
    NotTogether,
    /// The path carries no datagrams of this size.
    TooLarge,
    /// The datagrams are lost, as on any network.
    Lost,
    /// The socket is no good.
    Broken,
}

impl Failure {
    fn of(errno: Errno, run: &Run) -> Failure {
        match errno {
            Errno::AGAIN | Errno::INTR => Failure::Full,
            Errno::IO | Errno::INVAL | Errno::MSGSIZE if run.datagrams > 1 => Failure::NotTogether,
            Errno::MSGSIZE => Failure::TooLarge,
            Errno::BADF | Errno::NOTSOCK | Errno::FAULT => Failure::Broken,
            _ => Failure::Lost,
        }
    }
}

/// Hands runs to the kernel, once more if it told an error of an earlier datagram instead of taking one.
fn hand_over(kernel: &mut impl Kernel, runs: &[Run], bytes: &[u8]) -> (usize, Option<Errno>) {
    let (sent, errno) = kernel.send(runs, bytes);
    // A peer whose port is closed says so, later; of a send itself this is never the outcome.
    if errno != Some(Errno::CONNREFUSED) {
        return (sent, errno);
    }
    let (more, errno) = kernel.send(&runs[sent..], bytes);
    (sent + more, errno)
}

/// What makes sends of batches.
pub(super) struct Transmitter {
    runs: Vec<Run>,
    /// Datagrams of this size or larger do not leave in one send with others: 0 if none do.
    segment_limit: usize,
    counters: Arc<UdpCounters>,
}

impl Transmitter {
    /// `gso`: the kernel may be asked to cut one send into many datagrams.
    pub(super) fn new(gso: bool, counters: Arc<UdpCounters>) -> Transmitter {
        let segment_limit = if gso { usize::MAX } else { 0 };
        Transmitter { runs: Vec::with_capacity(SENDS_MAX), segment_limit, counters }
    }

    /// Takes up to [`SENDS_MAX`] runs from the front of `batch`.
    fn plan(&mut self, batch: &TxBatch) {
        self.runs.clear();
        let mut at = 0;
        while self.runs.len() < SENDS_MAX
            && let Some(run) = Run::first(&batch.entries()[at..], self.segment_limit)
        {
            at += run.datagrams;
            self.runs.push(run);
        }
    }

    /// Sends from the front of `batch` until it is empty or the socket's buffer is full.
    ///
    /// # Errors
    /// When the socket is no good.
    pub(super) fn transmit(&mut self, kernel: &mut impl Kernel, batch: &mut TxBatch) -> Result<(), Errno> {
        while !batch.is_empty() {
            self.plan(batch);
            restamp(batch.bytes_mut(), &self.runs);
            let (sent, errno) = hand_over(kernel, &self.runs, batch.bytes());
            restamp(batch.bytes_mut(), &self.runs[sent..]);
            self.sent(batch, sent);

            let (Some(errno), Some(&run)) = (errno, self.runs.get(sent)) else {
                continue;
            };
            let go_on = match Failure::of(errno, &run) {
                Failure::NotTogether => self.send_apart(kernel, batch, &run, errno)?,
                failure => self.failed(batch, &run, failure, errno)?,
            };
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    /// The first `sends` runs are on their way.
    fn sent(&self, batch: &mut TxBatch, sends: usize) {
        let datagrams = self.runs[..sends].iter().map(|run| run.datagrams).sum();
        count(&self.counters.sent, datagrams);
        count(&self.counters.sends, sends);
        batch.consume(datagrams);
    }

    /// The run at the front failed. Whether to go on with the next.
    fn failed(&self, batch: &mut TxBatch, run: &Run, failure: Failure, errno: Errno) -> Result<bool, Errno> {
        match failure {
            Failure::Broken => Err(errno),
            Failure::Full => {
                count(&self.counters.full, 1);
                Ok(false)
            }
            Failure::TooLarge | Failure::Lost | Failure::NotTogether => {
                let UdpCounters { too_large, lost, .. } = &*self.counters;
                let counter = if matches!(failure, Failure::TooLarge) { too_large } else { lost };
                count(counter, run.datagrams);
                batch.consume(run.datagrams);
                Ok(true)
            }
        }
    }

    /// Sends the datagrams of the run at the front of `batch` one by one, after the kernel refused
    /// them together with `refusal`; remembers it if that was what it did not like.
    ///
    /// Returns whether to go on with the next run.
    fn send_apart(
        &mut self,
        kernel: &mut impl Kernel,
        batch: &mut TxBatch,
        run: &Run,
        refusal: Errno,
    ) -> Result<bool, Errno> {
        for single in (0..run.datagrams).map(|k| run.single(k)) {
            match hand_over(kernel, &[single], batch.bytes()) {
                (0, errno) => {
                    let errno = errno.unwrap_or(Errno::AGAIN);
                    if !self.failed(batch, &single, Failure::of(errno, &single), errno)? {
                        return Ok(false);
                    }
                }
                _ => {
                    count(&self.counters.sent, 1);
                    count(&self.counters.sends, 1);
                    batch.consume(1);
                    // Alone it goes, so it was the segmenting. Too large for a device is a matter of
                    // this size; anything else means that the device cannot segment at all.
                    if single.len == run.segment {
                        let limit = if refusal == Errno::MSGSIZE { run.segment } else { 0 };
                        self.segment_limit = self.segment_limit.min(limit);
                    }
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::sys::Received;
    use anyverbs_wire::Flow;
    use std::collections::VecDeque;
    use std::net::IpAddr;

    /// A kernel that fails as a script says, and keeps what it was sent.
    #[derive(Default)]
    struct Scripted {
        /// For each run that is tried: `None` takes it.
        script: VecDeque<Option<Errno>>,
        /// The datagrams of each send.
        sends: Vec<Vec<Vec<u8>>>,
    }

    impl Kernel for Scripted {
        fn send(&mut self, runs: &[Run], bytes: &[u8]) -> (usize, Option<Errno>) {
            for (sent, run) in runs.iter().enumerate() {
                if let Some(errno) = self.script.pop_front().flatten() {
                    return (sent, Some(errno));
                }
                let send = (0..run.datagrams).map(|k| bytes[run.datagram(k)].to_vec()).collect();
                self.sends.push(send);
            }
            (runs.len(), None)
        }

        fn receive(&mut self, _: &mut [u8]) -> Result<Received, Errno> {
            Err(Errno::AGAIN)
        }
    }

    fn flow() -> Flow {
        let address = |d| IpAddr::from([127, 0, 0, d]);
        Flow { source: address(1), destination: address(2), source_port: 4791 }
    }

    /// A batch of datagrams of these lengths; the first byte is the number.
    fn batch(lens: &[usize]) -> TxBatch {
        let mut batch = TxBatch::with_capacity(1 << 18, 256);
        for (i, &len) in lens.iter().enumerate() {
            let datagram = batch.push(flow().destination, 4791, 0, len).unwrap();
            let (body, tail) = datagram.split_at_mut(len - ICRC);
            body.fill(i as u8);
            tail.copy_from_slice(&icrc::compute(&flow(), 0, body));
        }
        batch
    }

    /// The numbers of the datagrams of each send, after a look at every ICRC: it has to be right
    /// for the datagram's place in its send.
    fn numbers(kernel: &Scripted) -> Vec<Vec<u8>> {
        let check = |send: &Vec<Vec<u8>>| {
            for (k, datagram) in send.iter().enumerate() {
                assert_eq!(icrc::verify(&flow(), datagram), Some(k as u16));
            }
            send.iter().map(|datagram| datagram[0]).collect()
        };
        kernel.sends.iter().map(check).collect()
    }

    fn transmitter() -> Transmitter {
        Transmitter::new(true, Arc::default())
    }

    #[test]
    fn a_full_socket_leaves_the_rest_in_the_batch_as_it_was() {
        let mut transmitter = transmitter();
        let mut batch = batch(&[100, 100, 40, 200, 200, 300]);
        let mut kernel = Scripted {
            script: [None, Some(Errno::AGAIN), Some(Errno::AGAIN), None].into(),
            ..Scripted::default()
        };
        transmitter.transmit(&mut kernel, &mut batch).unwrap();
        assert_eq!(numbers(&kernel), [vec![0, 1, 2]]);
        for entry in batch.entries() {
            assert_eq!(icrc::verify(&flow(), &batch.bytes()[entry.range()]), Some(0));
        }
        transmitter.transmit(&mut kernel, &mut batch).unwrap();
        assert_eq!((batch.len(), transmitter.counters.full()), (3, 2));
        transmitter.transmit(&mut kernel, &mut batch).unwrap();
        assert_eq!(numbers(&kernel), [vec![0, 1, 2], vec![3, 4], vec![5]]);
        assert!(batch.is_empty());
        assert_eq!((transmitter.counters.sent(), transmitter.counters.sends()), (6, 3));
    }

    #[test]
    fn a_device_that_cannot_segment_gets_datagrams_one_by_one_from_then_on() {
        for refusal in [Errno::IO, Errno::INVAL] {
            let mut transmitter = transmitter();
            let mut kernel = Scripted { script: [Some(refusal)].into(), ..Scripted::default() };
            transmitter.transmit(&mut kernel, &mut batch(&[100, 100, 40, 100])).unwrap();
            assert_eq!(numbers(&kernel), [[0], [1], [2], [3]]);
            transmitter.transmit(&mut kernel, &mut batch(&[16, 16])).unwrap();
            assert_eq!(numbers(&kernel)[4..], [[0], [1]]);
            assert_eq!(transmitter.counters.lost(), 0);
        }
    }

    #[test]
    fn segments_too_large_for_a_device_are_remembered_by_their_size() {
        let mut transmitter = transmitter();
        let mut kernel = Scripted { script: [Some(Errno::MSGSIZE)].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch(&[2000, 2000])).unwrap();
        transmitter.transmit(&mut kernel, &mut batch(&[2000, 2000, 1000, 1000])).unwrap();
        assert_eq!(numbers(&kernel), [vec![0], vec![1], vec![0], vec![1], vec![2, 3]]);
    }

    #[test]
    fn datagrams_that_do_not_go_alone_either_are_lost_and_nothing_is_remembered() {
        let mut transmitter = transmitter();
        let refused = Some(Errno::MSGSIZE);
        let mut kernel = Scripted { script: [refused, refused, refused].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch(&[9000, 9000, 10])).unwrap();
        assert_eq!(numbers(&kernel), [[2]]);
        assert_eq!((transmitter.counters.lost(), transmitter.counters.too_large()), (0, 2));
        // The last one went, but it was a short one.
        transmitter.transmit(&mut kernel, &mut batch(&[9000, 9000])).unwrap();
        assert_eq!(numbers(&kernel)[1..], [[0, 1]]);
    }

    #[test]
    fn full_in_the_midst_of_going_apart_keeps_the_rest() {
        let mut transmitter = transmitter();
        let mut batch = batch(&[100, 100, 100]);
        let mut kernel =
            Scripted { script: [Some(Errno::IO), None, Some(Errno::AGAIN)].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch).unwrap();
        assert_eq!((numbers(&kernel), batch.len()), (vec![vec![0]], 2));
        transmitter.transmit(&mut kernel, &mut batch).unwrap();
        assert_eq!(numbers(&kernel), [[0], [1], [2]]);
    }

    #[test]
    fn unreachable_is_lost_and_a_bad_socket_is_an_error() {
        let mut transmitter = transmitter();
        let mut kernel = Scripted { script: [None, Some(Errno::NETUNREACH)].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch(&[50, 60, 60, 70])).unwrap();
        assert_eq!(numbers(&kernel), [[0], [3]]);
        assert_eq!(transmitter.counters.lost(), 2);
        let mut kernel = Scripted { script: [Some(Errno::BADF)].into(), ..Scripted::default() };
        let mut batch = batch(&[50]);
        assert_eq!(transmitter.transmit(&mut kernel, &mut batch), Err(Errno::BADF));
    }

    #[test]
    fn an_error_of_an_earlier_datagram_is_passed_over_once() {
        let mut transmitter = transmitter();
        let refused = Some(Errno::CONNREFUSED);
        let mut kernel = Scripted { script: [None, refused, None].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch(&[50, 60, 70])).unwrap();
        assert_eq!(numbers(&kernel), [[0], [1], [2]]);
        assert_eq!((transmitter.counters.sent(), transmitter.counters.lost()), (3, 0));
        // A kernel that says nothing else loses datagrams, and holds nobody up.
        let mut kernel = Scripted { script: [refused, refused, refused].into(), ..Scripted::default() };
        transmitter.transmit(&mut kernel, &mut batch(&[50, 60])).unwrap();
        assert_eq!(numbers(&kernel), [[1]]);
        assert_eq!(transmitter.counters.lost(), 1);
    }

    #[test]
    fn any_number_of_runs_goes_out() {
        let mut kernel = Scripted::default();
        let lens: Vec<_> = (10..110).collect();
        transmitter().transmit(&mut kernel, &mut batch(&lens)).unwrap();
        assert!(numbers(&kernel).into_iter().flatten().eq(0..100));
    }
}
