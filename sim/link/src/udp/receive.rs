//! The way in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyverbs_nic::link::{RxBatch, RxEntry};
use rustix::io::Errno;

use super::backend::Kernel;
use super::share::Owner;
use super::sys::Received;
use super::{PACKET_MAX, UdpCounters, count};

/// Datagrams that one receive can bring at most: kernels put no more together.
const TOGETHER_MAX: usize = 128;

/// Calls into the kernel for one receive at most, so that nobody who floods the socket with errors
/// or with empty datagrams keeps the NIC in here.
const CALLS_MAX: usize = 64;

/// Datagrams that arrived together with others and did not fit in the NIC's batch.
struct Carry {
    bytes: Box<[u8]>,
    /// What of it waits: `start` and `len` move on as datagrams are taken from its front.
    rest: Option<Received>,
}

impl Carry {
    fn new() -> Carry {
        Carry { bytes: vec![0; PACKET_MAX].into_boxed_slice(), rest: None }
    }
}

/// Bytes of the buffer that the entries of a batch take.
pub(super) fn filled(batch: &RxBatch) -> usize {
    batch.entries().iter().map(|entry| entry.start + entry.len).max().unwrap_or(0)
}

/// Takes the first datagram off `rest`: where it starts, and how long it is.
fn split_first(rest: &mut Received) -> Option<(usize, usize)> {
    let len = match rest.notes.segment {
        0 => rest.len,
        segment => segment.min(rest.len),
    };
    let first = (rest.start, len);
    rest.start += len;
    rest.len -= len;
    (len > 0).then_some(first)
}

/// What fills batches from the socket.
pub(super) struct Receiver {
    /// The address that the socket is bound to, so that everything comes to it.
    address: IpAddr,
    carry: Carry,
    /// The last receive found nothing, so what comes now probably comes alone.
    quiet: bool,
    /// Datagrams of the last receive that were other links'.
    others: usize,
    counters: Arc<UdpCounters>,
}

/// Whether a datagram is for this link; if it is another's, that one has it now.
#[inline]
fn keeps(owner: &mut Option<&mut Owner>, entry: &RxEntry, datagram: &[u8]) -> bool {
    match owner {
        // Each link has sockets of its own for the groups that it is in.
        Some(owner) if !entry.destination.is_multicast() => owner.keeps(entry, datagram),
        _ => true,
    }
}

impl Receiver {
    pub(super) fn new(address: IpAddr, counters: Arc<UdpCounters>) -> Receiver {
        Receiver { address, carry: Carry::new(), quiet: true, others: 0, counters }
    }

    /// Adds what has arrived to `batch`, but what `owner` hands over to other links.
    ///
    /// # Errors
    /// When the socket is no good.
    pub(super) fn receive(
        &mut self,
        kernel: &mut impl Kernel,
        owner: Option<&mut Owner>,
        batch: &mut RxBatch,
    ) -> Result<(), Errno> {
        if batch.room() == 0 {
            return Ok(());
        }
        let before = batch.room();
        self.others = 0;
        let result = self.receive_some(kernel, owner, batch);
        let received = before - batch.room();
        count(&self.counters.received, received);
        self.quiet = received + self.others == 0;
        result
    }

    fn receive_some(
        &mut self,
        kernel: &mut impl Kernel,
        mut owner: Option<&mut Owner>,
        batch: &mut RxBatch,
    ) -> Result<(), Errno> {
        // Bytes of the batch's buffer are used from the front; it grows by what this call adds.
        let mut used = filled(batch);
        self.hand_over_carry(&mut owner, batch, &mut used);
        for _ in 0..CALLS_MAX {
            if self.carry.rest.is_some() {
                break;
            }
            let room = batch.buffer().len().saturating_sub(used);
            let roomy = room >= PACKET_MAX && batch.room() >= TOGETHER_MAX;
            // What might not fit comes by way of the carry; and only if the NIC has nothing yet,
            // so that a batch which is nearly full is handled first.
            if !roomy && !batch.entries().is_empty() {
                break;
            }
            let found = if roomy {
                kernel.receive(&mut batch.buffer()[used..])
            } else {
                kernel.receive(&mut self.carry.bytes)
            };
            if found.is_ok() {
                count(&self.counters.receives, 1);
            }
            match found {
                // Not a byte of a packet: the NIC has no use for it.
                Ok(found) if found.len == 0 || found.source.is_none() => {
                    count(&self.counters.discarded, 1);
                }
                Ok(found) if roomy => {
                    let found = Received { start: used + found.start, ..found };
                    let before = batch.room();
                    self.hand_over(&mut owner, batch, found);
                    if batch.room() < before {
                        used = found.start + found.len;
                    }
                }
                Ok(found) => {
                    self.carry.rest = Some(found);
                    self.hand_over_carry(&mut owner, batch, &mut used);
                }
                Err(Errno::AGAIN) => break,
                Err(errno @ (Errno::BADF | Errno::NOTSOCK | Errno::FAULT)) => {
                    return Err(errno);
                }
                // An error of a datagram that was sent, say a refused port, is nothing to us.
                Err(_) => continue,
            }
            // After silence, one datagram is most likely all there is: let the NIC answer it
            // before the kernel is asked in vain.
            if self.quiet {
                break;
            }
        }
        Ok(())
    }

    fn entry(&self, source: SocketAddr, found: &Received, start: usize, len: usize) -> RxEntry {
        RxEntry {
            source: source.ip(),
            destination: found.group.unwrap_or(self.address),
            source_port: source.port(),
            ip_id: found.ip_id,
            ecn: found.notes.ecn,
            start,
            len,
        }
    }

    /// Notes the datagrams of `found`, whose bytes are in the batch's buffer. Those beyond the
    /// batch's room are copied to the carry.
    fn hand_over(&mut self, owner: &mut Option<&mut Owner>, batch: &mut RxBatch, mut found: Received) {
        let Some(source) = found.source else { return };
        loop {
            let before = found;
            let Some((start, len)) = split_first(&mut found) else {
                return;
            };
            let entry = self.entry(source, &found, start, len);
            if !keeps(owner, &entry, batch.buffer().get(entry.range()).unwrap_or_default()) {
                self.others += 1;
                continue;
            }
            if !batch.push(entry) {
                let rest = before.start..before.start + before.len;
                self.carry.bytes[..before.len].copy_from_slice(&batch.bytes()[rest]);
                self.carry.rest = Some(Received { start: 0, ..before });
                return;
            }
        }
    }

    /// Copies datagrams from the carry to the batch, as many as fit; one that can never fit is
    /// lost.
    fn hand_over_carry(&mut self, owner: &mut Option<&mut Owner>, batch: &mut RxBatch, used: &mut usize) {
        let Some(mut rest) = self.carry.rest else { return };
        let Some(source) = rest.source else {
            self.carry.rest = None;
            return;
        };
        while batch.room() > 0 {
            let before = rest;
            let Some((start, len)) = split_first(&mut rest) else {
                self.carry.rest = None;
                return;
            };
            let at = *used;
            let entry = self.entry(source, &rest, at, len);
            if !keeps(owner, &entry, &self.carry.bytes[start..start + len]) {
                self.others += 1;
                continue;
            }
            if let Some(target) = batch.buffer().get_mut(at..at + len) {
                target.copy_from_slice(&self.carry.bytes[start..start + len]);
                *used += len;
                batch.push(entry);
            } else if at > 0 {
                rest = before;
                break;
            } else {
                count(&self.counters.discarded, 1);
            }
        }
        self.carry.rest = (rest.len > 0).then_some(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::control::Notes;
    use crate::udp::runs::Run;
    use std::collections::VecDeque;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// A kernel that delivers packets: the bytes of each, and how long its datagrams are.
    struct Scripted(VecDeque<Result<(Vec<u8>, usize), Errno>>);

    impl Kernel for Scripted {
        fn send(&mut self, runs: &[Run], _: &[u8]) -> (usize, Option<Errno>) {
            (runs.len(), None)
        }

        fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
            let (bytes, segment) = self.0.pop_front().unwrap_or(Err(Errno::AGAIN))?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            let source = Some("10.0.0.2:4791".parse().unwrap());
            let notes = Notes { ecn: 1, segment };
            Ok(Received { start: 0, len: bytes.len(), source, group: None, ip_id: None, notes })
        }
    }

    /// A packet of `n` datagrams of 8 bytes, and a last one of 3, numbered from `first` on.
    fn packet(first: u8, n: u8) -> Result<(Vec<u8>, usize), Errno> {
        let mut bytes: Vec<u8> = (0..n).flat_map(|i| [first.wrapping_add(i); 8]).collect();
        bytes.extend([first.wrapping_add(n); 3]);
        Ok((bytes, 8))
    }

    /// The first bytes of what one receive adds to an empty batch.
    fn receive(receiver: &mut Receiver, kernel: &mut Scripted, batch: &mut RxBatch) -> Vec<u8> {
        batch.clear();
        receiver.receive(kernel, None, batch).unwrap();
        let bytes = |entry: &RxEntry| {
            assert_eq!((entry.ecn, entry.source_port), (1, 4791));
            let bytes = &batch.bytes()[entry.range()];
            assert!((bytes.len() == 8 || bytes.len() == 3) && bytes.iter().all(|&b| b == bytes[0]));
            bytes[0]
        };
        batch.entries().iter().map(bytes).collect()
    }

    #[test]
    fn more_together_than_any_kernel_gives_is_carried_over() {
        let mut receiver = Receiver::new(OWN, Arc::default());
        let mut kernel = Scripted([packet(0, 200), packet(201, 4)].into());
        let mut batch = RxBatch::with_capacity(1 << 18, 150);
        let mut seen = receive(&mut receiver, &mut kernel, &mut batch);
        assert_eq!(seen.len(), 150);
        seen.extend(receive(&mut receiver, &mut kernel, &mut batch));
        seen.extend(receive(&mut receiver, &mut kernel, &mut batch));
        assert!(seen.into_iter().eq(0..=205));
        assert_eq!(receiver.counters.received(), 206);
    }

    #[test]
    fn after_silence_one_packet_is_taken_and_then_all() {
        let mut receiver = Receiver::new(OWN, Arc::default());
        let mut kernel = Scripted((0..5).map(|i| packet(10 * i, 1)).collect());
        let mut batch = RxBatch::with_capacity(1 << 18, 256);
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), [0, 1]);
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), [10, 11, 20, 21, 30, 31, 40, 41]);
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), []);
        assert!(receiver.quiet);
    }

    #[test]
    fn errors_of_what_was_sent_are_passed_over_and_those_of_the_socket_are_not() {
        let mut receiver = Receiver::new(OWN, Arc::default());
        let mut batch = RxBatch::with_capacity(1 << 18, 256);
        let refused = Err(Errno::CONNREFUSED);
        let mut kernel = Scripted([refused.clone(), refused.clone(), packet(7, 0)].into());
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), [7]);
        // For ever is too long.
        let mut kernel = Scripted(std::iter::repeat_n(refused, 1000).collect());
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), []);
        assert_eq!(kernel.0.len(), 1000 - CALLS_MAX);
        let mut kernel = Scripted([Err(Errno::BADF)].into());
        assert_eq!(receiver.receive(&mut kernel, None, &mut batch), Err(Errno::BADF));
    }

    #[test]
    fn a_datagram_larger_than_the_batch_is_lost_and_does_not_block_the_way() {
        let mut receiver = Receiver::new(OWN, Arc::default());
        let mut kernel = Scripted([Ok((vec![1; 500], 0)), packet(7, 0)].into());
        let mut batch = RxBatch::with_capacity(100, 256);
        let mut seen = receive(&mut receiver, &mut kernel, &mut batch);
        seen.extend(receive(&mut receiver, &mut kernel, &mut batch));
        assert_eq!(seen, [7]);
        assert_eq!((receiver.counters.received(), receiver.counters.discarded()), (1, 1));
    }

    #[test]
    fn an_empty_datagram_is_counted_and_not_handed_on() {
        let mut receiver = Receiver::new(OWN, Arc::default());
        let empty = || Ok((Vec::new(), 0));
        let mut kernel = Scripted([packet(7, 0), empty(), empty(), packet(8, 0)].into());
        let mut batch = RxBatch::with_capacity(1 << 18, 256);
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), [7]);
        assert_eq!(receive(&mut receiver, &mut kernel, &mut batch), [8]);
        assert_eq!((receiver.counters.received(), receiver.counters.discarded()), (2, 2));
    }
}
