//! The invariant CRC: CRC-32 over everything that switches leave alone, from the IP header to the pad.
//!
//! The running state is that of crc32fast: what `new_with_initial` takes and `finalize` returns. So the
//! payload may be summed wherever it is copied:
//!
//! ```
//! use anyverbs_wire::{Flow, icrc};
//!
//! let flow = Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), source_port: 0xC001 };
//! let (headers, payload) = ([4, 0x40, 0xff, 0xff, 0, 0, 0, 17, 0, 0, 0, 1], [1, 2, 3, 4]);
//! let state = icrc::start(&flow, 0, &headers, headers.len() + payload.len() + icrc::LEN);
//! let state = icrc::extend(state, &payload);
//! assert_eq!(icrc::finish(state), icrc::compute(&flow, 0, &[&headers[..], &payload].concat()));
//! ```
//!
//! # The IP identification
//!
//! The ICRC covers the identification field of the IPv4 header, which a UDP socket neither sets nor sees.
//! What a socket sends is known: 0, or `k` for the segment `k` of a batch that the kernel cuts. So one
//! computes for 0 and lets [`correct_id`] adjust. What a peer sent has to be recovered from the ICRC itself:
//! CRC-32 is linear, so the difference between the received ICRC and the one computed for 0 is the
//! identification times a power of the generator, and dividing by that power gives the identification
//! back, in 16 bits out of 32. The other 16 must be zero, and that is what is left of the check:
//! [`verify_any_id`] misses one corrupt packet in 2^16 where [`verify`] misses one in 2^25.
//! A single wrong bit is never missed.

use crate::Flow;
use crate::bth::Bth;
use crate::capture::{MAX_IP_UDP_LEN, masked_headers};

mod field;

/// Length in bytes of the ICRC.
pub const LEN: usize = 4;

/// State after the eight bytes of ones that stand for the InfiniBand local route header.
const START: u32 = !0xdebb_20e3;

/// Bytes from the BTH on that are summed in one pass with the IP and UDP headers: all of any headers.
const NEAR: usize = 48;

/// IP identifications that [`verify`] accepts from anyone: a batch that the kernel cuts has at most 128
/// segments, which count from 0.
const BATCH_IDS: u16 = 128;

/// The state after the pseudo header, IP, UDP and `headers`: the BTH and extension headers as emitted.
/// `datagram_len` is the length in bytes of the UDP payload, including the ICRC.
///
/// IPv4 headers are taken to have no options and the don't-fragment flag; IPv6 ignores `ip_id`.
pub fn start(flow: &Flow, ip_id: u16, headers: &[u8], datagram_len: usize) -> u32 {
    // One buffer, so that the CRC runs once: its fixed cost exceeds that of these few bytes.
    const ROOM: usize = MAX_IP_UDP_LEN + NEAR;
    let mut bytes = [0xFF; ROOM];
    let ip_udp_len = masked_headers(flow, ip_id, datagram_len, &mut bytes);
    let (near, far) = headers.split_at(headers.len().min(ROOM - ip_udp_len));
    bytes[ip_udp_len..ip_udp_len + near.len()].copy_from_slice(near);
    bytes[ip_udp_len + Bth::VARIANT_BYTE] = 0xFF;
    let filled = ip_udp_len + near.len();
    extend(extend(START, &bytes[..filled]), far)
}

/// The state after more bytes: payload and pad.
pub fn extend(state: u32, bytes: &[u8]) -> u32 {
    if bytes.is_empty() {
        return state;
    }
    let mut hasher = crc32fast::Hasher::new_with_initial(state);
    hasher.update(bytes);
    hasher.finalize()
}

/// The ICRC on the wire, from the state after the last byte.
pub const fn finish(state: u32) -> [u8; LEN] {
    state.to_le_bytes()
}

/// The ICRC of a datagram that lacks only its ICRC.
pub fn compute(flow: &Flow, ip_id: u16, datagram_without_icrc: &[u8]) -> [u8; LEN] {
    let (headers, rest) = datagram_without_icrc.split_at(datagram_without_icrc.len().min(NEAR));
    let state = start(flow, ip_id, headers, datagram_without_icrc.len() + LEN);
    finish(extend(state, rest))
}

/// The IP identification that the ICRC of a whole datagram fits, if it is 0 or one of a batch (below 128).
/// For IPv6, which has none, 0. `None`: the datagram is corrupt.
pub fn verify(flow: &Flow, datagram: &[u8]) -> Option<u16> {
    verify_any_id(flow, datagram).filter(|&id| is_plain_id(id))
}

/// Whether an IP identification is one that [`verify`] accepts from anyone.
pub const fn is_plain_id(ip_id: u16) -> bool {
    ip_id < BATCH_IDS
}

/// The IP identification that the ICRC of a whole datagram fits, whichever it is. Only for peers that have
/// shown that they use other identifications than [`verify`] accepts, as kernel rxe does: a corrupt
/// datagram passes with a probability of 2^-16.
pub fn verify_any_id(flow: &Flow, datagram: &[u8]) -> Option<u16> {
    let (covered, received) = datagram.split_last_chunk()?;
    let computed = compute(flow, 0, covered);
    if flow.is_ipv4() {
        recover_id(*received, computed, datagram.len())
    } else {
        (*received == computed).then_some(0)
    }
}

/// Whether the ICRC of a whole datagram is right for the IP identification that it came with. This is the
/// check at full strength, for links that see the IP header.
pub fn verify_with_id(flow: &Flow, ip_id: u16, datagram: &[u8]) -> bool {
    datagram.split_last_chunk().is_some_and(|(covered, icrc)| *icrc == compute(flow, ip_id, covered))
}

/// The IP identification that explains the difference between a received ICRC and the one computed for
/// identification 0 over the same datagram of `datagram_len` bytes, or `None` if there is none. IPv4 only.
pub fn recover_id(received: [u8; LEN], computed: [u8; LEN], datagram_len: usize) -> Option<u16> {
    if received == computed {
        return Some(0);
    }
    let difference = u32::from_le_bytes(received) ^ u32::from_le_bytes(computed);
    let id = field::multiply_fast(difference, field::inverse_shift(datagram_len));
    // The polynomial's degree is below 16 exactly if the low half, where the high powers are, is zero.
    (id & 0xFFFF == 0).then(|| ((id >> 16) as u16).swap_bytes())
}

/// Turns an ICRC computed for IP identification 0 into that for `id`, in a datagram of `datagram_len` bytes
/// including the ICRC. IPv4 only.
pub fn correct_id(icrc: [u8; LEN], datagram_len: usize, id: u16) -> [u8; LEN] {
    if id == 0 {
        return icrc;
    }
    let id = u32::from(id.swap_bytes()) << 16;
    let difference = field::multiply(field::shift(datagram_len), id);
    (u32::from_le_bytes(icrc) ^ difference).to_le_bytes()
}

/// [`correct_id`] for datagrams of one length whose IP identifications count from 0, as those of a batch
/// that the kernel cuts: an addition each.
///
/// A step from one identification to the next changes its low bits, up to the lowest that becomes 1, so
/// there are as few kinds of steps as bits.
#[derive(Clone, Debug)]
pub struct InTurn {
    datagram_len: usize,
    id: u16,
    /// What the ICRC for `id` differs by from that for 0.
    difference: u32,
    /// What it changes by in a step to an identification that ends in so many zeros.
    steps: [u32; 8],
}

impl InTurn {
    /// For datagrams of `datagram_len` bytes including the ICRC.
    pub fn new(datagram_len: usize) -> InTurn {
        // The low byte of the identification is the first of its powers that is not followed by a whole
        // byte: its highest bit stands for z^0, its lowest for z^7.
        let mut bit = field::shift(datagram_len);
        let mut steps = [0; 8];
        for step in steps.iter_mut().rev() {
            *step = bit;
            bit = field::times_z(bit);
        }
        for n in 1..steps.len() {
            steps[n] ^= steps[n - 1];
        }
        InTurn { datagram_len, id: 0, difference: 0, steps }
    }

    /// The ICRC of the next datagram, of which this is the ICRC for identification 0.
    pub fn correct(&mut self, icrc: [u8; LEN]) -> [u8; LEN] {
        let corrected = u32::from_le_bytes(icrc) ^ self.difference;
        self.id = self.id.wrapping_add(1);
        self.difference = match self.steps.get(self.id.trailing_zeros() as usize) {
            Some(step) if self.id < 256 => self.difference ^ step,
            // More than any batch has.
            _ => u32::from_le_bytes(correct_id([0; LEN], self.datagram_len, self.id)),
        };
        corrected.to_le_bytes()
    }
}

#[cfg(test)]
mod tests;
